"""A recurrent GNN: one layer with one set of parameters, applied again and again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lmc_verify.errors import InvalidInputError
from lmc_verify.graphs import Block
from lmc_verify.models.convs import GCNConv, initialise
from lmc_verify.models.dropout import at_place
from lmc_verify.models.layered import ACTIVATIONS, Layer, LayeredModel, node_wise_part, place_of
from lmc_verify.models.stacks import check_settings, linear
from lmc_verify.seeds import torch_generator

__all__ = ["RecurrentGNN", "RecurrentLayer"]


class RecurrentLayer(Layer):
    """``f(H, X) = A before(H) W^T + b + E(X)``, or ``after(A H W^T + b + E(X))``, where ``E`` is the encoder."""

    reads_x0 = True

    def __init__(self, conv: GCNConv, *, before: nn.Module | None = None, after: nn.Module | None = None) -> None:
        super().__init__()
        self.conv, self.before, self.after = conv, before, after
        self.operator = conv.operator
        self.aggregate_linear = after is None

    def forward(self, source: Tensor, target: Tensor, x0_target: Tensor, block: Block) -> Tensor:
        """Return the rows [rows, width]; see `Layer.forward`."""
        read = source if self.before is None else self.before(source)
        rows: Tensor = self.conv(read, target, block) + x0_target
        return rows if self.after is None else at_place(self.after, rows, place_of(target, source) or 0)


class RecurrentGNN(LayeredModel):
    """Recurrent GNN: L steps of one layer, which read the features in each; aggregate-linear with the pre cut.

    As L grows the embeddings tend to the fixed point ``H* = f(H*, X)``, if f is a contraction; the fixed point itself
    and its gradient are those of `lmc_verify.fixed_point_pass`. With the GCN operator of an undirected graph, whose
    norm is at most 1, an activation with slopes in [0, 1] and no norm, f contracts by at least the norm of its weight
    matrix, which is `contraction` at the start.

    Source: recurrent GNNs as in Shi, Liang and Wang, the extension of LMC (arXiv 2303.11081).

    Args:
        in_channels: width of the features.
        hidden_channels: width of the embeddings.
        out_channels: classes or tasks.
        num_layers: steps, L >= 1.
        activation_cut: ``"pre"`` (LMC can be exact) or ``"post"``.
        activation: ``"tanh"``, ``"relu"`` or ``"softplus"``.
        encoder: accepted and without effect: there always is a linear encoder.
        head: accepted and without effect: there always is a linear head.
        norm: None or ``"layer"`` (node-wise LayerNorm before each activation); the layer may then not contract.
        residual: must be False: ``H + f(H, X)`` has no fixed point of its own.
        dropout: probability, active in training mode only; verification refuses it, `lmc_verify.Trainer` keys it.
            A step drops the same units in every application of the layer (Gal and Ghahramani, NeurIPS 2016).
        contraction: spectral norm of the initial weight matrix, above 0.
        seed: seed of the initial parameters; no global random state is used.
        dtype: dtype of the parameters, by default float32.

    Raises:
        InvalidInputError: a residual connection, or a width, depth, dropout or contraction that does not fit.
        UnknownNameError: an unknown cut, activation or norm.
    """

    options: ClassVar[Mapping[str, Any]] = {"contraction": 0.5}

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        out_channels: int,
        num_layers: int = 3,
        *,
        activation_cut: str = "pre",
        activation: str = "tanh",
        encoder: bool = True,
        head: bool = True,
        norm: str | None = None,
        residual: bool = False,
        dropout: float = 0.0,
        contraction: float = 0.5,
        seed: int = 0,
        dtype: torch.dtype | None = None,
    ) -> None:
        sizes = {
            "in_channels": in_channels,
            "hidden_channels": hidden_channels,
            "out_channels": out_channels,
            "num_layers": num_layers,
        }
        check_settings(sizes, dropout=dropout, activation_cut=activation_cut, activation=activation)
        if residual:
            raise InvalidInputError("a recurrent GNN has no residual connection; leave residual out")
        if not contraction > 0:
            raise InvalidInputError(f"contraction is {contraction}, it must be above 0")
        part = node_wise_part(
            hidden_channels, norm=norm, activation=activation, dropout=dropout, device=None, dtype=dtype
        )
        conv = GCNConv(hidden_channels, hidden_channels, dtype=dtype)
        pre = activation_cut == "pre"
        step = RecurrentLayer(conv, before=part if pre else None, after=None if pre else part)
        ends: list[nn.Module] = [ACTIVATIONS[activation]()] if pre else []
        super().__init__(
            [step] * num_layers,  # one module: its parameters are named after layer 1
            encoder=linear(in_channels, hidden_channels, dtype),
            head=nn.Sequential(*ends, linear(hidden_channels, out_channels, dtype)),
        )
        self.in_channels, self.out_channels = in_channels, out_channels
        initialise(self, torch_generator(seed, "parameters"))
        with torch.no_grad():
            conv.lin.weight.mul_(contraction / torch.linalg.matrix_norm(conv.lin.weight, ord=2))
