"""The plug-ins are found by name, and keep the contracts of lmc-verify."""

from __future__ import annotations

from collections.abc import Callable

import torch
from lmc_verify_example.estimator import ScaledGAS

import lmc_verify as lv
from lmc_verify.testing import Census, aggregate_dependence, check_estimator, parametrize_with_checks


@parametrize_with_checks([ScaledGAS(), ScaledGAS(factor=1.5)])
def test_the_estimator_conforms(check: Callable[[], None]) -> None:
    check()


def test_nothing_fails_and_the_declared_claims_are_among_what_is_checked() -> None:
    results = check_estimator(lv.make_estimator("gas-scaled"))
    assert Census.of(results).failed == 0
    assert {f"claim {claim}" for claim in ScaledGAS.claims} <= {result.check for result in results}


def test_all_four_work_together() -> None:
    graph = lv.load_graph("two-cliques", size=6).double()
    model = lv.make_model("sgc", graph.num_features, 5, graph.num_outputs, dtype=torch.float64).eval()
    problem = lv.Problem(graph, model)
    design = lv.Clusters(lv.Partition.random(graph.num_nodes, 4), per_batch=1)
    assert lv.check_claim("e2/exact-when-frozen", problem, design, lv.LMC()).outcome is lv.Outcome.EXACT
    estimator = lv.make_estimator("gas-scaled", factor=1.2)
    assert lv.check_claim("theorem-1/unbiased", problem, design, estimator).outcome is lv.Outcome.REFUTED
    assert lv.check_claim("example/loss-unbiased", problem, design, estimator).outcome is lv.Outcome.EXACT


def test_the_layer_is_aggregate_linear_as_it_says() -> None:
    graph = lv.load_graph("two-cliques", size=4).double()
    model = lv.make_model("sgc", graph.num_features, 3, graph.num_outputs, dtype=torch.float64)
    layer, rows = model.layer(1), model.encode(graph.x).detach()
    assert layer.aggregate_linear
    assert aggregate_dependence(layer, graph, 0, torch.tensor([1, 4]), rows, rows) < 1e-12
