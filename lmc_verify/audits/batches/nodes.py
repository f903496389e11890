"""The nodes of a batch: which rows of the whole graph it holds, and which of them it is about.

Loaders name them in different ways. What is named is checked against the data (a row's features and targets must be its
node's); what is not named is found by the features, if no two nodes have the same. Where a loader changes one of both,
the other one tells.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Data

from lmc_verify.audits.batches.fingerprints import require_values
from lmc_verify.errors import InvalidInputError
from lmc_verify.steps import describe

__all__ = ["SEED_ROWS", "Namer", "Nodes", "NodesReader"]

_IDS = ("n_id", "node_id", "node_ids", "node_idx", "node_index", "orig_id", "global_id", "subset", "ids", "idx")
"""Names under which loaders keep the global ids of a batch's rows."""

SEED_ROWS = ("seed_mask", "root_mask", "target_mask", "root_n_id", "root_index", "seed_rows", "mapping")
"""Names under which they keep which rows a batch is about; `batch_size` says that they come first."""

_SEED_IDS = ("seeds", "seed_nodes", "target_nodes")
"""Names of their global ids. Not ``input_id``: in PyTorch Geometric it numbers the loader's input nodes."""

_CAST = 1e-6
"""Relative error within which features are the same: single precision rounds by less."""

_BY_CHANCE = 0.02
"""Probability from which on the values of some rows may agree by chance with those of other nodes."""

Namer = Callable[[Any], Tensor | Sequence[int]]


@dataclass(frozen=True)
class Nodes:
    """The nodes of one batch.

    Attributes:
        ids: int64 [rows], global ids of its rows, or None where they are not known.
        seeds: int64, ascending, global ids of the nodes that it is about, or None where that is not known.
        seeds_are_named: whether the batch says so; else every row is taken for one.
        rows: int64, rows of the seeds, where the batch names rows: a node may have other rows, too.
    """

    ids: Tensor | None
    seeds: Tensor | None
    seeds_are_named: bool = False
    rows: Tensor | None = None

    def seed_rows(self) -> Tensor | None:
        """Return which rows are seeds, bool [rows]."""
        if self.ids is None or self.seeds is None:
            return None
        if self.rows is None:
            return torch.isin(self.ids, self.seeds)
        out = torch.zeros(self.ids.numel(), dtype=torch.bool)
        out[self.rows] = True
        return out


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
        self._shares: dict[str, Tensor] = {}

    def __call__(self, batch: Any) -> Nodes:
        """Return the nodes of a batch."""
        given, batch = batch, self._as_data(batch)
        ids = self._ids(batch) if self._nodes is None else self._named_ids(batch, _called(self._nodes, given, "nodes"))
        if self._seeds is not None:
            return Nodes(ids, torch.unique(self._given(_called(self._seeds, given, "seeds"), "seeds(batch)")), True)
        named = self._named_seeds(batch, ids)
        if named is not None:
            return Nodes(ids, torch.unique(named), True)
        rows = None if ids is None else _seed_rows(batch, ids.numel())
        if ids is not None and rows is not None:
            return Nodes(ids, torch.unique(ids[rows]), True, rows)
        return Nodes(ids, None if ids is None else torch.unique(ids))

    def _as_data(self, batch: Any) -> Any:
        """Return a tuple or dictionary of one ``Data``, node ids and a batch size, as loaders give them, as ``Data``.

        Named fields keep their names. Of unnamed ones the only number is the batch size, and the only node ids that fit
        are those of the rows.
        """
        if not isinstance(batch, tuple | list | dict):
            return batch
        named = batch if isinstance(batch, dict) else batch._asdict() if hasattr(batch, "_asdict") else {}
        parts = list(named.values()) if named else list(batch)
        inner = [item for item in parts if isinstance(item, Data)]
        if len(inner) > 1:
            return batch
        fields = {key: item for key, item in named.items() if isinstance(item, Tensor | int)}
        if not named:
            sizes = [item for item in parts if isinstance(item, int) and not isinstance(item, bool)]
            ids = self._ids_among(parts, inner)
            fields |= {"batch_size": sizes[0]} if len(sizes) == 1 else {}
            fields |= {"n_id": ids[0]} if len(ids) == 1 else {}
        if not inner and not self._is_ids(fields.get("n_id")):
            return batch
        out = copy.copy(inner[0]) if inner else Data(num_nodes=len(torch.as_tensor(fields["n_id"])))
        for key, item in fields.items():
            if isinstance(key, str) and key not in out:
                out[key] = item
        return out

    def _ids_among(self, parts: Sequence[Any], inner: Sequence[Data]) -> list[Tensor]:
        """Return which unnamed parts of a batch may be the ids of its rows: not labels, nor numbers of rows."""
        found = [item for item in parts if self._is_ids(item)]
        if inner:
            return [item for item in found if item.numel() == inner[0].num_nodes]
        found = [item for item in found if torch.unique(item).numel() == item.numel() or item.dtype is torch.bool]
        whole = self._data.x
        if not isinstance(whole, Tensor):
            return found
        features = [item for item in parts if isinstance(item, Tensor) and item.dim() == whole.dim() == 2]
        features = [item for item in features if item.is_floating_point() and item.shape[1] == whole.shape[1]]
        if len(features) != 1:
            return found
        rows = Data(x=features[0])
        fitting = [item for item in found if item.numel() == rows.num_nodes and self._rows_fit(rows, item.cpu())]
        return fitting or [item for item in found if item.numel() != rows.num_nodes]

    def _named_ids(self, batch: Any, value: Any) -> Tensor:
        ids = self._given(value, "nodes(batch)")
        if isinstance(batch, Data) and batch.num_nodes is not None and ids.numel() != batch.num_nodes:
            raise InvalidInputError(
                f"nodes(batch) gives {ids.numel()} ids for a batch of {batch.num_nodes} rows; give one for each row"
            )
        return ids

    def _given(self, value: Any, what: str) -> Tensor:
        if not self._count:
            raise InvalidInputError(f"{what} gives node ids, which are read for torch_geometric.data.Data only")
        try:
            ids = torch.as_tensor(value)
        except (RuntimeError, TypeError, ValueError) as error:
            raise InvalidInputError(
                f"{what} gives {type(value).__name__}, and no node ids; return them as a tensor or a list of integers"
            ) from error
        if not ids.numel():
            return torch.zeros(0, dtype=torch.long)
        if ids.dtype is torch.bool:
            if ids.shape != (self._count,):
                raise InvalidInputError(f"{what} gives a mask {list(ids.shape)}; a mask of nodes is [{self._count}]")
            return ids.cpu().nonzero().flatten()
        ids = ids.cpu().reshape(-1)
        if ids.is_floating_point() or not 0 <= int(ids.min()) <= int(ids.max()) < self._count:
            raise InvalidInputError(
                f"{what} gives ids from {ids.min()} to {ids.max()}, {ids.dtype}; nodes are 0 ... {self._count - 1} as "
                "integers"
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
            self._check_n_id(batch)
            for key in _IDS:
                value: Any = batch.get(key, None)
                if self._is_ids(value) and value.numel() == batch.num_nodes and self._rows_fit(batch, value.cpu()):
                    return torch.as_tensor(value).cpu().long()
            if batch.num_nodes == self._count and self._rows_fit(batch, torch.arange(self._count)):
                return torch.arange(self._count)
            found = self._by_features(batch)
            return self._believed(batch) if found is None else found
        if self._is_ids(batch):
            return self._given(batch, "batch")
        if hasattr(batch, "nodes") and self._is_ids(batch.nodes):
            return self._given(batch.nodes, "batch.nodes")
        return None

    def _check_n_id(self, batch: Data) -> None:
        value: Any = batch.get("n_id", None)
        if not isinstance(value, Tensor) or value.dim() != 1 or value.is_floating_point() or not value.numel():
            return
        require_values(value, "batch.n_id")
        if value.dtype is not torch.bool and not 0 <= int(value.min()) <= int(value.max()) < self._count:
            raise InvalidInputError(
                f"batch.n_id goes from {int(value.min())} to {int(value.max())}, nodes are 0 ... {self._count - 1}; it "
                "holds the ids that a batch's rows have in the data: is the loader for another graph?"
            )

    def _rows_fit(self, batch: Data, ids: Tensor) -> bool:
        """Whether the features and targets of a batch's rows are those of some nodes, as far as both have them."""
        if ids.dtype is torch.bool:
            return False
        return all(self._fits(batch, key, ids) is not False for key in ("x", "y"))

    def _fits(self, batch: Data, key: str, ids: Tensor) -> bool | None:
        """Whether an attribute of a batch's rows is that of some nodes; None where they cannot be compared."""
        own, whole = batch.get(key, None), self._data.get(key, None)
        if not isinstance(own, Tensor) or not isinstance(whole, Tensor) or own.shape[1:] != whole.shape[1:]:
            return None
        if own.shape[:1] != ids.shape or whole.shape[:1] != (self._count,):
            return None
        wanted = _dense(whole)[ids]
        return torch.allclose(_dense(own), wanted, rtol=_CAST, atol=0.0, equal_nan=True)

    def _believed(self, batch: Data) -> Tensor | None:
        """Return named ids where features or targets alone are those of the rows' nodes, and hardly by chance."""
        for name in _IDS:
            value: Any = batch.get(name, None)
            if not self._is_ids(value) or value.numel() != batch.num_nodes or value.dtype is torch.bool:
                continue
            ids: Tensor = value.cpu().long()
            if any(self._fits(batch, key, ids) and self._chance(key, ids) < _BY_CHANCE for key in ("x", "y")):
                return ids
        return None

    def _chance(self, key: str, ids: Tensor) -> float:
        """Return the probability that rows drawn at random have the values of some nodes."""
        if key not in self._shares:
            number, times = _dense(self._data[key]).unique(dim=0, return_inverse=True, return_counts=True)[1:]
            self._shares[key] = times[number].double() / self._count
        return float(self._shares[key][ids].prod())

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
                seeds = self._given(batch[key], f"batch.{key}")
                if ids is None or bool(torch.isin(seeds, ids).all()):  # else they are no ids of the whole graph
                    return seeds
        return None


def _called(function: Namer, batch: Any, name: str) -> Any:
    """Return what a function of the user's gives for a batch.

    Raises:
        InvalidInputError: it raises an error.
    """
    try:
        return function(batch)
    except Exception as error:
        raise InvalidInputError(
            f"{name} is a function that raises {type(error).__name__} ({error}) when it is called with a batch "
            f"({describe(batch)}); it takes a batch and returns node ids of the whole graph, such as "
            "lambda batch: batch.n_id"
        ) from error


def _seed_rows(batch: Any, count: int) -> Tensor | None:
    """Return the rows that a batch says to be about, int64; None where it does not say."""
    if not isinstance(batch, Data):
        return None
    for key in SEED_ROWS:
        value = batch.get(key, None)
        if not isinstance(value, Tensor) or value.dim() != 1 or value.is_floating_point() or not value.numel():
            continue
        if value.dtype is torch.bool and value.numel() == count:
            return value.cpu().nonzero().flatten()
        if value.dtype is not torch.bool and 0 <= int(value.min()) <= int(value.max()) < count:
            return value.cpu().long()
    size = batch.get("batch_size", None)
    if isinstance(size, int) and not isinstance(size, bool) and 0 < size <= count:
        return torch.arange(size)
    return None


def _dense(value: Tensor) -> Tensor:
    """Return a tensor's numbers in double precision, of whatever layout it is."""
    return value.detach().cpu().to_dense().double()


def _row_bytes(x: Tensor) -> list[bytes]:
    rows = np.ascontiguousarray(_dense(x).numpy())
    return [row.tobytes() for row in rows]
