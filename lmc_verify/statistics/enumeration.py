"""Exact moments of a random vector with finite support, accumulated one atom at a time."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["DesignMoments", "MomentAccumulator"]

Vector = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class DesignMoments:
    """Moments of a vector-valued random variable, exact up to rounding.

    Attributes:
        mean: expectation [d].
        variance: variance of each component [d], about the exact mean.
        mean_norm: expectation of the Euclidean norm; bounds the rounding error of `mean`.
        atoms: number of support points.
        mass: total probability, 1 up to rounding.
    """

    mean: Vector
    variance: Vector
    mean_norm: float
    atoms: int
    mass: float


class MomentAccumulator:
    """Accumulates weighted atoms. The first atom is the shift, so that variances do not cancel.

    Example:
        >>> moments = MomentAccumulator()
        >>> for value in (1.0, 3.0):
        ...     moments.add(np.array([value]), 0.5)
        >>> result = moments.result()
        >>> float(result.mean[0]), float(result.variance[0])
        (2.0, 1.0)
    """

    def __init__(self) -> None:
        self._shift: Vector | None = None
        self._first: Vector = np.zeros(0)
        self._second: Vector = np.zeros(0)
        self._lost: Vector = np.zeros(0)
        self._norm = 0.0
        self._probabilities: list[float] = []

    def add(self, value: Vector, probability: float) -> None:
        """Add one support point.

        Raises:
            ValueError: a probability outside (0, 1], or a vector of another length.
        """
        if not 0 < probability <= 1:
            raise ValueError(f"a probability must lie in (0, 1], got {probability}")
        if self._shift is None:
            self._shift = value.astype(np.float64, copy=True)
            self._first = np.zeros_like(self._shift)
            self._second = np.zeros_like(self._shift)
            self._lost = np.zeros_like(self._shift)
        elif value.shape != self._shift.shape:
            raise ValueError(f"expected a vector of length {self._shift.shape[0]}, got shape {value.shape}")
        centred = value - self._shift
        # Compensated summation (Kahan): hundreds of equal weights would otherwise round the same way every time.
        term = probability * centred - self._lost
        total = self._first + term
        self._lost = (total - self._first) - term
        self._first = total
        self._second += probability * centred * centred
        self._norm += probability * float(np.linalg.norm(value))
        self._probabilities.append(probability)

    def result(self) -> DesignMoments:
        """Return the moments of what was added.

        Raises:
            ValueError: nothing was added, or the probabilities do not sum to one.
        """
        if self._shift is None:
            raise ValueError("no support point was added")
        atoms, mass = len(self._probabilities), math.fsum(self._probabilities)
        if abs(mass - 1) > 1e-9:
            raise ValueError(f"the probabilities of {atoms} support points sum to {mass}, not to 1")
        offset = self._first / mass
        variance = np.maximum(self._second / mass - offset * offset, 0.0)
        return DesignMoments(self._shift + offset, variance, self._norm, atoms, mass)
