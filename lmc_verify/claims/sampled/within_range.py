"""The mean difference from Backward SGD within a range: refuted by betting, supported by a confidence radius.

Both are valid at every number of draws, each with half of the error level.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from lmc_verify.cases import Case, readable_count
from lmc_verify.cases.verdict import Evidence, Outcome, Series, Verdict
from lmc_verify.claims.claim import Claim, verdict_of
from lmc_verify.claims.coverage import Coverage
from lmc_verify.claims.residuals import UNIT, norm_by_layer
from lmc_verify.claims.sampled.differences import (
    LOOK_EVERY,
    SAMPLE_FOR_POWER,
    SMALLEST,
    Blocks,
    Difference,
    drawn,
    next_look,
)
from lmc_verify.claims.sampled.ranges import DifferenceRange, is_negligible, range_check, require_inside
from lmc_verify.objective import gradient_norm
from lmc_verify.statistics.betting import BiasTest
from lmc_verify.statistics.detection import draws_to_detect, smallest_detectable_bias
from lmc_verify.statistics.radius import BiasRadius, draws_to_bound

__all__ = ["decided"]


def decided(
    case: Case,
    claim: Claim,
    proven: DifferenceRange,
    rounding: Mapping[str, float],
    difference: Difference,
) -> Verdict:
    """Return the verdict within a range, given what rounding may do to a difference.

    Args:
        case: what is checked.
        claim: the claim.
        proven: the range, which must be there.
        rounding: by layer, see `lmc_verify.claims.sampled.differences.rounding_of`.
        difference: of a batch.

    Raises:
        LeftRange: a draw lies outside.
    """
    assert proven.bounds is not None
    gradient = case.exact.gradient
    norms, unit = norm_by_layer(case.problem, gradient), gradient_norm(gradient)
    batches, population = drawn(case)
    negligible = is_negligible(case, proven.bounds)
    ranges = {part: 0.0 if negligible[part] else bound for part, bound in proven.bounds.items()}
    margins = {part: rounding[part] + negligible[part] * bound for part, bound in proven.bounds.items()}
    # Squares must be representable: lengths are in units of the gradient's norm, and bets in units of each range.
    bounds = {part: bound / unit for part, bound in ranges.items()}
    tolerance = {part: max(margin / unit, SMALLEST) for part, margin in margins.items()}
    sizes = {part: bound or unit for part, bound in ranges.items()}
    # Half of the error level for a false refutation, half for a false support.
    alpha, target = case.sampling.alpha / 2, case.sampling.delta
    coverage = Coverage(alpha, proven.everything, population)
    test = BiasTest(
        {part: bound / sizes[part] for part, bound in ranges.items()},
        population=population,
        tolerance={part: margin / sizes[part] for part, margin in margins.items()},
    )
    radius = BiasRadius(bounds, alpha, population=population, tolerance=tolerance)
    by_range = radius.upper() <= target
    settled = by_range or not any(bounds.values())  # what remains is to see that draws keep to the range
    outcome = Outcome.INCONCLUSIVE
    track: list[tuple[int, float, float]] = []
    sample: list[Blocks] = []
    draws, last, look = 0, population or case.sampling.draws, LOOK_EVERY
    enough = min(last, max(coverage.draws, LOOK_EVERY) if by_range else LOOK_EVERY)
    for batch in batches:
        found = difference(batch)
        require_inside(batch, found, ranges, margins, unit, enumerated=proven.everything)
        draw = {part: block / unit for part, block in found.items()}
        draws += 1
        if settled:
            if draws == enough:
                break
            continue
        if len(sample) < SAMPLE_FOR_POWER:
            sample.append(draw)
        test.update({part: block / sizes[part] for part, block in found.items()})
        radius.update(draw)
        looking = draws in (look, last, coverage.draws)
        if test.rejects(alpha):
            outcome = Outcome.REFUTED
        elif looking and draws >= coverage.draws and radius.upper() <= target:
            outcome = Outcome.SUPPORTED
        if looking or outcome is not Outcome.INCONCLUSIVE:
            track.append((draws, radius.upper(), test.log_value / math.log(10)))
            look = next_look(draws)
        if outcome is not Outcome.INCONCLUSIVE:
            break
    if by_range and draws >= coverage.draws:
        outcome = Outcome.SUPPORTED
    upper = radius.upper()
    power = _power(case, bounds, tolerance, sample, population, coverage)
    words = f"{draws:,} draws" + (f" of {population:,} without replacement" if population else "")
    bounded = f"the bias is at most {upper:.2g} of the gradient's norm after {words}"
    if outcome is Outcome.REFUTED:
        blocks = ", ".join(test.rejected_blocks(alpha)) or "all layers together"
        evidence = (
            f"e-value 10^{test.log_value / math.log(10):.1f} against a mean of zero"
            if math.isfinite(test.log_value)
            else "a mean of zero is impossible"
        )
        summary = f"biased: {evidence} after {words}, in {blocks}"
    elif outcome is Outcome.SUPPORTED:
        summary = f"{bounded} (asked for: {case.sampling.delta:g}); {coverage.words(draws)}"
    else:
        summary = f"{bounded}; {power.advice}"
    return verdict_of(
        case,
        claim.id,
        outcome,
        summary,
        evidence=[
            Evidence("bias, upper bound", upper, case.sampling.delta, group="bias from draws"),
            *(
                Evidence(f"range of {part}", bound / (norms[part] or unit), unit=UNIT, group="range")
                for part, bound in proven.bounds.items()
            ),
            *(
                Evidence(part, value / math.log(10), unit="log10 of the e-value", group="e-values")
                for part, value in test.block_log_values.items()
                if bounds[part] > 0
            ),
            coverage.evidence(draws),
        ],
        series=_series(track, case),
        assumptions=(*claim.checked_assumptions(case), range_check(proven), coverage.check(draws)),
        minimum_detectable_effect=power.detectable,
        # Where every batch was looked at and the range alone decides, nothing is left to chance.
        alpha_spent=0.0 if by_range and coverage.certain(draws) else case.sampling.alpha,
        log_e_value=test.log_value,
        draws=draws,
    )


@dataclass(frozen=True)
class _Power:
    """What the test could have seen, and how many draws would decide."""

    detectable: float | None
    advice: str


def _power(
    case: Case,
    bounds: Mapping[str, float],
    tolerance: Mapping[str, float],
    sample: list[Blocks],
    population: int | None,
    coverage: Coverage,
) -> _Power:
    """Compute the detectable bias from the spread of the first draws: a plan, on which no verdict rests."""
    alpha, active = case.sampling.alpha / 2, [part for part, bound in bounds.items() if bound > 0]
    resolution = 2 * max(tolerance.values())
    if not sample and case.sampling.draws < coverage.draws:  # the range decides, once it is known to hold
        return _Power(resolution, coverage.lacking)
    if population is not None or not active or not sample:  # a census leaves only rounding
        return _Power(resolution, f"rounding alone could hide {resolution:.1g}; set sampling.delta above it")
    if len(sample) < 2:
        return _Power(None, "set sampling.draws to 2 at least")
    worst, needed, second = 0.0, math.inf, 0.0
    for part in active:
        values = np.stack([draw[part] for draw in sample]) / bounds[part]
        centred = values - values.mean(axis=0)
        gram = centred @ centred.T / len(sample)
        spread = min(1.0, math.sqrt(float(np.trace(gram))))
        deviation = min(spread, math.sqrt(max(0.0, float(np.linalg.eigvalsh(gram)[-1]))))
        detectable = smallest_detectable_bias(deviation, case.sampling.draws, alpha, spread=spread, blocks=len(active))
        worst = max(worst, detectable * bounds[part])
        mean = min(1.0, float(np.linalg.norm(values.mean(axis=0))))
        second += float((values**2).sum(axis=1).mean()) * bounds[part] ** 2
        # One layer is enough to refute. A mean that no number of draws would show plans nothing.
        with contextlib.suppress(ValueError):
            needed = min(needed, draws_to_detect(mean, deviation, alpha, spread=spread, blocks=len(active)))
    whole, delta = math.hypot(*bounds.values()), case.sampling.delta
    plans = []
    with contextlib.suppress(ValueError):
        enough = max(draws_to_bound(delta, whole, min(second, whole**2), alpha), coverage.draws)
        plans.append(f"about {readable_count(enough)} draws would show a bias of at most {delta:g}, if there is none")
    if math.isfinite(needed):
        plans.append(f"about {readable_count(int(needed))} draws would show the bias that the draws suggest")
    advice = "; ".join([*plans, "set sampling.draws"]) if plans else "no number of draws would decide at this delta"
    return _Power(worst if math.isfinite(worst) else None, advice)


def _series(track: list[tuple[int, float, float]], case: Case) -> tuple[Series, ...]:
    if len(track) < 2:
        return ()
    draws, uppers, evidence = (tuple(map(float, column)) for column in zip(*track, strict=True))
    threshold = -math.log10(case.sampling.alpha / 2)
    return (
        Series("upper bound", draws, uppers, "Bias, at most", "draws", "bias / gradient", scale="loglog"),
        Series("evidence", draws, evidence, "Evidence of a bias", "draws", "log10 of the e-value"),
        Series(
            "rejects",
            (draws[0], draws[-1]),
            (threshold, threshold),
            "Evidence of a bias",
            "draws",
            "log10 of the e-value",
        ),
    )
