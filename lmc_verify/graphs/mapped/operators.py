"""Operators in memory-mapped files, built bucket by bucket within a limit of memory.

A bucket is a range of rows. The edges into it are picked out of the edge list, window by window, then normalised and
sorted as for an operator in memory, so that both hold the same entries in the same order. What is kept in memory
besides a bucket are a few numbers a node: offsets and degrees.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lmc_verify.errors import InvalidInputError, folder_error
from lmc_verify.graphs.files import new_file, open_file, release_pages, windows
from lmc_verify.graphs.graph import Graph
from lmc_verify.graphs.operators import Block, normalised_edges, operator_features, with_self_loops
from lmc_verify.graphs.sparse import CSR, index_dtype

__all__ = ["map_operators"]

_ENTRY_BYTES = 160
"""Memory that sorting takes for each entry of a bucket: edges, copies, and the arrays of the sort."""

_DONE = "operator.json"


def map_operators(
    graph: Graph, kinds: set[str], folder: Path, *, memory: int, listen: Callable[[], None] | None = None
) -> dict[str, Block]:
    """Return whole operators, with their transposes, in mapped files; those that are there already are used.

    A graph gives them within `Graph.using_operators`.

    Args:
        graph: on the CPU.
        kinds: names of operators, see `lmc_verify.graphs.operators.OPERATORS`.
        folder: where the files are written.
        memory: bytes that building may take, besides a few numbers a node.
        listen: is called after every bucket that was written.

    Raises:
        InvalidInputError: as `Graph.operator`.
        OutputError: the files cannot be written.
    """
    blocks = {}
    for kind in sorted(kinds):
        # A name may hold characters that no file may.
        place = folder / f"{kind.partition(':')[0]}-{hashlib.blake2b(kind.encode(), digest_size=4).hexdigest()}"
        made: dict[str, object] = {"kind": kind, "graph": graph.checksum, "dtype": str(graph.dtype)}
        known = _read(place / _DONE)
        if known is None or {**known, "symmetric": None} != {**made, "symmetric": None}:
            made["symmetric"] = _write(graph, kind, place, max(memory // _ENTRY_BYTES, 1), listen)
            (place / _DONE).write_text(json.dumps(made), encoding="utf-8")
        else:
            made["symmetric"] = known["symmetric"]
        blocks[kind] = _opened(place, graph.num_nodes, symmetric=bool(made["symmetric"]))
    return blocks


def _read(file: Path) -> dict[str, object] | None:
    try:
        found: dict[str, object] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found


def _opened(place: Path, num_nodes: int, *, symmetric: bool) -> Block:
    def matrix(suffix: str) -> CSR:
        rowptr, col, value = (open_file(place / f"{name}{suffix}.npy") for name in ("rowptr", "col", "value"))
        return CSR(rowptr, col, value, num_nodes)

    csr = matrix("")
    csr_t = csr if symmetric else matrix("_t")
    attr = place / "edge_attr.npy"
    features = open_file(attr) if attr.exists() else None
    return Block(csr, csr.rowptr.diff().long(), features, _cache={"t": csr_t})


def _write(graph: Graph, kind: str, place: Path, entries: int, listen: Callable[[], None] | None) -> bool:
    """Write an operator with its transpose; return whether it is symmetric, and so its own transpose."""
    try:
        place.mkdir(parents=True, exist_ok=True)
        for old in place.iterdir():
            old.unlink()
    except OSError as error:
        raise folder_error(place, error, f"cannot write to {place}") from error
    csr = _Building(graph, kind, place, entries, listen or _nothing).run()
    symmetric = _symmetric(csr)
    if not symmetric:
        _transpose(csr, place, entries, listen or _nothing)
    release_pages()
    return symmetric


def _nothing() -> None:
    pass


class _Building:
    """One operator on its way into files: rows are counted, then filled bucket by bucket, then normalised."""

    def __init__(self, graph: Graph, kind: str, place: Path, entries: int, listen: Callable[[], None]) -> None:
        self.graph, self.kind, self.place, self.entries, self.listen = graph, kind, place, entries, listen

    def run(self) -> CSR:
        graph, n = self.graph, self.graph.num_nodes
        counts = self._count()
        self.rowptr = _offsets(counts, n, self.place / "rowptr.npy")
        total = int(self.rowptr[-1])
        self.col = new_file(self.place / "col.npy", (total,), self.rowptr.dtype)
        self.value = new_file(self.place / "value.npy", (total,), graph.dtype)
        self.features: Tensor | None = None
        self.degree = torch.zeros(n if self.kind == "gcn" else 0, dtype=graph.dtype)
        for rows in _buckets(self.rowptr, self.entries):
            self._fill(rows)
            release_pages()
            self.listen()
        if self.kind == "gcn":
            self._normalise()
        return CSR(self.rowptr, self.col, self.value, n)

    def _count(self) -> Tensor:
        """Return the number of entries of every row [n], int64."""
        n, loops = self.graph.num_nodes, self.kind == "gcn" or self.kind.startswith("loops")
        counts = torch.full((n,), int(loops), dtype=torch.int64)
        for edges in self._edges():
            target = self.graph.edge_index[1, edges]
            if loops:  # each row has exactly one
                target = target[self.graph.edge_index[0, edges] != target]
            counts += torch.bincount(target, minlength=n)
        return counts

    def _edges(self) -> Iterator[slice]:
        return windows(self.graph.num_edges, _ENTRY_BYTES, self.entries * _ENTRY_BYTES)

    def _fill(self, rows: slice) -> None:
        """Write the entries of some rows."""
        graph, size = self.graph, rows.stop - rows.start
        numbers = []
        for window in self._edges():
            target = graph.edge_index[1, window]
            numbers.append(((target >= rows.start) & (target < rows.stop)).nonzero()[:, 0] + window.start)
        number = torch.cat(numbers) if numbers else torch.zeros(0, dtype=torch.int64)
        # Nodes are renamed so that the rows come first: they have all of their in-edges, and get their self-loops.
        edges = torch.remainder(graph.edge_index[:, number] - rows.start, graph.num_nodes)
        weight = None if graph.edge_weight is None else graph.edge_weight[number]
        attr = None if graph.edge_attr is None else graph.edge_attr[number]
        features = operator_features(self.kind, edges, attr, size, graph.dtype)
        if self.kind == "gcn":
            edges, value = self._with_self_loops(edges, weight, rows)
        else:
            edges, value = normalised_edges(self.kind, edges, weight, size, graph.dtype)
        source = torch.remainder(edges[0] + rows.start, graph.num_nodes)
        order = CSR.from_coo(edges[1], source, torch.arange(edges.shape[1]), size, graph.num_nodes)
        where = slice(int(self.rowptr[rows.start]), int(self.rowptr[rows.stop]))
        self.col[where] = order.col.to(self.col.dtype)
        self.value[where] = value[order.value]
        if features is not None:
            if self.features is None:
                shape = (self.value.numel(), features.shape[1])
                self.features = new_file(self.place / "edge_attr.npy", shape, graph.dtype)
            self.features[where] = features[order.value]

    def _with_self_loops(self, edges: Tensor, weight: Tensor | None, rows: slice) -> tuple[Tensor, Tensor]:
        """Return the edges with one self-loop a row, and their weights; note the weighted in-degrees of the rows."""
        dtype, size = self.graph.dtype, rows.stop - rows.start
        if weight is None:
            weight = torch.ones(edges.shape[1], dtype=dtype)
        edges, value = with_self_loops(edges, weight.to(dtype), size)
        self.degree[rows] = value.new_zeros(size).scatter_add_(0, edges[1], value)
        return edges, value

    def _normalise(self) -> None:
        """Turn the weights into ``d_j^(-1/2) w d_i^(-1/2)``, with the in-degrees d of sources j and rows i."""
        scale = self.degree.pow_(-0.5)
        scale.masked_fill_(scale == float("inf"), 0)
        for rows in _buckets(self.rowptr, self.entries):
            where = slice(int(self.rowptr[rows.start]), int(self.rowptr[rows.stop]))
            counts = self.rowptr[rows.start : rows.stop + 1].diff()
            value = self.value[where]
            value.mul_(scale[self.col[where].long()])
            value.mul_(scale[rows].repeat_interleave(counts, output_size=value.numel()))
            if not torch.isfinite(value).all():
                raise InvalidInputError(
                    "the GCN normalisation needs weighted in-degrees (self-loop included) of at least 0, but some are "
                    "negative; use non-negative edge weights or a layer with the 'sum' operator"
                )
            release_pages()


def _offsets(counts: Tensor, num_columns: int, path: Path) -> Tensor:
    """Write the offsets of rows of so many entries to a file."""
    dtype = index_dtype(counts.numel(), num_columns, int(counts.sum()))
    rowptr = new_file(path, (counts.numel() + 1,), dtype)
    torch.cumsum(counts, 0, dtype=dtype, out=rowptr[1:])
    return rowptr


def _buckets(rowptr: Tensor, entries: int) -> Iterator[slice]:
    """Yield ranges of rows that cover all of them, of at most so many entries or one row."""
    start, last = 0, rowptr.numel() - 1
    while start < last:
        limit = min(int(rowptr[start]) + entries, int(rowptr[-1]))
        stop = int(torch.searchsorted(rowptr, torch.tensor(limit, dtype=rowptr.dtype), right=True)) - 1
        stop = min(max(stop, start + 1), last)
        yield slice(start, stop)
        start = stop


def _transpose(csr: CSR, place: Path, entries: int, listen: Callable[[], None]) -> None:
    """Write the transpose as `CSR.transpose` makes it, bucket by bucket of its rows."""
    counts = torch.zeros(csr.num_columns, dtype=torch.int64)
    for rows in _buckets(csr.rowptr, entries):
        counts += torch.bincount(csr.col[_entries(csr, rows)], minlength=csr.num_columns)
        release_pages()
    rowptr = _offsets(counts, csr.num_rows, place / "rowptr_t.npy")
    col = new_file(place / "col_t.npy", (csr.num_entries,), csr.col.dtype)
    value = new_file(place / "value_t.npy", (csr.num_entries,), csr.value.dtype)
    for bucket in _buckets(rowptr, entries):
        found = [part for rows in _buckets(csr.rowptr, entries) for part in [_picked(csr, rows, bucket)]]
        row, column, entry = (torch.cat(parts) for parts in zip(*found, strict=True))
        ordered = CSR.from_coo(column, row, entry, bucket.stop - bucket.start, csr.num_rows)
        where = slice(int(rowptr[bucket.start]), int(rowptr[bucket.stop]))
        col[where], value[where] = ordered.col.to(col.dtype), ordered.value
        release_pages()
        listen()


def _entries(csr: CSR, rows: slice) -> slice:
    return slice(int(csr.rowptr[rows.start]), int(csr.rowptr[rows.stop]))


def _rows_of(csr: CSR, rows: slice) -> Tensor:
    """Return the row of each entry of some rows."""
    counts = csr.rowptr[rows.start : rows.stop + 1].diff()
    return torch.arange(rows.start, rows.stop).repeat_interleave(counts)


def _picked(csr: CSR, rows: slice, columns: slice) -> tuple[Tensor, Tensor, Tensor]:
    """Return the entries of some rows in some columns: (row, column among those, value), row by row."""
    where = _entries(csr, rows)
    column = csr.col[where].long()
    inside = (column >= columns.start) & (column < columns.stop)
    picked = _rows_of(csr, rows)[inside], column[inside] - columns.start, csr.value[where][inside]
    release_pages()
    return picked


def _symmetric(csr: CSR) -> bool:
    """Whether the entries and the transposed entries are the same ones, bit for bit, by the sum of a 64-bit hash.

    Comparing them directly would need the transpose. Two different sums prove that it differs; equal ones of matrices
    that differ have a probability of 2^-64.
    """
    if csr.num_rows != csr.num_columns:
        return False
    one = other = 0
    bits = np.uint32 if csr.value.dtype == torch.float32 else np.uint64
    for rows in _buckets(csr.rowptr, 2**20):
        where = _entries(csr, rows)
        row, col = _rows_of(csr, rows).numpy().view(np.uint64), csr.col[where].long().numpy().view(np.uint64)
        value = csr.value[where].numpy().view(bits).astype(np.uint64)
        size = np.uint64(csr.num_rows)
        one += int(_mixed(_mixed(row * size + col) ^ value).sum(dtype=np.uint64))
        other += int(_mixed(_mixed(col * size + row) ^ value).sum(dtype=np.uint64))
        release_pages()
    return (one - other) % 2**64 == 0


def _mixed(key: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return a hash of each key, the finaliser of SplitMix64 [Steele, Lea and Flood, OOPSLA 2014]."""
    key = key + np.uint64(0x9E3779B97F4A7C15)
    key = (key ^ (key >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    key = (key ^ (key >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return key ^ (key >> np.uint64(31))
