"""Mean exact gradient norms along many runs: side by side where that is faster, one after the other elsewhere.

The choice is by size, from what `benchmarks/bench_together.py` measures; it changes results by rounding only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lmc_verify.estimators import properties_of
from lmc_verify.graphs import BatchDesign
from lmc_verify.objective import Problem, exact_gradient, gradient_norm
from lmc_verify.training.descent import TrainingRun
from lmc_verify.training.together.runs import RunSpecification, TrainingRuns, reason_to_run_alone

__all__ = ["MeasuredRun", "advance_together", "mean_gradient_norms", "runs_per_group"]

MOST_ELEMENTS = 2**16
"""Nodes times widths of all layers up to which runs of any estimator are faster together: alone, a step on so small a
graph is mostly overhead. On larger ones a small batch with its halo is less work than the masked whole graph."""

GROUP_ELEMENTS = 2**17
"""Nodes times largest width times runs that advance together at most: their values then stay in the cache."""

_SQUARES = (1e-260, 1e300)
"""Sums of squares in which nothing that counts has overflowed or vanished."""


@dataclass(frozen=True, eq=False)
class MeasuredRun:
    """A run and when its exact gradient is measured.

    Attributes:
        specification: the run.
        measured: how often each step counts in the mean, by number of steps taken before, at least one.
    """

    specification: RunSpecification
    measured: Mapping[int, int]

    @property
    def length(self) -> int:
        """Steps that are taken: none after the last measurement."""
        return max(self.measured)


def advance_together(problem: Problem, runs: Sequence[MeasuredRun]) -> bool:
    """Return whether these runs can advance together and are faster so."""
    estimators = [run.specification.estimator for run in runs]
    if reason_to_run_alone(problem, estimators) is not None:
        return False
    found = properties_of(estimators[0])
    # Estimates that are exact, or made of exact values, look at the whole graph anyway.
    whole = found.exact or bool(found.holds_exact)
    return whole or problem.graph.num_nodes * sum(problem.widths[1:]) <= MOST_ELEMENTS


def runs_per_group(problem: Problem) -> int:
    """Return how many runs advance together so that what they work on stays in the cache."""
    return max(GROUP_ELEMENTS // (problem.graph.num_nodes * max(problem.widths[1:])), 1)


def mean_gradient_norms(problem: Problem, runs: Sequence[MeasuredRun], design: BatchDesign) -> list[float]:
    """Return the mean norm of the exact gradient along each run, over the steps at which it is measured.

    Args:
        problem: where every run starts; it is not changed.
        runs: the runs; the generator of each is used up.
        design: the batches of every run are independent draws from it.
    """
    if not advance_together(problem, runs):
        return [_alone(problem, run, design) for run in runs]
    order = sorted(range(len(runs)), key=lambda number: -runs[number].length)
    found, size = [math.nan] * len(runs), runs_per_group(problem)
    for start in range(0, len(order), size):
        group = order[start : start + size]
        for number, norm in zip(group, _together(problem, [runs[number] for number in group], design), strict=True):
            found[number] = norm
    return found


def _alone(problem: Problem, planned: MeasuredRun, design: BatchDesign) -> float:
    own = planned.specification
    run = TrainingRun(problem, own.estimator, design, step_size=own.step_size, generator=own.generator)
    exact, total = properties_of(own.estimator).exact, 0.0
    for step, times in sorted(planned.measured.items()):
        while run.step_count < step:
            run.step()
        gradient = run.step().gradient if exact else exact_gradient(run.problem)[1]
        total += times * gradient_norm(gradient)
    return total / sum(planned.measured.values())


def _together(problem: Problem, planned: Sequence[MeasuredRun], design: BatchDesign) -> list[float]:
    runs = TrainingRuns(problem, [run.specification for run in planned], design)
    exact = properties_of(planned[0].specification.estimator).exact  # its estimates are what is measured
    totals, going = [0.0] * len(planned), list(range(len(planned)))
    while going:
        step = runs.step_count
        own = runs.step().gradient if exact else None
        due = [place for place, number in enumerate(going) if step in planned[number].measured]
        if due:
            norms = _norms(runs.exact_gradient(due) if own is None else {name: part[due] for name, part in own.items()})
            for place, norm in zip(due, norms, strict=True):
                totals[going[place]] += planned[going[place]].measured[step] * norm
        left = [place for place, number in enumerate(going) if planned[number].length > step]
        if left and len(left) < len(going):
            runs.keep(left)
        going = [going[place] for place in left]
        if left and not exact:
            runs.step()
    return [total / sum(run.measured.values()) for total, run in zip(totals, planned, strict=True)]


def _norms(gradient: Mapping[str, Tensor]) -> list[float]:
    """Return every run's `gradient_norm`, whatever its scale."""
    squares = torch.stack([part.flatten(1).square().sum(1) for part in gradient.values()]).sum(0)
    return [
        math.sqrt(square)
        if _SQUARES[0] <= square <= _SQUARES[1]
        else gradient_norm({name: part[run] for name, part in gradient.items()})
        for run, square in enumerate(squares.double().tolist())
    ]
