"""Which tensors of a graph or a batch have a row for each of its nodes, and which one for each of its edges.

PyTorch Geometric tells them by their number of rows, or of columns where "index" is in the name. Links that are to be
predicted, with their ends and their labels, are no attributes of the edges that messages take, however many there are.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import Data

from lmc_verify import steps

__all__ = ["edge_attributes", "names_links", "node_attributes"]

_LINKS = "edge_label"
"""Part of the names of links and their labels: ``edge_label``, ``edge_label_index``, ``pos_edge_label``, ..."""

_ENDS = ("src_index", "dst_index", "dst_pos_index", "dst_neg_index")
"""Names under which loaders keep the ends of links: numbers of rows."""


def node_attributes(data: Data) -> list[str]:
    """Return the names of the tensors with one row for each node, without links and their labels."""
    return [key for key in steps.node_attributes(data) if not _is_of_links(key, data)]


def edge_attributes(data: Data) -> list[str]:
    """Return the names of the tensors with one row for each edge, without links and their labels."""
    found = [key for key, item in data.to_dict().items() if isinstance(item, Tensor) and data.is_edge_attr(key)]
    return [key for key in found if key != "edge_index" and not _is_of_links(key, data)]


def names_links(name: str) -> bool:
    """Whether a name is usual for links that are to be predicted, for their ends or their labels."""
    return _LINKS in name or name in _ENDS


def _is_of_links(key: str, data: Data) -> bool:
    if names_links(key):
        return True
    if "index" in key:  # rows are of another kind, such as the two ends of pairs
        return bool(data[key].dim() > 1)
    links: Any = data.get(f"{key}_index", None) if key != "edge" else None
    return isinstance(links, Tensor) and links.dtype is torch.long and links.dim() == 2 and links.shape[0] == 2
