"""Repeat the statistical part of a suite with fresh draws on sound estimators, and count false alarms.

A trial is repeated if the suite expects SUPPORTED of it, so that REFUTED is a false alarm. Every trial gets a level at
which false alarms would be seen: the suite's own, 2.6e-8 a trial, shows none in a lifetime, and takes five times as
many draws. A sound trial is refuted with at most the probability that its level states, so that the number of its false
alarms has at most a binomial distribution: a number that this allows with a probability below 1e-6 makes the program
fail, and so does a crash. Where an estimator is exactly unbiased the expected e-value of a repetition is at most 1; how
large they became is printed next to the outcomes.
"""

from __future__ import annotations

import argparse
import math
import signal
import sys
from collections import Counter, defaultdict
from dataclasses import dataclass, field, replace
from pathlib import Path

from scipy.stats import binom

from lmc_verify.cases.workspace import Workspace
from lmc_verify.claims import Outcome, Verdict, find_claim
from lmc_verify.runs.planned import Planned, run_planned
from lmc_verify.runs.suite import load_suite
from lmc_verify.workers.pool import Pool, Task

TEST_ALPHA = 0.05
"""Level of tests."""

RATE_ALPHA = 0.4
"""Level of rates: three or four seeds, the fewest whose interval is not the whole line."""

MOST_STEPS = 3_200
"""Longest training run of a rate: what the suite has beyond would take four fifths of the time."""

CHANCE = 1e-6
"""Probability with which the program fails although every level holds; the trials share it."""


def repeated(suite: str, replicate: int) -> list[Planned]:
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
        chosen.append(replace(trial, settings=settings.model_copy(update={"sampling": sampling, "training": training})))
    return chosen


def run(suite: str, replicate: int) -> list[tuple[str, float, Verdict]]:
    """Run one repetition; return label, level and verdict of every trial."""
    workspace = Workspace()
    return [
        (_name(planned), planned.settings.sampling.alpha, run_planned(planned, workspace).verdict)
        for planned in repeated(suite, replicate)
    ]


def _name(planned: Planned) -> str:
    histories = planned.settings.histories
    return planned.label if histories == "exact" else f"{planned.label} histories={histories}"


@dataclass
class Tally:
    """What the repetitions so far have found."""

    repetitions: int = 0
    failures: int = 0
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    levels: dict[str, float] = field(default_factory=dict)
    evidence: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def add(self, replicate: int, found: list[tuple[str, float, Verdict]]) -> None:
        """Count the verdicts of a repetition, and print what is an alarm."""
        for label, level, verdict in found:
            self.levels[label] = level
            self.counts[label, verdict.outcome.value] += 1
            if verdict.log_e_value is not None:
                self.evidence[label].append(verdict.log_e_value / math.log(10))
            if verdict.outcome is Outcome.ERROR:
                self.failures += 1
            if verdict.outcome in (Outcome.REFUTED, Outcome.ERROR):
                print(f"ALARM in repetition {replicate}: {label}: {verdict.outcome.value}: {verdict.summary}")
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
        lines.append(f"{self.alarms} false alarms in {total:,} verdicts of {self.repetitions} repetitions")
        return "\n".join([*lines, *self.beyond])


def main() -> int:
    """Print a table of outcomes; return 1 if false alarms are more than the levels explain, or a check crashed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", default=str(Path(__file__).parent / "theorem-check.toml"))
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--first", type=int, default=1, help="number of the first repetition, to continue after a stop")
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    tally, replicates = Tally(), range(options.first, options.first + options.runs)
    tasks = [Task(f"repetition {replicate}", run, (options.suite, replicate)) for replicate in replicates]
    try:
        with Pool(options.jobs) as pool:
            for done in pool.run(tasks):
                replicate = replicates[done.index]
                if done.failure:
                    tally.fail(replicate, done.failure)
                else:
                    tally.add(replicate, done.result)
    finally:  # what an interrupted run has found is not lost
        print(tally, flush=True)
    return 1 if tally.failures or tally.beyond else 0


if __name__ == "__main__":
    sys.exit(main())
