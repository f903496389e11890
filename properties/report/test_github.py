"""Under GitHub Actions a report is the step's summary and at most ten annotations, and elsewhere neither."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from common.report_helpers import CONTROL, a_report, a_trial

from lmc_verify.cases import CaseDescription
from lmc_verify.report import Report, annotation_lines, announce
from lmc_verify.report.formats.github import MOST_ANNOTATIONS, SUMMARY_LIMIT
from lmc_verify.runs import NotRun

COMMAND = re.compile(r"::(error|warning|notice) title=([^:,\r\n]*)::([^\r\n]*)")
ABSENT = NotRun("theorem-1/unbiased", "raw files absent", CaseDescription(dataset="cora", estimator="lmc"))


def failing(folder: Path, amount: int, summary: str = "off by 0.5") -> Report:
    trials = [a_trial(outcome="REFUTED", expected="EXACT", seed=n, summary=summary) for n in range(amount)]
    return a_report(folder, [*trials, CONTROL], not_run=[ABSENT])


def test_a_run_as_expected_is_one_notice(tmp_path: Path) -> None:
    built = a_report(tmp_path, [a_trial(), CONTROL])
    assert annotation_lines(built) == [f"::notice title=A run::{built.headline}"]


def test_errors_come_first_then_what_was_not_run(tmp_path: Path) -> None:
    lines = annotation_lines(failing(tmp_path, 2))
    found = [match.groups() for match in map(COMMAND.fullmatch, lines) if match]
    assert [kind for kind, _, _ in found] == ["error", "error", "warning", "error"]
    assert found[0][1] == "theorem-1/unbiased%3A REFUTED%2C expected EXACT"
    assert found[0][2].endswith("off by 0.5")
    assert found[2][1:] == ("1 planned check not run", "raw files absent")


@pytest.mark.parametrize(("amount", "left"), [(8, None), (9, "1 warning, 1 error"), (40, "32 errors, 1 warning")])
def test_there_are_at_most_ten_and_the_last_counts_the_rest(tmp_path: Path, amount: int, left: str | None) -> None:
    built = failing(tmp_path, amount)
    lines = annotation_lines(built)
    assert len(lines) == MOST_ANNOTATIONS == 10
    if left is None:
        assert lines[-1].endswith(built.headline)
    else:
        assert f"{left} left out here" in lines[-1]


def test_without_controls_there_is_a_warning(tmp_path: Path) -> None:
    assert "::warning title=no control was run::nothing shows that this verifier can fail" in annotation_lines(
        a_report(tmp_path, [a_trial()])
    )


def test_text_cannot_end_a_command_or_begin_one(tmp_path: Path) -> None:
    built = failing(tmp_path, 1, "100% off\r\n::error title=x::forged, really" + "x" * 10_000)
    lines = annotation_lines(built)
    for line in lines:
        assert COMMAND.fullmatch(line)
    assert "100%25 off%0D%0A::error" in lines[0]
    assert max(map(len, lines)) < 1_000


def test_nothing_is_said_elsewhere(tmp_path: Path) -> None:
    stream = io.StringIO()
    for environment in ({}, {"GITHUB_ACTIONS": "false"}, {"GITHUB_STEP_SUMMARY": ""}):
        announce(a_report(tmp_path, [a_trial()]), environment, stream)
    assert stream.getvalue() == ""


def test_the_summary_is_added_to_what_the_step_has_said(tmp_path: Path) -> None:
    file, stream = tmp_path / "summary.md", io.StringIO()
    file.write_text("# Before\n", encoding="utf-8")
    built = failing(tmp_path, 3)
    announce(built, {"GITHUB_STEP_SUMMARY": str(file), "GITHUB_ACTIONS": "true"}, stream)
    written = file.read_text(encoding="utf-8")
    assert written.startswith("# Before\n# A run\n")
    assert built.headline in written
    assert stream.getvalue().splitlines() == annotation_lines(built)


@pytest.mark.slow
@pytest.mark.parametrize("room", [30_000, 2_500, 100])
def test_the_summary_of_a_step_stays_within_its_limit(tmp_path: Path, room: int) -> None:
    file, stream = tmp_path / "summary.md", io.StringIO()
    file.write_bytes(b"x" * (SUMMARY_LIMIT - room))
    announce(failing(tmp_path, 200), {"GITHUB_STEP_SUMMARY": str(file)}, stream)
    size = file.stat().st_size
    assert size <= SUMMARY_LIMIT
    if room > 2_000:
        assert size > SUMMARY_LIMIT - room
        assert stream.getvalue() == ""
    else:
        assert size == SUMMARY_LIMIT - room
        assert "::warning title=The step's summary cannot be written::" in stream.getvalue()


def test_a_summary_that_cannot_be_written_is_no_failure(tmp_path: Path) -> None:
    stream = io.StringIO()
    announce(failing(tmp_path, 1), {"GITHUB_STEP_SUMMARY": str(tmp_path / "no" / "folder.md")}, stream)
    assert "cannot be written" in stream.getvalue()
