"""Errors of the package, each with the exit code that the command line gives it.

Every message names the value, the limit and what to do next; `suggestion` builds the "did you mean" part.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "InfrastructureError",
    "InvalidInputError",
    "LmcVerifyError",
    "OutputError",
    "PluginError",
    "RecordsError",
    "UnknownNameError",
    "suggestion",
]


class LmcVerifyError(Exception):
    """Base class of every error that the package raises on purpose."""

    exit_code: int = 5


class InvalidInputError(LmcVerifyError, ValueError):
    """An argument, a graph, a model or a suite file that cannot be used as given."""

    exit_code = 2


class UnknownNameError(InvalidInputError):
    """A name that no registry knows; the message lists the nearest known ones."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        self.kind, self.name, self.known = kind, name, sorted(known)
        super().__init__(f"unknown {kind} {name!r}: {suggestion(name, self.known)}")


class PluginError(InvalidInputError):
    """A plug-in that cannot be used: it does not load, is not what its group asks for, or takes a name twice."""


class RecordsError(InvalidInputError):
    """A records file that is corrupt, foreign, or of another schema version."""


class OutputError(InvalidInputError):
    """An output folder or file that cannot be written."""


class InfrastructureError(LmcVerifyError):
    """A trial crashed for a reason that says nothing about the claim."""

    exit_code = 5


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return "did you mean ...?" with the nearest names, or the whole list when none is near."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if near:
        return "did you mean " + " or ".join(repr(item) for item in near) + "?"
    return "known names are " + ", ".join(repr(item) for item in names) if names else "no name is known"
