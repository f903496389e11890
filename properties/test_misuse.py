"""Misuse at the edges is refused, and changes nothing: misfit history writes, another graph's state, hidden dropout."""

from __future__ import annotations

import pickle
import re
import sys
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from common.helpers import assert_gradients, path_graph
from common.random_states import random_state
from packaging.requirements import Requirement
from torch import nn
from torch_geometric.data import Data
from torch_geometric.nn import GraphConv, MessagePassing, SAGEConv

from lmc_verify import (
    GCN,
    LMC,
    BackwardSGD,
    Batch,
    Clusters,
    ConvLayer,
    EpochClusters,
    FusedClusters,
    Graph,
    InvalidInputError,
    LayeredModel,
    Partition,
    Problem,
    PyGConv,
    TrainingRun,
    UniformNodes,
    check_claim,
    errors,
    exact_gradient,
    exact_pass,
    load_graph,
    make_estimator,
    make_model,
    make_partition,
    range_bound,
    write_graph,
)
from lmc_verify.errors import require_whole
from lmc_verify.estimators import EMBEDDING, HistoryWrite
from lmc_verify.models import GCNConv


def problem() -> Problem:
    return Problem(path_graph(5), GCN(3, 4, 3, 2, dtype=torch.float64).eval())


def row(kind: str = EMBEDDING, node: int = 0, dtype: torch.dtype = torch.float64) -> HistoryWrite:
    return HistoryWrite(kind, 1, torch.tensor([node]), torch.ones(1, 4, dtype=dtype))


@pytest.mark.parametrize(
    "misfit",
    [row(node=7), row(node=-1), row(dtype=torch.float32), row(kind="embeddings")],
    ids=["node too high", "node negative", "dtype", "unknown kind"],
)
def test_apply_refuses_every_misfit_and_then_changes_nothing(misfit: HistoryWrite) -> None:
    state = LMC().init(problem())
    kept = state.clone()
    with pytest.raises(InvalidInputError):
        state.apply([row(), misfit])
    assert state.equals(kept)


def test_building_a_problem_draws_no_random_number() -> None:
    with torch.random.fork_rng(devices=[]):
        before = random_state()
        Problem(path_graph(5), GCN(3, 4, 3, 2, dropout=0.5, dtype=torch.float64))
        assert random_state() == before


def test_dropout_of_integer_probability_is_refused() -> None:
    with torch.random.fork_rng(devices=[]):
        conv = GCN(3, 3, 3, 1, dtype=torch.float64).layers[0].conv
        assert isinstance(conv, GCNConv)
        dropped = Problem(path_graph(5), LayeredModel([ConvLayer(conv, before=nn.Dropout(1))]))
        with pytest.raises(InvalidInputError, match="dropout is active"):
            exact_pass(dropped)


def test_backward_sgd_never_uses_the_state_of_another_graph() -> None:
    first, estimator, batch = problem(), BackwardSGD(), Batch.of([0, 1], 0.5)
    other = first.with_graph(path_graph(5, directed=True))
    want = estimator.estimate(other, estimator.init(other), batch).gradient
    try:
        got = estimator.estimate(other, estimator.init(first), batch).gradient
    except InvalidInputError:
        return
    assert_gradients("state of another graph", got, want)


def test_from_pyg_reads_integer_features_with_integer_indicators() -> None:
    edges = torch.zeros(2, 0, dtype=torch.int64)
    data = Data(x=torch.eye(4, dtype=torch.int64), y=torch.eye(4, 2, dtype=torch.int64), edge_index=edges)
    assert Graph.from_pyg(data).multi_label


def test_fingerprint_sees_the_other_masks() -> None:
    graph = path_graph(4)
    assert replace(graph, val_mask=graph.train_mask).fingerprint != graph.fingerprint


def test_from_clusters_refuses_an_empty_last_cluster() -> None:
    with pytest.raises(InvalidInputError, match="empty"):
        Partition.from_clusters([[0], []])


def test_relabelling_refuses_what_is_no_permutation() -> None:
    with pytest.raises(InvalidInputError, match="permutation"):
        path_graph(4).relabelled(torch.tensor([0, 0, 1, 2]))


def test_beta_may_be_any_real_number_or_one_a_node() -> None:
    assert LMC(beta=np.float32(0.5)) == LMC(beta=torch.tensor(0.5)) == LMC(beta=0.5)  # type: ignore[arg-type]
    assert LMC(beta=np.array([0.0, 1.0])) == LMC(beta=(0.0, 1.0))  # type: ignore[arg-type]


def test_node_ids_are_integers() -> None:
    with pytest.raises(InvalidInputError, match="integers"):
        Batch.of(torch.tensor([0.7, 1.2]))


def test_histories_of_another_dtype_are_refused() -> None:
    single = problem().to(dtype=torch.float32)
    with pytest.raises(InvalidInputError, match="float64"):
        LMC().estimate(single, LMC().init(problem()), Batch.of([0, 1], 0.5))


@pytest.mark.parametrize("chunk_size", [0, -1, 2.5])
def test_chunks_have_a_whole_number_of_rows(chunk_size: int) -> None:
    with pytest.raises(InvalidInputError, match="chunk_size"):
        exact_pass(problem(), chunk_size=chunk_size)


@pytest.mark.parametrize("aggr", ["max", ["mean", "max"]])
def test_only_sums_and_means_can_be_declared_aggregate_linear(aggr: str | list[str]) -> None:
    with torch.random.fork_rng(devices=[]), pytest.raises(InvalidInputError, match="aggregate-linear"):
        PyGConv(GraphConv(3, 4, aggr=aggr), aggregate_linear=True)


def test_an_estimate_is_refused_while_dropout_is_active() -> None:
    dropped = Problem(path_graph(5), GCN(3, 4, 3, 2, dropout=0.5, dtype=torch.float64))
    state = LMC().init(dropped)
    with pytest.raises(InvalidInputError, match=r"dropout is active.*model\.eval"):
        LMC().estimate(dropped, state, Batch.of([0, 1], 0.5))


def test_lazily_initialised_convolutions_are_refused() -> None:
    with (
        torch.random.fork_rng(devices=[]),
        pytest.raises(InvalidInputError, match=r"lazily initialised.*instead of -1"),
    ):
        PyGConv(SAGEConv(-1, 4))


def test_an_error_inside_a_convolution_is_named() -> None:
    class Broken(MessagePassing):
        def forward(self, x, edge_index):  # type: ignore[no-untyped-def]
            return self.no_such_attribute

    model = LayeredModel([ConvLayer(PyGConv(Broken()))])
    with pytest.raises(InvalidInputError, match=r"Broken.*AttributeError.*no_such_attribute"):
        Problem(path_graph(5), model)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": np.eye(4)}, "data.x is ndarray"),
        ({"x": torch.eye(4).to_sparse()}, "data.x is torch.sparse_coo"),
        ({"edge_weight": [1.0]}, "data.edge_weight is list"),
        ({"edge_index": torch.zeros(2, 1)}, "edge_index must hold integers, got torch.float32"),
        ({"num_nodes": 9}, "data.num_nodes is 9, x has 4 rows"),
        ({"y": torch.tensor([[0.0], [1.0], [3.0], [0.0]])}, r"node 2 has target 3\.0.*y\.long\(\)"),
    ],
    ids=["numpy", "sparse", "list", "float edges", "more nodes than rows", "float classes"],
)
def test_data_that_is_no_graph_is_refused(changes: dict[str, object], message: str) -> None:
    data = Data(x=torch.eye(4), y=torch.arange(4), edge_index=torch.tensor([[0], [1]]))
    for key, value in changes.items():
        setattr(data, key, value)
    with pytest.raises(InvalidInputError, match=message):
        Graph.from_pyg(data)


@pytest.mark.parametrize("parts", [8, 12, 17, 30, 34])
def test_metis_gives_as_many_clusters_as_were_asked_for(parts: int) -> None:
    assert Partition.metis(load_graph("karate"), parts).num_parts == parts


def _setting() -> dict[str, Any]:
    graph = path_graph(6)
    partition = Partition.contiguous(6, 3)
    made = Problem(graph, GCN(3, 4, 3, 2, dtype=torch.float64).eval())
    return {
        "graph": graph,
        "partition": partition,
        "problem": made,
        "design": Clusters(partition, 1),
        "exact": exact_pass(made),
        "generator": np.random.default_rng(0),
    }


WRONG_KINDS: dict[str, Callable[..., object]] = {
    "the name of the partition method is a Graph": lambda graph, **_: make_partition(graph, graph, 3),  # type: ignore[arg-type]
    "graph is a str, it must be a Graph": lambda graph, **_: make_partition("metis", graph, 3),  # type: ignore[arg-type]
    "num_parts is '3', it must be a whole number": lambda graph, **_: make_partition(graph, "random", "3"),  # type: ignore[arg-type]
    "num_parts is 3.0, it must be a whole number": lambda graph, **_: make_partition(graph, "contiguous", 3.0),  # type: ignore[arg-type]
    "seed is 'a', it must be a whole number": lambda graph, **_: make_partition(graph, "random", 3, seed="a"),  # type: ignore[arg-type]
    "partition is a int, it must be a Partition": lambda partition, **_: Clusters(1, partition),
    "partition is a Graph": lambda graph, **_: EpochClusters(graph, 1),
    "partition is a Batch": lambda graph, **_: FusedClusters(Batch(torch.arange(2), torch.ones(2)), 1),  # type: ignore[arg-type]
    "per_batch is 1.0, it must be a whole number": lambda partition, **_: Clusters(partition, 1.0),  # type: ignore[arg-type]
    "size is '2', it must be a whole number": lambda **_: UniformNodes(6, "2"),  # type: ignore[arg-type]
    "problem is a Graph, it must be a Problem": lambda graph, **_: exact_pass(graph),
    "problem is a Graph, it must be a Problem; look": lambda graph, **_: exact_gradient(graph),
    "graph is a NoneType, it must be a Graph": lambda problem, **_: Problem(None, problem.model),  # type: ignore[arg-type]
    "problem is a ExactPass": lambda problem, exact, design, **_: range_bound(
        exact, problem, LMC().init(problem), design, LMC()
    ),
    "generator is a int, it must be a Generator": lambda problem, design, **_: TrainingRun(
        problem,
        LMC(),
        design,
        step_size=0.1,
        generator=0,  # type: ignore[arg-type]
    ),
    "estimator is Clusters": lambda problem, design, generator, **_: TrainingRun(
        problem, design, LMC(), step_size=0.1, generator=generator
    ),
    "the name of the estimator is a int, it must be a str": lambda **_: make_estimator(3),  # type: ignore[arg-type]
    "the name of the model is a int": lambda **_: make_model(2, "gcn", 2, 2, 2),  # type: ignore[arg-type]
    "the name of the data set is a int": lambda **_: load_graph(3),  # type: ignore[arg-type]
    "the name of the claim is a Problem": lambda problem, design, **_: check_claim(problem, "c", design, LMC()),
    "graph is a str": lambda graph, **_: write_graph("folder", graph),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("message", WRONG_KINDS)
def test_arguments_of_another_kind_or_in_another_order_are_named(message: str) -> None:
    with pytest.raises(InvalidInputError, match=re.escape(message)):
        WRONG_KINDS[message](**_setting())


def test_whole_numbers_of_other_libraries_are_whole_numbers() -> None:
    for value in (2, np.int64(2), torch.tensor(2)):
        require_whole("per_batch", value)
    for wrong in (2.0, "2", None, torch.tensor(2.0), [2]):
        with pytest.raises(InvalidInputError, match=r"per_batch is .* must be a whole number"):
            require_whole("per_batch", wrong)


def test_without_metis_another_partition_is_advised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pymetis", None)
    with pytest.raises(InvalidInputError, match=r"not installed.*lmc-verify\[metis\].*random or contiguous"):
        make_partition(path_graph(6), "metis", 3)
    assert make_partition(path_graph(6), "random", 3).num_parts == 3


def test_installation_asks_for_metis_only_where_it_has_wheels() -> None:
    """There is none for Windows, where pip would build it and fail without a compiler."""
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (metis,) = (item for item in map(Requirement, project["dependencies"]) if item.name == "pymetis")
    assert metis.marker is not None
    assert metis.marker.evaluate({"sys_platform": "linux"})
    assert metis.marker.evaluate({"sys_platform": "darwin"})
    assert not metis.marker.evaluate({"sys_platform": "win32"})
    assert any(Requirement(item).name == "pymetis" for item in project["optional-dependencies"]["metis"])


@pytest.mark.parametrize("kind", [kind for kind in map(vars(errors).get, errors.__all__) if isinstance(kind, type)])
def test_errors_come_from_other_processes_as_they_were_made(kind: type[errors.LmcVerifyError]) -> None:
    made = (
        kind("claim", "theorem-9", ["b", "a"]) if kind is errors.UnknownNameError else kind("what, limit, what to do")
    )
    again = pickle.loads(pickle.dumps(made))
    assert (type(again), str(again), vars(again), again.exit_code) == (kind, str(made), vars(made), made.exit_code)
