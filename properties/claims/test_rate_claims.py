"""The claims about floors and rates find what theory is sure of, refuse what cannot be read, and keep their level.

Small cases with few seeds, at the level that these allow: n seeds bound a median with a miss probability of 2^(1-n).
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from lmc_verify import GAS, Batch, Estimator, History, InvalidInputError, Problem, make_estimator
from lmc_verify.cases.case import Case, build_case
from lmc_verify.cases.settings import CaseSettings
from lmc_verify.cases.workspace import Workspace
from lmc_verify.claims import CLAIMS, Claim, Outcome, Verdict, bias_curves
from lmc_verify.claims.consequences import e4_floor_linear_in_beta, e5_floor_in_step_size
from lmc_verify.claims.theorems import theorem_2_decay_and_floor
from lmc_verify.claims.theorems import theorem_3_rate as convergence
from lmc_verify.claims.theorems.theorem_3_rate import scheduled
from lmc_verify.estimators import LMC, Estimate
from lmc_verify.objective.exact import exact_pass
from lmc_verify.objective.problem import gradient_norm
from lmc_verify.statistics import loglog_slope, seeds_needed, seeds_to_detect
from lmc_verify.training import TrainingRun, conditional_bias, weighted_batches

E4, E5, TWO, THREE = "e4/floor-linear-in-beta", "e5/floor-in-step-size", "theorem-2/decay-and-floor", "theorem-3/rate"
FLOORS = (e4_floor_linear_in_beta, e5_floor_in_step_size, theorem_2_decay_and_floor)
SHARES = {E4: 1, E5: 1, TWO: 2, THREE: 3}
"""Intervals that share the level of a check."""

LMC_BETA, ZERO_BETA = {"name": "lmc", "beta": 0.4}, {"name": "lmc"}
GAS_, FM_, BACKWARD, FULL = {"name": "gas"}, {"name": "fm"}, {"name": "backward-sgd"}, {"name": "full-batch"}
WORKSPACE = Workspace()

# Twelve nodes in three parts: 34 steps a run. The step size keeps all runs near one place.
RING = {
    "dataset": {"name": "ring", "num_nodes": 12},
    "model": {"layers": 2, "width": 3},
    "design": {"partition": "contiguous", "parts": 3, "per_batch": 2},
    "training": {"step_size": 0.01},
}
KARATE = RING | {
    "dataset": {"name": "karate"},
    "design": {"partition": "metis", "parts": 3, "per_batch": 2},
    "training": {"step_size": 0.002},
}
RATE = {
    "dataset": {"name": "ring"},
    "model": {"layers": 2, "width": 4, "frozen": ["layer 2"]},
    "design": {"partition": "random", "parts": 6, "per_batch": 2},
    "training": {"step_size": 24, "lengths": [16, 64, 256]},
}
SHORT_RATE = RATE | {"training": {"step_size": 16, "lengths": [4, 8, 16]}}


@pytest.fixture(autouse=True)
def _short_grids(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bias_curves, "HALVINGS", 2)


def settings_of(claim: str, estimator: dict[str, Any], base: dict[str, Any], **changes: Any) -> CaseSettings:
    sampling = {"alpha": 0.45 if claim == THREE else 0.25}
    return CaseSettings.model_validate(base | {"estimator": estimator, "sampling": sampling} | changes)


def case_of(claim: str, estimator: dict[str, Any], base: dict[str, Any] | None = None, **changes: Any) -> Case:
    return build_case(settings_of(claim, estimator, base or (RATE if claim == THREE else RING), **changes), WORKSPACE)


@cache
def _known(claim: str, estimator: str, base: str) -> Verdict:
    return CLAIMS[claim].check(case_of(claim, json.loads(estimator), json.loads(base)))


def verdict(claim: str, estimator: dict[str, Any], base: dict[str, Any] | None = None) -> Verdict:
    """Check a claim once a session: a verdict is a function of its case (see below)."""
    return _known(claim, json.dumps(estimator), json.dumps(base or (RATE if claim == THREE else RING)))


def evidence(found: Verdict, quantity: str) -> tuple[float, float, float]:
    """Return low, value and high of an interval."""
    item = next(item for item in found.evidence if item.quantity.startswith(quantity))
    assert item.low is not None
    assert item.high is not None
    return item.low, item.value, item.high


# --- what theory is sure of ------------------------------------------------------------------------------

SURE = [
    (E4, LMC_BETA, RING, "SUPPORTED"),
    (E4, LMC_BETA, KARATE, "SUPPORTED"),
    (E4, FM_, RING, "REFUTED"),
    (E4, {"name": "lmc-forward-only", "beta": 0.4}, RING, "REFUTED"),
    (E5, ZERO_BETA, RING, "SUPPORTED"),
    (E5, ZERO_BETA, KARATE, "SUPPORTED"),
    (E5, GAS_, RING, "REFUTED"),
    (E5, BACKWARD, RING, "EXACT"),
    (E5, FULL, KARATE, "EXACT"),
    (TWO, LMC_BETA, RING, "SUPPORTED"),
    (TWO, ZERO_BETA, RING, "SUPPORTED"),
    (TWO, GAS_, RING, "REFUTED"),
    (TWO, {"name": "cluster-gcn"}, RING, "REFUTED"),
    (TWO, BACKWARD, RING, "EXACT"),
    (THREE, LMC_BETA, RATE, "SUPPORTED"),
    (THREE, BACKWARD, RATE, "SUPPORTED"),
    (THREE, FULL, RATE, "SUPPORTED"),
    (THREE, GAS_, RATE, "REFUTED"),
]


@pytest.mark.parametrize(
    ("claim", "estimator", "base", "outcome"),
    SURE,
    ids=[f"{claim[:9]} {estimator['name']} {base['dataset']['name']}" for claim, estimator, base, _ in SURE],
)
def test_verdict_is_what_theory_says(claim: str, estimator: dict[str, Any], base: dict[str, Any], outcome: str) -> None:
    case, found = case_of(claim, estimator, base), verdict(claim, estimator, base)
    assert str(found.outcome) == outcome, found.summary
    theory = CLAIMS[claim].expect(case)
    assert theory.reason
    if claim != THREE:
        assert str(theory.outcome) == outcome, theory.reason
    assert_complete(claim, case, found)


def assert_complete(claim: str, case: Case, found: Verdict) -> None:
    seeds = seeds_needed(case.sampling.alpha / SHARES[claim])
    assert found.claim == claim
    assert found.draws == seeds
    assert found.case.histories == "zero"
    assert [item.id for item in found.assumptions] == [item.id for item in CLAIMS[claim].assumptions]
    stored = json.dumps(found.to_dict(), allow_nan=False)
    assert json.dumps(Verdict.from_dict(json.loads(stored)).to_dict()) == stored
    assert found.evidence
    if found.outcome is Outcome.EXACT:
        assert found.alpha_spent == 0
        largest = next(item for item in found.evidence if item.quantity == "largest bias at any step")
        assert largest.tolerance is not None
        assert largest.value <= 1e-12 < largest.tolerance * 1e-1
        return
    assert found.alpha_spent == case.sampling.alpha
    assert found.minimum_detectable_effect is not None
    assert 0 <= found.minimum_detectable_effect < math.inf
    name = "E||grad|| against N" if claim == THREE else "floor"
    low, value, high = evidence(found, name)
    assert low <= value <= high
    assert f"[{low:.{3 if claim == THREE else 2}f}, {high:.{3 if claim == THREE else 2}f}]" in found.summary
    for series in found.series:
        assert list(series.x) == sorted(series.x)
        assert len(series.x) == len(series.y)
    curve = found.series[0]
    assert all(low <= y <= high for low, y, high in zip(curve.low, curve.y, curve.high, strict=True))
    figures = {E4: 1, E5: 1, TWO: 4, THREE: 3}
    assert len(found.series) == figures[claim]


def test_slopes_are_where_theory_puts_them() -> None:
    """LMC: 1 in beta and in the step size, so 2 in eps; GAS: 0. Runs share batches, so little is noise."""
    for claim, estimator, slope in (
        (E4, LMC_BETA, 1.0),
        (E5, ZERO_BETA, 1.0),
        (TWO, ZERO_BETA, 2.0),
        (TWO, LMC_BETA, 2.0),
        (E4, FM_, 0.0),
        (E5, GAS_, 0.0),
        (TWO, GAS_, 0.0),
    ):
        low, _, high = evidence(verdict(claim, estimator, RING), "floor")
        assert slope - 0.3 < low <= high < slope + 0.3, (claim, estimator, low, high)
    for estimator in (LMC_BETA, BACKWARD, FULL):
        assert evidence(verdict(THREE, estimator), "E||grad||")[2] < -0.2
    low, value, high = evidence(verdict(THREE, GAS_), "E||grad||")
    assert low <= value <= high
    assert abs(value) < 0.15


def test_decay_of_compensated_histories_is_seen() -> None:
    low, value, high = evidence(verdict(TWO, LMC_BETA), "decay")
    assert 0 < low <= value <= high < 0.9
    fit = next(item for item in verdict(TWO, LMC_BETA).evidence if item.quantity == "typical error of the fit")
    assert fit.tolerance is not None
    assert fit.value < fit.tolerance


@pytest.mark.parametrize(
    ("shape", "outcome", "words"),
    [
        (lambda k, _: 1 + 100 * 0.5**k, Outcome.SUPPORTED, "not refuted on this range of eps"),
        (lambda k, _: 1 + 100 * 0.999**k, Outcome.INCONCLUSIVE, "no geometric decay is seen within the run"),
        (lambda k, index: (1 + 1e4 * 0.1**k) * 9.0 ** (index % 2), Outcome.INCONCLUSIVE, "decay and floor do not fit"),
    ],
    ids=["decay and floor", "slow decay", "neither"],
)
def test_a_falling_floor_needs_a_decay_to_it(
    monkeypatch: pytest.MonkeyPatch, shape: Callable[[int, int], float], outcome: Outcome, words: str
) -> None:
    """On drawn curves whose floors have slope 2 in eps, whatever happens before them."""

    def drawn(case: Case, name: str, runs: Any, steps: Any, seeds: int) -> bias_curves.BiasCurves:
        curve = np.array([shape(step, index) for index, step in enumerate(steps)])
        bias = np.array([[1e-3 * eps**2 * curve for eps, _, _ in runs]] * seeds)
        return bias_curves.BiasCurves(
            tuple(eps for eps, _, _ in runs), tuple(steps), bias, np.ones_like(bias), np.zeros((seeds, len(runs)))
        )

    for module in FLOORS:
        monkeypatch.setattr(module, "measure", drawn)
    found = CLAIMS[TWO].check(case_of(TWO, ZERO_BETA))
    assert found.outcome is outcome, found.summary
    assert words in found.summary
    assert evidence(found, "floor") == pytest.approx((2, 2, 2))


# --- the curves, by hand ---------------------------------------------------------------------------------


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


# --- what is not read ------------------------------------------------------------------------------------


def with_seeds(claim: str, estimator: dict[str, Any], seeds: int, base: dict[str, Any] | None = None) -> Case:
    return case_of(claim, estimator, base, sampling={"alpha": 0.02, "seeds": seeds})


@pytest.mark.parametrize("claim", [E4, E5, TWO, THREE])
def test_too_few_seeds_decide_nothing_and_the_number_is_named(claim: str) -> None:
    found = CLAIMS[claim].check(with_seeds(claim, LMC_BETA, 2, SHORT_RATE if claim == THREE else None))
    assert found.outcome is Outcome.INCONCLUSIVE
    assert "2 seeds" in found.summary
    assert f"set sampling.seeds to {seeds_needed(0.02 / SHARES[claim])}" in found.summary
    assert found.draws == 2
    assert found.minimum_detectable_effect is None
    assert all(item.low is None and item.high is None for item in found.evidence)
    json.dumps(found.to_dict(), allow_nan=False)


@pytest.mark.parametrize(("claim", "limit"), [(E4, 1.2), (E4, 0.8), (E5, 0.5), (TWO, 1.0), (THREE, -1 / 6)])
def test_an_interval_on_both_sides_of_the_limit_names_the_seeds_that_would_decide(
    claim: str, limit: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds = seeds_needed(0.02 / SHARES[claim])
    slopes = [limit + 0.1 + (0.3 if number % 2 else -0.3) for number in range(seeds)]
    given = itertools.cycle(slopes)
    for module in (bias_curves, convergence):
        monkeypatch.setattr(module, "loglog_slope", lambda *_: next(given))
    monkeypatch.setattr(convergence, "_control", lambda *_: (True, []))
    found = CLAIMS[claim].check(with_seeds(claim, LMC_BETA, seeds, SHORT_RATE if claim == THREE else None))
    assert found.outcome is Outcome.INCONCLUSIVE, found.summary
    gap, deviation = abs(float(np.median(slopes)) - limit), float(np.std(slopes, ddof=1))
    needed = seeds_to_detect(gap, deviation, 0.02 / SHARES[claim])
    assert f"about {needed:,} seeds would decide, if slopes scatter as they did: set sampling.seeds" in found.summary
    assert "sampling.replicate" in found.summary  # fresh seeds: the interval is for a number fixed beforehand


def test_a_slope_on_the_limit_is_not_decided_by_seeds() -> None:
    assert (
        bias_curves.more_seeds([0.4, 0.5, 0.6], 0.3, 0.5) == "the slope lies too near the limit for any number of seeds"
    )


@pytest.mark.parametrize(("claim", "estimator"), [(E5, GAS_), (TWO, ZERO_BETA)])
def test_runs_that_end_far_apart_are_not_compared(claim: str, estimator: dict[str, Any]) -> None:
    found = CLAIMS[claim].check(case_of(claim, estimator, RING | {"training": {"step_size": 1.0}}))
    assert found.outcome is Outcome.INCONCLUSIVE, found.summary
    assert "choose a smaller training.step_size" in found.summary
    apart = next(item for item in found.evidence if item.quantity.startswith("distance"))
    assert apart.tolerance == bias_curves.APART
    assert apart.value > apart.tolerance


@pytest.mark.parametrize("claim", [E4, E5])
def test_floors_of_rounding_are_refused(claim: str) -> None:
    tiny = {"name": "lmc", "beta": 5e-8} if claim == E4 else ZERO_BETA
    found = CLAIMS[claim].check(case_of(claim, tiny, RING | {"training": {"step_size": 1e-9}}))
    assert found.outcome is Outcome.INCONCLUSIVE, found.summary
    assert "some floor is rounding" in found.summary
    assert "choose a larger training.step_size or estimator.beta" in found.summary
    assert found.alpha_spent == 0
    assert any(item.quantity.startswith("smallest floor") for item in found.evidence)


def dead(claim: str, estimator: dict[str, Any]) -> Case:
    """A case whose network has died: the first layer's outputs are negative everywhere, the second has no bias."""
    case = case_of(claim, estimator, SHORT_RATE if claim == THREE else None)
    problem = case.problem.copy()
    with torch.no_grad():
        for parameter in problem.model.parameters():
            parameter.zero_()
        problem.model.get_parameter("layers.0.conv.bias").fill_(-1.0)
    for name, parameter in problem.model.named_parameters():
        parameter.requires_grad_(name.startswith("layers.0"))
    problem = problem.copy()
    return replace(case, problem=problem, exact=exact_pass(problem))


@pytest.mark.parametrize("claim", [E4, E5, TWO, THREE])
def test_a_dead_network_shows_nothing(claim: str) -> None:
    for estimator in (LMC_BETA, BACKWARD) if claim == E5 else (LMC_BETA,):
        case = dead(claim, estimator)
        assert gradient_norm(case.exact.gradient) == 0
        found = CLAIMS[claim].check(case)
        assert found.outcome is Outcome.INCONCLUSIVE, found.summary
        assert "another seed if the network has died" in found.summary
        assert CLAIMS[claim].expect(case).outcome is None


@pytest.mark.parametrize(
    ("claim", "estimator"), [(E4, ZERO_BETA), (E4, GAS_), (E4, {"name": "lmc", "beta": [0.1] * 12})]
)
def test_e4_needs_one_beta_above_zero(claim: str, estimator: dict[str, Any]) -> None:
    case = case_of(claim, estimator)
    found, theory = CLAIMS[claim].check(case), CLAIMS[claim].expect(case)
    assert found.outcome is theory.outcome is Outcome.NOT_APPLICABLE
    assert "beta is one number above zero" in found.summary


def test_e4_has_no_floor_where_beta_does_nothing() -> None:
    """One layer reads no halo backward: no beta leaves a bias."""
    case = case_of(E4, LMC_BETA, RING | {"model": {"layers": 1, "width": 3}})
    found, theory = E4_CLAIM.check(case), E4_CLAIM.expect(case)
    assert found.outcome is theory.outcome is Outcome.NOT_APPLICABLE
    assert "no bias at any step" in found.summary


E4_CLAIM: Claim = CLAIMS[E4]


@pytest.mark.parametrize("claim", [E4, E5, TWO])
def test_designs_that_cannot_be_enumerated_are_not_applicable(claim: str) -> None:
    case = case_of(claim, LMC_BETA, KARATE | {"design": {"name": "nodes", "per_batch": 12}})
    found, theory = CLAIMS[claim].check(case), CLAIMS[claim].expect(case)
    assert found.outcome is theory.outcome is Outcome.NOT_APPLICABLE
    assert "can be enumerated" in found.summary


@pytest.mark.parametrize("claim", [E4, E5, TWO, THREE])
def test_dropout_is_not_applicable(claim: str) -> None:
    case = case_of(claim, LMC_BETA)
    problem = case.problem.copy()
    problem.model.add_module("extra", torch.nn.Dropout(0.5).train())
    case = replace(case, problem=problem)
    found, theory = CLAIMS[claim].check(case), CLAIMS[claim].expect(case)
    assert found.outcome is theory.outcome is Outcome.NOT_APPLICABLE
    assert "no unit is dropped" in found.summary


@pytest.mark.parametrize("claim", [E4, E5, TWO])
@pytest.mark.parametrize("normaliser", ["node-count", "batch-mean"])
def test_theory_expects_nothing_where_weights_are_wrong(claim: str, normaliser: str) -> None:
    estimator = LMC_BETA | {"normaliser": normaliser}
    uneven = RING | {"dataset": {"name": "karate"}, "design": {"partition": "metis", "parts": 3, "per_batch": 1}}
    assert CLAIMS[claim].expect(case_of(claim, estimator, uneven)).outcome is None


def test_theory_expects_nothing_of_beta_in_e5() -> None:
    theory = CLAIMS[E5].expect(case_of(E5, LMC_BETA))
    assert theory.outcome is None
    assert "beta leaves a floor of its own" in theory.reason


@dataclass(frozen=True)
class Unknown:
    """A user's estimator, with a beta of its own and no halo policies."""

    name: ClassVar[str] = "unknown"
    beta: float = 0.4

    def init(self, problem: Problem) -> History:
        return LMC().init(problem)

    def estimate(self, problem: Problem, state: History, batch: Batch) -> Estimate:
        return LMC(beta=self.beta).estimate(problem, state, batch)


@pytest.mark.parametrize("claim", [E4, E5, TWO, THREE])
def test_theory_expects_nothing_of_a_users_estimator(claim: str) -> None:
    case = replace(case_of(claim, LMC_BETA), estimator=Unknown())
    assert CLAIMS[claim].expect(case).outcome is None
    if claim == E4:
        assert CLAIMS[claim].check(case).outcome is Outcome.SUPPORTED


# --- Theorem 3 -------------------------------------------------------------------------------------------


def test_schedule_is_eta_and_beta_times_n_to_minus_two_thirds() -> None:
    estimator, size = scheduled(make_estimator("lmc", beta=0.8), 16.0, 64)
    assert size == pytest.approx(1.0)
    assert isinstance(estimator, LMC)
    assert estimator.beta == pytest.approx(0.05)
    assert scheduled(GAS(), 16.0, 64)[0] == GAS()


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
        found = [convergence._run(case, length, seed, 0) for seed in range(1 if length == 8 else 8)]
        if length == 8:
            assert found[0] == pytest.approx(float(np.mean(norms)), rel=1e-12)
        else:
            error = 6 * float(np.std(found, ddof=1)) / math.sqrt(len(found))
            assert error < 0.1 * float(np.mean(norms))
            assert abs(float(np.mean(found)) - float(np.mean(norms))) < error
            assert len(set(found)) == 8


def test_repeats_of_a_seed_are_independent_runs_and_averaged() -> None:
    three = case_of(THREE, GAS_, RATE | {"training": {"step_size": 24, "repeats": 3}})
    runs = [convergence._run(three, 8, 1, repeat) for repeat in range(3)]
    assert len(set(runs)) == 3
    assert convergence._mean_norm(three, 8, 1) == pytest.approx(float(np.mean(runs)), rel=1e-12)
    assert convergence._mean_norm(case_of(THREE, GAS_), 8, 1) == runs[0]


@pytest.fixture
def sound_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs whose slope is -0.4, so that only the control or the floor stands against a verdict."""
    monkeypatch.setattr(convergence, "_run", lambda case, length, seed, repeat: (1 + 0.01 * seed) * length**-0.4)
    monkeypatch.setattr(convergence, "_full_batch", lambda case: [length**-0.4 for length in case.training.lengths])
    assert CLAIMS[THREE].check(case_of(THREE, FULL)).outcome is Outcome.SUPPORTED


@pytest.mark.usefixtures("sound_runs")
def test_control_problem_can_veto(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convergence, "known_slope", lambda lengths, sizes: -0.2)
    found = CLAIMS[THREE].check(case_of(THREE, FULL))
    assert found.outcome is Outcome.INCONCLUSIVE
    assert "the control problem of known rate was not judged rightly" in found.summary
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
    monkeypatch.setattr(convergence, "_run", lambda case, length, seed, repeat: 1 + 0.01 * seed)
    monkeypatch.setattr(convergence, "_full_batch", lambda case: [length**exact for length in case.training.lengths])
    found = CLAIMS[THREE].check(case_of(THREE, GAS_))
    assert found.outcome is outcome
    assert ("not even full-batch gradient descent keeps it here" in found.summary) == (outcome is not Outcome.REFUTED)
    assert f"{exact:.3f}" in found.summary


def test_full_batch_reference_is_the_mean_over_all_steps() -> None:
    """The estimator under test has no part in it, and at N steps of eta_0 N^(-2/3) it is plain gradient descent."""
    case = case_of(THREE, GAS_, SHORT_RATE)
    run = convergence._full_batch(case)
    assert run == convergence._full_batch(case_of(THREE, FULL, SHORT_RATE))
    for seed in range(2):
        first = convergence._run(case_of(THREE, FULL, SHORT_RATE), 4, seed, 0)  # four samples of four steps
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


# --- levels, draws and order -----------------------------------------------------------------------------


@pytest.mark.parametrize("claim", [E4, E5, TWO, THREE])
def test_intervals_of_a_check_share_its_level(claim: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spent: list[float] = []
    for module in (*FLOORS, convergence, bias_curves):
        if hasattr(module, "median_interval"):
            original = module.median_interval

            def watched(values: Any, alpha: float, original: Any = original) -> Any:
                spent.append(alpha)
                return original(values, alpha)

            monkeypatch.setattr(module, "median_interval", watched)
    found = CLAIMS[claim].check(with_seeds(claim, LMC_BETA, 2, SHORT_RATE if claim == THREE else None))
    assert len(spent) == SHARES[claim]
    assert sum(spent) == pytest.approx(0.02)
    assert found.alpha_spent == 0.02


@pytest.mark.parametrize(("claim", "estimator"), [(E4, LMC_BETA), (TWO, LMC_BETA), (THREE, GAS_)])
def test_verdict_is_a_function_of_the_case(claim: str, estimator: dict[str, Any]) -> None:
    """In a fresh workspace, after other checks: the same verdict, number by number."""
    base = SHORT_RATE if claim == THREE else RING
    again = CLAIMS[claim].check(build_case(settings_of(claim, estimator, base), Workspace()))
    assert again.to_dict() == verdict(claim, estimator, base).to_dict()


@pytest.mark.parametrize(("claim", "estimator"), [(E4, LMC_BETA), (E5, ZERO_BETA), (TWO, LMC_BETA), (THREE, GAS_)])
def test_another_replicate_draws_afresh_on_the_same_case(claim: str, estimator: dict[str, Any]) -> None:
    base = SHORT_RATE if claim == THREE else RING
    first = verdict(claim, estimator, base)
    alpha = 0.45 if claim == THREE else 0.25
    other = CLAIMS[claim].check(case_of(claim, estimator, base, sampling={"alpha": alpha, "replicate": 1}))
    assert other.series[0].y != first.series[0].y
    assert other.hashes == first.hashes
    assert other.case == replace(first.case, replicate=1)
    assert other.outcome is first.outcome or claim == THREE


def test_slope_of_the_verdict_is_that_of_its_own_curve() -> None:
    """With a slope that hardly varies over seeds, the curve of medians has it too."""
    found = verdict(E4, LMC_BETA)
    curve = found.series[0]
    assert loglog_slope(curve.x, curve.y) == pytest.approx(evidence(found, "floor")[1], abs=0.02)
    assert curve.x == pytest.approx((0.1, 0.2, 0.4))


# --- broken implementations are seen ---------------------------------------------------------------------


class _Wrapped:
    """An estimator with a defect, passed through the training runs and the enumeration alike."""

    def __init__(self, base: Estimator) -> None:
        self.base, self.name = base, base.name

    def init(self, problem: Problem) -> History:
        return self.base.init(problem)

    def estimate(self, problem: Problem, state: History, batch: Batch) -> Estimate:
        return self.base.estimate(problem, state, batch)


class NeverWrites(_Wrapped):
    def estimate(self, problem: Problem, state: History, batch: Batch) -> Estimate:
        return replace(super().estimate(problem, state, batch), writes=())


class Scaled(_Wrapped):
    def estimate(self, problem: Problem, state: History, batch: Batch) -> Estimate:
        estimate = super().estimate(problem, state, batch)
        return replace(estimate, gradient={name: 1.1 * value for name, value in estimate.gradient.items()})


def test_histories_that_are_never_written_refute() -> None:
    case = replace(case_of(E5, ZERO_BETA), estimator=NeverWrites(LMC()))
    assert CLAIMS[E5].check(case).outcome is Outcome.REFUTED


def test_a_gradient_off_by_a_factor_refutes() -> None:
    case = replace(case_of(TWO, FULL), estimator=Scaled(make_estimator("full-batch")))
    found = CLAIMS[TWO].check(case)
    assert found.outcome is Outcome.REFUTED
    assert max(found.series[0].y) == pytest.approx(0.1, rel=0.2)


def test_an_estimator_whose_beta_cannot_be_scaled_is_named() -> None:
    class Stubborn(_Wrapped):
        beta = 0.4

    case = replace(case_of(E4, LMC_BETA), estimator=Stubborn(LMC(beta=0.4)))
    with pytest.raises(InvalidInputError, match="has a beta and is no dataclass"):
        E4_CLAIM.check(case)
