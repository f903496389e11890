"""What local compensation promises at fixed parameters: E1 (equals Backward SGD), E2 (exact from sweep 2L - 1 on)."""

from __future__ import annotations

import numpy as np

from lmc_verify.batches import Batch
from lmc_verify.case import Case, prepared_state, sweep_batches
from lmc_verify.claims.base import (
    AGGREGATE_LINEAR,
    BETA_ZERO,
    CLUSTERS,
    FINITE_SUPPORT,
    MAX_SUPPORT,
    NO_DROPOUT,
    Assumption,
    Claim,
    not_applicable,
    verdict_of,
)
from lmc_verify.claims.expectation import Expectation, expect_from_halo, frozen_sweeps
from lmc_verify.claims.residuals import (
    UNIT,
    Residuals,
    norm_by_layer,
    relative_by_layer,
)
from lmc_verify.claims.verdict import Evidence, Outcome, Verdict
from lmc_verify.conditioning import loss_conditioning, rounding_terms
from lmc_verify.estimators import BackwardSGD, Compensated, FullBatch, History
from lmc_verify.problem import Gradient, gradient_norm, gradient_sum
from lmc_verify.statistics.rounding import decide, gamma

__all__ = ["EQUALS_BACKWARD_SGD", "EXACT_WHEN_FROZEN", "SOURCE", "Reference"]

SOURCE = "derived from the estimators' definitions in LMC (Shi, Liang and Wang, ICLR 2023)"


class Reference:
    """Backward SGD on a case, and the comparison of other estimates with it, batch by batch."""

    def __init__(self, case: Case) -> None:
        self.case, self.estimator = case, BackwardSGD(normaliser=case.normaliser)
        self.state = History.from_exact(case.problem, case.exact)
        self.terms = rounding_terms(case.problem)
        self.conditioning = loss_conditioning(case.problem, case.exact)
        self.norms = norm_by_layer(case.problem, case.exact.gradient)

    def expected(self, batch: Batch) -> Gradient:
        """Return Backward SGD's estimate on a batch."""
        return self.estimator.estimate(self.case.problem, self.state, batch).gradient

    def compare(self, estimate: Gradient, batch: Batch) -> tuple[Gradient, Residuals]:
        """Return the difference from Backward SGD on a batch, and its residuals.

        Both sides round: twice what is added up in the estimate, and the loss derivative's own errors, which the
        batch's weights scale up.
        """
        case = self.case
        expected = self.expected(batch)
        difference = gradient_sum(estimate, expected, -1.0)
        weight = 1 / float(batch.inclusion.min())
        sizes = norm_by_layer(case.problem, expected)
        magnitudes = {part: 2 * (sizes[part] + weight * self.conditioning * norm) for part, norm in self.norms.items()}
        residuals = Residuals.of(
            case.problem, difference, reference=case.exact.gradient, terms=self.terms, magnitudes=magnitudes
        )
        return difference, residuals


def _in_family(case: Case) -> tuple[bool | None, str]:
    return isinstance(case.estimator, Compensated), case.estimator.name


def _explained(case: Case, claim: Claim) -> str:
    """Return which assumptions of a refuted claim fail, to end its summary with."""
    broken = [item for item in claim.checked_assumptions(case) if item.holds is False]
    named = [f"{item.id} ({item.detail})" if item.detail else item.id for item in broken]
    return f"; assumptions that fail: {', '.join(named)}" if named else ""


FAMILY = Assumption("compensated-family", "the estimator has halo policies and histories", _in_family)


# ---------------------------------------------------------------------------------------------------------- E1


def check_equals_backward_sgd(case: Case) -> Verdict:
    """Compare the estimate with Backward SGD's on every batch of the design, from exact histories."""
    claim = EQUALS_BACKWARD_SGD
    inapplicable = not_applicable(case, claim, NO_DROPOUT.id, FINITE_SUPPORT.id)
    if inapplicable is not None:
        return inapplicable
    reference, state = Reference(case), prepared_state(case, "exact")
    residuals: Residuals | None = None
    worst_by_layer: dict[str, float] = {}
    batches = differing = 0
    for batch, _ in case.design.enumerate():
        estimate = case.estimator.estimate(case.problem, state, batch).gradient
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
            f"{max(worst_by_layer.values()):.2g} of a layer's gradient{_explained(case, claim)}"
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
    if case.design.support_size > MAX_SUPPORT:
        return Expectation(Outcome.NOT_APPLICABLE, "the design is too large to be enumerated")
    whole = all(batch.size == case.graph.num_nodes for batch, _ in case.design.enumerate())
    if isinstance(case.estimator, FullBatch) and not whole:
        return Expectation(None, "the exact gradient is Backward SGD's estimate only where no batch differs from it")
    return expect_from_halo(case, (batch for batch, _ in case.design.enumerate()), histories="exact")


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
    assumptions=(NO_DROPOUT, FINITE_SUPPORT, BETA_ZERO, AGGREGATE_LINEAR),
    check=check_equals_backward_sgd,
    expect=expect_equals_backward_sgd,
)


# ---------------------------------------------------------------------------------------------------------- E2


def check_exact_when_frozen(case: Case) -> Verdict:
    """Sweep over the clusters at fixed parameters from zero histories, and watch histories and gradients.

    The claim holds if hist(H^l) is exact after sweep l, hist(V^l) after sweep 2L - l, and every gradient of sweep
    2L - 1 and of one more sweep equals Backward SGD's. A trained encoder reads V^0, which needs hist(V^1): its sweep is
    2L instead.
    """
    claim = EXACT_WHEN_FROZEN
    inapplicable = not_applicable(case, claim, NO_DROPOUT.id, FAMILY.id, CLUSTERS.id)
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
            estimate = case.estimator.estimate(case.problem, state, batch)
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
            "histories are exact when due"
        )
    elif outcome is Outcome.REFUTED:
        summary = (
            f"gradients still differ from Backward SGD's by {by_sweep[-1].value:.2g} of the gradient's norm after "
            f"{due + 1} sweeps (first sweep: {by_sweep[0].value:.2g}); histories off by up to {off:.2g} when due"
            f"{_explained(case, claim)}"
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
        ("H", state.embeddings, dict(enumerate(case.exact.embeddings))),
        ("V", state.auxiliary, dict(case.exact.auxiliary)),
    )
    for kind, held, truth in tables:
        for layer in held:
            if layer and sweep == (layer if kind == "H" else 2 * layers - layer):
                error = float((held[layer] - truth[layer]).norm()) / (float(truth[layer].norm()) or 1.0)
                tolerance = 4 * gamma(reference.terms) * (1.0 if kind == "H" else reference.conditioning)
                name, unit = f"hist({kind}^{layer}) after sweep {sweep}", f"norm of {kind}^{layer}"
                out.append(Evidence(name, error, tolerance, unit=unit, group="history error when due"))
    return out


def expect_exact_when_frozen(case: Case) -> Expectation:
    """Return what theory says of E2."""
    if case.partition is None or not isinstance(case.estimator, Compensated):
        return Expectation(Outcome.NOT_APPLICABLE, "needs a design over clusters and halo policies")
    found = expect_from_halo(case, sweep_batches(case), histories="exact")
    if found.outcome is Outcome.EXACT and case.estimator.policies.write_halo and case.problem.num_layers == 1:
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
        "Batch rows are written from halo values that the sweep before made exact, one layer a sweep: first H "
        "upwards, then V downwards. It needs a cut right after the linear aggregation; with the post-activation cut "
        "or with attention, halo Jacobians see incomplete aggregates and a floor remains. GAS's histories become "
        "exact, its gradient never."
    ),
    assumptions=(
        NO_DROPOUT,
        FAMILY,
        CLUSTERS,
        BETA_ZERO,
        AGGREGATE_LINEAR,
    ),
    check=check_exact_when_frozen,
    expect=expect_exact_when_frozen,
)
