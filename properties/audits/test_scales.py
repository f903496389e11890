"""Claim: an audit of a loss in other units finds the same bias and causes; what numbers do not hold is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from common.audit_cases import make_net, random_graph, subgraphs
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch_geometric.data import Data

import lmc_verify as lv
from lmc_verify import Audit, InvalidInputError, NotFiniteError
from lmc_verify.audits.subject import SQUARES, cosine, length, norm, times
from lmc_verify.steps import mean_loss

LARGE = 10 * SQUARES**1.1
"""Squares of it overflow, and those of its inverse vanish."""


def judge(scale: float, *, of_step: float | None = None, **options: Any) -> Audit:
    """Audit a mean over the labelled nodes of batches of different sizes, in units of `scale`."""

    def step(model: nn.Module, batch: Data) -> None:
        out = model(batch.x, batch.edge_index)[batch.train_mask]
        loss: Tensor = nn.functional.cross_entropy(out, batch.y[batch.train_mask])
        (loss * (scale if of_step is None else of_step)).backward()

    def objective(model: nn.Module, data: Data) -> Tensor:
        return mean_loss(model, data) * scale

    data = random_graph()
    return lv.audit(make_net(), data, subgraphs(data, 5), step, objective=objective, **options)


@pytest.mark.slow
@pytest.mark.parametrize("scale", [1e-280, LARGE])
def test_the_same_bias_has_the_same_causes_in_other_units(scale: float) -> None:
    plain, other = judge(1.0), judge(scale)
    assert plain.outcome is other.outcome is lv.Outcome.REFUTED
    assert other.bias == pytest.approx(plain.bias, rel=1e-9)
    assert [cause.id for cause in other.causes] == [cause.id for cause in plain.causes]
    assert [item.wrong for item in other.parameters] == [item.wrong for item in plain.parameters]
    assert other.notes == plain.notes
    assert len(plain.causes) > 0


@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_a_bias_is_seen_where_squares_in_single_precision_vanish(scale: float) -> None:
    plain, other = (judge(unit, dtype=torch.float32, causes=False) for unit in (1.0, scale))
    assert plain.outcome is other.outcome is lv.Outcome.REFUTED
    assert other.bias == pytest.approx(plain.bias, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("scale", [1 / LARGE])
def test_draws_in_other_units_are_the_same(scale: float) -> None:
    def judged(unit: float) -> Audit:
        def step(model: nn.Module, batch: Data) -> None:
            noise = 1 + 0.1 * torch.randn((), dtype=torch.float64)
            out = model(batch.x, batch.edge_index)[batch.train_mask]
            (3 * unit * noise * nn.functional.cross_entropy(out, batch.y[batch.train_mask])).backward()

        data = random_graph()
        return lv.audit(
            make_net(),
            data,
            subgraphs(data, 4),
            step,
            objective=lambda model, data: unit * mean_loss(model, data),
            along=[0],
            draws=32,
            causes=False,
        )

    plain, other = judged(1.0), judged(scale)
    assert plain.outcome is other.outcome is lv.Outcome.REFUTED
    assert other.bias == pytest.approx(plain.bias, rel=1e-9)
    assert other.series[1].y[0] == pytest.approx(plain.series[1].y[0], rel=1e-9)


@pytest.mark.parametrize(("scale", "dtype"), [(1e-295, torch.float64), (1e-34, torch.float32), (1e295, torch.float64)])
def test_a_gradient_whose_rounding_numbers_do_not_hold_is_refused(scale: float, dtype: torch.dtype) -> None:
    with pytest.raises(InvalidInputError, match=r"gradient's norm is .*e[+-].*multiply the step's loss"):
        judge(scale, dtype=dtype, causes=False)


def test_a_step_of_quite_another_scale_than_its_objective_is_refused() -> None:
    with pytest.raises(NotFiniteError, match=r"first\.bias has entries of .* times the norm of the objective's"):
        judge(1.0, of_step=LARGE, causes=False)


@given(st.lists(st.floats(-1, 1), min_size=4, max_size=4), st.integers(-300, 300))
def test_lengths_and_angles_do_not_depend_on_the_unit(values: list[float], power: int) -> None:
    """The unit is a power of two here, so that it rounds nothing."""
    unit, given_values = 2.0**power, torch.tensor([*values, 1.0], dtype=torch.float64)
    large = 2.0**600 * unit
    one, other = given_values, torch.ones(5, dtype=torch.float64)
    size = float((one * one).sum()) ** 0.5
    assert length(large * one) == pytest.approx(large * size, rel=1e-12)
    assert norm({"a": large * one[:2], "b": large * one[2:]}) == pytest.approx(large * size, rel=1e-12)
    assert cosine({"a": large * one}, {"a": other / large}) == pytest.approx(
        float(one.sum()) / size / 5**0.5, abs=1e-12
    )
    assert times({"a": large * one}, {"a": large * other}) == pytest.approx(float(one.sum()) / 5, abs=1e-12)


def test_nothing_has_no_length_and_no_angle() -> None:
    nothing, one = {"a": torch.zeros(2)}, {"a": torch.ones(2)}
    assert norm({}) == norm(nothing) == length(torch.zeros(0)) == 0.0
    assert cosine(nothing, one) == times(nothing, one) == times(one, nothing) == 0.0
    assert norm({"a": torch.tensor([1.0, float("inf")])}) == float("inf")
