"""Estimates of assumptions keep their direction: "at least" is never above "at most", maxima never below values."""

from __future__ import annotations

import math

import pytest
import torch
from common.helpers import path_graph
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import lmc_verify as lv
from lmc_verify import testing
from lmc_verify.bounds.lipschitz import NormTracker, is_smooth, kinks_crossed, lipschitz_lower, lipschitz_upper
from lmc_verify.errors import InvalidInputError
from lmc_verify.estimators import LMC, History
from lmc_verify.objective.exact import exact_pass
from lmc_verify.objective.problem import gradient_norm


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def problem_of(model, graph=None):
    return lv.Problem(path_graph(6) if graph is None else graph, model.eval())


@pytest.mark.slow
@given(st.data())
def test_lower_bounds_are_never_above_upper_bounds(data):
    problem = data.draw(testing.problems())
    lower = lipschitz_lower(problem, exact_pass(problem), generator(data.draw(testing.seeds())), steps=5)
    upper = lipschitz_upper(problem)
    assert [one.layer for one in lower] == [one.layer for one in upper] == list(range(1, problem.num_layers + 1))
    for low, high in zip(lower, upper, strict=True):
        assert (low.direction, high.direction) == ("at least", "at most")
        assert low.value is not None
        assert low.value >= 0
        if high.value is None:
            assert high.source.startswith("no proof for")
            assert not any(native in high.source for native in ("GCNConv", "SAGEConv"))
        else:
            assert low.value <= high.value * (1 + 1e-8) + 1e-8


@pytest.mark.slow
@given(st.data())
def test_upper_bounds_cover_differences_of_arbitrary_points(data):
    problem = data.draw(testing.problems(kinds=("gcn", "sage")))
    draws, graph = generator(data.draw(testing.seeds())), problem.graph
    x0 = exact_pass(problem).embeddings[0]
    for index, high in enumerate(lipschitz_upper(problem), start=1):
        layer = problem.model.layer(index)
        shape = (graph.num_nodes, problem.widths[index - 1])
        a, b = (torch.randn(shape, generator=draws, dtype=torch.float64) * 3 for _ in range(2))
        block = graph.operator(layer.operator)
        change = float((layer(a, a, x0, block) - layer(b, b, x0, block)).detach().norm())
        assert high.value is not None
        assert change <= high.value * float((a - b).norm()) * (1 + 1e-9) + 1e-9


@pytest.mark.parametrize("residual", [False, True])
def test_a_linear_layer_has_its_known_constant(residual):
    # A ring: the GCN operator is symmetric with row sums 1, so its norm is 1 and the layer's constant is |W| exactly.
    n = 5
    around = torch.stack([torch.arange(n), (torch.arange(n) + 1) % n])
    graph = path_graph(n, edge_index=torch.cat([around, around.flip(0)], dim=1))
    problem = problem_of(lv.GCN(3, 3, 3, 1, residual=residual, dtype=torch.float64), graph)
    with torch.no_grad():
        problem.model.layers[0].conv.lin.weight.copy_(torch.diag(torch.tensor([3.0, 1.0, 0.5])))
    (low,) = lipschitz_lower(problem, exact_pass(problem), generator(), steps=60)
    (high,) = lipschitz_upper(problem)
    assert high.value == pytest.approx(3.0 + residual, rel=1e-9)
    assert low.value == pytest.approx(3.0 + residual, rel=1e-6)


def test_a_mean_of_nothing_leaves_the_own_row():
    graph = path_graph(3, edge_index=torch.zeros(2, 0, dtype=torch.int64))
    problem = problem_of(lv.SAGE(3, 3, 3, 1, dtype=torch.float64), graph)
    with torch.no_grad():
        problem.model.layers[0].conv.lin_r.weight.copy_(2 * torch.eye(3))
    (high,) = lipschitz_upper(problem)
    (low,) = lipschitz_lower(problem, exact_pass(problem), generator())
    assert high.value == pytest.approx(2.0)
    assert low.value == pytest.approx(2.0)


@pytest.mark.parametrize("scale", [1e-200, 1e-150, 1e150, 1e200])
def test_a_linear_layer_has_its_constant_at_any_scale(scale):
    """Norms of differences are taken where squares leave the range of float64, too."""
    problem = problem_of(lv.GCN(3, 3, 3, 1, dtype=torch.float64))
    weight = problem.model.layers[0].conv.lin.weight
    (usual,) = lipschitz_lower(problem, exact_pass(problem), generator(), steps=1)
    with torch.no_grad():
        weight.mul_(scale)
    (low,) = lipschitz_lower(problem, exact_pass(problem), generator(), steps=1)
    assert low.value == pytest.approx(scale * usual.value, rel=1e-9)
    for steps in (1, 30):  # the Jacobian's transpose squares the scale: the iteration may end, what it found stays
        (more,) = lipschitz_lower(problem, exact_pass(problem), generator(), steps=steps)
        assert low.value * (1 - 1e-9) <= more.value < scale * 1e3


def test_a_quotient_that_overflows_is_no_bound():
    """The constant is 2.9e308, beyond float64, and so are the quotients of some of the directions."""
    graph = path_graph(2, edge_index=torch.zeros(2, 0, dtype=torch.int64))
    problem = problem_of(lv.GCN(3, 3, 3, 1, dtype=torch.float64), graph.replaced(x=0.01 * graph.x))
    with torch.no_grad():
        problem.model.layers[0].conv.lin.weight.zero_()[0].fill_(1.7e308)
    exact = exact_pass(problem)
    found = [lipschitz_lower(problem, exact, generator(seed), steps=1)[0].value for seed in range(20)]
    assert all(math.isfinite(value) for value in found)
    assert 0 < sum(value > 0 for value in found) < 20


def test_lower_bounds_need_a_step():
    problem = problem_of(lv.GCN(3, 4, 3, 2, dtype=torch.float64))
    with pytest.raises(InvalidInputError, match="steps is 0"):
        lipschitz_lower(problem, exact_pass(problem), generator(), steps=0)


def test_layers_without_a_proof_have_no_upper_bound():
    model = lv.GCN(3, 4, 3, 2, dtype=torch.float64)
    model.layers[1].before = nn.GELU()
    first, second = lipschitz_upper(problem_of(model))
    assert first.value is not None
    assert second.value is None
    assert "node-wise" in second.source


# -------------------------------------------------------------------------------------------------------------- kinks


def test_relu_and_attention_have_kinks_and_linear_layers_none():
    relu = is_smooth(problem_of(lv.GCN(3, 4, 3, 3, dtype=torch.float64)))
    assert not relu.smooth
    assert relu.kinks == ("layers.1.before: ReLU", "layers.2.before: ReLU")
    assert not is_smooth(problem_of(lv.GAT(3, 4, 3, 1, dtype=torch.float64))).smooth
    linear = is_smooth(problem_of(lv.GCN(3, 4, 3, 1, dtype=torch.float64)))
    assert linear.smooth
    assert linear.kinks == ()


@pytest.mark.slow
@given(st.data())
def test_crossed_kinks_are_counted_where_pre_activations_change_sign(data):
    problem = data.draw(testing.problems(kinds=("gcn",), aggregate_linear=True, plain=True))
    exact = exact_pass(problem)
    moved = problem.to()
    draws = generator(data.draw(testing.seeds()))
    with torch.no_grad():
        for parameter in moved.model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=draws, dtype=torch.float64))
    later = exact_pass(moved)
    found = kinks_crossed(problem, exact, later, moved=moved)
    if problem.num_layers == 1:
        assert found is None
        return
    assert found is not None
    assert [one.where for one in found] == [f"layer {index}" for index in range(2, problem.num_layers + 1)]
    for index, one in enumerate(found, start=1):
        a, b = exact.embeddings[index], later.embeddings[index]
        assert one.crossed == int(((a > 0) != (b > 0)).sum())
        assert one.total == a.numel()
        assert one.fraction == one.crossed / a.numel()
    assert all(one.crossed == 0 for one in kinks_crossed(problem, exact, exact) or ())


def test_kinks_of_encoder_post_activation_and_head_are_found_with_each_points_own_parameters():
    model = lv.GCN(3, 4, 3, 2, activation_cut="post", encoder=True, head=True, dtype=torch.float64)
    problem = problem_of(model)
    moved = problem.to()
    with torch.no_grad():  # minus z before the ReLU: every sign of the encoder changes
        for parameter in moved.model.encoder.parameters():
            parameter.neg_()
    found = kinks_crossed(problem, exact_pass(problem), exact_pass(moved), moved=moved)
    assert [one.where for one in found] == ["encoder", "layer 1", "head"]
    assert found[0].fraction == 1
    other = problem_of(lv.GCN(3, 4, 3, 2, dtype=torch.float64))
    with pytest.raises(InvalidInputError, match="one model"):
        kinks_crossed(problem, exact_pass(problem), exact_pass(other), moved=other)
    assert not model.encoder[1]._forward_pre_hooks


# -------------------------------------------------------------------------------------------------------------- norms


@pytest.mark.slow
@given(st.data())
def test_tracked_norms_are_the_largest_seen(data):
    problem = data.draw(testing.problems())
    exact, lmc = exact_pass(problem), LMC()
    states = [data.draw(testing.histories(problem)) for _ in range(2)]
    tracker, estimates = NormTracker(), []
    assert tracker.constant == 0
    tracker.exact(exact)
    for state in states:
        tracker.state(state)
        estimates.append(lmc.estimate(problem, state, data.draw(testing.batches(problem.graph))).gradient)
        tracker.estimate(estimates[-1])
    largest = tracker.largest
    assert largest["gradient"] == gradient_norm(exact.gradient)
    assert largest["estimate"] == max(gradient_norm(gradient) for gradient in estimates)
    for layer in range(1, problem.num_layers + 1):
        assert largest[f"H {layer}"] == float(exact.embeddings[layer].norm())
        assert largest[f"V {layer}"] == float(exact.auxiliary[layer].norm())
        assert largest[f"history of V {layer}"] == max(float(state.auxiliary[layer].norm()) for state in states)
        assert largest[f"history of H {layer}"] == max(float(state.embeddings[layer].norm()) for state in states)
    assert tracker.constant == max(largest.values())


def test_a_norm_that_is_not_finite_is_not_forgotten():
    tracker = NormTracker()
    for value in (1.0, math.nan, 2.0):
        tracker.state(History({1: torch.tensor([[value]])}, {}))
    assert tracker.largest == {"history of H 1": math.inf}
