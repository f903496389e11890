"""Steps of the compensated estimators at fixed parameters, beta above zero included: gradients and history writes."""

from __future__ import annotations

from functools import partial
from typing import Any

from lmc_verify.controls.reference.document import Quantities, flat, inputs_of, problem_of, weighted_batch
from lmc_verify.estimators import make_estimator

__all__ = ["quantities"]


def quantities() -> Quantities:
    """Return what computes each quantity."""
    return {name: partial(_run, **given) for name, given in inputs_of("runs").items()}


def _run(model: str, estimator: str, settings: dict[str, Any], batches: list[list[int]]) -> dict[str, Any]:
    problem = problem_of(model)
    if isinstance(settings.get("beta"), list):
        settings = {**settings, "beta": tuple(settings["beta"])}
    chosen = make_estimator(estimator, **settings)
    state, losses, costs = chosen.init(problem), [], []
    for nodes in batches:
        estimate = chosen.estimate(problem, state, weighted_batch(nodes))
        state.apply(estimate.writes)
        losses.append(estimate.loss)
        cost = estimate.cost
        assert cost is not None  # the package's own state theirs
        costs.append(
            [
                cost.nodes,
                cost.messages_forward,
                cost.messages_forward_needed,
                cost.messages_backward,
                cost.messages_backward_needed,
            ]
        )
    found: dict[str, Any] = {"losses": losses, "cost": costs, "gradient": flat(estimate.gradient)}
    if state.exact_for is None:
        found |= {f"H{layer}": table for layer, table in state.embeddings.items()}
        found |= {f"V{layer}": table for layer, table in state.auxiliary.items()}
    return found
