"""Results do not depend on the device: exact passes and estimates on CUDA equal those on the CPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import lmc_verify as lv
from lmc_verify.estimators import ESTIMATORS, batch_law

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
    law = batch_law(estimator, problem, state, lv.Clusters(lv.Partition.metis(problem.graph, 4), 1))
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
