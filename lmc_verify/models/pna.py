"""PNA's convolution with a bipartite input, so that it can be evaluated on rectangular pieces of a graph."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torch_geometric import nn as pyg_nn

__all__ = ["PNAConv"]


class PNAConv(pyg_nn.PNAConv):
    """`torch_geometric.nn.PNAConv` whose ``forward`` takes ``(x_source, x_target)``; parameters and numbers are equal.

    Source: Corso et al., Principal Neighbourhood Aggregation for Graph Nets, NeurIPS 2020. Arguments are those of
    PyTorch Geometric; edge features are not supported. Wrapped in `lmc_verify.PyGConv`, its means, moments and degree
    scalers read the whole graph's in-degrees.
    """

    AGGREGATORS: ClassVar[tuple[str, ...]] = ("mean", "min", "max", "std")
    SCALERS: ClassVar[tuple[str, ...]] = ("identity", "amplification", "attenuation")
    UNIT_DEGREES: ClassVar[tuple[int, ...]] = (0, 1)
    """A degree histogram that leaves the scalers almost as they are: every node has one in-edge."""

    def forward(self, x: tuple[Tensor, Tensor], edge_index: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Return the rows [rows, out] from sources [columns, in] and targets [rows, in]."""
        source, target = (self._towers(value) for value in x)
        # propagate_type: (x: OptPairTensor, edge_attr: OptTensor)
        rows = self.propagate(edge_index, x=(source, target), edge_attr=None, size=size)
        rows = torch.cat([target, rows], dim=-1)
        towers = [post(rows[:, index]) for index, post in enumerate(self.post_nns)]
        out: Tensor = self.lin(torch.cat(towers, dim=1))
        return out

    def refill_buffers(self) -> None:
        """Fill the buffers, which `lmc_verify.models.adapter.materialise` leaves uninitialised."""
        self.aggr_module.reset_parameters()

    def _towers(self, value: Tensor) -> Tensor:
        """Return rows by tower [rows, towers, in of a tower]."""
        if self.divide_input:
            return value.view(-1, self.towers, self.F_in)
        return value.view(-1, 1, self.F_in).repeat(1, self.towers, 1)
