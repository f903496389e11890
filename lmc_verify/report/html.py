"""The report as one HTML page that needs nothing else: no scripts, no fonts, no other file."""

from __future__ import annotations

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from lmc_verify.report import text
from lmc_verify.report.figures import bias_per_layer, residual_strip
from lmc_verify.report.model import ClaimSection, Report

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
    return environment.get_template("report.html.j2").render(
        report=report,
        figures={section.anchor: _figures(section) for section in report.sections},
        symbols=text.OUTCOME_SYMBOLS,
        meanings=text.OUTCOME_MEANINGS,
        case_keys=text.case_keys,
        count=text.count,
        many=MANY_CASES,
    )


def _figures(section: ClaimSection) -> dict[str, Markup]:
    drawn = {
        "residual": residual_strip(section, f"residual-{section.anchor}"),
        "bias": bias_per_layer(section, f"bias-{section.anchor}"),
    }
    return {key: Markup(svg) for key, svg in drawn.items() if svg is not None}


def _finalize(value: Any) -> Any:
    """Keep control characters, which no browser shows, out of the page."""
    return text.printable(value) if type(value) is str else value
