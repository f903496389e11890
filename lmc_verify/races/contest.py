"""Races: every contestant trained once a seed, in turns, and measured by when it has the target accuracy.

Contestants take turns seed by seed, each seed beginning with another one, so that a machine that becomes slower or
faster does so for all of them. Seconds are training time alone. Initial parameters are those of the seed, the same for
all contestants.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lmc_verify.cases import EstimatorSettings, Workspace, plugins_of
from lmc_verify.errors import InvalidInputError
from lmc_verify.graphs import Graph
from lmc_verify.provenance import code_fingerprint, environment
from lmc_verify.races.record import REFERENCE, RaceEntry, RaceRecord
from lmc_verify.races.settings import ContestantSettings, RaceSettings
from lmc_verify.races.target import judge, reference_label, standings_of, target_of
from lmc_verify.training.build import build_trainer, graph_of, warm_up
from lmc_verify.training.trainer import Trainer

__all__ = ["RaceProgress", "contestants_of", "race_record", "race_runs", "require_split", "run_contestant", "run_race"]


@dataclass(frozen=True)
class RaceProgress:
    """Where a race is.

    Attributes:
        label: the contestant whose turn it is.
        seed: of its run.
        position: runs done before it.
        total: runs of the whole race.
        trainer: its run.
    """

    label: str
    seed: int
    position: int
    total: int
    trainer: Trainer


def run_race(
    settings: RaceSettings,
    workspace: Workspace | None = None,
    *,
    previous: RaceRecord | None = None,
    keep: Callable[[RaceRecord], None] | None = None,
    listen: Callable[[RaceProgress], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> RaceRecord:
    """Train every contestant once a seed and say when each had the target accuracy.

    Everything that the settings name is built, and takes one step that does not count, before the race begins. A run
    that raises an error after that is recorded as ``"failed"``; the others go on.

    Args:
        settings: the race.
        workspace: where data come from.
        previous: the record of an earlier, unfinished race whose runs are taken over.
        keep: called with the record so far after every run, to keep it.
        listen: called with the progress of the run at hand.
        stop: asked after every step; the run at hand is then given up, and the record of those before it returned.

    Raises:
        InvalidInputError: settings that do not fit the data, or a previous record of another race or other code.
    """
    workspace = workspace or Workspace()
    graph = graph_of(settings.dataset, settings.data_seed, settings.dtype, workspace)
    require_split(settings, graph)
    runs = list(race_runs(settings))
    entries: dict[tuple[str, int], RaceEntry] = {}
    plugins: dict[str, str] = {}
    for contestant in contestants_of(settings):
        plugins |= plugins_of(settings.run_of(contestant, settings.seeds[0]))
    provenance = {
        "graph": graph.fingerprint,
        "nodes": graph.num_nodes,
        "edges": graph.num_edges,
        "code": code_fingerprint(),
        "device": str(graph.device),
        "plugins": plugins,
    }
    if previous is not None:
        _check_previous(settings, previous, provenance)
        entries = {(item.label, item.seed): item for item in previous.entries}
    for contestant in contestants_of(settings):
        warm_up(settings.run_of(contestant, settings.seeds[0]), workspace)
    record = race_record(settings, entries.values(), provenance)
    for contestant, seed in runs:
        key = (contestant.label, seed)
        if key in entries:
            continue
        entry = run_contestant(
            settings, contestant, seed, workspace, position=len(entries), total=len(runs), listen=listen, stop=stop
        )
        if entry is None:
            break
        entries[key] = entry
        record = race_record(settings, entries.values(), provenance)
        if keep is not None:
            keep(record)
    return record


def require_split(settings: RaceSettings, graph: Graph) -> None:
    """Raise InvalidInputError if the graph has no nodes to judge the target's accuracy by."""
    mask = graph.val_mask if settings.target.split == "validation" else graph.test_mask
    if mask is None or not bool(mask.any()):
        raise InvalidInputError(
            f"data set {settings.dataset.name!r} has no {settings.target.split} nodes, so no run has an accuracy to "
            "race by; set target.split, or choose another data set"
        )


def contestants_of(settings: RaceSettings) -> tuple[ContestantSettings, ...]:
    """Return the contestants, with those that only set the target first."""
    if reference_label(settings) != REFERENCE:
        return settings.contestants
    reference = ContestantSettings(estimator=EstimatorSettings(name="full-batch"), label=REFERENCE)
    return (reference, *settings.contestants)


def race_runs(settings: RaceSettings) -> Iterator[tuple[ContestantSettings, int]]:
    """Yield all runs in the order in which they are made."""
    contestants = contestants_of(settings)
    for turn, seed in enumerate(settings.seeds):
        first = turn % len(contestants)
        for contestant in (*contestants[first:], *contestants[:first]):
            yield contestant, seed


def run_contestant(
    settings: RaceSettings,
    contestant: ContestantSettings,
    seed: int,
    workspace: Workspace,
    *,
    position: int = 0,
    total: int = 1,
    listen: Callable[[RaceProgress], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> RaceEntry | None:
    """Make one run of a race; return None where it was given up. `race_record` judges it.

    Args:
        settings: the race.
        contestant: one of `contestants_of`.
        seed: one of the race's.
        workspace: where data come from.
        position: runs of the race made before.
        total: runs of the whole race.
        listen: called with the progress.
        stop: asked after every step; the run is then given up.
    """
    label = contestant.label
    try:
        # A design of its own: what batches remember about the graph is part of the work of every run.
        trainer = build_trainer(settings.run_of(contestant, seed), workspace, description={"label": label})
        progress = RaceProgress(label, seed, position, total, trainer)
        trace = trainer.run(listen=None if listen is None else lambda _: listen(progress), stop=stop)
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        reason = f"failed: {type(error).__name__}: {error} ({where.filename.rsplit('/', 1)[-1]}:{where.lineno})"
        return RaceEntry(label, seed, position, None, None, reason, "failed")
    if trace.status == "interrupted":
        return None
    return RaceEntry(label, seed, position, trace, status=trace.status)


def race_record(
    settings: RaceSettings, entries: Iterable[RaceEntry], provenance: Mapping[str, Any] | None = None
) -> RaceRecord:
    """Return the record of a race from the runs made so far: the target, who reached it when, and medians."""
    entries = tuple(entries)
    target = target_of(settings, entries)
    judged = tuple(judge(entry, target) for entry in entries)
    return RaceRecord(settings, target, judged, standings_of(settings, judged, target), environment(), provenance or {})


def _check_previous(settings: RaceSettings, previous: RaceRecord, provenance: Mapping[str, Any]) -> None:
    if previous.settings != settings:
        ours, theirs = settings.model_dump(mode="json"), previous.settings.model_dump(mode="json")
        names = [name for name in ours if ours[name] != theirs.get(name)]
        raise InvalidInputError(
            f"the earlier record is of a race with other settings ({', '.join(names)}); "
            "race anew in another folder, or give the same settings"
        )
    for what, name in (("by code", "code"), ("by plug-ins", "plugins"), ("on the graph", "graph")):
        then, now = previous.provenance.get(name), provenance[name]
        if then != now:
            raise InvalidInputError(
                f"the earlier record was made {what} {then}, this is {now}: their runs are not of one race; race anew "
                "in another folder"
            )
