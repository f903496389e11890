"""Repeat the statistical part of a suite with fresh draws on sound estimators, and count false alarms.

A trial is repeated if the suite expects SUPPORTED of it, so that REFUTED is a false alarm. Every trial gets a level at
which false alarms would be seen: the suite's own, 2.6e-8 a trial, shows none in a lifetime, and takes eight times as
many draws. A sound trial is refuted with at most the probability that its level states, so that the number of its false
alarms has at most a binomial distribution: a number that this allows with a probability below 1e-6 makes the program
fail, and so does a crash. A trial that was refuted is asked again, with the same draws, at the suite's own level: an
alarm there fails, too. Where an estimator is exactly unbiased the expected e-value of a repetition is at most 1; how
large they became is printed next to the outcomes.

Each repetition is written to a file when it is done, and those of the same code and suite that the file has are not
made again: the program can be stopped, killed, and started once more.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import signal
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from scipy.stats import binom

from lmc_verify.cases.workspace import Workspace
from lmc_verify.claims import Outcome, find_claim
from lmc_verify.provenance import code_fingerprint
from lmc_verify.runs.execution import workspace_of_process
from lmc_verify.runs.planned import Planned, run_planned
from lmc_verify.runs.suite import load_suite
from lmc_verify.workers.pool import Pool, Task

TEST_ALPHA = 0.2
"""Level of tests."""

RATE_ALPHA = 0.4
"""Level of rates: three or four seeds, the fewest whose interval is not the whole line."""

MOST_STEPS = 3_200
"""Longest training run of a rate: what the suite has beyond would take four fifths of the time."""

CHANCE = 1e-6
"""Probability with which the program fails although every level holds; the trials share it."""


class Repeated(NamedTuple):
    """A trial at the level at which it is repeated, and at the suite's own."""

    raised: Planned
    own: Planned


def repeated(suite: str, replicate: int) -> list[Repeated]:
    """Return the statistical trials of a suite on sound estimators, for one repetition."""
    chosen = []
    for trial in load_suite(suite).plan(replicate=replicate):
        if not trial.statistical or trial.optional or trial.expected is not Outcome.SUPPORTED:
            continue
        rate, settings = find_claim(trial.claim).tier == "rate", trial.settings
        sampling = settings.sampling.model_copy(update={"alpha": RATE_ALPHA if rate else TEST_ALPHA})
        training = settings.training
        if rate:
            lengths = tuple(length for length in training.lengths if length <= MOST_STEPS)
            training = training.model_copy(update={"repeats": 1, "lengths": lengths})
        raised = replace(trial, settings=settings.model_copy(update={"sampling": sampling, "training": training}))
        chosen.append(Repeated(raised, trial))
    return chosen


class Found(NamedTuple):
    """What a trial found in one repetition."""

    label: str
    level: float
    outcome: str
    log_e_value: float | None
    summary: str
    own_level: float
    own_outcome: str | None
    """What the suite's own level gives where the raised one refutes; None where it was not asked."""


def run(suite: str, replicate: int) -> list[tuple[Any, ...]]:
    """Run one repetition; return what every trial found, as tuples: a worker does not import this file."""
    workspace, out = workspace_of_process(Workspace()), []
    for raised, own in repeated(suite, replicate):
        verdict, asked = run_planned(raised, workspace).verdict, None
        if verdict.outcome is Outcome.REFUTED:
            asked = run_planned(own, workspace).verdict.outcome.value
        level, own_level = (item.settings.sampling.alpha for item in (raised, own))
        out.append(
            (_name(raised), level, verdict.outcome.value, verdict.log_e_value, verdict.summary, own_level, asked)
        )
    return out


def _name(planned: Planned) -> str:
    histories = planned.settings.histories
    told = histories == "exact" or "histories=" in planned.apart
    return planned.label if told else f"{planned.label} histories={histories}"


@dataclass
class Tally:
    """What the repetitions so far have found."""

    repetitions: int = 0
    failures: int = 0
    at_own_level: int = 0
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    levels: dict[str, float] = field(default_factory=dict)
    evidence: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def add(self, replicate: int, found: list[Found]) -> None:
        """Count the verdicts of a repetition, and print what is an alarm."""
        for label, level, outcome, log_e_value, summary, own_level, own_outcome in found:
            self.levels[label] = level
            self.counts[label, outcome] += 1
            if log_e_value is not None:
                self.evidence[label].append(log_e_value / math.log(10))
            if outcome == Outcome.ERROR.value:
                self.failures += 1
            if outcome in (Outcome.REFUTED.value, Outcome.ERROR.value):
                print(f"ALARM in repetition {replicate}: {label}: {outcome}: {summary}")
            if own_outcome is not None:
                print(f"  at the suite's own level, {own_level:.2g}: {own_outcome}")
                self.at_own_level += own_outcome in (Outcome.REFUTED.value, Outcome.ERROR.value)
        self._count(replicate)

    def fail(self, replicate: int, why: str) -> None:
        """Count a repetition that has no verdicts as an alarm, and print why."""
        self.failures += 1
        print(f"ALARM in repetition {replicate}: no verdicts: {why}")
        self._count(replicate)

    @property
    def alarms(self) -> int:
        """Number of false refutations and of failures."""
        return self.failures + sum(self._refuted(label) for label in self.levels)

    @property
    def beyond(self) -> list[str]:
        """One line for each trial that was refuted more often than its level explains."""
        lines = []
        for label, level in sorted(self.levels.items()):
            repeats = sum(number for (name, _), number in self.counts.items() if name == label)
            refuted = self._refuted(label)
            chance = float(binom.sf(refuted - 1, repeats, level))
            if chance < CHANCE / len(self.levels):
                lines.append(
                    f"TOO MANY: {label}: {refuted} of {repeats} refuted; level {level:g} allows as many with "
                    f"probability {chance:.1g}"
                )
        return lines

    def _refuted(self, label: str) -> int:
        return self.counts[label, Outcome.REFUTED.value]

    def _count(self, replicate: int) -> None:
        self.repetitions += 1
        print(f"repetition {replicate} done; {self.repetitions} in all, {self.alarms} alarms", flush=True)

    def __str__(self) -> str:
        """Return the table of outcomes."""
        lines = []
        for (label, outcome), number in sorted(self.counts.items()):
            largest = f", largest e-value 10^{max(self.evidence[label]):.1f}" if label in self.evidence else ""
            lines.append(f"{number:6,} {outcome:13} {label}, level {self.levels[label]:g}{largest}")
        total = sum(self.counts.values())
        lines.append(
            f"{self.alarms} false alarms in {total:,} verdicts of {self.repetitions} repetitions, "
            f"{self.at_own_level + self.failures} at the suite's own levels"
        )
        return "\n".join([*lines, *self.beyond])


class Finished:
    """The file of repetitions that are done, one line of JSON each."""

    def __init__(self, path: Path, suite: str) -> None:
        self._path = path
        content = Path(suite).read_bytes() if Path(suite).is_file() else b""
        script = Path(__file__).read_bytes()
        self.of = f"{code_fingerprint()}, {hashlib.blake2b(content + script, digest_size=6).hexdigest()}"

    def read(self) -> Iterator[tuple[int, list[Found]]]:
        """Yield number and verdicts of those that this code has made of this suite."""
        if not self._path.exists():
            return
        for line in self._path.read_text(encoding="utf-8").splitlines():
            try:
                entry = json.loads(line)
                repetition, found = int(entry["repetition"]), [Found(*item) for item in entry["found"]]
            except (ValueError, TypeError, LookupError):  # the process was killed as it wrote
                continue
            if entry.get("of") == self.of:
                yield repetition, found

    def add(self, replicate: int, found: list[Found]) -> None:
        """Write down what a repetition found."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.write("\n" + json.dumps({"of": self.of, "repetition": replicate, "found": found}))


def main() -> int:
    """Print a table of outcomes; return 1 if false alarms are more than the levels explain, or a check crashed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", default=str(Path(__file__).parent / "theorem-check.toml"))
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--first", type=int, default=1, help="number of the first repetition")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("reports/out/false-alarms.jsonl"), help="what is done")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    tally, finished = Tally(), Finished(options.out, options.suite)
    asked = range(options.first, options.first + options.runs)
    done_before = {replicate: found for replicate, found in finished.read() if replicate in asked}
    for replicate, found in done_before.items():
        tally.add(replicate, found)
    replicates = [replicate for replicate in asked if replicate not in done_before]
    tasks = [Task(f"repetition {replicate}", run, (options.suite, replicate)) for replicate in replicates]
    try:
        with Pool(options.jobs) as pool:
            for done in pool.run(tasks):
                replicate = replicates[done.index]
                if done.failure:
                    tally.fail(replicate, done.failure)
                else:
                    found = [Found(*item) for item in done.result]
                    finished.add(replicate, found)
                    tally.add(replicate, found)
    finally:  # what an interrupted run has found is not lost
        print(tally, flush=True)
    return 1 if tally.failures or tally.at_own_level or tally.beyond else 0


if __name__ == "__main__":
    sys.exit(main())
