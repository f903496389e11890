"""A records file as a store: opened, checked, made and migrated; transactions, and SQLite's errors in words."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from lmc_verify.encoding import decode
from lmc_verify.errors import OutputError, RecordsError
from lmc_verify.runs.schema import (
    ADDED,
    APPLICATION_ID,
    SCHEMA,
    SCHEMA_VERSION,
    damaged,
    refuse_foreign,
    refuse_identity,
    tables_of,
)

__all__ = ["RecordStore"]

_BUSY_SECONDS = 30.0
_Entry = TypeVar("_Entry")


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
            raise OutputError(
                f"cannot make the folder {path.parent} for the records: {error.strerror}; "
                "choose a folder that you can write to"
            ) from error
        return cls._connect(path, create=True)

    @classmethod
    def open(cls, path: str | Path) -> Self:
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
    def _connect(cls, path: Path, *, create: bool) -> Self:
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

    def _stored(self, build: Callable[[Any], _Entry], what: str, text: str) -> _Entry:
        try:
            return build(self._decode(text))
        except RecordsError:
            raise
        except (KeyError, TypeError, ValueError) as error:
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


def _unwritable(path: Path, error: sqlite3.Error) -> OutputError:
    return OutputError(
        f"cannot use the records {path}: {error}; "
        "check that its folder exists, is writable and has space, and that no other process holds the file"
    )
