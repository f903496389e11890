"""So many draws are made that a share which none of them shows is excluded at the stated level, and not fewer."""

from __future__ import annotations

import math
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmc_verify.statistics import draws_to_exclude
from lmc_verify.statistics.exclusion import log_chance_unseen

SHARES = st.floats(1e-4, 0.9)
ALPHAS = st.floats(1e-9, 0.5)


@given(SHARES, ALPHAS)
def test_independent_draws_are_enough_and_not_one_too_many(share: float, alpha: float) -> None:
    draws = draws_to_exclude(share, alpha)
    assert math.exp(log_chance_unseen(share, draws)) <= alpha * (1 + 1e-9)
    assert (1 - share) ** (draws - 1) >= alpha * (1 - 1e-9)


@pytest.mark.parametrize("population", [1, 2, 5, 8])
@pytest.mark.parametrize("share", [0.01, 0.2, 0.25, 0.5, 1.0])
def test_without_replacement_the_chance_is_that_of_counting(population: int, share: float) -> None:
    holding = next(k for k in range(1, population + 1) if k >= share * population)
    for draws in range(population + 1):
        sets = list(combinations(range(population), draws))
        unseen = sum(all(point >= holding for point in chosen) for chosen in sets) / len(sets)
        assert math.exp(log_chance_unseen(share, draws, population)) == pytest.approx(unseen)


@given(SHARES, ALPHAS, st.integers(1, 3000))
def test_a_population_needs_no_more_draws_than_it_has(share: float, alpha: float, population: int) -> None:
    draws = draws_to_exclude(share, alpha, population)
    assert 1 <= draws <= population
    assert log_chance_unseen(share, draws, population) <= math.log(alpha) + 1e-9
    if draws > 1:
        assert log_chance_unseen(share, draws - 1, population) > math.log(alpha) - 1e-9


def test_a_share_of_all_is_seen_at_once() -> None:
    assert draws_to_exclude(1.0, 1e-6) == 1
    assert log_chance_unseen(0.5, 0) == 0


@pytest.mark.parametrize(
    ("share", "draws", "population"), [(0.0, 1, None), (1.1, 1, None), (0.5, -1, None), (0.5, 3, 2), (0.5, 0, 0)]
)
def test_arguments_outside_their_range_are_refused(share: float, draws: int, population: int | None) -> None:
    with pytest.raises(ValueError, match=r"share|negative|population"):
        log_chance_unseen(share, draws, population)
