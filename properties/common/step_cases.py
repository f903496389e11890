"""Small graphs and plain PyTorch models for tests of a user's training step, without a draw from global generators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch_geometric.data import Data
from torch_geometric.nn import GCNConv
from torch_geometric.utils import k_hop_subgraph

from lmc_verify.steps import forked_generators

_Built = TypeVar("_Built")

NODES, WIDTH, CLASSES = 8, 3, 2


def built(make: Callable[[], _Built], seed: int = 0) -> _Built:
    """Return what a function makes with global generators of that seed, which are left as they were."""
    with forked_generators(seed):
        return make()


def ring(dtype: torch.dtype = torch.float32) -> Data:
    """Return a ring of nodes with two chords, features and labels."""
    source = torch.arange(NODES)
    edges = torch.stack([source, (source + 1) % NODES])
    edges = torch.cat([edges, torch.tensor([[0, 2], [4, 7]])], dim=1)
    x = torch.randn(NODES, WIDTH, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return Data(
        x=x.to(dtype),
        edge_index=torch.cat([edges, edges.flip(0)], dim=1),
        y=source % CLASSES,
        train_mask=torch.arange(NODES) < NODES - 2,
    )


class GCN(nn.Module):
    """Two graph convolutions with batch normalisation and dropout, a counter, and a history as a plain attribute."""

    def __init__(self, dropout: float = 0.5) -> None:
        super().__init__()
        self.convs = nn.ModuleList([GCNConv(WIDTH, 4), GCNConv(4, CLASSES)])
        self.norm = nn.BatchNorm1d(4)
        self.dropout = dropout
        self.calls = 0
        self.emb = torch.zeros(NODES, 4)

    def forward(self, x: Tensor, edge_index: Tensor) -> Any:
        self.calls += 1
        h = self.norm(self.convs[0](x, edge_index)).relu()
        if h.shape == self.emb.shape:
            self.emb.copy_(h.detach())
        return self.convs[1](F.dropout(h, self.dropout, self.training), edge_index)


def training_loss(model: nn.Module, data: Data) -> Tensor:
    """Return the mean cross entropy of a homogeneous graph's training nodes, written out."""
    return F.cross_entropy(model(data.x, data.edge_index)[data.train_mask], data.y[data.train_mask])


def few_hops(hops: int = 2) -> tuple[Data, list[Data]]:
    """Return a ring with its labelled nodes, and clusters of unequal sizes with some hops around each."""
    count = 40
    index = torch.arange(count)
    pair = torch.stack([index, (index + 1) % count])
    data = Data(
        x=torch.eye(count)[:, :8] + torch.sin(torch.arange(count * 8.0)).reshape(count, 8),
        y=index % 4,
        edge_index=torch.cat([pair, pair.flip(0)], 1),
        train_mask=index % 3 > 0,
    )
    out = []
    for cluster in index.split([5, 11, 24]):
        nodes, _, rows, _ = k_hop_subgraph(cluster, hops, data.edge_index, num_nodes=count)
        batch: Any = data.subgraph(nodes)
        batch.n_id, batch.mapping = nodes, rows
        out.append(batch)
    return data, out
