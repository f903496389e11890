"""A path of four nodes with one batch for each: small enough to list every sample."""

from __future__ import annotations

from typing import Any

import torch

from common.helpers import path_graph
from lmc_verify import (
    GCN,
    Problem,
    UniformNodes,
)

SMALL = UniformNodes(4, 1)


def tiny(layers: int = 2, **changes: Any) -> Problem:
    graph = path_graph(4, **({"y": torch.tensor([0, 1, 0, 1])} | changes))
    return Problem(graph, GCN(3, 3, 2, layers, seed=1, dtype=torch.float64).eval())
