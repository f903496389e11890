"""What a report may promise: the error ledger of its statistical verdicts, and the evidence of repetitions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lmc_verify.report.model import text
from lmc_verify.report.model.claims import Case, ClaimSection

__all__ = ["ALPHA_TOTAL", "ClaimSpending", "ErrorAccount"]

ALPHA_TOTAL = "alpha_total"
"""Key of a run's settings: the error probability that all its statistical verdicts together may spend."""
_SLACK = 1e-9  # shares are quotients of the total: their sum may exceed it by rounding


@dataclass(frozen=True)
class ClaimSpending:
    """The statistical checks of one claim, and the error probability that they spent."""

    section: ClaimSection
    cases: tuple[Case, ...]

    @property
    def spent(self) -> float:
        """Sum over the checks."""
        return math.fsum(case.verdict.alpha_spent for case in self.cases)

    @property
    def share(self) -> str:
        """What each check spent, in words."""
        shares = [case.verdict.alpha_spent for case in self.cases]
        low, high = text.level(min(shares)), text.level(max(shares))
        return low if low == high else f"{low} to {high}"


@dataclass(frozen=True)
class ErrorAccount:
    """The error ledger of a run: which verdicts could be wrong by chance, and with what probability at most.

    A verdict by enumeration spends nothing. By the union bound the probability of any wrong statistical verdict is at
    most the sum of what the checks spent, however they depend on each other.

    Attributes:
        total: what the run was allowed to spend, or None where it does not say.
        claims: the claims with statistical checks.
        certain: number of verdicts that spent nothing: enumeration decided them, or the whole support was drawn.
        controls: error probability spent by controls, whose answers are known: it is not part of the total.
    """

    total: float | None
    claims: tuple[ClaimSpending, ...]
    certain: int
    controls: float

    @classmethod
    def of(
        cls, settings: Mapping[str, Any], sections: Iterable[ClaimSection], controls: Iterable[Case]
    ) -> ErrorAccount:
        """Take the ledger from a run's settings, claims and controls."""
        total = settings.get(ALPHA_TOTAL)
        sections = tuple(sections)
        claims = (
            ClaimSpending(section, tuple(case for case in section.cases if case.verdict.alpha_spent > 0))
            for section in sections
        )
        return cls(
            total=float(total) if isinstance(total, int | float) and not isinstance(total, bool) else None,
            claims=tuple(claim for claim in claims if claim.cases),
            certain=sum(case.certain for section in sections for case in section.cases),
            controls=math.fsum(case.verdict.alpha_spent for case in controls),
        )

    @property
    def checks(self) -> int:
        """The number of statistical checks."""
        return sum(len(claim.cases) for claim in self.claims)

    @property
    def spent(self) -> float:
        """Sum of what all checks of claims spent."""
        return math.fsum(claim.spent for claim in self.claims)

    @property
    def asymptotic(self) -> float:
        """What of `spent` holds in the limit of many draws only: no range of the draws was proven."""
        cases = (case.verdict for claim in self.claims for case in claim.cases)
        return math.fsum(verdict.alpha_spent for verdict in cases if verdict.guarantee == "asymptotic")

    @property
    def anytime_valid(self) -> float:
        """What of `spent` holds at every finite number of draws."""
        cases = (case.verdict for claim in self.claims for case in claim.cases)
        return math.fsum(verdict.alpha_spent for verdict in cases if verdict.guarantee != "asymptotic")

    @property
    def overspent(self) -> bool:
        """Whether the checks spent more than the run was allowed to: its guarantee is then the sum, not the total."""
        return self.total is not None and self.spent > self.total * (1 + _SLACK)

    @property
    def guarantee(self) -> str:
        """What holds for the statistical verdicts of the run together, in a sentence or two."""
        if not self.checks:
            return "No verdict of this run is statistical: none can be wrong by chance."
        bound = self.spent if self.total is None or self.overspent else self.total
        words = (
            "Whatever is true of the claims, the probability that any statistical verdict of this run is wrong (a true "
            f"claim called refuted, a false one called supported) is at most {text.level(bound)}."
        )
        if self.asymptotic > 0:
            words += (
                f" Of it {text.level(self.asymptotic)} is asymptotic: where no range of the draws is proven, the "
                "probability is approached as draws become many."
            )
        if self.overspent:
            words += f" The run was allowed to spend {text.level(self.total)}; its checks spent more."
        return words

    @property
    def spending(self) -> str:
        """What was spent, in words."""
        words = f"{text.count(self.checks, 'statistical check')} spent {text.level(self.spent)}"
        if self.total is not None:
            words += f" of {text.level(self.total)}"
        if self.asymptotic > 0:
            words += f" (anytime-valid {text.level(self.anytime_valid)}, asymptotic {text.level(self.asymptotic)})"
        depend = "does" if self.certain == 1 else "do"
        words += f"; {text.count(self.certain, 'verdict')} that {depend} not depend on chance spent nothing"
        if self.controls > 0:
            words += f"; controls, whose answers are known, spent {text.level(self.controls)} in addition"
        return words + "."
