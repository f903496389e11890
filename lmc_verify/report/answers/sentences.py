"""What was asked and what was found, in sentences: the verdicts of a claim as answers to its question."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from lmc_verify.cases.verdict import Outcome
from lmc_verify.claims import Answer, Size
from lmc_verify.report.answers.names import beginning, display_name, unusual_settings
from lmc_verify.report.model import text
from lmc_verify.report.model.claims import Case, ClaimSection

__all__ = ["Asked", "Reply", "asked"]

_WORDS: Mapping[Outcome, str] = {
    Outcome.EXACT: "Yes",
    Outcome.SUPPORTED: "Supported",
    Outcome.REFUTED: "No",
    Outcome.INCONCLUSIVE: "Not decided",
    Outcome.VACUOUS: "The bound holds, but says little",
    Outcome.NOT_APPLICABLE: "The claim does not apply",
    Outcome.ERROR: "The check crashed",
}
"""How an outcome answers a question."""

_UNTOLD = ("seed", "root", "nodes", "edges", "support", "replicate", "dtype", "estimator", "function", "arguments")
"""Settings that no reply is told apart by."""
_MOST_VALUES = 3
"""A condition names so many values of a setting at most."""


@dataclass(frozen=True)
class Reply:
    """What was found for some estimators, under one condition.

    Attributes:
        estimators: their names.
        condition: under which it was found, as words with a space before them; may be empty.
        outcome: of every case.
        answer: what follows yes or no.
        sizes: that the verdicts answer with, one for each that has one.
        cases: the cases, at least one.
        among: number of cases of these estimators under this condition, whatever their outcome.
        plain: whether the estimators have the settings that are their defaults.
    """

    estimators: tuple[str, ...]
    condition: str
    outcome: Outcome
    answer: Answer
    sizes: tuple[Size, ...]
    cases: tuple[Case, ...]
    among: int
    plain: bool = True

    @property
    def failed(self) -> bool:
        """Whether a case is not as expected."""
        return any(case.failed for case in self.cases)

    @property
    def as_expected(self) -> bool | None:
        """Whether every case is as expected; None where none is not, and some have no expectation."""
        judged = {case.trial.as_expected for case in self.cases}
        return False if self.failed else True if judged == {True} else None

    @property
    def found(self) -> str:
        """The answer as a sentence: ``Yes, to rounding, on 3 cases.``"""
        word, said = _WORDS[self.outcome], self._said
        separator = ", " if self.outcome is Outcome.EXACT else ": "
        amount = len(self.cases)
        of = "" if self.among == amount else f"{amount} of "
        return f"{word}{separator if said else ''}{said}, on {of}{text.count(self.among, 'case')}."

    @property
    def _said(self) -> str:
        if self.outcome in (Outcome.NOT_APPLICABLE, Outcome.ERROR):
            reasons = dict.fromkeys(case.verdict.summary.rstrip(".") for case in self.cases)
            return next(iter(reasons)) if len(reasons) == 1 else ""
        if self.answer.measure is None:
            return self.answer.words
        return self.answer.words.format(size=self._size) if self.sizes else ""

    @property
    def _size(self) -> str:
        """The sizes as one, or as a range, with the place if it is the same for all."""
        values = [size.value for size in self.sizes]
        first = max(values) if self.answer.largest else min(values)
        ends = dict.fromkeys(text.effect(value, self.answer.unit) for value in (first, max(values)))
        places = {size.where for size in self.sizes}
        return f"{' to '.join(ends)}{places.pop() if len(places) == 1 else ''}"


@dataclass(frozen=True)
class Asked:
    """A claim as a question, with the replies for its estimators, in the order in which they were asked about."""

    section: ClaimSection
    replies: tuple[Reply, ...]

    @property
    def failed(self) -> bool:
        """Whether a verdict is not as expected."""
        return any(reply.failed for reply in self.replies)

    @cached_property
    def lines(self) -> tuple[tuple[str, Reply], ...]:
        """Each reply after what was asked: the whole question first, then the further estimators alone."""
        return tuple((self._lead(number, reply), reply) for number, reply in enumerate(self.replies))

    def _lead(self, number: int, reply: Reply) -> str:
        question = self.section.claim.question
        if question is None:
            statement = self.section.claim.statement or self.section.claim.title
            return f"{statement + ' ' if number == 0 else ''}{_listed(reply.estimators)}{reply.condition}:"
        own = "{estimator}'s" in question.ask
        if number == 0:
            asked = question.ask if "{when}" in question.ask else f"{question.ask}{{when}}"
            return asked.format(estimator=reply.estimators[0], when=reply.condition.replace("{its}", "its")) + "?"
        names = [f"{name}'s" if own else name for name in reply.estimators]
        return f"{beginning(_listed(names))}{reply.condition.replace('{its}', 'its' if len(names) == 1 else 'their')}?"


def asked(sections: Iterable[ClaimSection]) -> tuple[Asked, ...]:
    """Return what was asked of each claim that has a case; those with a verdict that is not as expected come first.

    Audits have questions of their own, see `lmc_verify.audits.Audit`.
    """
    found = [Asked(section, _replies(section)) for section in sections if section.cases and not section.audited]
    return tuple(sorted(found, key=lambda item: not item.failed))


def _replies(section: ClaimSection) -> tuple[Reply, ...]:
    # First, in full, what is not as expected; then an estimator that the question does not compare others with.
    ask = "" if section.claim.question is None else section.claim.question.ask
    order = lambda reply: (not reply.failed, not reply.plain, reply.estimators[0] in ask)  # noqa: E731
    single = sorted(_single(section), key=order)
    merged: dict[tuple[object, ...], list[Reply]] = {}
    for number, reply in enumerate(single):  # the first is asked in full, of one estimator
        alone = number if number == 0 else None
        key = (alone, reply.condition, reply.outcome, reply.answer, bool(reply.sizes), reply.failed)
        partial = None if reply.among == len(reply.cases) else number
        merged.setdefault((*key, partial), []).append(reply)
    return tuple(_together(group) for group in merged.values())


def _single(section: ClaimSection) -> Iterator[Reply]:
    """Give a reply for each estimator, condition and outcome."""
    question = section.claim.question
    groups: dict[tuple[str, str, str], list[Case]] = {}
    for case in section.cases:
        described = case.verdict.case
        when = "" if question is None else question.when(case.verdict)
        name = display_name(described.estimator or "the estimator")
        groups.setdefault((name, when, unusual_settings(described)), []).append(case)
    for (name, when, settings), cases in groups.items():
        for outcome in dict.fromkeys(case.verdict.outcome for case in cases):
            mine = tuple(case for case in cases if case.verdict.outcome is outcome)
            told = _apart(mine, [case for case in cases if case.verdict.outcome is not outcome])
            answer = Answer() if question is None else question.answer(outcome)
            measured = [answer.measure(case.verdict) for case in mine] if answer.measure is not None else []
            sizes = tuple(size for size in measured if size is not None)
            among = len(mine) if told else len(cases)
            under = f"{',' if when else ''} with {settings}" if settings else ""
            comma = "," if (when or settings) and told else ""
            condition = f"{when}{under}{comma}{' ' if told else ''}{told}"
            yield Reply((name,), condition, outcome, answer, sizes, mine, among, plain=not settings)


def _together(replies: Sequence[Reply]) -> Reply:
    first = replies[0]
    return Reply(
        tuple(name for reply in replies for name in reply.estimators),
        first.condition,
        first.outcome,
        first.answer,
        tuple(size for reply in replies for size in reply.sizes),
        tuple(case for reply in replies for case in reply.cases),
        sum(reply.among for reply in replies),
        first.plain,
    )


def _apart(mine: Sequence[Case], others: Sequence[Case]) -> str:
    """Return what tells cases from others, in words: an assumption, else a setting; empty where neither does."""
    return (_by_assumption(mine, others) or _by_setting(mine, others)) if others else ""


def _by_assumption(mine: Sequence[Case], others: Sequence[Case]) -> str:
    """Return the assumption that fails in all cases and in none of the others, or the other way round."""
    own, rest = ([_failed(case) for case in cases] for cases in (mine, others))
    checked = set.intersection(*({item.id for item in case.verdict.assumptions if item.holds} for case in mine))
    for always, never, word in ((own, rest, "fails"), (rest, own, "holds")):
        common = set.intersection(*always) - set().union(*never)
        common &= checked if word == "holds" else common
        if common:
            what = "assumption" if len(common) == 1 else "assumptions"
            return f"where the {what} {_listed(sorted(common))} {word if len(common) == 1 else word[:-1]}"
    return "where no assumption fails" if all(rest) and not any(own) else ""


def _failed(case: Case) -> set[str]:
    return {item.id for item in case.verdict.assumptions if item.holds is False}


def _by_setting(mine: Sequence[Case], others: Sequence[Case]) -> str:
    own, rest = ([case.verdict.case.to_dict() for case in cases] for cases in (mine, others))
    for key in text.case_keys(key for case in own for key in case):
        values = dict.fromkeys(text.setting(case.get(key), key) for case in own)
        if key in _UNTOLD or len(values) > _MOST_VALUES or text.ABSENT in values:
            continue
        if not any(text.setting(case.get(key), key) in values for case in rest):
            return f"with {text.name(key)} {_listed(list(values), 'or')}"
    return ""


def _listed(names: Sequence[str], word: str = "and") -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} {word} {names[-1]}"
