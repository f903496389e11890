"""A claim: the loss estimates of all batches have the objective as their mean."""

from __future__ import annotations

from lmc_verify.claims import (
    FINITE_SUPPORT,
    NO_DROPOUT,
    Case,
    Claim,
    Evidence,
    Expectation,
    Outcome,
    Verdict,
    decide,
    gamma,
    not_applicable,
    rounding_terms,
    verdict_of,
)

__all__ = ["LOSS_UNBIASED"]


def check(case: Case) -> Verdict:
    """Enumerate the design, and compare the mean loss estimate with the objective."""
    inapplicable = not_applicable(case, LOSS_UNBIASED)
    if inapplicable is not None:
        return inapplicable
    state, mean = case.initial_state(), 0.0
    for batch, probability in case.design.enumerate():
        mean += probability * case.estimate(state, batch).loss
    off = abs(mean - case.exact.loss) / case.exact.loss
    tolerance = 4 * gamma(rounding_terms(case.problem, case.design.support_size))
    outcome = {"exact": Outcome.EXACT, "refuted": Outcome.REFUTED}.get(decide(off, tolerance), Outcome.INCONCLUSIVE)
    return verdict_of(
        case,
        LOSS_UNBIASED.id,
        outcome,
        f"the mean loss estimate is off by {off:.2g} of the objective, rounding allows {tolerance:.1e}",
        evidence=[Evidence("mean loss estimate", off, tolerance, unit="objective")],
        assumptions=LOSS_UNBIASED.checked_assumptions(case),
        residual=off,
        tolerance=tolerance,
    )


def expect(case: Case) -> Expectation:
    """Return what theory says."""
    return Expectation(None, "it depends on what the estimator puts at the halo")


LOSS_UNBIASED = Claim(
    id="example/loss-unbiased",
    title="Unbiased loss estimates",
    statement="The expected loss estimate equals the objective.",
    source="an example",
    tier="exact",
    theory="With exact embeddings at the halo, the last layer's batch rows are exact; inclusion weights do the rest.",
    required=(NO_DROPOUT, FINITE_SUPPORT),
    check=check,
    expect=expect,
)
