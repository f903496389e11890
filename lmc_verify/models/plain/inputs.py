"""How a plain model is called: which tensors of a graph its ``forward`` takes, and under which names."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from torch import Tensor, nn
from torch_geometric.nn import Sequential

from lmc_verify.errors import InvalidInputError
from lmc_verify.graphs import Graph

__all__ = ["EDGES", "EDGE_INPUTS", "INPUTS", "Call", "call_of", "graph_inputs"]

EDGES = "edge_index"
EDGE_INPUTS = (EDGES, "edge_weight", "edge_attr")
INPUTS = ("x", *EDGE_INPUTS)
"""What a layered model reads of a graph."""

_OTHER_NAMES = {"adj_t": EDGES, "adj": EDGES}

_FREE = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


class Call(nn.Module):
    """A model behind one signature, whatever its own is; also the root of what is traced.

    Args:
        model: the model.
        arguments: what the model's arguments get, by name; None where it takes one object with attributes, like
            `torch_geometric.data.Data`.
        given: which of `INPUTS` there are.
    """

    def __init__(self, model: nn.Module, arguments: Mapping[str, str] | None, given: tuple[str, ...]) -> None:
        super().__init__()
        self.model = model
        self.arguments = None if arguments is None else dict(arguments)
        self.given = given

    def of(self, model: nn.Module) -> Call:
        """Return the same call of another model."""
        return Call(model, self.arguments, self.given)

    def forward(
        self, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None = None, edge_attr: Tensor | None = None
    ) -> Any:
        """Return what the model returns."""
        have = {"x": x, EDGES: edge_index, "edge_weight": edge_weight, "edge_attr": edge_attr}
        have = {name: value if name in self.given else None for name, value in have.items()}
        if self.arguments is None:
            return self.model(SimpleNamespace(**have))
        return self.model(**{argument: have[name] for argument, name in self.arguments.items()})


def call_of(model: nn.Module, graph: Graph) -> Call:
    """Return how a model is called on graphs like this one.

    Raises:
        InvalidInputError: `forward` needs something that a layered model does not read.
    """
    given = tuple(name for name in INPUTS if getattr(graph, name) is not None)
    parameters = [each for each in _signature(model).values() if each.kind not in _FREE]
    known = {each.name: _OTHER_NAMES.get(each.name, each.name) for each in parameters}
    known = {argument: name for argument, name in known.items() if name in INPUTS}
    required = [each.name for each in parameters if each.default is each.empty]
    unknown = [name for name in required if name not in known]
    if len(required) == len(unknown) == 1:
        return Call(model, None, given)
    kind = type(model).__name__
    if unknown:
        raise InvalidInputError(
            f"{kind}.forward needs {', '.join(unknown)}, a layered model reads {', '.join(INPUTS)}; give the argument "
            "a default, and leave out what pools whole graphs or tells types of nodes or edges"
        )
    missing = [name for name in required if known[name] not in given]
    if missing:
        raise InvalidInputError(
            f"{kind}.forward needs {', '.join(missing)}, which the data do not have; add it, or give the argument the "
            "default None"
        )
    first = {name: argument for argument, name in reversed(known.items())}
    if not {"x", EDGES} <= first.keys():
        raise InvalidInputError(
            f"{kind}.forward has the arguments {', '.join(each.name for each in parameters)}; it must take x and "
            "edge_index under these names, or one object that has them as attributes"
        )
    return Call(model, {argument: name for name, argument in first.items() if name in given}, given)


def _signature(model: nn.Module) -> Mapping[str, inspect.Parameter]:
    if isinstance(model, Sequential):  # whose own text says what it takes, and whose forward may not
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        return {name: inspect.Parameter(name, kind) for name in model.signature.param_dict}
    return inspect.signature(model.forward).parameters


def graph_inputs(graph: Graph) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Return what `Call.forward` takes of a graph; weights and features in its dtype."""
    weight, attr = graph.edge_weight, graph.edge_attr
    return (
        graph.x,
        graph.edge_index,
        None if weight is None else weight.to(graph.dtype),
        None if attr is None else attr.to(graph.dtype),
    )
