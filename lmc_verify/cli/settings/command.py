"""The command ``lmc-verify settings``: what ``--set`` takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from lmc_verify.cli.completion import names
from lmc_verify.cli.options import JsonOption, out_console, print_json, shown
from lmc_verify.errors import InvalidInputError, UnknownNameError, nearest

if TYPE_CHECKING:
    from lmc_verify.cli.settings.keys import Key

__all__ = ["settings"]

_MEANT = 5
"""So many keys are offered for a name that none begins with."""


def settings(
    prefix: Annotated[
        str,
        typer.Argument(
            help="Beginning of the keys, such as model or estimator.beta.", autocompletion=names.settings_prefixes
        ),
    ] = "",
    command: Annotated[
        str | None, typer.Option("--command", help="Only what this command takes.", autocompletion=names.commands)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List what --set takes: key, type, default, range and meaning. That of audit: your function's arguments."""
    from lmc_verify.cli.settings.keys import COMMANDS, all_keys

    if command is not None and command not in COMMANDS:
        raise UnknownNameError("command with --set", command, COMMANDS)
    known = [item for item in all_keys() if command is None or command in item.commands]
    chosen = [item for item in known if item.setting.key.startswith(prefix)]
    if not chosen:
        raise _unknown(prefix, known)
    if as_json:
        print_json([{**asdict(item.setting), "commands": item.commands} for item in chosen])
        return
    console = out_console()
    for item in chosen:
        console.print(shown(item.setting.key), style="bold", markup=False, highlight=False)
        for line in _lines(item):
            console.print(f"  {shown(line)}", markup=False, highlight=False, soft_wrap=True)


def _unknown(name: str, known: Sequence[Key]) -> InvalidInputError:
    """Return the error of a name that no key begins with: keys that have it as a part, or that only it has."""
    wanted = name.casefold()
    inside = {item.setting.key for item in known if wanted in item.setting.key.casefold().split(".")[1:]}
    owned = {item.setting.key for item in known if wanted in map(str.casefold, item.setting.of)}
    found = sorted(inside or owned)
    if not found:
        keys = {item.setting.key for item in known}
        groups = {key.partition(".")[0] for key in keys}
        return UnknownNameError("setting", name, keys | groups if nearest(name, keys | groups) else groups)
    listed = " or ".join(map(repr, found[:_MEANT])) + (f" or one of {len(found) - _MEANT} more" * (len(found) > _MEANT))
    why = "" if inside else f", which {name} has"
    return InvalidInputError(f"unknown setting {name!r}: did you mean {listed}{why}? Give the beginning of a key")


def _lines(item: Key) -> list[str]:
    from lmc_verify.cases.catalogue import NO_DEFAULT

    setting = item.setting
    default = setting.default if setting.default == NO_DEFAULT else f"default {setting.default}"
    facts = [setting.type, default, setting.range]
    return [
        ", ".join(filter(None, facts)),
        *([setting.meaning.replace("``", "").replace("`", "")] if setting.meaning else []),
        *([f"of {', '.join(setting.of)}"] if setting.of else []),
        f"in {', '.join(item.commands)}",
    ]
