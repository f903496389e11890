"""Show that bench_compare fails on a slow commit and passes on one that changes nothing.

Clones the repository's HEAD into a temporary folder, commits there (1) a comment and (2) an exact pass that is computed
twice, and compares both with HEAD, in the environment that asv makes for the clone. Processor time is compared, so that
the selftest also holds on a busy machine. Takes some minutes; exits with 1 if
bench_compare decides wrongly.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SLOWED = "bench_exact.ExactPass.time_exact_pass('digits', 'cpu', 'float32')"
BENCHMARKS = (r"ExactPass\.time_exact_pass\('digits', 'cpu', 'float32'\)", r"time_halo\('digits', 'cpu', 'float32'\)")

COMMENT = "\n# Nothing but a comment.\n"
COMPUTED_TWICE = """

_exact_pass_once = exact_pass


def exact_pass(*arguments, **settings):
    _exact_pass_once(*arguments, **settings)
    return _exact_pass_once(*arguments, **settings)
"""


def git(folder: Path, *words: str) -> str:
    """Run git as an author of the selftest, without hooks and signatures."""
    settings = ("user.name=selftest", "user.email=selftest@localhost", "commit.gpgsign=false", "core.hooksPath=")
    options = [part for setting in settings for part in ("-c", setting)]
    done = subprocess.run(["git", *options, *words], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def commit(clone: Path, base: str, name: str, addition: str) -> str:
    """Add text to the end of the package's __init__ in one commit on top of the base; return its hash."""
    git(clone, "checkout", "-q", "-B", name, base)
    file = clone / "lmc_verify" / "__init__.py"
    file.write_text(file.read_text() + addition)
    git(clone, "commit", "-q", "-a", "-m", name)
    return git(clone, "rev-parse", "HEAD")


def compare(clone: Path, base: str, head: str) -> tuple[int, dict[str, str]]:
    """Run bench_compare in the clone; return its exit code and the state of each benchmark."""
    command = [sys.executable, str(clone / "tools" / "bench_compare.py"), base, head, "--json", "--clock", "cpu"]
    for pattern in BENCHMARKS:
        command += ["--bench", pattern]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(command, cwd=clone, stdout=subprocess.PIPE, text=True, env=environment)
    rows = json.loads(done.stdout) if done.stdout.strip() else []
    for row in rows:
        print(f"  {row['state']}: {row['ratio']} [{row['low']}, {row['high']}] {row['name']}")
    return done.returncode, {row["name"]: row["state"] for row in rows}


def main() -> int:
    """Make the commits, compare, and say whether the decisions were right."""
    wrong = []
    with tempfile.TemporaryDirectory(prefix="bench-compare-") as folder:
        clone = Path(folder) / "clone"
        git(ROOT, "clone", "-q", str(ROOT), str(clone))
        base = git(clone, "rev-parse", "HEAD")
        same = commit(clone, base, "comment", COMMENT)
        slow = commit(clone, base, "computed-twice", COMPUTED_TWICE)
        git(clone, "checkout", "-q", base)
        for head, title in ((same, "a comment"), (slow, "an exact pass computed twice")):
            print(f"{title}:", flush=True)
            code, states = compare(clone, base, head)
            flagged = sorted(name for name, state in states.items() if state == "slower")
            expected = (1, [SLOWED]) if head == slow else (0, [])
            print(f"  exit code {code}, slower: {', '.join(flagged) or 'nothing'}", flush=True)
            if (code, flagged) != expected or len(states) != len(BENCHMARKS):
                wrong.append(f"{title}: expected exit code {expected[0]} and {expected[1]}")
    for message in wrong:
        print(f"WRONG: {message}", file=sys.stderr)
    if not wrong:
        print("bench_compare fails on the slow commit and passes on the comment")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
