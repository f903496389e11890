"""Backward SGD on a case, the reference of claims that compare estimates batch by batch."""

from __future__ import annotations

from lmc_verify.cases import Case
from lmc_verify.claims.claim import Assumption, Claim
from lmc_verify.claims.residuals import Residuals, norm_by_layer
from lmc_verify.estimators import BackwardSGD, History, properties_of
from lmc_verify.graphs import Batch
from lmc_verify.objective import Gradient, gradient_sum, loss_conditioning, rounding_terms

__all__ = ["SOURCE", "Reference", "explained"]

SOURCE = "derived from the estimators' definitions in LMC (Shi, Liang and Wang, ICLR 2023)"


class Reference:
    """Backward SGD on a case, and the comparison of other estimates with it, batch by batch."""

    def __init__(self, case: Case) -> None:
        self.case, self.estimator = case, BackwardSGD(weighting=case.weighting)
        self.state = History.from_exact(case.problem, case.exact)
        self.terms = rounding_terms(case.problem)
        self.conditioning = loss_conditioning(case.problem, case.exact)
        self.norms = norm_by_layer(case.problem, case.exact.gradient)

    def expected(self, batch: Batch) -> Gradient:
        """Return Backward SGD's estimate on a batch."""
        return self.estimator.estimate(self.case.problem, self.state, batch).gradient

    def compare(self, estimate: Gradient, batch: Batch) -> tuple[Gradient, Residuals]:
        """Return the difference from Backward SGD on a batch, and its residuals.

        Both sides round: twice what is added up in the estimate, and the loss derivative's own errors, which the
        batch's weights scale up.
        """
        case = self.case
        expected = self.expected(batch)
        difference = gradient_sum(estimate, expected, -1.0)
        weight = 1 / float(batch.inclusion.min())
        sizes = norm_by_layer(case.problem, expected)
        magnitudes = {part: 2 * (sizes[part] + weight * self.conditioning * norm) for part, norm in self.norms.items()}
        residuals = Residuals.of(
            case.problem, difference, reference=case.exact.gradient, terms=self.terms, magnitudes=magnitudes
        )
        return difference, residuals


def _in_family(case: Case) -> tuple[bool | None, str]:
    holds = properties_of(case.estimator).policies is not None
    return holds, "" if holds else f"{case.estimator.name} has no halo policies and histories"


def explained(case: Case, claim: Claim) -> str:
    """Return which assumptions of a refuted claim fail, to end its summary with."""
    broken = [item for item in claim.checked_assumptions(case) if item.holds is False]
    named = [f"{item.id} ({item.detail})" if item.detail else item.id for item in broken]
    return f"; assumptions that fail: {', '.join(named)}" if named else ""


FAMILY = Assumption("compensated-family", "the estimator has halo policies and histories", _in_family)
