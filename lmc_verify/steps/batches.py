"""What a user's step is handed for a set of nodes: the subgraph that they induce."""

from __future__ import annotations

import torch
from torch import Tensor
from torch_geometric.data import Data

from lmc_verify.errors import InvalidInputError

__all__ = ["induced_data"]


def induced_data(data: Data, nodes: Tensor, inclusion: Tensor | None = None) -> Data:
    """Return the subgraph that nodes induce, as PyTorch Geometric's loaders hand it to a step.

    Args:
        data: the whole graph, with ``edge_index``. Other attributes with one row for each node or edge are cut, too.
        nodes: int64 [size], distinct; row i of the result is ``nodes[i]``.
        inclusion: float [size], the probability that each node is in a batch.

    Returns:
        The subgraph, with ``n_id`` (the nodes' ids in the whole graph) and, if it is given, ``inclusion``. Edges keep
        their order.

    Raises:
        InvalidInputError: no edges, or nodes that the graph does not have or that are named twice.
    """
    if not hasattr(data, "edge_index"):
        raise InvalidInputError(
            f"data is a {type(data).__name__}, the subgraph of a batch is taken of a torch_geometric Data; give that, "
            "or batches of your own, such as a loader"
        )
    if data.edge_index is None:
        raise InvalidInputError("the data have no edge_index, so no subgraph can be taken; convert adj_t to edge_index")
    if nodes.dtype != torch.int64 or nodes.dim() != 1 or not nodes.numel():
        raise InvalidInputError(
            f"nodes are {nodes.dtype} {list(nodes.shape)}; a subgraph needs int64 node ids [size], at least one"
        )
    lowest, highest = int(nodes.min()), int(nodes.max())
    if lowest < 0 or highest >= int(data.num_nodes or 0):
        raise InvalidInputError(
            f"node {highest if lowest >= 0 else lowest} is none of the graph's, which are 0 ... "
            f"{int(data.num_nodes or 0) - 1}; draw batches of this graph"
        )
    if nodes.unique().numel() != nodes.numel():
        raise InvalidInputError("a node is named twice among the nodes of a subgraph; name each once")
    nodes = nodes.to(data.edge_index.device)
    batch: Data = data.subgraph(nodes)
    batch.n_id = nodes
    if inclusion is not None:
        batch.inclusion = inclusion.to(nodes.device)
    return batch
