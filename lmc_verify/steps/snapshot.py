"""Snapshots of objects: every tensor, array, generator and container that an object holds, put back in place.

What was changed in place is written back in place, so that whoever else holds it sees the same values; what was bound
anew is bound to what it was; what was added is removed. Only what has changed is written.
"""

from __future__ import annotations

import logging
import random
import threading
import weakref
from collections import deque
from collections.abc import Iterator
from inspect import isroutine
from types import ModuleType
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["Held", "Snapshot", "cast_tensors", "equal_bytes", "held"]

_ATOMS = (bool, int, float, complex, str, bytes, type(None), np.generic, torch.dtype, torch.device)
_OPAQUE = (type, ModuleType, weakref.ref, weakref.ProxyType, logging.Logger, threading.Thread)
_OF_TORCH = frozenset(vars(nn.Module())) - {"_buffers", "_modules", "_parameters"}
"""Attributes that every module has: hooks, and whether it trains; nothing that a step remembers."""


class _Kept(Protocol):
    def restore(self) -> None: ...


class Snapshot:
    """The values that an object holds now, and the way back to them.

    Objects are searched by their attributes (slots, too), modules by buffers, submodules and plain attributes,
    containers by their items. Functions, types and threads are not entered.

    Args:
        owner: the object, a container of objects, or a tensor.
        path: how the owner is called in the paths of what it holds.
        parameters: also keep trainable ``nn.Parameter``; frozen ones are kept like any tensor.

    Attributes:
        tensors: what is held, by path such as ``"state.histories[0].emb"``; a tensor at two places is named once.
        arrays: NumPy arrays, likewise.
        generators: random generators of torch, NumPy and Python, likewise.
        plain: numbers, texts and the like, by path.
    """

    def __init__(self, owner: Any, path: str = "state", *, parameters: bool = False) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.arrays: dict[str, np.ndarray[Any, Any]] = {}
        self.generators: dict[str, Any] = {}
        self.plain: dict[str, Any] = {}
        self._kept: list[_Kept] = []
        seen: set[int] = set()
        waiting: list[tuple[Any, str]] = [(owner, path)]
        while waiting:  # no recursion: chains of objects may be long
            value, place = waiting.pop()
            if isinstance(value, _ATOMS):
                self.plain[place] = value
                continue
            if id(value) in seen or _is_closed(value):
                continue
            if isinstance(value, nn.Parameter) and value.requires_grad and not parameters:
                continue
            seen.add(id(value))
            waiting += reversed(list(self._keep(value, place, parameters)))

    @property
    def empty(self) -> bool:
        """Whether there is nothing that could change."""
        return not self._kept

    def restore(self) -> None:
        """Put every value back."""
        for kept in self._kept:
            kept.restore()

    def _keep(self, value: Any, path: str, parameters: bool) -> Iterator[tuple[Any, str]]:
        """Keep what a value is made of, and yield the values in it."""
        if isinstance(value, Tensor):
            self.tensors[path] = value
            self._kept.append(_Tensor(value))
            if value.is_leaf and value.grad is not None:
                yield value.grad, f"{path}.grad"
        elif isinstance(value, np.ndarray):
            self.arrays[path] = value
            self._kept.append(_Array(value))
            if value.dtype == object:
                yield from ((item, f"{path}[{index}]") for index, item in enumerate(value.flat))
        elif _state_of_generator(value) is not None:
            self.generators[path] = value
            self._kept.append(_Generator(value))
        else:
            yield from self._keep_container(value, path, parameters)

    def _keep_container(self, value: Any, path: str, parameters: bool) -> Iterator[tuple[Any, str]]:
        if isinstance(value, dict):
            self._kept.append(_Mapping(value))
            yield from ((item, f"{path}[{_key(key)}]") for key, item in value.items())
        elif isinstance(value, list | deque):
            self._kept.append(_Sequence(value))
        elif isinstance(value, set):
            self._kept.append(_Set(value))
        if isinstance(value, list | deque | tuple | set | frozenset):
            yield from ((item, f"{path}[{index}]") for index, item in enumerate(value))
        attributes = getattr(value, "__dict__", None)
        if isinstance(value, nn.Module):
            yield from self._keep_module(value, path, parameters)
        elif isinstance(attributes, dict):
            self._kept.append(_Mapping(attributes))
            yield from ((item, f"{path}.{key}") for key, item in attributes.items())
        slots = _slots(value)
        if slots:
            self._kept.append(_Slots(value, slots))
            yield from ((getattr(value, name), f"{path}.{name}") for name in slots if hasattr(value, name))

    def _keep_module(self, module: nn.Module, path: str, parameters: bool) -> Iterator[tuple[Any, str]]:
        tables: list[dict[str, Any]] = [module._buffers, module._modules, *([module._parameters] if parameters else [])]
        for table in tables:
            self._kept.append(_Mapping(table))
        skipped = _OF_TORCH | {"_buffers", "_modules", "_parameters"}
        self._kept.append(_Mapping(vars(module), skipped))
        for table in (module._parameters, *tables[:2]):
            yield from ((item, f"{path}.{key}") for key, item in table.items())
        yield from ((item, f"{path}.{key}") for key, item in vars(module).items() if key not in skipped)


class Held(NamedTuple):
    """A tensor or NumPy array that an object holds, and where."""

    path: str
    value: Any


def held(owner: Any, path: str = "state", *, parameters: bool = False) -> list[Held]:
    """Return the tensors and arrays that an object holds, see `Snapshot`."""
    found = Snapshot(owner, path, parameters=parameters)
    return [Held(place, value) for place, value in (found.tensors | found.arrays).items()]


def cast_tensors(tensors: list[Tensor], dtype: torch.dtype) -> None:
    """Convert floating-point tensors in place; those that share memory share it afterwards, too."""
    groups: dict[tuple[Any, ...], list[Tensor]] = {}
    for value in tensors:
        if value.is_floating_point() and value.dtype is not dtype:
            shared = value.layout is torch.strided and not value.is_inference()
            place = value.untyped_storage().data_ptr() if shared else id(value)
            groups.setdefault((place or id(value), value.device, value.dtype), []).append(value)
    for group in groups.values():
        if len(group) == 1:
            group[0].data = group[0].data.to(dtype)
            continue
        first = group[0].detach()
        whole = first.as_strided((first.untyped_storage().nbytes() // first.element_size(),), (1,), 0).to(dtype)
        for value in group:
            value.data = whole.as_strided(value.shape, value.stride(), value.storage_offset())


def equal_bytes(one: Tensor, two: Tensor) -> bool:
    """Whether two tensors of one shape and dtype are equal bit for bit: NaN is itself, and -0.0 is not 0.0."""
    one, two = one.detach(), two.detach()
    if one.layout is not torch.strided:
        return False
    return bool(
        torch.equal(one.contiguous().reshape(-1).view(torch.uint8), two.contiguous().reshape(-1).view(torch.uint8))
    )


def _is_closed(value: Any) -> bool:
    return isinstance(value, _OPAQUE) or isroutine(value)


def _key(key: Any) -> str:
    return f"Tensor {list(key.shape)}" if isinstance(key, Tensor) else repr(key)


def _slots(value: Any) -> list[str]:
    names: list[str] = []
    for kind in type(value).__mro__:
        own = vars(kind).get("__slots__", ())
        for name in (own,) if isinstance(own, str) else tuple(own):
            private = name.startswith("__") and not name.endswith("__")
            names.append(f"_{kind.__name__.lstrip('_')}{name}" if private else name)
    return [name for name in names if name not in ("__dict__", "__weakref__")]


class _Tensor:
    """A tensor: its memory, its values, its shape and dtype (by its memory), its gradient."""

    def __init__(self, value: Tensor) -> None:
        self.value, self.memory = value, value.detach()
        self.kept = self.memory.clone()
        self.grad = value.grad if value.is_leaf else None
        self.requires_grad = value.requires_grad

    def restore(self) -> None:
        with torch.no_grad(), torch.inference_mode(self.value.is_inference()):
            if self.memory.layout is not torch.strided:
                self.value.data = self.kept.clone()
            else:
                if not equal_bytes(self.memory, self.kept):
                    self.memory.copy_(self.kept)
                if not _same_place(self.value, self.memory):
                    self.value.data = self.memory
        if self.value.is_leaf:
            if self.value.requires_grad != self.requires_grad:
                self.value.requires_grad_(self.requires_grad)
            if self.value.grad is not self.grad:
                self.value.grad = self.grad


def _same_place(one: Tensor, two: Tensor) -> bool:
    return (
        one.dtype is two.dtype
        and one.shape == two.shape
        and one.stride() == two.stride()
        and one.data_ptr() == two.data_ptr()
    )


class _Array:
    """A NumPy array."""

    def __init__(self, value: np.ndarray[Any, Any]) -> None:
        self.value, self.kept = value, value.copy()

    def restore(self) -> None:
        if self.value.shape != self.kept.shape:
            self.value.resize(self.kept.shape, refcheck=False)
        if self.value.flags.writeable:
            np.copyto(self.value, self.kept)


class _Generator:
    """A random generator of the user's own."""

    def __init__(self, value: Any) -> None:
        self.value, self.kept = value, _state_of_generator(value)

    def restore(self) -> None:
        if isinstance(self.value, torch.Generator):
            self.value.set_state(self.kept)
        elif isinstance(self.value, np.random.Generator):
            self.value.bit_generator.state = self.kept
        elif isinstance(self.value, np.random.RandomState):
            self.value.set_state(self.kept)
        else:
            self.value.setstate(self.kept)


def _state_of_generator(value: Any) -> Any:
    """Return the state of a random generator, None for anything else."""
    if isinstance(value, torch.Generator):
        return value.get_state()
    if isinstance(value, np.random.Generator):
        return value.bit_generator.state
    if isinstance(value, np.random.RandomState):
        return value.get_state()
    return value.getstate() if isinstance(value, random.Random) else None


class _Mapping:
    """Which values a mapping holds, and in which order."""

    def __init__(self, owner: dict[Any, Any], skipped: frozenset[str] = frozenset()) -> None:
        self.owner, self.skipped = owner, skipped
        self.kept = self._items()

    def _items(self) -> list[tuple[Any, Any]]:
        return [(key, item) for key, item in self.owner.items() if not self.skipped or key not in self.skipped]

    def restore(self) -> None:
        now = self._items()
        if _identical([part for item in now for part in item], [part for item in self.kept for part in item]):
            return
        for key, _ in now:
            del self.owner[key]
        for key, item in self.kept:  # update() of a Counter adds
            self.owner[key] = item


def _identical(one: list[Any], two: list[Any]) -> bool:
    return len(one) == len(two) and all(a is b for a, b in zip(one, two, strict=True))


class _Sequence:
    """Which values a list or a deque holds."""

    def __init__(self, owner: list[Any] | deque[Any]) -> None:
        self.owner, self.kept = owner, list(owner)

    def restore(self) -> None:
        if not _identical(list(self.owner), self.kept):
            self.owner.clear()
            self.owner.extend(self.kept)


class _Set:
    """Which values a set holds."""

    def __init__(self, owner: set[Any]) -> None:
        self.owner, self.kept = owner, set(owner)

    def restore(self) -> None:
        if self.owner != self.kept:
            self.owner.clear()
            self.owner |= self.kept


class _Slots:
    """The attributes of an object with ``__slots__``."""

    def __init__(self, owner: Any, names: list[str]) -> None:
        self.owner, self.names = owner, names
        self.kept = {name: getattr(owner, name) for name in names if hasattr(owner, name)}

    def restore(self) -> None:
        for name in self.names:
            if name not in self.kept:
                if hasattr(self.owner, name):
                    object.__delattr__(self.owner, name)
            elif getattr(self.owner, name, None) is not self.kept[name] or not hasattr(self.owner, name):
                object.__setattr__(self.owner, name, self.kept[name])
