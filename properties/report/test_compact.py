"""What is the same in every case of a claim is told once, and what is not is told with its case."""

from __future__ import annotations

import html
import re
from dataclasses import replace
from pathlib import Path

from common.report_helpers import a_report, a_trial

from lmc_verify.cases.verdict import AssumptionCheck, Evidence
from lmc_verify.report import Report, render_html
from lmc_verify.report.formats.breaks import path
from lmc_verify.runs import Trial

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


def test_a_set_of_assumptions_that_several_cases_share_is_told_once(tmp_path: Path) -> None:
    kinds = [other(True), other(False, "fresh values"), other(True), other(None), other(False, "fresh values")]
    trials = [a_trial(seed=number, assumptions=[SAME, kind]) for number, kind in enumerate(kinds)]
    built = a_report(tmp_path, trials)
    (section,) = built.sections
    page, shown = render_html(built), bodies(built)
    assert [item.amount for item in section.assumption_sets.values()] == [2, 2]
    assert page.count("beta is 0") == 1 + 2 + 1  # the claim's own list, its sets, and the case that shares with none
    sets = {item.anchor: item.checks for item in section.assumption_sets.values()}
    for kind, body in zip(kinds, shown, strict=True):
        links = re.findall(r'href="#([^"]*-set-\d)"', body)
        assert [sets[anchor] for anchor in links] == ([] if kind.holds is None else [(kind,)])
        assert ("beta is 0" in body) == (kind.holds is None)
    for anchor, (check,) in sets.items():
        told = page.split(f'id="{anchor}"')[1].split("</div>")[0]
        assert ("fails: fresh values" in told) == (check.holds is False)


def with_traces(seed: int, hashes: dict[str, str], seeds: dict[str, int]) -> Trial:
    trial = a_trial(seed=seed)
    return replace(trial, verdict=replace(trial.verdict, hashes=hashes, seeds=seeds))


def test_hashes_and_seeds_of_all_cases_are_told_once(tmp_path: Path) -> None:
    hashes = [{"graph": "aaaa", "code": "0.1+c"}, {"graph": "bbbb", "code": "0.1+c"}, {"code": "0.1+c"}]
    seeds = [{"root": 7, "spawn": 1}, {"root": 7, "spawn": 2}, {"root": 7}]
    made = [with_traces(n, *pair) for n, pair in enumerate(zip(hashes, seeds, strict=True))]
    built = a_report(tmp_path, made)
    (section,) = built.sections
    assert (section.common_hashes, section.common_seeds) == ({"code": "0.1+c"}, {"root": 7})
    first, second, third = bodies(built)
    assert "Hashes: graph <code>aaaa</code>. Seeds: spawn <code>1</code>." in first
    assert "Hashes: graph <code>bbbb</code>. Seeds: spawn <code>2</code>." in second
    assert "Hashes" not in third
    assert "Seeds" not in third
    page = render_html(built)
    assert page.count("0.1+c") == 1
    assert "Hashes in all of them: code <code>0.1+c</code>. Seeds in all of them: root <code>7</code>." in page


def test_a_single_case_has_its_hashes_and_seeds_itself(tmp_path: Path) -> None:
    (body,) = bodies(a_report(tmp_path, [with_traces(1, {"graph": "aaaa"}, {"root": 7})]))
    assert "Hashes: graph <code>aaaa</code>. Seeds: root <code>7</code>." in body


def test_a_command_breaks_between_its_words(tmp_path: Path) -> None:
    trial = a_trial()
    command = "lmc-verify check a/b  --set estimator.beta=0.4 --strict --set 'x=\"p q\"' word --last"
    (body,) = bodies(a_report(tmp_path, [replace(trial, command=command)]))
    code = body.split("<pre><code>")[1].split("</code>")[0]
    assert html.unescape(re.sub(r"</?span>", "", code)) == command
    held = [html.unescape(words) for words in re.findall(r"<span>(.*?)</span>", code)]
    assert held[:4] == ["lmc-verify", "a/b", "--set estimator.beta=0.4", "--strict"]
    bare = re.sub(r"<span>.*?</span>", "", code).split()
    assert [word for word in bare if not word.isalnum()] == []


def test_the_list_of_assumptions_has_the_ids_that_sentences_use(tmp_path: Path) -> None:
    page = render_html(a_report(tmp_path, [a_trial(assumptions=[SAME])]))
    assert "<code>same</code>: the loss is smooth" in page


def test_a_path_breaks_behind_its_separators() -> None:
    assert path("loops/gas.py:made") == "loops/<wbr>gas.py:<wbr>made"
    assert path("a <b>: c/") == "a &lt;b&gt;: c/"
