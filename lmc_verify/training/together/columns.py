"""What single batches decide, as columns over all nodes, made once for each batch that comes again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from lmc_verify.graphs import Batch

__all__ = ["KeptColumns"]

Columns = Mapping[str, Tensor]
"""By name, each [n, batches, 1]."""


class KeptColumns:
    """The columns of batches, kept for those to come.

    Args:
        make: makes the columns of some batches.
        most: number of batches whose columns are kept; where there would be more, all are forgotten first.
    """

    def __init__(self, make: Callable[[Sequence[Batch]], Columns], most: int) -> None:
        self._make, self._most = make, most
        self._places: dict[Batch, int] = {}  # a batch is equal to itself alone
        self._kept: dict[str, Tensor] = {}

    def of(self, batches: Sequence[Batch]) -> dict[str, Tensor]:
        """Return the columns of these batches, in their order; one that comes twice has two."""
        new = [batch for batch in dict.fromkeys(batches) if batch not in self._places]
        if new and len(self._places) + len(new) > self._most:
            self._places, self._kept = {}, {}
            new = list(dict.fromkeys(batches))
        if new:
            made = self._make(new)
            self._places |= {batch: len(self._places) + number for number, batch in enumerate(new)}
            kept = self._kept
            self._kept = {name: torch.cat([kept[name], own], 1) if kept else own for name, own in made.items()}
        places = torch.tensor([self._places[batch] for batch in batches])
        return {name: own.index_select(1, places.to(own.device)) for name, own in self._kept.items()}
