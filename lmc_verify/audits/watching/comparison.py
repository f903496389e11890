"""How a gradient that is about to be used compares with the exact one: error, cosine and norm ratio."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Comparison", "Record", "compare", "compare_all", "layer_of"]

MODEL = "model"
"""The layer of a parameter that the model itself owns."""


@dataclass(frozen=True)
class Comparison:
    """A gradient g beside the exact gradient G.

    Attributes:
        error: ``||g - G|| / ||G||``; 0 where both are zero, infinite where G alone is.
        cosine: of the angle between them; NaN where one of them is zero.
        norm_ratio: ``||g|| / ||G||``; NaN where both are zero, infinite where G alone is.
    """

    error: float
    cosine: float
    norm_ratio: float


@dataclass(frozen=True)
class Record:
    """What was seen before one step of the optimiser.

    Attributes:
        step: the number of steps taken before it.
        seconds: since watching began, without the time that watching took.
        loss: the objective on the whole graph; NaN where it or its gradient is not finite, as all comparisons are then.
        overall: of all parameters together.
        layers: by layer, the first two parts of a parameter's name without its last one.
        parameters: by parameter.
    """

    step: int
    seconds: float
    loss: float
    overall: Comparison
    layers: Mapping[str, Comparison]
    parameters: Mapping[str, Comparison]

    def rows(self) -> Iterable[tuple[str, str, Comparison]]:
        """Yield kind (``"all"``, ``"layer"`` or ``"parameter"``), name and comparison."""
        yield "all", "all", self.overall
        yield from (("layer", name, value) for name, value in self.layers.items())
        yield from (("parameter", name, value) for name, value in self.parameters.items())


def layer_of(name: str) -> str:
    """Return a parameter's layer: ``"convs.0.lin.weight"`` is in ``"convs.0"``, ``"bias"`` in ``"model"``."""
    return ".".join(name.split(".")[:-1][:2]) or MODEL


def compare(pairs: Iterable[tuple[Tensor, Tensor]]) -> Comparison:
    """Compare a gradient with the exact one, given as pairs of tensors of one shape; computed in double precision.

    Norms are taken relative to the largest entry, so that they neither overflow nor vanish.
    """
    tensors = [(one.detach().double().flatten(), two.detach().double().flatten()) for one, two in pairs]
    given, exact = (torch.cat(list(part)) for part in zip(*tensors, strict=True))
    if not bool(torch.isfinite(given).all() and torch.isfinite(exact).all()):
        return Comparison(math.nan, math.nan, math.nan)
    error, one, two = _scaled(given - exact), _scaled(given), _scaled(exact)
    cosine = math.nan
    if one.unit and two.unit:
        inner = float((given / one.unit) @ (exact / two.unit))
        cosine = max(-1.0, min(1.0, inner / (one.norm * two.norm)))
    both_zero = not one.unit and not two.unit
    return Comparison(0.0 if both_zero else _ratio(error, two), cosine, math.nan if both_zero else _ratio(one, two))


class _Scaled(NamedTuple):
    """A norm as ``norm * unit``, with the largest entry as the unit."""

    norm: float
    unit: float


def _scaled(value: Tensor) -> _Scaled:
    unit = float(value.abs().max()) if value.numel() else 0.0
    return _Scaled(float((value / unit).norm()) if unit else 0.0, unit)


def _ratio(one: _Scaled, two: _Scaled) -> float:
    return (one.norm / two.norm) * (one.unit / two.unit) if two.unit else math.inf


def compare_all(
    given: Mapping[str, Tensor | None], exact: Mapping[str, Tensor]
) -> tuple[Comparison, dict[str, Comparison], dict[str, Comparison]]:
    """Compare gradients by name.

    Args:
        given: what is about to be used; None counts as zero, as an optimiser leaves that parameter where it is.
        exact: the exact gradient, of at least these names.

    Returns:
        The comparison of all together, by layer, and by parameter, in the order of `given`.
    """
    pairs = {name: (_dense(value, exact[name]), exact[name]) for name, value in given.items()}
    layers: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for name, pair in pairs.items():
        layers.setdefault(layer_of(name), []).append(pair)
    return (
        compare(pairs.values()),
        {layer: compare(items) for layer, items in layers.items()},
        {name: compare([pair]) for name, pair in pairs.items()},
    )


def _dense(value: Tensor | None, like: Tensor) -> Tensor:
    if value is None:
        return torch.zeros_like(like)
    return value if value.layout is torch.strided else value.to_dense()
