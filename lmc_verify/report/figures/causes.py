"""The picture of a bias's causes: what goes away when one alone is put right, and comes back when it is undone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator

from lmc_verify.audits import Audit
from lmc_verify.report.figures.canvas import ACCENT, BAD, CARD, CHARACTER, INK, MUTED, RULE, canvas, frame, short, svg
from lmc_verify.report.figures.line_plot import round_ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Bar", "cause_bars", "causes_picture"]

_ROW = 40.0
_WIDTH = 430.0  # fits a narrow page almost unscaled
_LABEL = 24  # characters of a name
_WIDEST = 3.0  # a share beyond this is cut, with its number next to it: causes may cancel almost all of each other


@dataclass(frozen=True)
class Bar:
    """A row of the picture; shares are of the whole bias.

    Attributes:
        label: the cause's id, or what is not explained.
        removes: the share that goes away when it alone is put right; of what is not explained, its share.
        returns: the share that comes back when it alone is undone; None outside of the explanation.
        explains: whether it is part of the explanation.
        rest: whether it is what is not explained.
    """

    label: str
    removes: float
    returns: float | None = None
    explains: bool = False
    rest: bool = False


def cause_bars(audit: Audit) -> tuple[Bar, ...]:
    """Return the rows of an audit's picture: its causes, then what is not explained."""
    bars = [
        Bar(
            cause.id,
            cause.removes,
            None if cause.returns is None or not audit.bias else cause.returns / audit.bias,
            cause.explains,
        )
        for cause in audit.causes
    ]
    if bars and not audit.explanation.complete:
        share = audit.explanation.rest_share if any(bar.explains for bar in bars) else 1.0
        bars.append(Bar("not explained", share, rest=True))
    return tuple(bars)


def causes_picture(audit: Audit, identifier: str) -> str | None:
    """Draw the causes of an audit's bias as an SVG element; None without causes.

    Args:
        audit: the audit.
        identifier: prefix of every id.
    """
    bars = cause_bars(audit)
    if not bars:
        return None
    low, high = _limits(bars)

    def draw() -> Figure:
        left = 16.0 + CHARACTER * max(len(short(bar.label, _LABEL)) for bar in bars)
        figure, axes = canvas(left, _ROW * len(bars), top=8.0, bottom=40.0, width=_WIDTH, right=58.0)
        axes.set_xlim(low, high)
        axes.set_ylim(len(bars) - 0.5, -0.5)
        frame(axes)
        axes.spines["left"].set_visible(False)
        axes.set_yticks(range(len(bars)), [short(bar.label, _LABEL) for bar in bars])
        axes.xaxis.set_major_locator(FixedLocator(round_ticks(low, high, log=False, most=5)))
        axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f}%")
        axes.grid(axis="x", color=RULE, linewidth=0.8)
        axes.axvline(0.0, color=MUTED, linewidth=1.0)
        axes.set_xlabel("share of the bias", fontsize=11, color=MUTED, labelpad=5)
        for y, bar in enumerate(bars):
            _draw(axes, y, bar, low, high)
        return figure

    return svg(draw, identifier, "Causes of the bias", "; ".join(_words(bar) for bar in bars) + ".")


def _words(bar: Bar) -> str:
    if bar.rest:
        return f"{bar.label}: {_percent(bar.removes)} of the bias"
    back = "" if bar.returns is None else f", undone alone {_percent(bar.returns)} comes back"
    return f"{bar.label}: put right alone {_percent(bar.removes)} goes away{back}"


def _percent(share: float) -> str:
    return f"{share:,.0%}".replace("-0%", "0%") if abs(share) < 0.005 else f"{share:,.0%}".replace("-", "−")


def _shares(bars: Iterable[Bar]) -> list[float]:
    shares = [share for bar in bars for share in (bar.removes, bar.returns) if share is not None]
    return [share for share in shares if math.isfinite(share)]


def _limits(bars: Sequence[Bar]) -> tuple[float, float]:
    shares = _shares(bars)
    low = max(min([0.0, *shares]), -_WIDEST)
    return (1.25 * low if low < 0 else 0.0), min(max([1.0, *shares]), _WIDEST)


def _draw(axes: Axes, y: int, bar: Bar, low: float, high: float) -> None:
    """Draw what is put right as a filled bar and what is undone as a hollow one below it, each with its number."""
    colour = BAD if bar.rest else ACCENT if bar.explains else MUTED
    both = bar.returns is not None
    _bar(axes, y - 0.19 if both else y, bar.removes, low, high, fill=colour, edge=colour)
    if bar.returns is not None:
        _bar(axes, y + 0.19, bar.returns, low, high, fill=CARD, edge=colour)


def _bar(axes: Axes, y: float, share: float, low: float, high: float, *, fill: str, edge: str) -> None:
    end = high if math.isnan(share) else min(max(share, low), high)
    axes.barh(y, end, height=0.3, color=fill, edgecolor=edge, linewidth=1.2, zorder=2)
    axes.annotate(
        _percent(share),
        (max(end, 0.0), y),
        (5, 0),
        textcoords="offset points",
        fontsize=10.5,
        color=INK,
        va="center_baseline",
        annotation_clip=False,
    )
