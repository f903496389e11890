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

from lmc_verify.cases import Workspace, settings_tree
from lmc_verify.cli.options import (
    DataRootOption,
    DownloadOption,
    JsonOption,
    SetOption,
    err_console,
    out_console,
    print_json,
    writable,
)
from lmc_verify.cli.print_training import print_race, print_trace
from lmc_verify.cli.progress import race_progress, train_progress
from lmc_verify.errors import InvalidInputError
from lmc_verify.provenance import environment
from lmc_verify.races import RaceRecord, race_settings, read_race, run_race
from lmc_verify.training import RunSettings
from lmc_verify.training.build import build_trainer
from lmc_verify.training.checkpoint import write_text

__all__ = ["race", "train"]

TRACE, CHECKPOINT, RACE = "trace.json", "checkpoint.safetensors", "race.json"

INTERRUPTED = 130

ResumeOption = Annotated[bool, typer.Option("--resume", help="Go on with what the output folder holds.")]

OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Start anew where the output folder holds a run.")]


def train(
    estimator: Annotated[str, typer.Option("--estimator", help="Estimator by name.")] = "lmc",
    dataset: Annotated[str, typer.Option("--dataset", help="Data set by name.")] = "digits",
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
    base = {"dataset.name": dataset, "estimator.name": estimator, "seed": seed}
    chosen = RunSettings.read(settings_tree(base, settings or []))
    trainer = build_trainer(chosen, Workspace(data_root, download))
    folder = out or Path("reports") / "out" / "train"
    writable(folder)
    checkpoint, file = folder / CHECKPOINT, folder / TRACE
    if checkpoint.exists() and resume:
        trainer.restore(checkpoint)
    elif checkpoint.exists() and not overwrite:
        raise InvalidInputError(
            f"{folder} holds a run; go on with it (--resume), start anew (--overwrite), or choose another --out"
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
    file: Annotated[Path | None, typer.Argument(help="Settings of the race (TOML); options win over it.")] = None,
    estimator: Annotated[
        list[str] | None, typer.Option("--estimator", help="A contestant by name. Repeatable; instead of the file's.")
    ] = None,
    dataset: Annotated[str | None, typer.Option("--dataset", help="Data set by name (default: digits).")] = None,
    seeds: Annotated[
        int | None, typer.Option("--seeds", min=1, help="Runs of every contestant: seeds 0 ... N - 1.")
    ] = None,
    target: Annotated[
        float | None, typer.Option("--target", help="Accuracy to race to (default: full-batch training's best).")
    ] = None,
    settings: SetOption = None,
    out: Annotated[Path | None, typer.Option("--out", help="Output folder (default: reports/out/race).")] = None,
    resume: ResumeOption = False,
    overwrite: OverwriteOption = False,
    data_root: DataRootOption = None,
    download: DownloadOption = False,
    as_json: JsonOption = False,
) -> None:
    """Train several estimators once a seed and say when each had the target accuracy. Exit with 5 if a run failed."""
    chosen = race_settings(file, estimator or [], dataset, seeds, target, settings or [])
    folder = out or Path("reports") / "out" / "race"
    writable(folder)
    path = folder / RACE
    previous = None
    if path.exists() and resume:
        previous = read_race(path)
    elif path.exists() and not overwrite:
        raise InvalidInputError(
            f"{folder} holds a race; go on with it (--resume), start anew (--overwrite), or choose another --out"
        )

    def keep(record: RaceRecord) -> None:
        write_text(path, json.dumps(record.to_dict(), allow_nan=False) + "\n")

    with _stopping() as stop, race_progress(err_console()) as listen:
        record = run_race(
            chosen, Workspace(data_root, download), previous=previous, keep=keep, listen=listen, stop=stop
        )
    keep(record)
    failed = any(entry.status == "failed" for entry in record.entries)
    code = INTERRUPTED if record.missing else 5 if failed else 0
    if as_json:
        print_json({**record.to_dict(), "files": {"race": str(path)}, "exit_code": code})
    else:
        print_race(record, out_console())
        typer.echo(f"race: {path}")
    raise typer.Exit(code)


@contextmanager
def _stopping() -> Iterator[Callable[[], bool]]:
    """Yield a function that says whether an interrupt has come; a second one ends the program at once."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # signals are the main thread's business
        yield asked.is_set
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, frame: FrameType | None) -> None:
        asked.set()
        for item, handler in before.items():
            signal.signal(item, handler)
        typer.echo("interrupted: finishing this step; interrupt again to give up at once", err=True)

    for number in before:
        signal.signal(number, note)
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
