"""Compressed sparse rows and the one sparse product that the package uses.

`spmm` multiplies a sparse block with dense rows and differentiates with the block's stored transpose, so
neither direction ever scatters. Which primitive is fastest depends on dtype and device; `CSR.matmul` picks it. On a CPU
it works on pieces of rows whose results fit into the cache (see `CSR.pieces`).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import torch
from scipy import sparse
from torch import Tensor
from torch.nn.functional import embedding_bag

from lmc_verify.errors import InvalidInputError, require_kind
from lmc_verify.graphs.files import is_mapped, release_pages

if TYPE_CHECKING:
    from torch.autograd.function import FunctionCtx

__all__ = ["CSR", "SparseMatrix", "index_dtype", "piece_rows", "spmm"]

PIECE_ELEMENTS = 2**20
"""Elements of a result that is worked on at a time on a CPU: 4 MiB of float32. Larger results are written to memory
that the operating system maps page by page, which takes longer than the product itself."""


def piece_rows(device: torch.device, width: int, num_rows: int) -> int:
    """Return how many rows of a given width are worked on at a time: all of them on a GPU."""
    return max(PIECE_ELEMENTS // max(width, 1), 1) if device.type == "cpu" else max(num_rows, 1)


def index_dtype(num_rows: int, num_columns: int, num_entries: int) -> torch.dtype:
    """Return int32 when every index and offset fits, else int64."""
    limit = torch.iinfo(torch.int32).max
    return torch.int32 if max(num_rows, num_columns, num_entries) <= limit else torch.int64


@dataclass(frozen=True, eq=False)
class CSR:
    """A sparse matrix in compressed rows: `rowptr` [rows + 1], `col` [entries], `value` [entries].

    Duplicate entries are allowed and add up. Indices are int32 or int64, both arrays alike.
    """

    rowptr: Tensor
    col: Tensor
    value: Tensor
    num_columns: int

    def __getstate__(self) -> dict[str, Any]:
        """Leave behind what is worked out on demand: torch cannot copy its own sparse tensors."""
        return {key: getattr(self, key) for key in ("rowptr", "col", "value", "num_columns")}

    @property
    def num_rows(self) -> int:
        """Number of rows."""
        return self.rowptr.numel() - 1

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.num_rows, self.num_columns

    @property
    def num_entries(self) -> int:
        """Number of stored entries, duplicates included."""
        return self.col.numel()

    @property
    def num_bytes(self) -> int:
        """Memory held by the three arrays."""
        return sum(part.numel() * part.element_size() for part in (self.rowptr, self.col, self.value))

    @classmethod
    def from_coo(cls, row: Tensor, col: Tensor, value: Tensor, num_rows: int, num_columns: int) -> CSR:
        """Build from coordinates in any order; entries of a row are sorted by column, ties keep their order."""
        dtype = index_dtype(num_rows, num_columns, col.numel())
        row, col = row.to(dtype), col.to(dtype)
        order = _stable_order(col, num_columns)
        order = order.index_select(0, _stable_order(row.index_select(0, order), num_rows))
        return cls._from_ordered(row, col.index_select(0, order), value.index_select(0, order), num_rows, num_columns)

    @classmethod
    def from_sorted(cls, row: Tensor, col: Tensor, value: Tensor, num_rows: int, num_columns: int) -> CSR:
        """Build from coordinates whose rows already ascend."""
        dtype = index_dtype(num_rows, num_columns, col.numel())
        return cls._from_ordered(row, col.to(dtype), value, num_rows, num_columns)

    @classmethod
    def _from_ordered(cls, rows: Tensor, col: Tensor, value: Tensor, num_rows: int, num_columns: int) -> CSR:
        """Build from columns and values that are in order; `rows` are only counted."""
        rowptr = torch.zeros(num_rows + 1, dtype=col.dtype, device=col.device)
        torch.cumsum(torch.bincount(rows, minlength=num_rows), 0, dtype=col.dtype, out=rowptr[1:])
        return cls(rowptr, col, value, num_columns)

    @cached_property
    def row(self) -> Tensor:
        """Row index of every entry [entries], int64."""
        return self._rows().long()

    def _rows(self) -> Tensor:
        rows = torch.arange(self.num_rows, dtype=self.rowptr.dtype, device=self.rowptr.device)
        return rows.repeat_interleave(self.rowptr.diff(), output_size=self.num_entries)

    def transpose(self) -> CSR:
        """Return the transposed matrix; the entries of a row keep the order in which their rows had them."""
        # Entries are visited row by row, so a stable sort by column leaves them sorted by (column, row).
        order = _stable_order(self.col, self.num_columns)
        rows = self._rows().index_select(0, order)
        return CSR._from_ordered(self.col, rows, self.value.index_select(0, order), self.num_columns, self.num_rows)

    def equals(self, other: CSR) -> bool:
        """Whether both matrices store the same entries in the same order, bit for bit."""
        pairs = ((self.rowptr, other.rowptr), (self.col, other.col), (self.value, other.value))
        return self.num_columns == other.num_columns and all(torch.equal(left, right) for left, right in pairs)

    @cached_property
    def _pieces(self) -> dict[int, Sequence[tuple[slice, CSR]]]:
        return {}

    def pieces(self, size: int) -> Sequence[tuple[slice, CSR]]:
        """Return the matrix in pieces of at most `size` consecutive rows, as (rows, piece); entries are shared."""
        if size >= self.num_rows:
            return [(slice(0, self.num_rows), self)]
        if size not in self._pieces:
            starts = list(range(0, self.num_rows, size))
            stops = [*starts[1:], self.num_rows]
            bounds = self.rowptr[torch.tensor([*starts, self.num_rows], device=self.rowptr.device)].tolist()
            self._pieces[size] = [
                (
                    slice(start, stop),
                    CSR(
                        self.rowptr[start : stop + 1] - first,
                        self.col[first:last],
                        self.value[first:last],
                        self.num_columns,
                    ),
                )
                for start, stop, first, last in zip(starts, stops, bounds, bounds[1:], strict=False)
            ]
        return self._pieces[size]

    def select_rows(self, rows: Tensor) -> CSR:
        """Return the given rows [rows] as a matrix of their own, columns as they are.

        Vectorised: cost is proportional to the number of entries returned.
        """
        start = self.rowptr[rows]
        counts = self.rowptr[rows + 1] - start
        rowptr = self.rowptr.new_zeros(rows.numel() + 1)
        torch.cumsum(counts, 0, dtype=rowptr.dtype, out=rowptr[1:])
        total = int(rowptr[-1])
        shift = (start - rowptr[:-1]).repeat_interleave(counts, output_size=total)
        entry = torch.arange(total, dtype=rowptr.dtype, device=rows.device).add_(shift)
        chosen = CSR(rowptr, self.col.index_select(0, entry), self.value.index_select(0, entry), self.num_columns)
        if is_mapped(self.col):
            release_pages()  # or whatever batches read would stay, until it is the whole file
        return chosen

    def gather_rows(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the entries of the given rows: (position of the row in `rows`, column, value)."""
        chosen = self.select_rows(rows)
        return chosen.row, chosen.col.long(), chosen.value

    def renamed(self, names: Tensor, num_columns: int) -> CSR:
        """Return the matrix with other columns; entries without one are left out.

        Args:
            names: the new column of every entry [entries], below `num_columns`; negative for none.
            num_columns: number of columns of the result.
        """
        dtype = self.rowptr.dtype
        inside = names >= 0
        if bool(inside.all()):
            return CSR(self.rowptr, names.to(dtype), self.value, num_columns)
        before = torch.zeros(self.num_entries + 1, dtype=dtype, device=names.device)
        torch.cumsum(inside, 0, dtype=dtype, out=before[1:])
        return CSR(before[self.rowptr], names[inside].to(dtype), self.value[inside], num_columns)

    @cached_property
    def _torch(self) -> Tensor:
        with warnings.catch_warnings():
            # torch announces once per process that its CSR layout is in beta; some versions also that nothing is
            # checked, although the call says so.
            warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
            warnings.filterwarnings("ignore", message="Sparse invariant checks are implicitly disabled")
            return torch.sparse_csr_tensor(
                self.rowptr,
                self.col,
                self.value,
                size=(self.num_rows, self.num_columns),
                check_invariants=False,
            )

    def matmul(self, dense: Tensor, out: Tensor | None = None) -> Tensor:
        """Return `self @ dense` for dense [columns, width], without a gradient rule.

        float32 on a CPU goes through `embedding_bag`, which reads the rows in place; float64 and CUDA go
        through torch's CSR product, which is faster there.

        Args:
            dense: [columns, width].
            out: where to put the result [rows, width], or None for a new tensor.
        """
        pieces = self.pieces(piece_rows(dense.device, dense.shape[1], self.num_rows))
        if len(pieces) == 1:
            product = self.product(dense)
            return product if out is None else out.copy_(product)
        if out is None:
            out = dense.new_empty(self.num_rows, dense.shape[1])
        for rows, piece in pieces:
            out[rows] = piece.product(dense)
        return out

    def product(self, dense: Tensor) -> Tensor:
        """Return `self @ dense` in one piece; see `matmul`."""
        if self.num_entries == 0 or dense.shape[1] == 0:
            return dense.new_zeros(self.num_rows, dense.shape[1])
        if dense.device.type == "cpu" and dense.dtype == torch.float32:
            return embedding_bag(
                self.col,
                dense,
                self.rowptr,
                mode="sum",
                per_sample_weights=self.value,
                include_last_offset=True,
            )
        product: Tensor = self._torch @ dense.contiguous()
        return product

    def to_dense(self) -> Tensor:
        """Return the dense matrix [rows, columns]; duplicates are added."""
        dense = self.value.new_zeros(self.num_rows, self.num_columns)
        return dense.index_put_((self.row, self.col.long()), self.value, accumulate=True)


def _stable_order(key: Tensor, bound: int) -> Tensor:
    """Return the order [entries] that sorts keys in 0 ... bound-1 and leaves equal ones as they are."""
    if key.device.type != "cpu":
        return torch.argsort(key, stable=True)
    # One entry per row, in the column of its key: by columns, that is sorted. scipy counts where torch would compare.
    every = torch.arange(key.numel() + 1, dtype=key.dtype).numpy()
    entries = sparse.csr_matrix((every[:-1], key.numpy(), every), shape=(key.numel(), bound))
    return torch.from_numpy(entries.tocsc().data)


class SparseMatrix(Protocol):
    """What `spmm` multiplies with: a CSR matrix and its stored transpose."""

    @property
    def csr(self) -> CSR:
        """The matrix by rows."""

    @property
    def csr_t(self) -> CSR:
        """Its transpose by rows."""


@dataclass(frozen=True, eq=False)
class _Pair:
    """A matrix with its transpose, built when first asked for."""

    csr: CSR
    _cache: dict[str, CSR] = field(default_factory=dict, repr=False)

    @property
    def csr_t(self) -> CSR:
        if "t" not in self._cache:
            self._cache["t"] = self.csr.transpose()
        return self._cache["t"]


class _SpMM(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, dense: Tensor, matrix: SparseMatrix) -> Tensor:
        ctx.matrix = matrix  # type: ignore[attr-defined]  # not a tensor: nothing to save for backward
        return matrix.csr.matmul(dense)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, None]:
        matrix: SparseMatrix = ctx.matrix  # type: ignore[attr-defined]  # set in forward
        return matrix.csr_t.matmul(grad), None


def spmm(block: SparseMatrix | CSR, dense: Tensor) -> Tensor:
    """Multiply a sparse block with a dense matrix, differentiable once in the dense factor.

    Args:
        block: a `Block` [rows, columns], or a `CSR`, whose transpose is built when a gradient needs it.
        dense: [columns, width], same dtype and device as the block's values.

    Returns:
        The product [rows, width]. Each output row is one sequential sum, so it does not depend on threads.

    Raises:
        InvalidInputError: an argument of another kind, or shapes, dtypes or devices that do not match.
    """
    matrix: SparseMatrix = _Pair(block) if isinstance(block, CSR) else block
    csr = getattr(matrix, "csr", None)
    if not isinstance(csr, CSR):
        raise InvalidInputError(
            f"block is a {type(block).__name__}, it must be a Block or a CSR matrix; look at the order of the arguments"
        )
    require_kind("dense", dense, Tensor)
    if dense.dim() != 2 or dense.shape[0] != csr.num_columns:
        raise InvalidInputError(
            f"spmm needs a dense matrix with {csr.num_columns} rows (the block's columns), "
            f"got shape {tuple(dense.shape)}; give one row for each"
        )
    if dense.dtype != csr.value.dtype:
        raise InvalidInputError(
            f"spmm needs equal dtypes, got block {csr.value.dtype} and dense {dense.dtype}; convert one of them"
        )
    if dense.device != csr.value.device:
        raise InvalidInputError(
            f"the block is on {csr.value.device} and dense on {dense.device}; move one of them to the other's device"
        )
    product: Any = _SpMM.apply(dense, matrix)  # type: ignore[no-untyped-call]  # untyped in torch
    result: Tensor = product
    return result
