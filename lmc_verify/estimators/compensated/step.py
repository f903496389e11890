"""What all ways of making one compensated estimate have in common: the batch's place, its weights, and the results."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from lmc_verify.estimators.base import Cost, Estimate, node_weights
from lmc_verify.estimators.compensated.halo import local_structure
from lmc_verify.estimators.compensated.policies import Cut, Drop, Held, Policies
from lmc_verify.estimators.history import AUXILIARY, EMBEDDING, History, HistoryWrite, Write
from lmc_verify.graphs import Batch
from lmc_verify.objective import Problem

__all__ = ["Step"]


class Step(ABC):
    """One estimate: `forward` fills the local values of every layer, `backward` differentiates them.

    Attributes:
        embeddings: h^l by layer, l = 1 ... L; batch rows first, halo rows where they are written or read again.
        auxiliary: V^l at batch rows by layer.
        gradient: the estimated gradient.
        loss: the estimated objective.
    """

    def __init__(self, problem: Problem, state: History, batch: Batch, policies: Policies, weighting: str) -> None:
        self.problem, self.state, self.policies = problem, state, policies
        self.structure = local_structure(problem.graph, batch, cut=isinstance(policies.forward, Cut))
        self.local = self.structure.nodes
        self.size = self.local.num_batch
        self.weights = node_weights(problem, batch, weighting)
        self.gradient = problem.zero_gradient()
        self.loss = 0.0
        self.embeddings: dict[int, Tensor] = {}
        self.auxiliary: dict[int, Tensor] = {}
        self._encoder = problem.parameters_of(problem.model.encoder)

    @abstractmethod
    def forward(self) -> None:
        """Fill the local values of every layer."""

    @abstractmethod
    def backward(self) -> None:
        """Send auxiliary variables down the layers and collect parameter gradients from batch rows."""

    @property
    def _renormalised(self) -> bool:
        policy = self.policies.forward
        return isinstance(policy, Cut) and policy.renormalise

    def _needs_input_gradient(self, layer: int) -> bool:
        return not isinstance(self.policies.backward, Held) and (layer > 1 or bool(self._encoder))

    def result(self, *first: Write) -> Estimate:
        """Return the estimate; `first` are writes that come before those of this step."""
        return Estimate(self.gradient, self.loss, (*first, *self.writes()), self.cost())

    def writes(self) -> tuple[HistoryWrite, ...]:
        """Return the history rows of this step."""
        layers, local = range(1, self.problem.num_layers + 1), self.local
        out = []
        if self.policies.writes_embeddings:
            rows = local.nodes if self.policies.write_halo else local.batch
            out += [HistoryWrite(EMBEDDING, n, rows, self.embeddings[n][: rows.numel()]) for n in layers]
        if self.policies.writes_auxiliary:
            out += [HistoryWrite(AUXILIARY, n, local.batch, self.auxiliary[n]) for n in layers]
        return tuple(out)

    def cost(self) -> Cost:
        """Count rows, messages and history bytes (layers 1 ... L together for the bytes)."""
        policies = self.policies
        sources, destinations = self.structure.messages
        element = self.problem.graph.x.element_size()
        widths = sum(self.problem.widths[1:])
        halo, written = self.local.halo.numel(), self.writes()
        read = 0
        if policies.writes_embeddings:
            read += halo * widths
        if policies.compensates:
            read += halo * sum(self.problem.widths[1:-1])
        return Cost(
            nodes=self.local.nodes.numel(),
            messages_forward=self.structure.inner_messages if isinstance(policies.forward, Cut) else sources,
            messages_forward_needed=sources,
            messages_backward=self.structure.inner_messages if isinstance(policies.backward, Drop) else destinations,
            messages_backward_needed=destinations,
            history_bytes=element * (read + sum(write.values.numel() for write in written)),
        )
