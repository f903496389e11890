"""What ``list`` and ``explain`` say of the package's own claims, models and controls, without importing them.

It is written next to them, in modules that import torch. `texts.json` is a copy, made by
``python tools/listing_texts.py``; a test compares it with the objects.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lmc_verify.claims import Claim
    from lmc_verify.plugins import Registry

__all__ = ["FILE", "claim_text", "first_line", "kept", "present"]

FILE = Path(__file__).with_name("texts.json")


@cache
def kept() -> dict[str, dict[str, dict[str, Any]]]:
    """Return the copy: texts by kind and name."""
    texts: dict[str, dict[str, dict[str, Any]]] = json.loads(FILE.read_text(encoding="utf-8"))
    return texts


def present() -> dict[str, dict[str, dict[str, Any]]]:
    """Return what the copy has to be, from the objects."""
    from lmc_verify.claims import CLAIMS
    from lmc_verify.controls import CONTROLS
    from lmc_verify.models import MODELS

    return {
        "claims": {name: claim_text(CLAIMS[name]) for name in _own(CLAIMS)},
        "models": {name: {"description": first_line(MODELS[name])} for name in _own(MODELS)},
        "controls": {name: {"role": item.role, "description": item.description} for name, item in CONTROLS.items()},
    }


def _own(registry: Registry[Any]) -> Iterable[str]:
    return (name for name in registry if registry.is_own(name))


def claim_text(claim: Claim) -> dict[str, Any]:
    """Return what there is to say of a claim, as ``explain --json`` prints it."""
    return {
        "id": claim.id,
        "title": claim.title,
        "statement": claim.statement,
        "source": claim.source,
        "tier": claim.tier,
        "theory": claim.theory,
        "assumptions": [
            {"id": item.id, "statement": item.statement, "required": item in claim.required}
            for item in claim.assumptions
        ],
        "check": inspect.cleandoc(claim.check.__doc__ or ""),  # Python 3.13 takes the indentation away by itself
    }


def first_line(item: Any) -> str:
    """Return the first line of an object's docstring."""
    return (item.__doc__ or "").strip().partition("\n")[0]
