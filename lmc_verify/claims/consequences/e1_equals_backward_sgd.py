"""E1: with exact histories, local compensation equals Backward SGD on every batch."""

from __future__ import annotations

import numpy as np

from lmc_verify.cases import Case, prepared_state
from lmc_verify.cases.verdict import Evidence, Outcome, Verdict
from lmc_verify.claims.assumptions import AGGREGATE_LINEAR, BETA_ZERO, FINITE_SUPPORT, HISTORIES_NAMED, NO_DROPOUT
from lmc_verify.claims.claim import Claim, expect_not_applicable, not_applicable, verdict_of
from lmc_verify.claims.question import Answer, Question, largest
from lmc_verify.claims.reference import SOURCE, Reference, explained
from lmc_verify.claims.residuals import UNIT, Residuals, relative_by_layer
from lmc_verify.claims.theory import Expectation, expect_from_halo, where_gradient_vanishes
from lmc_verify.estimators import properties_of

__all__ = ["EQUALS_BACKWARD_SGD"]


def check_equals_backward_sgd(case: Case) -> Verdict:
    """Compare the estimate with Backward SGD's on every batch of the design, from exact histories."""
    claim = EQUALS_BACKWARD_SGD
    inapplicable = not_applicable(case, claim)
    if inapplicable is not None:
        return inapplicable
    reference, state = Reference(case), prepared_state(case, "exact")
    residuals: Residuals | None = None
    worst_by_layer: dict[str, float] = {}
    batches = differing = 0
    for batch, _ in case.design.enumerate():
        estimate = case.estimate(state, batch).gradient
        difference, one = reference.compare(estimate, batch)
        batches += 1
        differing += one.worst.ratio > 1
        residuals = one.merged(residuals)
        for part, value in relative_by_layer(case.problem, difference, case.exact.gradient).items():
            worst_by_layer[part] = float(np.maximum(value, worst_by_layer.get(part, 0.0)))  # keeps NaN
    assert residuals is not None  # a design has at least one batch
    outcome, worst = residuals.outcome, residuals.worst
    if outcome is Outcome.EXACT:
        summary = (
            f"equal to Backward SGD on all {batches:,} batches: largest difference {worst.value:.1e} of a layer's "
            f"gradient, rounding allows {worst.tolerance:.1e}"
        )
    elif outcome is Outcome.REFUTED:
        summary = (
            f"differs from Backward SGD on {differing:,} of {batches:,} batches, by up to "
            f"{max(worst_by_layer.values()):.2g} of a layer's gradient{explained(case, claim)}"
        )
    else:
        summary = residuals.explanation
    return verdict_of(
        case,
        claim.id,
        outcome,
        summary,
        histories="exact",
        residuals=residuals,
        evidence=[
            Evidence(part, value, unit=UNIT, group="largest difference per layer")
            for part, value in worst_by_layer.items()
        ],
        assumptions=claim.checked_assumptions(case),
    )


def expect_equals_backward_sgd(case: Case) -> Expectation:
    """Return what theory says of E1."""
    inapplicable = expect_not_applicable(case, EQUALS_BACKWARD_SGD)
    if inapplicable is not None:
        return inapplicable
    if properties_of(case.estimator).draws_nodes:
        return Expectation(None, "Backward SGD's batch has at least one node, and a draw of MVS-GNN may have none")
    whole = all(batch.size == case.graph.num_nodes for batch, _ in case.design.enumerate())
    if properties_of(case.estimator).exact and not whole:
        return Expectation(None, "the exact gradient is Backward SGD's estimate only where no batch differs from it")
    expected = expect_from_halo(case, (batch for batch, _ in case.design.enumerate()), histories="exact")
    return where_gradient_vanishes(case, expected)


EQUALS_BACKWARD_SGD = Claim(
    id="e1/equals-backward-sgd",
    title="Equals Backward SGD with exact histories",
    statement=(
        "With exact histories, beta = 0 and aggregate-linear layers, the estimate equals Backward SGD's on every "
        "batch, parameter by parameter."
    ),
    source=SOURCE,
    tier="exact",
    theory=(
        "The halo's embeddings and auxiliary variables are then exact, and the Jacobian of an aggregate-linear layer "
        "at a halo row does not see that row's incomplete aggregate. GAS equals Backward SGD in the last layer only."
    ),
    question=Question(
        "With exact histories, is {estimator}'s gradient Backward SGD's on every batch",
        refuted=Answer("off by up to {size}", largest("largest difference per layer"), largest=True),
    ),
    required=(NO_DROPOUT, FINITE_SUPPORT, HISTORIES_NAMED),
    assumptions=(BETA_ZERO, AGGREGATE_LINEAR),
    check=check_equals_backward_sgd,
    expect=expect_equals_backward_sgd,
    reads=(),
    histories="exact",
)
