"""Which measured curves are drawn together: those of one case, and those of a claim's cases, to compare them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lmc_verify.cases.curves import Scale, Series
from lmc_verify.report.model import text
from lmc_verify.report.model.claims import Case, ClaimSection, comparable
from lmc_verify.report.model.labels import distinguishing_labels

__all__ = [
    "LARGEST",
    "MOST_CURVES",
    "Curve",
    "DotRow",
    "Plot",
    "Points",
    "case_plots",
    "claim_plots",
    "numbers",
    "spans_decades",
]

MOST_CURVES = 6
"""As many curves as a reader can distinguish in one figure, besides those that all its cases share."""

_FEW_CURVES = 4  # with more, every data set has a figure of its own

_FEW_INTERVALS = 12  # they are drawn as bars, more as a band

_MOST_POINTS = 600

LARGEST = 1e290
"""Beyond it the arithmetic of axes overflows: such values are drawn like infinity."""


@dataclass(frozen=True)
class Points:
    """A series as it can be drawn on its axes.

    Attributes:
        x: positions, ascending.
        y: values; NaN where the line is broken.
        low: lower ends of intervals, as many as `x`, or empty.
        high: upper ends, likewise.
        below: positions of values that lie below every axis: zero or less on a log scale, or minus infinity.
        above: positions of infinite values.
        left_out: number of points that cannot be drawn: NaN, or a position that the axis does not have.
        stride: 1, or k where only one point in k is drawn because there are very many.
    """

    x: tuple[float, ...]
    y: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    below: tuple[float, ...]
    above: tuple[float, ...]
    left_out: int
    stride: int

    @property
    def banded(self) -> bool:
        """Whether the intervals are drawn as a band, and not as bars."""
        return len(self.low) > _FEW_INTERVALS

    @classmethod
    def of(cls, series: Series) -> Points:
        """Sort the points of a series into those on the axes, at their edges, and left out."""
        count = min(len(series.x), len(series.y))
        stride = math.ceil(count / _MOST_POINTS) or 1
        with_interval = len(series.low) == len(series.high) == count > 0
        kept: list[tuple[float, float, float, float]] = []
        below, above, left_out = [], [], 0
        for index in range(0, count, stride):
            x, y = float(series.x[index]), float(series.y[index])
            if math.isnan(y) or not abs(x) < LARGEST or (series.scale == "loglog" and x <= 0):
                left_out += 1
                continue
            ends = (float(series.low[index]), float(series.high[index])) if with_interval else (math.nan, math.nan)
            if y >= LARGEST:
                above.append(x)
                y = math.nan
            elif y <= -LARGEST or (series.scale != "linear" and y <= 0):
                below.append(x)
                y = math.nan
            kept.append((x, y, *ends))
        xs, ys, lows, highs = zip(*kept, strict=True) if kept else ((), (), (), ())
        if not with_interval:
            lows = highs = ()
        return cls(xs, ys, lows, highs, tuple(below), tuple(above), left_out, stride)


@dataclass(frozen=True)
class Curve:
    """A series with its look: colours distinguish cases (or the series of a single case), dashes series.

    A `shared` curve is the same in several cases, such as a claimed value: it is drawn once and has no case's colour.
    """

    label: str
    series: Series
    points: Points
    colour: int
    dash: int
    shared: bool = False


@dataclass(frozen=True)
class Plot:
    """Curves that share their axes.

    Attributes:
        title: of the figure.
        detail: what tells it from another figure with this title, such as a data set; may be empty.
        x_label: what positions are, with the unit.
        y_label: what values are, with the unit.
        scale: of the axes.
        curves: those that all cases share, and at most `MOST_CURVES` others.
        cases: the cases whose curves are drawn.
        hidden: number of curves that there was no room for.
        shown: further values that the vertical axis shows, so that several figures have one scale.
    """

    title: str
    detail: str
    x_label: str
    y_label: str
    scale: Scale
    curves: tuple[Curve, ...]
    cases: tuple[Case, ...]
    hidden: int = 0
    shown: tuple[float, ...] = ()

    @property
    def notes(self) -> list[str]:
        """What a reader must know beyond the labels: what is drawn, and which points are not where they lie."""
        drawn = [curve.points for curve in self.curves]
        below, above = sum(len(item.below) for item in drawn), sum(len(item.above) for item in drawn)
        left_out = sum(item.left_out for item in drawn)
        shapes = {"Bands" if item.banded else "Bars" for item in drawn if item.low}
        names = {curve.series.name for curve in self.curves if not curve.shared}
        notes = []
        if len(self.cases) > 1 and len(names) == 1:
            notes.append(f"Curves: {names.pop()}.")
        if shapes:
            notes.append(f"{' and '.join(sorted(shapes)).capitalize()} show each value's interval or range.")
        if below:
            what = "below the axis" if self.scale == "linear" else "of 0 or less"
            notes.append(f"▽ {text.count(below, 'value')} {what}, at the lower edge.")
        if above:
            notes.append(f"△ {text.count(above, 'infinite value')}, at the upper edge.")
        if left_out:
            notes.append(f"{text.count(left_out, 'point')} without a place on the axes left out.")
        if any(item.stride > 1 for item in drawn):
            notes.append(f"One point in {max(item.stride for item in drawn)} is drawn.")
        if self.hidden:
            notes.append(f"{text.count(self.hidden, 'further curve')} in the list of cases.")
        return notes

    @property
    def table(self) -> tuple[tuple[float, tuple[float | None, ...]], ...]:
        """The values by position: a row for each x, a column for each curve; None where a curve has no such x."""
        columns = [dict(zip(curve.series.x, curve.series.y, strict=False)) for curve in self.curves]
        positions = sorted({x for column in columns for x in column if math.isfinite(x)})
        return tuple((x, tuple(column.get(x) for column in columns)) for x in positions)


_Axes = tuple[str, Scale, str, str]


def case_plots(case: Case) -> tuple[Plot, ...]:
    """Return the figures of one case: a figure for each title."""
    return tuple(
        _plot(axes, [(case, case.verdict.series)], "") for axes in dict.fromkeys(map(_axes, case.verdict.series))
    )


def claim_plots(section: ClaimSection) -> tuple[Plot, ...]:
    """Return the figures that overlay the cases of a claim.

    A title with few curves is one figure. With more, each data set has a figure; where that is still too much, it shows
    cases that differ in the estimator only.
    """
    plots: list[Plot] = []
    for axes in dict.fromkeys(_axes(series) for case in section.cases for series in case.verdict.series):
        cases = [case for case in section.cases if any(_axes(item) == axes for item in case.verdict.series)]
        datasets = dict.fromkeys(text.setting(case.verdict.case.dataset) for case in cases)
        if _amount(axes, cases) <= _FEW_CURVES:
            plots.append(_plot(axes, [(case, case.verdict.series) for case in cases], ""))
            continue
        for dataset in datasets:
            mine = [case for case in cases if text.setting(case.verdict.case.dataset) == dataset]
            total = _amount(axes, mine)
            chosen = mine if total <= MOST_CURVES else comparable(mine)
            fitting = [
                case for end, case in enumerate(chosen, 1) if end == 1 or _amount(axes, chosen[:end]) <= MOST_CURVES
            ]
            detail = dataset if len(datasets) > 1 else ""
            plots.append(_plot(axes, [(case, case.verdict.series) for case in fitting], detail, total))
    return tuple(plots)


def _axes(series: Series) -> _Axes:
    return series.figure, series.scale, series.x_label, series.y_label


def _amount(axes: _Axes, cases: Sequence[Case]) -> int:
    """Return how many curves the cases have of their own."""
    every = [item for case in cases for item in case.verdict.series if _axes(item) == axes]
    shared = _shared(every) if len(cases) > 1 else set()
    return sum(item.name not in shared for item in every)


def _shared(every: Sequence[Series]) -> set[str]:
    """Return the names under which all cases have the same curve; none where they agree in everything."""
    curves: dict[str, set[Series]] = {}
    for item in every:
        curves.setdefault(item.name, set()).add(item)
    found = {name for name, different in curves.items() if len(different) == 1}
    return set() if len(found) == len(curves) else found


def _plot(axes: _Axes, groups: Sequence[tuple[Case, Sequence[Series]]], detail: str, total: int | None = None) -> Plot:
    title, scale, x_label, y_label = axes
    chosen = [(case, [item for item in series if _axes(item) == axes]) for case, series in groups]
    names = list(dict.fromkeys(item.name for _, series in chosen for item in series))
    labels = distinguishing_labels([case.verdict.case for case, _ in chosen], whole=False)
    every = [item for _, series in chosen for item in series]
    shared = _shared(every) if len(chosen) > 1 else set()
    several = len(names) - len(shared) > 1
    curves: list[Curve] = []
    for number, ((_, series), label) in enumerate(zip(chosen, labels, strict=True)):
        for item in series:
            dash = names.index(item.name)
            if item.name in shared:
                if not any(curve.shared and curve.series == item for curve in curves):
                    curves.append(Curve(item.name, item, Points.of(item), dash, dash, shared=True))
                continue
            parts = [label] if len(chosen) > 1 else []
            if several or len(chosen) == 1:
                parts.append(item.name)
            colour = number if len(chosen) > 1 else dash
            curves.append(Curve(", ".join(parts), item, Points.of(item), colour, dash))
    own = [curve for curve in curves if not curve.shared]
    drawn = tuple(curve for curve in curves if curve.shared or curve in own[:MOST_CURVES])
    hidden = (len(own) if total is None else total) - len(own[:MOST_CURVES])
    cases = tuple(case for case, _ in chosen)
    return Plot(title, detail, x_label, y_label, scale, drawn, cases, hidden)


@dataclass(frozen=True)
class DotRow:
    """One row of a dot plot.

    Attributes:
        label: what was measured.
        values: one for each repetition that has a value; positive where the axis is logarithmic.
        median: of all repetitions, None if it has no value, as where most repetitions never got there.
        low: lower end of its interval, or None.
        high: upper end, or None for no upper end.
        colour: number of the colour and marker.
        note: words at the end of the row, such as how many repetitions have no value.
        missing: number of repetitions without a value, drawn at the right edge.
    """

    label: str
    values: tuple[float, ...]
    median: float | None
    low: float | None
    high: float | None
    colour: int
    note: str = ""
    missing: int = 0


def spans_decades(rows: Sequence[DotRow]) -> bool:
    """Whether the values of rows are all positive and spread over more than a factor of twenty."""
    values = [value for row in rows for value in row.values if math.isfinite(value)]
    return bool(values) and min(values) > 0 and max(values) > 20 * min(values)


def numbers(row: DotRow) -> list[float]:
    """Return every number of a row that is drawn."""
    return [*row.values, *(value for value in (row.median, row.low, row.high) if value is not None)]
