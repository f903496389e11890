"""Curves of the bias along training runs, and what the claims about its floor read from them.

The bias at step k is that of the next estimate given the histories of step k, enumerated from a snapshot of them. A run
gives one curve; independent runs (seeds) give intervals for the median of slopes and rates, without assumptions on
their distribution (see `lmc_verify.statistics.rates`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lmc_verify.cases import Case
from lmc_verify.cases.verdict import Evidence, Outcome, Series, Verdict
from lmc_verify.claims.claim import Assumption, Claim, expect_not_applicable, verdict_of
from lmc_verify.claims.diagnosis import saturation, worst_parameter
from lmc_verify.claims.reference import explained
from lmc_verify.claims.residuals import rounding_magnitudes, rounding_of_bias
from lmc_verify.claims.theory import Expectation, expect_from_halo, weights_fail
from lmc_verify.claims.thresholds import fraction
from lmc_verify.errors import InvalidInputError
from lmc_verify.estimators import Estimator, properties_of, with_beta
from lmc_verify.objective import Gradient, gradient_norm, gradient_sum
from lmc_verify.seeds import generator
from lmc_verify.statistics.floors import FloorReading
from lmc_verify.statistics.rates import (
    FLOOR_FACTOR,
    MedianInterval,
    detectable_margin,
    loglog_slope,
    median_interval,
    near_floor,
    seeds_needed,
    seeds_to_detect,
)
from lmc_verify.training import TrainingRun, conditional_moments, weighted_batches

__all__ = [
    "LMC_THEOREM_2",
    "NEGLIGIBLE",
    "SNAPSHOTS",
    "BiasCurves",
    "FloorSlope",
    "expect_before_halo",
    "expect_vanishing",
    "expect_with_exact_histories",
    "floor_evidence",
    "floor_words",
    "late_steps",
    "measure",
    "mixing_steps",
    "more_seeds",
    "scales",
    "seeds_of",
    "unreadable",
]

Matrix = npt.NDArray[np.float64]

HALVINGS = 4
"""A grid holds the given value and this many halvings of it."""

NEGLIGIBLE = 1e-10
"""A bias below this part of the gradient's norm is rounding: nothing can be learned from its slope."""

MOST_STEPS = 100_000
"""Steps after which a run whose histories have not forgotten their start is given up."""

SNAPSHOTS = 4
"""Late snapshots that a floor is averaged over."""

APART = 0.25
"""Largest distance, in units of the gradient, between the ends of runs whose floors are compared.

After as many steps, runs of different step sizes have come differently far; where the exact gradient has changed in
between, a floor shows the place and not the step size.
"""


@dataclass(frozen=True)
class BiasCurves:
    """Curves of the bias: one for each seed and each value of what is varied.

    Attributes:
        values: what is varied: beta, a step size, eps.
        steps: of the snapshots; the last `SNAPSHOTS` of them are late.
        bias: its norm in units of the exact gradient's norm at the start [seeds, values, steps].
        gradient: norm of the exact gradient there, in the same unit [seeds, values, steps].
        looks: which parameter the bias sits in, at the last snapshot of the first seed's last run, for a summary.
        rounding: up to which norm a bias may be rounding, the largest of all snapshots, in the same unit.
        distances: how far the exact gradients of a run are from those of the same seed's last run, at the late snapshot
            where it is most, in the same unit [seeds, values].
        noun: what `bias` is, in words: some claims measure another error of the estimate.
    """

    values: tuple[float, ...]
    steps: tuple[int, ...]
    bias: Matrix
    gradient: Matrix
    distances: Matrix
    looks: str = ""
    rounding: float = 0.0
    noun: str = "bias"

    @property
    def negligible(self) -> float:
        """A bias below it is rounding: `NEGLIGIBLE`, or more where the gradient cancels in what it adds up."""
        return max(NEGLIGIBLE, self.rounding)

    @property
    def floors(self) -> Matrix:
        """Mean bias over the late snapshots [seeds, values]."""
        late: Matrix = self.bias[:, :, -SNAPSHOTS:].mean(axis=2)
        return late

    @property
    def diverged(self) -> int:
        """How many runs had a bias or an exact gradient that is not finite at some snapshot."""
        finite = np.isfinite(self.bias).all(axis=2) & np.isfinite(self.gradient).all(axis=2)
        return int((~finite | ~np.isfinite(self.distances)).sum())

    @property
    def vanishes(self) -> bool:
        """Whether every bias is rounding."""
        return bool((self.bias <= self.negligible).all())

    @property
    def dead(self) -> bool:
        """Whether the exact gradient is rounding at some snapshot: a bias of zero then says nothing."""
        return near_floor(self.gradient, self.negligible)

    @property
    def apart(self) -> float:
        """How far apart runs of one seed end, as the median over seeds."""
        return float(np.median(self.distances.max(axis=1)))

    @property
    def _y_label(self) -> str:
        return f"{self.noun} / gradient at the start"

    def floor_series(self, figure: str, x_label: str) -> Series:
        """Return floors against values: median over seeds, with smallest and largest."""
        order, floors = np.argsort(self.values), self.floors
        x, y, low, high = (
            tuple(float(value) for value in np.asarray(row)[order])
            for row in (self.values, np.median(floors, axis=0), floors.min(axis=0), floors.max(axis=0))
        )
        return Series("median over seeds", x, y, figure, x_label, self._y_label, low, high, "loglog")

    def curve_series(self, place: int, name: str, figure: str) -> Series:
        """Return the curve of one value: median over seeds, with smallest and largest."""
        curves = self.bias[:, place]
        y, low, high = (
            tuple(map(float, row)) for row in (np.median(curves, axis=0), curves.min(axis=0), curves.max(axis=0))
        )
        return Series(name, tuple(map(float, self.steps)), y, figure, "step", self._y_label, low, high, "semilogy")


def mixing_steps(case: Case) -> int:
    """Return the number of steps after which histories at fixed parameters have forgotten their start.

    A row is refreshed with probability pi per step, and 2 L layers of histories follow each other; each is given the
    time in which all rows except a thousandth are refreshed. Rows of nodes that no batch holds keep what they have.
    """
    if case.rarest >= 1:
        return 2 * case.problem.num_layers
    return 2 * case.problem.num_layers * math.ceil(math.log(1e-3) / math.log1p(-case.rarest))


def late_steps(case: Case) -> tuple[int, ...]:
    """Return the steps of the late snapshots, far enough apart for most rows to be refreshed in between.

    Raises:
        InvalidInputError: the first of them is beyond `MOST_STEPS`.
    """
    first, apart = mixing_steps(case), math.ceil(1 / case.rarest)
    if first > MOST_STEPS:
        raise InvalidInputError(
            f"some node is in a batch with probability {case.rarest:.1g} only: histories of {case.problem.num_layers} "
            f"layers need {first:,} steps to forget their start, at most {MOST_STEPS:,} are made; give batches that "
            "hold every node more often"
        )
    return tuple(first + apart * index for index in range(SNAPSHOTS))


def measure(
    case: Case, name: str, runs: Sequence[tuple[float, Estimator, float]], steps: Sequence[int], seeds: int
) -> BiasCurves:
    """Measure the bias at some steps of runs from the estimators' initial histories.

    Args:
        case: problem and design; its estimator and step size are not looked at.
        name: of the study; every (study, replicate, seed) has random batches of its own. The runs of one seed see the
            same batches: what the age of their histories does to the bias is then common to them, and not noise of the
            slope.
        runs: (value of what is varied, estimator, step size).
        steps: of the snapshots, ascending.
        seeds: number of independent repetitions of all runs.
    """
    batches = weighted_batches(case.design)
    unit = gradient_norm(case.exact.gradient) or 1.0
    biases, gradients = np.empty((2, seeds, len(runs), len(steps)))
    # Taken at the start; what grows on the way shows in the estimates' own size.
    magnitudes, rounding = rounding_magnitudes(case.problem, case.exact), 0.0
    distances = np.empty((seeds, len(runs)))
    looks = ""
    for seed in range(seeds):
        late: list[list[Gradient]] = []
        for place, (_, estimator, step_size) in enumerate(runs):
            run = TrainingRun(
                case.problem,
                estimator,
                case.design,
                step_size=step_size,
                generator=generator(case.seed, name, case.sampling.replicate, seed),
            )
            late.append([])
            for index, step in enumerate(steps):
                while run.step_count < step:
                    run.step()
                known = case.exact if step_size == 0 else None
                found = conditional_moments(run.problem, estimator, run.state, batches, known)
                bias, exact = found.bias, found.exact
                if math.isfinite(found.size):
                    size = rounding_of_bias(case.problem, found.size, magnitudes, len(batches))
                    rounding = max(rounding, size / unit)
                biases[seed, place, index] = gradient_norm(bias) / unit
                gradients[seed, place, index] = gradient_norm(exact.gradient) / unit
                if index >= len(steps) - SNAPSHOTS:
                    late[place].append(exact.gradient)
            if seed == 0 and place == len(runs) - 1:
                looks = worst_parameter(bias, exact.gradient, NEGLIGIBLE)
        for place, own in enumerate(late):
            pairs = zip(own, late[-1], strict=True)
            distances[seed, place] = max(gradient_norm(gradient_sum(one, last, -1.0)) for one, last in pairs) / unit
    return BiasCurves(tuple(value for value, _, _ in runs), tuple(steps), biases, gradients, distances, looks, rounding)


def unreadable(case: Case, claim: Claim, curves: BiasCurves, without_bias: Outcome) -> Verdict | None:
    """Return the verdict on curves whose floors have no slope, or None if they have one.

    Args:
        case: the case.
        claim: the claim.
        curves: what was measured.
        without_bias: the outcome where there is no bias at any step.
    """
    if curves.diverged:
        outcome = Outcome.INCONCLUSIVE
        summary = (
            f"{curves.diverged:,} of {curves.distances.size:,} runs diverged: gradients or errors are not finite, "
            "and no slope is read; choose a smaller training.step_size, or scale features and parameters down"
        )
    elif curves.vanishes and not curves.dead:
        outcome = without_bias
        summary = f"no {curves.noun} at any step: at most {curves.bias.max():.1e} of the gradient's norm"
    elif curves.dead:
        outcome = Outcome.INCONCLUSIVE
        summary = (
            f"the exact gradient falls to {curves.gradient.min():.1e} of its norm at the start, where rounding may be "
            f"{curves.negligible:.1e}, so that a floor of the {curves.noun} says nothing; choose a smaller "
            "training.step_size, or another seed if the network has died or the gradients of its nodes cancel"
        )
    elif near_floor(curves.floors, curves.negligible):
        outcome = Outcome.INCONCLUSIVE
        summary = (
            f"some floor is rounding (at most {FLOOR_FACTOR * curves.negligible:.0e} of the gradient's norm): a slope "
            f"would show rounding; {_larger_floor(case, curves)}"
        )
    else:
        return None
    return verdict_of(
        case,
        claim.id,
        outcome,
        summary,
        histories="zero",
        evidence=[
            *([Evidence("runs that diverged", curves.diverged, 0.0, "runs", curves.noun)] if curves.diverged else []),
            Evidence(
                f"largest {curves.noun} at any step", float(curves.bias.max()), curves.negligible, group=curves.noun
            ),
            *(
                Evidence(f"smallest floor at {value:.3g}", float(floor), curves.negligible, group=curves.noun)
                for value, floor in zip(curves.values, curves.floors.min(axis=0), strict=True)
            ),
        ],
        assumptions=claim.checked_assumptions(case),
        draws=len(curves.bias),
    )


def _larger_floor(case: Case, curves: BiasCurves) -> str:
    """Say what would lift a floor above rounding.

    Floors grow about in proportion to what is varied: beta, which ends at 1, or a step size, which ends where runs of
    one seed are too far apart to be compared.
    """
    smallest = float(curves.floors.min())
    missing = FLOOR_FACTOR * curves.negligible / smallest if smallest > 0 else math.inf
    room = APART / curves.apart if curves.apart > 0 else 1 / max(curves.values)
    if missing <= room:
        beta = properties_of(case.estimator).beta
        return "choose a larger training.step_size" + ("" if beta is None else " or estimator.beta")
    cause = saturation(case.problem) or "hardly anything of it reaches the layers below the last"
    return (
        f"{cause}, and no training.step_size or estimator.beta is large enough to show more: scale features or initial "
        "parameters down, or choose another model.activation or seed"
    )


def more_seeds(slopes: Sequence[float], alpha: float, *limits: float) -> str:
    """Say how many seeds would decide on which side of the nearest limit the median slope lies.

    They must be fresh: the interval holds for a number of seeds that does not depend on what they showed.
    """
    gap, deviation = min(abs(float(np.median(slopes)) - limit) for limit in limits), float(np.std(slopes, ddof=1))
    needed = seeds_to_detect(gap, deviation, alpha) if gap > 0 else None
    if needed is None:
        return "the slope lies too near the limit for any number of seeds"
    return (
        f"about {needed:,} seeds would decide, if slopes scatter as they did: set sampling.seeds, and another "
        "sampling.replicate for fresh ones"
    )


def floor_words(reading: FloorReading, limit: float) -> str:
    """Say which floor was fitted to a curve that falls, with its interval, and what it does to the slope."""
    low, high = reading.interval
    found = f"fitted floor {reading.fit.floor:.2g}, {reading.share:.0%} of the last mean (in [{low:.0%}, {high:.0%}])"
    if reading.near:
        return f"{found}: too near for a slope to be read, the last mean must be {FLOOR_FACTOR:.0f} times the floor"
    if not reading.keeps_slope:
        return f"{found}: with a floor that large the slope at the end of the range need not keep {fraction(limit)}"
    return f"{found}, and with it the slope at the end of the range keeps {fraction(limit)}"


def floor_evidence(reading: FloorReading) -> list[Evidence]:
    """Return the fitted floor's share of the last mean, with its interval and the largest at which slopes are read."""
    low, high = reading.interval
    return [Evidence("fitted floor / last mean", reading.share, 1 / FLOOR_FACTOR, "share", "rates", low, high)]


class FloorSlope:
    """The log-log slope of the floor against what is varied: one per seed, and an interval for their median.

    As what is varied goes to zero the floor must go on falling. A part of it that stays (dropped messages, a leak) is a
    floor of the floor, and bends the curve: see `lmc_verify.statistics.floors`.

    Args:
        curves: the curves.
        alpha: miss probability of the interval.
    """

    def __init__(self, curves: BiasCurves, alpha: float) -> None:
        self._values = [loglog_slope(curves.values, floors) for floors in curves.floors]
        self._alpha, self._apart, self._curves = alpha, curves.apart, curves
        self._reading: FloorReading | None = None
        self._lower = 0.0
        self.interval: MedianInterval = median_interval(self._values, alpha)
        self._advice = ""

    def outcome(self, lower: float, upper: float = math.inf) -> Outcome:
        """Return what the interval says of a region for the slope: nothing where the runs are too far apart."""
        if self._apart > APART:
            return Outcome.INCONCLUSIVE
        if self.interval.exists and not (self.interval.inside(lower, upper) or self.interval.outside(lower, upper)):
            self._advice = "; " + more_seeds(self._values, self._alpha, lower, upper)
        if self.interval.inside(lower, upper):
            # The curve falls as 1/value grows, with the slope's sign changed.
            order = np.argsort(self._curves.values)[::-1]
            x = [1 / self._curves.values[place] for place in order]
            self._reading, self._lower = FloorReading(x, self._curves.floors[:, order], -lower, self._alpha), lower
            return Outcome.SUPPORTED if self._reading.clear else Outcome.INCONCLUSIVE
        return Outcome.REFUTED if self.interval.outside(lower, upper) else Outcome.INCONCLUSIVE

    @property
    def words(self) -> str:
        """Median and interval, or why there is none, for a summary."""
        found = self.interval
        if not found.exists:
            needed = seeds_needed(self._alpha)
            return (
                f"{found.median:.2f}, without an interval: {found.draws} seeds are too few for this level, set "
                f"sampling.seeds to {needed}"
            )
        words = f"{found.median:.2f}, in [{found.low:.2f}, {found.high:.2f}] over {found.draws} seeds"
        if self._reading is not None:
            words += f"; {floor_words(self._reading, self._lower)}"
            if not self._reading.clear:
                longest = self._reading.deciding_length()
                where = f"down to about {1 / longest:.2g}" if longest else "much farther down"
                words += f"; a grid that reaches {where} would decide, start it lower"
        if self._apart > APART:
            words += (
                f" (not read: the exact gradients of the runs differ by {self._apart:.2g} of the gradient at the "
                f"start, at most {APART} is allowed; choose a smaller training.step_size)"
            )
        return words

    def _cause(self, case: Case, claim: Claim, outcome: Outcome) -> str:
        """Return what leads to the cause of a refutation: the parameter that the bias sits in, and what is assumed."""
        return self._curves.looks + explained(case, claim) if outcome is Outcome.REFUTED else ""

    def verdict(
        self,
        case: Case,
        claim: Claim,
        outcome: Outcome,
        summary: str,
        *,
        limit: float,
        evidence: Sequence[Evidence],
        series: Sequence[Series],
    ) -> Verdict:
        """Assemble the verdict: the slope, its limit, and the margin from the limit that would have been detected."""
        found = self.interval
        margin = None
        if found.exists:
            margin = detectable_margin(float(np.std(self._values, ddof=1)), found.draws, self._alpha)
        return verdict_of(
            case,
            claim.id,
            outcome,
            summary + self._advice + self._cause(case, claim, outcome),
            histories="zero",
            evidence=[
                Evidence("floor", found.median, limit, "log-log slope", "rates", *found.ends),
                *(floor_evidence(self._reading) if self._reading is not None else ()),
                *evidence,
                Evidence("distance between the ends of runs", self._apart, APART, group="place"),
            ],
            series=tuple(series),
            assumptions=claim.checked_assumptions(case),
            minimum_detectable_effect=margin,
            alpha_spent=case.sampling.alpha,
            draws=found.draws,
        )


def scales() -> list[float]:
    """Return the factors of a grid: 1, 1/2, 1/4, ..."""
    return [0.5**index for index in range(HALVINGS + 1)]


def seeds_of(case: Case, alpha: float) -> int:
    """Return how many independent runs the case asks for, or as many as `alpha` needs."""
    return case.sampling.seeds or seeds_needed(alpha)


def expect_before_halo(case: Case, claim: Claim) -> Expectation | None:
    """Return what theory says of a claim whatever is put at the halo, or None if that matters."""
    inapplicable = expect_not_applicable(case, claim)
    if inapplicable is not None:
        return inapplicable
    if gradient_norm(case.exact.gradient) == 0:
        return Expectation(None, "the exact gradient is zero at the start (a network that has died?)")
    if reasons := weights_fail(case):
        return Expectation(None, "; ".join(reasons) + ": a bias remains, whether it dominates depends on the case")
    return None


def expect_with_exact_histories(case: Case, factor: float) -> Expectation:
    """Return what theory says of the estimates from exact histories, with beta multiplied by a factor."""
    if properties_of(case.estimator).known:
        case = dataclasses.replace(case, estimator=with_beta(case.estimator, factor))
    return expect_from_halo(case, (batch for batch, _ in case.design.enumerate()), histories="exact")


def expect_vanishing(case: Case, frozen: Expectation) -> Expectation:
    """Return what theory says of a floor that ought to vanish, given what it says of exact histories."""
    if frozen.outcome is Outcome.REFUTED:
        return Expectation(Outcome.REFUTED, f"{frozen.reason}: a bias remains however slowly the parameters move")
    if frozen.outcome is None:
        return frozen
    stale = expect_from_halo(case, (batch for batch, _ in case.design.enumerate()), histories="zero")
    if stale.outcome is Outcome.EXACT:
        return Expectation(Outcome.EXACT, f"no bias at any step: {stale.reason}")
    return Expectation(Outcome.SUPPORTED, "histories lag behind by an amount in proportion to the step size")


def _has_beta(case: Case) -> tuple[bool | None, str]:
    beta = properties_of(case.estimator).beta
    if beta is None:
        return False, "the estimator has no beta"
    if isinstance(beta, tuple):
        return False, "beta differs between nodes"
    return beta > 0, f"beta = {beta}" if beta > 0 else f"beta = {beta} is not above zero"


BETA_ABOVE_ZERO = Assumption("beta-above-zero", "beta is one number above zero", _has_beta)

LMC_THEOREM_2 = "LMC (Shi, Liang and Wang, ICLR 2023)"
