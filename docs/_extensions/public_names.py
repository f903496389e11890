"""Which public names there are, and the page of the reference that each is on."""

from __future__ import annotations

import importlib
import inspect
from functools import cache
from types import ModuleType

import lmc_verify

__all__ = ["PAGES", "pages"]

PAGES: dict[str, tuple[str, ...]] = {
    "audits": ("audits",),
    "testing": ("testing",),
    "claims": ("claims",),
    "estimators": ("estimators",),
    "graphs": ("graphs",),
    "models": ("models",),
    "objective": ("objective", "objective.streamed", "objective.distributed"),
    "datasets": ("datasets",),
    "cases": ("cases",),
    "bounds": ("bounds",),
    "training": ("training",),
    "races": ("races",),
    "runs": ("runs",),
    "report": ("report",),
    "counterexamples": ("counterexamples",),
    "controls": ("controls",),
    "statistics": ("statistics",),
    "steps": ("steps",),
    "ground": ("arguments", "errors", "plugins", "seeds", "encoding", "provenance"),
}
"""The pages of the reference, and the modules of the package that each is about."""


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"lmc_verify.{name}")


def _identity(name: str, item: object) -> tuple[str, int]:
    """Tell one object under two names from two; of constants, equal small numbers are one object."""
    return ("", id(item)) if inspect.isclass(item) or inspect.isroutine(item) else (name, id(item))


@cache
def pages() -> dict[str, tuple[str, ...]]:
    """Return the names that each page documents, as a user imports them; every public object is on one page.

    A name of the package itself comes before those of its folders: ``lmc_verify.GCN``.
    """
    top = {_identity(name, getattr(lmc_verify, name)): name for name in lmc_verify.__all__}
    modules = [(page, module) for page, listed in PAGES.items() for module in listed]
    offered = [
        (page, module, name, getattr(_module(module), name))
        for page, module in modules
        for name in _module(module).__all__
    ]
    # An object is on the page of the folder that defines it, if that offers it.
    offered.sort(key=lambda item: not getattr(item[3], "__module__", "").startswith(f"lmc_verify.{item[1]}"))
    found: dict[tuple[str, int], tuple[str, str]] = {}
    for page, module, name, item in offered:
        key = _identity(name, item)
        short = f"lmc_verify.{top[key]}" if key in top else f"lmc_verify.{module}.{name}"
        found.setdefault(key, (page, short))
    for key, name in top.items():
        if key not in found and name != "__version__":
            home = getattr(getattr(lmc_verify, name), "__module__", "lmc_verify.estimators").split(".")[1]
            found[key] = (next(page for page, listed in PAGES.items() if home in listed), f"lmc_verify.{name}")
    names: dict[str, list[str]] = {page: [] for page in PAGES}
    for page, name in found.values():
        names[page].append(name)
    return {
        page: tuple(sorted(listed, key=lambda name: (name.count("."), name.lower()))) for page, listed in names.items()
    }
