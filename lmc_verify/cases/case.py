"""Cases: the graph, problem, design and estimator of one check, built from its settings.

Every case is built in float64 and from its own seeds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch

from lmc_verify.cases.description import CaseDescription, departures
from lmc_verify.cases.lookup import build_estimator, plugins_of
from lmc_verify.cases.settings import CaseSettings, SamplingSettings, TrainingSettings, known_histories
from lmc_verify.cases.workspace import Workspace, build_design
from lmc_verify.errors import InvalidInputError
from lmc_verify.estimators import (
    ContractCheck,
    Estimate,
    Estimator,
    History,
    batch_distribution,
    exact_histories,
    made_state,
    properties_of,
    unwrapped,
)
from lmc_verify.estimators.contract import require_estimator
from lmc_verify.estimators.draws import MOST_BATCHES, check_draws, is_own_design, require_design, require_enumeration
from lmc_verify.graphs import Batch, BatchDesign, Clusters, Graph, OneBatch, Partition
from lmc_verify.objective import ExactPass, Problem, exact_pass
from lmc_verify.seeds import generator

__all__ = ["Case", "assemble_case", "build_case", "sweep_batches"]

_BUILT = (
    *("nodes", "edges", "layers", "estimator", "normaliser", "per_batch", "support", "histories", "seed", "dtype"),
    *("normalisation", "partition", "parts", "replicate", "seen", "sampling", "training"),
)
"""What is described as it was built; the rest as it was asked for."""


@dataclass(frozen=True, eq=False)
class Case:
    """One case: everything that a claim needs to be checked.

    Attributes:
        problem: in float64, in evaluation mode.
        design: the distribution of the batches: the design that was given and, with it, the samples of an estimator
            that has randomness of its own, at the case's initial state.
        estimator: the estimator under test.
        exact: the exact pass of `problem`.
        histories: ``"exact"``, ``"zero"`` or ``"sweeps:K"``, see `CaseSettings`.
        seed: root seed, for the record.
        settings: what the case was built from, or None if it was assembled from objects.
        sampling: error level and budget of statistical verdicts.
        training: the training runs along which convergence is checked.
        contract: asks the estimator, and checks what it answers.
    """

    problem: Problem
    design: BatchDesign
    estimator: Estimator
    exact: ExactPass
    histories: str = "exact"
    seed: int = 0
    settings: CaseSettings | None = None
    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    training: TrainingSettings = field(default_factory=TrainingSettings)
    contract: ContractCheck = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "contract", ContractCheck(self.estimator, self.problem))
        if properties_of(self.estimator).samples:
            distribution = batch_distribution(self.estimator, self.problem, self.initial_state(), self.design)
            object.__setattr__(self, "design", distribution)
        else:
            object.__setattr__(self, "design", unwrapped(self.design))

    @property
    def graph(self) -> Graph:
        """The graph of the problem."""
        return self.problem.graph

    @property
    def partition(self) -> Partition | None:
        """The clusters that the design draws from, or None."""
        partition = getattr(self.base_design, "partition", None)
        return partition if isinstance(partition, Partition) else None

    @property
    def weighting(self) -> str:
        """The estimator's loss weighting; ``"inclusion"`` where it states none."""
        return properties_of(self.estimator).weighting or "inclusion"

    @property
    def conditioned(self) -> bool:
        """Whether the design is conditioned on clusters that an epoch has already visited."""
        return bool(getattr(self.base_design, "seen", ()))

    @property
    def rarest(self) -> float:
        """The smallest inclusion probability of a node that is in some batch."""
        inclusion = self.design.inclusion_probabilities()
        return float(inclusion[inclusion > 0].min())

    @property
    def base_design(self) -> BatchDesign:
        """The design of the batches, without the samples of the estimator."""
        return unwrapped(self.design)

    def estimate(self, state: History, batch: Batch) -> Estimate:
        """Return the estimator's estimate from one batch, checked against the contract.

        Raises:
            ContractError: see `lmc_verify.estimators.contract`.
        """
        return self.contract.estimate(state, batch)

    def check_contract(self) -> None:
        """Ask for the estimate of one batch that the design draws, and check it against the contract.

        Raises:
            ContractError: see `lmc_verify.estimators.contract`.
        """
        self.estimate(self.initial_state(), self.design.draw(generator(self.seed, "contract")))

    def check_draws(self) -> None:
        """Compare, once, what a design of the user's draws with what it enumerates.

        Raises:
            ContractError: they are two distributions.
            InvalidInputError: the samples of an estimator of the user's have no enumeration that is a distribution.
        """
        assert self._follows_enumeration

    @cached_property
    def _follows_enumeration(self) -> bool:
        base = self.base_design
        if not is_own_design(base) and base.support_size <= MOST_BATCHES:
            check_draws(base, f"the batch design {type(base).__name__!r}", seed=self.seed)
        if base is not self.design and not properties_of(self.estimator).known:
            size = self.design.support_size
            if size <= MOST_BATCHES:
                require_enumeration(self.design, f"{self.estimator.name} with samples", counted=False)
        return True

    def initial_state(self) -> History:
        """Return a state with the histories that the case asks for."""
        return prepared_state(self, self.histories)

    @cached_property
    def description(self) -> CaseDescription:
        """The case for records and reports."""
        graph, problem, design, settings = self.graph, self.problem, self.design, self.settings
        base, partition = self.base_design, self.partition
        described = CaseDescription(
            dataset=graph.name,
            nodes=graph.num_nodes,
            edges=graph.num_edges,
            model=type(problem.model).__name__.lower(),
            layers=problem.num_layers,
            width=max(problem.widths[1:]),
            estimator=self.estimator.name,
            normaliser=self.weighting,
            design=type(base).__name__,
            per_batch=getattr(base, "per_batch", getattr(base, "size", None)),
            support=_described_support(design.support_size),
            histories=self.histories,
            seed=self.seed,
            dtype=str(graph.dtype).removeprefix("torch."),
            normalisation=getattr(design, "normalisation", None),
            partition=None if partition is None else partition.method,
            parts=None if partition is None else partition.num_parts,
            replicate=self.sampling.replicate,
            seen=tuple(getattr(base, "seen", ())),
            sampling=departures(self.sampling, ("alpha", "replicate")),
            training=departures(self.training),
        )
        if settings is None:
            return described
        return replace(
            CaseDescription.asked(settings),
            **{name: getattr(described, name) for name in _BUILT},
            # The loss weighting has a key of its own, under the name that records have always had.
            estimator_settings={
                key: value
                for key, value in settings.estimator.settings.items()
                if (key, value) != ("weighting", self.weighting)
            },
        )

    @cached_property
    def hashes(self) -> Mapping[str, str]:
        """Content hashes of what the verdict depends on."""
        out = {"graph": self.graph.fingerprint, "parameters": self.problem.parameter_fingerprint()}
        if self.partition is not None:
            out["partition"] = self.partition.fingerprint
        return out | (plugins_of(self.settings) if self.settings is not None else {})


def _described_support(size: float) -> int | str:
    if size == math.inf:
        return "unknown"
    return int(size) if size < 10**15 else readable_count(size)


def readable_count(number: float) -> str:
    """Return a number with thousands separators, or its power of ten where it is astronomic."""
    return f"{number:,}" if number < 10**15 else f"about 10^{math.log10(number):.0f}"


def build_case(settings: CaseSettings, workspace: Workspace | None = None) -> Case:
    """Build the objects of a case.

    Raises:
        InvalidInputError: anything in the settings that does not fit; the message names it.
    """
    workspace = workspace or Workspace()
    graph = workspace.graph(settings.dataset, settings.seed)
    problem = workspace.problem(graph, settings.model, settings.seed)
    _require_finite(problem, workspace.exact(problem))
    return Case(
        problem=problem.copy(),  # trials share the original: what an estimator does to its model stays its own
        design=build_design(settings.design, graph, workspace, settings.seed),
        estimator=build_estimator(settings.estimator),
        exact=workspace.exact(problem),
        histories=settings.histories,
        seed=settings.seed,
        settings=settings,
        sampling=settings.sampling,
        training=settings.training,
    )


def assemble_case(
    problem: Problem,
    design: BatchDesign,
    estimator: Estimator,
    *,
    histories: str = "exact",
    seed: int = 0,
    sampling: SamplingSettings | None = None,
    training: TrainingSettings | None = None,
) -> Case:
    """Make a case of objects: a user's own graph, model, design or estimator.

    Raises:
        InvalidInputError: the problem is not in float64 or has no trainable parameter, or `histories` is none of exact,
            zero and sweeps:K.
    """
    _check_kinds(problem, estimator, histories, sampling, training)
    if not problem.parameter_names:
        raise InvalidInputError(
            "the model has no trainable parameter, so there is no gradient to estimate; set requires_grad on some"
        )
    if problem.graph.dtype != torch.float64:
        raise InvalidInputError(
            f"the problem is in {problem.graph.dtype}, claims are checked in float64; pass problem.double()"
        )
    if not is_own_design(design):
        require_design(design)
    covered = design.inclusion_probabilities().numel()
    if covered != problem.graph.num_nodes:
        raise InvalidInputError(
            f"the batch design covers {covered} nodes, the graph has {problem.graph.num_nodes}; "
            "build the design from this graph"
        )
    problem = problem.copy()  # the caller's model stays as it is, whatever an estimator does
    exact = exact_pass(problem)
    _require_finite(problem, exact)
    return Case(
        problem,
        design,
        estimator,
        exact,
        known_histories(histories),
        seed,
        sampling=sampling or SamplingSettings(),
        training=training or TrainingSettings(),
    )


def _check_kinds(problem: Any, estimator: Any, histories: Any, sampling: Any, training: Any) -> None:
    if not isinstance(problem, Problem):
        raise InvalidInputError(f"problem is {problem!r:.80}, it must be a lmc_verify.Problem(graph, model)")
    require_estimator(estimator)
    if not isinstance(histories, str):
        raise InvalidInputError(f"histories is {histories!r}, it must be 'exact', 'zero' or 'sweeps:K'")
    for name, value, kind in (("sampling", sampling, SamplingSettings), ("training", training, TrainingSettings)):
        if value is not None and not isinstance(value, kind):
            raise InvalidInputError(f"{name} is {value!r:.80}, it must be a lmc_verify.{kind.__name__}")


def _require_finite(problem: Problem, exact: ExactPass) -> None:
    """Refuse a problem whose exact gradient is no number: nothing can be compared with it.

    Raises:
        InvalidInputError: names the parameter, or where the numbers overflow.
    """
    for name, parameter in problem.model.named_parameters():
        bad = int((~torch.isfinite(parameter)).sum())
        if bad:
            raise InvalidInputError(
                f"parameter {name} holds {bad} NaN or infinite values, so there is no exact gradient to compare with; "
                "check a model whose training has not diverged"
            )
    for layer, rows in enumerate(exact.embeddings):
        if not torch.isfinite(rows).all():
            raise InvalidInputError(
                f"the embeddings of layer {layer} are not finite at these parameters: the numbers overflow; scale the "
                "features or the parameters down"
            )
    broken = [name for name, value in exact.gradient.items() if not torch.isfinite(value).all()]
    if broken or not math.isfinite(exact.loss):
        what = f"gradient of {broken[0]}" if broken else "objective"
        raise InvalidInputError(
            f"the exact {what} is not finite at these parameters: the numbers overflow; scale the features or the "
            "parameters down"
        )


def prepared_state(case: Case, histories: str) -> History:
    """Return a state of the case's estimator with ``"exact"``, ``"zero"`` or ``"sweeps:k"`` histories.

    Exact values are exact, zeros are zeros, and sweeps start from zeros, whatever the estimator's `init` gives, and
    whatever it says of that; only an estimator that states that it holds exact values has them by definition.

    Raises:
        InvalidInputError: sweeps were asked for a design without clusters.
    """
    state = made_state(case.estimator, case.problem)
    if properties_of(case.estimator).holds_exact:
        return state
    if histories == "exact":
        filled = state.filled(case.exact, exact_histories(case.estimator, case.problem, case.exact))
        filled.exact_for = state.exact_for if state.is_exact_for(case.problem) else None
        return filled
    state = state.zeroed()
    if histories.startswith("sweeps:"):
        rng, samples = generator(case.seed, "samples of sweeps"), properties_of(case.estimator).samples
        for _ in range(int(histories.removeprefix("sweeps:"))):
            for batch in sweep_batches(case):
                if samples:
                    one = OneBatch(batch, case.graph.num_nodes)
                    batch = batch_distribution(case.estimator, case.problem, state, one).draw(rng)
                state.apply(case.estimate(state, batch).writes)
    return state


def sweep_batches(case: Case) -> list[Any]:
    """Return batches that visit every node exactly once: the clusters in order, `per_batch` at a time.

    Raises:
        InvalidInputError: the design has no clusters.
    """
    if case.partition is None:
        raise InvalidInputError("sweeps need a design over clusters, this case draws single nodes; set design.name")
    groups = case.partition.num_parts
    per_batch = min(int(getattr(case.base_design, "per_batch", 1)), groups)
    assignment = torch.arange(groups) // per_batch
    fused = Partition(assignment[case.partition.assignment], "sweep")
    return [batch for batch, _ in Clusters(fused, 1).enumerate()]
