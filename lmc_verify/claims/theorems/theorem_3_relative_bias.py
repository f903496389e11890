"""Theorem 3, along a run: the bias in units of the exact gradient while training converges."""

from __future__ import annotations

import dataclasses

import numpy as np

from lmc_verify.cases import Case, prepared_state
from lmc_verify.cases.verdict import Evidence, Outcome, Series, Verdict
from lmc_verify.claims.assumptions import BOUNDED, FINITE_SUPPORT, NO_DROPOUT, SMOOTH, UNIFORM
from lmc_verify.claims.claim import Claim, expect_not_applicable, not_applicable, verdict_of
from lmc_verify.claims.diagnosis import worst_parameter
from lmc_verify.claims.question import Answer, Question, measured
from lmc_verify.claims.reference import explained
from lmc_verify.claims.residuals import rounding_magnitudes, rounding_of_bias
from lmc_verify.claims.theorems.theorem_3_fixed_point import SOURCE, snapshot_steps
from lmc_verify.claims.theorems.theorem_3_rate import SCHEDULE, scheduled
from lmc_verify.claims.theory import Expectation, expect_from_halo, weights_fail
from lmc_verify.claims.thresholds import fraction
from lmc_verify.estimators import checked_estimate
from lmc_verify.objective import exact_pass, gradient_norm
from lmc_verify.seeds import generator
from lmc_verify.training import TrainingRun, conditional_moments, weighted_batches

__all__ = ["RELATIVE_BIAS"]

LIMIT = 1.0
"""Bias, in units of the exact gradient's norm, that the late snapshots must lie below."""

LATE = 3
"""Last snapshots that the verdict on the relative bias looks at."""

APPROACH = 0.5
"""Share of the first gradient that the last one must be below: else training has approached nothing."""

ROUNDING = 1e-9
"""A parameter's bias up to this part of its gradient is not named."""

RUNS = 3
"""Independent histories along the same path."""


def _scheduled(case: Case) -> Case:
    """Return the case with the beta that a run of its length uses."""
    if case.training.beta_schedule == "constant":
        return case
    estimator, _ = scheduled(case.estimator, case.training.step_size, case.training.steps)
    return dataclasses.replace(case, estimator=estimator)


def check_relative_bias(case: Case) -> Verdict:
    """Follow exact gradient descent while the histories see random batches, and enumerate bias / gradient on the way.

    The claim holds if at the last snapshots the bias is below the gradient in every run, and is refuted if it is above
    in every run. Where the gradient has hardly fallen, staying below it supports nothing.
    """
    claim = RELATIVE_BIAS
    inapplicable = not_applicable(case, claim)
    if inapplicable is not None:
        return inapplicable
    training, batches, own = case.training, weighted_batches(case.design), _scheduled(case)
    estimator, snapshots = own.estimator, snapshot_steps(training.steps)
    runs = case.sampling.seeds or RUNS
    relative, (norms, rounding) = np.empty((runs, len(snapshots))), np.zeros((2, len(snapshots)))
    looks = ""
    for seed in range(runs):
        run = TrainingRun(
            case.problem,
            estimator,
            case.design,
            step_size=training.step_size,
            generator=generator(case.seed, "relative bias", case.sampling.replicate, seed),
            state=prepared_state(own, "zero"),
        )
        for step in range(training.steps + 1):
            exact = exact_pass(run.problem)
            if step in snapshots:
                found = conditional_moments(run.problem, estimator, run.state, batches, exact)
                bias, place = found.bias, snapshots.index(step)
                looks = worst_parameter(bias, exact.gradient, ROUNDING)
                if seed == 0:  # the path is the same for every seed
                    magnitudes = rounding_magnitudes(run.problem, exact)
                    rounding[place] = rounding_of_bias(run.problem, found.size, magnitudes, len(batches))
                norms[place] = gradient_norm(exact.gradient)
                relative[seed, place] = gradient_norm(bias) / (norms[place] or 1.0)
            if step < training.steps:
                run.state.apply(checked_estimate(estimator, run.problem, run.state, run.draw(), finite=False).writes)
                run.descend(exact.gradient)
    late = relative[:, -LATE:]
    finite = bool(np.isfinite(norms).all() and np.isfinite(relative).all())
    lost = finite and not (norms[-LATE:] > rounding[-LATE:]).all()
    if not finite:
        outcome = Outcome.INCONCLUSIVE
    elif not (norms[-LATE:] > 0).all():
        outcome = Outcome.NOT_APPLICABLE
    elif lost:
        outcome = Outcome.INCONCLUSIVE
    elif (late < LIMIT).all():
        outcome = Outcome.SUPPORTED if norms[-1] <= APPROACH * norms[0] else Outcome.INCONCLUSIVE
    elif (late > LIMIT).all():
        outcome = Outcome.REFUTED
    else:
        outcome = Outcome.INCONCLUSIVE
    start, end = float(np.median(relative[:, 0])), float(np.median(relative[:, -1]))
    falls = bool(norms[-1] < norms[0])
    path = f"falls from {norms[0]:.2g} to" if falls else f"does not fall, from {norms[0]:.2g} at the start to"
    summary = f"as the gradient {path} {norms[-1]:.2g}, the bias goes from {start:.2g} to {end:.2g} times the gradient"
    if not finite:
        what = "bias" if np.isfinite(norms).all() else "exact gradient"
        summary = (
            f"the run diverged: the {what} is not finite everywhere on the path, which approaches no stationary point; "
            "lower training.step_size"
        )
    elif lost and outcome is Outcome.INCONCLUSIVE:
        summary = (
            f"the exact gradient is {norms[-1]:.2g} at the end, and rounding may be {rounding[-1]:.2g}: its ratio to a "
            "bias says nothing; take fewer training.steps, or parameters at which the gradients of single nodes cancel "
            "less"
        )
    elif outcome is Outcome.INCONCLUSIVE:
        below = bool((late < LIMIT).all())
        both_sides = f"the last snapshots lie on both sides of {fraction(LIMIT)}"
        if not falls:
            summary += "; this path approaches no stationary point, lower training.step_size or raise training.steps"
        else:
            summary += f"; {'the gradient has hardly fallen' if below else both_sides}, raise training.steps"
    elif outcome is Outcome.REFUTED:
        summary += looks + explained(case, claim)
    elif outcome is Outcome.NOT_APPLICABLE:
        summary = "the exact gradient vanishes along the path (a network that has died?): there is no relative bias"
    return verdict_of(
        case,
        claim.id,
        outcome,
        summary,
        histories="zero",
        evidence=[
            Evidence(
                "largest bias / gradient at the end",
                float(late.max()),
                LIMIT,
                unit="gradient norm",
                group="relative bias",
            ),
            Evidence("bias / gradient at the start", start, unit="gradient norm", group="relative bias"),
        ],
        series=(
            Series(
                "median over runs",
                tuple(map(float, snapshots)),
                tuple(map(float, np.median(relative, axis=0))),
                "Relative bias along training",
                "step",
                "bias / exact gradient",
                tuple(map(float, relative.min(axis=0))),
                tuple(map(float, relative.max(axis=0))),
                "semilogy",
            ),
        ),
        assumptions=claim.checked_assumptions(case),
        draws=runs,
    )


def expect_relative_bias(case: Case) -> Expectation:
    """Return what theory says: nothing sure, for training may be too short to approach a stationary point."""
    inapplicable = expect_not_applicable(case, RELATIVE_BIAS)
    if inapplicable is not None:
        return inapplicable
    if not weights_fail(case):
        batches = (batch for batch, _ in case.design.enumerate())
        if expect_from_halo(case, batches, histories="exact").outcome is Outcome.EXACT:
            return Expectation(
                None,
                "any bias comes from stale histories and falls with the gradient: how far depends on the steps",
            )
    return Expectation(None, "a bias remains at exact histories: whether it outgrows the gradient depends on the path")


RELATIVE_BIAS = Claim(
    id="theorem-3/relative-bias",
    title="The bias shrinks with the gradient",
    statement=(
        "As training approaches a stationary point, the bias of the estimate stays below the exact gradient's norm."
    ),
    source=SOURCE,
    tier="exact",
    theory=(
        "Where the bias exceeds the gradient, updates no longer point downhill on average. With beta = 0, or beta_0 "
        f"N^({fraction(SCHEDULE)}), LMC's histories settle as the parameters do and the bias falls with the gradient, "
        "and near a perfect fit faster. With a constant beta incomplete fresh values keep it up, most of all at beta = "
        "1, where the histories are never used: it ends at many times the gradient, and Theorem 3 does not cover that "
        "setting."
    ),
    question=Question(
        "Does {estimator}'s bias stay below the gradient as the gradient vanishes",
        supported=Answer(
            "at most {size} of it at the end", measured("largest bias / gradient at the end"), largest=True
        ),
        refuted=Answer("{size} of it at the end", measured("largest bias / gradient at the end")),
    ),
    required=(NO_DROPOUT, FINITE_SUPPORT),
    assumptions=(UNIFORM, SMOOTH, BOUNDED),
    check=check_relative_bias,
    expect=expect_relative_bias,
    reads=("sampling.seeds", "training.step_size", "training.steps", "training.beta_schedule"),
    histories="zero",
    varies=("parameters",),
)
