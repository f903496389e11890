"""Settings of a case as the words of a command line, and back."""

from __future__ import annotations

import shlex
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from lmc_verify.cases.settings import CaseSettings
from lmc_verify.encoding import toml_value
from lmc_verify.errors import InvalidInputError

__all__ = ["case_settings", "flat", "reproduction_command", "settings_tree"]


def case_settings(base: Mapping[str, Any], assignments: Sequence[str]) -> CaseSettings:
    """Build the settings of a case from dotted keys, see `settings_tree`.

    Raises:
        InvalidInputError: a text that is not KEY=VALUE, or settings that do not fit.
    """
    try:
        return CaseSettings.model_validate(settings_tree(base, assignments))
    except ValidationError as error:
        parts = [f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()]
        raise InvalidInputError(f"the case's settings do not fit: {'; '.join(parts)}") from error


def settings_tree(base: Mapping[str, Any], assignments: Sequence[str]) -> dict[str, Any]:
    """Return nested settings from dotted keys; values are TOML, and bare words are strings.

    Args:
        base: values by dotted key, such as ``{"dataset.name": "karate"}``.
        assignments: further ``KEY=VALUE`` texts, which win.

    Raises:
        InvalidInputError: a text that is not KEY=VALUE.
    """
    tree: dict[str, Any] = {}
    pairs = list(base.items())
    for text in assignments:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise InvalidInputError(f"--set {text!r} is not KEY=VALUE; write for instance --set model.layers=2")
        try:
            pairs.append((key, tomllib.loads(f"value = {value}")["value"]))
        except tomllib.TOMLDecodeError:
            pairs.append((key, value))
    for key, value in pairs:
        *path, last = key.split(".")
        node = tree
        for part in path:
            node = node.setdefault(part, {})
            if not isinstance(node, dict):
                raise InvalidInputError(f"--set {key}: {part!r} is not a table of settings")
        node[last] = value
    return tree


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield nested settings as dotted keys with their values."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def reproduction_command(claim: str, settings: CaseSettings) -> str:
    """Return the `lmc-verify check` command of a case, with every setting that is not the default."""
    words = ["lmc-verify", "check", claim, "--estimator", settings.estimator.name, "--dataset", settings.dataset.name]
    default = CaseSettings().model_dump(mode="json")
    values = settings.model_dump(mode="json")
    for part in ("dataset", "estimator", "model", "design", "sampling", "training"):
        for key, value in values[part].items():
            named = part in ("dataset", "estimator")
            if (named and key == "name") or (not named and default[part].get(key) == value):
                continue
            nested = (
                {f"{key}.{name}": item for name, item in value.items()} if isinstance(value, dict) else {key: value}
            )
            for path, item in nested.items():
                words += ["--set", f"{part}.{path}={toml_value(item)}"]
    for key in ("histories", "seed"):
        if values[key] != default[key]:
            words += [f"--{key}", str(values[key])]
    return shlex.join(words)
