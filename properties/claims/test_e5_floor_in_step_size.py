"""E5: the bias falls with the step size where histories are its only cause."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from common.rate_cases import (
    BACKWARD,
    E5,
    FULL,
    GAS_,
    KARATE,
    LMC_BETA,
    RING,
    ZERO_BETA,
    Wrapped,
    assert_complete,
    case_of,
    verdict,
)

from lmc_verify import Batch, History, Problem
from lmc_verify.claims import CLAIMS, Outcome
from lmc_verify.estimators import LMC, Estimate

pytestmark = pytest.mark.usefixtures("short_grids")
SURE = [
    (ZERO_BETA, RING, "SUPPORTED"),
    (ZERO_BETA, KARATE, "SUPPORTED"),
    (GAS_, RING, "REFUTED"),
    (BACKWARD, RING, "EXACT"),
    (FULL, KARATE, "EXACT"),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("estimator", "base", "outcome"),
    SURE,
    ids=[f"{estimator['name']} {base['dataset']['name']}" for estimator, base, _ in SURE],
)
def test_verdict_is_what_theory_says(estimator: dict[str, Any], base: dict[str, Any], outcome: str) -> None:
    case, found = case_of(E5, estimator, base), verdict(E5, estimator, base)
    assert str(found.outcome) == outcome, found.summary
    theory = CLAIMS[E5].expect(case)
    assert theory.reason
    assert str(theory.outcome) == outcome, theory.reason
    assert_complete(E5, case, found)


def test_theory_expects_nothing_of_beta_in_e5() -> None:
    theory = CLAIMS[E5].expect(case_of(E5, LMC_BETA))
    assert theory.outcome is None
    assert "beta leaves a floor of its own" in theory.reason


class NeverWrites(Wrapped):
    def estimate(self, problem: Problem, state: History, batch: Batch) -> Estimate:
        return replace(super().estimate(problem, state, batch), writes=())


def test_histories_that_are_never_written_refute() -> None:
    case = replace(case_of(E5, ZERO_BETA), estimator=NeverWrites(LMC()))
    assert CLAIMS[E5].check(case).outcome is Outcome.REFUTED
