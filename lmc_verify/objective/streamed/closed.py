"""The exact pass in closed form, over mapped files.

It is `lmc_verify.objective.exact_closed.ClosedPass` with its tables in files. What layers aggregate stays in memory if
it fits; else it is read slab by slab, and a row's sum is added up slab by slab, in the order of the columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from lmc_verify.graphs import CSR, release_pages, windows
from lmc_verify.models.closed_forms import AffineLayer
from lmc_verify.objective.exact_closed import ClosedPass
from lmc_verify.objective.problem import Problem
from lmc_verify.objective.streamed.budget import Budget
from lmc_verify.objective.streamed.progress import Clock
from lmc_verify.objective.streamed.tables import Tables, by_role, put_by_role

__all__ = ["StreamedClosedPass"]

_Item = TypeVar("_Item")


class StreamedClosedPass(ClosedPass):
    """One pass in closed form over files, step by step.

    Args:
        problem: the problem, whose graph keeps its operators in mapped files.
        layers: its layers in closed form.
        tables: where tables are made.
        budget: how memory is divided.
    """

    def __init__(self, problem: Problem, layers: Sequence[AffineLayer], tables: Tables, budget: Budget) -> None:
        super().__init__(problem, layers, keep=False, chunk_size=_chunk_rows(problem, layers, budget), given=False)
        self._tables, self._budget = tables, budget
        self.clock: Clock | None = None
        self._in_memory: list[tuple[Tensor, Tensor]] = []  # tables that rows are gathered from, and their copies
        self._arenas: list[Tensor] = []  # memory for such copies

    def steps(self) -> list[tuple[str, float, Callable[[], None]]]:
        """Return the steps in order: name, size, and what does it."""
        levels = range(1, self.problem.num_layers + 1)
        return [
            ("encoder", 0.2, self._in_eval(self._encode)),
            *((f"forward {index}", 1.0, self._in_eval(self._forward_layer, index)) for index in levels),
            ("loss", 0.5, self._start),
            *((f"backward {index}", 1.5, self._in_eval(self._backward_and_drop, index)) for index in reversed(levels)),
            ("encoder's gradient", 0.2, self._backward_encoder),
        ]

    def _in_eval(self, work: Callable[..., None], *arguments: int) -> Callable[[], None]:
        def run() -> None:
            with torch.no_grad():
                work(*arguments)

        return run

    def _backward_and_drop(self, index: int) -> None:
        self._backward_layer(index)
        self.auxiliary.pop(index, None)
        for tables in (self._read, self.embeddings):
            tables.pop(index, None)
            tables.pop(index - 1, None)  # layers below read what is below it

    @property
    def tables(self) -> dict[str, Tensor]:
        """Every table that is needed from here on, by its role."""
        found = by_role(self._roles())
        return found if self._product is None else {**found, "product": self._product}

    def restore(self, tables: Mapping[str, Tensor]) -> None:
        """Go on with tables as `tables` gave them."""
        self._product = tables.get("product")
        put_by_role(tables, self._roles())

    def _roles(self) -> dict[str, dict[int, Tensor]]:
        return {"embeddings": self.embeddings, "read": self._read, "auxiliary": self.auxiliary}

    def _empty(self, width: int) -> Tensor:
        return self._tables.empty(self.problem.graph.num_nodes, width)

    def _reuses(self) -> bool:
        return False  # a step that was broken off is made again, and reads what it read

    def _over(self, chunks: Sequence[_Item]) -> Iterable[_Item]:
        for chunk in chunks if self.clock is None else self.clock.over(chunks):
            yield chunk
            release_pages()
        self._in_memory = []

    def _aggregate(self, piece: CSR, source: Tensor) -> Tensor:
        if self._budget.stays:
            return piece.product(self._copied(source))
        size, total = self._budget.slab, source.new_zeros(piece.num_rows, source.shape[1])
        for start in range(0, source.shape[0], size):
            rows = source[start : start + size]
            inside = (piece.col >= start) & (piece.col < start + rows.shape[0])
            total += piece.renamed(torch.where(inside, piece.col - start, -1), rows.shape[0]).matmul(rows)
            release_pages()
        return total

    def _copied(self, table: Tensor) -> Tensor:
        """Return a table's copy in memory, which has large pages where a file has small ones: gathering is faster."""
        for known, copy in self._in_memory:
            if known is table:
                return copy
        if len(self._in_memory) == len(self._arenas):
            # The same memory for every step and every pass over the problem: fresh pages cost as much as arithmetic.
            self._arenas.append(self._work.empty(self._budget.num_nodes, self._budget.row // table.element_size()))
        copy = self._arenas[len(self._in_memory)].view(-1)[: table.numel()].view(table.shape)
        for window in windows(table.shape[0], table[:1].numel() * table.element_size()):
            copy[window] = table[window]
        self._in_memory.append((table, copy))
        return copy


def _chunk_rows(problem: Problem, layers: Sequence[AffineLayer], budget: Budget) -> int:
    """Return the rows of a chunk, few enough for the entries that the densest chunk has."""
    rows = budget.closed_rows
    for kind in {layer.operator for layer in layers}:
        block = problem.graph.operator(kind)
        for csr in (block.csr, block.csr_t):
            while rows > 1 and _most_entries(csr, rows) > budget.closed_entries:
                rows = -(-rows // 2)
    return rows


def _most_entries(csr: CSR, rows: int) -> int:
    """Return the entries of the densest chunk of so many rows."""
    bounds = torch.tensor([*range(0, csr.num_rows, rows), csr.num_rows])
    return int(csr.rowptr[bounds].long().diff().max())
