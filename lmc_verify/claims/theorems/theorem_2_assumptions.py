"""Assumptions (A2) and (A3) of Theorems 2 and 3: estimates on a case, each with its direction.

A Lipschitz constant is bounded from above by operator norms and from below by difference quotients; the bounds of norms
are maxima along a training run. A finite run can refute an assumption of smoothness, where a kink is crossed; it can
never prove that a constant exists for all parameters, so the best verdict is "supported on this run".
"""

from __future__ import annotations

import math

from lmc_verify.bounds.lipschitz import NormTracker, is_smooth, kinks_crossed, lipschitz_lower, lipschitz_upper
from lmc_verify.cases import Case, prepared_state
from lmc_verify.cases.verdict import Evidence, Outcome, Verdict
from lmc_verify.claims.assumptions import NO_DROPOUT, UNIFORM
from lmc_verify.claims.claim import Claim, expect_not_applicable, not_applicable, verdict_of
from lmc_verify.claims.question import Answer, Question, measured
from lmc_verify.claims.theory import Expectation
from lmc_verify.objective import exact_pass
from lmc_verify.seeds import generator, torch_generator
from lmc_verify.training import TrainingRun

__all__ = ["ASSUMPTIONS"]

DIVERGED = 2.0**52
"""A run whose largest norm has grown by more than this factor supports nothing: next to it, float64 rounds the start
away."""


def check(case: Case) -> Verdict:
    """Train, and estimate on the way: Lipschitz constants from both sides, norms, and ReLU kinks that are crossed."""
    claim = ASSUMPTIONS
    inapplicable = not_applicable(case, claim)
    if inapplicable is not None:
        return inapplicable
    training = case.training
    run = TrainingRun(
        case.problem,
        case.estimator,
        case.design,
        step_size=training.step_size,
        generator=generator(case.seed, "assumptions", case.sampling.replicate),
        state=prepared_state(case, "zero"),
    )
    norms, crossed, inputs, start = NormTracker(), 0, 0, 0.0
    upper: dict[int, float | None] = {}
    lower: dict[int, float] = {}
    exact = case.exact
    marks = {round(training.steps * part / 4) for part in range(5)}
    for step in range(training.steps + 1):
        norms.exact(exact)
        norms.state(run.state)
        start = start or norms.constant
        if not math.isfinite(norms.constant):  # diverged: operator norms of such weights do not exist
            break
        if step in marks:
            for found in lipschitz_upper(run.problem):
                before = upper.get(found.layer, 0.0)
                upper[found.layer] = None if found.value is None or before is None else max(before, found.value)
            for found in lipschitz_lower(run.problem, exact, torch_generator(case.seed, "lipschitz", step), steps=10):
                lower[found.layer] = max(lower.get(found.layer, 0.0), found.value or 0.0)
        if step == training.steps:
            break
        previous = run.problem.copy()
        norms.estimate(run.step().gradient)
        after = exact_pass(run.problem)
        for part in kinks_crossed(previous, exact, after, moved=run.problem) or ():
            crossed += part.crossed
            inputs += part.total
        exact = after
    finite, growth = math.isfinite(norms.constant), norms.constant / (start or 1.0)
    diverged = growth > DIVERGED
    smooth = is_smooth(case.problem)
    if crossed or not finite:
        outcome = Outcome.REFUTED
    elif diverged:
        outcome = Outcome.INCONCLUSIVE
    else:
        outcome = Outcome.SUPPORTED if smooth.smooth else Outcome.INCONCLUSIVE
    parts = [
        f"norms are at most {norms.constant:.3g} along {training.steps:,} steps"
        if finite
        else "(A3) fails: a norm is infinite, the run has diverged"
    ]
    if diverged and finite:
        parts.append(
            f"the run has diverged: the largest norm was {start:.3g} at the start, and growth by more than "
            f"{DIVERGED:.2g} says nothing about bounds; lower training.step_size"
        )
    if lower:
        known = [value for value in upper.values() if value is not None]
        above = f"at most {max(known):.3g}" if len(known) == len(upper) else "without a proven upper bound"
        parts.insert(0, f"layers have Lipschitz constants of at least {max(lower.values()):.3g}, {above}")
    if crossed:
        parts.insert(0, f"(A2) fails: {crossed:,} of {inputs:,} ReLU inputs change sign from one step to the next")
    elif not smooth.smooth:
        parts.insert(0, "the model has kinks, none was crossed on this run")
    return verdict_of(
        case,
        claim.id,
        outcome,
        "; ".join(parts),
        histories="zero",
        evidence=[
            *(
                Evidence(
                    f"layer {layer}: Lipschitz constant, at least", value, upper[layer], "norm / norm", "Lipschitz"
                )
                for layer, value in lower.items()
            ),
            Evidence("ReLU inputs that change sign per step", crossed / (inputs or 1), None, "share", "kinks"),
            Evidence("largest norm, by that at the start", growth, DIVERGED, "norm / norm", "growth"),
            *(
                Evidence(f"{name}, at least", value, unit="Frobenius norm", group="norms")
                for name, value in norms.largest.items()
            ),
        ],
        assumptions=claim.checked_assumptions(case),
    )


def expect(case: Case) -> Expectation:
    """Return what theory says: kinks of ReLU are crossed sooner or later, smooth models have none."""
    inapplicable = expect_not_applicable(case, ASSUMPTIONS)
    if inapplicable is not None:
        return inapplicable
    if is_smooth(case.problem).smooth:
        return Expectation(Outcome.SUPPORTED, "every part of the model is smooth")
    return Expectation(None, "the model has kinks; whether a short run crosses one depends on its path")


ASSUMPTIONS = Claim(
    id="theorem-2/assumptions",
    title="Layers are smooth and norms bounded",
    statement=(
        "(A2) The layers, backward maps, d loss/dw and du/dtheta are Lipschitz; (A3) the norms of H, V, their "
        "histories, the gradients and their estimates are bounded. Checked along a training run."
    ),
    source="LMC (Shi, Liang and Wang, ICLR 2023), assumptions of Theorems 2 and 3",
    tier="exact",
    theory=(
        "ReLU breaks (A2): its derivative jumps where an input changes sign. The theorems then hold where no kink is "
        "crossed, and a crossed one shows as a jump of the bias. Smooth activations such as tanh satisfy (A2) on "
        "bounded sets. Constants along one run are lower bounds of those that hold for all parameters."
    ),
    question=Question(
        "Are layers smooth and norms bounded along {estimator}'s training",
        refuted=Answer(
            "{size} of ReLU inputs change sign per step",
            measured("ReLU inputs that change sign per step", positive=True),
        ),
    ),
    required=(NO_DROPOUT,),
    assumptions=(UNIFORM,),
    check=check,
    expect=expect,
    reads=("training.step_size", "training.steps"),
    histories="zero",
    varies=("parameters",),
)
