"""A graph is a snapshot: whatever is changed in place, however it was done, nothing is computed from it unnoticed."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from common.crossed import crossed
from common.helpers import path_graph
from torch_geometric.data import Data

from lmc_verify import (
    GAS,
    GCN,
    LMC,
    Clusters,
    Graph,
    InvalidInputError,
    Partition,
    Problem,
    check_claim,
    exact_gradient,
    exact_pass,
    load_graph,
)
from lmc_verify.graphs import graph_content
from lmc_verify.graphs.graph import _TENSORS

DESIGN = Clusters(Partition.contiguous(6, 3), 1)


def whole_graph() -> Graph:
    """A graph with every tensor that a graph can have, used once: what it keeps is there."""
    graph = path_graph(
        6,
        edge_weight=torch.linspace(0.5, 2.0, 10, dtype=torch.float64),
        edge_attr=torch.linspace(-1.0, 1.0, 20, dtype=torch.float64).reshape(10, 2),
        val_mask=torch.arange(6) > 2,
        test_mask=torch.arange(6) > 4,
    )
    exact_pass(problem_of(graph))
    return graph


def problem_of(graph: Graph) -> Problem:
    return Problem(graph, GCN(3, 4, 3, 2, dtype=torch.float64))


WAYS: dict[str, Callable[[torch.Tensor], object]] = {
    "in place": lambda value: value.copy_(_other(value)),
    "a view": lambda value: value.view(-1)[-1:].copy_(_other(value).view(-1)[-1:]),
    "tensor.data": lambda value: value.data.copy_(_other(value)),
    "a numpy view": lambda value: value.numpy().__setitem__(..., _other(value).numpy()),
    "one entry of a numpy view": lambda value: (
        value.numpy().reshape(-1).__setitem__(-1, _other(value).numpy().reshape(-1)[-1])
    ),
}


def _other(value: torch.Tensor) -> torch.Tensor:
    """Values that are as good, such as other nodes' ids, and other ones everywhere."""
    return ~value if value.dtype is torch.bool else (value + 1) % 3 if value.dtype is torch.int64 else value + 0.25


USES: dict[str, Callable[[Graph, Problem], object]] = {
    "exact pass": lambda graph, problem: exact_pass(problem),
    "exact gradient": lambda graph, problem: exact_gradient(problem),
    "estimate": lambda graph, problem: LMC().estimate(problem, LMC().init(problem), next(DESIGN.enumerate())[0]),
    "claim": lambda graph, problem: check_claim("theorem-1/unbiased", problem, DESIGN, LMC()),
    "fingerprint": lambda graph, problem: graph.fingerprint,
    "other dtype": lambda graph, problem: graph.to(dtype=torch.float32),
    "the same dtype": lambda graph, problem: graph.double(),
    "problem in float32": lambda graph, problem: problem.to(dtype=torch.float32),
    "replaced": lambda graph, problem: graph.replaced(name="other"),
    "transposed": lambda graph, problem: graph.transposed(),
    "relabelled": lambda graph, problem: graph.relabelled(torch.arange(5, -1, -1)),
    "with edges": lambda graph, problem: graph.with_edges(torch.arange(4)),
    "copy": lambda graph, problem: copy.copy(graph),
    "deepcopy": lambda graph, problem: copy.deepcopy(graph),
    "pickle": lambda graph, problem: pickle.dumps(graph),
}


@pytest.mark.parametrize(("key", "way"), crossed(_TENSORS, WAYS))
def test_a_change_is_named_wherever_the_graph_is_used(key: str, way: str) -> None:
    for use in USES.values():
        graph = whole_graph()
        problem = problem_of(graph)
        use(graph, problem)
        WAYS[way](getattr(graph, key))
        with pytest.raises(InvalidInputError, match=rf"graph\.{key} was changed in place.*replaced\({key}="):
            use(graph, problem)


def test_the_remedy_works() -> None:
    graph = whole_graph()
    graph.x.data.mul_(2)
    mended = graph.replaced(x=graph.x)
    mended.check_unchanged(content=True)
    assert mended.fingerprint == whole_graph().replaced(x=2 * whole_graph().x).fingerprint
    with pytest.raises(InvalidInputError, match=r"graph\.x was changed"):
        graph.replaced(y=graph.y)


def test_large_graphs_are_read_again_where_a_pass_costs_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lmc_verify.objective.problem._SMALL", 10)
    graph = whole_graph()
    problem, (batch, _) = problem_of(graph), next(DESIGN.enumerate())
    graph.x.data.mul_(2)
    GAS().estimate(problem, GAS().init(problem), batch)  # torch counts nothing, and reading costs as much as a step
    with pytest.raises(InvalidInputError, match=r"graph\.x was changed"):
        exact_pass(problem)


def test_graphs_that_were_used_can_be_copied() -> None:
    """Torch's own sparse tensors cannot be, and stay behind."""
    graph = whole_graph()
    for other in (copy.copy(graph), copy.deepcopy(graph), pickle.loads(pickle.dumps(graph))):
        assert other.fingerprint == graph.fingerprint
        assert graph_content(other) == graph_content(graph)
        assert exact_gradient(problem_of(other))[0] == exact_gradient(problem_of(graph))[0]
    moved = copy.deepcopy(problem_of(graph))
    assert exact_gradient(moved)[0] == exact_gradient(problem_of(graph))[0]


def test_numbers_of_a_graph_without_edge_features_are_those_from_before() -> None:
    """Fingerprints are in records and reports: a graph keeps the one that it had."""
    assert load_graph("karate").fingerprint == "6d58f39b719e0e9d"


def test_leaves_that_require_gradients_do_not_become_part_of_a_pass() -> None:
    x = torch.ones(6, 3, dtype=torch.float64, requires_grad=True)
    for snapshot in (True, False):
        graph = Graph.from_pyg(Data(x=x, y=torch.arange(6) % 3, edge_index=path_graph(6).edge_index), snapshot=snapshot)
        assert not graph.x.requires_grad
        assert (graph.x.data_ptr() == x.data_ptr()) == (not snapshot)
    assert exact_pass(problem_of(graph)).embeddings[0].grad_fn is None


# --- features of edges ---


def test_features_of_edges_follow_their_edges() -> None:
    graph = whole_graph()
    attr = graph.edge_attr
    assert attr is not None

    def same(left: Any, right: torch.Tensor) -> bool:
        return left is not None and torch.equal(left, right)

    assert same(graph.transposed().edge_attr, attr)
    assert same(graph.relabelled(torch.arange(5, -1, -1)).edge_attr, attr)
    assert same(graph.to(dtype=torch.float32).edge_attr, attr.float())
    assert same(copy.deepcopy(graph).edge_attr, attr)
    kept = torch.tensor([True, False] * 5)
    fewer = graph.with_edges(kept)
    assert same(fewer.edge_attr, attr[kept])
    assert same(fewer.edge_weight, graph.edge_weight[kept])  # type: ignore[index]  # this graph has weights
    assert torch.equal(graph.with_edges(torch.tensor([3, 1])).edge_index, graph.edge_index[:, [3, 1]])
    assert graph.replaced(edge_attr=None).with_edges(kept).edge_attr is None
    other = graph.replaced(edge_attr=attr.flip(0))
    assert other.fingerprint != graph.fingerprint
    assert [key for key, value in graph_content(graph).items() if graph_content(other).get(key, value) != value] == [
        "edge_attr"
    ]
    assert graph.replaced(edge_attr=None).fingerprint != graph.fingerprint


def test_features_to_try_a_layer_out_are_the_graph_s_own() -> None:
    graph = whole_graph()
    attr = graph.edge_attr
    assert attr is not None
    tried = graph.some_edge_attr(13)
    assert tried is not None
    assert torch.equal(tried, torch.cat([attr, attr[:3]]))
    none = graph.with_edges(torch.zeros(10, dtype=torch.bool)).some_edge_attr(3)
    assert none is not None
    assert none.tolist() == [[0, 0]] * 3
    assert path_graph(3).some_edge_attr(2) is None


@pytest.mark.parametrize(
    ("attr", "message"),
    [
        (torch.ones(4, 2), r"edge_attr must be float32 or float64 \[10, features\].*got torch.float32 \(4, 2\)"),
        (torch.ones(10), r"got torch.float32 \(10,\)"),
        (torch.ones(10, 2, dtype=torch.int64), r"got torch.int64 \(10, 2\); convert it with edge_attr\.float\(\)"),
        (torch.tensor([[0.0, 1.0]] * 9 + [[0.0, float("nan")]]), "NaN or infinite at edge 9, column 1"),
    ],
)
def test_features_that_do_not_fit_are_named(attr: torch.Tensor, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        path_graph(6, edge_attr=attr)
