"""Claim: modes stay on while torch goes backward.

Under `MaskedBiases` a step computes the same, and biases get the gradient of the batch's rows only.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from lmc_verify.seeds import torch_generator
from lmc_verify.steps.modes import MaskedBiases, StepMode

ROWS, WIDTH = 6, 3


def masked(own: Tensor | None = None) -> MaskedBiases:
    """Return the mode for rows 0, 1 and 4 of six."""
    return MaskedBiases(lambda rows: torch.isin(torch.arange(ROWS), torch.tensor([0, 1, 4])) if rows == ROWS else own)


def in_place(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    out = x @ weight.T
    out += bias
    return out


ADDING: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "plus": lambda x, weight, bias: x @ weight.T + bias,
    "bias first": lambda x, weight, bias: bias + x @ weight.T,
    "torch.add": lambda x, weight, bias: torch.add(x @ weight.T, bias),
    "in place": in_place,
    "linear": F.linear,
    "linear by name": lambda x, weight, bias: F.linear(x, weight=weight, bias=bias),
}


def given() -> tuple[Tensor, nn.Parameter, nn.Parameter, Tensor]:
    generator = torch_generator(0, "masked")
    x, weight, bias, adjoint = (
        torch.randn(*shape, dtype=torch.float64, generator=generator)
        for shape in ((ROWS, 4), (WIDTH, 4), (WIDTH,), (ROWS, WIDTH))
    )
    return x, nn.Parameter(weight), nn.Parameter(bias), adjoint


@pytest.mark.parametrize("adding", ADDING.values(), ids=ADDING)
def test_biases_get_the_gradient_of_the_batch_s_rows(adding: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    x, weight, bias, adjoint = given()
    plain = adding(x, weight, bias)
    with masked():
        out = adding(x, weight, bias)
    of_weight, of_bias = torch.autograd.grad(out, [weight, bias], adjoint)
    assert torch.equal(out, plain) or torch.allclose(out, plain, rtol=0, atol=1e-15)
    assert torch.allclose(of_bias, adjoint[[0, 1, 4]].sum(0), rtol=0, atol=1e-15)
    assert torch.allclose(of_weight, adjoint.T @ x, rtol=0, atol=1e-14)


def test_sums_with_something_else_than_a_bias_stay_as_they_are() -> None:
    x, weight, bias, adjoint = given()
    with masked():
        table = nn.Parameter(torch.zeros(ROWS, WIDTH, dtype=torch.float64))
        (of_table,) = torch.autograd.grad(x @ weight.T + table, table, adjoint)
        (unknown,) = torch.autograd.grad(x[:5] @ weight.T + bias, bias, adjoint[:5])
    assert torch.equal(of_table, adjoint)
    assert torch.allclose(unknown, adjoint[:5].sum(0), rtol=0, atol=1e-15)


class Doubling(StepMode):
    """Takes twice the sine."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        return 2.0 * out if func is torch.sin else out


class Halving(StepMode):
    """Takes half the cosine."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        return 0.5 * out if func is torch.cos else out


@pytest.mark.parametrize("reentrant", [False, True])
def test_what_is_computed_anew_backward_is_what_was_computed_forward(reentrant: bool) -> None:
    x = torch.linspace(0.1, 1.0, 5, dtype=torch.float64, requires_grad=True)
    engine = torch.autograd._engine_run_backward  # type: ignore[attr-defined]
    with Doubling(), Halving():
        checkpoint(
            lambda value: torch.sin(value).square() * torch.cos(value), x, use_reentrant=reentrant
        ).sum().backward()
    assert torch.autograd._engine_run_backward is engine  # type: ignore[attr-defined]
    sin, cos = x.detach().sin(), x.detach().cos()
    torch.testing.assert_close(x.grad, 2.0 * (2.0 * sin * cos * cos - sin**3))  # of 4 sin^2 cos / 2


def test_backward_passes_of_other_threads_are_left_alone() -> None:
    x = torch.linspace(0.1, 1.0, 5, dtype=torch.float64, requires_grad=True)

    def other() -> None:
        checkpoint(lambda value: torch.sin(value).square(), x, use_reentrant=False).sum().backward()

    with Doubling():
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    torch.testing.assert_close(x.grad, 2.0 * x.detach().sin() * x.detach().cos())


def test_an_error_takes_the_mode_off() -> None:
    engine = torch.autograd._engine_run_backward  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="fails"), Doubling():
        raise ValueError("fails")
    assert torch.autograd._engine_run_backward is engine  # type: ignore[attr-defined]
    assert float(torch.sin(torch.tensor(0.5))) == float(torch.tensor(0.5).sin())
