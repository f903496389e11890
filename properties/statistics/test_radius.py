"""An upper bound on a mean, scalar or vector, is above that mean after every draw at once with the stated probability;
it is as small as planned, and after a census it is the mean."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
from common.crossed import slow_but
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from lmc_verify.statistics import (
    BiasRadius,
    MeanInterval,
    draws_to_bound,
    draws_to_width,
    reachable_width,
    resolvable_bias,
)
from lmc_verify.statistics.intervals import _BETS, log_capital_against, mean_upper_bound
from lmc_verify.statistics.radius import _RATES, log_mixture

RUNS, DRAWS, POPULATION = 2000, 120, 60
TEST_ALARM = 1e-6  # a correct implementation fails one of these checks with this probability, were the seeds not fixed


def at_most(count: int, runs: int, alpha: float) -> bool:
    return count <= int(stats.binom.isf(TEST_ALARM, runs, alpha))


def log_mean_exp(values: np.ndarray) -> np.ndarray:
    return np.logaddexp.reduce(values, axis=-1) - math.log(values.shape[-1])


# --- scalars -------------------------------------------------------------------------------------------------


def rare(generator: np.random.Generator, shape: tuple[int, ...]) -> tuple[np.ndarray, float]:
    return (generator.random(shape) < 0.01).astype(float), 0.01


def nearly_always(generator: np.random.Generator, shape: tuple[int, ...]) -> tuple[np.ndarray, float]:
    return 0.1 + 0.9 * (generator.random(shape) < 0.98), 0.1 + 0.9 * 0.98


def coin(generator: np.random.Generator, shape: tuple[int, ...]) -> tuple[np.ndarray, float]:
    return generator.integers(0, 2, size=shape).astype(float), 0.5


def beta(generator: np.random.Generator, shape: tuple[int, ...]) -> tuple[np.ndarray, float]:
    return generator.beta(0.3, 0.9, size=shape), 0.25


def fast_log_capital(values: np.ndarray, mean: float, population: int | None = None) -> np.ndarray:
    """The capital against `mean` after every draw, for many runs at once; values [runs, draws]."""
    means = np.full_like(values, mean)
    if population is not None:
        past = np.cumsum(values, axis=1) - values
        means = np.clip((population * mean - past) / (population - np.arange(values.shape[1])), 0, 1)
    gains = (means - values) / np.maximum(1 - means, 1e-9)
    return log_mean_exp(np.stack([np.log1p(bet * gains).cumsum(axis=1) for bet in _BETS], axis=-1))


@pytest.mark.statistical
@pytest.mark.parametrize("law", slow_but({rare, coin}, [rare, nearly_always, coin, beta]))
def test_scalar_bounds_hold_after_every_draw(law: Callable) -> None:
    values, mean = law(np.random.default_rng(1), (RUNS, DRAWS))
    upper = fast_log_capital(values, mean).max(axis=1)
    lower = fast_log_capital(1 - values, 1 - mean).max(axis=1)
    for alpha in (0.05, 0.01):
        for top in (upper, lower):
            assert at_most(int((top > -math.log(alpha)).sum()), RUNS, alpha)
        assert at_most(int((np.maximum(upper, lower) > -math.log(alpha / 2)).sum()), RUNS, alpha)


@pytest.mark.statistical
@pytest.mark.parametrize("law", slow_but({beta}, [rare, coin, beta]))
def test_scalar_bounds_without_replacement_hold_after_every_draw(law: Callable) -> None:
    generator = np.random.default_rng(2)
    points, _ = law(generator, (POPULATION,))
    points[0] = 1.0
    values = points[np.argsort(generator.random((RUNS, POPULATION)), axis=1)]
    mean = float(points.mean())
    for alpha in (0.05, 0.01):
        for draws, centre in ((values, mean), (1 - values, 1 - mean)):
            top = fast_log_capital(draws[:, :-1], centre, POPULATION).max(axis=1)
            assert at_most(int((top > -math.log(alpha)).sum()), RUNS, alpha)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=3), st.integers(1, 3))
def test_the_expected_capital_against_the_mean_is_one(support: list[float], draws: int) -> None:
    mean = float(np.mean(support))
    if mean > 1 - 1e-6:
        return
    paths = itertools.product(support, repeat=draws)
    capitals = [math.exp(log_capital_against(np.array(path), mean)) for path in paths]
    assert np.mean(capitals) == pytest.approx(1.0, rel=1e-9)


@pytest.mark.parametrize("points", [[0.0, 0.1, 0.3, 0.8, 0.2], [0.9, 1.0, 0.5, 0.6, 0.6]])
def test_the_expected_capital_against_the_mean_of_a_population_is_one(points: list[float]) -> None:
    for draws in range(1, 5):
        capitals = [
            math.exp(log_capital_against(np.array(path[:draws]), float(np.mean(points)), 5))
            for path in itertools.permutations(points)
        ]
        assert np.mean(capitals) == pytest.approx(1.0, rel=1e-9)


@pytest.mark.slow
@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.booleans(), st.sampled_from([0.05, 1e-6]))
def test_an_interval_is_what_the_capital_leaves(seed: int, draws: int, replace: bool, alpha: float) -> None:
    values, _ = beta(np.random.default_rng(seed), (draws,))
    population = None if replace else 40
    interval = MeanInterval(alpha, -1.0, 3.0, population=population)
    for value in values:
        interval.update(4 * value - 1)
    low, high = ((end + 1) / 4 for end in interval.interval())
    assert low <= interval.mean / 4 + 0.25 <= high or population is not None
    assert 0 <= low <= high <= 1
    if draws == population:
        return
    level = -math.log(alpha / 2)
    least = values.sum() / (population or math.inf)
    most = 1.0 if population is None else least + (population - draws) / population
    assert least - 1e-9 <= low <= high <= most + 1e-9
    for candidate in np.linspace(least, most, 41)[1:-1]:
        above = fast_log_capital(values[None], candidate, population)[0, -1]
        below = fast_log_capital(1 - values[None], 1 - candidate, population)[0, -1]
        assert above == pytest.approx(log_capital_against(values, candidate, population), abs=1e-9)
        if abs(above - level) > 1e-6:
            assert (candidate < high) == (above < level)
        if abs(below - level) > 1e-6:
            assert (candidate > low) == (below < level)


@given(st.lists(st.floats(-2, 5), min_size=1, max_size=30), st.randoms(use_true_random=False))
def test_an_interval_collapses_to_the_mean_at_a_census(values: list[float], random: object) -> None:
    interval = MeanInterval(1e-6, -2.0, 5.0, population=len(values))
    for value in values:
        low, high = interval.interval()
        assert low - 1e-9 <= np.mean(values) <= high + 1e-9  # alpha is too small for a population of 30 to fail
        interval.update(value)
    assert interval.interval() == (pytest.approx(np.mean(values), abs=1e-12),) * 2
    with pytest.raises(ValueError, match="no further draw"):
        interval.update(0.0)


def test_one_sided_ends_get_all_of_alpha() -> None:
    values = beta(np.random.default_rng(3), (50,))[0]
    both, lower, upper = MeanInterval(0.1), MeanInterval(0.05, side="lower"), MeanInterval(0.05, side="upper")
    for value in values:
        for interval in (both, lower, upper):
            interval.update(value)
    assert both.interval() == (lower.interval()[0], upper.interval()[1])
    assert (lower.interval()[1], upper.interval()[0]) == (1.0, 0.0)
    assert upper.interval()[1] == mean_upper_bound(values, 0.05)


def test_before_the_first_draw_the_interval_is_the_range() -> None:
    assert MeanInterval(0.05, -1.0, 2.0).interval() == (-1.0, 2.0)
    assert math.isnan(MeanInterval(0.05).mean)


@pytest.mark.slow
@pytest.mark.statistical
@pytest.mark.parametrize("law", [rare, coin, beta])
def test_an_interval_is_as_narrow_as_planned(law: Callable) -> None:
    generator, runs, draws, alpha, power = np.random.default_rng(4), 200, 300, 0.01, 0.9
    values, mean = law(generator, (runs, draws))
    deviation = float(np.std(law(generator, (100_000,))[0])) if law is beta else math.sqrt(mean * (1 - mean))
    planned = reachable_width(mean, deviation, draws, alpha, power=power)
    widths = []
    for run in values:
        low = 1 - mean_upper_bound(1 - run, alpha / 2)
        widths.append(mean_upper_bound(run, alpha / 2) - low)
    assert at_most(int((np.array(widths) > planned).sum()), runs, 1 - power)
    assert planned < 2.5 * np.median(widths)


def test_draws_and_width_are_inverse() -> None:
    draws = draws_to_width(0.1, 0.5, 0.2, 1e-6)
    assert reachable_width(0.5, 0.2, draws, 1e-6) <= 0.1 < reachable_width(0.5, 0.2, draws - 1, 1e-6)
    assert draws_to_width(0.05, 0.5, 0.2, 1e-6) > 3 * draws
    for mean, deviation, power in ((1.5, 0.0, 0.9), (0.1, 0.4, 0.9), (0.5, 0.1, 1.0)):
        with pytest.raises(ValueError, match=r"mean|deviation|power"):
            reachable_width(mean, deviation, 10, 0.05, power=power)
    with pytest.raises(ValueError, match="width must be positive"):
        draws_to_width(0.0, 0.5, 0.1, 0.05)


@pytest.mark.parametrize("value", [-1e-6, 1.001, math.nan])
def test_a_broken_scalar_range_never_passes(value: float) -> None:
    interval = MeanInterval(0.05)
    with pytest.raises(ValueError, match="range is broken"):
        interval.update(value)
    assert interval.draws == 0
    with pytest.raises(ValueError, match=r"lie in \[0, 1\]"):
        mean_upper_bound(np.array([value]), 0.05)


def test_an_interval_without_a_meaning_is_refused() -> None:
    for settings in ({"alpha": 0.0}, {"low": 1.0}, {"high": math.inf}, {"population": 0}, {"side": "left"}):
        with pytest.raises(ValueError, match=r"alpha|range|population|side"):
            MeanInterval(**{"alpha": 0.05, **settings})


# --- vectors -------------------------------------------------------------------------------------------------


def cluster(generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """One cluster of 40 carries the whole gradient [..., 2]."""
    scalars = np.where(generator.random(shape) < 1 / 40, 1.0, -1 / 39)
    return scalars[..., None] * np.array([0.6, 0.8])


def signs(generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return generator.choice([-1.0, 1.0], size=(*shape, 1))


def sphere(generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    normal = generator.normal(size=(*shape, 6))
    return normal / np.linalg.norm(normal, axis=-1, keepdims=True)


def nearly_zero(generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return sphere(generator, shape) * (generator.random((*shape, 1)) < 0.003)


def shifted(generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return 0.3 * sphere(generator, shape) + np.array([0.7, 0, 0, 0, 0, 0])


def fast_log_mixture(norms: np.ndarray, variances: np.ndarray) -> np.ndarray:
    """The mixture after every draw for many runs at once; sums and variances [runs, draws] in units of B."""
    growth = np.expm1(_RATES) - _RATES
    penalty = np.stack([np.log1p(rate * variances).cumsum(axis=-1) for rate in growth], axis=-1)
    argument = norms[..., None] * _RATES
    return log_mean_exp(argument + np.log1p(np.exp(-2 * argument)) - math.log(2) - penalty)


VECTOR_LAWS = [
    (cluster, 0.0),
    pytest.param(signs, 0.0, marks=pytest.mark.slow),
    pytest.param(sphere, 0.0, marks=pytest.mark.slow),
    (nearly_zero, 0.0),
    (shifted, 0.7),
]


def second_moment(law: Callable) -> float:
    return {cluster: 1 / 39, signs: 1.0, sphere: 1.0, nearly_zero: 0.003, shifted: 0.09 + 0.49}[law]


@pytest.mark.statistical
@pytest.mark.parametrize(("law", "size"), VECTOR_LAWS)
def test_both_halves_of_a_radius_hold_after_every_draw(law: Callable, size: float) -> None:
    draws = law(np.random.default_rng(5), (RUNS, DRAWS))
    moment = second_moment(law)
    mean = np.zeros(draws.shape[-1])
    mean[0] = size
    norms = np.linalg.norm((draws - mean).cumsum(axis=1), axis=2) / 2
    mixture = fast_log_mixture(norms, np.full((1, DRAWS), moment / 4)).max(axis=1)
    capital = fast_log_capital(np.minimum((draws**2).sum(axis=2), 1), moment).max(axis=1)
    for alpha in (0.05, 0.01):
        assert at_most(int((mixture > -math.log(alpha)).sum()), RUNS, alpha)
        assert at_most(int((capital > -math.log(alpha)).sum()), RUNS, alpha)


@pytest.mark.statistical
@pytest.mark.parametrize("law", [cluster, shifted])
def test_both_halves_hold_without_replacement(law: Callable) -> None:
    generator = np.random.default_rng(6)
    points = law(generator, (POPULATION,))
    points[0] = -points[0]
    mean, squares = points.mean(axis=0), np.minimum((points**2).sum(axis=1), 1)
    order = np.argsort(generator.random((RUNS, POPULATION)), axis=1)[:, :-1]
    left = POPULATION - np.arange(POPULATION - 1)
    draws = points[order]
    rest = (POPULATION * mean - (draws.cumsum(axis=1) - draws)) / left[:, None]
    past = squares[order].cumsum(axis=1) - squares[order]
    variances = (squares.sum() - past) / left
    mixture = fast_log_mixture(np.linalg.norm((draws - rest).cumsum(axis=1), axis=2) / 2, variances / 4).max(axis=1)
    assert at_most(int((mixture > -math.log(0.05)).sum()), RUNS, 0.05)
    # The norms of increments and of what is left never exceed what the proof needs.
    assert np.linalg.norm(draws - rest, axis=2).max() <= 2
    assert fast_log_mixture(np.zeros((1, 5)), np.zeros((1, 5))) == pytest.approx(0.0, abs=1e-12)


@given(st.lists(st.tuples(st.floats(-1, 1), st.floats(-1, 1)), min_size=2, max_size=3), st.integers(1, 4))
def test_the_expected_mixture_is_at_most_one(support: list[tuple[float, float]], draws: int) -> None:
    points = np.array(support) / math.sqrt(2)
    differences = (points - points.mean(axis=0)) / 2
    variance = float((differences**2).sum(axis=1).mean())
    sums = [np.linalg.norm(np.sum(path, axis=0)) for path in itertools.product(differences, repeat=draws)]
    expected = np.mean([math.exp(log_mixture(float(norm), np.array([variance]), draws)) for norm in sums])
    assert expected <= 1 + 1e-12
    fast = fast_log_mixture(np.full((1, draws), sums[0]), np.full((1, draws), variance))[0, -1]
    assert fast == pytest.approx(log_mixture(float(sums[0]), np.full(draws, variance)), abs=1e-9)


@pytest.mark.slow
@pytest.mark.statistical
@pytest.mark.parametrize(("law", "size"), [(cluster, 0.0), (shifted, 0.7)])
@pytest.mark.parametrize("population", [None, 40])
def test_the_radius_itself_covers_the_mean_after_every_draw(law: Callable, size: float, population: int | None) -> None:
    generator, alpha, runs = np.random.default_rng(7), 0.1, 60
    missed = 0
    for _ in range(runs):
        draws = law(generator, (40,))
        radius = BiasRadius({"only": 1.0}, alpha, population=population)
        truth = size if population is None else float(np.linalg.norm(draws.mean(axis=0)))
        failed = False
        for step, draw in enumerate(draws):
            radius.update({"only": draw})
            if step % 6 == 3:
                failed |= radius.upper() < truth - 1e-12
        missed += failed
    assert at_most(missed, runs, alpha)


def filled(draws: np.ndarray, bounds: tuple[float, float] = (1.0, 1.0), **settings: object) -> BiasRadius:
    """A radius with two blocks, of the first component and of the rest."""
    radius = BiasRadius({"a": bounds[0], "b": bounds[1]}, **{"alpha": 0.01, **settings})
    for draw in draws:
        radius.update({"b": draw[1:], "a": draw[:1]})
    return radius


def test_a_radius_is_what_its_two_halves_leave() -> None:
    draws = 0.5 * sphere(np.random.default_rng(8), (80,)) + 0.1
    radius = filled(draws)
    bound = math.sqrt(2)
    second = mean_upper_bound((draws**2).sum(axis=1) / 2, 0.005)
    edge = (80 * radius.upper() - np.linalg.norm(draws.sum(axis=0))) / (2 * bound)
    norms = np.zeros((1, 80))
    norms[0, -1] = edge
    at_edge = fast_log_mixture(norms, np.full((1, 80), second / 4))[0, -1]
    assert at_edge == pytest.approx(-math.log(0.005), abs=1e-6)
    assert np.linalg.norm(draws.mean(axis=0)) == pytest.approx(radius.mean_norm, rel=1e-12)


def test_a_radius_without_replacement_is_what_its_two_halves_leave() -> None:
    draws = 0.5 * sphere(np.random.default_rng(8), (300,)) + 0.01
    count, population = 150, 300
    radius = BiasRadius({"a": 1.0}, 0.01, population=population)
    for draw in draws[:count]:
        radius.update({"a": draw})
    squares = (draws**2).sum(axis=1)[:count]
    second = mean_upper_bound(squares, 0.005, population)
    known, weight, variances, past = np.zeros(6), 0.0, [], np.zeros(6)
    for step in range(count):
        left = population - step
        known += draws[step] + past / left
        weight += population / left
        variances.append((population * second - squares[:step].sum()) / left)
        past += draws[step]
    edge = (weight * radius.upper() - np.linalg.norm(known)) / 2
    assert log_mixture(edge, np.minimum(variances, 1) / 4) == pytest.approx(-math.log(0.005), abs=1e-6)


@given(st.integers(0, 2**32 - 1), st.integers(1, 20))
def test_a_census_gives_the_norm_of_the_mean(seed: int, population: int) -> None:
    draws = sphere(np.random.default_rng(seed), (population,))
    radius = filled(draws[:-1], population=population, alpha=1e-6)
    mean = np.linalg.norm(draws.mean(axis=0))
    logical = (np.linalg.norm(draws[:-1].sum(axis=0)) + math.sqrt(2)) / population
    assert mean - 1e-9 <= radius.upper() <= logical + 1e-12
    radius.update({"a": draws[-1, :1], "b": draws[-1, 1:]})
    assert radius.upper() == pytest.approx(mean, abs=1e-14)
    blocks = radius.block_uppers()
    assert blocks["a"] == pytest.approx(abs(draws[:, 0].mean()), abs=1e-14)
    assert math.hypot(*blocks.values()) == pytest.approx(mean, abs=1e-14)
    with pytest.raises(ValueError, match="no further draw"):
        radius.update({"a": [0.0], "b": [0.0] * 5})


@pytest.mark.parametrize("draws", [100, 1000, 10_000])
@pytest.mark.parametrize("alpha", [0.05, 1e-6])
def test_zero_draws_give_a_radius_of_order_log_over_draws(draws: int, alpha: float) -> None:
    radius = BiasRadius({"a": 3.0}, alpha)
    for _ in range(draws):
        radius.update({"a": [0.0]})
    assert 1.0 < radius.upper() * draws / (3.0 * math.log(2 * 27 / alpha)) < 2.2 or radius.upper() >= 1.0


@given(st.floats(1e-6, 1e6), st.integers(0, 2**32 - 1))
def test_the_radius_has_the_unit_of_its_draws(unit: float, seed: int) -> None:
    draws = 0.9 * sphere(np.random.default_rng(seed), (30,))
    plain, scaled = filled(draws), filled(draws * unit, bounds=(unit, unit))
    assert scaled.upper() == pytest.approx(unit * plain.upper(), rel=1e-9)
    for name, upper in plain.block_uppers().items():
        assert scaled.block_uppers()[name] == pytest.approx(unit * upper, rel=1e-9)


def test_blocks_share_alpha_unless_they_have_their_own() -> None:
    draws = 0.9 * sphere(np.random.default_rng(9), (200,))
    shared, own = filled(draws, alpha=0.02), filled(draws, block_alpha={"a": 0.01, "b": 0.001})
    alone = BiasRadius({"a": 1.0}, 0.01)
    for draw in draws:
        alone.update({"a": draw[:1]})
    assert shared.block_uppers()["a"] == own.block_uppers()["a"] == alone.upper()
    assert own.block_uppers()["b"] > shared.block_uppers()["b"]
    assert own.upper() > shared.upper()


def test_tolerances_are_added() -> None:
    radius = BiasRadius({"zero": 0.0, "a": 1.0}, 0.01, tolerance={"zero": 1e-12, "a": 0.0})
    for _ in range(50):
        radius.update({"zero": [1e-12, 0.0], "a": [0.0]})
    assert 1e-12 <= radius.block_uppers()["zero"] <= 2e-12
    assert BiasRadius({"zero": 0.0}, 0.01).upper() == 0.0
    census = BiasRadius({"a": 1.0}, 0.01, population=1, tolerance=0.25)
    census.update({"a": [0.5]})
    assert census.upper() == 0.75


@pytest.mark.parametrize("block", [[0.8, 0.7], [math.nan, 0.0]])
def test_a_broken_range_never_passes_and_leaves_no_trace(block: list[float]) -> None:
    radius = BiasRadius({"fine": 1.0, "broken": 1.0}, 0.05)
    with pytest.raises(ValueError, match=r"'broken'.*range is broken"):
        radius.update({"fine": [0.5], "broken": block})
    assert radius.draws == 0
    assert radius.upper() == math.sqrt(2)
    assert math.isnan(radius.mean_norm)


def test_a_radius_without_a_meaning_is_refused() -> None:
    for settings in (
        {"alpha": 0.0},
        {"population": 0},
        {"block_alpha": {"a": 0.1}},
        {"block_alpha": {"a": 0.1, "b": 2.0}},
    ):
        with pytest.raises(ValueError, match=r"alpha|point|probabilities"):
            filled(np.zeros((0, 2)), **settings)


@pytest.mark.slow
@pytest.mark.statistical
@pytest.mark.parametrize("law", [cluster, signs, sphere, nearly_zero])
def test_a_radius_is_as_small_as_planned(law: Callable) -> None:
    runs, draws, alpha, power = 60, 400, 1e-4, 0.8
    planned = resolvable_bias(1.0, second_moment(law), draws, alpha, power=power)
    reached = []
    for run in law(np.random.default_rng(10), (runs, draws)):
        radius = BiasRadius({"only": 1.0}, alpha)
        for draw in run:
            radius.update({"only": draw})
        reached.append(radius.upper())
    assert at_most(int((np.array(reached) > planned).sum()), runs, 1 - power)
    assert planned < 2 * np.median(reached)


@pytest.mark.slow
@given(st.floats(0.02, 0.9), st.floats(0, 1), st.sampled_from([0.05, 1e-6]))
def test_draws_and_bound_are_inverse(target: float, share: float, alpha: float) -> None:
    bound = 5.0
    settings = {"bound": bound, "second_moment": share * bound**2, "alpha": alpha}
    draws = draws_to_bound(target * bound, **settings)
    assert resolvable_bias(draws=draws, **settings) <= target * bound < resolvable_bias(draws=draws - 1, **settings)


def test_plans_without_a_meaning_are_refused() -> None:
    for bound, moment, power in ((-1.0, 0.0, 0.9), (1.0, 2.0, 0.9), (1.0, -0.1, 0.9), (1.0, 0.5, 1.0)):
        with pytest.raises(ValueError, match=r"bound|second moment|power"):
            resolvable_bias(bound, moment, 10, 0.05, power=power)
    with pytest.raises(ValueError, match="target"):
        draws_to_bound(0.0, 1.0, 0.5, 0.05)
    assert resolvable_bias(0.0, 0.0, 10, 0.05) == 0.0
