"""A report says what the records say, in one page that needs nothing else, whatever the records hold."""

from __future__ import annotations

import hashlib
import json
import math
import re
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import matplotlib
import pytest
from common.helpers import examples
from hypothesis import example, given
from hypothesis import strategies as st

from lmc_verify.cases import CaseDescription
from lmc_verify.cases.verdict import AssumptionCheck, Evidence, Outcome, Series, Verdict
from lmc_verify.controls import ControlRecord
from lmc_verify.errors import InvalidInputError, OutputError, RecordsError
from lmc_verify.report import (
    ClaimText,
    Report,
    build_report,
    claims_table,
    render_html,
    render_json,
    render_junit,
    render_markdown,
    write_report,
)
from lmc_verify.report.figures.line_plot import line_plot
from lmc_verify.report.model import text as report_text
from lmc_verify.report.model.claims import Case
from lmc_verify.report.model.curves import MOST_CURVES, Points, case_plots, claim_plots
from lmc_verify.report.model.searches import inline_drawing
from lmc_verify.runs.records import Records
from lmc_verify.runs.searches import FoundExample, SearchRecord
from lmc_verify.runs.trials import NotRun, Trial

ESTIMATORS = ("backward-sgd", "lmc", "gas", "fm", "cluster-gcn", "lmc-forward-only", "lmc-backward-only")
HOSTILE_DRAWING = """<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"
viewBox="0 0 1 1" onload="alert(1)"><script>alert(2)</script><style>@import "http://x"; p { display: none }</style>
<g id="claims" onclick="alert(3)" style="fill: url(https://elsewhere/x) ; stroke: url(#a)"><a href="https://elsewhere">
<text>in a link</text></a><image xlink:href="https://elsewhere/y.png"/><use xlink:href="https://elsewhere/z.svg#a"/>
<foreignObject><iframe src="https://elsewhere"/></foreignObject><path id="a" d="M 0 0"/></g></svg>"""
HOSTILE = "<b>&\"'`|\x00 ]]> {{ 7 * 7 }}"
CLAIMS = {
    claim.id: claim
    for claim in (
        ClaimText(
            "theorem-1/unbiased",
            "Backward SGD is unbiased",
            "The mean of the mini-batch gradient over the batch design is the full gradient.",
            "LMC, Theorem 1",
            "exact",
            "Backward SGD restricts the exact backward recursion to the batch, so the loss terms and the messages "
            "are each counted once in the mean. Nothing else is used.",
        ),
        ClaimText(
            "e1/equals-backward-sgd",
            "With exact histories LMC is Backward SGD",
            "With exact histories the gradient of LMC equals the gradient of Backward SGD, batch by batch.",
            "derived here, E1",
            "exact",
            "",
        ),
        ClaimText("e2/exact-when-frozen", "Frozen weights make histories exact", "s", "derived here, E2", "exact", ""),
        ClaimText(
            "e6/bias-per-layer",
            "The bias decays with depth from the loss",
            "Below the last layer a discarded message biases the gradient.",
            "LMC, Theorem 2",
            "exact",
            "",
        ),
        ClaimText("e7/reductions", "Reductions", "One cluster is the full gradient.", "derived here, E7", "exact", ""),
        ClaimText("unused", "Never run", "s", "", "", ""),
    )
}
BIASED = {"gas", "fm", "cluster-gcn", "lmc-forward-only", "lmc-backward-only"}


def a_trial(claim: str, outcome: str, expected: str | None, number: int, **case: Any) -> Trial:
    size = {"EXACT": 3e-16, "REFUTED": 0.037}.get(outcome, 1e-3) * (1 + number % 7)
    bias = tuple(
        Evidence(f"layer {layer}", 0.0 if layer == 3 else size * 4.0**-layer, 2.1e-13, group="bias per layer")
        for layer in (1, 2, 3)
        if claim == "e6/bias-per-layer"
    )
    verdict = Verdict(
        claim,
        Outcome(outcome),
        f"largest residual {size:.1e} of the gradient norm against a tolerance of 2.1e-13",
        case=CaseDescription.from_dict(
            {"dataset": "karate", "nodes": 34, "edges": 190, "model": "gcn", "layers": 3, **case, "dtype": "float64"}
        ),
        residual=0.0 if number % 11 == 5 else size,
        tolerance=2.1e-13,
        minimum_detectable_effect=4.2e-13,
        evidence=(Evidence("layers.0.lin.weight", size, 2.1e-13), Evidence("loss", math.inf, None), *bias),
        assumptions=(
            AssumptionCheck("partition", "the parts cover the nodes once", True, "34 nodes in 4 parts"),
            AssumptionCheck("histories", "the histories are exact", case.get("histories") == "exact"),
            AssumptionCheck("smooth", "the loss is smooth", None),
        ),
        seeds={"root": 20240501, "spawn_key_0": number},
        hashes={"graph": hashlib.sha256(b"graph").hexdigest(), "parameters": hashlib.sha256(b"p").hexdigest()},
    )
    command = f"lmc-verify check {claim} --estimator {case.get('estimator', 'lmc')} --seed {number}"
    return Trial(hashlib.sha256(str(number).encode()).hexdigest(), "claim", verdict, expected, command, 0.31 + number)


def some_trials() -> Iterator[Trial]:
    number = 0
    for dataset, nodes in (("karate", 34), ("digits-knn", 1797)):
        for estimator in ESTIMATORS:
            size = {"dataset": dataset, "nodes": nodes, "estimator": estimator, "design": "clusters", "parts": 4}
            outcome = "REFUTED" if estimator in BIASED else "EXACT"
            histories = "none" if estimator == "backward-sgd" else "one sweep stale"
            found = "REFUTED" if estimator == "lmc" else outcome
            for claim, result in (("theorem-1/unbiased", found), ("e6/bias-per-layer", found)):
                number += 1
                yield a_trial(claim, result, result, number, **size, histories=histories, seed=number % 3)
        for claim in ("e1/equals-backward-sgd", "e2/exact-when-frozen"):
            for histories in ("exact", "cold"):
                number += 1
                outcome = "EXACT" if histories == "exact" else "NOT_APPLICABLE"
                yield a_trial(claim, outcome, outcome, number, dataset=dataset, estimator="lmc", histories=histories)
    for parts in (1, 2, 4):
        number += 1
        yield a_trial("e7/reductions", "EXACT", None if parts == 4 else "EXACT", number, estimator="lmc", parts=parts)


def some_controls() -> Iterator[Trial]:
    for number, (name, role, effect) in enumerate(
        [
            ("exact-backward-sgd", "sound", None),
            ("wrong-weighting", "defect", 0.25),
            ("dropped-halo-term", "defect", 0.081),
            ("sign-flipped", "defect", 2.0),
            ("float16-cast", "defect", 4.4e-4),
        ],
        start=500,
    ):
        trial = a_trial("theorem-1/unbiased", "REFUTED" if role == "defect" else "EXACT", None, number, estimator=name)
        words = "the estimator, with " + name.replace("-", " ")
        control = ControlRecord(name, words, role, effect, None if effect is None else True, True)
        yield replace(trial, kind="control", expected=trial.verdict.outcome.value, control=control)


DRAWING = """<?xml version="1.0"?><!DOCTYPE svg PUBLIC "-//W3C//DTD SVG 1.1//EN" "http://www.w3.org/svg11.dtd">
<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="0 0 576 267" version="1.1">
<metadata>made by hand</metadata><defs><style type="text/css">*{stroke-linejoin: round}</style>
<clipPath id="p1"><rect x="0" y="0" width="9" height="9"/></clipPath><path id="m1" d="M 0 0 L 1 1"/></defs>
<g id="figure_1"><path d="M 0 0 L 576 267" clip-path="url(#p1)" style="fill: #ffffff"/>
<use xlink:href="#m1" x="3" y="4"/><text style="font-size: 9px" x="1" y="2">cluster 0</text></g></svg>"""


FOUND = CaseDescription(model="gcn", design="Clusters", support=2)


def a_search(
    claim: str = "theorem-1/unbiased", estimator: str = "gas", expected: str = "found", found: bool = True, **case: Any
) -> SearchRecord:
    key = hashlib.sha256(repr((claim, estimator, case)).encode()).hexdigest()
    name = f"{report_text.slug(claim)}-{estimator}"
    caption = f"{estimator} on {claim}: biased: off by 0.29 of the gradient's norm."
    files = {f"{name}.json": "1", f"{name}.safetensors": "2", f"{name}.svg": "3"}
    example = FoundExample(name, 2, 2, 2, caption, FOUND, DRAWING, files)
    return SearchRecord(
        key=key,
        claim=claim,
        case={"estimator": estimator, **case, "histories": "exact", "max_nodes": 4, "examples": 60, "seed": 3},
        expected=expected,
        summary="counterexample with 2 nodes and 2 directed edges" if found else "no counterexample among 60 cases",
        cases=7 if found else 60,
        command=f"lmc-verify counterexample {claim} --estimator {estimator} --seed 3",
        seconds=5.0,
        found=example if found else None,
    )


SEARCHES = (
    a_search(),
    a_search("theorem-1/unbiased", "lmc", beta=1.0, **{"model.layers": 2}),
    a_search("e6/bias-per-layer", "fm"),
    a_search("e1/equals-backward-sgd", "lmc", "none", found=False),
)


def make_report(
    folder: Path,
    change: Callable[[Trial], Trial] = lambda trial: trial,
    *,
    trials: list[Trial] | None = None,
    not_run: tuple[NotRun, ...] = (),
    finish: bool = True,
    searches: tuple[SearchRecord, ...] = (),
) -> Report:
    added = [*some_trials(), *some_controls()] if trials is None else trials
    path = folder / f"{hashlib.sha256(repr((added, change, not_run, searches)).encode()).hexdigest()[:16]}.sqlite"
    with Records.create_or_open(path) as records:
        environment = {"python": "3.11.7", "torch": "2.13.0", "platform": "linux", "threads": 2, "code": "0.1.0"}
        run = records.start_run("theorem-check", "Convergence claims of LMC", {"alpha_total": 1e-6}, environment)
        for trial in added:
            records.add(run, change(trial))
        for item in not_run:
            records.not_run(run, item.claim, item.case, item.reason)
        for search in searches:
            records.add_search(run, search)
        if finish:
            records.finish_run(run, "finished")
        return build_report(records, run, CLAIMS)


ABSENT = (NotRun("e6/bias-per-layer", "raw files absent", CaseDescription(dataset="flickr", estimator="lmc")),)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    return make_report(tmp_path_factory.mktemp("records"), not_run=ABSENT, searches=SEARCHES)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Report:
    series = (
        Series(HOSTILE, (1.0, math.nan), (math.inf, 0.0), HOSTILE, HOSTILE, HOSTILE, scale="loglog"),
        Series("", (), (1.0,), "empty", "", "", (1.0, 2.0), (), "semilogy"),
    )

    def change(trial: Trial) -> Trial:
        verdict = replace(
            trial.verdict,
            claim=HOSTILE if trial.verdict.claim == "e7/reductions" else trial.verdict.claim,
            case=replace(trial.verdict.case, dataset=HOSTILE, estimator=HOSTILE, estimator_settings={HOSTILE: HOSTILE}),
            summary=HOSTILE,
            evidence=(
                Evidence(HOSTILE, math.nan, math.inf, HOSTILE, HOSTILE),
                Evidence(HOSTILE, 1, 2, "", "bias per layer"),
            ),
            series=series if trial.verdict.claim.startswith(("e7", "e1")) else (),
            alpha_spent=math.nan if trial.verdict.claim == "e7/reductions" else 1e-9,
            log_e_value=math.nan,
            draws=3,
            hashes={HOSTILE: HOSTILE},
            residual=math.nan,
            tolerance=math.inf,
        )
        control = None if trial.control is None else replace(trial.control, name=HOSTILE, description=HOSTILE)
        return replace(trial, verdict=verdict, command=HOSTILE, expected="VACUOUS", control=control)

    example = FoundExample(
        HOSTILE, 1, 1, 1, HOSTILE, CaseDescription(model=HOSTILE), HOSTILE_DRAWING, {HOSTILE: HOSTILE}
    )
    search = SearchRecord("1", HOSTILE, {HOSTILE: HOSTILE}, "none", HOSTILE, 1, HOSTILE, math.inf, example)
    return make_report(
        tmp_path_factory.mktemp("hostile"),
        change,
        not_run=(NotRun(HOSTILE, HOSTILE, CaseDescription(estimator_settings={HOSTILE: 1})),),
        searches=(
            search,
            replace(search, key="2", found=replace(example, drawing=HOSTILE)),
            replace(search, key="3", found=None, crashed=True),
        ),
    )


def with_outcome(claim: str, outcome: str) -> Callable[[Trial], Trial]:
    """Give the first trial of a claim another outcome and leave what was expected."""
    done: list[Trial] = []

    def change(trial: Trial) -> Trial:
        if trial.kind == "claim" and trial.verdict.claim == claim and not done:
            done.append(trial)
            return replace(trial, verdict=replace(trial.verdict, outcome=Outcome(outcome)))
        return trial

    return change


def with_missed_control(trial: Trial) -> Trial:
    if trial.control is None or trial.control.name != "sign-flipped":
        return trial
    return replace(trial, control=replace(trial.control, passed=False))


# --- the page ---

VOID = {"meta", "br", "hr", "img", "link", "input"}


class Page(HTMLParser):
    """Checks that tags balance; collects ids, links and text."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.ids: list[str] = []
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.text: list[str] = []
        self.feed(source)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, key, value or "") for key, value in attrs]
        self.ids += [value or "" for key, value in attrs if key == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag, f"</{tag}> at {self.getpos()}"

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.text.append(data)


@pytest.mark.parametrize("which", ["report", "hostile"])
def test_the_page_is_well_formed_and_every_link_leads_somewhere(which: str, request: pytest.FixtureRequest) -> None:
    page = Page(render_html(request.getfixturevalue(which)))
    assert [item for item, amount in Counter(page.ids).items() if amount > 1] == []
    targets = [value for _, key, value in page.attributes if key == "href"]
    assert targets
    for target in targets:
        assert target.startswith("#")
        assert target[1:] in page.ids
    for _, key, value in page.attributes:
        if key in ("aria-labelledby", "aria-describedby"):
            assert set(value.split()) <= set(page.ids)
        for used in re.findall(r"url\(#([^)]*)\)", value):
            assert used in page.ids


@pytest.mark.slow
@pytest.mark.parametrize("which", ["report", "hostile"])
def test_the_page_needs_nothing_from_elsewhere(which: str, request: pytest.FixtureRequest) -> None:
    source = render_html(request.getfixturevalue(which))
    page = Page(source)
    assert not {"script", "link", "img", "iframe", "object", "embed", "base", "form"} & set(page.tags)
    assert not [key for _, key, _ in page.attributes if key.startswith(("on", "src", "xlink"))]
    assert "http://" not in source
    assert "https://" not in source
    assert not re.search(r"""(?:href|src|url)\s*[=(]\s*["']?\s*(?:[a-z]+:)?//""", source)
    assert "@import" not in source
    assert "@font-face" not in source


def test_hostile_text_is_shown_and_never_markup(hostile: Report) -> None:
    source = render_html(hostile)
    assert "<b>&" not in source
    assert "49" not in "".join(re.findall(r"\{\{.{0,9}", source))
    assert "\x00" not in source
    assert HOSTILE.replace("\x00", "\ufffd") in "".join(Page(source).text)
    markdown = render_markdown(hostile)
    outside_code = re.sub(r"^(`{3,})sh\n.*?^\1$", "", markdown, flags=re.MULTILINE | re.DOTALL)
    assert "<b>" not in outside_code
    assert len(outside_code) < len(markdown)


def test_outcomes_are_told_by_word_and_sign_not_by_colour_alone(report: Report) -> None:
    source = render_html(report)
    for outcome in Outcome:
        for badge in re.findall(rf'<span class="badge {outcome.value}".*?</span>', source):
            words = "".join(Page(badge).text)
            assert words == report_text.OUTCOME_SYMBOLS[outcome] + report_text.outcome_word(outcome)


def test_every_case_has_its_command_hashes_and_figure(report: Report) -> None:
    page = Page(render_html(report))
    shown = "".join(page.text)
    for case in report.cases:
        assert case.trial.command in shown
    for section in report.sections:
        assert f"residual-{section.anchor}" in page.ids
    assert "bias-claim-e6-bias-per-layer" in page.ids
    assert hashlib.sha256(b"graph").hexdigest() in shown
    for words in (CLAIMS["theorem-1/unbiased"].statement, "LMC, Theorem 1", "raw files absent", "2.13.0"):
        assert words in shown


def test_figures_hold_any_script_and_follow_no_private_settings(tmp_path: Path) -> None:
    trials = [a_trial("e6/bias-per-layer", "REFUTED", None, 1, dataset="引用网络 $x_1$", estimator="lmc")]
    built = make_report(tmp_path, trials=trials)
    source = render_html(built)
    assert "引用网络 $x_1$ · lmc</strong>" in source
    with matplotlib.rc_context({"font.size": 40, "axes.grid": True, "axes.labelsize": 30}):
        assert render_html(built) == source


@pytest.mark.slow
def test_figures_show_zero_infinite_and_unmeasured_residuals(tmp_path: Path) -> None:
    def residual(number: int, value: float | None) -> Trial:
        trial = a_trial("e7/reductions", "EXACT", "EXACT", number, parts=number)
        return replace(trial, verdict=replace(trial.verdict, residual=value, evidence=()))

    values = [0.0, math.inf, math.nan, 1e-300, 1e300, None]
    trials = [residual(number, value) for number, value in enumerate(values)]
    figure = render_html(make_report(tmp_path, trials=trials)).split("<figure>")[1].split("</figure>")[0]
    assert "5 residuals on a log scale; 3 beyond tolerance, 2 within" in figure
    for words in ("exactly 0", "not finite", "within tolerance", "beyond tolerance"):
        assert f"{words}</li>" in figure
    none = [residual(1, None)]
    assert "<figure>" not in render_html(make_report(tmp_path, trials=none))


@pytest.mark.slow
@pytest.mark.parametrize("many", [13, 150])
def test_many_cases_are_folded_and_the_failures_are_not(tmp_path: Path, many: int) -> None:
    trials = [a_trial("e7/reductions", "EXACT", "EXACT", number, seed=number) for number in range(many)]
    trials[5] = replace(trials[5], expected="REFUTED")
    source = render_html(make_report(tmp_path, trials=trials))
    before, _, inside = source.partition('<details class="list">')
    assert before.count('<details class="case">') == 1
    assert inside.count('<details class="case">') == many - 1
    assert f"The other {many - 1} cases" in inside


# --- the numbers ---


def test_the_census_is_a_recount_of_the_trials(report: Report) -> None:
    trials = list(some_trials())
    for row in report.census:
        assert row.section is not None
        mine = [trial for trial in trials if trial.verdict.claim == row.section.claim.id]
        assert dict(row.counts) == Counter(trial.verdict.outcome for trial in mine)
        assert row.expected_total == sum(trial.as_expected is True for trial in mine)
        assert row.open_total == sum(trial.expected is None for trial in mine)
        assert row.unexpected_total == 0
    assert report.totals.total == len(trials) == sum(row.total for row in report.census)
    assert report.totals.not_run_total == 1
    assert sum(cell.amount for m in report.matrices for _, row in m.rows for cells in row for cell in cells) == len(
        trials
    )


def test_sections_follow_the_claim_texts_and_unknown_claims_come_last(tmp_path: Path) -> None:
    trials = [
        a_trial(claim, "EXACT", "EXACT", number)
        for number, claim in enumerate(["mine/new", "e7/reductions", "mine-new", "e1/equals-backward-sgd"])
    ]
    built = make_report(tmp_path, trials=trials)
    ids = [section.claim.id for section in built.sections]
    assert ids == ["e1/equals-backward-sgd", "e7/reductions", "mine/new", "mine-new"]
    Page(render_html(built))
    assert len({section.anchor for section in built.sections}) == 4


def test_labels_tell_the_cases_of_a_claim_apart(report: Report) -> None:
    for section in report.sections:
        labels = [case.label for case in section.cases]
        assert len(set(labels)) == len(labels)


# --- the overall result ---


def test_a_run_as_expected_says_so(tmp_path: Path) -> None:
    trials = [trial for trial in (*some_trials(), *some_controls()) if trial.expected]
    built = make_report(tmp_path, trials=trials)
    claims = len([trial for trial in trials if trial.kind == "claim"])
    assert built.level == "passed"
    assert built.headline == f"{claims} of {claims} verdicts as expected; 5 of 5 controls passed; nothing skipped."


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "level", "words"),
    [
        ({"not_run": ABSENT}, "incomplete", "1 planned check not run"),
        ({"finish": False}, "incomplete", "did not finish"),
        ({"trials": list(some_trials())}, "incomplete", "no control was run"),
        ({"trials": []}, "failed", "No claim was checked"),
        (
            {"change": with_outcome("e1/equals-backward-sgd", "REFUTED")},
            "failed",
            "1 of 38 verdicts is not as expected",
        ),
        ({"change": with_outcome("e7/reductions", "ERROR")}, "failed", "1 of 38 verdicts is not as expected"),
        (
            {"searches": (a_search(), a_search(estimator="lmc", expected="none"))},
            "failed",
            "1 of 2 searches for counterexamples is not as expected",
        ),
        (
            {"searches": (a_search(found=False),)},
            "failed",
            "1 of 1 search for counterexamples is not as expected",
        ),
        (
            {"searches": (replace(a_search(found=False, expected="none"), crashed=True),)},
            "failed",
            "1 of 1 search for counterexamples is not as expected",
        ),
        ({"change": with_missed_control}, "failed", "1 of 5 controls failed, so the verifier itself"),
    ],
    ids=[
        *("not run", "unfinished", "no controls", "nothing", "unexpected", "crashed", "found", "not found"),
        *("search crashed", "control"),
    ],
)
def test_what_went_wrong_is_in_the_headline_of_every_format(
    tmp_path: Path, change: dict[str, Any], level: str, words: str
) -> None:
    built = make_report(tmp_path, **change)
    assert built.level == level
    assert words in built.headline
    assert words in "".join(Page(render_html(built)).text)
    assert words in render_markdown(built)
    assert json.loads(render_json(built))["result"]["headline"] == built.headline


def test_failures_are_linked_from_the_first_screen(tmp_path: Path) -> None:
    built = make_report(tmp_path, with_outcome("e1/equals-backward-sgd", "REFUTED"))
    (case,) = built.unexpected
    first = render_html(built).split("</section>")[0]
    assert f'href="#{case.anchor}"' in first
    assert "expected EXACT" in first


def test_a_missed_control_outranks_the_verdicts(tmp_path: Path) -> None:
    assert make_report(tmp_path, with_missed_control).headline.startswith("1 of 5 controls failed")


# --- counterexamples ---


def test_searches_as_expected_are_in_the_headline(tmp_path: Path) -> None:
    trials = [trial for trial in (*some_trials(), *some_controls()) if trial.expected]
    built = make_report(tmp_path, trials=trials, searches=SEARCHES)
    assert built.level == "passed"
    assert (
        "; 4 of 4 searches for counterexamples as expected; 5 of 5 controls passed; nothing skipped." in built.headline
    )
    alone = make_report(tmp_path, trials=list(some_controls()), searches=SEARCHES)
    assert alone.level == "passed"
    assert alone.headline.startswith("4 of 4 searches for counterexamples as expected; ")


def test_a_counterexample_is_drawn_told_and_linked_from_the_cases_that_it_explains(report: Report) -> None:
    source = render_html(report)
    page, shown = Page(source), " ".join("".join(Page(source).text).split())
    assert "Counterexamples" in shown
    for search in report.counterexamples:
        assert search.anchor in page.ids
        assert search.record.command in shown
        if search.found is None:
            continue
        assert f"drawing-{search.anchor}-title" in page.ids
        for part in (search.found.caption, "2 nodes, 2 directed edges, 2 layers", search.reproduction):
            assert part in shown
        assert search.reproduction == f"lmc-verify reproduce counterexamples/{search.found.name}.json"
    assert "lmc · beta 1 · layers 2: refuted with" in shown
    assert "no counterexample found" in shown

    def linked(case: Case) -> list[str]:
        body = source.split(f'<div class="body" id="{case.anchor}">')[1].split("</details>\n</div>")[0]
        return re.findall(r'href="#(counterexample-\d+)"', body.split("<h4>Reproduce</h4>")[0])

    expected = {("theorem-1/unbiased", "gas"): ["counterexample-1"], ("e6/bias-per-layer", "fm"): ["counterexample-3"]}
    explained = 0
    for case in report.cases:
        wanted = expected.get((case.verdict.claim, case.verdict.case.estimator), [])
        wanted = wanted if case.verdict.outcome is Outcome.REFUTED else []
        assert linked(case) == wanted, case.label
        assert [search.anchor for search in report.counterexamples_to(case)] == wanted
        explained += bool(wanted)
    assert explained == 4


def test_a_counterexample_of_other_settings_explains_nothing(tmp_path: Path) -> None:
    settings: list[dict[str, Any]] = [{}, {"beta": 1.0}, {"beta": 1.0, "score": "constant"}]
    trials = [
        a_trial("theorem-1/unbiased", outcome, None, number, estimator="lmc", **case)
        for number, case in enumerate(settings)
        for outcome in ("REFUTED",)
    ]
    searches = tuple(a_search(estimator="lmc", **case) for case in settings)
    built = make_report(tmp_path, trials=trials, searches=searches)
    for case, search in zip(built.cases, built.counterexamples, strict=True):
        assert built.counterexamples_to(case) == (search,)
    exact = make_report(
        tmp_path, trials=[a_trial("theorem-1/unbiased", "EXACT", None, 1, estimator="gas")], searches=SEARCHES
    )
    assert exact.counterexamples_to(exact.cases[0]) == ()


@pytest.mark.slow
def test_unexpected_searches_are_linked_from_the_first_screen(tmp_path: Path) -> None:
    built = make_report(tmp_path, searches=(a_search(), a_search(estimator="lmc", expected="none")))
    (search,) = built.unexpected_searches
    first = render_html(built).split("</section>")[0]
    assert f'href="#{search.anchor}"' in first
    assert "expected none" in first
    assert "counterexample-1" not in first
    assert search.anchor in json.loads(render_json(built))["unexpected"]
    assert "expected none" in render_markdown(built).split("## Census")[0]


def test_drawings_keep_their_own_ids_and_bring_nothing_else() -> None:
    drawn = [inline_drawing(DRAWING, name, "<&>") for name in ("a", "b")]
    assert drawn[0] is not None
    assert drawn[0].replace('"a-', '"b-').replace("#a-", "#b-") == drawn[1]
    root = ElementTree.fromstring(drawn[0])
    assert root.attrib == {"viewBox": "0 0 576 267", "role": "img", "aria-labelledby": "a-title"}
    assert [element.tag for element in root.iter()] == [
        *("svg", "title", "defs", "clipPath", "rect", "path", "g", "path", "use", "text"),
    ]
    assert root[0].text == "<&>"
    assert {element.get("id") for element in root.iter()} - {None} == {"a-title", "a-p1", "a-m1", "a-figure_1"}
    assert "url(#a-p1)" in drawn[0]
    assert 'href="#a-m1"' in drawn[0]
    assert "cluster 0" in drawn[0]
    hostile = inline_drawing(HOSTILE_DRAWING, "h", HOSTILE)
    assert hostile is not None
    for word in ("alert", "elsewhere", "onload", "onclick", "style>", "import", "image", "iframe", "http", '"claims"'):
        assert word not in hostile, word
    assert 'id="h-claims"' in hostile
    assert "url(#h-a)" in hostile
    for broken in ("", "no drawing", "<svg", "<svg viewBox='0 0 1 1'><g></svg>", "<svg/>", "<svgs viewBox='0 0 1 1'/>"):
        assert inline_drawing(broken, "h", "") is None


@pytest.mark.slow
def test_links_to_drawings_lead_there_from_wherever_the_report_lies(tmp_path: Path) -> None:
    built = make_report(tmp_path, searches=SEARCHES)
    folder = tmp_path / "counterexamples"
    folder.mkdir()
    for search in built.counterexamples:
        if search.found is not None:
            (folder / f"{search.found.name}.svg").write_text(DRAWING)
    for out in (tmp_path, tmp_path / "a b" / "deep"):
        text = write_report(built, out)["markdown"].read_text()
        links = re.findall(r"\]\(([^)]*\.svg)\)", text)
        assert len(links) == 3
        for link in links:
            assert (out / unquote(link)).is_file()
    assert "](counterexamples/theorem-1-unbiased-gas.svg)" in render_markdown(built)


def test_searches_are_in_json_and_junit(report: Report) -> None:
    document = json.loads(render_json(report))
    assert [item["id"] for item in document["counterexamples"]] == [item.anchor for item in report.counterexamples]
    first, *_, last = document["counterexamples"]
    assert (first["outcome"], first["as_expected"], first["found"]["nodes"]) == ("found", True, 2)
    assert "drawing" not in first["found"]
    assert first["refuted_cases"] == [case.anchor for case in report.cases if report.counterexamples[0].refutes(case)]
    assert (last["outcome"], last["found"], last["reproduce"]) == ("none", None, None)
    assert (document["result"]["counterexamples"], document["result"]["counterexamples_not_as_expected"]) == (4, 0)
    root = ElementTree.fromstring(render_junit(report))
    names = [case.attrib["name"] for case in root.findall("testsuite[@name='counterexamples']/testcase")]
    assert names[0] == "theorem-1/unbiased gas [counterexample-1]"
    assert len(names) == 4


def test_junit_tells_a_crashed_search_from_an_unexpected_one(tmp_path: Path) -> None:
    crashed = replace(a_search(found=False), crashed=True, summary="RuntimeError: the disk is full")
    built = make_report(tmp_path, searches=(crashed, a_search(estimator="fm", expected="none")))
    root = ElementTree.fromstring(render_junit(built))
    (error,), (failure,) = root.findall(".//error"), root.findall(".//failure")
    assert "the disk is full" in (error.text or "")
    assert failure.attrib["message"] == "refuted with 2 nodes, 2 directed edges, 2 layers, expected none"
    assert "search again: lmc-verify counterexample" in (failure.text or "")


@pytest.mark.slow
def test_an_unfinished_run_counts_its_searches(tmp_path: Path) -> None:
    with Records.create_or_open(tmp_path / "u.sqlite") as records:
        run = records.start_run("s", "t", {"planned": 7}, {})
        records.add_search(run, a_search())
        report = build_report(records, run, CLAIMS)
    assert "the run did not finish (1 of 7 parts)" in report.headline
    assert "Planned checks that the run did not reach." in render_html(report)
    for rendered in (render_markdown(report), render_html(report)):
        assert "every planned check was run" not in rendered


# --- JSON, JUnit, Markdown ---


def refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is not JSON")


@pytest.mark.parametrize("which", ["report", "hostile"])
def test_json_is_strict_and_complete(which: str, request: pytest.FixtureRequest) -> None:
    built: Report = request.getfixturevalue(which)
    document = json.loads(render_json(built), parse_constant=refuse)
    assert document["schema"] == "lmc-verify/report/1"
    cases = [case for claim in document["claims"] for case in claim["cases"]]
    assert [case["key"] for case in cases] == [case.trial.key for case in built.cases]
    assert len(document["controls"]) == len(built.controls)
    assert document["result"]["level"] == built.level
    assert cases[0]["verdict"]["evidence"][0]["quantity"] == built.cases[0].verdict.evidence[0].quantity
    if which == "hostile":
        assert cases[0]["verdict"]["residual"] == "NaN"
        assert cases[0]["verdict"]["tolerance"] == "Infinity"


@pytest.mark.parametrize("which", ["report", "hostile"])
def test_junit_counts_failures_errors_and_skips(which: str, request: pytest.FixtureRequest) -> None:
    built: Report = request.getfixturevalue(which)
    root = ElementTree.fromstring(render_junit(built).encode())
    assert len(root.findall(".//testcase")) == sum(
        map(len, (built.cases, built.controls, built.not_run, built.counterexamples))
    )
    failed = [case for case in (*built.cases, *built.controls) if case.failed]
    failed += [search for search in built.counterexamples if search.failed and not search.record.crashed]
    assert int(root.attrib["failures"]) == len(root.findall(".//failure")) == len(failed)
    assert int(root.attrib["skipped"]) == len(root.findall(".//skipped")) == 1
    assert int(root.attrib["tests"]) == sum(int(suite.attrib["tests"]) for suite in root)


def test_junit_tells_a_crash_from_a_failure(tmp_path: Path) -> None:
    root = ElementTree.fromstring(render_junit(make_report(tmp_path, with_outcome("e7/reductions", "ERROR"))))
    (error,) = root.findall(".//error")
    assert "reproduce: lmc-verify check e7/reductions" in (error.text or "")
    assert root.attrib["failures"] == "0"


@pytest.mark.parametrize("which", ["report", "hostile"])
def test_the_tables_of_the_markdown_are_rectangular(which: str, request: pytest.FixtureRequest) -> None:
    built = request.getfixturevalue(which)
    tables: list[list[int]] = [[]]
    for line in render_markdown(built).splitlines():
        if line.startswith("|"):
            tables[-1].append(len(re.findall(r"(?<!\\)\|", line)))
        elif tables[-1]:
            tables.append([])
    assert len(tables) > 6
    for widths in tables[:-1]:
        assert len(widths) > 2
        assert len(set(widths)) == 1


# --- writing ---


def test_the_same_records_give_the_same_bytes(tmp_path: Path) -> None:
    make_report(tmp_path)
    (path,) = tmp_path.glob("*.sqlite")
    with Records.open(path) as records:
        first = write_report(build_report(records, 1, CLAIMS), tmp_path / "a")
    with Records.open(path) as records:
        second = write_report(build_report(records, 1, CLAIMS), tmp_path / "b")
    assert first.keys() == second.keys() == {"html", "markdown", "json", "junit"}
    for key in first:
        assert first[key].read_bytes() == second[key].read_bytes()
    assert sorted(item.name for item in (tmp_path / "a").iterdir()) == sorted(item.name for item in first.values())


@pytest.mark.slow
def test_a_failed_write_leaves_the_older_report(tmp_path: Path, report: Report, monkeypatch: Any) -> None:
    paths = write_report(report, tmp_path)
    before = {path: path.read_bytes() for path in paths.values()}
    newer = replace(report, run=replace(report.run, title="Newer"))

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OutputError, match="No space left on device") as caught:
        write_report(newer, tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.slow
def test_a_folder_that_cannot_be_written_is_an_output_error(tmp_path: Path, report: Report) -> None:
    (tmp_path / "file").write_text("mine")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InvalidInputError, match=r"cannot be a folder.* choose another output folder") as taken:
            write_report(report, folder)
        assert taken.value.exit_code == 2, "an argument to be changed"
    (tmp_path / "out" / "report.md").mkdir(parents=True)
    with pytest.raises(OutputError, match=r"report\.md is a folder"):
        write_report(report, tmp_path / "out")
    assert [item.name for item in (tmp_path / "out").iterdir()] == ["report.md"]
    assert (tmp_path / "file").read_text() == "mine"


def test_an_unknown_run_is_refused(tmp_path: Path) -> None:
    with Records.create_or_open(tmp_path / "r.sqlite") as records, pytest.raises(RecordsError, match="no run 3"):
        build_report(records, 3, CLAIMS)


# --- words ---


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (1.23456789e-16, "1.2e-16"),
        (0.0421234, "0.0421"),
        (0.0, "0"),
        (-2.0, "-2"),
        (1234.5, "1,234"),
        (3.2e9, "3.2e+09"),
        (math.nan, "NaN"),
        (-math.inf, "−∞"),
        (None, "–"),
    ],
)
def test_numbers_are_short(value: float | None, words: str) -> None:
    assert report_text.number(value) == words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.004, "0.004 s"), (1.26, "1.3 s"), (59.7, "1 min 00 s"), (192, "3 min 12 s"), (7500, "2 h 05 min")],
)
def test_durations_are_short(seconds: float, words: str) -> None:
    assert report_text.duration(seconds) == words


@pytest.mark.parametrize(
    ("value", "words"), [(1e-6, "1e-6"), (4.17e-8, "4.2e-8"), (1e-10, "1e-10"), (0.05, "0.05"), (0.0, "0"), (None, "–")]
)
def test_error_levels_are_short(value: float | None, words: str) -> None:
    assert report_text.level(value) == words


@pytest.mark.parametrize(
    ("logarithm", "words"),
    [
        (9.2 * math.log(10), "10^9.2"),
        (-1.0, "10^-0.4"),
        (0.0, "10^0.0"),
        (-0.01, "10^0.0"),
        (math.inf, "∞"),
        (None, "–"),
    ],
)
def test_e_values_are_powers_of_ten(logarithm: float | None, words: str) -> None:
    assert report_text.e_value(logarithm) == words


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [(0.12, 0.15, "[0.12, 0.15]"), (None, 0.1, "≤ 0.1"), (0.1, math.inf, "≥ 0.1"), (None, None, "–")],
)
def test_intervals_show_the_ends_that_they_have(low: float | None, high: float | None, words: str) -> None:
    assert report_text.interval(low, high) == words


# --- statistical verdicts ---

STATISTICAL = {
    claim: ClaimText(claim, claim, "s", "derived", tier, "")
    for claim, tier in (("theorem-1/unbiased-sampled", "test"), ("theorem-3/rate", "rate"))
}
STEPS = (32.0, 64.0, 128.0, 256.0, 512.0)


def a_curve(name: str = "mean", figure: str = "Norm against steps", **changes: Any) -> Series:
    values = tuple(step**-0.25 for step in STEPS)
    drawn = Series(name, STEPS, values, figure, "steps N", "norm / first norm", scale="loglog")
    return replace(drawn, **changes)


def a_rate(estimator: str, outcome: str = "SUPPORTED", *series: Series, **case: Any) -> Trial:
    verdict = Verdict(
        "theorem-3/rate",
        Outcome(outcome),
        "the slope is below -1/6",
        case=CaseDescription.from_dict({"dataset": "karate", "model": "gcn", "estimator": estimator, **case}),
        alpha_spent=2e-8,
        draws=1280,
        minimum_detectable_effect=0.043,
        evidence=(Evidence("slope", -0.271, -1 / 6, "per log step", "rate", low=-0.312, high=-0.229),),
        series=series or (a_curve(),),
    )
    return Trial(repr((estimator, case)), "claim", verdict, outcome, "lmc-verify check theorem-3/rate", 3.0)


def a_sampled(estimator: str, log_e_value: float, outcome: str = "REFUTED", **case: Any) -> Trial:
    trial = a_rate(estimator, outcome, **case)
    verdict = replace(trial.verdict, claim="theorem-1/unbiased-sampled", log_e_value=log_e_value, series=())
    return replace(trial, key=f"sampled {trial.key}", verdict=verdict)


def statistical_report(
    folder: Path, trials: list[Trial], *, total: float | None = 1e-6, earlier: tuple[Trial, ...] = ()
) -> Report:
    folder.mkdir(exist_ok=True)
    with Records.create_or_open(folder / "statistical.sqlite") as records:
        for trial in earlier:
            records.add(records.start_run("earlier", "Earlier", {}, {}), trial)
        run = records.start_run("rates", "Rates", {} if total is None else {"alpha_total": total}, {})
        for trial in trials:
            records.add(run, trial)
        records.finish_run(run, "finished")
        return build_report(records, run, CLAIMS | STATISTICAL)


def shown(report: Report) -> str:
    """The words of the page but for its glossary; parts of a sentence in elements of their own are joined to it."""
    page, cut = re.subn(r'<h2 id="glossary">.*?</details>', "", render_html(report), flags=re.DOTALL)
    assert cut == 1
    words = " ".join(" ".join(Page(page).text).split())
    return re.sub(r" (?=[.;,])", "", words)


@pytest.mark.slow
def test_a_statistical_verdict_shows_interval_error_level_and_draws(tmp_path: Path) -> None:
    built = statistical_report(tmp_path, [a_rate("lmc"), a_sampled("gas", 21.2)])
    page, markdown = shown(built), render_markdown(built)
    assert "<svg" in render_html(built)
    for words in ("[-0.312, -0.229]", "error level 2e-8", "independent runs 1,280", "batches drawn 1,280"):
        assert words in page
    for words in ("minimum detectable effect 0.043", "e-value against the claim 10^9.2", "Estimate: slope"):
        assert words in page
    assert "residual" not in page
    assert "-0.312, -0.229" in markdown
    assert "| estimate | interval | error level |" in markdown


def test_statistical_cases_without_intervals_show_draws_and_e_values(tmp_path: Path) -> None:
    def bare(trial: Trial, **changes: Any) -> Trial:
        return replace(trial, verdict=replace(trial.verdict, evidence=(), **changes))

    whole = bare(a_sampled("lmc", 0.0, "SUPPORTED"), draws=6, alpha_spent=0.0)
    rate = bare(a_rate("lmc"), log_e_value=None)
    built = statistical_report(tmp_path, [whole, bare(a_sampled("gas", 21.2), draws=5), rate])
    sampled, rates = built.sections
    assert (sampled.columns, rates.columns) == (("draws", "e-value", "error level"), ("runs", "e-value", "error level"))
    assert [sampled.measures(case) for case in sampled.cases] == [("6", "10^0.0", "0"), ("5", "10^9.2", "2e-8")]
    assert rates.measures(rates.cases[0])[1:] == ("–", "2e-8")
    # The whole support was drawn: chance cannot change the verdict, which spent nothing.
    assert built.errors.certain == 1
    assert "2 statistical checks spent 4e-8 of 1e-6; 1 verdict that does not depend on chance spent nothing" in shown(
        built
    )


def test_an_enumerated_verdict_has_error_level_zero(report: Report) -> None:
    page = shown(report)
    decided = [case for case in report.cases if case.verdict.outcome is not Outcome.NOT_APPLICABLE]
    assert page.count("error level 0: enumerated") == len(decided) < len(report.cases)
    assert "none can be wrong by chance" in page


@pytest.mark.slow
@pytest.mark.parametrize("outcome", Outcome)
def test_every_outcome_can_be_shown_without_a_residual(tmp_path: Path, outcome: Outcome) -> None:
    built = statistical_report(tmp_path, [a_rate("lmc", outcome.value)])
    assert f"{report_text.OUTCOME_SYMBOLS[outcome]} {report_text.outcome_word(outcome)}" in shown(built)
    assert built.totals.counts == {outcome: 1}
    assert f".{outcome.value}" in render_html(built)  # its colours
    assert "residual-" not in render_html(built)
    assert built.matrices[0].rows[0][1][0][0].outcome is outcome


# --- the error ledger ---


@pytest.mark.slow
def test_the_ledger_adds_up_what_the_checks_spent(tmp_path: Path) -> None:
    spending = a_sampled("gas", 21.2)
    control = replace(
        spending, key="control", kind="control", control=ControlRecord("n", "", "defect", 1.0, True, True)
    )
    built = statistical_report(
        tmp_path, [a_rate("lmc"), a_rate("gas"), spending, a_trial("e7/x", "EXACT", None, 1), control]
    )
    assert built.errors.spent == pytest.approx(6e-8, rel=1e-12)
    assert [(row.section.claim.id, len(row.cases)) for row in built.errors.claims] == [
        ("theorem-1/unbiased-sampled", 1),
        ("theorem-3/rate", 2),
    ]
    page = shown(built)
    assert "is at most 1e-6. " in page
    words = "3 statistical checks spent 6e-8 of 1e-6; 1 verdict that does not depend on chance spent nothing"
    assert words in page
    assert words in render_markdown(built)
    assert "controls, whose answers are known, spent 2e-8 in addition" in page
    markdown = render_markdown(built)
    assert "| theorem-3/rate | 2 | 2e-8 | 4e-8 |" in markdown
    assert "is at most 1e-6." in markdown
    document = json.loads(render_json(built))["error_ledger"]
    assert document["alpha_total"] == 1e-6
    assert document["alpha_spent"] == built.errors.spent
    assert [item["alpha_spent"] for item in document["checks"]] == [2e-8] * 3
    assert built.level == "passed"


@pytest.mark.slow
def test_what_was_spent_asymptotically_is_counted_apart(tmp_path: Path) -> None:
    spending = a_sampled("gas", 21.2)
    asymptotic = replace(spending, verdict=replace(spending.verdict, guarantee="asymptotic", log_e_value=None))
    built = statistical_report(tmp_path, [a_rate("lmc"), a_rate("gas"), asymptotic])
    assert built.errors.asymptotic == pytest.approx(2e-8)
    assert built.errors.anytime_valid == pytest.approx(4e-8)
    page = shown(built)
    assert "spent 6e-8 of 1e-6 (anytime-valid 4e-8, asymptotic 2e-8); " in built.errors.spending
    assert "(anytime-valid 4e-8, asymptotic 2e-8" in page
    assert "Of it 2e-8 is asymptotic" in page
    document = json.loads(render_json(built))["error_ledger"]
    assert document["alpha_spent_anytime_valid"] == built.errors.anytime_valid
    assert document["alpha_spent_asymptotic"] == built.errors.asymptotic
    assert sorted(item["guarantee"] for item in document["checks"]) == ["anytime-valid", "anytime-valid", "asymptotic"]
    assert "asymptotic" not in shown(statistical_report(tmp_path / "plain", [a_rate("lmc")]))


def test_a_run_that_spent_more_than_it_said_has_failed(tmp_path: Path) -> None:
    built = statistical_report(tmp_path, [a_rate("lmc"), a_rate("gas")], total=3e-8)
    assert built.level == "failed"
    assert "spent an error level of 4e-8, more than 3e-8" in built.headline
    assert "is at most 4e-8." in built.errors.guarantee


def test_shares_of_the_total_may_add_up_to_it(tmp_path: Path) -> None:
    shares = [0.1 + 0.2, 0.3]  # 0.30000000000000004 + 0.3 is more than 0.6
    trials = [a_rate("lmc"), a_rate("gas")]
    trials = [
        replace(trial, verdict=replace(trial.verdict, alpha_spent=share))
        for trial, share in zip(trials, shares, strict=True)
    ]
    assert not statistical_report(tmp_path, trials, total=0.6).errors.overspent


def test_without_a_stated_total_the_guarantee_is_what_was_spent(tmp_path: Path) -> None:
    built = statistical_report(tmp_path, [a_rate("lmc"), a_rate("gas")], total=None)
    assert "is at most 4e-8." in built.errors.guarantee


# --- repetitions ---


@pytest.mark.slow
def test_independent_repetitions_of_all_runs_multiply(tmp_path: Path) -> None:
    tens = [value * math.log(10) for value in (4.0, 3.0, 2.2)]
    earlier = tuple(a_sampled("gas", value, replicate=k) for k, value in enumerate(tens) if k)
    built = statistical_report(tmp_path, [a_sampled("gas", tens[0]), a_sampled("lmc", 0.1)], earlier=earlier)
    gas, lmc = built.cases
    assert gas.combined_log_e_value == pytest.approx(math.fsum(tens))
    assert lmc.combined_log_e_value is None
    words = "vidence of 3 independent repetitions: e = 10^9.2"
    assert shown(built).count(words) == 1
    assert words in render_markdown(built)
    cases = {case["id"]: case for claim in json.loads(render_json(built))["claims"] for case in claim["cases"]}
    assert cases[gas.anchor]["combined_log_e_value"] == gas.combined_log_e_value
    assert (cases[gas.anchor]["repetitions"], cases[lmc.anchor]["repetitions"]) == (3, 1)
    assert "combined_log_e_value" in render_junit(built)


def test_a_product_of_zero_and_infinity_is_undefined(tmp_path: Path) -> None:
    def combined(*values: float) -> float | None:
        earlier = tuple(a_sampled("gas", value, replicate=k) for k, value in enumerate(values) if k)
        folder = tmp_path / "-".join(map(str, values))
        return statistical_report(folder, [a_sampled("gas", values[0])], earlier=earlier).cases[0].combined_log_e_value

    assert combined(1.0, math.inf) == math.inf
    assert combined(1.0, -math.inf) == -math.inf
    assert math.isnan(combined(math.inf, -math.inf) or 0.0)
    assert math.isnan(combined(math.nan, 1.0) or 0.0)


# --- the score of the controls ---


@pytest.mark.slow
def test_the_mutation_score_counts_defects_above_the_detectable_effect(tmp_path: Path) -> None:
    def change(trial: Trial) -> Trial:
        changed = {"float16-cast": None, "wrong-weighting": None, "sign-flipped": False}
        if trial.control is None or trial.control.name not in changed:
            return trial
        return replace(trial, control=replace(trial.control, passed=changed[trial.control.name]))

    built = make_report(tmp_path, change)
    words = "utation score: 1 of 2 defects above the detectable effect caught (50%); 2 below it"
    assert shown(built).count(words) == 2  # on the first screen, and above the table of controls
    assert words in render_markdown(built)
    assert json.loads(render_json(built))["mutation_score"] == {"caught": 1, "above": 2, "below": 2}
    assert "4 of 4 defects above the detectable effect caught (100%)" in shown(make_report(tmp_path))
    none = make_report(tmp_path, trials=list(some_trials()))
    assert json.loads(render_json(none))["mutation_score"] is None
    assert "utation score" not in shown(none)


# --- curves ---


@pytest.mark.slow
def test_the_cases_of_a_claim_are_drawn_together_and_each_alone(tmp_path: Path) -> None:
    built = statistical_report(tmp_path, [a_rate("lmc"), a_rate("gas", "REFUTED")])
    (section,) = built.sections
    (plot,) = claim_plots(section)
    assert [curve.label for curve in plot.curves] == ["lmc", "gas"]
    assert len({(curve.colour, curve.dash) for curve in plot.curves}) == 2
    assert plot.notes == ["Curves: mean."]
    page = Page(render_html(built))
    drawn = [item for item in page.ids if item.startswith("curves-") and item.endswith("-title")]
    assert drawn == [f"curves-{section.anchor}-1-title", "curves-case-1-1-title", "curves-case-2-1-title"]
    text = "".join(page.text)
    assert "norm / first norm against steps N, log axes. lmc: 5 points, from 0.42 at 32 to 0.21 at 512" in text


def test_a_case_that_its_claim_shows_alone_is_drawn_once(tmp_path: Path) -> None:
    built = statistical_report(tmp_path, [a_rate("lmc", "SUPPORTED", a_curve("measured"), a_curve("bound"))])
    (plot,) = claim_plots(built.sections[0])
    assert [curve.label for curve in plot.curves] == ["measured", "bound"]
    assert render_html(built).count('<figure class="curve">') == 1


def test_a_curve_that_cases_share_is_drawn_once(tmp_path: Path) -> None:
    claimed = a_curve("claimed", y=(0.75,) * 5)
    lmc, gas = a_curve("measured"), a_curve("measured", y=(0.5,) * 5)
    built = statistical_report(
        tmp_path, [a_rate("lmc", "SUPPORTED", lmc, claimed), a_rate("gas", "REFUTED", gas, claimed)]
    )
    (plot,) = claim_plots(built.sections[0])
    assert [curve.label for curve in plot.curves] == ["lmc", "claimed", "gas"]
    assert [curve.shared for curve in plot.curves] == [False, True, False]
    assert plot.hidden == 0
    assert "Curves: measured." in plot.notes
    same = statistical_report(
        tmp_path, [a_rate("fm", "SUPPORTED", lmc, claimed), a_rate("lmc", "SUPPORTED", lmc, claimed)]
    )
    labels = [curve.label for curve in claim_plots(same.sections[0])[0].curves]
    assert labels == ["fm, measured", "fm, claimed", "lmc, measured", "lmc, claimed"]


def test_curves_that_all_cases_share_take_no_room_from_theirs(tmp_path: Path) -> None:
    claimed, full = a_curve("claimed", y=(0.75,) * 5), a_curve("full batch", y=(0.3,) * 5)
    trials = [
        a_rate(name, "SUPPORTED", a_curve(y=tuple(map(float, range(n, n + 5)))), full, claimed)
        for n, name in enumerate(list(ESTIMATORS)[:MOST_CURVES])
    ]
    (plot,) = claim_plots(statistical_report(tmp_path, trials).sections[0])
    assert sum(not curve.shared for curve in plot.curves) == MOST_CURVES
    assert [curve.label for curve in plot.curves if curve.shared] == ["full batch", "claimed"]
    assert plot.hidden == 0


def test_figures_differ_by_title_axes_and_scale(tmp_path: Path) -> None:
    curves = (a_curve(), a_curve(figure="Loss"), a_curve(scale="linear"), a_curve(x_label="epoch"))
    built = statistical_report(tmp_path, [a_rate("lmc", "SUPPORTED", *curves)])
    assert [len(plot.curves) for plot in case_plots(built.cases[0])] == [1, 1, 1, 1]


def test_many_curves_are_split_by_data_set_and_the_rest_is_counted(tmp_path: Path) -> None:
    trials = [
        a_rate(name, "SUPPORTED", a_curve(y=tuple(map(float, range(n, n + 5)))), dataset=data, layers=k)
        for data in ("karate", "digits")
        for n, name in enumerate(ESTIMATORS)
        for k in (2, 3)
    ]
    section = statistical_report(tmp_path, trials).sections[0]
    plots = claim_plots(section)
    assert [plot.detail for plot in plots] == ["karate", "digits"]
    for plot in plots:
        assert len(plot.curves) == MOST_CURVES
        assert len({curve.label for curve in plot.curves}) == MOST_CURVES
        assert len({case.verdict.case.layers for case in plot.cases}) == 1  # comparable
        assert plot.hidden == 14 - MOST_CURVES
        assert "8 further curves in the list of cases." in plot.notes


@pytest.mark.slow
def test_the_curves_of_the_first_screen_are_files_one_for_each_figure(tmp_path: Path) -> None:
    """The same as on the page, with colours of their own; curves of other claims are no files."""
    trials = [
        a_rate(name, "SUPPORTED", a_curve(y=tuple(map(float, range(n, n + 5)))), dataset=data)
        for data in ("karate", "digits")
        for n, name in enumerate(list(ESTIMATORS)[:5])
    ]
    built = statistical_report(tmp_path, trials)
    write_report(built, tmp_path / "out")
    files = {path.name: path.read_text() for path in (tmp_path / "out" / "figures").iterdir()}
    assert set(files) == {"theorem-3-rate-1-karate.svg", "theorem-3-rate-2-digits.svg"}
    for name, plot in zip(sorted(files), claim_plots(built.sections[0]), strict=True):
        assert ElementTree.fromstring(files[name]).attrib["viewBox"]
        assert f"Norm against steps · {plot.detail}</text>" in files[name]
        assert "prefers-color-scheme: dark" in files[name]
    other = replace(trials[0], verdict=replace(trials[0].verdict, claim="theorem-1/unbiased-sampled"))
    write_report(statistical_report(tmp_path / "other", [other]), tmp_path / "none")
    assert not (tmp_path / "none" / "figures").exists()


def test_the_markdown_has_short_curves_as_tables(tmp_path: Path) -> None:
    long = a_curve(x=tuple(map(float, range(50))), y=(1.0,) * 50, figure="Long")
    markdown = render_markdown(statistical_report(tmp_path, [a_rate("lmc", "SUPPORTED", a_curve(), long)]))
    assert "| steps N | mean |\n|--:|--:|\n| 32 | 0.42 |" in markdown
    assert "50 points, drawn in the HTML report." in markdown


def test_curves_intervals_and_e_values_are_in_json_and_junit(tmp_path: Path) -> None:
    curve = a_curve(low=(0.1,) * 5, high=(0.9, 0.9, 0.9, 0.9, math.inf))
    built = statistical_report(tmp_path, [a_rate("lmc", "SUPPORTED", curve), a_sampled("gas", math.inf)])
    document = json.loads(render_json(built), parse_constant=refuse)
    sampled, rate = (claim["cases"][0]["verdict"] for claim in document["claims"])
    assert rate["series"][0]["high"] == [0.9, 0.9, 0.9, 0.9, "Infinity"]
    assert rate["series"][0]["scale"] == "loglog"
    assert (rate["evidence"][0]["low"], rate["evidence"][0]["high"]) == (-0.312, -0.229)
    assert sampled["log_e_value"] == "Infinity"
    root = ElementTree.fromstring(render_junit(built))
    found = [
        {item.attrib["name"]: item.attrib["value"] for item in case.iter("property")} for case in root.iter("testcase")
    ]
    assert found[1] == {"alpha_spent": "2e-08", "draws": "1280", "minimum_detectable_effect": "0.043"}
    assert found[0]["log_e_value"] == "inf"


ANY = st.floats(allow_nan=True, allow_infinity=True) | st.sampled_from([0.0, -0.0, 1e-320, 1e308, -1.0, math.nan])
MOST = st.integers(0, 8)


@st.composite
def any_series(draw: st.DrawFn, figure: str = "f") -> Series:
    size = draw(MOST)
    values = st.lists(ANY, min_size=size, max_size=size).map(tuple)
    scale = draw(st.sampled_from(["linear", "semilogy", "loglog"]))
    low, high = (draw(values), draw(values)) if draw(st.booleans()) else ((), ())
    return Series(draw(st.text(max_size=30)), draw(values), draw(values), figure, "x", "y", low, high, scale)


@given(any_series())
def test_every_point_is_on_the_axes_or_at_their_edge_or_counted(series: Series) -> None:
    points = Points.of(series)
    on_axes = [y for y in points.y if not math.isnan(y)]
    assert len(on_axes) + len(points.below) + len(points.above) + points.left_out == len(series.x)
    assert all(math.isfinite(y) for y in on_axes)
    assert len(points.x) == len(points.y) == len(series.x) - points.left_out
    if series.scale != "linear":
        assert all(y > 0 for y in on_axes)
        assert len(points.below) >= sum(y <= 0 and 0 < x < 1e290 for x, y in zip(series.x, series.y, strict=True))
    if series.scale == "loglog":
        assert all(x > 0 for x in points.x)
    assert points.left_out >= sum(math.isnan(y) for y in series.y)


def drawn_numbers(svg: str) -> list[tuple[float, float]]:
    """Positions of every path, mark and text of a figure (clip paths and marker shapes apart)."""
    body = re.sub(r"<defs>.*?</defs>", "", svg, flags=re.DOTALL)
    found = []
    for path in re.findall(r' d="([^"]*)"', body):
        numbers = [float(number) for number in re.findall(r"-?[\d.]+(?:e-?\d+)?", path)]
        found += list(zip(numbers[::2], numbers[1::2], strict=True))
    for element in re.findall(r"<(?:use|text)[^>]*>", body):
        at = re.search(r' x="(-?[\d.]+)" y="(-?[\d.]+)"', element)
        shift = re.search(r"translate\((-?[\d.]+)[ ,]+(-?[\d.]+)\)", element)
        place = at or shift
        if place is not None:
            found.append((float(place[1]), float(place[2])))
    return found


@pytest.mark.slow
@examples(30)
@given(st.lists(any_series(), min_size=1, max_size=3))
@example([a_curve(low=(-math.inf, math.nan, 0.0, 1e308, 1.0), high=(math.inf,) * 5, scale="linear")])
@example([a_curve(low=(-math.inf, math.nan, 0.0, 1e308, 1.0), high=(math.inf,) * 5)])
def test_whatever_was_measured_is_drawn_inside_its_figure(curves: list[Series]) -> None:
    verdict = Verdict("c", Outcome.SUPPORTED, "", series=tuple(curves))
    trial = Trial("k", "claim", verdict, None, "", 0.1)
    for plot in case_plots(Case("case-1", "label", trial)):
        svg = line_plot(plot, "f")
        ElementTree.fromstring(svg)
        assert "nan" not in " ".join(re.findall(r' (?:d|x|y)="([^"]*)"', svg))
        box = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)
        assert box is not None
        numbers = drawn_numbers(svg)
        assert len(numbers) > 4
        for x, y in numbers:
            assert -1 <= x <= float(box[1]) + 1
            assert -1 <= y <= float(box[2]) + 1


def test_the_edges_of_log_axes_are_explained(tmp_path: Path) -> None:
    curve = a_curve(x=(0.0, *STEPS[1:]), y=(1.0, 0.0, math.inf, math.nan, 0.1))
    built = statistical_report(tmp_path, [a_rate("lmc", "SUPPORTED", curve)])
    page = shown(built)
    for words in (
        "1 value of 0 or less, at the lower edge.",
        "1 infinite value, at the upper edge.",
        "2 points without a place on the axes left out.",
    ):
        assert words in page


@pytest.mark.parametrize("last", [1e-9, 1.0, 1e9], ids=["lower edge", "middle", "upper edge"])
def test_labels_at_the_ends_of_curves_do_not_overlap(tmp_path: Path, last: float) -> None:
    values = (0.1, 1.0, 10.0, 1.0, last)
    curves = [a_curve(f"a curve with a long name, number {k}", y=values) for k in range(MOST_CURVES)]
    built = statistical_report(tmp_path, [a_rate("lmc", "SUPPORTED", *curves)])
    svg = line_plot(claim_plots(built.sections[0])[0], "f")
    lines = re.findall(r'<text style="([^"]*)"[^>]*(?:y="([\d.]+)"|translate\([\d.]+[ ,]+([\d.]+)\))[^>]*>([^<]*)', svg)
    heights = sorted(float(y or shift) for style, y, shift, _ in lines if "--curve" in style)
    assert len(heights) >= 2 * MOST_CURVES
    assert min(b - a for a, b in pairwise(heights)) > 11
    (axis,) = (float(y or shift) for _, y, shift, words in lines if words == "steps N")
    assert heights[0] > 15
    assert heights[-1] < axis - 15


# --- the table of claims and estimators ---


def test_the_table_has_a_cell_for_every_claim_and_estimator(tmp_path: Path) -> None:
    lmc = [a_rate("lmc"), a_rate("lmc", beta=0.4), a_rate("lmc", "REFUTED", beta=1.0)]
    unexpected = replace(a_rate("gas", "INCONCLUSIVE"), expected="REFUTED")
    other = [a_rate("fm", "NOT_APPLICABLE"), a_rate("backward-sgd", "SUPPORTED", dataset="sbm blocks=3")]
    with Records.create_or_open(tmp_path / "t.sqlite") as records:
        run = records.start_run("s", "t", {}, {})
        for trial in (*lmc, unexpected, *other, a_rate("a-stranger", "ERROR")):
            records.add(run, trial)
        records.not_run(run, "theorem-3/rate", CaseDescription(dataset="karate", estimator="cluster-gcn"), "absent")
        built = build_report(records, run, CLAIMS | STATISTICAL)
    row = "| `theorem-3/rate` | SUPPORTED | 2 SUPPORTED, 1 REFUTED | – | – | INCONCLUSIVE ✗ | n/a | not run |"
    head = "| claim | backward-sgd | lmc | lmc-backward-only | lmc-forward-only | gas | fm | cluster-gcn |"
    lines = claims_table(built).splitlines()
    assert (lines[0], lines[2]) == (head, row)
    assert claims_table(built, "karate").splitlines()[2] == row.replace("SUPPORTED | 2", "– | 2")
    assert claims_table(built, "sbm") == claims_table(built, "sbm blocks=3")
    assert "| SUPPORTED | – | – | – | – | – | – |" in claims_table(built, "sbm")
    with pytest.raises(InvalidInputError, match=r"no case of data set 'cora'; it has 'karate', 'sbm blocks=3'"):
        claims_table(built, "cora")


@pytest.mark.parametrize("which", ["report", "hostile"])
def test_the_table_is_rectangular(which: str, request: pytest.FixtureRequest) -> None:
    lines = claims_table(request.getfixturevalue(which)).splitlines()
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {9}
