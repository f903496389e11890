"""A batch beside the graph that it is from: which of its edges are the graph's, and its rows as the graph has them.

What a loader or a transform has made of them (edges that are added or reversed, weights, features or labels that are
changed) is put right, and nothing else: edges that a batch lacks stay away.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import Data

from lmc_verify.audits.batches.attributes import edge_attributes, node_attributes

__all__ = ["GraphEdges", "with_graph_edges", "with_graph_features", "with_graph_labels"]

CAST = 1e-6
"""Relative error within which values are the same: single precision rounds by less."""

LABELS = ("y", "train_mask")


class GraphEdges:
    """The edges of a graph, among which those of batches are found.

    Args:
        edge_index: int64 [2, m], of the graph.
        num_nodes: of the graph.
    """

    def __init__(self, edge_index: Tensor, num_nodes: int) -> None:
        self._count = num_nodes
        keys = self._keys(edge_index.cpu())
        self._order = keys.argsort(stable=True)
        self._sorted = keys[self._order]

    def places(self, edges: Tensor) -> Tensor:
        """Return the number of the graph's edge for each of some edges, int64 [k]; -1 where the graph has none.

        The second of two equal edges is the graph's second one.

        Args:
            edges: int64 [2, k], by the graph's node ids.
        """
        keys = self._keys(edges)
        if not self._sorted.numel():
            return torch.full_like(keys, -1)
        order = keys.argsort(stable=True)
        ordered = keys[order]
        rank = torch.empty_like(order)
        rank[order] = torch.arange(len(keys)) - torch.searchsorted(ordered, ordered)
        place = torch.searchsorted(self._sorted, keys) + rank
        inside = place.clamp_max(len(self._sorted) - 1)
        return torch.where((place == inside) & (self._sorted[inside] == keys), self._order[inside], -1)

    def _keys(self, edges: Tensor) -> Tensor:
        return edges[0] * self._count + edges[1]


def with_graph_edges(batch: Any, data: Data, ids: Tensor, edges: GraphEdges) -> Any:
    """Return a batch without the edges that the graph does not have, and with the graph's attributes of the others.

    Edges that are all reversed are turned round. A batch of the graph's edges, with their attributes, is returned as
    it is.

    Args:
        batch: a subgraph, each node in one row.
        data: the graph.
        ids: int64 [rows], nodes of the rows.
        edges: of the graph.
    """
    index = batch.edge_index
    places = edges.places(ids[index.cpu()])
    if bool((places < 0).any()) and bool(((turned := edges.places(ids[index.flip(0).cpu()])) >= 0).all()):
        index, places = index.flip(0), turned
    there = places >= 0
    out: Any = batch.clone()
    out.edge_index = index[:, there.to(index.device)]
    changed = not torch.equal(out.edge_index, batch.edge_index)
    for key in edge_attributes(data):
        value = data[key]
        wanted, own = value[places[there].to(value.device)].to(index.device), batch.get(key, None)
        if isinstance(own, Tensor) and own.shape[:1] == there.shape:
            changed |= not _alike(own[there.to(own.device)], wanted)
        else:
            changed = True
        out[key] = wanted
    for key in edge_attributes(batch):
        if key not in data:
            out[key] = batch[key][there.to(batch[key].device)]
    return out if changed else batch


def with_graph_features(batch: Any, data: Data, ids: Tensor) -> Any:
    """Return a batch whose rows have the graph's features; as it is where they have them already."""
    keys = [key for key in node_attributes(batch) if key not in LABELS and batch[key].dtype is not torch.bool]
    return _replaced(batch, data, ids, keys)


def with_graph_labels(batch: Any, data: Data, ids: Tensor) -> Any:
    """Return a batch whose rows have the graph's targets, and no row in the mask that is not in the graph's."""
    out = _replaced(batch, data, ids, ["y"] if "y" in batch else [])
    own, whole = batch.get("train_mask", None), data.get("train_mask", None)
    if not all(isinstance(mask, Tensor) and mask.dtype is torch.bool and mask.dim() == 1 for mask in (own, whole)):
        return out
    wanted = own & whole[ids.to(whole.device)].to(own.device) if own.shape == ids.shape else own
    if torch.equal(wanted, own):
        return out
    out = batch.clone() if out is batch else out
    out.train_mask = wanted
    return out


def _replaced(batch: Any, data: Data, ids: Tensor, keys: list[str]) -> Any:
    out = batch
    for key in keys:
        whole, own = data.get(key, None), batch[key]
        if not isinstance(whole, Tensor) or whole.shape[:1] != (data.num_nodes,):
            continue
        if any(value.layout is not torch.strided for value in (whole, own)):
            continue
        wanted = whole[ids.to(whole.device)]
        if own.shape == wanted.shape and not _alike(own, wanted):
            out = batch.clone() if out is batch else out
            out[key] = wanted.to(own.device)
    return out


def _alike(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are the same up to single precision."""
    one, other = one.detach().cpu(), other.detach().cpu()
    if one.shape != other.shape:
        return False
    return torch.allclose(one.double(), other.double(), rtol=CAST, atol=0.0, equal_nan=True)
