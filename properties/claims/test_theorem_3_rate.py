"""Theorem 3: the rate of the gradient norm, the schedule that it is for, and the control problem of known rate."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from common.rate_cases import (
    BACKWARD,
    FULL,
    GAS_,
    LMC_BETA,
    RATE,
    SHORT_RATE,
    THREE,
    assert_complete,
    case_of,
    evidence,
    norms_by,
    verdict,
)
from pydantic import ValidationError
from torch.nn import functional as F

from lmc_verify import GAS, Graph, InvalidInputError, load_graph, make_estimator
from lmc_verify.cases import assemble_case
from lmc_verify.cases.case import Case
from lmc_verify.claims import CLAIMS, Outcome
from lmc_verify.claims.assumptions import BOUNDED_BELOW
from lmc_verify.claims.theorems import theorem_3_rate as convergence
from lmc_verify.claims.theorems.theorem_3_rate import scheduled
from lmc_verify.estimators import LMC
from lmc_verify.objective.exact import exact_pass
from lmc_verify.objective.losses import loss_lower_bound
from lmc_verify.objective.problem import gradient_norm
from lmc_verify.statistics.rates import MedianInterval
from lmc_verify.training import TrainingRun, largest_stable_step, mean_gradient_norms

pytestmark = pytest.mark.usefixtures("short_grids")
SURE = [
    (LMC_BETA, RATE, "SUPPORTED"),
    (BACKWARD, RATE, "SUPPORTED"),
    (FULL, RATE, "SUPPORTED"),
    (GAS_, RATE, "REFUTED"),
]


@pytest.mark.parametrize(
    ("estimator", "base", "outcome"),
    SURE,
    ids=[f"{estimator['name']} {base['dataset']['name']}" for estimator, base, _ in SURE],
)
def test_verdict_is_what_theory_says(estimator: dict[str, Any], base: dict[str, Any], outcome: str) -> None:
    case, found = case_of(THREE, estimator, base), verdict(THREE, estimator, base)
    assert str(found.outcome) == outcome, found.summary
    theory = CLAIMS[THREE].expect(case)
    assert theory.reason
    assert_complete(THREE, case, found)


def test_schedule_is_eta_and_beta_times_n_to_minus_two_thirds() -> None:
    estimator, size = scheduled(make_estimator("lmc", beta=0.8), 16.0, 64)
    assert size == pytest.approx(1.0)
    assert isinstance(estimator, LMC)
    assert estimator.beta == pytest.approx(0.05)
    assert scheduled(GAS(), 16.0, 64)[0] == GAS()


def run_of(case: Case, length: int, seed: int, repeat: int = 0) -> float:
    """Return what one training run measures, by itself."""
    planned = convergence._planned(case, length, seed, repeat)
    return mean_gradient_norms(case.problem, [planned], case.design)[0]


def test_rate_averages_the_exact_gradient_over_uniform_steps() -> None:
    """Over all steps where N is at most the number of samples; each as often as it is drawn where it is larger."""
    case = case_of(THREE, FULL)
    for length in (8, 33):
        run = TrainingRun(
            case.problem,
            case.estimator,
            case.design,
            step_size=scheduled(case.estimator, 24.0, length)[1],
            generator=np.random.default_rng(0),
        )
        norms = []
        for _ in range(length):
            norms.append(gradient_norm(exact_pass(run.problem).gradient))
            run.step()
        found = [run_of(case, length, seed) for seed in range(1 if length == 8 else 8)]
        if length == 8:
            assert found[0] == pytest.approx(float(np.mean(norms)), rel=1e-12)
        else:
            error = 6 * float(np.std(found, ddof=1)) / math.sqrt(len(found))
            assert error < 0.1 * float(np.mean(norms))
            assert abs(float(np.mean(found)) - float(np.mean(norms))) < error
            assert len(set(found)) == 8


@pytest.mark.slow
def test_repeats_of_a_seed_are_independent_runs_and_averaged() -> None:
    three = case_of(THREE, GAS_, RATE | {"training": {"step_size": 24, "repeats": 3}})
    length = three.training.lengths[0]
    runs = [run_of(three, length, 1, repeat) for repeat in range(3)]
    assert len(set(runs)) == 3
    assert convergence._mean_norms(three, 2)[1, 0] == pytest.approx(float(np.mean(runs)), rel=1e-12)
    one = case_of(THREE, GAS_, RATE | {"training": {"step_size": 24}})
    assert convergence._mean_norms(one, 2)[1, 0] == pytest.approx(runs[0], rel=1e-12)


@pytest.fixture
def sound_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs whose slope is -0.4, so that only the control or the floor stands against a verdict."""
    monkeypatch.setattr(convergence, "_mean_norms", norms_by(lambda length, seed: (1 + 0.01 * seed) * length**-0.4))
    monkeypatch.setattr(convergence, "_full_batch", lambda case: [length**-0.4 for length in case.training.lengths])
    assert CLAIMS[THREE].check(case_of(THREE, FULL)).outcome is Outcome.SUPPORTED


@pytest.mark.usefixtures("sound_runs")
def test_control_problem_can_veto(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convergence, "known_slope", lambda lengths, sizes: -0.2)
    found = CLAIMS[THREE].check(case_of(THREE, FULL))
    assert found.outcome is Outcome.INCONCLUSIVE
    assert "the control problem of known rate was not judged rightly at N = 16, 64, 256, so no slope" in found.summary
    assert ": its slope is -0.200 and was found in [" in found.summary
    low, _, high = evidence(found, "control: quadratic")
    assert not low <= -0.2 <= high


@pytest.mark.usefixtures("sound_runs")
def test_control_must_itself_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    """An interval that holds the known slope by being wide is no sign that the test works."""
    measured, calls = convergence.measured_norms, []

    def noisy(lengths: Any, sizes: Any, *rest: Any) -> Any:
        calls.append(sizes)
        norms = measured(lengths, sizes, *rest)
        tilt = np.linspace(-1, 1, norms.shape[0])[:, None] * np.log(np.asarray(lengths))
        return norms * np.exp(tilt) if len(calls) == 1 else norms

    monkeypatch.setattr(convergence, "measured_norms", noisy)
    assert CLAIMS[THREE].check(case_of(THREE, FULL)).outcome is Outcome.INCONCLUSIVE


@pytest.mark.usefixtures("sound_runs")
def test_three_intervals_share_the_level(monkeypatch: pytest.MonkeyPatch) -> None:
    """That of the claim and those of the two controls, each a third of it."""
    interval, levels = convergence.median_interval, []

    def noted(values: Any, alpha: float) -> Any:
        levels.append(alpha)
        return interval(values, alpha)

    monkeypatch.setattr(convergence, "median_interval", noted)
    case = case_of(THREE, FULL)
    found = CLAIMS[THREE].check(case)
    assert levels == pytest.approx(3 * [case.sampling.alpha / 3])
    assert math.fsum(levels) <= found.alpha_spent * (1 + 1e-12)


@pytest.mark.usefixtures("sound_runs")
@pytest.mark.parametrize("lost", [0, 1], ids=["a sound schedule that does not decay", "a wrong one that does"])
def test_control_needs_both_of_its_problems(monkeypatch: pytest.MonkeyPatch, lost: int) -> None:
    measured, calls = convergence.measured_norms, []

    def swapped(lengths: Any, sizes: Any, *rest: Any) -> Any:
        calls.append(sizes)
        good = [0.5 * (length / lengths[0]) ** (-2 / 3) for length in lengths]
        other = good if lost else [0.5] * len(lengths)
        return measured(lengths, other if len(calls) - 1 == lost else sizes, *rest)

    monkeypatch.setattr(convergence, "measured_norms", swapped)
    assert CLAIMS[THREE].check(case_of(THREE, FULL)).outcome is Outcome.INCONCLUSIVE
    assert len(calls) == 2


@pytest.mark.parametrize(("exact", "outcome"), [(-0.2, Outcome.REFUTED), (-0.15, Outcome.INCONCLUSIVE)])
def test_a_range_that_is_too_short_for_the_exact_gradient_refutes_nothing(
    monkeypatch: pytest.MonkeyPatch, exact: float, outcome: Outcome
) -> None:
    monkeypatch.setattr(convergence, "_mean_norms", norms_by(lambda length, seed: 1 + 0.01 * seed))
    monkeypatch.setattr(convergence, "_full_batch", lambda case: [length**exact for length in case.training.lengths])
    found = CLAIMS[THREE].check(case_of(THREE, GAS_))
    assert found.outcome is outcome
    too_short = "not even full-batch gradient descent has this rate here" in found.summary
    assert too_short == (outcome is not Outcome.REFUTED)
    assert f"{exact:.3f}" in found.summary


def test_full_batch_reference_is_the_mean_over_all_steps() -> None:
    """The estimator under test has no part in it, and at N steps of eta_0 N^(-2/3) it is plain gradient descent."""
    case = case_of(THREE, GAS_, SHORT_RATE)
    run = convergence._full_batch(case)
    assert run == convergence._full_batch(case_of(THREE, FULL, SHORT_RATE))
    for seed in range(2):
        first = run_of(case_of(THREE, FULL, SHORT_RATE), 4, seed)  # four samples of four steps
        assert first == pytest.approx(run[0], rel=1e-12)


def test_control_is_reported_and_judged_rightly() -> None:
    found = verdict(THREE, GAS_)
    low, value, high = evidence(found, "control: quadratic")
    assert low <= value <= high < -1 / 6
    low, value, high = evidence(found, "control: constant")
    assert -1 / 6 < low <= value <= high


@pytest.mark.usefixtures("sound_runs")
def test_no_slope_near_the_rounding_floor(monkeypatch: pytest.MonkeyPatch) -> None:
    case = case_of(THREE, FULL)
    smallest = 256**-0.4 / gradient_norm(case.exact.gradient)
    monkeypatch.setattr(convergence, "FLOOR", smallest / 5.1)
    assert CLAIMS[THREE].check(case).outcome is Outcome.SUPPORTED
    monkeypatch.setattr(convergence, "FLOOR", smallest / 4.9)
    found = CLAIMS[THREE].check(case_of(THREE, FULL))
    assert found.outcome is Outcome.INCONCLUSIVE
    assert "slope refused" in found.summary
    assert not any(item.quantity.startswith("E||grad||") for item in found.evidence)
    assert found.minimum_detectable_effect is None
    assert found.series, "the curve is still drawn"


def test_a_curve_far_above_full_batch_descent_s_is_not_supported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its slope is steep and no floor is seen, but what keeps it above the exact gradient's curve may be one."""
    monkeypatch.setattr(convergence, "_mean_norms", norms_by(lambda length, seed: (1 + 0.01 * seed) * length**-0.4))
    for factor, outcome in ((1.4, Outcome.SUPPORTED), (1.6, Outcome.INCONCLUSIVE)):
        monkeypatch.setattr(
            convergence, "_full_batch", lambda case, f=factor: [length**-0.4 / f for length in case.training.lengths]
        )
        found = CLAIMS[THREE].check(case_of(THREE, GAS_))
        assert found.outcome is outcome, found.summary
        shown = next(item for item in found.evidence if item.quantity == "last mean over full-batch descent's")
        assert shown.value == pytest.approx(factor, rel=0.05)
        assert ("times that of full-batch gradient descent" in found.summary) == (outcome is Outcome.INCONCLUSIVE)


def test_a_curve_that_comes_nearer_to_full_batch_descent_s_is_told_how_far(monkeypatch: pytest.MonkeyPatch) -> None:
    """3 N^-0.1 times full-batch descent's is 1.5 times it at N = 1,024."""
    monkeypatch.setattr(convergence, "_full_batch", lambda case: [length**-0.4 for length in case.training.lengths])
    monkeypatch.setattr(convergence, "_mean_norms", norms_by(lambda length, seed: (1 + 1e-4 * seed) * 3 * length**-0.5))
    found = CLAIMS[THREE].check(case_of(THREE, GAS_))
    assert found.outcome is Outcome.INCONCLUSIVE
    assert found.summary.endswith("take longer runs (training.lengths): at this pace N up to about 1,000 would decide")


def test_a_range_that_is_too_short_says_which_would_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where full-batch descent's curve steepens; of one that does not nothing is said."""
    monkeypatch.setattr(convergence, "_mean_norms", norms_by(lambda length, seed: 1 + 0.01 * seed))
    steepening, straight = [1.0, 0.9, 0.72], [1.0, 0.9, 0.81]
    for reference, said in ((steepening, ": at this pace N up to about 4,100 would decide"), (straight, "")):
        monkeypatch.setattr(convergence, "_full_batch", lambda case, values=reference: values)
        found = CLAIMS[THREE].check(case_of(THREE, GAS_))
        assert found.outcome is Outcome.INCONCLUSIVE
        assert found.summary.endswith(f"raise training.step_size or training.lengths{said}")


def test_the_largest_step_is_found_from_full_batch_descent_and_said() -> None:
    """A quarter of the largest stable step of the shortest runs; the rest is as if it had been set."""
    training = {"lengths": [8, 16, 32]}
    sought = case_of(THREE, LMC_BETA, RATE | {"training": training | {"largest_step": True}})
    first = 0.25 * largest_stable_step(sought.problem, 8) * 8 ** (2 / 3)
    assert convergence.with_step_size(sought).training.step_size == pytest.approx(first, rel=1e-12)
    given = case_of(THREE, LMC_BETA, RATE | {"training": training | {"step_size": first}})
    assert convergence.with_step_size(given) is given
    found, same = CLAIMS[THREE].check(sought), CLAIMS[THREE].check(given)
    eta = first * 8 ** (-2 / 3)
    assert f"eta = {eta:.3g} at N = 8, 25% of what is stable there for full-batch descent: " in found.summary
    for left, right in zip(found.series, same.series, strict=True):
        assert left.y == pytest.approx(right.y, rel=1e-9)


def test_the_part_of_the_largest_step_can_be_chosen_and_is_said() -> None:
    training = {"lengths": [8, 16, 32], "largest_step": True, "stable_share": 0.75}
    case = case_of(THREE, LMC_BETA, RATE | {"training": training})
    first = 0.75 * largest_stable_step(case.problem, 8) * 8 ** (2 / 3)
    assert convergence.with_step_size(case).training.step_size == pytest.approx(first, rel=1e-12)
    eta = first * 8 ** (-2 / 3)
    assert f"eta = {eta:.3g} at N = 8, 75% of what is stable there for full-batch" in CLAIMS[THREE].check(case).summary
    for share in (0, 1.01, -1):
        with pytest.raises(ValidationError, match="stable_share"):
            case_of(THREE, LMC_BETA, RATE | {"training": training | {"stable_share": share}})


def test_the_objective_is_bounded_below_by_what_its_loss_is_known_to_be() -> None:
    assert BOUNDED_BELOW in CLAIMS[THREE].assumptions
    for dataset, words in (("ring", "'bce' is at least 0"), ("karate", "'cross_entropy' is at least 0")):
        found = BOUNDED_BELOW(case_of(THREE, LMC_BETA, RATE | {"dataset": {"name": dataset}}))
        assert found.holds is True
        assert words in found.detail


def test_nothing_is_known_of_another_loss() -> None:
    case: Any = SimpleNamespace(problem=SimpleNamespace(loss="hinge"))
    found = BOUNDED_BELOW(case)
    assert found.holds is None
    assert "'hinge'" in found.detail


def test_the_lower_bound_is_one() -> None:
    """At the largest logits that agree with a target the loss comes to it; beyond the range it falls without end."""
    far, inside = torch.tensor([1e3, -1e3], dtype=torch.float64), torch.tensor([1.0, 0.0], dtype=torch.float64)
    assert F.binary_cross_entropy_with_logits(far, inside).item() == loss_lower_bound("bce") == 0
    outside = torch.tensor([1.5, 0.0], dtype=torch.float64)
    assert F.binary_cross_entropy_with_logits(far, outside).item() < -100
    ring = load_graph("ring", num_nodes=6)
    with pytest.raises(InvalidInputError, match=r"targets must lie in \[0, 1\]"):
        Graph(x=ring.x, edge_index=ring.edge_index, y=torch.full_like(ring.y, 1.5), train_mask=ring.train_mask)
    assert loss_lower_bound("cross_entropy") == 0


@pytest.mark.usefixtures("sound_runs")
def test_lengths_too_close_together_are_named_where_the_control_fails() -> None:
    """At N = 1, 2, 3 the control's own noise hides its slope: that is the cause, and longer lengths help."""
    close = RATE | {"training": {"step_size": 1, "lengths": [1, 2, 3]}}
    found = CLAIMS[THREE].check(case_of(THREE, FULL, close, sampling={"alpha": 1e-6}))
    assert found.outcome is Outcome.INCONCLUSIVE
    assert "not judged rightly at N = 1, 2, 3, so no slope is read: its slope was found in [" in found.summary
    assert "these lengths are too few or too close together; spread training.lengths" in found.summary
    shown = [evidence(found, f"control: {name}") for name in ("quadratic", "constant")]
    (low, high) = next((low, high) for low, _, high in shown if low <= -1 / 6 <= high)
    assert f"found in [{low:.3f}, {high:.3f}], on both sides of -1/6" in found.summary
    # The interval of the control that must be refuted is said where the other is judged rightly.
    sound, wrong = (MedianInterval(0.0, *ends, 0.0, 9) for ends in ((-0.5, -0.3), (-0.4, 0.1)))
    assert convergence._Control(-0.4, sound, sound).problem.startswith("its slope was found in [-0.500, -0.300]")
    broad = MedianInterval(-0.4, -0.9, 0.2, 0.0, 9)
    assert convergence._Control(-0.4, broad, wrong).problem.startswith("its slope was found in [-0.900, 0.200]")
    assert convergence._Control(-0.4, sound, wrong).problem.startswith("its slope was found in [-0.400, 0.100]")
    missed = convergence._Control(-0.2, sound, wrong).problem
    assert missed.startswith("its slope is -0.200 and was found in [-0.500, -0.300], which happens by chance")
    assert missed.endswith("take another sampling.replicate")
    assert convergence._Control(-0.4, sound, MedianInterval(0.0, -0.1, 0.1, 0.0, 9)).problem == ""


@pytest.mark.parametrize(
    ("means", "reference", "words"),
    [
        (1e9, 1.0, "training diverged: "),
        (0.0, 1.0, "slope refused: "),
        (1.0, 1.0, "the runs are too short, "),
    ],
    ids=["diverged", "rounding", "too short"],
)
def test_what_helps_is_something_that_is_read(
    means: float, reference: float, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Advice names training.step_size only where it is read: with training.largest_step, instead of it."""
    monkeypatch.setattr(convergence, "_mean_norms", norms_by(lambda *_: means))
    monkeypatch.setattr(convergence, "_full_batch", lambda case: [reference] * len(case.training.lengths))
    given, sought = (
        CLAIMS[THREE].check(case_of(THREE, GAS_, RATE | {"training": {"lengths": [8, 16, 32]} | training})).summary
        for training in ({"step_size": 24}, {"largest_step": True})
    )
    assert words in given
    assert words in sought
    if words.startswith("the runs"):
        assert given.endswith("raise training.step_size or training.lengths")
        assert sought.endswith("raise training.lengths: training.largest_step leaves no step size to raise")
        return
    assert "choose a smaller training.step_size" in given
    assert "training.largest_step has taken " in sought
    assert "set a smaller training.step_size in its place" in sought
    assert "choose a smaller" not in sought


@pytest.mark.parametrize("training", [{"largest_step": True}, {"step_size": 24}], ids=["looked for", "given"])
def test_a_dead_network_is_named_and_nothing_is_trained(
    training: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gradient of zero at the start leaves no step size to look for, and no rate to read."""
    case = case_of(THREE, GAS_, RATE | {"training": {"lengths": [8, 16, 32]} | training})
    problem = case.problem.copy()
    with torch.no_grad():
        for value in problem.model.parameters():
            value.zero_()
        for name, value in problem.model.named_parameters():
            if value.dim() == 1 and name.startswith("layers.0"):
                value.fill_(-1.0)  # no ReLU of the hidden layer is open
    dead = assemble_case(problem, case.base_design, case.estimator, sampling=case.sampling, training=case.training)
    assert gradient_norm(dead.exact.gradient) == 0
    for name in ("_mean_norms", "_full_batch", "largest_stable_step"):
        monkeypatch.setattr(convergence, name, lambda *_: pytest.fail("it was trained"))
    found = CLAIMS[THREE].check(dead)
    assert found.outcome is Outcome.INCONCLUSIVE
    assert "the exact gradient is zero at the start" in found.summary
    assert "choose another seed, or model.activation=tanh" in found.summary
    assert "step_size" not in found.summary
    assert found.alpha_spent == 0
