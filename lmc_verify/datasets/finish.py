"""The last step of every load: the documented types, a split where there is none, and whether the parts fit."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from lmc_verify.datasets.generated import make_rng
from lmc_verify.datasets.info import DatasetInfo, Request
from lmc_verify.datasets.layouts import SPLITS
from lmc_verify.datasets.tables import Tables
from lmc_verify.errors import InvalidInputError

if TYPE_CHECKING:
    from torch_geometric.data import Data

__all__ = ["MOST_CLASSES", "finished"]

MOST_CLASSES = 10_000
"""The most classes that labels may name in a graph of fewer nodes."""


def finished(data: Data | Tables, info: DatasetInfo, request: Request) -> Tables:
    """Return what was loaded with the documented attributes, types and masks.

    Raises:
        InvalidInputError: its parts do not fit together.
    """
    num_nodes = data.x.size(0)
    y = data.y.to(torch.float32) if info.task == "multi-label" else data.y.to(torch.int64)
    made = Tables(
        x=data.x.to(torch.float32).contiguous(),
        edge_index=data.edge_index.to(torch.int64).contiguous(),
        y=y.contiguous(),
    )
    weight: Tensor | None = getattr(data, "edge_weight", None)
    if weight is not None:
        made.edge_weight = weight.to(torch.float32).contiguous()
    if data.edge_attr is not None:
        made.edge_attr = data.edge_attr.to(torch.float32).contiguous()
    for mask, value in zip(SPLITS, _masks(data, num_nodes, request), strict=True):
        setattr(made, mask, value)
    _check(made, info)
    return made


def _masks(data: Data | Tables, num_nodes: int, request: Request) -> tuple[Tensor, ...]:
    """Return the masks of the data set; nodes that no mask claims are split at random."""
    given: list[Tensor | None] = [getattr(data, mask, None) for mask in SPLITS]
    masks = [mask.to(torch.bool) for mask in given if mask is not None]
    if len(masks) == len(given):
        return tuple(mask[:, request.options["split"]].clone() if mask.dim() == 2 else mask for mask in masks)
    if given[0] is not None:  # karate: one training node for each class
        train = given[0].to(torch.bool)
        shares = [0.5, 1.0]
    else:
        train = torch.zeros(num_nodes, dtype=torch.bool)
        shares = [0.6, 0.8, 1.0]
    rest = np.flatnonzero(~train.numpy())
    rest = make_rng(request.seed, 1).permutation(rest)
    bounds = [0, *(round(share * rest.size) for share in shares)]
    bounds[1] = max(bounds[1], 1)  # a graph of one node trains on it
    parts = []
    for low, high in itertools.pairwise(bounds):
        mask = torch.zeros(num_nodes, dtype=torch.bool)
        mask[torch.from_numpy(rest[low:high])] = True
        parts.append(mask)
    return tuple(parts) if len(parts) == 3 else (train.clone(), *parts)


def _check(data: Tables, info: DatasetInfo) -> None:
    """Check that the parts of a data set fit together (values are the business of the graph checks)."""
    num_nodes = data.x.size(0)
    title = f"data set {info.name!r}"
    if data.x.dim() != 2 or num_nodes == 0:
        raise InvalidInputError(f"{title} has features of shape {tuple(data.x.shape)}, expected nodes by features")
    if data.y.size(0) != num_nodes or data.y.dim() != (2 if info.task == "multi-label" else 1):
        raise InvalidInputError(f"{title} has {num_nodes} nodes and labels of shape {tuple(data.y.shape)}")
    if info.task != "multi-label":
        _check_labels(data.y, num_nodes, title)
    edges = data.edge_index
    if edges.dim() != 2 or edges.size(0) != 2:
        raise InvalidInputError(f"{title} has an edge_index of shape {tuple(edges.shape)}, expected (2, edges)")
    if edges.numel() and not 0 <= int(edges.min()) <= int(edges.max()) < num_nodes:
        raise InvalidInputError(
            f"{title} has edges between nodes {int(edges.min())} and {int(edges.max())}, but {num_nodes} nodes"
        )
    masks: list[Tensor] = [getattr(data, mask) for mask in SPLITS]
    if any(mask.shape != (num_nodes,) for mask in masks):
        raise InvalidInputError(f"{title} has masks that do not have one value for each of its {num_nodes} nodes")
    if not masks[0].any():
        raise InvalidInputError(f"{title} has no training nodes")
    if int(torch.stack(masks).sum(0).max()) > 1:
        raise InvalidInputError(f"{title} has nodes in more than one of training, validation and test")


def _check_labels(labels: Tensor, num_nodes: int, title: str) -> None:
    """Refuse labels that are no classes: a model would have an output for each number up to the largest."""
    most = max(num_nodes, MOST_CLASSES)
    if not -1 <= int(labels.min()) <= int(labels.max()) < most:
        raise InvalidInputError(
            f"{title} has labels from {int(labels.min())} to {int(labels.max())}; classes are numbered from 0 "
            f"(-1: none) and are at most {most:,}"
        )
