"""Races in two runs: who reached the target, when, and what became of every training run."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from lmc_verify.races import Median, RaceEntry
from lmc_verify.report.comparison.side import NOT_PLANNED
from lmc_verify.report.model.races import RaceSection

__all__ = ["QUANTITIES", "Contest", "contests"]

QUANTITIES = ("seconds", "epochs", "best")
"""Medians that are compared: to the target, to the target, and the best accuracy."""


@dataclass(frozen=True)
class Contest:
    """One contestant of one race in two runs.

    Attributes:
        race: title and data set.
        label: the contestant's.
        old: its runs in A by seed; empty where A has none.
        new: its runs in B.
        medians: quantity of `QUANTITIES` -> its median in A and in B, or None.
        missing: why B lacks runs that A has; empty where none are asked of it.
        pairs: seconds of every training run that both sides have, and that did not crash.
    """

    race: str
    label: str
    old: Mapping[int, RaceEntry]
    new: Mapping[int, RaceEntry]
    medians: Mapping[str, tuple[Median | None, Median | None]]
    missing: str
    pairs: tuple[tuple[float, float], ...]

    @property
    def name(self) -> str:
        """The contestant in one line."""
        return f"{self.race}: {self.label}"

    @property
    def arrived(self) -> tuple[str, str]:
        """How many runs reached the target, in words, in A and in B."""
        old, new = (
            f"{sum(item.reached is not None for item in side.values())} of {len(side)}" if side else "–"
            for side in (self.old, self.new)
        )
        return old, new

    @property
    def regression(self) -> str:
        """Why it is a regression; empty if it is none: runs that are gone, crash, diverge or miss the target now."""
        found = []
        gone = [seed for seed in self.old if seed not in self.new]
        if gone and self.missing:
            found.append(f"missing in B: {self.missing} ({_seeds(gone)})")
        for status, words in (("failed", "crashed in B"), ("diverged", "diverged in B")):
            seeds = [seed for seed, item in self.new.items() if item.status == status and not self._was(seed, status)]
            found += [f"{words} ({_seeds(seeds)})"] if seeds else []
        late = [
            seed
            for seed, item in self.new.items()
            if item.reached is None
            and item.status not in ("failed", "diverged")
            and seed in self.old
            and self.old[seed].reached is not None
        ]
        found += [f"does not reach the target any more ({_seeds(late)})"] if late else []
        return "; ".join(found)

    @property
    def changed(self) -> bool:
        """Whether runs are there in one only, or one of them has another status or reaches the target in one only."""
        told = [
            {seed: (item.status, item.reached is not None) for seed, item in side.items()}
            for side in (self.old, self.new)
        ]
        return told[0] != told[1]

    def _was(self, seed: int, status: str) -> bool:
        return seed in self.old and self.old[seed].status == status


def contests(old: Sequence[RaceSection], new: Sequence[RaceSection], *, whole: bool = True) -> tuple[Contest, ...]:
    """Return every contestant of every race of two runs, those of A first.

    Races are the same if their settings are, apart from title and pictures.

    Args:
        old: the races of A.
        new: the races of B.
        whole: whether B is no shard, so that every run of A is asked of it.
    """
    before, after = ({_identity(race): race for race in races} for races in (old, new))
    keys = dict.fromkeys((*before, *after))
    return tuple(item for key in keys for item in _contests(before.get(key), after.get(key), whole))


def _identity(race: RaceSection) -> str:
    return json.dumps(race.header.settings.model_dump(mode="json", exclude={"title", "figure"}), sort_keys=True)


def _contests(old: RaceSection | None, new: RaceSection | None, whole: bool) -> Iterator[Contest]:
    either = new if old is None else old
    assert either is not None
    reason = NOT_PLANNED if new is None else new.header.reason or "it has no result"
    labels = dict.fromkeys(label for race in (old, new) if race is not None for label in _labels(race))
    for label in labels:
        entries = [_entries(race, label) for race in (old, new)]
        times = [_seconds(race, label) for race in (old, new)]
        medians = {name: (_median(old, label, name), _median(new, label, name)) for name in QUANTITIES}
        yield Contest(
            race=f"{either.title} on {either.dataset}",
            label=label,
            old=entries[0],
            new=entries[1],
            medians=medians,
            missing=reason if whole else "",
            pairs=tuple(_pairs(*times)),
        )


def _labels(race: RaceSection) -> list[str]:
    return [] if race.record is None else [item.label for item in race.record.standings]


def _entries(race: RaceSection | None, label: str) -> dict[int, RaceEntry]:
    if race is None or race.record is None:
        return {}
    return {item.seed: item for item in race.record.entries if item.label == label}


def _seconds(race: RaceSection | None, label: str) -> dict[int, tuple[str, float]]:
    runs = () if race is None else race.runs
    return {
        item.entry.seed: (item.key, item.seconds) for item in runs if item.entry.label == label and not item.crashed
    }


def _pairs(old: Mapping[int, tuple[str, float]], new: Mapping[int, tuple[str, float]]) -> Iterator[tuple[float, float]]:
    """Yield the seconds of the runs that both have; what B took over from A is one measurement, and no pair."""
    for seed, (key, seconds) in old.items():
        if seed in new and new[seed] != (key, seconds):
            yield seconds, new[seed][1]


def _median(race: RaceSection | None, label: str, name: str) -> Median | None:
    standings = () if race is None or race.record is None else race.record.standings
    found = next((item.medians.get(name) for item in standings if item.label == label), None)
    return None if found is None or found.value is None else found


def _seeds(seeds: Sequence[int]) -> str:
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"
