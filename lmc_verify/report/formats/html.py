"""The report as one HTML page that needs nothing else: no scripts, no fonts, no other file."""

from __future__ import annotations

import re
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from lmc_verify.audits.result import effect
from lmc_verify.audits.result import percent as share
from lmc_verify.report.figures.causes import causes_picture
from lmc_verify.report.figures.line_plot import curve_key, line_plot
from lmc_verify.report.figures.pictures import picture_groups
from lmc_verify.report.figures.residuals import bias_per_layer, residual_strip
from lmc_verify.report.formats.glossary import glossary
from lmc_verify.report.model import text
from lmc_verify.report.model.claims import Case, ClaimSection
from lmc_verify.report.model.curves import Plot, case_plots, claim_plots
from lmc_verify.report.model.labels import settings_in_words
from lmc_verify.report.model.race_tables import percent
from lmc_verify.report.model.report import Report
from lmc_verify.report.model.searches import SearchCase, inline_drawing

__all__ = ["render_html"]

MANY_CASES = 12
"""A claim with more cases shows its list of cases closed."""


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
        unbroken=_unbroken,
        command=_command,
        sentence=_sentence,
        percent=percent,
        share=share,
        effect=effect,
    )
    environment.globals.update(picture_groups=picture_groups, glossary=glossary)
    drawn = {section.anchor: _claim_curves(section) for section in report.sections}
    return environment.get_template("report.html.j2").render(
        report=report,
        figures={section.anchor: _figures(section) for section in report.sections},
        claim_curves=drawn,
        case_curves={
            case.anchor: _case_curves(case, [plot for plot, _ in drawn[section.anchor]])
            for section in report.sections
            for case in section.cases
        },
        causes={case.anchor: _causes(case) for section in report.sections for case in section.cases},
        drawings={search.anchor: _drawing(search) for search in report.counterexamples},
        interval=text.interval,
        curve_key=curve_key,
        symbols=text.OUTCOME_SYMBOLS,
        meanings=text.OUTCOME_MEANINGS,
        settings_in_words=settings_in_words,
        count=text.count,
        zip=zip,
        many=MANY_CASES,
    )


def _figures(section: ClaimSection) -> dict[str, Markup]:
    drawn = {
        "residual": residual_strip(section, f"residual-{section.anchor}"),
        "bias": bias_per_layer(section, f"bias-{section.anchor}"),
    }
    return {key: Markup(svg) for key, svg in drawn.items() if svg is not None}  # nosec B704  # drawn here, text is escaped


_Drawn = list[tuple[Plot, Markup]]


def _claim_curves(section: ClaimSection) -> _Drawn:
    if section.audited:  # each audit shows its own
        return []
    plots = enumerate(claim_plots(section), start=1)
    return [
        (plot, Markup(line_plot(plot, f"curves-{section.anchor}-{number}")))  # nosec B704  # drawn here, text is escaped
        for number, plot in plots
    ]


def _case_curves(case: Case, above: list[Plot]) -> _Drawn:
    """Draw the figures of a case that its claim does not already show alone."""
    alone = {plot.title for plot in above if plot.cases == (case,)}
    plots = enumerate(case_plots(case), start=1)
    return [
        (plot, Markup(line_plot(plot, f"curves-{case.anchor}-{number}")))  # nosec B704  # drawn here, text is escaped
        for number, plot in plots
        if plot.title not in alone
    ]


def _causes(case: Case) -> Markup | None:
    drawn = None if case.audit is None else causes_picture(case.audit, f"causes-{case.anchor}")
    return None if drawn is None else Markup(drawn)  # nosec B704  # drawn here, text is escaped


def _drawing(search: SearchCase) -> Markup | None:
    if search.found is None:
        return None
    title = f"Counterexample to {search.record.claim} for {search.record.estimator}: {search.size}"
    drawn = inline_drawing(search.found.drawing, f"drawing-{search.anchor}", title)
    return None if drawn is None else Markup(drawn)  # nosec B704  # only what draws is left in


def _unbroken(words: str) -> Markup:
    """Keep powers of ten such as ``1e-6`` on one line."""
    return Markup(re.sub(r"[\d.]+e-\d+", r'<span class="nowrap">\g<0></span>', str(escape(words))))  # nosec B704  # escaped


def _command(words: str) -> Markup:
    """Let a command break between its words only, where there is room."""
    spans = (f'<span class="word">{escape(text.printable(word))}</span>' for word in words.split(" "))
    return Markup(" ".join(spans))  # nosec B704  # escaped


def _sentence(words: object) -> str:
    """Return words as a sentence, with percentages on one line."""
    line = str(words)
    return f"{line[:1].upper()}{line[1:]}.".replace(" %", "\u00a0%")


def _finalize(value: Any) -> Any:
    """Keep control characters, which no browser shows, out of the page."""
    return text.printable(value) if type(value) is str else value
