"""A run records everything it did, repeats nothing it need not, and never turns a failure into a success."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from common.small_suites import CHECK

from lmc_verify import provenance
from lmc_verify.cases import CaseDescription
from lmc_verify.cases.workspace import Workspace
from lmc_verify.claims import CLAIMS, Outcome, Verdict
from lmc_verify.controls import ControlRecord
from lmc_verify.counterexamples import load_counterexample
from lmc_verify.errors import InvalidInputError, LmcVerifyError
from lmc_verify.report import build_report
from lmc_verify.runs import execution
from lmc_verify.runs import planned as planned_module
from lmc_verify.runs.execution import RunResult, run_suite
from lmc_verify.runs.planned import Planned, run_planned
from lmc_verify.runs.records import Records
from lmc_verify.runs.replay import replay_counterexample
from lmc_verify.runs.searches import FOLDER, FoundExample, PlannedSearch, SearchRecord, run_search
from lmc_verify.runs.suite import Suite, load_suite
from lmc_verify.runs.trials import Trial

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


SAMPLED = CHECK | {
    "claim": "theorem-1/unbiased-sampled",
    "expect": {"backward-sgd": "SUPPORTED", "lmc": "SUPPORTED", "gas": "REFUTED"},
}
GAS_SEARCH = {"claim": "theorem-1/unbiased", "estimator": "gas", "max_nodes": 2}
LMC_SEARCH = {"claim": "theorem-1/unbiased", "estimator": "lmc", "examples": 5, "expect": "none"}


def with_searches(*tables: dict[str, Any], **changes: Any) -> Suite:
    values = {"name": "tiny", "title": "Tiny", "controls": False, "counterexample": list(tables)}
    return Suite.model_validate(values | changes)


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


@pytest.mark.slow
def test_a_run_twice_gives_the_same_bits(records: Records) -> None:
    first, second = (run_suite(TINY, records, Workspace()) for _ in range(2))
    assert [trial.verdict for trial in first.trials] == [trial.verdict for trial in second.trials]
    assert first.run_id != second.run_id


@pytest.mark.slow
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
    again = run_suite(TINY, records, WORKSPACE)
    assert again.reused == 0
    assert all("something was computed" in trial.verdict.summary for trial in again.trials)


@pytest.mark.slow
def test_results_of_other_code_are_not_reused(records: Records, monkeypatch: pytest.MonkeyPatch) -> None:
    run_suite(TINY, records, WORKSPACE)
    monkeypatch.setattr(planned_module, "code_fingerprint", lambda: "9.9.9+other")
    again = run_suite(TINY, records, WORKSPACE, resume=True)
    assert again.reused == 0
    assert again.exit_code == 0


def test_the_fingerprint_is_that_of_the_code_that_runs() -> None:
    assert planned_module.code_fingerprint is provenance.code_fingerprint
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


def test_a_crash_is_met_again_only_if_asked_for(records: Records, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        crash_for("gas", patch)
        assert run_suite(TINY, records, WORKSPACE).exit_code == 5
    resumed = run_suite(TINY, records, WORKSPACE, resume=True)
    assert (resumed.reused, resumed.exit_code) == (4, 5)
    again = run_suite(TINY, records, WORKSPACE, retry=True)
    assert (again.reused, again.exit_code) == (3, 0)
    assert run_suite(TINY, records, WORKSPACE, resume=True).exit_code == 0, "what succeeded counts, not what crashed"


def test_a_reused_trial_is_held_against_the_new_expectation(records: Records) -> None:
    """The expectation is the suite's and no part of the trial's identity: it may change between runs."""
    run_suite(suite_of(CHECK), records, WORKSPACE)
    changed = suite_of(CHECK | {"expect": {"backward-sgd": "EXACT", "lmc": "EXACT", "gas": "EXACT"}})
    again = run_suite(changed, records, WORKSPACE, resume=True)
    assert again.reused == 3
    assert [trial.as_expected for trial in again.trials] == [True, True, False]
    assert again.exit_code == 1


def test_what_is_on_record_needs_no_data(records: Records, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run_suite(suite_of(CHECK), records, WORKSPACE)
    monkeypatch.setattr(execution, "_absent_data", lambda plan, workspace: {"karate": "no raw files"})
    heard: list[tuple[Trial | None, str]] = []
    again = run_suite(suite_of(CHECK), records, WORKSPACE, resume=True, listen=lambda _, *told: heard.append(told))
    assert (again.reused, again.not_run) == (3, ())
    assert heard == [(trial, "") for trial in first.trials]
    heard.clear()
    afresh = run_suite(suite_of(CHECK), records, WORKSPACE, listen=lambda _, *told: heard.append(told))
    assert (afresh.reused, afresh.trials) == (0, ())
    assert heard == [(None, "no raw files")] * 3 == [(None, reason) for _, reason in afresh.not_run]


@pytest.mark.slow
def test_another_replicate_reuses_what_draws_nothing(records: Records, monkeypatch: pytest.MonkeyPatch) -> None:
    both = suite_of(CHECK, SAMPLED, controls=["sound-lmc"])
    first = run_suite(both, records, WORKSPACE)
    assert first.exit_code == 0
    computed: list[Planned] = []

    def counting(planned: Planned, workspace: Workspace) -> Trial:
        computed.append(planned)
        return run_planned(planned, workspace)

    monkeypatch.setattr(execution, "run_planned", counting)
    again = run_suite(both, records, WORKSPACE, resume=True, replicate=1)
    assert again.reused == 4
    assert {planned.claim for planned in computed} == {"theorem-1/unbiased-sampled"}
    assert [planned.settings.sampling.replicate for planned in computed] == [1, 1, 1]
    stored = [records.run(result.run_id).settings for result in (first, again)]
    assert [item["replicate"] for item in stored] == [0, 1]
    assert [item["alpha_total"] for item in stored] == [1e-6, 1e-6]
    assert again.alpha_total == 1e-6
    computed.clear()
    assert run_suite(both, records, WORKSPACE, resume=True, replicate=1).reused == 7
    assert computed == []


# --- searches for counterexamples ------------------------------------------------------------------------


def files_of(records: Records) -> dict[str, bytes]:
    folder = records.path.parent / FOLDER
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())} if folder.exists() else {}


@pytest.mark.slow
def test_searches_are_run_recorded_and_kept_as_files(records: Records) -> None:
    heard: list[tuple[Any, Any, str]] = []
    suite = with_searches(GAS_SEARCH, LMC_SEARCH, check=[CHECK])
    result = run_suite(suite, records, WORKSPACE, listen=lambda *item: heard.append(item))
    assert result.exit_code == 0
    assert [search.outcome for search in result.searches] == ["found", "none"]
    assert [record for _, record, _ in heard] == [*result.trials, *result.searches]
    assert records.searches(result.run_id) == list(result.searches)
    assert records.run(result.run_id).settings["planned"] == 5
    found = result.searches[0].found
    assert found is not None
    assert (found.nodes, found.edges, found.layers) == (2, 2, 2)
    assert (
        set(files_of(records))
        == set(found.files)
        == {f"{found.name}{end}" for end in (".json", ".safetensors", ".svg")}
    )
    assert found.intact(records.path.parent / FOLDER)
    example = load_counterexample(records.path.parent / found.document)
    assert replay_counterexample(example).identical
    assert result.searches[0].case["estimator"] == example.estimator.name == "gas"
    for planned, search in zip(suite.searches(), result.searches, strict=True):
        assert (search.key, search.claim, search.command) == (planned.key, planned.claim, planned.command)
        assert search.seconds > 0


@pytest.mark.slow
def test_two_processes_find_the_same(tmp_path: Path) -> None:
    suite = with_searches(GAS_SEARCH, LMC_SEARCH)
    kept = []
    for jobs in (1, 2):
        with Records.create_or_open(tmp_path / str(jobs) / "records.sqlite") as records:
            result = run_suite(suite, records, WORKSPACE, jobs=jobs)
            kept.append([dataclasses.replace(search, seconds=0.0) for search in result.searches])
            kept.append(files_of(records))
    # What JSON files say of the machine, such as its threads, may differ between processes.
    tensors = [{name: data for name, data in files.items() if name.endswith("safetensors")} for files in kept[1::2]]
    assert tensors[0] == tensors[1]
    for one, two in zip(kept[0], kept[2], strict=True):
        assert (one.outcome, one.cases, one.summary) == (two.outcome, two.cases, two.summary)
        assert (one.found is None) == (two.found is None)
        if one.found is not None and two.found is not None:
            assert (one.found.caption, one.found.drawing) == (two.found.caption, two.found.drawing)


def rigged_search(monkeypatch: pytest.MonkeyPatch) -> list[PlannedSearch]:
    """Replace the search by one that finds at once, and return those that are made."""
    made: list[PlannedSearch] = []

    def quick(planned: PlannedSearch, folder: Path) -> SearchRecord:
        made.append(planned)
        folder.mkdir(exist_ok=True)
        names = [f"{planned.name}{end}" for end in (".json", ".safetensors", ".svg")]
        for name in names:
            (folder / name).write_text(f"{name} {planned.settings.seed}")
        digests = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}
        found = FoundExample(planned.name, 2, 2, 2, "caption", CaseDescription(), "<svg/>", digests)
        return dataclasses.replace(a_search(planned.expected, True), key=planned.key, found=found)

    monkeypatch.setattr(execution, "run_search", quick)
    return made


def test_a_resumed_run_reuses_searches_whose_files_are_whole(records: Records, monkeypatch: pytest.MonkeyPatch) -> None:
    made = rigged_search(monkeypatch)
    suite = with_searches({"claim": "theorem-1/unbiased", "estimator": ["gas", "fm"]})
    assert run_suite(suite, records, WORKSPACE).exit_code == 0
    again = run_suite(suite, records, WORKSPACE, resume=True)
    assert (len(made), again.reused, len(again.searches)) == (2, 2, 2)
    other = with_searches({"claim": "theorem-1/unbiased", "estimator": ["gas", "fm"], "expect": "none"})
    assert run_suite(other, records, WORKSPACE, resume=True).exit_code == 1  # the expectation is this suite's
    assert len(made) == 2
    folder = records.path.parent / FOLDER
    (folder / "theorem-1-unbiased-gas.svg").unlink()
    (folder / "theorem-1-unbiased-fm.json").write_text("changed")
    assert run_suite(suite, records, WORKSPACE, resume=True).reused == 0
    assert len(made) == 4
    assert run_suite(suite, records, WORKSPACE).reused == 0


def test_a_search_that_crashes_is_an_error_and_made_again_if_asked_for(
    records: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*args: Any, **options: Any) -> None:
        raise RuntimeError("the disk is full")

    suite = with_searches(LMC_SEARCH, check=[CHECK])
    with monkeypatch.context() as patch:
        patch.setattr("lmc_verify.counterexamples.find_counterexample", crash)
        result = run_suite(suite, records, WORKSPACE)
    assert result.exit_code == 5
    assert result.searches[0].crashed
    assert "RuntimeError: the disk is full (test_execution.py, line " in result.searches[0].summary
    assert records.run(result.run_id).status == "finished"
    resumed = run_suite(suite, records, WORKSPACE, resume=True)
    assert (resumed.reused, resumed.exit_code) == (4, 5)
    again = run_suite(suite, records, WORKSPACE, retry=True)
    assert (again.reused, again.exit_code) == (3, 0)


@pytest.mark.slow
def test_a_folder_in_the_way_of_counterexamples_is_named(tmp_path: Path) -> None:
    (tmp_path / FOLDER).write_text("mine")
    (search,) = with_searches(GAS_SEARCH).searches()
    with pytest.raises(InvalidInputError, match=r"counterexamples cannot be a folder.*choose another folder"):
        run_search(search, tmp_path / FOLDER)


@pytest.mark.parametrize("table", [GAS_SEARCH | {"max_nodes": 99}, GAS_SEARCH | {"claim": "theorem-3/rate"}])
def test_a_search_that_cannot_be_made_is_refused_before_anything_runs(
    table: dict[str, Any], records: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(execution, "run_planned", never)
    with pytest.raises(InvalidInputError, match=r"\[\[counterexample\]\] number 1"):
        run_suite(with_searches(table, check=[CHECK]), records, WORKSPACE)
    assert records.runs() == []


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
    assert result.trials[1].verdict.case.estimator == "lmc"


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
    control = ControlRecord("c", "", "sound", None, None, as_expected) if kind == "control" else None
    expected = {True: outcome.value, False: "VACUOUS", None: None}[as_expected]
    return Trial("k", kind, Verdict("claim", outcome, "s"), expected, "command", 1.0, control)


CRASH = a_trial("claim", outcome=Outcome.ERROR, as_expected=False)
UNEXPECTED = a_trial("claim", as_expected=False)
FAILED = a_trial("control", as_expected=False)
GOOD = a_trial("claim")
OVERSPENT = dataclasses.replace(GOOD, verdict=dataclasses.replace(GOOD.verdict, alpha_spent=1.001e-6))


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
        ((OVERSPENT,), 1),
        ((OVERSPENT, CRASH), 1),
        ((OVERSPENT, FAILED), 4),
    ],
)
def test_the_worst_outcome_gives_the_exit_code(trials: tuple[Trial, ...], code: int) -> None:
    for order in itertools.permutations(trials):
        assert RunResult(1, order, (), 0).exit_code == code


def a_search(expected: str, found: bool, *, cases: int = 1, crashed: bool = False) -> SearchRecord:
    example = FoundExample("n", 2, 2, 2, "caption", CaseDescription(), "<svg/>", {}) if found else None
    return SearchRecord("k", "claim", {"estimator": "gas"}, expected, "s", cases, "command", 1.0, example, crashed)


@pytest.mark.parametrize(
    ("search", "code"),
    [
        (a_search("found", True), 0),
        (a_search("none", False), 0),
        (a_search("found", False), 1),
        (a_search("none", True), 1),
        (a_search("none", False, cases=0), 1),  # nothing was tried
        (a_search("none", False, cases=0, crashed=True), 5),
        (a_search("found", False, cases=0, crashed=True), 5),
    ],
)
def test_searches_count_like_verdicts(search: SearchRecord, code: int) -> None:
    assert RunResult(1, (), (), 0, searches=(search,)).exit_code == code
    assert RunResult(1, (GOOD,), (), 0, searches=(search, a_search("none", False))).exit_code == code
    assert RunResult(1, (UNEXPECTED,), (), 0, searches=(search,)).exit_code == 1
    assert RunResult(1, (GOOD, FAILED), (), 0, searches=(search,)).exit_code == 4


def test_shares_of_the_error_level_may_add_up_to_it() -> None:
    third = dataclasses.replace(GOOD, verdict=dataclasses.replace(GOOD.verdict, alpha_spent=0.1 / 3))
    result = RunResult(1, (third,) * 3, (), 0, alpha_total=0.1)
    assert (result.overspent, result.exit_code) == (False, 0)
    assert RunResult(1, (third,) * 4, (), 0, alpha_total=0.1).overspent
    kept = ControlRecord("c", "", "sound", None, None, True)
    control = dataclasses.replace(OVERSPENT, kind="control", control=kept)
    assert not RunResult(1, (GOOD, control), (), 0).overspent  # what controls are is known


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
    assert {item.case.estimator for item in stored} == {"backward-sgd", "lmc", "gas"}


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


@pytest.mark.parametrize("jobs", [0, -2])
def test_a_run_needs_a_process(jobs: int, records: Records) -> None:
    with pytest.raises(InvalidInputError, match=f"jobs is {jobs}, it must be at least 1"):
        run_suite(TINY, records, WORKSPACE, jobs=jobs)
    assert records.runs() == []


def test_the_report_of_an_interrupted_run_says_so(tmp_path: Path) -> None:
    shipped = load_suite("smoke")
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
    assert f"the run did not finish (2 of {len(shipped.plan())} planned checks)" in report.headline
