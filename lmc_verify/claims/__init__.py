"""Claims, one module a theorem, and the verdicts that checks of them give."""

from __future__ import annotations

from lmc_verify.batches import BatchDesign
from lmc_verify.case import assemble_case
from lmc_verify.claims.base import Assumption, Claim
from lmc_verify.claims.compensation import EQUALS_BACKWARD_SGD, EXACT_WHEN_FROZEN
from lmc_verify.claims.expectation import Expectation
from lmc_verify.claims.layer_bias import LOWER_LAYERS_BIASED
from lmc_verify.claims.reductions import REDUCTIONS
from lmc_verify.claims.unbiasedness import UNBIASED
from lmc_verify.claims.verdict import AssumptionCheck, Evidence, Outcome, Verdict
from lmc_verify.errors import UnknownNameError
from lmc_verify.estimators import Estimator
from lmc_verify.problem import Problem

__all__ = [
    "CLAIMS",
    "Assumption",
    "AssumptionCheck",
    "Claim",
    "Evidence",
    "Expectation",
    "Outcome",
    "Verdict",
    "check_claim",
    "find_claim",
]

CLAIMS: dict[str, Claim] = {
    claim.id: claim for claim in (UNBIASED, EQUALS_BACKWARD_SGD, EXACT_WHEN_FROZEN, LOWER_LAYERS_BIASED, REDUCTIONS)
}


def find_claim(claim_id: str) -> Claim:
    """Return a claim by id; an unknown id is an `UnknownNameError` with the nearest ones."""
    if claim_id not in CLAIMS:
        raise UnknownNameError("claim", claim_id, CLAIMS)
    return CLAIMS[claim_id]


def check_claim(
    claim_id: str,
    problem: Problem,
    design: BatchDesign,
    estimator: Estimator,
    *,
    histories: str = "exact",
    seed: int = 0,
) -> Verdict:
    """Check a claim on your own problem, batch design and estimator.

    Args:
        claim_id: such as ``"theorem-1/unbiased"``; see `CLAIMS`.
        problem: in float64 (``problem.double()``), its model in evaluation mode.
        design: any `BatchDesign`.
        estimator: any `Estimator`.
        histories: what histories hold: ``"exact"`` values, ``"zero"``, or ``"sweeps:K"``.
        seed: recorded in the verdict.

    Raises:
        UnknownNameError: an unknown claim.
        InvalidInputError: the problem is not in float64, or an argument does not fit.
    """
    claim = find_claim(claim_id)
    return claim.check(assemble_case(problem, design, estimator, histories=histories, seed=seed))
