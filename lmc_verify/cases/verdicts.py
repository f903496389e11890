"""Several verdicts together: for a notebook, as a data frame, and as a Parquet file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

from lmc_verify.cases.verdict import Outcome, Verdict
from lmc_verify.display.frames import Kind, inferred, make_frame, write_parquet
from lmc_verify.display.markup import Align, most_telling, paragraph, section, table
from lmc_verify.errors import InvalidInputError

__all__ = ["Verdicts"]

_COLUMNS: Mapping[str, Kind] = {
    "claim": "text",
    "outcome": "text",
    "guarantee": "text",
    "summary": "text",
    "residual": "number",
    "tolerance": "number",
    "minimum_detectable_effect": "number",
    "alpha_spent": "number",
    "log_e_value": "number",
    "draws": "count",
    "failing": "text",
    "causes": "text",
}
"""Columns of every frame of verdicts; those of the cases follow."""


class Verdicts(Sequence[Verdict]):
    """Verdicts in their order, as an immutable sequence.

    Args:
        verdicts: any number of them, none included.

    Raises:
        InvalidInputError: something else is among them.

    Example:
        >>> import lmc_verify as lv
        >>> graph = lv.load_graph("karate")
        >>> problem = lv.Problem(graph, lv.GCN(graph.num_features, 8, graph.num_outputs, num_layers=2).double())
        >>> design = lv.Clusters(lv.make_partition(graph, "contiguous", 4), per_batch=2)
        >>> verdicts = lv.Verdicts(
        ...     lv.check_claim("theorem-1/unbiased", problem, design, estimator)
        ...     for estimator in (lv.BackwardSGD(), lv.GAS())
        ... )
        >>> verdicts
        <Verdicts 2: 1 EXACT, 1 REFUTED>
    """

    def __init__(self, verdicts: Iterable[Verdict] = ()) -> None:
        self._verdicts = tuple(verdicts)
        for place, item in enumerate(self._verdicts):
            if not isinstance(item, Verdict):
                raise InvalidInputError(
                    f"item {place} is a {type(item).__name__}, a Verdict is needed; an audit has its own to_frame()"
                )

    def __len__(self) -> int:
        return len(self._verdicts)

    def __iter__(self) -> Iterator[Verdict]:
        return iter(self._verdicts)

    @overload
    def __getitem__(self, place: int) -> Verdict: ...
    @overload
    def __getitem__(self, place: slice) -> Verdicts: ...
    def __getitem__(self, place: int | slice) -> Verdict | Verdicts:
        """Return one verdict, or of a slice several as `Verdicts`."""
        return Verdicts(self._verdicts[place]) if isinstance(place, slice) else self._verdicts[place]

    def __eq__(self, other: object) -> bool:
        return self._verdicts == other._verdicts if isinstance(other, Verdicts) else NotImplemented

    __hash__ = None  # type: ignore[assignment]  # verdicts hold mappings

    def __repr__(self) -> str:
        return f"<Verdicts {self._counts()}>"

    def _counts(self) -> str:
        found = Counter(item.outcome for item in self._verdicts)
        parts = [f"{found[outcome]} {outcome}" for outcome in Outcome if found[outcome]]
        return f"{len(self)}: {', '.join(parts)}" if parts else "0"

    def _repr_html_(self) -> str:
        """Return a row for each verdict, in the notebook's own colours."""
        shown = most_telling(self._verdicts, lambda item: item.outcome in (Outcome.REFUTED, Outcome.ERROR))
        rows = [(item.outcome, item.claim, _title(item), item.summary) for item in shown]
        columns: dict[str, Align] = {"outcome": "left", "claim": "left", "case": "left", "summary": "left"}
        return section(paragraph(self._counts(), bold="Verdicts"), table(columns, rows))

    def to_frame(self) -> Any:
        """Return a ``pandas.DataFrame`` with a row for each verdict.

        Columns: claim, outcome, guarantee, summary, residual, tolerance, minimum_detectable_effect, alpha_spent,
        log_e_value, draws, failing (ids of assumptions that fail), causes (of an audit); then one for each thing that
        is said of a case, such as ``case.dataset``. Of one that is said in different types (a support of 28, and of
        "3^1000") the values are texts. What is not said is missing, or NaN where the column has numbers.

        Raises:
            InvalidInputError: pandas is not installed.
        """
        cases = [item.case.to_dict() for item in self._verdicts]
        keys = list(dict.fromkeys(key for case in cases for key in case))
        columns = dict(_COLUMNS) | {f"case.{key}": inferred(case.get(key) for case in cases) for key in keys}
        rows = (
            [*_row(item), *(case.get(key) for key in keys)] for item, case in zip(self._verdicts, cases, strict=True)
        )
        return make_frame(columns, rows)

    def to_parquet(self, path: str | Path) -> Path:
        """Write `to_frame` as a Parquet file, in place of an older one, and return its path.

        Raises:
            InvalidInputError: pandas or PyArrow is not installed.
            OutputError: the file cannot be written.
        """
        return write_parquet(self.to_frame(), path)


def _row(item: Verdict) -> list[Any]:
    own = {
        "outcome": item.outcome.value,
        "failing": ", ".join(check.id for check in item.assumptions if check.holds is False),
        "causes": ", ".join(item.causes),
    }
    return [own[name] if name in own else getattr(item, name) for name in _COLUMNS]


def _title(item: Verdict) -> str:
    """Return the case in a few words: what it is, on what, and with what."""
    case = item.case
    return ", ".join(str(part) for part in (case.function, case.dataset, case.model, case.estimator) if part)
