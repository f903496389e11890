"""shaDow is unbiased for its own objective, TOP exact where the halo is made of the batch: and both only there."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from common.helpers import assert_close, assert_gradients, examples, expectation, path_graph
from hypothesis import given
from hypothesis import strategies as st

from lmc_verify import (
    GCN,
    Batch,
    Clusters,
    Graph,
    History,
    InvalidInputError,
    Partition,
    Problem,
    UniformNodes,
    check_claim,
    exact_pass,
    load_graph,
)
from lmc_verify.claims import Outcome
from lmc_verify.claims.samplers.top_exact_in_span import batch_gradient
from lmc_verify.estimators import TOP, Shadow
from lmc_verify.testing import batches, graphs, problems

small = problems(graphs(max_nodes=5, max_edges=8), max_layers=2)


@examples(25)
@given(problem=small, depth=st.integers(0, 2), renormalise=st.booleans())
def test_shadow_is_unbiased_for_its_objective(problem: Problem, depth: int, renormalise: bool) -> None:
    estimator, n = Shadow(depth, renormalise), problem.graph.num_nodes
    loss, gradient = estimator.objective(problem)
    design = UniformNodes(n, max(1, n - 1))
    mean = expectation(design, lambda batch: estimator.estimate(problem, History(), batch).gradient)
    assert_gradients("mean", mean, gradient, rtol=1e-9)
    assert_close("loss", estimator.estimate(problem, History(), Batch.of(range(n))).loss, loss)


@examples(25)
@given(problem=small, extra=st.integers(0, 1))
def test_shadow_with_whole_weights_and_enough_depth_is_the_whole_graph_s(problem: Problem, extra: int) -> None:
    estimator = Shadow(problem.num_layers + extra, renormalise=False)
    assert_gradients("objective", estimator.objective(problem)[1], exact_pass(problem).gradient, rtol=1e-9)


@examples(25)
@given(data=st.data(), problem=small)
def test_estimates_are_pure(data: st.DataObject, problem: Problem) -> None:
    batch = data.draw(batches(problem.graph))
    for estimator in (Shadow(1), TOP()):
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
def test_top_on_the_whole_graph_is_exact(problem: Problem) -> None:
    estimator = TOP()
    everything = Batch.of(range(problem.graph.num_nodes))
    estimate = estimator.estimate(problem, estimator.init(problem), everything)
    assert_gradients("whole graph", estimate.gradient, exact_pass(problem).gradient, rtol=1e-9)


def ring(layers: int = 2, **changes: object) -> Problem:
    """Return a ring in which every node has a twin two steps on."""
    graph: Graph = load_graph("ring", num_nodes=8, noise=0.0, flips=0.0).double()
    x = torch.tensor([[1.0, 0.5], [-0.5, 2.0]], dtype=torch.float64).repeat(4, 1)
    graph = graph.replaced(x=x, **changes)
    return Problem(graph, GCN(2, 3, graph.num_outputs, layers, seed=1, dtype=torch.float64).eval(), "bce")


HALVES = Clusters(Partition(torch.arange(8) // 2), 1)


def test_top_finds_the_twins() -> None:
    problem, estimator = ring(), TOP()
    found = estimator.invariance(problem, estimator.init(problem), torch.tensor([2, 3]))
    assert found.halo.tolist() == [1, 4]
    assert_close("R", found.coefficients, np.array([[0.0, 1.0], [1.0, 0.0]]))


def test_top_s_combinations_carry_a_bias() -> None:
    """Features 1 and 2 in the batch, 1.5 and 4 in the halo: with coefficients that sum to 1 there is one way each."""
    x = torch.tensor([[1.0], [2.0], [1.5], [4.0]], dtype=torch.float64)
    graph = path_graph(4, x=x, edge_index=torch.tensor([[2, 3], [0, 1]]))
    problem = Problem(graph, GCN(1, 2, 3, 1, dtype=torch.float64).eval())
    found = TOP().invariance(problem, TOP().init(problem), torch.tensor([0, 1]))
    assert found.halo.tolist() == [2, 3]
    assert_close("R", found.coefficients, np.array([[0.5, 0.5], [-2.0, 3.0]]))


def test_top_is_exact_in_the_span_and_biased_outside() -> None:
    problem = ring(3)
    assert check_claim("top/exact-in-span", problem, HALVES, TOP()).outcome is Outcome.EXACT
    assert check_claim("theorem-1/unbiased", problem, HALVES, TOP()).outcome is Outcome.EXACT
    x = problem.graph.x.clone()
    x[0] += 0.3
    other = Problem(problem.graph.replaced(x=x), problem.model, "bce")
    verdict = check_claim("top/exact-in-span", other, HALVES, TOP())
    assert verdict.outcome is Outcome.NOT_APPLICABLE
    assert "fitted combinations" in verdict.summary
    assert check_claim("theorem-1/unbiased", other, HALVES, TOP()).outcome is Outcome.REFUTED


def test_equality_at_one_point_would_not_do() -> None:
    problem, estimator = ring(2), TOP()
    batch = Batch.of([2, 3], 0.25)
    exact = batch_gradient(problem, batch, "inclusion")
    assert_gradients("twins", estimator.estimate(problem, estimator.init(problem), batch).gradient, exact)

    class HalfWay(TOP):
        """A halo that is right in value and held constant."""

        def estimate(self, problem: Problem, state: History, batch: Batch):  # type: ignore[no-untyped-def]
            return replace(super().estimate(problem, state, batch), gradient=problem.zero_gradient())

    assert check_claim("top/exact-in-span", problem, HALVES, HalfWay()).outcome is Outcome.REFUTED


def test_shadow_s_claim_and_the_whole_graph_s() -> None:
    graph = path_graph(5)
    problem = Problem(graph, GCN(3, 3, 3, 2, seed=1, dtype=torch.float64).eval())
    design = UniformNodes(5, 2)
    verdict = check_claim("shadow/unbiased-own-objective", problem, design, Shadow(1))
    assert verdict.outcome is Outcome.EXACT
    assert check_claim("theorem-1/unbiased", problem, design, Shadow(1)).outcome is Outcome.REFUTED
    broken = Shadow(1, normaliser="batch-mean")
    partial = Problem(graph.replaced(train_mask=torch.tensor([True, True, False, True, False])), problem.model)
    assert check_claim("shadow/unbiased-own-objective", partial, design, broken).outcome is Outcome.REFUTED
    assert check_claim("shadow/unbiased-own-objective", problem, design, TOP()).outcome is Outcome.NOT_APPLICABLE


def test_misuse_is_refused() -> None:
    problem = ring()
    with pytest.raises(InvalidInputError, match="depth is -1"):
        Shadow(-1)
    with pytest.raises(InvalidInputError, match="tolerance is 1"):
        TOP(tolerance=1)
    with pytest.raises(InvalidInputError, match="no basis of 8 nodes"):
        TOP().estimate(problem, History(), Batch.of([0]))


def test_a_batch_that_comes_again_is_fitted_again_only_for_another_basis() -> None:
    graph = load_graph("karate").double()
    problem = Problem(graph, GCN(graph.num_features, 4, graph.num_outputs, num_layers=2).double())
    estimator, batch = TOP(), Batch.of(range(10), 0.5)
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
