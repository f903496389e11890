"""What a claim is: a statement with a source, machine-checked assumptions, a check, and what theory expects."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lmc_verify.cases import Case
from lmc_verify.claims.residuals import Residuals
from lmc_verify.claims.theory import Expectation
from lmc_verify.claims.verdict import AssumptionCheck, Evidence, Outcome, Verdict
from lmc_verify.provenance import code_fingerprint

__all__ = ["Assumption", "Claim", "failed", "not_applicable", "verdict_of"]


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
        case=case.description if histories is None else replace(case.description, histories=histories),
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
