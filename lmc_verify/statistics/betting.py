"""Tests by betting: is the mean of bounded draws zero? Valid at every number of draws, however often one looks.

Against the null hypothesis ``E[X_t | past] = m_t`` one starts with a capital of 1 and multiplies it by
``1 + lambda (X_t - m_t) / s_t`` at every draw, ``s_t >= |X_t - m_t|`` a proven bound and ``|lambda| < 1``. Under the
null the capital is a non-negative martingale that starts at 1, so by Ville's inequality it ever reaches ``1/alpha``
with probability at most ``alpha``: no normal approximation, no fixed number of draws, no independence beyond the null
itself. The average over a fixed grid of bets lambda is one again; it costs ``log(number of bets)`` against the best
bet in hindsight (Waudby-Smith and Ramdas, Estimating means of bounded random variables by betting, JRSS-B 86, 2024;
Ramdas et al., Game-theoretic statistics and safe anytime-valid inference, Statistical Science 38, 2023).

Vectors are projected on a direction that past draws have fixed, and each named block has a capital of its own. What
these tests can detect, and with how many draws, is in detection.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np
import numpy.typing as npt

from lmc_verify.statistics.rounding import gamma

__all__ = [
    "RANGE_SLACK",
    "BettingProcess",
    "BiasTest",
    "bet_grid",
    "checked_blocks",
    "checked_draw",
    "combine",
    "log_mean_exp",
    "log_threshold",
]

Array = npt.NDArray[np.float64]

RANGE_SLACK = 1e-9
"""A draw may exceed its proven range by this relative amount, for rounding; beyond it the range is called broken."""

_LARGEST_BET = 0.999  # below 1 by more than RANGE_SLACK, so that no factor is ever negative


def bet_grid(smallest: float = 2.0**-8, largest: float = 0.99, ratio: float = math.sqrt(2.0)) -> Array:
    """Return the bets ``largest, largest / ratio, ...`` down to `smallest`, in fractions of the capital [bets].

    The best bet on a small bias is ``bias * bound / variance``. A ratio of sqrt(2) keeps some bet of the grid within
    4 % of the best growth; the default reaches down to what some millions of draws can show.

    Raises:
        ValueError: unless ``0 < smallest <= largest < 1 < ratio``.
    """
    if not 0 < smallest <= largest <= _LARGEST_BET or not ratio > 1:
        raise ValueError(
            f"bets need 0 < smallest <= largest <= {_LARGEST_BET} and ratio > 1, got {smallest}, {largest}, {ratio}"
        )
    count = 1 + math.floor(math.log(largest / smallest) / math.log(ratio) + 1e-9)
    return np.asarray(largest * ratio ** -np.arange(count, dtype=np.float64))


def log_threshold(alpha: float) -> float:
    """Return ``log(1/alpha)``, the capital that rejects at level alpha.

    Raises:
        ValueError: alpha is outside (0, 1).
    """
    if not 0 < alpha < 1:
        raise ValueError(f"alpha is an error probability and must lie in (0, 1), got {alpha}")
    return -math.log(alpha)


def log_mean_exp(values: Array) -> Array:
    """Return the logarithm of the average of exp(values) over the last axis."""
    return np.asarray(np.logaddexp.reduce(values, axis=-1) - math.log(values.shape[-1]))


class BettingProcess:
    """Capital against ``E[X_t | past] = mean_t`` for scalars with ``|X_t| <= bound``; see the module's docstring.

    `bound` may be an array: then every entry is a process of its own, and values and means have its shape. Nothing is
    bet on entries whose bound is 0.

    Args:
        bound: proven range of X_t, same unit as X_t; a number or an array.
        two_sided: bet on both signs of ``X_t - mean_t``, or (default) on means above the null's only.
        bets: bets in (0, 0.999], averaged uniformly; None for `bet_grid()`. Two-sided processes use both signs.

    Attributes:
        draws: number of draws so far.

    Raises:
        ValueError: a bound that is negative or not finite, or bets outside (0, 0.999].

    Example:
        >>> process = BettingProcess(1.0)
        >>> for _ in range(20):
        ...     process.update(0.9)
        >>> bool(process.rejects(1e-3))
        True
    """

    def __init__(self, bound: npt.ArrayLike, *, two_sided: bool = False, bets: npt.ArrayLike | None = None) -> None:
        self.bound: Array = np.array(bound, dtype=np.float64)
        if not (np.isfinite(self.bound).all() and (self.bound >= 0).all()):
            raise ValueError(f"a bound must be finite and not negative, got {self.bound}")
        grid = bet_grid() if bets is None else np.array(bets, dtype=np.float64)
        if grid.ndim != 1 or grid.size == 0 or not ((grid > 0) & (grid <= _LARGEST_BET)).all():
            raise ValueError(f"bets must be a list of numbers in (0, {_LARGEST_BET}], got {grid}")
        self._bets: Array = np.concatenate([grid, -grid]) if two_sided else grid
        self._log_capitals: Array = np.zeros((*self.bound.shape, self._bets.size))
        self._log_maximum: Array = np.zeros(self.bound.shape)
        self.draws = 0

    def update(self, value: npt.ArrayLike, mean: npt.ArrayLike = 0.0, *, margin: npt.ArrayLike = 0.0) -> None:
        """Take one draw.

        Args:
            value: X_t.
            mean: its conditional mean under the null, from past draws alone. A mean outside of the range is impossible:
                the capital becomes infinite.
            margin: rounding error of `value` and `mean` together; a mean that is off by at most this is no evidence.

        Raises:
            ValueError: a value beyond its range (by more than 1e-9 of it and the margin), or not a number.
        """
        value, mean, margin = (np.asarray(item, dtype=np.float64) for item in (value, mean, margin))
        inside = np.abs(value) <= self.bound * (1 + RANGE_SLACK) + margin
        if not inside.all():
            worst = np.broadcast_to(value, inside.shape)[~inside].flat[0]
            limit = np.broadcast_to(self.bound, inside.shape)[~inside].flat[0]
            raise ValueError(
                f"a draw is {worst}, its proven range is +-{limit}: the range is broken, nothing can be concluded; "
                "prove a larger range and start again"
            )
        if np.isnan(mean).any():
            raise ValueError("the null's conditional mean is not a number")
        scale = self.bound + np.abs(mean) + 2 * margin
        scale = np.where(scale > 0, scale, 1.0)
        gain = (value - mean)[..., np.newaxis] - np.sign(self._bets) * margin[..., np.newaxis]
        step = np.log1p(self._bets * gain / scale[..., np.newaxis])
        self._log_capitals += np.where(self.bound > 0, 1.0, 0.0)[..., np.newaxis] * step
        self.draws += 1
        self.refute((self.bound > 0) & (np.abs(mean) > self.bound * (1 + RANGE_SLACK) + margin))

    def refute(self, impossible: npt.ArrayLike = True) -> None:
        """Make the capital infinite where the draws so far are impossible under the null, and note the maximum."""
        self._log_capitals[np.broadcast_to(np.asarray(impossible, dtype=np.bool_), self.bound.shape)] = math.inf
        self._log_maximum = np.maximum(self._log_maximum, self.log_value)

    @property
    def log_value(self) -> Array:
        """Natural logarithm of the capital, of `bound`'s shape: an e-value at any stopping time."""
        return log_mean_exp(self._log_capitals)

    @property
    def log_maximum(self) -> Array:
        """Natural logarithm of the largest capital so far: decides a test, but is not an e-value."""
        return self._log_maximum

    def rejects(self, alpha: float) -> npt.NDArray[np.bool_]:
        """Whether the capital has ever reached ``1/alpha``; under the null this happens with probability <= alpha."""
        return np.asarray(self._log_maximum >= log_threshold(alpha))


class BiasTest:
    """Capital against "every block of the draws has mean zero".

    A draw is a vector split in named blocks. Each block is projected on the direction of the sum of its *past* draws
    (unit length, predictable; no bet while the sum is zero), where a `BettingProcess` bets that the mean is positive:
    if the block has a mean, the direction converges to it. The claim's capital is the average over the blocks with a
    positive bound, so a block that rejects at ``alpha / blocks`` rejects the claim at alpha.

    With `population` the draws come without replacement from that many equally likely points. Under the null these sum
    to zero, so the conditional mean of the next draw is known: ``-S / (N - t)`` with S the sum of the t past draws.
    Where the remaining points cannot cancel S within the bound, at the latest after N draws with S other than zero,
    the null is impossible and the capital infinite.

    Args:
        bounds: for every block, a proven bound of the Euclidean norm of *every possible* draw. Not an estimate: a draw
            beyond it is an error. A block with bound 0 gives no evidence.
        population: N, or None for independent draws.
        tolerance: rounding error of one draw's block, as Euclidean norm; one number for all blocks, or one for each.
            A mean of that size is no evidence.
        bets: as for `BettingProcess`.

    Attributes:
        draws: number of draws so far.

    Raises:
        ValueError: no block, negative or infinite bounds or tolerances, or a population below 1.

    Example:
        >>> test = BiasTest({"weight": 2.0, "bias": 1.0})
        >>> for _ in range(40):
        ...     test.update({"weight": [1.0, 1.0], "bias": [0.0]})
        >>> test.rejects(1e-3), test.rejected_blocks(1e-3)
        (True, ('weight',))
    """

    def __init__(
        self,
        bounds: Mapping[str, float],
        *,
        population: int | None = None,
        tolerance: float | Mapping[str, float] = 0.0,
        bets: npt.ArrayLike | None = None,
    ) -> None:
        self._names = tuple(bounds)
        self._tolerances = checked_blocks(bounds, population, tolerance)
        self._population = population
        self._process = BettingProcess([float(bounds[name]) for name in self._names], bets=bets)
        self._active = self._process.bound > 0
        self._sums: dict[str, Array] = {}
        self._norm_sums: Array = np.zeros(len(self._names))
        self._log_maximum = 0.0
        self.draws = 0

    def update(self, draw: Mapping[str, npt.ArrayLike]) -> None:
        """Take one draw: a vector (or array, which is flattened) for every block.

        Raises:
            ValueError: other blocks or lengths than before, a draw that breaks a bound, or more draws than the
                population has points. The state is then as before the call.
        """
        if self._population is not None and self.draws >= self._population:
            raise ValueError(f"all {self._population} points of the population are drawn; there is no further draw")
        bounds = dict(zip(self._names, self._process.bound.tolist(), strict=True))
        blocks = checked_draw(draw, bounds, self._tolerances, self._sums)
        tolerances = np.array([self._tolerances[name] for name in self._names])
        projections, sum_norms = np.zeros((2, len(self._names)))
        for index, (name, block) in enumerate(blocks.items()):
            past = self._sums.get(name)
            if past is not None:
                sum_norms[index] = np.linalg.norm(past)
                if sum_norms[index] > 0:
                    norm = float(np.linalg.norm(block))
                    projections[index] = np.clip(float(past @ block) / sum_norms[index], -norm, norm)
        means, margins = np.zeros_like(projections), tolerances
        if self._population is not None:
            remaining = self._population - self.draws
            means = -sum_norms / remaining
            margins = tolerances + self._sum_error() / remaining
        margins = np.where(sum_norms > 0, margins, 0.0)  # no direction, no bet
        self._process.update(projections, means, margin=margins)
        for index, (name, block) in enumerate(blocks.items()):
            self._sums[name] = block + self._sums.get(name, 0.0)
            self._norm_sums[index] += np.linalg.norm(block)
        self.draws += 1
        if self._population is not None:
            norms = np.array([np.linalg.norm(self._sums[name]) for name in self._names])
            reach = (self._population - self.draws) * self._process.bound * (1 + RANGE_SLACK)
            self._process.refute(self._active & (norms > reach + self._sum_error()))
        self._log_maximum = max(self._log_maximum, self.log_value)

    def _sum_error(self) -> Array:
        """Bound the rounding error of each block's sum: that of the draws and that of adding them up."""
        tolerances = np.array([self._tolerances[name] for name in self._names])
        return np.asarray(self.draws * tolerances + gamma(self.draws) * self._norm_sums)

    @property
    def log_value(self) -> float:
        """Natural logarithm of the claim's e-value: the average capital of the blocks with a positive bound."""
        return float(log_mean_exp(self._process.log_value[self._active])) if self._active.any() else 0.0

    @property
    def log_maximum(self) -> float:
        """Natural logarithm of the claim's largest capital so far: decides a test, but is not an e-value."""
        return self._log_maximum

    @property
    def block_log_values(self) -> dict[str, float]:
        """Natural logarithm of every block's own e-value."""
        return dict(zip(self._names, self._process.log_value.tolist(), strict=True))

    @property
    def mean_norms(self) -> dict[str, float]:
        """Norm of every block's average so far: biased upwards by the noise, a quantity to report and not to test."""
        return {name: float(np.linalg.norm(total)) / self.draws for name, total in self._sums.items()}

    def rejects(self, alpha: float) -> bool:
        """Whether the claim's capital has ever reached ``1/alpha``."""
        return self._log_maximum >= log_threshold(alpha)

    def rejected_blocks(self, alpha: float) -> tuple[str, ...]:
        """Return the blocks that have a mean, all of them true with probability 1 - alpha (Bonferroni)."""
        level = log_threshold(alpha) + math.log(max(int(self._active.sum()), 1))
        return tuple(
            name for name, top in zip(self._names, self._process.log_maximum.tolist(), strict=True) if top >= level
        )


def checked_blocks(
    bounds: Mapping[str, float], population: int | None, tolerance: float | Mapping[str, float]
) -> dict[str, float]:
    """Check what describes the draws and return the tolerance of every block.

    Raises:
        ValueError: no block, a bound or tolerance that is negative or not finite, or a population below 1.
    """
    if not bounds:
        raise ValueError("no block is named; pass a bound for at least one")
    if isinstance(tolerance, Mapping) and set(tolerance) != set(bounds):
        raise ValueError(f"tolerances are for the blocks {sorted(tolerance)}, bounds for {sorted(bounds)}")
    tolerances = {name: float(tolerance[name] if isinstance(tolerance, Mapping) else tolerance) for name in bounds}
    for what, values in (("bound", bounds), ("tolerance", tolerances)):
        for name, value in values.items():
            if not 0 <= value < math.inf:
                raise ValueError(f"the {what} of block {name!r} must be finite and not negative, got {value}")
    if population is not None and population < 1:
        raise ValueError(f"a population has at least 1 point, got {population}")
    return tolerances


def checked_draw(
    draw: Mapping[str, npt.ArrayLike],
    bounds: Mapping[str, float],
    tolerances: Mapping[str, float],
    sums: Mapping[str, Array],
) -> dict[str, Array]:
    """Return the flattened blocks of a draw in the order of `bounds`, each within its bound and as long as before.

    Raises:
        ValueError: missing or foreign blocks, another length, or a norm beyond the bound (NaN included).
    """
    if set(draw) != set(bounds):
        raise ValueError(f"a draw has the blocks {sorted(draw)}, expected {sorted(bounds)}")
    blocks = {name: np.asarray(draw[name], dtype=np.float64).ravel() for name in bounds}
    for name, block in blocks.items():
        if name in sums and block.size != sums[name].size:
            raise ValueError(f"block {name!r} has {block.size} entries, the draws before had {sums[name].size}")
        norm = float(np.linalg.norm(block))
        if not norm <= bounds[name] * (1 + RANGE_SLACK) + tolerances[name]:
            raise ValueError(
                f"block {name!r} of draw has norm {norm}, its proven bound is {bounds[name]} (tolerance "
                f"{tolerances[name]}): the range is broken, nothing can be concluded; prove a larger one and start "
                "again"
            )
    return blocks


def combine(log_e_values: Iterable[float]) -> float:
    """Return the logarithm of the product of e-values of independent repetitions, again an e-value.

    Each must be the value at a stopping time (`log_value` when a run ended): running maxima are no e-values.

    Raises:
        ValueError: a value is not a number, or certain evidence (inf) meets a lost capital (-inf).
    """
    values = [float(value) for value in log_e_values]
    if any(math.isnan(value) for value in values) or {math.inf, -math.inf} <= set(values):
        raise ValueError(f"these e-values have no product: {values}")
    return math.fsum(values)
