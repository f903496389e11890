"""Without nonlinearity an unbiased aggregate makes an unbiased gradient, unless one sample serves several layers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from common.helpers import assert_close, autograd_gradient, examples
from common.sampler_cases import SMALL, tiny
from hypothesis import given
from torch import nn

from lmc_verify import Problem, check_claim, exact_pass
from lmc_verify.cases.case import assemble_case
from lmc_verify.claims import Outcome
from lmc_verify.claims.samplers.unbiased_without_nonlinearity import LINEAR_CONTROL, linearised
from lmc_verify.estimators import VRGCN, GraphSAINTNode, NeighbourSampling
from lmc_verify.testing import graphs, problems


@examples(25)
@given(problem=problems(graphs(max_nodes=5, max_edges=8), kinds=("gcn", "sage", "gin")))
def test_the_linear_problem_has_the_same_loss_derivative_and_no_activation(problem: Problem) -> None:
    exact = exact_pass(problem)
    linear = linearised(problem, exact)
    outputs = problem.model.predict(exact.embeddings[-1]).detach().requires_grad_()
    own, other = (torch.autograd.grad(item.node_losses(outputs).sum(), outputs)[0] for item in (problem, linear))
    assert_close("d loss / d outputs", other, own)
    assert not any(isinstance(part, nn.ReLU | nn.LayerNorm) for part in linear.model.modules())
    zero, one, two = (linear.node_losses(factor * outputs.detach()) for factor in (0.0, 1.0, 2.0))
    assert_close("losses", two - one, one - zero)
    parameters = dict(problem.model.named_parameters())
    for name, parameter in linear.model.named_parameters():
        assert torch.equal(parameter, parameters[name])


def test_the_exact_gradient_is_that_of_the_linear_problem() -> None:
    case = assemble_case(tiny(), SMALL, NeighbourSampling(fan_out=1))
    linear = linearised(case.problem, case.exact)
    loss = linear.node_losses(linear.model(linear.graph))[linear.graph.train_mask].sum()
    got = exact_pass(linear).gradient
    for name, value in autograd_gradient(linear, loss).items():
        assert_close(name, got[name], value)


@pytest.mark.parametrize("start", ["exact", "zero"])
def test_what_is_biased_through_the_activations_alone_is_exact_here(start: str) -> None:
    estimator = VRGCN(fan_out=1) if start == "zero" else NeighbourSampling(fan_out=1)
    case = assemble_case(tiny(), SMALL, estimator, histories=start)
    verdict = LINEAR_CONTROL.check(case)
    assert verdict.outcome is LINEAR_CONTROL.expect(case).outcome is Outcome.EXACT, verdict.summary
    assert check_claim("theorem-1/unbiased", case.problem, SMALL, estimator, histories=start).outcome is Outcome.REFUTED


def test_one_sample_for_all_layers_is_refuted_from_two_layers_on() -> None:
    for layers, outcome in ((1, Outcome.EXACT), (2, Outcome.REFUTED)):
        case = assemble_case(tiny(layers), SMALL, GraphSAINTNode(nodes=2))
        verdict, theory = LINEAR_CONTROL.check(case), LINEAR_CONTROL.expect(case)
        assert verdict.outcome is outcome, verdict.summary
        assert theory.outcome is (Outcome.EXACT if layers == 1 else None)
    assert "biased even without nonlinearity" in verdict.summary


def test_wrong_weights_are_refuted_and_not_expected_to_be_exact() -> None:
    mask = torch.tensor([True, True, True, False])
    problem = tiny(1, train_mask=mask)
    case = assemble_case(problem, SMALL, NeighbourSampling(fan_out=1, weighting="batch-mean"))
    assert LINEAR_CONTROL.check(case).outcome is Outcome.REFUTED
    assert LINEAR_CONTROL.expect(case).outcome is None
    right = replace(case, estimator=NeighbourSampling(fan_out=1))
    assert LINEAR_CONTROL.check(right).outcome is LINEAR_CONTROL.expect(right).outcome is Outcome.EXACT
