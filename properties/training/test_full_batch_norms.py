"""Full-batch descent's gradient norms are those of descent by hand, and are kept for what they belong to alone."""

from __future__ import annotations

from collections.abc import Callable
from statistics import fmean

import pytest
import torch
from common.helpers import path_graph

from lmc_verify import GCN, Problem
from lmc_verify.objective import exact_gradient, exact_pass, gradient_norm
from lmc_verify.training import full_batch, full_batch_norms

LENGTHS, SIZES = [3, 7], [0.5, 0.25]


def problem_of(activation: str = "tanh", scale: float = 1.0) -> Problem:
    graph = path_graph(6)
    graph = graph.replaced(x=scale * graph.x)
    sizes = (graph.num_features, 4, graph.num_outputs)
    return Problem(graph, GCN(*sizes, num_layers=2, seed=3, dtype=torch.float64, activation=activation))


def by_hand(problem: Problem, length: int, step_size: float) -> float:
    own, norms = problem.copy(), list[float]()
    for _ in range(length):
        gradient = exact_gradient(own)[1]
        norms.append(gradient_norm(gradient))
        with torch.no_grad():
            for name, parameter in own.model.named_parameters():
                if name in gradient:
                    parameter -= step_size * gradient[name]
    return fmean(norms)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many runs were made each time that runs were made."""
    made, original = list[int](), full_batch.mean_gradient_norms

    def counted(problem, runs, design):  # type: ignore[no-untyped-def]
        made.append(len(runs))
        return original(problem, runs, design)

    monkeypatch.setattr(full_batch, "mean_gradient_norms", counted)
    return made


def test_the_norms_are_those_of_descent_by_hand() -> None:
    problem = problem_of()
    found = full_batch_norms(problem, exact_pass(problem), LENGTHS, SIZES)
    assert found == pytest.approx([by_hand(problem, *run) for run in zip(LENGTHS, SIZES, strict=True)], rel=1e-12)


def test_copies_of_a_problem_share_what_was_measured(measured: list[int]) -> None:
    problem = problem_of()
    exact = exact_pass(problem)
    first = full_batch_norms(problem.copy(), exact, LENGTHS, SIZES)
    kept = list(first)
    first[0] = 0.0  # who changes what is given changes nobody else's
    assert full_batch_norms(problem.copy(), exact, LENGTHS, SIZES) == kept
    assert measured == [2]


def moved(problem: Problem) -> None:
    with torch.no_grad():
        next(problem.model.parameters()).mul_(1.5)


def frozen(problem: Problem) -> None:
    problem.model.layer(2).requires_grad_(False)


CHANGES: dict[str, Callable[[], Problem]] = {
    "parameters": lambda: changed(moved),
    "what is trained": lambda: changed(frozen),
    "the activation": lambda: problem_of("relu"),
    "the graph": lambda: problem_of(scale=2.0),
}


def changed(change: Callable[[Problem], None]) -> Problem:
    problem = problem_of()
    change(problem)
    return Problem(problem.graph, problem.model)


@pytest.mark.parametrize("what", CHANGES)
def test_another_problem_is_measured_again_even_beside_the_same_exact_pass(what: str, measured: list[int]) -> None:
    exact, other = exact_pass(problem_of()), CHANGES[what]()
    first = full_batch_norms(problem_of(), exact, LENGTHS, SIZES)
    second = full_batch_norms(other, exact, LENGTHS, SIZES)
    assert measured == [2, 2]
    assert second != first
    assert second == pytest.approx([by_hand(other, *run) for run in zip(LENGTHS, SIZES, strict=True)], rel=1e-12)


def test_other_lengths_or_step_sizes_are_measured(measured: list[int]) -> None:
    problem = problem_of()
    exact = exact_pass(problem)
    for lengths, sizes in ((LENGTHS, SIZES), (LENGTHS, [0.5, 0.5]), ([3, 6], SIZES), (LENGTHS, SIZES)):
        found = full_batch_norms(problem, exact, lengths, sizes)
        assert found == pytest.approx([by_hand(problem, *run) for run in zip(lengths, sizes, strict=True)], rel=1e-12)
    assert measured == [2, 2, 2]
