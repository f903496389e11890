"""Making the training runs: in this process, or in workers."""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import groupby

import cloudpickle
import torch

from lmc_verify.cases import Workspace
from lmc_verify.errors import InvalidInputError, LmcVerifyError
from lmc_verify.races.contest import RaceProgress, contestants_of, race_record, require_split, run_contestant
from lmc_verify.races.plan import PlannedRace, PlannedRun, RaceHeader, RaceRun, crashed_run
from lmc_verify.races.record import RaceRecord
from lmc_verify.races.settings import RaceSettings
from lmc_verify.races.table import planned_race
from lmc_verify.training.build import build_trainer, warm_up
from lmc_verify.workers.pool import Pool, Task
from lmc_verify.workers.worker import report_progress

__all__ = ["check_races", "make_run_elsewhere", "require_sendable", "run_maker", "run_race"]

Watch = Callable[[RaceProgress], None]
"""Called while a run is under way, in the process that makes it."""
_TELL_SECONDS = 0.5
"""Seconds between two words about the progress of a run."""


def run_race(settings: RaceSettings, workspace: Workspace | None = None, *, jobs: int = 1) -> RaceRecord:
    """Train every contestant once per seed and say when each had the target accuracy; record nothing.

    Everything that the settings name is built before the first run. A run that raises an error after that is
    recorded as ``"failed"``; the others continue. ``lmc-verify race`` makes the same runs and records each as it ends.

    Args:
        settings: the race.
        workspace: where data sets and models come from; a subclass may have its own.
        jobs: processes; 1 runs in this one.

    Raises:
        InvalidInputError: settings that do not fit the data, contestants that are trained alike, or a workspace that
            cannot be sent to other processes.
    """
    if jobs < 1:
        raise InvalidInputError(f"jobs is {jobs}, it must be at least 1")
    workspace = (workspace or Workspace()).emptied()
    if jobs > 1:
        require_sendable(workspace)
    race = planned_race(settings, workspace=workspace)
    check_races([race], workspace)
    made = {run.key: run.entry for run in _make_runs(race.runs, workspace, jobs)}
    return race_record(settings, [replace(made[run.key], position=number) for number, run in enumerate(race.runs)])


def require_sendable(workspace: Workspace) -> None:
    """Raise InvalidInputError where a workspace cannot be sent to another process."""
    try:
        cloudpickle.dumps(workspace.emptied())
    except Exception as error:  # of whatever the caller's class holds
        raise InvalidInputError(
            f"the workspace, a {type(workspace).__name__}, cannot be sent to other processes: {error}; leave out what "
            "cannot be pickled, or take one job in this process"
        ) from error


class _Worker:
    """A process that makes runs. It keeps one data set at a time: the large ones do not fit next to each other."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace.emptied()
        self.held: tuple[object, ...] = ()
        self.warm: set[str] = set()
        """Contestants that have taken the step that does not count."""

    def make(self, planned: PlannedRun, watch: Watch | None = None) -> RaceRun:
        """Make one run. An error is recorded as such; bad input is raised, for the caller to fix.

        Raises:
            InvalidInputError: the settings do not fit the data.
        """
        start = time.perf_counter()
        settings = planned.settings
        wanted = (settings.dataset, settings.data_seed, settings.dtype)
        if wanted != self.held:
            self.workspace, self.held, self.warm = self.workspace.emptied(), wanted, set()
        key = settings.model_copy(update={"seed": 0}).model_dump_json()
        if key not in self.warm:
            self.warm.add(key)
            try:
                warm_up(settings, self.workspace)
            except InvalidInputError:
                raise
            except Exception:  # the run itself will raise it again, and is recorded with it
                pass
        race = planned.race.settings
        entry = run_contestant(race, planned.contestant, planned.seed, self.workspace, listen=watch)
        return RaceRun(planned.key, planned.race.key, entry, planned.command, time.perf_counter() - start)


@lru_cache(maxsize=1)
def _worker_of_process(pickled: bytes) -> _Worker:
    return _Worker(pickle.loads(pickled))  # nosec B301  # has just been made of an object of this process


def run_maker(workspace: Workspace) -> Callable[[PlannedRun, Watch | None], RaceRun]:
    """Return a function that makes training runs in this process, and keeps the data of one for the next.

    The place of a run in its race is the caller's to say: `RaceEntry.position` is 0. Bad input is raised, as an
    InvalidInputError.
    """
    return _Worker(workspace).make


def make_run_elsewhere(planned: PlannedRun, workspace: Workspace) -> RaceRun:
    """Make one training run in a worker, which tells how far it is."""
    told = 0.0

    def tell(progress: RaceProgress) -> None:
        nonlocal told
        if time.monotonic() - told > _TELL_SECONDS:
            told = time.monotonic()
            report_progress(progress.words)

    return _worker_of_process(cloudpickle.dumps(workspace)).make(planned, tell)


def check_races(races: Sequence[PlannedRace], workspace: Workspace) -> list[RaceHeader]:
    """Load every data set and build every contestant once, before anything runs; return what to record of each race.

    Raises:
        LmcVerifyError: a data set that is not optional cannot be loaded, or a contestant does not fit its data.
    """
    headers = {}
    # Races on one data set are checked together, so that it is loaded once and no other is kept meanwhile.
    for _, group in groupby(sorted(races, key=_data), key=_data):
        workspace = workspace.emptied()
        for race in group:
            settings = race.settings
            try:
                graph = workspace.graph(settings.dataset, settings.data_seed, getattr(torch, settings.dtype))
            except LmcVerifyError as error:
                if not race.optional:
                    raise
                headers[race.key] = replace(race.header, reason=str(error))
                continue
            require_split(settings, graph)
            for contestant in contestants_of(settings):
                build_trainer(settings.run_of(contestant, settings.seeds[0]), workspace)
            headers[race.key] = race.header
    return [headers[race.key] for race in races]


def _data(race: PlannedRace) -> str:
    settings = race.settings
    return f"{settings.dataset.model_dump_json()} {settings.data_seed} {settings.dtype}"


def _make_runs(plan: Sequence[PlannedRun], workspace: Workspace, jobs: int) -> Iterator[RaceRun]:
    """Yield every training run as it ends."""
    if jobs == 1:
        make = run_maker(workspace)
        yield from (make(planned, None) for planned in plan)
        return
    with Pool(jobs) as pool:
        for done in pool.run(Task(planned.label, make_run_elsewhere, (planned, workspace)) for planned in plan):
            failed = crashed_run(plan[done.index], done.failure, done.seconds)
            yield failed if done.failure else done.result
