"""A refuted mean is described by what leads to its cause: a factor, one parameter, single precision."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
import torch
from common.helpers import path_graph

from lmc_verify import (
    GAS,
    GCN,
    BackwardSGD,
    Batch,
    Clusters,
    Estimate,
    Gradient,
    History,
    Partition,
    Problem,
    Verdict,
    check_claim,
)
from lmc_verify.claims.diagnosis import (
    COSINE,
    MOSTLY,
    SATURATED,
    SINGLE_PRECISION,
    UNEXPLAINED,
    likeness,
    saturation,
    worst_parameter,
)
from lmc_verify.encoding import decode, encode
from lmc_verify.models import ConvLayer, GCNConv, LayeredModel
from lmc_verify.objective import exact_gradient, gradient_norm

DESIGN = Clusters(Partition.contiguous(6, 3), 1)


def problem_of() -> Problem:
    return Problem(path_graph(6), GCN(3, 4, 3, 2, dtype=torch.float64).eval())


def verdict_of(change: Callable[[Gradient, Gradient], Gradient]) -> Verdict:
    """Return the verdict of Theorem 1 on Backward SGD with a constant added to every estimate, or a factor."""
    problem = problem_of()
    exact = exact_gradient(problem)[1]

    @dataclass(frozen=True)
    class Changed(BackwardSGD):
        name: ClassVar[str] = "changed"

        def estimate(self, problem: Problem, state: History, batch: Batch) -> Estimate:
            made = super().estimate(problem, state, batch)
            return replace(made, gradient=change(made.gradient, exact))

    return check_claim("theorem-1/unbiased", problem, DESIGN, Changed())


def measured(verdict: Verdict, start: str) -> float:
    return next(item.value for item in verdict.evidence if item.quantity.startswith(start))


@pytest.mark.parametrize("factor", [34.0, 0.5, 1.001, 1.005, 3.0])
def test_a_multiple_of_the_gradient_is_called_one(factor: float) -> None:
    verdict = verdict_of(lambda gradient, exact: {name: factor * value for name, value in gradient.items()})
    assert verdict.outcome.value == "REFUTED"
    assert f"the mean is {factor:.4g} times the gradient, cosine 1.0000" in verdict.summary
    assert measured(verdict, "mean estimate as a multiple") == pytest.approx(factor, rel=1e-9)
    assert measured(verdict, "cosine") == pytest.approx(1.0, abs=1e-12)


def test_a_sign_is_no_factor_of_this_kind() -> None:
    verdict = verdict_of(lambda gradient, exact: {name: -value for name, value in gradient.items()})
    assert "times the gradient" not in verdict.summary
    assert measured(verdict, "cosine") == pytest.approx(-1.0, abs=1e-12)


def test_a_leak_into_one_parameter_is_named_alone() -> None:
    name = "layers.1.conv.bias"

    def leak(gradient: Gradient, exact: Gradient) -> Gradient:
        return {key: value + (3.4 * exact[name] if key == name else 0.0) for key, value in gradient.items()}

    verdict = verdict_of(leak)
    assert f"{name} alone: 340% of its own gradient, everything else at rounding" in verdict.summary


def test_of_several_parameters_the_worst_is_named() -> None:
    weights = {"layers.0.conv.lin.weight": 0.2, "layers.1.conv.lin.weight": 2.5}

    def add(gradient: Gradient, exact: Gradient) -> Gradient:
        return {name: value + weights.get(name, 0.0) * exact[name].flip(0).roll(1) for name, value in gradient.items()}

    assert "worst parameter layers.1.conv.lin.weight: 250% of its own gradient" in verdict_of(add).summary


def test_single_precision_is_called_that() -> None:
    def rounded(gradient: Gradient, exact: Gradient) -> Gradient:
        return {name: value.float().double() for name, value in gradient.items()}

    verdict = verdict_of(rounded)
    assert verdict.outcome.value == "REFUTED"
    assert "rounding in single precision" in verdict.summary


@pytest.mark.parametrize("size", [1e-5, 1e-2])
def test_what_is_larger_than_single_precision_is_not_excused(size: float) -> None:
    def noisy(gradient: Gradient, exact: Gradient) -> Gradient:
        return {name: value + size * exact[name].flip(0) for name, value in gradient.items()}

    assert "single precision" not in verdict_of(noisy).summary


def test_gas_is_no_factor_and_no_rounding() -> None:
    verdict = check_claim("theorem-1/unbiased", problem_of(), DESIGN, GAS())
    assert verdict.outcome.value == "REFUTED"
    assert "times the gradient" not in verdict.summary
    assert "worst parameter layers.0." in verdict.summary


def test_what_is_not_defined_is_no_evidence() -> None:
    def vanishing(gradient: Gradient, exact: Gradient) -> Gradient:
        return {name: 0 * value for name, value in gradient.items()}

    verdict = verdict_of(vanishing)
    assert verdict.outcome.value == "REFUTED"
    assert [item.value for item in verdict.evidence if item.group == "likeness"] == [0.0]
    assert Verdict.from_dict(decode(encode(verdict.to_dict()))) == verdict  # NaN would not be equal to itself


def test_likeness_by_hand() -> None:
    exact = {"a": torch.tensor([3.0, 0.0]), "b": torch.tensor([4.0])}
    bias = {"a": torch.tensor([0.0, 5.0]), "b": torch.tensor([0.0])}
    factor, cosine = likeness(bias, exact)
    assert (factor, cosine) == (pytest.approx(1.0), pytest.approx(1 / np.sqrt(2)))
    nothing = {name: -value for name, value in exact.items()}  # a mean of zero has no direction
    factor, cosine = likeness(nothing, exact)
    assert (factor, np.isnan(cosine)) == (0.0, True)
    assert all(np.isnan(likeness(exact, {name: 0 * value for name, value in exact.items()})))
    assert 0.999 < COSINE < 1
    assert SINGLE_PRECISION[0] < 2**-24 < SINGLE_PRECISION[1]


def across(exact: Gradient) -> Gradient:
    """Return a direction of the gradient's norm, at a right angle to it."""
    generator, norm = torch.Generator().manual_seed(0), gradient_norm(exact)
    noise = {name: torch.randn(value.shape, generator=generator, dtype=value.dtype) for name, value in exact.items()}
    along = sum(float((noise[name] * value).sum()) for name, value in exact.items()) / norm**2
    found = {name: noise[name] - along * value for name, value in exact.items()}
    return {name: value * (norm / gradient_norm(found)) for name, value in found.items()}


@pytest.mark.parametrize(("turn", "called"), [(0.9, True), (1.1, False)])
def test_the_cosine_decides_which_word_is_used(turn: float, called: bool) -> None:
    """Every estimate is turned out of the gradient's direction by an angle just inside, or outside, of the limit."""
    size = turn * np.sqrt(1 / COSINE**2 - 1)

    def turned(gradient: Gradient, exact: Gradient) -> Gradient:
        return {name: 2 * value + 2 * size * across(exact)[name] for name, value in gradient.items()}

    assert ("times the gradient" in verdict_of(turned).summary) is called


@pytest.mark.parametrize(("part", "called"), [(0.9, True), (1.1, False)])
@pytest.mark.parametrize("along", [0.005, -0.005])
def test_what_remains_beside_the_factor_decides_which_word_is_used(along: float, part: float, called: bool) -> None:
    """At the limit remains / bias is UNEXPLAINED, for a bias of `along` in the gradient's direction."""
    size = part * abs(along) / np.sqrt(1 / UNEXPLAINED**2 - 1)

    def moved(gradient: Gradient, exact: Gradient) -> Gradient:
        return {name: (1 + along) * value + size * across(exact)[name] for name, value in gradient.items()}

    verdict = verdict_of(moved)
    assert measured(verdict, "cosine") > COSINE
    assert ("times the gradient" in verdict.summary) is called


def test_one_parameter_moved_a_little_across_the_gradient_is_named_alone() -> None:
    """Every direction of so small a bias has a cosine near 1; the factor itself, 1.005, is called one."""
    name = "layers.1.conv.lin.weight"

    def moved(gradient: Gradient, exact: Gradient) -> Gradient:
        return gradient | {name: gradient[name] + 0.005 * across({name: exact[name]})[name]}

    verdict = verdict_of(moved)
    assert measured(verdict, "cosine") > COSINE
    assert f"{name} alone: 0.5% of its own gradient, everything else at rounding" in verdict.summary
    assert "times the gradient" not in verdict.summary


def test_the_worst_parameter_is_named_with_its_size() -> None:
    exact = {"a": torch.tensor([3.0, 4.0], dtype=torch.float64), "b": torch.tensor([1.0], dtype=torch.float64)}
    nothing = {name: torch.zeros_like(value) for name, value in exact.items()}
    assert worst_parameter(nothing, exact, 1e-10) == ""
    alone = worst_parameter(nothing | {"b": torch.tensor([3.4], dtype=torch.float64)}, exact, 1e-10)
    assert alone == "; b alone: 340% of its own gradient, everything else at rounding"
    both = worst_parameter({"a": 0.5 * exact["a"], "b": 0.9 * exact["b"]}, exact, 1e-10)
    assert both == "; worst parameter a: 50% of its own gradient"
    single = worst_parameter({name: 6e-8 * value for name, value in exact.items()}, exact, 1e-10)
    assert single.startswith("; 6.0e-08 of the gradient is the size of rounding in single precision (1e-09 to 1e-06)")


def _activated(rows: torch.Tensor, activation: torch.nn.Module) -> Problem:
    """Return a problem whose first layer gives the rows themselves to an activation: no edges, and no weights."""
    graph = path_graph(6).with_edges(torch.zeros(path_graph(6).num_edges, dtype=torch.bool)).replaced(x=rows)
    with torch.random.fork_rng(devices=[]):
        convs = [GCNConv(rows.shape[1], rows.shape[1], dtype=torch.float64) for _ in range(2)]
    with torch.no_grad():
        for conv in convs:
            conv.lin.weight.copy_(torch.eye(rows.shape[1]))
            conv.bias.zero_()
    return Problem(graph, LayeredModel([ConvLayer(convs[0]), ConvLayer(convs[1], before=activation)]).eval())


@pytest.mark.parametrize("activation", [torch.nn.Tanh(), torch.nn.ReLU(), torch.nn.SiLU()])
def test_saturated_units_are_counted(activation: torch.nn.Module) -> None:
    """-30 is where each of these is flat. The share is that of nine or ten of ten units of each row."""
    most = round(MOSTLY * 10)
    for flat in (most, most - 1):
        rows = torch.full((6, 10), 0.5, dtype=torch.float64)
        rows[:, :flat] = -30.0
        problem = _activated(rows, activation)
        found = saturation(problem)
        assert (found != "") is (flat == most)
        if found:
            assert f"90% of the units of an activation {type(activation).__name__} have a slope of at most" in found
        assert not any(module._forward_pre_hooks for module in problem.model.modules())


@pytest.mark.parametrize(("factor", "saturated"), [(0.99, True), (1.01, False)])
def test_a_saturated_unit_has_a_small_slope(factor: float, saturated: bool) -> None:
    """The slope of tanh is ``1 - tanh^2``."""
    place = float(np.arctanh(np.sqrt(1 - factor * SATURATED)))
    problem = _activated(torch.full((6, 3), place, dtype=torch.float64), torch.nn.Tanh())
    assert (saturation(problem) != "") is saturated


def test_activations_that_are_not_seen_are_not_blamed() -> None:
    class Flat(torch.nn.Module):
        def forward(self, rows: torch.Tensor) -> torch.Tensor:
            return rows * 0.0 + 1.0

    assert saturation(_activated(torch.full((6, 3), -30.0, dtype=torch.float64), Flat())) == ""
