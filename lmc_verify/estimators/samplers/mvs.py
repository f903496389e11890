"""MVS-GNN: one-shot batches of nodes, drawn by stale gradient norms, with histories at all other nodes.

Batch rows are computed anew in every layer; all other nodes are read from histories, with the whole graph's weights.
The gradient is that of the batch's weighted loss through the messages between batch rows: it is biased below the last
layer, as that of GAS is. Every `refresh` steps a checkpoint on the whole graph makes histories and norms exact.

Departures: a checkpoint takes all labelled nodes (the paper's sampling ratio 1, as for PPI), and, as in the published
code, no step of its own.

Source: Cong, Forsati, Kandemir and Mahdavi, Minimal Variance Sampling with Provable Guarantees for Fast Training of
Graph Neural Networks, KDD 2020, Algorithm 1, and its published code.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import ClassVar

import torch
from torch import Tensor

from lmc_verify.arguments import require_fields, typed
from lmc_verify.errors import InvalidInputError
from lmc_verify.estimators.base import Cost, Estimate, check_batch
from lmc_verify.estimators.history import EMBEDDING, History, HistoryWrite, Refresh, VectorWrite, Write
from lmc_verify.estimators.samplers.gradient_norms import last_gradient_norms
from lmc_verify.estimators.samplers.laws import senders
from lmc_verify.graphs import AnyGenerator, Batch, BatchDesign, LocalSet, Sample
from lmc_verify.graphs.sums import ordered_sum
from lmc_verify.objective import Problem, evaluating, exact_pass, refuse_dropout
from lmc_verify.seeds import as_generator

__all__ = ["MVS", "BernoulliNodes", "minimal_variance"]

NORMS, AGE = "norms", "steps since the checkpoint"


def minimal_variance(norms: Tensor, size: float) -> Tensor:
    """Return the inclusion probabilities ``p_i = min(1, g_i / mu)`` that sum to `size` [MVS-GNN, Theorem 4.1].

    They minimise ``sum g_i^2 / p_i``, the variance of a sum of vectors with these norms.

    Args:
        norms: g, float64 [n], none negative.
        size: expected number of nodes in a batch, above zero; if it reaches the number of positive norms, these have
            probability 1.
    """
    ordered = norms.sort(descending=True).values
    rest = ordered.flip(0).cumsum(0).flip(0)  # of the norms from here on
    first = torch.arange(ordered.numel(), dtype=norms.dtype, device=norms.device)
    room = size - first  # for those from here on, where all before have probability 1
    fits = (room > 0) & (ordered * room <= rest)
    if not bool(fits.any()):
        return (norms > 0).to(norms.dtype)
    place = int(fits.nonzero()[0])
    mu = rest[place] / room[place]
    return (norms / mu).clamp(max=1.0) if float(mu) > 0 else (norms > 0).to(norms.dtype)


@dataclass(frozen=True, eq=False)
class BernoulliNodes:
    """Every node is in the batch independently of the others.

    A batch has at least one node, so the draw without any is one node of weight zero.

    Attributes:
        base: the design whose place it takes.
        probabilities: p, float64 [n], in [0, 1].
    """

    carries_samples: ClassVar[bool] = True
    base: BatchDesign
    probabilities: Tensor

    @property
    def support_size(self) -> int:
        """Number of sets of nodes that can be drawn."""
        open_ = int(((self.probabilities > 0) & (self.probabilities < 1)).sum())
        return 1 << open_

    def draw(self, generator: AnyGenerator) -> Batch:
        """Draw the nodes."""
        p = self.probabilities.cpu()
        number = torch.from_numpy(as_generator(generator).random(p.numel()))
        return self._batch((number < p).nonzero()[:, 0])

    def enumerate(self) -> Iterator[tuple[Batch, float]]:
        """Yield every set of nodes with its probability."""
        p = self.probabilities.cpu()
        certain, open_ = (p == 1).nonzero()[:, 0], ((p > 0) & (p < 1)).nonzero()[:, 0]
        for chosen in product((False, True), repeat=open_.numel()):
            inside = torch.tensor(chosen, dtype=torch.bool)
            share = torch.where(inside, p[open_], 1 - p[open_]).prod()
            yield self._batch(torch.cat([certain, open_[inside]]).sort().values), float(share)

    def inclusion_probabilities(self) -> Tensor:
        """Return p."""
        return self.probabilities.cpu()

    def _batch(self, nodes: Tensor) -> Batch:
        p = self.probabilities.cpu()
        if nodes.numel():
            return Batch(nodes, p[nodes], sample=Sample((), p[nodes].reciprocal()))
        nodes = p.argmax().reshape(1)
        return Batch(nodes, p[nodes], sample=Sample((), torch.zeros(1, dtype=torch.float64)))


@dataclass(frozen=True)
class MVS:
    """MVS-GNN: labelled nodes drawn by their gradients' norms, histories at all other nodes.

    A norm is that of the node's gradient in the last layer (see `last_gradient_norms`), as it was when the node was
    last in a batch or at the last checkpoint. Its own distribution of batches takes the place of the design's.

    Attributes:
        size: expected number of nodes in a batch; a node has the probability ``min(1, g_i / mu)``, and weight one over
            that.
        refresh: steps from one checkpoint to the next; `init` makes the first.
        uniform: draw all labelled nodes alike, for comparison.

    Raises:
        InvalidInputError: a setting outside its range.
    """

    name: ClassVar[str] = "mvs-gnn"
    adaptive: ClassVar[bool] = True
    size: float = 4
    refresh: int = 20
    uniform: bool = False

    def __post_init__(self) -> None:
        require_fields(self)
        if not isinstance(self.size, int | float) or not 0 < self.size < math.inf:
            raise InvalidInputError(f"size is {self.size}, the expected number of nodes must be above 0 and finite")
        if not isinstance(self.refresh, int) or self.refresh < 1:
            raise InvalidInputError(f"refresh is {self.refresh}, it must be a whole number of at least 1")

    @typed
    def init(self, problem: Problem) -> History:
        """Return the state after a checkpoint: exact ``H^1 ... H^{L-1}``, and every node's norm."""
        with evaluating(problem.model):
            exact = exact_pass(problem)
            embeddings = {layer: exact.embeddings[layer].clone() for layer in range(1, problem.num_layers)}
            everything = torch.arange(problem.graph.num_nodes, device=problem.graph.device)
            local = LocalSet(everything, everything.numel())
            below, x0 = exact.embeddings[-2], exact.embeddings[0]
            norms = self._norms(problem, local, below, x0)
        return History(embeddings, vectors={NORMS: norms, AGE: torch.zeros(1, dtype=torch.float64).to(norms)})

    def probabilities(self, problem: Problem, state: History) -> Tensor:
        """Return every node's inclusion probability, float64 [n]."""
        self._check(problem, state)
        norms = (self.init(problem) if self._is_due(state) else state).vectors[NORMS]
        labelled = problem.graph.train_mask.to(norms)
        alike = self.uniform or not bool(norms.any())
        return minimal_variance(labelled if alike else norms, self.size)

    def sampling(self, problem: Problem, state: History, design: BatchDesign) -> BatchDesign:
        """Return independent draws of nodes by their norms."""
        return BernoulliNodes(design, self.probabilities(problem, state))

    def baseline(self) -> MVS | None:
        """Return the same estimator with all labelled nodes alike."""
        return None if self.uniform else replace(self, uniform=True)

    @typed
    def estimate(self, problem: Problem, state: History, batch: Batch) -> Estimate:
        """Estimate the gradient from one batch of `sampling`; pure, see `lmc_verify.Estimator`."""
        check_batch(problem, batch)
        refuse_dropout(problem, allow_keyed=True)
        self._check(problem, state)
        graph, model = problem.graph, problem.model
        weights = None if batch.sample is None else batch.sample.weights
        if weights is None or weights.numel() != batch.size:
            raise InvalidInputError(
                f"the batch carries no weights of its {batch.size} nodes, and {self.name!r} draws its own nodes; draw "
                "the batch from estimator.sampling(problem, state, design)"
            )
        writes: list[Write] = []
        if self._is_due(state):
            state = self.init(problem)
            writes.append(Refresh(state))
        norms, age = state.vectors[NORMS].clone(), state.vectors[AGE] + 1
        if not bool(weights.any()):  # nothing was drawn
            writes += [VectorWrite(NORMS, norms), VectorWrite(AGE, age)]
            return Estimate(problem.zero_gradient(), 0.0, tuple(writes), Cost(0, 0, 0, 0, 0, history_bytes=0))
        nodes = batch.nodes.to(graph.device)
        size, halo = nodes.numel(), senders(graph, nodes)
        local = LocalSet(torch.cat([nodes, halo]), size)
        parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        with torch.enable_grad():
            x0 = h = model.encode(graph.x[nodes])
            for index in range(1, problem.num_layers + 1):
                layer = model.layer(index)
                source = torch.cat([h, self._held(problem, state, index - 1, halo, size)])
                h = layer(source, source[:size], x0, graph.block(layer.operator, nodes, local))
                if index < problem.num_layers:
                    writes.append(HistoryWrite(EMBEDDING, index, nodes, h.detach()))
            losses = problem.node_losses(model.predict(h), nodes)
            loss = ordered_sum(losses * weights.to(losses))
        gradient = problem.zero_gradient()
        if loss.requires_grad:
            grads = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True, materialize_grads=True)
            gradient = dict(zip(parameters, grads, strict=True))
        norms[nodes] = self._norms(problem, local, source.detach(), x0.detach())
        writes += [VectorWrite(NORMS, norms), VectorWrite(AGE, age)]
        into, out = graph.messages(nodes)
        width = sum(problem.widths[1:-1])
        cost = Cost(
            nodes=size + halo.numel(),
            messages_forward=into,
            messages_forward_needed=into,
            messages_backward=graph.inner_messages(nodes),
            messages_backward_needed=out,
            history_bytes=graph.x.element_size() * width * (size + halo.numel()),
        )
        return Estimate(gradient, float(loss.detach()), tuple(writes), cost)

    def _held(self, problem: Problem, state: History, layer: int, halo: Tensor, first_row: int) -> Tensor:
        """Return what stands for ``h^layer`` at the halo: the history, or the encoded features themselves."""
        if layer:
            return state.read(EMBEDDING, layer, halo)
        with torch.no_grad():
            return problem.model.encode(problem.graph.x[halo], first_row)

    def _norms(self, problem: Problem, local: LocalSet, below: Tensor, x0: Tensor) -> Tensor:
        operator = problem.model.layer(problem.num_layers).operator
        block = problem.graph.block(operator, local.batch, local)
        return last_gradient_norms(problem, local.batch, below, x0, block)

    def _is_due(self, state: History) -> bool:
        return int(state.vectors[AGE]) >= self.refresh

    def _check(self, problem: Problem, state: History) -> None:
        n = problem.graph.num_nodes
        wanted = {layer: (n, problem.widths[layer]) for layer in range(1, problem.num_layers)}
        found = {layer: tuple(state.embeddings[layer].shape) for layer in wanted if layer in state.embeddings}
        norms = state.vectors.get(NORMS)
        if found != wanted or norms is None or norms.numel() != n or AGE not in state.vectors:
            raise InvalidInputError(
                f"the state lacks the histories {wanted} by layer (found: {found}), the {n} gradient norms, or the "
                "number of steps; make it with this estimator's init(problem)"
            )
