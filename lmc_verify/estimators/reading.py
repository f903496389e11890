"""Whether an estimator reads the problem that it is given, or data and a model of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from lmc_verify.errors import ContractError, InvalidInputError, LmcVerifyError
from lmc_verify.estimators.base import Estimate, Estimator, batch_distribution
from lmc_verify.estimators.contract import checked_estimate, made_state, same_writes
from lmc_verify.graphs import Batch, BatchDesign, Graph, OneBatch, Partition
from lmc_verify.objective import Gradient, Problem, exact_gradient
from lmc_verify.seeds import generator

__all__ = ["ASPECTS", "require_reading", "whole_batch"]

ASPECTS = ("features", "labels", "training mask", "edges", "parameters")
"""What of a problem an estimator has to read."""

_NUDGE = 1 + 2**-10
"""Parameters are scaled by little: a model may be defined near its own parameters only."""


_PAYLOADS = 16
"""Batches with a payload among which one is looked for whose estimate does not vanish."""


def whole_batch(graph: Graph, partition: Partition | None = None) -> Batch:
    """Return the batch of all nodes, made of all clusters where there are any."""
    clusters = None if partition is None else tuple(range(partition.num_parts))
    return Batch.of(torch.arange(graph.num_nodes), 1.0, clusters)


def require_reading(
    estimator: Estimator,
    problem: Problem,
    exact: Gradient,
    aspects: Sequence[str] = ASPECTS,
    partition: Partition | None = None,
    design: BatchDesign | None = None,
) -> None:
    """Refuse an estimator that does not read the problem that it is given, but data or a model of its own.

    It is asked for the estimate of the whole graph as one batch, or of a batch with a payload, on the problem and on
    others that differ in one aspect: rows of features or labels exchanged, every second labelled node left out of the
    training mask, no edges, parameters a thousandth larger (of the same problem, in place, as in training). Where the
    exact gradient changes and the estimate keeps every bit, history writes included, it was not read. A problem whose
    exact gradient does not exist or is not finite is not asked about.

    Args:
        estimator: the estimator.
        problem: the problem.
        exact: its exact gradient.
        aspects: some of `ASPECTS`.
        partition: the clusters that batches are made of, if any.
        design: the batches' distribution. Where they carry a payload, one of them is asked about: nobody knows what the
            payload of all nodes would be.

    Raises:
        ContractError: names what the estimator ignores.
    """
    asked = _asked(estimator, problem, partition, design)
    if asked is None:
        return
    given: Estimate | None = None
    for what, other in _others(problem, aspects):
        there = _exact(other)
        if there is None or _equal(exact, there):
            continue  # the model is not defined there, or the network has died, say
        if given is None:
            given = _estimate(estimator, problem, asked)
        try:
            found = _estimate(estimator, other, asked)
        except InvalidInputError:  # there is nothing to sample on a graph without edges, say
            continue
        _compare(estimator, what, given, found)
    if "parameters" in aspects:
        moving = problem.copy()
        before = _estimate(estimator, moving, asked)
        with torch.no_grad():
            for parameter in moving.model.parameters():
                parameter.mul_(_NUDGE)
        there = _exact(moving)
        if there is not None and not _equal(exact, there):
            _compare(estimator, "parameters", before, _estimate(estimator, moving, asked))


def _asked(
    estimator: Estimator, problem: Problem, partition: Partition | None, design: BatchDesign | None
) -> Batch | None:
    """Return the batch of all nodes, or one with a payload where those of the design have one; None if all vanish."""
    whole = whole_batch(problem.graph, partition)
    if design is None:
        return whole
    rng, state = generator(0, "payload"), made_state(estimator, problem)
    for _ in range(_PAYLOADS):
        batch = design.draw(rng)
        if batch.payload is None:
            return whole
        if any(bool(value.any()) for value in checked_estimate(estimator, problem, state, batch).gradient.values()):
            return batch
    return None


def _estimate(estimator: Estimator, problem: Problem, asked: Batch) -> Estimate:
    """Return the estimate from a batch and a fresh state, from the same draw of the estimator's own randomness."""
    state, one = made_state(estimator, problem), OneBatch(asked, problem.graph.num_nodes)
    batch = batch_distribution(estimator, problem, state, one).draw(generator(0, "reading"))
    return checked_estimate(estimator, problem, state, batch)


def _compare(estimator: Estimator, what: str, given: Estimate, found: Estimate) -> None:
    if _equal(given.gradient, found.gradient) and same_writes(given, found):
        raise ContractError(
            f"estimator {estimator.name!r} ignores the {what} of the problem that it is given: a problem with "
            f"other {what} has the same estimate, bit for bit. It must read problem.graph and problem.model, and "
            "no data or model of its own"
        )


def _others(problem: Problem, aspects: Sequence[str]) -> Iterator[tuple[str, Problem]]:
    """Yield problems that differ from one in its data, with what differs; every value is one that occurs in it."""
    graph = problem.graph
    if "features" in aspects:
        yield "features", problem.with_graph(graph.replaced(x=graph.x.roll(1, 0)))
    if "labels" in aspects and graph.multi_label:
        yield "labels", problem.with_graph(graph.replaced(y=1 - graph.y))
    elif "labels" in aspects and problem.num_outputs > 1:
        labels = torch.where(graph.y < 0, graph.y, (graph.y + 1) % problem.num_outputs)
        yield "labels", problem.with_graph(graph.replaced(y=labels))
    if "training mask" in aspects and graph.num_labelled > 1:
        yield "training mask", problem.with_graph(graph.replaced(train_mask=_thinned(graph)))
    if "edges" in aspects and graph.num_edges:
        yield "edges", problem.with_graph(graph.with_edges(torch.zeros(graph.num_edges, dtype=torch.bool)))


def _thinned(graph: Graph) -> torch.Tensor:
    mask = graph.train_mask.clone()
    mask[mask.nonzero().flatten()[1::2]] = False
    return mask


def _exact(problem: Problem) -> Gradient | None:
    """Return the exact gradient of another problem, or None where the model is not defined there."""
    try:
        gradient = exact_gradient(problem)[1]
    except (LmcVerifyError, ArithmeticError, LookupError, RuntimeError, ValueError):
        return None
    return gradient if all(bool(torch.isfinite(value).all()) for value in gradient.values()) else None


def _equal(left: Gradient, right: Gradient) -> bool:
    return all(torch.equal(value, right[name]) for name, value in left.items())
