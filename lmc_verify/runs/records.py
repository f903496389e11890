"""SQLite store of trials: append-only, resumable, one transaction per trial.

A records file holds runs; a run holds its plan, its trials and what could not be run. Trials can be added and
read, never changed: triggers in the file itself abort every ``UPDATE``, ``DELETE`` and ``REPLACE``. A killed
process loses at most the parts under way: trials, searches for counterexamples and training runs wait for no other.
What is planned and has no result can be told, for the plan is recorded first.

Values are stored as strict JSON, see `lmc_verify.encoding`. Tuples inside settings come back as lists.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from lmc_verify.cases import CaseDescription
from lmc_verify.encoding import decode, encode
from lmc_verify.errors import RecordsError
from lmc_verify.races import RaceHeader, RaceRun
from lmc_verify.runs.searches import SearchRecord
from lmc_verify.runs.store import RecordStore
from lmc_verify.runs.trials import NotRun, PlanEntry, Run, RunState, Trial, repeated_case
from lmc_verify.workers.heartbeat import is_alive, this_process

__all__ = ["Records"]


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
        values = (suite, title, encode(settings), encode(environment), _now())
        planned = [(item.kind, item.race, item.key, encode(item.to_dict())) for item in plan]
        with self._transaction():
            if planned:
                self._migrate()
            cursor = self._connection.execute(
                "INSERT INTO runs (suite, title, settings, environment, started) VALUES (?, ?, ?, ?, ?)",
                values,
            )
            assert cursor.lastrowid is not None
            self._connection.executemany(
                "INSERT INTO planned (run_id, kind, race, key, document) VALUES (?, ?, ?, ?, ?)",
                [(cursor.lastrowid, *item) for item in planned],
            )
        return cursor.lastrowid

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
        values = (run_id, trial.key, trial.kind, verdict.claim, verdict.outcome.value)
        document = encode(trial.to_dict())
        with self._transaction():
            self._require_running(run_id)
            self._connection.execute(
                "INSERT INTO trials (run_id, key, kind, claim, outcome, document, recorded) "
                "VALUES (?, ?, ?, ?, ?, ?, ?)",
                (*values, document, _now()),
            )

    def add_search(self, run_id: int, search: SearchRecord) -> None:
        """Append a search for a counterexample to a run, in one transaction.

        Raises:
            RecordsError: the run is unknown or finished, or already holds a search with this key.
        """
        values = (run_id, search.key, search.claim, search.outcome, encode(search.to_dict()), _now())
        with self._transaction():
            self._require_running(run_id)
            self._migrate()
            self._connection.execute(
                "INSERT INTO searches (run_id, key, claim, outcome, document, recorded) VALUES (?, ?, ?, ?, ?, ?)",
                values,
            )

    def add_race(self, run_id: int, race: RaceHeader) -> None:
        """Append what is known of a race before its first run, in one transaction.

        Raises:
            RecordsError: the run is unknown or finished, or already holds this race.
        """
        values = (run_id, race.key, race.settings.title, encode(race.to_dict()), _now())
        with self._transaction():
            self._require_running(run_id)
            self._migrate()
            self._connection.execute(
                "INSERT INTO races (run_id, key, title, document, recorded) VALUES (?, ?, ?, ?, ?)", values
            )

    def add_race_run(self, run_id: int, item: RaceRun) -> None:
        """Append one training run, in one transaction.

        Raises:
            RecordsError: the run of the suite is unknown or finished, or already holds this run of the race.
        """
        values = (run_id, item.race, item.key, item.outcome, encode(item.to_dict()), _now())
        with self._transaction():
            self._require_running(run_id)
            self._migrate()
            self._connection.execute(
                "INSERT INTO race_runs (run_id, race, key, outcome, document, recorded) VALUES (?, ?, ?, ?, ?, ?)",
                values,
            )

    def not_run(self, run_id: int, claim: str, case: CaseDescription, reason: str) -> None:
        """Record a case that was planned and not run, with the reason (such as a data set that is absent)."""
        document = encode(case.to_dict())
        with self._transaction():
            self._require_running(run_id)
            self._connection.execute(
                "INSERT INTO not_run (run_id, claim, planned_case, reason) VALUES (?, ?, ?, ?)",
                (run_id, claim, document, reason),
            )

    def finish_run(self, run_id: int, status: str) -> None:
        """Close a run with a status such as ``"finished"`` or ``"interrupted"``; it takes no more entries."""
        with self._transaction():
            self._require_running(run_id)
            self._connection.execute("UPDATE runs SET status = ?, finished = ? WHERE id = ?", (status, _now(), run_id))

    # --- reading ---

    def runs(self) -> list[Run]:
        """Return every run, oldest first."""
        return [_run(row) for row in self._rows(f"SELECT {_RUN_COLUMNS} FROM runs ORDER BY id")]

    def run(self, run_id: int) -> Run:
        """Return one run.

        Raises:
            RecordsError: the file has no such run.
        """
        rows = self._rows(f"SELECT {_RUN_COLUMNS} FROM runs WHERE id = ?", (run_id,))
        if not rows:
            raise self._unknown_run(run_id)
        return _run(rows[0])

    def latest_run(self, suite: str | None = None) -> Run | None:
        """Return the newest run (of `suite`, if given), or None if there is none."""
        rows = self._rows(
            f"SELECT {_RUN_COLUMNS} FROM runs WHERE ?1 IS NULL OR suite = ?1 ORDER BY id DESC LIMIT 1",
            (suite,),
        )
        return _run(rows[0]) if rows else None

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
        rows = self._rows("SELECT document FROM planned WHERE run_id = ? ORDER BY id", (run_id,))
        return [self._stored(PlanEntry.from_dict, "plan", text) for (text,) in rows]

    def unfinished(self, run_id: int) -> list[PlanEntry]:
        """Return what a run planned and has no result of, nor a reason why it could not be run, in the plan's order."""
        plan = self.plan(run_id)
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
        return [self._trial(text) for text in self._in_plan("trials", run_id)]

    def searches(self, run_id: int) -> list[SearchRecord]:
        """Return the searches for counterexamples of a run in the order of its plan, as `trials`."""
        self.run(run_id)
        return [self._search(text) for text in self._in_plan("searches", run_id)] if self._has("searches") else []

    def find_search(self, key: str, *, crashed: bool = False) -> SearchRecord | None:
        """Return the newest search with this key that did not crash, from any run; None if there is none.

        Args:
            key: of the search.
            crashed: whether, where there is no other, one that crashed is returned.
        """
        kept = "" if crashed else "AND outcome <> 'error' "
        found = self._search_documents(f"key = ? {kept}ORDER BY outcome = 'error', id DESC LIMIT 1", key)
        return self._search(found[0]) if found else None

    def races(self, run_id: int) -> list[tuple[RaceHeader, tuple[RaceRun, ...]]]:
        """Return the races of a run, in the order in which they were added, each with its runs in the race's order."""
        self.run(run_id)
        if not self._has("races"):
            return []
        headers = self._rows("SELECT document FROM races WHERE run_id = ? ORDER BY id", (run_id,))
        runs: dict[str, list[RaceRun]] = {}
        for race, text in self._rows("SELECT race, document FROM race_runs WHERE run_id = ? ORDER BY id", (run_id,)):
            runs.setdefault(race, []).append(self._stored(RaceRun.from_dict, "training run", text))
        known = [self._stored(RaceHeader.from_dict, "race", text) for (text,) in headers]
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
        rows = self._rows(
            "SELECT document FROM race_runs WHERE key = ? AND (? OR outcome <> 'failed') "
            "ORDER BY outcome = 'failed', id DESC LIMIT 1",
            (key, crashed),
        )
        return self._stored(RaceRun.from_dict, "training run", rows[0][0]) if rows else None

    def planned_not_run(self, run_id: int) -> list[NotRun]:
        """Return what a run planned and did not run, in the order in which it was recorded."""
        self.run(run_id)
        rows = self._rows("SELECT claim, reason, planned_case FROM not_run WHERE run_id = ? ORDER BY id", (run_id,))
        return [
            NotRun(claim, reason, self._stored(CaseDescription.from_dict, "case", text)) for claim, reason, text in rows
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
        for (text,) in self._rows("SELECT document FROM trials WHERE key = ? ORDER BY id DESC", (key,)):
            trial = self._trial(text)
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
        rows = self._rows("SELECT document FROM trials WHERE kind = 'claim' AND claim = ? ORDER BY id", (claim,))
        groups: dict[str, dict[int, Trial]] = {}
        for (text,) in rows:
            trial = self._trial(text)
            if trial.verdict.log_e_value is not None:
                group = groups.setdefault(repeated_case(trial.verdict), {})
                group.setdefault(trial.verdict.case.replicate, trial)
        return {key: tuple(group[number] for number in sorted(group)) for key, group in groups.items()}

    # --- internals ---

    def _in_plan(self, table: str, run_id: int) -> list[str]:
        """Return the documents of a run's trials or searches in the order of its plan: they are added as they end."""
        if not self._has("planned"):
            query = f"SELECT document FROM {table} WHERE run_id = ? ORDER BY id"
        else:
            kinds = {"trials": "('claim', 'control')", "searches": "('search')"}[table]
            query = (
                f"SELECT made.document FROM {table} AS made LEFT JOIN planned "
                f"ON planned.run_id = made.run_id AND planned.key = made.key AND planned.kind IN {kinds} "
                "WHERE made.run_id = ? ORDER BY planned.id IS NULL, planned.id, made.id"
            )
        return [text for (text,) in self._rows(query, (run_id,))]

    def _search_documents(self, condition: str, value: int | str) -> list[str]:
        if not self._has("searches"):
            return []
        return [text for (text,) in self._rows(f"SELECT document FROM searches WHERE {condition}", (value,))]

    def _trial(self, text: str) -> Trial:
        return self._stored(Trial.from_dict, "trial", text)

    def _search(self, text: str) -> SearchRecord:
        return self._stored(SearchRecord.from_dict, "search", text)

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


_RUN_COLUMNS = "id, suite, title, settings, environment, started, finished, status"


def _run(row: tuple[Any, ...]) -> Run:
    number, suite, title, settings, environment, started, finished, status = row
    return Run(number, suite, title, decode(settings), decode(environment), started, finished, status)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
