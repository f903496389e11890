"""GraphSAINT's atoms as PyTorch Geometric's loaders draw them (torch_geometric.loader.GraphSAINTSampler, version 2.8).

Edges are those of the graph as it is given: self-loops and parallel edges count, weights do not. All atoms of a
subgraph are independent, edges too: the loader draws one edge from each of `batch_size` rows of random keys.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from lmc_verify.errors import InvalidInputError
from lmc_verify.estimators.samplers.saint_atoms import EdgeAtoms, NodeAtoms, WalkAtoms
from lmc_verify.graphs import CSR, Graph

__all__ = ["PygEdgeAtoms", "PygNodeAtoms", "PygWalkAtoms"]

LEAST = 1e-10
"""What the loader adds to every edge's weight; without it an edge that nothing enters and nothing leaves had none."""


def _degrees(graph: Graph) -> tuple[Tensor, Tensor]:
    """Return the numbers of edges out of every node and into it, float64 [n] each.

    Raises:
        InvalidInputError: the graph has no edge.
    """
    if not graph.num_edges:
        raise InvalidInputError(
            f"graph {graph.name!r} has no edge, and convention 'pyg' draws nodes and edges by their degrees; use "
            "convention 'paper' of 'graphsaint-node', or 'graphsaint-walk'"
        )
    out_of, into = (torch.bincount(end, minlength=graph.num_nodes).double() for end in graph.edge_index)
    return out_of, into


@dataclass(frozen=True, eq=False)
class PygNodeAtoms(NodeAtoms):
    """Single nodes: the source of a uniform edge, so in proportion to the number of out-edges.

    Raises:
        InvalidInputError: the graph has no edge.
    """

    @cached_property
    def _q(self) -> Tensor:
        out_of, _ = _degrees(self.graph)
        return out_of / self.graph.num_edges


@dataclass(frozen=True, eq=False)
class PygEdgeAtoms(EdgeAtoms):
    """Both ends of an edge u -> v, in proportion to in-degree of u plus out-degree of v; self-loops are edges.

    Raises:
        InvalidInputError: the graph has no edge.
    """

    @cached_property
    def _edges(self) -> tuple[Tensor, Tensor, Tensor]:
        out_of, into = _degrees(self.graph)
        source, destination = self.graph.edge_index
        weight = into[source] + out_of[destination] + LEAST
        return destination, source, weight / weight.sum()


@dataclass(frozen=True, eq=False)
class PygWalkAtoms(WalkAtoms):
    """Random walks along edges, from sources to destinations; a node without an out-edge stays."""

    @property
    def walked(self) -> CSR:
        """The matrix with an entry for each edge, sources as rows."""
        return self._pattern.csr_t
