"""Repeat the statistical part of a suite with fresh draws on sound estimators, and count false alarms.

A trial is repeated if the suite expects SUPPORTED of it, so that REFUTED is a false alarm. Tests keep the error level
that the suite gives them. Rates, which take many training runs at that level, get a far larger one: fewer seeds make
narrower intervals, so an alarm is more likely here than in the suite.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

from joblib import Parallel, delayed

from lmc_verify.case import Workspace
from lmc_verify.claims import Outcome, find_claim
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


def run(suite: str, replicate: int) -> list[tuple[str, str, str]]:
    """Run one repetition; return claim, outcome and summary of every trial."""
    workspace = Workspace()
    found = []
    for planned in repeated(suite, replicate):
        verdict = run_planned(planned, workspace).verdict
        found.append((planned.label, verdict.outcome.value, verdict.summary))
    return found


def main() -> int:
    """Print a table of outcomes; return 1 if a sound estimator was refuted or a check crashed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", default=str(Path(__file__).parent / "theorem-check.toml"))
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    counts: Counter[tuple[str, str]] = Counter()
    alarms = 0
    work = (delayed(run)(options.suite, replicate) for replicate in range(1, options.runs + 1))
    for done, found in enumerate(Parallel(n_jobs=options.jobs, return_as="generator")(work), start=1):
        for label, outcome, summary in found:
            counts[label, outcome] += 1
            if outcome in ("REFUTED", "ERROR"):
                alarms += 1
                print(f"ALARM in repetition {done}: {label}: {outcome}: {summary}", flush=True)
        if done % 20 == 0:
            print(f"{done} repetitions, {alarms} alarms", flush=True)
    for (label, outcome), number in sorted(counts.items()):
        print(f"{number:6,} {outcome:13} {label}")
    print(f"{alarms} false alarms in {sum(counts.values()):,} verdicts of {options.runs} repetitions")
    return 1 if alarms else 0


if __name__ == "__main__":
    sys.exit(main())
