"""Claim: what a step makes of its batch on the way to its model and its loss is found, and what is its own is left."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from common.step_cases import built, few_hops
from torch import Tensor, nn
from torch.nn import functional as F
from torch_geometric.data import Data
from torch_geometric.nn import GCNConv, SAGEConv
from torch_geometric.utils import add_self_loops, dropout_edge

import lmc_verify as lv
from lmc_verify.audits.batches.inputs import own_edges, own_features
from lmc_verify.audits.subject import Subject


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


@pytest.mark.parametrize("mean", [False, True])
@pytest.mark.parametrize("change", EDGES)
def test_edges_that_a_step_changes_on_the_way_to_its_model_are_named(change: str, mean: bool) -> None:
    audit = audited(sent(mean=mean, edge_index=EDGES[change]))
    assert explained(audit) == [*(["batch-mean"] if mean else []), "changed-edges"]
    assert any("the step gives its model other edges" in cause.words for cause in audit.causes)


@pytest.mark.parametrize("mean", [False, True])
@pytest.mark.parametrize("change", FEATURES)
def test_features_that_a_step_changes_on_the_way_to_its_model_are_named(change: str, mean: bool) -> None:
    audit = audited(sent(mean=mean, x=FEATURES[change]))
    assert explained(audit) == [*(["batch-mean"] if mean else []), "changed-features"]


class Embedded(Net):
    """Features are rows of an embedding, by the ids of nodes."""

    def __init__(self) -> None:
        super().__init__()
        self.table = built(lambda: nn.Embedding(40, 8), 3)

    def forward(self, n_id: Tensor, edge_index: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(self.table(n_id), edge_index)


@pytest.mark.parametrize("local", [False, True])
def test_numbers_of_rows_in_place_of_the_ids_of_nodes_are_named(local: bool) -> None:
    def step(model: nn.Module, batch: Any, data: Data) -> None:
        ids = torch.arange(batch.num_nodes) if local else batch.n_id
        (loss_of(model(ids, batch.edge_index), batch) * 3 / data.train_mask.sum()).backward()

    def objective(model: nn.Module, data: Any) -> Tensor:
        out = model(torch.arange(40), data.edge_index)
        return F.cross_entropy(out[data.train_mask], data.y[data.train_mask])

    audit = audited(step, model=Embedded(), objective=objective)
    assert explained(audit) == ["changed-features"] if local else audit.outcome is lv.Outcome.EXACT


def test_edges_and_features_that_are_both_changed_are_both_named() -> None:
    changes = {"edge_index": EDGES["some are left out"], "x": FEATURES["masked"]}
    assert explained(audited(sent(**changes))) == ["changed-edges", "changed-features"]


RANDOM = [
    ({"edge_index": lambda batch: dropout_edge(batch.edge_index, 0.4)[0]}, "changed-edges"),
    ({"x": lambda batch: batch.x + torch.randn_like(batch.x)}, "changed-features"),
]


@pytest.mark.parametrize(("changes", "name"), RANDOM)
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


@pytest.mark.parametrize("change", WEIGHTS)
def test_weights_that_a_step_changes_on_the_way_to_its_model_are_named(change: str) -> None:
    given = {"edge_weight": lambda batch: batch.edge_weight} | WEIGHTS[change]
    assert explained(audited(sent(**given), weights=True)) == ["changed-edges"]


def test_weights_that_a_step_makes_for_a_graph_without_are_named() -> None:
    made = sent(edge_weight=lambda batch: torch.linspace(0.5, 1.5, batch.edge_index.shape[1]).double())
    audit = audited(made, model=Net(weighted=True), objective=_plain)
    assert "changed-edges" in explained(audit)


def _plain(model: nn.Module, data: Any) -> Tensor:
    return F.cross_entropy(model(data.x, data.edge_index)[data.train_mask], data.y[data.train_mask])


def test_smoothed_labels_are_named_where_the_objective_has_none() -> None:
    def step(model: nn.Module, batch: Any, data: Data) -> None:
        loss = loss_of(model(batch.x, batch.edge_index), batch, label_smoothing=0.2)
        (loss * 3 / data.train_mask.sum()).backward()

    def smoothed(model: nn.Module, data: Any) -> Tensor:
        out = model(data.x, data.edge_index)[data.train_mask]
        return F.cross_entropy(out, data.y[data.train_mask], label_smoothing=0.2)

    assert explained(audited(step)) == ["smoothed-labels"]
    assert audited(step, objective=smoothed).outcome is lv.Outcome.EXACT


@pytest.mark.parametrize("loss", ["torch's mean", "tensor's mean"])
def test_means_over_different_numbers_of_nodes_that_are_added_up_are_a_batch_mean(loss: str) -> None:
    def mean(out: Tensor, labels: Tensor) -> Tensor:
        if loss == "torch's mean":
            return F.cross_entropy(out, labels)
        return F.cross_entropy(out, labels, reduction="none").mean()

    def step(model: nn.Module, batch: Any, data: Data) -> None:
        own = batch.train_mask[batch.mapping]
        out, labels = model(batch.x, batch.edge_index)[batch.mapping][own], batch.y[batch.mapping][own]
        for part in (slice(None, 1), slice(1, None)):
            (mean(out[part], labels[part]) / 2).backward(retain_graph=True)

    audit = audited(step)
    assert explained(audit) == ["batch-mean"]
    assert "adds up means" in audit.causes[0].words


def gas_of(history: Tensor) -> tuple[Data, list[Data], Callable[..., None]]:
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
        (loss * 3 / data.train_mask.sum()).backward()

    return data, rows, gas


@pytest.mark.parametrize("sweeps", [None, 0])
def test_histories_come_to_rest_anew_where_degrees_are_put_right(sweeps: int | None) -> None:
    """GAS whose convolutions take the subgraph's degrees: its histories rest at wrong values."""
    history = torch.zeros(40, 6, dtype=torch.float64)
    data, batches, gas = gas_of(history)
    audit = lv.audit(Net(weighted=True), data, batches, gas, state=history, sweeps=sweeps)
    stale = [] if sweeps is None else ["stale-histories"]
    assert explained(audit) == ["dropped-halo", "missing-neighbours", *stale]
    assert not bool(history.any())


def test_a_state_that_interventions_change_is_put_back() -> None:
    subject: Any = Subject.__new__(Subject)
    subject.kept, subject._again = {"table": 1}, ("batch", 0, {})
    with subject.state_put_back():
        subject.kept = subject._again = None
    assert (subject.kept, subject._again) == ({"table": 1}, ("batch", 0, {}))


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
    model(batch.x + 1, other, attributes)
    assert given["x"] is not model.given["x"]
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
