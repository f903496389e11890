"""Theorem 1: the expected gradient estimate equals the exact gradient.

Checked by enumerating the batch design from one frozen state in float64: no sampling, no error probability.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lmc_verify.case import Case, sweep_batches
from lmc_verify.claims.base import (
    AGGREGATE_LINEAR,
    BETA_ZERO,
    FINITE_SUPPORT,
    MAX_SUPPORT,
    NO_DROPOUT,
    Assumption,
    Claim,
    Expectation,
    Residuals,
    compensation_fails,
    failed,
    flatten,
    layer_evidence,
    loss_conditioning,
    no_halo,
    relative_by_layer,
    rounding_terms,
    unflatten,
    verdict_of,
)
from lmc_verify.claims.verdict import Evidence, Outcome, Verdict
from lmc_verify.errors import InvalidInputError
from lmc_verify.estimators import Compensated, Cut, Held
from lmc_verify.problem import gradient_norm, gradient_sum
from lmc_verify.statistics.enumeration import DesignMoments, MomentAccumulator

__all__ = ["UNBIASED", "enumerate_estimator"]

ID = "theorem-1/unbiased"


def enumerate_estimator(case: Case) -> DesignMoments:
    """Return the exact mean and variance of the estimate over the design, from one frozen state.

    Raises:
        InvalidInputError: the design has more than `MAX_SUPPORT` batches.
    """
    size = case.design.support_size
    if size > MAX_SUPPORT:
        raise InvalidInputError(
            f"the design has {size:,} batches, at most {MAX_SUPPORT:,} are enumerated; use fewer parts or a smaller "
            f"batch"
        )
    state = case.initial_state()
    moments = MomentAccumulator()
    for batch, probability in case.design.enumerate():
        estimate = case.estimator.estimate(case.problem, state, batch)
        moments.add(flatten(estimate.gradient).cpu().numpy(), probability)
    return moments.result()


def check(case: Case) -> Verdict:
    """Enumerate the design and compare the mean estimate with the exact gradient."""
    assumptions = UNBIASED.checked_assumptions(case)
    broken = failed(assumptions, NO_DROPOUT.id, FINITE_SUPPORT.id)
    if broken is not None:
        return verdict_of(
            case, ID, Outcome.NOT_APPLICABLE, f"{broken.statement}: {broken.detail}", assumptions=assumptions
        )
    moments = enumerate_estimator(case)
    exact = case.exact.gradient
    mean = unflatten(torch.from_numpy(moments.mean), exact)
    bias = gradient_sum({name: value.to(exact[name].device) for name, value in mean.items()}, exact, -1.0)
    norm = gradient_norm(exact)
    residuals = Residuals.of(
        bias,
        reference=exact,
        terms=rounding_terms(case.problem, moments.atoms),
        magnitude=loss_conditioning(case) * (moments.mean_norm + norm),
    )
    spread = unflatten(torch.from_numpy(moments.variance).sqrt(), exact)
    deviation = relative_by_layer(case.problem, spread, exact)
    per_layer = relative_by_layer(case.problem, bias, exact)
    evidence = [
        *layer_evidence(case.problem, bias, exact, residuals),
        *(
            Evidence(part, value, unit="norm of the layer's exact gradient", group="standard deviation per layer")
            for part, value in deviation.items()
        ),
        Evidence("bias, all parameters", gradient_norm(bias) / residuals.unit, group="totals"),
        Evidence(
            "standard deviation, one batch", float(moments.variance.sum()) ** 0.5 / residuals.unit, group="totals"
        ),
        Evidence("norm of the exact gradient", norm, unit="objective / parameter", group="totals"),
        Evidence(
            "rounded additions counted", rounding_terms(case.problem, moments.atoms), unit="terms", group="totals"
        ),
    ]
    worst = max(per_layer, key=lambda part: per_layer[part])
    outcome = residuals.outcome
    if outcome is Outcome.EXACT:
        summary = (
            f"the mean over all {moments.atoms} batches equals the exact gradient: largest residual "
            f"{residuals.largest:.1e}, rounding allows {residuals.tolerance:.1e}"
        )
    elif outcome is Outcome.REFUTED:
        summary = (
            f"biased: the mean over all {moments.atoms} batches is off by {gradient_norm(bias) / residuals.unit:.2g} "
            f"of the gradient's norm, most in {worst} ({per_layer[worst]:.2g} of its own)"
        )
    else:
        summary = (
            f"residual {residuals.largest:.1e} lies between rounding ({residuals.tolerance:.1e}) and the detectable "
            f"effect ({residuals.detectable:.1e}); a smaller graph or fewer batches would decide"
        )
    return verdict_of(case, ID, outcome, summary, residuals=residuals, evidence=evidence, assumptions=assumptions)


def expect(case: Case) -> Expectation:
    """Return what theory says: unbiased only with full compensation and weights that match the design."""
    refuted = [*_weights_fail(case), *_estimator_fails(case)]
    if refuted:
        return Expectation(Outcome.REFUTED, "; ".join(refuted))
    return Expectation(Outcome.EXACT, "Horvitz-Thompson weights of the design and exact values at every batch row")


def _weights_fail(case: Case) -> list[str]:
    out: list[str] = []
    if case.conditioned:
        out.append("the weights are those of the marginal law, the batches are drawn given what the epoch has seen")
    normaliser = case.normaliser
    if normaliser == "inclusion" or case.design.support_size > MAX_SUPPORT:
        return out
    mask = case.graph.train_mask.cpu()
    batches = [batch.nodes for batch, _ in case.design.enumerate()]
    if normaliser == "node-count" and len({nodes.numel() for nodes in batches}) > 1:
        out.append("batches differ in size, so |V| / |V_B| is not the inverse inclusion probability")
    if normaliser == "batch-mean" and len({int(mask[nodes].sum()) for nodes in batches}) > 1:
        out.append("batches differ in their number of labelled nodes, so the batch mean is not the objective's weight")
    return out


def _estimator_fails(case: Case) -> list[str]:
    if not isinstance(case.estimator, Compensated) or no_halo(case):
        return []
    policies = case.estimator.policies
    problem = case.problem
    lower = problem.num_layers > 1 or bool(problem.parameters_of(problem.model.encoder))
    if isinstance(policies.forward, Held):
        return []
    if isinstance(policies.forward, Cut):
        return ["edges that leave the batch are cut"]
    if not lower:  # L = 1: inputs are exact, and no halo message is needed backward
        return []
    batches = (batch for batch, _ in case.design.enumerate()) if case.design.support_size <= MAX_SUPPORT else ()
    out = compensation_fails(case, policies, batches)
    if case.histories != "exact" and not _warm(case):
        out.append("the histories are not exact")
    return out


def _warm(case: Case) -> bool:
    """Whether the sweeps made at fixed parameters leave every gradient of the design exact (E2).

    After 2L - 2 sweeps (2L - 1 with a trained encoder) they always do. With few batches a sweep it can be sooner: a
    batch reads what the batches before it in the same sweep have written. So exactness is followed row by row.
    """
    problem = case.problem
    sweeps = int(case.histories.removeprefix("sweeps:")) if case.histories.startswith("sweeps:") else 0
    if sweeps >= 2 * problem.num_layers - (1 if problem.parameters_of(problem.model.encoder) else 2):
        return True
    if sweeps == 0 or case.design.support_size > MAX_SUPPORT:
        return False
    nodes = case.graph.num_nodes
    known = {f"H{layer}": torch.zeros(nodes, dtype=torch.bool) for layer in range(1, problem.num_layers + 1)}
    known |= {f"V{layer}": zero for layer, zero in _zero_auxiliary(case).items()}
    for batch in sweep_batches(case) * sweeps:
        for name, exact in _exact_rows(case, known, batch.nodes).items():
            if name in known:
                known[name] = torch.where(_members(batch.nodes, nodes), exact, known[name])
    zeros = _zero_auxiliary(case)  # where V^l is zero, a row of H^l enters no gradient
    return all(
        bool((exact | zeros[int(name[1:])])[batch.nodes].all())
        for batch, _ in case.design.enumerate()
        for name, exact in _exact_rows(case, known, batch.nodes).items()
    )


def _exact_rows(case: Case, known: dict[str, Tensor], batch: Tensor) -> dict[str, Tensor]:
    """Return which batch rows of H^l and V^l are exact if `known` tells which rows of the histories are.

    A row is exact if everything it is computed from is: H^l from sources, V^l from destinations and its own H^l.
    """
    source, destination = case.graph.edge_index.cpu()
    problem, layers, nodes = case.problem, case.problem.num_layers, case.graph.num_nodes
    inside = _members(batch, nodes)
    rows: dict[str, Tensor] = {"H0": torch.ones(nodes, dtype=torch.bool)}
    for layer in range(1, layers + 1):
        below = rows[f"H{layer - 1}"]
        spoilt = _members(destination[~below[source]], nodes)
        rows[f"H{layer}"] = torch.where(inside, below & ~spoilt, known[f"H{layer}"])
    zeros = _zero_auxiliary(case)
    rows[f"V{layers}"] = rows[f"H{layers}"] | zeros[layers]  # from the loss, in the halo too
    for layer in range(layers - 1, -1 if problem.parameters_of(problem.model.encoder) else 0, -1):
        above = rows[f"V{layer + 1}"]
        spoilt = _members(source[~above[destination]], nodes)
        fresh = zeros[layer] | (above & ~spoilt & rows[f"H{layer}"])
        rows[f"V{layer}"] = torch.where(inside, fresh, known[f"V{layer}"]) if layer else fresh
    return rows


def _zero_auxiliary(case: Case) -> dict[int, Tensor]:
    """Return where V^l is zero, as no labelled node is within L - l messages: histories of zeros are exact there."""
    source, destination = case.graph.edge_index.cpu()
    zero = ~case.graph.train_mask.cpu()
    out = {case.problem.num_layers: zero}
    for layer in range(case.problem.num_layers - 1, -1, -1):
        zero = zero & ~_members(source[~zero[destination]], case.graph.num_nodes)
        out[layer] = zero
    return out


def _members(ids: Tensor, nodes: int) -> Tensor:
    out = torch.zeros(nodes, dtype=torch.bool)
    out[ids.cpu()] = True
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
    return case.histories == "exact" or _warm(case), f"histories: {case.histories}"


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
