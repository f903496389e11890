"""What is the same in every case of a claim is told once, and what is not is told with its case."""

from __future__ import annotations

import re
from pathlib import Path

from common.report_helpers import a_report, a_trial

from lmc_verify.cases.verdict import AssumptionCheck, Evidence
from lmc_verify.report import Report, render_html

SAME = AssumptionCheck("same", "the loss is smooth", True, "cross entropy")
ONCE = AssumptionCheck("once", "no unit is dropped", True)


def other(holds: bool | None, detail: str = "") -> AssumptionCheck:
    return AssumptionCheck("other", "beta is 0", holds, detail)


def bodies(report: Report) -> list[str]:
    return re.findall(r'<div class="body" id="case-\d+">.*?</div>\n</details>', render_html(report), flags=re.DOTALL)


def test_assumptions_are_told_with_the_cases_that_differ(tmp_path: Path) -> None:
    trials = [
        a_trial(seed=1, assumptions=[SAME, other(True), ONCE]),
        a_trial(seed=2, assumptions=[SAME, other(False, "fresh values are mixed in")]),
        a_trial(seed=3, assumptions=[SAME, other(True, "a detail")]),
    ]
    built = a_report(tmp_path, trials)
    (section,) = built.sections
    special = [section.special_assumptions(case) for case in section.cases]
    assert special == [(other(True), ONCE), (other(False, "fresh values are mixed in"),), (other(True, "a detail"),)]
    first, second, _ = bodies(built)
    assert "beta is 0" in first
    assert "(fails: fresh values are mixed in)" in second
    assert "the loss is smooth" not in first + second
    assert "the loss is smooth" in render_html(built)


def test_settings_of_all_cases_are_told_once(tmp_path: Path) -> None:
    built = a_report(tmp_path, [a_trial(width=16, seed=1), a_trial(width=32, seed=1)])
    first, second = bodies(built)
    assert "<dd>16</dd>" in first
    assert "<dd>32</dd>" in second
    assert "<dt>data set</dt>" not in first + second
    assert "data set karate" in render_html(built)
    folder = tmp_path / "one"
    folder.mkdir()
    (alone,) = bodies(a_report(folder, [a_trial(width=16)]))
    assert "<dt>data set</dt><dd>karate</dd>" in alone


def test_evidence_is_told_by_group_and_unit(tmp_path: Path) -> None:
    rows = [
        Evidence("layer 1", 0.25, 1e-13, "norm", "bias"),
        Evidence("layer 2", 0.5, 1e-13, "norm", "bias"),
        Evidence("draws", 3.0, None, "", "totals"),
    ]
    (body,) = bodies(a_report(tmp_path, [a_trial(evidence=rows)]))
    table = body.split('<table class="evidence">')[1].split("</table>")[0]
    assert table.count("<tbody>") == table.count("</tbody>") == 2
    assert table.count("bias, in units of: norm") == 1
    assert ">totals<" in table
    assert [words for row in rows for words in (row.quantity,) if f">{words}<" not in table] == []
    assert ">0.25<" in table
