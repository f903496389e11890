"""``lmc-verify audit`` judges a user's function in one line of a terminal or of CI: its exit code says what was found,
and what goes wrong is named with the user's line.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from common import loops
from common.command_line import Command

import lmc_verify as lv

FILE = str(Path(loops.__file__))
FILES = {"report.html", "report.md", "report.json", "junit.xml", "records.sqlite"}


@pytest.fixture
def audit(lmc: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Run ``lmc-verify audit`` in this process, in an empty folder; return exit code, output and errors."""
    monkeypatch.chdir(tmp_path)
    return lambda *words, command="audit": lmc(command, *words)


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["whole"], 0),
        (["whole", "--expect", "exact"], 0),
        (["whole", "--expect", "SUPPORTED"], 1),
        (["whole", "--expect", "REFUTED"], 1),
        (["cut"], 1),
        (["cut", "--expect", "refuted"], 0),
        (
            [
                "cut",
                "--set",
                "parts=2",
                "--expect",
                "REFUTED",
                "--cause",
                "missing-neighbours",
                "--cause",
                "batch-mean",
            ],
            0,
        ),
        (["cut", "--expect", "REFUTED", "--cause", "batch-mean"], 1),
        (["cut", "--expect", "EXACT", "--strict"], 1),
        pytest.param(
            ["cut", "--set", "dropout=0.5", "--guarantee", "exact", "--draws", "2"], 0, marks=pytest.mark.slow
        ),
        pytest.param(
            ["cut", "--set", "dropout=0.5", "--guarantee", "exact", "--draws", "2", "--strict"],
            3,
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ["cut", "--set", "dropout=0.5", "--guarantee", "exact", "--draws", "2", "--expect", "REFUTED"],
            1,
            marks=pytest.mark.slow,
        ),
        (["broken"], 5),
        (["crashing"], 5),
        (["not_audited"], 2),
        (["nothing"], 2),
        (["cut", "--set", "part=2"], 2),
        (["cut", "--set", "parts"], 2),
        (["cut", "--draws", "1"], 2),
        (["cut", "--alpha", "2"], 2),
        (["cut", "--guarantee", "sure"], 2),
        (["cut", "--expect", "BIASED"], 2),
        (["cut", "--cause", "batch-mean"], 2),
        (["cut", "--expect", "EXACT", "--cause", "batch-mean"], 2),
    ],
)
def test_the_exit_code_says_what_was_found(words: list[str], code: int, audit: Any, tmp_path: Path) -> None:
    found, _, errors = audit(f"{FILE}:{words[0]}", *words[1:])
    assert found == code, errors
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_it_prints_the_audit_the_expectation_and_the_command(audit: Any) -> None:
    code, out, _ = audit(f"{FILE}:cut", "--set", "parts=2", "--seed", "3", "--expect", "EXACT")
    assert code == 1
    assert out.startswith("REFUTED (exact) loss_step: biased: the mean over all 2 batches is off by ")
    assert "1. batch mean: " in out
    assert "these explain the bias: without them the step is unbiased" in out
    assert "UNEXPECTED: REFUTED, expected EXACT\n" in out
    command = shlex.split(out.splitlines()[-1].removeprefix("again: "))
    assert command == ["lmc-verify", "audit", f"{FILE}:cut", "--alpha", "0.0001", "--seed", "3", "--set", "parts=2"]
    _, again, _ = audit(*command[2:])
    assert again.split("cost:")[0] == out.split("cost:")[0]
    _, out, _ = audit(f"{FILE}:cut", "--expect", "REFUTED", "--cause", "dropout")
    assert "UNEXPECTED: REFUTED by batch-mean, missing-neighbours, expected REFUTED by dropout\n" in out


def test_the_document_holds_the_whole_audit(audit: Any) -> None:
    code, out, _ = audit(f"{FILE}:cut", "--json", "--expect", "REFUTED", "--alpha", "0.01")
    document = json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert code == 0
    assert (document["expected"], document["as_expected"], document["files"]) == ("REFUTED", True, {})
    assert document["verdict"]["outcome"] == document["verdict"]["audit"]["outcome"] == "REFUTED"
    assert document["command"] == f"lmc-verify audit {FILE}:cut --alpha 0.01"
    code, out, _ = audit(f"{FILE}:crashing", "--json")
    document = json.loads(out)
    assert (code, document["exit_code"], document["type"]) == (5, 5, "InfrastructureError")
    assert "raise KeyError" in document["error"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("crashing", "raised KeyError: 'no such key' (loops.py, line "),
        ("broken", "step returned gradients of extra"),
        ("not_audited", "returned a list; it must return a mapping"),
        ("cutt", "did you mean 'cut'?"),
    ],
)
def test_errors_are_one_line(name: str, words: str, audit: Any) -> None:
    _, out, errors = audit(f"{FILE}:{name}")
    assert out == ""
    assert words in errors
    assert errors.startswith("lmc-verify: ")
    assert errors.count("\n") == 1


@pytest.mark.slow
def test_out_writes_records_and_report_which_can_be_replayed(audit: Any, tmp_path: Path) -> None:
    code, out, _ = audit(f"{FILE}:cut", "--out", "out", "--expect", "REFUTED", "--alpha", "0.001")
    assert code == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES
    assert "junit: out/junit.xml\n" in out
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["error_ledger"]["alpha_total"] == 0.001
    (case,) = (case for claim in report["claims"] for case in claim["cases"])
    assert (case["as_expected"], case["verdict"]["audit"]["outcome"]) == (True, "REFUTED")
    code, out, _ = audit("out", command="reproduce")
    assert (code, out) == (0, f"identical: audit {FILE}:cut (REFUTED)\n")
    code, out, _ = audit(f"{FILE}:broken", "--out", "out")
    assert code == 5
    assert out.startswith("ERROR: ContractError: step returned gradients of extra")


@pytest.mark.slow
def test_a_suite_of_audits_is_run_and_told(audit: Any, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(
        f"""
        name = "mine"
        title = "Mine"
        controls = false
        [[audit]]
        function = "{FILE}:cut"
        arguments = [{{ parts = 2 }}, {{ parts = 3 }}]
        expect = "REFUTED"
        causes = ["batch-mean", "missing-neighbours"]
        [[audit]]
        function = "{FILE}:cut"
        arguments = {{ dropout = 0.1 }}
        draws = 20
        expect = "SUPPORTED"
        [[audit]]
        function = "{FILE}:broken"
        expect = "EXACT"
        """
    )
    code, out, errors = audit("mine.toml", "--out", "out", command="run")
    assert code == 1
    assert "batch-mean," in out
    assert "expected SUPPORTED" in out
    assert f"  {FILE}:broken: ContractError: step returned gradients of extra" in out
    assert "error ledger: 2.5e-07 of 1e-06 spent over 1 statistical check (spent, anytime-valid: 0; spent, a" in out
    assert "2 of 4 verdicts as expected" in out
    assert f"[1/4] REFUTED         as expected    audit {FILE}:cut (parts=2)" in errors


@pytest.mark.slow
def test_the_program_finds_modules_in_the_current_folder(tmp_path: Path) -> None:
    (tmp_path / "my_loops.py").write_text(f"import sys\nsys.path.insert(0, {str(Path(FILE).parents[1])!r})\n")
    with (tmp_path / "my_loops.py").open("a") as stream:
        stream.write("from common.loops import whole\n")
    done = subprocess.run(
        [sys.executable, "-c", "from lmc_verify import cli; cli.main()", "audit", "my_loops:whole"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=300,
        env=os.environ
        | {"OMP_WAIT_POLICY": "passive", "PYTHONPATH": str(Path(lv.__file__).parents[1]), "PYTHONSAFEPATH": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("EXACT (exact) loss_step: unbiased")
