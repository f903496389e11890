"""Models whose layers read the encoder's output again: GCNII and APPNP."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lmc_verify.errors import InvalidInputError
from lmc_verify.graphs import Block, spmm
from lmc_verify.models.convs import initialise
from lmc_verify.models.dropout import at_place
from lmc_verify.models.layered import ACTIVATIONS, Layer, LayeredModel, node_wise_part, place_of
from lmc_verify.models.stacks import check_settings, linear, with_jumps
from lmc_verify.seeds import torch_generator

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


class GCNIILayer(Layer):
    """A GCNII convolution with its node-wise part before (pre-activation cut) or after it (post-activation cut)."""

    operator = "gcn"
    reads_x0 = True

    def __init__(
        self, conv: GCN2Conv, *, before: nn.Module | None = None, after: nn.Module | None = None, residual: bool = False
    ) -> None:
        super().__init__()
        self.conv, self.before, self.after, self.residual = conv, before, after, residual
        self.aggregate_linear = after is None

    def forward(self, source: Tensor, target: Tensor, x0_target: Tensor, block: Block) -> Tensor:
        """Return the rows [rows, channels]; see `Layer.forward`."""
        rows: Tensor = self.conv(source if self.before is None else self.before(source), x0_target, block)
        if self.after is not None:
            rows = at_place(self.after, rows, place_of(target, source) or 0)
        return rows + target if self.residual else rows


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
        rows = (1 - self.alpha) * spmm(block, source) + self.alpha * x0_target
        return rows + target if self.residual else rows


_ARGUMENTS = """

    Args:
        in_channels: width of the features.
        hidden_channels: width of the hidden layers.
        out_channels: classes or tasks.
        num_layers: message-passing layers, L >= 1.
        activation_cut: ``"pre"`` (LMC can be exact) or ``"post"``; without an activation in the layers both are one.
        activation: ``"relu"``, ``"tanh"`` or ``"softplus"``.
        encoder: accepted and without effect: there always is an encoder.
        head: {head}
        norm: None or ``"layer"`` (node-wise LayerNorm before each activation{where}).
        residual: add each layer's input to its output.
        dropout: probability, active in training mode only; verification refuses it, `lmc_verify.Trainer` keys it.
        alpha: share of the encoder's output in every layer, in [0, 1].{more}
        seed: seed of the initial parameters; no global random state is used.
        dtype: dtype of the parameters, by default float32.

    Raises:
        InvalidInputError: a width or the number of layers below 1, alpha outside [0, 1], or dropout outside [0, 1).
        UnknownNameError: an unknown cut, activation or norm.
    """


def _check_share(alpha: float) -> None:
    if not 0 <= alpha <= 1:
        raise InvalidInputError(f"alpha is {alpha}, the share of the encoder's output must lie in [0, 1]")


class GCNII(LayeredModel):
    """GCNII [Chen et al., ICML 2020]: initial residual and identity mapping; aggregate-linear with the pre cut."""

    __doc__ += _ARGUMENTS.format(
        head="accepted and without effect: there always is a linear head.",
        where=" between layers",
        more="""
        jump: None, or jumping knowledge: the head reads every layer's embedding, ``"concat"`` or ``"max"``.
        theta: strength of the weight matrices, which falls with depth: ``beta_l = log(theta / l + 1)``.
        shared_weights: one matrix for the aggregate and the encoder's output.""",
    )
    options: ClassVar[Mapping[str, Any]] = {"alpha": 0.1, "theta": 0.5, "shared_weights": True}

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        out_channels: int,
        num_layers: int = 3,
        *,
        activation_cut: str = "pre",
        activation: str = "relu",
        encoder: bool = True,
        head: bool = True,
        norm: str | None = None,
        residual: bool = False,
        jump: str | None = None,
        dropout: float = 0.0,
        alpha: float = 0.1,
        theta: float = 0.5,
        shared_weights: bool = True,
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
        _check_share(alpha)
        if not theta > 0:
            raise InvalidInputError(f"theta is {theta}, it must be above 0")
        layers: list[Layer] = []

        def part() -> nn.Module:
            return node_wise_part(
                hidden_channels, norm=norm, activation=activation, dropout=dropout, device=None, dtype=dtype
            )

        for index in range(num_layers):
            conv = GCN2Conv(
                hidden_channels,
                alpha=alpha,
                theta=theta,
                layer=index + 1,
                shared_weights=shared_weights,
                dtype=dtype,
            )
            pre = activation_cut == "pre" and index > 0
            post = activation_cut == "post" and index < num_layers - 1
            layers.append(
                GCNIILayer(conv, before=part() if pre else None, after=part() if post else None, residual=residual)
            )
        act = ACTIVATIONS[activation]
        ends = nn.Sequential(act(), linear(hidden_channels, out_channels, dtype))
        if jump is not None:
            widths = [hidden_channels] * (num_layers + 1)
            layers, ends = with_jumps(layers, widths, part(), out_channels, jump=jump, dtype=dtype)
        super().__init__(
            layers,
            encoder=nn.Sequential(linear(in_channels, hidden_channels, dtype), act()),
            head=ends,
        )
        self.in_channels, self.out_channels = in_channels, out_channels
        initialise(self, torch_generator(seed, "parameters"))


class APPNP(LayeredModel):
    """APPNP [Klicpera et al., ICLR 2019]: a node-wise network whose predictions are propagated; aggregate-linear."""

    __doc__ += _ARGUMENTS.format(
        head="propagate hidden rows, and add a linear head behind.", where=" of the network", more=""
    )
    options: ClassVar[Mapping[str, Any]] = {"alpha": 0.1}

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        out_channels: int,
        num_layers: int = 3,
        *,
        activation_cut: str = "pre",
        activation: str = "relu",
        encoder: bool = True,
        head: bool = False,
        norm: str | None = None,
        residual: bool = False,
        dropout: float = 0.0,
        alpha: float = 0.1,
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
        _check_share(alpha)
        width = hidden_channels if head else out_channels
        part = node_wise_part(
            hidden_channels, norm=norm, activation=activation, dropout=dropout, device=None, dtype=dtype
        )
        act = ACTIVATIONS[activation]
        super().__init__(
            [APPNPLayer(alpha, residual=residual) for _ in range(num_layers)],
            encoder=nn.Sequential(
                linear(in_channels, hidden_channels, dtype), part, linear(hidden_channels, width, dtype)
            ),
            head=nn.Sequential(act(), linear(hidden_channels, out_channels, dtype)) if head else None,
        )
        self.in_channels, self.out_channels = in_channels, out_channels
        initialise(self, torch_generator(seed, "parameters"))
