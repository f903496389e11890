"""Drawing a counterexample: clusters, one batch with its halo, and the messages that its estimate lacks.

The batch that is drawn is the one whose estimate is farthest from Backward SGD's. Which messages it lacks follows from
the estimator's halo policies; for estimators outside the compensated family none is marked.
"""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Circle, FancyArrowPatch, Patch

from lmc_verify.cases import prepared_state
from lmc_verify.counterexamples.example import Counterexample
from lmc_verify.errors import InvalidInputError, folder_error
from lmc_verify.estimators import BackwardSGD, Blend, Cut, Drop, properties_of
from lmc_verify.graphs import Batch
from lmc_verify.objective import gradient_norm, gradient_sum

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["LostMessages", "caption", "draw_counterexample", "drawing_svg", "lost_messages", "save_drawing"]

Edge = tuple[int, int]
Point = tuple[float, float]

_INK, _MUTED, _LOST, _PAPER = "#1f2933", "#7b8794", "#c81e3a", "#ffffff"
_CLUSTERS = ("#a9cdf0", "#f6d08b", "#b5e0b0", "#d9c2ee", "#f3b7a6", "#c9d1d9", "#9fe0dc", "#f5c3dc")
_STYLE: Any = {"svg.fonttype": "none", "svg.hashsalt": "lmc-verify", "font.family": ["DejaVu Sans"]}
_RADIUS = 0.2
_FORMATS = (".svg", ".png")


@dataclass(frozen=True)
class LostMessages:
    """What the estimate of one batch lacks.

    Attributes:
        batch: nodes of the batch.
        halo: nodes of its halo.
        messages: (sender, receiver) of every message that is lost; backward messages run against their edge.
        what: one phrase that says what is lost, or an empty string.
    """

    batch: tuple[int, ...]
    halo: tuple[int, ...]
    messages: tuple[Edge, ...]
    what: str


def lost_messages(example: Counterexample) -> LostMessages:
    """Return the batch whose estimate is farthest from Backward SGD's, with the messages that it lacks."""
    case = example.case()
    state = prepared_state(case, example.verdict.case.histories or example.histories)
    reference = BackwardSGD()
    held = reference.init(case.problem)

    def error(batch: Batch) -> float:
        expected = reference.estimate(case.problem, held, batch).gradient
        difference = gradient_sum(example.estimator.estimate(case.problem, state, batch).gradient, expected, -1.0)
        return round(gradient_norm(difference), 9)  # equals stay equal on every machine

    return _lost_in(example, max((batch for batch, _ in example.batches), key=error))  # the first of equals


def _lost_in(example: Counterexample, chosen: Batch) -> LostMessages:
    graph, found = example.instance.graph, properties_of(example.estimator)
    batch, halo = chosen.nodes.tolist(), graph.neighbourhood(chosen.nodes).tolist()
    inside, border = set(batch), set(halo)
    edges = sorted({(s, d) for s, d in graph.edge_index.T.tolist() if s != d})
    outside = [(s, d) for s, d in edges if (s in border) != (d in border) and not {s, d} & inside]
    messages: list[Edge] = []
    what = ""
    if found.policies is not None and found.known:
        forward, backward = found.policies.forward, found.policies.backward
        if isinstance(forward, Cut):
            messages = [(s, d) for s, d in edges if (s in inside) != (d in inside)]
            what = "messages over cut edges"
        elif isinstance(backward, Drop):
            messages = [(d, s) for s, d in edges if s in inside and d in border]
            what = "backward messages from the halo"
        elif isinstance(backward, Blend):
            linear = example.instance.problem.model.aggregate_linear
            if any(isinstance(item, Blend) and item.uses_fresh for item in (forward, backward)):
                messages, what = outside, "messages missing from fresh halo values"
            elif not linear:
                messages = [(s, d) for s, d in outside if d in border]
                what = "messages missing from the halo's Jacobians"
    return LostMessages(tuple(batch), tuple(halo), tuple(messages), what if messages else "")


def caption(example: Counterexample) -> str:
    """Return one sentence with numbers: the verdict's summary, and each layer's share where it has been measured."""
    layers = [item for item in example.verdict.evidence if item.group.endswith("per layer")]
    first = [item for item in layers if item.group == layers[0].group]
    shares = ", ".join(f"{_share(item.value, item.tolerance)} in {item.quantity}" for item in first)
    head = f"{example.estimator.name} on {example.claim}: {example.verdict.summary}"
    return f"{head}; {first[0].group}, relative to its exact gradient: {shares}." if shares else f"{head}."


def _share(value: float, tolerance: float | None) -> str:
    return "0 (to rounding)" if value <= max(tolerance or 0.0, 1e-12) else f"{value:.2g}"


def draw_counterexample(example: Counterexample, *, captioned: bool = True) -> Figure:
    """Return a figure of the graph with one batch, its halo and the messages that are lost.

    Args:
        example: the counterexample.
        captioned: whether `caption` stands below the drawing.

    Raises:
        InvalidInputError: more than 12 nodes, which cannot be drawn readably.
    """
    graph = example.instance.graph
    if graph.num_nodes > 12:
        raise InvalidInputError(f"the counterexample has {graph.num_nodes} nodes, at most 12 are drawn")
    with mpl.rc_context(_STYLE):
        lost = lost_messages(example)
        groups = _groups(example)
        points = _positions(groups)
        lines = _lines(example)
        # In inches: room for the legend with the lines below it, and for the nodes.
        body = max(3.6 if graph.num_nodes <= 3 else 5.2, 0.4 + 0.26 * (len(set(groups)) + 6) + 0.19 * len(lines))
        height = body + (1.1 if captioned else 0.0)
        figure = Figure(figsize=(8.0, height), facecolor=_PAPER)
        axes = figure.add_axes((0.02, 1 - (body - 0.05) / height, 0.62, (body - 0.1) / height))
        axes.set_axis_off()
        axes.set_aspect("equal")
        spread_x, spread_y = (max(abs(point[axis]) for point in points) for axis in (0, 1))
        axes.set_xlim(-spread_x - 0.85, spread_x + 0.85)
        axes.set_ylim(-spread_y - 0.75, spread_y + 0.75)
        _draw_edges(axes, example, lost, points)
        _draw_nodes(axes, example, lost, groups, points)
        _legend(figure, example, lost, groups)
        text = "\n".join(lines)
        figure.text(0.66, 1 - (body - 0.12) / height, text, fontsize=9, color=_INK, va="bottom", linespacing=1.5)
        if captioned:
            text = "\n".join(textwrap.wrap(caption(example), 108))
            figure.text(0.03, 1.05 / height, text, fontsize=9.5, color=_INK, va="top", linespacing=1.4)
    return figure


def save_drawing(example: Counterexample, path: str | Path) -> Path:
    """Write the drawing as SVG or PNG, by the suffix of the path; the same counterexample gives the same bytes.

    Raises:
        InvalidInputError: another suffix.
        OutputError: the file cannot be written.
    """
    file = Path(path)
    if file.suffix not in _FORMATS:
        raise InvalidInputError(f"drawings end in {' or '.join(_FORMATS)}, got {file.name!r}; choose one of them")
    figure = draw_counterexample(example)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with mpl.rc_context(_STYLE):
            metadata = {"Date": None} if file.suffix == ".svg" else {"Software": None}
            figure.savefig(file, dpi=150, metadata=metadata)
    except OSError as error:
        raise folder_error(file.parent, error, f"cannot write the drawing {file}") from error
    return file


def drawing_svg(example: Counterexample, *, captioned: bool = True) -> str:
    """Return the drawing as the text of an SVG file; the same counterexample gives the same text.

    Args:
        example: the counterexample.
        captioned: whether `caption` stands below the drawing.
    """
    figure = draw_counterexample(example, captioned=captioned)
    stream = io.StringIO()
    with mpl.rc_context(_STYLE):
        figure.savefig(stream, format="svg", metadata={"Date": None})
    return stream.getvalue()


# ------------------------------------------------------------------------------------------------- the parts


def _groups(example: Counterexample) -> list[int]:
    """Return the cluster of every node; for designs over single nodes, one for all."""
    partition = getattr(example.instance.design, "partition", None)
    return [0] * example.instance.graph.num_nodes if partition is None else partition.assignment.tolist()


def _positions(groups: Sequence[int]) -> list[Point]:
    """Put the nodes on a circle, the clusters side by side; two nodes lie on a horizontal line."""
    count = len(groups)
    order = sorted(range(count), key=lambda node: (groups[node], node))
    if count == 1:
        return [(0.0, 0.0)]
    radius = max(0.8, 0.55 / math.sin(math.pi / count)) if count > 2 else 0.8
    start = math.pi if count == 2 else math.pi / 2 + math.pi / count
    points = [(0.0, 0.0)] * count
    for place, node in enumerate(order):
        angle = start - 2 * math.pi * place / count
        points[node] = (radius * math.cos(angle), radius * math.sin(angle))
    return points


def _draw_edges(axes: Axes, example: Counterexample, lost: LostMessages, points: Sequence[Point]) -> None:
    edges = {(s, d) for s, d in example.instance.graph.edge_index.T.tolist()}
    for source, destination in sorted(edges):
        if source == destination:
            _draw_loop(axes, points[source])
        elif (destination, source) not in edges:
            _arrow(axes, points[source], points[destination], "-|>", _MUTED, 0.0)
        elif source < destination:
            _arrow(axes, points[source], points[destination], "-", _MUTED, 0.0)
    for sender, receiver in lost.messages:
        _arrow(axes, points[sender], points[receiver], "-|>", _LOST, 0.13)


def _arrow(axes: Axes, start: Point, end: Point, style: str, colour: str, bend: float) -> None:
    # From rim to rim, in data units; a bend leaves the straight line to the edge itself.
    length = math.dist(start, end)
    gap = (_RADIUS + 0.03) / length
    along = [start[axis] + gap * (end[axis] - start[axis]) for axis in (0, 1)]
    until = [end[axis] + gap * (start[axis] - end[axis]) for axis in (0, 1)]
    if bend:  # moved sideways at both ends, so that the heads do not lie on the edge
        side = (-(end[1] - start[1]) / length * 0.07, (end[0] - start[0]) / length * 0.07)
        along, until = ([point[axis] - side[axis] for axis in (0, 1)] for point in (along, until))
    axes.add_patch(
        FancyArrowPatch(
            (along[0], along[1]),
            (until[0], until[1]),
            arrowstyle=style,
            mutation_scale=16,
            shrinkA=0,
            shrinkB=0,
            connectionstyle=f"arc3,rad={bend}",
            linestyle="--" if colour == _LOST else "-",
            linewidth=2.0 if colour == _LOST else 1.6,
            color=colour,
            zorder=2 if colour == _LOST else 1,
        )
    )


def _draw_loop(axes: Axes, point: Point) -> None:
    # Sideways, away from the middle: labels are above and below, edges lead inwards.
    side = -1.0 if point[0] < -1e-9 else 1.0
    centre = (point[0] + side * (_RADIUS + 0.07), point[1])
    axes.add_patch(Circle(centre, 0.11, fill=False, edgecolor=_MUTED, linewidth=1.6, zorder=1))


def _draw_nodes(
    axes: Axes, example: Counterexample, lost: LostMessages, groups: Sequence[int], points: Sequence[Point]
) -> None:
    graph = example.instance.graph
    for node, (x, y) in enumerate(points):
        role, width = ("-", 3.2) if node in lost.batch else ("--", 1.8) if node in lost.halo else ("-", 0.8)
        fill = _CLUSTERS[groups[node] % len(_CLUSTERS)]
        axes.add_patch(
            Circle((x, y), _RADIUS, facecolor=fill, edgecolor=_INK, linestyle=role, linewidth=width, zorder=3)
        )
        if graph.train_mask[node]:
            axes.add_patch(Circle((x, y), 0.7 * _RADIUS, fill=False, edgecolor=_INK, linewidth=0.9, zorder=4))
        axes.text(x, y, str(node), ha="center", va="center", fontsize=12, weight="bold", color=_INK, zorder=5)
        features = ", ".join(f"{value + 0.0:.4g}" for value in graph.x[node].tolist())
        label = f"x = {features}" + (f"\ny = {int(graph.y[node])}" if graph.train_mask[node] else "")
        away = math.hypot(x, y)
        # Next to the node, away from the centre; below it where the node is left or right of the centre.
        level = abs(y) < 0.1 * (away or 1.0)
        place = (x, y - _RADIUS - 0.06) if level else (x + x / away * 0.3, y + math.copysign(_RADIUS + 0.06, y))
        axes.text(*place, label, ha="center", va="bottom" if place[1] > y else "top", fontsize=9, color=_INK, zorder=5)


def _legend(figure: Figure, example: Counterexample, lost: LostMessages, groups: Sequence[int]) -> None:
    ring: dict[str, Any] = {
        "marker": "o",
        "linestyle": "none",
        "markersize": 14,
        "markerfacecolor": _PAPER,
        "markeredgecolor": _INK,
    }
    entries: list[Any] = []
    names: list[str] = []
    if getattr(example.instance.design, "partition", None) is not None:
        for group in sorted(set(groups)):
            entries.append(Patch(facecolor=_CLUSTERS[group % len(_CLUSTERS)], edgecolor=_MUTED))
            names.append(f"cluster {group}")
    entries += [
        Line2D([], [], **ring, markeredgewidth=3.0),
        Line2D([], [], marker=r"$\bigcirc$", linestyle="none", markersize=8, color=_INK, markeredgewidth=0.3),
    ]
    names += ["in the batch that is drawn", "labelled (inner ring)"]
    if lost.halo:
        entries.append(Line2D([], [], linestyle=(0, (2, 1)), linewidth=1.8, color=_INK))
        names.append("its halo (dashed rim)")
    if example.instance.graph.num_edges:
        entries.append(Line2D([], [], linewidth=1.6, color=_MUTED))
        names.append("edge (arrow: one way only)" if example.search.get("directed") else "edge, both ways")
    if lost.messages:
        entries.append(Line2D([], [], linestyle="--", linewidth=2.0, color=_LOST))
        names.append("\n".join(textwrap.wrap(f"lost: {lost.what}", 30)))
    legend = figure.legend(
        entries, names, loc="upper left", bbox_to_anchor=(0.65, 0.98), frameon=False, fontsize=9.5, labelspacing=0.9
    )
    for text in legend.get_texts():
        text.set_color(_INK)


def _lines(example: Counterexample) -> list[str]:
    """Return the model, the histories, the design and the parameters, a line each."""
    model, settings = example.instance.model, example.instance.model.settings
    return [
        f"{model.name}, L = {settings['num_layers']}, width {settings['hidden_channels']}",
        f"histories: {example.verdict.case.histories or example.histories}",
        f"{type(example.instance.design).__name__}: {len(example.batches)} batches",
        *_parameter_lines(example),
    ]


def _parameter_lines(example: Counterexample) -> list[str]:
    """Return every parameter on a line, if there is room for all of them."""
    parameters = example.instance.parameters
    lines = [f"{_readable(name)} = {_matrix(value.tolist())}" for name, value in parameters.items()]
    return lines if len(lines) <= 8 and max(map(len, lines)) <= 44 else []


def _readable(name: str) -> str:
    head, *rest = name.replace(".conv", "").split(".")
    return f"layer {int(rest[0]) + 1} {'.'.join(rest[1:])}" if head == "layers" else name


def _matrix(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(_matrix(item) for item in value) + "]"
    return f"{value + 0.0:.4g}"
