"""The exact pass layer by layer with autograd, over mapped files: for layers of any kind.

A chunk of rows is evaluated from its local set: the rows themselves and the sources of their in-edges outside, gathered
from the table of the layer below. The vector-Jacobian product is added to the local set's rows of the auxiliary
variables below. Chunks follow each other in the order of the rows, so every sum has its order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor

from lmc_verify.graphs import CSR, Block, release_pages
from lmc_verify.graphs.sums import ordered_sum
from lmc_verify.objective.differentiation import differentiate
from lmc_verify.objective.problem import Problem
from lmc_verify.objective.streamed.budget import Budget
from lmc_verify.objective.streamed.progress import Clock
from lmc_verify.objective.streamed.tables import Tables, by_role, put_by_role

__all__ = ["StreamedLayerPass"]

_Item = TypeVar("_Item")


class StreamedLayerPass:
    """One pass over files with autograd, step by step.

    Args:
        problem: the problem, whose graph keeps its operators in mapped files.
        tables: where tables are made.
        budget: how memory is divided.

    Attributes:
        loss: the objective.
        gradient: its gradient.
        clock: who is told of every chunk, or None.
    """

    def __init__(self, problem: Problem, tables: Tables, budget: Budget) -> None:
        self.problem, self._tables, self._budget = problem, tables, budget
        self.loss, self.gradient = 0.0, problem.zero_gradient()
        self.clock: Clock | None = None
        self._encoder = problem.parameters_of(problem.model.encoder)
        self._embeddings: dict[int, Tensor] = {}
        self._auxiliary: dict[int, Tensor] = {}
        self._x0_term: dict[int, Tensor] = {}  # at 0: what layers that read x0 again send back to it

    def steps(self) -> list[tuple[str, float, Callable[[], None]]]:
        """Return the steps in order: name, size, and what does it."""
        levels = range(1, self.problem.num_layers + 1)
        return [
            ("encoder", 0.2, self._encode),
            *((f"forward {index}", 1.0, self._at(self._forward_layer, index)) for index in levels),
            ("loss", 0.5, self._start),
            *((f"backward {index}", 3.0, self._at(self._backward_layer, index)) for index in reversed(levels)),
            ("encoder's gradient", 0.2, self._backward_encoder),
        ]

    @staticmethod
    def _at(work: Callable[[int], None], index: int) -> Callable[[], None]:
        return lambda: work(index)

    @property
    def tables(self) -> dict[str, Tensor]:
        """Every table that is needed from here on, by its role."""
        return by_role(self._roles())

    def restore(self, tables: Mapping[str, Tensor]) -> None:
        """Go on with tables as `tables` gave them."""
        put_by_role(tables, self._roles())

    def _roles(self) -> dict[str, dict[int, Tensor]]:
        return {"embeddings": self._embeddings, "auxiliary": self._auxiliary, "x0": self._x0_term}

    # ----------------------------------------------------------------- steps

    def _encode(self) -> None:
        problem = self.problem
        if problem.model.encoder is None:
            self._embeddings[0] = problem.graph.x
            return
        table = self._empty(0)
        with torch.no_grad():
            for rows in self._over(self._chunks()):
                table[rows] = problem.model.encode(problem.graph.x[rows].clone())
        self._embeddings[0] = table

    def _forward_layer(self, index: int) -> None:
        table = self._empty(index)
        layer = self.problem.model.layer(index)
        with torch.no_grad():
            for rows in self._over(self._pieces(index)):
                local, block = self._local(index, rows)
                source = self._gathered(self._embeddings[index - 1], local)
                x0 = self._embeddings[0][rows].clone()
                table[rows] = layer(source, source[: block.shape[0]], x0, block)
        self._embeddings[index] = table

    def _start(self) -> None:
        problem, model, top = self.problem, self.problem.model, self.problem.num_layers
        head, target = problem.parameters_of(model.head), self._empty(top)
        for rows in self._over(self._chunks()):
            h = self._embeddings[top][rows].clone().requires_grad_()
            with torch.enable_grad():
                value = ordered_sum(problem.node_losses(model.predict(h), torch.arange(rows.start, rows.stop)))
            self.loss += float(value.detach())
            (v,) = differentiate(value, [h], head, None, self.gradient)
            target[rows] = v
        self._auxiliary[top] = target
        self._embeddings.pop(top)

    def _backward_layer(self, index: int) -> None:
        layer = self.problem.model.layer(index)
        own, needs_input = self.problem.parameters_of(layer), index > 1 or bool(self._encoder)
        reads_x0 = layer.reads_x0 and bool(self._encoder)
        below = self._zeros(index - 1) if needs_input else None
        # Another step may have to be made again: what it adds to goes into a new file.
        x0_term = self._copied(self._x0_term.get(0)) if reads_x0 else None
        for rows in self._over(self._pieces(index)):
            local, block = self._local(index, rows)
            source = self._gathered(self._embeddings[index - 1], local).requires_grad_(needs_input)
            x0 = self._embeddings[0][rows].clone().requires_grad_(reads_x0)
            with torch.enable_grad():
                out = layer(source, source[: block.shape[0]], x0, block)
            inputs = [value for value in (source, x0) if value.requires_grad]
            grads = differentiate(out, inputs, own, self._auxiliary[index][rows].clone(), self.gradient)
            if below is not None:
                self._add(below, local, grads.pop(0))
            if x0_term is not None:
                x0_term[rows] += grads.pop(0)
        self._auxiliary.pop(index)
        if index > 1:
            self._embeddings.pop(index - 1)
        if below is not None:
            self._auxiliary[index - 1] = below
        if x0_term is not None:
            self._x0_term[0] = x0_term

    def _backward_encoder(self) -> None:
        problem = self.problem
        for rows in self._over(self._chunks()) if self._encoder else ():
            v = self._auxiliary[0][rows].clone()
            if self._x0_term:
                v += self._x0_term[0][rows]  # H^0 is read by layer 1, and again by layers that read x0
            with torch.enable_grad():
                out = problem.model.encode(problem.graph.x[rows].clone())
            differentiate(out, [], self._encoder, v, self.gradient)

    # ---------------------------------------------------------------- pieces

    def _empty(self, index: int) -> Tensor:
        return self._tables.empty(self.problem.graph.num_nodes, self.problem.widths[index])

    def _zeros(self, index: int) -> Tensor:
        return self._tables.zeros(self.problem.graph.num_nodes, self.problem.widths[index])

    def _copied(self, table: Tensor | None) -> Tensor:
        fresh = self._zeros(0)
        for rows in self._chunks() if table is not None else ():
            assert table is not None
            fresh[rows] = table[rows]
            release_pages()
        return fresh

    def _over(self, chunks: Sequence[_Item]) -> Iterable[_Item]:
        for chunk in chunks if self.clock is None else self.clock.over(chunks):
            yield chunk
            release_pages()

    def _chunks(self) -> list[slice]:
        size, n = self._budget.layer_rows, self.problem.graph.num_nodes
        return [slice(start, min(start + size, n)) for start in range(0, n, size)]

    def _operator(self, index: int) -> Block:
        return self.problem.graph.operator(self.problem.model.layer(index).operator)

    def _pieces(self, index: int) -> list[slice]:
        """Return ranges of rows that have few enough entries."""
        rowptr, found = self._operator(index).csr.rowptr, []
        for rows in self._chunks():
            start = rows.start
            while start < rows.stop:
                limit = torch.tensor(int(rowptr[start]) + self._budget.layer_entries).to(torch.int64)
                ends = rowptr[start + 1 : rows.stop + 1].long()
                stop = start + max(int(torch.searchsorted(ends, limit, right=True)), 1)
                found.append(slice(start, stop))
                start = stop
        return found

    def _local(self, index: int, rows: slice) -> tuple[tuple[slice, Tensor], Block]:
        """Return the rows with the other sources of their in-edges, ascending, and the block between the two."""
        whole = self._operator(index)
        where = slice(int(whole.csr.rowptr[rows.start]), int(whole.csr.rowptr[rows.stop]))
        col, size = whole.csr.col[where].long(), rows.stop - rows.start
        inside = (col >= rows.start) & (col < rows.stop)
        others = torch.unique(col[~inside])
        names = torch.where(inside, col - rows.start, size + torch.searchsorted(others, col))
        rowptr = whole.csr.rowptr[rows.start : rows.stop + 1] - where.start
        csr = CSR(rowptr, names.to(rowptr.dtype), whole.csr.value[where].clone(), size + others.numel())
        features = None if whole.edge_attr is None else whole.edge_attr[where].clone()
        return (rows, others), Block(csr, whole.in_degree[rows], features)

    def _slabs(self, others: Tensor) -> Iterable[slice]:
        """Yield ranges of ascending nodes whose rows lie in one slab of a table."""
        starts = torch.arange(0, self.problem.graph.num_nodes, self._budget.slab)
        bounds = [*torch.searchsorted(others, starts).tolist(), others.numel()]
        for start, stop in pairwise(bounds):
            if start < stop:
                yield slice(start, stop)
                release_pages()

    def _gathered(self, table: Tensor, local: tuple[slice, Tensor]) -> Tensor:
        """Return the local set's rows of a table, in memory."""
        rows, others = local
        size = rows.stop - rows.start
        found = table.new_empty(size + others.numel(), table.shape[1])
        found[:size] = table[rows]
        for part in self._slabs(others):
            torch.index_select(table, 0, others[part], out=found[size + part.start : size + part.stop])
        return found

    def _add(self, table: Tensor, local: tuple[slice, Tensor], values: Tensor) -> None:
        """Add to the local set's rows of a table."""
        rows, others = local
        size = rows.stop - rows.start
        table[rows] += values[:size]
        for part in self._slabs(others):
            table.index_add_(0, others[part], values[size + part.start : size + part.stop])
