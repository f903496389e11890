"""The karate club of the package is that of PyTorch Geometric, which need not be imported; data and graph agree."""

from __future__ import annotations

import pytest
import torch
from torch_geometric.datasets import KarateClub

import lmc_verify as lv
from lmc_verify.datasets.karate import karate
from lmc_verify.graphs import graph_content


def test_it_is_that_of_pytorch_geometric() -> None:
    theirs, ours = KarateClub()[0], karate()
    for name in ("x", "edge_index", "y", "train_mask"):
        one, other = getattr(theirs, name), getattr(ours, name)
        assert one.dtype == other.dtype, name
        assert torch.equal(one, other), name
    assert ours.num_nodes == theirs.num_nodes
    assert ours.edge_index.is_contiguous()
    assert ours.val_mask is ours.test_mask is ours.edge_weight is ours.edge_attr is None


def test_every_load_has_tensors_of_its_own() -> None:
    first = lv.load_data("karate")
    first.x.zero_()
    assert torch.equal(lv.load_data("karate").x, torch.eye(34))


@pytest.mark.parametrize("name", ["karate", "digits", "directed", "sbm"])
def test_a_graph_is_what_its_data_give(name: str) -> None:
    data, graph = lv.load_data(name, seed=3), lv.load_graph(name, seed=3)
    assert graph.name == name
    assert graph_content(graph) == graph_content(lv.Graph.from_pyg(data, name=name))
    masks = {"train_mask", "val_mask", "test_mask"}
    assert set(data.keys()) - {"edge_weight"} == {"x", "edge_index", "y", *masks}
    assert data.is_directed() is (name == "directed")
