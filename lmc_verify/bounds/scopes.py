"""Who sends messages to whom: one batch with its halo, or every batch of a design at once.

A scope has *slots*, one per row that the estimator evaluates: batch slots first, then halo slots. An estimator
aggregates with ``A^ = A + D``: entries that are missing from the local set have ``D_ij = -A_ij``, and a renormalised
operator has other entries too. For one batch D is known. For all batches of a design only an interval
``lo <= D_ij <= hi`` is, and

    |sum_j D_ij x_jk|  <=  max(|sum_j max(lo x, hi x)|, |sum_j min(lo x, hi x)|)      for every coordinate k.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from lmc_verify.bounds.results import Unproven
from lmc_verify.bounds.terms import absolute
from lmc_verify.errors import InvalidInputError
from lmc_verify.estimators.compensated.policies import Blend, Cut, Momentum, Policies
from lmc_verify.graphs import (
    CSR,
    Batch,
    BatchDesign,
    Clusters,
    EpochClusters,
    FusedClusters,
    Graph,
    LocalSet,
    UniformNodes,
)
from lmc_verify.graphs.operators import with_self_loops

__all__ = ["BatchScope", "DesignScope", "Groups", "Scope", "ScopedOperator"]


class ScopedOperator(ABC):
    """An operator as an estimator sees it from the slots of a scope; see the module."""

    @abstractmethod
    def forward_error(self, error: Tensor) -> Tensor:
        """Return ``sum_j |A^_ij| e_j`` for every slot, given the sources' errors by slot, each [slots, columns]."""

    @abstractmethod
    def forward_missing(self, values: Tensor) -> Tensor:
        """Bound ``|sum_j D_ij x_j|`` coordinate-wise [slots, width], given exact values of every node [n, width]."""

    @abstractmethod
    def backward_error(self, error: Tensor) -> Tensor:
        """Return the same over destinations that send a cotangent back: ``sum_i |A^_ij| e_i`` for every slot j."""

    @abstractmethod
    def backward(self, values: Tensor, own: Tensor | None) -> tuple[Tensor, Tensor]:
        """Bound ``|own_j + sum_i A^_ij y_i|`` and ``|sum_i D_ij y_i|`` coordinate-wise, each [slots, width].

        Sums run over destinations; those that send nothing back count as missing.
        """


class Scope(ABC):
    """Slots, what the halo slots hold, and operators as seen from them.

    Attributes:
        nodes: global id of every slot [slots].
        size: number of batch slots.
    """

    nodes: Tensor
    size: int

    def __init__(self, graph: Graph, policies: Policies) -> None:
        self.graph, self.policies = graph, policies
        self._operators: dict[str, ScopedOperator] = {}

    @property
    def halo(self) -> Tensor:
        """Global ids of the halo slots."""
        return self.nodes[self.size :]

    def operator(self, kind: str) -> ScopedOperator:
        """Return an operator as seen from the slots; built once and kept."""
        if kind not in self._operators:
            self._operators[kind] = self._build(kind)
        return self._operators[kind]

    @abstractmethod
    def _build(self, kind: str) -> ScopedOperator:
        """Build an operator."""

    @abstractmethod
    def blend(self, policy: Blend, held: Tensor, fresh: Tensor) -> Tensor:
        """Bound the error of the policy's halo values, given the history's and the fresh value's [halo, columns]."""


# ------------------------------------------------------------------------------------------------------- one batch


class BatchScope(Scope):
    """One batch and its halo."""

    def __init__(self, graph: Graph, policies: Policies, batch: Batch) -> None:
        super().__init__(graph, policies)
        nodes = batch.nodes.to(graph.device)
        halo = nodes.new_zeros(0) if isinstance(policies.forward, Cut) else graph.neighbourhood(nodes)
        self.local = LocalSet(torch.cat([nodes, halo]), nodes.numel())
        self.nodes, self.size = self.local.nodes, nodes.numel()

    def _build(self, kind: str) -> ScopedOperator:
        whole, policy = self.graph.operator(kind), self.policies.forward
        if isinstance(policy, Cut) and policy.renormalise:
            kept = self.graph.induced_block(kind, self.local).csr
        else:
            kept = self.graph.block(kind, self.nodes, self.local).csr
        if isinstance(policy, Momentum):  # halo rows get messages from batch rows alone
            column = kept.col.long()
            reads = (kept.row < self.size) | (column < self.size)
            kept = CSR.from_sorted(kept.row[reads], column[reads], kept.value[reads], kept.num_rows, kept.num_columns)
        sending = kept
        if not self.policies.compensates:
            inside = kept.row < self.size
            sending = CSR.from_sorted(
                kept.row[inside], kept.col[inside].long(), kept.value[inside], kept.num_rows, kept.num_columns
            )
        slots, n = self.nodes.numel(), self.graph.num_nodes
        rows, columns = (
            CSR.from_sorted(*csr.gather_rows(self.nodes), num_rows=slots, num_columns=n)
            for csr in (whole.csr, whole.csr_t)
        )
        return _BatchOperator(self.nodes, kept, rows, sending.transpose(), columns)

    def blend(self, policy: Blend, held: Tensor, fresh: Tensor) -> Tensor:
        """Return the blend of the two errors; see `Scope.blend`."""
        if not policy.uses_fresh:
            return held
        beta = policy.coefficients(self.graph, self.local)
        return (1 - beta) * held + beta.abs() * fresh  # beta is at most 1, and negative where a score is


@dataclass(frozen=True, eq=False)
class _BatchOperator(ScopedOperator):
    """`kept` [slots, slots] and `sending` (its transpose, sending rows only) are A^; `rows` and `columns` A's own."""

    nodes: Tensor
    kept: CSR
    rows: CSR
    sending: CSR
    columns: CSR

    def forward_error(self, error: Tensor) -> Tensor:
        return absolute(self.kept).matmul(error)

    def forward_missing(self, values: Tensor) -> Tensor:
        return (self.kept.matmul(values[self.nodes]) - self.rows.matmul(values)).abs()

    def backward_error(self, error: Tensor) -> Tensor:
        return absolute(self.sending).matmul(error)

    def backward(self, values: Tensor, own: Tensor | None) -> tuple[Tensor, Tensor]:
        kept = self.sending.matmul(values[self.nodes])
        missing = (kept - self.columns.matmul(values)).abs()
        return (kept if own is None else kept + own[self.nodes]).abs(), missing


# ------------------------------------------------------------------------------------------------ a whole design


@dataclass(frozen=True, eq=False)
class Groups:
    """A design whose batches are unions of groups of nodes, of which at most `most` and at least `least` are taken.

    Attributes:
        assignment: group of every node [n].
        count: number of groups.
        open: ids of the groups that can be in a batch.
        least, most: groups in a batch.
        inclusion: inclusion probability, the same at every node.
    """

    assignment: Tensor
    count: int
    open: tuple[int, ...]
    least: int
    most: int
    inclusion: float

    @classmethod
    def of(cls, design: BatchDesign) -> Groups:
        """Read a design.

        Raises:
            Unproven: a design of another kind.
        """
        if type(design) is UniformNodes:
            n, size = design.num_nodes, design.size
            return cls(torch.arange(n), n, tuple(range(n)), size, size, size / n)
        if type(design) is Clusters:
            parts, take = design.partition.num_parts, design.per_batch
            return cls(design.partition.assignment, parts, tuple(range(parts)), take, take, take / parts)
        if type(design) is FusedClusters:
            parts = design.groups.num_parts
            return cls(design.groups.assignment, parts, tuple(range(parts)), 1, 1, 1 / parts)
        if type(design) is EpochClusters:
            parts = design.partition.num_parts
            remaining = tuple(index for index in range(parts) if index not in design.seen)
            full, rest = divmod(len(remaining), design.per_batch)
            most = design.per_batch if full else rest
            least = rest if rest and not (design.seen and full) else most
            return cls(design.partition.assignment, parts, remaining, least, most, 1 / design.batches_per_epoch)
        raise Unproven(f"no range is proven for the design {type(design).__name__}; enumerate it")

    @property
    def whole(self) -> bool:
        """Whether every batch is the whole graph."""
        return self.least == self.count


class DesignScope(Scope):
    """Every batch of a design at once: each node has a batch slot, and a halo slot where there can be a halo.

    Facts used. A node of the batch has its whole group in the batch, and every neighbour in the local set. A halo
    node has none of its group in the batch, itself in the local set, and any subset of its neighbours there. With
    feature momentum it reads of those only the ones in the batch, and not itself.
    """

    def __init__(self, graph: Graph, policies: Policies, groups: Groups) -> None:
        super().__init__(graph, policies)
        self.groups = groups
        every = torch.arange(graph.num_nodes, device=graph.device)
        has_halo = not isinstance(policies.forward, Cut) and not groups.whole
        self.nodes, self.size = torch.cat([every, every]) if has_halo else every, graph.num_nodes
        self._group = groups.assignment.to(graph.device)

    def _build(self, kind: str) -> ScopedOperator:
        csr, groups, policies = self.graph.operator(kind).csr, self.groups, self.policies
        value, row, column = csr.value, csr.row, csr.col.long()
        own = self._group[row] == self._group[column]
        zero = torch.zeros_like(value)
        # Between a batch row and another group: in the local set or not. With one group per batch: surely not in it.
        cross = (-value, -value) if groups.most == 1 else (torch.minimum(zero, -value), torch.maximum(zero, -value))
        if groups.whole:
            lost = exact = (zero, zero)
        else:
            upper = zero
            if isinstance(policies.forward, Cut) and policies.forward.renormalise:
                upper = self._renormalised(kind, row, column, own) - value
            inside = (upper if groups.most == 1 else zero, upper)
            outside = cross if groups.most == 1 else (torch.minimum(cross[0], upper), torch.maximum(cross[1], upper))
            lost = (torch.where(own, inside[0], outside[0]), torch.where(own, inside[1], outside[1]))
            exact = (zero, zero)
        itself = row == column
        partial = (
            torch.where(itself, zero, torch.minimum(zero, -value)),
            torch.where(itself, zero, torch.maximum(zero, -value)),
        )
        in_halo = partial
        if isinstance(policies.forward, Momentum):  # none of a halo row's group, itself included, is in the batch
            in_halo = (torch.where(own, -value, partial[0]), torch.where(own, -value, partial[1]))
        cut = isinstance(policies.forward, Cut)
        has_halo = self.halo.numel() > 0

        def piece(interval: tuple[Tensor, Tensor], *, transposed: bool) -> _Interval:
            return _Interval.of(csr, interval, own, transposed=transposed)

        return _DesignOperator(
            forward_batch=piece(lost if cut else exact, transposed=False),
            forward_halo=piece(in_halo, transposed=False) if has_halo else None,
            backward_batch=piece(exact if policies.compensates else lost, transposed=True),
            backward_halo=piece(partial, transposed=True) if has_halo else None,
            single=groups.most == 1,
            compensates=policies.compensates,
        )

    def _renormalised(self, kind: str, row: Tensor, column: Tensor, own: Tensor) -> Tensor:
        """Return an upper bound on each entry, where it is kept, of the operator renormalised on the batch.

        Entries shrink as degrees grow, and a batch holds at least the group of each of its nodes.
        """
        graph = self.graph
        n, edges = graph.num_nodes, graph.edge_index
        if kind == "mean":
            degree = torch.zeros(n, dtype=graph.dtype, device=graph.device)
            degree.index_add_(0, row, own.to(graph.dtype))
            return (degree[row] + (~own).to(graph.dtype)).clamp(min=1).reciprocal()
        weight = torch.ones(edges.shape[1], dtype=graph.dtype, device=graph.device)
        if graph.edge_weight is not None:
            weight = graph.edge_weight.to(graph.dtype)
        if kind != "gcn" or bool((weight < 0).any()):
            raise Unproven(f"no range is proven for the renormalised {kind!r} operator with negative edge weights")
        looped, filled = with_self_loops(edges, weight, n)
        raw = CSR.from_coo(looped[1], looped[0], filled, n, n).value  # in the order of the operator's entries
        degree = torch.zeros(n, dtype=graph.dtype, device=graph.device)
        degree.index_add_(0, row, torch.where(own, raw, 0.0))
        if not bool((degree > 0).all()):
            raise Unproven("no range is proven for a renormalised operator where a group gives a node no weight")
        return raw / ((degree[row] + torch.where(own, 0.0, raw)) * degree[column]).sqrt()

    def blend(self, policy: Blend, held: Tensor, fresh: Tensor) -> Tensor:
        """Return the blend of the two errors; see `Scope.blend`."""
        if not policy.uses_fresh:
            return held
        if isinstance(policy.beta, tuple):
            if len(policy.beta) != self.graph.num_nodes:
                raise InvalidInputError(
                    f"beta has {len(policy.beta)} values, the graph {self.graph.num_nodes} nodes; give one per node"
                )
            beta = held.new_tensor(policy.beta)[self.halo, None]
        else:
            beta = torch.full_like(held, policy.beta)
        # The bound is convex in beta_i, which is beta times a score: the ends are the worst.
        ends = [(1 - score * beta) * held + (score * beta).abs() * fresh for score in policy.scores]
        worst = torch.maximum(*ends)
        return torch.maximum(worst, fresh) if policy.whole_when_complete else worst


@dataclass(frozen=True, eq=False)
class _Interval:
    """A matrix A, deviations in [low, high], and largest absolute entries within and across groups."""

    matrix: CSR
    low: CSR
    high: CSR
    own: CSR
    cross: CSR

    @classmethod
    def of(cls, csr: CSR, interval: tuple[Tensor, Tensor], own: Tensor, *, transposed: bool) -> _Interval:
        low, high = interval
        largest = torch.maximum((csr.value + low).abs(), (csr.value + high).abs())
        values = (csr.value, low, high, torch.where(own, largest, 0.0), torch.where(own, 0.0, largest))
        parts = [CSR(csr.rowptr, csr.col, value, csr.num_columns) for value in values]
        return cls(*(part.transpose() for part in parts)) if transposed else cls(*parts)

    def extremes(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Return the largest and the smallest ``sum_j D_ij x_jk`` [n, width]."""
        positive, negative = values.clamp(min=0), -values.clamp(max=0)
        most = self.high.matmul(positive) - self.low.matmul(negative)
        least = self.low.matmul(positive) - self.high.matmul(negative)
        return most, least

    def missing(self, values: Tensor) -> Tensor:
        most, least = self.extremes(values)
        return torch.maximum(most.abs(), least.abs())

    def kept(self, values: Tensor, own: Tensor | None) -> Tensor:
        centre = self.matrix.matmul(values) if own is None else self.matrix.matmul(values) + own
        most, least = self.extremes(values)
        return torch.maximum((centre + most).abs(), (centre + least).abs())

    def spread(self, within: Tensor, across: Tensor) -> Tensor:
        return self.own.matmul(within) + self.cross.matmul(across)


@dataclass(frozen=True, eq=False)
class _DesignOperator(ScopedOperator):
    """Rows (forward) and columns (backward) of the batch slots and, where there is a halo, of the halo slots."""

    forward_batch: _Interval
    forward_halo: _Interval | None
    backward_batch: _Interval
    backward_halo: _Interval | None
    single: bool
    compensates: bool

    def forward_error(self, error: Tensor) -> Tensor:
        if self.forward_halo is None:
            return self.forward_batch.spread(error, error)
        batch, halo = error.chunk(2)
        either = torch.maximum(batch, halo)
        # With one group per batch, the neighbours of a batch row in other groups are all in the halo.
        return torch.cat(
            [
                self.forward_batch.spread(batch, halo if self.single else either),
                self.forward_halo.spread(halo, either),
            ]
        )

    def forward_missing(self, values: Tensor) -> Tensor:
        pieces = [self.forward_batch] if self.forward_halo is None else [self.forward_batch, self.forward_halo]
        return torch.cat([piece.missing(values) for piece in pieces])

    def backward_error(self, error: Tensor) -> Tensor:
        if self.backward_halo is None:
            return self.backward_batch.spread(error, error)
        batch, halo = error.chunk(2)
        if not self.compensates:  # halo rows send nothing
            return torch.cat([self.backward_batch.spread(batch, batch), torch.zeros_like(halo)])
        either = torch.maximum(batch, halo)
        return torch.cat(
            [
                self.backward_batch.spread(batch, halo if self.single else either),
                self.backward_halo.spread(halo, either),
            ]
        )

    def backward(self, values: Tensor, own: Tensor | None) -> tuple[Tensor, Tensor]:
        pieces = [self.backward_batch] if self.backward_halo is None else [self.backward_batch, self.backward_halo]
        kept = torch.cat([piece.kept(values, own) for piece in pieces])
        return kept, torch.cat([piece.missing(values) for piece in pieces])
