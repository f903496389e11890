"""Parts of a run under one protocol: checks, audits, searches for counterexamples, and training runs.

A phase is the parts of one kind. Its loop takes what an earlier run has recorded, says what cannot be run, and has the
rest run; parts with one key are run once. Whatever ends the running of a part is that part's error.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from lmc_verify.races import PlannedRun, RaceHeader, RaceRun, crashed_run
from lmc_verify.runs.audits import PlannedAudit
from lmc_verify.runs.planned import Planned, crashed_trial
from lmc_verify.runs.records import Records
from lmc_verify.runs.searches import PlannedSearch, SearchRecord, crashed_search
from lmc_verify.runs.trials import PlanEntry, Trial

__all__ = [
    "AnyPlanned",
    "AnyResult",
    "Done",
    "Listener",
    "Maker",
    "Part",
    "Phase",
    "RunPart",
    "SearchPart",
    "TrialPart",
    "Watch",
]

AnyPlanned = Planned | PlannedAudit | PlannedSearch | PlannedRun
"""A part of a run as it is planned: a check, an audit, a search, or one run of a race."""

AnyResult = Trial | SearchRecord | RaceRun
"""What a part of a run gives."""

Listener = Callable[[AnyPlanned, AnyResult | None, str], None]
"""Called after each part: what was planned, the result (None if not made), why not."""

Watch = Callable[[str, float, str], None]
"""Called while a part is under way: its label, the seconds that it has taken, and its progress in words."""

_Result = TypeVar("_Result", bound=AnyResult)


class Part(Protocol[_Result]):
    """What is asked of each part of a run."""

    @property
    def planned(self) -> AnyPlanned:
        """What is to be run: its key, label and command."""

    @property
    def reason(self) -> str:
        """Why it cannot be run, such as a data set that is absent; empty if it can."""

    @property
    def entry(self) -> PlanEntry:
        """The part in the plan that is recorded."""

    @property
    def limit(self) -> float | None:
        """Seconds that it may take; None for what the run allows."""

    def find(self, records: Records, *, crashed: bool) -> _Result | None:
        """Return the result of an earlier run that can be taken for this part's; None if there is none.

        Args:
            records: of earlier runs.
            crashed: whether a crash is taken, too, where there is nothing else.
        """

    def crash(self, words: str, seconds: float) -> _Result:
        """Return the result of a part whose running came to another end: an error, which says nothing else."""

    def own(self, result: _Result) -> _Result:
        """Return a result, found or shared, as this part's: with what is expected of it, and its place."""

    def record(self, records: Records, run_id: int, result: _Result | None) -> None:
        """Append the result to the records, or that the part was not run.

        Raises:
            RecordsError: the run takes no more entries, or has this one.
        """


@dataclass(frozen=True)
class TrialPart:
    """A claim or a control that is checked on a case, or an audit."""

    planned: Planned | PlannedAudit
    reason: str = ""

    @property
    def entry(self) -> PlanEntry:
        """The part in the plan that is recorded."""
        item = self.planned
        return PlanEntry(item.kind, item.key, item.label, item.command, item.claim, case=item.described)

    @property
    def limit(self) -> float | None:
        """Seconds that it may take; None for what the run allows."""
        return self.planned.timeout

    def find(self, records: Records, *, crashed: bool) -> Trial | None:
        """Return the newest trial with this key that did not crash; else one that did, if that is asked for."""
        return records.find(self.planned.key, crashed=crashed)

    def crash(self, words: str, seconds: float) -> Trial:
        """Return a trial with the outcome ERROR."""
        return crashed_trial(self.planned, words, seconds)

    def own(self, result: Trial) -> Trial:
        """Return the verdict with what this suite expects of it."""
        return replace(result, expected=self.planned.expected_name, expected_causes=self.planned.causes)

    def record(self, records: Records, run_id: int, result: Trial | None) -> None:
        """Append the trial, or the case that was not run."""
        if result is not None:
            records.add(run_id, result)
        else:
            records.not_run(run_id, self.planned.claim, self.planned.described, self.reason)


@dataclass(frozen=True)
class SearchPart:
    """A search for a counterexample, whose files are in `folder`."""

    planned: PlannedSearch
    folder: Path
    reason: str = ""

    @property
    def entry(self) -> PlanEntry:
        """The part in the plan that is recorded."""
        item = self.planned
        return PlanEntry(item.kind, item.key, item.label, item.command, item.claim)

    @property
    def limit(self) -> float | None:
        """Seconds that it may take; None for what the run allows."""
        return self.planned.timeout

    def find(self, records: Records, *, crashed: bool) -> SearchRecord | None:
        """Return the newest search with this key, as for a trial, if its files are whole."""
        known = records.find_search(self.planned.key, crashed=crashed)
        return known if known is None or known.found is None or known.found.intact(self.folder) else None

    def crash(self, words: str, seconds: float) -> SearchRecord:
        """Return a search that crashed."""
        return crashed_search(self.planned, words, seconds)

    def own(self, result: SearchRecord) -> SearchRecord:
        """Return the search with what this suite expects of it."""
        return replace(result, expected=self.planned.expected)

    def record(self, records: Records, run_id: int, result: SearchRecord | None) -> None:
        """Append the search."""
        if result is not None:
            records.add_search(run_id, result)


@dataclass(frozen=True)
class RunPart:
    """A training run; `position` is its place in the race."""

    planned: PlannedRun
    position: int
    reason: str = ""

    @property
    def entry(self) -> PlanEntry:
        """The part in the plan that is recorded."""
        item = self.planned
        return PlanEntry(item.kind, item.key, item.label, item.command, race=item.race.key)

    @property
    def limit(self) -> float | None:
        """Seconds that it may take; None for what the run allows."""
        return self.planned.race.timeout

    def find(self, records: Records, *, crashed: bool) -> RaceRun | None:
        """Return the newest run with this key, of any race, as for a trial; none where the race is not run."""
        return None if self.reason else records.find_race_run(self.planned.key, crashed=crashed)

    def crash(self, words: str, seconds: float) -> RaceRun:
        """Return a training run that failed."""
        return crashed_run(self.planned, words, seconds)

    def own(self, result: RaceRun) -> RaceRun:
        """Return the run under the name and at the place that it has in this race."""
        entry = replace(result.entry, label=self.planned.contestant.label, position=self.position)
        return replace(result, race=self.planned.race.key, entry=entry, command=self.planned.command)

    def record(self, records: Records, run_id: int, result: RaceRun | None) -> None:
        """Append the run; the race's header already says why it was not run."""
        if result is not None:
            records.add_race_run(run_id, result)


@dataclass(frozen=True)
class Done(Generic[_Result]):
    """A part that is done with: run, taken from an earlier run, or (without a result) not run."""

    part: Part[_Result]
    result: _Result | None
    reused: bool = False

    @property
    def reason(self) -> str:
        """Why there is no result; empty if there is one."""
        return self.part.reason if self.result is None else ""


@dataclass(frozen=True)
class Phase(Generic[_Result]):
    """The parts of one kind.

    Attributes:
        parts: in the order of the plan.
        here: makes the result of what is planned in this process.
        elsewhere: the same, as a function of a module that another process can import: of what is planned, and of
            `context`.
        context: further arguments of `elsewhere`.
        headers: what is recorded before the first part.
        receive: turns what `elsewhere` returned into the result, in the process that records.
    """

    parts: Sequence[Part[_Result]]
    here: Callable[[Any], _Result]
    elsewhere: Callable[..., _Result]
    context: tuple[Any, ...] = ()
    headers: Sequence[RaceHeader] = ()
    receive: Callable[[Any], _Result] = lambda made: made

    def of(self, keys: Collection[str]) -> Phase[_Result]:
        """Return the phase with the parts of these keys alone, and the headers of their races."""
        parts = [part for part in self.parts if part.planned.key in keys]
        races = {part.entry.race for part in parts}
        return replace(self, parts=parts, headers=[header for header in self.headers if header.key in races])

    def done(self, earlier: Records | None, make: Maker, *, retry: bool = False) -> Generator[Done[_Result]]:
        """Yield every part when it is done with: those that need not, or cannot, be run come first.

        Args:
            earlier: records whose results are reused; None to run everything.
            make: has parts run, and yields each with its result, in any order.
            retry: whether parts that crashed are run again.
        """
        waiting: dict[str, list[Part[_Result]]] = {}
        for part in self.parts:
            known = part.find(earlier, crashed=not retry) if earlier is not None else None
            if known is not None:
                yield Done(part, part.own(known), reused=True)
            elif part.reason:
                yield Done(part, None)
            else:
                waiting.setdefault(part.planned.key, []).append(part)
        # The key of an audit changes with its function's file.
        alike = {id(parts[0]): parts for parts in waiting.values()}
        for made, result in make(self, [parts[0] for parts in alike.values()]):
            for part in alike[id(made)]:
                yield Done(part, part.own(result))


Maker = Callable[[Phase[Any], Sequence[Part[Any]]], Iterator[tuple[Part[Any], Any]]]
"""Runs parts of a phase and yields each with its result, as they end."""
