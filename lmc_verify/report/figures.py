"""Figures as inline SVG: drawn by matplotlib, coloured by the page, so that they follow its light or dark scheme.

Colours are drawn as placeholders and replaced by the page's CSS variables; text stays text, in the page's font. Every
id is prefixed with the figure's name, so that many figures can stand on one page, and the same records give the same
bytes.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, NullLocator

from lmc_verify.claims.verdict import Evidence
from lmc_verify.report import text
from lmc_verify.report.model import Case, ClaimSection, distinguishing_labels

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["BIAS_GROUP", "bias_per_layer", "residual_strip"]

BIAS_GROUP = "bias per layer"
"""Evidence of this group is drawn by `bias_per_layer`."""

_INK, _MUTED, _RULE, _ACCENT, _BAD, _CARD = (f"#0102{number:02x}" for number in range(1, 7))
_VARIABLES = {
    _INK: "var(--ink)",
    _MUTED: "var(--muted)",
    _RULE: "var(--rule)",
    _ACCENT: "var(--accent)",
    _BAD: "var(--bad)",
    _CARD: "var(--card)",
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
_WIDTH = 800.0
_CHARACTER = 6.4  # mean width of a character at 11 px
_ROWS_ONE_BY_ONE = 40
_PANELS_A_DATA_SET = 6
# Cases that agree in these differ in the estimator and its own settings only.
_APART = (
    *("model", "layers", "width", "activation_cut", "encoder", "head", "norm", "residual"),
    *("normaliser", "design", "partition", "parts", "per_batch", "seen", "histories", "seed"),
)
_DECADES = 40  # what is smaller or larger than any such power of ten is drawn at the end of the axis


@dataclass(frozen=True)
class _Row:
    label: str
    cases: tuple[Case, ...]


def residual_strip(section: ClaimSection, identifier: str) -> str | None:
    """Draw each case's residual beside its tolerance and detection limit, on a log scale; None without residuals."""
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
        figure, (axes,) = _canvas(left, [len(rows) * 19.0 + 12.0], top=26.0, bottom=40.0)
        _log_axis(axes, low, high)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_yticks(range(len(rows)), [_short(row.label) for row in rows])
        axes.set_xlabel("residual / norm of the layer's exact gradient", fontsize=11, color=_MUTED)
        _marks(axes, rows, low, high)
        return figure

    beyond = sum(_is_beyond(case) for row in rows for case in row.cases)
    description = (
        f"{text.count(len(verdicts), 'residual')} on a log scale; "
        f"{beyond} beyond tolerance, {len(verdicts) - beyond} within"
    )
    return _svg(draw, identifier, f"Residuals of {section.claim.id}", description)


def bias_per_layer(section: ClaimSection, identifier: str) -> str | None:
    """Draw the bias of every layer, a panel for each comparable case; None without such evidence."""
    cases = _comparable([case for case in section.cases if _bias(case)])
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
        figure, grid = _canvas(left, heights, top=26.0, bottom=40.0, between=50.0, columns=columns)
        for index, axes in enumerate(grid):
            if index >= len(panels):
                axes.set_visible(False)
                continue
            _log_axis(axes, low, high, ticks=4)
            _bars(axes, [panels[index].get(layer) for layer in layers], low, high)
            axes.set_ylim(len(layers) - 0.4, -0.6)
            shown = [_short(layer) for layer in layers] if index % columns == 0 else [""] * len(layers)
            axes.set_yticks(range(len(layers)), shown)
            axes.set_title(_short(names[index], 40), fontsize=11, color=_INK, loc="left", pad=5)
            if index == len(panels) - 1:
                axes.set_xlabel(unit, fontsize=11, color=_MUTED, loc="right")
        return figure

    description = f"{text.count(len(layers), 'layer')}, {text.count(len(panels), 'panel')}, bars on a log scale"
    return _svg(draw, identifier, f"Bias per layer of {section.claim.id}", description)


def _bias(case: Case) -> list[Evidence]:
    return [item for item in case.verdict.evidence if item.group == BIAS_GROUP]


def _comparable(cases: Sequence[Case]) -> list[Case]:
    """All cases of a data set if they are few; else the largest group that differs in the estimator only."""
    chosen: list[Case] = []
    for dataset in dict.fromkeys(str(case.verdict.case.get("dataset")) for case in cases):
        mine = [case for case in cases if str(case.verdict.case.get("dataset")) == dataset]
        groups: dict[tuple[str, ...], list[Case]] = {}
        for case in mine:
            groups.setdefault(tuple(str(case.verdict.case.get(key)) for key in _APART), []).append(case)
        largest = sorted(groups.values(), key=len)[-1]
        chosen += mine if len(mine) <= _PANELS_A_DATA_SET else largest
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
    settings = case.verdict.case
    words = [text.setting(settings[key], key) for key in ("dataset", "estimator") if key in settings]
    return " · ".join(words) or "all cases"


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
        ("tolerance", "tolerance", {"marker": "|", "s": 130, "color": _INK, "linewidths": 1.6}),
        ("limit", "detection limit", {"marker": "|", "s": 60, "color": _MUTED, "linewidths": 1.0}),
        ("within", "within tolerance", {"marker": "o", "s": 30, "color": _ACCENT, "linewidths": 0}),
        ("beyond", "beyond tolerance", {"marker": "D", "s": 34, "facecolors": _CARD, "edgecolors": _ACCENT}),
        ("zero", "exactly 0", {"marker": "<", "s": 34, "color": _ACCENT, "linewidths": 0}),
        ("infinite", "not finite", {"marker": ">", "s": 34, "color": _BAD, "linewidths": 0}),
        (
            "failed",
            "not as expected",
            {"marker": "o", "s": 150, "facecolors": "none", "edgecolors": _BAD, "linewidths": 1.6},
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
        labelcolor=_MUTED,
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
                color=_CARD if within else _ACCENT,
                edgecolor=_ACCENT,
                linewidth=1.0,
            )
        if tolerance is not None and 0 < tolerance < math.inf:
            for colour, width in ((_CARD, 4.0), (_INK, 1.6)):  # a rim keeps the tick visible on the bar
                axes.vlines(tolerance, y - 0.42, y + 0.42, color=colour, linewidth=width)


def _note(axes: Axes, x: float, y: float, words: str) -> None:
    axes.annotate(words, (x, y), (5, 0), textcoords="offset points", fontsize=10, color=_MUTED, va="center_baseline")


def _margin(labels: Iterable[str]) -> float:
    return 16.0 + _CHARACTER * max((len(_short(label)) for label in labels), default=0)


def _short(label: str, limit: int = 70) -> str:
    label = " ".join(text.printable(label).split())
    return label if len(label) <= limit else label[: limit - 1] + "…"


def _canvas(
    left: float,
    heights: Sequence[float],
    *,
    top: float,
    bottom: float,
    between: float = 0.0,
    columns: int = 1,
) -> tuple[Figure, list[Axes]]:
    """A figure measured in CSS pixels, with axes of the given heights in `columns` columns."""
    total = top + sum(heights) + between * (len(heights) - 1) + bottom
    figure = Figure(figsize=(_WIDTH / 72, total / 72), dpi=72)
    FigureCanvasSVG(figure)
    gap, right = 18.0, 14.0
    width = (_WIDTH - left - right - gap * (columns - 1)) / columns
    grid = []
    y = top
    for height in heights:
        for column in range(columns):
            x = left + column * (width + gap)
            bounds = (x / _WIDTH, 1 - (y + height) / total, width / _WIDTH, height / total)
            grid.append(figure.add_axes(bounds, facecolor="none"))
        y += height + between
    figure.patch.set_visible(False)
    return figure, grid


def _log_axis(axes: Axes, low: float, high: float, ticks: int = 8) -> None:
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    axes.xaxis.set_major_locator(LogLocator(base=10, numticks=ticks))
    axes.xaxis.set_major_formatter(lambda value, _: f"1e{round(math.log10(value))}" if value > 0 else "")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(axis="x", color=_RULE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(axis="x", length=0, labelsize=10.5, labelcolor=_MUTED, pad=4)
    axes.tick_params(axis="y", length=0, labelsize=11, labelcolor=_INK, pad=8)
    for side in ("top", "right", "bottom"):
        axes.spines[side].set_visible(False)
    axes.spines["left"].set_color(_MUTED)


def _svg(draw: Callable[[], Figure], identifier: str, title: str, description: str) -> str:
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
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', body))
    body = re.sub(r' id="([^"]*)"', lambda m: f' id="{identifier}-{m[1]}"' if m[1] in used else "", body)
    body = re.sub(r'(href="#|url\(#)', rf"\g<1>{identifier}-", body)
    for colour, variable in _VARIABLES.items():
        body = body.replace(colour, variable)
    body = re.sub(r">\s+<", ">\n<", body).strip()
    assert box is not None
    return (
        f'<svg viewBox="{box[1]}" role="img" aria-labelledby="{identifier}-title {identifier}-desc">'
        f'<title id="{identifier}-title">{escape(text.printable(title))}</title>'
        f'<desc id="{identifier}-desc">{escape(description)}</desc>{body}</svg>'
    )
