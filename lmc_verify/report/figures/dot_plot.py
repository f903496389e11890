"""Dot plots of repeated measurements: a row for each thing measured, a dot for each repetition, median and interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from lmc_verify.report.figures.canvas import CARD, CHARACTER, CURVES, INK, MUTED, RULE, canvas, frame, short, svg
from lmc_verify.report.figures.line_plot import MARKERS, padded, round_ticks, tick_label
from lmc_verify.report.model import text
from lmc_verify.report.model.curves import DotRow, numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["dot_plot"]

_ROW = 30.0

_WIDTH = 430.0  # fits a narrow page almost unscaled


def dot_plot(rows: Sequence[DotRow], identifier: str, title: str, x_label: str, *, log: bool) -> str:
    """Draw rows as an SVG element.

    Args:
        rows: at least one; values that are not finite, or not positive on a log axis, are not drawn.
        identifier: prefix of every id.
        title: for readers who do not see the figure.
        x_label: what the values are, with the unit.
        log: whether the axis is logarithmic.
    """
    shown = [value for row in rows for value in numbers(row) if math.isfinite(value) and (value > 0 or not log)]
    left, right = padded(shown, log=log, pad=0.08)
    if not log and shown and min(shown) >= 0 and min(shown) < 0.5 * max(shown):
        left = 0.0
    ticks = round_ticks(left, right, log=log, most=6)

    def draw() -> Figure:
        margin = 14.0 + CHARACTER * max(len(short(row.label, 30)) for row in rows)
        room = 20.0 + CHARACTER * max(len(short(row.note, 34)) for row in rows)
        figure, axes = canvas(margin, _ROW * len(rows), top=8.0, bottom=44.0, width=_WIDTH, right=room)
        if log:
            axes.set_xscale("log")
        axes.set_xlim(left, right)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        frame(axes)
        axes.spines["left"].set_visible(False)
        axes.spines["bottom"].set_visible(True)
        axes.spines["bottom"].set_color(MUTED)
        axes.tick_params(axis="x", which="major", length=4, color=MUTED)
        axes.set_yticks(range(len(rows)), [short(row.label, 30) for row in rows])
        axes.xaxis.set_major_locator(FixedLocator(list(ticks)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(lambda value, _: tick_label(value))
        axes.grid(axis="x", color=RULE, linewidth=0.8)
        axes.set_xlabel(short(x_label, 60), fontsize=11, color=MUTED, labelpad=5)
        for y, row in enumerate(rows):
            _draw_row(axes, y, row, left, right, log=log)
        return figure

    described = "; ".join(f"{row.label}: {_words(row)}" for row in rows)
    return svg(draw, identifier, title, text.printable(f"{x_label}. {described}."))


def _words(row: DotRow) -> str:
    said = f"median {text.number(row.median)}, interval {text.interval(row.low, row.high)}"
    return f"{said}, {row.note}" if row.note else said


def _draw_row(axes: Axes, y: int, row: DotRow, left: float, right: float, *, log: bool) -> None:
    colour, marker = CURVES[row.colour % len(CURVES)], MARKERS[row.colour % len(MARKERS)]
    low = row.low if row.low is not None and (row.low > 0 or not log) else None
    if low is not None and math.isfinite(low):
        high = row.high if row.high is not None and math.isfinite(row.high) else right
        axes.hlines(y, low, high, color=colour, linewidth=2.4, alpha=0.45, zorder=2)
    inside = [value for value in row.values if math.isfinite(value) and (value > 0 or not log)]
    # Repetitions lie below the median, so that neither hides the other.
    look: dict[str, Any] = {"facecolors": CARD, "edgecolors": colour, "linewidths": 1.0, "clip_on": False}
    axes.scatter(inside, [y + 0.27] * len(inside), marker="o", s=16, zorder=3, **look)
    if row.median is not None and math.isfinite(row.median) and (row.median > 0 or not log):
        axes.scatter([row.median], [y], marker=marker, s=52, color=colour, clip_on=False, zorder=4)
    if row.missing:
        axes.scatter([right], [y + 0.27], marker=">", s=30, zorder=3, **look)
    if row.note:
        axes.annotate(
            short(row.note, 34),
            (1.0, y),
            (8, 0),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            fontsize=10.5,
            color=INK if row.missing else MUTED,
            va="center_baseline",
        )
