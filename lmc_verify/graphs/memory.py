"""Memory that is used again: buffers for large results, and a cache that stays within a budget.

A large block that a CPU program frees goes back to the operating system, which hands out the next one page by page and
filled with zeros. For the passes of this package that costs as much as the arithmetic, so results come from a pool: a
buffer returns to it when the last tensor that uses it is gone.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

__all__ = ["DEFAULT_CACHE_BYTES", "BufferPool", "ByteCache", "Sized"]

DEFAULT_CACHE_BYTES = 2**30
"""Budget of a graph's cache unless the user gives another: 1 GiB."""

_ALIGNMENT = 64
_SMALL = 2**20


class BufferPool:
    """Uninitialised tensors whose memory is used again once they are garbage.

    Tensors of less than 1 MiB, and those on other devices than the CPU, come from torch, whose allocators keep such
    memory by themselves. The pool holds about what was in use at one time, and goes with its owner.
    """

    def __init__(self) -> None:
        self._segments: list[_Segment] = []
        # Garbage may be collected at any moment, so what comes back waits here until the lists can be touched.
        self._returned: deque[tuple[_Segment, int, int]] = deque()

    def empty(self, rows: int, width: int, like: Tensor) -> Tensor:
        """Return an uninitialised tensor [rows, width] of the dtype and on the device of another tensor."""
        size = rows * width * like.element_size()
        if like.device.type != "cpu" or size < _SMALL:
            return torch.empty(rows, width, dtype=like.dtype, device=like.device)
        length = -(-size // _ALIGNMENT) * _ALIGNMENT
        segment, start = self._take(length)
        array = segment.memory[start : start + size].view(_NUMPY[like.dtype]).reshape(rows, width)
        # The tensor keeps `array` alive: when `array` goes, nobody reads its memory.
        weakref.finalize(array, self._returned.append, (segment, start, start + length)).atexit = False
        return torch.from_numpy(array)

    @property
    def num_bytes(self) -> int:
        """Memory that the pool holds, in use or not."""
        return sum(segment.memory.nbytes for segment in self._segments)

    @property
    def free_bytes(self) -> int:
        """Memory that waits to be used again."""
        self._collect()
        return sum(stop - start for segment in self._segments for start, stop in segment.free)

    def release(self) -> None:
        """Give memory that waits to be used again back to the system."""
        self._collect()
        self._segments = [segment for segment in self._segments if not segment.unused]

    def __reduce__(self) -> tuple[type[BufferPool], tuple[()]]:
        """Copies start empty."""
        return BufferPool, ()

    def _collect(self) -> None:
        while self._returned:
            segment, start, stop = self._returned.popleft()
            segment.give(start, stop)

    def _take(self, length: int) -> tuple[_Segment, int]:
        self._collect()
        fitting = [
            (stop - start, start, segment)
            for segment in self._segments
            for start, stop in segment.free
            if stop - start >= length
        ]
        if fitting:
            _, start, segment = min(fitting, key=lambda found: found[0])
        else:
            # What is asked for has grown: memory that nobody uses goes before more is taken.
            self.release()
            # Batches differ in size a little: a margin lets the next one fit, too.
            segment, start = _Segment(length + length // 16), 0
            self._segments.append(segment)
        segment.take(start, length)
        return segment, start


class _Segment:
    """A piece of memory with the list of its free intervals, ascending."""

    def __init__(self, length: int) -> None:
        raw = np.empty(length + _ALIGNMENT, dtype=np.uint8)
        first = -raw.ctypes.data % _ALIGNMENT
        self.memory = raw[first : first + length]
        self.free = [(0, length)]

    @property
    def unused(self) -> bool:
        return self.free == [(0, self.memory.nbytes)]

    def take(self, start: int, length: int) -> None:
        """Take the beginning of the free interval at `start`."""
        index, stop = next((index, stop) for index, (first, stop) in enumerate(self.free) if first == start)
        self.free[index : index + 1] = [(start + length, stop)] if start + length < stop else []

    def give(self, start: int, stop: int) -> None:
        """Give an interval back, joined with free ones that touch it."""
        joined = []
        for first, last in self.free:
            if last == start:
                start = first
            elif first == stop:
                stop = last
            else:
                joined.append((first, last))
        self.free = sorted([*joined, (start, stop)])


_NUMPY = {torch.float32: np.float32, torch.float64: np.float64}


class Sized(Protocol):
    """Something whose memory is known."""

    @property
    def num_bytes(self) -> int:
        """Memory that it holds."""


Value = TypeVar("Value", bound=Sized)


@dataclass
class _Entry:
    owner: weakref.ref[object]
    values: dict[Hashable, Sized] = field(default_factory=dict)
    num_bytes: int = 0


class ByteCache:
    """What was worked out about some objects. What was used longest ago goes when all together exceed a budget.

    Values go with the object that they are about, too.

    Args:
        budget: bytes. A value larger than all of it is made and not kept.
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self._entries: OrderedDict[int, _Entry] = OrderedDict()
        self.num_bytes = 0

    def get(self, owner: object, kind: Hashable, make: Callable[[], Value]) -> Value:
        """Return the value of this kind about an object, made if it is not there."""
        key = id(owner)
        if key in self._entries:
            self._entries.move_to_end(key)
        else:
            this = weakref.ref(self)

            def forget(_: object) -> None:
                cache = this()
                if cache is not None:
                    cache._drop(key)

            self._entries[key] = _Entry(weakref.ref(owner, forget))
        values = self._entries[key].values
        if kind not in values:
            values[kind] = make()
            self.resize(owner)
        value: Value = values[kind]  # type: ignore[assignment]  # an object always has the same type of value of a kind
        return value

    def resize(self, owner: object) -> None:
        """Take notice that values about an object have grown, and keep to the budget."""
        entry = self._entries.get(id(owner))
        if entry is None:
            return
        now = sum(value.num_bytes for value in entry.values.values())
        self.num_bytes += now - entry.num_bytes
        entry.num_bytes = now
        while self.num_bytes > self.budget:
            self._drop(next(iter(self._entries)))

    def _drop(self, key: int) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self.num_bytes -= entry.num_bytes

    def __len__(self) -> int:
        return len(self._entries)

    def __reduce__(self) -> tuple[type[ByteCache], tuple[int]]:
        """Copies start empty."""
        return ByteCache, (self.budget,)
