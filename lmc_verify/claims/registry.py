"""Claims by id, and `check_claim` for a user's own objects."""

from __future__ import annotations

from lmc_verify.cases import SamplingSettings, TrainingSettings, assemble_case
from lmc_verify.cases.verdict import Verdict
from lmc_verify.claims.claim import Claim
from lmc_verify.claims.consequences.e1_equals_backward_sgd import EQUALS_BACKWARD_SGD
from lmc_verify.claims.consequences.e2_exact_when_frozen import EXACT_WHEN_FROZEN
from lmc_verify.claims.consequences.e3_contraction import CONTRACTION, CONTRACTION_SAMPLED
from lmc_verify.claims.consequences.e4_floor_linear_in_beta import FLOOR_IN_BETA
from lmc_verify.claims.consequences.e5_floor_in_step_size import FLOOR_IN_STEP_SIZE
from lmc_verify.claims.consequences.e6_bias_per_layer import LOWER_LAYERS_BIASED
from lmc_verify.claims.consequences.e7_reductions import REDUCTIONS
from lmc_verify.claims.consequences.e8_bias_and_variance import BIAS_AND_VARIANCE
from lmc_verify.claims.samplers.error_below_baseline import BELOW_BASELINE
from lmc_verify.claims.samplers.labor_fewer_vertices import FEWER_VERTICES
from lmc_verify.claims.samplers.shadow_unbiased_own_objective import UNBIASED_OWN_OBJECTIVE
from lmc_verify.claims.samplers.top_exact_in_span import EXACT_IN_SPAN
from lmc_verify.claims.samplers.unbiased_aggregation import UNBIASED_AGGREGATION, UNBIASED_AGGREGATION_SAMPLED
from lmc_verify.claims.samplers.unbiased_without_nonlinearity import LINEAR_CONTROL
from lmc_verify.claims.theorems.theorem_1_unbiased import UNBIASED
from lmc_verify.claims.theorems.theorem_1_unbiased_sampled import UNBIASED_SAMPLED
from lmc_verify.claims.theorems.theorem_2_a_posteriori_bound import POSTERIOR_BOUND
from lmc_verify.claims.theorems.theorem_2_assumptions import ASSUMPTIONS
from lmc_verify.claims.theorems.theorem_2_decay_and_floor import DECAY_AND_FLOOR
from lmc_verify.claims.theorems.theorem_3_fixed_point import FIXED_POINT
from lmc_verify.claims.theorems.theorem_3_rate import RATE
from lmc_verify.claims.theorems.theorem_3_relative_bias import RELATIVE_BIAS
from lmc_verify.errors import UnknownNameError
from lmc_verify.estimators import Estimator
from lmc_verify.graphs import BatchDesign
from lmc_verify.objective import Problem
from lmc_verify.plugins import Plugin, Registry

__all__ = ["CLAIMS", "check_claim", "find_claim"]

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
"""Every claim by its id, those of plug-ins included."""


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
