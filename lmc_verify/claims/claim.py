"""What a claim is: a statement with a source, machine-checked assumptions, a check, and what theory expects."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import wraps
from typing import Any

from lmc_verify.cases import Case, CaseSettings, SamplingSettings, TrainingSettings
from lmc_verify.cases.verdict import AssumptionCheck, Evidence, Outcome, Verdict
from lmc_verify.claims.question import Question
from lmc_verify.claims.residuals import Residuals
from lmc_verify.claims.theory import Expectation
from lmc_verify.errors import ContractError, InvalidInputError
from lmc_verify.estimators import require_reading
from lmc_verify.objective import Untouched
from lmc_verify.provenance import code_fingerprint

__all__ = [
    "RUN_SETTINGS",
    "Assumption",
    "Claim",
    "expect_not_applicable",
    "not_applicable",
    "require_read",
    "unread_settings",
    "verdict_of",
]

RUN_SETTINGS = ("sampling.alpha", "sampling.replicate", "sampling.guarantee")
"""Settings that belong to a run and are given to every check of it, read or not."""


@dataclass(frozen=True)
class Assumption:
    """A condition of a claim.

    Attributes:
        id: such as ``"no-dropout"``.
        statement: what is assumed, for a reader.
        check: returns whether it holds on a case (None: cannot be decided) and a detail. Where it fails, the detail is
            the reason that a reader is given: it says what fails, without the statement next to it.
    """

    id: str
    statement: str
    check: Callable[[Case], tuple[bool | None, str]]

    def __call__(self, case: Case) -> AssumptionCheck:
        """Check the assumption on a case; one that fails always has a detail."""
        holds, detail = self.check(case)
        if holds is False and not detail:
            detail = f"it does not hold that {self.statement}"
        return AssumptionCheck(self.id, self.statement, holds, detail)


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A claim that can be checked.

    Attributes:
        id: such as ``"theorem-1/unbiased"``.
        title: a few words.
        statement: what is claimed, for a reader.
        source: paper and place, or "derived".
        tier: ``"exact"`` (enumeration in float64), ``"test"`` or ``"rate"``.
        theory: why it should hold, and for whom it should not.
        question: the claim as a question about one estimator, with which a report begins; None: its statement.
        required: assumptions without which the claim says nothing: where one fails, it is not applicable.
        assumptions: every assumption, the required ones first, whether or not they are named again when the claim is
            built. Where one of the others fails the claim is checked all the same: it explains a refutation.
        check: gives the verdict on a case.
        expect: what theory says on a case.
        varies: what the check changes of the case's problem (some of `lmc_verify.estimators.ASPECTS`): parameters in a
            training run, say. An estimator that does not read it is refused.
        asks: whether the check asks for estimates; not where samples alone are looked at.
        reads: what the check reads of `lmc_verify.TrainingSettings` and `lmc_verify.SamplingSettings`, such as
            ``"training.steps"``; to set another of them is refused. `RUN_SETTINGS` need not be named. None: not stated.
        histories: what histories hold at the start, ``"zero"`` or ``"exact"``, whatever the case says; None: what the
            case says.
    """

    id: str
    title: str
    statement: str
    source: str
    tier: str
    theory: str
    question: Question | None = None
    required: tuple[Assumption, ...] = ()
    assumptions: tuple[Assumption, ...] = ()
    check: Callable[[Case], Verdict]
    expect: Callable[[Case], Expectation]
    varies: tuple[str, ...] = ()
    asks: bool = True
    reads: tuple[str, ...] | None = None
    histories: str | None = None

    def __post_init__(self) -> None:
        others = tuple(item for item in self.assumptions if item not in self.required)
        object.__setattr__(self, "assumptions", (*self.required, *others))
        object.__setattr__(self, "check", _guarded(self, self.check))

    def checked_assumptions(self, case: Case) -> tuple[AssumptionCheck, ...]:
        """Check every assumption on a case."""
        return tuple(assumption(case) for assumption in self.assumptions)

    def unmet(self, case: Case) -> AssumptionCheck | None:
        """Return the first required assumption that fails on a case, or None."""
        checks = (assumption(case) for assumption in self.required)
        return next((item for item in checks if item.holds is False), None)


def unread_settings(
    claim: Claim,
    *,
    sampling: SamplingSettings | None = None,
    training: TrainingSettings | None = None,
    histories: str = "exact",
) -> dict[str, str]:
    """Return the settings that were given to a check that does not read them, each with what to do."""
    given = [
        f"{group}.{name}"
        for group, settings in (("sampling", sampling), ("training", training))
        if settings is not None
        for name in type(settings).model_fields
        if name in settings.model_fields_set
    ]
    known = ", ".join(claim.reads or ()) or "none of training and sampling"
    unread = {
        key: f"{key} is not read by {claim.id}; leave it out. The settings it reads: {known}"
        for key in given
        if claim.reads is not None and key not in (*claim.reads, *RUN_SETTINGS)
    }
    if training is not None and training.largest_step and "training.step_size" in given:
        words = "training.step_size is not read with training.largest_step, which finds one; leave one of them out"
        unread.setdefault("training.step_size", words)
    if training is not None and not training.largest_step and "training.stable_share" in given:
        words = "training.stable_share is read with training.largest_step only; set training.largest_step=true"
        unread.setdefault("training.stable_share", words)
    if claim.histories is not None and histories not in ("exact", claim.histories):
        unread["histories"] = (
            f"histories is {histories!r} and not read by {claim.id}, whose histories begin as {claim.histories!r}; "
            "leave it out"
        )
    return unread


def require_read(checked: Sequence[Claim], settings: CaseSettings) -> None:
    """Refuse a setting that was given to the checks of one case and that none of them reads: it would have no effect.

    Args:
        checked: the claims that are checked with these settings, at least one.
        settings: the settings.

    Raises:
        InvalidInputError: names the first, and what the first claim does read.
    """
    first, *others = (
        unread_settings(claim, sampling=settings.sampling, training=settings.training, histories=settings.histories)
        for claim in checked
    )
    for key, words in first.items():
        if all(key in other for other in others):
            raise InvalidInputError(words)


def _guarded(claim: Claim, check: Callable[[Case], Verdict]) -> Callable[[Case], Verdict]:
    """Return a check before and after which the estimator must keep its contract: else a verdict says nothing.

    What a design of the user's draws must be from the distribution that it enumerates.
    """

    @wraps(check)
    def guarded(case: Case) -> Verdict:
        case.check_draws()
        before, who = Untouched(case.problem), f"estimator {case.estimator.name!r}"
        try:
            if claim.unmet(case) is None:
                if claim.asks:
                    case.check_contract()
                if claim.varies:
                    exact = case.exact.gradient
                    require_reading(case.estimator, case.problem, exact, claim.varies, case.partition, case.design)
            verdict = check(case)
            case.contract.settle()
        except ContractError:
            raise
        except Exception as error:  # which may be a consequence of the change
            if (changed := before.violation(who)) is not None:
                raise changed from error
            raise
        if (changed := before.violation(who)) is not None:
            raise changed
        return verdict

    return guarded


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


def not_applicable(case: Case, claim: Claim) -> Verdict | None:
    """Return a NOT_APPLICABLE verdict that says why if a required assumption fails, else None."""
    broken = claim.unmet(case)
    if broken is None:
        return None
    assumptions = claim.checked_assumptions(case)
    return verdict_of(case, claim.id, Outcome.NOT_APPLICABLE, broken.detail, assumptions=assumptions)


def expect_not_applicable(case: Case, claim: Claim) -> Expectation | None:
    """Return that the claim is expected not to be applicable, and why, if a required assumption fails, else None."""
    broken = claim.unmet(case)
    return None if broken is None else Expectation(Outcome.NOT_APPLICABLE, broken.detail)
