"""Batch designs made of a user's loader: any iterable of batches that can be gone through again.

Whoever claims something about a loop asks about the batches that its loader draws. A list of batches is a finite
design: each is drawn with the same probability. Of any other loader one pass is an epoch; a draw is the batch at a
uniformly random place of a pass, which is gone through up to there, and nothing needs to be listed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lmc_verify.arguments import typed
from lmc_verify.errors import ContractError, InvalidInputError
from lmc_verify.graphs.batch import MOST_NODES, Batch, named_nodes
from lmc_verify.seeds import as_generator
from lmc_verify.steps.generators import forked_generators

__all__ = ["BatchList", "Inclusion", "LoaderDesign", "NodesOf", "design_of_loader"]

AnyGenerator = np.random.Generator | torch.Generator
NodesOf = Callable[[Any], Tensor]
Inclusion = float | Tensor | Callable[[Tensor], Tensor]

LOOKED_AT = 2
"""Passes that are gone through, with other seeds, to see whether each holds every node once."""


@typed(besides=("loader",))
def design_of_loader(
    loader: Iterable[Any],
    *,
    num_nodes: int | None = None,
    nodes: NodesOf | None = None,
    inclusion: Inclusion | None = None,
) -> BatchList | LoaderDesign:
    """Return the design of a loader's batches, each of which carries what the loader gave as its payload.

    Args:
        loader: a sequence of batches, each as likely as the others; or an iterable such as PyTorch Geometric's
            ``RandomNodeLoader``, one pass through which is an epoch. Its randomness must come from the global
            generators of torch, NumPy or Python, or from its own ``generator``: a draw seeds them, and puts them back.
        num_nodes: nodes of the graph; by default those of ``loader.data``, or as many as `inclusion` has values.
        nodes: gives a batch's node ids, int64 [size], distinct; by default its ``n_id``, of which the first
            ``batch_size`` count where the batch has that (seed nodes come first in ``NeighborLoader``'s batches).
        inclusion: the probability of each node to be in a batch: one number, a tensor [n], or a function of node ids.
            By default it is known of a list; of other loaders it is 1 / (batches in a pass) if every pass holds every
            node exactly once, which is looked at in two passes and in every pass that is gone through later.

    Raises:
        InvalidInputError: no batches, or an iterator; node ids or the number of nodes are not known; or inclusion
            probabilities are neither given nor known.
    """
    if isinstance(loader, Iterator):
        raise InvalidInputError(
            f"loader is a {type(loader).__name__}, which can be gone through once; give the loader itself, or a list"
        )
    if not isinstance(loader, Iterable):
        raise InvalidInputError(f"loader is a {type(loader).__name__}; it must be an iterable of batches")
    count = _stated_nodes(loader, inclusion) if num_nodes is None else num_nodes
    read = nodes_of if nodes is None else nodes
    if isinstance(loader, Sequence):
        return BatchList(loader, count, nodes=read, inclusion=inclusion)
    return LoaderDesign(loader, count, nodes=read, inclusion=inclusion)


def _stated_nodes(loader: Any, inclusion: Inclusion | None) -> int:
    if isinstance(inclusion, Tensor) and inclusion.dim() == 1:
        return inclusion.numel()
    stated = getattr(getattr(loader, "data", None), "num_nodes", None)
    if not isinstance(stated, int):
        raise InvalidInputError("the loader does not say how many nodes the graph has; give num_nodes=")
    return stated


def nodes_of(batch: Any) -> Tensor:
    """Return a batch's own nodes, int64: its ``n_id``, or the first ``batch_size`` of them.

    Raises:
        InvalidInputError: it has no ``n_id``.
    """
    found = getattr(batch, "n_id", None)
    if not isinstance(found, Tensor):
        raise InvalidInputError(
            f"a batch of the loader is a {type(batch).__name__} without n_id, so its nodes are not known; set "
            "data.n_id = torch.arange(data.num_nodes) before the loader is made, or give nodes=lambda batch: ..."
        )
    seeds = getattr(batch, "batch_size", None)
    own: Tensor = found[:seeds] if isinstance(seeds, int) else found
    return own


class _Payloads:
    """What both designs share: making batches of what the loader gives, and inclusion probabilities.

    Attributes:
        num_nodes: nodes of the graph.
    """

    def __init__(self, num_nodes: int, nodes: NodesOf) -> None:
        if not 1 <= num_nodes <= MOST_NODES:
            raise InvalidInputError(f"num_nodes is {num_nodes}, it must be between 1 and {MOST_NODES:,}")
        self.num_nodes, self._nodes = num_nodes, nodes
        self._inclusion = torch.zeros(0, dtype=torch.float64)

    def inclusion_probabilities(self) -> Tensor:
        """Return the probability of each node to be in a batch, float64 [n]."""
        return self._inclusion.clone()

    def _ids(self, payload: Any) -> Tensor:
        ids: Any = self._nodes(payload)
        if not isinstance(ids, Tensor) or ids.dim() != 1 or ids.is_floating_point() or not ids.numel():
            shape = f"{ids.dtype} {list(ids.shape)}" if isinstance(ids, Tensor) else type(ids).__name__
            raise InvalidInputError(f"the nodes of a batch are {shape}; they are int64 node ids [size], at least one")
        own: Tensor = ids.long().cpu()
        if int(own.min()) < 0 or int(own.max()) >= self.num_nodes:
            raise InvalidInputError(
                f"a batch holds the node {int(own.max() if int(own.min()) >= 0 else own.min())}, the graph has nodes "
                f"0 ... {self.num_nodes - 1}; set num_nodes, or give ids of the whole graph by nodes="
            )
        return own

    def _batch(self, payload: Any) -> Batch:
        ids = self._ids(payload)
        share = self._inclusion[ids]
        if bool((share <= 0).any()):
            raise ContractError(
                f"the loader gave the batch {named_nodes(ids)}, whose node {int(ids[share <= 0][0])} has the inclusion "
                "probability 0; give the probabilities of this loader by inclusion="
            )
        return Batch.of(ids, share, payload=payload)

    def _given(self, inclusion: Inclusion) -> Tensor:
        every = torch.arange(self.num_nodes)
        found: Any = inclusion(every) if callable(inclusion) else inclusion
        values = torch.as_tensor(found, dtype=torch.float64).cpu()
        values = values.expand(self.num_nodes) if values.dim() == 0 else values
        if values.shape != (self.num_nodes,) or not bool(((values >= 0) & (values <= 1)).all()):
            raise InvalidInputError(
                f"inclusion is {list(values.shape)} with values from {float(values.min())} to {float(values.max())}; "
                f"it must hold a probability for each of the {self.num_nodes} nodes"
            )
        return values.clone()


class BatchList(_Payloads):
    """Batches in a list, of which one is drawn uniformly; see `design_of_loader`."""

    def __init__(
        self, batches: Sequence[Any], num_nodes: int, *, nodes: NodesOf = nodes_of, inclusion: Inclusion | None = None
    ) -> None:
        super().__init__(num_nodes, nodes)
        if not len(batches):
            raise InvalidInputError("the list has no batch; give at least one")
        counts = torch.zeros(num_nodes, dtype=torch.float64)
        for payload in batches:
            counts[self._ids(payload)] += 1
        self._inclusion = counts / len(batches) if inclusion is None else self._given(inclusion)
        self._batches = [self._batch(payload) for payload in batches]

    @property
    def support_size(self) -> int:
        """Number of batches."""
        return len(self._batches)

    def draw(self, generator: AnyGenerator) -> Batch:
        """Draw one of the batches."""
        return self._batches[int(as_generator(generator).integers(len(self._batches)))]

    def enumerate(self) -> Iterator[tuple[Batch, float]]:
        """Yield every batch."""
        for batch in self._batches:
            yield batch, 1 / len(self._batches)


class LoaderDesign(_Payloads):
    """Batches of a loader, which cannot be enumerated; see `design_of_loader`.

    Draws are independent: each goes through a pass of its own, half an epoch on average. Training runs go through whole
    epochs.

    Attributes:
        batches_per_epoch: batches in one pass.
        partitions: whether inclusion probabilities rest on every pass holding every node once.
    """

    support_size = math.inf

    def __init__(
        self, loader: Iterable[Any], num_nodes: int, *, nodes: NodesOf = nodes_of, inclusion: Inclusion | None = None
    ) -> None:
        super().__init__(num_nodes, nodes)
        self._loader, self.partitions = loader, inclusion is None
        passes = [list(self._pass(seed)) for seed in range(LOOKED_AT)]
        self.batches_per_epoch = len(passes[0])
        if not self.batches_per_epoch:
            raise InvalidInputError("the loader gave no batch; give one that can be gone through again")
        for found in passes:
            self._require_length(len(found))
        if inclusion is None:
            for found in passes:
                self._require_each_once([self._ids(payload) for payload in found])
            self._inclusion = torch.full((num_nodes,), 1 / self.batches_per_epoch, dtype=torch.float64)
        else:
            self._inclusion = self._given(inclusion)

    def draw(self, generator: AnyGenerator) -> Batch:
        """Draw the batch at a uniformly random place of a pass.

        Raises:
            ContractError: the pass is shorter than the first one, or repeats a node that it was to hold once.
        """
        rng = as_generator(generator)
        place, seed = int(rng.integers(self.batches_per_epoch)), int(rng.integers(2**63))
        seen: list[Tensor] = []
        with closing(self._pass(seed)) as found:  # which puts the generators back where the rest is not needed
            for index, payload in enumerate(found):
                seen.append(self._ids(payload))
                if index == place:
                    self._require_no_repetition(seen)
                    return self._batch(payload)
        raise self._other_length(len(seen))

    def epoch(self, generator: AnyGenerator) -> Iterator[Batch]:
        """Yield the batches of one pass.

        Raises:
            ContractError: it has another number of batches than the first one, or does not hold every node once
                where inclusion probabilities rest on that.
        """
        found = list(self._pass(int(as_generator(generator).integers(2**63))))
        self._require_length(len(found))
        if self.partitions:
            self._require_each_once([self._ids(payload) for payload in found])
        yield from map(self._batch, found)

    def enumerate(self) -> Iterator[tuple[Batch, float]]:
        """Refuse: the batches are not known.

        Raises:
            InvalidInputError: always.
        """
        raise InvalidInputError(
            "the batches of a loader cannot be enumerated; check claims from draws, or give a list of batches"
        )

    def _pass(self, seed: int) -> Generator[Any, None, None]:
        """Yield what the loader gives, with its generators seeded until the pass is closed."""
        with forked_generators(seed, "loader"), _own_generators(self._loader, seed):
            yield from self._loader

    def _require_length(self, found: int) -> None:
        if found != self.batches_per_epoch:
            raise self._other_length(found)

    def _other_length(self, found: int) -> ContractError:
        return ContractError(
            f"a pass through the loader gave {found} batches, the first one {self.batches_per_epoch}: a place in it is "
            "then no fixed chance; give a loader whose passes are equally long (drop_last=False, a fixed batch size)"
        )

    def _require_each_once(self, found: list[Tensor]) -> None:
        self._require_no_repetition(found)
        size = sum(ids.numel() for ids in found)
        if size != self.num_nodes:
            raise InvalidInputError(
                f"a pass through the loader holds {size} of {self.num_nodes} nodes: inclusion probabilities are known "
                "only where it holds each once; give inclusion=, a tensor [n] or a function of node ids"
            )

    def _require_no_repetition(self, found: list[Tensor]) -> None:
        if not self.partitions:
            return
        ids, counts = torch.cat(found).unique(return_counts=True)
        if bool((counts > 1).any()):
            raise InvalidInputError(
                f"a pass through the loader holds node {int(ids[counts > 1][0])} {int(counts.max())} times: inclusion "
                "probabilities are known only where it holds each once; give inclusion=, a tensor [n] or a function of "
                "node ids"
            )


@contextmanager
def _own_generators(loader: Any, seed: int) -> Iterator[None]:
    """Seed the ``generator`` of a loader and of its samplers, where they have one, and restore it afterwards."""
    batches = getattr(loader, "batch_sampler", None)
    holders = (loader, getattr(loader, "sampler", None), batches, getattr(batches, "sampler", None))
    found = [getattr(holder, "generator", None) for holder in holders]
    own = {id(item): item for item in found if isinstance(item, torch.Generator)}
    kept = [(item, item.get_state()) for item in own.values()]
    for number, (item, _) in enumerate(kept):
        item.manual_seed((seed + number) % 2**63)
    try:
        yield
    finally:
        for item, state in kept:
            item.set_state(state)
