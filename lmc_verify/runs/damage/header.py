"""The header of a records file, all of which is known: one that is damaged is written anew, in a copy."""

from __future__ import annotations

import shutil
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lmc_verify.errors import OutputError
from lmc_verify.runs.schema import APPLICATION_ID, SCHEMA_VERSION

__all__ = ["with_new_header"]

_PAGE = 4096
"""Bytes of a page of every records file: SQLite's default, which the package leaves."""


@contextmanager
def with_new_header(path: Path) -> Iterator[Path]:
    """Make a copy of a records file with a header as SQLite writes it; it is gone after the block.

    Whatever else the file holds is as it was: whether it is the package's, and what was recorded, is for its tables and
    hashes to tell.

    Raises:
        OutputError: there is no room for the copy.
    """
    with tempfile.TemporaryDirectory(prefix="lmc-verify-") as folder:
        copy = Path(folder) / "records.sqlite"
        try:
            shutil.copyfile(path, copy)
            with copy.open("r+b") as stream:
                stream.write(_header(copy.stat().st_size))
        except OSError as error:
            raise OutputError(
                f"cannot copy {path} to {folder} to look under its header: {error.strerror or error}; "
                "make room there, or name another folder in TMPDIR"
            ) from error
        yield copy


def _header(size: int) -> bytes:
    """Return the first 100 bytes of a database of so many bytes [https://www.sqlite.org/fileformat.html, section 1.3].

    No page is free, as nothing is ever deleted, and the text is UTF-8. The version matters to no entry: their hashes do
    not depend on it.
    """
    pages = max(size // _PAGE, 1)
    start = struct.pack(">16sH6B", b"SQLite format 3\x00", _PAGE, 1, 1, 0, 64, 32, 32)
    numbers = (1, pages, 0, 0, 1, 4, 0, 0, 1, SCHEMA_VERSION, 0, APPLICATION_ID)
    return start + struct.pack(">12I20x2I", *numbers, 1, 3_040_000)
