"""The mean of an estimator over all batches of a finite design, and its comparison with the exact gradient."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from lmc_verify.cases import Case
from lmc_verify.cases.verdict import Evidence
from lmc_verify.claims.assumptions import enumerable
from lmc_verify.claims.residuals import (
    UNIT,
    Residuals,
    flatten,
    layer_units,
    norm_by_layer,
    relative_by_layer,
    rounding_magnitudes,
    unflatten,
)
from lmc_verify.errors import InvalidInputError
from lmc_verify.objective import Gradient, Problem, gradient_sum, rounding_terms
from lmc_verify.statistics.enumeration import MomentAccumulator

__all__ = ["EstimatorMoments", "bias_evidence", "compare_mean", "enumerate_estimator"]

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class EstimatorMoments:
    """Moments of an estimate over a design, entry by entry, exact up to rounding.

    Attributes:
        mean: expectation, by parameter name.
        deviation: standard deviation of every entry.
        root_mean_square: ``sqrt(E g^2)`` of every entry.
        atoms: number of batches.
    """

    mean: Gradient
    deviation: Gradient
    root_mean_square: Gradient
    atoms: int


def _estimates(case: Case) -> Iterator[tuple[Gradient, float]]:
    few, count = enumerable(case.design.support_size)
    if not few:
        raise InvalidInputError(f"the design has {count}; use fewer parts or a smaller batch")
    state = case.initial_state()
    for batch, probability in case.design.enumerate():
        yield case.estimate(state, batch).gradient, probability


def enumerate_estimator(case: Case, estimates: Iterable[tuple[Gradient, float]] | None = None) -> EstimatorMoments:
    """Return the exact mean and spread of the estimate over the design, from one frozen state.

    Args:
        case: the case.
        estimates: every estimate with its probability, where they are not those of the design's batches.

    Raises:
        InvalidInputError: the design has more than `MAX_SUPPORT` batches.
    """
    exact = case.exact.gradient
    accumulator, scale = MomentAccumulator(), torch.ones(0)
    for estimate, probability in _estimates(case) if estimates is None else estimates:
        if not scale.numel():
            units = layer_units(case.problem, exact, estimate)
            filled = {name: torch.full_like(value, units[case.problem.layer_of(name)]) for name, value in exact.items()}
            scale = flatten(filled).cpu()
        accumulator.add((flatten(estimate).cpu() / scale).numpy(), probability)
    found = accumulator.result()

    def in_units(values: Array) -> Gradient:
        return unflatten(torch.from_numpy(values) * scale, exact)

    squares = found.variance + found.mean**2
    return EstimatorMoments(
        in_units(found.mean), in_units(np.sqrt(found.variance)), in_units(np.sqrt(squares)), found.atoms
    )


def compare_mean(
    case: Case, estimates: Iterable[tuple[Gradient, float]] | None = None
) -> tuple[EstimatorMoments, Gradient, Residuals]:
    """Return the design's moments, the bias of the mean estimate, and its residuals layer by layer.

    The arguments are those of `enumerate_estimator`.
    """
    moments, exact, problem = enumerate_estimator(case, estimates), case.exact.gradient, case.problem
    bias = gradient_sum(moments.mean, exact, -1.0)
    # E||g|| <= sqrt(E||g||^2), layer by layer: what is added up before the expectation cancels.
    sizes, own = norm_by_layer(problem, moments.root_mean_square), rounding_magnitudes(problem, case.exact)
    magnitudes = {part: size + own[part] for part, size in sizes.items()}
    terms = rounding_terms(problem, moments.atoms)
    return moments, bias, Residuals.of(problem, bias, reference=exact, terms=terms, magnitudes=magnitudes)


def bias_evidence(problem: Problem, bias: Gradient, exact: Gradient, residuals: Residuals) -> tuple[Evidence, ...]:
    """Return each layer's bias next to its tolerance: at most sqrt(blocks) times that of a block."""
    out = []
    for part, value in relative_by_layer(problem, bias, exact).items():
        blocks = [block for name, block in residuals.blocks.items() if problem.layer_of(name) == part]
        tolerance = len(blocks) ** 0.5 * max((block.tolerance for block in blocks), default=0.0)
        out.append(Evidence(part, value, tolerance, unit=UNIT, group="bias per layer"))
    return tuple(out)
