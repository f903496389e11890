"""The report as one HTML page that needs nothing else: no scripts, no fonts, no other file."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from lmc_verify.audits.result import effect
from lmc_verify.audits.result import percent as share
from lmc_verify.cases.verdict import Outcome
from lmc_verify.display.text import sentence
from lmc_verify.report.answers.names import display_name
from lmc_verify.report.answers.races import race_answer, race_question
from lmc_verify.report.answers.sentences import asked
from lmc_verify.report.figures.canvas import short
from lmc_verify.report.figures.causes import causes_picture
from lmc_verify.report.figures.line_plot import curve_key, line_plot
from lmc_verify.report.figures.pictures import HEADLINE, picture_groups, pictures
from lmc_verify.report.figures.residuals import KINDS, bias_per_layer, residual_strip
from lmc_verify.report.figures.sharing import Sheet
from lmc_verify.report.formats.breaks import command, path, unbroken
from lmc_verify.report.formats.glossary import glossary
from lmc_verify.report.model import text
from lmc_verify.report.model.curves import Plot, case_plots, claim_plots
from lmc_verify.report.model.labels import settings_in_words
from lmc_verify.report.model.race_tables import percent
from lmc_verify.report.model.report import Report
from lmc_verify.report.model.searches import SearchCase, inline_drawing

__all__ = ["render_html"]

MANY_CASES = 12
"""A claim with more cases shows its list of cases closed."""
FIRST_QUESTIONS = 6
"""So many questions with their answers are on the first screen; further ones are closed."""
FIRST_ANSWERS = 5
"""So many answers to a question are shown; further ones are closed."""


def render_html(report: Report) -> str:
    """Return the report as one self-contained HTML page."""
    environment = Environment(
        loader=PackageLoader("lmc_verify.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=_finalize,
    )
    environment.filters.update(number=text.number, duration=text.duration, moment=text.moment)
    environment.filters.update(word=text.outcome_word, setting=text.setting, name=text.name)
    environment.filters.update(
        level=text.level,
        e_value=text.e_value,
        tier=text.tier,
        unbroken=unbroken,
        command=command,
        path=path,
        sentence=sentence,
        percent=percent,
        share=share,
        effect=effect,
    )
    environment.globals.update(picture_groups=picture_groups, glossary=glossary, curve_key=curve_key)
    figures = _Figures(report)  # before the page is rendered: its head holds what they share
    environment.filters.update(race_question=race_question, race_answer=race_answer)
    environment.filters.update(display=display_name, short=short, shared=figures.shared)
    return environment.get_template("report.html.j2").render(
        report=report,
        asked=asked(report.sections),
        figures=figures,
        residuals={section.anchor: residual_strip(section) for section in report.sections},
        biases={section.anchor: bias_per_layer(section) for section in report.sections},
        mark_kinds=KINDS,
        drawings={search.anchor: _drawing(search) for search in report.counterexamples},
        interval=text.interval,
        symbols=text.OUTCOME_SYMBOLS,
        meanings=text.OUTCOME_MEANINGS,
        refuted=Outcome.REFUTED,
        settings_in_words=settings_in_words,
        count=text.count,
        zip=zip,
        many=MANY_CASES,
        first_questions=FIRST_QUESTIONS,
        first_answers=FIRST_ANSWERS,
        headline=HEADLINE,
    )


_Drawn = list[tuple[Plot, Markup]]


class _Figures:
    """Every figure of a page, drawn, with what they share.

    Attributes:
        claims: anchor of a claim -> the curves of its cases together; none of audits, each of which shows its own.
        cases: anchor of a case -> its curves that its claim does not already show alone.
        causes: anchor of an audit -> the picture of its causes, or None.
        sheet: what they share.
    """

    def __init__(self, report: Report) -> None:
        self.sheet = Sheet()
        self._shared: dict[str, Markup] = {}
        sections = report.sections
        plots = {section.anchor: () if section.audited else claim_plots(section) for section in sections}
        self.claims = {anchor: self._drawn(found, f"curves-{anchor}") for anchor, found in plots.items()}
        self.cases: dict[str, _Drawn] = {}
        self.causes: dict[str, Markup | None] = {}
        for section in sections:
            for case in section.cases:
                alone = {plot.title for plot in plots[section.anchor] if plot.cases == (case,)}
                own = [plot for plot in case_plots(case) if plot.title not in alone]
                self.cases[case.anchor] = self._drawn(own, f"curves-{case.anchor}")
                picture = None if case.audit is None else causes_picture(case.audit, f"causes-{case.anchor}")
                self.causes[case.anchor] = None if picture is None else self.shared(picture)
        for race in report.races:
            for item in pictures(race):
                self.shared(item.svg)

    def shared(self, svg: str) -> Markup:
        """Return a figure without what is on the sheet."""
        if svg not in self._shared:
            self._shared[svg] = Markup(self.sheet.share(svg))  # nosec B704  # drawn here, text is escaped
        return self._shared[svg]

    def _drawn(self, plots: Iterable[Plot], identifier: str) -> _Drawn:
        return [(plot, self.shared(line_plot(plot, f"{identifier}-{n}"))) for n, plot in enumerate(plots, start=1)]


def _drawing(search: SearchCase) -> Markup | None:
    if search.found is None:
        return None
    title = f"Counterexample to {search.record.claim} for {search.record.estimator}: {search.size}"
    drawn = inline_drawing(search.found.drawing, f"drawing-{search.anchor}", title)
    return None if drawn is None else Markup(drawn)  # nosec B704  # only what draws is left in


def _finalize(value: Any) -> Any:
    """Keep control characters, which no browser shows, out of the page."""
    return text.printable(value) if type(value) is str else value
