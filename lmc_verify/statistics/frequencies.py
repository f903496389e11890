"""Do independent draws occur as often as a stated distribution says? Exact binomial tests of many events at once.

The number of draws in which an event of probability p occurs is binomial, so each event has an exact p-value, however
small p is. With every event tested at ``alpha / events`` (Bonferroni), draws from the stated distribution are rejected
with probability at most alpha, whatever the number of draws; there is no asymptotics, and no cell is too small.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

__all__ = ["Deviation", "FrequencyTest", "compare_frequencies", "smallest_deviation"]

PROBABILITY_ROUNDING = 1e-9
"""How far a sum of probabilities may lie above 1."""


@dataclass(frozen=True)
class Deviation:
    """How often an event occurred, and how often it should.

    Attributes:
        event: what it is called.
        probability: as stated.
        count: draws in which it occurred.
        draws: all draws.
        p_value: two-sided, of this event alone.
    """

    event: str
    probability: float
    count: int
    draws: int
    p_value: float

    def __str__(self) -> str:
        return (
            f"{self.event} in {self.count:,} of {self.draws:,} draws, where {self.draws * self.probability:.4g} are "
            f"expected (p = {self.p_value:.1e})"
        )


@dataclass(frozen=True)
class FrequencyTest:
    """The result of `compare_frequencies`.

    Attributes:
        alpha: probability that draws from the stated distribution are rejected, at most.
        events: how many were tested.
        worst: the event with the least p-value.
    """

    alpha: float
    events: int
    worst: Deviation

    @property
    def rejects(self) -> bool:
        """Whether the draws are not from the stated distribution."""
        return self.worst.p_value * self.events <= self.alpha


def compare_frequencies(
    probabilities: Mapping[str, float], counts: Mapping[str, int], draws: int, alpha: float
) -> FrequencyTest:
    """Compare how often events occurred with how often they should.

    Args:
        probabilities: of each event in one draw, fixed before the draws are seen. Events may overlap.
        counts: draws in which each occurred; 0 where an event is not named.
        draws: number of independent draws.
        alpha: level of the whole test.

    Raises:
        ValueError: no event, no draw, alpha outside (0, 1), a probability outside [0, 1], a count outside 0 ... draws,
            or of an event that has no probability.
    """
    from scipy.stats import binom  # importing it takes half a second

    if not probabilities or draws < 1 or not 0 < alpha < 1:
        raise ValueError(
            f"events, draws and a level in (0, 1) are needed, got {len(probabilities)}, {draws} and {alpha}"
        )
    unknown = [event for event in counts if event not in probabilities]
    if unknown:
        raise ValueError(f"event {unknown[0]!r} was counted and has no probability; give it one, which may be 0")
    names = list(probabilities)
    p = np.array([probabilities[name] for name in names], dtype=np.float64)
    count = np.array([counts.get(name, 0) for name in names])
    if not ((p >= 0) & (p <= 1 + PROBABILITY_ROUNDING)).all():
        raise ValueError(f"a probability must lie in [0, 1], got {p.min()} ... {p.max()}")
    if not ((count >= 0) & (count <= draws)).all():
        raise ValueError(f"an event occurs in 0 to {draws} draws, got {count.min()} ... {count.max()}")
    # A probability within rounding of 1 is that of a certain event.
    p = np.where(p >= 1 - PROBABILITY_ROUNDING, 1.0, p)
    tails = np.minimum(binom.cdf(count, draws, p), binom.sf(count - 1, draws, p))
    values = np.minimum(2 * tails, 1.0)
    worst = int(np.argmin(values))
    found = Deviation(names[worst], float(p[worst]), int(count[worst]), draws, float(values[worst]))
    return FrequencyTest(alpha, len(names), found)


def smallest_deviation(draws: int, events: int, alpha: float, beta: float = 0.01) -> float:
    """Return by how much an event's probability must be off to be found after so many draws, but for probability beta.

    By Hoeffding's inequality for both errors, so in most cases less suffices. A value above 1 promises nothing.

    Args:
        draws: number of independent draws.
        events: how many are tested, see `compare_frequencies`.
        alpha: level of the whole test, in (0, 1).
        beta: probability of a miss, in (0, 1).

    Raises:
        ValueError: an error probability outside (0, 1), no draw or no event.
    """
    for what, value in (("alpha", alpha), ("beta", beta)):
        if not 0 < value < 1:
            raise ValueError(f"{what} must lie in (0, 1), got {value}")
    if draws < 1 or events < 1:
        raise ValueError(f"at least one draw and one event are needed, got {draws} and {events}")
    margin = math.sqrt(math.log(2 * events / alpha) / 2) + math.sqrt(math.log(1 / beta) / 2)
    return margin / math.sqrt(draws)
