"""A second, slow and dense implementation of the estimators that sample messages, in numpy and without any engine.

Written from the definitions alone: a sample is a dense matrix a layer, the model is a GCN with the pre-activation cut,
the backward pass is written out. `laws` lists every sample of a distribution from its definition, node by node.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations, pairwise, permutations, product

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

from common import oracles
from common.oracles import Array, Layers

Matrices = list[Array]
"""The sampled operator of every layer, layer 1 first."""


def gradient(
    problem: oracles.Problem, sampled: Matrices, weights: Array, histories: Layers | None = None
) -> tuple[float, dict[str, list[Array]]]:
    """Return loss and gradient of ``sum_i weights_i loss_i`` with one sampled operator per layer.

    With histories, ``A h`` is ``A_s (h - hist) + A hist``, the history of the features being the features.
    """
    L = problem.num_layers
    hist = None if histories is None else {0: problem.X, **histories}
    inputs, H = [], problem.X
    for layer in range(1, L + 1):
        read = H if layer == 1 else np.maximum(H, 0)
        total = sampled[layer - 1] @ read
        if hist is not None:
            held = hist[layer - 1] if layer == 1 else np.maximum(hist[layer - 1], 0)
            total = total + (problem.A - sampled[layer - 1]) @ held
        inputs.append((H, total))
        H = total @ problem.weights[layer - 1] + problem.biases[layer - 1]
    losses, derivative = oracles.node_losses(problem, H)
    V = weights[:, None] * derivative
    out: dict[str, list[Array]] = {"weight": [], "bias": []}
    for layer in range(L, 0, -1):
        H, total = inputs[layer - 1]
        out["weight"].insert(0, total.T @ V)
        out["bias"].insert(0, V.sum(axis=0))
        slope = np.ones_like(H) if layer == 1 else (H > 0).astype(float)
        V = slope * (sampled[layer - 1].T @ V @ problem.weights[layer - 1].T)
    return float(weights @ losses), out


SAME = 1e-9
"""Thresholds closer than this are equal in exact arithmetic."""

Message = tuple[int, int, float]
"""Destination, source and weight of one entry of an operator; parallel edges are several messages."""


def neighbour_law(messages: list[Message], n: int, fan_out: int) -> Iterator[tuple[Array, float]]:
    """Yield every sampled operator, all rows at once: each keeps `fan_out` messages of d, weighted d / fan_out."""
    choices = []
    for i in range(n):
        own = [message for message in messages if message[0] == i]
        size = min(fan_out, len(own))
        choices.append([[(m, len(own) / size) for m in kept] for kept in combinations(own, size)] if size else [[]])
    number = int(np.prod([len(options) for options in choices]))
    for chosen in product(*choices):
        operator = np.zeros((n, n))
        for row in chosen:
            for (i, j, value), scale in row:
                operator[i, j] += value * scale
        yield operator, 1 / number


def labor_law(messages: list[Message], n: int, fan_out: int, rounds: int = 0) -> Iterator[tuple[Array, float]]:
    """Yield every sampled operator: source j's uniform number decides for all its destinations."""
    sources = [[j for i, j, _ in messages if i == row] for row in range(n)]
    importance = np.ones(n)
    for _ in range(rounds):
        factor = [_labor_factor(importance[own], fan_out) for own in sources]
        importance = importance * [max((factor[i] for i in range(n) if j in sources[i]), default=1) for j in range(n)]
    factor = [_labor_factor(importance[own], fan_out) for own in sources]
    limit = {(i, j): min(1.0, factor[i] * importance[j]) for i in range(n) for j in sources[i]}
    cells = []
    for j in range(n):
        cuts = [0.0]
        for value in sorted({1.0, *(value for (_, source), value in limit.items() if source == j)}):
            if value > cuts[-1] + SAME:
                cuts.append(value)
        cells.append([(low, high) for low, high in pairwise(cuts)])
    for chosen in product(*cells):
        operator = np.zeros((n, n))
        for i, j, value in messages:
            if chosen[j][1] <= limit[i, j] + SAME:
                operator[i, j] += value / limit[i, j]
        yield operator, float(np.prod([high - low for low, high in chosen]))


def _labor_factor(importance: Array, fan_out: int) -> float:
    """Return c with ``sum 1 / min(1, c pi) = d^2 / fan_out``, or the least one that keeps all, by root finding."""
    d = len(importance)
    if d <= fan_out:
        return max(1 / importance, default=1.0)

    def excess(c: float) -> float:
        return float(np.sum(1 / np.minimum(1, c * importance)) - d**2 / fan_out)

    return float(brentq(excess, 1e-9 / importance.max(), 1 / importance.min(), xtol=1e-15, rtol=1e-15))


def members(batch: NDArray[np.int64], n: int, weight: Array | float) -> Array:
    """Return the weights of all nodes, zero outside of the batch."""
    out = np.zeros(n)
    out[batch] = weight
    return out


# --- as in public code -----------------------------------------------------------------------------


def successive_draws(weights: Array, count: int) -> Iterator[tuple[tuple[int, ...], float]]:
    """Yield every order in which `count` different indices can be drawn, each in proportion to what is left."""
    positive = [index for index, weight in enumerate(weights) if weight > 0]
    for order in permutations(positive, min(count, len(positive))):
        probability, left = 1.0, list(positive)
        for index in order:
            probability *= weights[index] / sum(weights[other] for other in left)
            left.remove(index)
        yield order, probability


def published_law(
    operator: Array, squares: Array, rows: list[int], batch: list[int], nodes: int, code: str
) -> Iterator[tuple[Array, float]]:
    """Yield every sampled operator of one layer as the public code of LADIES or FastGCN makes it, order by order.

    Args:
        operator: A, dense [n, n].
        squares: sums of squared weights of parallel messages [n, n]; ``operator**2`` where there are none.
        rows: the nodes that the layer above needs.
        batch: the batch's nodes.
        nodes: how many are drawn.
        code: ``"ladies"``; ``"fastgcn of ladies"``, the baseline in the same code; ``"fastgcn"``, its authors'.
    """
    n = len(operator)
    if code == "fastgcn":
        norms = np.sqrt(squares.sum(axis=0))
        q = norms / norms.sum() if norms.any() else norms
        reached = (squares[rows] > 0).any(axis=0)
        for order, probability in successive_draws(np.where(reached, q, 0.0), nodes):
            sampled = np.zeros((n, n))
            for i, j in product(rows, order):
                sampled[i, j] = operator[i, j] / (nodes * q[j])
            yield sampled, probability
        return
    weight = (squares[rows] if code == "ladies" else squares).sum(axis=0)
    q = weight / weight.sum() if weight.any() else weight
    for order, probability in successive_draws(q, nodes):
        kept = sorted({*order, *(batch if code == "ladies" else ())})
        sampled = np.zeros((n, n))
        for i in rows:
            for j in kept:
                if q[j] > 0:
                    sampled[i, j] = operator[i, j] / q[j]
            if sampled[i].sum() > 0:
                sampled[i] /= sampled[i].sum()
        yield sampled, probability


def published_passes(
    operator: Array, batch: list[int], nodes: list[int], code: str
) -> Iterator[tuple[list[Array], float]]:
    """Yield the sampled operators of all layers, layer 1 first, of a GCN on a graph without parallel messages.

    Rows that no row above needs are left out.
    """

    def below(index: int, rows: list[int]) -> Iterator[tuple[list[Array], float]]:
        if index == 0:
            yield [], 1.0
            return
        if code == "fastgcn" and index == 1 and len(nodes) > 1:
            whole = np.zeros_like(operator)
            whole[rows] = operator[rows]
            yield [whole], 1.0
            return
        for sampled, probability in published_law(operator, operator**2, rows, batch, nodes[index - 1], code):
            needed = [j for j in range(len(operator)) if sampled[:, j].any()]
            for others, share in below(index - 1, needed):
                yield [*others, sampled], probability * share

    yield from below(len(nodes), batch)
