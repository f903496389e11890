"""Batches and samples: sets of nodes, and which messages of which layers an estimator keeps, drawn together.

A sample is data. An estimator whose own randomness is part of a batch stays a pure function of problem, state and
batch, and a design that lists every sample with its probability makes its expectation a finite sum.
"""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lmc_verify.arguments import require_fields, typed
from lmc_verify.errors import InvalidInputError

__all__ = ["Batch", "LayerSample", "Sample", "named_nodes"]

MOST_NODES = 2**36
"""The most nodes that designs and partitions are made for: beyond it the ids of nodes alone fill a terabyte."""

NAMED = 6
"""Nodes of a batch that a message names."""


def named_nodes(nodes: Sequence[int] | Tensor) -> str:
    """Return the first nodes of a batch as messages name them, such as ``[0, 1, 2, 3, 4, 5, ... (9 nodes)]``."""
    first = torch.as_tensor(nodes[:NAMED]).tolist()
    more = f", ... ({len(nodes)} nodes)" if len(nodes) > NAMED else ""
    return f"[{', '.join(map(str, first))}{more}]"


@dataclass(frozen=True, eq=False)
class Batch:
    """A set of nodes with the inclusion probabilities that its design gives them.

    Attributes:
        nodes: int64 [size], ascending and distinct.
        inclusion: float64 [size], the probability that the design puts each node into a batch; in (0, 1].
        clusters: the clusters it is made of, where the design has any.
        sample: what the estimator's own randomness decided, where it has any; see `Estimator`.
        payload: what a loader gave for these nodes, such as PyTorch Geometric's ``Data``, for estimators that read it.
            Nothing here looks into it, and batches are the same whatever it is.
    """

    nodes: Tensor
    inclusion: Tensor
    clusters: tuple[int, ...] | None = None
    sample: Sample | None = field(default=None, repr=False)
    payload: Any = field(default=None, repr=False)

    def __post_init__(self) -> None:
        require_fields(self)
        if self.clusters is not None and not isinstance(self.clusters, tuple):
            raise InvalidInputError(
                f"clusters is a {type(self.clusters).__name__}, it must be a tuple of whole numbers"
            )
        if self.nodes.dim() != 1 or self.nodes.dtype != torch.int64 or self.nodes.numel() == 0:
            raise InvalidInputError(
                f"the nodes of a batch must be int64 ids [size] with at least one node, got {self.nodes.dtype} "
                f"{tuple(self.nodes.shape)}"
            )
        if self.inclusion.shape != self.nodes.shape:
            raise InvalidInputError(
                f"a batch of {self.nodes.numel()} nodes needs as many inclusion probabilities, "
                f"got {tuple(self.inclusion.shape)}"
            )
        if bool((self.nodes[1:] <= self.nodes[:-1]).any()):
            raise InvalidInputError("batch nodes must ascend and be distinct; use Batch.of to sort them")
        if not bool(((self.inclusion > 0) & (self.inclusion <= 1)).all()):
            raise InvalidInputError(
                f"inclusion probabilities must lie in (0, 1], got {float(self.inclusion.min())} ... "
                f"{float(self.inclusion.max())}"
            )

    @classmethod
    @typed(besides=("inclusion",))
    def of(
        cls,
        nodes: Sequence[int] | Tensor,
        inclusion: float | Tensor = 1.0,
        clusters: tuple[int, ...] | None = None,
        *,
        payload: Any = None,
    ) -> Batch:
        """Build from node ids in any order and one common (or per-node) inclusion probability."""
        try:
            given = torch.as_tensor(nodes).reshape(-1)
        except (TypeError, ValueError, RuntimeError, OverflowError) as error:
            raise InvalidInputError(f"nodes is {reprlib.repr(nodes)}, it must be node ids; such as [0, 3]") from error
        if given.is_floating_point() and given.numel():
            raise InvalidInputError(f"node ids must be integers, got {given.dtype}; a mask becomes ids with nonzero()")
        ids, order = torch.sort(given.to(torch.int64))
        if isinstance(inclusion, Tensor):
            if inclusion.shape != ids.shape:
                raise InvalidInputError(
                    f"inclusion is of shape {tuple(inclusion.shape)}, a batch of {ids.numel()} nodes needs one "
                    "probability for all, or one for each"
                )
            probabilities = inclusion.to(torch.float64)[order]
        else:
            try:
                probabilities = torch.full(ids.shape, float(inclusion), dtype=torch.float64)
            except (TypeError, ValueError) as error:
                found = reprlib.repr(inclusion)
                raise InvalidInputError(f"inclusion is {found}, it must be a probability; such as 0.5") from error
        return cls(ids, probabilities, clusters, payload=payload)

    @property
    def size(self) -> int:
        """Number of nodes."""
        return self.nodes.numel()


@dataclass(frozen=True, eq=False)
class LayerSample:
    """The messages that one layer keeps.

    Entry e of the layer's operator (see `lmc_verify.graphs.operators.OPERATORS`), whose row is
    ``rows[position]`` and whose column is ``columns[source]``, is multiplied by `scale`; entries that are not listed
    are zero.

    Attributes:
        rows: int64 [rows], destinations whose output the layer computes, ascending and distinct.
        columns: int64 [columns], nodes whose embedding of the layer below is needed, ascending and distinct: the
            sources, and the rows themselves where the layer reads them.
        position: int64 [kept], index into `rows`.
        source: int64 [kept], index into `columns`.
        entry: int64 [kept], index into the entries of the whole operator's compressed rows.
        scale: float64 [kept].
    """

    rows: Tensor
    columns: Tensor
    position: Tensor
    source: Tensor
    entry: Tensor
    scale: Tensor

    def to(self, device: torch.device) -> LayerSample:
        """Return the sample on a device."""
        fields = (self.rows, self.columns, self.position, self.source, self.entry, self.scale)
        return LayerSample(*(value.to(device) for value in fields))


@dataclass(frozen=True, eq=False)
class Sample:
    """What one draw of an estimator's own randomness decided.

    Attributes:
        layers: layer 1 first; the rows of layer l are the columns of layer l + 1, those of the last one are the batch.
        weights: float64 [batch], weights of the batch's rows in the loss that take the place of the inverse inclusion
            probabilities (where nodes were drawn with replacement); None for those.
    """

    layers: tuple[LayerSample, ...]
    weights: Tensor | None = None

    def to(self, device: torch.device) -> Sample:
        """Return the sample on a device."""
        weights = None if self.weights is None else self.weights.to(device)
        return Sample(tuple(layer.to(device) for layer in self.layers), weights)
