"""Rows of other ranks: embeddings come from their owners, auxiliary variables go back to them."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from lmc_verify.graphs import Graph, LocalSet
from lmc_verify.objective.distributed.watch import Watch

__all__ = ["Halo", "summed"]


class Halo:
    """The local set of a rank's rows in one operator, and what is sent where.

    Args:
        graph: the whole graph.
        kind: name of the operator.
        owner: rank of every node [n].
        watch: the ranks.

    Attributes:
        local: the rank's own nodes, ascending, then the sources of their in-edges that others own, by owner.
    """

    def __init__(self, graph: Graph, kind: str, owner: Tensor, watch: Watch) -> None:
        self._watch = watch
        own = (owner == watch.rank).nonzero()[:, 0]
        sources = torch.unique(graph.operator(kind).csr.select_rows(own).col.long())
        outside = sources[owner[sources] != watch.rank]
        outside = outside[torch.argsort(owner[outside], stable=True)]
        self.local = LocalSet(torch.cat([own, outside]), own.numel())
        # The others are asked for their rows once; the answers follow the order of the questions.
        self._wanted = torch.bincount(owner[outside], minlength=watch.size)
        self._asked = torch.empty_like(self._wanted)
        watch.run(f"counts of {kind}", lambda: dist.all_to_all_single(self._asked, self._wanted))
        ids = self._sent(f"nodes of {kind}", outside, self._wanted, self._asked)
        self._answers = torch.searchsorted(own, ids)

    def gather(self, where: str, rows: Tensor) -> Tensor:
        """Return the local set's rows [own + outside, width], given the rank's own [own, width]."""
        fresh = self._sent(where, rows[self._answers], self._asked, self._wanted)
        return torch.cat([rows, fresh])

    def send_back(self, where: str, rows: Tensor) -> Tensor:
        """Return the sum over ranks of what they have for this rank's own rows [own, width].

        Args:
            where: for messages.
            rows: for each node of the local set [own + outside, width].
        """
        size = self.local.num_batch
        total = rows[:size].clone()
        received = self._sent(where, rows[size:].contiguous(), self._wanted, self._asked)
        for nodes, part in zip(
            self._answers.split(self._asked.tolist()), received.split(self._asked.tolist()), strict=True
        ):
            total.index_add_(0, nodes, part)  # rank by rank: a node is named once by each
        return total

    def _sent(self, where: str, rows: Tensor, to: Tensor, back: Tensor) -> Tensor:
        received = rows.new_empty(int(back.sum()), *rows.shape[1:])
        self._watch.run(where, lambda: dist.all_to_all_single(received, rows.contiguous(), back.tolist(), to.tolist()))
        return received


def summed(where: str, value: Tensor, watch: Watch) -> Tensor:
    """Return the sum of a tensor over the ranks, in their order, the same bits on each."""
    parts = [torch.empty_like(value) for _ in range(watch.size)]
    watch.run(where, lambda: dist.all_gather(parts, value.contiguous()))
    return torch.stack(parts).sum(0)
