"""A comparison as one strictly valid JSON document."""

from __future__ import annotations

import json
from dataclasses import asdict
from importlib.resources import files
from typing import Any

from lmc_verify.encoding import published
from lmc_verify.report.comparison.changes import Change
from lmc_verify.report.comparison.comparison import Comparison
from lmc_verify.report.comparison.contests import Contest
from lmc_verify.report.comparison.measures import LEVEL
from lmc_verify.report.comparison.results import Result
from lmc_verify.report.comparison.side import Side

__all__ = ["SCHEMA", "comparison_document", "comparison_json", "comparison_schema"]

_VERSION = 1
SCHEMA = f"lmc-verify/comparison/{_VERSION}"
"""Name of the document's schema; its number rises when a field changes its meaning or goes away."""


def comparison_schema() -> dict[str, Any]:
    """Return the JSON schema (draft 2020-12) that every comparison.json of this version fits."""
    file = files("lmc_verify.report").joinpath("schemas", f"comparison-{_VERSION}.json")
    schema: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return schema


def comparison_document(made: Comparison) -> dict[str, Any]:
    """Return a comparison as plain values; floats may be NaN or infinite.

    Cases that are the same in both are counted and not listed.
    """
    return {
        "schema": SCHEMA,
        "headline": made.headline,
        "exit_code": made.exit_code,
        "a": _side(made.old),
        "b": _side(made.new),
        "common": made.common,
        "same": len(made.of("same")),
        "regressions": [{"name": name, "reason": reason} for name, reason in made.regressions],
        "changes": [_change(item) for item in made.changes if item.kind != "same" or item.differences],
        "races": [_contest(item) for item in made.contests],
        "effects": [{**asdict(item), "moved": item.moved} for item in made.effects],
        "times": {
            "level": LEVEL,
            "slower": made.slower,
            "all": None if made.time is None else asdict(made.time),
            "groups": [asdict(item) for item in made.times],
        },
    }


def comparison_json(made: Comparison) -> str:
    """Return a comparison as JSON; numbers that are not finite are strings, as in report.json."""
    return json.dumps(published(comparison_document(made)), allow_nan=False, ensure_ascii=False, indent=1) + "\n"


def _side(side: Side) -> dict[str, Any]:
    run = side.run
    return {"file": str(side.file), "state": side.report.state, **asdict(run)}


def _change(item: Change) -> dict[str, Any]:
    return {
        "name": item.name,
        "kind": item.kind,
        "regression": item.regression or None,
        "differences": list(item.differences),
        "a": _result(item.old),
        "b": _result(item.new),
    }


def _result(item: Result | None) -> dict[str, Any] | None:
    if item is None:
        return None
    kept = ("kind", "claim", "label", "outcome", "words", "expected", "as_expected", "crashed", "guarantee")
    return {name: getattr(item, name) for name in (*kept, "summary", "command", "seconds")}


def _contest(item: Contest) -> dict[str, Any]:
    return {
        "race": item.race,
        "label": item.label,
        "regression": item.regression or None,
        "changed": item.changed,
        "reached": dict(zip("ab", item.arrived, strict=True)),
        "medians": {
            name: {side: None if found is None else asdict(found) for side, found in zip("ab", pair, strict=True)}
            for name, pair in item.medians.items()
        },
    }
