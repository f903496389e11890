"""Runs of stochastic gradient descent that share graph, model and design, and advance together.

Every run has its own parameters, histories, step size, beta and generator, and draws its own batches: the same ones as
a `lmc_verify.TrainingRun` with the same generator, and the same numbers to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from lmc_verify.errors import InvalidInputError
from lmc_verify.estimators import Estimator, properties_of
from lmc_verify.estimators.compensated.policies import Blend, Cut, HaloPolicy, Held, Momentum, Policies
from lmc_verify.graphs import Batch, BatchDesign
from lmc_verify.objective import Problem, refuse_dropout
from lmc_verify.training.together.aggregation import INDUCED, Aggregation
from lmc_verify.training.together.estimate import Estimates, Tables, estimate_runs
from lmc_verify.training.together.membership import Membership, Memberships
from lmc_verify.training.together.stacked import StackedModel

__all__ = ["RunSpecification", "TrainingRuns", "reason_to_run_alone"]


@dataclass(frozen=True, eq=False)
class RunSpecification:
    """What one of several runs has of its own.

    Attributes:
        estimator: gives the gradient estimates.
        step_size: eta, constant over the run.
        generator: of the batches.
    """

    estimator: Estimator
    step_size: float
    generator: np.random.Generator


def reason_to_run_alone(problem: Problem, estimators: Sequence[Estimator]) -> str | None:
    """Return why runs of these estimators cannot advance together, or None if they can."""
    first = estimators[0]
    if not all(_is_served(estimator) for estimator in estimators):
        return "an estimator is none of the compensated family with the package's own methods, nor full batch"
    if any(_without_beta(estimator) != _without_beta(first) for estimator in estimators):
        return "the estimators differ in more than beta"
    model = StackedModel.of(problem)
    if isinstance(model, str):
        return model
    policies = properties_of(first).policies
    if policies is not None and isinstance(policies.forward, Cut) and policies.forward.renormalise:
        weight = problem.graph.edge_weight
        if weight is not None and bool((weight < 0).any()):
            return "induced subgraphs are normalised by degrees, and some edge weights are negative"
        if any(layer.form.operator not in INDUCED for layer in model.layers):
            return f"induced subgraphs are normalised for the operators {', '.join(INDUCED)} only"
    return None


class TrainingRuns:
    """Several runs of stochastic gradient descent, one step of each at a time.

    Args:
        problem: where every run starts; it is not changed.
        runs: what each run has of its own; estimators of one kind, which differ in beta alone.
        design: the batches of every run are independent draws from it.

    Raises:
        InvalidInputError: the runs cannot advance together (see `reason_to_run_alone`; use `TrainingRun`), there is
            none, or a step size is negative or not finite.

    Attributes:
        parameters: by name, those that are not trained included, each [runs, ...].
        tables: histories, each [n, runs, width].
        step_count: number of steps taken.
    """

    def __init__(self, problem: Problem, runs: Sequence[RunSpecification], design: BatchDesign) -> None:
        if not runs:
            raise InvalidInputError("there are no runs to advance; give at least one")
        for run in runs:
            if not 0 <= run.step_size < math.inf:
                raise InvalidInputError(
                    f"step_size is {run.step_size}, it must be finite and not negative; choose a smaller one"
                )
        reason = reason_to_run_alone(problem, [run.estimator for run in runs])
        model = StackedModel.of(problem)
        if reason is not None or isinstance(model, str):
            raise InvalidInputError(f"these runs cannot advance together: {reason}; use a TrainingRun for each")
        refuse_dropout(problem)
        self._model, self._design, self._aggregation = model, design, Aggregation(problem.graph)
        found = properties_of(runs[0].estimator)
        policies = [properties_of(run.estimator).policies for run in runs]
        stated = [item for item in policies if item is not None]  # none of them where the estimates are exact
        self._policies = stated[0] if stated else None
        self._memberships = (
            Memberships(problem, stated, found.weighting or "inclusion", self._aggregation, design.support_size)
            if stated
            else None
        )
        self._generators = [run.generator for run in runs]
        self._numbers = torch.arange(len(runs))
        self._step_sizes = torch.tensor([run.step_size for run in runs], dtype=problem.graph.dtype)
        self._step_sizes = self._step_sizes.to(problem.graph.device)
        self.parameters = model.stack(len(runs))
        self.tables = self._empty_tables()
        self.step_count = 0

    def __len__(self) -> int:
        return len(self._generators)

    def draw(self) -> list[Batch]:
        """Draw the next batch of every run, from its own generator."""
        return [self._design.draw(generator) for generator in self._generators]

    def estimate(self, batches: Sequence[Batch]) -> Estimates:
        """Estimate every run's gradient from its batch; nothing is changed."""
        rows = Membership() if self._memberships is None else self._memberships.of(batches, self._numbers)
        momentum = self._policies is not None and isinstance(self._policies.forward, Momentum)
        return estimate_runs(self._model, self.parameters, self.tables, rows, self._aggregation, momentum=momentum)

    def step(self, batches: Sequence[Batch] | None = None) -> Estimates:
        """Take one step of every run: estimate, write the histories, move the parameters; return the estimates.

        Args:
            batches: one for each run, by default fresh draws.
        """
        estimates = self.estimate(self.draw() if batches is None else batches)
        self.tables = estimates.tables
        for name, gradient in estimates.gradient.items():
            sizes = self._step_sizes.view(-1, *(1,) * (gradient.dim() - 1))
            self.parameters[name].sub_(sizes * gradient)
        self.step_count += 1
        return estimates

    def exact_gradient(self, runs: Sequence[int] | None = None) -> dict[str, Tensor]:
        """Return the exact gradient at the present parameters of these runs, or of all, by name [runs, ...]."""
        parameters = self.parameters
        if runs is not None:
            chosen = torch.tensor(runs, device=self._step_sizes.device)
            parameters = {name: value.index_select(0, chosen) for name, value in parameters.items()}
        return estimate_runs(self._model, parameters, Tables(), Membership(), self._aggregation).gradient

    def keep(self, runs: Sequence[int]) -> None:
        """Go on with some of the runs, by their present numbers; the others end here."""
        chosen = torch.tensor(runs)
        self._generators = [self._generators[run] for run in runs]
        self._numbers = self._numbers[chosen]
        chosen = chosen.to(self._step_sizes.device)
        self._step_sizes = self._step_sizes[chosen]
        self.parameters = {name: value.index_select(0, chosen) for name, value in self.parameters.items()}
        self.tables = Tables(
            {layer: table.index_select(1, chosen) for layer, table in self.tables.embeddings.items()},
            {layer: table.index_select(1, chosen) for layer, table in self.tables.auxiliary.items()},
        )

    def _empty_tables(self) -> Tables:
        """Return histories of zeros, those that the policies write."""
        policies, problem = self._policies, self._model.problem
        layers, runs = range(1, problem.num_layers + 1), len(self)

        def zeros(wanted: bool) -> dict[int, Tensor]:
            x = problem.graph.x
            return {layer: x.new_zeros(len(x), runs, problem.widths[layer]) for layer in layers} if wanted else {}

        if policies is None or isinstance(policies.forward, Held):
            return Tables()
        return Tables(zeros(policies.writes_embeddings), zeros(policies.writes_auxiliary))


def _is_served(estimator: Estimator) -> bool:
    found = properties_of(estimator)
    return found.known and not found.samples and (found.exact or found.policies is not None)


def _without_beta(estimator: Estimator) -> tuple[Policies | None, str | None]:
    """Return an estimator's policies with beta set to zero, and its loss weighting."""
    found = properties_of(estimator)
    policies = found.policies
    if policies is not None:
        forward, backward = _policy_without(policies.forward), _policy_without(policies.backward)
        policies = replace(policies, forward=forward, backward=backward)
    return policies, found.weighting


def _policy_without(policy: HaloPolicy) -> HaloPolicy:
    return replace(policy, beta=0.0) if isinstance(policy, Blend) else policy
