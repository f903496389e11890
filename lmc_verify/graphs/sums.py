"""Sums whose order does not depend on the number of threads."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import pad

__all__ = ["ordered_sum"]

_BLOCK = 4096  # torch gives a sum of up to 32,768 numbers to one thread


def ordered_sum(values: Tensor) -> Tensor:
    """Return the sum of all entries, a scalar with the same bits whatever the number of threads.

    torch splits a long sum into one part a thread, so that its last bits depend on their number. Here blocks of fixed
    length are summed, and then their sums; autograd passes through.

    Args:
        values: any shape.
    """
    values = values.reshape(-1)
    while values.numel() > _BLOCK:
        values = pad(values, (0, -values.numel() % _BLOCK)).view(-1, _BLOCK).sum(dim=1)
    return values.sum()
