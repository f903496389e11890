"""Every loader answers mutated files with the package's own errors, soon; `nox -s fuzz` tries many more."""

from __future__ import annotations

import importlib.util
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

TOOL = Path(__file__).resolve().parents[1] / "tools" / "fuzz.py"
_SPEC = importlib.util.spec_from_file_location("fuzz_tool", TOOL)
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

    seen, kept = list[bytes](), tmp_path / "kept"

    def looked_at(file: Path) -> None:
        if kept.exists():  # not the valid file
            seen.append(kept.read_bytes())
            assert seen[-1] == file.read_bytes()
        read(file)

    results = list(fuzz.fuzz(fuzz.Target("broken", make, looked_at), 0, mutants=20, kept=kept))
    assert len(seen) == 20
    assert len(results) == 20
    assert next(item.found for item in results if item is not None) == "KeyError: 'foreign'"


def test_mutants_are_those_of_the_seed_and_differ() -> None:
    made = [[fuzz.mutant(b"name = 'a'\nseed = 3\n" * 20, random.Random(seed)) for seed in range(50)] for _ in range(2)]
    assert made[0] == made[1]
    assert len(set(made[0])) > 40


class Process:
    """Stands in for the process that fuzzes: what it prints, and what it finds."""

    def __init__(self, stderr: str, finds: int, returncode: int = 0) -> None:
        self.stderr, self.stdout, self.returncode, self._finds = (
            stderr,
            "suite: KeyError at a.py:1: foreign\n",
            returncode,
            finds,
        )

    def __call__(self, command: list[str], **_: Any) -> Process:
        assert command[2] == "suite"
        folder = Path(command[command.index("--finds") + 1])
        folder.mkdir(exist_ok=True)
        for number in range(self._finds):
            (folder / f"suite-guided-3-{number}").write_bytes(b"")
        return self


DONE = "#2 INITED cov: 3 ft: 3\n#1200 DONE   cov: 614 ft: 5 corp: 3/7b\nDone 1200 runs in 4 second(s)\n"


@pytest.mark.parametrize(
    ("process", "well", "words"),
    [
        (Process(DONE, 0), True, "suite: 1,200 mutants, guided, 614 places reached, 0 finds\n  suite: KeyError"),
        (Process(DONE, 2), False, "614 places reached, 2 finds"),
        (Process("ERROR: libFuzzer: timeout", 1, 70), False, "ended before its time with exit code 70, 1 finds"),
    ],
    ids=["nothing", "finds", "hangs"],
)
def test_what_guided_mutants_showed_is_told(
    process: Process,
    well: bool,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "suite-guided-2-old").write_bytes(b"")  # of an earlier session
    monkeypatch.setattr(fuzz.subprocess, "run", process)
    assert fuzz.fuzz_guided("suite", 5, 3, tmp_path) is well
    assert words in capsys.readouterr().out


@pytest.mark.slow
def test_guided_mutants_find_what_a_loader_must_not_do(tmp_path: Path) -> None:
    """A loader that is broken where only a certain content leads, which a mutant reaches by steps."""
    pytest.importorskip("atheris")
    script = tmp_path / "broken.py"
    script.write_text(
        "import sys\nfrom pathlib import Path\n"
        f"sys.path.insert(0, {str(TOOL.parent)!r})\n"
        "import atheris, fuzz_guided\n"
        "@atheris.instrument_func\n"
        "def read(file):\n"
        "    data = file.read_bytes()\n"
        "    if data[:1] == b'q' and data[1:2] == b'z': raise KeyError('foreign')\n"
        "def make(folder):\n    (folder / 'a').write_bytes(b'valid 1')\n    return folder / 'a'\n"
        "target = fuzz_guided.Target('broken', make, read)\n"
        "fuzz_guided.fuzz_here(target, 10, 0, Path('finds'))\n"
    )
    command = [sys.executable, str(script)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300)
    assert "broken: KeyError at broken.py:8: KeyError: 'foreign'" in done.stdout, done.stderr[-2000:]
    (find,) = (tmp_path / "finds").iterdir()
    assert find.read_bytes()[:2] == b"qz"
