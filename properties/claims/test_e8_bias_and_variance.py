"""E8: bias and variance are told apart exactly, and Backward SGD's variance has the closed form that is claimed."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from common import oracles
from common.crossed import crossed
from common.helpers import (
    assert_close,
    oracle_problem,
    path_graph,
)
from common.identities import estimate, with_partition
from hypothesis import given
from hypothesis import strategies as st

from lmc_verify import (
    FM,
    GAS,
    GCN,
    LMC,
    BackwardSGD,
    Batch,
    ClusterGCN,
    Clusters,
    Estimator,
    Partition,
    Problem,
    UniformNodes,
    exact_pass,
    testing,
)
from lmc_verify.cases.case import Case, assemble_case, build_case
from lmc_verify.cases.settings import CaseSettings
from lmc_verify.cases.workspace import Workspace
from lmc_verify.claims import Outcome
from lmc_verify.claims.consequences import e8_bias_and_variance as module
from lmc_verify.claims.consequences.e8_bias_and_variance import BIAS_AND_VARIANCE, closed_form_variance
from lmc_verify.estimators import FullBatch

WORKSPACE = Workspace()
ESTIMATORS = [
    {"name": "backward-sgd"},
    {"name": "lmc"},
    {"name": "lmc", "beta": 0.4},
    {"name": "gas", "weighting": "node-count"},
    {"name": "fm"},
    {"name": "cluster-gcn"},
    {"name": "full-batch"},
]
MODELS: dict[str, dict[str, Any]] = {
    "gcn": {"layers": 2, "width": 4},
    "post": {"layers": 2, "width": 4, "activation_cut": "post"},
    "gat": {"name": "gat", "layers": 2, "width": 3, "encoder": True, "head": True},
}


def karate(estimator: dict[str, Any], model: str = "gcn", **values: Any) -> Case:
    given_values = {
        "dataset": {"name": "karate"},
        "model": MODELS[model],
        "design": {"parts": 6, "per_batch": 2},
        "estimator": estimator,
    }
    return build_case(CaseSettings.model_validate(given_values | values), WORKSPACE)


def small(estimator: Estimator, design: Clusters | UniformNodes) -> Case:
    graph = path_graph(7)
    model = GCN(graph.num_features, 3, 3, num_layers=2, seed=2, dtype=torch.float64)
    return assemble_case(Problem(graph, model.eval()), design, estimator)


def unequal(per_batch: int = 2) -> Clusters:
    return Clusters(Partition(torch.tensor([0, 0, 0, 1, 2, 2, 3]), "unequal"), per_batch)


@pytest.mark.parametrize(
    ("estimator", "model"),
    crossed(ESTIMATORS, MODELS),
    ids=lambda item: item if isinstance(item, str) else "-".join(map(str, item.values())),
)
def test_the_identities_hold_for_every_estimator(estimator: dict[str, Any], model: str) -> None:
    case = karate(estimator, model)
    verdict = BIAS_AND_VARIANCE.check(case)
    assert verdict.outcome is BIAS_AND_VARIANCE.expect(case).outcome is Outcome.EXACT, verdict.summary
    identities = [item for item in verdict.evidence if item.group == "identities"]
    closed = [item for item in identities if "b^2" in item.quantity]
    parts = {case.problem.layer_of(name) for name in case.exact.gradient}
    assert len(identities) - len(closed) == len(parts)
    assert len(closed) == (len(parts) if estimator["name"] == "backward-sgd" else 0)
    assert verdict.minimum_detectable_effect is not None
    assert 0 < verdict.minimum_detectable_effect < 1e-8
    assert all(item.tolerance is not None and item.value <= item.tolerance < 1e-9 for item in identities)


@pytest.mark.parametrize("per_batch", [1, 2, 3, 4])
def test_the_closed_form_is_the_enumerated_variance_and_the_oracles(per_batch: int) -> None:
    for design, groups in (
        (unequal(per_batch), [[0, 1, 2], [3], [4, 5], [6]]),
        (UniformNodes(7, per_batch), [[node] for node in range(7)]),
    ):
        case = small(BackwardSGD(), design)
        found = closed_form_variance(case)
        assert found is not None
        plain = oracle_problem(case.problem)
        want = oracles.backward_sgd_cluster_variance(plain, groups, per_batch)
        assert_close("closed form", sum(found.values()), want)
        probability = design.inclusion_probabilities().numpy()
        estimates = np.array(
            [oracles.backward_sgd(plain, batch.nodes.numpy(), probability).flat() for batch, _ in design.enumerate()]
        )
        assert_close("enumerated", estimates.var(axis=0).sum(), want)
        verdict = BIAS_AND_VARIANCE.check(case)
        assert verdict.outcome is Outcome.EXACT, verdict.summary
        assert "the variance is its closed form" in verdict.summary


def test_designs_without_a_closed_form_have_none() -> None:
    case = karate({"name": "backward-sgd"}, design={"name": "epoch", "parts": 5, "per_batch": 2})
    assert closed_form_variance(case) is None
    verdict = BIAS_AND_VARIANCE.check(case)
    assert verdict.outcome is Outcome.EXACT
    assert "closed form" not in verdict.summary
    assert [item.holds for item in verdict.assumptions if item.id == "closed-form"] == [False]
    of_lmc = BIAS_AND_VARIANCE.check(karate({"name": "lmc"}))
    assert [item.holds for item in of_lmc.assumptions if item.id == "closed-form"] == [None]


@pytest.mark.parametrize("factor", [1 - 1e-6, 4 / 3, 2.0, 0.0])
def test_a_wrong_closed_form_is_refuted(factor: float, monkeypatch: pytest.MonkeyPatch) -> None:
    case = karate({"name": "backward-sgd"})
    right = closed_form_variance(case)
    assert right is not None
    monkeypatch.setattr(module, "closed_form_variance", lambda *_: {k: factor * v for k, v in right.items()})
    verdict = BIAS_AND_VARIANCE.check(case)
    assert verdict.outcome is Outcome.REFUTED
    assert "an identity is off by" in verdict.summary


def test_a_variance_about_the_wrong_mean_is_refuted(monkeypatch: pytest.MonkeyPatch) -> None:
    class Shifted(module.MomentAccumulator):  # type: ignore[misc]
        def result(self) -> Any:
            found = super().result()
            return type(found)(found.mean, found.variance + 1e-6, found.mean_norm, found.atoms, found.mass)

    monkeypatch.setattr(module, "MomentAccumulator", Shifted)
    assert BIAS_AND_VARIANCE.check(karate({"name": "gas"})).outcome is Outcome.REFUTED


@pytest.mark.parametrize("estimator", [BackwardSGD(), LMC(), GAS(), FM(), ClusterGCN(), FullBatch()])
def test_whole_graph_batches_have_neither_bias_nor_variance(estimator: Estimator) -> None:
    verdict = BIAS_AND_VARIANCE.check(small(estimator, unequal(4)))
    assert verdict.outcome is Outcome.EXACT, verdict.summary
    for item in verdict.evidence:
        assert item.value < 1e-12, item
    assert verdict.minimum_detectable_effect is not None
    assert verdict.minimum_detectable_effect < 1e-8


@pytest.mark.slow
@given(testing.problems(testing.graphs(min_nodes=3)), st.data())
def test_the_figures_are_those_of_a_direct_computation(problem: Problem, data: st.DataObject) -> None:
    design = data.draw(testing.designs(problem.graph, max_support=12))
    estimator = data.draw(st.sampled_from([BackwardSGD(), LMC(beta=0.3), GAS(), FM(), FullBatch()]))
    case = assemble_case(problem, design, estimator, histories=data.draw(st.sampled_from(["exact", "zero"])))
    verdict = BIAS_AND_VARIANCE.check(case)
    if verdict.outcome is Outcome.NOT_APPLICABLE:
        return
    assert verdict.outcome in (Outcome.EXACT, Outcome.INCONCLUSIVE), verdict.summary
    rows, weights, state = [], [], case.initial_state()
    for batch, probability in design.enumerate():
        gradient = estimator.estimate(problem, state, batch).gradient
        rows.append({name: value.numpy().ravel() for name, value in gradient.items()})
        weights.append(probability)
    for part in {problem.layer_of(name) for name in case.exact.gradient}:
        names = [name for name in case.exact.gradient if problem.layer_of(name) == part]
        exact = np.concatenate([case.exact.gradient[name].numpy().ravel() for name in names])
        values = np.stack([np.concatenate([row[name] for name in names]) for row in rows])
        unit = float(np.linalg.norm(exact)) or 1.0
        errors = np.linalg.norm(values - exact, axis=1)
        mean = np.average(values, axis=0, weights=weights)
        want = {
            "root mean square error per layer": math.sqrt(np.average(errors**2, weights=weights)) / unit,
            "mean relative error per layer": np.average(errors, weights=weights) / unit,
            "bias per layer": float(np.linalg.norm(mean - exact)) / unit,
            "standard deviation per layer": math.sqrt(np.average(((values - mean) ** 2).sum(axis=1), weights=weights))
            / unit,
        }
        scale = max(1.0, float(np.abs(values).max()) / unit)
        got = {item.group: item.value for item in verdict.evidence if item.quantity == part}
        for group, value in want.items():
            assert_close(f"{group}, {part}", got[group], value, rtol=1e-7, scale=scale)


@pytest.mark.slow
@given(with_partition())
def test_backward_sgd_variance_over_clusters_is_the_formula(drawn: tuple) -> None:
    problem, partition = drawn
    b = partition.num_parts
    estimator, exact = BackwardSGD(), exact_pass(problem)
    step = estimate(estimator, problem, estimator.init(problem))

    def flat(gradient: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.cat([value.flatten() for value in gradient.values()])

    sums = torch.stack([flat(step(Batch.of(cluster))) for cluster in partition.clusters])
    spread = (sums - sums.mean(0)).square().sum() / max(b - 1, 1)
    for c in range(1, b + 1):
        got = sum(
            p * (flat(step(batch)) - flat(exact.gradient)).square().sum()
            for batch, p in Clusters(partition, c).enumerate()
        )
        want = b**2 * (1 - c / b) * spread / c
        assert_close(f"Var over {c} of {b} clusters", got, want, rtol=1e-9)
