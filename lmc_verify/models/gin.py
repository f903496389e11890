"""GIN as a layered model, cut so that it is aggregate-linear."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from lmc_verify.graphs import Block, spmm
from lmc_verify.models.convs import initialise
from lmc_verify.models.layered import ACTIVATIONS, Conv, ConvLayer, Layer, LayeredModel, node_wise_part
from lmc_verify.models.stacks import check_settings, linear, with_jumps
from lmc_verify.seeds import torch_generator

__all__ = ["GIN", "GINConv"]


class GINConv(Conv):
    """``nn((1 + eps) h_i + sum_{j -> i} h_j)``; edge weights are not read, as in PyTorch Geometric.

    Source: Xu et al., How Powerful are Graph Neural Networks?, ICLR 2019. State dict keys ``nn.*`` and ``eps`` are
    those of `torch_geometric.nn.GINConv`. It is aggregate-linear if the network is a single
    linear map.

    Args:
        network: the node-wise network ``nn``, a sequence that starts with a linear map.
        eps: initial epsilon.
        train_eps: whether epsilon is trained.
    """

    operator = "mean"

    def __init__(self, network: nn.Sequential, *, eps: float = 0.0, train_eps: bool = False) -> None:
        super().__init__()
        first = cast(nn.Linear, network[0])
        self.nn = network
        self.in_channels, self.out_channels = first.in_features, first.out_features
        value = torch.full((1,), eps, dtype=first.weight.dtype, device=first.weight.device)
        if train_eps:
            self.eps: Tensor = nn.Parameter(value)
        else:
            self.register_buffer("eps", value)
        self.aggregate_linear = len(network) == 1

    def forward(self, source: Tensor, target: Tensor, block: Block) -> Tensor:
        """Return the rows [rows, out]."""
        first = cast(nn.Linear, self.nn[0])
        narrowing = self.in_channels > self.out_channels  # aggregate on the narrower side
        if narrowing:
            read = nn.functional.linear(source, first.weight)
            target = read if target is source else nn.functional.linear(target, first.weight)
            source = read
        # The in-degree times the mean: the sum of the messages, whatever the graph's edge weights are.
        total = block.in_degree.to(source.dtype)[:, None] * spmm(block, source)
        rows: Tensor = total + (1 + self.eps) * target
        rows = rows + first.bias if narrowing else first(rows)
        rest: Tensor = self.nn[1:](rows)
        return rest


class GIN(LayeredModel):
    """Graph isomorphism network [Xu et al., ICLR 2019], aggregate-linear with the pre-activation cut.

    Every layer has a network of two linear maps behind its sum. With ``activation_cut="pre"``, ``H^l`` is the result
    of the first one: what follows it (activation, second map, norm, activation) is applied by whoever reads ``H^l``,
    the next layer or the head. With ``"post"``, ``H^l`` is the result of the whole network, activated.

    Args:
        in_channels: width of the features.
        hidden_channels: width of the hidden layers.
        out_channels: classes or tasks.
        num_layers: message-passing layers, L >= 1.
        activation_cut: ``"pre"`` (LMC can be exact) or ``"post"``.
        activation: ``"relu"``, ``"tanh"`` or ``"softplus"``.
        encoder: add a linear encoder with the activation, features -> hidden.
        head: add a linear head, hidden -> outputs.
        norm: None or ``"layer"`` (node-wise LayerNorm behind each network but the last).
        residual: add each layer's input to its output where the widths agree.
        jump: None, or jumping knowledge: a linear head reads every layer's embedding, ``"concat"`` or ``"max"``.
        dropout: probability, active in training mode only; verification refuses it, `lmc_verify.Trainer` keys it.
        eps: initial epsilon.
        train_eps: whether epsilon is trained.
        seed: seed of the initial parameters; no global random state is used.
        dtype: dtype of the parameters, by default float32.

    Raises:
        InvalidInputError: a width or the number of layers below 1, or dropout outside [0, 1).
        UnknownNameError: an unknown cut, activation or norm.
    """

    options: ClassVar[Mapping[str, Any]] = {"eps": 0.0, "train_eps": False}

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        out_channels: int,
        num_layers: int = 3,
        *,
        activation_cut: str = "pre",
        activation: str = "relu",
        encoder: bool = False,
        head: bool = False,
        norm: str | None = None,
        residual: bool = False,
        jump: str | None = None,
        dropout: float = 0.0,
        eps: float = 0.0,
        train_eps: bool = False,
        seed: int = 0,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_settings(
            {
                "in_channels": in_channels,
                "hidden_channels": hidden_channels,
                "out_channels": out_channels,
                "num_layers": num_layers,
            },
            dropout=dropout,
            activation_cut=activation_cut,
            activation=activation,
        )
        act, pre = ACTIVATIONS[activation], activation_cut == "pre"
        first = hidden_channels if encoder else in_channels
        last = hidden_channels if head or jump else out_channels
        widths = [first, *[hidden_channels] * (num_layers - 1), last]
        inner = [linear(below, hidden_channels, dtype) for below in widths[:-1]]
        outer = [linear(hidden_channels, above, dtype) for above in widths[1:]]
        between = [
            node_wise_part(width, norm=norm, activation=activation, dropout=dropout, device=None, dtype=dtype)
            for width in widths[1:]
        ]
        layers: list[Layer] = []
        for index in range(num_layers):
            if pre:
                parts: list[nn.Module] = [inner[index]]
                before = nn.Sequential(act(), outer[index - 1], between[index - 1]) if index else None
                after = None
                kept = (widths[0] if index == 0 else hidden_channels, hidden_channels)
            else:
                parts = [inner[index], act(), outer[index]]
                before = None
                after = between[index] if index < num_layers - 1 else None
                kept = (widths[index], widths[index + 1])
            conv = GINConv(nn.Sequential(*parts), eps=eps, train_eps=train_eps)
            layers.append(ConvLayer(conv, before=before, after=after, residual=residual and kept[0] == kept[1]))
        tail: list[nn.Module] = [act(), outer[-1]] if pre else []
        if jump is not None:
            kept_widths = [widths[0], *[hidden_channels] * num_layers]
            last_read = nn.Sequential(*tail, between[-1])
            layers, ends = with_jumps(layers, kept_widths, last_read, out_channels, jump=jump, dtype=dtype)
            tail = list(ends)
        elif head:
            tail += [act(), linear(hidden_channels, out_channels, dtype)]
        super().__init__(
            layers,
            encoder=nn.Sequential(linear(in_channels, hidden_channels, dtype), act()) if encoder else None,
            head=nn.Sequential(*tail) if tail else None,
        )
        self.in_channels, self.out_channels = in_channels, out_channels
        initialise(self, torch_generator(seed, "parameters"))
