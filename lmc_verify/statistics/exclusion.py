"""How many draws exclude that a share of them would show something that none of them shows.

If a share of at least p of a distribution has a property, n independent draws all lack it with probability at most
``(1 - p)^n``. Drawn without replacement from N equally likely points, of which at least ``K = ceil(p N)`` then have it,
the probability is ``C(N - K, n) / C(N, n)``, and 0 once fewer than K points are left.
"""

from __future__ import annotations

import math

from lmc_verify.statistics.betting import log_threshold

__all__ = ["UNSEEN", "draws_to_exclude", "log_chance_unseen"]

UNSEEN = 0.005
"""Share of batches from which on it is excluded that they differ from all that were drawn."""


def log_chance_unseen(share: float, draws: int, population: int | None = None) -> float:
    """Return the logarithm of the largest probability that a share of at least `share` is not seen in `draws` draws.

    Args:
        share: p, in (0, 1].
        draws: n.
        population: N for draws without replacement from N equally likely points; None for independent draws.

    Raises:
        ValueError: a share outside (0, 1], negative draws, a population below 1 or fewer points than draws.
    """
    if not 0 < share <= 1:
        raise ValueError(f"a share must lie in (0, 1], got {share}")
    if draws < 0:
        raise ValueError(f"the number of draws is not negative, got {draws}")
    if population is None:
        return 0.0 if draws == 0 else (-math.inf if share == 1 else draws * math.log1p(-share))
    if population < 1 or draws > population:
        raise ValueError(f"{draws} points are drawn without replacement, the population has {population}")
    holding = max(1, math.ceil(share * population * (1 - 1e-12)))  # p N may be a whole number but for rounding
    if population - holding < draws:
        return -math.inf
    # C(N - K, n) / C(N, n) = prod over i < K of (N - n - i) / (N - i)
    return math.fsum(math.log1p(-draws / (population - index)) for index in range(holding))


def draws_to_exclude(share: float, alpha: float, population: int | None = None) -> int:
    """Return the smallest number of draws after which a share unseen so far is excluded at level alpha.

    Args:
        share: p, in (0, 1].
        alpha: probability that a share of at least p is not seen.
        population: see `log_chance_unseen`; the answer is then N at most.

    Raises:
        ValueError: an argument outside its range.
    """
    limit = -log_threshold(alpha)
    if population is None:
        log_chance_unseen(share, 0)
        return 1 if share == 1 else max(1, math.ceil(limit / math.log1p(-share)))
    low, high = 0, population
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if log_chance_unseen(share, middle, population) <= limit else (middle, high)
    return high
