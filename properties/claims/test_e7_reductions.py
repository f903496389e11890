"""E7: where no message crosses a batch's border every estimator is exact, and the claim checks all four such cases."""

from __future__ import annotations

import pytest
import torch
from common.claim_cases import case_of
from common.helpers import assert_close, assert_gradients, examples, expectation
from common.identities import cluster_batches, estimate, with_batch, with_design
from hypothesis import given
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from lmc_verify import (
    FM,
    GAS,
    LMC,
    BackwardSGD,
    Batch,
    ClusterGCN,
    Estimator,
    LMCBackwardOnly,
    LMCForwardOnly,
    Partition,
    Problem,
    exact_pass,
)
from lmc_verify.claims.consequences.e7_reductions import REDUCTIONS
from lmc_verify.testing import graphs, problems

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


@pytest.mark.slow
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


def assert_all_equal_backward_sgd(problem: Problem, batch: Batch) -> None:
    reference = BackwardSGD()
    want = reference.estimate(problem, reference.init(problem), batch)
    for name, estimator in EVERY_ESTIMATOR.items():
        got = estimator.estimate(problem, estimator.init(problem), batch)
        assert_gradients(f"{name}, nodes {batch.nodes.tolist()}", got.gradient, want.gradient)
        assert_close(f"{name}, nodes {batch.nodes.tolist()}: loss", got.loss, want.loss)


@examples(20)
@given(problems())
def test_e7_whole_graph_batch_is_exact(problem: Problem) -> None:
    exact = exact_pass(problem)
    batch = Batch.of(range(problem.graph.num_nodes))
    for name, estimator in EVERY_ESTIMATOR.items():
        got = estimator.estimate(problem, estimator.init(problem), batch)
        assert_gradients(f"{name} on the whole graph", got.gradient, exact.gradient)
        assert_close(f"{name} on the whole graph: loss", got.loss, exact.loss)


@pytest.mark.slow
@given(problems(graphs(max_edges=6)))
def test_e7_no_cut_edge_makes_all_estimators_equal(problem: Problem) -> None:
    graph = problem.graph
    source, destination = graph.edge_index.numpy()
    ones = coo_array((torch.ones(graph.num_edges).numpy(), (source, destination)), shape=(graph.num_nodes,) * 2)
    partition = Partition.from_labels(torch.from_numpy(connected_components(ones, directed=False)[1]))
    for batch in cluster_batches(partition):
        assert_all_equal_backward_sgd(problem, batch)


@pytest.mark.slow
@given(with_design(graph=graphs(max_edges=0)))
def test_e7_edgeless_graphs_make_all_estimators_equal(drawn: tuple) -> None:
    problem, design = drawn
    exact = exact_pass(problem)
    for batch, _ in list(design.enumerate())[:2]:
        assert_all_equal_backward_sgd(problem, batch)
    mean = expectation(design, estimate(GAS(), problem, GAS().init(problem)))
    assert_gradients(f"E[GAS] on an edgeless graph under {design}", mean, exact.gradient)


def test_the_reductions_are_four() -> None:
    verdict = REDUCTIONS.check(case_of("lmc beta"))
    names = {item.quantity for item in verdict.evidence if item.group == "residual"}
    assert names == {"all clusters in one batch", "no cut edges", "no edges", "one layer, against Backward SGD"}
    assert len(REDUCTIONS.check(case_of("cluster-gcn")).evidence) == 3 + 1
