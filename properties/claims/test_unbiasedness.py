"""The expectations and identities of the theory hold to rounding, by enumeration; where they must fail, they do.

Nothing is sampled: the mean over a design is the weighted sum over its whole support. `E1`, `E2`, `E6` and `E7` are the
statements of section 5; witnesses of a bias are explicit graphs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from common.helpers import assert_close, assert_gradients, expectation, path_graph, relative_error, sweep
from hypothesis import example, given
from hypothesis import strategies as st
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from lmc_verify import (
    FM,
    GAS,
    GAT,
    GCN,
    LMC,
    SAGE,
    BackwardSGD,
    Batch,
    BatchDesign,
    ClusterGCN,
    Clusters,
    EpochClusters,
    Estimator,
    Graph,
    History,
    LMCBackwardOnly,
    LMCForwardOnly,
    Partition,
    Problem,
    UniformNodes,
    exact_pass,
)
from lmc_verify.testing import batches, designs, graphs, partitions, problems

WITNESS = 0.01
"""A difference called a witness is at least this large, relative: ten orders above any rounding."""

EVERY_ESTIMATOR: dict[str, Estimator] = {
    "backward-sgd": BackwardSGD(),
    "lmc": LMC(beta=0.3),
    "gas": GAS(),
    "fm": FM(),
    "cluster-gcn": ClusterGCN(),
    "cluster-gcn-kept": ClusterGCN(renormalise=False),
    "lmc-forward-only": LMCForwardOnly(beta=0.3),
    "lmc-backward-only": LMCBackwardOnly(beta=0.3),
}


@st.composite
def with_design(draw: st.DrawFn, **options: object) -> tuple[Problem, BatchDesign]:
    problem = draw(problems(**options))
    return problem, draw(designs(problem.graph))


@st.composite
def with_partition(draw: st.DrawFn, graph: st.SearchStrategy[Graph] | None = None, **options: object) -> tuple:
    problem = draw(problems(graph, **options))
    return problem, draw(partitions(problem.graph, max_parts=4))


@st.composite
def with_batch(draw: st.DrawFn, **options: object) -> tuple[Problem, Batch]:
    problem = draw(problems(**options))
    return problem, draw(batches(problem.graph))


def estimate(estimator: Estimator, problem: Problem, state: History) -> Callable[[Batch], dict[str, torch.Tensor]]:
    return lambda batch: estimator.estimate(problem, state, batch).gradient


def witness(layers: int = 3, kind: type = GCN, **settings: object) -> tuple[Problem, Partition]:
    """A path of nine nodes in three interleaved clusters: every edge leaves its cluster."""
    model = kind(3, 4, 3, layers, dtype=torch.float64, seed=1, **settings).eval()
    return Problem(path_graph(9), model), Partition(torch.arange(9) % 3)


def cluster_batches(partition: Partition) -> list[Batch]:
    return [batch for batch, _ in Clusters(partition, 1).enumerate()]


def bias(problem: Problem, estimator: Estimator, design: BatchDesign, state: History | None = None) -> float:
    exact = exact_pass(problem)
    state = History.from_exact(problem, exact) if state is None else state
    return relative_error(expectation(design, estimate(estimator, problem, state)), exact.gradient)


# --- Theorem 1 ------------------------------------------------------------------------------------


@given(with_design())
def test_backward_sgd_is_unbiased_under_every_design(drawn: tuple) -> None:
    problem, design = drawn
    estimator, exact = BackwardSGD(), exact_pass(problem)
    state = estimator.init(problem)
    mean = expectation(design, estimate(estimator, problem, state))
    assert_gradients(f"E[{estimator}] under {design}", mean, exact.gradient)
    loss = sum(p * estimator.estimate(problem, state, batch).loss for batch, p in design.enumerate())
    assert_close(f"E[loss] under {design}", loss, exact.loss)


@given(with_partition())
def test_backward_sgd_variance_over_clusters_is_the_formula(drawn: tuple) -> None:
    problem, partition = drawn
    b = partition.num_parts
    estimator, exact = BackwardSGD(), exact_pass(problem)
    step = estimate(estimator, problem, estimator.init(problem))

    def flat(gradient: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.cat([value.flatten() for value in gradient.values()])

    sums = torch.stack([flat(step(Batch.of(cluster))) for cluster in partition.clusters])
    spread = (sums - sums.mean(0)).square().sum() / max(b - 1, 1)
    for c in range(1, b + 1):
        got = sum(
            p * (flat(step(batch)) - flat(exact.gradient)).square().sum()
            for batch, p in Clusters(partition, c).enumerate()
        )
        want = b**2 * (1 - c / b) * spread / c
        assert_close(f"Var over {c} of {b} clusters", got, want, rtol=1e-9)


@given(with_design())
@example((witness()[0], Clusters(witness()[1], 1)))
@example((witness()[0], Clusters(witness()[1], 2)))
def test_node_count_is_unbiased_for_equal_sizes(drawn: tuple) -> None:
    problem, design = drawn
    if len({batch.size for batch, _ in design.enumerate()}) > 1:
        design = UniformNodes(problem.graph.num_nodes, 1)
    estimator = BackwardSGD(normaliser="node-count")
    mean = expectation(design, estimate(estimator, problem, estimator.init(problem)))
    assert_gradients(f"E[{estimator}] under {design}", mean, exact_pass(problem).gradient)


def test_node_count_is_biased_for_unequal_sizes() -> None:
    problem, _ = witness()
    unequal = Clusters(Partition.from_clusters([[0], [1, 2], [3, 4, 5, 6, 7, 8]]), 1)
    assert bias(problem, BackwardSGD(normaliser="node-count"), unequal) > WITNESS
    assert bias(problem, BackwardSGD(), unequal) < 1e-12


def test_batch_mean_is_unbiased_only_for_equal_numbers_of_labels() -> None:
    problem, partition = witness()
    design, estimator = Clusters(partition, 1), BackwardSGD(normaliser="batch-mean")
    assert bias(problem, estimator, design) < 1e-12  # three labelled nodes in each cluster
    for unlabelled in ([0], [0, 3], [0, 3, 6]):  # the last leaves a cluster without any, which contributes zero
        mask = torch.ones(9, dtype=torch.bool)
        mask[unlabelled] = False
        skewed = problem.with_graph(replace(problem.graph, train_mask=mask))
        assert bias(skewed, estimator, design) > WITNESS
        assert bias(skewed, BackwardSGD(), design) < 1e-12


# --- exact histories: E1, E6 ----------------------------------------------------------------------


@given(with_batch(aggregate_linear=True))
def test_e1_lmc_equals_backward_sgd_on_every_batch(drawn: tuple) -> None:
    problem, batch = drawn
    state = History.from_exact(problem, exact_pass(problem))
    want = BackwardSGD().estimate(problem, state, batch)
    for estimator in (LMC(), LMC(beta=0.0, score="constant")):
        got = estimator.estimate(problem, state, batch)
        assert_gradients(f"{estimator} with exact histories", got.gradient, want.gradient)
        assert_close(f"{estimator} with exact histories: loss", got.loss, want.loss)
        for write in got.writes:  # exact histories stay exact
            held = state.read(write.kind, write.layer, write.nodes)
            assert_close(f"{estimator}: written {write.kind} {write.layer}", write.values, held)


@given(with_design(aggregate_linear=True))
def test_lmc_with_exact_histories_is_unbiased(drawn: tuple) -> None:
    problem, design = drawn
    exact = exact_pass(problem)
    mean = expectation(design, estimate(LMC(), problem, History.from_exact(problem, exact)))
    assert_gradients(f"E[LMC] under {design}", mean, exact.gradient)


@pytest.mark.parametrize(("kind", "cut"), [(GCN, "post"), (SAGE, "post"), (GAT, "pre"), (GAT, "post")])
def test_e1_fails_where_a_layer_is_not_aggregate_linear(kind: type, cut: str) -> None:
    problem, partition = witness(kind=kind, activation_cut=cut)
    assert not problem.model.aggregate_linear
    assert bias(problem, LMC(), Clusters(partition, 1)) > 1e-4
    assert bias(problem, BackwardSGD(), Clusters(partition, 1)) < 1e-12


@given(with_batch())
def test_e6_gas_with_exact_histories_is_exact_in_the_last_layer_and_the_head(drawn: tuple) -> None:
    problem, batch = drawn
    state = History.from_exact(problem, exact_pass(problem))
    want = BackwardSGD().estimate(problem, state, batch).gradient
    names = [n for n in want if problem.layer_of(n) in (f"layer {problem.num_layers}", "head")]
    for estimator in (GAS(), LMC(), LMCForwardOnly(), LMCBackwardOnly(), FM(beta=0.0)):
        got = estimator.estimate(problem, state, batch).gradient
        call = f"{estimator} with exact histories, last layer"
        assert_gradients(call, {n: got[n] for n in names}, {n: want[n] for n in names})


@pytest.mark.parametrize("layers", [2, 3, 4])
def test_e6_gas_with_exact_histories_is_biased_below_the_last_layer(layers: int) -> None:
    problem, partition = witness(layers)
    exact = exact_pass(problem)
    mean = expectation(Clusters(partition, 1), estimate(GAS(), problem, History.from_exact(problem, exact)))
    for layer in range(1, layers + 1):
        names = [n for n in mean if problem.layer_of(n) == f"layer {layer}"]
        error = relative_error(mean, exact.gradient, names)
        assert error < 1e-12 if layer == layers else error > WITNESS, f"layer {layer} of {layers}: {error}"


@given(with_batch(max_layers=1))
def test_one_layer_needs_no_history(drawn: tuple) -> None:
    # The only input of the layer is node-wise, so exact at every local row. The encoder is below the layer: it hears
    # from the halo, and is left out here.
    problem, batch = drawn
    want = BackwardSGD().estimate(problem, BackwardSGD().init(problem), batch).gradient
    names = [n for n in want if problem.layer_of(n) != "encoder"]
    for estimator in (LMC(), LMC(beta=0.7), GAS(), FM(), LMCForwardOnly(beta=1.0), LMCBackwardOnly(beta=1.0)):
        got = estimator.estimate(problem, estimator.init(problem), batch).gradient
        call = f"{estimator} with one layer"
        assert_gradients(call, {n: got[n] for n in names}, {n: want[n] for n in names})


def test_epoch_shuffling_is_unbiased_at_a_random_position_and_biased_given_the_past() -> None:
    problem, partition = witness()
    assert bias(problem, BackwardSGD(), EpochClusters(partition, 1)) < 1e-12
    for seen in ((0,), (1,), (2,), (0, 1)):
        assert bias(problem, BackwardSGD(), EpochClusters(partition, 1).after(*seen)) > WITNESS


# --- frozen parameters: E2 ------------------------------------------------------------------------


@given(with_partition(aggregate_linear=True))
@example((Problem(path_graph(7, directed=True), witness()[0].model), Partition(torch.arange(7) % 3)))
@example((Problem(path_graph(7, directed=True).transposed(), witness()[0].model), Partition(torch.arange(7) % 3)))
def test_e2_frozen_sweeps_make_lmc_exact(drawn: tuple) -> None:
    problem, partition = drawn
    L, exact, visits = problem.num_layers, exact_pass(problem), cluster_batches(partition)
    want = sweep(problem, BackwardSGD(), BackwardSGD().init(problem), visits)
    gas_state, lmc_state = GAS().init(problem), LMC().init(problem)
    encoder = set(problem.parameters_of(problem.model.encoder))
    for number in range(1, 2 * L + 1):
        got = sweep(problem, LMC(), lmc_state, visits)
        sweep(problem, GAS(), gas_state, visits)
        for layer in range(1, L + 1):
            if number >= layer:
                for name, state in (("LMC", lmc_state), ("GAS", gas_state)):
                    call = f"{name}, sweep {number}: hist(H^{layer})"
                    assert_close(call, state.embeddings[layer], exact.embeddings[layer])
            if number >= 2 * L - layer:
                call = f"LMC, sweep {number}: hist(V^{layer})"
                assert_close(call, lmc_state.auxiliary[layer], exact.auxiliary[layer])
        for mine, reference in zip(got, want, strict=True):
            # The encoder is one more layer: it reads V^1 at the halo, exact one sweep later.
            names = [n for n in mine if number >= 2 * L - 1 + (n in encoder)]
            call = f"LMC gradient in sweep {number} of L = {L}"
            assert_gradients(call, {n: mine[n] for n in names}, {n: reference[n] for n in names})


def test_e2_is_not_early_and_gas_never_gets_there() -> None:
    problem, partition = witness()
    visits = cluster_batches(partition)
    want = sweep(problem, BackwardSGD(), BackwardSGD().init(problem), visits)
    state = LMC().init(problem)
    assert max(map(relative_error, sweep(problem, LMC(), state, visits), want)) > WITNESS
    state = GAS().init(problem)
    for _ in range(6):
        errors = [relative_error(g, w) for g, w in zip(sweep(problem, GAS(), state, visits), want, strict=True)]
        assert max(errors) > WITNESS


# --- E7: where all estimators are exact -----------------------------------------------------------


def assert_all_equal_backward_sgd(problem: Problem, batch: Batch) -> None:
    reference = BackwardSGD()
    want = reference.estimate(problem, reference.init(problem), batch)
    for name, estimator in EVERY_ESTIMATOR.items():
        got = estimator.estimate(problem, estimator.init(problem), batch)
        assert_gradients(f"{name}, nodes {batch.nodes.tolist()}", got.gradient, want.gradient)
        assert_close(f"{name}, nodes {batch.nodes.tolist()}: loss", got.loss, want.loss)


@given(problems())
def test_e7_whole_graph_batch_is_exact(problem: Problem) -> None:
    exact = exact_pass(problem)
    batch = Batch.of(range(problem.graph.num_nodes))
    for name, estimator in EVERY_ESTIMATOR.items():
        got = estimator.estimate(problem, estimator.init(problem), batch)
        assert_gradients(f"{name} on the whole graph", got.gradient, exact.gradient)
        assert_close(f"{name} on the whole graph: loss", got.loss, exact.loss)


@given(problems(graphs(max_edges=6)))
def test_e7_no_cut_edge_makes_all_estimators_equal(problem: Problem) -> None:
    graph = problem.graph
    source, destination = graph.edge_index.numpy()
    ones = coo_array((torch.ones(graph.num_edges).numpy(), (source, destination)), shape=(graph.num_nodes,) * 2)
    partition = Partition.from_labels(torch.from_numpy(connected_components(ones, directed=False)[1]))
    for batch in cluster_batches(partition):
        assert_all_equal_backward_sgd(problem, batch)


@given(with_design(graph=graphs(max_edges=0)))
def test_e7_edgeless_graphs_make_all_estimators_equal(drawn: tuple) -> None:
    problem, design = drawn
    exact = exact_pass(problem)
    for batch, _ in list(design.enumerate())[:2]:
        assert_all_equal_backward_sgd(problem, batch)
    mean = expectation(design, estimate(GAS(), problem, GAS().init(problem)))
    assert_gradients(f"E[GAS] on an edgeless graph under {design}", mean, exact.gradient)
