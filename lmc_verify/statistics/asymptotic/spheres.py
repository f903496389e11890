"""The upper end: a sphere about the average of the draws that contains their mean, in any dimension.

With b the mean, ``Y_i = D_i - b``, ``S = sum Y_i`` and ``V = sum Y_i Y_i'``, for every vector ``lambda`` the process
``exp(lambda . S - lambda' V lambda / 2)`` is a supermartingale where the draws are symmetric about b, and becomes one
with the number of draws elsewhere. Averaged over ``lambda ~ N(0, r I)`` it is

    M = det(I + r V)^(-1/2) exp(r S' (I + r V)^(-1) S / 2).

As ``V = C + S S' / t`` with C the scatter about the average, and with ``q = r S' (I + r C)^(-1) S``,

    2 log M = g(q) - log det(I + r C),    g(q) = q / (1 + q / t) - log(1 + q / t),

by the formulas of Sherman and Morrison. g increases up to ``q = t (t - 1)``, hence while M is below ``1/alpha``

    ||S||^2 <= (1 + r lambda_max(C)) q* / r,    g(q*) = 2 log(1/alpha) + log det(I + r C),

and ``||average - b|| = ||S|| / t``. The eigenvalues of C are those of the draws' Gram matrix. To first order, with the
best r, this is ``||S|| <= sqrt(tr C) + sqrt(2 lambda_max log(1/alpha))``. Several r, with equal shares of alpha,
cover all numbers of draws. Where q* does not exist, draws are too few for this alpha.

Skewness adds ``lambda^3 E Y^3 / 3`` to the exponent, as in projections.py. It is measured in the two directions that
matter, that of the largest variance and that of the average, as ``k = sum y^3 / (sum y^2)^(3/2)``, and widens the level
from ``z^2 = 2 log(1/alpha)`` to the z with ``z^2 (1 - 2 k z / 3) = 2 log(1/alpha)``. There is none for
``6 k^2 log(1/alpha) > 1``: then more draws are needed, about ``6 log(1/alpha)`` times the squared skewness.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from lmc_verify.statistics.asymptotic.groups import GroupedDraws

__all__ = ["PRIORS", "Scatter", "Sphere", "skewed_level", "squared_reach"]

Array = npt.NDArray[np.float64]

PRIORS: Array = 2.0 ** -np.arange(24.0)
"""Variances r of the mixtures, in units of 1 / (variance of a draw): for up to some millions of draws."""

_STEPS = 40


def skewed_level(level: npt.ArrayLike, skewness: npt.ArrayLike) -> Array:
    """Return the smallest z^2 with ``z^2 (1 - 2 k z / 3) = level``, or inf where there is none; elementwise.

    Args:
        level: ``2 log(1/alpha)``.
        skewness: k, that of the sum of all draws; not negative.
    """
    levels, slope = np.broadcast_arrays(np.asarray(level, dtype=np.float64), np.asarray(skewness, dtype=np.float64))
    low, high = np.sqrt(levels), np.sqrt(3 * levels)  # it increases up to z = 1/k, which is not below the latter
    for _ in range(_STEPS):
        middle = (low + high) / 2
        reached = middle**2 * (1 - 2 * slope * middle / 3) >= levels
        low, high = np.where(reached, low, middle), np.where(reached, middle, high)
    return np.where(3 * slope**2 * levels > 1, math.inf, high**2)


def squared_reach(eigenvalues: Array, count: int, level: npt.ArrayLike, priors: Array) -> Array:
    """Return the bound on ``||S||^2``, the smallest over all r, or inf.

    Args:
        eigenvalues: of the scatter C [..., any number]; zeros may be left out.
        count: t.
        level: ``2 log(1/alpha)`` of each r [...].
        priors: r [..., priors].

    Returns:
        Squared lengths [...].
    """
    spread = np.log1p(priors[..., np.newaxis] * eigenvalues[..., np.newaxis, :]).sum(axis=-1)
    targets = np.asarray(level, dtype=np.float64)[..., np.newaxis] + spread
    low, high = np.zeros_like(targets), np.full_like(targets, count * (count - 1.0))
    for _ in range(_STEPS):
        middle = (low + high) / 2
        above = middle / (1 + middle / count) - np.log1p(middle / count) >= targets
        low, high = np.where(above, low, middle), np.where(above, middle, high)
    squares = (1 + priors * eigenvalues.max(axis=-1, initial=0.0)[..., np.newaxis]) * high / priors
    return np.asarray(np.where(targets < count - 1 - math.log(count), squares, math.inf).min(axis=-1))


class Scatter:
    """What the upper end needs to know of the draws: average, eigenvalues about it, the largest draw, skewness."""

    def __init__(self, draws: GroupedDraws, gram: Array | None) -> None:
        rows, count = draws.rows, len(draws)
        self.average: Array = rows.mean(axis=0)
        if gram is None:
            centred = rows - self.average
            squares = (centred**2).sum(axis=1)
            values, vectors = np.linalg.eigh(centred.T @ centred)
            principal, along = centred @ vectors[:, -1], centred @ self.average
        else:
            mean = gram.mean(axis=0)
            inner = gram - mean - mean[:, np.newaxis] + mean.mean()
            squares = np.diag(inner).clip(0.0)
            values, vectors = np.linalg.eigh(inner)
            principal, along = vectors[:, -1], mean - mean.mean()
        self.eigenvalues: Array = values.clip(0.0)
        self.trace, self.largest, self.count = float(squares.sum()), float(squares.max()), count
        self.skewness = max(abs(_skewness(principal)), _skewness(along))


def _skewness(values: Array) -> float:
    largest = float(np.abs(values).max())
    if largest == 0:
        return 0.0
    scaled = values / largest  # powers of what is itself a product of two draws may overflow
    return float((scaled**3).sum() / math.sqrt((scaled**2).sum()) ** 3)


class Sphere:
    """Radius of the sphere, and what has to be known for it; see the module's docstring.

    Args:
        dimension: length of a draw.
        most: most groups of draws that are kept.
    """

    def __init__(self, dimension: int, most: int) -> None:
        self.draws = GroupedDraws(dimension, most)
        self._gram: Array | None = np.empty((0, 0)) if dimension > most else None
        self._gram_level = 0

    def add(self, draw: Array) -> None:
        """Take one draw [dimension]."""
        self.draws.add(draw)

    def scatter(self) -> Scatter:
        """Return what is known of the draws in full groups, of which there is at least one."""
        return Scatter(self.draws, self._products())

    def _products(self) -> Array | None:
        """Return the Gram matrix of all groups, where it is smaller than the scatter; only new rows cost."""
        if self._gram is None:
            return None
        if self._gram_level != self.draws.level:
            self._gram, self._gram_level = np.empty((0, 0)), self.draws.level
        rows, known = self.draws.rows, len(self._gram)
        new = rows[known:] @ rows.T
        self._gram = np.block([[self._gram, new[:, :known].T], [new]]) if len(new) else self._gram
        return self._gram
