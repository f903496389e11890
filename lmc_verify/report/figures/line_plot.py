"""Line plots of measured curves, with markers, intervals, and labels at the ends of the lines."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator
from matplotlib.transforms import IdentityTransform

from lmc_verify.report.figures.canvas import CARD, CHARACTER, CURVES, END, MUTED, RULE, canvas, frame, short, svg
from lmc_verify.report.model import text
from lmc_verify.report.model.curves import LARGEST, Curve, Plot

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["MARKERS", "curve_key", "line_plot", "padded", "round_ticks", "tick_label"]

_WIDTH, _HEIGHT = 540.0, 230.0
_BESIDE = 16.0
"""Pixels to the right of the axes that the last tick label may take."""
_TOP, _BOTTOM = 30.0, 44.0
_LINE = 13.0  # height of a line of text at 11 px
MARKERS = ("o", "s", "D", "^", "v", "p", "<", ">")
# The same in text: filled, hollow.
_SIGNS = (("●", "○"), ("■", "□"), ("◆", "◇"), ("▲", "△"), ("▼", "▽"), ("⬟", "⬠"), ("◀", "◁"), ("▶", "▷"))
_DASHES: tuple[Any, ...] = ("-", (0, (5, 2.5)), (0, (1.2, 2)), (0, (7, 2, 1.2, 2)), (0, (3, 1.5)), (0, (9, 3)))
_FEW_POINTS = 40  # every point has a marker
_DECADES_BEYOND = 1.0  # an interval may stretch a log axis so far beyond the values


def line_plot(plot: Plot, identifier: str) -> str:
    """Draw a plot as an SVG element.

    Values that a log axis does not have are drawn at its edge; `Plot.notes` says so in words.
    """
    low, high = _limits(plot)
    ticks = round_ticks(low, high, log=plot.scale != "linear", most=6)

    labels = [_wrapped(curve.label) for curve in plot.curves]
    right = 24.0 + CHARACTER * max((len(line) for label in labels for line in label), default=0)

    def draw() -> Figure:
        left = 14.0 + CHARACTER * max((len(tick_label(value)) for value in ticks), default=3)
        height = max(_HEIGHT, _LINE * sum(map(len, labels)) + 6.0 * len(labels))
        figure, axes = canvas(left, height, top=_TOP, bottom=_BOTTOM, width=_WIDTH, right=right)
        _set_axes(figure, axes, plot, low, high, ticks)
        for curve in plot.curves:
            _draw_curve(axes, curve, low, high)
        _label_ends(figure, axes, plot.curves, labels, (low, high))
        return figure

    described = [f"{curve.label}: {_course(curve)}" for curve in plot.curves]
    axes_words = {"linear": "linear axes", "semilogy": "log vertical axis", "loglog": "log axes"}[plot.scale]
    description = f"{plot.y_label} against {plot.x_label}, {axes_words}. {'. '.join(described)}."
    title = f"{plot.title}, {plot.detail}" if plot.detail else plot.title
    drawn = svg(draw, identifier, title, text.printable(description))
    # Which part of the width is the plot, for pages that have no room for what is beside it.
    return drawn.replace(' role="img"', f' style="--plot: {(_WIDTH - right + _BESIDE) / _WIDTH:.3f}" role="img"', 1)


def curve_key(curve: Curve) -> tuple[str, str]:
    """Return the sign of a curve's marker and the CSS variable of its colour, for a legend outside the figure."""
    filled, hollow = _SIGNS[curve.colour % len(_SIGNS)]
    colour = "--muted" if curve.shared else f"--curve-{curve.colour % len(CURVES) + 1}"
    return hollow if curve.dash else filled, colour


def _colour(curve: Curve) -> str:
    return MUTED if curve.shared else CURVES[curve.colour % len(CURVES)]


def _course(curve: Curve) -> str:
    points = [(x, y) for x, y in zip(curve.points.x, curve.points.y, strict=True) if not math.isnan(y)]
    if not points:
        return "no point on the axes"
    (first_x, first), (last_x, last) = points[0], points[-1]
    if len(points) == 1:
        return f"1 point, {text.number(first)} at {text.number(first_x)}"
    return (
        f"{len(points)} points, from {text.number(first)} at {text.number(first_x)} "
        f"to {text.number(last)} at {text.number(last_x)}"
    )


# ------------------------------------------------------------------ axes


def _set_axes(figure: Figure, axes: Axes, plot: Plot, low: float, high: float, ticks: Sequence[float]) -> None:
    log_x = plot.scale == "loglog"
    if log_x:
        axes.set_xscale("log")
    if plot.scale != "linear":
        axes.set_yscale("log")
    left, right = padded([x for curve in plot.curves for x in curve.points.x], log=log_x, pad=0.03)
    axes.set_xlim(left, right)
    axes.set_ylim(low, high)
    frame(axes)
    axes.spines["left"].set_visible(False)
    axes.spines["bottom"].set_visible(True)
    axes.spines["bottom"].set_color(MUTED)
    axes.tick_params(axis="y", labelsize=10.5, labelcolor=MUTED, pad=5)
    axes.tick_params(axis="x", which="major", length=4, color=MUTED)
    width = axes.bbox.width
    positions = _measured_ticks(plot, left, right, width, log=log_x)
    for axis, places in ((axes.xaxis, positions), (axes.yaxis, ticks)):
        axis.set_major_locator(FixedLocator(list(places)))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(lambda value, _: tick_label(value))
    axes.grid(axis="y", color=RULE, linewidth=0.8, clip_on=False)
    axes.set_xlabel(short(plot.x_label, int(width / CHARACTER)), fontsize=11, color=MUTED, labelpad=5)
    figure.text(
        2.0,
        figure.bbox.height - 12.0,
        short(plot.y_label, int(_WIDTH / CHARACTER)),
        transform=IdentityTransform(),
        fontsize=11,
        color=MUTED,
        va="center_baseline",
    )


def _limits(plot: Plot) -> tuple[float, float]:
    """The vertical range: every value, and of the intervals what does not dwarf the values."""
    log = plot.scale != "linear"
    values = [y for curve in plot.curves for y in curve.points.y if not math.isnan(y)]
    if values:
        values += [y for y in plot.shown if abs(y) < LARGEST and (y > 0 or not log)]
    ends = [
        end
        for curve in plot.curves
        for pair in (curve.points.low, curve.points.high)
        for end in pair
        if abs(end) < LARGEST and (end > 0 or not log)
    ]
    if not values:
        values, ends = ends, []
    if log and values:
        factor = 10**_DECADES_BEYOND
        ends = [min(max(end, min(values) / factor), max(values) * factor) for end in ends]
    low, high = padded([*values, *ends], log=log, pad=0.07)
    edge = any(curve.points.below for curve in plot.curves)
    if not log and not edge and values and 0 <= min([*values, *ends]) < 0.4 * max([*values, *ends]):
        low = 0.0  # a height that starts at 0 can be compared
    return low, high


def padded(values: Sequence[float], *, log: bool, pad: float) -> tuple[float, float]:
    """The range of values with room at both ends, never empty."""
    if not values:
        return (0.1, 10.0) if log else (0.0, 1.0)
    low, high = min(values), max(values)
    if log:
        start, end = math.log10(low), math.log10(high)
        if end - start < 0.3:
            start, end = (start + end) / 2 - 0.2, (start + end) / 2 + 0.2
        room = pad * (end - start)
        return max(10.0 ** (start - room), 1e-300), 10.0 ** min(end + room, 300)
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        room = 0.5 * abs(high) or 0.5
        return low - room, high + room
    return low - pad * (high - low), high + pad * (high - low)


def round_ticks(low: float, high: float, *, log: bool, most: int) -> list[float]:
    """A few round values within the range."""
    if log:
        first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
        if last - first >= 2:
            step = math.ceil((last - first + 1) / most)
            return [10.0**power for power in range(first, last + 1, step)]
        for digits in ((1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 8)):
            found = [d * 10.0**power for power in range(first - 1, last + 1) for d in digits]
            found = [value for value in found if low <= value <= high]
            if len(found) >= 3:
                return found[:: math.ceil(len(found) / most)]
    found = [float(value) for value in MaxNLocator(most - 1, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)]
    slack = 1e-9 * (high - low)
    return [0.0 if abs(value) < slack else value for value in found if low - slack <= value <= high + slack]


def _measured_ticks(plot: Plot, left: float, right: float, width: float, *, log: bool) -> list[float]:
    """Ticks at the measured positions where their labels have room, such as numbers of steps; else round values."""
    measured = sorted({x for curve in plot.curves for x in curve.points.x})
    if 1 < len(measured) <= 8:
        start, end = (math.log(left), math.log(right)) if log else (left, right)
        places = [width * ((math.log(x) if log else x) - start) / (end - start) for x in measured]
        room = [CHARACTER * (len(tick_label(a)) + len(tick_label(b))) / 2 + 6 for a, b in pairwise(measured)]
        if all(b - a >= needed for (a, b), needed in zip(pairwise(places), room, strict=True)):
            return measured
    return round_ticks(left, right, log=log, most=6)


def tick_label(value: float) -> str:
    """A tick label without superfluous digits: ``0.02``, ``512``, ``1e-4``."""
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        return f"{value:.6g}".replace("-", "−")
    digits, _, power = f"{value:.2e}".partition("e")
    return f"{float(digits):g}e{int(power)}".replace("-", "−")


# ------------------------------------------------------------------ curves


def _draw_curve(axes: Axes, curve: Curve, low: float, high: float) -> None:
    points, colour = curve.points, _colour(curve)
    marker, hollow = MARKERS[curve.colour % len(MARKERS)], curve.dash > 0
    if points.low:
        _draw_intervals(axes, curve, low, high, colour)
    look: dict[str, Any] = {
        "color": colour,
        "linestyle": _DASHES[curve.dash % len(_DASHES)],
        "linewidth": 1.6,
        "marker": marker,
        "markersize": 5.0,
        "markerfacecolor": CARD if hollow else colour,
        "markeredgecolor": colour,
        "markeredgewidth": 1.1,
        "zorder": 3,
    }
    if len(points.x) > _FEW_POINTS:
        step = len(points.x) // 8
        look["markevery"] = (curve.colour * step // len(MARKERS), step)  # markers of close curves do not hide
    axes.plot(points.x, points.y, clip_on=False, **look)
    for places, edge, sign in ((points.below, low, "v"), (points.above, high, "^")):
        if places:
            axes.scatter(
                places,
                [edge] * len(places),
                marker=sign,
                s=36,
                facecolors=CARD,
                edgecolors=colour,
                clip_on=False,
                zorder=4,
            )


def _draw_intervals(axes: Axes, curve: Curve, low: float, high: float, colour: str) -> None:
    points = curve.points
    whole = [
        (x, min(max(y if math.isnan(a) else a, low), high), min(max(y if math.isnan(b) else b, low), high))
        for x, y, a, b in zip(points.x, points.y, points.low, points.high, strict=True)
        if not (math.isnan(y) and (math.isnan(a) or math.isnan(b)))
    ]
    if not whole:
        return
    x, bottom, top = zip(*whole, strict=True)
    if points.banded:
        axes.fill_between(x, bottom, top, color=colour, alpha=0.18, linewidth=0, zorder=1.5)
    else:
        gap = math.nan  # one line for all intervals, with a gap after each
        places = [place for x_at in x for place in (x_at, x_at, gap)]
        ends = [end for pair in zip(bottom, top, strict=True) for end in (*pair, gap)]
        look: dict[str, Any] = {
            "linewidth": 1.2,
            "marker": "_",
            "markersize": 34**0.5,
            "markeredgewidth": 1.2,
            "solid_capstyle": "butt",
        }
        axes.plot(places, ends, color=colour, alpha=0.75, zorder=2, clip_on=False, **look)


def _wrapped(label: str) -> list[str]:
    label = short(label, 60).replace(" · ", ", ")
    return textwrap.wrap(label, 20, max_lines=3, placeholder=" …") or ["curve"]


def _label_ends(
    figure: Figure, axes: Axes, curves: Sequence[Curve], labels: Sequence[Sequence[str]], limits: tuple[float, float]
) -> None:
    """Write each label next to the end of its line, spread out where lines end close together."""
    ends = [_end(axes, curve, limits) for curve in curves]
    box = axes.bbox
    heights = [_LINE * len(label) + 4.0 for label in labels]
    centres = _spread([y for _, y in ends], heights, box.y0 - 6.0, box.y1 + 6.0)
    where = IdentityTransform()
    for curve, label, (end_x, end_y), centre in zip(curves, labels, ends, centres, strict=True):
        colour = _colour(curve)
        start = box.x1 + 13.0
        if start - end_x > 24.0 or abs(centre - end_y) > 5.0:
            leader: dict[str, Any] = {"transform": where, "color": colour, "linewidth": 0.7, "alpha": 0.6}
            figure.add_artist(Line2D([end_x + 5.0, start - 4.0], [end_y, centre], gid=END, **leader))
        for number, line in enumerate(label):
            y = centre + (len(label) - 1) * _LINE / 2 - number * _LINE
            figure.text(start, y, line, transform=where, fontsize=11, color=colour, va="center_baseline", gid=END)


def _end(axes: Axes, curve: Curve, limits: tuple[float, float]) -> tuple[float, float]:
    """Where a line ends, in pixels from the figure's lower left."""
    points = curve.points
    last = [
        *((x, y) for x, y in zip(points.x, points.y, strict=True) if not math.isnan(y)),
        *((x, limits[0]) for x in points.below),
        *((x, limits[1]) for x in points.above),
    ]
    if not last:
        return float(axes.bbox.x1), float((axes.bbox.y0 + axes.bbox.y1) / 2)
    x, y = axes.transData.transform(max(last, key=lambda point: point[0]))
    return float(x), float(y)


def _spread(wanted: Sequence[float], heights: Sequence[float], low: float, high: float) -> list[float]:
    """Separate centres until boxes of these heights, in the order of `wanted`, do not overlap."""
    order = sorted(range(len(wanted)), key=lambda index: (wanted[index], -index))
    centres = list(wanted)
    floor = low
    for index in order:
        centres[index] = max(wanted[index], floor + heights[index] / 2)
        floor = centres[index] + heights[index] / 2
    ceiling = high
    for index in reversed(order):
        centres[index] = min(centres[index], ceiling - heights[index] / 2)
        ceiling = centres[index] - heights[index] / 2
    return centres
