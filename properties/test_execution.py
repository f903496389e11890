"""A run records everything it did, repeats nothing it need not, and never turns a failure into a success."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lmc_verify import execution, provenance, suite
from lmc_verify.case import Workspace
from lmc_verify.claims import CLAIMS, Outcome, Verdict
from lmc_verify.errors import InvalidInputError, LmcVerifyError
from lmc_verify.execution import RunResult, run_planned, run_suite
from lmc_verify.records import Records, Trial
from lmc_verify.report import build_report
from lmc_verify.suite import Planned, Suite

CHECK: dict[str, Any] = {
    "claim": "theorem-1/unbiased",
    "dataset": "karate",
    "estimator": ["backward-sgd", "lmc", "gas"],
    "model": {"layers": 2, "width": 4},
    "design": {"parts": 3, "per_batch": 1},
    "expect": {"backward-sgd": "EXACT", "lmc": "EXACT", "gas": "REFUTED"},
}
ABSENT = CHECK | {"dataset": "cora"}
WORKSPACE = Workspace()


def suite_of(*checks: dict[str, Any], controls: bool | list[str] = False) -> Suite:
    return Suite.model_validate({"name": "tiny", "title": "Tiny", "check": list(checks), "controls": controls})


TINY = suite_of(CHECK, controls=["sound-lmc"])


@pytest.fixture
def records(tmp_path: Path) -> Any:
    with Records.create_or_open(tmp_path / "records.sqlite") as opened:
        yield opened


@pytest.fixture(autouse=True)
def _no_real_data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("LMC_VERIFY_DATA_ROOT", raising=False)
    monkeypatch.setenv("LMC_VERIFY_CACHE", str(tmp_path / "cache"))


def outcomes(result: RunResult) -> list[str]:
    return [trial.verdict.outcome.value for trial in result.trials]


def never(*args: Any) -> Trial:
    raise AssertionError("something was computed")


def rigged(claim: str, monkeypatch: pytest.MonkeyPatch, change: Callable[[Any, Verdict], Verdict]) -> None:
    original = CLAIMS[claim]
    changed = dataclasses.replace(original, check=lambda case: change(case, original.check(case)))
    monkeypatch.setitem(CLAIMS, claim, changed)


# --- a whole run ---------------------------------------------------------------------------------------


def test_every_trial_is_recorded_and_told(records: Records) -> None:
    heard: list[tuple[Planned, Trial | None, str]] = []
    result = run_suite(TINY, records, WORKSPACE, listen=lambda *item: heard.append(item))
    assert outcomes(result) == ["EXACT", "EXACT", "REFUTED", "EXACT"]
    assert result.exit_code == 0
    assert (result.reused, result.not_run, result.inconclusive) == (0, (), ())
    assert records.trials(result.run_id) == list(result.trials) == [trial for _, trial, _ in heard]
    assert [planned.key for planned, _, _ in heard] == [planned.key for planned in TINY.plan()]
    run = records.run(result.run_id)
    assert (run.suite, run.title, run.status, run.settings["seed"]) == ("tiny", "Tiny", "finished", 0)
    assert run.finished is not None
    assert {"python", "torch", "numpy", "platform", "threads", "code"} <= set(run.environment)
    for planned, trial in zip(TINY.plan(), result.trials, strict=True):
        assert (trial.key, trial.kind, trial.command) == (planned.key, planned.kind, planned.command)
        assert trial.seconds > 0
        assert trial.as_expected is True
        assert (trial.control is None) == (trial.kind == "claim")


def test_a_run_twice_gives_the_same_bits(records: Records) -> None:
    first, second = (run_suite(TINY, records, Workspace()) for _ in range(2))
    assert [trial.verdict for trial in first.trials] == [trial.verdict for trial in second.trials]
    assert first.run_id != second.run_id


def test_two_processes_give_the_same_bits_in_the_same_order(records: Records) -> None:
    one = run_suite(TINY, records, WORKSPACE)
    two = run_suite(TINY, records, WORKSPACE, jobs=2)
    assert [trial.key for trial in two.trials] == [trial.key for trial in one.trials]
    for left, right in zip(one.trials, two.trials, strict=True):
        assert left.verdict == right.verdict
        assert left.verdict.residual == right.verdict.residual
    assert two.exit_code == 0


# --- resuming ------------------------------------------------------------------------------------------


def test_a_resumed_run_reuses_every_trial(records: Records, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run_suite(TINY, records, WORKSPACE)
    monkeypatch.setattr(execution, "run_planned", never)
    again = run_suite(TINY, records, WORKSPACE, resume=True)
    assert again.reused == len(TINY.plan())
    assert again.trials == first.trials
    assert again.exit_code == 0
    assert records.trials(again.run_id) == list(first.trials)


def test_without_resume_nothing_is_reused(records: Records, monkeypatch: pytest.MonkeyPatch) -> None:
    run_suite(TINY, records, WORKSPACE)
    monkeypatch.setattr(execution, "run_planned", never)
    with pytest.raises(AssertionError, match="something was computed"):
        run_suite(TINY, records, WORKSPACE)
    assert records.latest_run() is not None
    assert records.runs()[-1].status == "failed"


def test_results_of_other_code_are_not_reused(records: Records, monkeypatch: pytest.MonkeyPatch) -> None:
    run_suite(TINY, records, WORKSPACE)
    monkeypatch.setattr(suite, "code_fingerprint", lambda: "9.9.9+other")
    again = run_suite(TINY, records, WORKSPACE, resume=True)
    assert again.reused == 0
    assert again.exit_code == 0


def test_the_fingerprint_is_that_of_the_code_that_runs() -> None:
    assert suite.code_fingerprint is provenance.code_fingerprint
    assert provenance.code_fingerprint() == provenance.code_fingerprint()


def test_only_what_changed_is_run_again(records: Records) -> None:
    run_suite(TINY, records, WORKSPACE)
    other = suite_of(CHECK, CHECK | {"seed": 1}, controls=["sound-lmc", "sign-of-one-layer"])
    again = run_suite(other, records, WORKSPACE, resume=True)
    assert again.reused == 4
    assert len(again.trials) == 8


def test_an_interrupted_run_keeps_what_it_has_and_can_be_completed(
    records: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[Trial | None] = []

    def interrupt(planned: Planned, trial: Trial | None, reason: str) -> None:
        heard.append(trial)
        if len(heard) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_suite(TINY, records, WORKSPACE, listen=interrupt)
    (run,) = records.runs()
    assert run.status == "interrupted"
    assert run.finished is not None
    assert records.trials(run.id) == heard

    computed: list[str] = []

    def counting(planned: Planned, workspace: Workspace) -> Trial:
        computed.append(planned.key)
        return run_planned(planned, workspace)

    monkeypatch.setattr(execution, "run_planned", counting)
    again = run_suite(TINY, records, WORKSPACE, resume=True)
    assert again.reused == 2
    assert computed == [planned.key for planned in TINY.plan()[2:]]
    assert sorted(trial.key for trial in again.trials) == sorted(planned.key for planned in TINY.plan())
    assert again.exit_code == 0


def test_a_crashed_trial_is_run_again(records: Records, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        crash_for("gas", patch)
        assert run_suite(TINY, records, WORKSPACE).exit_code == 5
    again = run_suite(TINY, records, WORKSPACE, resume=True)
    assert again.reused == 3
    assert again.exit_code == 0


def test_a_reused_trial_is_held_against_the_new_expectation(records: Records) -> None:
    """The expectation is the suite's and no part of the trial's identity: it may change between runs."""
    run_suite(suite_of(CHECK), records, WORKSPACE)
    changed = suite_of(CHECK | {"expect": {"backward-sgd": "EXACT", "lmc": "EXACT", "gas": "EXACT"}})
    again = run_suite(changed, records, WORKSPACE, resume=True)
    assert again.reused == 3
    assert [trial.as_expected for trial in again.trials] == [True, True, False]
    assert again.exit_code == 1


# --- what goes wrong -----------------------------------------------------------------------------------


def crash_for(estimator: str, monkeypatch: pytest.MonkeyPatch, claim: str = "theorem-1/unbiased") -> None:
    def crash(case: Any, verdict: Verdict) -> Verdict:
        if case.estimator.name == estimator:
            raise RuntimeError("the disk is full")
        return verdict

    rigged(claim, monkeypatch, crash)


def test_a_crash_is_an_error_and_the_others_go_on(records: Records, monkeypatch: pytest.MonkeyPatch) -> None:
    crash_for("lmc", monkeypatch)
    result = run_suite(TINY, records, WORKSPACE)
    assert outcomes(result) == ["EXACT", "ERROR", "REFUTED", "EXACT"]
    assert result.exit_code == 5
    assert records.run(result.run_id).status == "finished"
    summary = result.trials[1].verdict.summary
    assert "RuntimeError: the disk is full (test_execution.py, line " in summary
    assert result.trials[1].verdict.case["estimator"] == "lmc"


def test_a_control_that_crashes_has_not_failed(records: Records, monkeypatch: pytest.MonkeyPatch) -> None:
    crash_for("lmc", monkeypatch, "e1/equals-backward-sgd")
    result = run_suite(TINY, records, WORKSPACE)
    assert result.trials[-1].verdict.outcome is Outcome.ERROR
    assert result.exit_code == 5


def test_an_unexpected_verdict_is_1(records: Records) -> None:
    result = run_suite(suite_of(CHECK | {"expect": "EXACT"}), records, WORKSPACE)
    assert [trial.as_expected for trial in result.trials] == [True, True, False]
    assert result.exit_code == 1


def a_trial(kind: str, *, as_expected: bool | None = True, outcome: Outcome = Outcome.EXACT) -> Trial:
    control = {"name": "c", "passed": as_expected} if kind == "control" else None
    expected = {True: outcome.value, False: "VACUOUS", None: None}[as_expected]
    return Trial("k", kind, Verdict("claim", outcome, "s"), expected, "command", 1.0, control)


CRASH = a_trial("claim", outcome=Outcome.ERROR, as_expected=False)
UNEXPECTED = a_trial("claim", as_expected=False)
FAILED = a_trial("control", as_expected=False)
GOOD = a_trial("claim")


@pytest.mark.parametrize(
    ("trials", "code"),
    [
        ((GOOD,), 0),
        ((GOOD, a_trial("control")), 0),
        ((GOOD, a_trial("control", as_expected=None)), 0),
        ((a_trial("claim", as_expected=None),), 0),
        ((GOOD, UNEXPECTED), 1),
        ((GOOD, UNEXPECTED, CRASH), 1),
        ((GOOD, UNEXPECTED, FAILED), 4),
        ((GOOD, UNEXPECTED, FAILED, CRASH), 4),
        ((GOOD, FAILED, CRASH), 4),
        ((FAILED,), 4),
        ((GOOD, CRASH), 5),
        ((CRASH,), 5),
        ((GOOD, a_trial("control", as_expected=False, outcome=Outcome.ERROR)), 5),
        ((), 6),
        ((a_trial("control"),), 6),
    ],
)
def test_the_worst_outcome_gives_the_exit_code(trials: tuple[Trial, ...], code: int) -> None:
    for order in itertools.permutations(trials):
        assert RunResult(1, order, (), 0).exit_code == code


def test_a_control_that_fails_outranks_everything(records: Records, monkeypatch: pytest.MonkeyPatch) -> None:
    rigged("e1/equals-backward-sgd", monkeypatch, lambda case, v: dataclasses.replace(v, outcome=Outcome.REFUTED))
    result = run_suite(suite_of(CHECK | {"expect": "EXACT"}, controls=["sound-lmc"]), records, WORKSPACE)
    assert [trial.as_expected for trial in result.trials] == [True, True, False, False]
    assert result.exit_code == 4


@pytest.mark.parametrize("controls", [False, ["sound-lmc"]])
def test_nothing_checked_is_6(records: Records, controls: bool | list[str]) -> None:
    assert run_suite(suite_of(controls=controls), records, WORKSPACE).exit_code == 6


def test_an_inconclusive_verdict_is_listed(records: Records, monkeypatch: pytest.MonkeyPatch) -> None:
    rigged("theorem-1/unbiased", monkeypatch, lambda case, v: dataclasses.replace(v, outcome=Outcome.INCONCLUSIVE))
    result = run_suite(suite_of(CHECK | {"expect": "INCONCLUSIVE"}), records, WORKSPACE)
    assert result.inconclusive == result.trials
    assert result.exit_code == 0


# --- data that are absent ------------------------------------------------------------------------------


def test_absent_optional_data_are_reported_with_the_reason(records: Records) -> None:
    result = run_suite(suite_of(CHECK, ABSENT | {"optional": True}), records, WORKSPACE)
    assert len(result.trials) == len(result.not_run) == 3
    assert all(planned.settings.dataset.name == "cora" and "cora" in reason for planned, reason in result.not_run)
    assert result.exit_code == 0
    stored = records.planned_not_run(result.run_id)
    assert [item.reason for item in stored] == [reason for _, reason in result.not_run]
    assert {item.case["estimator"] for item in stored} == {"backward-sgd", "lmc", "gas"}


def test_a_run_of_nothing_but_absent_data_is_6(records: Records) -> None:
    assert run_suite(suite_of(ABSENT | {"optional": True}, controls=["sound-lmc"]), records, WORKSPACE).exit_code == 6


@pytest.mark.parametrize(
    "suite",
    [
        suite_of(CHECK, ABSENT),
        suite_of(ABSENT | {"optional": True}, ABSENT | {"model": {"layers": 1}}),  # optional there, required here
        suite_of(CHECK, CHECK | {"design": {"parts": 35, "per_batch": 1}}),
        suite_of(CHECK, CHECK | {"design": {"parts": 3, "per_batch": 4}}),
        suite_of(CHECK, CHECK | {"dataset": {"name": "grid", "rows": 0}}),
    ],
    ids=["absent", "optional and required", "more parts than nodes", "more clusters than parts", "option"],
)
def test_what_cannot_be_run_is_refused_before_anything_runs(
    suite: Suite, records: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(execution, "run_planned", never)
    with pytest.raises(LmcVerifyError) as caught:
        run_suite(suite, records, WORKSPACE)
    assert caught.value.exit_code == 2
    assert records.runs() == []


@pytest.mark.parametrize("jobs", [0, -1])
def test_a_run_needs_a_process(jobs: int, records: Records) -> None:
    with pytest.raises(InvalidInputError, match=f"jobs is {jobs}, it must be at least 1"):
        run_suite(TINY, records, WORKSPACE, jobs=jobs)
    assert records.runs() == []


def test_the_report_of_an_interrupted_run_says_so(tmp_path: Path) -> None:
    shipped = suite.load_suite("smoke")
    calls = 0

    def stop(*_: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt

    with Records.create_or_open(tmp_path / "records.sqlite") as records:
        with pytest.raises(KeyboardInterrupt):
            run_suite(shipped, records, Workspace(), listen=stop)
        latest = records.latest_run()
        assert latest is not None
        report = build_report(records, latest.id, {})
    assert report.level != "passed"
    assert f"the run did not finish (2 of {len(shipped.plan())} trials)" in report.headline
