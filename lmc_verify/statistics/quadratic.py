"""A control problem whose rate is known: stochastic gradient descent on a quadratic, in its stationary distribution.

For ``L(x) = |x|^2 / 2`` with gradient noise of unit variance, ``x' = (1 - eta) x - eta noise`` leaves the normal
distribution with variance ``eta / (2 - eta)`` per coordinate invariant. Started there, the expected gradient norm is
that of every step, so its slope over any schedule of step sizes is known in closed form. Whatever measures slopes must
find it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.special import gammaln

from lmc_verify.statistics.rates import loglog_slope

__all__ = ["expected_norm", "known_slope", "measured_norms"]

Matrix = npt.NDArray[np.float64]

DIMENSION = 64


def expected_norm(step_size: float) -> float:
    """Return the expected gradient norm in the stationary distribution.

    Raises:
        ValueError: a step size outside (0, 2), for which there is none.
    """
    if not 0 < step_size < 2:
        raise ValueError(
            f"the step size is {step_size}, a stationary distribution exists only for step sizes in (0, 2)"
        )
    log_mean = gammaln((DIMENSION + 1) / 2) - gammaln(DIMENSION / 2)
    return float(np.sqrt(2 * step_size / (2 - step_size)) * np.exp(log_mean))


def known_slope(lengths: Sequence[int], step_sizes: Sequence[float]) -> float:
    """Return the log-log slope of the expected gradient norm against the number of steps."""
    return loglog_slope(lengths, [expected_norm(size) for size in step_sizes])


def measured_norms(
    lengths: Sequence[int], step_sizes: Sequence[float], seeds: int, samples: int, rng: np.random.Generator
) -> Matrix:
    """Run the control problem and return the mean gradient norm over uniformly random steps [seeds, lengths].

    Args:
        lengths: numbers of steps N.
        step_sizes: the step size for each N.
        seeds: independent runs for each N.
        samples: random steps of a run that are averaged, one from each of as many equal stretches.
        rng: of everything.
    """
    norms = np.empty((seeds, len(lengths)))
    for place, (length, size) in enumerate(zip(lengths, step_sizes, strict=True)):
        x = rng.normal(scale=np.sqrt(size / (2 - size)), size=(seeds, DIMENSION))
        path = np.empty((length, seeds))
        for step in range(length):
            path[step] = np.linalg.norm(x, axis=1)
            x = (1 - size) * x - size * rng.normal(size=x.shape)
        chosen = ((np.arange(samples)[:, None] + rng.random((samples, seeds))) * length / samples).astype(int)
        norms[:, place] = path[chosen, np.arange(seeds)].mean(axis=0)
    return norms
