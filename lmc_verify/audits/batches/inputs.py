"""What a step gives to its model, beside what its batch has: features and edges are put right at the model's call.

A step may change them on the way: it drops edges, adds self-loops, makes edges undirected, normalises or masks
features. A hook of the model gives it copies of the batch's own again.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.data import Data

from lmc_verify.audits.batches.attributes import names_links

__all__ = ["own_edges", "own_features"]

_EDGE_VALUES = ("edge_weight", "edge_attr")


@contextmanager
def own_features(model: nn.Module, batch: Any) -> Iterator[None]:
    """Let a model get the batch's features, and what else the batch has of its rows by the name of an input.

    It does where it is given others for the same rows, by themselves or within ``Data``.
    """
    if not isinstance(batch, Data):
        yield
        return
    rows = int(batch.num_nodes or 0)

    def own_inputs(given: Mapping[str, Any]) -> dict[str, Any]:
        changed = dict[str, Any]()
        for name, value in given.items():
            if isinstance(value, Data):
                changed[name] = copy.copy(value)
                changed[name].update(own_inputs(value.to_dict()))
            elif name in batch and not names_links(name) and _may_stand_for(batch[name], value, name, rows):
                changed[name] = batch[name].clone()
        if "x" not in given:  # the features are the first input like them
            for name, value in given.items():
                if name not in batch and _may_stand_for(batch.x, value, name, rows):
                    return {**changed, name: batch.x.clone()}
        return changed

    with _changed_inputs(model, own_inputs):
        yield


@contextmanager
def own_edges(model: nn.Module, batch: Any) -> Iterator[None]:
    """Let a model get the batch's edges, with their weights and features, where it is given others for its rows.

    Weights or features of edges that the batch has not are left out, where the model can do without.

    Raises:
        LookupError: at the model's call, where it cannot.
    """
    index = batch.edge_index if isinstance(batch, Data) else None
    if not isinstance(index, Tensor):
        yield
        return
    rows, optional = int(batch.num_nodes), _optional(model)

    def own_inputs(given: Mapping[str, Any], optional: set[str] = optional) -> dict[str, Any]:
        changed = dict[str, Any]()
        for name, value in given.items():
            if isinstance(value, Data):
                changed[name] = copy.copy(value)
                changed[name].update(own_inputs(value.to_dict(), {*_EDGE_VALUES}))
        names = [name for name, value in given.items() if _is_edges(value) and not names_links(name)]
        if not names or not any(_has_rows(value, rows) for value in given.values()):
            return changed
        edges = "edge_index" if "edge_index" in names else names[0]
        count = given[edges].shape[1]
        changed[edges] = index.clone()
        for name, value in given.items():
            if not _has_rows(value, count) or value.requires_grad or not value.is_floating_point():
                continue
            if names_links(name):
                continue
            if name in _EDGE_VALUES or count != rows:
                changed[name] = _of_edges(batch, value, name, optional)
        return changed

    with _changed_inputs(model, own_inputs):
        yield


def _of_edges(batch: Data, value: Tensor, name: str, optional: set[str]) -> Tensor | None:
    """Return the batch's weights or features of edges in place of those that a model is given."""
    for key in [name] if name in _EDGE_VALUES else _EDGE_VALUES:
        mine = batch.get(key, None)
        if isinstance(mine, Tensor) and mine.dtype == value.dtype and mine.shape[1:] == value.shape[1:]:
            return mine.clone()
    if name in optional:
        return None
    raise LookupError(f"the batch has no weights or features of edges for the model's {name}")


def _may_stand_for(mine: Any, value: Any, name: str, rows: int) -> bool:
    """Whether a field of the batch may stand for an input: one row for each of the batch's, alike in all else."""
    if name == "edge_index" or name in _EDGE_VALUES or not _has_rows(value, rows) or value.requires_grad:
        return False
    return isinstance(mine, Tensor) and mine.dtype == value.dtype and mine.shape == value.shape


def _is_edges(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype is torch.long and value.dim() == 2 and value.shape[0] == 2


def _has_rows(value: Any, rows: int) -> bool:
    return isinstance(value, Tensor) and value.shape[:1] == (rows,)


def _optional(model: nn.Module) -> set[str]:
    """Return the names of inputs that a model can do without."""
    return {name for name, item in inspect.signature(model.forward).parameters.items() if item.default is None}


@contextmanager
def _changed_inputs(model: nn.Module, own_inputs: Callable[[Mapping[str, Any]], dict[str, Any]]) -> Iterator[None]:
    """Let a function of all inputs by name return those that the model gets in place of its own."""
    signature = inspect.signature(model.forward)

    def change(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        names = list(signature.bind_partial(*args).arguments) if args else []
        names += [f"*{place}" for place in range(len(names), len(args))]  # of *args
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        given |= own_inputs(given)
        return tuple(given[name] for name in names[: len(args)]), {name: given[name] for name in kwargs}

    handle = model.register_forward_pre_hook(change, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
