"""The state of every global generator, which no test may change."""

from __future__ import annotations

import random

import numpy as np
import torch


def random_state() -> dict[str, bytes]:
    """Return the state of every global generator, to be compared."""
    numpy_state = np.random.get_state(legacy=False)  # noqa: NPY002  # read, to see that nobody else changes it
    return {
        "torch": torch.get_rng_state().numpy().tobytes(),
        "numpy": repr(numpy_state["state"]["pos"]).encode() + numpy_state["state"]["key"].tobytes(),
        "random": repr(random.getstate()).encode(),
    }
