"""Bias and error of a step along training: it trains the private copy, and is judged again after some steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from lmc_verify.audits.control import control_of
from lmc_verify.audits.measure import Deviations, differences, mean_gradient
from lmc_verify.audits.subject import Subject, added, norm
from lmc_verify.cases.verdict import Series
from lmc_verify.errors import InvalidInputError, NotFiniteError

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
    if _is_count(along) and along >= 1:
        return sorted({round(along * k / LOOKS) for k in range(LOOKS + 1)})
    looks = along if isinstance(along, Sequence) else []
    if not looks or not all(_is_count(look) and look >= 0 for look in looks):
        raise InvalidInputError(
            f"along is {along!r}; it is a number of optimiser steps from 1 on, or a list of such numbers from 0 on"
        )
    return sorted(set(looks))


def _is_count(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def follow(subject: Subject, looks: Sequence[int], make: MakeOptimizer | None, *, random: bool) -> list[Series]:
    """Train the copy with the step, and return bias and root mean square error against the number of steps.

    Args:
        subject: the step; parameters, buffers and state are put back afterwards.
        looks: numbers of steps after which it is judged.
        make: makes the optimiser; None for SGD with a step size of 0.01.
        random: whether the step draws for itself.
    """
    kept = {name: value.detach().clone() for name, value in _tensors(subject.model).items()}
    state, batches = subject.kept, subject.law.training(subject.seed)
    optimizer = (make or (lambda parameters: torch.optim.SGD(parameters, lr=0.01)))(subject.model.parameters())
    bias: list[float] = []
    error: list[float] = []
    number = 0
    try:
        for number in range(looks[-1] + 1):
            if number in looks:
                found = _judged(subject, random)
                bias.append(found[0])
                error.append(found[1])
            if number < looks[-1]:
                _train(subject, optimizer, next(batches), number)
    except NotFiniteError as failed:
        raise NotFiniteError(
            f"after {number} optimiser steps along training: {failed}. If it diverges, give an optimiser with a "
            "smaller step size (optimizer=), or fewer steps (along=)"
        ) from failed
    finally:
        with torch.no_grad():
            for name, value in _tensors(subject.model).items():
                if value.shape == kept[name].shape:  # else it is of the state, which follows
                    value.copy_(kept[name])
        subject.runner.state.restore(state)
        subject.moved()
    x = tuple(map(float, looks))
    title, labels = "Along training", ("optimiser steps", "in units of the exact gradient")
    return [
        Series("bias", x, tuple(bias), title, *labels, scale="semilogy"),
        Series("error of one step (root mean square)", x, tuple(error), title, *labels, scale="semilogy"),
    ]


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return parameters and buffers, those that are not saved with a model, too."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _train(subject: Subject, optimizer: torch.optim.Optimizer, batch: Any, number: int) -> None:
    gradient = subject.once(batch, subject.seed + number)
    for name, value in subject.model.named_parameters():
        value.grad = gradient.get(name)
    optimizer.step()
    optimizer.zero_grad()
    subject.moved()


def _judged(subject: Subject, random: bool) -> tuple[float, float]:
    """Return bias and root mean square error in units of the exact gradient."""
    unit = subject.unit or math.nan
    if subject.law.batches is not None and not random:
        measured = mean_gradient(subject)
        bias = norm(measured.bias)
        return bias / unit, math.hypot(bias, measured.spread) / unit
    control, deviations, squares = control_of(subject), Deviations(subject.unit), list[float]()
    units = [unit for unit, _ in zip(subject.units(DRAWS, own_randomness=random), range(DRAWS), strict=False)]
    for drawn, draw in zip(units, differences(subject, units, control), strict=True):
        deviations.update(draw, len(drawn.batches))
        squares.append((norm(added(added(draw, control(drawn)), subject.exact, -1.0)) / unit) ** 2)
    measured = deviations.measured(dict.fromkeys(subject.exact, 0.0))
    return measured.size() / unit, math.sqrt(sum(squares) / len(squares))
