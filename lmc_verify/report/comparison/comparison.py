"""Two runs compared: every case that one of them has, the regressions among the changes, and the times."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lmc_verify.errors import InvalidInputError
from lmc_verify.report.comparison.changes import Change, Kind
from lmc_verify.report.comparison.contests import Contest, contests
from lmc_verify.report.comparison.measures import EffectPair, TimeRatio, effect_pair, seconds_of, time_ratio
from lmc_verify.report.comparison.side import ELSEWHERE, NOT_PLANNED, Side, read_side
from lmc_verify.report.model import text

__all__ = ["Comparison", "compare_runs"]


@dataclass(frozen=True)
class Comparison:
    """Two runs, case by case; `compare_runs` makes it.

    Attributes:
        old: the run A.
        new: the run B.
        changes: every verdict, audit, control and search that one of them has, in the order of A, then of B.
        contests: every contestant of every race.
        slower: the factor from which on longer times are a regression; None if they are none.
    """

    old: Side
    new: Side
    changes: tuple[Change, ...]
    contests: tuple[Contest, ...]
    slower: float | None = None

    @cached_property
    def kinds(self) -> Mapping[Kind, tuple[Change, ...]]:
        """The changes by kind."""
        found: dict[Kind, list[Change]] = {}
        for item in self.changes:
            found.setdefault(item.kind, []).append(item)
        return {kind: tuple(items) for kind, items in found.items()}

    def of(self, kind: Kind) -> tuple[Change, ...]:
        """Return the changes of one kind."""
        return self.kinds.get(kind, ())

    @cached_property
    def common(self) -> int:
        """How many cases and training runs both have a result of."""
        cases = sum(item.old is not None and item.new is not None for item in self.changes)
        return cases + sum(len(item.old.keys() & item.new.keys()) for item in self.contests)

    @cached_property
    def regressions(self) -> tuple[tuple[str, str], ...]:
        """What is worse in B, with the reason: cases, contestants, the error level, and times if they decide."""
        found = [(item.name, item.regression) for item in self.changes]
        found += [(item.name, item.regression) for item in self.contests]
        found.append(("error level", self._overspent))
        found.append(("times", self._slower))
        return tuple((name, reason) for name, reason in found if reason)

    @property
    def _overspent(self) -> str:
        account = self.new.report.errors
        if not account.overspent or self.old.report.errors.overspent:
            return ""
        return f"checks of B spent {text.level(account.spent)}, more than {text.level(account.total)}"

    @property
    def _slower(self) -> str:
        if self.slower is None or self.time is None or not self.time.slower_than(self.slower):
            return ""
        return (
            f"B takes {self.time.median:.3g} times as long, from {self.time.low:.3g} on; the limit is {self.slower:g}"
        )

    @property
    def exit_code(self) -> int:
        """1 if there is a regression, else 0."""
        return 1 if self.regressions else 0

    @cached_property
    def time(self) -> TimeRatio | None:
        """Over every case and training run that both have and that did not crash; None where there is none."""
        pairs = [pair for _, pair in self._times]
        return time_ratio("all", [*pairs, *(pair for item in self.contests for pair in item.pairs)])

    @cached_property
    def times(self) -> tuple[TimeRatio, ...]:
        """The same for each claim, for controls, for searches, and for each race."""
        groups: dict[str, list[tuple[float, float]]] = {}
        for name, pair in self._times:
            groups.setdefault(name, []).append(pair)
        for item in self.contests:
            groups.setdefault(item.race, []).extend(item.pairs)
        found = (time_ratio(name, pairs) for name, pairs in groups.items())
        return tuple(item for item in found if item is not None)

    @cached_property
    def _times(self) -> list[tuple[str, tuple[float, float]]]:
        named = {"control": "controls", "counterexample": "searches for counterexamples", "audit": "audits"}
        found = []
        for item, (old, new) in self._repeated:
            pair = seconds_of(item, old, new)
            if pair is not None:
                found.append((named.get(item.either.kind, item.either.claim), pair))
        return found

    @cached_property
    def effects(self) -> tuple[EffectPair, ...]:
        """The main quantity of every case that has one in both."""
        found = (effect_pair(item, *repeats) for item, repeats in self._repeated)
        return tuple(item for item in found if item is not None)

    @property
    def moved(self) -> tuple[EffectPair, ...]:
        """The effects that differ; they decide nothing."""
        return tuple(item for item in self.effects if item.moved)

    @property
    def _repeated(self) -> list[tuple[Change, tuple[Any, Any]]]:
        return [
            (item, (self.old.repeats.get(item.old.identity, ()), self.new.repeats.get(item.new.identity, ())))
            for item in self.changes
            if item.old is not None and item.new is not None
        ]

    @cached_property
    def environment(self) -> tuple[tuple[str, str, str], ...]:
        """Versions and machine of A and of B, in words."""
        old, new = self.old.run.environment, self.new.run.environment
        return tuple(
            (text.name(key), text.setting(old.get(key), key), text.setting(new.get(key), key))
            for key in dict.fromkeys((*old, *new))
        )

    @property
    def other_suites(self) -> str:
        """That the runs are of two suites, in words; "" where they are of one."""
        old, new = self.old.run.suite, self.new.run.suite
        return "" if old == new else f"the suites differ, A is of {old!r} and B of {new!r}"

    @property
    def headline(self) -> str:
        """The result in one sentence."""
        amount = len(self.regressions)
        parts = [text.count(amount, "regression") if amount else "no regression"]
        parts.append(f"{text.count(self.common, 'result')} in both")
        for kind, words in (("mended", "mended"), ("changed", "changed otherwise"), ("failing", "failing in both")):
            parts += [f"{len(self.of(kind))} {words}"] if self.of(kind) else []  # type: ignore[arg-type]  # a literal
        only = len(self.of("only in B"))
        parts += [f"{only} in B only"] if only else []
        parts += [self.other_suites] if self.other_suites else []
        for name, side in (("A", self.old), ("B", self.new)):
            parts += [f"the run {name} did not finish"] if not side.report.finished else []
        sentence = "; ".join(parts)
        return f"{sentence[0].upper()}{sentence[1:]}."


def compare_runs(
    old: str | Path,
    new: str | Path,
    *,
    old_run: int | None = None,
    new_run: int | None = None,
    suite: str | None = None,
    slower: float | None = None,
) -> Comparison:
    """Compare two recorded runs: of two commits, on two machines, or of one records file.

    Cases are the same if their claim and the settings that were asked for are, whatever the versions. See
    `lmc_verify.report.comparison.changes.regression` for what is a regression.

    Args:
        old: records file of A.
        new: records file of B.
        old_run: number of the run A; None for the latest.
        new_run: number of the run B.
        suite: take the latest runs of this suite.
        slower: from which factor on longer times are a regression: the interval of the median ratio over all cases
            must lie above it. None: times decide nothing.

    Raises:
        InvalidInputError: a file without such a run, twice the same run, runs that share no case, or a factor below 1.
        RecordsError: a file that cannot be read or is damaged, or has no run of this number.
    """
    if slower is not None and not 1 <= slower < math.inf:
        raise InvalidInputError(f"--slower is {slower:g}; give a factor of at least 1, such as 1.5")
    sides = (
        read_side(old, run=old_run, suite=suite),
        read_side(new, run=new_run, suite=suite),
    )
    _refuse_same(*sides)
    before, after = sides
    made = Comparison(
        before,
        after,
        tuple(_change(before, after, key) for key in dict.fromkeys((*before.results, *after.results))),
        contests(before.report.races, after.report.races, whole=after.whole),
        slower,
    )
    if not _share(made):
        suites = f"{made.other_suites}: " if made.other_suites else ""
        raise InvalidInputError(
            f"{suites}{before.name} and {after.name} share no case, so nothing can be compared; "
            "compare two runs of one suite, with the same seed and preset"
        )
    return made


def _change(old: Side, new: Side, key: str) -> Change:
    found = new.results.get(key)
    missing = "" if found is not None or new.without.get(key) == ELSEWHERE else new.why_missing(key)
    if found is None and not new.whole and key not in new.without:
        missing = ""  # a shard's own plan is all that can be asked of it
    return Change(old.results.get(key), found, missing)


def _share(made: Comparison) -> bool:
    """Whether B has, or planned, something that A has a result of.

    Every run has the same controls: they alone make no two suites alike, unless A has nothing else.
    """
    cases = [item for item in made.changes if item.old is not None]
    asked = [item for item in cases if item.old is not None and item.old.kind != "control"]
    raced = [item for item in made.contests if item.old]
    chosen = cases if not (asked or raced) else asked
    found = any(item.new is not None or item.missing not in ("", NOT_PLANNED) for item in chosen)
    return found or any(item.new or item.missing not in ("", NOT_PLANNED) for item in raced)


def _refuse_same(old: Side, new: Side) -> None:
    same = old.file.resolve() == new.file.resolve() and old.run.id == new.run.id
    if same:
        raise InvalidInputError(f"A and B are both {old.name}; choose two runs with --run-a and --run-b")
