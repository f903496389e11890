"""Claim: causes are told apart, alone and together, and none is named for a defect that is not known.

Loops are small functions on the karate club, in which each defect is planted on purpose.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from common.step_cases import few_hops
from torch import Tensor, nn
from torch.nn import functional as F
from torch_geometric.data import Data
from torch_geometric.nn import GCN, GCNConv, SAGEConv
from torch_geometric.utils import k_hop_subgraph

import lmc_verify as lv
from lmc_verify.audits import Audit
from lmc_verify.audits.causes.candidates import Candidate
from lmc_verify.audits.causes.enactments import World
from lmc_verify.audits.causes.explain import _greedy, _others
from lmc_verify.audits.causes.fitted import Fit, Leftover, fit_together, fitted_causes
from lmc_verify.audits.causes.reach import around
from lmc_verify.audits.causes.search import KEPT, Search
from lmc_verify.audits.interventions import INTERVENTIONS
from lmc_verify.audits.measure import Measured
from lmc_verify.seeds import torch_generator


@pytest.fixture(autouse=True)
def seeded() -> Any:
    """Models draw their weights from the global generator, which is put back."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def karate() -> Data:
    data = lv.load_data("karate")
    data.train_mask = torch.arange(data.num_nodes) % 3 > 0
    return data


def clusters(data: Data) -> list[Tensor]:
    nodes = torch.randperm(data.num_nodes, generator=torch_generator(1, "clusters"))
    return list(nodes.split([5, 7, 9, data.num_nodes - 21]))


class Net(nn.Module):
    def __init__(self, data: Data, norm: nn.Module | None = None, dropout: float = 0.0) -> None:
        super().__init__()
        self.conv1, self.conv2 = SAGEConv(data.num_features, 8), SAGEConv(8, 4)
        self.norm, self.dropout = norm or nn.Identity(), dropout

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        x = self.norm(self.conv1(x, edge_index)).relu()
        return self.conv2(F.dropout(x, self.dropout, self.training), edge_index)


def khop(data: Data) -> list[Data]:
    """Return clusters with their two-hop neighbours, rows in the order of ids."""
    out = []
    for cluster in clusters(data):
        nodes, _, mapping, _ = k_hop_subgraph(cluster, 2, data.edge_index, num_nodes=data.num_nodes)
        batch: Any = data.subgraph(nodes)
        batch.n_id, batch.mapping = nodes, mapping
        out.append(batch)
    return out


def step(mean: bool = False, all_rows: bool = False, factor: float = 1.0) -> Callable[..., None]:
    """Return a step on k-hop batches with planted defects."""

    def run(model: nn.Module, batch: Any, data: Data) -> None:
        out, mask = model(batch.x, batch.edge_index), batch.train_mask
        if not all_rows:
            mask = mask & torch.isin(torch.arange(len(mask)), batch.mapping)
        loss = F.cross_entropy(out[mask], batch.y[mask], reduction="mean" if mean else "sum")
        (factor * loss if mean else factor * loss * 4 / data.train_mask.sum()).backward()

    return run


def explained(audit: Audit) -> tuple[set[str], bool]:
    return {cause.id for cause in audit.causes if cause.explains}, audit.explanation.complete


@pytest.mark.slow
@pytest.mark.parametrize("key", ["mapping", "root_n_id"])
def test_numbers_of_rows_stay_where_they_are_though_there_are_as_many_as_nodes(key: str) -> None:
    """A cluster with no neighbours: as many numbers of rows as nodes, which are no attribute of nodes."""
    data, batches = karate(), []
    for cluster in clusters(data):
        nodes, _, rows, _ = k_hop_subgraph(cluster, 0, data.edge_index, num_nodes=data.num_nodes)
        batch: Any = data.subgraph(nodes)
        batch.n_id, batch[key] = nodes, rows
        batches.append(batch)

    def mean(model: nn.Module, batch: Any) -> None:
        out, mask = model(batch.x, batch.edge_index)[batch[key]], batch.train_mask[batch[key]]
        F.cross_entropy(out[mask], batch.y[batch[key]][mask]).backward()

    assert explained(lv.audit(Net(data), data, batches, mean)) == ({"batch-mean", "missing-neighbours"}, True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("defects", "causes"),
    [
        ({"mean": True}, {"batch-mean"}),
        ({"all_rows": True}, {"halo-rows-in-loss"}),
        ({"mean": True, "all_rows": True}, {"batch-mean", "halo-rows-in-loss"}),
        ({"factor": 3.0}, {"factor"}),
    ],
)
def test_defects_of_the_loss(defects: dict[str, Any], causes: set[str]) -> None:
    data = karate()
    audit = lv.audit(Net(data), data, khop(data), step(**defects))
    assert explained(audit) == (causes, True), str(audit)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("net", "defects", "causes"),
    [
        ({"norm": "batch"}, {}, {"batch-norm"}),
        ({"norm": "batch"}, {"mean": True}, {"batch-norm", "batch-mean"}),
        ({"dropout": 0.5}, {}, {"dropout"}),
        ({"dropout": 0.5}, {"mean": True}, {"dropout", "batch-mean"}),
    ],
)
def test_training_mode_together_with_a_defect_of_the_loss(
    net: dict[str, Any], defects: dict[str, Any], causes: set[str]
) -> None:
    data = karate()
    norm = nn.BatchNorm1d(8) if net.pop("norm", None) else None
    audit = lv.audit(Net(data, norm, **net), data, khop(data), step(**defects), draws=512)
    assert explained(audit) == (causes, True), str(audit)


class OwnLayer(nn.Module):
    """A convolution that is none of PyTorch Geometric's."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.lin = nn.Linear(inputs, outputs, bias=False)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.lin(x).index_add(0, edge_index[1], self.lin(x)[edge_index[0]])


class Historical(nn.Module):
    """GAS with a norm between what comes from the history and the next convolution."""

    def __init__(self, data: Data, own: bool, norm_before: bool) -> None:
        super().__init__()
        layer: Any = OwnLayer if own else lambda a, b: SAGEConv(a, b, aggr="sum", bias=False)
        self.conv1, self.conv2, self.norm = layer(data.num_features, 8), layer(8, 4), nn.LayerNorm(8)
        self.norm_before, self.history = norm_before, torch.zeros(data.num_nodes, 8)

    def forward(self, x: Tensor, edge_index: Tensor, n_id: Tensor | None = None, size: int = 0) -> Tensor:
        x = self.conv1(x, edge_index)
        if self.norm_before:
            x = self.norm(x)
        if n_id is not None:
            self.history[n_id[:size]] = x[:size].detach()
            x = torch.cat([x[:size], self.history[n_id[size:]]])
        return self.conv2((x if self.norm_before else self.norm(x)).relu(), edge_index)


def with_halo(data: Data) -> list[Data]:
    """Return clusters, first, with their neighbours."""
    out = []
    for cluster in clusters(data):
        near = k_hop_subgraph(cluster, 1, data.edge_index, num_nodes=data.num_nodes)[0]
        nodes = torch.cat([cluster, near[~torch.isin(near, cluster)]])
        batch: Any = data.subgraph(nodes)
        batch.n_id, batch.batch_size = nodes, len(cluster)
        out.append(batch)
    return out


def gas_step(model: nn.Module, batch: Any, data: Data) -> None:
    out = model(batch.x, batch.edge_index, batch.n_id, batch.batch_size)[: batch.batch_size]
    mask = batch.train_mask[: batch.batch_size]
    loss = F.cross_entropy(out[mask], batch.y[: batch.batch_size][mask], reduction="sum")
    (loss * 4 / data.train_mask.sum()).backward()


@pytest.mark.slow
@pytest.mark.parametrize("norm_before", [True, False])
@pytest.mark.parametrize("own", [True, False])
def test_a_dropped_halo_is_named_wherever_the_history_stands(own: bool, norm_before: bool) -> None:
    data = karate()
    audit = lv.audit(
        Historical(data, own, norm_before), data, with_halo(data), gas_step, state=lambda model: model.history
    )
    assert explained(audit) == ({"dropped-halo"}, True), str(audit)


class Shared(nn.Module):
    """One convolution that is called twice, first by keywords, and GAS with exact histories between the calls."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.conv, self.head = nn.Linear(8, 6), SAGEConv(6, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor, edge_index: Tensor, own: Tensor | None = None) -> Tensor:
        h = self.conv(x=self.encoder(x), edge_index=edge_index).relu()
        h = h if own is None else torch.where(own[:, None], h, h.detach())
        return self.head(self.conv(h, edge_index))


def test_a_dropped_halo_is_named_where_one_convolution_is_called_twice() -> None:
    data, batches = few_hops()

    def step(model: nn.Module, batch: Any, data: Data) -> None:
        own = torch.isin(torch.arange(batch.num_nodes), batch.mapping)
        out, mask = model(batch.x, batch.edge_index, own), batch.train_mask & own
        (F.cross_entropy(out[mask], batch.y[mask], reduction="sum") * 3 / data.train_mask.sum()).backward()

    assert explained(lv.audit(Shared(), data, batches, step)) == ({"dropped-halo"}, True)


@pytest.mark.slow
def test_a_defect_that_is_not_known_is_not_explained() -> None:
    data = karate()

    def scaled_row(model: Any, batch: Any, data: Data) -> None:
        factors = torch.ones(model.conv1.lin_l.weight.shape[0], 1, dtype=torch.float64)
        factors[2] = 1.5
        handle = model.conv1.lin_l.weight.register_hook(lambda value: value * factors)  # within backward()
        step()(model, batch, data)
        handle.remove()

    audit = lv.audit(Net(data), data, khop(data), scaled_row)
    assert audit.outcome is lv.Outcome.REFUTED
    assert not audit.explanation.complete
    assert explained(audit)[0] == set()
    assert "not explained: none of the known causes takes the bias away" in str(audit)


def test_two_ways_to_put_a_bias_right_are_both_named() -> None:
    """Halo rows of the loss reach the bias alone: there is a leak of half their gradient, and rows too many."""
    data = karate()

    class Leaky(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = GCNConv(data.num_features, 4, bias=False)
            self.bias = nn.Parameter(torch.zeros(4))

        def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
            return self.conv(x, edge_index) + self.bias

    def leaky(model: Any, batch: Any, data: Data) -> None:
        """The halo's rows get half of their own gradient, and only the bias lets it through."""
        size = batch.batch_size
        fixed = model.conv(data.x, data.edge_index)[batch.n_id]
        out = torch.cat([fixed[:size], fixed[size:].detach()]) + model.bias
        weights = torch.where(torch.arange(len(out)) < size, 1.0, 0.5) * batch.train_mask
        losses = F.cross_entropy(out, batch.y, reduction="none") * weights.to(out.dtype)
        (losses.sum() * 4 / data.train_mask.sum()).backward()

    audit = lv.audit(Leaky(), data, with_halo(data), leaky)
    assert {cause.id for cause in audit.causes if cause.removes > 0.99} == {"bias-leak", "halo-rows-in-loss"}, str(
        audit
    )
    assert audit.explanation.complete
    assert [item.name for item in audit.parameters if item.wrong] == ["bias"]


@pytest.mark.slow
def test_a_cause_that_only_adds_noise_does_not_explain() -> None:
    """The number of labelled seeds varies a little between batches; the bias is that of sampled neighbours."""
    data = karate()

    def loader() -> Any:
        nodes = data.train_mask.nonzero().flatten()
        for seeds in nodes[torch.randperm(len(nodes))].tensor_split(5):
            inner = torch.isin(data.edge_index[1], seeds)
            kept = torch.rand(data.edge_index.shape[1]) < torch.where(inner, 0.6, 0.7)
            batch: Any = Data(x=data.x, y=data.y, edge_index=data.edge_index[:, kept], n_id=torch.arange(34))
            batch.seeds = seeds
            yield batch

    def sampled(model: nn.Module, batch: Any, data: Data) -> None:
        loss = F.cross_entropy(model(batch.x, batch.edge_index)[batch.seeds], batch.y[batch.seeds], reduction="sum")
        (loss * 5 / data.train_mask.sum()).backward()

    audit = lv.audit(Net(data), data, loader, sampled)
    assert explained(audit) == ({"missing-neighbours"}, True), str(audit)


@pytest.mark.slow
def test_what_only_adds_noise_does_not_explain_where_nothing_else_does() -> None:
    """The same with batches that are tuples: neighbours cannot be put back."""
    data = karate()

    def loader() -> Any:
        nodes = data.train_mask.nonzero().flatten()
        for seeds in nodes[torch.randperm(len(nodes))].tensor_split(5):
            yield data.edge_index[:, torch.rand(data.edge_index.shape[1]) < 0.65], seeds

    def sampled(model: nn.Module, batch: Any, data: Data) -> None:
        edge_index, seeds = batch
        loss = F.cross_entropy(model(data.x, edge_index)[seeds], data.y[seeds], reduction="sum")
        (loss * 5 / data.train_mask.sum()).backward()

    audit = lv.audit(Net(data), data, loader, sampled, seeds=lambda batch: batch[1])
    assert audit.outcome is lv.Outcome.REFUTED
    assert not audit.explanation.complete, str(audit)


def test_a_leak_is_named_in_a_step_that_takes_ids() -> None:
    """The batch's nodes come first among the rows that the step makes."""
    data = karate()

    class Leaky(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bias = GCNConv(data.num_features, 4, bias=False), nn.Parameter(torch.zeros(4))

        def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
            return self.conv(x, edge_index) + self.bias

    def leaky(model: Any, ids: Tensor, data: Data) -> None:
        rest = torch.arange(data.num_nodes)[: ids.min() + 3]
        nodes = torch.cat([ids, rest[~torch.isin(rest, ids)]])
        fixed = model.conv(data.x, data.edge_index)[nodes]
        out = torch.cat([fixed[: len(ids)], fixed[len(ids) :].detach()]) + model.bias
        losses = F.cross_entropy(out, data.y[nodes], reduction="none") * data.train_mask[nodes]
        (losses.sum() * 4 / data.train_mask.sum()).backward()

    audit = lv.audit(Leaky(), data, clusters(data), leaky)
    assert explained(audit) == ({"bias-leak"}, True), str(audit)


@pytest.mark.parametrize(
    ("left", "exact", "found"), [((0.4, 0.1), False, 1), ((0.0, 0.0), True, 0), ((0.6, 0.6), False, None)]
)
def test_of_causes_within_the_noise_the_one_that_leaves_least_explains(
    left: tuple[float, float], exact: bool, found: int | None
) -> None:
    first, second = INTERVENTIONS[:2]
    search = object.__new__(Search)
    search._found = {}
    search.candidates = {item.id: Candidate(item.id, "", "", intervention=item) for item in (first, second)}

    def measured(bias: float) -> Measured:
        return Measured({"w": torch.tensor([bias])}, {"w": 0.25}, exact, 100)

    search._measured = {frozenset(): measured(1.0), frozenset({first.id, second.id}): measured(0.9)}
    search._measured |= {frozenset({item.id}): measured(bias) for item, bias in zip((first, second), left, strict=True)}
    expected = None if found is None else frozenset({(first, second)[found].id})
    assert search.explanation(1) == expected


def test_around_a_batch_are_the_nodes_whose_messages_reach_it() -> None:
    """Against the edges 0 -> 1 -> 2, one step a hop: what a node sends to is not around it."""
    data = Data(edge_index=torch.tensor([[0, 1], [1, 2]]), num_nodes=3)
    first, last = torch.tensor([True, False, False]), torch.tensor([False, False, True])
    assert [around(data, last, hops).tolist() for hops in (1, 2)] == [[False, True, True], [True, True, True]]
    assert torch.equal(around(data, first, 2), first)


def test_the_halo_of_a_batch_is_around_it_and_not_of_it() -> None:
    """Of 0 -> 1 <- 2 and 3 alone: nodes with an edge from or to the batch, without the batch."""
    data = Data(edge_index=torch.tensor([[0, 2], [1, 1]]), num_nodes=4)
    world = World(SimpleNamespace(data=data, exact={}), [])  # type: ignore[arg-type]  # all that is read
    for batch, halo in (([0, 1], [2]), ([1], [0, 2]), ([0, 2], [1]), ([3], []), ([0, 1, 2, 3], [])):
        mask = torch.zeros(4, dtype=torch.bool)
        mask[batch] = True
        assert world.halo(mask).nonzero().ravel().tolist() == halo


@pytest.mark.parametrize(
    ("left", "like"),
    [
        ([5.0, 0.0, 1.0], False),  # alike along the exact gradient alone
        ([0.0, 1.0, 0.1], True),
        ([5.0, 1.0, 0.9], True),
        ([5.0, 3.0, 0.0], False),  # three times as large
        ([5.0, 0.4, 0.0], False),
        ([5.0, -1.0, 0.0], False),
    ],
)
def test_a_known_defect_resembles_a_bias_beside_the_exact_gradient(left: list[float], like: bool) -> None:
    search: Any = Search.__new__(Search)
    search._subject = SimpleNamespace(exact={"weight": torch.tensor([1.0, 0.0, 0.0])})
    search.predicted = lambda ids: {"weight": torch.tensor([5.0, 1.0, 0.0])}
    search._left = lambda ids: SimpleNamespace(bias={"weight": torch.tensor(left)})
    assert search.resembles("known", frozenset()) is like


@pytest.mark.parametrize(
    ("key", "seen"), [("batch-mean", True), ("batch-mean/labelled", False), ("node-mean", False), ("bias-leak", False)]
)
def test_a_count_of_a_batch_is_no_sight_of_a_cause(key: str, seen: bool) -> None:
    """What is left is hardly less with any weights; that the loss is a mean of so many rows has been seen."""
    search: Any = Search.__new__(Search)
    item = next(item for item in INTERVENTIONS if item.id == key)
    search.candidates = {key: Candidate(key, "", "", intervention=item)}
    assert search.seen(key) is seen
    search.rest = lambda ids: 0.8 if ids else 1.0
    search.resembles = lambda key, ids: True
    assert _greedy(search, 1.0) == (frozenset({key}) if seen else frozenset())


def test_what_takes_a_little_away_by_chance_is_not_listed() -> None:
    search: Any = Search.__new__(Search)
    search.candidates = {key: Candidate(key, "", "") for key in ("like", "unlike", "half", "changed")}
    for cause in fitted_causes(None):  # type: ignore[arg-type]  # none is fitted
        search.candidates[cause.id] = Candidate(cause.id, "", "", fitted=cause)
    for key, cosine in (("like", 0.95), ("unlike", 0.94), ("half", 0.9)):  # "changed" is an intervention
        search.candidates[key].cosine = cosine
    search.rest = lambda ids: 0.5 if "half" in ids else 0.9
    assert {cause.id for cause in _others(search, (), 1.0, complete=False)} == {"like", "half", "changed"}


@pytest.mark.parametrize("key", ["batch-mean/labelled", "node-mean", "bias-leak"])
@pytest.mark.parametrize(("rest", "listed"), [(0.75, False), (0.25, True)])
def test_a_cause_that_was_not_seen_is_listed_where_it_takes_half_away(key: str, rest: float, listed: bool) -> None:
    search: Any = Search.__new__(Search)
    item = next(item for item in INTERVENTIONS if item.id == key)
    search.candidates = {key: Candidate(key, "", "", intervention=item)}
    search.rest = lambda ids: rest
    assert bool(_others(search, (), 1.0, complete=False)) is listed


def fitted_to(bias: list[float], exact: bool = True) -> dict[str, Fit]:
    """Return the numbers of a factor and a penalty on squares that are fitted together to a bias of one parameter."""
    model = nn.Linear(4, 4, bias=False, dtype=torch.float64)
    subject: Any = SimpleNamespace(model=model)
    causes = {cause.id: cause for cause in fitted_causes(subject) if cause.id in ("factor", "penalty/squares")}
    measured = Measured({"weight": torch.tensor(bias, dtype=torch.float64)}, {"weight": 1e-16}, exact, 4)
    wanted = {"weight": torch.arange(16.0, dtype=torch.float64)}
    with torch.no_grad():
        model.weight.copy_(torch.cos(torch.arange(16.0, dtype=torch.float64)).reshape(4, 4))
    shaped = replace(measured, bias={"weight": measured.bias["weight"].reshape(4, 4)})
    return fit_together(causes, Leftover(shaped, {"weight": wanted["weight"].reshape(4, 4)}, alone=False))


def test_numbers_that_are_fitted_together_are_those_of_both() -> None:
    step = [2.0 * place - 0.3 * math.cos(place) for place in range(16)]
    fits = fitted_to(step)
    assert "the mean is 3 times the gradient" in fits["factor"].detail
    assert "the mean has -0.3 times the parameters (all)" in fits["penalty/squares"].detail
    left = torch.tensor(step, dtype=torch.float64) - sum(fit.bias["weight"].flatten() for fit in fits.values())
    assert float(left.norm()) < 1e-12


@pytest.mark.parametrize("bias", [0.0, math.nan, math.inf])
def test_nothing_and_no_number_are_fitted_without_an_error(bias: float) -> None:
    fits = fitted_to([bias] * 16)
    assert set(fits) == {"factor", "penalty/squares"}
    assert bias or all(not fit.bias["weight"].any() for fit in fits.values())


def test_classes_that_are_not_known_have_no_weights() -> None:
    subject: Any = SimpleNamespace(objective=None, data=SimpleNamespace(y=None), model=nn.Linear(1, 1))
    (cause,) = [cause for cause in fitted_causes(subject) if cause.id == "class-weights"]
    left = Leftover(
        Measured({"weight": torch.ones(2)}, {"weight": 0.0}, True, 4), {"weight": torch.ones(2)}, alone=True
    )
    assert cause.columns(left) == []
    fit = cause.fit(left)
    assert (fit.plausible, float(fit.bias["weight"].norm())) == (False, 0.0)


def test_few_fits_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has a gradient, and of sets of three there are many."""
    sizes, original = list[int](), Search._fitted

    def fitted(search: Search, *given: Any) -> dict[str, Fit]:
        sizes.append(len(search._found))
        return original(search, *given)

    monkeypatch.setattr(Search, "_fitted", fitted)
    data = karate()

    def step(model: nn.Module, batch: Any, data: Data) -> None:
        losses = F.cross_entropy(model(data.x, data.edge_index), data.y, reduction="none")
        (losses[batch] * (1.0 + batch)).sum().backward()

    audit = lv.audit(GCN(data.num_features, 8, 2, 4), data, [(nodes, 0.25) for nodes in clusters(data)], step)
    assert (audit.outcome.value, audit.explanation.complete) == ("REFUTED", False)
    assert len(sizes) > 2 * KEPT
    assert max(sizes) < KEPT


@pytest.mark.parametrize(
    ("others", "exact", "tried"),
    [((), True, True), ((), False, False), (("item",), True, False), (("third",), True, False)],
)
def test_two_fits_are_tried_by_themselves_where_all_batches_are_known(
    others: tuple[str, ...], exact: bool, tried: bool
) -> None:
    search: Any = Search.__new__(Search)
    causes = dict(zip(("first", "second", "third"), fitted_causes(None), strict=False))  # type: ignore[arg-type]
    search.candidates = {key: Candidate(key, "", "", fitted=cause) for key, cause in causes.items()}
    search.candidates["item"] = Candidate("item", "", "", intervention=INTERVENTIONS[0])
    search.measured = lambda ids: SimpleNamespace(exact=exact)
    search._fits = lambda ids: {key: SimpleNamespace(plausible=True) for key in ids if key != "item"}
    assert search._may_be_tried(frozenset({"first", "second", *others})) is tried
    assert search._may_be_tried(frozenset({"first", "item"}))
