"""The precision that a step runs in: its constants, and casts and autocast left out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from lmc_verify.steps.modes import StepMode

__all__ = ["default_dtype", "full_precision", "watched_autocast"]

_LOWER = (torch.float32, torch.float16, torch.bfloat16)
_CASTS = (Tensor.float, Tensor.half, Tensor.bfloat16)


class _NoCasts(StepMode):
    """A cast of a tensor in double precision to a lower one gives the tensor."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        double = bool(args) and isinstance(args[0], Tensor) and args[0].dtype is torch.float64
        if double and func in _CASTS:
            return args[0]
        if double and func in (Tensor.to, Tensor.type):
            args = tuple(torch.float64 if _is_lower(item) else item for item in args)
            kwargs = {key: torch.float64 if _is_lower(item) else item for key, item in kwargs.items()}
        return func(*args, **kwargs)


def _is_lower(item: Any) -> bool:
    return isinstance(item, torch.dtype) and item in _LOWER


@contextmanager
def full_precision() -> Iterator[None]:
    """Run a step in the precision of its model and batch, whatever it asks for."""
    enter: Any = torch.autocast.__enter__

    def switched_off(self: Any) -> Any:
        self._enabled = False
        return enter(self)

    torch.autocast.__enter__ = switched_off  # type: ignore[method-assign]
    try:
        with _NoCasts():
            yield
    finally:
        torch.autocast.__enter__ = enter  # type: ignore[method-assign]


@contextmanager
def watched_autocast() -> Iterator[set[torch.dtype]]:
    """Yield the precisions of every autocast that is entered."""
    enter: Any = torch.autocast.__enter__
    found: set[torch.dtype] = set()

    def watched(self: Any) -> Any:
        if self._enabled:
            found.add(self.fast_dtype)
        return enter(self)

    torch.autocast.__enter__ = watched  # type: ignore[method-assign]
    try:
        yield found
    finally:
        torch.autocast.__enter__ = enter  # type: ignore[method-assign]


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Make tensors from Python's numbers, and quotients of whole numbers, of a dtype, as ``mask.sum() / n`` is."""
    given = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(given)
