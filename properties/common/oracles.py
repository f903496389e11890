"""A second, slow and dense float64 implementation of the estimators: the oracle of the property suite.

It is written from the definitions in LMC (Shi, Liang and Wang, ICLR 2023, arXiv 2302.00924) and from
plain derivations, in numpy, with no automatic differentiation and no sparse kernel, and shares no code
with the package.

Conventions. ``A[i, j]`` is the weight of the edge from source ``j`` to destination ``i``; it is
normalised on the whole graph and stays so on a batch. Layers are numbered ``l = 1..L`` and ``H[l]``,
``V[l]`` and the histories are dictionaries with those keys, each value an ``(n, width)`` array;
``V[l]`` is the derivative of the full loss with respect to ``H[l]``. ``weights[l - 1]`` is ``(in,
out)``. ``Z[l]`` is always ``A @ input @ W + b``. With the cut "pre", ``H[l] = Z[l]`` and the next layer
reads ``relu(H[l])``; with the cut "post", ``H[l] = relu(Z[l])`` (but ``H[L] = Z[L]``) and the next
layer reads ``H[l]``. The derivative of relu at zero is zero.

Quantities "per node" (``beta``, ``weights``, ``inclusion``) are one number, or an array over all ``n``
nodes of which only the rows concerned (halo rows for ``beta``, batch rows for the others) are read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Nodes = Sequence[int] | NDArray[np.int64]
Layers = dict[int, Array]
PerNode = float | Array
Cut = Literal["pre", "post"]
Forward = Literal["blend", "hist", "cut", "exact"]
Backward = Literal["blend", "drop", "exact"]
Score = Literal["x", "x^2", "2x-x^2", "1", "sin", "unclipped sin"]


# --- graphs ---------------------------------------------------------------------------------------


def edge_counts(edge_index: NDArray[np.int64], num_nodes: int) -> NDArray[np.int64]:
    """Return the matrix whose entry ``[i, j]`` is the number of edges from ``j`` to ``i``."""
    counts = np.zeros((num_nodes, num_nodes), dtype=np.int64)
    for source, destination in zip(*edge_index, strict=True):
        counts[destination, source] += 1
    return counts


def gcn_operator(edge_index: NDArray[np.int64], num_nodes: int, edge_weight: Array | None = None) -> Array:
    """Return ``D^-1/2 (A + missing self-loops) D^-1/2``, ``D`` the weighted in-degree.

    A self-loop that exists keeps its weight (the last one, if there are several); the others get weight
    one. A node whose in-degree is zero gets zero factors.
    """
    edge_weight = np.ones(len(edge_index[0])) if edge_weight is None else np.asarray(edge_weight, dtype=float)
    operator = np.zeros((num_nodes, num_nodes))
    loops = np.ones(num_nodes)
    for source, destination, weight in zip(edge_index[0], edge_index[1], edge_weight, strict=True):
        if source == destination:
            loops[source] = weight
        else:
            operator[destination, source] += weight
    operator += np.diag(loops)
    degree = operator.sum(axis=1)
    scale = np.array([0.0 if d == 0 else d**-0.5 for d in degree])
    normalised: Array = scale[:, None] * operator * scale[None, :]
    return normalised


def mean_operator(edge_index: NDArray[np.int64], num_nodes: int) -> Array:
    """Return the mean over in-edges (a row of zeros where there is none); no self-loop is added."""
    counts = edge_counts(edge_index, num_nodes).astype(float)
    degree = counts.sum(axis=1, keepdims=True)
    mean: Array = counts / np.where(degree == 0, 1.0, degree)
    return mean


def halo(pattern: NDArray[np.generic], batch: Nodes) -> NDArray[np.int64]:
    """Return, sorted, the nodes outside the batch with an edge from or to a batch node."""
    inside = {int(node) for node in batch}
    found = set()
    for i in range(len(pattern)):
        for j in inside:
            if i not in inside and (pattern[i, j] != 0 or pattern[j, i] != 0):
                found.add(i)
    return np.array(sorted(found), dtype=np.int64)


def local_degree_ratio(
    counts: NDArray[np.int64] | NDArray[np.bool_], batch: Nodes, *, self_loop: bool = False
) -> Array:
    """Return, for every node, the share of its in-edges whose source is in the local set (batch and halo).

    ``counts[i, j]`` counts the edges from ``j`` to ``i``; self-loops are left out, or replaced by one at
    every node. It is one for a node without in-edges, and therefore also one for every batch node.
    """
    counts = np.asarray(counts).astype(np.int64)
    local = {int(node) for node in batch} | {int(node) for node in halo(counts, batch)}
    ratio = np.ones(len(counts))
    for i in range(len(counts)):
        total = sum(int(counts[i, j]) for j in range(len(counts)) if j != i)
        kept = sum(int(counts[i, j]) for j in local if j != i)
        if self_loop:
            total, kept = total + 1, kept + 1
        if total > 0:
            ratio[i] = kept / total
    return ratio


def beta_scores(x: Array, score: Score) -> Array:
    """Return the score of the local degree ratio ``x``; LMC sets ``beta_i = alpha * score(x_i)``."""
    x = np.asarray(x, dtype=float)
    if score == "x":
        return x.copy()
    if score == "x^2":
        return x**2
    if score == "2x-x^2":
        return 2 * x - x**2
    if score == "1":
        return np.ones_like(x)
    if score == "sin":
        return np.clip(np.sin(np.pi * (x - 0.5)), 0.0, 1.0)
    if score == "unclipped sin":
        return np.asarray(-np.cos(np.pi * x))
    raise ValueError(f"unknown score {score!r}")


# --- the problem and its loss ---------------------------------------------------------------------


@dataclass(frozen=True)
class Problem:
    """A GCN on a graph; integer ``y`` means cross entropy, a float matrix ``y`` class-averaged BCE."""

    A: Array
    X: Array
    y: NDArray[np.generic]
    train_mask: NDArray[np.bool_]
    weights: list[Array]
    biases: list[Array]
    cut: Cut = "pre"
    pattern: NDArray[np.generic] | None = None  # where edges are; by default, where A is not zero

    @property
    def num_layers(self) -> int:
        return len(self.weights)

    @property
    def num_nodes(self) -> int:
        return len(self.A)

    @property
    def edges(self) -> NDArray[np.generic]:
        return self.A if self.pattern is None else self.pattern


@dataclass(frozen=True)
class Gradient:
    """One array for each layer's weight and one for each layer's bias."""

    weight: list[Array]
    bias: list[Array]

    def flat(self) -> Array:
        return np.concatenate([part.ravel() for part in [*self.weight, *self.bias]])


@dataclass(frozen=True)
class Exact:
    """The full-batch loss, node values, auxiliary variables and gradient."""

    loss: float
    H: Layers
    Z: Layers
    V: Layers
    gradient: Gradient


@dataclass(frozen=True)
class Estimate:
    """A one-shot estimate; the histories are copies in which the rows of this batch have been written."""

    gradient: Gradient
    loss: float
    history_H: Layers
    history_V: Layers
    written_H: NDArray[np.int64]
    written_V: NDArray[np.int64]


def node_losses(problem: Problem, logits: Array) -> tuple[Array, Array]:
    """Return the labelled nodes' terms of the loss (``1/|V_L|`` is in) and their derivatives."""
    losses, slopes = np.zeros(len(logits)), np.zeros_like(logits)
    labelled = np.flatnonzero(problem.train_mask)
    for i in labelled:
        row = logits[i]
        if problem.y.ndim == 1:
            shifted = row - row.max()
            log_probability = shifted - np.log(np.exp(shifted).sum())
            target = np.zeros(len(row))
            target[int(problem.y[i])] = 1.0
            losses[i] = -log_probability @ target
            slopes[i] = np.exp(log_probability) - target
        else:
            target = np.asarray(problem.y[i], dtype=float)
            losses[i] = np.mean(np.maximum(row, 0) - row * target + np.log1p(np.exp(-np.abs(row))))
            slopes[i] = (0.5 * (1 + np.tanh(row / 2)) - target) / len(row)
    return losses / len(labelled), slopes / len(labelled)


def _relu(values: Array) -> Array:
    return np.maximum(values, 0.0)


def _step(values: Array) -> Array:
    return (values > 0).astype(float)


def _read(problem: Problem, layer: int, previous: Array) -> Array:
    """Return what ``layer`` aggregates, given ``H[layer - 1]`` (or the features, for the first layer)."""
    return _relu(previous) if problem.cut == "pre" and layer > 1 else previous


def _keep(problem: Problem, layer: int, z: Array) -> Array:
    """Return ``H[layer]`` given ``Z[layer]``."""
    return _relu(z) if problem.cut == "post" and layer < problem.num_layers else z


def _slope_at_z(problem: Problem, layer: int, z: Array, v: Array) -> Array:
    """Return ``dL/dZ[layer]`` given ``V[layer]``."""
    return v * _step(z) if problem.cut == "post" and layer < problem.num_layers else v


def _pull_back(problem: Problem, operator: Array, layer: int, dz: Array, previous: Array) -> Array:
    """Return ``V[layer - 1]``: every source sums over the destinations that ``operator`` gives it."""
    received = operator.T @ dz @ problem.weights[layer - 1].T
    return received * _step(previous) if problem.cut == "pre" else received


def forward(problem: Problem, previous: Array, first: int = 1) -> tuple[Layers, Layers]:
    """Run layers ``first..L`` on the whole graph from ``H[first - 1] = previous``; return ``H`` and ``Z``."""
    H: Layers = {}
    Z: Layers = {}
    for layer in range(first, problem.num_layers + 1):
        read = _read(problem, layer, previous)
        Z[layer] = problem.A @ read @ problem.weights[layer - 1] + problem.biases[layer - 1]
        H[layer] = previous = _keep(problem, layer, Z[layer])
    return H, Z


def exact(problem: Problem) -> Exact:
    """Return the full-batch loss, ``H``, ``V`` and gradient."""
    L = problem.num_layers
    H, Z = forward(problem, problem.X)
    losses, slopes = node_losses(problem, H[L])
    V = {L: slopes}
    for layer in range(L, 1, -1):
        dz = _slope_at_z(problem, layer, Z[layer], V[layer])
        V[layer - 1] = _pull_back(problem, problem.A, layer, dz, H[layer - 1])
    everyone = np.ones(problem.num_nodes)
    return Exact(float(losses.sum()), H, Z, V, _gradient(problem, problem.A, H, Z, V, everyone))


def _gradient(problem: Problem, operator: Array, H: Layers, Z: Layers, V: Layers, factor: Array) -> Gradient:
    """Sum the nodes' terms ``(d h_i / d theta)^T V_i`` of every gradient, with a factor for each node."""
    weight, bias = [], []
    for layer in range(1, problem.num_layers + 1):
        messages = operator @ _read(problem, layer, problem.X if layer == 1 else H[layer - 1])
        dz = _slope_at_z(problem, layer, Z[layer], V[layer])
        weight_sum, bias_sum = (
            np.zeros_like(problem.weights[layer - 1]),
            np.zeros_like(problem.biases[layer - 1]),
        )
        for i in np.flatnonzero(factor):
            weight_sum += factor[i] * np.outer(messages[i], dz[i])
            bias_sum += factor[i] * dz[i]
        weight.append(weight_sum)
        bias.append(bias_sum)
    return Gradient(weight, bias)


def _on_batch(values: PerNode, batch: Nodes, num_nodes: int) -> Array:
    """Return the values at the batch nodes and zero elsewhere."""
    batch = np.asarray(batch, dtype=np.int64)
    result = np.zeros(num_nodes)
    result[batch] = np.broadcast_to(np.asarray(values, dtype=float), (num_nodes,))[batch]
    return result


# --- estimators -----------------------------------------------------------------------------------


def backward_sgd(problem: Problem, batch: Nodes, inclusion: PerNode) -> Gradient:
    """Return the Horvitz-Thompson estimate from exact ``H`` and ``V`` [LMC]; ``inclusion`` is ``pi_j``."""
    full = exact(problem)
    factor = _on_batch(1.0 / np.asarray(inclusion, dtype=float), batch, problem.num_nodes)
    return _gradient(problem, problem.A, full.H, full.Z, full.V, factor)


def backward_sgd_cluster_variance(problem: Problem, clusters: Sequence[Nodes], c: int) -> float:
    """Return ``E||g - gradient||^2`` of Backward SGD for ``c`` clusters of a partition, without replacement.

    With cluster sums ``G_i`` the estimate is ``b`` times the mean of ``c`` of the ``b`` of them, so its
    variance is ``b^2 (1 - c/b) S^2 / c`` with ``S^2 = sum_i ||G_i - mean||^2 / (b - 1)``.
    """
    b = len(clusters)
    if b == 1:
        return 0.0
    sums = np.array([backward_sgd(problem, cluster, 1.0).flat() for cluster in clusters])
    spread = float(((sums - sums.mean(axis=0)) ** 2).sum() / (b - 1))
    return b**2 * (1 - c / b) * spread / c


def zero_histories(problem: Problem) -> tuple[Layers, Layers]:
    """Return histories of ``H`` and of ``V`` filled with zeros."""
    H = {layer: np.zeros((problem.num_nodes, w.shape[1])) for layer, w in enumerate(problem.weights, start=1)}
    return H, {layer: values.copy() for layer, values in H.items()}


def compensated(
    problem: Problem,
    histories_H: Layers,
    histories_V: Layers,
    batch: Nodes,
    beta: PerNode,
    forward_policy: Forward,
    backward_policy: Backward,
    weights: PerNode,
    *,
    write_halo: bool = False,
) -> Estimate:
    """Return the one-shot estimate on the batch and its halo [LMC].

    ``fresh`` is the value computed from messages inside the local set. At halo rows the forward value
    is "blend" ``(1 - beta) hist + beta fresh``, "hist" the history, or "exact" the true one; "cut"
    takes the halo out of the graph, so that it needs "drop". Backward it is "blend", "drop" (zero) or
    "exact"; with "blend", ``V[L]`` at halo rows is the derivative of the loss at their forward value
    and is not blended. Only values are blended: derivatives are those of the fresh row. Where the slope
    of an activation at a halo row is needed (cut "post"), it is taken at the fresh ``Z``; with the
    forward policy "exact", at the true ``Z``.

    Batch rows of ``H`` and ``V`` are written to the returned histories, with ``write_halo`` also the
    forward values at halo rows of ``H``; with "cut", nothing is. ``weights`` multiply a node's terms in
    the gradients and the loss estimate, never ``V``.
    """
    if forward_policy == "cut" and backward_policy != "drop":
        raise ValueError("a forward pass without halo has no backward halo")
    n, L = problem.num_nodes, problem.num_layers
    batch = np.array(sorted({int(node) for node in batch}), dtype=np.int64)
    boundary = halo(problem.edges, batch)
    if forward_policy == "cut":
        boundary = boundary[:0]
    beta_rows = np.broadcast_to(np.asarray(beta, dtype=float), (n,))[boundary][:, None]
    full = exact(problem) if "exact" in (forward_policy, backward_policy) else None
    local = np.zeros(n)
    local[batch] = local[boundary] = 1.0
    operator = local[:, None] * problem.A * local[None, :]

    H: Layers = {}
    Z: Layers = {}
    previous = local[:, None] * problem.X
    for layer in range(1, L + 1):
        read = _read(problem, layer, previous)
        Z[layer] = operator @ read @ problem.weights[layer - 1] + problem.biases[layer - 1]
        H[layer] = local[:, None] * _keep(problem, layer, Z[layer])
        if forward_policy == "blend":
            H[layer][boundary] = (1 - beta_rows) * histories_H[layer][boundary] + beta_rows * H[layer][boundary]
        elif forward_policy == "hist":
            H[layer][boundary] = histories_H[layer][boundary]
        elif forward_policy == "exact":
            assert full is not None
            H[layer][boundary] = full.H[layer][boundary]
            Z[layer][boundary] = full.Z[layer][boundary]
        previous = H[layer]

    losses, slopes = node_losses(problem, H[L])
    V = {L: local[:, None] * slopes}
    for layer in range(L, 0, -1):
        if backward_policy == "drop":
            V[layer][boundary] = 0.0
        elif backward_policy == "exact":
            assert full is not None
            V[layer][boundary] = full.V[layer][boundary]
        elif layer < L:
            V[layer][boundary] = (1 - beta_rows) * histories_V[layer][boundary] + beta_rows * V[layer][boundary]
        if layer > 1:
            dz = _slope_at_z(problem, layer, Z[layer], V[layer])
            V[layer - 1] = _pull_back(problem, operator, layer, dz, H[layer - 1])

    factor = _on_batch(weights, batch, n)
    gradient = _gradient(problem, operator, H, Z, V, factor)
    rows_V = batch[:0] if forward_policy == "cut" else batch
    rows_H = np.sort(np.concatenate([batch, boundary])) if write_halo else rows_V
    new_H = {layer: values.copy() for layer, values in histories_H.items()}
    new_V = {layer: values.copy() for layer, values in histories_V.items()}
    for layer in new_H:
        new_H[layer][rows_H] = H[layer][rows_H]
    for layer in new_V:
        new_V[layer][rows_V] = V[layer][rows_V]
    return Estimate(gradient, float(losses @ factor), new_H, new_V, rows_H, rows_V)


def lmc(p: Problem, hist_H: Layers, hist_V: Layers, batch: Nodes, beta: PerNode, weights: PerNode) -> Estimate:
    """LMC: both passes are compensated."""
    return compensated(p, hist_H, hist_V, batch, beta, "blend", "blend", weights)


def gas(p: Problem, hist_H: Layers, hist_V: Layers, batch: Nodes, weights: PerNode) -> Estimate:
    """GAS: histories forward, nothing backward (the written rows of ``V`` are never read)."""
    return compensated(p, hist_H, hist_V, batch, 0.0, "hist", "drop", weights)


def fm_local(p: Problem, hist_H: Layers, hist_V: Layers, batch: Nodes, beta: PerNode, weights: PerNode) -> Estimate:
    """The variant of GraphFM-OB: as LMC forward, and the blended halo rows are written too; nothing backward."""
    return compensated(p, hist_H, hist_V, batch, beta, "blend", "drop", weights, write_halo=True)


def graph_fm(p: Problem, histories: Layers, batch: Nodes, beta: PerNode, weights: PerNode) -> Estimate:
    """GraphFM-OB as published (Yu et al., ICML 2022), node by node.

    ``histories[l]`` holds ``relu(Z[l])``, what layer ``l + 1`` aggregates (``Z[L]`` for the last layer, whose
    history nobody reads). A halo row ``i`` gets the fresh value ``relu(sum over j in B of A[i, j] s_j W + b)``:
    no message from another halo row, nor its own; it is blended with the history, read, and written.
    """
    n, L = p.num_nodes, p.num_layers
    inside = sorted({int(node) for node in batch})
    boundary = [int(node) for node in halo(p.edges, inside)]
    share = np.broadcast_to(np.asarray(beta, dtype=float), (n,))
    new = {layer: values.copy() for layer, values in histories.items()}
    S: Layers = {0: p.X}
    M: Layers = {}
    Z: Layers = {}
    for layer in range(1, L + 1):
        W, b, below = p.weights[layer - 1], p.biases[layer - 1], S[layer - 1]
        M[layer], Z[layer], S[layer] = np.zeros((n, W.shape[0])), np.zeros((n, W.shape[1])), np.zeros((n, W.shape[1]))
        for i in inside:
            M[layer][i] = sum(p.A[i, j] * below[j] for j in [*inside, *boundary])
            Z[layer][i] = M[layer][i] @ W + b
            S[layer][i] = new[layer][i] = _relu(Z[layer][i]) if layer < L else Z[layer][i]
        for i in boundary if layer < L else []:
            fresh = _relu(sum(p.A[i, j] * below[j] for j in inside) @ W + b)
            S[layer][i] = new[layer][i] = (1 - share[i]) * histories[layer][i] + share[i] * fresh

    losses, slopes = node_losses(p, Z[L])
    factor = _on_batch(weights, inside, n)
    G = {L: np.array([slopes[i] if i in inside else 0 * slopes[i] for i in range(n)])}
    weight, bias = [], []
    for layer in range(L, 0, -1):
        weight.insert(0, sum(factor[i] * np.outer(M[layer][i], G[layer][i]) for i in inside))
        bias.insert(0, sum(factor[i] * G[layer][i] for i in inside))
        if layer > 1:
            G[layer - 1] = np.zeros_like(Z[layer - 1])
            for j in inside:
                received = sum(p.A[i, j] * G[layer][i] for i in inside) @ p.weights[layer - 1].T
                G[layer - 1][j] = received * _step(Z[layer - 1][j])
    rows = np.array(sorted([*inside, *boundary]), dtype=np.int64)
    return Estimate(Gradient(weight, bias), float(losses @ factor), new, {}, rows, rows[:0])


def mvs_inclusion(norms: Array, size: float) -> Array:
    """MVS-GNN's ``p_i = min(1, g_i / mu)`` with ``sum p_i = size`` (Cong et al., KDD 2020), mu by bisection."""
    if size >= np.count_nonzero(norms):
        return (norms > 0).astype(float)
    low, high = 0.0, float(norms.sum()) / size
    for _ in range(200):
        middle = (low + high) / 2
        if np.minimum(1.0, norms / middle).sum() > size:
            low = middle
        else:
            high = middle
    return np.asarray(np.minimum(1.0, norms / high))


def mvs(p: Problem, histories: Layers, batch: Nodes, weights: PerNode) -> tuple[Estimate, Array]:
    """MVS-GNN's estimate (Cong et al., KDD 2020), and the norms of the batch's gradients in the last layer.

    Batch rows aggregate over the whole graph: fresh values of batch nodes, histories of H of all others. The
    gradient of the weighted loss passes through the messages between batch rows alone.
    """
    L, n, inside = p.num_layers, p.num_nodes, sorted({int(node) for node in batch})
    previous, new = p.X, {layer: values.copy() for layer, values in histories.items()}
    Z: Layers = {}
    M: Layers = {}
    for layer in range(1, L + 1):
        M[layer] = (p.A @ _read(p, layer, previous))[inside]
        Z[layer] = M[layer] @ p.weights[layer - 1] + p.biases[layer - 1]
        if layer < L:
            previous = histories[layer].copy()
            previous[inside] = new[layer][inside] = _keep(p, layer, Z[layer])
    logits = np.zeros((n, Z[L].shape[1]))
    logits[inside] = Z[L]
    losses, slopes = node_losses(p, logits)
    norms = np.array(
        [np.sqrt(np.sum(np.outer(m, v) ** 2) + np.sum(v**2)) for m, v in zip(M[L], slopes[inside], strict=True)]
    )
    factor = _on_batch(weights, inside, n)
    G = (factor[:, None] * slopes)[inside]
    weight, bias = [], []
    for layer in range(L, 0, -1):
        weight.insert(0, M[layer].T @ G)
        bias.insert(0, G.sum(axis=0))
        if layer > 1:
            G = p.A[np.ix_(inside, inside)].T @ G @ p.weights[layer - 1].T * _step(Z[layer - 1])
    rows = np.array(inside, dtype=np.int64)
    return Estimate(Gradient(weight, bias), float(losses @ factor), new, {}, rows, rows[:0]), norms


def senders(A: Array, batch: Nodes) -> list[int]:
    """Return the nodes outside the batch that send one of its nodes a message, ascending."""
    inside = {int(node) for node in batch}
    return [j for j in range(len(A)) if j not in inside and any(A[i, j] != 0 for i in inside)]


def top_combinations(p: Problem, random_weights: Sequence[tuple[list[Array], list[Array]]], batch: Nodes) -> Array:
    """TOP's R as published (Shi et al., ICLR 2025): least squares on what random models' layers read.

    The basis ``[x, relu(Z[1]), ..., relu(Z[L-1])]``, for several models without x again, is made orthonormal by
    Gram-Schmidt, twice for accuracy; a column that depends on the ones before it is left out.
    """
    columns = [p.X[:, k] for k in range(p.X.shape[1])]
    for weights, biases in random_weights:
        S = p.X
        for W, b in list(zip(weights, biases, strict=True))[:-1]:
            S = _relu(p.A @ S @ W + b)
            columns += [S[:, k] for k in range(S.shape[1])]
    Q: list[Array] = []
    for column in columns:
        rest = column.astype(float)
        for _ in range(2):
            for q in Q:
                rest = rest - (q @ rest) * q
        if np.linalg.norm(rest) > 1e-9 * max(1.0, float(np.linalg.norm(column))):
            Q.append(rest / np.linalg.norm(rest))
    basis = np.stack(Q, axis=1) if Q else np.zeros((p.num_nodes, 0))
    inside = sorted({int(node) for node in batch})
    R: Array = basis[senders(p.A, inside)] @ np.linalg.pinv(basis[inside], rcond=1e-10)
    return R


def top(p: Problem, R: Array, batch: Nodes, weights: PerNode, *, out_of_batch: bool) -> tuple[Gradient, float]:
    """TOP's estimate given R, which acts on what a layer reads, behind the activation; its first layer may read X."""
    L, inside = p.num_layers, sorted({int(node) for node in batch})
    outside = senders(p.A, inside)
    within, across = p.A[np.ix_(inside, inside)], p.A[np.ix_(inside, outside)]
    S: Layers = {0: p.X[inside]}
    Z: Layers = {}
    M: Layers = {}
    for layer in range(1, L + 1):
        sent = p.X[outside] if layer == 1 and out_of_batch else R @ S[layer - 1]
        M[layer] = within @ S[layer - 1] + across @ sent
        Z[layer] = M[layer] @ p.weights[layer - 1] + p.biases[layer - 1]
        S[layer] = _relu(Z[layer]) if layer < L else Z[layer]
    logits = np.zeros((p.num_nodes, Z[L].shape[1]))
    logits[inside] = Z[L]
    losses, slopes = node_losses(p, logits)
    factor = _on_batch(weights, inside, p.num_nodes)[inside]
    G = factor[:, None] * slopes[inside]
    weight, bias = [], []
    for layer in range(L, 0, -1):
        weight.insert(0, M[layer].T @ G)
        bias.insert(0, G.sum(axis=0))
        if layer > 1:
            G = (within + across @ R).T @ G @ p.weights[layer - 1].T * _step(Z[layer - 1])
    return Gradient(weight, bias), float(losses[inside] @ factor)


def lmc_forward_only(
    p: Problem, hist_H: Layers, hist_V: Layers, batch: Nodes, beta: PerNode, weights: PerNode
) -> Estimate:
    """LMC's forward pass with GAS's backward pass."""
    return compensated(p, hist_H, hist_V, batch, beta, "blend", "drop", weights)


def lmc_backward_only(
    p: Problem, hist_H: Layers, hist_V: Layers, batch: Nodes, beta: PerNode, weights: PerNode
) -> Estimate:
    """GAS's forward pass with LMC's backward pass."""
    return compensated(p, hist_H, hist_V, batch, beta, "hist", "blend", weights)


def cluster_gcn(p: Problem, batch: Nodes, weights: PerNode, operator: Array | None = None) -> Estimate:
    """Cluster-GCN: edges that leave the batch are cut, with no history.

    By default the weights of the kept edges stay; pass another ``(n, n)`` operator, such as
    ``gcn_operator`` of ``induced_edges``, to renormalise.
    """
    A = p.A if operator is None else operator
    cut_problem = Problem(A, p.X, p.y, p.train_mask, p.weights, p.biases, p.cut)
    return compensated(cut_problem, {}, {}, batch, 0.0, "cut", "drop", weights)


def induced_edges(edge_index: NDArray[np.int64], batch: Nodes) -> NDArray[np.int64]:
    """Return the edges between batch nodes, in the numbering of the whole graph."""
    inside = {int(node) for node in batch}
    kept = [(int(s), int(d)) for s, d in zip(*edge_index, strict=True) if int(s) in inside and int(d) in inside]
    return np.array(kept, dtype=np.int64).reshape(-1, 2).T
