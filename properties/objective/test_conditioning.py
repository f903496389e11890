"""How ill-conditioned a loss is, and how many rounded additions an estimate takes."""

from __future__ import annotations

import math

import pytest
import torch
from common.helpers import path_graph

from lmc_verify.models import GCN
from lmc_verify.objective.conditioning import PIECES, loss_conditioning, rounding_terms, summand_sizes
from lmc_verify.objective.exact import exact_pass
from lmc_verify.objective.problem import Problem, euclidean_norm


@pytest.mark.parametrize("margin", [0.0, 5.0, 20.0])
def test_conditioning_is_how_much_smaller_the_loss_derivative_is_than_its_terms(margin: float) -> None:
    """All nodes of class 0 with logits (margin, 0): p - y is smaller than its terms by 1 - p = 1 / (1 + e^margin)."""
    graph = path_graph(5, y=torch.zeros(5, dtype=torch.int64))
    model = GCN(graph.num_features, 1, 2, num_layers=1, dtype=torch.float64).eval()
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        parameters["layers.0.conv.lin.weight"].zero_()
        parameters["layers.0.conv.bias"].copy_(torch.tensor([margin, 0.0]))
    problem = Problem(graph, model)
    exact = exact_pass(problem)
    assert loss_conditioning(problem, exact) == pytest.approx(1 + math.exp(margin))
    with torch.no_grad():
        parameters["layers.0.conv.bias"].copy_(torch.tensor([1000.0, 0.0]))
    assert loss_conditioning(problem, exact_pass(problem)) == math.inf
    # Layer by layer: a dense product, an aggregation, and both backwards; then outputs, rows and support points.
    degree = 3  # of an inner node, with its self-loop
    assert rounding_terms(problem, 10) == 10 + 5 + 4 * 2 + 3 + (3 + degree + 2 + degree + 12)


def alone(problem: Problem) -> tuple[dict[str, float], dict[str, float]]:
    """Return by layer the gradient's norm, and the sum of the norms of single nodes' gradients: plain autograd."""
    graph, model = problem.graph, problem.model
    h = x0 = model.encode(graph.x)
    for index in range(1, problem.num_layers + 1):
        layer = model.layer(index)
        h = layer(h, h, x0, graph.operator(layer.operator))
    losses = problem.node_losses(model.predict(h))[graph.train_mask]
    parameters = dict(model.named_parameters())

    def norms(loss: torch.Tensor) -> dict[str, float]:
        found = dict(
            zip(parameters, torch.autograd.grad(loss, list(parameters.values()), retain_graph=True), strict=True)
        )
        parts = {problem.layer_of(name) for name in found}
        return {part: euclidean_norm([g for n, g in found.items() if problem.layer_of(n) == part]) for part in parts}

    singles = [norms(loss) for loss in losses]
    return norms(losses.sum()), {part: sum(single[part] for single in singles) for part in singles[0]}


@pytest.mark.parametrize("labelled", [1, 3, PIECES, PIECES + 1, 12])
def test_summands_are_between_the_gradient_and_the_sum_over_single_nodes(labelled: int) -> None:
    graph = path_graph(12, train_mask=torch.arange(12) < labelled)
    problem = Problem(graph, GCN(3, 4, 3, num_layers=2, seed=1, dtype=torch.float64).eval())
    found, (whole, single) = summand_sizes(problem), alone(problem)
    if labelled <= PIECES:
        assert found == pytest.approx(single, rel=1e-12)
    for part, size in found.items():
        assert whole[part] * (1 - 1e-12) <= size <= single[part] * (1 + 1e-12)


def test_summands_are_seen_where_they_cancel() -> None:
    """Outputs of zero and as many nodes of every class: the gradient of the last bias is rounding, a node's is not."""
    graph = path_graph(12, y=torch.arange(12) % 3)
    model = GCN(3, 4, 3, num_layers=2, dtype=torch.float64).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1e-160)
    problem = Problem(graph, model)
    state = torch.random.get_rng_state()
    assert max(alone(problem)[0].values()) < 1e-15
    sizes = summand_sizes(problem)
    assert sizes[problem.layer_of("layers.1.conv.bias")] > 0.1
    assert sizes[problem.layer_of("layers.0.conv.bias")] < 1e-150
    assert torch.equal(torch.random.get_rng_state(), state)
