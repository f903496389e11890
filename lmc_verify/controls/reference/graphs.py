"""Operators, products with them, neighbourhoods, and what designs say of their batches."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from lmc_verify.controls.reference.document import Quantities, graph_of, inputs, inputs_of
from lmc_verify.graphs import (
    BatchDesign,
    Clusters,
    EpochClusters,
    FusedClusters,
    Graph,
    LocalSet,
    Partition,
    UniformNodes,
    spmm,
)

__all__ = ["quantities"]

_KINDS = ("gcn", "mean", "sum", "loops")


def quantities() -> Quantities:
    """Return what computes each quantity."""
    partition = Partition.from_labels(torch.tensor(inputs_of("designs")["clusters"]))
    n, epoch = partition.num_nodes, EpochClusters(partition, 2)
    designs: dict[str, BatchDesign] = {
        "clusters": Clusters(partition, 2),
        "nodes": UniformNodes(n, 3),
        "epoch": epoch,
        "epoch-after": epoch.after(1, 3),
        "epoch-last": epoch.after(1, 3).after(0, 2),
    }
    found: dict[str, Callable[[], Any]] = {f"design/{name}": partial(_rows, design) for name, design in designs.items()}
    batches = [torch.tensor(nodes) for nodes in inputs_of("designs")["list"]]
    listed = BatchDesign.from_loader(batches, num_nodes=n, nodes=lambda nodes: nodes)
    found["design/list"] = partial(_rows, listed)
    fused = [partition.assignment[batch.nodes] for batch, _ in FusedClusters(partition, 2).enumerate()]
    found["design/fused"] = lambda: sorted(clusters.unique().numel() for clusters in fused)
    found["far-apart/halo"] = _far_apart
    found["design/inclusion"] = lambda: [float(item.inclusion_probabilities()[0]) for item in designs.values()]
    for key, given in inputs()["graphs"].items():
        graph = graph_of(key)
        for kind in _KINDS:
            found[f"{key}/{kind}"] = partial(_operator, graph, kind)
        for place, batch in enumerate(given["batches"]):
            found[f"{key}/batch-{place}"] = partial(_neighbourhood, graph, torch.tensor(batch))
    return found


def _far_apart() -> torch.Tensor:
    """Return a halo in a graph with many more nodes than edges."""
    given = inputs_of("designs")["far-apart"]
    n = given["nodes"]
    graph = Graph(
        edge_index=torch.tensor(given["edges"]).T,
        x=torch.zeros(n, 1, dtype=torch.float64),
        y=torch.zeros(n, dtype=torch.int64),
        train_mask=torch.ones(n, dtype=torch.bool),
    )
    return graph.neighbourhood(torch.tensor(given["batch"]))


def _rows(design: BatchDesign) -> list[list[float]]:
    """Return, sorted, one row a batch: its probability, and every node's inclusion probability, 0 outside."""
    n, rows = design.inclusion_probabilities().numel(), []
    for batch, probability in design.enumerate():
        inclusion = torch.zeros(n, dtype=torch.float64)
        inclusion[batch.nodes] = batch.inclusion
        rows.append([probability, *inclusion.tolist()])
    assert len(rows) == design.support_size
    return sorted(rows)


def _operator(graph: Graph, kind: str) -> dict[str, Any]:
    block = graph.operator(kind)
    x = graph.x.clone().requires_grad_()
    with torch.enable_grad():
        product = spmm(block, x)
        (transposed,) = torch.autograd.grad(product, x, graph.x)
    return {
        "dense": block.csr.to_dense(),
        "transposed": block.csr_t.to_dense().T,
        "in-degree": block.in_degree,
        "product": product,
        "transposed-product": transposed,
    }


def _neighbourhood(graph: Graph, batch: torch.Tensor) -> dict[str, Any]:
    halo = graph.neighbourhood(batch)
    local, alone = LocalSet(torch.cat([batch, halo]), batch.numel()), LocalSet(batch, batch.numel())
    return {
        "halo": halo,
        "degree-ratio": graph.local_degree_ratio(local),
        "messages": [*graph.messages(batch), graph.inner_messages(batch)],
        "rows": graph.block("gcn", batch, local).csr.to_dense(),
        "columns": graph.transposed_block("gcn", batch, local).to_dense(),
        "induced-gcn": graph.induced_block("gcn", alone).csr.to_dense(),
        "induced-mean": graph.induced_block("mean", alone).csr.to_dense(),
    }
