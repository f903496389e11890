"""Figures draw what was measured, whatever it is called, and touch no global state of matplotlib."""

from __future__ import annotations

import io
import math
import pickle
import subprocess
import sys
from dataclasses import replace
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from common.crossed import slow_but
from common.helpers import examples
from common.race_helpers import a_gradient, an_evaluation
from common.shown import HOSTILE, RACE, audits, races, traces, verdicts
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure

import lmc_verify as lv
from lmc_verify.audits.explanation import Explanation
from lmc_verify.audits.result import Audit, Cost, ParameterBias
from lmc_verify.cases.verdict import Outcome, Series, Verdict
from lmc_verify.display.figures import curve, label_of, legend, panels, style_of
from lmc_verify.errors import InvalidInputError
from lmc_verify.races.record import RaceEntry, RaceRecord, Reached, Target

FALLING = Series("lmc", (1.0, 2.0, 4.0), (1.0, 0.5, 0.25), "Bias", "steps", "bias", (0.5,) * 3, (2.0,) * 3, "loglog")
FLAT = replace(FALLING, name="gas", y=(1.0, math.nan, math.inf), low=(), high=())
AUDIT = Audit(
    outcome=Outcome.REFUTED,
    guarantee="asymptotic",
    summary="s",
    bias=0.5,
    low=0.25,
    high=0.75,
    parameters=(
        ParameterBias("w", 0.5, 1.0, 0.25, 1.0, True),
        ParameterBias("b", 0.125, 1.0, 0.0, math.inf, False),
        ParameterBias("n", math.nan, math.nan, 0.0, math.inf, False),
    ),
    explanation=Explanation(),
    law="l",
    loss=1.0,
    gradient_norm=1.0,
    delta=0.25,
    alpha=0.01,
    draws=9,
    seed=0,
    cost=Cost(1, 0.0, 1, 0.0, 0.0, 0.0),
    series=(FALLING,),
)


def drawn(made: Any) -> Figure | None:
    try:
        figure: Figure = made.plot()
    except InvalidInputError as error:
        assert "to_frame()" in str(error) or "plot a run that took steps" in str(error)  # noqa: PT017
        return None
    return figure


@given(st.one_of(verdicts, audits, traces, races))
@examples(8)
def test_every_result_is_drawn_or_says_why_not(made: Any) -> None:
    before = dict(mpl.rcParams)
    figure = drawn(made)
    if figure is not None:
        assert figure._repr_png_()[:8] == b"\x89PNG\r\n\x1a\n"  # type: ignore[attr-defined]
    assert dict(mpl.rcParams) == before


def test_curves_of_one_figure_share_a_panel_with_their_intervals() -> None:
    other = replace(FALLING, figure="Other", scale="linear")
    figure = Verdict("a", Outcome.EXACT, "s", series=(FALLING, other, FLAT)).plot()
    first, second = figure.axes
    assert [line.get_label() for line in first.get_lines()] == ["lmc", "gas"]
    assert [line.get_label() for line in second.get_lines()] == ["lmc"]
    np.testing.assert_array_equal(first.get_lines()[0].get_xydata(), [[1, 1], [2, 0.5], [4, 0.25]])
    np.testing.assert_array_equal(first.get_lines()[1].get_ydata(), [1, math.nan, math.nan])
    (interval,) = first.collections
    assert (interval.get_paths()[0].get_extents().ymin, interval.get_paths()[0].get_extents().ymax) == (0.5, 2.0)
    assert (first.get_xscale(), first.get_yscale(), second.get_yscale()) == ("log", "log", "linear")
    assert (first.get_title(), first.get_xlabel(), first.get_ylabel()) == ("Bias", "steps", "bias")
    flat = replace(FALLING, y=(0.0, 0.0, 0.0), low=(), high=())
    assert Verdict("a", Outcome.EXACT, "s", series=(flat,)).plot().axes[0].get_yscale() == "linear"


def test_a_verdict_without_curves_says_where_its_numbers_are() -> None:
    with pytest.raises(InvalidInputError, match=r"the verdict on a has no curve to draw; .* to_frame\(\)"):
        Verdict("a", Outcome.EXACT, "s").plot()


def test_an_audit_shows_each_parameter_with_its_interval() -> None:
    bias, curves = AUDIT.plot().axes
    assert [text.get_text() for text in bias.get_yticklabels()] == ["w", "b (no upper end)", "n (not finite)"]
    shown, not_shown = bias.containers
    assert (shown.get_label(), not_shown.get_label()) == ("bias shown", "no bias shown")
    np.testing.assert_array_equal(shown.lines[2][0].get_segments(), [[[0.25, 0], [1.0, 0]]])
    np.testing.assert_array_equal(not_shown.lines[2][0].get_segments(), [[[0.0, 1], [0.125, 1]]])
    assert bias.get_lines()[-1].get_label() == "delta = 0.25"
    assert bias.get_ylim() == (2.5, -0.5)
    assert curves.get_title() == "Bias"
    exact = replace(AUDIT, guarantee="exact", series=()).plot()
    assert not any(str(line.get_label()).startswith("delta") for line in exact.axes[0].get_lines())
    assert len(exact.axes) == 1


def test_an_audit_of_many_parameters_shows_the_biased_and_the_largest() -> None:
    many = tuple(ParameterBias(f"p{place}", place / 1000, 1.0, 0.0, 1.0, place == 3) for place in range(2000))
    axes = replace(AUDIT, parameters=many).plot().axes[0]
    labels = [text.get_text() for text in axes.get_yticklabels()]
    assert labels == ["p3", *(f"p{place}" for place in range(1999, 1940, -1))]
    assert "the 60 largest of 2000 parameters" in axes.get_title()


def test_a_trace_shows_losses_accuracies_and_errors() -> None:
    rows = (an_evaluation(0, 0.25, loss=2.0), an_evaluation(4, 0.5))
    trace = lv.Trace({}, "micro-F1", 4, 8, rows, (a_gradient(4),))
    losses, accuracies, errors = trace.plot().axes
    np.testing.assert_array_equal(losses.get_lines()[0].get_xydata(), [[0, 2], [1, 1]])
    assert accuracies.get_ylabel() == "micro-F1"
    assert [line.get_label() for line in accuracies.get_lines()] == ["training", "validation", "test"]
    np.testing.assert_array_equal(accuracies.get_lines()[2].get_ydata(), [0.125, 0.25])
    assert [(str(line.get_label()), *line.get_ydata()) for line in errors.get_lines()] == [  # type: ignore[misc]
        ("relative error", 1.5),
        ("relative bias", 0.25),
    ]
    alone = lv.Trace({}, "accuracy", 4, 8, (an_evaluation(0, None),)).plot()
    assert len(alone.axes) == 1


def test_a_race_has_one_colour_and_one_name_for_each_contestant() -> None:
    rows = (an_evaluation(0, 0.25), an_evaluation(4, 0.75))
    trace = lv.Trace({}, "accuracy", 4, 8, rows, (), "finished")
    entries = (
        RaceEntry("_a$", 0, 0, trace, Reached(4, 1.0, 2.0, None, None, 0.75)),
        RaceEntry("b", 0, 1, trace),
        RaceEntry("_a$", 1, 2, trace),
        RaceEntry("c", 1, 3, None, None, "failed", "failed"),
    )
    record = RaceRecord(RACE, Target(0.5, "validation", "given"), entries, (), {})
    (axes,) = record.plot().axes
    found = axes.get_legend()
    assert found is not None
    assert [text.get_text() for text in found.get_texts()] == [r" _a\$", "b", "target"]
    runs = [line for line in axes.get_lines() if len(line.get_xdata()) == 2 and line.get_label() != "target"]  # type: ignore[arg-type]
    assert [line.get_color() for line in runs] == ["C0", "C1", "C0"]
    np.testing.assert_array_equal(runs[0].get_xydata(), [[0, 0.25], [2, 0.75]])
    (reached,) = [line for line in axes.get_lines() if line.get_marker() == "D"]
    np.testing.assert_array_equal(reached.get_xydata(), [[2.0, 0.75]])
    (target,) = [line for line in axes.get_lines() if line.get_label() == "target"]
    assert list(target.get_ydata()) == [0.5, 0.5]  # type: ignore[arg-type]
    on_test = replace(record, target=Target(None, "test", "none")).plot().axes[0]
    assert on_test.get_ylabel() == "test accuracy"
    assert "target" not in [line.get_label() for line in on_test.get_lines()]


@pytest.mark.parametrize("name", slow_but(HOSTILE[::2], HOSTILE))
def test_labels_are_neither_mathematics_nor_hidden(name: str) -> None:
    figure, (axes,) = panels([3.0])
    curve(axes, [1.0], [1.0], name)
    axes.set_title(label_of(name))
    legend(axes)
    figure.savefig(io.BytesIO(), format="svg")
    label = label_of(name)
    assert not label.startswith("_")
    assert "$" not in label.replace(r"\$", "")
    assert len(label) <= 130


def test_forty_curves_look_different() -> None:
    assert len({tuple(style_of(place).values()) for place in range(40)}) == 40


def test_figures_can_be_pickled() -> None:
    figure = pickle.loads(pickle.dumps(AUDIT.plot()))
    assert len(figure.axes) == 2


@pytest.mark.slow
def test_pyplot_is_not_imported() -> None:
    code = (
        "import sys\n"
        "from lmc_verify.cases.verdict import Outcome, Series, Verdict\n"
        "s = Series('a', (1.0,), (1.0,), 'f', 'x', 'y')\n"
        "v = Verdict('c', Outcome.EXACT, 's', series=(s,))\n"
        "assert 'matplotlib' not in sys.modules\n"
        "v.plot()._repr_png_()\n"
        "assert 'matplotlib.pyplot' not in sys.modules and 'matplotlib.figure' in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
