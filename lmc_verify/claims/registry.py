"""Claims by id, and `check_claim` for a user's own objects."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from lmc_verify.arguments import typed
from lmc_verify.errors import UnknownNameError
from lmc_verify.plugins import Place, Plugin, Registry

if TYPE_CHECKING:
    from lmc_verify.cases import SamplingSettings, TrainingSettings
    from lmc_verify.cases.verdict import Verdict
    from lmc_verify.claims.claim import Claim
    from lmc_verify.estimators import Estimator
    from lmc_verify.graphs import BatchDesign
    from lmc_verify.objective import Problem

__all__ = ["CLAIMS", "check_claim", "find_claim", "require_claim"]

_OWN: dict[str, str] = {
    "theorem-1/unbiased": "theorems.theorem_1_unbiased:UNBIASED",
    "theorem-1/separate-labels": "theorems.theorem_1_separate_labels:SEPARATE_LABELS",
    "theorem-1/unbiased-sampled": "theorems.theorem_1_unbiased_sampled:UNBIASED_SAMPLED",
    "e1/equals-backward-sgd": "consequences.e1_equals_backward_sgd:EQUALS_BACKWARD_SGD",
    "e2/exact-when-frozen": "consequences.e2_exact_when_frozen:EXACT_WHEN_FROZEN",
    "e3/contraction": "consequences.e3_contraction:CONTRACTION",
    "e3/contraction-sampled": "consequences.e3_contraction:CONTRACTION_SAMPLED",
    "e4/floor-linear-in-beta": "consequences.e4_floor_linear_in_beta:FLOOR_IN_BETA",
    "e5/floor-in-step-size": "consequences.e5_floor_in_step_size:FLOOR_IN_STEP_SIZE",
    "e6/bias-per-layer": "consequences.e6_bias_per_layer:LOWER_LAYERS_BIASED",
    "e7/reductions": "consequences.e7_reductions:REDUCTIONS",
    "e8/bias-and-variance": "consequences.e8_bias_and_variance:BIAS_AND_VARIANCE",
    "theorem-2/close-to-backward-sgd": "theorems.theorem_2_close_to_backward_sgd:CLOSE_TO_BACKWARD_SGD",
    "theorem-2/contraction": "theorems.theorem_2_contraction:CONTRACTION",
    "theorem-2/assumptions": "theorems.theorem_2_assumptions:ASSUMPTIONS",
    "theorem-2/a-posteriori-bound": "theorems.theorem_2_a_posteriori_bound:POSTERIOR_BOUND",
    "theorem-2/decay-and-floor": "theorems.theorem_2_decay_and_floor:DECAY_AND_FLOOR",
    "theorem-3/rate": "theorems.theorem_3_rate:RATE",
    "theorem-3/fixed-point": "theorems.theorem_3_fixed_point:FIXED_POINT",
    "theorem-3/relative-bias": "theorems.theorem_3_relative_bias:RELATIVE_BIAS",
    "sampling/unbiased-aggregation": "samplers.unbiased_aggregation:UNBIASED_AGGREGATION",
    "sampling/unbiased-aggregation-sampled": "samplers.unbiased_aggregation:UNBIASED_AGGREGATION_SAMPLED",
    "sampling/unbiased-without-nonlinearity": "samplers.unbiased_without_nonlinearity:LINEAR_CONTROL",
    "sampling/error-below-baseline": "samplers.error_below_baseline:BELOW_BASELINE",
    "labor/fewer-vertices": "samplers.labor_fewer_vertices:FEWER_VERTICES",
    "shadow/unbiased-own-objective": "samplers.shadow_unbiased_own_objective:UNBIASED_OWN_OBJECTIVE",
    "top/exact-in-span": "samplers.top_exact_in_span:EXACT_IN_SPAN",
}
"""Where the package's claims are in this folder, by id."""


def _claim(plugin: Plugin, item: object) -> Claim:
    """Return a plug-in's claim, if its id is the plug-in's name."""
    from lmc_verify.claims.claim import Claim

    if not isinstance(item, Claim):
        raise TypeError(f"it is a {type(item).__name__}, a lmc_verify.claims.Claim is needed")
    if item.id != plugin.name:
        raise ValueError(f"its id is {item.id!r}, the entry point's name is {plugin.name!r}; both must be one")
    return item


CLAIMS: Registry[Claim] = Registry(
    "claim",
    "lmc_verify.claims",
    ((name, Place(f"lmc_verify.claims.{place}")) for name, place in _OWN.items()),
    _claim,
)
"""Every claim by its id, those of plug-ins included."""


def require_claim(claim_id: str) -> None:
    """Refuse an unknown id, before anything of a claim is imported, with an `UnknownNameError` that has the nearest."""
    if claim_id not in CLAIMS:
        raise UnknownNameError("claim", claim_id, CLAIMS)


def find_claim(claim_id: str) -> Claim:
    """Return a claim by id; an unknown id is an `UnknownNameError` with the nearest ones."""
    require_claim(claim_id)
    return CLAIMS[claim_id]


@typed(besides=("claim_id", "histories"))
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

    Warns:
        UserWarning: a setting is given that the claim does not read.
    """
    from lmc_verify.cases import assemble_case
    from lmc_verify.claims.claim import unread_settings

    claim = find_claim(claim_id)
    case = assemble_case(
        problem, design, estimator, histories=histories, seed=seed, sampling=sampling, training=training
    )
    unread = unread_settings(claim, sampling=sampling, training=training, histories=histories)
    for words in unread.values():  # one budget may be meant for many claims
        warnings.warn(words, stacklevel=3)  # behind the wrapper that checks the arguments
    return claim.check(case)
