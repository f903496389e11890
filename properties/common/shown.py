"""Strategies for results with hostile names and numbers, and a reader of the HTML that they show."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Any

from hypothesis import strategies as st

from lmc_verify.audits.explanation import Cause, Explanation
from lmc_verify.audits.result import Audit, Cost, ParameterBias
from lmc_verify.cases.description import CaseDescription
from lmc_verify.cases.verdict import AssumptionCheck, Evidence, Outcome, Series, Verdict
from lmc_verify.races.record import Median, RaceEntry, RaceRecord, Reached, Standing, Target
from lmc_verify.races.settings import RaceSettings
from lmc_verify.training import Evaluation, GradientError, Trace
from lmc_verify.training.trace import STATUSES

HOSTILE = (
    "<script>alert(1)</script>",
    "\"'><img src=x onerror=alert(1)>",
    "</td></table>&amp;<b>",
    "$\\frac{1}{$",
    "_hidden",
    "a\nb\r\n\tc",
    "\x1b[2J\x00",
    "\u202egnp.exe",
    "\ud800",
    "",
    "n" * 3000,
)

texts = st.sampled_from(HOSTILE) | st.text(st.characters(), max_size=20)  # lone surrogates included
numbers = st.floats()
maybe = st.none() | numbers
counts = st.integers(0, 2**62)
outcomes = st.sampled_from(Outcome)
guarantees: Any = st.sampled_from(["exact", "anytime-valid", "asymptotic"])


@st.composite
def series(draw: st.DrawFn) -> Series:
    x = tuple(draw(st.lists(numbers, max_size=4)))
    many = st.tuples(*[numbers] * len(x))
    ends = draw(st.booleans())
    return Series(
        draw(texts),
        x,
        draw(many),
        draw(texts),
        draw(texts),
        draw(texts),
        draw(many) if ends else (),
        draw(many) if ends else (),
        draw(st.sampled_from(["linear", "semilogy", "loglog"])),
    )


evidence = st.builds(Evidence, texts, numbers, maybe, texts, texts, maybe, maybe)
cases = st.builds(
    CaseDescription,
    dataset=st.none() | texts,
    nodes=st.none() | counts,
    model=st.none() | texts,
    support=st.none() | counts | texts,
    dropout=st.sampled_from([0.0, 0.5]),
    model_options=st.dictionaries(st.sampled_from(["claim", "heads", "<b>"]), texts | numbers | st.booleans()),
    seed=st.none() | counts,
)
verdicts = st.builds(
    Verdict,
    texts,
    outcomes,
    texts,
    cases,
    maybe,
    maybe,
    maybe,
    log_e_value=maybe,
    draws=st.none() | counts,
    evidence=st.lists(evidence, max_size=4).map(tuple),
    series=st.lists(series(), max_size=3).map(tuple),
    assumptions=st.lists(st.builds(AssumptionCheck, texts, texts, st.none() | st.booleans()), max_size=2).map(tuple),
)
causes = st.builds(
    Cause,
    texts,
    texts,
    texts,
    st.floats(-2, 2),
    st.none() | st.floats(0, 9),
    st.none() | st.floats(-1, 1),
    st.booleans(),
)
audits = st.builds(
    Audit,
    outcomes,
    guarantees,
    texts,
    numbers,
    numbers,
    numbers,
    st.lists(st.builds(ParameterBias, texts, *[numbers] * 4, st.booleans()), max_size=4).map(tuple),
    st.builds(Explanation, st.lists(causes, max_size=2).map(tuple), st.booleans(), numbers, st.floats(0, 1)),
    texts,
    numbers,
    numbers,
    st.floats(0, 1),
    st.floats(0, 1),
    counts,
    counts,
    st.just(Cost(1, 0.5, 1, 0.5, 0.0, 1.0)),
    st.lists(texts, max_size=2).map(tuple),
    st.lists(series(), max_size=2).map(tuple),
    texts,
)
evaluations = st.builds(
    Evaluation, counts, *[numbers] * 3, *[st.none() | counts] * 2, numbers, maybe, numbers, maybe, maybe, maybe
)
parts = st.fixed_dictionaries({"all": numbers}, optional={"<b>": numbers})


@st.composite
def gradient_errors(draw: st.DrawFn) -> GradientError:
    names = list(draw(parts))
    values = [{name: draw(st.floats(0, 9)) for name in names} for _ in range(5)]
    return GradientError(draw(counts), draw(texts), draw(counts), *values)


traces = st.builds(
    Trace,
    st.dictionaries(texts, texts | numbers | st.just({"name": "<i>", "deep": [1]}), max_size=3),
    texts,
    st.integers(1, 9),
    counts,
    st.lists(evaluations, max_size=4).map(tuple),
    st.lists(gradient_errors(), max_size=2).map(tuple),
    st.sampled_from(STATUSES),
    texts,
)
medians = st.builds(Median, maybe, maybe, maybe, st.floats(0, 1), counts)
entries = st.builds(
    RaceEntry,
    texts,
    counts,
    counts,
    st.none() | traces,
    st.none() | st.builds(Reached, counts, numbers, numbers, st.none() | counts, st.none() | counts, numbers),
    texts,
    texts,
)
standings = st.builds(Standing, texts, counts, counts, st.dictionaries(texts, medians, max_size=3))
RACE = RaceSettings.read({"dataset": "karate", "contestants": [{"estimator": "lmc", "design": {"parts": 4}}]})
races = st.builds(
    RaceRecord,
    texts.map(lambda title: RACE.model_copy(update={"title": title})),
    st.builds(Target, maybe, st.sampled_from(["validation", "test"]), texts),
    st.lists(entries, max_size=3).map(tuple),
    st.lists(standings, max_size=3).map(tuple),
    st.just({}),
)


class Shown(HTMLParser):
    """What a reader of some HTML sees; anything but plain balanced tags is an AssertionError.

    Attributes:
        text: all of it.
        rows: the cells of every table row.
    """

    TAGS = frozenset(["div", "p", "b", "small", "table", "thead", "tbody", "tr", "th", "td", "ol", "ul", "li", "br"])
    STYLES = frozenset({"overflow-x:auto", "text-align:left", "text-align:right"})

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.text, self.rows, self._open = "", list[list[str]](), list[str]()
        html.encode("utf-8")
        self.feed(html)
        self.close()
        assert not self._open, f"never closed: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in self.TAGS, tag
        for name, value in attrs:
            assert (name == "style" and value in self.STYLES) or (name, value) in {("scope", "col"), ("scope", "row")}
        self._open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("th", "td"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert (tag, attrs) == ("br", [])

    def handle_endtag(self, tag: str) -> None:
        assert self._open, f"</{tag}> closes nothing"
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if {"th", "td"} & set(self._open):
            self.rows[-1][-1] += data

    def handle_comment(self, data: str) -> None:
        raise AssertionError(f"a comment: {data}")

    handle_decl = handle_pi = unknown_decl = handle_comment
