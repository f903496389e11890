"""Causes that are no intervention and no known defect, but numbers: they are fitted to what other causes leave."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import NamedTuple

import torch

from lmc_verify.audits.causes.classes import (
    CLASS_WEIGHTS,
    CLASS_WEIGHTS_CAUSE,
    CLASS_WEIGHTS_REMEDY,
    class_parts,
    class_weights_in,
)
from lmc_verify.audits.causes.penalty import PENALTIES, PENALTY_REMEDY, Penalty, penalty_in
from lmc_verify.audits.measure import Measured
from lmc_verify.audits.subject import Gradient, Subject, added, cosine, dot, norm, scaled, times

__all__ = [
    "FACTOR",
    "FACTOR_REMEDY",
    "FACTOR_WORDS",
    "Fit",
    "FittedCause",
    "Leftover",
    "excess_of",
    "fit_together",
    "fitted_causes",
    "less",
]

FACTOR = "factor"
"""The cause that a mean is a multiple of what it should be."""

FACTOR_WORDS = "one global factor"
FACTOR_REMEDY = "look for a missing or doubled normalisation of the loss, such as a sum in place of a mean"

FAR = 2.0
"""How far from one a factor must be to be named from draws: one more number always leaves less of what is noise."""

FEWEST = 16
"""Numbers that a penalty is on, or that weights of classes move, at least: that of a single one is any bias, and both
biases of two classes are often opposite."""

LIKE = 0.95
"""Cosine with a penalty's gradient from which on a bias from draws is said to be one."""

SHOWN = 8
"""Classes whose weights are told."""

MOST_ROUNDS, ENOUGH = 200, 0.999
"""Two causes are fitted by turns, so many times at most, while a round leaves less than this part."""


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
        columns: gradients of which its bias is some linear combination, for what other causes leave.
    """

    id: str
    words: str
    remedy: str
    fit: Callable[[Leftover], Fit]
    columns: Callable[[Leftover], list[Gradient]]


def fitted_causes(subject: Subject) -> list[FittedCause]:
    """Return every cause that is fitted to a step's bias, in the order in which they are tried."""

    @cache
    def parts() -> dict[int, Gradient]:
        """Return parts of the exact gradient by class: a backward pass for each, made when it comes to them."""
        try:
            return class_parts(subject)
        except (ArithmeticError, LookupError, RuntimeError, ValueError):
            return {}  # the objective is not one of single nodes

    def penalty_of(id: str, penalty: Penalty) -> FittedCause:
        def slopes(left: Leftover) -> Gradient:
            found = {name: penalty.slope(value.detach()) for name, value in subject.model.named_parameters()}
            return {name: found[name].to(value) for name, value in left.measured.bias.items()}

        return FittedCause(
            id,
            penalty.cause,
            PENALTY_REMEDY,
            lambda left: _penalty(left, slopes(left), penalty.unit),
            lambda left: [{name: slope} for name, slope in slopes(left).items()],
        )

    return [
        *(penalty_of(id, penalty) for id, penalty in PENALTIES.items()),
        FittedCause(FACTOR, FACTOR_WORDS, FACTOR_REMEDY, _factor, lambda left: [left.wanted]),
        FittedCause(
            CLASS_WEIGHTS,
            CLASS_WEIGHTS_CAUSE,
            CLASS_WEIGHTS_REMEDY,
            lambda left: _class_weights(left, parts),
            lambda left: list(parts().values()),
        ),
    ]


def _factor(left: Leftover) -> Fit:
    excess = excess_of(left.measured, left.wanted)
    beside = "" if left.alone else "without the other causes "
    return Fit(
        scaled(left.wanted, excess),
        f": {beside}the mean is {1.0 + excess:.4g} times the gradient",
        left.measured.exact or not 1 / FAR < 1.0 + excess < FAR,
    )


def excess_of(measured: Measured, wanted: Gradient) -> float:
    """Return by how much more than once a mean has what it should be, as nearly as can be."""
    return times(measured.bias, wanted)


def _penalty(left: Leftover, slopes: Gradient, unit: str) -> Fit:
    bias = left.measured.bias
    coefficient, gradient = penalty_in(bias, slopes)
    on = [name for name, value in gradient.items() if bool(value.any())]
    where = "all" if len(on) == len(gradient) else ", ".join(on)
    enough = sum(int(value.count_nonzero()) for value in gradient.values()) >= FEWEST
    return Fit(
        gradient,
        f": the mean has {coefficient:.4g} times {unit} ({where}) beside the gradient",
        enough and (left.measured.exact or cosine(bias, gradient) >= LIKE),
    )


def _class_weights(left: Leftover, parts: Callable[[], dict[int, Gradient]]) -> Fit:
    bias = left.measured.bias
    if not left.measured.exact or not parts():  # from draws, some of all noise is along them
        return Fit(scaled(bias, 0.0), "", False)
    weights, given = class_weights_in(bias, parts())
    enough = sum(int(value.count_nonzero()) for value in given.values()) >= FEWEST
    listed = [f"class {label} counts {weight:.4g} times" for label, weight in weights.items()]
    return Fit(given, ": " + ", ".join([*listed[:SHOWN], *(["..."] if len(listed) > SHOWN else [])]), enough)


def fit_together(causes: Mapping[str, FittedCause], left: Leftover) -> dict[str, Fit]:
    """Return the numbers of two causes that together leave least, as nearly as can be found.

    Which parameters a penalty is on is a choice, and fitting by turns from nothing ends at wrong ones. So the start is
    the combination of all columns of both that leaves least, in which every parameter has a coefficient of its own.
    """
    given = _combination(left.measured.bias, {key: cause.columns(left) for key, cause in causes.items()})
    best, size = dict[str, Fit](), math.inf
    for _ in range(MOST_ROUNDS):
        fits, rest = dict[str, Fit](), math.inf
        for key, cause in causes.items():
            beside = left.measured
            for other, bias in given.items():
                beside = less(beside, bias) if other != key else beside
            fits[key] = cause.fit(replace(left, measured=beside))
            given[key] = fits[key].bias
            rest = norm(less(beside, given[key]).bias)
        slow = not rest < ENOUGH * size
        if not best or rest < size:
            best, size = fits, rest
        if slow:
            break
    return best


def less(measured: Measured, bias: Gradient) -> Measured:
    """Return a measured mean without a bias."""
    return replace(measured, bias=added(measured.bias, bias, -1.0))


def _combination(bias: Gradient, columns: Mapping[str, list[Gradient]]) -> dict[str, Gradient]:
    """Return each key's part of the linear combination of all columns that leaves least of a bias.

    By inner products, which need no matrix with a row for every parameter: to half of the digits, enough for a start.
    """
    listed = [
        (key, scaled(column, 1.0 / size)) for key, own in columns.items() for column in own if (size := norm(column))
    ]
    given = {key: scaled(bias, 0.0) for key in columns}
    products = torch.tensor([[_shared(one, other) for _, other in listed] for _, one in listed], dtype=torch.float64)
    along = torch.tensor([_shared(column, bias) for _, column in listed], dtype=torch.float64)
    if not listed or not bool(products.isfinite().all() and along.isfinite().all()):
        return given
    solution = torch.linalg.lstsq(products, along[:, None], driver="gelsd").solution.flatten().tolist()
    for (key, column), share in zip(listed, solution, strict=True):
        given[key] = {
            name: value + share * column[name] if name in column else value for name, value in given[key].items()
        }
    return given


def _shared(left: Gradient, right: Gradient) -> float:
    """Return the inner product over the parameters that both have."""
    return dot(left, {name: value for name, value in right.items() if name in left})
