"""Claim: a report shows what asv recorded, ratios first, with units, intervals, commits and machines, and nothing else.

The results are written by asv itself, in its own format.
"""

from __future__ import annotations

import json
import math
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from lmc_verify.cli.app import app
from lmc_verify.errors import InvalidInputError
from lmc_verify.report import Report, build_report, load_benchmarks, render_html, render_json, render_markdown
from lmc_verify.runs.records import Records

asv_results = pytest.importorskip("asv.results")
asv_runner = pytest.importorskip("asv.runner")

OLD, NEW = "1" * 40, "2" * 40
TIME = {
    "name": "bench_exact.ExactPass.time_exact_pass",
    "type": "time",
    "unit": "seconds",
    "version": "a",
    "param_names": ["dataset", "device"],
    "params": [["'digits'", "'cora'"], ["'cpu'", "'cuda'"]],
}
MEMORY = {**TIME, "name": "bench_exact.Memory.peakmem_pass", "type": "peakmemory", "unit": "bytes"}
RATIO = {
    **TIME,
    "name": "bench_ratios.Ratio.track_exact_over_pyg",
    "type": "track",
    "unit": "ratio",
    "param_names": [],
    "params": [],
}
BENCHMARKS = [TIME, MEMORY, RATIO]


def record(
    folder: Path,
    commit: str,
    day: int,
    measured: dict[str, list[Any]],
    *,
    machine: str = "amber",
    benchmarks: list[dict[str, Any]] = BENCHMARKS,
) -> None:
    """Write results of one commit with asv; a list of samples, a number, None (failed) or NaN for each combination."""
    details = {"machine": machine, "cpu": "Abacus 3", "num_cpu": "2", "ram": "16000000000", "os": "Linux 6"}
    date = 1_700_000_000_000 + day * 86_400_000
    results = asv_results.Results(details, {}, commit, date, "3.11", "virtualenv-py3.11", {})
    for benchmark in benchmarks:
        values = measured.get(str(benchmark["name"]))
        if values is None:
            continue
        found = asv_runner.BenchmarkResult(
            result=[True if isinstance(value, list) else value for value in values],
            samples=[value if isinstance(value, list) else None for value in values],
            number=[1 if isinstance(value, list) else None for value in values],
            errcode=0,
            stderr="",
            profile=None,
        )
        results.add_result(benchmark, found, record_samples=True)
    results.save(str(folder))
    (folder / machine / "machine.json").write_text(json.dumps({"machine": machine, "version": 1}))
    listed = {str(item["name"]): {**item, "code": ""} for item in benchmarks}
    (folder / "benchmarks.json").write_text(json.dumps({**listed, "version": 2}))


@pytest.fixture
def results(tmp_path: Path) -> Path:
    folder = tmp_path / "results"
    samples = [0.012, 0.013, 0.0125, 0.0121, 0.0129, 0.0124, 0.0126, 0.0128, 0.0122, 0.0123]
    record(
        folder,
        OLD,
        1,
        {
            str(TIME["name"]): [[9.0, 9.0], math.nan, [2.0] * 8, math.nan],
            str(RATIO["name"]): [[0.5] * 9],
        },
    )
    record(
        folder,
        NEW,
        2,
        {
            str(TIME["name"]): [samples, math.nan, None, math.nan],
            str(MEMORY["name"]): [300_000_000, math.nan, 4_500_000_000, math.nan],
        },
    )
    return folder


@pytest.fixture
def report(tmp_path: Path, results: Path) -> Report:
    with Records.create_or_open(tmp_path / "records.sqlite") as records:
        run = records.start_run("s", "A run", {"alpha_total": 1e-6}, {"python": "3.11"})
        records.finish_run(run, "finished")
        built = build_report(records, run, {})
    return replace(built, benchmarks=load_benchmarks(results))


def test_rows_have_value_unit_interval_commit_and_machine(results: Path) -> None:
    section = load_benchmarks(results)
    rows = {(row.benchmark, row.label): row for row in section.rows}
    exact = rows[str(TIME["name"]), "digits, cpu"]
    assert exact.value == pytest.approx(0.01245, rel=1e-3)
    assert exact.unit_word == "ms"
    assert exact.shown in ("12.4", "12.5")
    assert exact.low is not None
    assert exact.high is not None
    assert 0.012 <= exact.low <= exact.value <= exact.high <= 0.013
    assert re.fullmatch(r"\[12(\.\d)?, 1[23](\.\d)?\]", exact.interval)
    assert (exact.commit, exact.machine, exact.environment) == (NEW, "amber", "virtualenv-py3.11")
    assert exact.parameters == (("dataset", "digits"), ("device", "cpu"))
    assert exact.samples == 10
    memory = rows[str(MEMORY["name"]), "cora, cpu"]
    assert (memory.shown, memory.unit_word, memory.interval, memory.samples) == ("4.5", "GB", "–", None)
    assert section.machines[0].description == "Abacus 3, 2 CPUs, 16 GB, Linux 6"


def test_the_newest_commit_counts_and_older_ones_fill_what_it_does_not_have(results: Path) -> None:
    section = load_benchmarks(results)
    commits = {(row.benchmark, row.label): row.commit for row in section.rows}
    assert commits == {
        (RATIO["name"], "–"): OLD,
        (TIME["name"], "digits, cpu"): NEW,
        (MEMORY["name"], "digits, cpu"): NEW,
        (MEMORY["name"], "cora, cpu"): NEW,
    }


def test_a_failure_is_told_and_not_covered_by_an_older_success(results: Path) -> None:
    section = load_benchmarks(results)
    assert section.failed == (f"{TIME['name']}(cora, cpu)",)
    assert section.skipped == 4  # cuda, of two benchmarks on two data sets


def test_ratios_come_first_in_every_format(report: Report) -> None:
    assert report.benchmarks is not None
    assert report.benchmarks.rows[0].unit == "ratio"
    for rendered in (render_html(report), render_markdown(report)):
        places = [rendered.rindex(str(item["name"]).rpartition(".")[2]) for item in (RATIO, TIME, MEMORY)]
        assert places == sorted(places)
        for shown in ("2222222", "amber", "ms", "GB", "Abacus 3", "99%", "failed" if "|" in rendered else "Failed"):
            assert shown in rendered


def test_the_section_is_in_json_and_absent_where_it_was_not_asked_for(report: Report) -> None:
    document = json.loads(render_json(report))
    rows = document["benchmarks"]["rows"]
    assert [row["unit"] for row in rows] == ["ratio", "seconds", "bytes", "bytes"]
    assert rows[1]["parameters"] == {"dataset": "digits", "device": "cpu"}
    without = replace(report, benchmarks=None)
    assert json.loads(render_json(without))["benchmarks"] is None
    assert "Benchmarks" not in render_html(without)
    assert "## Benchmarks" not in render_markdown(without)


def test_hostile_names_are_shown_and_never_markup(tmp_path: Path, report: Report) -> None:
    bad = {**RATIO, "unit": "<i>&|`", "param_names": ["|"], "params": [["'<b>|`'"]]}
    record(tmp_path / "bad", NEW, 1, {str(bad["name"]): [3.0]}, machine="<u>|", benchmarks=[bad])
    changed = replace(report, benchmarks=load_benchmarks(tmp_path / "bad"))
    html, markdown = render_html(changed), render_markdown(changed)
    assert "<b>|" not in html
    assert "<u>|" not in html
    assert "&lt;b&gt;|`" in html
    (line,) = (line for line in markdown.splitlines() if "track_exact_over_pyg" in line)
    assert len(re.findall(r"(?<!\\)\|", line)) == 8
    assert "<b>" not in line


def test_every_machine_keeps_its_own_rows(results: Path) -> None:
    record(results, NEW, 2, {str(RATIO["name"]): [[0.7] * 9]}, machine="beryl")
    section = load_benchmarks(results)
    ratios = [(row.machine, row.value) for row in section.rows if row.unit == "ratio"]
    assert ratios == [("amber", 0.5), ("beryl", 0.7)]
    assert [machine.name for machine in section.machines] == ["amber", "beryl"]


def test_results_of_a_changed_benchmark_are_left_out(results: Path) -> None:
    changed = [{**item, "version": "b"} if item is TIME else item for item in BENCHMARKS]
    listed = {str(item["name"]): {**item, "code": ""} for item in changed}
    (results / "benchmarks.json").write_text(json.dumps({**listed, "version": 2}))
    assert all(row.benchmark != TIME["name"] for row in load_benchmarks(results).rows)


def test_a_folder_without_results_is_refused(tmp_path: Path, results: Path) -> None:
    with pytest.raises(InvalidInputError, match="nowhere holds no benchmark results that asv can read"):
        load_benchmarks(tmp_path / "nowhere")
    for file in results.glob("amber/*virtualenv*"):
        file.unlink()
    with pytest.raises(InvalidInputError, match=r"holds no results of any commit.*--set-commit-hash"):
        load_benchmarks(results)


def test_a_damaged_results_file_is_left_out_and_told_on_standard_error(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (results / "amber" / "33333333-virtualenv-py3.11.json").write_text("{")
    assert len(load_benchmarks(results).rows) == 4
    assert capsys.readouterr().out == ""


def test_without_asv_the_message_says_what_to_install(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "asv.results", None)
    with pytest.raises(InvalidInputError, match=r"install 'lmc-verify\[bench\]'"):
        load_benchmarks(results)


@pytest.mark.slow
def test_the_command_line_adds_the_section(report: Report, results: Path, tmp_path: Path) -> None:
    runner = CliRunner()
    out = tmp_path / "out"
    words = ["report", str(tmp_path / "records.sqlite"), "--out", str(out)]
    nothing_checked = 6
    assert runner.invoke(app, [*words, "--benchmarks", str(results), "--json"]).exit_code == nothing_checked
    assert "track_exact_over_pyg" in (out / "report.html").read_text()
    assert runner.invoke(app, words).exit_code == nothing_checked
    assert "track_exact_over_pyg" not in (out / "report.html").read_text()
    refused = runner.invoke(app, [*words, "--benchmarks", str(tmp_path / "nowhere")])
    assert isinstance(refused.exception, InvalidInputError)
