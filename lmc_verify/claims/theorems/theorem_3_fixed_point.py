"""Theorem 3 near a stationary point: does the mean update vanish only there?

The claim is about bias alone, so the parameters follow a deterministic path and the bias is enumerated along it: no
sampling error of the path hides it, and no error probability is spent.
"""

from __future__ import annotations

import dataclasses
import math

from lmc_verify.cases import Case
from lmc_verify.cases.verdict import Evidence, Outcome, Series, Verdict
from lmc_verify.claims.assumptions import FINITE_SUPPORT, NO_DROPOUT, UNIFORM
from lmc_verify.claims.claim import Claim, expect_not_applicable, not_applicable, verdict_of
from lmc_verify.claims.diagnosis import worst_parameter
from lmc_verify.claims.enumerated import compare_mean
from lmc_verify.claims.question import Answer, Question, measured
from lmc_verify.claims.reference import explained
from lmc_verify.claims.residuals import RESOLUTION_LIMIT, Residuals
from lmc_verify.claims.theory import Expectation, expect_from_halo, weights_fail
from lmc_verify.objective import exact_pass, gradient_norm, gradient_sum
from lmc_verify.seeds import generator
from lmc_verify.training import HUGE, TrainingRun, conditional_bias, weighted_batches

__all__ = ["FIXED_POINT", "SOURCE", "snapshot_steps"]

PLATEAU = 4.0
"""A gradient this many times the mean update is a plateau: training stops where the gradient does not vanish."""

STILL = 0.5
"""On a plateau the gradient stays: in the second half of the steps it does not fall below this share."""

SNAPSHOTS = 12
"""Points of a path at which the bias is enumerated, dense at the start."""


def snapshot_steps(steps: int) -> list[int]:
    """Return the steps at which the bias is enumerated, `SNAPSHOTS` at most."""
    return sorted({round(steps * (index / (SNAPSHOTS - 1)) ** 2) for index in range(SNAPSHOTS)})


def check_fixed_point(case: Case) -> Verdict:
    """Follow the mean update, enumerated from exact histories, and compare it with the exact gradient on the way.

    The claim holds if both agree at every snapshot. It is refuted by a plateau: at the end the gradient is a multiple
    of the mean update, it has hardly fallen in the second half of the steps, and it is more than rounding.
    """
    claim = FIXED_POINT
    inapplicable = not_applicable(case, claim)
    if inapplicable is not None:
        return inapplicable
    steps = case.training.steps
    run = TrainingRun(
        case.problem,
        case.estimator,
        case.design,
        step_size=case.training.step_size,
        generator=generator(case.seed, "fixed point"),
    )
    batches, snapshots = weighted_batches(case.design), set(snapshot_steps(steps))
    residuals: Residuals | None = None
    rows: list[tuple[int, float, float]] = []
    norms: list[float] = []
    looks = ""
    for step in range(steps + 1):
        exact = exact_pass(run.problem)
        norms.append(gradient_norm(exact.gradient))
        if not norms[-1] <= HUGE:
            break
        here = dataclasses.replace(case, problem=run.problem, exact=exact, histories="exact")
        if step in snapshots:
            _, bias, found_here = compare_mean(here)
            looks = worst_parameter(bias, exact.gradient, RESOLUTION_LIMIT)
            residuals = found_here.merged(residuals)
        else:
            bias, _ = conditional_bias(run.problem, case.estimator, here.initial_state(), batches, exact)
        update = gradient_sum(bias, exact.gradient)
        if step in snapshots:
            rows.append((step, gradient_norm(update), norms[-1]))
        if step < steps:
            run.descend(update)
    if residuals is None:
        large = f"the exact gradient is {norms[0]:.1e} to begin with, beyond {HUGE:.0e} products overflow; scale the"
        return verdict_of(case, claim.id, Outcome.NOT_APPLICABLE, f"{large} features or the parameters down")
    (_, _, first), (_, update_norm, last) = rows[0], rows[-1]
    found = residuals.outcome
    ratio = last / update_norm if update_norm > 0 else (math.inf if last > 0 else 1.0)
    diverged = not norms[-1] <= HUGE
    vanished = last <= RESOLUTION_LIMIT * max(norms)
    still = not diverged and not vanished and last >= STILL * norms[steps // 2]
    if found is Outcome.REFUTED and not (ratio >= PLATEAU and still):
        found = Outcome.INCONCLUSIVE
    words = (
        f"after {rows[-1][0]:,} steps the mean update is {update_norm:.2g} and the exact gradient {last:.2g} (at the "
        f"start {first:.2g})"
    )
    if found is Outcome.EXACT:
        summary = (
            "the mean update equals the exact gradient at every snapshot: largest residual "
            f"{residuals.worst.value:.1e}; {words}"
        )
    elif found is Outcome.REFUTED:
        summary = f"a plateau: {words}, {ratio:.3g} times the update: training stops away from a stationary point"
        summary += looks + explained(case, claim)
    elif residuals.outcome is Outcome.REFUTED:
        if diverged:
            advice = "it diverged, lower training.step_size"
        else:
            advice = "both vanish on this problem, take another" if vanished else "raise training.steps"
        summary = f"biased, but not on a plateau: {words}; {advice}{looks}"
    else:
        summary = residuals.explanation
    labels = ("Along the mean update", "step", "norm")
    x = tuple(float(step) for step, _, _ in rows)
    return verdict_of(
        case,
        claim.id,
        found,
        summary,
        histories="exact",
        residuals=residuals,
        evidence=[
            Evidence("exact gradient / mean update at the end", ratio, PLATEAU, unit="ratio", group="plateau"),
            Evidence("exact gradient at the end / at the start", last / (first or 1.0), unit="ratio", group="plateau"),
        ],
        series=(
            Series("exact gradient", x, tuple(row[2] for row in rows), *labels, scale="semilogy"),
            Series("mean update", x, tuple(row[1] for row in rows), *labels, scale="semilogy"),
        ),
        assumptions=claim.checked_assumptions(case),
    )


def expect_fixed_point(case: Case) -> Expectation:
    """Return what theory says: the two agree where the estimator is unbiased; a bias may or may not make a plateau."""
    inapplicable = expect_not_applicable(case, FIXED_POINT)
    if inapplicable is not None:
        return inapplicable
    reasons = weights_fail(case)
    found = expect_from_halo(case, (batch for batch, _ in case.design.enumerate()), histories="exact")
    if found.outcome is Outcome.EXACT and not reasons:
        return found
    return Expectation(
        None, "; ".join([*reasons, found.reason]) + ": whether that makes a plateau depends on the problem"
    )


SOURCE = "LMC (Shi, Liang and Wang, ICLR 2023), Theorem 3: what convergence to a stationary point requires of the bias"

FIXED_POINT = Claim(
    id="theorem-3/fixed-point",
    title="The mean update vanishes at stationary points only",
    statement="With exact histories, where the mean update of training vanishes the exact gradient vanishes.",
    source=SOURCE,
    tier="exact",
    theory=(
        "An unbiased estimator's mean update is the gradient. A biased one stops where gradient and bias "
        "cancel: GAS stops on a plateau away from every stationary point, most of all where neighbours "
        "disagree, so that the messages that it drops point against those that it keeps."
    ),
    question=Question(
        "Does {estimator}'s mean update vanish at stationary points only",
        refuted=Answer(
            "it stops where the gradient is {size} times the update",
            measured("exact gradient / mean update at the end"),
            unit="number",
        ),
    ),
    required=(NO_DROPOUT, FINITE_SUPPORT),
    assumptions=(UNIFORM,),
    check=check_fixed_point,
    expect=expect_fixed_point,
    reads=("training.step_size", "training.steps"),
    histories="exact",
    varies=("parameters",),
)
