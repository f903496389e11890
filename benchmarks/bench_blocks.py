"""Time of what every step needs before it computes (the halo, the block), and of what a graph needs once."""

from __future__ import annotations

import torch

import lmc_verify as lv
from lmc_verify.graphs.operators import LocalSet

from .common import DATASETS, DTYPES, Benchmark, DeviceTimer, load_graph, metis, num_clusters, require_dataset


class Blocks(Benchmark):
    def setup(self, dataset: str, device: str, dtype: str) -> None:
        super().setup(dataset, device, dtype)
        self.graph = self.problem.graph
        self.nodes = self.batch.nodes.to(self.graph.device)
        self.near = torch.cat([self.nodes, self.graph.neighbourhood(self.nodes)])
        self.warm_up_once(self.time_block)  # builds the whole operator, which the graph keeps

    def time_halo(self, *_: str) -> None:
        """The in- and out-neighbours of the batch."""
        self.graph.neighbourhood(self.nodes)
        self.wait()

    def time_block(self, *_: str) -> None:
        """Cut batch rows x (batch and halo) columns out of the GCN operator."""
        self.graph.block("gcn", self.nodes, LocalSet(self.near, self.nodes.numel()))
        self.wait()


class Operator(Benchmark):
    params = (DATASETS, ("cpu",), DTYPES)

    def setup(self, dataset: str, device: str, dtype: str) -> None:
        super().setup(dataset, device, dtype)
        self.graph: lv.Graph = self.problem.graph.replaced()  # a graph without operators, built again for every sample

    def time_operator(self, *_: str) -> None:
        """Normalise the whole graph's edges and store the GCN operator and its transpose by rows."""
        self.graph.operator("gcn").csr_t  # noqa: B018  # built when it is first read


class Metis:
    params = (DATASETS,)
    param_names = ("dataset",)
    timeout = 1200

    def setup(self, dataset: str) -> None:
        require_dataset(dataset)
        self.timer = DeviceTimer("cpu")
        self.graph = load_graph(dataset)
        self.parts = num_clusters(dataset)

    def time_metis(self, dataset: str) -> None:
        """Partition the whole graph (on the CPU, whatever the device)."""
        metis(dataset, self.parts)
