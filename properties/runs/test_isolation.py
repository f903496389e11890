"""A trial cannot take others with it, and what a run did not get to is never left unsaid."""

from __future__ import annotations

import io
import json
import os
import pickle
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from common.processes import gone
from pydantic import ValidationError

from lmc_verify.cases.workspace import Workspace
from lmc_verify.cli.run import _claim_texts
from lmc_verify.controls import CONTROLS
from lmc_verify.errors import InvalidInputError
from lmc_verify.report import build_report, render_html, render_junit, render_markdown
from lmc_verify.runs import RunResult, Suite, run_suite
from lmc_verify.runs import execution as execution_module
from lmc_verify.runs.planned import Planned, run_planned
from lmc_verify.runs.records import Records
from lmc_verify.workers import heartbeat as heartbeat_module
from lmc_verify.workers.pool import Pool
from lmc_verify.workers.worker import pack, read_message

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")

CHECK: dict[str, Any] = {
    "claim": "theorem-1/unbiased",
    "dataset": "karate",
    "estimator": ["backward-sgd", "lmc"],
    "model": {"layers": 2, "width": 4},
    "design": {"parts": 3, "per_batch": 1},
    "expect": "EXACT",
}
LOOPS = """
import os, signal, sys, time

def exits(): sys.exit(0)
def vanishes(): os._exit(0)
def segfaults(): os.kill(os.getpid(), signal.SIGSEGV)
def hangs(): time.sleep(600)
def raises(): raise KeyboardInterrupt
def waits(file, seconds):
    open(file, "w").write(str(os.getpid()))
    time.sleep(seconds)
"""


def suite_of(loops: Path, *audits: str, arguments: dict[str, Any] | None = None, **changes: Any) -> Suite:
    tables = [{"function": f"{loops}:{name}", "expect": "EXACT", "arguments": arguments or {}} for name in audits]
    values = {"name": "tiny", "title": "Tiny", "controls": ["sound-lmc"], "check": [CHECK], "audit": tables}
    return Suite.model_validate(values | changes)


@pytest.fixture
def loops(tmp_path: Path) -> Path:
    file = tmp_path / "loops.py"
    file.write_text(LOOPS)
    return file


@pytest.fixture
def records(tmp_path: Path) -> Iterator[Records]:
    with Records.create_or_open(tmp_path / "out" / "records.sqlite") as opened:
        yield opened


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    with Pool(2) as made:
        made.start(modules=("lmc_verify.runs.execution", "lmc_verify.audits.auditor"))
        yield made


def told(result: RunResult) -> list[str]:
    return [f"{trial.verdict.outcome.value} {trial.verdict.summary}" for trial in result.trials]


# --- isolation ---


@pytest.mark.slow
def test_whatever_a_trial_does_is_its_own_error(loops: Path, records: Records, pool: Pool) -> None:
    names = ("exits", "vanishes", "segfaults", "hangs", "raises")
    suite = suite_of(loops, *names)
    result = run_suite(suite, records, Workspace(), engine=pool, timeout=6.0)
    first, rest = told(result)[:3], told(result)[3:]
    assert [words.split()[0] for words in first] == ["EXACT"] * 3
    for words, wanted in zip(
        rest,
        ("SystemExit", "exit status 0", "SIGSEGV: a segmentation fault", "no result within 6 s", "KeyboardInterrupt"),
        strict=True,
    ):
        assert words.startswith("ERROR")
        assert wanted in words
    assert result.exit_code == 5
    assert records.run(result.run_id).status == "finished"
    assert records.unfinished(result.run_id) == []
    assert records.trials(result.run_id) == list(result.trials), "in the order of the plan, whatever came first"
    resumed = run_suite(suite, records, Workspace(), engine=pool, timeout=3.0, resume=True)
    assert resumed.reused == 8, "a crash is not met again"
    assert told(resumed) == told(result)


def test_here_too_only_an_interrupt_ends_the_run(
    loops: Path, records: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    def leave(*_: Any) -> None:
        raise SystemExit(3)

    monkeypatch.setattr(execution_module, "run_planned", leave)
    result = run_suite(suite_of(loops), records, Workspace())
    assert all(words.startswith("ERROR SystemExit: 3") for words in told(result))
    assert result.exit_code == 5


@pytest.mark.slow
def test_verdicts_do_not_depend_on_where_they_are_made(loops: Path, records: Records, pool: Pool) -> None:
    here = run_suite(suite_of(loops), records, Workspace())
    there = run_suite(suite_of(loops), records, Workspace(), engine=pool)
    assert [trial.verdict for trial in here.trials] == [trial.verdict for trial in there.trials]


@pytest.mark.slow
def test_a_time_limit_of_a_table_is_its_own(loops: Path, records: Records) -> None:
    limited = CHECK | {"timeout": 1e-4, "estimator": "gas"}
    suite = suite_of(loops, check=[CHECK, limited])
    assert [item.timeout for item in suite.plan()] == [None, None, 1e-4, None]
    with Pool(1) as pool:
        result = run_suite(suite, records, Workspace(), engine=pool, timeout=60.0)
    assert [words.split()[0] for words in told(result)] == ["EXACT", "EXACT", "ERROR", "EXACT"]
    assert "no result within 0.0001 s" in told(result)[2]


@pytest.mark.slow
def test_tables_of_every_kind_have_limits(loops: Path, records: Records) -> None:
    search = {"claim": "theorem-1/unbiased", "estimator": "lmc", "expect": "none", "examples": 10**6}
    race = {"dataset": "karate", "contestants": [{"estimator": "gas", "label": "gas"}], "seeds": 1}
    trainer = {"steps": 10**6, "unit": "step", "evaluate_every": 1000}
    suite = suite_of(
        loops,
        check=[],
        controls=False,
        audit=[{"function": f"{loops}:hangs", "expect": "EXACT", "timeout": 1.5}],
        counterexample=[{**search, "timeout": 2.5}],
        race=[{**race, "trainer": trainer, "timeout": 3.5}],
    )
    with Pool(1) as pool:
        result = run_suite(suite, records, Workspace(), engine=pool, timeout=500.0)
    (trial,), (searched,) = result.trials, result.searches
    assert "no result within 1.5 s" in trial.verdict.summary
    assert searched.crashed
    assert "no result within 2.5 s" in searched.summary
    assert len(result.race_runs) == 2, "the one, and the one that sets the target"
    assert all(run.outcome == "failed" and "no result within 3.5 s" in run.entry.reason for run in result.race_runs)
    unlimited = Suite.model_validate(_without_limits(suite.model_dump(exclude_unset=True)))
    for kind in (Suite.audits, Suite.searches, Suite.races):
        assert [item.key for item in kind(suite)] == [item.key for item in kind(unlimited)], "not part of what it is"
    assert Suite.of_audit(suite.audits()[0]).audits()[0].timeout == 1.5


def _without_limits(tables: dict[str, Any]) -> dict[str, Any]:
    def without(value: Any) -> Any:
        return [{k: v for k, v in table.items() if k != "timeout"} for table in value]

    return {key: without(value) if isinstance(value, list) else value for key, value in tables.items()}


@pytest.mark.parametrize("timeout", [0.0, -1.0, float("nan"), float("inf")])
def test_a_time_limit_is_a_number_of_seconds(timeout: float, loops: Path, records: Records) -> None:
    with pytest.raises(InvalidInputError, match=r"timeout is .*must be a number of seconds above 0"):
        run_suite(suite_of(loops), records, Workspace(), timeout=timeout)
    with pytest.raises(ValidationError, match="timeout"):
        suite_of(loops, check=[CHECK | {"timeout": timeout}])
    for table in ("audit", "counterexample", "race"):
        with pytest.raises(ValidationError, match=f"{table}.0.timeout"):
            suite_of(loops, **{table: [{"timeout": timeout}]})


@pytest.mark.slow
def test_results_are_recorded_as_they_come(loops: Path, records: Records, pool: Pool, tmp_path: Path) -> None:
    file, seen = tmp_path / "begun", []
    suite = suite_of(loops, "waits", "exits", arguments={}, check=[], controls=False)
    waits = suite.audit[0].model_copy(update={"arguments": {"file": str(file), "seconds": 4.0}})
    suite = suite.model_copy(update={"audit": [waits, suite.audit[1]]})
    result = run_suite(
        suite,
        records,
        Workspace(),
        engine=pool,
        listen=lambda planned, trial, reason: seen.append((planned.label, len(records.trials(1)))),
    )
    assert [label.split(":")[1].split()[0] for label, _ in seen] == ["exits", "waits"]
    assert [amount for _, amount in seen] == [1, 2]
    assert [trial.key for trial in records.trials(result.run_id)] == [planned.key for planned in suite.audits()]


# --- runs that did not finish ---


def unfinished(records: Records, loops: Path, status: str | None) -> int:
    """Record a run of three checks of which one has a result."""

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    finish = Records.finish_run

    def end(records: Records, run: int, _: str) -> None:
        if status is not None:
            finish(records, run, status)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Records, "finish_run", end)
        with pytest.raises(KeyboardInterrupt):
            run_suite(suite_of(loops), records, Workspace(), listen=stop)
    (run,) = records.runs()
    return run.id


@pytest.mark.parametrize(
    ("status", "state", "code", "words"),
    [
        ("interrupted", "interrupted", 130, "the run did not finish (1 of 3 planned checks): it was interrupted"),
        pytest.param(
            "failed",
            "failed",
            5,
            "the run did not finish (1 of 3 planned checks): it ended with an error",
            marks=pytest.mark.slow,
        ),
        ("finished", "finished", 5, "the run did not finish (1 of 3 planned checks): results are missing"),
        pytest.param(
            None,
            "running",
            5,
            "the run has not finished yet (1 of 3 planned checks): it is still under way",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_what_has_no_result_is_in_every_format(
    status: str | None, state: str, code: int, words: str, loops: Path, records: Records
) -> None:
    run = unfinished(records, loops, status)
    report = build_report(records, run, _claim_texts())
    assert (report.state, report.exit_code) == (state, code)
    assert words in report.headline
    assert "nothing skipped" not in report.headline
    assert report.level != "passed"
    missing = [item.label for item in report.unfinished]
    assert missing == [planned.label for planned in suite_of(loops).plan()[1:]]
    root = ElementTree.fromstring(render_junit(report))
    assert root.get("errors") == "2"
    names = [case.get("name", "") for case in root.iter("testcase") if case.find("error") is not None]
    assert all(name.startswith(label) for name, label in zip(names, missing, strict=True))
    for rendered in (render_html(report), render_markdown(report)):
        assert "Without a result" in rendered
        assert all(label.split()[0] in rendered for label in missing)
        assert "every planned check was run" not in rendered


def test_a_run_whose_process_is_gone_is_killed(loops: Path, records: Records, monkeypatch: pytest.MonkeyPatch) -> None:
    run = records.run(unfinished(records, loops, None))
    assert records.state(run) == "running"
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    connection = sqlite3.connect(records.path)
    beat = connection.execute("SELECT beat FROM processes").fetchone()[0]
    connection.execute("UPDATE processes SET pid = ?", (child.pid,))
    connection.commit()
    assert records.state(run) == "killed"
    connection.execute("UPDATE processes SET host = 'elsewhere'")
    connection.commit()
    assert records.state(run) == "running", "only its signs of life are known of another machine"
    connection.execute("UPDATE processes SET beat = ?, pid = ?", (f"2020{beat[4:]}", os.getpid()))
    connection.commit()
    assert records.state(run) == "killed"
    connection.execute("DELETE FROM processes")
    connection.commit()
    connection.close()
    assert records.state(run) == "killed"


def test_a_heartbeat_goes_on_through_errors_and_ends_with_its_block() -> None:
    from contextlib import nullcontext

    beats: list[float] = []

    def beat() -> None:
        beats.append(time.monotonic())
        if len(beats) == 1:
            raise InvalidInputError("the disk is full")

    with heartbeat_module.heartbeat(lambda: nullcontext(beat), 0.02):
        while len(beats) < 3:
            time.sleep(0.01)
    amount = len(beats)
    time.sleep(0.1)
    assert len(beats) == amount


# --- the command line ---


COMMAND = [sys.executable, "-m", "lmc_verify.cli"]


def lmc(*arguments: object) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "LMC_VERIFY_IN_PROCESS"}
    return subprocess.run([*COMMAND, *map(str, arguments)], capture_output=True, text=True, env=environment)


def waiting(tmp_path: Path, loops: Path, jobs: int) -> tuple[subprocess.Popen[str], int]:
    """Start a run with a trial that hangs; return it, and the id of the worker, once the other trials are recorded."""
    file = tmp_path / "pid"
    (tmp_path / "s.toml").write_text(
        f'name = "s"\ntitle = "S"\ncontrols = false\n[[check]]\nclaim = "theorem-1/unbiased"\ndataset = "karate"\n'
        f'estimator = ["backward-sgd", "lmc"]\ndesign = {{ parts = 3, per_batch = 1 }}\nexpect = "EXACT"\n'
        f'[[audit]]\nfunction = "{loops}:waits"\narguments = {{ file = "{file}", seconds = 600 }}\nexpect = "EXACT"\n'
    )
    environment = {key: value for key, value in os.environ.items() if key != "LMC_VERIFY_IN_PROCESS"}
    run = subprocess.Popen(
        [*COMMAND, "run", "s.toml", "--out", "out", "--jobs", str(jobs)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env=environment,
    )
    while not (file.exists() and file.read_text()):
        assert run.poll() is None, run.communicate()
        time.sleep(0.05)
    time.sleep(0.5)
    return run, int(file.read_text())


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_run_as_interrupted(number: signal.Signals, loops: Path, tmp_path: Path) -> None:
    run, worker = waiting(tmp_path, loops, jobs=1)
    run.send_signal(number)
    _, err = run.communicate(timeout=30)
    assert run.returncode == 130
    assert "interrupted; what is done is in" in err
    assert "The run did not finish (2 of 3 planned checks): it was interrupted" in err.replace("; the", ". The")
    assert gone(worker, within=10.0)
    assert (tmp_path / "out" / "junit.xml").exists()
    report = lmc("report", tmp_path / "out", "--json")
    told = json.loads(report.stdout)
    assert (report.returncode, told["exit_code"], told["state"]) == (130, 130, "interrupted")
    assert [item["trial"].split(":")[-1].split()[0] for item in told["unfinished"]] == ["waits"]


@pytest.mark.slow
def test_a_killed_run_leaves_no_worker_and_is_not_finished(loops: Path, tmp_path: Path) -> None:
    run, worker = waiting(tmp_path, loops, jobs=2)
    alive = lmc("report", tmp_path / "out")
    assert alive.returncode == 5
    assert "still under way" in alive.stdout
    run.kill()
    run.communicate()
    assert gone(worker, within=10.0)
    report = lmc("report", tmp_path / "out")
    assert report.returncode == 5
    assert "the run did not finish (2 of 3 planned checks): its process is gone" in report.stdout
    root = ElementTree.fromstring((tmp_path / "out" / "junit.xml").read_text())
    assert root.get("errors") == "1"


@pytest.mark.slow
def test_a_folder_that_cannot_be_written_is_no_usage_error(tmp_path: Path) -> None:
    closed = Path("/proc/lmc-verify")  # not even root may write there
    if not closed.parent.exists():
        closed = tmp_path / "closed"
        closed.mkdir(mode=0o500)
    done = lmc("run", "smoke", "--out", closed / "out")
    assert done.returncode == 5
    assert "cannot write to the output folder" in done.stderr
    assert lmc("run", "no-such-suite").returncode == 2


@pytest.mark.parametrize("name", CONTROLS)
def test_every_control_can_be_given_to_a_worker(name: str) -> None:
    planned = Planned.of_control(CONTROLS[name])
    content = read_message(io.BytesIO(pack((run_planned, (planned,)), by_value=True)))
    _, (found,) = pickle.loads(content or b"")
    assert found.key == planned.key
