"""Numbers at the ends of float64 crash no check of Theorems 2 and 3, E4 or E5, and refute no sound estimator."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import ClassVar

import numpy as np
import pytest
import torch
from common.helpers import path_graph
from common.rate_cases import norms_by

from lmc_verify import GCN, LMC, BackwardSGD, Batch, Clusters, ContractError, Estimate, History, Partition, Problem
from lmc_verify.cases.case import Case, assemble_case
from lmc_verify.cases.settings import SamplingSettings, TrainingSettings
from lmc_verify.claims import CLAIMS, Outcome
from lmc_verify.claims.theorems import theorem_2_a_posteriori_bound, theorem_3_rate
from lmc_verify.estimators import Estimator
from lmc_verify.objective import gradient_norm
from lmc_verify.training import TrainingRun

pytestmark = pytest.mark.usefixtures("short_grids")
CHECKED = [
    "theorem-2/close-to-backward-sgd",
    "theorem-2/decay-and-floor",
    "theorem-2/a-posteriori-bound",
    "theorem-3/fixed-point",
    "theorem-3/rate",
    "theorem-3/relative-bias",
    "e4/floor-linear-in-beta",
    "e5/floor-in-step-size",
]


def case_of(kind: str, step_size: float, estimator: Estimator, clusters: int = 1) -> Case:
    graph, model = path_graph(6), GCN(3, 4, 3, 2, seed=2, dtype=torch.float64).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_({"small parameters": 1e-160, "large parameters": 1e80}.get(kind, 1.0))
        if kind == "H^1 = 0":
            model.layers[0].conv.lin.weight.zero_()
            model.layers[0].conv.bias.fill_(-1.0)
    factor = {"small features": 1e-160, "large features": 1e160}.get(kind, 1.0)
    return assemble_case(
        Problem(graph.replaced(x=factor * graph.x), model),
        Clusters(Partition.contiguous(6, 3), clusters),
        estimator,
        training=TrainingSettings(step_size=step_size, steps=4, lengths=(2, 3, 4)),
        sampling=SamplingSettings(alpha=0.4),
    )


@pytest.mark.slow
@pytest.mark.parametrize("claim", CHECKED)
@pytest.mark.parametrize(
    ("kind", "step_size"),
    [
        ("small features", 0.01),
        ("large features", 0.01),
        ("small parameters", 0.01),
        ("large parameters", 0.01),
        ("H^1 = 0", 0.01),
        ("ordinary", 1e6),
        ("ordinary", 1e300),
    ],
)
def test_extreme_numbers_neither_crash_nor_refute(claim: str, kind: str, step_size: float) -> None:
    found = CLAIMS[claim].check(case_of(kind, step_size, LMC(beta=0.4 if claim.startswith("e4") else 0.0)))
    assert found.outcome not in (Outcome.REFUTED, Outcome.ERROR), found.summary


# What several clusters a batch add: estimates that do not vanish one by one, halves of which cancel in the mean.
@pytest.mark.slow
@pytest.mark.parametrize("claim", CHECKED)
@pytest.mark.parametrize("kind", ["small features", "large features", "small parameters"])
def test_nor_do_they_with_two_clusters_a_batch(claim: str, kind: str) -> None:
    found = CLAIMS[claim].check(case_of(kind, 0.01, LMC(beta=0.4 if claim.startswith("e4") else 0.0), 2))
    assert found.outcome not in (Outcome.REFUTED, Outcome.ERROR), found.summary


def balanced(scale: float, clusters: int, estimator: Estimator) -> Case:
    """As many nodes of every class, and parameters so small that outputs are alike: the gradients of nodes cancel."""
    graph = path_graph(6, y=torch.arange(6) % 3)
    model = GCN(3, 4, 3, 2, seed=2, dtype=torch.float64).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(scale)
    return assemble_case(
        Problem(graph, model),
        Clusters(Partition.contiguous(6, 3), clusters),
        estimator,
        training=TrainingSettings(step_size=0.01, steps=4, lengths=(2, 3, 4)),
        sampling=SamplingSettings(alpha=0.4),
    )


@pytest.mark.slow
@pytest.mark.parametrize("scale", [1e-160, 1e-17])
def test_a_gradient_that_is_rounding_is_no_unit_of_bias(scale: float) -> None:
    """Sums of order one leave 1e-17, which is many times a gradient of 1e-162 or 1e-18."""
    found = CLAIMS["theorem-3/relative-bias"].check(balanced(scale, 2, BackwardSGD()))
    assert found.outcome is Outcome.INCONCLUSIVE
    assert re.search("the exact gradient is .* at the end, and rounding may be .*e-1[2-5]: its ratio", found.summary)
    found = CLAIMS["e4/floor-linear-in-beta"].check(balanced(scale, 2, LMC(beta=0.4)))
    assert found.outcome is Outcome.INCONCLUSIVE
    assert "where rounding may be" in found.summary
    assert "the gradients of its nodes cancel" in found.summary


@pytest.mark.parametrize("clusters", [1, 2, 3])
def test_a_sound_estimator_is_not_refuted_where_the_gradients_of_nodes_cancel(clusters: int) -> None:
    """At 1e-9 the gradient is 1e-10, and rounding of 1e-17 a millionth of a per cent of it: E7 called that a defect."""
    found = CLAIMS["e7/reductions"].check(balanced(1e-9, clusters, BackwardSGD()))
    assert found.outcome is Outcome.INCONCLUSIVE, found.summary
    assert "rounding alone could hide" in found.summary


@pytest.mark.slow
@pytest.mark.parametrize(
    "claim", ["theorem-2/close-to-backward-sgd", "theorem-2/decay-and-floor", "theorem-3/rate", "e5/floor-in-step-size"]
)
def test_divergence_is_called_divergence(claim: str) -> None:
    found = CLAIMS[claim].check(case_of("ordinary", 1e300, LMC()))
    assert found.outcome is Outcome.INCONCLUSIVE
    assert "diverged" in found.summary
    assert "smaller training.step_size" in found.summary


@pytest.mark.parametrize(("factor", "diverged"), [(0.99, False), (1.01, True)])
def test_a_gradient_that_explodes_has_diverged(factor: float, diverged: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    case = case_of("ordinary", 0.01, LMC())
    size = factor * theorem_3_rate.EXPLODED * gradient_norm(case.exact.gradient)
    monkeypatch.setattr(theorem_3_rate, "_mean_norms", norms_by(lambda *_: size))
    found = CLAIMS["theorem-3/rate"].check(case)
    assert ("training diverged" in found.summary) is diverged


@dataclasses.dataclass(frozen=True)
class Broken(BackwardSGD):
    name: ClassVar[str] = "broken"

    def estimate(self, problem: Problem, state: History, batch: Batch) -> Estimate:
        made = super().estimate(problem, state, batch)
        return dataclasses.replace(made, gradient={key: value * math.nan for key, value in made.gradient.items()})


def test_an_estimator_that_gives_no_numbers_has_not_diverged() -> None:
    case = case_of("ordinary", 0.01, BackwardSGD())
    run = TrainingRun(case.problem, Broken(), case.design, step_size=0.01, generator=np.random.default_rng(0))
    with pytest.raises(ContractError, match="not finite"):
        run.step()
    with torch.no_grad():
        for parameter in run.problem.model.parameters():
            parameter.fill_(math.inf)
    run.step()  # where the parameters have gone, numbers may go, too


@pytest.mark.parametrize("total", [math.nan, math.inf])
def test_a_bound_that_is_no_number_is_not_exceeded(total: float, monkeypatch: pytest.MonkeyPatch) -> None:
    original = theorem_2_a_posteriori_bound.batch_bound

    def broken(*arguments: object, **named: object) -> object:
        return dataclasses.replace(original(*arguments, **named), total=total)

    monkeypatch.setattr(theorem_2_a_posteriori_bound, "batch_bound", broken)
    found = CLAIMS["theorem-2/a-posteriori-bound"].check(case_of("ordinary", 0.01, LMC()))
    assert found.outcome is Outcome.INCONCLUSIVE
    assert f"the bound is {total}" in found.summary
