"""Every format of a report into a folder: all files are replaced, or none."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Callable, Mapping
from itertools import chain
from pathlib import Path

from lmc_verify.errors import folder_error
from lmc_verify.report.figures.pictures import HEADLINE, claim_pictures, pictures, standalone
from lmc_verify.report.formats.html import render_html
from lmc_verify.report.formats.json_document import render_json
from lmc_verify.report.formats.junit import render_junit
from lmc_verify.report.formats.markdown import render_markdown
from lmc_verify.report.model.report import Report

__all__ = ["write_files", "write_report"]

_FILES: dict[str, tuple[str, Callable[[Report, Path], str]]] = {
    "html": ("report.html", lambda report, _: render_html(report)),
    "markdown": ("report.md", render_markdown),
    "json": ("report.json", lambda report, _: render_json(report)),
    "junit": ("junit.xml", lambda report, _: render_junit(report)),
}


def write_report(report: Report, out_dir: str | Path) -> dict[str, Path]:
    """Write the report in every format and return format -> path.

    Pictures of races, to which the Markdown refers, and the curves on the first screen are files too, in the folder
    ``figures``. All formats are rendered, and written next to their places, before the first file is replaced: what
    fails on the way leaves an older report as it was.

    Raises:
        OutputError: the folder cannot be made or written to.
    """
    folder = Path(out_dir)
    paths = {key: folder / file for key, (file, _) in _FILES.items()}
    contents = {paths[key]: render(report, folder) for key, (_, render) in _FILES.items()}
    first = [section for section in report.sections if section.claim.id == HEADLINE and not section.audited]
    for picture in chain(*map(pictures, report.races), *map(claim_pictures, first)):
        contents[folder / picture.file] = standalone(picture)
    write_files(folder, contents, "report")
    return paths


def write_files(folder: Path, contents: Mapping[Path, str], what: str) -> None:
    """Write texts to files: all are replaced, or none.

    Args:
        folder: that the files are in.
        contents: file -> text.
        what: they are, for the message of an error.

    Raises:
        OutputError: a folder cannot be made or written to.
    """
    mark = secrets.token_hex(4)
    waiting = {path: path.parent / f".{path.name}.{mark}.tmp" for path in contents}
    try:
        for path in contents:
            path.parent.mkdir(parents=True, exist_ok=True)
        for path, content in contents.items():
            with waiting[path].open("xb") as stream:
                stream.write(content.encode("utf-8", "replace"))
                stream.flush()
                os.fsync(stream.fileno())
        for path in contents:
            if path.is_dir():
                raise IsADirectoryError(f"{path} is a folder")
        for path in contents:
            os.replace(waiting[path], path)
    except OSError as error:
        instead = "choose another output folder, or make this one writable and free some space"
        raise folder_error(folder, error, f"cannot write the {what} into {folder}", instead=instead) from error
    finally:
        with contextlib.suppress(OSError):
            for path in waiting.values():
                path.unlink(missing_ok=True)
