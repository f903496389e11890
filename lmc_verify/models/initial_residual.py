"""Models whose layers read the encoder's output again: GCNII and APPNP."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lmc_verify.errors import InvalidInputError
from lmc_verify.graphs import Block, spmm
from lmc_verify.models.architecture import Architecture, ArchitectureModel, Parts
from lmc_verify.models.convs import linear
from lmc_verify.models.jumping import with_jumps
from lmc_verify.models.layered import Layer, PartsLayer

__all__ = ["APPNP", "GCNII", "APPNPLayer", "GCNIILayer"]


class GCN2Conv(nn.Module):
    """``((1 - alpha) A H + alpha H^0) ((1 - beta) I + beta W_1)``, with ``beta = log(theta / l + 1)`` in layer l.

    Source: Chen et al., Simple and Deep Graph Convolutional Networks, ICML 2020. State dict keys ``weight1`` and
    ``weight2`` (for H^0, only if the weights are not shared) are those of `torch_geometric.nn.GCN2Conv`.
    """

    def __init__(
        self, channels: int, *, alpha: float, theta: float, layer: int, shared_weights: bool, dtype: torch.dtype | None
    ) -> None:
        super().__init__()
        self.alpha, self.beta = alpha, math.log(theta / layer + 1)
        self.weight1 = nn.Parameter(torch.empty(channels, channels, dtype=dtype))
        self.weight2 = None if shared_weights else nn.Parameter(torch.empty(channels, channels, dtype=dtype))

    def forward(self, source: Tensor, x0: Tensor, block: Block) -> Tensor:
        """Return the rows [rows, channels] from source [columns, channels] and x0 [rows, channels]."""
        rows, start = (1 - self.alpha) * spmm(block, source), self.alpha * x0
        if self.weight2 is None:
            return self._mixed(rows + start, self.weight1)
        return self._mixed(rows, self.weight1) + self._mixed(start, self.weight2)

    def _mixed(self, rows: Tensor, weight: Tensor) -> Tensor:
        return (1 - self.beta) * rows + self.beta * (rows @ weight)


class GCNIILayer(PartsLayer):
    """A GCNII convolution with its node-wise part before (pre-activation cut) or after it (post-activation cut)."""

    operator = "gcn"
    reads_x0 = True

    def __init__(
        self, conv: GCN2Conv, *, before: nn.Module | None = None, after: nn.Module | None = None, residual: bool = False
    ) -> None:
        super().__init__()
        self.conv, self.before, self.after, self.residual = conv, before, after, residual
        self.aggregate_linear = after is None

    def convolve(self, read: Tensor, own: Tensor, x0_target: Tensor, block: Block) -> Tensor:
        """Return the convolution's rows [rows, channels]; see `PartsLayer.convolve`."""
        rows: Tensor = self.conv(read, x0_target, block)
        return rows


class APPNPLayer(Layer):
    """One step of personalised propagation, ``(1 - alpha) A H + alpha H^0``; it has no parameters.

    Source: Klicpera et al., Predict then Propagate, ICLR 2019; L of them are `torch_geometric.nn.APPNP` with K = L.
    """

    operator = "gcn"
    aggregate_linear = True
    reads_x0 = True

    def __init__(self, alpha: float, *, residual: bool = False) -> None:
        super().__init__()
        self.alpha, self.residual = alpha, residual

    def forward(self, source: Tensor, target: Tensor, x0_target: Tensor, block: Block) -> Tensor:
        """Return the rows [rows, channels]; see `Layer.forward`."""
        return self.on_read(source, target, target, x0_target, block)

    def on_read(
        self, read: Tensor, own: Tensor, target: Tensor | None, x0_target: Tensor, block: Block, first_row: int = 0
    ) -> Tensor:
        """Return the rows [rows, channels]; see `Layer.on_read`."""
        rows = (1 - self.alpha) * spmm(block, read) + self.alpha * x0_target
        return rows + target if self.residual and target is not None else rows


class GCNII(ArchitectureModel):
    """GCNII [Chen et al., ICML 2020]: initial residual and identity mapping; aggregate-linear with the pre cut.

    Args:
        encoder: accepted and without effect: there always is an encoder.
        head: accepted and without effect: there always is a linear head.
        norm: None or ``"layer"`` (node-wise LayerNorm before each activation between layers).
        residual: add each layer's input to its output.
        jump: None, or jumping knowledge: the head reads every layer's embedding, ``"concat"`` or ``"max"``.
        alpha: share of the encoder's output in every layer, in [0, 1].
        theta: strength of the weight matrices, which falls with depth: ``beta_l = log(theta / l + 1)``.
        shared_weights: one matrix for the aggregate and the encoder's output.

    Raises:
        InvalidInputError: a width or the number of layers below 1, dropout outside [0, 1), alpha outside [0, 1], or
            theta that is not above 0.
    """

    defaults: ClassVar[Mapping[str, Any]] = {"encoder": True, "head": True}

    def _parts(
        self,
        architecture: Architecture,
        dtype: torch.dtype | None,
        *,
        alpha: float = 0.1,
        theta: float = 0.5,
        shared_weights: bool = True,
    ) -> Parts:
        _check_share(alpha)
        if not theta > 0:
            raise InvalidInputError(f"theta is {theta}, it must be above 0")
        width, last = architecture.hidden_channels, architecture.num_layers - 1
        layers: list[Layer] = []
        for index in range(architecture.num_layers):
            conv = GCN2Conv(
                width, alpha=alpha, theta=theta, layer=index + 1, shared_weights=shared_weights, dtype=dtype
            )
            before = architecture.node_wise_part(width, dtype) if architecture.pre and index > 0 else None
            after = architecture.node_wise_part(width, dtype) if not architecture.pre and index < last else None
            layers.append(GCNIILayer(conv, before=before, after=after, residual=architecture.residual))
        head = architecture.linear_head(dtype)
        if architecture.jump is not None:
            widths, last_read = [width] * (architecture.num_layers + 1), architecture.node_wise_part(width, dtype)
            layers, head = with_jumps(
                layers, widths, last_read, architecture.out_channels, jump=architecture.jump, dtype=dtype
            )
        return layers, architecture.linear_encoder(dtype), head


class APPNP(ArchitectureModel):
    """APPNP [Klicpera et al., ICLR 2019]: a node-wise network whose predictions are propagated; aggregate-linear.

    Args:
        activation_cut: ``"pre"`` or ``"post"``, which are one here: layers have no activation.
        encoder: accepted and without effect: there always is an encoder.
        head: propagate hidden rows, and add a linear head behind.
        norm: None or ``"layer"`` (node-wise LayerNorm before each activation of the network).
        residual: add each layer's input to its output.
        alpha: share of the encoder's output in every layer, in [0, 1].

    Raises:
        InvalidInputError: a width or the number of layers below 1, or dropout or alpha outside its interval.
    """

    defaults: ClassVar[Mapping[str, Any]] = {"encoder": True}
    lacks: ClassVar[tuple[str, ...]] = ("jump",)

    def _parts(self, architecture: Architecture, dtype: torch.dtype | None, *, alpha: float = 0.1) -> Parts:
        _check_share(alpha)
        hidden = architecture.hidden_channels
        propagated = hidden if architecture.head else architecture.out_channels
        encoder = nn.Sequential(
            linear(architecture.in_channels, hidden, dtype),
            architecture.node_wise_part(hidden, dtype),
            linear(hidden, propagated, dtype),
        )
        layers = [APPNPLayer(alpha, residual=architecture.residual) for _ in range(architecture.num_layers)]
        return layers, encoder, architecture.linear_head(dtype) if architecture.head else None


def _check_share(alpha: float) -> None:
    if not 0 <= alpha <= 1:
        raise InvalidInputError(f"alpha is {alpha}, the share of the encoder's output must lie in [0, 1]")
