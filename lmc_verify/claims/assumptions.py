"""Assumptions that several claims share, each with the check that decides it on a case."""

from __future__ import annotations

import math
from collections.abc import Callable

from lmc_verify.bounds.lipschitz import is_smooth
from lmc_verify.cases import Case, readable_count
from lmc_verify.claims.claim import Assumption
from lmc_verify.claims.theory import halo_view
from lmc_verify.estimators import Blend, Drop, properties_of
from lmc_verify.models import active_dropout
from lmc_verify.objective import gradient_norm

__all__ = [
    "AGGREGATE_LINEAR",
    "BETA_ZERO",
    "BOUNDED",
    "CLUSTERS",
    "CUT_EDGES",
    "FINITE_SUPPORT",
    "HALO_SIGNAL",
    "INCLUSION_WEIGHTS",
    "MAX_SUPPORT",
    "NO_DROPOUT",
    "NO_SAMPLING",
    "SMOOTH",
    "UNIFORM",
    "halo_dropped_backward",
]

MAX_SUPPORT = 20_000
"""Largest design that the exact tier enumerates."""


def _no_dropout(case: Case) -> tuple[bool | None, str]:
    part = active_dropout(case.problem.model)
    return part is None, "" if part is None else f"dropout is active in {part}; call model.eval()"


def _finite_support(case: Case) -> tuple[bool | None, str]:
    size = case.design.support_size
    return size <= MAX_SUPPORT, f"{readable_count(size)} batches, at most {MAX_SUPPORT:,} are enumerated"


def _aggregate_linear(case: Case) -> tuple[bool | None, str]:
    model = case.problem.model
    bad = [str(index) for index in range(1, model.num_layers + 1) if not model.layer(index).aggregate_linear]
    return not bad, "" if not bad else f"layer {', '.join(bad)}: the Jacobian depends on the row's own aggregate"


def _beta_zero(case: Case) -> tuple[bool | None, str]:
    found = properties_of(case.estimator)
    if found.policies is None:
        return None, "the estimator has no halo policies"
    policies = (found.policies.forward, found.policies.backward)
    return found.unless_unknown(not any(isinstance(policy, Blend) and policy.uses_fresh for policy in policies)), ""


def _in_halo(finding: str) -> Callable[[Case], tuple[bool | None, str]]:
    """Return a check of one finding of `HaloView` over the whole design."""

    def check(case: Case) -> tuple[bool | None, str]:
        if case.design.support_size > MAX_SUPPORT:
            return None, f"{readable_count(case.design.support_size)} batches"
        view = halo_view(case, (batch for batch, _ in case.design.enumerate()))
        return bool(getattr(view, finding)), ""

    return check


def _clusters(case: Case) -> tuple[bool | None, str]:
    return case.partition is not None, f"design: {type(case.design).__name__}"


def _inclusion_weights(case: Case) -> tuple[bool | None, str]:
    if properties_of(case.estimator).normaliser is None and not case.conditioned:
        return None, "how the estimator weights batch rows is unknown"
    return case.normaliser == "inclusion" and not case.conditioned, f"normaliser: {case.normaliser}"


NO_DROPOUT = Assumption("no-dropout", "no unit is dropped", _no_dropout)

FINITE_SUPPORT = Assumption("finite-support", "the batch design can be enumerated", _finite_support)

AGGREGATE_LINEAR = Assumption(
    "aggregate-linear",
    "no layer's Jacobian with respect to its sources depends on the destination's aggregate",
    _aggregate_linear,
)

BETA_ZERO = Assumption("beta-zero", "halo values come from the histories alone (beta = 0)", _beta_zero)

CUT_EDGES = Assumption("cut-edges", "some edges leave a batch", _in_halo("exists"))

HALO_SIGNAL = Assumption(
    "halo-signal",
    "every trained part below the last layer would lose something if the halo sent nothing back",
    _in_halo("carries_signal"),
)

CLUSTERS = Assumption("clusters", "the design draws clusters, so that a sweep visits every node once", _clusters)

INCLUSION_WEIGHTS = Assumption(
    "inclusion-weights",
    "batch rows are weighted by inverse inclusion probabilities of the law they are drawn from",
    _inclusion_weights,
)


def _uniform(case: Case) -> tuple[bool | None, str]:
    inclusion = case.design.inclusion_probabilities()
    uniform = bool((inclusion - inclusion[0]).abs().max() <= 1e-12 * inclusion[0])
    detail = f"inclusion probability {float(inclusion[0]):.3g} at every node" if uniform else "nodes differ"
    return uniform and not case.conditioned, detail + (", given what the epoch has seen" if case.conditioned else "")


UNIFORM = Assumption(
    "uniform-batches", "(A1) batches are drawn independently, and every node is as likely to be in one", _uniform
)

NO_SAMPLING = Assumption(
    "no-sampling",
    "the estimator adds no randomness of its own to the batches",
    lambda case: (not properties_of(case.estimator).samples, case.estimator.name),
)


def halo_dropped_backward(case: Case) -> bool | None:
    """Whether the estimator drops halo messages in the backward pass; None if it states so and need not do it."""
    found = properties_of(case.estimator)
    return found.unless_unknown(found.policies is not None and isinstance(found.policies.backward, Drop))


def _smooth(case: Case) -> tuple[bool | None, str]:
    found = is_smooth(case.problem)
    return found.smooth, "" if found.smooth else f"kinks: {', '.join(found.kinks)}"


def _bounded(case: Case) -> tuple[bool | None, str]:
    exact = case.exact
    largest = max(float(value.norm()) for value in (*exact.embeddings, *exact.auxiliary.values()))
    gradient = gradient_norm(exact.gradient)
    finite = math.isfinite(largest) and math.isfinite(gradient)
    return (
        None if finite else False,
        f"at the start: norms of H and V at most {largest:.3g}, of the gradient {gradient:.3g}",
    )


SMOOTH = Assumption("smooth", "(A2) layers, backward maps and their derivatives are Lipschitz", _smooth)

BOUNDED = Assumption("bounded", "(A3) the norms of H, V, histories, gradients and estimates are bounded", _bounded)
