"""Whether what lies between convolutions takes every row on its own, found by evaluation on a piece of the data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.utils import subgraph

from lmc_verify.errors import InvalidInputError
from lmc_verify.graphs import Graph
from lmc_verify.models.plain.convolutions import Convolution
from lmc_verify.models.plain.plan import Plan
from lmc_verify.models.plain.steps import Layout, Step, attribute

__all__ = ["induced", "row_shapes"]

_NODES = 200
"""Nodes of the data that the model is tried on."""

_FEWEST = 8
"""Nodes that it is tried on at least, with other features: rows of one or two nodes show too little."""


def induced(graph: Graph, count: int, seed: int = 0) -> Graph:
    """Return the subgraph that so many random nodes induce, or all of them; every node counts as labelled."""
    rng = torch.Generator().manual_seed(seed)
    nodes = torch.randperm(graph.num_nodes, generator=rng)[:count].to(graph.device)
    edge_index, _, kept = subgraph(
        nodes, graph.edge_index, relabel_nodes=True, num_nodes=graph.num_nodes, return_edge_mask=True
    )
    inside = torch.zeros(graph.num_nodes, dtype=torch.bool, device=graph.device)
    inside[nodes] = True
    nodes = inside.nonzero()[:, 0]  # PyTorch Geometric numbers them in this order
    return Graph(
        edge_index=edge_index,
        x=graph.x[nodes],
        y=torch.zeros(nodes.numel(), dtype=torch.int64, device=graph.device),
        train_mask=torch.ones(nodes.numel(), dtype=torch.bool, device=graph.device),
        edge_weight=None if graph.edge_weight is None else graph.edge_weight[kept],
        edge_attr=None if graph.edge_attr is None else graph.edge_attr[kept],
        name=f"{graph.name}, {nodes.numel()} nodes",
    )


def row_shapes(plan: Plan, steps: Sequence[Step], root: nn.Module, graph: Graph) -> Layout:
    """Return the shapes, without the first dimension, of what layers read and carry, and of the output.

    Args:
        plan: where the model is cut.
        steps: its steps.
        root: the traced root, in evaluation mode, whose constants the steps read.
        graph: the data, in the model's dtype.

    Raises:
        InvalidInputError: names the step that couples rows, that cannot be evaluated, or whose result is no tensor of
            rows where it must be one.
    """
    piece = induced(graph, _NODES)
    values = _checked(plan, steps, root, piece)
    # Features may be alike in all nodes, and then hide what is computed over them.
    with suppress(_NotEvaluatedError):
        _checked(plan, steps, root, _with_noise(piece))
    sources = [call.source for layer in plan.layers for call in layer]
    wanted = {plan.output, *sources, *(name for row in plan.rows for name in row)}
    return {name: tuple(values[name].shape[1:]) for name in wanted}


class _NotEvaluatedError(InvalidInputError):
    """A step that raised an error."""


def _with_noise(piece: Graph) -> Graph:
    """Return a graph with other features, and with nodes besides where there are few."""
    count = max(piece.num_nodes, _FEWEST)
    noise = torch.randn(count, piece.num_features, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return Graph(
        edge_index=piece.edge_index,
        x=noise.to(piece.x),
        y=torch.zeros(count, dtype=torch.int64, device=piece.device),
        train_mask=torch.ones(count, dtype=torch.bool, device=piece.device),
        edge_weight=piece.edge_weight,
        edge_attr=piece.edge_attr,
    )


def _checked(plan: Plan, steps: Sequence[Step], root: nn.Module, piece: Graph) -> dict[str, Any]:
    """Return the results of all steps on a graph, by name; refuse the first one that does not take rows apart."""
    rows = torch.randperm(piece.num_nodes, generator=torch.Generator().manual_seed(1))[: (piece.num_nodes + 1) // 2]
    places = {step.name: step.place for step in steps}
    constants = {step.name: attribute(root, step.target) for step in steps if step.kind == "constant"}
    values: dict[str, Any] = {step.name: piece.x for step in steps if step.kind == "input" and step.target == "x"}
    available = tuple(values)
    with torch.no_grad():
        for segment, own in enumerate(plan.between):
            if segment:
                available = plan.rows[segment]
                values |= {each.name: _convolved(each, values[each.source], piece) for each in plan.layers[segment - 1]}
            _evaluate(own, constants, values, available, rows.to(piece.device))
            for name in plan.rows[segment]:
                _check_rows(places[name], values[name], piece)
        _check_rows(places[plan.output], values[plan.output], piece)
    return values


def _convolved(call: Convolution, x: Any, piece: Graph) -> Tensor:
    _check_rows(f"what {call.place} is given", x, piece)
    if x.dim() != 2:
        raise InvalidInputError(f"{call.place} is given a tensor of {x.dim()} dimensions; give it rows [nodes, width]")
    rows: Tensor = _run(call.place, call.conv, x, x, piece.operator(call.conv.operator))
    return rows


def _evaluate(
    steps: Sequence[Step],
    constants: Mapping[str, Any],
    values: dict[str, Any],
    available: Sequence[str],
    rows: Tensor,
) -> None:
    """Add a segment's results to the values; refuse a step that gives something else for some of the rows alone."""
    whole = {**constants, **values}
    some = {**constants, **{name: values[name][rows] for name in available}}
    fixed = set(constants)
    for step in steps:
        if step.kind == "constant":
            continue
        if step.kind == "count":
            whole[step.name], some[step.name] = len(values[available[0]]), len(rows)
            continue
        whole[step.name] = values[step.name] = _run(step.place, step.run, whole)
        some[step.name] = _run(step.place, step.run, some)
        if fixed.issuperset(step.reads):
            fixed.add(step.name)
        elif not _fits(values[step.name], some[step.name], rows, len(values[available[0]])):
            raise InvalidInputError(
                f"{step.place} gives something else for some rows than for the same rows among all: it couples rows, "
                "as pooling, a softmax over nodes and norms over nodes do, or puts them elsewhere; a layered model "
                "takes every row on its own between two convolutions"
            )


def _run(place: str, call: Callable[..., Any], *inputs: Any) -> Any:
    try:
        return call(*inputs)
    except InvalidInputError:
        raise
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError) as error:
        raise _NotEvaluatedError(
            f"{place} cannot be evaluated on some nodes of the data: {type(error).__name__}: {error}; a layered model "
            "evaluates any rows: leave out tables with one row a node, and fixed numbers of nodes"
        ) from error


def _fits(whole: Any, some: Any, rows: Tensor, count: int) -> bool:
    """Whether a result for some rows is what it was for all of them; of what is no tensor, others are asked."""
    if not isinstance(whole, Tensor) or not isinstance(some, Tensor):
        return True
    expected = whole[rows] if whole.dim() and whole.shape[0] == count else whole
    if some.shape != expected.shape or some.dtype != expected.dtype:
        return False
    if not some.is_floating_point():
        return torch.equal(some, expected)
    largest = float(expected.nan_to_num(0, 0, 0).abs().max()) if expected.numel() else 0.0
    least = float(torch.finfo(some.dtype).eps) ** 0.5
    return torch.allclose(some, expected, rtol=0, atol=least * largest, equal_nan=True)


def _check_rows(place: str, value: Any, piece: Graph) -> None:
    if isinstance(value, Tensor) and value.dim() and value.shape[0] == piece.num_nodes and value.dtype == piece.dtype:
        return
    shape = f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
    raise InvalidInputError(
        f"{place} is {shape} for {piece.num_nodes} nodes, where rows {piece.dtype} [{piece.num_nodes}, ...] are "
        "needed: what convolutions read, what is used after a later one, and the output have one row a node"
    )
