"""The format of a records file: its tables, which the file itself keeps append-only, and how it is told from others.

Version 2 of the tables added that of searches for counterexamples, version 3 those of races, version 4 those of the
plan and of the process that makes the run, version 5 that of hashes: one SHA-256 for each entry, over all its columns.
An older file is read as it is, and gets the tables that it lacks, and the hashes of what it holds, when the next entry
is recorded. A sign of life has no hash: it is written over and over, and no result rests on it.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmc_verify.errors import DamageError, RecordsError

__all__ = [
    "ADDED",
    "APPLICATION_ID",
    "COLUMNS",
    "HASHED_SINCE",
    "SCHEMA",
    "SCHEMA_VERSION",
    "damaged",
    "entry_hash",
    "matches",
    "refuse_foreign",
    "refuse_identity",
    "statements_of",
    "tables_of",
]

APPLICATION_ID = 0x4C4D4356
"""Marks a SQLite file as records of this package ("LMCV")."""
SCHEMA_VERSION = 5
"""Version of the tables, kept in the file's ``user_version``."""
HASHED_SINCE = 5
"""The first version that keeps hashes."""
COLUMNS = {
    "runs": ("suite", "title", "settings", "environment", "started"),
    "ends": ("finished", "status"),
    "trials": ("run_id", "key", "kind", "claim", "outcome", "document", "recorded"),
    "not_run": ("run_id", "claim", "planned_case", "reason"),
    "searches": ("run_id", "key", "claim", "outcome", "document", "recorded"),
    "races": ("run_id", "key", "title", "document", "recorded"),
    "race_runs": ("run_id", "race", "key", "outcome", "document", "recorded"),
    "planned": ("run_id", "kind", "race", "key", "document"),
}
"""What is hashed of an entry, in this order, besides its number. The end of a run, in the run's row, has its own."""

_MAGIC = b"SQLite format 3\x00"


def _append_only(table: str, *unique: str) -> tuple[str, ...]:
    """Return the triggers that keep what a table holds; `unique` names the columns that identify a row."""
    triggers = [
        f"CREATE TRIGGER {table}_no_{verb.lower()} BEFORE {verb} ON {table} "
        f"BEGIN SELECT RAISE(ABORT, 'append-only: {table} cannot be changed'); END"
        for verb in ("UPDATE", "DELETE")
    ]
    if unique:
        # REPLACE deletes without firing the DELETE trigger unless the connection asks for it.
        same = " AND ".join(f"{column} = NEW.{column}" for column in unique)
        triggers.append(
            f"CREATE TRIGGER {table}_no_replace BEFORE INSERT ON {table} "  # nosec B608  # of constants
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
_RACES = (
    """CREATE TABLE races (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        run_id INTEGER NOT NULL REFERENCES runs (id),
        key TEXT NOT NULL,
        title TEXT NOT NULL,
        document TEXT NOT NULL,
        recorded TEXT NOT NULL,
        UNIQUE (run_id, key)
    )""",
    """CREATE TABLE race_runs (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        run_id INTEGER NOT NULL REFERENCES runs (id),
        race TEXT NOT NULL,
        key TEXT NOT NULL,
        outcome TEXT NOT NULL,
        document TEXT NOT NULL,
        recorded TEXT NOT NULL,
        UNIQUE (run_id, race, key)
    )""",
    "CREATE INDEX race_runs_by_key ON race_runs (key)",
    *_append_only("races", "run_id", "key"),
    *_append_only("race_runs", "run_id", "race", "key"),
)
_PLAN = (
    """CREATE TABLE planned (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        run_id INTEGER NOT NULL REFERENCES runs (id),
        kind TEXT NOT NULL CHECK (kind IN ('claim', 'control', 'search', 'training')),
        race TEXT NOT NULL,
        key TEXT NOT NULL,
        document TEXT NOT NULL,
        UNIQUE (run_id, kind, race, key)
    )""",
    *_append_only("planned", "run_id", "kind", "race", "key"),
    """CREATE TABLE processes (
        run_id INTEGER PRIMARY KEY REFERENCES runs (id),
        host TEXT NOT NULL,
        pid INTEGER NOT NULL,
        beat TEXT NOT NULL
    )""",
)
_HASHES = (
    """CREATE TABLE hashes (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        kind TEXT NOT NULL,
        entry INTEGER NOT NULL,
        sha256 TEXT NOT NULL,
        UNIQUE (kind, entry)
    )""",
    *_append_only("hashes", "kind", "entry"),
)
ADDED = {2: _SEARCHES, 3: _RACES, 4: _PLAN, 5: _HASHES}
"""What each version added to the one before."""
SCHEMA = (
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
    *_RACES,
    *_PLAN,
    *_HASHES,
    """CREATE TRIGGER runs_no_delete BEFORE DELETE ON runs
        BEGIN SELECT RAISE(ABORT, 'append-only: runs cannot be deleted'); END""",
    """CREATE TRIGGER runs_finish_once BEFORE UPDATE ON runs WHEN OLD.finished IS NOT NULL
        BEGIN SELECT RAISE(ABORT, 'append-only: a finished run cannot be changed'); END""",
)


def tables_of(version: int) -> set[str]:
    """Return the tables that a file of a version has."""
    added = {2: {"searches"}, 3: {"races", "race_runs"}, 4: {"planned", "processes"}, 5: {"hashes"}}
    return {"runs", "trials", "not_run"}.union(*(tables for since, tables in added.items() if since <= version))


def statements_of(version: int) -> set[str]:
    """Return the statements that made the tables, indices and triggers of a version, as SQLite keeps them."""
    later = {statement for since, statements in ADDED.items() if since > version for statement in statements}
    return {statement for statement in SCHEMA if statement not in later}


def entry_hash(kind: str, number: int, values: Mapping[str, Any]) -> str:
    """Return the SHA-256 hex digest of an entry: of its kind, its number and its columns, see `COLUMNS`."""
    content = [kind, number, *(values[column] for column in COLUMNS[kind])]
    # A damaged column may have become of another type: it has another hash, and is no error here.
    return hashlib.sha256(json.dumps(content, default=repr).encode()).hexdigest()


def matches(kind: str, number: int, values: Mapping[str, Any], digest: str | None) -> bool:
    """Return whether an entry is what was hashed; a run that has not ended has no hash of its end."""
    if kind == "ends" and digest is None:
        return values == {"finished": None, "status": "running"}
    return digest == entry_hash(kind, number, values)


def refuse_foreign(path: Path) -> None:
    """Raise RecordsError unless a file's header, read without SQLite, is that of records of a readable version."""
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
    refuse_identity(path, application, version)


def refuse_identity(path: Path, application: int, version: int) -> None:
    """Raise RecordsError unless the two numbers of a file's header are those of records of a readable version."""
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
        raise damaged(path, f"schema version {version}")


def damaged(path: Path, found: str) -> DamageError:
    """Return the error for a file whose content cannot be read."""
    return DamageError(
        f"the records {path} are damaged: {found}; the file was left as it was: see what is damaged with "
        f"lmc-verify records check, save the rest with lmc-verify records repair, or restore it from a copy"
    )
