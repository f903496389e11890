"""How figures are drawn: matplotlib on a canvas in CSS pixels, inline SVG, coloured by the page.

Colours are drawn as placeholders and replaced by the page's CSS variables, so that a figure follows the page's light or
dark scheme; text stays text, in the page's font. Every id is prefixed with the figure's name, so that many figures can
stand on one page, and the same records give the same bytes.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable
from html import escape
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from lmc_verify.report.model import text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "ACCENT",
    "BAD",
    "CARD",
    "CHARACTER",
    "CURVES",
    "END",
    "INK",
    "MUTED",
    "RULE",
    "canvas",
    "frame",
    "short",
    "svg",
]

INK, MUTED, RULE, ACCENT, BAD, CARD = (f"#0102{number:02x}" for number in range(1, 7))
CURVES = tuple(f"#0102{number:02x}" for number in range(16, 24))
"""Colours of curves, in order: as many as a reader can distinguish."""
_VARIABLES = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    RULE: "var(--rule)",
    ACCENT: "var(--accent)",
    BAD: "var(--bad)",
    CARD: "var(--card)",
    **{colour: f"var(--curve-{number})" for number, colour in enumerate(CURVES, start=1)},
}
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "lmc-verify",
    "font.family": ["sans-serif"],
    "font.sans-serif": ["DejaVu Sans"],
    "axes.unicode_minus": True,
    "path.simplify": False,
    "text.parse_math": False,
}
END = "end"
"""Group id, and then class, of a label at the end of a line: narrow pages have a legend below the figure instead."""
CHARACTER = 6.4
"""Mean width of a character at 11 px."""


def short(label: str, limit: int = 70) -> str:
    """Return a label on one line, cut where it is too long."""
    label = " ".join(text.printable(label).split())
    return label if len(label) <= limit else label[: limit - 1] + "…"


def canvas(
    left: float, height: float, *, top: float, bottom: float, width: float, right: float = 14.0
) -> tuple[Figure, Axes]:
    """A figure with one pair of axes, measured in CSS pixels."""
    total = top + height + bottom
    figure = Figure(figsize=(width / 72, total / 72), dpi=72)
    FigureCanvasSVG(figure)
    bounds = (left / width, bottom / total, (width - left - right) / width, height / total)
    axes = figure.add_axes(bounds)
    axes.patch.set_visible(False)
    figure.patch.set_visible(False)
    return figure, axes


def frame(axes: Axes) -> None:
    """Leave the left spine only, put the grid below, and write tick labels in the page's colours."""
    axes.set_axisbelow(True)
    axes.tick_params(axis="x", which="both", length=0, labelsize=10.5, labelcolor=MUTED, pad=4)
    axes.tick_params(axis="y", which="both", length=0, labelsize=11, labelcolor=INK, pad=8)
    for side in ("top", "right", "bottom"):
        axes.spines[side].set_visible(False)
    axes.spines["left"].set_color(MUTED)


def svg(draw: Callable[[], Figure], identifier: str, title: str, description: str) -> str:
    """Draw a figure and return it as an SVG element with title and description, for inclusion in a page."""
    with mpl.rc_context(), warnings.catch_warnings():
        # Characters outside matplotlib's font only cost a guess at their width: the reader's fonts draw them.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font", category=UserWarning)
        mpl.rcdefaults()  # a user's own matplotlibrc must not change a report
        mpl.rcParams.update(_STYLE)
        buffer = io.StringIO()
        metadata = {"Date": None, "Creator": None, "Format": None, "Type": None}
        draw().savefig(buffer, format="svg", metadata=metadata, transparent=True)
    content = buffer.getvalue()
    box = re.search(r'viewBox="([^"]*)"', content)
    body = content[content.index("<svg") :]
    body = body[body.index(">") + 1 : body.rindex("</svg>")]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r"<style\b.*?</style>", "", body, flags=re.DOTALL)
    body = re.sub(r"<!--.*?-->", "", body, flags=re.DOTALL)
    body = body.replace("xlink:href=", "href=")
    body = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", body)
    body = body.replace(f' id="{END}"', f' class="{END}"')
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', body))
    body = re.sub(r' id="([^"]*)"', lambda m: f' id="{identifier}-{m[1]}"' if m[1] in used else "", body)
    body = re.sub(r'(href="#|url\(#)', rf"\g<1>{identifier}-", body)
    for colour, variable in _VARIABLES.items():
        body = body.replace(colour, variable)
    body = re.sub(r' (?:d|x|y)="[^"]*"', lambda m: re.sub(r"\d+\.\d{3,}", _two_digits, m[0]), body)
    body = re.sub(r">\s+<", ">\n<", body).strip()
    assert box is not None
    return (
        f'<svg viewBox="{box[1]}" role="img" aria-labelledby="{identifier}-title {identifier}-desc">'
        f'<title id="{identifier}-title">{escape(text.printable(title))}</title>'
        f'<desc id="{identifier}-desc">{escape(description)}</desc>{body}</svg>'
    )


def _two_digits(match: re.Match[str]) -> str:
    return f"{float(match[0]):.2f}".rstrip("0").rstrip(".")
