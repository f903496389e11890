"""E7: cases in which every estimator must reduce to the exact gradient, or to Backward SGD."""

from __future__ import annotations

import copy
import dataclasses

import torch

from lmc_verify.batches import Batch, Clusters
from lmc_verify.case import Case
from lmc_verify.claims.base import (
    NO_DROPOUT,
    Assumption,
    Claim,
    Expectation,
    Residuals,
    loss_conditioning,
    rounding_terms,
    verdict_of,
)
from lmc_verify.claims.verdict import Evidence, Outcome, Verdict
from lmc_verify.estimators import BackwardSGD, Blend, Compensated, Held, History
from lmc_verify.exact import exact_pass
from lmc_verify.models import LayeredModel
from lmc_verify.models.convs import initialise
from lmc_verify.problem import Gradient, Problem, gradient_norm, gradient_sum
from lmc_verify.seeds import torch_generator

__all__ = ["REDUCTIONS"]

ID = "e7/reductions"


def check(case: Case) -> Verdict:
    """Check every reduction on the case's own graph: all clusters, no cut edges, no edges, one layer."""
    assumptions = REDUCTIONS.checked_assumptions(case)
    if any(item.holds is False for item in assumptions):
        broken = next(item for item in assumptions if item.holds is False)
        return verdict_of(
            case, ID, Outcome.NOT_APPLICABLE, f"{broken.statement}: {broken.detail}", assumptions=assumptions
        )
    results = {
        "all clusters in one batch": _all_clusters(case),
        "no cut edges": _expected_on(case, _without_cut_edges(case)),
        "no edges": _expected_on(case, _without_edges(case)),
    }
    if _single_layer_applies(case):
        results["one layer, against Backward SGD"] = _single_layer(case)
    tolerance = max(result.tolerance for result in results.values())
    blocks = {name: result.largest for name, result in results.items()}
    residuals = Residuals(blocks, tolerance, 1.0)
    if residuals.outcome is Outcome.EXACT:
        summary = (
            f"{len(results)} reductions hold: largest residual {residuals.largest:.1e}, rounding allows {tolerance:.1e}"
        )
    else:
        failing = [name for name, value in blocks.items() if not value <= tolerance]
        summary = f"fails with {', '.join(failing)}: residual up to {residuals.largest:.2g} of the gradient's norm"
    extra = [Evidence("reductions checked", len(results), unit="reductions", group="totals")]
    return verdict_of(
        case, ID, residuals.outcome, summary, residuals=residuals, evidence=extra, assumptions=assumptions
    )


def _compare(case: Case, problem: Problem, estimate: Gradient, reference: Gradient) -> Residuals:
    magnitude = 2 * loss_conditioning(case) * (gradient_norm(estimate) + gradient_norm(reference))
    return Residuals.of(
        gradient_sum(estimate, reference, -1.0),
        reference=reference,
        terms=rounding_terms(problem, case.graph.num_nodes),
        magnitude=magnitude,
    )


def _all_clusters(case: Case) -> Residuals:
    """c = b: the batch is the whole graph and there is no halo."""
    everything = Batch.of(torch.arange(case.graph.num_nodes), 1.0)
    state = case.estimator.init(case.problem)
    estimate = case.estimator.estimate(case.problem, state, everything)
    return _compare(case, case.problem, estimate.gradient, case.exact.gradient)


def _without_cut_edges(case: Case) -> Problem:
    assert case.partition is not None
    graph = case.graph
    source, destination = case.partition.assignment.to(graph.device)[graph.edge_index]
    kept = source == destination
    weight = None if graph.edge_weight is None else graph.edge_weight[kept]
    return case.problem.with_graph(
        dataclasses.replace(graph, edge_index=graph.edge_index[:, kept], edge_weight=weight, _blocks={})
    )


def _without_edges(case: Case) -> Problem:
    graph = case.graph
    weight = None if graph.edge_weight is None else graph.edge_weight[:0]
    return case.problem.with_graph(
        dataclasses.replace(graph, edge_index=graph.edge_index[:, :0], edge_weight=weight, _blocks={})
    )


def _expected_on(case: Case, problem: Problem) -> Residuals:
    """Average over single clusters, each of which is closed under messages; histories start from zero."""
    assert case.partition is not None
    state = case.estimator.init(problem)
    mean = problem.zero_gradient()
    for batch, probability in Clusters(case.partition, 1).enumerate():
        mean = gradient_sum(mean, case.estimator.estimate(problem, state, batch).gradient, probability)
    return _compare(case, problem, mean, exact_pass(problem).gradient)


def _single_layer_applies(case: Case) -> bool:
    """L = 1 needs the estimator to read the halo's (exact) inputs; without encoder, no message goes back."""
    estimator = case.estimator
    return isinstance(estimator, Compensated) and isinstance(estimator.policies.forward, Blend | Held)


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
    problem = Problem(dataclasses.replace(case.graph, x=inputs, _blocks={}), model.eval(), case.problem.loss)
    exact = exact_pass(problem)
    reference, reference_state = BackwardSGD(), History.from_exact(problem, exact)
    state = case.estimator.init(problem)
    worst: Residuals | None = None
    for batch, _ in Clusters(case.partition, 1).enumerate():
        expected = reference.estimate(problem, reference_state, batch).gradient
        estimate = case.estimator.estimate(problem, state, batch).gradient
        one = Residuals.of(
            gradient_sum(estimate, expected, -1.0),
            reference=exact.gradient,
            terms=rounding_terms(problem),
            magnitude=2 * loss_conditioning(case) * (gradient_norm(expected) + gradient_norm(exact.gradient)),
        )
        worst = one if worst is None else worst.merged(one)
    assert worst is not None  # a partition has at least one cluster
    return worst


def expect(case: Case) -> Expectation:
    """Return what theory says: every estimator of the family reduces, with inclusion weights."""
    broken = next((item for item in REDUCTIONS.checked_assumptions(case) if item.holds is False), None)
    if broken is not None:
        return Expectation(Outcome.NOT_APPLICABLE, broken.statement)
    return Expectation(Outcome.EXACT, "where no message crosses a batch's border, nothing is left to compensate")


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
    assumptions=(
        NO_DROPOUT,
        Assumption(
            "clusters",
            "the design draws clusters",
            lambda case: (case.partition is not None, f"design: {type(case.design).__name__}"),
        ),
        Assumption(
            "inclusion-weights",
            "batch rows are weighted by inverse inclusion probabilities",
            lambda case: (
                case.normaliser == "inclusion",
                f"normaliser: {getattr(case.estimator, 'normaliser', 'inclusion')}",
            ),
        ),
    ),
    check=check,
    expect=expect,
)
