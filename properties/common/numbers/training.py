"""Optimisers, schedules, scores, and runs of gradient descent, written out."""

from __future__ import annotations

import math
from itertools import combinations
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.numbers.dense import Dense
from common.numbers.inputs import BATCHES
from common.numbers.runs import flat, one_step, weights, write, zeros
from common.numbers.steps import Histories, exact, mask

GRADIENTS = [[0.5, -1.0, 0.25], [0.1, 0.3, -0.7], [-0.4, 0.9, 0.2], [0.8, -0.1, 0.6]]
START = [1.0, -0.5, 0.3]
OPTIMISERS: dict[str, tuple[str, dict[str, Any]]] = {
    "sgd": ("sgd", {}),
    "momentum": ("sgd", {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01}),
    "adam": ("adam", {"betas": [0.8, 0.95], "weight_decay": 0.02}),
}
RATE = 0.1
LENGTH = 6
SCHEDULES: dict[str, tuple[str, dict[str, Any]]] = {
    "step": ("step", {"gamma": 0.5}),
    "cosine": ("cosine", {}),
    "none": ("none", {}),
}
ETA, BETA = 0.2, 0.4
ORDER = BATCHES["directed"]
STEPS = len(ORDER)
PATIENCE = 2
TOGETHER: list[tuple[str, dict[str, Any]]] = [
    ("lmc", {"beta": 0.4, "count_self_loop": True}),
    ("fm", {"beta": 0.3}),
    ("cluster-gcn", {}),
]
"""Estimators whose runs are made one by one and together."""


def _optimised(name: str, options: dict[str, Any]) -> list[float]:
    x, first, second = np.array(START), np.zeros(3), np.zeros(3)
    decay = options.get("weight_decay", 0.0)
    for t, gradient in enumerate(GRADIENTS, start=1):
        g = np.array(gradient) + decay * x
        if name == "adam":
            one, two = options["betas"]
            first, second = one * first + (1 - one) * g, two * second + (1 - two) * g * g
            x = x - RATE * (first / (1 - one**t)) / (np.sqrt(second / (1 - two**t)) + 1e-8)
        elif "momentum" in options:
            first = g if t == 1 else options["momentum"] * first + g
            x = x - RATE * (g + options["momentum"] * first)
        else:
            x = x - RATE * g
    return [float(value) for value in x]


def _rates(name: str) -> list[float]:
    if name == "step":  # a third of the run at each level
        return [RATE * 0.5 ** (k // (LENGTH // 3)) for k in range(LENGTH)]
    if name == "cosine":
        return [RATE * (1 + math.cos(math.pi * k / LENGTH)) / 2 for k in range(LENGTH)]
    return [RATE] * LENGTH


def _scores(inputs: dict[str, Any], key: str) -> list[float]:
    model = Dense(inputs, key)
    graph = inputs["graphs"][inputs["models"][key]["graph"]]
    full = exact(model)
    outputs = model.predict(full.H[model.num_layers]).detach().numpy()
    scores = [full.loss]
    for split in ("labelled", "validation", "test"):
        rows = graph[split]
        if isinstance(graph["y"][0], list):
            said = np.array([outputs[i] > 0 for i in rows])
            true = np.array([graph["y"][i] for i in rows]) == 1
            hits, said, true = (said & true).sum(), said.sum(), true.sum()
            precision, recall = hits / said, hits / true
            scores.append(float(2 * precision * recall / (precision + recall)))
        else:
            scores.append(sum(int(outputs[i].argmax()) == graph["y"][i] for i in rows) / len(rows))
    return scores


def moved(model: Dense, gradient: dict[str, Tensor], eta: float) -> None:
    with torch.no_grad():
        for name, value in model.parameters.items():
            value -= eta * gradient[name]


def _descent(inputs: dict[str, Any], beta: float, eta: float, batches: list[list[int]]) -> list[float]:
    """Return LMC's parameters after one step with each batch, from zero histories."""
    model = Dense(inputs, "gcn")
    held = zeros(model)
    for batch in batches:
        found = one_step(model, "lmc", {"beta": beta}, batch, held, weights(model, batch, "inclusion"))
        write(held, found, batch)
        moved(model, found.gradient, eta)
    out: list[float] = flat(model.parameters).detach().tolist()
    return out


def design(model: Dense, per_batch: int) -> list[tuple[list[int], Tensor, float]]:
    """Return every batch of some clusters with its weights and probability."""
    count = int(model.clusters.max()) + 1
    chosen = list(combinations(range(count), per_batch))
    out = []
    for clusters in chosen:
        batch = [int(node) for node in np.flatnonzero(np.isin(model.clusters, clusters))]
        out.append((batch, mask(model, batch) * count / per_batch, 1 / len(chosen)))
    return out


def known(model: Dense) -> Histories:
    """Return exact histories."""
    full = exact(model)
    return Histories(full.H, full.V)


def estimates(model: Dense, name: str, settings: dict[str, Any], held: Histories) -> list[tuple[float, Tensor]]:
    """Return every estimate of the design of two clusters with its probability."""
    return [
        (probability, flat(one_step(model, name, settings, batch, held, scale).gradient))
        for batch, scale, probability in design(model, 2)
    ]


def layers_of(model: Dense) -> list[slice]:
    """Return the places of each layer's parameters in a flat gradient of a plain stack."""
    ends, end, out = [], 0, []
    for value in model.parameters.values():
        end += value.numel()
        ends.append(end)
    for index in range(model.num_layers):
        out.append(slice(ends[2 * index - 1] if index else 0, ends[2 * index + 1]))
    return out


def layer_norms(model: Dense, gradient: Tensor) -> np.ndarray:
    """Return the norm of a flat gradient in each layer, and at the end that of the whole."""
    return np.array([float(gradient[part].norm()) for part in (*layers_of(model), slice(0, None))])


def moments(model: Dense, name: str, settings: dict[str, Any], held: Histories) -> dict[str, np.ndarray]:
    """Return the norms of gradient and bias, variance, mean error and mean square error: by layer, and of the whole."""
    drawn, gradient = estimates(model, name, settings, held), flat(exact(model).gradient)
    mean = sum(p * g for p, g in drawn)
    return {
        "gradient": layer_norms(model, gradient),
        "bias": layer_norms(model, mean - gradient),
        "variance": sum(p * layer_norms(model, g - mean) ** 2 for p, g in drawn),
        "error": sum(p * layer_norms(model, g - gradient) for p, g in drawn),
        "square": sum(p * layer_norms(model, g - gradient) ** 2 for p, g in drawn),
    }


def values(inputs: dict[str, Any]) -> dict[str, Any]:
    out: dict[str, Any] = {f"optimiser/{key}": _optimised(*given) for key, given in OPTIMISERS.items()}
    out |= {f"schedule/{key}": _rates(key) for key in SCHEDULES}
    out["schedule/theorem-3"] = [8 ** (-2 / 3), 1.0]
    out |= {f"scores/{key}": _scores(inputs, key) for key in ("gcn", "gcn-tanh")}
    model = Dense(inputs, "gcn")
    mean = sum(p * g for p, g in estimates(model, "gas", {}, known(model)))
    out["conditional-bias"] = (mean - flat(exact(model).gradient)).tolist()
    error = moments(model, "lmc", {"beta": BETA}, zeros(model))
    out |= {f"gradient-error/{key}": error[key].tolist() for key in ("gradient", "bias", "variance", "error")}
    out["descent"] = _descent(inputs, BETA, ETA, ORDER)
    # The trainer, with batches in this order; in the second run step size and beta are those of Theorem 3.
    out["trainer/constant"] = out["descent"]
    out["trainer/theorem-3"] = _descent(inputs, BETA * STEPS ** (-2 / 3), ETA * STEPS ** (-2 / 3), ORDER)
    full, losses = Dense(inputs, "gcn"), []
    for _ in range(STEPS):
        losses.append(exact(full).loss)
        moved(full, exact(full).gradient, ETA)
    out["trainer/patience"] = PATIENCE  # the best is that of step 0: so many evaluations later none is above it
    out["together"] = [0.0] * 2 * len(TOGETHER)
    out["trainer/full-batch"] = [*losses, exact(full).loss]
    return out
