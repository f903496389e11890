"""A sampler's error is compared with its baseline's by enumeration of both, and what is no number is refuted."""

from __future__ import annotations

import math
from dataclasses import replace

from common.sampler_cases import SMALL, tiny

from lmc_verify import (
    check_claim,
)
from lmc_verify.claims import Outcome
from lmc_verify.estimators import (
    VRGCN,
)


def test_what_is_no_number_is_refuted() -> None:
    class Broken(VRGCN):
        def estimate(self, problem, state, batch):  # type: ignore[no-untyped-def]
            made = super().estimate(problem, state, batch)
            return replace(made, gradient={name: value * math.nan for name, value in made.gradient.items()})

    assert check_claim("sampling/error-below-baseline", tiny(), SMALL, Broken(fan_out=1)).outcome is Outcome.REFUTED
