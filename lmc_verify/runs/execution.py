"""Running a suite, one trial after another or over joblib's processes; each result is recorded as it comes.

Searches for counterexamples come after the trials, races after them.
"""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from lmc_verify.cases import CaseDescription, DatasetSettings, Workspace, build_case, build_design
from lmc_verify.claims import Outcome, Verdict, find_claim
from lmc_verify.controls import ControlRecord, check_control
from lmc_verify.errors import InvalidInputError, LmcVerifyError
from lmc_verify.provenance import environment
from lmc_verify.races import PlannedRun, RaceHeader, RaceProgress, RaceRun, check_races, make_runs
from lmc_verify.runs.planned import Planned
from lmc_verify.runs.records import Records
from lmc_verify.runs.searches import FOLDER, PlannedSearch, SearchRecord, run_search
from lmc_verify.runs.suite import Suite
from lmc_verify.runs.trials import Trial

__all__ = ["RunResult", "run_planned", "run_suite"]

AnyPlanned = Planned | PlannedSearch | PlannedRun
AnyResult = Trial | SearchRecord | RaceRun
Listener = Callable[[AnyPlanned, AnyResult | None, str], None]
"""Called after each trial, search and run of a race: what was planned, the result (None if not made), why not."""

_Result = TypeVar("_Result")
_ROUNDING = 1e-9  # relative: shares are quotients of the total, and their sum may exceed it by rounding


@dataclass(frozen=True)
class RunResult:
    """What a run of a suite gave.

    Attributes:
        run_id: id of the run in its records.
        trials: every trial, in the order of the plan.
        not_run: planned trials that were not run, with reasons.
        reused: number of trials and searches taken from an earlier run.
        alpha_total: error probability that the statistical checks may spend together.
        searches: every search for a counterexample.
        races: every race with its runs.
    """

    run_id: int
    trials: tuple[Trial, ...]
    not_run: tuple[tuple[Planned, str], ...]
    reused: int
    alpha_total: float = 1e-6
    searches: tuple[SearchRecord, ...] = ()
    races: tuple[tuple[RaceHeader, tuple[RaceRun, ...]], ...] = ()

    @property
    def race_runs(self) -> tuple[RaceRun, ...]:
        """Every run of every race."""
        return tuple(item for _, runs in self.races for item in runs)

    @property
    def exit_code(self) -> int:
        """The exit code of the run, leaving `--strict` aside.

        4 a control failed; 1 an unexpected verdict or search, or more error probability spent than there is; 5 a
        trial, a search or a run of a race crashed; 6 nothing was checked; else 0. A run that diverges, or never reaches
        its target, is a result.
        """
        claims = [trial for trial in self.trials if trial.kind == "claim"]
        crashed = [trial for trial in self.trials if trial.verdict.outcome is Outcome.ERROR]
        controls = [trial for trial in self.trials if trial.kind == "control" and trial not in crashed]
        if any(trial.as_expected is False for trial in controls):
            return 4
        unexpected = any(trial.as_expected is False for trial in claims if trial not in crashed)
        if unexpected or self.overspent or any(not (item.as_expected or item.crashed) for item in self.searches):
            return 1
        if crashed or any(item.crashed for item in self.searches) or any(item.crashed for item in self.race_runs):
            return 5
        return 0 if claims or self.searches or self.race_runs else 6

    @property
    def alpha_spent(self) -> float:
        """Error probability that the statistical checks of the run spent together; controls have their own."""
        return math.fsum(trial.verdict.alpha_spent for trial in self.trials if trial.kind == "claim")

    @property
    def overspent(self) -> bool:
        """Whether the statistical checks spent more error probability than the suite gives them."""
        return self.alpha_spent > self.alpha_total * (1 + _ROUNDING)

    @property
    def inconclusive(self) -> tuple[Trial, ...]:
        """Claims whose verdict is inconclusive."""
        return tuple(
            trial for trial in self.trials if trial.kind == "claim" and trial.verdict.outcome is Outcome.INCONCLUSIVE
        )


def run_planned(planned: Planned, workspace: Workspace) -> Trial:
    """Run one trial. A crash becomes an ERROR verdict; bad input is raised, for the caller to mend.

    Raises:
        InvalidInputError: the settings do not fit the data.
    """
    start = time.perf_counter()
    control: ControlRecord | None = None
    try:
        if planned.control is not None:
            result = check_control(planned.control, workspace)
            verdict, control = result.verdict, result.record
        else:
            verdict = find_claim(planned.claim).check(build_case(planned.settings, workspace))
    except InvalidInputError:
        raise
    except Exception as error:  # whatever went wrong says nothing about the claim, and must not end the run
        where = traceback.extract_tb(error.__traceback__)[-1]
        summary = f"{type(error).__name__}: {error} ({Path(where.filename).name}, line {where.lineno})"
        verdict = Verdict(planned.claim, Outcome.ERROR, summary, case=CaseDescription.planned(planned.settings))
        if planned.control is not None:
            control = ControlRecord.of_crash(planned.control)
    return Trial(
        key=planned.key,
        kind=planned.kind,
        verdict=verdict,
        expected=_expected(planned),
        command=planned.command,
        seconds=time.perf_counter() - start,
        control=control,
    )


def run_suite(
    suite: Suite,
    records: Records,
    workspace: Workspace,
    *,
    resume: bool = False,
    jobs: int = 1,
    replicate: int = 0,
    preset: str | None = None,
    listen: Listener | None = None,
    watch: Callable[[RaceProgress], None] | None = None,
) -> RunResult:
    """Run every trial, every search and every race of a suite; record each trial, search and run in its transaction.

    Counterexamples are written into the folder ``counterexamples`` beside the records.

    Args:
        suite: the suite.
        records: where trials are appended; an interrupted run keeps what it has finished.
        workspace: where data come from.
        resume: take trials, searches and runs of races with the same identity (claim or training run, case and code)
            from earlier runs in `records`; a search whose files are gone or changed is made again.
        jobs: processes; 1 runs in this one. Verdicts do not depend on it.
        replicate: number of the repetition of the statistical checks; another one draws afresh.
        preset: variant of the races; by default the suite's first.
        listen: called after each trial, each search and each run of a race.
        watch: called while a run of a race is under way, with one process only.

    Raises:
        InvalidInputError: the suite or its data do not fit. Trials recorded before stay recorded.
    """
    if jobs < 1:
        raise InvalidInputError(f"jobs is {jobs}, it must be at least 1")
    plan, searches, races = suite.plan(replicate=replicate), suite.searches(), suite.races(preset)
    absent = _absent_data(plan, workspace)
    place = (workspace.data_root, workspace.download)
    headers = check_races(races, *place)
    runs = [run for race, header in zip(races, headers, strict=True) if not header.reason for run in race.runs]
    run_id = records.start_run(
        suite.name,
        suite.title,
        {
            "seed": suite.seed,
            "description": suite.description,
            "planned": len(plan) + len(searches) + sum(header.planned for header in headers),
            "alpha_total": suite.alpha_total,
            "replicate": replicate,
            **({} if suite.preset(preset) is None else {"preset": suite.preset(preset)}),
            **({"jobs": jobs} if races else {}),
        },
        environment(),
    )
    status = "failed"
    trials: list[Trial] = []
    searched: list[SearchRecord] = []
    raced: dict[str, list[RaceRun]] = {header.key: [] for header in headers}
    not_run: list[tuple[Planned, str]] = []
    reused = 0

    def note(planned: Planned, trial: Trial | None, reason: str = "") -> None:
        if trial is None:
            records.not_run(run_id, planned.claim, CaseDescription.planned(planned.settings), reason)
            not_run.append((planned, reason))
        else:
            records.add(run_id, trial)
            trials.append(trial)
        if listen is not None:
            listen(planned, trial, reason)

    try:
        remaining: list[Planned] = []
        for planned in plan:
            known = records.find(planned.key) if resume else None
            reason = absent.get(planned.settings.dataset.name) if planned.kind == "claim" else None
            if known is not None:
                reused += 1
                # The verdict is reused; what is expected of it is this suite's to say.
                note(planned, replace(known, expected=_expected(planned)))
            elif reason is not None:
                note(planned, None, reason)
            else:
                remaining.append(planned)
        for planned, trial in _run_all(remaining, workspace, jobs):
            note(planned, trial)
        for search, record, again in _search_all(searches, records, resume, jobs):
            reused += again
            records.add_search(run_id, record)
            searched.append(record)
            if listen is not None:
                listen(search, record, "")
        for race, header in zip(races, headers, strict=True):
            records.add_race(run_id, header)
            if header.reason and listen is not None:
                for run in race.runs:
                    listen(run, None, header.reason)
        for run, made, again in make_runs(
            runs, *place, recorded=records.find_race_run if resume else None, jobs=jobs, watch=watch
        ):
            reused += again
            records.add_race_run(run_id, made)
            raced[made.race].append(made)
            if listen is not None:
                listen(run, made, "")
        status = "finished"
    except KeyboardInterrupt:
        status = "interrupted"
        raise
    finally:
        records.finish_run(run_id, status)
    found = tuple((header, tuple(sorted(raced[header.key], key=lambda run: run.entry.position))) for header in headers)
    return RunResult(run_id, tuple(trials), tuple(not_run), reused, suite.alpha_total, tuple(searched), found)


def _run_all(plan: Sequence[Planned], workspace: Workspace, jobs: int) -> Iterator[tuple[Planned, Trial]]:
    if jobs == 1 or len(plan) < 2:
        for planned in plan:
            yield planned, run_planned(planned, workspace)
        return
    rest = (workspace.data_root, workspace.download)
    yield from zip(plan, _in_processes(_run_elsewhere, [(planned, *rest) for planned in plan], jobs), strict=True)


def _search_all(
    searches: Sequence[PlannedSearch], records: Records, resume: bool, jobs: int
) -> Iterator[tuple[PlannedSearch, SearchRecord, bool]]:
    """Yield every search with its record, and whether it was taken from an earlier run: those first."""
    folder = records.path.parent / FOLDER
    remaining = []
    for search in searches:
        known = records.find_search(search.key) if resume else None
        if known is not None and (known.found is None or known.found.intact(folder)):
            yield search, replace(known, expected=search.expected), True
        else:
            remaining.append(search)
    if jobs == 1 or len(remaining) < 2:
        for search in remaining:
            yield search, run_search(search, folder), False
        return
    found = _in_processes(run_search, [(search, folder) for search in remaining], jobs)
    yield from ((search, record, False) for search, record in zip(remaining, found, strict=True))


def _in_processes(work: Callable[..., _Result], items: Sequence[tuple[Any, ...]], jobs: int) -> Iterator[_Result]:
    """Yield the results in the order of the items, each as soon as it and those before it are there."""
    from joblib import Parallel, delayed

    yield from Parallel(n_jobs=jobs, return_as="generator")(delayed(work)(*item) for item in items)


@cache
def _workspace_of_process(data_root: Path | None, download: bool) -> Workspace:
    return Workspace(data_root, download)


def _run_elsewhere(planned: Planned, data_root: Path | None, download: bool) -> Trial:
    return run_planned(planned, _workspace_of_process(data_root, download))


def _absent_data(plan: Sequence[Planned], workspace: Workspace) -> dict[str, str]:
    """Load every data set and build every design once, before anything runs; return why optional data are absent.

    Raises:
        LmcVerifyError: a data set that is not optional cannot be loaded, or a design does not fit its graph.
    """
    absent: dict[str, str] = {}
    failures: dict[tuple[DatasetSettings, int], LmcVerifyError | None] = {}
    for planned in plan:
        settings = planned.settings
        wanted = (settings.dataset, settings.seed)
        if planned.kind != "claim":
            continue
        if wanted not in failures:
            try:
                workspace.graph(*wanted)
                failures[wanted] = None
            except LmcVerifyError as error:
                failures[wanted] = error
        failure = failures[wanted]
        if failure is None:
            # More parts than nodes, and the like.
            build_design(settings.design, workspace.graph(*wanted), workspace, settings.seed)
        elif planned.optional:
            absent[settings.dataset.name] = str(failure)
        else:
            raise failure
    return absent


def _expected(planned: Planned) -> str | None:
    return None if planned.expected is None else planned.expected.value
