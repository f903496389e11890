"""Every key that ``--set`` takes, and the commands that take it."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from lmc_verify.cases.catalogue import (
    NO_DEFAULT,
    Setting,
    dataset_options,
    estimator_settings,
    model_options,
    settings_of,
)
from lmc_verify.cases.settings import CaseSettings, DesignSettings
from lmc_verify.cli.exact.command import ExactSettings
from lmc_verify.datasets import dataset_registry
from lmc_verify.estimators import ESTIMATORS
from lmc_verify.models import MODELS
from lmc_verify.plugins import Registry
from lmc_verify.races.settings import RaceSettings
from lmc_verify.training.settings import RunSettings

__all__ = ["COMMANDS", "Key", "all_keys", "for_completion"]


@dataclass(frozen=True)
class Key:
    """A setting, and where it can be given.

    Attributes:
        setting: the setting.
        commands: the commands whose ``--set`` takes it, such as ``("check", "train")``.
    """

    setting: Setting
    commands: tuple[str, ...]


def _case(*without: str) -> Iterator[Setting]:
    yield from settings_of(CaseSettings, without)
    yield from estimator_settings()


def _check() -> Iterator[Setting]:
    yield from _case()
    yield from model_options()
    yield from dataset_options()


def _counterexample() -> Iterator[Setting]:
    # Graphs and clusters are drawn, every parameter is trained, and enumeration decides.
    refused = ("design.partition", "model.options", "model.frozen")
    yield from (item for item in _case("dataset", "sampling", "training") if item.key not in refused)


def _check_estimator() -> Iterator[Setting]:
    yield from _case("dataset", "model", "design", "sampling", "training", "histories", "seed")


def _train() -> Iterator[Setting]:
    yield from settings_of(RunSettings)
    yield from estimator_settings()
    yield from model_options()
    yield from dataset_options()


def _race() -> Iterator[Setting]:
    yield from settings_of(RaceSettings)
    for item in settings_of(DesignSettings):  # of all contestants without a design of their own
        yield replace(item, key=f"design.{item.key}")
    yield from model_options()
    yield from dataset_options()


def _exact() -> Iterator[Setting]:
    yield from settings_of(ExactSettings)
    yield from model_options()
    yield from dataset_options()


COMMANDS: Mapping[str, Callable[[], Iterator[Setting]]] = {
    "check": _check,
    "counterexample": _counterexample,
    "check-estimator": _check_estimator,
    "train": _train,
    "race": _race,
    "exact": _exact,
}
"""What each command's ``--set`` takes. That of ``audit`` takes the arguments of the user's function."""


def all_keys() -> tuple[Key, ...]:
    """Return every setting in the order of keys; one that differs between commands comes once for each variant."""
    found: dict[Setting, tuple[str, ...]] = {}
    for command, listed in COMMANDS.items():
        for setting in listed():
            found[setting] = (*found.get(setting, ()), command)
    keys = (Key(setting, commands) for setting, commands in found.items())
    return tuple(sorted(keys, key=lambda item: (item.setting.key.count(".") > 0, item.setting.key)))


def for_completion() -> dict[str, dict[str, Any]]:
    """Return what a shell is to offer of every key that is not a plug-in's alone: the copy in ``cli/completion``."""
    found: dict[str, dict[str, Any]] = {}
    for item in all_keys():
        setting = item.setting
        if setting.of and not any(_is_own(setting.key, name) for name in setting.of):
            continue
        kept = found.setdefault(setting.key, {"commands": [], "values": [], "meaning": setting.meaning})
        kept["commands"] += [name for name in item.commands if name not in kept["commands"]]
        kept["values"] += [value for value in _values(setting) if value not in kept["values"]]
    return found


def _is_own(key: str, name: str) -> bool:
    kind = key.partition(".")[0]
    registries: dict[str, Registry[Any]] = {"estimator": ESTIMATORS, "model": MODELS, "dataset": dataset_registry()}
    return registries[kind].is_own(name)


def _values(setting: Setting) -> list[str]:
    """Return the values of a setting if they are few, else its default; none that a shell would have to quote."""
    if setting.type == "true or false":
        return ["true", "false"]
    named = setting.range.split(" | ")
    if len(named) > 1 or named[0].isidentifier():
        return [value for value in named if " " not in value]
    if setting.default in ("none", NO_DEFAULT):
        return []
    value = tomllib.loads(f"value = {setting.default}")["value"]
    return [str(value)] if isinstance(value, str | int | float) and str(value).isprintable() and str(value) else []
