"""The command ``lmc-verify compare``: two runs, of two commits or on two machines, and what got worse."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lmc_verify import report as reports
from lmc_verify.cli.options import JsonOption, print_json, records_file, shown, writable

if TYPE_CHECKING:
    from lmc_verify.report import Change, Comparison

__all__ = ["compare"]

_SHOWN = 20
"""So many lines of a list are printed; the page has all of them."""
_LONGEST = 240
"""So many characters of a line."""


def compare(
    old: Annotated[Path, typer.Argument(metavar="A", help="Output folder of a run, or its records file.")],
    new: Annotated[Path, typer.Argument(metavar="B", help="The other one, which is asked for regressions.")],
    out: Annotated[Path | None, typer.Option("--out", help="Folder for comparison.html, .md and .json.")] = None,
    suite: Annotated[str | None, typer.Option("--suite", help="Take the latest runs of this suite.")] = None,
    run_a: Annotated[
        int | None, typer.Option("--run-a", metavar="N", help="Number of the run of A (default: the latest).")
    ] = None,
    run_b: Annotated[
        int | None, typer.Option("--run-b", metavar="N", help="Number of the run of B (default: the latest).")
    ] = None,
    slower: Annotated[
        float | None,
        typer.Option(
            "--slower",
            metavar="FACTOR",
            help="Longer times are a regression where the interval of the median ratio is above it (default: never).",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Compare two recorded runs: verdicts that changed, effect sizes, times, and which changes are regressions.

    Exits with 1 on a regression, with 2 where the runs share no case.
    """
    files = records_file(old), records_file(new)
    made = reports.compare_runs(*files, old_run=run_a, new_run=run_b, suite=suite, slower=slower)
    paths: dict[str, Path] = {}
    if out is not None:
        writable(out)
        paths = reports.write_comparison(made, out)
    if as_json:
        written = {key: str(path) for key, path in paths.items()}
        print_json({**reports.comparison_document(made), "files": written})
    else:
        for line in _lines(made):
            typer.echo(shown(line))
        for key, path in paths.items():
            typer.echo(f"{key}: {path}")
    raise typer.Exit(made.exit_code)


def _lines(made: Comparison) -> Iterator[str]:
    yield made.headline
    yield from _list("regressions", [f"{name}: {reason}" for name, reason in made.regressions])
    yield from _list("mended", [_changed(item) for item in made.of("mended")])
    yield from _list("changed otherwise", [_changed(item) for item in made.of("changed")])
    yield from _list("failing in both", [_changed(item) for item in made.of("failing")])
    yield from _list("only in A, and not asked of B", [item.name for item in made.of("only in A")])
    yield from _list("only in B", [f"{item.name}: {item.either.words}" for item in made.of("only in B")])
    built = [f"{item.name}: {'; '.join(item.differences)}" for item in made.changes if item.differences]
    yield from _list("asked for alike, and built differently", built)
    races = [f"{item.name}: {item.arrived[0]} reached the target, then {item.arrived[1]}" for item in made.contests]
    yield from _list("races", races)
    moved = [f"{item.name}: {item.old.quantity} {item.old.value:.3g}, then {item.new.value:.3g}" for item in made.moved]
    yield from _list("effect sizes that differ, which decide nothing", moved)
    if made.time is not None:
        time = made.time
        ends = "too few for an interval" if time.low is None else f"from {time.low:.3g} to {time.high:.3g}"
        yield f"times: B takes {time.median:.3g} times as long, the median over {time.amount} results ({ends})"


def _changed(item: Change) -> str:
    assert item.old is not None
    assert item.new is not None
    return f"{item.name}: {item.old.words}, then {item.new.words}"


def _list(title: str, lines: list[str]) -> Iterator[str]:
    if lines:
        yield f"{title}:"
        yield from (f"  {line if len(line) <= _LONGEST else line[: _LONGEST - 1] + '…'}" for line in lines[:_SHOWN])
        if len(lines) > _SHOWN:
            yield f"  and {len(lines) - _SHOWN} more; --out writes all of them"
