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
from pathlib import Path
from typing import Any

import matplotlib
import pytest

from lmc_verify.claims.verdict import AssumptionCheck, Evidence, Outcome, Verdict
from lmc_verify.errors import OutputError, RecordsError
from lmc_verify.records import NotRun, Records, Trial
from lmc_verify.report import (
    ClaimText,
    Report,
    build_report,
    render_html,
    render_json,
    render_junit,
    render_markdown,
    write_report,
)
from lmc_verify.report import text as report_text

ESTIMATORS = ("backward-sgd", "lmc", "gas", "fm", "cluster-gcn", "lmc-forward-only", "lmc-backward-only")
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
        case={"dataset": "karate", "nodes": 34, "edges": 190, "model": "gcn", "layers": 3, **case, "dtype": "float64"},
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
            ("wrong-normaliser", "defect", 0.25),
            ("dropped-halo-term", "defect", 0.081),
            ("sign-flipped", "defect", 2.0),
            ("float16-cast", "defect", 4.4e-4),
        ],
        start=500,
    ):
        trial = a_trial("theorem-1/unbiased", "REFUTED" if role == "defect" else "EXACT", None, number, estimator=name)
        control = {
            "name": name,
            "description": "the estimator, with " + name.replace("-", " "),
            "role": role,
            "effect": effect,
            "passed": True,
        }
        yield replace(trial, kind="control", expected=trial.verdict.outcome.value, control=control)


def make_report(
    folder: Path,
    change: Callable[[Trial], Trial] = lambda trial: trial,
    *,
    trials: list[Trial] | None = None,
    not_run: tuple[NotRun, ...] = (),
    finish: bool = True,
) -> Report:
    added = [*some_trials(), *some_controls()] if trials is None else trials
    path = folder / f"{hashlib.sha256(repr((added, change, not_run)).encode()).hexdigest()[:16]}.sqlite"
    with Records.create_or_open(path) as records:
        environment = {"python": "3.11.7", "torch": "2.13.0", "platform": "linux", "threads": 2, "code": "0.1.0"}
        run = records.start_run("theorem-check", "Convergence claims of LMC", {"alpha_total": 1e-6}, environment)
        for trial in added:
            records.add(run, change(trial))
        for item in not_run:
            records.not_run(run, item.claim, item.case, item.reason)
        if finish:
            records.finish_run(run, "finished")
        return build_report(records, run, CLAIMS)


ABSENT = (NotRun("e6/bias-per-layer", "raw files absent", {"dataset": "flickr", "estimator": "lmc"}),)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    return make_report(tmp_path_factory.mktemp("records"), not_run=ABSENT)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Report:
    def change(trial: Trial) -> Trial:
        verdict = replace(
            trial.verdict,
            claim=HOSTILE if trial.verdict.claim == "e7/reductions" else trial.verdict.claim,
            case={**trial.verdict.case, "dataset": HOSTILE, HOSTILE: HOSTILE, "estimator": HOSTILE},
            summary=HOSTILE,
            evidence=(
                Evidence(HOSTILE, math.nan, math.inf, HOSTILE, HOSTILE),
                Evidence(HOSTILE, 1, 2, "", "bias per layer"),
            ),
            hashes={HOSTILE: HOSTILE},
            residual=math.nan,
            tolerance=math.inf,
        )
        control = None if trial.control is None else {**trial.control, "name": HOSTILE, "description": HOSTILE}
        return replace(trial, verdict=verdict, command=HOSTILE, expected="VACUOUS", control=control)

    return make_report(tmp_path_factory.mktemp("hostile"), change, not_run=(NotRun(HOSTILE, HOSTILE, {HOSTILE: 1}),))


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
    if trial.control is None or trial.control["name"] != "sign-flipped":
        return trial
    return replace(trial, control={**trial.control, "passed": False})


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
        assert f"residual-{section.anchor}-title" in page.ids
    assert "bias-claim-e6-bias-per-layer-title" in page.ids
    assert hashlib.sha256(b"graph").hexdigest() in shown
    for words in (CLAIMS["theorem-1/unbiased"].statement, "LMC, Theorem 1", "raw files absent", "2.13.0"):
        assert words in shown


def test_figures_hold_any_script_and_follow_no_private_settings(tmp_path: Path) -> None:
    trials = [a_trial("e6/bias-per-layer", "REFUTED", None, 1, dataset="引用网络 $x_1$", estimator="lmc")]
    built = make_report(tmp_path, trials=trials)
    source = render_html(built)
    assert "引用网络 $x_1$ · lmc</text>" in source
    with matplotlib.rc_context({"font.size": 40, "axes.grid": True, "axes.labelsize": 30}):
        assert render_html(built) == source


def test_figures_show_zero_infinite_and_unmeasured_residuals(tmp_path: Path) -> None:
    def residual(number: int, value: float | None) -> Trial:
        trial = a_trial("e7/reductions", "EXACT", "EXACT", number, parts=number)
        return replace(trial, verdict=replace(trial.verdict, residual=value, evidence=()))

    values = [0.0, math.inf, math.nan, 1e-300, 1e300, None]
    trials = [residual(number, value) for number, value in enumerate(values)]
    figure = render_html(make_report(tmp_path, trials=trials)).split("<figure>")[1].split("</figure>")[0]
    assert "5 residuals on a log scale; 3 beyond tolerance, 2 within" in figure
    for words in ("exactly 0", "not finite", "within tolerance", "beyond tolerance"):
        assert f"{words}</text>" in figure
    none = [residual(1, None)]
    assert "<figure>" not in render_html(make_report(tmp_path, trials=none))


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


@pytest.mark.parametrize(
    ("change", "level", "words"),
    [
        ({"not_run": ABSENT}, "incomplete", "1 planned case not run"),
        ({"finish": False}, "incomplete", "did not finish"),
        ({"trials": list(some_trials())}, "incomplete", "no control was run"),
        ({"trials": []}, "failed", "No claim was checked"),
        (
            {"change": with_outcome("e1/equals-backward-sgd", "REFUTED")},
            "failed",
            "1 of 38 verdicts is not as expected",
        ),
        ({"change": with_outcome("e7/reductions", "ERROR")}, "failed", "1 of 38 verdicts is not as expected"),
        ({"change": with_missed_control}, "failed", "1 of 5 controls failed, so the verifier itself"),
    ],
    ids=["not run", "unfinished", "no controls", "nothing", "unexpected", "crashed", "control"],
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
    assert len(root.findall(".//testcase")) == len(built.cases) + len(built.controls) + len(built.not_run)
    failed = [case for case in (*built.cases, *built.controls) if case.failed]
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


def test_a_folder_that_cannot_be_written_is_an_output_error(tmp_path: Path, report: Report) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError, match="choose another output folder"):
        write_report(report, tmp_path / "file")
    with pytest.raises(OutputError, match="choose another output folder"):
        write_report(report, tmp_path / "file" / "below")
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
