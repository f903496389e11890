"""The assertions pass where the step follows the exact gradient, and say where, how much and why where it does not."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch_geometric.data import Data
from torch_geometric.nn import GCN

from lmc_verify.audits import Audit, audit
from lmc_verify.datasets import load_data
from lmc_verify.errors import ContractError, InvalidInputError, NotFiniteError
from lmc_verify.testing import assert_bias_decays, assert_matches_exact, assert_unbiased

Loss = Callable[[Tensor, Tensor], Tensor]


@pytest.fixture(scope="module")
def data() -> Data:
    found: Data = load_data("karate")
    return found


def make_model(data: Data, **settings: Any) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: nn.Module = GCN(data.num_features, 6, 2, int(data.y.max()) + 1, **settings)
        return model


@pytest.fixture
def model(data: Data) -> nn.Module:
    return make_model(data)


def step(model: nn.Module, batch: Data) -> None:
    out = model(batch.x, batch.edge_index)
    F.cross_entropy(out[batch.train_mask], batch.y[batch.train_mask]).backward()


def off_by(factor: float) -> Callable[[nn.Module, Data], None]:
    def scaled(model: nn.Module, batch: Data) -> None:
        out = model(batch.x, batch.edge_index)
        (factor * F.cross_entropy(out[batch.train_mask], batch.y[batch.train_mask])).backward()

    return scaled


def gradients(model: nn.Module, data: Data) -> dict[str, Tensor]:
    """Return autograd's, in the model's precision; the reference of these tests."""
    loss = F.cross_entropy(model(data.x, data.edge_index)[data.train_mask], data.y[data.train_mask])
    named = dict(model.named_parameters())
    return dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))


# --------------------------------------------------------------------------------------------------------- unbiased


def test_an_unbiased_step_passes_and_the_audit_comes_back(model: nn.Module, data: Data) -> None:
    found = assert_unbiased(model, data, [(data, 0.5), (data, 0.5)], step, seed=4)
    assert (found.outcome.value, found.seed, found.delta) == ("EXACT", 4, 0.01)


@pytest.mark.parametrize(("factor", "rtol", "passes"), [(1.02, 0.01, False), (1.02, 0.03, True), (1.02, 0.0, False)])
def test_rtol_is_the_share_that_a_bias_may_have(
    model: nn.Module, data: Data, factor: float, rtol: float, passes: bool
) -> None:
    if passes:
        assert assert_unbiased(model, data, [data], off_by(factor), rtol=rtol).outcome.value == "REFUTED"
        return
    with pytest.raises(AssertionError) as raised:
        assert_unbiased(model, data, [data], off_by(factor), rtol=rtol, seed=7)
    message = str(raised.value)
    assert re.search(r"worst parameter \S+: off by 2% of its own gradient", message)
    assert "cause: one global factor" in message
    assert f"rtol {rtol:g}, exact" in message
    assert message.endswith("seed 7")


@pytest.mark.parametrize("rtol", [-0.1, 1.0, float("inf"), float("nan")])
def test_an_rtol_that_cannot_fail_is_refused(model: nn.Module, data: Data, rtol: float) -> None:
    for call in (
        lambda: assert_unbiased(model, data, [data], step, rtol=rtol),
        lambda: assert_matches_exact(model, data, step, rtol=rtol),
        lambda: assert_bias_decays(model, data, [data], step, state={}, rtol=rtol),
    ):
        with pytest.raises(InvalidInputError, match="share of the exact gradient's norm"):
            call()


@pytest.mark.slow
def test_a_refused_guarantee_lets_no_rtol_pass(model: nn.Module, data: Data) -> None:
    def noisy(model: nn.Module, batch: Data) -> None:
        off_by(0.9 if torch.rand(()) < 0.5 else 1.1)(model, batch)

    assert assert_unbiased(model, data, [data], noisy, rtol=0.1).guarantee == "asymptotic"
    for guarantee in ("exact", "anytime-valid"):
        with pytest.raises(AssertionError, match=f"nothing is decided with guarantee='{guarantee}'"):
            assert_unbiased(model, data, [data], noisy, rtol=0.1, guarantee=guarantee)


def test_another_auditor_is_used(model: nn.Module, data: Data) -> None:
    asked: list[dict[str, Any]] = []

    def using(*arguments: Any, **options: Any) -> Audit:
        asked.append(options)
        return audit(*arguments, **options)

    assert_unbiased(model, data, [data], step, using=using, seed=1)
    assert_matches_exact(model, data, step, using=using)
    table = torch.zeros(3)
    assert_bias_decays(model, data, [data], step, state=table, using=using, sweeps=1)
    assert [item.get("seed") for item in asked] == [1, 0, None]
    assert [item["delta"] for item in asked if "delta" in item] == [0.01, 1e-6]


# ---------------------------------------------------------------------------------------------------- exact gradient


def test_a_full_batch_step_is_compared_with_the_exact_gradient(model: nn.Module, data: Data) -> None:
    assert_matches_exact(model, data, step)
    assert_matches_exact(model, data, off_by(1.001), rtol=0.01)
    with pytest.raises(AssertionError, match=r"off by 0\.1% of the gradient's norm"):
        assert_matches_exact(model, data, off_by(1.001))
    with pytest.raises(AssertionError, match=r"off by 1\.0e-09"):
        assert_matches_exact(model, data, off_by(1 + 1e-9))


@pytest.mark.slow
def test_a_step_with_dropout_is_no_one_gradient(data: Data) -> None:
    model = make_model(data, dropout=0.5)
    with pytest.raises(AssertionError, match=r"draws for itself has no one gradient.*\(dropout\).*model\.eval\(\)"):
        assert_matches_exact(model, data, step, rtol=0.5)
    assert_matches_exact(model.eval(), data, step)


def test_an_objective_of_one_s_own_is_the_reference(model: nn.Module, data: Data) -> None:
    def total(model: nn.Module, data: Data) -> Tensor:
        out = model(data.x, data.edge_index)
        return F.cross_entropy(out[data.train_mask], data.y[data.train_mask], reduction="sum")

    found = {name: int(data.train_mask.sum()) * value for name, value in gradients(model, data).items()}
    assert_matches_exact(model, data, found, objective=total)
    assert_matches_exact(model, data, off_by(int(data.train_mask.sum())), objective=total)
    with pytest.raises(AssertionError, match="off by"):
        assert_matches_exact(model, data, found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_are_judged_in_their_own_precision(model: nn.Module, data: Data, dtype: torch.dtype) -> None:
    model = model.to(dtype)
    there = data.clone()
    there.x = data.x.to(dtype)
    found = gradients(model, there)
    assert_matches_exact(model, there, found)
    name = "convs.1.lin.weight"
    for factor in (1e-3, 0.02):
        wrong = {**found, name: found[name] * (1 + factor)}
        with pytest.raises(
            AssertionError, match=rf"worst parameter {name}: off by {100 * factor:g}% of its own.*{dtype}"
        ):
            assert_matches_exact(model, there, wrong)
        assert_matches_exact(model, there, wrong, rtol=factor)
    almost = {**found, name: found[name] * (1 + 1e-10)}
    if dtype is torch.float64:
        with pytest.raises(AssertionError, match="rounding allows"):
            assert_matches_exact(model, there, almost)


def test_rtol_counts_what_rounding_may_hide(model: nn.Module, data: Data) -> None:
    """What passes is the upper end: the bias, here 1e-9 of the gradient, and the rounding that it is known to."""
    model, there = model.double(), data.clone()
    there.x = data.x.double()
    off = {name: value * (1 + 1e-9) for name, value in gradients(model, there).items()}
    assert_matches_exact(model, there, off, rtol=1e-9 + 1e-11)
    with pytest.raises(AssertionError, match="rtol allows"):
        assert_matches_exact(model, there, off, rtol=1e-9 + 1e-15)


def test_gradients_of_several_precisions_are_judged_in_the_lowest(model: nn.Module, data: Data) -> None:
    found = gradients(model, data)
    first, *_ = found
    mixed = {name: value.double() if name == first else value for name, value in found.items()}
    assert_matches_exact(model, data, mixed)
    with pytest.raises(AssertionError, match=r"in torch\.float32"):
        assert_matches_exact(model, data, {**mixed, first: 2.0 * mixed[first]})


def test_half_precision_needs_an_rtol(model: nn.Module, data: Data) -> None:
    half = {name: value.bfloat16() for name, value in gradients(model, data).items()}
    with pytest.raises(InvalidInputError, match=r"in torch\.bfloat16.*give rtol"):
        assert_matches_exact(model, data, half)
    assert_matches_exact(model, data, half, rtol=0.02)
    with pytest.raises(AssertionError, match="rtol allows"):
        assert_matches_exact(model, data, {name: 1.1 * value for name, value in half.items()}, rtol=0.02)


def test_incomplete_gradients_are_a_broken_contract(model: nn.Module, data: Data) -> None:
    found = gradients(model, data)
    first = next(iter(found))
    with pytest.raises(ContractError, match=f"missing of: {first}; given of no trainable parameter: none"):
        assert_matches_exact(model, data, {name: value for name, value in found.items() if name != first})
    with pytest.raises(ContractError, match="given of no trainable parameter: other"):
        assert_matches_exact(model, data, {**found, "other": torch.zeros(1)})
    with pytest.raises(ContractError, match="every gradient is None"):
        assert_matches_exact(model, data, dict.fromkeys(found))
    with pytest.raises(ContractError, match="as the gradient of"):
        assert_matches_exact(model, data, {**found, first: torch.zeros(1)})
    with pytest.raises(NotFiniteError):
        assert_matches_exact(model, data, {**found, first: found[first] * float("nan")})


def test_frozen_parameters_have_no_gradient_to_compare(model: nn.Module, data: Data) -> None:
    first = next(iter(dict(model.named_parameters())))
    dict(model.named_parameters())[first].requires_grad_(False)
    step(model, data)
    assert_matches_exact(model, data, {name: value.grad for name, value in model.named_parameters()})


def test_a_vanishing_gradient_is_no_unit(model: nn.Module, data: Data) -> None:
    found = {name: torch.zeros_like(value) for name, value in gradients(model, data).items()}
    with pytest.raises(InvalidInputError, match="vanishes"):
        assert_matches_exact(model, data, found, objective=lambda model, data: 0.0 * next(model.parameters()).sum())


def test_model_and_data_are_left_alone(model: nn.Module, data: Data) -> None:
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    assert_matches_exact(model, data, gradients(model, data))
    assert_matches_exact(model, data, step)
    assert all(torch.equal(value, kept[name]) for name, value in model.state_dict().items())
    assert all(value.grad is None for value in model.parameters())
    assert {value.dtype for value in model.parameters()} == {torch.float32}


# ------------------------------------------------------------------------------------------------------- bias decays


def weighted(data: Data) -> Tensor:
    return torch.linspace(0.1, 1, data.x.shape[0]).to(data.x) @ data.x


class Loop:
    """A weighted sum over nodes, held in a history that moves towards its exact value by a share at every step."""

    def __init__(self, data: Data, share: float, floor: float = 0.0) -> None:
        self.share, self.floor = share, floor
        self.history = torch.zeros(data.num_features)

    def __call__(self, model: nn.Module, batch: Data) -> None:
        with torch.no_grad():
            new = (1 - self.share) * self.history + self.share * weighted(batch).to(self.history)
            self.history.copy_(new)
        (model(self.history[None].to(batch.x)).sum() * (1 + self.floor)).backward()


def summed(model: nn.Module, data: Data) -> Tensor:
    return model(weighted(data)[None]).sum()


@pytest.fixture
def linear(data: Data) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Linear(data.num_features, 2)


def decays(linear: nn.Module, data: Data, loop: Loop, **options: Any) -> Audit:
    return assert_bias_decays(linear, data, [data], loop, state=loop.history, objective=summed, **options)


def test_a_history_that_becomes_exact_passes(linear: nn.Module, data: Data) -> None:
    loop = Loop(data, share=1.0)
    found = decays(linear, data, loop)
    assert found.high <= 1e-6
    assert float(loop.history.abs().sum()) == 0.0, "the caller's history is left alone"


def test_a_slow_history_needs_its_sweeps(linear: nn.Module, data: Data) -> None:
    slow = Loop(data, share=0.5)
    with pytest.raises(AssertionError, match=r"does not decay at frozen parameters; by sweeps: [\d., e-]+"):
        decays(linear, data, slow, sweeps=3)
    decays(linear, data, slow, sweeps=3, rtol=0.2)
    found = decays(linear, data, slow, sweeps=22)
    curve = found.series[0].y
    assert curve[4] == pytest.approx(curve[3] / 2)


def test_a_bias_that_stays_is_named_with_its_course(linear: nn.Module, data: Data) -> None:
    with pytest.raises(AssertionError) as raised:
        decays(linear, data, Loop(data, share=1.0, floor=0.05), seed=5)
    message = str(raised.value)
    assert "; by sweeps: " in message
    assert re.search(r"worst parameter (weight|bias): off by 5%", message)
    assert message.endswith("seed 5")


def test_a_step_without_a_state_has_nothing_that_decays(model: nn.Module, data: Data) -> None:
    with pytest.raises(InvalidInputError, match="state is None"):
        assert_bias_decays(model, data, [data], step, state=None)
