"""Figures of results: panels, curves with their intervals, labels that are never mathematics or hidden."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from lmc_verify.display.text import one_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["band", "curve", "drawable", "has_drawable", "label_of", "legend", "panels", "scale", "style_of"]

_COLOURS = 10
_DASHES = ("-", "--", ":", "-.")


def panels(heights: Sequence[float], *, width: float = 7.0) -> tuple[Figure, list[Axes]]:
    """Return a figure with panels from top to bottom.

    Args:
        heights: of the panels, in inches.
        width: of the figure, in inches.
    """
    from lmc_verify.display.notebook_figure import NotebookFigure  # importing matplotlib takes a while

    figure = NotebookFigure(figsize=(width, sum(heights)), layout="constrained")
    grid = figure.add_gridspec(len(heights), 1, height_ratios=list(heights))
    axes = [figure.add_subplot(grid[place, 0]) for place in range(len(heights))]
    for item in axes:
        item.grid(alpha=0.3)
        item.set_axisbelow(True)
    return figure, axes


def label_of(text: object, limit: int = 60) -> str:
    """Return a text as matplotlib shows it: no mathematics between dollars, no label hidden for its underscore."""
    label = one_line(text, limit).replace("$", r"\$")
    return f" {label}" if label.startswith("_") else label


def drawable(values: Iterable[float | None]) -> list[float]:
    """Return values with NaN, which is not drawn, for what is missing or not finite."""
    return [value if value is not None and math.isfinite(value) else math.nan for value in values]


def has_drawable(values: Iterable[float | None]) -> bool:
    """Whether something is there to be drawn."""
    return any(value is not None and math.isfinite(value) for value in values)


def scale(axes: Axes, *, x: bool = False, y: bool = False) -> None:
    """Make axes logarithmic, where curves that are drawn already have positive values on them."""
    lines: list[Any] = list(axes.get_lines())
    if x and any((line.get_xdata() > 0).any() for line in lines):
        axes.set_xscale("log")
    if y and any((line.get_ydata() > 0).any() for line in lines):
        axes.set_yscale("log")


def curve(axes: Axes, x: Iterable[float | None], y: Iterable[float | None], label: object, **style: Any) -> Any:
    """Draw one curve and return its line; a curve of one value is a point."""
    (line,) = axes.plot(drawable(x), drawable(y), label=label_of(label), **{"marker": ".", "linewidth": 1.2, **style})
    return line


def band(axes: Axes, x: Iterable[float], low: Iterable[float], high: Iterable[float], colour: Any) -> None:
    """Draw the intervals of a curve."""
    axes.fill_between(drawable(x), drawable(low), drawable(high), color=colour, alpha=0.2, linewidth=0)


def style_of(place: int) -> dict[str, Any]:
    """Return colour and dashes of one curve of many: forty are different."""
    return {"color": f"C{place % _COLOURS}", "linestyle": _DASHES[place // _COLOURS % len(_DASHES)]}


def legend(axes: Axes) -> None:
    """Show the names of the curves, if there are some."""
    if axes.get_legend_handles_labels()[1]:
        axes.legend(fontsize="small")
