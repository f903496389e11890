"""Protects the oracle itself: reference vectors, finite differences, identities of the estimators.

The vectors in ``reference`` came with the project and were computed by another program. The identities
are those of LMC (ICLR 2023, arXiv 2302.00924) with frozen parameters, and plain consequences of the
definitions.
"""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common import oracles
from common.oracles import Array, Estimate, Gradient, Layers, Problem

FOLDER = Path(__file__).parent / "reference"
NAMES = ["directed-pre", "karate-pre", "undirected-post"]
PRE = ["directed-pre", "karate-pre"]
RUNS = ["lmc-beta0", "lmc", "gas", "fm", "lmc-forward-only"]
TOLERANCE = 1e-11


@dataclass(frozen=True)
class Case:
    problem: Problem
    clusters: list[list[int]]
    raw: dict[str, Any]
    edge_index: np.ndarray


def load(name: str) -> Case:
    raw = json.loads((FOLDER / f"{name}.json").read_text())
    edge_index = np.array(raw["edge_index"], dtype=np.int64)
    problem = Problem(
        A=oracles.gcn_operator(edge_index, raw["num_nodes"]),
        X=np.array(raw["x"]),
        y=np.array(raw["y"]),
        train_mask=np.array(raw["train_mask"]),
        weights=[np.array(w) for w in raw["weights"]],
        biases=[np.array(b) for b in raw["biases"]],
        cut=raw["activation_cut"],
        pattern=oracles.edge_counts(edge_index, raw["num_nodes"]),
    )
    return Case(problem, raw["clusters"], raw, edge_index)


def error(got: Array | float, want: Any) -> float:
    """Return the relative error in norm, absolute where the wanted value is zero."""
    got, want = np.asarray(got, dtype=float), np.asarray(want, dtype=float)
    assert got.shape == want.shape
    size = float(np.linalg.norm(want))
    return float(np.linalg.norm(got - want)) / (size if size > 0 else 1.0)


def assert_gradient(got: Gradient, want: dict[str, Any] | Gradient, tolerance: float = TOLERANCE) -> None:
    if isinstance(want, Gradient):
        want = {"weight": want.weight, "bias": want.bias}
    assert len(got.weight) == len(want["weight"])
    assert len(got.bias) == len(want["bias"])
    for mine, theirs in zip([*got.weight, *got.bias], [*want["weight"], *want["bias"]], strict=True):
        assert error(mine, theirs) < tolerance


def mean_gradient(gradients: list[Gradient]) -> Gradient:
    return Gradient(
        [np.mean(parts, axis=0) for parts in zip(*(g.weight for g in gradients), strict=True)],
        [np.mean(parts, axis=0) for parts in zip(*(g.bias for g in gradients), strict=True)],
    )


def step(run: str, case: Case, H: Layers, V: Layers, batch: list[int], factor: float) -> Estimate:
    p, beta = case.problem, np.array(case.raw["beta"])
    if run == "lmc-beta0":
        return oracles.lmc(p, H, V, batch, 0.0, factor)
    if run == "gas":
        return oracles.gas(p, H, V, batch, factor)
    estimator = {
        "lmc": oracles.lmc,
        "fm": oracles.fm_local,
        "lmc-forward-only": oracles.lmc_forward_only,
        "lmc-backward-only": oracles.lmc_backward_only,
    }[run]
    return estimator(p, H, V, batch, beta, factor)


# --- reference vectors ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_exact_reproduces_reference(name: str) -> None:
    case = load(name)
    want, got = case.raw["exact"], oracles.exact(case.problem)
    assert error(got.loss, want["loss"]) < TOLERANCE
    for layer in range(1, case.problem.num_layers + 1):
        assert error(got.H[layer], want["H"][layer - 1]) < TOLERANCE
        assert error(got.V[layer], want["V"][layer - 1]) < TOLERANCE
    assert_gradient(got.gradient, want)


@pytest.mark.parametrize("name", NAMES)
def test_backward_sgd_reproduces_reference(name: str) -> None:
    case = load(name)
    b = len(case.clusters)
    assert len(case.raw["backward_sgd"]) == b
    for cluster, want in zip(case.clusters, case.raw["backward_sgd"], strict=True):
        assert_gradient(oracles.backward_sgd(case.problem, cluster, 1 / b), want)


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("name", NAMES)
def test_runs_reproduce_reference(name: str, run: str) -> None:
    case = load(name)
    steps, scale, want = case.raw["steps"], case.raw["scale"], case.raw["runs"][run]
    compared = 0
    H, V = oracles.zero_histories(case.problem)
    for k, batch in enumerate(steps):
        factor = scale["last_step_two_clusters" if k == len(steps) - 1 else "single_cluster"]
        estimate = step(run, case, H, V, batch, factor)
        H, V = estimate.history_H, estimate.history_V
        if k in want["at_step"]:
            assert_gradient(estimate.gradient, want["gradients"][want["at_step"].index(k)])
            compared += 1
    assert compared == len(want["at_step"]) == len(want["gradients"]) > 0
    L = case.problem.num_layers
    reads_last_layer = run in ("lmc", "lmc-beta0")
    for layer in range(1, L + 1 if reads_last_layer else L):
        assert error(H[layer], want["final_history_H"][layer - 1]) < TOLERANCE
        assert error(V[layer], want["final_history_V"][layer - 1]) < TOLERANCE


# --- finite differences ---------------------------------------------------------------------------


def multilabel(name: str) -> Problem:
    problem = load(name).problem
    classes = problem.weights[-1].shape[1]
    labels = np.array([[(i + c * c) % 3 == 0 for c in range(classes)] for i in range(problem.num_nodes)])
    return replace(problem, y=labels.astype(float))


def generated(cut: str) -> tuple[Problem, list[list[int]]]:
    """Return a directed random graph of 24 nodes with many live units, and a partition into four."""
    rng = np.random.default_rng(7)
    n, widths = 24, [4, 6, 6, 3]
    pattern = (rng.random((n, n)) < 0.12) & ~np.eye(n, dtype=bool)
    edge_index = np.array(np.nonzero(pattern.T))
    problem = Problem(
        A=oracles.gcn_operator(edge_index, n),
        X=rng.standard_normal((n, widths[0])),
        y=rng.integers(0, widths[-1], n),
        train_mask=rng.random(n) < 0.7,
        weights=[rng.standard_normal((a, b)) / np.sqrt(a) for a, b in itertools.pairwise(widths)],
        biases=[0.1 * rng.standard_normal(b) for b in widths[1:]],
        cut=cut,
    )
    return problem, [list(range(k, n, 4)) for k in range(4)]


PROBLEMS = {name: load(name).problem for name in NAMES}
PROBLEMS |= {"multi-label": multilabel("karate-pre"), "generated-pre": generated("pre")[0]}
PROBLEMS |= {"generated-post": generated("post")[0]}


@pytest.mark.parametrize("name", PROBLEMS)
def test_gradient_agrees_with_central_differences(name: str) -> None:
    problem = PROBLEMS[name]
    gradient, L, h = oracles.exact(problem).gradient, problem.num_layers, 1e-5

    def loss() -> float:
        return float(oracles.node_losses(problem, oracles.forward(problem, problem.X)[0][L])[0].sum())

    pairs = [
        *zip(problem.weights, gradient.weight, strict=True),
        *zip(problem.biases, gradient.bias, strict=True),
    ]
    for parameter, want in pairs:
        slope = np.zeros_like(parameter)
        for index in np.ndindex(parameter.shape):
            kept = parameter[index]
            parameter[index] = kept + h
            above = loss()
            parameter[index] = kept - h
            below = loss()
            parameter[index] = kept
            slope[index] = (above - below) / (2 * h)
        assert np.abs(slope - want).max() < 1e-6 * max(1.0, np.abs(want).max())


@pytest.mark.parametrize("name", PROBLEMS)
def test_auxiliary_variables_agree_with_central_differences(name: str) -> None:
    problem = PROBLEMS[name]
    full, L, h = oracles.exact(problem), problem.num_layers, 1e-6
    rng = np.random.default_rng(0)
    for layer in range(1, L + 1):

        def loss(values: Array, layer: int = layer) -> float:
            last = values if layer == L else oracles.forward(problem, values, layer + 1)[0][L]
            return float(oracles.node_losses(problem, last)[0].sum())

        for _ in range(5):
            direction = rng.standard_normal(full.H[layer].shape)
            if problem.cut == "post" and layer < L:
                direction *= full.H[layer] > 0  # the rest of the network is read at values, so kinks do not matter
            slope = (loss(full.H[layer] + h * direction) - loss(full.H[layer] - h * direction)) / (2 * h)
            assert slope == pytest.approx(float((full.V[layer] * direction).sum()), rel=1e-6, abs=1e-8)


# --- Backward SGD ---------------------------------------------------------------------------------


@pytest.mark.parametrize("c", [1, 2, 3, 4])
@pytest.mark.parametrize("name", NAMES)
def test_backward_sgd_mean_and_variance_by_enumeration(name: str, c: int) -> None:
    case = load(name)
    b, want = len(case.clusters), oracles.exact(case.problem).gradient.flat()
    estimates = []
    for chosen in itertools.combinations(case.clusters, c):
        batch = [node for cluster in chosen for node in cluster]
        estimates.append(oracles.backward_sgd(case.problem, batch, c / b).flat())
    assert error(np.mean(estimates, axis=0), want) < 1e-12
    variance = float(np.mean([((g - want) ** 2).sum() for g in estimates]))
    assert variance == pytest.approx(
        oracles.backward_sgd_cluster_variance(case.problem, case.clusters, c), rel=1e-10, abs=1e-20
    )


def test_unequal_inclusion_probabilities_are_unbiased() -> None:
    problem = load("karate-pre").problem
    inclusion = np.linspace(0.2, 0.9, problem.num_nodes)
    parts = [inclusion[j] * oracles.backward_sgd(problem, [j], inclusion).flat() for j in range(problem.num_nodes)]
    assert error(np.sum(parts, axis=0), oracles.exact(problem).gradient.flat()) < 1e-12


@pytest.mark.parametrize("name", NAMES)
def test_exact_halo_is_backward_sgd(name: str) -> None:
    case = load(name)
    H, V = oracles.zero_histories(case.problem)
    for cluster in case.clusters:
        got = oracles.compensated(case.problem, H, V, cluster, 0.0, "exact", "exact", 4.0)
        assert_gradient(got.gradient, oracles.backward_sgd(case.problem, cluster, 0.25), 1e-12)


# --- what the estimators must do with frozen parameters -------------------------------------------


@pytest.mark.parametrize("name", PRE)
def test_exact_histories_make_lmc_backward_sgd(name: str) -> None:
    case = load(name)
    full = oracles.exact(case.problem)
    gas_differs = False
    for cluster in case.clusters:
        want = oracles.backward_sgd(case.problem, cluster, 0.25)
        assert_gradient(oracles.lmc(case.problem, full.H, full.V, cluster, 0.0, 4.0).gradient, want, 1e-12)
        got = oracles.gas(case.problem, full.H, full.V, cluster, 4.0).gradient
        assert error(got.weight[-1], want.weight[-1]) < 1e-12
        assert error(got.bias[-1], want.bias[-1]) < 1e-12
        gas_differs |= error(got.weight[0], want.weight[0]) > 0.1
    assert gas_differs


@pytest.mark.parametrize("name", PRE)
def test_frozen_sweeps_make_lmc_exact_and_gas_not(name: str) -> None:
    case = load(name)
    L, full = case.problem.num_layers, oracles.exact(case.problem)
    for run in ("lmc-beta0", "gas"):
        H, V = oracles.zero_histories(case.problem)
        for sweep in range(1, 2 * L + 1):
            worst = 0.0
            for cluster in case.clusters:
                estimate = step(run, case, H, V, cluster, 4.0)
                H, V = estimate.history_H, estimate.history_V
                want = oracles.backward_sgd(case.problem, cluster, 0.25)
                worst = max(worst, error(estimate.gradient.flat(), want.flat()))
            for layer in range(1, L + 1):
                assert sweep < layer or error(H[layer], full.H[layer]) < 1e-12
                assert run == "gas" or sweep < 2 * L - layer or error(V[layer], full.V[layer]) < 1e-12
            if run == "gas":
                assert worst > 0.1
            elif sweep >= 2 * L - 1:
                assert worst < 1e-12
            elif sweep == 1:
                assert worst > 1e-3


def test_post_activation_cut_leaves_a_floor() -> None:
    # On a generated graph: in the reference files no activation at a halo row changes sign.
    floors, gradients = {}, {}
    for cut in ("pre", "post"):
        problem, clusters = generated(cut)
        gradients[cut] = oracles.exact(problem).gradient
        H, V = oracles.zero_histories(problem)
        for _ in range(12):
            errors = []
            for cluster in clusters:
                estimate = oracles.lmc(problem, H, V, cluster, 0.0, 4.0)
                H, V = estimate.history_H, estimate.history_V
                want = oracles.backward_sgd(problem, cluster, 0.25)
                errors.append(error(estimate.gradient.flat(), want.flat()))
        floors[cut] = max(errors)
    assert_gradient(gradients["post"], gradients["pre"], 1e-12)
    assert floors["pre"] < 1e-12
    assert floors["post"] > 1e-3


def test_gas_with_exact_histories_is_biased_in_every_layer_but_the_last() -> None:
    case = load("karate-pre")
    full = oracles.exact(case.problem)
    for estimator in ("gas", "lmc-beta0"):
        each = [step(estimator, case, full.H, full.V, cluster, 4.0).gradient for cluster in case.clusters]
        bias = [error(g, w) for g, w in zip(mean_gradient(each).weight, full.gradient.weight, strict=True)]
        assert bias[-1] < 1e-12
        for value in bias[:-1]:
            assert value > 0.1 if estimator == "gas" else value < 1e-12


@pytest.mark.parametrize("c", [1, 2])
def test_history_error_of_the_first_layer_shrinks_by_the_sampling_fraction(c: int) -> None:
    case = load("karate-pre")
    full, b = oracles.exact(case.problem), len(case.clusters)
    H, V = oracles.zero_histories(case.problem)
    after = []
    for chosen in itertools.combinations(case.clusters, c):
        batch = [node for cluster in chosen for node in cluster]
        new = oracles.lmc(case.problem, H, V, batch, 0.0, b / c).history_H
        after.append(((new[1] - full.H[1]) ** 2).sum())
    assert np.mean(after) == pytest.approx((1 - c / b) * (full.H[1] ** 2).sum(), rel=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_whole_graph_batches_give_the_exact_gradient(name: str) -> None:
    case = load(name)
    full, everyone = oracles.exact(case.problem), list(range(case.problem.num_nodes))
    H, V = oracles.zero_histories(case.problem)
    for run in [*RUNS, "lmc-backward-only"]:
        got = step(run, case, H, V, everyone, 1.0)
        assert error(got.loss, full.loss) < 1e-12
        assert_gradient(got.gradient, full.gradient, 1e-12)
    operator = oracles.gcn_operator(oracles.induced_edges(case.edge_index, everyone), case.problem.num_nodes)
    for chosen in (None, operator):
        assert_gradient(oracles.cluster_gcn(case.problem, everyone, 1.0, chosen).gradient, full.gradient, 1e-12)


def test_cluster_gcn_is_exact_on_the_induced_subgraph() -> None:
    case = load("karate-pre")
    p = case.problem
    batch = np.array(case.clusters[0])
    induced = oracles.gcn_operator(oracles.induced_edges(case.edge_index, batch), p.num_nodes)
    for operator in (p.A, induced):
        alone = replace(p, A=operator[np.ix_(batch, batch)], X=p.X[batch], y=p.y[batch], pattern=None)
        alone = replace(alone, train_mask=p.train_mask[batch])
        share = p.train_mask.sum() / p.train_mask[batch].sum()
        got = oracles.cluster_gcn(p, batch, share, operator)
        want = oracles.exact(alone)
        assert error(got.loss, want.loss) < 1e-12
        assert_gradient(got.gradient, want.gradient, 1e-12)
        assert got.history_H == {}
        assert len(got.written_H) == len(got.written_V) == 0


@pytest.mark.parametrize("run", [*RUNS, "lmc-backward-only"])
def test_only_the_stated_history_rows_are_written(run: str) -> None:
    case = load("karate-pre")
    rng = np.random.default_rng(1)
    H, V = ({k: rng.standard_normal(v.shape) for k, v in z.items()} for z in oracles.zero_histories(case.problem))
    batch = case.clusters[2]
    got = step(run, case, H, V, batch, 4.0)
    around = oracles.halo(case.problem.edges, batch)
    rows = sorted([*batch, *around]) if run == "fm" else batch
    assert got.written_H.tolist() == rows
    assert got.written_V.tolist() == batch
    for layer in H:
        assert np.flatnonzero((got.history_H[layer] != H[layer]).any(axis=1)).tolist() == rows
        assert set(np.flatnonzero((got.history_V[layer] != V[layer]).any(axis=1))) <= set(batch)


def test_weights_scale_gradients_and_loss_but_not_histories() -> None:
    case = load("karate-pre")
    full, batch = oracles.exact(case.problem), case.clusters[0]
    once = step("lmc", case, full.H, full.V, batch, 1.0)
    twice = step("lmc", case, full.H, full.V, batch, 2.0)
    assert error(twice.gradient.flat(), 2 * once.gradient.flat()) < 1e-14
    assert twice.loss == pytest.approx(2 * once.loss)
    for layer in once.history_V:
        assert np.array_equal(once.history_V[layer], twice.history_V[layer])


# --- graphs and scores ----------------------------------------------------------------------------


def test_gcn_operator_by_hand() -> None:
    edges = np.array([[0, 1, 1], [1, 1, 2]])  # 0 -> 1 of weight 3, a self-loop of weight 5, 1 -> 2 of weight 0.5
    got = oracles.gcn_operator(edges, 4, np.array([3.0, 5.0, 0.5]))
    want = np.zeros((4, 4))
    want[0, 0], want[1, 1], want[2, 2], want[3, 3] = 1.0, 5 / 8, 1 / 1.5, 1.0
    want[1, 0], want[2, 1] = 3 / np.sqrt(8), 0.5 / np.sqrt(1.5 * 8)
    np.testing.assert_allclose(got, want, rtol=1e-15)
    zero = oracles.gcn_operator(np.array([[0, 0], [0, 1]]), 2, np.array([0.0, 2.0]))
    np.testing.assert_allclose(zero, [[0.0, 0.0], [0.0, 1 / 3]], rtol=1e-15)


def test_mean_operator_halo_and_ratio_by_hand() -> None:
    edges = np.array([[0, 1, 1, 3, 3, 4, 5, 2], [1, 2, 2, 2, 3, 3, 3, 0]])
    counts = oracles.edge_counts(edges, 6)
    assert counts[2, 1] == 2
    mean = oracles.mean_operator(edges, 6)
    np.testing.assert_allclose(mean[2], [0, 2 / 3, 0, 1 / 3, 0, 0])
    np.testing.assert_allclose(mean[3], [0, 0, 0, 1 / 3, 1 / 3, 1 / 3])
    assert not mean[4].any()
    assert oracles.halo(counts, [2]).tolist() == [0, 1, 3]
    assert oracles.halo(counts, [4]).tolist() == [3]
    ratio = oracles.local_degree_ratio(counts, [4])  # the local set is {4, 3}; 3 hears 4, 5 and itself
    assert ratio[3] == 0.5
    assert ratio[4] == 1.0


def test_scores_by_hand() -> None:
    x = np.array([0.0, 0.25, 0.5, 1.0])
    np.testing.assert_allclose(oracles.beta_scores(x, "x"), x)
    np.testing.assert_allclose(oracles.beta_scores(x, "x^2"), [0, 1 / 16, 1 / 4, 1])
    np.testing.assert_allclose(oracles.beta_scores(x, "2x-x^2"), [0, 7 / 16, 3 / 4, 1])
    np.testing.assert_allclose(oracles.beta_scores(x, "1"), [1, 1, 1, 1])
    np.testing.assert_allclose(oracles.beta_scores(x, "sin"), [0, 0, 0, 1])


@pytest.mark.parametrize("cut", ["pre", "post"])
def test_relu_has_derivative_zero_at_zero(cut: str) -> None:
    one = np.ones((1, 1))
    labels, mask = np.array([0]), np.array([True])
    problem = Problem(one, one, labels, mask, [0 * one, one * [1.0, 3.0]], [np.zeros(1), np.zeros(2)], cut)
    gradient = oracles.exact(problem).gradient
    assert gradient.weight[0] == gradient.bias[0] == 0.0
    np.testing.assert_allclose(gradient.bias[1], [-0.5, 0.5])
