"""LABOR needs fewer vertices than neighbour sampling at equal variance."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lmc_verify.cases import Case
from lmc_verify.cases.verdict import Evidence, Outcome, Verdict
from lmc_verify.claims.assumptions import NO_DROPOUT, enumerable
from lmc_verify.claims.claim import Assumption, Claim, expect_not_applicable, not_applicable, verdict_of
from lmc_verify.claims.question import Answer, Question, ratio
from lmc_verify.claims.samplers.error_below_baseline import RELATIVE_ROUNDING
from lmc_verify.claims.theory import UNKNOWN, Expectation
from lmc_verify.estimators import NeighbourSampling, properties_of
from lmc_verify.estimators.samplers.laws import LayerLaw
from lmc_verify.graphs import Block
from lmc_verify.statistics.rounding import REFUTATION_FACTOR, decide, gamma

__all__ = ["FEWER_VERTICES"]

ROUNDING = 4
"""Tolerance of a moment in units of ``gamma``, for moments of two samplers that are each a difference of sums."""

TERMS = 10
"""Rounded operations of one atom's weight and probability, counted with the atoms that are added up."""


@dataclass(frozen=True)
class _Moments:
    """Of one layer's samples at some rows: mean and variance of every entry's weight, mean number of sources."""

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
    labor = properties_of(case.estimator).labor is not None
    return labor, "" if labor else f"the estimator is {case.estimator.name}, the claim is about labor"


def _top_laws_finite(case: Case) -> tuple[bool | None, str]:
    if properties_of(case.estimator).labor is None:
        return None, ""
    few, count = enumerable(case.base_design.support_size)
    if not few:
        return False, count
    size = sum(law.count(operator, rows) for rows, _, operator, laws in _top_layers(case) for law in laws)
    return enumerable(size, "samples of the last layer")


def _top_layers(case: Case) -> Iterator[tuple[Tensor, float, Block, tuple[LayerLaw, LayerLaw]]]:
    """Yield each batch's rows, its probability, the last layer's operator, and how LABOR and its baseline sample."""
    estimator, layers = properties_of(case.estimator).labor, case.problem.num_layers
    assert estimator is not None
    rival = NeighbourSampling(fan_out=estimator.fan_out)
    laws = (estimator.laws(case.problem)[-1], rival.laws(case.problem)[-1])
    operator = case.graph.operator(case.problem.model.layer(layers).operator)
    for batch, probability in case.base_design.enumerate():
        yield batch.nodes.to(case.graph.device), probability, operator, laws


IS_LABOR = Assumption("labor", "the estimator is LABOR", _is_labor)

TOP_LAWS_FINITE = Assumption("last-layer-finite", "the last layer's samples can be enumerated", _top_laws_finite)


def check_vertices(case: Case) -> Verdict:
    """Enumerate the last layer's samples of both: each entry's variance, and the number of distinct sources."""
    claim = FEWER_VERTICES
    inapplicable = not_applicable(case, claim)
    if inapplicable is not None:
        return inapplicable
    estimator = properties_of(case.estimator).labor
    assert estimator is not None  # IS_LABOR holds
    rounds, worst, shifted, atoms = estimator.rounds, 0.0, 0.0, 0
    sources = [0.0, 0.0]
    largest, entries = 0.0, 1
    for rows, probability, operator, (labor, neighbour) in _top_layers(case):
        own, other = _moments(labor, operator, rows), _moments(neighbour, operator, rows)
        atoms = max(atoms, labor.count(operator, rows), neighbour.count(operator, rows))
        if operator.csr.num_entries == 0:
            continue
        gap, scale = own.variance - other.variance, other.variance
        entries = max(entries, int(operator.in_degree.max()) if rounds else 1)
        if rounds:  # a row's variances have the same sum, and are distributed again
            gap, scale = _by_row(operator, gap), _by_row(operator, scale)
        largest = max(largest, float(scale.max()))
        # NaN stays NaN, and is refused below
        worst = float(np.maximum(worst, float(gap.abs().max())))
        shifted = float(np.maximum(shifted, float((own.mean - other.mean).abs().max())))
        sources = [total + probability * one.sources for total, one in zip(sources, (own, other), strict=True)]
    # A second moment is a variance and the mean's square, 1 an entry; a sum over a row has as many terms as entries.
    mean_tolerance = ROUNDING * gamma(atoms + TERMS)
    tolerance = mean_tolerance * (entries + largest)
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
        f"{sources[0]:.3g} distinct sources per batch, with neighbour sampling {sources[1]:.3g}; "
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
    inapplicable = expect_not_applicable(case, FEWER_VERTICES)
    if inapplicable is not None:
        return inapplicable
    if not properties_of(case.estimator).known:
        return UNKNOWN
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
    question=Question(
        "Does {estimator} need no more distinct sources than neighbour sampling, at equal variance",
        exact=Answer("{size} of them", ratio("sources")),
        refuted=Answer("{size} of them", ratio("sources")),
    ),
    required=(NO_DROPOUT, IS_LABOR, TOP_LAWS_FINITE),
    check=check_vertices,
    expect=expect_vertices,
    reads=(),
)
