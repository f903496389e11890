"""Rounding: how far a float64 identity may be off, and what may be concluded from a residual.

A sum of m floating-point products, in any order, is off by at most ``gamma_m * sum |terms|`` with
``gamma_m = m u / (1 - m u)`` and unit roundoff ``u = 2^-53`` (Higham, Accuracy and Stability of Numerical Algorithms,
2nd edition, sections 3.1 and 4.2). Chained sums add their lengths to first order.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

__all__ = ["REFUTATION_FACTOR", "UNIT_ROUNDOFF", "decide", "gamma"]

UNIT_ROUNDOFF = float(np.finfo(np.float64).eps) / 2
"""``2^-53``."""

REFUTATION_FACTOR = 100.0
"""A residual is called a refutation from this multiple of the rounding tolerance on; between the two the check is
inconclusive. The margin keeps an optimistic count of rounding errors from refuting a true identity."""


def gamma(terms: int) -> float:
    """Return ``gamma_m = m u / (1 - m u)``, the relative error bound of m chained rounded operations.

    Raises:
        ValueError: terms is negative, or so large that the bound is meaningless (``m u >= 1/2``).
    """
    product = terms * UNIT_ROUNDOFF
    if terms < 0 or product >= 0.5:
        raise ValueError(f"gamma needs 0 <= terms < {0.5 / UNIT_ROUNDOFF:.0f}, got {terms}")
    return product / (1 - product)


def decide(residual: float, tolerance: float) -> Literal["exact", "refuted", "inconclusive"]:
    """Compare a residual with its rounding tolerance; NaN is a refutation.

    The smallest residual that is called refuted is ``REFUTATION_FACTOR * tolerance``: the minimum detectable effect.
    """
    if residual <= tolerance:
        return "exact"
    if residual <= REFUTATION_FACTOR * tolerance:
        return "inconclusive"
    return "refuted"
