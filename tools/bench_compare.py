"""Compare the benchmarks of two commits side by side; exit with 1 if one of them is significantly slower.

Both commits run in asv's own environment, in rounds that take turns (head, base, base, head, ...), so that what
disturbs the machine meets both. A round gives one ratio for each benchmark, the head's shortest sample over the base's,
as what disturbs a sample makes it longer. The decision looks at these ratios only: a benchmark has become slower if the
lower end of the order-statistic interval for their median is above `--factor`. The ends are at a level of `--alpha`
over the number of timed benchmarks: if no median ratio is above the factor, the probability that any benchmark of the
comparison is called slower is at most `--alpha`, whatever the distribution of the times, as long as rounds are
independent of each other.

Peak memory and numbers that follow from fixed seeds (errors, draws, steps) are measured once and repeat; they are
called worse if their ratio is above the factor. Times that are measured inside one process (units "ratio" and "seconds"
of `track_*`) are shown and never judged.

Exit codes: 0 nothing is worse; 1 something is worse, or fails on the head only; 2 usage; 5 asv failed, rounds of a
benchmark are missing, or the head skips what the base has; 6 nothing could be compared.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from asv.benchmarks import Benchmarks
from asv.config import Config
from asv.results import Results, get_filename
from asv.util import UserError, human_value

from lmc_verify.cli.options import out_console
from lmc_verify.cli.print_verdicts import print_table
from lmc_verify.statistics import median_interval

FACTOR, ALPHA = 1.15, 0.01
DEFAULT_BENCHMARKS = (r"time_\w+\((?:.*, )?'digits', 'cpu', 'float32'\)", r"time_metis\('digits'\)", "time_suite")
SAMPLES_PER_ROUND = 8
NEGLIGIBLE = 1e-9
"""Numbers below are rounding errors, whose ratios say nothing."""

State = Literal[
    "slower",
    "faster",
    "worse",
    "better",
    "unchanged",
    "not judged",
    "failed on head",
    "skipped on head",
    "incomplete",
    "not comparable",
]
BAD: tuple[State, ...] = ("slower", "worse", "failed on head")


# ------------------------------------------------------------------ the decision, free of asv


@dataclass(frozen=True)
class Row:
    """What two commits say about one benchmark; `low` and `high` enclose the median ratio of the rounds."""

    name: str
    unit: str
    base: float | None
    head: float | None
    ratio: float | None
    low: float | None
    high: float | None
    state: State


def rounds_needed(benchmarks: int, alpha: float) -> int:
    """Return the rounds at which each interval leaves out the most extreme ratio on either side.

    With fewer rounds a single disturbed one could hide a change; the fewest at which there is an interval at all are
    about three less.
    """
    level = alpha / max(benchmarks, 1)
    rounds = 1
    while sum(math.comb(rounds, k) for k in range(2)) / 2**rounds > level:
        rounds += 1
    return rounds


def timed_row(
    name: str, base: Sequence[Sequence[float]], head: Sequence[Sequence[float]], *, factor: float, alpha: float
) -> Row:
    """Decide on one timed benchmark.

    Args:
        name: of the benchmark with its parameters.
        base: samples of the base [rounds][samples], in seconds.
        head: samples of the head, of the same rounds.
        factor: ratios up to this one are no change.
        alpha: probability of calling the head slower although the median ratio is at most the factor; the same for
            faster.
    """
    one, other = ([min(samples) for samples in rounds] for rounds in (base, head))
    found = median_interval([after / before for before, after in zip(one, other, strict=True)], 2 * alpha)
    state: State = "unchanged"
    if found.low > factor:
        state = "slower"
    elif found.high < 1 / factor:
        state = "faster"
    return Row(
        name, "seconds", statistics.median(one), statistics.median(other), found.median, found.low, found.high, state
    )


def single_row(name: str, unit: str, base: float, head: float, *, factor: float, judged: bool) -> Row:
    """Decide on a number that was measured once."""
    if max(abs(base), abs(head)) < NEGLIGIBLE:
        ratio = 1.0
    else:
        ratio = head / base if base else math.inf
    state: State = "not judged"
    if judged:
        state = "worse" if ratio > factor else "better" if ratio < 1 / factor else "unchanged"
    return Row(name, unit, base, head, ratio, None, None, state)


# ------------------------------------------------------------------ asv's results


@dataclass(frozen=True)
class Measured:
    """One benchmark with its parameters on one commit; None: it failed, NaN: it was skipped."""

    kind: str
    unit: str
    value: float | None
    samples: Sequence[float] | None


def measurements(results: Results, benchmarks: Benchmarks) -> dict[str, Measured]:
    """Return what was measured on one commit, by name with parameters, of the selected benchmarks.

    asv keeps what earlier runs measured with other parameters next to it; that is of other rounds, and left out.
    """
    found = {}
    for name, benchmark in benchmarks.items():
        parameters = list(itertools.product(*benchmark["params"]))
        if name not in results.get_all_result_keys():
            continue
        values = results.get_result_value(name, benchmark["params"])
        samples = results.get_result_samples(name, benchmark["params"]) or [None] * len(values)
        selected = benchmarks.benchmark_selection[name]
        for index, (chosen, value, sample) in enumerate(zip(parameters, values, samples, strict=True)):
            if selected is not None and index not in selected:
                continue
            title = f"{name}({', '.join(chosen)})" if chosen else name
            found[title] = Measured(benchmark["type"], benchmark["unit"], value, sample)
    return found


def in_rounds(samples: Sequence[float] | None, rounds: int) -> list[Sequence[float]] | None:
    """Cut samples into rounds; None if a round is missing, as after a crash: asv appends rounds in their order."""
    if samples is None or len(samples) != rounds * SAMPLES_PER_ROUND:
        return None
    return [samples[start : start + SAMPLES_PER_ROUND] for start in range(0, len(samples), SAMPLES_PER_ROUND)]


def is_missing(value: float | None) -> bool:
    """Whether a benchmark failed or was skipped."""
    return value is None or math.isnan(value)


def _value(measured: Measured | None) -> float | None:
    return None if measured is None else measured.value


def compare(
    base: Mapping[str, Measured],
    head: Mapping[str, Measured],
    *,
    rounds: int,
    factor: float,
    alpha: float,
) -> list[Row]:
    """Decide on every benchmark that ran on a commit; skipped on both are left out."""
    rows: list[Row] = []
    present = [
        name
        for name in dict.fromkeys([*base, *head])
        if not (name in base and name in head and is_missing(base[name].value) and is_missing(head[name].value))
    ]
    timed = sum(head[name].kind == "time" for name in present if name in head and name in base)
    for name in present:
        before, after = base.get(name), head.get(name)
        known = before or after
        assert known is not None
        if before is None or after is None or is_missing(before.value) or is_missing(after.value):
            state: State = "not comparable"
            if after is not None and before is not None and not is_missing(before.value):
                state = "failed on head" if after.value is None else "skipped on head"
            rows.append(Row(name, known.unit, _value(before), _value(after), None, None, None, state))
        elif after.kind == "time":
            one, other = in_rounds(before.samples, rounds), in_rounds(after.samples, rounds)
            if one is None or other is None:
                rows.append(Row(name, known.unit, before.value, after.value, None, None, None, "incomplete"))
            else:
                rows.append(timed_row(name, one, other, factor=factor, alpha=alpha / timed))
        else:
            judged = known.kind == "peakmemory" or known.unit not in ("ratio", "seconds")
            assert before.value is not None
            assert after.value is not None
            rows.append(single_row(name, known.unit, before.value, after.value, factor=factor, judged=judged))
    order = (*BAD, "incomplete", "skipped on head", "not comparable", "unchanged", "not judged", "faster", "better")
    return sorted(rows, key=lambda row: (order.index(row.state), -(row.ratio or 0.0)))


# ------------------------------------------------------------------ the command


class Failure(Exception):
    """A reason to stop, with the exit code."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


def commit_of(name: str) -> str:
    """Return the full hash of a commit."""
    found = subprocess.run(
        ["git", "rev-parse", "--verify", "--quiet", f"{name}^{{commit}}"], capture_output=True, text=True
    )
    if found.returncode:
        raise Failure(2, f"git knows no commit {name!r}; give a branch, a tag or a hash")
    return found.stdout.strip()


def selected(config: Config, patterns: Sequence[str]) -> Benchmarks:
    """Return the benchmarks that match a pattern, with how many of their parameters do."""
    asv("run", "--python=same", "--bench", "just-discover", "--dry-run", quiet=True)
    benchmarks = Benchmarks.load(config, regex=list(patterns))
    if not benchmarks:
        raise Failure(2, f"no benchmark matches {', '.join(patterns)}; `asv check` and docs/benchmarks.md list them")
    return benchmarks


def asv(*arguments: str, quiet: bool = False, clock: str = "wall") -> int:
    """Run asv; its progress goes to standard error."""
    environment = {
        key: value for key, value in os.environ.items() if key != "PYTHONPATH"
    }  # the installed commit counts
    environment["LMC_VERIFY_BENCH_CLOCK"] = clock
    done = subprocess.run(
        [sys.executable, "-m", "asv", *arguments],
        env=environment,
        stdout=subprocess.PIPE if quiet else sys.stderr,
        stderr=subprocess.STDOUT if quiet else None,
        text=True,
    )
    if quiet and done.returncode:
        raise Failure(5, f"asv {' '.join(arguments)} failed:\n{done.stdout}")
    return done.returncode


def measure(commits: Sequence[str], arguments: argparse.Namespace, rounds: int) -> None:
    """Let asv run both commits in interleaved rounds; failures of benchmarks are found in the results."""
    with tempfile.TemporaryDirectory() as folder:
        hashes = Path(folder) / "commits"
        hashes.write_text("".join(f"{commit}\n" for commit in commits))
        command = ["run", f"HASHFILE:{hashes}", "--environment", f"virtualenv:{arguments.python}"]
        command += ["--interleave-rounds", "--record-samples", "--show-stderr"]
        for pattern in arguments.bench:
            command += ["--bench", pattern]
        for key, value in (("rounds", rounds), ("repeat", SAMPLES_PER_ROUND), ("warmup_time", 0)):
            command += ["--attribute", f"{key}={value}"]
        code = asv(*command, clock=arguments.clock)
    if code not in (0, 2):  # 2: a benchmark failed
        raise Failure(5, f"asv ended with {code}; its output above says why")


def load(config: Config, commit: str, environment: str, machine: str) -> Results:
    """Load what asv recorded for one commit."""
    path = Path(config.results_dir) / get_filename(machine, commit, environment)
    try:
        return Results.load(str(path), machine)
    except (UserError, OSError) as error:
        raise Failure(5, f"asv left no results of {commit[:8]} in {path}: {error}") from error


def machine_name() -> str:
    """Return the name that asv gives to this machine."""
    from asv.machine import Machine

    return str(Machine.load(interactive=False).machine)


def show(rows: Iterable[Row], base: str, head: str) -> None:
    """Print the table, worst first."""

    def value(row: Row, number: float | None) -> str:
        return "failed" if number is None else "skipped" if math.isnan(number) else human_value(number, row.unit)

    def interval(row: Row) -> str:
        return "" if row.low is None or row.high is None else f"[{row.low:.3f}, {row.high:.3f}]"

    print_table(
        ["state", f"base {base}", f"head {head}", "ratio", "interval", "benchmark"],
        [
            [
                row.state,
                value(row, row.base),
                value(row, row.head),
                "" if row.ratio is None else f"{row.ratio:.3f}",
                interval(row),
                row.name,
            ]
            for row in rows
        ],
        out_console(),
    )


def run(arguments: argparse.Namespace) -> int:
    """Compare, print, and return the exit code."""
    base, head = commit_of(arguments.base), commit_of(arguments.head)
    if base == head:
        raise Failure(2, f"base and head are the same commit, {base[:8]}; there is nothing to compare")
    config = Config.load("asv.conf.json")
    asv("machine", "--yes", quiet=True)
    chosen = selected(config, arguments.bench)
    timed = sum(len(chosen.benchmark_selection[name] or [0]) for name, item in chosen.items() if item["type"] == "time")
    rounds = arguments.rounds or rounds_needed(timed, arguments.alpha)
    print(
        f"{timed} timed benchmarks in {rounds} rounds of {SAMPLES_PER_ROUND} samples; slower: a median ratio above "
        f"{arguments.factor:g}, at a level of {arguments.alpha:g} for all together",
        file=sys.stderr,
    )
    measure([head, base], arguments, rounds)
    environment, machine = f"virtualenv-py{arguments.python}", machine_name()
    rows = compare(
        *(measurements(load(config, commit, environment, machine), chosen) for commit in (base, head)),
        rounds=rounds,
        factor=arguments.factor,
        alpha=arguments.alpha,
    )
    if arguments.json:
        print(json.dumps([vars(row) for row in rows], indent=1, default=str))
    else:
        show(rows, base[:8], head[:8])
    bad = [row for row in rows if row.state in BAD]
    if bad:
        for row in bad:
            how = "fails on head" if row.ratio is None else f"is {row.ratio:.2f} times the base"
            print(f"REGRESSION: {row.name} {how}", file=sys.stderr)
        return 1
    if any(row.state == "incomplete" for row in rows):
        raise Failure(5, "rounds of some benchmarks are missing, see the table: nothing is said about them; run again")
    lost = [row.name for row in rows if row.state == "skipped on head"]
    if lost:  # a number that is not finite looks the same
        raise Failure(5, f"measured on the base and not on the head: {', '.join(lost)}; nothing is said about them")
    if not any(row.ratio is not None for row in rows):
        raise Failure(6, "nothing could be compared: every selected benchmark was skipped or failed on a commit")
    print(f"no regression above a factor of {arguments.factor:g}", file=sys.stderr)
    return 0


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the arguments."""
    parser = argparse.ArgumentParser(prog="bench_compare", description=__doc__.partition("\n")[0])
    parser.add_argument("base", help="commit to compare with")
    parser.add_argument("head", help="commit to judge")
    parser.add_argument("--factor", type=float, default=FACTOR, help=f"ratio that is still no change ({FACTOR})")
    parser.add_argument(
        "--alpha", type=float, default=ALPHA, help=f"probability of any false alarm among timed benchmarks ({ALPHA})"
    )
    parser.add_argument("--rounds", type=int, help="rounds (default: what alpha needs for the benchmarks)")
    parser.add_argument(
        "--bench", action="append", help="pattern of benchmarks with parameters, repeatable (default: on digits)"
    )
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    parser.add_argument("--python", default=python, help=f"Python of asv's environment ({python})")
    parser.add_argument(
        "--clock", choices=("wall", "cpu"), default="wall", help="cpu: processor time, for busy machines (wall)"
    )
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    arguments = parser.parse_args(words)
    if not arguments.factor >= 1:
        parser.error(f"--factor is {arguments.factor}, it must be at least 1")
    if not 0 < arguments.alpha < 0.5:
        parser.error(f"--alpha is {arguments.alpha}, it must lie between 0 and 0.5")
    if arguments.rounds is not None and arguments.rounds < 1:
        parser.error(f"--rounds is {arguments.rounds}, it must be at least 1")
    arguments.bench = arguments.bench or list(DEFAULT_BENCHMARKS)
    return arguments


def main() -> int:
    """Run the command."""
    try:
        return run(parse())
    except Failure as failure:
        print(f"bench_compare: {failure}", file=sys.stderr)
        return failure.code


if __name__ == "__main__":
    sys.exit(main())
