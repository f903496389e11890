"""Plain models as layered ones, with the proof that they are the same function of their parameters.

What a layered model is made of is read from a plain one by `lmc_verify.models.plain`; nothing of it is believed.
Outputs and gradients of both are compared, and each layer is measured as one of the user's own.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch_geometric.data import Data, Dataset

from lmc_verify.arguments import typed
from lmc_verify.errors import InvalidInputError
from lmc_verify.graphs import Graph
from lmc_verify.graphs.sums import ordered_sum
from lmc_verify.models.layered import LayeredModel
from lmc_verify.models.plain import Call, PlainModel, build, call_of
from lmc_verify.models.plain.inputs import graph_inputs
from lmc_verify.models.plain.prepare import copied, generators_kept
from lmc_verify.models.plain.row_wise import induced
from lmc_verify.objective.layer_properties import check_layers, is_aggregate_linear, kind_of

__all__ = ["layered"]

_AGREE = 1e-9
"""How far apart outputs and gradients may be, of the largest entry, in float64: rounding of sums in another order."""

_NODES = 50_000
"""Nodes of the data on which they are compared, at most."""


@typed(besides=("model",))
def layered(model: nn.Module, data: Data | Dataset | Graph) -> LayeredModel:
    """Return a plain model as a layered one: the same function, with the same parameters under the same names.

    The model is a stack of PyTorch Geometric convolutions as usually written, with anything node-wise between them:
    ``GCN``, ``GraphSAGE``, ``GIN``, ``GAT``, ``PNA``, ``EdgeCNN`` and ``Sequential`` of PyTorch Geometric, or a module
    of one's own whose ``forward`` takes ``x`` and ``edge_index`` (and ``edge_weight``, ``edge_attr``), or one object
    that has them. It is run once with symbols (`torch.fx`) and cut at its convolutions, before any activation. What
    skips and jumping knowledge need later is carried along in the layers' rows.

    That both are the same function is proved on the data (on 50,000 of its nodes, if there are more) and on the
    subgraph that a random half of these nodes induces, there with other parameters: outputs, and the gradient of every
    parameter, in float64. Every layer is measured as `lmc_verify.Problem` does, also whether it is aggregate-linear.

    Args:
        model: the model. It is not changed: the layered one has a copy of its parameters, and of each module's mode.
            Batch norm must be in evaluation mode, and stays there; dropout is keyed, see `lmc_verify.models.Dropout`.
        data: a graph like those that the model will be used with.

    Raises:
        InvalidInputError: the model cannot be a layered one; names the module and the line, and what to do.

    Example:
        >>> import lmc_verify as lv
        >>> from torch_geometric.nn import GraphSAGE
        >>> graph = lv.load_graph("karate")
        >>> model = lv.layered(GraphSAGE(graph.num_features, 8, num_layers=2, out_channels=4), graph)
        >>> model.num_layers, model.aggregate_linear
        (2, True)
        >>> next(name for name, parameter in model.named_parameters())
        'convs.0.lin_l.weight'
    """
    graph = data if isinstance(data, Graph) else Graph.from_pyg(data)
    if not isinstance(model, nn.Module) or isinstance(model, LayeredModel):
        kind = "already is layered" if isinstance(model, LayeredModel) else "is no torch.nn.Module"
        raise InvalidInputError(f"model: {type(model).__name__} {kind}; give a module with forward(x, edge_index)")
    tensors = [value for value in (*model.parameters(), *model.buffers()) if value.is_floating_point()]
    if tensors:
        graph = graph.to(tensors[0].device, tensors[0].dtype)
    with generators_kept(), torch.inference_mode(False):
        return _proved(call_of(model, graph), graph)


def _proved(call: Call, graph: Graph) -> PlainModel:
    """Return the layered model; what it is made of may draw from global generators when it is run or copied."""
    made = build(call, graph)
    for index in range(1, made.num_layers + 1):
        layer = made.layer(index)
        name = f"layer {index} ({kind_of(layer)})"
        # The convolutions are asked, alone: an activation before one could be zero where it is tried.
        layer.aggregate_linear = all(
            is_aggregate_linear(name, conv, width, graph) for conv, width in made.convolutions(index)
        )
    evaluated = copy.deepcopy(made).eval()
    check_layers(evaluated, made.row_widths, graph)
    _prove(call, evaluated, graph.double())
    return made


def _prove(call: Call, made: PlainModel, graph: Graph) -> None:
    """Compare a layered model, which may be changed, with the plain one."""
    plain, made = call.of(copied(call.model)).double().eval(), made.double()
    whole = graph if graph.num_nodes <= _NODES else induced(graph, _NODES)
    for moved, piece in enumerate((whole, induced(whole, (whole.num_nodes + 1) // 2, seed=1))):
        if moved:
            _move(plain.model)
            _move(made)
        outputs, gradient = _outputs_and_gradient(plain, piece)
        again, _ = _outputs_and_gradient(plain, piece)
        ours = made(piece)
        if not torch.equal(outputs, again):
            raise InvalidInputError(
                f"{type(call.model).__name__} gives other outputs for the same input when it is called again: it is no "
                "function of its inputs; take out what is random or counts its calls"
            )
        _compare("outputs", outputs, ours.detach(), float(outputs.abs().max()))
        found = _gradient(made, ours)
        largest = max((float(value.abs().max()) for value in gradient.values() if value.numel()), default=0.0)
        if list(gradient) != list(found):
            raise InvalidInputError(f"parameters are named {list(found)}, in the model {list(gradient)}")
        for name, value in gradient.items():
            _compare(f"the gradient of {name}", value, found[name], largest)


def _move(model: nn.Module) -> None:
    """Move every parameter by a tenth of its size and a little more: none may have been read while it was traced."""
    rng = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for value in model.parameters():
            step = torch.randn(value.shape, generator=rng, dtype=value.dtype).to(value.device)
            value.add_(step * (0.01 + 0.1 * value.square().mean().sqrt()))


def _outputs_and_gradient(plain: Call, piece: Graph) -> tuple[Tensor, dict[str, Tensor]]:
    try:
        outputs: Tensor = plain(*graph_inputs(piece))
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError) as error:
        raise InvalidInputError(
            f"{type(plain.model).__name__} cannot be evaluated on {piece!r} in float64: {type(error).__name__}: "
            f"{error}; it must take any graph, in the precision of its parameters"
        ) from error
    return outputs.detach(), _gradient(plain.model, outputs)


def _gradient(model: nn.Module, outputs: Tensor) -> dict[str, Tensor]:
    """Return the gradient of a fixed combination of the outputs, by the parameters' names."""
    trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
    rng = torch.Generator().manual_seed(2)
    weights = torch.randn(outputs.shape, generator=rng, dtype=outputs.dtype).to(outputs.device)
    if not trained or not outputs.requires_grad:
        return {name: torch.zeros_like(value) for name, value in trained.items()}
    values = list(trained.values())
    found = torch.autograd.grad(ordered_sum(outputs * weights), values, allow_unused=True, materialize_grads=True)
    return dict(zip(trained, found, strict=True))


def _compare(what: str, expected: Tensor, found: Tensor, largest: float) -> None:
    """Refuse what is not equal to rounding, relative to the largest entry."""
    same_shape = expected.shape == found.shape
    apart = float((expected - found).abs().max()) if same_shape and expected.numel() else 0.0
    if same_shape and apart <= _AGREE * largest:
        return
    size = f"by {apart / largest if largest else apart:.2g} of the largest" if same_shape else "in shape"
    raise InvalidInputError(
        f"{what} of the layered model and of the model differ {size} (at most {_AGREE:g} is rounding): the model does "
        "something that was not seen when it was cut at its convolutions, such as a change in place of a value that is "
        "used again, a hook, or something that depends on the whole graph; write it without, or derive from "
        "lmc_verify.Layer"
    )
