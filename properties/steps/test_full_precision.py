"""Casts and autocast are left out of a step, and come back after it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lmc_verify.steps.full_precision import full_precision

LAYER = torch.arange(6, dtype=torch.float64).reshape(2, 3) / 7


def autocast(x: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return x.float() @ LAYER.T.float()


STEPS: dict[str, Callable[[Tensor], Tensor]] = {
    "float": lambda x: x.float() @ LAYER.T.float(),
    "half": lambda x: x.half().double(),
    "to": lambda x: x.to(torch.float32).to(torch.float64),
    "to by name": lambda x: x.to(dtype=torch.bfloat16).double(),
    "type": lambda x: x.type(torch.float32),
    "autocast": autocast,
}


@pytest.mark.parametrize("name", STEPS)
def test_a_step_keeps_to_double_precision(name: str) -> None:
    x = torch.linspace(0.1, 0.9, 3, dtype=torch.float64)[None].repeat(2, 1)
    step = STEPS[name]
    before = step(x)
    with full_precision():
        inside = step(x)
    assert inside.dtype is torch.float64
    assert not torch.equal(before.double(), inside)
    torch.testing.assert_close(before.double(), inside, rtol=2e-2, atol=2e-2)
    assert torch.equal(step(x), before)


def test_other_conversions_are_as_asked_for() -> None:
    with full_precision():
        assert torch.arange(3).float().dtype is torch.float32
        assert torch.ones(2, dtype=torch.float64).to(torch.int64).dtype is torch.int64
        assert torch.ones(2, dtype=torch.float64).long().dtype is torch.int64
