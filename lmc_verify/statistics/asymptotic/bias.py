"""Lower and upper ends for the norm of every block's mean, from one stream of draws."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np
import numpy.typing as npt

from lmc_verify.errors import InvalidInputError, NotFiniteError
from lmc_verify.statistics.asymptotic.projections import LowerEnd
from lmc_verify.statistics.asymptotic.spheres import PRIORS, Scatter, Sphere, skewed_level, squared_reach
from lmc_verify.statistics.betting import log_threshold
from lmc_verify.statistics.exclusion import UNSEEN, draws_to_exclude

__all__ = ["AsymptoticBias", "first_look", "sphere_radius", "upper_share"]

Array = npt.NDArray[np.float64]

FIRST_LOOK, LOOKS_PER_NAT = 32, 8
"""Nothing is concluded before 32 draws, nor before eight for each unit of log(1/alpha): for smaller alpha the normal
approximation must hold further out in the tail."""

SPREAD_OUT = 8.0
"""Effective draws (sum of squares / largest square) before the first look of the lower end."""

EFFECTIVE_PER_NAT = 2.0
"""Effective draws that the upper end needs, for each unit of log(1/alpha) of a block."""

SHORT, SHORT_GROUPS = 512, 4096
"""Most sums of draws that are kept of a block of at most 512 entries, whose scatter is small whatever their number."""

GROUPS, BYTES = 512, 2**30
"""Most sums of draws that are kept of a longer block, and most bytes of them in all blocks together."""

LARGEST = 1e120
"""Largest entry of a draw: sums of squares must be representable."""


def first_look(alpha: float, blocks: int = 1) -> int:
    """Return the number of draws before which `AsymptoticBias` says nothing.

    Args:
        alpha: its error probability.
        blocks: number of blocks that share it.

    Raises:
        ValueError: alpha is outside (0, 1).
    """
    return max(FIRST_LOOK, math.ceil(LOOKS_PER_NAT * (log_threshold(alpha) + math.log(2 * blocks))))


def upper_share(alpha: float) -> float:
    """Return the largest share of the sum of squares that one draw may have, for an upper end at level alpha."""
    return 1 / max(SPREAD_OUT, EFFECTIVE_PER_NAT * log_threshold(alpha))


def sphere_radius(scatter: Scatter, draws: int, alpha: float, penalty: float, unit: float) -> float:
    """Return the radius about the average that holds the mean, or inf.

    Args:
        scatter: of the draws, or of groups of them.
        draws: their number.
        alpha: probability that it ever fails.
        penalty: see `GroupedDraws.penalty`.
        unit: variance of a draw, fixed at the first look.
    """
    level = 2 * (log_threshold(alpha) + penalty + math.log(PRIORS.size))
    widened = skewed_level(level, scatter.skewness)
    return math.sqrt(squared_reach(scatter.eigenvalues, scatter.count, widened, PRIORS / unit)) / draws


class _Block:
    """One block: the direction of its sum, its lower end, and the draws about their average."""

    def __init__(self, alpha: float, null: float, tolerance: float, first: int) -> None:
        self._alpha, self._tolerance, self._first = alpha, tolerance, first
        self.lower = LowerEnd(alpha, null, first, SPREAD_OUT)
        self.sphere: Sphere | None = None
        self.total: Array = np.zeros(0)
        self._unit: float | None = None
        self.upper, self.error, self.lacking = math.inf, math.nan, f"no draw yet, {first:,} are needed"

    def add(self, draw: Array, most: int) -> None:
        if self.sphere is None:
            self.sphere, self.total = Sphere(draw.size, most), np.zeros(draw.size)
        size = float(np.linalg.norm(self.total))
        if size > 0:  # without a direction there is nothing to project on
            self.lower.add(float(self.total @ draw) / size)
        self.sphere.add(draw)
        self.total += draw

    def look(self) -> None:
        """Compute upper end and standard error from the draws so far, and what an upper end is lacking."""
        if self.sphere is None or len(self.sphere.draws) == 0:
            return
        kept, scatter = self.sphere.draws, self.sphere.scatter()
        count, draws = len(kept), kept.draws
        self.error = math.sqrt(scatter.trace * count / (count - 1)) / draws if count > 1 else math.nan
        if draws < self._first:
            self.lacking = f"{draws:,} draws, {self._first:,} are needed before the first look"
            return
        centre = float(np.linalg.norm(scatter.average)) / kept.size
        if scatter.largest <= (self._tolerance * kept.size) ** 2:
            self._look_at_equals(draws, centre)
            return
        share = scatter.largest / scatter.trace
        if self._unit is None and share <= 1 / SPREAD_OUT:
            self._unit = scatter.trace / draws
        most = upper_share(self._alpha)
        if self._unit is None or share > most:
            self.lacking = (
                f"one of {draws:,} draws has {share:.2g} of the sum of squares, at most {most:.2g} is allowed: too few "
                "draws that matter for a normal approximation"
            )
            return
        radius = sphere_radius(scatter, draws, self._alpha, kept.penalty, self._unit)
        self.lacking = f"{draws:,} draws are too few for alpha = {self._alpha:.1g}, or too skewed"
        self.upper = min(self.upper, centre + radius)

    def _look_at_equals(self, draws: int, centre: float) -> None:
        """Look at draws that are all the same but for rounding: only their number says anything about others."""
        needed = draws_to_exclude(UNSEEN, self._alpha)
        self.lacking = f"{draws:,} draws are all equal, {needed:,} exclude that {UNSEEN:.1%} or more are not"
        if draws >= needed:
            self.upper = min(self.upper, centre)


class AsymptoticBias:
    """Time-uniform asymptotic confidence sequence for the norm of every block's mean; see the package's docstring.

    A draw is a vector split in named blocks (layers, parameters), of 1 to a million entries each. With a probability
    that tends to at least 1 - alpha as the first look moves out, ``lower()[block] <= ||E D_block|| <= upper()[block]``
    for all blocks, at every number of draws. Blocks share alpha evenly, and so do the two ends. Draws need a finite
    variance, and no known range. How far the level is kept with few, skewed, heavy or rare draws is in
    docs/statistics.md.

    Ends are those of this and earlier calls: a lower end never falls, an upper end never rises.

    Args:
        blocks: names, or a name and length for every block.
        alpha: error probability.
        tolerance: rounding error of one draw's block, as Euclidean norm, one number or one for each block: a mean of
            that size is no evidence, and both ends are moved outwards by it.
        margin: delta of the hypothesis "the mean's norm is at most delta", one number or one for each block. It is
            rejected where a lower end exceeds delta, and supported where all upper ends are at most delta.

    Attributes:
        draws: number of draws so far.

    Raises:
        InvalidInputError: no block, a length below 1, or a tolerance or margin that is negative or not finite.
        ValueError: alpha is outside (0, 1).

    Example:
        >>> rng = np.random.default_rng(0)
        >>> bias = AsymptoticBias(["weight", "bias"], alpha=0.01)
        >>> for _ in range(200):
        ...     bias.update({"weight": 1 + rng.standard_normal(3), "bias": rng.standard_normal(2)})
        >>> bias.rejected_blocks()
        ('weight',)
        >>> bias.lower()["weight"] < 3**0.5 < bias.upper()["weight"]
        True
    """

    def __init__(
        self,
        blocks: Iterable[str] | Mapping[str, int],
        alpha: float,
        *,
        tolerance: float | Mapping[str, float] = 0.0,
        margin: float | Mapping[str, float] | None = None,
    ) -> None:
        log_threshold(alpha)
        self._names = tuple(blocks)
        self._lengths: dict[str, int] = dict(blocks) if isinstance(blocks, Mapping) else {}
        if not self._names or len(set(self._names)) < len(self._names):
            raise InvalidInputError(f"name at least one block, and each once; got {list(self._names)}")
        for name, length in self._lengths.items():
            if length < 1:
                raise InvalidInputError(f"block {name!r} has {length} entries; leave out blocks without any")
        self._tolerances = self._by_block("tolerance", tolerance)
        self._margins = None if margin is None else self._by_block("margin", margin)
        first = first_look(alpha, len(self._names))
        share = alpha / (2 * len(self._names))
        margins = self._margins or dict.fromkeys(self._names, 0.0)
        self._blocks = {
            name: _Block(share, margins[name] + self._tolerances[name], self._tolerances[name], first)
            for name in self._names
        }
        self.draws = 0

    def _by_block(self, what: str, value: float | Mapping[str, float]) -> dict[str, float]:
        if isinstance(value, Mapping) and set(value) != set(self._names):
            raise InvalidInputError(f"the {what} names the blocks {sorted(value)}, expected {sorted(self._names)}")
        values = {name: float(value[name] if isinstance(value, Mapping) else value) for name in self._names}
        for name, item in values.items():
            if not 0 <= item < math.inf:
                raise InvalidInputError(f"the {what} of block {name!r} must be finite and not negative, got {item}")
        return values

    def update(self, draw: Mapping[str, npt.ArrayLike]) -> None:
        """Take one draw: a vector (or array, which is flattened) for every block.

        Raises:
            InvalidInputError: other blocks or lengths than before, or an entry above 1e120.
            NotFiniteError: an entry is NaN or infinite. The state is then as before the call.
        """
        vectors = self._checked(draw)
        self._lengths = {name: vector.size for name, vector in vectors.items()}
        long = 2 * max(4, min(GROUPS, BYTES // (8 * sum(self._lengths.values()))) // 2)
        for name, vector in vectors.items():
            self._blocks[name].add(vector, SHORT_GROUPS if vector.size <= SHORT else long)
        self.draws += 1

    def _checked(self, draw: Mapping[str, npt.ArrayLike]) -> dict[str, Array]:
        if set(draw) != set(self._names):
            raise InvalidInputError(f"a draw has the blocks {sorted(draw)}, expected {sorted(self._names)}")
        vectors = {name: np.asarray(draw[name], dtype=np.float64).ravel() for name in self._names}
        for name, vector in vectors.items():
            expected = self._lengths.get(name, max(vector.size, 1))
            if vector.size != expected:
                raise InvalidInputError(f"block {name!r} of a draw has {vector.size} entries, expected {expected}")
            if not np.isfinite(vector).all():
                raise NotFiniteError(
                    f"block {name!r} of draw {self.draws + 1} has an entry that is not finite, so nothing is decided; "
                    "find what overflows in the step that made it"
                )
            if np.abs(vector).max() > LARGEST:
                raise InvalidInputError(
                    f"block {name!r} of draw {self.draws + 1} has an entry above {LARGEST:g}, whose square may "
                    "overflow; pass draws in a larger unit, such as the gradient's norm"
                )
        return vectors

    def lower(self) -> dict[str, float]:
        """Return the lower end for every block; 0 where nothing is known."""
        return {name: max(block.lower.value() - self._tolerances[name], 0.0) for name, block in self._blocks.items()}

    def upper(self) -> dict[str, float]:
        """Return the upper end for every block; inf where nothing is known, see `lacking`."""
        for block in self._blocks.values():
            block.look()
        return {name: block.upper + self._tolerances[name] for name, block in self._blocks.items()}

    def lacking(self) -> dict[str, str]:
        """Return, for every block without an upper end, what it lacks."""
        self.upper()
        return {name: block.lacking for name, block in self._blocks.items() if math.isinf(block.upper)}

    def means(self) -> dict[str, Array]:
        """Return the average draw of every block, NaN before the first."""
        return {
            name: block.total / self.draws if self.draws else np.full(self._lengths.get(name, 1), math.nan)
            for name, block in self._blocks.items()
        }

    def standard_errors(self) -> dict[str, float]:
        """Return the standard error of every block's average, a norm: ``sqrt(E ||average - mean||^2)``, estimated."""
        self.upper()
        return {name: block.error for name, block in self._blocks.items()}

    @property
    def rejects(self) -> bool:
        """Whether some block's mean is longer than its margin (0 without one): true with probability 1 - alpha."""
        return bool(self.rejected_blocks())

    def rejected_blocks(self) -> tuple[str, ...]:
        """Return the blocks whose mean is longer than the margin, all of them with probability 1 - alpha."""
        return tuple(name for name, block in self._blocks.items() if block.lower.exceeds)

    @property
    def supports(self) -> bool:
        """Whether every block's mean is at most its margin, by the upper ends; False without a margin."""
        return self._margins is not None and all(upper <= self._margins[name] for name, upper in self.upper().items())
