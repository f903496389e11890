"""The exact pass of every model, and the fixed point of the recurrent one."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from common.numbers.dense import Dense
from common.numbers.runs import flat
from common.numbers.steps import exact

TIMES = 400
"""Steps to the fixed point, which halves the distance in each, about."""


def _fixed_point(inputs: dict[str, Any]) -> dict[str, Any]:
    """Differentiate many steps, one after the other, by plain autograd."""
    model = Dense(inputs, "recurrent")
    x0 = model.encode()
    h = x0
    for _ in range(TIMES):
        h = model.layer(1, h, x0, model.operator())
    loss = model.node_losses(h).sum()
    gradient = torch.autograd.grad(loss, list(model.parameters.values()))
    found = dict(zip(model.parameters, gradient, strict=True))
    return {"loss": loss.item(), "embeddings": h.detach().tolist(), "gradient": flat(found).tolist()}


def _terms(model: Dense, support: int) -> int:
    """Count the rounded additions behind one component: see lmc_verify.objective.rounding_terms."""
    loops = np.diag((np.diag(model.counts) == 0).astype(int))
    pattern = model.counts + loops  # parallel edges are entries of their own
    widths = [3, 4, 4, 3]
    total = support + model.n + 4 * 3 + 3
    for index in range(1, model.num_layers + 1):
        degrees = int(pattern.sum(axis=1).max()) + int(pattern.sum(axis=0).max())
        total += widths[index - 1] + widths[index] + degrees + 12
    return total


def _conditioning(model: Dense) -> float:
    outputs = model.predict(exact(model).H[model.num_layers]).detach().numpy()
    slopes = []
    for node in model.labelled:
        p = np.exp(outputs[node]) / np.exp(outputs[node]).sum()
        p[model.y[node]] -= 1
        slopes.append(p / len(model.labelled))
    return max(1.0, math.sqrt(2 * len(slopes)) / len(slopes) / float(np.linalg.norm(slopes)))


def values(inputs: dict[str, Any]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key in inputs["models"]:
        full = exact(Dense(inputs, key))
        out |= {
            f"{key}/loss": [full.loss] * 3,
            f"{key}/embeddings": full.H[max(full.H)].tolist(),
            f"{key}/auxiliary": full.V[1].tolist(),
            f"{key}/gradient": flat(full.gradient).tolist(),
            f"{key}/disagreement": [0.0, 0.0],
        }
    out |= {f"fixed-point/{part}": value for part, value in _fixed_point(inputs).items()}
    model = Dense(inputs, "gcn")
    out["rounding/terms"] = [_terms(model, 1), _terms(model, 10)]
    out["rounding/conditioning"] = _conditioning(model)
    return out
