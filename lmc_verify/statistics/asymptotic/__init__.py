"""Asymptotic confidence sequences for the norm of a mean: no range is known, and draws may be looked at at any time.

Betting and radii (betting.py, radius.py) need a proven range. Without one no level can be guaranteed at any number of
draws; what can be had is the time-uniform counterpart of the central limit theorem (Waudby-Smith, Arbour, Sinha,
Kennedy and Ramdas, Time-uniform central limit theory and asymptotic confidence sequences, Annals of Statistics 52,
2024): a sequence of intervals that is valid for Gaussian draws, with the variance estimated. The probability that it
ever fails after the first look tends to alpha at most as the first look moves out; draws need a little more than two
moments, and no independence beyond that of martingale differences (their section 2.5).

- projections.py has the lower end: draws projected on the direction of the sum of those before.
- spheres.py has the upper end: a sphere about the average.
- groups.py bounds the memory.

Both ends use self-normalised sums, so that they hold for symmetric draws from the first look on, however heavy their
tails, and allow for the skewness that the draws show. The upper end waits until no single draw dominates the sum of
squares (Lindeberg's condition, read from the sample). What no draw shows, such as one batch of a thousand that makes up
for all others, no sample can allow for: docs/statistics.md says how often the ends then fail.

Libraries were looked at and not used. `ville` 0.1.0 is a first release, weeks old, whose `AsymptoticCS` is two-sided
and for scalars; a test compares with the numbers that it gives. `confseq` 0.0.11, of 2023, has no asymptotic sequence
and is a source distribution that compiles C++. Neither has vectors, nor allows for skewness.
"""

from typing import TYPE_CHECKING

from lmc_verify.imports.names import offered

if TYPE_CHECKING:
    from lmc_verify.statistics.asymptotic.bias import AsymptoticBias, first_look
else:
    __getattr__, __dir__ = offered(__name__)

__all__ = ["AsymptoticBias", "first_look"]
