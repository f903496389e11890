"""What the mean of a biased estimator looks like, in words that lead to the cause.

Three likenesses are looked for, each with a stated limit: the mean is a multiple of the gradient (a missing or doubled
normalisation), the bias sits in a single parameter (a term that leaks into it), or it is as small as rounding in single
precision (somebody computes in float32).
"""

from __future__ import annotations

import math

from lmc_verify.claims.residuals import Residuals
from lmc_verify.claims.verdict import Evidence
from lmc_verify.objective import Gradient, Problem, gradient_norm, gradient_sum

__all__ = ["COSINE", "SINGLE_PRECISION", "describe", "likeness", "worst_parameter"]

COSINE = 0.9999
"""Cosine to the exact gradient from which a mean is called a multiple of it."""

SINGLE_PRECISION = (1e-9, 1e-6)
"""Relative errors that rounding in float32 (6e-8 an operation) gives, and that nothing in float64 does by itself."""


def likeness(bias: Gradient, exact: Gradient) -> tuple[float, float]:
    """Return the factor c for which ``c * exact`` is nearest to the mean estimate, and the cosine between both.

    Args:
        bias: mean estimate minus exact gradient.
        exact: the exact gradient.

    Returns:
        ``<mean, exact> / <exact, exact>`` and ``<mean, exact> / (|mean| |exact|)``; NaN where one of them vanishes.
    """
    mean = gradient_sum(bias, exact)
    norm, size = gradient_norm(exact), gradient_norm(mean)
    if not norm or not size:
        return math.nan, math.nan
    cosine = math.fsum(
        float((mean[name].double() / size * (value.double() / norm)).sum()) for name, value in exact.items()
    )
    return cosine * (size / norm), cosine


def _own_share(difference: Gradient, exact: Gradient) -> dict[str, float]:
    """Return each parameter's difference in units of its own exact gradient; 0 where that vanishes."""
    units = {name: gradient_norm({name: value}) for name, value in exact.items()}
    return {
        name: gradient_norm({name: value}) / units[name] if units[name] else 0.0 for name, value in difference.items()
    }


def worst_parameter(difference: Gradient, exact: Gradient, rounding: float) -> str:
    """Say which parameter a difference of gradients sits in, to end a summary with; nothing where all is rounding.

    Args:
        difference: estimate or mean estimate, minus what it should be.
        exact: the exact gradient, whose norms by parameter are the units.
        rounding: differences up to this part of a parameter's own gradient are rounding.
    """
    total, unit = gradient_norm(difference), gradient_norm(exact)
    low, high = SINGLE_PRECISION
    if unit and low < total / unit < high:
        return f"; {total / unit:.1e} of the gradient is rounding in single precision: is float32 used inside?"
    own = _own_share(difference, exact)
    sizes = {name: gradient_norm({name: value}) for name, value in difference.items()}
    wrong = [name for name, size in sizes.items() if size > rounding * unit and (own[name] > rounding or not own[name])]
    if not wrong:
        return ""
    worst = max(wrong, key=lambda name: sizes[name])
    size = f"{own[worst]:.0%} of its own gradient"
    if not own[worst]:
        size = "where the gradient vanishes"
    if len(wrong) == 1 and len(sizes) > 1:
        return f"; {worst}: {size}, everything else at rounding"
    return f"; worst parameter {worst}: {size}"


def describe(problem: Problem, bias: Gradient, exact: Gradient, residuals: Residuals) -> tuple[str, list[Evidence]]:
    """Return what a bias looks like, to end a summary with, and its evidence.

    Args:
        problem: says which parameters there are.
        bias: mean estimate minus exact gradient.
        exact: the exact gradient.
        residuals: the bias by parameter with its tolerances; see `lmc_verify.claims.residuals`.
    """
    factor, cosine = likeness(bias, exact)
    evidence = [
        Evidence("mean estimate as a multiple of the gradient", factor, group="likeness"),
        Evidence("cosine of the mean estimate and the gradient", cosine, group="likeness"),
    ]
    own = _own_share(bias, exact)
    total = gradient_norm(bias) / (gradient_norm(exact) or math.inf)
    low, high = SINGLE_PRECISION
    if low < total < high:
        words = f"; that is the size of rounding in single precision ({low:.0e} to {high:.0e}): is float32 used inside?"
        return words, evidence
    if cosine >= COSINE:
        return f"; the mean is {factor:.4g} times the gradient, cosine {cosine:.4f}: look for a factor", evidence
    wrong = [name for name, block in residuals.blocks.items() if block.ratio > 1]
    if not wrong:
        return "", evidence
    worst = max(wrong, key=lambda name: residuals.blocks[name].value)
    size = f"{own[worst]:.0%} of its own gradient" if own[worst] else "where the gradient vanishes"
    if len(wrong) == 1 and len(residuals.blocks) > 1:
        return f"; {worst} alone: {size}, everything else at rounding", evidence
    return f"; worst parameter {worst}: {size}", evidence
