"""Modes that a step runs under: torch's functions are replaced while it runs, its backward passes included.

torch leaves modes out while it goes backward. What a step computes anew there (gradient checkpointing) would then be
other values than those of its forward pass.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

__all__ = ["MaskedBiases", "StepMode"]

_SUMS = ("add", "add_")
"""Names of torch's functions for ``+`` and ``+=``."""


class _Modes(threading.local):
    """The modes of a thread, from the outermost one."""

    def __init__(self) -> None:
        self.active: list[StepMode] = []


class _Engine:
    """torch's entry to backward passes, replaced as long as there is a mode in any thread."""

    def __init__(self) -> None:
        self._lock, self._users = threading.Lock(), 0
        self._autograd: Any = torch.autograd
        self._torch: Any = None

    def hold(self) -> None:
        with self._lock:
            self._users += 1
            if self._users == 1:
                self._torch = self._autograd._engine_run_backward
                self._autograd._engine_run_backward = self._backward

    def release(self) -> None:
        with self._lock:
            self._users -= 1
            if not self._users:
                self._autograd._engine_run_backward = self._torch

    def _backward(self, *args: Any, **kwargs: Any) -> Any:
        with ExitStack() as stack:
            for mode in _MODES.active:
                stack.enter_context(mode.again())
            return self._torch(*args, **kwargs)


_MODES, _ENGINE = _Modes(), _Engine()


class StepMode(TorchFunctionMode):
    """A mode that stays on during backward passes."""

    def __enter__(self) -> Any:
        _MODES.active.append(self)
        _ENGINE.hold()
        return TorchFunctionMode.__enter__(self)

    def __exit__(self, *raised: Any) -> None:
        TorchFunctionMode.__exit__(self, *raised)
        _ENGINE.release()
        _MODES.active.pop()

    @contextmanager
    def again(self) -> Iterator[None]:
        """Switch the mode on where torch has left it out."""
        TorchFunctionMode.__enter__(self)
        try:
            yield
        finally:
            TorchFunctionMode.__exit__(self, None, None, None)


class MaskedBiases(StepMode):
    """Adds every bias to the rows outside of the batch without its gradient.

    Where a step computes rows for neighbours, too, and gives them a gradient of their own (compensation), a bias that
    is added to every row gets the neighbours' part as well.

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
