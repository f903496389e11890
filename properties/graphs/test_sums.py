"""Long sums have the same bits for every number of threads, and so have losses, exact passes and estimates."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch_geometric.data import Data

from lmc_verify import GCN, LMC, Clusters, Graph, Partition, Problem, exact_pass
from lmc_verify.graphs.sums import ordered_sum
from lmc_verify.objective.problem import gradient_norm


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


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """Set the number of threads; afterwards it is what it was."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_losses_exact_passes_and_estimates_have_the_same_bits_for_every_number_of_threads(
    threads: Callable[[int], None],
) -> None:
    n, source = 50_000, torch.Generator().manual_seed(0)
    data = Data(
        x=torch.randn(n, 8, generator=source, dtype=torch.float64),
        edge_index=torch.randint(n, (2, 3 * n), generator=source),
        y=torch.randint(5, (n,), generator=source),
        train_mask=torch.rand(n, generator=source) < 0.8,
    )
    values = torch.randn(300_000, generator=source, dtype=torch.float64)
    design = Clusters(Partition.contiguous(n, 2), per_batch=1)
    batch, estimator = next(iter(design.enumerate()))[0], LMC(beta=0.5)
    found = []
    for number in (1, 2):
        threads(number)
        problem = Problem(Graph.from_pyg(data), GCN(8, 16, 5, num_layers=2, seed=0).double())
        exact = exact_pass(problem)
        estimate = estimator.estimate(problem, estimator.init(problem), batch)
        numbers = [ordered_sum(values), exact.loss, estimate.loss]
        norms = [gradient_norm(each.gradient) for each in (exact, estimate)]
        gradients = [value.numpy().tobytes() for each in (exact, estimate) for value in each.gradient.values()]
        found.append(([float(number).hex() for number in numbers], [norm.hex() for norm in norms], gradients))
    assert found[0] == found[1]
