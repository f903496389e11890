"""`spmm` is the dense product with the dense gradient, for every shape, dtype and layout, on any number of threads."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from common.helpers import assert_close
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lmc_verify.graphs.sparse import CSR, index_dtype, spmm

# One rounding of every product and sum: at most 25 terms of size 4, each relative to unit round-off.
RTOL = {torch.float32: 1e-5, torch.float64: 1e-13}
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
INDICES = pytest.mark.parametrize("index", [torch.int32, torch.int64], ids=["int32", "int64"])


@st.composite
def coordinates(draw: st.DrawFn) -> tuple:
    """(row, column, value, shape, dense): entries in any order, duplicates, empty rows and columns, no entry at all."""
    rows, columns, width = draw(st.tuples(st.integers(1, 6), st.integers(1, 6), st.integers(0, 5)))
    entries = draw(st.lists(st.tuples(st.integers(0, rows - 1), st.integers(0, columns - 1)), max_size=25))
    row, column = torch.tensor(entries, dtype=torch.int64).reshape(-1, 2).T
    numbers = st.floats(-2, 2, width=32)
    value = draw(hnp.arrays(np.float64, len(entries), elements=numbers))
    dense = draw(hnp.arrays(np.float64, (columns, width), elements=numbers))
    return row, column, torch.from_numpy(value), (rows, columns), torch.from_numpy(dense)


EMPTY = (*torch.zeros(2, 0, dtype=torch.int64), torch.zeros(0).double(), (3, 2), torch.ones(2, 2).double())


def dense_matrix(row: torch.Tensor, column: torch.Tensor, value: torch.Tensor, shape: tuple[int, int]) -> np.ndarray:
    matrix = np.zeros(shape, dtype=np.float64)
    np.add.at(matrix, (row.numpy(), column.numpy()), value.double().numpy())
    return matrix


def with_index(csr: CSR, dtype: torch.dtype) -> CSR:
    return CSR(csr.rowptr.to(dtype), csr.col.to(dtype), csr.value, csr.num_columns)


def layouts(dense: torch.Tensor) -> Iterator[torch.Tensor]:
    """The same values with other strides."""
    yield dense
    yield dense.T.contiguous().T  # column-major
    yield torch.cat([dense, dense], dim=1)[:, : dense.shape[1]]  # rows with a gap
    yield torch.stack([dense, dense], dim=1)[:, 0]  # rows with another gap


@DTYPES
@INDICES
@given(drawn=coordinates())
@example(drawn=EMPTY)
def test_product_and_gradient_are_the_dense_ones(dtype: torch.dtype, index: torch.dtype, drawn: tuple) -> None:
    row, column, value, shape, dense = drawn
    csr = with_index(CSR.from_coo(row, column, value.to(dtype), *shape), index)
    matrix = dense_matrix(row, column, value, shape)
    scale, rtol = 25 * 4.0, RTOL[dtype]
    for layout in layouts(dense.to(dtype)):
        leaf = layout.detach().requires_grad_()
        product = spmm(csr, leaf)
        call = f"spmm({shape}, entries {list(zip(row.tolist(), column.tolist(), strict=True))}, {dtype})"
        assert product.dtype == dtype
        assert_close(call, product, matrix @ dense.numpy(), rtol=rtol, scale=scale)
        cotangent = torch.linspace(-1, 1, product.numel(), dtype=dtype).reshape(product.shape)
        for grad in (cotangent, cotangent.T.contiguous().T, cotangent[:, :1].expand(product.shape)):
            if not product.numel():
                continue
            (got,) = torch.autograd.grad(product, leaf, grad, retain_graph=True)
            assert_close(f"gradient of {call}", got, matrix.T @ grad.double().numpy(), rtol=rtol, scale=scale)


@given(coordinates())
def test_csr_is_sorted_and_its_transpose_is_the_transpose(drawn: tuple) -> None:
    row, column, value, shape, _ = drawn
    csr = CSR.from_coo(row, column, value, *shape)
    matrix = dense_matrix(row, column, value, shape)
    for got, want in ((csr, matrix), (csr.transpose(), matrix.T), (csr.transpose().transpose(), matrix)):
        assert (got.num_rows, got.num_columns) == want.shape
        assert_close("to_dense", got.to_dense(), want, rtol=1e-14, scale=50.0)
        assert got.num_entries == row.numel()
        keys = got.row * got.num_columns + got.col
        assert bool((keys[1:] >= keys[:-1]).all()), f"rows, then columns, must ascend: {keys.tolist()}"


@given(coordinates(), st.data())
def test_gather_rows_returns_exactly_the_rows_asked_for(drawn: tuple, data: st.DataObject) -> None:
    row, column, value, shape, _ = drawn
    csr = CSR.from_coo(row, column, value, *shape)
    wanted = data.draw(st.lists(st.integers(0, shape[0] - 1), max_size=8))  # any order, repeats allowed
    position, columns, values = csr.gather_rows(torch.tensor(wanted, dtype=torch.int64))
    got = dense_matrix(position, columns, values, (len(wanted), shape[1]))
    assert_close(f"gather_rows({wanted})", got, dense_matrix(row, column, value, shape)[wanted], rtol=1e-14, scale=50.0)
    assert position.numel() == sum(int((row == r).sum()) for r in wanted)


@DTYPES
def test_bits_do_not_depend_on_threads(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    row, column = torch.randint(2000, (2, 20_000), generator=generator)
    csr = CSR.from_coo(row, column, torch.randn(20_000, generator=generator, dtype=dtype), 2000, 2000)
    dense = torch.randn(2000, 33, generator=generator, dtype=dtype)
    threads, results = torch.get_num_threads(), []
    try:
        for number in (1, 2, 3, 4):
            torch.set_num_threads(number)
            leaf = dense.clone().requires_grad_()
            product = spmm(csr, leaf)
            results.append((product.detach(), *torch.autograd.grad(product, leaf, dense)))
    finally:
        torch.set_num_threads(threads)
    for number, (product, grad) in enumerate(results[1:], start=2):
        assert torch.equal(product, results[0][0]), f"the product differs between 1 and {number} threads"
        assert torch.equal(grad, results[0][1]), f"the gradient differs between 1 and {number} threads"


def test_bad_factors_are_refused() -> None:
    csr = CSR.from_coo(torch.tensor([0]), torch.tensor([1]), torch.ones(1).double(), 2, 3)
    with pytest.raises(ValueError, match=r"needs a dense matrix with 3 rows .* got shape \(2, 4\)"):
        spmm(csr, torch.ones(2, 4).double())
    with pytest.raises(ValueError, match=r"with 3 rows .* got shape \(3,\)"):
        spmm(csr, torch.ones(3).double())
    with pytest.raises(ValueError, match=r"equal dtypes, got block torch\.float64 and dense torch\.float32"):
        spmm(csr, torch.ones(3, 4))


def test_a_second_derivative_is_refused_rather_than_wrong() -> None:
    csr = CSR.from_coo(torch.tensor([0]), torch.tensor([0]), torch.ones(1).double(), 1, 1)
    leaf = torch.ones(1, 1).double().requires_grad_()
    (grad,) = torch.autograd.grad((spmm(csr, leaf) ** 2).sum(), leaf, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_index_dtype_is_the_smallest_that_fits() -> None:
    limit = 2**31 - 1
    assert index_dtype(limit, limit, limit) == torch.int32
    for sizes in ((limit + 1, 1, 1), (1, limit + 1, 1), (1, 1, limit + 1)):
        assert index_dtype(*sizes) == torch.int64
