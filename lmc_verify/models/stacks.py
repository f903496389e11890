"""GCN, SAGE, GAT and PNA as layered models: convolutions with a node-wise part between them."""

from __future__ import annotations

import reprlib
from abc import abstractmethod
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch

from lmc_verify.errors import InvalidInputError, require_whole
from lmc_verify.graphs import Graph
from lmc_verify.models.architecture import Architecture, ArchitectureModel, Parts
from lmc_verify.models.convs import PNA_AGGREGATORS, PNA_DEGREES, PNA_SCALERS, GCNConv, SAGEConv
from lmc_verify.models.jumping import with_jumps
from lmc_verify.models.layered import Conv, ConvLayer, Layer

__all__ = ["GAT", "GCN", "PNA", "SAGE"]


class _Stack(ArchitectureModel):
    """L convolutions with norm, activation and dropout between them; options are those of the convolution."""

    @abstractmethod
    def _conv(self, in_channels: int, out_channels: int, dtype: torch.dtype | None, **settings: Any) -> Conv:
        """Build one convolution."""

    @classmethod
    def _reads_options(cls) -> Callable[..., Any]:
        return cls._conv

    def _parts(self, architecture: Architecture, dtype: torch.dtype | None, **settings: Any) -> Parts:
        widths, last = architecture.widths, architecture.num_layers - 1
        layers: list[Layer] = []
        for index, (below, above) in enumerate(pairwise(widths)):
            before = architecture.node_wise_part(below, dtype) if architecture.pre and index > 0 else None
            after = architecture.node_wise_part(above, dtype) if not architecture.pre and index < last else None
            conv = self._conv(below, above, dtype, **settings)
            residual = architecture.residual and below == above
            layers.append(ConvLayer(conv, before=before, after=after, residual=residual))
        head = architecture.linear_head(dtype) if architecture.head else None
        if architecture.jump is not None:
            last_read = architecture.node_wise_part(widths[-1], dtype)
            layers, head = with_jumps(
                layers, widths, last_read, architecture.out_channels, jump=architecture.jump, dtype=dtype
            )
        return layers, architecture.linear_encoder(dtype) if architecture.encoder else None, head


class GCN(_Stack):
    """Graph convolutional network [Kipf and Welling, ICLR 2017], aggregate-linear with the pre-activation cut."""

    def _conv(self, in_channels: int, out_channels: int, dtype: torch.dtype | None, **settings: Any) -> Conv:
        return GCNConv(in_channels, out_channels, dtype=dtype, **settings)


class SAGE(_Stack):
    """GraphSAGE with mean aggregation [Hamilton et al., NeurIPS 2017], aggregate-linear with the pre-activation cut."""

    def _conv(self, in_channels: int, out_channels: int, dtype: torch.dtype | None, **settings: Any) -> Conv:
        return SAGEConv(in_channels, out_channels, dtype=dtype, **settings)


class GAT(_Stack):
    """Graph attention network [Velickovic et al., ICLR 2018] through the PyG adapter; not aggregate-linear.

    The softmax of a halo row sees only part of its neighbours, so compensation cannot be exact.

    Args:
        heads: attention heads, at least 1, which are averaged.
    """

    def _conv(
        self, in_channels: int, out_channels: int, dtype: torch.dtype | None, *, heads: int = 1, **settings: Any
    ) -> Conv:
        from torch_geometric.nn import GATConv

        from lmc_verify.models.adapter import PyGConv, materialise

        if heads < 1:
            raise InvalidInputError(f"heads is {heads}, it must be at least 1")
        conv = materialise(GATConv, in_channels, out_channels, heads=heads, concat=False, dtype=dtype, **settings)
        return PyGConv(conv)


class PNA(_Stack):
    """Principal neighbourhood aggregation [Corso et al., NeurIPS 2020] through the PyG adapter; not aggregate-linear.

    Extrema and moments at a halo row see only part of its neighbours, so compensation cannot be exact.

    Args:
        degrees: histogram of the graph's in-degrees that normalises the degree scalers, see `PNA.graph_settings`.
        aggregators: as in `torch_geometric.nn.PNAConv`.
        scalers: as in `torch_geometric.nn.PNAConv`.
        towers: as in `torch_geometric.nn.PNAConv`; they divide every layer's width.
    """

    @staticmethod
    def graph_settings(graph: Graph) -> dict[str, Any]:
        """Return the settings that a graph determines: its in-degree histogram."""
        return {"degrees": tuple(torch.bincount(graph.operator("sum").in_degree).tolist())}

    def _conv(
        self,
        in_channels: int,
        out_channels: int,
        dtype: torch.dtype | None,
        *,
        degrees: Sequence[int] = PNA_DEGREES,
        aggregators: Sequence[str] = PNA_AGGREGATORS,
        scalers: Sequence[str] = PNA_SCALERS,
        towers: int = 1,
        **settings: Any,
    ) -> Conv:
        if towers < 1 or out_channels % towers:
            raise InvalidInputError(
                f"towers is {towers}, it must divide every layer's width, {out_channels} here; with outputs that it "
                "does not divide, add a head"
            )
        from lmc_verify.models.adapter import PNAConv, PyGConv, materialise

        for name, texts in (("aggregators", aggregators), ("scalers", scalers)):
            if not len(texts) or not all(isinstance(item, str) for item in texts):
                raise InvalidInputError(f"{name} is {reprlib.repr(texts)}, it must be a list of names, at least one")
        if not len(degrees):
            raise InvalidInputError("degrees is empty, it must be a histogram of in-degrees; see PNA.graph_settings")
        for count in degrees:
            require_whole("a count of degrees", count)
        histogram = torch.tensor([int(count) for count in degrees], dtype=torch.float64)
        conv = materialise(
            PNAConv,
            in_channels,
            out_channels,
            aggregators=list(aggregators),
            scalers=list(scalers),
            deg=histogram,
            towers=towers,
            dtype=dtype,
            **settings,
        )
        return PyGConv(conv)
