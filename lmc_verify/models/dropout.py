"""Dropout whose mask is a pure function of a key: no global generator is read, and evaluations can be repeated.

An estimator evaluates a layer several times in a step: for batch rows, for halo rows, and again for a derivative. A
unit must be dropped in all of them or in none, and the estimate must be the same when it is made again.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lmc_verify.arguments import require
from lmc_verify.errors import InvalidInputError
from lmc_verify.seeds import spawn_key

__all__ = ["Dropout", "at_place", "key_dropout"]


class Dropout(nn.Dropout):
    """Zero every unit with probability p and divide the others by ``1 - p``, in training mode.

    The mask of row k is that of row ``first_row + k`` in a table that the key alone determines, on every device and
    with any number of rows. [Srivastava et al., JMLR 2014]

    Args:
        p: probability of a unit to be dropped, in [0, 1).

    Attributes:
        key: seed, and spawn key of the mask under it; None until `key_dropout` sets one.
        first_row: place of the first row that it is given.

    Raises:
        InvalidInputError: p outside [0, 1); in `forward`, no key in training mode.
    """

    def __init__(self, p: float = 0.5) -> None:
        given: object = p
        if not isinstance(given, float):  # of which the range says more, also where it is NaN
            require("p", given, float)
        if not 0 <= p < 1:
            raise InvalidInputError(f"dropout is {p}, it must lie in [0, 1)")
        super().__init__(p)
        self.key: tuple[int, tuple[int, ...]] | None = None
        self.first_row = 0
        self._kept: tuple[tuple[int, tuple[int, ...]], Tensor] | None = None

    def forward(self, input: Tensor) -> Tensor:
        """Return the rows [rows, width] with units dropped, in training mode; else the rows themselves."""
        if not self.training or self.p == 0:
            return input
        return input.mul(self._mask(input)).mul_(1 / (1 - self.p))

    def _mask(self, rows: Tensor) -> Tensor:
        """Return which units are kept, bool [rows, width]."""
        if self.key is None:
            raise InvalidInputError(
                "dropout is active and has no key: call lmc_verify.models.key_dropout(model, seed, step) before each "
                "step, or model.eval(); torch's global generator is not read"
            )
        width, end = rows.shape[1], self.first_row + rows.shape[0]
        kept = self._kept
        fits = kept is not None and kept[0] == self.key and kept[1].device == rows.device
        if kept is None or not fits or kept[1].shape[1] != width or kept[1].shape[0] < end:
            kept = self._kept = (self.key, self._table(self.key, end, width).to(rows.device))
        return kept[1][self.first_row : end]

    def _table(self, key: tuple[int, tuple[int, ...]], rows: int, width: int) -> Tensor:
        # Raw 32-bit words of a counter-free generator: ten times as fast as Bernoulli draws, and row by row in order,
        # so that a longer table begins with the shorter one.
        words = np.random.SFC64(np.random.SeedSequence(key[0], spawn_key=key[1])).random_raw((rows * width + 1) // 2)
        limit = min(round((1 - self.p) * 2**32), 2**32 - 1)
        keep = words.view(np.uint32)[: rows * width] < np.uint32(limit)
        return torch.from_numpy(keep).view(rows, width)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the mask behind when the module is copied or sent to another process."""
        return {**self.__dict__, "_kept": None}


def at_place(part: nn.Module, rows: Tensor, first_row: int) -> Tensor:
    """Return what a node-wise part gives for rows whose first one has this place among all rows of its layer.

    The part is left as it was: parts are shared, between layers and with a head that reads every layer.
    """
    dropping = [module for module in part.modules() if isinstance(module, Dropout)] if first_row else []
    for module in dropping:
        module.first_row = first_row
    try:
        out: Tensor = part(rows)
    finally:
        for module in dropping:
            module.first_row = 0
    return out


def key_dropout(model: nn.Module, seed: int, *axes: str | int) -> None:
    """Give every `Dropout` of a model the key of a path of axis values, such as the step, and of its own place.

    Args:
        model: the model.
        seed: root seed.
        axes: what distinguishes this evaluation from others.
    """
    place = 0
    for part in model.modules():
        if isinstance(part, Dropout):
            part.key = (seed, spawn_key("dropout", *axes, place))
            place += 1
