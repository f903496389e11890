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
from torch_geometric.transforms import ToSparseTensor

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


ADJACENCIES: dict[str, tuple[Callable[[], object], str]] = {
    "another size": (lambda: torch.eye(3).to_sparse(), r"adj_t has shape \[3, 3\], x has 4 rows; .*\[4, 4\]"),
    "not square": (lambda: torch.ones(4, 3).to_sparse(), r"adj_t has shape \[4, 3\]"),
    "blocks": (lambda: torch.ones(4, 4).to_sparse_bsr((2, 2)), r"layout torch\.sparse_bsr.*to_sparse_coo\(\)"),
    "numpy": (lambda: np.eye(4), "adj_t is a ndarray"),
    "complex": (lambda: 2 * torch.eye(4, dtype=torch.complex64).to_sparse(), "edge_weight must be floating"),
    "not finite": (lambda: (torch.eye(4) * float("inf")).nan_to_num(0.0).to_sparse() * 1e300, "NaN or infinite"),
}


@pytest.mark.parametrize("name", ADJACENCIES)
def test_adjacency_matrices_that_are_none_are_named(name: str) -> None:
    make, message = ADJACENCIES[name]
    with pytest.raises(InvalidInputError, match=message):
        Graph.from_pyg(data_of(edge_index=None, adj_t=make()))


def test_a_transposed_adjacency_matrix_has_destinations_as_rows() -> None:
    """On a directed graph with weights: read the other way around, it would be another graph."""
    edges = torch.tensor([[0, 0, 1, 3], [1, 2, 2, 0]])
    weight = torch.tensor([2.0, 3.0, 5.0, 7.0], dtype=torch.float64)
    matrix = torch.sparse_coo_tensor(edges.flip(0), weight, (4, 4))
    for adjacency in (matrix, matrix.to_sparse_csr(), matrix.to_sparse_csc(), matrix.coalesce()):
        dense = Graph.from_pyg(data_of(edge_index=None, adj_t=adjacency)).operator("sum").csr.to_dense()
        assert [dense[1, 0], dense[2, 0], dense[2, 1], dense[0, 3]] == weight.tolist()
        assert int((dense != 0).sum()) == 4


def test_multi_edges_of_an_adjacency_matrix_stay_apart() -> None:
    matrix = torch.sparse_coo_tensor([[1, 1, 2], [0, 0, 3]], torch.tensor([2.0, 3.0, 5.0]), (4, 4))
    graph = Graph.from_pyg(data_of(edge_index=None, adj_t=matrix))
    assert (graph.num_edges, graph.edge_weight.tolist()) == (3, [2.0, 3.0, 5.0])  # type: ignore[union-attr]


@pytest.mark.parametrize("layout", ["coo", "csr"])
def test_several_values_an_entry_are_features_of_the_edge(layout: str) -> None:
    attr = torch.arange(16.0, dtype=torch.float64).reshape(8, 2)
    matrix = torch.sparse_coo_tensor(EDGES.flip(0), attr, (4, 4, 2))
    matrix = matrix.coalesce().to_sparse_csr() if layout == "csr" else matrix
    read = Graph.from_pyg(data_of(edge_index=None, adj_t=matrix)).operator("sum")
    plain = Graph.from_pyg(data_of(edge_attr=attr)).operator("sum")
    assert torch.equal(read.edge_index, plain.edge_index)
    assert read.edge_attr is not None
    assert torch.equal(read.edge_attr, plain.edge_attr)


@pytest.mark.parametrize("key", ["edge_weight", "edge_attr"])
def test_what_stands_beside_an_adjacency_matrix_is_not_guessed(key: str) -> None:
    adjacency = torch.sparse_coo_tensor(EDGES.flip(0), torch.ones(8), (4, 4))
    with pytest.raises(InvalidInputError, match=rf"data\.{key} stands beside adj_t.*order is not known"):
        Graph.from_pyg(data_of(edge_index=None, adj_t=adjacency, **{key: torch.ones(8)}))


@pytest.mark.parametrize(
    "transform", [ToSparseTensor(layout=torch.sparse_csr), ToSparseTensor(layout=torch.sparse_coo)]
)
def test_the_transform_of_pytorch_geometric_is_read(transform: ToSparseTensor) -> None:
    weight = torch.linspace(0.5, 2.0, 8, dtype=torch.float64)
    read, plain = Graph.from_pyg(transform(data_of(edge_weight=weight))), Graph.from_pyg(data_of(edge_weight=weight))
    assert torch.equal(read.operator("gcn").csr.to_dense(), plain.operator("gcn").csr.to_dense())


# --- weights, masks, labels ---


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64, torch.bool])
def test_features_of_edges_are_kept_in_the_dtype_of_the_nodes(dtype: torch.dtype) -> None:
    attr = torch.arange(16).reshape(8, 2).to(dtype)
    graph = Graph.from_pyg(data_of(edge_attr=attr))
    assert graph.edge_attr is not None
    assert torch.equal(graph.edge_attr, attr.double())
    assert graph.edge_weight is None


@pytest.mark.parametrize(
    ("attr", "message"),
    [
        (torch.ones(7, 2), r"edge_attr must be .*\[8, features\].*\(7, 2\)"),
        (torch.ones(8, 2, 2), r"\(8, 2, 2\)"),
        (torch.tensor(1.0), "edge_attr must be"),
        (torch.ones(8, 2, dtype=torch.complex64), r"got torch\.complex64"),
        ([1.0] * 8, r"data\.edge_attr is list"),
        (torch.ones(8, 2).to_sparse(), r"data\.edge_attr is torch\.sparse_coo"),
    ],
    ids=["rows", "three dimensions", "a number", "complex", "list", "sparse"],
)
def test_features_of_edges_that_are_none_are_named(attr: object, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        Graph.from_pyg(data_of(edge_attr=attr))


@pytest.mark.parametrize("weight", [torch.arange(8), torch.arange(8)[:, None], torch.arange(8.0)[:, None]], ids=str)
def test_weights_may_be_whole_numbers_or_a_column(weight: torch.Tensor) -> None:
    graph = Graph.from_pyg(data_of(edge_weight=weight))
    assert graph.edge_weight is not None
    assert graph.edge_weight.tolist() == list(range(8))


@pytest.mark.parametrize("split", [True, 1.0, "1", 2])
def test_a_split_is_a_whole_number(split: object) -> None:
    masks = torch.ones(4, 2, dtype=torch.bool)
    with pytest.raises(InvalidInputError, match=r"2 splits and split=.*split=0 \.\.\. 1"):
        Graph.from_pyg(data_of(train_mask=masks), split=split)  # type: ignore[arg-type]  # that is the point
    assert Graph.from_pyg(data_of(train_mask=masks), split=np.int64(1)).num_labelled == 4  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": torch.ones(4, 3, dtype=torch.complex64)}, r"features x must be float32 or float64 .*complex64"),
        ({"y": torch.ones(4, dtype=torch.complex64)}, r"class labels must be int64 .*complex64"),
        ({"y": torch.ones(4, 0)}, "0 tasks, the objective needs at least 1"),
        ({"y": torch.tensor([0, 1, -100, 2])}, "labelled node 2 has label -100"),
        ({"y": torch.tensor([[0, 1], [1, 255], [1, 1], [0, 0]])}, r"node 1 has target 255\.0"),
        ({"y": torch.tensor([0.0, 1.0, 2.0, 0.0])}, r"float labels .*y\.long\(\)"),
        ({"edge_index": torch.ones(2, 3, dtype=torch.bool)}, r"edge_index must hold integers, got torch\.bool"),
        ({"edge_index": EDGES.T}, r"edge_index must be int64 \[2, edges\], got torch\.int64 \(8, 2\)"),
        ({"train_mask": torch.tensor([2, 2, 99])}, r"train_mask is torch\.int64 \[3\].*mask\[ids\] = True"),
        ({"train_mask": torch.ones(4)}, r"train_mask is torch\.float32"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_data_of_another_kind_are_named(changes: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        Graph.from_pyg(data_of(**changes))


@pytest.mark.parametrize("shape", [(8,), (8, 1)])
def test_one_number_per_edge_in_edge_attr_is_not_passed_over_in_silence(shape: tuple[int, ...]) -> None:
    with pytest.warns(UserWarning, match=r"data\.edge_attr .* not read as a weight.*data\.edge_weight"):
        graph = Graph.from_pyg(data_of(edge_attr=torch.ones(shape)))
    assert graph.edge_weight is None
    assert graph.edge_attr is not None
    assert graph.edge_attr.tolist() == [[1.0]] * 8


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
