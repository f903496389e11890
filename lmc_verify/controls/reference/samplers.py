"""The mean estimate of samplers over all of their samples, on a graph of four nodes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lmc_verify.controls.reference.document import Quantities, flat, inputs_of, problem_of
from lmc_verify.estimators import MVS, TOP, Estimate, History, Refresh, Shadow, batch_distribution, make_estimator
from lmc_verify.graphs import Batch, OneBatch

__all__ = ["quantities"]


def quantities() -> Quantities:
    """Return what computes each quantity."""
    found: dict[str, Callable[[], Any]] = {
        name: partial(_mean, **given) for name, given in inputs_of("samplers").items()
    }
    found["shadow"] = partial(_whole, depth=1)
    found["shadow-whole"] = partial(_whole, depth=2, renormalise=False)
    found["shadow-objective"] = _objective
    found["mvs-refreshes"] = _refreshes
    found["top-krylov-basis"] = _basis
    found["top-fit"] = _fit
    return found


def _loss_and_gradient(estimate: Estimate) -> Tensor:
    gradient = flat(estimate.gradient)
    return torch.cat([gradient.new_tensor([estimate.loss]), gradient])


def _mean(
    estimator: str, settings: dict[str, Any], nodes: list[int], history: list[list[float]] | None = None
) -> dict[str, Any]:
    problem, chosen = problem_of("gcn-small"), make_estimator(estimator, **settings)
    state = chosen.init(problem)
    if history is not None:
        state.embeddings[1].copy_(torch.tensor(history, dtype=torch.float64))
    batch = Batch.of(nodes, inputs_of("sampled-batch")["inclusion"])
    design = batch_distribution(chosen, problem, state, OneBatch(batch, problem.graph.num_nodes))
    total, mass = torch.zeros((), dtype=torch.float64), 0.0
    for sample, probability in design.enumerate():
        total = total + probability * _loss_and_gradient(chosen.estimate(problem, state, sample))
        mass += probability
    return {"mass": mass, "mean": total}


def _whole(**settings: Any) -> Tensor:
    problem, chosen = problem_of("gcn"), make_estimator("shadow", **settings)
    everyone = Batch.of(torch.arange(problem.graph.num_nodes))
    return _loss_and_gradient(chosen.estimate(problem, chosen.init(problem), everyone))


def _objective() -> Tensor:
    loss, gradient = Shadow(depth=1).objective(problem_of("gcn"))
    return torch.cat([torch.tensor([loss], dtype=torch.float64), flat(gradient)])


def _refreshes() -> list[bool]:
    """Return which of some steps make a checkpoint."""
    problem, chosen = problem_of("gcn-small"), MVS(size=2, refresh=2)
    state, found = chosen.init(problem), []
    everyone = OneBatch(Batch.of(torch.arange(problem.graph.num_nodes)), problem.graph.num_nodes)
    for _ in range(7):
        batch = next(batch for batch, _ in chosen.sampling(problem, state, everyone).enumerate())
        writes = chosen.estimate(problem, state, batch).writes
        state.apply(writes)
        found.append(any(isinstance(write, Refresh) for write in writes))
    return found


def _fit() -> Tensor:
    """Return the combination of the batch's rows that stands for the halo, of a basis with a small singular value."""
    given, problem = inputs_of("fit"), problem_of("gcn-small")
    state = History(vectors={"basis": torch.tensor(given["basis"], dtype=torch.float64)})
    return TOP(tolerance=given["tolerance"]).invariance(problem, state, torch.tensor(given["batch"])).coefficients


def _basis() -> Tensor:
    problem = problem_of("gcn")
    return make_estimator("top-krylov").init(problem).vectors["basis"]
