"""The keys of ``--set``, without the modules that have them: those import torch, and a shell does not wait.

`keys.json` is a copy of what `lmc_verify.cli.settings` lists, made by ``python tools/listing_texts.py``; a test
compares the two. Settings that only plug-ins have are not in it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

__all__ = ["FILE", "KeptKey", "kept_keys"]

FILE = Path(__file__).with_name("keys.json")


@dataclass(frozen=True)
class KeptKey:
    """A key of ``--set``.

    Attributes:
        commands: that take it.
        values: all that it can have where they are few, else its defaults.
        meaning: what it is.
    """

    commands: tuple[str, ...]
    values: tuple[str, ...]
    meaning: str


@cache
def kept_keys() -> dict[str, KeptKey]:
    """Return the copy: keys in order."""
    listed = json.loads(FILE.read_text(encoding="utf-8"))
    return {
        key: KeptKey(tuple(item["commands"]), tuple(item["values"]), item["meaning"]) for key, item in listed.items()
    }
