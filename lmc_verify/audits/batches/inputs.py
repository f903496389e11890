"""What a step gives to its model, beside what its batch has: features and edges are put right at the model's call.

A step may change them on the way: it drops edges, adds self-loops, makes edges undirected, normalises or masks
features. A hook of the model gives it the batch's own again.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.data import Data

__all__ = ["own_edges", "own_features"]

_EDGE_VALUES = ("edge_weight", "edge_attr")


@contextmanager
def own_features(model: nn.Module, batch: Any) -> Iterator[None]:
    """Let a model get the batch's features, and what else the batch has of its rows by the name of an input.

    It does where it is given others for the same rows.
    """
    if not isinstance(batch, Data):
        yield
        return

    def own(value: Any, name: str) -> Any:
        mine = batch.get(name, batch.x)
        of_rows = _has_rows(value, int(batch.num_nodes or 0)) and name not in _EDGE_VALUES
        return mine if of_rows and _alike(value, mine) and not value.requires_grad else value

    with _changed_inputs(model, lambda _: own):
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

    def own_input(given: dict[str, Any]) -> Callable[[Any, str], Any]:
        edges = next((value for value in given.values() if _is_edges(value)), None)
        if edges is None or not any(_has_rows(value, rows) for value in given.values()):
            return lambda value, name: value

        def own(value: Any, name: str) -> Any:
            if value is edges:
                return index
            of_edges = (
                _has_rows(value, edges.shape[1])
                and value.is_floating_point()
                and (name in _EDGE_VALUES or value.shape[0] != rows)
            )
            return _of_edges(batch, value, name, optional) if of_edges and not value.requires_grad else value

        return own

    with _changed_inputs(model, own_input):
        yield


def _of_edges(batch: Data, value: Tensor, name: str, optional: set[str]) -> Tensor | None:
    """Return the batch's weights or features of edges in place of those that a model is given."""
    for key in [name] if name in _EDGE_VALUES else _EDGE_VALUES:
        mine: Tensor | None = batch.get(key, None)
        if _alike(value, mine):
            return mine
    if name in optional:
        return None
    raise LookupError(f"the batch has no weights or features of edges for the model's {name}")


def _alike(value: Any, mine: Any) -> bool:
    """Whether one input may stand for another: rows of one shape, in one precision."""
    both = isinstance(value, Tensor) and isinstance(mine, Tensor)
    return both and value.dtype == mine.dtype and value.dim() > 0 and value.shape[1:] == mine.shape[1:]


def _is_edges(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype is torch.long and value.dim() == 2 and value.shape[0] == 2


def _has_rows(value: Any, rows: int) -> bool:
    return isinstance(value, Tensor) and value.shape[:1] == (rows,)


def _optional(model: nn.Module) -> set[str]:
    """Return the names of inputs that a model can do without."""
    return {name for name, item in inspect.signature(model.forward).parameters.items() if item.default is None}


@contextmanager
def _changed_inputs(
    model: nn.Module, own_input: Callable[[dict[str, Any]], Callable[[Any, str], Any]]
) -> Iterator[None]:
    """Let a function of all inputs by name return what makes of each input what the model gets in its place."""
    signature = inspect.signature(model.forward)

    def change(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        names = list(signature.bind_partial(*args).arguments) if args else []
        names += [f"*{place}" for place in range(len(names), len(args))]  # of *args
        own = own_input({**dict(zip(names, args, strict=False)), **kwargs})
        return (
            tuple(own(value, name) for name, value in zip(names, args, strict=False)),
            {name: own(value, name) for name, value in kwargs.items()},
        )

    handle = model.register_forward_pre_hook(change, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
