"""A verifier that cannot fail proves nothing: sound estimators pass, seeded defects are caught, and a blinded verifier
is found out.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from lmc_verify import controls as controls_module
from lmc_verify.case import Workspace, build_case, prepared_state
from lmc_verify.claims import CLAIMS, Claim, Outcome
from lmc_verify.claims.base import verdict_of
from lmc_verify.claims.residuals import Residuals, relative_by_layer
from lmc_verify.controls import CONTROLS, Control, check_control, find_control
from lmc_verify.errors import UnknownNameError
from lmc_verify.execution import run_suite
from lmc_verify.problem import gradient_sum
from lmc_verify.records import Records
from lmc_verify.settings import CaseSettings
from lmc_verify.suite import Suite

SOUND = [name for name, control in CONTROLS.items() if control.role == "sound"]
DEFECTS = [name for name, control in CONTROLS.items() if control.role == "defect"]
WORKSPACE = Workspace()


def test_there_are_controls_of_both_roles() -> None:
    assert len(SOUND) >= 3
    assert len(DEFECTS) >= 15
    assert all(control.name == name and control.description for name, control in CONTROLS.items())


@pytest.mark.parametrize("name", SOUND)
def test_sound_controls_pass(name: str) -> None:
    result = check_control(CONTROLS[name], WORKSPACE)
    assert result.verdict.outcome is CONTROLS[name].expected is Outcome.EXACT
    assert (result.passed, result.effect) == (True, None)


@pytest.mark.parametrize("name", DEFECTS)
def test_defects_are_caught(name: str) -> None:
    control = CONTROLS[name]
    result = check_control(control, WORKSPACE)
    assert result.verdict.outcome is control.expected is Outcome.REFUTED
    assert result.passed is True
    assert result.effect is not None
    assert result.verdict.minimum_detectable_effect is not None
    assert result.effect > result.verdict.minimum_detectable_effect, "a defect that cannot be seen controls nothing"
    assert (
        result.verdict.case["estimator"]
        == (control.alter or (lambda base: base))(build_case(control.broken or control.sound, WORKSPACE).estimator).name
    )
    assert set(result.to_dict()) == {"name", "description", "role", "effect", "passed"}


@pytest.mark.parametrize("name", DEFECTS)
def test_the_effect_is_measured_apart_from_the_check(name: str) -> None:
    """For E1 the largest difference of one batch, for Theorem 1 that of the means: computed here once more."""
    control = CONTROLS[name]
    cases = [build_case(control.sound, WORKSPACE), build_case(control.broken or control.sound, WORKSPACE)]
    if control.alter is not None:
        cases[1] = dataclasses.replace(cases[1], estimator=control.alter(cases[1].estimator))
    states = [prepared_state(case, case.histories) for case in cases]
    means, differences = [case.problem.zero_gradient() for case in cases], []
    for index, (case, state) in enumerate(zip(cases, states, strict=True)):
        for batch, probability in case.design.enumerate():
            gradient = case.estimator.estimate(case.problem, state, batch).gradient
            means[index] = gradient_sum(means[index], gradient, probability)
    if control.claim == "theorem-1/unbiased":
        differences = [gradient_sum(*means, -1.0)]
    else:
        for batch, _ in cases[0].design.enumerate():
            one, other = (
                case.estimator.estimate(case.problem, state, batch).gradient
                for case, state in zip(cases, states, strict=True)
            )
            differences.append(gradient_sum(one, other, -1.0))
    effect = check_control(control, WORKSPACE).effect
    problem, exact = cases[0].problem, cases[0].exact.gradient
    sizes = [size for item in differences for size in relative_by_layer(problem, item, exact).values()]
    assert effect == pytest.approx(max(sizes), rel=1e-9)


# --- a verifier that sees nothing ----------------------------------------------------------------------


def blind(claim: Claim, outcome: Outcome = Outcome.EXACT) -> Claim:
    """The claim with a check that measures and then always says the same."""

    def check(case: Any) -> Any:
        verdict = claim.check(case)
        return dataclasses.replace(verdict, outcome=outcome)

    return dataclasses.replace(claim, check=check)


@pytest.mark.parametrize("name", DEFECTS)
def test_a_blinded_verifier_fails_every_defect(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    claim = CONTROLS[name].claim
    monkeypatch.setitem(CLAIMS, claim, blind(CLAIMS[claim]))
    assert check_control(CONTROLS[name], WORKSPACE).passed is False


@pytest.mark.parametrize("name", SOUND)
@pytest.mark.parametrize("outcome", [Outcome.REFUTED, Outcome.INCONCLUSIVE, Outcome.NOT_APPLICABLE])
def test_a_verifier_that_cries_wolf_fails_the_sound_controls(
    name: str, outcome: Outcome, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim = CONTROLS[name].claim
    monkeypatch.setitem(CLAIMS, claim, blind(CLAIMS[claim], outcome))
    assert check_control(CONTROLS[name], WORKSPACE).passed is False


@pytest.mark.parametrize("outcome", [Outcome.INCONCLUSIVE, Outcome.NOT_APPLICABLE])
def test_a_defect_that_is_not_refuted_is_missed(outcome: Outcome, monkeypatch: pytest.MonkeyPatch) -> None:
    control = CONTROLS["sign-of-one-layer"]
    monkeypatch.setitem(CLAIMS, control.claim, blind(CLAIMS[control.claim], outcome))
    assert check_control(control, WORKSPACE).passed is False


def test_a_verdict_without_a_detectable_effect_excuses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    control = CONTROLS["sign-of-one-layer"]
    claim = CLAIMS[control.claim]
    mute = dataclasses.replace(
        claim, check=lambda case: verdict_of(case, claim.id, Outcome.EXACT, "measured nothing", residuals=None)
    )
    monkeypatch.setitem(CLAIMS, claim.id, mute)
    assert check_control(control, WORKSPACE).passed is False


def test_an_inflated_tolerance_is_caught_by_nobody_but_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a wide tolerance small defects are not asked for, but sound estimators are not exact any more."""

    sharp = Residuals.of

    def generous(*args: Any, terms: int, **settings: Any) -> Residuals:
        return sharp(*args, terms=terms * 10**9, **settings)

    monkeypatch.setattr(Residuals, "of", generous)
    assert check_control(CONTROLS["float16-gradient"], WORKSPACE).passed is None
    assert check_control(CONTROLS["sign-of-one-layer"], WORKSPACE).passed is True
    assert check_control(CONTROLS["sound-backward-sgd"], WORKSPACE).passed is False


def test_a_run_with_a_blinded_verifier_exits_with_4(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suite = Suite.model_validate(
        {
            "name": "blind",
            "title": "Blind",
            "controls": ["sound-backward-sgd", "sign-of-one-layer"],
            "check": [
                {
                    "claim": "theorem-1/unbiased",
                    "dataset": "karate",
                    "estimator": "gas",
                    "design": {"parts": 3, "per_batch": 1},
                    "expect": "REFUTED",
                }
            ],
        }
    )
    monkeypatch.setitem(CLAIMS, "theorem-1/unbiased", blind(CLAIMS["theorem-1/unbiased"]))
    with Records.create_or_open(tmp_path / "records.sqlite") as records:
        result = run_suite(suite, records, Workspace())
    assert result.exit_code == 4  # although a claim is unexpected too, which would be 1
    passed = {trial.control["name"]: trial.as_expected for trial in result.trials if trial.control is not None}
    assert passed == {"sound-backward-sgd": True, "sign-of-one-layer": False}


# --- what cannot be asked for --------------------------------------------------------------------------


def on_karate(name: str) -> Control:
    settings = CaseSettings.model_validate(
        {"dataset": {"name": "karate"}, "model": {"width": 6}, "design": {"parts": 4, "per_batch": 1}}
    )
    return dataclasses.replace(CONTROLS[name], sound=settings)


def test_a_defect_without_effect_on_its_case_is_not_decided() -> None:
    """Transposing the operator of an undirected graph changes nothing but rounding."""
    result = check_control(on_karate("transposed-operator"), WORKSPACE)
    assert result.verdict.outcome is Outcome.EXACT
    assert result.effect is not None
    assert result.verdict.minimum_detectable_effect is not None
    assert result.effect <= result.verdict.minimum_detectable_effect
    assert result.passed is None


def test_the_same_case_shows_a_defect_that_has_an_effect() -> None:
    assert check_control(on_karate("sign-of-one-layer"), WORKSPACE).passed is True


def test_an_effect_that_is_not_a_number_is_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(controls_module, "_effect", lambda *args, **kwargs: float("nan"))
    control = CONTROLS["sign-of-one-layer"]
    monkeypatch.setitem(CLAIMS, control.claim, blind(CLAIMS[control.claim]))
    assert check_control(control, WORKSPACE).passed is False


def test_an_unknown_control_is_named_with_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r"'sign-of-a-layer'.*did you mean 'sign-of-one-layer'"):
        find_control("sign-of-a-layer")
