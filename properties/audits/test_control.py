"""A control is subtracted from every draw: its mean must be the exact gradient, or the bias found is its own."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from common.step_cases import CLASSES, NODES, WIDTH, built, ring, training_loss
from torch import Tensor, nn
from torch.nn import functional as F
from torch_geometric.data import Data
from torch_geometric.nn import GCN

import lmc_verify as lv
from lmc_verify.audits.batches.law import Unit, law_of
from lmc_verify.audits.batches.nodes import NodesReader
from lmc_verify.audits.control import control_of, loss_on, splits
from lmc_verify.audits.interventions import labelled_nodes
from lmc_verify.audits.measure import Deviations
from lmc_verify.audits.subject import Gradient, Subject, added, norm
from lmc_verify.steps import StepRunner, mean_loss, objective_gradient
from lmc_verify.steps.row_gradients import RowGradients


def model() -> nn.Module:
    return built(lambda: GCN(WIDTH, 4, 2, CLASSES)).double()


class Shuffled:
    """Node ids in two parts, other ones in every pass."""

    def __iter__(self) -> Iterator[Tensor]:
        return iter(torch.randperm(NODES).chunk(2))


class Overlapping:
    """Parts that overlap: no node is in a known share of them."""

    def __iter__(self) -> Iterator[Tensor]:
        return iter(torch.randperm(NODES)[:5].split(3))


def step(model: nn.Module, batch: Any, data: Data) -> None:
    """GAS with exact histories: the gradient flows through the batch's rows alone."""
    inside = torch.zeros(NODES, dtype=torch.bool)
    inside[batch if isinstance(batch, Tensor) else batch.n_id] = True
    h = model.convs[0](data.x, data.edge_index).relu()
    h = torch.where(inside[:, None], h, h.detach())
    out, chosen = model.convs[1](h, data.edge_index), inside & data.train_mask
    (2 * F.cross_entropy(out[chosen], data.y[chosen], reduction="sum") / int(data.train_mask.sum())).backward()


def subject_of(batches: Any, objective: Any = mean_loss, own: Any = step) -> Subject:
    data = ring(torch.float64)
    law = law_of(batches, data, sampling=None, seed=0)
    return Subject(StepRunner(model(), own), data, law, NodesReader(data), objective, 0)


def every_unit() -> list[Unit]:
    """All draws of `Shuffled` with one batch each, equally likely."""
    halves = itertools.combinations(range(NODES), NODES // 2)
    return [Unit((torch.tensor(half),), (1.0,), (0,), 2) for half in halves]


def mean(gradients: list[Gradient]) -> Gradient:
    total = gradients[0]
    for item in gradients[1:]:
        total = added(total, item)
    return {name: value / len(gradients) for name, value in total.items()}


@pytest.mark.parametrize("objective", [mean_loss, training_loss])
def test_its_mean_over_all_draws_is_the_exact_gradient(objective: Any) -> None:
    subject = subject_of(Shuffled(), objective)
    control = control_of(subject)
    assert "the same nodes" in control.words
    found = mean([control(unit) for unit in every_unit()])
    assert norm(added(found, subject.exact, -1.0)) <= 1e-12 * norm(subject.exact)
    single = control(every_unit()[0])
    assert norm(added(single, subject.exact, -1.0)) > 0.1 * norm(subject.exact)


def on_the_loss(model: nn.Module, batch: Tensor, data: Data) -> None:
    """The whole graph, and the loss on the batch."""
    chosen = data.train_mask.clone()
    chosen &= torch.isin(torch.arange(NODES), batch)
    out = model(data.x, data.edge_index)
    (2 * F.cross_entropy(out[chosen], data.y[chosen], reduction="sum") / int(data.train_mask.sum())).backward()


def on_the_rows(model: nn.Module, batch: Tensor, data: Data) -> Gradient:
    """Backward SGD."""
    exact = objective_gradient(model, data, mean_loss)[1]
    return RowGradients(model, data, mean_loss, NODES, exact).of(2 * torch.isin(torch.arange(NODES), batch).double())


@pytest.mark.parametrize(
    ("own", "words"),
    [(on_the_loss, "the gradient of the loss on the same nodes"), (on_the_rows, "Backward SGD on the same nodes")],
)
def test_the_one_with_less_noise_is_taken(own: Any, words: str) -> None:
    subject = subject_of(Shuffled(), own=own)
    control = control_of(subject)
    assert control.words == words
    for unit in every_unit()[::9]:
        gap = norm(added(control(unit), subject.step(unit.batches[0], 0), -1.0))
        assert gap <= 1e-12 * norm(subject.exact)


def test_of_a_design_it_is_weighted_by_inclusion() -> None:
    design = lv.UniformNodes(NODES, 4)
    subject = subject_of(design)
    assert subject.law.batches is not None  # 70 batches are listed, so that no control is needed
    assert control_of(subject).words == "the exact gradient"
    subject = subject_of(lv.UniformNodes(NODES, 4))
    subject.law.batches, subject.law.inclusion = None, design.inclusion_probabilities()
    control = control_of(subject)
    found = mean([control(Unit((batch.nodes,), (1.0,), (0,))) for batch, _ in design.enumerate()])
    assert norm(added(found, subject.exact, -1.0)) <= 1e-12 * norm(subject.exact)


def test_without_known_shares_it_is_the_exact_gradient() -> None:
    subject = subject_of(Overlapping())
    assert control_of(subject).words == "the exact gradient"


@pytest.mark.parametrize("objective", [mean_loss, training_loss])
def test_the_loss_is_split_by_nodes(objective: Any) -> None:
    subject = subject_of(Shuffled(), objective)
    labelled = labelled_nodes(subject.data)
    assert labelled is not None
    assert splits(subject, labelled)
    weights = torch.rand(NODES, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    out = subject.model.eval()(subject.data.x, subject.data.edge_index)
    losses = F.cross_entropy(out, subject.data.y, reduction="none") * weights * labelled
    slow = torch.autograd.grad(losses.sum() / int(labelled.sum()), list(subject.model.parameters()))
    for ours, theirs in zip(loss_on(subject, weights).values(), slow, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-15)


def test_what_is_no_mean_over_the_mask_is_not_split() -> None:
    subject = subject_of(Shuffled(), lambda model, data: training_loss(model, data) ** 2)
    labelled = labelled_nodes(subject.data)
    assert labelled is not None
    assert not splits(subject, labelled)


def test_losses_of_before_are_not_used_after_parameters_have_moved() -> None:
    subject = subject_of(Shuffled())
    ones = torch.ones(NODES, dtype=torch.float64)
    loss_on(subject, ones)
    with torch.no_grad():
        for value in subject.model.parameters():
            value.mul_(1.5)
    subject.moved()
    found = loss_on(subject, ones)
    assert norm(added(found, subject.exact, -1.0)) <= 1e-12 * norm(subject.exact)


@pytest.mark.parametrize("unit", [1.0, 1e-200, 1e200])
def test_the_noise_of_a_mean_is_its_standard_error(unit: float) -> None:
    draws = torch.randn(7, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    deviations = Deviations(unit)
    for draw in draws:
        deviations.update({"weight": unit * draw}, 2)
    found = deviations.measured({"weight": 0.0})
    torch.testing.assert_close(found.bias["weight"] / unit, draws.mean(0))
    assert found.noise["weight"] / unit == pytest.approx(float((draws.var(0) / 7).sum()) ** 0.5)
    assert found.draws == 14
