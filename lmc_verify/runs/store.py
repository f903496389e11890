"""A records file as a store: opened, checked, made and migrated; transactions, and SQLite's errors in words."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from lmc_verify.encoding import decode
from lmc_verify.errors import OutputError, RecordsError, folder_error
from lmc_verify.runs.schema import (
    ADDED,
    APPLICATION_ID,
    COLUMNS,
    HASHED_SINCE,
    SCHEMA,
    SCHEMA_VERSION,
    damaged,
    entry_hash,
    matches,
    refuse_foreign,
    refuse_identity,
    statements_of,
    tables_of,
)

__all__ = ["RecordStore", "require_records"]

_BUSY_SECONDS = 30.0
_Entry = TypeVar("_Entry")

_OUTSIDE = {
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_INTERRUPT,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_CANTOPEN,
}
"""Errors of the place, the disk or another process. What else SQLite cannot do with a file is the file's fault."""


class RecordStore:
    """A records file that is open; what it holds is the business of `lmc_verify.runs.records.Records`."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path = path
        self._connection = connection

    @classmethod
    def create_or_open(cls, path: str | Path) -> Self:
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
            what = f"cannot make the folder {path.parent} for the records"
            raise folder_error(path.parent, error, what, instead="choose a folder that you can write to") from error
        return cls._connect(path, create=True)

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Open the records at `path`, which must exist.

        Raises:
            RecordsError: there is no file, or not a records file that this version reads. It is left as it was.
        """
        path = Path(path)
        require_records(path)
        refuse_foreign(path)
        if path.stat().st_size == 0:
            raise RecordsError(f"no records at {path}: the file is empty; check the path, or run a suite first")
        return cls._connect(path, create=False)

    @classmethod
    def _connect(cls, path: Path, *, create: bool) -> Self:
        uri = f"{path.absolute().as_uri()}?mode={'rwc' if create else 'rw'}"
        try:
            connection = sqlite3.connect(uri, uri=True, timeout=_BUSY_SECONDS, isolation_level=None)
        except sqlite3.Error as error:
            raise _unwritable(path, error) from error
        # What is damaged may be no UTF-8. It comes back as it is, and its hash tells.
        connection.text_factory = lambda raw: raw.decode("utf-8", "surrogateescape")
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
        if found < HASHED_SINCE:
            for kind in COLUMNS:
                for number, entry, _ in self._columns(kind, _every(kind), (), hashed=False):
                    self._keep_hash(kind, number, entry)
        if found < SCHEMA_VERSION:
            self._connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

    def _check(self) -> None:
        version = self._pragma("user_version")
        refuse_identity(self.path, self._pragma("application_id"), version)
        # Before SQLite looks at them: a trigger, a view or a column of another's making may do anything.
        made = self._connection.execute("SELECT type, name, sql FROM sqlite_master").fetchall()
        if not tables_of(version) <= {name for kind, name, _ in made if kind == "table"}:
            raise damaged(self.path, "its tables are missing")
        own = {sql for _, name, sql in made if sql is not None and name != "sqlite_sequence"}
        if own != statements_of(version):
            raise damaged(self.path, f"its tables are not those of version {version}")
        found = self._connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
        if found != "ok":
            raise damaged(self.path, found)
        self._count()

    def _count(self) -> None:
        """Raise RecordsError unless there is an entry for each hash and a hash for each entry."""
        if not self._has("hashes"):
            return
        counts = [
            f"(SELECT count(*) FROM {_table(kind)} WHERE {_every(kind)}), "  # nosec B608  # of constants
            f"(SELECT count(*) FROM hashes WHERE kind = '{kind}')"
            for kind in COLUMNS
        ]
        # In one statement: another process may add entries meanwhile.
        *found, all_hashes = self._rows(f"SELECT {', '.join(counts)}, (SELECT count(*) FROM hashes)")[0]  # nosec B608  # of constants
        for kind, entries, hashes in zip(COLUMNS, found[::2], found[1::2], strict=True):
            if entries != hashes:
                raise damaged(self.path, f"it has {entries} entries and {hashes} hashes of {kind}")
        if all_hashes != sum(found[1::2]):
            raise damaged(self.path, "it has hashes of entries of another kind")

    def _insert(self, table: str, **values: Any) -> int:
        """Add an entry with its hash, inside a transaction, and return its number."""
        self._migrate()
        places = ", ".join("?" * len(values))
        query = f"INSERT INTO {table} ({', '.join(values)}) VALUES ({places})"  # nosec B608  # names are constants
        cursor = self._connection.execute(query, tuple(values.values()))
        assert cursor.lastrowid is not None
        self._keep_hash(table, cursor.lastrowid, values)
        return cursor.lastrowid

    def _keep_hash(self, kind: str, number: int, values: Mapping[str, Any]) -> None:
        self._connection.execute(
            "INSERT INTO hashes (kind, entry, sha256) VALUES (?, ?, ?)",
            (kind, number, entry_hash(kind, number, values)),
        )

    def _columns(
        self, kind: str, condition: str, values: tuple[Any, ...], *, hashed: bool
    ) -> Iterator[tuple[int, dict[str, Any], str | None]]:
        """Yield number, columns and hash of each entry of a kind under a condition."""
        columns, table = COLUMNS[kind], _table(kind)
        kept = "NULL"
        if hashed:
            kept = f"(SELECT sha256 FROM hashes WHERE hashes.kind = '{kind}' AND entry = {table}.id)"  # nosec B608
        query = f"SELECT id, {', '.join(columns)}, {kept} FROM {table} WHERE {condition}"  # nosec B608  # of constants
        for number, *found, digest in self._rows(query, values):
            yield number, dict(zip(columns, found, strict=True)), digest

    def _entries(self, kind: str, condition: str, values: tuple[Any, ...] = ()) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield number and columns of each entry of a kind under a condition, compared with its hash.

        Raises:
            RecordsError: an entry is not what was recorded.
        """
        hashed = self._has("hashes")
        for number, entry, digest in self._columns(kind, condition, values, hashed=hashed):
            if hashed and not matches(kind, number, entry, digest):
                raise damaged(self.path, f"entry {number} of {kind} does not match its hash")
            yield number, entry

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
        except (TypeError, ValueError, RecursionError) as error:
            raise damaged(self.path, f"a stored value is not JSON ({error})") from error

    def _stored(self, build: Callable[[Any], _Entry], what: str, text: str) -> _Entry:
        try:
            return build(self._decode(text))
        except RecordsError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise damaged(self.path, f"a stored {what} cannot be read ({error})") from error

    @contextmanager
    def _guard(self) -> Iterator[None]:
        """Turn SQLite's errors into this package's, with the path and the remedy."""
        try:
            yield
        except sqlite3.IntegrityError as error:
            raise RecordsError(f"the records {self.path} refused the entry: {error}") from error
        except sqlite3.ProgrammingError as error:
            raise RecordsError(f"the records {self.path} cannot be used: {error}") from error
        except sqlite3.Error as error:
            # The lowest byte of SQLite's extended codes is the kind of error.
            outside = getattr(error, "sqlite_errorcode", 0) & 0xFF in _OUTSIDE
            raise (_unwritable(self.path, error) if outside else damaged(self.path, str(error))) from error
        except UnicodeDecodeError as error:  # SQLite's message quotes what is damaged
            raise damaged(self.path, f"SQLite finds {error.object!r}") from error
        except OverflowError as error:
            raise RecordsError(f"the records {self.path} have no such number: {error}") from error

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


def _table(kind: str) -> str:
    """Return the table of a kind of entries: runs and their ends share one."""
    return "runs" if kind == "ends" else kind


def _every(kind: str) -> str:
    """Return the condition that every entry of a kind meets."""
    return "finished IS NOT NULL" if kind == "ends" else "1"


def _unwritable(path: Path, error: sqlite3.Error) -> OutputError:
    return OutputError(
        f"cannot use the records {path}: {error}; "
        "check that its folder exists, is writable and has space, and that no other process holds the file"
    )


def require_records(path: Path) -> None:
    """Refuse a path at which there is no file.

    Raises:
        RecordsError: there is none.
    """
    if not path.exists():
        raise RecordsError(f"no records at {path}: no such file; check the path, or run a suite first")
