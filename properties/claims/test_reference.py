"""The reference is Backward SGD by its definition: the engine's estimates agree with it, and it owes them nothing."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from common.helpers import assert_gradients, path_graph
from hypothesis import given
from hypothesis import strategies as st

from lmc_verify import BackwardSGD, Problem, exact_pass, testing
from lmc_verify.cases.case import assemble_case
from lmc_verify.claims.reference import BackwardRows, Reference
from lmc_verify.estimators import LOSS_WEIGHTINGS
from lmc_verify.estimators.compensated import members
from lmc_verify.graphs import Batch, Clusters, Partition
from lmc_verify.models import GCNII, RecurrentGNN
from lmc_verify.objective import Gradient


@pytest.mark.slow
@given(testing.problems(), st.data())
def test_it_is_what_the_engine_computes(problem: Problem, data: st.DataObject) -> None:
    batch, weighting = data.draw(testing.batches(problem.graph)), data.draw(st.sampled_from(LOSS_WEIGHTINGS))
    exact, engine = exact_pass(problem), BackwardSGD(weighting=weighting)
    found = engine.estimate(problem, engine.init(problem), batch).gradient
    assert_gradients(f"{engine} on {batch}", found, BackwardRows(problem, exact).on(batch, weighting))


@pytest.mark.slow
@given(testing.problems(), st.data())
def test_gradients_of_clusters_that_are_kept_add_up_to_those_of_batches(problem: Problem, data: st.DataObject) -> None:
    """Batches that cut a cluster, or weight it unevenly, are no sums of clusters."""
    design = data.draw(testing.designs(problem.graph))
    batch = data.draw(st.sampled_from([batch for batch, _ in design.enumerate()]) | testing.batches(problem.graph))
    weighting, exact = data.draw(st.sampled_from(LOSS_WEIGHTINGS)), exact_pass(problem)
    kept, plain = BackwardRows(problem, exact, design), BackwardRows(problem, exact)
    assert_gradients(f"{batch} of {design}", kept.on(batch, weighting), plain.on(batch, weighting))


def test_a_batch_of_clusters_that_are_kept_costs_no_backward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = Problem(path_graph(9), RecurrentGNN(3, 3, 3, num_layers=2, seed=1, dtype=torch.float64).eval())
    design = Clusters(Partition(torch.arange(9) % 3), 2)
    rows, passes = BackwardRows(problem, exact_pass(problem), design), list[torch.Tensor]()

    def counted(weights: torch.Tensor) -> Gradient:
        passes.append(weights)
        return BackwardRows.gradient(rows, weights)

    monkeypatch.setattr(rows, "gradient", counted)
    for batch, _ in design.enumerate():
        rows.on(batch)
    assert len(passes) == 3
    rows.on(Batch.of(torch.tensor([0, 4]), 0.5))
    assert len(passes) == 4


@pytest.mark.parametrize("partition", ["metis", Partition(torch.arange(4) % 2)])
def test_a_design_of_one_s_own_may_call_anything_its_partition(partition: Any) -> None:
    problem = Problem(path_graph(6), RecurrentGNN(3, 3, 3, num_layers=2, seed=1, dtype=torch.float64).eval())
    exact, batch = exact_pass(problem), Batch.of(torch.tensor([0, 4]), 0.5)
    rows = BackwardRows(problem, exact, cast(Any, SimpleNamespace(partition=partition)))
    assert_gradients("own design", rows.on(batch), BackwardRows(problem, exact).on(batch))


@given(testing.problems())
def test_all_nodes_with_weight_one_give_the_exact_gradient(problem: Problem) -> None:
    exact = exact_pass(problem)
    ones = torch.ones(problem.graph.num_nodes, dtype=torch.float64)
    assert_gradients("w = 1", BackwardRows(problem, exact).gradient(ones), exact.gradient)


@pytest.mark.parametrize("kind", [GCNII, RecurrentGNN])
def test_layers_that_read_the_features_again_and_shared_layers(kind: Any) -> None:
    graph = path_graph(7)
    model = kind(graph.num_features, 4, 3, num_layers=3, seed=1, dtype=torch.float64).eval()
    problem = Problem(graph, model)
    exact, engine = exact_pass(problem), BackwardSGD()
    rows, state = BackwardRows(problem, exact), engine.init(problem)
    for batch, _ in Clusters(Partition(torch.arange(7) % 3), 2).enumerate():
        assert_gradients(kind.__name__, engine.estimate(problem, state, batch).gradient, rows.on(batch))


def test_a_defect_of_the_engine_is_not_in_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = Problem(path_graph(6), RecurrentGNN(3, 3, 3, num_layers=2, seed=1, dtype=torch.float64).eval())
    case = assemble_case(problem, Clusters(Partition(torch.arange(6) % 3), 1), BackwardSGD())
    batch = next(iter(case.design.enumerate()))[0]
    before = Reference(case).expected(batch)

    def broken(*_: Any) -> Any:
        raise AssertionError("the reference asked the engine")

    monkeypatch.setattr(members, "estimate_compensated", broken)
    assert_gradients("reference", Reference(case).expected(batch), before)
