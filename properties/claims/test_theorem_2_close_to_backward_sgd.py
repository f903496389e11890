"""Theorem 2 as stated: LMC's estimate stays within order eps of Backward SGD's on the same batch, GAS's does not."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from common.crossed import crossed
from common.rate_cases import (
    BACKWARD,
    CLOSE,
    FULL,
    GAS_,
    LMC_BETA,
    RING,
    ZERO_BETA,
    Wrapped,
    assert_complete,
    case_of,
    evidence,
    verdict,
)

from lmc_verify import Batch, History, Problem, make_estimator
from lmc_verify.claims import CLAIMS, Outcome
from lmc_verify.claims.theorems import theorem_2_close_to_backward_sgd as module
from lmc_verify.estimators import Estimate
from lmc_verify.objective import exact_gradient, gradient_norm, gradient_sum
from lmc_verify.seeds import generator
from lmc_verify.training import TrainingRun
from lmc_verify.training.together import norms

pytestmark = pytest.mark.usefixtures("short_grids")
CLAIM = CLAIMS[CLOSE]
CUT, FM = {"name": "cluster-gcn"}, {"name": "fm", "beta": 0.4}
SURE = [
    (LMC_BETA, "SUPPORTED"),
    (ZERO_BETA, "SUPPORTED"),
    (GAS_, "REFUTED"),
    (FM, "REFUTED"),
    (CUT, "REFUTED"),
    (BACKWARD, "EXACT"),
]


@pytest.mark.parametrize(("estimator", "outcome"), SURE, ids=[f"{estimator['name']}" for estimator, _ in SURE])
def test_verdict_is_what_theory_says(estimator: dict[str, Any], outcome: str) -> None:
    case, found = case_of(CLOSE, estimator), verdict(CLOSE, estimator)
    assert str(found.outcome) == outcome, found.summary
    theory = CLAIM.expect(case)
    assert theory.reason
    assert str(theory.outcome) == outcome, theory.reason
    assert_complete(CLOSE, case, found)


@pytest.mark.slow
def test_loss_weights_do_not_matter_for_both_have_the_same() -> None:
    uneven = RING | {"dataset": {"name": "karate"}, "design": {"partition": "metis", "parts": 3, "per_batch": 1}}
    uneven |= {"training": {"step_size": 0.002}}
    for weighting in ("node-count", "batch-mean"):
        case = case_of(CLOSE, ZERO_BETA | {"weighting": weighting}, uneven)
        assert CLAIM.check(case).outcome is CLAIM.expect(case).outcome is Outcome.SUPPORTED


@pytest.mark.parametrize(
    ("together", "estimator"),
    crossed([True, False], [LMC_BETA, GAS_, CUT, FULL]),
    ids=lambda value: value["name"] if isinstance(value, dict) else "together" if value else "alone",
)
def test_distances_are_those_from_backward_sgd_step_by_step(
    estimator: dict[str, Any], together: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against a run that is taken step by step, Backward SGD by its own estimator at the run's parameters."""
    if not together:
        monkeypatch.setattr(module, "advance_together", lambda *_: False)
    case = case_of(CLOSE, estimator, RING | {"training": {"step_size": 0.1}})
    step, steps = case.training.step_size, (0, 3, 7, 20)
    runs = [(1.0, case.estimator, step), (0.5, case.estimator, step / 2)]
    monkeypatch.setattr(module, "late_steps", lambda _: steps[2:])
    found = module._measure(case, runs, steps, 2)
    unit = gradient_norm(case.exact.gradient)
    backward = make_estimator("backward-sgd")
    for seed, (place, (_, one, size)) in itertools.product(range(2), enumerate(runs)):
        run = TrainingRun(
            case.problem, one, case.design, step_size=size, generator=generator(case.seed, module.NOUN, 0, seed)
        )
        for number, at in enumerate(steps):
            while run.step_count < at:
                run.step()
            mean = 0.0
            for batch, probability in case.design.enumerate():
                own = one.estimate(run.problem, run.state, batch).gradient
                wanted = backward.estimate(run.problem, backward.init(run.problem), batch).gradient
                mean += probability * gradient_norm(gradient_sum(own, wanted, -1.0)) ** 2
            assert found.bias[seed, place, number] == pytest.approx(np.sqrt(mean) / unit, rel=1e-9)
            exact = gradient_norm(exact_gradient(run.problem)[1]) / unit
            assert found.gradient[seed, place, number] == pytest.approx(exact, rel=1e-9)
    assert found.distances[:, -1] == pytest.approx(0)
    assert (found.distances[:, 0] > 1e-3).all()


def test_groups_of_runs_are_put_together_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    case = case_of(CLOSE, ZERO_BETA)
    whole = CLAIM.check(case).to_dict()
    monkeypatch.setattr(norms, "GROUP_ELEMENTS", 5 * case.graph.num_nodes * max(case.problem.widths[1:]))
    grouped = CLAIM.check(case)
    for one, other in zip(grouped.series, verdict(CLOSE, ZERO_BETA).series, strict=True):
        assert one.y == pytest.approx(other.y, rel=1e-9)
    assert grouped.outcome == whole["outcome"]


class Scaled(Wrapped):
    def estimate(self, problem: Problem, state: History, batch: Batch) -> Estimate:
        estimate = super().estimate(problem, state, batch)
        return replace(estimate, gradient={name: 1.1 * value for name, value in estimate.gradient.items()})


@pytest.mark.slow
def test_a_gradient_off_by_a_factor_refutes() -> None:
    case = replace(case_of(CLOSE, BACKWARD), estimator=Scaled(make_estimator("backward-sgd")))
    found = CLAIM.check(case)
    assert found.outcome is Outcome.REFUTED
    assert evidence(found, "floor")[2] < 0.2
    assert "assumptions that fail: smooth" in found.summary


def test_full_batch_descent_is_not_close_to_a_batch() -> None:
    case = case_of(CLOSE, FULL)
    assert CLAIM.check(case).outcome is Outcome.REFUTED
    assert CLAIM.expect(case).outcome is None
