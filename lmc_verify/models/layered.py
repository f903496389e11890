"""The layer contract: models as ``encoder`` -> ``layers`` -> ``head`` whose embeddings can be kept layer by layer.

``H^0 = encoder(x)`` is node-wise, ``H^l = layers[l-1](...)`` passes messages, ``head`` is node-wise. Where a layer is
*cut* decides which values a history keeps: see `ConvLayer`. Modules that are known to couple rows are refused.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, cast

from torch import Tensor, nn

from lmc_verify.arguments import typed
from lmc_verify.errors import InvalidInputError, require_kind
from lmc_verify.graphs import Block, Graph
from lmc_verify.imports.geometric import classes
from lmc_verify.models.dropout import Dropout, at_place

__all__ = [
    "HOOKS",
    "Conv",
    "ConvLayer",
    "Layer",
    "LayeredModel",
    "PartsLayer",
    "active_dropout",
    "apply_part",
    "check_node_wise",
    "drop_units",
    "is_altered",
    "place_of",
]


HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
"""Where torch keeps a module's hooks."""


class Layer(nn.Module, ABC):
    """One message-passing layer, evaluated on any rectangular piece of the operator.

    Attributes:
        operator: which operator its blocks come from (see `lmc_verify.graphs.operators.OPERATORS`).
        aggregate_linear: whether the Jacobian with respect to the sources is independent of the destination's
            aggregate; measured when a `lmc_verify.Problem` is made. If so, LMC with beta = 0 is exact once parameters
            are frozen; if not, a floor is expected.
        reads_x0: whether it reads the encoder's output again (GCNII).
    """

    operator: str
    aggregate_linear: bool
    reads_x0: bool = False

    @abstractmethod
    def forward(self, source: Tensor, target: Tensor, x0_target: Tensor, block: Block) -> Tensor:
        """Return the new rows [rows, out] from source [columns, in], target [rows, in] and x0_target [rows, f0].

        Row i may depend on target row i, x0 row i, and the source rows in block row i; on nothing else.
        """

    def read(self, rows: Tensor) -> Tensor:
        """Return what the layer aggregates [rows, read], given rows of the layer below: activated, with the pre cut.

        Estimators that act after the activation ask for it. Rows as they are where a layer states no such part.
        """
        return rows

    def drop(self, read: Tensor, first_row: int) -> Tensor:
        """Return rows that were read in evaluation mode with the units dropped that `read` drops in training."""
        return read

    def on_read(
        self, read: Tensor, own: Tensor, target: Tensor | None, x0_target: Tensor, block: Block, first_row: int = 0
    ) -> Tensor:
        """Return the new rows from sources that were read already.

        Args:
            read: what the block's columns stand for, as `read` returns it [columns, read].
            own: the rows' own, read as well [rows, read].
            target: the rows' own of the layer below [rows, in], for a residual connection; None leaves that out.
            x0_target: the encoder's output [rows, f0].
            block: the piece of the operator.
            first_row: place of the first row, see `at_place`.
        """
        rows: Tensor = self(read, own, x0_target, block)
        return rows


class Conv(nn.Module, ABC):
    """A convolution without activation: the part of a layer that passes messages."""

    operator: str
    aggregate_linear: bool
    reads_target: bool = True

    @abstractmethod
    def forward(self, source: Tensor, target: Tensor, block: Block) -> Tensor:
        """Return the rows [rows, out]."""


class PartsLayer(Layer):
    """A layer of three parts: a node-wise one before, a convolution, and a node-wise one after it.

    Attributes:
        before: node-wise module applied to what the layer reads, or None.
        after: node-wise module applied to its result, or None.
        residual: whether the layer's own input row is added to its result.
    """

    before: nn.Module | None
    after: nn.Module | None
    residual: bool = False

    @abstractmethod
    def convolve(self, read: Tensor, own: Tensor, x0_target: Tensor, block: Block) -> Tensor:
        """Return the convolution's rows [rows, out], given what is read of the columns and of the rows themselves."""

    def forward(self, source: Tensor, target: Tensor, x0_target: Tensor, block: Block) -> Tensor:
        """Return the rows [rows, out]; see `Layer.forward`. The rows' own enter through a residual connection alone."""
        read = source if self.before is None else self.before(source)
        return self.on_read(read, target, target, x0_target, block, place_of(target, source) or 0)

    def read(self, rows: Tensor) -> Tensor:
        """Return the activated rows; see `Layer.read`."""
        return apply_part(self.before, rows)

    def drop(self, read: Tensor, first_row: int) -> Tensor:
        """Drop units; see `Layer.drop`."""
        return drop_units(self.before, read, first_row)

    def on_read(
        self, read: Tensor, own: Tensor, target: Tensor | None, x0_target: Tensor, block: Block, first_row: int = 0
    ) -> Tensor:
        """Return the rows [rows, out]; see `Layer.on_read`."""
        rows = apply_part(self.after, self.convolve(read, own, x0_target, block), first_row)
        return rows + target if self.residual and target is not None else rows


class ConvLayer(PartsLayer):
    """A convolution with its node-wise part before (pre-activation cut) or after it (post-activation cut).

    Pre-activation, ``H^l = conv(act(norm(H^{l-1})))``: the next layer applies the activation to what it reads, so
    the Jacobian at a row never sees that row's own, possibly incomplete, aggregate. Post-activation,
    ``H^l = act(norm(conv(H^{l-1})))``. Stacked without residuals, both are the same function of the parameters.

    Args:
        conv: the convolution.
        before: node-wise module applied to what the layer reads, or None.
        after: node-wise module applied to its result, or None.
        residual: whether to add the layer's own input row (`target`) to its result.
    """

    @typed
    def __init__(
        self,
        conv: Conv,
        *,
        before: nn.Module | None = None,
        after: nn.Module | None = None,
        residual: bool = False,
    ) -> None:
        super().__init__()
        self.conv = conv
        self.before = before
        self.after = after
        self.residual = residual
        self.operator = conv.operator
        self.aggregate_linear = conv.aggregate_linear and after is None

    def forward(self, source: Tensor, target: Tensor, x0_target: Tensor, block: Block) -> Tensor:
        """Return the rows [rows, out]; see `Layer.forward`."""
        read_source, read_target = source, target
        start = place_of(target, source)
        if self.before is not None:
            read_source = self.before(source)
            if target is source:
                read_target = read_source
            elif self.conv.reads_target:
                # A row must be read alike as source and as target: its mask, where units are dropped, is its place's.
                read_target = self.before(target) if start is None else read_source[start : start + target.shape[0]]
        return self.on_read(read_source, read_target, target, x0_target, block, start or 0)

    def convolve(self, read: Tensor, own: Tensor, x0_target: Tensor, block: Block) -> Tensor:
        """Return the convolution's rows [rows, out]; see `PartsLayer.convolve`."""
        rows: Tensor = self.conv(read, own, block)
        return rows


class LayeredModel(nn.Module):
    """A node-wise encoder, message-passing layers, and a node-wise head.

    Args:
        layers: the layers, first to last.
        encoder: maps features to ``H^0``; None is the identity.
        head: maps ``H^L`` to outputs; None is the identity.

    Raises:
        InvalidInputError: no layer, or a module that couples rows (batch norm and its relatives).
    """

    @typed
    def __init__(
        self, layers: Sequence[Layer], *, encoder: nn.Module | None = None, head: nn.Module | None = None
    ) -> None:
        super().__init__()
        layers = list(layers)
        if not layers:
            raise InvalidInputError("a layered model needs at least 1 message-passing layer, got 0")
        for number, layer in enumerate(layers, start=1):
            require_kind(f"layer {number} of layers", layer, Layer)
        self.encoder = encoder
        self.layers = nn.ModuleList(layers)
        self.head = head
        check_node_wise(self)

    @property
    def num_layers(self) -> int:
        """Number of message-passing layers, L."""
        return len(self.layers)

    def layer(self, index: int) -> Layer:
        """Return layer ``index`` in the paper's numbering, 1 ... L."""
        return cast(Layer, self.layers[index - 1])

    @property
    def aggregate_linear(self) -> bool:
        """Whether every layer is aggregate-linear (see `Layer`)."""
        return all(self.layer(index).aggregate_linear for index in range(1, self.num_layers + 1))

    def encode(self, x: Tensor, first_row: int = 0) -> Tensor:
        """Return ``H^0`` for rows of features, the first of which has this place among the rows that are evaluated."""
        return x if self.encoder is None else at_place(self.encoder, x, first_row)

    def predict(self, embeddings: Tensor, first_row: int = 0) -> Tensor:
        """Return outputs for rows of ``H^L``, the first of which has this place among the rows that are evaluated."""
        return embeddings if self.head is None else at_place(self.head, embeddings, first_row)

    def forward(self, graph: Graph) -> Tensor:
        """Return the outputs of every node [n, outputs], in one piece, differentiable by plain autograd."""
        x0 = self.encode(graph.x)
        h = x0
        for index in range(1, self.num_layers + 1):
            layer = self.layer(index)
            h = layer(h, h, x0, graph.operator(layer.operator))
        return self.predict(h)


def apply_part(part: nn.Module | None, rows: Tensor, first_row: int = 0) -> Tensor:
    """Return what a node-wise part gives for rows whose first one has this place; the rows where there is none."""
    return rows if part is None else at_place(part, rows, first_row)


def drop_units(part: nn.Module | None, rows: Tensor, first_row: int) -> Tensor:
    """Return the rows with the units dropped that a part's dropout drops in training mode."""
    for module in () if part is None else part.modules():
        if isinstance(module, Dropout):
            rows = at_place(module, rows, first_row)
    return rows


def place_of(target: Tensor, source: Tensor) -> int | None:
    """Return the place of the first target row among the source rows, or None where they are other tensors."""
    if target is source:
        return 0
    width = source.shape[1]
    same = (
        width > 0
        and target.untyped_storage().data_ptr() == source.untyped_storage().data_ptr()
        and target.dtype == source.dtype
        and target.stride() == source.stride() == (width, 1)
    )
    start, rest = divmod(int(target.storage_offset()) - int(source.storage_offset()), width or 1)
    inside = 0 <= start <= start + target.shape[0] <= source.shape[0]
    return start if same and not rest and inside else None


def check_node_wise(module: nn.Module) -> None:
    """Raise InvalidInputError if a sub-module is known to couple the rows of a layer."""
    couples: tuple[type[Any], ...] = (nn.modules.batchnorm._BatchNorm, *classes("torch_geometric.nn", *_COUPLES_ROWS))
    layer_norms = classes("torch_geometric.nn", "LayerNorm")
    for name, part in module.named_modules():
        graph_norm = isinstance(part, layer_norms) and getattr(part, "mode", None) == "graph"
        if graph_norm or isinstance(part, couples):
            raise InvalidInputError(
                f"{name or 'the module'} is a {type(part).__name__}, which couples the rows of a mini-batch: "
                "layer-wise gradients are then undefined; use torch.nn.LayerNorm (node-wise) instead"
            )


def is_altered(module: nn.Module) -> bool:
    """Whether one instance computes something else than its class: a hook is registered on it, or a method replaced.

    PyTorch Geometric keeps hooks of its own, on messages and aggregates, in tables that are named alike.
    """
    for name, value in vars(module).items():
        if name.endswith("_hooks") and ("forward" in name or "backward" in name) and value:
            return True
        if callable(value) and callable(getattr(type(module), name, None)):
            return True
    return False


def active_dropout(module: nn.Module, *, allow_keyed: bool = False) -> str | None:
    """Return the name of a sub-module whose dropout is on (training mode, probability above 0), or None.

    Args:
        module: where to look.
        allow_keyed: pass over dropout whose mask a key determines (see `lmc_verify.models.Dropout`).
    """
    for name, part in module.named_modules():
        if allow_keyed and isinstance(part, Dropout) and part.key is not None:
            continue
        rate = part.p if isinstance(part, nn.modules.dropout._DropoutNd) else getattr(part, "dropout", 0.0)
        if part.training and isinstance(rate, (int, float)) and rate > 0:
            return name or type(part).__name__
    return None


_COUPLES_ROWS = (
    "BatchNorm",
    "InstanceNorm",
    "GraphNorm",
    "GraphSizeNorm",
    "PairNorm",
    "MeanSubtractionNorm",
    "DiffGroupNorm",
)
"""Norms of PyTorch Geometric over several rows."""
