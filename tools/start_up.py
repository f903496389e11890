"""How much CPU time commands take until they are done, which for most of them is the time that imports take.

    python tools/start_up.py [--runs 5] [--before CHECKOUT]

Every command runs in a new interpreter, with one thread. With ``--before``, a checkout of another version takes turns
with this one, so that both meet the same machine, and the ratio is printed. Exit code 1: a command is above its limit.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Command:
    """What is run: arguments of Python, the exit code that it should have, and the most CPU seconds."""

    label: str
    arguments: tuple[str, ...]
    code: int = 0
    limit: float | None = None


def lmc(line: str, code: int = 0, limit: float = 0.5) -> Command:
    """Return a command of ``lmc-verify``."""
    return Command(line, ("-m", "lmc_verify.cli", *line.split()), code, limit)


def completing(line: str, limit: float = 0.5) -> Command:
    """Return what bash runs when the tabulator key is pressed at the end of a line."""
    words = line.split()
    variables = {"_LMC_VERIFY_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    program = f"import os; os.environ.update({variables!r}); from lmc_verify.cli import main; main()"
    return Command(f"{line}<Tab>", ("-c", program), 0, limit)


WORKER = "from lmc_verify.workers.worker import start; import sys; sys.stdin.close()"

COMMANDS = (
    Command("import lmc_verify", ("-c", "import lmc_verify")),
    Command("a worker process, without the modules of its tasks", ("-c", WORKER)),
    lmc("--help"),
    lmc("check --help"),
    lmc("list claims"),
    lmc("list datasets"),
    lmc("explain theorem-1/unbiased"),
    lmc("check theorem-1/unbiasd", code=2),
    lmc("check theorem-1/unbiased --estimator gass", code=2),
    lmc("check theorem-1/unbiased --estimator gas --dataset karate", limit=3.5),
    completing("lmc-verify check theorem"),
    completing("lmc-verify check theorem-1/unbiased --dataset c"),
    completing("lmc-verify train --set estimator.b"),
    Command("import torch", ("-c", "import torch")),
    Command("import torch_geometric", ("-c", "import torch_geometric")),
)


def cpu_seconds(command: Command, checkout: Path) -> float:
    """Run a command once and return its CPU time, user and system, children included."""
    environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    program = [sys.executable, *command.arguments]
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    with subprocess.Popen(program, cwd=checkout, env=environment, **pipes) as child:
        assert child.stderr is not None
        words = child.stderr.read()
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode != command.code:
        raise SystemExit(f"{command.label}: exit code {child.returncode}, expected {command.code}\n{words.decode()}")
    return usage.ru_utime + usage.ru_stime


def measured(command: Command, checkouts: Sequence[Path], runs: int) -> list[float]:
    """Return the median of each checkout; they take turns."""
    times: list[list[float]] = [[] for _ in checkouts]
    for _ in range(runs):
        for place, checkout in enumerate(checkouts):
            times[place].append(cpu_seconds(command, checkout))
    return [statistics.median(one) for one in times]


def main() -> None:
    """Print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=5, help="how often each command runs")
    parser.add_argument("--before", type=Path, help="a checkout to compare with")
    options = parser.parse_args()
    checkouts = [HERE] if options.before is None else [options.before.resolve(), HERE]
    late = []
    print("| CPU seconds, median of", options.runs, "| before | after | ratio |" if options.before else "| |")
    print("|---|" + "---:|" * (3 if options.before else 1))
    for command in COMMANDS:
        times = measured(command, checkouts, options.runs)
        cells = [f"{value:.2f}" for value in times]
        ratio = [f"{times[0] / times[1]:.1f}"] if options.before else []
        print("| " + " | ".join([f"`{command.label}`", *cells, *ratio]) + " |", flush=True)
        if command.limit is not None and times[-1] > command.limit:
            late.append(f"{command.label}: {times[-1]:.2f} s, at most {command.limit:g} s")
    if late:
        raise SystemExit("too slow: " + "; ".join(late))


if __name__ == "__main__":
    main()
