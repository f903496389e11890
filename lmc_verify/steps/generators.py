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

from lmc_verify.errors import InvalidInputError
from lmc_verify.seeds import generator

__all__ = ["forked_generators"]


@contextmanager
def forked_generators(seed: int, *axes: str | int) -> Iterator[None]:
    """Seed the global generators of torch (CPU and CUDA), NumPy and Python, and restore them afterwards.

    CUDA that is not in use yet is left alone: it would be initialised, or seeded for whoever uses it first.

    Args:
        seed: the root seed, at least 0.
        axes: a path of axis values under it, see `lmc_verify.seeds`.

    Raises:
        InvalidInputError: the seed is no whole number from 0.
    """
    if not isinstance(seed, int | np.integer) or seed < 0:
        raise InvalidInputError(f"seed is {seed!r}; give a whole number of at least 0")
    first, second, third = (int(value) for value in generator(int(seed), *axes).integers(2**32, size=3))
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002  (the user's code draws from it)
    cuda = torch.cuda.is_initialized()
    with torch.random.fork_rng(list(range(torch.cuda.device_count())) if cuda else []):
        torch.default_generator.manual_seed(first)
        if cuda:
            torch.cuda.manual_seed_all(first)
        np.random.seed(second)  # noqa: NPY002
        random.seed(third)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002
