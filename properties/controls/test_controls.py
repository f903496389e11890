"""A verifier that cannot fail proves nothing: sound estimators pass, seeded defects are caught, and a blinded verifier
is found out.
"""

from __future__ import annotations

import dataclasses
import io
import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from common.crossed import crossed, slow_but
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from lmc_verify import Batch, Estimator
from lmc_verify.cases.case import Case, build_case, prepared_state, sweep_batches
from lmc_verify.cases.settings import CaseSettings
from lmc_verify.cases.workspace import Workspace
from lmc_verify.claims import CLAIMS, Claim, Outcome, find_claim
from lmc_verify.claims.claim import verdict_of
from lmc_verify.claims.residuals import Residuals, relative_by_layer
from lmc_verify.cli.print_verdicts import print_controls
from lmc_verify.controls import (
    CEILING,
    Altered,
    AnyControl,
    Control,
    ControlRecord,
    ControlResult,
    MutationScore,
    NumbersControl,
    alter,
    check_control,
    defects,
    find_control,
    seeded_subset,
)
from lmc_verify.controls import CONTROLS as ALL
from lmc_verify.controls import control as model
from lmc_verify.controls.control import Role
from lmc_verify.encoding import decode, encode
from lmc_verify.errors import InvalidInputError, UnknownNameError
from lmc_verify.estimators import properties_of
from lmc_verify.graphs.graph import Graph
from lmc_verify.graphs.operators import LocalSet
from lmc_verify.objective.problem import Gradient, gradient_sum
from lmc_verify.runs.execution import run_suite
from lmc_verify.runs.planned import Planned, run_planned
from lmc_verify.runs.records import Records
from lmc_verify.runs.suite import Suite
from lmc_verify.runs.trials import Trial

CONTROLS = {name: control for name, control in ALL.items() if isinstance(control, Control)}
"""Those that check a claim; the others are in test_reference_numbers.py."""
NUMBERS = [name for name, control in ALL.items() if isinstance(control, NumbersControl)]
SOUND = [name for name, control in CONTROLS.items() if control.role == "sound"]
DEFECTS = [name for name, control in CONTROLS.items() if control.role == "defect"]
LAWLESS = ["gradient-accumulated"]
"""Defects that break the contract: they are caught before anything is said about bias, and have no size."""
MEASURED = [name for name in DEFECTS if name not in LAWLESS]
SETTINGS = [name for name in DEFECTS if CONTROLS[name].broken is not None]
ALTERED = [name for name in DEFECTS if CONTROLS[name].alter is not None]
LONG = {
    "backward-halo-dropped-drawn",
    "histories-never-written",
    "sign-of-one-layer-drawn",
    "unlabelled-batch-skipped",
    "history-rows-misplaced",
    "auxiliary-history-never-written",
    "stale-histories",
    "parameters-one-step-behind",
    "auxiliary-history-scaled",
    "halo-labels-forgotten",
    "halo-leak-into-encoder",
    "mask-off-by-one",
    "transposed-operator",
    "history-row-forgotten",
}
"""Defects whose check takes over half a second: of each claim that they are about there is a shorter one, or a sound
control.
"""
WORKSPACE = Workspace()


@cache
def checked(name: str) -> ControlResult:
    return check_control(CONTROLS[name], WORKSPACE)


def test_the_catalogue_has_both_roles_for_every_enumerated_claim() -> None:
    assert len(SOUND) >= 5
    assert 24 <= len(DEFECTS) <= 40
    assert all(control.name == name and control.description for name, control in CONTROLS.items())
    assert list(ALL) == NUMBERS + SOUND + DEFECTS
    exact = {claim.id for claim in CLAIMS.values() if claim.tier == "exact"} & {
        "theorem-1/unbiased",
        "e1/equals-backward-sgd",
        "e2/exact-when-frozen",
        "e3/contraction",
        "e6/bias-per-layer",
        "e7/reductions",
        "e8/bias-and-variance",
    }
    assert len(exact) == 7
    for names in (SOUND, DEFECTS):
        assert exact | {"theorem-1/unbiased-sampled"} <= {CONTROLS[name].claim for name in names}


@pytest.mark.parametrize("name", SOUND)
def test_sound_controls_pass(name: str) -> None:
    result = checked(name)
    assert result.verdict.outcome is CONTROLS[name].expected
    assert (result.passed, result.effect, result.detectable) == (True, None, None)


@pytest.mark.slow
@pytest.mark.parametrize("name", DEFECTS)
def test_without_its_defect_every_case_passes(name: str) -> None:
    """What is refuted is the defect, and not the case it is planted in."""
    control = CONTROLS[name]
    sound = dataclasses.replace(control, role="sound", broken=None, alter=None)
    verdict = find_claim(control.claim).check(control.sound_case(WORKSPACE))
    assert verdict.outcome is sound.expected


@pytest.mark.parametrize("name", LAWLESS)
def test_defects_that_break_the_contract_are_refused(name: str) -> None:
    result = checked(name)
    assert (result.verdict.outcome, result.passed, result.detectable) == (Outcome.ERROR, True, True)
    assert result.effect == math.inf
    assert "the contract is broken" in result.verdict.summary
    assert "randomness of its own" in result.verdict.summary


@pytest.mark.parametrize("name", slow_but({*MEASURED} - LONG, MEASURED))
def test_defects_are_caught(name: str) -> None:
    control, result = CONTROLS[name], checked(name)
    assert result.verdict.outcome is control.expected is Outcome.REFUTED
    assert result.passed is True
    assert result.effect is not None
    assert result.verdict.minimum_detectable_effect is not None
    assert result.effect > result.verdict.minimum_detectable_effect, "a defect that cannot be seen controls nothing"
    assert result.verdict.case.estimator == control.checked_case(WORKSPACE).estimator.name
    assert result.record.to_dict() == {
        "name": name,
        "description": control.description,
        "role": "defect",
        "effect": result.effect,
        "detectable": True,
        "passed": True,
    }


def gradients(case: Case, histories: str, batches: list[Batch]) -> list[Gradient]:
    state = prepared_state(case, histories)
    return [case.estimator.estimate(case.problem, state, batch).gradient for batch in batches]


@pytest.mark.slow
@pytest.mark.parametrize("name", MEASURED)
def test_the_effect_is_measured_apart_from_the_check(name: str) -> None:
    """The largest difference of one batch, or that of the means: computed here once more."""
    control = CONTROLS[name]
    cases = [build_case(control.sound, WORKSPACE), build_case(control.broken or control.sound, WORKSPACE)]
    if control.alter is not None:
        cases[1] = dataclasses.replace(cases[1], estimator=control.alter(cases[1].estimator))
    sound = cases[0]
    if control.claim.startswith(("e1/", "e2/", "e3/", "e5/", "theorem-2/contraction")):
        drawn = [batch for batch, _ in sound.design.enumerate()]
        swept = f"sweeps:{2 * sound.problem.num_layers}"
        batches, histories = (drawn, "exact") if control.claim[:2] == "e1" else (sweep_batches(sound), swept)
        pairs = zip(*(gradients(case, histories, batches) for case in cases), strict=True)
        differences = [gradient_sum(one, other, -1.0) for one, other in pairs]
    else:
        means = []
        for case in cases:
            support = list(case.design.enumerate())
            mean = case.problem.zero_gradient()
            for gradient, (_, probability) in zip(
                gradients(case, case.histories, [batch for batch, _ in support]), support, strict=True
            ):
                mean = gradient_sum(mean, gradient, probability)
            means.append(mean)
        differences = [gradient_sum(means[0], means[1], -1.0)]
    sizes = [
        size for item in differences for size in relative_by_layer(sound.problem, item, sound.exact.gradient).values()
    ]
    assert checked(name).effect == pytest.approx(max(sizes), rel=1e-9)


def test_all_controls_are_cheap() -> None:
    """They run in every suite: small graphs, and designs of few batches."""
    for control in CONTROLS.values():
        case = control.sound_case(WORKSPACE)
        assert case.graph.num_nodes <= 64
        assert case.base_design.support_size <= (500 if "drawn" in control.name else 64)
        assert case.design.support_size <= 1000  # with the samples of an estimator


# --- a defect is one thing -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", DEFECTS)
def test_a_defect_is_a_setting_or_a_computation(name: str) -> None:
    assert (CONTROLS[name].broken is None) != (CONTROLS[name].alter is None)


@pytest.mark.parametrize("name", SETTINGS)
def test_a_wrong_setting_is_wrong_in_one_place(name: str) -> None:
    control = CONTROLS[name]
    assert control.broken is not None
    left, right = control.sound.model_dump(), control.broken.model_dump()
    assert len([key for key in left if left[key] != right[key]]) == 1


@pytest.mark.parametrize("name", ALTERED)
def test_a_wrong_computation_alters_one_thing_and_its_inputs_stay_as_they_are(name: str) -> None:
    control = CONTROLS[name]
    case = control.checked_case(WORKSPACE)
    estimator = case.estimator
    assert isinstance(estimator, Altered)
    kinds = ("problem", "batch", "state", "gradient", "write")
    assert sum(getattr(estimator, kind) is not None for kind in kinds) == 1
    state = case.initial_state()
    held, parameters, graph = state.clone(), case.problem.parameter_fingerprint(), case.graph.fingerprint
    batch = next(batch for batch, _ in case.design.enumerate())
    first, second = (estimator.estimate(case.problem, state, batch).gradient for _ in range(2))
    assert state.equals(held)
    assert case.problem.parameter_fingerprint() == parameters
    assert (case.graph.fingerprint, Graph(**_fields(case.graph)).fingerprint) == (graph, graph)
    same = all(torch.equal(first[key], second[key]) for key in first)
    assert same == (name != "gradient-accumulated")


def _fields(graph: Graph) -> dict[str, Any]:
    names = ("edge_index", "x", "y", "train_mask", "edge_weight", "val_mask", "test_mask", "name")
    return {name: getattr(graph, name) for name in names}


CHANGED: dict[str, Callable[[str], bool]] = {
    "sign-of-one-layer": lambda name: name.startswith("layers.0."),
    "scale-of-one-layer": lambda name: name.startswith("layers.0."),
    "float32-of-one-layer": lambda name: name.startswith("layers.1."),
    "last-bias-missing": lambda name: name == "layers.2.conv.bias",
    "halo-leak-into-bias": lambda name: name.endswith("bias"),
    "halo-leak-into-encoder": lambda name: name.startswith("encoder."),
    # V^3 at the halo comes from the loss, V^2 from its history: only layer 1 reads what the latter sends.
    "backward-halo-negated": lambda name: name.startswith("layers.0."),
    "backward-halo-dropped": lambda name: not name.startswith(("layers.2.", "head.")),
    "halo-labels-forgotten": lambda name: not name.startswith(("layers.2.", "head.")),
}


@pytest.mark.parametrize("name", list(CHANGED))
def test_only_these_parameters_have_another_gradient(name: str) -> None:
    control = CONTROLS[name]
    sound, broken = control.sound_case(WORKSPACE), control.checked_case(WORKSPACE)
    batches = [batch for batch, _ in sound.design.enumerate()]
    pairs = list(zip(gradients(sound, "exact", batches), gradients(broken, "exact", batches), strict=True))
    differing = {key for one, other in pairs for key in one if not torch.equal(one[key], other[key])}
    assert differing == {key for key in pairs[0][0] if CHANGED[name](key)}


def seen(name: str) -> tuple[Case, Batch, Any]:
    """Return the case of a control, a batch with a halo, and the problem that its altered estimator sees."""
    case = CONTROLS[name].checked_case(WORKSPACE)
    batch = next(batch for batch, _ in case.design.enumerate())
    estimator = case.estimator
    assert isinstance(estimator, Altered)
    assert case.graph.neighbourhood(batch.nodes).numel() > 0
    return case, batch, None if estimator.problem is None else estimator.problem(case.problem, batch)


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("mask-off-by-one", "train_mask"),
        ("edge-weights-ignored", "edge_weight"),
        ("transposed-operator", "edge_index"),
        ("self-loop-missing", None),
        ("in-neighbours-only", None),
        ("halo-mean-over-local-sources", None),
    ],
)
def test_a_wrong_graph_differs_in_one_field(name: str, field: str | None) -> None:
    case, _, problem = seen(name)
    assert problem.model is case.problem.model
    for key, value in _fields(case.graph).items():
        other = getattr(problem.graph, key)
        same = torch.equal(value, other) if isinstance(value, torch.Tensor) and other is not None else value is other
        assert same == (key != field), key


def test_without_self_loops_only_the_diagonal_is_gone() -> None:
    case, _, problem = seen("self-loop-missing")
    whole, pruned = (item.operator("gcn").csr.to_dense() for item in (case.graph, problem.graph))
    assert bool((whole.diagonal() > 0).all())
    assert torch.equal(pruned, whole - torch.diag(whole.diagonal()))


def test_in_neighbours_only_forgets_the_nodes_that_the_batch_only_feeds() -> None:
    case, batch, problem = seen("in-neighbours-only")
    source, destination = case.graph.edge_index
    halo = set(case.graph.neighbourhood(batch.nodes).tolist())
    feeding = set(source[torch.isin(destination, batch.nodes)].tolist()) - set(batch.nodes.tolist())
    assert set(problem.graph.neighbourhood(batch.nodes).tolist()) == feeding < halo


def test_a_mean_over_local_sources_is_wrong_at_halo_rows_only() -> None:
    case, batch, problem = seen("halo-mean-over-local-sources")
    halo = case.graph.neighbourhood(batch.nodes)
    local = LocalSet(torch.cat([batch.nodes, halo]), batch.size)
    for rows, change in ((batch.nodes, False), (halo, True)):
        blocks = [item.block("mean", rows, local).csr.to_dense() for item in (case.graph, problem.graph)]
        assert torch.equal(*blocks) != change
        if change:  # each row with a source is a mean again
            total = blocks[1].sum(dim=1)
            assert bool(((total - 1).abs().lt(1e-12) | (total == 0)).all())


def test_halo_losses_are_zero_and_those_of_the_batch_are_not() -> None:
    case, batch, problem = seen("halo-labels-forgotten")
    halo = case.graph.neighbourhood(batch.nodes)
    outputs = case.problem.model.predict(case.exact.embeddings[-1])
    for nodes, kept in ((batch.nodes, True), (halo, False)):
        right, wrong = (item.node_losses(outputs[nodes], nodes) for item in (case.problem, problem))
        assert bool(right.sum() > 0)
        assert torch.equal(wrong, right if kept else torch.zeros_like(right))
    assert torch.equal(case.problem.node_losses(outputs), problem.node_losses(outputs))


def test_parameters_one_step_behind_are_those_before_a_small_gradient_step() -> None:
    case, _, problem = seen("parameters-one-step-behind")
    assert problem.graph is case.graph
    for name, parameter in problem.model.named_parameters():
        present = case.problem.model.get_parameter(name)
        assert torch.allclose(parameter - 0.01 * case.exact.gradient[name], present, rtol=0, atol=1e-15)


def test_the_history_of_the_layer_below_is_read_where_widths_agree() -> None:
    case = CONTROLS["history-of-the-layer-below"].sound_case(WORKSPACE)
    state = case.initial_state()
    read = defects.history_of_the_layer_below(state)
    assert [read.embeddings[layer] is state.embeddings[layer] for layer in (1, 2, 3)] == [True, False, True]
    assert read.embeddings[2] is state.embeddings[1]
    assert read.auxiliary is state.auxiliary


@pytest.mark.parametrize("name", ["history-rows-misplaced", "auxiliary-history-scaled"])
def test_wrong_writes_leave_the_estimate_alone(name: str) -> None:
    control = CONTROLS[name]
    sound, broken = control.sound_case(WORKSPACE), control.checked_case(WORKSPACE)
    state, batch = sound.initial_state(), next(batch for batch, _ in sound.design.enumerate())
    right, wrong = (case.estimator.estimate(case.problem, state, batch) for case in (sound, broken))
    assert all(torch.equal(value, wrong.gradient[key]) for key, value in right.gradient.items())
    for one, other in zip(right.writes, wrong.writes, strict=True):
        scale = 2.5 if name == "auxiliary-history-scaled" and one.kind == "auxiliary" else 1.0
        assert (one.kind, one.layer) == (other.kind, other.layer)
        assert torch.allclose(scale * one.values, other.values, rtol=1e-15, atol=0)
        assert torch.equal(one.nodes.sort().values, other.nodes.sort().values)
        assert torch.equal(one.nodes, other.nodes) == (name != "history-rows-misplaced")


def test_a_batch_of_one_node_keeps_it() -> None:
    assert defects.last_row_forgotten(Batch.of([3, 5, 8], 0.5)).nodes.tolist() == [3, 5]
    assert defects.last_row_forgotten(Batch.of([3], 0.5)).nodes.tolist() == [3]


def test_only_batches_without_a_label_are_skipped() -> None:
    case = CONTROLS["unlabelled-batch-skipped"].checked_case(WORKSPACE)
    state, mask = case.initial_state(), case.graph.train_mask
    found = {True: 0, False: 0}
    for batch, _ in case.design.enumerate():
        labelled = bool(mask[batch.nodes].any())
        gradient = case.estimator.estimate(case.problem, state, batch).gradient
        found[labelled] += 1
        assert labelled or not any(bool(value.any()) for value in gradient.values())
    assert min(found.values()) > 0


def test_accumulated_gradients_are_running_sums() -> None:
    control = CONTROLS["gradient-accumulated"]
    sound, broken = control.sound_case(WORKSPACE), control.checked_case(WORKSPACE)
    batches = [batch for batch, _ in sound.design.enumerate()]
    total = sound.problem.zero_gradient()
    pairs = zip(gradients(sound, "exact", batches), gradients(broken, "exact", batches), strict=True)
    for right, wrong in pairs:
        total = gradient_sum(total, right)
        assert all(torch.equal(total[key], wrong[key]) for key in total)


def test_every_use_of_a_control_starts_afresh() -> None:
    """Else the memory of one run would leak into the next, and trials could not be repeated."""
    control = CONTROLS["gradient-accumulated"]
    results = [check_control(control, WORKSPACE) for _ in range(2)]
    assert results[0].effect == results[1].effect
    assert results[0].verdict == results[1].verdict


def test_an_altered_estimator_states_what_the_sound_one_states_and_is_not_known_to_do_it() -> None:
    case = CONTROLS["sound-lmc"].sound_case(WORKSPACE)
    sound = properties_of(case.estimator)
    altered = alter(case.estimator, "nothing")
    assert isinstance(altered, Estimator)
    assert (altered.name, altered.policies) == ("lmc (nothing)", sound.policies)
    assert altered.weighting == sound.weighting == "inclusion"
    assert (sound.known, properties_of(altered).known) == (True, False)

    class Foreign:
        name = "foreign"
        init, estimate = case.estimator.init, case.estimator.estimate

    stranger = alter(Foreign(), "nothing")
    assert (stranger.name, stranger.policies, stranger.weighting) == ("foreign (nothing)", None, None)
    unaltered = find_claim("e2/exact-when-frozen").check(dataclasses.replace(case, estimator=altered))
    assert unaltered.outcome is Outcome.EXACT


# --- a verifier that sees nothing ----------------------------------------------------------------------


def blind(claim: Claim, outcome: Outcome = Outcome.EXACT) -> Claim:
    """The claim with a check that measures and then always says the same."""

    def check(case: Any) -> Any:
        verdict = claim.check(case)
        return dataclasses.replace(verdict, outcome=outcome)

    return dataclasses.replace(claim, check=check)


@pytest.mark.slow
@pytest.mark.parametrize("name", MEASURED)
def test_a_blinded_verifier_fails_every_defect(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    claim = CONTROLS[name].claim
    monkeypatch.setitem(CLAIMS, claim, blind(CLAIMS[claim]))
    assert check_control(CONTROLS[name], WORKSPACE).passed is False


@pytest.mark.parametrize("name", slow_but({*SOUND} - {"sound-settling"}, SOUND))
@pytest.mark.parametrize(
    "outcome", slow_but({Outcome.REFUTED}, [Outcome.REFUTED, Outcome.INCONCLUSIVE, Outcome.NOT_APPLICABLE])
)
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


# --- power ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("factor", "name"),
    crossed([100, 1000, 10**9], ["sound-backward-sgd", "sound-lmc", "sign-of-one-layer", "float16-gradient"]),
)
def test_a_tolerance_that_has_grown_fails_the_control(name: str, factor: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sound estimator is still exact and a gross defect still refuted: only what could be detected tells."""
    sharp = Residuals.of

    def generous(*args: Any, terms: int, **settings: Any) -> Residuals:
        return sharp(*args, terms=terms * factor, **settings)

    monkeypatch.setattr(Residuals, "of", generous)
    result = check_control(CONTROLS[name], WORKSPACE)
    assert (result.passed, result.verdict.outcome) == (False, Outcome.INCONCLUSIVE)
    assert "the check has lost its power: it detects effects from" in result.verdict.summary
    assert "1.0e-10 must be detected" in result.verdict.summary


@pytest.mark.slow
def test_a_refutation_factor_of_1e5_fails_the_controls(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("claims.residuals", "statistics.rounding", "claims.consequences.e8_bias_and_variance"):
        monkeypatch.setattr(f"lmc_verify.{module}.REFUTATION_FACTOR", 1e5)
    failed = [name for name in SOUND if check_control(CONTROLS[name], WORKSPACE).passed is False]
    assert {"sound-backward-sgd", "sound-lmc", "sound-bias-and-variance", "sound-trained-encoder"} <= set(failed)


@pytest.mark.parametrize("name", slow_but({*SOUND, *MEASURED} - LONG, [*SOUND, *MEASURED]))
def test_a_check_sees_what_it_must_with_less_than_a_factor_of_thirty_to_spare(name: str) -> None:
    """Else the ceiling is so high that it says nothing; without one nothing is asked of the check's power."""
    ceiling, limit = CONTROLS[name].ceiling, checked(name).verdict.minimum_detectable_effect
    assert ceiling is not None
    assert limit is not None
    assert limit <= ceiling <= 30 * limit
    assert ceiling <= CEILING or find_claim(CONTROLS[name].claim).tier != "exact"


def test_a_check_that_states_no_detectable_effect_fails_a_sound_control(monkeypatch: pytest.MonkeyPatch) -> None:
    control = CONTROLS["sound-backward-sgd"]
    claim = CLAIMS[control.claim]
    mute = dataclasses.replace(
        claim, check=lambda case: verdict_of(case, claim.id, Outcome.EXACT, "measured nothing", residuals=None)
    )
    monkeypatch.setitem(CLAIMS, claim.id, mute)
    result = check_control(control, WORKSPACE)
    assert result.passed is False
    assert "it states no detectable effect" in result.verdict.summary


@pytest.mark.parametrize(("limit", "passed"), [(0.1, True), (0.09, False), (None, True)])
def test_elsewhere_than_in_the_exact_tier_the_limit_is_the_control_s_own(
    limit: float | None, passed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CLAIMS, "test/claim", statistical(Outcome.SUPPORTED, 0.1))
    sound = dataclasses.replace(CONTROLS["sound-backward-sgd"], claim="test/claim", limit=limit)
    assert check_control(sound, WORKSPACE).passed is passed


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
    passed = {trial.control.name: trial.as_expected for trial in result.trials if trial.control is not None}
    assert passed == {"sound-backward-sgd": True, "sign-of-one-layer": False}


# --- what cannot be asked for --------------------------------------------------------------------------


def on_karate(name: str) -> Control:
    settings = CaseSettings.model_validate(
        {"dataset": {"name": "karate"}, "model": {"width": 6, "layers": 2}, "design": {"parts": 4, "per_batch": 1}}
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
    monkeypatch.setattr(model, "_effect", lambda *args: float("nan"))
    control = CONTROLS["sign-of-one-layer"]
    monkeypatch.setitem(CLAIMS, control.claim, blind(CLAIMS[control.claim]))
    assert check_control(control, WORKSPACE).passed is False


def test_an_unknown_control_is_named_with_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r"'sign-of-a-layer'.*did you mean 'sign-of-one-layer'"):
        find_control("sign-of-a-layer")


# --- other claims than those of the exact tier ---------------------------------------------------------


def statistical(outcome: Outcome, detectable: float | None) -> Claim:
    """A claim that is not enumerated, with a given answer."""

    def check(case: Case) -> Any:
        verdict = verdict_of(case, "test/claim", outcome, "as told")
        return dataclasses.replace(verdict, minimum_detectable_effect=detectable)

    return dataclasses.replace(CLAIMS["theorem-1/unbiased"], id="test/claim", tier="test", check=check)


@pytest.mark.parametrize(
    ("outcome", "detectable", "passed"),
    [
        (Outcome.REFUTED, 0.1, True),
        (Outcome.SUPPORTED, 0.1, False),
        (Outcome.INCONCLUSIVE, 0.1, False),
        (Outcome.INCONCLUSIVE, 2.1, None),
        (Outcome.SUPPORTED, None, False),
        (Outcome.REFUTED, 2.1, True),
    ],
)
def test_a_statistical_claim_must_catch_what_it_can_detect(
    outcome: Outcome, detectable: float | None, passed: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CLAIMS, "test/claim", statistical(outcome, detectable))
    defect = dataclasses.replace(CONTROLS["sign-of-one-layer"], claim="test/claim")
    result = check_control(defect, WORKSPACE)
    assert result.effect == pytest.approx(2.0)
    assert (result.passed, result.detectable) == (passed, detectable != 2.1)


@pytest.mark.parametrize(
    ("outcome", "passed"), [(Outcome.SUPPORTED, True), (Outcome.EXACT, False), (Outcome.INCONCLUSIVE, False)]
)
def test_a_sound_control_of_a_statistical_claim_must_be_supported(
    outcome: Outcome, passed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CLAIMS, "test/claim", statistical(outcome, 0.1))
    sound = dataclasses.replace(CONTROLS["sound-backward-sgd"], claim="test/claim")
    assert sound.expected is Outcome.SUPPORTED
    assert check_control(sound, WORKSPACE).passed is passed


# --- what is kept ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "recorded",
    [
        '{"name":"n","description":"d","role":"defect","effect":0.25,"detectable":true,"passed":true}',
        '{"name":"n","description":"d","role":"defect","effect":1e-09,"detectable":false,"passed":null}',
        '{"name":"n","description":"d","role":"sound","effect":null,"detectable":null,"passed":true}',
        '{"name":"n","description":"d","role":"defect","effect":null,"passed":false}',
    ],
    ids=["caught", "below the detectable effect", "sound", "crashed"],
)
def test_a_control_on_record_is_read_and_written_again_byte_for_byte(recorded: str) -> None:
    record = ControlRecord.from_dict(decode(recorded))
    assert encode(record.to_dict()) == recorded
    assert record.crashed is ("detectable" not in recorded)


# --- the mutation score --------------------------------------------------------------------------------


def result(role: Role, passed: bool | None, detectable: bool | None) -> ControlRecord:
    return ControlRecord("n", "", role, None if detectable is None else 1.0, detectable, passed)


CAUGHT, MISSED = result("defect", True, True), result("defect", False, True)
BELOW, LUCKY = result("defect", None, False), result("defect", True, False)
CRASHED = dataclasses.replace(result("defect", False, None), crashed=True)
GOOD, BAD = result("sound", True, None), result("sound", False, None)


@pytest.mark.parametrize(
    ("results", "line"),
    [
        ([CAUGHT] * 27, "mutation score: 27 of 27 defects above the detectable effect caught (100%)"),
        ([CAUGHT] * 299 + [MISSED], "mutation score: 299 of 300 defects above the detectable effect caught (99%)"),
        (
            [CAUGHT, MISSED, MISSED, BELOW],
            "mutation score: 1 of 3 defects above the detectable effect caught (33%); 1",
        ),
        ([CRASHED, GOOD, BAD], "mutation score: 0 of 1 defects above the detectable effect caught (0%)"),
        ([CAUGHT, LUCKY], "mutation score: 1 of 1 defects above the detectable effect caught (100%); 1 below it"),
        ([BELOW, GOOD], "mutation score: no defect with an effect above the detectable one; 1 below it"),
        # Passing was not asked for.
        ([result("defect", None, None)], "mutation score: no defect with an effect above the detectable one; 1 below"),
    ],
)
def test_the_score_is_printed(results: list[ControlRecord], line: str) -> None:
    assert str(MutationScore.of(results)).startswith(line)


@given(st.lists(st.sampled_from([CAUGHT, MISSED, BELOW, LUCKY, CRASHED, GOOD, BAD])))
def test_the_score_counts_every_defect_once(results: list[ControlRecord]) -> None:
    score = MutationScore.of(results)
    assert score.above + score.below == sum(item.role == "defect" for item in results)
    assert (score.caught, score.missed) == (results.count(CAUGHT), results.count(MISSED) + results.count(CRASHED))
    assert score == MutationScore.of(reversed(results))
    assert score.to_dict() == {"caught": score.caught, "above": score.above, "below": score.below}


@pytest.mark.parametrize("left_out", [LONG, pytest.param(set(), marks=pytest.mark.slow)], ids=["short", "all"])
def test_the_catalogue_scores_full_marks(left_out: set[str]) -> None:
    score = MutationScore.of(checked(name).record for name in CONTROLS if name not in left_out)
    caught = len(DEFECTS) - len(left_out)
    assert score == MutationScore(caught, caught, 0)


@pytest.mark.slow
def test_a_blinded_verifier_scores_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for claim_id in {CONTROLS[name].claim for name in DEFECTS}:
        monkeypatch.setitem(CLAIMS, claim_id, blind(CLAIMS[claim_id]))
    chosen = [CONTROLS[name] for name in DEFECTS[::6]]
    score = MutationScore.of(check_control(control, WORKSPACE).record for control in chosen)
    assert score == MutationScore(0, len(chosen), 0)


# --- what is printed -----------------------------------------------------------------------------------


def trial_of(name: str) -> Trial:
    control = CONTROLS[name]
    settings = control.broken or control.sound
    return run_planned(Planned("control", control.claim, settings, control.expected, control=control), WORKSPACE)


def printed(trials: list[Trial]) -> str:
    stream = io.StringIO()
    print_controls(trials, Console(file=stream, width=140))
    return stream.getvalue()


def test_the_table_shows_effect_and_verdict() -> None:
    text = printed([trial_of("sound-lmc"), trial_of("sign-of-one-layer")])
    sound, defect = (next(line.split() for line in text.splitlines() if name in line) for name in ("sound-l", "sign-"))
    assert [*sound[:3], *sound[-2:]] == ["sound-lmc", "e1/equals-backward-sgd", "sound", "EXACT", "passed"]
    assert [*defect[:4], *defect[-2:]] == [
        "sign-of-one-layer",
        "theorem-1/unbiased",
        "defect",
        "2.0e+00",
        "REFUTED",
        "passed",
    ]
    assert text.splitlines()[-1] == "mutation score: 1 of 1 defects above the detectable effect caught (100%)"


def test_a_missed_defect_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CLAIMS, "theorem-1/unbiased", blind(CLAIMS["theorem-1/unbiased"]))
    text = printed([trial_of("sign-of-one-layer")])
    assert "sign-of-one-layer (the first layer's gradient negated): FAILED: biased" in text
    assert "mutation score: 0 of 1 defects above the detectable effect caught (0%)" in text


def test_without_defects_there_is_no_score() -> None:
    assert "mutation score" not in printed([trial_of("sound-lmc")])


# --- subsets -------------------------------------------------------------------------------------------


def names(controls: list[AnyControl]) -> list[str]:
    return [control.name for control in controls]


@given(st.integers(0, 2**32), st.integers(0, len(DEFECTS)))
def test_a_subset_is_seeded_and_in_order_with_all_sound_controls(seed: int, size: int) -> None:
    subset = names(seeded_subset(seed, size))
    assert subset == names(seeded_subset(seed, size))
    assert subset == [name for name in ALL if name in subset]
    assert subset[: len(NUMBERS + SOUND)] == NUMBERS + SOUND
    assert len(subset) == len(NUMBERS + SOUND) + size


def test_subsets_differ_between_seeds_and_cover_every_defect() -> None:
    subsets = [tuple(names(seeded_subset(seed))) for seed in range(100)]
    assert len(set(subsets)) > 95
    assert {name for subset in subsets for name in subset} == set(ALL)
    assert {len(subset) for subset in subsets} == {len(NUMBERS + SOUND) + 8}


@pytest.mark.parametrize("size", [-1, len(DEFECTS) + 1])
def test_a_subset_larger_than_the_catalogue_is_refused(size: int) -> None:
    with pytest.raises(InvalidInputError, match=f"size is {size}, .* the {len(DEFECTS)} defects"):
        seeded_subset(0, size)
