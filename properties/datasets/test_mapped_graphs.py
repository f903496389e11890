"""A graph that is written into mapped files and opened again is the same graph, in either precision."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lmc_verify import Graph, InvalidInputError
from lmc_verify.datasets import open_graph, write_graph
from lmc_verify.testing import graphs

TENSORS = ("edge_index", "x", "y", "train_mask", "edge_weight", "val_mask", "test_mask", "edge_attr")


@given(graphs() | graphs(edge_features=2), st.sampled_from([None, torch.float32, torch.float64]))
def test_an_opened_graph_is_the_graph(graph: Graph, dtype: torch.dtype | None) -> None:
    want = graph.to(dtype=dtype)
    with tempfile.TemporaryDirectory() as folder:
        write_graph(graph, folder, dtype=dtype)
        got = open_graph(folder)
        for name in TENSORS:
            one, other = getattr(got, name), getattr(want, name)
            assert (one is None) == (other is None), name
            assert one is None or (one.dtype == other.dtype and torch.equal(one, other)), name
        assert got.name == graph.name
        assert got.fingerprint == want.fingerprint
        assert got.checksum == want.checksum


def test_another_graph_replaces_all_files(tmp_path: Path) -> None:
    parts = {
        "edge_index": torch.tensor([[0], [1]]),
        "x": torch.ones(2, 1),
        "y": torch.zeros(2, dtype=torch.int64),
        "train_mask": torch.ones(2, dtype=torch.bool),
    }
    write_graph(Graph(**parts, edge_weight=torch.ones(1)), tmp_path)
    write_graph(Graph(**parts), tmp_path)
    assert open_graph(tmp_path).edge_weight is None
    opened = open_graph(tmp_path)
    opened.x[0] = 3.0  # seen, and never written
    with pytest.raises(InvalidInputError, match=r"graph\.x was changed in place"):
        opened.check_unchanged()
    assert float(open_graph(tmp_path).x[0]) == 1


def test_what_is_no_graph_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"edge_index\.npy is missing"):
        open_graph(tmp_path)
    graph = Graph(
        edge_index=torch.tensor([[0], [1]]),
        x=torch.ones(2, 1),
        y=torch.zeros(2, dtype=torch.int64),
        train_mask=torch.ones(2, dtype=torch.bool),
    )
    with pytest.raises(InvalidInputError, match=r"dtype is torch\.float16"):
        write_graph(graph, tmp_path, dtype=torch.float16)
    write_graph(graph, tmp_path)
    (tmp_path / "x.npy").write_bytes(b"no array")
    with pytest.raises(InvalidInputError, match=r"cannot map .*x\.npy"):
        open_graph(tmp_path)
    (tmp_path / "graph.json").unlink()
    with pytest.raises(InvalidInputError, match=r"graph\.json is missing"):
        open_graph(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidInputError, match="cannot be a folder"):
        write_graph(graph, tmp_path / "file" / "folder")
