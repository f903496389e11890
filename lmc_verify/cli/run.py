"""Commands around a suite: ``run``, ``merge``, ``report``, ``table``, ``records check`` and ``records repair``."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lmc_verify import cases, claims, races, runs
from lmc_verify import report as reports
from lmc_verify.cases.suite_files import find_suite
from lmc_verify.cli.completion import names
from lmc_verify.cli.options import (
    RECORDS_FILE,
    DataRootOption,
    DownloadOption,
    GuaranteeOption,
    InProcessOption,
    JobsOption,
    JsonOption,
    RetryOption,
    TimeoutOption,
    err_console,
    out_console,
    print_json,
    records_file,
    shown,
    writable,
)
from lmc_verify.cli.print_verdicts import print_races, print_result, print_reused
from lmc_verify.cli.progress import progress
from lmc_verify.errors import InvalidInputError
from lmc_verify.workers.engines import BACKENDS, LOCAL, check_backend, connect
from lmc_verify.workers.pool import Pool
from lmc_verify.workers.signals import ended_as_interrupted

if TYPE_CHECKING:
    from lmc_verify.cases import Workspace
    from lmc_verify.report import ClaimText, Report
    from lmc_verify.runs import AnyPlanned, Records, RunResult, Shard, Suite
    from lmc_verify.workers.engines import Engine

__all__ = ["How", "merge", "records", "report", "run", "run_and_report", "table"]

_SHOWN = 1000
"""How many parts of a suite a dry run lists."""

records = typer.Typer(help="Look for damage in records, and save what is intact.", no_args_is_help=True)


def _claim_texts() -> dict[str, ClaimText]:
    texts = {
        claim.id: reports.ClaimText(
            claim.id, claim.title, claim.statement, claim.source, claim.tier, claim.theory, claim.question
        )
        for claim in claims.CLAIMS.usable().values()
    }
    return {**texts, reports.AUDITS.id: reports.AUDITS}


def run(
    suite: Annotated[
        str,
        typer.Argument(help="A suite file (TOML), or the name of a suite in the package.", autocompletion=names.suites),
    ],
    out: Annotated[Path | None, typer.Option("--out", help="Output folder (default: reports/out/NAME).")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Reuse recorded results of the same cases and code, crashes included.")
    ] = False,
    retry: RetryOption = False,
    data_root: DataRootOption = None,
    download: DownloadOption = False,
    jobs: JobsOption = 1,
    backend: Annotated[
        str, typer.Option("--backend", help=f"Where it is run: {', '.join(BACKENDS)} (a cluster).")
    ] = "local",
    scheduler: Annotated[
        str | None,
        typer.Option(
            "--scheduler",
            metavar="ADDRESS",
            help="The cluster's: of Dask, such as tcp://HOST:8786, or a scheduler file; of Ray, such as HOST:6379 "
            "(default: the one that this machine belongs to).",
        ),
    ] = None,
    shard: Annotated[
        str | None,
        typer.Option("--shard", metavar="I/N", help="Run share I of N; join them with lmc-verify merge."),
    ] = None,
    timeout: TimeoutOption = None,
    in_process: InProcessOption = False,
    replicate: Annotated[
        int,
        typer.Option(
            "--replicate", min=0, help="Repetition: another number repeats the statistical checks with fresh draws."
        ),
    ] = 0,
    preset: Annotated[
        str | None, typer.Option("--preset", help="Variant of the suite's races, such as quick (default: its first).")
    ] = None,
    guarantee: GuaranteeOption = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 3 if a verdict is inconclusive.")] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="List what would be run, also of a suite that plans too much; run nothing."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Run a suite, record every trial, counterexample and training run, and write the report."""
    check_backend(backend, scheduler, jobs)  # before what reads a suite is imported
    share = None if shard is None else runs.Shard.read(shard)
    file = find_suite(suite)
    chosen = runs.load_suite(file)
    if guarantee is not None:
        chosen = chosen.with_guarantee(guarantee)
    if dry_run:
        _print_plan(chosen, preset, as_json=as_json)
        raise typer.Exit(0)
    folder = out or Path("reports") / "out" / chosen.name
    workspace = cases.Workspace(data_root, download)
    try:
        result, report, paths = run_and_report(
            chosen,
            folder,
            workspace,
            how=How(
                resume,
                retry,
                jobs,
                timeout,
                in_process,
                strict,
                backend,
                scheduler,
                share,
            ),
            replicate=replicate,
            preset=preset,
        )
    except Interrupted as stopped:
        if as_json and stopped.report is not None:
            print_json(_report_document(stopped.report, stopped.paths))
        raise
    code = result.exit_code
    if as_json:
        print_json(_run_document(chosen.name, result, code, paths))
    else:
        console = out_console()
        print_result(result, console)
        print_races(report.races, console)
        print_reused(result, console)
        console.print(report.headline, markup=False, highlight=False, soft_wrap=True)
        for found in (search.found for search in result.searches if search.found is not None):
            console.print(f"counterexample: {folder / found.document}", markup=False, highlight=False, soft_wrap=True)
        console.print(f"report: {paths['html']}", markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(code)


@dataclass(frozen=True)
class How:
    """How a run is made, which its verdicts do not depend on.

    Attributes:
        resume: reuse what the records already hold of the same identity.
        retry: likewise, and run again what crashed.
        jobs: processes; -1 for one on each core.
        timeout: seconds that a part may take; None for any time.
        in_process: whether a run with one job and no time limit is made in this process.
        strict: whether an inconclusive verdict counts against the run.
        backend: what runs the parts, one of `lmc_verify.workers.engines.BACKENDS`.
        scheduler: address of a cluster.
        shard: the share of the suite that is run; None for all of it.
    """

    resume: bool = False
    retry: bool = False
    jobs: int = 1
    timeout: float | None = None
    in_process: bool = False
    strict: bool = False
    backend: str = LOCAL
    scheduler: str | None = None
    shard: Shard | None = None

    def __post_init__(self) -> None:
        check_backend(self.backend, self.scheduler, self.jobs)
        if self.in_process and self.backend != LOCAL:
            raise InvalidInputError(f"--in-process is for this machine; leave it out with --backend {self.backend}")

    @property
    def here(self) -> bool:
        """Whether the parts are run by the process that records."""
        return self.backend == LOCAL and self.in_process and self.jobs == 1


class Interrupted(KeyboardInterrupt):
    """A run was interrupted, and its report written, if it had begun."""

    def __init__(self, report: Report | None, paths: Mapping[str, Path]) -> None:
        super().__init__("interrupted")
        self.report, self.paths = report, paths


def _print_plan(suite: Suite, preset: str | None, *, as_json: bool) -> None:
    """Print how much a suite plans, and its first parts: those are the ones that are planned."""
    counts = {**suite.counts(), "race run": sum(len(race.runs) for race in suite.races(preset))}
    lines = suite.lines(_SHOWN)
    if as_json:
        print_json({"suite": suite.name, "planned": counts, "most_trials": suite.most_trials, "first": lines})
        return
    for line in lines:
        typer.echo(shown(line))
    rest = sum(suite.counts().values()) - len(lines)
    typer.echo(f"... and {rest:,} more" if rest > 0 else "", nl=rest > 0)
    typer.echo(f"{suite.name}: " + ", ".join(f"{count:,} {kind}" for kind, count in counts.items()))


def run_and_report(
    suite: Suite,
    folder: Path,
    workspace: Workspace,
    *,
    how: How,
    replicate: int = 0,
    preset: str | None = None,
    overwrite: bool = True,
) -> tuple[RunResult, Report, dict[str, Path]]:
    """Run a suite into the records of a folder and write its report next to them; return result, report and files.

    Args:
        suite: the suite.
        folder: where records and report are.
        workspace: where data come from.
        how: how the run is made.
        replicate: number of the repetition.
        preset: variant of the races.
        overwrite: whether, without resuming, the folder may hold a run already; the new one is added to its records.

    Raises:
        InvalidInputError: the suite or its data do not fit, or the folder holds a run that it may not hold.
        OutputError: nothing can be written into the folder.
        Interrupted: by the keyboard or a signal; what was done is recorded and reported.
    """
    with ended_as_interrupted(), contextlib.ExitStack() as stack:
        engine: Engine | None = None
        if how.backend == LOCAL and not how.here:
            engine = pool = stack.enter_context(Pool(how.jobs))
            pool.start(fresh=True, modules=suite.modules())  # before planning works on tensors
        # Planning refuses a suite that does not fit, before a folder is made for it.
        counts = _counted(suite, workspace, replicate, preset, how.shard)
        if how.backend != LOCAL:
            typer.echo(f"connecting to the {how.backend} cluster {how.scheduler or ''}".rstrip(), err=True)
            engine = stack.enter_context(connect(how.backend, how.scheduler))
        last = [kind for kind, count in counts.items() if count or kind is runs.Planned][-1]
        writable(folder)
        records = stack.enter_context(runs.Records.create_or_open(folder / RECORDS_FILE))
        if not (how.resume or how.retry or overwrite) and records.latest_run() is not None:
            raise InvalidInputError(
                f"{folder} holds a run; continue it (--resume), start again (--overwrite), or choose another --out"
            )
        try:
            with progress(sum(counts.values()), console=err_console(), last=last) as display:
                result = runs.run_suite(
                    suite,
                    records,
                    workspace,
                    resume=how.resume,
                    retry=how.retry,
                    jobs=how.jobs,
                    timeout=how.timeout,
                    replicate=replicate,
                    preset=preset,
                    strict=how.strict,
                    shard=how.shard,
                    engine=engine,
                    listen=display.listen,
                    watch=display.watch,
                )
        except runs.RunInterrupted as stopped:
            if engine is not None:
                engine.close()
            raise _reported(records, stopped.run_id, folder) from stopped
        except KeyboardInterrupt:
            typer.echo("interrupted before anything was run", err=True)
            raise Interrupted(None, {}) from None
        report = reports.build_report(records, result.run_id, _claim_texts())
        return result, report, _write(report, folder)


def _counted(
    suite: Suite, workspace: Workspace, replicate: int, preset: str | None, shard: Shard | None
) -> dict[type[AnyPlanned], int]:
    """Return how many parts of each kind a run of a suite has; the plan itself is not kept beside that of the run."""
    planned: list[AnyPlanned] = [*suite.plan(replicate=replicate, workspace=workspace)]
    planned += [*suite.audits(replicate=replicate, workspace=workspace), *suite.searches()]
    planned += [run for race in suite.races(preset, workspace=workspace) for run in race.runs]
    if shard is not None:
        own = shard.own((item.kind, item.key) for item in planned)
        planned = [item for item in planned if item.key in own]
    kinds = (runs.Planned, runs.PlannedAudit, runs.PlannedSearch, races.PlannedRun)
    return {kind: sum(isinstance(item, kind) for item in planned) for kind in kinds}


def _write(report: Report, folder: Path) -> dict[str, Path]:
    """Write a report, and tell GitHub Actions of it where that runs this process."""
    paths = reports.write_report(report, folder)
    reports.announce(report, os.environ, sys.stderr)  # annotations are read there, too; --json has the other stream
    return paths


def _reported(records: Records, run_id: int, folder: Path) -> Interrupted:
    """Say that a run was interrupted, and write the report of what is done."""
    typer.echo(f"interrupted; what is done is in {records.path}, continue with --resume", err=True)
    report = reports.build_report(records, run_id, _claim_texts())
    paths = _write(report, folder)
    typer.echo(report.headline, err=True)
    return Interrupted(report, paths)


def _run_document(name: str, result: RunResult, code: int, paths: Mapping[str, Path]) -> dict[str, Any]:
    return {
        "suite": name,
        "exit_code": code,
        "trials": [trial.to_dict() for trial in result.trials],
        "counterexamples": [search.to_dict() for search in result.searches],
        "races": [{**header.to_dict(), "runs": [item.to_dict() for item in runs]} for header, runs in result.races],
        "not_run": [{"trial": planned.label, "reason": reason} for planned, reason in result.not_run],
        "unfinished": [],
        "shard": None if result.shard is None else str(result.shard),
        "elsewhere": result.elsewhere,
        "reused": result.reused,
        "alpha_total": result.alpha_total,
        "alpha_spent": result.alpha_spent,
        "alpha_spent_asymptotic": result.alpha_spent_asymptotic,
        "files": {key: str(path) for key, path in paths.items()},
    }


def _report_document(report: Report, paths: Mapping[str, Path]) -> dict[str, Any]:
    """Return what there is to say of a run from its records alone."""
    return {
        "suite": report.run.suite,
        "exit_code": report.exit_code,
        "state": report.state,
        "headline": report.headline,
        "unfinished": [{"trial": item.label, "command": item.command} for item in report.unfinished],
        "shard": None if report.shard is None else str(report.shard),
        "elsewhere": len(report.elsewhere),
        "files": {key: str(path) for key, path in paths.items()},
    }


def _latest_report(folder: Path, suite: str | None) -> tuple[Report, Path]:
    """Return the report of the latest run in a folder or records file, and that file."""
    file = records_file(folder)
    with runs.Records.open(file) as records:
        latest = records.latest_run(suite)
        if latest is None:
            which = f"of suite {suite!r} " if suite else ""
            raise InvalidInputError(f"{file} holds no run {which}to report on; make one with lmc-verify run")
        return reports.build_report(records, latest.id, _claim_texts()), file


def merge(
    folders: Annotated[list[Path], typer.Argument(help="Output folders of runs, such as of shards.", metavar="OUT...")],
    out: Annotated[Path, typer.Option("--out", help="Output folder of the merged run.")],
    suite: Annotated[str | None, typer.Option("--suite", help="Take the latest run of this suite.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Join the records of shards, or of other runs of one suite and one version, and report on all of them.

    Refuses runs that contradict each other. Exits as one run of the whole suite would; with 5 where parts are missing.
    """
    files = [records_file(folder) for folder in folders]
    made = runs.merge_records(files, out / RECORDS_FILE, suite=suite)
    with runs.Records.open(out / RECORDS_FILE) as records:
        built = reports.build_report(records, made.run_id, _claim_texts())
    paths = _write(built, out)
    if as_json:
        print_json({**_report_document(built, paths), "merged": made.sources, "missing": made.missing})
    else:
        typer.echo(shown(built.headline))
        for line in made.missing:
            typer.echo(line)
        for key, path in paths.items():
            typer.echo(f"{key}: {path}")
    raise typer.Exit(built.exit_code)


def table(
    folder: Annotated[Path, typer.Argument(help="Output folder of a run, or its records file.")],
    dataset: Annotated[str | None, typer.Option("--dataset", help="Only cases on this data set.")] = None,
) -> None:
    """Print the latest recorded run as a Markdown table: every claim against every estimator, with its verdicts."""
    latest = _latest_report(folder, None)[0]
    typer.echo(reports.claims_table(latest, dataset), nl=False)


def report(
    folder: Annotated[Path, typer.Argument(help="Output folder of a run, or its records file.")],
    out: Annotated[Path | None, typer.Option("--out", help="Where to write (default: next to the records).")] = None,
    suite: Annotated[str | None, typer.Option("--suite", help="Take the latest run of this suite.")] = None,
    benchmarks: Annotated[
        Path | None, typer.Option("--benchmarks", help="Also show asv's results in this folder, such as .asv/results.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Render the report of the latest recorded run as HTML, Markdown, JSON and JUnit XML.

    Exits as the run did; with 5 where the run did not finish and was not interrupted.
    """
    built, file = _latest_report(folder, suite)
    if benchmarks is not None:
        built = replace(built, benchmarks=reports.load_benchmarks(benchmarks))
    if out is not None:
        writable(out)
    paths = _write(built, out or file.parent)
    if as_json:
        print_json(_report_document(built, paths))
    else:
        typer.echo(built.headline)
        for key, path in paths.items():
            typer.echo(f"{key}: {path}")
    raise typer.Exit(built.exit_code)


@records.command("check")
def check_command(
    folder: Annotated[Path, typer.Argument(help="Output folder of a run, or its records file.")],
    as_json: JsonOption = False,
) -> None:
    """Compare every entry of a records file with its hash. Exit with 5 if one is damaged or missing."""
    kept = records_file(folder)
    found = runs.check_records(kept)
    code = 5 if found.problem or found.num_lost else 0
    if as_json:
        print_json({**found.to_dict(), "exit_code": code})
        raise typer.Exit(code)
    entries = sum(map(len, found.intact.values()))
    if not found.hashed and not code:
        typer.echo(
            f"{found.path}: every entry can be read. The file is of an older version and has no hashes: "
            "damage that leaves an entry readable cannot be seen. It gets hashes with the next entry."
        )
        raise typer.Exit(code)
    if found.hashed:
        typer.echo(f"{found.path}: {entries} entries are intact, {found.num_lost} are damaged or missing")
    else:
        typer.echo(
            f"{found.path}: {found.num_entries} entries can be read. There are no hashes, as in files of older "
            "versions: which of them are as they were recorded cannot be told."
        )
    for kind, numbers in found.lost.items():
        typer.echo(f"  {kind}: {_some(numbers)}")
    if found.problem:
        typer.echo(found.problem)
    raise typer.Exit(code)


@records.command("repair")
def repair_command(
    folder: Annotated[Path, typer.Argument(help="Output folder of a run, or its records file.")],
    out: Annotated[Path | None, typer.Option("--out", help="The new file (default: NAME-repaired.sqlite).")] = None,
    as_json: JsonOption = False,
) -> None:
    """Write what is intact in a damaged records file into a new file; the damaged one is left as it is."""
    kept = records_file(folder)
    found, file, entries = runs.repair_records(kept, out)
    if as_json:
        print_json({**found.to_dict(), "file": str(file), "saved": entries})
        return
    typer.echo(f"{file}: {entries} entries saved, {found.num_lost} damaged or missing")
    for kind, numbers in found.lost.items():
        typer.echo(f"  {kind}: {_some(numbers)}")


def _some(numbers: list[int], shown: int = 10) -> str:
    more = f" and {len(numbers) - shown} more" if len(numbers) > shown else ""
    return ", ".join(map(str, numbers[:shown])) + more
