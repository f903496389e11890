"""Batch designs: probability distributions over batches of nodes.

A design can draw a batch, enumerate its support with probabilities, and state every node's inclusion probability
``pi_j``. The Horvitz-Thompson weight of node j is ``1 / pi_j``: a sum over the batch of ``1 / pi_j`` times node
contributions is unbiased for the sum over all nodes, whatever the design.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from lmc_verify.errors import InvalidInputError, listed, require_kind, require_whole
from lmc_verify.graphs.batch import MOST_NODES, Batch
from lmc_verify.graphs.loaders import BatchList, Inclusion, LoaderDesign, NodesOf, design_of_loader
from lmc_verify.graphs.partition import Partition
from lmc_verify.seeds import as_generator, require_seed

__all__ = ["BatchDesign", "Clusters", "EpochClusters", "FusedClusters", "OneBatch", "UniformNodes"]

AnyGenerator = np.random.Generator | torch.Generator
"""What a design draws batches with."""


class _OfLoaders(type(Protocol)):  # type: ignore[misc]  # Protocol's metaclass has no public name
    """What can be asked of the class of designs itself; as a member of the protocol every design would need it."""

    def from_loader(
        cls,
        loader: Iterable[Any],
        *,
        num_nodes: int | None = None,
        nodes: NodesOf | None = None,
        inclusion: Inclusion | None = None,
    ) -> BatchList | LoaderDesign:
        """Return the design of a loader's batches; see `lmc_verify.graphs.loaders.design_of_loader`."""
        return design_of_loader(loader, num_nodes=num_nodes, nodes=nodes, inclusion=inclusion)


@runtime_checkable
class BatchDesign(Protocol, metaclass=_OfLoaders):
    """A probability distribution over batches. A user's own design needs these four members.

    ``BatchDesign.from_loader(loader)`` makes one of a list of batches, or of a loader such as PyTorch Geometric's; see
    `lmc_verify.graphs.loaders.design_of_loader` for its arguments.
    """

    @property
    def support_size(self) -> float:
        """Number of distinct batches; ``math.inf`` where they cannot be enumerated."""

    def draw(self, generator: AnyGenerator) -> Batch:
        """Draw one batch."""

    def enumerate(self) -> Iterator[tuple[Batch, float]]:
        """Yield every batch of the support with its probability; the probabilities sum to one.

        It is not called where `support_size` is infinite.
        """

    def inclusion_probabilities(self) -> Tensor:
        """Return the probability of each node to be in a batch, float64 [n]."""


_KEPT_NODES = 1_000_000
"""If batches x nodes is at most this, a design gives the same objects again, so that graphs can keep their blocks."""


class _ClusterDesign:
    """What designs over whole clusters share: building a batch from cluster ids."""

    partition: Partition

    @property
    @abstractmethod
    def support_size(self) -> int:
        """Number of distinct batches."""

    @cached_property
    def _kept(self) -> dict[tuple[int, ...], Batch] | None:
        return {} if self.support_size * self.partition.num_nodes <= _KEPT_NODES else None

    def _batch(self, clusters: Sequence[int], inclusion: float) -> Batch:
        chosen = tuple(int(index) for index in clusters)
        if self._kept is not None and chosen in self._kept:
            return self._kept[chosen]
        batch = Batch.of(torch.cat([self.partition.clusters[index] for index in chosen]), inclusion, chosen)
        if self._kept is not None:
            self._kept[chosen] = batch
        return batch


@dataclass(frozen=True)
class Clusters(_ClusterDesign):
    """`per_batch` of the partition's clusters, uniformly without replacement, independently at every draw.

    ``pi = c / b``; the design of Theorem 1 [LMC].
    """

    partition: Partition
    per_batch: int = 1

    def __post_init__(self) -> None:
        require_kind("partition", self.partition, Partition)
        _check_size("per_batch", self.per_batch, self.partition.num_parts, "clusters of the partition")

    @property
    def support_size(self) -> int:
        """``b`` choose ``c``."""
        return math.comb(self.partition.num_parts, self.per_batch)

    def draw(self, generator: AnyGenerator) -> Batch:
        """Draw `per_batch` clusters."""
        chosen = as_generator(generator).choice(self.partition.num_parts, size=self.per_batch, replace=False)
        return self._batch(sorted(chosen.tolist()), self._inclusion)

    def enumerate(self) -> Iterator[tuple[Batch, float]]:
        """Yield every combination of clusters."""
        probability = 1.0 / self.support_size
        for chosen in combinations(range(self.partition.num_parts), self.per_batch):
            yield self._batch(chosen, self._inclusion), probability

    def inclusion_probabilities(self) -> Tensor:
        """``c / b`` for every node."""
        return torch.full((self.partition.num_nodes,), self._inclusion, dtype=torch.float64)

    @property
    def _inclusion(self) -> float:
        return self.per_batch / self.partition.num_parts


@dataclass(frozen=True)
class UniformNodes:
    """`size` of `num_nodes` nodes, uniformly without replacement; ``pi = s / n``."""

    num_nodes: int
    size: int

    def __post_init__(self) -> None:
        _check_size("num_nodes", self.num_nodes, MOST_NODES, "nodes that anything is made for")
        _check_size("size", self.size, self.num_nodes, "nodes of the graph")

    @property
    def support_size(self) -> int:
        """``n`` choose ``s``."""
        return math.comb(self.num_nodes, self.size)

    def draw(self, generator: AnyGenerator) -> Batch:
        """Draw `size` nodes."""
        chosen = as_generator(generator).choice(self.num_nodes, size=self.size, replace=False)
        return Batch.of(torch.from_numpy(chosen), self.size / self.num_nodes)

    def enumerate(self) -> Iterator[tuple[Batch, float]]:
        """Yield every subset of `size` nodes."""
        probability = 1.0 / self.support_size
        for chosen in combinations(range(self.num_nodes), self.size):
            yield Batch.of(chosen, self.size / self.num_nodes), probability

    def inclusion_probabilities(self) -> Tensor:
        """``s / n`` for every node."""
        return torch.full((self.num_nodes,), self.size / self.num_nodes, dtype=torch.float64)


@dataclass(frozen=True)
class EpochClusters(_ClusterDesign):
    """Epoch shuffling: clusters are shuffled once per epoch and taken `per_batch` at a time, each exactly once.

    As a distribution of one batch at a random position of an epoch it is uniform, ``pi = 1 / batches``. Given the
    batches already seen in the epoch it is not: `after` conditions on them, and keeps the marginal inclusion
    probabilities that practitioners use. The last batch of an epoch is smaller when `per_batch` does not divide the
    clusters.

    Attributes:
        partition: the clusters.
        per_batch: clusters in each batch.
        seen: clusters already visited in this epoch.
    """

    partition: Partition
    per_batch: int = 1
    seen: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        require_kind("partition", self.partition, Partition)
        _check_size("per_batch", self.per_batch, self.partition.num_parts, "clusters of the partition")
        for cluster in listed("seen", self.seen):
            require_whole("a cluster in seen", cluster)
        bad = sorted(set(self.seen) - set(range(self.partition.num_parts)))
        if bad or len(set(self.seen)) != len(self.seen):
            raise InvalidInputError(
                f"seen={self.seen} must be distinct clusters between 0 and {self.partition.num_parts - 1}"
            )
        if len(self.seen) >= self.partition.num_parts or len(self.seen) % self.per_batch:
            raise InvalidInputError(
                f"{len(self.seen)} of {self.partition.num_parts} clusters were seen with {self.per_batch} per batch: "
                "give whole batches, and leave at least one cluster for the next"
            )

    @property
    def batches_per_epoch(self) -> int:
        """Number of batches in a whole epoch."""
        return -(-self.partition.num_parts // self.per_batch)

    def after(self, *clusters: int) -> EpochClusters:
        """Return the distribution of the next batch, given that these further clusters were visited in this epoch."""
        return EpochClusters(self.partition, self.per_batch, (*self.seen, *clusters))

    @cached_property
    def _remaining(self) -> tuple[int, ...]:
        return tuple(index for index in range(self.partition.num_parts) if index not in self.seen)

    @cached_property
    def _sizes(self) -> tuple[tuple[int, float], ...]:
        """Sizes a batch can have (in clusters), with probabilities."""
        full, rest = divmod(len(self._remaining), self.per_batch)
        if self.seen:  # the next batch: full while enough clusters are left
            return ((self.per_batch, 1.0),) if full else ((rest, 1.0),)
        total = full + bool(rest)
        sizes: list[tuple[int, float]] = [(self.per_batch, full / total)]
        if rest:
            sizes.append((rest, 1 / total))
        return tuple(sizes)

    @property
    def support_size(self) -> int:
        """Number of distinct batches."""
        return sum(math.comb(len(self._remaining), size) for size, _ in self._sizes)

    def draw(self, generator: AnyGenerator) -> Batch:
        """Draw a batch at a uniformly random position of an epoch (given `seen`: the next batch)."""
        rng = as_generator(generator)
        sizes = [size for size, _ in self._sizes]
        size = int(rng.choice(sizes, p=[probability for _, probability in self._sizes]))
        chosen = np.sort(rng.choice(np.array(self._remaining), size=size, replace=False))
        return self._batch(chosen.tolist(), 1 / self.batches_per_epoch)

    def epoch(self, generator: AnyGenerator) -> Iterator[Batch]:
        """Yield the batches of one epoch (given `seen`: those that are left)."""
        order = as_generator(generator).permutation(np.array(self._remaining))
        for start in range(0, len(order), self.per_batch):
            chosen = np.sort(order[start : start + self.per_batch])
            yield self._batch(chosen.tolist(), 1 / self.batches_per_epoch)

    def enumerate(self) -> Iterator[tuple[Batch, float]]:
        """Yield every batch that can occur, with its probability."""
        for size, probability in self._sizes:
            number = math.comb(len(self._remaining), size)
            for chosen in combinations(self._remaining, size):
                yield self._batch(chosen, 1 / self.batches_per_epoch), probability / number

    def inclusion_probabilities(self) -> Tensor:
        """``1 / batches`` for every node: the marginal distribution, also when `seen` is given (see the class)."""
        return torch.full((self.partition.num_nodes,), 1 / self.batches_per_epoch, dtype=torch.float64)


@dataclass(frozen=True)
class FusedClusters(_ClusterDesign):
    """Clusters fused once into fixed batches of `per_batch`; one of those batches is drawn uniformly.

    This is how the published LMC code forms its batches. ``pi = 1 / batches``.
    """

    partition: Partition
    per_batch: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        require_kind("partition", self.partition, Partition)
        _check_size("per_batch", self.per_batch, self.partition.num_parts, "clusters of the partition")
        require_seed(self.seed)

    @cached_property
    def groups(self) -> Partition:
        """The fused partition: one cluster a batch."""
        return self.partition.fused(self.per_batch, seed=self.seed)

    @cached_property
    def _uniform(self) -> Clusters:
        return Clusters(self.groups, 1)

    @property
    def support_size(self) -> int:
        """Number of fixed batches."""
        return self.groups.num_parts

    def draw(self, generator: AnyGenerator) -> Batch:
        """Draw one of the fixed batches."""
        return self._uniform.draw(generator)

    def enumerate(self) -> Iterator[tuple[Batch, float]]:
        """Yield every fixed batch."""
        return self._uniform.enumerate()

    def inclusion_probabilities(self) -> Tensor:
        """``1 / batches`` for every node."""
        return self._uniform.inclusion_probabilities()


@dataclass(frozen=True, eq=False)
class OneBatch:
    """Always the same batch: the design of a sweep's step, to which an estimator adds its samples.

    Attributes:
        batch: the batch.
        num_nodes: nodes of the graph.
    """

    batch: Batch
    num_nodes: int

    @property
    def support_size(self) -> int:
        """One."""
        return 1

    def draw(self, generator: AnyGenerator) -> Batch:
        """Return the batch."""
        return self.batch

    def enumerate(self) -> Iterator[tuple[Batch, float]]:
        """Yield the batch."""
        yield self.batch, 1.0

    def inclusion_probabilities(self) -> Tensor:
        """Return 1 at the batch's nodes and 0 elsewhere."""
        inside = torch.zeros(self.num_nodes, dtype=torch.float64)
        inside[self.batch.nodes] = 1.0
        return inside


def _check_size(name: str, value: int, limit: int, what: str) -> None:
    require_whole(name, value)
    if not 1 <= value <= limit:
        less = "fewer" if value > limit else "at least one"
        raise InvalidInputError(f"{name} is {value}, it must be between 1 and the {limit} {what}; ask for {less}")
