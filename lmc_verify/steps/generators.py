"""The global random generators of torch, NumPy and Python, lent to a user's code and put back.

A user's step and loader draw from the global generators. Their seed is then part of the batch: the same seed gives the
same batch, and whoever audits the loop finds the generators as they were. Nothing else in the package touches them.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch

from lmc_verify.errors import InvalidInputError
from lmc_verify.seeds import generator

__all__ = ["forked_generators"]


@contextmanager
def forked_generators(seed: int, *axes: str | int) -> Iterator[None]:
    """Seed the global generators of torch (of the CPU and of devices), NumPy and Python, and restore them afterwards.

    A device that is not in use yet is left alone: it would be initialised, or seeded for whoever uses it first.

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
    with ExitStack() as forked:
        forked.enter_context(torch.random.fork_rng([]))
        torch.default_generator.manual_seed(first)
        for kind, library in _libraries_in_use().items():
            devices = list(range(library.device_count()))
            forked.enter_context(torch.random.fork_rng(devices, device_type=kind))
            library.manual_seed_all(first)
        np.random.seed(second)  # noqa: NPY002
        random.seed(third)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002


def _libraries_in_use() -> dict[str, Any]:
    """Return torch's libraries of devices that have been used, such as `torch.cuda`, by kind of device."""
    kinds = ("cuda", "xpu", torch._C._get_privateuse1_backend_name())
    found = {kind: getattr(torch, kind, None) for kind in kinds}
    return {kind: library for kind, library in found.items() if library is not None and library.is_initialized()}
