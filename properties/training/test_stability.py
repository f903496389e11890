"""The largest stable step size is where plain gradient descent by torch stops going downhill."""

from __future__ import annotations

import math
import re
from itertools import pairwise

import pytest
import torch
from common.helpers import path_graph

from lmc_verify import GCN, InvalidInputError, Problem, load_graph
from lmc_verify.objective import exact_pass
from lmc_verify.training.full_batch import LARGEST_STEP, SMALLEST_STEP, goes_downhill, largest_stable_step


def karate(activation: str = "tanh", scale: float = 1.0) -> Problem:
    graph = load_graph("karate").double()
    graph = graph.replaced(x=scale * graph.x)
    model = GCN(graph.num_features, 8, 4, num_layers=2, seed=3, dtype=torch.float64, activation=activation)
    return Problem(graph, model)


def losses(problem: Problem, step_size: float, steps: int) -> list[float]:
    """The loss before every step of torch.optim.SGD with autograd through the whole model, and after the last."""
    own = problem.copy()
    model, graph = own.model, own.graph
    optimiser, found = torch.optim.SGD(model.parameters(), lr=step_size), []
    for _ in range(steps + 1):
        optimiser.zero_grad()
        h = x0 = model.encode(graph.x)
        for index in range(1, model.num_layers + 1):
            h = model.layer(index)(h, h, x0, graph.operator(model.layer(index).operator))
        loss = own.node_losses(model.predict(h)).sum()
        loss.backward()
        optimiser.step()
        found.append(float(loss.detach()))
    return found


def falls(values: list[float]) -> bool:
    return all(later <= earlier for earlier, later in pairwise(values))


@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize(("steps", "scale"), [(1, 1.0), (20, 1.0), (20, 4.0), (20, 0.25)])
def test_descent_is_downhill_at_the_step_found_and_not_at_twice_it(activation: str, steps: int, scale: float) -> None:
    problem = karate(activation, scale)
    before = [value.clone() for value in problem.model.parameters()]
    size = largest_stable_step(problem, steps)
    assert math.log2(size) == int(math.log2(size))
    assert falls(losses(problem, size, steps))
    assert not falls(losses(problem, 2 * size, steps))
    for left, right in zip(before, problem.model.parameters(), strict=True):
        assert torch.equal(left, right)


def test_the_last_step_counts() -> None:
    """Of one step too large, the loss that it leads to is seen."""
    problem = karate()
    size = largest_stable_step(problem, 1)
    assert goes_downhill(problem, size, 1)
    assert not goes_downhill(problem, 2 * size, 1)
    assert goes_downhill(problem, 1e6, 0)


def test_a_flat_loss_has_no_largest_step() -> None:
    graph = path_graph(4)
    problem = Problem(graph, GCN(graph.num_features, 3, graph.num_outputs, 2, dtype=torch.float64))
    with torch.no_grad():
        for parameter in problem.model.parameters():
            parameter.zero_()
    for parameter in problem.model.parameters():
        parameter.requires_grad_(False)
    problem.model.layer(1).conv.lin.weight.requires_grad_(True)  # type: ignore[attr-defined]
    flat = Problem(graph, problem.model)
    assert not any(value.any() for value in exact_pass(flat).gradient.values())
    with pytest.raises(InvalidInputError, match=re.escape(f"up to {LARGEST_STEP:g}: the loss is flat here")):
        largest_stable_step(flat, 3)


def test_a_loss_that_no_step_improves_is_named() -> None:
    with pytest.raises(InvalidInputError, match=f"even with a step size of {SMALLEST_STEP:g}"):
        largest_stable_step(karate("softplus", scale=1e9), 3)
