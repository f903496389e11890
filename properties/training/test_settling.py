"""States of histories at fixed parameters: against every sequence of batches, taken one after another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from common.helpers import path_graph
from hypothesis import given
from hypothesis import strategies as st

from lmc_verify import GAS, GCN, LMC, Clusters, Estimate, Estimator, FMLocal, Graph, History, Partition, Problem
from lmc_verify.estimators import Cost, HistoryWrite
from lmc_verify.graphs import Batch
from lmc_verify.objective import exact_pass
from lmc_verify.training.settling import CLOSE, SMALL, _units, expected_values, history_transitions, long_run_factor

NODES = 6


def problem_of(layers: int) -> Problem:
    return Problem(path_graph(NODES), GCN(3, 4, 3, layers, activation="tanh", dtype=torch.float64).eval())


def typical(problem: Problem, estimator: Estimator) -> History:
    return estimator.init(problem).filled(exact_pass(problem))


def size(made: Estimate) -> float:
    return float(sum(value.square().sum() for value in made.gradient.values()))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("estimator", "layers", "per_batch"),
    [(LMC(), 2, 1), (LMC(), 2, 2), (LMC(), 3, 2), (GAS(), 2, 1), (LMC(beta=0.4), 2, 1), (FMLocal(beta=0.4), 2, 2)],
    ids=repr,
)
def test_expectations_are_those_over_all_sequences_of_batches(
    estimator: Estimator, layers: int, per_batch: int
) -> None:
    problem, design = problem_of(layers), Clusters(Partition.contiguous(NODES, 3), per_batch)
    batches, start = list(design.enumerate()), estimator.init(problem)
    found: dict[int, float] = {}

    def look(state: int, batch: Batch, probability: float, made: Estimate) -> None:
        found[state] = found.get(state, 0.0) + probability * size(made)

    def estimate(state: History, batch: Batch) -> Estimate:
        return estimator.estimate(problem, state, batch)

    moves = history_transitions(start, typical(problem, estimator), batches, estimate, look, most_states=100)
    if isinstance(estimator, FMLocal):  # what it blends into its histories goes on forever
        assert moves is None
        return
    assert moves is not None
    assert start.equals(estimator.init(problem))
    assert moves.sum(axis=1) == pytest.approx(np.ones(len(moves)))
    assert len(found) == len(moves)
    means = np.zeros(5)

    def follow(state: History, chance: float, step: int) -> None:
        for batch, probability in batches:
            made = estimate(state, batch)
            means[step] += chance * probability * size(made)
            if step < len(means) - 1:
                after = state.clone()
                after.apply(made.writes)
                follow(after, chance * probability, step + 1)

    follow(start, 1.0, 0)
    curve = expected_values(moves, np.array([found[state] for state in range(len(moves))]), len(means) - 1)
    assert curve == pytest.approx(means, rel=1e-10)


@dataclass(frozen=True)
class Steps:
    """Writes where it has been: 0, jump, 2 jump, ..., up to a last one."""

    name: ClassVar[str] = "steps"
    jump: float = 1.0
    last: int = 4

    def init(self, problem: Problem) -> History:
        return History.zeros(problem, auxiliary=False)

    def estimate(self, problem: Problem, state: History, batch: Batch) -> Estimate:
        here = state.embeddings[1][:1]
        after = here + self.jump if float(here[0, 0]) < (self.last - 0.5) * self.jump else here
        write = HistoryWrite("embedding", 1, torch.zeros(1, dtype=torch.int64), after)
        return Estimate(problem.zero_gradient(), 0.0, (write,), Cost(0, 0, 0, 0, 0, 0))


def states_of(jump: float, **limit: Any) -> int | None:
    problem, estimator = problem_of(2), Steps(jump)
    scale = typical(problem, estimator)
    unit = float(scale.embeddings[1][0].abs().max())  # of the row that is written
    moves = history_transitions(
        estimator.init(problem),
        scale,
        [(Batch.of(torch.arange(NODES)), 1.0)],
        lambda state, batch: Steps(jump * unit).estimate(problem, state, batch),
        lambda *_: None,
        **{"most_states": 10} | limit,
    )
    return None if moves is None else len(moves)


def test_states_are_one_where_they_differ_by_rounding_alone() -> None:
    assert states_of(1.0) == 5
    assert states_of(1.1 * CLOSE) == 5
    assert states_of(0.9 * CLOSE) == 1
    assert states_of(1e6) == 5


def test_the_search_ends_where_there_are_too_many() -> None:
    assert states_of(1.0, most_states=5) == 5
    assert states_of(1.0, most_states=4) is None


@st.composite
def chains(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Return transitions of a few states, all of which follow from the first, and values that may be 0."""
    count = draw(st.integers(1, 5))
    weights = np.array(
        draw(st.lists(st.lists(st.integers(0, 3), min_size=count, max_size=count), min_size=count, max_size=count)),
        dtype=np.float64,
    )
    weights[np.arange(count), (np.arange(count) + 1).clip(max=count - 1)] += 1  # every state leads to the next
    values = np.array(draw(st.lists(st.integers(0, 2), min_size=count, max_size=count)), dtype=np.float64)
    return weights / weights.sum(axis=1, keepdims=True), values


@given(chains())
def test_the_long_run_factor_is_that_of_expectations_after_many_steps(chain: tuple[np.ndarray, np.ndarray]) -> None:
    moves, values = chain
    factor, curve = long_run_factor(moves, values), expected_values(moves, values, 400)
    if factor == 0:  # nothing is left once the states that are never come back to have been passed
        assert not curve[len(moves) :].any()
        return
    # Up to a power of k, and up to periods, the curve is factor^k: over 200 steps that is a factor of 2^5 at most.
    largest = np.array([curve[100:120].max(), curve[300:320].max()])
    assert abs(np.log(largest[1] / largest[0]) - 200 * np.log(factor)) < np.log(3.2**5)


@pytest.mark.parametrize(
    ("moves", "values", "factor"),
    [
        ([[1.0]], [0.0], 0.0),
        ([[1.0]], [2.0], 1.0),
        ([[0.5, 0.5], [0.0, 1.0]], [1.0, 0.0], 0.5),
        ([[0.5, 0.5], [0.0, 1.0]], [0.0, 1.0], 1.0),
        ([[0.25, 0.75, 0.0], [0.0, 0.5, 0.5], [0.0, 0.0, 1.0]], [0.0, 1.0, 0.0], 0.5),
        ([[0.75, 0.25, 0.0], [0.0, 0.5, 0.5], [0.0, 0.0, 1.0]], [0.0, 1.0, 0.0], 0.75),
        ([[0.0, 0.25, 0.75], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]], [1.0, 0.0, 0.0], 0.5),  # there and back
    ],
)
def test_the_long_run_factor_of_known_chains(moves: list[list[float]], values: list[float], factor: float) -> None:
    assert long_run_factor(np.array(moves), np.array(values)) == pytest.approx(factor, abs=1e-12)


@pytest.mark.parametrize("size", [1.0, 1e13, 1e-13])
def test_a_node_of_another_size_hides_no_state(size: float) -> None:
    """GAS keeps no V, so that its states differ in H alone; an isolated node is in it at any size."""
    graph = path_graph(NODES)
    x = torch.cat([graph.x, torch.full((1, graph.x.shape[1]), size, dtype=torch.float64)])
    y, mask = torch.cat([graph.y, graph.y[:1]]), torch.cat([graph.train_mask, torch.tensor([False])])
    problem = Problem(
        Graph(graph.edge_index, x, y, mask), GCN(3, 4, 3, 2, activation="relu", dtype=torch.float64).eval()
    )
    estimator, batches = GAS(), list(Clusters(Partition(torch.tensor([0, 0, 0, 1, 1, 1, 2])), 1).enumerate())
    moves = history_transitions(
        estimator.init(problem),
        typical(problem, estimator),
        batches,
        lambda state, batch: estimator.estimate(problem, state, batch),
        lambda *_: None,
        most_states=100,
    )
    assert moves is not None
    # Each half: not visited, first H alone right (seen before or after the other half), all right; the node: visited.
    assert len(moves) == 12


def test_a_row_that_cancels_is_measured_as_other_rows() -> None:
    table = torch.tensor([[2.0, -3.0], [1e-17, 0.0], [4.0, 1.0], [1e13, 0.0]], dtype=torch.float64)
    units = _units("embedding", table).flatten().tolist()
    assert units == [3, SMALL * 3, 4, 1e13]  # the lower median is 3
    assert float(_units("auxiliary", table)) == 1e13
    assert float(_units("embedding", torch.zeros(3, 2))) == 1
