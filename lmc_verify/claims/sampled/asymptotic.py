"""The mean difference from Backward SGD without a range: an asymptotic confidence sequence, or no decision."""

from __future__ import annotations

import math

import numpy as np

from lmc_verify.cases import Case
from lmc_verify.cases.verdict import Evidence, Outcome, Verdict
from lmc_verify.claims.claim import Claim, verdict_of
from lmc_verify.claims.coverage import UNSEEN, Coverage
from lmc_verify.claims.residuals import norm_by_layer
from lmc_verify.claims.sampled.differences import (
    SAMPLE_FOR_POWER,
    SMALLEST,
    Difference,
    drawn,
    next_look,
    pilot_sizes,
    rounding_of,
)
from lmc_verify.claims.sampled.ranges import DifferenceRange, range_check
from lmc_verify.objective import gradient_norm
from lmc_verify.seeds import generator
from lmc_verify.statistics.asymptotic import AsymptoticBias

__all__ = ["asymptotic", "asymptotic_coverage", "undecided"]


def asymptotic(case: Case, claim: Claim, reason: str, difference: Difference) -> Verdict:
    """Return the verdict of an asymptotic confidence sequence, for differences whose range is not proven.

    Draws are independent: what is known of draws without replacement needs a range.
    """
    sampling, unit = case.sampling, gradient_norm(case.exact.gradient)
    rng = generator(case.seed, "sampled bias", sampling.replicate)
    rounding = rounding_of(case, pilot_sizes(case, difference))
    if not all(map(math.isfinite, rounding.values())):
        return undecided(case, claim, f"ill-conditioned here: rounding alone could hide any bias; {reason}", difference)
    tolerance = {part: max(margin / unit, SMALLEST) for part, margin in rounding.items()}
    bias = AsymptoticBias(list(tolerance), sampling.alpha, tolerance=tolerance)
    coverage = asymptotic_coverage(case)
    outcome, look = Outcome.INCONCLUSIVE, coverage.draws
    while bias.draws < sampling.draws and outcome is Outcome.INCONCLUSIVE:
        found = difference(case.design.draw(rng))
        bias.update({part: block / unit for part, block in found.items()})
        if bias.rejects:
            outcome = Outcome.REFUTED
        elif bias.draws in (look, sampling.draws) and bias.draws >= coverage.draws:
            look = next_look(bias.draws)
            if math.hypot(*bias.upper().values()) <= sampling.delta:
                outcome = Outcome.SUPPORTED
    lowers, upper = bias.lower(), math.hypot(*bias.upper().values())
    mean = math.hypot(*(float(np.linalg.norm(value)) for value in bias.means().values()))
    error = math.hypot(*bias.standard_errors().values())
    unseen = -math.expm1(math.log(sampling.alpha / 2) / bias.draws)
    return verdict_of(
        case,
        claim.id,
        outcome,
        f"asymptotic: {_words(bias, outcome, upper, sampling.delta, coverage)}; mean difference {mean:.2g} "
        f"of the gradient's norm, standard error {error:.2g} ({reason})",
        evidence=[
            Evidence("mean difference (asymptotic)", mean, group="bias from draws"),
            Evidence("standard error (asymptotic)", error, group="bias from draws"),
            *([Evidence("bias, upper bound", upper, sampling.delta, group="bias from draws")] * math.isfinite(upper)),
            *(Evidence(part, low, group="bias per layer, at least (asymptotic)") for part, low in lowers.items()),
            Evidence("share of batches that may be unlike those drawn", unseen, unit="probability", group="coverage"),
        ],
        assumptions=(*claim.checked_assumptions(case), range_check(DifferenceRange(None, reason))),
        alpha_spent=sampling.alpha,
        guarantee="asymptotic",
        draws=bias.draws,
    )


def asymptotic_coverage(case: Case) -> Coverage:
    """Return which batches are covered without a range: every layer's upper end may miss a share of them."""
    layers = norm_by_layer(case.problem, case.exact.gradient)
    return Coverage(case.sampling.alpha / (2 * len(layers)), everything=False)


def _words(bias: AsymptoticBias, outcome: Outcome, upper: float, delta: float, coverage: Coverage) -> str:
    """Return what an asymptotic confidence sequence found."""
    after = f"after {bias.draws:,} draws"
    if outcome is Outcome.REFUTED:
        lowers, blocks = bias.lower(), bias.rejected_blocks()
        found = ", ".join(f"{part} (at least {lowers[part]:.2g})" for part in blocks)
        return f"biased {after}, in {found}"
    if outcome is Outcome.SUPPORTED:
        return (
            f"the bias is at most {upper:.2g} of the gradient's norm {after} (asked for: {delta:g}); on batches like "
            f"those drawn, more than {1 - UNSEEN:.1%} of all"
        )
    if bias.draws < coverage.draws:
        return (
            f"no bias is shown {after}, and {coverage.draws:,} are needed to exclude that {UNSEEN:.1%} or more of the "
            "batches are unlike them; set sampling.draws"
        )
    lacking = bias.lacking()
    if lacking:
        part, words = next(iter(lacking.items()))
        return f"no bias is shown {after}, and no upper bound for {part}: {words}; set sampling.draws"
    return f"the bias is at most {upper:.2g} of the gradient's norm {after}; set sampling.draws or sampling.delta"


def undecided(case: Case, claim: Claim, reason: str, difference: Difference) -> Verdict:
    """Report mean and standard error, and decide nothing: without a proven range no level can be guaranteed."""
    batches, unit = drawn(case)[0], gradient_norm(case.exact.gradient)
    draws = [
        np.concatenate(list(difference(batch).values()))
        for batch, _ in zip(batches, range(min(case.sampling.draws, SAMPLE_FOR_POWER)), strict=False)
    ]
    values = np.stack(draws) / unit
    mean = float(np.linalg.norm(values.mean(axis=0)))
    deviations = values - values.mean(axis=0)
    error = math.sqrt(float((deviations**2).sum()) / max(len(draws) - 1, 1) / len(draws))
    return verdict_of(
        case,
        claim.id,
        Outcome.INCONCLUSIVE,
        f"asymptotic, so nothing is decided ({reason}): mean difference {mean:.2g} of the gradient's norm, standard "
        f"error {error:.2g}, after {len(draws):,} draws",
        evidence=[
            Evidence("mean difference (asymptotic)", mean, group="bias from draws"),
            Evidence("standard error (asymptotic)", error, group="bias from draws"),
        ],
        assumptions=(*claim.checked_assumptions(case), range_check(DifferenceRange(None, reason))),
        draws=len(draws),
    )
