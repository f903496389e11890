"""A comparison of two runs calls worse what is worse, and nothing else, whatever the versions."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from itertools import product
from pathlib import Path
from typing import Any, get_args

import pytest
from common.documents import places
from common.race_helpers import a_race, a_run, a_trace, diverged
from common.report_helpers import CONTROL, a_trial
from hypothesis import given
from hypothesis import strategies as st

from lmc_verify.cases import CaseDescription
from lmc_verify.cases.verdict import Evidence, Outcome
from lmc_verify.errors import InvalidInputError
from lmc_verify.report import Comparison, compare_runs, comparison_schema, write_comparison
from lmc_verify.report.comparison.changes import Kind as ChangeKind
from lmc_verify.report.comparison.changes import regression
from lmc_verify.report.comparison.contests import Contest
from lmc_verify.report.comparison.document import comparison_json
from lmc_verify.report.comparison.measures import EffectPair, TimeRatio, effect_of, time_ratio
from lmc_verify.report.comparison.pages import comparison_html, comparison_markdown
from lmc_verify.report.comparison.results import Effect, Result, identity, trial_result
from lmc_verify.report.comparison.results import Kind as ResultKind
from lmc_verify.runs import NotRun, PlanEntry, Records, RunState, SearchRecord, Shard, Trial
from lmc_verify.training import Trace

HOSTILE = "<b>&\"'`|\x00 {{ 7 * 7 }}"
OUTCOMES = [item.value for item in Outcome if item is not Outcome.ERROR]


def a_result(outcome: str = "EXACT", expected: str | None = "as found", **fields: Any) -> Result:
    kind = fields.pop("kind", "claim")
    trial = CONTROL if kind == "control" else a_trial(outcome=outcome, expected=expected)
    return replace(trial_result(trial, "lmc"), **fields)


def on(*names: str, **fields: Any) -> list[Trial]:
    """Return a trial of each estimator."""
    return [a_trial(estimator=name, **fields) for name in names]


def crash(trial: Trial) -> Trial:
    """Return what is recorded of a check that crashed: its case is not built, and described as planned."""
    case = CaseDescription(dataset="karate", model="gcn", estimator=trial.verdict.case.estimator)
    verdict = replace(trial.verdict, outcome=Outcome.ERROR, summary="RuntimeError: boom", case=case, evidence=())
    return replace(trial, verdict=verdict)


def add(
    file: Path,
    trials: Sequence[Trial] = (),
    *,
    searches: Sequence[SearchRecord] = (),
    plan: Sequence[PlanEntry] = (),
    not_run: Sequence[NotRun] = (),
    races: Sequence[tuple[Any, Sequence[Any]]] = (),
    status: str | None = "finished",
    suite: str = "s",
    code: str = "1",
    settings: dict[str, Any] | None = None,
) -> Path:
    """Add a run to a records file, with keys that depend on the version of the code, as they do in real runs."""
    with Records.create_or_open(file) as records:
        run = records.start_run(suite, "A run", {"alpha_total": 1e-6, **(settings or {})}, {"code": code}, plan)
        for trial in trials:
            key = hashlib.sha256((trial.key + code + str(trial.seconds)).encode()).hexdigest()
            records.add(run, replace(trial, key=key))
        for item in not_run:
            records.not_run(run, item.claim, item.case, item.reason)
        for search in searches:
            records.add_search(run, search)
        for race, items in races:
            records.add_race(run, race.header)
            for made in items:
                records.add_race_run(run, made)
        if status is not None:
            records.finish_run(run, status)
    return file


@pytest.fixture
def compare(tmp_path: Path) -> Callable[..., Comparison]:
    def made(old: dict[str, Any], new: dict[str, Any], **options: Any) -> Comparison:
        number = len(list(tmp_path.iterdir()))
        files = add(tmp_path / f"a{number}.sqlite", **old), add(tmp_path / f"b{number}.sqlite", **{"code": "2", **new})
        return compare_runs(*files, **options)

    return made


def planned(trial: Trial) -> PlanEntry:
    kind = trial.kind
    return PlanEntry(kind, trial.key, "label", trial.command, trial.verdict.claim, "", trial.verdict.case)  # type: ignore[arg-type]


# --- what is a regression ---


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (a_result(), a_result(), ""),
        (a_result(), a_result("REFUTED", "EXACT"), "not as expected any more: expected EXACT"),
        (a_result("REFUTED"), a_result("INCONCLUSIVE", "REFUTED"), "not as expected any more"),
        (a_result("REFUTED", "EXACT"), a_result("REFUTED", "EXACT"), ""),
        (a_result("REFUTED", "EXACT"), a_result("ERROR", "EXACT", crashed=True), "crashed"),
        (a_result("ERROR", None, crashed=True), a_result("ERROR", None, crashed=True), ""),
        (a_result("REFUTED", "EXACT"), a_result(), ""),
        (a_result("SUPPORTED", None), a_result("INCONCLUSIVE", None), "says less"),
        (a_result("SUPPORTED"), a_result("INCONCLUSIVE"), "says less"),
        (a_result("SUPPORTED"), a_result("VACUOUS"), "says less"),
        (a_result("REFUTED"), a_result("INCONCLUSIVE"), "says less"),
        (a_result("REFUTED"), a_result("NOT_APPLICABLE"), "says less"),
        (a_result("EXACT"), a_result("SUPPORTED"), "says less"),
        (a_result("REFUTED", None), a_result("EXACT", None), ""),
        (a_result("REFUTED", None), a_result("VACUOUS", None), ""),
        (a_result("INCONCLUSIVE", None), a_result("REFUTED", None), ""),
        (a_result("EXACT", None), a_result("REFUTED", None), "the claim held, and is refuted"),
        (a_result("VACUOUS", None), a_result("REFUTED", None), "the claim held, and is refuted"),
        (a_result("EXACT"), a_result("REFUTED"), ""),
        (a_result("SUPPORTED", guarantee="exact"), a_result("SUPPORTED", guarantee="anytime-valid"), "weaker"),
        (a_result("REFUTED", guarantee="anytime-valid"), a_result("REFUTED", guarantee="asymptotic"), "weaker"),
        (a_result("SUPPORTED", guarantee="asymptotic"), a_result("SUPPORTED", guarantee="exact"), ""),
        (a_result("INCONCLUSIVE", guarantee="exact"), a_result("INCONCLUSIVE", guarantee="asymptotic"), ""),
        (a_result(kind="control"), a_result(kind="control", as_expected=False), "a control failed"),
        (a_result(kind="control"), a_result(kind="control", as_expected=None), "too small"),
        (a_result(kind="control", as_expected=False), a_result(kind="control", as_expected=False), ""),
        (None, a_result(), ""),
        (None, a_result("REFUTED", "EXACT"), "which is new"),
        (None, a_result(kind="control", as_expected=False), "a control failed"),
        (None, a_result("ERROR", None, crashed=True), "crashed"),
    ],
)
def test_each_rule_from_both_sides(old: Result | None, new: Result, words: str) -> None:
    found = regression(old, new)
    assert words in found
    assert bool(found) == bool(words)


def test_a_result_that_is_gone_is_a_regression_where_it_is_asked_for() -> None:
    assert regression(a_result(), None, "no result") == "missing in B: no result"
    assert regression(a_result("REFUTED", "EXACT"), None, "no result")
    assert regression(a_result(), None, "") == ""


@given(st.sampled_from(OUTCOMES), st.sampled_from([None, *OUTCOMES]), st.sampled_from(["exact", "asymptotic"]))
def test_nothing_is_worse_than_itself(outcome: str, expected: str | None, guarantee: str) -> None:
    item = a_result(outcome, expected, guarantee=guarantee)
    assert regression(item, item) == ""


@pytest.mark.parametrize(("old", "new"), list(product(OUTCOMES, OUTCOMES)))
def test_without_expectations_no_change_is_worse_in_both_directions(old: str, new: str) -> None:
    forth = regression(a_result(old, None), a_result(new, None))
    back = regression(a_result(new, None), a_result(old, None))
    assert not (forth and back)
    decided = {"EXACT", "SUPPORTED", "REFUTED"}
    if old in decided and new not in decided:
        assert forth or (old, new) == ("REFUTED", "VACUOUS")


# --- which cases are the same ---


def test_a_case_is_the_same_whatever_its_share_of_the_error_level_and_its_repetition() -> None:
    base = "lmc-verify check theorem-1/unbiased-sampled --estimator lmc --dataset karate --set design.parts=4"
    shared = f"{base} --set sampling.alpha=3.4e-08"
    repeated = f"{base} --set sampling.replicate=2 --set sampling.alpha=1e-08"
    assert len({identity("claim", "c", text) for text in (base, shared, repeated)}) == 1
    turned = base.replace("--estimator lmc --dataset karate", "--dataset karate --estimator lmc")
    assert identity("claim", "c", turned) == identity("claim", "c", base)
    others = [
        f"{base} --seed 1",
        base.replace("=4", "=5"),
        f"{base} --set sampling.draws=9",
        base.replace("lmc --d", "gas --d"),
    ]
    assert len({identity("claim", "c", text) for text in (base, *others)}) == 5
    assert identity("audit", "c", "python mine.py") != identity("audit", "c", "python other.py")
    audit = "lmc-verify audit loops:gas"
    assert identity("claim", "audit", f"{audit} --alpha 0.01") == identity("claim", "audit", audit)
    assert identity("claim", "audit", f"{audit} --draws 10") != identity("claim", "audit", audit)


def test_the_same_run_of_other_code_has_no_regression(compare: Callable[..., Comparison]) -> None:
    trials = [*on("lmc", "gas"), CONTROL]
    made = compare({"trials": trials}, {"trials": trials})
    assert (made.exit_code, made.common, len(made.of("same"))) == (0, 3, 3)
    assert made.headline == "No regression; 3 results in both."


def test_what_changed_is_told_by_kind(compare: Callable[..., Comparison]) -> None:
    old = [
        *on("a"),
        *on("b", outcome="REFUTED", expected="EXACT"),
        *on("c", outcome="INCONCLUSIVE", expected=None),
        *on("f"),
    ]
    new = [*on("a"), *on("b"), *on("c", outcome="SUPPORTED", expected=None), *on("d")]
    made = compare({"trials": old}, {"trials": new})
    kinds = {kind: [item.either.case["estimator"] for item in items] for kind, items in made.kinds.items()}
    assert kinds == {"same": ["a"], "mended": ["b"], "changed": ["c"], "only in B": ["d"], "regression": ["f"]}
    assert made.of("regression")[0].regression == "missing in B: its run does not plan it"
    assert "1 mended; 1 changed otherwise; 1 in B only" in made.headline


def test_a_crash_is_matched_with_the_case_that_was_built(compare: Callable[..., Comparison]) -> None:
    (trial,) = on("lmc")
    made = compare({"trials": [trial]}, {"trials": [crash(trial)]})
    assert [(item.kind, item.regression) for item in made.changes] == [("regression", "crashed in B")]
    back = compare({"trials": [crash(trial)]}, {"trials": [trial]})
    assert ([item.kind for item in back.changes], back.exit_code) == (["mended"], 0)


def test_a_failed_control_is_a_regression(compare: Callable[..., Comparison]) -> None:
    assert CONTROL.control is not None
    missed = replace(CONTROL, control=replace(CONTROL.control, passed=False))
    made = compare({"trials": [*on("lmc"), CONTROL]}, {"trials": [*on("lmc"), missed]})
    assert (made.regressions, made.exit_code) == ((("control sound", "a control failed"),), 1)


def test_why_a_result_is_missing(compare: Callable[..., Comparison]) -> None:
    trials = on("lmc", "gas", "fm")
    plan = [planned(trial) for trial in trials]
    absent = [NotRun("theorem-1/unbiased", "raw files absent", trials[1].verdict.case)]
    made = compare({"trials": trials}, {"trials": trials[:1], "plan": plan, "not_run": absent, "status": "interrupted"})
    reasons = [item.regression for item in made.changes]
    assert reasons[:2] == ["", "missing in B: not run: raw files absent"]
    assert reasons[2] == "missing in B: no result: it was interrupted"
    assert "the run B did not finish" in made.headline


def test_a_shard_is_not_asked_for_what_others_have(compare: Callable[..., Comparison]) -> None:
    trials = on("lmc", "gas")
    shard = {"trials": trials[:1], "settings": {"shard": "1/2"}}
    made = compare({"trials": trials}, shard)
    assert ([item.kind for item in made.changes], made.exit_code) == (["same", "only in A"], 0)
    assert compare({"trials": trials}, {"trials": trials[:1]}).exit_code == 1
    plan = [planned(trial) for trial in trials]
    own = Shard.read("1/2").own((item.kind, item.key) for item in plan)
    mine = [trial for trial in trials if trial.key in own]
    assert len(mine) == 1
    made = compare({"trials": trials}, {**shard, "trials": mine, "plan": plan})
    assert (sorted(item.kind for item in made.changes), made.exit_code) == (["only in A", "same"], 0)
    ended = compare({"trials": trials}, {**shard, "trials": [], "plan": plan, "status": "failed"})
    assert (sorted(item.kind for item in ended.changes), ended.exit_code) == (["only in A", "regression"], 1)


def test_runs_that_share_nothing_are_refused(compare: Callable[..., Comparison]) -> None:
    with pytest.raises(InvalidInputError, match="share no case"):
        compare({"trials": on("lmc")}, {"trials": on("gas")})
    with pytest.raises(InvalidInputError, match="share no case"):  # every run has the controls
        compare({"trials": [*on("lmc"), CONTROL]}, {"trials": [*on("gas"), CONTROL]})
    with pytest.raises(InvalidInputError, match="share no case"):  # nothing was found that could get lost
        compare({}, {"trials": on("gas")})
    assert compare({"trials": [CONTROL]}, {"trials": [CONTROL]}).exit_code == 0
    (trial,) = on("lmc")  # B planned it and did not get there
    assert compare({"trials": [trial]}, {"plan": [planned(trial)], "status": "failed"}).exit_code == 1


def test_runs_of_two_suites_say_so(compare: Callable[..., Comparison]) -> None:
    trials = on("lmc")
    made = compare({"trials": trials}, {"trials": trials, "suite": "t"})
    assert made.headline == "No regression; 1 result in both; the suites differ, A is of 's' and B of 't'."
    assert made.headline in comparison_markdown(made)
    with pytest.raises(InvalidInputError, match=r"^the suites differ, A is of 's' and B of 't': .* share no case"):
        compare({"trials": on("lmc")}, {"trials": on("gas"), "suite": "t"})
    with pytest.raises(InvalidInputError) as alike:
        compare({"trials": on("lmc")}, {"trials": on("gas")})
    assert "suites differ" not in str(alike.value)


def test_runs_of_one_file_are_chosen(tmp_path: Path) -> None:
    file = add(tmp_path / "r.sqlite", on("lmc"))
    add(file, on("lmc", outcome="REFUTED", expected="EXACT"), code="2")
    add(file, on("gas"), suite="other")
    with pytest.raises(InvalidInputError, match="choose two runs with --run-a and --run-b"):
        compare_runs(file, file)
    assert compare_runs(file, file, old_run=1, new_run=2).exit_code == 1
    assert compare_runs(file, file, old_run=1, suite="s").new.run.id == 2
    with pytest.raises(InvalidInputError, match="is of suite 'other', not of suite 's'"):
        compare_runs(file, file, old_run=3, suite="s")
    with pytest.raises(InvalidInputError, match="holds no run of suite 'none'"):
        compare_runs(file, file, suite="none")


def test_a_case_that_is_built_differently_is_told(compare: Callable[..., Comparison]) -> None:
    (old,), (new,) = on("lmc"), on("lmc", nodes=35)
    new = replace(new, verdict=replace(new.verdict, hashes={"graph": "another"}))
    made = compare({"trials": [old]}, {"trials": [new]})
    assert made.changes[0].differences == ("nodes 34, then 35", "another graph")
    assert made.exit_code == 0
    assert "nodes 34, then 35" in comparison_html(made)


def test_a_search_that_finds_nothing_any_more_is_a_regression(compare: Callable[..., Comparison]) -> None:
    command = "lmc-verify counterexample theorem-1/unbiased --estimator gas --seed 0"
    search = SearchRecord("1", "theorem-1/unbiased", {"estimator": "gas"}, "none", "s", 60, command, 5.0, None)
    failed = replace(search, expected="found")
    made = compare({"searches": [search]}, {"searches": [failed]})
    assert made.regressions[0][1] == "not as expected any more: expected a counterexample"


def test_more_error_spent_than_there_is_is_a_regression(compare: Callable[..., Comparison]) -> None:
    (trial,) = on("lmc", outcome="SUPPORTED")
    spent = replace(trial, verdict=replace(trial.verdict, alpha_spent=1e-3, guarantee="exact"))
    made = compare({"trials": [trial]}, {"trials": [spent]})
    assert [name for name, _ in made.regressions] == ["error level"]


# --- effects and times ---


@pytest.mark.parametrize(
    ("old", "new", "moved"),
    [
        (Effect("q", 0.4, "u"), Effect("q", 0.4, "u"), False),
        (Effect("q", 0.4, "u"), Effect("q", 0.4 * (1 + 1e-9), "u"), False),
        (Effect("q", 0.4, "u"), Effect("q", 0.41, "u"), True),
        (Effect("q", 0.4, "u"), Effect("r", 0.4, "u"), True),
        (Effect("q", 2e-16, "u", tolerance=1e-13), Effect("q", 9e-14, "u", tolerance=1e-13), False),
        (Effect("q", 2e-16, "u", tolerance=1e-13), Effect("q", 3e-13, "u", tolerance=1e-13), True),
        (Effect("q", 0.4, "u", 0.3, 0.5), Effect("q", 0.55, "u", 0.45, 0.65), False),
        (Effect("q", 0.4, "u", 0.3, 0.5), Effect("q", 0.6, "u", 0.51, 0.7), True),
        (Effect("q", 0.6, "u", 0.51, None), Effect("q", 0.4, "u", None, 0.5), True),
        (Effect("q", float("nan"), "u"), Effect("q", float("nan"), "u"), False),
        (Effect("q", float("nan"), "u"), Effect("q", 1.0, "u"), True),
        (Effect("q", float("inf"), "u"), Effect("q", float("inf"), "u"), False),
    ],
)
def test_effects_move_beyond_rounding_and_intervals(old: Effect, new: Effect, moved: bool) -> None:
    assert EffectPair("x", old, new).moved is moved
    assert EffectPair("x", new, old).moved is moved


def test_effects_are_the_main_quantity_and_decide_nothing(compare: Callable[..., Comparison]) -> None:
    interval = Evidence("bias", 0.4, group="bias", low=0.3, high=0.5)
    first = Evidence("other", 1.0)
    old = [
        *on("a", evidence=[first, interval], residual=1.0),
        *on("b", residual=0.25),
        *on("c", evidence=[first]),
        *on("d"),
    ]
    new = [
        *on("a", evidence=[first, replace(interval, value=0.9, low=0.8, high=1.0)]),
        *on("b", residual=0.5),
        *old[2:],
    ]
    made = compare({"trials": old}, {"trials": new})
    assert [(item.old.quantity, item.old.value, item.new.value) for item in made.effects] == [
        ("bias", 0.4, 0.9),
        ("residual", 0.25, 0.5),
        ("other", 1.0, 1.0),
    ]
    assert len(made.moved) == 2
    assert made.exit_code == 0


def test_repetitions_give_a_median_with_an_interval() -> None:
    def result(replicate: int, value: float) -> Result:
        return a_result(effect=Effect("q", value, "u", 0.0, 9.0), case={"replicate": replicate})

    repeats = [result(number, float(number)) for number in range(1, 7)]
    found = effect_of(repeats[0], repeats)
    assert found == Effect("q, median of 6", 3.5, "u", 1.0, 6.0)
    assert effect_of(repeats[0], repeats[:5]) == repeats[0].effect
    assert effect_of(repeats[0], [repeats[0]] * 9) == repeats[0].effect  # the same draws again


def test_repetitions_are_found_in_the_records(tmp_path: Path) -> None:
    file = tmp_path / "r.sqlite"
    for number in range(6):
        add(file, on("a", residual=1.0 + number, replicate=number), settings={"replicate": number})
    other = add(tmp_path / "s.sqlite", on("a", residual=9.0), code="2")
    (effect,) = compare_runs(file, other, old_run=1).effects
    assert (effect.old.value, effect.old.low, effect.old.high) == (3.5, 1.0, 6.0)


def test_the_ratio_of_times_is_the_median_with_its_interval() -> None:
    found = time_ratio("x", [(1.0, 2.0)] * 3 + [(2.0, 6.0)] * 3 + [(1.0, 5.0)])
    assert found is not None
    assert (found.old, found.new, found.median, found.low, found.high, found.amount) == (10, 29, 3, 2, 5, 7)
    assert found.slower_than(1.9)
    assert not found.slower_than(2.0)
    few = time_ratio("x", [(1.0, 100.0)] * 5)
    assert few is not None
    assert (few.median, few.low) == (100, None)
    assert not few.slower_than(1.5)
    assert time_ratio("x", [(0.0, 1.0), (1.0, float("inf"))]) is None


@pytest.mark.slow
def test_times_decide_only_where_they_are_asked(compare: Callable[..., Comparison]) -> None:
    trials = on(*"abcdefg")
    slow = [replace(trial, seconds=3 * trial.seconds) for trial in trials]
    sides = {"trials": trials}, {"trials": slow}
    assert compare(*sides).exit_code == 0
    assert compare(*sides, slower=3.5).exit_code == 0
    made = compare(*sides, slower=2.5)
    assert (made.exit_code, [name for name, _ in made.regressions]) == (1, ["times"])
    assert compare({"trials": trials[:5]}, {"trials": slow[:5]}, slower=1.5).exit_code == 0
    for factor in (0.5, float("nan"), float("inf")):
        with pytest.raises(InvalidInputError, match="give a factor of at least 1"):
            compare(*sides, slower=factor)


def test_what_crashed_or_was_taken_over_is_no_time(tmp_path: Path) -> None:
    trials = on("a", "b")
    file = add(tmp_path / "r.sqlite", trials)
    add(file, trials)  # resumed: the same key and the same seconds
    assert compare_runs(file, file, old_run=1, new_run=2).time is None
    broken = add(tmp_path / "s.sqlite", [crash(trials[0]), replace(trials[1], seconds=1.0)], code="2")
    time = compare_runs(file, broken).time
    assert time is not None
    assert (time.amount, time.median) == (1, 4)


def test_times_of_repeated_runs_are_medians(tmp_path: Path) -> None:
    (trial,) = on("a")
    file = tmp_path / "r.sqlite"
    for seconds in (9.0, 2.0, 4.0):
        add(file, [replace(trial, seconds=seconds)])
    add(file, [replace(trial, seconds=100.0)], code="other")
    other = add(tmp_path / "s.sqlite", [replace(trial, seconds=8.0)], code="2")
    time = compare_runs(file, other, old_run=1).time
    assert time is not None
    assert time.median == 2.0


# --- races ---


def raced(change: Callable[[str, int], Trace | None]) -> dict[str, Any]:
    race = a_race('title = "a race"\nalpha = 0.25')
    runs = [a_run(item, change(item.contestant.label, item.seed)) for item in race.runs]
    return {"races": [(race, runs)]}


def rising(label: str, seed: int) -> Trace:
    return a_trace([0.1, 0.6, 0.8] if label != "gas" else [0.1, 0.2, 0.3], pace=1.0 + seed)


def contest(made: Comparison, label: str) -> Contest:
    (found,) = [item for item in made.contests if item.label == label]
    return found


def test_races_are_compared_by_contestant(compare: Callable[..., Comparison]) -> None:
    made = compare(raced(rising), raced(rising))
    assert (made.exit_code, made.common) == (0, 9)
    assert contest(made, "lmc").arrived == ("3 of 3", "3 of 3")
    assert contest(made, "gas").arrived == ("0 of 3", "0 of 3")
    seconds, again = contest(made, "lmc").medians["seconds"]
    assert seconds == again is not None
    assert "a race on karate: lmc" in comparison_markdown(made)


@pytest.mark.parametrize(
    ("trace", "words"),
    [
        (a_trace([0.1, 0.2, 0.3]), "does not reach the target any more (seed 1)"),
        (None, "crashed in B (seed 1)"),
        (diverged([0.1, 0.2]), "diverged in B (seed 1)"),
    ],
)
def test_a_training_run_that_is_worse(compare: Callable[..., Comparison], trace: Trace | None, words: str) -> None:
    worse = raced(lambda label, seed: trace if (label, seed) == ("lmc", 1) else rising(label, seed))
    made = compare(raced(rising), worse)
    assert made.regressions == (("a race on karate: lmc", words),)
    assert compare(worse, raced(rising)).exit_code == 0
    assert compare(worse, worse).exit_code == 0


def test_training_runs_that_are_missing(compare: Callable[..., Comparison]) -> None:
    whole, part = raced(rising), raced(rising)
    part["races"] = [(race, runs[:-1]) for race, runs in part["races"]]
    last = part["races"][0][0].runs[-1]
    made = compare(whole, part)
    assert made.regressions == (
        (f"a race on karate: {last.contestant.label}", f"missing in B: it has no result (seed {last.seed})"),
    )
    assert compare(part, whole).exit_code == 0
    both = {**whole, "trials": on("lmc")}
    made = compare(both, {"trials": on("lmc")})
    assert {reason.partition(" (")[0] for _, reason in made.regressions} == {"missing in B: its run does not plan it"}


# --- pages ---


@pytest.fixture
def full(compare: Callable[..., Comparison]) -> Comparison:
    old = {"trials": [*on(*"abcdefg", residual=0.1), *on(HOSTILE, summary=HOSTILE), CONTROL], **raced(rising)}
    wrong = on("a", outcome="REFUTED", expected="EXACT", summary=HOSTILE)
    new = [*wrong, crash(on("b")[0]), *on(*"cdef", residual=0.2), *on("h"), CONTROL]
    return compare(old, {"trials": new, **raced(rising)}, slower=1.5)


def test_pages_say_what_the_comparison_says(full: Comparison) -> None:
    page, words = comparison_html(full), comparison_markdown(full)
    document = json.loads(comparison_json(full))
    assert document["exit_code"] == full.exit_code == 1
    assert [item["reason"] for item in document["regressions"]] == [reason for _, reason in full.regressions]
    for shown in (page, words):
        for _, reason in full.regressions:
            assert reason in shown
        assert full.headline in shown
        assert "Effect sizes" in shown
        assert "a race on karate" in shown
    assert "<b>" not in page.replace('<b aria-hidden="true">', "")
    assert "<b>" not in words
    assert "\x00" not in page + words
    assert not re.search(r"<script|https?://|url\((?!#)", page)
    assert page.count("<table") == page.count("</table>")
    assert page.count("<tr>") == page.count("</tr>")
    scrolled = re.findall(r'<div class="scroll"[^>]*>', page)
    assert len(scrolled) == page.count("<table")
    assert all("aria-label=" in item and 'tabindex="0"' in item for item in scrolled)


FREE = {"settings", "environment", "medians"}
"""Objects whose keys are not fixed."""


def test_the_document_fits_its_schema_which_allows_nothing_else(full: Comparison) -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="the extra test is not installed")
    schema, document = comparison_schema(), json.loads(comparison_json(full))
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    assert [error.message for error in validator.iter_errors(document)] == []
    assert schema["properties"]["schema"]["const"] == document["schema"] == schema["$id"]
    assert document["races"]
    assert document["effects"]
    assert document["times"]["groups"]
    tried = 0
    for path in places(document):
        if set(path) & FREE and path[-1] not in ("a", "b"):
            continue
        changed = json.loads(json.dumps(document))
        inside = changed
        for step in path:
            inside = inside[step]
        inside["another"] = 1
        assert not validator.is_valid(changed), path
        del inside["another"], inside[next(iter(inside))]
        assert not validator.is_valid(changed), path
        tried += 1
    assert tried >= 10
    for key, value in (("exit_code", 5), ("same", -1), ("headline", None), ("schema", "lmc-verify/comparison/2")):
        assert not validator.is_valid({**document, key: value}), key


def test_the_kinds_of_the_schema_are_those_of_the_code() -> None:
    schema = comparison_schema()
    changes = schema["properties"]["changes"]["items"]["properties"]["kind"]["enum"]
    assert tuple(changes) == get_args(ChangeKind)
    assert tuple(schema["$defs"]["result"]["properties"]["kind"]["enum"]) == get_args(ResultKind)
    assert tuple(schema["$defs"]["side"]["properties"]["state"]["enum"]) == get_args(RunState)
    assert set(schema["$defs"]["effect"]["properties"]) == {item.name for item in fields(Effect)}
    assert set(schema["$defs"]["ratio"]["properties"]) == {item.name for item in fields(TimeRatio)}


def test_tables_of_the_markdown_have_as_many_cells_as_their_head(full: Comparison) -> None:
    blocks = [block.splitlines() for block in comparison_markdown(full).split("\n\n") if block.startswith("|")]
    assert len(blocks) >= 4
    for rows in blocks:
        assert len(rows) > 2
        assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {rows[0].count("|")}


def test_all_files_are_written_or_an_error_says_what_to_do(full: Comparison, tmp_path: Path) -> None:
    paths = write_comparison(full, tmp_path / "out")
    assert {key: path.name for key, path in paths.items()} == {
        "html": "comparison.html",
        "markdown": "comparison.md",
        "json": "comparison.json",
    }
    assert json.loads(paths["json"].read_text(encoding="utf-8"))["schema"] == "lmc-verify/comparison/1"
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidInputError, match="cannot be a folder, for it is a file or in one"):
        write_comparison(full, tmp_path / "file" / "out")
