"""A recurrent GNN: one layer with one set of parameters, applied again and again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from lmc_verify.errors import InvalidInputError
from lmc_verify.graphs import Block
from lmc_verify.models.architecture import Architecture, ArchitectureModel, Parts
from lmc_verify.models.convs import GCNConv, linear
from lmc_verify.models.layered import PartsLayer

__all__ = ["RecurrentGNN", "RecurrentLayer"]


class RecurrentLayer(PartsLayer):
    """``f(H, X) = A before(H) W^T + b + E(X)``, or ``after(A H W^T + b + E(X))``, where ``E`` is the encoder."""

    reads_x0 = True

    def __init__(self, conv: GCNConv, *, before: nn.Module | None = None, after: nn.Module | None = None) -> None:
        super().__init__()
        self.conv, self.before, self.after = conv, before, after
        self.operator = conv.operator
        self.aggregate_linear = after is None

    def convolve(self, read: Tensor, own: Tensor, x0_target: Tensor, block: Block) -> Tensor:
        """Return the convolution's rows plus the encoder's [rows, width]; see `PartsLayer.convolve`."""
        rows: Tensor = self.conv(read, own, block) + x0_target
        return rows


class RecurrentGNN(ArchitectureModel):
    """Recurrent GNN: L steps of one layer, which read the features in each; aggregate-linear with the pre cut.

    As L grows the embeddings tend to the fixed point ``H* = f(H*, X)``, if f is a contraction; the fixed point itself
    and its gradient are those of `lmc_verify.fixed_point_pass`. With the GCN operator of an undirected graph, whose
    norm is at most 1, an activation with slopes in [0, 1] and no norm, f contracts by at least the norm of its weight
    matrix, which is `contraction` at the start.

    Source: recurrent GNNs as in Shi, Liang and Wang, the extension of LMC (arXiv 2303.11081).

    Args:
        hidden_channels: width of the embeddings.
        num_layers: steps, L >= 1.
        encoder: accepted and without effect: there always is a linear encoder.
        head: accepted and without effect: there always is a linear head.
        norm: None or ``"layer"`` (node-wise LayerNorm before each activation); the layer may then not contract.
        residual: must be False: ``H + f(H, X)`` has no fixed point of its own.
        dropout: probability, active in training mode only; verification refuses it, `lmc_verify.Trainer` keys it.
            A step drops the same units in every application of the layer (Gal and Ghahramani, NeurIPS 2016).
        contraction: spectral norm of the initial weight matrix, above 0.

    Raises:
        InvalidInputError: a residual connection, or a width, depth, dropout or contraction that does not fit.
    """

    defaults: ClassVar[Mapping[str, Any]] = {"activation": "tanh", "encoder": True, "head": True}
    lacks: ClassVar[tuple[str, ...]] = ("jump",)

    def _parts(self, architecture: Architecture, dtype: torch.dtype | None, *, contraction: float = 0.5) -> Parts:
        if architecture.residual:
            raise InvalidInputError("a recurrent GNN has no residual connection; leave residual out")
        if not contraction > 0:
            raise InvalidInputError(f"contraction is {contraction}, it must be above 0")
        hidden, pre = architecture.hidden_channels, architecture.pre
        part = architecture.node_wise_part(hidden, dtype)
        conv = GCNConv(hidden, hidden, dtype=dtype)
        step = RecurrentLayer(conv, before=part if pre else None, after=None if pre else part)
        return (
            [step] * architecture.num_layers,  # one module: its parameters are named after layer 1
            linear(architecture.in_channels, hidden, dtype),
            architecture.linear_head(dtype) if pre else nn.Sequential(linear(hidden, architecture.out_channels, dtype)),
        )

    def _draw_parameters(self, generator: torch.Generator, own: Mapping[str, Any]) -> None:
        super()._draw_parameters(generator, own)
        weight = cast(RecurrentLayer, self.layer(1)).conv.lin.weight
        with torch.no_grad():
            weight.mul_(own["contraction"] / torch.linalg.matrix_norm(weight, ord=2))
