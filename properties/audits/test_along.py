"""Bias and error along training are those of a copy that a plain loop has trained as far."""

from __future__ import annotations

import copy
import itertools
import math
from typing import Any

import pytest
import torch
from common.audit_cases import FreshPairs, backward_sgd, cluster_step, make_net, parts, random_graph, subgraphs
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torch_geometric.data import Data

import lmc_verify as lv
from lmc_verify import Audit, Clusters, EpochClusters, InvalidInputError, Partition
from lmc_verify.audits.along import looks_of
from lmc_verify.audits.batches.law import law_of
from lmc_verify.errors import NotFiniteError


def judge(
    step: Any, batches: Any, *, model: nn.Module | None = None, data: Data | None = None, **options: Any
) -> Audit:
    data = random_graph() if data is None else data
    return lv.audit(make_net() if model is None else model, data, batches, step, **{"causes": False, **options})


def curves(found: Audit) -> dict[str, tuple[tuple[float, ...], tuple[float, ...]]]:
    return {series.name: (series.x, series.y) for series in found.series if series.figure == "Along training"}


ERROR = "error of one step (root mean square)"


def gradient(model: nn.Module) -> Tensor:
    found = [torch.zeros_like(value) if value.grad is None else value.grad for value in model.parameters()]
    model.zero_grad()
    return torch.cat([value.flatten() for value in found])


def judged_by_hand(model: nn.Module, data: Data, batches: list[Data]) -> tuple[float, float]:
    private = copy.deepcopy(model)
    F.cross_entropy(private(data.x, data.edge_index)[data.train_mask], data.y[data.train_mask]).backward()
    exact, found = gradient(private), []
    for batch in batches:
        cluster_step(private, batch)
        found.append(gradient(private))
    mean = torch.stack(found).mean(0)
    squares = [float((item - exact).square().sum()) for item in found]
    unit = float(exact.norm())
    return float((mean - exact).norm()) / unit, math.sqrt(sum(squares) / len(squares)) / unit


@pytest.mark.parametrize("kind", ["sgd", "adam", "default"])
def test_curves_are_those_of_a_plain_loop(kind: str) -> None:
    make = {
        "sgd": lambda p: torch.optim.SGD(p, lr=0.2, momentum=0.5),
        "adam": lambda p: torch.optim.Adam(p, lr=0.05),
        "default": None,
    }[kind]
    data, model, looks = random_graph(), make_net(), [0, 1, 3, 8]
    batches = subgraphs(data, 3)
    found = curves(judge(cluster_step, batches, data=data, model=model, along=looks, optimizer=make))
    private = copy.deepcopy(model)
    optimizer = (make or (lambda p: torch.optim.SGD(p, lr=0.01)))(private.parameters())
    wanted = []
    for number in range(9):
        if number in looks:
            wanted.append(judged_by_hand(private, data, batches))
        optimizer.zero_grad()
        cluster_step(private, batches[number % 4])
        optimizer.step()
        optimizer.zero_grad()
    assert found["bias"][0] == (0.0, 1.0, 3.0, 8.0)
    assert found["bias"][1] == pytest.approx([bias for bias, _ in wanted])
    assert found[ERROR][1] == pytest.approx([error for _, error in wanted])


def test_unbiased_steps_stay_unbiased_and_have_an_error() -> None:
    found = curves(judge(backward_sgd(4), parts(12, 3), along=5))
    assert max(found["bias"][1]) < 1e-12
    assert min(found[ERROR][1]) > 0.1


def test_a_history_is_carried_along() -> None:
    """The step counts its calls in the state, so that the bias tells how many there were."""

    def step(model: Any, batch: Tensor, data: Data) -> None:
        backward_sgd(4)(model, batch, data)
        model.count += 1.0
        for value in model.parameters():
            if value.grad is not None:
                value.grad *= model.count

    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = make_net()
            self.register_buffer("count", torch.zeros((), dtype=torch.float64), persistent=False)

        def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
            out: Tensor = self.net(x, edge_index)
            return out

    found = judge(step, parts(12, 3), model=Counting(), state=lambda model: model.count, along=[0, 1, 4], sweeps=0)
    assert curves(found)["bias"][1] == pytest.approx([0.0, 1.0, 4.0], abs=1e-9)
    assert found.bias == pytest.approx(0.0, abs=1e-9)  # the audit itself is where it started


@pytest.mark.slow
def test_what_is_judged_afterwards_is_where_it_started() -> None:
    batches = subgraphs(random_graph(), 3)
    model = make_net(norm=nn.BatchNorm1d(5))
    plain, along = (judge(cluster_step, batches, model=model, along=steps) for steps in (None, 6))
    assert plain.parameters == along.parameters
    assert plain.loss == along.loss


@pytest.mark.slow
def test_drawn_batches_are_judged_from_draws() -> None:
    found = curves(judge(backward_sgd(4), FreshPairs(12, 3), along=[0, 2]))
    assert len(found["bias"][1]) == 2
    assert max(found["bias"][1]) < 0.2
    assert min(found[ERROR][1]) > 0.1


def test_designs_are_drawn_and_not_gone_through_in_order() -> None:
    """Six batches of two of four clusters: in the order of the enumeration cluster 0 would come three times first."""
    data, partition = random_graph(), Partition.contiguous(12, 4)
    stream = law_of(Clusters(partition, 2), data, sampling=None, seed=0).training(1)
    seen = [tuple(next(stream).n_id.tolist()) for _ in range(60)]
    listed = [tuple(batch.nodes.tolist()) for batch, _ in Clusters(partition, 2).enumerate()]
    assert set(seen) == set(listed)
    assert seen[:6] != listed
    assert any(one == other for one, other in itertools.pairwise(seen))  # independent draws may repeat
    epochs = law_of(EpochClusters(partition, 2), data, sampling=None, seed=0).training(1)
    assert all(len({*next(epochs).n_id.tolist(), *next(epochs).n_id.tolist()}) == 12 for _ in range(5))


def test_shuffled_loaders_are_shuffled_along_training() -> None:
    loader = DataLoader(parts(12, 3), batch_size=None, shuffle=True)
    stream = law_of(loader, random_graph(), sampling=None, seed=0).training(1)
    epochs = [tuple(int(next(stream)[0]) for _ in range(4)) for _ in range(8)]
    assert len(set(epochs)) > 1
    assert all(sorted(epoch) == [0, 3, 6, 9] for epoch in epochs)


def test_divergence_is_said() -> None:
    def objective(model: nn.Module, data: Data) -> Tensor:
        return model(data.x, data.edge_index).square().mean()

    def step(model: nn.Module, batch: Tensor, data: Data) -> None:
        model(data.x, data.edge_index).square().mean().backward()

    with pytest.raises(NotFiniteError, match=r"after \d+ optimiser steps along training.*smaller step size"):
        judge(step, parts(12, 6), objective=objective, along=400, optimizer=lambda p: torch.optim.SGD(p, lr=1e3))


@pytest.mark.parametrize(("along", "looks"), [(1, [0, 1]), (3, [0, 1, 2, 3]), (100, list(range(0, 101, 10)))])
def test_looks_of_a_number(along: int, looks: list[int]) -> None:
    assert looks_of(along) == looks


def test_looks_of_a_list() -> None:
    assert looks_of([5, 0, 5]) == [0, 5]
    assert looks_of((3,)) == [3]


@pytest.mark.parametrize("wrong", [0, -1, [], [-1, 2], [1.5], True, "12", 2.0, None])
def test_looks_of_nothing(wrong: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"a number of optimiser steps from 1 on, or a list"):
        looks_of(wrong)
