"""Four steps of every compensated estimator from zero histories, at fixed parameters, with unequal weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from common import oracles
from common.numbers.dense import Dense, tensor
from common.numbers.steps import Histories, Step, degree_ratio, exact, halo_of, mask, step
from common.oracles import Score

PER_NODE = [0.3, 0.9, 0.0, 1.0, 0.5, 0.2, 0.7, 0.4, 0.6]
SCORES: dict[str, Score] = {
    "linear": "x",
    "quadratic": "x^2",
    "concave": "2x-x^2",
    "constant": "1",
    "sine": "sin",
    "sin": "unclipped sin",
}

RUNS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "lmc": ("gcn", "lmc", {"beta": 0.4}),
    "lmc-beta-0": ("gcn", "lmc", {"weighting": "node-count"}),
    "lmc-post": ("gcn-post", "lmc", {"beta": PER_NODE, "score": "concave", "weighting": "batch-mean"}),
    "lmc-sage": ("sage", "lmc", {"beta": 0.7, "score": "quadratic"}),
    "lmc-rich": ("gcn-rich", "lmc", {"beta": 0.3, "score": "constant", "whole_when_complete": True}),
    "lmc-residual": ("gcn-residual", "lmc", {"beta": 0.6}),
    "lmc-sage-residual": ("sage-residual", "lmc", {"beta": 0.2, "score": "constant"}),
    "lmc-gin": ("gin", "lmc", {"beta": 0.9, "score": "sine"}),
    "lmc-gat": ("gat", "lmc", {"beta": 0.5}),
    "lmc-gcnii": ("gcnii", "lmc", {"beta": 0.5, "score": "concave"}),
    "lmc-appnp": ("appnp", "lmc", {"beta": 0.3}),
    "lmc-tanh": ("gcn-tanh", "lmc", {"beta": 1.0, "score": "constant"}),
    "lmc-code": ("gcn", "lmc", {"beta": 0.8, "score": "sin", "count_self_loop": True}),
    "lmc-unlabelled": ("gcn", "lmc", {"beta": 0.4, "weighting": "batch-mean"}),
    "lmc-forward-only": ("gcn", "lmc-forward-only", {"beta": 0.4}),
    "lmc-backward-only": ("gcn", "lmc-backward-only", {"beta": 0.4}),
    "gas": ("gcn", "gas", {}),
    "gas-rich": ("sage-rich", "gas", {}),
    "gas-concat": ("gcn-concat", "gas", {}),
    "gas-residual": ("sage-residual", "gas", {}),
    "cluster-gcn": ("gcn", "cluster-gcn", {}),
    "cluster-gcn-sage": ("sage", "cluster-gcn", {}),
    "cluster-gcn-whole": ("gcn-rich", "cluster-gcn", {"renormalise": False}),
    "backward-sgd": ("gcn-post", "backward-sgd", {}),
    "backward-sgd-rich": ("sage-rich", "backward-sgd", {"weighting": "batch-mean"}),
}
"""Model, estimator and its settings, by name."""

OWN_BATCHES = {"lmc-code": [[0, 1, 6], [2, 8], [0, 4, 5], [7]], "lmc-unlabelled": [[0, 1, 6], [2, 7]]}
"""Batches of runs that do not take their graph's. At batch 7 less than half of node 2's neighbours are local, where the
unclipped sine is negative; at batch 2 a halo row, node 7, has a self-loop in the graph."""


def inclusion(nodes: Any) -> list[float]:
    """Return unequal inclusion probabilities."""
    return [(node + 2) / 12 for node in nodes]


def weights(model: Dense, batch: list[int], weighting: str) -> Tensor:
    out = torch.zeros(model.n, dtype=torch.float64)
    if weighting == "inclusion":
        out[batch] = tensor([1 / value for value in inclusion(batch)])
    elif weighting == "node-count":
        out[batch] = model.n / len(batch)
    else:
        labelled = len(set(batch) & set(model.labelled))
        out[batch] = len(model.labelled) / labelled if labelled else 0.0
    return out


def blend_of(model: Dense, batch: list[int], settings: dict[str, Any]) -> Tensor:
    """Return every node's weight of the fresh value, were it in the halo."""
    base = settings.get("beta", 0.0)
    ratio = degree_ratio(model, batch, self_loop=settings.get("count_self_loop", False))
    base = torch.full((model.n,), float(base), dtype=torch.float64) if isinstance(base, float) else tensor(base)
    beta = base[: model.n] * tensor(oracles.beta_scores(ratio.numpy(), SCORES[settings.get("score", "linear")]))
    return torch.where(ratio == 1, 1.0, beta) if settings.get("whole_when_complete") else beta


def zeros(model: Dense) -> Histories:
    """Return histories of zeros."""
    shapes = {layer: value.shape for layer, value in exact(model).H.items() if layer}
    return Histories(*({layer: tensor(np.zeros(shape)) for layer, shape in shapes.items()} for _ in range(2)))


def one_step(
    model: Dense, name: str, settings: dict[str, Any], batch: list[int], held: Histories, scale: Tensor
) -> Step:
    """Return what an estimator gives for one batch, the terms of its rows weighted by `scale`."""
    inside = mask(model, batch)
    local = mask(model, [*batch, *halo_of(model, batch)])
    if name == "cluster-gcn":
        operator = model.operator()
        if settings.get("renormalise", True):
            kept = [k for k, (s, d) in enumerate(model.edges.T) if s in batch and d in batch]
            own = None if model.weights is None else [model.weights[k] for k in kept]
            operator = model.operator(model.edges[:, kept], own)
        return step(model, operator, inside, inside, scale, forward="none", backward="full")
    if name == "backward-sgd":
        full = exact(model)
        known = Histories(full.H, full.V)
        return step(model, model.operator(), local, inside, scale, held=known, forward="exact", backward="exact")
    beta = blend_of(model, batch, settings)
    zero = torch.zeros_like(beta)
    forward_beta = zero if name in ("gas", "lmc-backward-only") else beta
    if name in ("gas", "lmc-forward-only"):
        return step(model, model.operator(), local, inside, scale, beta=forward_beta, held=held, backward="drop")
    if name == "lmc-backward-only":
        return _two_betas(model, local, inside, scale, zero, beta, held)
    return step(model, model.operator(), local, inside, scale, beta=beta, held=held)


def _two_betas(
    model: Dense, local: Tensor, inside: Tensor, scale: Tensor, forward: Tensor, backward: Tensor, held: Histories
) -> Step:
    """Return a step whose forward pass has another beta than the backward pass: first one, then the other."""
    first = step(model, model.operator(), local, inside, scale, beta=forward, held=held)
    fixed = Histories(first.H, held.V)
    return step(
        model, model.operator(), local, inside, scale, beta=backward, held=fixed, forward="exact", backward="blend"
    )


def write(held: Histories, found: Step, batch: list[int]) -> None:
    """Write the batch rows of H and V."""
    for layer in held.H:
        held.H[layer][batch], held.V[layer][batch] = found.H[layer][batch], found.V[layer][batch]


def flat(gradient: dict[str, Tensor]) -> Tensor:
    return torch.cat([part.reshape(-1) for part in gradient.values()])


def counts(model: Dense, name: str, batch: list[int]) -> list[int]:
    """Return rows, and messages kept and needed, forward and backward: edges of the graph as it was given."""
    inside = np.zeros(model.n, dtype=bool)
    inside[batch] = True
    into, out = int(model.counts[inside].sum()), int(model.counts[:, inside].sum())
    both = int(model.counts[inside][:, inside].sum())
    cut, drops = name == "cluster-gcn", name in ("gas", "lmc-forward-only", "cluster-gcn")
    rows = len(batch) + (0 if cut else len(halo_of(model, batch)))
    return [rows, both if cut else into, into, both if drops else out, out]


def values(inputs: dict[str, Any]) -> dict[str, Any]:
    """Return every run's losses, costs, last gradient and histories."""
    out: dict[str, Any] = {}
    for key, (model_key, name, settings) in RUNS.items():
        model = Dense(inputs, model_key)
        held, losses, cost = zeros(model), [], []
        for batch in inputs["runs"][key]["batches"]:
            scale = weights(model, batch, settings.get("weighting", "inclusion"))
            found = one_step(model, name, settings, batch, held, scale)
            losses.append(found.loss)
            cost.append(counts(model, name, batch))
            write(held, found, batch)
        out[f"{key}/losses"], out[f"{key}/cost"] = losses, cost
        out[f"{key}/gradient"] = flat(found.gradient).tolist()
        writes = name.startswith(("lmc", "gas"))
        backward = name in ("lmc", "lmc-backward-only")
        for layer in range(1, model.num_layers + 1) if writes else ():
            out[f"{key}/H{layer}"] = held.H[layer].tolist()
            if backward:
                out[f"{key}/V{layer}"] = held.V[layer].tolist()
    return out
