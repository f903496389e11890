"""The bound behind Theorem 2 is never exceeded, and its assumptions are measured from both sides.

A bound that is broken, or so loose that it says nothing, must be called so; where no bound is proven none is claimed.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from common.helpers import path_graph
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lmc_verify import testing
from lmc_verify.bounds import ErrorBound, NoBound
from lmc_verify.cases.case import Case, assemble_case, build_case
from lmc_verify.cases.settings import CaseSettings, TrainingSettings
from lmc_verify.cases.workspace import Workspace
from lmc_verify.claims import Outcome
from lmc_verify.claims.theorems import theorem_2_a_posteriori_bound as module
from lmc_verify.claims.theorems.theorem_2_a_posteriori_bound import POSTERIOR_BOUND
from lmc_verify.claims.theorems.theorem_2_assumptions import ASSUMPTIONS
from lmc_verify.estimators import FM, GAS, LMC, BackwardSGD, ClusterGCN, Estimator, FullBatch
from lmc_verify.graphs.designs import Clusters
from lmc_verify.graphs.partition import Partition
from lmc_verify.models import GAT, GCN, ConvLayer, GCNConv, LayeredModel
from lmc_verify.models.convs import initialise
from lmc_verify.objective.exact import exact_pass
from lmc_verify.objective.problem import Problem
from lmc_verify.seeds import generator, torch_generator
from lmc_verify.training import TrainingRun

WORKSPACE = Workspace()


def small(estimator: Estimator, model: LayeredModel | None = None, per_batch: int = 1, **training: Any) -> Case:
    graph = path_graph(8)
    model = model or GCN(graph.num_features, 3, 3, num_layers=2, seed=2, dtype=torch.float64)
    design = Clusters(Partition(torch.arange(8) // 2, "pairs"), per_batch)
    settings = TrainingSettings(**({"steps": 6, "step_size": 0.3} | training))
    return assemble_case(Problem(graph, model.eval()), design, estimator, training=settings)


def karate(estimator: dict[str, Any], **values: Any) -> Case:
    given_values = {
        "dataset": {"name": "karate"},
        "model": {"layers": 2, "width": 4},
        "design": {"parts": 6, "per_batch": 2},
        "estimator": estimator,
        "training": {"steps": 20, "step_size": 0.5},
    }
    return build_case(CaseSettings.model_validate(given_values | values), WORKSPACE)


def smooth_model(activation: type[nn.Module] = nn.Tanh) -> LayeredModel:
    layers = [
        ConvLayer(GCNConv(3, 4, dtype=torch.float64)),
        ConvLayer(GCNConv(4, 3, dtype=torch.float64), before=activation()),
    ]
    model = LayeredModel(layers)
    initialise(model, torch_generator(1, "parameters"))
    return model


# --- the bound -----------------------------------------------------------------------------------------------------

ESTIMATORS: list[Estimator] = [
    BackwardSGD(),
    LMC(),
    LMC(beta=0.4),
    LMC(beta=1.0, score="constant", normaliser="batch-mean"),
    GAS(normaliser="node-count"),
    FM(),
    ClusterGCN(),
    ClusterGCN(renormalise=False),
]


@given(testing.problems(testing.graphs(min_nodes=2), kinds=("gcn", "sage")), st.data())
def test_the_bound_is_never_exceeded(problem: Problem, data: st.DataObject) -> None:
    design = data.draw(testing.designs(problem.graph, max_support=12))
    training = TrainingSettings(steps=3, step_size=data.draw(st.sampled_from([0.01, 0.3, 3.0])))
    case = assemble_case(
        problem, design, data.draw(st.sampled_from(ESTIMATORS)), seed=data.draw(testing.seeds()), training=training
    )
    verdict, theory = POSTERIOR_BOUND.check(case), POSTERIOR_BOUND.expect(case)
    assert verdict.outcome in (Outcome.SUPPORTED, Outcome.VACUOUS, Outcome.NOT_APPLICABLE), verdict.summary
    assert theory.outcome in (None, verdict.outcome), f"{verdict.summary}\ntheory: {theory}"
    if verdict.outcome is Outcome.NOT_APPLICABLE:
        assert any(item.holds is False and item.statement in verdict.summary for item in verdict.assumptions)


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=repr)
def test_the_curves_are_the_measured_error_and_its_bound(estimator: Estimator) -> None:
    verdict = POSTERIOR_BOUND.check(small(estimator))
    assert verdict.outcome in (Outcome.SUPPORTED, Outcome.VACUOUS), verdict.summary
    measured, bound = verdict.series
    assert measured.x == bound.x == tuple(range(6))
    assert all(low <= high + 1e-12 for low, high in zip(measured.y, bound.y, strict=True))
    # At the first step all histories are zero: whoever reads them, or drops messages, is wrong.
    assert (measured.y[0] > 1e-3) is not isinstance(estimator, BackwardSGD)
    counts = [item.value for item in verdict.evidence if item.unit == "steps"]
    assert counts == [0.0, 0.0]


def test_the_error_falls_and_the_bound_with_it() -> None:
    """At parameters that hardly move LMC's histories become exact; GAS goes on dropping messages."""
    for estimator, falls in ((LMC(), True), (GAS(), False)):
        verdict = POSTERIOR_BOUND.check(small(estimator, steps=60, step_size=1e-9))
        measured, bound = (curve.y for curve in verdict.series)
        assert (max(measured[-10:]) < 1e-6 * measured[0]) is falls
        assert (max(bound[-10:]) < 1e-6 * bound[0]) is falls
        assert verdict.outcome is Outcome.SUPPORTED, verdict.summary


def test_whole_graph_batches_have_no_error_to_bound() -> None:
    for estimator in ESTIMATORS:
        verdict = POSTERIOR_BOUND.check(small(estimator, per_batch=4))
        assert verdict.outcome is Outcome.SUPPORTED, verdict.summary
        assert "no error to bound" in verdict.summary


def test_an_artificially_small_bound_is_refuted(monkeypatch: pytest.MonkeyPatch) -> None:
    case = karate({"name": "gas"})
    sound = POSTERIOR_BOUND.check(case)
    assert sound.outcome is Outcome.SUPPORTED
    smallest = next(item.value for item in sound.evidence if item.quantity.startswith("smallest"))
    assert 1 <= smallest < 20
    true_bound = module.batch_bound

    def scaled(share: float) -> Any:
        def bound(*arguments: Any, **settings: Any) -> ErrorBound | NoBound:
            found = true_bound(*arguments, **settings)
            assert isinstance(found, ErrorBound)
            return dataclasses.replace(found, total=share * found.total)

        return bound

    monkeypatch.setattr(module, "batch_bound", scaled((1 - 1e-6) / smallest))
    broken = POSTERIOR_BOUND.check(case)
    assert broken.outcome is Outcome.REFUTED
    assert 1 <= int(broken.summary.split()[2]) < 20
    monkeypatch.setattr(module, "batch_bound", scaled((1 + 1e-6) / smallest))
    assert POSTERIOR_BOUND.check(case).outcome is Outcome.SUPPORTED


def test_a_total_error_outside_of_its_interval_is_refuted(monkeypatch: pytest.MonkeyPatch) -> None:
    true_interval = module.error_interval

    def narrow(*arguments: Any, **settings: Any) -> Any:
        found = true_interval(*arguments, **settings)
        middle = (found.low + found.high) / 2
        return dataclasses.replace(found, low=middle, high=middle)

    monkeypatch.setattr(module, "error_interval", narrow)
    verdict = POSTERIOR_BOUND.check(karate({"name": "gas"}))
    assert verdict.outcome is Outcome.REFUTED
    assert "exceeded on 0 of 20 steps; total error outside its interval on" in verdict.summary


def test_a_loose_bound_is_vacuous(monkeypatch: pytest.MonkeyPatch) -> None:
    case = karate({"name": "gas"})
    slack = next(item.value for item in POSTERIOR_BOUND.check(case).evidence if item.quantity.startswith("typical"))
    assert 1 <= slack < 100
    monkeypatch.setattr(module, "VACUOUS_SLACK", slack * 0.99)
    assert POSTERIOR_BOUND.check(case).outcome is Outcome.VACUOUS
    monkeypatch.setattr(module, "VACUOUS_SLACK", slack * 1.01)
    assert POSTERIOR_BOUND.check(case).outcome is Outcome.SUPPORTED


def test_where_no_bound_is_proven_none_is_claimed() -> None:
    gat = GAT(3, 2, 3, num_layers=2, seed=1, dtype=torch.float64)
    for case, reason in ((small(LMC(), gat), "GAT"), (small(FullBatch()), "full-batch")):
        verdict, theory = POSTERIOR_BOUND.check(case), POSTERIOR_BOUND.expect(case)
        assert verdict.outcome is theory.outcome is Outcome.NOT_APPLICABLE
        assert "a bound is proven" in verdict.summary
        assert reason in verdict.summary
        assert reason in theory.reason


def test_a_run_that_diverges_says_so() -> None:
    verdict = POSTERIOR_BOUND.check(small(LMC(), step_size=1e200, steps=10))
    assert verdict.outcome is Outcome.INCONCLUSIVE, verdict.summary
    assert "lower training.step_size" in verdict.summary


# --- the assumptions -----------------------------------------------------------------------------------------------


def test_kinks_that_are_crossed_refute_smoothness() -> None:
    case = karate({"name": "lmc"})
    verdict = ASSUMPTIONS.check(case)
    assert verdict.outcome is Outcome.REFUTED
    assert ASSUMPTIONS.expect(case).outcome is None
    assert verdict.summary.startswith("(A2) fails: ")
    crossed, inputs = (int(verdict.summary.split()[k].replace(",", "")) for k in (2, 4))
    assert 0 < crossed < inputs == 20 * 34 * 4  # steps x nodes x width: one ReLU
    share = next(item.value for item in verdict.evidence if item.group == "kinks")
    assert share == crossed / inputs


@pytest.mark.parametrize("cut", ["pre", "post"])
def test_kinks_are_counted_between_the_parameters_of_two_steps(cut: str) -> None:
    """The first layer's values change sign where the one ReLU that follows them does."""
    model = GCN(3, 5, 3, num_layers=2, seed=2, activation_cut=cut, dtype=torch.float64)
    case = small(GAS(), model, steps=4, step_size=2.0)
    run = TrainingRun(
        case.problem,
        case.estimator,
        case.design,
        step_size=2.0,
        generator=generator(case.seed, "assumptions", 0),
    )
    crossed, before = 0, case.exact.embeddings[1]
    for _ in range(4):
        run.step()
        after = exact_pass(run.problem).embeddings[1]
        crossed += int(((before > 0) != (after > 0)).sum())
        before = after
    assert crossed > 0
    assert ASSUMPTIONS.check(case).summary.startswith(f"(A2) fails: {crossed} of {4 * 8 * 5} ReLU inputs")


def test_kinks_that_are_not_crossed_decide_nothing() -> None:
    verdict = ASSUMPTIONS.check(small(LMC(), steps=2, step_size=1e-9))
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert "none was crossed" in verdict.summary


@pytest.mark.parametrize("estimator", [BackwardSGD(), LMC(beta=0.3), GAS(), FullBatch()], ids=repr)
def test_a_smooth_model_is_supported(estimator: Estimator) -> None:
    case = small(estimator, smooth_model())
    verdict = ASSUMPTIONS.check(case)
    assert verdict.outcome is ASSUMPTIONS.expect(case).outcome is Outcome.SUPPORTED
    kinks = next(item.value for item in verdict.evidence if item.group == "kinks")
    assert kinks == 0
    assert ASSUMPTIONS.check(small(estimator, smooth_model(nn.ReLU), steps=40)).outcome is not Outcome.SUPPORTED


@given(testing.problems(testing.graphs(min_nodes=2)), st.sampled_from([0.1, 2.0]), testing.seeds())
def test_lower_ends_are_below_upper_ends(problem: Problem, step_size: float, seed: int) -> None:
    design = Clusters(Partition(torch.arange(problem.graph.num_nodes) % 2, "halves"), 1)
    case = assemble_case(problem, design, LMC(), seed=seed, training=TrainingSettings(steps=3, step_size=step_size))
    verdict = ASSUMPTIONS.check(case)
    found = [item for item in verdict.evidence if item.group == "Lipschitz"]
    assert len(found) == problem.num_layers
    for item in found:
        assert item.tolerance is None or item.value <= item.tolerance * (1 + 1e-8), item
    assert verdict.outcome is not Outcome.NOT_APPLICABLE
    theory = ASSUMPTIONS.expect(case)
    assert theory.outcome in (None, verdict.outcome)
    sizes = {item.quantity: item.value for item in verdict.evidence if item.group == "norms"}
    assert sizes["gradient, at least"] >= 0
    assert "estimate, at least" in sizes
    assert "history of V 1, at least" in sizes
    assert all(math.isfinite(value) for value in sizes.values())


def test_norms_of_the_whole_run_are_taken() -> None:
    """The maxima include the last step: a longer run never has smaller ones."""
    short, long = (
        {
            item.quantity: item.value
            for item in ASSUMPTIONS.check(small(GAS(), steps=k)).evidence
            if item.group == "norms"
        }
        for k in (5, 30)
    )
    assert short.keys() == long.keys()
    assert all(short[name] <= long[name] for name in short)
    assert any(short[name] < long[name] for name in short)


def test_a_run_that_diverges_breaks_the_bound_on_norms() -> None:
    verdict = ASSUMPTIONS.check(small(LMC(), smooth_model(nn.Identity), step_size=1e200, steps=10))
    assert verdict.outcome is Outcome.REFUTED
    assert "(A3) fails" in verdict.summary
