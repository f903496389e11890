"""A capital against a true null reaches 1/alpha with probability at most alpha, however often one looks; and a bias
that is called detectable is detected."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
from common.crossed import crossed, slow_but
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from lmc_verify.statistics import BettingProcess, BiasTest, combine, draws_to_detect, smallest_detectable_bias
from lmc_verify.statistics.betting import bet_grid

RUNS, DRAWS = 2000, 200
TEST_ALARM = 1e-6  # a correct implementation fails one of these checks with this probability, were the seeds not fixed


def at_most(count: int, runs: int, alpha: float) -> bool:
    """Whether `count` events in `runs` agree with a probability of at most alpha."""
    return count <= int(stats.binom.isf(TEST_ALARM, runs, alpha))


def at_least(count: int, runs: int, power: float) -> bool:
    return at_most(runs - count, runs, 1 - power)


# --- null laws: scalars in [-1, 1] with mean 0, [runs, draws] --------------------------------------------


def concentrated(generator: np.random.Generator, shape: tuple[int, ...], atoms: int = 40) -> np.ndarray:
    """One cluster of `atoms` carries the whole gradient: (atoms - 1) g with probability 1/atoms, else -g."""
    return np.where(generator.random(shape) < 1 / atoms, 1.0, -1 / (atoms - 1))


def skewed(generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return concentrated(generator, shape, atoms=500)


def mirrored(generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return -concentrated(generator, shape)


def rademacher(generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return generator.choice([-1.0, 1.0], size=shape)


def heteroscedastic(generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """The spread depends on the past: large while the sum is positive, so that luck is followed by more noise."""
    out = rademacher(generator, shape)
    total = np.zeros(shape[:-1])
    for step in range(shape[-1]):
        out[..., step] *= np.where(total > 0, 1.0, 0.1)
        total += out[..., step]
    return out


NULLS: list[Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]] = [
    concentrated,
    skewed,
    mirrored,
    rademacher,
    heteroscedastic,
]


@pytest.mark.statistical
@pytest.mark.parametrize(("law", "two_sided"), crossed(NULLS, [False, True]))
def test_a_true_null_is_rarely_rejected_with_peeking_at_every_draw(law: Callable, two_sided: bool) -> None:
    draws = law(np.random.default_rng(1), (RUNS, DRAWS))
    process = BettingProcess(np.ones(RUNS), two_sided=two_sided)
    for column in draws.T:
        process.update(column)
    for alpha in (0.05, 0.01, 1e-6):
        assert at_most(int(process.rejects(alpha).sum()), RUNS, alpha)


@given(
    st.lists(st.floats(-1, 1), min_size=2, max_size=3),
    st.integers(1, 3),
    st.floats(1e-3, 1e3),
    st.booleans(),
)
def test_the_expected_capital_is_one(values: list[float], draws: int, unit: float, two_sided: bool) -> None:
    support = np.array(values) * unit
    mean = float(support.mean())  # under the null
    paths = np.array(list(itertools.product(support, repeat=draws)))
    process = BettingProcess(np.full(len(paths), unit), two_sided=two_sided)
    for column in paths.T:
        process.update(column, mean)
    assert np.exp(process.log_value).mean() == pytest.approx(1.0, rel=1e-11)


@given(st.lists(st.tuples(st.floats(-2, 2), st.floats(-1, 1), st.floats(0, 0.1)), max_size=6), st.booleans())
def test_the_capital_is_the_product_of_its_factors(steps: list[tuple[float, float, float]], two_sided: bool) -> None:
    bets = [0.5, 0.1]
    signed = [*bets, *(-bet for bet in bets)] if two_sided else bets
    capitals, best = [1.0] * len(signed), 1.0
    process, array = (BettingProcess(bound, two_sided=two_sided, bets=bets) for bound in (2.0, [2.0, 0.0]))
    for value, mean, margin in steps:
        for index, bet in enumerate(signed):
            gain = value - mean - math.copysign(margin, bet)
            capitals[index] *= 1 + bet * gain / (2 + abs(mean) + 2 * margin)
        best = max(best, sum(capitals) / len(capitals))
        process.update(value, mean, margin=margin)
        array.update([value, 0.0], [mean, 0.0], margin=margin)
    assert float(process.log_value) == pytest.approx(math.log(sum(capitals) / len(capitals)), abs=1e-12)
    assert float(process.log_maximum) == pytest.approx(math.log(best), abs=1e-12)
    assert array.log_value.tolist() == [float(process.log_value), 0.0]  # nothing is bet where the bound is 0
    assert process.draws == len(steps)


def test_a_one_sided_process_is_not_moved_by_negative_means() -> None:
    one, two = BettingProcess(1.0), BettingProcess(1.0, two_sided=True)
    for _ in range(100):
        one.update(-0.5)
        two.update(-0.5)
    assert not one.rejects(0.9)
    assert two.rejects(1e-6)


def test_a_margin_is_no_evidence() -> None:
    process = BettingProcess(1e-15, two_sided=True)
    for _ in range(1000):
        process.update(1e-15, margin=1e-15)
    assert process.log_maximum == 0
    sure = BettingProcess(1e-15, two_sided=True)
    for _ in range(1000):
        sure.update(1e-15)
    assert sure.rejects(1e-6)


def test_a_null_mean_out_of_range_is_impossible() -> None:
    process = BettingProcess([1.0, 1.0])
    process.update([0.0, 0.0], [1.0, 1.001])
    assert process.log_value[0] < 0
    assert process.log_value[1] == math.inf
    assert process.rejects(1e-300).tolist() == [False, True]


def test_peeking_once_too_late_does_not_undo_a_rejection() -> None:
    process = BettingProcess(1.0)
    for value in [1.0] * 40 + [-1.0] * 200:
        process.update(value)
    assert process.log_value < 0
    assert process.rejects(1e-6)


# --- what goes wrong without -----------------------------------------------------------------------------


def t_test_p_values(draws: np.ndarray) -> np.ndarray:
    """Two-sided p-values of Student's test after every draw from the 10th on [runs, draws - 9]."""
    count = np.arange(1, draws.shape[1] + 1)
    mean = draws.cumsum(axis=1) / count
    variance = np.maximum((draws**2).cumsum(axis=1) / count - mean**2, 1e-30) * count / np.maximum(count - 1, 1)
    return (2 * stats.t.sf(np.abs(mean) / np.sqrt(variance / count), count - 1))[:, 9:]


@pytest.mark.statistical
def test_a_t_test_with_peeking_is_not_valid_where_the_capital_is() -> None:
    draws = rademacher(np.random.default_rng(2), (500, DRAWS))
    process = BettingProcess(np.ones(500), two_sided=True)
    for column in draws.T:
        process.update(column)
    assert (t_test_p_values(draws) <= 0.05).any(axis=1).mean() > 0.25
    assert process.rejects(0.05).mean() < 0.05


@pytest.mark.statistical
def test_a_normal_approximation_at_1e_6_is_not_valid_where_the_capital_is() -> None:
    draws = concentrated(np.random.default_rng(3), (RUNS, 100))
    process = BettingProcess(np.ones(RUNS), two_sided=True)
    for column in draws.T:
        process.update(column)
    assert (t_test_p_values(draws)[:, -1] <= 1e-6).mean() > 0.05  # one look only, 50,000 times the level
    assert not process.rejects(1e-6).any()


# --- vectors ---------------------------------------------------------------------------------------------


def fast_bias_test(draws: np.ndarray, bounds: np.ndarray, population: int | None = None) -> np.ndarray:
    """The claim's log capital after every draw for many runs at once; draws [runs, draws, blocks, width]."""
    runs, count, blocks, _ = draws.shape
    process = BettingProcess(np.tile(bounds, (runs, 1)))
    total = np.zeros((runs, blocks, draws.shape[3]))
    out = np.empty((runs, count))
    for step in range(count):
        norm = np.linalg.norm(total, axis=2)
        along = np.where(norm > 0, (total * draws[:, step]).sum(axis=2) / np.where(norm > 0, norm, 1), 0.0)
        process.update(along, 0.0 if population is None else -norm / (population - step))
        total += draws[:, step]
        if population is not None:
            left = (population - step - 1) * bounds * (1 + 1e-9)
            process.refute(np.linalg.norm(total, axis=2) > left + 1e-12)
        out[:, step] = np.logaddexp.reduce(process.log_value, axis=1) - math.log(blocks)
    return out


def vector_null(law: Callable, generator: np.random.Generator, runs: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws with mean 0 in 5 blocks of width 3 whose bounds differ a thousandfold, all from the same batch."""
    scalars = np.moveaxis(law(generator, (runs, 2, count)), 1, 2)
    bounds = np.geomspace(1e-3, 1.0, 5)
    first, second = generator.normal(size=(2, 5, 3))
    second -= (first * second).sum(axis=1, keepdims=True) / (first**2).sum(axis=1, keepdims=True) * first
    unit = np.stack([part / np.linalg.norm(part, axis=1, keepdims=True) for part in (first, second)])
    vectors = np.einsum("rts,sbw->rtbw", scalars, unit) / math.sqrt(2)
    return vectors * bounds[:, None], bounds


@pytest.mark.statistical
@pytest.mark.parametrize("law", slow_but({concentrated, heteroscedastic}, NULLS))
def test_a_true_null_of_vectors_is_rarely_rejected(law: Callable) -> None:
    draws, bounds = vector_null(law, np.random.default_rng(4), RUNS, 40)
    top = fast_bias_test(draws, bounds).max(axis=1)
    for alpha in (0.05, 0.01, 1e-6):
        assert at_most(int((top >= -math.log(alpha)).sum()), RUNS, alpha)


def zero_sum_points(generator: np.random.Generator, count: int, kind: str) -> np.ndarray:
    """Points in the unit ball that sum to zero [count, blocks, width]."""
    points = generator.normal(size=(count, 2, 3))
    if kind == "concentrated":
        points = np.tile(points[0], (count, 1, 1))
        points[0] *= -(count - 1)
    points -= points.mean(axis=0)
    return points / np.linalg.norm(points, axis=2).max(axis=0)[:, None]


@pytest.mark.statistical
@pytest.mark.parametrize("kind", ["normal", "concentrated"])
def test_a_true_null_without_replacement_is_rarely_rejected_up_to_the_census(kind: str) -> None:
    generator = np.random.default_rng(5)
    points = zero_sum_points(generator, 40, kind)
    order = np.argsort(generator.random((RUNS, 40)), axis=1)
    top = fast_bias_test(points[order], np.ones(2), population=40).max(axis=1)
    for alpha in (0.05, 0.01, 1e-6):
        assert at_most(int((top >= -math.log(alpha)).sum()), RUNS, alpha)


@pytest.mark.parametrize("kind", ["normal", "concentrated"])
def test_the_expected_capital_without_replacement_is_one(kind: str) -> None:
    points = zero_sum_points(np.random.default_rng(6), 6, kind)
    orders = np.array(list(itertools.permutations(range(6))))
    capitals = np.exp(fast_bias_test(points[orders], np.ones(2), population=6))
    np.testing.assert_allclose(capitals.mean(axis=0), 1.0, rtol=1e-9)


@given(st.integers(0, 2**32 - 1), st.booleans(), st.sampled_from([0.0, 0.3]))
def test_the_obvious_path_equals_the_fast_one(seed: int, replace: bool, shift: float) -> None:
    generator = np.random.default_rng(seed)
    points = (zero_sum_points(generator, 12, "normal") + shift) / 2
    order = generator.integers(12, size=12) if replace else generator.permutation(12)
    population = None if replace else 12
    test = BiasTest({"a": 1.0, "b": 1.0}, population=population)
    slow = []
    for index in order:
        test.update({"b": points[index, 1], "a": points[index, 0]})
        slow.append(test.log_value)
    fast = fast_bias_test(points[order][None], np.ones(2), population)[0]
    np.testing.assert_allclose(slow, fast, rtol=1e-9, atol=1e-9)
    assert test.log_maximum == pytest.approx(max(0.0, max(slow)), abs=1e-12)


@pytest.mark.parametrize("size", [1e-3, 1.0])
def test_a_census_decides_for_certain(size: float) -> None:
    points = zero_sum_points(np.random.default_rng(7), 30, "normal")
    for shift, expected in ((0.0, False), (1e-9 * size, True)):
        test = BiasTest({"a": 1.1 * size, "b": 1.1 * size}, population=30)
        for point in points * size:
            test.update({"a": point[0] + shift, "b": point[1]})
        assert test.rejects(1e-300) is expected
        assert test.rejected_blocks(1e-300) == (("a",) if expected else ())
        with pytest.raises(ValueError, match="all 30 points"):
            test.update({"a": points[0, 0], "b": points[0, 1]})


def test_what_the_rest_cannot_cancel_is_impossible_before_the_census() -> None:
    test = BiasTest({"a": 1.0}, population=10)
    for step in range(6):
        assert not test.rejects(1e-300), step
        test.update({"a": [1.0]})
    assert test.log_value == math.inf


def test_a_census_forgives_rounding() -> None:
    test = BiasTest({"a": 1.0}, population=4, tolerance=1e-10)
    for value in (0.5, -0.5, 0.25, -0.25 + 3e-10):
        test.update({"a": [value]})
    assert not test.rejects(0.5)


@given(st.permutations(["a", "b", "c"]), st.integers(0, 2**32 - 1))
def test_the_order_of_blocks_does_not_matter(order: list[str], seed: int) -> None:
    draws = np.random.default_rng(seed).uniform(-0.5, 1.0, size=(20, 3))
    bounds = {"a": 1.0, "b": 2.0, "c": 3.0}
    tests = [BiasTest(bounds), BiasTest({name: bounds[name] for name in order})]
    for draw in draws:
        blocks = dict(zip("abc", draw[:, None], strict=True))
        tests[0].update(blocks)
        tests[1].update({name: blocks[name] for name in reversed(order)})
    assert tests[1].log_value == pytest.approx(tests[0].log_value, abs=1e-12)
    assert tests[1].block_log_values == tests[0].block_log_values
    assert set(tests[1].rejected_blocks(0.05)) == set(tests[0].rejected_blocks(0.05))


def test_a_rejected_block_rejects_the_claim() -> None:
    test = BiasTest({"biased": 1.0, **{f"null {index}": 1.0 for index in range(9)}})
    while not test.rejected_blocks(1e-6):
        sign = 1.0 if test.draws % 2 else -1.0
        test.update({"biased": [0.5], **{f"null {index}": [sign] for index in range(9)}})
    assert test.rejected_blocks(1e-6) == ("biased",)
    assert test.rejects(1e-6)
    assert test.mean_norms["biased"] == 0.5


def test_a_block_that_is_proven_zero_changes_nothing() -> None:
    alone, beside = BiasTest({"a": 1.0}), BiasTest({"a": 1.0, "zero": 0.0})
    for _ in range(30):
        alone.update({"a": [0.3]})
        beside.update({"a": [0.3], "zero": [0.0, 0.0]})
    assert beside.log_value == alone.log_value > 0
    assert beside.block_log_values["zero"] == 0.0
    only = BiasTest({"zero": 0.0})
    only.update({"zero": [0.0]})
    assert (only.log_value, only.rejects(0.5)) == (0.0, False)


def test_rounding_in_a_block_that_is_proven_zero_is_an_error_only_beyond_its_tolerance() -> None:
    test = BiasTest({"zero": 0.0, "a": 1.0}, tolerance={"zero": 1e-12, "a": 0.0})
    for _ in range(5):
        test.update({"zero": [1e-12], "a": [0.0]})
    assert test.log_maximum == 0.0
    with pytest.raises(ValueError, match=r"'zero'.*range is broken"):
        test.update({"zero": [2e-12], "a": [0.0]})


@pytest.mark.parametrize("block", [[0.8, 0.7], [math.nan, 0.0], [math.inf, 0.0]])
def test_a_broken_range_never_passes_and_leaves_no_trace(block: list[float]) -> None:
    test = BiasTest({"fine": 1.0, "broken": 1.0})
    test.update({"fine": [0.5], "broken": [0.5, 0.0]})
    before = (test.draws, test.log_value, test.mean_norms)
    with pytest.raises(ValueError, match=r"'broken'.*range is broken"):
        test.update({"fine": [0.5], "broken": block})
    assert (test.draws, test.log_value, test.mean_norms) == before


@pytest.mark.parametrize("value", [1 + 1e-8, -2.0, math.nan])
def test_a_broken_scalar_range_never_passes(value: float) -> None:
    process = BettingProcess([1.0, 5.0])
    with pytest.raises(ValueError, match="range is broken"):
        process.update([value, 0.0])
    process.update([1 + 1e-10, 0.0])
    assert process.draws == 1


def test_misuse_is_refused() -> None:
    for bounds in ({}, {"a": -1.0}, {"a": math.inf}, {"a": math.nan}):
        with pytest.raises(ValueError, match=r"block|bound"):
            BiasTest(bounds)
    with pytest.raises(ValueError, match="at least 1 point"):
        BiasTest({"a": 1.0}, population=0)
    with pytest.raises(ValueError, match="tolerances are for"):
        BiasTest({"a": 1.0}, tolerance={"b": 0.0})
    test = BiasTest({"a": 1.0})
    test.update({"a": [0.0, 0.0]})
    with pytest.raises(ValueError, match="has 1 entries"):
        test.update({"a": [0.0]})
    with pytest.raises(ValueError, match=r"expected \['a'\]"):
        test.update({"b": [0.0]})
    for bets in ([], [0.0], [1.0], [-0.5]):
        with pytest.raises(ValueError, match="bets"):
            BettingProcess(1.0, bets=bets)
    with pytest.raises(ValueError, match="alpha"):
        test.rejects(1.0)
    with pytest.raises(ValueError, match="bets need"):
        bet_grid(0.5, 0.25)


# --- independent repetitions -----------------------------------------------------------------------------


def test_evidence_of_independent_runs_multiplies() -> None:
    assert combine([math.log(20), math.log(50)]) == pytest.approx(math.log(1000))
    assert combine([]) == 0.0
    assert combine([math.inf, -3.0]) == math.inf
    for bad in ([math.nan], [math.inf, -math.inf]):
        with pytest.raises(ValueError, match="no product"):
            combine(bad)


@pytest.mark.statistical
def test_the_product_of_independent_runs_is_an_e_value() -> None:
    generator = np.random.default_rng(8)
    logs = []
    for law in (concentrated, rademacher, heteroscedastic):
        process = BettingProcess(np.ones(RUNS), two_sided=True)
        for column in law(generator, (RUNS, 60)).T:
            process.update(column)
        logs.append(process.log_value)
    products = np.array([combine(run) for run in np.array(logs).T])
    for alpha in (0.05, 0.01):
        assert at_most(int((products >= -math.log(alpha)).sum()), RUNS, alpha)


# --- power -----------------------------------------------------------------------------------------------


def two_point(generator: np.random.Generator, shape: tuple[int, ...], mean: float, deviation: float) -> np.ndarray:
    """The law in [-1, 1] whose lower point is the bound: its losses hurt most."""
    up = deviation**2 / (1 + mean)  # distance of the upper point from the mean
    return np.where(generator.random(shape) < up / (1 + mean + up), -1.0, mean + up)


def symmetric(generator: np.random.Generator, shape: tuple[int, ...], mean: float, deviation: float) -> np.ndarray:
    return mean + deviation * rademacher(generator, shape)


@pytest.mark.slow
@pytest.mark.statistical
@pytest.mark.parametrize(("deviation", "draws"), [(0.05, 60), (0.3, 200), (0.6, 400)])
@pytest.mark.parametrize("law", [two_point, symmetric])
def test_a_detectable_bias_is_detected(law: Callable, deviation: float, draws: int) -> None:
    power, alpha = 0.8, 1e-4
    bias = smallest_detectable_bias(deviation, draws, alpha, power=power)
    generator = np.random.default_rng(9)
    found = []
    for size in (bias, bias / 4):
        process = BettingProcess(np.ones(RUNS))
        for column in law(generator, (RUNS, draws), size, deviation).T:
            process.update(column)
        found.append(int(process.rejects(alpha).sum()))
    assert at_least(found[0], RUNS, power)
    assert not at_least(found[1], RUNS, power)  # the promise is not an empty one


@pytest.mark.slow
@pytest.mark.statistical
@pytest.mark.parametrize(("width", "draws"), [(2, 200), (20, 400)])
def test_a_detectable_bias_is_detected_where_its_direction_must_be_learned(width: int, draws: int) -> None:
    power, alpha, spread, runs = 0.8, 1e-4, 0.4, 400
    deviation = spread / math.sqrt(width)
    bias = smallest_detectable_bias(deviation, draws, alpha, power=power, spread=spread, blocks=2)
    assert smallest_detectable_bias(deviation, draws, alpha, power=power, blocks=2) < bias < 0.5
    generator = np.random.default_rng(10)
    found = []
    for size in (bias, bias / 5):
        noise = rademacher(generator, (runs, draws, 2, width)) * deviation
        noise[:, :, 0, 0] += size
        top = fast_bias_test(noise, np.ones(2)).max(axis=1)
        found.append(int((top >= -math.log(alpha)).sum()))
    assert at_least(found[0], runs, power)
    assert not at_least(found[1], runs, power)


@pytest.mark.slow
@given(
    st.floats(0.01, 1.0),
    st.floats(0.0, 1.0),
    st.sampled_from([0.05, 1e-6]),
    st.booleans(),
    st.integers(1, 10),
)
def test_draws_and_detectable_bias_are_inverse(
    bias: float, deviation: float, alpha: float, learned: bool, blocks: int
) -> None:
    settings = {"spread": deviation if learned else None, "blocks": blocks}
    draws = draws_to_detect(bias, deviation, alpha, **settings)
    assert smallest_detectable_bias(deviation, draws, alpha, **settings) <= bias * (1 + 1e-5)
    assert smallest_detectable_bias(deviation, draws - 1, alpha, **settings) > bias * (1 - 1e-5)
    assert draws_to_detect(min(2 * bias, 1.0), deviation, alpha, **settings) <= draws
    assert draws_to_detect(bias, deviation, alpha / 10, **settings) > draws


def test_what_cannot_be_detected_is_said() -> None:
    assert smallest_detectable_bias(0.5, 5, 1e-6) == math.inf
    with pytest.raises(ValueError, match="smaller bets"):
        draws_to_detect(1e-4, 1.0, 1e-6)
    assert draws_to_detect(1e-4, 1.0, 1e-6, bets=bet_grid(1e-6)) > 1e9
    for deviation, power, spread in ((2.0, 0.9, None), (0.5, 1.0, None), (0.5, 0.9, 0.1)):
        with pytest.raises(ValueError, match=r"deviation|power|spread"):
            smallest_detectable_bias(deviation, 100, 1e-6, power=power, spread=spread)
