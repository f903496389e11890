"""Theorem 1 from draws: is the bias zero, or at most delta, on designs that are too large to enumerate?

The estimate is compared with Backward SGD on the same batch, whose mean is the exact gradient; what both have in common
cancels. Refutation is by betting on the difference, support by a confidence radius of its mean, each valid at every
number of draws (see `lmc_verify.statistics`), each with half of the error level. Both need a proven range. Without one
an asymptotic confidence sequence decides, unless that guarantee is refused (`sampling.guarantee`).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from lmc_verify.bounds import NoBound, RangeBound, range_bound
from lmc_verify.cases import Case, readable_count
from lmc_verify.cases.verdict import AssumptionCheck, Evidence, Outcome, Series, Verdict
from lmc_verify.claims.assumptions import AGGREGATE_LINEAR, BETA_ZERO, MAX_SUPPORT, NO_DROPOUT, inclusion_matches
from lmc_verify.claims.claim import Assumption, Claim, expect_not_applicable, not_applicable, verdict_of
from lmc_verify.claims.coverage import UNSEEN, Coverage, LeftRange, left_range, look_at_all
from lmc_verify.claims.question import Answer, Question, largest, measured, with_histories
from lmc_verify.claims.reference import BackwardRows
from lmc_verify.claims.residuals import RESOLUTION_LIMIT, UNIT, norm_by_layer, rounding_magnitudes
from lmc_verify.claims.theorems.theorem_1_unbiased import UNBIASED
from lmc_verify.claims.theory import Expectation, expect_from_halo
from lmc_verify.estimators import properties_of
from lmc_verify.graphs import Batch, Clusters, EpochClusters, FusedClusters, LoaderDesign, UniformNodes, named_nodes
from lmc_verify.objective import Gradient, euclidean_norm, gradient_norm, gradient_sum, rounding_terms
from lmc_verify.seeds import generator
from lmc_verify.statistics.asymptotic import AsymptoticBias
from lmc_verify.statistics.betting import RANGE_SLACK, BiasTest
from lmc_verify.statistics.detection import draws_to_detect, smallest_detectable_bias
from lmc_verify.statistics.radius import BiasRadius, draws_to_bound
from lmc_verify.statistics.rounding import REFUTATION_FACTOR, gamma, require_number

__all__ = ["UNBIASED_SAMPLED"]

LOOK_EVERY, LOOK_GROWTH = 25, 1.05
"""The radius is looked at after 25 more draws or 5 % more, whichever is later; the test looks at every draw."""

SAMPLE_FOR_POWER = 200
"""Draws whose spread the stated power is computed from."""

PILOT = 8
"""Batches from which the size of an estimate, and with it its rounding error, is taken."""

SMALLEST = 1e-140
"""Rounding error, in gradient norms, that is assumed at least: squares of smaller numbers are not representable."""

EQUIPROBABLE = 1e-12
"""Probabilities of batches that differ by at most this, relative, are equal: only then can a census be drawn."""

Blocks = dict[str, npt.NDArray[np.float64]]


@dataclass(frozen=True)
class _Range:
    """A bound on the difference by layer, and how it was obtained; None where there is none.

    It is proven for what the policies allow, or is the largest value over all batches (`everything`).
    """

    bounds: Mapping[str, float] | None
    derivation: str
    everything: bool = False


def _proven_range(case: Case) -> _Range:
    if case.weighting != "inclusion":  # the bounds are for two estimates with the same weights
        return _Range(
            None,
            f"no proven range: the loss weighting is {case.weighting}, Backward SGD uses inverse inclusion "
            "probabilities",
        )
    if look_at_all(case.design.support_size, case.sampling.alpha / 2):
        return _largest(case)
    found = range_bound(case.problem, case.exact, case.initial_state(), case.design, case.estimator)
    if not isinstance(found, NoBound):
        if all(map(math.isfinite, found.layers.values())):
            return _Range(found.layers, found.derivation)
        found = NoBound("the bound overflows")
    if case.design.support_size <= MAX_SUPPORT:
        return _largest(case)
    return _Range(None, f"no proven range: {found.reason}")


def _largest(case: Case) -> _Range:
    """Return the largest difference over all batches of a design, layer by layer."""
    difference, bounds = _difference_of(case), dict[str, float]()
    for batch, _ in case.design.enumerate():
        for part, block in difference(batch).items():
            size = require_number(_norm(block), f"the difference from Backward SGD in {part}")
            bounds[part] = max(bounds.get(part, 0.0), size)
    return _Range(bounds, f"enumerated maximum over {case.design.support_size} batches", everything=True)


def _norm(block: npt.NDArray[np.float64]) -> float:
    return euclidean_norm([torch.from_numpy(block)])


def _draws(case: Case) -> tuple[Iterator[Batch], int | None]:
    """Return the batches to look at: a random order of a small equiprobable support, else independent draws."""
    rng = generator(case.seed, "sampled bias", case.sampling.replicate)
    if case.design.support_size <= min(MAX_SUPPORT, case.sampling.draws):
        support = list(case.design.enumerate())
        probabilities = np.array([probability for _, probability in support])
        if np.ptp(probabilities) <= EQUIPROBABLE * probabilities[0]:
            return (support[index][0] for index in rng.permutation(len(support))), len(support)
    return (case.design.draw(rng) for _ in range(case.sampling.draws)), None


def _blocks(case: Case, gradient: Gradient) -> Blocks:
    parts: dict[str, list[npt.NDArray[np.float64]]] = {}
    for name, value in gradient.items():
        parts.setdefault(case.problem.layer_of(name), []).append(value.detach().cpu().double().numpy().ravel())
    return {part: np.concatenate(values) for part, values in parts.items()}


def _rounding(case: Case, bounds: Mapping[str, float]) -> dict[str, float]:
    """Return by layer what rounding may do to one difference: a mean of that size is no evidence.

    As in the exact tier the count of rounded additions is taken a hundredfold, for it is an estimate.
    """
    problem, reference = case.problem, BackwardRows(case.problem, case.exact)
    rng = generator(case.seed, "rounding")
    own, sizes = rounding_magnitudes(problem, case.exact), dict.fromkeys(bounds, 0.0)
    for _ in range(PILOT):
        estimate = reference.on(case.design.draw(rng))
        sizes = {part: max(sizes[part], norm) for part, norm in norm_by_layer(problem, estimate).items()}
    weight = 1 / case.rarest
    unit = 2 * REFUTATION_FACTOR * gamma(rounding_terms(problem))
    return {part: unit * (sizes[part] + bound + weight * own[part]) for part, bound in bounds.items()}


def _is_negligible(case: Case, bounds: Mapping[str, float]) -> dict[str, bool]:
    """Return by layer whether the range itself is rounding: a bet could only be won on rounding errors."""
    norms, unit = norm_by_layer(case.problem, case.exact.gradient), gradient_norm(case.exact.gradient)
    return {part: bound <= RESOLUTION_LIMIT * (norms[part] or unit) for part, bound in bounds.items()}


def check(case: Case) -> Verdict:
    """Draw batches until the bias is shown to be there, or shown to be at most delta, or the draws are used up.

    The difference from Backward SGD has a range: from operator norms and the histories' errors, proven for what the
    policies allow, or the enumerated maximum over every batch. Without one the verdict is asymptotic, or none where
    that guarantee is refused. A proven range is not taken on trust: see `lmc_verify.claims.coverage`. Batches of a
    small support are drawn without replacement, so that a census decides.
    """
    claim = UNBIASED_SAMPLED
    inapplicable = not_applicable(case, claim)
    if inapplicable is not None:
        return inapplicable
    unit = gradient_norm(case.exact.gradient)
    if unit == 0:
        return verdict_of(
            case, claim.id, Outcome.NOT_APPLICABLE, "the exact gradient vanishes: there is no unit of bias"
        )
    proven = _proven_range(case)
    rounding = {} if proven.bounds is None else _rounding(case, proven.bounds)
    if proven.bounds is not None and all(map(math.isfinite, rounding.values())):
        try:
            return _decided(case, proven, rounding, unit)
        except LeftRange as left:
            if case.design.support_size <= MAX_SUPPORT:
                largest = _largest(case)
                return _decided(case, largest, _rounding(case, largest.bounds or {}), unit)
            proven = _Range(None, f"no proven range: {left}")
    elif proven.bounds is not None:
        return _undecided(case, "ill-conditioned here: rounding alone could hide any bias", unit)
    if case.sampling.guarantee != "asymptotic":
        return _undecided(case, proven.derivation, unit)
    return _asymptotic(case, proven.derivation, unit)


def _decided(case: Case, proven: _Range, rounding: Mapping[str, float], unit: float) -> Verdict:
    """Return the verdict within a range, given what rounding may do to a difference.

    Raises:
        LeftRange: a draw lies outside.
    """
    claim, norms, difference = UNBIASED_SAMPLED, norm_by_layer(case.problem, case.exact.gradient), _difference_of(case)
    assert proven.bounds is not None
    batches, population = _draws(case)
    negligible = _is_negligible(case, proven.bounds)
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
        _require_inside(batch, found, ranges, margins, unit, enumerated=proven.everything)
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
            look = max(draws + LOOK_EVERY, math.ceil(LOOK_GROWTH * draws))
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
        assumptions=(*claim.checked_assumptions(case), _range_check(proven), coverage.check(draws)),
        minimum_detectable_effect=power.detectable,
        # Where every batch was looked at and the range alone decides, nothing is left to chance.
        alpha_spent=0.0 if by_range and coverage.certain(draws) else case.sampling.alpha,
        log_e_value=test.log_value,
        draws=draws,
    )


def _require_inside(
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
        size, most = require_number(_norm(block), f"the difference from Backward SGD in {part}"), ranges[part]
        if size <= most * (1 + RANGE_SLACK) + margins[part]:
            continue
        where = (
            f"for the batch {named_nodes(batch.nodes)} the estimate is {size / unit:.2g} gradient norms from Backward "
            f"SGD's in {part}"
        )
        raise left_range(where, "difference", (most + margins[part]) / unit, everything=enumerated)


def _difference_of(case: Case) -> Callable[[Batch], Blocks]:
    reference, state = BackwardRows(case.problem, case.exact, case.design), case.initial_state()

    def difference(batch: Batch) -> Blocks:
        estimate = case.estimate(state, batch).gradient
        return _blocks(case, gradient_sum(estimate, reference.on(batch), -1.0))

    return difference


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


def _asymptotic(case: Case, reason: str, unit: float) -> Verdict:
    """Return the verdict of an asymptotic confidence sequence, for differences whose range is not proven.

    Draws are independent: what is known of draws without replacement needs a range.
    """
    claim, difference, sampling = UNBIASED_SAMPLED, _difference_of(case), case.sampling
    rng = generator(case.seed, "sampled bias", sampling.replicate)
    rounding = _rounding(case, _pilot_sizes(case, difference))
    if not all(map(math.isfinite, rounding.values())):
        return _undecided(case, f"ill-conditioned here: rounding alone could hide any bias; {reason}", unit)
    tolerance = {part: max(margin / unit, SMALLEST) for part, margin in rounding.items()}
    bias = AsymptoticBias(list(tolerance), sampling.alpha, tolerance=tolerance)
    coverage = _asymptotic_coverage(case)
    outcome, look = Outcome.INCONCLUSIVE, coverage.draws
    while bias.draws < sampling.draws and outcome is Outcome.INCONCLUSIVE:
        found = difference(case.design.draw(rng))
        bias.update({part: block / unit for part, block in found.items()})
        if bias.rejects:
            outcome = Outcome.REFUTED
        elif bias.draws in (look, sampling.draws) and bias.draws >= coverage.draws:
            look = max(bias.draws + LOOK_EVERY, math.ceil(LOOK_GROWTH * bias.draws))
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
        f"asymptotic: {_asymptotic_words(bias, outcome, upper, sampling.delta, coverage)}; mean difference {mean:.2g} "
        f"of the gradient's norm, standard error {error:.2g} ({reason})",
        evidence=[
            Evidence("mean difference (asymptotic)", mean, group="bias from draws"),
            Evidence("standard error (asymptotic)", error, group="bias from draws"),
            *([Evidence("bias, upper bound", upper, sampling.delta, group="bias from draws")] * math.isfinite(upper)),
            *(Evidence(part, low, group="bias per layer, at least (asymptotic)") for part, low in lowers.items()),
            Evidence("share of batches that may be unlike those drawn", unseen, unit="probability", group="coverage"),
        ],
        assumptions=(*claim.checked_assumptions(case), _range_check(_Range(None, reason))),
        alpha_spent=sampling.alpha,
        guarantee="asymptotic",
        draws=bias.draws,
    )


def _asymptotic_coverage(case: Case) -> Coverage:
    """Return which batches are covered without a range: every layer's upper end may miss a share of them."""
    layers = norm_by_layer(case.problem, case.exact.gradient)
    return Coverage(case.sampling.alpha / (2 * len(layers)), everything=False)


def _asymptotic_words(bias: AsymptoticBias, outcome: Outcome, upper: float, delta: float, coverage: Coverage) -> str:
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


def _pilot_sizes(case: Case, difference: Callable[[Batch], Blocks]) -> dict[str, float]:
    """Return by layer the largest difference of a few batches, for the size of rounding errors."""
    rng, sizes = generator(case.seed, "rounding"), dict[str, float]()
    for _ in range(PILOT):
        for part, block in difference(case.design.draw(rng)).items():
            size = require_number(_norm(block), f"the difference from Backward SGD in {part}")
            sizes[part] = max(sizes.get(part, 0.0), size)
    return sizes


def _undecided(case: Case, reason: str, unit: float) -> Verdict:
    """Report mean and standard error, and decide nothing: without a proven range no level can be guaranteed."""
    claim, difference, batches = UNBIASED_SAMPLED, _difference_of(case), _draws(case)[0]
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
    design = case.design
    if case.conditioned:
        return False, "given what the epoch has seen, Backward SGD is biased itself"
    if type(design) in (Clusters, UniformNodes, EpochClusters, FusedClusters):
        return True, ""
    if isinstance(design, LoaderDesign) and design.partitions:
        return True, "every pass through the loader holds every node once"
    if design.support_size > MAX_SUPPORT:
        return None, f"{type(design).__name__} is too large to check its inclusion probabilities"
    return inclusion_matches(case)


REFERENCE_MEAN = Assumption(
    "reference-mean", "Backward SGD's mean over the design is the exact gradient", _reference_mean
)


def expect(case: Case) -> Expectation:
    """Return what theory says: as for the enumeration, where a proven range or a normal approximation decides."""
    inapplicable = expect_not_applicable(case, UNBIASED_SAMPLED)
    if inapplicable is not None:
        return inapplicable
    if gradient_norm(case.exact.gradient) == 0:
        return Expectation(Outcome.NOT_APPLICABLE, "the exact gradient vanishes")
    if case.weighting != "inclusion":
        reason = f"no range is proven for the loss weighting {case.weighting}"
        if case.sampling.guarantee != "asymptotic":
            return Expectation(Outcome.INCONCLUSIVE, reason)
        return Expectation(None, f"{reason}; whether the draws suffice to decide depends on their spread")
    support = case.design.support_size
    everything = look_at_all(support, case.sampling.alpha / 2)
    found: RangeBound | NoBound = NoBound("every batch is looked at")
    if not everything:
        found = range_bound(case.problem, case.exact, case.initial_state(), case.design, case.estimator)
        if isinstance(found, NoBound) and support > MAX_SUPPORT and case.sampling.guarantee != "asymptotic":
            return Expectation(Outcome.INCONCLUSIVE, f"no range is proven: {found.reason}")
    small = support <= MAX_SUPPORT
    exact = UNBIASED.expect(case) if small else expect_from_halo(case, None, histories=case.histories)
    if exact.outcome is not Outcome.EXACT:
        return Expectation(None, f"{exact.reason}; whether the draws suffice to show it depends on its size")
    population = _draws(case)[1]
    if not isinstance(found, NoBound):
        loose = not all(_is_negligible(case, found.layers).values())
        coverage = Coverage(case.sampling.alpha / 2, everything=False, population=population)
        if min(population or case.sampling.draws, case.sampling.draws) < coverage.draws:
            return Expectation(None if loose else Outcome.INCONCLUSIVE, coverage.lacking)
        if loose and population is None:
            return Expectation(None, f"{exact.reason}; whether the draws suffice to show it depends on the range")
    elif support > MAX_SUPPORT and case.sampling.draws < (needed := _asymptotic_coverage(case).draws):
        return Expectation(Outcome.INCONCLUSIVE, f"no range is proven: {found.reason}; {needed:,} draws are needed")
    estimator = properties_of(case.estimator)
    if population is None and (estimator.exact or estimator.sampler is not None):
        # A difference that is zero on average only takes an unknown number of draws.
        return Expectation(None, f"{exact.reason}; whether the draws suffice to show it depends on the range")
    return Expectation(Outcome.SUPPORTED, exact.reason)


UNBIASED_SAMPLED = Claim(
    id="theorem-1/unbiased-sampled",
    title="Unbiased gradient, from draws",
    statement=(
        "The expectation of the gradient estimate over the batch design equals the exact full-graph gradient. "
        "Supported: the bias is at most delta of the gradient's norm; refuted: it is not zero. Where not every batch "
        f"was looked at, this holds of those that keep to the range proven for the estimator's policies; that "
        f"{UNSEEN:.1%} or more do not is excluded before anything is supported."
    ),
    source=UNBIASED.source,
    tier="test",
    theory=(
        UNBIASED.theory
        + " The difference from Backward SGD on the same batch has the same mean as the bias and a much smaller "
        "variance."
    ),
    question=Question(
        "Is {estimator}'s gradient unbiased{when} where batches are drawn",
        supported=Answer("off by at most {size} of its norm", measured("bias, upper bound"), largest=True),
        refuted=Answer("e-value {size}", largest("e-values"), unit="power"),
        when=with_histories,
    ),
    required=(NO_DROPOUT, REFERENCE_MEAN),
    assumptions=(BETA_ZERO, AGGREGATE_LINEAR),
    check=check,
    expect=expect,
    reads=("sampling.delta", "sampling.draws"),
)
