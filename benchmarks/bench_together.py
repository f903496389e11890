"""Runs that advance together against one run at a time: how much faster a step of a run is, by size of the graph.

`lmc_verify.training.together.norms` chooses by what this measures. ``python -m benchmarks.bench_together`` prints the
table of docs/performance.md, ``python -m benchmarks.bench_together digits cora`` that of data sets.
"""

from __future__ import annotations

import functools
import statistics
import sys
from collections.abc import Sequence
from typing import Any

import torch

import lmc_verify as lv
from lmc_verify.seeds import generator
from lmc_verify.training import RunSpecification, TrainingRuns

from .common import SEED, Benchmark, DeviceTimer

ESTIMATORS: dict[str, dict[str, Any]] = {"lmc": {"beta": 0.4}, "gas": {}, "backward-sgd": {}}
NODES = (32, 128, 512, 2048)
RUNS = (4, 16, 64)
STEPS = 8
"""Steps of each side in a round."""


@functools.cache
def make_problem(source: int | str) -> lv.Problem:
    """Return a GCN of 2 layers, 16 wide, in float64 on a graph with ten messages a node, or on a data set."""
    if isinstance(source, str):
        graph = lv.load_graph(source).double()
    else:
        made = {"num_nodes": source, "num_edges": 5 * source, "num_features": 16}
        graph = lv.load_graph("dcsbm", seed=SEED, **made).double()
    model = lv.GCN(graph.num_features, 16, graph.num_outputs, num_layers=2, seed=SEED, dtype=torch.float64)
    return lv.Problem(graph, model)


class RunsTogether(Benchmark):
    """Steps of a run alone and of runs together, batches of 2 of 8 clusters."""

    params = (tuple(ESTIMATORS), NODES, RUNS)
    param_names = ("estimator", "nodes", "runs")
    unit = "ratio"

    def setup(self, estimator: str, nodes: int | str, runs: int) -> None:
        """Build both sides."""
        self.device, self.timer = "cpu", DeviceTimer("cpu")
        self.problem, self.size = make_problem(nodes), runs
        count = self.problem.graph.num_nodes
        chosen = lv.make_estimator(estimator, **ESTIMATORS[estimator])
        design = lv.Clusters(lv.Partition(torch.arange(count) * 8 // count, "blocks"), 2)
        self.alone = lv.TrainingRun(self.problem, chosen, design, step_size=0.1, generator=generator(SEED, "alone"))
        self.together = TrainingRuns(
            self.problem,
            [RunSpecification(chosen, 0.1, generator(SEED, "together", number)) for number in range(runs)],
            design,
        )

    def step_alone(self) -> None:
        """Take a few steps of one run."""
        for _ in range(STEPS):
            self.alone.step()

    def step_together(self) -> None:
        """Take as many steps of runs, or of all once where they are more."""
        for _ in range(self.rounds):
            self.together.step()

    @property
    def rounds(self) -> int:
        """Steps of all runs in a round."""
        return max(STEPS // self.size, 1)

    def track_together_over_alone(self, *_: Any) -> dict[str, Any]:
        """The time of a step of one of the runs together over that of a run alone."""
        found = self.ratios(self.step_together, self.step_alone)
        scale = STEPS / (self.rounds * self.size)
        return {**found, "samples": [ratio * scale for ratio in found["samples"]]}


def print_table(graphs: Sequence[int | str]) -> None:
    """Print how many times as fast runs are together, by estimator, graph and number of runs."""
    print("| estimator | nodes | nodes times widths |", " | ".join(f"{runs} runs" for runs in RUNS), "|")
    print("| :-- | --: | --: |", " | ".join("--:" for _ in RUNS), "|")
    for estimator in ESTIMATORS:
        for graph in graphs:
            problem = make_problem(graph)
            count = f"{problem.graph.num_nodes:,}" + (f" ({graph})" if isinstance(graph, str) else "")
            cells = []
            for runs in RUNS:
                benchmark = RunsTogether()
                benchmark.ratio_seconds = 2.0
                benchmark.setup(estimator, graph, runs)
                cells.append(f"{1 / statistics.median(benchmark.track_together_over_alone()['samples']):.1f}")
            elements = problem.graph.num_nodes * sum(problem.widths[1:])
            print(f"| {estimator} | {count} | {elements:,} |", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    print_table(sys.argv[1:] or (32, 128, 512, 1024, 2048, 4096))
