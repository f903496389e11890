"""The figure of an audit: the bias by parameter with its interval, and the curves that were measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lmc_verify.audits.result import Audit, ParameterBias
from lmc_verify.cases.curves import PANEL, by_figure, draw_panel
from lmc_verify.display.figures import has_drawable, label_of, legend, panels
from lmc_verify.display.markup import MOST_ROWS, most_telling
from lmc_verify.errors import InvalidInputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw"]

_HEAD, _ROW = 1.4, 0.25  # inches


def draw(audit: Audit) -> Figure:
    """Draw the bias of every parameter in units of the whole gradient's norm, and the audit's curves below.

    Where an upper end is not finite the interval is open, and the name says so. Of more than 60 parameters, those are
    drawn that are biased, and the largest.

    Raises:
        InvalidInputError: no parameter has a finite bias.
    """
    if not has_drawable(item.size for item in audit.parameters):
        raise InvalidInputError("the audit has no parameter with a finite bias to draw; its numbers are in to_frame()")
    groups = by_figure(audit.series)
    shown = most_telling(audit.parameters, lambda item: (item.wrong, item.size))[:MOST_ROWS]
    figure, axes = panels([_HEAD + _ROW * len(shown), *[PANEL] * len(groups)])
    _parameters(axes[0], shown)
    if audit.guarantee != "exact":
        axes[0].axvline(audit.delta, color="gray", linestyle="--", label=f"delta = {audit.delta:g}")
    legend(axes[0])
    left = len(audit.parameters) - len(shown)
    note = f", the {len(shown)} largest of {len(audit.parameters)} parameters" if left else ""
    axes[0].set_title(label_of(f"{audit.name}: {audit.outcome}{note}", 100), fontsize="medium")
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
