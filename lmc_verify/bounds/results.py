"""What a bound says: numbers by parameter, by layer and in total, or why there is none."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from lmc_verify.objective import Problem

__all__ = ["ErrorBound", "ErrorInterval", "NoBound", "RangeBound", "Unproven"]


class Unproven(Exception):
    """Raised inside this package where no proof covers a model, policy or design; callers get a `NoBound`."""


@dataclass(frozen=True)
class NoBound:
    """There is no proof for this case. False in a condition, so that ``if bound:`` reads well.

    Attributes:
        reason: what is not covered.
    """

    reason: str

    def __bool__(self) -> bool:
        return False


@dataclass(frozen=True)
class ErrorBound:
    """Upper bounds on norms of ``g_est - g_ref``, the reference being Backward SGD with the same weights.

    Attributes:
        parameters: by parameter name.
        layers: by part, see `lmc_verify.Problem.layer_of`.
        total: over all parameters.
    """

    parameters: Mapping[str, float]
    layers: Mapping[str, float]
    total: float


@dataclass(frozen=True)
class RangeBound(ErrorBound):
    """An `ErrorBound` that holds for every batch of a design.

    Attributes:
        derivation: how it was obtained, in a sentence or two.
    """

    derivation: str


@dataclass(frozen=True)
class ErrorInterval:
    """What is known about ``||g_est - grad L||``: it lies between `low` and `high` (norms over all parameters).

    Attributes:
        low: ``max(0, ||g_ref - grad L|| - bound)``.
        high: ``||g_ref - grad L|| + bound``.
        layers: the same pair by part.
    """

    low: float
    high: float
    layers: Mapping[str, tuple[float, float]]


def by_layer(problem: Problem, parameters: Mapping[str, float]) -> tuple[dict[str, float], float]:
    """Combine norms of parameters into norms by layer and in total."""
    layers: dict[str, float] = {}
    for name, value in parameters.items():
        part = problem.layer_of(name)
        layers[part] = math.hypot(layers.get(part, 0.0), value)
    return layers, math.hypot(*layers.values())
