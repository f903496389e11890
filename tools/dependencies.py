"""What each dependency of pyproject.toml costs: megabytes on disk, seconds of import, and which commands import it.

    python tools/dependencies.py [--runs 5] [--also scikit-learn]

Sizes are those of the installed files (RECORD), without compiled bytecode. What a dependency *brings* is what nothing
else requires: itself, and what would not be installed without it. Imports of the package with the dependency and
without it, which is hidden then, take turns, each in an interpreter of its own; seconds are of CPU time, medians.
``--also`` measures an installed package as if it were declared. Run it where ``pip install -e '.[test]'`` was run.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterable, Mapping
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

HERE = Path(__file__).resolve().parent.parent
Requires = Callable[[str, frozenset[str]], Iterable[Requirement]]

SUITE = """
name = "one"
title = "One check"
controls = false
[[check]]
claim = "theorem-1/unbiased"
estimator = "gas"
dataset = "karate"
expect = "REFUTED"
"""

COMMANDS: Mapping[str, tuple[str, ...]] = {
    "list": ("list", "claims"),
    "check": ("check", "theorem-1/unbiased", "--estimator", "gas", "--dataset", "karate"),
    "train": (
        "train",
        "--dataset",
        "karate",
        "--set",
        "trainer.epochs=1",
        "--set",
        "design.parts=4",
        "--out",
        "train",
    ),
    "run": ("run", "one.toml", "--in-process", "--out", "run"),
    "audit": ("audit", str(HERE / "examples/loops/khop.py:audited")),
    "counterexample": ("counterexample", "theorem-1/unbiased", "--estimator", "gas", "--out", "found"),
}
"""Commands whose imports are listed, by name."""

PROGRAM = """
import json, sys
sys.argv = ["lmc-verify", *{words!r}]
from lmc_verify.cli import main
try:
    main()
except SystemExit as left:
    assert left.code in (0, 1), left.code
print("\\nIMPORTED", json.dumps(sorted({{name.partition(".")[0] for name in sys.modules}})))
"""


def main() -> None:
    """Print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=5, help="how often each import is measured")
    parser.add_argument("--also", action="append", default=[], help="a package that is not declared, to decide about")
    options = parser.parse_args()
    declared, others = requirements(), [Requirement(name) for name in options.also]
    tops = top_modules()
    used = {name: imported_by(words) for name, words in COMMANDS.items()}
    sizes = {name: size_of(name) for name in closure([*declared, *others], installed)}
    print("| dependency | itself, MB | brings, MB | import, s | `import lmc_verify`, s | without it, s | imported by |")
    print("| :-- | --: | --: | --: | --: | --: | :-- |")
    for item in [*declared, *others]:
        name = canonicalize_name(item.name)
        modules = tops[name]
        own, kept, hidden = import_times(modules, options.runs)
        brought = sum(sizes[one] for one in brings(item, declared, installed)) / 1e6
        users = ", ".join(command for command, found in used.items() if found & set(modules)) or "none of these"
        numbers = f"{sizes[name] / 1e6:.1f} | {brought:.1f} | {own:.2f} | {kept:.2f} | {hidden:.2f}"
        print(f"| {item.name} | {numbers} | {users} |", flush=True)
    total = sum(sizes[name] for name in closure(declared, installed)) / 1e6
    print(f"| all that are declared | | {total:.0f} | | | | |")


def requirements() -> list[Requirement]:
    """Return the dependencies that pyproject.toml asks for on this system."""
    project = tomllib.loads((HERE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found = [Requirement(text) for text in project["dependencies"]]
    return [item for item in found if item.marker is None or item.marker.evaluate()]


def installed(name: str, extras: frozenset[str]) -> list[Requirement]:
    """Return what an installed distribution requires, with these of its extras, on this system."""
    found = [Requirement(text) for text in metadata.requires(name) or ()]
    wanted = ("", *extras)
    return [
        item for item in found if item.marker is None or any(item.marker.evaluate({"extra": extra}) for extra in wanted)
    ]


def closure(roots: Iterable[Requirement], requires: Requires) -> set[str]:
    """Return the names of all that the roots need, themselves included."""
    waiting = [(canonicalize_name(item.name), frozenset(item.extras)) for item in roots]
    seen = set(waiting)
    while waiting:
        for item in requires(*waiting.pop()):
            found = canonicalize_name(item.name), frozenset(item.extras)
            if found not in seen:
                seen.add(found)
                waiting.append(found)
    return {name for name, _ in seen}


def brings(item: Requirement, declared: Iterable[Requirement], requires: Requires) -> set[str]:
    """Return the names of what is installed if `item` is declared, too, and would not be without it."""
    rest = [other for other in declared if other is not item]
    return closure([*rest, item], requires) - closure(rest, requires)


def size_of(name: str) -> int:
    """Return the bytes of a distribution's files, as its RECORD has them."""
    files = metadata.files(name)
    if files is None:
        raise SystemExit(f"{name} has no RECORD of its files; install it with pip")
    return sum(file.size or 0 for file in files)


def top_modules() -> dict[str, list[str]]:
    """Return what can be imported of each distribution; parts of a namespace are left to their owner."""
    found: dict[str, list[str]] = {}
    for module, distributions in metadata.packages_distributions().items():
        for name in distributions:
            if re.fullmatch(r"[a-z]\w*", module):
                found.setdefault(canonicalize_name(name), []).append(module)
    return found


def import_times(modules: Iterable[str], runs: int) -> tuple[float, float, float]:
    """Return CPU seconds of importing modules, and of importing the package with them and without them."""
    modules = list(modules)
    hide = f"import sys; sys.modules.update(dict.fromkeys({modules!r})); "
    programs = ["; ".join(f"import {name}" for name in modules), "import lmc_verify", hide + "import lmc_verify"]
    times: list[list[float]] = [[] for _ in programs]
    for _ in range(runs):
        for place, program in enumerate(programs):
            times[place].append(_cpu_seconds(program))
    own, kept, hidden = map(statistics.median, times)
    return own, kept, hidden


def _cpu_seconds(program: str) -> float:
    with subprocess.Popen([sys.executable, "-c", program], cwd=HERE, env=_environment()) as child:
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"exit code {child.returncode} of: {program}")
    return usage.ru_utime + usage.ru_stime


def imported_by(words: Iterable[str]) -> set[str]:
    """Return the top modules that a command has imported at its end."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "one.toml").write_text(SUITE)
        program = PROGRAM.format(words=list(words))
        done = subprocess.run(
            [sys.executable, "-c", program], cwd=folder, env=_environment(), capture_output=True, text=True, check=False
        )
    _, mark, tail = done.stdout.rpartition("IMPORTED ")
    if not mark:
        raise SystemExit(f"lmc-verify {' '.join(words)} ended with {done.returncode}\n{done.stderr}")
    return set(json.loads(tail))


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(HERE), "OMP_NUM_THREADS": "1"}


if __name__ == "__main__":
    main()
