"""What Theorem 3 needs of the bias: no resting place away from stationary points, and a bias below the gradient.

A plateau is called one only where the gradient stands still; both checks follow a path without sampling error.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from common.helpers import path_graph

from lmc_verify.cases.case import Case, assemble_case, build_case
from lmc_verify.cases.settings import CaseSettings, TrainingSettings
from lmc_verify.cases.workspace import Workspace
from lmc_verify.claims import Outcome, Verdict
from lmc_verify.claims.consequences.e6_bias_per_layer import LOWER_LAYERS_BIASED
from lmc_verify.claims.theorems import theorem_3_fixed_point as module
from lmc_verify.claims.theorems import theorem_3_relative_bias
from lmc_verify.claims.theorems.theorem_1_unbiased import UNBIASED
from lmc_verify.claims.theorems.theorem_3_fixed_point import FIXED_POINT
from lmc_verify.claims.theorems.theorem_3_relative_bias import RELATIVE_BIAS
from lmc_verify.claims.theory import halo_view
from lmc_verify.estimators import GAS, LMC, BackwardSGD, Estimator, FullBatch
from lmc_verify.graphs.designs import Clusters, EpochClusters
from lmc_verify.graphs.graph import Graph
from lmc_verify.graphs.partition import Partition
from lmc_verify.models import GCN, ConvLayer, GCNConv, LayeredModel
from lmc_verify.models.convs import initialise
from lmc_verify.objective.exact import exact_pass
from lmc_verify.objective.problem import Problem, gradient_norm
from lmc_verify.seeds import torch_generator

WORKSPACE = Workspace()
KARATE: dict[str, Any] = {
    "dataset": {"name": "karate"},
    "model": {"layers": 2, "width": 4, "frozen": ["layer 2"]},
    "design": {"partition": "random", "parts": 6, "per_batch": 1},
    "training": {"step_size": 1.0, "steps": 120},
}
RING: dict[str, Any] = {
    "dataset": {"name": "ring", "noise": 0.0, "flips": 0.2},
    "model": {"layers": 2, "width": 8, "frozen": ["layer 2"]},
    "design": {"partition": "random", "parts": 4, "per_batch": 1},
    "training": {"step_size": 3.0, "steps": 100},
}
RELATIVE: dict[str, Any] = {
    "dataset": {"name": "karate"},
    "model": {"layers": 2, "width": 8},
    "design": {"parts": 6, "per_batch": 2},
    "sampling": {"seeds": 1},
}


def case_of(base: dict[str, Any], estimator: str | dict[str, Any], **values: Any) -> Case:
    name = {"name": estimator} if isinstance(estimator, str) else estimator
    return build_case(CaseSettings.model_validate(base | {"estimator": name} | values), WORKSPACE)


def small(estimator: Estimator, design: Any = None, *, linear: bool = False, **training: Any) -> Case:
    graph = path_graph(6)
    model: LayeredModel = GCN(graph.num_features, 3, 3, num_layers=2, seed=2, dtype=torch.float64)
    if linear:  # no activation that could die
        model = LayeredModel([ConvLayer(GCNConv(3, 3, dtype=torch.float64)) for _ in range(2)])
        initialise(model, torch_generator(2, "parameters"))
    problem = Problem(graph, model.eval())
    design = design or Clusters(Partition(torch.arange(6) // 2, "pairs"), 1)
    settings = TrainingSettings(**({"steps": 20, "step_size": 0.5} | training))
    return assemble_case(problem, design, estimator, training=settings)


def ratio(verdict: Verdict) -> float:
    return next(item.value for item in verdict.evidence if item.group == "plateau")


# --- fixed points --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("base", [KARATE, RING], ids=["karate", "ring"])
def test_gas_comes_to_rest_on_a_plateau(base: dict[str, Any]) -> None:
    case = case_of(base, "gas")
    verdict = FIXED_POINT.check(case)
    assert verdict.outcome is Outcome.REFUTED, verdict.summary
    assert FIXED_POINT.expect(case).outcome is None
    assert ratio(verdict) >= (100 if base is RING else module.PLATEAU)
    gradient, update = verdict.series
    assert gradient.x[0] == 0
    assert gradient.x[-1] == base["training"]["steps"]
    assert ratio(verdict) == pytest.approx(gradient.y[-1] / update.y[-1])
    assert gradient.y[-1] > 0.5 * gradient.y[0]


@pytest.mark.parametrize("base", [KARATE, RING], ids=["karate", "ring"])
def test_lmc_follows_the_gradient(base: dict[str, Any]) -> None:
    case = case_of(base, "lmc", training={"step_size": 1.0, "steps": 40})
    verdict = FIXED_POINT.check(case)
    assert verdict.outcome is FIXED_POINT.expect(case).outcome is Outcome.EXACT, verdict.summary
    gradient, update = verdict.series
    assert np.allclose(gradient.y, update.y, rtol=1e-9)
    assert verdict.minimum_detectable_effect is not None
    assert verdict.minimum_detectable_effect < 1e-8


def test_where_the_gradient_vanishes_there_is_no_plateau() -> None:
    """With all layers trained GAS fits the ring: gradient and update vanish together, at whatever ratio."""
    base = RING | {"model": {"layers": 2, "width": 8}}
    verdict = FIXED_POINT.check(case_of(base, "gas"))
    gradient, _ = verdict.series
    assert gradient.y[-1] < 1e-3 * gradient.y[0]
    assert ratio(verdict) > 3.9
    assert verdict.outcome is Outcome.INCONCLUSIVE, verdict.summary
    assert "not on a plateau" in verdict.summary


def test_the_path_is_that_of_the_mean_update() -> None:
    """Of an unbiased estimator it is gradient descent, computed here step by step."""
    for estimator in (BackwardSGD(), LMC(), FullBatch()):
        case = small(estimator)
        verdict = FIXED_POINT.check(case)
        assert verdict.outcome is Outcome.EXACT, verdict.summary
        problem, norms = case.problem.copy(), []
        parameters = dict(problem.model.named_parameters())
        for _ in range(21):
            gradient = exact_pass(problem).gradient
            norms.append(gradient_norm(gradient))
            with torch.no_grad():
                for name, value in gradient.items():
                    parameters[name] -= 0.5 * value
        curve = verdict.series[0]
        assert np.allclose(curve.y, [norms[int(step)] for step in curve.x], rtol=1e-9)
        assert gradient_norm(exact_pass(case.problem).gradient) == norms[0], "the case was changed"


def test_a_bias_without_a_plateau_refutes_nothing() -> None:
    verdict = FIXED_POINT.check(small(GAS(), steps=1))
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert "raise training.steps" in verdict.summary
    away = FIXED_POINT.check(small(GAS(), linear=True, step_size=1e200, steps=10))
    assert away.outcome is Outcome.INCONCLUSIVE
    assert "lower training.step_size" in away.summary


def test_wrong_weights_are_not_expected_to_be_exact() -> None:
    partition = Partition(torch.tensor([0, 0, 0, 1, 1, 2]), "unequal")
    case = small(BackwardSGD(normaliser="node-count"), Clusters(partition, 1))
    assert FIXED_POINT.expect(case).outcome is None
    assert FIXED_POINT.check(case).outcome is not Outcome.EXACT
    seen = small(BackwardSGD(), EpochClusters(partition, 1, (0,)))
    assert FIXED_POINT.expect(seen).outcome is None
    assert FIXED_POINT.check(seen).outcome is not Outcome.EXACT


# --- relative bias -------------------------------------------------------------------------------------------------

BETAS: dict[str, tuple[dict[str, Any], dict[str, Any], Outcome]] = {
    "0": ({"name": "lmc"}, {}, Outcome.SUPPORTED),
    "decaying": (
        {"name": "lmc", "beta": 1.0, "score": "constant"},
        {"beta_schedule": "decaying"},
        Outcome.SUPPORTED,
    ),
    "0.4": ({"name": "lmc", "beta": 0.4, "score": "constant"}, {}, Outcome.REFUTED),
    "1": ({"name": "lmc", "beta": 1.0, "score": "constant"}, {}, Outcome.REFUTED),
}


@pytest.mark.parametrize("beta", BETAS)
def test_the_bias_of_a_constant_beta_outgrows_the_gradient(beta: str) -> None:
    estimator, training, outcome = BETAS[beta]
    case = case_of(RELATIVE, estimator, training={"step_size": 0.5, "steps": 400} | training)
    verdict = RELATIVE_BIAS.check(case)
    assert verdict.outcome is outcome, verdict.summary
    assert RELATIVE_BIAS.expect(case).outcome is None
    (curve,) = verdict.series
    late = max(curve.y[-3:])
    assert (late < 0.2) if outcome is Outcome.SUPPORTED else (min(curve.y[-3:]) > 1)
    assert verdict.evidence[0].value == pytest.approx(late)
    assert verdict.draws == 1
    assert verdict.alpha_spent == 0


def test_a_run_that_has_hardly_moved_supports_nothing() -> None:
    verdict = RELATIVE_BIAS.check(small(BackwardSGD(), steps=3, step_size=1e-3))
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert "hardly fallen" in verdict.summary
    away = RELATIVE_BIAS.check(small(LMC(), linear=True, step_size=1e200, steps=10))
    assert away.outcome is Outcome.INCONCLUSIVE
    assert "lower training.step_size" in away.summary


def test_an_unbiased_estimator_has_no_relative_bias() -> None:
    for estimator in (BackwardSGD(), FullBatch()):
        verdict = RELATIVE_BIAS.check(small(estimator, steps=60))
        assert verdict.outcome is Outcome.SUPPORTED, verdict.summary
        assert max(verdict.series[0].y) < 1e-12
        assert verdict.draws == theorem_3_relative_bias.RUNS


def test_designs_that_cannot_be_enumerated_are_refused() -> None:
    case = case_of(KARATE, "lmc", design={"name": "nodes", "per_batch": 17})
    for claim in (FIXED_POINT, RELATIVE_BIAS):
        assert claim.check(case).outcome is claim.expect(case).outcome is Outcome.NOT_APPLICABLE


# --- what the halo loses -------------------------------------------------------------------------------------------


def pair(slope: float) -> Case:
    """Two nodes in two batches; the activation of both hidden units is alive where `slope` is positive."""
    graph = Graph(
        edge_index=torch.tensor([[0, 1], [1, 0]]),
        x=torch.tensor([[1.0], [0.5]], dtype=torch.float64),
        y=torch.tensor([0, 1]),
        train_mask=torch.ones(2, dtype=torch.bool),
    )
    model = GCN(1, 2, 2, num_layers=2, residual=True, seed=0, dtype=torch.float64)
    with torch.no_grad():
        dict(model.named_parameters())["layers.0.conv.lin.weight"].fill_(slope)
        dict(model.named_parameters())["layers.0.conv.bias"].zero_()
    return assemble_case(Problem(graph, model.eval()), Clusters(Partition(torch.arange(2), "singletons"), 1), GAS())


def test_a_message_that_meets_a_dead_activation_is_not_lost() -> None:
    """The residual connection keeps the first layer's gradient alive, and nothing of it comes from the halo."""
    dead, alive = pair(-1.0), pair(1.0)
    assert gradient_norm({name: value for name, value in dead.exact.gradient.items() if "layers.0" in name}) > 0.01
    for case, signal in ((dead, False), (alive, True)):
        assert halo_view(case, [batch for batch, _ in case.design.enumerate()]).carries_signal is signal
        verdict, theory = LOWER_LAYERS_BIASED.check(case), LOWER_LAYERS_BIASED.expect(case)
        assert verdict.outcome is theory.outcome is (Outcome.EXACT if signal else Outcome.NOT_APPLICABLE)
        unbiased = UNBIASED.expect(case).outcome
        assert unbiased is (Outcome.REFUTED if signal else None)
        assert UNBIASED.check(case).outcome is (Outcome.REFUTED if signal else Outcome.EXACT)
