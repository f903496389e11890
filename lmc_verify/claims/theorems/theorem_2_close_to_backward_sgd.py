"""Theorem 2 as it is stated: along training the estimate stays close to Backward SGD's on the same batch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from lmc_verify.cases import Case
from lmc_verify.cases.verdict import Evidence, Outcome, Verdict
from lmc_verify.claims.assumptions import BOUNDED, FINITE_SUPPORT, NO_DROPOUT, NO_SAMPLING, SMOOTH, UNIFORM
from lmc_verify.claims.bias_curves import (
    LMC_THEOREM_2,
    BiasCurves,
    FloorSlope,
    expect_vanishing,
    expect_with_exact_histories,
    late_steps,
    mixing_steps,
    scales,
    seeds_of,
    unreadable,
)
from lmc_verify.claims.claim import Claim, expect_not_applicable, not_applicable
from lmc_verify.claims.question import Answer, Question, measured
from lmc_verify.claims.reference import BackwardRows
from lmc_verify.claims.residuals import rounding_magnitudes, rounding_of_bias
from lmc_verify.claims.theory import Expectation
from lmc_verify.claims.thresholds import fraction
from lmc_verify.estimators import Estimator, checked_estimate, properties_of, with_beta
from lmc_verify.objective import Gradient, exact_pass, gradient_norm, gradient_sum
from lmc_verify.seeds import generator
from lmc_verify.training import (
    MeasuredRun,
    RunSpecification,
    TrainingRun,
    TrainingRuns,
    WeightedBatches,
    weighted_batches,
)
from lmc_verify.training.together.distances import DistancesTogether
from lmc_verify.training.together.norms import advance_together, runs_per_group

__all__ = ["CLOSE_TO_BACKWARD_SGD"]

SLOPE = 1.0
"""Smallest log-log slope of the distance in eps that the theorem needs."""

EARLY = (0.0, 0.125, 0.25, 0.5)
"""Snapshots before the late ones, as parts of the time that histories are given to settle: for the figure alone."""

NOUN = "distance from Backward SGD"

_Snapshot = tuple[float, float, torch.Tensor]
"""Root mean square distance, that of the estimate itself, and the exact gradient as one vector [parameters]; all in
units of the exact gradient's norm at the start."""


def check(case: Case) -> Verdict:
    """Train with eta = eta_0 eps^2, beta = beta_0 eps^2 from zero histories; eps^2 runs over 1, 1/2, 1/4, ...

    At steps at which the histories have had time to forget their start, the expected squared distance of the next
    estimate from Backward SGD's on the same batch is enumerated; both are at the run's parameters. The root of its mean
    must fall with a slope in eps of at least the theorem's.
    """
    claim = CLOSE_TO_BACKWARD_SGD
    inapplicable = not_applicable(case, claim)
    if inapplicable is not None:
        return inapplicable
    runs = [(math.sqrt(scale), with_beta(case.estimator, scale), case.training.step_size * scale) for scale in scales()]
    early = sorted({round(mixing_steps(case) * share) for share in EARLY})
    curves = _measure(case, runs, (*early, *late_steps(case)), seeds_of(case, case.sampling.alpha))
    no_slope = unreadable(case, claim, curves, Outcome.EXACT)
    if no_slope is not None:
        return no_slope
    slope = FloorSlope(curves, case.sampling.alpha)
    outcome = slope.outcome(SLOPE)
    largest, smallest = np.median(curves.floors, axis=0)[[0, -1]]
    start = np.median(curves.bias[:, -1, 0])
    summary = (
        f"the root mean square distance from Backward SGD on the same batch is {start:.2g} of the gradient at the "
        f"start and, once the histories have settled, goes from {largest:.2g} to {smallest:.2g} over eps = 1 ... "
        f"{curves.values[-1]:.2g}: slope in eps {slope.words}; the theorem needs {fraction(SLOPE)}"
        + ("; not refuted on this range of eps" if outcome is Outcome.SUPPORTED else "")
    )
    return slope.verdict(
        case,
        claim,
        outcome,
        summary,
        limit=SLOPE,
        evidence=[
            Evidence("root mean square distance at the start", float(start), group="rates"),
            Evidence("root mean square distance at the smallest eps", float(smallest), group="rates"),
        ],
        series=[
            curves.floor_series(f"{NOUN.capitalize()} against eps", "eps"),
            *(
                curves.curve_series(place, f"eps = {curves.values[place]:.2g}", f"{NOUN.capitalize()} along training")
                for place in (0, len(curves.values) - 1)
            ),
        ],
    )


def _measure(
    case: Case, runs: Sequence[tuple[float, Estimator, float]], steps: Sequence[int], seeds: int
) -> BiasCurves:
    """Measure the distance at some steps of runs from the estimators' initial histories.

    The runs of one seed see the same batches, as in `lmc_verify.claims.bias_curves.measure`.
    """
    planned = [
        RunSpecification(estimator, size, generator(case.seed, NOUN, case.sampling.replicate, seed))
        for seed in range(seeds)
        for _, estimator, size in runs
    ]
    found = _snapshots(case, planned, steps)
    shape = (seeds, len(runs), len(steps))
    distances, sizes = (np.array([[item[part] for item in row] for row in found]).reshape(shape) for part in (0, 1))
    gradients = torch.stack([torch.stack([item[2] for item in row]) for row in found])
    exact = gradients.numpy().reshape(*shape, -1)
    apart = np.linalg.norm(exact - exact[:, -1:], axis=3)[:, :, -len(late_steps(case)) :].max(axis=2)
    unit = _unit(case)
    largest = 2 * unit * float(sizes[np.isfinite(sizes)].max(initial=0.0))  # what is subtracted is about as large
    magnitudes, support = rounding_magnitudes(case.problem, case.exact), int(case.design.support_size)
    rounding = rounding_of_bias(case.problem, largest, magnitudes, support) / unit
    norms = np.linalg.norm(exact, axis=3)
    values = tuple(value for value, _, _ in runs)
    return BiasCurves(values, tuple(steps), distances, norms, apart, rounding=rounding, noun=NOUN)


def _unit(case: Case) -> float:
    return gradient_norm(case.exact.gradient) or 1.0


def _snapshots(case: Case, planned: list[RunSpecification], steps: Sequence[int]) -> list[list[_Snapshot]]:
    """Return what is measured of every run at every step: together where that is faster."""
    batches = weighted_batches(case.design)
    measured_at = dict.fromkeys(steps, 1)
    if not advance_together(case.problem, [MeasuredRun(run, measured_at) for run in planned]):
        return [_alone(case, run, steps, batches) for run in planned]
    out, size = list[list[_Snapshot]](), runs_per_group(case.problem)
    for start in range(0, len(planned), size):
        out += _together(case, planned[start : start + size], steps, batches)
    return out


def _together(
    case: Case, planned: list[RunSpecification], steps: Sequence[int], batches: WeightedBatches
) -> list[list[_Snapshot]]:
    runs = TrainingRuns(case.problem, planned, case.design)
    distances, out = DistancesTogether(case.problem, runs, planned, case.design), [list[_Snapshot]() for _ in planned]
    unit = _unit(case)
    for step in steps:
        while runs.step_count < step:
            runs.step()
        squares, sizes = distances.measure(batches, unit)
        exact = torch.cat([value.flatten(1).double() for value in runs.exact_gradient().values()], dim=1).cpu() / unit
        for place, own in enumerate(out):
            own.append((math.sqrt(squares[place]), math.sqrt(sizes[place]), exact[place]))
    return out


def _alone(case: Case, planned: RunSpecification, steps: Sequence[int], batches: WeightedBatches) -> list[_Snapshot]:
    estimator, weighting, unit = planned.estimator, case.weighting, _unit(case)
    run = TrainingRun(case.problem, estimator, case.design, step_size=planned.step_size, generator=planned.generator)
    out = list[_Snapshot]()
    for step in steps:
        while run.step_count < step:
            run.step()
        exact = exact_pass(run.problem)
        backward, square, size = BackwardRows(run.problem, exact), 0.0, 0.0
        for batch, probability in batches:
            made = checked_estimate(estimator, run.problem, run.state, batch, finite=False).gradient
            difference = gradient_sum(made, backward.on(batch, weighting), -1.0)
            square += probability * (gradient_norm(difference) / unit) ** 2
            size += probability * (gradient_norm(made) / unit) ** 2
        out.append((math.sqrt(square), math.sqrt(size), _vector(exact.gradient) / unit))
    return out


def _vector(gradient: Gradient) -> torch.Tensor:
    return torch.cat([value.reshape(-1).double() for value in gradient.values()]).cpu()


def expect(case: Case) -> Expectation:
    """Return what theory says: beta goes to zero with eps, so what matters is the estimator at beta = 0."""
    claim = CLOSE_TO_BACKWARD_SGD
    inapplicable = expect_not_applicable(case, claim)
    if inapplicable is not None:
        return inapplicable
    if gradient_norm(case.exact.gradient) == 0:
        return Expectation(None, "the exact gradient is zero at the start (a network that has died?)")
    if properties_of(case.estimator).exact:
        return Expectation(None, "the exact gradient is Backward SGD's estimate only where no batch differs from it")
    return expect_vanishing(case, expect_with_exact_histories(case, 0.0))


CLOSE_TO_BACKWARD_SGD = Claim(
    id="theorem-2/close-to-backward-sgd",
    title="Stays within order eps of Backward SGD on the same batch",
    statement=(
        "With eta = O(eps^2) and beta = O(eps^2) the estimate at step k differs from Backward SGD's gradient on the "
        "same batch, at the same parameters, by at most C eps + C rho^((k-1)/2) in the root mean square over batches "
        "(exponent unconfirmed). Tested as: once the histories have settled, the log-log slope of the distance in eps "
        f"is at least {fraction(SLOPE)}. The transient is theorem-2/contraction. That some C exists can never be more "
        "than not refuted on the tested range."
    ),
    source=f"{LMC_THEOREM_2}, Theorem 2",
    tier="rate",
    theory=(
        "Backward SGD has exact embeddings and auxiliary variables on the same batch; what is left between the two is "
        "what the histories lag behind (eta) and the incomplete fresh values that are mixed in (beta). The distance "
        "bounds the bias, for Backward SGD has none, and is larger: errors that cancel between batches count. What "
        "GAS, FM and Cluster-GCN drop stays at every eps: slope 0. All runs must stay close together, as for E5."
    ),
    question=Question(
        "Does {estimator}'s gradient stay within order eps of Backward SGD's on the same batch",
        exact=Answer("they are equal"),
        supported=Answer("slope in eps {size}", measured("floor"), unit="number"),
        refuted=Answer("slope in eps {size}", measured("floor"), unit="number"),
    ),
    required=(NO_DROPOUT, NO_SAMPLING, FINITE_SUPPORT),
    assumptions=(UNIFORM, SMOOTH, BOUNDED),
    check=check,
    expect=expect,
    varies=("parameters",),
    reads=("sampling.seeds", "training.step_size"),
    histories="zero",
)
