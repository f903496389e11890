"""What GraphSAINT's subgraphs are made of: nodes, edges and random walks, and how probably they hold a node."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from lmc_verify.errors import InvalidInputError
from lmc_verify.estimators.samplers.laws import draw_categories
from lmc_verify.graphs import CSR, Block, Graph

__all__ = ["Atoms", "Distribution", "EdgeAtoms", "NodeAtoms", "WalkAtoms"]

WALK_WORK = 50_000_000
"""Walk probabilities are computed where nodes x (nodes + messages) is at most this, and estimated elsewhere."""

WALK_MEMORY = 2**21
"""Numbers, of float64, that one step of following walks may hold at a time."""

Distribution = dict[frozenset[int], float]


class Atoms(ABC):
    """A distribution of small node sets in one graph."""

    graph: Graph

    @abstractmethod
    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Return the nodes of independent atoms, int64 [count, nodes of an atom]; repeats are allowed."""

    @abstractmethod
    def distribution(self) -> Distribution:
        """Return every atom with its probability."""

    @abstractmethod
    def hit(self) -> Tensor | None:
        """Return the probability of every node to be in an atom, float64 [n]; None where it is not computed."""

    @abstractmethod
    def hit_either(self, u: Tensor, v: Tensor) -> Tensor:
        """Return the probability of an atom to hold u or v, float64 [pairs]; u and v differ."""

    @property
    def _pattern(self) -> Block:
        return self.graph.operator("sum")


@dataclass(frozen=True, eq=False)
class NodeAtoms(Atoms):
    """Single nodes with probability proportional to the squared norms of the GCN operator's columns."""

    graph: Graph

    @cached_property
    def _q(self) -> Tensor:
        try:
            csr = self.graph.operator("gcn").csr
        except InvalidInputError as error:
            raise InvalidInputError(
                "'graphsaint-node' draws nodes by the norms of the GCN operator's columns, which this graph does not "
                f"have: {error}; or use 'graphsaint-edge' or 'graphsaint-walk'"
            ) from error
        total = torch.zeros(self.graph.num_nodes, dtype=torch.float64, device=self.graph.device)
        total.index_add_(0, csr.col.long(), csr.value.double().square())
        return total / total.sum()

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Return the nodes [count, 1]."""
        return draw_categories(self._q, count, generator)[:, None]

    def distribution(self) -> Distribution:
        """Return every node of positive probability."""
        return {frozenset((node,)): value for node, value in enumerate(self._q.tolist()) if value > 0}

    def hit(self) -> Tensor:
        """Return q."""
        return self._q

    def hit_either(self, u: Tensor, v: Tensor) -> Tensor:
        """Return ``q_u + q_v``."""
        return self._q[u] + self._q[v]


@dataclass(frozen=True, eq=False)
class EdgeAtoms(Atoms):
    """Both ends of a message, with probability proportional to ``1/deg(u) + 1/deg(v)``.

    Raises:
        InvalidInputError: the graph has no edge between two nodes.
    """

    graph: Graph

    @cached_property
    def _edges(self) -> tuple[Tensor, Tensor, Tensor]:
        csr = self._pattern.csr
        row, col = csr.row, csr.col.long()
        proper = row != col
        row, col = row[proper], col[proper]
        if not row.numel():
            raise InvalidInputError(
                f"graph {self.graph.name!r} has no edge between two nodes, from which edges could be drawn; use "
                "'graphsaint-node'"
            )
        degree = torch.bincount(torch.cat([row, col]), minlength=self.graph.num_nodes).double()
        weight = degree[row].reciprocal() + degree[col].reciprocal()
        return row, col, weight / weight.sum()

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Return the ends [count, 2]."""
        row, col, p = self._edges
        chosen = draw_categories(p, count, generator)
        return torch.stack([row[chosen], col[chosen]], dim=1)

    def distribution(self) -> Distribution:
        """Return every pair of ends."""
        out: Distribution = {}
        for i, j, value in zip(*(part.tolist() for part in self._edges), strict=True):
            out[frozenset((i, j))] = out.get(frozenset((i, j)), 0.0) + value
        return out

    def hit(self) -> Tensor:
        """Return the sum over a node's edges; a self-loop, where any can be drawn, is one edge."""
        row, col, p = self._edges
        total = torch.zeros(self.graph.num_nodes, dtype=torch.float64, device=p.device)
        return total.index_add_(0, row, p).index_add_(0, col, torch.where(row == col, torch.zeros_like(p), p))

    def hit_either(self, u: Tensor, v: Tensor) -> Tensor:
        """Return ``a_u + a_v`` less the probability of the edges between them."""
        row, col, p = self._edges
        n, a = self.graph.num_nodes, self.hit()
        keys, slot = torch.unique(torch.minimum(row, col) * n + torch.maximum(row, col), return_inverse=True)
        both = torch.zeros(keys.numel(), dtype=torch.float64, device=p.device).index_add_(0, slot, p)
        wanted = torch.minimum(u, v) * n + torch.maximum(u, v)
        place = torch.searchsorted(keys, wanted).clamp(max=keys.numel() - 1)
        return a[u] + a[v] - torch.where(keys[place] == wanted, both[place], torch.zeros_like(both[place]))


@dataclass(frozen=True, eq=False)
class WalkAtoms(Atoms):
    """Random walks of `length` steps from a uniform root, along messages backwards; a node without any stays."""

    graph: Graph
    length: int

    @property
    def walked(self) -> CSR:
        """The matrix with an entry for each step that a walk can take from a row to a column."""
        return self._pattern.csr

    @cached_property
    def _steps(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return row starts, degrees, and columns, every node without a message having itself."""
        csr = self.walked
        return csr.rowptr[:-1].long(), (csr.rowptr[1:] - csr.rowptr[:-1]).long(), csr.col.long()

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Return the nodes [count, length + 1]."""
        start, degree, column = self._steps
        device = self.graph.device
        path = [torch.randint(self.graph.num_nodes, (count,), generator=generator, device=device)]
        for _ in range(self.length):
            here = path[-1]
            number = torch.rand(count, generator=generator, dtype=torch.float64, device=device)
            offset = (number * degree[here]).long().clamp(max=(degree[here] - 1).clamp(min=0))
            if not column.numel():
                path.append(here)
                continue
            reached = column[(start[here] + offset).clamp(max=column.numel() - 1)]
            path.append(torch.where(degree[here] > 0, reached, here))
        return torch.stack(path, dim=1)

    def distribution(self) -> Distribution:
        """Return every set of nodes that a walk can visit."""
        start, degree, column = (part.tolist() for part in self._steps)
        n = self.graph.num_nodes
        paths: dict[tuple[int, frozenset[int]], float] = {(root, frozenset((root,))): 1 / n for root in range(n)}
        for _ in range(self.length):
            further: dict[tuple[int, frozenset[int]], float] = {}
            for (here, seen), probability in paths.items():
                own = column[start[here] : start[here] + degree[here]] or [here]
                for there in own:
                    key = (there, seen | {there})
                    further[key] = further.get(key, 0.0) + probability / len(own)
            paths = further
        out: Distribution = {}
        for (_, seen), probability in paths.items():
            out[seen] = out.get(seen, 0.0) + probability
        return out

    def hit(self) -> Tensor | None:
        """Return the probability that the walk does not avoid a node; None on graphs where that is too much work."""
        n = self.graph.num_nodes
        if n * (n + self.graph.num_edges) > WALK_WORK:
            return None
        every = torch.arange(n, device=self.graph.device)
        return self.hit_either(every, every)

    def hit_either(self, u: Tensor, v: Tensor) -> Tensor:
        """Return one minus the probability that the walk avoids both, by following it step by step."""
        size = max(1, WALK_MEMORY // max(self.graph.num_nodes, self.graph.num_edges))
        parts = [self._hit_either(*part) for part in zip(u.split(size), v.split(size), strict=True)]
        return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64, device=u.device)

    def _hit_either(self, u: Tensor, v: Tensor) -> Tensor:
        n, csr = self.graph.num_nodes, self.walked
        _, degree, _ = self._steps
        outside = torch.ones(n, u.numel(), dtype=torch.float64, device=u.device)
        pair = torch.arange(u.numel(), device=u.device)
        outside[u, pair] = outside[v, pair] = 0.0
        avoiding = outside.clone()
        share = degree.clamp(min=1).double().reciprocal()[csr.row]
        for _ in range(self.length):
            moved = torch.zeros_like(avoiding).index_add_(0, csr.row, share[:, None] * avoiding[csr.col.long()])
            moved = torch.where(degree[:, None] > 0, moved, avoiding)
            avoiding = outside * moved
        return 1 - avoiding.mean(dim=0)
