"""Residuals and biases are drawn where they lie: on a log scale, in order, at its ends where they are beyond it."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import pytest
from common.helpers import examples
from common.report_helpers import a_report, a_trial, bias
from hypothesis import given
from hypothesis import strategies as st

from lmc_verify.report.figures.residuals import KINDS, Mark, Scale, bias_per_layer, residual_strip

NUMBERS = st.one_of(st.none(), st.floats(allow_nan=True, allow_infinity=True), st.floats(0, 1e3))


@examples(200)
@given(st.lists(NUMBERS, max_size=12), st.lists(st.floats(1e-30, 1e30), min_size=2, max_size=6))
def test_places_are_on_the_scale_and_in_order(numbers: list[float | None], more: list[float]) -> None:
    scale = Scale.of([*numbers, *more])
    assert scale.low + 2 <= scale.high
    places = [scale.place(number) for number in sorted(more)]
    assert all(0 <= place <= 100 for place in places)
    assert all(a <= b for a, b in pairwise(places))
    for number in more:
        exponent = scale.low + scale.place(number) / 100 * (scale.high - scale.low)
        assert exponent == pytest.approx(math.log10(number), abs=0.001 * (scale.high - scale.low))
    assert [scale.place(value) for value in (0.0, -1.0, math.inf, math.nan)] == [0.0, 0.0, 100.0, 100.0]


@given(st.integers(-40, 30), st.integers(2, 60))
def test_ticks_are_powers_of_ten_at_equal_distance(low: int, span: int) -> None:
    scale = Scale(low, low + span)
    places = [place for place, _ in scale.ticks]
    assert 2 <= len(places) <= 6
    for (place, label), following in zip(scale.ticks, [*places[1:], None], strict=True):
        assert scale.place(float(label)) == pytest.approx(place, abs=0.06)
        if following is not None:
            assert following - place == pytest.approx(scale.spacing, abs=0.02)


def test_a_row_has_residual_tolerance_and_detectable_effect(tmp_path: Path) -> None:
    trials = [
        a_trial(residual=1e-16),
        a_trial(outcome="REFUTED", estimator="gas", residual=0.1),
        a_trial(outcome="REFUTED", expected="EXACT", estimator="fm", residual=math.inf),
        a_trial(estimator="cluster-gcn", residual=0.0),
    ]
    (section,) = a_report(tmp_path, trials).sections
    strip = residual_strip(section)
    assert strip is not None
    assert strip.description == "4 residuals on a log scale; 2 beyond tolerance, 2 within"
    scale = strip.scale
    limits = [Mark("tolerance", scale.place(1e-13)), Mark("detectable", scale.place(1e-11))]
    kinds = [[mark.kind for mark in row.marks[2:]] for row in strip.rows]
    assert all(list(row.marks[:2]) == limits for row in strip.rows)
    assert kinds == [["within"], ["beyond"], ["infinite", "failed"], ["zero"]]
    assert strip.rows[0].marks[2].place < limits[0].place < limits[1].place < strip.rows[1].marks[2].place
    assert strip.kinds == tuple(KINDS)


def test_many_cases_share_a_row_for_each_data_set_and_estimator(tmp_path: Path) -> None:
    trials = [a_trial(residual=1e-16 * (n + 1), seed=n, dataset=("karate", "digits")[n % 2]) for n in range(50)]
    strip = residual_strip(a_report(tmp_path, trials).sections[0])
    assert strip is not None
    assert [row.label for row in strip.rows] == ["karate · lmc (25)", "digits · lmc (25)"]


def test_bars_of_the_bias_are_hollow_within_tolerance(tmp_path: Path) -> None:
    trials = [
        a_trial(outcome="REFUTED", estimator="gas", evidence=bias(layer_1=0.4, layer_2=1e-16, layer_3=0.0)),
        a_trial(estimator="lmc", evidence=bias(layer_1=1e-16)),
    ]
    found = bias_per_layer(a_report(tmp_path, trials).sections[0])
    assert found is not None
    (title, gas), (_, lmc) = found.panels
    assert title == "karate · gas"
    assert [(row.hollow, row.note) for row in gas] == [(False, ""), (True, ""), (False, "0")]
    assert gas[0].bar is not None
    assert gas[1].bar is not None
    assert gas[0].bar > gas[0].marks[0].place > gas[1].bar
    assert [row.note for row in lmc] == ["", "no such layer", "no such layer"]
    assert found.unit == "bias / gradient norm"


def test_without_residuals_there_is_no_figure(tmp_path: Path) -> None:
    (section,) = a_report(tmp_path, [a_trial()]).sections
    assert residual_strip(section) is None
    assert bias_per_layer(section) is None
