"""What a claim is: a statement with a source, machine-checked assumptions, a check, and what theory expects."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from lmc_verify.case import Case, readable_count
from lmc_verify.claims.expectation import Expectation, halo_view
from lmc_verify.claims.residuals import Residuals
from lmc_verify.claims.verdict import AssumptionCheck, Evidence, Outcome, Verdict
from lmc_verify.estimators import Blend, Compensated, Drop, Sampling
from lmc_verify.models import active_dropout
from lmc_verify.provenance import code_fingerprint

__all__ = [
    "AGGREGATE_LINEAR",
    "BETA_ZERO",
    "CLUSTERS",
    "CUT_EDGES",
    "FINITE_SUPPORT",
    "HALO_SIGNAL",
    "INCLUSION_WEIGHTS",
    "MAX_SUPPORT",
    "NO_DROPOUT",
    "NO_SAMPLING",
    "UNIFORM",
    "Assumption",
    "Claim",
    "failed",
    "halo_dropped_backward",
    "not_applicable",
    "verdict_of",
]

MAX_SUPPORT = 20_000
"""Largest design that the exact tier enumerates."""


@dataclass(frozen=True)
class Assumption:
    """A condition of a claim. `check` returns whether it holds (None: cannot be decided) and a detail."""

    id: str
    statement: str
    check: Callable[[Case], tuple[bool | None, str]]

    def __call__(self, case: Case) -> AssumptionCheck:
        """Check the assumption on a case."""
        holds, detail = self.check(case)
        return AssumptionCheck(self.id, self.statement, holds, detail)


@dataclass(frozen=True)
class Claim:
    """A claim that can be checked.

    Attributes:
        id: such as ``"theorem-1/unbiased"``.
        title: a few words.
        statement: what is claimed, for a reader.
        source: paper and place, or "derived".
        tier: ``"exact"`` (enumeration in float64), ``"test"`` or ``"rate"``.
        theory: why it should hold, and for whom it should not.
        assumptions: conditions; a claim whose *required* assumption fails is not applicable, see `check`.
        check: gives the verdict on a case.
        expect: what theory says on a case.
    """

    id: str
    title: str
    statement: str
    source: str
    tier: str
    theory: str
    assumptions: tuple[Assumption, ...]
    check: Callable[[Case], Verdict]
    expect: Callable[[Case], Expectation]

    def checked_assumptions(self, case: Case) -> tuple[AssumptionCheck, ...]:
        """Check every assumption on a case."""
        return tuple(assumption(case) for assumption in self.assumptions)


def verdict_of(
    case: Case,
    claim: str,
    outcome: Outcome,
    summary: str,
    *,
    histories: str | None = None,
    residuals: Residuals | None = None,
    evidence: Sequence[Evidence] = (),
    assumptions: Sequence[AssumptionCheck] = (),
    **numbers: Any,
) -> Verdict:
    """Assemble a verdict with the case's description, seeds and hashes.

    `histories` overrides the case's where a claim fixes them itself; `numbers` are further fields of the verdict.
    """
    if residuals is not None and residuals.blocks:
        numbers = {
            "residual": residuals.worst.value,
            "tolerance": residuals.worst.tolerance,
            "minimum_detectable_effect": residuals.detectable,
            **numbers,
        }
    return Verdict(
        claim=claim,
        outcome=outcome,
        summary=summary,
        case=case.description if histories is None else {**case.description, "histories": histories},
        evidence=(*(residuals.evidence() if residuals is not None else ()), *evidence),
        assumptions=tuple(assumptions),
        seeds={"root": case.seed},
        hashes={**case.hashes, "code": code_fingerprint()},
        **numbers,
    )


def failed(assumptions: Sequence[AssumptionCheck], *required: str) -> AssumptionCheck | None:
    """Return the first of the required assumptions that does not hold, or None."""
    return next((item for item in assumptions if item.id in required and item.holds is False), None)


def not_applicable(case: Case, claim: Claim, *required: str) -> Verdict | None:
    """Return a NOT_APPLICABLE verdict if one of the required assumptions fails, else None."""
    assumptions = claim.checked_assumptions(case)
    broken = failed(assumptions, *required)
    if broken is None:
        return None
    detail = f" ({broken.detail})" if broken.detail else ""
    summary = f"the assumption '{broken.statement}' does not hold{detail}"
    return verdict_of(case, claim.id, Outcome.NOT_APPLICABLE, summary, assumptions=assumptions)


# ------------------------------------------------------------------ assumptions that several claims share


def _no_dropout(case: Case) -> tuple[bool | None, str]:
    part = active_dropout(case.problem.model)
    return part is None, "" if part is None else f"dropout is active in {part}; call model.eval()"


def _finite_support(case: Case) -> tuple[bool | None, str]:
    size = case.design.support_size
    return size <= MAX_SUPPORT, f"{readable_count(size)} batches, at most {MAX_SUPPORT:,} are enumerated"


def _aggregate_linear(case: Case) -> tuple[bool | None, str]:
    model = case.problem.model
    bad = [str(index) for index in range(1, model.num_layers + 1) if not model.layer(index).aggregate_linear]
    return not bad, "" if not bad else f"layer {', '.join(bad)}: the Jacobian depends on the row's own aggregate"


def _beta_zero(case: Case) -> tuple[bool | None, str]:
    if not isinstance(case.estimator, Compensated):
        return None, "the estimator has no halo policies"
    policies = (case.estimator.policies.forward, case.estimator.policies.backward)
    return not any(isinstance(policy, Blend) and policy.uses_fresh for policy in policies), ""


def _in_halo(finding: str) -> Callable[[Case], tuple[bool | None, str]]:
    """Return a check of one finding of `HaloView` over the whole design."""

    def check(case: Case) -> tuple[bool | None, str]:
        if case.design.support_size > MAX_SUPPORT:
            return None, f"{readable_count(case.design.support_size)} batches"
        view = halo_view(case, (batch for batch, _ in case.design.enumerate()))
        return bool(getattr(view, finding)), ""

    return check


def _clusters(case: Case) -> tuple[bool | None, str]:
    return case.partition is not None, f"design: {type(case.design).__name__}"


def _inclusion_weights(case: Case) -> tuple[bool | None, str]:
    return case.normaliser == "inclusion" and not case.conditioned, f"normaliser: {case.normaliser}"


NO_DROPOUT = Assumption("no-dropout", "no unit is dropped", _no_dropout)
FINITE_SUPPORT = Assumption("finite-support", "the batch design can be enumerated", _finite_support)
AGGREGATE_LINEAR = Assumption(
    "aggregate-linear",
    "no layer's Jacobian with respect to its sources depends on the destination's aggregate",
    _aggregate_linear,
)
BETA_ZERO = Assumption("beta-zero", "halo values come from the histories alone (beta = 0)", _beta_zero)
CUT_EDGES = Assumption("cut-edges", "some edges leave a batch", _in_halo("exists"))
HALO_SIGNAL = Assumption(
    "halo-signal",
    "every trained part below the last layer would lose something if the halo sent nothing back",
    _in_halo("carries_signal"),
)
CLUSTERS = Assumption("clusters", "the design draws clusters, so that a sweep visits every node once", _clusters)
INCLUSION_WEIGHTS = Assumption(
    "inclusion-weights",
    "batch rows are weighted by inverse inclusion probabilities of the law they are drawn from",
    _inclusion_weights,
)


def _uniform(case: Case) -> tuple[bool | None, str]:
    inclusion = case.design.inclusion_probabilities()
    uniform = bool((inclusion - inclusion[0]).abs().max() <= 1e-12 * inclusion[0])
    detail = f"inclusion probability {float(inclusion[0]):.3g} at every node" if uniform else "nodes differ"
    return uniform and not case.conditioned, detail + (", given what the epoch has seen" if case.conditioned else "")


UNIFORM = Assumption(
    "uniform-batches", "(A1) batches are drawn independently, and every node is as likely to be in one", _uniform
)


NO_SAMPLING = Assumption(
    "no-sampling",
    "the estimator adds no randomness of its own to the batches",
    lambda case: (not isinstance(case.estimator, Sampling), case.estimator.name),
)


def halo_dropped_backward(case: Case) -> bool:
    """Whether the estimator belongs to the family and drops halo messages in the backward pass."""
    return isinstance(case.estimator, Compensated) and isinstance(case.estimator.policies.backward, Drop)
