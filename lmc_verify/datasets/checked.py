"""Raw files from anywhere: pickles that are arrays only, sparse matrices that stay in bounds, pinned downloads.

The libraries that read raw files trust them: a pickle may run any code, and an index outside a sparse matrix is read
and written where it points. What is looked at here comes first.
"""

from __future__ import annotations

import hashlib
import math
import pickle
import ssl
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np

from lmc_verify.errors import InvalidInputError

__all__ = [
    "PINNED",
    "check_archive",
    "checked_download",
    "checked_pickles",
    "require_bounds",
    "sha256_of",
    "wrong_pins",
]

PINNED = {
    "CS/raw/ms_academic_cs.npz": "933c745734e78908c7eb77172a673fee0503f30e26e5a99b36814d88534c42e3",
    "Computers/raw/amazon_electronics_computers.npz": (
        "736ba1d9fd85eac2da83a5ad25c463f04b0031a6ca01563f90a7099d9e8ffb2c"
    ),
    "Cora/raw/ind.cora.allx": "9419ba2f26f5c35243db64aba110e0f35a04851609e0dc5433450676ca6b8543",
    "Cora/raw/ind.cora.ally": "2b998f5cc7fedc86e7f97ca2498f47a1ffc1462c29e2d578b23bf3f62b6e7d71",
    "Cora/raw/ind.cora.graph": "58f13302f39dde8852dad6fe6d15b89b077b6d7f837626bce671ef80344b383d",
    "Cora/raw/ind.cora.test.index": "297ce89af2b51a6a194181c7dbe1796c6a1cf9cd9349a88383b1b1e227867875",
    "Cora/raw/ind.cora.tx": "b9afbaa4a400df991f6f02ef677e1e44da55ffc04801fd02f9e673987829226a",
    "Cora/raw/ind.cora.ty": "41f5ac76596a1699cc33f53084a2419e92961c42bb75f36fc38e616d348532ad",
    "Cora/raw/ind.cora.x": "23cfa55d91c6f624233f5eb7b6e3f141f1bd2b2ae39608a63cf5d084bb27baab",
    "Cora/raw/ind.cora.y": "94465c14eb53e04ca262198dcbb2521ee8af60fb3f3d546cd6ca24a511b0e7d1",
    "Photo/raw/amazon_electronics_photo.npz": "bdb1feb8e6ff42ee44024b04479145029c563fd42fc31bff80af20887ba0439a",
    "minesweeper/raw/minesweeper.npz": "e664c8dacf1e8ac466c2c09ed4b237bd2c5541f47a6eae9c6092cb87f16412b3",
    "tolokers/raw/tolokers.npz": "dacf3ac94cec53d03cd2adb5255c08b33dee1656c33ca8164a464bd9450a1667",
}
"""SHA-256 of downloaded files, by their path under the data root. A file that is not here is taken as it comes."""

MOST_ENTRIES = 2**31
"""The most entries of a dense matrix that a raw file may unfold to: 8 GiB in single precision."""

_GLOBALS = {
    *((f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
    *(("numpy", name) for name in ("ndarray", "dtype")),
    *((f"scipy.sparse.{module}", "csr_matrix") for module in ("csr", "_csr")),
    ("collections", "defaultdict"),
    ("builtins", "list"),
    ("__builtin__", "list"),  # as Python 2 spelled it
    ("_codecs", "encode"),
}
"""What the pickles of Planetoid's files are made of."""


class _Unpickler(pickle._Unpickler):  # in Python: that in C makes room for an entry's number, whatever it is
    stack: list[Any]

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _GLOBALS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, and may hold arrays and sparse matrices only")
        return super().find_class(module, name)

    def load_build(self) -> None:
        # numpy trusts what an array or a dtype is made of: a wrong one takes the process with it.
        of, state = self.stack[-2:] if len(self.stack) > 1 else (None, None)
        if (isinstance(of, np.dtype) and not _is_of_numbers(state)) or (
            isinstance(of, np.ndarray) and not _is_of_array(state)
        ):
            raise pickle.UnpicklingError(
                f"it holds a {type(of).__name__} of {state!r:.80}, arrays of numbers are needed"
            )
        super().load_build()  # type: ignore[misc]  # typeshed leaves it out

    dispatch: ClassVar[dict[int, Any]] = {**pickle._Unpickler.dispatch, pickle.BUILD[0]: load_build}


def _is_of_numbers(state: Any) -> bool:
    """Whether a state is that of a dtype of numbers: its version, the order of bytes, and neither fields nor flags."""
    return (
        isinstance(state, tuple)
        and state[2:] == (None, None, None, -1, -1, 0)
        and state[0] == 3
        and state[1] in ("<", ">", "=", "|")
    )


def _is_of_array(state: Any) -> bool:
    """Whether a state is that of an array of numbers: version, shape, dtype, order of axes, and as many bytes."""
    if not isinstance(state, tuple) or len(state) != 5:
        return False
    _, shape, dtype, _, values = state
    if not isinstance(shape, tuple) or not all(isinstance(size, int) and size >= 0 for size in shape):
        return False
    if not isinstance(dtype, np.dtype) or dtype.kind not in "biuf" or not isinstance(values, str | bytes):
        return False
    return len(values) == math.prod(shape) * dtype.itemsize


def _load(file: Any, **options: Any) -> Any:
    """Read a pickle of Planetoid's: an array, a sparse matrix, or the neighbours of each node."""
    try:
        found = _Unpickler(file, **options).load()
    except MemoryError as error:
        raise InvalidInputError("it asks for more memory than there is") from error
    if isinstance(found, Mapping):
        _require_nodes(found)
    elif hasattr(found, "indptr"):
        require_bounds("the matrix", found.indices, found.indptr, found.shape, found.data, dense=True)
    elif not isinstance(found, np.ndarray) or found.dtype.hasobject:
        raise InvalidInputError(f"it holds a {type(found).__name__}, an array or a sparse matrix is needed")
    return found


@contextmanager
def checked_pickles() -> Iterator[None]:
    """Let PyTorch Geometric read pickles with the unpickler of this module; not for several threads at once."""
    from torch_geometric.io import planetoid

    with _swapped(planetoid, "pickle", SimpleNamespace(load=_load)):
        yield


@contextmanager
def checked_download() -> Iterator[None]:
    """Let PyTorch Geometric check the certificates of the servers that it downloads from, which it does not."""
    import torch_geometric.data.download as module

    with _swapped(module, "ssl", SimpleNamespace(_create_unverified_context=ssl.create_default_context)):
        yield


@contextmanager
def _swapped(module: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


def _require_nodes(neighbours: Mapping[Any, Any]) -> None:
    count = len(neighbours)
    for node, others in neighbours.items():
        if not isinstance(others, list):
            raise InvalidInputError(f"the neighbours of node {node!r:.40} are a {type(others).__name__}, not a list")
        for item in (node, *others):
            if not isinstance(item, int) or not 0 <= item < count:
                raise InvalidInputError(f"node {node!r:.40} or a neighbour is {item!r:.40}; there are {count} nodes")


def require_bounds(what: str, indices: Any, indptr: Any, shape: Any, data: Any, *, dense: bool) -> None:
    """Raise InvalidInputError unless the arrays are those of a sparse matrix by rows (CSR), with every index in it.

    Args:
        what: name of the matrix, for messages.
        indices: column of each entry.
        indptr: where each row begins.
        shape: rows and columns.
        data: value of each entry.
        dense: whether it is made dense when it is read, so that its size is limited.
    """
    arrays = {"indices": indices, "indptr": indptr, "shape": np.asarray(shape)}
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray) or array.dtype.kind not in "iu" or array.ndim != 1:
            raise InvalidInputError(f"{what}: {name} is no list of whole numbers")
    if not isinstance(data, np.ndarray) or data.ndim != 1 or data.dtype.kind not in "biuf":
        raise InvalidInputError(f"{what}: its values are no list of numbers")
    if len(arrays["shape"]) != 2 or min(arrays["shape"]) < 0:
        raise InvalidInputError(f"{what}: its shape is {shape!r:.80}, rows and columns are needed")
    rows, columns = (int(item) for item in arrays["shape"])
    if dense and rows * columns > MOST_ENTRIES:
        raise InvalidInputError(f"{what}: {rows:,} x {columns:,} entries are more than the {MOST_ENTRIES:,} allowed")
    steps = np.diff(indptr.astype(np.int64, copy=False))
    if len(indptr) != rows + 1 or indptr[0] != 0 or (steps < 0).any() or indptr[-1] != len(indices):
        raise InvalidInputError(f"{what}: indptr does not divide {len(indices)} indices into {rows} rows")
    if len(data) != len(indices):
        raise InvalidInputError(f"{what}: it has {len(indices)} indices and {len(data)} values")
    if len(indices) and not 0 <= int(indices.min()) <= int(indices.max()) < columns:
        raise InvalidInputError(
            f"{what}: column {int(indices.min())} or {int(indices.max())} is outside of the {columns} columns"
        )


def check_archive(file: Path) -> None:
    """Raise InvalidInputError for an npz file whose sparse matrices or edges point outside of them."""
    with zipfile.ZipFile(file) as archive:
        size = sum(item.file_size for item in archive.infolist())
    if size > 4 * MOST_ENTRIES:
        raise InvalidInputError(f"{file.name} unfolds to {size:,} bytes, at most {4 * MOST_ENTRIES:,} are read")
    with np.load(file) as arrays:
        for name in arrays.files:
            if name.endswith("indptr"):
                head = name.removesuffix("indptr")
                parts = (arrays[head + part] for part in ("indices", "indptr", "shape", "data"))
                what = f"{head.strip('_') or 'the matrix'} of {file.name}"
                require_bounds(what, *parts, dense=head.startswith("attr"))
        if "edges" in arrays and "node_labels" in arrays:
            edges, nodes = arrays["edges"], len(arrays["node_labels"])
            if edges.size and not 0 <= edges.min() <= edges.max() < nodes:
                raise InvalidInputError(f"{file.name} has edges outside of its {nodes} nodes")


def sha256_of(file: Path) -> str:
    """Return the SHA-256 hex digest of a file."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def wrong_pins(root: Path, files: tuple[Path, ...]) -> list[str]:
    """Return a sentence for each file under a folder that is not the pinned one."""
    return [
        f"{path.as_posix()} has SHA-256 {found}, {PINNED[path.as_posix()]} is pinned"
        for path in files
        if path.as_posix() in PINNED and (found := sha256_of(root / path)) != PINNED[path.as_posix()]
    ]
