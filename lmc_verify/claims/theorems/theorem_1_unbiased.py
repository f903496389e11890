"""Theorem 1: the expected gradient estimate equals the exact gradient.

Checked by enumerating the batch design from one frozen state in float64: no sampling, no error probability.
"""

from __future__ import annotations

from lmc_verify.cases import Case
from lmc_verify.cases.verdict import Evidence, Outcome, Verdict
from lmc_verify.claims.assumptions import (
    AGGREGATE_LINEAR,
    BETA_ZERO,
    FINITE_SUPPORT,
    HISTORIES_NAMED,
    NO_DROPOUT,
    enumerable,
    inclusion_matches,
)
from lmc_verify.claims.claim import Assumption, Claim, expect_not_applicable, not_applicable, verdict_of
from lmc_verify.claims.diagnosis import describe
from lmc_verify.claims.enumerated import bias_evidence, compare_mean
from lmc_verify.claims.question import Answer, Question, largest, with_histories
from lmc_verify.claims.reference import explained
from lmc_verify.claims.residuals import UNIT, relative_by_layer
from lmc_verify.claims.theory import (
    UNKNOWN,
    Expectation,
    expect_from_halo,
    expect_from_sample,
    frozen_sweeps,
    weights_fail,
    where_gradient_vanishes,
)
from lmc_verify.estimators import Cut, Held, properties_of
from lmc_verify.objective import gradient_norm, rounding_terms

__all__ = ["UNBIASED"]

ID = "theorem-1/unbiased"
_NO_HISTORY = "the estimator reads no history"
_HISTORIES = "exact-histories"


def check(case: Case) -> Verdict:
    """Enumerate the design and compare the mean estimate with the exact gradient."""
    inapplicable = not_applicable(case, UNBIASED)
    if inapplicable is not None:
        return inapplicable
    moments, bias, residuals = compare_mean(case)
    exact, problem = case.exact.gradient, case.problem
    norm = gradient_norm(exact)
    per_layer = relative_by_layer(problem, bias, exact)
    spread = relative_by_layer(problem, moments.deviation, exact)
    total_bias, deviation = (gradient_norm(found) / (norm or 1.0) for found in (bias, moments.deviation))
    evidence = [
        *bias_evidence(problem, bias, exact, residuals),
        *(Evidence(part, value, unit=UNIT, group="standard deviation per layer") for part, value in spread.items()),
        Evidence("bias, all parameters", total_bias, group="totals"),
        Evidence("standard deviation, one batch", deviation, group="totals"),
        Evidence("norm of the exact gradient", norm, unit="objective / parameter", group="totals"),
        Evidence("rounded additions counted", rounding_terms(problem, moments.atoms), unit="terms", group="totals"),
    ]
    outcome = residuals.outcome
    if outcome is Outcome.EXACT:
        summary = (
            f"the mean over all {moments.atoms:,} batches equals the exact gradient: largest residual "
            f"{residuals.worst.value:.1e} of a layer's gradient, rounding allows {residuals.worst.tolerance:.1e}"
        )
    elif outcome is Outcome.REFUTED:
        worst = max(per_layer, key=lambda part: per_layer[part])
        looks, likenesses = describe(problem, bias, exact, residuals)
        evidence += likenesses
        summary = (
            f"biased: the mean over all {moments.atoms:,} batches is off by {total_bias:.2g} of the gradient's norm, "
            f"most in {worst} ({per_layer[worst]:.2g} of that layer's gradient){looks}{explained(case, UNBIASED)}"
        )
    else:
        summary = residuals.explanation
    return verdict_of(
        case,
        ID,
        outcome,
        summary,
        residuals=residuals,
        evidence=evidence,
        assumptions=UNBIASED.checked_assumptions(case),
    )


def expect(case: Case) -> Expectation:
    """Return what theory says: unbiased only with full compensation and weights that match the design."""
    inapplicable = expect_not_applicable(case, UNBIASED)
    if inapplicable is not None:
        return inapplicable
    return where_gradient_vanishes(case, _expected(case))


def _expected(case: Case) -> Expectation:
    found = properties_of(case.estimator)
    if not found.known:
        return UNKNOWN
    if found.exact:  # whatever the weights of the batch's rows are: they are not looked at
        return expect_from_halo(case, None, histories=case.histories)
    reasons = weights_fail(case)
    if reasons:
        return Expectation(Outcome.REFUTED, "; ".join(reasons))
    if found.sampler is not None:
        return expect_from_sample(case)
    return expect_from_halo(case, (batch for batch, _ in case.design.enumerate()), histories=case.histories)


def _inclusion_matches(case: Case) -> tuple[bool | None, str]:
    few, count = enumerable(case.design.support_size)
    if not few:
        return None, count
    if properties_of(case.estimator).draws_nodes:
        return True, "nodes are drawn independently; those that never are have no label"
    return inclusion_matches(case)


def _histories(case: Case) -> tuple[bool | None, str]:
    found = properties_of(case.estimator)
    if not found.known:
        if case.histories == "exact":
            named = HISTORIES_NAMED(case)
            return named.holds, named.detail or "histories: exact"
        return None, f"histories: {case.histories}"
    if found.policies is not None and isinstance(found.policies.forward, Held | Cut):
        return True, _NO_HISTORY
    if found.starts_exact:
        return True, "a checkpoint at the start makes the histories exact, and they stay so at fixed parameters"
    if found.sampler is not None and not found.sampler.corrected:
        return True, _NO_HISTORY
    family = found.policies is not None
    warm = family and case.histories.startswith("sweeps:") and int(case.histories[7:]) >= frozen_sweeps(case) - 1
    if case.histories == "exact" or warm:
        return True, f"histories: {case.histories}"
    return False, f"the histories that are read are not exact (histories: {case.histories})"


def _when(verdict: Verdict) -> str:
    read = next((item.detail != _NO_HISTORY for item in verdict.assumptions if item.id == _HISTORIES), True)
    if not read:
        return ""
    kind = verdict.case.histories
    return f" when {{its}} histories are {kind}" if kind in ("exact", "zero") else with_histories(verdict)


UNBIASED = Claim(
    id=ID,
    title="Unbiased gradient",
    statement=(
        "The expectation of the gradient estimate over the batch design equals the exact full-graph gradient, for "
        "every parameter."
    ),
    source="LMC (Shi, Liang and Wang, ICLR 2023), Theorem 1, for Backward SGD; other estimators by the same criterion",
    tier="exact",
    theory=(
        "With exact embeddings and auxiliary variables, every parameter gradient is a sum over nodes; weighting the "
        "batch's part of it by inverse inclusion probabilities is unbiased. LMC with beta = 0 inherits this when its "
        "histories are exact and its layers aggregate-linear. GAS, FM, Cluster-GCN and "
        "MVS-GNN drop the halo's messages in the backward pass and are biased in every layer that needs them."
    ),
    question=Question(
        "Is {estimator}'s gradient unbiased{when}",
        refuted=Answer("off by {size}", largest("bias per layer")),
        when=_when,
    ),
    required=(NO_DROPOUT, FINITE_SUPPORT),
    assumptions=(
        Assumption("inclusion", "the batches' inclusion probabilities are those of the design", _inclusion_matches),
        Assumption(_HISTORIES, "the histories that are read hold exact values", _histories),
        BETA_ZERO,
        AGGREGATE_LINEAR,
    ),
    check=check,
    expect=expect,
    reads=(),
)
