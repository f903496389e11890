"""Claims, one module a theorem, and the verdicts that checks of them give."""

from __future__ import annotations

from lmc_verify.claims.base import Assumption, Claim, Expectation
from lmc_verify.claims.compensation import EQUALS_BACKWARD_SGD, EXACT_WHEN_FROZEN, LOWER_LAYERS_BIASED
from lmc_verify.claims.reductions import REDUCTIONS
from lmc_verify.claims.unbiasedness import UNBIASED
from lmc_verify.claims.verdict import AssumptionCheck, Evidence, Outcome, Verdict
from lmc_verify.errors import UnknownNameError

__all__ = [
    "CLAIMS",
    "Assumption",
    "AssumptionCheck",
    "Claim",
    "Evidence",
    "Expectation",
    "Outcome",
    "Verdict",
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
