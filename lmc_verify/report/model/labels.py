"""Labels of cases: the fewest settings that distinguish the cases of a claim."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lmc_verify.cases import CaseDescription
from lmc_verify.report.model import text

__all__ = ["common_entries", "common_settings", "distinguishing_labels", "settings_in_words"]

_DERIVED = ("support", "edges", "nodes", "seed")
"""Settings that a label leaves out first when it can."""
_LEADING = ("dataset", "model", "estimator", "function")
"""Settings that a label keeps wherever they differ."""
_BARE = (*_LEADING, "arguments", "design", "partition", "dtype")
"""Settings whose value says what it is, without the name."""


def settings_in_words(case: CaseDescription) -> list[tuple[str, str]]:
    """Return name and value, in words, of every setting of a case, in reading order."""
    values = case.to_dict()
    return [(text.name(key), text.setting(values[key], key)) for key in text.case_keys(values)]


def distinguishing_labels(described: Sequence[CaseDescription], *, whole: bool = True) -> list[str]:
    """Name each case by the fewest settings that distinguish the cases of a claim.

    Args:
        described: the cases.
        whole: name data set and estimator also where they do not differ, unless two other settings do. Without it,
            cases that do not differ at all are named by their estimator.
    """
    cases = [case.to_dict() for case in described]
    keys = _varying(cases)
    distinct = len({tuple(_words(case, key) for key in keys) for case in cases})
    optional = [key for key in reversed(keys) if key not in (*_DERIVED, *_LEADING)]
    for key in (*_DERIVED, *optional):
        fewer = [other for other in keys if other != key]
        if len({tuple(_words(case, other) for other in fewer) for case in cases}) == distinct:
            keys = fewer
    for key in ("estimator", "dataset", "function"):
        if key not in keys and len(keys) < (2 if whole else 1) and any(key in case for case in cases):
            keys = text.case_keys([key, *keys])
    return [
        " · ".join(
            text.setting(case[key], key) if key in _BARE else f"{text.name(key)} {text.setting(case[key], key)}"
            for key in keys
            if key in case
        )
        or "the only case"
        for case in cases
    ]


def common_settings(described: Sequence[CaseDescription]) -> tuple[tuple[str, str], ...]:
    """Return name and value, in words, of every setting in which the cases agree."""
    cases = [case.to_dict() for case in described]
    if not cases:
        return ()
    varying = set(_varying(cases))
    return tuple(
        (text.name(key), text.setting(cases[0][key], key)) for key in text.case_keys(cases[0]) if key not in varying
    )


def common_entries(tables: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the entries that all tables have alike; none of no tables."""
    first, *others = tables or [{}]
    return {key: value for key, value in first.items() if all(other.get(key) == value for other in others)}


def _varying(cases: Sequence[Mapping[str, Any]]) -> list[str]:
    keys = text.case_keys(key for case in cases for key in case)
    return [key for key in keys if len({_words(case, key) for case in cases}) > 1]


def _words(case: Mapping[str, Any], key: str) -> str | None:
    return text.setting(case[key], key) if key in case else None
