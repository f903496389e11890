"""Batches of nodes as PyTorch Geometric's data: the induced subgraph, with ids and inclusion probabilities."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch_geometric.data import Data

from lmc_verify.errors import InvalidInputError

__all__ = ["induced_data"]


def induced_data(data: Data, nodes: Tensor, inclusion: Tensor | None = None) -> Data:
    """Return the subgraph that some nodes induce, as a training step takes it.

    Args:
        data: the whole graph.
        nodes: int64 [size], distinct.
        inclusion: float64 [size], probability of each to be in a batch, or None.

    Returns:
        ``data.subgraph(nodes)`` with ``n_id`` [size], the nodes' ids in the whole graph, and ``inclusion``.

    Raises:
        InvalidInputError: the data are no homogeneous graph, or a node is not among theirs.
    """
    if not isinstance(data, Data):
        raise InvalidInputError(
            f"a batch design makes batches of torch_geometric.data.Data, the data are {type(data).__name__}; give a "
            "loader of your own"
        )
    if nodes.numel() and not 0 <= int(nodes.min()) <= int(nodes.max()) < int(data.num_nodes or 0):
        raise InvalidInputError(
            f"a batch has the nodes {int(nodes.min())} ... {int(nodes.max())}, the graph has {data.num_nodes}; the "
            "design is for another graph"
        )
    nodes = nodes.to(data.edge_index.device)
    batch: Any = data.subgraph(nodes)
    batch.n_id = nodes
    if inclusion is not None:
        batch.inclusion = inclusion.to(nodes.device)
    return batch
