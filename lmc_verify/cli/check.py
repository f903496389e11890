"""Commands that check: ``check``, ``check-estimator`` and ``controls``."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from lmc_verify import cases, claims, runs
from lmc_verify import controls as catalogue
from lmc_verify.cases.verdict import Outcome
from lmc_verify.cli.completion import names
from lmc_verify.cli.listing.texts import kept
from lmc_verify.cli.options import (
    DataRootOption,
    DownloadOption,
    GuaranteeOption,
    JsonOption,
    SetOption,
    out_console,
    outcome_named,
    print_json,
)
from lmc_verify.cli.print_verdicts import print_controls, print_table, print_verdict
from lmc_verify.errors import InvalidInputError, UnknownNameError
from lmc_verify.provenance import environment

if TYPE_CHECKING:
    from lmc_verify.runs import Trial

__all__ = ["check", "check_estimator", "controls"]


def check(
    claim: Annotated[str, typer.Argument(help="Claim id, such as theorem-1/unbiased.", autocompletion=names.claims)],
    estimator: Annotated[
        str, typer.Option("--estimator", help="Estimator by name.", autocompletion=names.estimators)
    ] = "backward-sgd",
    dataset: Annotated[
        str, typer.Option("--dataset", help="Data set by name.", autocompletion=names.datasets)
    ] = "digits",
    data_root: DataRootOption = None,
    download: DownloadOption = False,
    histories: Annotated[
        str, typer.Option("--histories", help="exact, zero, or sweeps:K.", autocompletion=names.histories)
    ] = "exact",
    seed: Annotated[int, typer.Option("--seed", help="Root seed.")] = 0,
    settings: SetOption = None,
    expect: Annotated[
        str | None,
        typer.Option(
            "--expect",
            help="Expected outcome (default: what theory predicts for this case).",
            autocompletion=names.outcomes,
        ),
    ] = None,
    guarantee: GuaranteeOption = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 3 if the verdict is inconclusive.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Check one claim on one case; exit with 0 if it is as expected, or INCONCLUSIVE where theory expects another."""
    claims.require_claim(claim)
    chosen_settings = cases.case_settings(
        {"dataset.name": dataset, "estimator.name": estimator, "histories": histories, "seed": seed},
        [*(settings or []), *([] if guarantee is None else [f"sampling.guarantee={guarantee}"])],
    )
    cases.check_names(chosen_settings)
    wanted = outcome_named(expect)
    chosen = claims.find_claim(claim)
    claims.require_read([chosen], chosen_settings)
    workspace = cases.Workspace(data_root, download)
    start = time.perf_counter()
    case = cases.build_case(chosen_settings, workspace)
    theory = chosen.expect(case)
    expected, reason = (theory.outcome, f"theory: {theory.reason}") if wanted is None else (wanted, "as asked for")
    trial = runs.run_planned(runs.Planned("claim", chosen.id, chosen_settings, expected), workspace)
    verdict = trial.verdict
    # Theory does not know how much data there is: a verdict that decides nothing does not contradict it. Who asks for
    # an outcome, here or in a suite, asks for a decision.
    undecided = verdict.outcome is Outcome.INCONCLUSIVE and expected is not Outcome.INCONCLUSIVE and wanted is None
    as_expected = None if expected is None or undecided else verdict.outcome is expected
    if as_json:
        print_json(
            {
                "verdict": verdict.to_dict(),
                "expected": None if expected is None else expected.value,
                "as_expected": as_expected,
                "reason": reason,
                "seconds": time.perf_counter() - start,
                "command": cases.reproduction_command(chosen.id, chosen_settings),
                "environment": environment(),
            }
        )
    else:
        print_verdict(verdict, expected, reason, out_console(), as_expected=as_expected)
    raise typer.Exit(_verdict_code(trial, as_expected, strict))


def _verdict_code(trial: Trial, as_expected: bool | None, strict: bool) -> int:
    if trial.crashed:
        return 5
    if as_expected is False:
        return 1
    return 3 if strict and trial.verdict.outcome is Outcome.INCONCLUSIVE else 0


def controls(
    names: Annotated[
        list[str] | None, typer.Argument(help="Controls by name (default: all).", autocompletion=names.controls)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Run the controls: sound estimators must pass, seeded defects must be caught; exit with 4 if one is missed."""
    for name in names or []:  # before their modules are imported
        if name not in kept()["controls"]:
            raise UnknownNameError("control", name, kept()["controls"])
    chosen = [catalogue.find_control(name) for name in names or catalogue.CONTROLS]
    workspace = cases.Workspace()
    trials = [runs.run_planned(runs.Planned.of_control(item), workspace) for item in chosen]
    if as_json:
        score = catalogue.MutationScore.of(trial.control for trial in trials if trial.control is not None)
        print_json({"controls": [trial.to_dict() for trial in trials], "mutation_score": score.to_dict()})
    else:
        print_controls(trials, out_console())
    missed = any(trial.as_expected is False and not trial.crashed for trial in trials)
    raise typer.Exit(4 if missed else 5 if any(trial.crashed for trial in trials) else 0)


def check_estimator(
    name: Annotated[
        str, typer.Argument(help="Estimator by name, including those of plug-ins.", autocompletion=names.estimators)
    ],
    settings: SetOption = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Root seed of cases and batches.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Check that an estimator satisfies the contract and the claims that it declares; exit with 1 if a check fails."""
    chosen = cases.case_settings({"estimator.name": name}, settings or [])
    others = sorted(chosen.model_fields_set - {"estimator"})
    if others:
        raise InvalidInputError(
            f"{others[0]} cannot be set in a conformance check, which has cases of its own; settings of estimator can"
        )
    cases.check_names(chosen)
    from lmc_verify.testing.conformance import Census, Status
    from lmc_verify.testing.conformance import check_estimator as run_checks

    results = run_checks(cases.build_estimator(chosen.estimator), seed=seed)
    census = Census.of(results)
    if as_json:
        listed = [{**asdict(result), "status": str(result.status)} for result in results]
        print_json({"estimator": name, "census": asdict(census), "results": listed})
    else:
        rows = [[result.check, result.case, str(result.status), result.detail] for result in results]
        print_table(["check", "case", "status", "detail"], rows, out_console())
        typer.echo(f"{name}: {census}")
    raise typer.Exit(1 if any(result.status is Status.FAILED for result in results) else 0)
