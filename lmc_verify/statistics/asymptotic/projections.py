"""The lower end: is the mean of a block longer than m, seen in the direction that past draws have pointed to?

The draw ``D_t`` is projected on ``u = S / ||S||`` with S the sum of the draws before. ``X_t = u . D_t`` has a mean of
at most ``||E D||``. For ``Y_t = X_t - m`` and a bet ``lambda > 0``

    exp(lambda S - lambda^2 V / 2 - lambda^3 W / 3),    S = sum Y,  V = sum Y^2,  W = sum max(-Y, 0)^3

is a supermartingale if ``||E D|| <= m``, up to terms of fourth order in ``lambda Y``: ``exp(z - z^2/2)`` is at most
``1 + z`` where z >= 0, and below 0 the third power makes up for the difference to third order. Without the last term it
is one exactly where Y is symmetric about zero (de la Pena, A general class of exponential inequalities for martingales
and ratios, Annals of Probability 27, 1999). The term is what skewness adds to the tail of a self-normalised sum (Jing,
Shao and Wang, Annals of Probability 31, 2003): without it the level fails by orders of magnitude where draws are skewed
and alpha is small.

The average over a grid of bets, Robbins' mixture with a discrete distribution, covers all numbers of draws; ``V / t``
converges to the variance, so this is the confidence sequence of the package's docstring. Bets that a draw half as far
again below as any seen would ruin take no part: ``1.5 lambda max(-Y) <= 1``.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from lmc_verify.statistics.asymptotic.groups import GroupedDraws
from lmc_verify.statistics.betting import log_mean_exp

__all__ = ["BETS", "REACH", "LowerEnd", "log_capital", "scale_of"]

Array = npt.NDArray[np.float64]

BETS: Array = 2.0 ** (-np.arange(49) / 2)
"""Bets, in units of 1 / `scale_of`: from 1 down to what a hundred million draws need."""

REACH = 1.5
"""A draw this many times as far below as any seen must not take all."""

_MOST = 4096
_SMALLEST_SCALE = 2.0**-10  # of the standard deviation, in units of the root mean square
_STEPS = 60


def scale_of(values: Array) -> Array:
    """Return the unit of the bets from the first draws [..., draws]: their deviation, or 2^-10 of their size."""
    sizes = np.sqrt(np.mean(values**2, axis=-1))
    return np.asarray(np.maximum(np.std(values, axis=-1), _SMALLEST_SCALE * sizes))


def log_capital(sums: npt.ArrayLike, squares: npt.ArrayLike, cubes: npt.ArrayLike, deepest: npt.ArrayLike) -> Array:
    """Return the logarithm of the capital against "the mean is at most zero", for Y in units of `scale_of`.

    Args:
        sums: ``sum Y``, of any shape, like all that follow.
        squares: ``sum Y^2``.
        cubes: ``sum max(-Y, 0)^3``.
        deepest: ``max(-Y, 0)`` of all draws.
    """
    one, two, three, most = (np.asarray(item)[..., np.newaxis] for item in (sums, squares, cubes, deepest))
    exponent = BETS * (one - BETS * (two / 2 + BETS * three / 3))
    return log_mean_exp(np.where(REACH * BETS * most <= 1, exponent, -math.inf))


class LowerEnd:
    """Time-uniform lower confidence bound on the norm of one block's mean; see the module's docstring.

    Args:
        alpha: probability that the bound ever fails.
        null: a norm whose exceedance is tested after every draw.
        first: draws before the first look.
        effective: no look before the sum of squares is this many times the largest square.

    Attributes:
        exceeds: whether the mean's norm has been found to exceed `null`.
    """

    def __init__(self, alpha: float, null: float, first: int, effective: float) -> None:
        self._level, self._null, self._first, self._effective = -math.log(alpha), null, first, effective
        self._draws = GroupedDraws(1, _MOST)
        self._scale: float | None = None
        self._best, self.exceeds = 0.0, False

    def add(self, projection: float) -> None:
        """Take one projection, and test."""
        self._draws.add(np.array([projection]))
        if self._scale is None and len(self._draws) >= self._first:
            values = self._draws.rows[:, 0]
            squares = values**2
            if squares.sum() >= self._effective * squares.max() > 0:
                self._scale = float(scale_of(values))
        if not self.exceeds and self._scale is not None:
            self.exceeds = self._excludes(self._null)

    def value(self) -> float:
        """Return the largest lower bound of this and earlier calls."""
        if self.exceeds:
            self._best = max(self._best, self._null)
        if self._scale is None or not self._excludes(self._best):
            return self._best
        low, high = self._best, max(float(self._draws.rows.sum()) / self._draws.draws, self._best)
        for _ in range(_STEPS):  # whatever is excluded is a bound, though the capital need not fall with m everywhere
            middle = (low + high) / 2
            low, high = (middle, high) if self._excludes(middle) else (low, middle)
        self._best = low
        return low

    def _excludes(self, norm: float) -> bool:
        assert self._scale is not None
        values = (self._draws.rows[:, 0] - self._draws.size * norm) / self._scale
        total = values.sum()
        if not total > 0:
            return False
        below = np.maximum(-values, 0.0)
        capital = log_capital(total, values @ values, (below**3).sum(), below.max())
        return bool(capital >= self._level + self._draws.penalty)
