"""E6: what is lost when halo messages are dropped in the backward pass, layer by layer."""

from __future__ import annotations

from lmc_verify.cases import Case, prepared_state
from lmc_verify.cases.verdict import Outcome, Verdict
from lmc_verify.claims.assumptions import (
    CUT_EDGES,
    FINITE_SUPPORT,
    HALO_SIGNAL,
    HISTORIES_NAMED,
    INCLUSION_WEIGHTS,
    NO_DROPOUT,
    halo_dropped_backward,
)
from lmc_verify.claims.claim import Assumption, Claim, expect_not_applicable, not_applicable, verdict_of
from lmc_verify.claims.enumerated import bias_evidence, compare_mean
from lmc_verify.claims.question import Answer, Question, largest
from lmc_verify.claims.reference import SOURCE, Reference
from lmc_verify.claims.residuals import relative_by_layer
from lmc_verify.claims.theory import UNKNOWN, Expectation, trains_encoder, where_gradient_vanishes
from lmc_verify.estimators import Blend, Held, Momentum, properties_of
from lmc_verify.models import active_dropout

__all__ = ["LOWER_LAYERS_BIASED"]


def check(case: Case) -> Verdict:
    """Enumerate the design from exact histories and compare every layer's bias with rounding."""
    claim = LOWER_LAYERS_BIASED
    inapplicable = not_applicable(case, claim)
    if inapplicable is not None:
        return inapplicable
    exact, problem = case.exact.gradient, case.problem
    _, bias, residuals = compare_mean(case)
    per_layer = relative_by_layer(problem, bias, exact)
    top = {f"layer {problem.num_layers}", "head"}
    last = residuals.only({name for name in exact if problem.layer_of(name) in top})
    lower = {
        part: residuals.only({name for name in exact if problem.layer_of(name) == part}).outcome
        for part in per_layer
        if part not in top
    }
    figures = ", ".join(f"{part} {value:.2g}" for part, value in per_layer.items())
    if not residuals.blocks:
        outcome, summary = Outcome.NOT_APPLICABLE, residuals.explanation
    elif last.outcome is Outcome.REFUTED or Outcome.EXACT in lower.values():
        outcome, summary = Outcome.REFUTED, f"not the pattern that dropping the backward halo gives: {figures}"
        found = properties_of(case.estimator)
        if found.policies is None and not found.known:
            summary += "; that it drops halo messages is not known, state its policies if it drops none"
    elif last.outcome is Outcome.EXACT and set(lower.values()) == {Outcome.REFUTED}:
        outcome, summary = Outcome.EXACT, f"relative bias with exact histories: {figures}"
    else:
        outcome, summary = Outcome.INCONCLUSIVE, f"not every layer can be resolved here: {figures}"
    return verdict_of(
        case,
        claim.id,
        outcome,
        summary,
        residuals=last,
        evidence=bias_evidence(problem, bias, exact, residuals),
        assumptions=claim.checked_assumptions(case),
    )


def _exact_embeddings(case: Case) -> tuple[bool | None, str]:
    found = properties_of(case.estimator)
    if found.policies is None and not found.known:
        return _exact_tables(case)
    if found.policies is None or not isinstance(found.policies.forward, Blend | Held):
        return False, "the estimator keeps no history of H"
    if isinstance(found.policies.forward, Blend) and found.policies.forward.uses_fresh:
        return found.unless_unknown(False), "fresh, incomplete values are mixed into the halo's embeddings"
    exact = case.histories == "exact"
    detail = "" if exact else f"the histories that are read are not exact (histories: {case.histories})"
    return found.unless_unknown(exact), detail


def _exact_tables(case: Case) -> tuple[bool | None, str]:
    """Whether an estimator whose policies are not known may read exact values of H at the halo."""
    if case.histories != "exact":
        return False, f"the histories that are read are not exact (histories: {case.histories})"
    named = HISTORIES_NAMED(case)
    if not named.holds:
        return named.holds, named.detail
    if not prepared_state(case, "exact").embeddings:
        return False, "the estimator keeps no history of H"
    return None, "what it puts at the halo is not known"


def _lower_layers(case: Case) -> tuple[bool | None, str]:
    problem = case.problem
    lower = problem.num_layers > 1 or trains_encoder(case)
    return lower, f"L = {problem.num_layers}" if lower else "the model has one layer, and no encoder that is trained"


def _backward_dropped(case: Case) -> tuple[bool | None, str]:
    found = properties_of(case.estimator)
    if found.policies is None and not found.known:
        return _differs_from_backward_sgd(case)
    dropped = halo_dropped_backward(case)
    return dropped, "" if dropped else f"{case.estimator.name} drops no halo messages in the backward pass"


def _differs_from_backward_sgd(case: Case) -> tuple[bool | None, str]:
    """Whether an estimator whose policies are not known may drop something: not one that equals Backward SGD."""
    if active_dropout(case.problem.model) is not None or not FINITE_SUPPORT(case).holds:
        return None, "its halo policies are not known"
    reference, state = Reference(case), prepared_state(case, "exact")
    for batch, _ in case.design.enumerate():
        _, residuals = reference.compare(case.estimate(state, batch).gradient, batch)
        if residuals.outcome in (Outcome.REFUTED, Outcome.INCONCLUSIVE):
            return None, "its halo policies are not known; its estimates are not seen to be Backward SGD's"
    return False, f"{case.estimator.name} drops no halo messages in the backward pass: it equals Backward SGD"


def expect(case: Case) -> Expectation:
    """Return what theory says of E6."""
    inapplicable = expect_not_applicable(case, LOWER_LAYERS_BIASED)
    if inapplicable is not None:
        return inapplicable
    if not properties_of(case.estimator).known:
        return UNKNOWN
    policies, problem = properties_of(case.estimator).policies, case.problem
    parts = problem.parameters_of(problem.model.layer(problem.num_layers))
    if policies is not None and isinstance(policies.forward, Momentum) and any(".before." in name for name in parts):
        return Expectation(None, "the last layer's norm sees no halo row: histories are behind it")
    expected = Expectation(Outcome.EXACT, "the last layer needs no halo message backward, every lower layer does")
    return where_gradient_vanishes(case, expected)


LOWER_LAYERS_BIASED = Claim(
    id="e6/bias-per-layer",
    title="Dropping the backward halo biases every layer but the last",
    statement=(
        "An estimator that drops halo messages in the backward pass is biased in every layer but the last, even with "
        "exact histories; the last layer (and the head) is unbiased."
    ),
    source=SOURCE + "; the estimator is GAS (Fey et al., ICML 2021)",
    tier="exact",
    theory=(
        "V^L at batch rows comes from the loss and is exact; V^l below lacks what the halo's rows would send back, "
        "and that part has no reason to vanish in expectation."
    ),
    question=Question(
        "Is {estimator}'s gradient biased in every layer but the last, even with exact histories",
        exact=Answer("by up to {size}", largest("bias per layer"), largest=True),
    ),
    required=(
        NO_DROPOUT,
        FINITE_SUPPORT,
        CUT_EDGES,
        Assumption("backward-halo-dropped", "halo messages are dropped in the backward pass", _backward_dropped),
        Assumption("exact-embeddings", "the halo's embeddings are exact", _exact_embeddings),
        INCLUSION_WEIGHTS,
        Assumption("lower-layers", "there is a layer below the last", _lower_layers),
        HALO_SIGNAL,
    ),
    check=check,
    expect=expect,
    reads=(),
)
