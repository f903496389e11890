"""Claims, one module a theorem, and the verdicts that checks of them give."""

from __future__ import annotations

from lmc_verify.batches import BatchDesign
from lmc_verify.case import assemble_case
from lmc_verify.claims.aggregation import UNBIASED_AGGREGATION, UNBIASED_AGGREGATION_SAMPLED
from lmc_verify.claims.base import Assumption, Claim
from lmc_verify.claims.bias_variance import BIAS_AND_VARIANCE
from lmc_verify.claims.compensation import EQUALS_BACKWARD_SGD, EXACT_WHEN_FROZEN
from lmc_verify.claims.contraction import CONTRACTION, CONTRACTION_SAMPLED
from lmc_verify.claims.convergence import RATE
from lmc_verify.claims.expectation import Expectation
from lmc_verify.claims.floors import DECAY_AND_FLOOR, FLOOR_IN_BETA, FLOOR_IN_STEP_SIZE
from lmc_verify.claims.layer_bias import LOWER_LAYERS_BIASED
from lmc_verify.claims.linearised import LINEAR_CONTROL
from lmc_verify.claims.ordering import BELOW_BASELINE, FEWER_VERTICES
from lmc_verify.claims.own_objective import EXACT_IN_SPAN, UNBIASED_OWN_OBJECTIVE
from lmc_verify.claims.posterior import POSTERIOR_BOUND
from lmc_verify.claims.reductions import REDUCTIONS
from lmc_verify.claims.sampled import UNBIASED_SAMPLED
from lmc_verify.claims.smoothness import ASSUMPTIONS
from lmc_verify.claims.stationarity import FIXED_POINT, RELATIVE_BIAS
from lmc_verify.claims.unbiasedness import UNBIASED
from lmc_verify.claims.verdict import AssumptionCheck, Evidence, Outcome, Series, Verdict
from lmc_verify.errors import UnknownNameError
from lmc_verify.estimators import Estimator
from lmc_verify.plugins import Plugin, Registry
from lmc_verify.problem import Problem
from lmc_verify.settings import SamplingSettings, TrainingSettings

__all__ = [
    "CLAIMS",
    "Assumption",
    "AssumptionCheck",
    "Claim",
    "Evidence",
    "Expectation",
    "Outcome",
    "Series",
    "Verdict",
    "check_claim",
    "find_claim",
]

_OWN = (
    UNBIASED,
    UNBIASED_SAMPLED,
    EQUALS_BACKWARD_SGD,
    EXACT_WHEN_FROZEN,
    CONTRACTION,
    CONTRACTION_SAMPLED,
    FLOOR_IN_BETA,
    FLOOR_IN_STEP_SIZE,
    LOWER_LAYERS_BIASED,
    REDUCTIONS,
    BIAS_AND_VARIANCE,
    ASSUMPTIONS,
    POSTERIOR_BOUND,
    DECAY_AND_FLOOR,
    RATE,
    FIXED_POINT,
    RELATIVE_BIAS,
    UNBIASED_AGGREGATION,
    UNBIASED_AGGREGATION_SAMPLED,
    LINEAR_CONTROL,
    BELOW_BASELINE,
    FEWER_VERTICES,
    UNBIASED_OWN_OBJECTIVE,
    EXACT_IN_SPAN,
)


def _claim(plugin: Plugin, item: object) -> Claim:
    """Return a plug-in's claim, if its id is the plug-in's name."""
    if not isinstance(item, Claim):
        raise TypeError(f"it is a {type(item).__name__}, a lmc_verify.claims.Claim is needed")
    if item.id != plugin.name:
        raise ValueError(f"its id is {item.id!r}, the entry point's name is {plugin.name!r}; both must be one")
    return item


CLAIMS: Registry[Claim] = Registry("claim", "lmc_verify.claims", ((claim.id, claim) for claim in _OWN), _claim)


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
    sampling: SamplingSettings | None = None,
    training: TrainingSettings | None = None,
) -> Verdict:
    """Check a claim on your own problem, batch design and estimator.

    Args:
        claim_id: such as ``"theorem-1/unbiased"``; see `CLAIMS`.
        problem: in float64 (``problem.double()``), its model in evaluation mode.
        design: any `BatchDesign`.
        estimator: any `Estimator`.
        histories: what histories hold: ``"exact"`` values, ``"zero"``, or ``"sweeps:K"``.
        seed: of every draw, recorded in the verdict.
        sampling: error level and budget of statistical verdicts.
        training: the training runs along which convergence is checked.

    Raises:
        UnknownNameError: an unknown claim.
        InvalidInputError: the problem is not in float64, or an argument does not fit.
    """
    claim = find_claim(claim_id)
    case = assemble_case(
        problem, design, estimator, histories=histories, seed=seed, sampling=sampling, training=training
    )
    return claim.check(case)
