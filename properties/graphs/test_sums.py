"""Long sums have the same bits for every number of threads, and so have losses, exact passes and estimates."""

from __future__ import annotations

import math
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lmc_verify.graphs.sums import ordered_sum


@given(st.integers(0, 20_000), st.integers(0, 2**31))
def test_it_is_the_sum(length: int, seed: int) -> None:
    values = torch.randn(length, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    values.requires_grad_()
    total = ordered_sum(values)
    assert float(total.detach()) == pytest.approx(math.fsum(values.tolist()), abs=1e-13 * max(1, length))
    total.backward()
    assert torch.equal(values.grad, torch.ones(length, dtype=torch.float64))


@pytest.mark.parametrize("shape", [(4096,), (4097,), (3, 5000), (4096 * 4096 + 1,)])
def test_every_entry_counts_once(shape: tuple[int, ...]) -> None:
    assert float(ordered_sum(torch.ones(shape, dtype=torch.float64))) == math.prod(shape)


SCRIPT = """
import torch
from torch_geometric.data import Data
import lmc_verify as lv
from lmc_verify.graphs.sums import ordered_sum
from lmc_verify.objective.problem import gradient_norm

n, source = 50_000, torch.Generator().manual_seed(0)
data = Data(
    x=torch.randn(n, 8, generator=source, dtype=torch.float64),
    edge_index=torch.randint(n, (2, 3 * n), generator=source),
    y=torch.randint(5, (n,), generator=source),
    train_mask=torch.rand(n, generator=source) < 0.8,
)
graph = lv.Graph.from_pyg(data)
problem = lv.Problem(graph, lv.GCN(8, 16, 5, num_layers=2, seed=0).double())
exact = lv.exact_pass(problem)
batch = next(iter(lv.Clusters(lv.Partition.contiguous(n, 2), per_batch=1).enumerate()))[0]
estimator = lv.LMC(beta=0.5)
estimate = estimator.estimate(problem, estimator.init(problem), batch)
print(float(ordered_sum(torch.randn(300_000, generator=source, dtype=torch.float64))).hex())
print(float(exact.loss).hex(), float(estimate.loss).hex())
print(gradient_norm(exact.gradient).hex(), gradient_norm(estimate.gradient).hex())
for gradient in (exact.gradient, estimate.gradient):
    print(*(hash(value.numpy().tobytes()) for value in gradient.values()))
"""


def test_losses_exact_passes_and_estimates_have_the_same_bits_for_every_number_of_threads() -> None:
    found = []
    for threads in ("1", "2"):
        environment = {**os.environ, "OMP_NUM_THREADS": threads, "PYTHONHASHSEED": "0"}
        ran = subprocess.run(
            [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=False, timeout=300
        )
        assert ran.returncode == 0, ran.stderr
        found.append(ran.stdout)
    assert found[0] == found[1]
