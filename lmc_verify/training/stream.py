"""The batches of a training run: independent draws, or whole epochs without replacement where the design has them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from lmc_verify.graphs import Batch, BatchDesign, EpochClusters

__all__ = ["BatchStream", "steps_per_epoch", "whole_distribution"]


def whole_distribution(design: BatchDesign) -> BatchDesign:
    """Return a design's distribution at the start of an epoch: without the clusters that it was told were visited."""
    return replace(design, seen=()) if isinstance(design, EpochClusters) and design.seen else design


def steps_per_epoch(design: BatchDesign) -> int:
    """Return the number of steps in which a node is met once on average."""
    batches = getattr(design, "batches_per_epoch", None)
    if batches is not None:
        return int(batches)
    inclusion = design.inclusion_probabilities()
    return max(1, round(inclusion.numel() / math.fsum(inclusion.tolist())))


class BatchStream:
    """Batches one after the other, from a generator of its own.

    A design with a method ``epoch(generator)`` (see `lmc_verify.EpochClusters`) gives whole epochs, any other
    independent draws. A first epoch of which some clusters were already seen is shorter.

    Args:
        design: the distribution of batches.
        generator: of the batches; the stream's own from here on.
    """

    def __init__(self, design: BatchDesign, generator: np.random.Generator) -> None:
        self._design, self._generator = design, generator
        self._shuffles = hasattr(design, "epoch")
        self._first = True
        self._epoch: list[Batch] = []
        self._taken = 0
        self._mark = self._state()

    def next(self) -> Batch:
        """Return the next batch."""
        if not self._shuffles:
            return self._design.draw(self._generator)
        if self._taken == len(self._epoch):
            self._first = not self._epoch
            self._shuffle()
        batch = self._epoch[self._taken]
        self._taken += 1
        return batch

    def follow(self, design: BatchDesign) -> None:
        """Draw from another distribution from here on, such as that of an estimator that samples by its state."""
        self._design = design

    def _shuffle(self) -> None:
        design: Any = self._design if self._first else whole_distribution(self._design)
        self._mark = self._state()
        self._epoch, self._taken = list(design.epoch(self._generator)), 0

    def _state(self) -> dict[str, Any]:
        return dict(self._generator.bit_generator.state)

    def to_dict(self) -> dict[str, Any]:
        """Return where the stream is, as JSON values: the generator (at the epoch's start) and the batches taken."""
        if not self._epoch:
            return {"generator": self._state(), "taken": 0, "first": True}
        return {"generator": self._mark, "taken": self._taken, "first": self._first}

    def restore(self, values: Mapping[str, Any]) -> None:
        """Go to where `to_dict` was asked."""
        self._generator.bit_generator.state = values["generator"]
        self._first, self._epoch, self._taken = bool(values["first"]), [], 0
        if values["taken"]:
            self._shuffle()
            self._taken = int(values["taken"])
