"""Full-batch gradient descent, which all estimators on a problem are held against: step sizes and gradient norms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from lmc_verify.errors import InvalidInputError
from lmc_verify.estimators import FullBatch
from lmc_verify.graphs import Clusters, Partition
from lmc_verify.objective import ExactPass, Problem
from lmc_verify.training.descent import TrainingRun
from lmc_verify.training.together.norms import MeasuredRun, mean_gradient_norms
from lmc_verify.training.together.runs import RunSpecification

__all__ = ["full_batch_norms", "goes_downhill", "largest_stable_step"]

LARGEST_STEP = 2.0**20
"""No step size above it is tried."""

SMALLEST_STEP = 2.0**-20
"""No step size below it is tried."""

_ROUNDING = 1e-12
"""Part of the loss by which rounding alone may raise it."""

_known: WeakKeyDictionary[ExactPass, dict[tuple[Any, ...], tuple[float, ...]]] = WeakKeyDictionary()


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
    run = TrainingRun(
        problem, FullBatch(), _everything(problem), step_size=step_size, generator=np.random.default_rng(0)
    )
    last = math.inf
    for _ in range(steps + 1):  # the last estimate shows where the last step led
        loss = run.step().loss
        if not (math.isfinite(loss) and loss <= last + _ROUNDING * abs(loss)):
            return False
        last = loss
    return True


def full_batch_norms(
    problem: Problem, exact: ExactPass, lengths: Sequence[int], step_sizes: Sequence[float]
) -> list[float]:
    """Return full-batch gradient descent's mean gradient norm over all steps of each run: no sampling error.

    It is kept beside the exact pass, which trials share while each has a copy of the problem.

    Args:
        problem: where every run starts; it is not changed.
        exact: its exact pass.
        lengths: number of steps of each run.
        step_sizes: step size of each run.
    """
    model, asked = problem.model, tuple(zip(lengths, step_sizes, strict=True))
    key = (
        problem.graph.fingerprint,
        problem.parameter_fingerprint(),
        problem.function_fingerprint(),
        tuple(module.training for module in model.modules()),
        tuple(parameter.requires_grad for parameter in model.parameters()),
        asked,
    )
    known = _known.setdefault(exact, {})
    if key not in known:
        runs = [
            MeasuredRun(RunSpecification(FullBatch(), size, np.random.default_rng(0)), dict.fromkeys(range(length), 1))
            for length, size in asked
        ]
        known[key] = tuple(mean_gradient_norms(problem, runs, _everything(problem)))
    return list(known[key])


def _everything(problem: Problem) -> Clusters:
    """Return a design of one batch; full-batch descent does not look at it."""
    return Clusters(Partition.contiguous(problem.graph.num_nodes, 1), 1)
