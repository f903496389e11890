"""Values as text: JSON that keeps every float, JSON for other programs, and TOML for command lines.

JSON has no NaN and no infinity. What this package reads back (records, traces, counterexamples) holds such a float as
``{"$float": "nan"}`` (``"inf"``, ``"-inf"``), and it comes back as that float; finite floats come back bit by bit,
tuples as lists. What other programs read (``--json``, ``report.json``) holds one of the strings ``"NaN"``,
``"Infinity"`` and ``"-Infinity"`` instead. No other module spells them.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lmc_verify.errors import InvalidInputError

__all__ = ["MOST_NESTED", "decode", "encode", "nested", "plain", "published", "toml_key", "toml_value", "untagged"]

MOST_NESTED = 40
"""How deep lists and tables may lie in each other in what is read: nothing that this package writes comes near."""


def encode(value: Any) -> str:
    """Return a value as one line of strict JSON, see `plain`."""
    return json.dumps(plain(value), allow_nan=False, separators=(",", ":"))


def decode(text: str) -> Any:
    """Undo `encode`.

    Raises:
        ValueError: the text is not JSON.
    """
    return json.loads(text, object_hook=_untag)


def nested(value: Any) -> int:
    """Return how deep lists and mappings lie in each other: 0 for a number; counted up to `MOST_NESTED` + 1."""
    level, found = [value], 0
    while found <= MOST_NESTED:
        inner = [item for item in level if isinstance(item, Mapping | list | tuple)]
        if not inner:
            break
        found += 1
        level = [part for item in inner for part in (item.values() if isinstance(item, Mapping) else item)]
    return found


def plain(value: Any) -> Any:
    """Turn mappings, sequences and scalars (also NumPy's and torch's) into what JSON holds; the rest becomes text."""
    return _converted(value, lambda number: {"$float": repr(number)})


def untagged(value: Any) -> Any:
    """Undo `plain` on values that were read as JSON, or never written: floats that are not finite come back."""
    if isinstance(value, Mapping):
        return _untag({key: untagged(item) for key, item in value.items()})
    if isinstance(value, list | tuple):
        return [untagged(item) for item in value]
    return value


def published(value: Any) -> Any:
    """Return a value, also one from `plain`, as other programs read it: strict JSON, with strings for what JSON lacks.

    A float that is not finite is ``"NaN"``, ``"Infinity"`` or ``"-Infinity"``.
    """
    return _converted(untagged(value), lambda number: json.dumps(number))


def _converted(value: Any, spell: Callable[[float], Any]) -> Any:
    """Return a value as JSON holds it, with `spell` of every float that is not finite."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else spell(float(value))
    if isinstance(value, Mapping):
        return {str(key): _converted(item, spell) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_converted(item, spell) for item in value]
    if hasattr(value, "item"):
        return _converted(value.item(), spell)
    return str(value)


def _untag(item: dict[str, Any]) -> Any:
    return float(item["$float"]) if item.get("$float") in ("nan", "inf", "-inf") else item


def toml_key(name: str) -> str:
    """Return one name as (a part of) a TOML key, in quotes where it needs them."""
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else toml_value(name)


def toml_value(value: Any) -> str:
    """Return a string, number, boolean, date, or list or mapping of them as a TOML value, on one line.

    Raises:
        InvalidInputError: None, which TOML lacks.
    """
    if value is None:
        raise InvalidInputError("None cannot be written as TOML; leave the setting out")
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{toml_key(str(key))} = {toml_value(item)}" for key, item in value.items()) + "}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ", ".join(toml_value(item) for item in value) + "]"
    if isinstance(value, str):  # JSON escapes what TOML wants escaped, except for DEL
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return str(value)
