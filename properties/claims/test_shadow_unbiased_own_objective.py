"""shaDow is unbiased for the loss of every target on its own ego network, and for the whole graph's only there."""

from __future__ import annotations

import pytest
import torch
from common.helpers import assert_close, assert_gradients, examples, expectation, path_graph
from hypothesis import given
from hypothesis import strategies as st

from lmc_verify import (
    GCN,
    Batch,
    History,
    Problem,
    UniformNodes,
    check_claim,
    exact_pass,
)
from lmc_verify.claims import Outcome
from lmc_verify.estimators import TOP, Shadow
from lmc_verify.testing import graphs, problems

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


@pytest.mark.slow
@examples(25)
@given(problem=small, extra=st.integers(0, 1))
def test_shadow_with_whole_weights_and_enough_depth_is_the_whole_graph_s(problem: Problem, extra: int) -> None:
    estimator = Shadow(problem.num_layers + extra, renormalise=False)
    assert_gradients("objective", estimator.objective(problem)[1], exact_pass(problem).gradient, rtol=1e-9)


def test_shadow_s_claim_and_the_whole_graph_s() -> None:
    graph = path_graph(5)
    problem = Problem(graph, GCN(3, 3, 3, 2, seed=1, dtype=torch.float64).eval())
    design = UniformNodes(5, 2)
    verdict = check_claim("shadow/unbiased-own-objective", problem, design, Shadow(1))
    assert verdict.outcome is Outcome.EXACT
    assert check_claim("theorem-1/unbiased", problem, design, Shadow(1)).outcome is Outcome.REFUTED
    broken = Shadow(1, weighting="batch-mean")
    partial = Problem(graph.replaced(train_mask=torch.tensor([True, True, False, True, False])), problem.model)
    assert check_claim("shadow/unbiased-own-objective", partial, design, broken).outcome is Outcome.REFUTED
    assert check_claim("shadow/unbiased-own-objective", problem, design, TOP()).outcome is Outcome.NOT_APPLICABLE
