"""The command line: ``lmc-verify init | run | merge | report | compare | table | check | audit | check-estimator |
counterexample | reproduce | train | race | exact | controls | records | settings | list | explain | doctor``.

Exit codes: 0 as expected; 1 a claim has another verdict than expected, a search another result, an estimator fails a
conformance check, the checks spent more than alpha_total, or a training run diverged; 2 usage or configuration;
3 inconclusive under ``--strict``; 4 a control failed; 5 a crash, a run that did not finish, or a disk or folder that
cannot be written or read; 6 nothing was checked; 130 interrupted, can be resumed.
"""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path
from typing import Annotated

import typer

from lmc_verify._version import __version__
from lmc_verify.cli.audit import audit
from lmc_verify.cli.check import check, check_estimator, controls
from lmc_verify.cli.compare import compare
from lmc_verify.cli.completion.install import complete_at_once, installs, take_name
from lmc_verify.cli.completion.words import rejoin
from lmc_verify.cli.exact import exact
from lmc_verify.cli.init import init
from lmc_verify.cli.listing import doctor, explain, list_names
from lmc_verify.cli.options import DOCUMENTATION, print_json, shown
from lmc_verify.cli.replay import counterexample, reproduce
from lmc_verify.cli.run import merge, records, report, run, table
from lmc_verify.cli.settings import settings
from lmc_verify.cli.train import race, train
from lmc_verify.errors import LmcVerifyError

__all__ = ["app", "main"]

app = typer.Typer(
    name="lmc-verify",
    help="Verify and benchmark the convergence claims of graph neural network training.",
    epilog=f"Documentation: {DOCUMENTATION}",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"lmc-verify {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Verify and benchmark the convergence claims of graph neural network training."""


app.command()(init)
app.command()(run)
app.command()(merge)
app.command()(report)
app.command()(compare)
app.command()(table)
app.command()(check)
app.command()(audit)
app.command()(check_estimator)
app.command()(counterexample)
app.command()(reproduce)
app.command()(train)
app.command()(race)
app.command()(exact)
app.command()(controls)
app.add_typer(records, name="records")
app.command()(settings)
app.command("list")(list_names)
app.command()(explain)
app.command()(doctor)


def main() -> None:
    """Entry point: turn the package's errors into one clear line and their exit codes."""
    if os.environ.get("_LMC_VERIFY_COMPLETE") == "complete_bash":
        rejoin(os.environ)
    take_name(sys.argv[1:], os.environ)
    try:
        app(prog_name="lmc-verify")
    except LmcVerifyError as error:
        if "--json" in sys.argv:
            print_json({"error": str(error), "type": type(error).__name__, "exit_code": error.exit_code})
        print(f"lmc-verify: {shown(str(error))}", file=sys.stderr)
        sys.exit(error.exit_code)
    except Exception:  # Python's own exit code for it is 1, which says that a claim has an unexpected verdict
        traceback.print_exc()
        sys.exit(5)
    finally:
        if installs(sys.argv[1:]):
            complete_at_once(Path.home())
