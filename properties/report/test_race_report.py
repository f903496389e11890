"""Reports show every training run for what it was: what never arrived, diverged, crashed or was not run is said."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from common.race_helpers import a_gradient, a_race, a_run, a_trace, diverged

from lmc_verify.races.plan import PlannedRace, PlannedRun, RaceRun
from lmc_verify.report import (
    Report,
    build_report,
    render_html,
    render_json,
    render_junit,
    render_markdown,
    write_report,
)
from lmc_verify.report.answers.races import race_answer, race_question
from lmc_verify.report.figures.dot_plot import dot_plot
from lmc_verify.report.figures.line_plot import line_plot
from lmc_verify.report.figures.pictures import pictures
from lmc_verify.report.formats.github import annotation_lines
from lmc_verify.report.model.curves import DotRow
from lmc_verify.report.model.race_curves import _median_points, colour_of
from lmc_verify.runs.records import Records
from lmc_verify.training import Trace

FIGURES = 'figure = ["convergence", "time-to-accuracy", "gradient-errors"]\ntitle = "a race"\nalpha = 0.25'
Traces = Callable[[PlannedRun], Trace | None]


def report_of(tmp_path: Path, *raced: tuple[PlannedRace, Sequence[RaceRun]], reason: str = "") -> Report:
    with Records.create_or_open(tmp_path / "r.sqlite") as records:
        run = records.start_run("s", "The figures", {}, {"python": "3"})
        for race, items in raced:
            records.add_race(run, replace(race.header, reason=reason) if not items else race.header)
            for item in items:
                records.add_race_run(run, item)
        records.finish_run(run, "finished")
        return build_report(records, run, {})


def raced(race: PlannedRace, traces: Traces) -> tuple[PlannedRace, list[RaceRun]]:
    runs = []
    for planned in race.runs:
        trace = traces(planned)
        runs.append(a_run(planned, trace, reason="failed: RuntimeError: boom (x.py:3)" if trace is None else ""))
    return race, runs


def rising(planned: PlannedRun) -> Trace:
    """Full-batch training gets to 0.8 in four epochs of 1 s; lmc passes it after two of 2 s, gas stays below."""
    seed = planned.seed / 100
    pace = 2.0 + seed
    if planned.contestant.label == "full-batch":
        return a_trace([0.1, 0.3, 0.5, 0.7, 0.8], pace=1.0 + seed)
    if planned.contestant.label.startswith("lmc"):
        return a_trace([0.1, 0.6, 0.85, 0.9, 0.9], pace=pace, gradients=[a_gradient(0, 0.01), a_gradient(16, 0.02)])
    return a_trace([0.1, 0.4, 0.5, 0.6, 0.6], pace=pace, gradients=[a_gradient(0, 0.5), a_gradient(16, 0.4)])


def table(report: Report, title: str) -> dict[str, tuple[str, ...]]:
    (race,) = report.races
    (found,) = (item for item in (*race.tables, *race.further_tables) if item.title.startswith(title))
    return {row[0]: row[1:] for row in found.rows}


# --- what is told ---


def test_a_contestant_without_a_run_yet_is_not_said_to_be_late(tmp_path: Path) -> None:
    race, runs = raced(a_race(FIGURES), rising)
    made = [run for run in runs if run.entry.label != "gas"]
    rows = table(report_of(tmp_path, (race, made)), "To ")
    assert rows["gas"][:2] == ("0 of 0", "–")


def test_curves_go_forward_in_time_where_a_run_ends_early() -> None:
    """Two runs, of which the slow one ends early: later medians are of the fast one, which was ahead of them."""

    def traces(planned: PlannedRun) -> Trace:
        fast = a_trace([0.1, 0.2, 0.3, 0.4, 0.5], pace=1.0)
        return fast if planned.seed == 0 else replace(a_trace([0.1, 0.2, 0.3], pace=10.0), status="diverged")

    _, runs = raced(a_race(FIGURES + "\nseeds = 2"), traces)
    points = _median_points([run.entry for run in runs if run.entry.label == "lmc"], _at_times)
    times = [point[0] for point in points]
    assert times == sorted(set(times))
    assert len(times) >= 3


def _at_times(trace: Trace) -> list[tuple[float, float, float | None]]:
    return [(item.step, item.seconds, item.validation) for item in trace.evaluations]


@pytest.mark.slow
def test_crashed_runs_are_left_out_of_whole_runs_and_said_to_be(tmp_path: Path) -> None:
    def traces(planned: PlannedRun) -> Trace | None:
        return None if planned.contestant.label == "lmc" and planned.seed else rising(planned)

    report = report_of(tmp_path, raced(a_race(FIGURES), traces))
    assert "of whole runs, over those that did not crash" in render_markdown(report)
    assert "those that did not crash" not in render_markdown(report_of(tmp_path, raced(a_race(FIGURES), rising)))


@pytest.mark.slow
def test_medians_targets_and_never_are_those_of_the_runs(tmp_path: Path) -> None:
    report = report_of(tmp_path, raced(a_race(FIGURES), rising))
    (race,) = report.races
    assert race.record is not None
    assert race.record.target.accuracy == pytest.approx(0.8)
    rows = table(report, "To 80.00% validation")
    assert rows["lmc"][:4] == ("3 of 3", "4.0 s [4.0 s, 4.0 s]", "2 [2, 2]", "8 [8, 8]")
    assert rows["full-batch"][0] == "3 of 3"
    assert rows["gas"] == ("0 of 3", "never", "never", "never", "never", "never")
    assert rows["full-batch"][-1] == "1 ×"
    assert table(report, "Whole runs")["gas"][:2] == ("60.00 [60.00, 60.00]", "30.00 [30.00, 30.00]")
    (dots,) = (row for row in race.times if row.label == "gas")
    assert (dots.values, dots.median, dots.missing, dots.note) == ((), None, 3, "never (3 runs)")
    text = render_markdown(report)
    assert "| gas | 0 of 3 | never | never | never | never | never |" in text
    assert "counts as infinitely long; none is left out" in text
    assert "misses its median with probability 0.25" in text


@pytest.mark.slow
def test_a_contestant_that_arrives_in_most_runs_has_an_open_interval(tmp_path: Path) -> None:
    def mostly(planned: PlannedRun) -> Trace:
        late = planned.contestant.label == "gas" and planned.seed == 2
        return a_trace([0.1, 0.2]) if late else a_trace([0.1, 0.9])

    report = report_of(tmp_path, raced(a_race(FIGURES), mostly))
    rows = table(report, "To 90.00% validation")
    assert rows["gas"][:2] == ("2 of 3", "2.0 s [2.0 s, ∞]")
    (race,) = report.races
    (dots,) = (row for row in race.times if row.label == "gas")
    assert (dots.values, dots.missing, dots.note) == ((2.0, 2.0), 1, "1 of 3 never")
    assert (dots.median, dots.low, dots.high) == (2.0, 2.0, math.inf)
    assert "1 of 3 never" in render_html(report)
    assert "▷ runs that never reached it" in render_html(report)


def test_one_seed_has_no_interval_and_no_band(tmp_path: Path) -> None:
    report = report_of(tmp_path, raced(a_race(f"{FIGURES}\nseeds = 1"), rising))
    assert table(report, "To 80.00%")["lmc"][:2] == ("1 of 1", "4.0 s")
    assert "Medians over 1 seed; too few for an interval." in render_markdown(report)
    (race,) = report.races
    assert all(not curve.series.low for _, plots in race.plots for plot in plots for curve in plot.curves)


@pytest.mark.slow
def test_a_run_that_diverges_is_drawn_as_far_as_it_came_and_named(tmp_path: Path) -> None:
    def mixed(planned: PlannedRun) -> Trace:
        gone = planned.contestant.label == "gas" and planned.seed == 1
        return diverged([0.1, 0.2]) if gone else rising(planned)

    report = report_of(tmp_path, raced(a_race(FIGURES), mixed))
    assert report.level == "passed"  # a run that diverges is a result; races judge nothing that controls vouch for
    assert "1 diverged" in report.headline
    page = render_html(report)
    assert "Diverged, drawn up to the step at which they diverged: gas (seed 1)." in page
    assert "8 diverged, 1 finished" not in page
    (race,) = report.races
    loss = next(
        plot for _, plots in race.plots for plot in plots if plot.scale == "semilogy" and plot.x_label == "epochs"
    )
    (curve,) = (curve for curve in loss.curves if curve.label == "gas")
    assert curve.series.x == (0.0, 1.0, 2.0, 3.0, 4.0)
    assert not any(math.isnan(value) for value in curve.series.y)


@pytest.mark.slow
def test_contestants_that_all_diverge_have_a_row_and_no_accuracy(tmp_path: Path) -> None:
    def gone(planned: PlannedRun) -> Trace:
        return rising(planned) if planned.contestant.label != "gas" else diverged([None])

    report = report_of(tmp_path, raced(a_race(FIGURES), gone))
    assert table(report, "Whole runs")["gas"][:2] == ("–", "–")
    assert table(report, "To 80.00%")["gas"][0] == "0 of 3"
    assert render_html(report)


@pytest.mark.slow
def test_races_alone_are_complete_without_a_control_and_answered_first(tmp_path: Path) -> None:
    report = report_of(tmp_path, raced(a_race(FIGURES), rising))
    assert (report.level, report.exit_code) == ("passed", 0)
    assert report.headline == "1 race with 9 training runs; nothing skipped."
    question = "How long does each contestant train to 80.00% validation accuracy on karate?"
    answer = "lmc 4.0 s [4.0 s, 4.0 s], full-batch 4.0 s [4.0 s, 4.1 s], gas never. Medians over 3 seeds"
    page, text = render_html(report), render_markdown(report)
    assert page.index(question) < page.index(answer) < page.index('id="races-summary"') + 6000
    assert text.index("**✓ complete**") < text.index(question) < text.index("## Races")
    for written in (page, text, "\n".join(annotation_lines(report))):
        assert "o control was run" not in written
    assert 'id="controls' not in page
    assert "## Controls" not in text
    assert "every planned training run was made" in page
    document = json.loads(render_json(report))["result"]
    assert (document["level"], document["exit_code"], document["controls"]) == ("passed", 0, 0)


def test_an_answer_says_who_never_arrives_and_who_does_in_some_runs(tmp_path: Path) -> None:
    def traces(planned: PlannedRun) -> Trace:
        late = planned.contestant.label == "lmc" and planned.seed == 2
        return a_trace([0.1, 0.2]) if late else rising(planned)

    (race,) = report_of(tmp_path, raced(a_race(FIGURES), traces)).races
    assert "lmc 4.0 s [4.0 s, ∞] (2 of 3 runs get there)" in race_answer(race)
    assert "gas never." in race_answer(race)
    (absent,) = report_of(tmp_path, (a_race(FIGURES), []), reason="no raw files").races[-1:]
    assert race_answer(absent) == "Not run: no raw files."


def test_a_race_without_a_target_is_asked_for_accuracies(tmp_path: Path) -> None:
    made, runs = raced(a_race(FIGURES), rising)
    (section,) = report_of(tmp_path, (made, [run for run in runs if run.entry.label != "full-batch"])).races
    assert section.record is not None
    assert section.record.target.accuracy is None
    assert race_question(section) == "How accurate does each contestant become on karate?"
    answer = race_answer(section)
    assert answer.startswith("lmc 90.00% [90.00, 90.00], gas 60.00% [60.00, 60.00], full-batch –.")
    assert "Medians over 3 seeds" in answer


@pytest.mark.slow
def test_a_crash_fails_the_report_and_is_an_error_in_junit(tmp_path: Path) -> None:
    def crashing(planned: PlannedRun) -> Trace | None:
        return None if (planned.contestant.label, planned.seed) == ("gas", 2) else rising(planned)

    report = report_of(tmp_path, raced(a_race(FIGURES), crashing))
    assert report.level == "failed"
    assert "9 training runs, 1 crashed" in report.headline
    reason = "RuntimeError: boom"
    assert reason in render_html(report)
    assert f"gas, seed 2: crashed. failed: {reason}" in render_markdown(report)
    root = ElementTree.fromstring(render_junit(report))
    (suite,) = (item for item in root if item.attrib["name"] == "race: a race, karate")
    assert (suite.attrib["tests"], suite.attrib["errors"], suite.attrib["failures"]) == ("9", "1", "0")
    (error,) = suite.iter("error")
    assert reason in error.attrib["message"]
    assert "lmc-verify train --dataset karate --estimator gas --seed 2" in (error.text or "")
    assert json.loads(render_json(report))["result"]["race_runs_crashed"] == 1


@pytest.mark.slow
def test_a_race_that_was_not_run_says_why_in_every_format(tmp_path: Path) -> None:
    races = a_race(FIGURES), a_race('title = "absent"\ndataset = "digits"')
    report = report_of(tmp_path, raced(races[0], rising), (races[1], []), reason="no raw files <here>")
    assert "1 planned race not run" in report.headline
    assert report.level == "incomplete"
    assert "no raw files &lt;here&gt;" in render_html(report)
    assert "no raw files &lt;here>" in render_markdown(report)
    assert json.loads(render_json(report))["races"][1]["not_run_because"] == "no raw files <here>"
    (skipped,) = ElementTree.fromstring(render_junit(report)).iter("skipped")
    assert skipped.attrib["message"] == "no raw files <here>"


def test_a_run_of_nothing_fails(tmp_path: Path) -> None:
    report = report_of(tmp_path, (a_race(FIGURES), []), reason="absent")
    assert report.level == "failed"


@pytest.mark.slow
def test_an_unfinished_race_shows_what_there_is(tmp_path: Path) -> None:
    race = a_race(FIGURES)
    report = report_of(tmp_path, (race, raced(race, rising)[1][:2]))
    assert "7 not made" in render_html(report)
    assert table(report, "Whole runs")["gas"] == ("–", "–", "–", "–")
    for render in (render_markdown, render_json, render_junit):
        assert render(report)


def test_without_accuracies_there_is_no_target(tmp_path: Path) -> None:
    report = report_of(tmp_path, raced(a_race(FIGURES), lambda planned: a_trace([None, None])))
    (race,) = report.races
    assert (race.times, race.target_words) == ((), "none")
    assert [item.title for item in race.tables][:1] == ["Whole runs"]
    assert render_html(report)


# --- pictures ---


def test_every_kind_of_figure_has_its_curves(tmp_path: Path) -> None:
    sizes = 'estimator = ["full-batch", "lmc", "gas"]\ndesign = { parts = 12, per_batch = [1, 2, 5, 10] }'
    races = (
        a_race(FIGURES),
        a_race(f'title = "sizes"\nfigure = "batch-sizes"\n{sizes}'),
        a_race('title = "parts"\nfigure = "ablation"\ndesign = { parts = 12, per_batch = [1, 10] }'),
    )
    report = report_of(tmp_path, *(raced(race, rising) for race in races))
    drawn = {race.title: {kind: [plot.title for plot in plots] for kind, plots in race.plots} for race in report.races}
    assert [title.split(" ")[0] for title in drawn["a race"]["convergence"]] == ["Validation"] * 2 + ["Training"] * 2
    parts = ["layer 1", "layer 2", "all layers"]
    assert drawn["a race"]["gradient-errors"] == [
        f"{name}, {part}"
        for name in ("Relative error", "Relative bias", "Relative standard deviation")
        for part in parts
    ]
    assert len(drawn["sizes"]["batch-sizes"]) == 2
    (_, plots), *_ = report.races[1].plots
    assert {curve.label: curve.series.x for curve in plots[0].curves} == dict.fromkeys(
        ("full-batch", "lmc", "gas"), (1.0, 2.0, 5.0, 10.0)
    )
    assert len(drawn["parts"]["ablation"]) == 2
    for _, plots in report.races[2].plots:
        assert all([curve.label for curve in plot.curves] == ["full-batch", "lmc", "gas"] for plot in plots)
    assert [plot.detail.split(",")[0] for _, plots in report.races[2].plots for plot in plots] == [
        "1 cluster per batch",
        "10 clusters per batch",
    ]


def test_an_estimator_has_one_colour_everywhere_and_a_second_one_another_line(tmp_path: Path) -> None:
    one = a_race(FIGURES)
    other = '{ name = "gas", label = "GAS again", weighting = "node-count" }'
    two = a_race(f'title = "b"\nestimator = ["gas", {other}]\nfigure = "convergence"')
    report = report_of(tmp_path, raced(one, rising), raced(two, rising))
    seen: dict[str, set[int]] = {}
    for race in report.races:
        for _, plots in race.plots:
            for plot in plots:
                for curve in plot.curves:
                    seen.setdefault(curve.label, set()).add(curve.colour)
    assert seen["gas"] == seen["GAS again"] == {colour_of("gas")}
    assert all(len(colours) == 1 for colours in seen.values())
    (_, plots), *_ = report.races[1].plots
    assert len({(curve.colour, curve.dash) for curve in plots[0].curves}) == 2


def test_known_estimators_have_different_colours() -> None:
    known = ("lmc", "gas", "fm", "cluster-gcn", "backward-sgd", "full-batch", "lmc-forward-only", "lmc-backward-only")
    assert len({colour_of(name) for name in known}) == len(known)
    assert colour_of("somebody's own") in range(len(known))


def test_gradient_errors_are_relative_and_full_batch_has_none(tmp_path: Path) -> None:
    report = report_of(tmp_path, raced(a_race(FIGURES), rising))
    assert table(report, "Relative error") == {"lmc": ("1.5",) * 3, "gas": ("1.5",) * 3}
    assert set(table(report, "Relative bias")) == {"lmc", "gas"}
    (race,) = report.races
    plots = dict(race.plots)["gradient-errors"]
    (deviation,) = (plot for plot in plots if plot.title == "Relative standard deviation, layer 1")
    assert [curve.series.y for curve in deviation.curves] == [(1.0, 1.0), (1.0, 1.0)]
    assert deviation.curves[0].series.x == (0.0, 4.0)


def test_accuracies_from_chance_do_not_flatten_what_comes_after(tmp_path: Path) -> None:
    def late(planned: PlannedRun) -> Trace:
        return a_trace([0.1, 0.2, *(0.8 + number / 100 for number in range(11))])

    (race,) = report_of(tmp_path, raced(a_race(FIGURES), late)).races
    accuracy, _, loss, _ = dict(race.plots)["convergence"]
    for curve in accuracy.curves:
        assert curve.points.below == (0.0, 2.0)
        assert min(y for y in curve.points.y if not math.isnan(y)) == 0.8
        assert curve.series.y[:2] == (0.1, 0.2), "the values themselves are kept"
    assert "▽ 6 values below the axis, at the lower edge." in accuracy.notes
    assert all(curve.points.below == () for curve in loss.curves)


def test_layers_share_a_scale(tmp_path: Path) -> None:
    def uneven(planned: PlannedRun) -> Trace:
        point = a_gradient(0)
        return a_trace([0.1, 0.9], gradients=[replace(point, bias={"layer 1": 0.002, "layer 2": 20.0, "all": 2.0})])

    (race,) = report_of(tmp_path, raced(a_race(FIGURES), uneven)).races
    bias = [plot for plot in dict(race.plots)["gradient-errors"] if plot.title.startswith("Relative bias")]
    assert {plot.shown for plot in bias} == {(0.001, 10.0)}
    drawn = {plot.title: line_plot(plot, "p") for plot in bias}
    labels = [re.findall(r">([\d.e−]+)</text>", svg) for svg in drawn.values()]
    assert labels[0] == labels[1] == labels[2]


@pytest.mark.slow
def test_a_vanishing_gradient_is_infinite_and_still_drawn(tmp_path: Path) -> None:
    def flat(planned: PlannedRun) -> Trace:
        points = [replace(a_gradient(0), gradient=dict.fromkeys(("layer 1", "layer 2", "all"), 0.0)), a_gradient(4)]
        return a_trace([0.1, 0.9], gradients=points)

    report = report_of(tmp_path, raced(a_race(FIGURES), flat))
    assert "infinite value" in render_html(report)
    json.loads(render_json(report), parse_constant=lambda name: pytest.fail(f"not strict: {name}"))


@pytest.mark.slow
def test_drawn_batches_are_said_to_have_a_noise(tmp_path: Path) -> None:
    def drawn(planned: PlannedRun) -> Trace:
        return a_trace([0.1, 0.9], gradients=[a_gradient(0, method="drawn")])

    assert "From 4 drawn batches at least" in render_markdown(report_of(tmp_path, raced(a_race(FIGURES), drawn)))


@pytest.mark.parametrize("log", [False, True])
def test_dots_hold_any_numbers(log: bool) -> None:
    rows = [
        DotRow("none at all", (), None, None, None, 0, "never (3 runs)", 3),
        DotRow("one", (0.5,), 0.5, None, None, 1),
        DotRow("zero <b>", (0.0, 2.0), 1.0, 0.0, math.inf, 2, "1 of 3 never", 1),
        DotRow("equal", (3.0, 3.0), 3.0, 3.0, 3.0, 9),
    ]
    drawn = dot_plot(rows, "d", "title", "seconds", log=log)
    root = ElementTree.fromstring(drawn)
    assert "<b>" not in drawn
    assert "never (3 runs)" in "".join(root.itertext())
    dot_plot(rows[:1], "d", "nothing to draw", "seconds", log=log)


@pytest.mark.slow
def test_pictures_are_files_that_need_no_page(tmp_path: Path) -> None:
    report = report_of(tmp_path, raced(a_race(FIGURES), rising))
    out = tmp_path / "out"
    paths = write_report(report, out)
    assert set(paths) == {"html", "markdown", "json", "junit"}
    (race,) = report.races
    files = {path.relative_to(out).as_posix() for path in (out / "figures").iterdir()}
    assert files == {picture.file for picture in pictures(race)}
    assert len(files) == len(pictures(race)) == 1 + 4 + 9
    linked = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", paths["markdown"].read_text())
    assert set(linked) == files
    for path in (out / "figures").iterdir():
        content = path.read_text()
        root = ElementTree.fromstring(content)
        used, known = set(re.findall(r"var\((--[\w-]+)\)", content)), set(re.findall(r"(--[\w-]+):", content))
        assert used <= known, "colours come with the file"
        assert "prefers-color-scheme: dark" in content
        assert root.attrib["viewBox"]


@pytest.mark.slow
def test_races_with_one_title_and_data_set_have_pictures_of_their_own(tmp_path: Path) -> None:
    races = a_race(FIGURES), a_race(f"{FIGURES}\nmodel = {{ width = 3 }}")
    report = report_of(tmp_path, *(raced(race, rising) for race in races))
    names = [picture.file for race in report.races for picture in pictures(race)]
    assert len(names) == len(set(names))
    (group,) = report.race_groups
    assert len(group.races) == 2


# --- beside the paper ---


@pytest.mark.slow
def test_reported_values_are_labelled_and_never_among_the_measured(tmp_path: Path) -> None:
    report = report_of(tmp_path, raced(a_race(FIGURES), rising))
    text = render_markdown(report)
    measured, _, reported = text.partition("**Reported by the paper, not measured here**")
    assert "ogbn-arxiv, GCN: time to the full-batch accuracy (s) | 79 | 115 | 55 |" in reported
    assert "Reddit, GCN: time / lmc | 2.1 × | – | 1 × |" in reported
    assert "taken from secondary sources; not measured here" in reported
    assert "790" not in measured
    assert "Reported by the paper, not measured here" in render_html(report)
    assert {item["dataset"] for item in json.loads(render_json(report))["reported"]} >= {"Reddit", "Flickr"}


@pytest.mark.slow
def test_races_without_reported_values_have_no_such_table(tmp_path: Path) -> None:
    report = report_of(tmp_path, raced(a_race('figure = "gradient-errors"'), rising))
    assert "Reported by the paper" not in render_html(report) + render_markdown(report)
    assert json.loads(render_json(report))["reported"] == []


# --- programs ---


def test_the_json_document_is_strict_and_holds_every_number(tmp_path: Path) -> None:
    def mixed(planned: PlannedRun) -> Trace:
        return diverged([0.1]) if planned.contestant.label == "gas" else rising(planned)

    report = report_of(tmp_path, raced(a_race(FIGURES), mixed))
    document: dict[str, Any] = json.loads(
        render_json(report), parse_constant=lambda name: pytest.fail(f"not strict: {name}")
    )
    (race,) = document["races"]
    assert (race["title"], race["dataset"], race["planned"], race["not_run_because"]) == ("a race", "karate", 9, None)
    assert race["figures"] == ["convergence", "time-to-accuracy", "gradient-errors"]
    assert len(race["record"]["entries"]) == len(race["runs"]) == 9
    gas = next(item for item in race["record"]["entries"] if item["label"] == "gas")
    assert gas["trace"]["evaluations"]["training_loss"] == [1.0, "NaN"]
    assert gas["reached"] is None
    standings = {item["label"]: item for item in race["record"]["standings"]}
    assert standings["gas"]["medians"]["seconds"]["value"] == "Infinity"
    assert standings["lmc"]["medians"]["seconds"]["value"] == pytest.approx(4.02)
    assert document["result"]["race_runs"] == 9


def test_hostile_names_are_shown_and_never_markup(tmp_path: Path) -> None:
    nasty = "<script>alert(1)</script> | `x` \\u0000"
    race = a_race(
        f'title = "{nasty}"\nestimator = ["full-batch", {{ name = "lmc", label = "<b>|lmc" }}]\nfigure = "convergence"'
    )
    report = report_of(tmp_path, raced(race, rising))
    page = render_html(report)
    assert "<script>" not in page
    assert "<b>|" not in page
    assert "\\|lmc" in render_markdown(report)
    ElementTree.fromstring(render_junit(report))
    for picture in pictures(report.races[0]):
        ElementTree.fromstring(picture.svg)
