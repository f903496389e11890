"""Theorem 1: the expected gradient estimate equals the exact gradient.

Checked by enumerating the batch design from one frozen state in float64: no sampling, no error probability.
"""

from __future__ import annotations

import torch

from lmc_verify.case import Case, readable_count
from lmc_verify.claims.base import (
    AGGREGATE_LINEAR,
    BETA_ZERO,
    FINITE_SUPPORT,
    MAX_SUPPORT,
    NO_DROPOUT,
    Assumption,
    Claim,
    not_applicable,
    verdict_of,
)
from lmc_verify.claims.expectation import Expectation, expect_from_halo, expect_from_sample, frozen_sweeps
from lmc_verify.claims.residuals import (
    UNIT,
    Residuals,
    flatten,
    norm_by_layer,
    relative_by_layer,
    unflatten,
)
from lmc_verify.claims.verdict import Evidence, Outcome, Verdict
from lmc_verify.conditioning import loss_conditioning, rounding_terms
from lmc_verify.errors import InvalidInputError
from lmc_verify.estimators import Compensated, Cut, Held, Sampled
from lmc_verify.problem import Gradient, Problem, gradient_norm, gradient_sum
from lmc_verify.statistics.enumeration import DesignMoments, MomentAccumulator

__all__ = ["UNBIASED", "bias_evidence", "compare_mean", "enumerate_estimator", "weights_fail"]

ID = "theorem-1/unbiased"


def enumerate_estimator(case: Case) -> DesignMoments:
    """Return the exact mean and variance of the estimate over the design, from one frozen state.

    Raises:
        InvalidInputError: the design has more than `MAX_SUPPORT` batches.
    """
    size = case.design.support_size
    if size > MAX_SUPPORT:
        raise InvalidInputError(
            f"the design has {readable_count(size)} batches, at most {MAX_SUPPORT:,} are enumerated; "
            "use fewer parts or a smaller batch"
        )
    state = case.initial_state()
    moments = MomentAccumulator()
    for batch, probability in case.design.enumerate():
        estimate = case.estimator.estimate(case.problem, state, batch)
        moments.add(flatten(estimate.gradient).cpu().numpy(), probability)
    return moments.result()


def compare_mean(case: Case) -> tuple[DesignMoments, Gradient, Residuals]:
    """Return the design's moments, the bias of the mean estimate, and its residuals layer by layer."""
    moments, exact, problem = enumerate_estimator(case), case.exact.gradient, case.problem
    bias = gradient_sum(unflatten(torch.from_numpy(moments.mean), exact), exact, -1.0)
    # E||g|| <= sqrt(E||g||^2), layer by layer: what is added up before the expectation cancels.
    squares = unflatten(torch.from_numpy(moments.variance + moments.mean**2).sqrt(), exact)
    conditioning, norms = loss_conditioning(problem, case.exact), norm_by_layer(problem, exact)
    magnitudes = {part: size + conditioning * norms[part] for part, size in norm_by_layer(problem, squares).items()}
    terms = rounding_terms(problem, moments.atoms)
    return moments, bias, Residuals.of(problem, bias, reference=exact, terms=terms, magnitudes=magnitudes)


def bias_evidence(problem: Problem, bias: Gradient, exact: Gradient, residuals: Residuals) -> tuple[Evidence, ...]:
    """Return each layer's bias beside its tolerance: at most sqrt(blocks) times that of a block."""
    out = []
    for part, value in relative_by_layer(problem, bias, exact).items():
        blocks = [block for name, block in residuals.blocks.items() if problem.layer_of(name) == part]
        tolerance = len(blocks) ** 0.5 * max((block.tolerance for block in blocks), default=0.0)
        out.append(Evidence(part, value, tolerance, unit=UNIT, group="bias per layer"))
    return tuple(out)


def check(case: Case) -> Verdict:
    """Enumerate the design and compare the mean estimate with the exact gradient."""
    inapplicable = not_applicable(case, UNBIASED, NO_DROPOUT.id, FINITE_SUPPORT.id)
    if inapplicable is not None:
        return inapplicable
    moments, bias, residuals = compare_mean(case)
    exact, problem = case.exact.gradient, case.problem
    norm = gradient_norm(exact)
    per_layer = relative_by_layer(problem, bias, exact)
    spread = relative_by_layer(problem, unflatten(torch.from_numpy(moments.variance).sqrt(), exact), exact)
    total_bias, deviation = gradient_norm(bias) / (norm or 1.0), float(moments.variance.sum()) ** 0.5 / (norm or 1.0)
    evidence = [
        *bias_evidence(problem, bias, exact, residuals),
        *(Evidence(part, value, unit=UNIT, group="standard deviation per layer") for part, value in spread.items()),
        Evidence("bias, all parameters", total_bias, group="totals"),
        Evidence("standard deviation, one batch", deviation, group="totals"),
        Evidence("norm of the exact gradient", norm, unit="objective / parameter", group="totals"),
        Evidence("rounded additions counted", rounding_terms(problem, moments.atoms), unit="terms", group="totals"),
    ]
    outcome = residuals.outcome
    if outcome is Outcome.EXACT:
        summary = (
            f"the mean over all {moments.atoms:,} batches equals the exact gradient: largest residual "
            f"{residuals.worst.value:.1e} of a layer's gradient, rounding allows {residuals.worst.tolerance:.1e}"
        )
    elif outcome is Outcome.REFUTED:
        worst = max(per_layer, key=lambda part: per_layer[part])
        summary = (
            f"biased: the mean over all {moments.atoms:,} batches is off by {total_bias:.2g} of the gradient's norm, "
            f"most in {worst} ({per_layer[worst]:.2g} of its own)"
        )
    else:
        summary = residuals.explanation
    return verdict_of(
        case,
        ID,
        outcome,
        summary,
        residuals=residuals,
        evidence=evidence,
        assumptions=UNBIASED.checked_assumptions(case),
    )


def expect(case: Case) -> Expectation:
    """Return what theory says: unbiased only with full compensation and weights that match the design."""
    if case.design.support_size > MAX_SUPPORT:
        return Expectation(Outcome.NOT_APPLICABLE, "the design is too large to be enumerated")
    reasons = weights_fail(case)
    if reasons:
        return Expectation(Outcome.REFUTED, "; ".join(reasons))
    if isinstance(case.estimator, Sampled):
        return expect_from_sample(case)
    return expect_from_halo(case, (batch for batch, _ in case.design.enumerate()), histories=case.histories)


def weights_fail(case: Case) -> list[str]:
    """Return why the weights of batch rows are not the inverse of the law that batches are drawn from; empty if so."""
    out: list[str] = []
    if case.conditioned:
        out.append("the weights are those of the marginal law, the batches are drawn given what the epoch has seen")
    normaliser = case.normaliser
    if normaliser == "inclusion":
        return out
    mask = case.graph.train_mask.cpu()
    drawn = [batch for batch, _ in case.design.enumerate()]
    if all(batch.sample is not None and batch.sample.weights is not None for batch in drawn):
        return out  # the estimator's own law gives the weights, whatever the normaliser
    batches = [batch.nodes for batch in drawn]
    if normaliser == "node-count" and len({nodes.numel() for nodes in batches}) > 1:
        out.append("batches differ in size, so |V| / |V_B| is not the inverse inclusion probability")
    if normaliser == "batch-mean" and len({int(mask[nodes].sum()) for nodes in batches}) > 1:
        out.append("batches differ in their number of labelled nodes, so the batch mean is not the objective's weight")
    return out


def _inclusion_matches(case: Case) -> tuple[bool | None, str]:
    if case.design.support_size > MAX_SUPPORT:
        return None, "the design is too large to be enumerated"
    total = torch.zeros(case.graph.num_nodes, dtype=torch.float64)
    for batch, probability in case.design.enumerate():
        total[batch.nodes] += probability / batch.inclusion
    worst = float((total - 1).abs().max())
    return worst < 1e-9, f"E[1{{j in B}} / pi_j] = 1 at every node, to within {worst:.1e}"


def _histories(case: Case) -> tuple[bool | None, str]:
    if isinstance(case.estimator, Compensated) and isinstance(case.estimator.policies.forward, Held | Cut):
        return True, "the estimator reads no history"
    if isinstance(case.estimator, Sampled) and not case.estimator.corrected:
        return True, "the estimator reads no history"
    family = isinstance(case.estimator, Compensated)
    warm = family and case.histories.startswith("sweeps:") and int(case.histories[7:]) >= frozen_sweeps(case) - 1
    return case.histories == "exact" or warm, f"histories: {case.histories}"


UNBIASED = Claim(
    id=ID,
    title="Unbiased gradient",
    statement=(
        "The expectation of the gradient estimate over the batch design equals the exact full-graph gradient, for "
        "every parameter."
    ),
    source="LMC (Shi, Liang and Wang, ICLR 2023), Theorem 1, for Backward SGD; other estimators by the same criterion",
    tier="exact",
    theory=(
        "With exact embeddings and auxiliary variables, every parameter gradient is a sum over nodes; weighting the "
        "batch's part of it by inverse inclusion probabilities is unbiased. LMC with beta = 0 inherits this when its "
        "histories are exact and its layers aggregate-linear. GAS, FM and Cluster-GCN drop the halo's messages in "
        "the backward pass and are biased in every layer that needs them."
    ),
    assumptions=(
        NO_DROPOUT,
        FINITE_SUPPORT,
        Assumption("inclusion", "the batches' inclusion probabilities are those of the design", _inclusion_matches),
        Assumption("exact-histories", "the histories that are read hold exact values", _histories),
        BETA_ZERO,
        AGGREGATE_LINEAR,
    ),
    check=check,
    expect=expect,
)
