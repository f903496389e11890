"""Tests, intervals, radii, rates and rounding on fixed draws."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from lmc_verify.controls.reference.document import Quantities, inputs_of
from lmc_verify.statistics import (
    AsymptoticBias,
    BettingProcess,
    BiasRadius,
    BiasTest,
    ErrorLedger,
    MeanInterval,
    MomentAccumulator,
    combine,
    compare_frequencies,
    decide,
    detectable_margin,
    draws_to_detect,
    expected_norm,
    fit_decay,
    gamma,
    known_slope,
    loglog_slope,
    median_interval,
    near_floor,
    seeds_needed,
    seeds_to_detect,
    smallest_detectable_bias,
)
from lmc_verify.statistics.betting import bet_grid

__all__ = ["quantities"]


def quantities() -> Quantities:
    """Return what computes each quantity."""
    population, large = (inputs_of("statistics")[name] for name in ("population", "large-population"))
    return {
        "bet-grid": bet_grid,
        "bet-grid-long": lambda: bet_grid(smallest=2.0**-13),
        "betting": partial(_betting, 0.0, two_sided=False),
        "betting-two-sided": partial(_betting, 0.01, two_sided=True),
        "bias-test": partial(_bias_test, None),
        "bias-test-population": partial(_bias_test, population),
        "first-rejections": _rejections,
        "asymptotic-lower": _asymptotic,
        "combine": lambda: combine([1.5, -2.75, 0.75]),
        "frequencies": lambda: [
            compare_frequencies({"event": p}, {"event": count}, 20, 0.01).worst.p_value
            for p, count in inputs_of("statistics")["counts"]
        ],
        "interval": partial(_interval, 0.05),
        "interval-range": partial(_interval, 0.2, -1.0, 2.0),
        "interval-population": partial(_interval, 0.05, population=population),
        "radius": partial(_radius, None),
        "radius-population": partial(_radius, large),
        "gamma": lambda: [gamma(terms) for terms in (1, 1000, 10**9)],
        "decide": lambda: [decide(residual, 1.0) for residual in (0.0, 1.0, 1.01, 99.0, 101.0)],
        "moments": _moments,
        "ledger": lambda: [row.share for row in ErrorLedger({"one": 3.0, "other": 1.0}, 1e-6).rows()],
        "median-interval": _median,
        "seeds-needed": lambda: [seeds_needed(alpha) for alpha in (0.5, 0.1, 1e-3, 1e-6)],
        "detectable-margin": lambda: detectable_margin(0.3, 30, 1e-3),
        "seeds-to-detect": lambda: seeds_to_detect(0.8, 1.0, 1e-3),
        "loglog-slope": lambda: loglog_slope([1, 2, 5, 9], [3.0, 1.0, 0.7, 0.2]),
        "near-floor": lambda: [near_floor([2.0, 9.0], floor) for floor in (1.0, 0.4, 0.3999)],
        "fit-decay": _decay,
        "detectable": _detectable,
        "draws": _draws,
        "quadratic-norms": lambda: [expected_norm(size) for size in (0.5, 0.2, 0.05)],
        "quadratic-slope": lambda: known_slope([10, 100, 1000], [0.5, 0.2, 0.05]),
    }


def _betting(margin: float, *, two_sided: bool) -> list[float]:
    given, process = inputs_of("statistics"), BettingProcess(1.0, two_sided=two_sided)
    for value, mean in zip(given["draws"], given["means"], strict=True):
        process.update(value, mean, margin=margin)
    return [float(process.log_value), float(process.log_maximum)]


def _bias_test(population: int | None) -> list[float]:
    given = inputs_of("statistics")
    test = BiasTest(given["bounds"], population=population, tolerance=given["tolerance"])
    for draw in given["vectors"]:
        test.update(draw)
    return [test.log_value, test.log_maximum, *test.block_log_values.values()]


def _rejections() -> dict[str, int]:
    """Return the number of draws after which the claim and each block are rejected; 0 where they are not."""
    given = inputs_of("statistics")
    test, first = BiasTest(given["bounds"], tolerance=given["tolerance"]), dict.fromkeys(["claim", *given["bounds"]], 0)
    for draw in given["vectors"] * given["times"]:
        test.update(draw)
        rejected = [*test.rejected_blocks(given["alpha"]), *(["claim"] if test.rejects(given["alpha"]) else [])]
        first |= {name: test.draws for name in rejected if not first[name]}
    return first


def _asymptotic() -> dict[str, float]:
    given = inputs_of("statistics")
    found = AsymptoticBias(list(given["bounds"]), given["alpha"], tolerance=given["tolerance"])
    for draw in given["vectors"] * given["times"]:
        found.update(draw)
    return found.lower()


def _interval(alpha: float, *scale: float, population: int | None = None) -> list[float]:
    found = MeanInterval(alpha, *scale, population=population)
    for value in inputs_of("statistics")["units"]:
        found.update(value)
    return list(found.interval())


def _radius(population: int | None) -> list[float]:
    given = inputs_of("statistics")
    found = BiasRadius(given["bounds"], 0.05, population=population, tolerance=given["tolerance"])
    for draw in given["vectors"] * given["times"]:
        found.update(draw)
    return [found.upper(), *found.block_uppers().values()]


def _moments() -> list[float]:
    moments = MomentAccumulator()
    for point, probability in (([1.0, -2.0], 1 / 2), ([4.0, 0.5], 1 / 3), ([-3.0, 8.0], 1 / 6)):
        moments.add(np.array(point), probability)
    found = moments.result()
    return [*found.mean.tolist(), *found.variance.tolist(), found.mean_norm]


def _median() -> list[float]:
    found = median_interval(inputs_of("statistics")["slopes"], 0.02)
    return [found.median, found.low, found.high, found.miss]


_SPREADS = {"known": None, "learned": 0.4}
"""By name, the total standard deviation if the direction of the bias must be learned."""


def _detectable() -> dict[str, float]:
    return {
        # The end of a search that is as coarse as what it is for allows.
        name: round(smallest_detectable_bias(0.3, 2000, 1e-4, spread=spread, blocks=2), 4)
        for name, spread in _SPREADS.items()
    }


def _draws() -> dict[str, int]:
    return {name: draws_to_detect(0.2, 0.3, 1e-4, spread=spread, blocks=2) for name, spread in _SPREADS.items()}


def _decay() -> dict[str, Any]:
    steps = list(range(1, 13))
    fit = fit_decay(steps, [0.02 + 0.5 * 0.7 ** (step - 1) for step in steps])
    # Least squares are flat at their minimum: a search resolves the root of rounding.
    rounded = [round(value, 5) for value in (fit.floor, fit.amplitude, fit.rate)]
    return {"curve": [round(value, 8) for value in fit(steps).tolist()], "rounded": rounded}
