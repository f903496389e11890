"""Tables of a race: medians over seeds with their intervals, in words."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from lmc_verify.races import ContestantSettings, Median, RaceRecord, Standing
from lmc_verify.report.model import text
from lmc_verify.report.model.race_curves import colour_of, common_label
from lmc_verify.training import GradientError

__all__ = [
    "RaceTable",
    "accuracy_table",
    "batch_size_tables",
    "error_tables",
    "last_epoch_tables",
    "percent",
    "statement",
    "target_table",
]

NEVER = "never"

NOT_STATED = "not stated"
"""Where a run that arrived does not state what it cost."""


@dataclass(frozen=True)
class RaceTable:
    """A table of a race in words.

    Attributes:
        title: what it shows.
        columns: names; the first column names rows.
        rows: cells, as many as columns.
        colours: number of each row's colour.
        note: how to read it; may be empty.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    colours: tuple[int, ...]
    note: str = ""


def percent(value: float | None) -> str:
    """Return an accuracy as a percentage."""
    return text.ABSENT if value is None or math.isnan(value) else f"{100 * value:.2f}%"


def target_table(record: RaceRecord) -> RaceTable:
    """Return who reached the target, after how long; times also relative to LMC's, as the paper has them."""
    unit = _unit(record)
    rows = []
    for item in record.standings:
        seconds = item.medians.get("seconds")
        ratio = text.ABSENT
        if unit is not None and seconds is not None and seconds.value is not None:
            ratio = NEVER if math.isinf(seconds.value) else f"{seconds.value / unit[1]:.2g} ×"
        rows.append(
            (
                item.label,
                f"{item.arrived} of {item.runs}",
                _arrival(item, "seconds", text.duration),
                _arrival(item, "epochs", text.number),
                _arrival(item, "steps", _whole),
                _arrival(item, "nodes", _whole),
                ratio,
            )
        )
    relative = "relative time" if unit is None else f"time / {unit[0]}"
    return RaceTable(
        f"To {percent(record.target.accuracy)} {record.target.split}",
        ("contestant", "reached", "training time", "epochs", "steps", "nodes processed", relative),
        tuple(rows),
        _colours(record),
        f"{_level(record)} A run that never reaches the target counts as infinitely long; none is left out.",
    )


def accuracy_table(record: RaceRecord) -> RaceTable:
    """Return the accuracies of whole runs and the time that they took."""
    rows = tuple(
        (
            item.label,
            _value(item.medians.get("best"), _points),
            _value(item.medians.get("test"), _points),
            _value(item.medians.get("total_seconds"), text.duration),
            _value(item.medians.get("evaluation_seconds"), text.duration),
        )
        for item in record.standings
    )
    split = record.target.split
    columns = ("contestant", f"best {split} (%)", f"test at best {split} (%)", "training time", "evaluation time")
    return RaceTable("Whole runs", columns, rows, _colours(record), _level(record))


def last_epoch_tables(record: RaceRecord) -> tuple[RaceTable, ...]:
    """Return mean and spread of loss and accuracy over the last epochs, and how they compare with the baseline's."""
    split = record.target.split
    cells: dict[str, tuple[str, Callable[[float], str]]] = {
        "last_loss": ("loss", text.number),
        "last_loss_spread": ("spread of loss", text.number),
        "last_accuracy": (f"{split} (%)", _points),
        "last_accuracy_spread": (f"spread of {split} (%)", _points),
    }
    known = [median for item in record.standings for name in cells if (median := item.medians.get(name)) is not None]
    if not any(median.runs for median in known) and not record.comparisons:
        return ()
    rows = tuple(
        (item.label, *(_value(item.medians.get(name), words) for name, (_, words) in cells.items()))
        for item in record.standings
    )
    columns = ("contestant", *(title for title, _ in cells.values()))
    note = (
        f"{_level(record)} Means and standard deviations over the evaluations in the last tenth of the planned "
        "epochs, of runs that took them; a run that diverged counts as infinite, its accuracy as 0."
    )
    table = RaceTable("Last epochs", columns, rows, _colours(record), note)
    if not record.comparisons:
        return (table,)
    return table, _comparison_table(record, {name: words for name, (_, words) in cells.items()})


def statement(quantity: str, split: str) -> str:
    """Return what is claimed of a contestant's last epochs, against the baseline's, in one quantity."""
    return {
        "last_loss": "loss no larger",
        "last_loss_spread": "loss varies no more",
        "last_accuracy": f"{split} accuracy no smaller",
        "last_accuracy_spread": f"{split} accuracy varies no more",
    }[quantity]


def _comparison_table(record: RaceRecord, words: Mapping[str, Callable[[float], str]]) -> RaceTable:
    """Return every contestant's last epochs less the baseline's, with the outcome of each statement."""
    compared, seeds = record.comparisons, len(record.settings.seeds)
    rows = tuple(
        (
            item.label,
            statement(item.quantity, record.target.split),
            item.outcome.value.lower(),
            _value(item.difference, words[item.quantity]),
            text.ABSENT if item.needed is None else f"{item.needed:,}",
        )
        for item in compared
    )
    open_because = [f" Open: {item.reason}." for item in compared if item.reason][:1]
    note = (
        f"Medians over {text.count(seeds, 'seed')} of the difference to {compared[0].baseline} with the same seed, "
        "accuracies in percentage points. A statement is supported, or refuted, where the whole "
        "[interval] says so; the chance that any of this table is decided wrongly is at most "
        f"{record.settings.alpha:g}. The last column has how many fresh seeds would probably decide."
    )
    return RaceTable(
        f"Last epochs against {compared[0].baseline}",
        ("contestant", "statement", "outcome", "difference", "seeds to decide"),
        rows,
        tuple(colour_of(_estimators(record)[item.label]) for item in compared),
        "".join([note, *open_because]),
    )


def batch_size_tables(record: RaceRecord) -> tuple[RaceTable, ...]:
    """Return accuracy and time to the target: a row for each estimator, a column for each batch size."""
    contestants = record.settings.contestants
    sizes = sorted({item.design.per_batch for item in contestants if item.estimator.name != "full-batch"})
    standings = {item.label: item for item in record.standings}
    groups: dict[str, list[ContestantSettings]] = {}
    for item in contestants:
        if item.label in standings:
            groups.setdefault(item.estimator.describe(), []).append(item)
    split = record.target.split
    shown: list[tuple[str, Callable[[Standing], str]]] = [
        (f"Test accuracy at the best {split} accuracy (%)", lambda item: _value(item.medians.get("test"), _points)),
    ]
    if record.target.accuracy is not None:
        title = f"Training time to {percent(record.target.accuracy)} {split}"
        shown.append((title, lambda item: _arrival(item, "seconds", text.duration)))
    tables = []
    for title, cell in shown:
        rows = []
        for group in groups.values():
            cells = {item.design.per_batch: cell(standings[item.label]) for item in group}
            whole = group[0].estimator.name == "full-batch"
            same = cell(standings[group[0].label])
            rows.append((common_label(group), *(same if whole else cells.get(size, text.ABSENT) for size in sizes)))
        colours = tuple(colour_of(group[0].estimator.name) for group in groups.values())
        columns = ("contestant", *(f"{size} per batch" for size in sizes))
        tables.append(RaceTable(title, columns, tuple(rows), colours, _level(record)))
    return tuple(tables)


def error_tables(record: RaceRecord) -> tuple[RaceTable, ...]:
    """Return relative error and relative bias of the gradient estimates by part of the model; none if not measured."""
    measured = [
        (contestant, points)
        for contestant in record.settings.contestants
        if contestant.estimator.name != "full-batch" and (points := _gradients(record, contestant.label))
    ]
    if not measured:
        return ()
    parts = list(dict.fromkeys(part for _, points in measured for point in points for part in point.gradient))
    drawn = [point for _, points in measured for point in points if point.method != "enumerated"]
    note = "Medians over all measured steps and seeds, relative to the norm of the exact gradient of the same part."
    if drawn:
        least = min(point.batches for point in drawn)
        note += f" From {least:,} drawn batches at least: chance alone gives a bias of their standard error."
    colours = tuple(colour_of(contestant.estimator.name) for contestant, _ in measured)
    columns = ("contestant", *("all layers" if part == "all" else part for part in parts))
    kinds: tuple[tuple[str, Callable[[GradientError], dict[str, float]]], ...] = (
        ("Relative error of an estimate", lambda point: point.relative_error),
        ("Relative bias", lambda point: point.relative_bias),
    )
    tables = []
    for title, value in kinds:
        rows = []
        for contestant, points in measured:
            values = [value(point) for point in points]
            cells = (_middle([found[part] for found in values if part in found]) for part in parts)
            rows.append((contestant.label, *cells))
        tables.append(RaceTable(title, columns, tuple(rows), colours, note))
    return tuple(tables)


# ------------------------------------------------------------------ cells


def _gradients(record: RaceRecord, label: str) -> list[GradientError]:
    mine = [entry.trace for entry in record.entries if entry.label == label and entry.trace is not None]
    return [point for trace in mine for point in trace.gradients]


def _unit(record: RaceRecord) -> tuple[str, float] | None:
    """The contestant that times are compared with: the first LMC that reached the target, else the fastest."""
    found = {
        item.label: median.value
        for item in record.standings
        if (median := item.medians.get("seconds")) is not None
        and median.value is not None
        and 0 < median.value < math.inf
    }
    for contestant in record.settings.contestants:
        if contestant.estimator.name == "lmc" and contestant.label in found:
            return contestant.label, found[contestant.label]
    return min(found.items(), key=lambda item: item[1]) if found else None


def _colours(record: RaceRecord) -> tuple[int, ...]:
    estimators = _estimators(record)
    return tuple(colour_of(estimators.get(item.label, "full-batch")) for item in record.standings)


def _estimators(record: RaceRecord) -> dict[str, str]:
    return {item.label: item.estimator.name for item in record.settings.contestants}


def _level(record: RaceRecord) -> str:
    """Say over how many seeds medians are, and how sure the intervals."""
    misses = [median.miss for item in record.standings for median in item.medians.values() if median.miss < 1]
    runs = text.count(max((item.runs for item in record.standings), default=0), "seed")
    if not misses:
        return f"Medians over {runs}; too few for an interval."
    crashed = any(entry.status == "failed" for entry in record.entries)
    return (
        f"Medians over {runs} with [intervals], each of which misses its median with probability {max(misses):.2g}"
        + ("; of whole runs, over those that did not crash." if crashed else ".")
    )


def _middle(values: Sequence[float]) -> str:
    kept = [value for value in values if not math.isnan(value)]
    return text.number(statistics.median(kept)) if kept else "NaN"


def _points(value: float) -> str:
    return text.ABSENT if math.isnan(value) else f"{100 * value:.2f}"


def _whole(value: float) -> str:
    return f"{value:,.0f}"


def _arrival(item: Standing, quantity: str, words: Callable[[float], str]) -> str:
    median = item.medians.get(quantity)
    if median is None or median.value is None:
        if item.arrived:
            return NOT_STATED
        return NEVER if item.runs else text.ABSENT
    return NEVER if math.isinf(median.value) else _value(median, words)


def _value(median: Median | None, words: Callable[[float], str]) -> str:
    """Return a median with its interval in words."""
    if median is None or median.value is None:
        return text.ABSENT
    shown = words(median.value)
    if median.low is None or median.high is None:
        return shown
    high = "∞" if median.high == math.inf else words(median.high)
    return f"{shown} [{words(median.low)}, {high}]"
