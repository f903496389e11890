"""Data frames of results: columns of fixed names and types, whatever the values; pandas is imported here alone."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from lmc_verify.encoding import encode
from lmc_verify.errors import InvalidInputError, OutputError
from lmc_verify.imports.optional import optional

__all__ = ["Kind", "inferred", "make_frame", "one_of", "write_parquet"]

Kind = Literal["text", "number", "count", "flag"]
"""What a column holds. Texts, counts and flags may be missing (``pandas.NA``), numbers may be NaN."""

_DTYPES: dict[Kind, str] = {"text": "string", "number": "float64", "count": "Int64", "flag": "boolean"}
_LARGEST = 2**63


def one_of(value: str, known: Sequence[str]) -> str:
    """Return what the rows of a frame are to be, if there are such.

    Raises:
        InvalidInputError: there are no such rows.
    """
    if value not in known:
        raise InvalidInputError(f"rows is {value!r}; it is one of {', '.join(map(repr, known))}")
    return value


def make_frame(columns: Mapping[str, Kind], rows: Iterable[Sequence[Any]]) -> Any:
    """Return a ``pandas.DataFrame`` with these columns, whose types do not depend on the values.

    Args:
        columns: name -> what it holds.
        rows: one value for each column; None is a missing one.

    Raises:
        InvalidInputError: pandas is not installed.
    """
    pandas = optional("pandas", "to_frame()", "frames")
    values: list[list[Any]] = [[] for _ in columns]
    for row in rows:
        for column, value in zip(values, row, strict=True):
            column.append(value)
    return pandas.DataFrame(
        {
            name: pandas.array([_cell(value, kind) for value in column], dtype=_DTYPES[kind])
            if kind != "number"
            else pandas.Series([_cell(value, kind) for value in column], dtype="float64")
            for (name, kind), column in zip(columns.items(), values, strict=True)
        }
    )


def _cell(value: Any, kind: Kind) -> Any:
    if value is None or kind in ("count", "flag", "number"):
        return value
    text = value if isinstance(value, str) else encode(value)
    return text.encode("utf-8", "backslashreplace").decode("utf-8")  # Arrow holds no lone surrogates


def inferred(values: Iterable[Any]) -> Kind:
    """Return what a column of settings holds: the kind that all its values have, else text."""
    kinds = {_kind(value) for value in values if value is not None}
    if len(kinds) == 1:
        return kinds.pop()
    return "number" if kinds == {"count", "number"} else "text"


def _kind(value: Any) -> Kind:
    if isinstance(value, bool):
        return "flag"
    if isinstance(value, int):
        return "count" if -_LARGEST <= value < _LARGEST else "text"
    return "number" if isinstance(value, float) else "text"


def write_parquet(frame: Any, path: str | Path) -> Path:
    """Write a frame as a Parquet file; an older file of the name is there until the new one is complete.

    Raises:
        InvalidInputError: PyArrow is not installed.
        OutputError: the file cannot be written.
    """
    optional("pyarrow", "to_parquet()", "parquet")
    path = Path(path)
    waiting = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        try:
            frame.to_parquet(waiting, engine="pyarrow", index=False)
            os.replace(waiting, path)
        finally:
            waiting.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(
            f"cannot write {path}: {error.strerror or error}; choose another folder or make room"
        ) from error
    return path
