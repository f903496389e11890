"""TOP: messages from outside of the batch are turned into messages from inside, by message invariance.

What a layer reads at a batch's halo is taken to be a fixed linear combination of what it reads at the batch,
``S_halo = R S_batch`` in every layer and at all parameters. R is fitted for each batch by least squares. Where the
invariance holds, as for nodes with the same surroundings, the batch's outputs and their gradients are exact without
reading the halo.

`TOP` fits R as the published code does, on what the layers of a randomly initialised model read, ``[x, phi(H^1), ...,
phi(H^{L-1})]``, made orthonormal, and applies it behind the activation. The code keeps as many layers of that basis as
fit the smallest batch, and fits R on a random part of a large batch; here all layers and the whole batch count.

Source: Shi et al., Accurate and Scalable Graph Neural Networks via Message Invariance, ICLR 2025 (arXiv 2502.19693).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lmc_verify.arguments import typed
from lmc_verify.errors import InvalidInputError
from lmc_verify.estimators.base import Cost, Estimate, check_batch, node_weights
from lmc_verify.estimators.history import History
from lmc_verify.estimators.samplers.laws import senders
from lmc_verify.estimators.weighting import Weighted
from lmc_verify.graphs import Batch, Block, LocalSet
from lmc_verify.graphs.sums import ordered_sum
from lmc_verify.models import initialise
from lmc_verify.objective import ExactPass, Problem, evaluating, exact_pass, refuse_dropout
from lmc_verify.seeds import require_seed, torch_generator

__all__ = ["TOP", "Invariance", "MessageInvariance"]

BASIS = "basis"


@dataclass(frozen=True, eq=False)
class Invariance:
    """The halo of a batch as combinations of the batch.

    Attributes:
        batch: int64 [batch], ascending.
        halo: int64 [halo], nodes outside of the batch that send it a message, ascending.
        coefficients: R [halo, batch].
        basis: the basis that they were fitted on.
    """

    batch: Tensor
    halo: Tensor
    coefficients: Tensor
    basis: Tensor

    @property
    def num_bytes(self) -> int:
        """Memory of the coefficients and of the nodes' ids; the basis is the state's."""
        return sum(part.numel() * part.element_size() for part in (self.batch, self.halo, self.coefficients))


@dataclass(frozen=True)
class MessageInvariance(Weighted):
    """Base of estimators that fit the halo on the batch; subclasses state the basis and what R is applied to.

    Attributes:
        tolerance: singular values of the batch's basis below this share of the largest count as zero; so do those
            below what rounding makes of zero, the matrix's longer side times the dtype's epsilon.

    Raises:
        InvalidInputError: a tolerance outside [0, 1).
    """

    tolerance: float = 1e-10

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.tolerance < 1:
            raise InvalidInputError(f"tolerance is {self.tolerance}, it must lie in [0, 1)")

    @abstractmethod
    def basis(self, problem: Problem) -> Tensor:
        """Return the basis that R is fitted on [n, columns]."""

    @abstractmethod
    def combined(self, problem: Problem, exact: ExactPass) -> tuple[Tensor, ...]:
        """Return the values whose halo rows R replaces, by layer, at exact embeddings, each [n, width]."""

    @abstractmethod
    def rows(self, problem: Problem, index: int, h: Tensor, x0: Tensor, block: Block, found: Invariance) -> Tensor:
        """Return ``h^index`` at the batch's rows, from the rows below and their combinations."""

    @typed
    def init(self, problem: Problem) -> History:
        """Return a state with the basis."""
        return History(vectors={BASIS: self.basis(problem)})

    def invariance(self, problem: Problem, state: History, nodes: Tensor) -> Invariance:
        """Return the halo of some nodes with its fitted coefficients.

        Raises:
            InvalidInputError: the state holds no basis of this graph.
        """
        basis, graph = state.vectors.get(BASIS), problem.graph
        if basis is None or basis.shape[0] != graph.num_nodes:
            raise InvalidInputError(
                f"the state has no basis of {graph.num_nodes} nodes; make it with this estimator's init(problem)"
            )
        halo = senders(graph, nodes)
        rows = basis[nodes]
        rounding = max(rows.shape) * torch.finfo(rows.dtype).eps
        inverse = torch.linalg.pinv(rows, rtol=max(self.tolerance, rounding))
        return Invariance(nodes, halo, basis[halo] @ inverse, basis)

    @typed
    def estimate(self, problem: Problem, state: History, batch: Batch) -> Estimate:
        """Estimate the gradient from the batch."""
        check_batch(problem, batch)
        refuse_dropout(problem, allow_keyed=True)
        graph, model = problem.graph, problem.model
        nodes = batch.nodes.to(graph.device)
        # A batch that comes again is not fitted again, unless it is for another state's basis.
        found = graph.cache.get(batch, self, lambda: self.invariance(problem, state, nodes))
        if found.basis is not state.vectors.get(BASIS):
            found = self.invariance(problem, state, nodes)
        local = LocalSet(torch.cat([nodes, found.halo]), nodes.numel())
        parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        messages = 0
        with torch.enable_grad():
            x0 = model.encode(graph.x[nodes])
            h = x0
            for index in range(1, problem.num_layers + 1):
                block = graph.block(model.layer(index).operator, nodes, local)
                messages += block.csr.num_entries
                h = self.rows(problem, index, h, x0, block, found)
            losses = problem.node_losses(model.predict(h), nodes)
            loss = ordered_sum(losses * node_weights(problem, batch, self.weighting))
        gradient = problem.zero_gradient()
        if loss.requires_grad:
            grads = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True, materialize_grads=True)
            gradient = dict(zip(parameters, grads, strict=True))
        cost = Cost(nodes.numel(), messages, messages, messages, messages, history_bytes=0)
        return Estimate(gradient, float(loss.detach()), (), cost)


@dataclass(frozen=True)
class TOP(MessageInvariance):
    """TOP as published: R is fitted on a random model's activations and acts on what the layers read.

    Attributes:
        tolerance: see `MessageInvariance`.
        out_of_batch: the OB variant: the first layer reads the halo's true features.
        random_models: how many randomly initialised models give the basis their activations.
        seed: of those models.

    Raises:
        InvalidInputError: a tolerance outside [0, 1), or fewer than one random model.
    """

    name: ClassVar[str] = "top"
    out_of_batch: bool = False
    random_models: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_seed(self.seed)
        if not isinstance(self.random_models, int) or self.random_models < 1:
            raise InvalidInputError(f"random_models is {self.random_models}, it must be a whole number of at least 1")

    def basis(self, problem: Problem) -> Tensor:
        """Return an orthonormal basis of the span of ``[x, phi(H^1), ..., phi(H^{L-1})]`` [n, rank]."""
        parts: list[Tensor] = []
        for number in range(self.random_models):
            drawn = problem.copy()
            initialise(drawn.model, torch_generator(self.seed, "message invariance", number))
            with evaluating(drawn.model):
                parts += _read(drawn, exact_pass(drawn).embeddings, 1 + bool(number))  # the features once
        spanned = torch.cat(parts, dim=1)
        columns, sizes, _ = torch.linalg.svd(spanned, full_matrices=False)
        rounding = max(spanned.shape) * torch.finfo(spanned.dtype).eps
        kept: Tensor = columns[:, sizes > rounding * sizes[0]]
        return kept

    def combined(self, problem: Problem, exact: ExactPass) -> tuple[Tensor, ...]:
        """Return what the layers read, without the first where that reads true features."""
        return tuple(_read(problem, exact.embeddings, 1 + self.out_of_batch))

    def rows(self, problem: Problem, index: int, h: Tensor, x0: Tensor, block: Block, found: Invariance) -> Tensor:
        """Return ``h^index`` at the batch's rows."""
        layer, model = problem.model.layer(index), problem.model
        read = layer.read(h)
        if index == 1 and self.out_of_batch:
            halo = layer.read(model.encode(problem.graph.x[found.halo], len(h)))
        else:
            halo = found.coefficients @ read
        return layer.on_read(torch.cat([read, halo]), read, h, x0, block)


def _read(problem: Problem, embeddings: Sequence[Tensor], first: int = 1) -> list[Tensor]:
    """Return what the layers from this one on read of embeddings of layers 0 ... L."""
    with torch.no_grad():
        layers = range(first, problem.num_layers + 1)
        return [problem.model.layer(index).read(embeddings[index - 1]) for index in layers]
