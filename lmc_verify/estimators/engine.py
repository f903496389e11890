"""The engine of the compensated family: one estimate from two halo policies."""

from __future__ import annotations

from lmc_verify.batches import Batch
from lmc_verify.errors import InvalidInputError
from lmc_verify.estimators.autogradstep import AutogradStep
from lmc_verify.estimators.base import Estimate, check_batch
from lmc_verify.estimators.closedstep import ClosedStep
from lmc_verify.estimators.history import AUXILIARY, EMBEDDING, History, Refresh, Write
from lmc_verify.estimators.policies import Held, Policies
from lmc_verify.estimators.step import Step
from lmc_verify.exact import exact_pass, refuse_dropout
from lmc_verify.models.affine import affine_layers
from lmc_verify.problem import Problem

__all__ = ["estimate_compensated"]


def estimate_compensated(
    problem: Problem, state: History, batch: Batch, policies: Policies, normaliser: str
) -> Estimate:
    """Estimate the gradient from one batch with the given halo policies.

    Args:
        problem: the problem; nothing in it is changed.
        state: histories to read; nothing in it is changed.
        batch: the batch, ids of the problem's graph.
        policies: what to put at the halo.
        normaliser: see `lmc_verify.NORMALISERS`.

    Raises:
        InvalidInputError: the batch does not belong to the graph, the state lacks a history that is needed, or dropout
            is active.
    """
    check_batch(problem, batch)
    # Other dropout would draw from torch's global generator, and the estimate would not be pure.
    refuse_dropout(problem, allow_keyed=True)
    writes: list[Write] = []
    if isinstance(policies.forward, Held) and not state.is_exact_for(problem):
        state = History.from_exact(problem, exact_pass(problem))
        writes.append(Refresh(state))
    _check_state(problem, state, policies)
    layers = affine_layers(problem.model)
    step: Step
    if layers is None:
        step = AutogradStep(problem, state, batch, policies, normaliser)
    else:
        step = ClosedStep(problem, state, batch, policies, normaliser, layers)
    step.forward()
    step.backward()
    estimate = step.result(*writes)
    problem.graph.cache.resize(batch)
    return estimate


def _check_state(problem: Problem, state: History, policies: Policies) -> None:
    needed = {EMBEDDING: policies.writes_embeddings, AUXILIARY: policies.writes_auxiliary}
    for kind, wanted in needed.items():
        table = state.table(kind)
        for layer in range(1, problem.num_layers + 1) if wanted else ():
            shape = (problem.graph.num_nodes, problem.widths[layer])
            if layer not in table or table[layer].shape != shape:
                found = tuple(table[layer].shape) if layer in table else "none"
                raise InvalidInputError(
                    f"the state has no {kind} history {list(shape)} for layer {layer} (found: {found}); "
                    "make it with this estimator's init(problem)"
                )
            if table[layer].dtype != problem.graph.dtype:
                raise InvalidInputError(
                    f"the state's histories are {table[layer].dtype}, the problem is {problem.graph.dtype}; "
                    "make the state with this estimator's init(problem)"
                )
