"""The command line answers in one line or one document: exit codes mean one thing each, bad input is named with its
limit and remedy, and nothing is written where it does not belong.
"""

from __future__ import annotations

import dataclasses
import importlib
import io
import json
import os
import random
import re
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from common.crossed import crossed, slow_but
from rich.console import Console

import lmc_verify as lv
from lmc_verify import cli
from lmc_verify.cases import CaseDescription
from lmc_verify.cases.case import build_case
from lmc_verify.cases.settings import CaseSettings
from lmc_verify.cases.workspace import Workspace
from lmc_verify.claims import CLAIMS, Outcome, Verdict
from lmc_verify.cli.print_verdicts import print_verdict
from lmc_verify.controls import CONTROLS, check_control
from lmc_verify.counterexamples import SearchSpace, find_counterexample
from lmc_verify.estimators import ESTIMATORS
from lmc_verify.models import MODELS
from lmc_verify.runs import execution
from lmc_verify.runs.suite import Suite, load_suite

SUITE = """
name = "tiny"
title = "Tiny"
controls = ["sound-lmc", "sign-of-one-layer"]
[[check]]
claim = "theorem-1/unbiased"
dataset = "karate"
estimator = ["lmc", "gas"]
model = { layers = 2, width = 4 }
design = { parts = 3, per_batch = 1 }
expect = { lmc = "EXACT", gas = "REFUTED" }
"""
FILES = {"report.html", "report.md", "report.json", "junit.xml"}
SMALL = ["--dataset", "karate", "--set", "model.layers=2", "--set", "model.width=4", "--set", "design.parts=4"]


@dataclasses.dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


Command = Callable[..., Result]


@pytest.fixture
def lmc(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Command:
    """Run the command line in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LMC_VERIFY_DATA_ROOT", raising=False)
    monkeypatch.setenv("LMC_VERIFY_CACHE", str(tmp_path / "cache"))

    def call(*words: str | Path) -> Result:
        monkeypatch.setattr(sys, "argv", ["lmc-verify", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        captured = capsys.readouterr()
        code = exit_.value.code or 0
        assert isinstance(code, int)
        return Result(code, captured.out, captured.err)

    return call


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    file = tmp_path / "tiny.toml"
    file.write_text(SUITE)
    return file


def rigged(claim: str, monkeypatch: pytest.MonkeyPatch, outcome: Outcome) -> None:
    original = CLAIMS[claim]
    changed = dataclasses.replace(
        original, check=lambda case: dataclasses.replace(original.check(case), outcome=outcome)
    )
    monkeypatch.setitem(CLAIMS, claim, changed)


# --- as a program --------------------------------------------------------------------------------------


def program(*words: str, cwd: Path) -> Result:
    done = subprocess.run(
        [sys.executable, "-m", "lmc_verify.cli", *words],
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=300,
        env=os.environ | {"OMP_WAIT_POLICY": "passive", "PYTHONPATH": str(Path(lv.__file__).parents[1])},
    )
    return Result(done.returncode, done.stdout, done.stderr)


@pytest.mark.slow
def test_the_program_runs_a_suite_and_prints_one_document(tiny: Path, tmp_path: Path) -> None:
    result = program("run", str(tiny), "--json", "--out", "out", cwd=tmp_path)
    assert result.code == 0, result.err
    assert result.json["exit_code"] == 0
    assert "[4/4]" in result.err  # progress goes to standard error
    assert {file.name for file in (tmp_path / "out").iterdir()} >= FILES


def test_the_program_refuses_in_one_line(tmp_path: Path) -> None:
    result = program("check", "theorem-1/unbiased", "--estimator", "gaz", cwd=tmp_path)
    assert (result.code, result.out) == (2, "")
    assert result.err == "lmc-verify: unknown estimator 'gaz': did you mean 'gas'?\n"


# --- every command -------------------------------------------------------------------------------------


def test_without_a_command_the_help_is_shown(lmc: Command) -> None:
    result = lmc()
    assert result.code in (0, 2)
    for name in (
        "run",
        "report",
        "table",
        "check",
        "counterexample",
        "reproduce",
        "controls",
        "list",
        "explain",
        "doctor",
    ):
        assert name in result.out + result.err
        assert lmc(name, "--help").code == 0


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("estimators", set(ESTIMATORS)),
        ("claims", set(CLAIMS)),
        ("models", set(MODELS)),
        ("controls", set(CONTROLS)),
        ("datasets", set(lv.dataset_names())),
        ("suites", {"smoke", "theorem-check"}),
    ],
)
def test_list(kind: str, names: set[str], lmc: Command) -> None:
    plain, document = lmc("list", kind), lmc("list", kind, "--json")
    assert (plain.code, document.code, plain.err, document.err) == (0, 0, "", "")
    rows = document.json
    assert names <= {row.get("name", row.get("id")) for row in rows}
    for row in rows:
        assert all(isinstance(value, str) for value in row.values())
        assert row.get("name", row.get("id")) in plain.out
        assert row.get("description", row.get("title", row.get("source")))


@pytest.mark.parametrize("claim", slow_but({"theorem-1/unbiased", "e7/reductions", "theorem-3/rate"}, CLAIMS))
def test_explain(claim: str, lmc: Command) -> None:
    plain, document = lmc("explain", claim), lmc("explain", claim, "--json")
    assert (plain.code, document.code, plain.err, document.err) == (0, 0, "", "")
    assert document.json["id"] == claim
    assert set(document.json) == {
        "id",
        "title",
        "statement",
        "source",
        "tier",
        "theory",
        "assumptions",
        "check",
        "page",
    }
    assert all(document.json.values())
    for item in document.json["assumptions"]:
        assert item["statement"] in " ".join(plain.out.split())
    required = [item["id"] for item in document.json["assumptions"] if item["required"]]
    assert required == [assumption.id for assumption in CLAIMS[claim].required]
    assert required == re.findall(r"^- (\S+) \(required\):", plain.out, re.MULTILINE)


def test_doctor(lmc: Command, tmp_path: Path) -> None:
    plain, document = lmc("doctor"), lmc("doctor", "--json", "--data-root", tmp_path)
    assert (plain.code, document.code) == (0, 0)
    assert document.json["lmc-verify"] == lv.__version__
    assert document.json["data root"] == f"{tmp_path} (found)"
    assert "not set" in plain.out
    assert {"torch", "numpy", "python", "platform", "cuda", "code"} <= set(document.json)


@pytest.mark.slow
def test_controls(lmc: Command) -> None:
    plain = lmc("controls", "sound-lmc", "sign-of-one-layer")
    document = lmc("controls", "sound-lmc", "sign-of-one-layer", "--json")
    assert (plain.code, document.code, document.err) == (0, 0, "")
    assert "1 of 1 defects above the detectable effect caught (100%)" in plain.out
    assert set(document.json) == {"controls", "mutation_score"}
    assert [item["control"]["passed"] for item in document.json["controls"]] == [True, True]
    assert document.json["mutation_score"] == {"caught": 1, "above": 1, "below": 0}
    sound = lmc("controls", "sound-lmc", "--json").json
    assert sound["mutation_score"] == {"caught": 0, "above": 0, "below": 0}


def test_a_missed_defect_lowers_the_mutation_score(lmc: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    rigged("theorem-1/unbiased", monkeypatch, Outcome.EXACT)
    document = lmc("controls", "sign-of-one-layer", "--json")
    assert (document.code, document.json["mutation_score"]) == (4, {"caught": 0, "above": 1, "below": 0})


def test_check(lmc: Command) -> None:
    plain = lmc("check", "theorem-1/unbiased", "--estimator", "gas", *SMALL)
    document = lmc("check", "theorem-1/unbiased", "--estimator", "gas", *SMALL, "--json")
    assert (plain.code, document.code, plain.err, document.err) == (0, 0, "", "")
    assert plain.out.startswith("REFUTED theorem-1/unbiased: biased")
    assert "as expected (REFUTED): messages from the halo are dropped" in plain.out
    values = document.json
    assert values["as_expected"] is True
    assert Verdict.from_dict(values["verdict"]).outcome is Outcome.REFUTED
    assert values["verdict"]["case"]["layers"] == 2
    again = lmc(*values["command"].split()[1:], "--json")  # nothing in it needs quoting
    assert again.json["verdict"] == values["verdict"]


def test_run_report_and_resume(tiny: Path, lmc: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = lmc("run", tiny)
    out = tmp_path / "reports" / "out" / "tiny"
    assert first.code == 0
    assert "2 of 2 verdicts as expected" in first.out
    assert "2 of 2 controls passed" in first.out
    assert FILES | {"records.sqlite"} == {file.name for file in out.iterdir()}
    page = (out / "report.html").read_text()
    assert not re.findall(r"""(?:src|href)\s*=\s*["']?(?!#|data:)[^\s"'>]+""", page)
    assert not re.findall(r"@import|url\((?!['\"]?(?:#|data:))|<script[^>]+src|<link", page)

    for file in FILES:
        (out / file).unlink()
    rendered = lmc("report", out)
    assert rendered.code == 0
    assert FILES | {"records.sqlite"} == {file.name for file in out.iterdir()}
    assert (out / "report.html").read_text() == page
    elsewhere = lmc("report", out / "records.sqlite", "--out", "elsewhere", "--suite", "tiny", "--json")
    assert (elsewhere.code, elsewhere.err) == (0, "")
    assert {Path(file).name for file in elsewhere.json["files"].values()} == FILES
    assert {file.name for file in (tmp_path / "elsewhere").iterdir()} == FILES

    monkeypatch.setattr(execution, "run_planned", lambda *args: pytest.fail("something was computed"))
    resumed = lmc("run", tiny, "--resume")
    assert resumed.code == 0
    assert "4 trials reused" in resumed.out
    document = lmc("run", tiny, "--resume", "--json")
    assert document.json["reused"] == 4
    assert document.json["not_run"] == []
    assert len(document.json["trials"]) == 4
    assert all(Path(file).is_file() for file in document.json["files"].values())


def test_a_suite_of_the_package_is_run_by_name(lmc: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(chosen: Suite, *args: Any, **options: Any) -> None:
        raise lv.InvalidInputError(f"this is {chosen.title!r}")

    monkeypatch.setattr("lmc_verify.runs.run_suite", refuse)
    assert lmc("run", "smoke").err == f"lmc-verify: this is {load_suite('smoke').title!r}\n"


STATISTICAL = """
[[check]]
claim = "theorem-1/unbiased-sampled"
dataset = "karate"
estimator = ["lmc", "gas", "fm"]
model = { layers = 2, width = 4 }
design = { parts = 6, per_batch = 2 }
expect = { lmc = "SUPPORTED", gas = "REFUTED", fm = "REFUTED" }
"""


@pytest.mark.slow
def test_the_error_ledger_is_printed_and_another_replicate_draws_again(tiny: Path, lmc: Command) -> None:
    plain = lmc("run", tiny)
    assert "error ledger" not in plain.out
    tiny.write_text(SUITE.replace('title = "Tiny"', 'title = "Tiny"\nalpha_total = 1e-3') + STATISTICAL)
    first = lmc("run", tiny, "--json")
    assert first.code == 0, first.err
    document = first.json
    spent = [item["verdict"]["alpha_spent"] for item in document["trials"] if item["kind"] == "claim"]
    assert document["alpha_total"] == 1e-3
    assert document["alpha_spent"] == pytest.approx(sum(spent))
    assert sum(spent) > 0
    assert all(share == 0 or share == pytest.approx(1e-3 / 3) for share in spent)
    checks = sum(share > 0 for share in spent)
    again = lmc("run", tiny, "--resume", "--replicate", "1")
    assert again.code == 0
    assert "4 trials reused" in again.out
    shown = f"error ledger: {sum(spent):.2g} of 0.001 spent over {checks} statistical check{'s' * (checks != 1)}\n"
    assert shown in again.out
    assert lmc("run", tiny, "--replicate", "-1").code == 2


NO_RANGE = """
[[check]]
claim = "theorem-1/unbiased-sampled"
dataset = "karate"
estimator = "gas"
model = { name = "gat", layers = 2, width = 3 }
design = { name = "nodes", per_batch = 16 }
sampling = { draws = 400 }
expect = "REFUTED"
"""


@pytest.mark.slow
def test_an_asymptotic_guarantee_is_counted_apart_and_can_be_refused(tiny: Path, lmc: Command) -> None:
    """GAT has no proven range, and a design of nodes is too large to look at every batch."""
    tiny.write_text(SUITE + NO_RANGE)
    found = lmc("run", tiny, "--json")
    assert found.code == 0, found.err
    assert found.json["alpha_spent_asymptotic"] == found.json["alpha_spent"] == pytest.approx(1e-6)
    assert "asymptotic" in [trial["verdict"]["guarantee"] for trial in found.json["trials"]]
    shown = lmc("run", tiny, "--resume").out
    assert "spent over 1 statistical check (spent, anytime-valid: 0; spent, asymptotic: 1e-06)\n" in shown
    tiny.write_text((SUITE + NO_RANGE).replace("draws = 400", 'draws = 400, guarantee = "asymptotic"'))
    refused = lmc("run", tiny, "--guarantee", "anytime-valid", "--json")
    assert refused.code == 1, "the suite asks for a decision"
    assert refused.json["alpha_spent"] == 0
    assert "INCONCLUSIVE" in [trial["verdict"]["outcome"] for trial in refused.json["trials"]]
    wrong = lmc("run", tiny, "--guarantee", "certain")
    assert wrong.code == 2
    assert "guarantee" in wrong.err


@pytest.mark.slow
def test_check_takes_a_guarantee(lmc: Command) -> None:
    words = ["check", "theorem-1/unbiased-sampled", "--estimator", "gas", "--dataset", "karate"]
    for setting in ("model.name=gat", "model.layers=2", "model.width=3", "design.name=nodes", "design.per_batch=16"):
        words += ["--set", setting]
    found = lmc(*words, "--json")
    assert found.json["verdict"]["outcome"] == "REFUTED"
    assert found.json["verdict"]["guarantee"] == "asymptotic"
    refused = lmc(*words, "--guarantee", "anytime-valid", "--json")
    assert refused.json["verdict"]["outcome"] == "INCONCLUSIVE"
    assert "'sampling.guarantee=\"anytime-valid\"'" in refused.json["command"]


@pytest.mark.slow
def test_more_error_probability_than_there_is_is_1(tiny: Path, lmc: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    original = CLAIMS["theorem-1/unbiased"]
    wasteful = lambda case: dataclasses.replace(original.check(case), alpha_spent=1e-6)  # noqa: E731
    monkeypatch.setitem(CLAIMS, original.id, dataclasses.replace(original, check=wasteful))
    result = lmc("run", tiny)
    assert result.code == 1
    assert "error ledger: 2e-06 of 1e-06 spent over 2 statistical checks, MORE THAN ALPHA_TOTAL" in result.out
    assert "spent an error level of 2e-6, more than 1e-6" in result.out


@pytest.mark.slow
def test_table(tiny: Path, lmc: Command) -> None:
    assert lmc("run", tiny, "--out", "out").code == 0
    result = lmc("table", "out", "--dataset", "karate")
    assert (result.code, result.err) == (0, "")
    head, rule, row = result.out.splitlines()
    assert head.startswith("| claim | backward-sgd | lmc | ")
    assert set(rule) <= set("|:- ")
    assert row == "| `theorem-1/unbiased` | – | EXACT | – | – | REFUTED | – | – |"
    assert lmc("table", "out/records.sqlite").out == result.out
    assert "no case of data set 'cora'; it has 'karate'" in lmc("table", "out", "--dataset", "cora").err


SEARCHES = """
[[counterexample]]
claim = "theorem-1/unbiased"
estimator = "gas"
max_nodes = 2

[[counterexample]]
claim = "theorem-1/unbiased"
estimator = "lmc"
examples = 4
expect = "none"
"""


@pytest.mark.slow
def test_a_suite_finds_counterexamples(
    tiny: Path, lmc: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.write_text(SUITE + SEARCHES)
    result = lmc("run", tiny, "--out", "out")
    assert result.code == 0
    assert "[6/6] NONE" in result.err
    assert "2 of 2 searches for counterexamples as expected" in result.out
    (file,) = (tmp_path / "out" / "counterexamples").glob("*.json")
    assert f"counterexample: out/counterexamples/{file.name}" in result.out
    assert file.with_suffix(".safetensors").is_file()
    page = (tmp_path / "out" / "report.html").read_text()
    assert 'href="#counterexample-1"' in page
    page = re.sub(r"<[^>]*>", "", page)
    for word in ("cluster 0", f"lmc-verify reproduce counterexamples/{file.name}"):
        assert word in page
    monkeypatch.chdir(tmp_path / "out")  # where the report says that the command works
    replayed = lmc("reproduce", f"counterexamples/{file.name}")
    assert (replayed.code, replayed.out) == (0, "identical: theorem-1/unbiased gas (REFUTED)\n")
    monkeypatch.chdir(tmp_path)
    again = lmc("run", tiny, "--out", "out", "--resume", "--json")
    assert again.json["reused"] == 6
    assert [item["outcome"] for item in again.json["counterexamples"]] == ["found", "none"]
    tiny.write_text(SUITE + SEARCHES.replace('expect = "none"', 'expect = "found"'))
    other = lmc("run", tiny, "--out", "out", "--resume")
    assert other.code == 1
    assert "1 of 2 searches for counterexamples is not as expected" in other.out
    assert "theorem-1/unbiased lmc: expected found: no counterexample among" in other.out


def test_a_search_that_cannot_be_made_leaves_no_folder(tiny: Path, lmc: Command, tmp_path: Path) -> None:
    tiny.write_text(SUITE + SEARCHES.replace("max_nodes = 2", "max_nodes = 20"))
    result = lmc("run", tiny, "--out", "out")
    assert result.code == 2
    assert "[[counterexample]] number 1: max_nodes is 20" in result.err
    assert not (tmp_path / "out").exists()


def test_counterexample_and_reproduce(lmc: Command, tmp_path: Path) -> None:
    words = ["counterexample", "theorem-1/unbiased", "--estimator", "cluster-gcn", "--max-nodes", "3", "--out", "found"]
    plain, document = lmc(*words), lmc(*words, "--json")
    assert (plain.code, document.code, plain.err, document.err) == (0, 0, "", "")
    assert plain.out.startswith("counterexample with 2 nodes and 2 directed edges")
    for part in ("bias per layer", "edges: 0->1, 1->0", "features: ", "batches: [1], [0]", "layers.0.conv.bias = "):
        assert part in plain.out
    values = document.json
    assert values["found"] is True
    assert (values["nodes"], values["edges"]) == (2, 2)
    assert Verdict.from_dict(values["verdict"]).outcome is Outcome.REFUTED
    assert {file.name for file in tmp_path.iterdir()} == {"found"}
    name = "theorem-1-unbiased-cluster-gcn"
    assert {file.name for file in (tmp_path / "found").iterdir()} == {
        f"{name}.{suffix}" for suffix in ("json", "safetensors", "svg", "png")
    }
    replayed = lmc(*values["command"].split()[1:])
    assert (replayed.code, replayed.out) == (0, "identical: theorem-1/unbiased cluster-gcn (REFUTED)\n")
    tensors = tmp_path / "found" / f"{name}.safetensors"
    again = lmc("reproduce", tensors, "--json")
    assert again.json["identical"] is True
    assert lmc("reproduce", tensors, "--trial", "1").code == 2
    tensors.write_bytes(tensors.read_bytes()[:-1])
    tampered = lmc("reproduce", tensors)
    assert tampered.code == 2
    assert "damaged or was changed" in tampered.err


@pytest.mark.slow
def test_a_search_that_finds_nothing_says_so(lmc: Command, tmp_path: Path) -> None:
    words = ["counterexample", "theorem-1/unbiased", "--estimator", "lmc", "--examples", "10", "--seed", "1"]
    plain, document = lmc(*words), lmc(*words, "--json")
    assert (plain.code, document.code) == (0, 0)
    cases = document.json["cases"]
    assert document.json["found"] is False
    assert plain.out == f"no counterexample among {cases} cases; finding none proves nothing\n"
    assert list(tmp_path.iterdir()) == []


def test_the_loss_weighting_alone_is_printed_under_its_present_name() -> None:
    described = CaseDescription(
        model_options={"weighting": "edges", "renormaliser": 1}, estimator="mine", normaliser="node-count"
    )
    printed = io.StringIO()
    verdict = Verdict("theorem-1/unbiased", Outcome.EXACT, "found", case=described)
    print_verdict(verdict, None, "none", Console(file=printed, width=200), as_expected=None)
    line = "case: weighting=edges, renormaliser=1, estimator=mine, weighting=node-count\n"
    assert line in printed.getvalue()


@pytest.mark.slow
def test_settings_reach_the_search(lmc: Command) -> None:
    words = ["counterexample", "theorem-1/unbiased", "--estimator", "backward-sgd", "--max-nodes", "3"]
    settings = ["--set", "estimator.weighting=node-count", "--set", "model.name=sage", "--set", "model.layers=1"]
    values = lmc(*words, *settings, "--json").json
    assert values["found"] is True
    assert values["verdict"]["case"]["normaliser"] == "node-count"
    assert (values["verdict"]["case"]["model"], values["verdict"]["case"]["layers"]) == ("sage", 1)


@pytest.mark.slow
def test_recorded_trials_are_reproduced(tiny: Path, lmc: Command, tmp_path: Path) -> None:
    assert lmc("run", tiny, "--out", "out").code == 0
    listing, document = lmc("reproduce", "out"), lmc("reproduce", "out/records.sqlite", "--json")
    assert (listing.code, document.code) == (0, 0)
    rows = document.json["trials"]
    assert [row["outcome"] for row in rows] == ["EXACT", "REFUTED", "EXACT", "REFUTED"]
    for row in rows:
        assert row["key"] in listing.out
    every = lmc("reproduce", "out", "--all")
    assert every.code == 0
    assert every.out.count("identical: ") == 4
    assert "control sign-of-one-layer (REFUTED)" in every.out
    assert "4 of 4 identical" in every.out
    one = lmc("reproduce", "out", "--trial", rows[1]["key"], "--json").json
    assert [item["label"] for item in one["replays"]] == ["theorem-1/unbiased gas on karate"]
    assert lmc("reproduce", "out", "--trial", "no key").code == 2
    assert "no run 7" in lmc("reproduce", "out", "--run", "7").err


@pytest.mark.slow
def test_a_replay_that_differs_is_1_and_names_the_numbers(
    tiny: Path, lmc: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert lmc("run", tiny, "--out", "out").code == 0
    original = CLAIMS["theorem-1/unbiased"]

    def off(case: Any) -> Verdict:
        verdict = original.check(case)
        return dataclasses.replace(verdict, residual=(verdict.residual or 0.0) + 1.0)

    monkeypatch.setitem(CLAIMS, original.id, dataclasses.replace(original, check=off))
    threads = torch.get_num_threads()
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads + 1)
    plain, document = lmc("reproduce", "out", "--trial", "2"), lmc("reproduce", "out", "--all", "--json")
    assert (plain.code, document.code, document.json["exit_code"]) == (1, 1, 1)
    assert plain.out.startswith("1 value differs: theorem-1/unbiased gas on karate (REFUTED)\n  verdict.residual: rec")
    assert f"may explain it: environment.threads: recorded {threads}, now {threads + 1}" in plain.out
    # "sound-lmc" is a control of another claim, and still the same.
    assert [item["identical"] for item in document.json["replays"]] == [False, False, True, False]


@pytest.mark.slow
def test_trials_of_another_version_s_commands_are_named(
    tiny: Path, lmc: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lmc_verify.runs.planned import Planned

    for command, message in (
        ("lmc-verify check theorem-1/unbiased --bogus 1", r"cannot be replayed: .* '--bogus' where.*the version that"),
        ("lmc-verify check theorem-1/unbiased --set modl.layers=2", r"modl: unknown setting; did you mean 'model'"),
        ("lmc-verify train", r"'lmc-verify train' is not a check; replay it with the version"),
        ("make all", r"'make all' is not one that lmc-verify writes; replay"),
    ):
        monkeypatch.setattr(Planned, "command", property(lambda self, text=command: text))
        assert lmc("run", tiny, "--out", "out").code == 0
        single = lmc("reproduce", "out", "--trial", "1")
        assert single.code == 2
        assert re.search(message, single.err), single.err
        every = lmc("reproduce", "out", "--all")
        assert every.code == 2
        assert "2 of 4 identical" in every.out  # the controls are known by name
        assert every.out.count("not replayed: ") == 2


@pytest.mark.slow
def test_a_control_whose_defect_is_refused_is_replayed_and_reused_as_any_other(tiny: Path, lmc: Command) -> None:
    """Its outcome is ERROR, and it passes: nothing has crashed."""
    tiny.write_text(tiny.read_text().replace('"sign-of-one-layer"', '"gradient-accumulated"'))
    assert lmc("controls", "gradient-accumulated").code == 0
    assert lmc("run", tiny, "--out", "out").code == 0
    every = lmc("reproduce", "out", "--all", "--json")
    assert every.json["replays"][-1]["outcome"] == "ERROR"
    assert (every.code, every.json["identical"], every.json["exit_code"]) == (0, True, 0)
    again = lmc("run", tiny, "--out", "out", "--resume")
    assert again.code == 0
    assert "4 trials reused" in again.out


def test_a_replay_that_crashes_as_the_recorded_trial_did_is_5(
    tiny: Path, lmc: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(case: Any) -> Verdict:
        raise MemoryError("no memory")

    monkeypatch.setitem(CLAIMS, "theorem-1/unbiased", dataclasses.replace(CLAIMS["theorem-1/unbiased"], check=crash))
    assert lmc("run", tiny, "--out", "out").code == 5
    result = lmc("reproduce", "out", "--trial", "1")
    assert result.code == 5
    assert result.out.startswith("identical: ")


# --- exit codes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("spelling", ["EXACT", "exact", "Exact"])
def test_an_expectation_may_be_given(spelling: str, lmc: Command) -> None:
    good = lmc("check", "theorem-1/unbiased", "--estimator", "lmc", "--expect", spelling, *SMALL)
    assert (good.code, good.err) == (0, "")
    bad = lmc("check", "theorem-1/unbiased", "--estimator", "gas", "--expect", spelling, *SMALL)
    assert bad.code == 1
    assert "unexpected (expected EXACT): as asked for" in bad.out


def test_not_applicable_may_be_expected_with_a_dash(lmc: Command) -> None:
    assert lmc("check", "e6/bias-per-layer", "--estimator", "lmc", "--expect", "not-applicable", *SMALL).code == 0


@pytest.mark.slow
def test_inconclusive_is_3_when_strict(tiny: Path, lmc: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    rigged("theorem-1/unbiased", monkeypatch, Outcome.INCONCLUSIVE)
    words = ["check", "theorem-1/unbiased", *SMALL]
    assert lmc(*words, "--expect", "INCONCLUSIVE").code == 0
    assert lmc(*words, "--expect", "INCONCLUSIVE", "--strict").code == 3
    text = SUITE.replace('expect = { lmc = "EXACT", gas = "REFUTED" }', 'expect = "INCONCLUSIVE"')
    tiny.write_text(re.sub("controls = .*", "controls = false", text))
    assert lmc("run", tiny).code == 0
    assert lmc("run", tiny, "--strict", "--json").code == 3


def test_what_is_not_decided_does_not_contradict_theory(lmc: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    rigged("theorem-1/unbiased", monkeypatch, Outcome.INCONCLUSIVE)
    words = ["check", "theorem-1/unbiased", *SMALL]
    result = lmc(*words)  # theory says EXACT
    assert result.code == 0
    assert "undecided (expected EXACT): " in result.out
    document = lmc(*words, "--json").json
    assert (document["expected"], document["as_expected"]) == ("EXACT", None)
    assert lmc(*words, "--strict").code == 3


@pytest.mark.slow
@pytest.mark.parametrize("strict", [[], ["--strict"]])
def test_who_asks_for_an_outcome_asks_for_a_decision(
    strict: list[str], tiny: Path, lmc: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    rigged("theorem-1/unbiased", monkeypatch, Outcome.INCONCLUSIVE)
    words = ["check", "theorem-1/unbiased", *SMALL, *strict]
    assert lmc(*words, "--expect", "EXACT").code == 1
    assert lmc(*words, "--expect", "EXACT", "--json").json["as_expected"] is False
    tiny.write_text(re.sub("controls = .*", "controls = false", SUITE))  # a suite always says what it expects
    assert lmc("run", tiny, *strict).code == 1


@pytest.mark.parametrize("outcome", [Outcome.REFUTED, Outcome.VACUOUS, Outcome.NOT_APPLICABLE])
def test_every_other_outcome_contradicts_theory(
    outcome: Outcome, lmc: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    rigged("theorem-1/unbiased", monkeypatch, outcome)
    result = lmc("check", "theorem-1/unbiased", *SMALL, "--strict")
    assert result.code == 1
    assert "unexpected (expected EXACT): " in result.out


@pytest.mark.slow
def test_an_unexpected_verdict_of_a_suite_is_1(tiny: Path, lmc: Command) -> None:
    tiny.write_text(SUITE.replace('gas = "REFUTED"', 'gas = "EXACT"'))
    assert lmc("run", tiny, "--json").json["exit_code"] == 1
    result = lmc("run", tiny)
    assert result.code == 1
    assert "1 of 2 verdicts as expected" in result.out
    assert "expected EXACT" in result.out


@pytest.mark.slow
def test_a_control_that_fails_is_4(tiny: Path, lmc: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    rigged("theorem-1/unbiased", monkeypatch, Outcome.EXACT)
    assert lmc("controls", "sign-of-one-layer").code == 4
    result = lmc("run", tiny)  # the verdict of GAS is unexpected too, and outranked
    assert result.code == 4
    assert "sign-of-one-layer: FAILED" in result.out


@pytest.mark.slow
def test_a_crash_is_5(tiny: Path, lmc: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(case: Any) -> Verdict:
        raise MemoryError("no memory [left]")

    for claim in ("theorem-1/unbiased", "e1/equals-backward-sgd"):
        monkeypatch.setitem(CLAIMS, claim, dataclasses.replace(CLAIMS[claim], check=crash))
    assert lmc("check", "theorem-1/unbiased", "--expect", "error", *SMALL).code == 0
    result = lmc("check", "theorem-1/unbiased", *SMALL)
    assert result.code == 5
    assert "ERROR theorem-1/unbiased: MemoryError: no memory [left] (test_cli.py" in result.out
    assert lmc("controls", "sound-lmc", "sign-of-one-layer").code == 5
    assert lmc("run", tiny).code == 5


def test_a_defect_of_the_program_is_5_and_not_1(lmc: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(case: Any) -> Any:
        raise ZeroDivisionError("a defect in the theory")

    claim = CLAIMS["theorem-1/unbiased"]
    monkeypatch.setitem(CLAIMS, claim.id, dataclasses.replace(claim, expect=crash))
    result = lmc("check", claim.id, *SMALL)
    assert result.code == 5
    assert "ZeroDivisionError: a defect in the theory" in result.err


@pytest.mark.slow
def test_nothing_checked_is_6(tiny: Path, lmc: Command) -> None:
    text = SUITE.replace('"karate"', '"cora"').replace("expect =", "optional = true\nexpect =")
    tiny.write_text(re.sub("controls = .*", "controls = false", text))
    result = lmc("run", tiny)
    assert result.code == 6
    assert "not run: 2 planned checks: " in result.out
    document = lmc("run", tiny, "--json")
    assert document.code == document.json["exit_code"] == 6
    assert len(document.json["not_run"]) == 2


# --- bad input -----------------------------------------------------------------------------------------

CHECK = ["check", "theorem-1/unbiased"]
KARATE = ["--dataset", "karate"]
BAD: dict[str, tuple[list[str], str]] = {
    "claim": (["check", "theorem-1/unbaised"], r"unknown claim 'theorem-1/unbaised'.*did you mean 'theorem-1/unb"),
    "explained claim": (["explain", "theorem-2"], r"unknown claim 'theorem-2': did you mean 'theorem-2/"),
    "estimator": ([*CHECK, "--estimator", "lcm"], r"unknown estimator 'lcm'.*did you mean 'lmc'"),
    "data set": ([*CHECK, "--dataset", "karat"], r"unknown data set 'karat'.*did you mean 'karate'"),
    "model": ([*CHECK, *KARATE, "--set", "model.name=gnc"], r"unknown model 'gnc'.*'gcn'"),
    "control": (["controls", "sound-lcm"], r"unknown control 'sound-lcm'.*did you mean 'sound-lmc'"),
    "suite": (["run", "smok"], r"unknown suite 'smok'.*did you mean 'smoke'"),
    "suite file": (["run", "none.toml"], r"no suite file none\.toml.*smoke"),
    "outcome": ([*CHECK, "--expect", "refused"], r"unknown outcome 'REFUSED'.*did you mean.*'REFUTED'"),
    "parts": ([*CHECK, *KARATE, "--set", "design.parts=35"], r"35.*34 nodes"),
    "per_batch": ([*CHECK, *KARATE, "--set", "design.parts=4", "--set", "design.per_batch=5"], r"per_batch is 5.* 4 "),
    "nodes": ([*CHECK, *KARATE, "--set", "design.name=nodes", "--set", "design.per_batch=40"], r"size is 40.* 34 "),
    "seen": (
        [*CHECK, *KARATE, "--set", "design.name=epoch", "--set", "design.seen=[9]"],
        r"seen=\(9,\).*between 0 and 7",
    ),
    "no value": ([*CHECK, "--set", "model.layers"], r"--set 'model.layers' is not KEY=VALUE.*model.layers=2"),
    "no key": ([*CHECK, "--set", "=2"], r"--set '=2' is not KEY=VALUE"),
    "no table": ([*CHECK, "--set", "seed.x=2"], r"--set seed.x: 'seed' is not a table"),
    "unknown setting": ([*CHECK, "--set", "model.depth=2"], r"model\.depth"),
    "unknown table": ([*CHECK, "--set", "modell.layers=2"], r"modell"),
    "value": ([*CHECK, "--set", "model.layers=0"], r"model\.layers.*greater than or equal to 1"),
    "type": ([*CHECK, "--set", "model.layers=three"], r"model\.layers.*integer"),
    "beta": ([*CHECK, *KARATE, "--estimator", "lmc", "--set", "estimator.beta=1.5"], r"beta is 1\.5.*\[0, 1\]"),
    "beta type": ([*CHECK, *KARATE, "--estimator", "lmc", "--set", "estimator.beta=much"], r"much"),
    "estimator setting": (
        [*CHECK, *KARATE, "--estimator", "gas", "--set", "estimator.beta=1"],
        r"'gas'.*'beta'.*weighting",
    ),
    "estimator switch": (
        [*CHECK, *KARATE, "--estimator", "cluster-gcn", "--set", "estimator.renormalise=no"],
        r"renormalise is 'no'.*true or false",
    ),
    "data set option": ([*CHECK, *KARATE, "--set", "dataset.size=9"], r"'karate'.*'size'.*no options"),
    "histories": ([*CHECK, *KARATE, "--histories", "sweeps:many"], r"'sweeps:many'.*'exact', 'zero' or 'sweeps:K'"),
    "negative seed": ([*CHECK, *KARATE, "--seed", "-1"], r"seed.*greater than or equal to 0"),
    "sweeps over nodes": (
        [*CHECK, *KARATE, "--set", "design.name=nodes", "--histories", "sweeps:1", "--estimator", "lmc"],
        r"sweeps need a design over clusters.*design.name",
    ),
    "absent data": ([*CHECK, "--dataset", "cora"], r"cora.*(--data-root|data_root|LMC_VERIFY_DATA_ROOT)"),
    "jobs": (["run", "TINY", "--jobs", "0"], r"jobs is 0, it must be at least 1"),
    "records": (["report", "nowhere"], r"no records at nowhere"),
    "searched claim": (["counterexample", "theorem-1/unbaised", "--estimator", "gas"], r"did you mean 'theorem-1/unb"),
    "searched estimator": (["counterexample", "theorem-1/unbiased", "--estimator", "gaz"], r"did you mean 'gas'"),
    "searched data set": (
        ["counterexample", "theorem-1/unbiased", "--estimator", "gas", "--set", "dataset.name=karate"],
        r"dataset cannot be set in a search: graphs are drawn",
    ),
    "searched nodes": (
        ["counterexample", "theorem-1/unbiased", "--estimator", "gas", "--max-nodes", "99"],
        r"max_nodes is 99.*1 \.\.\. 12",
    ),
    "replayed file": (["reproduce", "nowhere.json"], r"cannot read the counterexample nowhere\.json"),
    "replayed records": (["reproduce", "nowhere"], r"no records at nowhere"),
}


@pytest.mark.parametrize(
    ("as_json", "what"), crossed([False, True], BAD), ids=lambda value: {False: "plain", True: "json"}.get(value, value)
)
def test_bad_input_is_named_in_one_line(what: str, as_json: bool, lmc: Command, tiny: Path, tmp_path: Path) -> None:
    words, message = BAD[what]
    words = [str(tiny) if word == "TINY" else word for word in words]
    result = lmc(*words, *(["--json"] if as_json else []))
    assert result.code == 2
    assert result.err.startswith("lmc-verify: ")
    assert result.err.count("\n") == 1, result.err
    assert re.search(message, result.err), result.err
    assert "Traceback" not in result.err
    if as_json:
        assert result.json["exit_code"] == 2
        assert result.json["error"] == result.err.removeprefix("lmc-verify: ").strip()
    else:
        assert result.out == ""


@pytest.mark.parametrize(
    "words", [["chekc"], ["list", "estimator"], ["check"], ["run", "smoke", "--jobs", "two"], ["check", "a", "--bogus"]]
)
def test_wrong_usage_is_2(words: list[str], lmc: Command) -> None:
    result = lmc(*words)
    assert (result.code, result.out) == (2, "")
    assert "Traceback" not in result.err
    assert "Usage" in result.err


def corrupt(file: Path) -> None:
    with sqlite3.connect(file) as connection:
        connection.execute("CREATE TABLE theirs (id)")
    file.write_bytes(file.read_bytes()[:40] + b"\x00" * 600)


def foreign(file: Path) -> None:
    with sqlite3.connect(file) as connection:
        connection.execute("CREATE TABLE theirs (id)")
    connection.close()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (foreign, r"SQLite database of another program"),
        (corrupt, r"records|damaged|another program"),
        (lambda file: file.write_text("no database at all " * 20), r"not a records file"),
        (lambda file: file.mkdir(), r"is a folder"),
    ],
    ids=["foreign", "corrupt", "text", "folder"],
)
@pytest.mark.parametrize("command", ["run", "report"])
def test_a_file_that_is_not_ours_is_left_alone(
    command: str, make: Callable[[Path], object], message: str, tiny: Path, lmc: Command, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    file = tmp_path / "out" / "records.sqlite"
    make(file)
    before = file.read_bytes() if file.is_file() else None
    result = lmc("run", tiny, "--out", "out") if command == "run" else lmc("report", "out")
    assert result.code == 2
    assert re.search(message, result.err), result.err
    assert "records.sqlite" in result.err
    assert result.err.count("\n") == 1
    assert (file.read_bytes() if file.is_file() else None) == before
    assert {item.name for item in (tmp_path / "out").iterdir()} == {"records.sqlite"}


@pytest.mark.slow
def test_records_damaged_after_the_run_are_named(tiny: Path, lmc: Command, tmp_path: Path) -> None:
    assert lmc("run", tiny, "--out", "out").code == 0
    file = tmp_path / "out" / "records.sqlite"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    result = lmc("report", "out")
    assert result.code == 5
    assert "damaged" in result.err
    assert len(file.read_bytes()) == len(whole) // 2


@pytest.mark.slow
def test_a_file_in_the_way_of_the_output_is_named(tiny: Path, lmc: Command, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("mine")
    for folder in ("taken", "taken/below"):
        result = lmc("run", tiny, "--out", folder)
        assert result.code == 2
        assert f"{folder} cannot be a folder, for it is a file or in one; move that file, or" in result.err
        assert "choose another one with --out" in result.err
    assert (tmp_path / "taken").read_text() == "mine"
    assert lmc("run", tiny, "--out", "out").code == 0
    result = lmc("report", "out", "--out", "taken")
    assert result.code == 2
    assert "taken" in result.err
    assert result.err.count("\n") == 1


def test_a_suite_that_is_refused_leaves_no_folder(tiny: Path, lmc: Command, tmp_path: Path) -> None:
    tiny.write_text(SUITE.replace('"karate"', '"karatee"'))
    assert lmc("run", tiny, "--out", "out").code == 2
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_report_of_a_suite_that_was_not_run(tiny: Path, lmc: Command) -> None:
    assert lmc("run", tiny, "--out", "out").code == 0
    result = lmc("report", "out", "--suite", "other")
    assert result.code == 2
    assert "holds no run of suite 'other'" in result.err


# --- the library leaves global state alone -------------------------------------------------------------


def global_state() -> list[Any]:
    numpy_state = np.random.get_state(legacy=False)["state"]  # noqa: NPY002  # read only
    settings = [torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled(), os.getcwd()]
    random_states = [torch.get_rng_state().tolist(), numpy_state["key"].tolist(), numpy_state["pos"], random.getstate()]
    return [*settings, *random_states, torch.are_deterministic_algorithms_enabled(), dict(os.environ)]


@pytest.mark.slow
def test_the_library_touches_no_global_state() -> None:
    importlib.import_module("torch_geometric")  # whatever it does when it is imported
    before = global_state()
    for model in ("gcn", "sage", "gat"):
        settings = CaseSettings.model_validate(
            {
                "dataset": {"name": "karate"},
                "estimator": {"name": "lmc", "beta": 0.4},
                "model": {"name": model, "layers": 2, "width": 4},
                "design": {"parts": 2, "per_batch": 1},
                "sampling": {"alpha": 0.4, "draws": 30},
                "training": {"steps": 3, "lengths": [2, 3, 4]},
            }
        )
        case = build_case(settings, Workspace())
        for claim in CLAIMS.values():
            claim.expect(case)
            if claim.tier != "rate" or model == "gcn":  # training runs are slow, and the same for every model
                claim.check(case)
    find_counterexample("theorem-1/unbiased", lv.LMC(), space=SearchSpace(max_nodes=2), examples=2)
    check_control(CONTROLS["float16-gradient"])
    graph = lv.load_graph("karate").double()
    problem = lv.Problem(graph, lv.GCN(graph.num_features, 4, graph.num_outputs, num_layers=2).double())
    estimator = lv.GAS()
    state = estimator.init(problem)
    design = lv.Clusters(lv.Partition.metis(graph, 4), 2)
    batch = design.draw(np.random.default_rng(0))
    state.apply(estimator.estimate(problem, state, batch).writes)
    assert global_state() == before


def test_control_characters_are_shown_and_not_sent(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    from lmc_verify.cli.options import shown
    from lmc_verify.cli.print_verdicts import print_table

    name = "gas\x1b[2J\x1b]0;title\x07\u009b31m\u202e\x7f é"
    assert shown(name) == "gas\\x1b[2J\\x1b]0;title\\x07\\x9b31m\\u202e\\x7f é"
    print_table(["name"], [[name]], Console(force_terminal=True, width=100))
    printed = capsys.readouterr().out.split("name", 1)[1]
    assert "\x1b[2J" not in printed
    assert "\x1b]0" not in printed
    assert shown("two\nlines\tand a tab") == "two\nlines\tand a tab"
