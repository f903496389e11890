"""Theorem 1 with labelled nodes of their own: the head's gradient is from a second draw, of labelled nodes alone.

Checked by enumerating the product of both draws from one frozen state in float64.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from lmc_verify.cases import Case, readable_count
from lmc_verify.cases.verdict import Evidence, Outcome, Verdict
from lmc_verify.claims.assumptions import (
    AGGREGATE_LINEAR,
    BETA_ZERO,
    FINITE_SUPPORT,
    NO_DROPOUT,
    NO_SAMPLING,
)
from lmc_verify.claims.claim import Assumption, Claim, expect_not_applicable, not_applicable, verdict_of
from lmc_verify.claims.enumerated import bias_evidence, compare_mean
from lmc_verify.claims.question import Answer, Question, largest, with_histories
from lmc_verify.claims.reference import explained
from lmc_verify.claims.residuals import relative_by_layer
from lmc_verify.claims.theorems.theorem_1_unbiased import UNBIASED
from lmc_verify.claims.theory import Expectation, expect_from_halo
from lmc_verify.estimators import properties_of
from lmc_verify.graphs import Batch, UniformNodes
from lmc_verify.objective import Gradient, gradient_norm

__all__ = ["SEPARATE_LABELS"]

MOST_PAIRS = 2_000
"""Pairs of draws that are looked at, at most: fewer labelled nodes are drawn where there would be more."""


def _size(case: Case) -> int:
    """Return how many labelled nodes are drawn, at least 1.

    As many as a batch holds on average, or the most below that with which every pair of draws can be looked at.
    """
    labelled = case.graph.train_mask.cpu()
    held = round(float(case.design.inclusion_probabilities()[labelled].sum()))
    most, room = int(labelled.sum()), MOST_PAIRS // int(case.design.support_size)
    return next((size for size in range(min(max(held, 1), most), 0, -1) if math.comb(most, size) <= room), 1)


def _labelled_batches(case: Case) -> Iterator[tuple[Batch, float]]:
    """Yield every draw of labelled nodes, uniformly without replacement, with its probability."""
    nodes = case.graph.train_mask.cpu().nonzero()[:, 0]
    for places, probability in UniformNodes(nodes.numel(), _size(case)).enumerate():
        yield Batch(nodes[places.nodes], places.inclusion), probability


def _estimates(case: Case) -> Iterator[tuple[Gradient, float]]:
    """Yield the estimate of every pair of draws: the head's gradient from labelled nodes, all others from the batch."""
    state, head = case.initial_state(), set(case.problem.parameters_of(case.problem.model.head))
    drawn = []
    for batch, probability in _labelled_batches(case):
        made = case.estimate(state, batch).gradient
        drawn.append(({name: made[name] for name in head}, probability))
    for batch, probability in case.design.enumerate():
        made = case.estimate(state, batch).gradient
        for own, chance in drawn:
            yield {name: own.get(name, value) for name, value in made.items()}, probability * chance


def check(case: Case) -> Verdict:
    """Enumerate both draws and compare the mean estimate over their product with the exact gradient."""
    claim = SEPARATE_LABELS
    inapplicable = not_applicable(case, claim)
    if inapplicable is not None:
        return inapplicable
    moments, bias, residuals = compare_mean(case, _estimates(case))
    exact, problem, size = case.exact.gradient, case.problem, _size(case)
    per_layer = relative_by_layer(problem, bias, exact)
    norm = gradient_norm(exact) or 1.0
    total, deviation = (gradient_norm(found) / norm for found in (bias, moments.deviation))
    pairs = (
        f"the mean over all {moments.atoms:,} pairs of a batch and {size} of {case.graph.num_labelled} labelled nodes"
    )
    if residuals.outcome is Outcome.EXACT:
        summary = (
            f"{pairs} equals the exact gradient: largest residual {residuals.worst.value:.1e} of a layer's gradient, "
            f"rounding allows {residuals.worst.tolerance:.1e}"
        )
    elif residuals.outcome is Outcome.REFUTED:
        worst = max(per_layer, key=lambda part: per_layer[part])
        summary = (
            f"biased: {pairs} is off by {total:.2g} of the gradient's norm, most in {worst} ({per_layer[worst]:.2g} of "
            f"that layer's gradient){explained(case, claim)}"
        )
    else:
        summary = residuals.explanation
    return verdict_of(
        case,
        claim.id,
        residuals.outcome,
        summary,
        residuals=residuals,
        evidence=[
            *bias_evidence(problem, bias, exact, residuals),
            Evidence("bias, all parameters", total, group="totals"),
            Evidence("standard deviation, one pair", deviation, group="totals"),
            Evidence("labelled nodes drawn", size, unit="nodes", group="totals"),
        ],
        assumptions=claim.checked_assumptions(case),
    )


def expect(case: Case) -> Expectation:
    """Return what theory says: of the layers as of any batch; of the head, by what its own draws have at their halo."""
    claim = SEPARATE_LABELS
    inapplicable = expect_not_applicable(case, claim)
    if inapplicable is not None:
        return inapplicable
    found, layers = properties_of(case.estimator), UNBIASED.expect(case)
    if not found.known or found.exact or layers.outcome is not Outcome.EXACT:
        return layers
    if case.weighting == "node-count" and case.graph.num_labelled < case.graph.num_nodes:
        return Expectation(Outcome.REFUTED, "the head's weights are |V| / |V_LB|, for draws from V_L alone")
    head = expect_from_halo(case, (batch for batch, _ in _labelled_batches(case)), histories=case.histories)
    if head.outcome is Outcome.EXACT:
        return head
    return Expectation(None, f"of the draws of labelled nodes: {head.reason}, which need not reach the head")


def _trained_head(case: Case) -> tuple[bool | None, str]:
    if case.problem.parameters_of(case.problem.model.head):
        return True, ""
    return False, "the model has no head that is trained, so nothing is left to draw labelled nodes for (model.head)"


def _labels_enumerable(case: Case) -> tuple[bool | None, str]:
    support, labelled = case.design.support_size, case.graph.num_labelled
    if support * labelled <= MOST_PAIRS:
        return True, ""
    return False, (
        f"{readable_count(support * labelled)} pairs of a batch and a labelled node, at most {MOST_PAIRS:,} are looked "
        "at"
    )


SEPARATE_LABELS = Claim(
    id="theorem-1/separate-labels",
    title="Unbiased gradient, labelled nodes drawn separately",
    statement=(
        "With a batch V_B from the design and, independently, V_LB drawn uniformly from the labelled nodes, let the "
        "head's gradient be that of V_LB, with the weight 1 / |V_LB| of each node, and the gradients of all other "
        "parameters those of V_B. Their expectation over both draws equals the exact full-graph gradient, for every "
        "parameter."
    ),
    source="LMC (Shi, Liang and Wang, ICLR 2023), Theorem 1, for Backward SGD; other estimators by the same criterion",
    tier="exact",
    theory=(
        "The head's gradient is a mean over labelled nodes, and the mean over a uniform draw of them is unbiased, "
        "whether or not it has anything to do with V_B. The layers' gradients are sums over all nodes, whose auxiliary "
        "variables know of all labels: they need a draw from V. The mean asks for no independence; the variance does. "
        "GAS is unbiased in the head and the last layer, and biased below."
    ),
    question=Question(
        "With labelled nodes drawn separately, is {estimator}'s gradient unbiased{when}",
        refuted=Answer("off by {size}", largest("bias per layer")),
        when=with_histories,
    ),
    required=(
        NO_DROPOUT,
        NO_SAMPLING,
        FINITE_SUPPORT,
        Assumption("trained-head", "the model has a head with trained parameters", _trained_head),
        Assumption("pairs-enumerable", "every pair of a batch and labelled nodes can be looked at", _labels_enumerable),
    ),
    assumptions=(BETA_ZERO, AGGREGATE_LINEAR),
    check=check,
    expect=expect,
    reads=(),
)
