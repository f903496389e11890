"""What does not fit is worded in one way for every settings model: the path, the reason and the value, in one line."""

from __future__ import annotations

import reprlib
from typing import Any

import pytest
from pydantic import BaseModel

from lmc_verify.cases import case_settings
from lmc_verify.cases.settings import (
    CaseSettings,
    DatasetSettings,
    DesignSettings,
    EstimatorSettings,
    ModelSettings,
    SamplingSettings,
    TrainingSettings,
)
from lmc_verify.cli.exact.command import ExactSettings
from lmc_verify.counterexamples import SearchSpace
from lmc_verify.errors import InvalidInputError, validated
from lmc_verify.races.settings import ContestantSettings, RaceSettings, TargetSettings
from lmc_verify.races.table import RaceTable
from lmc_verify.runs.audits import AuditSettings
from lmc_verify.runs.suite import AuditTable, Check, CounterexampleTable, Suite, load_suite
from lmc_verify.training.settings import RunSettings, TrainerSettings

VALID: dict[type[BaseModel], dict[str, Any]] = {
    DatasetSettings: {"name": "karate"},
    EstimatorSettings: {"name": "lmc"},
    ModelSettings: {},
    DesignSettings: {},
    SamplingSettings: {},
    TrainingSettings: {},
    CaseSettings: {},
    ExactSettings: {"dataset": {"name": "karate"}},
    TrainerSettings: {},
    RunSettings: {},
    TargetSettings: {},
    ContestantSettings: {"estimator": "lmc"},
    RaceSettings: {"contestants": ["lmc"]},
    RaceTable: {"dataset": "karate"},
    AuditSettings: {"function": "loops:gas"},
    AuditTable: {"function": "loops:gas", "expect": "REFUTED"},
    Check: {"claim": "e7/reductions", "expect": "EXACT"},
    CounterexampleTable: {"claim": "e7/reductions", "estimator": "gas"},
    Suite: {"name": "tiny", "title": "Tiny"},
}
"""The least that each settings model of the package needs."""

FIELDS = [(model, name) for model in VALID for name in model.model_fields]
WORDS = ("Value error", "Assertion failed", "For further information", "validation error", "pydantic.dev", "\n")


def message(model: type[BaseModel], values: Any, **where: Any) -> str:
    with pytest.raises(InvalidInputError) as caught:
        validated(model, values, **where)
    text = str(caught.value)
    for words in WORDS:
        assert words not in text
    return text


def test_every_settings_model_of_the_package_is_here() -> None:
    found, new = set[type[BaseModel]](), [BaseModel]
    while new:
        new = [item for model in new for item in model.__subclasses__() if item.__module__.startswith("lmc_verify.")]
        found |= {item for item in new if not item.__subclasses__()}
    assert found == set(VALID)
    for model, values in VALID.items():
        validated(model, values)


@pytest.mark.parametrize(("model", "name"), FIELDS, ids=lambda item: getattr(item, "__name__", item))
def test_a_value_of_another_type_is_named(model: type[BaseModel], name: str) -> None:
    bad = object()  # no setting is any object
    text = message(model, {**VALID[model], name: bad})
    assert text.startswith(f"{name}: Input should be ")
    assert text.endswith(f", got {reprlib.repr(bad)}")


WRONG = [
    (ModelSettings, {"layers": 0}, "layers: Input should be greater than or equal to 1, got 0"),
    (
        ModelSettings,
        {"layers": "three"},
        "layers: Input should be a valid integer, unable to parse string as an integer, got 'three'",
    ),
    (ModelSettings, {"activation": "relux"}, "activation: Input should be 'relu', 'tanh' or 'softplus', got 'relux'"),
    (
        ModelSettings,
        {"options": {"a.b": [1]}},
        "options.a.b: Input should be a valid boolean or a valid integer or a valid number or a valid string, got [1]",
    ),
    (
        TrainingSettings,
        {"lengths": [3, 2, 1]},
        "lengths: lengths is (3, 2, 1), it needs at least three ascending numbers of steps above 0",
    ),
    *(
        (CaseSettings, {"training": {"lengths": value}}, f"training.lengths: Input should be a list, such as {text}")
        for value, text in (
            ("128, 640,2560", "[128, 640, 2560], got '128, 640,2560'"),
            ("many", "[\"many\"], got 'many'"),
            (5, "[5], got 5"),
            (True, "[...], got True"),
            ({"a": 1}, "[...], got {'a': 1}"),
        )
    ),
    (ModelSettings, {"frozen": "layer 2"}, "frozen: Input should be a list, such as [\"layer 2\"], got 'layer 2'"),
    (
        CaseSettings,
        {"histories": "full", "design": {"parts": 0}},
        "design.parts: Input should be greater than or equal to 1, got 0; histories: histories is "
        "'full', it must be 'exact', 'zero' or 'sweeps:K' with a whole number K of at most 10,000",
    ),
    (CaseSettings, {"estimator": {}}, "estimator.name: Field required"),
    (TrainerSettings, {"optimiser": "adamm"}, "unknown optimiser 'adamm': did you mean 'adam' or 'radam' or 'nadam'?"),
    (
        TrainerSettings,
        {"epochs": 1, "steps": 1},
        "epochs is 1 and steps is 1: the length of a run is given once; leave one out",
    ),
    (RunSettings, {"trainer": {"schedule_options": {"a": 1}}}, "trainer: schedule 'none' takes no options, got 'a'"),
    (
        RaceSettings,
        {"contestants": []},
        "contestants: List should have at least 1 item after validation, not 0, got []",
    ),
    (
        RaceSettings,
        {"contestants": ["lmc", {"estimator": {"beta": 1}}]},
        "contestants.1.estimator.name: Field required",
    ),
    (RaceSettings, {"contestants": [{}]}, "contestants.0.estimator: Field required"),
    (
        RaceSettings,
        {"contestants": ["lmc", "lmc"]},
        "several contestants are called 'lmc'; give each a label of its own",
    ),
    (
        RaceSettings,
        {"contestants": [{"estimator": "lmc", "trainer": {"epochs": 0}}]},
        "the trainer's settings do not fit: epochs: Input should be greater than or equal to 1, got 0",
    ),
    (
        RaceSettings,
        {"contestants": ["lmc"], "seeds": [1, 1]},
        "seeds: seeds are [1, 1], they must be distinct and not negative",
    ),
    (
        RaceTable,
        {"dataset": "karate", "presets": {"quick": True}},
        "presets.quick: Input should be a valid dictionary or False, got True",
    ),
    (
        Check,
        {"claim": "c", "expect": {"gas": "FINE"}},
        "expect.gas: Input should be 'EXACT', 'SUPPORTED', 'REFUTED', 'INCONCLUSIVE', 'VACUOUS' or "
        "'NOT_APPLICABLE', got 'FINE'",
    ),
    (
        Suite,
        {"name": "t", "title": "t", "check": [{"claim": [5], "expect": "EXACT"}]},
        "check.0.claim.0: Input should be a valid string, got 5",
    ),
    (Suite, 5, "Input should be a valid dictionary or instance of Suite, got 5"),
]


@pytest.mark.parametrize(("model", "values", "text"), WRONG)
def test_a_wrong_value_is_named_with_its_path(model: type[BaseModel], values: Any, text: str) -> None:
    assert message(model, values) == text
    assert message(model, values, what="no fit") == f"no fit: {text}"


FORBIDDING = [model for model in VALID if model.model_config.get("extra") == "forbid"]


@pytest.mark.parametrize("model", FORBIDDING)
def test_an_unknown_setting_comes_with_the_nearest_known_ones(model: type[BaseModel]) -> None:
    for name in model.model_fields:
        text = message(model, {**VALID[model], f"{name}x": 1})
        assert text.startswith(f"{name}x: unknown setting; did you mean ")
        assert repr(name) in text
    known = ", ".join(map(repr, sorted(model.model_fields)))
    assert message(model, {**VALID[model], "@@@": 1}) == f"@@@: unknown setting; known names are {known}"


@pytest.mark.parametrize(
    ("model", "values", "text"),
    [
        (CaseSettings, {"model": {"lyers": 2}}, "model.lyers: unknown setting; did you mean 'layers'?"),
        (CaseSettings, {"model": {"layer": 2}}, "model.layer: unknown setting; did you mean 'layers'"),
        (RunSettings, {"trainer": {"epoch": 2}}, "trainer.epoch: unknown setting; did you mean 'epochs'"),
        (
            RaceSettings,
            {"contestants": [{"estimator": "lmc", "desing": {}}]},
            "contestants.0.desing: unknown setting; did you mean 'design'",
        ),
        (
            RaceSettings,
            {"contestants": [{"estimator": "lmc", "design": {"part": 2}}]},
            "contestants.0.design.part: unknown setting; did you mean 'parts' or 'partition'",
        ),
        (
            Suite,
            {**VALID[Suite], "check": [{"clam": "a", **VALID[Check]}]},
            "check.0.clam: unknown setting; did you mean 'claim'",
        ),
    ],
)
def test_known_settings_are_those_of_the_place(model: type[BaseModel], values: Any, text: str) -> None:
    assert message(model, values).startswith(text)


def test_values_within_something_larger_are_named_from_there() -> None:
    assert message(ModelSettings, {"layers": 0}, at="model").startswith("model.layers: ")
    assert message(ModelSettings, 3, at="model").startswith("model: Input should be ")


def test_every_way_to_read_settings_words_them_so(tmp_path: Any) -> None:
    suite = tmp_path / "tiny.toml"
    head = 'name = "tiny"\ntitle = "Tiny"\n[[%s]]\n'
    check = head % "check" + 'claim = "e7/reductions"\nexpect = "EXACT"\n'
    search = head % "counterexample" + 'claim = "theorem-1/unbiased"\nestimator = "gas"\n'
    race = head % "race" + 'dataset = "karate"\nestimator = "gas"\n'
    table = "suite 'tiny', [[%s]] number 1: "

    def planned(text: str) -> Any:
        suite.write_text(text)
        loaded = load_suite(suite)
        return loaded.plan(), loaded.searches(), loaded.races()

    for read, start in (
        (lambda: case_settings({}, ["model.layers=0"]), "the case's settings do not fit: model.layers: Input"),
        (lambda: RunSettings.read({"seed": -1}), "the run's settings do not fit: seed: Input"),
        (lambda: TrainerSettings().changed(epochs=0), "the trainer's settings do not fit: epochs: Input"),
        (lambda: RaceSettings.read({}), "the race's settings do not fit: contestants: Field required"),
        (lambda: SearchSpace(model={"layers": 0}), "the pinned settings do not fit: model.layers: Input"),
        (lambda: planned("seed = -1"), f"{suite} is not a suite: name: Field required; title: Field required; seed"),
        (lambda: planned(check + 'model.layers = "x"'), table % "check" + "model.layers: Input"),
        (lambda: planned(check + 'histories = "x"'), table % "check" + "histories: histories is 'x', it must be"),
        (lambda: planned(check + "seed = -1"), table % "check" + "seed: Input"),
        (lambda: planned(check + "estimator = {}"), table % "check" + "estimator.name: Field required"),
        (lambda: planned(search + "design.part = 1"), table % "counterexample" + "design.part: unknown setting; did"),
        (lambda: planned(search + 'histories = "x"'), table % "counterexample" + "histories: histories is 'x'"),
        (lambda: planned(race + "model.layers = 0"), table % "race" + "the race's settings do not fit: model.layers: "),
    ):
        with pytest.raises(InvalidInputError) as caught:
            read()  # type: ignore[no-untyped-call]
        assert str(caught.value).startswith(start)
        assert not any(words in str(caught.value) for words in WORDS)
