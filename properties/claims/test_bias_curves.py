"""Curves of the bias are what is enumerated along runs of the named seeds; late ones come when histories settled."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from common.rate_cases import (
    E5,
    RATE,
    RING,
    ZERO_BETA,
    case_of,
)

from lmc_verify import GAS
from lmc_verify.claims import CLAIMS, Outcome, bias_curves
from lmc_verify.estimators import LMC
from lmc_verify.objective.exact import exact_pass
from lmc_verify.objective.problem import gradient_norm
from lmc_verify.training import TrainingRun, conditional_bias, weighted_batches

pytestmark = pytest.mark.usefixtures("short_grids")


def test_curves_are_the_enumerated_bias_along_runs_of_the_named_seeds() -> None:
    case = case_of(E5, ZERO_BETA)
    runs = [(1.0, LMC(), 0.02), (0.5, LMC(beta=0.3), 0.01), (0.0, GAS(), 0.0)]
    curves = bias_curves.measure(case, "by hand", runs, [0, 1, 2, 3, 5, 7], 2)
    assert curves.bias.shape == curves.gradient.shape == (2, 3, 6)
    unit = gradient_norm(case.exact.gradient)
    for seed in range(2):
        rng = bias_curves.generator(case.seed, "by hand", 0, seed)
        run = TrainingRun(case.problem, LMC(beta=0.3), case.design, step_size=0.01, generator=rng)
        for step in range(8):
            if step in curves.steps:
                place = curves.steps.index(step)
                exact = exact_pass(run.problem)
                bias, _ = conditional_bias(run.problem, LMC(beta=0.3), run.state, weighted_batches(case.design))
                assert curves.bias[seed, 1, place] == pytest.approx(gradient_norm(bias) / unit, rel=1e-12)
                assert curves.gradient[seed, 1, place] == pytest.approx(gradient_norm(exact.gradient) / unit, rel=1e-12)
            run.step()
    assert curves.floors == pytest.approx(curves.bias[:, :, -4:].mean(axis=2))
    assert (curves.gradient[:, 2] == 1).all(), "a step size of zero holds the parameters"
    assert (curves.distances[:, 2] == 0).all()
    assert (curves.distances[:, 0] > curves.distances[:, 1]).all()
    assert curves.apart == pytest.approx(float(np.median(curves.distances[:, 0])))


def test_seeds_are_independent_and_runs_of_a_seed_share_batches() -> None:
    case = case_of(E5, ZERO_BETA)
    curves = bias_curves.measure(case, "seeds", [(1.0, LMC(), 0.0), (1.0, LMC(), 0.0)], [1, 2, 3, 4], 6)
    assert np.array_equal(curves.bias[:, 0], curves.bias[:, 1])
    assert len({tuple(row) for row in curves.bias[:, 0]}) > 1


@pytest.mark.slow
def test_late_snapshots_come_when_histories_have_settled() -> None:
    """At fixed parameters and beta = 0, the bias of LMC has gone at the first late snapshot, in all of 30 runs."""
    for base, want in ((RING, 2 * 2 * 7), (RATE, 2 * 2 * 18)):
        case = case_of(E5, ZERO_BETA, base)
        assert bias_curves.mixing_steps(case) == want
        late = bias_curves.late_steps(case)
        assert late[0] == want
        assert len(late) == bias_curves.SNAPSHOTS
        assert np.diff(late).min() >= 1 / float(case.design.inclusion_probabilities().min())
    case = case_of(E5, ZERO_BETA)
    curves = bias_curves.measure(case, "settled", [(1.0, LMC(), 0.0)], bias_curves.late_steps(case)[:1], 30)
    assert curves.vanishes
    assert not curves.dead


def test_all_batches_at_once_mix_in_no_time() -> None:
    whole = case_of(E5, ZERO_BETA, RING | {"design": {"partition": "contiguous", "parts": 2, "per_batch": 2}})
    assert bias_curves.mixing_steps(whole) == 4


def test_a_slope_on_the_limit_is_not_decided_by_seeds() -> None:
    assert (
        bias_curves.more_seeds([0.4, 0.5, 0.6], 0.3, 0.5) == "the slope lies too near the limit for any number of seeds"
    )


@pytest.mark.parametrize(("rest", "outcome"), [(0.0, Outcome.SUPPORTED), (0.05, Outcome.INCONCLUSIVE)])
def test_a_part_of_the_floor_that_stays_is_no_slope(rest: float, outcome: Outcome) -> None:
    """``0.1 value + 0.1 rest``: with a rest the slope is 0.89 on average, and a fifth of the last floor stays."""
    values = (1.0, 0.5, 0.25, 0.125)
    floors = np.array([[0.1 * (1 + 1e-4 * seed) * (value + rest) for value in values] for seed in range(9)])
    bias = np.repeat(floors[:, :, None], bias_curves.SNAPSHOTS, axis=2)
    curves = bias_curves.BiasCurves(values, (1, 2, 3, 4), bias, np.ones_like(bias), np.zeros((9, 4)))
    slope = bias_curves.FloorSlope(curves, 0.01)
    assert slope.outcome(0.5) is outcome
    assert slope.interval.inside(0.5), "the average slope alone would support it"
    assert ("too near for a slope to be read" in slope.words) is (outcome is Outcome.INCONCLUSIVE)


@pytest.mark.parametrize(
    ("smallest", "apart", "saturated", "words"),
    [
        (
            1e-10,
            0.01,
            False,
            "choose a larger training.step_size or estimator.beta",
        ),  # 5 times, and there is room for 25
        (1e-10, 0.01, True, "choose a larger training.step_size or estimator.beta"),
        (1e-10, 0.24, False, "hardly anything of it reaches the layers below the last, and no training.step_size"),
        (
            1e-10,
            0.24,
            True,
            "100% of the units of an activation Tanh have a slope of at most 0.001, derivatives vanish",
        ),
        (0.0, 0.01, True, "scale features or initial parameters down, or choose another model.activation or seed"),
        (1e-10, 0.0, False, "choose a larger training.step_size or estimator.beta"),  # nothing moves: beta up to 1
        (1e-12, 0.0, False, "no training.step_size or estimator.beta is large enough to show more"),
    ],
)
def test_a_larger_step_is_advised_only_where_there_is_one(
    smallest: float, apart: float, saturated: bool, words: str
) -> None:
    """A floor must grow to `FLOOR_FACTOR` times what rounding may be; runs may not end farther apart than `APART`."""
    case = case_of(E5, ZERO_BETA, RING | {"model": RING["model"] | {"activation": "tanh"}})
    if saturated:
        problem = case.problem.copy()
        with torch.no_grad():
            problem.model.get_parameter("layers.0.conv.bias").fill_(30.0)
        case = replace(case, problem=problem)
    values = (0.1, 0.05, 0.025)
    bias = np.full((3, 3, bias_curves.SNAPSHOTS), 1e-3)
    bias[:, -1] = smallest
    distances = np.zeros((3, 3))
    distances[:, 0] = apart
    curves = bias_curves.BiasCurves(values, (1, 2, 3, 4), bias, np.ones_like(bias), distances)
    found = bias_curves.unreadable(case, CLAIMS[E5], curves, Outcome.EXACT)
    assert found is not None
    assert found.outcome is Outcome.INCONCLUSIVE
    assert "some floor is rounding (at most 5e-10 of the gradient's norm)" in found.summary
    assert words in found.summary
    assert ("choose a larger" in found.summary) != ("or choose another" in found.summary)


def test_an_estimator_without_beta_is_not_advised_to_have_one() -> None:
    curves = bias_curves.BiasCurves((0.1,), (1,), np.full((1, 1, 1), 3e-10), np.ones((1, 1, 1)), np.full((1, 1), 1e-3))
    found = bias_curves.unreadable(case_of(E5, {"name": "gas"}), CLAIMS[E5], curves, Outcome.EXACT)
    assert found is not None
    assert found.summary.endswith("choose a larger training.step_size")
