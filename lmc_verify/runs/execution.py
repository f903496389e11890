"""Running a suite, one part after another or over joblib's processes; each result is recorded as it comes.

Audits come after the checks of claims and controls, then searches for counterexamples, then races.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar

from lmc_verify.cases import DatasetSettings, Workspace, build_design
from lmc_verify.claims import Outcome
from lmc_verify.errors import InvalidInputError, LmcVerifyError
from lmc_verify.provenance import environment
from lmc_verify.races import PlannedRun, RaceHeader, RaceProgress, RaceRun, check_races, make_runs
from lmc_verify.runs.audits import run_audit
from lmc_verify.runs.parts import Done, Listener, Phase, RunPart, SearchPart, TrialPart
from lmc_verify.runs.planned import Planned, run_planned
from lmc_verify.runs.records import Records
from lmc_verify.runs.searches import FOLDER, SearchRecord, run_search
from lmc_verify.runs.suite import Suite
from lmc_verify.runs.trials import Trial

__all__ = ["RunResult", "exit_code", "run_suite"]

_Planned = TypeVar("_Planned")
_Result = TypeVar("_Result")
_ROUNDING = 1e-9  # relative: shares are quotients of the total, and their sum may exceed it by rounding


@dataclass(frozen=True)
class RunResult:
    """What a run of a suite gave.

    Attributes:
        run_id: id of the run in its records.
        trials: every trial, in the order of the plan.
        not_run: planned checks that were not run, with reasons.
        reused: number of trials, searches and training runs taken from an earlier run.
        alpha_total: error probability that the statistical checks may spend together.
        searches: every search for a counterexample.
        races: every race with its runs.
        strict: whether an inconclusive verdict counts against the run.
    """

    run_id: int
    trials: tuple[Trial, ...]
    not_run: tuple[tuple[Planned, str], ...]
    reused: int
    alpha_total: float = 1e-6
    searches: tuple[SearchRecord, ...] = ()
    races: tuple[tuple[RaceHeader, tuple[RaceRun, ...]], ...] = ()
    strict: bool = False

    @property
    def race_runs(self) -> tuple[RaceRun, ...]:
        """Every run of every race."""
        return tuple(item for _, runs in self.races for item in runs)

    @property
    def exit_code(self) -> int:
        """The exit code of the run, see the function `exit_code`."""
        return exit_code(
            self.trials,
            self.searches,
            self.race_runs,
            overspent=self.overspent,
            strict=self.strict,
        )

    @property
    def alpha_spent(self) -> float:
        """Error probability that the statistical checks of the run spent together; controls have their own."""
        return math.fsum(trial.verdict.alpha_spent for trial in self.trials if trial.kind == "claim")

    @property
    def alpha_spent_asymptotic(self) -> float:
        """What of `alpha_spent` holds in the limit of many draws only."""
        return math.fsum(
            trial.verdict.alpha_spent
            for trial in self.trials
            if trial.kind == "claim" and trial.verdict.guarantee == "asymptotic"
        )

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


def exit_code(
    trials: Sequence[Trial],
    searches: Sequence[SearchRecord],
    race_runs: Sequence[RaceRun],
    *,
    overspent: bool,
    strict: bool = False,
    finished: bool = True,
) -> int:
    """Return the exit code of a run, from all that it left behind.

    4 a control failed; 1 an unexpected verdict or search, or more error probability spent than there is (`overspent`);
    5 a trial, a search or a training run crashed, or has no result as the run did not finish; 6 nothing was checked; 3
    a verdict is inconclusive and the run was `strict`; else 0. A training run that diverges, or never reaches its
    target, is a result.
    """
    claims = [trial for trial in trials if trial.kind == "claim"]
    if any(trial.as_expected is False for trial in trials if trial.kind == "control" and not trial.crashed):
        return 4
    unexpected = any(trial.as_expected is False for trial in claims if not trial.crashed)
    if unexpected or overspent or any(not (item.as_expected or item.crashed) for item in searches):
        return 1
    if not finished or any(item.crashed for item in (*trials, *searches, *race_runs)):
        return 5
    if not (claims or searches or race_runs):
        return 6
    return 3 if strict and any(trial.verdict.outcome is Outcome.INCONCLUSIVE for trial in claims) else 0


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
    """Run every planned check, audit, search and race of a suite; record each trial, search and run in its transaction.

    Counterexamples are written into the folder ``counterexamples`` next to the records.

    Args:
        suite: the suite.
        records: where trials are appended; an interrupted run keeps what it has finished.
        workspace: where data come from.
        resume: take trials, searches and training runs with the same identity (claim or training run, case and code)
            from earlier runs in `records`; a search whose files are gone or changed is made again.
        jobs: processes; 1 runs in this one. Verdicts do not depend on it.
        replicate: number of the repetition of the statistical checks; another one has fresh draws.
        preset: variant of the races; by default the suite's first.
        listen: called after each trial, each search and each training run.
        watch: called while a training run is under way, with one process only.

    Raises:
        InvalidInputError: the suite or its data do not fit. Trials recorded before stay recorded.
    """
    if jobs < 1:
        raise InvalidInputError(f"jobs is {jobs}, it must be at least 1")
    plan, searches, races = suite.plan(replicate=replicate), suite.searches(), suite.races(preset)
    audits = suite.audits(replicate=replicate)
    absent = _absent_data(plan, workspace)
    place = (workspace.data_root, workspace.download)
    headers = check_races(races, *place)
    folder = records.path.parent / FOLDER
    search = partial(run_search, folder=folder)
    phases: tuple[Phase[Any], ...] = (
        Phase(
            [
                TrialPart(item, absent.get(item.settings.dataset.name, "") if item.kind == "claim" else "")
                for item in plan
            ],
            lambda rest: _in_order(
                rest, jobs, lambda item: run_planned(item, workspace), partial(_run_elsewhere, place=place)
            ),
        ),
        Phase([TrialPart(item) for item in audits], lambda rest: _in_order(rest, jobs, run_audit, run_audit)),
        Phase([SearchPart(item, folder) for item in searches], lambda rest: _in_order(rest, jobs, search, search)),
        Phase(
            [
                RunPart(run, position, header.reason)
                for race, header in zip(races, headers, strict=True)
                for position, run in enumerate(race.runs)
            ],
            lambda rest: _as_they_end(rest, make_runs(rest, *place, jobs=jobs, watch=watch)),
            headers,
        ),
    )
    run_id = records.start_run(
        suite.name,
        suite.title,
        {
            "seed": suite.seed,
            "description": suite.description,
            "planned": sum(len(phase.parts) for phase in phases),
            "alpha_total": suite.alpha_total,
            "replicate": replicate,
            **({} if suite.preset(preset) is None else {"preset": suite.preset(preset)}),
            **({"jobs": jobs} if races else {}),
        },
        environment(),
        [part.entry for phase in phases for part in phase.parts],
    )
    status = "failed"
    done: list[Done[Any]] = []
    try:
        for phase in phases:
            for header in phase.headers:
                records.add_race(run_id, header)
            for item in phase.done(records if resume else None):
                item.part.record(records, run_id, item.result)
                done.append(item)
                if listen is not None:
                    listen(item.part.planned, item.result, item.reason)
        status = "finished"
    except KeyboardInterrupt:
        status = "interrupted"
        raise
    finally:
        records.finish_run(run_id, status)
    return _result(run_id, done, suite.alpha_total, headers)


def _result(run_id: int, done: Sequence[Done[Any]], alpha_total: float, headers: Sequence[RaceHeader]) -> RunResult:
    made = [item.result for item in done]
    runs = sorted((item for item in made if isinstance(item, RaceRun)), key=lambda run: run.entry.position)
    return RunResult(
        run_id=run_id,
        trials=tuple(item for item in made if isinstance(item, Trial)),
        not_run=tuple(
            (item.part.planned, item.reason)
            for item in done
            if item.result is None and isinstance(item.part.planned, Planned)
        ),
        reused=sum(item.reused for item in done),
        alpha_total=alpha_total,
        searches=tuple(item for item in made if isinstance(item, SearchRecord)),
        races=tuple((header, tuple(run for run in runs if run.race == header.key)) for header in headers),
    )


def _in_order(
    plan: Sequence[_Planned], jobs: int, here: Callable[[_Planned], _Result], elsewhere: Callable[[_Planned], _Result]
) -> Iterator[tuple[_Planned, _Result]]:
    """Yield the results in the order of the plan, each as soon as it and those before it are there."""
    if jobs == 1 or len(plan) < 2:
        yield from ((item, here(item)) for item in plan)
        return
    from joblib import Parallel, delayed

    results = Parallel(n_jobs=jobs, return_as="generator")(delayed(elsewhere)(item) for item in plan)
    yield from zip(plan, results, strict=True)


def _as_they_end(plan: Sequence[PlannedRun], made: Iterator[RaceRun]) -> Iterator[tuple[PlannedRun, RaceRun]]:
    by_key = {item.key: item for item in plan}
    yield from ((by_key[run.key], run) for run in made)


@cache
def _workspace_of_process(data_root: Path | None, download: bool) -> Workspace:
    return Workspace(data_root, download)


def _run_elsewhere(planned: Planned, place: tuple[Path | None, bool]) -> Trial:
    return run_planned(planned, _workspace_of_process(*place))


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
