"""Theorem 2: the bias decays to a floor that falls with eps; a floor that falls needs a decay to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from common.rate_cases import (
    BACKWARD,
    FLOORS,
    FULL,
    GAS_,
    LMC_BETA,
    RING,
    TWO,
    ZERO_BETA,
    Wrapped,
    assert_complete,
    case_of,
    evidence,
    verdict,
)

from lmc_verify import Batch, History, Problem, make_estimator
from lmc_verify.cases.case import Case
from lmc_verify.claims import CLAIMS, Outcome, bias_curves
from lmc_verify.estimators import Estimate

pytestmark = pytest.mark.usefixtures("short_grids")
SURE = [
    (LMC_BETA, RING, "SUPPORTED"),
    (ZERO_BETA, RING, "SUPPORTED"),
    (GAS_, RING, "REFUTED"),
    ({"name": "cluster-gcn"}, RING, "REFUTED"),
    (BACKWARD, RING, "EXACT"),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("estimator", "base", "outcome"),
    SURE,
    ids=[f"{estimator['name']} {base['dataset']['name']}" for estimator, base, _ in SURE],
)
def test_verdict_is_what_theory_says(estimator: dict[str, Any], base: dict[str, Any], outcome: str) -> None:
    case, found = case_of(TWO, estimator, base), verdict(TWO, estimator, base)
    assert str(found.outcome) == outcome, found.summary
    theory = CLAIMS[TWO].expect(case)
    assert theory.reason
    assert str(theory.outcome) == outcome, theory.reason
    assert_complete(TWO, case, found)


def test_decay_of_compensated_histories_is_seen() -> None:
    low, value, high = evidence(verdict(TWO, LMC_BETA), "decay")
    assert 0 < low <= value <= high < 0.9
    fit = next(item for item in verdict(TWO, LMC_BETA).evidence if item.quantity == "typical error of the fit")
    assert fit.tolerance is not None
    assert fit.value < fit.tolerance


@pytest.mark.parametrize(
    ("shape", "outcome", "words"),
    [
        (lambda k, _: 1 + 100 * 0.5**k, Outcome.SUPPORTED, "not refuted on this range of eps"),
        (lambda k, index: (1 + 100 * 0.5**k) * (index != 2), Outcome.INCONCLUSIVE, "decay and floor do not fit"),
        (lambda k, _: 1 + 100 * 0.999**k, Outcome.INCONCLUSIVE, "no geometric decay is seen within the run"),
        (lambda k, index: (1 + 1e4 * 0.1**k) * 9.0 ** (index % 2), Outcome.INCONCLUSIVE, "decay and floor do not fit"),
    ],
    ids=["decay and floor", "a bias that vanishes once", "slow decay", "neither"],
)
def test_a_falling_floor_needs_a_decay_to_it(
    monkeypatch: pytest.MonkeyPatch, shape: Callable[[int, int], float], outcome: Outcome, words: str
) -> None:
    """On drawn curves whose floors have slope 2 in eps, whatever happens before them."""

    def drawn(case: Case, name: str, runs: Any, steps: Any, seeds: int) -> bias_curves.BiasCurves:
        curve = np.array([shape(step, index) for index, step in enumerate(steps)])
        bias = np.array([[1e-3 * eps**2 * curve for eps, _, _ in runs]] * seeds)
        return bias_curves.BiasCurves(
            tuple(eps for eps, _, _ in runs), tuple(steps), bias, np.ones_like(bias), np.zeros((seeds, len(runs)))
        )

    for module in FLOORS:
        monkeypatch.setattr(module, "measure", drawn)
    found = CLAIMS[TWO].check(case_of(TWO, ZERO_BETA))
    assert found.outcome is outcome, found.summary
    assert words in found.summary
    assert evidence(found, "floor") == pytest.approx((2, 2, 2))


class Scaled(Wrapped):
    def estimate(self, problem: Problem, state: History, batch: Batch) -> Estimate:
        estimate = super().estimate(problem, state, batch)
        return replace(estimate, gradient={name: 1.1 * value for name, value in estimate.gradient.items()})


@pytest.mark.slow
def test_a_gradient_off_by_a_factor_refutes() -> None:
    case = replace(case_of(TWO, FULL), estimator=Scaled(make_estimator("full-batch")))
    found = CLAIMS[TWO].check(case)
    assert found.outcome is Outcome.REFUTED
    assert max(found.series[0].y) == pytest.approx(0.1, rel=0.2)
