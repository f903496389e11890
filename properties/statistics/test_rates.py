"""A statement about rates is wrong no more often than its level says: intervals, slopes, decay fits and the control."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from scipy import stats

from lmc_verify.statistics import (
    DecayFit,
    MedianInterval,
    detectable_margin,
    expected_norm,
    fit_decay,
    known_slope,
    loglog_slope,
    measured_norms,
    median_interval,
    near_floor,
    seeds_needed,
    seeds_to_detect,
)
from lmc_verify.statistics.quadratic import DIMENSION
from lmc_verify.statistics.rates import EXTENSIONS, FLOOR_FACTOR, length_to_come_below, length_to_keep_slope

RUNS = 2500
TEST_ALARM = 1e-6  # a correct implementation fails one of these checks with this probability, were the seeds not fixed


def misses(draws: np.ndarray, median: float, alpha: float) -> int:
    """How many rows of [runs, draws] have an interval that misses the median."""
    return sum(median_interval(row, alpha).outside(median, median) for row in draws.tolist())


# --- intervals for the median ----------------------------------------------------------------------------

Law = tuple[Callable[[np.random.Generator, tuple[int, int]], np.ndarray], float]
CONTINUOUS: dict[str, Law] = {
    "normal": (lambda rng, shape: rng.normal(size=shape), 0.0),
    "skewed": (lambda rng, shape: rng.exponential(size=shape), math.log(2)),
    "heavy tails": (lambda rng, shape: rng.standard_cauchy(size=shape), 0.0),
    "two humps": (lambda rng, shape: rng.beta(0.2, 0.2, size=shape), 0.5),
}
DISCRETE: dict[str, Law] = {
    "three values": (lambda rng, shape: rng.choice([0.0, 1.0, 5.0], p=[0.4, 0.2, 0.4], size=shape), 1.0),
    "constant": (lambda rng, shape: np.full(shape, 3.0), 3.0),
    "atom and tail": (lambda rng, shape: np.maximum(rng.standard_cauchy(size=shape), 0.0), 0.0),
}
LEVELS = [(6, 0.1), (9, 0.2), (20, 0.05), (25, 0.3)]


@pytest.mark.parametrize(("seeds", "alpha"), LEVELS)
@pytest.mark.parametrize("law", CONTINUOUS)
def test_miss_probability_is_the_stated_one_for_continuous_laws(law: str, seeds: int, alpha: float) -> None:
    draw, median = CONTINUOUS[law]
    rng = np.random.default_rng(seeds)
    stated = median_interval(range(seeds), alpha).miss
    assert stated <= alpha
    count = misses(draw(rng, (RUNS, seeds)), median, alpha)
    low, high = (int(stats.binom.ppf(q, RUNS, stated)) for q in (TEST_ALARM, 1 - TEST_ALARM))
    assert low <= count <= high, f"{count} of {RUNS} intervals miss, stated probability {stated}"


@pytest.mark.parametrize(("seeds", "alpha"), LEVELS)
@pytest.mark.parametrize("law", DISCRETE)
def test_intervals_miss_a_discrete_laws_median_no_more_often(law: str, seeds: int, alpha: float) -> None:
    draw, median = DISCRETE[law]
    count = misses(draw(np.random.default_rng(seeds), (RUNS, seeds)), median, alpha)
    assert count <= stats.binom.isf(TEST_ALARM, RUNS, alpha)


def test_interval_is_the_shortest_pair_of_order_statistics_at_the_level() -> None:
    for seeds in range(2, 40):
        for alpha in (0.3, 0.05, 1e-3, 1e-6):
            if seeds < seeds_needed(alpha):
                continue
            found = median_interval(range(seeds), alpha)
            left_out = int(found.low)
            assert found.high == seeds - 1 - left_out
            assert found.miss == pytest.approx(2 * stats.binom.cdf(left_out, seeds, 0.5))
            assert 2 * stats.binom.cdf(left_out + 1, seeds, 0.5) > alpha, "a shorter interval keeps the level"


@given(st.lists(st.floats(allow_nan=False), min_size=1, max_size=40), st.floats(1e-9, 0.9))
@example([1.0, math.inf, math.inf], 0.25)
def test_interval_holds_the_median_and_does_not_see_the_order(values: list[float], alpha: float) -> None:
    assume(not {-math.inf, math.inf} <= set(values))  # whose mid-point is not a number
    found = median_interval(values, alpha)
    assert found == median_interval(values[::-1], alpha)
    assert found.low <= found.median <= found.high
    assert found.draws == len(values)
    assert found.exists == (len(values) >= seeds_needed(alpha))
    if found.exists:
        assert found.miss <= alpha
        assert found.ends == (found.low, found.high)
        assert {found.low, found.high} <= set(values)
    else:
        assert (found.low, found.high, found.miss, found.ends) == (-math.inf, math.inf, 1.0, (None, None))
        assert not found.inside()
        assert not found.outside(0, 0)


@given(st.floats(1e-300, 1, exclude_max=True))
@example(0.5)
@example(2.0**-19)
@example(math.nextafter(2.0**-19, 0))
@example(math.nextafter(2.0**-19, 1))
def test_seeds_needed_is_the_smallest_number_that_gives_an_interval(alpha: float) -> None:
    seeds = seeds_needed(alpha)
    assert seeds >= 2
    assert math.ldexp(1.0, 1 - seeds) <= alpha, "the level is not kept"
    assert seeds == 2 or math.ldexp(1.0, 2 - seeds) > alpha, "one seed fewer would do"


def test_regions_are_closed_and_both_answers_are_possible() -> None:
    found = MedianInterval(0.5, 0.0, 1.0, 0.1, 9)
    assert found.inside(0.0, 1.0)
    assert not found.inside(0.1, 1.0)
    assert not found.inside(0.0, 0.9)
    assert found.outside(upper=-0.1)
    assert found.outside(lower=1.1)
    assert not found.outside(0.0, 1.0)
    assert not found.outside(upper=0.0)
    assert not found.outside(lower=1.0)


@pytest.mark.parametrize("values", [[], [1.0, math.nan]])
def test_no_interval_of_nothing_or_nan(values: list[float]) -> None:
    with pytest.raises(ValueError, match="at least one value and no NaN"):
        median_interval(values, 0.1)


@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.1, math.nan])
def test_levels_outside_of_the_unit_interval_are_refused(alpha: float) -> None:
    with pytest.raises(ValueError, match=r"must lie in \(0, 1\)"):
        seeds_needed(alpha)
    with pytest.raises(ValueError, match=r"must lie in \(0, 1\)"):
        median_interval([1.0, 2.0], alpha)


# --- the smallest effect ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seeds", "alpha", "power"), [(6, 0.1, 0.9), (20, 0.05, 0.9), (20, 0.05, 0.5), (25, 1e-3, 0.8)]
)
def test_a_median_at_the_detectable_margin_clears_the_limit_with_the_power_promised(
    seeds: int, alpha: float, power: float
) -> None:
    margin = detectable_margin(2.0, seeds, alpha, power)
    draws = np.random.default_rng(seeds).normal(-1 - margin, 2.0, (RUNS, seeds))
    count = sum(median_interval(row, alpha).inside(upper=-1) for row in draws.tolist())
    low, high = (int(stats.binom.ppf(q, RUNS, power)) for q in (TEST_ALARM, 1 - TEST_ALARM))
    assert low <= count <= high


def test_margin_is_infinite_without_an_interval_and_scales_with_the_deviation() -> None:
    assert detectable_margin(1.0, 19, 2.0**-19) == math.inf
    assert detectable_margin(1.0, 20, 2.0**-19) < math.inf
    assert detectable_margin(3.0, 20, 0.01) == pytest.approx(3 * detectable_margin(1.0, 20, 0.01))
    assert detectable_margin(1.0, 40, 0.01) < detectable_margin(1.0, 20, 0.01)
    for changes in ({"deviation": -1.0}, {"power": 0.0}, {"power": 1.0}):
        with pytest.raises(ValueError, match="power is"):
            detectable_margin(**({"deviation": 1.0, "seeds": 9, "alpha": 0.1, "power": 0.9} | changes))


@pytest.mark.parametrize("alpha", [0.2, 0.01, 1e-6])
@pytest.mark.parametrize("margin", [0.1, 0.7, 5.0])
def test_seeds_and_margin_are_inverse(margin: float, alpha: float) -> None:
    needed = seeds_to_detect(margin, 1.0, alpha)
    assert needed is not None
    assert needed >= seeds_needed(alpha)
    assert detectable_margin(1.0, needed, alpha) <= margin < detectable_margin(1.0, needed - 1, alpha)
    assert seeds_to_detect(3 * margin, 3.0, alpha) == needed
    assert seeds_to_detect(margin, 0.0, alpha) == seeds_needed(alpha)


def test_the_seeds_that_are_asked_for_decide() -> None:
    needed = seeds_to_detect(0.5, 1.0, 0.01)
    draws = np.random.default_rng(3).normal(0.5, 1.0, (RUNS, needed or 0))
    count = sum(median_interval(row, 0.01).inside(lower=0) for row in draws.tolist())
    assert count >= int(stats.binom.ppf(TEST_ALARM, RUNS, 0.9))


def test_on_the_limit_no_number_of_seeds_decides() -> None:
    assert seeds_to_detect(1e-9, 1.0, 0.01) is None
    for margin in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="margin is"):
            seeds_to_detect(margin, 1.0, 0.01)


@given(st.integers(1, 3000), st.floats(1e-9, 0.5))
def test_the_cut_is_the_largest_that_the_level_allows(draws: int, alpha: float) -> None:
    assume(draws >= seeds_needed(alpha))
    found = median_interval(range(draws), alpha)
    cut = int(found.low)
    assert found.high == draws - 1 - cut
    assert 2 * stats.binom.cdf(cut, draws, 0.5) <= alpha < 2 * stats.binom.cdf(cut + 1, draws, 0.5)


# --- slopes ----------------------------------------------------------------------------------------------


@given(
    st.floats(-3, 3),
    st.floats(1e-6, 1e6),
    st.lists(st.floats(1e-3, 1e3), min_size=2, max_size=8, unique_by=lambda value: round(math.log(value), 1)),
)
def test_slope_of_a_power_law_is_its_exponent(exponent: float, factor: float, x: list[float]) -> None:
    y = [factor * value**exponent for value in x]
    assert loglog_slope(x, y) == pytest.approx(exponent, abs=1e-9)
    assert loglog_slope([7 * value for value in x], [3 * value for value in y]) == pytest.approx(exponent, abs=1e-9)


def test_slope_is_the_least_squares_one() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.uniform(1, 9, 12), rng.uniform(1, 9, 12)
    assert loglog_slope(x, y) == pytest.approx(np.polyfit(np.log(x), np.log(y), 1)[0])


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        ([1.0], [1.0], "two or more points"),
        ([1.0, 2.0], [1.0], "two or more points"),
        ([1.0, 2.0], [1.0, 0.0], "needs positive finite values"),
        ([0.0, 2.0], [1.0, 1.0], "needs positive finite values"),
        *(([1.0, 2.0, 4.0], [1.0, y, 0.25], "needs positive finite values") for y in (math.nan, math.inf, -1.0)),
        ([2.0, 2.0], [1.0, 3.0], "two different abscissae"),
    ],
)
def test_no_slope_without_two_positive_points(x: list[float], y: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        loglog_slope(x, y)


@given(st.floats(0.05, 2.0), st.floats(0.1, 10.0), st.floats(1.5, 20.0))
def test_a_power_law_comes_below_a_limit_where_it_meets_it(exponent: float, factor: float, ratio: float) -> None:
    x = [10.0, 10.0 * ratio, 10.0 * ratio**2]
    values = [factor * value**-exponent for value in x]
    beyond = x[-1] * ratio**3
    assert length_to_come_below(x, values, factor * beyond**-exponent) == pytest.approx(beyond, rel=1e-6)
    too_far = factor * (x[-1] * ratio ** (EXTENSIONS + 1)) ** -exponent
    assert length_to_come_below(x, values, too_far) is None


@pytest.mark.parametrize("values", [[2.0, 2.0, 2.0], [3.0, 2.0, 2.5]], ids=["flat", "rising"])
def test_what_does_not_fall_comes_below_nothing(values: list[float]) -> None:
    assert length_to_come_below([1, 2, 4], values, 1.0) is None


@given(st.floats(0.01, 0.1), st.floats(-0.05, 0.1), st.floats(2.0, 10.0))
def test_a_parabola_has_a_slope_as_soon_as_its_length_is_reached(bend: float, tilt: float, ratio: float) -> None:
    """In log-log: the local slope is then a straight line, and its continuation exact."""

    def curve(count: int) -> tuple[list[float], list[float]]:
        x = [5 * ratio**k for k in range(count)]
        return x, [math.exp(-bend * math.log(value) ** 2 - tilt * math.log(value)) for value in x]

    count, limit = 3, -0.6
    while loglog_slope(*curve(count)) > limit:
        count += 1
    assume(3 < count <= EXTENSIONS)
    assume(abs(loglog_slope(*curve(count)) - limit) > 1e-9)
    assert length_to_keep_slope(*curve(3), limit) == pytest.approx(5 * ratio ** (count - 1), rel=1e-9)


def test_a_curve_that_does_not_steepen_never_has_a_steeper_slope() -> None:
    for bend in (0.0, 0.01):
        values = [math.exp(-0.1 * k + bend * k**2) for k in range(3)]
        assert length_to_keep_slope([1, 4, 16], values, -0.2) is None


def test_near_floor_looks_at_every_mean() -> None:
    assert not near_floor([[1.01 * FLOOR_FACTOR, 9.0]], 1.0)
    assert near_floor([[9.0, 9.0], [9.0, 0.99 * FLOOR_FACTOR]], 1.0)
    assert near_floor([0.0], 0.0), "a gradient of zero has no slope, whatever the floor"
    assert near_floor([1.0, math.nan], 0.1)
    assert near_floor([1.0, -1.0], 0.1)
    assert not near_floor([1.0, math.inf], 0.1)


# --- decay and floor -------------------------------------------------------------------------------------

STEPS = [0, 1, 2, 4, 7, 11, 16, 22, 29, 37, 50, 53, 56, 59]


@given(st.floats(1e-3, 10), st.floats(0.05, 1e3), st.floats(0.2, 0.93), st.integers(0, 200), st.floats(1e-8, 1e8))
@example(1.0, 1.0, 0.2, 200, 1.0)
def test_fit_recovers_a_noiseless_curve(floor: float, ratio: float, rate: float, start: int, unit: float) -> None:
    steps = [start + step for step in STEPS]
    truth = DecayFit(unit * floor, unit * floor * ratio, rate, 0.0, start)
    fit = fit_decay(steps, truth(steps))
    assert fit.error < 1e-7
    assert fit.floor == pytest.approx(truth.floor, rel=1e-4)
    assert fit.amplitude == pytest.approx(truth.amplitude, rel=1e-4)
    assert fit.rate == pytest.approx(rate, rel=1e-4)
    assert fit.start == start
    assert fit(steps) == pytest.approx(truth(steps), rel=1e-6)


@pytest.mark.parametrize("unit", [1e-300, 1e-160, 1e160, 1e300])
def test_a_decay_is_fitted_in_any_unit(unit: float) -> None:
    fit = fit_decay(STEPS, [unit * (1 + 8 * 0.5**step) for step in STEPS])
    assert fit.rate == pytest.approx(0.5, rel=1e-6)
    assert fit.floor == pytest.approx(unit, rel=1e-6)


@given(st.floats(0.2, 0.97))
def test_fit_finds_no_floor_in_pure_decay(rate: float) -> None:
    fit = fit_decay(STEPS, [rate**step for step in STEPS])
    assert fit.floor < 1e-3 * rate ** STEPS[-1]
    assert fit.rate == pytest.approx(rate, rel=1e-4)


@given(st.floats(1e-12, 1e12))
def test_fit_finds_no_decay_in_a_pure_floor(floor: float) -> None:
    fit = fit_decay(STEPS, [floor] * len(STEPS))
    assert fit.floor == pytest.approx(floor)
    assert (fit.amplitude, fit.rate) == (0.0, 0.0)
    assert fit.error < 1e-9


def test_fit_stands_multiplicative_noise() -> None:
    """With 10 % noise on 14 points the root mean square error is found, and floor, amplitude and rate within a third.

    Four points lie on the floor, so that its standard error is about 5 %; a third is more than six of them.
    """
    truth = DecayFit(0.02, 1.0, 0.7, 0.0, 0.0)
    rng = np.random.default_rng(3)
    errors = []
    for _ in range(60):
        fit = fit_decay(STEPS, truth(STEPS) * np.exp(0.1 * rng.normal(size=len(STEPS))))
        errors.append(fit.error)
        assert fit.floor == pytest.approx(truth.floor, rel=1 / 3)
        assert fit.amplitude == pytest.approx(truth.amplitude, rel=1 / 3)
        assert fit.rate == pytest.approx(truth.rate, abs=0.1)
    assert 0.06 < float(np.mean(errors)) < 0.11  # three of fourteen degrees of freedom are fitted


def test_fit_error_shows_a_curve_that_does_not_decay() -> None:
    assert fit_decay(STEPS, [1.0 + step**2 for step in STEPS]).error > 0.5


@pytest.mark.parametrize(
    ("steps", "values", "message"),
    [
        ([0, 1, 2], [1.0, 1.0, 1.0], "four or more points"),
        ([0, 1, 2, 3], [1.0, 1.0, 1.0], "four or more points"),
        ([0, 1, 1, 3], [1.0] * 4, "ascending steps"),
        ([0, 1, 2, 3], [1.0, 0.0, 1.0, 1.0], "positive finite values"),
        *(([0, 1, 2, 3], [1.0, y, 1.0, 1.0], "positive finite values") for y in (math.nan, math.inf, -1.0)),
    ],
)
def test_no_fit_of_too_little(steps: list[float], values: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit_decay(steps, values)


# --- the control problem ---------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0.01, 0.3, 1.0, 1.7])
def test_expected_norm_is_that_of_the_stationary_distribution(size: float) -> None:
    """Simulated from zero until the start is forgotten, not from the stationary law that the formula assumes."""
    rng = np.random.default_rng(7)
    x = np.zeros((500, DIMENSION))
    steps = 20 + math.ceil(12 / min(size, 2 - size))
    for _ in range(steps):
        x = (1 - size) * x - size * rng.normal(size=x.shape)
    norms = np.linalg.norm(x, axis=1)
    error = 5 * float(norms.std(ddof=1)) / math.sqrt(norms.size)
    assert abs(float(norms.mean()) - expected_norm(size)) < error
    assert error < 0.03 * expected_norm(size)


@pytest.mark.parametrize("size", [0.0, 2.0, -1.0, math.nan])
def test_no_stationary_law_for_other_step_sizes(size: float) -> None:
    with pytest.raises(ValueError, match=r"in \(0, 2\)"):
        expected_norm(size)


LENGTHS = (16, 64, 256)
SIZES = [0.5 * (length / LENGTHS[0]) ** (-2 / 3) for length in LENGTHS]


def test_known_slope_is_minus_a_third_for_small_step_sizes() -> None:
    """eta^(1/2) with eta = N^(-2/3); at larger steps the law ``eta / (2 - eta)`` makes it steeper."""
    assert known_slope(LENGTHS, [size / 1000 for size in SIZES]) == pytest.approx(-1 / 3, abs=1e-3)
    assert -0.40 < known_slope(LENGTHS, SIZES) < -1 / 3
    assert known_slope(LENGTHS, [0.5] * 3) == pytest.approx(0, abs=1e-12)


def test_measured_norms_have_the_expected_mean_at_every_length() -> None:
    norms = measured_norms(LENGTHS, SIZES, 200, 16, np.random.default_rng(1))
    assert norms.shape == (200, 3)
    for place, size in enumerate(SIZES):
        error = 5 * float(norms[:, place].std(ddof=1)) / math.sqrt(200)
        assert abs(float(norms[:, place].mean()) - expected_norm(size)) < error


def test_measured_norms_average_all_steps_where_as_many_are_sampled() -> None:
    """The recursion by hand, from an equal generator: with 8 samples of 8 steps every step counts once."""
    found = measured_norms([8], [0.4], 5, 8, np.random.default_rng(2))
    rng = np.random.default_rng(2)
    x, norms = rng.normal(scale=math.sqrt(0.4 / 1.6), size=(5, DIMENSION)), []
    for _ in range(8):
        norms.append(np.linalg.norm(x, axis=1))
        x = 0.6 * x - 0.4 * rng.normal(size=x.shape)
    assert found[:, 0] == pytest.approx(np.mean(norms, axis=0), rel=1e-12)


def test_seeds_of_the_control_are_independent_and_its_generator_is_all_that_counts() -> None:
    first, again, other = (measured_norms(LENGTHS, SIZES, 60, 4, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert np.unique(first).size == first.size
    correlation = np.corrcoef(first, rowvar=False) - np.eye(3)
    assert np.abs(correlation).max() < 5 / math.sqrt(60)


@pytest.mark.parametrize("seed", range(5))
def test_rate_test_supports_the_sound_schedule_and_refutes_the_constant_one(seed: int) -> None:
    rng, seeds, alpha = np.random.default_rng(seed), 20, 2.0**-19
    sound, constant = (
        median_interval([loglog_slope(LENGTHS, row) for row in measured_norms(LENGTHS, sizes, seeds, 16, rng)], alpha)
        for sizes in (SIZES, [0.5] * 3)
    )
    assert sound.inside(upper=-1 / 6)
    assert sound.low <= known_slope(LENGTHS, SIZES) <= sound.high
    assert constant.outside(upper=-1 / 6)
    assert constant.low <= 0 <= constant.high
