"""The error of a gradient estimate along a run: bias and variance by layer, against the exact gradient."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch

from lmc_verify.estimators import Estimator, History, batch_distribution, checked_estimate
from lmc_verify.graphs import Batch, BatchDesign
from lmc_verify.objective import Gradient, Problem, evaluating, exact_pass
from lmc_verify.statistics.enumeration import MomentAccumulator
from lmc_verify.training.stream import whole_distribution
from lmc_verify.training.trace import WHOLE, GradientError

__all__ = ["measure_gradient_error"]

Vector = npt.NDArray[np.float64]


def measure_gradient_error(
    problem: Problem,
    estimator: Estimator,
    state: History,
    design: BatchDesign,
    *,
    step: int,
    limit: int,
    generator: np.random.Generator,
) -> GradientError:
    """Measure the next estimate's distribution at the present parameters and histories; nothing is changed.

    Args:
        problem: the problem; evaluated in evaluation mode.
        estimator: the estimator.
        state: its histories.
        design: the distribution of the batch; of one that shuffles epochs, that at a random place of an epoch.
        step: for the record.
        limit: a design of at most this many batches is enumerated; of a larger one as many are drawn.
        generator: of the draws.
    """
    distribution = batch_distribution(estimator, problem, state, whole_distribution(design))
    with evaluating(problem.model):
        exact = exact_pass(problem)
        if state.exact_for is not None:  # else every estimate would make the same exact pass
            state = History.from_exact(problem, exact)
        batches: list[tuple[Batch, float]]
        if distribution.support_size <= limit:
            drawn, batches = False, list(distribution.enumerate())
        else:
            drawn, batches = True, [(distribution.draw(generator), 1 / limit) for _ in range(limit)]
        parts = _parts(problem)
        moments, error = MomentAccumulator(), {part: [0.0] for part in parts}
        gradient = _flat(exact.gradient)
        for batch, probability in batches:
            estimate = checked_estimate(estimator, problem, state, batch, finite=False)
            difference = _flat(estimate.gradient) - gradient
            moments.add(difference, probability)
            for part, norm in _norms(difference, parts).items():
                error[part].append(probability * norm)
    found, count = moments.result(), len(batches)
    correction = count / (count - 1) if drawn else 1.0
    variance = {part: correction * _sum(found.variance, places) for part, places in parts.items()}
    return GradientError(
        step=step,
        method="drawn" if drawn else "enumerated",
        batches=count,
        gradient=_norms(gradient, parts),
        bias=_norms(found.mean, parts),
        bias_noise={part: math.sqrt(value / count) if drawn else 0.0 for part, value in variance.items()},
        variance=variance,
        error={part: math.fsum(terms) for part, terms in error.items()},
    )


def _parts(problem: Problem) -> dict[str, list[slice]]:
    """Return the places of every part's entries in a flat gradient, and of the whole."""
    sizes = {name: value.numel() for name, value in problem.zero_gradient().items()}
    parts: dict[str, list[slice]] = {}
    end = 0
    for name, size in sizes.items():
        parts.setdefault(problem.layer_of(name), []).append(slice(end, end + size))
        end += size
    return parts | {WHOLE: [slice(0, end)]}


def _flat(gradient: Gradient) -> Vector:
    values: Vector = torch.cat([value.detach().reshape(-1).double() for value in gradient.values()]).cpu().numpy()
    return values


def _sum(values: Vector, places: list[slice]) -> float:
    return math.fsum(float(values[place].sum()) for place in places)


def _norms(values: Vector, parts: dict[str, list[slice]]) -> dict[str, float]:
    squares = values * values
    return {part: math.sqrt(_sum(squares, places)) for part, places in parts.items()}
