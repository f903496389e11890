"""What an audit found: the outcome, the bias by parameter, its causes, and what it rests on."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from lmc_verify.audits.explanation import Cause, Explanation
from lmc_verify.audits.parameters import ParameterBias, draw_bias
from lmc_verify.cases.verdict import Outcome, Series
from lmc_verify.display.frames import Kind, make_frame
from lmc_verify.display.markup import Bold, bullets, escaped, most_telling, paragraph, section, table
from lmc_verify.display.text import one_line, sentence
from lmc_verify.statistics.ledger import Guarantee

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Audit", "Cost", "ParameterBias", "effect", "percent"]

_COLUMNS: Mapping[str, Kind] = {
    "step": "text",
    "outcome": "text",
    "parameter": "text",
    "size": "number",
    "own": "number",
    "low": "number",
    "high": "number",
    "wrong": "flag",
}

_ANSWERS = {Outcome.EXACT: "Yes", Outcome.SUPPORTED: "Yes", Outcome.REFUTED: "No"}


@dataclass(frozen=True)
class Cost:
    """What an audit has spent.

    Attributes:
        steps: calls of the user's step.
        step_seconds: time in them.
        gradients: exact gradients, and gradients of controls.
        gradient_seconds: time in them.
        loading_seconds: time in which batches were made, by the loader and by interventions.
        seconds: time in all.
    """

    steps: int
    step_seconds: float
    gradients: int
    gradient_seconds: float
    loading_seconds: float
    seconds: float

    @property
    def overhead(self) -> float:
        """Time in all as a multiple of that of steps, gradients and batches."""
        needed = self.step_seconds + self.gradient_seconds + self.loading_seconds
        return self.seconds / needed if needed else 1.0


@dataclass(frozen=True)
class Audit:
    """The result of `lmc_verify.audit`.

    Attributes:
        outcome: EXACT: unbiased to rounding. SUPPORTED: the bias is at most `delta`. REFUTED: biased. INCONCLUSIVE:
            neither is shown.
        guarantee: what the outcome rests on.
        summary: one sentence, with numbers.
        bias: norm of the bias over the norm of the exact gradient.
        low: lower end of `bias`.
        high: upper end of `bias`.
        parameters: the bias by parameter, in ``named_parameters()`` order.
        explanation: its causes.
        law: which batches, and how they are drawn.
        notes: what a reader should know.
        series: the bias against sweeps, or along training.
        loss: the objective on the whole graph.
        gradient_norm: norm of its exact gradient.
        delta: a bias up to this, in gradient norms, is SUPPORTED as none by draws.
        alpha: error probability, 0 for `exact`.
        draws: batches that were evaluated for the outcome.
        seed: root seed.
        cost: calls and seconds.
        name: of the step.
    """

    outcome: Outcome
    guarantee: Guarantee
    summary: str
    bias: float
    low: float
    high: float
    parameters: tuple[ParameterBias, ...]
    explanation: Explanation
    law: str
    loss: float
    gradient_norm: float
    delta: float
    alpha: float
    draws: int
    seed: int
    cost: Cost
    notes: tuple[str, ...] = ()
    series: tuple[Series, ...] = ()
    name: str = "step"
    layers: Mapping[str, float] = field(default_factory=dict)

    @property
    def causes(self) -> tuple[Cause, ...]:
        """The causes, those of the explanation first."""
        return self.explanation.causes

    @property
    def unbiased(self) -> bool | None:
        """Whether the step is unbiased (to rounding, or to within `delta`); None where that is open."""
        return {Outcome.EXACT: True, Outcome.SUPPORTED: True, Outcome.REFUTED: False}.get(self.outcome)

    @property
    def question(self) -> str:
        """What was asked, in a sentence."""
        return f"Is the gradient of {self.name} unbiased?"

    def asked_of(self, function: str) -> str:
        """Return the question with the function that returned the step."""
        return f"Is the gradient of {self.name} in {function} unbiased?"

    @property
    def answer(self) -> str:
        """What was found: yes, no or open, with the summary."""
        said = self.summary.removeprefix("biased: ").removeprefix("unbiased: ")
        return f"{_ANSWERS.get(self.outcome, 'Open')}: {said}"

    @property
    def unexplained(self) -> str:
        """How much of a bias the causes leave, in words; empty where none is shown or causes were not looked for."""
        looked_for = self.explanation != Explanation()
        return _left(self.explanation) if self.outcome is Outcome.REFUTED and looked_for else ""

    def assert_unbiased(self, rtol: float = 0.01) -> None:
        """Raise unless the bias is shown to be at most a share of the exact gradient's norm.

        Args:
            rtol: the share; rounding always passes.

        Raises:
            AssertionError: names the worst parameter, its bias, the causes and the seed.
        """
        if self.outcome is Outcome.EXACT or self.high <= rtol:
            return
        lines = [self.summary]
        worst = self.worst
        if worst is not None:
            lines.append(
                f"worst parameter {worst.name}: off by {percent(worst.own)} of its own gradient, {percent(worst.size)} "
                "of the whole gradient"
            )
        lines += [f"cause: {cause.words}; {cause.remedy}" for cause in self.causes if cause.explains]
        if self.low <= rtol:
            lines.append(
                f"the bias is between {percent(self.low)} and {percent(self.high)} of the gradient, rtol is "
                f"{rtol:g}: give more draws, or a larger rtol"
            )
        lines.append(f"rtol {rtol:g}, {self.guarantee}, {self.draws} batches, seed {self.seed}")
        raise AssertionError("\n".join(lines))

    @property
    def worst(self) -> ParameterBias | None:
        """The parameter with the largest bias that is shown; None where none is."""
        wrong = [item for item in self.parameters if item.wrong]
        return max(wrong, key=lambda item: item.size, default=None)

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def __repr__(self) -> str:
        return f"<Audit {self.outcome}, {self.guarantee}: {one_line(self.summary)}>"

    def _lines(self) -> Iterator[str]:
        yield f"{self.outcome} ({self.guarantee}) {self.name}: {self.summary}"
        yield f"  batches     {self.law}"
        error = "" if self.guarantee == "exact" else f", error probability {self.alpha:g}"
        yield f"  objective   loss {self.loss:.4g}, gradient norm {self.gradient_norm:.4g}{error}, seed {self.seed}"
        yield ""
        yield from self._table()
        if self.causes:
            yield ""
            yield "  why"
            for number, cause in enumerate(self.causes, 1):
                yield f"    {number}. {cause.words} [{cause.id}]"
                yield f"       {effect(cause)}"
                if cause.explains:
                    yield f"       remedy: {cause.remedy}"
        if self.unexplained:
            yield f"  {self.unexplained}"
        if self.notes:
            yield ""
            yield from (f"  note: {note}" for note in self.notes)
        yield ""
        cost = self.cost
        yield (
            f"  cost: {cost.steps:,} steps {cost.step_seconds:.2f} s, {cost.gradients:,} exact gradients "
            f"{cost.gradient_seconds:.2f} s, batches {cost.loading_seconds:.2f} s, in all {cost.seconds:.2f} s "
            f"({cost.overhead:.2f} times these)"
        )

    def _table(self) -> Iterator[str]:
        width = max([len(item.name) for item in self.parameters] + [len("parameter")])
        yield f"    {'parameter':<{width}}  of its own  of the whole gradient, from ... to"
        for item in self.parameters:
            mark = "biased" if item.wrong else ""
            yield (
                f"    {item.name:<{width}}  {percent(item.own):>10}  {percent(item.size):>8}  "
                f"{percent(item.low)} ... {percent(item.high)}  {mark}"
            ).rstrip()

    def to_dict(self) -> dict[str, Any]:
        """Return the audit as plain JSON-compatible values."""
        out = asdict(self)
        out["outcome"] = self.outcome.value
        out["layers"] = dict(self.layers)
        return out

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Audit:
        """Rebuild an audit from `to_dict`."""
        fields = dict(values)
        fields["outcome"] = Outcome(fields["outcome"])
        fields["parameters"] = tuple(ParameterBias(**item) for item in fields["parameters"])
        explanation = dict(fields["explanation"])
        explanation["causes"] = tuple(Cause(**item) for item in explanation["causes"])
        fields["explanation"] = Explanation(**explanation)
        fields["cost"] = Cost(**fields["cost"])
        fields["notes"] = tuple(fields["notes"])
        fields["series"] = tuple(_series(item) for item in fields["series"])
        return cls(**fields)

    def to_frame(self) -> Any:
        """Return the bias by parameter as a ``pandas.DataFrame``, a row for each parameter.

        Columns: step (its name), outcome (of the audit), parameter, size, own, low, high, wrong; see `ParameterBias`.

        Raises:
            InvalidInputError: pandas is not installed.
        """
        rows = (
            (self.name, self.outcome.value, item.name, item.size, item.own, item.low, item.high, item.wrong)
            for item in self.parameters
        )
        return make_frame(_COLUMNS, rows)

    def plot(self) -> Figure:
        """Return a matplotlib figure of the bias by parameter with its interval, and of the curves, where there are.

        Raises:
            InvalidInputError: no parameter has a finite bias to draw.
        """
        delta = None if self.guarantee == "exact" else self.delta
        return draw_bias(self.parameters, self.series, f"{self.name}: {self.outcome}", delta)

    def _repr_html_(self) -> str:
        """Return the audit for a notebook, in the notebook's own colours."""
        rows = [
            (
                item.name,
                percent(item.own),
                percent(item.size),
                f"{percent(item.low)} … {percent(item.high)}",
                Bold("yes") if item.wrong else "not shown",
            )
            for item in most_telling(self.parameters, lambda item: (item.wrong, item.size))
        ]
        return section(
            f"<p>{escaped(self.question)} <b>{escaped(self.answer)}</b> ({self.outcome}, {self.guarantee}).</p>",
            paragraph(self.law),
            table(
                {
                    "parameter": "left",
                    "of its own gradient": "right",
                    "of the whole gradient": "right",
                    "from … to": "right",
                    "biased": "left",
                },
                rows,
            ),
            bullets((_told(cause) for cause in self.causes), title="Why", numbered=True),
            paragraph(sentence(self.unexplained)) if self.unexplained else "",
            bullets(escaped(note) for note in self.notes),
        )


def _told(cause: Cause) -> str:
    """Return one cause as HTML."""
    remedy = f"<br/>Remedy: {escaped(cause.remedy)}." if cause.explains else ""
    return f"<b>{escaped(cause.id)}</b>: {escaped(cause.words)}.<br/>{escaped(sentence(effect(cause)))}{remedy}"


def _series(values: Mapping[str, Any]) -> Series:
    fields: dict[str, Any] = {key: tuple(part) if isinstance(part, list) else part for key, part in values.items()}
    return Series(**fields)


def percent(value: float) -> str:
    """Return a share as per cent, small ones as a power of ten."""
    if math.isinf(value):
        return "inf"
    if value == 0.0:
        return "0"
    if value >= 10.0:
        return f"{100 * value:,.0f}%"
    return f"{value:.1e}" if value < 5e-4 else f"{100 * value:.3g}%"


def effect(cause: Cause) -> str:
    """Return what putting a cause right, and undoing it, does to the bias, in words."""
    out = f"put right alone: {max(cause.removes, 0.0):.0%} of the bias goes away"
    if cause.removes < -0.005:  # what is printed as 0% does not grow
        out = f"put right alone: the bias grows by {-cause.removes:.0%}"
    if cause.returns is not None:
        out += f"; undone alone: a bias of {percent(cause.returns)} of the gradient comes back"
    if cause.cosine is not None:
        out += f"; cosine of the bias and what this gives: {cause.cosine:.4f}"
    return out


def _left(explanation: Explanation) -> str:
    if explanation.complete and explanation.open:
        return (
            "these explain the bias: without them none is shown, from the draws that causes are compared on; one of "
            f"{percent(explanation.open)} of the gradient would not be seen there"
        )
    if explanation.complete:
        return "these explain the bias: without them the step is unbiased"
    if any(cause.explains for cause in explanation.causes):
        return f"not explained: {explanation.rest_share:.0%} of the bias, {percent(explanation.rest)} of the gradient"
    return "not explained: none of the known causes takes the bias away"
