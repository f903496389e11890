"""Time of audits, and what they cost beside the steps and exact gradients that they need."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch_geometric.data import Data
from torch_geometric.nn import GCN

import lmc_verify as lv
from lmc_verify.audits import Audit

from .common import Skipped, load_graph, require_dataset

BATCHES = 20
DRAWS = 200


class Loop:
    """Subgraphs of random clusters, fixed or drawn anew in every pass, and a GCN of two layers.

    Args:
        data: the whole graph.
        fixed: whether every pass has the same batches.
    """

    def __init__(self, data: Data, fixed: bool) -> None:
        self.data, self.fixed = data, fixed
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.clusters = torch.randperm(data.num_nodes).chunk(BATCHES)
            self.model = GCN(data.num_features, 64, 2, int(data.y.max()) + 1)

    def batches(self) -> Iterator[Any]:
        clusters = self.clusters if self.fixed else torch.randperm(self.data.num_nodes).chunk(BATCHES)
        for nodes in clusters:
            batch = self.data.subgraph(nodes)
            batch.n_id = nodes
            yield batch

    def step(self, model: torch.nn.Module, batch: Any, data: Any) -> None:
        out, mask = model(batch.x, batch.edge_index), batch.train_mask
        loss = F.cross_entropy(out[mask], batch.y[mask], reduction="sum")
        (loss * BATCHES / data.train_mask.sum()).backward()

    def audit(self, causes: bool) -> Audit:
        return lv.audit(self.model, self.data, self.batches, self.step, draws=DRAWS, causes=causes)


def loop_on(dataset: str) -> Loop:
    """Return the loop on a data set: the same batches in every pass on Cora, drawn ones elsewhere."""
    require_dataset(dataset)
    graph = load_graph(dataset)
    data = Data(x=graph.x.float(), edge_index=graph.edge_index, y=graph.y, train_mask=graph.train_mask)
    return Loop(data, fixed=dataset == "cora")


class Audits:
    """Bars: 5 s on Cora, 60 s on the graph of 200,000 edges (two cores); at most 1.3 times what is needed."""

    params: Any = (("cora", "dcsbm-20k"), (True, False))
    param_names: tuple[str, ...] = ("dataset", "causes")
    timeout = 1200
    number = 1
    repeat = 1

    def setup(self, dataset: str, causes: bool) -> None:
        self.loop = loop_on(dataset)

    def time_audit(self, dataset: str, causes: bool) -> None:
        self.loop.audit(causes)

    def track_overhead(self, dataset: str, causes: bool) -> float:
        """Time in all over that of the steps, exact gradients and loader that were needed."""
        return self.loop.audit(causes).cost.overhead


if __name__ == "__main__":
    for name in ("cora", "dcsbm-20k"):
        try:
            loop = loop_on(name)
        except Skipped as reason:
            print(f"{name} is skipped: {reason}")
            continue
        for with_causes in (True, False):
            cost = str(loop.audit(with_causes)).splitlines()[-1].strip()
            print(f"{name}{'' if with_causes else ', causes=False'}: {cost}")
