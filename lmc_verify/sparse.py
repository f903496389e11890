"""Compressed sparse rows and the one sparse product that the package uses.

`spmm` multiplies a sparse block with dense rows and differentiates with the block's stored transpose, so
neither direction ever scatters. Which primitive is fastest depends on dtype and device; `CSR.matmul` picks it.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

if TYPE_CHECKING:
    from torch.autograd.function import FunctionCtx

__all__ = ["CSR", "SparseMatrix", "index_dtype", "spmm"]


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

    @property
    def num_rows(self) -> int:
        """Number of rows."""
        return self.rowptr.numel() - 1

    @property
    def num_entries(self) -> int:
        """Number of stored entries, duplicates included."""
        return self.col.numel()

    @classmethod
    def from_coo(cls, row: Tensor, col: Tensor, value: Tensor, num_rows: int, num_columns: int) -> CSR:
        """Build from coordinates in any order; entries of a row are sorted by column, ties keep their order."""
        order = torch.argsort(col, stable=True)
        order = order[torch.argsort(row[order], stable=True)]
        return cls.from_sorted(row[order], col[order], value[order], num_rows, num_columns)

    @classmethod
    def from_sorted(cls, row: Tensor, col: Tensor, value: Tensor, num_rows: int, num_columns: int) -> CSR:
        """Build from coordinates whose rows already ascend."""
        dtype = index_dtype(num_rows, num_columns, col.numel())
        rowptr = torch.zeros(num_rows + 1, dtype=dtype, device=row.device)
        rowptr[1:] = torch.bincount(row, minlength=num_rows).cumsum(0)
        return cls(rowptr, col.to(dtype), value, num_columns)

    @cached_property
    def row(self) -> Tensor:
        """Row index of every entry [entries], int64."""
        counts = (self.rowptr[1:] - self.rowptr[:-1]).long()
        rows = torch.arange(self.num_rows, device=self.rowptr.device)
        return rows.repeat_interleave(counts, output_size=self.num_entries)

    def transpose(self) -> CSR:
        """Return the transposed matrix, rows sorted by column."""
        # Entries are visited row by row, so a stable sort by column leaves them sorted by (column, row).
        order = torch.argsort(self.col, stable=True)
        return CSR.from_sorted(
            self.col[order].long(), self.row[order], self.value[order], self.num_columns, self.num_rows
        )

    def gather_rows(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the entries of the given rows: (position of the row in `rows`, column, value).

        Vectorised: cost is proportional to the number of entries returned.
        """
        start = self.rowptr[rows].long()
        counts = self.rowptr[rows + 1].long() - start
        total = int(counts.sum())
        position = torch.arange(rows.numel(), device=rows.device).repeat_interleave(counts, output_size=total)
        first = counts.cumsum(0) - counts
        entry = torch.arange(total, device=rows.device) + (start - first)[position]
        return position, self.col[entry].long(), self.value[entry]

    @cached_property
    def _torch(self) -> Tensor:
        with warnings.catch_warnings():
            # torch announces once per process that its CSR layout is in beta.
            warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
            return torch.sparse_csr_tensor(
                self.rowptr,
                self.col,
                self.value,
                size=(self.num_rows, self.num_columns),
                check_invariants=False,
            )

    def matmul(self, dense: Tensor) -> Tensor:
        """Return `self @ dense` for dense [columns, width], without a gradient rule.

        float32 on a CPU goes through `embedding_bag`, which reads the rows in place; float64 and CUDA go
        through torch's CSR product, which is faster there.
        """
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
        ValueError: shapes or dtypes do not match.
    """
    matrix: SparseMatrix = _Pair(block) if isinstance(block, CSR) else block
    csr = matrix.csr
    if dense.dim() != 2 or dense.shape[0] != csr.num_columns:
        raise ValueError(
            f"spmm needs a dense matrix with {csr.num_columns} rows (the block's columns), "
            f"got shape {tuple(dense.shape)}"
        )
    if dense.dtype != csr.value.dtype:
        raise ValueError(f"spmm needs equal dtypes, got block {csr.value.dtype} and dense {dense.dtype}")
    product: Any = _SpMM.apply(dense, matrix)  # type: ignore[no-untyped-call]  # untyped in torch
    result: Tensor = product
    return result
