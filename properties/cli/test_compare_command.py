"""`lmc-verify compare` reads real runs, prints what got worse, and says so in its exit code."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from common.race_helpers import suite_of
from common.report_helpers import a_report, a_trial

from lmc_verify.cases import Workspace
from lmc_verify.report import compare_runs
from lmc_verify.runs import Records, run_suite

Command = Callable[..., tuple[int, str, str]]

CHECK = """
[[check]]
claim = "theorem-1/unbiased"
dataset = "karate"
estimator = ["backward-sgd", "gas"]
expect = { backward-sgd = "EXACT", gas = "REFUTED" }
"""
SAMPLED = """
[[check]]
claim = "theorem-1/unbiased-sampled"
dataset = "karate"
estimator = ["gas"]
expect = "REFUTED"
"""
AUDIT = """
[[audit]]
function = "{file}:{name}"
expect = "EXACT"
"""
LOOP = """
import torch
from torch.nn import functional

def data():
    torch.manual_seed(0)
    return torch.randn(12, 3), torch.randint(2, (12,))

def sound(weight=1.0):
    features, labels = data()
    model = torch.nn.Linear(3, 2)
    def step(model, batch, data):
        (weight * functional.cross_entropy(model(data[batch]), labels[batch])).backward()
    def objective(model, data):
        return functional.cross_entropy(model(data), labels)
    batches = torch.arange(12).split(3)
    return {"model": model, "data": features, "batches": batches, "step": step, "objective": objective}

def wrong():
    return sound(1.5)
"""


def ran(folder: Path, text: str, replicate: int = 0) -> Path:
    """Run a suite, and return its folder."""
    folder.mkdir(exist_ok=True)
    with Records.create_or_open(folder / "records.sqlite") as records:
        run_suite(suite_of(text), records, Workspace(), replicate=replicate)
    return folder


@pytest.mark.slow
def test_a_real_run_is_the_same_when_the_suite_plans_more(tmp_path: Path, lmc: Command) -> None:
    old = ran(tmp_path / "a", CHECK + SAMPLED)
    more = SAMPLED.replace('["gas"]', '["gas", "fm"]')  # every statistical check gets a smaller share
    new = ran(tmp_path / "b", CHECK + more, replicate=1)
    code, printed, _ = lmc("compare", old, new)
    assert code == 0
    assert printed.startswith("No regression; 3 results in both; 1 in B only.")
    assert "times: B takes" in printed
    code, printed, _ = lmc("compare", new, old)
    assert code == 1
    assert "missing in B: its run does not plan it" in printed


def test_files_and_json(tmp_path: Path, lmc: Command) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    a_report(tmp_path / "a", [a_trial()])
    a_report(tmp_path / "b", [a_trial(outcome="REFUTED", expected="EXACT")])
    code, printed, _ = lmc(
        "compare", tmp_path / "a", tmp_path / "b" / "records.sqlite", "--out", tmp_path / "out", "--json"
    )
    document = json.loads(printed)
    assert code == document["exit_code"] == 1
    assert document["changes"][0]["a"]["outcome"] == "EXACT"
    assert document["changes"][0]["b"]["outcome"] == "REFUTED"
    kept = json.loads((tmp_path / "out" / "comparison.json").read_text(encoding="utf-8"))
    assert {key: value for key, value in document.items() if key != "files"} == kept
    assert all(Path(file).exists() for file in document["files"].values())


def test_usage(tmp_path: Path, lmc: Command) -> None:
    for name, estimator in (("a", "lmc"), ("b", "gas")):
        (tmp_path / name).mkdir()
        a_report(tmp_path / name, [replace(a_trial(estimator=estimator), seconds=1.0)])
    code, _, said = lmc("compare", tmp_path / "a", tmp_path / "b")
    assert (code, "share no case" in said) == (2, True)
    code, _, said = lmc("compare", tmp_path / "a", tmp_path / "a")
    assert (code, "--run-a and --run-b" in said) == (2, True)
    code, _, said = lmc("compare", tmp_path / "a", tmp_path / "b", "--slower", "0.5")
    assert (code, "at least 1" in said) == (2, True)
    assert lmc("compare", tmp_path / "a", tmp_path / "nowhere")[0] in (2, 5)


def test_a_loop_that_is_biased_now_is_a_regression(tmp_path: Path) -> None:
    for name, alias in (("a", "sound"), ("b", "wrong")):
        (tmp_path / name).mkdir()
        # Of another size each: Python takes a file of the same second and size for the one that it has compiled.
        (tmp_path / "loops.py").write_text(LOOP + f"\nchecked = {alias}  # in {tmp_path / name}{name * ord(name)}\n")
        ran(tmp_path / name, AUDIT.format(file=tmp_path / "loops.py", name="checked"))
    made = compare_runs(tmp_path / "a" / "records.sqlite", tmp_path / "b" / "records.sqlite")
    assert [item.either.kind for item in made.changes] == ["audit"]
    assert [reason for _, reason in made.regressions] == ["not as expected any more: expected EXACT"]
    (effect,) = made.effects
    assert effect.old.quantity == "bias"
    assert effect.new.value == pytest.approx(0.5)
    assert effect.moved
