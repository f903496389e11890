"""Distributions of sampled messages, layer by layer, and the batch design that they make of a user's own.

A `LayerLaw` decides which entries of the operator's rows are kept, and with which weights. `SampledDesign` draws a
batch and then, from the last layer down, a sample for the rows that the layer above needs; or lists all of them.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lmc_verify.graphs import AnyGenerator, Block, Graph
from lmc_verify.seeds import as_generator

__all__ = [
    "Kept",
    "LayerLaw",
    "device_generator",
    "draw_categories",
    "draw_distinct",
    "multinomial_probability",
    "row_entries",
    "senders",
    "successive_probabilities",
]

MULTINOMIAL_CATEGORIES = 2**24
"""`torch.multinomial` takes no more, and graphs may have more edges."""

COUNTED = 100_000
"""Supports are counted one by one up to here; beyond, `SampledDesign.support_size` says about how large they are."""


class Kept(NamedTuple):
    """Entries of some rows that are kept.

    Attributes:
        position: int64 [kept], which of the rows.
        entry: int64 [kept], index into the operator's entries.
        scale: float64 [kept], the factor of the entry.
    """

    position: Tensor
    entry: Tensor
    scale: Tensor


class LayerLaw(ABC):
    """The distribution of one layer's sampled messages, given the rows that the layer above needs."""

    def for_batch(self, nodes: Tensor) -> LayerLaw:
        """Return the distribution given the batch's nodes, int64 [batch]: this one, where they do not matter."""
        return self

    @abstractmethod
    def draw(self, operator: Block, rows: Tensor, generator: torch.Generator) -> Kept:
        """Draw the entries that are kept."""

    @abstractmethod
    def enumerate(self, operator: Block, rows: Tensor) -> Iterator[tuple[Kept, float]]:
        """Yield every outcome with its probability."""

    @abstractmethod
    def count(self, operator: Block, rows: Tensor) -> int:
        """Return the number of outcomes."""

    @abstractmethod
    def largest_scale(self, operator: Block) -> Tensor:
        """Return the largest factor that any outcome, at any rows, gives each entry, float64 [entries]."""


def device_generator(source: AnyGenerator, device: torch.device) -> torch.Generator:
    """Return a generator of the device, seeded by one draw from another."""
    return torch.Generator(device).manual_seed(int(as_generator(source).integers(2**63 - 1)))


def draw_categories(weights: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Draw indices with replacement, in proportion to non-negative weights of which one is positive, int64 [count]."""
    if weights.numel() <= MULTINOMIAL_CATEGORIES:
        return torch.multinomial(weights, count, replacement=True, generator=generator)
    total = weights.cumsum(0)
    number = torch.rand(count, generator=generator, dtype=total.dtype, device=total.device) * total[-1]
    # The first index whose cumulated weight is larger: never one of weight zero.
    return torch.searchsorted(total, number, right=True).clamp(max=int(weights.nonzero()[-1]))


def draw_distinct(weights: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Draw different indices one after another, each in proportion to the weights of those that are left.

    The indices of the least of independent exponential times with the weights as rates: the first one is drawn in
    proportion to the weights, and by lack of memory so is each that follows.

    Args:
        weights: non-negative, float64 [n].
        count: how many; all with a positive weight where those are fewer.
        generator: of the weights' device.

    Returns:
        int64 [min(count, positive weights)], ascending.
    """
    positive = weights.nonzero()[:, 0]
    time = torch.empty(positive.numel(), dtype=torch.float64, device=weights.device).exponential_(generator=generator)
    first = torch.topk(time / weights[positive], min(count, positive.numel()), largest=False).indices
    drawn: Tensor = positive[first].sort().values
    return drawn


def successive_probabilities(weights: Sequence[float], count: int) -> Iterator[tuple[frozenset[int], float]]:
    """Yield every set of `count` indices with the probability that `draw_distinct` gives it.

    A set's probability is the sum over its last member of that of the others, times the member's weight among those
    that are left: no order of draws is listed.
    """
    sets: dict[frozenset[int], float] = {frozenset(): 1.0}
    for _ in range(count):
        larger: dict[frozenset[int], float] = {}
        for drawn, probability in sets.items():
            left = [index for index in range(len(weights)) if index not in drawn]
            total = math.fsum(weights[index] for index in left)
            for index in left:
                key = drawn | {index}
                larger[key] = larger.get(key, 0.0) + probability * weights[index] / total
        sets = larger
    yield from sets.items()


def multinomial_probability(chances: Sequence[float], times: Sequence[int]) -> float:
    """Return the probability that independent draws give every category so many times."""
    left, probability = sum(times), 1.0
    if left > 1000:  # beyond, binomial coefficients are no finite floats
        logarithm = math.lgamma(left + 1)
        for chance, count in zip(chances, times, strict=True):
            logarithm += count * math.log(chance) - math.lgamma(count + 1) if count else 0.0
        return math.exp(logarithm)
    for chance, count in zip(chances, times, strict=True):
        probability *= math.comb(left, count) * chance**count
        left -= count
    return probability


def row_entries(operator: Block, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return (position in `rows`, entry of the operator) of every entry of the rows, row by row."""
    start = operator.csr.rowptr[rows].long()
    counts = operator.csr.rowptr[rows + 1].long() - start
    total = int(counts.sum())
    position = torch.arange(rows.numel(), device=rows.device).repeat_interleave(counts, output_size=total)
    first = counts.cumsum(0) - counts
    return position, torch.arange(total, device=rows.device) + (start - first)[position]


def senders(graph: Graph, nodes: Tensor) -> Tensor:
    """Return the nodes outside of `nodes` that send one of them a message, ascending; all operators have the same."""
    operator = graph.operator("sum")
    _, entry = row_entries(operator, nodes)
    sources: Tensor = torch.unique(operator.csr.col[entry].long())
    return sources[~torch.isin(sources, nodes)]
