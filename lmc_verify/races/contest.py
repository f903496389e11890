"""Races: every contestant is trained once per seed, in turns, and measured by when it has the target accuracy.

Contestants take turns seed by seed, each seed beginning with a different one, so that a machine that becomes slower or
faster does so for all of them. Seconds are training time alone. Initial parameters are those of the seed, the same for
all contestants.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from lmc_verify.cases import EstimatorSettings, Workspace
from lmc_verify.errors import InvalidInputError
from lmc_verify.graphs import Graph
from lmc_verify.provenance import environment
from lmc_verify.races.record import REFERENCE, RaceEntry, RaceRecord
from lmc_verify.races.settings import ContestantSettings, RaceSettings
from lmc_verify.races.stability import comparisons_of
from lmc_verify.races.target import judge, reference_label, standings_of, target_of
from lmc_verify.training.build import build_trainer
from lmc_verify.training.trainer import Trainer

__all__ = ["RaceProgress", "contestants_of", "race_record", "race_runs", "require_split", "run_contestant"]


@dataclass(frozen=True)
class RaceProgress:
    """Where the run at hand is.

    Attributes:
        label: the contestant whose turn it is.
        seed: of its run.
        trainer: its run.
    """

    label: str
    seed: int
    trainer: Trainer

    @property
    def words(self) -> str:
        """How far the run is."""
        return f"step {self.trainer.step_count}/{self.trainer.trace.planned_steps}"


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
    listen: Callable[[RaceProgress], None] | None = None,
) -> RaceEntry:
    """Make one training run, whose position is left at 0; `race_record` judges it. An error is recorded as such.

    Args:
        settings: the race.
        contestant: one of `contestants_of`.
        seed: one of the race's.
        workspace: where data come from.
        listen: called with the progress.
    """
    label = contestant.label
    try:
        # A design of its own: what batches remember about the graph is part of the work of every run.
        trainer = build_trainer(settings.run_of(contestant, seed), workspace, description={"label": label})
        progress = RaceProgress(label, seed, trainer)
        trace = trainer.run(listen=None if listen is None else lambda _: listen(progress))
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        reason = f"failed: {type(error).__name__}: {error} ({where.filename.rsplit('/', 1)[-1]}:{where.lineno})"
        return RaceEntry(label, seed, 0, None, None, reason, "failed")
    return RaceEntry(label, seed, 0, trace, status=trace.status)


def race_record(settings: RaceSettings, entries: Iterable[RaceEntry]) -> RaceRecord:
    """Return the record of a race from the runs made so far: target, who reached it when, medians, comparisons."""
    entries = tuple(entries)
    target = target_of(settings, entries)
    judged = tuple(judge(entry, target) for entry in entries)
    standings, comparisons = standings_of(settings, judged, target), comparisons_of(settings, judged)
    return RaceRecord(settings, target, judged, standings, environment(), comparisons)
