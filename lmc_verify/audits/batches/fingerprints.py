"""Fingerprints of batches: hashes that are equal where batches are, whatever they are made of."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Set
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data.data import BaseData

from lmc_verify.errors import InvalidInputError
from lmc_verify.steps.data import parts_of

__all__ = ["fingerprint", "require_values"]

_DEEPEST = 12
_WITHOUT_TEXT: Any = object.__repr__


def fingerprint(batch: Any) -> str:
    """Return a hash of all that a batch holds: tensors, arrays, plain values, and the attributes of objects.

    An object that shows nothing of what it holds is like itself alone, as long as it lives.

    Raises:
        InvalidInputError: a tensor has no values (it is on the meta device).
    """
    digest = hashlib.sha256()  # of hashlib's, the fastest one that cannot be fooled
    _add(digest, batch, "batch", 0)
    return digest.hexdigest()


def require_values(value: Tensor, path: str) -> None:
    """Refuse a tensor on the meta device, which has a shape and no values.

    Raises:
        InvalidInputError: names the tensor.
    """
    if value.device.type == "meta":
        raise InvalidInputError(
            f"{path} is on the device meta, which holds no values; make batches on a device of the model, such as cpu"
        )


def _add(digest: Any, value: Any, path: str, depth: int) -> None:
    digest.update(f"{path}:{type(value).__qualname__}".encode())
    if isinstance(value, Tensor):
        require_values(value, path)
        _add_tensor(digest, value)
    elif isinstance(value, np.ndarray) and not value.dtype.hasobject:
        digest.update(f"{value.dtype}{value.shape}".encode() + np.ascontiguousarray(value).tobytes())
    elif depth > _DEEPEST:
        digest.update(str(id(value)).encode())
    else:
        items = _items(value)
        if items is None:
            digest.update(_text(value).encode())
            return
        digest.update(str(len(items)).encode())
        for key, item in items:
            _add(digest, item, f"{path}.{key}", depth + 1)


def _items(value: Any) -> list[tuple[str, Any]] | None:
    """Return what a container or object holds, by name; None for a plain value."""
    if isinstance(value, BaseData):
        return [(f"{place}.{key}", item) for place, store in enumerate(value.stores) for key, item in store.items()]
    if isinstance(value, Mapping):
        return sorted(((repr(key), item) for key, item in value.items()), key=lambda pair: pair[0])
    if isinstance(value, list | tuple | np.ndarray):
        return [(str(index), item) for index, item in enumerate(value)]
    if isinstance(value, Set):
        return [("sorted", sorted(map(repr, value)))]
    attributes = getattr(value, "__dict__", None)
    return sorted(attributes.items()) if isinstance(attributes, dict) and not callable(value) else None


def _text(value: Any) -> str:
    """Return a value as text; one that has none of its own is like itself alone."""
    has_text = getattr(type(value), "__repr__", None) is not _WITHOUT_TEXT
    return repr(value) if has_text else str(id(value))


def _add_tensor(digest: Any, value: Tensor) -> None:
    digest.update(f"{value.dtype}{tuple(value.shape)}{value.layout}".encode())
    for part in parts_of(value.detach().cpu()):
        digest.update(part.contiguous().reshape(-1).view(torch.uint8).numpy())
