"""A comparison as a page in the style of the report, and as Markdown."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from lmc_verify.races import Median
from lmc_verify.report.comparison.changes import Change
from lmc_verify.report.comparison.comparison import Comparison
from lmc_verify.report.comparison.document import comparison_json
from lmc_verify.report.comparison.measures import LEVEL
from lmc_verify.report.comparison.results import Effect, Result
from lmc_verify.report.formats.breaks import command, path
from lmc_verify.report.formats.markdown import LIMIT, escape, shortened
from lmc_verify.report.model import text
from lmc_verify.report.writing import write_files

__all__ = ["comparison_html", "comparison_markdown", "write_comparison"]

_MOST = 50
"""So many lines a list of the Markdown has."""
_LONGEST = 200
"""So many characters a reason or a summary of the Markdown has."""


def write_comparison(made: Comparison, folder: str | Path) -> dict[str, Path]:
    """Write a comparison as ``comparison.html``, ``.md`` and ``.json`` into a folder; return format -> path.

    Raises:
        OutputError: the folder cannot be made or written to.
    """
    place = Path(folder)
    paths = {
        name: place / f"comparison.{end}" for name, end in (("html", "html"), ("markdown", "md"), ("json", "json"))
    }
    written = (comparison_html(made), comparison_markdown(made), comparison_json(made))
    write_files(place, dict(zip(paths.values(), written, strict=True)), "comparison")
    return paths


def comparison_html(made: Comparison) -> str:
    """Return a comparison as one self-contained HTML page, without scripts."""
    return _environment(html=True).get_template("comparison.html.j2").render(**_values(made), most=sys.maxsize)


def comparison_markdown(made: Comparison) -> str:
    """Return a comparison as GitHub-flavoured Markdown, short enough for a pull request."""
    written = _environment(html=False).get_template("comparison.md.j2").render(**_values(made), most=_MOST)
    written = re.sub(r"\n{3,}", "\n\n", written)
    return written if len(written.encode("utf-8", "replace")) <= LIMIT else shortened(written, LIMIT)


def _environment(*, html: bool) -> Environment:
    made = Environment(  # nosec B701  # Markdown, whose filter `md` escapes, is the one without
        loader=PackageLoader("lmc_verify.report"),
        autoescape=html,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=_finalize,
    )
    made.filters.update(md=escape, duration=text.duration, moment=text.moment, effect=_effect, median=_median)
    made.filters.update(result=_result, brief=_brief, command=command, path=path)
    return made


def _values(made: Comparison) -> dict[str, Any]:
    """Return what both templates show."""
    lists: list[tuple[str, tuple[Change, ...]]] = [
        ("Regressions", made.of("regression")),
        ("Mended", made.of("mended")),
        ("Changed otherwise", made.of("changed")),
        ("Failing in both", made.of("failing")),
        ("Only in A, and not asked of B", made.of("only in A")),
        ("Only in B", made.of("only in B")),
    ]
    cases = {item.name for item in made.of("regression")}
    return {
        "made": made,
        "lists": [(title, items) for title, items in lists if items],
        "others": [(name, reason) for name, reason in made.regressions if name not in cases],
        "other_cases": [item for item in made.changes if item.differences],
        "interval": text.interval,
        "count": text.count,
        "level": f"{100 * (1 - LEVEL):g}%",
    }


def _brief(words: str) -> str:
    """Cut what would not fit into a line of a table; the HTML page has all of it."""
    return words if len(words) <= _LONGEST else f"{words[: _LONGEST - 1]}…"


def _result(item: Result | None) -> str:
    """Return a result in a few words; its absence as a dash."""
    return text.ABSENT if item is None else item.words


def _effect(item: Effect) -> str:
    """Return the size of an effect with its interval."""
    return _with_interval(text.number(item.value), item.low, item.high)


def _median(item: Median | None) -> str:
    """Return a median over seeds with its interval."""
    return text.ABSENT if item is None else _with_interval(text.number(item.value), item.low, item.high)


def _with_interval(words: str, low: float | None, high: float | None) -> str:
    return words if low is None and high is None else f"{words} {text.interval(low, high)}"


def _finalize(value: Any) -> Any:
    """Keep control characters out of the page."""
    return text.printable(value) if type(value) is str else value
