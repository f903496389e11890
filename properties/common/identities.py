"""Drawn problems with designs, partitions and batches, and explicit witnesses of a bias.

Nothing is sampled: the mean over a design is the weighted sum over its whole support.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from hypothesis import strategies as st

from common.helpers import expectation, path_graph, relative_error
from lmc_verify import (
    GCN,
    Batch,
    BatchDesign,
    Clusters,
    Estimator,
    Graph,
    History,
    Partition,
    Problem,
    exact_pass,
)
from lmc_verify.testing import batches, designs, partitions, problems

WITNESS = 0.01
"""A difference called a witness is at least this large, relative: ten orders above any rounding."""


@st.composite
def with_design(draw: st.DrawFn, **options: object) -> tuple[Problem, BatchDesign]:
    problem = draw(problems(**options))
    return problem, draw(designs(problem.graph))


@st.composite
def with_partition(draw: st.DrawFn, graph: st.SearchStrategy[Graph] | None = None, **options: object) -> tuple:
    problem = draw(problems(graph, **options))
    return problem, draw(partitions(problem.graph, max_parts=4))


@st.composite
def with_batch(draw: st.DrawFn, **options: object) -> tuple[Problem, Batch]:
    problem = draw(problems(**options))
    return problem, draw(batches(problem.graph))


def estimate(estimator: Estimator, problem: Problem, state: History) -> Callable[[Batch], dict[str, torch.Tensor]]:
    return lambda batch: estimator.estimate(problem, state, batch).gradient


def witness(layers: int = 3, kind: type = GCN, **settings: object) -> tuple[Problem, Partition]:
    """A path of nine nodes in three interleaved clusters: every edge leaves its cluster."""
    model = kind(3, 4, 3, layers, dtype=torch.float64, seed=1, **settings).eval()
    return Problem(path_graph(9), model), Partition(torch.arange(9) % 3)


def cluster_batches(partition: Partition) -> list[Batch]:
    return [batch for batch, _ in Clusters(partition, 1).enumerate()]


def bias(problem: Problem, estimator: Estimator, design: BatchDesign, state: History | None = None) -> float:
    exact = exact_pass(problem)
    state = History.from_exact(problem, exact) if state is None else state
    return relative_error(expectation(design, estimate(estimator, problem, state)), exact.gradient)
