"""Theorem 2 and its consequences E4 and E5: the bias along training decays to a floor, and what the floor depends on.

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

from lmc_verify.batches import Batch
from lmc_verify.case import Case, prepared_state
from lmc_verify.claims.base import FINITE_SUPPORT, NO_DROPOUT, UNIFORM, Assumption, Claim, not_applicable, verdict_of
from lmc_verify.claims.compensation import SOURCE
from lmc_verify.claims.expectation import Expectation, expect_from_halo
from lmc_verify.claims.smoothness import BOUNDED, SMOOTH
from lmc_verify.claims.verdict import Evidence, Outcome, Series, Verdict
from lmc_verify.estimators import Compensated, Estimator, with_beta
from lmc_verify.problem import gradient_norm
from lmc_verify.seeds import generator
from lmc_verify.statistics.rates import (
    MedianInterval,
    detectable_margin,
    fit_decay,
    loglog_slope,
    median_interval,
    near_floor,
    seeds_needed,
)
from lmc_verify.training import TrainingRun, conditional_bias, weighted_batches

__all__ = ["DECAY_AND_FLOOR", "FLOOR_IN_BETA", "FLOOR_IN_STEP_SIZE"]

Matrix = npt.NDArray[np.float64]

HALVINGS = 4
"""A grid holds the given value and this many halvings of it."""

LINEAR = 0.2
"""A log-log slope within this distance of 1 counts as linear."""

NEGLIGIBLE = 1e-10
"""A bias below this part of the gradient's norm is rounding: nothing can be learned from its slope."""

FIT_ERROR = 0.5
"""Largest typical relative error of the fit of decay and floor at which its numbers are still read."""

SNAPSHOTS = 4
"""Late snapshots that a floor is averaged over."""


@dataclass(frozen=True)
class _Study:
    """Curves of the bias: one for each seed and each value of what is varied."""

    values: tuple[float, ...]
    steps: tuple[int, ...]
    curves: Matrix  # [seeds, values, steps], in units of the exact gradient's norm at the start

    @property
    def floors(self) -> Matrix:
        """Mean over the late snapshots [seeds, values]."""
        late: Matrix = self.curves[:, :, -SNAPSHOTS:].mean(axis=2)
        return late

    @property
    def vanishes(self) -> bool:
        """Whether every bias is rounding."""
        return bool((self.curves <= NEGLIGIBLE).all())


def _mixing_steps(case: Case) -> int:
    """Return the number of steps after which histories at fixed parameters have forgotten their start.

    A row is refreshed with probability pi a step, and 2 L layers of histories follow each other; each is given the
    time in which all but a thousandth of the rows are refreshed.
    """
    missed = 1 - float(case.design.inclusion_probabilities().min())
    if missed <= 0:
        return 2 * case.problem.num_layers
    return 2 * case.problem.num_layers * math.ceil(math.log(1e-3) / math.log(missed))


def _late_steps(case: Case, after: int) -> tuple[int, ...]:
    """Return the steps of the late snapshots, far enough apart for most rows to be refreshed in between."""
    apart = math.ceil(1 / float(case.design.inclusion_probabilities().min()))
    return tuple(after + apart * index for index in range(SNAPSHOTS))


def _seeds(case: Case, alpha: float) -> int:
    return case.sampling.seeds or seeds_needed(alpha)


def _study(
    case: Case, name: str, runs: Sequence[tuple[float, Estimator, float]], steps: Sequence[int], seeds: int
) -> _Study:
    """Measure the bias at some steps of every run, given as (value, estimator, step size), for every seed."""
    batches = weighted_batches(case.design)
    unit = gradient_norm(case.exact.gradient) or 1.0
    curves = np.empty((seeds, len(runs), len(steps)))
    for seed in range(curves.shape[0]):
        for place, (_, estimator, step_size) in enumerate(runs):
            run = TrainingRun(
                case.problem,
                estimator,
                case.design,
                step_size=step_size,
                generator=generator(case.seed, name, case.sampling.replicate, seed, place),
                state=prepared_state(dataclasses.replace(case, estimator=estimator), "zero"),
            )
            for index, step in enumerate(steps):
                while run.step_count < step:
                    run.step()
                exact = case.exact if step_size == 0 else None
                bias, _ = conditional_bias(run.problem, estimator, run.state, batches, exact)
                curves[seed, place, index] = gradient_norm(bias) / unit
    return _Study(tuple(value for value, _, _ in runs), tuple(steps), curves)


def _slopes(study: _Study, floors: Matrix) -> list[float]:
    return [loglog_slope(study.values, floors[seed]) for seed in range(len(floors))]


def _floor_series(study: _Study, floors: Matrix, figure: str, x_label: str) -> Series:
    order = np.argsort(study.values)
    return Series(
        "median over seeds",
        tuple(float(study.values[index]) for index in order),
        tuple(float(value) for value in np.median(floors, axis=0)[order]),
        figure,
        x_label,
        "bias / gradient at the start",
        tuple(float(value) for value in floors.min(axis=0)[order]),
        tuple(float(value) for value in floors.max(axis=0)[order]),
        "loglog",
    )


def _slope_evidence(name: str, slope: MedianInterval, limit: float) -> Evidence:
    return Evidence(name, slope.median, limit, "log-log slope", "rates", slope.low, slope.high)


def _decide(slope: MedianInterval, lower: float, upper: float = math.inf) -> Outcome:
    if slope.inside(lower, upper):
        return Outcome.SUPPORTED
    return Outcome.REFUTED if slope.outside(lower, upper) else Outcome.INCONCLUSIVE


def _words(slope: MedianInterval) -> str:
    return f"{slope.median:.2f}, in [{slope.low:.2f}, {slope.high:.2f}] over {slope.draws} seeds"


def _verdict(
    case: Case,
    claim: Claim,
    study: _Study,
    slope: MedianInterval,
    slopes: Sequence[float],
    outcome: Outcome,
    summary: str,
    *,
    limit: float,
    alpha: float,
    evidence: Sequence[Evidence] = (),
    series: Sequence[Series] = (),
) -> Verdict:
    if outcome is Outcome.INCONCLUSIVE and slope.miss == 1:
        summary = f"{slope.draws} seeds give no interval at this level: set sampling.seeds to {seeds_needed(alpha)}"
    return verdict_of(
        case,
        claim.id,
        outcome,
        summary,
        histories="zero",
        evidence=[_slope_evidence("floor", slope, limit), *evidence],
        series=tuple(series),
        assumptions=claim.checked_assumptions(case),
        minimum_detectable_effect=detectable_margin(float(np.std(slopes)), len(slopes), alpha),
        alpha_spent=case.sampling.alpha,
        draws=len(slopes),
    )


def _without_bias(case: Case, claim: Claim, study: _Study, outcome: Outcome) -> Verdict:
    return verdict_of(
        case,
        claim.id,
        outcome,
        f"no bias at any step: at most {study.curves.max():.1e} of the gradient's norm",
        histories="zero",
        assumptions=claim.checked_assumptions(case),
    )


def _refused(case: Case, claim: Claim, study: _Study) -> Verdict:
    return verdict_of(
        case,
        claim.id,
        Outcome.INCONCLUSIVE,
        f"some floor is rounding (below {5 * NEGLIGIBLE:.0e} of the gradient's norm): a slope would show rounding; "
        f"choose "
        "a larger training.step_size or estimator.beta, or another seed if the network has died",
        histories="zero",
        evidence=[
            Evidence(f"floor at {value:.3g}", float(floor), group="floors")
            for value, floor in zip(study.values, study.floors.min(axis=0), strict=True)
        ],
        assumptions=claim.checked_assumptions(case),
    )


# ---------------------------------------------------------------------------------------------------------- E4


def _has_beta(case: Case) -> tuple[bool | None, str]:
    beta = getattr(case.estimator, "beta", None)
    return isinstance(beta, float) and beta > 0, f"beta = {beta}" if beta is not None else "the estimator has no beta"


BETA_ABOVE_ZERO = Assumption("beta-above-zero", "beta is one number above zero", _has_beta)


def check_floor_in_beta(case: Case) -> Verdict:
    """Hold the parameters, let the histories settle under beta, beta/2, ... beta/16, and fit the slope of the bias."""
    claim = FLOOR_IN_BETA
    inapplicable = not_applicable(case, claim, NO_DROPOUT.id, FINITE_SUPPORT.id, BETA_ABOVE_ZERO.id)
    if inapplicable is not None:
        return inapplicable
    beta = float(getattr(case.estimator, "beta", 0.0))
    factors = [0.5**index for index in range(HALVINGS + 1)]
    runs = [(beta * factor, with_beta(case.estimator, factor), 0.0) for factor in factors]
    study = _study(
        case, "floor in beta", runs, _late_steps(case, _mixing_steps(case)), _seeds(case, case.sampling.alpha)
    )
    if study.vanishes:
        return _without_bias(case, claim, study, Outcome.NOT_APPLICABLE)
    if near_floor(study.floors, NEGLIGIBLE):
        return _refused(case, claim, study)
    slopes = _slopes(study, study.floors)
    slope = median_interval(slopes, case.sampling.alpha)
    outcome = _decide(slope, 1 - LINEAR, 1 + LINEAR)
    largest, smallest = np.median(study.floors, axis=0)[[0, -1]]
    summary = (
        f"the floor falls from {largest:.2g} of the gradient at beta = {beta:.3g} to {smallest:.2g} at "
        f"{study.values[-1]:.3g}: "
        f"slope {_words(slope)}; linear is 1 within {LINEAR}"
    )
    series = [_floor_series(study, study.floors, "Floor of the bias against beta", "beta")]
    return _verdict(
        case, claim, study, slope, slopes, outcome, summary, limit=1.0, alpha=case.sampling.alpha, series=series
    )


def expect_floor_in_beta(case: Case) -> Expectation:
    """Return what theory says of E4."""
    broken = next((item for item in FLOOR_IN_BETA.checked_assumptions(case) if item.holds is False), None)
    if broken is not None:
        return Expectation(Outcome.NOT_APPLICABLE, broken.statement)
    assert isinstance(case.estimator, Compensated)
    if expect_at_zero_beta(case).outcome is Outcome.REFUTED:
        return Expectation(Outcome.REFUTED, "a bias remains at beta = 0, so the floor does not vanish with beta")
    blended = expect_from_halo(case, (batch for batch, _ in case.design.enumerate()), histories="exact")
    if blended.outcome is Outcome.EXACT:
        return Expectation(Outcome.NOT_APPLICABLE, "no bias at any beta: " + blended.reason)
    return Expectation(Outcome.SUPPORTED, "the fresh values' error enters with weight beta, to first order")


def expect_at_zero_beta(case: Case) -> Expectation:
    """Return what theory says of the estimator at beta = 0 with exact histories, batch by batch."""
    frozen = dataclasses.replace(case, estimator=with_beta(case.estimator, 0.0))
    return expect_from_halo(frozen, (batch for batch, _ in case.design.enumerate()), histories="exact")


# ---------------------------------------------------------------------------------------------------------- E5


def check_floor_in_step_size(case: Case) -> Verdict:
    """Train with step sizes eta, eta/2, ... eta/16, and fit the slope of the bias after the transient."""
    claim = FLOOR_IN_STEP_SIZE
    inapplicable = not_applicable(case, claim, NO_DROPOUT.id, FINITE_SUPPORT.id)
    if inapplicable is not None:
        return inapplicable
    sizes = [case.training.step_size / 2**index for index in range(HALVINGS + 1)]
    runs = [(size, case.estimator, size) for size in sizes]
    study = _study(
        case, "floor in step size", runs, _late_steps(case, _mixing_steps(case)), _seeds(case, case.sampling.alpha)
    )
    if study.vanishes:
        return _without_bias(case, claim, study, Outcome.EXACT)
    if near_floor(study.floors, NEGLIGIBLE):
        return _refused(case, claim, study)
    slopes = _slopes(study, study.floors)
    slope = median_interval(slopes, case.sampling.alpha)
    outcome = _decide(slope, 0.5)
    largest, smallest = np.median(study.floors, axis=0)[[0, -1]]
    summary = (
        f"the bias falls from {largest:.2g} of the gradient at step size {sizes[0]:.3g} to {smallest:.2g} at "
        f"{sizes[-1]:.3g}: slope {_words(slope)}; the theorem needs 1/2"
    )
    series = [_floor_series(study, study.floors, "Bias against step size", "step size")]
    return _verdict(
        case, claim, study, slope, slopes, outcome, summary, limit=0.5, alpha=case.sampling.alpha, series=series
    )


def expect_floor_in_step_size(case: Case) -> Expectation:
    """Return what theory says of E5: the floor vanishes with the step size if the frozen estimator is unbiased."""
    broken = next((item for item in FLOOR_IN_STEP_SIZE.checked_assumptions(case)[:2] if item.holds is False), None)
    if broken is not None:
        return Expectation(Outcome.NOT_APPLICABLE, broken.statement)
    if expect_at_zero_beta(case).outcome is Outcome.REFUTED:
        return _expect_vanishing(case, expect_at_zero_beta(case))
    frozen = expect_from_halo(case, _batches(case), histories="exact")
    if frozen.outcome is not Outcome.EXACT:
        return Expectation(None, "beta leaves a floor of its own, which the step size does not change")
    return _expect_vanishing(case, frozen)


def _batches(case: Case) -> list[Batch]:
    return [batch for batch, _ in case.design.enumerate()]


def _expect_vanishing(case: Case, frozen: Expectation) -> Expectation:
    if frozen.outcome is Outcome.REFUTED:
        return Expectation(Outcome.REFUTED, f"{frozen.reason}: a bias remains however slowly the parameters move")
    if frozen.outcome is None:
        return frozen
    stale = expect_from_halo(case, _batches(case), histories="zero")
    if stale.outcome is Outcome.EXACT:
        return Expectation(Outcome.EXACT, f"no bias at any step: {stale.reason}")
    return Expectation(Outcome.SUPPORTED, "histories lag behind by an amount in proportion to the step size")


# --------------------------------------------------------------------------------------------------- Theorem 2


def check_decay_and_floor(case: Case) -> Verdict:
    """Train with eta = eta_0 eps^2, beta = beta_0 eps^2 from zero histories; fit decay and floor of the bias together.

    The floor's slope in eps is at least 1 if it is at least 1/2 in eps^2, and the decay is geometric if the fitted rate
    is below 1. eps^2 runs over 1, 1/2, ... 1/16.
    """
    claim = DECAY_AND_FLOOR
    inapplicable = not_applicable(case, claim, NO_DROPOUT.id, FINITE_SUPPORT.id)
    if inapplicable is not None:
        return inapplicable
    alpha = case.sampling.alpha / 2  # two intervals share the level
    scales = [0.5**index for index in range(HALVINGS + 1)]
    runs = [(math.sqrt(scale), with_beta(case.estimator, scale), case.training.step_size * scale) for scale in scales]
    mixing = _mixing_steps(case)
    early = sorted({round(mixing * (index / 10) ** 2) for index in range(10)})
    study = _study(case, "decay and floor", runs, [*early, *_late_steps(case, mixing)], _seeds(case, alpha))
    if study.vanishes:
        return _without_bias(case, claim, study, Outcome.EXACT)
    if near_floor(study.floors, NEGLIGIBLE):
        return _refused(case, claim, study)
    fits = [[fit_decay(study.steps, curve) for curve in curves] for curves in study.curves]
    floors = np.array([[max(fit.floor, NEGLIGIBLE) for fit in row] for row in fits])
    slopes, rates = _slopes(study, floors), [float(np.median([fit.rate for fit in row])) for row in fits]
    errors = float(np.median([fit.error for row in fits for fit in row]))
    slope, rate = (median_interval(values, alpha) for values in (slopes, rates))
    outcome = _decide(slope, 1.0)
    if outcome is Outcome.SUPPORTED and not (rate.inside(0.0, 1.0) and errors <= FIT_ERROR):
        outcome = Outcome.INCONCLUSIVE
    largest, smallest = np.median(floors, axis=0)[[0, -1]]
    summary = (
        f"the bias decays by a factor {rate.median:.3f} a step (in [{rate.low:.3f}, {rate.high:.3f}]) to a floor that "
        f"falls from {largest:.2g} to {smallest:.2g} of the gradient over eps = 1 ... {study.values[-1]:.2g}: slope "
        f"in eps {_words(slope)}, the theorem needs 1; "
        + (
            "not refuted on this range of eps"
            if outcome is Outcome.SUPPORTED
            else f"typical error of the fit {errors:.0%}"
        )
    )
    curves = [
        Series(
            f"eps = {study.values[place]:.2g}",
            tuple(map(float, study.steps)),
            tuple(float(value) for value in np.median(study.curves[:, place], axis=0)),
            "Bias along training",
            "step",
            "bias / gradient at the start",
            tuple(float(value) for value in study.curves[:, place].min(axis=0)),
            tuple(float(value) for value in study.curves[:, place].max(axis=0)),
            "semilogy",
        )
        for place in (0, HALVINGS // 2, HALVINGS)
    ]
    return _verdict(
        case,
        claim,
        study,
        slope,
        slopes,
        outcome,
        summary,
        limit=1.0,
        alpha=alpha,
        evidence=[
            Evidence("decay", rate.median, 1.0, "factor per step", "rates", rate.low, rate.high),
            Evidence("typical error of the fit", errors, FIT_ERROR, "relative", "rates"),
        ],
        series=[_floor_series(study, floors, "Floor of the bias against eps", "eps"), *curves],
    )


def expect_decay_and_floor(case: Case) -> Expectation:
    """Return what theory says: beta goes to zero with eps, so what matters is the estimator at beta = 0."""
    broken = next((item for item in DECAY_AND_FLOOR.checked_assumptions(case)[:2] if item.holds is False), None)
    if broken is not None:
        return Expectation(Outcome.NOT_APPLICABLE, broken.statement)
    return _expect_vanishing(case, expect_at_zero_beta(case))


_LMC = "LMC (Shi, Liang and Wang, ICLR 2023)"

FLOOR_IN_BETA = Claim(
    id="e4/floor-linear-in-beta",
    title="A constant beta leaves a floor, linear in beta",
    statement=(
        "At fixed parameters and constant beta > 0 the bias does not vanish however long the histories settle; its "
        "floor is linear in beta: its log-log slope is 1."
    ),
    source=SOURCE,
    tier="rate",
    theory=(
        "A blended halo value is wrong by beta times the error of the fresh, incomplete value, and stays so. GAS, FM "
        "and other estimators that drop halo messages have a floor at beta = 0, and a slope near 0."
    ),
    assumptions=(NO_DROPOUT, FINITE_SUPPORT, BETA_ABOVE_ZERO),
    check=check_floor_in_beta,
    expect=expect_floor_in_beta,
)

FLOOR_IN_STEP_SIZE = Claim(
    id="e5/floor-in-step-size",
    title="The bias falls with the step size",
    statement=(
        "Along training by stochastic gradient descent with step size eta the mean norm of the bias falls with a "
        "log-log slope of at least 1/2 in eta."
    ),
    source=f"{_LMC}, Theorem 2, with beta = 0",
    tier="rate",
    theory=(
        "Histories are as old as the last visit of their rows; in that time the parameters move by an amount in "
        "proportion to eta. The theorem needs a slope of 1/2, plain Lipschitz arguments give 1. What an estimator "
        "drops does not depend on eta: GAS has slope 0."
    ),
    assumptions=(NO_DROPOUT, FINITE_SUPPORT, UNIFORM, SMOOTH, BOUNDED),
    check=check_floor_in_step_size,
    expect=expect_floor_in_step_size,
)

DECAY_AND_FLOOR = Claim(
    id="theorem-2/decay-and-floor",
    title="The bias decays to a floor of order eps",
    statement=(
        "With eta = O(eps^2) and beta = O(eps^2) the bias at step k is at most C eps + C rho^((k-1)/2) for some C > 0 "
        "and 0 < rho < 1 (exponent unconfirmed). Tested as: geometric decay to a floor whose log-log slope in eps is "
        "at least 1. That some C exists can never be more than not refuted on the tested range."
    ),
    source=f"{_LMC}, Theorem 2",
    tier="rate",
    theory=(
        "The transient is that of histories from zero, which are refreshed at random; the floor comes from parameters "
        "that move (eta) and from incomplete fresh values (beta). What an estimator drops remains at every eps: GAS, "
        "FM and Cluster-GCN have a floor of slope 0."
    ),
    assumptions=(NO_DROPOUT, FINITE_SUPPORT, UNIFORM, SMOOTH, BOUNDED),
    check=check_decay_and_floor,
    expect=expect_decay_and_floor,
)
