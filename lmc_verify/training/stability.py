"""The largest step size at which full-batch gradient descent goes downhill all the way."""

from __future__ import annotations

import math

import numpy as np

from lmc_verify.errors import InvalidInputError
from lmc_verify.estimators import FullBatch
from lmc_verify.graphs import Clusters, Partition
from lmc_verify.objective import Problem
from lmc_verify.training.descent import TrainingRun

__all__ = ["goes_downhill", "largest_stable_step"]

LARGEST_STEP = 2.0**20
"""No step size above it is tried."""

SMALLEST_STEP = 2.0**-20
"""No step size below it is tried."""

_ROUNDING = 1e-12
"""Part of the loss by which rounding alone may raise it."""


def largest_stable_step(problem: Problem, steps: int) -> float:
    """Return a power of two with which no step of full-batch gradient descent raises the loss, while twice it does.

    It is looked for from 1 on, upwards while that is stable, else downwards.

    Args:
        problem: where descent starts; it is not changed.
        steps: length of the runs that are tried.

    Raises:
        InvalidInputError: there is none from 2^-20 to below 2^20: the loss is not smooth at the start, or flat.
    """
    size = 1.0
    if goes_downhill(problem, size, steps):
        while goes_downhill(problem, 2 * size, steps):
            size *= 2
            if size >= LARGEST_STEP:
                raise InvalidInputError(
                    f"full-batch gradient descent is stable with step sizes of up to {LARGEST_STEP:g}: the loss is "
                    "flat here, give training.step_size and no training.largest_step"
                )
        return size
    while size > SMALLEST_STEP:
        size /= 2
        if goes_downhill(problem, size, steps):
            return size
    raise InvalidInputError(
        f"full-batch gradient descent raises the loss even with a step size of {SMALLEST_STEP:g}: scale features or "
        "parameters down, or give training.step_size and no training.largest_step"
    )


def goes_downhill(problem: Problem, step_size: float, steps: int) -> bool:
    """Return whether no step of full-batch gradient descent raises the loss, rounding aside."""
    everything = Clusters(Partition.contiguous(problem.graph.num_nodes, 1), 1)
    run = TrainingRun(problem, FullBatch(), everything, step_size=step_size, generator=np.random.default_rng(0))
    last = math.inf
    for _ in range(steps + 1):  # the last estimate shows where the last step led
        loss = run.step().loss
        if not (math.isfinite(loss) and loss <= last + _ROUNDING * abs(loss)):
            return False
        last = loss
    return True
