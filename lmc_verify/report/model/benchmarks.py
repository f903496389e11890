"""Benchmark results in a report: what asv recorded, read with asv's own loader, ratios first."""

from __future__ import annotations

import ast
import contextlib
import itertools
import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lmc_verify.errors import InvalidInputError
from lmc_verify.imports.optional import optional
from lmc_verify.report.model import text

__all__ = ["BenchmarkRow", "BenchmarkSection", "Machine", "load_benchmarks"]

RATIO = "ratio"
_KINDS = {"time": "time", "peakmemory": "memory", "track": "number"}
_SCALES = {
    "seconds": ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns")),
    "bytes": ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B")),
}


@dataclass(frozen=True)
class BenchmarkRow:
    """One benchmark with its parameters on one machine, of the newest commit that has it.

    Attributes:
        benchmark: module, class and method, such as ``bench_exact.ExactPass.time_exact_pass``.
        parameters: their names and values.
        kind: time, memory or number.
        unit: of `value`, as asv records it: seconds, bytes, ratio, ...
        value: the median of the samples, or the one number there is.
        low: lower end of asv's 99 % interval for the median; None where there is none or it is infinite.
        high: its upper end.
        samples: number of samples; None where the number was measured once.
        commit: hash.
        date: of the commit, ISO 8601.
        machine: name that asv has for the machine.
        environment: name that asv has for the environment.
    """

    benchmark: str
    parameters: tuple[tuple[str, str], ...]
    kind: str
    unit: str
    value: float
    low: float | None
    high: float | None
    samples: int | None
    commit: str
    date: str
    machine: str
    environment: str

    @property
    def label(self) -> str:
        """The parameters in words."""
        return ", ".join(value for _, value in self.parameters) or text.ABSENT

    @property
    def unit_word(self) -> str:
        """The unit that `shown` and `interval` are written in."""
        return self._scale[1]

    @property
    def shown(self) -> str:
        """The value in `unit_word`."""
        return text.number(self.value / self._scale[0])

    @property
    def interval(self) -> str:
        """The interval in `unit_word`."""
        factor = self._scale[0]
        return text.interval(*(None if end is None else end / factor for end in (self.low, self.high)))

    @property
    def _scale(self) -> tuple[float, str]:
        scales = _SCALES.get(self.unit, ((1.0, self.unit),))
        return next((scale for scale in scales if abs(self.value) >= scale[0]), scales[-1])


@dataclass(frozen=True)
class Machine:
    """A machine that benchmarks ran on, as asv describes it."""

    name: str
    description: str


@dataclass(frozen=True)
class BenchmarkSection:
    """What asv recorded, newest commit first for each benchmark and machine.

    Attributes:
        source: the folder of results.
        rows: ratios first, then times, memory and other numbers.
        machines: the machines of the rows.
        failed: benchmarks whose newest result is a failure, with parameters.
        skipped: combinations of parameters that were not selected, or could not run.
    """

    source: str
    rows: tuple[BenchmarkRow, ...]
    machines: tuple[Machine, ...]
    failed: tuple[str, ...]
    skipped: int

    def to_dict(self) -> dict[str, Any]:
        """Return the section as plain data."""
        rows = [{**asdict(row), "parameters": dict(row.parameters)} for row in self.rows]
        return {**asdict(self), "rows": rows}


def load_benchmarks(folder: str | Path) -> BenchmarkSection:
    """Read a folder of asv's results, such as ``.asv/results``.

    Raises:
        InvalidInputError: asv is not installed, or the folder does not hold results that this version of asv can read.
    """
    kept, settings, recorded, util = (
        optional(f"asv.{name}", "reading benchmark results", "bench")
        for name in ("benchmarks", "config", "results", "util")
    )
    path = Path(folder)
    config = settings.Config()
    config.results_dir = str(path)
    try:
        with contextlib.redirect_stdout(sys.stderr):  # asv tells on standard output which files it leaves out
            benchmarks = kept.Benchmarks.load(config)
            results = sorted(recorded.iter_results(str(path)), key=_newest_first)
    except (util.UserError, OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InvalidInputError(
            f"{path} holds no benchmark results that asv can read: {error}; give the folder that asv.conf.json calls "
            "results_dir, after a run of asv that records results"
        ) from error
    if not results:
        raise InvalidInputError(
            f"{path} holds no results of any commit; record some with: asv run --python=same --set-commit-hash HEAD"
        )
    return _section(str(path), benchmarks, results)


def _newest_first(result: Any) -> tuple[int, str, str, str]:
    return -result.date, result.commit_hash, result.params["machine"], result.env_name


def _section(source: str, benchmarks: Mapping[str, Mapping[str, Any]], results: list[Any]) -> BenchmarkSection:
    rows: dict[tuple[str, ...], BenchmarkRow | None] = {}  # None: failed
    skipped: set[tuple[str, ...]] = set()
    for result in results:  # newest first: older ones only fill what is missing
        for name in sorted(result.get_result_keys(benchmarks)):
            for chosen, row in _rows(result, benchmarks[name]):
                key = (name, *chosen, result.params["machine"], result.env_name)
                if isinstance(row, BenchmarkRow) or row is None:
                    rows.setdefault(key, row)
                else:
                    skipped.add(key)
    found = [row for row in rows.values() if row is not None]
    names = sorted({row.machine for row in found})
    described = {result.params["machine"]: _describe(result.params) for result in reversed(results)}
    kinds = tuple(_KINDS.values())
    return BenchmarkSection(
        source,
        tuple(sorted(found, key=lambda row: (row.unit != RATIO, kinds.index(row.kind), row.benchmark, row.machine))),
        tuple(Machine(name, described[name]) for name in names),
        tuple(f"{key[0]}({', '.join(key[1:-2])})" for key, row in rows.items() if row is None),
        len(skipped - set(rows)),
    )


_SKIPPED = math.nan


def _rows(result: Any, benchmark: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], BenchmarkRow | float | None]]:
    """Yield for each combination of parameters its row; None if it failed, NaN if it was skipped."""
    name, params = benchmark["name"], benchmark["params"]
    values = result.get_result_value(name, params)
    stats = result.get_result_stats(name, params)
    for chosen, value, spread in zip(itertools.product(*params), values, stats, strict=True):
        words = tuple(map(_word, chosen))
        if value is None:
            yield words, None
            continue
        if math.isnan(value):
            yield words, _SKIPPED
            continue
        spread = spread or {}
        ends = (spread.get(f"ci_99_{end}") for end in "ab")
        low, high = (end if end is not None and math.isfinite(end) else None for end in ends)
        yield (
            words,
            BenchmarkRow(
                name,
                tuple(zip(benchmark["param_names"], words, strict=True)),
                _KINDS.get(benchmark["type"], "number"),
                benchmark["unit"],
                float(value),
                low,
                high,
                spread.get("repeat"),
                result.commit_hash,
                datetime.fromtimestamp(result.date / 1000, UTC).isoformat(),
                result.params["machine"],
                result.env_name,
            ),
        )


def _word(value: str) -> str:
    """Return a parameter, which asv stores as Python would print it, without quotes."""
    try:
        return str(ast.literal_eval(value))
    except (ValueError, SyntaxError):
        return value


def _describe(params: Mapping[str, Any]) -> str:
    parts = [str(params.get("cpu", "")), f"{params['num_cpu']} CPUs" if params.get("num_cpu") else ""]
    memory = str(params.get("ram", ""))
    parts += [f"{int(memory) / 1e9:.0f} GB" if memory.isdigit() else memory, str(params.get("os", ""))]
    return ", ".join(part for part in parts if part)
