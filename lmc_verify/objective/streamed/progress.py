"""How far a pass over files is."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

__all__ = ["Clock", "StreamProgress"]

_Item = TypeVar("_Item")


@dataclass(frozen=True)
class StreamProgress:
    """How far a pass over files is.

    Attributes:
        step: what is under way, such as ``"forward 2"``.
        share: share of the whole pass that is done, in [0, 1].
        seconds_left: estimate from the pace of this process, or None before anything is done.
    """

    step: str
    share: float
    seconds_left: float | None


class Clock:
    """Tells a listener the progress of steps whose sizes are known.

    Args:
        sizes: of the steps, in any unit.
        listen: is called after each chunk, or None.
    """

    def __init__(self, sizes: Sequence[float], listen: Callable[[StreamProgress], None] | None) -> None:
        self._sizes, self._listen = sizes, listen
        self._begun, self._first = time.monotonic(), 0.0
        self._step, self._name = 0, ""

    def begin(self, step: int, name: str, *, first: bool) -> None:
        """Note which step is under way; `first` is the one that this process begins with."""
        self._step, self._name = step, name
        if first:
            self._begun, self._first = time.monotonic(), self._share(0)

    def over(self, items: Sequence[_Item]) -> Iterator[_Item]:
        """Yield the chunks of a step, or of one part of it."""
        for number, item in enumerate(items, start=1):
            yield item
            if self._listen is not None:
                self._listen(self._progress(number / len(items)))

    def _share(self, of_step: float) -> float:
        return (sum(self._sizes[: self._step]) + of_step * self._sizes[self._step]) / sum(self._sizes)

    def _progress(self, of_step: float) -> StreamProgress:
        share = self._share(of_step)
        done = share - self._first
        left = (time.monotonic() - self._begun) / done * (1 - share) if done > 0 else None
        return StreamProgress(self._name, share, left)
