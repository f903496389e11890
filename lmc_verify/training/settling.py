"""Histories at fixed parameters: the states that batches lead to, and how fast what depends on them dies out.

At fixed parameters, and where no incomplete value is mixed in, few states follow from a given one: a row holds what it
was given by one of finitely many rows below it. Their transition probabilities say exactly what the expectation of
anything that depends on the state is after any number of steps.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from lmc_verify.estimators import Estimate, History
from lmc_verify.estimators.history import AUXILIARY, EMBEDDING
from lmc_verify.graphs import Batch

__all__ = ["CLOSE", "expected_values", "history_transitions", "long_run_factor"]

Vector = npt.NDArray[np.float64]
Matrix = npt.NDArray[np.float64]

CLOSE = 1e-12
"""Largest difference of two states, in units of their tables' largest exact entries (of H: of the row's), at which they
are one: the same values, computed in another order, differ by a few roundings."""

SMALL = 1e-3
"""Part of the median row's size below which a row of H has no smaller unit."""


def history_transitions(
    start: History,
    typical: History,
    batches: Sequence[tuple[Batch, float]],
    estimate: Callable[[History, Batch], Estimate],
    look: Callable[[int, Batch, float, Estimate], None],
    *,
    most_states: int,
) -> Matrix | None:
    """Follow every batch from a state, and from every state that it leads to, at fixed parameters.

    Args:
        start: state 0; it is left as it is.
        typical: a state with tables of ordinary size, in which differences are measured: the exact ones.
        batches: every batch with its probability.
        estimate: gives the estimate, with its writes.
        look: is told each state's number, each batch with its probability, and the estimate that it gives there.
        most_states: the search ends where there are more.

    Returns:
        Probabilities of going from state i to state j in a step [states, states]; None where there are too many states.
    """
    known, rows = _States(typical), list[dict[int, float]]()
    known.place(start.clone())
    while len(rows) < len(known.states):
        number, row = len(rows), dict[int, float]()
        for batch, probability in batches:
            made = estimate(known.states[number], batch)
            look(number, batch, probability, made)
            after = known.states[number].clone()  # of every table: a state's own `apply` may read and write any of them
            after.apply(made.writes)
            place = known.place(after)
            row[place] = row.get(place, 0.0) + probability
            if len(known.states) > most_states:
                return None
        rows.append(row)
    moves = np.zeros((len(rows), len(rows)))
    for number, row in enumerate(rows):
        moves[number, list(row)] = list(row.values())
    return moves


class _States:
    """States by number; those that are closer than `CLOSE` have one number."""

    def __init__(self, typical: History) -> None:
        self.states: list[History] = []
        self._units = {name: _units(name[0], table) for name, table in _tables(typical).items() if table.numel()}
        self._rows: list[Vector] = []
        # By what must be equal, ascending, so that few states need to be compared.
        self._sketches: dict[tuple[Any, ...], list[tuple[float, int]]] = {}

    def place(self, state: History) -> int:
        """Return the number of a state, a new one if it is not known."""
        tables = _tables(state)
        row = self._row(tables)
        # Numbers and texts, such as a counter, have no rounding.
        alike = (*((name, table.shape) for name, table in tables.items()), *_values(state))
        sketches = self._sketches.setdefault(alike, [])
        # One number of a state, which close states have nearly in common.
        sketch = float(np.cos(np.arange(row.size)) @ row)
        reach = 2 * CLOSE * max(row.size, 1) * max(1.0, float(np.abs(row).max(initial=0.0)))
        for found, number in sketches[bisect_left(sketches, (sketch - reach, 0)) :]:
            if found > sketch + reach:
                break
            if float(np.abs(self._rows[number] - row).max(initial=0.0)) <= CLOSE:
                return number
        insort(sketches, (sketch, len(self.states)))
        self.states.append(state)
        self._rows.append(row)
        return len(self.states) - 1

    def _row(self, tables: dict[tuple[str, Any], torch.Tensor]) -> Vector:
        parts = (table.double() / self._units[name] if name in self._units else table for name, table in tables.items())
        return np.concatenate([np.zeros(0), *(part.double().cpu().numpy().ravel() for part in parts)])


def _units(kind: str, table: torch.Tensor) -> torch.Tensor:
    """Return what a table's entries are measured in [n, 1], or [] for all alike.

    Embeddings of nodes with features of another size differ in size, and rounding with them: every row has its own
    unit. What is small because it cancels rounds as other rows do.
    """
    sizes = table.double().abs()
    if kind == EMBEDDING:
        sizes = sizes.amax(dim=1, keepdim=True)
        ordinary = sizes[sizes > 0]
        if ordinary.numel():
            return sizes.clamp(min=SMALL * float(ordinary.median()))
    largest = sizes.max()
    return largest if largest > 0 else torch.ones_like(largest)


def _tables(state: History) -> dict[tuple[str, Any], torch.Tensor]:
    """Return all tensors that a state keeps, by kind and name, in one order."""
    kinds: dict[str, Mapping[Any, torch.Tensor]] = {
        EMBEDDING: state.embeddings,
        AUXILIARY: state.auxiliary,
        "vector": state.vectors,
        "other": state.other_tensors(),
    }
    return {(kind, name): kept[name].detach() for kind, kept in kinds.items() for name in sorted(kept)}


def _values(state: History) -> list[tuple[str, str]]:
    """Return what a state keeps beside its tensors, in words that tell two values apart."""
    return sorted((name, repr(value)) for name, value in state.other_values().items())


def expected_values(moves: Matrix, values: Vector, steps: int) -> Vector:
    """Return the expectation of values of states after 0 ... `steps` steps from state 0 [steps + 1]."""
    chances, found = np.zeros(len(moves)), []
    chances[0] = 1.0
    for _ in range(steps + 1):
        found.append(float(chances @ values))
        chances = chances @ moves
    return np.array(found)


def long_run_factor(moves: Matrix, values: Vector) -> float:
    """Return ``lim E[value after k steps]^(1/k)`` for values that are not negative, all states following from state 0.

    It is the spectral radius of the transitions among states from which a value above zero is reached: the largest of
    those of their strongly connected parts. A state that is never come back to has the probability of staying in it.
    It is 0 where all values are.
    """
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import connected_components

    alive = values > 0
    while not np.array_equal(alive, grown := alive | (moves[:, alive] > 0).any(axis=1)):
        alive = grown
    block = moves[np.ix_(alive, alive)]
    if not block.size:
        return 0.0
    count, labels = connected_components(csr_array(block), directed=True, connection="strong")
    factors = []
    for part in range(count):
        inner = block[np.ix_(labels == part, labels == part)]
        factors.append(float(inner[0, 0]) if len(inner) == 1 else float(np.abs(np.linalg.eigvals(inner)).max()))
    return max(factors)
