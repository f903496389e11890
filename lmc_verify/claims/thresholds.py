"""Thresholds in words: texts about a claim read the constants that decide it, so that they cannot say anything else."""

from __future__ import annotations

from fractions import Fraction

__all__ = ["fraction"]

LARGEST_DENOMINATOR = 100


def fraction(value: float) -> str:
    """Return the simple fraction that a float stands for, as it is written: ``"1"``, ``"1/2"``, ``"-1/6"``."""
    return str(Fraction(value).limit_denominator(LARGEST_DENOMINATOR))
