"""What the commands share: options, the settings of a case from dotted keys, and how answers are printed."""

from __future__ import annotations

import json
import os
import sys
import unicodedata
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from lmc_verify.cases.verdict import Outcome
from lmc_verify.cli.completion import names
from lmc_verify.encoding import published
from lmc_verify.errors import UnknownNameError, folder_error

__all__ = [
    "DOCUMENTATION",
    "RECORDS_FILE",
    "REPOSITORY",
    "DataRootOption",
    "DownloadOption",
    "GuaranteeOption",
    "InProcessOption",
    "JobsOption",
    "JsonOption",
    "RetryOption",
    "SetOption",
    "TimeoutOption",
    "err_console",
    "out_console",
    "outcome_named",
    "print_json",
    "records_file",
    "shown",
    "writable",
]

DOCUMENTATION = "https://lmc-verify.readthedocs.io/en/latest/"
"""Where the documentation of the package is."""

REPOSITORY = "https://github.com/lmc-verify/lmc-verify"
"""Where the package is developed."""

RECORDS_FILE = "records.sqlite"
"""Name of the records in a run's output folder."""

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output, nothing else.")]

DataRootOption = Annotated[
    Path | None,
    typer.Option("--data-root", help="Folder with raw files of real data sets (default: $LMC_VERIFY_DATA_ROOT)."),
]

DownloadOption = Annotated[bool, typer.Option("--download", help="Download raw files that are missing.")]

GuaranteeOption = Annotated[
    str | None,
    typer.Option(
        "--guarantee",
        autocompletion=names.guarantees,
        help="Weakest guarantee of a verdict: asymptotic (default) or anytime-valid, whatever a suite says.",
    ),
]

RetryOption = Annotated[bool, typer.Option("--retry", help="As --resume, and run again what crashed or took too long.")]

TimeoutOption = Annotated[
    float | None,
    typer.Option("--timeout", metavar="SECONDS", help="Time that a part of the run may take (default: any)."),
]

InProcessOption = Annotated[
    bool,
    typer.Option(
        "--in-process",
        envvar="LMC_VERIFY_IN_PROCESS",
        help="Run in this process where there is no time limit and one job, as debuggers need it: what ends it ends "
        "the run.",
    ),
]

JobsOption = Annotated[int, typer.Option("--jobs", help="Number of processes; -1 for one on each core.")]

SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        autocompletion=names.settings,
        help="Any setting, such as estimator.beta=0.4, model.layers=2, design.parts=40. Repeatable. "
        "lmc-verify settings lists them.",
    ),
]


def out_console() -> Console:
    """Return the console of standard output."""
    # Without a terminal, tables must not be squeezed into 80 columns: they go to logs.
    width = None if sys.stdout.isatty() else max(160, int(os.environ.get("COLUMNS", "0") or 0))
    return Console(width=width)


def err_console() -> Console:
    """Return the console of standard error."""
    return Console(stderr=True)


def outcome_named(name: str | None) -> Outcome | None:
    """Return the outcome that an option names, in any case and with either hyphen; None for None.

    Raises:
        UnknownNameError: there is none of this name.
    """
    if name is None:
        return None
    wanted = name.upper().replace("-", "_")
    if wanted not in Outcome.__members__:
        raise UnknownNameError("outcome", wanted, Outcome.__members__)
    return Outcome(wanted)


def records_file(folder: Path) -> Path:
    """Return the records of an output folder, which must be there; a records file is its own.

    Raises:
        RecordsError: there is no such file.
    """
    from lmc_verify.runs.store import require_records  # before what reads them is imported, which takes seconds

    file = folder / RECORDS_FILE if folder.is_dir() else folder
    require_records(file)
    return file


def print_json(document: Any) -> None:
    """Print a document as strict JSON; NaN and infinities, which JSON lacks, are strings, as in report.json."""
    typer.echo(json.dumps(published(document), indent=2, sort_keys=False, allow_nan=False))


def shown(text: str) -> str:
    """Return a text as a terminal may have it: control characters, which could move it or change it, as ``\\x1b``.

    Names of plug-ins, suites and files come from others.
    """
    return "".join(c if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cf") else ascii(c)[1:-1] for c in text)


def writable(folder: Path) -> None:
    """Make a folder.

    Raises:
        InvalidInputError: it is a file, or in one.
        OutputError: nothing can be written there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".write-test-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise folder_error(
            folder, error, f"cannot write to the output folder {folder}", instead="choose another one with --out"
        ) from error
