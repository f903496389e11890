"""The pictures of a race: which curves and dots are drawn of its runs, for each kind of figure of the paper.

A contestant is drawn as the median over its seeds with their range. Every estimator keeps its colour and marker in all
figures; a second contestant with the same estimator has another line.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from lmc_verify.cases.curves import Scale, Series
from lmc_verify.display.text import capitalised
from lmc_verify.races import ContestantSettings, RaceEntry, RaceRecord, Standing
from lmc_verify.report.model import text
from lmc_verify.report.model.curves import Curve, DotRow, Plot, Points
from lmc_verify.training import GradientError, Trace

__all__ = [
    "FIGURE_TITLES",
    "ablation_plots",
    "batch_size_plots",
    "colour_of",
    "common_label",
    "convergence_plots",
    "gradient_plots",
    "time_rows",
]

FIGURE_TITLES = {
    "convergence": "Convergence against time",
    "time-to-accuracy": "Time to the target accuracy",
    "gradient-errors": "Gradient errors along training",
    "batch-sizes": "Accuracy against batch size",
    "ablation": "Ablation of the compensations",
}
"""What each kind of figure is called, in the order of the paper's figures 3 to 7."""

_COLOURS = {
    "lmc": 0,
    "gas": 1,
    "fm": 2,
    "cluster-gcn": 3,
    "backward-sgd": 4,
    "full-batch": 5,
    "lmc-forward-only": 6,
    "lmc-backward-only": 7,
}
_Values = Callable[[Trace], Sequence[tuple[float, float, float | None]]]
"""Of a run: key of each point (runs are aligned by it), position, and value or None."""


def colour_of(estimator: str) -> int:
    """Return the number of an estimator's colour and marker, the same in every figure."""
    return _COLOURS.get(estimator, sum(estimator.encode()) % len(_COLOURS))


def convergence_plots(record: RaceRecord, contestants: Sequence[ContestantSettings], detail: str) -> tuple[Plot, ...]:
    """Return accuracy and loss, each against training time and against epochs."""
    split = record.target.split
    metric = _metric(record)
    accuracy = f"{split} {metric}"
    rows: tuple[tuple[str, Scale, str], ...] = (
        (split, "linear", accuracy),
        ("training_loss", "semilogy", "training loss"),
    )
    plots = []
    for column, scale, y_label in rows:
        for position, x_label in (("seconds", "training time (s)"), ("epoch", "epochs")):
            title = f"{capitalised(y_label)} against {x_label.removesuffix(' (s)')}"
            series = _series(record, contestants, _evaluations(position, column), title, x_label, y_label, scale)
            plot = _plot(title, detail, x_label, y_label, scale, series)
            plots.append(_without_start(plot) if scale == "linear" else plot)
    return tuple(plot for plot in plots if plot.curves)


def ablation_plots(record: RaceRecord, detail: str) -> tuple[Plot, ...]:
    """Return accuracy against epochs, a figure for each batch size; full-batch training is in all of them."""
    contestants = record.settings.contestants
    sizes = sorted({item.design.per_batch for item in contestants if item.estimator.name != "full-batch"})
    names = {
        item.label: common_label([other for other in contestants if other.estimator == item.estimator])
        for item in contestants
    }
    plots: list[Plot] = []
    for size in sizes:
        chosen = [item for item in contestants if item.estimator.name == "full-batch" or item.design.per_batch == size]
        found = convergence_plots(record, chosen, f"{text.count(size, 'cluster')} per batch, {detail}")
        for plot in (item for item in found if item.x_label == "epochs" and item.scale == "linear"):
            labels = [names[curve.label] for curve in plot.curves]
            if len(set(labels)) == len(labels):  # the batch size is in the figure's title
                curves = tuple(replace(curve, label=label) for curve, label in zip(plot.curves, labels, strict=True))
                plot = replace(plot, curves=curves)
            plots.append(plot)
    drawn = [y for plot in plots for curve in plot.curves for y in curve.points.y if not math.isnan(y)]
    return tuple(replace(plot, shown=(min(drawn), max(drawn)) if drawn else ()) for plot in plots)


def gradient_plots(record: RaceRecord, contestants: Sequence[ContestantSettings], detail: str) -> tuple[Plot, ...]:
    """Return relative error, bias and standard deviation of the gradient estimates along training, part by part.

    Full-batch training has no error, and no curve.
    """
    contestants = [item for item in contestants if item.estimator.name != "full-batch"]
    parts = dict.fromkeys(
        part
        for entry in record.entries
        if entry.trace is not None
        for point in entry.trace.gradients
        for part in point.gradient
    )
    quantities = (
        ("Relative error", "E‖g − ∇L‖ / ‖∇L‖", lambda point, part: point.relative_error[part]),
        ("Relative bias", "‖E g − ∇L‖ / ‖∇L‖", lambda point, part: point.relative_bias[part]),
        ("Relative standard deviation", "√E‖g − E g‖² / ‖∇L‖", _relative_deviation),
    )
    plots: list[Plot] = []
    for name, y_label, value in quantities:
        group = []
        for part in parts:
            title = f"{name}, {'all layers' if part == 'all' else part}"
            series = _series(record, contestants, _gradients(part, value), title, "epochs", y_label, "semilogy")
            group.append(_plot(title, detail, "epochs", y_label, "semilogy", series))
        drawn = [y for plot in group for curve in plot.curves for y in curve.points.y if not math.isnan(y)]
        shown = (min(drawn), max(drawn)) if drawn else ()
        plots += [replace(plot, shown=shown) for plot in group if plot.curves]
    return tuple(plots)


def batch_size_plots(record: RaceRecord, contestants: Sequence[ContestantSettings], detail: str) -> tuple[Plot, ...]:
    """Return accuracy against the number of clusters per batch, with intervals for the medians over seeds."""
    standings = {item.label: item for item in record.standings}
    quantities = (
        ("best", f"best {record.target.split} {_metric(record)}"),
        ("test", f"test {_metric(record)} at the best {record.target.split} {_metric(record)}"),
    )
    sizes = sorted({float(item.design.per_batch) for item in contestants if item.estimator.name != "full-batch"})
    plots = []
    for quantity, y_label in quantities:
        title = capitalised(y_label)
        curves = []
        for estimator in dict.fromkeys(item.estimator.describe() for item in contestants):
            group = [item for item in contestants if item.estimator.describe() == estimator]
            group = [item for item in group if item.label in standings]
            points = [
                (size, median)
                for item in sorted(group, key=lambda item: item.design.per_batch)
                for size in (sizes if item.estimator.name == "full-batch" else [float(item.design.per_batch)])
                if (median := standings[item.label].medians.get(quantity)) is not None and median.value is not None
            ]
            if not points:
                continue
            series = Series(
                name=estimator,
                x=tuple(size for size, _ in points),
                y=tuple(float(median.value) for _, median in points if median.value is not None),
                figure=title,
                x_label="clusters per batch",
                y_label=y_label,
                low=tuple(math.nan if median.low is None else median.low for _, median in points),
                high=tuple(math.nan if median.high is None else median.high for _, median in points),
            )
            curves.append((group[0].estimator.name, common_label(group), series))
        plots.append(_plot(title, detail, "clusters per batch", y_label, "linear", curves))
    return tuple(plot for plot in plots if plot.curves)


def time_rows(record: RaceRecord) -> tuple[DotRow, ...]:
    """Return a row for each contestant: the training time of each run to the target, its median and interval."""
    contestants = {item.label: item for item in record.settings.contestants}
    return tuple(_time_row(record, item, contestants.get(item.label)) for item in record.standings)


def _time_row(record: RaceRecord, standing: Standing, contestant: ContestantSettings | None) -> DotRow:
    runs = [entry for entry in record.entries if entry.label == standing.label]
    times = tuple(entry.reached.seconds for entry in runs if entry.reached is not None)
    median = standing.medians.get("seconds")
    missing = standing.runs - standing.arrived
    if not missing:
        note = ""
    elif standing.arrived:
        note = f"{missing} of {standing.runs} never"
    else:
        note = f"never ({text.count(standing.runs, 'run')})"
    return DotRow(
        label=standing.label,
        values=times,
        median=None if median is None or median.value is None or math.isinf(median.value) else median.value,
        low=None if median is None else median.low,
        high=None if median is None or median.low is None else median.high,
        colour=colour_of("full-batch" if contestant is None else contestant.estimator.name),
        note=note,
        missing=missing,
    )


# ------------------------------------------------------------------ curves of runs


def _evaluations(position: str, column: str) -> _Values:
    def values(trace: Trace) -> list[tuple[float, float, float | None]]:
        rows = zip(trace.column("step"), trace.column(position), trace.column(column), strict=True)
        return [(float(step), float(x), y) for step, x, y in rows]

    return values


def _gradients(part: str, value: Callable[[GradientError, str], float]) -> _Values:
    def values(trace: Trace) -> list[tuple[float, float, float | None]]:
        return [
            (float(point.step), point.step / trace.steps_per_epoch, value(point, part))
            for point in trace.gradients
            if part in point.gradient
        ]

    return values


def _relative_deviation(point: GradientError, part: str) -> float:
    unit, deviation = point.gradient[part], math.sqrt(max(point.variance[part], 0.0))
    return deviation / unit if unit else math.inf if deviation else 0.0


def _series(
    record: RaceRecord,
    contestants: Sequence[ContestantSettings],
    values: _Values,
    title: str,
    x_label: str,
    y_label: str,
    scale: Scale,
) -> list[tuple[str, str, Series]]:
    """Return estimator, label and median curve of every contestant that has points."""
    found = []
    for contestant in contestants:
        runs = [entry for entry in record.entries if entry.label == contestant.label]
        points = _median_points(runs, values)
        if points:
            x, y, low, high = (tuple(column) for column in zip(*points, strict=True))
            several = sum(entry.trace is not None for entry in runs) > 1
            ends: dict[str, Any] = {"low": low, "high": high} if several else {}
            series = Series(contestant.label, x, y, title, x_label, y_label, scale=scale, **ends)
            found.append((contestant.estimator.name, contestant.label, series))
    return found


def _median_points(runs: Sequence[RaceEntry], values: _Values) -> list[tuple[float, float, float, float]]:
    """Return position, median, smallest and largest value at every point that at least half of the runs have."""
    traces = [entry.trace for entry in runs if entry.trace is not None]
    columns: dict[float, list[tuple[float, float]]] = {}
    for trace in traces:
        for key, x, y in values(trace):
            if y is not None and not math.isnan(y):
                columns.setdefault(key, []).append((x, y))
    points = []
    for key in sorted(columns):
        column = columns[key]
        if 2 * len(column) >= len(traces):
            ys = [y for _, y in column]
            points.append((statistics.median(x for x, _ in column), _median(ys), min(ys), max(ys)))
    # Medians of times over different sets of runs may step back where a run ends early.
    forward: list[tuple[float, float, float, float]] = []
    for point in points:
        if not forward or point[0] > forward[-1][0]:
            forward.append(point)
    return forward


def _median(values: Sequence[float]) -> float:
    ordered = sorted(values)
    middle = len(ordered) // 2
    if len(ordered) % 2 or math.isinf(ordered[middle]):
        return ordered[middle]
    return (ordered[middle - 1] + ordered[middle]) / 2


def _plot(
    title: str, detail: str, x_label: str, y_label: str, scale: Scale, drawn: Sequence[tuple[str, str, Series]]
) -> Plot:
    seen: dict[str, int] = {}
    curves = []
    for estimator, label, series in drawn:
        dash = seen.get(estimator, 0)
        seen[estimator] = dash + 1
        curves.append(Curve(label, series, Points.of(series), colour_of(estimator), dash))
    return Plot(title, detail, x_label, y_label, scale, tuple(curves), ())


def common_label(group: Sequence[ContestantSettings]) -> str:
    """Return what the labels of contestants with one estimator have in common."""
    first = group[0].label
    if len(group) == 1:
        return first
    length = 0
    while length < len(first) and all(item.label[: length + 1] == first[: length + 1] for item in group):
        length += 1
    whole, comma, _ = first[:length].rpartition(",")  # labels differ in what follows the last comma
    return whole.strip() if comma else group[0].estimator.describe()


def _without_start(plot: Plot) -> Plot:
    """Return a figure whose axis begins where curves are after their first sixth, if that is far above their start.

    Accuracies rise from chance in the first epochs, which would make all later differences look small. Earlier points
    are drawn at the lower edge, and the figure's notes count them.
    """
    late = [y for curve in plot.curves for y in curve.points.y[max(1, len(curve.points.y) // 6) :]]
    every = [y for curve in plot.curves for y in curve.points.y]
    if not late or min(late) - min(every) < 0.3 * (max(every) - min(every)):
        return plot
    floor = min(late)
    curves = []
    for curve in plot.curves:
        points = curve.points
        kept = replace(
            points,
            y=tuple(y if y >= floor else math.nan for y in points.y),
            low=tuple(max(low, floor) for low in points.low),
            high=tuple(max(high, floor) for high in points.high),
            below=tuple(x for x, y in zip(points.x, points.y, strict=True) if y < floor),
        )
        curves.append(replace(curve, points=kept))
    return replace(plot, curves=tuple(curves))


def _metric(record: RaceRecord) -> str:
    return next((entry.trace.metric for entry in record.entries if entry.trace is not None), "accuracy")
