"""Fuzz one loader, guided by which places of the package its mutants reach; `tools/fuzz.py --guided` starts it.

libFuzzer, which atheris brings, keeps a mutant that reaches something new and mutates it further. It ends the process
that it runs in, so each loader has a process of its own. Of each kind of find one file is written.
"""

from __future__ import annotations

import argparse
import random
import re
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["lmc_verify"]):
    from fuzz import TARGETS, Target, fault, limit_memory, mutant

HANGS = 60
"""Seconds after which a loader that does not answer is given up, and its process with it."""

LONGEST = 4
"""Length of a mutant, at most, in lengths of the valid file."""

OWN_MUTANTS = 0.5
"""Share of mutants that are made as `tools/fuzz.py` makes them; libFuzzer makes the others."""


class Judge:
    """Reads mutants of one loader, and writes down those that are not answered as they should be."""

    def __init__(self, target: Target, file: Path, finds: Path, seed: int) -> None:
        self._target, self._file, self._finds, self._seed = target, file, finds, seed
        self._kinds: set[str] = set()

    def __call__(self, data: bytes) -> None:
        """Read one mutant."""
        data = self._target.sign(data)
        found = fault(self._target, self._file, data)
        if found is None or found.kind in self._kinds:
            return
        self._kinds.add(found.kind)
        name = re.sub(r"\W+", "-", found.kind)
        (self._finds / f"{self._target.name}-guided-{self._seed}-{name}").write_bytes(data)
        print(f"{self._target.name}: {found.kind}: {found.words[:300]}", flush=True)


def fuzz_here(target: Target, seconds: int, seed: int, finds: Path) -> None:
    """Fuzz one loader; libFuzzer then ends this process."""
    with tempfile.TemporaryDirectory() as folder:
        place, corpus = Path(folder) / "files", Path(folder) / "corpus"
        place.mkdir()
        corpus.mkdir()
        with atheris.instrument_imports(include=["lmc_verify"]):  # what is imported on first use is instrumented, too
            file = target.make(place)
            target.read(file)
        valid = file.read_bytes()
        (corpus / "valid").write_bytes(valid)
        if Path("/proc/self/statm").exists():
            limit_memory()

        def mutated(data: bytes, most: int, number: int) -> bytes:
            rng = random.Random(number)
            if rng.random() < OWN_MUTANTS:
                return mutant(bytes(data), rng)[:most]
            return bytes(atheris.Mutate(data, most))

        finds.mkdir(parents=True, exist_ok=True)
        options = {
            "max_total_time": seconds,
            "seed": seed + 1,  # 0 is a random one
            "max_len": LONGEST * len(valid),
            "timeout": HANGS,
            "rss_limit_mb": 0,  # `limit_memory` makes it a MemoryError
            "artifact_prefix": f"{finds}/{target.name}-guided-{seed}-",
        }
        arguments = [sys.argv[0], *(f"-{key}={value}" for key, value in options.items()), str(corpus)]
        atheris.Setup(arguments, Judge(target, file, finds, seed), custom_mutator=mutated)
        atheris.Fuzz()


def main() -> None:
    """Fuzz the loader that is named; the process ends with it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--seconds", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--finds", type=Path, default=Path("finds"), help="folder for what is found")
    given = parser.parse_args()
    fuzz_here(TARGETS[given.target], given.seconds, given.seed, given.finds)


if __name__ == "__main__":
    main()
