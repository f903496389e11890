"""Progress of suites and training runs on a terminal."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from lmc_verify import races, runs
from lmc_verify.report.model.text import duration

if TYPE_CHECKING:
    from lmc_verify.races import RaceRun
    from lmc_verify.runs import AnyPlanned, AnyResult, Listener, SearchRecord, Trial, Watch
    from lmc_verify.training import Evaluation, Trainer

__all__ = ["Display", "progress", "train_progress"]

_SURE_AFTER = 10.0
"""Seconds after which the time left is estimated."""
_LONG = 30.0
"""Seconds between lines about one part, where there is no terminal."""


def _mark(trial: Trial | SearchRecord) -> str:
    return {True: "as expected", False: "UNEXPECTED", None: "no expectation"}[trial.as_expected]


@dataclass(frozen=True)
class Display:
    """What shows the progress of a run: `listen` after each part of it, `watch` while one is under way."""

    listen: Listener
    watch: Watch


def _line(planned: AnyPlanned, result: AnyResult | None, reason: str) -> str:
    if result is None:
        return f"not run         {planned.label}: {reason}"
    if isinstance(result, races.RaceRun):
        return f"{result.outcome:<15} {_standing(result):<14} {planned.label} ({result.seconds:.2f} s)"
    outcome = result.outcome.upper() if isinstance(result, runs.SearchRecord) else result.verdict.outcome.value
    return f"{outcome:<15} {_mark(result):<14} {planned.label} ({result.seconds:.2f} s)"


def _under_way(label: str, seconds: float, words: str) -> str:
    return f"under way       {label}: {', '.join(filter(None, (duration(seconds) + ' so far', words)))}"


def _standing(run: RaceRun) -> str:
    """Say how good a training run is, or why there is nothing to say."""
    best = run.entry.trace.best() if run.entry.trace is not None else None
    return run.entry.reason if best is None else f"best {best.validation:.2%}"


class _Clock:
    """Estimates the time left once the parts of the last kind have begun: those before say nothing about it."""

    def __init__(self, last: type[AnyPlanned]) -> None:
        self.last, self.done, self.start = last, 0, time.monotonic()

    def left(self, planned: AnyPlanned, remaining: int) -> str:
        """Count a part; return the estimate in words, nothing where it would be a guess."""
        now = time.monotonic()
        if not isinstance(planned, self.last):
            self.start = now
            return ""
        self.done += 1
        passed = now - self.start
        return f", about {duration(passed / self.done * remaining)} left" if remaining and passed > _SURE_AFTER else ""


@contextmanager
def progress(total: int, *, console: Console, last: type[AnyPlanned] | None = None) -> Iterator[Display]:
    """Yield what shows progress: a bar on a terminal, one line for each part elsewhere; both with the time left.

    Args:
        total: number of parts.
        console: where it is shown.
        last: the kind of the parts that come last (default: checks).
    """
    if not console.is_terminal:
        done, clock = 0, _Clock(last or runs.Planned)

        def plain(planned: AnyPlanned, result: AnyResult | None, reason: str) -> None:
            nonlocal done
            done += 1
            left = clock.left(planned, total - done)
            console.print(
                f"[{done}/{total}{left}] {_line(planned, result, reason)}",
                markup=False,
                highlight=False,
                soft_wrap=True,
            )

        told: dict[str, float] = {}

        def under_way(label: str, seconds: float, words: str) -> None:
            last = told.get(label, 0.0)
            if seconds < last:  # another part of this name
                last = told[label] = 0.0
            if seconds - last >= _LONG:
                told[label] = seconds
                console.print(
                    f"[{done}/{total}] {_under_way(label, seconds, words)}",
                    markup=False,
                    highlight=False,
                    soft_wrap=True,
                )

        yield Display(plain, under_way)
        return
    with Progress(*_columns(console), console=console, transient=True) as bar:
        task = bar.add_task("checking", total=total)

        def rich(planned: AnyPlanned, result: AnyResult | None, reason: str) -> None:
            bar.advance(task)
            wrong = (
                result.crashed
                if isinstance(result, races.RaceRun)
                else result is not None and result.as_expected is False
            )
            if result is None or wrong:
                bar.console.print(_line(planned, result, reason), markup=False, highlight=False)

        def watch(label: str, seconds: float, words: str) -> None:
            if words or seconds > _SURE_AFTER:
                # What moves comes first: a narrow terminal cuts the end.
                bar.update(task, description=_cut(f"{words or duration(seconds)}: {label}", console, total))

        yield Display(rich, watch)


_PAUSE = 10.0
"""Seconds between lines of progress where there is no terminal."""


_NARROW = 80
"""Columns of a terminal below which there is no room for a bar and the time left."""
_BAR, _TIME = 16, 8
"""Columns of a bar, and of a time of up to 99 hours."""


def _columns(console: Console) -> list[ProgressColumn]:
    """Return what stands in the line of a bar behind its text."""
    text, counts, passed = TextColumn("{task.description}"), MofNCompleteColumn(), TimeElapsedColumn()
    if console.width < _NARROW:
        return [text, counts, passed]
    return [text, BarColumn(bar_width=_BAR), counts, passed, TimeRemainingColumn()]


def _cut(words: str, console: Console, total: int) -> str:
    """Return a text as markup, cut to what the numbers leave of the line: rich would cut all of them alike."""
    taken = 2 * len(str(total)) + 1 + _TIME + 2
    taken += 0 if console.width < _NARROW else _BAR + _TIME + 2
    text = Text(words)
    text.truncate(max(1, console.width - taken), overflow="ellipsis")
    return escape(text.plain)


def _state(last: Evaluation | None) -> str:
    if last is None:
        return ""
    accuracy = "" if last.validation is None else f", validation {last.validation:.4f}"
    return f"loss {last.training_loss:.4g}{accuracy}"


@contextmanager
def train_progress(trainer: Trainer, console: Console) -> Iterator[Callable[[Trainer], None]]:
    """Yield a listener of a run: a bar with the time left on a terminal, a line every ten seconds elsewhere."""
    total = trainer.trace.planned_steps
    if not console.is_terminal:
        begun, shown, first = time.perf_counter(), time.perf_counter(), trainer.step_count

        def line(run: Trainer) -> None:
            nonlocal shown
            now = time.perf_counter()
            if now - shown < _PAUSE or run.step_count == first:
                return
            shown = now
            left = (now - begun) / (run.step_count - first) * (total - run.step_count)
            text = f"step {run.step_count}/{total}, {_state(run.trace.last)}, about {left:.0f} s left"
            console.print(text, markup=False, highlight=False, soft_wrap=True)

        yield line
        return
    with Progress(*_columns(console), console=console, transient=True) as bar:
        task = bar.add_task("training", total=total, completed=trainer.step_count)

        def update(run: Trainer) -> None:
            words = f"training: {_state(run.trace.last)}".removesuffix(": ")
            bar.update(task, completed=run.step_count, description=_cut(words, console, total))

        yield update
