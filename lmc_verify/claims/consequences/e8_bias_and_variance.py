"""E8: the error of an estimate split into bias and variance, and Backward SGD's variance against its closed form."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from lmc_verify.cases import Case
from lmc_verify.cases.verdict import Evidence, Outcome, Verdict
from lmc_verify.claims.assumptions import FINITE_SUPPORT, NO_DROPOUT
from lmc_verify.claims.claim import Assumption, Claim, expect_not_applicable, not_applicable, verdict_of
from lmc_verify.claims.question import Answer, Question, largest
from lmc_verify.claims.reference import SOURCE
from lmc_verify.claims.residuals import (
    NOTHING_TO_COMPARE,
    RESOLUTION_LIMIT,
    UNIT,
    amplified,
    flatten,
    layer_units,
    norm_by_layer,
    unflatten,
)
from lmc_verify.claims.theory import UNKNOWN, Expectation, where_gradient_vanishes
from lmc_verify.estimators import BackwardSGD, History, properties_of
from lmc_verify.graphs import Batch, Clusters, UniformNodes
from lmc_verify.objective import Gradient, gradient_norm, gradient_sum, loss_conditioning, rounding_terms, summand_sizes
from lmc_verify.statistics.enumeration import MomentAccumulator
from lmc_verify.statistics.rounding import REFUTATION_FACTOR, decide, gamma

__all__ = ["BIAS_AND_VARIANCE", "closed_form_variance"]

SQUARE_ROUNDING = 8
"""Tolerance of an identity between mean squares, in units of what rounding does to one of them: see `_identity`."""


def closed_form_variance(case: Case, units: Mapping[str, float] | None = None) -> dict[str, float] | None:
    """Return Backward SGD's variance by layer, ``b^2 (1 - c/b) S^2 / c``, without drawing or enumerating batches.

    ``G_i`` is the part of the exact gradient that cluster i (or node i) contributes, and
    ``S^2 = sum_i ||G_i - mean||^2 / (b - 1)``: sampling without replacement from b parts.

    Args:
        case: the case.
        units: of the gradient by layer, for scales at which a variance is not representable; None for 1.

    Returns:
        The variance of each layer's estimate, in units of the squares of `units`, or None for a design without such a
        form.
    """
    design = case.design
    if isinstance(design, Clusters):
        parts, taken = design.partition.clusters, design.per_batch
    elif isinstance(design, UniformNodes):
        parts, taken = tuple(torch.arange(design.num_nodes).split(1)), design.size
    else:
        return None
    total = len(parts)
    if total == taken:
        return dict.fromkeys(norm_by_layer(case.problem, case.exact.gradient), 0.0)
    reference, state = BackwardSGD(), History.from_exact(case.problem, case.exact)
    sums = [reference.estimate(case.problem, state, Batch.of(part, 1.0)).gradient for part in parts]
    mean = case.problem.zero_gradient()
    for part in sums:
        mean = gradient_sum(mean, part, 1 / total)
    spread: dict[str, float] = {}
    for part in sums:
        for layer, norm in norm_by_layer(case.problem, gradient_sum(part, mean, -1.0)).items():
            spread[layer] = spread.get(layer, 0.0) + _square(norm if units is None else norm / units[layer])
    factor = total**2 * (1 - taken / total) / taken / (total - 1)
    return {layer: factor * value for layer, value in spread.items()}


def _is_backward_sgd(case: Case) -> bool:
    return properties_of(case.estimator).holds_exact is True and case.weighting == "inclusion"


def _square(value: float) -> float:
    return value * value  # infinite where ``**`` would raise OverflowError


def _squares(case: Case, values: Tensor, like: Gradient) -> dict[str, float]:
    """Return the sum of some non-negative entries by layer."""
    return {part: _square(norm) for part, norm in norm_by_layer(case.problem, unflatten(values.sqrt(), like)).items()}


def check(case: Case) -> Verdict:
    """Enumerate the design: E||g - grad||^2, ||E g - grad||^2 and the variance, accumulated separately; compare."""
    claim = BIAS_AND_VARIANCE
    inapplicable = not_applicable(case, claim)
    if inapplicable is not None:
        return inapplicable
    problem, state = case.problem, case.initial_state()
    first = next(iter(case.design.enumerate()))[0]
    units = layer_units(problem, case.exact.gradient, case.estimate(state, first).gradient)

    def in_units(gradient: Gradient) -> Gradient:  # squares of what is very large or very small are not representable
        return {name: value / units[problem.layer_of(name)] for name, value in gradient.items()}

    exact = in_units(case.exact.gradient)
    norms = norm_by_layer(problem, exact)
    moments, error, relative = MomentAccumulator(), dict.fromkeys(norms, 0.0), dict.fromkeys(norms, 0.0)
    for batch, probability in case.design.enumerate():
        gradient = in_units(case.estimate(state, batch).gradient)
        moments.add(flatten(gradient).cpu().numpy(), probability)
        for part, norm in norm_by_layer(problem, gradient_sum(gradient, exact, -1.0)).items():
            error[part] += probability * _square(norm)
            relative[part] += probability * norm
    found = moments.result()
    bias = norm_by_layer(problem, gradient_sum(unflatten(torch.from_numpy(found.mean), exact), exact, -1.0))
    variance = _squares(case, torch.from_numpy(found.variance), exact)
    conditioning = loss_conditioning(problem, case.exact)
    summed = {part: max(norms[part], size / units[part]) for part, size in summand_sizes(problem).items()}
    if not any(error.values()) and not any(summed.values()):
        assumptions = claim.checked_assumptions(case)
        return verdict_of(case, claim.id, Outcome.NOT_APPLICABLE, NOTHING_TO_COMPARE, assumptions=assumptions)
    rounding = gamma(rounding_terms(problem, found.atoms))
    identities = [
        _identity(
            f"{part}: E||g - grad||^2 = ||bias||^2 + variance",
            error[part],
            _square(bias[part]) + variance[part],
            _square(summed[part]),
            amplified(conditioning, rounding),
        )
        for part in norms
    ]
    closed = closed_form_variance(case, units) if _is_backward_sgd(case) else None
    for part, value in (closed or {}).items():
        identities.append(
            _identity(
                f"{part}: variance = b^2 (1 - c/b) S^2 / c",
                variance[part],
                value,
                _square(summed[part]),
                amplified(conditioning, rounding),
            )
        )
    decisions = {decide(item.value, item.tolerance or 0.0) for item in identities}
    worst = max(identities, key=lambda item: item.value / (item.tolerance or 1.0))
    outcome = (
        Outcome.REFUTED
        if "refuted" in decisions
        else Outcome.INCONCLUSIVE
        if "inconclusive" in decisions or not rounding * conditioning <= RESOLUTION_LIMIT
        else Outcome.EXACT
    )
    total = {
        name: math.hypot(*(value * units[part] for part, value in values.items()))
        for name, values in (
            ("bias", bias),
            ("deviation", {part: math.sqrt(value) for part, value in variance.items()}),
            ("error", {part: math.sqrt(value) for part, value in error.items()}),
        )
    }
    unit = gradient_norm(case.exact.gradient) or 1.0
    forms = f"; the variance is its closed form over {found.atoms:,} batches" if closed else ""
    figures = (
        f"in gradient norms: bias {total['bias'] / unit:.2g}, standard deviation {total['deviation'] / unit:.3g}, root "
        f"mean square error {total['error'] / unit:.3g}"
    )
    return verdict_of(
        case,
        claim.id,
        outcome,
        figures + (forms if outcome is Outcome.EXACT else f"; an identity is off by {worst.value:.1e}"),
        evidence=[
            *identities,
            *_by_layer(
                norms, {part: math.sqrt(value) for part, value in error.items()}, "root mean square error per layer"
            ),
            *_by_layer(norms, relative, "mean relative error per layer"),
            *_by_layer(norms, bias, "bias per layer"),
            *_by_layer(
                norms, {part: math.sqrt(value) for part, value in variance.items()}, "standard deviation per layer"
            ),
        ],
        assumptions=claim.checked_assumptions(case),
        residual=worst.value,
        tolerance=worst.tolerance,
        minimum_detectable_effect=REFUTATION_FACTOR * max(item.tolerance or 0.0 for item in identities),
    )


_SQUARES = "mean square + square of what the layer's exact gradient adds up"


def _identity(name: str, left: float, right: float, unit: float, rounding: float) -> Evidence:
    """Return the difference of two mean squares, in units of the larger one plus what the gradient adds up, squared.

    Both are sums of squares, so nothing cancels in them. The estimates behind them are off by `rounding`, in units of
    the gradient or of the estimates: a square s by ``2 sqrt(s) rounding sqrt(s + unit)`` and the square of that.
    """
    size = max(left, right)
    scale = size + unit
    if scale == 0:
        return Evidence(name, 0.0, rounding, unit=_SQUARES, group="identities")
    if math.isinf(rounding):
        return Evidence(name, abs(left - right) / scale, rounding, unit=_SQUARES, group="identities")
    tolerance = SQUARE_ROUNDING * rounding * (math.sqrt(size / scale) + rounding)
    return Evidence(name, abs(left - right) / scale, tolerance, unit=_SQUARES, group="identities")


def _by_layer(norms: Mapping[str, float], values: Mapping[str, float], group: str) -> list[Evidence]:
    return [Evidence(part, value / (norms[part] or 1.0), unit=UNIT, group=group) for part, value in values.items()]


def _closed_form(case: Case) -> tuple[bool | None, str]:
    if not _is_backward_sgd(case):
        return None, "the closed form is Backward SGD's; of this estimator only the decomposition is checked"
    known = isinstance(case.design, Clusters | UniformNodes)
    return known, "" if known else f"no closed form for {type(case.design).__name__}: only the decomposition is checked"


def expect(case: Case) -> Expectation:
    """Return what theory says of E8: the decomposition holds for every estimator, the closed form for Backward SGD."""
    inapplicable = expect_not_applicable(case, BIAS_AND_VARIANCE)
    if inapplicable is not None:
        return inapplicable
    if _is_backward_sgd(case) and not properties_of(case.estimator).known:
        return UNKNOWN
    expected = Expectation(
        Outcome.EXACT, "an identity of every random vector, and the variance of a sample without replacement"
    )
    return where_gradient_vanishes(case, expected)


BIAS_AND_VARIANCE = Claim(
    id="e8/bias-and-variance",
    title="The error is bias plus variance",
    statement=(
        "E||g - grad||^2 = ||bias||^2 + variance in every layer; with c of b clusters the variance of Backward SGD is "
        "b^2 (1 - c/b) S^2 / c, S^2 the variance of the clusters' contributions."
    ),
    source=SOURCE,
    tier="exact",
    theory=(
        "The error of one batch is dominated by the variance, so it says little about the bias: LMC and GAS differ by "
        "a few percent in error, but completely in bias. The report shows both next to the error of single batches "
        "(the quantity of the paper's figure 5). The closed form is the variance of a sum over a sample without "
        "replacement."
    ),
    question=Question(
        "Is {estimator}'s mean squared error its squared bias plus its variance",
        refuted=Answer("off by {size}", largest("identities", " ({})")),
    ),
    required=(NO_DROPOUT, FINITE_SUPPORT),
    assumptions=(Assumption("closed-form", "the design has a closed form of the variance", _closed_form),),
    check=check,
    expect=expect,
    reads=(),
)
