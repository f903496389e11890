"""PyTorch Geometric convolutions in layered models: the adapter, and PNA's convolution with a bipartite input.

A layer is evaluated on rectangular blocks: sources and destinations are separate, and degrees are those of the whole
graph. `PyGConv` evaluates a convolution in this way. `PNAConv` takes a bipartite input, which PyTorch Geometric's does
not.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter
from torch_geometric import nn as pyg_nn
from torch_geometric.nn import MessagePassing
from torch_geometric.nn.aggr import (
    Aggregation,
    DegreeScalerAggregation,
    MeanAggregation,
    MultiAggregation,
    StdAggregation,
    SumAggregation,
    VarAggregation,
)

from lmc_verify.arguments import typed
from lmc_verify.errors import InvalidInputError, UnknownNameError
from lmc_verify.graphs import Block, loops_operator
from lmc_verify.models.convs import PNA_AGGREGATORS, PNA_DEGREES, PNA_SCALERS
from lmc_verify.models.layered import HOOKS, Conv, check_node_wise

__all__ = ["PNAConv", "PyGConv", "materialise", "whole_graph_constants"]


class PyGConv(Conv):
    """A PyTorch Geometric convolution as the message-passing part of a layer.

    The convolution is used with the bipartite input ``(source, target)``. What it would compute from the local piece
    instead of the whole graph is taken over: self-loops (``add_self_loops``), with their edge features
    (``fill_value``), and the normalisation of `GCNConv` come from the operator; means, moments and degree scalers
    divide by the whole graph's in-degrees. What else it computes from the piece is found, and refused, when a
    `lmc_verify.Problem` is made of it.

    Args:
        conv: any `MessagePassing` module whose ``forward`` accepts ``(x_source, x_target)``, or a `GCNConv`; it belongs
            to the adapter from here on. If its ``forward`` has an argument ``edge_weight``, it gets the graph's
            weights.
        aggregate_linear: whether the Jacobian with respect to the sources does not depend on the destination's
            aggregate: true for sums and means of linear messages, false for attention, maxima and moments. It is
            measured when a `lmc_verify.Problem` is made.
        edge_features: whether ``forward`` gets ``graph.edge_attr``. None decides by the convolution's settings
            (``edge_dim``, ``in_edge_channels``); one that has no such setting, but an argument ``edge_attr``, gets
            them where the graph has some. False also leaves out types of edges, where the convolution can do without.

    Raises:
        InvalidInputError: the convolution cannot take a bipartite input, couples rows, sends messages against the
            edges, reads types of edges, or is declared aggregate-linear with an aggregation that is not.
    """

    @typed
    def __init__(self, conv: nn.Module, *, aggregate_linear: bool = False, edge_features: bool | None = None) -> None:
        super().__init__()
        if not isinstance(conv, MessagePassing):
            raise InvalidInputError(
                f"{type(conv).__name__} is not a torch_geometric MessagePassing module; "
                "derive from lmc_verify.Layer for other kinds of layers"
            )
        check_node_wise(conv)
        if any(isinstance(parameter, UninitializedParameter) for parameter in conv.parameters()):
            raise InvalidInputError(
                f"{type(conv).__name__} has lazily initialised parameters, which would be drawn from torch's global "
                "generator at first use; give its input widths as numbers instead of -1"
            )
        if conv.flow != "source_to_target":
            raise InvalidInputError(
                f"{type(conv).__name__} has flow={conv.flow!r}, layers send messages from sources to targets; leave "
                "flow out, and use graph.transposed()"
            )
        arguments = inspect.signature(conv.forward).parameters
        first = next(iter(arguments.values()), None)
        self._is_gcn = type(conv).forward is pyg_nn.GCNConv.forward
        if not self._is_gcn and (first is None or first.annotation in (Tensor, "Tensor")):
            raise _not_bipartite(conv)
        self._edges = _edge_features(conv, arguments, edge_features)
        self.conv = conv
        self.aggregate_linear = aggregate_linear
        self.operator = _take_over_operator(conv, bool(self._edges))
        self._takes_weight = "edge_weight" in arguments
        self._takes_size = "size" in arguments
        if aggregate_linear and not isinstance(conv.aggr_module, (SumAggregation, MeanAggregation)):
            raise InvalidInputError(
                f"{type(conv).__name__} aggregates with {type(conv.aggr_module).__name__}, only a sum or a mean can be "
                "aggregate-linear; leave aggregate_linear out"
            )
        conv.aggr_module = whole_graph_constants(conv.aggr_module)
        self._degree_readers = [part for part in conv.modules() if isinstance(part, _ReadsInDegree)]

    def forward(self, source: Tensor, target: Tensor, block: Block) -> Tensor:
        """Return the rows [rows, out].

        Raises:
            InvalidInputError: the convolution needs edge features and the block has none, or it cannot take a
                bipartite input.
        """
        for part in self._degree_readers:
            part.in_degree = block.in_degree
        rows, columns = block.shape
        if self._is_gcn:
            return self._gcn(source, block)
        extra: dict[str, Any] = {"edge_weight": block.edge_weight} if self._takes_weight else {}
        if self._takes_size:
            extra["size"] = (columns, rows)
        if self._edges:
            if block.edge_attr is None and self._edges != _IF_THERE:
                raise _lacks_edge_features(self.conv, self._edges)
            extra["edge_attr"] = block.edge_attr
        try:
            out: Any = self.conv((source, target), block.edge_index, **extra)
        except (TypeError, ValueError, AttributeError, AssertionError, RuntimeError) as error:
            if self._edges and block.edge_attr is None:
                raise _lacks_edge_features(self.conv, "its argument edge_attr") from error
            if isinstance(error, RuntimeError):
                raise  # widths that do not fit, which whoever knows the layers says better
            raise _not_bipartite(self.conv, f"its forward raised {type(error).__name__}: {error}") from error
        if not isinstance(out, Tensor) or out.shape[0] != rows:
            shape = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
            raise _not_bipartite(self.conv, f"its forward returned {shape} for {rows} target rows")
        return out

    def _gcn(self, source: Tensor, block: Block) -> Tensor:
        """Return what `GCNConv.forward` does after its normalisation, which the operator has done."""
        rows, columns = block.shape
        conv: Any = self.conv
        if any(getattr(conv, kind) for kind in HOOKS):
            raise InvalidInputError(
                f"{type(conv).__name__} has hooks of its own, which are not run: its forward normalises, and the whole "
                "graph's operator has done so; register them on the PyGConv around it, or on its lin"
            )
        # `propagate` reads the width of both; no message reads a target.
        x = conv.lin(source)
        out: Tensor = conv.propagate(
            block.edge_index, x=(x, x.new_zeros(rows, x.shape[1])), edge_weight=block.edge_weight, size=(columns, rows)
        )
        return out if conv.bias is None else out + conv.bias


_IF_THERE = "its optional argument edge_attr"
"""How a convolution reads features of edges that has no setting for them."""

_TYPES_OF_EDGES = ("edge_type", "edge_feat", "pseudo")


def _take_over_operator(conv: Any, reads_edges: bool) -> str:
    """Return the operator that computes what a convolution would from its local piece, and switch that off in it."""
    if type(conv).forward is pyg_nn.GCNConv.forward:
        if not conv.normalize:
            return "sum"
        if conv.improved or not conv.add_self_loops:
            raise InvalidInputError(
                f"{type(conv).__name__} has improved={conv.improved} and add_self_loops={conv.add_self_loops}, the "
                "whole graph is normalised with one self-loop of weight 1 a node; leave both out, or give the "
                "normalised weights as edge_weight and set normalize=False"
            )
        conv.normalize = False
        return "gcn"
    if not getattr(conv, "add_self_loops", False):
        return "sum"
    conv.add_self_loops = False
    return loops_operator(getattr(conv, "fill_value", 1.0)) if reads_edges else "loops"


def _edge_features(conv: nn.Module, arguments: Mapping[str, inspect.Parameter], wanted: bool | None) -> str:
    """Return by which setting or argument a convolution reads features of edges; an empty text where it does not.

    Raises:
        InvalidInputError: it reads types of edges, or it is told to read features and has no argument for them.
    """
    for name in _TYPES_OF_EDGES:
        relations = getattr(conv, "num_relations", 2)
        if wanted is not False and name in arguments and (relations is None or relations > 1):
            raise InvalidInputError(
                f"{type(conv).__name__} reads edge features (its argument {name}), and lmc_verify.Graph holds "
                "edge_attr and edge_weight alone; use one that reads edge_attr, and give "
                "it the types as indicators, torch.nn.functional.one_hot(types); or leave them out, edge_features=False"
            )
    if "edge_attr" not in arguments:
        if wanted:
            raise InvalidInputError(
                f"{type(conv).__name__}.forward has no argument edge_attr, which edge_features=True would fill; leave "
                "it out"
            )
        return ""
    if wanted is not None:
        return "edge_features=True" if wanted else ""
    if arguments["edge_attr"].default is inspect.Parameter.empty:
        return "its argument edge_attr"
    for setting in _SETTINGS:
        if hasattr(conv, setting):
            value = getattr(conv, setting)
            return "" if value is None else f"{setting}={value}"
    if isinstance(getattr(conv, "lin_edge", None), nn.Module):
        return "edge_dim"
    return "" if getattr(conv, "dim", None) == 0 else _IF_THERE  # CGConv has dim=0 for none


_SETTINGS = ("edge_dim", "in_edge_channels")


def _lacks_edge_features(conv: nn.Module, how: str) -> InvalidInputError:
    return InvalidInputError(
        f"{type(conv).__name__} reads edge features ({how}), and there are none: without them it would compute another "
        "function; give the graph an edge_attr [edges, features], or use a convolution without edge features (one "
        "number per edge can be an edge_weight)"
    )


class PNAConv(pyg_nn.PNAConv):
    """`torch_geometric.nn.PNAConv` whose ``forward`` takes ``(x_source, x_target)``; parameters and numbers are equal.

    Source: Corso et al., Principal Neighbourhood Aggregation for Graph Nets, NeurIPS 2020. Arguments are those of
    PyTorch Geometric. Wrapped in `lmc_verify.PyGConv`, its means, moments and degree scalers read the whole graph's
    in-degrees.
    """

    AGGREGATORS: ClassVar[tuple[str, ...]] = PNA_AGGREGATORS
    SCALERS: ClassVar[tuple[str, ...]] = PNA_SCALERS
    UNIT_DEGREES: ClassVar[tuple[int, ...]] = PNA_DEGREES

    def forward(
        self,
        x: tuple[Tensor, Tensor],
        edge_index: Tensor,
        edge_attr: Tensor | None = None,
        size: tuple[int, int] | None = None,
    ) -> Tensor:
        """Return the rows [rows, out] from sources [columns, in], targets [rows, in] and edge features [edges, d]."""
        source, target = (self._towers(value) for value in x)
        # propagate_type: (x: OptPairTensor, edge_attr: OptTensor)
        rows = self.propagate(edge_index, x=(source, target), edge_attr=edge_attr, size=size)
        rows = torch.cat([target, rows], dim=-1)
        towers = [post(rows[:, index]) for index, post in enumerate(self.post_nns)]
        out: Tensor = self.lin(torch.cat(towers, dim=1))
        return out

    def refill_buffers(self) -> None:
        """Fill the buffers, which `lmc_verify.models.adapter.materialise` leaves uninitialised."""
        self.aggr_module.reset_parameters()

    def _towers(self, value: Tensor) -> Tensor:
        """Return rows by tower [rows, towers, in of a tower]."""
        if self.divide_input:
            return value.view(-1, self.towers, self.F_in)
        return value.view(-1, 1, self.F_in).repeat(1, self.towers, 1)


def materialise(conv_type: type[nn.Module], *args: Any, dtype: torch.dtype | None, **settings: Any) -> nn.Module:
    """Build a module without running its initialiser, which would draw from the global generator.

    Every parameter is left uninitialised; `lmc_verify.models.convs.initialise` fills them. Buffers are filled by the
    module's own method ``refill_buffers``.
    """
    with torch.device("meta"):
        module = conv_type(*args, **settings)
    refill = getattr(module, "refill_buffers", None)
    if refill is None and any(True for _ in module.buffers()):
        raise RuntimeError(f"{conv_type.__name__} has buffers, which must not be left uninitialised")
    module = module.to_empty(device="cpu")
    module = module if dtype is None else module.to(dtype)
    if refill is not None:
        refill()
    return module


def whole_graph_constants(aggregation: Aggregation) -> Aggregation:
    """Return an aggregation whose means, moments and degree scalers take their degrees from the whole graph.

    Standard deviations and several aggregations are changed in place, others are replaced.
    """
    if isinstance(aggregation, _ReadsInDegree):
        return aggregation
    if isinstance(aggregation, MeanAggregation):
        return _WholeGraphMean()
    if isinstance(aggregation, DegreeScalerAggregation):
        return _WholeGraphScaler(aggregation)
    if isinstance(aggregation, VarAggregation):
        return _WholeGraphVariance(semi_grad=aggregation.semi_grad)
    if isinstance(aggregation, StdAggregation):
        aggregation.var_aggr = whole_graph_constants(aggregation.var_aggr)
    elif isinstance(aggregation, MultiAggregation):
        aggregation.aggrs = nn.ModuleList([whole_graph_constants(part) for part in aggregation.aggrs])
        aggregation.fused_aggr = None  # the fused kernels would count local sources
    return aggregation


class _ReadsInDegree(Aggregation):
    """An aggregation whose constants are in-degrees of the whole graph, also at rows with sources outside."""

    def __init__(self) -> None:
        super().__init__()
        self.in_degree: Tensor | None = None

    def degrees(self, like: Tensor, dim: int) -> Tensor:
        """Return the in-degrees of the rows, in the dtype of `like` and shaped to be broadcast along `dim`."""
        if self.in_degree is None:
            raise RuntimeError("the whole-graph in-degrees are set by PyGConv.forward only")
        shape = [1] * like.dim()
        shape[dim] = -1
        return self.in_degree.to(like.dtype).view(shape)


class _WholeGraphMean(_ReadsInDegree):
    """A mean that divides by the in-degree in the whole graph."""

    def __init__(self) -> None:
        super().__init__()
        self.sum = SumAggregation()

    def forward(
        self,
        x: Tensor,
        index: Tensor | None = None,
        ptr: Tensor | None = None,
        dim_size: int | None = None,
        dim: int = -2,
    ) -> Tensor:
        """Return sums over the local sources divided by the whole graph's in-degrees."""
        total: Tensor = self.sum(x, index, ptr, dim_size, dim)
        return total / self.degrees(total, dim).clamp(min=1)


class _WholeGraphVariance(_ReadsInDegree):
    """``E[x^2] - E[x]^2``, both means over the in-degree in the whole graph: absent messages count as zeros."""

    def __init__(self, *, semi_grad: bool) -> None:
        super().__init__()
        self.semi_grad = semi_grad
        self.sum = SumAggregation()

    def forward(
        self,
        x: Tensor,
        index: Tensor | None = None,
        ptr: Tensor | None = None,
        dim_size: int | None = None,
        dim: int = -2,
    ) -> Tensor:
        """Return the variances over the local sources."""
        total: Tensor = self.sum(x, index, ptr, dim_size, dim)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.semi_grad):
            squares: Tensor = self.sum(x * x, index, ptr, dim_size, dim)
        degree = self.degrees(total, dim).clamp(min=1)
        return squares / degree - (total / degree).square()


class _WholeGraphScaler(_ReadsInDegree):
    """Degree scalers (PNA) that read the in-degree in the whole graph; buffers are named as in PyTorch Geometric.

    A graph without edges has an average degree of zero: the scalers then divide by one.
    """

    KNOWN = ("identity", "amplification", "attenuation", "linear", "inverse_linear")
    avg_deg_lin: Tensor
    avg_deg_log: Tensor

    def __init__(self, scaled: DegreeScalerAggregation) -> None:
        super().__init__()
        self.aggr = whole_graph_constants(scaled.aggr)
        self.scaler = list(scaled.scaler)
        for name in self.scaler:
            if name not in self.KNOWN:
                raise UnknownNameError("degree scaler", name, self.KNOWN)
        if isinstance(scaled.avg_deg_lin, nn.Parameter):
            raise InvalidInputError("degree scalers with trained averages (train_norm) are not supported; leave it out")
        self.register_buffer("avg_deg_lin", _positive(scaled.avg_deg_lin))
        self.register_buffer("avg_deg_log", _positive(scaled.avg_deg_log))

    def forward(
        self,
        x: Tensor,
        index: Tensor | None = None,
        ptr: Tensor | None = None,
        dim_size: int | None = None,
        dim: int = -2,
    ) -> Tensor:
        """Return the aggregate once for each scaler, side by side."""
        out: Tensor = self.aggr(x, index, ptr, dim_size, dim)
        degree = self.degrees(out, dim)
        log, least = (degree + 1).log(), degree.clamp(min=1)
        factors = {
            "identity": torch.ones_like(degree),
            "amplification": log / self.avg_deg_log,
            "attenuation": self.avg_deg_log / (least + 1).log(),
            "linear": degree / self.avg_deg_lin,
            "inverse_linear": self.avg_deg_lin / least,
        }
        return torch.cat([out * factors[name] for name in self.scaler], dim=-1)


def _positive(average: Tensor) -> Tensor:
    return torch.where(average > 0, average, torch.ones_like(average)).detach().clone()


def _not_bipartite(conv: nn.Module, reason: str = "its forward takes a single tensor") -> InvalidInputError:
    return InvalidInputError(
        f"{type(conv).__name__} cannot take a bipartite input (x_source, x_target), which rectangular blocks need: "
        f"{reason}; "
        "use a convolution that can (SAGEConv, GATConv, GINConv, GraphConv, TransformerConv, ...), lmc_verify.GCN, "
        "lmc_verify.models.PNAConv, or derive from lmc_verify.Layer"
    )
