"""What a graph must be: every complaint names the value, the limit and what to do next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lmc_verify.errors import InvalidInputError
from lmc_verify.graphs.files import windows

__all__ = ["validate_graph"]


def _first(mask: Tensor) -> Sequence[int]:
    index: list[int] = mask.nonzero()[0].tolist()
    return index


def _within(edges: Tensor, n: int) -> bool:
    """Whether some edges join nodes that there are."""
    return not edges.numel() or (int(edges.min()) >= 0 and int(edges.max()) < n)


def _finite(value: Tensor) -> bool:
    """Whether a tensor is finite, looked at window by window: its mask may not fit into memory."""
    each = value[:1].numel() * value.element_size()
    return all(bool(torch.isfinite(value[window]).all()) for window in windows(value.shape[0], 4 * each))


def validate_graph(
    x: Tensor,
    y: Tensor,
    edges: Tensor,
    weight: Tensor | None,
    masks: Mapping[str, Tensor | None],
    cache_bytes: int,
    edge_attr: Tensor | None = None,
) -> None:
    """Refuse the parts of a graph that are malformed or do not fit together.

    Args:
        x: features.
        y: labels.
        edges: `edge_index`.
        weight: edge weights, or None.
        masks: by name; ``train_mask`` is one of them.
        cache_bytes: see `lmc_verify.Graph`.
        edge_attr: features of the edges, or None.

    Raises:
        InvalidInputError: the message names the part, the value, the limit and what to do next.
    """
    if x.dim() != 2 or x.dtype not in (torch.float32, torch.float64):
        raise InvalidInputError(
            f"features x must be float32 or float64 [nodes, features], got {x.dtype} {tuple(x.shape)}; "
            "convert them with x.float() or x.double()"
        )
    n = x.shape[0]
    if n == 0:
        raise InvalidInputError("the graph is empty: 0 nodes, at least 1 is needed; check how the data was loaded")
    if edges.dim() != 2 or edges.shape[0] != 2 or edges.dtype != torch.int64:
        raise InvalidInputError(f"edge_index must be int64 [2, edges], got {edges.dtype} {tuple(edges.shape)}")
    if not all(_within(edges[:, window], n) for window in windows(edges.shape[1], 16)):
        bad = (edges < 0) | (edges >= n)
        raise InvalidInputError(
            f"edge_index holds node {int(edges[bad][0])}, valid ids are 0 ... {n - 1}; "
            "give every node a feature row or drop that edge"
        )
    if not _finite(x):
        bad = ~torch.isfinite(x)
        node, column = _first(bad)
        raise InvalidInputError(
            f"features hold {int(bad.sum())} NaN or infinite values, the first at node {node}, column {column}; "
            "clean them before verifying (for instance torch.nan_to_num)"
        )
    if weight is not None:
        if weight.shape != (edges.shape[1],) or not weight.is_floating_point():
            raise InvalidInputError(
                f"edge_weight must be floating [{edges.shape[1]}] (one per directed edge), "
                f"got {weight.dtype} {tuple(weight.shape)}"
            )
        if not _finite(weight):
            edge = _first(~torch.isfinite(weight))[0]
            raise InvalidInputError(f"edge_weight is NaN or infinite at edge {edge}; every weight must be finite")
    if edge_attr is not None:
        _validate_edge_features(edge_attr, edges.shape[1])
    for key, mask in masks.items():
        if mask is not None and (mask.dtype != torch.bool or mask.shape != (n,)):
            raise InvalidInputError(f"{key} must be bool [{n}], got {mask.dtype} {tuple(mask.shape)}")
    train_mask = masks["train_mask"]
    if train_mask is None or not bool(train_mask.any()):
        raise InvalidInputError(
            "no node is labelled: train_mask has 0 True values, the objective needs at least 1; set train_mask"
        )
    _validate_labels(y, train_mask, n)
    if cache_bytes < 0:
        raise InvalidInputError(f"cache_bytes is {cache_bytes}, it must be at least 0; 0 keeps nothing")


def _validate_edge_features(edge_attr: Tensor, num_edges: int) -> None:
    fits = edge_attr.dim() == 2 and edge_attr.shape[0] == num_edges
    if not fits or edge_attr.dtype not in (torch.float32, torch.float64):
        raise InvalidInputError(
            f"edge_attr must be float32 or float64 [{num_edges}, features] (one row per directed edge, in the order of "
            f"edge_index), got {edge_attr.dtype} {tuple(edge_attr.shape)}; convert it with edge_attr.float(), or leave "
            "it out"
        )
    if not _finite(edge_attr):
        edge, column = _first(~torch.isfinite(edge_attr))
        raise InvalidInputError(
            f"edge_attr is NaN or infinite at edge {edge}, column {column}; every feature of an edge must be finite"
        )


def _validate_labels(y: Tensor, train_mask: Tensor, n: int) -> None:
    if y.shape[:1] != (n,):
        raise InvalidInputError(f"labels y must have one row a node ({n}), got shape {tuple(y.shape)}")
    if y.is_floating_point():
        if y.dim() != 2:
            raise InvalidInputError(
                f"float labels must be multi-label targets [nodes, tasks], got shape {tuple(y.shape)}; "
                "for classes use integer labels: y.long()"
            )
        if not y.shape[1]:
            raise InvalidInputError(
                "labels y have 0 tasks, the objective needs at least 1; give targets [nodes, tasks]"
            )
        labelled = y[train_mask]
        bad = ~((labelled >= 0) & (labelled <= 1))  # NaN included
        if bool(bad.any()):
            row, column = _first(bad)
            node = int(train_mask.nonzero()[row, 0])
            raise InvalidInputError(
                f"labelled node {node} has target {float(labelled[row, column])}, multi-label targets must lie in "
                "[0, 1]; take nodes with missing targets out of train_mask, or give classes as integers: y.long()"
            )
        return
    if y.dim() != 1 or y.dtype != torch.int64:
        raise InvalidInputError(f"class labels must be int64 [nodes], got {y.dtype} {tuple(y.shape)}")
    if int(y[train_mask].min()) < 0:
        node = int((train_mask & (y < 0)).nonzero()[0, 0])
        raise InvalidInputError(
            f"labelled node {node} has label {int(y[node])}, the smallest valid class is 0; "
            "take unlabelled nodes out of train_mask"
        )
