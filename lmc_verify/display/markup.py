"""HTML for notebooks: paragraphs and tables without styles of their own, so that they follow the notebook's theme.

Every function escapes the texts it is given; only what these functions return may be joined into a page. There are no
colours, scripts, links or images.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, TypeVar

from lmc_verify.display.text import printable

__all__ = ["MOST_ROWS", "Align", "Bold", "bullets", "escaped", "facts", "most_telling", "paragraph", "section", "table"]

Align = Literal["left", "right"]

Row = TypeVar("Row")

MOST_ROWS = 60
"""Rows of a table that a notebook shows; a frame has all."""


class Bold(str):
    """A cell of a table that stands out."""

    __slots__ = ()


def escaped(text: object) -> str:
    """Return a text as HTML that shows it; characters that reverse the direction of writing become U+FFFD."""
    shown = re.sub("[\u202a-\u202e\u2066-\u2069]", "\ufffd", printable(str(text)))
    return html.escape(shown)


def paragraph(text: object, *, bold: object = "", small: bool = False) -> str:
    """Return a paragraph, with some bold words before the others."""
    words = f"<b>{escaped(bold)}</b> {escaped(text)}" if bold else escaped(text)
    return f"<p><small>{words}</small></p>" if small else f"<p>{words}</p>"


def table(columns: Mapping[str, Align], rows: Iterable[Sequence[object]], *, more: str = "to_frame() has all") -> str:
    """Return a table of the first `MOST_ROWS` rows, which scrolls where it is too wide; nothing where there is no row.

    Args:
        columns: heading -> how the column is aligned.
        rows: one cell for each column.
        more: where the rows are that are left out.
    """
    rows = list(rows)
    if not rows:
        return ""
    sides = [f"style='text-align:{side}'" for side in columns.values()]
    head = "".join(f"<th scope='col' {side}>{escaped(name)}</th>" for name, side in zip(columns, sides, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td {side}>{_cell(cell)}</td>" for cell, side in zip(row, sides, strict=True)) + "</tr>"
        for row in rows[:MOST_ROWS]
    )
    left = len(rows) - MOST_ROWS
    note = paragraph(f"{left:,} more {'row' if left == 1 else 'rows'}: {more}", small=True) if left > 0 else ""
    return (
        f"<div style='overflow-x:auto'><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>{note}"
    )


def _cell(value: object) -> str:
    return f"<b>{escaped(value)}</b>" if isinstance(value, Bold) else escaped(value)


def facts(values: Mapping[str, object]) -> str:
    """Return a table of names and values; what is None or empty is left out."""
    rows = "".join(
        f"<tr><th scope='row' style='text-align:left'>{escaped(name)}</th>"
        f"<td style='text-align:left'>{escaped(value)}</td></tr>"
        for name, value in values.items()
        if value is not None and value != ""
    )
    return f"<div style='overflow-x:auto'><table><tbody>{rows}</tbody></table></div>" if rows else ""


def bullets(items: Iterable[str], *, title: str = "", numbered: bool = False) -> str:
    """Return a list of items, which are HTML already, under a title; nothing where there is none."""
    rows = "".join(f"<li>{item}</li>" for item in items)
    kind = "ol" if numbered else "ul"
    return f"{paragraph(title) if title else ''}<{kind}>{rows}</{kind}>" if rows else ""


def section(*parts: str) -> str:
    """Return what one object shows, of parts that functions of this module returned."""
    return f"<div>{''.join(parts)}</div>"


def most_telling(rows: Sequence[Row], weight: Callable[[Row], Any]) -> Sequence[Row]:
    """Return rows as they are if all are shown, else those of the largest weight first."""
    return rows if len(rows) <= MOST_ROWS else sorted(rows, key=weight, reverse=True)
