"""FastGCN and LADIES as their public code has them: nodes drawn without replacement, rows normalised afterwards.

The theory of both papers (`lmc_verify.estimators.samplers.layerwise`) draws with replacement, and weights a message by
the inverse of its probability. The code differs, and its aggregates are biased:

- `LADIES <https://github.com/acbull/LADIES>`_: t sources are drawn one after another, without replacement, with
  probabilities ``q_j ~ ||A[R, j]||^2``; the batch's nodes are added to them; a message has weight ``1 / q_j``, and then
  every row is divided by its sum.
- FastGCN in the same code, with which LADIES is compared there: ``q_j ~ ||A[:, j]||^2`` from the whole operator, no
  node is added, rows are divided by their sums.
- `FastGCN <https://github.com/matenure/FastGCN>`_, its authors' final model: ``q_j ~ ||A[:, j]||``, not squared; the
  sources of the rows alone can be drawn, without replacement; a message has weight ``1 / (t q_j)``, with q's sum taken
  over the whole graph; rows are not normalised; the lowest layer keeps every message.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from lmc_verify.errors import InvalidInputError, UnknownNameError
from lmc_verify.estimators.history import History
from lmc_verify.estimators.samplers.laws import (
    COUNTED,
    Kept,
    LayerLaw,
    draw_distinct,
    row_entries,
    successive_probabilities,
)
from lmc_verify.estimators.samplers.layerwise import (
    FastLaw,
    LadiesLaw,
    LayerWise,
    column_squares,
    inverse_of,
    normalised,
)
from lmc_verify.estimators.samplers.neighbour import NeighbourLaw, by_layer
from lmc_verify.estimators.samplers.sampled import Departure
from lmc_verify.estimators.samplers.sampled_design import SampledDesign
from lmc_verify.graphs import BatchDesign, Block
from lmc_verify.objective import Problem

__all__ = [
    "DistinctLaw",
    "FastGCNPublished",
    "LADIESPublished",
    "NormalisedFastLaw",
    "NormalisedLadiesLaw",
    "SourcesLaw",
]

CODES = ("ladies", "fastgcn")
"""The two public versions of FastGCN: in the code of LADIES, and its authors' own."""

EXCESS = 1e-3
"""By how much a row of an operator must sum to more than 1 for enumeration to be sure to see it."""


class DistinctLaw(LayerLaw):
    """`nodes` different sources, drawn one after another in proportion to weights that a subclass gives.

    Where fewer than `nodes` can be drawn, all of them are.
    """

    nodes: int

    @abstractmethod
    def probabilities(self, operator: Block, rows: Tensor) -> Tensor:
        """Return q, float64 [columns of the operator], 0 where a node cannot be drawn; it need not sum to 1."""

    def added(self, operator: Block) -> Tensor:
        """Return the nodes that are kept whatever is drawn, bool [columns of the operator]."""
        return torch.zeros(operator.csr.num_columns, dtype=torch.bool, device=operator.csr.col.device)

    @abstractmethod
    def kept(self, operator: Block, rows: Tensor, q: Tensor, chosen: Tensor) -> Kept:
        """Return the weighted messages from the chosen nodes, a mask of the columns."""

    def draw(self, operator: Block, rows: Tensor, generator: torch.Generator) -> Kept:
        """Draw the sources."""
        q, chosen = self.probabilities(operator, rows), self.added(operator)
        drawn = draw_distinct(q, self.nodes, generator)
        chosen[drawn] = True
        return self.kept(operator, rows, q, chosen)

    def enumerate(self, operator: Block, rows: Tensor) -> Iterator[tuple[Kept, float]]:
        """Yield every set of sources that messages are kept from, with its probability."""
        q, added = self.probabilities(operator, rows), self.added(operator)
        positive, deciding = self._deciding(operator, rows, q)
        place = [node for node, counts in zip(positive, deciding, strict=True) if counts]
        outcomes: dict[frozenset[int], float] = {}
        size = min(self.nodes, len(positive))
        for drawn, probability in successive_probabilities(q[positive].tolist(), size):
            own = frozenset(positive[index] for index in drawn).intersection(place)
            outcomes[own] = outcomes.get(own, 0.0) + probability
        for own, probability in outcomes.items():
            chosen = added.clone()
            chosen[list(own)] = True
            yield self.kept(operator, rows, q, chosen), probability

    def count(self, operator: Block, rows: Tensor) -> int:
        """Return the number of outcomes; of sets that can be drawn, where those are too many to list."""
        positive, deciding = self._deciding(operator, rows, self.probabilities(operator, rows))
        size = min(self.nodes, len(positive))
        sets = math.comb(len(positive), size)
        if sets > COUNTED:
            return sets
        free = sum(deciding)
        return sum(math.comb(free, k) for k in range(max(0, size - len(positive) + free), min(size, free) + 1))

    def _deciding(self, operator: Block, rows: Tensor, q: Tensor) -> tuple[list[int], list[bool]]:
        """Return the nodes that can be drawn, and for each whether it matters that it is."""
        _, entry = row_entries(operator, rows)
        matters = torch.zeros_like(q, dtype=torch.bool)
        matters[operator.csr.col[entry].long()] = True
        matters &= ~self.added(operator)
        positive = q.nonzero()[:, 0]
        return positive.tolist(), matters[positive].tolist()


def _messages_of(operator: Block, rows: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return position in the rows, entry, and source of the messages from a mask of nodes."""
    position, entry = row_entries(operator, rows)
    source = operator.csr.col[entry].long()
    inside = chosen[source]
    return position[inside], entry[inside], source[inside]


class _Normalised(DistinctLaw):
    """Messages are weighted by ``1 / q_j``, and every row is divided by its sum."""

    def kept(self, operator: Block, rows: Tensor, q: Tensor, chosen: Tensor) -> Kept:
        """Return weights with which the operator's rows sum to 1, or to 0 where nothing is kept."""
        position, entry, source = _messages_of(operator, rows, chosen & (q > 0))
        weight = q[source].reciprocal()
        total = torch.zeros(rows.numel(), dtype=torch.float64, device=rows.device)
        total.index_add_(0, position, operator.csr.value[entry].double() * weight)
        total = total[position]
        return Kept(position, entry, torch.where(total > 0, weight / total, torch.zeros_like(weight)))

    def largest_scale(self, operator: Block) -> Tensor:
        """Return ``1 / A_ij``: the entry alone in its row; 1 where the message is zero and no weight matters."""
        return inverse_of(operator.csr.value.double())


@dataclass(frozen=True)
class NormalisedFastLaw(_Normalised):
    """FastGCN in the code of LADIES: q from the squared norms of the whole operator's columns."""

    nodes: int

    def probabilities(self, operator: Block, rows: Tensor) -> Tensor:
        """Return ``||A[:, j]||^2`` over their sum, whatever the rows."""
        return FastLaw(self.nodes).probabilities(operator, rows)


@dataclass(frozen=True, eq=False)
class NormalisedLadiesLaw(_Normalised):
    """LADIES in its code: q from the columns within the rows; the batch's nodes are added to those drawn.

    Attributes:
        nodes: sources that are drawn.
        batch: the batch's nodes, int64 [batch]; None before a batch is drawn.
    """

    nodes: int
    batch: Tensor | None = field(default=None, repr=False)

    def for_batch(self, nodes: Tensor) -> NormalisedLadiesLaw:
        """Return the distribution given the batch."""
        return replace(self, batch=nodes)

    def added(self, operator: Block) -> Tensor:
        """Return the batch's nodes."""
        inside = super().added(operator)
        if self.batch is not None:
            inside[self.batch.to(inside.device)] = True
        return inside

    def probabilities(self, operator: Block, rows: Tensor) -> Tensor:
        """Return ``||A[R, j]||^2`` over their sum."""
        return LadiesLaw(self.nodes).probabilities(operator, rows)


@dataclass(frozen=True)
class SourcesLaw(DistinctLaw):
    """FastGCN in its authors' code: sources of the rows alone, weights ``1 / (t q_j)``, rows as they come out."""

    nodes: int

    def probabilities(self, operator: Block, rows: Tensor) -> Tensor:
        """Return ``||A[:, j]||`` over the sum of all nodes' norms, at the rows' sources."""
        _, entry = row_entries(operator, rows)
        q = self._whole(operator)
        out = torch.zeros_like(q)
        sources = operator.csr.col[entry[operator.csr.value[entry] != 0]].long()
        out[sources] = q[sources]
        return out

    def kept(self, operator: Block, rows: Tensor, q: Tensor, chosen: Tensor) -> Kept:
        """Return the weights ``1 / (t q_j)``, also where fewer than t are drawn."""
        position, entry, source = _messages_of(operator, rows, chosen)
        return Kept(position, entry, (self.nodes * q[source]).reciprocal())

    def largest_scale(self, operator: Block) -> Tensor:
        """Return ``1 / (t q_j)``."""
        return inverse_of(self.nodes * self._whole(operator)[operator.csr.col.long()])

    def _whole(self, operator: Block) -> Tensor:
        return normalised(column_squares(operator).sqrt())


@dataclass(frozen=True)
class _Published(LayerWise):
    """What the published layer-wise samplers share."""

    def sampling(self, problem: Problem, state: History, design: BatchDesign) -> BatchDesign:
        """Return batches of the design with nodes drawn for every layer.

        Raises:
            InvalidInputError: rows are divided by their sums, and some message has a negative weight.
        """
        laws = self._laws(by_layer("nodes", self.nodes, problem.num_layers))
        if any(isinstance(law, _Normalised) for law in laws):
            _require_positive_messages(self.name, problem)
        return SampledDesign(design, problem, laws)

    @abstractmethod
    def _laws(self, sizes: Sequence[int]) -> tuple[LayerLaw, ...]:
        """Return the layers' distributions, layer 1 first."""

    def departure(self, problem: Problem, design: BatchDesign) -> Departure:
        """Return that weights are no inverse probabilities; for certain where rows of the operator sum to more than 1.

        A row of a sampled operator sums to 1 or to 0, and so does its mean to at most 1.
        """
        assert isinstance(design, SampledDesign)
        reason = "nodes are drawn without replacement, and weighted as if they were not"
        if not isinstance(design.laws[-1], _Normalised):
            return Departure(reason, certain=False)
        csr = problem.graph.operator(problem.model.layer(problem.num_layers).operator).csr
        rows = torch.zeros(csr.num_rows, dtype=torch.float64, device=csr.value.device)
        rows.index_add_(0, csr.row, csr.value.double())
        drawn = rows[design.inclusion_probabilities().to(rows.device) > 0]
        return Departure(
            "every row is divided by its sum after sampling, with nodes drawn without replacement",
            certain=bool((drawn > 1 + EXCESS).any()),
        )


def _require_positive_messages(name: str, problem: Problem) -> None:
    for index in range(1, problem.num_layers + 1):
        value = problem.graph.operator(problem.model.layer(index).operator).csr.value
        if bool((value < 0).any()):
            raise InvalidInputError(
                f"layer {index} has a message of weight {float(value.min()):.3g}, and {name!r} divides every row by "
                "its sum, which negative weights can make zero; use non-negative edge weights, or 'fastgcn' or 'ladies'"
            )


@dataclass(frozen=True)
class FastGCNPublished(_Published):
    """FastGCN as in public code, where it is biased; for FastGCN with its paper's weights see `FastGCN`.

    Attributes:
        nodes: nodes drawn per layer, without replacement; one number, or one per layer, layer 1 first.
        code: ``"ladies"``: as in the code of LADIES, rows normalised; ``"fastgcn"``: as in its authors' own, where the
            number for layer 1 is not used if there are more layers, because that layer keeps every message.

    Raises:
        InvalidInputError: a number of nodes below 1.
        UnknownNameError: unknown code.
    """

    name: ClassVar[str] = "fastgcn-published"
    code: str = "ladies"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.code not in CODES:
            raise UnknownNameError("code", self.code, CODES)

    def _laws(self, sizes: Sequence[int]) -> tuple[LayerLaw, ...]:
        if self.code == "ladies":
            return tuple(NormalisedFastLaw(size) for size in sizes)
        sampled = tuple(SourcesLaw(size) for size in sizes)
        return (NeighbourLaw(ALL), *sampled[1:]) if len(sizes) > 1 else sampled


ALL = 2**31 - 1
"""A fan-out that keeps every message."""


@dataclass(frozen=True)
class LADIESPublished(_Published):
    """LADIES as in its public code, where it is biased; for LADIES with its paper's weights see `LADIES`.

    Attributes:
        nodes: nodes drawn per layer, without replacement; one number, or one per layer, layer 1 first. The batch's own
            nodes are added to every layer's.
    """

    name: ClassVar[str] = "ladies-published"

    def _laws(self, sizes: Sequence[int]) -> tuple[LayerLaw, ...]:
        return tuple(NormalisedLadiesLaw(size) for size in sizes)
