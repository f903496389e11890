"""The nodes of a batch: which rows of the whole graph it holds, and which of them it is about.

Loaders name them in different ways. What is named is checked against the data (a row's features must be its node's);
what is not named is found by the features, if no two nodes have the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Data

from lmc_verify.errors import InvalidInputError

__all__ = ["Nodes", "nodes_of"]

_IDS = ("n_id", "node_id", "node_ids", "node_idx", "node_index", "orig_id", "global_id", "subset", "ids", "idx")
"""Names under which loaders keep the global ids of a batch's rows."""

_SEED_ROWS = ("seed_mask", "root_mask", "target_mask", "root_n_id", "root_index", "seed_rows", "mapping")
"""Names under which they keep which rows a batch is about; `batch_size` says that they come first."""

_SEED_IDS = ("seeds", "seed_nodes", "input_id", "target_nodes")

Namer = Callable[[Any], Tensor | Sequence[int]]


@dataclass(frozen=True)
class Nodes:
    """The nodes of one batch.

    Attributes:
        ids: int64 [rows], global ids of its rows, or None where they are not known.
        seeds: int64, ascending, global ids of the nodes that it is about, or None where that is not known.
        seeds_are_named: whether the batch says so; else every row is taken for one.
    """

    ids: Tensor | None
    seeds: Tensor | None
    seeds_are_named: bool = False

    def seed_rows(self) -> Tensor | None:
        """Return which rows are seeds, bool [rows]."""
        return None if self.ids is None or self.seeds is None else torch.isin(self.ids, self.seeds)


class NodesReader:
    """Reads the nodes of batches of one graph.

    Args:
        data: the whole graph.
        nodes: a function of the user's that returns global ids of a batch's rows, or None.
        seeds: one that returns global ids of the nodes that a batch is about, or None.
    """

    def __init__(self, data: Any, nodes: Namer | None = None, seeds: Namer | None = None) -> None:
        self._data, self._nodes, self._seeds = data, nodes, seeds
        self._count = int(data.num_nodes) if isinstance(data, Data) else 0
        self._by_row: dict[bytes, int] | None = None

    def __call__(self, batch: Any) -> Nodes:
        """Return the nodes of a batch."""
        ids = self._ids(batch) if self._nodes is None else self._given(self._nodes(batch), "nodes")
        if self._seeds is not None:
            return Nodes(ids, torch.unique(self._given(self._seeds(batch), "seeds")), True)
        named = self._named_seeds(batch, ids)
        if named is not None:
            return Nodes(ids, torch.unique(named), True)
        return Nodes(ids, None if ids is None else torch.unique(ids))

    def _given(self, value: Any, what: str) -> Tensor:
        ids = torch.as_tensor(value).cpu()
        ids = ids.nonzero().flatten() if ids.dtype is torch.bool else ids.reshape(-1)
        if ids.is_floating_point() or (ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < self._count):
            found = f"from {ids.min()} to {ids.max()}" if ids.numel() else "none"
            raise InvalidInputError(
                f"{what}(batch) gives ids {found}, {ids.dtype}; nodes are 0 ... {self._count - 1} as integers"
            )
        return ids.long()

    def _is_ids(self, value: Any) -> bool:
        if not isinstance(value, Tensor) or value.dim() != 1 or value.is_floating_point():
            return False
        if value.dtype is torch.bool:
            return value.numel() == self._count
        return value.numel() > 0 and int(value.min()) >= 0 and int(value.max()) < self._count

    def _ids(self, batch: Any) -> Tensor | None:
        if not self._count:
            return None
        if isinstance(batch, Data):
            for key in _IDS:
                value: Any = batch.get(key, None)
                if self._is_ids(value) and value.numel() == batch.num_nodes and self._rows_fit(batch, value.cpu()):
                    return torch.as_tensor(value).cpu().long()
            if batch.num_nodes == self._count and self._rows_fit(batch, torch.arange(self._count)):
                return torch.arange(self._count)
            return self._by_features(batch)
        if self._is_ids(batch):
            return self._given(batch, "batch")
        if hasattr(batch, "nodes") and self._is_ids(batch.nodes):
            return self._given(batch.nodes, "batch.nodes")
        if isinstance(batch, tuple | list):
            found = [item for item in batch if self._is_ids(item)]
            inner = [self._ids(item) for item in batch if isinstance(item, Data)]
            if len(inner) == 1 and inner[0] is not None:
                return inner[0]
            return self._given(found[0], "batch") if len(found) == 1 else None
        return None

    def _rows_fit(self, batch: Data, ids: Tensor) -> bool:
        if batch.x is None or getattr(self._data, "x", None) is None or batch.x.shape[1:] != self._data.x.shape[1:]:
            return True
        return bool(torch.equal(batch.x.cpu().double(), self._data.x.cpu().double()[ids]))

    def _by_features(self, batch: Data) -> Tensor | None:
        """Find the rows by their features, where no two nodes have the same."""
        if getattr(self._data, "x", None) is None or batch.x is None or batch.x.dim() != 2:
            return None
        if self._by_row is None:
            rows = _row_bytes(self._data.x)
            self._by_row = {row: index for index, row in enumerate(rows)} if len(set(rows)) == len(rows) else {}
        found = [self._by_row.get(row, -1) for row in _row_bytes(batch.x)]
        return torch.tensor(found) if found and min(found) >= 0 else None

    def _named_seeds(self, batch: Any, ids: Tensor | None) -> Tensor | None:
        if not isinstance(batch, Data):
            return None
        for key in _SEED_IDS:
            if key in batch and self._is_ids(batch[key]):
                return self._given(batch[key], f"batch.{key}")
        if ids is None:
            return None
        for key in _SEED_ROWS:
            value = batch.get(key, None)
            if isinstance(value, Tensor) and value.dim() == 1 and not value.is_floating_point() and value.numel():
                rows = value.nonzero().flatten() if value.dtype is torch.bool else value.long()
                if int(rows.max()) < ids.numel():
                    return ids[rows.cpu()]
        size = batch.get("batch_size", None)
        if isinstance(size, int) and 0 < size <= ids.numel():
            return ids[:size]
        return None


def _row_bytes(x: Tensor) -> list[bytes]:
    rows = np.ascontiguousarray(x.detach().cpu().double().numpy())
    return [row.tobytes() for row in rows]


def nodes_of(reader: NodesReader, batches: Sequence[Any]) -> list[Nodes]:
    """Return the nodes of some batches; seeds that no batch names are kept only where batches do not overlap.

    Where rows overlap and nothing says what a batch is about, some rows may be there for the others alone.
    """
    out = [reader(batch) for batch in batches]
    if any(found.seeds_are_named or found.seeds is None for found in out):
        return out
    together = torch.cat([found.seeds for found in out if found.seeds is not None])
    if together.numel() == torch.unique(together).numel() or len(out) == 1:
        return out
    return [Nodes(found.ids, None) for found in out]
