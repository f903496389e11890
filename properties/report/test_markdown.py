"""Markdown fits a pull request, whatever the run: what is as expected is left out first, and it says so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from common.report_helpers import CONTROL, a_report, a_trial

from lmc_verify.report import render_markdown
from lmc_verify.report.formats.markdown import LIMIT

LONG = "off by 0.5 of the gradient's norm, " * 12


def size(written: str) -> int:
    return len(written.encode())


def rectangular(written: str) -> bool:
    """Whether every table has rows of one length."""
    tables = re.findall(r"(?:^\|.*\|\n)+", written, flags=re.MULTILINE)
    return all(len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1 for table in tables)


def test_a_small_run_is_told_in_full(tmp_path: Path) -> None:
    written = render_markdown(a_report(tmp_path, [a_trial(), CONTROL]))
    assert "Cut to what a pull request can hold" not in written
    assert "## Claims\n" in written
    assert "Is LMC's gradient unbiased when its histories are exact? **Yes, to rounding, on 1 case.**" in written


@pytest.mark.slow
@pytest.mark.parametrize("wrong", [0, 1, 200])
def test_a_large_run_is_cut_and_its_failures_are_not(tmp_path: Path, wrong: int) -> None:
    trials = [
        a_trial(dataset=f"{'long ' * 40}{n % 10}", seed=n, expected="REFUTED" if n < wrong else "EXACT", summary=LONG)
        for n in range(300)
    ]
    built = a_report(tmp_path, [*trials, CONTROL])
    assert size(render_markdown(built, limit=10**9)) > LIMIT
    written = render_markdown(built)
    assert size(written) <= LIMIT == 60_000
    assert "Cut to what a pull request can hold" in written
    assert built.headline in written
    assert "## Claims against estimators" in written
    assert rectangular(written)
    assert written.count("expected REFUTED") >= min(wrong, 12)
    if wrong > 12:
        assert f"and {wrong - 12} more, in the HTML report" in written


@pytest.mark.slow
@pytest.mark.parametrize("limit", [2_000, 700])
def test_the_limit_holds_whatever_it_is(tmp_path: Path, limit: int) -> None:
    built = a_report(tmp_path, [a_trial(seed=n, summary=LONG, expected="REFUTED") for n in range(50)])
    written = render_markdown(built, limit=limit)
    assert size(written) <= limit
    assert built.headline.split(";")[0] in written
    assert written.endswith("The rest is left out: see the HTML report.\n")


def test_what_is_shown_alone_refers_to_no_file(tmp_path: Path) -> None:
    built = a_report(tmp_path, [a_trial(), CONTROL])
    assert "](" not in render_markdown(built, files=False)


def test_what_is_cut_counts_the_answers_that_are_left_out(tmp_path: Path) -> None:
    # Where an estimator's outcomes differ, each is an answer of its own.
    made = [a_trial(estimator=name, outcome=outcome) for name in "abcd" for outcome in ("EXACT", "REFUTED")]
    written = render_markdown(a_report(tmp_path, made), limit=1500)
    assert "3 further answers, for other estimators, histories and settings, in the HTML report.*" in written
