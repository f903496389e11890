"""An audit in a suite is a trial like any other: planned before it runs, the same in every process, resumed only for
the same source, replayed bit by bit, and it spends no more error probability than it is given.
"""

from __future__ import annotations

import dataclasses
import math
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from common import loops

import lmc_verify as lv
from lmc_verify.cases import Workspace
from lmc_verify.cases.verdict import Outcome, Verdict
from lmc_verify.encoding import decode, encode
from lmc_verify.errors import ContractError, InfrastructureError, InvalidInputError
from lmc_verify.provenance import environment
from lmc_verify.runs import audits as module
from lmc_verify.runs.audits import AuditSettings, PlannedAudit, make_audit, run_audit, verdict_of_audit
from lmc_verify.runs.execution import RunResult, run_suite
from lmc_verify.runs.records import Records
from lmc_verify.runs.replay import planned_again, replay_trial, trial_label
from lmc_verify.runs.suite import Suite, load_suite
from lmc_verify.runs.trials import Trial
from lmc_verify.steps import forked_generators

FILE = str(Path(loops.__file__))
BY_CAUSES = ("batch-mean", "missing-neighbours")
CUT: dict[str, Any] = {"function": f"{FILE}:cut", "arguments": {"parts": 3}, "expect": "REFUTED"}
WHOLE: dict[str, Any] = {"function": f"{FILE}:whole", "expect": "EXACT"}
SAMPLED = {
    "claim": "theorem-1/unbiased-sampled",
    "dataset": "karate",
    "estimator": "lmc",
    "model": {"layers": 2, "width": 4},
    "design": {"parts": 3, "per_batch": 1},
    "expect": "SUPPORTED",
}


def suite_of(*tables: dict[str, Any], **changes: Any) -> Suite:
    values = {"name": "audits", "title": "Audits", "controls": False, "audit": list(tables)}
    return Suite.model_validate(values | changes)


def run(suite: Suite, records: Records, **options: Any) -> RunResult:
    return run_suite(suite, records, Workspace(), **options)


def without_times(trial: Trial) -> Any:
    values = decode(encode(trial.to_dict() | {"seconds": 0.0}))
    if values["verdict"].get("audit"):
        values["verdict"]["audit"]["cost"] = {"steps": values["verdict"]["audit"]["cost"]["steps"]}
    return values


@pytest.fixture
def records(tmp_path: Path) -> Any:
    with Records.create_or_open(tmp_path / "records.sqlite") as opened:
        yield opened


@pytest.fixture(scope="module")
def cut() -> Trial:
    settings = AuditSettings(function=f"{FILE}:cut", arguments={"parts": 3})
    return run_audit(PlannedAudit(settings, Outcome.REFUTED, BY_CAUSES))


# --- the verdict ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_verdict_has_every_number_of_the_audit(cut: Trial) -> None:
    settings = AuditSettings(function=f"{FILE}:cut", arguments={"parts": 3})
    with forked_generators(0, "function"):
        made = lv.audit(**loops.cut(parts=3))
    verdict = cut.verdict
    assert (verdict.claim, verdict.outcome, verdict.summary) == ("audit", made.outcome, made.summary)
    again = lv.Audit.from_dict(verdict.audit or {})
    assert dataclasses.replace(again, cost=made.cost) == made
    groups: dict[str, dict[str, Any]] = {}
    for item in verdict.evidence:
        groups.setdefault(item.group, {})[item.quantity] = item
    assert groups["bias"]["bias"].value == made.bias
    assert (groups["bias"]["bias"].low, groups["bias"]["bias"].high) == (made.low, made.high)
    assert {name: (item.value, item.low, item.high) for name, item in groups["bias by parameter"].items()} == {
        item.name: (item.size, item.low, item.high) for item in made.parameters
    }
    assert {name: item.value for name, item in groups["causes"].items()} == {
        f"{cause.id}: {what}": getattr(cause, what) for cause in made.causes for what in ("removes", "returns")
    }
    assert verdict.causes == BY_CAUSES
    assert (verdict.alpha_spent, verdict.draws, verdict.guarantee) == (0.0, None, "exact")
    assert verdict.case.to_dict() == {"seed": 0, "function": settings.function, "arguments": {"parts": 3}}
    assert set(verdict.hashes) == {"function", "code"}


def test_the_verdict_comes_back_from_its_record(cut: Trial) -> None:
    assert Trial.from_dict(decode(encode(cut.to_dict()))) == cut
    assert "audit" not in Verdict("c", Outcome.EXACT, "s").to_dict()  # records of claims stay as they were
    assert "expected_causes" not in dataclasses.replace(cut, expected_causes=None).to_dict()


@pytest.mark.slow
def test_an_audit_from_draws_spends_its_alpha_asymptotically() -> None:
    settings = AuditSettings(
        function=f"{FILE}:cut", arguments={"parts": 2, "dropout": 0.1}, draws=64, alpha=0.01, delta=0.5
    )
    made = make_audit(settings)
    verdict = verdict_of_audit(made, settings)
    assert made.guarantee == "asymptotic"
    assert made.delta == 0.5
    assert (verdict.alpha_spent, verdict.draws, verdict.guarantee) == (0.01, made.draws, "asymptotic")
    assert verdict.evidence[0].tolerance == 0.5
    trial = Trial("k", "claim", verdict, None, "c", 0.0)
    result = RunResult(1, (trial,), (), 0, alpha_total=1e-6)
    assert (result.alpha_spent, result.alpha_spent_asymptotic, result.overspent) == (0.01, 0.01, True)


@pytest.mark.parametrize(
    ("causes", "expected", "as_expected", "words"),
    [
        (None, "REFUTED", True, "REFUTED"),
        (BY_CAUSES, "REFUTED", True, "REFUTED by batch-mean, missing-neighbours"),
        (BY_CAUSES[::-1], "REFUTED", True, "REFUTED by missing-neighbours, batch-mean"),
        (BY_CAUSES[:1], "REFUTED", False, "REFUTED by batch-mean"),
        ((*BY_CAUSES, "dropout"), "REFUTED", False, "REFUTED by batch-mean, missing-neighbours, dropout"),
        ((), "REFUTED", False, "REFUTED by no known cause"),
        (None, "EXACT", False, "EXACT"),
        (None, None, None, None),
    ],
)
def test_the_causes_are_part_of_what_is_expected(
    causes: tuple[str, ...] | None, expected: str | None, as_expected: bool | None, words: str | None, cut: Trial
) -> None:
    trial = dataclasses.replace(cut, expected=expected, expected_causes=causes)
    assert trial.as_expected is as_expected
    assert trial.expectation == words
    assert trial.found == ("REFUTED" if causes is None else "REFUTED by batch-mean, missing-neighbours")


def test_only_causes_of_the_explanation_count(cut: Trial) -> None:
    audit = decode(encode(cut.verdict.audit))
    audit["explanation"]["causes"][1]["explains"] = False
    assert dataclasses.replace(cut.verdict, audit=audit).causes == BY_CAUSES[:1]


# --- the user's function -------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_function_is_called_with_seeded_generators_which_are_put_back() -> None:
    settings = AuditSettings(function=f"{FILE}:cut", arguments={"parts": 3})
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
    one, two = (make_audit(settings) for _ in range(2))
    other = make_audit(settings.model_copy(update={"seed": 1}))
    assert one.gradient_norm == two.gradient_norm != other.gradient_norm
    assert one.parameters == two.parameters
    assert (one.seed, other.seed) == (0, 1)
    assert torch.equal(states[0], torch.get_rng_state())
    assert (states[1], states[2]) == (np.random.get_state()[1].tolist(), random.getstate())  # noqa: NPY002


def test_a_tuple_is_model_data_batches_and_step() -> None:
    made = make_audit(AuditSettings(function=f"{FILE}:whole"))
    assert (made.outcome, made.name) == (Outcome.EXACT, "loss_step")


@pytest.mark.slow
def test_what_is_given_overrides_what_the_function_returns(monkeypatch: pytest.MonkeyPatch) -> None:
    original = loops.cut
    monkeypatch.setattr(loops, "cut", lambda: original() | {"seed": 5, "delta": 0.3, "alpha": 0.2})
    made = make_audit(AuditSettings(function="common.loops:cut"))
    assert (made.seed, made.delta) == (5, 0.3)
    assert verdict_of_audit(made, AuditSettings(function="common.loops:cut")).case.seed == 5
    made = make_audit(AuditSettings(function="common.loops:cut", seed=2, delta=0.4))
    assert (made.seed, made.delta) == (2, 0.4)


@pytest.mark.parametrize(
    ("returned", "words"),
    [
        (
            [1, 2],
            r"returned a list; it must return a mapping of arguments of lmc_verify.audit, or the tuple \(mod",
        ),
        ((1, 2, 3), r"returned a tuple of 3; it must"),
        ({"model": 1, "data": 2}, r"returned no batches, no step, which lmc_verify.audit needs"),
        ({"modle": 1}, r"returned:.*'modle'.*did you mean 'model'"),
    ],
)
def test_what_the_function_returns_is_checked(returned: Any, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loops, "not_audited", lambda: returned)
    with pytest.raises(InvalidInputError, match=words):
        make_audit(AuditSettings(function="common.loops:not_audited"))


def test_a_mistake_of_the_user_is_named_with_its_line() -> None:
    with pytest.raises(InfrastructureError, match=r"crashing raised KeyError: .*loops\.py, line \d+: raise KeyError"):
        make_audit(AuditSettings(function=f"{FILE}:crashing"))
    words = r"AttributeError: .*loops\.py, line \d+: model\(batch\.no_such_field\)"
    with pytest.raises(InfrastructureError, match=words):
        make_audit(AuditSettings(function=f"{FILE}:crashing", arguments={"late": True}))


def test_code_that_leaves_the_program_is_a_mistake_and_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loops, "whole", lambda: sys.exit(0))
    with pytest.raises(InfrastructureError, match=r"whole raised SystemExit: 0"):
        make_audit(AuditSettings(function="common.loops:whole"))


def test_what_the_users_code_prints_goes_to_standard_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with forked_generators(0):
        original = loops.whole()

    def step(model: Any, batch: Any) -> None:
        print("from the step")
        loops.loss_step(model, batch)

    monkeypatch.setattr(loops, "whole", lambda: print("from the function") or (*original[:3], step))
    make_audit(AuditSettings(function="common.loops:whole"))
    out, errors = capsys.readouterr()
    assert out == ""
    assert "from the function\nfrom the step\n" in errors


@pytest.mark.parametrize(
    ("name", "kind"), [("broken", ContractError), ("crashing", InfrastructureError), ("not_audited", InvalidInputError)]
)
def test_whatever_goes_wrong_is_an_error_and_no_bias(name: str, kind: type[Exception]) -> None:
    planned = PlannedAudit(AuditSettings(function=f"{FILE}:{name}"), Outcome.REFUTED)
    trial = run_audit(planned)
    assert trial.verdict.outcome is Outcome.ERROR
    assert trial.verdict.summary.startswith(f"{kind.__name__}: ")
    assert (trial.crashed, trial.as_expected, trial.verdict.causes) == (True, False, ())
    assert trial.verdict.case == planned.described


# --- planning ------------------------------------------------------------------------------------------


def test_every_combination_is_planned_once() -> None:
    table = {"function": [f"{FILE}:cut", "common.loops:cut"], "arguments": [{}, {"parts": 2}], "expect": "REFUTED"}
    plan = suite_of(table | {"causes": list(BY_CAUSES), "draws": 50, "delta": 0.2}, WHOLE, seed=3).audits()
    assert [item.label for item in plan] == [
        f"audit {FILE}:cut",
        f"audit {FILE}:cut (parts=2)",
        "audit common.loops:cut",
        "audit common.loops:cut (parts=2)",
        f"audit {FILE}:whole",
    ]
    assert len({item.key for item in plan}) == 5
    assert [item.causes for item in plan] == [BY_CAUSES] * 4 + [None]
    assert {(item.settings.draws, item.settings.delta, item.settings.seed) for item in plan[:4]} == {(50, 0.2, 3)}
    assert suite_of({**WHOLE, "seed": 8}, seed=3).audits()[0].settings.seed == 8


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"function": f"{FILE}:cot"}, r"\[\[audit\]\] number 2: unknown function of .*'cot'.*'cut'"),
        ({"arguments": {"part": 2}}, r"\[\[audit\]\] number 2: .*cannot be called.*'part'"),
        ({"function": "cut"}, r"number 2: 'cut' names no function"),
        ({"draws": 1}, r"number 2: draws: .*greater than or equal to 2"),
        ({"guarantee": "sure"}, r"number 2: guarantee: .*'exact', 'anytime-valid' or 'asymptotic'"),
        ({"delta": 0.0}, r"number 2: delta: .*greater than 0"),
        ({"seed": -1}, r"number 2: seed: .*greater than or equal to 0"),
        ({"expect": "EXACT", "causes": ["dropout"]}, r"causes explain a bias, and EXACT is expected; expect REFUTED"),
        ({"function": f"{FILE}:whole", "arguments": {}}, r"number 2: the audit \S*:whole is planned twice"),
    ],
)
def test_what_cannot_be_audited_is_refused_before_anything_runs(
    changes: dict[str, Any], words: str, records: Records
) -> None:
    with pytest.raises(InvalidInputError, match=words):
        run(suite_of(WHOLE, CUT | changes), records)
    assert records.latest_run() is None


def test_the_error_level_is_shared_by_checks_and_audits() -> None:
    exact = CUT | {"guarantee": "exact"}
    suite = suite_of(CUT, WHOLE, exact | {"arguments": {"parts": 2}}, check=[SAMPLED], alpha_total=3e-6)
    (check,) = suite.plan()
    cut, whole, enumerated = suite.audits()
    assert (check.settings.sampling.alpha, cut.settings.alpha, whole.settings.alpha) == (1e-6, 1e-6, 1e-6)
    assert enumerated.settings.alpha is None
    assert [item.statistical for item in (cut, whole, enumerated)] == [True, True, False]
    (alone,) = suite_of(check=[SAMPLED], alpha_total=3e-6).plan()
    assert alone.settings.sampling.alpha == 3e-6


def test_the_command_line_s_guarantee_is_that_of_audits_unless_they_ask_for_more() -> None:
    suite = suite_of(CUT, WHOLE | {"guarantee": "asymptotic"}, CUT | {"arguments": {}, "guarantee": "exact"})
    found = [item.settings.guarantee for item in suite.with_guarantee("anytime-valid").audits()]
    assert found == ["anytime-valid", "anytime-valid", "exact"]
    assert [item.settings.guarantee for item in suite.audits()] == [None, "asymptotic", "exact"]


def test_another_replicate_draws_afresh() -> None:
    suite = suite_of(CUT)
    seeds = [suite.audits(replicate=number)[0].settings.seed for number in (0, 1, 2)]
    assert len(set(seeds)) == 3
    assert seeds[0] == 0
    assert seeds == [suite.audits(replicate=number)[0].settings.seed for number in (0, 1, 2)]


@pytest.mark.parametrize("change", ["settings", "source", "code", "torch"])
def test_the_identity_is_settings_source_and_versions(
    change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "loop.py"
    file.write_text("def loop(parts=4):\n    return None\n")
    planned = PlannedAudit(AuditSettings(function=f"{file}:loop"))
    before = planned.key
    assert before == PlannedAudit(AuditSettings(function=f"{file}:loop"), Outcome.EXACT, ("dropout",)).key
    if change == "settings":
        planned = PlannedAudit(AuditSettings(function=f"{file}:loop", arguments={"parts": 4}))
    elif change == "source":
        file.write_text("def loop(parts=4):\n    return 0000\n")
    elif change == "code":
        monkeypatch.setattr(module, "code_fingerprint", lambda: "another")
    else:
        version_of = module.version_of
        monkeypatch.setattr(module, "version_of", lambda name: "another" if name == "torch" else version_of(name))
    assert planned.key != before


def test_the_command_says_it_all() -> None:
    settings = AuditSettings(
        function="my loops.py:cut",
        arguments={"parts": 3, "seed": 7, "name": "a b", "deep": {"x": [1, 2.5]}, "draws": True},
        draws=50,
        alpha=1e-7,
        guarantee="exact",
        delta=0.25,
        seed=11,
    )
    assert AuditSettings.of_command(settings.command) == settings
    with pytest.raises(InvalidInputError, match=r"the settings of .* do not fit: draws: "):
        AuditSettings.of_command("lmc-verify audit m:f --draws 1")
    assert AuditSettings(function="m:f").command == "lmc-verify audit m:f"


# --- running -------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_audits_are_run_recorded_and_held_against_their_expectation(records: Records) -> None:
    told: list[str] = []
    result = run(
        suite_of(CUT | {"causes": list(BY_CAUSES)}, CUT | {"arguments": {"parts": 2}, "causes": ["dropout"]}, WHOLE),
        records,
        listen=lambda planned, *_: told.append(planned.label),
    )
    assert [trial.verdict.outcome.value for trial in result.trials] == ["REFUTED", "REFUTED", "EXACT"]
    assert [trial.as_expected for trial in result.trials] == [True, False, True]
    assert result.exit_code == 1
    assert tuple(records.trials(result.run_id)) == result.trials
    assert records.run(result.run_id).settings["planned"] == len(told) == 3


@pytest.mark.parametrize(("name", "code"), [("broken", 5), ("cut", 0)])
def test_an_audit_that_crashes_ends_no_run(name: str, code: int, records: Records) -> None:
    result = run(suite_of({"function": f"{FILE}:{name}", "expect": "REFUTED"}, WHOLE), records)
    assert len(result.trials) == 2
    assert result.exit_code == code


@pytest.mark.slow
def test_two_processes_give_the_same_bits(tmp_path: Path) -> None:
    suite = suite_of(CUT, WHOLE, {"function": f"{FILE}:histories", "expect": "REFUTED"})
    results = []
    for jobs in (1, 2):
        with Records.create_or_open(tmp_path / f"{jobs}.sqlite") as records:
            results.append(run(suite, records, jobs=jobs))
    one, two = ([without_times(trial) for trial in result.trials] for result in results)
    assert one == two


def test_a_resumed_run_reuses_audits_of_the_same_source(
    records: Records, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "own_loops.py"
    file.write_text(Path(FILE).read_text())
    table = {"function": f"{file}:whole", "expect": "EXACT"}
    run(suite_of(table), records)
    monkeypatch.setattr(module, "make_audit", lambda settings: pytest.fail("it was made again"))
    again = run(suite_of(table | {"expect": "REFUTED", "causes": ["dropout"]}), records, resume=True)
    assert again.reused == 1
    assert again.trials[0].expectation == "REFUTED by dropout"
    monkeypatch.undo()
    file.write_text(Path(FILE).read_text() + "\n")
    assert run(suite_of(table), records, resume=True).reused == 0


def test_a_recorded_audit_is_replayed_bit_by_bit(cut: Trial, records: Records, monkeypatch: pytest.MonkeyPatch) -> None:
    number = records.start_run("audits", "Audits", {}, environment())
    records.add(number, cut)
    (stored,) = records.trials(number)
    planned = planned_again(stored)
    assert isinstance(planned, PlannedAudit)
    replay = replay_trial(stored, planned, environment())
    assert replay.identical, [str(item) for item in replay.differences]
    assert trial_label(stored) == f"audit {FILE}:cut"
    audit = decode(encode(cut.verdict.audit))
    audit["bias"] = math.nextafter(audit["bias"], math.inf)
    audit["cost"]["steps"] += 1
    changed = dataclasses.replace(stored, verdict=dataclasses.replace(stored.verdict, audit=audit))
    found = {item.where for item in replay_trial(changed, planned, environment()).differences}
    assert found == {"verdict.audit.bias", "verdict.audit.cost.steps"}


def test_a_replay_without_the_function_says_so(cut: Trial) -> None:
    gone = dataclasses.replace(cut, command=cut.command.replace("loops.py", "lost.py"))
    with pytest.raises(InvalidInputError, match=r"cannot read .*lost\.py"):
        replay_trial(gone, planned_again(gone), {})


def test_the_suite_of_example_loops_names_functions_that_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path(FILE).parents[2]
    monkeypatch.chdir(root)
    plan = load_suite("audits").audits()
    named = {Path(item.settings.function.partition(":")[0]).name for item in plan}
    assert len(named) >= 7
    assert named <= {file.name for file in (root / "examples" / "loops").glob("*.py")}
    assert all(item.causes is not None for item in plan if item.expected is Outcome.REFUTED)
    assert {item.expected for item in plan} == {Outcome.EXACT, Outcome.REFUTED}


def test_the_suite_of_one_audit_gives_it_all_of_alpha() -> None:
    planned = PlannedAudit(AuditSettings(function=f"{FILE}:cut", alpha=0.01, seed=4), Outcome.REFUTED, ("dropout",))
    suite = Suite.of_audit(planned)
    assert suite.audits() == [planned]
    assert Suite.of_audit(PlannedAudit(AuditSettings(function=f"{FILE}:cut"))).audits()[0].expected is None
