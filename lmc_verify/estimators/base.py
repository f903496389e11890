"""What every estimator has in common: the protocol, estimates, costs, and the loss weightings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from lmc_verify.errors import InvalidInputError, UnknownNameError
from lmc_verify.estimators.history import History, Write
from lmc_verify.estimators.weighting import LOSS_WEIGHTINGS
from lmc_verify.graphs import Batch, BatchDesign
from lmc_verify.objective import Gradient, Problem

__all__ = [
    "Cost",
    "Estimate",
    "Estimator",
    "Sampling",
    "batch_distribution",
    "check_batch",
    "node_weights",
    "unwrapped",
]


@dataclass(frozen=True)
class Cost:
    """What one estimate costs.

    Attributes:
        nodes: rows evaluated, batch and halo.
        messages_forward: messages into batch rows that the forward pass kept, of `messages_forward_needed`. Estimators
            that sample messages count every layer: messages into the rows that the layer above needs.
        messages_backward: messages out of batch rows that the backward pass kept, of `messages_backward_needed`;
            where messages are sampled, those of the forward pass that carry a gradient.
        history_bytes: bytes read from and written to histories.
    """

    nodes: int
    messages_forward: int
    messages_forward_needed: int
    messages_backward: int
    messages_backward_needed: int
    history_bytes: int


@dataclass(frozen=True, eq=False)
class Estimate:
    """A gradient estimate from one batch.

    Attributes:
        gradient: by parameter name, in units of the full objective.
        loss: estimate of the objective, with the same weights.
        writes: history rows to be written by ``state.apply(writes)``; nothing was written yet.
        cost: what it cost; None where that is not stated.
    """

    gradient: Gradient
    loss: float
    writes: tuple[Write, ...]
    cost: Cost | None = None


@runtime_checkable
class Estimator(Protocol):
    """A gradient estimator: settings only, hashable and comparable; tensors live in the state.

    `estimate` is pure: it changes neither the state, nor the problem, nor any global, and gives the same bits when
    called again. ``state.apply(estimate.writes)`` is the only mutation. Randomness of its own belongs to the batch: see
    `Sampling`.
    """

    @property
    def name(self) -> str:
        """Name in the registry and in reports."""

    def init(self, problem: Problem) -> History:
        """Return a fresh state."""

    def estimate(self, problem: Problem, state: History, batch: Batch) -> Estimate:
        """Estimate the gradient from one batch."""


@runtime_checkable
class Sampling(Protocol):
    """An estimator with randomness of its own, which is drawn together with the batch and travels in `Batch.sample`."""

    @property
    def adaptive(self) -> bool:
        """Whether the distribution depends on the state or the parameters, and is computed again at every step."""

    def sampling(self, problem: Problem, state: History, design: BatchDesign) -> BatchDesign:
        """Return the distribution of batches that carry a sample, on top of a design of batches.

        It has two attributes more than a design: ``carries_samples = True``, and ``base``, the design.
        """


def batch_distribution(estimator: Estimator, problem: Problem, state: History, design: BatchDesign) -> BatchDesign:
    """Return what an estimator's batches are drawn from: the design, with the estimator's own samples if any.

    A distribution that this function returned before may be given in place of the design it was made of.
    """
    base = unwrapped(design)
    return estimator.sampling(problem, state, base) if isinstance(estimator, Sampling) else base


def unwrapped(design: BatchDesign) -> BatchDesign:
    """Return the design that a distribution of batches with samples was made of; other designs as they are."""
    while getattr(design, "carries_samples", False):
        design = getattr(design, "base")  # noqa: B009  # the protocol of designs does not have it
    return design


def node_weights(problem: Problem, batch: Batch, weighting: str) -> Tensor:
    """Return the weight of each batch row's loss, in the problem's dtype [batch].

    Raises:
        UnknownNameError: `weighting` is not in `LOSS_WEIGHTINGS`.
    """
    graph = problem.graph
    if weighting == "inclusion":
        return batch.inclusion.reciprocal().to(graph.device, graph.dtype)
    if weighting == "node-count":
        factor = graph.num_nodes / batch.size
    elif weighting == "batch-mean":
        labelled = int(graph.train_mask[batch.nodes.to(graph.device)].sum())
        factor = graph.num_labelled / labelled if labelled else 0.0
    else:
        raise UnknownNameError("loss weighting", weighting, LOSS_WEIGHTINGS)
    return torch.full((batch.size,), factor, device=graph.device, dtype=graph.dtype)


def check_batch(problem: Problem, batch: Batch) -> None:
    """Raise InvalidInputError if the batch holds a node that the graph does not have."""
    largest = int(batch.nodes[-1])
    if largest >= problem.graph.num_nodes or int(batch.nodes[0]) < 0:
        raise InvalidInputError(
            f"the batch holds node {largest if largest >= 0 else int(batch.nodes[0])}, the graph has nodes "
            f"0 ... {problem.graph.num_nodes - 1}; build the batch design from this graph"
        )
