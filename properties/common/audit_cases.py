"""Small graphs, models, loaders and training steps for the tests of audits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch_geometric.data import Data
from torch_geometric.nn import GCNConv

from lmc_verify.seeds import torch_generator

CLASSES = 3


def random_graph(nodes: int = 12, *, seed: int = 0, width: int = 4, density: float = 0.3) -> Data:
    """Return an undirected random graph with a ring in it, float64 features, and two thirds of its nodes labelled."""
    source = torch_generator(seed, "graph")
    ring = torch.arange(nodes)
    edges = torch.rand(nodes, nodes, generator=source) < density
    edges[ring, (ring + 1) % nodes] = True
    edges = (edges | edges.T) & ~torch.eye(nodes, dtype=torch.bool)
    return Data(
        x=torch.randn(nodes, width, generator=source, dtype=torch.float64),
        edge_index=edges.nonzero().T.contiguous(),
        y=torch.randint(CLASSES, (nodes,), generator=source),
        train_mask=ring % 3 != 2,
    )


class Net(nn.Module):
    """Two graph convolutions (or others), with a ReLU between them.

    Args:
        conv: makes a convolution from its widths.
        width: of the features.
        hidden: width of the middle.
        classes: width of the output.
        seed: of the parameters.
        norm: a module behind the first convolution.
        dropout: its probability, in training mode.
    """

    def __init__(
        self,
        conv: Callable[[int, int], nn.Module] = GCNConv,
        *,
        width: int = 4,
        hidden: int = 5,
        classes: int = CLASSES,
        seed: int = 0,
        norm: nn.Module | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.dropout = dropout
        self.first, self.norm, self.second = conv(width, hidden), norm, conv(hidden, classes)
        source = torch_generator(seed, "parameters")
        with torch.no_grad():
            for value in self.parameters():
                value.copy_(torch.randn(value.shape, generator=source) / max(value.shape[-1], 1) ** 0.5)
        self.double()

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        hidden = self.first(x, edge_index)
        hidden = hidden if self.norm is None else self.norm(hidden)
        hidden = F.dropout(hidden.relu(), self.dropout, self.training)
        out: Tensor = self.second(hidden, edge_index)
        return out


def make_net(*args: Any, **kwargs: Any) -> Net:
    """Return a `Net`, made without a trace in the global generators."""
    with torch.random.fork_rng([]):
        return Net(*args, **kwargs)


def parts(nodes: int, size: int) -> list[Tensor]:
    """Return batches of node ids, `size` each, in turn."""
    return [torch.arange(start, min(start + size, nodes)) for start in range(0, nodes, size)]


def backward_sgd(batches: int) -> Callable[[nn.Module, Tensor, Data], None]:
    """Return a step that is unbiased for a partition: the whole graph's loss on the batch's nodes, times `batches`."""

    def step(model: nn.Module, batch: Tensor, data: Data) -> None:
        model.eval()
        mask = torch.zeros(int(data.num_nodes or 0), dtype=torch.bool)
        mask[batch] = True
        mask &= data.train_mask
        out = model(data.x, data.edge_index)
        losses = F.cross_entropy(out, data.y, reduction="none")
        (batches * losses[mask].sum() / data.train_mask.sum()).backward()

    return step


def cluster_step(model: nn.Module, batch: Data) -> None:
    """Cluster-GCN: the mean loss over the labelled nodes of a subgraph, which is biased."""
    out = model(batch.x, batch.edge_index)
    F.cross_entropy(out[batch.train_mask], batch.y[batch.train_mask], reduction="sum").div(4.0).backward()


def subgraphs(data: Data, size: int) -> list[Data]:
    """Return induced subgraphs of nodes in turn, with ``n_id``."""
    out: list[Data] = []
    for nodes in parts(int(data.num_nodes or 0), size):
        batch: Any = data.subgraph(nodes)
        batch.n_id = nodes
        out.append(batch)
    return out


class FreshPairs:
    """Passes of node ids in random order, `size` each, from torch's global generator."""

    def __init__(self, nodes: int, size: int) -> None:
        self.nodes, self.size = nodes, size

    def __iter__(self) -> Iterator[Tensor]:
        yield from torch.randperm(self.nodes).split(self.size)
