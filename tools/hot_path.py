"""Compare the hot path with plain PyTorch Geometric and with the machine's limits; print the tables of the docs.

Everything is measured in one run on one machine: what is compared takes turns, and medians are shown. Peak memory is
that of a process of its own, interpreter and libraries included. The reference is a full-batch gradient of PyG's
GCNConv on a `torch.sparse` CSR adjacency, nodes in the data's own order, with the same weights; no dropout, no norm.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from safetensors.torch import load_file, save_file

import lmc_verify as lv
from lmc_verify.graphs.sparse import piece_rows
from lmc_verify.seeds import generator

PARTS, FEW, HALF = 80, 2, 40
HIDDEN, LAYERS = 256, 3


@dataclass(frozen=True)
class Setting:
    """A graph in the data's own order, and the same one arranged by clusters."""

    plain: lv.Graph
    arranged: lv.Graph
    partition: lv.Partition

    @classmethod
    def of(cls, name: str) -> Setting:
        """Load the data set and partition it."""
        graph = lv.load_graph(name)
        return cls(graph, *lv.Partition.metis(graph, PARTS, seed=0).arrange(graph))

    def save(self, folder: Path) -> None:
        """Write both graphs, and the partition, for processes that measure their own memory."""
        for name, graph in (("plain", self.plain), ("arranged", self.arranged)):
            save_file({key: getattr(graph, key) for key in FIELDS}, folder / f"{name}.safetensors")
        self.partition.save(folder / "partition.safetensors")


FIELDS = ("edge_index", "x", "y", "train_mask")


Work = Callable[[], object]


def epoch(problem: lv.Problem, partition: lv.Partition, estimator: lv.Estimator, per_batch: int) -> Work:
    """Return a function that visits every cluster once, `per_batch` at a time, and writes the histories."""
    state, rng = estimator.init(problem), generator(0, "epoch")
    design = lv.EpochClusters(partition, per_batch)

    def run() -> None:
        for batch in design.epoch(rng):
            state.apply(estimator.estimate(problem, state, batch).writes)

    return run


def seconds(work: Work) -> float:
    """Return the time of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def take_turns(works: Mapping[str, Work], rounds: int) -> dict[str, float]:
    """Return the median time of each function; all of them are called in every round."""
    for work in works.values():
        work()
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            times[name].append(seconds(work))
    return {name: statistics.median(values) for name, values in times.items()}


# ------------------------------------------------------------------ ratios

REFERENCE = "PyG, full batch on CSR"
GRADIENTS = ("exact gradient", "exact gradient, nothing cached", "exact pass (every H and V)")
ESTIMATORS = {"lmc": lv.LMC(), "lmc that blends": lv.LMC(beta=0.4), "gas": lv.GAS(), "cluster-gcn": lv.ClusterGCN()}
EPOCHS = {f"{name} epoch, {PARTS // count} steps": (name, count) for count in (HALF, FEW) for name in ESTIMATORS}


def problem_on(graph: lv.Graph) -> lv.Problem:
    """Return the problem on a graph, with the same weights everywhere."""
    return lv.Problem(graph, lv.GCN(graph.num_features, HIDDEN, graph.num_outputs, num_layers=LAYERS, seed=0))


def prepare(name: str, graph: lv.Graph, partition: lv.Partition | None) -> Work:
    """Return one of the functions that are measured, on its graph: the plain one for PyG, else the arranged one."""
    if name == REFERENCE:
        from benchmarks.pyg import csr_gradient  # the others need no PyG, and its memory is not theirs

        return csr_gradient(problem_on(graph))
    if name in EPOCHS:
        estimator, count = EPOCHS[name]
        assert partition is not None
        return epoch(problem_on(graph), partition, ESTIMATORS[estimator], count)
    keeps = graph.replaced(cache_bytes=0) if "nothing cached" in name else graph
    problem = problem_on(keeps)
    return (lambda: lv.exact_pass(problem)) if "pass" in name else (lambda: lv.exact_gradient(problem))


def peak_memory_of(name: str, folder: Path) -> int:
    """Return the peak memory in MiB of a process that loads its graph and does one thing three times."""
    command = [sys.executable, __file__, "--memory", name, "--folder", str(folder)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def measure_memory(name: str, folder: Path) -> None:
    """Do one thing three times and print the peak memory of this process."""
    fields = load_file(folder / ("plain.safetensors" if name == REFERENCE else "arranged.safetensors"))
    partition = lv.Partition.load(folder / "partition.safetensors") if name in EPOCHS else None
    work = prepare(name, lv.Graph(**fields), partition)
    del fields
    for _ in range(3):
        work()
    print(peak_memory())


def peak_memory() -> int:
    """Return the peak memory of this process in MiB."""
    status = Path("/proc/self/status")
    if status.exists():  # resource's number would start with that of the process that started this one
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) // 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def print_ratios(setting: Setting, rounds: int) -> None:
    """Print time and memory of everything, next to PyG's."""
    names = (REFERENCE, *GRADIENTS, *EPOCHS)
    with tempfile.TemporaryDirectory() as folder:
        setting.save(Path(folder))
        peaks = {name: peak_memory_of(name, Path(folder)) for name in names}
    graphs = {name: setting.plain if name == REFERENCE else setting.arranged for name in names}
    times = take_turns({name: prepare(name, graphs[name], setting.partition) for name in names}, rounds)
    print("| | seconds | time / PyG's | peak memory, MiB | memory / PyG's |\n| :-- | --: | --: | --: | --: |")
    for name, value in times.items():
        print(
            f"| {name} | {value:.2f} | {value / times[REFERENCE]:.2f} "
            f"| {peaks[name]:,} | {peaks[name] / peaks[REFERENCE]:.2f} |"
        )
    for count in (HALF, FEW):
        steps = PARTS // count
        ratio = times[f"lmc epoch, {steps} steps"] / times[f"gas epoch, {steps} steps"]
        print(f"\nA step of LMC over one of GAS, {steps} steps per epoch: {ratio:.2f}", end="")
    print("\n")


# ------------------------------------------------------------------ floors


def print_floors(problem: lv.Problem, rounds: int) -> None:
    """Print the exact gradient's time next to what its dense and sparse products need at the least.

    The dense floor is what the products' operations take at the speed of one large product; the sparse floor is the
    time of the products alone, in pieces whose results nobody reads. What they must move at the least is shown, too.
    """
    graph, widths = problem.graph, problem.widths
    n, operator = graph.num_nodes, graph.operator("gcn").csr
    dense, weight = torch.ones(n, HIDDEN), torch.ones(HIDDEN, HIDDEN)
    out = torch.empty(n, HIDDEN)
    # Forward and backward on the narrower side of all layers but the first, which reads A X.
    sides = [min(a, b) for a, b in list(pairwise(widths))[1:]] * 2

    def sparse_products() -> None:
        for side in sides:
            for _, piece in operator.pieces(piece_rows(graph.device, side, n)):
                piece.product(narrow[side])

    narrow = {side: torch.ones(n, side) for side in sides}
    best = take_turns(
        {
            "product": lambda: torch.mm(dense, weight, out=out),
            "sparse": sparse_products,
            "copy": lambda: out.copy_(dense),
            "gradient": lambda: lv.exact_gradient(problem),
        },
        rounds,
    )
    rate = 2 * n * HIDDEN**2 / best["product"]
    bandwidth = 2 * dense.numel() * dense.element_size() / best["copy"]
    # Forward and dW at every layer, and V of the layer below at all but the first.
    flops = sum(2 * n * a * b * (2 + (k > 0)) for k, (a, b) in enumerate(pairwise(widths)))
    moved = sum(2 * n * side * 4 + operator.num_entries * 8 for side in sides)
    floors = {"dense products": flops / rate, "sparse products": best["sparse"]}
    print(f"Matrix product: {rate / 1e9:.0f} GFLOP/s. Copy: {bandwidth / 1e9:.1f} GB/s, read and written.\n")
    print("| | needed | lower bound, s |\n| :-- | --: | --: |")
    print(f"| dense products | {flops / 1e9:.0f} GFLOP | {floors['dense products']:.2f} |")
    print(f"| sparse products | {moved / 1e9:.1f} GB, {moved / bandwidth:.2f} s | {floors['sparse products']:.2f} |")
    total = sum(floors.values())
    print(f"| exact gradient, measured | | {best['gradient']:.2f} ({best['gradient'] / total:.2f} of the sum) |\n")
    print_profile(problem)


_KINDS = {
    "dense products": ("aten::mm", "aten::addmm", "aten::addmm_"),
    "sparse products": ("aten::_embedding_bag_forward_only", "aten::_embedding_bag"),
    "activations": ("aten::clamp_min", "aten::threshold_backward"),
    "copies": ("aten::copy_", "aten::index_select"),
}


def print_profile(problem: lv.Problem) -> None:
    """Print where the time of one exact gradient goes, by kind of operation."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as found:
        lv.exact_gradient(problem)
    own = {event.key: event.self_cpu_time_total for event in found.key_averages()}
    total = sum(own.values())
    shares = {kind: sum(own.get(name, 0.0) for name in names) / total for kind, names in _KINDS.items()}
    shares["loss, bias gradients and the rest"] = 1 - sum(shares.values())
    print("| where the time goes | share |\n| :-- | --: |")
    for kind, share in shares.items():
        print(f"| {kind} | {share:.0%} |")
    print()


# ------------------------------------------------------------------ primitives


def print_primitives(graph: lv.Graph, plain: lv.Graph, rounds: int) -> None:
    """Print the time of one sparse product by dtype, width and way."""
    print(
        "| dtype | width | torch.sparse CSR, data's order | in one piece | in pieces |\n| :-- | --: | --: | --: | --: |"
    )
    for dtype in (torch.float32, torch.float64):
        here, there = (where.to(dtype=dtype).operator("gcn").csr for where in (graph, plain))
        for width in (40, 128, 256):
            dense = torch.ones(graph.num_nodes, width, dtype=dtype)
            out = torch.empty_like(dense)
            times = take_turns(
                {
                    "csr": lambda there=there, dense=dense: there._torch @ dense,
                    "whole": lambda here=here, dense=dense: here.product(dense),
                    "pieces": lambda here=here, dense=dense, out=out: here.matmul(dense, out=out),
                },
                rounds,
            )
            row = " | ".join(f"{1000 * times[way]:.0f} ms" for way in ("csr", "whole", "pieces"))
            print(f"| {str(dtype).removeprefix('torch.')} | {width} | {row} |")
    print()


# ------------------------------------------------------------------ scaling


def print_scaling(setting: Setting, rounds: int) -> None:
    """Print how a step grows with the graph at a fixed batch, and what all pairs of 40 clusters cost."""
    graph, partition = setting.arranged, setting.partition
    n = graph.num_nodes
    double = lv.Graph(
        torch.cat([graph.edge_index, graph.edge_index + n], dim=1),
        torch.cat([graph.x, graph.x]),
        torch.cat([graph.y, graph.y]),
        torch.cat([graph.train_mask, graph.train_mask]),
    )
    print("| a step on the same batch, graph twice as large | time / before |\n| :-- | --: |")
    for estimator in (lv.LMC(), lv.LMC(beta=0.4), lv.GAS()):
        runs = {}
        for name, where in (("once", graph), ("twice", double)):
            problem = problem_on(where)
            state = estimator.init(problem)

            def run(problem: lv.Problem = problem, state: lv.History = state) -> None:
                for first in range(0, 20, FEW):  # new batches every time: no block is kept
                    nodes = torch.cat([partition.clusters[first + k] for k in range(FEW)])
                    estimate = estimator.estimate(problem, state, lv.Batch.of(nodes, 0.5))  # noqa: B023
                    state.apply(estimate.writes)

            runs[name] = run
        times = take_turns(runs, rounds)
        blends = " that blends" if getattr(estimator, "beta", 0) else ""
        print(f"| {estimator.name}{blends} | {times['twice'] / times['once']:.2f} |")
    ordered, forty = lv.Partition.metis(graph, 40, seed=0).arrange(graph)
    problem, reference = problem_on(ordered), lv.BackwardSGD()
    state, design = reference.init(problem), lv.Clusters(forty, 2)
    times = take_turns(
        {
            "pairs": lambda: sum(1 for _ in reference.gradients(problem, state, design)),
            "exact": lambda: lv.exact_gradient(problem),
        },
        rounds,
    )
    print(
        f"\nBackward SGD's gradients of all {design.support_size} pairs of 40 clusters: {times['pairs']:.2f} s, "
        f"{times['pairs'] / times['exact']:.1f} exact gradients.\n"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="arxiv-like", help="data set, see `lmc-verify list datasets`")
    parser.add_argument("--rounds", type=int, default=7, help="rounds in which everything takes its turn")
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory is not None:
        measure_memory(options.memory, options.folder)
        return
    setting = Setting.of(options.data)
    entries = setting.arranged.operator("gcn").csr.num_entries
    print(
        f"{setting.plain.name}: {setting.plain.num_nodes:,} nodes, {entries:,} entries of the operator, GCN {LAYERS} x "
        f"{HIDDEN}, float32, torch {torch.__version__}, {torch.get_num_threads()} threads, medians of {options.rounds} "
        "rounds\n"
    )
    print_ratios(setting, options.rounds)
    print_floors(problem_on(setting.arranged), options.rounds)
    print_primitives(setting.arranged, setting.plain, options.rounds)
    print_scaling(setting, options.rounds)


if __name__ == "__main__":
    main()
