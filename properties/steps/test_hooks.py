"""Claim: a step runs with the backward hooks that its user has registered, an objective is differentiated without."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lmc_verify.errors import ContractError
from lmc_verify.steps import StepRunner, objective_gradient
from lmc_verify.steps.hooks import accumulated, without_backward_hooks


def model() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def loss_of(model: nn.Module, batch: Tensor) -> Tensor:
    out: Tensor = model(batch)
    return out.square().sum()


def step(model: nn.Module, batch: Tensor) -> None:
    loss_of(model, batch).backward()


BATCH = torch.linspace(-1, 1, 15).reshape(5, 3)


def twice(value: Tensor) -> None:
    assert value.grad is not None
    value.grad *= 2.0


HOOKS: dict[str, tuple[Callable[[nn.Module], Any], float]] = {
    "parameter": (lambda model: [value.register_hook(lambda grad: 3.0 * grad) for value in model.parameters()], 3.0),
    "accumulation": (
        lambda model: [value.register_post_accumulate_grad_hook(twice) for value in model.parameters()],
        2.0,
    ),
    "module": (
        lambda model: model.register_full_backward_pre_hook(lambda _, grads: tuple(4.0 * grad for grad in grads)),
        4.0,
    ),
}


def plain(model: nn.Module) -> dict[str, Tensor]:
    model = model.double()
    found = torch.autograd.grad(loss_of(model, BATCH.double()), list(model.parameters()))
    return dict(zip(dict(model.named_parameters()), found, strict=True))


@pytest.mark.parametrize("kind", HOOKS)
def test_a_step_has_them_and_an_objective_has_not(kind: str) -> None:
    register, factor = HOOKS[kind]
    given, want = model(), plain(model())
    register(given)
    with StepRunner(given, step) as runner:
        for _ in range(2):  # as often as it runs
            for name, value in runner.run(BATCH, None).items():
                torch.testing.assert_close(value, factor * want[name])
        runner.reading = "accumulated"
        for name, value in runner.run(BATCH, None).items():
            torch.testing.assert_close(value, want[name])
        exact = objective_gradient(runner.model, BATCH.double(), loss_of)[1]
        for name, value in exact.items():
            torch.testing.assert_close(value, want[name])
    assert all(value.grad is None for value in given.parameters())
    exact = objective_gradient(given.double(), BATCH.double(), loss_of)[1]  # of the model that has the hooks itself
    for name, value in exact.items():
        torch.testing.assert_close(value, want[name])
    given.zero_grad()
    step(given, BATCH.double())
    for name, parameter in given.named_parameters():  # they are back
        torch.testing.assert_close(parameter.grad, factor * want[name])


def test_they_are_put_back_after_an_error() -> None:
    given = model()
    first = next(given.parameters())
    first.register_hook(lambda grad: grad)

    def fails() -> None:
        with without_backward_hooks(given):
            assert not first._backward_hooks
            raise ValueError("fails")

    with pytest.raises(ValueError, match="fails"):
        fails()
    assert len(first._backward_hooks or {}) == 1


def test_a_hook_that_knows_the_caller_s_parameters_alone_breaks_the_contract() -> None:
    given = model()
    optimizers = {value: torch.optim.SGD([value], 0.1) for value in given.parameters()}
    for value in given.parameters():
        value.register_post_accumulate_grad_hook(lambda value: optimizers[value].step())
    with (
        StepRunner(given, step) as runner,
        pytest.raises(ContractError, match=r"accumulation of 2\.bias raises KeyError.*it only steps an optimiser"),
    ):
        runner.run(BATCH, None)


def test_hooks_of_frozen_parameters_are_left_out() -> None:
    given = model()
    first = next(given.parameters())
    first.register_hook(lambda grad: 3.0 * grad)
    first.requires_grad_(False)
    with StepRunner(given, step) as runner:
        assert "0.weight" not in runner.run(BATCH, None)


def moved(model: nn.Module, batch: Tensor) -> None:
    """Make a pass, move the parameters, make another pass in its place, and move back."""
    step(model, batch)
    with torch.no_grad():
        for value in model.parameters():
            value += 1.0
            value.grad = None
    step(model, batch)
    with torch.no_grad():
        for value in model.parameters():
            value -= 1.0


def test_the_pass_at_the_parameters_that_were_given_can_be_read() -> None:
    want = plain(model())
    with StepRunner(model(), moved) as runner:
        left = runner.run(BATCH, None)
        assert not runner.moved  # nobody has looked
        runner.reading = "given"
        found = runner.run(BATCH, None)
        assert runner.moved
    for name, value in found.items():
        torch.testing.assert_close(value, want[name])
        assert not torch.allclose(value, left[name])


def test_without_a_move_the_gradient_that_is_left_is_read() -> None:
    def clipped(model: nn.Module, batch: Tensor) -> None:
        step(model, batch)
        torch.nn.utils.clip_grad_value_(model.parameters(), 0.1)

    with StepRunner(model(), clipped) as runner:
        left = runner.run(BATCH, None)
        runner.reading = "given"
        assert all(torch.equal(value, left[name]) for name, value in runner.run(BATCH, None).items())
        assert not runner.moved


def test_passes_are_told_apart_by_the_values_of_parameters() -> None:
    given = model()
    parameters = dict(given.named_parameters())
    kept = {name: value.detach().clone() for name, value in parameters.items()}
    with accumulated(parameters, kept) as found:
        step(given, BATCH)
        assert not found.moved
        assert found.given.keys() == found.last.keys() == parameters.keys()
        first = found.last["0.weight"]
        given[0].weight.data.add_(1.0)  # which torch's version counter does not see
        step(given, BATCH)
    assert found.moved
    assert torch.equal(found.given["0.weight"], first)
    assert not torch.equal(found.last["0.weight"], first)
    assert torch.equal(found.given["2.weight"], found.last["2.weight"])  # it has not moved itself
