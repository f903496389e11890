"""Claim: every asv benchmark runs, measures what it says, and is skipped with a reason where it cannot run.

Each benchmark's setup and method run once on a tiny graph, so that benchmarks cannot rot; nothing is said about time.
"""

from __future__ import annotations

import importlib
import inspect
import itertools
import json
import math
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import lmc_verify as lv

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))  # asv, too, imports the folder as a package beside its configuration

MODULES = {
    name: importlib.import_module(f"benchmarks.{name}")
    for name in sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py"))
    if name != "__init__"
}
COMMON = MODULES["common"]
PREFIXES = ("time_", "peakmem_", "track_")
TINY = {"dataset": ("karate",), "device": ("cpu",), "dtype": ("float64",), "width": (16,)}  # others keep all values
TINY_OF = {"DrawsToDecision": {"dataset": ("digits",)}}  # karate's 8 batches are a census, which needs no test


@pytest.fixture(autouse=True)
def few_ratios(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(COMMON.Benchmark, "ratio_seconds", 0.0)


def benchmarks(device: str = "cpu") -> Iterator[Any]:
    """Yield every benchmark with every combination of its parameters on the tiny graph, discovered as asv does."""
    for name, module in MODULES.items():
        for attribute, value in vars(module).items():
            if inspect.isclass(value) and value.__module__ == module.__name__:
                names = getattr(value, "param_names", ())
                tiny = {**TINY, "device": (device,), **TINY_OF.get(attribute, {})}
                given = dict(zip(names, getattr(value, "params", ()), strict=True))
                if device not in given.get("device", ("cpu",)):
                    continue
                values = [tiny.get(key, every) for key, every in given.items()]
                for method in (key for key in dir(value) if key.startswith(PREFIXES)):
                    for chosen in itertools.product(*values):
                        yield pytest.param(value, method, chosen, id="-".join([name, method, *map(str, chosen)]))
            elif inspect.isfunction(value) and attribute.startswith(PREFIXES) and value.__module__ == module.__name__:
                yield pytest.param(None, value, (), id=f"{name}-{attribute}")


def run(cls: type | None, method: str | Callable[[], Any], chosen: tuple[Any, ...]) -> Any:
    """Run a benchmark as asv does: setup, method, teardown."""
    if cls is None:
        assert callable(method)
        return method()
    assert isinstance(method, str)
    instance: Any = cls()
    instance.setup(*chosen)
    try:
        return getattr(instance, method)(*chosen)
    finally:
        getattr(instance, "teardown", lambda *_: None)(*chosen)


def check_result(method: str | Callable[[], Any], result: Any) -> None:
    if not (method if isinstance(method, str) else method.__name__).startswith("track_"):
        assert result is None
        return
    values = result["samples"] if isinstance(result, dict) else [result]  # asv takes several values as samples
    assert values
    for value in values:
        assert math.isfinite(value)
        assert value > 0


@pytest.mark.slow
@pytest.mark.parametrize(("cls", "method", "chosen"), list(benchmarks()))
def test_benchmark_runs(cls: type | None, method: str | Callable[[], Any], chosen: tuple[Any, ...]) -> None:
    check_result(method, run(cls, method, chosen))


@pytest.mark.gpu
def test_benchmarks_run_on_a_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("torch finds no CUDA device")
    for parameter in benchmarks("cuda"):
        cls, method, chosen = parameter.values
        check_result(method, run(cls, method, chosen))


def test_the_suite_measures_what_it_promises() -> None:
    names = {parameter.id for parameter in benchmarks()} | {parameter.id for parameter in benchmarks("cuda")}
    place = "karate-cpu-float64"
    for wanted in (
        f"bench_exact-time_exact_pass-{place}",
        f"bench_exact-peakmem_exact_pass-{place}",
        f"bench_exact-peakmem_inputs-{place}",
        "bench_exact-track_exact_pass-karate-cuda-float64",
        *(f"bench_estimators-time_step-{name}-{place}" for name in COMMON.ESTIMATORS),
        *(f"bench_estimators-peakmem_epoch-{name}-{place}" for name in ("lmc", "gas")),
        f"bench_blocks-time_block-{place}",
        f"bench_blocks-time_halo-{place}",
        f"bench_blocks-time_operator-{place}",
        "bench_blocks-time_metis-karate",
        f"bench_products-time_product-16-{place}",
        "bench_suites-time_suite",
        *(
            f"bench_quality-track_relative_{what}-{name}-{place}"
            for what in ("error", "bias")
            for name in ("lmc", "gas")
        ),
        "bench_quality-track_draws-refute gas-digits",
        "bench_quality-track_draws-support lmc-digits",
        *(f"bench_quality-track_{what}-{name}-{place}" for what in ("steps", "seconds") for name in ("lmc", "gas")),
        *(f"bench_ratios-track_exact_over_pyg_{what}-{place}" for what in ("csr", "edge_index")),
        f"bench_ratios-track_lmc_step_over_gas_step-{place}",
        *(f"bench_ratios-track_{name}_epoch_over_pyg_csr-{place}" for name in ("lmc", "gas")),
        f"bench_ratios-peakmem_csr-{place}",
        "common-track_threads",
    ):
        assert wanted in names


def test_every_data_set_with_a_target_is_benchmarked_and_the_other_way_round() -> None:
    quality = MODULES["bench_quality"]
    datasets = set(quality.TimeToTarget.params[1])
    assert datasets == set(quality.TARGETS) - {"karate"}
    assert set(COMMON.DATASETS) == {"digits", "dcsbm-20k", "cora", "dcsbm-169k"}


# ------------------------------------------------------------------ what is skipped


def test_without_cuda_its_parameters_are_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(NotImplementedError, match="no CUDA device"):  # asv's word for "not applicable"
        MODULES["bench_exact"].ExactPass().setup("karate", "cuda", "float32")


@pytest.mark.parametrize("module", ["bench_exact.ExactPass", "bench_blocks.Metis"])
def test_the_large_graph_is_skipped_unless_asked_for(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, cls = module.split(".")
    place = ("dcsbm-169k", "cpu", "float32")[: len(getattr(MODULES[name], cls).param_names)]
    monkeypatch.delenv(COMMON.LARGE_VARIABLE, raising=False)
    with pytest.raises(NotImplementedError, match="set LMC_VERIFY_BENCH_LARGE=1"):
        getattr(MODULES[name], cls)().setup(*place)


def test_the_large_graph_is_skipped_where_memory_is_too_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(COMMON.LARGE_VARIABLE, "1")
    monkeypatch.setattr(COMMON, "available_memory", lambda: 15_000_000_000)
    COMMON.require_dataset("dcsbm-169k", "float32")
    with pytest.raises(NotImplementedError, match="float64 needs 20 GB of memory, 15 GB are free"):
        COMMON.require_dataset("dcsbm-169k", "float64")
    monkeypatch.setattr(COMMON, "available_memory", lambda: None)  # unknown is not too small
    COMMON.require_dataset("dcsbm-169k", "float64")


def test_free_memory_is_what_the_system_says() -> None:
    free = COMMON.available_memory()
    assert free is None or 1_000_000 < free < 10**14


def test_a_data_set_without_its_files_is_skipped_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    COMMON.load_graph.cache_clear()
    monkeypatch.setenv("LMC_VERIFY_DATA_ROOT", str(tmp_path))
    with pytest.raises(NotImplementedError, match=r"cora.*" + re.escape(str(tmp_path))):
        COMMON.load_graph("cora")
    with pytest.raises(lv.InvalidInputError):  # a mistake is not a skip
        COMMON.load_graph("no such data set")
    COMMON.load_graph.cache_clear()


# ------------------------------------------------------------------ what is measured


def test_a_problem_is_the_same_in_every_process() -> None:
    first = COMMON.make_problem("karate", "cpu", "float64"), COMMON.make_batch("karate").nodes
    for cached in (COMMON.load_graph, COMMON.make_partition, COMMON.make_problem, COMMON.make_batch):
        cached.cache_clear()
    second = COMMON.make_problem("karate", "cpu", "float64"), COMMON.make_batch("karate").nodes
    assert first[0].parameter_fingerprint() == second[0].parameter_fingerprint()
    assert first[0].graph.fingerprint == second[0].graph.fingerprint
    assert torch.equal(first[1], second[1])


@pytest.mark.parametrize("reference", ["edge_index_gradient", "csr_gradient", "autograd_gradient"])
@pytest.mark.parametrize("dataset", ["karate", "directed"])
def test_the_references_compute_the_exact_gradient(reference: str, dataset: str) -> None:
    problem = COMMON.make_problem(dataset, "cpu", "float64")
    gradient = getattr(MODULES["pyg"], reference)(problem)()
    exact = lv.exact_pass(problem).gradient
    assert list(gradient) == list(exact)
    for name, value in exact.items():
        torch.testing.assert_close(gradient[name], value, rtol=1e-12, atol=1e-14)


def test_the_bias_is_that_of_an_enumeration_and_the_error_contains_it() -> None:
    quality = MODULES["bench_quality"]
    benchmark = quality.GradientError()
    benchmark.setup("gas", "karate", "cpu", "float64")
    measured = benchmark.track_relative_bias("gas")
    run = quality.warmed_up("karate", "cpu", "float64", "gas", 8)
    exact = lv.exact_pass(run.problem).gradient
    mean = {name: torch.zeros_like(value) for name, value in exact.items()}
    for batch, probability in run.design.enumerate():
        for name, value in run.estimator.estimate(run.problem, run.state, batch).gradient.items():
            mean[name] += probability * value
    flat = torch.cat([(mean[name] - exact[name]).ravel() for name in exact])
    norm = torch.cat([value.ravel() for value in exact.values()]).norm()
    assert measured == pytest.approx(float(flat.norm() / norm), rel=1e-10)
    assert run.step_count == quality.WARM_UP_STEPS


@pytest.mark.slow
def test_quality_numbers_repeat() -> None:
    benchmark = MODULES["bench_quality"].GradientError()
    benchmark.setup("lmc", "karate", "cpu", "float64")
    values = []
    for _ in range(2):
        MODULES["bench_quality"].warmed_up.cache_clear()
        values.append((benchmark.track_relative_error("lmc"), benchmark.track_relative_bias("lmc")))
    assert values[0] == values[1]


def test_an_epoch_visits_every_node_once() -> None:
    for per_batch in (1, 2, 4):
        nodes = torch.cat([batch.nodes for batch in COMMON.make_epoch("karate", per_batch)])
        assert sorted(nodes.tolist()) == list(range(34))
    assert len(COMMON.make_epoch("karate", 4)) == 2


def test_a_run_that_misses_its_target_fails_and_says_so() -> None:
    problem = COMMON.make_problem("karate", "cpu", "float32")
    design = lv.Clusters(COMMON.make_partition("karate"), 2)
    with pytest.raises(RuntimeError, match=r"gas reached an accuracy of \d\.\d+ in 10 steps, not 1\.1"):
        COMMON.train_to_target(problem, lv.GAS(), design, 1.1, step_size=0.1, most_steps=10)


def test_a_run_stops_at_its_target() -> None:
    problem = COMMON.make_problem("karate", "cpu", "float32")
    design = lv.Clusters(COMMON.make_partition("karate"), 2)
    settings = {"step_size": 0.1, "look_every": 5}
    at_once = COMMON.train_to_target(problem, lv.GAS(), design, 0.0, most_steps=50, **settings)
    assert at_once.steps == 5
    assert at_once.seconds > 0
    accuracy = COMMON.validation_accuracy(problem)
    assert accuracy * 15 == pytest.approx(round(accuracy * 15))  # of 15 validation nodes


def test_the_fixed_suite_finds_what_it_expects() -> None:
    benchmark = MODULES["bench_suites"].SuiteRun()
    benchmark.setup()
    try:
        result = benchmark.run()
    finally:
        benchmark.teardown()
    assert result.exit_code == 0
    assert len(result.trials) == 7


def test_the_operator_is_built_anew_for_every_sample() -> None:
    benchmark = MODULES["bench_blocks"].Operator()
    graphs = []
    for _ in range(2):
        benchmark.setup("karate", "cpu", "float64")
        benchmark.time_operator()
        graphs.append(benchmark.graph)
    assert graphs[0] is not graphs[1]
    assert graphs[0].operator("gcn") is not graphs[1].operator("gcn")


# ------------------------------------------------------------------ clocks


class FakeEvent:
    """A CUDA event on a clock that the test sets, in milliseconds."""

    now = 0.0
    synchronised = 0

    def __init__(self, enable_timing: bool = False) -> None:
        assert enable_timing, "an event without timing has no time"
        self.time = math.nan

    def record(self) -> None:
        self.time = FakeEvent.now

    def synchronize(self) -> None:
        assert not math.isnan(self.time), "an event must be recorded before it is waited for"
        FakeEvent.synchronised += 1

    def elapsed_time(self, later: FakeEvent) -> float:
        return later.time - self.time


def test_the_device_clock_adds_up_events_and_waits_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(FakeEvent, "now", 5.0)
    monkeypatch.setattr(FakeEvent, "synchronised", 0)
    clock = COMMON.DeviceTimer("cuda")
    start = clock()
    FakeEvent.now = 1005.0
    middle = clock()
    FakeEvent.now = 1505.0
    assert (middle - start, clock() - middle) == (1.0, 0.5)
    assert FakeEvent.synchronised == 3


def test_the_clock_counts_processor_time_where_it_is_told_to(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = COMMON.DeviceTimer("cpu")
    monkeypatch.setattr(COMMON.time, "process_time", lambda: 3.0)
    monkeypatch.setattr(COMMON.time, "perf_counter", lambda: 5.0)
    monkeypatch.delenv(COMMON.CLOCK_VARIABLE, raising=False)
    assert clock() == 5.0
    monkeypatch.setenv(COMMON.CLOCK_VARIABLE, "cpu")
    assert clock() == 3.0
    for cls in (MODULES["bench_blocks"].Metis, MODULES["bench_suites"].SuiteRun, MODULES["bench_exact"].ExactPass):
        instance = cls()
        instance.setup(*("karate", "cpu", "float64")[: len(getattr(cls, "param_names", ()))])
        assert instance.timer() == 3.0  # asv reads the clock off the instance
        getattr(instance, "teardown", lambda: None)()


def test_ratios_are_of_calls_side_by_side_in_both_orders() -> None:
    benchmark = COMMON.Benchmark()
    benchmark.setup("karate", "cpu", "float64")
    now, calls = [0.0], []
    benchmark.timer = lambda: now[0]
    benchmark.ratio_seconds = 1e6

    def taking(name: str, seconds: float) -> Callable[[], None]:
        def work() -> None:
            calls.append(name)
            now[0] += seconds

        return work

    result = benchmark.ratios(taking("work", 3.0), taking("reference", 2.0), least=2, most=4)
    assert result == {"samples": [1.5] * 4, "number": 1}
    benchmark.ratio_seconds = 22.0
    within = benchmark.ratios(taking("work", 3.0), taking("reference", 2.0), least=3, most=99)
    assert len(within["samples"]) == 5  # of five seconds each
    benchmark.ratio_seconds = 1.0
    over = benchmark.ratios(taking("work", 3.0), taking("reference", 2.0), least=3, most=99)
    assert len(over["samples"]) == 3
    del calls[10:]
    assert calls[2:] == ["work", "reference", "reference", "work"] * 2  # after one warm-up each


# ------------------------------------------------------------------ asv's settings


def test_environments_of_other_commits_keep_torch_pinned() -> None:
    settings = json.loads((ROOT / "asv.conf.json").read_text())
    assert "-c {conf_dir}/constraints.txt" in " ".join(settings["install_command"])
    assert re.search(r"^torch==\d", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert settings["benchmark_dir"] == "benchmarks"
