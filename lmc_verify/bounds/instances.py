"""Bounds of an estimator's error: on one batch, on every batch of a design, and of the total error."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from lmc_verify.arguments import typed
from lmc_verify.bounds.nodewise import row_norm
from lmc_verify.bounds.propagation import RowTerm, propagate
from lmc_verify.bounds.results import ErrorBound, ErrorInterval, NoBound, RangeBound, Unproven, by_layer
from lmc_verify.bounds.scopes import BatchScope, DesignScope, Groups
from lmc_verify.bounds.terms import ExactTerms, spectral_norm
from lmc_verify.errors import InvalidInputError, require_kind
from lmc_verify.estimators.base import Estimator, check_batch, node_weights
from lmc_verify.estimators.compensated.members import BackwardSGD
from lmc_verify.estimators.compensated.policies import Policies
from lmc_verify.estimators.compensated.step_momentum import held_embeddings
from lmc_verify.estimators.contract import checked_estimate
from lmc_verify.estimators.history import AUXILIARY, EMBEDDING, History
from lmc_verify.estimators.properties import properties_of
from lmc_verify.graphs import Batch, BatchDesign
from lmc_verify.objective import ExactPass, Problem, euclidean_norm, gradient_norm, gradient_sum

__all__ = ["batch_bound", "enumerated_range", "error_interval", "exact_terms", "range_bound"]

ENUMERATION_LIMIT = 10_000
"""Largest support that `enumerated_range` goes through unless told otherwise."""

_SLACK = 1 + 1e-9  # covers the rounding of the bounds' own arithmetic


def exact_terms(problem: Problem, exact: ExactPass) -> ExactTerms | NoBound:
    """Return what all bounds of a problem at its present parameters share, to be computed once and passed on."""
    try:
        return ExactTerms(problem, exact)
    except Unproven as unproven:
        return NoBound(str(unproven))


@typed
def batch_bound(
    problem: Problem,
    exact: ExactPass,
    state: History,
    batch: Batch,
    estimator: Estimator,
    *,
    terms: ExactTerms | NoBound | None = None,
    as_stated: bool = False,
) -> ErrorBound | NoBound:
    """Bound ``|g_est - g_ref|`` on one batch from the errors of the histories, without computing either gradient.

    Covers the compensated family with every halo policy, on GCN and SAGE layers with LayerNorm and ReLU before or after
    the convolution and residual connections, a linear encoder and head, both losses and all loss weightings.

    Args:
        problem: the problem.
        exact: its exact pass at the present parameters.
        state: the estimator's histories.
        batch: the batch.
        estimator: a compensated estimator.
        terms: `exact_terms` of the problem, where several batches are bounded at the same parameters.
        as_stated: whether the halo policies of an estimator with methods of its own are taken as it states them. The
            bound is then no proof about its estimates; they can be held against it.

    Returns:
        The bound, in units of the gradient; or, as a `NoBound`, why there is none.

    Raises:
        InvalidInputError: the batch, the state or the exact pass does not belong to the problem.
    """
    try:
        policies, terms = _prepared(problem, exact, estimator, terms, as_stated=as_stated)
        check_batch(problem, batch)
        scope = BatchScope(problem.graph, policies, batch)
        found = propagate(terms, scope, *_history_errors(problem, exact, state, policies, scope.halo))
    except Unproven as unproven:
        return NoBound(str(unproven))
    weights = node_weights(problem, batch, _weighting(estimator))
    bounds = dict.fromkeys(problem.parameter_names, 0.0)
    for name, parts in found.items():
        bounds[name] = _SLACK * sum(_on_batch(part, weights) for part in parts)
    return ErrorBound(bounds, *by_layer(problem, bounds))


@typed
def range_bound(
    problem: Problem,
    exact: ExactPass,
    state: History,
    design: BatchDesign,
    estimator: Estimator,
    *,
    terms: ExactTerms | NoBound | None = None,
) -> RangeBound | NoBound:
    """Bound ``|g_est(S) - g_ref(S)|`` for every batch S of a design at once, from the errors of the histories.

    Args:
        problem: the problem.
        exact: its exact pass at the present parameters.
        state: the estimator's histories.
        design: `Clusters`, `FusedClusters`, `EpochClusters` or `UniformNodes`.
        estimator: a compensated estimator, see `batch_bound`.
        terms: `exact_terms` of the problem.

    Returns:
        The bound, in units of the gradient; or, as a `NoBound`, why there is none.

    Raises:
        InvalidInputError: the state or the exact pass does not belong to the problem.
    """
    try:
        policies, terms = _prepared(problem, exact, estimator, terms)
        groups = Groups.of(design)
        if groups.assignment.numel() != problem.graph.num_nodes:
            raise InvalidInputError(
                f"the design has {groups.assignment.numel()} nodes, the graph {problem.graph.num_nodes}; "
                "build the design from this graph"
            )
        scope = DesignScope(problem.graph, policies, groups)
        found = propagate(terms, scope, *_history_errors(problem, exact, state, policies, scope.halo))
    except Unproven as unproven:
        return NoBound(str(unproven))
    weight, text = _largest_weight(problem, groups, _weighting(estimator))
    bounds = dict.fromkeys(problem.parameter_names, 0.0)
    for name, parts in found.items():
        bounds[name] = _SLACK * weight * sum(_on_groups(part, groups) for part in parts)
    derivation = (
        "Error norms of every node, as a batch row and as a halo row, with any subset of the messages from other "
        f"groups missing; summed over each of {len(groups.open)} groups, the {groups.most} largest sums times {text}."
    )
    return RangeBound(bounds, *by_layer(problem, bounds), derivation=derivation)


def enumerated_range(
    problem: Problem,
    exact: ExactPass,
    state: History,
    design: BatchDesign,
    estimator: Estimator,
    *,
    limit: int = ENUMERATION_LIMIT,
) -> RangeBound:
    """Return the largest ``|g_est(S) - g_ref(S)|`` over the support of a design, by going through all of it.

    Norms by parameter, by layer and in total are maximised separately. Works for any estimator.

    Raises:
        InvalidInputError: the support has more than `limit` batches.
    """
    if design.support_size > limit:
        raise InvalidInputError(
            f"the design has {design.support_size} batches, the limit is {limit}; raise the limit or use range_bound"
        )
    reference, held = BackwardSGD(weighting=_weighting(estimator)), History.from_exact(problem, exact)
    parameters: dict[str, float] = {}
    layers: dict[str, float] = {}
    total = 0.0
    for batch, _ in design.enumerate():
        estimate = checked_estimate(estimator, problem, state, batch).gradient
        difference = gradient_sum(estimate, reference.estimate(problem, held, batch).gradient, -1.0)
        norms = {name: gradient_norm({name: value}) for name, value in difference.items()}
        by_part, whole = by_layer(problem, norms)
        parameters = {name: max(norm, parameters.get(name, 0.0)) for name, norm in norms.items()}
        layers = {part: max(norm, layers.get(part, 0.0)) for part, norm in by_part.items()}
        total = max(total, whole)
    return RangeBound(parameters, layers, total, derivation=f"enumerated maximum over {design.support_size} batches")


def error_interval(
    problem: Problem, exact: ExactPass, batch: Batch, bound: ErrorBound, *, weighting: str = "inclusion"
) -> ErrorInterval:
    """Enclose ``|g_est - grad L|`` on a batch, given a bound on ``|g_est - g_ref|``.

    By the triangle inequality it lies within `bound` of Backward SGD's own error on the batch, which is known exactly.

    Args:
        problem: the problem.
        exact: its exact pass at the present parameters.
        batch: the batch.
        bound: from `batch_bound` on this batch, or a range.
        weighting: the estimator's.
    """
    held = History.from_exact(problem, exact)
    reference = BackwardSGD(weighting=weighting).estimate(problem, held, batch).gradient
    difference = gradient_sum(reference, exact.gradient, -1.0)
    norms = {name: gradient_norm({name: value}) for name, value in difference.items()}
    layers, total = by_layer(problem, norms)

    def interval(sampling: float, width: float) -> tuple[float, float]:
        return max(0.0, sampling - width), sampling + width

    pairs = {part: interval(value, bound.layers[part]) for part, value in layers.items()}
    return ErrorInterval(*interval(total, bound.total), layers=pairs)


# ---------------------------------------------------------------------------------------------------------- inputs


def _prepared(
    problem: Problem,
    exact: ExactPass,
    estimator: Estimator,
    terms: ExactTerms | NoBound | None,
    *,
    as_stated: bool = False,
) -> tuple[Policies, ExactTerms]:
    require_kind("problem", problem, Problem)
    require_kind("exact", exact, ExactPass)
    found, who = properties_of(estimator), f"no bound is proven for the estimator {estimator.name!r}"
    if found.policies is None:
        raise Unproven(who if found.known else f"{who}: its halo policies are not known")
    if not found.known and not as_stated:
        raise Unproven(f"{who}: it has methods of its own, and only states its halo policies")
    if found.post_activation:
        raise Unproven(f"{who}: its histories are behind the activation")
    n, widths = problem.graph.num_nodes, problem.widths
    shapes = [tuple(h.shape) for h in exact.embeddings]
    if shapes != [(n, width) for width in widths]:
        raise InvalidInputError(
            f"the exact pass has embeddings {shapes}, the problem {n} nodes and widths {list(widths)}; "
            "make it with exact_pass(problem)"
        )
    if isinstance(terms, NoBound):
        raise Unproven(terms.reason)
    if terms is not None and (terms.problem is not problem or terms.exact is not exact):
        raise InvalidInputError("the terms belong to another problem or exact pass; make them with exact_terms")
    return found.policies, ExactTerms(problem, exact) if terms is None else terms


def _weighting(estimator: Estimator) -> str:
    found = properties_of(estimator)
    return "inclusion" if found.policies is None else found.weighting or "inclusion"


def _history_errors(
    problem: Problem, exact: ExactPass, state: History, policies: Policies, rows: Tensor
) -> tuple[Mapping[int, Tensor], Mapping[int, Tensor]]:
    """Return the error tables of the histories by layer [n, 1 + width], filled at the given rows."""

    def tables(kind: str, wanted: bool, layers: range, values: Mapping[int, Tensor]) -> dict[int, Tensor]:
        found = {}
        for layer in layers if wanted else ():
            table, value = state.table(kind).get(layer), values[layer]
            if table is None or table.shape != value.shape:
                raise InvalidInputError(
                    f"the state has no {kind} history {list(value.shape)} for layer {layer}; "
                    "make it with this estimator's init(problem)"
                )
            errors = value.new_zeros(value.shape[0], 1 + value.shape[1])
            difference = (table[rows] - value[rows]).abs()
            errors[rows] = torch.cat([row_norm(difference)[:, None], difference], dim=1)
            found[layer] = errors
        return found

    embeddings = held_embeddings(problem, policies, dict(enumerate(exact.embeddings)))
    layers = range(1, problem.num_layers + 1)
    return (
        tables(EMBEDDING, policies.writes_embeddings, layers, embeddings),
        tables(AUXILIARY, policies.writes_auxiliary, layers[:-1], exact.auxiliary),
    )


# ----------------------------------------------------------------------------------------------- sums over batch rows


def _on_batch(term: RowTerm, weights: Tensor) -> float:
    """Bound ``|sum_j weight_j d_j x_j^T|_F`` by ``sum_j`` of the norms, and by ``|X|_2 |(weight_j d_j)_j|_F``."""
    direct = float(weights @ term.contributions())
    if term.factor is None or direct == 0:
        return direct
    return min(direct, spectral_norm(term.factor) * euclidean_norm([weights * term.error]))


def _on_groups(term: RowTerm, groups: Groups) -> float:
    """Bound the same for every union of `most` groups, with unit weights."""
    assignment = groups.assignment.to(term.error.device)
    open_groups = torch.tensor(groups.open, device=term.error.device)

    def largest(by_group: Tensor) -> float:
        return float(by_group[open_groups].topk(groups.most).values.sum())

    def summed(values: Tensor) -> Tensor:
        return values.new_zeros(groups.count).index_add_(0, assignment, values)

    sums = summed(term.contributions())
    if term.factor is None:
        return largest(sums)
    scale = float(term.error.max()) or 1.0  # so that no square overflows or vanishes
    squares = summed((term.error / scale).square())
    if groups.count < assignment.numel():  # groups of one node have nothing to gain
        order = torch.argsort(assignment, stable=True)
        parts = order.split(torch.bincount(assignment, minlength=groups.count).tolist())
        norms = sums.new_tensor([spectral_norm(term.factor[part]) for part in parts])
        sums = torch.minimum(sums, norms * (scale * squares.sqrt()))
    return min(largest(sums), spectral_norm(term.factor) * (scale * math.sqrt(largest(squares))))


def _largest_weight(problem: Problem, groups: Groups, weighting: str) -> tuple[float, str]:
    """Return an upper bound on the weight of a batch row, and its name."""
    graph = problem.graph
    if weighting == "inclusion":
        return 1 / groups.inclusion, f"1/pi = {1 / groups.inclusion:.3g}"
    counted = torch.ones_like(graph.train_mask) if weighting == "node-count" else graph.train_mask
    by_group = torch.bincount(groups.assignment[counted.cpu()], minlength=groups.count)[list(groups.open)]
    # A batch without a labelled node has weight zero, so at least one labelled node counts.
    smallest = max(1, int(by_group.sort().values[: groups.least].sum()))
    factor = float(counted.sum()) / smallest
    return factor, f"the largest {weighting} factor {factor:.3g}"
