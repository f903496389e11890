"""The range of the difference from Backward SGD: proven for an estimator's policies, or the maximum over batches."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from lmc_verify.bounds import NoBound, range_bound
from lmc_verify.cases import Case
from lmc_verify.cases.verdict import AssumptionCheck
from lmc_verify.claims.assumptions import MAX_SUPPORT
from lmc_verify.claims.coverage import left_range, look_at_all
from lmc_verify.claims.residuals import RESOLUTION_LIMIT, norm_by_layer
from lmc_verify.claims.sampled.differences import Blocks, Difference, size_of
from lmc_verify.graphs import Batch, named_nodes
from lmc_verify.objective import gradient_norm
from lmc_verify.statistics.betting import RANGE_SLACK

__all__ = ["DifferenceRange", "is_negligible", "largest_range", "proven_range", "range_check", "require_inside"]


@dataclass(frozen=True)
class DifferenceRange:
    """A bound on the difference by layer, and how it was obtained; None where there is none.

    It is proven for what the policies allow, or is the largest value over all batches (`everything`).
    """

    bounds: Mapping[str, float] | None
    derivation: str
    everything: bool = False


def proven_range(case: Case, difference: Difference) -> DifferenceRange:
    """Return the range that is proven for what the estimator's policies allow, or found by enumeration, or none."""
    if case.weighting != "inclusion":  # the bounds are for two estimates with the same weights
        return DifferenceRange(
            None,
            f"no proven range: the loss weighting is {case.weighting}, Backward SGD uses inverse inclusion "
            "probabilities",
        )
    if look_at_all(case.design.support_size, case.sampling.alpha / 2):
        return largest_range(case, difference)
    found = range_bound(case.problem, case.exact, case.initial_state(), case.design, case.estimator)
    if not isinstance(found, NoBound):
        if all(map(math.isfinite, found.layers.values())):
            return DifferenceRange(found.layers, found.derivation)
        found = NoBound("the bound overflows")
    if case.design.support_size <= MAX_SUPPORT:
        return largest_range(case, difference)
    return DifferenceRange(None, f"no proven range: {found.reason}")


def largest_range(case: Case, difference: Difference) -> DifferenceRange:
    """Return the largest difference over all batches of a design, layer by layer."""
    bounds = dict[str, float]()
    for batch, _ in case.design.enumerate():
        for part, block in difference(batch).items():
            bounds[part] = max(bounds.get(part, 0.0), size_of(part, block))
    return DifferenceRange(bounds, f"enumerated maximum over {case.design.support_size} batches", everything=True)


def is_negligible(case: Case, bounds: Mapping[str, float]) -> dict[str, bool]:
    """Return by layer whether the range itself is rounding: a bet could only be won on rounding errors."""
    norms, unit = norm_by_layer(case.problem, case.exact.gradient), gradient_norm(case.exact.gradient)
    return {part: bound <= RESOLUTION_LIMIT * (norms[part] or unit) for part, bound in bounds.items()}


def require_inside(
    batch: Batch,
    draw: Blocks,
    ranges: Mapping[str, float],
    margins: Mapping[str, float],
    unit: float,
    *,
    enumerated: bool,
) -> None:
    """Refuse a draw beyond its range and what rounding adds.

    Raises:
        LeftRange: the range is that of the policies, which the estimate does not follow.
        ContractError: the range is the maximum over all batches, see `left_range`.
    """
    for part, block in draw.items():
        size, most = size_of(part, block), ranges[part]
        if size <= most * (1 + RANGE_SLACK) + margins[part]:
            continue
        where = (
            f"for the batch {named_nodes(batch.nodes)} the estimate is {size / unit:.2g} gradient norms from Backward "
            f"SGD's in {part}"
        )
        raise left_range(where, "difference", (most + margins[part]) / unit, everything=enumerated)


def range_check(proven: DifferenceRange) -> AssumptionCheck:
    """Return whether there is a proven range, as a verdict shows it."""
    return AssumptionCheck(
        "proven-range",
        "the difference from Backward SGD has a proven range",
        proven.bounds is not None,
        proven.derivation,
    )
