"""Many cases, of which some are enough for a quick answer: the others are marked slow."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable
from typing import Any

import pytest


def slow_but(quick: Collection[Any], values: Iterable[Any]) -> list[Any]:
    """Return every value; slow are those that are not among the quick ones."""
    return [value if value in quick else pytest.param(value, marks=pytest.mark.slow) for value in values]


def crossed(*axes: Collection[Any]) -> list[Any]:
    """Return every combination of a value of each axis; slow are those that a walk along all axes does not meet.

    The walk goes one step on in every axis, and begins anew where one ends, until the longest axis ends: it meets every
    value of every axis, and not every pair of values.
    """
    steps = range(max(map(len, axes)))
    quick = {tuple(step % len(axis) for axis in axes) for step in steps}
    return [
        pytest.param(*(value for _, value in chosen), marks=() if places in quick else pytest.mark.slow)
        for chosen in itertools.product(*map(enumerate, axes))
        for places in [tuple(place for place, _ in chosen)]
    ]
