"""Full-batch gradient descent: the exact gradient, whatever the batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lmc_verify.batches import Batch
from lmc_verify.estimators.base import Cost, Estimate, check_batch
from lmc_verify.estimators.history import History
from lmc_verify.exact import exact_pass
from lmc_verify.problem import Problem

__all__ = ["FullBatch"]


@dataclass(frozen=True)
class FullBatch:
    """The exact gradient of the whole graph; the batch is drawn and not looked at."""

    name: ClassVar[str] = "full-batch"

    def init(self, problem: Problem) -> History:
        """Return an empty state."""
        return History()

    def estimate(self, problem: Problem, state: History, batch: Batch) -> Estimate:
        """Return the exact gradient and loss."""
        check_batch(problem, batch)
        exact = exact_pass(problem)
        messages = problem.graph.num_edges
        cost = Cost(problem.graph.num_nodes, messages, messages, messages, messages, history_bytes=0)
        return Estimate(exact.gradient, exact.loss, (), cost)
