"""Frequencies are compared by exact tests: sound draws are rejected no more often than stated, and deviations found."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, binomtest

from lmc_verify.statistics import compare_frequencies, smallest_deviation

FAIR = {"a": 0.5, "b": 0.3, "c": 0.15, "d": 0.05, "a or b": 0.8}


def counted(cells: np.ndarray) -> dict[str, int]:
    a, b, c, d = (int(value) for value in cells)
    return {"a": a, "b": b, "c": c, "d": d, "a or b": a + b}


@given(draws=st.integers(1, 60), p=st.floats(0, 1), data=st.data())
def test_p_values_are_exact_and_two_sided(draws: int, p: float, data: st.DataObject) -> None:
    count = data.draw(st.integers(0, draws))
    found = compare_frequencies({"event": p}, {"event": count}, draws, 0.05)
    low, high = binomtest(count, draws, p, "less").pvalue, binomtest(count, draws, p, "greater").pvalue
    if 1e-8 < p < 1 - 1e-8:
        assert found.worst.p_value == pytest.approx(min(1.0, 2 * min(low, high)), rel=1e-9, abs=1e-300)
    assert found.rejects == (found.worst.p_value <= 0.05)


def test_the_level_is_kept_whatever_the_number_of_draws() -> None:
    """Exactly, by summing over all outcomes of three draws; and by simulation at 1e-6 for many."""
    for alpha in (0.05, 0.3, 0.8):
        rejected = sum(
            binom.pmf(count, 3, 0.3)
            for count in range(4)
            if compare_frequencies({"x": 0.3, "rest": 0.7}, {"x": count, "rest": 3 - count}, 3, alpha).rejects
        )
        assert rejected <= alpha
    rng, runs, alpha = np.random.default_rng(0), 1000, 0.2
    for draws in (5, 200):
        cells = rng.multinomial(draws, [0.5, 0.3, 0.15, 0.05], size=runs)
        rejections = sum(compare_frequencies(FAIR, counted(row), draws, alpha).rejects for row in cells)
        assert rejections <= binom.isf(1e-6, runs, alpha)
        assert rejections > 0, "the test can reject"


def draws_to_find(deviation: float, events: int, alpha: float, beta: float) -> int:
    """Return the least number of draws whose smallest deviation is at most the given one."""
    return next(draws for draws in itertools.count(1) if smallest_deviation(draws, events, alpha, beta) <= deviation)


def test_a_deviation_of_the_smallest_size_is_found() -> None:
    rng, runs, alpha, beta = np.random.default_rng(1), 300, 1e-6, 0.05
    draws = draws_to_find(0.1, len(FAIR), alpha, beta)
    cells = rng.multinomial(draws, [0.4, 0.3, 0.15, 0.15], size=runs)  # a is off by 0.1, and so are d and "a or b"
    missed = sum(not compare_frequencies(FAIR, counted(row), draws, alpha).rejects for row in cells)
    assert missed <= binom.isf(1e-6, runs, beta)


def test_what_cannot_happen_is_rejected_at_once_and_what_must_is_not() -> None:
    impossible = compare_frequencies({"never": 0.0, "always": 1.0}, {"never": 1, "always": 5}, 5, 1e-12)
    assert impossible.rejects
    assert impossible.worst.event == "never"
    assert str(impossible.worst) == "never in 1 of 5 draws, where 0 are expected (p = 0.0e+00)"
    assert compare_frequencies({"always": 1.0}, {"always": 4}, 5, 1e-12).rejects
    # 3 x 0.1 + 0.7 is 1 up to rounding.
    for rounded in (1 - 1e-12, 1 + 1e-12):
        assert not compare_frequencies({"never": 0.0, "always": rounded}, {"always": 5}, 5, 0.5).rejects


def test_every_event_is_paid_for() -> None:
    one = compare_frequencies({"x": 0.5}, {"x": 10}, 10, 0.01)
    many = compare_frequencies(
        {"x": 0.5} | {f"other {k}": 0.5 for k in range(9)}, {"x": 10} | {f"other {k}": 5 for k in range(9)}, 10, 0.01
    )
    assert one.worst.p_value == many.worst.p_value == pytest.approx(2**-9)
    assert (one.rejects, many.rejects, many.events) == (True, False, 10)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (({}, {}, 5, 0.1), "events, draws and a level"),
        (({"x": 0.5}, {}, 0, 0.1), "got 1, 0 and"),
        (({"x": 0.5}, {}, 5, 1.0), "got 1, 5 and 1.0"),
        (({"x": 0.5}, {"y": 1}, 5, 0.1), "event 'y' was counted"),
        (({"x": 1.5}, {}, 5, 0.1), r"in \[0, 1\], got 1.5"),
        (({"x": float("nan")}, {}, 5, 0.1), r"in \[0, 1\], got nan"),
        (({"x": 0.5}, {"x": 6}, 5, 0.1), "0 to 5 draws, got 6"),
        (({"x": 0.5}, {"x": -1}, 5, 0.1), "0 to 5 draws, got -1"),
    ],
)
def test_bad_arguments_are_refused(values: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compare_frequencies(*values)


def test_bad_questions_about_power_are_refused() -> None:
    for bad in ((10, 3, 0.0), (10, 3, 1.0), (10, 3, 0.1, 0.0), (10, 3, 0.1, 1.0)):
        with pytest.raises(ValueError, match=r"must lie in \(0, 1\)"):
            smallest_deviation(*bad)
    for draws, events in ((0, 3), (10, 0)):
        with pytest.raises(ValueError, match=f"at least one draw and one event are needed, got {draws} and {events}"):
            smallest_deviation(draws, events, 0.1)


@pytest.mark.parametrize("true", [0.4, 0.6])
def test_the_promise_holds_where_frequencies_vary_most(true: float) -> None:
    """Exactly: the probability that one event of probability 1/2 is missed though it occurs with another."""
    alpha, beta = 1e-6, 0.05
    draws = draws_to_find(0.1, 1, alpha, beta)
    kept = [k for k in range(draws + 1) if not compare_frequencies({"x": 0.5}, {"x": k}, draws, alpha).rejects]
    missed = float(binom.cdf(kept[-1], draws, true) - binom.cdf(kept[0] - 1, draws, true))
    assert missed <= beta
    assert missed > beta / 100, "nor is the promise far too modest"
