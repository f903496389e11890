"""SQLite store of trials: append-only, resumable, one transaction a trial.

A records file holds runs; a run holds its trials and what was planned and not run. Trials can be added and
read, never changed: triggers in the file itself abort every ``UPDATE``, ``DELETE`` and ``REPLACE``. A killed
process loses at most the trial under way. So it is with searches for counterexamples.

Values are stored as strict JSON, see `lmc_verify.encoding`. Tuples inside a case come back as lists.

Version 2 of the tables added those of searches for counterexamples. A file of version 1 is read as it is, and gets
the table when its first search is recorded.
"""

from __future__ import annotations

import json
import sqlite3
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from lmc_verify.claims.verdict import Outcome, Verdict
from lmc_verify.encoding import decode, encode, plain
from lmc_verify.errors import InvalidInputError, OutputError, RecordsError
from lmc_verify.searches import SearchRecord

__all__ = ["APPLICATION_ID", "REPLICATE", "SCHEMA_VERSION", "NotRun", "Records", "Run", "Trial", "repeated_case"]

APPLICATION_ID = 0x4C4D4356
"""Marks a SQLite file as records of this package ("LMCV")."""
SCHEMA_VERSION = 2
"""Version of the tables, kept in the file's ``user_version``."""
REPLICATE = "replicate"
"""Key of a case that numbers its repetition; a case without it is repetition 0."""

_MAGIC = b"SQLite format 3\x00"
_KINDS = ("claim", "control")
_BUSY_SECONDS = 30.0


def _append_only(table: str, *unique: str) -> tuple[str, ...]:
    """Return the triggers that keep what a table holds; `unique` names the columns that tell its rows apart."""
    triggers = [
        f"CREATE TRIGGER {table}_no_{verb.lower()} BEFORE {verb} ON {table} "
        f"BEGIN SELECT RAISE(ABORT, 'append-only: {table} cannot be changed'); END"
        for verb in ("UPDATE", "DELETE")
    ]
    if unique:
        # REPLACE deletes without firing the DELETE trigger unless the connection asks for it.
        same = " AND ".join(f"{column} = NEW.{column}" for column in unique)
        triggers.append(
            f"CREATE TRIGGER {table}_no_replace BEFORE INSERT ON {table} "
            f"WHEN EXISTS (SELECT 1 FROM {table} WHERE id = NEW.id OR ({same})) "
            f"BEGIN SELECT RAISE(ABORT, 'append-only: this entry of {table} is already recorded'); END"
        )
    return tuple(triggers)


_SEARCHES = (
    """CREATE TABLE searches (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        run_id INTEGER NOT NULL REFERENCES runs (id),
        key TEXT NOT NULL,
        claim TEXT NOT NULL,
        outcome TEXT NOT NULL,
        document TEXT NOT NULL,
        recorded TEXT NOT NULL,
        UNIQUE (run_id, key)
    )""",
    "CREATE INDEX searches_by_key ON searches (key)",
    *_append_only("searches", "run_id", "key"),
)
_SCHEMA = (
    """CREATE TABLE runs (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        suite TEXT NOT NULL,
        title TEXT NOT NULL,
        settings TEXT NOT NULL,
        environment TEXT NOT NULL,
        started TEXT NOT NULL,
        finished TEXT,
        status TEXT NOT NULL DEFAULT 'running'
    )""",
    """CREATE TABLE trials (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        run_id INTEGER NOT NULL REFERENCES runs (id),
        key TEXT NOT NULL,
        kind TEXT NOT NULL CHECK (kind IN ('claim', 'control')),
        claim TEXT NOT NULL,
        outcome TEXT NOT NULL,
        document TEXT NOT NULL,
        recorded TEXT NOT NULL,
        UNIQUE (run_id, key)
    )""",
    "CREATE INDEX trials_by_key ON trials (key)",
    """CREATE TABLE not_run (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        run_id INTEGER NOT NULL REFERENCES runs (id),
        claim TEXT NOT NULL,
        planned_case TEXT NOT NULL,
        reason TEXT NOT NULL
    )""",
    *_append_only("trials", "run_id", "key"),
    *_append_only("not_run"),
    *_SEARCHES,
    """CREATE TRIGGER runs_no_delete BEFORE DELETE ON runs
        BEGIN SELECT RAISE(ABORT, 'append-only: runs cannot be deleted'); END""",
    """CREATE TRIGGER runs_finish_once BEFORE UPDATE ON runs WHEN OLD.finished IS NOT NULL
        BEGIN SELECT RAISE(ABORT, 'append-only: a finished run cannot be changed'); END""",
)


@dataclass(frozen=True)
class Trial:
    """One claim, or one control, checked on one case.

    Attributes:
        key: identity for resuming: the SHA-256 hex digest over claim, case and code version.
        kind: ``"claim"`` or ``"control"``.
        verdict: what was found; for a control, the verdict that its defective (or sound) estimator got.
        expected: the outcome that the suite expects, such as ``"REFUTED"``; None for no expectation.
        command: shell command that reproduces the trial.
        seconds: wall-clock time it took.
        control: for a control: ``name``, ``description``, ``role`` (``"sound"`` or ``"defect"``), ``effect``
            (measured size of the defect in gradient norms, or None) and ``passed``.
    """

    key: str
    kind: str
    verdict: Verdict
    expected: str | None
    command: str
    seconds: float
    control: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.kind not in _KINDS:
            raise InvalidInputError(f"kind of a trial is {self.kind!r}; use 'claim' or 'control'")
        if (self.kind == "control") != (self.control is not None):
            raise InvalidInputError(
                f"a trial of kind {self.kind!r} has control={self.control!r}; "
                "describe the control of a control, and of nothing else"
            )
        if self.expected is not None and self.expected not in Outcome.__members__:
            known = ", ".join(Outcome.__members__)
            raise InvalidInputError(f"expected outcome is {self.expected!r}; use None or one of {known}")

    @property
    def as_expected(self) -> bool | None:
        """Whether the outcome is the expected one, or the control passed; None if nothing was expected."""
        if self.control is not None:
            passed = self.control.get("passed")
            return None if passed is None else bool(passed)
        return None if self.expected is None else self.verdict.outcome.value == str(self.expected)

    def to_dict(self) -> dict[str, Any]:
        """Return the trial as plain values; floats may be NaN or infinite."""
        return {
            "key": self.key,
            "kind": self.kind,
            "verdict": self.verdict.to_dict(),
            "expected": None if self.expected is None else str(self.expected),
            "command": self.command,
            "seconds": self.seconds,
            "control": None if self.control is None else dict(self.control),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Trial:
        """Rebuild a trial from `to_dict`."""
        fields = dict(values)
        fields["verdict"] = Verdict.from_dict(fields["verdict"])
        return cls(**fields)


@dataclass(frozen=True)
class Run:
    """One run of a suite.

    Attributes:
        id: number of the run in its records file.
        suite: name of the suite.
        title: title for the report.
        settings: what the run was asked to do.
        environment: what it ran on (python, torch, platform, threads, code version).
        started: UTC time, ISO 8601.
        finished: UTC time, ISO 8601; None while it runs, and for ever if it was killed.
        status: ``"running"`` until `Records.finish_run` gives another.
    """

    id: int
    suite: str
    title: str
    settings: Mapping[str, Any]
    environment: Mapping[str, Any]
    started: str
    finished: str | None
    status: str


@dataclass(frozen=True)
class NotRun:
    """A case that was planned and not run, with the reason."""

    claim: str
    reason: str
    case: Mapping[str, Any] = field(default_factory=dict)


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
        _refuse_foreign(path)
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
        _refuse_foreign(path)
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
                group.setdefault(_replicate(trial.verdict), trial)
        return {key: tuple(group[number] for number in sorted(group)) for key, group in groups.items()}

    # --- internals ---

    def _create(self) -> None:
        with self._transaction():
            if self._pragma("page_count") > 1 or self._pragma("application_id") == APPLICATION_ID:
                return  # another process made it while this one waited for the lock
            for statement in _SCHEMA:
                self._connection.execute(statement)
            self._connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            self._connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

    def _migrate(self) -> None:
        """Bring the tables of version 1 to this version, inside the transaction of the entry that needs it."""
        if self._pragma("user_version") < 2:
            for statement in _SEARCHES:
                self._connection.execute(statement)
            self._connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

    def _search_documents(self, condition: str, value: int | str) -> list[str]:
        if self._rows("PRAGMA user_version")[0][0] < 2:
            return []
        return [text for (text,) in self._rows(f"SELECT document FROM searches WHERE {condition}", (value,))]

    def _check(self) -> None:
        _refuse_identity(self.path, self._pragma("application_id"), self._pragma("user_version"))
        found = self._connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        tables = {name for (name,) in self._connection.execute("SELECT name FROM sqlite_master")}
        needed = {"runs", "trials", "not_run"} | ({"searches"} if self._pragma("user_version") >= 2 else set())
        if found == "ok" and not needed <= tables:
            found = "its tables are missing"
        if found != "ok":
            raise _damaged(self.path, found)

    def _pragma(self, name: str) -> int:
        return int(self._connection.execute(f"PRAGMA {name}").fetchone()[0])

    def _rows(self, query: str, values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        with self._guard():
            return self._connection.execute(query, values).fetchall()

    def _decode(self, text: str) -> Any:
        try:
            return decode(text)
        except ValueError as error:
            raise _damaged(self.path, f"a stored value is not JSON ({error})") from error

    def _trial(self, text: str) -> Trial:
        try:
            return Trial.from_dict(self._decode(text))
        except (KeyError, TypeError, ValueError) as error:
            raise _damaged(self.path, f"a stored trial cannot be read ({error})") from error

    def _search(self, text: str) -> SearchRecord:
        try:
            return SearchRecord.from_dict(self._decode(text))
        except (KeyError, TypeError, ValueError) as error:
            raise _damaged(self.path, f"a stored search cannot be read ({error})") from error

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
            raise _damaged(self.path, str(error)) from error

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


def repeated_case(verdict: Verdict) -> str:
    """Return what repetitions of a verdict have in common: claim, case but for the replicate, and every hash.

    The hashes include the version of the code, so evidence of different code is never added up.
    """
    case = {key: value for key, value in verdict.case.items() if key != REPLICATE}
    parts = plain([verdict.claim, case, verdict.hashes])
    return json.dumps(parts, allow_nan=False, sort_keys=True, separators=(",", ":"))


def _replicate(verdict: Verdict) -> int:
    return int(verdict.case.get(REPLICATE, 0))


_RUN_COLUMNS = "id, suite, title, settings, environment, started, finished, status"


def _run(row: tuple[Any, ...]) -> Run:
    number, suite, title, settings, environment, started, finished, status = row
    return Run(number, suite, title, decode(settings), decode(environment), started, finished, status)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


# --- files that are not ours ---


def _refuse_foreign(path: Path) -> None:
    """Read the header of the file, without SQLite, and refuse what is not a records file of this version."""
    if path.is_dir():
        raise RecordsError(f"{path} is a folder; name a file in it, such as {path / 'records.sqlite'}")
    try:
        with path.open("rb") as stream:
            header = stream.read(100)
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise RecordsError(f"cannot read the records {path}: {error.strerror}; check its permissions") from error
    if not header:
        return
    if not header.startswith(_MAGIC) or len(header) < 100:
        raise RecordsError(
            f"{path} is not a records file: it begins with {header[:16]!r}, not with a SQLite header; "
            "it was left as it was: name another file"
        )
    version, application = struct.unpack(">i", header[60:64])[0], struct.unpack(">i", header[68:72])[0]
    _refuse_identity(path, application, version)


def _refuse_identity(path: Path, application: int, version: int) -> None:
    if application != APPLICATION_ID:
        raise RecordsError(
            f"{path} is a SQLite database of another program (application id {application:#x}, "
            f"records have {APPLICATION_ID:#x}); it was left as it was: name another file"
        )
    if version > SCHEMA_VERSION:
        raise RecordsError(
            f"{path} has schema version {version} and this version reads up to {SCHEMA_VERSION}; "
            "it was left as it was: upgrade lmc-verify, or name another file"
        )
    if version < 1:
        raise _damaged(path, f"schema version {version}")


def _damaged(path: Path, found: str) -> RecordsError:
    return RecordsError(
        f"the records {path} are damaged: {found}; the file was left as it was: "
        "move it away and run again, or restore it from a copy"
    )


def _unwritable(path: Path, error: sqlite3.Error) -> OutputError:
    return OutputError(
        f"cannot use the records {path}: {error}; "
        "check that its folder exists, is writable and has space, and that no other process holds the file"
    )
