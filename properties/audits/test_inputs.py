"""Claim: what a step makes of its batch on the way to its model and its loss is found, and what is its own is left."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from common.crossed import crossed, slow_but
from common.step_cases import built, few_hops
from torch import Tensor, nn
from torch.nn import functional as F
from torch_geometric.data import Data
from torch_geometric.nn import GCNConv, SAGEConv
from torch_geometric.utils import add_remaining_self_loops, add_self_loops, dropout_edge

import lmc_verify as lv
from lmc_verify.audits import sweeps
from lmc_verify.audits.batches.inputs import own_edges, own_features
from lmc_verify.audits.interventions import INTERVENTIONS
from lmc_verify.audits.measure import InapplicableError
from lmc_verify.audits.subject import Subject
from lmc_verify.audits.sweeps import RestingStates
from lmc_verify.errors import NotFiniteError


class Net(nn.Module):
    """Two convolutions by means over in-neighbours, which may have weights."""

    def __init__(self, weighted: bool = False) -> None:
        super().__init__()
        self.weighted = weighted
        kind: Any = GCNConv if weighted else SAGEConv
        self.convs = nn.ModuleList([built(lambda: kind(8, 6), 1), built(lambda: kind(6, 4), 2)])

    def forward(self, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None = None) -> Tensor:
        more = (edge_weight,) if self.weighted else ()
        return self.convs[1](self.convs[0](x, edge_index, *more).relu(), edge_index, *more)


def loss_of(out: Tensor, batch: Any, **options: Any) -> Tensor:
    own = batch.train_mask[batch.mapping]
    return F.cross_entropy(out[batch.mapping][own], batch.y[batch.mapping][own], reduction="sum", **options)


def sent(*, mean: bool = False, **changes: Callable[[Any], Any]) -> Callable[..., None]:
    """Return a step that gives its model the batch's fields, some of them changed, by their names."""

    def step(model: nn.Module, batch: Any, data: Data) -> None:
        given = {"x": batch.x, "edge_index": batch.edge_index} | {key: make(batch) for key, make in changes.items()}
        loss, own = loss_of(model(**given), batch), batch.train_mask[batch.mapping].sum()
        (loss / own if mean else loss * 3 / data.train_mask.sum()).backward()

    return step


def audited(step: Callable[..., None], *, weights: bool = False, **options: Any) -> lv.Audit:
    data, batches = few_hops(3 if weights else 2)  # degrees with weights need one more
    if weights:
        data.edge_weight = torch.linspace(0.5, 1.5, data.num_edges)
        batches = [_with_weights(batch, data) for batch in batches]
    return lv.audit(options.pop("model", Net(weights)), data, batches, step, **options)


def _with_weights(batch: Any, data: Data) -> Data:
    out: Any = data.subgraph(batch.n_id)
    out.n_id, out.mapping = batch.n_id, batch.mapping
    return out


def explained(audit: lv.Audit) -> list[str]:
    assert audit.outcome is lv.Outcome.REFUTED
    assert audit.explanation.complete, str(audit)
    return sorted(cause.id for cause in audit.causes if cause.explains)


EDGES: dict[str, Callable[[Any], Tensor]] = {
    "self-loops are added": lambda batch: add_self_loops(batch.edge_index, num_nodes=batch.num_nodes)[0],
    "some are left out": lambda batch: batch.edge_index[:, ::2],
    "one is doubled": lambda batch: torch.cat([batch.edge_index, batch.edge_index[:, :1]], 1),
}
FEATURES: dict[str, Callable[[Any], Tensor]] = {
    "centred": lambda batch: batch.x - batch.x.mean(0),
    "masked": lambda batch: batch.x * (torch.arange(8) > 2),
}


@pytest.mark.parametrize(("change", "mean"), crossed(EDGES, [False, True]))
def test_edges_that_a_step_changes_on_the_way_to_its_model_are_named(change: str, mean: bool) -> None:
    audit = audited(sent(mean=mean, edge_index=EDGES[change]))
    assert explained(audit) == [*(["batch-mean"] if mean else []), "changed-edges"]
    assert any("the step gives its model other edges" in cause.words for cause in audit.causes)


@pytest.mark.parametrize(("change", "mean"), crossed(FEATURES, [False, True]))
def test_features_that_a_step_changes_on_the_way_to_its_model_are_named(change: str, mean: bool) -> None:
    audit = audited(sent(mean=mean, x=FEATURES[change]))
    assert explained(audit) == [*(["batch-mean"] if mean else []), "changed-features"]


class Around(nn.Module):
    """A model with other inputs than those of the one inside."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Net()


class Embedded(Around):
    """Features are rows of an embedding, by the ids of nodes."""

    def __init__(self) -> None:
        super().__init__()
        self.table = built(lambda: nn.Embedding(40, 8), 3)

    def forward(self, n_id: Tensor, edge_index: Tensor) -> Any:
        return self.net(self.table(n_id), edge_index)


@pytest.mark.parametrize("local", [False, True])
def test_numbers_of_rows_in_place_of_the_ids_of_nodes_are_named(local: bool) -> None:
    def step(model: nn.Module, batch: Any, data: Data) -> None:
        ids = torch.arange(batch.num_nodes) if local else batch.n_id
        (loss_of(model(ids, batch.edge_index), batch) * 3 / data.train_mask.sum()).backward()

    def objective(model: nn.Module, data: Any) -> Tensor:
        return _mean(model(torch.arange(40), data.edge_index), data)

    audit = audited(step, model=Embedded(), objective=objective)
    assert explained(audit) == ["changed-features"] if local else audit.outcome is lv.Outcome.EXACT


def _normalised(batch: Any) -> Tensor:
    return batch.x / batch.x.abs().sum(1, keepdim=True)


TWICE: dict[str, tuple[str, Callable[[Any], Tensor], Callable[[Any], Tensor]]] = {
    "edges as before": (
        "edge_index",
        lambda batch: add_remaining_self_loops(batch.edge_index, num_nodes=batch.num_nodes)[0],
        lambda batch: add_remaining_self_loops(batch.edge_index, num_nodes=batch.num_nodes)[0],
    ),
    "features as before": ("x", _normalised, _normalised),
    "features, and what they were is covered": ("x", lambda batch: 2 * batch.x, _normalised),
}


@pytest.mark.parametrize("change", slow_but(["features, and what they were is covered"], TWICE))
def test_what_a_loader_and_a_step_both_change_is_named_for_both(change: str) -> None:
    """Put right in one place alone the loader's makes no difference: the step does it again."""
    name, by_loader, by_step = TWICE[change]
    data, batches = few_hops(2)
    for batch in batches:
        batch[name] = by_loader(batch)
    audit = lv.audit(Net(), data, batches, sent(**{name: by_step}))
    assert explained(audit) == [{"x": "changed-features", "edge_index": "changed-edges"}[name]] * 2
    (of_batches,) = [cause for cause in audit.causes if cause.explains and "a batch" in cause.words]
    assert of_batches.removes == pytest.approx(0, abs=1e-9)


@pytest.mark.slow
def test_edges_and_features_that_are_both_changed_are_both_named() -> None:
    changes = {"edge_index": EDGES["some are left out"], "x": FEATURES["masked"]}
    assert explained(audited(sent(**changes))) == ["changed-edges", "changed-features"]


EDGE_DROPOUT = {"edge_index": lambda batch: dropout_edge(batch.edge_index, 0.4)[0]}
NOISE = {"x": lambda batch: batch.x + torch.randn_like(batch.x)}
RANDOM = [(EDGE_DROPOUT, "changed-edges"), (NOISE, "changed-features")]
BOTH = (EDGE_DROPOUT | NOISE, "changed-features and changed-edges")


@pytest.mark.parametrize(("changes", "name"), [pytest.param(*RANDOM[0], marks=pytest.mark.slow), RANDOM[1], BOTH])
def test_what_a_step_draws_for_its_model_is_said(changes: Any, name: str) -> None:
    audit = audited(sent(**changes), draws=20, causes=False)
    assert any(f"draws for itself ({name})" in note for note in audit.notes)
    assert any("without that: EXACT" in note for note in audit.notes)


@pytest.mark.slow
@pytest.mark.parametrize(("changes", "name"), RANDOM)
def test_edges_that_are_dropped_at_random_and_noise_on_features_are_named(changes: Any, name: str) -> None:
    assert explained(audited(sent(**changes), draws=600)) == [name]


WEIGHTS: dict[str, dict[str, Callable[[Any], Tensor]]] = {
    "doubled": {"edge_weight": lambda batch: 2 * batch.edge_weight},
    "of edges with self-loops": {
        "edge_index": EDGES["self-loops are added"],
        "edge_weight": lambda batch: torch.cat([batch.edge_weight, torch.full((batch.num_nodes,), 3.0).double()]),
    },
}


@pytest.mark.parametrize("change", slow_but({"doubled"}, WEIGHTS))
def test_weights_that_a_step_changes_on_the_way_to_its_model_are_named(change: str) -> None:
    given = {"edge_weight": lambda batch: batch.edge_weight} | WEIGHTS[change]
    assert explained(audited(sent(**given), weights=True)) == ["changed-edges"]


def test_weights_that_a_step_makes_for_a_graph_without_are_named() -> None:
    made = sent(edge_weight=lambda batch: torch.linspace(0.5, 1.5, batch.edge_index.shape[1]).double())
    audit = audited(made, model=Net(weighted=True), objective=_plain)
    assert "changed-edges" in explained(audit)


def _plain(model: nn.Module, data: Any) -> Tensor:
    return _mean(model(data.x, data.edge_index), data)


def test_rounding_of_features_is_reduced_precision() -> None:
    """Features in half precision are other features, too: the simpler cause comes first."""
    audit = audited(sent(x=lambda batch: batch.x.half().to(batch.x.dtype)))
    assert explained(audit) == ["reduced-precision"]


class Positioned(Around):
    """A second input is as wide as the features."""

    def forward(self, x: Tensor, edge_index: Tensor, more: Tensor) -> Any:
        return self.net(x + more, edge_index)


class Whole(Around):
    """The input is the data."""

    def forward(self, data: Data) -> Any:
        return self.net(data.x, data.edge_index)


class Linked(Around):
    """Another index comes before that of the edges."""

    def forward(self, x: Tensor, edge_label_index: Tensor, edge_index: Tensor) -> Any:
        return self.net(x, edge_index)


def changed_batch(batch: Any) -> Data:
    out: Any = batch.clone()
    out.edge_index, out.x = EDGES["some are left out"](batch), FEATURES["masked"](batch)
    return out


FORMS: dict[str, tuple[type[Around], Callable[[Any], tuple[Any, ...]], list[str]]] = {
    "a second input as wide as the features": (
        Positioned,
        lambda data: (FEATURES["masked"](data), data.edge_index, data.x.sin()),
        ["changed-features"],
    ),
    "the data": (Whole, lambda data: (changed_batch(data),), ["changed-edges", "changed-features"]),
    "another index before that of the edges": (
        Linked,
        lambda data: (data.x, data.edge_index[:, :2], EDGES["some are left out"](data)),
        ["changed-edges"],
    ),
}
SOUND: dict[type[Around], Callable[[Any], tuple[Any, ...]]] = {
    Positioned: lambda data: (data.x, data.edge_index, data.x.sin()),
    Whole: lambda data: (data,),
    Linked: lambda data: (data.x, data.edge_index[:, :2], data.edge_index),
}


@pytest.mark.parametrize("form", slow_but({*FORMS} - {"the data"}, FORMS))
def test_changes_are_named_whatever_a_model_takes(form: str) -> None:
    kind, given, causes = FORMS[form]

    def step(model: nn.Module, batch: Any, data: Data) -> None:
        (loss_of(model(*given(batch)), batch) * 3 / data.train_mask.sum()).backward()

    audit = audited(step, model=kind(), objective=lambda model, data: _mean(model(*SOUND[kind](data)), data))
    assert explained(audit) == causes


def test_smoothed_labels_are_named_where_the_objective_has_none() -> None:
    def step(model: nn.Module, batch: Any, data: Data) -> None:
        loss = loss_of(model(batch.x, batch.edge_index), batch, label_smoothing=0.2)
        (loss * 3 / data.train_mask.sum()).backward()

    def smoothed(model: nn.Module, data: Any) -> Tensor:
        out = model(data.x, data.edge_index)[data.train_mask]
        return F.cross_entropy(out, data.y[data.train_mask], label_smoothing=0.2)

    assert explained(audited(step)) == ["smoothed-labels"]
    assert audited(step, objective=smoothed).outcome is lv.Outcome.EXACT


def labelled_rows(batch: Any, *, halo: bool = False) -> Tensor:
    own = torch.zeros(batch.num_nodes, dtype=torch.bool)
    own[batch.mapping] = True
    return (batch.train_mask & (own | halo)).nonzero().flatten()


def mean_of_torch(out: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(out, labels)


def mean_of_tensor(out: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(out, labels, reduction="none").mean()


@pytest.mark.parametrize("mean", [mean_of_torch, mean_of_tensor])
@pytest.mark.parametrize("halo", slow_but({False}, [False, True]))
def test_means_over_different_numbers_of_nodes_that_are_added_up_are_a_batch_mean(mean: Any, halo: bool) -> None:
    def step(model: nn.Module, batch: Any) -> None:
        out, rows = model(batch.x, batch.edge_index), labelled_rows(batch, halo=halo)
        for part in (rows[:1], rows[1:]):
            (mean(out[part], batch.y[part]) / 2).backward(retain_graph=True)

    audit = audited(step)
    assert explained(audit) == ["batch-mean", *(["halo-rows-in-loss"] if halo else [])]
    assert any("adds up means" in cause.words for cause in audit.causes)


@pytest.mark.parametrize("size", slow_but({3}, [3, 4]))
def test_accumulation_over_parts_of_one_size_is_a_batch_mean(size: int) -> None:
    """Batches have different numbers of parts, by which the step divides, and a last part is smaller."""

    def step(model: nn.Module, batch: Any) -> None:
        out, parts = model(batch.x, batch.edge_index), labelled_rows(batch).split(size)
        for part in parts:
            (F.cross_entropy(out[part], batch.y[part]) / len(parts)).backward(retain_graph=True)

    assert explained(audited(step)) == ["batch-mean"]


def test_means_of_two_kinds_have_a_divisor_each() -> None:
    def step(model: nn.Module, batch: Any) -> None:
        out, rows = model(batch.x, batch.edge_index), labelled_rows(batch)
        own = out[batch.mapping]
        (F.cross_entropy(out[rows], batch.y[rows]) + F.mse_loss(own, torch.zeros_like(own))).backward()

    def objective(model: nn.Module, data: Any) -> Tensor:
        out = model(data.x, data.edge_index)
        return _mean(out, data) + F.mse_loss(out, torch.zeros_like(out))

    assert explained(audited(step, objective=objective)) == ["batch-mean"]


def _mean(out: Tensor, data: Any) -> Tensor:
    return F.cross_entropy(out[data.train_mask], data.y[data.train_mask])


def gas_of(history: Tensor, *, mean: bool = False) -> tuple[Data, list[Data], Callable[..., None]]:
    """Return a graph, batches with one hop and their own degrees, and GAS's step."""
    data, batches = few_hops()
    rows = []
    for batch in batches:
        own = batch.n_id[batch.mapping]
        inside = torch.isin(data.edge_index[1], own)
        order = torch.cat([own, (near := data.edge_index[0, inside].unique())[~torch.isin(near, own)]])
        place = torch.full((40,), -1)
        place[order] = torch.arange(len(order))
        cut = Data(x=data.x[order], y=data.y[order], edge_index=place[data.edge_index[:, inside]])
        cut.train_mask, cut.n_id, cut.batch_size = data.train_mask[order], order, len(own)
        rows.append(cut)

    def gas(model: Any, batch: Any) -> None:
        size = batch.batch_size
        hidden = model.convs[0](batch.x, batch.edge_index).relu()
        read = torch.cat([hidden[:size], history[batch.n_id[size:]]])
        history[batch.n_id[:size]] = hidden[:size].detach()
        own = batch.train_mask[:size]
        loss = F.cross_entropy(model.convs[1](read, batch.edge_index)[:size][own], batch.y[:size][own], reduction="sum")
        (loss / own.sum() if mean else loss * 3 / data.train_mask.sum()).backward()

    return data, rows, gas


@pytest.mark.parametrize(
    ("sweeps", "mean"),
    [(None, False), pytest.param(None, True, marks=pytest.mark.slow), pytest.param(0, False, marks=pytest.mark.slow)],
)
def test_histories_come_to_rest_anew_where_degrees_are_put_right(sweeps: int | None, mean: bool) -> None:
    """GAS whose convolutions take the subgraph's degrees: its histories rest at wrong values."""
    history = torch.zeros(40, 6, dtype=torch.float64)
    data, batches, gas = gas_of(history, mean=mean)
    audit = lv.audit(Net(weighted=True), data, batches, gas, state=history, sweeps=sweeps)
    more = [*(["batch-mean"] if mean else []), *(["stale-histories"] if sweeps == 0 else [])]
    assert explained(audit) == sorted(["dropped-halo", "missing-neighbours", *more])
    assert not bool(history.any())


def test_a_state_that_interventions_change_is_put_back() -> None:
    subject: Any = Subject.__new__(Subject)
    subject.kept, subject._again = {"table": 1}, ("batch", 0, {})
    with subject.state_put_back():
        assert subject._again is None  # a first call that is repeated from another state differs
        subject.kept = None
    assert (subject.kept, subject._again) == ({"table": 1}, ("batch", 0, {}))


class FakeState:
    """A state of one table, which a sweep fills with a number."""

    def __init__(self) -> None:
        self.empty, self.table = False, torch.zeros(2)

    def tensors(self) -> dict[str, Tensor]:
        return {"table": self.table}


def subject_with(state: FakeState) -> Any:
    runner = SimpleNamespace(state=state, dtype=torch.float64)
    return SimpleNamespace(runner=runner, reset=lambda: None, kept=None, state_put_back=nullcontext)


@pytest.mark.parametrize("left", [math.nan, math.inf, 1.0])
def test_a_state_that_is_not_finite_under_interventions_is_no_state(left: float, monkeypatch: Any) -> None:
    state = FakeState()
    subject = subject_with(state)
    monkeypatch.setattr(sweeps, "sweep_until_still", lambda *_, **__: state.table.fill_(left))
    chosen = [item for item in INTERVENTIONS if item.id == "changed-features"]
    if math.isfinite(left):
        with RestingStates(subject).under(chosen):
            pass
    else:
        with pytest.raises(InapplicableError), RestingStates(subject).under(chosen):
            pass


def test_a_step_that_fails_from_the_state_under_interventions_is_not_at_fault(monkeypatch: Any) -> None:
    state = FakeState()
    subject = subject_with(state)
    monkeypatch.setattr(sweeps, "sweep_until_still", lambda *_, **__: None)
    with pytest.raises(InapplicableError), RestingStates(subject).under([INTERVENTIONS[0]]):
        raise NotFiniteError("the step's gradient is NaN")


def test_a_state_at_rest_is_looked_for_once(monkeypatch: Any) -> None:
    state, made = FakeState(), list[tuple[str, ...]]()
    subject = subject_with(state)

    def sweep(_: Any, __: Any, prepared: Any) -> None:
        found = prepared.keywords["chosen"]
        made.append(tuple(item.id for item in found))
        if "changed-features" in made[-1]:
            state.table += 1.0

    monkeypatch.setattr(sweeps, "sweep_until_still", sweep)
    known = {item.id: item for item in INTERVENTIONS}
    resting = RestingStates(subject)
    for chosen in (["changed-features"], ["smoothed-labels"], ["changed-features", "smoothed-labels"], ["batch-mean"]):
        with resting.under([known[name] for name in chosen]):
            pass
    assert made == [("changed-features",), ("smoothed-labels",)]  # with both, it rests where the first one has it


class Seen(nn.Module):
    """Keeps what it was given."""

    def forward(self, x: Tensor, edge_index: Tensor, edge_attr: Tensor, edge_weight: Any = None) -> Tensor:
        self.given = {"x": x, "edge_index": edge_index, "edge_attr": edge_attr, "edge_weight": edge_weight}
        return x


def batch_of() -> Data:
    index = torch.tensor([[0, 1, 2, 2], [1, 2, 0, 1]])
    return Data(x=torch.arange(6.0).reshape(3, 2), edge_index=index, edge_attr=torch.arange(4.0)[:, None])


def test_a_model_gets_its_batch_s_own_by_place_and_by_name() -> None:
    batch, model = batch_of(), Seen()
    other, attributes = batch.edge_index[:, :1], torch.ones(1, 1)
    with own_edges(model, batch), own_features(model, batch):
        model(batch.x + 1, other, attributes)
        by_place = dict(model.given)
        model(x=batch.x + 1, edge_index=other, edge_attr=attributes, edge_weight=torch.ones(1))
        for given in (by_place, model.given):
            assert torch.equal(given["x"], batch.x)
            assert torch.equal(given["edge_index"], batch.edge_index)
            assert torch.equal(given["edge_attr"], batch.edge_attr)
            assert given["edge_weight"] is None  # the batch has none
        for value in (model.given["x"], model.given["edge_index"], model.given["edge_attr"]):
            value.zero_()  # a model may work in place
    assert torch.equal(batch.x, by_place["x"])
    assert torch.equal(batch.edge_index, by_place["edge_index"])
    assert torch.equal(batch.edge_attr, by_place["edge_attr"])
    model(batch.x + 1, other, attributes)
    assert model.given["edge_index"] is other


def test_what_is_not_of_the_batch_s_rows_and_edges_is_left() -> None:
    batch, model = batch_of(), Seen()
    computed = (batch.x * 2).requires_grad_()
    with own_edges(model, batch), own_features(model, batch):
        model(computed, batch.edge_index, torch.ones(4, 1))
        assert model.given["x"] is computed
        model(batch.x.double(), batch.edge_index, torch.ones(4, 1))
        assert model.given["x"].dtype is torch.float64
    with own_edges(model, batch):
        whole = torch.zeros(2, 9, dtype=torch.long)
        model(torch.zeros(7, 2), whole, torch.zeros(9, 1))  # rows of another graph
        assert model.given["edge_index"] is whole


def test_a_model_that_needs_features_of_edges_is_not_run_without() -> None:
    batch, model = batch_of(), Seen()
    del batch.edge_attr
    with own_edges(model, batch), pytest.raises(LookupError, match="edge_attr"):
        model(batch.x, batch.edge_index, torch.ones(4, 1))


@pytest.mark.parametrize("batch", [torch.arange(3), Data(), None])
def test_a_batch_without_rows_or_edges_changes_nothing(batch: Any) -> None:
    model, x = Seen(), torch.ones(3, 2)
    with own_edges(model, batch), own_features(model, batch):
        model(x, torch.zeros(2, 1, dtype=torch.long), torch.ones(1, 1))
    assert model.given["x"] is x
