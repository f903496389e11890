"""The outcome from draws is that of all of them: one that is off is not overlooked, wherever it comes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial

import pytest
import torch

from lmc_verify.audits.decision import Decision, decide_sampled
from lmc_verify.audits.subject import Gradient
from lmc_verify.cases.verdict import Outcome
from lmc_verify.errors import ContractError
from lmc_verify.statistics.ledger import Guarantee

EXACT = {"weight": torch.tensor([[3.0, 0.0], [0.0, 0.0]]).double(), "bias": torch.tensor([4.0, 0.0]).double()}
NOISE = {"weight": 1e-10, "bias": 1e-10}
COUNT, ALPHA = 20, 0.05

near = partial(pytest.approx, rel=1e-9, abs=0.0)


def decide(
    sizes: list[float], *, guarantee: Guarantee = "asymptotic", bound: float | None = None, delta: float = 1e-3
) -> Decision:
    """Decide from draws that are off by these sizes, in the bias alone."""

    def draws() -> Iterator[tuple[Gradient, int]]:
        for size in sizes:
            yield {"weight": torch.zeros(2, 2).double(), "bias": torch.tensor([0.0, size], dtype=torch.float64)}, 3

    return decide_sampled(
        EXACT, draws(), len(sizes), NOISE, guarantee=guarantee, bound=bound, alpha=ALPHA, delta=delta, control="its own"
    )


def test_draws_that_are_all_equal_to_rounding_support_and_say_what_share_is_not_seen() -> None:
    found = decide([0.9e-10] * COUNT)
    assert found.outcome is Outcome.SUPPORTED
    assert found.draws == 3 * COUNT
    assert f"{100 * math.log(1 / ALPHA) / COUNT:.0f}%" in found.summary
    assert found.high == near(math.hypot(*NOISE.values()) / 5)
    assert [item.high for item in found.parameters] == near([1e-10 / 5] * 2)


@pytest.mark.parametrize("place", [0, 7, COUNT - 1], ids=["first", "in between", "last"])
@pytest.mark.parametrize("size", [1.5e-10, 1e-9, 5.0])
def test_one_draw_that_is_off_is_not_called_rounding(place: int, size: float) -> None:
    sizes = [0.0] * COUNT
    sizes[place] = size
    found = decide(sizes, delta=1e-12)
    assert found.outcome is Outcome.INCONCLUSIVE
    assert found.bias == near(size / COUNT / 5)
    assert [item.wrong for item in found.parameters] == [False, False]


@pytest.mark.parametrize(("guarantee", "bound"), [("asymptotic", None), ("anytime-valid", 10.0)])
def test_a_bias_in_every_draw_is_refuted_and_belongs_to_its_parameter(
    guarantee: Guarantee, bound: float | None
) -> None:
    found = decide([20.0 + 0.1 * (draw % 2) for draw in range(200)], guarantee=guarantee, bound=bound)
    assert found.outcome is Outcome.REFUTED
    assert found.guarantee == guarantee
    assert found.bias == near(20.05 / 5)
    assert 0 < found.low <= found.bias <= found.high
    weight, bias = found.parameters
    assert (weight.own, weight.wrong) == (0.0, False)
    assert (bias.own, bias.wrong) == (near(20.05 / 4), True)


def test_draws_that_are_off_to_and_fro_are_supported_once_the_radius_is_below_what_is_asked_for() -> None:
    found = decide([0.1, -0.1] * 200, guarantee="anytime-valid", bound=0.1, delta=0.05)
    assert (found.outcome, found.guarantee) == (Outcome.SUPPORTED, "anytime-valid")
    assert 0.0 < found.high <= 0.05
    assert "each is equal to rounding" not in found.summary
    assert decide([0.1, -0.1] * 200, guarantee="anytime-valid", bound=0.1, delta=1e-6).outcome is Outcome.INCONCLUSIVE


@pytest.mark.parametrize("guarantee", ["exact", "anytime-valid"])
def test_a_guarantee_that_draws_without_a_bound_cannot_give_decides_nothing(guarantee: Guarantee) -> None:
    found = decide([20.0 + 0.1 * (draw % 2) for draw in range(200)], guarantee=guarantee)
    assert (found.outcome, found.low, found.high) == (Outcome.INCONCLUSIVE, 0.0, math.inf)
    assert "would be REFUTED" in found.note
    assert not any(item.wrong for item in found.parameters)


def test_a_draw_beyond_what_was_given_as_proven_breaks_the_contract() -> None:
    with pytest.raises(ContractError, match=r"a draw is 6 gradient norms from its control, beyond the bound 5 "):
        decide([0.0] * 9 + [30.0], guarantee="anytime-valid", bound=5.0)
