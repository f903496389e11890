"""What a step keeps between batches: sweeps at frozen parameters until it no longer changes, and the bias meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch

from lmc_verify.audits.interventions import Intervention
from lmc_verify.audits.measure import InapplicableError, prepared
from lmc_verify.audits.subject import Prepared, Subject

__all__ = ["MOST_SWEEPS", "at_rest_under", "sweep_until_still"]

MOST_SWEEPS = 12
"""Sweeps after which a state that still changes is judged as it is."""

STILL = 1e-12
"""Relative change of the state in a sweep, at most, for it to have come to rest (in single precision: 1e-6)."""


def sweep_until_still(
    subject: Subject, look: Callable[[int], None], most: int | None = None, prepared: Prepared | None = None
) -> tuple[int, bool]:
    """Run sweeps over the batches at frozen parameters, from the state that was given.

    Args:
        subject: the step; its kept state is the one after the last sweep when this returns.
        look: called with the number of sweeps made, from 0 on, before each next one.
        most: number of sweeps; None stops when the state no longer changes.
        prepared: see `Subject.sweep`.

    Returns:
        The number of sweeps, and whether the state has come to rest.
    """
    limit = MOST_SWEEPS if most is None else most
    still = STILL if subject.runner.dtype is torch.float64 else 1e-6
    for number in range(limit):
        look(number)
        before = _tensors(subject)
        subject.sweep(subject.law.sweep(number), seed=1000 * (number + 1), prepared=prepared)
        if most is None and _moved(before, _tensors(subject)) <= still:
            return number + 1, True
    look(limit)
    return limit, most is not None


@contextmanager
def at_rest_under(subject: Subject, chosen: Sequence[Intervention], *, given: bool = False) -> Iterator[None]:
    """Let steps start from the state that rests where they run under interventions.

    Args:
        subject: the step.
        chosen: the interventions.
        given: whether its kept state is one that was given; else it rests already where the step runs without any.

    Raises:
        InapplicableError: the step fails under the interventions.
    """
    rests = not given and not any(item.changes_the_run or item.batch is not None for item in chosen)
    if subject.runner.state.empty or rests:
        yield
        return
    with subject.state_put_back():
        try:
            sweep_until_still(subject, lambda _: None, prepared=partial(prepared, subject, chosen=chosen))
        except Exception as error:
            raise InapplicableError from error
        yield


def _tensors(subject: Subject) -> dict[str, torch.Tensor]:
    subject.reset()
    return {
        name: value.detach().clone().double()
        for name, value in subject.runner.state.tensors().items()
        if value.is_floating_point()
    }


def _moved(before: dict[str, torch.Tensor], now: dict[str, torch.Tensor]) -> float:
    """Return the largest change of a tensor, relative to its norm; infinite where there are other tensors."""
    if set(before) != set(now):
        return float("inf")
    worst = 0.0
    for name, value in now.items():
        if value.shape != before[name].shape:
            return float("inf")
        size = float(value.norm())
        gap = float((value - before[name]).norm())
        worst = max(worst, gap / size if size else (0.0 if gap == 0.0 else float("inf")))
    return worst
