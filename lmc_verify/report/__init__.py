"""Records of a run -> a report: one HTML page, Markdown, JSON and JUnit XML."""

from typing import TYPE_CHECKING

from lmc_verify.imports.names import offered

if TYPE_CHECKING:
    from lmc_verify.report.comparison.changes import Change
    from lmc_verify.report.comparison.comparison import Comparison, compare_runs
    from lmc_verify.report.comparison.document import comparison_document, comparison_schema
    from lmc_verify.report.comparison.pages import write_comparison
    from lmc_verify.report.formats.github import annotation_lines, announce
    from lmc_verify.report.formats.html import render_html
    from lmc_verify.report.formats.json_document import json_schema, render_json
    from lmc_verify.report.formats.junit import render_junit
    from lmc_verify.report.formats.markdown import render_markdown
    from lmc_verify.report.formats.table import claims_table
    from lmc_verify.report.model.benchmarks import BenchmarkSection, load_benchmarks
    from lmc_verify.report.model.claims import AUDITS, ClaimText
    from lmc_verify.report.model.races import RaceSection
    from lmc_verify.report.model.report import Report, build_report
    from lmc_verify.report.writing import write_report
else:
    __getattr__, __dir__ = offered(__name__)

__all__ = [
    "AUDITS",
    "BenchmarkSection",
    "Change",
    "ClaimText",
    "Comparison",
    "RaceSection",
    "Report",
    "annotation_lines",
    "announce",
    "build_report",
    "claims_table",
    "compare_runs",
    "comparison_document",
    "comparison_schema",
    "json_schema",
    "load_benchmarks",
    "render_html",
    "render_json",
    "render_junit",
    "render_markdown",
    "write_comparison",
    "write_report",
]
