"""Every loader answers mutated files with the package's own errors, soon; `nox -s fuzz` tries many more."""

from __future__ import annotations

import importlib.util
import random
import sys
from pathlib import Path

import pytest

_SPEC = importlib.util.spec_from_file_location("fuzz_tool", Path(__file__).resolve().parents[1] / "tools" / "fuzz.py")
assert _SPEC is not None
assert _SPEC.loader is not None
fuzz = importlib.util.module_from_spec(_SPEC)
sys.modules["fuzz_tool"] = fuzz
_SPEC.loader.exec_module(fuzz)

MUTANTS = {"suite": 80, "checkpoint": 150, "archive": 60, "pickled-graph": 40, "pickled-features": 40}


@pytest.mark.slow
@pytest.mark.parametrize("name", fuzz.TARGETS)
def test_mutated_files_are_read_or_refused(name: str) -> None:
    found = [item for item in fuzz.fuzz(fuzz.TARGETS[name], 0, mutants=MUTANTS.get(name, 200)) if item is not None]
    assert [(item.number, item.found) for item in found] == []


def test_what_a_loader_must_not_do_is_found(tmp_path: Path) -> None:
    def read(file: Path) -> None:
        if file.read_bytes() != b"valid 1":
            raise KeyError("foreign")

    def make(folder: Path) -> Path:
        (folder / "a").write_bytes(b"valid 1")
        return folder / "a"

    results = list(fuzz.fuzz(fuzz.Target("broken", make, read), 0, mutants=20))
    assert len(results) == 20
    assert next(item.found for item in results if item is not None) == "KeyError: 'foreign'"


def test_mutants_are_those_of_the_seed_and_differ() -> None:
    made = [[fuzz.mutant(b"name = 'a'\nseed = 3\n" * 20, random.Random(seed)) for seed in range(50)] for _ in range(2)]
    assert made[0] == made[1]
    assert len(set(made[0])) > 40
