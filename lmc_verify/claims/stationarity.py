"""Theorem 3 near a stationary point: does the mean update vanish only there, does the bias shrink with the gradient?

Both claims are about bias alone, so the parameters follow a deterministic path and the bias is enumerated along it: no
sampling error of the path hides it, and no error probability is spent.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from lmc_verify.case import Case, prepared_state
from lmc_verify.claims.base import FINITE_SUPPORT, NO_DROPOUT, UNIFORM, Claim, not_applicable, verdict_of
from lmc_verify.claims.expectation import Expectation, expect_from_halo
from lmc_verify.claims.residuals import RESOLUTION_LIMIT, Residuals
from lmc_verify.claims.smoothness import BOUNDED, SMOOTH
from lmc_verify.claims.unbiasedness import compare_mean, weights_fail
from lmc_verify.claims.verdict import Evidence, Outcome, Series, Verdict
from lmc_verify.estimators import with_beta
from lmc_verify.exact import exact_pass
from lmc_verify.problem import gradient_norm, gradient_sum
from lmc_verify.seeds import generator
from lmc_verify.training import TrainingRun, conditional_bias, weighted_batches

__all__ = ["FIXED_POINT", "RELATIVE_BIAS"]

PLATEAU = 4.0
"""A gradient this many times the mean update is a plateau: training stands still where the gradient does not vanish."""

STILL = 0.5
"""On a plateau the gradient stands still: in the second half of the steps it does not fall below this share."""

SNAPSHOTS = 12
"""Points of a path at which the bias is enumerated, dense at the start."""

LATE = 3
"""Last snapshots that the verdict on the relative bias looks at."""

APPROACH = 0.5
"""Share of the first gradient that the last one must be below: else training has approached nothing."""

RUNS = 3
"""Independent histories along the same path."""


def _snapshots(steps: int) -> list[int]:
    return sorted({round(steps * (index / (SNAPSHOTS - 1)) ** 2) for index in range(SNAPSHOTS)})


# ------------------------------------------------------------------------------------------------ fixed points


def check_fixed_point(case: Case) -> Verdict:
    """Follow the mean update, enumerated from exact histories, and compare it with the exact gradient on the way.

    The claim holds if both agree at every snapshot. It is refuted by a plateau: at the end the gradient is at least
    four times the mean update, it has not halved in the second half of the steps, and it is more than rounding.
    """
    claim = FIXED_POINT
    inapplicable = not_applicable(case, claim, NO_DROPOUT.id, FINITE_SUPPORT.id)
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
    batches, snapshots = weighted_batches(case.design), set(_snapshots(steps))
    residuals: Residuals | None = None
    rows: list[tuple[int, float, float]] = []
    norms: list[float] = []
    for step in range(steps + 1):
        exact = exact_pass(run.problem)
        norms.append(gradient_norm(exact.gradient))
        if not math.isfinite(norms[-1]):
            break
        here = dataclasses.replace(case, problem=run.problem, exact=exact, histories="exact")
        if step in snapshots:
            _, bias, found_here = compare_mean(here)
            residuals = found_here.merged(residuals)
        else:
            bias, _ = conditional_bias(run.problem, case.estimator, here.initial_state(), batches, exact)
        update = gradient_sum(bias, exact.gradient)
        if step in snapshots:
            rows.append((step, gradient_norm(update), norms[-1]))
        if step < steps:
            run.descend(update)
    if residuals is None:
        return verdict_of(case, claim.id, Outcome.NOT_APPLICABLE, "the exact gradient is not finite to begin with")
    (_, _, first), (_, update_norm, last) = rows[0], rows[-1]
    found = residuals.outcome
    ratio = last / update_norm if update_norm > 0 else (math.inf if last > 0 else 1.0)
    diverged = not math.isfinite(norms[-1])
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
            f"the mean update is the exact gradient all along: largest residual {residuals.worst.value:.1e}; {words}"
        )
    elif found is Outcome.REFUTED:
        summary = (
            f"a plateau: {words}, {ratio:.3g} times the update: training stands still away from a stationary point"
        )
    elif residuals.outcome is Outcome.REFUTED:
        if diverged:
            advice = "it diverged, lower training.step_size"
        else:
            advice = "both vanish on this problem, take another" if vanished else "raise training.steps"
        summary = f"biased, but not on a plateau: {words}; {advice}"
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
    broken = next((item for item in FIXED_POINT.checked_assumptions(case)[:2] if item.holds is False), None)
    if broken is not None:
        return Expectation(Outcome.NOT_APPLICABLE, broken.statement)
    reasons = weights_fail(case)
    found = expect_from_halo(case, (batch for batch, _ in case.design.enumerate()), histories="exact")
    if found.outcome is Outcome.EXACT and not reasons:
        return found
    return Expectation(
        None, "; ".join([*reasons, found.reason]) + ": whether that makes a plateau depends on the problem"
    )


# ----------------------------------------------------------------------------------------------- relative bias


def _scheduled(case: Case) -> Case:
    """Return the case with the beta that a run of its length uses."""
    if case.training.beta_schedule == "constant":
        return case
    return dataclasses.replace(case, estimator=with_beta(case.estimator, case.training.steps ** (-2 / 3)))


def check_relative_bias(case: Case) -> Verdict:
    """Follow exact gradient descent while the histories see random batches, and enumerate bias / gradient on the way.

    The claim holds if at the last three snapshots the bias is below the gradient in every run, and is refuted if it is
    above in every run. Where the gradient has not halved, staying below it supports nothing.
    """
    claim = RELATIVE_BIAS
    inapplicable = not_applicable(case, claim, NO_DROPOUT.id, FINITE_SUPPORT.id)
    if inapplicable is not None:
        return inapplicable
    training, batches, own = case.training, weighted_batches(case.design), _scheduled(case)
    estimator, snapshots = own.estimator, _snapshots(training.steps)
    runs = case.sampling.seeds or RUNS
    relative, norms = np.empty((runs, len(snapshots))), np.empty(len(snapshots))
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
                bias, _ = conditional_bias(run.problem, estimator, run.state, batches, exact)
                place = snapshots.index(step)
                norms[place] = gradient_norm(exact.gradient)
                relative[seed, place] = gradient_norm(bias) / (norms[place] or 1.0)
            if step < training.steps:
                run.state.apply(estimator.estimate(run.problem, run.state, run.draw()).writes)
                run.descend(exact.gradient)
    late = relative[:, -LATE:]
    if not np.isfinite(norms).all():
        outcome = Outcome.INCONCLUSIVE
    elif not (norms[-LATE:] > 0).all():
        outcome = Outcome.NOT_APPLICABLE
    elif (late < 1).all():
        outcome = Outcome.SUPPORTED if norms[-1] <= APPROACH * norms[0] else Outcome.INCONCLUSIVE
    elif (late > 1).all():
        outcome = Outcome.REFUTED
    else:
        outcome = Outcome.INCONCLUSIVE
    start, end = float(np.median(relative[:, 0])), float(np.median(relative[:, -1]))
    summary = (
        f"as the gradient falls from {norms[0]:.2g} to {norms[-1]:.2g}, the bias goes from {start:.2g} to {end:.2g} "
        f"times the gradient"
    )
    if not np.isfinite(norms).all():
        summary = "the run diverged: it approaches no stationary point; lower training.step_size"
    elif outcome is Outcome.INCONCLUSIVE:
        sides = "the gradient has hardly fallen" if (late < 1).all() else "the last snapshots lie on both sides of 1"
        summary += f"; {sides}, raise training.steps"
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
                1.0,
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
    broken = next((item for item in RELATIVE_BIAS.checked_assumptions(case)[:2] if item.holds is False), None)
    if broken is not None:
        return Expectation(Outcome.NOT_APPLICABLE, broken.statement)
    if not weights_fail(case):
        batches = (batch for batch, _ in case.design.enumerate())
        if expect_from_halo(case, batches, histories="exact").outcome is Outcome.EXACT:
            return Expectation(
                None,
                "any bias comes from stale histories and falls with the gradient: how far depends on the steps",
            )
    return Expectation(None, "a bias remains at exact histories: whether it outgrows the gradient depends on the path")


_SOURCE = "LMC (Shi, Liang and Wang, ICLR 2023), Theorem 3: what convergence to a stationary point requires of the bias"

FIXED_POINT = Claim(
    id="theorem-3/fixed-point",
    title="The mean update vanishes at stationary points only",
    statement="With exact histories, where the mean update of training vanishes the exact gradient vanishes.",
    source=_SOURCE,
    tier="exact",
    theory=(
        "An unbiased estimator's mean update is the gradient. A biased one stands still where gradient and bias "
        "cancel: GAS comes to rest on a plateau away from every stationary point, most of all where neighbours "
        "disagree, so that the messages that it drops point against those that it keeps."
    ),
    assumptions=(NO_DROPOUT, FINITE_SUPPORT, UNIFORM),
    check=check_fixed_point,
    expect=expect_fixed_point,
)

RELATIVE_BIAS = Claim(
    id="theorem-3/relative-bias",
    title="The bias shrinks with the gradient",
    statement=(
        "As training approaches a stationary point, the bias of the estimate stays below the exact gradient's norm."
    ),
    source=_SOURCE,
    tier="exact",
    theory=(
        "Where the bias exceeds the gradient, updates no longer point downhill on average. With beta = 0, or beta_0 "
        "N^(-2/3), LMC's histories settle as the parameters do and the bias falls with the gradient, and near a "
        "perfect fit faster. With a constant beta incomplete fresh values keep it up, most of all at beta = 1, "
        "where the histories are never used: it ends at many times the gradient, and Theorem 3 does not cover that "
        "setting."
    ),
    assumptions=(NO_DROPOUT, FINITE_SUPPORT, UNIFORM, SMOOTH, BOUNDED),
    check=check_relative_bias,
    expect=expect_relative_bias,
)
