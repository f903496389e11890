"""TOP is exact where the halo is made of the batch at all parameters, and only there."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from common.helpers import assert_gradients
from common.twin_ring import HALVES, ring

from lmc_verify import (
    GCN,
    Batch,
    Graph,
    History,
    Problem,
    UniformNodes,
    check_claim,
    load_graph,
)
from lmc_verify.claims import Outcome
from lmc_verify.claims.samplers.top_exact_in_span import batch_gradient
from lmc_verify.estimators import TOP, TOPKrylov
from lmc_verify.estimators.top import MessageInvariance


@pytest.mark.parametrize("estimator", [TOP(), TOP(out_of_batch=True), TOPKrylov()], ids=str)
def test_top_is_exact_in_the_span_and_biased_outside(estimator: MessageInvariance) -> None:
    problem = ring(3)
    assert check_claim("top/exact-in-span", problem, HALVES, estimator).outcome is Outcome.EXACT
    assert check_claim("theorem-1/unbiased", problem, HALVES, estimator).outcome is Outcome.EXACT
    x = problem.graph.x.clone()
    x[0] += 0.3
    other = Problem(problem.graph.replaced(x=x), problem.model, "bce")
    verdict = check_claim("top/exact-in-span", other, HALVES, estimator)
    assert verdict.outcome is Outcome.NOT_APPLICABLE
    assert "R S_batch is off the halo's rows by up to " in verdict.summary
    assert check_claim("theorem-1/unbiased", other, HALVES, estimator).outcome is Outcome.REFUTED


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


def test_a_law_that_cannot_be_enumerated_is_not() -> None:
    graph: Graph = load_graph("ring", num_nodes=60).double()
    problem = Problem(graph, GCN(graph.num_features, 3, graph.num_outputs, 2, dtype=torch.float64).eval(), "bce")
    verdict = check_claim("top/exact-in-span", problem, UniformNodes(60, 10), TOP())
    assert verdict.outcome is Outcome.NOT_APPLICABLE
