"""A penalty on parameters in the step's loss, which the objective does not have: the bias is along the parameters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from lmc_verify.audits.subject import Gradient, added, dot, norm

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
    best: tuple[float, float, Gradient] = (norm(bias), 0.0, {name: 0.0 * value for name, value in slopes.items()})
    for name, slope in slopes.items():
        size = dot({name: slope}, {name: slope})
        if not size:
            continue
        on = _on(bias, slopes, dot({name: bias[name]}, {name: slope}) / size)
        if not on:
            continue
        coefficient = dot(bias, on) / dot(on, on)
        gradient = {key: coefficient * on[key] if key in on else 0.0 * value for key, value in slopes.items()}
        best = min(best, (norm(added(bias, gradient, -1.0)), coefficient, gradient), key=lambda item: item[0])
    return best[1:]


def _on(bias: Gradient, slopes: Gradient, coefficient: float) -> Gradient:
    """Return the slopes of the parameters of whose bias a coefficient leaves less than there was."""
    left = added(bias, slopes, -coefficient)
    return {name: slope for name, slope in slopes.items() if float(left[name].norm()) < float(bias[name].norm())}
