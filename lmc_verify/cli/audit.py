"""The command ``audit``: is the gradient of a user's training step unbiased; if not, how large is the bias, and why?"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lmc_verify import audits, cases, runs
from lmc_verify.cases.verdict import Outcome
from lmc_verify.cli.completion import names
from lmc_verify.cli.options import JsonOption, outcome_named, print_json
from lmc_verify.cli.run import How, run_and_report
from lmc_verify.errors import InvalidInputError, validated
from lmc_verify.provenance import environment
from lmc_verify.runs.functions import refuse_no_function

if TYPE_CHECKING:
    from lmc_verify.cases.verdict import Verdict
    from lmc_verify.runs import PlannedAudit, Trial

__all__ = ["audit"]

_UNBIASED = (Outcome.EXACT, Outcome.SUPPORTED)


def audit(
    function: Annotated[
        str,
        typer.Argument(help="module:function or path/to/file.py:function; it returns what lmc_verify.audit takes."),
    ],
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Keyword argument of the function. Repeatable."),
    ] = None,
    draws: Annotated[int | None, typer.Option("--draws", help="Batches to draw, where not all are evaluated.")] = None,
    alpha: Annotated[float, typer.Option("--alpha", help="Error probability of an outcome from draws.")] = 1e-4,
    guarantee: Annotated[
        str | None, typer.Option("--guarantee", help="The weakest that decides: exact, anytime-valid or asymptotic.")
    ] = None,
    delta: Annotated[
        float | None, typer.Option("--delta", help="A bias up to this, in gradient norms, is SUPPORTED by draws.")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Root seed, also of the function.")] = None,
    expect: Annotated[
        str | None,
        typer.Option("--expect", help="Expected outcome (default: unbiased).", autocompletion=names.outcomes),
    ] = None,
    cause: Annotated[
        list[str] | None, typer.Option("--cause", help="Expected cause of the bias, by id. Repeatable: all of them.")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 3 if the verdict is inconclusive.")] = False,
    out: Annotated[Path | None, typer.Option("--out", help="Also write records and a report into this folder.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Audit a training step of yours; exit with 0 if it is unbiased or as expected, with 1 if not, with 5 if broken."""
    values = {
        "function": function,
        "arguments": cases.settings_tree({}, settings or []),
        "draws": draws,
        "alpha": alpha,
        "guarantee": guarantee,
        "delta": delta,
        "seed": seed,
    }
    refuse_no_function(function)
    wanted = outcome_named(expect)
    if cause and wanted is not Outcome.REFUTED:
        raise InvalidInputError("--cause names what explains a bias; give it together with --expect REFUTED")
    chosen = validated(runs.AuditSettings, values, "the audit's settings do not fit")
    planned = runs.PlannedAudit(chosen, wanted, tuple(cause) if cause else None)
    planned.validate()
    start = time.perf_counter()
    trial, files = _made(planned) if out is None else _reported(planned, out)
    as_expected = _as_expected(trial)
    if as_json:
        print_json(
            {
                "verdict": trial.verdict.to_dict(),
                "expected": trial.expectation,
                "as_expected": as_expected,
                "seconds": time.perf_counter() - start,
                "command": trial.command,
                "environment": environment(),
                "files": files,
            }
        )
    else:
        _print(trial, as_expected, files)
    raise typer.Exit(_code(trial, as_expected, strict))


def _made(planned: PlannedAudit) -> tuple[Trial, dict[str, str]]:
    """Make the audit here, with every error as it is."""
    verdict = runs.verdict_of_audit(runs.make_audit(planned.settings), planned.settings)
    return runs.Trial(
        planned.key,
        planned.kind,
        verdict,
        planned.expected_name,
        planned.command,
        seconds=0.0 if verdict.audit is None else verdict.audit["cost"]["seconds"],
        expected_causes=planned.causes,
    ), {}


def _reported(planned: PlannedAudit, folder: Path) -> tuple[Trial, dict[str, str]]:
    """Make the audit as a suite of its own, which is recorded and reported."""
    result, _, paths = run_and_report(runs.Suite.of_audit(planned), folder, cases.Workspace(), how=How(in_process=True))
    return result.trials[0], {key: str(path) for key, path in paths.items()}


def _as_expected(trial: Trial) -> bool | None:
    """Return whether the outcome is the one asked for, by default that the step is unbiased; None if undecided."""
    if trial.expected is not None:
        return trial.as_expected
    outcome = trial.verdict.outcome
    return None if outcome is Outcome.INCONCLUSIVE else outcome in _UNBIASED


def _code(trial: Trial, as_expected: bool | None, strict: bool) -> int:
    if trial.crashed:
        return 5
    if as_expected is False:
        return 1
    return 3 if strict and trial.verdict.outcome is Outcome.INCONCLUSIVE else 0


def _print(trial: Trial, as_expected: bool | None, files: dict[str, str]) -> None:
    verdict: Verdict = trial.verdict
    made: Any = verdict.audit
    typer.echo(f"{verdict.outcome}: {verdict.summary}" if made is None else str(audits.Audit.from_dict(made)))
    if trial.expectation is not None:
        words = "as expected" if as_expected else "UNEXPECTED"
        typer.echo(f"{words}: {trial.found}, expected {trial.expectation}")
    typer.echo(f"again: {trial.command}")
    for key, path in files.items():
        typer.echo(f"{key}: {path}")
