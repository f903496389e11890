"""The parts of tools/device_check.py: what is measured on a device, and what must hold there.

A part is a function of its settings that yields rows as they are known. Graphs are generated; nothing is downloaded.
"""

from __future__ import annotations

import gc
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

import lmc_verify as lv
from benchmarks.common import SEED, DeviceTimer
from benchmarks.pyg import csr_gradient, edge_index_gradient
from lmc_verify.errors import LmcVerifyError
from lmc_verify.estimators import ESTIMATORS, batch_distribution
from lmc_verify.seeds import generator
from lmc_verify.training import RunSpecification, TrainingRuns

ROOT = Path(__file__).resolve().parent.parent

AGREEMENT = 1e-10
"""Largest distance of a float64 gradient from the CPU's, in gradient norms: sums have another order there."""

SINGLE = 1e-3
"""The same for float32 from float64, which says that neither is wrong altogether."""

LARGE_FACTOR = 10
HALF, FEW = 40, 2
"""Clusters per batch, of 80."""

Work = Callable[[], object]


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        what: was measured.
        value: the number, or words where there is none.
        unit: of the value.
        ratio: the value over that of the part's reference, or None.
        memory: device memory at the peak beyond what was in use before, MiB; None on a CPU.
        holds: whether it is as it must be; None where nothing is asked of it.
    """

    what: str
    value: float | str
    unit: str = ""
    ratio: float | None = None
    memory: int | None = None
    holds: bool | None = None


class SkippedPart(Exception):
    """A part that cannot run here; the message says why."""


@dataclass(frozen=True)
class Setting:
    """Where and how large.

    Attributes:
        device: such as ``"cuda"``.
        quick: graphs of hundreds of nodes and one round, to see that everything runs.
    """

    device: str
    quick: bool

    @property
    def rounds(self) -> int:
        """How often everything takes its turn."""
        return 1 if self.quick else 5

    @cached_property
    def graph(self) -> tuple[lv.Graph, lv.Partition]:
        """The arxiv-sized graph, arranged by 80 clusters; a small one where it is quick."""
        graph = lv.load_graph("dcsbm", num_nodes=800, num_edges=4000) if self.quick else lv.load_graph("arxiv-like")
        return lv.Partition.metis(graph, 80, seed=SEED).arrange(graph)

    def problem(self, graph: lv.Graph) -> lv.Problem:
        """Return a GCN of 3 layers on the device, in float32."""
        width = 16 if self.quick else 256
        model = lv.GCN(graph.num_features, width, graph.num_outputs, num_layers=3, seed=SEED)
        return lv.Problem(graph, model).to(self.device)

    # ------------------------------------------------------------------ clocks and memory

    def measured(self, works: dict[str, Work], reference: str, rounds: int | None = None) -> Iterator[Row]:
        """Time functions in turns; what runs out of device memory is a row that says so."""
        timer, peaks, times = DeviceTimer(self.device), dict[str, int | None](), dict[str, list[float]]()
        for turn in range(1 + (rounds or self.rounds)):
            for name, work in list(works.items()):
                try:
                    if turn == 0:
                        peaks[name], times[name] = self._peak(work), []
                        continue
                    start = timer()
                    work()
                    times[name].append(timer() - start)
                except torch.cuda.OutOfMemoryError:
                    yield Row(name, "out of device memory")
                    del works[name], work
                    times.pop(name, None)
                    self._free()
        medians = {name: statistics.median(values) for name, values in times.items()}
        for name, value in medians.items():
            ratio = value / medians[reference] if reference in medians else None
            yield Row(name, value, "s", ratio, peaks[name])

    def _peak(self, work: Work) -> int | None:
        """Call a function once, which warms it up, and return what it needs of the device's memory, in MiB."""
        if self.device == "cpu":
            work()
            return None
        self._free()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) // 2**20

    def _free(self) -> None:
        gc.collect()
        if self.device != "cpu":
            torch.cuda.empty_cache()


def distance(got: lv.Gradient, want: lv.Gradient) -> float:
    """Return the distance of two gradients in units of the wanted one's norm."""
    squares = sum(
        float((got[name].cpu().double() - value.cpu().double()).square().sum()) for name, value in want.items()
    )
    norm = sum(float(value.double().square().sum()) for value in want.values())
    return float((squares / norm) ** 0.5) if norm else float(squares**0.5)


# ---------------------------------------------------------------------- what must hold


def tests(setting: Setting) -> Iterator[Row]:
    """The tests that need a GPU."""
    if setting.device == "cpu":
        raise SkippedPart("they need a GPU")
    files = [str(file) for file in sorted((ROOT / "properties").rglob("test_*.py")) if "mark.gpu" in file.read_text()]
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider", *files]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    counts = {word: int(count) for count, word in re.findall(r"(\d+) (passed|failed|skipped|errors?)", found.stdout)}
    if not counts:
        raise RuntimeError(f"pytest said nothing about tests: {(found.stdout + found.stderr)[-500:]}")
    good = found.returncode == 0 and counts.get("passed", 0) > 0 and not counts.get("skipped")
    yield Row("tests that passed", counts.get("passed", 0), "tests", holds=good)
    for line in re.findall(r"^(?:FAILED|ERROR) (.*)$", found.stdout, re.MULTILINE):
        yield Row(line[:120], "failed", holds=False)


def agreement(setting: Setting) -> Iterator[Row]:
    """Gradients on the device and on the CPU, from the same weights and the same batches."""
    graph = lv.load_graph(
        "directed", num_nodes=60 if setting.quick else 2000, num_edges=240 if setting.quick else 12_000
    )
    for name in ("gcn", "sage", "gat"):
        model = lv.make_model(name, graph.num_features, 16, graph.num_outputs, num_layers=3, dtype=torch.float64)
        problem = lv.Problem(graph.double(), model.eval())
        want = lv.exact_pass(problem).gradient
        for dtype, limit in ((torch.float64, AGREEMENT), (torch.float32, SINGLE)):
            off = distance(lv.exact_pass(problem.to(setting.device, dtype)).gradient, want)
            kind = str(dtype).removeprefix("torch.")
            yield Row(f"exact gradient, {name}, {kind}", off, "of the norm", holds=off <= limit)
    problem = lv.Problem(
        graph.double(), lv.GCN(graph.num_features, 8, graph.num_outputs, 2, seed=SEED, dtype=torch.float64).eval()
    )
    away, design = problem.to(setting.device), lv.Clusters(lv.Partition.metis(graph, 10, seed=SEED), 1)
    worst = {name: estimates_apart(name, problem, away, design) for name in ESTIMATORS}
    name = max(worst, key=lambda name: worst[name])
    yield Row(
        f"estimates of {len(worst)} estimators; worst: {name}",
        worst[name],
        "of the norm",
        holds=worst[name] <= AGREEMENT,
    )


def estimates_apart(name: str, here: lv.Problem, there: lv.Problem, design: lv.BatchDesign) -> float:
    """Return the largest distance of an estimator's gradients on two devices, over a few steps."""
    estimator, rng = lv.make_estimator(name), generator(SEED, "agreement", name)
    state, other = estimator.init(here), estimator.init(there)
    law, worst = batch_distribution(estimator, here, state, design), 0.0
    for _ in range(3):
        batch = law.draw(rng)
        one, two = estimator.estimate(here, state, batch), estimator.estimate(there, other, batch)
        worst = max(worst, distance(two.gradient, one.gradient))
        state.apply(one.writes)
        other.apply(two.writes)
    return worst


# ---------------------------------------------------------------------- gradients and epochs


def epoch(
    problem: lv.Problem, partition: lv.Partition, estimator: lv.Estimator, per_batch: int, state: Any = None
) -> Work:
    """Return a function that visits every cluster once and writes the histories."""
    state, rng = state or estimator.init(problem), generator(SEED, "epoch")
    design = lv.EpochClusters(partition, per_batch)

    def run() -> None:
        for batch in design.epoch(rng):
            state.apply(estimator.estimate(problem, state, batch).writes)

    return run


REFERENCE = "PyG, full batch on CSR"


def against_pyg(setting: Setting, graph: lv.Graph, partition: lv.Partition, counts: tuple[int, ...]) -> Iterator[Row]:
    """Yield the exact gradient and epochs beside PyG's full-batch gradient."""
    yield Row("graph", graph.num_nodes, "nodes")
    problem = setting.problem(graph)
    csr = csr_gradient(problem)
    off = distance(lv.exact_gradient(problem)[1], csr())
    yield Row("exact gradient from PyG's, float32", off, "of the norm", holds=off <= SINGLE)
    works: dict[str, Work] = {
        REFERENCE: csr,
        "PyG, full batch on edge_index": edge_index_gradient(problem),
        "exact gradient": lambda: lv.exact_gradient(problem),
    }
    for count in counts:
        for estimator in (lv.LMC(), lv.LMC(beta=0.4), lv.GAS(), lv.ClusterGCN()):
            blends = " that blends" if getattr(estimator, "beta", 0) else ""
            steps = partition.num_parts // count
            works[f"{estimator.name}{blends} epoch, {steps} steps"] = epoch(problem, partition, estimator, count)
    yield from setting.measured(works, REFERENCE)


def arxiv(setting: Setting) -> Iterator[Row]:
    """The graph of ogbn-arxiv's size, GCN 3 x 256, float32: one gradient, and epochs of 80 clusters."""
    yield from against_pyg(setting, *setting.graph, (HALF, FEW))


def arxiv_times_ten(setting: Setting) -> Iterator[Row]:
    """Ten copies of that graph side by side."""
    graph, partition = setting.graph
    copies = 2 if setting.quick else LARGE_FACTOR
    shifts = (torch.arange(copies) * graph.num_nodes).repeat_interleave(graph.num_edges)
    large = lv.Graph(
        graph.edge_index.repeat(1, copies) + shifts,
        graph.x.repeat(copies, 1),
        graph.y.repeat(copies),
        graph.train_mask.repeat(copies),
    )
    parts = torch.cat([partition.assignment + place * partition.num_parts for place in range(copies)])
    yield from against_pyg(setting, large, lv.Partition(parts, "copies"), (HALF * copies,))


# ---------------------------------------------------------------------- what a device has of its own


def histories(setting: Setting) -> Iterator[Row]:
    """Epochs of 40 steps with histories on the device, in page-locked host memory and in mapped files."""
    graph, partition = setting.graph
    problem = setting.problem(graph)
    batch = lv.Clusters(partition, FEW).draw(generator(SEED, "histories"))
    for estimator in (lv.GAS(), lv.LMC()):
        state = lv.History.from_exact(problem, lv.exact_pass(problem))
        with tempfile.TemporaryDirectory() as folder:
            states = {"device": state.to(setting.device), "pinned": state.pinned(), "mapped": state.mapped(folder)}
            del state
            want = estimator.estimate(problem, states["device"], batch).gradient
            for place in ("pinned", "mapped"):
                off = distance(estimator.estimate(problem, states[place], batch).gradient, want)
                yield Row(f"{estimator.name}, {place}: from the device's", off, "of the norm", holds=off <= SINGLE)
            works = {
                f"{estimator.name} epoch, {place}": epoch(problem, partition, estimator, FEW, own)
                for place, own in states.items()
            }
            yield from setting.measured(works, f"{estimator.name} epoch, device", min(setting.rounds, 3))


def together(setting: Setting) -> Iterator[Row]:
    """A step of 64 runs that advance together over one of each alone: GCN 2 x 16, float64, batches of 2 of 8."""
    runs = 4 if setting.quick else 64
    for nodes in (32,) if setting.quick else (128, 2048, 8192):
        graph = lv.load_graph("dcsbm", seed=SEED, num_nodes=nodes, num_edges=5 * nodes, num_features=16).double()
        model = lv.GCN(graph.num_features, 16, graph.num_outputs, num_layers=2, seed=SEED, dtype=torch.float64)
        problem, estimator = lv.Problem(graph, model).to(setting.device), lv.LMC(beta=0.4)
        design = lv.Clusters(lv.Partition(torch.arange(nodes) * 8 // nodes, "blocks"), 2)

        def seed(number: int, nodes: int = nodes) -> np.random.Generator:
            return generator(SEED, "together", nodes, number)

        many = TrainingRuns(problem, [RunSpecification(estimator, 0.1, seed(k)) for k in range(runs)], design)
        alone = lv.TrainingRun(problem, estimator, design, step_size=0.1, generator=seed(0))
        many.step()
        alone.step()
        off = distance(
            {name: value[0] for name, value in many.parameters.items()},
            {name: value.detach() for name, value in alone.problem.model.named_parameters()},
        )
        yield Row(f"{nodes} nodes: together from alone", off, "of the norm", holds=off <= AGREEMENT)
        names = f"{nodes} nodes: {runs} steps alone", f"{nodes} nodes: a step of {runs} runs together"
        works = (lambda: [alone.step() for _ in range(runs)], lambda: many.step())  # noqa: B023  (called at once)
        yield from setting.measured(dict(zip(names, works, strict=True)), names[0], min(setting.rounds, 3))


def theorem_3(setting: Setting) -> Iterator[Row]:
    """Theorem 3's rate on Cora, all layers trained, with its full-batch control."""
    root = os.environ.get("LMC_VERIFY_DATA_ROOT")
    if root is None and not setting.quick:
        raise SkippedPart("raw files of Cora are needed; set LMC_VERIFY_DATA_ROOT to their folder")
    try:
        graph = lv.load_graph("karate" if setting.quick else "cora", data_root=root).double()
    except LmcVerifyError as error:
        raise SkippedPart(f"Cora cannot be loaded: {error}") from error
    model = lv.GCN(
        graph.num_features,
        4 if setting.quick else 16,
        graph.num_outputs,
        2,
        seed=SEED,
        dtype=torch.float64,
        activation="tanh",
    )
    problem = lv.Problem(graph, model.eval()).to(setting.device)
    lengths = (2, 4, 8) if setting.quick else (16, 48, 144)
    verdict = lv.check_claim(
        "theorem-3/rate",
        problem,
        lv.Clusters(lv.Partition.metis(graph, 10, seed=SEED), 5),
        lv.LMC(beta=0.4),
        histories="zero",
        sampling=lv.SamplingSettings(alpha=0.45 if setting.quick else 0.1),
        training=lv.TrainingSettings(step_size=5.0, lengths=lengths),
    )
    # A short range may not decide; that it refutes what full-batch descent keeps would be the device's fault.
    yield Row(f"N to {lengths[-1]}: {verdict.summary}", verdict.outcome.value, holds=verdict.outcome.value != "REFUTED")


PARTS: dict[str, Callable[[Setting], Iterator[Row]]] = {
    "tests": tests,
    "agreement": agreement,
    "arxiv": arxiv,
    "arxiv-times-ten": arxiv_times_ten,
    "histories": histories,
    "together": together,
    "theorem-3": theorem_3,
}
"""By name, as `tools/device_check.py` has them."""
