"""Native convolutions, each aggregation one sparse product, and how parameters are drawn."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from lmc_verify.graphs import Block, spmm
from lmc_verify.models.layered import Conv

__all__ = ["PNA_AGGREGATORS", "PNA_DEGREES", "PNA_SCALERS", "GCNConv", "SAGEConv", "initialise", "linear"]

PNA_AGGREGATORS = ("mean", "min", "max", "std")
PNA_SCALERS = ("identity", "amplification", "attenuation")
PNA_DEGREES = (0, 1)
"""What PNA has where it is not told otherwise: the degree histogram leaves the scalers almost as they are, since every
node has one in-edge."""


class GCNConv(Conv):
    """``A H W + b`` with the symmetric normalisation of the whole graph.

    Source: Kipf and Welling, ICLR 2017. State dict keys ``lin.weight`` [out, in] and ``bias`` [out] are those of
    `torch_geometric.nn.GCNConv`.
    """

    operator = "gcn"
    aggregate_linear = True
    reads_target = False

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        bias: bool = True,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        self.lin = nn.utils.skip_init(
            nn.Linear,
            in_channels,
            out_channels,
            bias=False,
            device=device or torch.device("cpu"),
            dtype=dtype,
        )
        self.bias = nn.Parameter(torch.zeros(out_channels, device=device, dtype=dtype)) if bias else None

    def forward(self, source: Tensor, target: Tensor, block: Block) -> Tensor:
        """Return the rows [rows, out]."""
        if self.in_channels <= self.out_channels:  # aggregate on the narrower side
            rows = self.lin(spmm(block, source))
        else:
            rows = spmm(block, self.lin(source))
        result: Tensor = rows if self.bias is None else rows + self.bias
        return result


class SAGEConv(Conv):
    """``mean_{j -> i} h_j W_l + b + h_i W_r``, the mean as a sum weighted by the whole graph's in-degrees.

    Source: Hamilton, Ying and Leskovec, NeurIPS 2017. State dict keys ``lin_l.weight``, ``lin_l.bias`` and
    ``lin_r.weight`` are those of `torch_geometric.nn.SAGEConv`.
    """

    operator = "mean"
    aggregate_linear = True

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        place = device or torch.device("cpu")
        self.lin_l = nn.utils.skip_init(nn.Linear, in_channels, out_channels, device=place, dtype=dtype)
        self.lin_r = nn.utils.skip_init(nn.Linear, in_channels, out_channels, bias=False, device=place, dtype=dtype)

    def forward(self, source: Tensor, target: Tensor, block: Block) -> Tensor:
        """Return the rows [rows, out]."""
        if self.in_channels <= self.out_channels:
            rows = self.lin_l(spmm(block, source))
        else:
            rows = spmm(block, nn.functional.linear(source, self.lin_l.weight)) + self.lin_l.bias
        result: Tensor = rows + self.lin_r(target)
        return result


def linear(in_channels: int, out_channels: int, dtype: torch.dtype | None) -> nn.Linear:
    """Return an uninitialised linear map; `initialise` fills it."""
    return cast(nn.Linear, nn.utils.skip_init(nn.Linear, in_channels, out_channels, dtype=dtype))


def initialise(module: nn.Module, generator: torch.Generator) -> None:
    """Fill every parameter from a generator: Glorot uniform for matrices, ones for norm weights, small biases.

    Biases are drawn from U(-0.1, 0.1) rather than zero, so that a verification sees every bias gradient at a generic
    point. No global random state is used.
    """
    norms = (nn.LayerNorm,)
    for part in module.modules():
        for name, parameter in part.named_parameters(recurse=False):
            with torch.no_grad():
                fresh = torch.empty(parameter.shape, dtype=torch.float64)
                if isinstance(part, norms) and name == "weight":
                    fresh.fill_(1.0)
                elif fresh.dim() >= 2 and "bias" not in name:
                    nn.init.xavier_uniform_(fresh, generator=generator)
                else:
                    fresh.uniform_(-0.1, 0.1, generator=generator)
                parameter.copy_(fresh)
