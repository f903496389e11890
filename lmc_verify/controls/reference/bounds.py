"""Proven bounds: they cover the errors, are what they were, and what has a closed form is that."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from lmc_verify.bounds import ErrorBound, NoBound, batch_bound, enumerated_range, error_interval, range_bound
from lmc_verify.bounds.lipschitz import lipschitz_upper
from lmc_verify.bounds.scopes import BatchScope, Groups
from lmc_verify.controls.reference.document import (
    Quantities,
    clusters_of,
    inputs_of,
    problem_of,
    weighted_batch,
)
from lmc_verify.errors import InvalidInputError
from lmc_verify.estimators import LMC, History, make_estimator
from lmc_verify.graphs import EpochClusters, Partition
from lmc_verify.objective import ExactPass, Problem, exact_pass

__all__ = ["quantities"]

_ROUNDED = 0.98
"""Limits are bounds that were rounded up by less than this. Bounds of zero are rounding, and have no lower limit."""

_ROUNDING = 1e-9


def quantities() -> Quantities:
    """Return what computes each quantity."""
    given = inputs_of("bounds")
    found = {name: partial(_bounds, **case) for name, case in given["cases"].items()}
    keys = ("gcn", "gcn-rich", "gcn-residual", "sage", "sage-rich")
    lipschitz = {f"lipschitz/{key}": partial(_lipschitz, key) for key in keys}
    epochs = {"epoch-groups": _groups, "negative-beta": _negative_beta}
    return {**found, **lipschitz, **epochs, "interval": partial(_interval, given["width"])}


def _histories(problem: Problem, exact: ExactPass, state: History, off: float) -> History:
    """Return a state with exact histories times ``1 + off`` and, in every second row, ``1 - off``."""
    if state.exact_for is not None:
        return state
    state = state.filled(exact)
    factor = torch.full((problem.graph.num_nodes, 1), 1 - off, dtype=torch.float64)
    factor[::2] = 1 + off
    for table in (*state.embeddings.values(), *state.auxiliary.values()):
        table.mul_(factor)
    return state


def _known(bound: ErrorBound | NoBound) -> ErrorBound:
    if isinstance(bound, NoBound):
        raise InvalidInputError(f"there is no bound: {bound.reason}")
    return bound


def _bounds(
    model: str, estimator: str, settings: dict[str, Any], off: float, errors: list[list[float]], limits: list[float]
) -> dict[str, Any]:
    problem, chosen = problem_of(model), make_estimator(estimator, **settings)
    exact = exact_pass(problem)
    state, design = _histories(problem, exact, chosen.init(problem), off), clusters_of(problem, 2)
    batches = [batch for batch, _ in design.enumerate()]
    found = [_known(batch_bound(problem, exact, state, batch, chosen)) for batch in batches]
    largest = _known(range_bound(problem, exact, state, design, chosen))
    worst = [max(column) for column in zip(*errors, strict=True)]
    out: dict[str, Any] = {
        "covers": [_covers(bound, wanted) for bound, wanted in zip(found, errors, strict=True)],
        "range-covers": _covers(largest, worst),
        "as-before": [
            (limit <= _ROUNDING or _ROUNDED * limit <= bound.total) and bound.total <= limit
            for bound, limit in zip([*found, largest], limits, strict=True)
        ],
    }
    if not chosen.init(problem).exact_for:
        enumerated = enumerated_range(problem, exact, state, design, chosen)
        out |= {"enumerated": list(enumerated.parameters.values()), "enumerated-total": enumerated.total}
    return out


def _covers(bound: ErrorBound, errors: list[float]) -> list[bool]:
    return [bound.parameters[name] >= error for name, error in zip(bound.parameters, errors, strict=True)]


def _lipschitz(key: str) -> list[float | None]:
    return [item.value for item in lipschitz_upper(problem_of(key))]


def _groups() -> dict[str, list[int]]:
    """Return the fewest and the most clusters of a batch of an epoch, and which they may be, by what was seen of it."""
    epoch = EpochClusters(Partition.from_labels(torch.tensor(inputs_of("designs")["clusters"])), 2)
    designs = {"start": epoch, "second": epoch.after(1, 3), "last": epoch.after(1, 3, 0, 2)}
    found = {name: Groups.of(design) for name, design in designs.items()}
    return {name: [groups.least, groups.most, *groups.open] for name, groups in found.items()}


def _negative_beta() -> Tensor:
    """Return the bounds of blends of histories that are off by 2 and fresh values that are off by 3."""
    given, problem = inputs_of("runs")["lmc-code"], problem_of("gcn")
    chosen = LMC(**given["settings"])
    scope = BatchScope(problem.graph, chosen.policies, weighted_batch(given["batches"][-1]))
    rows = torch.ones(scope.halo.numel(), 1, dtype=torch.float64)
    return scope.blend(chosen.blend, 2 * rows, 3 * rows)[:, 0]


def _interval(width: float) -> list[float]:
    problem = problem_of("gcn")
    exact = exact_pass(problem)
    batch, _ = next(iter(clusters_of(problem, 2).enumerate()))
    parts = dict.fromkeys(("layer 1", "layer 2", "layer 3"), width)
    found = error_interval(problem, exact, batch, ErrorBound({}, parts, width))
    return [found.low, found.high]
