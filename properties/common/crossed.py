"""Combinations of many values, of which some are enough for a quick answer."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection
from typing import Any

import pytest


def crossed(*axes: Collection[Any]) -> list[Any]:
    """Return every combination of a value of each axis; slow are those that a walk along all axes does not meet.

    The walk goes one step on in every axis, and begins anew where one ends: it meets every value of every axis, and, if
    the lengths of two axes have no common divisor, every pair of their values.
    """
    steps = range(math.lcm(*map(len, axes)))
    quick = {tuple(step % len(axis) for axis in axes) for step in steps}
    return [
        pytest.param(*(value for _, value in chosen), marks=() if places in quick else pytest.mark.slow)
        for chosen in itertools.product(*map(enumerate, axes))
        for places in [tuple(place for place, _ in chosen)]
    ]
