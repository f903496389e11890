"""Comparing what the package computes with the pinned numbers, quantity by quantity."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor

from lmc_verify.controls.reference import bounds, claims, estimators, graphs, objective, samplers, statistics, training
from lmc_verify.controls.reference.document import Quantities, numbers

__all__ = ["GROUPS", "TOLERANCE", "Deviation", "deviations"]

TOLERANCE = 1e-10
"""Largest deviation, in units of the quantity's largest entry. The numbers are pinned to 13 digits, and two float64
programs differ by some 1e-14; roots are found to 1e-12 of their range."""

GROUPS: Mapping[str, Callable[[], Quantities]] = {
    "graphs": graphs.quantities,
    "objective": objective.quantities,
    "estimators": estimators.quantities,
    "samplers": samplers.quantities,
    "bounds": bounds.quantities,
    "training": training.quantities,
    "statistics": statistics.quantities,
    "claims": claims.quantities,
}
"""What computes the quantities of each group, by the group's name."""


@dataclass(frozen=True)
class Deviation:
    """How far a quantity is from its pinned value.

    Attributes:
        quantity: its name, such as ``"lmc/gradient"``.
        size: largest difference of an entry in units of the largest pinned entry; infinite where there is nothing to
            compare.
        reason: why there is nothing to compare; empty where there is.
    """

    quantity: str
    size: float
    reason: str = ""


def deviations(group: str) -> Iterator[Deviation]:
    """Yield the deviation of every quantity of a group: those that are pinned, and those that are computed."""
    pinned, made = dict(numbers(group)), {}
    failed: dict[str, str] = {}
    for name, compute in GROUPS[group]().items():
        try:
            made.update(_named(name, compute()))
        except Exception as error:  # whatever a defect does
            failed[name] = f"{type(error).__name__}: {error}"
    for name in dict.fromkeys([*pinned, *made]):
        if name not in made:
            whole = next((part for part in failed if name == part or name.startswith(f"{part}/")), None)
            reason = f"it is not computed ({failed[whole]})" if whole is not None else "it is not computed"
            yield Deviation(name, math.inf, reason)
        elif name not in pinned:
            yield Deviation(name, math.inf, "no number is pinned for it; run python tools/reference_numbers.py")
        else:
            yield _deviation(name, made[name], pinned[name])


def _named(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {name: value}
    parts: dict[str, Any] = {}
    for part, item in value.items():
        parts |= _named(f"{name}/{part}", item)
    return parts


def _deviation(name: str, made: Any, pinned: Any) -> Deviation:
    different = partial(Deviation, name, math.inf)
    if _has_words(made) or _has_words(pinned):
        return Deviation(name, 0.0) if made == pinned else different(f"it is {made}, pinned is {pinned}")
    got = made.detach().cpu().double().numpy() if isinstance(made, Tensor) else np.asarray(made, dtype=np.float64)
    want = np.asarray(pinned, dtype=np.float64)
    if got.shape != want.shape:
        return different(f"it has shape {got.shape}, pinned is {want.shape}")
    if not want.size:
        return Deviation(name, 0.0)
    size = float(np.abs(got - want).max()) / (float(np.abs(want).max()) or 1.0)
    return different("it is not a number") if math.isnan(size) else Deviation(name, size)


def _has_words(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and any(isinstance(item, str) for item in value))
