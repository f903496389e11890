"""Theorem 3 needs a mean update that rests at stationary points only: elsewhere, standing still is a plateau."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from common.crossed import slow_but
from common.stationary_cases import KARATE, case_of, small

from lmc_verify.claims import Outcome, Verdict
from lmc_verify.claims.theorems import theorem_3_fixed_point as module
from lmc_verify.claims.theorems.theorem_3_fixed_point import FIXED_POINT
from lmc_verify.estimators import GAS, LMC, BackwardSGD, FullBatch
from lmc_verify.graphs.designs import Clusters, EpochClusters
from lmc_verify.graphs.partition import Partition
from lmc_verify.objective.exact import exact_pass
from lmc_verify.objective.problem import gradient_norm

RING: dict[str, Any] = {
    "dataset": {"name": "ring", "noise": 0.0, "flips": 0.2},
    "model": {"layers": 2, "width": 8, "frozen": ["layer 2"]},
    "design": {"partition": "random", "parts": 4, "per_batch": 1},
    "training": {"step_size": 3.0, "steps": 100},
}


def ratio(verdict: Verdict) -> float:
    return next(item.value for item in verdict.evidence if item.group == "plateau")


@pytest.mark.slow
@pytest.mark.parametrize("base", [KARATE, RING], ids=["karate", "ring"])
def test_gas_comes_to_rest_on_a_plateau(base: dict[str, Any]) -> None:
    case = case_of(base, "gas")
    verdict = FIXED_POINT.check(case)
    assert verdict.outcome is Outcome.REFUTED, verdict.summary
    assert FIXED_POINT.expect(case).outcome is None
    assert ratio(verdict) >= (100 if base is RING else module.PLATEAU)
    gradient, update = verdict.series
    assert gradient.x[0] == 0
    assert gradient.x[-1] == base["training"]["steps"]
    assert ratio(verdict) == pytest.approx(gradient.y[-1] / update.y[-1])
    assert gradient.y[-1] > 0.5 * gradient.y[0]


@pytest.mark.parametrize("base", slow_but([RING], [KARATE, RING]), ids=["karate", "ring"])
def test_lmc_follows_the_gradient(base: dict[str, Any]) -> None:
    case = case_of(base, "lmc", training={"step_size": 1.0, "steps": 40})
    verdict = FIXED_POINT.check(case)
    assert verdict.outcome is FIXED_POINT.expect(case).outcome is Outcome.EXACT, verdict.summary
    gradient, update = verdict.series
    assert np.allclose(gradient.y, update.y, rtol=1e-9)
    assert verdict.minimum_detectable_effect is not None
    assert verdict.minimum_detectable_effect < 1e-8


@pytest.mark.slow
def test_where_the_gradient_vanishes_there_is_no_plateau() -> None:
    """With all layers trained GAS fits the ring: gradient and update vanish together, at whatever ratio."""
    base = RING | {"model": {"layers": 2, "width": 8}}
    verdict = FIXED_POINT.check(case_of(base, "gas"))
    gradient, _ = verdict.series
    assert gradient.y[-1] < 1e-3 * gradient.y[0]
    assert ratio(verdict) > 3.9
    assert verdict.outcome is Outcome.INCONCLUSIVE, verdict.summary
    assert "not on a plateau" in verdict.summary


@pytest.mark.slow
def test_the_path_is_that_of_the_mean_update() -> None:
    """Of an unbiased estimator it is gradient descent, computed here step by step."""
    for estimator in (BackwardSGD(), LMC(), FullBatch()):
        case = small(estimator)
        verdict = FIXED_POINT.check(case)
        assert verdict.outcome is Outcome.EXACT, verdict.summary
        problem, norms = case.problem.copy(), []
        parameters = dict(problem.model.named_parameters())
        for _ in range(21):
            gradient = exact_pass(problem).gradient
            norms.append(gradient_norm(gradient))
            with torch.no_grad():
                for name, value in gradient.items():
                    parameters[name] -= 0.5 * value
        curve = verdict.series[0]
        assert np.allclose(curve.y, [norms[int(step)] for step in curve.x], rtol=1e-9)
        assert gradient_norm(exact_pass(case.problem).gradient) == norms[0], "the case was changed"


def test_a_bias_without_a_plateau_refutes_nothing() -> None:
    verdict = FIXED_POINT.check(small(GAS(), steps=1))
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert "raise training.steps" in verdict.summary
    away = FIXED_POINT.check(small(GAS(), linear=True, step_size=1e200, steps=10))
    assert away.outcome is Outcome.INCONCLUSIVE
    assert "lower training.step_size" in away.summary


@pytest.mark.slow
def test_wrong_weights_are_not_expected_to_be_exact() -> None:
    partition = Partition(torch.tensor([0, 0, 0, 1, 1, 2]), "unequal")
    case = small(BackwardSGD(weighting="node-count"), Clusters(partition, 1))
    assert FIXED_POINT.expect(case).outcome is None
    assert FIXED_POINT.check(case).outcome is not Outcome.EXACT
    seen = small(BackwardSGD(), EpochClusters(partition, 1, (0,)))
    assert FIXED_POINT.expect(seen).outcome is None
    assert FIXED_POINT.check(seen).outcome is not Outcome.EXACT


def test_designs_that_cannot_be_enumerated_are_refused() -> None:
    case = case_of(KARATE, "lmc", design={"name": "nodes", "per_batch": 17})
    assert FIXED_POINT.check(case).outcome is FIXED_POINT.expect(case).outcome is Outcome.NOT_APPLICABLE
