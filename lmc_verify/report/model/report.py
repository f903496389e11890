"""What a report says, free of any format: the records of one run, counted and grouped by claim."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Literal

from lmc_verify.cases.verdict import Outcome
from lmc_verify.controls import MutationScore
from lmc_verify.races import RaceRun
from lmc_verify.report.model import text
from lmc_verify.report.model.benchmarks import BenchmarkSection
from lmc_verify.report.model.claims import Case, ClaimSection, ClaimText
from lmc_verify.report.model.error_account import ErrorAccount
from lmc_verify.report.model.labels import common_settings, distinguishing_labels
from lmc_verify.report.model.races import RaceGroup, RaceSection, race_groups, race_sections
from lmc_verify.report.model.searches import SearchCase, search_cases
from lmc_verify.runs import NotRun, PlanEntry, Records, Run, RunState, Shard, Trial, exit_code, repeated_case

__all__ = ["STATE_WORDS", "Cell", "CensusRow", "Matrix", "Report", "build_report"]

Level = Literal["passed", "incomplete", "failed"]
STATE_WORDS: Mapping[RunState, str] = {
    "finished": "results are missing",
    "running": "it is still under way",
    "interrupted": "it was interrupted",
    "failed": "it ended with an error",
    "killed": "its process is gone",
}
"""Why a part of a run's plan has no result."""

NO_DATASET = "no data set"
NO_ESTIMATOR = "no estimator"
ALL_DATASETS = "all data sets"


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
        counterexamples: the searches for counterexamples, in the order in which they ran.
        folder: the folder of the records, in which the files of counterexamples lie.
        benchmarks: what asv recorded, if it was asked for.
        races: the races, in the order in which they were planned.
        state: how the run stands.
        unfinished: what was planned and has no result, nor a reason why it could not be run.
        elsewhere: what was planned, and belongs to other shards of the suite.
    """

    run: Run
    sections: tuple[ClaimSection, ...]
    controls: tuple[Case, ...]
    counterexamples: tuple[SearchCase, ...] = ()
    folder: Path = Path()
    benchmarks: BenchmarkSection | None = None
    races: tuple[RaceSection, ...] = ()
    state: RunState = "finished"
    unfinished: tuple[PlanEntry, ...] = ()
    elsewhere: tuple[PlanEntry, ...] = ()

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
    def race_groups(self) -> tuple[RaceGroup, ...]:
        """The races by title."""
        return race_groups(self.races)

    @property
    def race_runs(self) -> tuple[RaceRun, ...]:
        """Every run of every race."""
        return tuple(item for race in self.races for item in race.runs)

    @property
    def crashed_race_runs(self) -> tuple[RaceRun, ...]:
        """The training runs that raised an error."""
        return tuple(item for item in self.race_runs if item.crashed)

    @property
    def races_not_run(self) -> tuple[RaceSection, ...]:
        """The races that were planned and not run."""
        return tuple(race for race in self.races if race.header.reason)

    @property
    def shard(self) -> Shard | None:
        """Which share of the suite the run is; None for the whole."""
        return self.run.shard

    @property
    def elsewhere_words(self) -> str:
        """What other shards have, in words; empty where the run is a whole one."""
        if self.shard is None:
            return ""
        amount = text.count(len(self.elsewhere), "planned part")
        return f"{amount} {'is' if len(self.elsewhere) == 1 else 'are'} in other shards"

    @property
    def checked(self) -> bool:
        """Whether there is anything to report on: a case, a search or a training run."""
        return bool(self.cases or self.counterexamples or self.race_runs)

    @property
    def judges(self) -> bool:
        """Whether the run makes verdicts, which controls vouch for; races alone measure and judge nothing."""
        return not self.races or bool(self.sections or self.counterexamples or self.controls)

    @property
    def unexpected(self) -> tuple[Case, ...]:
        """The cases that are not as expected, crashed ones included."""
        return tuple(case for case in self.cases if case.failed)

    @property
    def unexpected_searches(self) -> tuple[SearchCase, ...]:
        """The searches that are not as expected, crashed ones included."""
        return tuple(search for search in self.counterexamples if search.failed)

    def counterexamples_to(self, case: Case) -> tuple[SearchCase, ...]:
        """Return the counterexamples to the claim of a refuted case, for its estimator."""
        return tuple(search for search in self.counterexamples if search.refutes(case))

    @property
    def failed_controls(self) -> tuple[Case, ...]:
        """The controls that did not pass: a defect that was missed, or a sound estimator that was refuted."""
        return tuple(case for case in self.controls if case.failed)

    @property
    def passed_controls(self) -> int:
        """How many controls passed."""
        return sum(case.trial.as_expected is True for case in self.controls)

    @cached_property
    def errors(self) -> ErrorAccount:
        """The error ledger of the run."""
        return ErrorAccount.of(self.run.settings, self.sections, self.controls)

    @cached_property
    def mutation_score(self) -> MutationScore | None:
        """How many seeded defects were caught; None if none was seeded."""
        kept = [case.trial.control for case in self.controls if case.trial.control is not None]
        return MutationScore.of(kept) if any(item.role == "defect" for item in kept) else None

    @property
    def finished(self) -> bool:
        """Whether the run reached its end, with a result, or a reason why not, of everything that was planned."""
        return self.state == "finished" and not self.unfinished

    @property
    def exit_code(self) -> int:
        """The exit code of the run that is reported on, see `RunResult`; 130 if interrupted, 5 if it did not finish."""
        if self.state == "interrupted":
            return 130
        return exit_code(
            [case.trial for case in (*self.cases, *self.controls)],
            [search.record for search in self.counterexamples],
            self.race_runs,
            overspent=self.errors.overspent,
            strict=bool(self.run.settings.get("strict")),
            finished=self.finished,
            whole=self.shard is None,
        )

    @property
    def why_unfinished(self) -> str:
        """Why parts that were planned have no result."""
        return f"the run did not get there, {STATE_WORDS[self.state]}"

    @property
    def level(self) -> Level:
        """The overall result."""
        wrong = self.failed_controls or self.unexpected or self.unexpected_searches or self.crashed_race_runs
        if wrong or self.errors.overspent or not (self.checked or self.shard is not None):
            return "failed"
        if self.shard is not None:
            return "incomplete"
        complete = self.finished and not self.not_run and not self.races_not_run
        vouched = self.passed_controls == len(self.controls) > 0 or not self.judges
        return "passed" if complete and vouched else "incomplete"

    @property
    def headline(self) -> str:
        """The overall result in one sentence."""
        parts = [self._verdict_words()] if self.cases or not self.checked else []
        if self.counterexamples:
            parts.append(self._search_words())
        if self.race_runs:
            parts.append(self._race_words())
        # A failed control outranks every verdict.
        if self.judges or self.shard is not None:
            parts.insert(0 if self.failed_controls else len(parts), self._control_words())
        if self.errors.overspent:
            spent, total = text.level(self.errors.spent), text.level(self.errors.total)
            parts.append(f"statistical checks spent an error level of {spent}, more than {total}")
        if self.not_run:
            parts.append(f"{text.count(len(self.not_run), 'planned check')} not run")
        if self.races_not_run:
            parts.append(f"{text.count(len(self.races_not_run), 'planned race')} not run")
        if self.checked and self.finished and not self.not_run and not self.races_not_run:
            parts.append("nothing skipped")
        if not self.finished:
            parts.append(self._unfinished_words())
        sentence = "; ".join(parts)
        if self.shard is not None:
            return f"Shard {self.shard.number} of {self.shard.count}: {sentence}; {self.elsewhere_words}."
        return sentence[0].upper() + sentence[1:] + "."

    def _verdict_words(self) -> str:
        if not self.cases:
            return "no claim was checked" if self.shard is None else "no claim is in this shard"
        judged = sum(case.trial.as_expected is not None or case.crashed for case in self.cases)
        wrong, free = len(self.unexpected), len(self.cases) - judged
        if wrong:
            words = f"{wrong} of {text.count(judged, 'verdict')} {'is' if wrong == 1 else 'are'} not as expected"
        elif judged:
            words = f"{judged} of {text.count(judged, 'verdict')} as expected"
        else:
            return f"{text.count(free, 'verdict')}, none with an expectation"
        return f"{words}, {free} without an expectation" if free else words

    def _unfinished_words(self) -> str:
        """Say how far the run came, and why no further."""
        planned = self.run.settings.get("planned")
        done = len(self.cases) + len(self.controls) + len(self.not_run) + len(self.counterexamples)
        done += len(self.race_runs) + sum(race.header.planned for race in self.races_not_run)
        if self.unfinished and planned:  # of a race that is not run, a shard has some runs only
            done = planned - len(self.unfinished)
        what = "parts" if self.races or self.counterexamples else "planned checks"
        how_far = f" ({done} of {planned} {what})" if planned else ""
        yet = "has not finished yet" if self.state == "running" else "did not finish"
        return f"the run {yet}{how_far}: {STATE_WORDS[self.state]}"

    def _search_words(self) -> str:
        total, wrong = len(self.counterexamples), len(self.unexpected_searches)
        searches = text.count(total, "search for counterexamples", "searches for counterexamples")
        if wrong:
            return f"{wrong} of {searches} {'is' if wrong == 1 else 'are'} not as expected"
        return f"{total} of {searches} as expected"

    def _race_words(self) -> str:
        races = [race for race in self.races if race.runs]
        runs = len(self.race_runs)
        words = f"{text.count(len(races), 'race')} with {text.count(runs, 'training run')}"
        crashed, diverged = len(self.crashed_race_runs), sum(len(race.diverged) for race in races)
        parts = [f"{crashed} crashed"] if crashed else []
        parts += [f"{diverged} diverged"] if diverged else []
        return f"{words}, {', '.join(parts)}" if parts else words

    def _control_words(self) -> str:
        total, wrong = len(self.controls), len(self.failed_controls)
        if not total:
            return "no control was run" if self.shard is None else "no control is in this shard"
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
        sections = [section for section in self.sections if not section.audited]  # audits have neither
        datasets = dict.fromkeys(_dataset(case) for section in sections for case in section.cases)
        return tuple(_matrix(dataset, sections) for dataset in datasets)

    @cached_property
    def matrix(self) -> Matrix:
        """The matrix of all data sets together."""
        return _matrix(None, [section for section in self.sections if not section.audited])

    @property
    def expected_refutations(self) -> int:
        """How many cases were expected to be refuted, and were."""
        return sum(case.verdict.outcome is Outcome.REFUTED and case.trial.as_expected is True for case in self.cases)

    @property
    def work_seconds(self) -> float:
        """Sum of the time of all trials, searches and training runs."""
        trials = sum(case.trial.seconds for case in (*self.cases, *self.controls))
        searches = sum(search.record.seconds for search in self.counterexamples)
        return trials + searches + sum(item.seconds for item in self.race_runs)

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
        told = claims.get(claim) or ClaimText(claim, claim, "", "", "", "")
        described = [trial.verdict.case for trial in checked]
        repetitions = _repetitions(records, claim, checked)
        cases = tuple(
            Case(f"case-{index}", label, trial, told.tier, repeated)
            for index, (label, trial, repeated) in enumerate(
                zip(distinguishing_labels(described), checked, repetitions, strict=True), start=number
            )
        )
        number += len(cases)
        sections.append(ClaimSection(anchor, told, cases, tuple(skipped), common_settings(described)))
    return Report(
        run,
        tuple(sections),
        tuple(
            Case(f"control-{index}", control.name, trial)
            for index, (trial, control) in enumerate(
                ((trial, trial.control) for trial in trials if trial.control is not None), start=1
            )
        ),
        search_cases(records.searches(run_id)),
        records.path.parent,
        races=race_sections(records.races(run_id)),
        state=records.state(run),
        unfinished=tuple(records.unfinished(run_id)),
        elsewhere=tuple(records.elsewhere(run_id)),
    )


def _repetitions(records: Records, claim: str, trials: Sequence[Trial]) -> list[tuple[Trial, ...]]:
    """Return the repetitions of each trial over all runs; none of one without an e-value."""
    measured = [trial.verdict.log_e_value is not None for trial in trials]
    known = records.repetitions(claim) if any(measured) else {}
    return [known[repeated_case(trial.verdict)] if has else () for has, trial in zip(measured, trials, strict=True)]


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
    return case.verdict.case.dataset or NO_DATASET


def _estimator(case: Case) -> str:
    return case.verdict.case.estimator or NO_ESTIMATOR


def _matrix(dataset: str | None, sections: Iterable[ClaimSection]) -> Matrix:
    """Return the matrix of one data set, or of all of them."""
    chosen = [
        (section, [case for case in section.cases if dataset is None or _dataset(case) == dataset])
        for section in sections
    ]
    estimators = tuple(dict.fromkeys(_estimator(case) for _, cases in chosen for case in cases))
    rows = []
    for section, cases in chosen:
        if cases:
            groups = [[case for case in cases if _estimator(case) == estimator] for estimator in estimators]
            rows.append((section, tuple(_cells(group) for group in groups)))
    return Matrix(dataset or ALL_DATASETS, estimators, tuple(rows))


def _cells(cases: Sequence[Case]) -> tuple[Cell, ...]:
    cells = []
    for outcome in Outcome:
        group = [case for case in cases if case.verdict.outcome is outcome]
        if group:
            failed = [case for case in group if case.failed]
            cells.append(Cell(outcome, len(group), len(failed), (failed or group)[0]))
    return tuple(cells)
