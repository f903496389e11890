"""``lmc-verify check-estimator``: the conformance checks of one estimator, from the command line."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from lmc_verify.case import build_estimator
from lmc_verify.commandline import JsonOption, SetOption, case_settings, out_console, print_json
from lmc_verify.console import print_table

__all__ = ["check_estimator"]


def check_estimator(
    name: Annotated[str, typer.Argument(help="Estimator by name, one of a plug-in included.")],
    settings: SetOption = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Root seed of cases and batches.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Check that an estimator keeps the contract and the claims that it declares; exit with 1 if a check fails."""
    from lmc_verify.testing.conformance import Census, Status
    from lmc_verify.testing.conformance import check_estimator as run_checks

    chosen = case_settings({"estimator.name": name}, settings or [])
    results = run_checks(build_estimator(chosen.estimator), seed=seed)
    census = Census.of(results)
    if as_json:
        listed = [{**asdict(result), "status": str(result.status)} for result in results]
        print_json({"estimator": name, "census": asdict(census), "results": listed})
    else:
        rows = [[result.check, result.case, str(result.status), result.detail] for result in results]
        print_table(["check", "case", "status", "detail"], rows, out_console())
        typer.echo(f"{name}: {census}")
    raise typer.Exit(1 if any(result.status is Status.FAILED for result in results) else 0)
