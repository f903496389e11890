"""Biases that reach rows outside of a batch: their part of the gradient is taken away while a step runs.

Where a step computes rows for neighbours, too, and gives them a gradient of their own (compensation), a bias that is
added to every row gets the neighbours' part as well.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

__all__ = ["MaskedBiases"]

_SUMS = ("add", "add_")
"""Names of torch's functions for ``+`` and ``+=``."""


class MaskedBiases(TorchFunctionMode):
    """Adds every bias to the rows outside of the batch without its gradient.

    Args:
        own: a function of a number of rows that returns which of them are the batch's own, bool [rows], or None where
            that is not known.
    """

    def __init__(self, own: Callable[[int], Tensor | None]) -> None:
        super().__init__()
        self._own = own

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in _SUMS and len(args) == 2:
            left, right = args
            return func(self._masked(left, right), self._masked(right, left), **kwargs)
        if func is F.linear:
            given = dict(zip(("input", "weight", "bias"), args, strict=False)) | kwargs
            out = func(given["input"], given["weight"])
            bias = given.get("bias")
            return out if bias is None else out + self._masked(bias, out)
        return func(*args, **kwargs)

    def _masked(self, bias: Any, other: Any) -> Any:
        """Return a bias by rows, without gradient at those outside of the batch; anything else as it is."""
        if not isinstance(bias, nn.Parameter) or not isinstance(other, Tensor) or bias.dim() != 1 or other.dim() != 2:
            return bias
        if other.shape[1] != bias.numel():
            return bias
        own = self._own(other.shape[0])
        if own is None or bool(own.all()):
            return bias
        return torch.where(own.to(bias.device)[:, None], bias, bias.detach())
