"""The command ``lmc-verify init``: write what a project needs to keep its gradient unbiased, and overwrite nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lmc_verify.cli.init.files import NOX_FILE, Files, nox_session, write_files
from lmc_verify.cli.options import JsonOption, print_json, shown

__all__ = ["init"]

_NEXT = """\
  python -m pytest test_gradients.py
  lmc-verify run lmc-verify.toml --out lmc-verify-report
Then put your data, model, batches and step into lmc_loop.py, where it says REPLACE.
"""


def init(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Root of the project; it is made if there is none.")
    ] = Path(),
    as_json: JsonOption = False,
) -> None:
    """Write a loop to replace with yours, its test, a suite, a nox session and a workflow; overwrite nothing."""
    files = write_files(folder)
    if as_json:
        print_json({"folder": str(folder), "written": files.written, "left_alone": files.left_alone})
        return
    for name in files.written:
        typer.echo(f"written: {shown(str(folder / name))}")
    for name in files.left_alone:
        typer.echo(f"left alone, for it exists: {shown(str(folder / name))}")
    _print_session(folder, files)
    typer.echo("next:" if folder == Path() else f"next, in {shown(str(folder))}:")
    typer.echo(_NEXT, nl=False)


def _print_session(folder: Path, files: Files) -> None:
    """Print the nox session where it could not be written, unless it is there."""
    session = nox_session(folder)
    if NOX_FILE in files.left_alone and session is not None:
        typer.echo(f"to have the session, put this into {shown(str(folder / NOX_FILE))}:\n\n{session}")
