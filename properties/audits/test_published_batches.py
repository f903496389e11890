"""Batches as published loaders give them: tuples of data, a batch size, node ids, and more."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from common.step_cases import CLASSES, NODES, WIDTH, built, ring
from torch import Tensor, nn
from torch.nn import functional as F
from torch_geometric.data import Data
from torch_geometric.nn import GCN

import lmc_verify as lv
from lmc_verify.audits.batches.nodes import NodesReader

CLUSTERS = (torch.tensor([0, 1]), torch.tensor([6, 2, 3, 4, 5, 7]))


class Sub(NamedTuple):
    """What a loader of histories gives."""

    data: Data
    batch_size: int
    n_id: Tensor
    offset: Tensor
    count: Tensor
    parameters: dict[str, Any]


def parts(cluster: Tensor) -> tuple[Data, int, Tensor, Tensor, Tensor]:
    """Return a cluster first, and the rest of the graph."""
    data = ring()
    rest = torch.ones(NODES, dtype=torch.bool)
    rest[cluster] = False
    order = torch.cat([cluster, rest.nonzero().flatten()])
    sub = data.subgraph(order)
    return sub, cluster.numel(), order, torch.tensor([0]), torch.tensor([cluster.numel()])


KINDS = {
    "named": lambda cluster: Sub(*parts(cluster), {"alpha": torch.ones(2), "clusters": 2.0}),
    "tuple": parts,
    "list": lambda cluster: list(parts(cluster)),
    "dictionary": lambda cluster: dict(zip(("data", "batch_size", "n_id"), parts(cluster), strict=False)),
    "ids and size": lambda cluster: (parts(cluster)[1], parts(cluster)[2]),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("index", [0, 1])
def test_rows_and_seeds_are_read(kind: str, index: int) -> None:
    cluster = CLUSTERS[index]
    found = NodesReader(ring())(KINDS[kind](cluster))
    assert found.seeds_are_named
    assert torch.equal(found.seeds, cluster.sort().values)  # type: ignore[arg-type]
    assert torch.equal(found.ids, parts(cluster)[2])  # type: ignore[arg-type]


def test_what_could_be_several_things_is_not_guessed() -> None:
    data, size, order, *_ = parts(CLUSTERS[0])
    reader = NodesReader(ring())
    assert not reader((data, size, 2, order)).seeds_are_named
    two = reader((data, data))
    assert two.seeds is None or not two.seeds_are_named


def step(model: nn.Module, batch: Any) -> None:
    data, size = (batch["data"], batch["batch_size"]) if isinstance(batch, dict) else batch[:2]
    out, mask = model(data.x, data.edge_index)[:size], data.train_mask[:size]
    F.cross_entropy(out[mask], data.y[:size][mask]).backward()


@pytest.mark.parametrize("kind", ["named", "tuple", "list", "dictionary"])
def test_the_cause_is_found_in_them(kind: str) -> None:
    data, model = ring(), built(lambda: GCN(WIDTH, 4, 2, CLASSES))
    found = lv.audit(model, data, [KINDS[kind](cluster) for cluster in CLUSTERS], step)
    assert found.outcome is lv.Outcome.REFUTED
    assert [cause.id for cause in found.causes if cause.explains] == ["batch-mean"]
    assert found.explanation.complete
    assert not any("copy of its own" in note for note in found.notes)


@pytest.mark.parametrize("kind", ["named", "dictionary"])
def test_a_step_that_reads_data_of_its_own_is_found_out(kind: str) -> None:
    data, model = ring(), built(lambda: GCN(WIDTH, 4, 2, CLASSES))
    own = ring(torch.float64)

    def closed(model: nn.Module, batch: Any) -> None:
        F.cross_entropy(model(own.x, own.edge_index), own.y).backward()

    with pytest.raises(lv.ContractError, match="reads data of its own"):
        lv.audit(model, data, [KINDS[kind](cluster) for cluster in CLUSTERS], closed)
