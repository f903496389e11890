"""What a report says, free of any format: the records of one run, counted and grouped by claim."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any, Literal

from lmc_verify.claims.verdict import AssumptionCheck, Outcome, Verdict
from lmc_verify.records import NotRun, Records, Run, Trial
from lmc_verify.report import text

__all__ = [
    "Assumption",
    "Case",
    "Cell",
    "CensusRow",
    "ClaimSection",
    "ClaimText",
    "Matrix",
    "Report",
    "build_report",
]

Level = Literal["passed", "incomplete", "failed"]
NO_DATASET = "no data set"
NO_ESTIMATOR = "no estimator"
_DERIVED = ("support", "edges", "nodes", "seed")
"""Settings that a label leaves out first when it can."""
_LEADING = ("dataset", "model", "estimator")
"""Settings that a label keeps wherever they differ."""


@dataclass(frozen=True)
class ClaimText:
    """What a claim says, for readers.

    Attributes:
        id: id of the claim, such as ``"theorem-1/unbiased"``.
        title: a few words.
        statement: the claim as its source states it.
        source: where it is stated, such as ``"LMC, Theorem 1"``.
        tier: how it is checked: exact, anytime-valid test, or rate.
        theory: a short paragraph that says why it should (or should not) hold.
    """

    id: str
    title: str
    statement: str
    source: str
    tier: str
    theory: str


@dataclass(frozen=True)
class Case:
    """One trial with its place in the report.

    Attributes:
        anchor: id to link to.
        label: the settings that tell it from the other cases of its claim.
        trial: the trial.
    """

    anchor: str
    label: str
    trial: Trial

    @property
    def verdict(self) -> Verdict:
        """The verdict of the trial."""
        return self.trial.verdict

    @property
    def crashed(self) -> bool:
        """Whether the check crashed without being expected to."""
        return self.verdict.outcome is Outcome.ERROR and self.trial.as_expected is not True

    @property
    def failed(self) -> bool:
        """Whether this case alone makes the report a failure."""
        return self.trial.as_expected is False or self.crashed

    @property
    def settings(self) -> list[tuple[str, str]]:
        """Every setting of the case in words, in reading order."""
        case = self.verdict.case
        return [(text.name(key), text.setting(case[key], key)) for key in text.case_keys(case)]


@dataclass(frozen=True)
class Assumption:
    """An assumption of a claim, over all cases of the claim."""

    id: str
    statement: str
    holds: int
    fails: int
    unchecked: int
    details: tuple[str, ...]

    @property
    def verdict(self) -> bool | None:
        """False if it fails in any case, None if it was checked in none, else True."""
        return False if self.fails else True if self.holds else None

    @property
    def words(self) -> str:
        """How often it holds, in words."""
        total = self.holds + self.fails + self.unchecked
        if self.fails:
            return "fails" if self.fails == total else f"fails in {self.fails} of {text.count(total, 'case')}"
        if not self.holds:
            return "not checked"
        return f"holds; not checked in {self.unchecked} of {total} cases" if self.unchecked else "holds"


@dataclass(frozen=True)
class ClaimSection:
    """A claim with its cases and what was not run of it."""

    anchor: str
    claim: ClaimText
    cases: tuple[Case, ...]
    not_run: tuple[NotRun, ...]
    common: tuple[tuple[str, str], ...]

    @property
    def failed(self) -> tuple[Case, ...]:
        """The cases that are not as expected."""
        return tuple(case for case in self.cases if case.failed)

    @cached_property
    def assumptions(self) -> tuple[Assumption, ...]:
        """The assumptions of the claim, merged over its cases."""
        merged: dict[str, list[AssumptionCheck]] = {}
        for case in self.cases:
            for check in case.verdict.assumptions:
                merged.setdefault(check.id, []).append(check)
        return tuple(
            Assumption(
                id=key,
                statement=checks[0].statement,
                holds=sum(check.holds is True for check in checks),
                fails=sum(check.holds is False for check in checks),
                unchecked=sum(check.holds is None for check in checks),
                details=tuple(dict.fromkeys(check.detail for check in checks if check.detail)),
            )
            for key, checks in merged.items()
        )

    @property
    def outcomes(self) -> str:
        """The outcomes with their counts, in words."""
        counts = Counter(case.verdict.outcome for case in self.cases)
        return ", ".join(f"{counts[outcome]} {text.outcome_word(outcome)}" for outcome in Outcome if counts[outcome])


@dataclass(frozen=True)
class CensusRow:
    """How many cases of a claim got each outcome; `unexpected` counts those that were not expected."""

    section: ClaimSection | None
    counts: Mapping[Outcome, int]
    unexpected: Mapping[Outcome, int]
    expected_total: int
    unexpected_total: int
    open_total: int
    not_run_total: int

    @property
    def total(self) -> int:
        """The number of cases."""
        return sum(self.counts.values())


@dataclass(frozen=True)
class Cell:
    """The cases of one claim and estimator that got one outcome; `first` is the one to link to."""

    outcome: Outcome
    amount: int
    failed: int
    first: Case


@dataclass(frozen=True)
class Matrix:
    """Outcomes of one data set: a row for each claim, a column for each estimator."""

    dataset: str
    estimators: tuple[str, ...]
    rows: tuple[tuple[ClaimSection, tuple[tuple[Cell, ...], ...]], ...]


@dataclass(frozen=True)
class Report:
    """One run, counted and grouped; `build_report` makes it.

    Attributes:
        run: the run itself.
        sections: a section for each claim, in the order of the claim texts.
        controls: the controls, in the order in which they ran.
    """

    run: Run
    sections: tuple[ClaimSection, ...]
    controls: tuple[Case, ...]

    @property
    def cases(self) -> tuple[Case, ...]:
        """Every case of every claim (controls are not cases)."""
        return tuple(case for section in self.sections for case in section.cases)

    @property
    def not_run(self) -> tuple[NotRun, ...]:
        """What was planned and not run."""
        return tuple(item for section in self.sections for item in section.not_run)

    @property
    def not_run_by_reason(self) -> tuple[tuple[str, tuple[NotRun, ...]], ...]:
        """What was planned and not run, once for each reason."""
        groups: dict[str, list[NotRun]] = {}
        for item in self.not_run:
            groups.setdefault(item.reason, []).append(item)
        return tuple((reason, tuple(items)) for reason, items in groups.items())

    @property
    def unexpected(self) -> tuple[Case, ...]:
        """The cases that are not as expected, crashed ones included."""
        return tuple(case for case in self.cases if case.failed)

    @property
    def failed_controls(self) -> tuple[Case, ...]:
        """The controls that did not pass: a defect that was missed, or a sound estimator that was refuted."""
        return tuple(case for case in self.controls if case.failed)

    @property
    def passed_controls(self) -> int:
        """How many controls passed."""
        return sum(case.trial.as_expected is True for case in self.controls)

    @property
    def finished(self) -> bool:
        """Whether the run came to its end: neither killed nor interrupted."""
        return self.run.finished is not None and self.run.status != "interrupted"

    @property
    def level(self) -> Level:
        """The overall result."""
        if self.failed_controls or self.unexpected or not self.cases:
            return "failed"
        whole = self.passed_controls == len(self.controls) > 0 and self.finished and not self.not_run
        return "passed" if whole else "incomplete"

    @property
    def headline(self) -> str:
        """The overall result in one sentence."""
        parts = [self._verdict_words(), self._control_words()]
        if self.failed_controls:  # outranks every verdict
            parts.reverse()
        if self.not_run:
            parts.append(f"{text.count(len(self.not_run), 'planned case')} not run")
        elif self.cases and self.finished:
            parts.append("nothing skipped")
        if not self.finished:
            planned = self.run.settings.get("planned")
            done = len(self.cases) + len(self.controls) + len(self.not_run)
            parts.append(
                f"the run did not finish ({done} of {planned} trials)" if planned else "the run did not finish"
            )
        sentence = "; ".join(parts)
        return sentence[0].upper() + sentence[1:] + "."

    def _verdict_words(self) -> str:
        if not self.cases:
            return "no claim was checked"
        judged = sum(case.trial.as_expected is not None or case.crashed for case in self.cases)
        wrong, free = len(self.unexpected), len(self.cases) - judged
        if wrong:
            words = f"{wrong} of {text.count(judged, 'verdict')} {'is' if wrong == 1 else 'are'} not as expected"
        elif judged:
            words = f"{judged} of {text.count(judged, 'verdict')} as expected"
        else:
            return f"{text.count(free, 'verdict')}, none with an expectation"
        return f"{words}, {free} without an expectation" if free else words

    def _control_words(self) -> str:
        total, wrong = len(self.controls), len(self.failed_controls)
        if not total:
            return "no control was run"
        if wrong:
            return f"{wrong} of {text.count(total, 'control')} failed, so the verifier itself cannot be trusted"
        return f"{self.passed_controls} of {text.count(total, 'control')} passed"

    @property
    def outcomes(self) -> tuple[Outcome, ...]:
        """The outcomes that occur, in their fixed order."""
        found = {case.verdict.outcome for case in self.cases}
        return tuple(outcome for outcome in Outcome if outcome in found)

    @cached_property
    def census(self) -> tuple[CensusRow, ...]:
        """A row for each claim."""
        return tuple(_census_row(section, section.cases, section.not_run) for section in self.sections)

    @cached_property
    def totals(self) -> CensusRow:
        """The sum of the census."""
        return _census_row(None, self.cases, self.not_run)

    @cached_property
    def matrices(self) -> tuple[Matrix, ...]:
        """A matrix for each data set."""
        datasets = dict.fromkeys(_dataset(case) for case in self.cases)
        return tuple(_matrix(dataset, self.sections) for dataset in datasets)

    @property
    def work_seconds(self) -> float:
        """Sum of the time of all trials."""
        return sum(case.trial.seconds for case in (*self.cases, *self.controls))

    @property
    def wall_seconds(self) -> float | None:
        """Time from the start to the end of the run; None if it did not finish."""
        if self.run.finished is None:
            return None
        start, end = datetime.fromisoformat(self.run.started), datetime.fromisoformat(self.run.finished)
        return (end - start).total_seconds()


def build_report(records: Records, run_id: int, claims: Mapping[str, ClaimText]) -> Report:
    """Build the report of one run.

    Args:
        records: the open records.
        run_id: which run.
        claims: claim id -> text; also the order of the report. Claims without a text are listed after the others.

    Raises:
        RecordsError: the records hold no such run.
    """
    run = records.run(run_id)
    trials = records.trials(run_id)
    by_claim: dict[str, tuple[list[Trial], list[NotRun]]] = {claim: ([], []) for claim in claims}
    for trial in trials:
        if trial.kind == "claim":
            by_claim.setdefault(trial.verdict.claim, ([], []))[0].append(trial)
    for item in records.planned_not_run(run_id):
        by_claim.setdefault(item.claim, ([], []))[1].append(item)

    sections: list[ClaimSection] = []
    anchors: Counter[str] = Counter()
    number = 1
    for claim, (checked, skipped) in by_claim.items():
        if not checked and not skipped:
            continue
        anchor = f"claim-{text.slug(claim)}"
        anchors[anchor] += 1
        if anchors[anchor] > 1:
            anchor = f"{anchor}--{anchors[anchor]}"
        labels = distinguishing_labels([trial.verdict.case for trial in checked])
        cases = tuple(
            Case(f"case-{index}", label, trial)
            for index, (label, trial) in enumerate(zip(labels, checked, strict=True), start=number)
        )
        number += len(cases)
        told = claims.get(claim) or ClaimText(claim, claim, "", "", "", "")
        sections.append(ClaimSection(anchor, told, cases, tuple(skipped), _common(checked)))
    controls = [trial for trial in trials if trial.kind == "control"]
    return Report(
        run,
        tuple(sections),
        tuple(
            Case(f"control-{index}", str((trial.control or {}).get("name", "unnamed")), trial)
            for index, trial in enumerate(controls, start=1)
        ),
    )


def _census_row(section: ClaimSection | None, cases: Sequence[Case], skipped: Sequence[NotRun]) -> CensusRow:
    return CensusRow(
        section,
        counts=Counter(case.verdict.outcome for case in cases),
        unexpected=Counter(case.verdict.outcome for case in cases if case.failed),
        expected_total=sum(case.trial.as_expected is True for case in cases),
        unexpected_total=sum(case.failed for case in cases),
        open_total=sum(case.trial.as_expected is None and not case.failed for case in cases),
        not_run_total=len(skipped),
    )


def _dataset(case: Case) -> str:
    return text.setting(case.verdict.case.get("dataset", NO_DATASET))


def _estimator(case: Case) -> str:
    return text.setting(case.verdict.case.get("estimator", NO_ESTIMATOR))


def _matrix(dataset: str, sections: Iterable[ClaimSection]) -> Matrix:
    chosen = [(section, [case for case in section.cases if _dataset(case) == dataset]) for section in sections]
    estimators = tuple(dict.fromkeys(_estimator(case) for _, cases in chosen for case in cases))
    rows = []
    for section, cases in chosen:
        if cases:
            groups = [[case for case in cases if _estimator(case) == estimator] for estimator in estimators]
            rows.append((section, tuple(_cells(group) for group in groups)))
    return Matrix(dataset, estimators, tuple(rows))


def _cells(cases: Sequence[Case]) -> tuple[Cell, ...]:
    cells = []
    for outcome in Outcome:
        group = [case for case in cases if case.verdict.outcome is outcome]
        if group:
            failed = [case for case in group if case.failed]
            cells.append(Cell(outcome, len(group), len(failed), (failed or group)[0]))
    return tuple(cells)


def _varying(cases: Sequence[Mapping[str, Any]]) -> list[str]:
    keys = text.case_keys(key for case in cases for key in case)
    return [key for key in keys if len({_words(case, key) for case in cases}) > 1]


def _words(case: Mapping[str, Any], key: str) -> str | None:
    return text.setting(case[key], key) if key in case else None


def distinguishing_labels(cases: Sequence[Mapping[str, Any]]) -> list[str]:
    """Name each case by the fewest settings that tell the cases of a claim apart."""
    keys = _varying(cases)
    distinct = len({tuple(_words(case, key) for key in keys) for case in cases})
    optional = [key for key in reversed(keys) if key not in (*_DERIVED, *_LEADING)]
    for key in (*_DERIVED, *optional):
        fewer = [other for other in keys if other != key]
        if len({tuple(_words(case, other) for other in fewer) for case in cases}) == distinct:
            keys = fewer
    for key in ("estimator", "dataset"):
        if key not in keys and len(keys) < 2 and any(key in case for case in cases):
            keys = text.case_keys([key, *keys])
    bare = (*_LEADING, "design", "partition", "dtype")
    return [
        " · ".join(
            text.setting(case[key], key) if key in bare else f"{text.name(key)} {text.setting(case[key], key)}"
            for key in keys
            if key in case
        )
        or "the only case"
        for case in cases
    ]


def _common(trials: Sequence[Trial]) -> tuple[tuple[str, str], ...]:
    cases = [trial.verdict.case for trial in trials]
    if not cases:
        return ()
    varying = set(_varying(cases))
    return tuple(
        (text.name(key), text.setting(cases[0][key], key)) for key in text.case_keys(cases[0]) if key not in varying
    )
