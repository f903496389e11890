"""SQLite store of trials: append-only, resumable, one transaction per trial.

A records file holds runs; a run holds its plan, its trials and what could not be run. Trials can be added and
read, never changed: triggers in the file itself abort every ``UPDATE``, ``DELETE`` and ``REPLACE``. A killed
process loses at most the parts under way: trials, searches for counterexamples and training runs wait for no other.
What is planned and has no result can be told, for the plan is recorded first.

Values are stored as strict JSON, see `lmc_verify.encoding`. Tuples inside settings come back as lists.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from lmc_verify.cases import CaseDescription
from lmc_verify.encoding import encode
from lmc_verify.errors import RecordsError
from lmc_verify.races import RaceHeader, RaceRun
from lmc_verify.runs.schema import COLUMNS
from lmc_verify.runs.searches import SearchRecord
from lmc_verify.runs.shards import Shard
from lmc_verify.runs.store import RecordStore
from lmc_verify.runs.trials import NotRun, PlanEntry, Run, RunState, Trial, repeated_case
from lmc_verify.workers.heartbeat import is_alive, this_process

__all__ = ["Entries", "Records"]

Entries = Mapping[str, list[dict[str, Any]]]
"""Entries of one run by kind, as in `lmc_verify.runs.schema.COLUMNS`, without their numbers and the run's."""
_OF_RUN = tuple(kind for kind, columns in COLUMNS.items() if "run_id" in columns)


class Records(RecordStore):
    """The trials of one records file: open it with `create_or_open` or `open`, as a context manager.

    A `Records` belongs to the thread that opened it. Several processes may append to one file: each
    transaction waits up to 30 seconds for the others.

    Examples:
        >>> with Records.create_or_open("records.sqlite") as records:  # doctest: +SKIP
        ...     run = records.start_run("theorem-check", "Theorem check", settings={}, environment={})
        ...     records.add(run, trial)
        ...     records.finish_run(run, "finished")
    """

    # --- writing ---

    def start_run(
        self,
        suite: str,
        title: str,
        settings: Mapping[str, Any],
        environment: Mapping[str, Any],
        plan: Iterable[PlanEntry] = (),
    ) -> int:
        """Record that a run begins, with everything that it is going to do, and return its number."""
        values = {"settings": encode(settings), "environment": encode(environment), "started": _now()}
        with self._transaction():
            number = self._insert("runs", suite=suite, title=title, **values)
            for item in plan:
                columns = {"kind": item.kind, "race": item.race, "key": item.key}
                self._insert("planned", run_id=number, **columns, document=encode(item.to_dict()))
        return number

    def beat(self, run_id: int) -> None:
        """Record that this process is at work on a run, now."""
        with self._transaction():
            self._migrate()
            self._connection.execute(
                "INSERT INTO processes (run_id, host, pid, beat) VALUES (?, ?, ?, ?) "
                "ON CONFLICT (run_id) DO UPDATE SET host = excluded.host, pid = excluded.pid, beat = excluded.beat",
                (run_id, *this_process(), _now()),
            )

    def add(self, run_id: int, trial: Trial) -> None:
        """Append `trial` to a run, in one transaction.

        Raises:
            RecordsError: the run is unknown or finished, or already holds a trial with this key.
        """
        verdict = trial.verdict
        columns = {"claim": verdict.claim, "outcome": verdict.outcome.value, "document": encode(trial.to_dict())}
        with self._transaction():
            self._require_running(run_id)
            self._insert("trials", run_id=run_id, key=trial.key, kind=trial.kind, **columns, recorded=_now())

    def add_search(self, run_id: int, search: SearchRecord) -> None:
        """Append a search for a counterexample to a run, in one transaction.

        Raises:
            RecordsError: the run is unknown or finished, or already holds a search with this key.
        """
        columns = {"claim": search.claim, "outcome": search.outcome, "document": encode(search.to_dict())}
        with self._transaction():
            self._require_running(run_id)
            self._insert("searches", run_id=run_id, key=search.key, **columns, recorded=_now())

    def add_race(self, run_id: int, race: RaceHeader) -> None:
        """Append what is known of a race before its first run, in one transaction.

        Raises:
            RecordsError: the run is unknown or finished, or already holds this race.
        """
        columns = {"title": race.settings.title, "document": encode(race.to_dict())}
        with self._transaction():
            self._require_running(run_id)
            self._insert("races", run_id=run_id, key=race.key, **columns, recorded=_now())

    def add_race_run(self, run_id: int, item: RaceRun) -> None:
        """Append one training run, in one transaction.

        Raises:
            RecordsError: the run of the suite is unknown or finished, or already holds this run of the race.
        """
        columns = {"outcome": item.outcome, "document": encode(item.to_dict())}
        with self._transaction():
            self._require_running(run_id)
            self._insert("race_runs", run_id=run_id, race=item.race, key=item.key, **columns, recorded=_now())

    def not_run(self, run_id: int, claim: str, case: CaseDescription, reason: str) -> None:
        """Record a case that was planned and not run, with the reason (such as a data set that is absent)."""
        document = encode(case.to_dict())
        with self._transaction():
            self._require_running(run_id)
            self._insert("not_run", run_id=run_id, claim=claim, planned_case=document, reason=reason)

    def finish_run(self, run_id: int, status: str) -> None:
        """Close a run with a status such as ``"finished"`` or ``"interrupted"``; it takes no more entries."""
        with self._transaction():
            self._require_running(run_id)
            self._migrate()
            self._end(run_id, _now(), status)

    def restore(self, entries: Mapping[str, Mapping[int, Mapping[str, Any]]], *, partial: bool) -> None:
        """Add entries of another file under their numbers, see `lmc_verify.runs.damage.repair_records`.

        Args:
            entries: columns by kind and number, as in `lmc_verify.runs.schema.COLUMNS`.
            partial: whether something is lost: runs that have ended then end as ``"interrupted"``.
        """
        with self._transaction():
            for kind, found in entries.items():
                if kind == "ends":
                    continue
                for number, entry in sorted(found.items()):
                    self._insert(kind, id=number, **entry)
            for number, end in sorted(entries["ends"].items()):
                self._end(number, end["finished"], "interrupted" if partial else end["status"])

    def add_run(self, entries: Entries) -> int:
        """Add a whole run, which has ended, in one transaction; return its number.

        Args:
            entries: as `entries` returns them.
        """
        (run,), (end,) = entries["runs"], entries["ends"]
        with self._transaction():
            number = self._insert("runs", **run)
            for kind in _OF_RUN:
                for entry in entries[kind]:
                    self._insert(kind, run_id=number, **entry)
            self._end(number, end["finished"], end["status"])
        return number

    # --- reading ---

    def runs(self) -> list[Run]:
        """Return every run, oldest first."""
        return self._runs("1 ORDER BY id")

    def run(self, run_id: int) -> Run:
        """Return one run.

        Raises:
            RecordsError: the file has no such run.
        """
        found = self._runs("id = ?", (run_id,))
        if not found:
            raise self._unknown_run(run_id)
        return found[0]

    def entries(self, run_id: int) -> Entries:
        """Return everything that is recorded of a run, as it is recorded, compared with its hashes.

        Raises:
            RecordsError: the file has no such run, or an entry is not what was recorded.
        """
        self.run(run_id)
        found: dict[str, list[dict[str, Any]]] = {
            kind: [entry for _, entry in self._entries(kind, "id = ?", (run_id,))] for kind in ("runs", "ends")
        }
        for kind in _OF_RUN:
            kept = self._entries(kind, "run_id = ? ORDER BY id", (run_id,)) if self._has(kind) else ()
            found[kind] = [{key: value for key, value in entry.items() if key != "run_id"} for _, entry in kept]
        return found

    def latest_run(self, suite: str | None = None) -> Run | None:
        """Return the newest run (of `suite`, if given), or None if there is none."""
        found = self._runs("?1 IS NULL OR suite = ?1 ORDER BY id DESC LIMIT 1", (suite,))
        return found[0] if found else None

    def state(self, run: Run) -> RunState:
        """Return how a run stands. One that has not ended runs only if its process shows signs of life."""
        if run.finished is not None:
            return "interrupted" if run.status == "interrupted" else "failed" if run.status == "failed" else "finished"
        rows = (
            self._rows("SELECT host, pid, beat FROM processes WHERE run_id = ?", (run.id,))
            if self._has("processes")
            else []
        )
        return "running" if rows and is_alive(*rows[0]) else "killed"

    def plan(self, run_id: int) -> list[PlanEntry]:
        """Return what a run planned; nothing of a run that an older version made."""
        self.run(run_id)
        if not self._has("planned"):
            return []
        entries = self._entries("planned", "run_id = ? ORDER BY id", (run_id,))
        return [self._stored(PlanEntry.from_dict, "plan", entry["document"]) for _, entry in entries]

    def elsewhere(self, run_id: int) -> list[PlanEntry]:
        """Return what of the plan the other shards have, in the plan's order; nothing where the run is a whole one."""
        shard = self.run(run_id).shard
        return [] if shard is None else self._of_shard(self.plan(run_id), shard, own=False)

    def unfinished(self, run_id: int) -> list[PlanEntry]:
        """Return what a run planned and has no result of, nor a reason why it could not be run, in the plan's order.

        What other shards have is not the business of this one, see `elsewhere`.
        """
        plan, shard = self.plan(run_id), self.run(run_id).shard
        if shard is not None:
            plan = self._of_shard(plan, shard, own=True)
        if not plan:
            return []
        has = {(kind, "", key) for kind, key in self._rows("SELECT kind, key FROM trials WHERE run_id = ?", (run_id,))}
        has |= {("search", "", key) for (key,) in self._rows("SELECT key FROM searches WHERE run_id = ?", (run_id,))}
        has |= {("training", *row) for row in self._rows("SELECT race, key FROM race_runs WHERE run_id = ?", (run_id,))}
        left_out = {header.key for header, _ in self.races(run_id) if header.reason}
        skipped = Counter((item.claim, encode(item.case.to_dict())) for item in self.planned_not_run(run_id))
        missing = []
        for item in plan:
            if (item.kind, item.race, item.key) in has or item.race in left_out:
                continue
            case = (item.claim, "" if item.case is None else encode(item.case.to_dict()))
            if skipped[case]:
                skipped[case] -= 1
            else:
                missing.append(item)
        return missing

    def trials(self, run_id: int) -> list[Trial]:
        """Return the trials of a run in the order of its plan; without one, in the order in which they were added."""
        self.run(run_id)
        return [self._trial(entry) for entry in self._in_plan("trials", run_id)]

    def searches(self, run_id: int) -> list[SearchRecord]:
        """Return the searches for counterexamples of a run in the order of its plan, as `trials`."""
        self.run(run_id)
        if not self._has("searches"):
            return []
        return [self._search(entry) for entry in self._in_plan("searches", run_id)]

    def find_search(self, key: str, *, crashed: bool = False) -> SearchRecord | None:
        """Return the newest search with this key that did not crash, from any run; None if there is none.

        Args:
            key: of the search.
            crashed: whether, where there is no other, one that crashed is returned.
        """
        if not self._has("searches"):
            return None
        kept = "" if crashed else "AND outcome <> 'error' "
        wanted = f"key = ? {kept}ORDER BY outcome = 'error', id DESC LIMIT 1"
        return next((self._search(entry) for _, entry in self._entries("searches", wanted, (key,))), None)

    def races(self, run_id: int) -> list[tuple[RaceHeader, tuple[RaceRun, ...]]]:
        """Return the races of a run, in the order in which they were added, each with its runs in the race's order."""
        self.run(run_id)
        if not self._has("races"):
            return []
        which = "run_id = ? ORDER BY id", (run_id,)
        runs: dict[str, list[RaceRun]] = {}
        for _, entry in self._entries("race_runs", *which):
            runs.setdefault(entry["race"], []).append(self._race_run(entry))
        known = [
            self._stored(RaceHeader.from_dict, "race", entry["document"]) for _, entry in self._entries("races", *which)
        ]
        return [
            (header, tuple(sorted(runs.get(header.key, ()), key=lambda run: run.entry.position))) for header in known
        ]

    def find_race_run(self, key: str, *, crashed: bool = False) -> RaceRun | None:
        """Return the newest run with this key that did not crash, of any race; None if there is none.

        Args:
            key: of the training run.
            crashed: whether, where there is no other, one that crashed is returned.
        """
        if not self._has("race_runs"):
            return None
        wanted = "key = ? AND (? OR outcome <> 'failed') ORDER BY outcome = 'failed', id DESC LIMIT 1"
        return next((self._race_run(entry) for _, entry in self._entries("race_runs", wanted, (key, crashed))), None)

    def planned_not_run(self, run_id: int) -> list[NotRun]:
        """Return what a run planned and did not run, in the order in which it was recorded."""
        self.run(run_id)
        return [
            NotRun(
                entry["claim"],
                entry["reason"],
                self._stored(CaseDescription.from_dict, "case", entry["planned_case"]),
            )
            for _, entry in self._entries("not_run", "run_id = ? ORDER BY id", (run_id,))
        ]

    def find(self, key: str, *, crashed: bool = False) -> Trial | None:
        """Return the newest trial with this key that did not crash, from any run; None if there is none.

        An outcome of ``ERROR`` that was expected, as of a control whose defect breaks the contract, is found as any
        other.

        Args:
            key: of the trial.
            crashed: whether, where there is no other, the newest that crashed is returned.
        """
        found = None
        for _, entry in self._entries("trials", "key = ? ORDER BY id DESC", (key,)):
            trial = self._trial(entry)
            if not trial.crashed:
                return trial
            found = found or trial
        return found if crashed else None

    def repetitions(self, claim: str) -> dict[str, tuple[Trial, ...]]:
        """Return the trials of a claim that measured an e-value, over all runs, by what they repeat.

        Trials of one entry (its key is `repeated_case`) drew independently: there is one for each replicate, in
        ascending order, so their log e-values add. Where a replicate was recorded more than once, as in a resumed run,
        the oldest trial counts: a choice that does not look at the evidence.
        """
        entries = self._entries("trials", "kind = 'claim' AND claim = ? ORDER BY id", (claim,))
        groups: dict[str, dict[int, Trial]] = {}
        for _, entry in entries:
            trial = self._trial(entry)
            if trial.verdict.log_e_value is not None:
                group = groups.setdefault(repeated_case(trial.verdict), {})
                group.setdefault(trial.verdict.case.replicate, trial)
        return {key: tuple(group[number] for number in sorted(group)) for key, group in groups.items()}

    # --- internals ---

    @staticmethod
    def _of_shard(plan: list[PlanEntry], shard: Shard, *, own: bool) -> list[PlanEntry]:
        keys = shard.own((item.kind, item.key) for item in plan)
        return [item for item in plan if (item.key in keys) is own]

    def _in_plan(self, table: str, run_id: int) -> list[dict[str, Any]]:
        """Return the entries of a run's trials or searches in the order of its plan: they are added as they end."""
        entries = [entry for _, entry in self._entries(table, "run_id = ? ORDER BY id", (run_id,))]
        if not self._has("planned"):
            return entries
        kinds = {"trials": ("claim", "control"), "searches": ("search",)}[table]
        planned = self._entries("planned", "run_id = ? ORDER BY id", (run_id,))
        places = {entry["key"]: number for number, entry in planned if entry["kind"] in kinds}
        return sorted(entries, key=lambda entry: places.get(entry["key"], math.inf))

    def _end(self, run_id: int, finished: str, status: str) -> None:
        end = {"finished": finished, "status": status}
        self._connection.execute("UPDATE runs SET finished = ?, status = ? WHERE id = ?", (*end.values(), run_id))
        self._keep_hash("ends", run_id, end)

    def _runs(self, condition: str, values: tuple[Any, ...] = ()) -> list[Run]:
        found = []
        for number, entry in self._entries("runs", condition, values):
            parts = {name: self._decode(entry.pop(name)) for name in ("settings", "environment")}
            ((_, end),) = self._entries("ends", "id = ?", (number,))
            found.append(Run(number, **entry, **parts, **end))
        return found

    def _trial(self, entry: Mapping[str, Any]) -> Trial:
        return self._stored(Trial.from_dict, "trial", entry["document"])

    def _search(self, entry: Mapping[str, Any]) -> SearchRecord:
        return self._stored(SearchRecord.from_dict, "search", entry["document"])

    def _race_run(self, entry: Mapping[str, Any]) -> RaceRun:
        return self._stored(RaceRun.from_dict, "training run", entry["document"])

    def _require_running(self, run_id: int) -> None:
        run = self.run(run_id)
        if run.finished is not None:
            raise RecordsError(
                f"run {run_id} in {self.path} is closed ({run.status!r}, {run.finished}) and takes no more "
                "entries; start a new run and resume from this file"
            )

    def _unknown_run(self, run_id: int) -> RecordsError:
        known = [row[0] for row in self._rows("SELECT id FROM runs ORDER BY id")]
        text = f"it has runs {known[0]} to {known[-1]}" if known else "it has no run yet"
        return RecordsError(f"no run {run_id} in {self.path}: {text}; start a run, or choose one of these")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
