"""Error, cosine and norm ratio are those of the definitions, at any scale, by parameter and by layer."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from lmc_verify.audits.watching.comparison import Comparison, compare, compare_all, layer_of

numbers = st.floats(-10, 10).map(lambda value: round(value, 3))
vectors = st.integers(1, 6).flatmap(
    lambda size: st.tuples(*(st.lists(numbers, min_size=size, max_size=size) for _ in range(2)))
)


def plain(g: np.ndarray, exact: np.ndarray) -> tuple[float, float, float]:
    """Return the three measures as they are written, for vectors that are not zero."""
    norm, own = np.sqrt(np.sum(exact**2)), np.sqrt(np.sum(g**2))
    return np.sqrt(np.sum((g - exact) ** 2)) / norm, np.sum(g * exact) / norm / own, own / norm


def assert_close(got: Comparison, want: tuple[float, float, float]) -> None:
    for one, two in zip((got.error, got.cosine, got.norm_ratio), want, strict=True):
        assert one == pytest.approx(two, rel=1e-12, abs=1e-14)


@given(vectors, st.sampled_from([1.0, 1e-160, 1e160, 1e-300]))
def test_the_measures_are_those_of_the_definitions_at_any_scale(
    pair: tuple[list[float], list[float]], scale: float
) -> None:
    g, exact = (np.array(part) for part in pair)
    assume(g.any() and exact.any())
    got = compare([(torch.tensor(g * scale, dtype=torch.float64), torch.tensor(exact * scale, dtype=torch.float64))])
    assert_close(got, plain(g, exact))


def test_gradients_of_several_parameters_are_one_vector() -> None:
    g = [torch.tensor([[1.0, 2.0]]), torch.tensor([3.0])]
    exact = [torch.tensor([[2.0, 2.0]]), torch.tensor([1.0])]
    assert_close(compare(zip(g, exact, strict=True)), (math.sqrt(5) / 3, 9 / 3 / math.sqrt(14), math.sqrt(14) / 3))


def same(one: Comparison, two: Comparison) -> bool:
    return repr(one) == repr(two)


@pytest.mark.parametrize(
    ("g", "exact", "want"),
    [
        ([0.0, 0.0], [0.0, 0.0], Comparison(0.0, math.nan, math.nan)),
        ([1.0, 0.0], [0.0, 0.0], Comparison(math.inf, math.nan, math.inf)),
        ([0.0, 0.0], [3.0, 4.0], Comparison(1.0, math.nan, 0.0)),
        ([-3.0, -4.0], [3.0, 4.0], Comparison(2.0, -1.0, 1.0)),
        ([math.nan, 0.0], [3.0, 4.0], Comparison(math.nan, math.nan, math.nan)),
        ([1.0, 0.0], [math.inf, 4.0], Comparison(math.nan, math.nan, math.nan)),
    ],
    ids=["both zero", "exact zero", "none used", "opposite", "nan", "infinite"],
)
def test_what_is_zero_or_not_finite(g: list[float], exact: list[float], want: Comparison) -> None:
    assert same(compare([(torch.tensor(g), torch.tensor(exact))]), want)


def test_very_different_scales_end_in_infinity_and_not_in_an_error() -> None:
    got = compare([(torch.tensor([1e300], dtype=torch.float64), torch.tensor([1e-300], dtype=torch.float64))])
    assert same(got, Comparison(math.inf, 1.0, math.inf))


def test_half_precision_is_compared_in_double() -> None:
    g = torch.full((4096,), 200.0, dtype=torch.float16)
    assert_close(compare([(g, g.float())]), (0.0, 1.0, 1.0))


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("convs.0.lin.weight", "convs.0"),
        ("convs.0.bias", "convs.0"),
        ("lin.weight", "lin"),
        ("a.b.c.d.weight", "a.b"),
        ("bias", "model"),
    ],
)
def test_a_layer_is_the_first_two_parts_of_the_owner_s_name(name: str, layer: str) -> None:
    assert layer_of(name) == layer


def test_parameters_are_grouped_and_no_gradient_is_zero() -> None:
    exact = {
        "b.lin.weight": torch.tensor([3.0]),
        "b.lin.bias": torch.tensor([4.0]),
        "a": torch.eye(2),
        "c": torch.ones(1),
    }
    given = {
        "b.lin.weight": torch.tensor([3.0]),
        "b.lin.bias": None,
        "a": torch.eye(2).to_sparse(),
    }
    overall, layers, parameters = compare_all(given, exact)
    assert list(layers) == ["b.lin", "model"]
    assert list(parameters) == list(given)
    assert_close(layers["b.lin"], (4 / 5, 3 / 5, 3 / 5))
    assert_close(layers["model"], (0, 1, 1))
    assert_close(parameters["b.lin.weight"], (0, 1, 1))
    assert same(parameters["b.lin.bias"], Comparison(1.0, math.nan, 0.0))
    assert_close(overall, (4 / math.sqrt(27), math.sqrt(11 / 27), math.sqrt(11 / 27)))
