"""Rounding: how far a float64 identity may be off, and what may be concluded from a residual.

A sum of m floating-point products, in any order, is off by at most ``gamma_m * sum |terms|`` with
``gamma_m = m u / (1 - m u)`` and unit roundoff ``u = 2^-53`` (Higham, Accuracy and Stability of Numerical Algorithms,
2nd edition, sections 3.1 and 4.2). Chained sums add their lengths to first order.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from lmc_verify.errors import NotFiniteError

__all__ = ["REFUTATION_FACTOR", "UNIT_ROUNDOFF", "decide", "gamma", "require_number"]

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


def require_number(value: float, what: str) -> float:
    """Return a value unless it is NaN, which no verdict may rest on.

    Raises:
        NotFiniteError: names what is NaN.
    """
    if math.isnan(value):
        raise NotFiniteError(
            f"{what} is NaN, so nothing is decided: the numbers overflow, or something that is not finite entered; "
            "scale the features or the parameters down"
        )
    return value


def decide(residual: float, tolerance: float) -> Literal["exact", "refuted", "inconclusive"]:
    """Compare a residual with its rounding tolerance.

    The smallest residual that is called refuted is ``REFUTATION_FACTOR * tolerance``: the minimum detectable effect.
    Where rounding could do anything (an infinite tolerance) nothing is exact, and nothing is refuted.

    Raises:
        NotFiniteError: one of the two is NaN.
    """
    require_number(residual, "a residual")
    require_number(tolerance, "a rounding tolerance")
    if math.isinf(tolerance):
        return "inconclusive"
    if residual <= tolerance:
        return "exact"
    if residual <= REFUTATION_FACTOR * tolerance:
        return "inconclusive"
    return "refuted"
