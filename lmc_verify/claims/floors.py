"""Theorem 2 and its consequences E4 and E5: the bias along training decays to a floor, and what the floor depends on.

All three vary something over a grid, measure the bias along independent runs (see bias_curves.py), and test the
log-log slope of its floor.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from lmc_verify.case import Case
from lmc_verify.claims.base import FINITE_SUPPORT, NO_DROPOUT, UNIFORM, Assumption, Claim, failed, not_applicable
from lmc_verify.claims.bias_curves import FloorSlope, late_steps, measure, mixing_steps, unreadable
from lmc_verify.claims.compensation import SOURCE
from lmc_verify.claims.expectation import Expectation, expect_from_halo
from lmc_verify.claims.smoothness import BOUNDED, SMOOTH
from lmc_verify.claims.unbiasedness import weights_fail
from lmc_verify.claims.verdict import Evidence, Outcome, Verdict
from lmc_verify.estimators import Compensated, with_beta
from lmc_verify.problem import gradient_norm
from lmc_verify.statistics.rates import fit_decay, median_interval, seeds_needed

__all__ = ["DECAY_AND_FLOOR", "FLOOR_IN_BETA", "FLOOR_IN_STEP_SIZE"]

HALVINGS = 4
"""A grid holds the given value and this many halvings of it."""

LINEAR = 0.2
"""A log-log slope within this distance of 1 counts as linear."""

FIT_ERROR = 0.5
"""Largest typical relative error of the fit of decay and floor at which its numbers are still read."""

EARLY = 10
"""Snapshots of the transient, dense at the start."""


def _scales() -> list[float]:
    return [0.5**index for index in range(HALVINGS + 1)]


def _seeds(case: Case, alpha: float) -> int:
    return case.sampling.seeds or seeds_needed(alpha)


def _expect_before_halo(case: Case, claim: Claim) -> Expectation | None:
    """Return what theory says of a claim whatever is put at the halo, or None if that matters."""
    required = (NO_DROPOUT.id, FINITE_SUPPORT.id, BETA_ABOVE_ZERO.id)
    broken = failed(claim.checked_assumptions(case), *required)
    if broken is not None:
        return Expectation(Outcome.NOT_APPLICABLE, broken.statement)
    if gradient_norm(case.exact.gradient) == 0:
        return Expectation(None, "the exact gradient is zero at the start (a network that has died?)")
    if reasons := weights_fail(case):
        return Expectation(None, "; ".join(reasons) + ": a bias remains, whether it dominates depends on the case")
    return None


def _expect_with_exact_histories(case: Case, factor: float) -> Expectation:
    """Return what theory says of the estimates from exact histories, with beta multiplied by a factor."""
    if isinstance(case.estimator, Compensated):
        case = dataclasses.replace(case, estimator=with_beta(case.estimator, factor))
    return expect_from_halo(case, (batch for batch, _ in case.design.enumerate()), histories="exact")


def _expect_vanishing(case: Case, frozen: Expectation) -> Expectation:
    """Return what theory says of a floor that ought to vanish, given what it says of exact histories."""
    if frozen.outcome is Outcome.REFUTED:
        return Expectation(Outcome.REFUTED, f"{frozen.reason}: a bias remains however slowly the parameters move")
    if frozen.outcome is None:
        return frozen
    stale = expect_from_halo(case, (batch for batch, _ in case.design.enumerate()), histories="zero")
    if stale.outcome is Outcome.EXACT:
        return Expectation(Outcome.EXACT, f"no bias at any step: {stale.reason}")
    return Expectation(Outcome.SUPPORTED, "histories lag behind by an amount in proportion to the step size")


# ---------------------------------------------------------------------------------------------------------- E4


def _has_beta(case: Case) -> tuple[bool | None, str]:
    beta = getattr(case.estimator, "beta", None)
    if beta is None:
        return False, "the estimator has no beta"
    if isinstance(beta, tuple):
        return False, "beta is one number a node"
    return beta > 0, f"beta = {beta}"


BETA_ABOVE_ZERO = Assumption("beta-above-zero", "beta is one number above zero", _has_beta)


def check_floor_in_beta(case: Case) -> Verdict:
    """Hold the parameters, let the histories settle under beta, beta/2, ... beta/16, and fit the slope of the bias."""
    claim = FLOOR_IN_BETA
    inapplicable = not_applicable(case, claim, NO_DROPOUT.id, FINITE_SUPPORT.id, BETA_ABOVE_ZERO.id)
    if inapplicable is not None:
        return inapplicable
    alpha, beta = case.sampling.alpha, float(getattr(case.estimator, "beta", 0.0))
    runs = [(beta * scale, with_beta(case.estimator, scale), 0.0) for scale in _scales()]
    curves = measure(case, "floor in beta", runs, late_steps(case), _seeds(case, alpha))
    no_slope = unreadable(case, claim, curves, Outcome.NOT_APPLICABLE)
    if no_slope is not None:
        return no_slope
    slope = FloorSlope(curves, alpha)
    outcome = slope.outcome(1 - LINEAR, 1 + LINEAR)
    largest, smallest = np.median(curves.floors, axis=0)[[0, -1]]
    summary = (
        f"the floor goes from {largest:.2g} of the gradient at beta = {beta:.3g} to {smallest:.2g} at "
        f"{curves.values[-1]:.3g}: slope {slope.words}; linear is 1 within {LINEAR}"
    )
    series = [curves.floor_series("Floor of the bias against beta", "beta")]
    return slope.verdict(case, claim, outcome, summary, limit=1.0, evidence=[], series=series)


def expect_floor_in_beta(case: Case) -> Expectation:
    """Return what theory says of E4."""
    known = _expect_before_halo(case, FLOOR_IN_BETA)
    if known is not None:
        return known
    at_zero = _expect_with_exact_histories(case, 0.0)
    if at_zero.outcome is Outcome.REFUTED:
        return Expectation(Outcome.REFUTED, f"{at_zero.reason}: the floor does not vanish with beta")
    blended = _expect_with_exact_histories(case, 1.0)
    if blended.outcome is Outcome.EXACT:
        return Expectation(Outcome.NOT_APPLICABLE, "no bias at any beta: " + blended.reason)
    if at_zero.outcome is None or blended.outcome is None:
        return at_zero if at_zero.outcome is None else blended
    return Expectation(Outcome.SUPPORTED, "the fresh values' error enters with weight beta, to first order")


# ---------------------------------------------------------------------------------------------------------- E5


def check_floor_in_step_size(case: Case) -> Verdict:
    """Train with step sizes eta, eta/2, ... eta/16, and fit the slope of the bias after the transient."""
    claim = FLOOR_IN_STEP_SIZE
    inapplicable = not_applicable(case, claim, NO_DROPOUT.id, FINITE_SUPPORT.id)
    if inapplicable is not None:
        return inapplicable
    alpha = case.sampling.alpha
    sizes = [case.training.step_size * scale for scale in _scales()]
    runs = [(size, case.estimator, size) for size in sizes]
    curves = measure(case, "floor in step size", runs, late_steps(case), _seeds(case, alpha))
    no_slope = unreadable(case, claim, curves, Outcome.EXACT)
    if no_slope is not None:
        return no_slope
    slope = FloorSlope(curves, alpha)
    outcome = slope.outcome(0.5)
    largest, smallest = np.median(curves.floors, axis=0)[[0, -1]]
    summary = (
        f"the bias goes from {largest:.2g} of the gradient at step size {sizes[0]:.3g} to {smallest:.2g} at "
        f"{sizes[-1]:.3g}: slope {slope.words}; the theorem needs 1/2"
    )
    series = [curves.floor_series("Bias against step size", "step size")]
    return slope.verdict(case, claim, outcome, summary, limit=0.5, evidence=[], series=series)


def expect_floor_in_step_size(case: Case) -> Expectation:
    """Return what theory says of E5: the floor vanishes with the step size if the frozen estimator is unbiased."""
    known = _expect_before_halo(case, FLOOR_IN_STEP_SIZE)
    if known is not None:
        return known
    at_zero = _expect_with_exact_histories(case, 0.0)
    if at_zero.outcome is Outcome.REFUTED:
        return _expect_vanishing(case, at_zero)
    frozen = _expect_with_exact_histories(case, 1.0)
    if frozen.outcome is Outcome.REFUTED:
        return Expectation(None, "beta leaves a floor of its own, which the step size does not change")
    return _expect_vanishing(case, frozen)


# --------------------------------------------------------------------------------------------------- Theorem 2


def check_decay_and_floor(case: Case) -> Verdict:
    """Train with eta = eta_0 eps^2, beta = beta_0 eps^2 from zero histories; eps^2 runs over 1, 1/2, ... 1/16.

    The floor is the mean over snapshots that are taken when the histories have had time to forget their start, and its
    slope in eps must be at least 1. (A fitted floor would not do: where parameters drift, slow decay to nothing fits as
    well as a floor that moves.) The decay is geometric if decay and floor, fitted together, describe the curves, and
    the fitted rate is one at which the transient at least halves within the run.
    """
    claim = DECAY_AND_FLOOR
    inapplicable = not_applicable(case, claim, NO_DROPOUT.id, FINITE_SUPPORT.id)
    if inapplicable is not None:
        return inapplicable
    alpha = case.sampling.alpha / 2  # two intervals share the level
    runs = [
        (math.sqrt(scale), with_beta(case.estimator, scale), case.training.step_size * scale) for scale in _scales()
    ]
    early = sorted({round(mixing_steps(case) * (index / EARLY) ** 2) for index in range(EARLY)})
    curves = measure(case, "decay and floor", runs, [*early, *late_steps(case)], _seeds(case, alpha))
    no_slope = unreadable(case, claim, curves, Outcome.EXACT)
    if no_slope is not None:
        return no_slope
    slope = FloorSlope(curves, alpha)
    fits = [[fit_decay(curves.steps, curve) for curve in row] for row in curves.bias]
    rate = median_interval([float(np.median([fit.rate for fit in row])) for row in fits], alpha)
    error = float(np.median([fit.error for row in fits for fit in row]))
    slowest = 0.5 ** (1 / curves.steps[-1])
    outcome, remark = slope.outcome(1.0), ""
    if outcome is Outcome.SUPPORTED:
        if not rate.inside(upper=slowest):
            outcome, remark = Outcome.INCONCLUSIVE, "; no geometric decay is seen within the run"
        elif error > FIT_ERROR:
            outcome, remark = Outcome.INCONCLUSIVE, f"; decay and floor do not fit: typical error {error:.0%}"
        else:
            remark = "; not refuted on this range of eps"
    largest, smallest = np.median(curves.floors, axis=0)[[0, -1]]
    within = f" (in [{rate.low:.3f}, {rate.high:.3f}])" if rate.exists else ""
    summary = (
        f"the bias decays by a factor {rate.median:.3f} a step{within} to a floor that goes from {largest:.2g} to "
        f"{smallest:.2g} of the gradient over eps = 1 ... {curves.values[-1]:.2g}: slope in eps {slope.words}; the "
        f"theorem needs 1{remark}"
    )
    return slope.verdict(
        case,
        claim,
        outcome,
        summary,
        limit=1.0,
        evidence=[
            Evidence("decay", rate.median, slowest, "factor per step", "rates", *rate.ends),
            Evidence("typical error of the fit", error, FIT_ERROR, "relative", "rates"),
        ],
        series=[
            curves.floor_series("Floor of the bias against eps", "eps"),
            *(
                curves.curve_series(place, f"eps = {curves.values[place]:.2g}", "Bias along training")
                for place in (0, HALVINGS // 2, HALVINGS)
            ),
        ],
    )


def expect_decay_and_floor(case: Case) -> Expectation:
    """Return what theory says: beta goes to zero with eps, so what matters is the estimator at beta = 0."""
    known = _expect_before_halo(case, DECAY_AND_FLOOR)
    return known if known is not None else _expect_vanishing(case, _expect_with_exact_histories(case, 0.0))


_LMC = "LMC (Shi, Liang and Wang, ICLR 2023)"

FLOOR_IN_BETA = Claim(
    id="e4/floor-linear-in-beta",
    title="A constant beta leaves a floor, linear in beta",
    statement=(
        "At fixed parameters and constant beta > 0 the bias does not vanish however long the histories settle; its "
        "floor is linear in beta: its log-log slope is 1."
    ),
    source=SOURCE,
    tier="rate",
    theory=(
        "A blended halo value is wrong by beta times the error of the fresh, incomplete value, and stays so. GAS, FM "
        "and other estimators that drop halo messages have a floor at beta = 0, and a slope near 0."
    ),
    assumptions=(NO_DROPOUT, FINITE_SUPPORT, BETA_ABOVE_ZERO),
    check=check_floor_in_beta,
    expect=expect_floor_in_beta,
)

FLOOR_IN_STEP_SIZE = Claim(
    id="e5/floor-in-step-size",
    title="The bias falls with the step size",
    statement=(
        "Along training by stochastic gradient descent with step size eta the mean norm of the bias falls with a "
        "log-log slope of at least 1/2 in eta."
    ),
    source=f"{_LMC}, Theorem 2, with beta = 0",
    tier="rate",
    theory=(
        "Histories are as old as the last visit of their rows; in that time the parameters move by an amount in "
        "proportion to eta. The theorem needs a slope of 1/2, plain Lipschitz arguments give 1. What an estimator "
        "drops does not depend on eta: GAS has slope 0. The step sizes must be small enough for all runs to stay near "
        "one place: elsewhere on the path the bias of every estimator is another one."
    ),
    assumptions=(NO_DROPOUT, FINITE_SUPPORT, UNIFORM, SMOOTH, BOUNDED),
    check=check_floor_in_step_size,
    expect=expect_floor_in_step_size,
)

DECAY_AND_FLOOR = Claim(
    id="theorem-2/decay-and-floor",
    title="The bias decays to a floor of order eps",
    statement=(
        "With eta = O(eps^2) and beta = O(eps^2) the bias at step k is at most C eps + C rho^((k-1)/2) for some C > 0 "
        "and 0 < rho < 1 (exponent unconfirmed). Tested as: geometric decay to a floor whose log-log slope in eps is "
        "at least 1. That some C exists can never be more than not refuted on the tested range."
    ),
    source=f"{_LMC}, Theorem 2",
    tier="rate",
    theory=(
        "The transient is that of histories from zero, which are refreshed at random; the floor comes from parameters "
        "that move (eta) and from incomplete fresh values (beta). What an estimator drops remains at every eps: GAS, "
        "FM and Cluster-GCN have a floor of slope 0. As for E5, all runs must stay near one place."
    ),
    assumptions=(NO_DROPOUT, FINITE_SUPPORT, UNIFORM, SMOOTH, BOUNDED),
    check=check_decay_and_floor,
    expect=expect_decay_and_floor,
)
