"""What it costs that each trial runs in a worker process: a suite of short trials in a worker, and in this process.

    python tools/isolation.py [--trials 200] [--rounds 3]
    python tools/isolation.py --plan 100000

The two take turns, so that other programs slow both down alike. The worker's start, which a run pays once, is a row of
its own: it is the import of the package. ``--plan`` prints what planning so many trials takes, which the process that
records does before anything runs.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from lmc_verify.cases.workspace import Workspace
from lmc_verify.runs import Records, Suite, run_suite
from lmc_verify.workers.pool import Pool

BAR = 1.3
"""What a suite in a worker may take, over what it takes in this process."""


def suite_of(trials: int) -> Suite:
    """Return a suite of so many trials of about ten milliseconds."""
    check = {
        "claim": "theorem-1/unbiased",
        "dataset": "karate",
        "estimator": "backward-sgd",
        "model": {"layers": 2, "width": 4},
        "design": {"parts": 3, "per_batch": 1},
        "seed": list(range(trials)),
        "expect": "EXACT",
    }
    return Suite.model_validate({"name": "isolation", "title": "Isolation", "controls": False, "check": [check]})


def timed(suite: Suite, pool: Pool | None) -> float:
    """Return the seconds of one run with records of its own."""
    with tempfile.TemporaryDirectory() as folder, Records.create_or_open(Path(folder) / "records.sqlite") as records:
        start = time.perf_counter()
        result = run_suite(suite, records, Workspace(), engine=pool)
        seconds = time.perf_counter() - start
    assert result.exit_code == 0, f"exit code {result.exit_code}"
    return seconds


def planning(trials: int) -> str:
    """Return the CPU seconds and the memory of planning a suite of so many trials, in words."""
    import resource

    suite_of(1).plan()  # imports
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    planned = suite_of(trials).plan()
    seconds, after = time.process_time() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return f"planning {len(planned):,} checks: {seconds:.1f} s, {(after - before) / 1024:.0f} MiB"


def main() -> None:
    """Print the bar."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--plan", type=int, metavar="N", help="plan a suite of N trials, and run nothing")
    options = parser.parse_args()
    if options.plan is not None:
        print(planning(options.plan))
        return
    suite, few = suite_of(options.trials), suite_of(1)
    here, there = [], []
    with Pool(1) as pool:
        timed(few, None)
        start = timed(few, pool)
        for _ in range(options.rounds):
            here.append(timed(suite, None))
            there.append(timed(suite, pool))
    one, other = statistics.median(here), statistics.median(there)
    print(f"{options.trials} trials, median of {options.rounds} rounds\n")
    print("| where | seconds | ms per trial |\n| :-- | --: | --: |")
    print(f"| in this process | {one:.2f} | {one / options.trials * 1e3:.1f} |")
    print(f"| in a worker | {other:.2f} | {other / options.trials * 1e3:.1f} |")
    print(f"| start of the worker, with one trial | {start:.2f} | |")
    print(f"\nin a worker / in this process: {other / one:.2f} (bar: {BAR})")


if __name__ == "__main__":
    main()
