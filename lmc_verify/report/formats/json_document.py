"""The complete report as one strictly valid JSON document, for programs."""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from importlib.resources import files
from typing import Any

from lmc_verify.encoding import published
from lmc_verify.report.answers.sentences import Asked, asked
from lmc_verify.report.figures.pictures import pictures
from lmc_verify.report.model.claims import Case, ClaimSection
from lmc_verify.report.model.error_account import ErrorAccount
from lmc_verify.report.model.paper_values import reported_for
from lmc_verify.report.model.races import RaceSection
from lmc_verify.report.model.report import Report
from lmc_verify.report.model.searches import SearchCase

__all__ = ["SCHEMA", "VERSION", "json_schema", "render_json"]

VERSION = 1
"""Version of the document: it rises when a field changes its meaning or goes away, and not for new fields."""
SCHEMA = f"lmc-verify/report/{VERSION}"
"""Name of the document's schema."""

_CONVENTIONS = (
    "null: not measured or not given. Numbers that are not finite are the strings 'NaN', 'Infinity', '-Infinity'. "
    "as_expected: null without an expectation; for a control, whether it passed. "
    "log_e_value: natural logarithm; combined_log_e_value: that of the product over all independent repetitions in the "
    "records, null with fewer than two. races: seconds are training time unless they are of a whole run; reported: "
    "values of the paper, not measured."
)


def json_schema() -> dict[str, Any]:
    """Return the JSON schema (draft 2020-12) that every report of this version fits."""
    file = files("lmc_verify.report").joinpath("schemas", f"report-{VERSION}.json")
    schema: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return schema


def render_json(report: Report) -> str:
    """Return the report as JSON (no NaN, no infinity), with a `schema` field."""
    totals = report.totals
    figures = tuple(dict.fromkeys(figure for race in report.races for figure in race.header.figures))
    document = {
        "schema": SCHEMA,
        "version": VERSION,
        "conventions": _CONVENTIONS,
        "run": asdict(report.run),
        "result": {
            "level": report.level,
            "state": report.state,
            "exit_code": report.exit_code,
            "headline": report.headline,
            "cases": totals.total,
            "as_expected": totals.expected_total,
            "not_as_expected": totals.unexpected_total,
            "without_expectation": totals.open_total,
            "outcomes": {outcome.value: totals.counts[outcome] for outcome in report.outcomes},
            "controls": len(report.controls),
            "controls_passed": report.passed_controls,
            "controls_failed": len(report.failed_controls),
            "counterexamples": len(report.counterexamples),
            "counterexamples_not_as_expected": len(report.unexpected_searches),
            "races": len(report.races),
            "race_runs": len(report.race_runs),
            "race_runs_crashed": len(report.crashed_race_runs),
            "races_not_run": len(report.races_not_run),
            "not_run": len(report.not_run),
            "unfinished": len(report.unfinished),
            "shard": None if report.shard is None else str(report.shard),
            "elsewhere": len(report.elsewhere),
            "work_seconds": report.work_seconds,
            "wall_seconds": report.wall_seconds,
        },
        "error_ledger": _errors(report.errors),
        "mutation_score": None if report.mutation_score is None else report.mutation_score.to_dict(),
        "unexpected": [
            *(case.anchor for case in report.unexpected),
            *(search.anchor for search in report.unexpected_searches),
        ],
        "unfinished": [item.to_dict() for item in report.unfinished],
        "elsewhere": [item.to_dict() for item in report.elsewhere],
        "answers": [_asked(item) for item in asked(report.sections)],
        "claims": [_section(section) for section in report.sections],
        "controls": [_case(case) for case in report.controls],
        "counterexamples": [_search(search, report) for search in report.counterexamples],
        "benchmarks": None if report.benchmarks is None else report.benchmarks.to_dict(),
        "races": [_race(race) for race in report.races],
        "reported": [asdict(item) for item in reported_for(figures)] if figures else [],
    }
    return json.dumps(published(document), allow_nan=False, ensure_ascii=False, indent=1) + "\n"


def _section(section: ClaimSection) -> dict[str, Any]:
    claim, question = section.claim, section.claim.question
    return {
        **{item.name: getattr(claim, item.name) for item in fields(claim)},
        "question": None if question is None else question.ask,
        "assumptions": [asdict(item) for item in section.assumptions],
        "cases": [_case(case) for case in section.cases],
        "not_run": [item.to_dict() for item in section.not_run],
    }


def _asked(item: Asked) -> dict[str, Any]:
    return {
        "claim": item.section.claim.id,
        "replies": [
            {
                "asked": lead,
                "found": reply.found,
                "outcome": reply.outcome.value,
                "estimators": list(reply.estimators),
                "sizes": [size.value for size in reply.sizes],
                "as_expected": reply.as_expected,
                "cases": [case.anchor for case in reply.cases],
            }
            for lead, reply in item.lines
        ],
    }


def _errors(account: ErrorAccount) -> dict[str, Any]:
    return {
        "alpha_total": account.total,
        "alpha_spent": account.spent,
        "alpha_spent_anytime_valid": account.anytime_valid,
        "alpha_spent_asymptotic": account.asymptotic,
        "guarantee": account.guarantee,
        "overspent": account.overspent,
        "certain": account.certain,
        "alpha_spent_by_controls": account.controls,
        "checks": [
            {
                "id": case.anchor,
                "claim": case.verdict.claim,
                "label": case.label,
                "alpha_spent": case.verdict.alpha_spent,
                "guarantee": case.verdict.guarantee,
            }
            for claim in account.claims
            for case in claim.cases
        ],
    }


def _case(case: Case) -> dict[str, Any]:
    return {
        "id": case.anchor,
        "label": case.label,
        "as_expected": case.trial.as_expected,
        "repetitions": len(case.repetitions),
        "combined_log_e_value": case.combined_log_e_value,
        **case.trial.to_dict(),
    }


def _search(search: SearchCase, report: Report) -> dict[str, Any]:
    values = search.record.to_dict()
    if values["found"] is not None:
        del values["found"]["drawing"]  # it is the file NAME.svg
    return {
        "id": search.anchor,
        "label": search.label,
        "as_expected": search.record.as_expected,
        "reproduce": search.reproduction or None,
        "refuted_cases": [case.anchor for case in report.cases if search.refutes(case)],
        **values,
    }


def _race(race: RaceSection) -> dict[str, Any]:
    """Return a race: `record` as lmc-verify race prints it, without the environment, which is that of the run."""
    record = None if race.record is None else race.record.to_dict()
    if record is not None:
        del record["environment"]
    runs = [{key: value for key, value in item.to_dict().items() if key != "entry"} for item in race.runs]
    return {
        "id": race.anchor,
        "title": race.title,
        "dataset": race.dataset,
        "figures": list(race.header.figures),
        "planned": race.header.planned,
        "not_run_because": race.header.reason or None,
        "settings": race.header.settings.model_dump(mode="json"),
        "runs": runs,
        "pictures": [item.file for item in pictures(race)],
        "record": record,
    }
