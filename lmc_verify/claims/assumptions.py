"""Assumptions that several claims share, each with the check that decides it on a case."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from lmc_verify.bounds.lipschitz import is_smooth
from lmc_verify.cases import Case, prepared_state, readable_count
from lmc_verify.claims.claim import Assumption
from lmc_verify.claims.theory import halo_view
from lmc_verify.estimators import Blend, Drop, OtherWrite, properties_of
from lmc_verify.models import active_dropout
from lmc_verify.objective import gradient_norm, same_bits
from lmc_verify.objective.losses import loss_lower_bound
from lmc_verify.seeds import generator

__all__ = [
    "AGGREGATE_LINEAR",
    "BETA_ZERO",
    "BOUNDED",
    "BOUNDED_BELOW",
    "CLUSTERS",
    "CUT_EDGES",
    "FINITE_SUPPORT",
    "HALO_SIGNAL",
    "HISTORIES_NAMED",
    "INCLUSION_WEIGHTS",
    "MAX_SUPPORT",
    "NO_DROPOUT",
    "NO_SAMPLING",
    "SMOOTH",
    "UNIFORM",
    "enumerable",
    "halo_dropped_backward",
    "inclusion_matches",
]

MAX_SUPPORT = 20_000
"""Largest design that the exact tier enumerates."""

UNIFORM_ROUNDING = 1e-12
"""Inclusion probabilities that differ by at most this, relative, are equal."""

INCLUSION_ROUNDING = 1e-9
"""Largest distance of ``E[1{j in B} / pi_j]`` from 1 that counts as none."""

CONDITIONED = "batches are drawn given what the epoch has seen"
"""Why a design that is conditioned on a part of its epoch is not the one that weights are for."""


def enumerable(size: float, what: str = "batches") -> tuple[bool, str]:
    """Whether so many of something can be enumerated, and the numbers that decide it."""
    if size == math.inf:
        return False, f"which {what} there are is not known, so they cannot be enumerated"
    return size <= MAX_SUPPORT, f"{readable_count(size)} {what}, at most {MAX_SUPPORT:,} can be enumerated"


def inclusion_matches(case: Case) -> tuple[bool, str]:
    """Whether the batches' inclusion probabilities are those of the design, by enumeration, and how far they are off.

    It holds if ``E[1{j in B} / pi_j] = 1`` at every node j.
    """
    total = torch.zeros(case.graph.num_nodes, dtype=torch.float64)
    for batch, probability in case.design.enumerate():
        total[batch.nodes] += probability / batch.inclusion
    worst = float((total - 1).abs().max())
    if worst < INCLUSION_ROUNDING:
        return True, "E[1{j in B} / pi_j] = 1 at every node" + (f", to within {worst:.1e}" if worst else "")
    return False, f"E[1{{j in B}} / pi_j] is off 1 by up to {worst:.2g}, at most {INCLUSION_ROUNDING:.0e} is rounding"


def _no_dropout(case: Case) -> tuple[bool | None, str]:
    part = active_dropout(case.problem.model)
    return part is None, "" if part is None else f"dropout is active in {part}; call model.eval()"


def _finite_support(case: Case) -> tuple[bool | None, str]:
    return enumerable(case.design.support_size)


def _aggregate_linear(case: Case) -> tuple[bool | None, str]:
    model = case.problem.model
    bad = [str(index) for index in range(1, model.num_layers + 1) if not model.layer(index).aggregate_linear]
    return not bad, f"the Jacobian of layer {', '.join(bad)} depends on the row's own aggregate" if bad else ""


def _beta_zero(case: Case) -> tuple[bool | None, str]:
    found = properties_of(case.estimator)
    if found.policies is None:
        return None, "the estimator has no halo policies" if found.known else "its halo policies are not known"
    policies = (found.policies.forward, found.policies.backward)
    fresh = any(isinstance(policy, Blend) and policy.uses_fresh for policy in policies)
    detail = "fresh, incomplete values are mixed into the halo" if fresh else ""
    return found.unless_unknown(not fresh), detail


def _in_halo(finding: str, otherwise: str) -> Callable[[Case], tuple[bool | None, str]]:
    """Return a check of one finding of `HaloView` over the whole design, with the reason given where it fails."""

    def check(case: Case) -> tuple[bool | None, str]:
        few, count = enumerable(case.design.support_size)
        if not few:
            return None, count
        view = halo_view(case, (batch for batch, _ in case.design.enumerate()))
        found = bool(getattr(view, finding))
        return found, "" if found else otherwise

    return check


def _clusters(case: Case) -> tuple[bool | None, str]:
    design = type(case.design).__name__
    return (
        case.partition is not None,
        f"design: {design}" if case.partition is not None else f"{design} draws no clusters",
    )


def _inclusion_weights(case: Case) -> tuple[bool | None, str]:
    if case.conditioned:
        return False, CONDITIONED
    if properties_of(case.estimator).weighting is None:
        return None, "how the estimator weights batch rows is unknown"
    holds = case.weighting == "inclusion"
    return holds, f"loss weighting: {case.weighting}" if holds else f"the loss is weighted by {case.weighting}"


NO_DROPOUT = Assumption("no-dropout", "no unit is dropped", _no_dropout)

FINITE_SUPPORT = Assumption("finite-support", "the batch design can be enumerated", _finite_support)

AGGREGATE_LINEAR = Assumption(
    "aggregate-linear",
    "no layer's Jacobian with respect to its sources depends on the destination's aggregate",
    _aggregate_linear,
)

BETA_ZERO = Assumption("beta-zero", "halo values come from the histories alone (beta = 0)", _beta_zero)

CUT_EDGES = Assumption("cut-edges", "some edges leave a batch", _in_halo("exists", "no edge leaves a batch"))

HALO_SIGNAL = Assumption(
    "halo-signal",
    "every trained part below the last layer would lose something if the halo sent nothing back",
    _in_halo("carries_signal", "the halo sends nothing back to some trained part below the last layer"),
)

CLUSTERS = Assumption("clusters", "the design draws clusters, so that a sweep visits every node once", _clusters)

INCLUSION_WEIGHTS = Assumption(
    "inclusion-weights",
    "batch rows are weighted by inverse inclusion probabilities of the distribution they are drawn from",
    _inclusion_weights,
)


def _uniform(case: Case) -> tuple[bool | None, str]:
    if case.conditioned:
        return False, CONDITIONED
    inclusion = case.design.inclusion_probabilities()
    if bool((inclusion - inclusion[0]).abs().max() <= UNIFORM_ROUNDING * inclusion[0]):
        return True, f"inclusion probability {float(inclusion[0]):.3g} at every node"
    lowest, highest = float(inclusion.min()), float(inclusion.max())
    return False, f"inclusion probabilities of nodes lie between {lowest:.3g} and {highest:.3g}"


UNIFORM = Assumption(
    "uniform-batches", "(A1) batches are drawn independently, and every node is as likely to be in one", _uniform
)


def _no_sampling(case: Case) -> tuple[bool | None, str]:
    random = properties_of(case.estimator).samples
    return not random, f"{case.estimator.name} adds randomness of its own to the batches" if random else ""


NO_SAMPLING = Assumption("no-sampling", "the estimator adds no randomness of its own to the batches", _no_sampling)


def halo_dropped_backward(case: Case) -> bool | None:
    """Whether the estimator drops halo messages in the backward pass; None if it states so and need not do it."""
    found = properties_of(case.estimator)
    return found.unless_unknown(found.policies is not None and isinstance(found.policies.backward, Drop))


def _histories_named(case: Case) -> tuple[bool | None, str]:
    """Look at one estimate: which tensors with a row for each node does it write that are no table of the state?"""
    if properties_of(case.estimator).known:
        return True, ""
    if active_dropout(case.problem.model) is not None:
        return None, "not checked while dropout is active"
    state = prepared_state(case, "exact")
    if not state.keeps_other:
        return True, ""
    made = case.estimate(state, case.design.draw(generator(case.seed, "histories named")))
    before, written = state.other_tensors(), [item for item in made.writes if isinstance(item, OtherWrite)]
    unnamed = [
        path
        for item in written
        for path, value in item.tensors.items()
        if value.is_floating_point()
        and case.graph.num_nodes in value.shape
        and not (path in before and same_bits(value, before[path]))
    ]
    if not unnamed:
        return True, ""
    return False, (
        f"{case.estimator.name} writes into {', '.join(unnamed)}, which cannot be given exact values; name it as a "
        "history, state={('embedding', l): ...}"
    )


HISTORIES_NAMED = Assumption(
    "histories-named", "every history that an estimate writes can be given exact values", _histories_named
)


def _smooth(case: Case) -> tuple[bool | None, str]:
    found = is_smooth(case.problem)
    return found.smooth, "" if found.smooth else f"the model has kinks: {', '.join(found.kinks)}"


def _bounded(case: Case) -> tuple[bool | None, str]:
    exact = case.exact
    largest = max(float(value.norm()) for value in (*exact.embeddings, *exact.auxiliary.values()))
    gradient = gradient_norm(exact.gradient)
    norms = f"norms of H and V at most {largest:.3g}, of the gradient {gradient:.3g}"
    if math.isfinite(largest) and math.isfinite(gradient):
        return None, f"at the start: {norms}"
    return False, f"a norm is not finite at the start: {norms}"


def _bounded_below(case: Case) -> tuple[bool | None, str]:
    loss = case.problem.loss
    bound = loss_lower_bound(loss)
    if bound is None:
        return None, f"what is known of the loss {loss!r} does not say so"
    return True, f"the loss {loss!r} is at least {bound:g} at every node"


BOUNDED_BELOW = Assumption("bounded-below", "the objective is bounded below (L* > -inf)", _bounded_below)

SMOOTH = Assumption("smooth", "(A2) layers, backward maps and their derivatives are Lipschitz", _smooth)

BOUNDED = Assumption("bounded", "(A3) the norms of H, V, histories, gradients and estimates are bounded", _bounded)
