"""How ill-conditioned a loss is, and how many rounded additions an estimate takes."""

from __future__ import annotations

import math

import pytest
import torch
from common.helpers import path_graph

from lmc_verify.models import GCN
from lmc_verify.objective.conditioning import loss_conditioning, rounding_terms
from lmc_verify.objective.exact import exact_pass
from lmc_verify.objective.problem import Problem


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
