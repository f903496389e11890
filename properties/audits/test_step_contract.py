"""What breaks a step's contract is an error that names it, and never a statement about bias."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from common.audit_cases import backward_sgd, cluster_step, make_net, parts, random_graph, subgraphs
from torch import Tensor, nn
from torch.nn import functional as F
from torch_geometric.data import Data
from torch_geometric.nn import GCNConv

import lmc_verify as lv
from lmc_verify import Audit, ContractError, InvalidInputError
from lmc_verify.errors import NotFiniteError

Step = Callable[..., Any]


def judge(step: Step, *, model: nn.Module | None = None, data: Data | None = None, **options: Any) -> Audit:
    """Audit a step on four subgraphs of twelve nodes."""
    data = random_graph() if data is None else data
    options.setdefault("batches", subgraphs(data, 3))
    model = make_net() if model is None else model
    return lv.audit(model, data, options.pop("batches"), step, causes=False, **options)


def snapshot(value: Any) -> dict[str, bytes]:
    """Return everything that an audit must not change, as bytes."""
    tensors = dict(value.items()) if isinstance(value, dict) else value.to_dict()
    return {key: item.detach().numpy().tobytes() for key, item in tensors.items() if isinstance(item, Tensor)}


# Randomness and memory.


@pytest.mark.slow
def test_own_randomness_is_no_violation() -> None:
    def step(model: nn.Module, batch: Data) -> None:
        model.train()
        cluster_step(model, batch)

    found = judge(step, model=make_net(dropout=0.5), batches=subgraphs(random_graph(), 6))
    assert any("draws for itself (dropout)" in note for note in found.notes)


@pytest.mark.slow
@pytest.mark.parametrize("source", ["torch", "numpy", "random"])
def test_randomness_of_the_global_generators_is_seeded(source: str) -> None:
    def step(model: nn.Module, batch: Data) -> None:
        number = {"torch": lambda: float(torch.rand(())), "numpy": np.random.rand, "random": random.random}[source]()
        out = model(batch.x, batch.edge_index)
        (F.cross_entropy(out, batch.y) * number).backward()

    found = judge(step)
    assert found.guarantee == "asymptotic"
    assert any("draws for itself" in note for note in found.notes)


@pytest.mark.slow
def test_randomness_in_a_late_batch_only_is_seen() -> None:
    def step(model: nn.Module, batch: Data) -> None:
        out = model(batch.x, batch.edge_index)
        scale = 1.0 + (float(torch.rand(())) if int(batch.n_id[0]) == 10 else 0.0)
        (F.cross_entropy(out, batch.y) * scale).backward()

    found = judge(step, batches=subgraphs(random_graph(), 2))
    assert found.guarantee == "asymptotic"


def test_a_generator_of_its_own() -> None:
    source = np.random.default_rng(0)

    def step(model: nn.Module, batch: Data) -> None:
        out = model(batch.x, batch.edge_index)
        (F.cross_entropy(out, batch.y) * source.random()).backward()

    with pytest.raises(ContractError, match=r"same seed: it remembers earlier calls.*generator of its own"):
        judge(step)


def test_memory_in_a_closure() -> None:
    calls: list[int] = []

    def step(model: nn.Module, batch: Data) -> None:
        calls.append(1)
        out = model(batch.x, batch.edge_index)
        (F.cross_entropy(out, batch.y) * len(calls)).backward()

    with pytest.raises(ContractError, match="remembers earlier calls"):
        judge(step)


class Stored(nn.Module):
    """A convolution with what the last batches gave, which the next ones read: a history, in an attribute."""

    def __init__(self, nodes: int = 12) -> None:
        super().__init__()
        self.net = make_net()
        self.history = torch.zeros(nodes, 3, dtype=torch.float64)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        out: Tensor = self.net(x, edge_index)
        return out


def push_and_pull(model: nn.Module, batch: Data) -> None:
    """Read the history of the nodes before the batch, and write that of the batch's own: one batch does not see it."""
    out = model(batch.x, batch.edge_index)
    history: Any = model.history
    before = history[(batch.n_id - 3) % 12].clone()
    history[batch.n_id] = out.detach()
    F.cross_entropy(out + before, batch.y).backward()


def test_undeclared_history_is_named() -> None:
    with pytest.raises(ContractError, match=r"keeps something in model\.history.*state=lambda model: model"):
        judge(push_and_pull, model=Stored())


def test_declared_history_is_no_violation() -> None:
    found = judge(push_and_pull, model=Stored(), state=lambda model: model.history)
    assert any("came to rest" in note for note in found.notes)


def test_memory_between_far_batches_is_found() -> None:
    """Each batch reads what the batch six places before wrote: none of the first four sees another of them."""
    memory: dict[int, Tensor] = {}

    def step(model: nn.Module, batch: Data) -> None:
        out = model(batch.x, batch.edge_index)
        place = int(batch.n_id[0]) // 2
        before = memory.get((place - 6) % 12, torch.zeros(3, dtype=torch.float64))
        memory[place] = out.detach().mean(0)
        F.cross_entropy(out + before, batch.y).backward()

    data = random_graph(24)
    with pytest.raises(ContractError, match="remembers earlier calls"):
        judge(step, data=data, batches=subgraphs(data, 2))


def test_memory_that_starts_late_is_found() -> None:
    """After all that is tried for the contract (68 calls), among the 30 calls for the mean."""
    calls: list[int] = []

    def step(model: nn.Module, batch: Data) -> None:
        calls.append(1)
        out = model(batch.x, batch.edge_index)
        (F.cross_entropy(out, batch.y) * (2.0 if len(calls) > 75 else 1.0)).backward()

    data = random_graph(60, density=0.05)
    with pytest.raises(ContractError, match="remembers earlier calls"):
        judge(step, data=data, batches=subgraphs(data, 2))


def test_what_is_left_in_the_model_without_effect_is_said_and_no_violation() -> None:
    class Logging(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.last = make_net(), torch.zeros(1)

        def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
            out: Tensor = self.net(x, edge_index)
            self.last = out.detach().clone()
            return out

    found = judge(cluster_step, model=Logging())
    assert any("leaves something in model.last" in note for note in found.notes)


# Parameters, buffers, the caller's own.


def test_optimiser_inside() -> None:
    def step(model: nn.Module, batch: Data) -> None:
        cluster_step(model, batch)
        torch.optim.SGD(model.parameters(), lr=0.1).step()

    found, plain = judge(step), judge(cluster_step)
    assert any("an optimiser steps inside of the step" in note for note in found.notes)
    assert not any("optimiser" in note for note in plain.notes)
    assert found.parameters == plain.parameters


def test_tables_that_a_step_writes_are_said_with_how_to_pass_them() -> None:
    """Histories in buffers or frozen parameters that are not passed as a state are put back after every step."""

    class Tables(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.rows = make_net(), nn.Embedding(2, 2, _weight=torch.zeros(2, 2), _freeze=True)
            self.register_buffer("table", torch.zeros(2))

        def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
            self.table += 1
            self.rows.weight += 1
            out: Tensor = self.net(x, edge_index)
            return out

    found = judge(cluster_step, model=Tables())
    assert any("(table); every" in note and note.endswith("state=lambda model: model.table") for note in found.notes)
    assert any("1 frozen parameters (rows.weight)" in note and "model.rows" in note for note in found.notes)
    assert not any("optimiser" in note for note in found.notes)


def test_an_input_of_edges_that_is_left_out_is_asked_for() -> None:
    """The parameters that read it have a gradient in the objective, which gives the model all that the data have."""

    class Weighing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.edge = make_net(), nn.Parameter(torch.ones(2))

        def forward(self, x: Tensor, edge_index: Tensor, edge_attr: Tensor | None = None) -> Tensor:
            out: Tensor = self.net(x, edge_index)
            return out if edge_attr is None else out * (edge_attr @ self.edge).mean()

    data = random_graph()
    data.edge_attr = torch.ones(data.num_edges, 2, dtype=torch.float64)
    with pytest.raises(ContractError, match=r"no gradient of edge, .* called without edge_attr, which the objective"):
        judge(cluster_step, model=Weighing(), data=data)


def test_running_statistics_are_said_and_judged_from_the_same_ones() -> None:
    def step(model: nn.Module, batch: Data) -> None:
        model.train()
        cluster_step(model, batch)

    found = judge(step, model=make_net(norm=nn.BatchNorm1d(5)))
    assert any("changes 3 buffers" in note and "state=" not in note for note in found.notes)
    assert found.guarantee == "exact"


def test_spectral_norm_is_no_violation() -> None:
    def step(model: nn.Module, batch: Data) -> None:
        model.train()
        cluster_step(model, batch)

    with torch.random.fork_rng([]):
        norm = nn.utils.parametrizations.spectral_norm(nn.Linear(5, 5))
    found = judge(step, model=make_net(norm=norm))
    assert any("buffers" in note for note in found.notes)
    assert found.guarantee == "exact"


def test_step_that_uses_its_own_model() -> None:
    own = make_net()
    with pytest.raises(ContractError, match=r"closes over that model.*first argument"):
        judge(lambda model, batch: cluster_step(own, batch), model=own)
    assert all(value.grad is None for value in own.parameters())


def test_step_that_uses_its_own_model_with_gradients_in_it() -> None:
    """Gradients that are there already are added to in place: the same tensor has other values."""
    own = make_net()
    for value in own.parameters():
        value.grad = torch.ones_like(value)
    given = [value.grad for value in own.parameters()]
    with pytest.raises(ContractError, match=r"own model .*leaves gradients of"):
        judge(lambda model, batch: cluster_step(own, batch), model=own)
    assert all(value.grad is kept for value, kept in zip(own.parameters(), given, strict=True))
    assert all(bool((value.grad == 1).all()) for value in own.parameters() if value.grad is not None)


def test_step_that_reads_data_of_its_own() -> None:
    own = random_graph(seed=5)

    def step(model: nn.Module, batch: Data) -> None:
        out = model(own.x, own.edge_index)[batch.n_id]
        F.cross_entropy(out, batch.y).backward()

    with pytest.raises(ContractError, match="reads data of its own"):
        judge(step)


def test_step_that_closes_over_the_data_and_not_its_batch() -> None:
    data = random_graph()

    def step(model: nn.Module, batch: Data) -> None:
        out = model(data.x, data.edge_index)[batch.n_id]
        F.cross_entropy(out, batch.y).backward()

    with pytest.raises(ContractError, match="reads data of its own"):
        judge(step, data=data)


def test_step_that_takes_features_from_its_third_argument_is_no_violation() -> None:
    def step(model: nn.Module, batch: Data, data: Data) -> None:
        out = model(data.x, data.edge_index)[batch.n_id]
        F.cross_entropy(out, batch.y).backward()

    assert judge(step).guarantee == "exact"


def test_batches_of_ids_that_read_another_data_set_are_said() -> None:
    own = random_graph(seed=5)

    def step(model: nn.Module, batch: Tensor) -> None:
        F.cross_entropy(model(own.x, own.edge_index)[batch], own.y[batch]).backward()

    found = judge(step, batches=parts(12, 3))
    assert any("a copy of its own" in note for note in found.notes)


def test_batches_of_ids_that_read_the_caller_s_data_are_fine() -> None:
    data = random_graph()

    def step(model: nn.Module, batch: Tensor) -> None:
        F.cross_entropy(model(data.x, data.edge_index)[batch], data.y[batch]).backward()

    found = judge(step, data=data, batches=parts(12, 3))
    assert not any("of its own" in note for note in found.notes)


def test_model_that_reads_no_features_is_no_violation() -> None:
    class Embedded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            with torch.random.fork_rng([]):
                self.table = nn.Embedding(12, 3)

        def forward(self, n_id: Tensor) -> Tensor:
            out: Tensor = self.table(n_id)
            return out

    def step(model: nn.Module, batch: Data) -> None:
        F.cross_entropy(model(batch.n_id), batch.y).backward()

    def objective(model: nn.Module, data: Data) -> Tensor:
        return F.cross_entropy(model(torch.arange(12)), data.y)

    found = judge(step, model=Embedded(), objective=objective)
    assert found.outcome is lv.Outcome.EXACT
    assert found.notes[0].startswith("epoch shuffling")


class Remembered(nn.Module):
    """Two sums over neighbours, without the node itself; the second one reads a history outside of the batch."""

    def __init__(self, data: Data) -> None:
        super().__init__()
        with torch.random.fork_rng([]):
            torch.manual_seed(0)
            self.first, self.second = nn.Linear(4, 5), nn.Linear(5, 3)
        self.history = torch.zeros(int(data.num_nodes or 0), 5)

    def forward(self, x: Tensor, edge_index: Tensor, own: Tensor | None = None) -> Tensor:
        def summed(value: Tensor) -> Tensor:
            return torch.zeros_like(value).index_add(0, edge_index[1], value[edge_index[0]])

        hidden = self.first(summed(x)).tanh()
        if own is not None:
            self.history[own] = hidden[own].detach()
            kept = torch.zeros(len(x), 1, dtype=torch.bool).index_fill(0, own, True)
            hidden = torch.where(kept, hidden, self.history)
        out: Tensor = self.second(summed(hidden))
        return out


def test_histories_that_are_zero_do_not_hide_that_features_are_read() -> None:
    """The first batch holds no edge: with histories of zero, its features reach the histories and no gradient."""
    data = random_graph(6)
    data.edge_index = torch.tensor([[0, 1, 2, 3, 4, 5], [1, 2, 3, 4, 5, 0]])

    def step(model: nn.Module, batch: Data) -> None:
        loss = F.cross_entropy(model(batch.x, batch.edge_index, batch.own)[batch.own], batch.y[batch.own])
        (loss * len(batch.own)).backward()

    batches = []
    for own in (torch.tensor([0, 2]), torch.tensor([1, 3, 4, 5])):
        batch: Any = data.clone()
        batch.own = batch.seeds = own
        batches.append(batch)
    found = judge(step, model=Remembered(data), data=data, batches=batches, state=lambda model: model.history)
    assert found.outcome is lv.Outcome.REFUTED


@pytest.mark.parametrize("comes", [True, False])
def test_a_gradient_that_comes_with_the_first_sweep_is_not_missing(comes: bool) -> None:
    data, model = random_graph(), make_net()
    model.warm = torch.zeros(12, dtype=torch.float64)

    def step(model: nn.Module, batch: Tensor, data: Data) -> None:
        net: Any = model
        warm = float(net.warm.min())
        net.warm[batch] = float(comes)
        hidden = net.first(data.x, data.edge_index)
        out = net.second((warm * hidden + (1 - warm) * hidden.detach()).relu(), data.edge_index)
        rows = batch[data.train_mask[batch]]
        (4 * F.cross_entropy(out[rows], data.y[rows], reduction="sum") / data.train_mask.sum()).backward()

    def judged() -> Audit:
        return judge(step, model=model, data=data, batches=parts(12, 3), state=lambda model: model.warm)

    if comes:
        assert judged().outcome is lv.Outcome.EXACT
    else:
        with pytest.raises(ContractError, match=r"leaves no gradient of first\."):
            judged()


def test_complete_graphs_do_not_hide_that_features_are_read() -> None:
    """In a pair of linked nodes both rows are the mean of both: exchanging the rows changes nothing."""
    data = random_graph(4)
    data.edge_index = torch.tensor([[0, 1, 2, 3], [1, 0, 3, 2]])
    data.train_mask[:] = True

    def step(model: nn.Module, batch: Data) -> None:
        F.cross_entropy(model(batch.x, batch.edge_index), batch.y).backward()

    assert judge(step, data=data, batches=subgraphs(data, 2)).outcome is lv.Outcome.EXACT


@pytest.mark.parametrize("what", ["x", "train_mask", "y"])
def test_step_that_writes_into_its_batch(what: str) -> None:
    def step(model: nn.Module, batch: Data) -> None:
        cluster_step(model, batch)
        if what == "x":
            batch.x.mul_(2.0)
        else:
            batch[what][0] = 1 - int(batch[what][0])

    data = random_graph()
    batches = subgraphs(data, 3)
    before = [snapshot(batch) for batch in batches]
    with pytest.raises(ContractError, match=rf"writes into its batch \({what}"):
        judge(step, data=data, batches=batches)
    assert [snapshot(batch) for batch in batches] == before


@pytest.mark.parametrize("precision", [torch.float32, torch.float64])
@pytest.mark.parametrize("what", ["x", "y"])
def test_step_that_writes_into_the_data(what: str, precision: torch.dtype) -> None:
    """With features in single precision the step gets a copy of them, and writes into that."""

    def step(model: nn.Module, batch: Tensor, data: Data) -> None:
        backward_sgd(4)(model, batch, data)
        data[what][0] = 1 - data[what][0]

    data = random_graph()
    data.x = data.x.to(precision)
    before = snapshot(data)
    with pytest.raises(ContractError, match=f"writes into data.{what}"):
        judge(step, data=data, batches=parts(12, 3))
    assert snapshot(data) == before


# Gradients.


def test_no_gradient() -> None:
    with pytest.raises(
        ContractError, match=r"left no gradient for any of 4 batches; it returned a loss: call .backward"
    ):
        judge(lambda model, batch: model(batch.x, batch.edge_index).sum())


def test_batches_without_a_gradient_are_no_violation_where_others_have_one() -> None:
    """None of the first 30 of 36 batches has a labelled node: the loop skips them."""
    data = random_graph(36)
    data.train_mask[:] = False
    data.train_mask[30:] = True

    def step(model: nn.Module, batch: Data) -> None:
        if bool(batch.train_mask.any()):
            cluster_step(model, batch)

    found = judge(step, data=data, batches=subgraphs(data, 1))
    assert found.guarantee == "exact"
    assert any("left no gradient; they count as a gradient of zero" in note for note in found.notes)


def test_batches_that_change_nothing_do_not_make_a_step_biased() -> None:
    data = random_graph(36)
    data.train_mask[:] = False
    data.train_mask[30:] = True

    def step(model: nn.Module, batch: Tensor, data: Data) -> None:
        if bool(data.train_mask[batch].any()):
            backward_sgd(18)(model, batch, data)

    assert judge(step, data=data, batches=parts(36, 2)).outcome is lv.Outcome.EXACT


def test_batch_whose_mean_is_not_finite() -> None:
    def step(model: nn.Module, batch: Data) -> None:
        out = model(batch.x, batch.edge_index)
        (F.cross_entropy(out, batch.y, reduction="sum") / batch.train_mask.sum()).backward()

    data = random_graph()
    data.train_mask[3:6] = False
    with pytest.raises(NotFiniteError, match=r"gradient of first\.bias is .* for a batch \(Data with 3 nodes\)"):
        judge(step, data=data)


def test_batch_without_a_labelled_node_and_a_mean() -> None:
    def step(model: nn.Module, batch: Data) -> None:
        out = model(batch.x, batch.edge_index)
        F.cross_entropy(out[batch.train_mask], batch.y[batch.train_mask]).backward()

    data = random_graph()
    data.train_mask[:3] = False
    found = judge(step, data=data)  # PyTorch gives a loss of NaN, and a gradient of zero
    assert any("1 of 4 batches that were tried give a gradient of zero" in note for note in found.notes)


def test_nan_in_a_batch() -> None:
    data = random_graph()
    batches = subgraphs(data, 3)
    batches[2].x = batches[2].x.clone()
    batches[2].x[0, 0] = float("nan")
    with pytest.raises(NotFiniteError, match="is NaN for a batch"):
        judge(cluster_step, data=data, batches=batches)


def test_nan_in_the_data() -> None:
    data = random_graph()
    data.x[0, 0] = float("nan")
    with pytest.raises(NotFiniteError, match="loss on the whole graph is nan"):
        judge(cluster_step, data=data)


@pytest.mark.parametrize("how", ["detached", "frozen", "also where a batch has none"])
def test_gradient_of_a_parameter_is_missing(how: str) -> None:
    def step(model: Any, batch: Data) -> None:
        if how == "also where a batch has none" and not bool(batch.train_mask[0]):
            return
        hidden = model.first(batch.x, batch.edge_index).relu()
        hidden = hidden if how == "frozen" else hidden.detach()
        F.cross_entropy(model.second(hidden, batch.edge_index), batch.y).backward()
        if how == "frozen":
            model.first.bias.grad = model.first.lin.weight.grad = None

    with pytest.raises(ContractError, match=r"no gradient of first\.(bias|lin\.weight).*requires_grad_\(False\)"):
        judge(step)


def test_parameter_that_few_batches_reach_is_no_violation() -> None:
    """The first 30 batches leave a gradient of one layer only."""
    data = random_graph(36)

    def step(model: Any, batch: Data) -> None:
        hidden = model.first(batch.x, batch.edge_index).relu()
        hidden = hidden if int(batch.n_id[0]) >= 30 else hidden.detach()
        F.cross_entropy(model.second(hidden, batch.edge_index), batch.y).backward()

    assert judge(step, data=data, batches=subgraphs(data, 1)).outcome is lv.Outcome.REFUTED


def test_parameter_that_is_frozen_on_the_model_is_left_out() -> None:
    model = make_net()
    model.first.requires_grad_(False)
    found = judge(backward_sgd(4), model=model, batches=parts(12, 3))
    assert found.outcome is lv.Outcome.EXACT
    assert [item.name for item in found.parameters] == ["second.bias", "second.lin.weight"]


def test_precisions_that_are_mixed() -> None:
    single = random_graph().x.float()

    def step(model: nn.Module, batch: Tensor, data: Data) -> None:
        F.cross_entropy(model(single, data.edge_index)[batch], data.y[batch]).backward()

    with pytest.raises(ContractError, match=r"mixes precisions.*torch.float64.*dtype=torch.float32"):
        judge(step, batches=parts(12, 3))


# Nothing of the caller's is changed.


def everything(model: nn.Module, data: Data, history: Tensor) -> dict[str, Any]:
    named = (*model.named_parameters(), *model.named_buffers())
    return {
        "model": {name: (id(value), value.detach().numpy().tobytes(), value.dtype) for name, value in named},
        "grad": {
            name: None if v.grad is None else (id(v.grad), v.grad.tolist()) for name, v in model.named_parameters()
        },
        "modes": [module.training for module in model.modules()],
        "data": {key: (id(value), value.numpy().tobytes()) for key, value in data.to_dict().items()},
        "state": (id(history), history.dtype, history.tolist()),
        "torch": torch.get_rng_state().tolist(),
        "numpy": repr(np.random.get_state()),  # noqa: NPY002
        "random": random.getstate(),
        "default": (torch.get_default_dtype(), torch.is_grad_enabled()),
    }


@pytest.mark.slow
@pytest.mark.parametrize("end", ["result", "step fails late", "contract", "objective fails", "loader fails"])
def test_everything_is_as_it_was(end: str) -> None:
    data, model = random_graph(), make_net(norm=nn.BatchNorm1d(5), dropout=0.3)
    model.first.eval()
    history = torch.full((12, 3), 0.5, dtype=torch.float32)
    for value in list(model.parameters())[:2]:
        value.grad = torch.ones_like(value)
    calls: list[int] = []

    def step(model: nn.Module, batch: Data) -> None:
        calls.append(1)
        model.train()
        out = model(batch.x, batch.edge_index)
        pulled = history[batch.n_id].clone()
        history[batch.n_id] = out.detach() + random.random() + float(np.random.rand())  # noqa: NPY002
        F.cross_entropy(out + pulled, batch.y).backward()
        if end == "step fails late" and len(calls) == 40:
            raise KeyError("late")
        if end == "contract" and len(calls) == 2:
            data.x[0] = 9.0

    def objective(model: nn.Module, data: Data) -> Tensor:
        if end == "objective fails" and calls:
            raise KeyError("objective")
        return F.cross_entropy(model(data.x, data.edge_index), data.y)

    def batches() -> Any:
        yield from subgraphs(data, 3)
        if end == "loader fails":
            raise KeyError("loader")

    before = everything(model, data, history)
    try:
        lv.audit(
            model, data, batches, step, objective=objective, state=history, causes=False, draws=4, sweeps=1, along=[1]
        )
        assert end in ("result", "objective fails")
    except (KeyError, ContractError):
        assert end != "result"
    assert everything(model, data, history) == before


def test_half_precision() -> None:
    with pytest.raises(InvalidInputError, match=r"half precision \(first.bias is torch.float16\).*model.float"):
        judge(cluster_step, model=make_net().half())


def test_gcn_conv_with_a_cache_is_a_memory() -> None:
    """The first batch's edges are kept for all others."""
    model = make_net(lambda width, out: GCNConv(width, out, cached=True))
    with pytest.raises(ContractError, match=r"first keeps the edges of its first call.*cached=False"):
        judge(cluster_step, model=model)
