"""The calls of convolutions in a traced model: what each aggregates, and whether it reads the edges as they are."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch_geometric.nn import MessagePassing

from lmc_verify.errors import InvalidInputError
from lmc_verify.graphs import Graph
from lmc_verify.models.adapter import PyGConv
from lmc_verify.models.plain.inputs import EDGE_INPUTS, EDGES
from lmc_verify.models.plain.steps import Ref, Step

__all__ = ["Convolution", "find_convolutions"]


@dataclass(frozen=True, eq=False)
class Convolution:
    """One call of a convolution.

    Attributes:
        name: of its result.
        source: name of what it aggregates.
        conv: the convolution on rectangular blocks; the same one for every call of a module.
        place: for messages.
    """

    name: str
    source: str
    conv: PyGConv
    place: str


def find_convolutions(steps: Sequence[Step], graph: Graph) -> dict[str, Convolution]:
    """Return every call of a convolution by the name of its result, in order.

    Args:
        steps: of the model, see `lmc_verify.models.plain.trace`.
        graph: whether it has weights and features of edges decides what a call must be given.

    Raises:
        InvalidInputError: edges are computed, or read by something else than a convolution; a convolution gets only
            some of the weights or features that its layer would give it; or `PyGConv` refuses it.
    """
    edges = {step.name: str(step.target) for step in steps if step.kind == "input" and step.target in EDGE_INPUTS}
    adapters: dict[nn.Module, tuple[PyGConv, bool]] = {}
    found = {}
    for step in steps:
        if isinstance(step.module, MessagePassing):
            found[step.name] = _convolution(step, step.module, edges, graph, adapters)
            continue
        read = [edges[name] for name in step.reads if name in edges]
        if read:
            raise InvalidInputError(
                f"{step.place} reads {read[0]}, which only PyTorch Geometric convolutions may (MessagePassing "
                "modules): make what it computes from the edges part of the data, or of a MessagePassing module"
            )
    if not found:
        raise InvalidInputError(
            "the model calls no PyTorch Geometric convolution (MessagePassing module) on the way to its output; a "
            "layered model needs at least 1"
        )
    return found


def _convolution(
    step: Step,
    module: MessagePassing,
    edges: Mapping[str, str],
    graph: Graph,
    adapters: dict[nn.Module, tuple[PyGConv, bool]],
) -> Convolution:
    given = _arguments(step, module)
    source = given.pop(next(iter(given)))
    if isinstance(source, (tuple, list)) and len(set(source)) == 1:
        source = source[0]  # conv((x, x), edge_index)
    if not isinstance(source, Ref):
        raise InvalidInputError(f"{step.place} is given {source!r}; it must be called with one tensor of rows")
    read = {name: _edge_input(step, name, value, edges) for name, value in given.items() if value is not None}
    if EDGES not in read.values():
        raise InvalidInputError(f"{step.place} is not given edge_index; it must be called as conv(x, edge_index, ...)")
    takes = inspect.signature(module.forward).parameters
    weighted = "edge_weight" in takes
    if weighted and graph.edge_weight is not None and "edge_weight" not in read:
        raise InvalidInputError(
            f"{step.place} is called without edge_weight, and the data have weights, which a layer reads; pass "
            "edge_weight on, or leave it out of the data"
        )
    featured = "edge_attr" in read
    if module not in adapters:
        try:
            adapters[module] = PyGConv(module, edge_features=featured if "edge_attr" in takes else False), featured
        except InvalidInputError as error:
            raise InvalidInputError(f"{step.place}: {error}") from error
    conv, before = adapters[module]
    if before is not featured:
        raise InvalidInputError(
            f"{step.place} is called with edge_attr once and without it once; give it the same in every call"
        )
    return Convolution(step.name, source.name, conv, step.place)


def _arguments(step: Step, module: MessagePassing) -> dict[str, Any]:
    """Return what a call gives to the arguments of a convolution, in the order of its signature."""
    try:
        bound = inspect.signature(module.forward).bind(*step.args, **step.kwargs).arguments
    except TypeError as error:
        raise InvalidInputError(f"{step.place} is called wrongly: {error}") from error
    if not bound:
        raise InvalidInputError(f"{step.place} is called without arguments; call it as conv(x, edge_index, ...)")
    return dict(bound)


def _edge_input(step: Step, name: str, value: Any, edges: Mapping[str, str]) -> str:
    """Return which input an argument of a convolution is; refuse one that is none, or not the one that it names."""
    where = edges.get(value.name) if isinstance(value, Ref) else None
    wanted = EDGES if name in ("adj_t", "adj") else name
    if where is not None and where == wanted:
        return where
    if name in EDGE_INPUTS or where is not None:
        got = where or ("something computed" if isinstance(value, Ref) else repr(value))
        raise InvalidInputError(
            f"{step.place} is given {got} for {name}, a layer gives it the data's own {wanted}; prepare it in the data "
            f"(data.{wanted} = ...) and pass it on as it is"
        )
    got = "something computed" if isinstance(value, Ref) else repr(value)
    raise InvalidInputError(
        f"{step.place} is given {name}={got}, and a layer gives x and {', '.join(EDGE_INPUTS)} alone; leave {name} out"
    )
