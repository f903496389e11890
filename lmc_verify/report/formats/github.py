"""A report under GitHub Actions: the summary of the step, and at most ten annotations of its log.

`$GITHUB_STEP_SUMMARY` names a file for Markdown, of at most 1 MiB for each step. Lines that begin with ``::error``,
``::warning`` or ``::notice`` become annotations; GitHub keeps ten of each kind and drops the others without a word, so
the last of ten says what is left out. Source: GitHub Docs, "Workflow commands for GitHub Actions".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from lmc_verify.report.formats.markdown import LIMIT, render_markdown
from lmc_verify.report.model import text
from lmc_verify.report.model.report import Report

__all__ = ["MOST_ANNOTATIONS", "SUMMARY_LIMIT", "annotation_lines", "announce"]

MOST_ANNOTATIONS = 10
"""So many lines are written; the last counts what is left out."""
SUMMARY_LIMIT = 1024 * 1024
"""Bytes that GitHub takes of the summary of one step."""

_LEAST = 2_000  # bytes of a summary that says something
_LONGEST = 500  # characters of a message


@dataclass(frozen=True)
class _Annotation:
    kind: str
    title: str
    message: str

    def __str__(self) -> str:
        title = _escaped(self.title).replace(":", "%3A").replace(",", "%2C")
        return f"::{self.kind} title={title}::{_escaped(self.message)}"


def announce(report: Report, environment: Mapping[str, str], stream: TextIO) -> None:
    """Tell GitHub Actions of a report, where the environment says that it runs this process; else do nothing.

    A summary that cannot be written is said, and is no error: the report is written all the same.

    Args:
        report: the report.
        environment: variables, such as `os.environ`.
        stream: the log of the step.
    """
    summary = environment.get("GITHUB_STEP_SUMMARY")
    if summary:
        try:
            _append(report, Path(summary))
        except OSError as error:
            reason = f"{summary}: {error.strerror or error}; the report itself is written"
            print(_Annotation("warning", "The step's summary cannot be written", reason), file=stream)
    if environment.get("GITHUB_ACTIONS") == "true":
        for line in annotation_lines(report):
            print(line, file=stream)


def annotation_lines(report: Report) -> list[str]:
    """Return the lines that become annotations: errors first, at most `MOST_ANNOTATIONS`."""
    found = list(_all(report))
    if len(found) <= MOST_ANNOTATIONS:
        return [str(item) for item in found]
    shown, rest = found[: MOST_ANNOTATIONS - 1], found[MOST_ANNOTATIONS - 1 :]
    counts = Counter(item.kind for item in rest)
    words = ", ".join(text.count(amount, kind) for kind, amount in counts.items())
    shown.append(_Annotation(rest[0].kind, "Left out", f"{words} left out here; all of it is in the report"))
    return [str(item) for item in shown]


def _all(report: Report) -> Iterator[_Annotation]:
    for case in report.failed_controls:
        yield _Annotation("error", f"control {case.label} failed", case.verdict.summary)
    for case in report.unexpected:
        verdict = case.verdict
        found = (
            f"{verdict.claim}: {text.outcome_word(verdict.outcome)}, expected {case.trial.expectation or 'no crash'}"
        )
        yield _Annotation("error", found, f"{case.label}: {verdict.summary}")
    for search in report.unexpected_searches:
        wanted = "one" if search.record.expected == "found" else "none"
        title = f"counterexample to {search.record.claim}: {search.result}, expected {wanted}"
        yield _Annotation("error", title, search.record.summary)
    for run in report.crashed_race_runs:
        yield _Annotation("error", f"{run.entry.label}, seed {run.entry.seed}, crashed", run.entry.reason)
    if report.errors.overspent:
        spent, total = text.level(report.errors.spent), text.level(report.errors.total)
        yield _Annotation("error", "error level overspent", f"statistical checks spent {spent}, more than {total}")
    if not report.controls and report.judges:
        yield _Annotation("warning", "no control was run", "nothing shows that this verifier can fail")
    if report.unfinished:
        words = f"{text.count(len(report.unfinished), 'planned part')}: {report.why_unfinished}"
        yield _Annotation("warning", "without a result", words)
    for reason, items in report.not_run_by_reason:
        yield _Annotation("warning", f"{text.count(len(items), 'planned check')} not run", reason)
    for race in report.races_not_run:
        yield _Annotation("warning", f"{race.title}, {race.dataset}, not run", race.header.reason)
    kind = "error" if report.level == "failed" else "notice"
    yield _Annotation(kind, report.run.title, report.headline)


def _append(report: Report, file: Path) -> None:
    """Add the report to the summary of the step, as much as is left of its limit."""
    taken = file.stat().st_size if file.exists() else 0
    limit = min(LIMIT, SUMMARY_LIMIT - taken)
    if limit < _LEAST:
        raise OSError(f"it already holds {taken:,} bytes of {SUMMARY_LIMIT:,}")
    with file.open("a", encoding="utf-8", errors="replace") as stream:
        stream.write(render_markdown(report, limit=limit - 1, files=False) + "\n")


def _escaped(message: str) -> str:
    """Return a message on one line, with what ends a command escaped."""
    line = text.printable(message)
    line = line if len(line) <= _LONGEST else f"{line[: _LONGEST - 1]}…"
    return line.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
