"""What the command line prints: progress, verdict tables, listings. Plain lines where there is no terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lmc_verify import controls
from lmc_verify.cases.verdict import AUDIT, Outcome
from lmc_verify.cli.options import shown
from lmc_verify.estimators.weighting import renamed

if TYPE_CHECKING:
    from lmc_verify.cases.verdict import Verdict
    from lmc_verify.report import RaceSection
    from lmc_verify.runs import RunResult, SearchRecord, Trial

__all__ = [
    "print_controls",
    "print_race",
    "print_races",
    "print_result",
    "print_reused",
    "print_table",
    "print_verdict",
]

_STYLE = {
    Outcome.EXACT: "green",
    Outcome.SUPPORTED: "green",
    Outcome.REFUTED: "yellow",
    Outcome.INCONCLUSIVE: "magenta",
    Outcome.VACUOUS: "magenta",
    Outcome.NOT_APPLICABLE: "dim",
    Outcome.ERROR: "bold red",
}


_TOO_SMALL = "not decided: the effect is below what the check can detect"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1e}"


def print_result(result: RunResult, console: Console) -> None:
    """Print the verdict table of a run, its controls, and what was not run; races are printed by `print_races`."""
    claims = [trial for trial in result.trials if trial.kind == "claim"]
    audits = [trial for trial in claims if trial.verdict.claim == AUDIT]
    if len(claims) > len(audits) or not (audits or result.race_runs):
        _print_verdicts([trial for trial in claims if trial.verdict.claim != AUDIT], console)
    _print_audits(audits, console)
    _print_controls(result, console)
    statistical = sum(trial.verdict.alpha_spent > 0 for trial in claims)
    if statistical:
        asymptotic = result.alpha_spent_asymptotic
        proven = result.alpha_spent - asymptotic
        apart = f" (spent, anytime-valid: {proven:.2g}; spent, asymptotic: {asymptotic:.2g})" if asymptotic else ""
        console.print(
            f"error ledger: {result.alpha_spent:.2g} of {result.alpha_total:.2g} spent over {statistical} statistical "
            f"check{'' if statistical == 1 else 's'}{apart}{', MORE THAN ALPHA_TOTAL' if result.overspent else ''}",
            highlight=False,
            soft_wrap=True,
        )
    _print_searches(result.searches, console)
    reasons: dict[str, int] = {}
    for _, reason in result.not_run:
        reasons[reason] = reasons.get(reason, 0) + 1
    for reason, count in reasons.items():
        console.print(
            f"not run: {count} planned {'check' if count == 1 else 'checks'}: {reason}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
    good = sum(trial.as_expected is True for trial in claims)
    if claims or not result.race_runs:
        console.print(f"{good} of {len(claims)} verdicts as expected", highlight=False)


def _print_verdicts(claims: Sequence[Trial], console: Console) -> None:
    table = Table(title="Verdicts", title_justify="left")
    for name in ("claim", "data set", "estimator", "case"):
        table.add_column(name, overflow="fold")
    table.add_column("residual", justify="right")
    table.add_column("tolerance", justify="right")
    table.add_column("verdict")
    table.add_column("")
    for trial in claims:
        verdict, case = trial.verdict, trial.verdict.case
        details = [case.model or "", case.activation_cut or "", case.design or ""]
        if case.normaliser not in (None, "inclusion"):
            details.append(f"weighting={case.normaliser}")
        if "beta" in case.estimator_settings:
            details.append(f"beta={case.estimator_settings['beta']}")
        if case.histories not in (None, "exact"):
            details.append(f"histories={case.histories}")
        style = _STYLE[verdict.outcome]
        table.add_row(
            verdict.claim,
            case.dataset or "",
            case.estimator or "",
            escape(" ".join(details)),
            _number(verdict.residual),
            _number(verdict.tolerance),
            f"[{style}]{verdict.outcome.value}[/]",
            "" if trial.as_expected else f"[bold red]expected {trial.expected}[/]",
        )
    console.print(table)


def _print_audits(audits: Sequence[Trial], console: Console) -> None:
    if not audits:
        return
    from lmc_verify.audits.result import percent

    table = Table(title="Audits", title_justify="left")
    for name in ("function", "arguments"):
        table.add_column(name, overflow="fold")
    table.add_column("bias", justify="right")
    table.add_column("from ... to")
    for name in ("guarantee", "verdict", "causes", ""):
        table.add_column(name)
    for trial in audits:
        verdict, case = trial.verdict, trial.verdict.case
        made = verdict.audit
        style = _STYLE[verdict.outcome]
        table.add_row(
            case.function or "",
            escape(", ".join(f"{key}={value}" for key, value in case.arguments.items())),
            "" if made is None else percent(made["bias"]),
            "" if made is None else f"{percent(made['low'])} ... {percent(made['high'])}",
            "" if made is None else made["guarantee"],
            f"[{style}]{verdict.outcome.value}[/]",
            ", ".join(verdict.causes),
            "[bold red]expected " + escape(str(trial.expectation)) + "[/]" if trial.as_expected is False else "",
        )
    console.print(table)
    for trial in audits:
        if trial.verdict.audit is None:  # it crashed, or broke its contract
            line = f"  {trial.verdict.case.function}: {trial.verdict.summary}"
            console.print(line, markup=False, highlight=False, soft_wrap=True)


def _print_controls(result: RunResult, console: Console) -> None:
    checked = [trial for trial in result.trials if trial.kind == "control"]
    if checked:
        passed = sum(trial.as_expected is True for trial in checked)
        console.print(f"{passed} of {len(checked)} controls passed", highlight=False)
        for trial in checked:
            if trial.as_expected is not True and trial.control is not None:
                state = "FAILED" if trial.as_expected is False else _TOO_SMALL
                console.print(
                    f"  {trial.control.name}: {state}: {trial.verdict.summary}", markup=False, highlight=False
                )


def print_reused(result: RunResult, console: Console) -> None:
    """Print how much of a run was taken from an earlier one, if anything was."""
    if result.reused:
        kinds = {"trials": result.trials, "searches": result.searches, "training runs": result.race_runs}
        what = " and ".join(kind for kind, items in kinds.items() if items)
        console.print(f"{result.reused} {what} reused from an earlier run", highlight=False)


def print_races(races: Sequence[RaceSection], console: Console) -> None:
    """Print the first tables of every race, and which races were not run."""
    for race in races:
        console.print()
        _print_race(race, console)


def print_race(race: RaceSection, console: Console) -> None:
    """Print one race by itself: its tables, how to read them, its target, and why runs never reached it."""
    _print_race(race, console, notes=True)
    console.print(f"target: {race.target_words}", markup=False, highlight=False, soft_wrap=True)
    for entry in () if race.record is None else race.record.entries:
        if entry.reason and entry.status != "failed":  # those are printed first
            line = f"  {entry.label}, seed {entry.seed}: {entry.reason}"
            console.print(line, markup=False, highlight=False, soft_wrap=True)


def _print_race(race: RaceSection, console: Console, *, notes: bool = False) -> None:
    console.print(f"{escape(race.title)} on {escape(race.dataset)}: {escape(race.state)}", highlight=False)
    if race.header.reason:
        console.print(f"not run: {race.header.reason}", markup=False, highlight=False, soft_wrap=True)
    for item in race.crashed:
        line = f"CRASHED: {item.entry.label}, seed {item.entry.seed}: {item.entry.reason}"
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    for listed in race.tables:
        table = Table(title=escape(listed.title), title_justify="left")
        for number, column in enumerate(listed.columns):
            table.add_column(escape(column), overflow="fold", justify="right" if number else "left")
        for row in listed.rows:
            table.add_row(*(escape(cell) for cell in row))
        console.print(table)
        if notes and listed.note:
            console.print(listed.note, markup=False, highlight=False, soft_wrap=True)


def _print_searches(searches: Sequence[SearchRecord], console: Console) -> None:
    if not searches:
        return
    good = sum(item.as_expected for item in searches)
    console.print(f"{good} of {len(searches)} searches for counterexamples as expected", highlight=False)
    for item in searches:
        state = "" if item.as_expected else "CRASHED: " if item.crashed else f"expected {item.expected}: "
        line = f"  {item.claim} {item.estimator}: {state}{item.summary}"
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def print_verdict(
    verdict: Verdict, expected: Outcome | None, reason: str, console: Console, *, as_expected: bool | None
) -> None:
    """Print one verdict with its evidence.

    Args:
        verdict: the verdict.
        expected: what was expected, or None.
        reason: why that was expected, or why nothing was.
        console: where to print.
        as_expected: whether the verdict is what was expected; None if nothing was, or if the verdict decides nothing.
    """
    style = _STYLE[verdict.outcome]
    console.print(
        f"[{style}]{verdict.outcome.value}[/] {escape(verdict.claim)}: {escape(verdict.summary)}", soft_wrap=True
    )
    why = reason.removeprefix("theory: ")
    if expected is None:
        console.print(f"no expectation: {escape(why)}", highlight=False, soft_wrap=True)
    else:
        mark = {
            True: f"as expected ({expected.value})",
            False: f"[bold red]unexpected[/] (expected {expected.value})",
            None: f"undecided (expected {expected.value})",
        }[as_expected]
        console.print(f"{mark}: {escape(why)}", highlight=False, soft_wrap=True)
    # Records keep the former name of the loss weighting. One setting at a time: a model's may be called weighting, too.
    settings = (renamed({key: value}) for key, value in verdict.case.to_dict().items())
    case = ", ".join(f"{key}={value}" for setting in settings for key, value in setting.items())
    console.print(f"case: {case}", markup=False, highlight=False, soft_wrap=True)
    for item in verdict.assumptions:
        symbol = {True: "holds", False: "FAILS", None: "not checked"}[item.holds]
        detail = f" ({item.detail})" if item.detail else ""
        console.print(f"  assumption {symbol}: {item.statement}{detail}", markup=False, highlight=False, soft_wrap=True)
    if verdict.evidence:
        table = Table(box=None)
        for name, justify in (
            ("group", "left"),
            ("quantity", "left"),
            ("value", "right"),
            ("tolerance", "right"),
            ("unit", "left"),
        ):
            table.add_column(name, justify="right" if justify == "right" else "left")
        for piece in verdict.evidence:
            table.add_row(
                piece.group, escape(piece.quantity), f"{piece.value:.3g}", _number(piece.tolerance), piece.unit
            )
        console.print(table)


def print_controls(trials: Sequence[Trial], console: Console) -> None:
    """Print one line per control, details of those that did not pass, and the mutation score."""
    table = Table(box=None, pad_edge=False)
    for name in ("control", "claim", "role"):
        table.add_column(name, overflow="fold")
    table.add_column("effect", justify="right")
    table.add_column("detectable", justify="right")
    table.add_column("verdict")
    table.add_column("")
    kept = [trial.control for trial in trials if trial.control is not None]
    for trial, control in zip(trials, kept, strict=True):
        verdict = trial.verdict
        table.add_row(
            escape(control.name),
            escape(verdict.claim),
            control.role,
            _number(control.effect),
            _number(verdict.minimum_detectable_effect),
            verdict.outcome.value,
            {True: "passed", False: "[bold red]FAILED[/]", None: "not decided"}[trial.as_expected],
        )
    console.print(table)
    for trial, control in zip(trials, kept, strict=True):
        if trial.as_expected is not True:
            state = "FAILED" if trial.as_expected is False else _TOO_SMALL
            line = f"{control.name} ({control.description}): {state}: {trial.verdict.summary}"
            console.print(line, markup=False, highlight=False, soft_wrap=True)
    if any(control.role == "defect" for control in kept):
        console.print(str(controls.MutationScore.of(kept)), markup=False, highlight=False, soft_wrap=True)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], console: Console) -> None:
    """Print a listing."""
    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(escape(shown(cell)) for cell in row))
    console.print(table)
