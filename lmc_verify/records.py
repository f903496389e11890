"""SQLite store of trials: append-only, resumable, one transaction a trial.

A records file holds runs; a run holds its trials and what was planned and not run. Trials can be added and
read, never changed: triggers in the file itself abort every ``UPDATE``, ``DELETE`` and ``REPLACE``. A killed
process loses at most the trial under way. So it is with searches for counterexamples, and with every run of a race.

Values are stored as strict JSON, see `lmc_verify.encoding`. Tuples inside a case come back as lists.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from lmc_verify.claims.verdict import Outcome
from lmc_verify.encoding import decode, encode
from lmc_verify.errors import OutputError, RecordsError
from lmc_verify.races import RaceHeader, RaceRun
from lmc_verify.recordsfile import (
    ADDED,
    APPLICATION_ID,
    SCHEMA,
    SCHEMA_VERSION,
    damaged,
    refuse_foreign,
    refuse_identity,
    tables_of,
)
from lmc_verify.searches import SearchRecord
from lmc_verify.trials import NotRun, Run, Trial, repeated_case, replicate_of

__all__ = ["Records"]

_BUSY_SECONDS = 30.0
_Entry = TypeVar("_Entry")


class Records:
    """The trials of one records file: open it with `create_or_open` or `open`, as a context manager.

    A `Records` belongs to the thread that opened it. Several processes may append to one file: each
    transaction waits up to 30 seconds for the others.

    Examples:
        >>> with Records.create_or_open("records.sqlite") as records:  # doctest: +SKIP
        ...     run = records.start_run("theorem-check", "Theorem check", settings={}, environment={})
        ...     records.add(run, trial)
        ...     records.finish_run(run, "finished")
    """

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path = path
        self._connection = connection

    @classmethod
    def create_or_open(cls, path: str | Path) -> Records:
        """Open the records at `path`; make the file, and its folder, if there is none.

        Raises:
            RecordsError: `path` is a folder, a damaged file, another program's file or of another schema
                version. It is left as it was.
            OutputError: the file cannot be made or written there.
        """
        path = Path(path)
        refuse_foreign(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(
                f"cannot make the folder {path.parent} for the records: {error.strerror}; "
                "choose a folder that you can write to"
            ) from error
        return cls._connect(path, create=True)

    @classmethod
    def open(cls, path: str | Path) -> Records:
        """Open the records at `path`, which must exist.

        Raises:
            RecordsError: there is no file, or not a records file that this version reads. It is left as it was.
        """
        path = Path(path)
        if not path.exists():
            raise RecordsError(f"no records at {path}: no such file; check the path, or run a suite first")
        refuse_foreign(path)
        if path.stat().st_size == 0:
            raise RecordsError(f"no records at {path}: the file is empty; check the path, or run a suite first")
        return cls._connect(path, create=False)

    @classmethod
    def _connect(cls, path: Path, *, create: bool) -> Records:
        uri = f"{path.absolute().as_uri()}?mode={'rwc' if create else 'rw'}"
        try:
            connection = sqlite3.connect(uri, uri=True, timeout=_BUSY_SECONDS, isolation_level=None)
        except sqlite3.Error as error:
            raise _unwritable(path, error) from error
        records = cls(path, connection)
        try:
            with records._guard():
                connection.execute("PRAGMA foreign_keys = ON")
                connection.execute("PRAGMA trusted_schema = OFF")
                if create and records._pragma("page_count") == 0:
                    records._create()
                records._check()
        except BaseException:
            connection.close()
            raise
        return records

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; everything added is already on disk."""
        self._connection.close()

    # --- writing ---

    def start_run(self, suite: str, title: str, settings: Mapping[str, Any], environment: Mapping[str, Any]) -> int:
        """Record that a run begins and return its number."""
        values = (suite, title, encode(settings), encode(environment), _now())
        with self._transaction():
            cursor = self._connection.execute(
                "INSERT INTO runs (suite, title, settings, environment, started) VALUES (?, ?, ?, ?, ?)",
                values,
            )
        assert cursor.lastrowid is not None
        return cursor.lastrowid

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
        """Append one run of a race, in one transaction.

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

    def not_run(self, run_id: int, claim: str, case: Mapping[str, Any], reason: str) -> None:
        """Record a case that was planned and not run, with the reason (such as a data set that is absent)."""
        document = encode(case)
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

    def trials(self, run_id: int) -> list[Trial]:
        """Return the trials of a run in the order in which they were added."""
        self.run(run_id)
        return [
            self._trial(text)
            for (text,) in self._rows("SELECT document FROM trials WHERE run_id = ? ORDER BY id", (run_id,))
        ]

    def searches(self, run_id: int) -> list[SearchRecord]:
        """Return the searches for counterexamples of a run in the order in which they were added."""
        self.run(run_id)
        return [self._search(text) for text in self._search_documents("run_id = ? ORDER BY id", run_id)]

    def find_search(self, key: str) -> SearchRecord | None:
        """Return the newest search with this key that did not crash, from any run; None if there is none."""
        wanted = "key = ? AND outcome <> 'error' ORDER BY id DESC LIMIT 1"
        found = self._search_documents(wanted, key)
        return self._search(found[0]) if found else None

    def races(self, run_id: int) -> list[tuple[RaceHeader, tuple[RaceRun, ...]]]:
        """Return the races of a run, each with its runs, in the order in which they were added."""
        self.run(run_id)
        if not self._has("races"):
            return []
        headers = self._rows("SELECT document FROM races WHERE run_id = ? ORDER BY id", (run_id,))
        runs: dict[str, list[RaceRun]] = {}
        for race, text in self._rows("SELECT race, document FROM race_runs WHERE run_id = ? ORDER BY id", (run_id,)):
            runs.setdefault(race, []).append(self._stored(RaceRun.from_dict, "run of a race", text))
        known = [self._stored(RaceHeader.from_dict, "race", text) for (text,) in headers]
        return [(header, tuple(runs.get(header.key, ()))) for header in known]

    def find_race_run(self, key: str) -> RaceRun | None:
        """Return the newest run with this key that did not crash, of any race; None if there is none."""
        if not self._has("race_runs"):
            return None
        wanted = "SELECT document FROM race_runs WHERE key = ? AND outcome <> 'failed' ORDER BY id DESC LIMIT 1"
        rows = self._rows(wanted, (key,))
        return self._stored(RaceRun.from_dict, "run of a race", rows[0][0]) if rows else None

    def planned_not_run(self, run_id: int) -> list[NotRun]:
        """Return what a run planned and did not run, in the order in which it was recorded."""
        self.run(run_id)
        rows = self._rows("SELECT claim, reason, planned_case FROM not_run WHERE run_id = ? ORDER BY id", (run_id,))
        return [NotRun(claim, reason, self._decode(text)) for claim, reason, text in rows]

    def find(self, key: str) -> Trial | None:
        """Return the newest trial with this key that did not crash, from any run; None if there is none.

        A trial whose outcome is ``ERROR`` says nothing about its claim, so a resumed run tries it again.
        """
        rows = self._rows(
            "SELECT document FROM trials WHERE key = ? AND outcome <> ? ORDER BY id DESC LIMIT 1",
            (key, Outcome.ERROR.value),
        )
        return self._trial(rows[0][0]) if rows else None

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
                group.setdefault(replicate_of(trial.verdict), trial)
        return {key: tuple(group[number] for number in sorted(group)) for key, group in groups.items()}

    # --- internals ---

    def _create(self) -> None:
        with self._transaction():
            if self._pragma("page_count") > 1 or self._pragma("application_id") == APPLICATION_ID:
                return  # another process made it while this one waited for the lock
            for statement in SCHEMA:
                self._connection.execute(statement)
            self._connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            self._connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

    def _migrate(self) -> None:
        """Bring older tables to this version, inside the transaction of the entry that needs it."""
        found = self._pragma("user_version")
        for version, statements in ADDED.items():
            if found < version:
                for statement in statements:
                    self._connection.execute(statement)
        if found < SCHEMA_VERSION:
            self._connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

    def _search_documents(self, condition: str, value: int | str) -> list[str]:
        if not self._has("searches"):
            return []
        return [text for (text,) in self._rows(f"SELECT document FROM searches WHERE {condition}", (value,))]

    def _check(self) -> None:
        refuse_identity(self.path, self._pragma("application_id"), self._pragma("user_version"))
        found = self._connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        tables = {name for (name,) in self._connection.execute("SELECT name FROM sqlite_master")}
        if found == "ok" and not tables_of(self._pragma("user_version")) <= tables:
            found = "its tables are missing"
        if found != "ok":
            raise damaged(self.path, found)

    def _has(self, table: str) -> bool:
        """Whether the file is of a version that has this table."""
        return table in tables_of(int(self._rows("PRAGMA user_version")[0][0]))

    def _pragma(self, name: str) -> int:
        return int(self._connection.execute(f"PRAGMA {name}").fetchone()[0])

    def _rows(self, query: str, values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        with self._guard():
            return self._connection.execute(query, values).fetchall()

    def _decode(self, text: str) -> Any:
        try:
            return decode(text)
        except ValueError as error:
            raise damaged(self.path, f"a stored value is not JSON ({error})") from error

    def _trial(self, text: str) -> Trial:
        return self._stored(Trial.from_dict, "trial", text)

    def _search(self, text: str) -> SearchRecord:
        return self._stored(SearchRecord.from_dict, "search", text)

    def _stored(self, build: Callable[[Any], _Entry], what: str, text: str) -> _Entry:
        try:
            return build(self._decode(text))
        except RecordsError:
            raise
        except (KeyError, TypeError, ValueError) as error:
            raise damaged(self.path, f"a stored {what} cannot be read ({error})") from error

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

    @contextmanager
    def _guard(self) -> Iterator[None]:
        """Turn SQLite's errors into this package's, with the path and the remedy."""
        try:
            yield
        except sqlite3.IntegrityError as error:
            raise RecordsError(f"the records {self.path} refused the entry: {error}") from error
        except sqlite3.ProgrammingError as error:
            raise RecordsError(f"the records {self.path} cannot be used: {error}") from error
        except sqlite3.OperationalError as error:
            raise _unwritable(self.path, error) from error
        except sqlite3.DatabaseError as error:
            raise damaged(self.path, str(error)) from error

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._guard():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise


_RUN_COLUMNS = "id, suite, title, settings, environment, started, finished, status"


def _run(row: tuple[Any, ...]) -> Run:
    number, suite, title, settings, environment, started, finished, status = row
    return Run(number, suite, title, decode(settings), decode(environment), started, finished, status)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _unwritable(path: Path, error: sqlite3.Error) -> OutputError:
    return OutputError(
        f"cannot use the records {path}: {error}; "
        "check that its folder exists, is writable and has space, and that no other process holds the file"
    )
