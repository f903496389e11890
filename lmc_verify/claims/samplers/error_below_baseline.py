"""A sampler has less error than the one it improves on at an equal budget, by enumeration of both."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from lmc_verify.cases import Case
from lmc_verify.cases.verdict import Evidence, Outcome, Verdict
from lmc_verify.claims.assumptions import FINITE_SUPPORT, NO_DROPOUT, enumerable
from lmc_verify.claims.claim import Assumption, Claim, expect_not_applicable, not_applicable, verdict_of
from lmc_verify.claims.question import Answer, Question, ratio
from lmc_verify.claims.residuals import norm_by_layer
from lmc_verify.claims.theory import Expectation
from lmc_verify.estimators import MVS, Sampled, properties_of
from lmc_verify.objective import gradient_norm, gradient_sum
from lmc_verify.statistics.rounding import require_number

__all__ = ["BELOW_BASELINE"]

RELATIVE_ROUNDING = 1e-9
"""Two mean squares closer than this, relative to the larger, are called equal."""


def baseline_of(case: Case) -> Sampled | MVS | None:
    """Return the sampler that the estimator is meant to improve on, at the same budget; None if there is none."""
    compared = properties_of(case.estimator).compared
    return None if compared is None else compared.baseline()


def _has_baseline(case: Case) -> tuple[bool | None, str]:
    baseline = baseline_of(case)
    if baseline is None:
        return False, f"{case.estimator.name} has no sampler that its authors compare it with at the same budget"
    return True, f"compared with {baseline}"


def _baseline_finite(case: Case) -> tuple[bool | None, str]:
    baseline = baseline_of(case)
    if baseline is None:
        return None, ""
    size = replace(case, estimator=baseline).design.support_size
    return enumerable(size, f"batches with samples of {baseline.name}")


HAS_BASELINE = Assumption(
    "has-baseline", "the estimator's authors compare it with another sampler at the same budget", _has_baseline
)

BASELINE_FINITE = Assumption("baseline-finite", "that sampler can be enumerated too", _baseline_finite)


@dataclass(frozen=True)
class _Error:
    """``E||g - grad||^2`` over batches and samples by layer, in units of the squared norm of the exact gradient."""

    by_layer: dict[str, float]
    atoms: int

    @property
    def total(self) -> float:
        return math.fsum(self.by_layer.values())


def _error(case: Case) -> _Error:
    """Enumerate the mean squared error of the gradient estimate."""
    state, atoms, total = case.initial_state(), 0, dict[str, float]()
    unit = gradient_norm(case.exact.gradient) or 1.0
    for batch, probability in case.design.enumerate():
        atoms += 1
        gradient = case.estimate(state, batch).gradient
        for part, norm in norm_by_layer(case.problem, gradient_sum(gradient, case.exact.gradient, -1.0)).items():
            total[part] = total.get(part, 0.0) + probability * (norm / unit) * (norm / unit)
    return _Error(total, atoms)


def check(case: Case) -> Verdict:
    """Enumerate the mean squared error over batches and samples, of the estimator and of its baseline, and compare."""
    claim = BELOW_BASELINE
    inapplicable = not_applicable(case, claim)
    if inapplicable is not None:
        return inapplicable
    baseline = baseline_of(case)
    assert baseline is not None
    own, other = _error(case), _error(replace(case, estimator=baseline))
    figures = {
        case.estimator.name: math.sqrt(own.total),
        f"baseline {baseline.name}": math.sqrt(other.total),
    }
    size = max(own.total, other.total)
    if size <= RELATIVE_ROUNDING**2:
        return verdict_of(case, claim.id, Outcome.NOT_APPLICABLE, "neither estimator has an error on this case")
    gap = require_number((other.total - own.total) / size, "the difference of the two mean squared errors")
    equal = Outcome.EXACT if gap >= -RELATIVE_ROUNDING else Outcome.REFUTED
    outcome = Outcome.SUPPORTED if gap > RELATIVE_ROUNDING else equal
    words = {Outcome.SUPPORTED: "below", Outcome.REFUTED: "above", Outcome.EXACT: "equal to"}[outcome]
    pair = ", ".join(f"{name} {value:.3g}" for name, value in figures.items())
    return verdict_of(
        case,
        claim.id,
        outcome,
        f"the root mean square error is {words} the baseline's: {pair} gradient norms",
        evidence=[
            *(Evidence(name, value, group="root mean square error") for name, value in figures.items()),
            *(
                Evidence(f"{part}, {name}", math.sqrt(value), group="root mean square error per layer")
                for name, error in zip(figures, (own, other), strict=True)
                for part, value in error.by_layer.items()
            ),
            Evidence("batches with samples", own.atoms, unit="atoms", group="totals"),
            Evidence("batches with samples, baseline", other.atoms, unit="atoms", group="totals"),
        ],
        assumptions=claim.checked_assumptions(case),
        residual=max(0.0, -gap),
        tolerance=RELATIVE_ROUNDING,
        minimum_detectable_effect=RELATIVE_ROUNDING,
    )


def expect(case: Case) -> Expectation:
    """Return what theory says: nothing beyond the assumptions; which of two errors is smaller is for the case."""
    inapplicable = expect_not_applicable(case, BELOW_BASELINE)
    if inapplicable is not None:
        return inapplicable
    return Expectation(None, "an ordering of two variances that theory bounds and does not decide")


BELOW_BASELINE = Claim(
    id="sampling/error-below-baseline",
    title="Less error than its baseline at an equal budget",
    statement=(
        "At the same budget, the mean squared error of the gradient over batches and samples is below that of the "
        "sampler it improves on: VR-GCN against neighbour sampling with the same fan-out, LADIES and AS-GCN against "
        "FastGCN with as many draws, MVS-GNN and vr-gcn-importance against uniform nodes."
    ),
    source=(
        "VR-GCN (Chen et al., ICML 2018), LADIES (Zou et al., NeurIPS 2019), AS-GCN (Huang et al., NeurIPS 2018), "
        "MVS-GNN (Cong et al., KDD 2020)"
    ),
    tier="exact",
    theory=(
        "With exact histories VR-GCN's forward pass has no error at all, and what is left comes from the backward "
        "pass. "
        "The papers bound variances of aggregates; no theorem orders the gradients' errors on every graph, so the "
        "verdict is about the case, by enumeration of both samplers."
    ),
    question=Question(
        "Is {estimator}'s error no larger than its baseline's at an equal budget",
        exact=Answer("equal to it"),
        supported=Answer("{size} of it", ratio("root mean square error")),
        refuted=Answer("{size} of it", ratio("root mean square error")),
    ),
    required=(NO_DROPOUT, FINITE_SUPPORT, HAS_BASELINE, BASELINE_FINITE),
    check=check,
    expect=expect,
    reads=(),
)
