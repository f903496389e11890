"""A rate is read from a curve only if a plateau at its end can be excluded, at the stated level; simulated."""

from __future__ import annotations

import math
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from lmc_verify.statistics import FloorReading, fit_power, floors, loglog_slope, median_interval

LENGTHS = [32.0, 64.0, 128.0, 256.0, 512.0]
LIMIT = -1 / 6
ROOT = Path(__file__).parents[2]
Curves = npt.NDArray[np.float64]


def curve(exponent: float, floor: float, x: Any = LENGTHS) -> Curves:
    """Return a decay from 1 onto a floor, as a part of the start."""
    values: Curves = (1 - floor) * (np.asarray(x) / x[0]) ** -exponent + floor
    return values


def noisy(mean: Curves, scatter: float, seeds: int, rng: np.random.Generator, kind: str = "factor") -> Curves:
    noise = scatter * rng.standard_normal((seeds, mean.size))
    return mean * (np.exp(noise) if kind == "factor" else np.clip(1 + noise, 0.02, None))


def supported(curves: Curves, alpha: float, x: Any = LENGTHS) -> tuple[bool, bool]:
    """Return whether the slope alone would support the rate, and whether slope and floor do."""
    slope = median_interval([loglog_slope(x, row) for row in curves], alpha).inside(upper=LIMIT)
    return slope, slope and FloorReading(x, curves, LIMIT, alpha).clear


@pytest.mark.slow
@pytest.mark.parametrize(("exponent", "floor"), [(0.5, 1 / 3), (0.75, 1 / 3), (1.0, 1 / 3), (0.75, 0.5)])
@pytest.mark.parametrize("kind", ["factor", "term"])
def test_a_decay_onto_a_plateau_keeps_no_rate(exponent: float, floor: float, kind: str) -> None:
    """2,400 curves of ten seeds, by plateau and noise: the slope alone supports most, with the floor at most alpha."""
    rng, alpha, count = np.random.default_rng(0), 0.05, 300
    found = np.array([supported(noisy(curve(exponent, floor), 0.1, 10, rng, kind), alpha) for _ in range(count)]).mean(
        axis=0
    )
    assert found[0] > (0.6 if floor < 0.5 else 0.0), "the slope alone is fooled"
    assert found[1] <= alpha


@pytest.mark.slow
def test_level_on_the_boundary_of_the_null_hypothesis() -> None:
    """Curves whose slope at the end is the limit itself: it is called steeper with at most alpha / 2, simulated."""
    rng, alpha, count, hits = np.random.default_rng(1), 0.2, 1_000, 0
    for index in range(count):
        exponent = (0.25, 0.4, 0.8)[index % 3]
        share = 1 + LIMIT / exponent
        end = (LENGTHS[-1] / LENGTHS[0]) ** -exponent * (1 - share) / share
        floor = 1 / (1 + end / (LENGTHS[-1] / LENGTHS[0]) ** -exponent)
        hits += FloorReading(LENGTHS, noisy(curve(exponent, floor), 0.05, 8, rng), LIMIT, alpha).keeps_slope
    assert hits / count <= alpha / 2 + 3 * math.sqrt(alpha / 2 / count)


@pytest.mark.parametrize(
    ("lengths", "scatter", "seeds", "alpha", "power"),
    [
        pytest.param(LENGTHS, 0.05, 40, 1e-6, 0.9, marks=pytest.mark.slow),
        pytest.param([16.0, 64.0, 256.0, 1024.0], 0.05, 23, 1e-6, 0.9, marks=pytest.mark.slow),
        (LENGTHS, 0.1, 40, 0.01, 0.7),
    ],
)
def test_power_at_a_true_rate_without_a_floor(
    lengths: list[float], scatter: float, seeds: int, alpha: float, power: float
) -> None:
    rng, count = np.random.default_rng(2), 100
    found = [supported(noisy(curve(1 / 3, 0.0, lengths), scatter, seeds, rng), alpha, lengths) for _ in range(count)]
    assert np.mean([both for _, both in found]) >= power


@pytest.mark.slow
def test_interval_holds_the_true_share_at_its_level() -> None:
    rng, alpha, count, missed = np.random.default_rng(3), 0.2, 120, 0
    for index in range(count):
        floor = (0.0, 0.1, 1 / 3)[index % 3]
        mean = curve(0.6, floor)
        low, high = FloorReading(LENGTHS, noisy(mean, 0.03, 10, rng), LIMIT, alpha).interval
        assert 0 <= low <= high <= 1
        missed += not low - 1e-3 <= floor / mean[-1] <= high + 1e-3
    assert missed / count <= alpha + 3 * math.sqrt(alpha / count)


@pytest.mark.parametrize(("exponent", "floor"), [(1 / 3, 0.0), (0.5, 1 / 3), (1.0, 0.2), (2.0, 0.05), (0.17, 0.5)])
def test_fit_finds_exact_curves(exponent: float, floor: float) -> None:
    found, mean = fit_power(LENGTHS, curve(exponent, floor).tolist()), curve(exponent, floor)
    assert found.error < 1e-6
    assert found.exponent == pytest.approx(exponent, rel=1e-3)
    assert found.floor == pytest.approx(floor, abs=1e-4)
    assert found.share == pytest.approx(floor / mean[-1], abs=1e-3)
    for low, high in [FloorReading(LENGTHS, np.tile(mean, (9, 1)), LIMIT, 0.01).interval]:
        assert low - 2e-3 <= floor / mean[-1] <= high + 2e-3
        assert high - low < 0.02, "without scatter the interval is a point"


def test_fit_agrees_with_a_general_optimiser() -> None:
    from scipy.optimize import least_squares

    rng = np.random.default_rng(4)
    for _ in range(5):
        values = noisy(curve(0.7, 0.25), 0.05, 1, rng)[0]

        def residual(point: Curves, values: Curves = values) -> Curves:
            decay = point[0] * (np.asarray(LENGTHS) / LENGTHS[-1]) ** -point[2]
            return np.asarray((decay + point[1]) / values - 1)

        starts = [(values[-1] * part, values[-1] * (1 - part), r) for part in (0.2, 0.8) for r in (0.3, 1.0)]
        bounds = ([0, 0, 1e-2], [np.inf, np.inf, 16])
        slow = min((least_squares(residual, start, bounds=bounds) for start in starts), key=lambda found: found.cost)
        fast = fit_power(LENGTHS, values.tolist())
        assert fast.error <= math.sqrt(2 * slow.cost / values.size) * (1 + 1e-6)
        assert fast.floor == pytest.approx(slow.x[1], abs=2e-3)


@pytest.mark.slow
def test_the_table_of_the_page_is_what_its_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    """To within three verdicts of 300: fits may end differently in the last bit."""
    runpy.run_path(str(ROOT / "reports" / "floors.py"))["main"]([])
    header, line, *rows = capsys.readouterr().out.splitlines()
    page = (ROOT / "docs" / "statistics.md").read_text(encoding="utf-8")
    assert f"{header}\n{line}\n" in page
    for row in rows:
        labels, *shares = row.rstrip("| ").rsplit("|", 2)
        stated = next(other for other in page.splitlines() if other.startswith(labels)).rstrip("| ").rsplit("|", 2)[1:]
        assert [float(share) for share in shares] == pytest.approx([float(share) for share in stated], abs=0.0101)
    assert len(rows) == 5


def test_both_conditions_are_needed() -> None:
    """A small floor may leave the slope at the end flat; a steep end may have a floor near."""
    flat = FloorReading(LENGTHS, np.tile(curve(0.18, 0.06), (9, 1)), LIMIT, 0.01)
    assert not flat.near
    assert not flat.keeps_slope
    assert not flat.clear
    steep = FloorReading(LENGTHS, np.tile(curve(0.7, 0.1), (9, 1)), LIMIT, 0.01)
    assert steep.keeps_slope
    assert steep.near
    assert not steep.clear
    both = FloorReading(LENGTHS, np.tile(curve(0.35, 0.0), (9, 1)), LIMIT, 0.01)
    assert both.clear


@pytest.mark.parametrize(("share", "near"), [(0.19, False), (0.21, True)])
def test_a_floor_is_near_from_a_fifth_of_the_last_mean_on(share: float, near: bool) -> None:
    decayed = (LENGTHS[-1] / LENGTHS[0]) ** -0.5
    floor = share * decayed / (1 - share + share * decayed)  # so that floor / last = share
    mean = curve(0.5, floor)
    assert floor / mean[-1] == pytest.approx(share)
    assert FloorReading(LENGTHS, np.tile(mean, (9, 1)), LIMIT, 0.01).near is near


def test_the_length_that_decides_decides() -> None:
    """Curves that go on falling, up to the length that was named: most are clear there, and few were before."""
    rng, alpha = np.random.default_rng(5), 0.01
    first = FloorReading(LENGTHS, noisy(curve(1 / 3, 0.0), 0.15, 10, rng), LIMIT, alpha)
    assert not first.keeps_slope
    longest = first.deciding_length()
    assert longest is not None
    assert 1_024 <= longest <= 200_000
    lengths = [32.0 * 2**index for index in range(20) if 32 * 2**index <= longest]
    found = [
        FloorReading(lengths, noisy(curve(1 / 3, 0.0, lengths), 0.15, 10, rng), LIMIT, alpha).keeps_slope
        for _ in range(40)
    ]
    assert np.mean(found) > 0.6


def test_no_length_decides_where_seeds_or_slope_do_not() -> None:
    rng = np.random.default_rng(6)
    assert FloorReading(LENGTHS, noisy(curve(1 / 3, 0.0), 0.1, 3, rng), LIMIT, 1e-3).deciding_length() is None
    flat = FloorReading(LENGTHS, noisy(curve(0.1, 0.0), 0.1, 12, rng), LIMIT, 1e-3)
    assert flat.deciding_length() is None


def test_too_few_seeds_exclude_nothing() -> None:
    found = FloorReading(LENGTHS, np.tile(curve(1 / 3, 0.0), (2, 1)), LIMIT, 0.01)
    assert not found.keeps_slope
    assert found.interval == (0.0, 1.0)


@pytest.mark.parametrize("exponent", [0.2, 0.5, 3.0])
def test_under_a_slope_the_share_of_the_floor_moves_with_the_exponent(exponent: float) -> None:
    """So that ``floor + amplitude x^-exponent`` has that slope at its end; its rate is the share's derivative."""
    null, step = floors._Null.of_slope(LIMIT), 1e-5
    assert -exponent * (1 - null.share(exponent)) == pytest.approx(LIMIT)
    quotient = (null.share(exponent + step) - null.share(exponent - step)) / (2 * step)
    assert null.rate(exponent) == pytest.approx(quotient, rel=1e-6)


@pytest.mark.parametrize(("wanted", "inside", "outside"), [(1, 1, 0), (-1, 0, 1)])
def test_an_end_of_the_interval_is_itself_not_excluded(wanted: int, inside: int, outside: int) -> None:
    """Shares on one side of 1/3 are excluded: the end lies on the other side, as near as the resolution has it."""
    grid = np.array([0.0, 1.0])
    end = floors._boundary(lambda share: wanted if wanted * (share - 1 / 3) > 0 else 0, wanted, grid, inside, outside)
    assert 0 <= wanted * (1 / 3 - end) <= floors._RESOLUTION


@pytest.mark.parametrize("scale", [1e-200, 1e-12, 1.0, 1e200])
def test_the_unit_of_the_values_does_not_matter(scale: float) -> None:
    curves = noisy(curve(0.5, 0.1), 0.05, 9, np.random.default_rng(7))
    one, other = (FloorReading(LENGTHS, factor * curves, LIMIT, 0.02) for factor in (1.0, scale))
    assert other.share == pytest.approx(one.share, abs=1e-6)
    assert other.interval == pytest.approx(one.interval, abs=2e-3)
    assert other.end.low == pytest.approx(one.end.low, abs=1e-6)


@pytest.mark.parametrize(
    ("x", "curves", "words"),
    [
        ([1.0, 2.0], [[1.0, 0.5]], "three or more"),
        ([1.0, 2.0, 2.0], [[1.0, 0.5, 0.2]], "ascending"),
        ([0.0, 1.0, 2.0], [[1.0, 0.5, 0.2]], "above 0"),
        ([1.0, 2.0, 3.0], [[1.0, 0.5, 0.0]], "positive finite"),
        ([1.0, 2.0, 3.0], [[1.0, math.inf, 0.5]], "positive finite"),
        ([1.0, 2.0, 3.0], [[1.0, math.nan, 0.5]], "positive finite"),
        ([1.0, 2.0, 3.0], [1.0, 0.5, 0.2], "seeds, points"),
    ],
)
def test_what_cannot_be_read_is_refused(x: list[float], curves: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        FloorReading(x, curves, LIMIT, 0.1)


def test_a_limit_that_is_no_decay_is_refused() -> None:
    with pytest.raises(ValueError, match="must be negative"):
        FloorReading(LENGTHS, np.tile(curve(1 / 3, 0.0), (9, 1)), 0.0, 0.1)
