"""Residuals keep the worst of what they are merged from, and what is no number is named and decides nothing."""

from __future__ import annotations

import math

import pytest
import torch
from common.claim_cases import case_of

from lmc_verify.claims import Outcome
from lmc_verify.claims.residuals import Residuals, amplified, layer_units, norm_by_layer
from lmc_verify.errors import NotFiniteError

PROBLEM = case_of("backward-sgd").problem
ZERO = PROBLEM.zero_gradient()
NAME = next(iter(ZERO))
PART = PROBLEM.layer_of(NAME)


def residual(value: float, magnitude: float = 1.0, reference: float = 0.0) -> Residuals:
    difference = ZERO | {NAME: torch.full_like(ZERO[NAME], value)}
    exact = {name: torch.full_like(tensor, reference) for name, tensor in ZERO.items()}
    magnitudes = dict.fromkeys(norm_by_layer(PROBLEM, ZERO), magnitude)
    return Residuals.of(PROBLEM, difference, reference=exact, terms=1, magnitudes=magnitudes)


def test_merging_residuals_keeps_the_worst() -> None:
    for one, other in ((residual(0.0), residual(1e-17)), (residual(1e-17), residual(0.0))):
        assert one.merged(other).worst == residual(1e-17).worst
    assert residual(1.0).merged(residual(0.0)).outcome is Outcome.REFUTED


@pytest.mark.parametrize(("value", "magnitude"), [(math.nan, 1.0), (0.0, math.nan)])
def test_what_is_no_number_is_named(value: float, magnitude: float) -> None:
    with pytest.raises(NotFiniteError, match=f"of {NAME} is NaN"):
        residual(value, magnitude)


def test_where_the_loss_derivative_vanishes_nothing_is_decided() -> None:
    assert amplified(math.inf, 0.0) == math.inf
    assert residual(1.0, math.inf).outcome is Outcome.INCONCLUSIVE
    assert residual(1.0, math.inf, reference=1.0).outcome is Outcome.INCONCLUSIVE
    assert residual(0.0, math.inf).outcome is Outcome.NOT_APPLICABLE  # nothing was there, and nothing is left


@pytest.mark.parametrize("scale", [1e-300, 1e-160, 1e-30, 1.0, 1e160, 1e300])
def test_a_residual_does_not_depend_on_the_scale(scale: float) -> None:
    for value, found in ((1e-17, Outcome.EXACT), (1e-9, Outcome.REFUTED)):
        assert residual(value * scale, scale, scale).outcome is found
    units = layer_units(PROBLEM, {name: torch.full_like(tensor, scale) for name, tensor in ZERO.items()})
    assert (units[PART] == 1.0) == (1e-100 < scale < 1e100)
    assert 1e-60 < scale / units[PART] < 1e60
