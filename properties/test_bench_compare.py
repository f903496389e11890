"""Claim: the comparison of two commits calls a regression at most as often as it says, and misses none it can see.

The command itself is run end to end by `nox -s bench_compare_selftest`, on commits that are slowed on purpose.
"""

from __future__ import annotations

import importlib.util
import math
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from scipy.stats import binom

pytest.importorskip("asv")

from asv.benchmarks import Benchmarks
from asv.config import Config
from asv.results import Results
from asv.runner import BenchmarkResult

ROOT = Path(__file__).resolve().parents[1]


def load_tool(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


tool = load_tool("bench_compare")
NAN = math.nan


def timed(ratios: list[float], samples: int = tool.SAMPLES_PER_ROUND) -> tuple[Any, Any]:
    """Return samples of base and head whose rounds have these ratios, on a machine whose speed drifts."""
    rng = np.random.default_rng(0)
    base = [[(1 + number) * (1 + 0.01 * rng.random()) for _ in range(samples)] for number in range(len(ratios))]
    head = [[ratio * value for value in rounds] for ratio, rounds in zip(ratios, base, strict=True)]
    return base, head


@pytest.mark.parametrize("benchmarks", [1, 2, 14, 100])
@pytest.mark.parametrize("alpha", [0.01, 0.1])
def test_rounds_are_enough_for_one_disturbed_round(benchmarks: int, alpha: float) -> None:
    rounds = tool.rounds_needed(benchmarks, alpha)
    assert binom.cdf(1, rounds, 0.5) <= alpha / benchmarks < binom.cdf(1, rounds - 1, 0.5)
    for disturbed in (0.1, 1e-9):
        base, head = timed([1.5] * (rounds - 1) + [disturbed])
        row = tool.timed_row("b", base, head, factor=1.15, alpha=alpha / benchmarks)
        assert row.state == "slower"


def test_a_round_less_says_nothing_about_one_disturbed_round() -> None:
    rounds = tool.rounds_needed(14, 0.01) - 1
    base, head = timed([1.5] * (rounds - 1) + [0.9])
    assert tool.timed_row("b", base, head, factor=1.15, alpha=0.01 / 14).state == "unchanged"


@pytest.mark.parametrize(
    ("ratio", "state"), [(1.0, "unchanged"), (1.14, "unchanged"), (1.16, "slower"), (2.0, "slower"), (0.5, "faster")]
)
def test_the_factor_decides(ratio: float, state: str) -> None:
    base, head = timed([ratio] * 12)
    row = tool.timed_row("b", base, head, factor=1.15, alpha=0.01)
    assert row.state == state
    assert row.ratio == pytest.approx(ratio)


@pytest.mark.statistical
@pytest.mark.parametrize("noise", ["normal", "heavy", "skewed"])
def test_false_alarms_are_at_most_as_frequent_as_stated(noise: str) -> None:
    """False alarms at a median ratio *at* the factor, the worst case: at most alpha of 4,000 seeded comparisons.

    The count is binomial with probability at most alpha; the limit is passed by chance once in 1e6 times.
    """
    rng, alpha, factor, rounds, runs = np.random.default_rng(7), 0.05, 1.15, 9, 4000
    draw = {
        "normal": lambda: np.exp(0.3 * rng.standard_normal(rounds)),
        "heavy": lambda: np.exp(rng.standard_cauchy(rounds).clip(-20, 20)),
        "skewed": lambda: rng.exponential(size=rounds) / math.log(2),  # its median is 1
    }[noise]
    alarms = 0
    for _ in range(runs):
        ratios = factor * draw()
        row = tool.timed_row("b", [[1.0]] * rounds, [[ratio] for ratio in ratios], factor=factor, alpha=alpha)
        alarms += row.state == "slower"
    assert alarms <= binom.isf(1e-6, runs, alpha)
    assert alarms >= binom.isf(1 - 1e-6, runs, binom.cdf(1, rounds, 0.5))  # the level is used, not wasted


def test_a_round_is_its_shortest_sample_so_that_slow_ones_say_nothing() -> None:
    base = [[1.0, 3.0, 5.0, 50.0, 20.0]] * 12
    head = [[11.0, 70.0, 1.0, 8.0, 90.0]] * 12
    row = tool.timed_row("b", base, head, factor=1.15, alpha=0.01)
    assert (row.state, row.ratio, row.low, row.high) == ("unchanged", 1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("base", "head", "state"),
    [
        (1.0, 1.1, "unchanged"),
        (1.0, 1.2, "worse"),
        (1.2, 1.0, "better"),
        (0.0, 0.3, "worse"),
        (1e-16, 3e-15, "unchanged"),  # rounding errors
        (0.0, 0.0, "unchanged"),
    ],
)
def test_numbers_that_repeat_are_judged_by_the_factor_alone(base: float, head: float, state: str) -> None:
    assert tool.single_row("b", "bytes", base, head, factor=1.15, judged=True).state == state
    assert tool.single_row("b", "ratio", base, head, factor=1.15, judged=False).state == "not judged"


def measured(value: float | None, kind: str = "time", unit: str = "seconds", samples: Any = None) -> Any:
    return tool.Measured(kind, unit, value, samples)


def test_what_failed_or_was_skipped_is_told_apart() -> None:
    full = [1.0] * (12 * tool.SAMPLES_PER_ROUND)
    base = {
        "both": measured(1.0, samples=full),
        "fails now": measured(1.0, samples=full),
        "failed before": measured(None),
        "skipped": measured(NAN),
        "skipped now": measured(1.0, samples=full),
        "gone": measured(1.0, samples=full),
        "short": measured(1.0, samples=full[1:]),
        "memory": measured(100.0, "peakmemory", "bytes"),
        "ratio": measured(0.5, "track", "ratio"),
        "draws": measured(100, "track", "draws"),
    }
    head = {
        "both": measured(2.0, samples=[2.0] * len(full)),
        "fails now": measured(None),
        "failed before": measured(1.0, samples=full),
        "skipped": measured(NAN),
        "skipped now": measured(NAN),
        "new": measured(1.0, samples=full),
        "short": measured(1.0, samples=full),
        "memory": measured(200.0, "peakmemory", "bytes"),
        "ratio": measured(5.0, "track", "ratio"),
        "draws": measured(50, "track", "draws"),
    }
    rows = tool.compare(base, head, rounds=12, factor=1.15, alpha=0.01)
    assert {row.name: row.state for row in rows} == {
        "both": "slower",
        "fails now": "failed on head",
        "failed before": "not comparable",
        "skipped now": "skipped on head",
        "gone": "not comparable",
        "new": "not comparable",
        "short": "incomplete",
        "memory": "worse",
        "ratio": "not judged",
        "draws": "better",
    }
    assert rows[0].name == "both"  # the worst first


def test_the_level_is_split_over_the_timed_benchmarks() -> None:
    rounds = tool.rounds_needed(1, 0.01)
    base, head = timed([1.5] * (rounds - 1) + [0.9])

    def flat(values: Any) -> list[float]:
        return [value for part in values for value in part]

    one = {"a": measured(1.0, samples=flat(base))}, {"a": measured(1.5, samples=flat(head))}
    assert tool.compare(*one, rounds=rounds, factor=1.15, alpha=0.01)[0].state == "slower"
    many = tuple(dict.fromkeys("abcdefgh", side["a"]) for side in one)
    states = {row.state for row in tool.compare(*many, rounds=rounds, factor=1.15, alpha=0.01)}
    assert states == {"unchanged"}


def test_what_earlier_runs_measured_with_other_parameters_is_left_out() -> None:
    """asv keeps it in the same file: it would share the level, or have other rounds."""
    parameters = [str(number) for number in range(32)]
    benchmark = {"name": "b.time_x", "params": [parameters], "version": "1", "type": "time", "unit": "seconds"}
    rounds, size = tool.rounds_needed(1, 0.01), tool.SAMPLES_PER_ROUND

    def add(results: Any, chosen: list[int], seconds: float, count: int, *, append: bool) -> None:
        inside = [number in chosen for number in range(32)]
        result = BenchmarkResult(
            result=[seconds if here else NAN for here in inside],
            samples=[[seconds] * count if here else None for here in inside],
            number=[1 if here else None for here in inside],
            errcode=0, stderr="", profile=None,
        )  # fmt: skip
        results.add_result(benchmark, result, record_samples=True, append_samples=append, selected_idx=chosen)

    sides = Results.unnamed(), Results.unnamed()
    for results, seconds in zip(sides, (1.0, 2.0), strict=True):
        add(results, list(range(32)), 1.0, 17 * size, append=False)
        for number in range(rounds):
            add(results, [0], seconds, size, append=number > 0)
    chosen = Benchmarks(Config(), [benchmark], regex=[r"time_x\(0\)"])
    before, after = (tool.measurements(results, chosen) for results in sides)
    assert list(before) == list(after) == ["b.time_x(0)"]
    (row,) = tool.compare(before, after, rounds=rounds, factor=1.15, alpha=0.01)
    assert row.state == "slower"
    everything = Benchmarks(Config(), [benchmark])
    assert len(tool.measurements(sides[0], everything)) == 32
    plain = {**benchmark, "name": "b.time_y", "params": []}
    single = Results.unnamed()
    result = BenchmarkResult(result=[1.0], samples=[[1.0]], number=[1], errcode=0, stderr="", profile=None)
    single.add_result(plain, result, record_samples=True)
    assert list(tool.measurements(single, Benchmarks(Config(), [plain]))) == ["b.time_y"]


def test_samples_are_cut_into_their_rounds() -> None:
    size = tool.SAMPLES_PER_ROUND
    rounds = tool.in_rounds(list(range(3 * size)), 3)
    assert rounds[1] == list(range(size, 2 * size))
    assert tool.in_rounds(list(range(3 * size)), 4) is None
    assert tool.in_rounds(None, 3) is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["HEAD", "no-such-commit"], "git knows no commit 'no-such-commit'"),
        (["HEAD", "HEAD"], "the same commit"),
    ],
)
def test_commits_that_cannot_be_compared_are_usage_errors(words: list[str], message: str) -> None:
    with pytest.raises(tool.Failure, match=message) as failure:
        tool.run(tool.parse(words))
    assert failure.value.code == 2


@pytest.mark.parametrize("words", [["--factor", "0.9"], ["--alpha", "0"], ["--alpha", "0.5"], ["--rounds", "0"], ["x"]])
def test_bad_arguments_are_usage_errors(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        tool.parse([*words, "HEAD~1", "HEAD"])
    assert stop.value.code == 2
    assert capsys.readouterr().err


def test_the_selftest_slows_the_package_down_and_the_comment_does_not(tmp_path: Path) -> None:
    selftest = load_tool("bench_compare_selftest")
    package = tmp_path / "lmc_verify"
    package.mkdir()
    (package / "__init__.py").write_text("calls = []\ndef exact_pass(x):\n    calls.append(x)\n    return 2 * x\n")
    selftest.git(tmp_path, "init", "-q", "-b", "main")
    selftest.git(tmp_path, "add", ".")
    selftest.git(tmp_path, "commit", "-q", "-m", "base")
    base = selftest.git(tmp_path, "rev-parse", "HEAD")
    for name, addition, calls in (("same", selftest.COMMENT, 1), ("slow", selftest.COMPUTED_TWICE, 2)):
        selftest.commit(tmp_path, base, name, addition)
        code = "from lmc_verify import *; import lmc_verify as p; assert p.exact_pass(3) == 6; print(len(p.calls))"
        done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
        assert int(done.stdout) == calls
    assert all(any(pattern in text for text in selftest.BENCHMARKS) for pattern in (r"time_exact_pass\(", "time_halo"))
