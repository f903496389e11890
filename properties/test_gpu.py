"""Results do not depend on the device: exact passes and estimates on CUDA equal those on the CPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import lmc_verify as lv
from lmc_verify.estimators import ESTIMATORS, batch_distribution

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device"),
]


def _problem(model: str) -> lv.Problem:
    graph = lv.load_graph("directed", num_nodes=60, num_edges=240).double()
    net = lv.make_model(model, graph.num_features, 8, graph.num_outputs, num_layers=3, dtype=torch.float64)
    return lv.Problem(graph, net.eval())


def _assert_close(left: lv.Gradient, right: lv.Gradient) -> None:
    for name, value in left.items():
        assert torch.allclose(value.cpu(), right[name].cpu(), rtol=1e-10, atol=1e-13), name


@pytest.mark.parametrize("model", ["gcn", "sage", "gat"])
def test_exact_pass(model: str) -> None:
    problem = _problem(model)
    _assert_close(lv.exact_pass(problem).gradient, lv.exact_pass(problem.to("cuda")).gradient)


@pytest.mark.parametrize("name", list(ESTIMATORS))
def test_estimates(name: str) -> None:
    problem = _problem("gcn")
    there = problem.to("cuda")
    estimator = lv.make_estimator(name)
    state, state_there = estimator.init(problem), estimator.init(there)
    law = batch_distribution(estimator, problem, state, lv.Clusters(lv.Partition.metis(problem.graph, 4), 1))
    rng = np.random.default_rng(0)
    for _ in range(4):
        batch = law.draw(rng)
        one, other = estimator.estimate(problem, state, batch), estimator.estimate(there, state_there, batch)
        _assert_close(one.gradient, other.gradient)
        state.apply(one.writes)
        state_there.apply(other.writes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sparse_product(dtype: torch.dtype) -> None:
    block = lv.load_graph("karate").to("cuda", dtype).operator("gcn")
    dense = torch.randn(34, 5, dtype=dtype, generator=torch.Generator().manual_seed(0)).cuda().requires_grad_()
    product = lv.spmm(block, dense)
    expected = block.csr.to_dense() @ dense
    assert torch.allclose(product, expected, rtol=1e-5)
    cotangent = torch.ones_like(product)
    (left,) = torch.autograd.grad(product, dense, cotangent)
    (right,) = torch.autograd.grad(expected, dense, cotangent)
    assert torch.allclose(left, right, rtol=1e-5)


@pytest.mark.parametrize("estimator", [lv.LMC(), lv.LMC(beta=0.4), lv.GAS()], ids=["lmc", "lmc that blends", "gas"])
def test_histories_in_page_locked_memory(estimator: lv.Estimator) -> None:
    """Rows that are read ahead, on a stream of their own, are those of the device's own tables."""
    there = _problem("gcn").to("cuda")
    state = estimator.init(there)
    host = state.pinned()
    for batch, _ in lv.Clusters(lv.Partition.random(60, 4), 1).enumerate():
        one, other = estimator.estimate(there, state, batch), estimator.estimate(there, host, batch)
        _assert_close(one.gradient, other.gradient)
        state.apply(one.writes)
        host.apply(other.writes)
    for kind in ("embedding", "auxiliary"):
        for layer, table in state.table(kind).items():
            assert host.table(kind)[layer].is_pinned()
            assert torch.allclose(table.cpu(), host.table(kind)[layer], rtol=1e-10, atol=1e-13)


def test_exact_gradient() -> None:
    problem = _problem("gcn")
    _assert_close(lv.exact_gradient(problem)[1], lv.exact_gradient(problem.to("cuda"))[1])
