"""The bias by parameter, and its figure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lmc_verify.cases.curves import PANEL, Series, by_figure, draw_panel
from lmc_verify.display.figures import has_drawable, label_of, legend, panels
from lmc_verify.display.markup import MOST_ROWS, most_telling
from lmc_verify.errors import InvalidInputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["ParameterBias", "draw_bias"]

_HEAD, _ROW = 1.4, 0.25  # inches


@dataclass(frozen=True)
class ParameterBias:
    """The bias of one parameter's gradient.

    Attributes:
        name: of the parameter.
        size: norm of the bias over the norm of the whole exact gradient.
        own: norm of the bias over the norm of the parameter's own exact gradient; infinite where that vanishes.
        low: lower end for `size` at the audit's error level (of 0: nothing is shown).
        high: upper end for `size`.
        wrong: whether a bias is shown.
    """

    name: str
    size: float
    own: float
    low: float
    high: float
    wrong: bool


def draw_bias(
    parameters: Sequence[ParameterBias], series: Sequence[Series], title: str, delta: float | None = None
) -> Figure:
    """Draw the bias of every parameter in units of the whole gradient's norm, and an audit's curves below.

    Where an upper end is not finite the interval is open, and the name says so. Of more than 60 parameters, those are
    drawn that are biased, and the largest.

    Args:
        parameters: of an audit.
        series: its curves.
        title: of the figure.
        delta: a bias that counts as none, or None.

    Raises:
        InvalidInputError: no parameter has a finite bias.
    """
    if not has_drawable(item.size for item in parameters):
        raise InvalidInputError("the audit has no parameter with a finite bias to draw; its numbers are in to_frame()")
    groups = by_figure(series)
    shown = most_telling(parameters, lambda item: (item.wrong, item.size))[:MOST_ROWS]
    figure, axes = panels([_HEAD + _ROW * len(shown), *[PANEL] * len(groups)])
    _parameters(axes[0], shown)
    if delta is not None:
        axes[0].axvline(delta, color="gray", linestyle="--", label=f"delta = {delta:g}")
    legend(axes[0])
    note = f", the {len(shown)} largest of {len(parameters)} parameters" if len(shown) < len(parameters) else ""
    axes[0].set_title(f"{label_of(title)}{note}", fontsize="medium")
    for place, group in zip(axes[1:], groups, strict=True):
        draw_panel(place, group)
    return figure


def _parameters(axes: Axes, parameters: Sequence[ParameterBias]) -> None:
    for wrong, marker, words in ((True, "D", "bias shown"), (False, "o", "no bias shown")):
        chosen = [
            (place, item) for place, item in enumerate(parameters) if item.wrong is wrong and math.isfinite(item.size)
        ]
        if not chosen:
            continue
        below = [_arm(item.size - item.low) for _, item in chosen]
        above = [_arm(item.high - item.size) for _, item in chosen]
        axes.errorbar(
            [item.size for _, item in chosen],
            [place for place, _ in chosen],
            xerr=[below, above],
            fmt=marker,
            capsize=3,
            color="C3" if wrong else "C0",
            label=words,
        )
    axes.set_yticks(range(len(parameters)), [_name(item) for item in parameters])
    axes.set_ylim(len(parameters) - 0.5, -0.5)  # the first on top
    axes.set_xlim(left=0.0)
    axes.set_xlabel("bias / norm of the exact gradient")


def _arm(length: float) -> float:
    """Return the length of one side of an interval; rounding may leave the size just outside."""
    return max(length, 0.0) if math.isfinite(length) else 0.0


def _name(item: ParameterBias) -> str:
    if not math.isfinite(item.size):
        return f"{label_of(item.name, 40)} (not finite)"
    return label_of(item.name, 40) + ("" if math.isfinite(item.high) else " (no upper end)")
