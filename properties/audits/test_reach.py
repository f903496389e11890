"""Claim: missing messages, degrees, statistics of rows and nodes that never come are told apart, whatever the model.

How far messages go, and whether rows without an edge count, is measured: no module says so.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from common.crossed import slow_but
from torch import Tensor, nn
from torch.nn import functional as F
from torch_geometric.data import Data
from torch_geometric.nn import GCNConv, GraphNorm, LayerNorm, PairNorm, SAGEConv, TAGConv
from torch_geometric.utils import k_hop_subgraph

import lmc_verify as lv
from lmc_verify import Audit
from lmc_verify.audits.causes.reach import hops_of
from lmc_verify.seeds import torch_generator

NODES, CLASSES = 24, 3


def ring() -> Data:
    """Return a ring with three chords, on which two hops are not everything."""
    source = torch_generator(0, "reach")
    nodes = torch.arange(NODES)
    edges = torch.cat([torch.stack([nodes, (nodes + 1) % NODES]), torch.tensor([[0, 5, 9], [3, 7, 12]])], 1)
    data = Data(
        x=torch.randn(NODES, 4, generator=source),
        edge_index=torch.cat([edges, edges.flip(0)], 1),
        y=torch.randint(CLASSES, (NODES,), generator=source),
    )
    data.train_mask = nodes % 4 != 3
    return data


def around(data: Data, parts: list[Tensor], hops: int) -> list[Data]:
    out = []
    for part in parts:
        nodes, _, rows, _ = k_hop_subgraph(part, hops, data.edge_index, num_nodes=NODES)
        batch: Any = data.subgraph(nodes)
        batch.n_id, batch.mapping = nodes, rows
        out.append(batch)
    return out


def parts() -> list[Tensor]:
    return list(torch.arange(NODES).split([5, 8, 11]))


def step(model: nn.Module, batch: Any, data: Data) -> None:
    out, mask = model(batch.x, batch.edge_index)[batch.mapping], batch.train_mask[batch.mapping]
    loss = F.cross_entropy(out[mask], batch.y[batch.mapping][mask], reduction="sum")
    (loss * 3 / data.train_mask.sum()).backward()


class Net(nn.Module):
    """Two convolutions, which may be one that is called twice, or sums in plain torch; a norm between them."""

    def __init__(self, kind: str = "sage", norm: nn.Module | None = None) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.head = nn.Linear(4, CLASSES)
            if kind == "hops":
                self.convs = nn.ModuleList([TAGConv(4, 4, K=2, normalize=False)])
            elif kind == "shared":
                self.convs = nn.ModuleList([SAGEConv(4, 4)] * 2)
            elif kind == "plain":
                self.convs = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))
            else:
                conv = {"sage": SAGEConv, "gcn": GCNConv}[kind]
                self.convs = nn.ModuleList(conv(4, 4) for _ in range(2))
        self.norm = norm or nn.Identity()

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        for conv in self.convs:
            if isinstance(conv, nn.Linear):
                x = self.norm(conv(x.index_add(0, edge_index[1], x[edge_index[0]]))).tanh()
            else:
                x = self.norm(conv(x, edge_index)).tanh()
        out: Tensor = self.head(x)
        return out


def judge(model: nn.Module, batches: list[Data], how: Callable[..., None] = step) -> set[str]:
    """Return the causes of an audit, with those that are listed beside the explanation."""
    data = ring()
    audit: Audit = lv.audit(model, data, batches, how)
    assert audit.outcome is lv.Outcome.REFUTED, str(audit)
    assert audit.explanation.complete, str(audit)
    return {cause.id for cause in audit.causes}


@pytest.mark.parametrize("kind", slow_but({"sage", "plain"}, ["sage", "gcn", "hops", "shared", "plain"]))
def test_messages_that_are_missing_are_called_that_whoever_sends_them(kind: str) -> None:
    assert judge(Net(kind), around(ring(), parts(), 1)) == {"missing-neighbours"}


@pytest.mark.parametrize(("kind", "outcome"), [("shared", "EXACT"), ("plain", "EXACT"), ("gcn", "REFUTED")])
def test_degrees_are_blamed_where_no_message_is_missing(kind: str, outcome: str) -> None:
    data = ring()
    audit = lv.audit(Net(kind), data, around(data, parts(), 2), step)
    assert audit.outcome.value == outcome
    assert [cause.id for cause in audit.causes] == ([] if outcome == "EXACT" else ["subgraph-degrees"])


@pytest.mark.parametrize("kind", ["sage", "gcn", "hops", "shared", "plain"])
def test_hops_are_measured(kind: str) -> None:
    data, model = ring(), Net(kind).double()
    data.x = data.x.double()
    subject: Any = SimpleNamespace(data=data, model=model, seed=0, hops=None, reset=lambda: None)
    assert hops_of(subject) == 2


def test_hops_are_counted_along_the_messages() -> None:
    """One way round a ring, what is two hops before a node is far behind it."""
    data, model = ring(), Net("plain").double()
    data.x, data.edge_index = data.x.double(), torch.stack([torch.arange(NODES), (torch.arange(NODES) + 1) % NODES])
    subject: Any = SimpleNamespace(data=data, model=model, seed=0, hops=None, reset=lambda: None)
    assert hops_of(subject) == 2


def test_where_everything_is_within_reach_the_messages_that_are_sent_are_counted() -> None:
    """In a complete graph one hop is everything; three convolutions go further than that, and so does plain torch."""
    data = ring()
    data.x, data.edge_index = data.x.double(), (1 - torch.eye(NODES)).nonzero().T
    for kind, hops in (("sage", 2), ("hops", 2), ("plain", NODES)):
        subject: Any = SimpleNamespace(data=data, model=Net(kind).double(), seed=0, hops=None, reset=lambda: None)
        assert hops_of(subject) == hops, kind


NORMS: dict[str, Callable[[], nn.Module]] = {
    "graph": lambda: GraphNorm(4),
    "pairs": PairNorm,
    "layer of the graph": lambda: LayerNorm(4, mode="graph"),
    "batch without running statistics": lambda: nn.BatchNorm1d(4, track_running_stats=False),
}


@pytest.mark.parametrize("norm", slow_but({"layer of the graph", "batch without running statistics"}, NORMS))
def test_statistics_of_the_batch_s_rows_are_named(norm: str) -> None:
    assert judge(Net(norm=NORMS[norm]()), around(ring(), parts(), 2)) == {"batch-statistics"}


def test_statistics_are_said_beside_edges_that_are_cut() -> None:
    data = ring()
    audit = lv.audit(Net(norm=GraphNorm(4)), data, around(data, parts(), 0), step)
    (cause,) = audit.causes
    assert (cause.id, "over all rows" in cause.words) == ("missing-neighbours", True)
    audit = lv.audit(Net(), data, around(data, parts(), 0), step)
    (cause,) = audit.causes
    assert (cause.id, "over all rows" in cause.words) == ("missing-neighbours", False)


def test_dropout_and_batch_norm_in_training_mode_are_no_statistics_of_that_kind() -> None:
    model = Net("gcn", nn.BatchNorm1d(4, momentum=0.5))
    assert judge(model, around(ring(), parts(), 2)) == {"batch-norm", "subgraph-degrees"}


def test_what_only_the_batch_says_of_its_edges_does_not_hide_that_some_are_cut() -> None:
    """Loaders number the edges of a batch (e_id), and say other things of them that no step reads."""
    batches = around(ring(), parts(), 1)
    for batch in batches:
        batch.e_id, batch.sampled_at = torch.arange(batch.num_edges), torch.ones(batch.num_edges)
    assert judge(Net(), batches) == {"missing-neighbours"}


@pytest.mark.parametrize("kind", slow_but({"sage"}, ["sage", "gcn"]))
def test_nodes_that_never_come_are_not_taken_for_another_defect(kind: str) -> None:
    """All edges are there: what is off is the loss of the nodes that are left out."""
    left = [*parts()[:2], torch.arange(13, 18)]
    assert judge(Net(kind), around(ring(), left, 3)) == {"unequal-inclusion"}


def test_nodes_that_come_twice_need_no_factor() -> None:
    twice = [torch.arange(7), *parts()[1:]]
    assert judge(Net(), around(ring(), twice, 2)) == {"unequal-inclusion"}


def test_a_mean_over_all_nodes_is_not_called_one_over_labelled_ones() -> None:
    def masked(model: nn.Module, batch: Any, data: Data) -> None:
        out, y, mask = model(batch.x, batch.edge_index)[batch.mapping], batch.y[batch.mapping], batch.train_mask
        losses = F.cross_entropy(out, y, reduction="none") * mask[batch.mapping]
        (losses.mean() * NODES / data.train_mask.sum()).backward()

    assert judge(Net(), around(ring(), parts(), 2), masked) == {"node-mean"}


def test_a_gradient_that_is_rounding_is_no_unit() -> None:
    """A bias in front of a norm of the graph has the gradient zero, and a share of that would say nothing."""
    data = ring()
    audit = lv.audit(Net(norm=GraphNorm(4)), data, around(data, parts(), NODES), step)
    assert audit.outcome is lv.Outcome.EXACT
    assert all(item.own < 1e-9 for item in audit.parameters), audit.parameters


class Louder(nn.Module):
    """A module of a user's own that does something else in training mode, and may draw for it."""

    def __init__(self, draws: bool) -> None:
        super().__init__()
        self.draws = draws

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        return x * (1 + torch.rand_like(x)) if self.draws else 2 * x


@pytest.mark.slow
@pytest.mark.parametrize("draws", [False, True])
@pytest.mark.parametrize("inside", [False, True])
def test_modules_that_differ_in_training_mode_are_named(draws: bool, inside: bool) -> None:
    """Whether the model is in training mode when it is given, or the step puts it there."""

    def trained(model: nn.Module, batch: Any, data: Data) -> None:
        if inside:
            model.train()
        step(model, batch, data)

    data, model = ring(), Net(norm=Louder(draws)).train(not inside)
    audit = lv.audit(model, data, around(data, parts(), 2), trained, draws=256)
    assert audit.outcome is lv.Outcome.REFUTED, str(audit)
    assert [cause.id for cause in audit.causes] == ["training-mode"], str(audit)
    assert audit.explanation.complete
    assert any("draws for itself (training-mode)" in note for note in audit.notes) == draws


@pytest.mark.slow
@pytest.mark.parametrize("norm", [nn.BatchNorm1d(4), nn.Dropout(0.5)])
def test_training_mode_is_not_named_beside_what_it_does(norm: nn.Module) -> None:
    data, cause = ring(), "dropout" if isinstance(norm, nn.Dropout) else "batch-norm"
    audit = lv.audit(Net(norm=norm), data, around(data, parts(), 2), step, draws=256)
    assert [item.id for item in audit.causes] == [cause], str(audit)
