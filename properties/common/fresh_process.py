"""Commands in an interpreter of their own, and what they have imported there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent

LIBRARIES = {
    *("torch", "torch_geometric", "scipy", "sklearn", "pandas", "matplotlib", "networkx", "sympy", "pymetis"),
    *("hypothesis", "jinja2", "markdown_it", "safetensors", "joblib"),
}
"""What takes long to import. NumPy is apart: the options of generated data sets are read with it."""

PROGRAM = """
import contextlib, io, json, sys
from lmc_verify.cli import main

done = []
for words in {commands!r}:
    before = {{*sys.modules}}
    sys.argv = ["lmc-verify", *words]
    code, printed = 0, io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        try:
            main()
        except SystemExit as left:
            code = left.code or 0
    done.append([code, sorted({{*sys.modules}} - before), printed.getvalue()])
print("\\nDONE", json.dumps([sorted({{*sys.modules}}), done]))
"""


def imported(*words: str, **environment: str) -> tuple[int, set[str], str]:
    """Run a command in a new interpreter; return exit code, the modules at its end, and what it printed."""
    modules, ((code, _, printed),) = _run([words], environment)
    return code, modules, printed


def imported_by_each(commands: Sequence[Sequence[str]]) -> list[tuple[int, set[str], str]]:
    """Run commands in one new interpreter, one after the other; of each, the modules that none before it imported."""
    return [(code, set(new), printed) for code, new, printed in _run(commands, {})[1]]


def _run(commands: Sequence[Sequence[str]], environment: Mapping[str, str]) -> tuple[set[str], list[Any]]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(commands=[list(words) for words in commands])],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, **environment},
        check=False,
    )
    _, mark, tail = done.stdout.rpartition("DONE ")
    assert mark, done.stderr
    modules, each = json.loads(tail)
    return set(modules), each
