"""How a limit of memory is divided: what stays in memory, and how many rows are worked on at a time."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lmc_verify.errors import InvalidInputError
from lmc_verify.graphs import piece_rows, release_pages, resident_bytes
from lmc_verify.objective.problem import Problem

__all__ = ["Budget"]

_UNKNOWN_BASE = 512 * 2**20
"""Memory of interpreter and libraries where the system does not say it."""

_NODE_BYTES = 64
"""What stays in memory for each node: offsets, degrees and ids."""

_LEAST = 32 * 2**20
"""Bytes that a pass needs to work with."""

_VALUES, _LAYER_VALUES = 8, 32
"""Rows of the widest table that a chunk holds for each of its rows: in closed form, and in layers of any kind."""

_ENTRY_BYTES, _MESSAGES = 48, 16
"""Bytes of a chunk's entry of an operator; and rows of the widest table that a layer of any kind makes of it."""


@dataclass(frozen=True)
class Budget:
    """Memory that a pass over files may take besides libraries and a few numbers a node.

    Attributes:
        work: bytes.
        row: bytes of a row of the widest table.
        num_nodes: rows of a table.
        entries: mean number of entries of a row of an operator.
        gathered: tables that one chunk gathers rows from; two where a layer widens, whose aggregate is made again.
    """

    work: int
    row: int
    num_nodes: int
    entries: float
    gathered: int = 1

    @classmethod
    def of(cls, problem: Problem, memory: int, *, gathered: int = 1) -> Budget:
        """Divide a limit of resident memory of this process, as it is now.

        Raises:
            InvalidInputError: the limit leaves too little to work with.
        """
        graph = problem.graph
        release_pages()
        if 2 * problem.buffers.free_bytes > memory:
            problem.buffers.release()
        taken = _base(problem) + _NODE_BYTES * graph.num_nodes
        if memory - taken < _LEAST:
            raise InvalidInputError(
                f"memory is {_mib(memory)}, of which the process, its libraries and {graph.num_nodes:,} nodes take "
                f"{_mib(taken)}; give at least {_mib(taken + _LEAST)}"
            )
        widest = max(*problem.widths, graph.num_features, problem.num_outputs)
        row, entries = widest * graph.x.element_size(), graph.num_edges / graph.num_nodes + 1
        budget = cls(memory - taken, row, graph.num_nodes, entries, gathered)
        if not budget.stays:
            problem.buffers.release()
        return budget

    @property
    def stays(self) -> bool:
        """Whether tables that rows are gathered from stay in memory; else they are read slab by slab."""
        return self.gathered * self.num_nodes * self.row <= self.work // 2

    @property
    def slab(self) -> int:
        """Rows of a table that are read at a time where it does not stay."""
        return max(self.work // 4 // self.row, 1)

    @property
    def closed_rows(self) -> int:
        """Rows that a pass in closed form works on at a time, unless they have many more entries than others.

        They fit into the cache where tables stay. Elsewhere they are many, since each chunk reads a whole table.
        """
        cached = piece_rows(torch.device("cpu"), self.row // 4, self.num_nodes)
        fitting = max(int(self.work // 4 / (_VALUES * self.row + _ENTRY_BYTES * self.entries)), 1)
        return min(fitting, cached) if self.stays else fitting

    @property
    def closed_entries(self) -> int:
        """Entries that such rows have, most."""
        return max(self.work // 4 // _ENTRY_BYTES, 1)

    @property
    def layer_rows(self) -> int:
        """Rows of a layer of any kind that are worked on at a time, most."""
        return max(self.work // 8 // (_LAYER_VALUES * self.row), 1)

    @property
    def layer_entries(self) -> int:
        """Entries of an operator that a chunk of such rows has, most, unless one row has more."""
        return max(self.work // 8 // (_MESSAGES * self.row + _ENTRY_BYTES), 1)


def _base(problem: Problem) -> int:
    """Return the resident memory of this process, without what a pass over this problem uses again."""
    resident, free = resident_bytes(), problem.buffers.free_bytes
    # A sixteenth of a buffer is its margin, which may never have been written to.
    return _UNKNOWN_BASE if resident is None else max(resident - (free - free // 16), 0)


def _mib(size: int) -> str:
    return f"{-(-size // 2**20):,} MiB"
