"""What tests by betting can detect: the smallest bias, and the draws that a bias needs, whatever the distribution.

The promises are about the tests of betting.py. The capital after a number of draws is bounded from below with the
probability wanted (`guaranteed_log_capital`); the smallest bias, or number of draws, at which that bound reaches the
threshold follows by root finding.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from lmc_verify.statistics.betting import bet_grid, log_threshold

__all__ = ["draws_to_detect", "first_that", "guaranteed_log_capital", "smallest_detectable_bias"]

Array = npt.NDArray[np.float64]


def guaranteed_log_capital(
    bets: Array,
    *,
    mean: float | Array,
    variance: float | Array,
    draws: int,
    miss: float,
    reach: float | Array = 1.0,
    largest_mean: float | None = None,
    lost_draws: float = 0.0,
) -> Array:
    """Return, for every bet, a logarithm of capital that `draws` draws reach with probability at least 1 - miss [bets].

    The draws x lie in [-1, reach], have conditional variances of at most `variance`, and conditional means in [mean,
    largest_mean], except for `lost_draws` of them whose means are only known to be at least -largest_mean.

    Let ``z = lambda (x - mean) / (1 + lambda mean)``. As ``x >= -1``, z is at least -k with
    ``k = lambda (1 + mean) / (1 + lambda mean)``. Since ``(z - log(1 + z)) / z^2`` decreases in z, each factor has
    ``log(1 + lambda x) >= w(z) = log(1 + lambda mean) + z - c z^2`` with ``c = (-log(1 - k) - k) / k^2``.

    So the growth per draw is at least ``log(1 + lambda mean) - c Var(z)``, which increases with the mean; Bernstein's
    inequality for martingales (Freedman, 1975) bounds how far the sum of w falls below its expectation.
    """
    top = mean if largest_mean is None else largest_mean
    slope = bets / (1 + bets * mean)
    loss = slope * (1 + mean)
    curve = (-np.log1p(-loss) - loss) / loss**2
    highest = slope * (reach - mean)
    growth = np.log1p(bets * mean) - curve * slope**2 * variance
    behind = slope * (top + mean)  # z of a draw whose mean is -top, at worst
    lost = behind + curve * behind**2
    steepest = slope * np.maximum(1 + 2 * curve * loss, np.abs(1 - 2 * curve * highest))
    # w is largest at z = 1 / (2 c), and smallest at an end.
    fall = 1 / (4 * curve) - np.minimum(np.log1p(-loss), highest - curve * highest**2)
    level = -math.log(miss)
    jump = fall * level / 3
    fluctuation = jump + np.sqrt(jump**2 + 2 * draws * steepest**2 * variance * level)
    capital = draws * growth - lost_draws * lost - fluctuation
    # Means above `mean` help only as long as w increases there.
    return np.asarray(np.where(curve * slope * (top - mean) <= 1, capital, -math.inf))


def _evidence(bias: float, deviation: float, draws: int, power: float, spread: float | None, bets: Array) -> float:
    """Return a log capital (not yet divided by the number of bets) that is reached with probability `power`."""
    miss = 1 - power
    if spread is None:
        return float(guaranteed_log_capital(bets, mean=bias, variance=deviation**2, draws=draws, miss=miss).max())
    best = -math.inf
    for fraction in np.linspace(0.1, 0.9, 17):
        # From `learning` draws on the average stays within `error` of the mean: Doob's inequality for the reverse
        # submartingale cosh(l ||average - mean||), and Pinelis' bound of its expectation (see radius.py).
        error = float(fraction) * bias
        learning = math.ceil(2 * (spread**2 + 2 * error / 3) * math.log(4 / miss) / error**2)
        if learning < draws:
            capital = guaranteed_log_capital(
                bets,
                mean=math.sqrt(bias**2 - error**2),
                largest_mean=bias,
                variance=deviation**2,
                draws=draws,
                lost_draws=learning,
                miss=miss / 2,
            )
            best = max(best, float(capital.max()))
    return best


def _checked_plan(alpha: float, power: float, deviation: float, spread: float | None, blocks: int) -> None:
    log_threshold(alpha)
    if not 0 < power < 1:
        raise ValueError(f"power is a probability and must lie in (0, 1), got {power}")
    if not 0 <= deviation <= 1:
        raise ValueError(f"the standard deviation in units of the bound must lie in [0, 1], got {deviation}")
    if spread is not None and not deviation <= spread <= 1:
        raise ValueError(f"the spread must lie between the deviation ({deviation}) and the bound (1), got {spread}")
    if blocks < 1:
        raise ValueError(f"a test has at least 1 block, got {blocks}")


def smallest_detectable_bias(
    deviation: float,
    draws: int,
    alpha: float,
    *,
    power: float = 0.9,
    spread: float | None = None,
    blocks: int = 1,
    bets: npt.ArrayLike | None = None,
) -> float:
    """Return a bias that is detected for sure enough: norm of the mean, in units of the bound; inf if there is none.

    The promise, for independent identically distributed draws: a block whose mean has at least this norm makes the
    test reject at alpha within `draws` draws with probability at least `power`. It is a lower bound and holds for every
    distribution; typical ones are detected about two times smaller.

    Args:
        deviation: bound of the standard deviation along any direction, in units of the bound.
        draws: number of draws.
        alpha: level of the test.
        power: probability of detection.
        spread: ``sqrt(E||D - E D||^2)`` in units of the bound, if the direction of the bias must be learned
            (`BiasTest`). None: the direction is known (`BettingProcess`, one-sided).
        blocks: number of blocks that share alpha.
        bets: the test's bets.

    Raises:
        ValueError: an argument outside its range.
    """
    from scipy.optimize import brentq  # importing it takes half a second

    _checked_plan(alpha, power, deviation, spread, blocks)
    grid = bet_grid() if bets is None else np.asarray(bets, dtype=np.float64)
    needed = log_threshold(alpha) + math.log(blocks * grid.size)

    def lack(log_bias: float) -> float:
        found = _evidence(math.exp(log_bias), deviation, draws, power, spread, grid)
        return max(found, -1e9) - needed

    lowest, highest = math.log(1e-9), 0.0
    if lack(highest) < 0:
        return math.inf
    return math.exp(float(brentq(lack, lowest, highest, xtol=1e-6)) + 1e-6)


def draws_to_detect(
    bias: float,
    deviation: float,
    alpha: float,
    *,
    power: float = 0.9,
    spread: float | None = None,
    blocks: int = 1,
    bets: npt.ArrayLike | None = None,
) -> int:
    """Return a number of draws that detects a bias; same promise and arguments as `smallest_detectable_bias`.

    Args:
        bias: norm of the mean, in units of the bound.
        deviation: see `smallest_detectable_bias`, like all that follow.
        alpha: level of the test.
        power: probability of detection.
        spread: total standard deviation, or None.
        blocks: number of blocks.
        bets: the test's bets.

    Raises:
        ValueError: an argument outside its range, or a bias that is too small for the smallest bet.
    """
    _checked_plan(alpha, power, deviation, spread, blocks)
    if not 0 < bias <= 1:
        raise ValueError(f"a bias in units of the bound must lie in (0, 1], got {bias}")
    grid = bet_grid() if bets is None else np.asarray(bets, dtype=np.float64)
    needed = log_threshold(alpha) + math.log(blocks * grid.size)

    def enough(draws: int) -> bool:
        return _evidence(bias, deviation, draws, power, spread, grid) >= needed

    draws = first_that(enough)
    if draws is None:
        raise ValueError(
            f"no bet of the grid (smallest {grid.min():.3g}) grows on a bias of {bias} with deviation {deviation}; "
            "pass smaller bets to the test and here"
        )
    return draws


def first_that(holds: Callable[[int], bool], limit: int = 2**40) -> int | None:
    """Return the smallest number from 1 on from which a monotone condition holds, or None if it is beyond `limit`."""
    high = 1
    while not holds(high):
        high *= 2
        if high > limit:
            return None
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high
