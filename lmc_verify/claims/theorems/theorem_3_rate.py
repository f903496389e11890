"""Theorem 3: the rate at which the gradient norm falls with the number of steps."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from lmc_verify.cases import Case
from lmc_verify.cases.verdict import Evidence, Outcome, Series, Verdict
from lmc_verify.claims.assumptions import BOUNDED, BOUNDED_BELOW, NO_DROPOUT, SMOOTH, UNIFORM
from lmc_verify.claims.bias_curves import floor_evidence, floor_words, more_seeds
from lmc_verify.claims.claim import Claim, expect_not_applicable, not_applicable, verdict_of
from lmc_verify.claims.question import Answer, Question, measured
from lmc_verify.claims.reference import explained
from lmc_verify.claims.theory import Expectation
from lmc_verify.claims.thresholds import fraction
from lmc_verify.estimators import Estimator, with_beta
from lmc_verify.objective import gradient_norm
from lmc_verify.seeds import generator
from lmc_verify.statistics.floors import FloorReading
from lmc_verify.statistics.quadratic import known_slope, measured_norms
from lmc_verify.statistics.rates import (
    FLOOR_FACTOR,
    MedianInterval,
    detectable_margin,
    length_to_come_below,
    length_to_keep_slope,
    loglog_slope,
    median_interval,
    near_floor,
    seeds_needed,
)
from lmc_verify.training import (
    MeasuredRun,
    RunSpecification,
    full_batch_norms,
    largest_stable_step,
    mean_gradient_norms,
)

__all__ = ["RATE", "SCHEDULE", "scheduled"]

Matrix = npt.NDArray[np.float64]

SLOPE = -1 / 6
"""Largest log-log slope of the gradient norm in N: ``E||grad|| = O(eps)`` after ``N = O(eps^-6)`` steps."""

SCHEDULE = -2 / 3
"""Power of N that step size and beta follow: ``O(eps^4)`` after ``N = O(eps^-6)`` steps."""

SAMPLES = 32
"""Random steps R of a run that the gradient norm is averaged over, one from each of as many equal stretches."""

CONTROL_STEP = 0.5
"""Step size of the control problem's shortest run."""

EXPLODED = 100.0
"""A mean gradient norm of more than this many times that at the start is divergence, which has no rate."""

STABLE_SHARE = 0.25
"""Part of the largest stable step size that an eta_0 which is looked for takes, unless `training.stable_share` is set:
at the limit itself the noise of small batches outweighs the gradient of the shortest runs, and bends the curve."""

FULL_BATCH_FACTOR = 1.5
"""A last mean of more than this many times full-batch descent's keeps a bias or noise that may be a floor: the rate is
not supported."""

FLOOR = 1e-10
"""Rounding floor of a gradient norm, in units of the norm at the start."""


def scheduled(estimator: Estimator, step_size: float, length: int) -> tuple[Estimator, float]:
    """Return the estimator and step size of a run of N steps: beta_0 and eta_0 times N to the power `SCHEDULE`."""
    factor = length**SCHEDULE
    return with_beta(estimator, factor), step_size * factor


def with_step_size(case: Case) -> Case:
    """Return the case with the eta_0 of its runs, looked for where `training.largest_step` asks for it.

    Raises:
        InvalidInputError: no step size is stable for full-batch descent, or any is.
    """
    if not case.training.largest_step:
        return case
    shortest = case.training.lengths[0]
    first = _share(case) * largest_stable_step(case.problem, shortest) / shortest**SCHEDULE
    return replace(case, training=case.training.model_copy(update={"step_size": first}))


def _share(case: Case) -> float:
    """Return the part of the largest stable step size that the shortest run takes."""
    return STABLE_SHARE if case.training.stable_share is None else case.training.stable_share


def _planned(case: Case, length: int, seed: int, repeat: int) -> MeasuredRun:
    """Return one run of N steps, measured at R uniform on them."""
    estimator, size = scheduled(case.estimator, case.training.step_size, length)
    axes = ("rate", case.sampling.replicate, seed, length, repeat)
    samples = min(SAMPLES, length)
    stretches = (np.arange(samples) + generator(case.seed, "R", *axes).random(samples)) * length / samples
    # Where stretches are not whole numbers of steps two of them may draw the same one: it then counts twice, as the
    # uniform distribution has it.
    return MeasuredRun(
        RunSpecification(estimator, size, generator(case.seed, *axes)), Counter(stretches.astype(int).tolist())
    )


def _mean_norms(case: Case, seeds: int) -> Matrix:
    """Return the mean exact gradient norm of each seed's runs of each length, over R and repeats [seeds, lengths]."""
    lengths, repeats = case.training.lengths, case.training.repeats
    runs = [
        _planned(case, length, seed, repeat) for seed in range(seeds) for length in lengths for repeat in range(repeats)
    ]
    norms = np.array(mean_gradient_norms(case.problem, runs, case.design))
    means: Matrix = norms.reshape(seeds, len(lengths), repeats).mean(axis=2)
    return means


def _full_batch(case: Case) -> list[float]:
    """Return full-batch gradient descent's mean gradient norm over all steps of every length."""
    lengths = case.training.lengths
    sizes = [scheduled(case.estimator, case.training.step_size, length)[1] for length in lengths]
    return full_batch_norms(case.problem, case.exact, lengths, sizes)


@dataclass(frozen=True)
class _Control:
    """The slope test on problems of known slope: one that must be supported, one that must be refuted.

    Attributes:
        known: slope of the first.
        sound: interval for it.
        wrong: interval for the second's, whose step size is the same for every N.
    """

    known: float
    sound: MedianInterval
    wrong: MedianInterval

    @property
    def problem(self) -> str:
        """What was not judged rightly, and what helps; "" if all was."""
        if not self.sound.low <= self.known <= self.sound.high:
            return (
                f"its slope is {self.known:.3f} and was found {_between(self.sound)}, which happens by chance with a "
                f"probability of at most {self.sound.miss:.1g}; take another sampling.replicate"
            )
        if self.sound.inside(upper=SLOPE) and self.wrong.outside(upper=SLOPE):
            return ""
        found = self.wrong if self.sound.inside(upper=SLOPE) else self.sound
        return (
            f"its slope was found {_between(found)}, on both sides of {fraction(SLOPE)}, for these lengths are too few "
            "or too close together; spread training.lengths, or take more seeds (sampling.seeds)"
        )

    @property
    def evidence(self) -> list[Evidence]:
        """Both intervals."""
        return [
            Evidence(
                f"control: quadratic with slope {self.known:.3f}",
                self.sound.median,
                self.known,
                _UNIT,
                "control",
                *self.sound.ends,
            ),
            Evidence(
                "control: constant step size, slope 0", self.wrong.median, 0.0, _UNIT, "control", *self.wrong.ends
            ),
        ]


_UNIT = "log-log slope"


def _between(found: MedianInterval) -> str:
    return f"in [{found.low:.3f}, {found.high:.3f}]"


def _control(case: Case, seeds: int, alpha: float) -> _Control:
    """Run the control problems with the lengths and seeds of the case."""
    lengths = case.training.lengths
    sizes = [CONTROL_STEP * (length / lengths[0]) ** SCHEDULE for length in lengths]
    rng = generator(case.seed, "control", case.sampling.replicate)
    sound, wrong = (
        median_interval(
            [loglog_slope(lengths, row) for row in measured_norms(lengths, given, seeds, SAMPLES, rng)], alpha
        )
        for given in (sizes, [sizes[-1]] * len(lengths))
    )
    return _Control(known_slope(lengths, sizes), sound, wrong)


@dataclass(frozen=True, eq=False)
class _Measured:
    """What the training runs showed.

    Attributes:
        case: with the eta_0 of its runs.
        means: mean gradient norm of each seed's runs of each length [seeds, lengths].
        reference: that of full-batch descent, of each length.
        control: the same test where the slope is known.
        alpha: miss probability of each interval.
    """

    case: Case
    means: Matrix
    reference: list[float]
    control: _Control
    alpha: float

    @cached_property
    def slopes(self) -> list[float]:
        """One log-log slope a seed."""
        return [loglog_slope(self.case.training.lengths, row) for row in self.means]

    @cached_property
    def slope(self) -> MedianInterval:
        """The interval for the median slope."""
        return median_interval(self.slopes, self.alpha)

    @cached_property
    def exact_slope(self) -> float:
        """The slope of full-batch descent."""
        return loglog_slope(self.case.training.lengths, self.reference)

    @cached_property
    def reading(self) -> FloorReading:
        """What the curves say about a floor."""
        return FloorReading(self.case.training.lengths, self.means, SLOPE, self.alpha)

    @cached_property
    def excesses(self) -> list[float]:
        """The mean gradient norm of every length, the median over seeds, in units of full-batch descent's."""
        found: list[float] = (np.median(self.means, axis=0) / np.array(self.reference)).tolist()
        return found

    @property
    def excess(self) -> float:
        """That of the longest runs."""
        return self.excesses[-1]

    @cached_property
    def unreadable(self) -> str:
        """Why no slope is read from these curves, and what helps; "" if one is."""
        start = gradient_norm(self.case.exact.gradient)
        floor, norms = FLOOR * start, self.means
        below = norms <= EXPLODED * start
        if not below.all() or not np.isfinite(self.reference).all():
            count = int((~below).sum())
            who = f"{count:,} of {norms.size:,} mean gradient norms are" if count else "that of full-batch descent is"
            return (
                f"training diverged: {who} not finite, or over {EXPLODED:g} times that at the start; no slope is read; "
                f"{self._smaller_step}"
            )
        if near_floor([*norms.ravel(), *self.reference], floor):
            smallest = min(float(norms.min()), *self.reference)
            return (
                f"slope refused: the smallest mean gradient norm {smallest:.1e} is at most {FLOOR_FACTOR:.0f} times "
                f"its rounding floor {floor:.1e}; {self._smaller_step}, or another seed if the network has died"
            )
        return ""

    @property
    def _smaller_step(self) -> str:
        if not self.case.training.largest_step:
            return "choose a smaller training.step_size"
        taken = self.case.training.step_size
        return f"training.largest_step has taken {taken:.3g}, set a smaller training.step_size in its place"

    @property
    def evidence(self) -> list[Evidence]:
        """Every measured quantity."""
        if self.unreadable:
            return self.control.evidence
        return [
            Evidence("E||grad|| against N", self.slope.median, SLOPE, _UNIT, "rates", *self.slope.ends),
            *(floor_evidence(self.reading) if self.slope.exists else []),
            Evidence("last mean over full-batch descent's", self.excess, FULL_BATCH_FACTOR, "ratio", "floor"),
            Evidence("full-batch gradient descent", self.exact_slope, SLOPE, _UNIT, "control"),
            *self.control.evidence,
        ]

    @property
    def detectable(self) -> float | None:
        """The margin from the limit that would have been detected; None where there is no interval."""
        if self.unreadable or not self.slope.exists:
            return None
        return detectable_margin(float(np.std(self.slopes, ddof=1)), len(self.slopes), self.alpha)


def check(case: Case) -> Verdict:
    """Train for N steps with the theorem's step size and beta, N on a grid, with independent seeds for every N.

    One seed gives one log-log slope of E||grad L(theta_R)||, R uniform on the steps; the interval for the median slope
    must lie at or below the theorem's, and so must the slope at the end of the range when a floor is allowed for: a
    decay onto a plateau has a slope, too. The same test is run on a control problem with a known slope. A slope on a
    finite range refutes a rate only where the range is long enough for the exact gradient: full-batch gradient descent
    must keep it.
    """
    claim = RATE
    inapplicable = not_applicable(case, claim)
    if inapplicable is not None:
        return inapplicable
    assumptions = claim.checked_assumptions(case)
    if gradient_norm(case.exact.gradient) == 0:
        summary = (
            "the exact gradient is zero at the start, so that no step size trains anything and no rate is read: the "
            "network has died, or the gradients of its nodes cancel; choose another seed, or model.activation=tanh"
        )
        return verdict_of(
            case, claim.id, Outcome.INCONCLUSIVE, summary, histories="zero", assumptions=assumptions, draws=0
        )
    # The control's two intervals and the claim's own share the level.
    alpha = case.sampling.alpha / 3
    seeds, own = case.sampling.seeds or seeds_needed(alpha), with_step_size(case)
    found = _Measured(own, _mean_norms(own, seeds), _full_batch(own), _control(case, seeds, alpha), alpha)
    outcome, summary = (Outcome.INCONCLUSIVE, found.unreadable) if found.unreadable else _decide(found)
    return verdict_of(
        case,
        claim.id,
        outcome,
        summary,
        histories="zero",
        evidence=found.evidence,
        series=_series(case, found.means, found.reference),
        assumptions=assumptions,
        minimum_detectable_effect=found.detectable,
        alpha_spent=case.sampling.alpha,
        draws=seeds,
    )


def _decide(found: _Measured) -> tuple[Outcome, str]:
    slope, lengths = found.slope, found.case.training.lengths
    if not slope.exists:
        needed = seeds_needed(found.alpha)
        count = len(found.slopes)
        return Outcome.INCONCLUSIVE, f"{count} seeds give no interval at this level: set sampling.seeds to {needed}"
    if found.control.problem:
        return Outcome.INCONCLUSIVE, (
            f"the control problem of known rate was not judged rightly at N = {', '.join(map(str, lengths))}, so no "
            f"slope is read: {found.control.problem}"
        )
    words = _words(found)
    if slope.inside(upper=SLOPE):
        return _decide_falling(found, words)
    if slope.outside(upper=SLOPE):
        if found.exact_slope > SLOPE:
            lengths = found.case.training.lengths
            wanted = length_to_keep_slope(lengths, found.reference, SLOPE)
            return Outcome.INCONCLUSIVE, (
                f"{words}; not even full-batch gradient descent has this rate here (slope {found.exact_slope:.3f}): "
                f"the runs are too short, {_longer(found.case)}{_about(wanted)}"
            )
        why = explained(found.case, RATE)
        return Outcome.REFUTED, f"{words}; full-batch gradient descent has {found.exact_slope:.3f}{why}"
    seeds = more_seeds(found.slopes, found.alpha, SLOPE)
    return Outcome.INCONCLUSIVE, f"{words}; {seeds}; or take longer runs (training.lengths)"


def _words(found: _Measured) -> str:
    """Return the slope, with the step size where it was looked for."""
    training, slope = found.case.training, found.slope
    lengths, medians = training.lengths, np.median(found.means, axis=0)
    words = (
        f"the gradient norm goes from {medians[0]:.3g} at N = {lengths[0]} to {medians[-1]:.3g} at {lengths[-1]}: "
        f"slope {slope.median:.3f}, {_between(slope)} over {len(found.slopes)} seeds; the theorem needs "
        f"{fraction(SLOPE)}"
    )
    if not training.largest_step:
        return words
    eta = training.step_size * lengths[0] ** SCHEDULE
    stable = f"{_share(found.case):.0%} of what is stable there for full-batch descent"
    return f"eta = {eta:.3g} at N = {lengths[0]}, {stable}: {words}"


def _decide_falling(found: _Measured, words: str) -> tuple[Outcome, str]:
    """Decide on a curve that falls fast enough: a floor must be excluded as what its slope may lead to."""
    reading, floor = found.reading, floor_words(found.reading, SLOPE)
    if reading.clear and found.excess <= FULL_BATCH_FACTOR:
        return Outcome.SUPPORTED, f"{words}; {floor}; not refuted on this range of N"
    if reading.clear:
        wanted = length_to_come_below(found.case.training.lengths, found.excesses, FULL_BATCH_FACTOR)
        return Outcome.INCONCLUSIVE, (
            f"{words}; the last mean is {found.excess:.2g} times that of full-batch gradient descent, at most "
            f"{FULL_BATCH_FACTOR:g} is allowed: what keeps it there may be a floor that is still to be met; take "
            f"longer runs (training.lengths){_about(wanted)}"
        )
    longest = reading.deciding_length()
    advice = f"runs of up to about {longest:,.0f} steps would decide" if longest else "take much longer runs"
    return Outcome.INCONCLUSIVE, f"{words}; {floor}; {advice} (training.lengths)"


def _longer(case: Case) -> str:
    """Return what helps where full-batch descent does not come far enough."""
    if case.training.largest_step:
        return "raise training.lengths: training.largest_step leaves no step size to raise"
    return "raise training.step_size or training.lengths"


def _about(length: float | None) -> str:
    """Return up to which number of steps runs would have to reach at the present pace, where that can be said."""
    return "" if length is None else f": at this pace N up to about {float(f'{length:.2g}'):,.0f} would decide"


def _series(case: Case, means: Matrix, reference: list[float]) -> tuple[Series, ...]:
    lengths, medians = tuple(map(float, case.training.lengths)), np.median(means, axis=0)
    labels = ("Gradient norm against number of steps", "steps N", "mean gradient norm")
    low, high = (tuple(map(float, ends)) for ends in (means.min(axis=0), means.max(axis=0)))
    line = tuple(reference[0] * (length / lengths[0]) ** SLOPE for length in lengths)
    return (
        Series("median over seeds", lengths, tuple(map(float, medians)), *labels, low, high, "loglog"),
        Series("full batch", lengths, tuple(reference), *labels, scale="loglog"),
        Series(f"slope {fraction(SLOPE)}", lengths, line, *labels, scale="loglog"),
    )


def expect(case: Case) -> Expectation:
    """Return what theory says: nothing certain on a finite range, except for what an assumption rules out."""
    inapplicable = expect_not_applicable(case, RATE)
    if inapplicable is not None:
        return inapplicable
    return Expectation(None, "a rate is asymptotic: what a finite range of N shows depends on the problem")


RATE = Claim(
    id="theorem-3/rate",
    title=f"The gradient norm falls as N^({fraction(SLOPE)})",
    statement=(
        f"With eta = eta_0 N^({fraction(SCHEDULE)}) and beta = beta_0 N^({fraction(SCHEDULE)}), N steps and R uniform "
        f"on them, E||grad L(theta_R)|| falls with a log-log slope of at most {fraction(SLOPE)} in N."
    ),
    source="LMC (Shi, Liang and Wang, ICLR 2023), Theorem 3; the schedule is derived from its orders in eps",
    tier="rate",
    theory=(
        "eta = O(eps^4), beta = O(eps^4) and N = O(eps^-6) give O(eps); in N that is eta and beta of order "
        f"N^({fraction(SCHEDULE)}) and a gradient norm of order N^({fraction(SLOPE)}). The bias of LMC falls with eta "
        "and beta. That of GAS does not: where it outweighs the gradient the norm stays on a plateau, and the slope is "
        "near 0."
    ),
    question=Question(
        f"Does {{estimator}}'s gradient norm fall as N^({fraction(SLOPE)})",
        supported=Answer("slope {size}", measured("E||grad|| against N"), unit="number"),
        refuted=Answer("slope {size}", measured("E||grad|| against N"), unit="number"),
    ),
    required=(NO_DROPOUT,),
    assumptions=(UNIFORM, SMOOTH, BOUNDED, BOUNDED_BELOW),
    check=check,
    expect=expect,
    reads=(
        "sampling.seeds",
        "training.step_size",
        "training.largest_step",
        "training.stable_share",
        "training.lengths",
        "training.repeats",
    ),
    histories="zero",
    varies=("parameters",),
)
