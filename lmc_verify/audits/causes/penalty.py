"""A penalty on parameters in the step's loss, which the objective does not have: the bias is along the parameters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lmc_verify.audits.subject import Gradient, dot, norm

__all__ = ["PENALTIES", "PENALTY_REMEDY", "Penalty", "penalty_in"]


@dataclass(frozen=True)
class Penalty:
    """A term of a loss that depends on parameters alone.

    Attributes:
        cause: what it is, in a few words.
        slope: its gradient for a parameter, up to the coefficient.
        unit: what the gradient has a multiple of.
    """

    cause: str
    slope: Callable[[Tensor], Tensor]
    unit: str


PENALTIES = {
    "penalty/squares": Penalty(
        "the step's loss has a penalty on squares of parameters", lambda value: value, "the parameters"
    ),
    "penalty/sizes": Penalty(
        "the step's loss has a penalty on absolute values of parameters", Tensor.sign, "the signs of the parameters"
    ),
}
"""Penalties by the id of their cause."""

PENALTY_REMEDY = (
    "it is no bias of the batches: state it in objective=lambda model, data: ..., or leave it to the optimiser's "
    "weight_decay"
)


def penalty_in(bias: Gradient, slopes: Gradient) -> tuple[float, Gradient]:
    """Return the coefficient of a penalty on some of the parameters that leaves least of a bias, and its gradient.

    One coefficient serves all parameters; it is on those of whose bias it leaves less than there was.

    Args:
        bias: by parameter.
        slopes: the penalty's gradient by parameter, for a coefficient of one.
    """
    names, unit = list(slopes), norm(bias) or 1.0  # squares are taken of multiples of it
    sizes = torch.tensor([dot(slopes, {name: slopes[name]}) for name in names], dtype=torch.float64)
    along = torch.tensor([dot(bias, {name: slopes[name]}) for name in names], dtype=torch.float64) / unit
    coefficients = torch.where(sizes > 0, along / sizes, 0.0)[:, None]
    gains = (coefficients * (2.0 * along - coefficients * sizes)).clamp(min=0.0)  # of squared norms, [coefficient, on]
    on = gains[gains.sum(1).argmax()] > 0
    coefficient = unit * float(along[on].sum() / sizes[on].sum()) if bool(on.any()) else 0.0
    return coefficient, {name: (coefficient if on[place] else 0.0) * slopes[name] for place, name in enumerate(names)}
