"""Every setting with its key, type, default, range and meaning, read from the settings models and the registries.

Pydantic models are read through their JSON schemas, which have types and limits. The settings of an estimator, a model
or a data set are checked by its own code: what only that code knows of their ranges is written in `_RANGES`, and the
tests hold both sides of every range against the code. Meanings are those of the docstrings.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, get_args, get_type_hints

from pydantic import BaseModel

from lmc_verify.datasets import dataset_registry
from lmc_verify.encoding import toml_value
from lmc_verify.estimators import ESTIMATORS, LOSS_WEIGHTINGS, SCORES, SHIPPED
from lmc_verify.estimators.compensated.shipped import SETTING, has_shipped_settings
from lmc_verify.estimators.registry import default_settings
from lmc_verify.estimators.samplers.published import CODES
from lmc_verify.estimators.samplers.saint import CONVENTIONS
from lmc_verify.models import MODELS

__all__ = [
    "NO_DEFAULT",
    "Setting",
    "dataset_options",
    "described",
    "estimator_settings",
    "model_options",
    "settings_of",
]

NO_DEFAULT = "required"
"""The default of a setting that must be given."""


@dataclass(frozen=True)
class Setting:
    """One setting.

    Attributes:
        key: its dotted name, as ``--set`` takes it.
        type: such as ``"whole number"``.
        default: as a TOML value; ``"none"`` where it may be left out, `NO_DEFAULT` where it must be given.
        range: the values that are accepted, as far as they are fewer than the type's; else "".
        meaning: what it is.
        of: the estimators, models or data sets that have it; empty for all.
    """

    key: str
    type: str
    default: str
    range: str
    meaning: str
    of: tuple[str, ...] = ()


_RANGES: Mapping[str, str] = {
    "estimator.weighting": " | ".join(LOSS_WEIGHTINGS),
    "estimator.beta": "0 ... 1",
    "estimator.score": " | ".join(SCORES),
    "estimator.fan_out": "at least 1",
    "estimator.rounds": "at least 0",
    "estimator.nodes": "at least 1",
    "estimator.proposal_step": "at least 0",
    "estimator.code": " | ".join(CODES),
    "estimator.size": "above 0",
    "estimator.smoothing": "above 0, at most 1",
    "estimator.refresh": "at least 1",
    "estimator.presamples": "at least 1",
    "estimator.constants": "closed form | estimated",
    "estimator.convention": " | ".join(CONVENTIONS),
    "estimator.edges": "at least 1",
    "estimator.roots": "at least 1",
    "estimator.length": "at least 1",
    "estimator.depth": "at least 0",
    "estimator.tolerance": "at least 0, below 1",
    "estimator.random_models": "at least 1",
    "model.options.alpha": "0 ... 1",
    "model.options.theta": "above 0",
    "model.options.heads": "at least 1",
    "model.options.towers": "at least 1",
    "model.options.contraction": "above 0",
}
"""The ranges that only an estimator's or a model's own code knows; a setting without one takes every value."""

_SHIPPED = Setting(
    f"estimator.{SETTING}",
    "text",
    "none",
    " | ".join(SHIPPED),
    "the beta, score, whole_when_complete and count_self_loop that the authors ship for a model and a data set; those "
    "that are given themselves count",
)
"""A name for several settings, which estimators that have all of them take in place of these."""

_OPTION_MEANINGS: Mapping[str, str] = {
    "neighbors": "nearest images that an image is joined to",
    "num_nodes": "nodes",
    "num_edges": "undirected edges; of the data set ``directed``, directed ones",
    "num_classes": "classes",
    "num_features": "width of the features",
    "num_labels": "tasks, each of them 0 or 1",
    "num_self_loops": "self-loops",
    "num_isolated": "nodes without an edge",
    "signal": "scale of the class means, in standard deviations of a feature's noise",
    "p_in": "probability of an edge inside of a class (of ``multilabel``: inside of a block)",
    "p_out": "probability of any other edge",
    "p_extra": "probability of each further label of a node",
    "communities_per_class": "communities in each class",
    "within_community": "share of the edges whose second end is drawn from the community of the first",
    "within_class": "share of the edges whose second end is drawn from the class of the first",
    "exponent": "of the power law of the degrees",
    "rows": "rows of the grid",
    "columns": "columns of the grid",
    "noise": "standard deviation of the features' noise",
    "flips": "share of labels that are flipped",
    "attachments": "edges that a new node comes with",
    "split": "which of the published splits",
    "undirected": "add the reverse of every edge",
}
"""What the options of the package's own data sets are, by name."""

_NAMES = {"integer": "whole number", "number": "number", "boolean": "true or false", "string": "text"}

_TYPES: Mapping[type, str] = {int: "whole number", float: "number", bool: "true or false", str: "text"}

_POWERS = {2**31 - 1: "2^31 - 1", 2**63 - 1: "2^63 - 1"}


def settings_of(model: type[BaseModel], without: Iterable[str] = ()) -> Iterator[Setting]:
    """Yield the settings of a pydantic model, those of the models in it with dotted keys.

    Args:
        model: a settings model.
        without: fields of it that are left out.
    """
    yield from _fields(model, "", {}, frozenset(without))


def _fields(
    model: type[BaseModel], prefix: str, given: Mapping[str, Any], without: frozenset[str] = frozenset()
) -> Iterator[Setting]:
    """Yield the settings of a model; `given` are the defaults that a model around it states for them."""
    schema, meanings = model.model_json_schema(), described(model)
    for name, item in schema.get("properties", {}).items():
        if name in without:
            continue
        default = given.get(name, item.get("default"))
        if "$ref" in item:
            yield from _fields(_model_of(model.model_fields[name].annotation), f"{prefix}{name}.", default or {})
            continue
        if model.model_fields[name].default_factory is not None:
            default = {}  # the only factory that there is; a schema does not have what it makes
        text = NO_DEFAULT if default is None and name in schema.get("required", ()) else _written(default)
        yield Setting(f"{prefix}{name}", _type(item), text, _range(item), meanings.get(name, ""))


def _model_of(annotation: Any) -> type[BaseModel]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(_model_of(item) for item in get_args(annotation))


def _type(item: Mapping[str, Any]) -> str:
    if "anyOf" in item:
        return " or ".join(dict.fromkeys(_type(branch) for branch in item["anyOf"] if branch.get("type") != "null"))
    if item.get("type") == "array":
        return f"list of {_plural(_type(item.get('items', {})))}"
    return _NAMES.get(item.get("type", ""), "table")


def _plural(name: str) -> str:
    return {"text": "texts"}.get(name, f"{name}s")


def _range(item: Mapping[str, Any]) -> str:
    """Return the values that a JSON schema accepts, in words."""
    if "anyOf" in item:
        return ", ".join(filter(None, (_range(branch) for branch in item["anyOf"])))
    if item.get("type") == "array":
        least = f"{item['minItems']} or more" if "minItems" in item else ""
        return ", each ".join(filter(None, (least, _range(item.get("items", {})))))
    choices = item.get("enum", [item["const"]] if "const" in item else [])
    return " | ".join(map(str, choices)) or _interval(
        item.get("minimum"), item.get("maximum"), item.get("exclusiveMinimum"), item.get("exclusiveMaximum")
    )


def _interval(least: Any = None, most: Any = None, above: Any = None, below: Any = None) -> str:
    if least is not None and most is not None:
        return f"{_number(least)} ... {_number(most)}"
    words = (("at least", least), ("above", above), ("at most", most), ("below", below))
    return ", ".join(f"{word} {_number(value)}" for word, value in words if value is not None)


def _number(value: float) -> str:
    return _POWERS.get(int(value) if float(value).is_integer() else -1, f"{value:,}".removesuffix(".0"))


def _written(value: Any) -> str:
    return "none" if value is None else toml_value(value)


def described(item: Any) -> dict[str, str]:
    """Return what the docstrings of a class and its bases, or of a function, say of its attributes or arguments."""
    kinds = reversed(inspect.getmro(item)) if isinstance(item, type) else (item,)
    found: dict[str, str] = {}
    for kind in kinds:
        if kind is BaseModel:  # its attributes are not settings
            continue
        own = kind.__dict__.get("__doc__") if isinstance(kind, type) else kind.__doc__
        found |= _sections(inspect.cleandoc(own or ""))
    return found


def _sections(text: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for body in re.findall(r"^(?:Attributes|Args):\n((?:[ ]+.*\n?|\n)+)", text, re.MULTILINE):
        for name, words in re.findall(r"^ {4}(\w+): ((?:.*\n?)(?:^ {5,}.*\n?)*)", body, re.MULTILINE):
            found[name] = " ".join(words.split())
    return found


def estimator_settings() -> tuple[Setting, ...]:
    """Return the settings of all estimators that can be used, those that several share once."""
    found = []
    for own, build in ESTIMATORS.usable().items():
        meanings, defaults = described(build), default_settings(own)
        if has_shipped_settings(defaults):
            found.append(replace(_SHIPPED, of=(own,)))
        for name, default in defaults.items():
            key, kind = f"estimator.{name}", _type_of(build, name, default)
            text = NO_DEFAULT if default is inspect.Parameter.empty else _written(default)
            found.append(Setting(key, kind, text, _RANGES.get(key, ""), meanings.get(name, ""), (own,)))
    return _shared(found)


def _type_of(build: Any, name: str, default: Any) -> str:
    """Return the type that a class states of a field; of a plug-in's function, that of the default."""
    hint: Any = get_type_hints(build).get(name) if isinstance(build, type) else None
    if hint in _TYPES:
        return _TYPES[hint]
    parts = [item for item in get_args(hint) if item in _TYPES]
    if parts:  # a number, or one per layer or node
        return f"{_TYPES[parts[0]]} or list of {_plural(_TYPES[parts[0]])}"
    return _TYPES.get(type(default), "")


def model_options() -> tuple[Setting, ...]:
    """Return the options of all models that can be used."""
    found = []
    for own, build in MODELS.usable().items():
        options: Mapping[str, Any] = getattr(build, "options", {})
        meanings = described(build)
        for name, default in options.items():
            key = f"model.options.{name}"
            kind, text = _TYPES.get(type(default), ""), _written(default)
            found.append(Setting(key, kind, text, _RANGES.get(key, ""), meanings.get(name, ""), (own,)))
    return _shared(found)


def dataset_options() -> tuple[Setting, ...]:
    """Return the options of all data sets that can be used."""
    found = []
    for own, entry in dataset_registry().usable().items():
        for name, option in entry.options.items():
            kind, text = _TYPES[type(option.default)], _written(option.default)
            limits = "" if isinstance(option.default, bool) else _limits(option.minimum, option.maximum)
            found.append(Setting(f"dataset.{name}", kind, text, limits, _OPTION_MEANINGS.get(name, ""), (own,)))
    return _shared(found)


def _limits(least: float, most: float) -> str:
    return _interval(*(limit if math.isfinite(limit) else None for limit in (least, most)))


def _shared(settings: Iterable[Setting]) -> tuple[Setting, ...]:
    """Return settings that differ in their owners only as one, in the order of keys."""
    found: dict[Setting, tuple[str, ...]] = {}
    for item in settings:
        alike = replace(item, of=())
        found[alike] = (*found.get(alike, ()), *item.of)
    joined = (replace(item, of=owners) for item, owners in found.items())
    return tuple(sorted(joined, key=lambda item: item.key))
