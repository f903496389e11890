"""E7: cases in which every estimator must reduce to the exact gradient, or to Backward SGD."""

from __future__ import annotations

import copy

import torch

from lmc_verify.cases import Case
from lmc_verify.cases.verdict import Evidence, Outcome, Verdict
from lmc_verify.claims.assumptions import CLUSTERS, INCLUSION_WEIGHTS, NO_DROPOUT, NO_SAMPLING
from lmc_verify.claims.claim import Assumption, Claim, expect_not_applicable, not_applicable, verdict_of
from lmc_verify.claims.question import Answer, Question, largest
from lmc_verify.claims.reference import Reference
from lmc_verify.claims.residuals import Residuals, norm_by_layer, rounding_magnitudes
from lmc_verify.claims.theory import UNKNOWN, Expectation
from lmc_verify.estimators import ASPECTS, Blend, Held, checked_estimate, made_state, properties_of, whole_batch
from lmc_verify.graphs import Clusters
from lmc_verify.models import LayeredModel
from lmc_verify.models.convs import initialise
from lmc_verify.objective import (
    ExactPass,
    Gradient,
    Problem,
    exact_pass,
    gradient_norm,
    gradient_sum,
    rounding_terms,
)
from lmc_verify.seeds import torch_generator

__all__ = ["REDUCTIONS"]

ID = "e7/reductions"


def check(case: Case) -> Verdict:
    """Check every reduction on the case's own graph: all clusters, no cut edges, no edges, one layer."""
    inapplicable = not_applicable(case, REDUCTIONS)
    if inapplicable is not None:
        return inapplicable
    results = {
        "all clusters in one batch": _all_clusters(case),
        "no cut edges": _expected_on(case, _without_cut_edges(case)),
        "no edges": _expected_on(case, _without_edges(case)),
    }
    if _single_layer_applies(case):
        results["one layer, against Backward SGD"] = _single_layer(case)
    residuals = Residuals({})
    for name, result in results.items():
        residuals = residuals.merged(result.renamed(name))
    outcome = residuals.outcome
    if outcome is Outcome.EXACT:
        worst = residuals.worst
        summary = (
            f"{len(results)} reductions hold: largest residual {worst.value:.1e} of a layer's gradient, rounding "
            f"allows {worst.tolerance:.1e}"
        )
    elif outcome is Outcome.REFUTED:
        failing = [name for name, block in residuals.blocks.items() if block.ratio > 1]
        summary = f"fails with {', '.join(failing)}: residual up to {residuals.worst.value:.2g} of a layer's gradient"
    else:
        summary = residuals.explanation
    return verdict_of(
        case,
        ID,
        outcome,
        summary,
        histories="zero",
        residuals=residuals,
        evidence=[Evidence("reductions checked", len(results), unit="reductions", group="totals")],
        assumptions=REDUCTIONS.checked_assumptions(case),
    )


def _compare(problem: Problem, estimate: Gradient, exact: ExactPass) -> Residuals:
    sizes = norm_by_layer(problem, estimate)
    return Residuals.of(
        problem,
        gradient_sum(estimate, exact.gradient, -1.0),
        reference=exact.gradient,
        terms=rounding_terms(problem, problem.graph.num_nodes),
        magnitudes={part: 2 * (sizes[part] + own) for part, own in rounding_magnitudes(problem, exact).items()},
    )


def _all_clusters(case: Case) -> Residuals:
    """c = b: the batch is the whole graph and there is no halo."""
    state = made_state(case.estimator, case.problem)
    return _compare(case.problem, case.estimate(state, whole_batch(case.graph, case.partition)).gradient, case.exact)


def _without_cut_edges(case: Case) -> Problem:
    assert case.partition is not None
    graph = case.graph
    source, destination = case.partition.assignment.to(graph.device)[graph.edge_index]
    kept = source == destination
    return case.problem.with_graph(graph.with_edges(kept))


def _without_edges(case: Case) -> Problem:
    graph = case.graph
    return case.problem.with_graph(graph.with_edges(torch.zeros(graph.num_edges, dtype=torch.bool)))


def _expected_on(case: Case, problem: Problem) -> Residuals:
    """Average over single clusters, each of which is closed under messages; histories start from zero."""
    assert case.partition is not None
    state = made_state(case.estimator, problem)
    mean = problem.zero_gradient()
    for batch, probability in Clusters(case.partition, 1).enumerate():
        mean = gradient_sum(mean, checked_estimate(case.estimator, problem, state, batch).gradient, probability)
    return _compare(problem, mean, exact_pass(problem))


def _single_layer_applies(case: Case) -> bool:
    """L = 1 needs the estimator to read the halo's (exact) inputs; without encoder, no message goes back."""
    policies = properties_of(case.estimator).policies
    return policies is not None and isinstance(policies.forward, Blend | Held)


def _single_layer(case: Case) -> Residuals:
    """L = 1 with exact inputs: the case's first layer on H^0, with a linear head; histories start from zero.

    The estimate must equal Backward SGD's on every cluster."""
    assert case.partition is not None
    inputs = case.exact.embeddings[0].detach()
    head = torch.nn.utils.skip_init(
        torch.nn.Linear, case.problem.widths[1], case.problem.num_outputs, device=inputs.device, dtype=inputs.dtype
    )
    initialise(head, torch_generator(case.seed, "single layer"))
    model = LayeredModel([copy.deepcopy(case.problem.model.layer(1))], head=head)
    problem = Problem(case.graph.replaced(x=inputs), model.eval(), case.problem.loss)
    one_layer = Case(problem, case.design, case.estimator, exact_pass(problem), "zero", case.seed)
    reference, state = Reference(one_layer), made_state(case.estimator, problem)
    residuals = Residuals({})
    for batch, _ in Clusters(case.partition, 1).enumerate():
        estimate = checked_estimate(case.estimator, problem, state, batch).gradient
        residuals = reference.compare(estimate, batch)[1].merged(residuals)
    return residuals


def expect(case: Case) -> Expectation:
    """Return what theory says: every estimator of the family reduces, with inclusion weights."""
    inapplicable = expect_not_applicable(case, REDUCTIONS)
    if inapplicable is not None:
        return inapplicable
    if not properties_of(case.estimator).known:
        return UNKNOWN
    if gradient_norm(case.exact.gradient) == 0:
        return Expectation(None, "the exact gradient is zero: which of the reductions compare something is the case's")
    return Expectation(Outcome.EXACT, "where no message crosses a batch's border, nothing is left to compensate")


def _whole_objective(case: Case) -> tuple[bool | None, str]:
    found = properties_of(case.estimator)
    shadow = found.own_objective
    if shadow is None:
        return found.unless_unknown(True), ""
    whole = not shadow.renormalise and shadow.depth >= case.problem.num_layers
    detail = "" if whole else f"{shadow.name} estimates the loss of every target on its own ego network"
    return found.unless_unknown(whole), detail


WHOLE_OBJECTIVE = Assumption(
    "whole-objective", "what the estimator estimates is the gradient of the whole graph's objective", _whole_objective
)

REDUCTIONS = Claim(
    id=ID,
    title="Reductions to the exact gradient",
    statement=(
        "With all clusters in one batch, without cut edges, or without any edge, every estimator gives the exact "
        "gradient; with one layer, those that keep the halo's inputs equal Backward SGD."
    ),
    source="derived from the estimators' definitions in LMC (Shi, Liang and Wang, ICLR 2023)",
    tier="exact",
    theory="The estimators differ only in what they put at the halo; where none is needed, they agree.",
    question=Question(
        "Is {estimator}'s gradient exact where no message crosses a batch's border",
        refuted=Answer("off by {size}", largest("residual", " ({})")),
    ),
    required=(NO_DROPOUT, CLUSTERS, INCLUSION_WEIGHTS, NO_SAMPLING, WHOLE_OBJECTIVE),
    check=check,
    expect=expect,
    reads=(),
    histories="zero",
    varies=ASPECTS,  # the reductions are problems of their own
)
