"""What an estimator is, asked in one place: what it states about itself, and whether its methods bear that out.

An estimator *states* what it is by its attributes (halo policies, beta, loss weighting) and by the class of the package
that it derives from. Subclasses inherit what is stated, and claims are checked against it. They do not inherit trust:
theory and bounds are about particular methods, so an estimator is *known* only while every one of these is the
package's own, in its class and on the instance. Of any other estimator what is not stated is unknown (None).
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import cache, cached_property
from typing import Any, cast

from torch import Tensor

from lmc_verify.errors import InvalidInputError
from lmc_verify.estimators.base import Estimator, Sampling
from lmc_verify.estimators.compensated.members import Compensated
from lmc_verify.estimators.compensated.policies import Blend, Cut, Drop, Held, Momentum, Policies
from lmc_verify.estimators.compensated.step_momentum import held_embeddings, read_embeddings
from lmc_verify.estimators.full_batch import FullBatch
from lmc_verify.estimators.samplers.importance import ImportanceVRGCN
from lmc_verify.estimators.samplers.layerwise import ASGCN, LADIES, FastGCN
from lmc_verify.estimators.samplers.mvs import MVS
from lmc_verify.estimators.samplers.neighbour import LABOR, VRGCN, NeighbourSampling
from lmc_verify.estimators.samplers.published import FastGCNPublished, LADIESPublished
from lmc_verify.estimators.samplers.saint import GraphSAINTEdge, GraphSAINTNode, GraphSAINTWalk
from lmc_verify.estimators.samplers.sampled import Sampled
from lmc_verify.estimators.shadow import Shadow
from lmc_verify.estimators.top import TOP, MessageInvariance
from lmc_verify.estimators.top_krylov import TOPKrylov
from lmc_verify.estimators.weighting import FORMER_NAME, stated_weighting
from lmc_verify.objective import ExactPass, Problem

__all__ = [
    "EstimatorProperties",
    "contract_flaw",
    "declared_claims",
    "exact_histories",
    "label_of",
    "properties_of",
    "replaced_on_instance",
    "settings_of",
]

_SAMPLERS = (
    NeighbourSampling,
    VRGCN,
    LABOR,
    FastGCN,
    LADIES,
    ASGCN,
    FastGCNPublished,
    LADIESPublished,
    ImportanceVRGCN,
    GraphSAINTNode,
    GraphSAINTEdge,
    GraphSAINTWalk,
)

# Members of the compensated family are meant to state policies of their own; the engine follows them.
_OWN: Mapping[type, frozenset[str]] = {Compensated: frozenset({"policies"})} | dict.fromkeys(
    (FullBatch, Shadow, TOP, TOPKrylov, MVS, *_SAMPLERS), frozenset()
)
"""The package's classes that theory is about, each with what a subclass may replace besides settings and the name."""


@dataclass(frozen=True)
class EstimatorProperties:
    """What an estimator states, and whether it is known to be what it states.

    Attributes:
        known: every method that theory, bounds and claimed distributions rest on is the package's own; otherwise
            nothing but measurement says what the estimates are.
        exact: it derives from `FullBatch`, whose every estimate is the exact gradient.
        policies: the halo policies that it states; None where it states none.
        sampler: the estimator, if it states by way of `Sampled` which messages it samples; else None.
        labor: the estimator, if it samples from the distributions of a `LABOR`; else None.
        own_objective: the estimator, if it has a `Shadow`'s objective of its own; else None.
        message_invariance: the estimator, if it fits the halo on the batch by message invariance; else None.
        minimal_variance: the estimator, if it draws nodes and reads histories as an `MVS` does; else None.
        samples: it has randomness of its own, which its batches carry, see `Sampling`.
        adaptive: it samples from a distribution that depends on the state or the parameters.
        ignores_batch: its estimates do not depend on the batch; None where that is unknown.
        holds_exact: its state holds exact values, which `init` computes; None where that is unknown.
        weighting: its loss weighting, see `lmc_verify.estimators.LOSS_WEIGHTINGS`; None where that is unknown.
        beta: weight of fresh values at the halo, one number or one per node; None where it states none.
        post_activation: it states that its histories of H hold what the layer above reads, behind the activation.
    """

    known: bool
    exact: bool
    policies: Policies | None
    sampler: Sampled | None
    labor: LABOR | None
    own_objective: Shadow | None
    message_invariance: MessageInvariance | None
    minimal_variance: MVS | None
    samples: bool
    adaptive: bool
    ignores_batch: bool | None
    holds_exact: bool | None
    weighting: str | None
    beta: float | tuple[float, ...] | None
    post_activation: bool

    @property
    def passes(self) -> Policies | None:
        """The halo policies by which its gradients are made; None where theory has none for it.

        Those that it states; an `MVS` states none, and its passes are GAS's.
        """
        return self.policies if self.minimal_variance is None else Policies(Blend(), Drop())

    @property
    def starts_exact(self) -> bool:
        """Whether a checkpoint at the start makes its histories exact, whatever they held before."""
        return self.minimal_variance is not None

    @property
    def draws_nodes(self) -> bool:
        """Whether it draws the nodes of a batch itself, independently; a draw may have none."""
        return self.minimal_variance is not None

    @property
    def compared(self) -> Sampled | MVS | None:
        """The estimator, if it is of a kind whose authors compare it with a sampler of the same budget; else None."""
        return self.sampler or self.minimal_variance

    def unless_unknown(self, holds: bool) -> bool | None:
        """Return whether something holds that follows from what is stated, None where it holds only if it is known."""
        return holds if self.known or not holds else None


def properties_of(estimator: Estimator) -> EstimatorProperties:
    """Return what an estimator is, by what it states and by the methods that it runs."""
    stated = getattr(estimator, "policies", None)
    policies = stated if isinstance(stated, Policies) else None
    known = _is_known(estimator, policies)
    samples = isinstance(estimator, Sampling)
    labor = isinstance(estimator, LABOR) and _runs(estimator, LABOR, "sampling")
    unstated = False if known else None
    return EstimatorProperties(
        known=known,
        exact=isinstance(estimator, FullBatch),
        policies=policies,
        sampler=estimator if isinstance(estimator, Sampled) else None,
        labor=cast(LABOR, estimator) if labor else None,
        own_objective=estimator if isinstance(estimator, Shadow) else None,
        message_invariance=estimator if isinstance(estimator, MessageInvariance) else None,
        minimal_variance=estimator if isinstance(estimator, MVS) else None,
        samples=samples,
        adaptive=samples and bool(getattr(estimator, "adaptive", False)),
        ignores_batch=getattr(estimator, "ignores_batch", unstated),
        holds_exact=unstated if policies is None else isinstance(policies.forward, Held),
        # The full batch weights no rows: its mean is the exact gradient, as with inverse inclusion probabilities.
        weighting=stated_weighting(estimator) or ("inclusion" if known else None),
        beta=getattr(estimator, "beta", None),
        post_activation=getattr(estimator, "post_activation", False) is True,
    )


def exact_histories(estimator: Estimator, problem: Problem, exact: ExactPass | Sequence[Tensor]) -> dict[int, Tensor]:
    """Return what an estimator's histories of H hold where they are exact, by layer 0 ... L, each [n, width].

    ``H^l`` itself; for one that states feature momentum, or histories behind the activation, what layer l + 1 reads.

    Args:
        estimator: the estimator.
        problem: the problem.
        exact: its exact pass, or the exact embeddings ``H^0 ... H^L`` alone.
    """
    rows = exact.embeddings if isinstance(exact, ExactPass) else exact
    found, embeddings = properties_of(estimator), dict(enumerate(rows))
    if found.post_activation:
        return embeddings | read_embeddings(problem, embeddings)
    return held_embeddings(problem, found.policies, embeddings)


def _is_known(estimator: Estimator, policies: Policies | None) -> bool:
    """Whether an estimator does all that its nearest class in `_OWN` does by that class's own methods."""
    own = next((kind for kind in type(estimator).__mro__ if kind in _OWN), None)
    if own is None or not _runs(estimator, own, *_relied_on(own)):
        return False
    if own is not Compensated:
        return True
    halo = () if policies is None else (policies.forward, policies.backward)
    return type(policies) is Policies and all(type(policy) in (Blend, Momentum, Held, Cut, Drop) for policy in halo)


def _runs(estimator: Estimator, own: type, *names: str) -> bool:
    """Whether attributes are those of a class, which neither a subclass nor the instance has replaced."""
    return all(inspect.getattr_static(estimator, name) is inspect.getattr_static(own, name) for name in names)


@cache
def _relied_on(own: type) -> tuple[str, ...]:
    """Return the attributes of a class of `_OWN` that decide what it does: all but its name and its settings."""
    settings = {item.name for item in fields(cast(Any, own))}
    left_out = settings | _OWN[own] | {"name", FORMER_NAME, "_abc_impl"}
    return ("__getattribute__", *(name for name in dir(own) if not name.startswith("__") and name not in left_out))


def replaced_on_instance(estimator: Estimator) -> tuple[str, ...]:
    """Return the attributes of its class that an instance replaces and a copy made of its settings would lose."""
    kind, own = type(estimator), getattr(estimator, "__dict__", {})
    settings = set(settings_of(estimator) or ())
    return tuple(
        name
        for name in own
        if name not in settings
        and hasattr(kind, name)
        and not isinstance(inspect.getattr_static(kind, name), cached_property)
    )


def settings_of(estimator: Estimator) -> dict[str, Any] | None:
    """Return an estimator's settings by name; None if it is no data class."""
    if not is_dataclass(cast(object, estimator)):
        return None
    return {item.name: getattr(estimator, item.name) for item in fields(cast(Any, estimator))}


def label_of(estimator: object) -> str:
    """Return an estimator's name, or the name of its class where it has none."""
    return str(getattr(estimator, "name", type(estimator).__name__))


def contract_flaw(candidate: object) -> str:
    """Return what an object lacks to be an `Estimator`; empty if nothing."""
    if not isinstance(candidate, Estimator):
        return "it lacks name, init or estimate"
    name: object = candidate.name
    return "" if isinstance(name, str) and name else f"its name is {name!r}, not a text"


def declared_claims(estimator: object) -> Mapping[str, str]:
    """Return the outcomes that an estimator, or its class, declares by claim id in ``claims``; empty if it has none.

    Raises:
        InvalidInputError: ``claims`` is no mapping.
    """
    claims = getattr(estimator, "claims", None) or {}
    if not isinstance(claims, Mapping):
        raise InvalidInputError(
            f"{label_of(estimator)!r} declares claims as a {type(claims).__name__}; give a mapping from claim ids to "
            "outcomes"
        )
    return claims
