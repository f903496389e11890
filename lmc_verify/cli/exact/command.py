"""The command ``lmc-verify exact``: exact loss and gradient, in memory, from files within a limit, or over ranks."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import Field
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from lmc_verify import cases, datasets, graphs, objective
from lmc_verify.cases.settings import DatasetSettings, ModelSettings, Settings
from lmc_verify.cli.completion import names
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
from lmc_verify.errors import InfrastructureError, InvalidInputError, validated
from lmc_verify.objective import distributed as over_ranks
from lmc_verify.objective import streamed
from lmc_verify.report.model.text import duration

if TYPE_CHECKING:
    import torch

    from lmc_verify.cases import Workspace
    from lmc_verify.graphs import Graph
    from lmc_verify.objective import Gradient, Problem
    from lmc_verify.objective.streamed import StreamProgress

__all__ = ["exact"]

RESULT, GRADIENT = "exact.json", "gradient.safetensors"

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}

_PAUSE = 10.0
"""Seconds between lines of progress where there is no terminal."""


class ExactSettings(Settings):
    """A problem.

    Attributes:
        dataset: the data set, by name, with its options.
        model: the model.
        seed: of generated graphs and of the parameters.
    """

    dataset: DatasetSettings = DatasetSettings(name="digits")
    model: ModelSettings = ModelSettings()
    seed: int = Field(0, ge=0)


def exact(
    dataset: Annotated[
        str,
        typer.Option(
            "--dataset",
            help="Data set by name, or a folder that holds a graph in mapped files.",
            autocompletion=names.datasets,
        ),
    ] = "digits",
    seed: Annotated[int, typer.Option("--seed", help="Seed of generated graphs and of the parameters.")] = 0,
    settings: SetOption = None,
    dtype: Annotated[
        str | None, typer.Option("--dtype", help="float32 or float64 (default: float64, or what the folder holds).")
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option("--memory", metavar="SIZE", help="Work from mapped files within this memory, such as 4GiB."),
    ] = None,
    distributed: Annotated[
        bool, typer.Option("--distributed", help="Take part as a rank of a group that torchrun started.")
    ] = False,
    device: Annotated[str, typer.Option("--device", help="cpu, or cuda (whole or distributed).")] = "cpu",
    out: Annotated[Path | None, typer.Option("--out", help="Output folder (default: reports/out/exact).")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the streamed pass in the output folder, after its last step.")
    ] = False,
    data_root: DataRootOption = None,
    download: DownloadOption = False,
    as_json: JsonOption = False,
) -> None:
    """Compute the exact loss and gradient of a problem; write the gradient to a file.

    With --memory, graph, operators and tables are in files of the output folder. With --distributed:
    torchrun --nproc-per-node 4 -m lmc_verify.cli exact --distributed --dataset NAME
    """
    chosen = validated(ExactSettings, cases.settings_tree({"dataset.name": dataset, "seed": seed}, settings or []))
    _check(memory, distributed, resume, device)
    if not Path(chosen.dataset.name).is_dir():
        cases.check_dataset(chosen.dataset)
    folder = out or Path("reports") / "out" / "exact"
    limit = None if memory is None else bytes_of(memory)
    try:
        with over_ranks.joined("nccl" if device == "cuda" else "gloo") if distributed else nullcontext() as watch:
            first = watch is None or watch.rank == 0
            if first:
                writable(folder)
            begun = time.perf_counter()
            mapped = folder / "graph" if limit is not None else None
            problem = _problem(chosen, cases.Workspace(data_root, download), _dtype(dtype), mapped).to(device)
            ready = time.perf_counter()
            if watch is not None:
                loss, gradient = over_ranks.distributed_gradient(problem, watch)
            elif limit is not None:
                with _progress(err_console()) as listen:
                    loss, gradient = streamed.streamed_gradient(
                        problem, memory=limit, folder=folder, resume=resume, listen=listen
                    )
            else:
                loss, gradient = objective.exact_gradient(problem)
            seconds = {"prepared": ready - begun, "computed": time.perf_counter() - ready}
    except InfrastructureError as error:
        if not distributed:
            raise
        # Threads of the group may wait for the rank that is gone; the other ranks must not wait for this one.
        print(f"lmc-verify: {error}", file=sys.stderr, flush=True)
        os._exit(error.exit_code)
    if first:
        how = "distributed" if distributed else "whole" if limit is None else "streamed"
        _print(how, problem, loss, gradient, seconds, folder, chosen, as_json)


def bytes_of(text: str) -> int:
    """Return a size such as ``4GiB``, ``500M`` or ``1000000`` in bytes; units are powers of 1024.

    Raises:
        InvalidInputError: anything else.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", text.strip(), flags=re.IGNORECASE)
    if found is None:
        raise InvalidInputError(f"memory is {text!r}, it must be a size such as 4GiB, 500MiB or 1000000")
    return int(float(found[1]) * _UNITS[found[2].upper()])


def _check(memory: str | None, distributed: bool, resume: bool, device: str) -> None:
    if memory is not None and distributed:
        raise InvalidInputError("--memory and --distributed are two ways of one pass; choose one")
    if resume and memory is None:
        raise InvalidInputError("--resume goes on with a streamed pass; give --memory, too")
    if device not in ("cpu", "cuda"):
        raise InvalidInputError(f"--device is {device!r}, it must be cpu or cuda")
    if device == "cuda" and memory is not None:
        raise InvalidInputError("--memory maps files into the CPU's memory; leave --device out")
    if device == "cpu":
        return
    import torch

    if not torch.cuda.is_available():
        raise InvalidInputError("torch finds no CUDA device; leave --device out")


def _dtype(name: str | None) -> torch.dtype | None:
    import torch

    known = {"float32": torch.float32, "float64": torch.float64, None: None}
    if name not in known:
        raise InvalidInputError(f"--dtype is {name!r}, it must be float32 or float64")
    return known[name]


def _problem(settings: ExactSettings, workspace: Workspace, dtype: torch.dtype | None, mapped: Path | None) -> Problem:
    """Build the problem; where `mapped` is given, its graph is in mapped files there, or was in some already."""
    import torch

    source = Path(settings.dataset.name)
    if (source / datasets.GRAPH_FILE).exists():
        if settings.dataset.settings:
            name = next(iter(settings.dataset.settings))
            raise InvalidInputError(f"dataset.{name} is set, and {source} is a graph in files, which has no options")
        graph = datasets.open_graph(source)
        if dtype is not None and dtype != graph.dtype:
            graph = _mapped(graph, mapped, dtype, {"folder": str(source.resolve()), "graph": graph.checksum})
    else:
        wanted = dtype or torch.float64
        request = {**settings.model_dump(mode="json", exclude={"model"}), "dtype": str(wanted)}
        known = None if mapped is None else _known(mapped, request)
        graph = known or _mapped(
            workspace.graph(settings.dataset, settings.seed, torch.float32), mapped, wanted, request
        )
        workspace = cases.Workspace()  # the graph in memory goes with the old one
    return workspace.problem(graph, settings.model, settings.seed)


def _known(place: Path, request: dict[str, Any]) -> Graph | None:
    """Return the graph of a request that is in mapped files already."""
    file = place / "request.json"
    same = file.exists() and file.read_text(encoding="utf-8") == json.dumps(request)
    return datasets.open_graph(place) if same and (place / datasets.GRAPH_FILE).exists() else None


def _mapped(graph: Graph, place: Path | None, dtype: torch.dtype, request: dict[str, Any]) -> Graph:
    """Return the graph in a dtype, in mapped files where there is a place for them."""
    if place is None:
        return graph.to(dtype=dtype)
    datasets.write_graph(graph, place, dtype=dtype)
    from lmc_verify.training.checkpoint import write_text

    write_text(place / "request.json", json.dumps(request))
    return datasets.open_graph(place)


def _print(
    how: str,
    problem: Problem,
    loss: float,
    gradient: Gradient,
    seconds: dict[str, float],
    folder: Path,
    settings: ExactSettings,
    as_json: bool,
) -> None:
    from lmc_verify.training.checkpoint import write_checkpoint, write_text

    norms = {name: objective.gradient_norm({name: value}) for name, value in gradient.items()}
    document = {
        "pass": how,
        "loss": loss,
        "gradient_norm": objective.gradient_norm(gradient),
        "gradient_norms": norms,
        "seconds": seconds,
        "peak_bytes": graphs.resident_bytes(peak=True),
        "nodes": problem.graph.num_nodes,
        "edges": problem.graph.num_edges,
        "settings": settings.model_dump(mode="json"),
    }
    write_checkpoint(folder / GRADIENT, gradient, {"loss": loss})
    write_text(folder / RESULT, json.dumps(document, indent=1) + "\n")
    files = {"gradient": str(folder / GRADIENT), "result": str(folder / RESULT)}
    if as_json:
        print_json({**document, "files": files, "exit_code": 0})
        return
    console = out_console()
    peak = document["peak_bytes"]
    used = "" if peak is None else f", at most {int(str(peak)) / 2**20:,.0f} MiB"
    lines = [
        f"{how} pass over {problem.graph!r}",
        f"loss {loss:.10g}, gradient norm {document['gradient_norm']:.10g}",
        f"{duration(seconds['computed'])} and {duration(seconds['prepared'])} to prepare{used}",
        *(f"  {value:.6g}  {name}" for name, value in norms.items()),
        *(f"{name}: {path}" for name, path in files.items()),
    ]
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def _progress(console: Console) -> Iterator[Callable[[StreamProgress], None]]:
    """Yield a listener: a bar with the time left on a terminal, a line every ten seconds elsewhere."""
    if not console.is_terminal:
        shown = time.monotonic()

        def line(progress: StreamProgress) -> None:
            nonlocal shown
            if time.monotonic() - shown < _PAUSE:
                return
            shown = time.monotonic()
            left = "" if progress.seconds_left is None else f", about {duration(progress.seconds_left)} left"
            text = f"{progress.step}: {progress.share:.0%}{left}"
            console.print(text, markup=False, highlight=False, soft_wrap=True)

        yield line
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("encoder", total=1.0)
        yield lambda progress: bar.update(task, completed=progress.share, description=progress.step)
