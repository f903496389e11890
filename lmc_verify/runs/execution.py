"""Running a suite, in this process or in workers; each result is recorded as it comes.

Audits come after the checks of claims and controls, then searches for counterexamples, then races.
"""

from __future__ import annotations

import contextlib
import math
import pickle
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import cloudpickle

from lmc_verify.cases import DatasetSettings, Workspace, build_design
from lmc_verify.claims import Outcome
from lmc_verify.errors import InvalidInputError, LmcVerifyError
from lmc_verify.provenance import environment
from lmc_verify.races import (
    PlannedRun,
    RaceHeader,
    RaceProgress,
    RaceRun,
    check_races,
    make_run_elsewhere,
    require_sendable,
    run_maker,
)
from lmc_verify.runs.audits import run_audit
from lmc_verify.runs.parts import Done, Listener, Maker, Part, Phase, RunPart, SearchPart, TrialPart, Watch
from lmc_verify.runs.planned import Planned, run_planned
from lmc_verify.runs.records import Records
from lmc_verify.runs.searches import FOLDER, SearchRecord, keep_files, run_search, search_elsewhere
from lmc_verify.runs.shards import Shard
from lmc_verify.runs.suite import Suite
from lmc_verify.runs.trials import Trial
from lmc_verify.workers.cores import number_of_jobs
from lmc_verify.workers.engines import Engine
from lmc_verify.workers.heartbeat import heartbeat
from lmc_verify.workers.pool import Pool, Task
from lmc_verify.workers.worker import describe_error

__all__ = ["RunInterrupted", "RunResult", "exit_code", "run_suite", "workspace_of_process"]

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
        shard: which share of the suite this is; None for the whole.
        elsewhere: number of parts that other shards have.
    """

    run_id: int
    trials: tuple[Trial, ...]
    not_run: tuple[tuple[Planned, str], ...]
    reused: int
    alpha_total: float = 1e-6
    searches: tuple[SearchRecord, ...] = ()
    races: tuple[tuple[RaceHeader, tuple[RaceRun, ...]], ...] = ()
    strict: bool = False
    shard: Shard | None = None
    elsewhere: int = 0

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
            whole=self.shard is None,
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
    whole: bool = True,
) -> int:
    """Return the exit code of a run, from all that it left behind.

    4 a control failed; 1 an unexpected verdict or search, or more error probability spent than there is (`overspent`);
    5 a trial, a search or a training run crashed, or has no result as the run did not finish; 6 nothing was checked; 3
    a verdict is inconclusive and the run was `strict`; else 0. A training run that diverges, or never reaches its
    target, is a result. A shard, which is not the `whole` suite, may have nothing to check.
    """
    claims = [trial for trial in trials if trial.kind == "claim"]
    crashed = any(trial.crashed for trial in trials) or any(search.crashed for search in searches)
    crashed = crashed or any(run.crashed for run in race_runs)
    if any(trial.as_expected is False for trial in trials if trial.kind == "control" and not trial.crashed):
        return 4
    unexpected = any(trial.as_expected is False for trial in claims if not trial.crashed)
    if unexpected or overspent or any(not (item.as_expected or item.crashed) for item in searches):
        return 1
    if not finished or crashed:
        return 5
    if whole and not (claims or searches or race_runs):
        return 6
    return 3 if strict and any(trial.verdict.outcome is Outcome.INCONCLUSIVE for trial in claims) else 0


class RunInterrupted(KeyboardInterrupt):
    """A run was interrupted; what was done is recorded.

    Attributes:
        run_id: id of the run in its records.
    """

    def __init__(self, run_id: int) -> None:
        super().__init__(f"run {run_id} was interrupted")
        self.run_id = run_id


def run_suite(
    suite: Suite,
    records: Records,
    workspace: Workspace,
    *,
    resume: bool = False,
    retry: bool = False,
    jobs: int = 1,
    timeout: float | None = None,
    replicate: int = 0,
    preset: str | None = None,
    strict: bool = False,
    shard: Shard | None = None,
    engine: Engine | None = None,
    listen: Listener | None = None,
    watch: Watch | None = None,
) -> RunResult:
    """Run every planned check, audit, search and race of a suite; record each trial, search and run in its transaction.

    The plan is recorded first, and each result as it comes, in any order. Whatever ends the running of a part, other
    than an interrupt, is an error of this part, and the others go on. In a process of its own that includes the death
    of the process. Counterexamples are written into the folder ``counterexamples`` next to the records.

    Args:
        suite: the suite.
        records: where trials are appended; an interrupted run keeps what it has finished.
        workspace: where data sets and models come from; a subclass may have its own.
        resume: take trials, searches and training runs with the same identity (claim or training run, case and code)
            from earlier runs in `records`; a search whose files are gone or changed is made again. What crashed is
            taken over as a crash.
        retry: as `resume`, and what crashed is run again.
        jobs: processes; 1 runs in this one, unless there is a time limit or an `engine`; -1 is one for each core.
            Verdicts do not depend on it.
        timeout: seconds that a part may take, where the suite says nothing else; what takes longer is ended.
        replicate: number of the repetition of the statistical checks; another one has fresh draws.
        preset: variant of the races; by default the suite's first.
        strict: whether an inconclusive verdict counts against the run, see `exit_code`.
        shard: the share of the plan to be run; None for all of it. The whole plan is recorded.
        engine: what runs the parts, in place of new processes, see `lmc_verify.workers.engines.connect`.
        listen: called after each trial, each search and each training run.
        watch: called while a part is under way, with what it is called, the seconds that it has taken, and its progress
            in words.

    Raises:
        InvalidInputError: the suite or its data do not fit, or the workspace cannot be sent to other processes; both
            are found before anything runs.
        OutputError: the records cannot be written. Trials recorded before stay recorded.
        RunInterrupted: a KeyboardInterrupt, once the run has begun.
    """
    jobs = number_of_jobs(jobs)
    if timeout is not None and not 0 < timeout < math.inf:
        raise InvalidInputError(f"timeout is {timeout}, it must be a number of seconds above 0")
    phases = _phases(suite, workspace, records.path.parent / FOLDER, replicate, preset, watch)
    plan = [part.entry for phase in phases for part in phase.parts]
    if shard is not None:
        own = shard.own((entry.kind, entry.key) for entry in plan)
        phases = tuple(phase.of(own) for phase in phases)
    parts = [part for phase in phases for part in phase.parts]
    limited = timeout is not None or any(part.limit is not None for part in parts)
    if engine is not None or jobs > 1 or limited:
        require_sendable(workspace)
    with contextlib.ExitStack() as stack:
        if engine is None and (jobs > 1 or limited):
            engine = stack.enter_context(Pool(jobs))
        maker: Maker = _here
        if engine is not None:
            maker = partial(_by_engine, engine=engine, timeout=timeout, watch=watch)
        run_id = records.start_run(
            suite.name,
            suite.title,
            {
                "seed": suite.seed,
                "description": suite.description,
                "planned": len(parts),
                "alpha_total": suite.alpha_total,
                "replicate": replicate,
                **({} if suite.preset(preset) is None else {"preset": suite.preset(preset)}),
                **({"jobs": jobs} if any(phase.headers for phase in phases) else {}),
                **({"strict": True} if strict else {}),
                **({} if shard is None else {"shard": str(shard)}),
            },
            environment(),
            plan,
        )
        done = _carry_out(run_id, phases, records, maker, records if resume or retry else None, retry, listen)
    place = {id(part): number for number, part in enumerate(parts)}
    done.sort(key=lambda item: place[id(item.part)])
    headers = [header for phase in phases for header in phase.headers]
    result = _result(run_id, done, suite.alpha_total, headers)
    return replace(result, strict=strict, shard=shard, elsewhere=len(plan) - len(parts))


def _carry_out(
    run_id: int,
    phases: Sequence[Phase[Any]],
    records: Records,
    maker: Maker,
    earlier: Records | None,
    retry: bool,
    listen: Listener | None,
) -> list[Done[Any]]:
    """Have everything run and recorded; return what was done, in the order in which it ended."""
    status = "failed"
    done: list[Done[Any]] = []
    records.beat(run_id)
    try:
        with heartbeat(lambda: _beats(records.path, run_id)):
            for phase in phases:
                for header in phase.headers:
                    records.add_race(run_id, header)
                with contextlib.closing(phase.done(earlier, maker, retry=retry)) as items:
                    for item in items:
                        item.part.record(records, run_id, item.result)
                        done.append(item)
                        if listen is not None:
                            listen(item.part.planned, item.result, item.reason)
        status = "finished"
    except KeyboardInterrupt as error:
        status = "interrupted"
        raise RunInterrupted(run_id) from error
    finally:
        records.finish_run(run_id, status)
    return done


@contextlib.contextmanager
def _beats(path: Path, run_id: int) -> Iterator[Callable[[], None]]:
    with Records.open(path) as records:  # a connection belongs to its thread
        yield lambda: records.beat(run_id)


def _phases(
    suite: Suite, workspace: Workspace, folder: Path, replicate: int, preset: str | None, watch: Watch | None
) -> tuple[Phase[Any], ...]:
    """Return everything that the suite plans, once it is known to fit its data.

    Raises:
        InvalidInputError: it does not.
    """
    plan, searches = suite.plan(replicate=replicate, workspace=workspace), suite.searches()
    audits, races = suite.audits(replicate=replicate, workspace=workspace), suite.races(preset, workspace=workspace)
    absent = _absent_data(plan, workspace)
    empty = workspace.emptied()
    headers, make = check_races(races, empty), run_maker(empty)
    checks = [
        TrialPart(item, absent.get(item.settings.dataset.name, "") if item.kind == "claim" else "") for item in plan
    ]
    runs = [
        RunPart(run, position, header.reason)
        for race, header in zip(races, headers, strict=True)
        for position, run in enumerate(race.runs)
    ]
    return (
        Phase(checks, lambda item: run_planned(item, workspace), _check, (empty,)),
        Phase([TrialPart(item) for item in audits], run_audit, run_audit),
        Phase(
            [SearchPart(item, folder) for item in searches],
            lambda item: run_search(item, folder),
            search_elsewhere,
            receive=lambda found: keep_files(found, folder),
        ),
        Phase(runs, lambda item: make(item, _watch_here(item, watch)), make_run_elsewhere, (empty,), headers),
    )


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


def _here(phase: Phase[Any], parts: Sequence[Part[Any]]) -> Iterator[tuple[Part[Any], Any]]:
    """Run parts in this process, one after another."""
    for part in parts:
        start = time.monotonic()
        try:
            result = phase.here(part.planned)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # sys.exit, too
            result = part.crash(describe_error(error), time.monotonic() - start)
        yield part, result


def _by_engine(
    phase: Phase[Any], parts: Sequence[Part[Any]], *, engine: Engine, timeout: float | None, watch: Watch | None
) -> Iterator[tuple[Part[Any], Any]]:
    """Have an engine run parts; yield them as they end."""
    tasks = [
        Task(
            part.planned.label,
            phase.elsewhere,
            (part.planned, *phase.context),
            timeout if part.limit is None else part.limit,
        )
        for part in parts
    ]
    keys = [part.planned.key for part in parts]
    tell = None if watch is None else lambda task, seconds, words: watch(task.name, seconds, words)
    with contextlib.closing(engine.run(tasks, tell)) as ended:
        for done in ended:
            part, failure, result = parts[done.index], done.failure, None
            if not failure:
                result, failure = _received(phase, done.result, keys[done.index])
            yield part, part.crash(failure, done.seconds) if failure else result


def _received(phase: Phase[Any], made: Any, key: str) -> tuple[Any, str]:
    """Return the result that came from another process, and why it cannot be taken; empty if it can."""
    try:
        result = phase.receive(made)
    except LmcVerifyError as error:
        return None, describe_error(error)
    if result.key != key:  # of a plug-in, or of a user's function: all else has been compared
        return None, (
            "the result is not that of what was planned: a plug-in or a function of yours has another version where it "
            "was made, or was changed meanwhile; have the same files everywhere, and run it again with --retry"
        )
    return result, ""


def _watch_here(planned: PlannedRun, watch: Watch | None) -> Callable[[RaceProgress], None] | None:
    if watch is None:
        return None
    start = time.monotonic()
    return lambda progress: watch(planned.label, time.monotonic() - start, progress.words)


def workspace_of_process(workspace: Workspace) -> Workspace:
    """Return this process's own copy of a workspace, which keeps what the tasks before have made."""
    return _kept(cloudpickle.dumps(workspace))


@lru_cache(maxsize=1)
def _kept(pickled: bytes) -> Workspace:
    workspace: Workspace = pickle.loads(pickled)  # nosec B301  # has just been made of an object of this process
    return workspace


def _check(planned: Planned, workspace: Workspace) -> Trial:
    return run_planned(planned, workspace_of_process(workspace))


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
