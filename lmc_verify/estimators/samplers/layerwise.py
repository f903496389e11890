"""Layer-wise sampling: one set of nodes per layer, shared by all rows. FastGCN, LADIES and AS-GCN.

Of the sources of a layer, t are drawn with replacement with probabilities q; a message from source j that was drawn c_j
times has weight ``c_j / (t q_j)``, so aggregates are unbiased whatever q is, if it is positive at every source. The
methods differ in q:

- FastGCN: ``q_j ~ ||A[:, j]||^2``, from the whole operator.
- LADIES: ``q_j ~ ||A[R, j]||^2``, from the rows R that the layer above needs.
- AS-GCN: ``q_j ~ sum_{i in R} |A_ij| g_j``, with a learned positive ``g_j = exp(<w, x_j>)`` of the node's features.

Sources: FastGCN: Chen, Ma and Xiao, ICLR 2018. LADIES: Zou et al., NeurIPS 2019. AS-GCN: Huang et al., NeurIPS 2018.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import combinations_with_replacement
from typing import ClassVar

import torch
from torch import Tensor

from lmc_verify.arguments import typed
from lmc_verify.errors import InvalidInputError
from lmc_verify.estimators.base import Estimate
from lmc_verify.estimators.history import History, VectorWrite
from lmc_verify.estimators.samplers.laws import Kept, LayerLaw, draw_categories, multinomial_probability, row_entries
from lmc_verify.estimators.samplers.neighbour import as_sizes, by_layer
from lmc_verify.estimators.samplers.sampled import Sampled, evaluate_sampled
from lmc_verify.estimators.samplers.sampled_design import SampledDesign
from lmc_verify.graphs import Batch, BatchDesign, Block, LayerSample
from lmc_verify.objective import Problem

__all__ = [
    "ASGCN",
    "LADIES",
    "FastGCN",
    "FastLaw",
    "LadiesLaw",
    "LayerWise",
    "NodesLaw",
    "ProposalLaw",
    "column_squares",
    "inverse_of",
    "normalised",
]


class NodesLaw(LayerLaw):
    """`nodes` draws of sources with replacement, with probabilities that a subclass gives."""

    nodes: int

    @abstractmethod
    def probabilities(self, operator: Block, rows: Tensor) -> Tensor:
        """Return q, float64 [columns of the operator]; it sums to 1, or is 0 where the rows have no messages."""

    def draw(self, operator: Block, rows: Tensor, generator: torch.Generator) -> Kept:
        """Draw the sources."""
        q = self.probabilities(operator, rows)
        count = torch.zeros_like(q)
        if bool(q.any()):
            drawn = draw_categories(q, self.nodes, generator)
            count.index_add_(0, drawn, torch.ones_like(drawn, dtype=torch.float64))
        return self._kept(operator, rows, q, count)

    def enumerate(self, operator: Block, rows: Tensor) -> Iterator[tuple[Kept, float]]:
        """Yield every outcome; draws of nodes that send nothing to the rows are not distinguished."""
        q = self.probabilities(operator, rows)
        sources, rest = self._classes(operator, rows, q)
        if not sources.numel() and rest == 0:
            yield self._kept(operator, rows, q, torch.zeros_like(q)), 1.0
            return
        chances = [*q[sources].tolist(), *([rest] if rest > 0 else [])]
        for drawn in combinations_with_replacement(range(len(chances)), self.nodes):
            times = [drawn.count(k) for k in range(len(chances))]
            count = torch.zeros_like(q)
            count[sources] = torch.tensor(times[: sources.numel()], dtype=torch.float64, device=q.device)
            yield self._kept(operator, rows, q, count), multinomial_probability(chances, times)

    def count(self, operator: Block, rows: Tensor) -> int:
        """Return the number of multisets."""
        sources, rest = self._classes(operator, rows, self.probabilities(operator, rows))
        kinds = sources.numel() + (rest > 0)
        return math.comb(kinds + self.nodes - 1, self.nodes) if kinds else 1

    def _classes(self, operator: Block, rows: Tensor, q: Tensor) -> tuple[Tensor, float]:
        """Return the sources of the rows, and the probability of drawing another node."""
        _, entry = row_entries(operator, rows)
        sources: Tensor = torch.unique(operator.csr.col[entry].long())
        sources = sources[q[sources] > 0]
        outside = q.clone()
        outside[sources] = 0.0
        return sources, float(outside.sum())

    def _kept(self, operator: Block, rows: Tensor, q: Tensor, count: Tensor) -> Kept:
        position, entry = row_entries(operator, rows)
        source = operator.csr.col[entry].long()
        inside = count[source] > 0
        source = source[inside]
        return Kept(position[inside], entry[inside], count[source] / (self.nodes * q[source]))


def normalised(weights: Tensor) -> Tensor:
    """Return weights over their sum, zeros where that is zero."""
    total = weights.sum()
    return weights / total if float(total) > 0 else torch.zeros_like(weights)


def column_squares(operator: Block) -> Tensor:
    """Return ``||A[:, j]||^2`` by column j, float64."""
    total = torch.zeros(operator.csr.num_columns, dtype=torch.float64, device=operator.csr.col.device)
    return total.index_add_(0, operator.csr.col.long(), operator.csr.value.double().square())


def _by_source(operator: Block, rows: Tensor, power: int) -> Tensor:
    """Return ``sum_{i in rows} |A_ij|^power`` by source j, float64."""
    _, entry = row_entries(operator, rows)
    total = torch.zeros(operator.csr.num_columns, dtype=torch.float64, device=entry.device)
    return total.index_add_(0, operator.csr.col[entry].long(), operator.csr.value[entry].double().abs() ** power)


def inverse_of(bound: Tensor) -> Tensor:
    """Return the inverse of a lower bound of q, 1 where a message is zero and no weight matters."""
    return torch.where(bound > 0, bound.clamp(min=torch.finfo(bound.dtype).tiny).reciprocal(), torch.ones_like(bound))


@dataclass(frozen=True)
class FastLaw(NodesLaw):
    """FastGCN's distribution: q from the squared norms of the operator's columns."""

    nodes: int

    def probabilities(self, operator: Block, rows: Tensor) -> Tensor:
        """Return ``||A[:, j]||^2`` over their sum, whatever the rows."""
        return normalised(column_squares(operator))

    def largest_scale(self, operator: Block) -> Tensor:
        """Return ``1 / q_j``: all draws at one source."""
        return inverse_of(self.probabilities(operator, operator.csr.col[:0].long())[operator.csr.col.long()])


@dataclass(frozen=True)
class LadiesLaw(NodesLaw):
    """LADIES's distribution: q from the squared norms of the columns within the rows."""

    nodes: int

    def probabilities(self, operator: Block, rows: Tensor) -> Tensor:
        """Return ``||A[R, j]||^2`` over their sum."""
        return normalised(_by_source(operator, rows, 2))

    def largest_scale(self, operator: Block) -> Tensor:
        """Return ``||A||_F^2 / A_ij^2``, which bounds ``1 / q_j`` for all rows among which i is."""
        square = operator.csr.value.double().square()
        return inverse_of(square / square.sum())


@dataclass(frozen=True, eq=False)
class ProposalLaw(NodesLaw):
    """AS-GCN's distribution: ``q_j ~ sum_{i in R} |A_ij| g_j``.

    Attributes:
        nodes: draws.
        importance: g, float64 [n], positive.
    """

    nodes: int
    importance: Tensor

    def probabilities(self, operator: Block, rows: Tensor) -> Tensor:
        """Return the rows' weights of every source times its importance, over their sum."""
        return normalised(_by_source(operator, rows, 1) * self.importance)

    def largest_scale(self, operator: Block) -> Tensor:
        """Return ``sum |A| g / (|A_ij| g_j)``, which bounds ``1 / q_j`` for all rows among which i is."""
        weight = operator.csr.value.double().abs() * self.importance[operator.csr.col.long()]
        return inverse_of(weight / weight.sum())


@dataclass(frozen=True)
class LayerWise(Sampled):
    """What samplers share that draw nodes for every layer.

    Attributes:
        nodes: draws per layer; one number, or one per layer, layer 1 first.
    """

    reweights: ClassVar[bool] = True
    nodes: int | tuple[int, ...] = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "nodes", as_sizes("nodes", self.nodes))


@dataclass(frozen=True)
class FastGCN(LayerWise):
    """FastGCN: every layer draws nodes from one distribution over the graph, with replacement.

    Attributes:
        nodes: draws per layer; one number, or one per layer, layer 1 first.
    """

    name: ClassVar[str] = "fastgcn"

    def sampling(self, problem: Problem, state: History, design: BatchDesign) -> BatchDesign:
        """Return batches of the design with nodes drawn for every layer."""
        sizes = by_layer("nodes", self.nodes, problem.num_layers)
        return SampledDesign(design, problem, tuple(self._law(size, problem, state) for size in sizes))

    def _law(self, size: int, problem: Problem, state: History) -> LayerLaw:
        return FastLaw(size)


@dataclass(frozen=True)
class LADIES(FastGCN):
    """LADIES: every layer draws nodes among the sources of the rows that the layer above needs.

    Attributes:
        nodes: draws per layer; one number, or one per layer, layer 1 first.
    """

    name: ClassVar[str] = "ladies"

    def _law(self, size: int, problem: Problem, state: History) -> LayerLaw:
        return LadiesLaw(size)

    def baseline(self) -> FastGCN:
        """Return FastGCN with as many draws."""
        return FastGCN(self.nodes, weighting=self.weighting)


PROPOSAL = "proposal"
LARGEST_LOGARITHM = 5.0
"""``<w, x_j>`` is kept within this: importances differ by a factor of at most exp(10)."""


@dataclass(frozen=True)
class ASGCN(FastGCN):
    """AS-GCN: as LADIES, with a proposal that is learned to lower the variance of the aggregates.

    The state holds the proposal's weights w, zero at first. Each step moves them down the gradient of the logarithm of
    the aggregates' estimated second moment, the part of the variance that the proposal controls. The published method
    adds that variance to the training loss; here it trains the proposal alone, so that the objective stays the same.

    Attributes:
        nodes: draws per layer; one number, or one per layer, layer 1 first.
        proposal_step: step size of the proposal; 0 keeps it as it is.

    Raises:
        InvalidInputError: a step size that is negative or not finite.
    """

    name: ClassVar[str] = "as-gcn"
    adaptive: ClassVar[bool] = True
    proposal_step: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.proposal_step < math.inf:
            raise InvalidInputError(f"proposal_step is {self.proposal_step}, it must be finite and not negative")

    @typed
    def init(self, problem: Problem) -> History:
        """Return a state with a proposal of zeros: importances of 1."""
        graph = problem.graph
        return History(vectors={PROPOSAL: torch.zeros(graph.num_features, dtype=torch.float64, device=graph.device)})

    def _law(self, size: int, problem: Problem, state: History) -> LayerLaw:
        return ProposalLaw(size, _importance(problem, state))

    def baseline(self) -> FastGCN:
        """Return FastGCN with as many draws."""
        return FastGCN(self.nodes, weighting=self.weighting)

    @typed
    def estimate(self, problem: Problem, state: History, batch: Batch) -> Estimate:
        """Estimate the gradient, and the proposal's next weights among the writes."""
        estimate, computed = evaluate_sampled(problem, batch, self.weighting, None)
        return replace(estimate, writes=(VectorWrite(PROPOSAL, self._next(problem, state, batch, computed)),))

    def _next(self, problem: Problem, state: History, batch: Batch, computed: Mapping[int, Tensor]) -> Tensor:
        """Return w after one step down the gradient of ``log sum c_j/(t q_j) ||A[R, j]||^2 ||h_j||^2 / q_j``."""
        assert batch.sample is not None
        importance, x = _importance(problem, state), problem.graph.x.double()
        sizes = by_layer("nodes", self.nodes, problem.num_layers)
        moment, slope = 0.0, torch.zeros_like(state.vectors[PROPOSAL])
        for index, own in enumerate(batch.sample.to(problem.graph.device).layers, 1):
            operator = problem.graph.operator(problem.model.layer(index).operator)
            q = ProposalLaw(sizes[index - 1], importance).probabilities(operator, own.rows)
            nodes, terms = _second_moments(operator, own, computed[index - 1], q)
            mean = q @ x
            moment += float(terms.sum())
            slope += terms @ (x[nodes] - mean)  # minus the derivative: log q_j has the gradient x_j - mean
        if moment == 0:
            return state.vectors[PROPOSAL].clone()
        return state.vectors[PROPOSAL] + self.proposal_step * slope / moment


def _importance(problem: Problem, state: History) -> Tensor:
    if PROPOSAL not in state.vectors or state.vectors[PROPOSAL].shape != (problem.graph.num_features,):
        raise InvalidInputError(
            f"the state has no proposal [{problem.graph.num_features}]; make it with this estimator's init(problem)"
        )
    score = problem.graph.x.double() @ state.vectors[PROPOSAL]
    return score.clamp(-LARGEST_LOGARITHM, LARGEST_LOGARITHM).exp()


def _second_moments(operator: Block, own: LayerSample, h: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sampled sources and their terms ``c_j/(t q_j) ||A[R, j]||^2 ||h_j||^2 / q_j``."""
    slot, first = torch.unique(own.source, return_inverse=True)
    scale = torch.zeros(slot.numel(), dtype=torch.float64, device=h.device).index_copy_(0, first, own.scale)
    nodes = own.columns[slot]
    squares = _by_source(operator, own.rows, 2)[nodes]
    return nodes, scale * squares * h.detach()[slot].double().square().sum(dim=1) / q[nodes]
