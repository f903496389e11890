"""How often do the ends of `AsymptoticBias` fail? Prints shares of simulated streams in which one fails at some look.

The lower end fails where it exceeds the mean's size, the upper end where it falls below. Streams of one entry are
looked at 16 times, up to 2,000 draws. Every row draws its streams from a seed of its own, 0, 1, ...
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lmc_verify.statistics.asymptotic.bias import SPREAD_OUT, first_look, upper_share
from lmc_verify.statistics.asymptotic.projections import log_capital, scale_of
from lmc_verify.statistics.asymptotic.spheres import PRIORS, skewed_level, squared_reach

Array = npt.NDArray[np.float64]
Sampler = Callable[[np.random.Generator, tuple[int, ...]], Array]

STREAMS, DRAWS = 300, 2000
LEVELS = (0.05, 1e-3)
LOOKS = tuple(np.unique(np.geomspace(32, DRAWS, 16).astype(int)).tolist())


@dataclass(frozen=True)
class Row:
    """Independent draws of one entry, with their mean."""

    name: str
    draw: Sampler
    mean: float = 0.0


def _one_in_a_hundred(values: Sampler) -> Sampler:
    return lambda rng, shape: (rng.random(shape) < 0.01) * values(rng, shape)


ROWS = (
    Row("normal", np.random.Generator.standard_normal),
    Row("exponential", np.random.Generator.standard_exponential, 1.0),
    Row("exponential, less its mean", lambda rng, shape: rng.standard_exponential(shape) - 1),
    Row("log-normal", lambda rng, shape: np.exp(rng.standard_normal(shape)), math.exp(0.5)),
    Row("log-normal, less its mean", lambda rng, shape: np.exp(rng.standard_normal(shape)) - math.exp(0.5)),
    Row("t, 3 degrees of freedom", lambda rng, shape: rng.standard_t(3, shape)),
    Row("1 in 100 is normal, the others are 0", _one_in_a_hundred(np.random.Generator.standard_normal)),
    Row("1 in 100 is exponential, the others are 0", _one_in_a_hundred(np.random.Generator.standard_exponential), 0.01),
    Row("1 in 100 is 99, the others are -1", lambda rng, shape: np.where(rng.random(shape) < 0.01, 99.0, -1.0)),
)


def lower_failures(values: Array, norm: float, alpha: float) -> npt.NDArray[np.bool_]:
    """Return in which streams the lower end exceeds a norm at some look.

    Args:
        values: draws of one entry [streams, draws].
        norm: that of their mean.
        alpha: error probability of this end.
    """
    values = np.sign(np.cumsum(values, axis=1)[:, :-1]) * values[:, 1:]  # on the direction of the draws before
    first = first_look(2 * alpha)
    squares, largest = np.cumsum(values**2, axis=1), np.maximum.accumulate(values**2, axis=1)
    spread_out = (squares >= SPREAD_OUT * largest) & (largest > 0)
    spread_out[:, : first - 1] = False
    starts = np.where(spread_out.any(axis=1), spread_out.argmax(axis=1) + 1, values.shape[1] + 1)
    scales = np.array([scale_of(row[:start]) for row, start in zip(values, starts, strict=True)])[:, np.newaxis]
    scaled = (values - norm) / np.where(scales > 0, scales, 1.0)
    below = np.maximum(-scaled, 0.0)
    sums, cubes, deepest = scaled.cumsum(axis=1), (below**3).cumsum(axis=1), np.maximum.accumulate(below, axis=1)
    squares = np.cumsum(scaled**2, axis=1)
    failed = np.zeros(len(values), dtype=np.bool_)
    for at in (draws - 2 for draws in LOOKS):
        capital = log_capital(sums[:, at], squares[:, at], cubes[:, at], deepest[:, at])
        failed |= (starts <= at + 1) & (sums[:, at] > 0) & (capital >= -math.log(alpha) + math.log(2))
    return failed


def upper_ends(values: Array, alpha: float) -> Array:
    """Return the smallest upper end of every look and those before [streams, looks].

    Args:
        values: draws of one entry [streams, draws].
        alpha: error probability of this end.
    """
    first, best = first_look(2 * alpha), np.full(len(values), math.inf)
    units, found = np.full(len(values), math.nan), []
    for draws in LOOKS:
        past = values[:, :draws]
        averages = past.mean(axis=1, keepdims=True)
        centred = past - averages
        trace, largest = (centred**2).sum(axis=1), (centred**2).max(axis=1)
        if draws >= first:
            known = largest * SPREAD_OUT <= trace
            units = np.where(np.isnan(units) & known & (trace > 0), trace / draws, units)
            ready = ~np.isnan(units) & (largest <= upper_share(alpha) * trace)
            skewness = np.abs((centred**3).sum(axis=1)) / np.where(trace > 0, trace, 1.0) ** 1.5
            level = skewed_level(2 * (-math.log(alpha) + math.log(2) + math.log(PRIORS.size)), skewness)
            priors = PRIORS / np.where(ready, units, 1.0)[:, np.newaxis]
            radius = np.sqrt(squared_reach(trace[:, np.newaxis], draws, level, priors)) / draws
            best = np.minimum(best, np.where(ready, np.abs(averages[:, 0]) + radius, math.inf))
        found.append(best)
    return np.stack(found, axis=1)


def shares(row: Row, alpha: float, values: Array) -> tuple[float, float, float]:
    """Return how often the lower and the upper end fail, and how often there is an upper end after all draws.

    Args:
        row: what is drawn.
        alpha: error probability of both ends together.
        values: its draws [streams, draws].
    """
    uppers = upper_ends(values, alpha / 2)
    failed = lower_failures(values, abs(row.mean), alpha / 2)
    return float(failed.mean()), float((uppers[:, -1] < abs(row.mean)).mean()), float(np.isfinite(uppers[:, -1]).mean())


def main(words: Sequence[str] | None = None) -> None:
    """Print the table."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args(words)
    print("| draws | alpha | lower end fails | upper end fails | upper end is there |")
    print("|---|---|---|---|---|")
    for seed, row in enumerate(ROWS):
        values = row.draw(np.random.default_rng(seed), (STREAMS, DRAWS))
        for alpha in LEVELS:
            low, high, known = shares(row, alpha, values)
            print(f"| {row.name} | {alpha} | {low:.3f} | {high:.3f} | {known:.3f} |", flush=True)


if __name__ == "__main__":
    main()
