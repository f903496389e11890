"""What layers aggregate with: operators by name, rectangular blocks of them, and the local sets that blocks are cut to.

An operator is a matrix with destinations as rows and sources as columns; `normalised_edges` gives its entries.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from lmc_verify.errors import InvalidInputError, UnknownNameError
from lmc_verify.graphs.sparse import CSR

__all__ = [
    "OPERATORS",
    "Block",
    "LocalSet",
    "block_from_edges",
    "block_from_entries",
    "loops_operator",
    "normalised_edges",
    "operator_features",
    "with_self_loops",
]

OPERATORS = ("gcn", "mean", "sum", "loops")
"""Operators that layers aggregate with: symmetric GCN normalisation with self-loops; mean over the in-edges; sum of
weighted in-edges; unit weights with exactly one self-loop a node (attention layers).

Entries of "sum" and "mean" carry the features of their edges. Those of "loops" do where its name says what the added
self-loops get: see `loops_operator`."""

_FILLS = ("mean", "add", "sum", "min", "max", "mul")
"""What PyTorch Geometric can make the features of an added self-loop from, over the in-edges of its node."""


def loops_operator(fill: str | float | Tensor) -> str:
    """Return the name of the operator "loops" whose added self-loops get these edge features.

    Args:
        fill: how they are made from the features of the node's in-edges in the whole graph (``"mean"``, ``"add"``,
            ``"min"``, ``"max"``, ``"mul"``), or the features themselves: a number, or one number a feature. These are
            the values of ``fill_value`` in PyTorch Geometric.

    Raises:
        InvalidInputError: anything else.
    """
    if isinstance(fill, str) and fill in _FILLS:
        return f"loops:{fill}"
    if isinstance(fill, Tensor) and fill.dim() <= 1:
        return f"loops:{','.join(repr(float(value)) for value in fill.reshape(-1))}"
    if isinstance(fill, int | float):
        return f"loops:{float(fill)!r}"
    raise InvalidInputError(
        f"fill_value is {fill!r}; added self-loops get a number, a tensor with one number a feature, or one of "
        f"{', '.join(map(repr, _FILLS))} over a node's in-edges"
    )


def _fill_of(kind: str) -> str | Tensor | None:
    """Return what the added self-loops of an operator get as `add_self_loops` takes it, or None without features."""
    base, _, fill = kind.partition(":")
    if base != "loops" or not fill:
        return None
    if fill in _FILLS:
        return fill
    try:
        return torch.tensor([float(value) for value in fill.split(",")], dtype=torch.float64)
    except ValueError:
        raise UnknownNameError("operator", kind, OPERATORS) from None


def normalised_edges(
    kind: str, edge_index: Tensor, edge_weight: Tensor | None, num_nodes: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return edges [2, m] and weights [m] of an operator, for the whole graph that is given.

    Raises:
        UnknownNameError: `kind` is not one of `OPERATORS`.
        InvalidInputError: a negative weighted in-degree, which has no square root.
    """
    if kind == "gcn":
        edges, values = _gcn_normalised(edge_index, _weights(edge_index, edge_weight, dtype), num_nodes)
        if not torch.isfinite(values).all():
            raise InvalidInputError(
                "the GCN normalisation needs weighted in-degrees (self-loop included) of at least 0, but some are "
                "negative; use non-negative edge weights or a layer with the 'sum' operator"
            )
        return edges, values
    if kind == "loops" or _fill_of(kind) is not None:
        edges, _ = with_self_loops(edge_index, _weights(edge_index, None, dtype), num_nodes)
        return edges, torch.ones(edges.shape[1], dtype=dtype, device=edges.device)
    if kind == "mean":
        degree = torch.bincount(edge_index[1], minlength=num_nodes)
        return edge_index, degree.clamp(min=1).to(dtype).reciprocal()[edge_index[1]]
    if kind == "sum":
        return edge_index, _weights(edge_index, edge_weight, dtype)
    raise UnknownNameError("operator", kind, OPERATORS)


def _weights(edge_index: Tensor, edge_weight: Tensor | None, dtype: torch.dtype) -> Tensor:
    if edge_weight is None:
        return torch.ones(edge_index.shape[1], dtype=dtype, device=edge_index.device)
    return edge_weight.to(dtype)


def with_self_loops(edge_index: Tensor, weight: Tensor, num_nodes: int) -> tuple[Tensor, Tensor]:
    """Return edges [2, m] and weights [m] with exactly one self-loop a node, behind the other edges.

    A self-loop that is there keeps its weight (of several at a node, one of them); one that is added weighs 1.
    `torch_geometric.utils.add_remaining_self_loops` gives the same, bit by bit.
    """
    other = edge_index[0] != edge_index[1]
    nodes = torch.arange(num_nodes, dtype=edge_index.dtype, device=edge_index.device)
    loops = weight.new_ones(num_nodes)
    loops[edge_index[0][~other]] = weight[~other]
    edges = torch.cat([edge_index[:, other], torch.stack([nodes, nodes])], dim=1)
    return edges, torch.cat([weight[other], loops])


def _gcn_normalised(edge_index: Tensor, weight: Tensor, num_nodes: int) -> tuple[Tensor, Tensor]:
    """Return the edges and weights ``d_j^(-1/2) w d_i^(-1/2)`` of GCN (Kipf and Welling, 2017), self-loops included.

    `torch_geometric.nn.conv.gcn_conv.gcn_norm` gives the same, bit by bit.
    """
    edges, weight = with_self_loops(edge_index, weight, num_nodes)
    source, destination = edges
    scale = weight.new_zeros(num_nodes).scatter_add_(0, destination, weight).pow_(-0.5)
    scale.masked_fill_(scale == float("inf"), 0)
    return edges, scale[source] * weight * scale[destination]


def operator_features(
    kind: str, edge_index: Tensor, edge_attr: Tensor | None, num_nodes: int, dtype: torch.dtype
) -> Tensor | None:
    """Return the features of an operator's edges [m, d], in the order of `normalised_edges`; None if it has none.

    Raises:
        InvalidInputError: the operator's name gives self-loops another number of features.
    """
    if edge_attr is None or kind == "gcn" or kind == "loops":
        return None
    values = edge_attr.to(dtype)
    fill = _fill_of(kind)
    if fill is None:
        return values
    if isinstance(fill, Tensor) and fill.numel() not in (1, values.shape[1]):
        raise InvalidInputError(
            f"fill_value has {fill.numel()} numbers, the graph's edges have {values.shape[1]} features; give one "
            "number a feature, or one for all"
        )
    from torch_geometric.utils import add_self_loops, remove_self_loops  # its attention layers ask for these

    edges, values = remove_self_loops(edge_index, values)
    filled: Tensor = add_self_loops(edges, values, fill_value=fill, num_nodes=num_nodes)[1]
    return filled


@dataclass(frozen=True, eq=False)
class Block:
    """A rectangular piece of an operator: its rows are destinations, its columns are sources.

    Attributes:
        csr: the entries by row, in local indices [rows, columns].
        in_degree: number of in-edges of each row in the **whole** operator, int64 [rows]; a mean over a row divides by
            this, never by the number of entries that happen to be inside the block.
        edge_attr: features of the entries' edges [entries, d], in the order of `edge_index`; None where the graph or
            the operator has none. Those of added self-loops are made from the **whole** graph.
        complete: whether every in-edge of every row is inside the block.
    """

    csr: CSR
    in_degree: Tensor
    edge_attr: Tensor | None = None
    _cache: dict[str, CSR] = field(default_factory=dict, repr=False)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.csr.num_rows, self.csr.num_columns

    @property
    def num_bytes(self) -> int:
        """Memory of the entries and of their features."""
        features = 0 if self.edge_attr is None else self.edge_attr.numel() * self.edge_attr.element_size()
        return self.csr.num_bytes + features

    @cached_property
    def numbered(self) -> CSR:
        """The matrix whose values are the numbers of its entries: pieces of it say which entries they hold."""
        number = torch.arange(self.csr.num_entries, dtype=self.csr.col.dtype, device=self.csr.col.device)
        return CSR(self.csr.rowptr, self.csr.col, number, self.csr.num_columns)

    @property
    def csr_t(self) -> CSR:
        """The transpose, built on first use and kept; the matrix itself where it is symmetric."""
        if "t" not in self._cache:
            transposed = self.csr.transpose()
            self._cache["t"] = self.csr if transposed.equals(self.csr) else transposed
        return self._cache["t"]

    @property
    def tensors(self) -> dict[str, tuple[Tensor, ...]]:
        """What it is made of, and what it keeps, each under a name for messages."""
        attr = () if self.edge_attr is None else (self.edge_attr,)
        named = {"operator": (self.csr.rowptr, self.csr.col, self.csr.value, self.in_degree, *attr)}
        kept = self._cache.get("t", self.csr)
        return named if kept is self.csr else named | {"transpose": (kept.rowptr, kept.col, kept.value)}

    @property
    def symmetric(self) -> bool:
        """Whether the matrix equals its transpose, bit for bit."""
        return self.csr_t is self.csr

    @property
    def complete(self) -> bool:
        """Whether every in-edge of every row is inside the block."""
        return self.csr.num_entries == int(self.in_degree.sum())

    @property
    def edge_index(self) -> Tensor:
        """Edges [2, entries] in local indices: row 0 sources (columns), row 1 destinations (rows)."""
        return torch.stack([self.csr.col.long(), self.csr.row])

    @property
    def edge_weight(self) -> Tensor:
        """Weights [entries], in the order of `edge_index`."""
        return self.csr.value


@dataclass(frozen=True, eq=False)
class LocalSet:
    """A batch with the part of its halo that an estimator keeps: batch rows first, then halo rows.

    Attributes:
        nodes: global ids [batch + halo], each part ascending.
        num_batch: number of batch rows.
    """

    nodes: Tensor
    num_batch: int

    @property
    def batch(self) -> Tensor:
        """Global ids of the batch rows."""
        return self.nodes[: self.num_batch]

    @property
    def halo(self) -> Tensor:
        """Global ids of the halo rows."""
        return self.nodes[self.num_batch :]

    @cached_property
    def _sorted(self) -> tuple[Tensor, Tensor]:
        sorted_nodes, order = torch.sort(self.nodes)
        return sorted_nodes, order

    def locate(self, nodes: Tensor) -> tuple[Tensor, Tensor]:
        """Return (local index, is inside) of global ids; the index is arbitrary where not inside."""
        sorted_nodes, order = self._sorted
        if sorted_nodes.numel() == 0:
            return torch.zeros_like(nodes), torch.zeros_like(nodes, dtype=torch.bool)
        slot = torch.searchsorted(sorted_nodes, nodes).clamp_(max=sorted_nodes.numel() - 1)
        return order[slot], sorted_nodes[slot] == nodes


def block_from_edges(edges: Tensor, weight: Tensor, num_nodes: int, edge_attr: Tensor | None = None) -> Block:
    """Return the square operator [n, n] whose entries are the given edges, source to destination."""
    degree = torch.bincount(edges[1], minlength=num_nodes)
    return block_from_entries(edges[1], edges[0], weight, (num_nodes, num_nodes), degree, edge_attr)


def block_from_entries(
    row: Tensor,
    column: Tensor,
    value: Tensor,
    shape: tuple[int, int],
    in_degree: Tensor,
    edge_attr: Tensor | None = None,
) -> Block:
    """Return the block [rows, columns] whose entries are given in any order, each with its features if there are any.

    Args:
        row: destination of every entry [entries].
        column: its source [entries].
        value: its weight [entries].
        shape: rows and columns.
        in_degree: of the rows in the whole operator [rows].
        edge_attr: features [entries, d], or None.
    """
    if edge_attr is None:
        return Block(CSR.from_coo(row, column, value, *shape), in_degree)
    number = torch.arange(row.numel(), device=row.device)
    order = CSR.from_coo(row, column, number, *shape)
    ordered = CSR(order.rowptr, order.col, value[order.value], order.num_columns)
    return Block(ordered, in_degree, edge_attr[order.value])
