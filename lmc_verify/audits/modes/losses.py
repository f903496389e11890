"""Modes that record over how many rows a step's losses are means, and that give these means other divisors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lmc_verify.steps.modes import StepMode

__all__ = ["EvenMeans", "LossCalls", "rows_of_loss", "rows_of_tensor"]

_MEANS: frozenset[Any] = frozenset(
    {
        F.cross_entropy,
        F.nll_loss,
        F.binary_cross_entropy,
        F.binary_cross_entropy_with_logits,
        F.mse_loss,
        F.l1_loss,
        F.multi_margin_loss,
        F.multilabel_soft_margin_loss,
    }
)
"""Losses with ``reduction="mean"`` unless it is said otherwise."""

_OF_CLASSES: frozenset[Any] = frozenset({F.cross_entropy, F.nll_loss})


class LossCalls(StepMode):
    """Records of how many rows every loss is a mean: what its sum is divided by.

    Attributes:
        rows: of each call; rows whose target is ignored do not count, and those of weighted classes count by weight.
        means: rows of each tensor with a gradient whose mean over everything is taken.
    """

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[float] = []
        self.means: list[float] = []

    @property
    def counted(self) -> list[float]:
        """Rows of each loss; of each mean where there is none."""
        return self.rows or self.means

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if (rows := rows_of_loss(func, args, kwargs)) is not None:
            self.rows.append(rows)
        elif (rows := rows_of_tensor(func, args, kwargs)) is not None:
            self.means.append(rows)
        return func(*args, **kwargs)


class EvenMeans(StepMode):
    """Every mean loss is the sum over its rows, divided by a number that does not depend on the batch.

    Args:
        divisors: of the losses in the order of their calls; the last one is that of all further ones, too.
        rows_of: rows of a call; None where it takes no mean.
    """

    def __init__(self, divisors: Sequence[float], rows_of: Callable[..., float | None]) -> None:
        super().__init__()
        self._divisors, self._rows_of, self._calls = divisors, rows_of, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        rows, out = self._rows_of(func, args, kwargs), func(*args, **kwargs)
        if rows is None:
            return out
        divisor = self._divisors[min(self._calls, len(self._divisors) - 1)]
        self._calls += 1
        return out * (rows / divisor)


def rows_of_loss(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> float | None:
    """Return over how many rows a call of a loss takes the mean; None where it takes none."""
    given = args[0] if args else kwargs.get("input")
    if func not in _MEANS or kwargs.get("reduction", "mean") != "mean":
        return None
    if not isinstance(given, Tensor) or not given.dim():
        return None
    return _divisor(given, args, kwargs) if func in _OF_CLASSES else given.shape[0]


def rows_of_tensor(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> float | None:
    """Return the rows of a tensor with a gradient whose mean over everything a call takes; None where it does not."""
    if func not in (Tensor.mean, torch.mean) or len(args) != 1 or kwargs:
        return None
    return args[0].shape[0] if args[0].requires_grad and args[0].dim() else None


def _divisor(given: Tensor, args: Sequence[Any], kwargs: Mapping[str, Any]) -> float:
    """Return what a mean loss of class numbers is divided by: the sum of the weights of the targets that count."""
    named = {**dict(zip(("input", "target", "weight", "size_average", "ignore_index"), args, strict=False)), **kwargs}
    target, weight = named["target"], named.get("weight")
    if target.is_floating_point() or target.shape != given.shape[:1]:
        return float(given.shape[0])
    counted = target[target != named.get("ignore_index", -100)]
    return float(counted.numel() if weight is None else weight[counted].sum())
