"""Figures of enumerated identities: residuals next to their tolerances, and the bias of every layer."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, NullLocator

from lmc_verify.cases.verdict import Evidence
from lmc_verify.report.figures.canvas import (
    ACCENT,
    BAD,
    CARD,
    CHARACTER,
    INK,
    MUTED,
    RULE,
    both_ends,
    canvas,
    frame,
    short,
    svg,
)
from lmc_verify.report.model import text
from lmc_verify.report.model.claims import Case, ClaimSection, comparable
from lmc_verify.report.model.labels import distinguishing_labels

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["BIAS_GROUP", "bias_per_layer", "residual_strip"]

BIAS_GROUP = "bias per layer"
"""Evidence of this group is drawn by `bias_per_layer`."""

_ROWS_ONE_BY_ONE = 40
_PANELS_A_DATA_SET = 6
_TITLE = 38  # characters that fit above a panel
_DECADES = 40  # what is smaller or larger than any such power of ten is drawn at the end of the axis


@dataclass(frozen=True)
class _Row:
    label: str
    cases: tuple[Case, ...]


def residual_strip(section: ClaimSection, identifier: str) -> str | None:
    """Draw each case's residual next to its tolerance and detection limit, on a log scale; None without residuals."""
    rows = _rows([case for case in section.cases if case.verdict.residual is not None])
    if not rows:
        return None
    verdicts = [case.verdict for row in rows for case in row.cases]
    low, high = _decades(
        number
        for verdict in verdicts
        for number in (verdict.residual, verdict.tolerance, verdict.minimum_detectable_effect)
    )

    def draw() -> Figure:
        left = _margin([row.label for row in rows])
        figure, (axes,) = canvas(left, [len(rows) * 19.0 + 12.0], top=26.0, bottom=40.0)
        _log_axis(axes, low, high)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_yticks(range(len(rows)), [short(row.label) for row in rows])
        axes.set_xlabel("residual / norm of the layer's exact gradient", fontsize=11, color=MUTED)
        _marks(axes, rows, low, high)
        return figure

    beyond = sum(_is_beyond(case) for row in rows for case in row.cases)
    description = (
        f"{text.count(len(verdicts), 'residual')} on a log scale; "
        f"{beyond} beyond tolerance, {len(verdicts) - beyond} within"
    )
    return svg(draw, identifier, f"Residuals of {section.claim.id}", description)


def bias_per_layer(section: ClaimSection, identifier: str) -> str | None:
    """Draw the bias of every layer, a panel for each comparable case; None without such evidence."""
    cases = _comparable_by_data_set([case for case in section.cases if _bias(case)])
    if not cases:
        return None
    names = distinguishing_labels([case.verdict.case for case in cases])
    panels = [{item.quantity: item for item in _bias(case)} for case in cases]
    layers = list(dict.fromkeys(layer for panel in panels for layer in panel))
    every = [item for panel in panels for item in panel.values()]
    units = {item.unit for item in every}
    unit = f"bias / {units.pop()}" if len(units) == 1 else "bias"
    low, high = _decades(number for item in every for number in (item.value, item.tolerance))
    columns = min(3, len(panels))

    def draw() -> Figure:
        left = _margin(layers)
        lines = math.ceil(len(panels) / columns)
        heights = [len(layers) * 17.0 + 8.0] * lines
        figure, grid = canvas(left, heights, top=26.0, bottom=40.0, between=50.0, columns=columns)
        for index, axes in enumerate(grid):
            if index >= len(panels):
                axes.set_visible(False)
                continue
            _log_axis(axes, low, high, ticks=4)
            _bars(axes, [panels[index].get(layer) for layer in layers], low, high)
            axes.set_ylim(len(layers) - 0.4, -0.6)
            shown = [short(layer) for layer in layers] if index % columns == 0 else [""] * len(layers)
            axes.set_yticks(range(len(layers)), shown)
            axes.set_title(both_ends(names[index], _TITLE), fontsize=11, color=INK, loc="left", pad=5)
            if index == len(panels) - 1:
                axes.set_xlabel(unit, fontsize=11, color=MUTED, loc="right")
        return figure

    description = f"{text.count(len(layers), 'layer')}, {text.count(len(panels), 'panel')}, bars on a log scale"
    return svg(draw, identifier, f"Bias per layer of {section.claim.id}", description)


def _bias(case: Case) -> list[Evidence]:
    return [item for item in case.verdict.evidence if item.group == BIAS_GROUP]


def _comparable_by_data_set(cases: Sequence[Case]) -> list[Case]:
    """All cases of a data set if they are few; else the largest group that differs in the estimator only."""
    chosen: list[Case] = []
    for dataset in dict.fromkeys(case.verdict.case.dataset for case in cases):
        mine = [case for case in cases if case.verdict.case.dataset == dataset]
        chosen += mine if len(mine) <= _PANELS_A_DATA_SET else comparable(mine)
    return chosen


def _rows(cases: Sequence[Case]) -> list[_Row]:
    """A row for each case, or for each data set and estimator when there are many cases."""
    if len(cases) <= _ROWS_ONE_BY_ONE:
        return [_Row(case.label, (case,)) for case in cases]
    groups: dict[str, list[Case]] = {}
    for case in cases:
        groups.setdefault(_panel(case), []).append(case)
    return [_Row(f"{label} ({len(group)})", tuple(group)) for label, group in groups.items()]


def _panel(case: Case) -> str:
    words = (case.verdict.case.dataset, case.verdict.case.estimator)
    return " · ".join(word for word in words if word is not None) or "all cases"


def _is_beyond(case: Case) -> bool:
    residual, tolerance = case.verdict.residual, case.verdict.tolerance
    return residual is not None and tolerance is not None and not residual <= tolerance


def _decades(numbers: Iterable[float | None]) -> tuple[float, float]:
    """The decades that hold every positive finite number, with room for a mark at either end."""
    found = [math.log10(n) for n in numbers if n is not None and math.isfinite(n) and n > 0]
    if not found:
        return 1e-17, 1.0
    low = min(max(math.floor(min(found) - 0.35), -_DECADES), _DECADES - 2)
    high = min(math.ceil(max(found) + 0.35), _DECADES)
    return 10.0**low, 10.0 ** max(high, low + 2)


def _clip(value: float, low: float, high: float) -> float:
    """Where to draw a value: zero at the left end, what is not finite at the right end."""
    return high if not math.isfinite(value) else min(max(value, low), high)


def _marks(axes: Axes, rows: Sequence[_Row], low: float, high: float) -> None:
    kinds: dict[str, tuple[list[float], list[float]]] = {
        kind: ([], []) for kind in ("tolerance", "limit", "within", "beyond", "zero", "infinite", "failed")
    }

    def put(kind: str, value: float, y: float) -> None:
        kinds[kind][0].append(_clip(value, low, high))
        kinds[kind][1].append(y)

    for y, row in enumerate(rows):
        for case in row.cases:
            verdict = case.verdict
            residual = verdict.residual
            assert residual is not None
            kind = "zero" if residual <= 0 else "beyond" if _is_beyond(case) else "within"
            put(kind if math.isfinite(residual) else "infinite", residual, y)
            if case.failed:
                put("failed", residual, y)
        for kind, limits in (
            ("tolerance", {case.verdict.tolerance for case in row.cases}),
            ("limit", {case.verdict.minimum_detectable_effect for case in row.cases}),
        ):
            for limit in sorted(value for value in limits if value is not None and not math.isnan(value)):
                put(kind, limit, y)

    looks: tuple[tuple[str, str, dict[str, Any]], ...] = (
        ("tolerance", "tolerance", {"marker": "|", "s": 130, "color": INK, "linewidths": 1.6}),
        ("limit", "detection limit", {"marker": "|", "s": 60, "color": MUTED, "linewidths": 1.0}),
        ("within", "within tolerance", {"marker": "o", "s": 30, "color": ACCENT, "linewidths": 0}),
        ("beyond", "beyond tolerance", {"marker": "D", "s": 34, "facecolors": CARD, "edgecolors": ACCENT}),
        ("zero", "exactly 0", {"marker": "<", "s": 34, "color": ACCENT, "linewidths": 0}),
        ("infinite", "not finite", {"marker": ">", "s": 34, "color": BAD, "linewidths": 0}),
        (
            "failed",
            "not as expected",
            {"marker": "o", "s": 150, "facecolors": "none", "edgecolors": BAD, "linewidths": 1.6},
        ),
    )
    for kind, label, settings in looks:
        x, y_values = kinds[kind]
        if x:
            axes.scatter(x, y_values, label=label, clip_on=False, zorder=3, **settings)
    figure = axes.figure
    assert isinstance(figure, Figure)
    figure.legend(
        loc="upper left",
        bbox_to_anchor=(0.0, 1.0),
        ncols=len(looks),
        frameon=False,
        fontsize=11,
        labelcolor=MUTED,
        borderpad=0,
        borderaxespad=0.4,
        handletextpad=0,
        columnspacing=1.2,
    )


def _bars(axes: Axes, layers: Sequence[Evidence | None], low: float, high: float) -> None:
    """A bar for each layer, hollow when within its tolerance, and a tick at the tolerance."""
    for y, item in enumerate(layers):
        if item is None:
            _note(axes, low, y, "no such layer")
            continue
        value, tolerance = abs(item.value), item.tolerance
        if value == 0:
            _note(axes, low, y, "0")
        else:
            within = tolerance is not None and value <= tolerance
            axes.barh(
                y,
                _clip(value, low, high) - low,
                left=low,
                height=0.62,
                color=CARD if within else ACCENT,
                edgecolor=ACCENT,
                linewidth=1.0,
            )
        if tolerance is not None and 0 < tolerance < math.inf:
            for colour, width in ((CARD, 4.0), (INK, 1.6)):  # a rim keeps the tick visible on the bar
                axes.vlines(tolerance, y - 0.42, y + 0.42, color=colour, linewidth=width)


def _note(axes: Axes, x: float, y: float, words: str) -> None:
    axes.annotate(words, (x, y), (5, 0), textcoords="offset points", fontsize=10, color=MUTED, va="center_baseline")


def _margin(labels: Iterable[str]) -> float:
    return 16.0 + CHARACTER * max((len(short(label)) for label in labels), default=0)


def _log_axis(axes: Axes, low: float, high: float, ticks: int = 8) -> None:
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    axes.xaxis.set_major_locator(LogLocator(base=10, numticks=ticks))
    axes.xaxis.set_major_formatter(lambda value, _: f"1e{round(math.log10(value))}" if value > 0 else "")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(axis="x", color=RULE, linewidth=0.8)
    frame(axes)
