"""Aggregation for all runs at once: whole operators, or those of the subgraphs that each run's batch induces.

An induced operator is the whole one's entries before they are normalised, between rows that are scaled by degrees of
their own: ``D^(-1/2) W D^(-1/2)`` for GCN with ``W`` the weights with self-loops, ``D^(-1) W`` for the mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lmc_verify.graphs import CSR, Graph, block_from_edges
from lmc_verify.graphs.operators import Block, with_self_loops

__all__ = ["INDUCED", "Aggregation", "Scales"]

INDUCED = ("gcn", "mean")
"""Operators whose induced form is known here."""


@dataclass(frozen=True, eq=False)
class Scales:
    """Factors of the rows of one induced operator [n, runs, 1]: of destinations, and of sources if there are any."""

    target: Tensor
    source: Tensor | None


class Aggregation:
    """The operators of one graph.

    Args:
        graph: the graph.
    """

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._induced: dict[str, Block] = {}

    def down(self, kind: str, rows: Tensor, scales: Mapping[str, Scales] | None) -> Tensor:
        """Return ``A rows`` of every run [n, runs, width]."""
        if scales is None:
            return _product(self._graph.operator(kind).csr, rows)
        found = scales[kind]
        given = rows if found.source is None else found.source * rows
        return found.target * _product(self._unnormalised(kind).csr, given)

    def up(self, kind: str, rows: Tensor, scales: Mapping[str, Scales] | None) -> Tensor:
        """Return ``A^T rows`` of every run [n, runs, width]."""
        if scales is None:
            return _product(self._graph.operator(kind).csr_t, rows)
        found = scales[kind]
        sent = _product(self._unnormalised(kind).csr_t, found.target * rows)
        return sent if found.source is None else found.source * sent

    def scales(self, kind: str, batch: Tensor) -> Scales:
        """Return the factors of an operator on the subgraphs that batches induce.

        Args:
            kind: one of `INDUCED`.
            batch: membership [n, runs].
        """
        degree = self._unnormalised(kind).csr.matmul(batch.to(self._graph.dtype))[..., None]
        if kind == "mean":
            return Scales(degree.clamp(min=1).reciprocal(), None)
        root = degree.pow(-0.5)
        root = torch.where(torch.isinf(root), torch.zeros_like(root), root)  # as PyTorch Geometric has it
        return Scales(root, root)

    def _unnormalised(self, kind: str) -> Block:
        if kind not in self._induced:
            graph, edges = self._graph, self._graph.edge_index
            weight = torch.ones(edges.shape[1], dtype=graph.dtype, device=graph.device)
            if kind == "gcn":
                given = weight if graph.edge_weight is None else graph.edge_weight.to(graph.dtype)
                edges, weight = with_self_loops(edges, given, graph.num_nodes)
            self._induced[kind] = block_from_edges(edges, weight, graph.num_nodes)
        return self._induced[kind]


def _product(matrix: CSR, rows: Tensor) -> Tensor:
    nodes, runs, width = rows.shape
    return matrix.matmul(rows.reshape(nodes, runs * width)).view(nodes, runs, width)
