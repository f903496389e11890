"""How large effects are in two runs, and how long they took: medians with intervals where there are several values."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from lmc_verify.report.comparison.changes import Change
from lmc_verify.report.comparison.results import Effect, Result
from lmc_verify.statistics import median_interval, seeds_needed

__all__ = ["LEVEL", "EffectPair", "TimeRatio", "effect_of", "effect_pair", "seconds_of", "time_ratio"]

LEVEL = 0.05
"""Probability that an interval for a median misses it, at most."""

_ROUNDING = 1e-6
"""Effects without intervals that differ by less than this part are the same."""


@dataclass(frozen=True)
class EffectPair:
    """The main quantity of one case in two runs."""

    name: str
    old: Effect
    new: Effect

    @property
    def moved(self) -> bool:
        """Whether they differ: their intervals do not meet; without intervals, by more than rounding.

        It decides nothing.
        """
        old, new = self.old, self.new
        if (old.quantity, old.unit) != (new.quantity, new.unit):
            return True
        if _has_interval(old) and _has_interval(new):
            return _high(old) < _low(new) or _high(new) < _low(old)
        if not (math.isfinite(old.value) and math.isfinite(new.value)):
            return not (old.value == new.value or (math.isnan(old.value) and math.isnan(new.value)))
        rounding = max(_ROUNDING * max(abs(old.value), abs(new.value)), old.tolerance or 0, new.tolerance or 0)
        return abs(old.value - new.value) > rounding


@dataclass(frozen=True)
class TimeRatio:
    """How much longer B took than A.

    Attributes:
        name: of what.
        old: seconds of A, summed over the cases.
        new: seconds of B.
        median: over the cases, of the seconds of B by those of A.
        low: lower end of its interval at `LEVEL`; None where there are too few cases.
        high: upper end, or None.
        amount: number of cases.
    """

    name: str
    old: float
    new: float
    median: float
    low: float | None
    high: float | None
    amount: int

    def slower_than(self, factor: float) -> bool:
        """Whether the whole interval is above a factor: False where there is no interval."""
        return self.low is not None and self.low > factor


def time_ratio(name: str, pairs: Iterable[tuple[float, float]]) -> TimeRatio | None:
    """Return the median ratio of times with its interval; None without a pair of times above zero.

    Args:
        name: of what.
        pairs: seconds of A and of B of each case.
    """
    usable = [(old, new) for old, new in pairs if 0 < old < math.inf and 0 < new < math.inf]
    if not usable:
        return None
    found = median_interval([new / old for old, new in usable], LEVEL)
    sums = (math.fsum(old for old, _ in usable), math.fsum(new for _, new in usable))
    return TimeRatio(name, *sums, found.median, *found.ends, len(usable))


def seconds_of(change: Change, old: Sequence[Result], new: Sequence[Result]) -> tuple[float, float] | None:
    """Return the seconds of a case in A and in B, medians over its repetitions; None where they cannot be compared.

    They cannot where a check crashed, and where B took over the result of A.

    Args:
        change: the case.
        old: its results in A and in what repeats A.
        new: those of B.
    """
    if change.old is None or change.new is None or change.old.crashed or change.new.crashed:
        return None
    if (change.old.key, change.old.seconds) == (change.new.key, change.new.seconds):
        return None
    medians = [
        median_interval([item.seconds for item in (*repeats, own) if not item.crashed], LEVEL).median
        for own, repeats in ((change.old, _others(old, change.old)), (change.new, _others(new, change.new)))
    ]
    return medians[0], medians[1]


def _others(repeats: Sequence[Result], own: Result) -> list[Result]:
    return [item for item in repeats if (item.key, item.seconds) != (own.key, own.seconds)]


def effect_of(own: Result, repeats: Sequence[Result]) -> Effect | None:
    """Return the main quantity of a result; over enough independent repetitions their median with its interval.

    Repetitions are of different numbers: those of the same draws tell nothing more.
    """
    if own.effect is None:
        return None
    values = {own.case.get("replicate", 0): own.effect.value}
    for item in repeats:
        if item.effect is not None and item.effect.quantity == own.effect.quantity:
            values.setdefault(item.case.get("replicate", 0), item.effect.value)
    if len(values) < seeds_needed(LEVEL) or any(math.isnan(value) for value in values.values()):
        return own.effect
    found = median_interval(list(values.values()), LEVEL)
    low, high = found.ends
    return replace(
        own.effect, quantity=f"{own.effect.quantity}, median of {len(values)}", value=found.median, low=low, high=high
    )


def effect_pair(change: Change, old: Sequence[Result], new: Sequence[Result]) -> EffectPair | None:
    """Return the main quantity of a case in A and in B; None where one of them has none."""
    if change.old is None or change.new is None:
        return None
    before, after = effect_of(change.old, old), effect_of(change.new, new)
    return None if before is None or after is None else EffectPair(change.name, before, after)


def _has_interval(item: Effect) -> bool:
    return item.low is not None or item.high is not None


def _low(item: Effect) -> float:
    return -math.inf if item.low is None else item.low


def _high(item: Effect) -> float:
    return math.inf if item.high is None else item.high
