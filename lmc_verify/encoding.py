"""Values as text: strict JSON that keeps every float, and TOML for command lines.

JSON has no NaN and no infinity: a float that is not finite is written as ``{"$float": "nan"}`` (``"inf"``, ``"-inf"``)
and comes back as that float. Finite floats come back bit by bit. Tuples come back as lists.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["decode", "encode", "plain", "toml_value", "untagged"]


def encode(value: Any) -> str:
    """Return a value as one line of strict JSON, see `plain`."""
    return json.dumps(plain(value), allow_nan=False, separators=(",", ":"))


def decode(text: str) -> Any:
    """Undo `encode`.

    Raises:
        ValueError: the text is not JSON.
    """
    return json.loads(text, object_hook=_untag)


def plain(value: Any) -> Any:
    """Turn mappings, sequences and scalars (also NumPy's and torch's) into what JSON holds; the rest becomes text."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"$float": repr(float(value))}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "item"):
        return plain(value.item())
    return str(value)


def _untag(item: dict[str, Any]) -> Any:
    return float(item["$float"]) if item.get("$float") in ("nan", "inf", "-inf") else item


def untagged(value: Any) -> Any:
    """Undo `plain` on values that were read as JSON, or never written: floats that are not finite come back."""
    if isinstance(value, Mapping):
        return _untag({key: untagged(item) for key, item in value.items()})
    if isinstance(value, list | tuple):
        return [untagged(item) for item in value]
    return value


def toml_value(value: Any) -> str:
    """Return a string, number, boolean or list of them as a TOML value."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ", ".join(toml_value(item) for item in value) + "]"
    if isinstance(value, str):  # JSON escapes what TOML wants escaped, but for DEL
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return str(value)
