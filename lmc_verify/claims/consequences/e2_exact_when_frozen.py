"""E2: at fixed parameters, local compensation is exact from sweep 2L - 1 on."""

from __future__ import annotations

import numpy as np

from lmc_verify.cases import Case, prepared_state, sweep_batches
from lmc_verify.claims.assumptions import AGGREGATE_LINEAR, BETA_ZERO, CLUSTERS, NO_DROPOUT
from lmc_verify.claims.claim import Claim, expect_not_applicable, not_applicable, verdict_of
from lmc_verify.claims.reference import FAMILY, SOURCE, Reference, explained
from lmc_verify.claims.residuals import Residuals
from lmc_verify.claims.theory import Expectation, expect_from_halo, frozen_sweeps
from lmc_verify.claims.verdict import Evidence, Outcome, Verdict
from lmc_verify.estimators import History, exact_histories, properties_of
from lmc_verify.objective import gradient_norm
from lmc_verify.statistics.rounding import decide, gamma

__all__ = ["EXACT_WHEN_FROZEN"]

HISTORY_ROUNDING = 4
"""Tolerance of a history in units of ``gamma``: values are computed and then read, on both sides of the comparison."""


def check_exact_when_frozen(case: Case) -> Verdict:
    """Sweep over the clusters at fixed parameters from zero histories, and watch histories and gradients.

    The claim holds if hist(H^l) is exact after sweep l, hist(V^l) after sweep 2L - l, and every gradient of sweep
    2L - 1 and of one more sweep equals Backward SGD's. A trained encoder reads V^0, which needs hist(V^1): its sweep is
    2L instead.
    """
    claim = EXACT_WHEN_FROZEN
    inapplicable = not_applicable(case, claim)
    if inapplicable is not None:
        return inapplicable
    reference, state, batches = Reference(case), prepared_state(case, "zero"), sweep_batches(case)
    norm, due = gradient_norm(case.exact.gradient), frozen_sweeps(case)
    residuals: Residuals | None = None
    by_sweep: list[Evidence] = []
    histories: list[Evidence] = []
    for sweep in range(1, due + 2):
        largest = 0.0
        for batch in batches:
            estimate = case.estimate(state, batch)
            state.apply(estimate.writes)
            difference, one = reference.compare(estimate.gradient, batch)
            largest = float(np.maximum(largest, gradient_norm(difference) / (norm or 1.0)))  # keeps NaN
            if sweep >= due:
                residuals = one.merged(residuals)
        by_sweep.append(Evidence(f"sweep {sweep}", largest, group="gradient error by sweep"))
        histories += _history_errors(case, state, sweep, reference)
    assert residuals is not None  # the last two sweeps are compared
    outcome = residuals.outcome
    if outcome is Outcome.EXACT:
        found = {decide(item.value, item.tolerance or 0.0) for item in histories}
        if "refuted" in found:
            outcome = Outcome.REFUTED
        elif "inconclusive" in found:
            outcome = Outcome.INCONCLUSIVE
    off = max((item.value for item in histories), default=0.0)
    if outcome is Outcome.EXACT:
        summary = (
            f"from sweep {due} on every gradient equals Backward SGD's (largest difference "
            f"{residuals.worst.value:.1e} of a layer's gradient, rounding allows {residuals.worst.tolerance:.1e}); the "
            "histories are exact in the sweep in which they should be"
        )
    elif outcome is Outcome.REFUTED:
        summary = (
            f"gradients still differ from Backward SGD's by {by_sweep[-1].value:.2g} of the gradient's norm after "
            f"{due + 1} sweeps (first sweep: {by_sweep[0].value:.2g}); histories off by up to {off:.2g} in the "
            f"sweep in which they should be exact{explained(case, claim)}"
        )
    else:
        summary = residuals.explanation
    return verdict_of(
        case,
        claim.id,
        outcome,
        summary,
        histories="zero",
        residuals=residuals,
        evidence=[*by_sweep, *histories],
        assumptions=claim.checked_assumptions(case),
    )


def _history_errors(case: Case, state: History, sweep: int, reference: Reference) -> list[Evidence]:
    """Return the errors of the histories that must be exact after this sweep: H^l after l, V^l after 2L - l."""
    layers, out = case.problem.num_layers, []
    tables = (
        ("H", state.embeddings, exact_histories(case.estimator, case.problem, case.exact)),
        ("V", state.auxiliary, dict(case.exact.auxiliary)),
    )
    for kind, held, truth in tables:
        for layer in held:
            if layer and sweep == (layer if kind == "H" else 2 * layers - layer):
                error = float((held[layer] - truth[layer]).norm()) / (float(truth[layer].norm()) or 1.0)
                tolerance = HISTORY_ROUNDING * gamma(reference.terms) * (1.0 if kind == "H" else reference.conditioning)
                name, unit = f"hist({kind}^{layer}) after sweep {sweep}", f"norm of {kind}^{layer}"
                out.append(Evidence(name, error, tolerance, unit=unit, group="history error when it should vanish"))
    return out


def expect_exact_when_frozen(case: Case) -> Expectation:
    """Return what theory says of E2."""
    inapplicable = expect_not_applicable(case, EXACT_WHEN_FROZEN)
    if inapplicable is not None:
        return inapplicable
    policies = properties_of(case.estimator).policies
    assert policies is not None  # FAMILY holds
    found = expect_from_halo(case, sweep_batches(case), histories="exact")
    if found.outcome is Outcome.EXACT and policies.write_halo and case.problem.num_layers == 1:
        return Expectation(None, "halo rows that are written back may be incomplete, though no gradient reads them")
    return found


EXACT_WHEN_FROZEN = Claim(
    id="e2/exact-when-frozen",
    title="Exact from sweep 2L - 1 on at fixed parameters",
    statement=(
        "At fixed parameters, from zero histories and with beta = 0, the history of H^l is exact after sweep l, that "
        "of V^l after sweep 2L - l, and every gradient from sweep 2L - 1 on equals Backward SGD's (from sweep 2L on "
        "with a trained encoder)."
    ),
    source=SOURCE,
    tier="exact",
    theory=(
        "Batch rows are written from halo values that the sweep before made exact, one layer per sweep: first H "
        "upwards, then V downwards. It needs a cut right after the linear aggregation; with the post-activation cut "
        "or with attention, halo Jacobians see incomplete aggregates and a floor remains. GAS's histories become "
        "exact, its gradient never does."
    ),
    required=(NO_DROPOUT, FAMILY, CLUSTERS),
    assumptions=(BETA_ZERO, AGGREGATE_LINEAR),
    check=check_exact_when_frozen,
    expect=expect_exact_when_frozen,
)
