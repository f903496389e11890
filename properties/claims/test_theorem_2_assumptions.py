"""The assumptions of Theorems 2 and 3 are measured from both sides: Lipschitz constants, kinks and norms."""

from __future__ import annotations

import math

import pytest
import torch
from common.crossed import slow_but
from common.training_cases import karate, small
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lmc_verify import testing
from lmc_verify.cases.case import assemble_case
from lmc_verify.cases.settings import TrainingSettings
from lmc_verify.claims import Outcome
from lmc_verify.claims.theorems.theorem_2_assumptions import ASSUMPTIONS
from lmc_verify.estimators import GAS, LMC, BackwardSGD, Estimator, FullBatch
from lmc_verify.graphs.designs import Clusters
from lmc_verify.graphs.partition import Partition
from lmc_verify.models import GCN, ConvLayer, GCNConv, LayeredModel
from lmc_verify.models.convs import initialise
from lmc_verify.objective.exact import exact_pass
from lmc_verify.objective.problem import Problem
from lmc_verify.seeds import generator, torch_generator
from lmc_verify.training import TrainingRun


def smooth_model(activation: type[nn.Module] = nn.Tanh) -> LayeredModel:
    layers = [
        ConvLayer(GCNConv(3, 4, dtype=torch.float64)),
        ConvLayer(GCNConv(4, 3, dtype=torch.float64), before=activation()),
    ]
    model = LayeredModel(layers)
    initialise(model, torch_generator(1, "parameters"))
    return model


def test_kinks_that_are_crossed_refute_smoothness() -> None:
    case = karate({"name": "lmc"})
    verdict = ASSUMPTIONS.check(case)
    assert verdict.outcome is Outcome.REFUTED
    assert ASSUMPTIONS.expect(case).outcome is None
    assert verdict.summary.startswith("(A2) fails: ")
    crossed, inputs = (int(verdict.summary.split()[k].replace(",", "")) for k in (2, 4))
    assert 0 < crossed < inputs == 20 * 34 * 4  # steps x nodes x width: one ReLU
    share = next(item.value for item in verdict.evidence if item.group == "kinks")
    assert share == crossed / inputs


@pytest.mark.parametrize("cut", ["pre", "post"])
def test_kinks_are_counted_between_the_parameters_of_two_steps(cut: str) -> None:
    """The first layer's values change sign where the one ReLU that follows them does."""
    model = GCN(3, 5, 3, num_layers=2, seed=2, activation_cut=cut, dtype=torch.float64)
    case = small(GAS(), model, steps=4, step_size=2.0)
    run = TrainingRun(
        case.problem,
        case.estimator,
        case.design,
        step_size=2.0,
        generator=generator(case.seed, "assumptions", 0),
    )
    crossed, before = 0, case.exact.embeddings[1]
    for _ in range(4):
        run.step()
        after = exact_pass(run.problem).embeddings[1]
        crossed += int(((before > 0) != (after > 0)).sum())
        before = after
    assert crossed > 0
    assert ASSUMPTIONS.check(case).summary.startswith(f"(A2) fails: {crossed} of {4 * 8 * 5} ReLU inputs")


def test_kinks_that_are_not_crossed_decide_nothing() -> None:
    verdict = ASSUMPTIONS.check(small(LMC(), steps=2, step_size=1e-9))
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert "none was crossed" in verdict.summary


@pytest.mark.parametrize(
    "estimator", slow_but([LMC(beta=0.3), FullBatch()], [BackwardSGD(), LMC(beta=0.3), GAS(), FullBatch()]), ids=repr
)
def test_a_smooth_model_is_supported(estimator: Estimator) -> None:
    case = small(estimator, smooth_model())
    verdict = ASSUMPTIONS.check(case)
    assert verdict.outcome is ASSUMPTIONS.expect(case).outcome is Outcome.SUPPORTED
    kinks = next(item.value for item in verdict.evidence if item.group == "kinks")
    assert kinks == 0
    assert ASSUMPTIONS.check(small(estimator, smooth_model(nn.ReLU), steps=40)).outcome is not Outcome.SUPPORTED


@pytest.mark.slow
@given(testing.problems(testing.graphs(min_nodes=2)), st.sampled_from([0.1, 2.0]), testing.seeds())
def test_lower_ends_are_below_upper_ends(problem: Problem, step_size: float, seed: int) -> None:
    design = Clusters(Partition(torch.arange(problem.graph.num_nodes) % 2, "halves"), 1)
    case = assemble_case(problem, design, LMC(), seed=seed, training=TrainingSettings(steps=3, step_size=step_size))
    verdict = ASSUMPTIONS.check(case)
    found = [item for item in verdict.evidence if item.group == "Lipschitz"]
    assert len(found) == problem.num_layers
    for item in found:
        assert item.tolerance is None or item.value <= item.tolerance * (1 + 1e-8), item
    assert verdict.outcome is not Outcome.NOT_APPLICABLE
    theory = ASSUMPTIONS.expect(case)
    assert theory.outcome in (None, verdict.outcome)
    sizes = {item.quantity: item.value for item in verdict.evidence if item.group == "norms"}
    assert sizes["gradient, at least"] >= 0
    assert "estimate, at least" in sizes
    assert "history of V 1, at least" in sizes
    assert all(math.isfinite(value) for value in sizes.values())


def test_norms_of_the_whole_run_are_taken() -> None:
    """The maxima include the last step: a longer run never has smaller ones."""
    short, long = (
        {
            item.quantity: item.value
            for item in ASSUMPTIONS.check(small(GAS(), steps=k)).evidence
            if item.group == "norms"
        }
        for k in (5, 30)
    )
    assert short.keys() == long.keys()
    assert all(short[name] <= long[name] for name in short)
    assert any(short[name] < long[name] for name in short)


def test_a_run_that_diverges_breaks_the_bound_on_norms() -> None:
    verdict = ASSUMPTIONS.check(small(LMC(), smooth_model(nn.Identity), step_size=1e200, steps=10))
    assert verdict.outcome is Outcome.REFUTED
    assert "(A3) fails" in verdict.summary


@pytest.mark.parametrize("step_size", [1e150, 1e300])
def test_a_run_that_diverges_short_of_infinity_supports_nothing(step_size: float) -> None:
    """Smooth, with finite norms: saturated, the gradient vanishes."""
    verdict = ASSUMPTIONS.check(small(LMC(), smooth_model(), step_size=step_size, steps=30))
    assert verdict.outcome is Outcome.INCONCLUSIVE, verdict.summary
    assert "the run has diverged" in verdict.summary
    assert "lower training.step_size" in verdict.summary
    assert "inf" not in verdict.summary
    found = [item for item in verdict.evidence if item.group == "Lipschitz"]
    assert found
    assert all(math.isfinite(item.value) for item in found)
