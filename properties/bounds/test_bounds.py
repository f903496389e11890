"""A bound on an estimator's error is never below the error: for every batch, state, model and estimator it covers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from common.helpers import path_graph
from hypothesis import assume, event, given
from hypothesis import strategies as st
from torch import nn

import lmc_verify as lv
from lmc_verify import testing
from lmc_verify.bounds import (
    ErrorBound,
    NoBound,
    RangeBound,
    batch_bound,
    enumerated_range,
    error_interval,
    exact_terms,
    range_bound,
)
from lmc_verify.bounds.instances import _largest_weight, _on_groups
from lmc_verify.bounds.nodewise import Activation, error_table, flipped, row_norm
from lmc_verify.bounds.propagation import RowTerm, RowTerms
from lmc_verify.bounds.scopes import BatchScope, DesignScope, Groups
from lmc_verify.bounds.terms import LinearTerms, spectral_norm
from lmc_verify.errors import InvalidInputError
from lmc_verify.estimators import (
    FM,
    GAS,
    LMC,
    LOSS_WEIGHTINGS,
    SCORES,
    BackwardSGD,
    ClusterGCN,
    History,
    LMCBackwardOnly,
    LMCForwardOnly,
    make_estimator,
)
from lmc_verify.estimators.base import node_weights
from lmc_verify.objective.exact import exact_pass
from lmc_verify.objective.problem import gradient_norm, gradient_sum

KINDS = ("gcn", "sage")


@st.composite
def estimators(draw, graph):
    name = draw(
        st.sampled_from(
            ["backward-sgd", "lmc", "lmc-forward-only", "lmc-backward-only", "gas", "fm", "fm-local", "cluster-gcn"]
        )
    )
    settings = {"weighting": draw(st.sampled_from(LOSS_WEIGHTINGS))}
    if name.startswith("lmc"):
        settings["score"] = draw(st.sampled_from(sorted(SCORES)))
        settings["whole_when_complete"] = draw(st.booleans())
        settings["count_self_loop"] = draw(st.booleans())
    if name.startswith(("lmc", "fm")):
        settings["beta"] = draw(testing.betas(graph))
    if name == "cluster-gcn":
        settings["renormalise"] = draw(st.booleans())
    return make_estimator(name, **settings)


@st.composite
def states(draw, problem, exact, estimator):
    """Wrong histories, nearly exact ones, or exact ones."""
    kind = draw(st.sampled_from(["drawn", "near", "exact"]))
    state, held = draw(testing.histories(problem)), History.from_exact(problem, exact)
    if isinstance(estimator, BackwardSGD):
        return held
    share = {"drawn": 1.0, "near": draw(st.sampled_from([0.3, 1e-2, 1e-6])), "exact": 0.0}[kind]
    for layer in range(1, problem.num_layers + 1):
        for table, truth in ((state.embeddings, held.embeddings), (state.auxiliary, held.auxiliary)):
            table[layer] = truth[layer] + share * (table[layer] - truth[layer])
    return state


@st.composite
def problems(draw):
    """Problems with some parameters at zero and some large, where a bound has little slack to hide behind."""
    problem = draw(testing.problems(kinds=KINDS, jumps=False))
    if draw(st.booleans()):
        with torch.no_grad():
            for parameter in problem.model.parameters():
                parameter.mul_(draw(st.sampled_from([1.0, 0.0, 4.0])))
    return problem


def differences(problem, exact, state, batch, estimator):
    """Return ``g_est - g_ref`` on a batch."""
    reference = BackwardSGD(weighting=estimator.weighting)
    held = History.from_exact(problem, exact)
    estimate = estimator.estimate(problem, state, batch).gradient
    return gradient_sum(estimate, reference.estimate(problem, held, batch).gradient, -1.0)


def assert_covers(bound, problem, difference, what):
    """Assert a bound parameter by parameter, by layer and in total; no tolerance: rounding is in the bound."""
    assert isinstance(bound, ErrorBound), bound
    assert list(bound.parameters) == list(difference)
    squares = dict.fromkeys(bound.layers, 0.0)
    for name, value in difference.items():
        norm = float(value.norm())
        assert norm <= bound.parameters[name], f"{what}: {name} is off by {norm}, the bound is {bound.parameters[name]}"
        squares[problem.layer_of(name)] += norm**2
    for part, square in squares.items():
        assert math.sqrt(square) <= bound.layers[part] * (1 + 1e-12), f"{what}: {part}"
    assert gradient_norm(difference) <= bound.total * (1 + 1e-12)


# ------------------------------------------------------------------------------------------------- bounds are bounds


@given(st.data())
def test_batch_bound_covers_every_estimator_batch_and_state(data):
    problem = data.draw(problems())
    exact = exact_pass(problem)
    estimator = data.draw(estimators(problem.graph))
    state = data.draw(states(problem, exact, estimator))
    batch = data.draw(testing.batches(problem.graph))
    event(estimator.name)
    bound = batch_bound(problem, exact, state, batch, estimator)
    assert_covers(bound, problem, differences(problem, exact, state, batch, estimator), f"{estimator} on {batch.nodes}")


@given(st.data())
def test_range_bound_covers_every_batch_of_the_design(data):
    problem = data.draw(problems())
    exact = exact_pass(problem)
    estimator = data.draw(estimators(problem.graph))
    state = data.draw(states(problem, exact, estimator))
    design = data.draw(testing.designs(problem.graph))
    if isinstance(design, lv.EpochClusters) and data.draw(st.booleans()):
        first = next(design.epoch(np.random.default_rng(data.draw(testing.seeds()))))
        assume(len(first.clusters) < design.partition.num_parts)
        design = design.after(*first.clusters)
    bound = range_bound(problem, exact, state, design, estimator)
    for batch, _ in design.enumerate():
        assert_covers(bound, problem, differences(problem, exact, state, batch, estimator), f"{estimator}, {design}")
    assert bound.derivation


@pytest.mark.slow
@given(st.data())
def test_enumerated_range_is_the_largest_difference_and_below_the_proven_range(data):
    problem = data.draw(problems())
    exact = exact_pass(problem)
    estimator = data.draw(estimators(problem.graph))
    state = data.draw(states(problem, exact, estimator))
    design = data.draw(testing.designs(problem.graph))
    found = enumerated_range(problem, exact, state, design, estimator)
    norms = [gradient_norm(differences(problem, exact, state, batch, estimator)) for batch, _ in design.enumerate()]
    assert found.total == pytest.approx(max(norms), rel=1e-12)
    assert found.total <= range_bound(problem, exact, state, design, estimator).total * (1 + 1e-12)
    assert f"{design.support_size} batches" in found.derivation


@pytest.mark.slow
@given(st.data())
def test_batch_bound_is_never_above_the_range(data):
    # Both are bounds; the range sees less, so it should not claim more.
    problem = data.draw(problems())
    exact = exact_pass(problem)
    estimator = data.draw(estimators(problem.graph))
    state = data.draw(states(problem, exact, estimator))
    design = data.draw(testing.designs(problem.graph))
    whole = range_bound(problem, exact, state, design, estimator)
    terms = exact_terms(problem, exact)
    for batch, _ in design.enumerate():
        one = batch_bound(problem, exact, state, batch, estimator, terms=terms)
        for name, value in one.parameters.items():
            assert value <= whole.parameters[name] * (1 + 1e-6) + 1e-9, name


@pytest.mark.slow
@given(st.data())
def test_total_error_lies_in_its_interval(data):
    problem = data.draw(problems())
    exact = exact_pass(problem)
    estimator = data.draw(estimators(problem.graph))
    state = data.draw(states(problem, exact, estimator))
    batch = data.draw(testing.batches(problem.graph))
    bound = batch_bound(problem, exact, state, batch, estimator)
    interval = error_interval(problem, exact, batch, bound, weighting=estimator.weighting)
    error = gradient_norm(gradient_sum(estimator.estimate(problem, state, batch).gradient, exact.gradient, -1.0))
    assert interval.low * (1 - 1e-12) <= error <= interval.high * (1 + 1e-12)
    assert interval.high - interval.low <= 2 * bound.total * (1 + 1e-9) + 1e-12
    assert interval.layers.keys() == bound.layers.keys()


# --------------------------------------------------------------------------------------------------------- zero cases


def rounding_level(problem):
    """A LayerNorm of nearly equal entries amplifies rounding by up to 1e5 in each of up to three layers, squared."""
    normed = any(isinstance(module, nn.LayerNorm) for module in problem.model.modules())
    return 1e-2 if normed else 1e-9


@pytest.mark.slow
@given(st.data())
def test_lmc_with_exact_histories_and_linear_aggregation_has_no_error(data):
    problem = data.draw(testing.problems(kinds=KINDS, jumps=False, aggregate_linear=True))
    exact = exact_pass(problem)
    state, design = History.from_exact(problem, exact), data.draw(testing.designs(problem.graph))
    assert range_bound(problem, exact, state, design, LMC()).total < rounding_level(problem)
    for batch, _ in design.enumerate():
        assert batch_bound(problem, exact, state, batch, LMC()).total < rounding_level(problem)


@pytest.mark.slow
@given(st.data())
def test_gas_with_exact_histories_has_no_error_in_the_last_layer(data):
    problem = data.draw(testing.problems(kinds=KINDS, jumps=False, aggregate_linear=True))
    exact = exact_pass(problem)
    state, design = History.from_exact(problem, exact), data.draw(testing.designs(problem.graph))
    bound = range_bound(problem, exact, state, design, GAS())
    last = f"layers.{problem.num_layers - 1}.conv."
    assert all(
        value < rounding_level(problem) for name, value in bound.parameters.items() if name.startswith((last, "head"))
    )


@pytest.mark.slow
@given(st.data())
def test_nothing_is_lost_when_the_batch_is_the_whole_graph(data):
    problem = data.draw(testing.problems(kinds=KINDS, jumps=False))
    exact, n = exact_pass(problem), problem.graph.num_nodes
    estimator = data.draw(estimators(problem.graph))
    state = data.draw(states(problem, exact, estimator))
    design = lv.UniformNodes(n, n)
    (batch, _), *_ = design.enumerate()
    assert batch_bound(problem, exact, state, batch, estimator).total < rounding_level(problem)
    assert range_bound(problem, exact, state, design, estimator).total < rounding_level(problem)


# -------------------------------------------------------------------------------------------------------------- slack


@pytest.fixture(scope="module")
def karate():
    graph = lv.load_graph("karate").double()
    model = lv.GCN(graph.num_features, 16, graph.num_outputs, num_layers=3, dtype=torch.float64).eval()
    problem = lv.Problem(graph, model)
    return problem, exact_pass(problem), lv.Partition.metis(graph, 8, seed=0)


def _swept(problem, estimator, partition):
    state = estimator.init(problem)
    for batch, _ in lv.Clusters(partition, 1).enumerate():
        state.apply(estimator.estimate(problem, state, batch).writes)
    return state


@pytest.mark.parametrize(
    ("estimator", "swept", "slack", "gradients"),
    [
        pytest.param(LMC(), True, 15, 5, marks=pytest.mark.slow),
        (GAS(), False, 5, 8),
        pytest.param(GAS(), True, 6, 10, marks=pytest.mark.slow),
        (LMC(beta=0.4), False, 40, 30),
    ],
    ids=["lmc-swept", "gas-exact", "gas-swept", "lmc-0.4-exact"],
)
def test_bounds_are_tight_enough_to_be_of_use(karate, estimator, swept, slack, gradients):
    problem, exact, partition = karate
    state = _swept(problem, estimator, partition) if swept else History.from_exact(problem, exact)
    design, terms = lv.Clusters(partition, 2), exact_terms(problem, exact)
    ratios = []
    for batch, _ in design.enumerate():
        bound = batch_bound(problem, exact, state, batch, estimator, terms=terms)
        ratios.append(bound.total / gradient_norm(differences(problem, exact, state, batch, estimator)))
    assert np.median(ratios) < slack
    norm = gradient_norm(exact.gradient)
    assert range_bound(problem, exact, state, design, estimator, terms=terms).total < gradients * norm


# ------------------------------------------------------------------------------------------------ the pieces, alone


@pytest.mark.parametrize("scale", [1e-300, 1e-200, 1e-160, 1.0, 1e160, 1e200, 1e307])
def test_row_norms_scale_with_their_numbers(scale):
    rows = torch.tensor([[3.0, 4.0], [0.0, 0.0]], dtype=torch.float64)
    assert row_norm(scale * rows).tolist() == pytest.approx([5 * scale, 0.0], rel=1e-12)


SCALES = [1e-300, 1e-170, 1e-160, 1e160, 1e170, 1e300]


@pytest.mark.parametrize("scale", [1.0, *SCALES])
@pytest.mark.parametrize("shape", [(5, 3), (3, 5)])
def test_spectral_norms_scale_with_their_numbers(scale, shape):
    matrix = torch.from_numpy(np.random.default_rng(1).uniform(-1, 1, shape))
    expected = float(torch.linalg.svdvals(matrix)[0])
    assert spectral_norm(scale * matrix) / scale == pytest.approx(expected, rel=1e-12)


def test_the_spectral_norm_of_nothing_and_of_what_is_not_finite():
    one = torch.ones(3, 2, dtype=torch.float64)
    assert spectral_norm(one[:0]) == spectral_norm(0 * one) == 0
    assert spectral_norm(one / 0) == math.inf
    assert math.isnan(spectral_norm(torch.tensor([[math.nan, math.inf]])))


@pytest.mark.parametrize("scale", SCALES)
def test_flips_scale_with_their_numbers(scale):
    rng = np.random.default_rng(2)
    x, gain, shift = (torch.from_numpy(rng.uniform(-1, 1, (20, 4))) for _ in range(3))
    errors = error_table(row_norm(shift), shift.abs())
    expected = flipped(x, errors, gain.abs())
    assert float(expected.max()) > 0
    torch.testing.assert_close(flipped(scale * x, scale * errors, gain.abs()), expected)
    torch.testing.assert_close(flipped(x, errors, scale * gain.abs()) / scale, expected)


@pytest.mark.parametrize("scale", SCALES)
def test_bounds_scale_with_the_features(scale):
    """Without biases a GCN is homogeneous where its outputs vanish: the first layer's bound is in units of features."""
    graph = path_graph(6)
    model = lv.GCN(3, 4, 3, 2, seed=2, dtype=torch.float64).eval()
    with torch.no_grad():
        model.layers[1].conv.lin.weight.zero_()  # outputs of zero, so that the loss derivative stays as it is
        for layer in model.layers:
            layer.conv.bias.zero_()
    design, gas = lv.Clusters(lv.Partition.contiguous(6, 3), 2), GAS()

    def bounds(factor):
        problem = lv.Problem(graph.replaced(x=factor * graph.x), model)
        exact, state = exact_pass(problem), gas.init(problem)
        batch = next(iter(design.enumerate()))[0]
        return [
            bound(problem, exact, state, over, gas).parameters["layers.1.conv.lin.weight"] / factor
            for bound, over in ((batch_bound, batch), (range_bound, design))
        ]

    assert min(bounds(1.0)) > 0
    assert bounds(scale) == pytest.approx(bounds(1.0), rel=1e-9)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_the_norm_of_a_row_that_is_not_finite_is_not_finite(value):
    assert not math.isfinite(row_norm(torch.tensor([[1.0, value]])).item())


@given(testing.seeds(), st.sampled_from([0.01, 0.3, 1.0, 10.0]), st.integers(1, 6), st.booleans())
def test_node_wise_bounds_cover_forward_backward_and_factors(seed, size, width, relu):
    rng = np.random.default_rng(seed)

    def rows(scale=1.0):
        return torch.from_numpy(rng.uniform(-1, 1, (8, width))) * scale

    norm = nn.LayerNorm(width, dtype=torch.float64)
    with torch.no_grad():
        norm.weight.copy_(rows()[0] * 2)
        norm.bias.copy_(rows()[0])
    for steps in ([norm], [norm, nn.ReLU()], [nn.ReLU()]):
        if relu and steps == [norm]:
            continue
        module, x, shift, kept, noise, missing = nn.Sequential(*steps), rows(), rows(size), rows(), rows(0.1), rows()
        part, nodes = Activation(steps, x, 1e-14), torch.arange(8)
        errors = error_table(row_norm(shift), shift.abs())
        out_errors = part.error(nodes, errors)
        change = module(x + shift) - module(x)
        assert bool((row_norm(change) <= out_errors[:, 0] + 1e-12).all())
        assert bool((change.abs() <= out_errors[:, 1:] + 1e-12).all())

        def pulled(at, cotangent, module=module):
            at = at.clone().requires_grad_()
            return torch.autograd.grad(module(at), at, cotangent)[0]

        difference = pulled(x + shift, kept + noise) - pulled(x, kept + missing)
        bound = part.cotangent_error(nodes, errors, kept.abs(), missing.abs(), row_norm(noise))
        assert bool((row_norm(difference) <= bound + 1e-12).all())
        if steps[0] is norm:
            other, found = Activation(steps, x + shift, 1e-14).factors(), part.factor_errors(nodes, errors)
            for key, value in part.factors().items():
                assert bool((row_norm(other[key] - value) <= found[key] + 1e-12).all()), key


@given(testing.seeds(), st.sampled_from([0.0, 1.0]), st.sampled_from([0.0, 1.0]), st.sampled_from([0.1, 10.0]))
def test_products_are_covered_however_large_the_errors(seed, t_scale, m_scale, size):
    rng = np.random.default_rng(seed)

    def rows(scale):
        return torch.from_numpy(rng.uniform(-1, 1, (1, 3))) * scale

    t, m, dt, dm = rows(t_scale), rows(m_scale), rows(size), rows(size)
    weight, bias = torch.zeros(3, 3), torch.zeros(3)
    lin = LinearTerms(weight, bias, {id(weight): "weight", id(bias): "bias"})
    found = RowTerms()
    found.linear(lin, t, row_norm(dt), m, row_norm(dm))
    found.elementwise("product", t, row_norm(dt), m, row_norm(dm))
    bounds = {name: sum(float(term.contributions()) for term in terms) for name, terms in found.terms.items()}
    assert float(((t + dt).T @ (m + dm) - t.T @ m).norm()) <= bounds["weight"] + 1e-12
    assert float(((t + dt) * (m + dm) - t * m).norm()) <= bounds["product"] + 1e-12
    assert float(dt.norm()) == pytest.approx(bounds["bias"])


@given(testing.seeds(), st.integers(1, 5))
def test_flips_are_bounded_by_the_worst_admissible_error(seed, width):
    rng = np.random.default_rng(seed)
    x, gain, shift = (torch.from_numpy(rng.uniform(-1, 1, (1, width))) for _ in range(3))
    errors = error_table(row_norm(shift), shift.abs())
    worst = 0.0
    for chosen in range(2**width):
        coordinates = torch.tensor([bool(chosen >> k & 1) for k in range(width)])
        possible = bool((x[0, coordinates].abs() <= errors[0, 1:][coordinates]).all())
        if possible and float(row_norm(x[:, coordinates])) <= float(errors[0, 0]):
            worst = max(worst, float(row_norm(gain[:, coordinates])))
    assert float(flipped(x, errors, gain.abs())) >= worst
    assert float(flipped(x, errors, gain.abs())) <= float(row_norm(gain)) * (1 + 1e-6)


@given(testing.seeds(), st.integers(1, 6), st.sampled_from([0.1, 1.0, 30.0]))
def test_loss_derivative_moves_no_more_than_its_constant_allows(seed, outputs, size):
    rng = np.random.default_rng(seed)
    z, shift = (torch.from_numpy(rng.uniform(-1, 1, (200, outputs))) * size for _ in range(2))
    softmax = row_norm((z + shift).softmax(1) - z.softmax(1))
    sigmoid = row_norm((z + shift).sigmoid() - z.sigmoid()) / outputs
    for loss, change in (("cross_entropy", softmax), ("bce", sigmoid)):
        y = torch.zeros(2, outputs, dtype=torch.float64) if loss == "bce" else torch.zeros(2, dtype=torch.int64)
        graph = path_graph(2, y=y)
        problem = lv.Problem(graph, lv.GCN(3, 2, outputs, 1, dtype=torch.float64).eval(), loss)
        terms = exact_terms(problem, exact_pass(problem))
        assert bool((change <= terms.loss_error(row_norm(shift)) + 1e-12).all())


def test_softmax_constant_is_attained():
    problem = lv.Problem(path_graph(3), lv.GCN(3, 2, 3, 1, dtype=torch.float64).eval())
    terms = exact_terms(problem, exact_pass(problem))
    step = 1e-4 * torch.tensor([[1.0, -1.0, 0.0]], dtype=torch.float64) / math.sqrt(2)
    z = torch.tensor([[0.0, 0.0, -40.0]], dtype=torch.float64)  # two equal classes: variance 1/2
    change = float(row_norm((z + step).softmax(1) - z.softmax(1)))
    assert change == pytest.approx(float(terms.loss_error(row_norm(step))), rel=1e-6)


@given(testing.seeds())
def test_linear_maps_bound_norms_and_coordinates(seed):
    rng = np.random.default_rng(seed)
    weight, shift = torch.from_numpy(rng.uniform(-1, 1, (3, 4))), torch.from_numpy(rng.uniform(-1, 1, (50, 4)))
    errors = LinearTerms(weight, None, {}).error(error_table(row_norm(shift), shift.abs()))
    assert bool(((shift @ weight.T).abs() <= errors[:, 1:] + 1e-12).all())
    assert bool((row_norm(shift @ weight.T) <= errors[:, 0] + 1e-12).all())
    assert bool((errors[:, 0] <= spectral_norm(weight) * row_norm(shift) + 1e-12).all())


# ------------------------------------------------------------------------------------------ witnesses without slack


def test_residual_connections_carry_backward_errors():
    # Layer 2 has no weight: what GAS loses above it reaches layer 1 through the residual connection only.
    graph = path_graph(6)
    model = lv.GCN(3, 3, 3, 3, residual=True, dtype=torch.float64).eval()
    with torch.no_grad():
        model.layers[1].conv.lin.weight.zero_()
    problem = lv.Problem(graph, model)
    exact = exact_pass(problem)
    state, batch = History.from_exact(problem, exact), lv.Batch.of([2], 0.5)
    difference = differences(problem, exact, state, batch, GAS())
    assert float(difference["layers.0.conv.bias"].norm()) > 1e-3
    assert_covers(batch_bound(problem, exact, state, batch, GAS()), problem, difference, "residual")
    whole = range_bound(problem, exact, state, lv.UniformNodes(6, 3), GAS())
    assert whole.layers["layer 1"] >= float(difference["layers.0.conv.bias"].norm())


@pytest.mark.parametrize("per_batch", [1, 2])
def test_with_one_group_per_batch_the_neighbours_in_other_groups_are_halo_rows(per_batch):
    """With several, a neighbour in another group may be a batch row too, and the larger of its errors counts."""
    graph = path_graph(6)
    groups = Groups.of(lv.Clusters(lv.Partition.contiguous(6, 3), per_batch))
    operator = DesignScope(graph, LMC().policies, groups).operator("gcn")
    weight = graph.operator("gcn").csr.to_dense().abs()
    own = weight * (groups.assignment[:, None] == groups.assignment)
    batch, halo = torch.rand(2, 6, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    either = torch.maximum(batch, halo)
    across = halo if per_batch == 1 else either
    wanted = torch.cat([own @ batch + (weight - own) @ across, own @ halo + (weight - own) @ either])
    errors = torch.cat([batch, halo])
    torch.testing.assert_close(operator.forward_error(errors), wanted)
    torch.testing.assert_close(operator.backward_error(errors), wanted)  # the operator is symmetric


def test_a_negative_beta_takes_more_than_the_history_and_adds_the_error_of_the_fresh_value():
    graph = path_graph(6, edge_index=torch.tensor([[1, 1, 1, 1, 1, 0, 2, 3, 4, 5], [0, 2, 3, 4, 5, 1, 1, 1, 1, 1]]))
    estimator = LMC(beta=0.5, score="sin")
    scope = BatchScope(graph, estimator.policies, lv.Batch.of([0], 0.5))
    beta = 0.5 * math.sin(math.pi * (1 / 5 - 1 / 2))  # of node 1: one of its five neighbours is in the local set
    held, fresh = torch.full((1, 2), 2.0, dtype=torch.float64), torch.full((1, 2), 3.0, dtype=torch.float64)
    found = scope.blend(estimator.blend, held, fresh)
    torch.testing.assert_close(found, torch.full_like(found, (1 - beta) * 2.0 + abs(beta) * 3.0))


def test_a_row_s_own_error_reaches_it_through_the_root_weight():
    # Layer 3 takes no messages: what the histories of layer 1 have wrong reaches the loss through its root weight only.
    problem = _problem(lv.models.SAGE(3, 4, 3, 3, dtype=torch.float64))
    with torch.no_grad():
        problem.model.layers[2].conv.lin_l.weight.zero_()
    exact = exact_pass(problem)
    state, batch = History.from_exact(problem, exact), lv.Batch.of([2], 0.5)
    state.embeddings[1] += 1.0
    difference = differences(problem, exact, state, batch, GAS())
    assert float(difference["layers.2.conv.lin_l.bias"].norm()) > 1e-3
    assert_covers(batch_bound(problem, exact, state, batch, GAS()), problem, difference, "root")


@pytest.mark.parametrize("norm", [[], [nn.LayerNorm(2, dtype=torch.float64)]], ids=["relu", "layer norm and relu"])
def test_what_lies_behind_a_closed_relu_counts_for_nothing(norm):
    values = torch.tensor([[3.0, -1.0], [-2.0, 4.0]], dtype=torch.float64)
    part, nodes = Activation([*norm, nn.ReLU()], values, 0.0), torch.arange(2)
    errors = torch.tensor([[0.1, 0.1, 0.1], [0.2, 0.2, 0.2]], dtype=torch.float64)  # too small to open or close a unit
    error = torch.tensor([0.5, 0.0], dtype=torch.float64)
    closed = 7.0 * (values < 0)
    nothing, found = (part.cotangent_error(nodes, errors, rows, rows, error) for rows in (0 * closed, closed))
    assert torch.equal(nothing, found)
    assert bool((part.cotangent_error(nodes, errors, 0 * closed, 7.0 - closed, error) > nothing).all())


def test_a_halo_node_misses_messages_from_its_own_group_too():
    # Batch {0}: its halo is node 1, which misses the only message that counts, from node 2 of its own group.
    graph = path_graph(4)
    x = torch.zeros_like(graph.x)
    x[2] = 10.0
    graph = graph.replaced(x=x)
    problem = _problem(graph=graph)
    with torch.no_grad():
        for layer in problem.model.layers:
            layer.conv.lin.weight.abs_()  # every ReLU is open
            layer.conv.bias.zero_()
    exact, estimator = exact_pass(problem), LMC(beta=1.0, score="constant")
    state, design = History.from_exact(problem, exact), lv.Clusters(lv.Partition.from_clusters([[0], [1, 2, 3]]))
    bound = range_bound(problem, exact, state, design, estimator)
    for batch, _ in design.enumerate():
        difference = differences(problem, exact, state, batch, estimator)
        assert_covers(bound, problem, difference, f"{batch.clusters}")
        assert batch.clusters != (0,) or gradient_norm(difference) > 0.1


@pytest.mark.parametrize(("weighting", "factor"), [("inclusion", 2), ("node-count", 6), ("batch-mean", 5)])
def test_range_takes_the_largest_weight_of_unequal_clusters(weighting, factor):
    mask = torch.tensor([True, False, True, True, True, True])
    problem = _problem(graph=path_graph(6, train_mask=mask))
    exact = exact_pass(problem)
    state, design = History.from_exact(problem, exact), lv.Clusters(lv.Partition.from_clusters([[0], [1, 2, 3, 4, 5]]))
    plain = range_bound(problem, exact, state, design, GAS())
    found = range_bound(problem, exact, state, design, GAS(weighting=weighting))
    assert found.total == pytest.approx(plain.total * factor / 2)


EPOCH = lv.EpochClusters(lv.Partition.from_clusters([[0], [1, 2], [3, 4, 5], [6, 7], [8]]), 2)


@pytest.mark.parametrize(
    "design",
    [EPOCH, EPOCH.after(0, 3), EPOCH.after(0, 1, 2, 3), lv.Clusters(EPOCH.partition, 2), lv.UniformNodes(5, 2)],
    ids=["an epoch", "its second batch", "its last batch", "clusters", "nodes"],
)
def test_groups_are_as_many_as_batches_hold(design):
    groups, batches = Groups.of(design), [batch for batch, _ in design.enumerate()]
    held = [batch.nodes.tolist() if batch.clusters is None else batch.clusters for batch in batches]
    assert (groups.least, groups.most) == (min(map(len, held)), max(map(len, held)))
    assert set(groups.open) == {group for own in held for group in own}
    assert groups.inclusion == pytest.approx(float(design.inclusion_probabilities()[0]))


def test_a_range_is_over_as_many_groups_as_a_batch_holds_of_those_that_it_can_hold():
    """Rows of 1, 2 | 3, 4 | 5; where rows are orthogonal, those of a group add up by squares: sqrt(5), 5, 5."""
    assignment, errors = torch.tensor([0, 0, 1, 1, 2]), torch.arange(1.0, 6.0, dtype=torch.float64)
    plain, rows = RowTerm(errors), RowTerm(errors, torch.eye(5, dtype=torch.float64))
    for open_groups, most, direct, squares in [
        ((0, 1, 2), 1, 7.0, 25.0),
        ((0, 1, 2), 2, 12.0, 50.0),
        ((0, 1, 2), 3, 15.0, 55.0),
        ((0, 2), 1, 5.0, 25.0),
        ((0, 2), 2, 8.0, 30.0),
    ]:
        groups = Groups(assignment, 3, open_groups, most, most, 0.5)
        assert _on_groups(plain, groups) == direct
        assert _on_groups(rows, groups) == pytest.approx(math.sqrt(squares))
    # Rows of the first group are three times as long: what other groups give is not three times as large.
    longer = RowTerm(errors, torch.diag(torch.tensor([3.0, 3.0, 1.0, 1.0, 1.0], dtype=torch.float64)))
    assert _on_groups(longer, Groups(assignment, 3, (1, 2), 1, 1, 0.5)) == pytest.approx(5.0)


@pytest.mark.parametrize("weighting", LOSS_WEIGHTINGS)
def test_the_largest_weight_in_an_epoch_is_that_of_its_smallest_batch(weighting):
    problem = _problem(graph=path_graph(9, train_mask=torch.arange(9) != 4))
    largest = max(float(node_weights(problem, batch, weighting).max()) for batch, _ in EPOCH.enumerate())
    assert _largest_weight(problem, Groups.of(EPOCH), weighting)[0] == pytest.approx(largest)


# ------------------------------------------------------------------------------------------- what there is no proof for


def _problem(model=None, graph=None):
    graph = path_graph(6) if graph is None else graph
    model = lv.GCN(3, 4, 3, 2, dtype=torch.float64) if model is None else model
    return lv.Problem(graph, model.eval())


def test_unproven_cases_say_why():
    design = lv.UniformNodes(6, 2)
    batch = lv.Batch.of([0, 1], 0.5)

    def reasons(problem, estimator=None, design=design, state=None):
        exact, estimator = exact_pass(problem), estimator or GAS()
        state = state or History.from_exact(problem, exact)
        return [
            batch_bound(problem, exact, state, batch, estimator),
            range_bound(problem, exact, state, design, estimator),
        ]

    for found in reasons(_problem(lv.GAT(3, 4, 3, 2, dtype=torch.float64))):
        assert isinstance(found, NoBound)
        assert not found
        assert "GATConv" in found.reason

    model = lv.GCN(3, 4, 3, 2, dtype=torch.float64)
    model.layers[1].before = nn.Tanh()
    assert all("Tanh" in found.reason for found in reasons(_problem(model)))

    class Odd(lv.GAS):
        name = "odd"

        def estimate(self, problem, state, batch):
            return super().estimate(problem, state, batch)

    assert all("odd" in found.reason for found in reasons(_problem(), Odd()))

    class Half(lv.UniformNodes):
        pass

    one, all_of_them = reasons(_problem(), design=Half(6, 3))
    assert isinstance(one, ErrorBound)
    assert isinstance(all_of_them, NoBound)
    assert "Half" in all_of_them.reason


def test_negative_weights_leave_the_renormalised_range_unproven():
    graph = path_graph(4)
    weight = torch.full((graph.num_edges,), 0.5, dtype=torch.float64)
    weight[0] = -0.2
    problem = _problem(graph=path_graph(4, edge_weight=weight))
    exact = exact_pass(problem)
    state, design = History(), lv.UniformNodes(4, 2)
    found = range_bound(problem, exact, state, design, ClusterGCN())
    assert isinstance(found, NoBound)
    assert "negative" in found.reason
    plain = range_bound(problem, exact, state, design, ClusterGCN(renormalise=False))
    for batch, _ in design.enumerate():
        assert_covers(
            plain,
            problem,
            differences(problem, exact, state, batch, ClusterGCN(renormalise=False)),
            "negative weights",
        )


def test_bad_input_is_refused():
    problem = _problem()
    exact, batch, design = exact_pass(problem), lv.Batch.of([0, 1], 0.5), lv.UniformNodes(6, 2)
    with pytest.raises(InvalidInputError, match="no embedding history"):
        batch_bound(problem, exact, History(), batch, GAS())
    with pytest.raises(InvalidInputError, match="no auxiliary history"):
        range_bound(problem, exact, GAS().init(problem), design, LMC())
    with pytest.raises(InvalidInputError, match="design has 5 nodes"):
        range_bound(problem, exact, GAS().init(problem), lv.UniformNodes(5, 2), GAS())
    with pytest.raises(InvalidInputError, match="holds node 9"):
        batch_bound(problem, exact, GAS().init(problem), lv.Batch.of([9]), GAS())
    other = _problem(lv.GCN(3, 5, 3, 2, dtype=torch.float64))
    with pytest.raises(InvalidInputError, match="exact pass has embeddings"):
        batch_bound(problem, exact_pass(other), GAS().init(problem), batch, GAS())
    with pytest.raises(InvalidInputError, match="another problem"):
        batch_bound(problem, exact_pass(problem), GAS().init(problem), batch, GAS(), terms=exact_terms(problem, exact))
    with pytest.raises(InvalidInputError, match="15 batches, the limit is 3"):
        enumerated_range(problem, exact, GAS().init(problem), design, GAS(), limit=3)
    with pytest.raises(InvalidInputError, match="beta has 2 values"):
        range_bound(problem, exact, LMC().init(problem), design, LMC(beta=(0.5, 0.5)))


def test_bounds_leave_state_and_problem_alone():
    problem = _problem()
    exact, estimator = exact_pass(problem), FM(beta=0.3)
    state = estimator.init(problem)
    before, parameters = state.clone(), problem.parameter_snapshot()
    batch_bound(problem, exact, state, lv.Batch.of([0, 1], 0.5), estimator)
    found = range_bound(problem, exact, state, lv.UniformNodes(6, 2), estimator)
    assert isinstance(found, RangeBound)
    assert state.equals(before)
    assert problem.has_parameters(parameters)
    assert all(p.grad is None for p in problem.model.parameters())


@pytest.mark.parametrize("estimator", [LMC(beta=0.5), LMCForwardOnly(beta=0.5), LMCBackwardOnly(beta=0.5)])
def test_bounds_hold_in_float32(estimator):
    graph = path_graph(6).to(dtype=torch.float32)
    problem = lv.Problem(graph, lv.GCN(3, 4, 3, 2).eval())
    exact = exact_pass(problem)
    state = History.from_exact(problem, exact)
    for nodes in ([0, 1], [2, 3, 4], [0, 5]):
        batch = lv.Batch.of(nodes, 0.5)
        bound = batch_bound(problem, exact, state, batch, estimator)
        assert_covers(bound, problem, differences(problem, exact, state, batch, estimator), f"{nodes}")


@pytest.mark.parametrize(
    "estimator",
    [
        LMC(beta=1.0, score="quadratic"),
        LMC(beta=1.0, score="linear", whole_when_complete=True),
        LMC(beta=0.0, score="constant", whole_when_complete=True),
        LMC(beta=1.0, score="sin"),
    ],
    ids=["a small score keeps the history", "unless complete", "complete rows take the fresh value", "a sine"],
)
def test_a_range_covers_every_score_that_a_halo_row_may_have(estimator):
    """The design does not say which beta_i a halo row has: the range holds whichever of its parts is the worst.

    Batch {0}: node 1 has all its neighbours in the local set, node 2 has not. The first histories are wrong, and so are
    the halo's fresh values of the second layer, whose histories are exact.
    """
    graph = path_graph(4)
    edges = torch.tensor([[0, 1, 0, 2, 1, 2, 2, 3], [1, 0, 2, 0, 2, 1, 3, 2]])
    problem = _problem(lv.GCN(3, 4, 3, 3, dtype=torch.float64, seed=1), graph.replaced(edge_index=edges))
    exact, design = exact_pass(problem), lv.Clusters(lv.Partition.from_clusters([[0], [1, 2, 3]]))
    state = estimator.init(problem).filled(exact)
    state.embeddings[1] += 1e4
    bound = range_bound(problem, exact, state, design, estimator)
    largest = 0.0
    for batch, _ in design.enumerate():
        difference = differences(problem, exact, state, batch, estimator)
        assert_covers(bound, problem, difference, f"{batch.clusters}")
        largest = max(largest, gradient_norm(difference))
    assert largest > 1, "nothing was to be covered"
