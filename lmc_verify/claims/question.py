"""What a claim asks of an estimator, as a question for readers, and the sizes that its verdicts answer with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from lmc_verify.cases.verdict import Evidence, Outcome, Verdict
from lmc_verify.errors import InvalidInputError

__all__ = ["TO_ROUNDING", "Answer", "Question", "Size", "largest", "last", "measured", "ratio", "with_histories"]

Unit = Literal["share", "number", "power"]
"""How sizes are written: in per cent, as a number, or as the exponent of a power of ten."""


@dataclass(frozen=True)
class Size:
    """How large what a verdict found is, and where: words such as ``" in layer 1"``, or empty."""

    value: float
    where: str = ""


Measure = Callable[[Verdict], Size | None]


@dataclass(frozen=True)
class Answer:
    """What follows yes or no.

    Attributes:
        words: such as ``"off by {size}"``.
        measure: reads the size off a verdict; where it gives None, the words are left out.
        unit: of the size.
        largest: whether the size of several verdicts is their largest, as after "at most", and not their range.
    """

    words: str = ""
    measure: Measure | None = None
    unit: Unit = "share"
    largest: bool = False


TO_ROUNDING = Answer("to rounding")


def _nowhere(verdict: Verdict) -> str:
    return ""


@dataclass(frozen=True)
class Question:
    """A claim as a question about one estimator, with what its verdicts add to yes and no.

    Attributes:
        ask: the question without its mark: ``"Is {estimator}'s gradient unbiased{when}"``. ``{when}`` may be left out.
        exact: what follows the yes of EXACT.
        supported: what follows SUPPORTED; also said of a bound that is VACUOUS.
        refuted: what follows the no of REFUTED.
        when: under what condition a verdict was found, as words to put into the question, or empty. Verdicts under
            different conditions are answers to different questions. ``{its}`` stands for its or their.
    """

    ask: str
    exact: Answer = TO_ROUNDING
    supported: Answer = field(default_factory=Answer)
    refuted: Answer = field(default_factory=Answer)
    when: Callable[[Verdict], str] = _nowhere

    def __post_init__(self) -> None:
        try:
            named = "{estimator}" in self.ask and self.ask.format(estimator="", when="") is not None
            for said in (self.exact, self.supported, self.refuted):
                said.words.format(size="")
        except (KeyError, IndexError, ValueError) as error:
            raise InvalidInputError(
                f"a question has a field that is not known ({error}); ask knows {{estimator}} and {{when}}, answers "
                "know {size}"
            ) from error
        if not named:
            raise InvalidInputError(
                f"the question {self.ask!r} does not name its {{estimator}}; put the field where its name belongs"
            )

    def answer(self, outcome: Outcome) -> Answer:
        """Return what follows the word for an outcome; nothing where the outcome is no answer."""
        said = {
            Outcome.EXACT: self.exact,
            Outcome.SUPPORTED: self.supported,
            Outcome.VACUOUS: self.supported,
            Outcome.REFUTED: self.refuted,
        }
        return said.get(outcome, Answer())


def _of(verdict: Verdict, group: str) -> list[Evidence]:
    return [item for item in verdict.evidence if item.group == group]


def largest(group: str, where: str = " in {}") -> Measure:
    """Return a measure: the largest evidence of a group, with its name as the place."""

    def measure(verdict: Verdict) -> Size | None:
        found = _of(verdict, group)
        worst = max(found, key=lambda item: abs(item.value), default=None)
        return None if worst is None else Size(abs(worst.value), where.format(worst.quantity))

    return measure


def last(group: str) -> Measure:
    """Return a measure: the last evidence of a group."""

    def measure(verdict: Verdict) -> Size | None:
        found = _of(verdict, group)
        return Size(found[-1].value) if found else None

    return measure


def measured(quantity: str, *, positive: bool = False) -> Measure:
    """Return a measure: the evidence with a name; with `positive`, only where it is not 0."""

    def measure(verdict: Verdict) -> Size | None:
        found = next((item for item in verdict.evidence if item.quantity == quantity), None)
        return None if found is None or (positive and found.value == 0) else Size(found.value)

    return measure


def ratio(group: str) -> Measure:
    """Return a measure: the first evidence of a group by the second."""

    def measure(verdict: Verdict) -> Size | None:
        values = [item.value for item in _of(verdict, group)]
        return Size(values[0] / values[1]) if len(values) > 1 and values[1] else None

    return measure


def with_histories(verdict: Verdict) -> str:
    """Return what the histories were, as words for a question: ``" with exact histories"``."""
    kind = verdict.case.histories
    if kind is None:
        return ""
    sweeps = kind.removeprefix("sweeps:")
    return f" with {kind} histories" if sweeps == kind else f" after {sweeps} {'sweep' if sweeps == '1' else 'sweeps'}"
