"""Which of two samplers has the smaller error at an equal budget, by enumeration; and what LABOR saves."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from lmc_verify.case import Case, readable_count
from lmc_verify.claims.base import (
    FINITE_SUPPORT,
    MAX_SUPPORT,
    NO_DROPOUT,
    Assumption,
    Claim,
    not_applicable,
    verdict_of,
)
from lmc_verify.claims.expectation import Expectation
from lmc_verify.claims.residuals import norm_by_layer
from lmc_verify.claims.verdict import Evidence, Outcome, Verdict
from lmc_verify.estimators import LABOR, NeighbourSampling
from lmc_verify.estimators.laws import LayerLaw
from lmc_verify.estimators.sampled import Sampled
from lmc_verify.graph import Block
from lmc_verify.problem import gradient_norm, gradient_sum
from lmc_verify.statistics.rounding import REFUTATION_FACTOR, decide, gamma

__all__ = ["BELOW_BASELINE", "FEWER_VERTICES"]

RELATIVE_ROUNDING = 1e-9
"""Two mean squares closer than this, relative to the larger, are called equal."""


def baseline_of(case: Case) -> Sampled | None:
    """Return the sampler that the estimator's authors compare it with, at the same budget; None if there is none."""
    return case.estimator.baseline() if isinstance(case.estimator, Sampled) else None


def _has_baseline(case: Case) -> tuple[bool | None, str]:
    baseline = baseline_of(case)
    return baseline is not None, case.estimator.name if baseline is None else f"compared with {baseline}"


def _baseline_finite(case: Case) -> tuple[bool | None, str]:
    baseline = baseline_of(case)
    if baseline is None:
        return None, ""
    size = replace(case, estimator=baseline).design.support_size
    return size <= MAX_SUPPORT, f"{readable_count(size)} batches with samples of {baseline.name}"


HAS_BASELINE = Assumption(
    "has-baseline", "the estimator's authors compare it with another sampler at the same budget", _has_baseline
)
BASELINE_FINITE = Assumption("baseline-finite", "that sampler can be enumerated too", _baseline_finite)


@dataclass(frozen=True)
class _Error:
    """``E||g - grad||^2`` over batches and samples, by layer."""

    by_layer: dict[str, float]
    atoms: int

    @property
    def total(self) -> float:
        return math.fsum(self.by_layer.values())


def _error(case: Case) -> _Error:
    """Enumerate the mean squared error of the gradient estimate."""
    state, atoms, total = case.initial_state(), 0, dict[str, float]()
    for batch, probability in case.design.enumerate():
        atoms += 1
        gradient = case.estimator.estimate(case.problem, state, batch).gradient
        for part, norm in norm_by_layer(case.problem, gradient_sum(gradient, case.exact.gradient, -1.0)).items():
            total[part] = total.get(part, 0.0) + probability * norm**2
    return _Error(total, atoms)


def check(case: Case) -> Verdict:
    """Enumerate the mean squared error over batches and samples, of the estimator and of its baseline, and compare."""
    claim = BELOW_BASELINE
    required = (NO_DROPOUT, FINITE_SUPPORT, HAS_BASELINE, BASELINE_FINITE)
    inapplicable = not_applicable(case, claim, *(assumption.id for assumption in required))
    if inapplicable is not None:
        return inapplicable
    baseline = baseline_of(case)
    assert baseline is not None
    own, other = _error(case), _error(replace(case, estimator=baseline))
    unit = gradient_norm(case.exact.gradient) or 1.0
    figures = {
        case.estimator.name: math.sqrt(own.total) / unit,
        f"baseline {baseline.name}": math.sqrt(other.total) / unit,
    }
    size = max(own.total, other.total)
    if size <= (RELATIVE_ROUNDING * unit) ** 2:
        return verdict_of(case, claim.id, Outcome.NOT_APPLICABLE, "neither estimator has an error on this case")
    gap = (other.total - own.total) / size
    equal = Outcome.EXACT if gap >= -RELATIVE_ROUNDING else Outcome.REFUTED  # also where the gap is no number
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
                Evidence(f"{part}, {name}", math.sqrt(value) / unit, group="root mean square error per layer")
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
    broken = next((item for item in BELOW_BASELINE.checked_assumptions(case) if item.holds is False), None)
    if broken is not None:
        return Expectation(Outcome.NOT_APPLICABLE, broken.statement)
    return Expectation(None, "an ordering of two variances that theory bounds and does not decide")


BELOW_BASELINE = Claim(
    id="sampling/error-below-baseline",
    title="Less error than its baseline at an equal budget",
    statement=(
        "At the same budget, the mean squared error of the gradient over batches and samples is below that of the "
        "sampler it improves on: VR-GCN against neighbour sampling with the same fan-out, LADIES and AS-GCN against "
        "FastGCN with as many draws, MVS-GNN against uniform nodes."
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
    assumptions=(NO_DROPOUT, FINITE_SUPPORT, HAS_BASELINE, BASELINE_FINITE),
    check=check,
    expect=expect,
)


# ------------------------------------------------------------------------------------------------ LABOR's vertices


@dataclass(frozen=True)
class _Moments:
    """Of one layer's law at some rows: mean and variance of every entry's weight, and the mean number of sources."""

    mean: Tensor
    variance: Tensor
    sources: float


def _moments(law: LayerLaw, operator: Block, rows: Tensor) -> _Moments:
    first = torch.zeros(operator.csr.num_entries, dtype=torch.float64, device=rows.device)
    second, sources = torch.zeros_like(first), 0.0
    for kept, probability in law.enumerate(operator, rows):
        first.index_add_(0, kept.entry, probability * kept.scale)
        second.index_add_(0, kept.entry, probability * kept.scale.square())
        sources += probability * torch.unique(operator.csr.col[kept.entry]).numel()
    return _Moments(first, second - first.square(), sources)


def _by_row(operator: Block, values: Tensor) -> Tensor:
    """Return the sum of values of entries by row."""
    total = torch.zeros(operator.csr.num_rows, dtype=values.dtype, device=values.device)
    return total.index_add_(0, operator.csr.row, values)


def _is_labor(case: Case) -> tuple[bool | None, str]:
    return isinstance(case.estimator, LABOR), case.estimator.name


def _top_laws_finite(case: Case) -> tuple[bool | None, str]:
    if not isinstance(case.estimator, LABOR):
        return None, ""
    if case.base_design.support_size > MAX_SUPPORT:
        return False, f"{readable_count(case.base_design.support_size)} batches"
    size = sum(law.count(operator, rows) for rows, _, operator, laws in _top_layers(case) for law in laws)
    return size <= MAX_SUPPORT, f"{readable_count(size)} samples of the last layer"


def _top_layers(case: Case) -> Iterator[tuple[Tensor, float, Block, tuple[LayerLaw, LayerLaw]]]:
    """Yield each batch's rows, its probability, the last layer's operator, and the laws of LABOR and its baseline."""
    estimator, layers = case.estimator, case.problem.num_layers
    assert isinstance(estimator, LABOR)
    rival = NeighbourSampling(fan_out=estimator.fan_out)
    laws = (estimator.laws(case.problem)[-1], rival.laws(case.problem)[-1])
    operator = case.graph.operator(case.problem.model.layer(layers).operator)
    for batch, probability in case.base_design.enumerate():
        yield batch.nodes.to(case.graph.device), probability, operator, laws


IS_LABOR = Assumption("labor", "the estimator is LABOR", _is_labor)
TOP_LAWS_FINITE = Assumption("last-layer-finite", "the last layer's samples can be enumerated", _top_laws_finite)


def check_vertices(case: Case) -> Verdict:
    """Enumerate the last layer's samples under both laws: each entry's variance, and the number of distinct sources."""
    claim = FEWER_VERTICES
    inapplicable = not_applicable(case, claim, *(assumption.id for assumption in claim.assumptions))
    if inapplicable is not None:
        return inapplicable
    assert isinstance(case.estimator, LABOR)
    rounds, worst, shifted, atoms = case.estimator.rounds, 0.0, 0.0, 0
    sources = [0.0, 0.0]
    largest, entries = 0.0, 1
    for rows, probability, operator, (labor, neighbour) in _top_layers(case):
        own, other = _moments(labor, operator, rows), _moments(neighbour, operator, rows)
        atoms = max(atoms, labor.count(operator, rows), neighbour.count(operator, rows))
        if operator.csr.num_entries == 0:
            continue
        gap, scale = own.variance - other.variance, other.variance
        entries = max(entries, int(operator.in_degree.max()) if rounds else 1)
        if rounds:  # a row's variances have the same sum, and are shared out anew
            gap, scale = _by_row(operator, gap), _by_row(operator, scale)
        largest = max(largest, float(scale.max()))
        # NaN stays NaN, and is a refutation
        worst = float(np.maximum(worst, float(gap.abs().max())))
        shifted = float(np.maximum(shifted, float((own.mean - other.mean).abs().max())))
        sources = [total + probability * one.sources for total, one in zip(sources, (own, other), strict=True)]
    # A second moment is a variance and the mean's square, 1 an entry; a sum over a row has as many terms as entries.
    tolerance = 4 * gamma(atoms + 10) * (entries + largest)
    mean_tolerance = 4 * gamma(atoms + 10)
    decisions = {decide(worst, tolerance), decide(shifted, mean_tolerance)}
    fewer = sources[0] <= sources[1] * (1 + RELATIVE_ROUNDING)
    outcome = (
        Outcome.REFUTED
        if "refuted" in decisions or not fewer
        else Outcome.INCONCLUSIVE
        if "inconclusive" in decisions
        else Outcome.EXACT
    )
    return verdict_of(
        case,
        claim.id,
        outcome,
        f"{sources[0]:.3g} distinct sources a batch, neighbour sampling {sources[1]:.3g}; "
        f"{'sums of the variances of a row' if rounds else 'variances of the weights'} differ by at most {worst:.1e}",
        evidence=[
            Evidence("difference of variances", worst, tolerance, unit="weight squared", group="weights"),
            Evidence("difference of means", shifted, mean_tolerance, unit="weight", group="weights"),
            Evidence("distinct sources, labor", sources[0], unit="nodes", group="sources"),
            Evidence("distinct sources, neighbour sampling", sources[1], unit="nodes", group="sources"),
        ],
        assumptions=claim.checked_assumptions(case),
        residual=worst,
        tolerance=tolerance,
        minimum_detectable_effect=REFUTATION_FACTOR * tolerance,
    )


def expect_vertices(case: Case) -> Expectation:
    """Return what theory says: it holds for LABOR, whatever the graph."""
    broken = next((item for item in FEWER_VERTICES.checked_assumptions(case) if item.holds is False), None)
    if broken is not None:
        return Expectation(Outcome.NOT_APPLICABLE, broken.statement)
    return Expectation(Outcome.EXACT, "equal weights by construction, and sources are kept for all destinations or few")


FEWER_VERTICES = Claim(
    id="labor/fewer-vertices",
    title="No more distinct sources at equal variance",
    statement=(
        "Every message's weight has the same mean and variance under LABOR-0 as under neighbour sampling with the same "
        "fan-out, and the expected number of distinct sources of a batch is at most as large. With rounds of "
        "importance sampling the variances of a row's weights have the same sum."
    ),
    source="LABOR (Balin and Catalyurek, NeurIPS 2023)",
    tier="exact",
    theory=(
        "A message into a row with d of them is kept with probability k/d by both. Under LABOR a source is needed if "
        "its number is below the largest of its rows' thresholds: probability max_i k/d_i; under neighbour sampling "
        "the rows decide independently: 1 - prod_i (1 - k/d_i), which is at least as large. With rounds, c_i solves "
        "sum_j 1 / min(1, c_i pi_j) = d^2/k, the sum that k/d gives, and each round lowers the expected number of "
        "sources, sum_j min(1, pi_j max_i c_i)."
    ),
    assumptions=(NO_DROPOUT, IS_LABOR, TOP_LAWS_FINITE),
    check=check_vertices,
    expect=expect_vertices,
)
