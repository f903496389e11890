"""The report as JUnit XML, for continuous integration: a test case for each trial.

It is written with the standard library: what is long here is what is said of each trial, and a library for JUnit XML
would replace a few lines of it only.
"""

from __future__ import annotations

from xml.etree import ElementTree

from lmc_verify.races import RaceRun
from lmc_verify.report.model import text
from lmc_verify.report.model.claims import Case
from lmc_verify.report.model.labels import settings_in_words
from lmc_verify.report.model.races import RaceSection
from lmc_verify.report.model.report import Report
from lmc_verify.report.model.searches import SearchCase
from lmc_verify.runs import NotRun, PlanEntry

__all__ = ["render_junit"]


def render_junit(report: Report) -> str:
    """Return JUnit XML.

    A trial that is not as expected is a failure, a crashed one an error, a case that was not run is skipped. The
    controls are a suite of their own, and so are the searches for counterexamples and every race. A training run that
    crashed is an error; one that diverged or never reached its target is a result. What was planned and has no result,
    as the run was killed or interrupted, is an error, in a suite of its own.
    """
    root = ElementTree.Element("testsuites", name=_clean(report.run.suite))
    for section in report.sections:
        suite = _suite(root, section.claim.id, section.cases, report)
        for item in section.not_run:
            _skipped(suite, item)
    if report.controls:
        _suite(root, "controls", report.controls, report)
    if report.counterexamples:
        suite = _suite(root, "counterexamples", (), report)
        for search in report.counterexamples:
            _searchcase(suite, search)
    for race in report.races:
        suite = _suite(root, f"race: {race.title}, {race.dataset}", (), report)
        for run in race.runs:
            _racecase(suite, race, run)
        if race.header.reason:
            element = ElementTree.SubElement(
                suite, "testcase", classname=_clean(race.title), name=_clean(race.dataset), time="0.000"
            )
            ElementTree.SubElement(element, "skipped", message=_clean(race.header.reason))
    if report.shard is not None:
        group = ElementTree.SubElement(root, "properties")
        for name, value in (("shard", str(report.shard)), ("elsewhere", str(len(report.elsewhere)))):
            ElementTree.SubElement(group, "property", name=name, value=value)
    if report.unfinished:
        suite = _suite(root, "without a result", (), report)
        for entry in report.unfinished:
            _unfinished(suite, entry, f"planned, and without a result: {report.why_unfinished}")
    for element in (*root, root):
        cases = list(element.iter("testcase"))
        element.set("tests", str(len(cases)))
        for kind, plural in (("failure", "failures"), ("error", "errors"), ("skipped", "skipped")):
            element.set(plural, str(sum(case.find(kind) is not None for case in cases)))
        element.set("time", f"{sum(float(case.get('time', 0)) for case in cases):.3f}")
    ElementTree.indent(root)
    body = ElementTree.tostring(root, encoding="unicode")
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{body}\n'


def _suite(root: ElementTree.Element, name: str, cases: tuple[Case, ...], report: Report) -> ElementTree.Element:
    stamp = report.run.started[:19]
    suite = ElementTree.SubElement(root, "testsuite", name=_clean(name), timestamp=_clean(stamp))
    for case in cases:
        _testcase(suite, name, case)
    return suite


def _testcase(suite: ElementTree.Element, classname: str, case: Case) -> None:
    trial, verdict = case.trial, case.verdict
    element = ElementTree.SubElement(
        suite,
        "testcase",
        classname=_clean(classname),
        name=_clean(f"{case.label} [{case.anchor}]"),
        time=f"{trial.seconds:.3f}",
    )
    _properties(element, case)
    if case.failed:
        wanted = "a control that passes" if trial.kind == "control" else trial.expectation or "no crash"
        kind = "error" if case.crashed else "failure"
        problem = ElementTree.SubElement(
            element,
            kind,
            type=verdict.outcome.value,
            message=_clean(f"found {trial.found}, expected {wanted}"),
        )
        problem.text = _clean(f"{verdict.summary}\nreproduce: {trial.command}")
    else:
        output = ElementTree.SubElement(element, "system-out")
        output.text = _clean(f"{verdict.outcome.value}: {verdict.summary}")


def _searchcase(suite: ElementTree.Element, search: SearchCase) -> None:
    record = search.record
    element = ElementTree.SubElement(
        suite,
        "testcase",
        classname="counterexamples",
        name=_clean(f"{record.claim} {search.label} [{search.anchor}]"),
        time=f"{record.seconds:.3f}",
    )
    if search.failed:
        problem = ElementTree.SubElement(
            element,
            "error" if record.crashed else "failure",
            type=record.outcome,
            message=_clean(f"{search.result}, expected {record.expected}"),
        )
        problem.text = _clean(f"{record.summary}\nsearch again: {record.command}")
    else:
        output = ElementTree.SubElement(element, "system-out")
        output.text = _clean("\n".join(filter(None, (record.summary, search.reproduction))))


def _racecase(suite: ElementTree.Element, race: RaceSection, run: RaceRun) -> None:
    entry = run.entry
    element = ElementTree.SubElement(
        suite,
        "testcase",
        classname=_clean(race.title),
        name=_clean(f"{race.dataset}, {entry.label}, seed {entry.seed} [{race.anchor}]"),
        time=f"{run.seconds:.3f}",
    )
    if run.crashed:
        problem = ElementTree.SubElement(element, "error", type=entry.status, message=_clean(entry.reason))
        problem.text = _clean(f"make it again: {run.command}")
    else:
        judged = next((item for item in race.lines if (item.label, item.seed) == (entry.label, entry.seed)), None)
        words = [] if judged is None else [f"target: {judged.reached}", f"best accuracy: {judged.best}"]
        output = ElementTree.SubElement(element, "system-out")
        output.text = _clean("\n".join([entry.status, *words]))


def _properties(element: ElementTree.Element, case: Case) -> None:
    """Write what a statistical verdict rests on; other verdicts have no properties."""
    verdict = case.verdict
    if not case.statistical:
        return
    numbers = {
        "alpha_spent": verdict.alpha_spent,
        "draws": verdict.draws,
        "log_e_value": verdict.log_e_value,
        "combined_log_e_value": case.combined_log_e_value,
        "minimum_detectable_effect": verdict.minimum_detectable_effect,
    }
    group = ElementTree.SubElement(element, "properties")
    for name, value in numbers.items():
        if value is not None:
            ElementTree.SubElement(group, "property", name=name, value=repr(value))


def _skipped(suite: ElementTree.Element, item: NotRun) -> None:
    label = " · ".join(words for _, words in settings_in_words(item.case))
    element = ElementTree.SubElement(
        suite, "testcase", classname=_clean(item.claim), name=_clean(label or "planned check"), time="0.000"
    )
    ElementTree.SubElement(element, "skipped", message=_clean(item.reason))


def _unfinished(suite: ElementTree.Element, entry: PlanEntry, why: str) -> None:
    words = [] if entry.case is None else [" · ".join(words for _, words in settings_in_words(entry.case))]
    name = " · ".join([entry.label, *filter(None, words)])
    element = ElementTree.SubElement(
        suite, "testcase", classname=_clean(entry.claim or entry.kind), name=_clean(name), time="0.000"
    )
    problem = ElementTree.SubElement(element, "error", type="unfinished", message=_clean(why))
    problem.text = _clean(f"run it: {entry.command}")


def _clean(value: str) -> str:
    return text.printable(value)
