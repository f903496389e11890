"""Theorem 3 needs a bias below the gradient as training converges: a constant beta outgrows it."""

from __future__ import annotations

from typing import Any

import pytest
from common.stationary_cases import KARATE, case_of, small

from lmc_verify.claims import Outcome
from lmc_verify.claims.theorems import theorem_3_relative_bias
from lmc_verify.claims.theorems.theorem_3_relative_bias import RELATIVE_BIAS
from lmc_verify.estimators import LMC, BackwardSGD, FullBatch

RELATIVE: dict[str, Any] = {
    "dataset": {"name": "karate"},
    "model": {"layers": 2, "width": 8},
    "design": {"parts": 6, "per_batch": 2},
    "sampling": {"seeds": 1},
}
BETAS: dict[str, tuple[dict[str, Any], dict[str, Any], Outcome]] = {
    "0": ({"name": "lmc"}, {}, Outcome.SUPPORTED),
    "decaying": (
        {"name": "lmc", "beta": 1.0, "score": "constant"},
        {"beta_schedule": "decaying"},
        Outcome.SUPPORTED,
    ),
    "0.4": ({"name": "lmc", "beta": 0.4, "score": "constant"}, {}, Outcome.REFUTED),
    "1": ({"name": "lmc", "beta": 1.0, "score": "constant"}, {}, Outcome.REFUTED),
}


@pytest.mark.slow
@pytest.mark.parametrize("beta", BETAS)
def test_the_bias_of_a_constant_beta_outgrows_the_gradient(beta: str) -> None:
    estimator, training, outcome = BETAS[beta]
    case = case_of(RELATIVE, estimator, training={"step_size": 0.5, "steps": 400} | training)
    verdict = RELATIVE_BIAS.check(case)
    assert verdict.outcome is outcome, verdict.summary
    assert RELATIVE_BIAS.expect(case).outcome is None
    (curve,) = verdict.series
    late = max(curve.y[-3:])
    assert (late < 0.2) if outcome is Outcome.SUPPORTED else (min(curve.y[-3:]) > 1)
    assert verdict.evidence[0].value == pytest.approx(late)
    assert verdict.draws == 1
    assert verdict.alpha_spent == 0


def test_a_run_that_has_hardly_moved_supports_nothing() -> None:
    verdict = RELATIVE_BIAS.check(small(BackwardSGD(), steps=3, step_size=1e-3))
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert "hardly fallen" in verdict.summary
    away = RELATIVE_BIAS.check(small(LMC(), linear=True, step_size=1e200, steps=10))
    assert away.outcome is Outcome.INCONCLUSIVE
    assert "lower training.step_size" in away.summary


@pytest.mark.slow
def test_a_gradient_that_rises_is_not_said_to_fall() -> None:
    verdict = RELATIVE_BIAS.check(small(BackwardSGD(), step_size=1e6, steps=10))
    first, last = (float(verdict.summary.split(f" {word} ")[1].split()[0].rstrip(",")) for word in ("from", "start to"))
    assert last > first
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert verdict.summary.startswith("as the gradient does not fall, from ")
    assert "approaches no stationary point, lower training.step_size" in verdict.summary
    assert "hardly fallen" not in verdict.summary
    fell = RELATIVE_BIAS.check(small(BackwardSGD(), steps=60))
    assert fell.summary.startswith("as the gradient falls from ")


def test_an_unbiased_estimator_has_no_relative_bias() -> None:
    for estimator in (BackwardSGD(), FullBatch()):
        verdict = RELATIVE_BIAS.check(small(estimator, steps=60))
        assert verdict.outcome is Outcome.SUPPORTED, verdict.summary
        assert max(verdict.series[0].y) < 1e-12
        assert verdict.draws == theorem_3_relative_bias.RUNS


def test_designs_that_cannot_be_enumerated_are_refused() -> None:
    case = case_of(KARATE, "lmc", design={"name": "nodes", "per_batch": 17})
    assert RELATIVE_BIAS.check(case).outcome is RELATIVE_BIAS.expect(case).outcome is Outcome.NOT_APPLICABLE
