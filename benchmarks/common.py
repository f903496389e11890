"""What the benchmarks share: their parameters, problems with fixed seeds, and clocks that wait for the device.

The problem is a GCN of 3 layers, 64 wide, on real digits (1,797 nodes) and on a generated graph of 20,000 nodes; a
step is one batch of 2 of 40 METIS clusters. Inputs are built once a process, through lmc_verify only. Every benchmark
uses torch's own number of threads; `track_threads` records it next to the results.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable

import torch

import lmc_verify as lv
from lmc_verify.seeds import generator

SEED = 0
NUM_LAYERS, HIDDEN = 3, 64
NUM_CLUSTERS, PER_BATCH = 40, 2

DATASETS = ("digits", "dcsbm-20k")
DEVICES = ("cpu", "cuda")
DTYPES = ("float32", "float64")
ESTIMATORS = {"backward-sgd": lv.BackwardSGD(), "lmc": lv.LMC(beta=0.4, score="linear"), "gas": lv.GAS()}

_GENERATED = {"dcsbm-20k": ("dcsbm", {"num_nodes": 20_000, "num_edges": 100_000, "num_features": 64})}


@functools.cache
def load_graph(dataset: str) -> lv.Graph:
    """Return the graph of a benchmark's data set, or of any other name that `lmc_verify.load_graph` knows."""
    name, options = _GENERATED.get(dataset, (dataset, {}))
    return lv.load_graph(name, seed=SEED, **options)


def metis(graph: lv.Graph) -> lv.Partition:
    """Return 40 METIS clusters (fewer on graphs of less than 160 nodes, where clusters would be empty)."""
    return lv.Partition.metis(graph, min(NUM_CLUSTERS, graph.num_nodes // 4), seed=SEED)


@functools.cache
def make_partition(dataset: str) -> lv.Partition:
    """Return the clusters of a data set."""
    return metis(load_graph(dataset))


@functools.cache
def make_batch(dataset: str) -> lv.Batch:
    """Return the one batch that every step benchmark takes."""
    return lv.Clusters(make_partition(dataset), PER_BATCH).draw(generator(SEED, "batch"))


@functools.cache
def make_problem(dataset: str, device: str, dtype: str) -> lv.Problem:
    """Return the problem on a device, with the same initial weights everywhere (up to rounding to the dtype)."""
    graph = load_graph(dataset)
    model = lv.GCN(graph.num_features, HIDDEN, graph.num_outputs, num_layers=NUM_LAYERS, seed=SEED)
    return lv.Problem(graph, model).to(device, getattr(torch, dtype))


class Benchmark:
    """A benchmark by data set, device and dtype. Its methods end with `self.wait()`, so that the device is done."""

    params: tuple[tuple[str, ...], ...] = (DATASETS, DEVICES, DTYPES)
    param_names: tuple[str, ...] = ("dataset", "device", "dtype")

    def setup(self, dataset: str, device: str, dtype: str) -> None:
        """Build the problem; without a CUDA device asv is told to skip the parameter."""
        if device == "cuda" and not torch.cuda.is_available():
            # asv skips a parameter whose setup raises NotImplementedError; it knows no other sign.
            raise NotImplementedError("torch finds no CUDA device")
        self.device = device
        self.problem = make_problem(dataset, device, dtype)
        self.batch = make_batch(dataset)

    def wait(self) -> None:
        """Wait until the device has finished its work."""
        if self.device == "cuda":
            torch.cuda.synchronize()

    def step_of(self, estimator: str) -> Callable[[], None]:
        """Return the step of an estimator: estimate from the batch and apply the writes to its histories."""
        chosen = ESTIMATORS[estimator]
        state = chosen.init(self.problem)

        def step() -> None:
            state.apply(chosen.estimate(self.problem, state, self.batch).writes)

        return step

    def median_ratio(self, work: Callable[[], object], reference: Callable[[], object], repeats: int = 7) -> float:
        """Return the median time of `work` over that of `reference`; they take turns, under the same load."""
        for warm_up in (work, reference):
            warm_up()
        taken: tuple[list[float], list[float]] = ([], [])
        for _ in range(repeats):
            for function, times in zip((work, reference), taken, strict=True):
                self.wait()
                start = time.perf_counter()
                function()
                self.wait()
                times.append(time.perf_counter() - start)
        return statistics.median(taken[0]) / statistics.median(taken[1])


def track_threads() -> int:
    """Threads that torch uses for one operation; times of different numbers must not be compared."""
    return torch.get_num_threads()


track_threads.unit = "threads"  # type: ignore[attr-defined]  # asv reads the unit off the function, which has no such attribute for mypy
