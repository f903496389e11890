"""What local compensation promises at fixed parameters: E1 (equals Backward SGD), E2 (exact after 2L - 1 sweeps) and
E6 (what is lost when the backward halo is dropped).
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch

from lmc_verify.batches import Batch
from lmc_verify.case import Case, prepared_state, sweep_batches
from lmc_verify.claims.base import (
    AGGREGATE_LINEAR,
    BETA_ZERO,
    CUT_EDGES,
    FINITE_SUPPORT,
    MAX_SUPPORT,
    NO_DROPOUT,
    Assumption,
    Claim,
    Expectation,
    Residuals,
    closed,
    compensation_fails,
    failed,
    halo_dropped_backward,
    holds_exact,
    layer_evidence,
    loss_conditioning,
    no_halo,
    relative_by_layer,
    rounding_terms,
    unflatten,
    verdict_of,
)
from lmc_verify.claims.unbiasedness import enumerate_estimator
from lmc_verify.claims.verdict import Evidence, Outcome, Verdict
from lmc_verify.estimators import BackwardSGD, Blend, Compensated, Held, History
from lmc_verify.problem import gradient_norm, gradient_sum
from lmc_verify.statistics.rounding import decide, gamma

__all__ = ["EQUALS_BACKWARD_SGD", "EXACT_WHEN_FROZEN", "LOWER_LAYERS_BIASED"]

_SOURCE = "derived from the estimators' definitions in LMC (Shi, Liang and Wang, ICLR 2023)"


def _not_applicable(case: Case, claim: Claim, *required: str) -> Verdict | None:
    """Return a NOT_APPLICABLE verdict if one of the required assumptions fails."""
    assumptions = claim.checked_assumptions(case)
    broken = failed(assumptions, *required)
    if broken is None:
        return None
    detail = f" ({broken.detail})" if broken.detail else ""
    summary = f"the assumption '{broken.statement}' does not hold{detail}"
    return verdict_of(case, claim.id, Outcome.NOT_APPLICABLE, summary, assumptions=assumptions)


def _in_family(case: Case) -> tuple[bool | None, str]:
    return isinstance(case.estimator, Compensated), f"{case.estimator.name}"


FAMILY = Assumption("compensated-family", "the estimator has halo policies and histories", _in_family)


# ---------------------------------------------------------------------------------------------------------- E1


def check_equals_backward_sgd(case: Case) -> Verdict:
    """Compare the estimate with Backward SGD's on every batch of the design, from exact histories."""
    claim = EQUALS_BACKWARD_SGD
    inapplicable = _not_applicable(case, claim, NO_DROPOUT.id, FINITE_SUPPORT.id)
    if inapplicable is not None:
        return inapplicable
    reference = BackwardSGD(normaliser=case.normaliser)
    exact = case.exact.gradient
    state, reference_state = prepared_state(case, "exact"), History.from_exact(case.problem, case.exact)
    terms, conditioning = rounding_terms(case.problem), loss_conditioning(case)
    residuals: Residuals | None = None
    worst_by_layer: dict[str, float] = {}
    batches = differing = 0
    for batch, _ in case.design.enumerate():
        expected = reference.estimate(case.problem, reference_state, batch).gradient
        difference = gradient_sum(case.estimator.estimate(case.problem, state, batch).gradient, expected, -1.0)
        magnitude = 2 * conditioning * (gradient_norm(expected) + gradient_norm(exact))
        one = Residuals.of(difference, reference=exact, terms=terms, magnitude=magnitude)
        batches += 1
        differing += one.decision != "exact"
        residuals = one if residuals is None else residuals.merged(one)
        for part, value in relative_by_layer(case.problem, difference, exact).items():
            worst_by_layer[part] = max(value, worst_by_layer.get(part, 0.0))
    assert residuals is not None  # a design has at least one batch
    evidence = [
        Evidence(part, value, unit="norm of the layer's exact gradient", group="largest difference per layer")
        for part, value in worst_by_layer.items()
    ]
    if residuals.outcome is Outcome.EXACT:
        summary = (
            f"equal to Backward SGD on all {batches} batches: largest difference {residuals.largest:.1e}, rounding "
            f"allows {residuals.tolerance:.1e}"
        )
    else:
        summary = (
            f"differs from Backward SGD on {differing} of {batches} batches, by up to {residuals.largest:.2g} of the "
            "gradient's norm"
        )
    assumptions = claim.checked_assumptions(case)
    return verdict_of(
        case, claim.id, residuals.outcome, summary, residuals=residuals, evidence=evidence, assumptions=assumptions
    )


def _fully_compensated(case: Case, batches: Iterable[Batch]) -> list[str]:
    """Why exact histories do not make the estimator equal to Backward SGD on the batches; empty if they do."""
    if holds_exact(case):
        return []
    if not isinstance(case.estimator, Compensated):
        return ["the estimator is outside the compensated family"]
    problem, policies = case.problem, case.estimator.policies
    if not isinstance(policies.forward, Blend):
        return ["edges that leave the batch are cut"]
    if problem.num_layers == 1 and not problem.parameters_of(problem.model.encoder):
        return []
    return compensation_fails(case, policies, batches)


def expect_equals_backward_sgd(case: Case) -> Expectation:
    """Return what theory says of E1."""
    reasons = [] if no_halo(case) else _fully_compensated(case, (batch for batch, _ in case.design.enumerate()))
    if reasons:
        return Expectation(Outcome.REFUTED, "; ".join(reasons))
    return Expectation(Outcome.EXACT, "exact halo values in both passes leave nothing out")


EQUALS_BACKWARD_SGD = Claim(
    id="e1/equals-backward-sgd",
    title="Equals Backward SGD with exact histories",
    statement=(
        "With exact histories, beta = 0 and aggregate-linear layers, the estimate equals Backward SGD's on every "
        "batch, parameter by parameter."
    ),
    source=_SOURCE,
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
    inapplicable = _not_applicable(case, claim, NO_DROPOUT.id, FAMILY.id, "clusters")
    if inapplicable is not None:
        return inapplicable
    problem, exact, layers = case.problem, case.exact, case.problem.num_layers
    reference = BackwardSGD(normaliser=case.normaliser)
    reference_state = History.from_exact(problem, exact)
    state = prepared_state(case, "zero")
    terms, conditioning = rounding_terms(problem), loss_conditioning(case)
    norm = gradient_norm(exact.gradient)
    residuals: Residuals | None = None
    by_sweep: list[float] = []
    evidence: list[Evidence] = []
    history_tolerance = 4 * gamma(terms) * conditioning
    history_worst = 0.0
    batches = sweep_batches(case)
    due = frozen_sweeps(case)
    for sweep in range(1, due + 2):
        worst = 0.0
        for batch in batches:
            estimate = case.estimator.estimate(problem, state, batch)
            state.apply(estimate.writes)
            expected = reference.estimate(problem, reference_state, batch).gradient
            difference = gradient_sum(estimate.gradient, expected, -1.0)
            worst = max(worst, gradient_norm(difference) / (norm or 1.0))
            if sweep >= due:
                one = Residuals.of(
                    difference,
                    reference=exact.gradient,
                    terms=terms,
                    magnitude=2 * conditioning * (gradient_norm(expected) + norm),
                )
                residuals = one if residuals is None else residuals.merged(one)
        by_sweep.append(worst)
        evidence.append(Evidence(f"sweep {sweep}", worst, group="gradient error by sweep"))
        for kind, held, truth in (
            ("H", state.embeddings, dict(enumerate(exact.embeddings))),
            ("V", state.auxiliary, dict(exact.auxiliary)),
        ):
            for layer in held:
                if layer and sweep == (layer if kind == "H" else 2 * layers - layer):
                    scale = float(truth[layer].norm()) or 1.0
                    error = float((held[layer] - truth[layer]).norm()) / scale
                    history_worst = float(np.maximum(history_worst, error))  # keeps NaN
                    evidence.append(
                        Evidence(
                            f"hist({kind}^{layer}) after sweep {sweep}",
                            error,
                            history_tolerance,
                            unit=f"norm of {kind}^{layer}",
                            group="history error when due",
                        )
                    )
    assert residuals is not None  # at least two sweeps were made
    outcome = residuals.outcome
    if outcome is Outcome.EXACT:
        found = decide(history_worst, history_tolerance)
        outcome = {"exact": Outcome.EXACT, "refuted": Outcome.REFUTED}.get(found, Outcome.INCONCLUSIVE)
    if outcome is Outcome.EXACT:
        summary = (
            f"from sweep {due} on every gradient equals Backward SGD's (largest difference {residuals.largest:.1e}, "
            f"rounding allows {residuals.tolerance:.1e}); the histories are exact when due"
        )
    else:
        summary = (
            f"gradients still differ from Backward SGD's by {by_sweep[-1]:.2g} of the gradient's norm after "
            f"{due + 1} sweeps (first sweep: {by_sweep[0]:.2g}); histories off by up to {history_worst:.2g} when "
            f"due"
        )
    assumptions = claim.checked_assumptions(case)
    return verdict_of(case, claim.id, outcome, summary, residuals=residuals, evidence=evidence, assumptions=assumptions)


def frozen_sweeps(case: Case) -> int:
    """Return the sweep from which every gradient is exact at fixed parameters: 2L - 1, or 2L with a trained encoder.

    The gradient of layer l needs V^l at batch rows, which sweep 2L - l is the first to compute from exact halo values;
    the encoder is layer 0.
    """
    problem = case.problem
    return 2 * problem.num_layers - (0 if problem.parameters_of(problem.model.encoder) else 1)


def expect_exact_when_frozen(case: Case) -> Expectation:
    """Return what theory says of E2."""
    if case.partition is None or not isinstance(case.estimator, Compensated):
        return Expectation(Outcome.NOT_APPLICABLE, "needs a design over clusters and halo policies")
    reasons = []
    if not closed(case.graph, sweep_batches(case)):
        reasons = _fully_compensated(case, sweep_batches(case))
        if not reasons and _halo_writes_spoil(case):  # matters at L = 1, where no gradient reads them
            reasons = ["incomplete fresh values are written to the histories of the halo"]
    if reasons:
        return Expectation(Outcome.REFUTED, "; ".join(reasons))
    return Expectation(Outcome.EXACT, "each sweep makes one more layer of histories exact, forward and then backward")


def _halo_writes_spoil(case: Case) -> bool:
    """Whether an estimator that writes halo rows puts incomplete values where an earlier batch wrote exact ones."""
    policies = case.estimator.policies if isinstance(case.estimator, Compensated) else None
    if policies is None or not policies.write_halo:
        return False
    if not (isinstance(policies.forward, Blend) and policies.forward.uses_fresh):
        return False
    source, destination = case.graph.edge_index
    visited = torch.zeros(case.graph.num_nodes, dtype=torch.bool, device=case.graph.device)
    for batch in sweep_batches(case):
        nodes = batch.nodes.to(case.graph.device)
        halo = case.graph.neighbourhood(nodes)
        local, incomplete = torch.zeros_like(visited), torch.zeros_like(visited)
        local[nodes] = local[halo] = True
        incomplete[destination[~local[source]]] = True
        if bool((incomplete & visited)[halo].any()):
            return True
        visited[nodes] = True
    return False


EXACT_WHEN_FROZEN = Claim(
    id="e2/exact-when-frozen",
    title="Exact from sweep 2L - 1 on at fixed parameters",
    statement=(
        "At fixed parameters, from zero histories and with beta = 0, the history of H^l is exact after sweep l, that "
        "of V^l after sweep 2L - l, and every gradient from sweep 2L - 1 on equals Backward SGD's (from sweep 2L on "
        "with a trained encoder)."
    ),
    source=_SOURCE,
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
        Assumption(
            "clusters",
            "each sweep visits every node exactly once",
            lambda case: (case.partition is not None, f"design: {type(case.design).__name__}"),
        ),
        BETA_ZERO,
        AGGREGATE_LINEAR,
    ),
    check=check_exact_when_frozen,
    expect=expect_exact_when_frozen,
)


# ---------------------------------------------------------------------------------------------------------- E6


def check_lower_layers_biased(case: Case) -> Verdict:
    """Enumerate the design from exact histories and compare every layer's bias with rounding."""
    claim = LOWER_LAYERS_BIASED
    inapplicable = _not_applicable(
        case,
        claim,
        NO_DROPOUT.id,
        FINITE_SUPPORT.id,
        CUT_EDGES.id,
        "backward-halo-dropped",
        "exact-embeddings",
        "inclusion-weights",
        "lower-layers",
    )
    if inapplicable is not None:
        return inapplicable
    exact, problem = case.exact.gradient, case.problem
    moments = enumerate_estimator(case)
    mean = unflatten(torch.from_numpy(moments.mean), exact)
    bias = gradient_sum({name: value.to(exact[name].device) for name, value in mean.items()}, exact, -1.0)
    residuals = Residuals.of(
        bias,
        reference=exact,
        terms=rounding_terms(problem, moments.atoms),
        magnitude=loss_conditioning(case) * (moments.mean_norm + gradient_norm(exact)),
    )
    per_layer = relative_by_layer(problem, bias, exact)
    top = {f"layer {problem.num_layers}", "head"}
    last = {name: value for name, value in residuals.by_parameter.items() if problem.layer_of(name) in top}
    lower = {
        part: max(value for name, value in residuals.by_parameter.items() if problem.layer_of(name) == part)
        for part in per_layer
        if part not in top
    }
    identity = Residuals(last, residuals.tolerance, residuals.unit)
    biased = all(value > residuals.detectable for value in lower.values())
    figures = ", ".join(f"{part} {value:.2g}" for part, value in per_layer.items())
    if identity.outcome is Outcome.EXACT and biased:
        outcome, summary = Outcome.EXACT, f"relative bias with exact histories: {figures}"
    elif identity.outcome is Outcome.INCONCLUSIVE:
        outcome, summary = Outcome.INCONCLUSIVE, f"the last layer's residual is near rounding: {figures}"
    else:
        outcome, summary = Outcome.REFUTED, f"not the pattern that dropping the backward halo gives: {figures}"
    evidence = layer_evidence(problem, bias, exact, residuals)
    return verdict_of(
        case,
        claim.id,
        outcome,
        summary,
        residuals=identity,
        evidence=evidence,
        assumptions=claim.checked_assumptions(case),
    )


def _exact_embeddings(case: Case) -> tuple[bool | None, str]:
    estimator = case.estimator
    if not isinstance(estimator, Compensated) or not isinstance(estimator.policies.forward, Blend | Held):
        return False, "the estimator keeps no history of H"
    fresh = isinstance(estimator.policies.forward, Blend) and estimator.policies.forward.uses_fresh
    exact = case.histories == "exact" and not fresh
    return exact, f"histories: {case.histories}" + (", blended with fresh values" if fresh else "")


def _lower_layers(case: Case) -> tuple[bool | None, str]:
    problem = case.problem
    return problem.num_layers > 1 or bool(problem.parameters_of(problem.model.encoder)), f"L = {problem.num_layers}"


def expect_lower_layers_biased(case: Case) -> Expectation:
    """Return what theory says of E6."""
    checks = LOWER_LAYERS_BIASED.checked_assumptions(case)
    broken = next((item for item in checks if item.holds is False), None)
    if broken is not None or case.design.support_size > MAX_SUPPORT:
        return Expectation(Outcome.NOT_APPLICABLE, broken.statement if broken else "the design is too large")
    return Expectation(Outcome.EXACT, "the last layer needs no halo message backward, every lower layer does")


LOWER_LAYERS_BIASED = Claim(
    id="e6/bias-per-layer",
    title="Dropping the backward halo biases every layer but the last",
    statement=(
        "An estimator that drops halo messages in the backward pass is biased in every layer but the last, even with "
        "exact histories; the last layer (and the head) is unbiased."
    ),
    source=_SOURCE + "; the estimator is GAS (Fey et al., ICML 2021)",
    tier="exact",
    theory=(
        "V^L at batch rows comes from the loss and is exact; V^l below lacks what the halo's rows would send back, "
        "and that part has no reason to vanish in expectation."
    ),
    assumptions=(
        NO_DROPOUT,
        FINITE_SUPPORT,
        CUT_EDGES,
        Assumption(
            "backward-halo-dropped",
            "halo messages are dropped in the backward pass",
            lambda case: (halo_dropped_backward(case), case.estimator.name),
        ),
        Assumption("exact-embeddings", "the halo's embeddings are exact", _exact_embeddings),
        Assumption(
            "inclusion-weights",
            "batch rows are weighted by inverse inclusion probabilities",
            lambda case: (
                case.normaliser == "inclusion" and not case.conditioned,
                f"normaliser: {getattr(case.estimator, 'normaliser', 'inclusion')}",
            ),
        ),
        Assumption("lower-layers", "there is a layer below the last", _lower_layers),
    ),
    check=check_lower_layers_biased,
    expect=expect_lower_layers_biased,
)
