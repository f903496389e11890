"""VR-GCN with importance sampling: batch nodes drawn in proportion to their gradient's norm, from VR-GCN's aggregates.

A variant that combines the aggregates of Chen, Zhu and Song, ICML 2018, with MVS-GNN's idea of drawing by stale norms
(Cong et al., KDD 2020); `lmc_verify.estimators.samplers.mvs` is MVS-GNN itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import combinations_with_replacement
from typing import ClassVar

import torch
from torch import Tensor

from lmc_verify.arguments import typed
from lmc_verify.errors import InvalidInputError
from lmc_verify.estimators.base import Estimate
from lmc_verify.estimators.history import AUXILIARY, History, HistoryWrite
from lmc_verify.estimators.samplers.laws import multinomial_probability
from lmc_verify.estimators.samplers.neighbour import VRGCN
from lmc_verify.estimators.samplers.sampled import corrected_histories, evaluate_sampled, require_weighted_sums
from lmc_verify.estimators.samplers.sampled_design import SampledDesign
from lmc_verify.graphs import AnyGenerator, Batch, BatchDesign, Sample
from lmc_verify.graphs.sums import ordered_sum
from lmc_verify.objective import Problem
from lmc_verify.seeds import as_generator

__all__ = ["ImportanceVRGCN", "WeightedNodes"]


@dataclass(frozen=True, eq=False)
class WeightedNodes:
    """`size` draws of nodes with replacement with probabilities q; node i drawn c_i times has weight ``c_i / (s q_i)``.

    Attributes:
        base: the design whose place it takes.
        probabilities: q, float64 [n], positive, summing to 1.
        size: s.
    """

    carries_samples: ClassVar[bool] = True
    base: BatchDesign
    probabilities: Tensor
    size: int

    @property
    def support_size(self) -> int:
        """Number of multisets of `size` nodes."""
        return math.comb(self.probabilities.numel() + self.size - 1, self.size)

    def draw(self, generator: AnyGenerator) -> Batch:
        """Draw the nodes."""
        q = self.probabilities.cpu().numpy()
        return self._batch(torch.from_numpy(as_generator(generator).choice(len(q), size=self.size, p=q / q.sum())))

    def enumerate(self) -> Iterator[tuple[Batch, float]]:
        """Yield every multiset with its probability."""
        q = self.probabilities.tolist()
        for chosen in combinations_with_replacement(range(len(q)), self.size):
            own = sorted(set(chosen))
            probability = multinomial_probability([q[node] for node in own], [chosen.count(node) for node in own])
            yield self._batch(torch.tensor(chosen)), probability

    def inclusion_probabilities(self) -> Tensor:
        """Return ``1 - (1 - q)^s``."""
        return -torch.expm1(self.size * torch.log1p(-self.probabilities.cpu()))

    def _batch(self, drawn: Tensor) -> Batch:
        nodes, times = torch.unique(drawn, return_counts=True)
        batch = Batch(nodes, self.inclusion_probabilities()[nodes])
        weights = times.to(torch.float64) / (self.size * self.probabilities.cpu()[nodes])
        return replace(batch, sample=Sample((), weights))


@dataclass(frozen=True)
class ImportanceVRGCN(VRGCN):
    """VR-GCN whose nodes are drawn with probabilities from stale gradient norms.

    A node's norm is that of the loss's derivative at its last embedding, as it was when the node was last in a batch.
    Its own distribution of batches takes the place of the design's.

    Attributes:
        fan_out: messages kept per row; one number, or one per layer, layer 1 first.
        size: draws per batch, with replacement.
        smoothing: share of the uniform distribution in q, in (0, 1]; keeps q positive.

    Raises:
        InvalidInputError: a setting outside its range.
    """

    name: ClassVar[str] = "vr-gcn-importance"
    adaptive: ClassVar[bool] = True
    size: int = 4
    smoothing: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.size, int) or self.size < 1:
            raise InvalidInputError(f"size is {self.size}, it must be a whole number of at least 1")
        if not 0 < self.smoothing <= 1:
            raise InvalidInputError(f"smoothing is {self.smoothing}, it must lie in (0, 1]")

    @typed
    def init(self, problem: Problem) -> History:
        """Return histories of zeros: of what layers read, and of ``V^L``, whose rows' norms make q."""
        top, graph = problem.num_layers, problem.graph
        state = corrected_histories(problem)
        state.auxiliary[top] = torch.zeros(graph.num_nodes, problem.widths[top], device=graph.device, dtype=graph.dtype)
        return state

    def probabilities(self, problem: Problem, state: History) -> Tensor:
        """Return q, float64 [n]."""
        norms = self._table(problem, state).double().norm(dim=1)
        uniform = torch.full_like(norms, 1 / norms.numel())
        total = float(ordered_sum(norms))
        return uniform if total == 0 else (1 - self.smoothing) * norms / total + self.smoothing * uniform

    def sampling(self, problem: Problem, state: History, design: BatchDesign) -> BatchDesign:
        """Return batches drawn by stale gradient norms, with a sample for each of their rows."""
        require_weighted_sums(problem, self.name)
        nodes = WeightedNodes(design, self.probabilities(problem, state), self.size)
        return SampledDesign(nodes, problem, self.laws(problem))

    def baseline(self) -> ImportanceVRGCN | None:
        """Return the same estimator with uniform nodes."""
        return None if self.smoothing == 1 else replace(self, smoothing=1.0)

    @typed
    def estimate(self, problem: Problem, state: History, batch: Batch) -> Estimate:
        """Estimate the gradient; the writes hold the batch's rows of ``V^L`` too."""
        self._table(problem, state)
        estimate, computed = evaluate_sampled(problem, batch, self.weighting, state)
        h = computed[problem.num_layers].detach().requires_grad_()
        nodes = batch.nodes.to(h.device)
        with torch.enable_grad():
            losses = ordered_sum(problem.node_losses(problem.model.predict(h), nodes))
        (v,) = torch.autograd.grad(losses, h, allow_unused=True, materialize_grads=True)
        return replace(estimate, writes=(*estimate.writes, HistoryWrite(AUXILIARY, problem.num_layers, nodes, v)))

    def _table(self, problem: Problem, state: History) -> Tensor:
        table = state.auxiliary.get(problem.num_layers)
        shape = (problem.graph.num_nodes, problem.widths[problem.num_layers])
        if table is None or tuple(table.shape) != shape:
            raise InvalidInputError(
                f"the state has no auxiliary history {shape} for layer {problem.num_layers}; make it with this "
                "estimator's init(problem)"
            )
        return table
