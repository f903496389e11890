"""Claim: of every example loop the audit finds the outcome and the causes that it was written to have, and no others.

Loops that were put right are unbiased; this on an undirected and on a directed graph, with clusters of equal and of
unequal size.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch_geometric.data import Data

import lmc_verify as lv
from lmc_verify.audits import Audit
from lmc_verify.seeds import torch_generator

LOOPS = Path(__file__).parents[2] / "examples" / "loops"
ENUMERATED = {
    "gas:audited": {"dropped-halo"},
    "gas:audited_leak": {"dropped-halo", "bias-leak"},
    "gas_published:audited": {"dropped-halo", "batch-mean"},
    "lmc:audited": set(),
    "lmc:audited_leak": {"bias-leak"},
    "khop:audited": {"subgraph-degrees"},
    "khop:audited_corrected": set(),
    "cluster_gcn:audited_fixed": {"missing-neighbours"},
    "batch_mean:audited": {"batch-mean"},
    "batch_mean:audited_corrected": set(),
    "halo_in_loss:audited": {"halo-rows-in-loss"},
    "halo_in_loss:audited_corrected": set(),
}
WITHOUT_CLUSTERS = {
    "training_mode:audited_batch_norm": {"batch-norm"},
    "training_mode:audited_corrected": set(),
}
DRAWN = {
    "cluster_gcn:audited": {"missing-neighbours"},
    "graphsaint:audited": {"missing-neighbours"},
    "neighbor_sampling:audited": {"missing-neighbours"},
    "training_mode:audited": {"dropout"},
}


def loop(name: str) -> ModuleType:
    """Return the module of an example loop."""
    sys.path.insert(0, str(LOOPS))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(LOOPS))


def audited(name: str, *args: Any, **options: Any) -> Audit:
    """Return the audit of a loop, such as ``"gas:audited"``; the global generators are left as they were."""
    module, _, function = name.partition(":")
    with torch.random.fork_rng(devices=[]):
        return lv.audit(**getattr(loop(module), function)(*args), **options)


def explanation(audit: Audit) -> set[str]:
    """Return the ids of the causes that explain the bias."""
    return {cause.id for cause in audit.causes if cause.explains}


def karate() -> Data:
    """Return the karate club with every other node labelled."""
    data = lv.load_data("karate")
    data.train_mask = torch.arange(data.num_nodes) % 2 == 0
    return data


def directed() -> Data:
    """Return a directed graph of 40 nodes, some without a neighbour."""
    generator = torch_generator(7, "loops")
    edges = torch.randint(40, (2, 90), generator=generator)
    edges = edges[:, (edges[0] != edges[1]) & (edges[1] != 39)].unique(dim=1)
    return Data(
        x=torch.randn(40, 6, generator=generator),
        edge_index=edges,
        y=torch.randint(3, (40,), generator=generator),
        train_mask=torch.rand(40, generator=generator) < 0.6,
        test_mask=torch.ones(40, dtype=torch.bool),
    )


GRAPHS = {"karate": karate, "directed": directed}
SIZES = {"equal": None, "unequal": [3, 5, 7, 9]}


def clusters_of(data: Data, sizes: list[int] | None) -> list[torch.Tensor]:
    """Return random clusters of some sizes, the last one with the rest; four of equal size for None."""
    nodes = torch.randperm(data.num_nodes, generator=torch_generator(3, "clusters"))
    return list(nodes.chunk(4)) if sizes is None else list(nodes.split([*sizes, data.num_nodes - sum(sizes)]))


def check(audit: Audit, causes: set[str]) -> None:
    """Compare outcome and explanation with what the loop has."""
    assert audit.outcome in ({lv.Outcome.REFUTED} if causes else {lv.Outcome.EXACT, lv.Outcome.SUPPORTED}), str(audit)
    assert explanation(audit) == causes, str(audit)
    assert audit.explanation.complete == bool(causes), str(audit)


@pytest.mark.slow
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("name", ENUMERATED)
def test_loops_of_known_batches(name: str, graph: str, sizes: str) -> None:
    data = GRAPHS[graph]()
    audit = audited(name, data, clusters_of(data, SIZES[sizes]))
    check(audit, ENUMERATED[name])
    assert audit.guarantee == "exact"


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("name", WITHOUT_CLUSTERS)
def test_models_in_training_mode(name: str, graph: str) -> None:
    check(audited(name, GRAPHS[graph]()), WITHOUT_CLUSTERS[name])


@pytest.mark.slow
@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("name", DRAWN)
def test_loops_of_drawn_batches(name: str, graph: str) -> None:
    """Refuted with error probability 1e-4 each; with fixed seeds, so that the test always does the same."""
    audit = audited(name, GRAPHS[graph](), draws=400)
    check(audit, DRAWN[name])
    assert audit.guarantee == "asymptotic"


def test_every_function_of_every_loop_is_in_a_table() -> None:
    known = {*ENUMERATED, *WITHOUT_CLUSTERS, *DRAWN}
    found = {
        f"{file.stem}:{name}"
        for file in LOOPS.glob("*.py")
        for name in vars(loop(file.stem))
        if name.startswith("audited")
    }
    assert found == known


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(file.stem for file in LOOPS.glob("*.py")))
def test_loops_train(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with torch.random.fork_rng(devices=[]):
        loop(name).main(epochs=2)
    assert 0.0 < float(capsys.readouterr().out.rpartition(" ")[2]) <= 1.0
