"""Theorem 3: the rate at which the gradient norm falls with the number of steps."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

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
from lmc_verify.estimators import Estimator, FullBatch, with_beta
from lmc_verify.objective import gradient_norm
from lmc_verify.seeds import generator
from lmc_verify.statistics.floors import FloorReading
from lmc_verify.statistics.quadratic import known_slope, measured_norms
from lmc_verify.statistics.rates import (
    FLOOR_FACTOR,
    MedianInterval,
    detectable_margin,
    loglog_slope,
    median_interval,
    near_floor,
    seeds_needed,
)
from lmc_verify.training import MeasuredRun, RunSpecification, largest_stable_step, mean_gradient_norms

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
"""Part of the largest stable step size that an eta_0 which is looked for takes: at the limit itself the noise of the
shortest runs' batches outweighs their gradient, and bends the curve."""

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
    first = STABLE_SHARE * largest_stable_step(case.problem, shortest) / shortest**SCHEDULE
    return replace(case, training=case.training.model_copy(update={"step_size": first}))


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
    """Return full-batch gradient descent's mean gradient norm over all steps of every length: no sampling error."""
    runs = []
    for length in case.training.lengths:
        _, size = scheduled(case.estimator, case.training.step_size, length)
        unused = generator(case.seed, "full batch")  # it does not look at its batches
        runs.append(MeasuredRun(RunSpecification(FullBatch(), size, unused), dict.fromkeys(range(length), 1)))
    return mean_gradient_norms(case.problem, runs, case.design)


def _control(case: Case, seeds: int, alpha: float) -> tuple[bool, list[Evidence]]:
    """Run the slope test on problems of known slope: one that must be supported, one that must be refuted."""
    lengths = case.training.lengths
    sizes = [CONTROL_STEP * (length / lengths[0]) ** SCHEDULE for length in lengths]
    rng = generator(case.seed, "control", case.sampling.replicate)
    known = known_slope(lengths, sizes)
    sound, wrong = (
        median_interval(
            [loglog_slope(lengths, row) for row in measured_norms(lengths, given, seeds, SAMPLES, rng)], alpha
        )
        for given in (sizes, [sizes[-1]] * len(lengths))
    )
    works = sound.low <= known <= sound.high and sound.inside(upper=SLOPE) and wrong.outside(upper=SLOPE)
    return works, [
        Evidence(f"control: quadratic with slope {known:.3f}", sound.median, known, _UNIT, "control", *sound.ends),
        Evidence("control: constant step size, slope 0", wrong.median, 0.0, _UNIT, "control", *wrong.ends),
    ]


_UNIT = "log-log slope"


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
    # The control's two intervals and the claim's own share the level.
    alpha = case.sampling.alpha / 3
    seeds, lengths = case.sampling.seeds or seeds_needed(alpha), case.training.lengths
    own = with_step_size(case)
    means = _mean_norms(own, seeds)
    works, control = _control(case, seeds, alpha)
    reference = _full_batch(own)
    floor = FLOOR * gradient_norm(case.exact.gradient)
    slope: MedianInterval | None = None
    slopes: list[float] = []
    floor_found: list[Evidence] = []
    outcome = Outcome.INCONCLUSIVE
    limit = EXPLODED * gradient_norm(case.exact.gradient) or math.inf
    if not (means <= limit).all() or not np.isfinite(reference).all():
        count = int((~(means <= limit)).sum())
        who = f"{count:,} of {means.size:,} mean gradient norms are" if count else "that of full-batch descent is"
        summary = (
            f"training diverged: {who} not finite, or over {EXPLODED:g} times that at the start; no slope is read; "
            "choose a smaller training.step_size"
        )
    elif near_floor([*means.ravel(), *reference], floor):
        smallest = min(float(means.min()), *reference)
        summary = (
            f"slope refused: the smallest mean gradient norm {smallest:.1e} is at most {FLOOR_FACTOR:.0f} times its "
            f"rounding floor {floor:.1e}; choose a smaller training.step_size, or another seed if the network has died"
        )
    else:
        slopes = [loglog_slope(lengths, row) for row in means]
        slope = median_interval(slopes, alpha)
        exact_slope = loglog_slope(lengths, reference)
        control.insert(0, Evidence("full-batch gradient descent", exact_slope, SLOPE, _UNIT, "control"))
        reading = FloorReading(lengths, means, SLOPE, alpha)
        floor_found = floor_evidence(reading) if slope.exists else []
        outcome, summary = _decide(slope, slopes, works, exact_slope, means, reference, own, alpha, reading)
        excess = _excess(means, reference)
        floor_found.append(Evidence("last mean over full-batch descent's", excess, FULL_BATCH_FACTOR, "ratio", "floor"))
    return verdict_of(
        case,
        claim.id,
        outcome,
        summary,
        histories="zero",
        evidence=[
            *([Evidence("E||grad|| against N", slope.median, SLOPE, _UNIT, "rates", *slope.ends)] if slope else []),
            *floor_found,
            *control,
        ],
        series=_series(case, means, reference),
        assumptions=claim.checked_assumptions(case),
        minimum_detectable_effect=(
            detectable_margin(float(np.std(slopes, ddof=1)), seeds, alpha)
            if slope is not None and slope.exists
            else None
        ),
        alpha_spent=case.sampling.alpha,
        draws=seeds,
    )


def _decide(
    slope: MedianInterval,
    slopes: list[float],
    works: bool,
    exact_slope: float,
    means: Matrix,
    reference: list[float],
    case: Case,
    alpha: float,
    reading: FloorReading,
) -> tuple[Outcome, str]:
    seeds = len(slopes)
    if not slope.exists:
        needed = seeds_needed(alpha)
        return Outcome.INCONCLUSIVE, f"{seeds} seeds give no interval at this level: set sampling.seeds to {needed}"
    if not works:
        return Outcome.INCONCLUSIVE, "the control problem of known rate was not judged rightly, so no slope is read"
    lengths, medians = case.training.lengths, np.median(means, axis=0)
    words = (
        f"the gradient norm goes from {medians[0]:.3g} at N = {lengths[0]} to {medians[-1]:.3g} at {lengths[-1]}: "
        f"slope {slope.median:.3f}, in [{slope.low:.3f}, {slope.high:.3f}] over {seeds} seeds; the theorem needs "
        f"{fraction(SLOPE)}"
    )
    if case.training.largest_step:
        eta = case.training.step_size * lengths[0] ** SCHEDULE
        stable = f"{STABLE_SHARE:.0%} of what is stable there for full-batch descent"
        words = f"eta = {eta:.3g} at N = {lengths[0]}, {stable}: {words}"
    if slope.inside(upper=SLOPE):
        excess = _excess(means, reference)
        if reading.clear and excess <= FULL_BATCH_FACTOR:
            return Outcome.SUPPORTED, f"{words}; {floor_words(reading, SLOPE)}; not refuted on this range of N"
        if reading.clear:
            return Outcome.INCONCLUSIVE, (
                f"{words}; the last mean is {excess:.2g} times that of full-batch gradient descent, at most "
                f"{FULL_BATCH_FACTOR:g} is allowed: what keeps it there may be a floor that is still to be met; take "
                "longer runs (training.lengths)"
            )
        longest = reading.deciding_length()
        advice = f"runs of up to about {longest:,.0f} steps would decide" if longest else "take much longer runs"
        return Outcome.INCONCLUSIVE, f"{words}; {floor_words(reading, SLOPE)}; {advice} (training.lengths)"
    if slope.outside(upper=SLOPE):
        if exact_slope > SLOPE:
            return (
                Outcome.INCONCLUSIVE,
                f"{words}; not even full-batch gradient descent has this rate here (slope {exact_slope:.3f}): the runs "
                "are too short, raise training.step_size or training.lengths",
            )
        return Outcome.REFUTED, f"{words}; full-batch gradient descent has {exact_slope:.3f}{explained(case, RATE)}"
    return Outcome.INCONCLUSIVE, f"{words}; {more_seeds(slopes, alpha, SLOPE)}; or take longer runs (training.lengths)"


def _excess(means: Matrix, reference: list[float]) -> float:
    """Return the last mean gradient norm, the median over seeds, in units of full-batch descent's."""
    return float(np.median(means[:, -1])) / reference[-1]


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
    varies=("parameters",),
)
