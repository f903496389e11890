"""shaDow is unbiased for its own objective: the loss of every target on its own ego network."""

from __future__ import annotations

from dataclasses import replace

from lmc_verify.cases import Case
from lmc_verify.cases.verdict import Evidence, Outcome, Verdict
from lmc_verify.claims.assumptions import FINITE_SUPPORT, NO_DROPOUT
from lmc_verify.claims.claim import Assumption, Claim, expect_not_applicable, not_applicable, verdict_of
from lmc_verify.claims.enumerated import bias_evidence, compare_mean
from lmc_verify.claims.question import Answer, Question, largest
from lmc_verify.claims.theory import UNKNOWN, Expectation
from lmc_verify.estimators import properties_of
from lmc_verify.objective import gradient_norm, gradient_sum

__all__ = ["UNBIASED_OWN_OBJECTIVE"]


def _own_objective(case: Case) -> tuple[bool | None, str]:
    own = properties_of(case.estimator).own_objective is not None
    return own, "" if own else f"{case.estimator.name} has no objective of its own"


OWN_OBJECTIVE = Assumption("own-objective", "the estimator has an objective of its own", _own_objective)


def check_own_objective(case: Case) -> Verdict:
    """Enumerate the design and compare the mean estimate with the gradient of the estimator's own objective."""
    claim = UNBIASED_OWN_OBJECTIVE
    inapplicable = not_applicable(case, claim)
    if inapplicable is not None:
        return inapplicable
    estimator = properties_of(case.estimator).own_objective
    assert estimator is not None  # OWN_OBJECTIVE holds
    loss, gradient = estimator.objective(case.problem)
    own = replace(case, exact=replace(case.exact, loss=loss, gradient=gradient))
    moments, bias, residuals = compare_mean(own)
    unit = gradient_norm(case.exact.gradient) or 1.0
    distance = gradient_norm(gradient_sum(gradient, case.exact.gradient, -1.0)) / unit
    outcome = residuals.outcome
    words = {
        Outcome.EXACT: f"the mean over all {moments.atoms:,} batches is the gradient of the estimator's own objective",
        Outcome.REFUTED: f"biased by {gradient_norm(bias) / (gradient_norm(gradient) or 1.0):.2g} of its own gradient",
    }
    return verdict_of(
        case,
        claim.id,
        outcome,
        f"{words.get(outcome, residuals.explanation)}; its distance from the whole graph's gradient is {distance:.2g} "
        "of that gradient's norm",
        residuals=residuals,
        evidence=[
            *bias_evidence(case.problem, bias, gradient, residuals),
            Evidence("own gradient less the whole graph's", distance, group="totals"),
        ],
        assumptions=claim.checked_assumptions(case),
    )


def expect_own_objective(case: Case) -> Expectation:
    """Return what theory says: a sum over targets, each with its inverse inclusion probability."""
    inapplicable = expect_not_applicable(case, UNBIASED_OWN_OBJECTIVE)
    if inapplicable is not None:
        return inapplicable
    estimator = properties_of(case.estimator).own_objective
    if estimator is None or not properties_of(case.estimator).known:
        return UNKNOWN
    if case.weighting != "inclusion" or case.conditioned:
        return Expectation(None, "targets are not weighted by their inverse inclusion probabilities")
    if gradient_norm(estimator.objective(case.problem)[1]) == 0:
        return Expectation(None, "the gradient of its own objective is zero: whether estimates are depends on the case")
    return Expectation(
        Outcome.EXACT, "the objective is a sum over targets, and each is weighted by its inverse probability"
    )


UNBIASED_OWN_OBJECTIVE = Claim(
    id="shadow/unbiased-own-objective",
    title="Unbiased for its own objective",
    statement=(
        "The expectation of the gradient estimate over the batch design equals the gradient of the estimator's own "
        "objective, the loss of every target on its own ego network."
    ),
    source="shaDow-GNN (Zeng et al., NeurIPS 2021); derived",
    tier="exact",
    theory=(
        "A target's loss depends on its ego network alone, so the objective is a sum over targets; weighting those "
        "of the batch by inverse inclusion probabilities is unbiased. Against the whole graph's objective it is "
        "biased, unless the ego networks reach as far as the layers and keep the whole graph's weights."
    ),
    question=Question(
        "Is {estimator}'s gradient unbiased for its own objective",
        refuted=Answer("off by {size}", largest("bias per layer")),
    ),
    required=(NO_DROPOUT, FINITE_SUPPORT, OWN_OBJECTIVE),
    check=check_own_objective,
    expect=expect_own_objective,
    reads=(),
)
