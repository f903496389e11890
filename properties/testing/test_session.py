"""A test's share of the error probability is never overspent, and an audit spends what its outcome rests on."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmc_verify.errors import InvalidInputError
from lmc_verify.testing import ErrorShare


@given(
    total=st.floats(1e-12, 0.5),
    wishes=st.lists(st.one_of(st.none(), st.floats(1e-15, 0.5)), max_size=60),
)
def test_what_is_taken_never_exceeds_the_share(total: float, wishes: list[float | None]) -> None:
    share, taken = ErrorShare(total), list[float]()
    for wish in wishes:
        left = share.left
        if (wish if wish is not None else left / 2) > left or not left:
            with pytest.raises(InvalidInputError, match="is asked for"):
                share.take(wish)
            assert share.left == left
            continue
        taken.append(share.take(wish))
        assert taken[-1] == (left / 2 if wish is None else wish)
    assert math.fsum(taken) <= total * (1 + 1e-12)
    assert [entry.alpha for entry in share.entries] == taken


def test_halves_run_out_with_an_error_and_not_with_a_level_of_zero() -> None:
    share = ErrorShare(1e-4)
    taken = [share.take() for _ in range(900)]
    assert all(later == earlier / 2 for earlier, later in itertools.pairwise(taken))
    with pytest.raises(InvalidInputError, match="take less, split the test"):
        [share.take() for _ in range(200)]


@pytest.mark.parametrize("alpha", [0.0, 1.0, -1.0, math.nan, math.inf])
def test_an_alpha_that_is_no_error_probability_is_refused(alpha: float) -> None:
    with pytest.raises(InvalidInputError, match="lies in"):
        ErrorShare(alpha)
    with pytest.raises(InvalidInputError, match="is asked for"):
        ErrorShare(0.5).take(alpha)


def test_guarantees_are_checked() -> None:
    with pytest.raises(InvalidInputError, match="guarantee is 'sure'; it is one of 'exact'"):
        ErrorShare(0.1, "sure")  # type: ignore[arg-type]  # what is wrong with it
    with pytest.raises(InvalidInputError, match="guarantee is 'sure'"):
        ErrorShare(0.1).take(guarantee="sure")  # type: ignore[arg-type]  # what is wrong with it
    strict = ErrorShare(0.1, "exact")
    with pytest.raises(InvalidInputError, match="the check is anytime-valid, the session accepts exact"):
        strict.take()
    assert strict.left == 0.1
    assert strict.entries == []
