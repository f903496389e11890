"""One of the two runs that are compared: what it found, and why it has no result of what else it planned."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from lmc_verify.encoding import encode
from lmc_verify.errors import InvalidInputError
from lmc_verify.report.comparison.results import Result, identity, search_result, trial_result
from lmc_verify.report.model.report import STATE_WORDS, Report, build_report
from lmc_verify.runs import PlanEntry, Records, Run

__all__ = ["ELSEWHERE", "NOT_PLANNED", "Side", "read_side"]

ELSEWHERE = "in another shard"
"""Why a shard has no result of a part that is not its own."""

NOT_PLANNED = "its run does not plan it"
"""Why a run has no result of what another run asked for."""

_SAME_CODE = ("code", "torch")
"""Versions that runs have in common where one repeats the other."""


@dataclass(frozen=True)
class Side:
    """One of the two runs.

    Attributes:
        file: its records.
        report: what there is to say of the run alone.
        results: identity -> what was found, in the order of the report.
        without: identity -> why a planned part has no result.
        repeats: identity -> its results in every run of the file that repeats this one, this one included.
    """

    file: Path
    report: Report
    results: Mapping[str, Result]
    without: Mapping[str, str] = field(default_factory=dict)
    repeats: Mapping[str, tuple[Result, ...]] = field(default_factory=dict)

    @property
    def run(self) -> Run:
        """The run itself."""
        return self.report.run

    @property
    def name(self) -> str:
        """Where the run is."""
        return f"{self.file} (suite {self.run.suite}, run {self.run.id})"

    def why_missing(self, key: str) -> str:
        """Return why there is no result of a case."""
        return self.without.get(key, NOT_PLANNED)

    @cached_property
    def whole(self) -> bool:
        """Whether the run is no shard."""
        return self.report.shard is None


def read_side(path: str | Path, *, run: int | None = None, suite: str | None = None) -> Side:
    """Read one run of a records file.

    Args:
        path: the file.
        run: number of the run; None for the latest.
        suite: take the latest run of this suite; None for any.

    Raises:
        RecordsError: the file cannot be read, is damaged, or has no such run.
        InvalidInputError: it holds no run, or none of this suite.
    """
    file = Path(path)
    with Records.open(file) as records:
        chosen = records.latest_run(suite) if run is None else records.run(run)
        which = f" of suite {suite!r}" if suite else ""
        if chosen is None:
            raise InvalidInputError(f"{file} holds no run{which} to compare; make one with lmc-verify run")
        if suite is not None and chosen.suite != suite:
            raise InvalidInputError(f"run {run} of {file} is of suite {chosen.suite!r}, not{which}; choose another run")
        report = build_report(records, chosen.id, {})
        results = _numbered(_results(report))
        return Side(file, report, results, _without(records, report, results), _repeats(records, chosen))


def _results(report: Report) -> Iterator[Result]:
    yield from (trial_result(case.trial, case.label) for case in (*report.cases, *report.controls))
    yield from (search_result(search.record, search.label) for search in report.counterexamples)


def _numbered(results: Iterable[Result]) -> dict[str, Result]:
    """Return results by identity; further ones of an identity get a number."""
    found: dict[str, Result] = {}
    seen: Counter[str] = Counter()
    for item in results:
        seen[item.identity] += 1
        number = seen[item.identity]
        found[item.identity if number == 1 else f"{item.identity} #{number}"] = item
    return found


def _without(records: Records, report: Report, results: Mapping[str, Result]) -> dict[str, str]:
    reasons = {(item.claim, encode(item.case.to_dict())): f"not run: {item.reason}" for item in report.not_run}
    without: dict[str, str] = {}
    for entry in records.plan(report.run.id):
        key = _planned(entry)
        if entry.kind != "training" and key not in results:
            case = (entry.claim, "" if entry.case is None else encode(entry.case.to_dict()))
            without[key] = reasons.get(case, "it has no result")
    ended = f"no result: {STATE_WORDS[report.state]}"
    without |= {_planned(entry): ended for entry in report.unfinished if _planned(entry) not in results}
    return without | {_planned(entry): ELSEWHERE for entry in report.elsewhere if _planned(entry) not in results}


def _planned(entry: PlanEntry) -> str:
    return identity(entry.kind, entry.claim, entry.command)


def _repeats(records: Records, run: Run) -> dict[str, tuple[Result, ...]]:
    """Return the results of every run that was asked for the same of the same code, one for each measurement.

    A resumed run takes results over: they are the same measurement, and counted once.
    """
    found: dict[str, dict[tuple[str, float], Result]] = {}
    for other in records.runs():
        if _asked(other) == _asked(run):
            trials = (trial_result(trial, "") for trial in records.trials(other.id))
            searches = (search_result(search, "") for search in records.searches(other.id))
            for key, item in _numbered([*trials, *searches]).items():
                found.setdefault(key, {}).setdefault((item.key, item.seconds), item)
    return {key: tuple(items.values()) for key, items in found.items()}


def _asked(run: Run) -> str:
    settings = {key: value for key, value in run.settings.items() if key != "replicate"}
    return encode([run.suite, settings, [run.environment.get(name) for name in _SAME_CODE]])
