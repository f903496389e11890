"""What the claims about floors and rates have in common: what they refuse to read, and the level that they keep."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from common.crossed import slow_but
from common.rate_cases import (
    BACKWARD,
    CLOSE,
    E4,
    E5,
    FLOORS,
    FM_,
    FULL,
    GAS_,
    KARATE,
    LMC_BETA,
    RING,
    SHARES,
    SHORT_RATE,
    THREE,
    TWO,
    ZERO_BETA,
    case_of,
    evidence,
    norms_by,
    settings_of,
    verdict,
    with_seeds,
)

from lmc_verify import Batch, History, Problem
from lmc_verify.cases.case import Case, build_case
from lmc_verify.cases.workspace import Workspace
from lmc_verify.claims import CLAIMS, Outcome, bias_curves
from lmc_verify.claims.theorems import theorem_3_rate as convergence
from lmc_verify.estimators import LMC, Estimate
from lmc_verify.objective.exact import exact_pass
from lmc_verify.objective.problem import gradient_norm
from lmc_verify.statistics import seeds_needed, seeds_to_detect
from lmc_verify.statistics.rates import MedianInterval

pytestmark = pytest.mark.usefixtures("short_grids")


@pytest.mark.slow
def test_slopes_are_where_theory_puts_them() -> None:
    """LMC: 1 in beta and in the step size, so 2 in eps; GAS: 0. Runs share batches, so little is noise."""
    for claim, estimator, slope in (
        (E4, LMC_BETA, 1.0),
        (E5, ZERO_BETA, 1.0),
        (TWO, ZERO_BETA, 2.0),
        (TWO, LMC_BETA, 2.0),
        (CLOSE, ZERO_BETA, 2.0),
        (CLOSE, LMC_BETA, 2.0),
        (E4, FM_, 0.0),
        (E5, GAS_, 0.0),
        (TWO, GAS_, 0.0),
        (CLOSE, GAS_, 0.0),
    ):
        low, _, high = evidence(verdict(claim, estimator, RING), "floor")
        assert slope - 0.3 < low <= high < slope + 0.3, (claim, estimator, low, high)
    for estimator in (LMC_BETA, BACKWARD, FULL):
        assert evidence(verdict(THREE, estimator), "E||grad||")[2] < -0.2
    low, value, high = evidence(verdict(THREE, GAS_), "E||grad||")
    assert low <= value <= high
    assert abs(value) < 0.15


@pytest.mark.parametrize("claim", slow_but({CLOSE, THREE}, [E4, E5, CLOSE, TWO, THREE]))
def test_too_few_seeds_decide_nothing_and_the_number_is_named(claim: str) -> None:
    found = CLAIMS[claim].check(with_seeds(claim, LMC_BETA, 2, SHORT_RATE if claim == THREE else None))
    assert found.outcome is Outcome.INCONCLUSIVE
    assert "2 seeds" in found.summary
    assert f"set sampling.seeds to {seeds_needed(0.02 / SHARES[claim])}" in found.summary
    assert found.draws == 2
    assert found.minimum_detectable_effect is None
    assert all(item.low is None and item.high is None for item in found.evidence)
    json.dumps(found.to_dict(), allow_nan=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("claim", "limit"), [(E4, 1.2), (E4, 0.8), (E5, 0.5), (CLOSE, 1.0), (TWO, 1.0), (THREE, -1 / 6)]
)
def test_an_interval_on_both_sides_of_the_limit_names_the_seeds_that_would_decide(
    claim: str, limit: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds = seeds_needed(0.02 / SHARES[claim])
    slopes = [limit + 0.1 + (0.3 if number % 2 else -0.3) for number in range(seeds)]
    given = itertools.cycle(slopes)
    for module in (bias_curves, convergence):
        monkeypatch.setattr(module, "loglog_slope", lambda *_: next(given))
    falls, stays = MedianInterval(-0.4, -0.5, -0.3, 0.0, 9), MedianInterval(0.0, -0.1, 0.1, 0.0, 9)
    monkeypatch.setattr(convergence, "_control", lambda *_: convergence._Control(-0.4, falls, stays))
    found = CLAIMS[claim].check(with_seeds(claim, LMC_BETA, seeds, SHORT_RATE if claim == THREE else None))
    assert found.outcome is Outcome.INCONCLUSIVE, found.summary
    gap, deviation = abs(float(np.median(slopes)) - limit), float(np.std(slopes, ddof=1))
    needed = seeds_to_detect(gap, deviation, 0.02 / SHARES[claim])
    assert f"about {needed:,} seeds would decide, if slopes scatter as they did: set sampling.seeds" in found.summary
    assert "sampling.replicate" in found.summary  # fresh seeds: the interval is for a number fixed beforehand


@pytest.mark.slow
@pytest.mark.parametrize(("claim", "estimator"), [(E5, GAS_), (CLOSE, ZERO_BETA), (TWO, ZERO_BETA)])
def test_runs_that_end_far_apart_are_not_compared(claim: str, estimator: dict[str, Any]) -> None:
    found = CLAIMS[claim].check(case_of(claim, estimator, RING | {"training": {"step_size": 1.0}}))
    assert found.outcome is Outcome.INCONCLUSIVE, found.summary
    assert "choose a smaller training.step_size" in found.summary
    apart = next(item for item in found.evidence if item.quantity.startswith("distance"))
    assert apart.tolerance == bias_curves.APART
    assert apart.value > apart.tolerance


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize("claim", [E4, E5, CLOSE, TWO, THREE])
def test_a_dead_network_shows_nothing(claim: str) -> None:
    for estimator in (LMC_BETA, BACKWARD) if claim == E5 else (LMC_BETA,):
        case = dead(claim, estimator)
        assert gradient_norm(case.exact.gradient) == 0
        found = CLAIMS[claim].check(case)
        assert found.outcome is Outcome.INCONCLUSIVE, found.summary
        assert "the network has died" in found.summary
        assert "another seed" in found.summary
        assert CLAIMS[claim].expect(case).outcome is None


@pytest.mark.parametrize("claim", [E4, E5, CLOSE, TWO])
def test_designs_that_cannot_be_enumerated_are_not_applicable(claim: str) -> None:
    case = case_of(claim, LMC_BETA, KARATE | {"design": {"name": "nodes", "per_batch": 12}})
    found, theory = CLAIMS[claim].check(case), CLAIMS[claim].expect(case)
    assert found.outcome is theory.outcome is Outcome.NOT_APPLICABLE
    assert "can be enumerated" in found.summary


@pytest.mark.parametrize("claim", [E4, E5, CLOSE, TWO, THREE])
def test_dropout_is_not_applicable(claim: str) -> None:
    case = case_of(claim, LMC_BETA)
    problem = case.problem.copy()
    problem.model.add_module("extra", torch.nn.Dropout(0.5).train())
    case = replace(case, problem=problem)
    found, theory = CLAIMS[claim].check(case), CLAIMS[claim].expect(case)
    assert found.outcome is theory.outcome is Outcome.NOT_APPLICABLE
    assert "dropout is active" in found.summary


@pytest.mark.parametrize("claim", [E4, E5, TWO])
@pytest.mark.parametrize("weighting", ["node-count", "batch-mean"])
def test_theory_expects_nothing_where_weights_are_wrong(claim: str, weighting: str) -> None:
    estimator = LMC_BETA | {"weighting": weighting}
    uneven = RING | {"dataset": {"name": "karate"}, "design": {"partition": "metis", "parts": 3, "per_batch": 1}}
    assert CLAIMS[claim].expect(case_of(claim, estimator, uneven)).outcome is None


@dataclass(frozen=True)
class Unknown:
    """A user's estimator, with a beta of its own and no halo policies."""

    name: ClassVar[str] = "unknown"
    beta: float = 0.4

    def init(self, problem: Problem) -> History:
        return LMC().init(problem)

    def estimate(self, problem: Problem, state: History, batch: Batch) -> Estimate:
        return LMC(beta=self.beta).estimate(problem, state, batch)


@pytest.mark.slow
@pytest.mark.parametrize("claim", [E4, E5, CLOSE, TWO, THREE])
def test_theory_expects_nothing_of_a_users_estimator(claim: str) -> None:
    case = replace(case_of(claim, LMC_BETA), estimator=Unknown())
    assert CLAIMS[claim].expect(case).outcome is None
    if claim == E4:
        assert CLAIMS[claim].check(case).outcome is Outcome.SUPPORTED


@pytest.mark.slow
@pytest.mark.parametrize("claim", [E4, E5, CLOSE, TWO, THREE])
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


@pytest.mark.slow
@pytest.mark.parametrize(("claim", "estimator"), [(E4, LMC_BETA), (CLOSE, LMC_BETA), (TWO, LMC_BETA), (THREE, GAS_)])
def test_verdict_is_a_function_of_the_case(claim: str, estimator: dict[str, Any]) -> None:
    """In a fresh workspace, after other checks: the same verdict, number by number."""
    base = SHORT_RATE if claim == THREE else RING
    again = CLAIMS[claim].check(build_case(settings_of(claim, estimator, base), Workspace()))
    assert again.to_dict() == verdict(claim, estimator, base).to_dict()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("claim", "estimator"), [(E4, LMC_BETA), (E5, ZERO_BETA), (CLOSE, LMC_BETA), (TWO, LMC_BETA), (THREE, GAS_)]
)
def test_another_replicate_draws_afresh_on_the_same_case(claim: str, estimator: dict[str, Any]) -> None:
    base = SHORT_RATE if claim == THREE else RING
    first = verdict(claim, estimator, base)
    alpha = 0.45 if claim == THREE else 0.25
    other = CLAIMS[claim].check(case_of(claim, estimator, base, sampling={"alpha": alpha, "replicate": 1}))
    assert other.series[0].y != first.series[0].y
    assert other.hashes == first.hashes
    assert other.case == replace(first.case, replicate=1)
    assert other.outcome is first.outcome or claim == THREE


@pytest.mark.slow
@pytest.mark.parametrize("claim", [E5, TWO])
def test_a_refutation_names_the_parameter_and_the_assumptions_that_fail(claim: str) -> None:
    found = verdict(claim, GAS_, RING)
    assert found.outcome is Outcome.REFUTED
    assert "worst parameter layers.0.conv." in found.summary or "layers.0.conv.bias:" in found.summary
    assert "of its own gradient" in found.summary
    assert "assumptions that fail: smooth" in found.summary


@pytest.mark.slow
def test_a_rate_that_is_refuted_names_the_assumptions_that_fail() -> None:
    assert "assumptions that fail: smooth" in verdict(THREE, GAS_).summary


def test_a_plateau_is_not_called_a_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Curves that decay onto a third of their start keep the slope on average, and not at the end."""
    monkeypatch.setattr(
        convergence,
        "_mean_norms",
        norms_by(lambda length, seed: (1 + 0.01 * seed) * (2 / 3 * (16 / length) ** 0.7 + 1 / 3)),
    )
    monkeypatch.setattr(convergence, "_full_batch", lambda case: [length**-0.4 for length in case.training.lengths])
    found = CLAIMS[THREE].check(case_of(THREE, FULL))
    assert found.outcome is Outcome.INCONCLUSIVE
    assert evidence(found, "E||grad||")[2] < -1 / 6, "the slope alone would support it"
    assert "too near for a slope to be read" in found.summary
    assert "would decide (training.lengths)" in found.summary
    low, value, high = evidence(found, "fitted floor")
    assert low <= value + 1e-3
    assert value == pytest.approx((1 / 3) / (2 / 3 * 16**-0.7 + 1 / 3), abs=0.02)
    assert value <= high + 1e-3
