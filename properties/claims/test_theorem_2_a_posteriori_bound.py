"""The bound behind Theorem 2 is never exceeded; one that is broken, or so loose that it says nothing, is called so."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from common.training_cases import karate, small
from hypothesis import given
from hypothesis import strategies as st

from lmc_verify import testing
from lmc_verify.bounds import ErrorBound, NoBound
from lmc_verify.cases.case import assemble_case
from lmc_verify.cases.settings import TrainingSettings
from lmc_verify.claims import Outcome
from lmc_verify.claims.theorems import theorem_2_a_posteriori_bound as module
from lmc_verify.claims.theorems.theorem_2_a_posteriori_bound import POSTERIOR_BOUND
from lmc_verify.estimators import FM, GAS, LMC, BackwardSGD, ClusterGCN, Estimator, FullBatch
from lmc_verify.models import GAT
from lmc_verify.objective.problem import Problem

ESTIMATORS: list[Estimator] = [
    BackwardSGD(),
    LMC(),
    LMC(beta=0.4),
    LMC(beta=1.0, score="constant", weighting="batch-mean"),
    GAS(weighting="node-count"),
    FM(),
    ClusterGCN(),
    ClusterGCN(renormalise=False),
]


@pytest.mark.slow
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
        assert verdict.summary in [item.detail for item in verdict.assumptions if item.holds is False]


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


@pytest.mark.slow
def test_the_error_falls_and_the_bound_with_it() -> None:
    """At parameters that hardly move LMC's histories become exact; GAS goes on dropping messages."""
    for estimator, falls in ((LMC(), True), (GAS(), False)):
        verdict = POSTERIOR_BOUND.check(small(estimator, steps=60, step_size=1e-9))
        measured, bound = (curve.y for curve in verdict.series)
        assert (max(measured[-10:]) < 1e-6 * measured[0]) is falls
        assert (max(bound[-10:]) < 1e-6 * bound[0]) is falls
        assert verdict.outcome is Outcome.SUPPORTED, verdict.summary


@pytest.mark.slow
def test_whole_graph_batches_have_no_error_to_bound() -> None:
    for estimator in ESTIMATORS:
        verdict = POSTERIOR_BOUND.check(small(estimator, per_batch=4))
        assert verdict.outcome is Outcome.SUPPORTED, verdict.summary
        assert "no error to bound" in verdict.summary


@pytest.mark.slow
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


@pytest.mark.slow
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
        assert reason in verdict.summary
        assert reason in theory.reason


def test_a_run_that_diverges_says_so() -> None:
    verdict = POSTERIOR_BOUND.check(small(LMC(), step_size=1e200, steps=10))
    assert verdict.outcome is Outcome.INCONCLUSIVE, verdict.summary
    assert "lower training.step_size" in verdict.summary
