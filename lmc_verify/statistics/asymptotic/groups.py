"""Draws in bounded memory: where too many are kept, neighbours are added up, and what is kept are sums of 2^k draws."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

__all__ = ["GroupedDraws"]

Array = npt.NDArray[np.float64]


class GroupedDraws:
    """Sums of `size` consecutive draws each, `most` of them at most; the last, unfinished one is kept apart.

    The sums of a stream of draws are a stream of draws again, so a statement that is valid at every number of draws is
    valid at every number of groups. `level` counts how often the size has doubled.

    Args:
        dimension: length of a draw.
        most: most groups; even.

    Attributes:
        size: number of draws in a group, ``2^level``.
        level: how often neighbours have been added up.
    """

    def __init__(self, dimension: int, most: int) -> None:
        self._rows: Array = np.empty((min(most, 32), dimension))
        self._most, self._count, self._open, self._pending = most, 0, 0, np.zeros(dimension)
        self.size, self.level = 1, 0

    def __len__(self) -> int:
        """Return the number of groups."""
        return self._count

    @property
    def rows(self) -> Array:
        """The groups' sums [groups, dimension]; a view."""
        return self._rows[: self._count]

    @property
    def draws(self) -> int:
        """Number of draws in the groups."""
        return self._count * self.size

    @property
    def penalty(self) -> float:
        """What every level adds to a log threshold, so that the levels together spend one alpha: sum exp(-p) = 1."""
        return math.log((self.level + 1) * (self.level + 2))

    def add(self, draw: Array) -> None:
        """Take one draw [dimension]."""
        self._pending += draw
        self._open += 1
        if self._open < self.size:
            return
        if self._count == self._most:
            self._merge()
            if self._open < self.size:
                return
        if self._count == len(self._rows):
            self._rows = np.concatenate([self._rows, np.empty_like(self._rows)])[: self._most]
        self._rows[self._count] = self._pending
        self._count, self._open = self._count + 1, 0
        self._pending[:] = 0

    def _merge(self) -> None:
        self._count //= 2
        self._rows[: self._count] = self._rows[: 2 * self._count : 2] + self._rows[1 : 2 * self._count : 2]
        self.size, self.level = 2 * self.size, self.level + 1
