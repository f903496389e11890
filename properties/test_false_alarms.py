"""The repetitions of the statistical part of a suite, as `nox -s false-alarms` makes them."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lmc_verify.claims import Outcome, find_claim
from lmc_verify.runs import load_suite

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "reports" / "false_alarms.py"
SUITE = """
name = "small"
title = "Small"
alpha_total = 1e-3
controls = true

[[check]]
claim = "theorem-1/unbiased-sampled"
estimator = "backward-sgd"
dataset = { name = "ring", num_nodes = 8 }
model = { layers = 2, width = 2 }
design = { partition = "contiguous", parts = 4, per_batch = 2 }
sampling = { draws = 2000 }
expect = "SUPPORTED"

[[check]]
claim = "theorem-1/unbiased"
estimator = "backward-sgd"
dataset = "karate"
expect = "EXACT"
"""


@pytest.mark.slow
def test_sound_statistical_checks_are_repeated_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "small.toml").write_text(SUITE)
    command = [sys.executable, str(SCRIPT), "--suite", "small.toml", "--runs", "2", "--first", "7", "--jobs", "1"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[:2] == [f"repetition {7 + number} done; {number + 1} in all, 0 alarms" for number in range(2)]
    assert "     2 SUPPORTED     theorem-1/unbiased-sampled backward-sgd on ring" in lines[2]
    assert ", level 0.2, largest e-value" in lines[2]
    assert lines[3:] == ["0 false alarms in 2 verdicts of 2 repetitions, 0 at the suite's own levels"]

    # What a stopped program has written is read, not made again; a line that was cut and one of other code are not.
    file = tmp_path / "reports" / "out" / "false-alarms.jsonl"
    first, second = (json.loads(line) for line in file.read_text().splitlines() if line)
    assert (first["repetition"], second["repetition"]) == (7, 8)
    first["found"][0][2:] = ["REFUTED", 3.0, "not so", 1e-8, "INCONCLUSIVE"]
    file.write_text(
        "\n".join([json.dumps(first), json.dumps(second | {"of": "other code"}), json.dumps(second)[:50], "7", "{}"])
    )
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300)
    lines = done.stdout.splitlines()
    assert lines[0].startswith("ALARM in repetition 7: theorem-1/unbiased-sampled backward-sgd on ring")
    assert lines[0].endswith("REFUTED: not so")
    assert lines[1] == "  at the suite's own level, 1e-08: INCONCLUSIVE"
    assert lines[-1] == "1 false alarms in 2 verdicts of 2 repetitions, 0 at the suite's own levels"
    assert [json.loads(line)["repetition"] for line in file.read_text().splitlines()[-1:]] == [8]


@pytest.mark.slow
def test_a_repetition_without_verdicts_is_an_alarm(tmp_path: Path) -> None:
    command = [
        sys.executable,
        str(SCRIPT),
        "--suite",
        "nosuch.toml",
        "--runs",
        "1",
        "--jobs",
        "1",
        "--out",
        "out.jsonl",
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 1
    assert "ALARM in repetition 1: no verdicts: " in done.stdout
    assert "there is no suite file nosuch.toml" in done.stdout
    assert done.stdout.endswith("1 false alarms in 0 verdicts of 1 repetitions, 1 at the suite's own levels\n")


@pytest.fixture
def script() -> dict[str, Any]:
    return runpy.run_path(str(SCRIPT), run_name="false_alarms")


@pytest.fixture
def found(script: dict[str, Any]) -> Callable[[str, Outcome], Any]:
    return lambda label, outcome: script["Found"](label, 0.05, outcome.value, None, "words", 1e-8, None)


@pytest.mark.parametrize(("refuted", "beyond"), [(10, False), (24, False), (40, True)])
def test_refutations_count_against_what_their_level_allows(
    script: dict[str, Any], found: Callable[[str, Outcome], Any], refuted: int, beyond: bool
) -> None:
    """At a level of 0.05, 10 of 200 are expected; 24 or more have probability 7e-5, and 40 or more 6e-14."""
    tally = script["Tally"]()
    for number in range(200):
        outcome = Outcome.REFUTED if number < refuted else Outcome.SUPPORTED
        tally.add(number, [found("one", outcome), found("other", Outcome.INCONCLUSIVE)])
    assert tally.alarms == refuted
    assert tally.failures == 0
    assert bool(tally.beyond) == beyond
    assert str(tally).endswith("e-14" if beyond else "at the suite's own levels"), str(tally)


def test_a_check_that_crashed_is_a_failure(script: dict[str, Any], found: Callable[[str, Outcome], Any]) -> None:
    tally = script["Tally"]()
    tally.add(0, [found("one", Outcome.ERROR)])
    assert (tally.alarms, tally.failures) == (1, 1)


def test_what_is_refuted_at_the_suite_s_own_level_is_counted(script: dict[str, Any]) -> None:
    tally, found = script["Tally"](), script["Found"]
    for own in ("INCONCLUSIVE", "REFUTED"):
        tally.add(0, [found("one", 0.2, "REFUTED", 3.0, "words", 1e-8, own)])
    assert (tally.alarms, tally.failures, tally.at_own_level) == (2, 0, 1)
    assert str(tally).endswith("2 false alarms in 2 verdicts of 2 repetitions, 1 at the suite's own levels")


def test_a_trial_s_histories_are_named_once(script: dict[str, Any]) -> None:
    trials = [raised for raised, _ in script["repeated"](str(ROOT / "reports" / "theorem-check.toml"), 3)]
    swept = [item.settings.histories != "exact" for item in trials]
    assert any(swept)
    assert [script["_name"](item).count("histories=") for item in trials] == [int(value) for value in swept]
    assert script["_name"](replace(trials[swept.index(True)], apart="")).endswith(" histories=sweeps:2")


def test_a_refuted_trial_is_asked_again_at_the_suite_s_own_level(
    script: dict[str, Any],
) -> None:
    suite = str(ROOT / "reports" / "theorem-check.toml")
    raised, own = script["repeated"](suite, 3)[0]
    levels = list[float]()

    def run_planned(planned: Any, workspace: Any) -> Any:
        levels.append(planned.settings.sampling.alpha)
        outcome = Outcome.REFUTED if levels[-1] == raised.settings.sampling.alpha else Outcome.INCONCLUSIVE
        return SimpleNamespace(verdict=SimpleNamespace(outcome=outcome, log_e_value=None, summary="words"))

    script["run"].__globals__["run_planned"] = run_planned
    script["run"].__globals__["repeated"] = lambda *_: [script["Repeated"](raised, own)]
    assert script["run"](suite, 3) == [
        (script["_name"](raised), 0.2, "REFUTED", None, "words", own.settings.sampling.alpha, "INCONCLUSIVE")
    ]
    assert levels == [0.2, own.settings.sampling.alpha]
    assert own.settings.sampling.replicate == raised.settings.sampling.replicate == 3


def test_trials_have_levels_at_which_alarms_can_be_seen(script: dict[str, Any]) -> None:
    for planned, own in script["repeated"](str(ROOT / "reports" / "theorem-check.toml"), 3):
        rate = find_claim(planned.claim).tier == "rate"
        assert planned.settings.sampling.alpha == (0.4 if rate else 0.2)
        assert own.settings.sampling.alpha < 1e-7
        training = planned.settings.training
        assert not rate or (training.repeats == 1 and len(training.lengths) >= 3 and max(training.lengths) <= 3_200)


def test_the_theorem_check_has_what_can_be_repeated() -> None:
    planned = load_suite(ROOT / "reports" / "theorem-check.toml").plan(replicate=3)
    statistical = [item for item in planned if item.statistical]
    assert {item.kind for item in statistical} == {"claim"}
    assert {find_claim(item.claim).tier for item in statistical} == {"test", "rate"}
    assert {item.settings.sampling.replicate for item in statistical} == {3}
    assert any(item.expected is Outcome.SUPPORTED and not item.optional for item in statistical)
