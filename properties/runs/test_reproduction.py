"""A replay says "identical" only if every recorded number is the same, bit for bit; else it names what differs, and
what differs between the machine and code then and now.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import lmc_verify as lv
from lmc_verify.cases.settings import CaseSettings
from lmc_verify.cases.workspace import Workspace
from lmc_verify.claims import Evidence, Outcome, Verdict
from lmc_verify.controls import find_control
from lmc_verify.counterexamples import Counterexample, Instance, ModelPlan
from lmc_verify.counterexamples.example import measured_tensors
from lmc_verify.provenance import environment
from lmc_verify.runs.planned import Planned, run_planned
from lmc_verify.runs.records import Records
from lmc_verify.runs.replay import Difference, find_trial, replay_counterexample, replay_trial
from lmc_verify.runs.trials import Trial

SETTINGS = CaseSettings.model_validate(
    {
        "dataset": {"name": "karate"},
        "estimator": {"name": "gas"},
        "model": {"layers": 2, "width": 4},
        "design": {"parts": 3, "per_batch": 1},
    }
)
PLANNED = Planned("claim", "theorem-1/unbiased", SETTINGS, Outcome.REFUTED)


@pytest.fixture(scope="module")
def trial() -> Trial:
    return run_planned(PLANNED, Workspace())


@pytest.fixture(scope="module")
def example() -> Counterexample:
    graph = lv.Graph(
        edge_index=torch.tensor([[0, 1], [1, 0]]),
        x=torch.tensor([[0.3], [0.7]], dtype=torch.float64),
        y=torch.tensor([0, 1]),
        train_mask=torch.ones(2, dtype=torch.bool),
    )
    settings = {"in_channels": 1, "hidden_channels": 2, "out_channels": 2, "num_layers": 2}
    model = ModelPlan("gcn", settings)
    design = lv.Clusters(lv.Partition(torch.arange(2)), 1)
    instance = Instance(graph, model, model.build(seed=1).state_dict(), design)
    case = instance.case(lv.GAS(), "exact", 0)
    verdict = lv.CLAIMS["theorem-1/unbiased"].check(case)
    return Counterexample(verdict.claim, lv.GAS(), instance, "exact", 0, verdict, measured_tensors(case, verdict))


def changed(trial: Trial, **values: Any) -> Trial:
    return dataclasses.replace(trial, verdict=dataclasses.replace(trial.verdict, **values))


def next_up(number: float | None) -> float:
    assert number is not None
    return math.nextafter(number, math.inf)


def test_what_is_unchanged_is_identical(trial: Trial, example: Counterexample, tmp_path: Path) -> None:
    with Records.create_or_open(tmp_path / "records.sqlite") as records:  # through JSON and back
        run = records.start_run("one", "One", {}, environment())
        records.add(run, trial)
        (stored,), recorded = records.trials(run), records.run(run).environment
    replay = replay_trial(stored, PLANNED, recorded)
    assert replay.identical, [str(item) for item in replay.differences]
    assert replay.environment == ()
    assert replay_counterexample(example).identical


@pytest.mark.slow
def test_one_bit_of_any_number_is_seen(trial: Trial, example: Counterexample) -> None:
    evidence = trial.verdict.evidence
    nudged = dataclasses.replace(evidence[2], value=next_up(evidence[2].value))
    cases = {
        "verdict.residual": changed(trial, residual=next_up(trial.verdict.residual)),
        "verdict.tolerance": changed(trial, tolerance=next_up(trial.verdict.tolerance)),
        "verdict.evidence[2].value": changed(trial, evidence=(*evidence[:2], nudged, *evidence[3:])),
        "verdict.outcome": changed(trial, outcome=Outcome.EXACT),
        "verdict.summary": changed(trial, summary="other"),
        "verdict.hashes.graph": changed(trial, hashes={**trial.verdict.hashes, "graph": "0"}),
        "verdict.seeds.root": changed(trial, seeds={"root": 1}),
        "verdict.alpha_spent": changed(trial, alpha_spent=-0.0),
        "verdict.draws": changed(trial, draws=3),
    }
    for where, recorded in cases.items():
        replay = replay_trial(recorded, PLANNED, environment())
        assert [item.where for item in replay.differences] == [where]
        assert not replay.identical
    fewer = replay_trial(changed(trial, evidence=evidence[:-1]), PLANNED, environment())
    assert [item.recorded for item in fewer.differences] == ["(absent)"]
    for name in ("mean.layers.0.conv.bias", "exact.layers.1.conv.bias", "history.embedding.1"):
        tensor = example.tensors[name].clone()
        tensor.view(-1)[0] = next_up(float(tensor.view(-1)[0]))
        replay = replay_counterexample(dataclasses.replace(example, tensors={**example.tensors, name: tensor}))
        (difference,) = replay.differences
        assert difference.where.startswith(f"tensor {name}[0]")
        assert str(difference).startswith(f"tensor {name}[0]")
    without = {name: value for name, value in example.tensors.items() if name != "mean.layers.0.conv.bias"}
    (difference,) = replay_counterexample(dataclasses.replace(example, tensors=without)).differences
    assert difference == Difference("tensor mean.layers.0.conv.bias", "(absent)", "a tensor")
    single = {**example.tensors, "mean.layers.0.conv.bias": example.tensors["mean.layers.0.conv.bias"].float()}
    (difference,) = replay_counterexample(dataclasses.replace(example, tensors=single)).differences
    assert (difference.recorded, difference.replayed) == ("float32 (2,)", "float64 (2,)")


def test_nan_equals_nan_and_numpy_numbers_equal_python_s(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    import lmc_verify.runs.replay as reproduction

    odd = (Evidence("a", math.nan), Evidence("b", math.inf), Evidence("c", np.float64(0.25)))
    recorded = changed(trial, evidence=(odd[0], odd[1], Evidence("c", 0.25)))
    monkeypatch.setattr(reproduction, "run_planned", lambda *args: changed(trial, evidence=odd))
    assert replay_trial(recorded, PLANNED, environment()).identical
    zero = changed(trial, evidence=(odd[0], odd[1], Evidence("c", 0.5)))
    assert not replay_trial(zero, PLANNED, environment()).identical


def test_the_machine_and_the_code_are_stated_and_do_not_count(trial: Trial, example: Counterexample) -> None:
    other = environment() | {"torch": "1.0", "threads": 99, "platform": "elsewhere", "code": "0+old"}
    old = changed(trial, hashes={**trial.verdict.hashes, "code": "0+old"})
    for replay in (
        replay_trial(old, PLANNED, other),
        replay_counterexample(dataclasses.replace(example, environment=other)),
    ):
        assert replay.identical
        assert {item.where for item in replay.environment} == {
            f"environment.{key}" for key in ("torch", "threads", "platform", "code")
        }
        assert replay.to_dict()["environment"][0].keys() == {"where", "recorded", "replayed"}


@pytest.mark.slow
def test_controls_are_replayed_with_their_effect() -> None:
    control = find_control("sign-of-one-layer")
    planned = Planned("control", control.claim, control.broken or control.sound, control.expected, control=control)
    trial = run_planned(planned, Workspace())
    assert replay_trial(trial, planned, environment()).identical
    assert trial.control is not None
    assert trial.control.effect is not None
    kept = dataclasses.replace(trial.control, effect=next_up(trial.control.effect))
    nudged = dataclasses.replace(trial, control=kept)
    (difference,) = replay_trial(nudged, planned, environment()).differences
    assert difference.where == "control.effect"


def test_a_trial_is_named_by_number_or_key(trial: Trial) -> None:
    trials = [dataclasses.replace(trial, key=key) for key in ("abc1", "abd2", "12ff")]
    assert find_trial(trials, "2").key == "abd2"
    assert find_trial(trials, "abc").key == "abc1"
    assert find_trial(trials, "12f").key == "12ff"
    for wanted, message in (
        ("ab", "2 keys begin so"),
        ("x", "no key begins so"),
        ("4", "no key begins so"),
        ("", "no key begins so"),
    ):
        with pytest.raises(lv.InvalidInputError, match=rf"{message}; give a number from 1 to 3"):
            find_trial(trials, wanted)


def test_a_verdict_of_plain_values_is_enough() -> None:
    bare = Trial("k", "claim", Verdict("theorem-1/unbiased", Outcome.REFUTED, "x"), None, "", 0.0)
    replay = replay_trial(bare, PLANNED, {})
    assert not replay.identical
    assert replay.label == "theorem-1/unbiased None on None"
