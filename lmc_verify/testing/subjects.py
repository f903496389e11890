"""What the conformance checks look at: an estimator on small cases, built again for every check."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from lmc_verify.datasets import load_graph
from lmc_verify.errors import InvalidInputError
from lmc_verify.estimators import Estimate, Estimator, History, batch_distribution
from lmc_verify.graphs import Batch, BatchDesign, Clusters, make_partition
from lmc_verify.models import GCN, SAGE, LayeredModel
from lmc_verify.objective import Problem
from lmc_verify.seeds import generator

__all__ = ["Subject", "given_subject", "subjects"]


@dataclass(eq=False)
class Subject:
    """An estimator on one conformance case.

    Attributes:
        estimator: the estimator under test.
        problem: in float64, evaluation mode.
        design: of the batches.
        seed: of the batches.
    """

    estimator: Estimator
    problem: Problem
    design: BatchDesign
    seed: int

    def state(self, problem: Problem | None = None, *, steps: int = 2) -> History:
        """Return a state that some steps have written to."""
        problem = problem or self.problem
        state = self.estimator.init(problem)
        source = generator(self.seed, "conformance steps")
        for _ in range(steps):  # the distribution may depend on the state
            batch = batch_distribution(self.estimator, problem, state, self.design).draw(source)
            state.apply(self.estimator.estimate(problem, state, batch).writes)
        return state

    def batches(self, problem: Problem, state: History, design: BatchDesign, count: int = 1) -> list[Batch]:
        """Draw batches of a design, with the estimator's own samples if it takes any."""
        distribution = batch_distribution(self.estimator, problem, state, design)
        source = generator(self.seed, "conformance batches")
        return [distribution.draw(source) for _ in range(count)]

    def prepared(self, problem: Problem | None = None) -> tuple[Problem, History, Batch]:
        """Return problem, state and a batch."""
        problem = problem or self.problem
        state = self.state(problem)
        return problem, state, self.batches(problem, state, self.design)[0]

    def first(self, problem: Problem, design: BatchDesign) -> Estimate:
        """Return an estimate from a fresh state and a batch of a design."""
        state = self.estimator.init(problem)
        return self.estimator.estimate(problem, state, self.batches(problem, state, design)[0])


def given_subject(
    estimator: Estimator, problem: Problem, design: BatchDesign | None, seed: int
) -> tuple[str, Callable[[], Subject]]:
    """Return the case of a user's problem and design (None: two of four random clusters), in copies for every check.

    Raises:
        InvalidInputError: no problem, no design, or one of another number of nodes.
    """
    if not isinstance(problem, Problem):
        raise InvalidInputError(f"problem is a {type(problem).__name__}, a Problem is needed: lmc_verify.Problem(...)")
    count = problem.graph.num_nodes
    if design is None:
        parts = min(4, count)
        design = Clusters(make_partition(problem.graph, "random", parts, seed=seed), min(2, parts))
    if isinstance(design, type) or not isinstance(design, BatchDesign):
        raise InvalidInputError(f"design is {design!r}; a batch design is needed, such as lmc_verify.UniformNodes")
    nodes = design.inclusion_probabilities().numel()
    if nodes != count:
        raise InvalidInputError(
            f"the design is of {nodes} nodes, the problem's graph has {count}; make one of that graph"
        )
    return "the given problem", partial(_given, estimator, problem, design, seed)


def _given(estimator: Estimator, problem: Problem, design: BatchDesign, seed: int) -> Subject:
    own = copy.deepcopy(problem).double()
    own.model.eval()
    return Subject(estimator, own, copy.deepcopy(design), seed)


def subjects(estimator: Estimator, seed: int) -> Iterator[tuple[str, Callable[[], Subject]]]:
    """Yield the conformance cases by name; each is built again for every check, so that none disturbs another."""
    yield "gcn on a directed weighted graph", partial(_directed, estimator, seed)
    yield "sage on a multi-label graph", partial(_multi_label, estimator, seed)


def _directed(estimator: Estimator, seed: int) -> Subject:
    sizes: dict[str, Any] = {"num_nodes": 24, "num_edges": 90, "num_classes": 3, "num_features": 4}
    graph = load_graph("directed", seed=seed, num_self_loops=2, num_isolated=2, **sizes).double()
    model = GCN(graph.num_features, 5, graph.num_outputs, num_layers=3, seed=seed, dtype=torch.float64)
    return _subject(estimator, Problem(graph, model.eval()), seed)


def _multi_label(estimator: Estimator, seed: int) -> Subject:
    graph = load_graph(
        "multilabel", seed=seed, num_nodes=20, num_labels=3, num_features=4, p_in=0.4, p_out=0.1
    ).double()
    settings: dict[str, Any] = {"encoder": True, "head": True, "norm": "layer", "residual": True}
    model: LayeredModel = SAGE(
        graph.num_features, 4, graph.num_outputs, num_layers=2, seed=seed, dtype=torch.float64, **settings
    )
    return _subject(estimator, Problem(graph, model.eval(), "bce"), seed)


def _subject(estimator: Estimator, problem: Problem, seed: int) -> Subject:
    return Subject(estimator, problem, Clusters(make_partition(problem.graph, "random", 4, seed=seed), 2), seed)
