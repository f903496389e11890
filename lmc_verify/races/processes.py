"""Making the training runs, one after another or over joblib's processes; each is recorded as it comes."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from itertools import groupby
from pathlib import Path

import torch

from lmc_verify.cases import Workspace
from lmc_verify.errors import InvalidInputError, LmcVerifyError
from lmc_verify.races.contest import RaceProgress, contestants_of, race_record, require_split, run_contestant
from lmc_verify.races.plan import PlannedRace, PlannedRun, RaceHeader, RaceRun
from lmc_verify.races.record import RaceRecord
from lmc_verify.races.settings import RaceSettings
from lmc_verify.races.table import planned_race
from lmc_verify.training.build import build_trainer, warm_up

__all__ = ["check_races", "make_runs", "run_race"]

Watch = Callable[[RaceProgress], None]
"""Called while a run is under way, in this process only."""


def run_race(settings: RaceSettings, workspace: Workspace | None = None, *, jobs: int = 1) -> RaceRecord:
    """Train every contestant once per seed and say when each had the target accuracy; record nothing.

    Everything that the settings name is built before the first run. A run that raises an error after that is
    recorded as ``"failed"``; the others continue. ``lmc-verify race`` makes the same runs and records each as it ends.

    Args:
        settings: the race.
        workspace: where data come from.
        jobs: processes; 1 runs in this one.

    Raises:
        InvalidInputError: settings that do not fit the data, or contestants that are trained alike.
    """
    if jobs < 1:
        raise InvalidInputError(f"jobs is {jobs}, it must be at least 1")
    workspace = workspace or Workspace()
    place = (workspace.data_root, workspace.download)
    race = planned_race(settings)
    check_races([race], *place)
    made = {run.key: run.entry for run in make_runs(race.runs, *place, jobs=jobs)}
    return race_record(settings, [replace(made[run.key], position=number) for number, run in enumerate(race.runs)])


class _Worker:
    """A process that makes runs. It keeps one data set at a time: the large ones do not fit next to each other."""

    def __init__(self, data_root: Path | None, download: bool) -> None:
        self.place = (data_root, download)
        self.workspace = Workspace(*self.place)
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
            self.workspace, self.held, self.warm = Workspace(*self.place), wanted, set()
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


@cache
def _worker_of_process(data_root: Path | None, download: bool) -> _Worker:
    return _Worker(data_root, download)


def _make_elsewhere(planned: PlannedRun, data_root: Path | None, download: bool) -> RaceRun:
    return _worker_of_process(data_root, download).make(planned)


def check_races(races: Sequence[PlannedRace], data_root: Path | None, download: bool) -> list[RaceHeader]:
    """Load every data set and build every contestant once, before anything runs; return what to record of each race.

    Raises:
        LmcVerifyError: a data set that is not optional cannot be loaded, or a contestant does not fit its data.
    """
    headers = {}
    # Races on one data set are checked together, so that it is loaded once and no other is kept meanwhile.
    for _, group in groupby(sorted(races, key=_data), key=_data):
        workspace = Workspace(data_root, download)
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


def make_runs(
    plan: Sequence[PlannedRun], data_root: Path | None, download: bool, *, jobs: int, watch: Watch | None = None
) -> Iterator[RaceRun]:
    """Yield what is to be recorded of every run as it ends, so that none waits for another to be recorded.

    The place of a run in its race is the caller's to say: `RaceEntry.position` is 0.
    """
    if jobs == 1 or not plan:  # one that is left takes a process too: it has as many threads as those before
        worker = _Worker(data_root, download)
        for planned in plan:
            yield worker.make(planned, watch)
        return
    from joblib import Parallel, delayed

    with warnings.catch_warnings():
        # joblib replaces a process that has grown, as it does with a larger data set.
        warnings.filterwarnings("ignore", message="A worker stopped while some jobs were given", category=UserWarning)
        calls = [delayed(_make_elsewhere)(planned, data_root, download) for planned in plan]
        yield from Parallel(n_jobs=jobs, return_as="generator_unordered")(calls)
