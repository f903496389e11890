"""``lmc-verify init`` in a user's project: what it writes runs as it is, and nothing that exists is touched.

The whole path is walked: the written test is green, a halo leak that is planted in the loop turns it red with
parameter, size and cause, and mended it is green again.
"""

from __future__ import annotations

import ast
import importlib.metadata
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from common.command_line import Command

from lmc_verify.cli.init.files import _FOLDER, TEMPLATES, nox_session, write_files
from lmc_verify.runs import load_suite

ROOT = Path(__file__).resolve().parents[2]
INSTALLED = {entry.name for entry in importlib.metadata.entry_points(group="pytest11")}
PLUGIN = () if "lmc-verify" in INSTALLED else ("-p", "pytest_lmc_verify.plugin")
LEAK = (
    "        batch = data.subgraph(nodes)\n",
    "        nodes, rows = own, torch.arange(len(own))\n        batch = data.subgraph(nodes)\n",
)
"""The subgraph of the batch's own nodes, as Cluster-GCN takes it: edges that leave it are cut."""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A plain project, which is the current folder."""
    (tmp_path / "train.py").write_text("print('training')\n")
    (tmp_path / "requirements.txt").write_text("torch-geometric\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_pytest(folder: Path) -> tuple[int, str]:
    """Run the written test as its user does, in a process of its own; return exit code and output."""
    # The loop may change twice within a second, which the time stamp of compiled files does not tell.
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *PLUGIN, "test_gradients.py"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout


def plant(folder: Path) -> str:
    """Plant the leak in the loop; return the loop as it was."""
    loop = (folder / "lmc_loop.py").read_text(encoding="utf-8")
    assert loop.count(LEAK[0]) == 1
    (folder / "lmc_loop.py").write_text(loop.replace(*LEAK), encoding="utf-8")
    return loop


def contents(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.slow
def test_a_planted_leak_turns_the_written_test_red_and_mended_it_is_green(project: Path, lmc: Command) -> None:
    code, out, err = lmc("init")
    assert (code, err) == (0, "")
    assert re.findall(r"^written: (.+)$", out, flags=re.MULTILINE) == list(TEMPLATES)

    assert run_pytest(project)[0] == 0

    loop = plant(project)
    code, out = run_pytest(project)
    assert code == 1
    (words,) = re.findall(r"^E +AssertionError: (biased: .+)$", out, flags=re.MULTILINE)
    found = re.search(r"is off by ([\d.]+)% of the gradient's norm, most in (\S+) \(([\d.]+)% of its own", words)
    assert found, words
    assert 5 < float(found[1]) < 200
    assert found[2] in {"convs.0.bias", "convs.0.lin.weight", "convs.1.bias", "convs.1.lin.weight"}
    assert re.findall(r"^E +cause: ([\w ]+):", out, flags=re.MULTILINE) == ["cut edges"]

    (project / "lmc_loop.py").write_text(loop, encoding="utf-8")
    code, out = run_pytest(project)
    assert code == 0
    assert "test_the_gradient_is_unbiased: step EXACT (exact)" in out


@pytest.mark.slow
def test_the_written_suite_tells_the_loop_from_a_leaking_one(project: Path, lmc: Command) -> None:
    write_files(project)
    suite = (project / "lmc-verify.toml").read_text(encoding="utf-8")
    assert load_suite(project / "lmc-verify.toml").controls == 4
    # The controls are the same for every project, and tested elsewhere.
    (project / "lmc-verify.toml").write_text(suite.replace("controls = 4", "controls = false"), encoding="utf-8")
    out = ("run", "lmc-verify.toml", "--out", "lmc-verify-report", "--in-process")
    assert lmc(*out)[0] == 0
    assert (project / "lmc-verify-report" / "report.html").is_file()
    plant(project)
    code, printed, _ = lmc(*out)
    assert code == 1
    assert "REFUTED" in printed
    assert "missing-neighbours" in (project / "lmc-verify-report" / "report.json").read_text(encoding="utf-8")


def test_nothing_is_overwritten_and_what_is_left_alone_is_named(project: Path, lmc: Command) -> None:
    (project / "noxfile.py").write_text("import nox\n")
    (project / "lmc-verify.toml").write_text("mine\n")
    code, out, err = lmc("init")
    assert (code, err) == (0, "")
    assert re.findall(r"^left alone, for it exists: (.+)$", out, flags=re.MULTILINE) == [
        "lmc-verify.toml",
        "noxfile.py",
    ]
    assert (project / "noxfile.py").read_text() == "import nox\n"
    assert (project / "lmc-verify.toml").read_text() == "mine\n"
    first = contents(project)
    assert set(first) == {*TEMPLATES, "train.py", "requirements.txt"}

    code, again, _ = lmc("init")
    assert code == 0
    assert "written:" not in again
    assert contents(project) == first


def test_the_session_is_printed_where_a_noxfile_lacks_it(project: Path, lmc: Command) -> None:
    (project / "noxfile.py").write_text("import nox\n")
    out = lmc("init")[1]
    session = out[out.index("@nox.session") : out.index("\n\nnext:")] + "\n"
    assert session == nox_session(project)
    assert '"pytest", "-r", "requirements.txt")' in session
    (project / "noxfile.py").write_text(f"import nox\n\n\n{session}")
    assert "@nox.session" not in lmc("init")[1]
    ast.parse((project / "noxfile.py").read_text())


def test_a_link_and_a_folder_of_the_name_are_left_alone(tmp_path: Path) -> None:
    outside = tmp_path / "outside.py"
    project = tmp_path / "project"
    (project / "lmc-verify.toml").mkdir(parents=True)
    (project / "noxfile.py").mkdir()
    try:
        (project / "lmc_loop.py").symlink_to(outside)  # it leads nowhere yet
    except OSError as error:
        pytest.skip(f"links cannot be made here: {error}")
    files = write_files(project)
    assert files.left_alone == ("lmc_loop.py", "lmc-verify.toml", "noxfile.py")
    assert not outside.exists()
    assert nox_session(project) is not None


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, []),
        ({"requirements.txt": ""}, ["-r", "requirements.txt"]),
        ({"setup.py": ""}, ["-e", "."]),
        ({"pyproject.toml": "[project]\nname = 'p'\n", "requirements.txt": ""}, ["-e", "."]),
        ({"pyproject.toml": "[tool.ruff]\nline-length = 100\n"}, []),
        ({"pyproject.toml": "broken ="}, []),
    ],
    ids=["nothing", "requirements", "setup.py", "package", "settings of tools", "broken"],
)
def test_what_the_project_needs_is_installed(files: dict[str, str], words: list[str], tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    write_files(tmp_path)
    workflow = (tmp_path / ".github" / "workflows" / "lmc-verify.yml").read_text(encoding="utf-8")
    assert " ".join(["python -m pip install lmc-verify pytest", *words]) + "\n" in workflow
    calls = [
        [ast.literal_eval(argument) for argument in node.args]
        for node in ast.walk(ast.parse((tmp_path / "noxfile.py").read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "session.install"
    ]
    assert calls == [["lmc-verify", "pytest", *words]]
    assert not [file for file, text in contents(tmp_path).items() if b"@WORDS@" in text or b"@QUOTED@" in text]


def test_the_written_session_runs_what_is_written(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nox = pytest.importorskip("nox")
    write_files(project)
    monkeypatch.setattr(nox.registry, "_REGISTRY", {})
    scope: dict[str, Any] = {"__name__": "written"}
    exec(compile((project / "noxfile.py").read_text(encoding="utf-8"), "noxfile.py", "exec"), scope)
    assert list(nox.registry.get()) == ["gradients"]

    ran: list[tuple[str, ...]] = []
    session = SimpleNamespace(
        posargs=["--lmc-alpha", "1e-6"],
        install=lambda *words: ran.append(("install", *words)),
        run=lambda *words: ran.append(words),
    )
    nox.registry.get()["gradients"].func(session)
    assert ran == [
        ("install", "lmc-verify", "pytest", "-r", "requirements.txt"),
        ("python", "-m", "pytest", "test_gradients.py", "--lmc-alpha", "1e-6"),
        ("lmc-verify", "run", "lmc-verify.toml", "--out", "lmc-verify-report"),
    ]


def test_a_folder_that_is_not_there_is_made(tmp_path: Path, lmc: Command) -> None:
    folder = tmp_path / "new" / "one"
    code, out, _ = lmc("init", str(folder), "--json")
    assert (code, json.loads(out)) == (0, {"folder": str(folder), "written": list(TEMPLATES), "left_alone": []})
    assert set(contents(folder)) == set(TEMPLATES)
    assert f"next, in {folder}:\n" in lmc("init", str(folder))[1]


@pytest.mark.parametrize("place", ["file", "file/inside"])
def test_a_file_in_place_of_the_folder_is_refused(place: str, tmp_path: Path, lmc: Command) -> None:
    (tmp_path / "file").write_text("mine")
    code, out, err = lmc("init", str(tmp_path / place))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "cannot be a folder" in err
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_that_cannot_be_written_is_named(project: Path, lmc: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, *_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    code, out, err = lmc("init")
    assert (code, out) == (5, "")
    assert "cannot write lmc_loop.py: Permission denied; make its folder writable" in err


def test_templates_are_ours_and_say_where_to_replace() -> None:
    assert {file.name for file in _FOLDER.iterdir()} == set(TEMPLATES.values())
    loop = (_FOLDER / "lmc_loop.py.txt").read_text(encoding="utf-8")
    marked = re.findall(r"^def (\w+)\(.*# REPLACE: ", loop, flags=re.MULTILINE)
    assert marked == ["load", "make_batches", "make_step", "train"]
