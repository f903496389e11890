"""The global random generators of torch, NumPy and Python, lent to a user's code and put back.

A user's step and loader draw from the global generators. Their seed is then part of the batch: the same seed gives the
same batch, and whoever audits the loop finds the generators as they were. Nothing else in the package touches them.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from lmc_verify.seeds import generator

__all__ = ["forked_generators"]


@contextmanager
def forked_generators(seed: int, *axes: str | int) -> Iterator[None]:
    """Seed the global generators of torch (every device), NumPy and Python, and restore them afterwards.

    Args:
        seed: the root seed.
        axes: a path of axis values under it, see `lmc_verify.seeds`.
    """
    first, second, third = (int(value) for value in generator(seed, *axes).integers(2**32, size=3))
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002  (the user's code draws from it)
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(first)
        np.random.seed(second)  # noqa: NPY002
        random.seed(third)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002
