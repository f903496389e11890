"""The explicit bound behind Theorem 2: the error of an estimate from the errors of the histories that it read."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from lmc_verify.bounds import NoBound, batch_bound, error_interval, exact_terms
from lmc_verify.cases import Case, prepared_state
from lmc_verify.cases.verdict import Evidence, Outcome, Series, Verdict
from lmc_verify.claims.assumptions import NO_DROPOUT
from lmc_verify.claims.claim import Assumption, Claim, expect_not_applicable, not_applicable, verdict_of
from lmc_verify.claims.diagnosis import worst_parameter
from lmc_verify.claims.question import Answer, Question, measured
from lmc_verify.claims.reference import explained
from lmc_verify.claims.theory import UNKNOWN, Expectation
from lmc_verify.errors import InvalidInputError
from lmc_verify.estimators import BackwardSGD, History, properties_of
from lmc_verify.models import active_dropout
from lmc_verify.objective import exact_pass, gradient_norm, gradient_sum
from lmc_verify.seeds import generator
from lmc_verify.training import TrainingRun

__all__ = ["POSTERIOR_BOUND"]

VACUOUS_SLACK = 100.0
"""A bound that is typically this many times the measured error is called vacuous."""

NEGLIGIBLE = 1e-9
"""Errors below this part of the gradient are rounding, whose slack says nothing."""

UNDERFLOW = 1e-280
"""Errors up to this size have lost digits below the smallest float64: no bound is exceeded by them."""

NORM_ROUNDING = 1e-12
"""How far rounding may carry a total error out of its interval, relative to the norms; the bound has its own margin."""


@dataclass(frozen=True)
class _Step:
    """One step: the distance from Backward SGD, its bound, the gradient's norm, and whether each bound was kept."""

    error: float
    bound: float
    unit: float
    kept: bool
    enclosed: bool
    looks: str


def _step(case: Case, run: TrainingRun) -> _Step | str:
    """Compare the next estimate of a run with its bound, then move on; or say why there is nothing to compare.

    Numbers that overflow compare with nothing: a bound that is NaN is not exceeded.
    """
    batch, problem, exact = run.draw(), run.problem, exact_pass(run.problem)
    unit = gradient_norm(exact.gradient)
    if not math.isfinite(unit):
        return "the run diverged: its exact gradient is not finite"
    terms = exact_terms(problem, exact)
    bound = batch_bound(problem, exact, run.state, batch, case.estimator, terms=terms, as_stated=True)
    assert not isinstance(bound, NoBound)  # the assumption PROVEN has been checked at the start
    held = History.from_exact(problem, exact)
    expected = BackwardSGD(weighting=case.weighting).estimate(problem, held, batch).gradient
    enclosed = error_interval(problem, exact, batch, bound, weighting=case.weighting)
    estimate = run.step(batch).gradient
    difference = gradient_sum(estimate, expected, -1.0)
    error = gradient_norm(difference)
    total = gradient_norm(gradient_sum(estimate, exact.gradient, -1.0))
    if not math.isfinite(error) or not math.isfinite(total):
        return "the run diverged: its estimate is not finite"
    if not math.isfinite(bound.total):
        return f"the bound is {bound.total}: histories or weights are so large that it overflows"
    rounding = NORM_ROUNDING * (total + unit) + UNDERFLOW
    return _Step(
        error,
        bound.total,
        unit,
        kept=error <= bound.total + UNDERFLOW,
        enclosed=enclosed.low - rounding <= total <= enclosed.high + rounding,
        looks=worst_parameter(difference, exact.gradient, NEGLIGIBLE),
    )


def check(case: Case) -> Verdict:
    """Train from zero histories and compare, at every step, the measured error with its bound, total error included.

    The bound is computed from the histories' known errors and operator norms alone. ``||g - grad||`` is enclosed too:
    it lies within the bound of Backward SGD's own error on the batch.
    """
    claim = POSTERIOR_BOUND
    inapplicable = not_applicable(case, claim)
    if inapplicable is not None:
        return inapplicable
    run = TrainingRun(
        case.problem,
        case.estimator,
        case.design,
        step_size=case.training.step_size,
        generator=generator(case.seed, "a-posteriori bound", case.sampling.replicate),
        state=prepared_state(case, "zero"),
    )
    steps: list[_Step] = []
    stopped = ""
    while len(steps) < case.training.steps and not stopped:
        found = _step(case, run)
        if isinstance(found, str):
            stopped = found
        else:
            steps.append(found)
    count, exceeded = len(steps), sum(not step.kept for step in steps)
    outside = sum(not step.enclosed for step in steps)
    slacks = [step.bound / step.error for step in steps if step.error > NEGLIGIBLE * step.unit]
    slack = float(np.median(slacks)) if slacks else math.nan
    if exceeded or outside:
        outcome = Outcome.REFUTED
        summary = f"exceeded on {exceeded:,} of {count:,} steps; total error outside its interval on {outside:,}"
        summary += next(step.looks for step in steps if not (step.kept and step.enclosed)) + explained(case, claim)
    elif count < case.training.steps:
        outcome = Outcome.INCONCLUSIVE
        summary = f"{stopped} after {count:,} steps, the bound was kept until then; lower training.step_size"
    elif not slacks:
        outcome = Outcome.SUPPORTED
        summary = (
            f"no error to bound on {count:,} steps: at most {max(step.error for step in steps):.1e}, the bound at "
            f"most {max(step.bound for step in steps):.1e}"
        )
    else:
        outcome = Outcome.VACUOUS if slack > VACUOUS_SLACK else Outcome.SUPPORTED
        summary = (
            f"the bound held at all {count:,} steps, and the total error stayed in its interval; the bound is "
            f"typically {slack:.3g} times the measured error (at best {min(slacks):.3g})"
        )
    x = tuple(map(float, range(count)))
    labels = ("Error along training and its bound", "step", "distance from Backward SGD on the same batch")
    return verdict_of(
        case,
        claim.id,
        outcome,
        summary,
        histories="zero",
        evidence=[
            Evidence("steps on which the bound was exceeded", float(exceeded), 0.0, "steps", "bound"),
            Evidence("steps on which the total error left its interval", float(outside), 0.0, "steps", "bound"),
            *([Evidence("typical bound / measured error", slack, VACUOUS_SLACK, "ratio", "bound")] if slacks else []),
            *([Evidence("smallest bound / measured error", min(slacks), None, "ratio", "bound")] if slacks else []),
        ],
        series=(
            Series("measured", x, tuple(step.error for step in steps), *labels, scale="semilogy"),
            Series("bound", x, tuple(step.bound for step in steps), *labels, scale="semilogy"),
        )
        if count
        else (),
        assumptions=claim.checked_assumptions(case),
    )


def _proven(case: Case) -> tuple[bool | None, str]:
    found = properties_of(case.estimator)
    if found.policies is None:
        words = "" if found.known else ": its halo policies are not known; state them in an attribute `policies`"
        return False, f"no bound is proven for the estimator {case.estimator.name!r}{words}"
    if active_dropout(case.problem.model) is not None:
        return None, "not checked while dropout is active"
    batch = case.design.draw(generator(case.seed, "a-posteriori bound"))
    state = prepared_state(case, "zero")
    try:
        bound = batch_bound(case.problem, case.exact, state, batch, case.estimator, as_stated=True)
    except InvalidInputError as error:
        if found.known:
            raise
        return False, str(error)  # tables that its policies would read are not named
    if isinstance(bound, NoBound):
        return False, bound.reason
    return found.unless_unknown(True), "" if found.known else "the bound is that of the halo policies that it states"


PROVEN = Assumption("proven-bound", "a bound is proven for this estimator and these layers", _proven)


def expect(case: Case) -> Expectation:
    """Return what theory says: the bound is never exceeded; how much slack it has depends on the case."""
    inapplicable = expect_not_applicable(case, POSTERIOR_BOUND)
    if inapplicable is not None:
        return inapplicable
    found = properties_of(case.estimator)
    if not found.known:
        return UNKNOWN
    if found.holds_exact:
        return Expectation(Outcome.SUPPORTED, "the estimate is Backward SGD's: there is no error to bound")
    return Expectation(None, "the bound holds; whether it is vacuous depends on depth, weights and histories")


POSTERIOR_BOUND = Claim(
    id="theorem-2/a-posteriori-bound",
    title="An explicit bound on the error is never exceeded",
    statement=(
        "At every step the distance of the estimate from Backward SGD on the same batch is at most a bound computed "
        "from the errors of the histories it read and from operator norms; so the total error lies within that bound "
        "of Backward SGD's."
    ),
    source="derived by propagating node-wise error norms through LMC's forward and backward passes (ICLR 2023)",
    tier="exact",
    theory=(
        "Errors of halo rows spread along edges, at most by the weights' operator norms, forward and then backward; "
        "the derivative of ReLU can only change where an error exceeds the input's distance from the kink. Where halo "
        f"messages are dropped the whole message counts as error. A bound of more than {VACUOUS_SLACK:g} times the "
        "error is vacuous."
    ),
    question=Question(
        "Is {estimator}'s error within the computed bound at every step",
        supported=Answer(
            "the bound is typically {size} times the error", measured("typical bound / measured error"), unit="number"
        ),
        refuted=Answer(
            "exceeded on {size} steps", measured("steps on which the bound was exceeded", positive=True), unit="number"
        ),
    ),
    required=(NO_DROPOUT, PROVEN),
    check=check,
    expect=expect,
    reads=("training.step_size", "training.steps"),
    histories="zero",
    varies=("parameters",),
)
