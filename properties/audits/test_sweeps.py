"""What a step keeps between batches is brought to rest at frozen parameters, and judged there."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from common.audit_cases import make_net, random_graph, subgraphs
from common.crossed import crossed
from torch import Tensor, nn
from torch.nn import functional as F
from torch_geometric.data import Data

import lmc_verify as lv
from lmc_verify import Audit, Outcome
from lmc_verify.audits.sweeps import FIRST_SWEEPS, MOST_SWEEPS

NODES = 12


class Kept(nn.Module):
    """A model with a table of what the last steps saw, as a buffer, a plain tensor or a frozen parameter."""

    def __init__(self, *, buffer: bool | str = True, saved: bool = True) -> None:
        super().__init__()
        self.net = make_net()
        table = torch.zeros(NODES, 3, dtype=torch.float64)
        if buffer == "frozen parameter":
            self.table = nn.Parameter(table, requires_grad=False)
        elif buffer:
            self.register_buffer("table", table, persistent=saved)
        else:
            self.table = table

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        out: Tensor = self.net(x, edge_index)
        return out


def averaging(rate: float) -> Any:
    """Return a step with a scale that is brought up to date by a moving average: unbiased once it is at rest."""

    def step(model: Any, batch: Data, data: Data) -> None:
        out = model(data.x, data.edge_index)
        with torch.no_grad():
            fresh = out[batch.n_id] / out[batch.n_id].detach()
            model.table[batch.n_id] += rate * (fresh - model.table[batch.n_id])
        losses = F.cross_entropy(out, data.y, reduction="none")[batch.n_id] * model.table[batch.n_id, 0]
        (4 * losses[data.train_mask[batch.n_id]].sum() / data.train_mask.sum()).backward()

    return step


def judge(step: Any, state: Any, *, model: nn.Module | None = None, **options: Any) -> Audit:
    data = random_graph(NODES)
    model = Kept() if model is None else model
    return lv.audit(model, data, subgraphs(data, 3), step, state=state, causes=False, **options)


STATES = {
    "tensor": lambda model: model.table,
    "list": lambda model: [model.table],
    "functions that hand out the tensor": lambda model: (
        lambda: {"table": model.table},
        lambda kept: model.table.copy_(kept["table"]),
    ),
    "functions that hand out a copy": lambda model: (
        lambda: model.table.clone(),
        lambda kept: model.table.copy_(kept),
    ),
}


@pytest.mark.parametrize(("buffer", "state"), crossed([True, False, "frozen parameter"], STATES))
def test_state_at_rest_is_judged(state: str, buffer: bool | str) -> None:
    """The average is exact after one sweep at rate 1: a bias of the start is none at rest."""
    found = judge(averaging(1.0), STATES[state], model=Kept(buffer=buffer))
    assert found.outcome is Outcome.EXACT, str(found)
    assert any("came to rest after 1 sweeps" in note for note in found.notes)


@pytest.mark.parametrize("state", STATES)
def test_bias_by_sweeps_falls_as_the_state_comes_to_rest(state: str) -> None:
    """From a table of zeros the mean lacks (1 - rate) ** (k + 1) of the gradient after k sweeps."""
    found = judge(averaging(0.5), STATES[state], sweeps=4)
    curve = next(series for series in found.series if series.name == "bias")
    assert curve.x == (0.0, 1.0, 2.0, 3.0, 4.0)
    assert curve.y == pytest.approx([0.5 ** (k + 1) for k in range(5)])
    assert found.bias == pytest.approx(0.5**5)
    assert found.outcome is Outcome.REFUTED


def test_state_as_given_is_judged_without_sweeps() -> None:
    found = judge(averaging(0.5), STATES["tensor"], sweeps=0)
    assert found.bias == pytest.approx(0.5)
    assert not any("came to rest" in note for note in found.notes)


def test_state_that_never_rests_is_said() -> None:
    def step(model: Any, batch: Data, data: Data) -> None:
        averaging(1.0)(model, batch, data)
        with torch.no_grad():
            model.count.add_(1.0)

    model: Any = Kept()
    model.register_buffer("count", torch.zeros(()))
    found = judge(step, lambda model: [model.table, model.count], model=model)
    assert any(f"still changes after {FIRST_SWEEPS} sweeps" in note for note in found.notes)
    assert found.outcome is Outcome.EXACT, "the table rests, and nothing depends on the count"


def test_a_state_whose_changes_shrink_is_swept_until_it_rests() -> None:
    """At rate 0.5 each sweep halves the bias: 12 of them leave one in ten thousand, which is none at rest."""
    found = judge(averaging(0.5), STATES["tensor"])
    assert found.outcome is Outcome.EXACT, str(found)
    assert any("the state came to rest after" in note for note in found.notes)


def test_a_bias_of_a_state_that_moves_too_slowly_is_not_called_one() -> None:
    found = judge(averaging(0.2), STATES["tensor"])
    assert found.bias == pytest.approx(0.8 ** (FIRST_SWEEPS + 1))
    assert found.outcome is Outcome.INCONCLUSIVE, str(found)
    assert f"it is of a state that still changes after {FIRST_SWEEPS} sweeps; sweeps=" in found.summary


@pytest.mark.slow
def test_so_many_sweeps_as_are_named_bring_a_slow_state_to_rest() -> None:
    (needed,) = {int(number) for number in re.findall(r"sweeps=(\d+)", str(judge(averaging(0.2), STATES["tensor"])))}
    assert needed > MOST_SWEEPS
    assert judge(averaging(0.2), STATES["tensor"], sweeps=needed).outcome is Outcome.EXACT
    assert judge(averaging(0.2), STATES["tensor"], sweeps=30).outcome is Outcome.REFUTED, "judged as was asked for"


def test_a_bias_that_stays_is_one_though_the_state_moves_on() -> None:
    def step(model: Any, batch: Data, data: Data) -> None:
        with torch.no_grad():
            model.table.add_(1.0)
        F.cross_entropy(model(data.x, data.edge_index)[batch.n_id], data.y[batch.n_id]).backward()

    found = judge(step, STATES["tensor"])
    assert found.outcome is Outcome.REFUTED, str(found)
    assert any(f"still changes after {FIRST_SWEEPS} sweeps" in note for note in found.notes)


def test_the_caller_s_state_is_put_back() -> None:
    table = torch.full((NODES, 3), 0.25, dtype=torch.float32)

    def step(model: nn.Module, batch: Data, data: Data) -> None:
        table[batch.n_id] += 1.0
        F.cross_entropy(model(data.x, data.edge_index)[batch.n_id], data.y[batch.n_id]).backward()

    judge(step, table, model=make_net(), sweeps=3)
    assert table.dtype is torch.float32
    assert bool((table == 0.25).all())


def test_state_that_is_bound_anew_is_kept() -> None:
    def step(model: Any, batch: Data, data: Data) -> None:
        model.table = model.table.clone()
        averaging(0.5)(model, batch, data)

    found = judge(step, lambda model: model, model=Kept(buffer=False), sweeps=2)
    assert found.bias == pytest.approx(0.5**3)
