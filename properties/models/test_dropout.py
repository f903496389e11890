"""Dropout in training runs is a fixed function while its key is: estimates stay pure, and a row is dropped alike
wherever it is read. No global generator decides, and no claim is made of a model that drops.
"""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from common.crossed import crossed
from common.helpers import assert_close, assert_gradients, assert_same_bits, autograd_gradient, path_graph
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom
from torch import Tensor, nn

from lmc_verify import (
    FM,
    GAS,
    GCN,
    LMC,
    SAGE,
    BackwardSGD,
    Batch,
    ClusterGCN,
    Clusters,
    ConvLayer,
    Dropout,
    Estimator,
    FullBatch,
    History,
    InvalidInputError,
    LayeredModel,
    Partition,
    Problem,
    UniformNodes,
    exact_pass,
    load_graph,
)
from lmc_verify.estimators import ESTIMATORS as REGISTRY
from lmc_verify.estimators import FMLocal, batch_distribution, make_estimator
from lmc_verify.models import MODELS as MODEL_NAMES
from lmc_verify.models import GCNConv, SAGEConv, active_dropout, key_dropout, make_model
from lmc_verify.models.convs import initialise
from lmc_verify.seeds import torch_generator

ESTIMATORS: dict[str, Estimator] = {
    "full-batch": FullBatch(),
    "lmc": LMC(beta=0.4),
    "lmc-forward-only": make_estimator("lmc-forward-only", beta=0.4),
    "lmc-backward-only": make_estimator("lmc-backward-only"),
    "gas": GAS(),
    "fm": FM(),
    "fm-local": FMLocal(),
    "cluster-gcn": ClusterGCN(renormalise=False),
}
MODELS: dict[str, Callable[..., LayeredModel]] = {
    **{name: partial(make_model, name) for name in MODEL_NAMES},
    **{
        f"{name} jump": partial(make_model, name, jump=jump)
        for name, jump in (("gcn", "concat"), ("gin", "max"), ("gcnii", "concat"), ("sage", "max"))
    },
    "sage norm": partial(SAGE, encoder=True, head=True, norm="layer", residual=True),
}


def keyed(p: float, seed: int = 0, *axes: int) -> Dropout:
    module = Dropout(p)
    key_dropout(module, seed, *axes)
    return module


def dropping(model: str = "gcn", cut: str = "pre", p: float = 0.4, *, activation: str = "tanh", **more: Any) -> Problem:
    graph = load_graph("karate").double()
    built = MODELS[model](
        graph.num_features, 6, graph.num_outputs, 3, activation_cut=cut, activation=activation, dropout=p,
        dtype=torch.float64, **more,
    )  # fmt: skip
    key_dropout(built, 3, 5)
    return Problem(graph, built.train())


# --- the module ------------------------------------------------------------------------------------------


@given(st.integers(1, 40), st.integers(1, 9), st.floats(0, 0.95), st.integers(0, 2**32), st.integers(0, 99))
def test_units_are_zero_or_scaled_and_the_mask_is_the_key_s(
    rows: int, width: int, p: float, seed: int, step: int
) -> None:
    x = torch.linspace(1, 2, rows * width, dtype=torch.float64).view(rows, width)
    module = keyed(p, seed, step)
    out = module(x)
    kept = out != 0
    assert_close("kept units", out[kept], (x * (1 / (1 - p)))[kept], rtol=1e-15)
    assert torch.equal(keyed(p, seed, step)(x), out), "the same key, another mask"
    assert torch.equal(module(x), out)
    assert p > 0 or bool(kept.all())


@given(st.integers(1, 30), st.integers(0, 30), st.integers(0, 20), st.integers(1, 7))
def test_rows_have_the_mask_of_their_place(rows: int, more: int, first: int, width: int) -> None:
    """In whatever order longer and shorter pieces are asked for."""
    whole = keyed(0.5)(torch.ones(first + rows + more, width))
    for module in (keyed(0.5), copy.deepcopy(keyed(0.5))):
        module.first_row = first
        assert torch.equal(module(torch.ones(rows, width)), whole[first : first + rows])
        module.first_row = 0
        assert torch.equal(module(torch.ones(first + rows + more, width)), whole)
        assert torch.equal(module(torch.ones(rows, width)), whole[:rows])


def test_keys_places_and_widths_have_masks_of_their_own() -> None:
    x = torch.ones(50, 20)
    model = nn.Sequential(Dropout(0.5), Dropout(0.5))
    key_dropout(model, 0, "training", 7)
    masks = [model[0](x), model[1](x), keyed(0.5, 0, 8)(x), keyed(0.5, 1, 7)(x)]
    key_dropout(model, 0, "training", 8)
    masks.append(model[0](x))
    for index, left in enumerate(masks):
        assert all(not torch.equal(left, right) for right in masks[:index])


@pytest.mark.statistical
@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_units_are_dropped_with_their_probability(p: float) -> None:
    """200 keys x 500 units; a count outside the two-sided binomial bound has probability below 1e-9."""
    x = torch.ones(25, 20, dtype=torch.float64)
    outs = torch.stack([keyed(p, 11, step)(x) for step in range(200)])
    count, total = int((outs == 0).sum()), outs.numel()
    assert binom.ppf(5e-10, total, p) <= count <= binom.isf(5e-10, total, p)
    # Every unit by itself: 500 of them, 1e-9 together.
    low, high = binom.ppf(1e-12, 200, p), binom.isf(1e-12, 200, p)
    each = (outs == 0).sum(dim=0)
    assert low <= int(each.min()) <= int(each.max()) <= high
    # The expectation of the output is its input.
    assert abs(float(outs.mean()) - 1) < 7 * math.sqrt(p / (1 - p) / total)


def test_evaluation_mode_and_probability_zero_drop_nothing() -> None:
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    assert keyed(0.5).eval()(x) is x
    assert Dropout(0.0)(x) is x


def test_derivative_is_the_mask() -> None:
    x = torch.ones(6, 5, dtype=torch.float64, requires_grad=True)
    module = keyed(0.4)
    (grad,) = torch.autograd.grad(module(x).sum(), x)
    assert torch.equal(grad, module(torch.ones(6, 5, dtype=torch.float64)))


def test_no_key_and_bad_probabilities_are_refused() -> None:
    with pytest.raises(InvalidInputError, match=r"has no key: call .*key_dropout.*model\.eval\(\)"):
        Dropout(0.5)(torch.ones(2, 2))
    for p in (-0.1, 1.0, float("nan")):
        with pytest.raises(InvalidInputError, match=r"dropout is .*\[0, 1\)"):
            Dropout(p)


def test_masks_are_made_anew_on_another_device() -> None:
    module = keyed(0.5)
    here = module(torch.ones(4, 3))
    assert module(torch.ones(4, 3, device="meta")).device.type == "meta"
    assert torch.equal(module(torch.ones(4, 3)), here)


def test_masks_stay_behind_when_the_module_travels() -> None:
    module = keyed(0.5)
    want = module(torch.ones(30, 8))
    for traveller in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert traveller._kept is None
        assert torch.equal(traveller(torch.ones(30, 8)), want)
    assert len(pickle.dumps(module)) == len(pickle.dumps(keyed(0.5)))


# --- estimates -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("estimator", "model", "cut"), crossed(ESTIMATORS, MODELS, ["pre", "post"]))
def test_estimates_are_pure_while_units_are_dropped(estimator: str, model: str, cut: str) -> None:
    problem, method = dropping(model, cut), ESTIMATORS[estimator]
    problem.model.eval()
    state = method.init(problem)
    problem.model.train()
    before, batch = state.clone(), Batch.of(range(0, 34, 2), 0.5)
    first = method.estimate(problem, state, batch)
    again = method.estimate(problem, state, Batch.of(range(0, 34, 2), 0.5))
    assert_same_bits("the same key", again.gradient, first.gradient)
    assert again.loss == first.loss
    assert state.equals(before)
    key_dropout(problem.model, 3, 6)
    other = method.estimate(problem, state, batch)
    assert any(not torch.equal(other.gradient[name], value) for name, value in first.gradient.items())
    key_dropout(problem.model, 3, 5)
    assert_same_bits("the key again", method.estimate(problem, state, batch).gradient, first.gradient)


@pytest.mark.parametrize(("estimator", "model", "cut"), crossed(ESTIMATORS, MODELS, ["pre", "post"]))
def test_a_batch_of_all_nodes_gives_the_gradient_of_the_model_with_these_units(
    estimator: str, model: str, cut: str
) -> None:
    problem, method = dropping(model, cut), ESTIMATORS[estimator]
    want = autograd_gradient(problem, problem.node_losses(problem.model(problem.graph)).sum())
    got = method.estimate(problem, method.init(problem), Batch.of(range(34)))
    assert_gradients("the whole graph as batch", got.gradient, want)
    plain = exact_pass(Problem(problem.graph, copy.deepcopy(problem.model).eval())).gradient
    assert any(not torch.allclose(plain[name], want[name]) for name in want), "nothing was dropped"


@pytest.mark.parametrize("model", MODELS)
def test_gradient_is_the_slope_of_the_loss_at_this_key(model: str) -> None:
    """Central differences in one direction, with an error of order h^4."""
    problem = dropping(model)
    gradient = FullBatch().estimate(problem, History(), Batch.of([0])).gradient
    generator, losses = torch.Generator().manual_seed(1), []
    direction = {name: torch.randn(g.shape, generator=generator, dtype=g.dtype) for name, g in gradient.items()}
    for h in (2e-6, -2e-6, 4e-6, -4e-6):
        moved = problem.copy()
        with torch.no_grad():
            for name, parameter in moved.model.named_parameters():
                parameter += h * direction[name]
        losses.append(FullBatch().estimate(moved, History(), Batch.of([0])).loss)
    slope = sum(float((gradient[name] * value).sum()) for name, value in direction.items())
    near, far = losses[0] - losses[1], losses[2] - losses[3]
    assert abs((8 * near - far) / 24e-6 - slope) < 1e-8 * max(1, abs(slope))


class Recorder(nn.Module):
    """Dropout that notes what it was given and what it returned."""

    def __init__(self, seen: list[tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.inner, self.seen = Dropout(0.5), seen

    def forward(self, rows: Tensor) -> Tensor:
        out = self.inner(rows)
        self.seen.append((rows.detach(), out.detach()))
        return out


@pytest.mark.parametrize("estimator", ["lmc", "gas", "fm-local"])  # of fm: test_graph_fm.py
def test_a_row_is_dropped_alike_as_source_and_target_of_batch_and_halo(estimator: str) -> None:
    """A SAGE layer reads every local row as a source and again as a target; rows are told apart by their values."""
    graph, seen = path_graph(9), []
    first = ConvLayer(SAGEConv(3, 5, dtype=torch.float64))
    second = ConvLayer(SAGEConv(5, 4, dtype=torch.float64), before=nn.Sequential(nn.Tanh(), Recorder(seen)))
    third = ConvLayer(GCNConv(4, 3, dtype=torch.float64), before=nn.Sequential(nn.Tanh(), Dropout(0.5)))
    model = LayeredModel([first, second, third])
    initialise(model, torch_generator(0))
    problem = Problem(graph, model.train())
    key_dropout(model, 0)
    state = History.zeros(problem)
    for table in state.embeddings.values():
        table += torch.rand(table.shape, generator=torch.Generator().manual_seed(2), dtype=table.dtype)
    seen.clear()
    ESTIMATORS[estimator].estimate(problem, state, Batch.of([2, 3, 6], 1 / 3))
    masks: dict[tuple[float, ...], Tensor] = {}
    for rows, outs in seen:
        for row, out in zip(rows, outs, strict=True):
            kept = masks.setdefault(tuple(row.tolist()), out != 0)
            assert torch.equal(kept, out != 0)
    assert len(masks) == 7, "batch 2 3 6 and halo 1 4 5 7"


@pytest.mark.parametrize("cut", ["pre", "post"])
@pytest.mark.parametrize("model", MODELS)
def test_every_model_drops_a_row_alike_wherever_it_is_read(model: str, cut: str) -> None:
    """By layers as source and target, by layers that carry it along, by the head; of batch and halo rows.

    Rows are told apart by their values. Halo rows have the places behind the batch's, also in the encoder and the head.
    """
    problem = dropping(model, cut, p=0.5)
    seen: dict[nn.Module, dict[tuple[float, ...], Tensor]] = {}
    places: set[int] = set()

    def note(part: nn.Module, arguments: tuple[Tensor], out: Tensor) -> None:
        assert isinstance(part, Dropout)
        places.add(part.first_row)
        for row, dropped in zip(arguments[0].detach(), out.detach(), strict=True):
            known = seen.setdefault(part, {}).setdefault(tuple(row.tolist()), dropped != 0)
            assert torch.equal(known, dropped != 0)

    parts = [part for part in problem.model.modules() if isinstance(part, Dropout)]
    assert parts
    state = History.zeros(problem)
    for table in state.embeddings.values():
        table += torch.rand(table.shape, generator=torch.Generator().manual_seed(2), dtype=table.dtype)
    for part in parts:
        part.register_forward_hook(note)
    LMC(beta=0.4).estimate(problem, state, Batch.of(range(10), 0.5))
    assert set(parts) == set(seen)
    assert places <= {0, 10}
    assert all(part.first_row == 0 for part in parts), "parts are shared: a place that stays would reach other rows"
    if cut == "post" or model == "appnp" or "jump" in model:
        assert places == {0, 10}


def test_batch_and_halo_rows_have_masks_of_their_own_after_a_convolution() -> None:
    """With the post-activation cut both are evaluated apart: together they have the mask of all local rows."""
    graph, seen = path_graph(9), []
    first = ConvLayer(GCNConv(3, 16, dtype=torch.float64), after=nn.Sequential(nn.Tanh(), Recorder(seen)))
    model = LayeredModel([ConvLayer(GCNConv(3, 3, dtype=torch.float64)), first, ConvLayer(SAGEConv(16, 3).double())])
    initialise(model, torch_generator(0))
    problem = Problem(graph, model.train())
    key_dropout(model, 0)
    seen.clear()
    LMC(beta=0.5).estimate(problem, History.zeros(problem), Batch.of([2, 3, 6], 1 / 3))
    (_, batch), (_, halo) = seen
    assert (len(batch), len(halo)) == (3, 4)
    whole = keyed(0.5, 0)(torch.ones(7, 16)) != 0
    assert torch.equal(torch.cat([batch, halo]) != 0, whole)


# --- estimators that sample ------------------------------------------------------------------------------

SAMPLERS: dict[str, dict[str, Any]] = {
    "neighbour-sampling": {"fan_out": 2},
    "vr-gcn": {"fan_out": 2},
    "labor": {"fan_out": 2},
    "fastgcn": {"nodes": 9},
    "ladies": {"nodes": 9},
    "as-gcn": {"nodes": 9},
    "fastgcn-published": {"nodes": 9},
    "ladies-published": {"nodes": 9},
    "vr-gcn-importance": {"fan_out": 2, "size": 9},
    "mvs-gnn": {"size": 9},
    "graphsaint-node": {"nodes": 12},
    "graphsaint-edge": {"edges": 8},
    "graphsaint-walk": {"roots": 5},
    "shadow": {"depth": 2},
    "top": {},
    "top-krylov": {},
}
COVERING: dict[str, dict[str, Any]] = {
    **{name: {"fan_out": 34} for name in ("neighbour-sampling", "vr-gcn", "labor")},
    "top": {},
    "top-krylov": {},
}
"""Estimators to which nothing is left to chance in a batch of all nodes."""
SUMS = [("gcn", "pre"), ("sage", "pre"), ("sage jump", "pre"), ("gcnii", "pre"), ("appnp", "pre"), ("gin", "pre")]
"""Models that every sampler takes: their layers are weighted sums of messages."""


def test_every_estimator_drops_here() -> None:
    assert {*ESTIMATORS, *SAMPLERS, "backward-sgd"} >= set(REGISTRY)


def sampled(name: str, settings: dict[str, Any], problem: Problem) -> tuple[Estimator, History, Batch]:
    """Return estimator, state and a batch of half of the nodes, of which about a third are new in the state."""
    method = make_estimator(name, **settings)
    problem.model.eval()
    state, design = method.init(problem), UniformNodes(34, 12)
    for seed in range(2):
        batch = batch_distribution(method, problem, state, design).draw(np.random.default_rng(seed))
        state.apply(method.estimate(problem, state, batch).writes)
    problem.model.train()
    return method, state, batch_distribution(method, problem, state, design).draw(np.random.default_rng(2))


@pytest.mark.parametrize(
    ("name", "summed"), crossed(SAMPLERS, SUMS), ids=lambda item: item if isinstance(item, str) else " ".join(item)
)
def test_samplers_are_pure_while_units_are_dropped(name: str, summed: tuple[str, str]) -> None:
    model, cut = summed
    problem = dropping(model, cut)
    method, state, batch = sampled(name, SAMPLERS[name], problem)
    before = state.clone()
    first = method.estimate(problem, state, batch)
    assert_same_bits("the same key", method.estimate(problem, state, batch).gradient, first.gradient)
    assert state.equals(before)
    key_dropout(problem.model, 3, 6)
    other = method.estimate(problem, state, batch)
    assert any(not torch.equal(other.gradient[name], value) for name, value in first.gradient.items())
    key_dropout(problem.model, 3, 5)
    assert_same_bits("the key again", method.estimate(problem, state, batch).gradient, first.gradient)


@pytest.mark.parametrize(
    ("name", "model", "cut"),
    crossed(COVERING, ["gcn", "sage", "sage norm", "sage jump", "gcnii", "appnp"], ["pre", "post"]),
)
def test_samplers_that_take_everything_give_the_gradient_with_these_units(name: str, model: str, cut: str) -> None:
    problem, method = dropping(model, cut), make_estimator(name, **COVERING[name])
    problem.model.eval()
    state = method.init(problem)
    everything = Clusters(Partition(torch.zeros(34, dtype=torch.int64), "everything"), 1)
    try:
        batch = batch_distribution(method, problem, state, everything).draw(np.random.default_rng(0))
    except InvalidInputError:
        assert (name, cut) == ("vr-gcn", "post"), "its histories cannot correct an activation behind the aggregate"
        return
    problem.model.train()
    want = FullBatch().estimate(problem, History(), batch).gradient
    assert_gradients("every message", method.estimate(problem, state, batch).gradient, want)


@pytest.mark.parametrize("name", sorted(set(SAMPLERS) - {"shadow"}))
def test_samplers_drop_a_row_alike_as_source_and_target(name: str) -> None:
    """SAGE reads rows twice; rows are told apart by their values. In shaDow a node has a row in every ego network."""
    seen: list[tuple[Tensor, Tensor]] = []
    problem = dropping("sage", "pre")
    problem.model.layer(2).before = nn.Sequential(nn.Tanh(), Recorder(seen))
    key_dropout(problem.model, 3, 5)
    method, state, batch = sampled(name, SAMPLERS[name], problem)
    for table in state.embeddings.values():  # a history's units are dropped separately from those of the fresh row
        table += torch.rand(table.shape, generator=torch.Generator().manual_seed(2), dtype=table.dtype)
    seen.clear()
    method.estimate(problem, state, batch)
    masks: dict[tuple[float, ...], Tensor] = {}
    for rows, outs in seen:
        for row, out in zip(rows, outs, strict=True):
            kept = masks.setdefault(tuple(row.tolist()), out != 0)
            assert torch.equal(kept, out != 0)
    assert len({tuple(mask.tolist()) for mask in masks.values()}) > 3, "rows have masks of their own"


# --- who may drop ----------------------------------------------------------------------------------------


def test_only_keyed_dropout_passes_and_only_where_it_is_allowed() -> None:
    problem = dropping()
    assert active_dropout(problem.model, allow_keyed=True) is None
    assert active_dropout(problem.model) == "layers.1.before.1"
    for refused in (lambda: exact_pass(problem), lambda: BackwardSGD().init(problem)):
        with pytest.raises(InvalidInputError, match=r"dropout is active in layers\.1\.before\.1"):
            refused()
    problem.model.eval()
    state = BackwardSGD().init(problem)
    problem.model.train()
    with torch.no_grad():
        next(problem.model.parameters()).add_(1.0)
    with pytest.raises(InvalidInputError, match="dropout is active"):
        BackwardSGD().estimate(problem, state, Batch.of([0, 1], 0.5))
    unkeyed = Problem(problem.graph, GCN(34, 6, 4, 3, dropout=0.4, dtype=torch.float64))
    for method in ESTIMATORS.values():
        with pytest.raises(InvalidInputError, match="dropout is active"):
            method.estimate(unkeyed, History.zeros(unkeyed), Batch.of([0, 1], 0.5))
    layer = problem.model.layer(2)
    assert isinstance(layer, ConvLayer)
    layer.before = nn.Sequential(nn.Tanh(), nn.Dropout(0.5))
    with pytest.raises(InvalidInputError, match="dropout is active"):
        GAS().estimate(problem, History.zeros(problem), Batch.of([0, 1], 0.5))
