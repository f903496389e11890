"""Altered estimators: a sound one with exactly one alteration, which is how a defect is seeded."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lmc_verify.estimators import Estimate, Estimator, History, HistoryWrite, Policies, properties_of
from lmc_verify.graphs import Batch
from lmc_verify.objective import Gradient, Problem

__all__ = ["Altered", "Inputs", "alter"]


@dataclass(frozen=True, eq=False)
class Inputs:
    """What an estimate was asked for, before anything was altered.

    Attributes:
        base: the sound estimator.
        problem: the problem.
        state: the histories.
        batch: the batch.
    """

    base: Estimator
    problem: Problem
    state: History
    batch: Batch


@dataclass(frozen=True)
class Altered:
    """A sound estimator whose inputs or results are altered.

    Attributes:
        base: the sound estimator.
        name: for records and reports.
        problem: gives the problem that the sound estimator sees, from the true one and the batch.
        batch: gives the batch that it sees.
        state: gives the histories that it reads; it must not change those that it is given.
        gradient: gives the gradient that is returned.
        write: gives each write of history rows that is returned.
    """

    base: Estimator
    name: str
    problem: Callable[[Problem, Batch], Problem] | None = None
    batch: Callable[[Batch], Batch] | None = None
    state: Callable[[History], History] | None = None
    gradient: Callable[[Gradient, Inputs], Gradient] | None = None
    write: Callable[[HistoryWrite, Batch], HistoryWrite] | None = None

    @property
    def weighting(self) -> str | None:
        """The loss weighting of the sound estimator; None where it states none."""
        return properties_of(self.base).weighting

    @property
    def policies(self) -> Policies | None:
        """The halo policies that the sound estimator states: claims about them apply, theory does not rely on them."""
        return properties_of(self.base).policies

    def init(self, problem: Problem) -> History:
        """Return the sound estimator's state."""
        return self.base.init(problem)

    def estimate(self, problem: Problem, state: History, batch: Batch) -> Estimate:
        """Estimate with the sound estimator, altered."""
        estimate = self.base.estimate(
            problem if self.problem is None else self.problem(problem, batch),
            state if self.state is None else self.state(state),
            batch if self.batch is None else self.batch(batch),
        )
        gradient, writes = estimate.gradient, estimate.writes
        if self.gradient is not None:
            gradient = self.gradient(gradient, Inputs(self.base, problem, state, batch))
        if self.write is not None:
            writes = tuple(self.write(item, batch) if isinstance(item, HistoryWrite) else item for item in writes)
        return dataclasses.replace(estimate, gradient=gradient, writes=writes)


def alter(base: Estimator, name: str, **alterations: Any) -> Altered:
    """Alter an estimator: it still states what it did, and is no longer known to do it.

    Args:
        base: the sound estimator.
        name: what is altered; the new name is ``"<base> (<name>)"``.
        alterations: see `Altered`.
    """
    return Altered(base, f"{base.name} ({name})", **alterations)
