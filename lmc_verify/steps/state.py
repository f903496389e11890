"""What a user's step keeps between batches: histories in tensors, in objects, or behind functions of the user's.

`KeptState` takes a snapshot and puts it back: `lmc_verify.steps.snapshot` does it for objects, the user's own functions
where there are some.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lmc_verify.errors import InvalidInputError
from lmc_verify.seeds import spawn_key
from lmc_verify.steps.snapshot import Snapshot, cast_tensors, held

__all__ = ["KeptState", "StateLike", "held"]

StateLike = Any
"""None; a tensor, array or generator; an object that holds some, such as a module or an optimiser; an object with
``state_dict`` and ``load_state_dict``; a pair of functions ``(snapshot, restore)``; a list or mapping of these; or a
function of the model that returns one of them."""


class KeptState:
    """What a step keeps between batches.

    Args:
        state: see `StateLike`.
        model: the model that a function of the model is called with.

    Attributes:
        empty: nothing is kept.

    Raises:
        InvalidInputError: nothing of it can be kept, or a function of the model raises an error.
    """

    def __init__(self, state: StateLike, model: nn.Module) -> None:
        self._parts = [] if state is None else _parts(state, "state", model)
        self.empty = not self._parts

    def snapshot(self) -> list[Any]:
        """Return a copy of all values."""
        return [part.snapshot() for part in self._parts]

    def restore(self, kept: Sequence[Any]) -> None:
        """Put the values of a snapshot back; what was added since then is removed."""
        for part, values in zip(self._parts, kept, strict=True):
            part.restore(values)

    def cast(self, dtype: torch.dtype) -> None:
        """Convert the floating-point tensors that are held, in place; `restore` gives them their own dtype back.

        NumPy arrays, which cannot change their dtype in place, and values behind functions keep theirs.
        """
        for part in self._parts:
            part.cast(dtype)

    def seed(self, seed: int) -> None:
        """Seed the random generators that are held, each differently: their draws are part of a batch."""
        for part in self._parts:
            part.seed(seed)

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors that are held, by path; those of a pair of functions are the tensors of its snapshot.

        NumPy arrays of numbers come as tensors of the same memory.
        """
        return {
            path: torch.from_numpy(value) if isinstance(value, np.ndarray) else value
            for path, value in self.values().items()
            if isinstance(value, Tensor) or value.dtype.kind in "fiub"
        }

    def plain(self) -> dict[str, Any]:
        """Return the numbers, texts and the like that are held, by path."""
        return {path: value for part in self._parts for path, value in part.held().plain.items()}

    def values(self) -> dict[str, Any]:
        """Return the tensors and arrays that are held, by path: the objects themselves."""
        out: dict[str, Any] = {}
        for part in self._parts:
            found = part.held()
            out |= found.tensors | found.arrays
        return out


def _is_function(state: Any) -> bool:
    return inspect.isroutine(state) or isinstance(state, functools.partial)


def _parts(state: Any, path: str, model: nn.Module) -> list[_Held | _Functions]:
    if isinstance(state, tuple) and len(state) == 2 and all(map(_is_function, state)):
        return [_Functions(state[0], state[1], path)]
    if _is_function(state):
        return _parts(_of_model(state, path, model), path, model)
    if isinstance(state, Mapping) and _has_functions(state.values()):
        return [part for key, item in state.items() for part in _parts(item, f"{path}[{key!r}]", model)]
    if isinstance(state, list | tuple) and _has_functions(state):
        return [part for index, item in enumerate(state) for part in _parts(item, f"{path}[{index}]", model)]
    if _has_state_dict(state):
        return [_Functions(state.state_dict, state.load_state_dict, path)]
    if Snapshot(state, path).empty:
        raise InvalidInputError(
            f"{path} is of type {type(state).__name__} and holds no tensor; give the tensors, an object that holds "
            "them, an object with state_dict() and load_state_dict(), a pair of functions (snapshot, restore), or a "
            "function of the model that returns these, such as lambda model: model.histories"
        )
    return [_Held(state, path)]


def _of_model(function: Callable[[nn.Module], Any], path: str, model: nn.Module) -> Any:
    try:
        return function(model)
    except Exception as error:
        raise InvalidInputError(
            f"{path} is a function that raises {type(error).__name__} ({error}) when it is called with the model; it "
            "takes the model and returns what the step keeps, such as lambda model: model.histories"
        ) from error


def _has_state_dict(state: Any) -> bool:
    """Whether an object has a state of its own; that of modules and optimisers leaves plain attributes out."""
    kind = type(state)  # HeteroData make up attributes that end in _dict
    return not isinstance(state, nn.Module | torch.optim.Optimizer | type) and all(
        callable(getattr(kind, name, None)) for name in ("state_dict", "load_state_dict")
    )


def _has_functions(items: Any) -> bool:
    """Whether a container's items are kept one by one: some have a way of their own to be kept, or cannot be kept."""
    return any(
        _is_function(item) or _has_state_dict(item) or (isinstance(item, Mapping | list | tuple) and _nested(item))
        for item in items
    )


def _nested(item: Any) -> bool:
    return _has_functions(item.values() if isinstance(item, Mapping) else item)


class _Held:
    """Tensors, arrays, generators and plain values that an object holds."""

    def __init__(self, owner: Any, path: str) -> None:
        self._owner, self._path = owner, path

    def held(self) -> Snapshot:
        return Snapshot(self._owner, self._path)

    def snapshot(self) -> Any:
        return self.held()

    def restore(self, kept: Any) -> None:
        kept.restore()

    def cast(self, dtype: torch.dtype) -> None:
        cast_tensors(list(self.held().tensors.values()), dtype)

    def seed(self, seed: int) -> None:
        for path, generator in self.held().generators.items():
            start = int(np.random.SeedSequence(seed, spawn_key=spawn_key("state", path)).generate_state(1)[0])
            if isinstance(generator, torch.Generator):
                generator.manual_seed(start)
            elif isinstance(generator, np.random.Generator):
                generator.bit_generator.state = type(generator.bit_generator)(start).state
            else:
                generator.seed(start)


class _Functions:
    """Values behind two functions of the user's: one returns a snapshot, the other one takes it."""

    def __init__(self, snapshot: Callable[[], Any], restore: Callable[[Any], Any], path: str) -> None:
        self._snapshot, self._restore, self._path = snapshot, restore, path

    def held(self) -> Snapshot:
        return Snapshot(self._snapshot(), self._path)

    def snapshot(self) -> Any:
        return copy.deepcopy(self._snapshot())

    def restore(self, kept: Any) -> None:
        self._restore(copy.deepcopy(kept))

    def cast(self, dtype: torch.dtype) -> None:
        """Values behind functions keep their dtype."""

    def seed(self, seed: int) -> None:
        """Generators behind functions are the user's."""
