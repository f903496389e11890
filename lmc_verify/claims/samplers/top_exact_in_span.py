"""Message invariance is exact where what it combines lies in the span of its basis."""

from __future__ import annotations

import torch

from lmc_verify.cases import Case
from lmc_verify.cases.verdict import Outcome, Verdict
from lmc_verify.claims.assumptions import FINITE_SUPPORT, NO_DROPOUT, enumerable
from lmc_verify.claims.claim import Assumption, Claim, expect_not_applicable, not_applicable, verdict_of
from lmc_verify.claims.question import Answer, Question, largest
from lmc_verify.claims.reference import Reference
from lmc_verify.claims.residuals import Residuals
from lmc_verify.claims.theory import UNKNOWN, Expectation, where_gradient_vanishes
from lmc_verify.estimators import properties_of
from lmc_verify.estimators.base import node_weights
from lmc_verify.graphs import Batch
from lmc_verify.objective import Gradient, Problem, euclidean_norm, exact_pass
from lmc_verify.seeds import torch_generator
from lmc_verify.statistics.rounding import require_number

__all__ = ["EXACT_IN_SPAN"]

SPAN = 1e-12
"""Largest error of ``S_halo = R S_batch``, relative to the norm of S, that counts as none: about rounding."""

PERTURBATIONS = 2
"""Further parameter points at which the invariance is looked at: gradients need it around the case's parameters."""


def _is_top(case: Case) -> tuple[bool | None, str]:
    top = properties_of(case.estimator).message_invariance is not None
    return top, "" if top else f"the estimator is {case.estimator.name}, the claim is about top and top-krylov"


def _perturbed(problem: Problem, seed: int, number: int) -> Problem:
    other, rng = problem.copy(), torch_generator(seed, "message invariance", number)
    with torch.no_grad():
        for parameter in other.model.parameters():
            noise = torch.rand(parameter.shape, generator=rng, dtype=torch.float64) - 0.5
            parameter.add_(noise.to(parameter) * (1 + parameter.abs().max()))
    return other


def _in_span(case: Case) -> tuple[bool | None, str]:
    """Whether ``S_halo = R S_batch`` for every batch and layer, here and at further parameters.

    S is what the estimator combines: what layers read, or the embeddings.
    """
    top = properties_of(case.estimator).message_invariance
    if top is None:
        return None, ""
    few, count = enumerable(case.design.support_size)
    if not few:
        return None, count
    state, worst = top.init(case.problem), 0.0
    values = [*top.combined(case.problem, case.exact)]
    for number in range(PERTURBATIONS):
        other = _perturbed(case.problem, case.seed, number)
        values += top.combined(other, exact_pass(other))
    for batch, _ in case.design.enumerate():
        found = top.invariance(case.problem, state, batch.nodes.to(case.graph.device))
        for value in values:
            error = euclidean_norm([value[found.halo] - found.coefficients @ value[found.batch]])
            share = error / (euclidean_norm([value]) or 1.0)
            worst = max(worst, require_number(share, "the distance of the halo from the batch's span"))
    words = f"R S_batch is off the halo's rows by up to {worst:.1e} of the norm of S"
    return worst <= SPAN, words if worst <= SPAN else f"{words}, at most {SPAN:.0e} is rounding"


IS_TOP = Assumption("top", "the estimator fits the halo on the batch by message invariance", _is_top)

IN_SPAN = Assumption(
    "halo-in-span",
    "in every layer what is combined (what it reads, or embeddings) is at the halo the fitted combination of the "
    "batch's, also at perturbed parameters",
    _in_span,
)


def batch_gradient(problem: Problem, batch: Batch, weighting: str) -> Gradient:
    """Return the gradient of the batch's weighted loss through the whole graph."""
    parameters = {name: p for name, p in problem.model.named_parameters() if p.requires_grad}
    nodes = batch.nodes.to(problem.graph.device)
    with torch.enable_grad():
        losses = problem.node_losses(problem.model(problem.graph)[nodes], nodes)
        loss = losses @ node_weights(problem, batch, weighting)
    grads = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(parameters, grads, strict=True))


class _WholeGraph(Reference):
    """Compares with the gradient of the batch's own loss through the whole graph, in place of Backward SGD's."""

    def expected(self, batch: Batch) -> Gradient:
        """Return the gradient of the batch's loss."""
        return batch_gradient(self.case.problem, batch, self.case.weighting)


def check_in_span(case: Case) -> Verdict:
    """Compare every batch's estimate with the gradient of its loss through the whole graph."""
    claim = EXACT_IN_SPAN
    inapplicable = not_applicable(case, claim)
    if inapplicable is not None:
        return inapplicable
    reference, state = _WholeGraph(case), case.initial_state()
    residuals, batches = Residuals({}), 0
    for batch, _ in case.design.enumerate():
        batches += 1
        estimate = case.estimate(state, batch).gradient
        residuals = reference.compare(estimate, batch)[1].merged(residuals)
    outcome = residuals.outcome
    words = {
        Outcome.EXACT: f"on all {batches:,} batches the estimate is the gradient of the batch's loss",
        Outcome.REFUTED: (
            f"differs from the gradient of the batch's loss by {residuals.worst.value:.2g} of a layer's gradient"
        ),
    }
    return verdict_of(
        case,
        claim.id,
        outcome,
        words.get(outcome, residuals.explanation)
        + f": largest difference {residuals.worst.value:.1e}, rounding allows {residuals.worst.tolerance:.1e}",
        residuals=residuals,
        assumptions=claim.checked_assumptions(case),
    )


def expect_in_span(case: Case) -> Expectation:
    """Return what theory says: exact wherever the assumptions hold."""
    inapplicable = expect_not_applicable(case, EXACT_IN_SPAN)
    if inapplicable is not None:
        return inapplicable
    if not properties_of(case.estimator).known:
        return UNKNOWN
    expected = Expectation(
        Outcome.EXACT, "the halo's rows are the same function of the parameters as their combinations"
    )
    return where_gradient_vanishes(case, expected)


EXACT_IN_SPAN = Claim(
    id="top/exact-in-span",
    title="Exact where the halo lies in the span of the batch",
    statement=(
        "If, whatever the parameters, what every layer reads at the halo (top-krylov: the embeddings) is the fitted "
        "combination of the batch's, the estimate of every batch is the gradient of the batch's loss through the whole "
        "graph."
    ),
    source="TOP (Shi et al., ICLR 2025); derived",
    tier="exact",
    theory=(
        "Replacing the halo's rows by equal functions of the parameters changes neither values nor derivatives. "
        "Equality at one parameter point would make the loss exact and not the gradient."
    ),
    question=Question(
        "Is {estimator}'s gradient exact where the halo lies in the span of the batch",
        refuted=Answer("off by {size}", largest("residual", " ({})")),
    ),
    required=(NO_DROPOUT, FINITE_SUPPORT, IS_TOP, IN_SPAN),
    check=check_in_span,
    expect=expect_in_span,
    reads=(),
)
