"""Claims and their cases as a report shows them: trials with a place, a label and words."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import attrgetter
from typing import Any

from lmc_verify.audits import Audit
from lmc_verify.cases.verdict import AUDIT, AssumptionCheck, Evidence, Outcome, Verdict
from lmc_verify.claims import Question
from lmc_verify.report.model import text
from lmc_verify.report.model.labels import common_entries, settings_in_words
from lmc_verify.runs import NotRun, Trial
from lmc_verify.statistics.betting import combine

__all__ = ["AUDITS", "Assumption", "AssumptionSet", "Case", "ClaimSection", "ClaimText", "comparable"]

# Cases that agree in these differ in the estimator and its own settings only.
_apart = attrgetter(
    *("dataset", "model", "layers", "width", "activation_cut", "encoder", "head", "norm", "residual"),
    *("normaliser", "design", "partition", "parts", "per_batch", "seen", "histories", "seed", "replicate"),
)


@dataclass(frozen=True)
class ClaimText:
    """What a claim says, for readers.

    Attributes:
        id: id of the claim, such as ``"theorem-1/unbiased"``.
        title: a few words.
        statement: the claim as its source states it.
        source: where it is stated, such as ``"LMC, Theorem 1"``.
        tier: how it is checked: exact, anytime-valid test, or rate.
        theory: a short paragraph that says why it should (or should not) hold.
        question: the claim as a question about one estimator; None: readers are given its statement.
    """

    id: str
    title: str
    statement: str
    source: str
    tier: str
    theory: str
    question: Question | None = None


AUDITS = ClaimText(
    id=AUDIT,
    title="Audits of training steps",
    statement="The mean of the step's gradients over its batches is the gradient of the objective on the whole graph.",
    source="",
    tier="",
    theory=(
        "The exact gradient is autograd's on the whole graph. Batches are all evaluated where they can be listed, else "
        "drawn. A cause of a bias is put right alone, and undone alone once all causes are put right."
    ),
)
"""What the report says of all audits, which are the cases of a claim of this name."""


@dataclass(frozen=True)
class Case:
    """One trial with its place in the report.

    Attributes:
        anchor: id to link to.
        label: the settings that tell it from the other cases of its claim.
        trial: the trial.
        tier: how its claim is checked: exact, test, or rate.
        repetitions: independent repetitions of the check, this one included, from every run on record; empty where
            no e-value was measured.
    """

    anchor: str
    label: str
    trial: Trial
    tier: str = ""
    repetitions: tuple[Trial, ...] = ()

    @property
    def verdict(self) -> Verdict:
        """The verdict of the trial."""
        return self.trial.verdict

    @property
    def crashed(self) -> bool:
        """Whether the check crashed without being expected to."""
        return self.trial.crashed

    @property
    def failed(self) -> bool:
        """Whether this case alone makes the report a failure."""
        return self.trial.as_expected is False or self.crashed

    @property
    def settings(self) -> list[tuple[str, str]]:
        """Every setting of the case in words, in reading order."""
        return settings_in_words(self.verdict.case)

    @property
    def statistical(self) -> bool:
        """Whether the verdict rests on draws, and not on an enumeration."""
        verdict = self.verdict
        return verdict.alpha_spent > 0 or verdict.draws is not None or verdict.log_e_value is not None

    @property
    def enumerated(self) -> bool:
        """Whether the verdict rests on an enumeration."""
        return not self.statistical and self.verdict.outcome not in (Outcome.NOT_APPLICABLE, Outcome.ERROR)

    @property
    def certain(self) -> bool:
        """Whether there is a verdict, and it does not depend on chance."""
        return self.verdict.alpha_spent == 0 and self.verdict.outcome not in (Outcome.NOT_APPLICABLE, Outcome.ERROR)

    @property
    def error_level(self) -> str:
        """The probability of a wrong verdict, in words."""
        if self.statistical:
            words = ", asymptotic" if self.verdict.guarantee == "asymptotic" else ""
            return f"{text.level(self.verdict.alpha_spent)}{words}"
        return "0: enumerated" if self.enumerated else text.ABSENT

    @property
    def estimate(self) -> Evidence | None:
        """The first measured quantity that has an interval."""
        found = (item for item in self.verdict.evidence if item.low is not None or item.high is not None)
        return next(found, None)

    @property
    def combined_log_e_value(self) -> float | None:
        """Natural logarithm of the e-value of all repetitions together; None with fewer than two.

        NaN where the product is undefined: of certain evidence and a lost capital, or with a value that is NaN.
        """
        values = [trial.verdict.log_e_value for trial in self.repetitions]
        found = [value for value in values if value is not None]
        if len(found) < 2:
            return None
        try:
            return combine(found)
        except ValueError:
            return math.nan

    @property
    def repeated_evidence(self) -> str:
        """The evidence of all repetitions, in words; empty with fewer than two."""
        combined = self.combined_log_e_value
        if combined is None:
            return ""
        return f"evidence of {len(self.repetitions)} independent repetitions: e = {text.e_value(combined)}"

    @property
    def facts(self) -> list[tuple[str, str]]:
        """What the verdict rests on, in words, in reading order."""
        verdict = self.verdict
        expected = self.trial.expectation
        facts = [
            ("outcome", text.outcome_word(verdict.outcome)),
            ("expected", expected.replace("_", " ") if expected else "no expectation"),
        ]
        if verdict.claim == AUDIT:
            return [*facts, *self._audit_facts, ("time", text.duration(self.trial.seconds))]
        if not self.statistical or verdict.residual is not None:
            facts += [("residual", text.number(verdict.residual)), ("tolerance", text.number(verdict.tolerance))]
        if not self.statistical or verdict.minimum_detectable_effect is not None:
            facts.append(("minimum detectable effect", text.number(verdict.minimum_detectable_effect)))
        facts.append(("error level", self.error_level))
        if verdict.draws is not None:
            facts.append(("batches drawn" if self.tier == "test" else "independent runs", f"{verdict.draws:,}"))
        if verdict.log_e_value is not None:
            facts.append(("e-value against the claim", text.e_value(verdict.log_e_value)))
        if self.combined_log_e_value is not None:
            together = f"{text.e_value(self.combined_log_e_value)} in {len(self.repetitions)} repetitions"
            facts.append(("e-value of all repetitions", together))
        return [*facts, ("time", text.duration(self.trial.seconds))]

    @cached_property
    def audit(self) -> Audit | None:
        """The audit; None of the case of a claim, and of an audit that crashed."""
        return None if self.verdict.audit is None else Audit.from_dict(self.verdict.audit)

    @property
    def audit_question(self) -> str:
        """What an audit asked, with the function that returned the step: steps of several may have one name."""
        function = self.verdict.case.function
        if self.audit is None:
            return f"The audit of {function} failed:"
        return self.audit.question if function is None else self.audit.asked_of(function)

    @property
    def _audit_facts(self) -> list[tuple[str, str]]:
        made = self.audit
        if made is None:
            return []
        facts = [("guarantee", made.guarantee), ("error level", self.error_level)]
        facts += [("steps of yours", f"{made.cost.steps:,}"), ("exact gradients", f"{made.cost.gradients:,}")]
        return [*facts, ("loss", text.number(made.loss)), ("gradient norm", text.number(made.gradient_norm))]


@dataclass(frozen=True)
class Assumption:
    """An assumption of a claim, over all cases of the claim."""

    id: str
    statement: str
    holds: int
    fails: int
    unchecked: int
    details: tuple[str, ...]

    @property
    def verdict(self) -> bool | None:
        """False if it fails in any case, None if it was checked in none, else True."""
        return False if self.fails else True if self.holds else None

    @property
    def words(self) -> str:
        """How often it holds, in words."""
        total = self.holds + self.fails + self.unchecked
        if self.fails:
            return "fails" if self.fails == total else f"fails in {self.fails} of {text.count(total, 'case')}"
        if not self.holds:
            return "not checked"
        return f"holds; not checked in {self.unchecked} of {total} cases" if self.unchecked else "holds"


@dataclass(frozen=True)
class AssumptionSet:
    """What several cases of a claim have in common of the assumptions in which its cases differ.

    Attributes:
        anchor: id to link to.
        number: its place among the sets of the claim, from 1.
        checks: the assumptions, each as it was found.
        amount: how many cases have it.
    """

    anchor: str
    number: int
    checks: tuple[AssumptionCheck, ...]
    amount: int


@dataclass(frozen=True)
class ClaimSection:
    """A claim with its cases and what was not run of it."""

    anchor: str
    claim: ClaimText
    cases: tuple[Case, ...]
    not_run: tuple[NotRun, ...]
    common: tuple[tuple[str, str], ...]

    @property
    def failed(self) -> tuple[Case, ...]:
        """The cases that are not as expected."""
        return tuple(case for case in self.cases if case.failed)

    @cached_property
    def assumptions(self) -> tuple[Assumption, ...]:
        """The assumptions of the claim, merged over its cases."""
        merged: dict[str, list[AssumptionCheck]] = {}
        for case in self.cases:
            for check in case.verdict.assumptions:
                merged.setdefault(check.id, []).append(check)
        return tuple(
            Assumption(
                id=key,
                statement=checks[0].statement,
                holds=sum(check.holds is True for check in checks),
                fails=sum(check.holds is False for check in checks),
                unchecked=sum(check.holds is None for check in checks),
                details=tuple(dict.fromkeys(check.detail for check in checks if check.detail)),
            )
            for key, checks in merged.items()
        )

    @cached_property
    def _told(self) -> frozenset[tuple[str, bool | None, str]]:
        """The assumptions that `assumptions` tells all of: of one outcome and one detail in every case."""
        seen: dict[str, set[tuple[bool | None, str]]] = {}
        for case in self.cases:
            for check in case.verdict.assumptions:
                seen.setdefault(check.id, set()).add((check.holds, check.detail))
        amount = Counter(check.id for case in self.cases for check in case.verdict.assumptions)
        return frozenset(
            (key, *next(iter(found)))
            for key, found in seen.items()
            if len(found) == 1 and amount[key] == len(self.cases)
        )

    def special_assumptions(self, case: Case) -> tuple[AssumptionCheck, ...]:
        """Return the assumptions of a case that the claim's own list does not tell all of."""
        return tuple(item for item in case.verdict.assumptions if (item.id, item.holds, item.detail) not in self._told)

    @cached_property
    def assumption_sets(self) -> Mapping[tuple[AssumptionCheck, ...], AssumptionSet]:
        """`special_assumptions` that several cases share, which are told once: themselves -> their set."""
        amounts = Counter(self.special_assumptions(case) for case in self.cases)
        shared = [(checks, amount) for checks, amount in amounts.items() if checks and amount > 1]
        return {
            checks: AssumptionSet(f"{self.anchor}-set-{number}", number, checks, amount)
            for number, (checks, amount) in enumerate(shared, start=1)
        }

    @cached_property
    def common_hashes(self) -> Mapping[str, str]:
        """The hashes that all of its cases have; empty of a single case."""
        return common_entries([case.verdict.hashes for case in self.cases]) if len(self.cases) > 1 else {}

    @cached_property
    def common_seeds(self) -> Mapping[str, int]:
        """The seeds that all of its cases have; empty of a single case."""
        return common_entries([case.verdict.seeds for case in self.cases]) if len(self.cases) > 1 else {}

    @property
    def audited(self) -> bool:
        """Whether its cases are audits, each of which has a card of its own."""
        return self.claim.id == AUDIT

    @property
    def by_residual(self) -> bool:
        """Whether the list of cases shows residuals: no case is statistical, or some case has a residual."""
        if self.audited:
            return False
        return any(item.verdict.residual is not None for item in self.cases) or not any(
            case.statistical for case in self.cases
        )

    @property
    def by_interval(self) -> bool:
        """Whether the list of cases shows estimates with intervals."""
        return self.audited or (not self.by_residual and any(case.estimate is not None for case in self.cases))

    @property
    def columns(self) -> tuple[str, str, str]:
        """What the list of cases shows of each."""
        if self.by_residual:
            return "residual", "tolerance", "detectable"
        if self.by_interval:
            return "estimate", "interval", "error level"
        return "draws" if self.claim.tier == "test" else "runs", "e-value", "error level"

    def measures(self, case: Case) -> tuple[str, str, str]:
        """Return the values of `columns` for a case, in words."""
        verdict = case.verdict
        if self.by_residual:
            return (
                text.number(verdict.residual),
                text.number(verdict.tolerance),
                text.number(verdict.minimum_detectable_effect),
            )
        if self.by_interval:
            found = case.estimate
            low, high = (None, None) if found is None else (found.low, found.high)
            return text.number(found.value if found else None), text.interval(low, high), case.error_level
        draws = text.ABSENT if verdict.draws is None else f"{verdict.draws:,}"
        return draws, text.e_value(verdict.log_e_value), case.error_level

    @property
    def estimated(self) -> str:
        """What the estimates of the list of cases are, if it is the same for all; else empty."""
        found = {(item.quantity, item.unit) for case in self.cases if (item := case.estimate) is not None}
        if not self.by_interval or len(found) != 1:
            return ""
        quantity, unit = found.pop()
        return f"{quantity} ({unit})" if unit else quantity

    @property
    def outcomes(self) -> str:
        """The outcomes with their counts, in words."""
        counts = Counter(case.verdict.outcome for case in self.cases)
        return ", ".join(f"{counts[outcome]} {text.outcome_word(outcome)}" for outcome in Outcome if counts[outcome])


def comparable(cases: Sequence[Case]) -> list[Case]:
    """Return the largest group of cases (at least one is given) that differ in the estimator and its settings only."""
    groups: dict[tuple[Any, ...], list[Case]] = {}
    for case in cases:
        groups.setdefault(_apart(case.verdict.case), []).append(case)
    return sorted(groups.values(), key=len)[-1]
