"""Full-batch gradient descent: the exact gradient, whatever the batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from lmc_verify.arguments import typed
from lmc_verify.estimators.base import Cost, Estimate, check_batch
from lmc_verify.estimators.history import History
from lmc_verify.graphs import Batch
from lmc_verify.graphs.sums import ordered_sum
from lmc_verify.models.layered import active_dropout
from lmc_verify.objective import Gradient, Problem, exact_gradient, refuse_dropout

__all__ = ["FullBatch"]


@dataclass(frozen=True)
class FullBatch:
    """The exact gradient of the whole graph; the batch is drawn and not looked at.

    With keyed dropout (see `lmc_verify.models.Dropout`), the gradient of the objective with these units dropped.
    """

    name: ClassVar[str] = "full-batch"
    ignores_batch: ClassVar[bool] = True

    @typed
    def init(self, problem: Problem) -> History:
        """Return an empty state."""
        return History()

    @typed
    def estimate(self, problem: Problem, state: History, batch: Batch) -> Estimate:
        """Return the exact gradient and loss."""
        check_batch(problem, batch)
        dropping = active_dropout(problem.model) is not None
        if dropping:
            refuse_dropout(problem, allow_keyed=True)
            loss, gradient = _by_autograd(problem)
        else:
            loss, gradient = exact_gradient(problem)
        messages = problem.graph.num_edges
        cost = Cost(problem.graph.num_nodes, messages, messages, messages, messages, history_bytes=0)
        return Estimate(gradient, loss, (), cost)


def _by_autograd(problem: Problem) -> tuple[float, Gradient]:
    """Return the objective and its gradient, differentiated through the whole model at once.

    The exact pass evaluates layers and derivatives separately and keeps auxiliary variables, which nothing needs here.
    """
    parameters = dict(problem.model.named_parameters())
    with torch.enable_grad():
        loss = ordered_sum(problem.node_losses(problem.model(problem.graph)))
    grads = torch.autograd.grad(
        loss, [parameters[name] for name in problem.parameter_names], allow_unused=True, materialize_grads=True
    )
    return float(loss.detach()), dict(zip(problem.parameter_names, grads, strict=True))
