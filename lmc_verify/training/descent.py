"""Training runs as the theorems have them: plain stochastic gradient descent with independent batches.

No momentum, no weight decay, no adaptive step: what is verified is the estimator. The problem of a run is a private
copy, so that the caller's parameters stay as they are.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from lmc_verify.arguments import require, typed
from lmc_verify.errors import InvalidInputError, require_kind
from lmc_verify.estimators import Estimate, Estimator, History, batch_distribution, checked_estimate, properties_of
from lmc_verify.estimators.contract import made_state, require_estimator
from lmc_verify.graphs import Batch, BatchDesign
from lmc_verify.objective import (
    ExactPass,
    Gradient,
    Problem,
    exact_gradient,
    exact_pass,
    gradient_norm,
    gradient_sum,
)

__all__ = ["HUGE", "ConditionalMoments", "TrainingRun", "conditional_bias", "conditional_moments", "weighted_batches"]

HUGE = 1e100
"""Numbers beyond it may overflow in products; below it an estimate is finite, or its estimator is broken."""

WeightedBatches = Sequence[tuple[Batch, float]]
"""Every batch of a design with its probability."""


def weighted_batches(design: BatchDesign) -> WeightedBatches:
    """Return every batch of a design with its probability, as a list that can be gone through again."""
    return list(design.enumerate())


@dataclass(frozen=True, eq=False)
class ConditionalMoments:
    """What the next batch does to an estimate, given the histories.

    Attributes:
        bias: ``E[g | histories] - grad``, by parameter name.
        exact: the exact pass at the same parameters.
        size: ``E[||g|| | histories]``: rounding in the bias is relative to it, and not to what is left of the sum.
    """

    bias: Gradient
    exact: ExactPass
    size: float


@typed
def conditional_bias(
    problem: Problem,
    estimator: Estimator,
    state: History,
    batches: Iterable[tuple[Batch, float]],
    exact: ExactPass | None = None,
) -> tuple[Gradient, ExactPass]:
    """Return bias and exact pass of `conditional_moments`, whose arguments it takes."""
    found = conditional_moments(problem, estimator, state, batches, exact)
    return found.bias, found.exact


@typed
def conditional_moments(
    problem: Problem,
    estimator: Estimator,
    state: History,
    batches: Iterable[tuple[Batch, float]],
    exact: ExactPass | None = None,
) -> ConditionalMoments:
    """Return the bias ``E[g | histories] - grad`` of the next estimate, and the mean size of estimates.

    The expectation is over the next batch alone: the histories are those of the snapshot. Nothing is changed. An
    estimator that holds exact values and finds them outdated would make an exact pass for every batch; it is given the
    one at hand.

    Args:
        problem: the problem.
        estimator: the estimator.
        state: its histories.
        batches: every batch with its probability.
        exact: the exact pass at the present parameters, if it is known.
    """
    require_estimator(estimator)
    weighted = _weighted(batches)
    exact = exact or exact_pass(problem)
    if state.exact_for is not None and not state.is_exact_for(problem):
        state = History.from_exact(problem, exact)
    finite = _healthy(exact.gradient, state)  # else the run has diverged, and estimates with it
    mean, size = problem.zero_gradient(), 0.0
    for batch, probability in weighted:
        estimate = checked_estimate(estimator, problem, state, batch, finite=finite).gradient
        mean, size = gradient_sum(mean, estimate, probability), size + probability * gradient_norm(estimate)
    return ConditionalMoments(gradient_sum(mean, exact.gradient, -1.0), exact, size)


def _weighted(batches: Iterable[tuple[Batch, float]]) -> WeightedBatches:
    """Return batches with their probabilities, or refuse what is none."""
    found = list(batches)  # of `design.enumerate()`, too, which can be gone through once
    for item in found:
        pair = isinstance(item, tuple) and len(item) == 2
        if not pair or not isinstance(item[0], Batch):
            raise InvalidInputError(
                f"one of the batches is a {type(item).__name__}, each must be a pair (batch, probability); such as "
                "list(design.enumerate())"
            )
    if not found:
        raise InvalidInputError("batches is empty, so that there is no mean; give every batch with its probability")
    return found


def _healthy(exact: Gradient, state: History) -> bool:
    """Whether gradient and histories are so far from overflow that an estimate which is not finite is a defect."""
    tables = (*state.embeddings.values(), *state.auxiliary.values(), *state.vectors.values())
    sizes = [gradient_norm(exact), *(float(table.abs().max()) for table in tables if table.numel())]
    return all(size <= HUGE for size in sizes)  # NaN is not


class TrainingRun:
    """A run of stochastic gradient descent, one step at a time.

    Args:
        problem: where to start; it is copied, the graph is shared.
        estimator: gives the gradient estimates.
        design: the batches are independent draws from it.
        step_size: eta, constant over the run.
        generator: of the batches.
        state: histories to start from, copied; by default the estimator's own initial state.

    Raises:
        InvalidInputError: a step size that is negative or not finite; 0 holds the parameters and lets histories settle.

    Attributes:
        problem: the run's own problem, at the present parameters.
        state: the present histories.
        step_count: number of steps taken.
    """

    @typed(besides=("estimator", "design"))
    def __init__(
        self,
        problem: Problem,
        estimator: Estimator,
        design: BatchDesign,
        *,
        step_size: float,
        generator: np.random.Generator,
        state: History | None = None,
    ) -> None:
        for name, value, kind in (("problem", problem, Problem), ("generator", generator, np.random.Generator)):
            require_kind(name, value, kind)
        require_estimator(estimator)
        require("design", design, BatchDesign)
        if not 0 <= step_size < math.inf:
            raise InvalidInputError(
                f"step_size is {step_size}, it must be finite and not negative; choose a smaller one"
            )
        self.problem = problem.copy()
        self.estimator, self.step_size = estimator, step_size
        self.state = made_state(estimator, self.problem) if state is None else state.clone()
        self.design = batch_distribution(estimator, self.problem, self.state, design)
        self._adaptive = properties_of(estimator).adaptive
        self.step_count = 0
        self._generator = generator
        self._parameters = {
            name: parameter
            for name, parameter in self.problem.model.named_parameters()
            if name in self.problem.parameter_names
        }

    def draw(self) -> Batch:
        """Draw the next batch, from the estimator's own distribution where that depends on the state."""
        if self._adaptive:
            self.design = batch_distribution(self.estimator, self.problem, self.state, self.design)
        return self.design.draw(self._generator)

    def step(self, batch: Batch | None = None) -> Estimate:
        """Take one step: estimate, write the histories, move the parameters; return the estimate.

        Args:
            batch: the batch, by default a fresh draw.

        Raises:
            ContractError: the estimate is none of this problem's gradient; numbers that are not finite are allowed
                where the run has diverged, and only there.
        """
        batch = self.draw() if batch is None else batch
        estimate = checked_estimate(self.estimator, self.problem, self.state, batch, finite=False)
        if not math.isfinite(gradient_norm(estimate.gradient)):
            exact = exact_gradient(self.problem)[1]
            if _healthy(exact, self.state):  # nothing has diverged: it is the estimator that gives no numbers
                checked_estimate(self.estimator, self.problem, self.state, batch)
        self.state.apply(estimate.writes)
        self.descend(estimate.gradient)
        return estimate

    def descend(self, gradient: Gradient) -> None:
        """Move the parameters by one step against a gradient."""
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                parameter.sub_(gradient[name], alpha=self.step_size)
        self.step_count += 1
