"""Modes in which dropout, batch norm and smoothed labels of a step are not what they are."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from lmc_verify.steps.modes import StepMode

__all__ = ["FrozenBatchNorm", "MirroredDropout", "NoDropout", "PlainTargets"]

_DROPOUTS: frozenset[Any] = frozenset(
    {
        F.dropout,
        F.dropout1d,
        F.dropout2d,
        F.dropout3d,
        F.alpha_dropout,
        F.feature_alpha_dropout,
        torch.dropout,
        torch.feature_dropout,
        torch.alpha_dropout,
        torch.dropout_,
    }
)


class NoDropout(StepMode):
    """Every dropout returns its input."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _DROPOUTS:
            return args[0] if args else (kwargs or {})["input"]
        return func(*args, **(kwargs or {}))


class MirroredDropout(StepMode):
    """Dropout that keeps where a uniform number is above p, or where its mirror image is: each is dropout by itself.

    The mean of both has far less noise, because what is linear in the mask cancels.

    Args:
        mirrored: whether the numbers are taken as ``1 - u``.
    """

    def __init__(self, mirrored: bool) -> None:
        super().__init__()
        self._mirrored = mirrored

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.dropout:
            given = dict(zip(("input", "p", "training", "inplace"), args, strict=False)) | kwargs
            p, value = float(given.get("p", 0.5)), given["input"]
            if given.get("training", True) and 0 < p < 1 and not given.get("inplace", False):
                u = torch.rand_like(value)
                return value * ((1 - u if self._mirrored else u) >= p).to(value.dtype) / (1 - p)
        return func(*args, **kwargs)


class PlainTargets(StepMode):
    """Cross entropy without smoothed labels."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is F.cross_entropy and kwargs.get("label_smoothing"):
            kwargs["label_smoothing"] = 0.0
        return func(*args, **kwargs)


class FrozenBatchNorm(StepMode):
    """Every batch norm uses its running statistics, and leaves them as they are."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is F.batch_norm:
            names = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
            given = {**dict(zip(names, args, strict=False)), **kwargs}
            if given.get("running_mean") is not None:
                given["training"] = False
                return func(**given)
        return func(*args, **kwargs)
