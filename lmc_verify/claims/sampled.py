"""Theorem 1 from draws: is the bias zero, or at most delta, on designs that are too large to enumerate?

The estimate is compared with Backward SGD on the same batch, whose mean is the exact gradient; what both have in common
cancels. Refutation is by betting on the difference, support by a confidence radius of its mean, each valid at every
number of draws (see `lmc_verify.statistics`), each with half of the error level.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lmc_verify.batches import Batch
from lmc_verify.bounds import NoBound, enumerated_range, range_bound
from lmc_verify.case import Case, readable_count
from lmc_verify.claims.base import (
    AGGREGATE_LINEAR,
    BETA_ZERO,
    MAX_SUPPORT,
    NO_DROPOUT,
    Assumption,
    Claim,
    not_applicable,
    verdict_of,
)
from lmc_verify.claims.expectation import Expectation
from lmc_verify.claims.residuals import RESOLUTION_LIMIT, norm_by_layer
from lmc_verify.claims.unbiasedness import UNBIASED
from lmc_verify.claims.verdict import AssumptionCheck, Evidence, Outcome, Series, Verdict
from lmc_verify.estimators import BackwardSGD, Compensated, FullBatch
from lmc_verify.problem import Gradient, gradient_norm, gradient_sum
from lmc_verify.seeds import generator
from lmc_verify.statistics.betting import BiasTest, draws_to_detect, smallest_detectable_bias
from lmc_verify.statistics.radius import BiasRadius, draws_to_bound

__all__ = ["UNBIASED_SAMPLED"]

LOOK_EVERY = 25
"""Draws between two looks at the radius; the test looks at every draw."""

SAMPLE_FOR_POWER = 200
"""Draws whose spread the stated power is computed from."""

Blocks = dict[str, npt.NDArray[np.float64]]


@dataclass(frozen=True)
class _Range:
    """A proven bound on the difference, by layer, and how it was proven; None where there is no proof."""

    bounds: Mapping[str, float] | None
    derivation: str


def _proven_range(case: Case) -> _Range:
    state = case.initial_state()
    if case.normaliser != "inclusion":  # the bounds are for two estimates with the same weights
        return _Range(None, f"no proven range: weights by {case.normaliser}, Backward SGD's are inverse inclusion")
    found = range_bound(case.problem, case.exact, state, case.design, case.estimator)
    if not isinstance(found, NoBound):
        return _Range(found.layers, found.derivation)
    if case.design.support_size <= MAX_SUPPORT:
        most = enumerated_range(case.problem, case.exact, state, case.design, case.estimator, limit=MAX_SUPPORT)
        return _Range(most.layers, most.derivation)
    return _Range(None, f"no proven range: {found.reason}")


def _draws(case: Case) -> tuple[Iterator[Batch], int | None]:
    """Return the batches to look at: a random order of a small equiprobable support, else independent draws."""
    rng = generator(case.seed, "sampled bias", case.sampling.replicate)
    if case.design.support_size <= min(MAX_SUPPORT, case.sampling.draws):
        support = list(case.design.enumerate())
        probabilities = np.array([probability for _, probability in support])
        if np.ptp(probabilities) <= 1e-12 * probabilities[0]:
            return (support[index][0] for index in rng.permutation(len(support))), len(support)
    return (case.design.draw(rng) for _ in range(case.sampling.draws)), None


def _blocks(case: Case, gradient: Gradient) -> Blocks:
    parts: dict[str, list[npt.NDArray[np.float64]]] = {}
    for name, value in gradient.items():
        parts.setdefault(case.problem.layer_of(name), []).append(value.detach().cpu().double().numpy().ravel())
    return {part: np.concatenate(values) for part, values in parts.items()}


def check(case: Case) -> Verdict:
    """Draw batches until the bias is shown to be there, or shown to be at most delta, or the draws are used up.

    The difference from Backward SGD has a proven range: from operator norms and the histories' errors, or an enumerated
    maximum. Without one nothing is decided, and the figures are asymptotic. Batches of a small support are drawn
    without replacement, so that a census decides.
    """
    claim = UNBIASED_SAMPLED
    inapplicable = not_applicable(case, claim, NO_DROPOUT.id, REFERENCE_MEAN.id)
    if inapplicable is not None:
        return inapplicable
    norms = norm_by_layer(case.problem, case.exact.gradient)
    unit = gradient_norm(case.exact.gradient)
    if unit == 0:
        return verdict_of(
            case, claim.id, Outcome.NOT_APPLICABLE, "the exact gradient vanishes: there is no unit of bias"
        )
    proven = _proven_range(case)
    difference = _difference_of(case)
    batches, population = _draws(case)
    if proven.bounds is None:
        return _asymptotic(case, claim, difference, batches, proven.derivation, unit)
    # Where the range itself is rounding, a bet could only be won on rounding errors.
    negligible = {part: bound <= RESOLUTION_LIMIT * (norms[part] or unit) for part, bound in proven.bounds.items()}
    bounds = {part: 0.0 if negligible[part] else bound for part, bound in proven.bounds.items()}
    tolerance = {part: bound if negligible[part] else 1e-12 * bound for part, bound in proven.bounds.items()}
    alpha, target = case.sampling.alpha / 2, case.sampling.delta * unit
    test = BiasTest(bounds, population=population, tolerance=tolerance)
    radius = BiasRadius(bounds, alpha, population=population, tolerance=tolerance)
    outcome = Outcome.SUPPORTED if radius.upper() <= target else Outcome.INCONCLUSIVE
    track: list[tuple[int, float, float]] = []
    sample: list[Blocks] = []
    if outcome is Outcome.INCONCLUSIVE:
        for batch in batches:
            draw = difference(batch)
            if len(sample) < SAMPLE_FOR_POWER:
                sample.append(draw)
            test.update(draw)
            radius.update(draw)
            if test.rejects(alpha):
                outcome = Outcome.REFUTED
            elif test.draws % LOOK_EVERY == 0 or test.draws == population:
                outcome = Outcome.SUPPORTED if radius.upper() <= target else outcome
            if test.draws % LOOK_EVERY == 0 or outcome is not Outcome.INCONCLUSIVE:
                track.append((test.draws, radius.upper() / unit, test.log_value / math.log(10)))
            if outcome is not Outcome.INCONCLUSIVE:
                break
    upper = radius.upper() / unit
    power = _power(case, bounds, sample, alpha, unit)
    words = f"{test.draws:,} draws" + (f" of {population:,} without replacement" if population else "")
    if outcome is Outcome.REFUTED:
        blocks = ", ".join(test.rejected_blocks(alpha)) or "all layers together"
        summary = (
            f"biased: e-value 10^{test.log_value / math.log(10):.1f} against a mean of zero after {words}, in {blocks}"
        )
    elif outcome is Outcome.SUPPORTED:
        summary = (
            f"the bias is at most {upper:.2g} of the gradient's norm after {words} (asked for: {case.sampling.delta:g})"
        )
    else:
        summary = f"the bias is at most {upper:.2g} of the gradient's norm after {words}; {power.advice}"
    return verdict_of(
        case,
        claim.id,
        outcome,
        summary,
        evidence=[
            Evidence("bias, upper bound", upper, case.sampling.delta, group="bias from draws"),
            *(
                Evidence(
                    f"range of {part}",
                    bound / (norms[part] or unit),
                    unit="norm of the layer's exact gradient",
                    group="range",
                )
                for part, bound in proven.bounds.items()
            ),
            *(
                Evidence(part, value / math.log(10), unit="log10 of the e-value", group="e-values")
                for part, value in test.block_log_values.items()
                if bounds[part] > 0 and math.isfinite(value)
            ),
        ],
        series=_series(track, case),
        assumptions=(*claim.checked_assumptions(case), _range_check(proven)),
        minimum_detectable_effect=power.detectable,
        alpha_spent=case.sampling.alpha,
        log_e_value=test.log_value,
        draws=test.draws,
    )


def _difference_of(case: Case) -> Callable[[Batch], Blocks]:
    reference, state = BackwardSGD(), case.initial_state()
    held = reference.init(case.problem)

    def difference(batch: Batch) -> Blocks:
        estimate = case.estimator.estimate(case.problem, state, batch).gradient
        return _blocks(case, gradient_sum(estimate, reference.estimate(case.problem, held, batch).gradient, -1.0))

    return difference


@dataclass(frozen=True)
class _Power:
    """What the test could have seen, and how many draws would decide."""

    detectable: float | None
    advice: str


def _power(case: Case, bounds: Mapping[str, float], sample: list[Blocks], alpha: float, unit: float) -> _Power:
    """Compute the detectable bias from the spread of the first draws: a plan, on which no verdict rests."""
    active = [part for part, bound in bounds.items() if bound > 0]
    if not active:
        return _Power(RESOLUTION_LIMIT, "nothing to detect")
    if len(sample) < 2:
        return _Power(None, "no draw was made")
    worst, needed = 0.0, 1
    second = 0.0
    for part in active:
        values = np.stack([draw[part] for draw in sample]) / bounds[part]
        centred = values - values.mean(axis=0)
        spread = min(1.0, float(np.sqrt((centred**2).sum(axis=1).mean())))
        deviation = min(spread, float(np.linalg.norm(centred, ord=2)) / math.sqrt(len(sample)))
        plan = {"spread": spread, "blocks": len(active)}
        detectable = smallest_detectable_bias(deviation, case.sampling.draws, alpha, **plan)  # type: ignore[arg-type]
        worst = max(worst, detectable * bounds[part] / unit)
        mean = float(np.linalg.norm(values.mean(axis=0)))
        second += float((values**2).sum(axis=1).mean()) * bounds[part] ** 2
        if mean > 0:
            try:
                needed = max(needed, draws_to_detect(min(mean, 1.0), deviation, alpha, **plan))  # type: ignore[arg-type]
            except ValueError:
                needed = 2**40
    whole = math.hypot(*bounds.values())
    bound_draws = draws_to_bound(case.sampling.delta * unit, whole, min(second, whole**2), alpha)
    return _Power(
        worst if math.isfinite(worst) else None,
        f"about {readable_count(bound_draws)} draws would show a bias of at most {case.sampling.delta:g}, if there is "
        f"none"
        + (f", about {readable_count(needed)} the bias that the draws suggest" if needed < 2**40 else "")
        + "; set sampling.draws",
    )


def _asymptotic(
    case: Case, claim: Claim, difference: Callable[[Batch], Blocks], batches: Iterator[Batch], reason: str, unit: float
) -> Verdict:
    """Report mean and standard error, and decide nothing: without a proven range no level can be guaranteed."""
    draws = [
        np.concatenate(list(difference(batch).values()))
        for batch, _ in zip(batches, range(min(case.sampling.draws, SAMPLE_FOR_POWER)), strict=False)
    ]
    values = np.stack(draws)
    mean = float(np.linalg.norm(values.mean(axis=0))) / unit
    error = math.sqrt(float(values.var(axis=0).sum()) / len(draws)) / unit
    return verdict_of(
        case,
        claim.id,
        Outcome.INCONCLUSIVE,
        f"asymptotic, so nothing is decided ({reason}): mean difference {mean:.2g} of the gradient's norm, standard "
        f"error "
        f"{error:.2g}, after {len(draws):,} draws",
        evidence=[
            Evidence("mean difference (asymptotic)", mean, group="bias from draws"),
            Evidence("standard error (asymptotic)", error, group="bias from draws"),
        ],
        assumptions=(*claim.checked_assumptions(case), _range_check(_Range(None, reason))),
        draws=len(draws),
    )


def _range_check(proven: _Range) -> AssumptionCheck:
    return AssumptionCheck(
        "proven-range",
        "the difference from Backward SGD has a proven range",
        proven.bounds is not None,
        proven.derivation,
    )


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


def _reference_mean(case: Case) -> tuple[bool | None, str]:
    return (
        not case.conditioned,
        "given what the epoch has seen, Backward SGD is biased itself" if case.conditioned else "",
    )


REFERENCE_MEAN = Assumption(
    "reference-mean", "Backward SGD's mean over the design is the exact gradient", _reference_mean
)


def expect(case: Case) -> Expectation:
    """Return what theory says: as for the enumeration, where a proven range is there to decide with."""
    if case.conditioned:
        return Expectation(Outcome.NOT_APPLICABLE, "Backward SGD is no reference given what the epoch has seen")
    if case.design.support_size > MAX_SUPPORT:
        if isinstance(case.estimator, Compensated | FullBatch):
            return Expectation(None, "the design is too large to be looked through for a halo that matters")
        return Expectation(None, "the estimator is not one that theory knows")
    exact = UNBIASED.expect(case)
    if exact.outcome is Outcome.EXACT:
        return Expectation(Outcome.SUPPORTED, exact.reason)
    return Expectation(None, f"{exact.reason}; whether the draws suffice to show it depends on its size")


UNBIASED_SAMPLED = Claim(
    id="theorem-1/unbiased-sampled",
    title="Unbiased gradient, from draws",
    statement=(
        "The expectation of the gradient estimate over the batch design equals the exact full-graph gradient. "
        "Supported: the bias is at most delta of the gradient's norm; refuted: it is not zero."
    ),
    source=UNBIASED.source,
    tier="test",
    theory=(
        UNBIASED.theory
        + " The difference from Backward SGD on the same batch has the same mean as the bias and a much smaller "
        "variance."
    ),
    assumptions=(NO_DROPOUT, REFERENCE_MEAN, BETA_ZERO, AGGREGATE_LINEAR),
    check=check,
    expect=expect,
)
