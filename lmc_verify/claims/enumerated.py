"""The mean of an estimator over all batches of a finite design, and its comparison with the exact gradient."""

from __future__ import annotations

import torch

from lmc_verify.cases import Case
from lmc_verify.claims.assumptions import enumerable
from lmc_verify.claims.residuals import UNIT, Residuals, flatten, norm_by_layer, relative_by_layer, unflatten
from lmc_verify.claims.verdict import Evidence
from lmc_verify.errors import InvalidInputError
from lmc_verify.objective import Gradient, Problem, gradient_sum, loss_conditioning, rounding_terms
from lmc_verify.statistics.enumeration import DesignMoments, MomentAccumulator

__all__ = ["bias_evidence", "compare_mean", "enumerate_estimator"]


def enumerate_estimator(case: Case) -> DesignMoments:
    """Return the exact mean and variance of the estimate over the design, from one frozen state.

    Raises:
        InvalidInputError: the design has more than `MAX_SUPPORT` batches.
    """
    few, count = enumerable(case.design.support_size)
    if not few:
        raise InvalidInputError(f"the design has {count}; use fewer parts or a smaller batch")
    state = case.initial_state()
    moments = MomentAccumulator()
    for batch, probability in case.design.enumerate():
        estimate = case.estimate(state, batch)
        moments.add(flatten(estimate.gradient).cpu().numpy(), probability)
    return moments.result()


def compare_mean(case: Case) -> tuple[DesignMoments, Gradient, Residuals]:
    """Return the design's moments, the bias of the mean estimate, and its residuals layer by layer."""
    moments, exact, problem = enumerate_estimator(case), case.exact.gradient, case.problem
    bias = gradient_sum(unflatten(torch.from_numpy(moments.mean), exact), exact, -1.0)
    # E||g|| <= sqrt(E||g||^2), layer by layer: what is added up before the expectation cancels.
    squares = unflatten(torch.from_numpy(moments.variance + moments.mean**2).sqrt(), exact)
    conditioning, norms = loss_conditioning(problem, case.exact), norm_by_layer(problem, exact)
    magnitudes = {part: size + conditioning * norms[part] for part, size in norm_by_layer(problem, squares).items()}
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
