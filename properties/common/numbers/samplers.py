"""The mean estimate of every sampler over all of its samples, on a graph of four nodes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import numpy as np
import torch

from common import dense_sampling, oracles
from common.numbers.dense import Dense, tensor
from common.oracles import Array

MODEL = "gcn-small"
BATCHES = {
    "neighbour": [1, 2],
    "vr-gcn": [1, 2],
    "labor": [1],
    "fastgcn": [1],
    "ladies": [1, 2],
    "graphsaint-edge": [1],
}
INCLUSION = 0.5
HISTORY = [[0.3, -0.2, 0.5, 0.1], [-0.4, 0.6, 0.2, -0.1], [0.1, 0.2, -0.3, 0.4], [0.7, -0.5, 0.0, 0.3]]
"""What VR-GCN's history of layer 1 holds."""


def _problem(inputs: dict[str, Any]) -> oracles.Problem:
    model = Dense(inputs, MODEL)
    parameters = {name: value.detach().numpy() for name, value in model.parameters.items()}
    return oracles.Problem(
        A=model.operator().numpy(),
        X=model.x.numpy(),
        y=np.array(model.y),
        train_mask=np.isin(np.arange(model.n), model.labelled),
        weights=[parameters[f"layers.{index}.conv.lin.weight"].T.copy() for index in range(2)],
        biases=[parameters[f"layers.{index}.conv.bias"] for index in range(2)],
        pattern=model.counts,
    )


def _flat(gradient: dict[str, list[Array]]) -> Array:
    parts = []
    for weight, bias in zip(gradient["weight"], gradient["bias"], strict=True):
        parts += [bias.ravel(), weight.T.ravel()]
    return np.concatenate(parts)


Law = Callable[[list[int]], Iterator[tuple[Array, float]]]
"""From the rows that are needed to every sampled operator with its probability."""


def _mean(problem: oracles.Problem, batch: list[int], law: Law, histories: oracles.Layers | None = None) -> list[float]:
    """Return the mean of loss and gradient for one batch over, from the last layer down, all samples."""
    n, total = problem.num_nodes, 0.0
    weights = dense_sampling.members(np.array(batch), n, 1 / INCLUSION)
    for top, top_probability in law(batch):
        needed = [int(j) for j in np.flatnonzero(np.abs(top[batch]).sum(axis=0))]
        kept = np.zeros_like(top)
        kept[batch] = top[batch]
        for bottom, probability in law(needed):
            loss, gradient = dense_sampling.gradient(problem, [bottom, kept], weights, histories)
            total = total + top_probability * probability * np.array([loss, *_flat(gradient)])
    return np.asarray(total).tolist()  # type: ignore[no-any-return]


def _messages(problem: oracles.Problem, rows: list[int]) -> list[tuple[int, int, float]]:
    A = problem.A
    return [(i, j, float(A[i, j])) for i in rows for j in range(len(A)) if A[i, j] != 0]


def _draws(problem: oracles.Problem, weight: Array, times: int) -> Iterator[tuple[Array, float]]:
    q = weight / weight.sum()
    for drawn in product(np.flatnonzero(q), repeat=times):
        scale = np.array([drawn.count(j) / (times * q[j]) if q[j] > 0 else 0.0 for j in range(len(q))])
        yield problem.A * scale[None, :], float(np.prod(q[list(drawn)]))


def _saint(problem: oracles.Problem, times: int) -> list[float]:
    """Return the mean of loss and gradient over GraphSAINT's subgraphs of `times` edges, from their probabilities."""
    A, n = problem.A, problem.num_nodes
    edges = [(u, v) for v, u in zip(*np.nonzero(problem.pattern), strict=True) if u != v]
    degree = [sum(v in edge for edge in edges) for v in range(n)]
    chances = np.array([1 / degree[u] + 1 / degree[v] for u, v in edges])
    chances = chances / chances.sum()
    sets: dict[frozenset[int], float] = {}
    for drawn in product(range(len(edges)), repeat=times):
        nodes = frozenset(int(node) for place in drawn for node in edges[place])
        sets[nodes] = sets.get(nodes, 0.0) + float(np.prod(chances[list(drawn)]))

    def together(*nodes: int) -> float:
        return sum(chance for own, chance in sets.items() if own.issuperset(nodes))

    total = 0.0
    for nodes, chance in sets.items():
        inside = sorted(nodes)
        sampled, weights = np.zeros_like(A), dense_sampling.members(np.array(inside), n, 0.0)
        for v in inside:
            weights[v] = 1 / together(v)
            for u in inside:
                if A[v, u] != 0:
                    sampled[v, u] = A[v, u] * together(v) / together(u, v)
        loss, gradient = dense_sampling.gradient(problem, [sampled, sampled], weights)
        total = total + chance * np.array([loss, *_flat(gradient)])
    return np.asarray(total).tolist()  # type: ignore[no-any-return]


def _shadow(inputs: dict[str, Any], depth: int, *, renormalise: bool) -> list[float]:
    """Return loss and gradient of the ego networks' objective, one target after the other."""
    model = Dense(inputs, "gcn")
    total = torch.zeros((), dtype=torch.float64)
    for target in model.labelled:
        ego = {target}
        for _ in range(depth):
            ego |= {int(source) for source, destination in model.edges.T if destination in ego}
        kept = [k for k, (source, destination) in enumerate(model.edges.T) if source in ego and destination in ego]
        inside = tensor([1.0 if node in ego else 0.0 for node in range(model.n)])
        whole = model.operator(model.edges[:, kept], [model.weights[k] for k in kept])
        operator = inside[:, None] * (whole if renormalise else model.operator()) * inside[None, :]
        x0 = model.encode()
        h = x0
        for index in range(1, model.num_layers + 1):
            h = model.layer(index, h, x0, operator)
        total = total + model.node_losses(h)[target]
    gradient = torch.autograd.grad(total, list(model.parameters.values()))
    return [float(total.detach()), *torch.cat([part.reshape(-1) for part in gradient]).tolist()]


FIT: dict[str, Any] = {"basis": [[0.5, 0.5], [1.0, 0.0], [0.0, 1e-4], [2.0, -1.0]], "tolerance": 1e-2, "batch": [1, 2]}
"""The batch's rows have the singular values 1 and 1e-4, of which the fit takes the first alone."""


def _fit(problem: oracles.Problem) -> list[list[float]]:
    """Return the halo's rows of the basis, of which the first entry is the batch's first row."""
    senders = sorted({j for i in FIT["batch"] for j in np.flatnonzero(problem.pattern[i])} - set(FIT["batch"]))
    return [[FIT["basis"][j][0], 0.0] for j in senders]


def _basis(inputs: dict[str, Any]) -> list[list[float]]:
    """Return ``Z, A Z, A^2 Z`` with ``Z = [1, X]`` for the three-layer GCN."""
    model = Dense(inputs, "gcn")
    parts = [torch.cat([torch.ones(model.n, 1, dtype=torch.float64), model.x], dim=1)]
    for _ in range(model.num_layers - 1):
        parts.append(model.operator() @ parts[-1])
    out: list[list[float]] = torch.cat(parts, dim=1).tolist()
    return out


def values(inputs: dict[str, Any]) -> dict[str, Any]:
    problem = _problem(inputs)
    n, A = problem.num_nodes, problem.A
    held = {1: np.array(HISTORY)}
    columns = (A**2).sum(axis=0)
    laws: dict[str, Law] = {
        "neighbour": lambda rows: dense_sampling.neighbour_law(_messages(problem, rows), n, 1),
        "vr-gcn": lambda rows: dense_sampling.neighbour_law(_messages(problem, rows), n, 1),
        "labor": lambda rows: dense_sampling.labor_law(_messages(problem, rows), n, 2, 1),
        "fastgcn": lambda rows: _draws(problem, columns, 2),
        "ladies": lambda rows: _draws(problem, (A[rows] ** 2).sum(axis=0), 2),
    }
    means = {name: _mean(problem, BATCHES[name], law, held if name == "vr-gcn" else None) for name, law in laws.items()}
    means["graphsaint-edge"] = _saint(problem, 2)
    return {
        **{f"{name}/mean": value for name, value in means.items()},
        **{f"{name}/mass": 1.0 for name in means},
        "shadow": _shadow(inputs, 1, renormalise=True),
        "shadow-whole": _shadow(inputs, 2, renormalise=False),
        "shadow-objective": _shadow(inputs, 1, renormalise=True),
        # The first checkpoint is made at the start; two steps later the third step makes one, and is a step from it.
        "mvs-refreshes": [0, 0, 1, 0, 1, 0, 1],
        "top-krylov-basis": _basis(inputs),
        "top-fit": _fit(problem),
    }
