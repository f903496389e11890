"""GIN as a layered model, cut so that it is aggregate-linear."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from lmc_verify.graphs import Block, spmm
from lmc_verify.models.architecture import Architecture, ArchitectureModel, Parts
from lmc_verify.models.convs import linear
from lmc_verify.models.jumping import with_jumps
from lmc_verify.models.layered import Conv, ConvLayer, Layer

__all__ = ["GIN", "GINConv"]


class GINConv(Conv):
    """``nn((1 + eps) h_i + sum_{j -> i} h_j)``; edge weights are not read, as in PyTorch Geometric.

    Source: Xu et al., How Powerful are Graph Neural Networks?, ICLR 2019. State dict keys ``nn.*`` and ``eps`` are
    those of `torch_geometric.nn.GINConv`. It is aggregate-linear if the network is a single linear map.

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


class GIN(ArchitectureModel):
    """Graph isomorphism network [Xu et al., ICLR 2019], aggregate-linear with the pre-activation cut.

    Every layer has a network of two linear maps behind its sum. With ``activation_cut="pre"``, ``H^l`` is the result
    of the first one: what follows it (activation, second map, norm, activation) is applied by whoever reads ``H^l``,
    the next layer or the head. With ``"post"``, ``H^l`` is the result of the whole network, activated.

    Args:
        norm: None or ``"layer"`` (node-wise LayerNorm behind each network but the last).
        residual: add each layer's input to its output where the widths agree.
        eps: initial epsilon.
        train_eps: whether epsilon is trained.
    """

    def _parts(
        self, architecture: Architecture, dtype: torch.dtype | None, *, eps: float = 0.0, train_eps: bool = False
    ) -> Parts:
        widths, hidden, pre = architecture.widths, architecture.hidden_channels, architecture.pre
        inner = [linear(below, hidden, dtype) for below in widths[:-1]]
        outer = [linear(hidden, above, dtype) for above in widths[1:]]
        between = [architecture.node_wise_part(width, dtype) for width in widths[1:]]
        kept = [widths[0], *[hidden] * architecture.num_layers] if pre else widths
        layers: list[Layer] = []
        for index in range(architecture.num_layers):
            before = after = None
            if pre:
                parts: list[nn.Module] = [inner[index]]
                if index > 0:
                    before = nn.Sequential(architecture.act(), outer[index - 1], between[index - 1])
            else:
                parts = [inner[index], architecture.act(), outer[index]]
                if index < architecture.num_layers - 1:
                    after = between[index]
            conv = GINConv(nn.Sequential(*parts), eps=eps, train_eps=train_eps)
            residual = architecture.residual and kept[index] == kept[index + 1]
            layers.append(ConvLayer(conv, before=before, after=after, residual=residual))
        tail: list[nn.Module] = [architecture.act(), outer[-1]] if pre else []
        if architecture.jump is not None:
            last_read = nn.Sequential(*tail, between[-1])
            layers, ends = with_jumps(
                layers, kept, last_read, architecture.out_channels, jump=architecture.jump, dtype=dtype
            )
            tail = list(ends)
        elif architecture.head:
            tail += architecture.linear_head(dtype)
        encoder = architecture.linear_encoder(dtype) if architecture.encoder else None
        return layers, encoder, nn.Sequential(*tail) if tail else None
