"""What the mean of a biased estimator looks like, and why a bias may be rounding, in words that lead to the cause.

Three likenesses are looked for, each with a stated limit: the mean is a multiple of the gradient, and little of the
bias remains beside the factor (a missing or doubled normalisation), the bias sits in a single parameter (a term that
leaks into it), or it is as small as rounding in single precision (somebody computes in float32).

Where activations are saturated, hardly anything reaches the layers below them, and what is measured of these is
rounding at every step size.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lmc_verify.cases.verdict import Evidence
from lmc_verify.claims.residuals import Residuals
from lmc_verify.objective import Gradient, Problem, gradient_norm, gradient_sum

__all__ = [
    "COSINE",
    "MOSTLY",
    "SATURATED",
    "SINGLE_PRECISION",
    "UNEXPLAINED",
    "describe",
    "likeness",
    "saturation",
    "worst_parameter",
]

COSINE = 0.9999
"""Cosine to the exact gradient from which a mean is called a multiple of it."""

UNEXPLAINED = 0.1
"""Largest part of a bias that may remain after the factor: a small bias has a cosine near 1 in every direction."""

SINGLE_PRECISION = (1e-9, 1e-6)
"""Relative errors that rounding in float32 (6e-8 an operation) gives, and that nothing in float64 does by itself."""

SATURATED = 1e-3
"""Largest slope of an activation at a unit that is called saturated: what passes through it is lost in that ratio."""

MOSTLY = 0.9
"""Share of saturated units of one activation from which it is the cause of what is too small to be read."""


def saturation(problem: Problem) -> str:
    """Say which activation is saturated at most of its units, at the problem's parameters; "" where none is.

    The derivative of every module of `torch.nn` that is an activation by entries is taken at what the exact forward
    pass gives it. Activations that are called as functions are not seen.
    """
    model, found = copy.deepcopy(problem.model).eval(), dict[str, tuple[float, str]]()
    with contextlib.ExitStack() as hooks:
        for name, part in model.named_modules():
            if isinstance(part, _BY_ENTRIES):

                def look(part: nn.Module, given: tuple[Tensor, ...], name: str = name) -> None:
                    share = _saturated(part, given[0])
                    found[name] = max(found.get(name, (0.0, "")), (share, type(part).__name__))

                hooks.callback(part.register_forward_pre_hook(look).remove)
        with torch.no_grad():
            model(problem.graph)
    share, kind = max(found.values(), default=(0.0, ""))
    if share < MOSTLY:
        return ""
    return f"{share:.0%} of the units of an activation {kind} have a slope of at most {SATURATED:g}, derivatives vanish"


_BY_ENTRIES = (nn.ReLU, nn.Tanh, nn.Softplus, nn.Sigmoid, nn.ELU, nn.SELU, nn.GELU, nn.SiLU)


def _saturated(activation: nn.Module, rows: Tensor) -> float:
    """Return the share of entries at which an activation's slope is at most `SATURATED`."""
    with torch.enable_grad():
        given = rows.detach().double().requires_grad_()
        # Not called, which would run the hook again.
        (slopes,) = torch.autograd.grad(type(activation).forward(activation, given).sum(), given)
    return float((slopes.abs() <= SATURATED).double().mean()) if slopes.numel() else 0.0


def likeness(bias: Gradient, exact: Gradient) -> tuple[float, float]:
    """Return the factor c for which ``c * exact`` is nearest to the mean estimate, and the cosine between both.

    Args:
        bias: mean estimate minus exact gradient.
        exact: the exact gradient.

    Returns:
        ``<mean, exact> / <exact, exact>`` and ``<mean, exact> / (|mean| |exact|)``; NaN for what is not defined, where
        the exact gradient vanishes or, of the cosine, the mean.
    """
    mean = gradient_sum(bias, exact)
    norm, size = gradient_norm(exact), gradient_norm(mean)
    if not norm:
        return math.nan, math.nan
    if not size:
        return 0.0, math.nan
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
    unit = gradient_norm(exact)
    precision = _single_precision(difference, unit)
    if precision:
        return precision
    own = _own_share(difference, exact)
    sizes = {name: gradient_norm({name: value}) for name, value in difference.items()}
    wrong = [name for name, size in sizes.items() if size > rounding * unit and (own[name] > rounding or not own[name])]
    return _worst({name: sizes[name] for name in wrong}, own)


def _single_precision(difference: Gradient, unit: float) -> str:
    """Ask about the precision where a difference is of that size, in units of the gradient; empty elsewhere."""
    share, (low, high) = gradient_norm(difference) / (unit or math.inf), SINGLE_PRECISION
    if not low < share < high:
        return ""
    return (
        f"; {share:.1e} of the gradient is the size of rounding in single precision ({low:.0e} to {high:.0e}): is "
        "float32 used inside?"
    )


def _worst(sizes: Mapping[str, float], own: Mapping[str, float]) -> str:
    """Return which of the wrong parameters is off most.

    Args:
        sizes: norms of their differences; empty where no parameter is wrong.
        own: the differences of all parameters in units of their own gradients; 0 where those vanish.
    """
    if not sizes:
        return ""
    worst = max(sizes, key=lambda name: sizes[name])
    percent = f"{own[worst]:.0%}" if own[worst] >= 1 else f"{100 * own[worst]:.3g}%"
    size = f"{percent} of its own gradient" if own[worst] else "where the gradient vanishes"
    if len(sizes) == 1 and len(own) > 1:
        return f"; {worst} alone: {size}, everything else at rounding"
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
    quantities = {
        "mean estimate as a multiple of the gradient": factor,
        "cosine of the mean estimate and the gradient": cosine,
    }
    evidence = [
        Evidence(quantity, value, group="likeness") for quantity, value in quantities.items() if not math.isnan(value)
    ]
    precision = _single_precision(bias, gradient_norm(exact))
    if precision:
        return precision, evidence
    remains = gradient_norm(gradient_sum(bias, exact, 1 - factor))
    if cosine >= COSINE and remains <= UNEXPLAINED * gradient_norm(bias):
        return f"; the mean is {factor:.4g} times the gradient, cosine {cosine:.4f}: look for a factor", evidence
    wrong = {name: block.value for name, block in residuals.blocks.items() if block.ratio > 1}
    return _worst(wrong, _own_share(bias, exact)), evidence
