"""Theorem 2: the bias along training decays to a floor."""

from __future__ import annotations

import math

import numpy as np

from lmc_verify.cases import Case
from lmc_verify.cases.verdict import Evidence, Outcome, Verdict
from lmc_verify.claims.assumptions import BOUNDED, FINITE_SUPPORT, NO_DROPOUT, SMOOTH, UNIFORM
from lmc_verify.claims.bias_curves import (
    LMC_THEOREM_2,
    NEGLIGIBLE,
    FloorSlope,
    expect_before_halo,
    expect_vanishing,
    expect_with_exact_histories,
    late_steps,
    measure,
    mixing_steps,
    scales,
    seeds_of,
    unreadable,
)
from lmc_verify.claims.claim import Claim, not_applicable
from lmc_verify.claims.question import Answer, Question, measured
from lmc_verify.claims.theory import Expectation
from lmc_verify.claims.thresholds import fraction
from lmc_verify.estimators import with_beta
from lmc_verify.statistics.rates import fit_decay, median_interval

__all__ = ["DECAY_AND_FLOOR"]

SLOPE = 1.0
"""Smallest log-log slope of the floor in eps that the theorem needs."""

REMAINS = 0.5
"""Largest share of the transient that a decay which is called geometric leaves at the end of the run."""

FIT_ERROR = 0.5
"""Largest typical relative error of the fit of decay and floor at which its numbers are still read."""

EARLY = 10
"""Snapshots of the transient, dense at the start."""


def check_decay_and_floor(case: Case) -> Verdict:
    """Train with eta = eta_0 eps^2, beta = beta_0 eps^2 from zero histories; eps^2 runs over 1, 1/2, 1/4, ...

    The floor is the mean over snapshots that are taken when the histories have had time to forget their start, and its
    slope in eps must be at least the theorem's. (A fitted floor would not do: where parameters drift, slow decay to
    nothing fits as well as a floor that moves.) The decay is geometric if decay and floor, fitted together, describe
    the curves, and the fitted rate is one at which the transient has died down by the end of the run.
    """
    claim = DECAY_AND_FLOOR
    inapplicable = not_applicable(case, claim)
    if inapplicable is not None:
        return inapplicable
    alpha = case.sampling.alpha / 2  # two intervals share the level
    runs = [(math.sqrt(scale), with_beta(case.estimator, scale), case.training.step_size * scale) for scale in scales()]
    early = sorted({round(mixing_steps(case) * (index / EARLY) ** 2) for index in range(EARLY)})
    curves = measure(case, "decay and floor", runs, [*early, *late_steps(case)], seeds_of(case, alpha))
    no_slope = unreadable(case, claim, curves, Outcome.EXACT)
    if no_slope is not None:
        return no_slope
    slope = FloorSlope(curves, alpha)
    # A bias that happens to vanish at a snapshot is rounding, as any that is not above `NEGLIGIBLE`.
    fits = [[fit_decay(curves.steps, curve) for curve in row] for row in np.maximum(curves.bias, NEGLIGIBLE)]
    rate = median_interval([float(np.median([fit.rate for fit in row])) for row in fits], alpha)
    error = float(np.median([fit.error for row in fits for fit in row]))
    slowest = REMAINS ** (1 / curves.steps[-1])
    outcome, remark = slope.outcome(SLOPE), ""
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
        f"the bias decays by a factor of {rate.median:.3f} per step{within} to a floor that goes from {largest:.2g} to "
        f"{smallest:.2g} of the gradient over eps = 1 ... {curves.values[-1]:.2g}: slope in eps {slope.words}; the "
        f"theorem needs {fraction(SLOPE)}{remark}"
    )
    return slope.verdict(
        case,
        claim,
        outcome,
        summary,
        limit=SLOPE,
        evidence=[
            Evidence("decay", rate.median, slowest, "factor per step", "rates", *rate.ends),
            Evidence("typical error of the fit", error, FIT_ERROR, "relative", "rates"),
        ],
        series=[
            curves.floor_series("Floor of the bias against eps", "eps"),
            *(
                curves.curve_series(place, f"eps = {curves.values[place]:.2g}", "Bias along training")
                for place in (0, len(curves.values) // 2, len(curves.values) - 1)
            ),
        ],
    )


def expect_decay_and_floor(case: Case) -> Expectation:
    """Return what theory says: beta goes to zero with eps, so what matters is the estimator at beta = 0."""
    known = expect_before_halo(case, DECAY_AND_FLOOR)
    return known if known is not None else expect_vanishing(case, expect_with_exact_histories(case, 0.0))


DECAY_AND_FLOOR = Claim(
    id="theorem-2/decay-and-floor",
    title="The bias decays to a floor of order eps",
    statement=(
        "With eta = O(eps^2) and beta = O(eps^2) the bias at step k is at most C eps + C rho^((k-1)/2) for some C > 0 "
        "and 0 < rho < 1 (exponent unconfirmed). Tested as: geometric decay to a floor whose log-log slope in eps is "
        f"at least {fraction(SLOPE)}; the transient falls to at most {REMAINS:.0%} within the run, and the typical "
        f"error of the fit is at most {FIT_ERROR:.0%}. That some C exists can never be more than not refuted on the "
        "tested range."
    ),
    source=f"{LMC_THEOREM_2}, Theorem 2",
    tier="rate",
    theory=(
        "The transient is that of histories from zero, which are refreshed at random; the floor comes from parameters "
        "that move (eta) and from incomplete fresh values (beta). What an estimator drops remains at every eps: GAS, "
        "FM and Cluster-GCN have a floor of slope 0. As for E5, all runs must stay close together."
    ),
    question=Question(
        "Does {estimator}'s bias decay to a floor of order eps",
        exact=Answer("there is none at any eps"),
        supported=Answer("slope in eps {size}", measured("floor"), unit="number"),
        refuted=Answer("slope in eps {size}", measured("floor"), unit="number"),
    ),
    required=(NO_DROPOUT, FINITE_SUPPORT),
    assumptions=(UNIFORM, SMOOTH, BOUNDED),
    check=check_decay_and_floor,
    expect=expect_decay_and_floor,
    reads=("sampling.seeds", "training.step_size"),
    histories="zero",
    varies=("parameters",),
)
