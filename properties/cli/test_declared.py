"""Every command works with what `pip install lmc-verify` installs: all else is hidden from the interpreter here."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from lmc_verify.cli.app import app

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT))
TOOL: Any = importlib.import_module("tools.dependencies")

SUITE = """
name = "one"
title = "One of each"
controls = false
[[check]]
claim = "theorem-1/unbiased"
estimator = "gas"
dataset = { name = "ring", num_nodes = 8 }
design = { partition = "contiguous", parts = 4, per_batch = 1 }
expect = "REFUTED"
[[audit]]
function = "LOOP:audited"
expect = "EXACT"
[[counterexample]]
claim = "theorem-1/unbiased"
estimator = "gas"
max_nodes = 4
"""
SMALL = ("--set", "design.parts=4", "--set", "design.per_batch=1", "--set", "model.layers=2", "--set", "model.width=4")
TRAINED = ("--set", "trainer.epochs=1", "--set", "design.parts=4")

WALK: list[tuple[int, tuple[str, ...]]] = [
    (0, ("init", "project")),
    (0, ("run", "one.toml", "--jobs", "2", "--out", "run")),
    (0, ("merge", "run", "--out", "merged")),
    (0, ("report", "run")),
    (0, ("compare", "run", "merged")),
    (0, ("table", "run", "--dataset", "ring")),
    (0, ("records", "check", "run")),
    (0, ("check", "theorem-1/unbiased", "--estimator", "gas", *SMALL)),  # on digits, the default
    (0, ("audit", "project/lmc_loop.py:audited")),
    (0, ("check-estimator", "lmc", "--set", "estimator.beta=0.5")),
    (0, ("counterexample", "theorem-1/unbiased", "--estimator", "gas", "--out", "found")),
    (0, ("reproduce", "run", "--trial", "1")),
    (0, ("train", "--dataset", "karate", *TRAINED, "--out", "train")),
    (0, ("race", "--dataset", "karate", "--estimator", "gas", *TRAINED, "--seeds", "1", "--out", "race")),
    (0, ("exact", "--dataset", "karate")),
    (0, ("controls", "sound-lmc")),
    (0, ("settings", "model.")),
    (0, ("list", "datasets")),
    (0, ("explain", "theorem-1/unbiased")),
    (0, ("doctor",)),
]

PROGRAM = """
import json, sys
from importlib.machinery import PathFinder
hidden = set(json.loads(sys.argv[1]))

class Finder(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in hidden else super().find_spec(name, path, target)

sys.meta_path = [Finder if finder is PathFinder else finder for finder in sys.meta_path]
from lmc_verify.cli import main
left = []
for words in json.loads(sys.argv[2]):
    sys.argv = ["lmc-verify", *words]
    print("$", *words, flush=True)
    try:
        main()
        left.append(0)
    except SystemExit as end:
        left.append(end.code or 0)
print("LEFT", json.dumps(left))
"""


def hidden_modules() -> set[str]:
    """Return the modules of all that is installed here and would not be with this package alone."""
    kept = {*TOOL.closure(TOOL.requirements(), TOOL.installed), "lmc-verify"}
    found = metadata.packages_distributions().items()
    return {module for module, names in found if not kept & {canonicalize_name(name) for name in names}}


@pytest.mark.slow
def test_every_command_works_with_what_is_declared(tmp_path: Path) -> None:
    hidden = hidden_modules()
    assert {"sklearn", "dask", "pandas", "pytest"} & hidden
    assert not {"torch", "numpy", "matplotlib", "hypothesis"} & hidden
    (tmp_path / "one.toml").write_text(SUITE.replace("LOOP", "project/lmc_loop.py"))
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(sorted(hidden)), json.dumps([words for _, words in WALK])],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    _, mark, left = done.stdout.rpartition("LEFT ")
    assert mark, done.stderr
    codes = dict(zip((" ".join(words) for _, words in WALK), json.loads(left), strict=True))
    assert codes == {" ".join(words): code for code, words in WALK}, done.stdout + done.stderr
    assert "<svg" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")


def test_the_walk_has_every_command() -> None:
    commands = {item.name or item.callback.__name__.replace("_", "-") for item in app.registered_commands}
    commands |= {str(group.name) for group in app.registered_groups}
    assert {words[0] for _, words in WALK} == commands


GRAPH = {"a": ["b", "c[fast]"], "b": ["d"], "c": [], "d": ["b"], "e": ["d"], "f": []}
EXTRAS = {("c", "fast"): ["f"]}


def made_up(name: str, extras: frozenset[str]) -> list[Requirement]:
    more = [text for extra in extras for text in EXTRAS.get((name, extra), [])]
    return [Requirement(text) for text in [*GRAPH[name], *more]]


@pytest.mark.parametrize(
    ("roots", "reached"),
    [("a", "abcdf"), ("e", "ebd"), ("c", "c"), ("f", "f"), ("", "")],
)
def test_what_is_required_is_followed(roots: str, reached: str) -> None:
    assert TOOL.closure([Requirement(name) for name in roots], made_up) == set(reached)


def test_what_two_require_neither_brings() -> None:
    declared = [Requirement(name) for name in "aec"]
    assert [TOOL.brings(item, declared, made_up) for item in declared] == [{"a", "f"}, {"e"}, set()]
