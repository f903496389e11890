"""The list of settings is true: every key, type, default and range is what the code that reads settings accepts."""

from __future__ import annotations

import dataclasses
import math
import re
import tomllib
from collections.abc import Callable, Iterator
from typing import Any, Literal

import pytest
from pydantic import BaseModel, Field

from lmc_verify.cases import CaseSettings, case_settings, settings_tree
from lmc_verify.cases.catalogue import (
    NO_DEFAULT,
    Setting,
    dataset_options,
    described,
    estimator_settings,
    model_options,
    settings_of,
)
from lmc_verify.cases.settings import Settings
from lmc_verify.cli.exact.command import ExactSettings
from lmc_verify.datasets import dataset_registry
from lmc_verify.errors import InvalidInputError, validated
from lmc_verify.estimators import ESTIMATORS, make_estimator
from lmc_verify.models import MODELS, make_model
from lmc_verify.races.settings import RaceSettings
from lmc_verify.training.settings import RunSettings

MODELS_OF_SETTINGS: dict[type[BaseModel], dict[str, Any]] = {
    CaseSettings: {},
    RunSettings: {},
    RaceSettings: {"contestants": ["lmc"]},
    ExactSettings: {},
}
"""The settings models that a command line is read as, with the least that each needs."""

PYDANTIC = [(model, setting) for model in MODELS_OF_SETTINGS for setting in settings_of(model)]
FREE = [
    (setting, own) for listed in (estimator_settings, model_options, dataset_options) for setting in listed()
    for own in setting.of
]  # fmt: skip
OTHER_TYPES: dict[str, list[Any]] = {
    "whole number": [0.5, "x", {}],
    "number": ["x", {}],
    "true or false": [0.5, "x", {}],
    "text": [0.5, {}],
    "table": [0.5, "x"],
}
"""Values that are of another type than a setting. (Of numbers in quotes, pydantic takes the number.)"""


def accept(setting: Setting, own: str, value: Any) -> None:
    """Have the code of an estimator, a model or a data set read a value; it raises where that does not fit."""
    head, _, name = setting.key.rpartition(".")
    if head == "estimator":
        make_estimator(own, **{name: value})
    elif head == "dataset":
        dataset_registry()[own].options[name].validate(setting.key, value)
    else:
        make_model(own, 4, 8, 3, 2, **{name: value})


def around(text: str, whole: bool) -> tuple[list[float], list[float]]:
    """Return values that an interval in words has, next to its ends, and values just outside."""
    step: Callable[[float, float], Any] = (lambda x, sign: int(x) + int(sign)) if whole else _next
    inside: list[float] = []
    outside: list[float] = []
    both = re.fullmatch(r"(\S+) \.\.\. (\S+(?: - 1)?)", text)
    parts = [("at least", both[1]), ("at most", both[2])] if both else re.findall(
        r"(at least|above|at most|below) (\S+(?: - 1)??)(?:,|$)", text
    )  # fmt: skip
    for word, limit in parts:
        powers = re.fullmatch(r"2\^(\d+) - 1", limit)
        end = 2 ** int(powers[1]) - 1 if powers else float(limit.replace(",", ""))
        end = int(end) if whole else float(end)
        sign = -1 if word in ("at least", "above") else 1
        if word in ("at least", "at most"):
            inside.append(end)
            outside.append(step(end, sign))
        else:
            inside.append(step(end, -sign))
            outside.append(end)
    return inside, outside


def _next(value: float, sign: float) -> float:
    return math.nextafter(value, sign * math.inf)


def put(model: type[BaseModel], key: str, value: Any) -> Any:
    """Read a model's settings with one of them changed."""
    tree = {**MODELS_OF_SETTINGS[model]}
    for part, whole in settings_tree({key: value}, []).items():
        tree[part] = {**tree.get(part, {}), **whole} if isinstance(whole, dict) else whole
    if key == "trainer.steps":  # a run's length is given once
        tree["trainer"] = {"steps": value}
    return validated(model, tree)


def written(setting: Setting) -> Any:
    return tomllib.loads(f"value = {setting.default}")["value"]


@pytest.mark.parametrize(("model", "setting"), PYDANTIC, ids=lambda item: getattr(item, "key", ""))
def test_a_key_has_the_default_and_the_limits_of_its_model(model: type[BaseModel], setting: Setting) -> None:
    assert setting.meaning
    if setting.default == NO_DEFAULT:
        with pytest.raises(InvalidInputError, match=setting.key):
            validated(model, {})
    elif setting.default != "none":
        found: Any = put(model, setting.key, written(setting))
        untouched: Any = validated(model, MODELS_OF_SETTINGS[model])
        for part in setting.key.split("."):
            found, untouched = getattr(found, part), getattr(untouched, part)
        assert found == untouched
    if setting.type.startswith("list"):
        return
    if " | " in setting.range or setting.range == "layer":
        for choice in setting.range.split(" | "):
            put(model, setting.key, choice)
        with pytest.raises(InvalidInputError):
            put(model, setting.key, "no-such-choice")
    elif setting.range:
        inside, outside = around(setting.range, setting.type == "whole number")
        assert inside
        for value in inside:
            put(model, setting.key, value)
        for value in outside:
            with pytest.raises(InvalidInputError, match=re.escape(setting.key)):
                put(model, setting.key, value)
    for value in OTHER_TYPES[setting.type]:
        with pytest.raises(InvalidInputError):
            put(model, setting.key, value)


@pytest.mark.parametrize("model", MODELS_OF_SETTINGS)
def test_every_field_of_a_model_is_listed(model: type[BaseModel]) -> None:
    def keys(part: type[BaseModel], prefix: str) -> Iterator[str]:
        for name, field in part.model_fields.items():
            inner = field.annotation
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                yield from keys(inner, f"{prefix}{name}.")
            else:
                yield f"{prefix}{name}"

    assert [setting.key for setting in settings_of(model)] == list(keys(model, ""))


@pytest.mark.parametrize(("setting", "own"), FREE, ids=lambda item: getattr(item, "key", item))
def test_a_setting_of_one_estimator_model_or_data_set_is_read_as_listed(setting: Setting, own: str) -> None:
    assert setting.meaning
    if setting.default != "none":
        accept(setting, own, written(setting))
    if " | " in setting.range:
        for choice in setting.range.split(" | "):
            accept(setting, own, choice)
        with pytest.raises(InvalidInputError):
            accept(setting, own, "no-such-choice")
        return
    whole = setting.type.startswith("whole number")
    inside, outside = around(setting.range, whole)
    assert bool(inside) == bool(setting.range)
    for value in inside:
        if setting.key != "estimator.refresh" and abs(value) < 1e300:
            accept(setting, own, value)
    for value in outside:
        with pytest.raises(InvalidInputError):
            accept(setting, own, value)


def settings_of_estimator(name: str) -> list[str]:
    estimator: Any = make_estimator(name)
    return [item.name for item in dataclasses.fields(estimator) if item.init]


def test_the_settings_of_every_estimator_model_and_data_set_are_listed() -> None:
    def owned(listed: tuple[Setting, ...]) -> set[tuple[str, str]]:
        return {(own, setting.key.rpartition(".")[2]) for setting in listed for own in setting.of}

    fields = {(name, key) for name in ESTIMATORS for key in settings_of_estimator(name)}
    configured = {(name, "shipped") for name, key in fields if key == "count_self_loop"}
    assert owned(estimator_settings()) == fields | configured
    assert owned(model_options()) == {(name, key) for name in MODELS for key in getattr(MODELS[name], "options", {})}
    entries = dataset_registry().usable()
    assert owned(dataset_options()) == {(name, key) for name, entry in entries.items() for key in entry.options}


def test_settings_that_differ_in_nothing_but_their_owners_are_one() -> None:
    weighting = [setting for setting in estimator_settings() if setting.key == "estimator.weighting"]
    assert len(weighting) == 1
    assert {"lmc", "gas", "shadow"} <= set(weighting[0].of)
    betas = {setting.default: setting.of for setting in estimator_settings() if setting.key == "estimator.beta"}
    assert "lmc" in betas["0.0"]
    assert set(betas["0.3"]) <= {"fm", "fm-local"}


class Inner(Settings):
    """Settings inside of others.

    Attributes:
        size: how much,
            in two lines.
    """

    size: int = Field(3, ge=2)


class Outer(Settings):
    """Settings.

    Attributes:
        inner: what is inside.
        kind: which.
        shares: some.
    """

    inner: Inner = Inner(size=7)
    kind: Literal["one", "other"] | None = None
    shares: tuple[float, ...] = Field((), min_length=0)
    name: str


def test_a_model_is_read_with_what_it_states_of_those_in_it() -> None:
    assert list(settings_of(Outer)) == [
        Setting("inner.size", "whole number", "7", "at least 2", "how much, in two lines."),
        Setting("kind", "text", "none", "one | other", "which."),
        Setting("shares", "list of numbers", "[]", "0 or more", "some."),
        Setting("name", "text", NO_DEFAULT, "", ""),
    ]
    assert [setting.key for setting in settings_of(Outer, ["inner", "kind"])] == ["shares", "name"]


def test_meanings_are_inherited_and_may_be_replaced() -> None:
    class Other(Inner):
        """Others.

        Attributes:
            size: of the other.
        """

    class Silent(Inner):
        """No attributes."""

    assert described(Other) == {"size": "of the other."}
    assert described(Silent) == {"size": "how much, in two lines."}
    assert described(lambda: None) == {}


def test_keys_are_those_that_a_command_line_takes() -> None:
    for setting in settings_of(CaseSettings):
        if setting.default != "none":
            assert case_settings({}, [f"{setting.key}={setting.default}"]) == CaseSettings()
