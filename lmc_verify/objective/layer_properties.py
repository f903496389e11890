"""What a layer must be, measured on a small graph before anything is estimated with it.

A row is the same on every block that holds its in-neighbours as on the whole graph. What a row's Jacobian in one source
depends on is measured by changing the row's other messages and by leaving them out. It may depend on their values
(attention, maxima); a layer that is declared aggregate-linear depends on neither; and a layer that depends only on how
many there are computes constants of its own (degrees, means) from a block, which holds but a part of a halo row's
messages.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lmc_verify.errors import InvalidInputError
from lmc_verify.graphs import Graph, LocalSet
from lmc_verify.graphs.sums import ordered_sum
from lmc_verify.imports.geometric import classes
from lmc_verify.models.layered import Conv, ConvLayer, Layer, LayeredModel, is_altered

__all__ = ["check_layers", "is_aggregate_linear", "kind_of"]

_EDGES = (
    (1, 0), (2, 0), (3, 0), (4, 0), (5, 0),
    (0, 6), (3, 6), (3, 6), (6, 7), (1, 7), (7, 7),
    (8, 3), (2, 3), (5, 4), (4, 1), (8, 1), (7, 2), (9, 5), (1, 5), (3, 9), (5, 9),
)  # fmt: skip
"""A directed graph of eleven nodes, the last one isolated, with a multi-edge and a self-loop."""

_NODES, _ROW, _KEPT, _OTHERS = 11, 0, 1, (2, 3, 4, 5)
_BATCH = (0, 6, 7)
"""Rows that are compared; some of their sources send messages to other rows, too."""

_FEWER = slice(1, None)
"""Those of them that are also compared alone: without the row of the largest in-degree, to which a layer may pad."""

_ROWS = 5
"""Rows of an encoder or a head that are computed together, and two of them alone."""

_KNOWN = (nn.ModuleList, nn.Sequential, nn.Identity, nn.Linear, nn.LayerNorm, nn.ReLU, nn.Tanh, nn.Softplus)

_KNOWN_GEOMETRIC = (
    *("GATConv", "Linear"),
    *("SumAggregation", "MinAggregation", "MaxAggregation", "StdAggregation", "MultiAggregation"),
)
"""Modules that the package builds its own models of, torch's and those of PyTorch Geometric. Its tests measure those,
unless `PyGConv` is told to believe."""


def check_layers(model: LayeredModel, widths: tuple[int, ...], graph: Graph) -> None:
    """Measure every layer, and encoder and head, unless they are made of the package's own parts, without hooks.

    A layer's copy is measured, whose parameters are moved a little at random, since a layer at zeros shows nothing.
    Nothing of the model is changed, and no global generator is read. A layer that gives other rows when it is called
    again is left to whoever asks that.

    Args:
        model: the model, in evaluation mode.
        widths: of ``H^0 ... H^L``.
        graph: its dtype, device, kind of weights and edge features are used.

    Raises:
        InvalidInputError: names the layer, how large the difference is, and what to do.
    """
    # An encoder may be defined for features like the graph's only, such as indices of a table.
    features = graph.x[torch.arange(_ROWS, device=graph.device) % graph.num_nodes]
    noise = torch.randn(_ROWS, widths[-1], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for name, part, rows in (("encoder", model.encode, features), ("head", model.predict, noise.to(graph.x))):
        module = getattr(model, name)
        if module is not None and _is_foreign(module):
            _check_rows(f"the {name} ({type(module).__name__})", part, rows)
    seen = set()
    for index in range(1, model.num_layers + 1):
        layer = model.layer(index)
        if _is_foreign(layer) and id(layer) not in seen:
            seen.add(id(layer))
            name = f"layer {index} ({kind_of(layer)})"
            with torch.inference_mode(False):  # gradients are taken
                _Trial(name, _moved(name, layer), _small_graph(graph, widths[index - 1]), widths[0]).run()


def is_aggregate_linear(name: str, conv: Conv, width: int, graph: Graph) -> bool:
    """Measure whether a convolution is aggregate-linear, as `check_layers` does, on a copy in evaluation mode.

    Args:
        name: of the layer, for messages.
        conv: the convolution.
        width: of the rows that it aggregates.
        graph: its dtype, device, kind of weights and edge features are used.

    Raises:
        InvalidInputError: it cannot be evaluated on pieces of a graph.
    """
    with torch.inference_mode(False):
        layer = _moved(name, ConvLayer(conv)).eval()
        return _Trial(name, layer, _small_graph(graph, width), width).is_aggregate_linear()


def _is_foreign(module: nn.Module) -> bool:
    types = {type(part) for part in module.modules()}
    adapted = not types.isdisjoint(classes("lmc_verify.models.adapter", "PyGConv"))
    told = adapted and bool(getattr(module, "aggregate_linear", False))
    altered = any(map(is_altered, module.modules()))
    known = {*_KNOWN, *classes("torch_geometric.nn", *_KNOWN_GEOMETRIC)}
    return told or altered or any(one not in known and not one.__module__.startswith("lmc_verify.") for one in types)


def _check_rows(name: str, part: Callable[..., Tensor], x: Tensor) -> None:
    """Refuse an encoder or a head whose rows are not functions of one row each."""
    with torch.no_grad():
        whole, again, some = part(x), part(x), part(x[1:3], 1)
    apart = _difference(some, whole[1:3])
    if torch.equal(whole, again) and apart > float(torch.finfo(x.dtype).eps) ** 0.5:
        raise InvalidInputError(
            f"{name} gives other rows for two rows of features than for the same two among five, by {apart:.2g} of the "
            "largest: it couples rows, as a softmax over them or batch norm does, and the rows of a mini-batch are "
            "others each time; use one that takes every row on its own, such as torch.nn.LayerNorm"
        )


def kind_of(layer: nn.Module) -> str:
    """Return the name of a layer's convolution, or of the layer where it has none."""
    inner = getattr(layer, "conv", layer)
    return type(getattr(inner, "conv", inner)).__name__


def _small_graph(graph: Graph, width: int) -> Graph:
    rng = torch.Generator().manual_seed(0)
    weight = None if graph.edge_weight is None else torch.rand(len(_EDGES), generator=rng).add(0.5).to(graph.x)
    return Graph(
        edge_index=torch.tensor(_EDGES, device=graph.device).T,
        x=torch.randn(_NODES, width, generator=rng, dtype=torch.float64).to(graph.x),
        y=torch.zeros(_NODES, dtype=torch.int64, device=graph.device),
        train_mask=torch.ones(_NODES, dtype=torch.bool, device=graph.device),
        edge_weight=weight,
        edge_attr=graph.some_edge_attr(len(_EDGES)),
        snapshot=False,
    )


@dataclass(frozen=True, eq=False)
class _Trial:
    """One layer on the small graph, whose features are what the layer reads."""

    name: str
    layer: Layer
    graph: Graph
    x0_width: int

    def run(self) -> None:
        """Raise InvalidInputError for what the layer must not be."""
        with self._evaluated():
            whole, again, block, fewer = self._rows()
            if not torch.equal(whole, again):
                return
            changed, missing = self._dependence()
        least = self._least
        if (apart := max(_difference(block, whole), _difference(fewer, whole[_FEWER]))) > least:
            raise InvalidInputError(
                f"{self.name} gives other rows on a block with all of their in-neighbours than on the whole graph, by "
                f"{apart:.2g} of the largest: it computes something from all nodes or edges that it is given, such as "
                "degrees of the sources, a norm over nodes or the largest degree (aggr='lstm' pads every row to it); "
                "use a convolution whose rows read their in-neighbours alone, or a Layer that reads block.in_degree "
                "and block.edge_weight"
            )
        if changed <= least < missing:
            raise InvalidInputError(
                f"{self.name} computes constants such as degrees or means from the messages inside of a block: its "
                f"Jacobian in a source changes by {missing:.2g} of its size when the row's other messages are left "
                "out, and not when they change. Blocks hold a part of the messages of halo rows; use a convolution "
                "with PyTorch Geometric's own mean (SAGEConv), or a Layer that reads block.in_degree"
            )
        if self.layer.aggregate_linear and max(changed, missing) > least:
            raise InvalidInputError(
                f"{self.name} is declared aggregate-linear, and its Jacobian in a source changes by "
                f"{max(changed, missing):.2g} of its size when the row's other messages change or are left out; leave "
                "aggregate_linear out, as for attention, normalised rows and activations after the aggregation"
            )

    def is_aggregate_linear(self) -> bool:
        """Whether the Jacobian in a source is the same, whatever the row's other messages are and without them."""
        with self._evaluated():
            dependence = self._dependence()
        return max(dependence) <= self._least

    @property
    def _least(self) -> float:
        """The smallest relative change that is not rounding."""
        return math.sqrt(torch.finfo(self.graph.dtype).eps)

    @contextmanager
    def _evaluated(self) -> Iterator[None]:
        try:
            yield
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            if isinstance(error, InvalidInputError):
                raise
            raise InvalidInputError(
                f"{self.name} cannot be evaluated on a block of {len(_BATCH)} rows: {type(error).__name__}: {error}; a "
                "layer must take any rows with any of their sources"
            ) from error

    def _rows(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the compared rows from the whole graph, twice, from a block with their in-neighbours, and the fewer.

        The last are `_FEWER` of the rows, from a block of their own.
        """
        graph, h, x0, kind = self.graph, self.graph.x, self._x0(), self.layer.operator
        batch = torch.tensor(_BATCH, device=graph.device)
        with torch.no_grad():
            whole, again = (self.layer(h, h, x0, graph.operator(kind))[batch] for _ in range(2))
            pieces = []
            for rows in (batch, batch[_FEWER]):
                into = graph.operator("sum").csr.select_rows(rows).col.long()
                local = LocalSet(torch.cat([rows, torch.unique(into[~torch.isin(into, rows)])]), rows.numel())
                block = graph.block(kind, rows, local)
                pieces.append(self.layer(h[local.nodes], h[rows], x0[rows], block))
        return whole, again, pieces[0], pieces[1]

    def _dependence(self) -> tuple[float, float]:
        """Return how a row's Jacobian in one source changes when other messages change, and when they are missing.

        Of a `ConvLayer` the convolution is asked: an activation behind it could hide what it computes.
        """
        given = self._jacobian(self.graph.x, _OTHERS)
        changed = [_difference(self._jacobian(x, _OTHERS), given) for x in self._other_values()]
        return max(changed), _difference(self._jacobian(self.graph.x, ()), given)

    def _other_values(self) -> Iterator[Tensor]:
        """Yield inputs with other, larger values at the other sources: each sign, and as many of one as of the other.

        So the kept source is the largest, the smallest and the one in the middle once, whatever its own value is.
        """
        for signs in ((1, 1, 1, 1), (-1, -1, -1, -1), (1, -1, 1, -1)):
            x = self.graph.x.clone()
            x[list(_OTHERS)] = 10 * x[list(_OTHERS)].abs().add(1) * x.new_tensor(signs)[:, None]
            yield x

    def _jacobian(self, x: Tensor, others: tuple[int, ...]) -> Tensor:
        """Return a fixed combination of the row's Jacobian in the kept source [1, width].

        The row's own value stays among the sources, as it does in every local set.
        """
        graph = self.graph
        where = torch.tensor([_ROW], device=graph.device)
        columns = torch.tensor([_KEPT, _ROW, *others], device=graph.device)
        block = graph.block(self.layer.operator, where, LocalSet(columns, 1))
        kept = x[[_KEPT]].detach().requires_grad_()
        source, target = torch.cat([kept, x[columns[1:]]]), x[where]
        with torch.enable_grad():
            own = type(self.layer).forward is not ConvLayer.forward or is_altered(self.layer)
            if isinstance(self.layer, ConvLayer) and not own:
                out = self.layer.conv(*_fitting(self.layer.before, source, target), block)
            else:
                out = self.layer(source, target, self._x0()[where], block)
            weights = torch.linspace(0.5, 1.5, out.numel(), dtype=out.dtype, device=out.device).reshape(out.shape)
            if not out.requires_grad:
                return torch.zeros_like(kept)
            (found,) = torch.autograd.grad(
                ordered_sum(out * weights), [kept], allow_unused=True, materialize_grads=True
            )
        return found

    def _x0(self) -> Tensor:
        ones = self.graph.x.new_ones(_NODES, self.x0_width)
        return ones * torch.linspace(-1, 1, _NODES, dtype=ones.dtype, device=ones.device)[:, None]


def _fitting(before: nn.Module | None, source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return rows as wide as the convolution reads: as they are, unless the part before it changes their width.

    An activation is left out, which could be zero around the rows.
    """
    if before is None or (read := before(source)).shape[1] == source.shape[1]:
        return source, target
    return read, before(target)


def _moved(name: str, layer: Layer) -> Layer:
    """Return a layer's copy whose parameters are moved, each by a tenth of its size and a little more.

    A copy, since whatever is done to the layer itself may be seen: `torch.func.functional_call` leaves a module that
    has two names inside of it with plain tensors for parameters.
    """
    # torch copies no tensor that was computed with a gradient, which a module may keep among its attributes.
    computed = {
        id(value): value.detach().clone()
        for module in layer.modules()
        for value in vars(module).values()
        if isinstance(value, Tensor) and not value.is_leaf
    }
    try:
        moved = copy.deepcopy(layer, computed)
    except (RuntimeError, TypeError) as error:
        raise InvalidInputError(
            f"{name} cannot be copied, and what a layer is, is measured on a copy: {type(error).__name__}: {error}; "
            "keep what cannot be copied (locks, files, computed tensors) out of its attributes"
        ) from error
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in moved.parameters():
            step = torch.randn(parameter.shape, generator=rng, dtype=torch.float64).to(parameter)
            parameter.add_(step * (0.05 + 0.1 * parameter.square().mean().sqrt()))
    return moved


def _difference(one: Tensor, other: Tensor) -> float:
    """Return the largest difference, relative to the largest entry; infinite where one alone is not finite."""
    if one.shape != other.shape or not torch.equal(one.isfinite(), other.isfinite()):
        return float("inf")
    one, other = one.nan_to_num(0, 0, 0), other.nan_to_num(0, 0, 0)
    size = max(float(one.abs().max()), float(other.abs().max()))
    return float((one - other).abs().max()) / size if size else 0.0
