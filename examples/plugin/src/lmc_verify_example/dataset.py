"""A data set: a function from a seed and options to a graph."""

from __future__ import annotations

import torch
from torch_geometric.data import Data

__all__ = ["two_cliques"]


def two_cliques(*, seed: int, size: int = 8) -> Data:
    """Two cliques that one edge joins; the classes are the cliques."""
    within = torch.ones(size, size, dtype=torch.bool).fill_diagonal_(False).nonzero().T
    bridge = torch.tensor([[0, size], [size, 0]])
    features = torch.randn(2 * size, 4, generator=torch.Generator().manual_seed(seed))
    classes = torch.arange(2).repeat_interleave(size)
    return Data(x=features + classes[:, None], edge_index=torch.cat([within, within + size, bridge], dim=1), y=classes)
