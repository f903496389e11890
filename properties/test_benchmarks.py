"""Claim: every asv benchmark runs, and the two sides of a ratio compute the same thing.

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
PREFIXES = ("time_", "peakmem_", "track_")
TINY = {"dataset": ("karate",), "device": ("cpu",), "dtype": ("float64",)}  # other parameters keep all values


def benchmarks() -> Iterator[Any]:
    """Yield every benchmark with every combination of its parameters on the tiny graph, discovered as asv does."""
    for name, module in MODULES.items():
        for attribute, value in vars(module).items():
            if inspect.isclass(value) and value.__module__ == module.__name__:
                names = getattr(value, "param_names", ())
                values = [TINY.get(key, given) for key, given in zip(names, parameter_lists(value), strict=True)]
                for method in (key for key in dir(value) if key.startswith(PREFIXES)):
                    for chosen in itertools.product(*values):
                        yield pytest.param(value, method, chosen, id="-".join([name, method, *chosen]))
            elif inspect.isfunction(value) and attribute.startswith(PREFIXES):
                yield pytest.param(None, value, (), id=f"{name}-{attribute}")


def parameter_lists(cls: type) -> tuple[tuple[str, ...], ...]:
    """Return one tuple of values a parameter; asv takes the bare values where there is one parameter."""
    params = getattr(cls, "params", ())
    return (params,) if params and isinstance(params[0], str) else params


def run(cls: type | None, method: str | Callable[[], Any], chosen: tuple[str, ...]) -> Any:
    if cls is None:
        assert callable(method)
        return method()
    assert isinstance(method, str)
    instance = cls()
    instance.setup(*chosen)
    return getattr(instance, method)(*chosen)


@pytest.mark.parametrize(("cls", "method", "chosen"), list(benchmarks()))
def test_benchmark_runs(cls: type | None, method: str | Callable[[], Any], chosen: tuple[str, ...]) -> None:
    result = run(cls, method, chosen)
    if (method if isinstance(method, str) else method.__name__).startswith("track_"):
        assert math.isfinite(result)
        assert result > 0
    else:
        assert result is None


def test_the_suite_measures_what_it_promises() -> None:
    names = {parameter.id for parameter in benchmarks()}
    for wanted in (
        "bench_exact-time_exact_pass-karate-cpu-float64",
        "bench_exact-peakmem_exact_pass-karate-cpu-float64",
        *(f"bench_estimators-time_step-{name}-karate-cpu-float64" for name in ("backward-sgd", "lmc", "gas")),
        "bench_blocks-time_block-karate-cpu-float64",
        "bench_blocks-time_halo-karate-cpu-float64",
        "bench_blocks-time_metis-karate",
        "bench_quality-track_lmc_over_gas-karate-cpu-float64",
        "bench_quality-track_exact_over_pyg-karate-cpu-float64",
        "common-track_threads",
    ):
        assert wanted in names


def test_without_cuda_its_parameters_are_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(NotImplementedError, match="no CUDA device"):  # asv's word for "not applicable"
        MODULES["bench_exact"].ExactPass().setup("karate", "cuda", "float32")


def test_a_problem_is_the_same_in_every_process() -> None:
    common = MODULES["common"]
    first = common.make_problem("karate", "cpu", "float64"), common.make_batch("karate").nodes
    for cached in (common.load_graph, common.make_partition, common.make_problem, common.make_batch):
        cached.cache_clear()
    second = common.make_problem("karate", "cpu", "float64"), common.make_batch("karate").nodes
    assert first[0].parameter_fingerprint() == second[0].parameter_fingerprint()
    assert first[0].graph.fingerprint == second[0].graph.fingerprint
    assert torch.equal(first[1], second[1])


@pytest.mark.parametrize("reference", ["pyg_gradient", "autograd_gradient"])
def test_the_references_compute_the_exact_gradient(reference: str) -> None:
    problem = MODULES["common"].make_problem("karate", "cpu", "float64")
    gradient = getattr(MODULES["bench_quality"], reference)(problem)()
    exact = lv.exact_pass(problem).gradient
    assert list(gradient) == list(exact)
    for name, value in exact.items():
        torch.testing.assert_close(gradient[name], value, rtol=1e-12, atol=1e-14)


def test_environments_of_other_commits_keep_torch_pinned() -> None:
    settings = json.loads((ROOT / "asv.conf.json").read_text())
    assert "-c {conf_dir}/constraints.txt" in " ".join(settings["install_command"])
    assert re.search(r"^torch==\d", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert settings["benchmark_dir"] == "benchmarks"
