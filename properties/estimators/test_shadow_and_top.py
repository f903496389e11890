"""shaDow and TOP keep the contract of estimators, and TOP's combinations are those of its least squares."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from common.helpers import assert_close, assert_gradients, examples, path_graph
from common.twin_ring import ring
from hypothesis import given
from hypothesis import strategies as st

from lmc_verify import (
    GCN,
    Batch,
    History,
    InvalidInputError,
    Problem,
    exact_pass,
    load_graph,
)
from lmc_verify.estimators import TOP, Shadow, TOPKrylov
from lmc_verify.estimators.top import MessageInvariance
from lmc_verify.testing import batches, graphs, problems

small = problems(graphs(max_nodes=5, max_edges=8), max_layers=2)


@pytest.mark.slow
@examples(25)
@given(data=st.data(), problem=small)
def test_estimates_are_pure(data: st.DataObject, problem: Problem) -> None:
    batch = data.draw(batches(problem.graph))
    for estimator in (Shadow(1), TOP(), TOP(out_of_batch=True), TOPKrylov()):
        state = estimator.init(problem)
        kept = state.clone()
        first, second = (estimator.estimate(problem, state, batch) for _ in range(2))
        assert all(torch.equal(first.gradient[name], second.gradient[name]) for name in problem.parameter_names)
        assert list(first.gradient) == list(problem.parameter_names)
        assert first.loss == second.loss
        assert state.equals(kept)
        assert first.writes == ()
        if not problem.graph.train_mask[batch.nodes].any():
            assert first.loss == 0


@examples(25)
@given(problem=small)
@pytest.mark.parametrize("estimator", [TOP(), TOPKrylov()], ids=str)
def test_top_on_the_whole_graph_is_exact(estimator: MessageInvariance, problem: Problem) -> None:
    everything = Batch.of(range(problem.graph.num_nodes))
    estimate = estimator.estimate(problem, estimator.init(problem), everything)
    assert_gradients("whole graph", estimate.gradient, exact_pass(problem).gradient, rtol=1e-9)


@pytest.mark.parametrize("estimator", [TOP(), TOPKrylov()], ids=str)
def test_top_finds_the_twins(estimator: MessageInvariance) -> None:
    problem = ring()
    found = estimator.invariance(problem, estimator.init(problem), torch.tensor([2, 3]))
    assert found.halo.tolist() == [1, 4]
    assert_close("R", found.coefficients, np.array([[0.0, 1.0], [1.0, 0.0]]))


def test_krylov_combinations_carry_a_bias() -> None:
    """Features 1 and 2 in the batch, 1.5 and 4 in the halo: with coefficients that sum to 1 there is one way each."""
    x = torch.tensor([[1.0], [2.0], [1.5], [4.0]], dtype=torch.float64)
    graph = path_graph(4, x=x, edge_index=torch.tensor([[2, 3], [0, 1]]))
    problem = Problem(graph, GCN(1, 2, 3, 1, dtype=torch.float64).eval())
    found = TOPKrylov().invariance(problem, TOPKrylov().init(problem), torch.tensor([0, 1]))
    assert found.halo.tolist() == [2, 3]
    assert_close("R", found.coefficients, np.array([[0.5, 0.5], [-2.0, 3.0]]))


def test_misuse_is_refused() -> None:
    problem = ring()
    with pytest.raises(InvalidInputError, match="depth is -1"):
        Shadow(-1)
    with pytest.raises(InvalidInputError, match="tolerance is 1"):
        TOP(tolerance=1)
    with pytest.raises(InvalidInputError, match="random_models is 0"):
        TOP(random_models=0)
    with pytest.raises(InvalidInputError, match="no basis of 8 nodes"):
        TOP().estimate(problem, History(), Batch.of([0]))


def test_a_batch_that_comes_again_is_fitted_again_only_for_another_basis() -> None:
    graph = load_graph("karate").double()
    problem = Problem(graph, GCN(graph.num_features, 4, graph.num_outputs, num_layers=2).double())
    estimator, batch = TOPKrylov(), Batch.of(range(10), 0.5)
    state = estimator.init(problem)
    first = estimator.estimate(problem, state, batch).gradient
    again = estimator.estimate(problem, state, batch).gradient
    assert all(torch.equal(first[name], again[name]) for name in first)
    other = state.clone()
    other.vectors["basis"] = other.vectors["basis"][:, :1].clone()
    there = estimator.estimate(problem, other, batch).gradient
    fresh = estimator.estimate(problem, other, Batch.of(range(10), 0.5)).gradient
    assert all(torch.equal(there[name], fresh[name]) for name in first)
    assert not all(torch.equal(first[name], there[name]) for name in first)


@pytest.mark.slow
@examples(25)
@given(data=st.data(), problem=problems(graphs(max_nodes=5, max_edges=8), kinds=("sage",), max_layers=2))
def test_messages_are_those_of_the_edges_one_by_one(data: st.DataObject, problem: Problem) -> None:
    """Of a layer without self-loops of its own: those into the batch's rows, and those inside of the ego networks."""
    batch = data.draw(batches(problem.graph))
    edges, layers = problem.graph.edge_index.T.tolist(), problem.num_layers
    cost = TOP().estimate(problem, TOP().init(problem), batch).cost
    inside = set(batch.nodes.tolist())
    assert cost.messages_forward == cost.messages_backward == layers * sum(v in inside for _, v in edges)
    total = rows = 0
    for target in inside:
        ego = {target}
        for _ in range(2):
            ego |= {u for u, v in edges if v in ego}
        total += sum(u in ego and v in ego for u, v in edges)
        rows += len(ego)
    cost = Shadow(2).estimate(problem, History(), batch).cost
    assert cost.messages_forward == cost.messages_backward == layers * total
    assert cost.nodes == rows
