"""Residuals against rounding: the decision rule of the exact tier.

Every layer is judged in units of its own exact gradient, so that a layer with a small gradient cannot hide behind the
others. The tolerance is ``gamma_N * magnitude / unit`` (see `lmc_verify.statistics.rounding`); where rounding alone
could hide more than `RESOLUTION_LIMIT` of a layer's gradient, no identity is called exact.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lmc_verify.cases.verdict import Evidence, Outcome
from lmc_verify.objective import (
    ExactPass,
    Gradient,
    Problem,
    euclidean_norm,
    gradient_norm,
    loss_conditioning,
    rounding_terms,
    summand_sizes,
)
from lmc_verify.statistics.rounding import REFUTATION_FACTOR, decide, gamma, require_number

__all__ = [
    "NOTHING_TO_COMPARE",
    "RESOLUTION_LIMIT",
    "UNIT",
    "Residuals",
    "amplified",
    "flatten",
    "layer_units",
    "norm_by_layer",
    "ordinary_unit",
    "relative_by_layer",
    "rounding_magnitudes",
    "rounding_of_bias",
    "unflatten",
]

RESOLUTION_LIMIT = 1e-8
"""Largest tolerance, in units of a layer's exact gradient, at which an identity may still be called exact."""

UNIT = "norm of the layer's exact gradient"

NOTHING_TO_COMPARE = "the exact gradient and every estimate vanish: there is nothing to compare"
"""Why a claim about a gradient that is zero everywhere is not applicable; that 0 equals 0 supports nothing."""


def flatten(gradient: Gradient) -> Tensor:
    """Return all entries as one vector, float64, in parameter order."""
    return torch.cat([value.reshape(-1).double() for value in gradient.values()])


def unflatten(vector: Tensor, like: Gradient) -> Gradient:
    """Undo `flatten`, on the device of `like`."""
    parts = vector.split([value.numel() for value in like.values()])
    return {name: part.view_as(value).to(value.device) for (name, value), part in zip(like.items(), parts, strict=True)}


def norm_by_layer(problem: Problem, gradient: Gradient) -> dict[str, float]:
    """Return the norm of the gradient of every part: encoder, layer 1 ... L, head."""
    parts: dict[str, list[Tensor]] = {}
    for name, value in gradient.items():
        parts.setdefault(problem.layer_of(name), []).append(value)
    return {part: euclidean_norm(values) for part, values in parts.items()}


ORDINARY = (1e-100, 1e100)
"""Norms whose squares, and sums of them, neither overflow nor vanish."""


def layer_units(problem: Problem, *gradients: Gradient) -> dict[str, float]:
    """Return by layer what gradients are divided by before they are squared: 1, or a power of two at extreme scales.

    Args:
        problem: says which layer a parameter belongs to.
        gradients: the exact gradient, and an estimate, which may be much larger. The largest norm of a layer counts;
            one that vanishes has the unit of the whole gradient.
    """
    total = max(map(gradient_norm, gradients))
    norms = [norm_by_layer(problem, gradient) for gradient in gradients]
    return {part: ordinary_unit(max(found[part] for found in norms) or total) for part in norms[0]}


def ordinary_unit(size: float) -> float:
    """Return 1 if squares of numbers of this size are representable, else a power of two near it."""
    return 1.0 if size == 0 or ORDINARY[0] <= size <= ORDINARY[1] else 2.0 ** math.floor(math.log2(size))


def amplified(conditioning: float, norm: float) -> float:
    """Return what rounding is relative to: a norm times the loss derivative's conditioning, which may be infinite."""
    return conditioning if math.isinf(conditioning) else conditioning * norm


def rounding_magnitudes(problem: Problem, exact: ExactPass) -> dict[str, float]:
    """Return by layer what rounding in the exact gradient is relative to: what it adds up, times the conditioning."""
    conditioning = loss_conditioning(problem, exact)
    return {part: amplified(conditioning, size) for part, size in summand_sizes(problem).items()}


def rounding_of_bias(problem: Problem, size: float, magnitudes: Mapping[str, float], support: int) -> float:
    """Return up to which norm an enumerated bias, or the exact gradient that it is compared with, may be rounding.

    As everywhere in the exact tier the count of rounded additions is taken a hundredfold, for it is an estimate.

    Args:
        problem: the problem.
        size: mean norm of the estimates, see `conditional_moments`.
        magnitudes: `rounding_magnitudes` of the problem.
        support: number of batches.
    """
    magnitude = size + math.hypot(*magnitudes.values())
    return REFUTATION_FACTOR * gamma(rounding_terms(problem, support)) * magnitude


def relative_by_layer(problem: Problem, difference: Gradient, reference: Gradient) -> dict[str, float]:
    """Return each part's difference norm divided by its reference norm (by 1 where that is zero)."""
    norms = norm_by_layer(problem, reference)
    return {part: norm / (norms[part] or 1.0) for part, norm in norm_by_layer(problem, difference).items()}


@dataclass(frozen=True)
class _Residual:
    value: float
    tolerance: float

    @property
    def ratio(self) -> float:
        """How many times its tolerance the residual is."""
        if math.isinf(self.tolerance):
            return 0.0
        return self.value / self.tolerance if self.tolerance > 0 else (math.inf if self.value > 0 else 0.0)


@dataclass(frozen=True, eq=False)
class Residuals:
    """Residual norms of named blocks, each with its tolerance, in units of its layer's exact gradient.

    A layer whose exact gradient and whose estimates all vanish says nothing and is left out.
    """

    blocks: Mapping[str, _Residual]

    @classmethod
    def of(
        cls,
        problem: Problem,
        difference: Gradient,
        *,
        reference: Gradient,
        terms: int,
        magnitudes: Mapping[str, float],
    ) -> Residuals:
        """Compare a difference of gradients with ``gamma_terms * magnitude``, block by block.

        Args:
            problem: says which layer a parameter belongs to.
            difference: should be zero.
            reference: the exact gradient, whose norms by layer are the units.
            terms: see `rounding_terms`.
            magnitudes: by layer, a norm that bounds what was added up, before any cancellation.

        Raises:
            NotFiniteError: a residual or its tolerance is NaN.
        """
        norms, blocks = norm_by_layer(problem, reference), {}
        for name, value in difference.items():
            part = problem.layer_of(name)
            magnitude, size = magnitudes[part], require_number(euclidean_norm([value]), f"the residual of {name}")
            require_number(magnitude, f"the rounding tolerance of {name}")
            if math.isinf(magnitude):
                # The loss derivative vanishes, so that nothing says what rounding is relative to.
                if norms[part] or size:
                    blocks[name] = _Residual(size / (norms[part] or 1.0), math.inf)
                continue
            unit = norms[part] or magnitude
            if unit > 0 or size > 0:
                unit = unit or 1.0
                blocks[name] = _Residual(size / unit, gamma(terms) * magnitude / unit)
        return cls(blocks)

    @property
    def worst(self) -> _Residual:
        """The block whose residual is the largest multiple of its tolerance."""
        return max(self.blocks.values(), key=lambda block: block.ratio, default=_Residual(0.0, 0.0))

    @property
    def resolution(self) -> float:
        """The largest tolerance: what rounding alone could hide in some layer."""
        return max((block.tolerance for block in self.blocks.values()), default=0.0)

    @property
    def detectable(self) -> float:
        """The smallest residual that is called a refutation in every layer: the minimum detectable effect."""
        return REFUTATION_FACTOR * self.resolution

    @property
    def outcome(self) -> Outcome:
        """EXACT, REFUTED, INCONCLUSIVE, or NOT_APPLICABLE where there is nothing to compare."""
        if not self.blocks:
            return Outcome.NOT_APPLICABLE
        found = {decide(block.value, block.tolerance) for block in self.blocks.values()}
        if "refuted" in found:
            return Outcome.REFUTED
        if "inconclusive" in found or not self.resolution <= RESOLUTION_LIMIT:
            return Outcome.INCONCLUSIVE
        return Outcome.EXACT

    @property
    def explanation(self) -> str:
        """Why the outcome is neither EXACT nor REFUTED."""
        if not self.blocks:
            return NOTHING_TO_COMPARE
        if not self.resolution <= RESOLUTION_LIMIT:
            return (
                f"ill-conditioned here: rounding alone could hide {self.resolution:.1e} of a layer's gradient, at most "
                f"{RESOLUTION_LIMIT:.0e} is resolved; check at parameters farther from a perfect fit"
            )
        worst = self.worst
        return (
            f"residual {worst.value:.1e} lies between rounding ({worst.tolerance:.1e}) and the detectable effect "
            f"({REFUTATION_FACTOR * worst.tolerance:.1e}); a smaller graph or fewer batches would decide"
        )

    def evidence(self, group: str = "residual", unit: str = UNIT) -> tuple[Evidence, ...]:
        """Return one piece of evidence a block."""
        return tuple(
            Evidence(name, block.value, block.tolerance, unit=unit, group=group) for name, block in self.blocks.items()
        )

    def only(self, names: set[str]) -> Residuals:
        """Return the residuals of some blocks."""
        return Residuals({name: block for name, block in self.blocks.items() if name in names})

    def merged(self, other: Residuals | None) -> Residuals:
        """Return the worse residual of every block."""
        blocks = dict(self.blocks)
        for name, block in (other.blocks if other is not None else {}).items():
            blocks[name] = max(blocks.get(name, block), block, key=lambda item: item.ratio)
        return Residuals(blocks)

    def renamed(self, name: str) -> Residuals:
        """Return the worst residual alone, under a name."""
        return Residuals({name: self.worst} if self.blocks else {})
