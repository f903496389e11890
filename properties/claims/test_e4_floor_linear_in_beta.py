"""E4: the floor of the bias is linear in beta where compensation is, and refused where beta does nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from common.rate_cases import (
    E4,
    FM_,
    GAS_,
    KARATE,
    LMC_BETA,
    RING,
    ZERO_BETA,
    Wrapped,
    assert_complete,
    case_of,
    evidence,
    verdict,
)

from lmc_verify import InvalidInputError
from lmc_verify.claims import CLAIMS, Claim, Outcome
from lmc_verify.estimators import LMC
from lmc_verify.statistics import loglog_slope

pytestmark = pytest.mark.usefixtures("short_grids")
E4_CLAIM: Claim = CLAIMS[E4]
SURE = [
    (LMC_BETA, RING, "SUPPORTED"),
    (LMC_BETA, KARATE, "SUPPORTED"),
    (FM_, RING, "REFUTED"),
    ({"name": "lmc-forward-only", "beta": 0.4}, RING, "REFUTED"),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("estimator", "base", "outcome"),
    SURE,
    ids=[f"{estimator['name']} {base['dataset']['name']}" for estimator, base, _ in SURE],
)
def test_verdict_is_what_theory_says(estimator: dict[str, Any], base: dict[str, Any], outcome: str) -> None:
    case, found = case_of(E4, estimator, base), verdict(E4, estimator, base)
    assert str(found.outcome) == outcome, found.summary
    theory = CLAIMS[E4].expect(case)
    assert theory.reason
    assert str(theory.outcome) == outcome, theory.reason
    assert_complete(E4, case, found)


@pytest.mark.parametrize(
    ("estimator", "reason"),
    [
        (ZERO_BETA, "beta = 0.0 is not above zero"),
        (GAS_, "the estimator has no beta"),
        ({"name": "lmc", "beta": [0.1] * 12}, "beta differs between nodes"),
    ],
)
def test_e4_needs_one_beta_above_zero(estimator: dict[str, Any], reason: str) -> None:
    case = case_of(E4, estimator)
    found, theory = E4_CLAIM.check(case), E4_CLAIM.expect(case)
    assert found.outcome is theory.outcome is Outcome.NOT_APPLICABLE
    assert found.summary == theory.reason == reason


def test_e4_has_no_floor_where_beta_does_nothing() -> None:
    """One layer reads no halo backward: no beta leaves a bias."""
    case = case_of(E4, LMC_BETA, RING | {"model": {"layers": 1, "width": 3}})
    found, theory = E4_CLAIM.check(case), E4_CLAIM.expect(case)
    assert found.outcome is theory.outcome is Outcome.NOT_APPLICABLE
    assert "no bias at any step" in found.summary


def test_slope_of_the_verdict_is_that_of_its_own_curve() -> None:
    """With a slope that hardly varies over seeds, the curve of medians has it too."""
    found = verdict(E4, LMC_BETA)
    curve = found.series[0]
    assert loglog_slope(curve.x, curve.y) == pytest.approx(evidence(found, "floor")[1], abs=0.02)
    assert curve.x == pytest.approx((0.1, 0.2, 0.4))


def test_an_estimator_whose_beta_cannot_be_scaled_is_named() -> None:
    class Stubborn(Wrapped):
        beta = 0.4

    case = replace(case_of(E4, LMC_BETA), estimator=Stubborn(LMC(beta=0.4)))
    with pytest.raises(InvalidInputError, match="has a beta and is no dataclass"):
        E4_CLAIM.check(case)
