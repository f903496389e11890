"""What a step keeps between batches: sweeps at frozen parameters until it no longer changes, and the bias meanwhile."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from lmc_verify.audits.interventions import Intervention
from lmc_verify.audits.measure import InapplicableError, prepared
from lmc_verify.audits.subject import Prepared, Subject, length
from lmc_verify.errors import NotFiniteError

__all__ = ["FIRST_SWEEPS", "MOST_SWEEPS", "RestingStates", "Sweeps", "sweep_until_still"]

FIRST_SWEEPS, MOST_SWEEPS = 12, 120
"""Sweeps after which a state that still changes is judged as it is, unless it is expected to rest after the most."""

PACE = 3
"""Sweeps over which it is measured how fast the changes of a state shrink."""

MOST_KEPT_BYTES = 2**26
"""Memory for states at rest under interventions."""

STILL = 1e-12
"""Relative change of the state in a sweep, at most, for it to have come to rest (in single precision: 1e-6), if changes
shrink no more, or are rounding: what is left of a slow one is more than the last change."""


@dataclass(frozen=True)
class Sweeps:
    """What sweeps came to.

    Attributes:
        made: their number.
        still: whether the state has come to rest, or the number was given.
        expected: the number after which it would rest at the pace of the last ones; None where it is not known.
    """

    made: int
    still: bool
    expected: int | None = None


def sweep_until_still(
    subject: Subject, look: Callable[[int], None], most: int | None = None, prepared: Prepared | None = None
) -> Sweeps:
    """Run sweeps over the batches at frozen parameters, from the state that was given.

    Args:
        subject: the step; its kept state is the one after the last sweep when this returns.
        look: called with the number of sweeps made, from 0 on, before each next one.
        most: number of sweeps; None stops when the state no longer changes, or is not expected to come to rest.
        prepared: see `Subject.sweep`.
    """
    still, rounding = _still(subject), 4 * torch.finfo(subject.runner.dtype).eps
    gaps, expected, number = list[float](), None, 0
    while number < (FIRST_SWEEPS if most is None else most) or (expected is not None and expected <= MOST_SWEEPS):
        look(number)
        before = _tensors(subject)
        subject.sweep(subject.law.sweep(number), seed=1000 * (number + 1), prepared=prepared)
        number += 1
        if most is None:
            moved, gap = _moved(before, _tensors(subject))
            if moved <= rounding or (moved <= still and (not gaps or gap >= gaps[-1])):
                return Sweeps(number, True)
            gaps.append(gap)
            expected = _expected(gaps, rounding / moved) if number >= FIRST_SWEEPS else None
    look(number)
    return Sweeps(number, most is not None, expected)


def _expected(gaps: Sequence[float], wanted: float) -> int | None:
    """Return after how many sweeps changes are a share of the last one if they go on to shrink; None if they do not."""
    before, last = gaps[-1 - PACE], gaps[-1]
    if not (math.isfinite(before) and 0.0 < last < before and wanted > 0.0):
        return None
    return len(gaps) + math.ceil(math.log(wanted) / math.log(last / before) * PACE)


class RestingStates:
    """States that rest where a step runs under interventions, each found once as far as memory allows.

    Args:
        subject: the step.
        given: whether its kept state is one that was given; else it rests where the step runs without interventions.
    """

    def __init__(self, subject: Subject, *, given: bool = False) -> None:
        self._subject, self._given = subject, given
        self._found: OrderedDict[tuple[str, ...], Any] = OrderedDict()
        self._moves: dict[str, bool] = {}  # interventions that were tried alone: whether the state rests elsewhere
        size = sum(value.numel() * value.element_size() for value in subject.runner.state.tensors().values())
        self._most = max(1, MOST_KEPT_BYTES // max(size, 1))

    @contextmanager
    def under(self, chosen: Sequence[Intervention]) -> Iterator[None]:
        """Let steps start from the state that rests where they run under interventions.

        Raises:
            InapplicableError: the step fails under them, or leaves a state that is not finite.
        """
        subject = self._subject
        if subject.runner.state.empty:
            yield
            return
        changing = [item for item in chosen if item.changes_the_run or item.batch is not None]
        moving = [item for item in changing if self._moves.get(item.id, True)]
        if not moving and not self._given:
            yield
            return
        key = tuple(item.id for item in moving)
        with subject.state_put_back():
            if key in self._found:
                subject.kept = self._found[key]
                self._found.move_to_end(key)
            else:
                self._sweep(moving)
                self._found[key] = subject.kept
                if len(self._found) > self._most:
                    self._found.popitem(last=False)
            try:
                yield
            except NotFiniteError as error:
                raise InapplicableError from error  # it is not so from the state that the step leaves by itself

    def _sweep(self, chosen: Sequence[Intervention]) -> None:
        subject = self._subject
        before = _tensors(subject)
        try:
            sweep_until_still(subject, lambda _: None, prepared=partial(prepared, subject, chosen=chosen))
        except Exception as error:
            raise InapplicableError from error
        now = _tensors(subject)
        if not all(bool(value.isfinite().all()) for value in now.values()):
            raise InapplicableError
        if len(chosen) == 1 and not self._given:
            self._moves[chosen[0].id] = _moved(before, now)[0] > _still(subject)


def _still(subject: Subject) -> float:
    return STILL if subject.runner.dtype is torch.float64 else 1e-6


def _tensors(subject: Subject) -> dict[str, torch.Tensor]:
    subject.reset()
    return {
        name: value.detach().clone().double()
        for name, value in subject.runner.state.tensors().items()
        if value.is_floating_point()
    }


def _moved(before: dict[str, torch.Tensor], now: dict[str, torch.Tensor]) -> tuple[float, float]:
    """Return the largest change of a tensor relative to its norm, and the norm of all changes.

    Both are infinite where there are other tensors.
    """
    worst, gaps = 0.0, list[float]()
    if set(before) != set(now) or any(value.shape != before[name].shape for name, value in now.items()):
        return math.inf, math.inf
    for name, value in now.items():
        size, gap = length(value), length(value - before[name])
        if not math.isfinite(gap):
            return math.inf, math.inf
        worst = max(worst, gap / size if size else (0.0 if gap == 0.0 else math.inf))
        gaps.append(gap)
    return worst, math.hypot(*gaps)
