"""Small cases of the claims about floors and rates, with few seeds, at the level that these allow.

n seeds bound a median with a miss probability of 2^(1-n).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from lmc_verify import Batch, Estimator, History, Problem
from lmc_verify.cases.case import Case, build_case
from lmc_verify.cases.settings import CaseSettings
from lmc_verify.cases.workspace import Workspace
from lmc_verify.claims import CLAIMS, Outcome, Verdict
from lmc_verify.claims.consequences import e4_floor_linear_in_beta, e5_floor_in_step_size
from lmc_verify.claims.theorems import theorem_2_decay_and_floor
from lmc_verify.estimators import Estimate
from lmc_verify.statistics import seeds_needed

E4, E5, TWO, THREE = "e4/floor-linear-in-beta", "e5/floor-in-step-size", "theorem-2/decay-and-floor", "theorem-3/rate"
CLOSE = "theorem-2/close-to-backward-sgd"
FLOORS = (e4_floor_linear_in_beta, e5_floor_in_step_size, theorem_2_decay_and_floor)
SHARES = {E4: 1, E5: 1, CLOSE: 1, TWO: 2, THREE: 3}
"""Intervals that share the level of a check."""
LMC_BETA, ZERO_BETA = {"name": "lmc", "beta": 0.4}, {"name": "lmc"}
GAS_, FM_, BACKWARD, FULL = {"name": "gas"}, {"name": "fm"}, {"name": "backward-sgd"}, {"name": "full-batch"}
WORKSPACE = Workspace()

# Twelve nodes in three parts: 34 steps per run. The step size keeps all runs close together.
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


def settings_of(claim: str, estimator: dict[str, Any], base: dict[str, Any], **changes: Any) -> CaseSettings:
    sampling = {"alpha": 0.45 if claim == THREE else 0.25}
    return CaseSettings.model_validate(base | {"estimator": estimator, "sampling": sampling} | changes)


def case_of(claim: str, estimator: dict[str, Any], base: dict[str, Any] | None = None, **changes: Any) -> Case:
    return build_case(settings_of(claim, estimator, base or (RATE if claim == THREE else RING), **changes), WORKSPACE)


@cache
def _known(claim: str, estimator: str, base: str) -> Verdict:
    return CLAIMS[claim].check(case_of(claim, json.loads(estimator), json.loads(base)))


def verdict(claim: str, estimator: dict[str, Any], base: dict[str, Any] | None = None) -> Verdict:
    """Check a claim once per session: a verdict is a function of its case (see below)."""
    return _known(claim, json.dumps(estimator), json.dumps(base or (RATE if claim == THREE else RING)))


def evidence(found: Verdict, quantity: str) -> tuple[float, float, float]:
    """Return low, value and high of an interval."""
    item = next(item for item in found.evidence if item.quantity.startswith(quantity))
    assert item.low is not None
    assert item.high is not None
    return item.low, item.value, item.high


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
        largest = next(item for item in found.evidence if item.quantity.startswith("largest "))
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
    figures = {E4: 1, E5: 1, CLOSE: 3, TWO: 4, THREE: 3}
    assert len(found.series) == figures[claim]


def with_seeds(claim: str, estimator: dict[str, Any], seeds: int, base: dict[str, Any] | None = None) -> Case:
    return case_of(claim, estimator, base, sampling={"alpha": 0.02, "seeds": seeds})


def norms_by(norm: Callable[[int, int], float]) -> Callable[[Case, int], np.ndarray]:
    """Return what takes the place of Theorem 3's training runs: mean gradient norms by length and seed."""

    def mean_norms(case: Case, seeds: int) -> np.ndarray:
        return np.array([[norm(length, seed) for length in case.training.lengths] for seed in range(seeds)])

    return mean_norms


class Wrapped:
    """An estimator with a defect, passed through the training runs and the enumeration alike."""

    def __init__(self, base: Estimator) -> None:
        self.base, self.name = base, base.name

    def init(self, problem: Problem) -> History:
        return self.base.init(problem)

    def estimate(self, problem: Problem, state: History, batch: Batch) -> Estimate:
        return self.base.estimate(problem, state, batch)
