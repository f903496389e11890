"""Operators in mapped files hold the same entries in the same order as operators in memory, whatever the limit."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lmc_verify import Graph, InvalidInputError
from lmc_verify.graphs import (
    CSR,
    Block,
    loops_operator,
    map_operators,
    new_file,
    open_file,
    put_rows,
    release_pages,
    take_rows,
)
from lmc_verify.graphs.files import is_mapped
from lmc_verify.graphs.mapped.operators import _symmetric
from lmc_verify.testing import graphs

KINDS = ("gcn", "mean", "sum", "loops", loops_operator("mean"), loops_operator(0.5))


def mapped(graph: Graph, kind: str, memory: int, folder: Path) -> Block:
    return map_operators(graph, {kind}, folder, memory=memory)[kind]


def assert_same(name: str, got: CSR, want: CSR) -> None:
    assert got.shape == want.shape, name
    assert torch.equal(got.rowptr.long(), want.rowptr.long()), name
    assert torch.equal(got.col.long(), want.col.long()), name
    assert torch.equal(got.value, want.value), f"{name}: {got.value} is not {want.value}"


@given(graphs(max_edges=30) | graphs(edge_features=2), st.sampled_from(KINDS), st.sampled_from([1, 700, 10**9]))
def test_a_mapped_operator_is_the_operator(graph: Graph, kind: str, memory: int) -> None:
    if ":" in kind and graph.edge_attr is None:
        kind = "loops"
    want = graph.operator(kind)
    with tempfile.TemporaryDirectory() as folder:
        got = mapped(graph, kind, memory, Path(folder))
        assert_same("matrix", got.csr, want.csr)
        assert torch.equal(got.in_degree, want.in_degree)
        if want.edge_attr is None:
            assert got.edge_attr is None
        else:
            assert got.edge_attr is not None
            assert torch.equal(got.edge_attr, want.edge_attr)
        if got.csr_t is not got.csr:
            assert_same("transpose", got.csr_t, want.csr.transpose())
        assert torch.equal(got.csr_t.to_dense(), want.csr.to_dense().T)


@given(graphs(directed=False, weighted=False))
def test_a_symmetric_operator_has_no_second_file(graph: Graph) -> None:
    with tempfile.TemporaryDirectory() as folder:
        block = mapped(graph, "gcn", 700, Path(folder))
        assert block.symmetric
        assert not list(Path(folder).glob("*/*_t.npy"))


@pytest.mark.parametrize(
    ("row", "col", "value", "same"),
    [
        ([0, 1], [1, 0], [2.0, 2.0], True),
        ([0, 1], [1, 0], [2.0, 3.0], False),
        ([0], [1], [2.0], False),
        ([0, 0, 1], [1, 1, 0], [1.0, 1.0, 2.0], False),
        ([0, 1], [0, 1], [5.0, 1.0], True),
    ],
)
def test_symmetry_reads_places_and_values(row: list[int], col: list[int], value: list[float], same: bool) -> None:
    matrix = CSR.from_coo(torch.tensor(row), torch.tensor(col), torch.tensor(value, dtype=torch.float64), 2, 2)
    assert _symmetric(matrix) is same


def small(weight: Tensor | None = None) -> Graph:
    return Graph(
        edge_index=torch.tensor([[0, 1, 2], [1, 2, 0]]),
        x=torch.ones(3, 1, dtype=torch.float64),
        y=torch.zeros(3, dtype=torch.int64),
        train_mask=torch.ones(3, dtype=torch.bool),
        edge_weight=weight,
    )


def test_operators_are_made_once_and_again_for_another_graph(tmp_path: Path) -> None:
    first = mapped(small(), "gcn", 10**6, tmp_path)
    (done,) = tmp_path.glob("*/operator.json")
    written = done.with_name("col.npy").stat().st_mtime_ns
    assert_same("again", mapped(small(), "gcn", 10**6, tmp_path).csr, first.csr)
    assert done.with_name("col.npy").stat().st_mtime_ns == written
    heavier = small(torch.tensor([3.0, 1.0, 1.0], dtype=torch.float64))
    assert_same("another", mapped(heavier, "gcn", 10**6, tmp_path).csr, heavier.operator("gcn").csr)
    done.write_text(json.dumps({"kind": "gcn"}), encoding="utf-8")  # broken off
    assert_same("broken", mapped(small(), "gcn", 10**6, tmp_path).csr, first.csr)


def test_a_graph_gives_them_for_a_time(tmp_path: Path) -> None:
    graph = small()
    kept, blocks = graph.operator("gcn"), map_operators(graph, {"gcn", "mean"}, tmp_path, memory=10**6)
    with graph.using_operators(blocks):
        assert graph.operator("gcn") is blocks["gcn"]
        assert graph.operator("mean") is blocks["mean"]
    assert graph.operator("gcn") is kept
    assert graph.operator("mean") is not blocks["mean"]


def test_negative_degrees_are_refused_as_in_memory(tmp_path: Path) -> None:
    graph = small(torch.tensor([-3.0, 1.0, 1.0], dtype=torch.float64))
    with pytest.raises(InvalidInputError) as want:
        graph.operator("gcn")
    with pytest.raises(InvalidInputError) as got:
        mapped(graph, "gcn", 10**6, tmp_path)
    assert str(got.value) == str(want.value)


def test_released_pages_come_back_with_what_was_written(tmp_path: Path) -> None:
    written = new_file(tmp_path / "one.npy", (1000, 7), torch.float64)
    written.copy_(torch.arange(7000.0, dtype=torch.float64).reshape(1000, 7))
    release_pages()
    assert float(written[-1, -1]) == 6999
    again = open_file(tmp_path / "one.npy")
    again[0] = -1  # a copy of the page
    assert float(open_file(tmp_path / "one.npy")[0, 0]) == 0
    assert float(written[0, 0]) == 0
    assert new_file(tmp_path / "none.npy", (0, 3), torch.float64).shape == (0, 3)
    assert open_file(tmp_path / "none.npy").shape == (0, 3)
    with pytest.raises(InvalidInputError, match="cannot map"):
        open_file(tmp_path / "missing.npy")


@pytest.mark.parametrize("dtype", ["U3", ">f8", object], ids=str)
def test_files_that_no_tensor_can_be_mapped_to_are_named(dtype: Any, tmp_path: Path) -> None:
    np.save(tmp_path / "other.npy", np.zeros(3, dtype=dtype), allow_pickle=True)
    with pytest.raises(InvalidInputError, match=r"cannot map .*other\.npy: .*; write it again"):
        open_file(tmp_path / "other.npy")


def test_an_archive_of_arrays_is_no_array(tmp_path: Path) -> None:
    with (tmp_path / "several.npy").open("wb") as file:
        np.savez(file, a=np.zeros(3))
    with pytest.raises(InvalidInputError, match="it holds several arrays"):
        open_file(tmp_path / "several.npy")


def test_rows_of_a_mapped_table_are_those_in_memory_and_do_not_stay(tmp_path: Path) -> None:
    shape = (3_000, 5)
    plain = torch.arange(15_000, dtype=torch.float64).view(shape)
    table = new_file(tmp_path / "a.npy", shape, torch.float64)
    assert is_mapped(table)
    assert is_mapped(table[7:])
    assert not is_mapped(plain)
    rows = torch.randperm(3_000, generator=torch.Generator().manual_seed(0))[:2_500]
    with mock.patch("lmc_verify.graphs.files.release_pages") as release:
        put_rows(table, rows, plain[rows])
        assert release.call_count == 3, "once for each 1,024 rows, of 64 KiB around them"
    assert torch.equal(take_rows(table, rows), plain[rows])
    assert not take_rows(table, (table.sum(1) == 0).nonzero()[:, 0]).any()
    out = torch.empty(2_500, 5, dtype=torch.float64)
    assert take_rows(table, rows, out) is out
    assert torch.equal(out, plain[rows])
    assert take_rows(table, rows[:0]).shape == (0, 5)
    put_rows(plain, rows, -plain[rows])
    assert torch.equal(take_rows(plain, rows), -take_rows(table, rows))


STEPS = """
import sys, torch, lmc_verify as lv
from lmc_verify.estimators import History
from lmc_verify.graphs import map_operators, resident_bytes
from pathlib import Path
n, place = 40_000, Path(sys.argv[1])
rng = torch.Generator().manual_seed(0)
ends = torch.randint(0, n, (2, 5 * n), generator=rng)
lv.write_graph(lv.Graph(edge_index=torch.cat([ends, ends.flip(0)], 1), x=torch.randn(n, 256, generator=rng),
    y=torch.randint(0, 8, (n,), generator=rng), train_mask=torch.ones(n, dtype=torch.bool)), place / "graph")
graph = lv.open_graph(place / "graph")
problem = lv.Problem(graph, lv.GCN(256, 256, 8, 3, seed=0))
blocks = map_operators(graph, {"gcn", "sum"}, place / "operators", memory=2**24)
state, lmc = History.zeros(problem, folder=place / "histories"), lv.LMC(beta=0.5)
design = lv.UniformNodes(n, 200)
def steps(count):
    for _ in range(count):
        state.apply(lmc.estimate(problem, state, design.draw(rng)).writes)
with graph.using_operators(blocks):
    steps(1)  # modules are imported where they are first used
    before = resident_bytes()
    steps(12)
print((resident_bytes() - before) / 2**20)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="resident memory is read from /proc")
def test_steps_from_files_do_not_fill_the_memory(tmp_path: Path) -> None:
    # Twelve batches read and write rows near most pages of 40 MiB of features and 160 MiB of histories.
    done = subprocess.run(
        [sys.executable, "-c", STEPS, str(tmp_path)], check=True, capture_output=True, text=True, timeout=300
    )
    assert float(done.stdout) < 40
