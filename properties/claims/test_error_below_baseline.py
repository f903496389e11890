"""A sampler's error is compared with its baseline's by enumeration of both, and what is no number is named."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from common.sampler_cases import SMALL, tiny

from lmc_verify import (
    check_claim,
)
from lmc_verify.errors import ContractError
from lmc_verify.estimators import (
    VRGCN,
)


def test_what_is_no_number_has_no_error_to_compare() -> None:
    class Broken(VRGCN):
        def estimate(self, problem, state, batch):  # type: ignore[no-untyped-def]
            made = super().estimate(problem, state, batch)
            return replace(made, gradient={name: value * math.nan for name, value in made.gradient.items()})

    with pytest.raises(ContractError, match="is not finite"):
        check_claim("sampling/error-below-baseline", tiny(), SMALL, Broken(fan_out=1))
