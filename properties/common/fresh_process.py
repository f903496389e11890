"""Commands in an interpreter of their own, and what they have imported there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent

LIBRARIES = {
    *("torch", "torch_geometric", "scipy", "sklearn", "pandas", "matplotlib", "networkx", "sympy", "pymetis"),
    *("hypothesis", "jinja2", "markdown_it", "safetensors", "joblib"),
}
"""What takes long to import. NumPy is apart: the options of generated data sets are read with it."""

PROGRAM = """
import json, sys
sys.argv = ["lmc-verify", *{words!r}]
from lmc_verify.cli import main
code = 0
try:
    main()
except SystemExit as left:
    code = left.code
print("\\nIMPORTED", json.dumps([code, sorted(sys.modules)]))
"""


def imported(*words: str, **environment: str) -> tuple[int, set[str], str]:
    """Run a command in a new interpreter; return exit code, the modules at its end, and what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(words=list(words))],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, **environment},
        check=False,
    )
    head, mark, tail = done.stdout.rpartition("IMPORTED ")
    assert mark, done.stderr
    code, modules = json.loads(tail)
    return code or 0, set(modules), head + done.stderr
