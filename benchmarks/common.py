"""What the benchmarks share: parameters, problems with fixed seeds, device clocks, and when a case is skipped.

The problem is a GCN of 3 layers, 64 wide (256 on the large graph), with the data set's own features; a step is one
batch of 2 of 40 METIS clusters (80 on the large graph). Inputs are built once per process, through the public interface
of lmc_verify only, so that the benchmarks of today also run against the package of another commit. Every benchmark uses
torch's own number of threads; `track_threads` records it next to the results.
"""

from __future__ import annotations

import functools
import gc
import math
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import lmc_verify as lv
from lmc_verify.datasets.registry import dataset_info
from lmc_verify.seeds import generator

SEED = 0
LARGE_VARIABLE = "LMC_VERIFY_BENCH_LARGE"
"""Environment variable that, set to 1, also runs the graph of ogbn-arxiv's size."""

CLOCK_VARIABLE = "LMC_VERIFY_BENCH_CLOCK"
"""Environment variable that, set to cpu, lets benchmarks on the CPU count processor time instead of time."""

LARGE = "dcsbm-169k"
DATASETS = ("digits", "dcsbm-20k", "cora", LARGE)
DEVICES = ("cpu", "cuda")
DTYPES = ("float32", "float64")
_BLEND = {"beta": 0.4, "score": "linear"}
ESTIMATORS: dict[str, dict[str, Any]] = {
    "full-batch": {},
    "backward-sgd": {},
    "lmc": _BLEND,
    "gas": {},
    "fm": {},
    "cluster-gcn": {},
    "lmc-forward-only": _BLEND,
    "lmc-backward-only": _BLEND,
}
"""Estimators by name with their settings; built where they are used, as another commit may not have them all."""

NUM_LAYERS = 3
PER_BATCH = 2

_GENERATED: dict[str, tuple[str, dict[str, int]]] = {
    "dcsbm-20k": ("dcsbm", {"num_nodes": 20_000, "num_edges": 100_000, "num_features": 64}),
    # The numbers of ogbn-arxiv: nodes, citations in both directions, features, classes.
    LARGE: ("dcsbm", {"num_nodes": 169_343, "num_edges": 1_166_243, "num_features": 128, "num_classes": 40}),
}
_HIDDEN = {LARGE: 256}
_CLUSTERS = {LARGE: 80}

MEMORY_NEEDED = {LARGE: 10_000_000_000}
"""Bytes of free memory that a data set needs in float32, plain PyTorch Geometric included; float64 needs twice that."""


# ------------------------------------------------------------------ what is skipped, and why


class Skipped(NotImplementedError):
    """A parameter that cannot or should not run here. NotImplementedError in `setup` is what asv takes for a skip."""


def require_device(device: str) -> None:
    """Skip a parameter whose device is not there."""
    if device == "cuda" and not torch.cuda.is_available():
        raise Skipped("torch finds no CUDA device")


def require_dataset(dataset: str, dtype: str = "float32") -> None:
    """Skip a large data set unless it was asked for and its problem fits in memory."""
    if dataset == LARGE and os.environ.get(LARGE_VARIABLE, "") != "1":
        raise Skipped(f"{dataset} is large: set {LARGE_VARIABLE}=1 to run it")
    needed = MEMORY_NEEDED.get(dataset, 0) * (2 if dtype == "float64" else 1)
    free = available_memory()
    if free is not None and free < needed:
        raise Skipped(f"{dataset} in {dtype} needs {needed / 1e9:.0f} GB of memory, {free / 1e9:.0f} GB are free")


def available_memory() -> int | None:
    """Return the bytes that can be allocated without swapping, or None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    return int(fields["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in fields else None


# ------------------------------------------------------------------ inputs, built once per process


@functools.cache
def load_graph(dataset: str) -> lv.Graph:
    """Return the graph of a benchmark's data set, or of any other name that `lmc_verify.load_graph` knows.

    Raises:
        Skipped: raw files are needed and are not where LMC_VERIFY_DATA_ROOT says.
    """
    name, options = _GENERATED.get(dataset, (dataset, {}))
    try:
        return lv.load_graph(name, seed=SEED, **options)
    except lv.InvalidInputError as error:
        if dataset_info(name).needs_files:
            raise Skipped(f"{dataset}: {error}") from error
        raise


def num_clusters(dataset: str) -> int:
    """Return the number of clusters; fewer on graphs of less than 160 nodes, where clusters would be empty."""
    return min(_CLUSTERS.get(dataset, 40), load_graph(dataset).num_nodes // 4)


def metis(dataset: str, parts: int) -> lv.Partition:
    """Partition a data set's graph with METIS."""
    return lv.Partition.metis(load_graph(dataset), parts, seed=SEED)


@functools.cache
def make_partition(dataset: str) -> lv.Partition:
    """Return the clusters of a data set."""
    return metis(dataset, num_clusters(dataset))


@functools.cache
def make_batch(dataset: str) -> lv.Batch:
    """Return the one batch that every step benchmark takes."""
    return lv.Clusters(make_partition(dataset), PER_BATCH).draw(generator(SEED, "batch"))


@functools.cache
def make_epoch(dataset: str, per_batch: int) -> tuple[lv.Batch, ...]:
    """Return the batches of one epoch: every cluster once, in random order, `per_batch` at a time."""
    return tuple(lv.EpochClusters(make_partition(dataset), per_batch).epoch(generator(SEED, "epoch")))


@functools.cache
def make_problem(dataset: str, device: str, dtype: str) -> lv.Problem:
    """Return the problem on a device, with the same initial weights everywhere (up to rounding to the dtype)."""
    graph = load_graph(dataset)
    hidden = _HIDDEN.get(dataset, 64)
    model = lv.GCN(graph.num_features, hidden, graph.num_outputs, num_layers=NUM_LAYERS, seed=SEED)
    return lv.Problem(graph, model).to(device, getattr(torch, dtype))


def make_estimator(name: str) -> lv.Estimator:
    """Return one of `ESTIMATORS`."""
    return lv.make_estimator(name, **ESTIMATORS[name])


def make_step(problem: lv.Problem, estimator: str, *batches: lv.Batch) -> Callable[[], None]:
    """Return a function that estimates from each batch and applies the writes; histories start as the estimator's."""
    chosen = make_estimator(estimator)
    state = chosen.init(problem)

    def step() -> None:
        for batch in batches:
            state.apply(chosen.estimate(problem, state, batch).writes)

    return step


# ------------------------------------------------------------------ clocks


class DeviceTimer:
    """A clock in seconds whose reading waits for the device: CUDA events on a GPU, the system's clock on a CPU.

    With LMC_VERIFY_BENCH_CLOCK=cpu the processor time of the process takes the place of the system's clock: what other
    processes take of a busy machine does not count, and neither does what threads of this one save.

    The times of successive events are added up, because an event tells only its distance from another one, in single
    precision.
    """

    def __init__(self, device: str) -> None:
        self._on_gpu = device == "cuda"
        self._last: Any = None
        self._seconds = 0.0

    def __call__(self) -> float:
        """Return the time now, after everything that was asked of the device is done."""
        if not self._on_gpu:
            return time.process_time() if os.environ.get(CLOCK_VARIABLE) == "cpu" else time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        event.synchronize()
        if self._last is not None:
            self._seconds += self._last.elapsed_time(event) / 1000
        self._last = event
        return self._seconds


def forget_peak_memory() -> None:
    """Let the peak memory of this process count from now on (Linux), so that making the inputs does not count."""
    gc.collect()
    with suppress(OSError):  # elsewhere, or where it is not allowed, the peak includes the making of the inputs
        Path("/proc/self/clear_refs").write_text("5")


# ------------------------------------------------------------------ benchmark classes


class Benchmark:
    """A benchmark by data set, device and dtype; other parameters come first.

    asv calls `setup` before every sample, so `setup` only looks up what the functions above keep, and warms up once.
    """

    params: Any = (DATASETS, DEVICES, DTYPES)
    param_names: tuple[str, ...] = ("dataset", "device", "dtype")
    timeout = 1200
    number = 1
    warmup_time = 0.2
    ratio_seconds = 5.0
    repeat: Any = (5, 60, 5.0)  # at least 5 samples, at most 60, more than 5 only within 5 seconds

    def setup(self, dataset: str, device: str, dtype: str) -> None:
        """Build the problem; what cannot run here is skipped with its reason."""
        require_device(device)
        require_dataset(dataset, dtype)
        self.device = device
        self.timer = DeviceTimer(device)
        self.problem = make_problem(dataset, device, dtype)
        self.batch = make_batch(dataset)

    def warm_up_once(self, work: Callable[[], object]) -> None:
        """Call `work` if this process has not done so for this class: it builds what graphs and devices keep."""
        if type(self) not in _WARM:
            work()
            self.timer()  # waits for the device
            _WARM.add(type(self))

    def wait(self) -> None:
        """Wait until the device has finished its work."""
        if self.device == "cuda":
            torch.cuda.synchronize()

    def ratios(
        self,
        work: Callable[[], object],
        reference: Callable[[], object],
        *,
        least: int = 9,
        most: int = 61,
    ) -> dict[str, Any]:
        """Return the time of `work` over that of `reference`, once for each round, in the form of asv's samples.

        Both are called in every round, in turns first and second, so that what disturbs the machine meets both; asv
        shows the median of the ratios with its interval.

        Args:
            work: what is measured.
            reference: what it is measured against.
            least: rounds in any case.
            most: rounds at most; more than `least` only within `ratio_seconds`.
        """
        work()
        reference()
        samples: list[float] = []
        start = self.timer()
        for number in range(most):
            if number >= least and self.timer() - start > self.ratio_seconds:
                break
            pair = (work, reference) if number % 2 == 0 else (reference, work)
            first, second = (self.seconds(function) for function in pair)
            samples.append(first / second if number % 2 == 0 else second / first)
        return {"samples": samples, "number": 1}

    def seconds(self, function: Callable[[], object]) -> float:
        """Return the time of one call, until the device is done."""
        self.wait()
        start = self.timer()
        function()
        return self.timer() - start


_WARM: set[type] = set()


# ------------------------------------------------------------------ training to a target: the seam to the trainer


@dataclass(frozen=True)
class Reached:
    """When a training run reached its target: steps taken, and the seconds they took without the evaluations."""

    steps: int
    seconds: float


def train_to_target(
    problem: lv.Problem,
    estimator: lv.Estimator,
    design: lv.BatchDesign,
    target: float,
    *,
    step_size: float,
    most_steps: int,
    look_every: int = 5,
) -> Reached:
    """Train until the validation accuracy reaches the target.

    This is the one place where benchmarks train to a target.

    Args:
        problem: where to start; it is not changed.
        estimator: gives the gradients.
        design: the batches.
        target: validation accuracy, in [0, 1].
        step_size: of plain stochastic gradient descent.
        most_steps: when to give up.
        look_every: steps between evaluations on the whole graph, which are not timed.

    Raises:
        RuntimeError: the target was not reached; asv records the benchmark as failed, with this message.
    """
    run = lv.TrainingRun(problem, estimator, design, step_size=step_size, generator=generator(SEED, "training"))
    clock = DeviceTimer(problem.graph.device.type)
    seconds, best = 0.0, -math.inf
    while run.step_count < most_steps:
        start = clock()
        for _ in range(look_every):
            run.step()
        seconds += clock() - start
        best = max(best, validation_accuracy(run.problem))
        if best >= target:
            return Reached(run.step_count, seconds)
    raise RuntimeError(f"{estimator.name} reached an accuracy of {best:.3f} in {most_steps} steps, not {target}")


def validation_accuracy(problem: lv.Problem) -> float:
    """Return the share of validation nodes whose class the model finds."""
    graph = problem.graph
    assert graph.val_mask is not None
    with torch.no_grad():
        right = problem.model(graph).argmax(dim=1) == graph.y
    return float(right[graph.val_mask].double().mean())


def track_threads() -> int:
    """Threads that torch uses for one operation; times of different numbers must not be compared."""
    return torch.get_num_threads()


track_threads.unit = "threads"  # type: ignore[attr-defined]  # asv reads the unit off the function, which has no such attribute for mypy
