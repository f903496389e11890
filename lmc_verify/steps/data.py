"""What a training step reads: whole graphs and batches, as PyTorch Geometric's data, tensors, or containers of them."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Data, HeteroData
from torch_geometric.data.data import BaseData

__all__ = ["cast", "clone", "describe", "node_attributes", "parts_of", "tensors_of"]


def _mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return a value with every tensor in it changed; containers are copied, other objects are the same.

    NumPy arrays are copied, and those of floating-point numbers are changed as tensors are.
    """
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, np.ndarray):
        own = value.copy()
        return change(torch.from_numpy(own)).numpy() if own.dtype in (np.float16, np.float32, np.float64) else own
    if isinstance(value, BaseData):
        out = copy.copy(value)
        for store in out.stores:
            for key, item in list(store.items()):
                store[key] = _mapped(item, change)
        return out
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_mapped(item, change) for item in value))
    if type(value) in (list, tuple):
        return type(value)(_mapped(item, change) for item in value)
    if isinstance(value, dict):
        return {key: _mapped(item, change) for key, item in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        changed = copy.copy(value)
        for item in dataclasses.fields(value):
            object.__setattr__(changed, item.name, _mapped(getattr(value, item.name), change))  # frozen ones, too
        return changed
    return value


def cast(value: Any, dtype: torch.dtype) -> Any:
    """Return data or a batch with its floating-point tensors in a dtype; what is not made of tensors is returned."""
    return _mapped(value, lambda item: item.to(dtype) if item.is_floating_point() else item)


def clone(value: Any) -> Any:
    """Return data or a batch whose tensors have memory of their own."""
    return _mapped(value, Tensor.clone)


def tensors_of(value: Any, path: str = "") -> dict[str, Tensor]:
    """Return the tensors in data or a batch by their paths, such as ``"x"`` or ``"paper.x"``."""
    if isinstance(value, Tensor):
        return {path or "batch": value}
    items: list[tuple[str, Any]] = []
    if isinstance(value, HeteroData):
        for store in value.stores:
            kind = getattr(store, "_key", None)
            prefix = "" if kind is None else ("-".join(kind) if isinstance(kind, tuple) else str(kind)) + "."
            items += [(f"{prefix}{key}", item) for key, item in store.items()]
    elif isinstance(value, Data):
        items = list(value.to_dict().items())
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        items = [(item.name, getattr(value, item.name)) for item in dataclasses.fields(value)]
    elif isinstance(value, Mapping):
        items = [(str(key), item) for key, item in value.items()]
    elif isinstance(value, list | tuple):
        items = [(str(index), item) for index, item in enumerate(value)]
    out: dict[str, Tensor] = {}
    for key, item in items:
        out |= tensors_of(item, f"{path}.{key}" if path else key)
    return out


def parts_of(value: Tensor) -> list[Tensor]:
    """Return the dense tensors that a tensor of any layout is made of."""
    if value.layout is torch.strided:
        return [value.resolve_conj().resolve_neg()]
    if value.layout is torch.sparse_coo:
        value = value.coalesce()
        return [value.indices(), value.values()]
    if value.layout is torch.sparse_csr:
        return [value.crow_indices(), value.col_indices(), value.values()]
    if value.layout is torch.sparse_csc:
        return [value.ccol_indices(), value.row_indices(), value.values()]
    return [value.to_dense()]


def node_attributes(data: Data) -> list[str]:
    """Return the names of the tensors with one row for each node, such as ``["x", "y", "train_mask"]``."""
    return [key for key, item in data.to_dict().items() if isinstance(item, Tensor) and data.is_node_attr(key)]


def describe(value: Any) -> str:
    """Return what a batch is, in a few words for a message."""
    if isinstance(value, BaseData):
        return f"{type(value).__name__} with {value.num_nodes} nodes"
    if isinstance(value, Tensor):
        return f"tensor {list(value.shape)}"
    return type(value).__name__
