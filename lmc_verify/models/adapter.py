"""The adapter from PyTorch Geometric convolutions that accept a bipartite input to the layer contract."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter
from torch_geometric.nn import MessagePassing
from torch_geometric.nn.aggr import Aggregation, MeanAggregation, SumAggregation

from lmc_verify.errors import InvalidInputError
from lmc_verify.graph import Block
from lmc_verify.models.layered import Conv, check_node_wise

__all__ = ["PyGConv"]


class _WholeGraphMean(Aggregation):
    """A mean that divides by the in-degree in the whole graph, also at rows whose sources are partly outside."""

    def __init__(self) -> None:
        super().__init__()
        self.in_degree: Tensor | None = None
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
        if self.in_degree is None:
            raise RuntimeError("the whole-graph in-degrees are set by PyGConv.forward only")
        total: Tensor = self.sum(x, index, ptr, dim_size, dim)
        shape = [1] * total.dim()
        shape[dim] = -1
        return total / self.in_degree.clamp(min=1).to(total.dtype).view(shape)


class PyGConv(Conv):
    """A PyTorch Geometric convolution as the message-passing part of a layer.

    The convolution is used with the bipartite input ``(source, target)``. Two of its settings are taken over, because
    they would be computed from the local piece instead of the whole graph: self-loops (``add_self_loops``) come from
    the operator, and a mean aggregation divides by the whole graph's in-degrees.

    Args:
        conv: any `MessagePassing` module whose ``forward`` accepts ``(x_source, x_target)``; it belongs to the adapter
            from here on. If its ``forward`` has an argument ``edge_weight``, it gets the graph's weights.
        aggregate_linear: whether the Jacobian with respect to the sources does not depend on the destination's
            aggregate: true for sums and means of linear messages, false for attention, maxima and moments.

    Raises:
        InvalidInputError: the convolution cannot take a bipartite input, couples rows, or is declared aggregate-linear
            with an aggregation that is not.
    """

    def __init__(self, conv: nn.Module, *, aggregate_linear: bool = False) -> None:
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
        arguments = inspect.signature(conv.forward).parameters
        first = next(iter(arguments.values()), None)
        if first is None or first.annotation in (Tensor, "Tensor"):
            raise _not_bipartite(conv)
        self.conv = conv
        self.aggregate_linear = aggregate_linear
        self.operator = "sum"
        if getattr(conv, "add_self_loops", False):
            conv.add_self_loops = False
            self.operator = "loops"
        self._takes_weight = "edge_weight" in arguments
        if aggregate_linear and not isinstance(conv.aggr_module, (SumAggregation, MeanAggregation)):
            raise InvalidInputError(
                f"{type(conv).__name__} aggregates with {type(conv.aggr_module).__name__}, only a sum or a mean can be "
                "aggregate-linear; leave aggregate_linear out"
            )
        if isinstance(conv.aggr_module, MeanAggregation):
            conv.aggr_module = _WholeGraphMean()

    def forward(self, source: Tensor, target: Tensor, block: Block) -> Tensor:
        """Return the rows [rows, out]."""
        if isinstance(self.conv.aggr_module, _WholeGraphMean):
            self.conv.aggr_module.in_degree = block.in_degree
        extra: dict[str, Any] = {"edge_weight": block.edge_weight} if self._takes_weight else {}
        rows, columns = block.shape
        if "size" in inspect.signature(self.conv.forward).parameters:
            extra["size"] = (columns, rows)
        try:
            out: Any = self.conv((source, target), block.edge_index, **extra)
        except (TypeError, ValueError, AttributeError, AssertionError) as error:
            raise _not_bipartite(self.conv, f"its forward raised {type(error).__name__}: {error}") from error
        if not isinstance(out, Tensor) or out.shape[0] != rows:
            shape = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
            raise _not_bipartite(self.conv, f"its forward returned {shape} for {rows} target rows")
        return out


def _not_bipartite(conv: nn.Module, reason: str = "its forward takes a single tensor") -> InvalidInputError:
    return InvalidInputError(
        f"{type(conv).__name__} cannot take a bipartite input (x_source, x_target), which rectangular blocks need: "
        f"{reason}; "
        "use a convolution that can (SAGEConv, GATConv, GINConv, GraphConv, TransformerConv, ...), the native "
        "lmc_verify.GCN, or derive from lmc_verify.Layer"
    )


def materialise(conv_type: type[nn.Module], *args: Any, dtype: torch.dtype | None, **settings: Any) -> nn.Module:
    """Build a module without running its initialiser, which would draw from the global generator.

    Every parameter is left uninitialised; `lmc_verify.models.convs.initialise` fills them.
    """
    with torch.device("meta"):
        module = conv_type(*args, **settings)
    if any(True for _ in module.buffers()):
        raise RuntimeError(f"{conv_type.__name__} has buffers, which must not be left uninitialised")
    module = module.to_empty(device="cpu")
    return module if dtype is None else module.to(dtype)
