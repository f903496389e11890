"""Bias and error of a step along training: it trains the private copy, and is judged again after some steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from lmc_verify.audits.control import control_of
from lmc_verify.audits.measure import Deviations, differences, mean_gradient
from lmc_verify.audits.subject import Subject, added, norm
from lmc_verify.cases.verdict import Series
from lmc_verify.errors import InvalidInputError

__all__ = ["MakeOptimizer", "follow", "looks_of"]

MakeOptimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
"""A function of the parameters that returns an optimiser, such as ``lambda p: torch.optim.Adam(p, lr=0.01)``."""

LOOKS = 10
"""Looks along training where only the number of steps is given."""

DRAWS = 64
"""Batches for a look, where not all are evaluated."""


def looks_of(along: int | Sequence[int]) -> list[int]:
    """Return the numbers of steps after which the step is judged, ascending.

    Raises:
        InvalidInputError: a number of steps that is not positive, or none.
    """
    if isinstance(along, int):
        if along < 1:
            raise InvalidInputError(f"along is {along}; it is a number of optimiser steps, or a list of them")
        return sorted({round(along * k / LOOKS) for k in range(LOOKS + 1)})
    looks = sorted(set(along))
    if not looks or looks[0] < 0:
        raise InvalidInputError(f"along is {list(along)}; it must list numbers of steps from 0 on")
    return looks


def follow(subject: Subject, looks: Sequence[int], make: MakeOptimizer | None, *, random: bool) -> list[Series]:
    """Train the copy with the step, and return bias and root mean square error against the number of steps.

    Args:
        subject: the step; parameters, buffers and state are put back afterwards.
        looks: numbers of steps after which it is judged.
        make: makes the optimiser; None for SGD with a step size of 0.01.
        random: whether the step draws for itself.
    """
    kept = {name: value.detach().clone() for name, value in subject.model.state_dict().items()}
    state, batches = subject.kept, _stream(subject)
    optimizer = (make or (lambda parameters: torch.optim.SGD(parameters, lr=0.01)))(subject.model.parameters())
    bias: list[float] = []
    error: list[float] = []
    try:
        for number in range(looks[-1] + 1):
            if number in looks:
                found = _judged(subject, random)
                bias.append(found[0])
                error.append(found[1])
            if number < looks[-1]:
                _train(subject, optimizer, next(batches), number)
    finally:
        subject.model.load_state_dict(kept)
        subject.runner.state.restore(state)
        subject.moved()
    x = tuple(map(float, looks))
    title, labels = "Along training", ("optimiser steps", "in units of the exact gradient")
    return [
        Series("bias", x, tuple(bias), title, *labels, scale="semilogy"),
        Series("error of one step (root mean square)", x, tuple(error), title, *labels, scale="semilogy"),
    ]


def _stream(subject: Subject) -> Iterator[Any]:
    number = 0
    while True:
        number += 1
        yield from subject.law.sweep(subject.seed + number)


def _train(subject: Subject, optimizer: torch.optim.Optimizer, batch: Any, number: int) -> None:
    gradient = subject.step(batch, subject.seed + number)
    for name, value in subject.model.named_parameters():
        value.grad = gradient.get(name)
    optimizer.step()
    optimizer.zero_grad()
    subject.moved()


def _judged(subject: Subject, random: bool) -> tuple[float, float]:
    """Return bias and root mean square error in units of the exact gradient."""
    unit = norm(subject.exact) or math.nan
    if subject.law.batches is not None and not random:
        measured = mean_gradient(subject)
        bias = norm(measured.bias)
        return bias / unit, math.hypot(bias, measured.spread) / unit
    control, deviations, squares = control_of(subject), Deviations(), list[float]()
    units = [unit for unit, _ in zip(subject.units(DRAWS, own_randomness=random), range(DRAWS), strict=False)]
    for drawn, draw in zip(units, differences(subject, units, control), strict=True):
        deviations.update(draw, len(drawn.batches))
        squares.append(norm(added(added(draw, control(drawn)), subject.exact, -1.0)) ** 2)
    measured = deviations.measured(dict.fromkeys(subject.exact, 0.0))
    return measured.size() / unit, math.sqrt(sum(squares) / len(squares)) / unit
