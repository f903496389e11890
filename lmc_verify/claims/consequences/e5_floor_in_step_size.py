"""E5: the floor of the bias along training is linear in the step size."""

from __future__ import annotations

import numpy as np

from lmc_verify.cases import Case
from lmc_verify.cases.verdict import Outcome, Verdict
from lmc_verify.claims.assumptions import BOUNDED, FINITE_SUPPORT, NO_DROPOUT, SMOOTH, UNIFORM
from lmc_verify.claims.bias_curves import (
    LMC_THEOREM_2,
    FloorSlope,
    expect_before_halo,
    expect_vanishing,
    expect_with_exact_histories,
    late_steps,
    measure,
    scales,
    seeds_of,
    unreadable,
)
from lmc_verify.claims.claim import Claim, not_applicable
from lmc_verify.claims.question import Answer, Question, measured
from lmc_verify.claims.theory import Expectation
from lmc_verify.claims.thresholds import fraction

__all__ = ["FLOOR_IN_STEP_SIZE"]

SLOPE = 1 / 2
"""Smallest log-log slope of the bias in the step size that the theorem needs."""


def check_floor_in_step_size(case: Case) -> Verdict:
    """Train with step sizes eta, eta/2, eta/4, ..., and fit the slope of the bias after the transient."""
    claim = FLOOR_IN_STEP_SIZE
    inapplicable = not_applicable(case, claim)
    if inapplicable is not None:
        return inapplicable
    alpha = case.sampling.alpha
    sizes = [case.training.step_size * scale for scale in scales()]
    runs = [(size, case.estimator, size) for size in sizes]
    curves = measure(case, "floor in step size", runs, late_steps(case), seeds_of(case, alpha))
    no_slope = unreadable(case, claim, curves, Outcome.EXACT)
    if no_slope is not None:
        return no_slope
    slope = FloorSlope(curves, alpha)
    outcome = slope.outcome(SLOPE)
    largest, smallest = np.median(curves.floors, axis=0)[[0, -1]]
    summary = (
        f"the bias goes from {largest:.2g} of the gradient at step size {sizes[0]:.3g} to {smallest:.2g} at "
        f"{sizes[-1]:.3g}: slope {slope.words}; the theorem needs {fraction(SLOPE)}"
    )
    series = [curves.floor_series("Bias against step size", "step size")]
    return slope.verdict(case, claim, outcome, summary, limit=SLOPE, evidence=[], series=series)


def expect_floor_in_step_size(case: Case) -> Expectation:
    """Return what theory says of E5: the floor vanishes with the step size if the frozen estimator is unbiased."""
    known = expect_before_halo(case, FLOOR_IN_STEP_SIZE)
    if known is not None:
        return known
    at_zero = expect_with_exact_histories(case, 0.0)
    if at_zero.outcome is Outcome.REFUTED:
        return expect_vanishing(case, at_zero)
    frozen = expect_with_exact_histories(case, 1.0)
    if frozen.outcome is Outcome.REFUTED:
        return Expectation(None, "beta leaves a floor of its own, which the step size does not change")
    return expect_vanishing(case, frozen)


FLOOR_IN_STEP_SIZE = Claim(
    id="e5/floor-in-step-size",
    title="The bias falls with the step size",
    statement=(
        "Along training by stochastic gradient descent with step size eta the mean norm of the bias falls with a "
        f"log-log slope of at least {fraction(SLOPE)} in eta."
    ),
    source=f"{LMC_THEOREM_2}, Theorem 2, with beta = 0",
    tier="rate",
    theory=(
        "Histories are as old as the last visit of their rows; in that time the parameters move by an amount in "
        f"proportion to eta. The theorem needs a slope of {fraction(SLOPE)}, plain Lipschitz arguments give 1. What an "
        "estimator drops does not depend on eta: GAS has slope 0. The step sizes must be small enough for all runs to "
        "stay close together: elsewhere on the path the bias of every estimator is different."
    ),
    question=Question(
        "Does {estimator}'s bias fall with the step size",
        exact=Answer("there is none at any step size"),
        supported=Answer("slope {size}", measured("floor"), unit="number"),
        refuted=Answer("slope {size}", measured("floor"), unit="number"),
    ),
    required=(NO_DROPOUT, FINITE_SUPPORT),
    assumptions=(UNIFORM, SMOOTH, BOUNDED),
    check=check_floor_in_step_size,
    expect=expect_floor_in_step_size,
    reads=("sampling.seeds", "training.step_size"),
    histories="zero",
    varies=("parameters",),
)
