"""Sampled aggregates are unbiased to rounding, from draws within the stated error, and what is biased is seen."""

from __future__ import annotations

import pytest
import torch
from common.sampler_cases import SMALL, tiny

from lmc_verify import (
    check_claim,
)
from lmc_verify.claims import Outcome
from lmc_verify.estimators import (
    LADIES,
)
from lmc_verify.estimators.samplers.layerwise import LadiesLaw


@pytest.mark.parametrize("weight", [1.0, 1e-4, 1e-7, 1e-9])
def test_a_tiny_message_does_not_hide_a_bias(weight: float) -> None:
    class Heavier(LadiesLaw):
        def _kept(self, operator, rows, q, count):  # type: ignore[no-untyped-def]
            kept = super()._kept(operator, rows, q, count)
            return kept._replace(scale=1.05 * kept.scale)

    class Wrong(LADIES):
        def _law(self, size, problem, state):  # type: ignore[no-untyped-def]
            return Heavier(size)

    weights = torch.ones(6, dtype=torch.float64)
    weights[0] = weight
    problem = tiny(1, edge_weight=weights)
    assert check_claim("sampling/unbiased-aggregation", problem, SMALL, LADIES(nodes=2)).outcome is Outcome.EXACT
    verdict = check_claim("sampling/unbiased-aggregation", problem, SMALL, Wrong(nodes=2))
    assert verdict.outcome is Outcome.REFUTED
    assert verdict.residual == pytest.approx(0.05)
