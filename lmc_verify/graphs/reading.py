"""Reading a graph from `torch_geometric.data.Data`: what is there is used, or refused by name; nothing is guessed."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, SupportsIndex

import torch
from torch import Tensor

from lmc_verify.errors import InvalidInputError
from lmc_verify.imports.geometric import classes

if TYPE_CHECKING:
    from torch_geometric.data import Data, Dataset

__all__ = ["one_graph", "read_tensors"]

_UNLABELLED = 255
"""What data sets with labels in bytes write at nodes without one."""

_Edges = tuple[Tensor, Tensor | None, Tensor | None]
"""Edges, their weights, their features."""

_TENSORS = ("x", "y", "edge_index", "edge_weight", "edge_attr", "train_mask", "val_mask", "test_mask")


def read_tensors(data: Any, split: int | None = None) -> dict[str, Any]:
    """Return the tensors of a homogeneous graph by the names of `lmc_verify.Graph`'s fields.

    Args:
        data: a `Data`, or what has the same attributes; needs ``x``, ``y``, ``num_nodes``, and ``edge_index``, or
            ``adj_t`` in place of it.
        split: which column to take where masks have shape [n, splits].

    Raises:
        InvalidInputError: something is missing or malformed; the message names value, limit and remedy.
    """
    for key in ("x", "y"):
        if getattr(data, key, None) is None:
            raise _missing(key)
    for key in _TENSORS:
        value = getattr(data, key, None)
        if value is not None and (not isinstance(value, Tensor) or value.layout is not torch.strided):
            kind = value.layout if isinstance(value, Tensor) else type(value).__name__
            raise InvalidInputError(f"data.{key} is {kind}, a Graph needs a dense torch.Tensor; convert it first")
    x = data.x if data.x.is_floating_point() or data.x.is_complex() else data.x.float()
    num_nodes = x.shape[0]
    if data.num_nodes != num_nodes:
        raise InvalidInputError(
            f"data.num_nodes is {data.num_nodes}, x has {num_nodes} rows; give every node a feature row"
        )
    edge_index, edge_weight, edge_attr = _edges(data, num_nodes)
    if edge_index.is_floating_point() or edge_index.dtype is torch.bool:
        raise InvalidInputError(f"edge_index must hold integers, got {edge_index.dtype}; use edge_index.long()")
    masks = {key: _mask(data, key, num_nodes, split) for key in ("train_mask", "val_mask", "test_mask")}
    if masks["train_mask"] is None:
        masks["train_mask"] = torch.ones(num_nodes, dtype=torch.bool, device=x.device)
    return {
        "edge_index": edge_index.long(),
        "x": x,
        "y": _targets(data.y, x.dtype, masks),
        "edge_weight": _weights(edge_weight, x.dtype),
        "edge_attr": _features(edge_attr, x.dtype),
        **masks,
    }


def _missing(key: str) -> InvalidInputError:
    return InvalidInputError(f"data.{key} is missing; a Graph needs x [n, features], y [n] and edge_index [2, m]")


def _weights(weight: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Return weights as they are, [m, 1] as [m], and whole numbers as numbers of the features' dtype."""
    if weight is None:
        return None
    weight = weight[:, 0] if weight.dim() == 2 and weight.shape[1] == 1 else weight
    return weight if weight.is_floating_point() or weight.is_complex() else weight.to(dtype)


def _features(attr: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Return features of edges in the dtype of those of the nodes, one number per edge as one column."""
    if attr is None or attr.is_complex():
        return attr
    return (attr[:, None] if attr.dim() == 1 else attr).to(dtype)


def one_graph(data: Data | Dataset) -> Data:
    """Return the one graph that is given, or that a data set holds.

    Raises:
        InvalidInputError: it is something else, or several.
    """
    found: Any = data
    if isinstance(found, classes("torch_geometric.data", "HeteroData")):
        raise InvalidInputError("HeteroData has several node types, Graph holds one; call data.to_homogeneous() first")
    if isinstance(found, classes("torch_geometric.data", "Data")):
        only: Data = found
        return only
    if isinstance(found, classes("torch_geometric.data", "Dataset")):
        if len(found) != 1:
            raise InvalidInputError(
                f"{type(found).__name__} is a data set of {len(found)} graphs, a Graph is made of one; choose it, for "
                "instance dataset[0]"
            )
        return one_graph(found[0])
    raise InvalidInputError(
        f"a graph is read from torch_geometric.data.Data, got {type(found).__name__}; build one with "
        "Data(x=..., y=..., edge_index=...)"
    )


def _edges(data: Any, num_nodes: int) -> _Edges:
    """Return edges, weights and features, from ``edge_index`` or from a transposed adjacency matrix."""
    adjacency = getattr(data, "adj_t", None)
    edge_index = getattr(data, "edge_index", None)
    weight, features = getattr(data, "edge_weight", None), getattr(data, "edge_attr", None)
    if edge_index is None:
        if adjacency is None:
            raise _missing("edge_index")
        for key, value in (("edge_weight", weight), ("edge_attr", features)):
            if value is not None:
                raise InvalidInputError(
                    f"data.{key} stands beside adj_t, and its order is not known; make it the values of adj_t, or give "
                    "data.edge_index in the same order"
                )
        return _from_adjacency(adjacency, num_nodes)
    if adjacency is not None:
        raise InvalidInputError(
            "data has both edge_index and adj_t, and they may differ; delete one of them (del data.adj_t)"
        )
    if features is not None and weight is None and features.dim() and features.numel() == edge_index.shape[-1]:
        warnings.warn(
            f"data.edge_attr {list(features.shape)} holds one number per edge: it is kept as a feature of the edges, "
            "and not read as a weight; if it is one, set data.edge_weight = data.edge_attr.view(-1)",
            UserWarning,
            stacklevel=5,  # behind the wrapper that checks the arguments
        )
    return edge_index, weight, features


def _from_adjacency(adjacency: Any, num_nodes: int) -> _Edges:
    """Return the edges of ``adj_t``: its rows are destinations, its columns sources.

    Its values are weights, or features where an entry has several; ones are no weights.
    """
    if hasattr(adjacency, "to_torch_sparse_coo_tensor"):  # torch_sparse.SparseTensor
        adjacency = adjacency.to_torch_sparse_coo_tensor()
    if not isinstance(adjacency, Tensor) or adjacency.layout is torch.strided:
        raise InvalidInputError(
            f"data.adj_t is a {type(adjacency).__name__}, it must be a sparse matrix [n, n]; or give "
            "data.edge_index [2, m]"
        )
    if adjacency.layout not in _SPARSE:
        raise InvalidInputError(
            f"data.adj_t has the layout {adjacency.layout}, whose blocks store entries that are no edges; convert it "
            "with adj_t.to_sparse_coo() and leave its zeros out"
        )
    if tuple(adjacency.shape[:2]) != (num_nodes, num_nodes):
        raise InvalidInputError(
            f"data.adj_t has shape {list(adjacency.shape)}, x has {num_nodes} rows; adj_t must be "
            f"[{num_nodes}, {num_nodes}], rows are destinations"
        )
    entries = adjacency.to_sparse_coo()
    # Entries are read as they are stored: coalescing would add the weights of multi-edges up.
    destination, source = entries._indices()
    value = entries._values()
    edge_index = torch.stack([source, destination])
    if value.dim() > 1 and value.shape[1:].numel() > 1:
        return edge_index, None, value
    return edge_index, None if bool((value == 1).all()) else value.reshape(-1), None


_SPARSE = (torch.sparse_coo, torch.sparse_csr, torch.sparse_csc)


def _mask(data: Any, key: str, num_nodes: int, split: int | None) -> Tensor | None:
    value: Tensor | None = getattr(data, key, None)
    if value is None:
        return None
    if value.dtype not in (torch.bool, torch.uint8):
        raise InvalidInputError(
            f"data.{key} is {value.dtype} {list(value.shape)}, a mask is bool [{num_nodes}]; if it holds node ids, "
            f"make one of them: mask = torch.zeros({num_nodes}, dtype=torch.bool); mask[ids] = True"
        )
    if value.dim() == 2:
        whole = isinstance(split, SupportsIndex) and not isinstance(split, bool)
        if split is None or not whole or not 0 <= split < value.shape[1]:
            raise InvalidInputError(
                f"data.{key} has {value.shape[1]} splits and split={split!r}; choose one with "
                f"split=0 ... {value.shape[1] - 1}"
            )
        value = value[:, split]
    if value.shape != (num_nodes,):
        raise InvalidInputError(f"data.{key} must be bool [{num_nodes}], got {value.dtype} {tuple(value.shape)}")
    if value.dtype is torch.uint8 and bool((value > 1).any()):
        raise InvalidInputError(
            f"data.{key} is torch.uint8 and holds {int(value.max())}, a mask holds 0 and 1; give a bool mask"
        )
    return value.bool()


def _targets(y: Tensor, dtype: torch.dtype, masks: Mapping[str, Tensor | None]) -> Tensor:
    if y.is_floating_point():
        return y.to(dtype)
    if y.is_complex():
        return y
    y = y.long()
    if y.dim() == 2 and y.shape[1] == 1:
        y = y[:, 0]
    elif y.dim() == 2:  # integer indicator matrix: multi-label
        return y.to(dtype)
    train = masks["train_mask"]
    if train is not None and y.shape == train.shape:
        _refuse_unlabelled(y, train)
    return y


def _refuse_unlabelled(y: Tensor, train_mask: Tensor) -> None:
    """Refuse 255 among labels that are otherwise far smaller: bytes write "unlabelled" so, and it is no class."""
    marked = train_mask & (y == _UNLABELLED)
    if not bool(marked.any()):
        return
    others = y[train_mask & ~marked]
    if not others.numel() or int(others.max()) < _UNLABELLED - 1:
        known = f"the other labels end at {int(others.max())}" if others.numel() else "there is no other label"
        raise InvalidInputError(
            f"labelled node {int(marked.nonzero()[0, 0])} has label {_UNLABELLED} and {known}: {_UNLABELLED} usually "
            "means unlabelled; take such nodes out of train_mask, or number the classes from 0 without a gap"
        )
