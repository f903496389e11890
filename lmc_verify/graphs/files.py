"""Tensors in memory-mapped files, and how much of them stays in memory.

A mapped file is read page by page as it is used, and a process counts its pages as its own until they are released.
Whoever goes through large files releases them after each piece, so that its memory does not grow with the files: what
was written stays in the file.
"""

from __future__ import annotations

import mmap
import os
import weakref
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lmc_verify.errors import InvalidInputError, OutputError

__all__ = [
    "WINDOW_BYTES",
    "is_mapped",
    "map_file",
    "new_file",
    "open_file",
    "put_rows",
    "release_pages",
    "resident_bytes",
    "take_rows",
    "windows",
]

WINDOW_BYTES = 2**26
"""Bytes of a large tensor that are gone through at a time: 64 MiB."""

_AROUND = 2**16
"""Bytes of a file that come into memory with one row, at most unless the row is longer: Linux maps 16 pages a fault."""

_NUMPY: dict[torch.dtype, type[np.generic]] = {
    torch.float32: np.float32,
    torch.float64: np.float64,
    torch.int32: np.int32,
    torch.int64: np.int64,
    torch.bool: np.bool_,
}

_MAPS: dict[int, tuple[weakref.ref[mmap.mmap], int]] = {}
"""Live maps by the address of their first element, with that of their end."""


def new_file(path: Path, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Make a file of zeros in NumPy's format, and return the tensor that is mapped to it.

    Raises:
        OutputError: the file cannot be written, or the disk has no room for it.
    """
    try:
        path.unlink(missing_ok=True)  # another tensor may still be mapped to it
        if 0 in shape:  # nothing to map
            np.save(path, np.zeros(shape, _NUMPY[dtype]))
            return torch.zeros(shape, dtype=dtype)
        array = np.lib.format.open_memmap(path, "w+", _NUMPY[dtype], shape)
        if hasattr(os, "posix_fallocate"):
            # A full disk is then an error here and no signal later; and pages of a file with holes are slow to write.
            with path.open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}; choose another folder") from error
    return _tensor(array)


def open_file(path: Path, *, writable: bool = False) -> Tensor:
    """Return the tensor that is mapped to a file in NumPy's format; without `writable` no change reaches the file.

    Raises:
        InvalidInputError: there is no such file, or it is damaged.
    """
    try:
        whole = np.load(path, mmap_mode="r+" if writable else "c")
        if not isinstance(whole, np.ndarray):
            raise ValueError("it holds several arrays")
        return _tensor(whole) if whole.size else torch.from_numpy(np.array(whole))
    except (OSError, ValueError, EOFError, TypeError) as error:  # TypeError: of a dtype that torch does not have
        raise InvalidInputError(f"cannot map {path}: {error}; write it again") from error


def map_file(path: Path, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return the tensor that is mapped to a file of its bytes alone; what is written into it reaches the file.

    Raises:
        OSError, ValueError: the file cannot be mapped, or is too small.
    """
    return _tensor(np.memmap(path, _NUMPY[dtype], "r+", shape=shape))


def _tensor(array: Any) -> Tensor:
    tensor = torch.from_numpy(array)
    _MAPS[tensor.data_ptr()] = (weakref.ref(array._mmap), tensor.data_ptr() + array.nbytes)
    return tensor


def is_mapped(tensor: Tensor) -> bool:
    """Return whether a tensor is mapped to a file of this module, or is a part of one that is."""
    if tensor.device.type != "cpu":
        return False
    address = tensor.data_ptr()
    return any(start <= address < stop and found() is not None for start, (found, stop) in list(_MAPS.items()))


def take_rows(table: Tensor, rows: Tensor, out: Tensor | None = None) -> Tensor:
    """Return rows of a table as a copy; those of a mapped file are released as they are read.

    Args:
        table: [n, width].
        rows: int64 [k], on the table's device.
        out: where to put them [k, width], or None for a new tensor.
    """
    if not is_mapped(table):
        return torch.index_select(table, 0, rows, out=out)
    found = table.new_empty(rows.numel(), *table.shape[1:]) if out is None else out
    for window in _scattered(table, rows):
        torch.index_select(table, 0, rows[window], out=found[window])
    return found


def put_rows(table: Tensor, rows: Tensor, values: Tensor) -> None:
    """Write values [k, width] into a table at rows int64 [k]; those of a mapped file are released as they are."""
    if not is_mapped(table):
        table[rows] = values
        return
    for window in _scattered(table, rows):
        table[rows[window]] = values[window]


def _scattered(table: Tensor, rows: Tensor) -> Iterator[slice]:
    return windows(rows.numel(), max(_AROUND, table[:1].numel() * table.element_size()))


def release_pages(*, keep: Iterable[Tensor] = ()) -> None:
    """Release the pages of all mapped files of this process; they are read again when needed.

    Args:
        keep: tensors whose files stay in memory.
    """
    kept = [tensor.data_ptr() for tensor in keep]
    for start, (reference, stop) in list(_MAPS.items()):
        found = reference()
        if found is None:
            _MAPS.pop(start, None)
        elif not any(start <= address < stop for address in kept) and hasattr(mmap, "MADV_DONTNEED"):
            found.madvise(mmap.MADV_DONTNEED)


def windows(size: int, bytes_each: int, limit: int = WINDOW_BYTES) -> Iterator[slice]:
    """Yield the windows of consecutive elements that cover a range, and release mapped pages after each.

    Args:
        size: number of elements.
        bytes_each: bytes of one.
        limit: bytes of a window, of at least one element.
    """
    step = max(limit // max(bytes_each, 1), 1)
    for start in range(0, size, step):
        yield slice(start, min(start + step, size))
        release_pages()


def resident_bytes(*, peak: bool = False) -> int | None:
    """Return the resident memory of this process, or its peak so far; None where the system does not say."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    name = "VmHWM:" if peak else "VmRSS:"
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))
