"""A suite file that no person would write is refused with the package's own words, at once and in little memory."""

from __future__ import annotations

import json
import time
import tracemalloc
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lmc_verify.cases.settings import MOST_SWEEPS, known_histories
from lmc_verify.cli.app import app
from lmc_verify.encoding import MOST_NESTED, nested
from lmc_verify.errors import InvalidInputError
from lmc_verify.runs import load_suite
from lmc_verify.runs.planned import told_apart
from lmc_verify.runs.suite import MOST_TRIALS

RUNNER = CliRunner()

CHECK = '[[check]]\nclaim = "theorem-1/unbiased"\nexpect = "EXACT"\n'


def suite(path: Path, text: str) -> Path:
    path.write_text(f'name = "s"\ntitle = "t"\ncontrols = false\n{text}')
    return path


def many(*, most_trials: str = "") -> str:
    """Return a suite of a million checks: three lists of a hundred."""
    seeds = list(range(100))
    histories = json.dumps([f"sweeps:{number}" for number in range(100)])
    design = ", ".join(f"{{ parts = {number + 2} }}" for number in range(100))
    return f"{most_trials}\n{CHECK}seed = {seeds}\nhistories = {histories}\ndesign = [{design}]\n"


def planned(file: Path) -> None:
    made = load_suite(file)
    made.plan()
    made.races()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (CHECK + "seed = " + "[" * 5000 + "]" * 5000, f"more than {MOST_NESTED} deep"),
        (CHECK + "model = " + "{a=" * 5000 + "1" + "}" * 5000, f"more than {MOST_NESTED} deep"),
        (CHECK + "model.options." + ".".join("a" * 5000) + " = 1", f"more than {MOST_NESTED} deep"),
        (CHECK + "seed = " + "[" * 100 + "]" * 100, f"more than {MOST_NESTED} deep"),
        (CHECK + 'histories = "sweeps:99999999999999999999"', "at most 10,000"),
        (CHECK + f'histories = "sweeps:{"9" * 5000}"', "at most 10,000"),
        (CHECK + 'histories = "sweeps:²"', "at most 10,000"),
        (CHECK + "seed = 9223372036854775808", "less than or equal to 9223372036854775807"),
        (CHECK + "seed = -1", "greater than or equal to 0"),
        (CHECK + f"seed = {'9' * 5000}", "not valid TOML"),
        (CHECK + "design = { name = 'epoch', seen = [-1] }", "greater than or equal to 0"),
        (CHECK + "design = { parts = 99999999999999999999 }", "less than or equal to 2147483647"),
        (CHECK + "model = { width = 99999999999999999999 }", "less than or equal to 2147483647"),
        (CHECK + "training = { steps = 99999999999999999999 }", "less than or equal to 2147483647"),
        (many(), "plans 1,000,000 checks, audits and searches, at most 100,000 are run"),
        (f"# {'x' * 2_000_000}", "has more than 2,000,000 bytes"),
        ('[[race]]\ndataset = "karate"\nestimator = "gas"\nseeds = 999999999999', "999,999,999,999 training runs"),
        (
            f'[[race]]\ndataset = "karate"\nestimator = "gas"\n'
            f"design = {{ parts = {list(range(2, 1002))}, per_batch = {list(range(1, 1001))} }}",
            "5,000,000 training runs",
        ),
        ('[[race]]\ndataset = "karate"\nestimator = "gas"\nseeds = [9223372036854775808]', "less than or equal to"),
    ],
    ids=lambda value: value[-40:] if value.startswith("[[") else value[:25],
)
def test_it_is_refused_at_once(tmp_path: Path, text: str, words: str) -> None:
    file = suite(tmp_path / "s.toml", text)
    tracemalloc.start()
    start = time.perf_counter()
    with pytest.raises(InvalidInputError, match=words):
        planned(file)
    seconds = time.perf_counter() - start
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert seconds < 5
    assert peak < 2**27


def test_a_suite_that_means_so_many_checks_says_so(tmp_path: Path) -> None:
    made = load_suite(suite(tmp_path / "s.toml", many(most_trials="most_trials = 1000000")))
    assert made.counts() == {"check": 1_000_000, "audit": 0, "counterexample": 0}
    made._require_few()
    made = load_suite(suite(tmp_path / "s.toml", many(most_trials="most_trials = 999999")))
    with pytest.raises(InvalidInputError, match="at most 999,999 are run"):
        made.plan()


def test_what_is_counted_is_what_is_planned(tmp_path: Path) -> None:
    text = (
        CHECK.replace("[[check]]\n", "[[check]]\nestimator = ['lmc', 'gas']\nseed = [1, 2, 3]\n")
        + CHECK
        + '[[counterexample]]\nclaim = "theorem-1/unbiased"\nestimator = ["gas", "fm"]\nhistories = ["exact", "zero"]\n'
    )
    made = load_suite(suite(tmp_path / "s.toml", text))
    assert made.counts() == {"check": len(made.plan()), "audit": 0, "counterexample": len(made.searches())}
    labels = [f"check {item.label}" for item in made.plan()] + [item.label for item in made.searches()]
    assert made.lines(MOST_TRIALS) == labels
    assert made.lines(5) == [f"check {item.label}" for item in told_apart([*made._checks(None)][:5])]
    assert made.lines(9)[:7] == labels[:7]
    assert len(made.lines(9)) == 9


def test_a_dry_run_lists_what_would_be_run_and_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = suite(tmp_path / "s.toml", many() + '[[race]]\ndataset = "karate"\nestimator = "gas"\nseeds = 2\n')
    shown = RUNNER.invoke(app, ["run", str(file), "--dry-run"])
    assert shown.exit_code == 0
    lines = shown.output.splitlines()
    assert lines[0] == "check theorem-1/unbiased backward-sgd on digits, histories=sweeps:0"
    assert len(set(lines)) == len(lines) == 1002
    assert lines[-2:] == ["... and 999,000 more", "s: 1,000,000 check, 0 audit, 0 counterexample, 4 race run"]
    assert [item.name for item in tmp_path.iterdir()] == ["s.toml"]
    document = json.loads(RUNNER.invoke(app, ["run", str(file), "--dry-run", "--json"]).output)
    assert document["planned"]["check"] == 1_000_000
    assert len(document["first"]) == 1000


def test_depth_is_counted() -> None:
    assert [nested(value) for value in (1, "ab", [], [1], {"a": [1]}, [[], {"a": ({},)}])] == [0, 0, 1, 1, 2, 4]
    deep: list[object] = []
    for _ in range(10_000):
        deep = [deep]
    assert nested(deep) == MOST_NESTED + 1


def test_sweeps_have_a_limit() -> None:
    assert known_histories(f"sweeps:{MOST_SWEEPS}") == f"sweeps:{MOST_SWEEPS}"
    with pytest.raises(InvalidInputError, match="at most 10,000"):
        known_histories(f"sweeps:{MOST_SWEEPS + 1}")
