"""The place of a batch in a graph: its halo, the blocks of the operators, blends and message counts.

Everything is worked out on first use and kept with the batch, so that a design whose batches are enumerated once and
visited many times pays for it once.
"""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from lmc_verify.batches import Batch
from lmc_verify.estimators.policies import Blend
from lmc_verify.graph import Block, Graph, LocalSet

__all__ = ["LocalStructure", "local_structure"]


class LocalStructure:
    """Structure of a batch with its halo (or without, where edges are cut) in one graph.

    Attributes:
        graph: the graph.
        nodes: the local set, batch rows first.
    """

    def __init__(self, graph: Graph, batch: Batch, *, cut: bool) -> None:
        rows = batch.nodes.to(graph.device)
        halo = rows.new_zeros(0) if cut else graph.neighbourhood(rows)
        self.graph, self.nodes = graph, LocalSet(torch.cat([rows, halo]), rows.numel())
        self._blocks: dict[tuple[str, bool, bool], Block] = {}
        self._blends: dict[Blend, Tensor] = {}

    def block(self, kind: str, *, halo: bool, renormalised: bool = False) -> Block:
        """Return batch rows (or halo rows) x local columns of an operator.

        `renormalised` takes the operator of the induced subgraph, with the subgraph's degrees.
        """
        key = (kind, halo, renormalised)
        if key not in self._blocks:
            rows = self.nodes.halo if halo else self.nodes.batch
            self._blocks[key] = (
                self.graph.induced_block(kind, self.nodes) if renormalised else self.graph.block(kind, rows, self.nodes)
            )
        return self._blocks[key]

    def coefficients(self, blend: Blend) -> Tensor:
        """Return ``beta_i`` of every halo row as a column [halo, 1]."""
        if blend not in self._blends:
            self._blends[blend] = blend.coefficients(self.graph, self.nodes)
        return self._blends[blend]

    @cached_property
    def messages(self) -> tuple[int, int, int]:
        """Messages into batch rows, out of them, and between them."""
        pattern = self.graph.operator("sum")
        _, sources, _ = pattern.csr.gather_rows(self.nodes.batch)
        _, destinations, _ = pattern.csr_t.gather_rows(self.nodes.batch)
        inner = int(LocalSet(self.nodes.batch, self.nodes.num_batch).locate(sources)[1].sum())
        return sources.numel(), destinations.numel(), inner


def local_structure(graph: Graph, batch: Batch, *, cut: bool) -> LocalStructure:
    """Return the structure of a batch in a graph, made on first use and kept with the batch."""
    kept = batch.structures.get(cut)
    if not isinstance(kept, LocalStructure) or kept.graph is not graph:
        kept = batch.structures[cut] = LocalStructure(graph, batch, cut=cut)
    return kept
