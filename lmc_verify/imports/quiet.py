"""Imports in the middle of a program, which leave the global random state as it is."""

from __future__ import annotations

import importlib
import sys
from typing import Any

__all__ = ["import_quietly"]


def import_quietly(module: str) -> Any:
    """Import a module on first use without advancing the global random state.

    Importing rich, which other libraries do, too, draws a number from `random`.
    """
    random = sys.modules.get("random")  # not imported yet: nobody can have seeded it
    if module in sys.modules or random is None:
        return importlib.import_module(module)
    state = random.getstate()
    try:
        return importlib.import_module(module)
    finally:
        random.setstate(state)
