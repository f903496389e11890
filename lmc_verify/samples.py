"""Samples: which messages of which layers an estimator keeps, drawn together with the batch.

A sample is data. An estimator whose own randomness is part of a batch stays a pure function of problem, state and
batch, and a design that lists every sample with its probability makes its expectation a finite sum.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["LayerSample", "Sample"]


@dataclass(frozen=True, eq=False)
class LayerSample:
    """The messages that one layer keeps.

    Entry e of the layer's operator (see `lmc_verify.graph.OPERATORS`), whose row is ``rows[position]`` and whose column
    is ``columns[source]``, is multiplied by `scale`; entries that are not listed are zero.

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
