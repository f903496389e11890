"""Claim: what a loader has changed in its batches, beside the graph, is found and named, and nothing else put right."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from common.crossed import slow_but
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch_geometric.data import Data
from torch_geometric.nn import GINConv, SAGEConv
from torch_geometric.utils import k_hop_subgraph

import lmc_verify as lv
from lmc_verify import Audit
from lmc_verify.audits.batches.graph import GraphEdges, with_graph_edges, with_graph_features, with_graph_labels
from lmc_verify.seeds import torch_generator

NODES = 40


def graph(*, directed: bool = False) -> Data:
    """Return a sparse random graph: the two hops around a cluster are not all of it."""
    source = torch_generator(0, "changed batches")
    edges = torch.rand(NODES, NODES, generator=source) < 0.05
    edges.fill_diagonal_(False)
    edges = edges if directed else edges | edges.T
    data = Data(
        x=torch.randn(NODES, 4, generator=source),
        edge_index=edges.nonzero().T.contiguous(),
        y=torch.randint(3, (NODES,), generator=source),
    )
    data.train_mask = torch.rand(NODES, generator=source) < 0.6
    data.edge_weight = torch.rand(data.num_edges, generator=source) + 0.5
    return data


class Net(nn.Module):
    """Sums over neighbours, so that every edge counts."""

    def __init__(self, *, mean: bool = False) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            if mean:
                self.conv1, self.conv2 = SAGEConv(4, 8), SAGEConv(8, 3)
            else:
                self.conv1, self.conv2 = GINConv(nn.Linear(4, 8)), GINConv(nn.Linear(8, 3))

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.conv2(self.conv1(x, edge_index).tanh(), edge_index)


class Weighted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None = None) -> Tensor:
        return self.second(self._sum(self.first(self._sum(x, edge_index, edge_weight)).tanh(), edge_index, edge_weight))

    @staticmethod
    def _sum(x: Tensor, edge_index: Tensor, edge_weight: Tensor | None) -> Tensor:
        sent = x[edge_index[0]] if edge_weight is None else x[edge_index[0]] * edge_weight[:, None]
        return x.index_add(0, edge_index[1], sent)


def clusters() -> list[Tensor]:
    nodes = torch.randperm(NODES, generator=torch_generator(1, "clusters"))
    return list(nodes.split([6, 9, 10, 15]))


def batches(data: Data, change: Callable[[Any], None] = lambda batch: None, hops: int = 2) -> list[Data]:
    out = []
    for cluster in clusters():
        nodes, _, rows, _ = k_hop_subgraph(cluster, hops, data.edge_index, num_nodes=NODES)
        batch: Any = data.subgraph(nodes)
        batch.n_id, batch.mapping = nodes, rows
        change(batch)
        out.append(batch)
    return out


def step(model: nn.Module, batch: Any, data: Data) -> None:
    weights = (batch.get("edge_weight"),) if isinstance(model, Weighted) else ()
    out = model(batch.x, batch.edge_index, *weights)[batch.mapping]
    mask, y = batch.train_mask[batch.mapping], batch.y[batch.mapping]
    (F.cross_entropy(out[mask], y[mask], reduction="sum") * 4 / data.train_mask.sum()).backward()


def loops(batch: Any) -> None:
    own = torch.arange(batch.num_nodes).repeat(2, 1)
    batch.edge_index = torch.cat([batch.edge_index, own], 1)
    batch.edge_weight = torch.cat([batch.edge_weight, torch.ones(batch.num_nodes)])


def doubled(batch: Any) -> None:
    batch.edge_index = torch.cat([batch.edge_index, batch.edge_index], 1)
    batch.edge_weight = batch.edge_weight.repeat(2)


def reversed_edges(batch: Any) -> None:
    batch.edge_index = batch.edge_index.flip(0)


def other_weights(batch: Any) -> None:
    batch.edge_weight = batch.edge_weight.roll(1)


def no_weights(batch: Any) -> None:
    del batch.edge_weight


def standardised(batch: Any) -> None:
    batch.x = (batch.x - batch.x.mean(0)) / batch.x.std(0)


def other_targets(batch: Any) -> None:
    batch.y = (batch.y + (torch.arange(batch.num_nodes) % 3 == 0)) % 3


def every_node(batch: Any) -> None:
    batch.train_mask = torch.ones_like(batch.train_mask)


CHANGES: dict[str, tuple[Callable[[Any], None], str, type[nn.Module]]] = {
    "self-loops": (loops, "changed-edges", Net),
    "edges twice": (doubled, "changed-edges", Net),
    "reversed edges": (reversed_edges, "changed-edges", Net),
    "misaligned weights": (other_weights, "changed-edges", Weighted),
    "dropped weights": (no_weights, "changed-edges", Weighted),
    "standardised features": (standardised, "changed-features", Net),
    "other targets": (other_targets, "changed-labels", Net),
    "mask of all nodes": (every_node, "changed-labels", Net),
}


def bias_by_hand(model: nn.Module, data: Data, given: list[Data]) -> float:
    """Return the bias in units of the gradient, by plain autograd."""
    model = model.double()
    values = list(model.parameters())

    def gradient(loss: Tensor) -> Tensor:
        return torch.cat([part.flatten() for part in torch.autograd.grad(loss, values)])

    def out(part: Any) -> Tensor:
        weight = part.edge_weight.double() if "edge_weight" in part else None
        found: Tensor = model(part.x.double(), part.edge_index, *([weight] if isinstance(model, Weighted) else []))
        return found

    exact = gradient(F.cross_entropy(out(data)[data.train_mask], data.y[data.train_mask]))
    mean = torch.zeros_like(exact)
    for batch in given:
        rows = batch.mapping[batch.train_mask[batch.mapping]]
        mean += gradient(F.cross_entropy(out(batch)[rows], batch.y[rows], reduction="sum")) / int(data.train_mask.sum())
    return float((mean - exact).norm() / exact.norm())


def explained(audit: Audit) -> set[str]:
    assert audit.explanation.complete, str(audit)
    return {cause.id for cause in audit.causes if cause.explains}


@pytest.mark.parametrize(
    "change", slow_but({"self-loops", "dropped weights", "standardised features", "mask of all nodes"}, CHANGES)
)
def test_a_change_is_named_alone(change: str) -> None:
    how, cause, kind = CHANGES[change]
    data = graph(directed=change == "reversed edges")
    given = batches(data, how)
    audit = lv.audit(kind(), data, given, step)
    assert audit.outcome is lv.Outcome.REFUTED
    assert audit.bias == pytest.approx(bias_by_hand(kind(), data, given), rel=1e-9)
    assert explained(audit) == {cause}, str(audit)
    assert {item.id for item in audit.causes} == {cause}, "another one is listed beside it"


@pytest.mark.slow
@pytest.mark.parametrize("change", [loops, other_targets, standardised])
def test_it_is_told_from_edges_that_are_cut(change: Callable[[Any], None]) -> None:
    data = graph()
    cause = {loops: "changed-edges", other_targets: "changed-labels", standardised: "changed-features"}[change]
    audit = lv.audit(Net(), data, batches(data, change, hops=0), step)
    assert explained(audit) == {"missing-neighbours", cause}, str(audit)


@pytest.mark.slow
def test_changes_that_are_drawn_are_named() -> None:
    data = graph()

    def loader() -> Iterator[Data]:
        yield from batches(data, lambda batch: batch.update({"x": batch.x * (torch.rand(4) > 0.4)}))

    audit = lv.audit(Net(), data, loader, step, draws=256)
    assert audit.outcome is lv.Outcome.REFUTED
    assert explained(audit) == {"changed-features"}, str(audit)


@pytest.mark.slow
def test_a_batch_s_own_mask_and_columns_of_its_own_are_no_change() -> None:
    """A loader may leave labels out, and give a batch more features than the data have."""
    data = graph()
    more = torch.randn(NODES, 2, generator=torch_generator(2, "more"))

    class Wide(Net):
        def __init__(self) -> None:
            super().__init__()
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                self.conv1 = GINConv(nn.Linear(6, 8))

    def prepared(batch: Any) -> None:
        batch.x = torch.cat([batch.x, more[batch.n_id]], 1)
        batch.train_mask = batch.train_mask & torch.isin(torch.arange(batch.num_nodes), batch.mapping)

    def objective(model: nn.Module, data: Any) -> Tensor:
        out = model(torch.cat([data.x, more.to(data.x)], 1), data.edge_index)
        return F.cross_entropy(out[data.train_mask], data.y[data.train_mask])

    assert lv.audit(Wide(), data, batches(data, prepared), step, objective=objective).outcome is lv.Outcome.EXACT
    cut = lv.audit(Wide(), data, batches(data, prepared, hops=0), step, objective=objective)  # no whole graph of these
    assert cut.outcome is lv.Outcome.REFUTED
    assert "changed-features" not in {cause.id for cause in cut.causes}


@pytest.mark.slow
def test_a_step_that_fails_with_another_batch_is_judged_without_that_intervention() -> None:
    """It finds its rows by sorted ids, which the whole graph as a batch does not have."""
    data = graph()

    def by_order(model: nn.Module, batch: Any) -> None:
        rows = torch.searchsorted(batch.n_id, batch.n_id[batch.mapping])
        assert torch.equal(rows, batch.mapping)
        mask = batch.train_mask[rows]
        F.cross_entropy(model(batch.x, batch.edge_index)[rows][mask], batch.y[rows][mask]).backward()

    audit = lv.audit(Net(), data, batches(data), by_order)
    assert explained(audit) == {"batch-mean"}, str(audit)


@pytest.mark.slow
def test_labels_that_only_the_halo_has_do_not_end_the_search() -> None:
    """Without its halo's labels a batch has a mean over nothing, which is not finite."""
    data = graph()
    order = torch.cat([(~data.train_mask).nonzero().flatten(), data.train_mask.nonzero().flatten()])
    given = []
    for seeds in order.split(10):
        nodes, _, rows, _ = k_hop_subgraph(seeds, 2, data.edge_index, num_nodes=NODES)
        batch: Any = data.subgraph(nodes)
        batch.n_id, batch.mapping = nodes, rows
        given.append(batch)

    def all_labels(model: nn.Module, batch: Any) -> None:
        mask = batch.train_mask
        F.cross_entropy(model(batch.x, batch.edge_index)[mask], batch.y[mask]).backward()

    audit = lv.audit(Net(mean=True), data, given, all_labels)
    assert audit.outcome is lv.Outcome.REFUTED


# ------------------------------------------------------------------------------------------- edges, one by one


def places_by_hand(whole: list[tuple[int, int]], edges: list[tuple[int, int]]) -> list[int]:
    """Take for every edge the first equal one of the graph that is left."""
    left = list(enumerate(whole))
    out = []
    for edge in edges:
        found = next((item for item in left if item[1] == edge), None)
        out.append(-1 if found is None else found[0])
        if found is not None:
            left.remove(found)
    return out


EDGES = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=12)


@given(EDGES, EDGES)
def test_edges_are_found_as_one_would_by_hand(whole: list[tuple[int, int]], edges: list[tuple[int, int]]) -> None:
    def tensor(pairs: list[tuple[int, int]]) -> Tensor:
        return torch.tensor(pairs, dtype=torch.long).reshape(-1, 2).T

    assert GraphEdges(tensor(whole), 4).places(tensor(edges)).tolist() == places_by_hand(whole, edges)


def test_what_is_the_graph_s_is_returned_as_it_is() -> None:
    data = graph()
    edges = GraphEdges(data.edge_index, NODES)
    for batch in batches(data):
        assert with_graph_edges(batch, data, batch.n_id, edges) is batch
        assert with_graph_features(batch, data, batch.n_id) is batch
        assert with_graph_labels(batch, data, batch.n_id) is batch
        part: Any = batch.clone()  # edges that a batch lacks stay away
        part.edge_index, part.edge_weight = batch.edge_index[:, ::2], batch.edge_weight[::2]
        assert with_graph_edges(part, data, batch.n_id, edges) is part


def test_added_edges_go_with_what_is_said_of_them() -> None:
    data = graph()
    plain, batch = batches(data)[0], batches(data, loops)[0]
    batch.edge_own = torch.arange(batch.num_edges)  # which the data do not have
    found = with_graph_edges(batch, data, batch.n_id, GraphEdges(data.edge_index, NODES))
    assert torch.equal(found.edge_index, plain.edge_index)
    assert torch.equal(found.edge_weight, plain.edge_weight)
    assert torch.equal(found.edge_own, torch.arange(plain.num_edges))
    assert found.num_edges < batch.num_edges == len(batch.edge_weight)


def with_links(batch: Data, data: Data) -> Any:
    """Return a batch with as many links to be predicted as it has edges, and their labels, next to those of all."""
    out: Any = batch.clone()
    count = out.num_edges
    out.edge_label_index = torch.arange(2 * count).reshape(2, count) % out.num_nodes
    out.edge_label = 1 - (torch.arange(count) % 2)
    out.pos_edge_label = out.links = torch.arange(count)
    out.pos_edge_label_index = out.links_index = out.edge_label_index
    out.dst_pos_index = torch.arange(out.num_nodes)
    return out


LINKS = ("edge_label_index", "edge_label", "pos_edge_label_index", "pos_edge_label", "links_index", "links")


def test_labels_of_links_are_no_attributes_of_edges_though_there_are_as_many() -> None:
    """Of the graph's labels of links none comes into a batch, and those of a batch stay as they are."""
    data = graph()
    whole, edges = with_links(data, data), GraphEdges(data.edge_index, NODES)
    for plain in batches(data):
        batch = with_links(plain, data)
        assert with_graph_edges(batch, whole, plain.n_id, edges) is batch
        assert with_graph_features(batch, whole, plain.n_id) is batch
        assert with_graph_edges(plain, whole, plain.n_id, edges) is plain
        loops(batch)
        found = with_graph_edges(batch, whole, plain.n_id, edges)
        assert torch.equal(found.edge_index, plain.edge_index)
        assert all(found[key] is not None and torch.equal(found[key], batch[key]) for key in (*LINKS, "dst_pos_index"))


@pytest.mark.slow
def test_a_batch_mean_of_link_prediction_is_named() -> None:
    """PyTorch Geometric's split gives a training graph as many labels of links as it has edges."""
    data = graph()
    whole = with_links(data, data)
    parts, model = torch.arange(whole.num_edges).split([28, whole.num_edges - 28]), Net()

    def loss(model: nn.Module, part: Any) -> Tensor:
        out, (source, target) = model(part.x, part.edge_index), part.edge_label_index
        scores = (out[source] * out[target]).sum(1)
        return F.binary_cross_entropy_with_logits(scores, part.edge_label.to(scores))

    def part_of(chosen: Tensor) -> Data:
        part: Any = data.clone()
        part.n_id = torch.arange(NODES)
        part.edge_label_index, part.edge_label = whole.edge_label_index[:, chosen], whole.edge_label[chosen]
        return part

    def take(model: nn.Module, batch: Any) -> None:
        loss(model, batch).backward()

    audit = lv.audit(model, whole, [part_of(chosen) for chosen in parts], take, objective=loss)
    assert [cause.id for cause in audit.causes if cause.explains] == ["batch-mean"]
    assert audit.explanation.complete


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["dense", "sparse_coo", "sparse_csr", "sparse_csc"])
def test_sparse_features_are_judged_as_dense_ones(layout: str) -> None:
    class Dot(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.rand(4, 4, generator=torch_generator(2, "weight")) - 0.5)
            self.net = Weighted()

        def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
            out: Tensor = self.net((x @ self.weight).relu(), edge_index)
            return out

    def convert(value: Data) -> Data:
        out: Any = value.clone()
        out.x = getattr(out.x * (out.x > 0), f"to_{layout}")()
        return out

    data, model = graph(), Dot()
    listed = [convert(batch) for batch in batches(data)]

    def mean(model: nn.Module, batch: Any) -> None:
        rows = batch.mapping[batch.train_mask[batch.mapping]]
        F.cross_entropy(model(batch.x, batch.edge_index)[rows], batch.y[rows]).backward()

    audit = lv.audit(model, convert(data), listed, mean)
    assert [cause.id for cause in audit.causes if cause.explains] == ["batch-mean"]
    assert audit.explanation.complete


@pytest.mark.slow
def test_weights_of_a_sample_of_edges_are_one_where_nothing_is_sampled() -> None:
    """GraphSAINT divides messages by how often their edge comes, and losses by how often their node does."""
    data, count = graph(), 12
    data.x, data.edge_weight = data.x.double(), data.edge_weight.double()
    source = torch_generator(3, "samples")
    samples = [torch.randperm(NODES, generator=source)[:20].sort().values for _ in range(count)]
    held = torch.stack([torch.isin(torch.arange(NODES), sample) for sample in samples])
    both = held[:, data.edge_index[0]] & held[:, data.edge_index[1]]
    times = held.sum(0).double()
    edge_norm = times[data.edge_index[1]] / both.sum(0).clamp_min(1)
    listed = []
    for sample, inside in zip(samples, both, strict=True):
        batch: Any = data.subgraph(sample)
        batch.n_id, batch.edge_norm = sample, edge_norm[inside]
        batch.node_norm = count / times[sample].clamp_min(1) / data.train_mask.sum()
        listed.append(batch)

    def saint(model: nn.Module, batch: Any) -> None:
        out = model(batch.x, batch.edge_index, batch.edge_norm * batch.edge_weight)
        losses = F.cross_entropy(out, batch.y, reduction="none") * batch.node_norm
        losses[batch.train_mask].sum().backward()

    def objective(model: nn.Module, data: Any) -> Tensor:
        out = model(data.x, data.edge_index, data.edge_weight)[data.train_mask]
        return F.cross_entropy(out, data.y[data.train_mask])

    audit = lv.audit(Weighted(), data, listed, saint, objective=objective)
    assert bool((times[data.train_mask] > 0).all())
    assert [cause.id for cause in audit.causes if cause.explains] == ["missing-neighbours"]
    assert audit.explanation.complete
