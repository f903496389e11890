"""At scales whose squares overflow or vanish what holds is never refuted, and nothing crashes."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from common.crossed import crossed
from common.helpers import path_graph

from lmc_verify.cases import Case, SamplingSettings, assemble_case
from lmc_verify.claims import CLAIMS, Outcome
from lmc_verify.claims.diagnosis import likeness
from lmc_verify.errors import InvalidInputError
from lmc_verify.estimators import GAS, LABOR, LMC, TOP, VRGCN, BackwardSGD, Estimator, NeighbourSampling, Shadow
from lmc_verify.graphs import Clusters, Partition
from lmc_verify.models import GCN
from lmc_verify.objective import Problem, euclidean_norm, gradient_norm

DESIGN = Clusters(Partition(torch.arange(6) // 2), 1)
SAMPLING = SamplingSettings(alpha=0.1, draws=900, delta=0.5)


def problem(features: float = 1.0, weights: float = 1.0, biases: float = 1.0) -> Problem:
    """A path of six nodes; features, weights and biases are multiplied by the factors."""
    graph = path_graph(6, y=torch.tensor([0, 0, 1, 1, 2, 0]))
    model = GCN(3, 3, 3, num_layers=2, seed=2, dtype=torch.float64).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.mul_(weights if "weight" in name else biases)
    return Problem(graph.replaced(x=graph.x * features), model)


SCALES: dict[str, dict[str, float]] = {
    "features 1e-160": {"features": 1e-160},
    "features 1e-300": {"features": 1e-300},
    "features 1e160": {"features": 1e160},
    "features 1e160, weights 1e-160": {"features": 1e160, "weights": 1e-160},
    "weights 1e100": {"weights": 1e100},
    "weights 1e-160": {"weights": 1e-160},
    "nothing but weights": {"features": 1e-160, "biases": 0.0},
    "H^1 = 0": {"features": 0.0, "biases": 0.0},
}
HOLDS: list[tuple[str, Estimator]] = [
    ("theorem-1/unbiased", LMC()),
    ("theorem-1/unbiased", BackwardSGD()),
    ("theorem-1/unbiased-sampled", LMC()),
    ("e1/equals-backward-sgd", LMC()),
    ("e2/exact-when-frozen", LMC()),
    ("e3/contraction", GAS()),
    ("e3/contraction-sampled", GAS()),
    ("e6/bias-per-layer", GAS()),
    ("e7/reductions", LMC()),
    ("e8/bias-and-variance", BackwardSGD()),
    ("e8/bias-and-variance", GAS()),
    ("sampling/unbiased-aggregation", NeighbourSampling(fan_out=1)),
    ("sampling/unbiased-aggregation-sampled", NeighbourSampling(fan_out=2)),
    ("labor/fewer-vertices", LABOR(fan_out=1)),
    ("shadow/unbiased-own-objective", Shadow()),
    ("top/exact-in-span", TOP()),
]


def case_at(scale: str, estimator: Estimator) -> Case:
    return assemble_case(problem(**SCALES[scale]), DESIGN, estimator, sampling=SAMPLING)


def name_of(item: str | tuple[str, Estimator]) -> str:
    return item if isinstance(item, str) else f"{item[0]} {item[1].name}"


@pytest.mark.parametrize(("held", "scale"), crossed(HOLDS, SCALES), ids=name_of)
def test_what_holds_is_not_refuted(held: tuple[str, Estimator], scale: str) -> None:
    claim, estimator = held
    case = case_at(scale, estimator)
    verdict = CLAIMS[claim].check(case)
    assert verdict.outcome is not Outcome.REFUTED, verdict.summary
    numbers = [item.value for item in verdict.evidence]
    assert not any(value != value for value in numbers), verdict.evidence


@pytest.mark.parametrize(
    ("claim", "scale"),
    crossed(
        ["theorem-1/unbiased", "e1/equals-backward-sgd", "e2/exact-when-frozen", "e3/contraction", "e7/reductions"],
        ["features 1e-160", "features 1e-300", "features 1e160, weights 1e-160"],
    ),
)
def test_what_holds_is_found_to_hold(claim: str, scale: str) -> None:
    assert CLAIMS[claim].check(case_at(scale, LMC())).outcome is Outcome.EXACT


@pytest.mark.parametrize("scale", ["features 1e-160", "features 1e160, weights 1e-160", "weights 1e-160"])
@pytest.mark.parametrize("claim", ["theorem-1/unbiased", "e1/equals-backward-sgd"])
def test_what_is_biased_is_refuted(claim: str, scale: str) -> None:
    verdict = CLAIMS[claim].check(case_at(scale, GAS()))
    assert verdict.outcome is Outcome.REFUTED, verdict.summary


@pytest.mark.parametrize("scale", ["features 1e-160", "features 1e160, weights 1e-160"])
def test_what_is_biased_is_refuted_from_draws(scale: str) -> None:
    case = replace(case_at(scale, GAS()), sampling=SamplingSettings(delta=1e-3))
    assert CLAIMS["theorem-1/unbiased-sampled"].check(case).outcome is Outcome.REFUTED


@pytest.mark.slow
@pytest.mark.parametrize("scale", SCALES)
def test_two_samplers_are_compared(scale: str) -> None:
    """Which of two errors is smaller is for the case; both are numbers."""
    verdict = CLAIMS["sampling/error-below-baseline"].check(case_at(scale, VRGCN(fan_out=1)))
    assert all(math.isfinite(item.value) for item in verdict.evidence)


def test_an_overflow_is_called_an_overflow() -> None:
    words = r"embeddings of layer \d are not finite .*the numbers overflow; scale the features or the parameters down"
    for values in ({"weights": 1e200}, {"features": 1e300, "weights": 1e10}):
        with pytest.raises(InvalidInputError, match=words):
            assemble_case(problem(**values), DESIGN, LMC())


@pytest.mark.parametrize("scale", [1e-300, 1e-200, 1e-160, 1e-80, 1.0, 1e80, 1e160, 1e200, 1e307])
def test_norms_do_not_depend_on_the_scale(scale: float) -> None:
    values = torch.tensor([3.0, -4.0], dtype=torch.float64)
    assert euclidean_norm([scale * values[:1], scale * values[1:]]) == pytest.approx(5 * scale, rel=1e-14)
    gradient: dict[str, Any] = {"a": scale * values}
    assert gradient_norm(gradient) == pytest.approx(5 * scale, rel=1e-14)
    factor, cosine = likeness({"a": scale * values}, gradient)
    assert (factor, cosine) == pytest.approx((2.0, 1.0))


def test_norms_of_nothing_of_infinity_and_of_no_number() -> None:
    one = torch.ones(2, dtype=torch.float64)
    assert euclidean_norm([]) == euclidean_norm([one[:0], 0 * one]) == gradient_norm({}) == 0
    assert euclidean_norm([one / 0]) == gradient_norm({"a": one / 0, "b": one}) == float("inf")
    for parts in ([one, one * float("nan")], [one * float("nan"), 1e300 * one]):
        found = euclidean_norm(parts)
        assert found != found
