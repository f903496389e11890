"""A ring in which every node has a twin two steps on, so that TOP finds a halo in the span of its batch."""

from __future__ import annotations

import torch

from lmc_verify import (
    GCN,
    Clusters,
    Graph,
    Partition,
    Problem,
    load_graph,
)


def ring(layers: int = 2, **changes: object) -> Problem:
    """Return a ring in which every node has a twin two steps on."""
    graph: Graph = load_graph("ring", num_nodes=8, noise=0.0, flips=0.0).double()
    x = torch.tensor([[1.0, 0.5], [-0.5, 2.0]], dtype=torch.float64).repeat(4, 1)
    graph = graph.replaced(x=x, **changes)
    return Problem(graph, GCN(2, 3, graph.num_outputs, layers, seed=1, dtype=torch.float64).eval(), "bce")


HALVES = Clusters(Partition(torch.arange(8) // 2), 1)
