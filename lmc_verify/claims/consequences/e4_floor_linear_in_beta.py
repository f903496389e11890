"""E4: at fixed parameters, the floor of the bias is linear in beta."""

from __future__ import annotations

import numpy as np

from lmc_verify.cases import Case
from lmc_verify.cases.verdict import Outcome, Verdict
from lmc_verify.claims.assumptions import FINITE_SUPPORT, NO_DROPOUT
from lmc_verify.claims.bias_curves import (
    BETA_ABOVE_ZERO,
    FloorSlope,
    expect_before_halo,
    expect_with_exact_histories,
    late_steps,
    measure,
    scales,
    seeds_of,
    unreadable,
)
from lmc_verify.claims.claim import Claim, not_applicable
from lmc_verify.claims.question import Answer, Question, measured
from lmc_verify.claims.reference import SOURCE
from lmc_verify.claims.theory import Expectation
from lmc_verify.claims.thresholds import fraction
from lmc_verify.estimators import properties_of, with_beta

__all__ = ["FLOOR_IN_BETA"]

SLOPE = 1.0
"""Log-log slope of a floor that is linear in beta."""

LINEAR = 0.2
"""A log-log slope within this distance of `SLOPE` counts as linear."""


def check_floor_in_beta(case: Case) -> Verdict:
    """Hold the parameters, let the histories settle under beta, beta/2, beta/4, ..., and fit the slope of the bias."""
    claim = FLOOR_IN_BETA
    inapplicable = not_applicable(case, claim)
    if inapplicable is not None:
        return inapplicable
    alpha, beta = case.sampling.alpha, properties_of(case.estimator).beta
    assert beta is not None
    assert not isinstance(beta, tuple)  # BETA_ABOVE_ZERO holds
    runs = [(beta * scale, with_beta(case.estimator, scale), 0.0) for scale in scales()]
    curves = measure(case, "floor in beta", runs, late_steps(case), seeds_of(case, alpha))
    no_slope = unreadable(case, claim, curves, Outcome.NOT_APPLICABLE)
    if no_slope is not None:
        return no_slope
    slope = FloorSlope(curves, alpha)
    outcome = slope.outcome(SLOPE - LINEAR, SLOPE + LINEAR)
    largest, smallest = np.median(curves.floors, axis=0)[[0, -1]]
    summary = (
        f"the floor goes from {largest:.2g} of the gradient at beta = {beta:.3g} to {smallest:.2g} at "
        f"{curves.values[-1]:.3g}: slope {slope.words}; linear means {fraction(SLOPE)} +- {LINEAR}"
    )
    series = [curves.floor_series("Floor of the bias against beta", "beta")]
    return slope.verdict(case, claim, outcome, summary, limit=SLOPE, evidence=[], series=series)


def expect_floor_in_beta(case: Case) -> Expectation:
    """Return what theory says of E4."""
    known = expect_before_halo(case, FLOOR_IN_BETA)
    if known is not None:
        return known
    at_zero = expect_with_exact_histories(case, 0.0)
    if at_zero.outcome is Outcome.REFUTED:
        return Expectation(Outcome.REFUTED, f"{at_zero.reason}: the floor does not vanish with beta")
    blended = expect_with_exact_histories(case, 1.0)
    if blended.outcome is Outcome.EXACT:
        return Expectation(Outcome.NOT_APPLICABLE, "no bias at any beta: " + blended.reason)
    if at_zero.outcome is None or blended.outcome is None:
        return at_zero if at_zero.outcome is None else blended
    return Expectation(Outcome.SUPPORTED, "the fresh values' error enters with weight beta, to first order")


FLOOR_IN_BETA = Claim(
    id="e4/floor-linear-in-beta",
    title="A constant beta leaves a floor, linear in beta",
    statement=(
        "At fixed parameters and constant beta > 0 the bias does not vanish however long the histories settle; its "
        f"floor is linear in beta: its log-log slope is {fraction(SLOPE)}."
    ),
    source=SOURCE,
    tier="rate",
    theory=(
        "A blended halo value is wrong by beta times the error of the fresh, incomplete value, and stays so. GAS, FM "
        "and other estimators that drop halo messages have a floor at beta = 0, and a slope near 0."
    ),
    question=Question(
        "Does a constant beta leave {estimator} a floor that is linear in beta",
        exact=Answer(),
        supported=Answer("slope {size}", measured("floor"), unit="number"),
        refuted=Answer("slope {size}", measured("floor"), unit="number"),
    ),
    required=(NO_DROPOUT, FINITE_SUPPORT, BETA_ABOVE_ZERO),
    check=check_floor_in_beta,
    expect=expect_floor_in_beta,
    reads=("sampling.seeds",),
    histories="zero",
    varies=("parameters",),
)
