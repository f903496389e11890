"""Settings as the words of a command line, and back: the one writer and the one reader.

Some settings have an option of their own, such as ``--seed``; every other one is ``--set KEY=VALUE``, where KEY is a
dotted TOML key and VALUE a TOML value. `command_line` writes what runs record, `read_command` reads it again, and
`settings_tree` is how the command line itself reads ``--set``.
"""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lmc_verify.cases.settings import CaseSettings
from lmc_verify.encoding import toml_key, toml_value
from lmc_verify.errors import InvalidInputError, validated

__all__ = [
    "Command",
    "case_settings",
    "command_line",
    "read_command",
    "read_value",
    "reproduction_command",
    "settings_tree",
]

PROGRAM = "lmc-verify"

_COMMANDS: Mapping[str, tuple[bool, Mapping[str, str]]] = {
    "check": (
        True,
        {"estimator": "estimator.name", "dataset": "dataset.name", "histories": "histories", "seed": "seed"},
    ),
    "counterexample": (
        True,
        {
            "estimator": "estimator.name",
            "histories": "histories",
            "max-nodes": "max_nodes",
            "examples": "examples",
            "seed": "seed",
        },
    ),
    "train": (False, {"dataset": "dataset.name", "estimator": "estimator.name", "seed": "seed"}),
    "controls": (True, {}),
    "audit": (True, {name: f"--{name}" for name in ("draws", "alpha", "guarantee", "delta", "seed")}),
}
"""Of each command that is written: whether it has a subject, and the settings that have an option, by its name.

Settings of ``audit`` are arguments of a user's function, with any name: an option's setting begins with hyphens.
"""

_PART = r'"(?:[^"\\]|\\.)*"|[^".=]+'
_ASSIGNMENT = re.compile(rf"((?:{_PART})(?:\.(?:{_PART}))*)=(.*)", re.DOTALL)


@dataclass(frozen=True)
class Command:
    """A command line, parsed.

    Attributes:
        name: of the command, such as ``"check"``.
        subject: what it is about: the claim of ``check`` and ``counterexample``, the control of ``controls``, the
            function of ``audit``; else "".
        settings: nested settings, those of options as text.
    """

    name: str
    subject: str
    settings: dict[str, Any]


def command_line(name: str, settings: Mapping[str, Any], usual: Mapping[str, Any], subject: str = "") -> str:
    """Return a shell command with every setting that is not the usual one.

    Args:
        name: ``"check"``, ``"counterexample"``, ``"train"``, ``"controls"`` or ``"audit"``.
        settings: nested settings. None is left out: it is the default wherever it is allowed.
        usual: nested settings that are left out where they have these values.
        subject: the claim, the control or the function, for a command that has one.
    """
    has_subject, options = _COMMANDS[name]
    left_out = dict(_flat(usual))
    written = {
        key: value
        for key, value in _flat(settings)
        if value is not None and not (key in left_out and left_out[key] == value)
    }
    words = [PROGRAM, name, *([subject] if has_subject else [])]
    for option, key in options.items():
        if key in written:
            words += [f"--{option}", str(written.pop(key))]
    for key, value in written.items():
        words += ["--set", f"{key}={toml_value(value)}"]
    return shlex.join(words)


def read_command(text: str) -> Command:
    """Undo `command_line`.

    Raises:
        InvalidInputError: it is no such command, or has a word that this version does not write.
    """
    try:
        program, name, *words = shlex.split(text)
    except ValueError as error:
        raise InvalidInputError(f"the command {text!r} is not one that {PROGRAM} writes") from error
    if program != PROGRAM or name not in _COMMANDS:
        raise InvalidInputError(f"the command {text!r} is not one that {PROGRAM} writes")
    has_subject, options = _COMMANDS[name]
    if has_subject and not words:
        raise InvalidInputError(f"the command {text!r} ends where {PROGRAM} {name} has a name")
    subject = words.pop(0) if has_subject else ""
    base, assignments = {}, []
    for option, value in zip(words[::2], [*words[1::2], None], strict=False):
        key = options.get(option.removeprefix("--"))
        if value is None or not option.startswith("--") or (key is None and option != "--set"):
            raise InvalidInputError(
                f"the command {text!r} has {option!r} where {PROGRAM} {name} has an option or --set"
            )
        if key is None:
            assignments.append(value)
        else:
            base[key] = value
    return Command(name, subject, settings_tree(base, assignments))


def reproduction_command(claim: str, settings: CaseSettings) -> str:
    """Return the `lmc-verify check` command of a case, with every setting that is not the default."""
    # A data set and an estimator have options that only their registries know: they are always written.
    usual = CaseSettings().model_dump(exclude={"dataset", "estimator"})
    return command_line("check", settings.model_dump(), usual, claim)


def case_settings(base: Mapping[str, Any], assignments: Sequence[str]) -> CaseSettings:
    """Build the settings of a case from dotted keys, see `settings_tree`.

    Raises:
        InvalidInputError: a text that is not KEY=VALUE, or settings that do not fit.
    """
    return validated(CaseSettings, settings_tree(base, assignments), "the case's settings do not fit")


def settings_tree(base: Mapping[str, Any], assignments: Sequence[str]) -> dict[str, Any]:
    """Return nested settings from dotted keys; values are TOML, and bare words are strings.

    Args:
        base: values by dotted key, such as ``{"dataset.name": "karate"}``.
        assignments: further ``KEY=VALUE`` texts, which override them. A part of a key may be in quotes, as in TOML.

    Raises:
        InvalidInputError: a text that is not KEY=VALUE.
    """
    tree: dict[str, Any] = {}
    for key, value in base.items():
        _put(tree, key.split("."), value)
    for text in assignments:
        match = _ASSIGNMENT.fullmatch(text)
        if match is None:
            raise InvalidInputError(f"--set {text!r} is not KEY=VALUE; write for instance --set model.layers=2")
        parts = re.findall(_PART, match[1])
        try:
            path = [tomllib.loads(f"key = {part}")["key"] if part.startswith('"') else part for part in parts]
        except tomllib.TOMLDecodeError as error:
            raise InvalidInputError(f"--set {text!r} has a key that is not TOML: {error}") from error
        _put(tree, path, read_value(match[2]))
    return tree


def read_value(text: str) -> Any:
    """Return a TOML value; a bare word is a string."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _put(tree: dict[str, Any], path: Sequence[str], value: Any) -> None:
    node = tree
    for part in path[:-1]:
        node = node.setdefault(part, {})
        if not isinstance(node, dict):
            raise InvalidInputError(f"--set {'.'.join(path)}: {part!r} is not a table of settings")
    node[path[-1]] = value


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield nested settings as dotted TOML keys with their values; an empty table is a value."""
    for name, value in values.items():
        key = f"{prefix}{toml_key(name)}"
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{key}.")
        else:
            yield key, value
