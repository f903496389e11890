"""The ends of an asymptotic confidence sequence hold at the stated level, wherever the draws show that they can.

Where they do not (a rare draw that was not seen makes up for all others) the table of docs/statistics.md says how often
they fail; a test holds it to its command. Streams are simulated from fixed seeds.
"""

from __future__ import annotations

import math
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from lmc_verify.errors import InvalidInputError, NotFiniteError
from lmc_verify.statistics import AsymptoticBias
from lmc_verify.statistics.asymptotic import bias as module
from lmc_verify.statistics.asymptotic import first_look
from lmc_verify.statistics.asymptotic.groups import GroupedDraws
from lmc_verify.statistics.asymptotic.projections import BETS, REACH, LowerEnd, log_capital, scale_of
from lmc_verify.statistics.asymptotic.spheres import PRIORS, Scatter, skewed_level, squared_reach
from lmc_verify.statistics.exclusion import UNSEEN, draws_to_exclude

ROOT = Path(__file__).parents[2]
Array = npt.NDArray[np.float64]
Sampler = Callable[[np.random.Generator, tuple[int, ...]], Array]


def follow(
    values: Array, alpha: float, looks: tuple[int, ...] = (), **given: Any
) -> tuple[AsymptoticBias, list[float]]:
    """Feed draws [draws, entries] as one block and return the upper ends at the looks."""
    bias, uppers = AsymptoticBias(["a"], alpha, **given), []
    for count, draw in enumerate(values, 1):
        bias.update({"a": draw})
        if count in looks:
            uppers.append(bias.upper()["a"])
    return bias, uppers


# --- level ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.statistical
def test_the_table_of_the_page_is_what_its_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    """300 streams of each: no end fails more often than its half of alpha, but where a rare draw is unseen."""
    runpy.run_path(str(ROOT / "reports" / "asymptotic.py"))["main"]([])
    header, line, *rows = capsys.readouterr().out.splitlines()
    page = (ROOT / "docs" / "statistics.md").read_text(encoding="utf-8")
    assert f"{header}\n{line}\n" in page
    assert len(rows) == 18
    for row in rows:
        label, *shares = row.rstrip("| ").rsplit("|", 3)
        stated = next(other for other in page.splitlines() if other.startswith(label)).rstrip("| ").rsplit("|", 3)[1:]
        assert [float(share) for share in shares] == pytest.approx([float(share) for share in stated], abs=0.0101)
        low, high, known = map(float, shares)
        alpha = float(label.rsplit("|", 1)[1])
        most = alpha / 2 + 3 * math.sqrt(alpha / 2 / 300)
        assert high <= most, row
        assert low <= most or "99, the others are -1" in label, row
        assert known > 0.9 or not label.startswith("| normal ")


@pytest.mark.slow
@pytest.mark.statistical
@pytest.mark.parametrize("name", ["normal", "exponential", "log-normal", "correlated", "t"])
def test_level_in_fifty_dimensions(name: str) -> None:
    """40 streams of 400 draws at alpha = 0.2: either end fails in at most 4 + 3 * 1.9 of them."""
    rng, alpha, failed = np.random.default_rng(1), 0.2, np.zeros(2)
    factor = rng.standard_normal(50)
    mean = math.sqrt(50) * {"exponential": 1.0, "log-normal": math.exp(0.5)}.get(name, 0.0)
    for _ in range(40):
        values = {
            "normal": lambda: rng.standard_normal((400, 50)),
            "exponential": lambda: rng.standard_exponential((400, 50)),
            "log-normal": lambda: np.exp(rng.standard_normal((400, 1))) * np.ones(50),
            "correlated": lambda: (rng.standard_exponential((400, 1)) - 1) * factor + rng.standard_normal((400, 50)),
            "t": lambda: rng.standard_t(3, (400, 50)),
        }[name]()
        bias, uppers = follow(values, alpha, (32, 40, 50, 70, 100, 150, 250, 400))
        failed += [bias.lower()["a"] > mean, min(uppers) < mean]
    assert (failed <= 9).all()


@pytest.mark.statistical
@pytest.mark.parametrize("skewed", [False, True])
def test_level_in_two_thousand_dimensions(skewed: bool) -> None:
    """12 streams of 200 draws at alpha = 0.2: either end fails in at most 1.2 + 3 * 1.1 of them."""
    rng, failed = np.random.default_rng(2), np.zeros(2)
    mean = math.sqrt(2000) * skewed
    for _ in range(12):
        values = rng.standard_exponential((200, 2000)) if skewed else rng.standard_normal((200, 2000))
        bias, uppers = follow(values, 0.2, (32, 50, 80, 130, 200))
        failed += [bias.lower()["a"] > mean, min(uppers) < mean]
    assert (failed <= 4).all()


@pytest.mark.statistical
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_level_of_skewed_draws_is_kept_far_in_the_tail(sign: float) -> None:
    """Exponential draws less their mean, alpha = 1e-6: probabilities by importance sampling (exponential tilting).

    A normal tail for the self-normalised sum, at the best bet in hindsight, is wrong there: skewness counts.
    """
    alpha, draws, rng = 5e-7, 200, np.random.default_rng(3)
    level, worst, worst_plain = -math.log(alpha), 0.0, 0.0
    for tilt in np.linspace(0.05, 0.75, 8) * sign:
        waits = rng.exponential(1 - tilt, (2000, draws))
        ratio = np.exp(draws * math.log(1 - tilt) + (1 / (1 - tilt) - 1) * waits.sum(axis=1))
        values = sign * (1 - waits)
        values /= scale_of(values[:, : first_look(2 * alpha)])[:, np.newaxis]
        below = np.maximum(-values, 0.0)
        sums, squares, cubes = values.sum(axis=1), (values**2).sum(axis=1), (below**3).sum(axis=1)
        worst = max(worst, float((ratio * (log_capital(sums, squares, cubes, below.max(axis=1)) >= level)).mean()))
        plain = (sums > 0) & (sums**2 / (2 * squares) >= level)
        worst_plain = max(worst_plain, float((ratio * plain).mean()))
    assert worst <= alpha
    assert worst_plain > 2 * alpha or sign < 0


# --- power ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dimension", [1, 50, 2000])
def test_a_bias_of_twelve_standard_errors_is_found_within_two_hundred_draws(dimension: int) -> None:
    """At alpha = 1e-6 for three blocks of which one has a mean; it alone is named."""
    rng = np.random.default_rng(4)
    length = 12 * math.sqrt(dimension / 200)  # of the mean, in units of the average's standard error at 200 draws
    mean = np.full(dimension, length / math.sqrt(dimension))
    bias = AsymptoticBias(["first", "second", "third"], 1e-6)
    for _ in range(200):
        noise = rng.standard_normal((3, dimension))
        bias.update({"first": noise[0], "second": noise[1] + mean, "third": noise[2]})
    assert bias.rejects
    assert bias.rejected_blocks() == ("second",)
    assert 0 < bias.lower()["second"] < length
    assert bias.lower()["first"] == bias.lower()["third"] == 0


def test_the_ends_close_in_on_the_mean() -> None:
    rng = np.random.default_rng(5)
    bias, uppers = follow(2 + rng.standard_normal((6000, 1)), 1e-3, (200, 1000, 6000))
    assert bias.lower()["a"] > 1.92
    assert uppers[-1] < 2.11
    assert uppers == sorted(uppers, reverse=True)


def test_a_bias_that_is_nothing_but_a_shift_is_found_at_the_first_look() -> None:
    bias, _ = follow(np.full((200, 3), 0.25), 1e-6)
    assert bias.rejects
    assert bias.lower()["a"] == pytest.approx(0.25 * math.sqrt(3), rel=2e-3)


# --- ends against slow ones ----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ["normal", "log-normal, less its mean", "exponential"])
def test_the_simulation_of_the_table_is_the_class(name: str) -> None:
    report = runpy.run_path(str(ROOT / "reports" / "asymptotic.py"))
    row = next(row for row in report["ROWS"] if row.name == name)
    alpha, values = 0.9, row.draw(np.random.default_rng(6), (12, report["DRAWS"]))
    failures = report["lower_failures"](values - row.mean, 0.0, alpha / 2)
    uppers = report["upper_ends"](values, alpha / 2)
    found = [follow(stream[:, np.newaxis], alpha, report["LOOKS"]) for stream in values]
    np.testing.assert_allclose([ends for _, ends in found], uppers, rtol=1e-9)
    tested = [follow(stream[:, np.newaxis] - row.mean, alpha)[0].rejects for stream in values]
    assert np.logical_or(tested, ~failures).all(), "the class looks after every draw, the simulation at some"


@pytest.mark.slow
def test_the_lower_end_is_what_a_scan_of_all_norms_excludes() -> None:
    rng = np.random.default_rng(7)
    values = 0.6 + rng.standard_exponential(150) - 0.4 * rng.standard_normal(150)
    values[70] -= 2  # bets that such a draw could ruin take no part
    end = LowerEnd(0.01, 0.0, 32, 8.0)
    for value in values:
        end.add(value)
    scale, level = float(scale_of(values[:32])), math.log(100) + math.log(2)

    def capital(norm: float) -> float:
        scaled = (values - norm) / scale
        below = [max(-value, 0.0) for value in scaled]
        terms = [
            math.exp(bet * sum(scaled) - bet**2 / 2 * sum(scaled**2) - bet**3 / 3 * sum(value**3 for value in below))
            for bet in BETS
            if bet * REACH * max(below) <= 1
        ]
        return math.log(sum(terms) / len(BETS))

    excluded = [norm for norm in np.linspace(0, 2, 401) if capital(norm) >= level]
    assert excluded == [norm for norm in np.linspace(0, 2, 401) if norm <= excluded[-1]], "an interval from zero"
    assert end.value() == pytest.approx(excluded[-1], abs=5.1e-3)


def test_bets_that_a_draw_beyond_those_seen_could_ruin_take_no_part() -> None:
    kept = [bet for bet in BETS if bet * 1.5 * 4.0 <= 1]
    expected = sum(math.exp(bet * 30.0 - bet**2 * 50.0 - bet**3 * 64.0 / 3) for bet in kept) / len(BETS)
    assert float(log_capital(30.0, 100.0, 64.0, 4.0)) == pytest.approx(math.log(expected))
    assert log_capital(30.0, 100.0, 64.0, 1.0) > math.log(expected)


@pytest.mark.parametrize("dimension", [1, 3, 80])
def test_no_mean_outside_the_sphere_is_allowed_by_the_mixture(dimension: int) -> None:
    """Determinant and inverse in full, against the bound from eigenvalues; along the widest axis the bound is tight."""
    rng, count, level = np.random.default_rng(8), 60, 9.0
    rows = rng.standard_normal((count, dimension)) * np.linspace(1, 2, dimension)
    average, kept = rows.mean(axis=0), GroupedDraws(dimension, 128)
    for row in rows:
        kept.add(row)
    scatter = Scatter(kept, None)
    assert Scatter(kept, rows @ rows.T).eigenvalues[-1] == pytest.approx(scatter.eigenvalues[-1])
    prior = np.array([8 / scatter.trace])
    reach = math.sqrt(squared_reach(scatter.eigenvalues, count, level, prior)) / count

    def evidence(mean: Array) -> float:
        deviations = rows - mean
        total, metric = deviations.sum(axis=0), np.eye(dimension) + prior[0] * deviations.T @ deviations
        return float(prior[0] * total @ np.linalg.solve(metric, total) - np.linalg.slogdet(metric)[1])

    centred = rows - average
    widest = np.linalg.eigh(centred.T @ centred)[1][:, -1]
    for direction in (*rng.standard_normal((20, dimension)), widest):
        assert evidence(average + 1.0001 * reach * direction / np.linalg.norm(direction)) >= level
    assert evidence(average + 0.9999 * reach * widest) < level


def test_in_one_dimension_the_sphere_is_robbins_interval_at_some_cost() -> None:
    """`ville` 0.1.0 gives these half widths as AsymptoticCS(alpha, t_opt=400).fit(x)."""
    values = np.sin(np.arange(1, 401) ** 2)
    robbins = {(0.05, 200): 0.15329928508046298, (0.05, 400): 0.10767483338807769, (1e-6, 400): 0.20099703687193607}
    for (alpha, count), half in robbins.items():
        past = values[:count] - values[:count].mean()
        square = float(past @ past)
        level = 2 * (-math.log(alpha) + math.log(PRIORS.size))
        found = math.sqrt(squared_reach(np.array([square]), count, level, PRIORS * count / square)) / count
        assert half < found < 1.4 * half


def test_skewness_widens_the_level() -> None:
    assert skewed_level(30.0, 0.0) == pytest.approx(30.0)
    z = math.sqrt(skewed_level(30.0, 0.05))
    assert z > math.sqrt(30)
    assert z**2 * (1 - 2 * 0.05 * z / 3) == pytest.approx(30.0)
    limit = 1 / math.sqrt(3 * 30.0)
    assert math.isfinite(skewed_level(30.0, 0.999 * limit))
    assert math.isinf(skewed_level(30.0, 1.001 * limit))


def test_skewness_is_that_of_the_sum_in_the_widest_direction_and_in_that_of_the_average() -> None:
    rng = np.random.default_rng(9)
    skewed, plain = rng.standard_exponential(300), rng.standard_normal(300)
    centred = skewed - skewed.mean()
    expected = float((centred**3).sum() / (centred**2).sum() ** 1.5)
    for rows, found in (
        (np.stack([9 * skewed, plain], axis=1), expected),  # the widest direction
        (np.stack([skewed, 9 * (plain - plain.mean())], axis=1), expected),  # that of the average
        (np.stack([skewed - skewed.mean(), 9 * plain + 90], axis=1), 0.0),
        (np.stack([-skewed, 9 * (plain - plain.mean())], axis=1), expected),  # more negative: larger than seen
    ):
        kept = GroupedDraws(2, 512)
        for row in rows:
            kept.add(row)
        assert Scatter(kept, None).skewness == pytest.approx(found, abs=0.03)
        assert Scatter(kept, rows @ rows.T).skewness == pytest.approx(Scatter(kept, None).skewness, rel=1e-6)


# --- memory --------------------------------------------------------------------------------------------------------


def test_groups_are_sums_of_consecutive_draws() -> None:
    values, kept = np.arange(1.0, 100.0)[:, np.newaxis], GroupedDraws(1, 8)
    for count, value in enumerate(values, 1):
        kept.add(value)
        assert len(kept) <= 8
        assert kept.size == 2**kept.level
        assert kept.draws <= count < kept.draws + 2 * kept.size
        expected = values[: kept.draws, 0].reshape(-1, kept.size).sum(axis=1)
        np.testing.assert_array_equal(kept.rows[:, 0], expected)
    assert kept.size == 16


def test_levels_together_spend_one_alpha() -> None:
    kept, total = GroupedDraws(1, 2), 0.0
    for kept.level in range(100_000):
        total += math.exp(-kept.penalty)
    assert 0.9999 < total <= 1


def test_every_end_of_every_block_gets_an_equal_share_of_alpha() -> None:
    """Two blocks have four ends: each is that of one block alone at a quarter of the level."""
    values = 0.4 + np.random.default_rng(12).standard_normal((400, 3))
    both = AsymptoticBias(["a", "b"], 0.02)
    alone = module._Block(0.02 / 4, 0.0, 0.0, first_look(0.02, 2))
    for value in values:
        both.update({"a": value, "b": 2 * value})
        alone.add(value, module.SHORT_GROUPS)
    alone.look()
    assert 0 < both.lower()["a"] == alone.lower.value()
    assert both.upper()["a"] == alone.upper < math.inf


@pytest.mark.parametrize("dimension", [1, 40])
def test_less_memory_costs_little(dimension: int, monkeypatch: pytest.MonkeyPatch) -> None:
    values = 0.5 + np.random.default_rng(10).standard_normal((1500, dimension))
    rich, uppers = follow(values, 0.01, (300, 1500))
    monkeypatch.setattr(module, "SHORT_GROUPS", 256)
    poor, wider = follow(values, 0.01, (300, 1500))
    norm = float(np.linalg.norm(np.full(dimension, 0.5)))
    assert norm < uppers[-1] < wider[-1] < norm + 3 * (uppers[-1] - norm)
    assert poor.standard_errors()["a"] == pytest.approx(rich.standard_errors()["a"], rel=0.2)
    assert poor.lower() == rich.lower()


def test_long_blocks_are_kept_in_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """By their Gram matrix, which gives what the scatter gives."""
    values = 0.2 + np.random.default_rng(11).standard_normal((300, 600))
    monkeypatch.setattr(module, "BYTES", 8 * 600 * 160)
    bias, uppers = follow(values, 0.05, (120, 300))
    kept = bias._blocks["a"].sphere
    assert kept is not None
    assert len(kept.draws) <= 160
    assert kept.draws.level > 0
    np.testing.assert_allclose(kept._products(), kept.draws.rows @ kept.draws.rows.T)
    assert np.isfinite(uppers).all()
    monkeypatch.setattr(module, "SHORT", 600)
    monkeypatch.setattr(module, "SHORT_GROUPS", 160)
    _, others = follow(values, 0.05, (120, 300))
    np.testing.assert_allclose(uppers, others, rtol=1e-9)


# --- what is left undecided ----------------------------------------------------------------------------------------


def test_nothing_is_said_before_the_first_look() -> None:
    assert first_look(0.05) == 32
    assert first_look(1e-6, 3) == math.ceil(8 * math.log(6e6))
    first = first_look(1e-6)
    bias, _ = follow(np.full((first, 1), 1.0), 1e-6)  # the first draw has no direction
    assert not bias.rejects
    assert bias.lower() == {"a": 0.0}
    bias.update({"a": [1.0]})
    assert bias.rejects
    few, _ = follow(np.zeros((5, 1)), 1e-6)
    assert few.lacking()["a"] == f"5 draws, {first} are needed before the first look"


def test_a_draw_that_dominates_leaves_the_upper_end_open() -> None:
    rng = np.random.default_rng(12)
    values = 0.01 * rng.standard_normal((300, 1))
    values[17] = 1.0
    bias, uppers = follow(values, 0.05, (300,))
    assert uppers == [math.inf]
    assert "one of 300 draws has 0.97 of the sum of squares, at most 0.12 is allowed" in bias.lacking()["a"]


def test_skewed_draws_leave_the_upper_end_open_until_they_are_enough() -> None:
    values = np.random.default_rng(13).standard_exponential((1200, 1))
    bias, uppers = follow(values, 0.01, (60, 1200))
    assert math.isinf(uppers[0])
    assert 1 < uppers[1] < 1.4
    assert bias.lacking() == {}


@pytest.mark.parametrize("size", [0.0, 1e-14])
def test_equal_draws_are_supported_once_a_share_of_others_is_excluded(size: float) -> None:
    alpha = 0.05
    needed = draws_to_exclude(UNSEEN, alpha / 2)
    values = size * np.random.default_rng(14).uniform(-1, 1, (needed, 1))
    bias, uppers = follow(values, alpha, (needed - 1, needed), tolerance=1e-13, margin=0.1)
    assert math.isinf(uppers[0])
    assert 1e-13 <= uppers[1] < 1.2e-13
    assert bias.supports
    assert not bias.rejects


# --- tolerance and margin ------------------------------------------------------------------------------------------


def test_a_mean_of_the_size_of_rounding_is_no_evidence() -> None:
    values = 1e-13 + 1e-15 * np.random.default_rng(15).standard_normal((400, 1))
    assert follow(values, 0.01)[0].rejects
    found, _ = follow(values, 0.01, tolerance={"a": 2e-13})
    assert not found.rejects
    assert found.lower() == {"a": 0.0}
    assert follow(3 * values, 0.01, tolerance=2e-13)[0].lower()["a"] == pytest.approx(1e-13, rel=0.02)


def test_a_margin_is_the_largest_mean_that_is_not_rejected() -> None:
    values = 1 + 0.5 * np.random.default_rng(16).standard_normal((900, 1))
    below, _ = follow(values, 0.01, margin=0.8)
    assert below.rejects
    assert not below.supports
    above, _ = follow(values, 0.01, margin={"a": 1.2})
    assert not above.rejects
    assert above.supports
    close, _ = follow(values, 0.01, margin=1.0)
    assert not close.rejects
    assert not close.supports
    assert not follow(values, 0.01)[0].supports, "nothing is asked for"


# --- numbers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unit", [2.0**-300, 2.0**300])
def test_the_unit_does_not_matter(unit: float) -> None:
    values = 0.3 + np.random.default_rng(17).standard_normal((300, 2))
    one, uppers = follow(values, 0.05, (300,))
    other, scaled = follow(unit * values, 0.05, (300,))
    assert scaled[0] == pytest.approx(unit * uppers[0], rel=1e-9)
    assert other.lower()["a"] == pytest.approx(unit * one.lower()["a"], rel=1e-9)
    assert one.rejects == other.rejects


def test_means_and_standard_errors_are_those_of_the_draws() -> None:
    values = np.random.default_rng(18).standard_normal((80, 5))
    bias, _ = follow(values, 0.05)
    np.testing.assert_allclose(bias.means()["a"], values.mean(axis=0))
    assert bias.standard_errors()["a"] == pytest.approx(math.sqrt(values.var(axis=0, ddof=1).sum() / 80))
    assert bias.draws == 80
    fresh = AsymptoticBias({"a": 2}, 0.05)
    assert np.isnan(fresh.means()["a"]).tolist() == [True, True]
    assert math.isnan(fresh.standard_errors()["a"])
    assert fresh.upper() == {"a": math.inf}


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"blocks": []}, InvalidInputError, "at least one block"),
        ({"blocks": ["a", "a"]}, InvalidInputError, "each once"),
        ({"blocks": {"a": 0}}, InvalidInputError, "0 entries"),
        ({"alpha": 0.0}, ValueError, "alpha"),
        ({"tolerance": -1.0}, InvalidInputError, "tolerance of block 'a'"),
        ({"margin": {"b": 1.0}}, InvalidInputError, "the margin names"),
        ({"margin": math.nan}, InvalidInputError, "margin of block 'a'"),
    ],
)
def test_what_cannot_be_tested_is_refused(given: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        AsymptoticBias(**{"blocks": ["a"], "alpha": 0.1, **given})


@pytest.mark.parametrize(
    ("draw", "error", "words"),
    [
        ({"b": [1.0, 2.0]}, InvalidInputError, "expected"),
        ({"a": [1.0]}, InvalidInputError, "1 entries, expected 2"),
        ({"a": [1.0, math.nan]}, NotFiniteError, "block 'a' of draw 2"),
        ({"a": [1.0, -math.inf]}, NotFiniteError, "not finite"),
        ({"a": [1.0, -1e121]}, InvalidInputError, "in a larger unit"),
    ],
)
def test_a_draw_that_does_not_fit_changes_nothing(draw: dict[str, Any], error: type[Exception], words: str) -> None:
    bias = AsymptoticBias(["a"], 0.1)
    bias.update({"a": [3.0, 4.0]})
    with pytest.raises(error, match=words):
        bias.update(draw)
    assert bias.draws == 1
    assert bias.means()["a"].tolist() == [3.0, 4.0]
