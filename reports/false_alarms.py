"""Repeat the statistical part of a suite with fresh draws on sound estimators, and count false alarms.

A trial is repeated if the suite expects SUPPORTED of it, so that REFUTED is a false alarm. Tests keep the error level
that the suite gives them. Rates, which take many training runs at that level, get a far larger one: fewer seeds make
narrower intervals, so an alarm is more likely here than in the suite. Where an estimator is exactly unbiased the
expected e-value of a repetition is at most 1; how large they became is printed beside the outcomes.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

from joblib import Parallel, delayed

from lmc_verify.case import Workspace
from lmc_verify.claims import Outcome, Verdict, find_claim
from lmc_verify.execution import run_planned
from lmc_verify.suite import Planned, load_suite

RATE_ALPHA = 0.2


def repeated(suite: str, replicate: int) -> list[Planned]:
    """Return the statistical trials of a suite on sound estimators, for one repetition."""
    chosen = []
    for trial in load_suite(suite).plan(replicate=replicate):
        if not trial.statistical or trial.optional or trial.expected is not Outcome.SUPPORTED:
            continue
        settings = trial.settings
        if find_claim(trial.claim).tier == "rate":
            settings = settings.model_copy(
                update={
                    "sampling": settings.sampling.model_copy(update={"alpha": RATE_ALPHA}),
                    "training": settings.training.model_copy(update={"repeats": 1}),
                }
            )
        chosen.append(replace(trial, settings=settings))
    return chosen


def run(suite: str, replicate: int) -> list[tuple[str, Verdict]]:
    """Run one repetition; return label and verdict of every trial."""
    workspace = Workspace()
    return [(_name(planned), run_planned(planned, workspace).verdict) for planned in repeated(suite, replicate)]


def _name(planned: Planned) -> str:
    histories = planned.settings.histories
    return planned.label if histories == "exact" else f"{planned.label} histories={histories}"


def main() -> int:
    """Print a table of outcomes; return 1 if a sound estimator was refuted or a check crashed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", default=str(Path(__file__).parent / "theorem-check.toml"))
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    counts: Counter[tuple[str, str]] = Counter()
    evidence: defaultdict[str, list[float]] = defaultdict(list)
    alarms = 0
    work = (delayed(run)(options.suite, replicate) for replicate in range(1, options.runs + 1))
    for done, found in enumerate(Parallel(n_jobs=options.jobs, return_as="generator")(work), start=1):
        for label, verdict in found:
            counts[label, verdict.outcome.value] += 1
            if verdict.log_e_value is not None:
                evidence[label].append(verdict.log_e_value / math.log(10))
            if verdict.outcome in (Outcome.REFUTED, Outcome.ERROR):
                alarms += 1
                print(f"ALARM in repetition {done}: {label}: {verdict.outcome.value}: {verdict.summary}", flush=True)
        if done % 20 == 0:
            print(f"{done} repetitions, {alarms} alarms", flush=True)
    for (label, outcome), number in sorted(counts.items()):
        largest = f", largest e-value 10^{max(evidence[label]):.1f}" if evidence[label] else ""
        print(f"{number:6,} {outcome:13} {label}{largest}")
    print(f"{alarms} false alarms in {sum(counts.values()):,} verdicts of {options.runs} repetitions")
    return 1 if alarms else 0


if __name__ == "__main__":
    sys.exit(main())
