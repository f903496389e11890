"""A batch design together with the samples of an estimator that has randomness of its own."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from lmc_verify.estimators.base import unwrapped
from lmc_verify.estimators.samplers.laws import COUNTED, Kept, LayerLaw, device_generator, row_entries
from lmc_verify.graphs import AnyGenerator, Batch, BatchDesign, Block, LayerSample, Partition, Sample
from lmc_verify.models import ConvLayer, Layer
from lmc_verify.objective import Problem
from lmc_verify.seeds import as_generator

__all__ = ["SampledDesign", "layer_sample", "reads_target"]


def reads_target(layer: Layer) -> bool:
    """Whether a layer's row depends on the same node's row below, other than by messages; True if that is unknown."""
    return layer.residual or layer.conv.reads_target if isinstance(layer, ConvLayer) else True


def layer_sample(layer: Layer, operator: Block, rows: Tensor, kept: Kept) -> LayerSample:
    """Return the sample of one layer with the columns that it needs."""
    sources = operator.csr.col[kept.entry].long()
    needed = torch.cat([sources, rows]) if reads_target(layer) else sources
    columns: Tensor = torch.unique(needed)
    return LayerSample(
        rows, columns, kept.position, torch.searchsorted(columns, sources), kept.entry, kept.scale.to(torch.float64)
    )


def _weights(batch: Batch) -> Tensor | None:
    """Return the weights that the base design gives the batch's rows, if any."""
    return None if batch.sample is None else batch.sample.weights


@dataclass(frozen=True, eq=False)
class SampledDesign:
    """A batch design whose batches also carry a sample, drawn from one distribution per layer.

    Attributes:
        base: the design of the batches themselves.
        problem: gives the graph and what each layer reads.
        laws: distributions of the layers' samples, layer 1 first; given the batch and the rows that each needs, the
            samples are independent.
    """

    carries_samples: ClassVar[bool] = True
    base: BatchDesign
    problem: Problem
    laws: tuple[LayerLaw, ...]
    _cache: dict[str, int] = field(default_factory=dict, repr=False)

    @property
    def partition(self) -> Partition | None:
        """The clusters that the base design draws from, or None."""
        partition = getattr(unwrapped(self.base), "partition", None)
        return partition if isinstance(partition, Partition) else None

    def inclusion_probabilities(self) -> Tensor:
        """Return the base design's inclusion probabilities, float64 [n]."""
        return self.base.inclusion_probabilities()

    def draw(self, generator: AnyGenerator) -> Batch:
        """Draw a batch and a sample for it."""
        rng = as_generator(generator)
        batch = self.base.draw(rng)
        source = device_generator(rng, self.problem.graph.device)
        rows, layers = batch.nodes.to(self.problem.graph.device), []
        laws = self._given(rows)
        for index in range(self.problem.num_layers, 0, -1):
            layer, operator = self._layer(index)
            layers.append(layer_sample(layer, operator, rows, laws[index - 1].draw(operator, rows, source)))
            rows = layers[-1].columns
        return replace(batch, sample=Sample(tuple(reversed(layers)), _weights(batch)))

    def enumerate(self) -> Iterator[tuple[Batch, float]]:
        """Yield every batch with every sample and the probability of both."""
        for batch, probability in self.base.enumerate():
            rows = batch.nodes.to(self.problem.graph.device)
            for layers, share in self._below(self._given(rows), self.problem.num_layers, rows):
                yield replace(batch, sample=Sample(layers, _weights(batch))), probability * share

    @property
    def support_size(self) -> float:
        """Number of distinct batches with samples: exact up to 100,000; a large number where it is larger."""
        if self.base.support_size == math.inf:
            return math.inf
        if "size" not in self._cache:
            self._cache["size"] = self._size()
        return self._cache["size"]

    def _layer(self, index: int) -> tuple[Layer, Block]:
        layer = self.problem.model.layer(index)
        return layer, self.problem.graph.operator(layer.operator)

    def _given(self, batch: Tensor) -> tuple[LayerLaw, ...]:
        """Return the layers' distributions given the batch."""
        return tuple(law.for_batch(batch) for law in self.laws)

    def _below(
        self, laws: tuple[LayerLaw, ...], index: int, rows: Tensor
    ) -> Iterator[tuple[tuple[LayerSample, ...], float]]:
        """Yield every sample of layers 1 ... index for the rows of layer index."""
        if index == 0:
            yield (), 1.0
            return
        layer, operator = self._layer(index)
        for kept, probability in laws[index - 1].enumerate(operator, rows):
            own = layer_sample(layer, operator, rows, kept)
            for layers, share in self._below(laws, index - 1, own.columns):
                yield (*layers, own), probability * share

    def _size(self) -> int:
        graph = self.problem.graph
        everything = torch.arange(graph.num_nodes, device=graph.device)
        total, shared = 0, dict[tuple[int, tuple[int, ...]], int]()
        if self.base.support_size <= COUNTED:
            for batch, _ in self.base.enumerate():
                rows = batch.nodes.to(graph.device)
                laws = self._given(rows)
                same = all(law is own for law, own in zip(laws, self.laws, strict=True))
                # What was counted for some rows holds for other batches, unless the batch matters.
                counted = self._count(laws, self.problem.num_layers, rows, shared if same else {})
                if counted is None or total + counted > COUNTED:
                    break
                total += counted
            else:
                return total
        return max(COUNTED + 1, int(self.base.support_size) * self._bound(everything))

    def _count(
        self, laws: tuple[LayerLaw, ...], index: int, rows: Tensor, known: dict[tuple[int, tuple[int, ...]], int]
    ) -> int | None:
        """Return the number of samples of layers 1 ... index, None if it is above `COUNTED`."""
        if index == 0:
            return 1
        key = (index, tuple(rows.tolist()))
        if key in known:
            return known[key]
        layer, operator = self._layer(index)
        law, total = laws[index - 1], 0
        if index == 1 or law.count(operator, rows) > COUNTED:
            total = law.count(operator, rows)
        else:
            for kept, _ in law.enumerate(operator, rows):
                below = self._count(laws, index - 1, layer_sample(layer, operator, rows, kept).columns, known)
                if below is None or total + below > COUNTED:
                    return None
                total += below
        if total > COUNTED:
            return None
        known[key] = total
        return total

    def _bound(self, rows: Tensor) -> int:
        """Return the number of samples if every source of the rows were needed below: in most cases an upper bound."""
        bound = 1
        for index in range(self.problem.num_layers, 0, -1):
            _, operator = self._layer(index)
            bound *= self.laws[index - 1].count(operator, rows)
            _, entries = row_entries(operator, rows)
            rows = torch.unique(torch.cat([rows, operator.csr.col[entries].long()]))
        return bound
