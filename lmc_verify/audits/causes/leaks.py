"""Biases that reach rows outside of a batch: their part of the gradient is taken away while a step runs.

Where a step computes rows for neighbours, too, and gives them a gradient of their own (compensation), a bias that is
added to every row gets the neighbours' part as well.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from lmc_verify.audits.batches.nodes import Nodes

__all__ = ["MaskedBiases", "rows_of_batch"]

_SUMS = ("add", "add_")
"""Names of torch's functions for ``+`` and ``+=``."""


def rows_of_batch(nodes: Nodes, count: int, rows: int) -> Tensor | None:
    """Return which of a tensor's rows are a batch's own, bool [rows]; None where that is not known.

    Args:
        nodes: of the batch.
        count: nodes of the graph: a tensor of so many rows has one for each of them.
        rows: of the tensor.
    """
    if nodes.seeds is None:
        return None
    if nodes.seeds_are_named and nodes.ids is not None and rows == nodes.ids.numel():
        return nodes.seed_rows()
    if rows == count:
        return torch.isin(torch.arange(count), nodes.seeds)
    own = nodes.seeds.numel()
    if rows > own:  # the usual order: the batch's nodes come first
        return torch.arange(rows) < own
    return None


class MaskedBiases(TorchFunctionMode):
    """Adds every bias to the rows outside of the batch without its gradient.

    Args:
        nodes: of the batch.
        count: nodes of the graph.
    """

    def __init__(self, nodes: Nodes, count: int) -> None:
        super().__init__()
        self._nodes, self._count = nodes, count

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in _SUMS and len(args) == 2:
            left, right = args
            return func(self._masked(left, right), self._masked(right, left), **kwargs)
        if func is F.linear:
            given = dict(zip(("input", "weight", "bias"), args, strict=False)) | kwargs
            out = func(given["input"], given["weight"])
            bias = given.get("bias")
            return out if bias is None else out + self._masked(bias, out)
        return func(*args, **kwargs)

    def _masked(self, bias: Any, other: Any) -> Any:
        """Return a bias by rows, without gradient at those outside of the batch; anything else as it is."""
        if not isinstance(bias, nn.Parameter) or not isinstance(other, Tensor) or bias.dim() != 1 or other.dim() != 2:
            return bias
        if other.shape[1] != bias.numel():
            return bias
        own = rows_of_batch(self._nodes, self._count, other.shape[0])
        if own is None or bool(own.all()):
            return bias
        return torch.where(own.to(bias.device)[:, None], bias, bias.detach())
