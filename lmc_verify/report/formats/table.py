"""The claims x estimators table: what a run found, short enough for a README."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from lmc_verify.cases import CaseDescription
from lmc_verify.cases.verdict import Outcome
from lmc_verify.errors import InvalidInputError
from lmc_verify.estimators import ESTIMATORS
from lmc_verify.report.model import text
from lmc_verify.report.model.claims import Case, ClaimSection
from lmc_verify.report.model.report import Report

__all__ = ["COMPENSATED_FAMILY", "claims_table"]

COMPENSATED_FAMILY = (
    "backward-sgd",
    "lmc",
    "lmc-backward-only",
    "lmc-forward-only",
    "gas",
    "fm",
    "cluster-gcn",
)
"""The columns, from the reference to the estimator that drops most."""

_WORDS = {Outcome.NOT_APPLICABLE: "n/a"}
_UNEXPECTED = "✗"


def claims_table(report: Report, dataset: str | None = None) -> str:
    """Return a Markdown table of the verdicts: a row for each claim, a column for each estimator.

    The compensated family comes first, whole if the run has one of it; then the other estimators of the run.

    A cell names the outcome of its cases; with several outcomes, each with its count. ``n/a``: an assumption of the
    claim fails; ``✗``: not what the suite expects; ``not run``: planned and not run; ``–``: not planned.

    Args:
        report: of the run.
        dataset: name of a data set, with or without its options; None for the cases of all data sets together.

    Raises:
        InvalidInputError: the run has no case of this data set; the message names those that it has.
    """
    known = dict.fromkeys(
        _dataset(case) for section in report.sections for case in (*_described(section.cases), *_planned(section))
    )
    if dataset is not None and not any(_is(name, dataset) for name in known):
        names = ", ".join(repr(name) for name in known) or "no case at all"
        raise InvalidInputError(f"run {report.run.id} has no case of data set {dataset!r}; it has {names}")
    named = {
        case.estimator
        for section in report.sections
        for case in (*_described(section.cases), *_planned(section))
        if dataset is None or _is(_dataset(case), dataset)
    }
    others = [name for name in ESTIMATORS if name not in COMPENSATED_FAMILY and name in named and name != "full-batch"]
    columns = others if others and not named & set(COMPENSATED_FAMILY) else [*COMPENSATED_FAMILY, *others]
    rows = []
    for section in report.sections:
        cells = [_cell(section, estimator, dataset) for estimator in columns]
        if any(cell != text.ABSENT for cell in cells):
            rows.append([f"`{_plain(section.claim.id)}`", *cells])
    head = ["claim", *columns]
    lines = [head, [":--"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _cell(section: ClaimSection, estimator: str, dataset: str | None) -> str:
    def belongs(case: CaseDescription) -> bool:
        return case.estimator == estimator and (dataset is None or _is(_dataset(case), dataset))

    cases = [case for case in section.cases if belongs(case.verdict.case)]
    counts = Counter(case.verdict.outcome for case in cases)
    wrong = {case.verdict.outcome for case in cases if case.failed}
    parts = [
        (f"{counts[outcome]} " if len(counts) > 1 else "")
        + _WORDS.get(outcome, outcome.value)
        + (f" {_UNEXPECTED}" if outcome in wrong else "")
        for outcome in Outcome
        if counts[outcome]
    ]
    if not parts and any(map(belongs, _planned(section))):
        return "not run"
    return ", ".join(parts) or text.ABSENT


def _described(cases: Iterable[Case]) -> list[CaseDescription]:
    return [case.verdict.case for case in cases]


def _planned(section: ClaimSection) -> list[CaseDescription]:
    return [item.case for item in section.not_run]


def _dataset(case: CaseDescription) -> str:
    return text.setting(case.dataset)


def _is(name: str, wanted: str) -> bool:
    """Whether a data set is the wanted one; without options, a name stands for all its options."""
    return wanted in (name, name.split(" ")[0])


def _plain(value: str) -> str:
    """Keep a table cell on one line and in its cell."""
    return " ".join(text.printable(value).split()).replace("|", "\\|").replace("`", "'")
