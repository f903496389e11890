"""How reports write numbers, durations and settings: one place, so that every format says the same."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from lmc_verify.cases.verdict import Outcome
from lmc_verify.display.text import printable

__all__ = [
    "ABSENT",
    "OUTCOME_MEANINGS",
    "OUTCOME_SYMBOLS",
    "case_keys",
    "count",
    "duration",
    "e_value",
    "effect",
    "interval",
    "level",
    "moment",
    "name",
    "number",
    "outcome_word",
    "printable",
    "setting",
    "slug",
    "tier",
]

ABSENT = "–"

OUTCOME_SYMBOLS: Mapping[Outcome, str] = {
    Outcome.EXACT: "=",
    Outcome.SUPPORTED: "⊂",
    Outcome.REFUTED: "≠",
    Outcome.INCONCLUSIVE: "?",
    Outcome.VACUOUS: "∅",
    Outcome.NOT_APPLICABLE: "–",
    Outcome.ERROR: "!",
}
"""A sign next to every outcome, so that colour is never the only signal."""

OUTCOME_MEANINGS: Mapping[Outcome, str] = {
    Outcome.EXACT: "every residual of the enumerated identity is within its rounding tolerance",
    Outcome.SUPPORTED: (
        "the interval lies inside the region that the claim states, or nothing against the claim was found where "
        "enumeration cannot prove it"
    ),
    Outcome.REFUTED: "the claim is false on this case, beyond rounding or at the stated error level",
    Outcome.INCONCLUSIVE: "neither; the summary says what would decide it",
    Outcome.VACUOUS: "the bound holds, with a slack of more than 100 times",
    Outcome.NOT_APPLICABLE: "an assumption of the claim fails on this case",
    Outcome.ERROR: (
        "the check crashed and says nothing about the claim; a control passes with it where its defect breaks the "
        "contract of an estimator"
    ),
}

_CASE_KEYS = (
    "function",
    "arguments",
    "dataset",
    "nodes",
    "edges",
    "model",
    "layers",
    "width",
    "activation_cut",
    "estimator",
    "normaliser",
    "beta",
    "partition",
    "parts",
    "design",
    "per_batch",
    "support",
    "histories",
    "seed",
    "dtype",
    "replicate",
)
_NAMES = {
    "dataset": "data set",
    "activation_cut": "activation cut",
    "normaliser": "loss weighting",
    "seen": "clusters already seen",
    "per_batch": "parts per batch",
    "support": "possible batches",
}
_TIERS = {
    "exact": "every batch enumerated",
    "test": "anytime-valid test on sampled batches",
    "rate": "fit over independent training runs",
}
_UNGROUPED = ("seed", "root", "spawn")


def case_keys(keys: Iterable[str]) -> list[str]:
    """Return the keys of a case in reading order: the known ones first, the others as they come."""
    present = dict.fromkeys(keys)
    return [key for key in _CASE_KEYS if key in present] + [key for key in present if key not in _CASE_KEYS]


def name(key: str) -> str:
    """Return the words for a key of a case; that of a group, such as ``training.steps``, goes without the group."""
    return _NAMES.get(key, key.rpartition(".")[2].replace("_", " "))


def number(value: float | None) -> str:
    """Return a number with two or three digits that matter, such as ``1.2e-16``, ``0.042`` or ``1,250``."""
    if value is None:
        return ABSENT
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if value == 0:
        return "0"
    size = abs(value)
    if size < 1e-3 or size >= 1e6:
        return f"{value:.1e}"
    return f"{value:,.0f}" if size >= 1000 else f"{value:.3g}"


def effect(value: float, unit: str) -> str:
    """Return the size of an effect: a share in per cent, an exponent as a power of ten, or the number.

    Shares that are nothing but rounding, or beyond any per cent, are written as numbers.
    """
    if unit == "power":
        return f"10^{value:.1f}"
    if unit != "share" or not 1e-5 <= abs(value) < 100:
        return number(value)
    percent = 100 * value
    return f"{percent:,.0f}%" if abs(percent) >= 10 else f"{percent:.2g}%"


def level(value: float | None) -> str:
    """Return an error probability, such as ``1e-6`` or ``4.2e-08`` without the zero: ``4.2e-8``."""
    return ABSENT if value is None else re.sub(r"e([+-])0*", lambda m: f"e{m[1].strip('+')}", f"{value:.2g}")


def e_value(logarithm: float | None) -> str:
    """Return the e-value with this natural logarithm as a power of ten, such as ``10^9.2``."""
    if logarithm is None:
        return ABSENT
    if not math.isfinite(logarithm):
        return "0" if logarithm == -math.inf else number(logarithm)
    return f"10^{logarithm / math.log(10) + 0.0:.1f}".replace("^-0.0", "^0.0")


def interval(low: float | None, high: float | None) -> str:
    """Return an interval, such as ``[0.12, 0.15]``; with one end ``≥ 0.12``, with none a dash."""
    low = None if low == -math.inf else low
    high = None if high == math.inf else high
    if low is None:
        return ABSENT if high is None else f"≤ {number(high)}"
    return f"≥ {number(low)}" if high is None else f"[{number(low)}, {number(high)}]"


def tier(value: str) -> str:
    """Return how claims of a tier are checked; what is not a tier is returned as it is."""
    return _TIERS.get(value, value)


def setting(value: Any, key: str = "") -> str:
    """Return one value of a case in words."""
    if value is None:
        return ABSENT
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return str(value) if abs(value) < 10_000 or key.startswith(_UNGROUPED) else f"{value:,}"
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and abs(value) < 1e6 else f"{value:.6g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{item} {setting(part)}" for item, part in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(setting(part) for part in value)
    return str(value)


def outcome_word(outcome: Outcome) -> str:
    """Return an outcome as printed, with a space where its name has an underscore."""
    return outcome.value.replace("_", " ")


def count(amount: int, noun: str, plural: str | None = None) -> str:
    """Return an amount with its noun: ``1 case``, ``3 cases``."""
    return f"{amount} {noun if amount == 1 else plural or noun + 's'}"


def duration(seconds: float) -> str:
    """Return a time span for a reader: ``0.42 s``, ``3 min 12 s``, ``2 h 05 min``."""
    if not math.isfinite(seconds) or seconds < 0:
        return ABSENT
    if seconds < 0.995:
        return f"{seconds:.2g} s"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def moment(stamp: str | None) -> str:
    """Return an ISO 8601 time as ``2026-05-09 07:35 UTC``; what is not one is returned as it is."""
    if stamp is None:
        return ABSENT
    try:
        return datetime.fromisoformat(stamp).strftime("%Y-%m-%d %H:%M UTC")
    except ValueError:
        return stamp


def slug(text: str) -> str:
    """Return letters, digits and hyphens that stand for `text` in a link."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "item"
