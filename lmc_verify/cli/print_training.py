"""What ``lmc-verify train`` prints: the trace of a run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from lmc_verify.training import Evaluation, Trace

__all__ = ["print_trace"]

_ROWS = 20
"""Most rows of a printed trace; the file has them all."""


def print_trace(trace: Trace, console: Console) -> None:
    """Print a run: a table of its evaluations, the gradient's errors, and a summary."""
    table = Table(title=_title(trace), title_justify="left")
    for name in ("step", "epoch", "seconds", "learning rate", "batch loss", "training loss", *_accuracies(trace)):
        table.add_column(name, justify="right")
    for row in _thinned(trace.evaluations):
        table.add_row(
            f"{row.step:,}",
            f"{row.epoch:g}",
            f"{row.seconds:.2f}",
            f"{row.learning_rate:.3g}",
            "" if row.batch_loss is None else f"{row.batch_loss:.4g}",
            f"{row.training_loss:.4g}",
            *(_accuracy(getattr(row, name)) for name in _accuracies(trace)),
        )
    console.print(table)
    if trace.gradients:
        _print_gradients(trace, console)
    for text in _summary(trace):
        console.print(text, markup=False, highlight=False, soft_wrap=True)


def _title(trace: Trace) -> str:
    about = trace.description
    estimator = about["estimator"]["name"]
    return escape(f"{estimator} on {about['dataset']}, {about['model_name']}, seed {about['seed']}")


def _accuracies(trace: Trace) -> list[str]:
    names = ("training", "validation", "test")
    return [name for name in names if any(getattr(row, name) is not None for row in trace.evaluations)]


def _accuracy(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _thinned(rows: Sequence[Evaluation]) -> list[Evaluation]:
    if len(rows) <= _ROWS:
        return list(rows)
    places = sorted({round(index * (len(rows) - 1) / (_ROWS - 1)) for index in range(_ROWS)})
    return [rows[place] for place in places]


def _print_gradients(trace: Trace, console: Console) -> None:
    parts = list(trace.gradients[0].gradient)
    table = Table(title="Gradient error: relative bias | relative error of one estimate", title_justify="left")
    for name in ("step", "gradient norm", *parts):
        table.add_column(name, justify="right")
    for item in trace.gradients:
        bias, error = item.relative_bias, item.relative_error
        table.add_row(
            f"{item.step:,}",
            f"{item.gradient['all']:.3g}",
            *(f"{bias[part]:.2g} | {error[part]:.2g}" for part in parts),
        )
    console.print(table)
    first = trace.gradients[0]
    how = "every batch of the design" if first.method == "enumerated" else f"{first.batches} independent batches"
    console.print(f"gradient errors are over {how}, in evaluation mode", highlight=False)


def _summary(trace: Trace) -> Iterator[str]:
    yield trace.status if not trace.reason else f"{trace.status}: {trace.reason}"
    last, best = trace.last, trace.best()
    if last is None:
        return
    if best is not None:
        test = "" if best.test is None else f", test {best.test:.4f} there"
        yield f"best validation {trace.metric} {best.validation:.4f} at step {best.step:,}{test}"
    yield (
        f"{last.step:,} steps in {last.seconds:.2f} s of training (and {last.evaluation_seconds:.2f} s of evaluation), "
        + _processed(last)
    )


def _processed(last: Evaluation) -> str:
    if last.nodes is None or last.messages is None:
        return "the estimator does not state its cost"
    return f"{last.nodes:,} nodes and {last.messages:,} messages processed"
