"""The command line: ``lmc-verify run | report | table | check | check-estimator | counterexample | reproduce | train |
race | controls | list | explain | doctor``.

Exit codes: 0 as expected; 1 a claim has another verdict than expected, a search another result, an estimator fails a
conformance check, or the checks spent more error probability than there is, or a training run diverged; 2 usage or
configuration; 3 inconclusive under ``--strict``; 4 a control failed; 5 a crash; 6 nothing was checked; 130 interrupted,
to be gone on with.
"""

from __future__ import annotations

import importlib.metadata
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from lmc_verify import __version__
from lmc_verify.case import Workspace, build_case
from lmc_verify.claims import CLAIMS, Outcome, find_claim
from lmc_verify.commandline import (
    RECORDS_FILE,
    DataRootOption,
    DownloadOption,
    JsonOption,
    SetOption,
    err_console,
    out_console,
    print_json,
    writable,
)
from lmc_verify.commandline import case_settings as _case_settings
from lmc_verify.conformancecommand import check_estimator
from lmc_verify.console import print_controls, print_races, print_result, print_table, print_verdict, progress
from lmc_verify.controls import CONTROLS, MutationScore, find_control
from lmc_verify.datasets import dataset_registry
from lmc_verify.errors import InvalidInputError, LmcVerifyError, UnknownNameError
from lmc_verify.estimators import CATALOGUE, ESTIMATORS, EstimatorInfo
from lmc_verify.execution import AnyPlanned, RunResult, run_planned, run_suite
from lmc_verify.models import MODELS
from lmc_verify.plugins import Registry
from lmc_verify.provenance import environment
from lmc_verify.races import PlannedRun
from lmc_verify.records import Records
from lmc_verify.replaycommands import counterexample, reproduce
from lmc_verify.report import ClaimText, Report, build_report, claims_table, load_benchmarks, write_report
from lmc_verify.searches import PlannedSearch
from lmc_verify.suite import Planned, load_suite, reproduction_command, suite_names
from lmc_verify.traincommands import race, train

__all__ = ["app", "main"]

app = typer.Typer(
    name="lmc-verify",
    help="Verify and benchmark the convergence claims of graph neural network training.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


class Kind(str, Enum):
    """What can be listed."""

    estimators = "estimators"
    claims = "claims"
    models = "models"
    datasets = "datasets"
    controls = "controls"
    suites = "suites"


def _claim_texts() -> dict[str, ClaimText]:
    return {
        claim.id: ClaimText(claim.id, claim.title, claim.statement, claim.source, claim.tier, claim.theory)
        for claim in CLAIMS.usable().values()
    }


@app.command()
def run(
    suite: Annotated[str, typer.Argument(help="A suite file (TOML), or the name of a suite of the package.")],
    out: Annotated[Path | None, typer.Option("--out", help="Output folder (default: reports/out/NAME).")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Reuse trials of the same case and code.")] = False,
    data_root: DataRootOption = None,
    download: DownloadOption = False,
    jobs: Annotated[int, typer.Option("--jobs", help="Processes.")] = 1,
    replicate: Annotated[
        int, typer.Option("--replicate", min=0, help="Repetition: another number repeats statistical checks afresh.")
    ] = 0,
    preset: Annotated[
        str | None, typer.Option("--preset", help="Variant of the suite's races, such as quick (default: its first).")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 3 if a verdict is inconclusive.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Run a suite, record every trial, counterexample and training run of a race, and write the report."""
    chosen = load_suite(suite)
    # Planning refuses a suite that does not fit, before a folder is made for it.
    counts: dict[type[AnyPlanned], int] = {
        Planned: len(chosen.plan()),
        PlannedSearch: len(chosen.searches()),
        PlannedRun: sum(len(race.runs) for race in chosen.races(preset)),
    }
    last = [kind for kind, count in counts.items() if count or kind is Planned][-1]
    folder = out or Path("reports") / "out" / chosen.name
    writable(folder)
    workspace = Workspace(data_root, download)
    with Records.create_or_open(folder / RECORDS_FILE) as records:
        with progress(sum(counts.values()), console=err_console(), last=last) as display:
            try:
                result = run_suite(
                    chosen,
                    records,
                    workspace,
                    resume=resume,
                    jobs=jobs,
                    replicate=replicate,
                    preset=preset,
                    listen=display.listen,
                    watch=display.watch,
                )
            except KeyboardInterrupt:
                typer.echo(f"interrupted; what is done is in {records.path}, go on with --resume", err=True)
                raise
        report = build_report(records, result.run_id, _claim_texts())
        paths = write_report(report, folder)
    code = result.exit_code
    if code == 0 and strict and result.inconclusive:
        code = 3
    if as_json:
        print_json(_run_document(chosen.name, result, code, paths))
    else:
        console = out_console()
        print_result(result, console)
        print_races(report.races, console)
        if result.reused:
            kinds = {"trials": result.trials, "searches": result.searches, "training runs": result.race_runs}
            what = " and ".join(kind for kind, items in kinds.items() if items)
            console.print(f"{result.reused} {what} reused from an earlier run", highlight=False)
        console.print(report.headline, markup=False, highlight=False, soft_wrap=True)
        for found in (search.found for search in result.searches if search.found is not None):
            console.print(f"counterexample: {folder / found.document}", markup=False, highlight=False, soft_wrap=True)
        console.print(f"report: {paths['html']}", markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(code)


def _run_document(name: str, result: RunResult, code: int, paths: Mapping[str, Path]) -> dict[str, Any]:
    return {
        "suite": name,
        "exit_code": code,
        "trials": [trial.to_dict() for trial in result.trials],
        "counterexamples": [search.to_dict() for search in result.searches],
        "races": [{**header.to_dict(), "runs": [item.to_dict() for item in runs]} for header, runs in result.races],
        "not_run": [{"trial": planned.label, "reason": reason} for planned, reason in result.not_run],
        "reused": result.reused,
        "alpha_total": result.alpha_total,
        "alpha_spent": result.alpha_spent,
        "files": {key: str(path) for key, path in paths.items()},
    }


def _latest_report(folder: Path, suite: str | None) -> tuple[Report, Path]:
    """Return the report of the latest run in a folder or records file, and that file."""
    file = folder / RECORDS_FILE if folder.is_dir() else folder
    with Records.open(file) as records:
        latest = records.latest_run(suite)
        if latest is None:
            which = f"of suite {suite!r} " if suite else ""
            raise InvalidInputError(f"{file} holds no run {which}to report on; make one with lmc-verify run")
        return build_report(records, latest.id, _claim_texts()), file


@app.command()
def table(
    folder: Annotated[Path, typer.Argument(help="Output folder of a run, or its records file.")],
    dataset: Annotated[str | None, typer.Option("--dataset", help="Only cases on this data set.")] = None,
) -> None:
    """Print the latest recorded run as a Markdown table: every claim against every estimator, with its verdicts."""
    typer.echo(claims_table(_latest_report(folder, None)[0], dataset), nl=False)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="Output folder of a run, or its records file.")],
    out: Annotated[Path | None, typer.Option("--out", help="Where to write (default: beside the records).")] = None,
    suite: Annotated[str | None, typer.Option("--suite", help="Take the latest run of this suite.")] = None,
    benchmarks: Annotated[
        Path | None, typer.Option("--benchmarks", help="Also show asv's results in this folder, such as .asv/results.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Render the report of the latest recorded run as HTML, Markdown, JSON and JUnit XML."""
    built, file = _latest_report(folder, suite)
    if benchmarks is not None:
        built = replace(built, benchmarks=load_benchmarks(benchmarks))
    paths = write_report(built, out or file.parent)
    if as_json:
        print_json({"headline": built.headline, "files": {key: str(path) for key, path in paths.items()}})
        return
    typer.echo(built.headline)
    for key, path in paths.items():
        typer.echo(f"{key}: {path}")


@app.command()
def check(
    claim: Annotated[str, typer.Argument(help="Claim id, such as theorem-1/unbiased.")],
    estimator: Annotated[str, typer.Option("--estimator", help="Estimator by name.")] = "backward-sgd",
    dataset: Annotated[str, typer.Option("--dataset", help="Data set by name.")] = "digits",
    data_root: DataRootOption = None,
    download: DownloadOption = False,
    histories: Annotated[str, typer.Option("--histories", help="exact, zero, or sweeps:K.")] = "exact",
    seed: Annotated[int, typer.Option("--seed", help="Root seed.")] = 0,
    settings: SetOption = None,
    expect: Annotated[
        str | None, typer.Option("--expect", help="Expected outcome (default: what theory says of this case).")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 3 if the verdict is inconclusive.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Check one claim on one case; exit with 0 if the verdict is the expected one, or leaves open what theory says."""
    chosen = find_claim(claim)
    case_settings = _case_settings(
        {"dataset.name": dataset, "estimator.name": estimator, "histories": histories, "seed": seed}, settings or []
    )
    wanted = _outcome(expect)
    workspace = Workspace(data_root, download)
    start = time.perf_counter()
    case = build_case(case_settings, workspace)
    theory = chosen.expect(case)
    expected, reason = (theory.outcome, f"theory: {theory.reason}") if wanted is None else (wanted, "as asked for")
    trial = run_planned(Planned("claim", chosen.id, case_settings, expected), workspace)
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
                "command": reproduction_command(chosen.id, case_settings),
                "environment": environment(),
            }
        )
    else:
        print_verdict(verdict, expected, reason, out_console(), as_expected=as_expected)
    raise typer.Exit(_verdict_code(verdict.outcome, as_expected, strict))


def _verdict_code(outcome: Outcome, as_expected: bool | None, strict: bool) -> int:
    if outcome is Outcome.ERROR:
        return 5
    if as_expected is False:
        return 1
    return 3 if strict and outcome is Outcome.INCONCLUSIVE else 0


def _outcome(name: str | None) -> Outcome | None:
    if name is None:
        return None
    wanted = name.upper().replace("-", "_")
    if wanted not in Outcome.__members__:
        raise UnknownNameError("outcome", wanted, Outcome.__members__)
    return Outcome(wanted)


app.command()(counterexample)
app.command()(reproduce)
app.command("check-estimator")(check_estimator)
app.command()(train)
app.command()(race)


@app.command()
def controls(
    names: Annotated[list[str] | None, typer.Argument(help="Controls by name (default: all).")] = None,
    as_json: JsonOption = False,
) -> None:
    """Run the controls: sound estimators must pass, seeded defects must be caught; exit with 4 if one is missed."""
    chosen = [find_control(name) for name in names or CONTROLS]
    workspace = Workspace()
    trials = [
        run_planned(Planned("control", item.claim, item.broken or item.sound, item.expected, control=item), workspace)
        for item in chosen
    ]
    if as_json:
        score = MutationScore.of(trial.control for trial in trials if trial.control is not None)
        print_json({"controls": [trial.to_dict() for trial in trials], "mutation_score": score.to_dict()})
    else:
        print_controls(trials, out_console())
    crashed = [trial.verdict.outcome is Outcome.ERROR for trial in trials]
    missed = any(trial.as_expected is False and not crash for trial, crash in zip(trials, crashed, strict=True))
    raise typer.Exit(4 if missed else 5 if any(crashed) else 0)


_REGISTRIES: dict[Kind, Callable[[], Registry[Any]]] = {
    Kind.estimators: lambda: ESTIMATORS,
    Kind.models: lambda: MODELS,
    Kind.claims: lambda: CLAIMS,
    Kind.datasets: dataset_registry,
}


@app.command("list")
def list_names(
    kind: Annotated[Kind, typer.Argument(help="What to list.")],
    as_json: JsonOption = False,
) -> None:
    """List estimators, claims, models, data sets, controls or suites; plug-ins that cannot be used come last."""
    columns, rows = _listing(kind)
    broken = _REGISTRIES[kind]().broken() if kind in _REGISTRIES else {}
    rows += [[name, *[""] * (len(columns) - 2), message] for name, message in broken.items()]
    if as_json:
        print_json([dict(zip(columns, row, strict=True)) for row in rows])
    else:
        print_table(columns, rows, out_console())


def _listing(kind: Kind) -> tuple[list[str], list[list[str]]]:
    if kind is Kind.estimators:
        return ["name", "family", "claims", "cost a step", "memory", "source"], [
            [name, *_estimator_row(CATALOGUE.get(name), item)] for name, item in ESTIMATORS.usable().items()
        ]
    if kind is Kind.models:
        return ["name", "description"], [[name, _first_line(item)] for name, item in MODELS.usable().items()]
    if kind is Kind.claims:
        return ["id", "tier", "title"], [[item.id, item.tier, item.title] for item in CLAIMS.usable().values()]
    if kind is Kind.controls:
        return ["name", "role", "description"], [[c.name, c.role, c.description] for c in CONTROLS.values()]
    if kind is Kind.suites:
        return ["name", "title"], [[name, load_suite(file).title] for name, file in suite_names().items()]
    infos = [entry.info for entry in dataset_registry().usable().values()]
    return ["name", "family", "task", "nodes", "edges", "files", "description"], [
        [
            info.name,
            info.family,
            info.task,
            "" if info.num_nodes is None else f"{info.num_nodes:,}",
            "" if info.num_edges is None else f"{info.num_edges:,}",
            "needed" if info.needs_files else "none",
            info.description,
        ]
        for info in infos
    ]


def _estimator_row(info: EstimatorInfo | None, item: Any) -> list[str]:
    """Return family, claims, cost, memory and source; of a plug-in, its claims and what it says of itself."""
    if info is None:
        claims = getattr(item, "claims", None)
        return ["plug-in", ", ".join(claims) if isinstance(claims, Mapping) else "", "", "", _first_line(item)]
    return [info.family, ", ".join(info.claims), info.cost, info.memory, info.source]


def _first_line(item: Any) -> str:
    return (item.__doc__ or "").strip().partition("\n")[0]


@app.command()
def explain(
    claim: Annotated[str, typer.Argument(help="Claim id, such as theorem-1/unbiased.")],
    as_json: JsonOption = False,
) -> None:
    """Explain a claim: statement, source, theory, assumptions, and how it is checked."""
    item = find_claim(claim)
    how = (item.check.__doc__ or "").strip()
    if as_json:
        print_json(
            {
                "id": item.id,
                "title": item.title,
                "statement": item.statement,
                "source": item.source,
                "tier": item.tier,
                "theory": item.theory,
                "assumptions": [{"id": a.id, "statement": a.statement} for a in item.assumptions],
                "check": how,
            }
        )
        return
    console = out_console()
    console.print(f"[bold]{item.id}[/]: {item.title}", highlight=False)
    for label, text in (
        ("Statement", item.statement),
        ("Source", item.source),
        ("Tier", item.tier),
        ("Why", item.theory),
        ("Check", how),
    ):
        console.print(f"\n{label}", style="bold")
        console.print(text, markup=False, highlight=False)
    console.print("\nAssumptions", style="bold")
    for assumption in item.assumptions:
        console.print(f"- {assumption.id}: {assumption.statement}", markup=False, highlight=False)


def _plugins_found() -> str:
    """Return which plug-ins are installed, and why those that cannot be used cannot."""
    found = []
    for kind, registry in _REGISTRIES.items():
        broken = registry().broken()
        names = [name for name in registry() if registry().plugin(name) is not None and name not in broken]
        found += [f"{kind.value}: {', '.join(names)}"] if names else []
        found += broken.values()
    return "; ".join(found) or "none"


@app.command()
def doctor(data_root: DataRootOption = None, as_json: JsonOption = False) -> None:
    """Report versions, devices, and which data sets can be loaded from the data root."""
    import torch

    root = data_root or (Path(os.environ["LMC_VERIFY_DATA_ROOT"]) if os.environ.get("LMC_VERIFY_DATA_ROOT") else None)
    packages = ("torch", "torch-geometric", "numpy", "scikit-learn", "pymetis", "hypothesis", "joblib")
    found: dict[str, Any] = {
        "lmc-verify": __version__,
        **{name: _version_of(name) for name in packages},
        **{key: value for key, value in environment().items() if key in ("python", "platform", "threads", "code")},
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else "not available",
        "plug-ins": _plugins_found(),
        "data root": "not set" if root is None else f"{root} ({'found' if root.is_dir() else 'missing'})",
    }
    if as_json:
        print_json(found)
    else:
        print_table(["item", "value"], [[key, str(value)] for key, value in found.items()], out_console())


def _version_of(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def main() -> None:
    """Entry point: turn the package's errors into one clear line and their exit codes."""
    try:
        app()
    except LmcVerifyError as error:
        if "--json" in sys.argv:
            print_json({"error": str(error), "type": type(error).__name__, "exit_code": error.exit_code})
        print(f"lmc-verify: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except Exception:  # Python's own exit code for it is 1, which says that a claim has an unexpected verdict
        traceback.print_exc()
        sys.exit(5)


if __name__ == "__main__":
    main()
