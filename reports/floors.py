"""How often is a rate called SUPPORTED, by the slope alone and with the floor? Prints the shares of simulated curves.

Curves fall from 1, as ``N^-r`` or onto a plateau of a third of their start, and are scattered by log-normal factors.
Every row draws its curves from a seed of its own, 0, 1, ...; a verdict takes the given number of curves ("seeds").
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lmc_verify.claims.theorems.theorem_3_rate import SLOPE
from lmc_verify.claims.thresholds import fraction
from lmc_verify.statistics import FloorReading, loglog_slope, median_interval

VERDICTS = 300
"""Verdicts of a row."""

SHORT, LONG = (32, 64, 128, 256, 512), (16, 64, 256, 1024)


@dataclass(frozen=True)
class Row:
    """Curves ``(1 - floor) (N / N_1)^-exponent + floor`` at some lengths N, and what a verdict is made of."""

    exponent: float
    floor: float
    lengths: Sequence[int]
    scatter: float
    seeds: int
    alpha: float

    def __str__(self) -> str:
        """Return the first three cells of the table."""
        floor = f" onto {fraction(self.floor)}" if self.floor else ", no floor"
        lengths = ", ".join(map(str, self.lengths))
        return f"r = {fraction(self.exponent)}{floor} | {lengths} | {self.scatter:.0%}, {self.seeds}, {self.alpha}"


ROWS = (
    Row(1 / 2, 1 / 3, SHORT, 0.10, 10, 0.01),
    Row(0.7, 1 / 3, SHORT, 0.10, 10, 0.01),
    Row(1 / 3, 0.0, SHORT, 0.10, 10, 0.01),
    Row(1 / 3, 0.0, SHORT, 0.05, 23, 0.001),
    Row(1 / 3, 0.0, LONG, 0.05, 23, 0.001),
)


def shares(row: Row, seed: int, verdicts: int = VERDICTS) -> tuple[float, float]:
    """Return the share of verdicts that call the rate SUPPORTED, by the slope alone and with the floor."""
    lengths, rng = np.array(row.lengths, dtype=np.float64), np.random.default_rng(seed)
    mean = (1 - row.floor) * (lengths / lengths[0]) ** -row.exponent + row.floor
    slope = both = 0
    for _ in range(verdicts):
        curves = mean * np.exp(row.scatter * rng.standard_normal((row.seeds, lengths.size)))
        if median_interval([loglog_slope(lengths, curve) for curve in curves], row.alpha).inside(upper=SLOPE):
            slope += 1
            both += FloorReading(lengths.tolist(), curves, SLOPE, row.alpha).clear
    return slope / verdicts, both / verdicts


def main(words: Sequence[str] | None = None) -> None:
    """Print the table."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args(words)
    print("| decay | lengths | scatter, seeds, alpha | slope alone | with the floor |")
    print("|---|---|---|---|---|")
    for seed, row in enumerate(ROWS):
        slope, both = shares(row, seed)
        print(f"| {row} | {slope:.2f} | {both:.2f} |", flush=True)


if __name__ == "__main__":
    main()
