"""E1: LMC equals Backward SGD on every batch from exact histories, and does not where a layer is not linear."""

from __future__ import annotations

import pytest
from common.helpers import assert_close, assert_gradients
from common.identities import bias, with_batch, witness
from hypothesis import given

from lmc_verify import (
    GAT,
    GCN,
    LMC,
    SAGE,
    BackwardSGD,
    Clusters,
    History,
    exact_pass,
)


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


@pytest.mark.parametrize(("kind", "cut"), [(GCN, "post"), (SAGE, "post"), (GAT, "pre"), (GAT, "post")])
def test_e1_fails_where_a_layer_is_not_aggregate_linear(kind: type, cut: str) -> None:
    problem, partition = witness(kind=kind, activation_cut=cut)
    assert not problem.model.aggregate_linear
    assert bias(problem, LMC(), Clusters(partition, 1)) > 1e-4
    assert bias(problem, BackwardSGD(), Clusters(partition, 1)) < 1e-12
