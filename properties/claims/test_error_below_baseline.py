"""A sampler's error is compared with its baseline's by enumeration of both, and what is no number is named."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from common.sampler_cases import SMALL, tiny

from lmc_verify import check_claim
from lmc_verify.cases import assemble_case, prepared_state
from lmc_verify.claims import CLAIMS
from lmc_verify.errors import ContractError
from lmc_verify.estimators import VRGCN, NeighbourSampling, batch_distribution
from lmc_verify.objective import gradient_norm, gradient_sum


def test_the_error_is_the_root_of_the_mean_square() -> None:
    problem, estimator = tiny(), NeighbourSampling(1)
    case = assemble_case(problem, SMALL, VRGCN(fan_out=1), histories="zero")
    verdict = CLAIMS["sampling/error-below-baseline"].check(case)
    unit, state = gradient_norm(case.exact.gradient), estimator.init(problem)
    for sampler, name in ((case.estimator, "vr-gcn"), (estimator, "baseline neighbour-sampling")):
        held = prepared_state(case, "zero") if name == "vr-gcn" else state
        squares = 0.0
        for batch, probability in batch_distribution(sampler, problem, held, SMALL).enumerate():
            gradient = sampler.estimate(problem, held, batch).gradient
            squares += probability * gradient_norm(gradient_sum(gradient, case.exact.gradient, -1.0)) ** 2
        (found,) = (item.value for item in verdict.evidence if item.quantity == name)
        assert found == pytest.approx(math.sqrt(squares) / unit, rel=1e-12), name


def test_what_is_no_number_has_no_error_to_compare() -> None:
    class Broken(VRGCN):
        def estimate(self, problem, state, batch):  # type: ignore[no-untyped-def]
            made = super().estimate(problem, state, batch)
            return replace(made, gradient={name: value * math.nan for name, value in made.gradient.items()})

    with pytest.raises(ContractError, match="is not finite"):
        check_claim("sampling/error-below-baseline", tiny(), SMALL, Broken(fan_out=1))
