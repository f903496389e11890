"""Rates from independent training runs: slopes, decay with a floor, and intervals that assume no distribution.

One run (a seed) gives one number, such as a log-log slope. The numbers of independent runs are independent draws from
one distribution, and order statistics bound its median whatever its shape: with n runs, all of them lie above
the median with probability ``2^-n``. A t-interval would need normal tails far beyond what a few dozen runs can show.

For the test there are three functions: `median_interval` runs it, `detectable_margin` says how far from a limit the
median must lie to be distinguished from it, and `seeds_to_detect` how many runs detect a given distance. An error
level alone asks for `seeds_needed`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt
from scipy.special import bdtr, ndtri

from lmc_verify.statistics.detection import first_that

__all__ = [
    "EXTENSIONS",
    "FLOOR_FACTOR",
    "DecayFit",
    "MedianInterval",
    "detectable_margin",
    "fit_decay",
    "length_to_come_below",
    "length_to_keep_slope",
    "loglog_slope",
    "median_interval",
    "near_floor",
    "seeds_needed",
    "seeds_to_detect",
]

Vector = npt.NDArray[np.float64]

FLOOR_FACTOR = 5.0
"""A mean up to this multiple of its floor says little about a rate."""

EXTENSIONS = 24
"""Longer ranges, each by the ratio of the last two abscissae, that are looked at for one that would decide."""

_NO_DECAY = 1e-12
"""An amplitude of at most this part of the floor is rounding."""


@dataclass(frozen=True)
class MedianInterval:
    """An interval for the median of a distribution, from independent draws.

    Attributes:
        median: of the draws.
        low: lower end; -inf where there are too few draws for the level.
        high: upper end; inf where there are too few draws.
        miss: probability that the interval misses the median, at most; 1 where there are too few draws.
        draws: number of draws.
    """

    median: float
    low: float
    high: float
    miss: float
    draws: int

    @property
    def exists(self) -> bool:
        """Whether there were enough draws for an interval."""
        return self.miss < 1

    @property
    def ends(self) -> tuple[float | None, float | None]:
        """Both ends, or None twice where there were too few draws."""
        return (self.low, self.high) if self.exists else (None, None)

    def inside(self, lower: float = -math.inf, upper: float = math.inf) -> bool:
        """Whether the interval lies inside a region."""
        return self.exists and lower <= self.low and self.high <= upper

    def outside(self, lower: float = -math.inf, upper: float = math.inf) -> bool:
        """Whether the interval lies beyond one end of a region."""
        return self.exists and (self.high < lower or self.low > upper)


def seeds_needed(alpha: float) -> int:
    """Return the fewest draws whose smallest and largest bound the median with a miss probability of at most alpha.

    Raises:
        ValueError: alpha outside (0, 1).
    """
    if not 0 < alpha < 1:
        raise ValueError(f"alpha is {alpha}, it must lie in (0, 1)")
    # 2^(1 - n) <= alpha, without rounding: frexp gives alpha = m 2^e with 1/2 <= m < 1.
    return 2 - math.frexp(alpha)[1]


@cache
def _cut(draws: int, alpha: float) -> tuple[int, float]:
    """Return how many draws may be left out at either end, and the miss probability then.

    The former is the largest k with ``2 P(Bin(n, 1/2) <= k) <= alpha``.
    """
    cut, beyond = 0, draws + 1
    while beyond - cut > 1:
        middle = (cut + beyond) // 2
        cut, beyond = (middle, beyond) if 2 * bdtr(middle, draws, 0.5) <= alpha else (cut, middle)
    return cut, float(2 * bdtr(cut, draws, 0.5))


def median_interval(values: Sequence[float], alpha: float) -> MedianInterval:
    """Return the order-statistic interval for the median, exact for every distribution, whatever its shape.

    Args:
        values: independent draws from one distribution. Infinite values are allowed and count as what they are.
        alpha: largest probability that the interval misses the median.

    Raises:
        ValueError: no values, or NaN among them, or alpha outside (0, 1).
    """
    draws = np.sort(np.asarray(values, dtype=np.float64))
    if draws.size == 0 or np.isnan(draws).any():
        raise ValueError(f"the median needs at least one value and no NaN, got {list(values)}")
    median, count = float(np.median(draws)), draws.size
    if count < seeds_needed(alpha):
        return MedianInterval(median, -math.inf, math.inf, 1.0, count)
    cut, miss = _cut(count, alpha)
    return MedianInterval(median, float(draws[cut]), float(draws[count - 1 - cut]), miss, count)


def detectable_margin(deviation: float, seeds: int, alpha: float, power: float = 0.9) -> float:
    """Return how far from a limit the median must lie for the interval to clear the limit with this power.

    Args:
        deviation: standard deviation of the draws, which are taken to be normal here (for the power only).
        seeds: number of draws.
        alpha: miss probability of the interval.
        power: probability of a decision.

    Returns:
        The margin in the unit of `deviation`; infinite where there are too few draws for `alpha`.

    Raises:
        ValueError: a level or power outside (0, 1), or a negative deviation.
    """
    if not 0 < power < 1 or not deviation >= 0:
        raise ValueError(f"power is {power} and must lie in (0, 1); deviation is {deviation} and must not be negative")
    if seeds < seeds_needed(alpha):
        return math.inf
    # At most `cut` draws may fall on the wrong side of the limit; find the probability of one that allows it.
    cut, _ = _cut(seeds, alpha)
    low, high = 0.0, 0.5
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if bdtr(cut, seeds, middle) >= power else (low, middle)
    return float(deviation * -ndtri(low))


def seeds_to_detect(margin: float, deviation: float, alpha: float, power: float = 0.9) -> int | None:
    """Return how many draws distinguish a median at this distance from a limit; the inverse of `detectable_margin`.

    Args:
        margin: distance of the median from the limit.
        deviation: standard deviation of the draws, which are taken to be normal here (for the power only).
        alpha: miss probability of the interval.
        power: probability of a decision.

    Returns:
        The number of draws; None where a million would not do.

    Raises:
        ValueError: a margin that is not positive, a level or power outside (0, 1), or a negative deviation.
    """
    if not margin > 0:
        raise ValueError(f"the margin is {margin}, it must be positive: on the limit nothing can be distinguished")
    return first_that(lambda draws: detectable_margin(deviation, draws, alpha, power) <= margin, limit=2**20)


def loglog_slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Return the least-squares slope of ``log y`` against ``log x``.

    Raises:
        ValueError: fewer than two points or one abscissa, different lengths, or a value not positive and finite.
    """
    abscissa, ordinate = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if abscissa.shape != ordinate.shape or abscissa.size < 2:
        raise ValueError(f"a slope needs two or more points, got {abscissa.size} abscissae and {ordinate.size} values")
    if not all((values > 0).all() and np.isfinite(values).all() for values in (abscissa, ordinate)):
        raise ValueError(
            f"a log-log slope needs positive finite values, got x from {abscissa.min()} to {abscissa.max()}, y from "
            f"{ordinate.min()} to {ordinate.max()}"
        )
    if (abscissa == abscissa[0]).all():
        raise ValueError(f"a slope needs two different abscissae, all are {abscissa[0]}")
    return _least_squares_slope(np.log(abscissa), np.log(ordinate))


def _least_squares_slope(x: Vector, y: Vector) -> float:
    centred = x - x.mean()
    return float(centred @ y / (centred @ centred))


def length_to_come_below(x: Sequence[float], values: Sequence[float], limit: float) -> float | None:
    """Return about where values that fall come below a limit, if the power law of the last two goes on.

    Args:
        x: ascending abscissae above 0.
        values: positive, the last of them above the limit.
        limit: positive.

    Returns:
        The abscissa, or None where the values do not fall, or too slowly for one within `EXTENSIONS` longer ranges.
    """
    fall = math.log(values[-2] / values[-1])
    further = math.log(values[-1] / limit) / fall if fall > 0 else math.inf
    return float(x[-1] * (x[-1] / x[-2]) ** further) if further <= EXTENSIONS else None


def length_to_keep_slope(x: Sequence[float], values: Sequence[float], slope: float) -> float | None:
    """Return about up to where a curve must reach to have a log-log slope, if it goes on to steepen as it does.

    The slope between neighbours is continued as a straight line in log x, from the last two.

    Args:
        x: ascending abscissae above 0, at least three.
        values: positive.
        slope: the log-log slope that the whole curve is to have, or a steeper one.

    Returns:
        The abscissa, or None where `EXTENSIONS` longer ranges, each by the ratio of the last two, do not have it.
    """
    log_x, log_y = (np.log(np.asarray(given, dtype=np.float64)).tolist() for given in (x, values))
    local = [(log_y[k + 1] - log_y[k]) / (log_x[k + 1] - log_x[k]) for k in (-3, -2)]
    step, steepening = log_x[-1] - log_x[-2], (local[1] - local[0]) / ((log_x[-1] - log_x[-3]) / 2)
    for number in range(1, EXTENSIONS + 1):
        log_y.append(log_y[-1] + step * (local[1] + steepening * number * step))
        log_x.append(log_x[-1] + step)
        if _least_squares_slope(np.asarray(log_x), np.asarray(log_y)) <= slope:
            return math.exp(log_x[-1])
    return None


def near_floor(means: npt.ArrayLike, floor: float) -> bool:
    """Whether some mean is at most `FLOOR_FACTOR` times its floor, or NaN: a slope would show the floor's shape."""
    return not bool((np.asarray(means, dtype=np.float64) > FLOOR_FACTOR * floor).all())


@dataclass(frozen=True)
class DecayFit:
    """The curve ``floor + amplitude * rate^(k - start)``, fitted to positive values in relative terms.

    Attributes:
        floor: value that remains, at least 0.
        amplitude: what decays, at step `start`, at least 0.
        rate: factor per step, in (0, 1); 0 where nothing decays.
        error: root mean square of the relative residuals.
        start: the first step that was fitted.
    """

    floor: float
    amplitude: float
    rate: float
    error: float
    start: float

    def __call__(self, steps: Sequence[float]) -> Vector:
        """Return the fitted values at some steps."""
        curve: Vector = self.floor + self.amplitude * self.rate ** (np.asarray(steps, dtype=np.float64) - self.start)
        return curve


def fit_decay(steps: Sequence[float], values: Sequence[float]) -> DecayFit:
    """Fit decay and floor together, by least squares on relative residuals.

    Given the rate, floor and amplitude solve a non-negative linear least-squares problem; the rate is searched on a
    grid of half-lives, from a twentieth of the smallest gap between steps to four times their span, and then refined,
    so there is no starting point to choose. A slow decay and a drifting floor look alike: where the fitted rate is near
    the end of the grid the floor is an extrapolation.

    Raises:
        ValueError: fewer than four points, steps that do not ascend, or a value that is not positive.
    """
    k, y = np.asarray(steps, dtype=np.float64), np.asarray(values, dtype=np.float64)
    if k.shape != y.shape or k.size < 4:
        raise ValueError(f"decay and floor need four or more points, got {k.size} steps and {y.size} values")
    if not (np.diff(k) > 0).all() or not (y > 0).all() or not np.isfinite(y).all():
        raise ValueError("decay and floor need ascending steps and positive finite values")

    from scipy.optimize import minimize_scalar, nnls  # importing it takes half a second

    def solve(log_half_life: float) -> tuple[Vector, float, float]:
        rate = 0.5 ** math.exp(-log_half_life)
        design = np.column_stack([np.ones_like(k), rate ** (k - k[0])]) / y[:, None]
        weights, residual = nnls(design, np.ones_like(k))
        return weights, rate, float(residual)

    grid = np.linspace(math.log(np.diff(k).min() / 20), math.log(4 * (k[-1] - k[0])), 80)
    best = int(np.argmin([solve(point)[2] for point in grid]))
    bracket = (float(grid[max(best - 1, 0)]), float(grid[min(best + 1, grid.size - 1)]))
    refined = minimize_scalar(
        lambda point: solve(point)[2], bounds=bracket, method="bounded", options={"xatol": 1e-12}
    ).x
    point = min((float(refined), float(grid[best])), key=lambda candidate: solve(candidate)[2])
    (floor, amplitude), rate, residual = solve(point)
    error, start = residual / math.sqrt(k.size), float(k[0])
    if amplitude <= _NO_DECAY * floor:  # any rate fits
        return DecayFit(float(floor), 0.0, 0.0, error, start)
    return DecayFit(float(floor), float(amplitude), rate, error, start)
