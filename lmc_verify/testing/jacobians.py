"""Whether a layer is aggregate-linear, measured: does a row's Jacobian depend on what else arrives at the row?"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from lmc_verify.graphs import Block, Graph, LocalSet
from lmc_verify.models.layered import Layer

__all__ = ["aggregate_dependence"]


def aggregate_dependence(
    layer: Layer, graph: Graph, row: int, kept: Tensor, source: Tensor, x0: Tensor, *, changed: Tensor | None = None
) -> float:
    """Return how much the Jacobian of a row in some sources depends on the row's other messages.

    The Jacobian ``d h_row / d h_kept`` is taken three times: with every message, without those of the other sources
    (an incomplete aggregate, as at a halo row), and with the other sources at other values. An aggregate-linear layer
    has the same Jacobian each time. The row's own input (`target`) stays the same.

    Args:
        layer: the layer.
        graph: the graph; constants such as degrees are the whole graph's.
        row: the destination.
        kept: ids of the sources in which the Jacobian is taken, ascending [kept].
        source: what the layer reads, ``H^{l-1}`` [n, in].
        x0: the encoder's output [n, f0].
        changed: the other sources' other values, by default ``1 - source`` [n, in].

    Returns:
        The largest change of an entry, divided by the largest entry (or by 1, where that is smaller). It is of the
        size of rounding for an aggregate-linear layer.
    """
    everyone = torch.arange(graph.num_nodes, device=graph.device)
    others = everyone[~torch.isin(everyone, kept)]
    where = torch.tensor([row], device=graph.device)
    target, start = source[where], x0[where]

    def jacobian(columns: Tensor, values: Tensor) -> Tensor:
        block = graph.block(layer.operator, where, LocalSet(columns, 1))
        rest = values[columns[kept.numel() :]]

        def run(read: Tensor, block: Block) -> Tensor:
            out: Tensor = layer(torch.cat([read, rest]), target, start, block)[0]
            return out

        found: Tensor = torch.autograd.functional.jacobian(partial(run, block=block), source[kept])
        return found

    everything = torch.cat([kept, others])
    complete = jacobian(everything, source)
    incomplete = jacobian(kept, source)
    altered = jacobian(everything, 1 - source if changed is None else changed)
    scale = max(1.0, float(complete.abs().max()))
    return max(float((found - complete).abs().max()) for found in (incomplete, altered)) / scale
