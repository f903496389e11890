"""What in a records file is what was recorded: every entry that can be found, compared with its hash.

A file that `Records` refuses is read as far as SQLite reads it, and never written to. Entries are looked for from both
ends of their table and in the list of hashes, so that a damaged page hides what is on it and little else.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lmc_verify.errors import RecordsError
from lmc_verify.runs.damage.header import with_new_header
from lmc_verify.runs.records import Records
from lmc_verify.runs.schema import COLUMNS, matches, refuse_foreign, statements_of, tables_of

__all__ = ["Found", "check_records"]

Entries = dict[int, dict[str, Any]]


@dataclass(frozen=True)
class Found:
    """What is left of a records file.

    Attributes:
        path: the file.
        problem: why `Records` refuses the file, or what it holds; empty if nothing is wrong.
        hashed: whether the file keeps hashes. One of an older version does not, and its entries can only be read.
        intact: entries that match their hash, by kind and number; their columns as in `COLUMNS`.
        lost: numbers of entries that are damaged or missing, by kind.
        num_entries: number of entries that are intact, or that can be read where there are no hashes.
    """

    path: Path
    problem: str
    hashed: bool
    intact: dict[str, Entries] = field(default_factory=dict)
    lost: dict[str, list[int]] = field(default_factory=dict)
    num_entries: int = 0

    @property
    def num_lost(self) -> int:
        """Number of entries that are damaged or missing."""
        return sum(map(len, self.lost.values()))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values: numbers of entries, and which are lost."""
        intact = {kind: len(entries) for kind, entries in self.intact.items()}
        return {"problem": self.problem, "hashed": self.hashed, "intact": intact, "lost": self.lost}


def check_records(path: str | Path) -> Found:
    """Compare every entry of a records file with its hash. The file is left as it is.

    Where its header is damaged, or is that of another program's file, what is under it is looked at too.

    Raises:
        RecordsError: there is no file, or it is another program's, or a later version's.
        OutputError: there is no room for a copy of a file whose header is damaged.
    """
    path = Path(path)
    refusal = None
    try:
        refuse_foreign(path)
    except RecordsError as error:
        if not path.is_file():
            raise
        refusal = error
    problem = str(refusal or _problem(path))
    found = _compared(path, path, problem)
    if problem and (refusal is not None or not found.hashed or found.num_lost):
        with with_new_header(path) as copy:
            under = _compared(
                path, copy, problem if refusal is None else f"the header of the records {path} is damaged"
            )
            own = refusal is None or _own_only(copy)
        if own and under.num_entries > (0 if refusal else found.num_entries):
            return under
    if refusal is not None:
        raise refusal
    return found


def _own_only(path: Path) -> bool:
    """Whether a file holds the package's tables and nothing else, as one of another program or a later version does."""
    with closing(_opened(path)) as connection:
        found = _found(connection, "SELECT sql FROM sqlite_master WHERE sql IS NOT NULL AND name != 'sqlite_sequence'")
        return {sql for (sql,) in found} <= statements_of(10**6)


def _problem(path: Path) -> str:
    """Return why `Records` refuses a file, or what it holds."""
    try:
        with Records.open(path) as records:
            for run in records.runs():
                for read in (records.plan, records.trials, records.searches, records.races, records.planned_not_run):
                    read(run.id)
    except RecordsError as error:
        if not path.exists() or path.stat().st_size == 0:
            raise
        return str(error)
    return ""


def _compared(path: Path, place: Path, problem: str) -> Found:
    """Compare the entries of a file with their hashes, in itself or a copy of it at another place."""
    with closing(_opened(place)) as connection:
        hashed = "hashes" in _readable(connection)
        kept = _hashes(connection)
        numbers = {kind: _numbers(connection, kind) for kind in COLUMNS}
        intact = {kind: _intact(connection, kind, kept.get(kind, {})) for kind in COLUMNS}
    lost = {kind: sorted((set(kept.get(kind, {})) | numbers[kind]) - set(intact[kind])) for kind in COLUMNS if kept}
    readable = sum(map(len, (numbers if not hashed else intact).values()))
    return Found(path, problem, hashed, intact, {kind: few for kind, few in lost.items() if few}, readable)


def _opened(path: Path) -> sqlite3.Connection:
    """Open a file that may be damaged, as one that nobody writes to."""
    connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro&immutable=1", uri=True)
    connection.text_factory = lambda raw: raw.decode("utf-8", "surrogateescape")
    with suppress(sqlite3.Error):
        connection.execute("PRAGMA trusted_schema = OFF")
        connection.execute("PRAGMA writable_schema = ON")  # what cannot be parsed in the schema is passed over
    return connection


def _found(connection: sqlite3.Connection, query: str, values: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield rows until SQLite gives up."""
    try:
        yield from connection.execute(query, values)
    except (sqlite3.Error, OverflowError, UnicodeDecodeError):
        return


def _readable(connection: sqlite3.Connection) -> set[str]:
    """Return the tables whose definition is the package's own: others are not touched."""
    own, names = statements_of(10**6), tables_of(10**6)
    return {
        name for name, sql in _found(connection, "SELECT name, sql FROM sqlite_master") if sql in own and name in names
    }


def _both_ways(connection: sqlite3.Connection, query: str) -> Iterator[tuple[Any, ...]]:
    for order in ("ASC", "DESC"):
        yield from _found(connection, f"{query} ORDER BY id {order}")


def _hashes(connection: sqlite3.Connection) -> dict[str, dict[int, set[str]]]:
    """Return the hashes that can be found, by kind and number of the entry."""
    kept: dict[str, dict[int, set[str]]] = {}
    if "hashes" in _readable(connection):
        for kind, number, digest in _both_ways(connection, "SELECT kind, entry, sha256 FROM hashes NOT INDEXED"):
            if kind in COLUMNS and isinstance(number, int):
                kept.setdefault(kind, {}).setdefault(number, set()).add(digest)
    return kept


def _table(kind: str) -> str:
    return "runs" if kind == "ends" else kind


def _numbers(connection: sqlite3.Connection, kind: str) -> set[int]:
    if _table(kind) not in _readable(connection):
        return set()
    ended = " WHERE finished IS NOT NULL" if kind == "ends" else ""
    rows = _both_ways(connection, f"SELECT id FROM {_table(kind)} NOT INDEXED{ended}")  # nosec B608  # of constants
    return {number for (number,) in rows if isinstance(number, int)}


def _intact(connection: sqlite3.Connection, kind: str, kept: dict[int, set[str]]) -> Entries:
    """Return the entries of a kind that match one of their hashes."""
    if _table(kind) not in _readable(connection):
        return {}
    columns, intact = COLUMNS[kind], {}
    query = f"SELECT {', '.join(columns)} FROM {_table(kind)} NOT INDEXED WHERE id = ?"  # nosec B608  # of constants
    for number, digests in sorted(kept.items()):
        for found in _found(connection, query, (number,)):
            entry = dict(zip(columns, found, strict=True))
            if any(matches(kind, number, entry, digest) for digest in digests):
                intact[number] = entry
    return intact
