"""What PyTorch Geometric's data hold is read rightly or refused by name, and a graph stays what it was."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch_geometric.data import Data
from torch_geometric.datasets import KarateClub

from lmc_verify import GAS, GCN, Clusters, Graph, InvalidInputError, Partition, Problem, exact_pass, load_graph

EDGES = torch.tensor([[0, 1, 1, 2, 2, 3, 3, 0], [1, 0, 2, 1, 3, 2, 3, 2]])


def data_of(**changes: object) -> Data:
    generator = torch.Generator().manual_seed(0)
    values: dict[str, object] = {
        "x": torch.randn(4, 3, generator=generator, dtype=torch.float64),
        "y": torch.tensor([0, 1, 2, 0]),
        "edge_index": EDGES,
    }
    return Data(**(values | changes))


# --- a data set, an adjacency matrix ---


def test_a_data_set_of_one_graph_is_that_graph() -> None:
    karate = KarateClub()
    assert Graph.from_pyg(karate).fingerprint == Graph.from_pyg(karate[0]).fingerprint


def test_a_data_set_of_several_graphs_is_refused() -> None:
    karate = KarateClub()
    with pytest.raises(InvalidInputError, match=r"KarateClub is a data set of 0 graphs.*dataset\[0\]"):
        Graph.from_pyg(karate.index_select(torch.empty(0, dtype=torch.int64)))


def test_what_is_no_data_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="got dict; build one with Data"):
        Graph.from_pyg({"x": torch.eye(2)})  # type: ignore[arg-type]  # that is the point


@pytest.mark.parametrize("layout", ["coo", "csr", "csc"])
@pytest.mark.parametrize("weighted", [False, True])
def test_a_transposed_adjacency_matrix_is_its_edges(layout: str, weighted: bool) -> None:
    weight = torch.arange(1.0, 9.0, dtype=torch.float64) if weighted else torch.ones(8, dtype=torch.float64)
    matrix = torch.sparse_coo_tensor(EDGES.flip(0), weight, (4, 4))
    adjacency = {"coo": matrix, "csr": matrix.to_sparse_csr(), "csc": matrix.to_sparse_csc()}[layout]
    read = Graph.from_pyg(data_of(edge_index=None, adj_t=adjacency))
    plain = Graph.from_pyg(data_of(edge_weight=weight if weighted else None))
    assert torch.equal(read.operator("sum").csr.value, plain.operator("sum").csr.value)
    assert torch.equal(read.operator("sum").edge_index, plain.operator("sum").edge_index)
    assert (read.edge_weight is None) == (not weighted)


def test_two_versions_of_the_edges_are_refused() -> None:
    adjacency = torch.sparse_coo_tensor(EDGES.flip(0), torch.ones(8), (4, 4))
    with pytest.raises(InvalidInputError, match="both edge_index and adj_t"):
        Graph.from_pyg(data_of(adj_t=adjacency))
    with pytest.raises(InvalidInputError, match=r"adj_t is a Tensor.*sparse"):
        Graph.from_pyg(data_of(edge_index=None, adj_t=torch.ones(4, 4)))


# --- weights, masks, labels ---


@pytest.mark.parametrize("shape", [(8,), (8, 1)])
def test_one_number_per_edge_in_edge_attr_is_not_passed_over_in_silence(shape: tuple[int, ...]) -> None:
    with pytest.warns(UserWarning, match=r"data\.edge_attr .* not read as a weight.*data\.edge_weight"):
        graph = Graph.from_pyg(data_of(edge_attr=torch.ones(shape)))
    assert graph.edge_weight is None


def test_weights_beside_edge_features_are_read() -> None:
    weight = torch.linspace(0.5, 2.0, 8, dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        graph = Graph.from_pyg(data_of(edge_attr=torch.ones(8, 1), edge_weight=weight))
    assert graph.edge_weight is not None
    assert torch.equal(graph.edge_weight, weight)


@pytest.mark.parametrize("ids", [[3, 2, 1, 0], [0, 2], [1]])
@pytest.mark.parametrize("key", ["train_mask", "val_mask", "test_mask"])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_node_ids_are_no_mask(ids: list[int], key: str, dtype: torch.dtype) -> None:
    with pytest.raises(InvalidInputError, match=rf"data\.{key} is {dtype}.*bool \[4\].*mask\[ids\] = True"):
        Graph.from_pyg(data_of(**{key: torch.tensor(ids, dtype=dtype)}))


def test_bytes_are_a_mask_if_they_are_zeros_and_ones() -> None:
    graph = Graph.from_pyg(data_of(train_mask=torch.tensor([1, 0, 1, 0], dtype=torch.uint8)))
    assert graph.train_mask.tolist() == [True, False, True, False]
    with pytest.raises(InvalidInputError, match=r"torch\.uint8 and holds 3"):
        Graph.from_pyg(data_of(train_mask=torch.tensor([0, 1, 2, 3], dtype=torch.uint8)))
    with pytest.raises(InvalidInputError, match=r"train_mask must be bool \[4\]"):
        Graph.from_pyg(data_of(train_mask=torch.ones(3, dtype=torch.bool)))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_255_is_no_class(dtype: torch.dtype) -> None:
    labels = torch.tensor([0, 1, 255, 0], dtype=dtype)
    with pytest.raises(InvalidInputError, match=r"node 2 has label 255 and the other labels end at 1.*train_mask"):
        Graph.from_pyg(data_of(y=labels))
    with pytest.raises(InvalidInputError, match="there is no other label"):
        Graph.from_pyg(data_of(y=torch.full((4,), 255, dtype=dtype)))
    graph = Graph.from_pyg(data_of(y=labels, train_mask=labels != 255))
    assert graph.num_outputs == 2
    assert np.isfinite(exact_pass(Problem(graph, GCN(3, 4, 2, 2, dtype=torch.float64))).loss)


def test_255_is_a_class_where_254_is_one() -> None:
    assert Graph.from_pyg(data_of(y=torch.tensor([0, 254, 255, 3]))).num_outputs == 256


def test_a_class_of_the_test_nodes_alone_counts() -> None:
    train, test = torch.tensor([True, True, False, False]), torch.tensor([False, False, True, False])
    assert Graph.from_pyg(data_of(train_mask=train)).num_outputs == 2
    assert Graph.from_pyg(data_of(train_mask=train, test_mask=test)).num_outputs == 3


# --- a snapshot ---

CHANGES: dict[str, Callable[[Data], object]] = {
    "features": lambda data: data.x.mul_(3.0),
    "features behind torch's back": lambda data: data.x.data.mul_(3.0),
    "features as an array": lambda data: np.multiply(data.x.numpy(), 3.0, out=data.x.numpy()),
    "labels": lambda data: data.y.fill_(0),
    "edges": lambda data: data.edge_index.fill_(0),
    "weights": lambda data: data.edge_weight.mul_(3.0),
    "training mask": lambda data: data.train_mask.fill_(True),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_becomes_of_the_data_changes_no_graph(name: str) -> None:
    mask = torch.tensor([True, False, True, True])
    data = data_of(
        edge_index=EDGES.clone(), edge_weight=torch.linspace(0.5, 2.0, 8, dtype=torch.float64), train_mask=mask
    )
    graph = Graph.from_pyg(data)
    problem = Problem(graph, GCN(3, 4, 3, 2, dtype=torch.float64))
    before, print_before = exact_pass(problem), graph.fingerprint
    CHANGES[name](data)
    after = exact_pass(Problem(graph.replaced(), problem.model))
    assert graph.replaced().fingerprint == print_before
    assert after.loss == before.loss
    assert all(torch.equal(after.gradient[key], value) for key, value in before.gradient.items())
    assert Graph.from_pyg(data).fingerprint != print_before


@pytest.mark.parametrize("key", ["x", "y", "edge_index", "train_mask"])
def test_a_graph_s_own_tensors_are_not_to_be_changed(key: str) -> None:
    graph = Graph.from_pyg(data_of())
    problem = Problem(graph, GCN(3, 4, 3, 2, dtype=torch.float64))
    state = GAS().init(problem)
    batch, _ = next(Clusters(Partition.contiguous(4, 2), 1).enumerate())
    exact_pass(problem)
    getattr(graph, key).copy_(getattr(graph, key).clone())
    for use in (
        lambda: exact_pass(problem),
        lambda: GAS().estimate(problem, state, batch),
        lambda: graph.fingerprint,
        lambda: graph.aggregated_features("gcn"),
    ):
        with pytest.raises(InvalidInputError, match=rf"graph\.{key} was changed in place.*replaced\({key}="):
            use()
    exact_pass(Problem(graph.replaced(**{key: getattr(graph, key)}), problem.model))


def test_copies_of_a_graph_are_graphs() -> None:
    graph = Graph.from_pyg(data_of())
    for other in (copy.deepcopy(graph), pickle.loads(pickle.dumps(graph)), graph.double(), graph.replaced()):
        other.check_unchanged()
        assert other.fingerprint == graph.fingerprint


def test_without_a_snapshot_tensors_are_shared() -> None:
    data = data_of()
    assert Graph.from_pyg(data, snapshot=False).x.data_ptr() == data.x.data_ptr()
    assert Graph.from_pyg(data).x.data_ptr() != data.x.data_ptr()


def test_inference_mode_is_named() -> None:
    with torch.inference_mode(), pytest.raises(InvalidInputError, match=r"torch\.inference_mode"):
        load_graph("karate")
