"""Tests, intervals, radii and rates from their formulas, one factor and one candidate at a time."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
from scipy.optimize import bisect
from scipy.stats import binom, chi, norm

SQRT2 = math.sqrt(2.0)

DRAWS = [0.4, -0.2, 0.9, 0.1, 0.6, -0.5, 0.8, 0.3, 0.7, -0.1, 0.5, 0.2]
MEANS = [0.0, 0.05, 0.0, -0.1, 0.1, 0.0, 0.2, 0.0, 0.0, 0.1, 0.0, -0.05]
"""Draws within +-1, and their means under the null."""

VECTORS = [
    {
        "weight": [round(0.3 + 0.5 * math.cos(3 * t), 2), round(0.4 * math.sin(5 * t), 2)],
        "bias": [round(0.2 * math.sin(t), 2)],
    }
    for t in range(1, 13)
]
BOUNDS = {"weight": 1.2, "bias": 0.5}
TOLERANCE = 1e-3
POPULATION = 20
TIMES, LARGE_POPULATION = 25, 400
"""For the radius, which says nothing after a dozen draws, the vectors are drawn as often."""
ALPHA = 0.05
COUNTS = [[0.3, 9], [0.3, 2], [0.05, 4], [0.5, 10], [1.0, 19], [0.0, 0]]
"""Probabilities of an event, and how often it was counted in 20 draws."""
UNITS = [0.3, 0.5, 0.45, 0.1, 0.8, 0.35, 0.6, 0.2, 0.4, 0.55, 0.25, 0.5, 0.3, 0.7, 0.4, 0.45]


def bets(smallest: float, largest: float = 0.99) -> list[float]:
    """Return largest, largest / sqrt(2), ... as long as they are at least `smallest`."""
    found, k = [], 0
    while largest / SQRT2**k >= smallest * (1 - 1e-12):
        found.append(largest / SQRT2**k)
        k += 1
    return found


GRID = bets(2.0**-8)
LONG_GRID = bets(2.0**-13)
RATES = [4 / 0.99 * bet for bet in bets(2.0**-9)]


def _mean_capital(factors: dict[float, float]) -> float:
    return math.log(math.fsum(factors.values()) / len(factors))


def betting(draws: list[float], means: list[float], bound: float, margin: float, *, two_sided: bool) -> list[float]:
    """Return the logarithm of the last and of the largest capital."""
    signed = [*GRID, *([-bet for bet in GRID] if two_sided else [])]
    capital, largest = dict.fromkeys(signed, 1.0), 0.0
    for x, mean in zip(draws, means, strict=True):
        scale = bound + abs(mean) + 2 * margin
        for bet in signed:
            capital[bet] *= 1 + bet * (x - mean - math.copysign(margin, bet)) / scale
        largest = max(largest, _mean_capital(capital))
    return [_mean_capital(capital), largest]


def bias_test(population: int | None) -> list[float]:
    """Return the logarithms of the claim's capital, of its largest, and of the blocks' capitals."""
    capital = {name: dict.fromkeys(GRID, 1.0) for name in BOUNDS}
    sums = {name: np.zeros(len(VECTORS[0][name])) for name in BOUNDS}
    norms, largest = dict.fromkeys(BOUNDS, 0.0), 0.0
    for t, draw in enumerate(VECTORS):
        for name, bound in BOUNDS.items():
            size, block = float(np.linalg.norm(sums[name])), np.array(draw[name])
            if size > 0:
                x, mean, margin = float(sums[name] @ block) / size, 0.0, TOLERANCE
                if population is not None:
                    mean = -size / (population - t)
                    rounding = t * 2.0**-53 / (1 - t * 2.0**-53) * norms[name]
                    margin += (t * TOLERANCE + rounding) / (population - t)
                scale = bound + abs(mean) + 2 * margin
                for bet in GRID:
                    capital[name][bet] *= 1 + bet * (x - mean - margin) / scale
            sums[name], norms[name] = sums[name] + block, norms[name] + float(np.linalg.norm(block))
        whole = math.log(sum(math.exp(_mean_capital(one)) for one in capital.values()) / len(BOUNDS))
        largest = max(largest, whole)
    return [whole, largest, *(_mean_capital(one) for one in capital.values())]


def first_rejections() -> dict[str, int]:
    """Return after how many draws the claim, and with its share of the level each block, has made 1 / alpha."""
    capital = {name: dict.fromkeys(GRID, 1.0) for name in BOUNDS}
    sums = {name: np.zeros(len(VECTORS[0][name])) for name in BOUNDS}
    first = dict.fromkeys(["claim", *BOUNDS], 0)
    for t, draw in enumerate(VECTORS * TIMES, start=1):
        for name, bound in BOUNDS.items():
            size, block = float(np.linalg.norm(sums[name])), np.array(draw[name])
            for bet in GRID if size > 0 else ():
                gain = float(sums[name] @ block) / size - TOLERANCE
                capital[name][bet] *= 1 + bet * gain / (bound + 2 * TOLERANCE)
            sums[name] = sums[name] + block
            if not first[name] and _mean_capital(capital[name]) >= math.log(len(BOUNDS) / ALPHA):
                first[name] = t
        whole = math.fsum(math.exp(_mean_capital(one)) for one in capital.values()) / len(BOUNDS)
        if not first["claim"] and whole >= 1 / ALPHA:
            first["claim"] = t
    return first


def asymptotic_lower(name: str) -> float:
    """Return the largest norm that the projections on past sums exclude: see asymptotic/projections.py."""
    level = math.log(2 * len(BOUNDS) / ALPHA)  # two ends a block
    projections, total = [], np.zeros(len(VECTORS[0][name]))
    for draw in VECTORS * TIMES:
        size = float(np.linalg.norm(total))
        if size > 0:
            projections.append(float(total @ np.array(draw[name])) / size)
        total = total + np.array(draw[name])
    place = max(32, math.ceil(8 * level))
    while sum(x * x for x in projections[:place]) < 8 * max(x * x for x in projections[:place]):
        place += 1
    seen = np.array(projections[:place])
    scale = max(float(seen.std()), 2.0**-10 * math.sqrt(float((seen**2).mean())))

    def excluded(mean: float) -> bool:
        values = [(x - mean) / scale for x in projections]
        one, two = math.fsum(values), math.fsum(x * x for x in values)
        three, most = math.fsum(max(-x, 0.0) ** 3 for x in values), max(max(-x, 0.0) for x in values)
        bets = [2.0 ** (-k / 2) for k in range(49)]
        gains = [math.exp(b * one - b * b * two / 2 - b**3 * three / 3) for b in bets if 1.5 * b * most <= 1]
        return one > 0 and math.fsum(gains) / len(bets) >= math.exp(level + math.log(2))  # one level of groups of two

    if not excluded(0.0):
        return 0.0
    end = bisect(lambda mean: 1.0 if excluded(mean) else -1.0, 0.0, sum(projections) / len(projections), xtol=1e-14)
    return max(float(end) - TOLERANCE, 0.0)


def p_value(probability: float, count: int, draws: int = 20) -> float:
    """Return twice the smaller tail of a binomial distribution, the count included; at most 1."""
    p = Fraction(probability)
    chances = [math.comb(draws, k) * p**k * (1 - p) ** (draws - k) for k in range(draws + 1)]
    return min(1.0, 2 * float(min(sum(chances[: count + 1]), sum(chances[count:]))))


def upper_end(units: list[float], alpha: float, population: int | None) -> float:
    """Return the largest mean against which the bets have not made 1 / alpha, by bisection."""

    def excess(q: float) -> float:
        total, past = dict.fromkeys(LONG_GRID, 1.0), 0.0
        for t, y in enumerate(units):
            mean = q if population is None else (population * q - past) / (population - t)
            mean = min(max(mean, 0.0), 1.0)
            for bet in LONG_GRID:
                total[bet] *= 1 + bet * (mean - y) / max(1 - mean, 1e-9)
            past += y
        return _mean_capital(total) - math.log(1 / alpha)

    low = 0.0 if population is None else sum(units) / population
    high = 1.0 if population is None else min(low + (population - len(units)) / population, 1.0)
    if excess(high) <= 0:
        return high
    return float(bisect(excess, low, high, xtol=1e-13))


def interval(alpha: float, low: float, high: float, population: int | None) -> list[float]:
    length = high - low
    units = [(value - low) / length for value in UNITS]
    over = upper_end(units, alpha / 2, population)
    under = upper_end([1 - unit for unit in units], alpha / 2, population)
    return [high - length * under, low + length * over]


def _cosh_mixture(deviation: float, variances: list[float]) -> float:
    terms = []
    for rate in RATES:
        growth = math.exp(rate) - 1 - rate
        terms.append(math.log(math.cosh(rate * deviation)) - sum(math.log(1 + growth * v) for v in variances))
    top = max(terms)
    return top + math.log(sum(math.exp(term - top) for term in terms) / len(terms))


def radius(names: list[str], alpha: float, population: int | None) -> float:
    """Return the upper bound on the norm of the mean of some blocks together."""
    bound = math.hypot(*(BOUNDS[name] + TOLERANCE for name in names))
    draws = [np.concatenate([draw[name] for name in names]) for draw in VECTORS] * TIMES
    total, known, weight = np.zeros_like(draws[0]), np.zeros_like(draws[0]), 0.0
    squares: list[float] = []
    for t, block in enumerate(draws):
        left = None if population is None else population - t
        known = known + block + (0.0 if left is None else total / left)
        weight += 1.0 if left is None or population is None else population / left
        total = total + block
        squares.append(min(float(block @ block) / bound**2, 1.0))
    second = upper_end(squares, alpha / 2, population)
    high = bound * min(1.0, math.sqrt(second))
    variances = [second / 4] * len(draws)
    if population is not None:
        reach = (float(np.linalg.norm(total)) + (population - len(draws)) * bound) / population
        high, past = min(high, reach), 0.0
        for t, square in enumerate(squares):
            variances[t] = min(max((population * second - past) / (population - t), 0.0), 1.0) / 4
            past += square
    size = float(np.linalg.norm(known))

    def excess(mu: float) -> float:
        return _cosh_mixture(max(weight * mu - size, 0.0) / (2 * bound), variances) - math.log(2 / alpha)

    found = high if excess(high) <= 0 else float(bisect(excess, size / weight, high, xtol=1e-13))
    return found + math.hypot(*(TOLERANCE for _ in names))


def median_cut(draws: int, alpha: float) -> int:
    """Return how many draws may be left out at either end."""
    return max(k for k in range(draws) if 2 * binom.cdf(k, draws, 0.5) <= alpha)


SLOPES = [0.9, 1.1, 0.7, 1.4, 1.0, 0.8, 1.3, 0.95, 1.2, 0.6, 1.05, 0.85, 1.15, 0.75, 1.25, 0.65]


def _margin(deviation: float, seeds: int, alpha: float, power: float) -> float:
    cut = median_cut(seeds, alpha)
    share = bisect(lambda p: binom.cdf(cut, seeds, p) - power, 1e-9, 0.5, xtol=1e-15)
    return float(deviation * -norm.ppf(share))


def _seeds(margin: float, alpha: float) -> int:
    """Return the end of a bisection; the margin falls with the draws, but for the steps of the binomial's quantile."""

    def enough(draws: int) -> bool:
        return 2.0 ** (1 - draws) <= alpha and _margin(1.0, draws, alpha, 0.9) <= margin

    high = 1
    while not enough(high):
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def _rates() -> dict[str, Any]:
    cut = median_cut(len(SLOPES), 0.02)
    ordered = sorted(SLOPES)
    miss = 2 * sum(math.comb(len(SLOPES), k) for k in range(cut + 1)) / 2 ** len(SLOPES)
    steps = list(range(1, 13))
    sizes, lengths = [0.5, 0.2, 0.05], [10, 100, 1000]
    expected = [math.sqrt(size / (2 - size)) * float(chi.mean(64)) for size in sizes]
    return {
        "median-interval": [float(np.median(SLOPES)), ordered[cut], ordered[-1 - cut], miss],
        "seeds-needed": [min(n for n in range(1, 99) if 2.0 ** (1 - n) <= alpha) for alpha in (0.5, 0.1, 1e-3, 1e-6)],
        "detectable-margin": _margin(0.3, 30, 1e-3, 0.9),
        "seeds-to-detect": _seeds(0.8, 1e-3),
        "loglog-slope": float(np.polyfit(np.log([1, 2, 5, 9]), np.log([3.0, 1.0, 0.7, 0.2]), 1)[0]),
        # The curve itself is fitted: 0.02 + 0.5 * 0.7^(k - 1).
        "fit-decay/rounded": [0.02, 0.5, 0.7],
        "fit-decay/curve": [round(0.02 + 0.5 * 0.7 ** (k - 1), 8) for k in steps],
        "near-floor": [1, 1, 0],
        "quadratic-norms": expected,
        "quadratic-slope": float(np.polyfit(np.log(lengths), np.log(expected), 1)[0]),
    }


def _least_capital(
    bet: float, mean: float, largest: float, variance: float, draws: int, lost_draws: float, miss: float
) -> float:
    """Return a log capital that is reached with probability 1 - miss, for draws in [-1, 1]: see detection.py.

    With ``z = bet (x - mean) / (1 + bet mean)``, ``w(z) = log(1 + bet mean) + z - c z^2`` is at most
    ``log(1 + bet x)``; Freedman's inequality bounds how far the sum of w stays behind its mean.
    """
    slope = bet / (1 + bet * mean)
    k, top = slope * (1 + mean), slope * (1 - mean)
    c = (-math.log(1 - k) - k) / k**2
    if c * slope * (largest - mean) > 1:
        return -math.inf
    worst = slope * (largest + mean)
    steepest = slope * max(1 + 2 * c * k, abs(1 - 2 * c * top))
    fall = 1 / (4 * c) - min(math.log(1 - k), top - c * top**2)
    level = math.log(1 / miss)
    behind = fall * level / 3 + math.sqrt((fall * level / 3) ** 2 + 2 * draws * steepest**2 * variance * level)
    growth = math.log(1 + bet * mean) - c * slope**2 * variance
    return draws * growth - lost_draws * (worst + c * worst**2) - behind


def _evidence(bias: float, deviation: float, draws: int, spread: float | None, power: float) -> float:
    if spread is None:
        return max(_least_capital(bet, bias, bias, deviation**2, draws, 0.0, 1 - power) for bet in GRID)
    best = -math.inf
    for place in range(17):
        error = (0.1 + 0.05 * place) * bias
        learning = math.ceil(2 * (spread**2 + 2 * error / 3) * math.log(4 / (1 - power)) / error**2)
        if learning < draws:
            mean = math.sqrt(bias**2 - error**2)
            for bet in GRID:
                found = _least_capital(bet, mean, bias, deviation**2, draws, learning, (1 - power) / 2)
                best = max(best, found)
    return best


def _detection() -> dict[str, Any]:
    """Return the smallest detectable bias, to six digits, and the draws that a bias needs."""
    alpha, blocks, power = 1e-4, 2, 0.9
    needed = math.log(1 / alpha) + math.log(blocks * len(GRID))
    found = {}
    for name, spread in (("known", None), ("learned", 0.4)):

        def lack(log_bias: float, spread: float | None = spread) -> float:
            return max(_evidence(math.exp(log_bias), 0.3, 2000, spread, power), -1e9) - needed

        found[f"detectable/{name}"] = round(math.exp(bisect(lack, math.log(1e-9), 0.0, xtol=1e-12)), 4)
        low, high = 0, 1
        while _evidence(0.2, 0.3, high, spread, power) < needed:
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if _evidence(0.2, 0.3, middle, spread, power) >= needed else (middle, high)
        found[f"draws/{name}"] = high
    return found


def _moments() -> list[float]:
    probabilities = [Fraction(1, 2), Fraction(1, 3), Fraction(1, 6)]
    points = [[1.0, -2.0], [4.0, 0.5], [-3.0, 8.0]]
    mean = [sum(float(p) * x[k] for p, x in zip(probabilities, points, strict=True)) for k in range(2)]
    variance = [
        sum(float(p) * (x[k] - mean[k]) ** 2 for p, x in zip(probabilities, points, strict=True)) for k in range(2)
    ]
    return [*mean, *variance, sum(float(p) * math.hypot(*x) for p, x in zip(probabilities, points, strict=True))]


def _gamma(terms: int) -> float:
    product = Fraction(terms, 2**53)
    return float(product / (1 - product))


def values(inputs: dict[str, Any]) -> dict[str, Any]:
    out: dict[str, Any] = {
        "bet-grid": GRID,
        "bet-grid-long": LONG_GRID,
        "betting": betting(DRAWS, MEANS, 1.0, 0.0, two_sided=False),
        "betting-two-sided": betting(DRAWS, MEANS, 1.0, 0.01, two_sided=True),
        "bias-test": bias_test(None),
        "bias-test-population": bias_test(POPULATION),
        **{f"first-rejections/{name}": draws for name, draws in first_rejections().items()},
        **{f"asymptotic-lower/{name}": asymptotic_lower(name) for name in BOUNDS},
        "combine": -0.5,
        "frequencies": [p_value(probability, int(count)) for probability, count in COUNTS],
        "interval": interval(0.05, 0.0, 1.0, None),
        "interval-range": interval(0.2, -1.0, 2.0, None),
        "interval-population": interval(0.05, 0.0, 1.0, POPULATION),
        "gamma": [_gamma(1), _gamma(1000), _gamma(10**9)],
        "decide": ["exact", "exact", "inconclusive", "inconclusive", "refuted"],
        "moments": _moments(),
        "ledger": [1e-6 * 3 / 4, 1e-6 / 4],
    }
    for name, population in (("", None), ("-population", LARGE_POPULATION)):
        blocks = [radius([block], 0.05 / 2, population) for block in BOUNDS]
        out[f"radius{name}"] = [radius(list(BOUNDS), 0.05, population), *blocks]
    return out | _rates() | _detection()
