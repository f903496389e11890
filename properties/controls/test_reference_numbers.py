"""Reference numbers are those of another program, every one of them is compared, and a change of any is seen."""

from __future__ import annotations

import copy
import gzip
import json
import math
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from common.numbers import document
from common.numbers.dense import Dense, tensor
from common.numbers.runs import RUNS, blend_of, one_step, write, zeros
from common.numbers.steps import exact, halo_of, mask

from lmc_verify.cases import Workspace
from lmc_verify.claims import Outcome
from lmc_verify.controls import CONTROLS, NumbersControl, check_control
from lmc_verify.controls.reference import GROUPS, TOLERANCE, compare, deviations
from lmc_verify.controls.reference.document import FILE, inputs, numbers
from lmc_verify.estimators import LMC, LOSS_WEIGHTINGS, SCORES
from lmc_verify.estimators.registry import CATALOGUE
from lmc_verify.provenance import code_fingerprint
from lmc_verify.runs.execution import run_suite
from lmc_verify.runs.records import Records
from lmc_verify.runs.suite import Suite, load_suite

REFERENCE = Path(__file__).parent.parent / "common" / "reference"


def flattened(value: Any, name: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        return {key: item for part, inner in value.items() for key, item in flattened(inner, f"{name}/{part}").items()}
    return {name: value}


def leaves(value: Any) -> list[Any]:
    if isinstance(value, dict):
        value = list(value.values())
    return [leaf for item in value for leaf in leaves(item)] if isinstance(value, list) else [value]


@pytest.mark.slow
def test_the_file_is_what_the_oracle_makes() -> None:
    """Else run python tools/reference_numbers.py, after finding out which of the two is right."""
    pinned, made = (flattened(item) for item in (json.loads(FILE.read_text(encoding="utf-8")), document()))
    assert list(pinned) == list(made)
    for name, value in made.items():
        got, want = leaves(pinned[name]), leaves(value)
        assert [type(item) is str for item in got] == [type(item) is str for item in want], name
        assert [item for item in got if item is None or isinstance(item, str)] == [
            item for item in want if item is None or isinstance(item, str)
        ], name
        left, right = ([float(item) for item in items if isinstance(item, int | float)] for items in (got, want))
        assert left == pytest.approx(right, rel=0, abs=2e-12 * max(map(abs, right), default=0.0)), name


def test_the_file_is_small() -> None:
    """The wheel, which is compressed, grows by less than 100 kB."""
    assert len(gzip.compress(FILE.read_bytes())) < 100_000


@pytest.mark.slow  # the smoke suite compares them, too
@pytest.mark.parametrize("group", list(GROUPS))
def test_every_number_of_the_package_is_the_pinned_one(group: str) -> None:
    found = list(deviations(group))
    assert [item for item in found if not item.size <= TOLERANCE] == []
    assert {item.quantity for item in found} == set(numbers(group))
    result = check_control(CONTROLS[f"reference-{group}"])
    assert (result.passed, result.verdict.outcome, result.effect) == (True, Outcome.EXACT, None)
    assert len(result.verdict.evidence) == len(found)


def test_every_group_has_its_control_first_in_the_list() -> None:
    groups = [control.group for control in CONTROLS.values() if isinstance(control, NumbersControl)]
    assert groups == list(GROUPS)
    assert list(CONTROLS)[: len(groups)] == [f"reference-{group}" for group in groups]


@pytest.mark.parametrize("suite", ["smoke", "theorem-check"])
def test_every_suite_with_controls_compares_them(suite: str) -> None:
    planned = [item.control.name for item in load_suite(suite).plan() if item.control is not None]
    assert {f"reference-{group}" for group in GROUPS} <= set(planned)


# --- what is run ----------------------------------------------------------------------------------------


def test_every_setting_of_the_compensated_family_is_run() -> None:
    """docs/statistics.md says so of estimators (but for FM's two), scores, loss weightings and activation cuts."""
    family = {name for name, row in CATALOGUE.items() if row.family == "compensated"} | {"backward-sgd"}
    assert {name for _, name, _ in RUNS.values()} == family - {"fm", "fm-local"}
    other = {"convex": "quadratic", "const": "constant"}  # two names of one function
    assert {settings.get("score", "linear") for _, _, settings in RUNS.values()} == set(SCORES) - set(other)
    assert all(SCORES[new] is SCORES[old] for new, old in other.items())
    assert {settings.get("weighting", "inclusion") for _, _, settings in RUNS.values()} == set(LOSS_WEIGHTINGS)
    models = {model for model, _, _ in RUNS.values()}
    assert {inputs()["models"][model]["settings"].get("activation_cut", "pre") for model in models} == {"pre", "post"}
    assert {field.name for field in fields(LMC)} == {
        key for _, name, own in RUNS.values() if name == "lmc" for key in own
    }


def test_the_unclipped_sine_is_negative_somewhere() -> None:
    """Otherwise the clipped one would give the same numbers."""
    given = inputs()["runs"]["lmc-code"]
    model = Dense(inputs(), given["model"])
    least = [
        float(blend_of(model, batch, given["settings"])[halo_of(model, batch)].min()) for batch in given["batches"]
    ]
    assert min(least) < -0.2


# --- a change is seen -----------------------------------------------------------------------------------


def pinned_with(monkeypatch: pytest.MonkeyPatch, changes: Mapping[str, Any], *, without: str = "") -> None:
    def changed(group: str) -> Mapping[str, Any]:
        values = copy.deepcopy(dict(numbers(group)))
        values.pop(without, None)
        return values | changes

    monkeypatch.setattr(compare, "numbers", changed)


def failing(group: str) -> dict[str, str]:
    return {item.quantity: item.reason for item in deviations(group) if not item.size <= TOLERANCE}


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (-0.5 * (1 + 1e-9), ""),
        ([-0.5], "it has shape (), pinned is (1,)"),
        (math.nan, "it is not a number"),
        ("exact", "it is -0.5, pinned is exact"),
    ],
)
def test_another_pinned_number_is_a_deviation(value: Any, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pinned_with(monkeypatch, {"combine": value})
    assert failing("statistics") == {"combine": reason}


def test_rounding_is_no_deviation(monkeypatch: pytest.MonkeyPatch) -> None:
    pinned_with(monkeypatch, {"combine": -0.5 * (1 + 1e-11)})
    assert not failing("statistics")


def test_entries_are_compared_in_units_of_the_largest(monkeypatch: pytest.MonkeyPatch) -> None:
    start = list(numbers("statistics")["bet-grid"])
    pinned_with(monkeypatch, {"bet-grid": [*start[:-1], start[-1] + 0.9e-10 * start[0]]})
    assert not failing("statistics")
    pinned_with(monkeypatch, {"bet-grid": [*start[:-1], start[-1] + 1.1e-10 * start[0]]})
    assert failing("statistics") == {"bet-grid": ""}


def test_words_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    pinned_with(monkeypatch, {"decide": ["exact"] * 6})
    assert "pinned is ['exact'" in failing("statistics")["decide"]


def test_what_is_not_computed_and_what_is_not_pinned_are_deviations(monkeypatch: pytest.MonkeyPatch) -> None:
    pinned_with(monkeypatch, {"new": 1.0}, without="ledger")
    assert failing("statistics") == {
        "new": "it is not computed",
        "ledger": "no number is pinned for it; run python tools/reference_numbers.py",
    }


def test_what_raises_is_named_with_the_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any, **settings: Any) -> Any:
        raise ZeroDivisionError("by nothing")

    monkeypatch.setattr("lmc_verify.controls.reference.training.evaluate", broken)
    reason = "it is not computed (ZeroDivisionError: by nothing)"
    assert failing("training") == {"scores/gcn": reason, "scores/gcn-tanh": reason}


def test_a_wrong_number_fails_the_run_with_4(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pinned_with(monkeypatch, {"combine": -0.4, "gamma": [1.0, 2.0, 3.0], "ledger": [0.0, 0.0], "decide": ["exact"]})
    check = {"claim": "e1/equals-backward-sgd", "dataset": "karate", "estimator": "lmc", "expect": "EXACT"}
    suite = Suite.model_validate(
        {"name": "wrong", "title": "Wrong", "controls": ["reference-statistics"], "check": [check]}
    )
    with Records.create_or_open(tmp_path / "records.sqlite") as records:
        result = run_suite(suite, records, Workspace())
        kept = records.trials(result.run_id)
    assert result.exit_code == 4
    (trial,) = [item for item in kept if item.kind == "control"]
    assert (trial.verdict.claim, trial.verdict.outcome) == ("reference-numbers", Outcome.REFUTED)
    count = len(numbers("statistics"))
    assert trial.verdict.summary.startswith(f"4 of {count} reference numbers are not what they were: decide: ")
    assert "and 1 more" in trial.verdict.summary
    assert trial.command.endswith("controls reference-statistics")


def test_the_file_belongs_to_the_code_s_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else --resume would take a comparison with other numbers."""
    before, read = code_fingerprint.__wrapped__(), Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda file: read(file) + (b" " if file.name == FILE.name else b""))
    assert code_fingerprint.__wrapped__() != before


# --- the oracle is right --------------------------------------------------------------------------------


def as_inputs(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the problem of a third program as inputs of the oracle, and that program's vectors."""
    given = json.loads((REFERENCE / f"{name}.json").read_text(encoding="utf-8"))
    x = given["x"]
    labels = np.zeros(len(x), dtype=int)
    for cluster, nodes in enumerate(given["clusters"]):
        labels[nodes] = cluster
    graph = {
        "edges": np.array(given["edge_index"]).T.tolist(),
        "weights": None,
        "x": x,
        "y": given["y"],
        "labelled": np.flatnonzero(given["train_mask"]).tolist(),
        "clusters": labels.tolist(),
    }
    parameters = {}
    for index, (weight, bias) in enumerate(zip(given["weights"], given["biases"], strict=True)):
        parameters[f"layers.{index}.conv.bias"] = bias
        parameters[f"layers.{index}.conv.lin.weight"] = np.array(weight).T.tolist()
    model = {
        "kind": "gcn",
        "graph": name,
        "layers": len(given["weights"]),
        "settings": {"activation_cut": given["activation_cut"]},
        "parameters": parameters,
    }
    return {"graphs": {name: graph}, "models": {name: model}}, given


@pytest.mark.parametrize("run", ["lmc", "gas", "lmc-forward-only"])
@pytest.mark.parametrize("name", ["directed-pre", "undirected-post"])
def test_the_dense_steps_are_those_of_a_third_program(name: str, run: str) -> None:
    inputs, vectors = as_inputs(name)
    model, want = Dense(inputs, name), vectors["runs"][run]
    assert exact(model).loss == pytest.approx(vectors["exact"]["loss"], rel=1e-12)
    held, compared = zeros(model), 0
    for place, batch in enumerate(vectors["steps"]):
        last = place == len(vectors["steps"]) - 1
        factor = vectors["scale"]["last_step_two_clusters" if last else "single_cluster"]
        settings = {"beta": vectors["beta"], "score": "constant"}
        found = one_step(model, run, settings, batch, held, factor * mask(model, batch))
        write(held, found, batch)
        if place in want["at_step"]:
            known = want["gradients"][want["at_step"].index(place)]
            for index in range(model.num_layers):
                for part, value in (("lin.weight", np.array(known["weight"][index]).T), ("bias", known["bias"][index])):
                    got = found.gradient[f"layers.{index}.conv.{part}"]
                    assert torch.allclose(got, tensor(value), rtol=0, atol=1e-11)
            compared += 1
    assert compared == len(want["at_step"]) > 0
    for layer in range(1, model.num_layers + (run == "lmc")):
        assert torch.allclose(held.H[layer], tensor(want["final_history_H"][layer - 1]), rtol=0, atol=1e-11)
        if run == "lmc":
            assert torch.allclose(held.V[layer], tensor(want["final_history_V"][layer - 1]), rtol=0, atol=1e-11)
