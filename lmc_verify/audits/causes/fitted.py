"""Causes that are no intervention and no known defect, but numbers: they are fitted to what other causes leave."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

from lmc_verify.audits.causes.classes import (
    CLASS_WEIGHTS,
    CLASS_WEIGHTS_CAUSE,
    CLASS_WEIGHTS_REMEDY,
    class_parts,
    class_weights_in,
)
from lmc_verify.audits.causes.penalty import PENALTIES, PENALTY_REMEDY, Penalty, penalty_in
from lmc_verify.audits.measure import Measured
from lmc_verify.audits.subject import Gradient, Subject, cosine, dot, scaled

__all__ = ["FACTOR", "FACTOR_REMEDY", "FACTOR_WORDS", "Fit", "FittedCause", "Leftover", "fitted_causes"]

FACTOR = "factor"
"""The cause that a mean is a multiple of what it should be."""

FACTOR_WORDS = "one global factor"
FACTOR_REMEDY = "look for a missing or doubled normalisation of the loss, such as a sum in place of a mean"

FAR = 2.0
"""How far from one a factor must be to be named from draws: one more number always leaves less of what is noise."""

FEWEST = 16
"""Numbers that a penalty is on, at least: that of a single one is any bias, and both biases of two classes are often
opposite."""

LIKE = 0.95
"""Cosine with a penalty's gradient from which on a bias from draws is said to be one."""

SHOWN = 8
"""Classes whose weights are told."""


@dataclass(frozen=True)
class Leftover:
    """What the other causes of a set leave.

    Attributes:
        measured: the mean without them, less what it should be.
        wanted: what it should be: the gradient, with the biases of known defects among them.
        alone: whether there are no others.
    """

    measured: Measured
    wanted: Gradient
    alone: bool


class Fit(NamedTuple):
    """The numbers of a cause that leave least of a bias.

    Attributes:
        bias: the bias that they give.
        detail: the numbers, in words.
        plausible: whether they may be the cause: a little of any bias is along any numbers.
    """

    bias: Gradient
    detail: str
    plausible: bool


@dataclass(frozen=True)
class FittedCause:
    """A cause with numbers.

    Attributes:
        id: its name.
        words: what it is, in a few words.
        remedy: how it is put right.
        fit: finds its numbers in what other causes leave.
    """

    id: str
    words: str
    remedy: str
    fit: Callable[[Leftover], Fit]


def fitted_causes(subject: Subject) -> list[FittedCause]:
    """Return every cause that is fitted to a step's bias, in the order in which they are tried."""
    return [
        *(FittedCause(id, item.cause, PENALTY_REMEDY, _penalty(subject, item)) for id, item in PENALTIES.items()),
        FittedCause(FACTOR, FACTOR_WORDS, FACTOR_REMEDY, _factor),
        FittedCause(CLASS_WEIGHTS, CLASS_WEIGHTS_CAUSE, CLASS_WEIGHTS_REMEDY, _class_weights(subject)),
    ]


def _factor(left: Leftover) -> Fit:
    size = dot(left.wanted, left.wanted)
    excess = dot(left.measured.bias, left.wanted) / size if size else 0.0
    beside = "" if left.alone else "without the other causes "
    return Fit(
        scaled(left.wanted, excess),
        f": {beside}the mean is {1.0 + excess:.4g} times the gradient",
        left.measured.exact or not 1 / FAR < 1.0 + excess < FAR,
    )


def _penalty(subject: Subject, penalty: Penalty) -> Callable[[Leftover], Fit]:
    def fit(left: Leftover) -> Fit:
        bias = left.measured.bias
        slopes = {name: penalty.slope(value.detach()) for name, value in subject.model.named_parameters()}
        coefficient, gradient = penalty_in(bias, {name: slopes[name].to(value) for name, value in bias.items()})
        on = [name for name, value in gradient.items() if bool(value.any())]
        where = "all" if len(on) == len(gradient) else ", ".join(on)
        enough = sum(int(value.count_nonzero()) for value in gradient.values()) >= FEWEST
        return Fit(
            gradient,
            f": the mean has {coefficient:.4g} times {penalty.unit} ({where}) beside the gradient",
            enough and (left.measured.exact or cosine(bias, gradient) >= LIKE),
        )

    return fit


def _class_weights(subject: Subject) -> Callable[[Leftover], Fit]:
    @cache
    def parts() -> dict[int, Gradient]:
        """Return parts of the exact gradient by class: a backward pass for each, made when it comes to them."""
        try:
            return class_parts(subject)
        except (ArithmeticError, LookupError, RuntimeError, ValueError):
            return {}  # the objective is not one of single nodes

    def fit(left: Leftover) -> Fit:
        bias = left.measured.bias
        if not left.measured.exact or not parts():  # from draws, some of all noise is along them
            return Fit(scaled(bias, 0.0), "", False)
        weights, given = class_weights_in(bias, parts())
        listed = [f"class {label} counts {weight:.4g} times" for label, weight in weights.items()]
        return Fit(given, ": " + ", ".join([*listed[:SHOWN], *(["..."] if len(listed) > SHOWN else [])]), True)

    return fit
