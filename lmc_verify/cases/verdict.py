"""Verdicts: what was found for one claim on one case, with the evidence that supports it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any

from lmc_verify.cases.curves import Scale, Series, draw_series
from lmc_verify.cases.description import CaseDescription
from lmc_verify.display.frames import Kind, make_frame
from lmc_verify.display.markup import most_telling, paragraph, section, table
from lmc_verify.display.text import one_line
from lmc_verify.statistics.ledger import Guarantee

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["AUDIT", "AssumptionCheck", "Evidence", "Outcome", "Scale", "Series", "Verdict"]

AUDIT = "audit"
"""What the verdict of an audit has for the id of a claim."""

_EVIDENCE: Mapping[str, Kind] = {
    "claim": "text",
    "outcome": "text",
    "quantity": "text",
    "group": "text",
    "value": "number",
    "low": "number",
    "high": "number",
    "tolerance": "number",
    "unit": "text",
}
"""Columns of the frame of one verdict."""


class Outcome(str, Enum):
    """What a check can find. The value is what reports and suite files print."""

    EXACT = "EXACT"
    """Every residual of the enumerated identity is within its rounding tolerance."""
    SUPPORTED = "SUPPORTED"
    """The interval lies inside the region that the claim states."""
    REFUTED = "REFUTED"
    """The claim is false on this case, beyond rounding or at the stated error level."""
    INCONCLUSIVE = "INCONCLUSIVE"
    """Neither; the summary says what would decide it."""
    VACUOUS = "VACUOUS"
    """A bound that holds, with so much slack that it says nothing."""
    NOT_APPLICABLE = "NOT_APPLICABLE"
    """An assumption that the claim requires fails on this case; the summary says what fails."""
    ERROR = "ERROR"
    """The check crashed: says nothing about the claim."""

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True)
class Evidence:
    """One measured quantity with the limit it was compared with.

    Attributes:
        quantity: what was measured, such as ``"layers.0.conv.lin.weight"``.
        value: the measured value, dimensionless unless `unit` says otherwise.
        tolerance: the limit derived from rounding, or the claim's region; None for a reported quantity.
        unit: the unit of `value` and `tolerance`.
        group: evidence of one group is drawn in one figure, such as ``"bias per layer"``.
        low: lower end of an interval for `value` at the verdict's error level, or None where nothing was estimated.
        high: upper end, or None.
    """

    quantity: str
    value: float
    tolerance: float | None = None
    unit: str = "gradient norm"
    group: str = "residual"
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class AssumptionCheck:
    """A machine-checked assumption of a claim: holds, fails, or (None) was not checked."""

    id: str
    statement: str
    holds: bool | None
    detail: str = ""


@dataclass(frozen=True)
class Verdict:
    """The outcome of one claim on one case.

    Attributes:
        claim: id of the claim, such as ``"theorem-1/unbiased"``.
        outcome: what was found.
        summary: one sentence for a reader, with numbers.
        case: the case: data set, model, estimator, design, histories, seed.
        residual: the residual that is the largest multiple of its tolerance, in units of its layer's exact gradient;
            None if nothing was measured.
        tolerance: the rounding tolerance that `residual` was held against, same unit.
        minimum_detectable_effect: the smallest residual that would have been called a refutation in every layer.
        alpha_spent: error probability spent (0 for the exact tier, which has none).
        guarantee: what `alpha_spent` means: "exact" (nothing is left to chance), "anytime-valid" (it holds at every
            finite number of draws; of seeds, at the number fixed before the first) or "asymptotic" (it holds in the
            limit of many draws). None in the constructor for the first two, by whether anything was spent.
        log_e_value: natural logarithm of the e-value against the claim (test tier); those of independent draws add.
        draws: batches or seeds that a statistical verdict used; None in the exact tier.
        evidence: every measured quantity.
        series: every measured curve.
        assumptions: the claim's assumptions with their checks.
        seeds: the root seed and spawn keys.
        hashes: content hashes of graph, partition, parameters and code version.
        audit: of an audit, all of it as plain values, see `lmc_verify.audits.Audit`; else None.
    """

    claim: str
    outcome: Outcome
    summary: str
    case: CaseDescription = field(default_factory=CaseDescription)
    residual: float | None = None
    tolerance: float | None = None
    minimum_detectable_effect: float | None = None
    alpha_spent: float = 0.0
    guarantee: Guarantee | None = None
    log_e_value: float | None = None
    draws: int | None = None
    evidence: tuple[Evidence, ...] = ()
    series: tuple[Series, ...] = ()
    assumptions: tuple[AssumptionCheck, ...] = ()
    seeds: Mapping[str, int] = field(default_factory=dict)
    hashes: Mapping[str, str] = field(default_factory=dict)
    audit: Mapping[str, Any] | None = None

    @property
    def causes(self) -> tuple[str, ...]:
        """Of an audit, the causes that its explanation of a bias consists of, by id."""
        listed = () if self.audit is None else self.audit["explanation"]["causes"]
        return tuple(cause["id"] for cause in listed if cause["explains"])

    def __repr__(self) -> str:
        return f"<Verdict {one_line(self.claim, 60)}: {self.outcome}, {one_line(self.summary)}>"

    def _repr_html_(self) -> str:
        """Return the verdict for a notebook, in the notebook's own colours."""
        case = ", ".join(f"{key}={value}" for key, value in self.case.to_dict().items())
        rows = [
            (
                item.quantity,
                item.group,
                f"{item.value:.3g}",
                _interval(item),
                "" if item.tolerance is None else f"{item.tolerance:.1e}",
                item.unit,
            )
            for item in most_telling(self.evidence, _excess)
        ]
        return section(
            paragraph(f"{self.claim}: {self.summary}", bold=self.outcome),
            paragraph(case, small=True) if case else "",
            table(
                {
                    "quantity": "left",
                    "group": "left",
                    "value": "right",
                    "from … to": "right",
                    "tolerance": "right",
                    "unit": "left",
                },
                rows,
            ),
        )

    def to_frame(self) -> Any:
        """Return the evidence as a ``pandas.DataFrame``, a row for each measured quantity.

        Columns: claim, outcome, and the fields of `Evidence`: quantity, group, value, low, high, tolerance, unit. A
        number that there is not is NaN. Many verdicts, a row for each: `lmc_verify.Verdicts`.

        Raises:
            InvalidInputError: pandas is not installed.
        """
        shared = {"claim": self.claim, "outcome": self.outcome.value}
        return make_frame(
            _EVIDENCE,
            [[shared[key] if key in shared else getattr(item, key) for key in _EVIDENCE] for item in self.evidence],
        )

    def plot(self) -> Figure:
        """Return a matplotlib figure of the curves, those of one figure in one panel, with their intervals.

        An end of an interval that is not finite is not drawn.

        Raises:
            InvalidInputError: the verdict has no curve.
        """
        return draw_series(self.series, f"the verdict on {self.claim}")

    def __post_init__(self) -> None:
        if self.guarantee is None:  # records of before this field have none either
            object.__setattr__(self, "guarantee", "anytime-valid" if self.alpha_spent > 0 else "exact")

    def to_dict(self) -> dict[str, Any]:
        """Return the verdict as plain JSON-compatible values."""
        out = asdict(self)
        out["case"] = self.case.to_dict()
        out["outcome"] = self.outcome.value
        if self.audit is None:
            del out["audit"]
        return out

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Verdict:
        """Rebuild a verdict from `to_dict`."""
        fields = dict(values)
        fields["outcome"] = Outcome(fields["outcome"])
        fields["case"] = CaseDescription.from_dict(fields.get("case", {}))
        fields["evidence"] = tuple(Evidence(**item) for item in fields.get("evidence", ()))
        fields["series"] = tuple(_series(item) for item in fields.get("series", ()))
        fields["assumptions"] = tuple(AssumptionCheck(**item) for item in fields.get("assumptions", ()))
        return cls(**fields)


def _interval(item: Evidence) -> str:
    if item.low is None and item.high is None:
        return ""
    low, high = ("…" if end is None else f"{end:.3g}" for end in (item.low, item.high))
    return f"{low} … {high}"


def _excess(item: Evidence) -> float:
    """Return a value as a multiple of its tolerance: what a reader looks for first among many."""
    if math.isnan(item.value):
        return math.inf
    if item.tolerance is None:
        return -1.0
    return abs(item.value) / item.tolerance if item.tolerance > 0 else math.inf if item.value else 0.0


def _series(values: Mapping[str, Any]) -> Series:
    """Rebuild a curve, whose tuples JSON has turned into lists."""
    fields: dict[str, Any] = {key: tuple(part) if isinstance(part, list) else part for key, part in values.items()}
    return Series(**fields)
