"""Runs to be merged: which of a records file, and what they must have in common."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmc_verify.encoding import decode
from lmc_verify.errors import InvalidInputError
from lmc_verify.runs.records import Entries, Records
from lmc_verify.runs.shards import Shard
from lmc_verify.runs.trials import Run

__all__ = ["Source", "read_sources", "refuse_different"]

_SETTINGS = ("seed", "description", "alpha_total", "replicate", "preset")
"""Settings of a run that its results, and what is promised of them together, depend on."""
_ENVIRONMENT = ("code", "torch")
"""Versions that are part of the identity of every result."""


@dataclass(frozen=True)
class Source:
    """A run to be merged.

    Attributes:
        path: its records file.
        run: the run.
        entries: everything that is recorded of it, by kind.
    """

    path: Path
    run: Run
    entries: Entries

    def __str__(self) -> str:
        shard = "" if self.run.shard is None else f", shard {self.run.shard}"
        return f"{self.path} (run {self.run.id}{shard})"

    @property
    def facts(self) -> Iterator[tuple[str, Any]]:
        """What it must have in common with the others, except for the plan: name and value."""
        yield "suite", self.run.suite
        yield "title", self.run.title
        yield from ((name, self.run.settings.get(name)) for name in _SETTINGS)
        yield from ((f"version of the {name}", self.run.environment.get(name)) for name in _ENVIRONMENT)


def read_sources(files: Sequence[Path], suite: str | None = None) -> list[Source]:
    """Return the runs to be merged: of each file the latest, and where that is a shard, the latest of each other shard.

    Args:
        files: records files.
        suite: take the latest run of this suite; None for any.

    Raises:
        RecordsError: a file cannot be read, or is damaged.
        InvalidInputError: a file has no such run, or its run has no plan.
    """
    sources = {}
    for path in files:
        with Records.open(path) as records:
            for run in _chosen(records, suite):
                source = Source(path, run, records.entries(run.id))
                if not source.entries["planned"]:
                    raise InvalidInputError(
                        f"{source} has no plan, so that nobody can tell what is missing: it was made by an older "
                        "version, or plans nothing; run the suite again"
                    )
                sources[path.resolve(), run.id] = source
    return list(sources.values())


def _chosen(records: Records, suite: str | None) -> list[Run]:
    latest = records.latest_run(suite)
    if latest is None:
        which = "" if suite is None else f" of suite {suite!r}"
        raise InvalidInputError(f"{records.path} holds no run{which} to merge; make one with lmc-verify run")
    if latest.shard is None:
        return [latest]
    runs = (run for run in records.runs() if run.suite == latest.suite and run.shard is not None)
    by_shard = {run.shard: run for run in runs if _count(run.shard) == latest.shard.count}
    return sorted(by_shard.values(), key=lambda run: run.id)


def _count(shard: Shard | None) -> int:
    return 0 if shard is None else shard.count


def refuse_different(sources: Sequence[Source]) -> None:
    """Refuse runs that are not of one suite, one plan and one version of the code.

    Raises:
        InvalidInputError: two are not; both are named, and what differs.
    """
    first = sources[0]
    for other in sources[1:]:
        for (name, one), (_, two) in zip(first.facts, other.facts, strict=True):
            if one != two:
                raise _different(first, other, f"{name}: {one!r} and {two!r}")
        for one_of, rest in ((first, other), (other, first)):
            known = {_identity(entry) for entry in rest.entries["planned"]}
            only = [entry for entry in one_of.entries["planned"] if _identity(entry) not in known]
            if only:
                label = decode(only[0]["document"])["label"]
                raise _different(first, other, f"the plan: {label!r} and {len(only) - 1} more are in {one_of} only")


def _identity(entry: Mapping[str, Any]) -> tuple[str, str, str]:
    return entry["kind"], entry["race"], entry["key"]


def _different(one: Source, other: Source, what: str) -> InvalidInputError:
    return InvalidInputError(
        f"{one} and {other} are not parts of one run; they differ in {what}. Merge runs of one suite, of one version "
        "of the code, with the same options"
    )
