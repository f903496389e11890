"""Time of what every step needs before it computes: the halo, the block of the operator; and, once, METIS."""

from __future__ import annotations

import torch

from lmc_verify.graph import LocalSet

from .common import DATASETS, Benchmark, load_graph, metis


class Blocks(Benchmark):
    def setup(self, dataset: str, device: str, dtype: str) -> None:
        super().setup(dataset, device, dtype)
        self.graph = self.problem.graph
        self.nodes = self.batch.nodes.to(self.graph.device)
        self.near = torch.cat([self.nodes, self.graph.neighbourhood(self.nodes)])
        self.time_block()  # warm-up: builds the whole operator, which the graph keeps

    def time_halo(self, *_: str) -> None:
        """The in- and out-neighbours of the batch."""
        self.graph.neighbourhood(self.nodes)
        self.wait()

    def time_block(self, *_: str) -> None:
        """Cut batch rows x (batch and halo) columns out of the GCN operator."""
        self.graph.block("gcn", self.nodes, LocalSet(self.near, self.nodes.numel()))
        self.wait()


class Metis:
    params = DATASETS
    param_names = ("dataset",)

    def setup(self, dataset: str) -> None:
        self.graph = load_graph(dataset)
        self.time_metis(dataset)  # warm-up: imports pymetis

    def time_metis(self, dataset: str) -> None:
        """Partition the whole graph into 40 clusters (on the CPU, whatever the device)."""
        metis(self.graph)
