"""What goes wrong with a run, on purpose: every fault leaves nothing lost, nothing doubled, nothing wrong, no orphan.

    python tools/faults.py [--kills N] [--flips N] [--only NAME ...]

Each fault happens to a run of a small suite, in a process of its own. After it, and again after the run was resumed,
the records are compared with those of a run that nothing happened to: every verdict that is on record is the same, no
run holds a result twice, what is missing is said and is an error of the report, and ten seconds later no process of the
run is left. Prints a row for each fault, and exits with 1 if one did damage.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from typer.testing import CliRunner

import lmc_verify as lv
from lmc_verify.cli.app import app
from lmc_verify.errors import RecordsError
from lmc_verify.runs import Records, Trial
from lmc_verify.training.checkpoint import read_checkpoint

GRACE = 10.0
"""Seconds that processes have to end."""
SEED = 20261129

SUITE = """
name = "faults"
title = "Faults"
controls = ["sound-lmc"]

[[check]]
claim = "theorem-1/unbiased"
dataset = "karate"
estimator = ["backward-sgd", "lmc", "gas"]
model = { layers = 2, width = 4 }
design = { parts = 3, per_batch = 1 }
seed = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
expect = { backward-sgd = "EXACT", lmc = "EXACT", gas = "REFUTED" }
"""
AUDIT = """
[[audit]]
function = "loops.py:{name}"
expect = "EXACT"
"""
LOOPS = """
import os, signal, sys, time
import numpy

def segfaults(): os.kill(os.getpid(), signal.SIGSEGV)
def hangs(): time.sleep(600)
def exits(): os._exit(0)
def leaves(): sys.exit(0)
def waits(): open("waits.pid", "w").write(str(os.getpid())); time.sleep(600)
def eats():
    kept = []
    while True:
        kept.append(numpy.empty(2**28))
"""


@dataclass
class Place:
    """A folder in which runs of one suite are made."""

    folder: Path
    marker: str

    def start(self, *options: str, limits: Callable[[], None] | None = None) -> subprocess.Popen[str]:
        """Start a run of the suite."""
        return subprocess.Popen(
            [sys.executable, "-m", "lmc_verify.cli", "run", "suite.toml", "--out", "out", "--jobs", "2", *options],
            cwd=self.folder,
            env=os.environ | {"LMC_VERIFY_FAULT": self.marker, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=limits,
        )

    def run(self, *options: str, limits: Callable[[], None] | None = None) -> int:
        """Make a run and return its exit code."""
        process = self.start(*options, limits=limits)
        process.communicate()
        return process.returncode

    def report(self) -> tuple[int, dict[str, object]]:
        """Return the exit code of the report of the latest run, and what it says."""
        done = CliRunner().invoke(app, ["report", str(self.folder / "out"), "--json"])
        return done.exit_code, json.loads(done.stdout)

    def records(self) -> Records:
        """Open the records."""
        return Records.open(self.folder / "out" / "records.sqlite")

    def recorded(self) -> int:
        """Return how many trials are on record."""
        with suppress(Exception), self.records() as records:
            return sum(len(records.trials(run.id)) for run in records.runs())
        return 0

    def processes(self) -> list[int]:
        """Return the processes of the runs, which carry the folder's mark in their environment."""
        found = []
        for entry in Path("/proc").iterdir():
            with suppress(OSError):
                if entry.name.isdigit() and f"LMC_VERIFY_FAULT={self.marker}".encode() in (
                    entry / "environ"
                ).read_bytes().split(b"\0"):
                    found.append(int(entry.name))
        return found

    def workers(self, run: subprocess.Popen[str]) -> list[int]:
        """Return the workers of a run."""
        return [pid for pid in self.processes() if pid != run.pid]


Fault = Callable[[Place], str]
"""Does something to a run, and returns what happened in words; raises AssertionError if it was not as it should be."""


def until(condition: Callable[[], object], within: float = 120.0) -> None:
    """Wait for a condition."""
    end = time.monotonic() + within
    while not condition():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.05)


def audited(place: Place, *names: str) -> None:
    """Add trials that misbehave to the suite."""
    with (place.folder / "suite.toml").open("a") as stream:
        stream.writelines(AUDIT.format(name=name) for name in names)


# --- the faults ---


def killed_at_random(place: Place, *, seed: int) -> str:
    """Kill the run at a random time."""
    run = place.start()
    time.sleep(random.Random(seed).uniform(0.5, 8.0))
    run.kill()
    run.communicate()
    return f"killed with {place.recorded()} of 31 trials"


def terminated(place: Place) -> str:
    """Terminate the run amid its trials."""
    audited(place, "waits")
    run = place.start()
    until((place.folder / "waits.pid").exists)
    run.terminate()
    run.communicate()
    assert run.returncode == 130, f"exit code {run.returncode}"
    code, said = place.report()
    assert (code, said["state"]) == (130, "interrupted"), (code, said["state"])
    return f"exit code 130, {place.recorded()} of 32 trials"


def worker_killed(place: Place) -> str:
    """Kill the worker of a trial."""
    audited(place, "waits")
    run = place.start()
    until((place.folder / "waits.pid").exists)
    time.sleep(0.2)
    os.kill(int((place.folder / "waits.pid").read_text()), signal.SIGKILL)
    run.communicate()
    return crashed(place, run.returncode, "SIGKILL")


def misbehaving(place: Place, *, name: str, words: str, limit: int = 0) -> str:
    """Run a trial that crashes, hangs, leaves or eats memory."""
    audited(place, name)
    limits = None if not limit else partial(resource.setrlimit, resource.RLIMIT_AS, (limit, limit))
    return crashed(place, place.run("--timeout", "20", limits=limits), words)


def crashed(place: Place, code: int, words: str) -> str:
    """Return the error of the one trial that misbehaved, once all others have their verdicts."""
    assert code == 5, f"exit code {code}"
    with place.records() as records:
        (latest,) = records.runs()
        trials = records.trials(latest.id)
    assert len(trials) == 32, f"{len(trials)} trials"
    (wrong,) = [trial for trial in trials if trial.crashed]
    assert words in wrong.verdict.summary, wrong.verdict.summary
    return wrong.verdict.summary.partition(":")[0].partition(";")[0]


def disk_full(place: Place) -> str:
    """Let no file grow beyond a size that the records reach amid the run."""
    size = 150_000
    code = place.run(limits=partial(resource.setrlimit, resource.RLIMIT_FSIZE, (size, size)))
    assert code == 5, f"exit code {code}"
    return f"exit code 5, {place.recorded()} of 31 trials"


def read_only(place: Place) -> str:
    """Run into a folder that cannot be written."""
    out = place.folder / "out"
    out.symlink_to("/proc")  # not even root may write there
    code = place.run()
    out.unlink()
    assert code == 5, f"exit code {code}"
    return "exit code 5, nothing was run"


def folder_gone(place: Place) -> str:
    """Remove the output folder amid the run."""
    audited(place, "waits")
    run = place.start("--timeout", "3")
    until((place.folder / "waits.pid").exists)
    shutil.rmtree(place.folder / "out")
    run.communicate()
    assert run.returncode == 5, f"exit code {run.returncode}"
    return "exit code 5"


def two_on_one_file(place: Place) -> str:
    """Make two runs into one records file at a time."""
    runs = [place.start(), place.start()]
    for run in runs:
        run.communicate()
    assert [run.returncode for run in runs] == [0, 0], [run.returncode for run in runs]
    with place.records() as records:
        sizes = [len(records.trials(run.id)) for run in records.runs()]
    assert sizes == [31, 31], sizes
    return "two runs with 31 trials each"


def flipped_records(place: Place, *, flips: int) -> str:
    """Flip bits of the records, one at a time: they are read as they were recorded, or refused as damaged."""
    assert place.run() == 0

    def read() -> object:
        with place.records() as records:
            return [
                (run, records.plan(run.id), [key(trial) for trial in records.trials(run.id)]) for run in records.runs()
            ]

    refused = flipped(place.folder / "out" / "records.sqlite", flips, read, RecordsError)
    return f"{refused} of {flips} refused as damaged, {flips - refused} change nothing that is read"


def flipped_checkpoint(place: Place, *, flips: int) -> str:
    """Flip bits of a checkpoint, one at a time: it is read as it was written, or refused."""
    file = place.folder / "run.safetensors"
    graph = lv.load_graph("karate").double()
    problem = lv.Problem(graph, lv.GCN(graph.num_features, 4, graph.num_outputs, 2, dtype=graph.dtype))
    design = lv.Clusters(lv.make_partition(graph, "contiguous", 3), 1)
    settings = lv.TrainerSettings(steps=3, unit="step", optimiser="adam")
    lv.Trainer(problem, lv.LMC(beta=0.5), design, settings, seed=0).run(checkpoint=file)

    def read() -> object:
        tensors, document = read_checkpoint(file)
        return document, sorted((name, str(value.dtype), value.tolist()) for name, value in tensors.items())

    refused = flipped(file, flips, read, lv.InvalidInputError)
    return f"{refused} of {flips} refused as damaged, {flips - refused} change nothing that is read"


def flipped(file: Path, flips: int, read: Callable[[], object], refusal: type[Exception]) -> int:
    """Flip random bits of a file, one at a time, and return how often reading it was refused."""
    sound, data, generator, refused = repr(read()), file.read_bytes(), random.Random(SEED), 0
    for _ in range(flips):
        place = generator.randrange(8 * len(data))
        changed = bytearray(data)
        changed[place // 8] ^= 1 << place % 8
        file.write_bytes(changed)
        try:
            assert repr(read()) == sound, f"bit {place} of {file.name} changes what is read"
        except refusal:
            refused += 1
    file.write_bytes(data)
    assert refused, f"no flip of {file.name} was refused"
    return refused


def faults(kills: int, flips: int) -> dict[str, tuple[Fault, ...]]:
    """Return the faults by name: to add one, write its function and name it here."""
    return {
        "killed at a random time": tuple(partial(killed_at_random, seed=SEED + number) for number in range(kills)),
        "SIGTERM": (terminated,),
        "worker killed": (worker_killed,),
        "trial segfaults": (partial(misbehaving, name="segfaults", words="SIGSEGV"),),
        "trial hangs": (partial(misbehaving, name="hangs", words="no result within 20 s"),),
        "trial calls os._exit": (partial(misbehaving, name="exits", words="exit status 0"),),
        "trial calls sys.exit": (partial(misbehaving, name="leaves", words="SystemExit"),),
        "trial eats memory": (partial(misbehaving, name="eats", words="MemoryError", limit=12 * 2**30),),
        "disk full": (disk_full,),
        "folder read-only": (read_only,),
        "folder removed": (folder_gone,),
        "two runs, one file": (two_on_one_file,),
        "bits of the records flipped": (partial(flipped_records, flips=flips),),
        "bits of a checkpoint flipped": (partial(flipped_checkpoint, flips=flips),),
    }


# --- what is looked at after each ---


def key(trial: Trial) -> tuple[str, str]:
    """Return what identifies a trial, and its verdict."""
    verdict = trial.verdict
    return trial.key, json.dumps([verdict.outcome.value, verdict.summary, repr(verdict.residual)])


def no_orphan(place: Place) -> None:
    """Look for processes ten seconds after the fault."""
    until(lambda: not place.processes(), GRACE)


def nothing_wrong(place: Place, right: set[tuple[str, str]]) -> None:
    """Compare every verdict on record with that of a run that nothing happened to."""
    with place.records() as records:
        for run in records.runs():
            trials = records.trials(run.id)
            keys = [trial.key for trial in trials]
            assert len(keys) == len(set(keys)), "a result is there twice"
            wrong = {key(trial) for trial in trials if not trial.crashed and trial.verdict.claim != "audit"} - right
            assert not wrong, f"other verdicts: {wrong}"


def nothing_unsaid(place: Place) -> None:
    """Look whether the report says what is missing."""
    with place.records() as records:
        latest = records.latest_run()
        if latest is None:
            return
        missing = len(records.unfinished(latest.id))
        whole = records.state(latest) == "finished"
    code, said = place.report()
    assert len(said["unfinished"]) == missing  # type: ignore[arg-type]
    assert whole == (missing == 0), f"{missing} without a result, and the run is {said['state']}"
    assert missing == 0 or code in (5, 130), f"exit code {code} with {missing} without a result"


def nothing_lost(place: Place, right: set[tuple[str, str]], before: int) -> None:
    """Resume the run: it reuses everything that was on record, and comes to the verdicts of the other run."""
    (place.folder / "suite.toml").write_text(SUITE)
    assert place.run("--resume") == 0
    with place.records() as records:
        latest = records.runs()[-1]
        assert {key(trial) for trial in records.trials(latest.id)} == right
        assert len(records.runs()) == 1 or before == 0 or records.unfinished(latest.id) == []


def made(folder: Path, marker: str) -> Place:
    """Return a new place."""
    folder.mkdir()
    (folder / "suite.toml").write_text(SUITE)
    (folder / "loops.py").write_text(LOOPS)
    return Place(folder, marker)


def examine(fault: Fault, place: Place, right: set[tuple[str, str]]) -> str:
    """Let a fault happen, look at what it left behind, and return what happened."""
    said = fault(place)
    no_orphan(place)
    before = place.recorded()
    if before:
        nothing_wrong(place, right)
        nothing_unsaid(place)
    nothing_lost(place, right, before)
    nothing_wrong(place, right)
    no_orphan(place)
    return said


def main(arguments: Iterable[str] | None = None) -> int:
    """Let every fault happen; return 1 if one did damage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="runs that are killed at a random time")
    parser.add_argument("--flips", type=int, default=300, help="bits that are flipped, of records and of a checkpoint")
    parser.add_argument("--only", nargs="*", default=None, help="names of faults")
    options = parser.parse_args(None if arguments is None else list(arguments))
    os.environ.pop("LMC_VERIFY_IN_PROCESS", None)
    damaged = 0
    print("| fault | times | what happened | lost, doubled, wrong, orphans |\n|:--|--:|:--|:--|", flush=True)
    with tempfile.TemporaryDirectory() as work:
        sound = made(Path(work) / "sound", "sound")
        assert sound.run() == 0
        with sound.records() as records:
            right = {key(trial) for trial in records.trials(1)}
        for name, functions in faults(options.kills, options.flips).items():
            if options.only is not None and name not in options.only:
                continue
            said, problems = [], []
            for number, fault in enumerate(functions):
                place = made(Path(work) / f"{name}-{number}".replace(" ", "-"), f"{name}-{number}")
                try:
                    said.append(examine(fault, place, right))
                except AssertionError as error:
                    problems.append(f"{number}: {error}")
                shutil.rmtree(place.folder)
            damaged += len(problems)
            happened = dict.fromkeys(said) if len(functions) == 1 else [f"{len(said)} as they should be"]
            print(
                f"| {name} | {len(functions)} | {', '.join(happened)} | {'; '.join(problems) or 'none'} |", flush=True
            )
    return 1 if damaged else 0


if __name__ == "__main__":
    sys.exit(main())
