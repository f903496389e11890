"""Node-wise losses: one value per node, so that any set of rows can be weighted on its own."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from lmc_verify.errors import UnknownNameError

__all__ = ["LOSSES", "loss_lower_bound", "node_losses"]


def _cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs, targets, reduction="none")


def _bce(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(outputs, targets, reduction="none").mean(dim=1)


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"cross_entropy": _cross_entropy, "bce": _bce}
"""``cross_entropy``: int64 classes [n] and logits [n, classes]. ``bce``: targets in [0, 1] [n, tasks] and logits
[n, tasks], averaged over the tasks, so that the mean over nodes is torch's ``BCEWithLogitsLoss``."""


def loss_lower_bound(name: str) -> float | None:
    """Return the greatest lower bound of a loss over all outputs and targets; None where none is known.

    Cross entropy is at least 0, and so is its binary form at targets in [0, 1]; a graph takes no others.
    """
    return 0.0 if name in LOSSES else None


def node_losses(name: str, outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the loss of every row [n]; rows are independent of each other.

    Targets of unlabelled rows may be arbitrary (such as class -1): callers mask those rows, and here they are read as
    class 0.

    Raises:
        UnknownNameError: `name` is not in `LOSSES`.
    """
    if name not in LOSSES:
        raise UnknownNameError("loss", name, LOSSES)
    if targets.is_floating_point():
        targets = torch.nan_to_num(targets)
    else:
        targets = targets.clamp(0, outputs.shape[1] - 1)
    return LOSSES[name](outputs, targets)
