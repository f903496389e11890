"""The report as Markdown, for pull requests and job summaries."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined

from lmc_verify.audits.result import effect
from lmc_verify.report.answers.races import race_answer, race_question
from lmc_verify.report.answers.sentences import asked
from lmc_verify.report.figures.pictures import picture_groups
from lmc_verify.report.model import text
from lmc_verify.report.model.curves import claim_plots
from lmc_verify.report.model.labels import settings_in_words
from lmc_verify.report.model.race_tables import percent
from lmc_verify.report.model.report import Report
from lmc_verify.runs import FOLDER

__all__ = ["LIMIT", "escape", "render_markdown", "shortened"]

LIMIT = 60_000
"""Bytes of the Markdown: GitHub refuses a comment of more than 65,536 characters."""

_CUTS = (0, 1, 2)
"""How much is left out: nothing; claims, controls and races that are as expected; all but the answers."""
_MOST = 12
"""So many failures, planned checks and controls are listed in a Markdown that is cut."""
_RACES = 6
"""So many races are answered in sentences; of more, the table tells enough."""
_ANSWERS = 5
"""So many answers to a question are listed in one."""


def render_markdown(report: Report, folder: str | Path | None = None, *, limit: int = LIMIT, files: bool = True) -> str:
    """Return the report as GitHub-flavoured Markdown, short enough for a pull request.

    Where it is longer than the limit, what is as expected is left out first; it says so.

    Args:
        report: the report.
        folder: where the Markdown will lie, to which links to drawings are relative; by default next to the records.
        limit: of its length, in bytes.
        files: whether it may refer to files next to it, which it cannot where it is shown alone.
    """
    for cut in _CUTS:
        written = _rendered(report, folder, cut, files=files)
        if len(written.encode("utf-8", "replace")) <= limit:
            return written
    return shortened(written, limit)


def shortened(written: str, limit: int) -> str:
    """Return the first lines, as many as the limit allows, and say that the rest is left out."""
    note = "\n\nThe rest is left out: see the HTML report.\n"
    kept = written.encode("utf-8", "replace")[: limit - len(note)].decode("utf-8", "ignore")
    return kept.rpartition("\n")[0].rstrip() + note


def _rendered(report: Report, folder: str | Path | None, cut: int, *, files: bool) -> str:
    base = report.folder if folder is None else Path(folder)
    environment = Environment(  # nosec B701  # for Markdown, whose filter `md` escapes
        loader=PackageLoader("lmc_verify.report"),
        autoescape=False,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(md=escape, number=text.number, duration=text.duration, moment=text.moment)
    environment.filters.update(code=_code, word=text.outcome_word, setting=text.setting, name=text.name)
    environment.filters.update(percent=percent, effect=effect, race_question=race_question, race_answer=race_answer)
    environment.filters.update(level=text.level, e_value=text.e_value, tier=text.tier)
    template = environment.get_template("report.md.j2")
    plots = {section.anchor: claim_plots(section) for section in report.sections}
    written = template.render(
        report=report,
        cut=cut,
        files=files,
        most=_MOST if cut else sys.maxsize,
        races_told=_RACES,
        answers=_ANSWERS if cut else sys.maxsize,
        count=text.count,
        asked=asked(report.sections),
        matrices=(report.matrix,) if cut else report.matrices,
        symbols=text.OUTCOME_SYMBOLS,
        settings_in_words=settings_in_words,
        plots=plots,
        drawing=lambda found: _link(report.folder / FOLDER / f"{found.name}.svg", base),
        picture_groups=picture_groups,
        picture_link=lambda picture: quote(picture.file, safe="/"),  # they are written next to the Markdown
    )
    return re.sub(r"\n{3,}", "\n\n", written)


def escape(value: object) -> str:
    """Escape what Markdown or HTML would take for markup; stay on one line, as table cells must."""
    line = " ".join(text.printable(str(value)).split())
    line = line.replace("&", "&amp;").replace("<", "&lt;")
    line = re.sub(r"([\\`*\[\]|~#])", r"\\\1", line)
    return re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", line)


def _link(file: Path, base: Path) -> str:
    """Return a file as the target of a link in a Markdown file in the folder `base`."""
    path = Path(os.path.relpath(file.absolute(), base.absolute())).as_posix()
    return quote(text.printable(path), safe="/")


def _code(value: str) -> str:
    """Return a fenced block whose fence is longer than any run of backticks inside."""
    longest = max((len(run) for run in re.findall(r"`+", value)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}sh\n{text.printable(value)}\n{fence}"
