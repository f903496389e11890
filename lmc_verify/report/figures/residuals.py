"""Figures of enumerated identities: residuals next to their tolerances, and the bias of every layer.

They are rows of text with marks on a log scale, which the page lays out: so they fit every width, names are wrapped and
never cut, and a mark costs a few bytes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lmc_verify.cases.verdict import Evidence
from lmc_verify.report.model import text
from lmc_verify.report.model.claims import Case, ClaimSection, comparable
from lmc_verify.report.model.labels import distinguishing_labels

__all__ = ["BIAS_GROUP", "KINDS", "BiasPanels", "Mark", "Row", "Scale", "Strip", "bias_per_layer", "residual_strip"]

BIAS_GROUP = "bias per layer"
"""Evidence of this group is drawn by `bias_per_layer`."""

KINDS = {
    "tolerance": "tolerance",
    "detectable": "minimum detectable effect",
    "within": "within tolerance",
    "beyond": "beyond tolerance",
    "zero": "exactly 0",
    "infinite": "not finite",
    "failed": "not as expected",
}
"""Kinds of marks, with what they stand for; the page has a sign for each."""

_ROWS_ONE_BY_ONE = 40
_PANELS_A_DATA_SET = 6
_DECADES = 40  # what is smaller or larger than any such power of ten is drawn at the end of the axis
_MOST_TICKS = 5


@dataclass(frozen=True)
class Mark:
    """A sign of one of the `KINDS` at a place of the scale, in per cent."""

    kind: str
    place: float


@dataclass(frozen=True)
class Row:
    """What is measured, its marks, and the words that stand in place of marks, or are empty.

    `bar` is the end of a bar from the left end of the scale, or None; it is `hollow` within the tolerance.
    """

    label: str
    marks: tuple[Mark, ...]
    note: str = ""
    bar: float | None = None
    hollow: bool = False


@dataclass(frozen=True)
class Scale:
    """A log scale between two powers of ten."""

    low: int
    high: int

    @classmethod
    def of(cls, numbers: Iterable[float | None]) -> Scale:
        """Return the decades that hold every positive finite number, with room for a mark at either end."""
        found = [math.log10(n) for n in numbers if n is not None and math.isfinite(n) and n > 0]
        if not found:
            return cls(-17, 0)
        low = min(max(math.floor(min(found) - 0.35), -_DECADES), _DECADES - 2)
        high = min(math.ceil(max(found) + 0.35), _DECADES)
        return cls(low, max(high, low + 2))

    def place(self, value: float) -> float:
        """Return where a value is, in per cent: zero at the left end, what is not finite at the right end."""
        if not math.isfinite(value):
            return 100.0
        exponent = math.log10(value) if value > 0 else self.low
        share = (min(max(exponent, self.low), self.high) - self.low) / (self.high - self.low)
        return round(100 * share, 1)

    @property
    def step(self) -> int:
        """Decades from tick to tick."""
        return math.ceil((self.high - self.low) / _MOST_TICKS)

    @property
    def spacing(self) -> float:
        """Distance of ticks, in per cent."""
        return 100 * self.step / (self.high - self.low)

    @property
    def ticks(self) -> tuple[tuple[float, str], ...]:
        """Places of the ticks, in per cent, and their values."""
        exponents = range(self.low, self.high + 1, self.step)
        return tuple((round(100 * (e - self.low) / (self.high - self.low), 2), f"1e{e}") for e in exponents)


@dataclass(frozen=True)
class Strip:
    """Residuals, one row for each case, or for each data set and estimator."""

    rows: tuple[Row, ...]
    scale: Scale
    description: str

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of marks that occur, in their fixed order."""
        found = {mark.kind for row in self.rows for mark in row.marks}
        return tuple(kind for kind in KINDS if kind in found)


@dataclass(frozen=True)
class BiasPanels:
    """Bars of the bias of every layer: panels with a title and a row for each layer, on one scale."""

    panels: tuple[tuple[str, tuple[Row, ...]], ...]
    scale: Scale
    unit: str
    description: str


def residual_strip(section: ClaimSection) -> Strip | None:
    """Return each case's residual next to its tolerance and minimum detectable effect; None without residuals."""
    groups = _groups([case for case in section.cases if case.verdict.residual is not None])
    if not groups:
        return None
    cases = [case for _, group in groups for case in group]
    verdicts = [case.verdict for case in cases]
    scale = Scale.of(
        number
        for verdict in verdicts
        for number in (verdict.residual, verdict.tolerance, verdict.minimum_detectable_effect)
    )
    beyond = sum(map(_is_beyond, cases))
    description = (
        f"{text.count(len(verdicts), 'residual')} on a log scale; "
        f"{beyond} beyond tolerance, {len(verdicts) - beyond} within"
    )
    rows = tuple(Row(label, tuple(dict.fromkeys(_marks(group, scale)))) for label, group in groups)
    return Strip(rows, scale, description)


def bias_per_layer(section: ClaimSection) -> BiasPanels | None:
    """Return the bias of every layer, a panel for each comparable case; None without such evidence."""
    cases = _comparable_by_data_set([case for case in section.cases if _bias(case)])
    if not cases:
        return None
    names = distinguishing_labels([case.verdict.case for case in cases])
    panels = [{item.quantity: item for item in _bias(case)} for case in cases]
    layers = list(dict.fromkeys(layer for panel in panels for layer in panel))
    every = [item for panel in panels for item in panel.values()]
    units = {item.unit for item in every}
    scale = Scale.of(number for item in every for number in (item.value, item.tolerance))
    return BiasPanels(
        tuple(
            (name, tuple(_bar(layer, panel.get(layer), scale) for layer in layers))
            for name, panel in zip(names, panels, strict=True)
        ),
        scale,
        f"bias / {units.pop()}" if len(units) == 1 else "bias",
        f"{text.count(len(layers), 'layer')}, {text.count(len(panels), 'panel')}, bars on a log scale",
    )


def _bias(case: Case) -> list[Evidence]:
    return [item for item in case.verdict.evidence if item.group == BIAS_GROUP]


def _comparable_by_data_set(cases: Sequence[Case]) -> list[Case]:
    """All cases of a data set if they are few; else the largest group that differs in the estimator only."""
    chosen: list[Case] = []
    for dataset in dict.fromkeys(case.verdict.case.dataset for case in cases):
        mine = [case for case in cases if case.verdict.case.dataset == dataset]
        chosen += mine if len(mine) <= _PANELS_A_DATA_SET else comparable(mine)
    return chosen


def _groups(cases: Sequence[Case]) -> list[tuple[str, list[Case]]]:
    """A row for each case, or for each data set and estimator when there are many cases."""
    if len(cases) <= _ROWS_ONE_BY_ONE:
        return [(case.label, [case]) for case in cases]
    groups: dict[str, list[Case]] = {}
    for case in cases:
        groups.setdefault(_group(case), []).append(case)
    return [(f"{label} ({len(group)})", group) for label, group in groups.items()]


def _group(case: Case) -> str:
    words = (case.verdict.case.dataset, case.verdict.case.estimator)
    return " · ".join(word for word in words if word is not None) or "all cases"


def _is_beyond(case: Case) -> bool:
    residual, tolerance = case.verdict.residual, case.verdict.tolerance
    return residual is not None and tolerance is not None and not residual <= tolerance


def _marks(cases: Sequence[Case], scale: Scale) -> Iterable[Mark]:
    """Give the marks of a row, those that are drawn above others last."""
    for kind, limits in (
        ("tolerance", {case.verdict.tolerance for case in cases}),
        ("detectable", {case.verdict.minimum_detectable_effect for case in cases}),
    ):
        for limit in sorted(value for value in limits if value is not None and not math.isnan(value)):
            yield Mark(kind, scale.place(limit))
    for case in cases:
        residual = case.verdict.residual
        assert residual is not None
        kind = "zero" if residual <= 0 else "beyond" if _is_beyond(case) else "within"
        yield Mark(kind if math.isfinite(residual) else "infinite", scale.place(residual))
        if case.failed:
            yield Mark("failed", scale.place(residual))


def _bar(layer: str, item: Evidence | None, scale: Scale) -> Row:
    """Return a layer's bar, hollow when within its tolerance, and a mark at the tolerance."""
    if item is None:
        return Row(layer, (), note="no such layer")
    value, tolerance = abs(item.value), item.tolerance
    known = tolerance is not None and 0 < tolerance < math.inf
    marks = (Mark("tolerance", scale.place(tolerance or 0.0)),) if known else ()
    if value == 0:
        return Row(layer, marks, note="0")
    return Row(layer, marks, bar=scale.place(value), hollow=tolerance is not None and value <= tolerance)
