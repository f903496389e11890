"""How large can the mean of bounded vectors be? An upper bound on ``||E D||``, valid at all numbers of draws at once.

A test that does not reject says little; this is the other side. Let d_1, d_2, ... be martingale differences in a
Hilbert space with ``||d_t|| <= B`` and ``E[||d_t||^2 | past] <= s_t^2``, and ``phi(x) = e^x - 1 - x``. Then for every
``lambda > 0``

    cosh(lambda ||d_1 + ... + d_t||) / prod_{i <= t} (1 + phi(lambda B) s_i^2 / B^2)

is a supermartingale that starts at 1 (Pinelis, Optimum bounds for the distributions of martingales in Banach spaces,
Annals of Probability 22, 1994, theorem 3.2). Proof: fix x and d, let ``u(h) = ||x + h d||``, ``f = cosh(lambda u)``.
As ``u'^2 + u u'' = ||d||^2`` and ``sinh z <= z cosh z``,

    f'' = lambda^2 (u'^2 cosh(lambda u) + (||d||^2 - u'^2) sinh(lambda u) / (lambda u))
       <= lambda^2 ||d||^2 cosh(lambda u) <= lambda^2 ||d||^2 cosh(lambda ||x||) exp(lambda h ||d||),

so ``f(1) <= f(0) + f'(0) + cosh(lambda ||x||) phi(lambda ||d||)`` by Taylor's formula. Here ``f'(0)`` is linear in d,
has conditional mean 0, and ``phi(lambda ||d||) <= ||d||^2 phi(lambda B) / B^2`` because ``phi(z) / z^2`` increases.

The average over a fixed grid of lambda is one too, and by Ville's inequality it ever reaches ``2/alpha`` with
probability at most ``alpha/2``. The other half of alpha bounds the unknown ``E||D||^2``, and with it the variances, by
betting (intervals.py). With mu the mean:

- independent draws: ``d_s = D_s - mu``, whose sum is ``A_t - a_t mu`` with ``A_t = S_t = D_1 + ... + D_t``
  and ``a_t = t``;
- without replacement from N points, ``(N mu - S_{s-1}) / (N - s + 1)`` is the mean of the points that are left and
  d_s the deviation from it: ``A_t`` is the sum of ``D_s + S_{s-1} / (N - s + 1)``, ``a_t`` that of ``N / (N - s + 1)``,
  and what is left of the second moment bounds the variance.

In both cases ``||d|| <= 2 * bound``, as D and its conditional mean lie in the same ball, and
``||mu|| <= (||A_t|| + ||A_t - a_t mu||) / a_t``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from lmc_verify.statistics.betting import bet_grid, checked_blocks, checked_draw, log_mean_exp, log_threshold
from lmc_verify.statistics.detection import first_that
from lmc_verify.statistics.intervals import mean_upper_bound, reachable_upper_bound

__all__ = ["BiasRadius", "draws_to_bound", "resolvable_bias"]

Array = npt.NDArray[np.float64]

_RATES: Array = 4.0 / 0.99 * bet_grid(smallest=2.0**-9)
"""``lambda B``, from 4 (draws that are nearly all zero) down to what a million draws with the largest variance need."""

_PRECISION = 1e-12
"""Of the root finding, in units of the bound; the result is moved outwards by it."""


def log_mixture(deviation: float, conditional_variances: Array, steps: int = 1) -> float:
    """Return the logarithm of the mixture of supermartingales, lengths in units of B.

    Args:
        deviation: ``||d_1 + ... + d_t||``.
        conditional_variances: ``s_i^2`` of different draws [t], or of one of them.
        steps: how many draws have each of these variances.
    """
    growth = np.expm1(_RATES) - _RATES
    penalty = steps * np.log1p(np.multiply.outer(growth, conditional_variances)).sum(axis=-1)
    argument = _RATES * deviation
    log_cosh = argument + np.log1p(np.exp(-2 * argument)) - math.log(2)
    return float(log_mean_exp(log_cosh - penalty))


def _invert(
    known: float, weight: float, variances: Array, steps: int, bound: float, level: float, high: float
) -> float:
    """Return the largest ||mu|| <= high with ``log_mixture((weight ||mu|| - known) / (2 bound)) <= level``."""

    from scipy.optimize import brentq  # importing it takes half a second

    def excess(norm: float) -> float:
        return log_mixture(max(weight * norm - known, 0.0) / (2 * bound), variances, steps) - level

    if excess(high) <= 0:
        return high
    low = min(known / weight, high)
    if excess(low) > 0:  # known / weight > high: unlikely under every mean, an event of probability alpha
        return high
    return min(float(brentq(excess, low, high, xtol=_PRECISION * bound)) + _PRECISION * bound, high)


class _History:
    """What the bound needs to know of the draws of one block, or of all together."""

    def __init__(self, bound: float, population: int | None) -> None:
        self.bound, self.population = bound, population
        self.squares: list[float] = []  # ||D_s||^2
        self.sum_norm = 0.0  # ||S_t||
        self.known_norm = 0.0  # ||A_t||; S_t for independent draws

    def upper(self, alpha: float) -> float:
        """Return the upper confidence bound on ||mu|| after the draws so far."""
        draws, bound = len(self.squares), self.bound
        if draws == 0 or bound == 0:
            return bound
        squares = np.minimum(np.array(self.squares) / bound**2, 1.0)
        second = mean_upper_bound(squares, alpha / 2, self.population)  # of E||D||^2, in units of bound^2
        high = bound * min(1.0, math.sqrt(second))
        weight, steps = float(draws), draws
        variances: Array = np.array([second / 4])  # in units of B^2 = (2 bound)^2
        if self.population is not None:
            left = self.population - np.arange(draws)
            high = min(high, (self.sum_norm + (self.population - draws) * bound) / self.population)
            if draws == self.population:
                return self.sum_norm / self.population
            weight, steps = float((self.population / left).sum()), 1
            past = np.concatenate([[0.0], np.cumsum(squares)[:-1]])
            variances = np.clip((self.population * second - past) / left, 0.0, 1.0) / 4
        return _invert(self.known_norm, weight, variances, steps, bound, log_threshold(alpha / 2), high)


class BiasRadius:
    """Time-uniform upper confidence bound on the norm of the mean of bounded vectors; see the module's docstring.

    With probability at least 1 - alpha, ``||E D|| <= upper()`` after *every* draw; and with probability at least
    1 - alpha, ``||E D_block|| <= block_uppers()[block]`` for all blocks after every draw (each at alpha / blocks unless
    `block_alpha` says otherwise). Used together, the two statements fail with probability at most the sum.

    Nearly zero draws give bounds of order ``bound * log(1/alpha) / t``, others ``sqrt(2 E||D||^2 log(1/alpha) / t)``.
    After all N points of a population the bound is ``||S_N|| / N``, the norm of the mean itself.

    Args:
        bounds: for every block, a proven bound of the Euclidean norm of every possible draw.
        alpha: probability that the bound ever fails.
        population: N for draws without replacement from N equally likely points; None for independent draws.
        block_alpha: the blocks' own error probabilities; None for ``alpha / blocks`` each.
        tolerance: rounding error of one draw's block, as Euclidean norm, one number or one for each block; is added to
            the bounds.

    Attributes:
        draws: number of draws so far.

    Raises:
        ValueError: no block, negative or infinite bounds or tolerances, an error probability outside (0, 1), or a
            population below 1.

    Example:
        >>> radius = BiasRadius({"weight": 2.0, "bias": 1.0}, alpha=1e-3)
        >>> for _ in range(1000):
        ...     radius.update({"weight": [0.0, 0.0], "bias": [0.0]})
        >>> radius.upper() < 0.07
        True
    """

    def __init__(
        self,
        bounds: Mapping[str, float],
        alpha: float,
        *,
        population: int | None = None,
        block_alpha: Mapping[str, float] | None = None,
        tolerance: float | Mapping[str, float] = 0.0,
    ) -> None:
        log_threshold(alpha)
        self._tolerances = checked_blocks(bounds, population, tolerance)
        self._bounds = {name: float(bound) for name, bound in bounds.items()}
        self._alpha, self._population = alpha, population
        self._block_alpha = {name: alpha / len(bounds) for name in bounds} if block_alpha is None else dict(block_alpha)
        if set(self._block_alpha) != set(bounds):
            raise ValueError(f"error probabilities are for {sorted(self._block_alpha)}, bounds for {sorted(bounds)}")
        for level in self._block_alpha.values():
            log_threshold(level)
        # A draw as computed has its rounding error on top of the proven bound.
        widened = {name: self._bounds[name] + self._tolerances[name] for name in bounds}
        self._blocks = {name: _History(bound, population) for name, bound in widened.items()}
        self._whole = _History(math.hypot(*widened.values()), population)
        self._sums: dict[str, Array] = {}
        self._known: dict[str, Array] = {}
        self.draws = 0

    def update(self, draw: Mapping[str, npt.ArrayLike]) -> None:
        """Take one draw: a vector (or array, which is flattened) for every block.

        Raises:
            ValueError: other blocks or lengths than before, a draw that breaks a bound, or more draws than the
                population has points. The state is then as before the call.
        """
        if self._population is not None and self.draws >= self._population:
            raise ValueError(f"all {self._population} points of the population are drawn; there is no further draw")
        for name, block in checked_draw(draw, self._bounds, self._tolerances, self._sums).items():
            past = self._sums.get(name, np.zeros(block.size))
            drift = 0.0 if self._population is None else past / (self._population - self.draws)
            self._known[name] = self._known.get(name, 0.0) + block + drift
            self._sums[name] = past + block
            history = self._blocks[name]
            history.squares.append(float(block @ block))
            history.sum_norm = float(np.linalg.norm(self._sums[name]))
            history.known_norm = float(np.linalg.norm(self._known[name]))
        histories = list(self._blocks.values())
        self._whole.squares.append(math.fsum(history.squares[-1] for history in histories))
        self._whole.sum_norm = math.hypot(*(history.sum_norm for history in histories))
        self._whole.known_norm = math.hypot(*(history.known_norm for history in histories))
        self.draws += 1

    def upper(self) -> float:
        """Return the bound on ``||E D||`` over all blocks together, at the radius' alpha."""
        return self._whole.upper(self._alpha) + math.hypot(*self._tolerances.values())

    def block_uppers(self) -> dict[str, float]:
        """Return the bound on ``||E D_block||`` for every block, at the blocks' error probabilities."""
        return {
            name: history.upper(self._block_alpha[name]) + self._tolerances[name]
            for name, history in self._blocks.items()
        }

    @property
    def mean_norm(self) -> float:
        """``||S_t|| / t``, the norm of the average so far: biased upwards by the noise; NaN before the first draw."""
        return self._whole.sum_norm / self.draws if self.draws else math.nan


# ------------------------------------------------------------------ what the radius can resolve


def resolvable_bias(bound: float, second_moment: float, draws: int, alpha: float, *, power: float = 0.9) -> float:
    """Return a bound that `BiasRadius.upper` reaches in `draws` draws of mean zero, with probability at least `power`.

    The promise is for independent identically distributed draws with mean zero, and holds for every distribution.
    It covers the noise of both parts: that of the second moment's bound, and the norm of the sum, which is below the
    smaller of Pinelis' and Chebyshev's bounds.

    Args:
        bound: proven bound of ``||D||``.
        second_moment: ``E||D||^2``, at most ``bound^2``.
        draws: number of draws.
        alpha: level of the radius.
        power: probability that the radius is as small.

    Returns:
        A norm in the unit of `bound`.

    Raises:
        ValueError: an argument outside its range.
    """
    _check_plan(bound, second_moment, power)
    if bound == 0 or draws < 1:
        return bound
    miss = (1 - power) / 2
    share = second_moment / bound**2
    # A variable in [0, 1] with mean p has a variance of at most p (1 - p).
    second = reachable_upper_bound(share, math.sqrt(share * (1 - share)), draws, alpha / 2, miss)
    level = math.log(2 / miss)
    pinelis = level / 3 + math.sqrt((level / 3) ** 2 + 2 * draws * share * level)
    noise = bound * min(pinelis, math.sqrt(draws * share / miss))
    high = bound * min(1.0, math.sqrt(second))
    return _invert(noise, draws, np.array([second / 4]), draws, bound, log_threshold(alpha / 2), high)


def draws_to_bound(target: float, bound: float, second_moment: float, alpha: float, *, power: float = 0.9) -> int:
    """Return a number of draws after which the radius is at most `target`; same promise as `resolvable_bias`.

    Args:
        target: a norm, in the unit of `bound`.
        bound: see `resolvable_bias`, like all that follow.
        second_moment: ``E||D||^2``.
        alpha: level of the radius.
        power: probability.

    Raises:
        ValueError: an argument outside its range, or a target that no number of draws up to 2^40 reaches.
    """
    _check_plan(bound, second_moment, power)
    log_threshold(alpha)
    if not target > 0:
        raise ValueError(f"the target must be positive, got {target}")
    draws = first_that(lambda count: resolvable_bias(bound, second_moment, count, alpha, power=power) <= target)
    if draws is None:
        raise ValueError(f"no number of draws up to 2^40 bounds the bias by {target}; ask for a larger target")
    return draws


def _check_plan(bound: float, second_moment: float, power: float) -> None:
    if not 0 <= bound < math.inf:
        raise ValueError(f"a bound must be finite and not negative, got {bound}")
    if not 0 <= second_moment <= bound**2 * (1 + 1e-12):
        raise ValueError(f"with a bound of {bound} the second moment lies in [0, {bound**2}], got {second_moment}")
    if not 0 < power < 1:
        raise ValueError(f"power is a probability and must lie in (0, 1), got {power}")
