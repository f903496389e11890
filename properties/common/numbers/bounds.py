"""Errors that bounds must cover, how loose they may be, and what has a closed form."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from common.numbers.dense import EPSILON, Dense, tensor
from common.numbers.runs import OWN_BATCHES, RUNS, blend_of, flat, one_step
from common.numbers.steps import Histories, exact, halo_of
from common.numbers.training import design, known

CASES: dict[str, tuple[str, str, dict[str, Any], float]] = {
    "gas": ("gcn", "gas", {}, 0.0),
    "lmc": ("gcn", "lmc", {"beta": 0.4}, 0.05),
    "lmc-post": ("gcn-post", "lmc", {"beta": 0.4, "score": "constant"}, 0.02),
    "lmc-sage": ("sage", "lmc", {"beta": 0.3}, 0.02),
    "lmc-rich": ("gcn-rich", "lmc", {"beta": 0.1}, 0.001),
    "lmc-residual": ("sage-residual", "lmc", {"beta": 0.2}, 0.01),
    "lmc-bce": ("gcn-bce", "lmc", {"beta": 0.5}, 0.1),
    "cluster-gcn": ("gcn", "cluster-gcn", {"renormalise": False}, 0.0),
    "backward-sgd": ("sage-rich", "backward-sgd", {}, 0.0),
}
"""Model, estimator, its settings, and by which share the histories are off."""

LIMITS: dict[str, list[float]] = {
    "gas": [1.4, 0.27, 0.195, 1.66],
    "lmc": [0.154, 0.716, 0.179, 5.45],
    "lmc-post": [0.0186, 0.419, 0.0162, 3.6],
    "lmc-sage": [2.2, 8.97, 2.95, 57.6],
    "lmc-rich": [0.306, 3.28, 0.429, 63.4],
    "lmc-residual": [2.96, 6.45, 4.24, 101.0],
    "lmc-bce": [0.00286, 0.0146, 0.0129, 0.248],
    "cluster-gcn": [4.26, 6.13, 5.57, 19.3],
    "backward-sgd": [1e-12, 1e-12, 1e-12, 1e-12],
}
"""Totals of the bounds of three batches, and of the range. They are no other program's: they are what the bounds were
when this was written, rounded up, so that a bound that has lost a term, or has become looser, is seen."""

WIDTH = 0.3
"""Half the width of the error interval."""


def held_of(model: Dense, off: float) -> Histories:
    """Return exact histories times ``1 + off`` and, in every second row, ``1 - off``."""
    full = exact(model)
    factor = tensor([[1 + off if node % 2 == 0 else 1 - off] for node in range(model.n)])
    return Histories({k: v * factor for k, v in full.H.items()}, {k: v * factor for k, v in full.V.items()})


def errors(inputs: dict[str, Any], name: str) -> list[list[float]]:
    """Return, for every batch of two clusters, the norm of each parameter's difference from Backward SGD."""
    key, estimator, settings, off = CASES[name]
    model = Dense(inputs, key)
    held, out = held_of(model, off), []
    for batch, scale, _ in design(model, 2):
        got = one_step(model, estimator, settings, batch, held, scale).gradient
        want = one_step(model, "backward-sgd", {}, batch, known(model), scale).gradient
        out.append([float((got[part] - want[part]).norm()) for part in want])
    return out


def _lipschitz(inputs: dict[str, Any], key: str) -> list[float]:
    """Return upper bounds of the layers' constants, from operator norms."""
    model, out = Dense(inputs, key), []
    A = model.operator().abs().numpy()
    operator = math.sqrt(A.sum(axis=1).max() * A.sum(axis=0).max())

    def norm(name: str) -> float:
        return float(np.linalg.svd(model.parameters[name].detach().numpy(), compute_uv=False)[0])

    for index in range(model.num_layers):
        place = f"layers.{index}"
        if model.kind == "sage":
            value = operator * norm(f"{place}.conv.lin_l.weight") + norm(f"{place}.conv.lin_r.weight")
        else:
            value = operator * norm(f"{place}.conv.lin.weight")
        if f"{place}.before.0.weight" in model.parameters:
            value *= float(model.parameters[f"{place}.before.0.weight"].detach().abs().max()) / math.sqrt(EPSILON)
        out.append(value + 1.0 if model.settings.get("residual") else value)
    return out


def _sampling(inputs: dict[str, Any]) -> list[float]:
    """Return the interval of GAS's total error on the first batch, given a bound on its distance to Backward SGD."""
    model = Dense(inputs, "gcn")
    batch, scale, _ = design(model, 2)[0]
    own = one_step(model, "backward-sgd", {}, batch, known(model), scale).gradient
    size = float((flat(own) - flat(exact(model).gradient)).norm())
    return [max(0.0, size - WIDTH), size + WIDTH]


def values(inputs: dict[str, Any]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name in CASES:
        found = np.array(errors(inputs, name))
        if name not in ("backward-sgd",):
            out[f"{name}/enumerated"] = found.max(axis=0).tolist()
            out[f"{name}/enumerated-total"] = float(np.sqrt((found**2).sum(axis=1)).max())
        out[f"{name}/covers"] = np.ones(found.shape).tolist()
        out[f"{name}/range-covers"] = np.ones(found.shape[1]).tolist()
        out[f"{name}/as-before"] = [1.0] * 4
    keys = ("gcn", "gcn-rich", "gcn-residual", "sage", "sage-rich")
    out |= {f"lipschitz/{key}": _lipschitz(inputs, key) for key in keys}
    out["interval"] = _sampling(inputs)
    # Five clusters, two at a time: a batch of an epoch has two or one, the second one two, the last one one.
    groups = {"start": [1, 2, 0, 1, 2, 3, 4], "second": [2, 2, 0, 2, 4], "last": [1, 1, 4]}
    out |= {f"epoch-groups/{name}": value for name, value in groups.items()}
    model, batch = Dense(inputs, "gcn"), OWN_BATCHES["lmc-code"][-1]
    beta = blend_of(model, batch, RUNS["lmc-code"][2])[halo_of(model, batch)]
    out["negative-beta"] = ((1 - beta) * 2 + beta.abs() * 3).tolist()
    return out
