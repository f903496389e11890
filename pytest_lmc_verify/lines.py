"""What audits leave in a test's report, how it is read again where reports come together, and the summary's lines.

A report's ``user_properties`` cross from the workers of pytest-xdist to their controller, and go into JUnit's XML.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

__all__ = ["entries_in", "properties_of", "summary"]

_PREFIX = "lmc_verify"


def properties_of(entries: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, Any]]:
    """Yield a property for every field of every entry, such as ``("lmc_verify.1.outcome", "EXACT")``."""
    for number, entry in enumerate(entries, 1):
        for field, value in entry.items():
            yield f"{_PREFIX}.{number}.{field}", value


def entries_in(properties: Iterable[tuple[str, Any]]) -> dict[int, dict[str, Any]]:
    """Return the entries among a report's properties, by number."""
    found: dict[int, dict[str, Any]] = {}
    for name, value in properties:
        prefix, _, rest = str(name).partition(".")
        number, _, field = rest.partition(".")
        if prefix == _PREFIX and number.isdecimal():
            found.setdefault(int(number), {})[field] = value
    return found


def summary(rows: Sequence[tuple[str, Mapping[str, Any]]], total: float) -> Iterator[str]:
    """Yield the lines of the summary.

    Args:
        rows: test ids with their entries.
        total: error probability of the session.
    """
    for test, entry in rows:
        yield f"{test}: {_words(entry)}"
    for guarantee in sorted({str(entry["guarantee"]) for _, entry in rows if entry["guarantee"]}):
        chosen = [entry for _, entry in rows if entry["guarantee"] == guarantee]
        counts: dict[str, int] = {}
        for entry in chosen:
            counts[entry["outcome"]] = counts.get(entry["outcome"], 0) + 1
        outcomes = ", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items()))
        spent = sum(entry["alpha"] for entry in chosen)
        yield f"{guarantee}: {outcomes}" + (f"; error probability {spent:.3g} of {total:g} spent" if spent else "")


def _words(entry: Mapping[str, Any]) -> str:
    if not entry["guarantee"]:
        return f"{entry['name']} {entry['outcome']}: nothing is said about bias (seed {entry['seed']})"
    words = f"{entry['name']} {entry['outcome']} ({entry['guarantee']})"
    if entry["bias"] == entry["bias"]:  # no NaN: it was measured
        words += f", bias {entry['bias']:.3g} of the gradient's norm"
    spent = f", error probability {entry['alpha']:.3g}" if entry["alpha"] else ""
    return words + spent + (f", seed {entry['seed']}" if entry["seed"] >= 0 else "")
