"""Mutate valid files and read them again: a loader must answer with the package's own errors, soon, in little memory.

    python tools/fuzz.py --seconds 60             # each loader for a minute
    python tools/fuzz.py records --mutants 300    # one loader, some hundred mutants
    python tools/fuzz.py --guided                 # each for ten minutes, guided by coverage; needs atheris

A mutant that gives another exception, takes more than five seconds or more memory than the limit is written to
``--finds`` (it becomes a test) and the exit code is 1. Mutants are determined by ``--seed``.
"""

from __future__ import annotations

import argparse
import faulthandler
import importlib.util
import json
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.sparse
import torch

from lmc_verify import GAS, GCN, LMC, Clusters, Partition, Problem, Trainer, TrainerSettings, load_graph
from lmc_verify.cases.verdict import Outcome, Verdict
from lmc_verify.counterexamples import find_counterexample, load_counterexample
from lmc_verify.counterexamples.storage import document_hash
from lmc_verify.datasets import load_data
from lmc_verify.errors import LmcVerifyError
from lmc_verify.runs import Records, Trial, check_records, load_suite

SECONDS = 5.0
"""The longest that reading one file may take."""
MEMORY = 4 * 2**30
"""Address space, in bytes, that reading may take beyond what the process has when it begins."""

_NUMBERS = (b"-1", b"0", b"1e400", b"9223372036854775808", b"9" * 30, b"nan", b"true", b"null", b'""', b"[]", b"{}")


@dataclass(frozen=True)
class Target:
    """A loader: how a valid file is made in a folder, and how it is read. The first file is the one that is mutated."""

    name: str
    make: Callable[[Path], Path]
    read: Callable[[Path], object]
    sign: Callable[[bytes], bytes] = bytes
    """Gives a mutant the hash that it needs to be looked at further, as someone who means harm would."""


def mutant(data: bytes, rng: random.Random) -> bytes:
    """Return a file with a bit flipped, a piece cut, copied or moved, a number replaced, or something nested deeply."""
    out, place = bytearray(data), rng.randrange(max(len(data), 1))
    length = rng.choice([1, 4, 64, 4096])
    kind = rng.randrange(7)
    if not data or kind == 0:
        return rng.randbytes(length)
    if kind == 1:
        out[place] ^= 1 << rng.randrange(8)
    elif kind == 2:
        del out[place:]
    elif kind == 3:
        del out[place : place + length]
    elif kind == 4:
        start = rng.randrange(len(data))
        out[place:place] = data[start : start + length]
    elif kind == 5:
        digits = [index for index, byte in enumerate(data) if 48 <= byte <= 57]
        place = rng.choice(digits or [place])
        out[place : place + 1] = rng.choice(_NUMBERS)
    else:
        opening, closing = rng.choice([(b"[", b"]"), (b"{", b"}"), (b'{"a":', b"}"), (b"(", b")")])
        depth = rng.choice([50, 5000])
        out[place:place] = opening * depth + closing * depth
    return bytes(out)


def _suite(folder: Path) -> Path:
    file = folder / "suite.toml"
    file.write_text(
        'name = "fuzz"\ntitle = "t"\nseed = 3\ncontrols = false\n'
        '[[check]]\nclaim = "theorem-1/unbiased"\ndataset = ["karate", { name = "sbm", num_nodes = 40 }]\n'
        'estimator = ["gas", { name = "lmc", beta = 0.4 }]\nhistories = ["exact", "sweeps:2"]\nseed = [0, 1]\n'
        'model = { layers = 2, width = 4 }\ndesign = { name = "epoch", parts = 6, per_batch = 2, seen = [0, 1] }\n'
        'expect = { gas = "REFUTED", lmc = "REFUTED" }\n'
        '[[counterexample]]\nclaim = "theorem-1/unbiased"\nestimator = "gas"\nmax_nodes = 4\n'
        '[[race]]\ndataset = "karate"\nestimator = ["gas", "lmc"]\nseeds = 2\ntrainer = { steps = 5 }\n'
    )
    return file


def _plan(file: Path) -> object:
    suite = load_suite(file)
    return suite.plan(), suite.searches(), suite.races()


def _counterexample(folder: Path) -> Path:
    found = find_counterexample("theorem-1/unbiased", GAS()).counterexample
    assert found is not None
    return found.save(folder)[0]


def _counterexample_tensors(folder: Path) -> Path:
    return _counterexample(folder).with_suffix(".safetensors")


def _signed(data: bytes) -> bytes:
    """Return a counterexample's document with the hash that fits, where it is still one."""
    try:
        document = json.loads(data)
        document["sha256"] = document_hash(document)
        return json.dumps(document).encode()
    except (ValueError, TypeError, AttributeError, RecursionError):
        return data


def _trainer() -> Trainer:
    graph = load_graph("karate").double()
    model = GCN(graph.num_features, 4, graph.num_outputs, dtype=torch.float64)
    settings = TrainerSettings(steps=4, unit="step")
    return Trainer(Problem(graph, model), LMC(), Clusters(Partition.contiguous(34, 3), 1), settings)


def _checkpoint(folder: Path) -> Path:
    file = folder / "run.safetensors"
    _trainer().run(checkpoint=file)
    return file


def _records(folder: Path) -> Path:
    file = folder / "records.sqlite"
    with Records.create_or_open(file) as records:
        for number in range(2):
            run = records.start_run("s", "t", {"a": 1}, {})
            for place in range(10):
                verdict = Verdict("theorem-1/unbiased", Outcome.EXACT, "found")
                records.add(run, Trial(f"{number}-{place}", "claim", verdict, "EXACT", "lmc-verify", 0.5))
            records.finish_run(run, "finished")
    return file


def _read_records(file: Path) -> object:
    check_records(file)
    with Records.open(file) as records:
        return [(run, records.trials(run.id), records.planned_not_run(run.id)) for run in records.runs()]


def _archive(folder: Path) -> Path:
    ring = scipy.sparse.csr_matrix((np.ones(30), (np.arange(30), (np.arange(30) + 1) % 30)), shape=(30, 30))
    parts = {"adj": ring, "attr": scipy.sparse.csr_matrix(np.eye(30, 4))}
    arrays = {f"{a}_{b}": getattr(m, b) for a, m in parts.items() for b in ("data", "indices", "indptr", "shape")}
    file = folder / "Photo" / "raw" / "amazon_electronics_photo.npz"
    file.parent.mkdir(parents=True)
    np.savez(file, labels=np.arange(30) % 3, **arrays)
    return file


def _read_raw(name: str, up: int) -> Callable[[Path], object]:
    def read(file: Path) -> object:
        with tempfile.TemporaryDirectory() as cache:
            return load_data(name, data_root=file.parents[up], cache_dir=cache)

    return read


def _planetoid(part: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        import pickle

        nodes, train, test = 600, 20, 60
        x = scipy.sparse.csr_matrix(np.eye(nodes, 4, dtype=np.float32) + 1)
        y = np.eye(3, dtype=np.int32)[np.arange(nodes) % 3]
        known = nodes - test
        ring = {node: [(node + 1) % nodes, (node - 1) % nodes] for node in range(nodes)}
        parts = {"x": x[:train], "tx": x[known:], "allx": x[:known]}
        parts |= {"y": y[:train], "ty": y[known:], "ally": y[:known], "graph": ring}
        raw = folder / "Cora" / "raw"
        raw.mkdir(parents=True)
        for name, value in parts.items():
            (raw / f"ind.cora.{name}").write_bytes(pickle.dumps(value, protocol=2))
        (raw / "ind.cora.test.index").write_text("\n".join(map(str, range(known, nodes))))
        return raw / f"ind.cora.{part}"

    return make


TARGETS = {
    target.name: target
    for target in (
        Target("suite", _suite, _plan),
        Target("counterexample", _counterexample, load_counterexample),
        Target("counterexample-signed", _counterexample, load_counterexample, _signed),
        Target("counterexample-tensors", _counterexample_tensors, load_counterexample),
        Target("checkpoint", _checkpoint, lambda file: _trainer().restore(file)),
        Target("records", _records, _read_records),
        Target("archive", _archive, _read_raw("photo", 2)),
        Target("pickled-graph", _planetoid("graph"), _read_raw("cora", 2)),
        Target("pickled-features", _planetoid("tx"), _read_raw("cora", 2)),
    )
}
"""Every loader of the package."""


@dataclass(frozen=True)
class Find:
    """A mutant that was not answered as it should be."""

    target: str
    number: int
    found: str
    data: bytes


@dataclass(frozen=True)
class Fault:
    """What a loader must not do: its kind, an exception with its place or slowness, and what was seen in words."""

    kind: str
    words: str


def fault(target: Target, file: Path, data: bytes) -> Fault | None:
    """Let a loader read a mutant; return what was not as it should be."""
    file.write_bytes(data)
    start = time.perf_counter()
    try:
        target.read(file)
    except LmcVerifyError:
        pass
    except Exception as error:  # the find
        place = traceback.extract_tb(error.__traceback__)[-1]
        kind = f"{type(error).__name__} at {Path(place.filename).name}:{place.lineno}"
        return Fault(kind, f"{type(error).__name__}: {error}")
    taken = time.perf_counter() - start
    return Fault("slow", f"took {taken:.1f} s") if taken > SECONDS else None


def fuzz(
    target: Target, seed: int, *, mutants: int | None = None, seconds: float | None = None, kept: Path | None = None
) -> Iterator[Find | None]:
    """Read mutants one after the other, and yield None for each that is read or refused, and a `Find` for others.

    Each is written to the file `kept`, where it is given, before it is read: it is there if the process ends with it.
    """
    rng, number = random.Random(f"{target.name} {seed}"), 0
    with tempfile.TemporaryDirectory() as folder:
        file = target.make(Path(folder))
        valid = file.read_bytes()
        target.read(file)  # also: what is imported on first use does not count
        begun = time.monotonic()
        while (mutants is None or number < mutants) and (seconds is None or time.monotonic() - begun < seconds):
            data = mutant(valid, rng)
            if rng.random() < 0.3:
                data = mutant(data, rng)
            data = target.sign(data)
            if kept is not None:
                kept.write_bytes(data)
            found = fault(target, file, data)
            yield Find(target.name, number, found.words, data) if found else None
            number += 1


def limit_memory() -> None:
    """Let the process take no more than `MEMORY` beyond what it has: more is a MemoryError, which is a find."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))


def fuzz_guided(name: str, seconds: int, seed: int, finds: Path) -> bool:
    """Fuzz a loader guided by coverage, in a process of its own; print what came of it, and return whether it is well.

    Finds are written by that process as it goes; a loader that hangs or takes the process with it leaves one, too.
    """
    pattern = f"{name}-guided-*"
    before = set(finds.glob(pattern))
    command = [sys.executable, str(Path(__file__).with_name("fuzz_guided.py")), name, "--seconds", str(seconds)]
    command += ["--seed", str(seed), "--finds", str(finds)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    found = len(set(finds.glob(pattern)) - before)
    runs = re.search(r"^Done (\d+) runs", done.stderr, flags=re.MULTILINE)
    if runs is None:
        print(done.stderr[-2000:], file=sys.stderr)
        print(f"{name}: ended before its time with exit code {done.returncode}, {found} finds", flush=True)
        return False
    reached = re.findall(r" cov: (\d+) ", done.stderr)[-1]
    print(f"{name}: {int(runs[1]):,} mutants, guided, {reached} places reached, {found} finds", flush=True)
    print("".join(f"  {line}\n" for line in done.stdout.splitlines() if line.startswith(f"{name}: ")), end="")
    return not found


def main() -> int:
    """Fuzz the loaders that are named, or all."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("targets", nargs="*", help=f"of {', '.join(TARGETS)} (default: all)")
    parser.add_argument("--seconds", type=float, default=None, help="for each loader (default: 600 without --mutants)")
    parser.add_argument("--mutants", type=int, default=None, help="of each loader")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--finds", type=Path, default=Path("finds"), help="folder for what is found")
    parser.add_argument("--guided", action="store_true", help="guided by coverage, for --seconds (needs atheris)")
    given = parser.parse_args()
    if given.guided and given.mutants is not None:
        parser.error("--mutants is a number of unguided mutants; give --seconds with --guided")
    seconds = 600.0 if given.seconds is None and given.mutants is None else given.seconds
    for name in given.targets:
        if name not in TARGETS:
            parser.error(f"unknown loader {name!r}; known are {', '.join(TARGETS)}")
    if given.guided:
        if importlib.util.find_spec("atheris") is None:
            parser.error("--guided needs atheris: pip install atheris")
        bad = [
            name
            for name in given.targets or TARGETS
            if not fuzz_guided(name, int(seconds or 0), given.seed, given.finds)
        ]
        return 1 if bad else 0
    if Path("/proc/self/statm").exists():
        limit_memory()
    faulthandler.enable()  # where a loader takes the process with it
    given.finds.mkdir(parents=True, exist_ok=True)
    failed = 0
    for name in given.targets or TARGETS:
        kept = given.finds / f"{name}-{given.seed}-last"
        results = list(fuzz(TARGETS[name], given.seed, mutants=given.mutants, seconds=seconds, kept=kept))
        kept.unlink(missing_ok=True)
        finds = [item for item in results if item is not None]
        failed += len(finds)
        print(f"{name}: {len(results)} mutants, {len(finds)} finds", flush=True)
        for item in finds:
            (given.finds / f"{name}-{given.seed}-{item.number}").write_bytes(item.data)
            print(json.dumps({"mutant": item.number, "found": item.found[:300]}), flush=True)
    if not any(given.finds.iterdir()):
        given.finds.rmdir()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
