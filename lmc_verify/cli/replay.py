"""The commands ``lmc-verify counterexample`` and ``lmc-verify reproduce``."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from lmc_verify import cases, claims, runs
from lmc_verify.cli.completion import names
from lmc_verify.cli.options import (
    DataRootOption,
    DownloadOption,
    JsonOption,
    SetOption,
    out_console,
    print_json,
    records_file,
    writable,
)
from lmc_verify.cli.print_verdicts import print_table
from lmc_verify.errors import InvalidInputError, LmcVerifyError

if TYPE_CHECKING:
    from lmc_verify.runs import Run, Trial

__all__ = ["counterexample", "reproduce"]


def counterexample(
    claim: Annotated[str, typer.Argument(help="Claim id, such as theorem-1/unbiased.", autocompletion=names.claims)],
    estimator: Annotated[str, typer.Option("--estimator", help="Estimator by name.", autocompletion=names.estimators)],
    histories: Annotated[
        str, typer.Option("--histories", help="exact, zero, or sweeps:K.", autocompletion=names.histories)
    ] = "exact",
    settings: SetOption = None,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the search.")] = 0,
    out: Annotated[
        Path | None, typer.Option("--out", help="Output folder (default: reports/out/counterexamples).")
    ] = None,
    max_nodes: Annotated[int, typer.Option("--max-nodes", help="Largest number of nodes.")] = 6,
    examples: Annotated[int, typer.Option("--examples", help="Maximum number of cases to try.")] = 200,
    directed: Annotated[bool, typer.Option("--directed", help="Also try one-way edges.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Search for the smallest graph, batches and parameters that refute a claim; save and draw what is found."""
    claims.require_claim(claim)
    chosen = cases.case_settings({"estimator.name": estimator, "histories": histories, "seed": seed}, settings or [])
    cases.check_names(chosen)
    from lmc_verify.counterexamples import SearchSpace, find_counterexample, save_drawing
    from lmc_verify.counterexamples.drawing import caption

    space = SearchSpace.from_settings(chosen, max_nodes=max_nodes, directed=directed)
    folder = out or Path("reports") / "out" / "counterexamples"
    search = find_counterexample(
        claim,
        cases.build_estimator(chosen.estimator),
        histories=chosen.histories,
        space=space,
        examples=examples,
        seed=chosen.seed,
    )
    found = search.counterexample
    document: dict[str, Any] = {
        "claim": claim,
        "estimator": estimator,
        "found": found is not None,
        "cases": search.cases,
        "reductions": search.reductions,
        "summary": search.summary,
    }
    if found is not None:
        writable(folder)
        json_path, tensor_path = found.save(folder)
        drawings = [save_drawing(found, json_path.with_suffix(suffix)) for suffix in (".svg", ".png")]
        document |= {
            "nodes": found.instance.graph.num_nodes,
            "edges": found.instance.graph.num_edges,
            "caption": caption(found),
            "verdict": found.verdict.to_dict(),
            "files": [str(path) for path in (json_path, tensor_path, *drawings)],
            "command": shlex.join(["lmc-verify", "reproduce", str(json_path)]),
        }
    if as_json:
        print_json(document)
        return
    console = out_console()
    for line in (search.summary, *([] if found is None else _described(found))):
        _line(console, line)
    if found is not None:
        for path in document["files"]:
            _line(console, f"wrote {path}")
        _line(console, f"replay it with: {document['command']}")


def _described(found: Any) -> list[str]:
    """Return the counterexample as lines of text, values included."""
    from lmc_verify.counterexamples.drawing import caption

    graph, model = found.instance.graph, found.instance.model
    edges = ", ".join(f"{source}->{destination}" for source, destination in graph.edge_index.T.tolist()) or "none"
    lines = [caption(found), f"edges: {edges}"]
    if graph.edge_weight is not None:
        lines.append(f"edge weights: {graph.edge_weight.tolist()}")
    lines += [
        f"features: {graph.x.tolist()}",
        f"labelled nodes: {graph.train_mask.nonzero().flatten().tolist()}, classes: {graph.y.tolist()}",
        f"batches: {', '.join(str(batch.nodes.tolist()) for batch, _ in found.batches)}",
        f"model: {model.name} " + " ".join(f"{key}={value}" for key, value in model.settings.items()),
        *(f"  {name} = {value.tolist()}" for name, value in found.instance.parameters.items()),
    ]
    return lines


def reproduce(
    file: Annotated[
        Path, typer.Argument(help="A counterexample (.json or .safetensors), a records file, or a run's folder.")
    ],
    trial: Annotated[
        str | None, typer.Option("--trial", help="Trial of the run: its number, or the beginning of its key.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Replay every trial of the run.")] = False,
    number: Annotated[int | None, typer.Option("--run", help="Run of the records file (default: the latest).")] = None,
    data_root: DataRootOption = None,
    download: DownloadOption = False,
    as_json: JsonOption = False,
) -> None:
    """Replay a counterexample or recorded trials; exit with 0 if every number is identical, with 1 if one differs."""
    if file.suffix in (".json", ".safetensors"):
        if trial is not None or every or number is not None:
            raise InvalidInputError(
                f"{file} is read as a counterexample, which has no trials; leave out --trial, --all and --run"
            )
        from lmc_verify.counterexamples import load_counterexample

        _answer([runs.replay_counterexample(load_counterexample(file))], [], as_json)
        return
    run, trials = _recorded(file, number)
    if trial is None and not every and len(trials) != 1:
        _list_trials(file, run, trials, as_json)
        return
    chosen = [runs.find_trial(trials, trial)] if trial is not None else trials
    workspace = cases.Workspace(data_root, download)
    replays, failures = [], []
    for item in chosen:
        try:
            replays.append(runs.replay_trial(item, runs.planned_again(item), run.environment, workspace))
        except LmcVerifyError as error:
            if len(chosen) == 1:
                raise
            failures.append((runs.trial_label(item), str(error)))
    _answer(replays, failures, as_json)


def _recorded(file: Path, number: int | None) -> tuple[Run, list[Trial]]:
    path = records_file(file)
    with runs.Records.open(path) as records:
        run = records.latest_run() if number is None else records.run(number)
        trials = [] if run is None else records.trials(run.id)
    if run is None or not trials:
        raise InvalidInputError(f"{path} holds no trial to reproduce; make some with lmc-verify run")
    return run, trials


def _list_trials(file: Path, run: Run, trials: Sequence[Trial], as_json: bool) -> None:
    rows = [
        [str(place), item.key[:12], runs.trial_label(item), item.verdict.outcome.value]
        for place, item in enumerate(trials, start=1)
    ]
    columns = ["trial", "key", "what", "outcome"]
    if as_json:
        print_json({"run": run.id, "trials": [dict(zip(columns, row, strict=True)) for row in rows]})
        return
    console = out_console()
    print_table(columns, rows, console)
    _line(console, f"replay one with: lmc-verify reproduce {shlex.quote(str(file))} --trial 1, or all with --all")


def _answer(replays: Sequence[Any], failures: Sequence[tuple[str, str]], as_json: bool) -> None:
    """Print the comparison and leave: 1 if a number differs, 2 if something could not be replayed, 5 after a crash."""
    differs = any(not item.identical for item in replays)
    crashed = any(item.crashed for item in replays)
    code = 1 if differs else 2 if failures else 5 if crashed else 0
    if as_json:
        print_json(
            {
                "identical": not differs and not failures,
                "exit_code": code,
                "replays": [item.to_dict() for item in replays],
                "not_replayed": [{"label": label, "reason": reason} for label, reason in failures],
            }
        )
        raise typer.Exit(code)
    console = out_console()
    for item in replays:
        count = len(item.differences)
        state = "identical" if item.identical else f"{count} {'value differs' if count == 1 else 'values differ'}"
        _line(console, f"{state}: {item.label} ({item.verdict.outcome.value})")
        for difference in item.differences:
            _line(console, f"  {difference}")
        if not item.identical:
            for difference in item.environment:
                _line(console, f"  may explain it: {difference}")
            if not item.environment:
                _line(console, "  code, libraries, platform and thread count are those of the record")
    for label, reason in failures:
        _line(console, f"not replayed: {label}: {reason}")
    if len(replays) + len(failures) > 1:
        same = sum(item.identical for item in replays)
        _line(console, f"{same} of {len(replays) + len(failures)} identical")
    raise typer.Exit(code)


def _line(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
