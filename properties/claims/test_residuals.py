"""Residuals keep the worst of what they are merged from, numbers that are none included."""

from __future__ import annotations

import pytest
import torch
from common.claim_cases import case_of

from lmc_verify.claims import Outcome
from lmc_verify.claims.residuals import Residuals, norm_by_layer


@pytest.mark.parametrize("first", [True, False])
def test_merging_residuals_keeps_what_is_not_a_number(first: bool) -> None:
    problem = case_of("backward-sgd").problem
    zero, unit = problem.zero_gradient(), dict.fromkeys(norm_by_layer(problem, problem.zero_gradient()), 1.0)
    name = next(iter(zero))

    def residual(value: float) -> Residuals:
        difference = zero | {name: torch.full_like(zero[name], value)}
        return Residuals.of(problem, difference, reference=zero, terms=1, magnitudes=unit)

    pair = [residual(0.0), residual(float("nan"))]
    one, other = pair if first else reversed(pair)
    assert one.merged(other).outcome is Outcome.REFUTED
    assert residual(0.0).merged(residual(1e-17)).worst == residual(1e-17).worst
