"""E6: without the backward halo the last layer is exact and every lower one biased, where messages carry a signal."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from common.claim_cases import MODELS, case_of
from common.crossed import crossed
from common.helpers import assert_gradients, expectation, relative_error
from common.identities import WITNESS, estimate, with_batch, witness
from hypothesis import given

from lmc_verify import (
    FM,
    GAS,
    GCN,
    LMC,
    BackwardSGD,
    Clusters,
    Graph,
    History,
    LMCBackwardOnly,
    LMCForwardOnly,
    Partition,
    Problem,
    exact_pass,
)
from lmc_verify.cases.case import Case, assemble_case
from lmc_verify.claims import Outcome
from lmc_verify.claims.consequences.e6_bias_per_layer import LOWER_LAYERS_BIASED
from lmc_verify.claims.residuals import norm_by_layer
from lmc_verify.claims.theorems.theorem_1_unbiased import UNBIASED
from lmc_verify.claims.theory import halo_view
from lmc_verify.estimators.compensated.step_momentum import read_embeddings
from lmc_verify.objective.problem import Gradient, gradient_norm, gradient_sum


@pytest.mark.slow
@given(with_batch())
def test_e6_gas_with_exact_histories_is_exact_in_the_last_layer_and_the_head(drawn: tuple) -> None:
    problem, batch = drawn
    state = History.from_exact(problem, exact_pass(problem))
    want = BackwardSGD().estimate(problem, state, batch).gradient
    names = [n for n in want if problem.layer_of(n) in (f"layer {problem.num_layers}", "head")]
    held = History(read_embeddings(problem, state.embeddings))
    for estimator in (GAS(), LMC(), LMCForwardOnly(), LMCBackwardOnly(), FM(beta=0.0)):
        if isinstance(estimator, FM):  # a norm in front of its layers does not see the halo, whose history is behind it
            names = [name for name in names if ".before." not in name]
        got = estimator.estimate(problem, held if isinstance(estimator, FM) else state, batch).gradient
        call = f"{estimator} with exact histories, last layer"
        assert_gradients(call, {n: got[n] for n in names}, {n: want[n] for n in names})


@pytest.mark.parametrize("layers", [2, 3, 4])
def test_e6_gas_with_exact_histories_is_biased_below_the_last_layer(layers: int) -> None:
    problem, partition = witness(layers)
    exact = exact_pass(problem)
    mean = expectation(Clusters(partition, 1), estimate(GAS(), problem, History.from_exact(problem, exact)))
    for layer in range(1, layers + 1):
        names = [n for n in mean if problem.layer_of(n) == f"layer {layer}"]
        error = relative_error(mean, exact.gradient, names)
        assert error < 1e-12 if layer == layers else error > WITNESS, f"layer {layer} of {layers}: {error}"


@pytest.mark.parametrize(
    ("estimator", "model"),
    crossed(["gas", "lmc-forward-only"], [{"layers": 2}, {"layers": 3}, {"layers": 4}, MODELS["sage"]]),
    ids=str,
)
def test_e6_is_a_bias_everywhere_but_in_the_last_layer(model: dict[str, Any], estimator: str) -> None:
    case = case_of(estimator, model=model)
    verdict = LOWER_LAYERS_BIASED.check(case)
    assert verdict.outcome is Outcome.EXACT
    assert verdict.tolerance is not None
    assert verdict.minimum_detectable_effect is not None
    last = f"layer {case.problem.num_layers}"
    unbiased_parameters = {item.quantity for item in verdict.evidence if item.group == "residual"}
    for name in unbiased_parameters:
        assert case.problem.layer_of(name) in (last, "head")
    mean: Gradient = case.problem.zero_gradient()
    state = case.initial_state()
    for batch, probability in case.design.enumerate():
        mean = gradient_sum(mean, case.estimator.estimate(case.problem, state, batch).gradient, probability)
    norms = norm_by_layer(case.problem, case.exact.gradient)
    difference = gradient_sum(mean, case.exact.gradient, -1.0)
    measured = {part: value / norms[part] for part, value in norm_by_layer(case.problem, difference).items()}
    for part, value in measured.items():
        if part in (last, "head"):
            assert value <= 2 * verdict.tolerance, part
        else:
            assert value > verdict.minimum_detectable_effect, part
            assert value > 1e-4, part
    reported = {item.quantity for item in verdict.evidence if item.group == "bias per layer"}
    assert reported == set(measured)


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
