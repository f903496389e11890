"""The commands ``lmc-verify train`` and ``lmc-verify race``."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from lmc_verify import cases, races, runs, training
from lmc_verify.cli.completion import names
from lmc_verify.cli.options import (
    RECORDS_FILE,
    DataRootOption,
    DownloadOption,
    InProcessOption,
    JobsOption,
    JsonOption,
    RetryOption,
    SetOption,
    TimeoutOption,
    err_console,
    out_console,
    print_json,
    writable,
)
from lmc_verify.cli.print_training import print_trace
from lmc_verify.cli.print_verdicts import print_race, print_reused
from lmc_verify.cli.progress import train_progress
from lmc_verify.cli.run import How, run_and_report
from lmc_verify.errors import InvalidInputError
from lmc_verify.provenance import environment

__all__ = ["race", "train"]

TRACE, CHECKPOINT = "trace.json", "checkpoint.safetensors"

INTERRUPTED = 130

ResumeOption = Annotated[bool, typer.Option("--resume", help="Continue the run in the output folder.")]

OverwriteOption = Annotated[
    bool, typer.Option("--overwrite", help="Start again even if the output folder holds a run.")
]


def train(
    estimator: Annotated[
        str, typer.Option("--estimator", help="Estimator by name.", autocompletion=names.estimators)
    ] = "lmc",
    dataset: Annotated[
        str, typer.Option("--dataset", help="Data set by name.", autocompletion=names.datasets)
    ] = "digits",
    seed: Annotated[int, typer.Option("--seed", help="Seed of parameters, batches and dropout.")] = 0,
    settings: SetOption = None,
    out: Annotated[Path | None, typer.Option("--out", help="Output folder (default: reports/out/train).")] = None,
    resume: ResumeOption = False,
    overwrite: OverwriteOption = False,
    data_root: DataRootOption = None,
    download: DownloadOption = False,
    as_json: JsonOption = False,
) -> None:
    """Train one model with one estimator; write its trace and a checkpoint. Exit with 1 if the run diverged."""
    _check_names(dataset, estimator)
    base = {"dataset.name": dataset, "estimator.name": estimator, "seed": seed}
    chosen = training.RunSettings.read(cases.settings_tree(base, settings or []))
    cases.check_names(chosen)
    from lmc_verify.training.checkpoint import write_text

    trainer = training.build_trainer(chosen, cases.Workspace(data_root, download))
    folder = out or Path("reports") / "out" / "train"
    writable(folder)
    checkpoint, file = folder / CHECKPOINT, folder / TRACE
    if checkpoint.exists() and resume:
        trainer.restore(checkpoint)
    elif checkpoint.exists() and not overwrite:
        raise InvalidInputError(
            f"{folder} holds a run; continue it (--resume), start again (--overwrite), or choose another --out"
        )
    with _stopping() as stop, train_progress(trainer, err_console()) as listen:
        trace = trainer.run(listen=listen, stop=stop, checkpoint=checkpoint)
    document = {"trace": trace.to_dict(), "settings": chosen.model_dump(mode="json"), "environment": environment()}
    write_text(file, json.dumps(document, indent=1, allow_nan=False) + "\n")
    code = {"diverged": 1, "interrupted": INTERRUPTED}.get(trace.status, 0)
    files = {"trace": str(file), "checkpoint": str(checkpoint)}
    if as_json:
        print_json({**document, "files": files, "exit_code": code})
    else:
        print_trace(trace, out_console())
        for name, path in files.items():
            typer.echo(f"{name}: {path}")
    raise typer.Exit(code)


def race(
    file: Annotated[Path | None, typer.Argument(help="Settings of the race (TOML); options override it.")] = None,
    estimator: Annotated[
        list[str] | None,
        typer.Option(
            "--estimator",
            help="A contestant by name, instead of the file's. Repeatable.",
            autocompletion=names.estimators,
        ),
    ] = None,
    dataset: Annotated[
        str | None, typer.Option("--dataset", help="Data set by name (default: digits).", autocompletion=names.datasets)
    ] = None,
    seeds: Annotated[
        int | None, typer.Option("--seeds", min=1, help="Runs of every contestant: seeds 0 ... N - 1.")
    ] = None,
    target: Annotated[
        float | None, typer.Option("--target", help="Accuracy to race to (default: full-batch training's best).")
    ] = None,
    settings: SetOption = None,
    out: Annotated[Path | None, typer.Option("--out", help="Output folder (default: reports/out/race).")] = None,
    resume: ResumeOption = False,
    retry: RetryOption = False,
    overwrite: OverwriteOption = False,
    data_root: DataRootOption = None,
    download: DownloadOption = False,
    jobs: JobsOption = 1,
    timeout: TimeoutOption = None,
    in_process: InProcessOption = False,
    as_json: JsonOption = False,
) -> None:
    """Train several estimators once per seed and report when each reaches the target; exit with 5 if a run failed."""
    for name in estimator or []:
        _check_names(dataset, name)
    asked = races.race_settings(file, estimator or [], dataset, seeds, target, settings or [])
    chosen = runs.Suite.of_race(asked)
    folder = out or Path("reports") / "out" / "race"
    workspace = cases.Workspace(data_root, download)
    how = How(resume, retry, jobs, timeout, in_process)
    result, report, paths = run_and_report(chosen, folder, workspace, how=how, overwrite=overwrite)
    (section,) = report.races
    if as_json:
        files = {"records": folder / RECORDS_FILE, **paths}
        assert section.record is not None  # only a race whose data may be absent can have no run
        paths_as_text = {key: str(path) for key, path in files.items()}
        print_json({**section.record.to_dict(), "files": paths_as_text, "exit_code": result.exit_code})
    else:
        console = out_console()
        print_race(section, console)
        print_reused(result, console)
        console.print(f"report: {paths['html']}", markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(result.exit_code)


def _check_names(dataset: str | None, estimator: str) -> None:
    """Refuse names that are unknown, before what reads all other settings is imported."""
    base = {"estimator.name": estimator, **({} if dataset is None else {"dataset.name": dataset})}
    cases.check_names(cases.case_settings(base, []))


@contextmanager
def _stopping() -> Iterator[Callable[[], bool]]:
    """Yield a function that tells whether the program was interrupted; a second interrupt ends it at once."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # signals are the main thread's business
        yield asked.is_set
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, frame: FrameType | None) -> None:
        asked.set()
        for item, handler in before.items():
            signal.signal(item, handler)
        typer.echo("interrupted: finishing this step; interrupt again to stop at once", err=True)

    for number in before:
        signal.signal(number, note)
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
