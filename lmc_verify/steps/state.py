"""What a user's step keeps between batches: histories in tensors, in objects, or behind functions of the user's.

`KeptState` takes a snapshot and puts it back. Tensors are written in place, so that whoever else holds them sees the
same values; attributes that were bound anew are bound to what they were.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lmc_verify.errors import InvalidInputError

__all__ = ["KeptState", "StateLike", "held"]

StateLike = Any
"""None; a tensor; an object that holds tensors or has ``state_dict`` and ``load_state_dict``; a pair of functions
``(snapshot, restore)``; a list or mapping of these; or a function of the model that returns one of them."""

_PLAIN = (bool, int, float, complex, str, bytes, type(None))
_DEEPEST = 8


class _Slot:
    """A place that holds a value: an attribute, an item, or a tensor itself (without a place)."""

    def __init__(self, path: str, value: Any, write: Callable[[Any], None] | None) -> None:
        self.path, self.value, self.write = path, value, write
        self.kept = value.detach().clone() if isinstance(value, Tensor) else value

    def restore(self) -> None:
        if isinstance(self.value, Tensor):
            if self.value.shape != self.kept.shape or self.value.dtype != self.kept.dtype:
                self.value.data = self.kept.clone()
            else:
                with torch.no_grad():
                    self.value.detach().copy_(self.kept)
        if self.write is not None:
            self.write(self.value)


def held(value: Any, path: str = "state", *, parameters: bool = False) -> list[_Slot]:
    """Return every tensor and plain value that an object holds, by its path.

    Modules are searched without their parameters (unless asked for), objects by their attributes, containers by their
    items.
    """
    slots: list[_Slot] = []
    _walk(value, path, None, slots, set(), parameters, 0)
    return slots


def _walk(
    value: Any,
    path: str,
    write: Callable[[Any], None] | None,
    slots: list[_Slot],
    seen: set[int],
    parameters: bool,
    depth: int,
) -> None:
    if isinstance(value, nn.Parameter) and not parameters:
        return
    if isinstance(value, Tensor):
        if id(value) not in seen:
            seen.add(id(value))
            slots.append(_Slot(path, value, write))
        return
    if isinstance(value, _PLAIN):
        if write is not None:
            slots.append(_Slot(path, value, write))
        return
    if id(value) in seen or depth > _DEEPEST or isinstance(value, type) or (callable(value) and not _is_holder(value)):
        return
    seen.add(id(value))
    for key, item, put in _places(value):
        _walk(item, f"{path}{key}", put, slots, seen, parameters, depth + 1)


def _is_holder(value: Any) -> bool:
    """Whether a callable is an object with a state, and not a function."""
    return isinstance(value, nn.Module) or (hasattr(value, "__dict__") and not hasattr(value, "__code__"))


def _places(value: Any) -> list[tuple[str, Any, Callable[[Any], None] | None]]:
    if isinstance(value, nn.Module):
        return _module_places(value)
    if isinstance(value, dict):
        return [(f"[{key!r}]", item, _item_writer(value, key)) for key, item in list(value.items())]
    if isinstance(value, list):
        return [(f"[{index}]", item, _item_writer(value, index)) for index, item in enumerate(value)]
    if isinstance(value, tuple):
        return [(f"[{index}]", item, None) for index, item in enumerate(value)]
    attributes = getattr(value, "__dict__", None)
    if isinstance(attributes, dict):
        return [(f".{key}", item, _item_writer(attributes, key)) for key, item in list(attributes.items())]
    return []


_OF_TORCH = frozenset(vars(nn.Module())) - {"_buffers", "_modules", "_parameters", "training"}
"""Attributes that every module has: hooks, and whether it trains; nothing that a step remembers."""


def _module_places(module: nn.Module) -> list[tuple[str, Any, Callable[[Any], None] | None]]:
    places: list[tuple[str, Any, Callable[[Any], None] | None]] = []
    for table in (module._parameters, module._buffers, module._modules):
        places += [(f".{key}", item, _item_writer(table, key)) for key, item in list(table.items())]
    own = vars(module)
    skip = _OF_TORCH | {"_buffers", "_modules", "_parameters", "training"}
    return places + [(f".{key}", item, _item_writer(own, key)) for key, item in list(own.items()) if key not in skip]


def _item_writer(container: Any, key: Any) -> Callable[[Any], None]:
    def write(value: Any) -> None:
        container[key] = value

    return write


class KeptState:
    """What a step keeps between batches.

    Args:
        state: see `StateLike`.
        model: the model that a function of the model is called with.

    Raises:
        InvalidInputError: nothing of it can be kept.
    """

    def __init__(self, state: StateLike, model: nn.Module) -> None:
        if _is_function(state):
            state = state(model)
        self._parts = [] if state is None else _parts(state)
        self.empty = not self._parts

    def snapshot(self) -> list[Any]:
        """Return a copy of all values."""
        return [part.snapshot() for part in self._parts]

    def restore(self, kept: Sequence[Any]) -> None:
        """Put the values of a snapshot back."""
        for part, values in zip(self._parts, kept, strict=True):
            part.restore(values)

    def cast(self, dtype: torch.dtype) -> None:
        """Convert the floating-point tensors that are held, in place; `restore` gives them their own dtype back."""
        for part in self._parts:
            part.cast(dtype)

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors that are held, by path; those of a pair of functions are the tensors of its snapshot."""
        out: dict[str, Tensor] = {}
        for part in self._parts:
            out |= part.tensors()
        return out


def _is_function(state: Any) -> bool:
    return callable(state) and not isinstance(state, nn.Module) and not hasattr(state, "state_dict")


def _parts(state: Any, path: str = "state") -> list[_Held | _Functions | _StateDict]:
    if isinstance(state, tuple) and len(state) == 2 and all(map(callable, state)) and not _any_module(state):
        return [_Functions(state[0], state[1], path)]
    if isinstance(state, nn.Module | Tensor):
        return [_Held(state, path)]
    if isinstance(state, Mapping):
        return [part for key, item in state.items() for part in _parts(item, f"{path}[{key!r}]")]
    if isinstance(state, list | tuple):
        return [part for index, item in enumerate(state) for part in _parts(item, f"{path}[{index}]")]
    if hasattr(state, "state_dict") and hasattr(state, "load_state_dict"):
        return [_StateDict(state, path)]
    if held(state, path):
        return [_Held(state, path)]
    raise InvalidInputError(
        f"{path} is a {type(state).__name__} that holds no tensor; give the tensors, an object with state_dict() and "
        "load_state_dict(), a pair of functions (snapshot, restore), or a function of the model that returns these, "
        "such as lambda model: model.histories"
    )


def _any_module(state: tuple[Any, ...]) -> bool:
    return any(isinstance(item, nn.Module) for item in state)


class _Held:
    """Tensors and plain values that an object holds."""

    def __init__(self, owner: Any, path: str) -> None:
        self._owner, self._path = owner, path

    def snapshot(self) -> list[_Slot]:
        return held(self._owner, self._path)

    def restore(self, kept: list[_Slot]) -> None:
        for slot in kept:
            slot.restore()

    def cast(self, dtype: torch.dtype) -> None:
        for slot in held(self._owner, self._path):
            if isinstance(slot.value, Tensor) and slot.value.is_floating_point():
                slot.value.data = slot.value.data.to(dtype)

    def tensors(self) -> dict[str, Tensor]:
        slots = held(self._owner, self._path)
        return {slot.path: slot.value for slot in slots if isinstance(slot.value, Tensor)}


class _Functions:
    """Values behind two functions of the user's: one returns a snapshot, the other one takes it."""

    def __init__(self, snapshot: Callable[[], Any], restore: Callable[[Any], Any], path: str) -> None:
        self._snapshot, self._restore, self._path = snapshot, restore, path

    def snapshot(self) -> Any:
        return copy.deepcopy(self._snapshot())

    def restore(self, kept: Any) -> None:
        self._restore(copy.deepcopy(kept))

    def cast(self, dtype: torch.dtype) -> None:
        """Values behind functions keep their dtype."""

    def tensors(self) -> dict[str, Tensor]:
        return {slot.path: slot.value for slot in held(self._snapshot(), self._path) if isinstance(slot.value, Tensor)}


class _StateDict(_Functions):
    """An object with ``state_dict`` and ``load_state_dict``."""

    def __init__(self, owner: Any, path: str) -> None:
        super().__init__(owner.state_dict, owner.load_state_dict, path)
