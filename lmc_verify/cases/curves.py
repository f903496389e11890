"""Curves that verdicts and audits have, and their figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from lmc_verify.display.figures import band, curve, label_of, legend, panels, scale, style_of
from lmc_verify.display.text import one_line
from lmc_verify.errors import InvalidInputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["PANEL", "Scale", "Series", "by_figure", "draw_panel", "draw_series"]

PANEL = 3.2
"""Height of a panel of curves, in inches."""

Scale = Literal["linear", "semilogy", "loglog"]


@dataclass(frozen=True)
class Series:
    """A measured curve, such as the bias along a training run.

    Attributes:
        name: what the curve is, for a legend.
        x: positions, ascending.
        y: values at `x`, as many.
        figure: title of the figure; curves of one verdict with the same title are drawn together.
        x_label: what `x` is, with its unit.
        y_label: what `y` is, with its unit.
        low: lower ends of intervals at `x`, or empty.
        high: upper ends, or empty.
        scale: of the axes.
    """

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    figure: str
    x_label: str
    y_label: str
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    scale: Scale = "linear"


def by_figure(series: Sequence[Series]) -> list[list[Series]]:
    """Return curves in groups that are drawn together, in the order in which their figures come first."""
    groups: dict[str, list[Series]] = {}
    for item in series:
        groups.setdefault(item.figure, []).append(item)
    return list(groups.values())


def draw_series(series: Sequence[Series], of: str) -> Figure:
    """Draw curves, those of one figure in one panel.

    Raises:
        InvalidInputError: there is none; the message says that `of` has none.
    """
    if not series:
        raise InvalidInputError(f"{one_line(of)} has no curve to draw; its numbers are in to_frame()")
    groups = by_figure(series)
    figure, axes = panels([PANEL] * len(groups))
    for place, group in zip(axes, groups, strict=True):
        draw_panel(place, group)
    return figure


def draw_panel(axes: Axes, group: Sequence[Series]) -> None:
    """Draw curves of one figure with their intervals; scales and labels are those of the first."""
    for place, item in enumerate(group):
        line = curve(axes, item.x, item.y, item.name, **style_of(place))
        if item.low and item.high:
            band(axes, item.x, item.low, item.high, line.get_color())
    first = group[0]
    scale(axes, x=first.scale == "loglog", y=first.scale != "linear")
    axes.set_title(label_of(first.figure, 80), fontsize="medium")
    axes.set_xlabel(label_of(first.x_label))
    axes.set_ylabel(label_of(first.y_label))
    legend(axes)
