"""What `torch.cuda` is to CUDA, for the emulated device: streams, synchronisation, its global generator.

A copy from page-locked memory to the device that does not block, on a stream of its own, is done when something waits
for the stream, and not before: until then the result holds NaN. The host's memory must still be there then, as it must
be on a GPU.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

DEFAULT_GENERATOR: Any = None
"""The global generator of the device; `tensors.emulated_device` makes it."""

pinned: Any = WeakIdKeyDictionary()
"""Tensors whose memory is page-locked, as keys."""

streams: weakref.WeakSet[Stream] = weakref.WeakSet()


class Stream:
    """A queue of copies that are still to be done."""

    def __init__(self, device: Any = None) -> None:
        self.device = device
        self.waiting: list[Callable[[], None]] = []
        streams.add(self)

    def wait_stream(self, other: Stream) -> None:
        """Do what comes next on this stream after all of the other's copies."""
        other.finish()

    def synchronize(self) -> None:
        self.finish()

    def finish(self) -> None:
        while self.waiting:
            self.waiting.pop(0)()


_default = Stream()
_current = [_default]


@contextmanager
def stream(chosen: Stream) -> Iterator[None]:
    _current.append(chosen)
    try:
        yield
    finally:
        _current.pop()


def current_stream(device: Any = None) -> Stream:
    return _current[-1]


def synchronize(device: Any = None) -> None:
    for one in list(streams):
        one.finish()


def copied(name: str, args: Any, kwargs: dict[str, Any], result: Any) -> None:
    """Take a copy back and put it into the current stream's queue, where it does not block."""
    source = args[1] if name == "aten::copy_" else args[0] if name == "aten::_to_copy" else None
    blocks = not (kwargs.get("non_blocking") or (name == "aten::copy_" and len(args) > 2 and args[2]))
    if source is None or blocks or source not in pinned or current_stream() is _default:
        return
    host = weakref.ref(source)
    result.inner.fill_(float("nan") if result.is_floating_point() else -1)

    def finish() -> None:
        there = host()
        if there is None:
            raise RuntimeError("page-locked memory was given back before its copy was done")
        result.inner.copy_(there)

    current_stream().waiting.append(finish)
    _ahead.append(result.shape)


_ahead: list[torch.Size] = []


def copies_ahead() -> int:
    """Return how many copies did not block so far."""
    return len(_ahead)


# What torch asks of any device's module.


def is_initialized() -> bool:
    return True


def is_available() -> bool:
    return True


def current_device() -> int:
    return 0


def device_count() -> int:
    return 1


def _is_in_bad_fork() -> bool:
    return False


def get_amp_supported_dtype() -> list[torch.dtype]:
    return [torch.float16, torch.bfloat16]


def manual_seed_all(seed: int) -> None:
    DEFAULT_GENERATOR.manual_seed(seed)


def get_rng_state(device: Any = None) -> Tensor:
    return DEFAULT_GENERATOR.get_state()


def set_rng_state(state: Tensor, device: Any = None) -> None:
    DEFAULT_GENERATOR.set_state(state)
