"""Rounding bounds and exact moments are what their formulas say: every verdict of the exact tier rests on them."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmc_verify.errors import NotFiniteError
from lmc_verify.statistics import UNIT_ROUNDOFF, DesignMoments, MomentAccumulator, decide, gamma
from lmc_verify.statistics.rounding import REFUTATION_FACTOR

U = Fraction(1, 2**53)
VALUES = st.floats(-1e6, 1e6, allow_nan=False)


# --- gamma ---------------------------------------------------------------------------------------------


def test_the_unit_roundoff_is_that_of_float64() -> None:
    assert Fraction(UNIT_ROUNDOFF) == U
    assert 1.0 + UNIT_ROUNDOFF == 1.0 < 1.0 + 2 * UNIT_ROUNDOFF


@given(st.integers(0, 2**51))
def test_gamma_is_the_exact_fraction_to_rounding(terms: int) -> None:
    exact = terms * U / (1 - terms * U)
    assert abs(Fraction(gamma(terms)) - exact) <= 4 * U * exact


@given(st.integers(1, 2**40), st.integers(1, 2**40))
def test_gamma_grows_and_covers_chained_sums(one: int, other: int) -> None:
    assert gamma(one + other) > gamma(one) > gamma(0) == 0.0
    assert gamma(one) + gamma(other) <= gamma(one + other) * (1 + 4 * UNIT_ROUNDOFF)


@given(st.lists(VALUES, min_size=1, max_size=60))
def test_gamma_bounds_the_error_of_a_sum(values: list[float]) -> None:
    total = 0.0
    for value in values:
        total += value
    error = abs(Fraction(total) - sum(map(Fraction, values)))
    assert error <= Fraction(gamma(len(values))) * sum(abs(Fraction(value)) for value in values)


@pytest.mark.parametrize("terms", [-1, 2**52, 2**60])
def test_gamma_refuses_what_has_no_meaning(terms: int) -> None:
    with pytest.raises(ValueError, match=f"got {terms}"):
        gamma(terms)


# --- decide --------------------------------------------------------------------------------------------


@given(st.floats(1e-300, 1e200))
def test_decide_has_closed_boundaries(tolerance: float) -> None:
    limit = REFUTATION_FACTOR * tolerance
    assert decide(0.0, tolerance) == decide(tolerance, tolerance) == "exact"
    assert decide(math.nextafter(tolerance, math.inf), tolerance) == "inconclusive"
    assert decide(limit, tolerance) == "inconclusive"
    assert decide(math.nextafter(limit, math.inf), tolerance) == "refuted"


@pytest.mark.parametrize(("residual", "tolerance"), [(math.inf, 1.0), (1e-300, 0.0)])
def test_what_is_infinite_or_not_zero_is_never_exact(residual: float, tolerance: float) -> None:
    assert decide(residual, tolerance) == "refuted"


@pytest.mark.parametrize("residual", [0.0, 1.0, math.inf])
def test_where_rounding_could_do_anything_nothing_is_decided(residual: float) -> None:
    assert decide(residual, math.inf) == "inconclusive"


@pytest.mark.parametrize(
    ("residual", "tolerance", "what"), [(math.nan, 1.0, "a residual"), (0.0, math.nan, "a rounding tolerance")]
)
def test_what_is_no_number_decides_nothing(residual: float, tolerance: float, what: str) -> None:
    with pytest.raises(NotFiniteError, match=f"{what} is NaN, so nothing is decided"):
        decide(residual, tolerance)


def test_nothing_off_with_nothing_allowed_is_exact() -> None:
    assert decide(0.0, 0.0) == "exact"


# --- moments -------------------------------------------------------------------------------------------


@st.composite
def distributions(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    atoms, width = draw(st.integers(1, 12)), draw(st.integers(1, 5))
    values = draw(st.lists(st.lists(VALUES, min_size=width, max_size=width), min_size=atoms, max_size=atoms))
    weights = np.array(draw(st.lists(st.floats(0.01, 1.0), min_size=atoms, max_size=atoms)))
    return np.array(values), weights / weights.sum()


def moments_of(values: np.ndarray, probabilities: np.ndarray) -> DesignMoments:
    moments = MomentAccumulator()
    for value, probability in zip(values, probabilities, strict=True):
        moments.add(value, float(probability))
    return moments.result()


@given(distributions())
def test_moments_are_those_of_numpy(law: tuple[np.ndarray, np.ndarray]) -> None:
    values, probabilities = law
    got = moments_of(values, probabilities)
    mean = np.average(values, axis=0, weights=probabilities)
    spread = np.average((values - mean) ** 2, axis=0, weights=probabilities)
    size = float(np.abs(values).max()) + 1e-300
    np.testing.assert_allclose(got.mean, mean, rtol=0, atol=1e-13 * size)
    np.testing.assert_allclose(got.variance, spread, rtol=0, atol=1e-13 * size**2)
    assert got.mean_norm == pytest.approx(float(probabilities @ np.linalg.norm(values, axis=1)), rel=1e-13, abs=1e-300)
    assert (got.atoms, got.mass) == (len(values), pytest.approx(1.0, abs=1e-14))
    assert (got.variance >= 0).all()


@given(distributions())
def test_the_mean_is_weighted_exactly(law: tuple[np.ndarray, np.ndarray]) -> None:
    values, probabilities = law
    weights = [Fraction(float(p)) for p in probabilities]
    exact = [
        float(sum(w * Fraction(float(v)) for w, v in zip(weights, column, strict=True)) / sum(weights))
        for column in values.T
    ]
    size = float(np.abs(values).max())
    np.testing.assert_allclose(moments_of(values, probabilities).mean, exact, rtol=0, atol=1e-14 * size)


@pytest.mark.parametrize("offset", [1e8, -1e8, 1e12])
def test_variance_survives_a_large_common_offset(offset: float) -> None:
    values = offset + np.array([[0.0, 1.0], [1.0, 1.0], [2.0, 1.0]])
    got = moments_of(values, np.array([0.25, 0.5, 0.25]))
    # E[x^2] - E[x]^2 would be off by offset^2 u, about 1 at 1e8 and 1e8 at 1e12
    np.testing.assert_allclose(got.variance, [0.5, 0.0], rtol=0, atol=1e-12)
    np.testing.assert_allclose(got.mean, offset + np.ones(2), rtol=1e-15)


@pytest.mark.parametrize("atoms", [10, 1000, 20_000])
def test_rounding_does_not_add_up_over_equal_weights(atoms: int) -> None:
    values = np.ones((atoms, 1))
    values[0] = 0.0
    weight = Fraction(1 / atoms)
    exact = (atoms - 1) * weight / (atoms * weight)
    error = abs(Fraction(float(moments_of(values, np.full(atoms, 1 / atoms)).mean[0])) - exact)
    assert error <= 4 * U


def test_what_was_added_may_be_changed_afterwards() -> None:
    moments, value = MomentAccumulator(), np.array([1.0, 2.0])
    moments.add(value, 0.5)
    value[:] = 3.0
    moments.add(value, 0.5)
    assert moments.result().mean.tolist() == [2.0, 2.5]


def test_nan_is_kept() -> None:
    assert np.isnan(moments_of(np.array([[1.0], [np.nan]]), np.array([0.5, 0.5])).mean).all()


@pytest.mark.parametrize("probability", [0.0, -0.5, 1.5, math.nan])
def test_a_probability_outside_its_range_is_refused(probability: float) -> None:
    with pytest.raises(ValueError, match=f"got {probability}"):
        MomentAccumulator().add(np.zeros(2), probability)


def test_a_vector_of_another_length_is_refused() -> None:
    moments = MomentAccumulator()
    moments.add(np.zeros(2), 0.5)
    with pytest.raises(ValueError, match=r"length 2, got shape \(3,\)"):
        moments.add(np.zeros(3), 0.5)


def test_no_support_has_no_moments() -> None:
    with pytest.raises(ValueError, match="no support point"):
        MomentAccumulator().result()


@pytest.mark.parametrize("probabilities", [[0.5], [0.5, 0.4], [0.5, 0.6], [1.0, 1e-6]])
def test_probabilities_that_do_not_sum_to_one_are_refused(probabilities: list[float]) -> None:
    with pytest.raises(ValueError, match=f"{len(probabilities)} support points sum to"):
        moments_of(np.zeros((len(probabilities), 1)), np.array(probabilities))
