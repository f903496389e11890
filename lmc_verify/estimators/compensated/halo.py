"""The place of a batch in a graph: its halo, the blocks of the operators, blends and message counts.

Everything is worked out on first use and kept in the graph's cache for as long as the batch exists, so that a design
whose batches are visited many times pays for it once.
"""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from lmc_verify.estimators.compensated.policies import Blend
from lmc_verify.graphs import CSR, Batch, Block, Graph, LocalSet

__all__ = ["LocalStructure", "local_structure"]


class LocalStructure:
    """Structure of a batch with its halo (or without, where edges are cut) in one graph.

    Attributes:
        graph: the graph.
        nodes: the local set, batch rows first.
        num_bytes: memory of the blocks made so far.
    """

    def __init__(self, graph: Graph, batch: Batch, *, cut: bool) -> None:
        rows = batch.nodes.to(graph.device)
        halo = rows.new_zeros(0) if cut else graph.neighbourhood(rows)
        self.graph, self.nodes = graph, LocalSet(torch.cat([rows, halo]), rows.numel())
        self.num_bytes = self.nodes.nodes.numel() * self.nodes.nodes.element_size()
        self._blocks: dict[tuple[str, bool, bool], Block] = {}
        self._transposed: dict[tuple[str, bool, bool, bool], CSR] = {}
        self._blends: dict[Blend, Tensor] = {}

    def block(self, kind: str, *, halo: bool, renormalised: bool = False) -> Block:
        """Return batch rows (or halo rows) x local columns of an operator.

        `renormalised` takes the operator of the induced subgraph, with the subgraph's degrees.
        """
        key = (kind, halo, renormalised)
        if key not in self._blocks:
            rows = self.nodes.halo if halo else self.nodes.batch
            block = (
                self.graph.induced_block(kind, self.nodes) if renormalised else self.graph.block(kind, rows, self.nodes)
            )
            self._blocks[key] = block
            self.num_bytes += block.num_bytes
        return self._blocks[key]

    def transposed(self, kind: str, *, halo: bool, to_halo: bool = True, renormalised: bool = False) -> CSR:
        """Return the transposed operator: batch rows (or halo rows) x the local rows that get their messages.

        `to_halo` says whether messages to halo rows are among them; if not, the columns are the batch rows alone.
        """
        key = (kind, halo, to_halo, renormalised)
        if key not in self._transposed:
            rows = self.nodes.halo if halo else self.nodes.batch
            columns = self.nodes if to_halo else LocalSet(self.nodes.batch, self.nodes.num_batch)
            if renormalised:
                block = self.block(kind, halo=False, renormalised=True).csr_t
            elif to_halo and self.graph.operator(kind).symmetric:
                block = self.block(kind, halo=halo).csr
            else:
                block = self.graph.transposed_block(kind, rows, columns)
                self.num_bytes += block.num_bytes
            self._transposed[key] = block
        return self._transposed[key]

    def coefficients(self, blend: Blend) -> Tensor:
        """Return ``beta_i`` of every halo row as a column [halo, 1]."""
        if blend not in self._blends:
            self._blends[blend] = blend.coefficients(self.graph, self.nodes)
        return self._blends[blend]

    @cached_property
    def messages(self) -> tuple[int, int]:
        """Messages into batch rows and out of them."""
        return self.graph.messages(self.nodes.batch)

    @cached_property
    def inner_messages(self) -> int:
        """Messages between batch rows."""
        return self.graph.inner_messages(self.nodes.batch)


def local_structure(graph: Graph, batch: Batch, *, cut: bool) -> LocalStructure:
    """Return the structure of a batch in a graph, from the graph's cache if it is there."""
    return graph.cache.get(batch, cut, lambda: LocalStructure(graph, batch, cut=cut))
