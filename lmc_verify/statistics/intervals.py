"""Confidence sequences for the mean of bounded scalars: intervals that hold at every number of draws at once.

A candidate mean q is excluded when betting against it has made ``1/alpha`` of a capital of 1 (see betting.py). To
exclude means that are too large one bets on ``x = (q - Y) / (1 - q) >= -1``, with fixed bets kappa: the capital
``average over kappa of prod_t (1 + kappa x_t)`` is a martingale if q is the mean, and it increases with q, so that
the candidates that remain form an interval whose end is found by root finding. The lower end is the upper end of
1 - Y. Both together, each at alpha/2, are the hedged capital of Waudby-Smith and Ramdas (Estimating means of bounded
random variables by betting, JRSS-B 86, 2024, section 4), here with a fixed mixture of bets instead of plugged-in
ones.

Without replacement from a population of N the candidate's conditional mean after t draws is ``(N q - S_t) / (N - t)``
(their section 5). Candidates for which that leaves [0, 1] are impossible: after N draws one is left, the mean itself.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import numpy.typing as npt

from lmc_verify.statistics.betting import RANGE_SLACK, bet_grid, log_mean_exp, log_threshold
from lmc_verify.statistics.detection import first_that, guaranteed_log_capital

__all__ = ["MeanInterval", "draws_to_width", "mean_upper_bound", "reachable_upper_bound", "reachable_width"]

Array = npt.NDArray[np.float64]
Side = Literal["both", "lower", "upper"]

_BETS = bet_grid(smallest=2.0**-13)
"""Fractions of the capital. The lower end of a small mean q needs bets of about q, hence the long grid."""

_PRECISION = 1e-12
"""Of the root finding, in units of the range; ends are moved outwards by it."""


def log_capital_against(values: Array, candidate: float, population: int | None = None) -> float:
    """Return the logarithm of the capital against "the mean is `candidate` or more", after all values.

    Args:
        values: draws in [0, 1], in the order drawn [t].
        candidate: a mean in [0, 1] that is possible, see the module's docstring.
        population: N, or None for independent draws.
    """
    means: Array = np.full(len(values), candidate)
    if population is not None:
        past = np.concatenate([[0.0], np.cumsum(values)[:-1]])
        means = (population * candidate - past) / (population - np.arange(len(values)))
    means = np.clip(means, 0.0, 1.0)  # a rounding error may put them outside
    # Any scale of at least 1 - mean keeps factors positive; the floor keeps rounding errors from becoming evidence.
    gains = (means - values) / np.maximum(1 - means, RANGE_SLACK)
    # One bet at a time: a long history times all bets would not fit in memory.
    return float(log_mean_exp(np.array([np.log1p(bet * gains).sum() for bet in _BETS])))


def mean_upper_bound(values: Array, alpha: float, population: int | None = None) -> float:
    """Return an upper confidence bound on the mean, valid at all numbers of draws at once with probability 1 - alpha.

    Args:
        values: draws in [0, 1], in the order drawn [t].
        alpha: probability that the bound ever fails.
        population: number of equally likely points if they are drawn without replacement; None for independent draws.

    Raises:
        ValueError: a value outside [0, 1], alpha outside (0, 1), or more values than the population has points.
    """
    from scipy.optimize import brentq  # importing it takes half a second

    level = log_threshold(alpha)
    values = np.asarray(values, dtype=np.float64)
    if not ((values >= 0) & (values <= 1)).all():
        raise ValueError("values must lie in [0, 1]; scale them by their range")
    low, high = 0.0, 1.0
    if population is not None:
        if population < len(values):
            raise ValueError(f"{len(values)} values were drawn from a population of {population}")
        low = min(math.fsum(values) / population, 1.0)
        high = min(low + (population - len(values)) / population, 1.0)
    if len(values) == 0 or high <= low:
        return high

    def excess(candidate: float) -> float:
        return log_capital_against(values, candidate, population) - level

    if excess(high) <= 0:
        return high
    if excess(low) > 0:  # the draws are unlikely under every mean: an event of probability alpha
        return low
    return min(float(brentq(excess, low, high, xtol=_PRECISION)) + _PRECISION, high)


class MeanInterval:
    """Confidence sequence for the mean of scalars in [low, high]; see the module's docstring.

    With probability at least 1 - alpha the mean lies in `interval()` after *every* draw.

    Args:
        alpha: probability that an interval ever misses the mean.
        low: proven smallest value of a draw.
        high: proven largest value of a draw.
        population: N for draws without replacement from N equally likely points; None for independent draws.
        side: ``"both"``, or only the ``"lower"`` or ``"upper"`` end, which then gets all of alpha.

    Raises:
        ValueError: alpha outside (0, 1), an empty or infinite range, a population below 1, an unknown side.

    Example:
        >>> fraction = MeanInterval(0.01)
        >>> for _ in range(200):
        ...     fraction.update(0.25)
        >>> low, high = fraction.interval()
        >>> 0.22 < low < 0.25 < high < 0.29
        True
    """

    def __init__(
        self,
        alpha: float,
        low: float = 0.0,
        high: float = 1.0,
        *,
        population: int | None = None,
        side: Side = "both",
    ) -> None:
        log_threshold(alpha)
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise ValueError(f"a range needs finite low < high, got [{low}, {high}]")
        if population is not None and population < 1:
            raise ValueError(f"a population has at least 1 point, got {population}")
        if side not in ("both", "lower", "upper"):
            raise ValueError(f"side must be 'both', 'lower' or 'upper', got {side!r}")
        self._alpha, self._low, self._high = alpha, low, high
        self._population, self._side = population, side
        self._values: list[float] = []

    @property
    def draws(self) -> int:
        """Number of draws so far."""
        return len(self._values)

    @property
    def mean(self) -> float:
        """Average of the draws so far; NaN before the first."""
        return math.fsum(self._values) / self.draws if self._values else math.nan

    def update(self, value: float) -> None:
        """Take one draw.

        Raises:
            ValueError: a value outside its range by more than 1e-9 of the range's length, or not a number, or more
                draws than the population has points.
        """
        value = float(value)
        slack = RANGE_SLACK * (self._high - self._low)
        if not self._low - slack <= value <= self._high + slack:
            raise ValueError(
                f"a draw is {value}, its proven range is [{self._low}, {self._high}]: the range is broken, nothing can "
                "be concluded; prove a larger range and start again"
            )
        if self._population is not None and self.draws >= self._population:
            raise ValueError(f"all {self._population} points of the population are drawn; there is no further draw")
        self._values.append(min(max(value, self._low), self._high))

    def interval(self) -> tuple[float, float]:
        """Return the ends after the draws so far; a side that is not asked for is the end of the range.

        After all N points of a population both ends are the mean.
        """
        if self.draws == self._population:
            return self.mean, self.mean
        length = self._high - self._low
        units = np.clip((np.array(self._values) - self._low) / length, 0.0, 1.0)
        alpha = self._alpha / 2 if self._side == "both" else self._alpha
        low, high = self._low, self._high
        if self._side != "lower":
            high = self._low + length * mean_upper_bound(units, alpha, self._population)
        if self._side != "upper":
            low = self._high - length * mean_upper_bound(1 - units, alpha, self._population)
        return max(low, self._low), min(high, self._high)


# ------------------------------------------------------------------ what the intervals can resolve


def reachable_upper_bound(mean: float, deviation: float, draws: int, alpha: float, miss: float) -> float:
    """Return a value that the upper end falls below, after `draws` draws, with probability at least 1 - miss.

    The promise is for independent draws in [0, 1] with this mean and a standard deviation of at most `deviation`; it
    holds for every distribution. It is the smallest candidate against which `guaranteed_log_capital` is enough.
    """
    needed = log_threshold(alpha) + math.log(_BETS.size)
    # The capital against a candidate increases with its gap to the mean, the guarantee need not: take the first gap.
    gaps = (1 - mean) * np.geomspace(1e-9, 1.0, 400)[:-1]
    candidates = mean + gaps
    scale = np.maximum(1 - candidates, RANGE_SLACK)  # x = (candidate - Y) / scale lies in [-1, candidate / scale]
    capital = guaranteed_log_capital(
        _BETS[:, np.newaxis],
        mean=gaps / scale,
        variance=(deviation / scale) ** 2,
        reach=candidates / scale,
        draws=draws,
        miss=miss,
    )
    enough = np.flatnonzero(capital.max(axis=0) >= needed)
    return float(candidates[enough[0]]) if enough.size else 1.0


def _check_plan(mean: float, deviation: float, power: float) -> None:
    if not 0 <= mean <= 1:
        raise ValueError(f"the mean in units of the range must lie in [0, 1], got {mean}")
    if not 0 <= deviation**2 <= mean * (1 - mean) + 1e-12:
        limit = math.sqrt(mean * (1 - mean))
        raise ValueError(f"with mean {mean} in [0, 1] the standard deviation is at most {limit}, got {deviation}")
    if not 0 < power < 1:
        raise ValueError(f"power is a probability and must lie in (0, 1), got {power}")


def reachable_width(mean: float, deviation: float, draws: int, alpha: float, *, power: float = 0.9) -> float:
    """Return a width that the two-sided interval has at most, after `draws` draws, with probability at least `power`.

    Args:
        mean: of the draws, in units of the range (0 is its lower end, 1 its upper).
        deviation: bound of the standard deviation, in units of the range.
        draws: number of independent draws.
        alpha: level of the interval.
        power: probability that the interval is as narrow.

    Raises:
        ValueError: an argument outside its range.
    """
    _check_plan(mean, deviation, power)
    miss = (1 - power) / 2
    high = reachable_upper_bound(mean, deviation, draws, alpha / 2, miss)
    low = 1 - reachable_upper_bound(1 - mean, deviation, draws, alpha / 2, miss)
    return high - low


def draws_to_width(width: float, mean: float, deviation: float, alpha: float, *, power: float = 0.9) -> int:
    """Return a number of independent draws after which the interval is as narrow, with probability at least `power`.

    Args:
        width: in units of the range.
        mean: see `reachable_width`, like all that follow.
        deviation: bound of the standard deviation.
        alpha: level of the interval.
        power: probability.

    Raises:
        ValueError: an argument outside its range, or a width that the smallest bet cannot resolve.
    """
    _check_plan(mean, deviation, power)
    if not width > 0:
        raise ValueError(f"a width must be positive, got {width}")
    draws = first_that(lambda count: reachable_width(mean, deviation, count, alpha, power=power) <= width)
    if draws is None:
        raise ValueError(f"no number of draws up to 2^40 resolves a width of {width}; ask for a larger one")
    return draws
