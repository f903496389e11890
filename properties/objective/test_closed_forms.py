"""A closed form gives what automatic differentiation gives, whatever the chunks and the state of the memory it reuses.

Every comparison is made twice: as shipped, and with chunks of a few elements in memory that is poisoned with NaN, as
large graphs would be worked on.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from common.crossed import crossed, slow_but
from common.helpers import assert_close, assert_gradients, autograd_gradient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
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
    Estimator,
    Graph,
    History,
    InvalidInputError,
    LayeredModel,
    LMCBackwardOnly,
    LMCForwardOnly,
    Partition,
    Problem,
    exact_gradient,
    exact_pass,
    load_graph,
)
from lmc_verify.estimators import Compensated, HistoryWrite
from lmc_verify.estimators.compensated.step_autograd import AutogradStep
from lmc_verify.estimators.compensated.step_closed import ClosedStep
from lmc_verify.graphs import memory, sparse
from lmc_verify.models import ConvLayer, GCNConv
from lmc_verify.models.closed_forms import affine_layers
from lmc_verify.objective.exact import _exact_pass
from lmc_verify.testing import batches, betas, graphs, histories, partitions, seeds


@pytest.fixture(params=["as shipped", "small chunks, poisoned memory"], autouse=True)
def ways(request: pytest.FixtureRequest) -> Iterator[None]:
    """Run each test as shipped, and as on a graph too large for the cache, in memory full of NaN."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param != "as shipped":
            take = memory.BufferPool.empty

            def poisoned(self: memory.BufferPool, rows: int, width: int, like: Tensor) -> Tensor:
                return take(self, rows, width, like).fill_(torch.nan)

            patch.setattr(memory.BufferPool, "empty", poisoned)
            patch.setattr(memory, "_SMALL", 0)
            patch.setattr(sparse, "PIECE_ELEMENTS", 8)
        yield


ways_apart = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])  # nothing in it depends on examples


@st.composite
def affine_problems(draw: st.DrawFn, min_layers: int = 1) -> Problem:
    """Problems all of whose layers have a closed form; some parameters are frozen, and A X may not fit the cache."""
    graph = draw(graphs(max_features=5))
    graph = graph.replaced(cache_bytes=draw(st.sampled_from([0, 2**20])))
    outputs = graph.num_outputs if graph.multi_label else max(2, graph.num_outputs)
    model: LayeredModel = draw(st.sampled_from([GCN, SAGE]))(
        graph.num_features,
        draw(st.integers(1, 5)),
        outputs,
        draw(st.integers(min_layers, 4)),
        activation=draw(st.sampled_from(["relu", "tanh", "softplus"])),
        encoder=draw(st.booleans()),
        head=draw(st.booleans()),
        residual=draw(st.booleans()),
        seed=draw(seeds()),
        dtype=torch.float64,
    )
    for parameter in model.parameters():
        parameter.requires_grad_(draw(st.sampled_from([True, True, True, False])))
    next(iter(model.parameters())).requires_grad_(True)
    return Problem(graph, model.eval(), "bce" if graph.multi_label else "cross_entropy")


@pytest.mark.slow
@ways_apart
@given(affine_problems(), st.sampled_from([None, 1, 2, 3]))
def test_the_exact_pass_in_closed_form_is_the_exact_pass(problem: Problem, chunk_size: int | None) -> None:
    assert affine_layers(problem.model) is not None
    got = _exact_pass(problem, chunk_size, closed=True)
    want = _exact_pass(problem, None, closed=False)
    assert_close("loss", got.loss, want.loss)
    assert len(got.embeddings) == len(want.embeddings)
    for layer, value in enumerate(want.embeddings):
        assert_close(f"H^{layer}", got.embeddings[layer], value)
    assert sorted(got.auxiliary) == sorted(want.auxiliary)
    for layer, value in want.auxiliary.items():
        assert_close(f"V^{layer}", got.auxiliary[layer], value)
    assert_gradients("gradient", got.gradient, want.gradient)


@pytest.mark.slow
@ways_apart
@given(affine_problems())
def test_nothing_is_written_into_what_the_user_gave(problem: Problem) -> None:
    given_tensors = [problem.graph.x, problem.graph.y, *problem.model.parameters()]
    lmc = LMC(beta=0.5)
    state = lmc.init(problem)
    tables = [*state.embeddings.values(), *state.auxiliary.values()]
    before = [tensor._version for tensor in (*given_tensors, *tables)]
    exact_pass(problem)
    exact_gradient(problem)
    lmc.estimate(problem, state, Batch.of([0], 0.5))
    assert [tensor._version for tensor in (*given_tensors, *tables)] == before


@pytest.mark.slow
@ways_apart
@given(affine_problems(), st.sampled_from([None, 1, 2, 3]))
def test_the_exact_gradient_is_that_of_the_objective(problem: Problem, chunk_size: int | None) -> None:
    loss, gradient = exact_gradient(problem, chunk_size=chunk_size)
    value = problem.node_losses(problem.model(problem.graph)).sum()
    assert_close("loss", loss, value.detach())
    assert_gradients("gradient", gradient, autograd_gradient(problem, value))


@st.composite
def compensated(draw: st.DrawFn, graph: Graph) -> Compensated:
    """Every member of the family, with any setting."""
    beta, weighting = draw(betas(graph)), draw(st.sampled_from(["inclusion", "node-count", "batch-mean"]))
    kind = draw(st.sampled_from([BackwardSGD, LMC, LMCForwardOnly, LMCBackwardOnly, GAS, FM, ClusterGCN]))
    if kind in (BackwardSGD, GAS):
        return kind(weighting=weighting)
    if kind is FM:
        return FM(beta, weighting=weighting)
    if kind is ClusterGCN:
        return ClusterGCN(draw(st.booleans()), weighting=weighting)
    score = draw(st.sampled_from(["linear", "quadratic", "constant"]))
    return kind(beta, score, draw(st.booleans()), weighting=weighting)


@pytest.mark.slow
@ways_apart
@given(st.data())
def test_an_estimate_in_closed_form_is_the_estimate(data: st.DataObject) -> None:
    problem = data.draw(affine_problems())
    estimator = data.draw(compensated(problem.graph))
    batch = data.draw(batches(problem.graph))
    state = data.draw(histories(problem))
    if isinstance(estimator, BackwardSGD):
        state = History.from_exact(problem, exact_pass(problem))
    layers = affine_layers(problem.model)
    assert layers is not None
    arguments = (problem, state, batch, estimator.policies, estimator.weighting)
    found = []
    for step in (ClosedStep(*arguments, layers), AutogradStep(*arguments)):
        step.forward()
        step.backward()
        found.append(step.result())
    got, want = found
    assert_close("loss", got.loss, want.loss)
    assert_gradients(f"{estimator}", got.gradient, want.gradient)
    assert got.cost == want.cost
    assert len(got.writes) == len(want.writes)
    for left, right in zip(got.writes, want.writes, strict=True):
        assert isinstance(left, HistoryWrite)
        assert isinstance(right, HistoryWrite)
        assert (left.kind, left.layer) == (right.kind, right.layer)
        assert torch.equal(left.nodes, right.nodes)
        assert_close(f"{left.kind} {left.layer}", left.values, right.values)


@pytest.mark.parametrize(
    ("estimator", "kind", "kept"),
    crossed(
        [LMC(beta=0.4), GAS(), FM(), BackwardSGD(), ClusterGCN(), ClusterGCN(renormalise=False)],
        [GCN, SAGE],
        [2**20, 0],
    ),
    ids=lambda item: item.__name__ if isinstance(item, type) else repr(item),
)
def test_only_the_whole_graph_s_operator_reads_what_the_graph_keeps(
    estimator: Compensated, kind: type[GCN] | type[SAGE], kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = load_graph("karate").double().replaced(cache_bytes=kept)
    problem = Problem(graph, kind(graph.num_features, 4, graph.num_outputs, dtype=torch.float64))
    state, batch = estimator.init(problem), Batch.of(range(10), 0.5)
    assert (graph.aggregated_features("gcn") is None) is (kept == 0)
    got = estimator.estimate(problem, state, batch)
    monkeypatch.setattr("lmc_verify.estimators.compensated.members.affine_layers", lambda model: None)
    want = estimator.estimate(problem, state, batch)
    assert_close("loss", got.loss, want.loss)
    assert_gradients(repr(estimator), got.gradient, want.gradient)


@pytest.mark.parametrize(
    "estimator",
    slow_but([LMC(beta=0.4), ClusterGCN()], [LMC(beta=0.4), GAS(), FM(), BackwardSGD(), ClusterGCN()]),
    ids=lambda e: e.name,
)
def test_estimates_that_are_alive_share_no_memory(estimator: Estimator) -> None:
    graph = load_graph("karate").double()
    problem = Problem(graph, GCN(graph.num_features, 8, graph.num_outputs, dtype=torch.float64))
    state = estimator.init(problem)
    first = estimator.estimate(problem, state, Batch.of(range(10), 0.5))
    kept = {name: value.clone() for name, value in first.gradient.items()}
    rows = [write.values.clone() for write in first.writes if isinstance(write, HistoryWrite)]
    for start in range(1, 20):  # would write over memory that is wrongly taken for garbage
        estimator.estimate(problem, state, Batch.of(range(start, start + 10), 0.5))
        exact_pass(problem)
    assert all(torch.equal(first.gradient[name], value) for name, value in kept.items())
    writes = [write.values for write in first.writes if isinstance(write, HistoryWrite)]
    assert all(torch.equal(got, want) for got, want in zip(writes, rows, strict=True))


class Shifted(GCNConv):
    """A convolution that is not what its class is."""

    def forward(self, source: Tensor, target: Tensor, block: object) -> Tensor:
        return super().forward(source, target, block) + 1.0  # type: ignore[arg-type]


class Doubled(ConvLayer):
    """A layer that is not what its class is."""

    def forward(self, source: Tensor, target: Tensor, x0_target: Tensor, block: object) -> Tensor:
        return 2 * super().forward(source, target, x0_target, block)  # type: ignore[arg-type]


def two_layers(first: ConvLayer | None = None, second: ConvLayer | None = None) -> LayeredModel:
    def conv(index: int, kind: type[GCNConv] = GCNConv) -> GCNConv:
        made = kind((34, 6)[index], (6, 4)[index], dtype=torch.float64)
        generator = torch.Generator().manual_seed(index)
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
        return made

    return LayeredModel([first or ConvLayer(conv(0)), second or ConvLayer(conv(1), before=nn.ReLU())])


def not_affine() -> Iterator[tuple[str, LayeredModel]]:
    plain = two_layers()
    yield "another convolution", two_layers(ConvLayer(_like(plain.layers[0].conv, Shifted)))
    doubled = Doubled(plain.layers[1].conv, before=nn.ReLU())
    yield "another layer", two_layers(second=doubled)
    yield "another activation", two_layers(second=ConvLayer(plain.layers[1].conv, before=nn.Softplus(beta=2.0)))
    yield "an activation after", two_layers(ConvLayer(plain.layers[0].conv, after=nn.Sigmoid()))
    yield "a norm", two_layers(second=ConvLayer(plain.layers[1].conv, before=nn.LayerNorm(6, dtype=torch.float64)))
    hooked = two_layers()
    hooked.layers[0].conv.register_forward_hook(lambda module, inputs, output: output * 3)
    yield "a hook", hooked
    hooked = two_layers()
    hooked.layers[1].conv.lin.register_forward_pre_hook(lambda module, inputs: (inputs[0] * 3,))
    yield "a hook on a part", hooked
    normed = two_layers()
    nn.utils.parametrizations.weight_norm(normed.layers[0].conv.lin)
    yield "a parametrisation", normed
    patched = two_layers()
    inner = patched.layers[0].conv.forward
    patched.layers[0].conv.forward = lambda *arguments: inner(*arguments) + 1
    yield "a patched method", patched


def _like(conv: GCNConv, kind: type[GCNConv]) -> GCNConv:
    made = kind(conv.in_channels, conv.out_channels, dtype=torch.float64)
    made.load_state_dict(conv.state_dict())
    return made


@pytest.mark.parametrize("model", [pytest.param(model, id=name) for name, model in not_affine()])
def test_what_is_not_affine_is_differentiated(model: LayeredModel) -> None:
    assert affine_layers(model) is None
    problem = Problem(load_graph("karate").double(), model)
    value = problem.node_losses(model(problem.graph)).sum()
    want = autograd_gradient(problem, value)
    assert_gradients("exact_pass", exact_pass(problem).gradient, want)
    assert_gradients("exact_gradient", exact_gradient(problem)[1], want)
    whole = Batch.of(range(34), 1.0)
    lmc = LMC()
    assert_gradients("LMC", lmc.estimate(problem, lmc.init(problem), whole).gradient, want)


def test_dropout_has_a_closed_form_only_where_it_drops_nothing() -> None:
    graph = load_graph("karate").double()
    problem = Problem(graph, GCN(34, 6, 4, dropout=0.5, dtype=torch.float64).eval())
    value = problem.node_losses(problem.model(graph)).sum()
    assert affine_layers(problem.model) is not None
    assert_gradients("gradient", exact_gradient(problem)[1], autograd_gradient(problem, value))
    problem.model.train()
    assert affine_layers(problem.model) is None


def test_float32_stays_close_to_float64() -> None:
    """float32's unit of rounding is 6e-8; a gradient of 34 nodes and three layers stays within 1e-5 of its norm."""
    graph = load_graph("karate")
    model = GCN(graph.num_features, 16, graph.num_outputs, num_layers=3)
    single, double = Problem(graph, model), Problem(graph, model).double()
    for estimator in (LMC(beta=0.3), GAS(), BackwardSGD()):
        batch = Batch.of(range(0, 34, 2), 0.5)
        got = estimator.estimate(single, estimator.init(single), batch).gradient
        want = estimator.estimate(double, estimator.init(double), batch).gradient
        scale = max(float(value.norm()) for value in want.values())
        for name, value in want.items():
            assert float((got[name] - value).norm()) <= 1e-5 * scale
    loss, gradient = exact_gradient(single)
    assert loss == pytest.approx(exact_gradient(double)[0], rel=1e-5)
    assert all(value.dtype == torch.float32 for value in gradient.values())


@pytest.mark.slow
@ways_apart
@given(st.data())
def test_gradients_of_all_batches_are_their_estimates(data: st.DataObject) -> None:
    problem = data.draw(affine_problems())
    partition = data.draw(partitions(problem.graph, max_parts=4))
    design = Clusters(partition, data.draw(st.integers(1, partition.num_parts)))
    reference = BackwardSGD()
    state = reference.init(problem)
    found = list(reference.gradients(problem, state, design))
    assert len(found) == design.support_size
    for (batch, probability, gradient), (same, chance) in zip(found, design.enumerate(), strict=True):
        assert (batch.clusters, probability) == (same.clusters, chance)
        assert_gradients(f"batch {batch.clusters}", gradient, reference.estimate(problem, state, same).gradient)


def test_weights_of_whole_batches_are_no_sums_over_clusters() -> None:
    problem = Problem(load_graph("karate"), GCN(34, 4, 4))
    reference = BackwardSGD(weighting="node-count")
    with pytest.raises(InvalidInputError, match="'node-count', whose weights"):
        next(reference.gradients(problem, reference.init(problem), Clusters(Partition.contiguous(34, 4), 2)))


@pytest.mark.slow
@given(st.data())
def test_an_arranged_graph_is_the_same_problem(data: st.DataObject) -> None:
    problem = data.draw(affine_problems())
    partition = data.draw(partitions(problem.graph))
    graph, arranged = partition.arrange(problem.graph)
    assert bool((arranged.assignment.diff() >= 0).all())
    assert torch.equal(arranged.sizes, partition.sizes)
    there = problem.with_graph(graph)
    for old, new in zip(partition.clusters, arranged.clusters, strict=True):
        assert torch.equal(problem.graph.x[old], graph.x[new])
        design, other = Batch.of(old, 0.5), Batch.of(new, 0.5)
        gas = GAS()
        left = gas.estimate(problem, gas.init(problem), design).gradient
        assert_gradients("GAS", gas.estimate(there, gas.init(there), other).gradient, left)
    assert_gradients("exact", exact_gradient(there)[1], exact_gradient(problem)[1])


def test_a_partition_arranges_its_own_graph_only() -> None:
    with pytest.raises(InvalidInputError, match="of 33 nodes, the graph has 34"):
        Partition.contiguous(33, 3).arrange(load_graph("karate"))
