"""Native and adapted layers are the PyTorch Geometric modules they stand for, whole and in rectangular pieces.

A layer's declaration `aggregate_linear` is checked both ways: cutting sources off a row, or changing them, leaves its
Jacobian in the other sources alone where the layer says so, and changes it where it does not.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from common.crossed import slow_but
from common.helpers import assert_close, assert_gradients, assert_same_bits, autograd_gradient, path_graph, seeded
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch_geometric import nn as pyg

from lmc_verify import (
    GAT,
    GCN,
    GCNII,
    GIN,
    PNA,
    SAGE,
    ConvLayer,
    Graph,
    InvalidInputError,
    Layer,
    LayeredModel,
    Problem,
    PyGConv,
    UnknownNameError,
    make_model,
)
from lmc_verify.graphs import Block, spmm
from lmc_verify.graphs.operators import LocalSet
from lmc_verify.models import MODELS
from lmc_verify.testing import aggregate_dependence, graphs, problems, seeds

RTOL = 1e-12
KINDS = {"gcn": GCN, "sage": SAGE, "gat": GAT}

CONVS: dict[str, Callable[[int, int], nn.Module]] = {
    "SAGEConv": pyg.SAGEConv,
    "SAGEConv, max": lambda i, o: pyg.SAGEConv(i, o, aggr="max"),
    "SAGEConv, normalised": lambda i, o: pyg.SAGEConv(i, o, normalize=True),
    "GATConv": lambda i, o: pyg.GATConv(i, o, heads=2),
    "GATConv, mean of heads": lambda i, o: pyg.GATConv(i, o, heads=2, concat=False),
    "GATConv, no loops": lambda i, o: pyg.GATConv(i, o, add_self_loops=False),
    "GATv2Conv": pyg.GATv2Conv,
    "GINConv": lambda i, o: pyg.GINConv(nn.Sequential(nn.Linear(i, o), nn.ReLU(), nn.Linear(o, o)), train_eps=True),
    "GraphConv": pyg.GraphConv,
    "GraphConv, mean": lambda i, o: pyg.GraphConv(i, o, aggr="mean"),
    "TransformerConv": lambda i, o: pyg.TransformerConv(i, o, heads=2, beta=True),
}
CONV = pytest.mark.parametrize("name", CONVS)


def pyg_call(conv: nn.Module, graph: Graph, x: Tensor) -> Tensor:
    """The plain module on the whole graph, with weights where it takes any."""
    if isinstance(conv, pyg.GCNConv | pyg.GraphConv):
        return conv(x, graph.edge_index, graph.edge_weight)
    return conv(x, graph.edge_index)


def cotangent(value: Tensor) -> Tensor:
    return torch.linspace(-1, 1, value.numel(), dtype=value.dtype).reshape(value.shape)


# --- the same functions as PyTorch Geometric ------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gcn", "sage"])
@given(graph=graphs(), hidden=st.integers(1, 4), layers=st.integers(1, 3), seed=seeds())
def test_native_stacks_are_pyg_stacks(kind: str, graph: Graph, hidden: int, layers: int, seed: int) -> None:
    model = KINDS[kind](graph.num_features, hidden, 3, layers, seed=seed, dtype=graph.dtype)
    conv_type = {"gcn": pyg.GCNConv, "sage": pyg.SAGEConv}[kind]
    h, plain = graph.x, []
    for index in range(layers):
        source = model.layers[index].conv
        conv = seeded(lambda source=source: conv_type(source.in_channels, source.out_channels))
        conv.load_state_dict(source.state_dict())  # the keys are PyG's
        plain.append(conv)
        h = pyg_call(conv, graph, h if index == 0 else h.relu())
    out = model(graph)
    call = f"{kind} of {layers} layers on {graph}"
    assert_close(call, out, h, rtol=RTOL)
    got = torch.autograd.grad((out * cotangent(out)).sum(), list(model.parameters()))
    want_by_layer = nn.ModuleList(plain)
    (h * cotangent(h)).sum().backward()
    want = {f"layers.{k}.conv.{n}": p.grad for k, conv in enumerate(want_by_layer) for n, p in conv.named_parameters()}
    named = {name: grad for (name, _), grad in zip(model.named_parameters(), got, strict=True)}
    assert_gradients(f"gradient of {call}", named, {name: want[name] for name in named}, rtol=RTOL)


@pytest.mark.slow
@given(graph=graphs(), heads=st.integers(1, 3), seed=seeds())
def test_gat_is_pyg_gat(graph: Graph, heads: int, seed: int) -> None:
    model = GAT(graph.num_features, 4, 3, 2, heads=heads, seed=seed, dtype=graph.dtype)
    h = graph.x
    for index, layer in enumerate(model.layers):
        conv = seeded(
            lambda layer=layer: pyg.GATConv(
                layer.conv.conv.in_channels, layer.conv.conv.out_channels, heads=heads, concat=False
            )
        )
        conv.load_state_dict(layer.conv.conv.state_dict())
        h = conv(h if index == 0 else h.relu(), graph.edge_index)
    assert_close(f"GAT with {heads} heads on {graph}", model(graph), h, rtol=RTOL)


@pytest.mark.parametrize("name", slow_but({"SAGEConv, max", "GATConv", "GINConv", "GraphConv"}, CONVS))
@given(graph=graphs(), width=st.integers(1, 3), seed=seeds())
def test_adapter_is_the_plain_module(name: str, graph: Graph, width: int, seed: int) -> None:
    plain = seeded(lambda: CONVS[name](graph.num_features, width), seed % 5)
    model = LayeredModel([ConvLayer(PyGConv(copy.deepcopy(plain)))])
    leaves = [graph.x.clone().requires_grad_() for _ in range(2)]
    want = pyg_call(plain, graph, leaves[0])
    layer = model.layer(1)
    got = layer(leaves[1], leaves[1], leaves[1], graph.operator(layer.operator))
    call = f"PyGConv({name}) on {graph}"
    assert_close(call, got, want, rtol=RTOL)
    weights = cotangent(want)
    (want * weights).sum().backward()
    parameters = dict(layer.conv.conv.named_parameters())
    grads = torch.autograd.grad(
        (got * weights).sum(), [leaves[1], *parameters.values()], allow_unused=True, materialize_grads=True
    )
    mine = {"x": grads[0], **dict(zip(parameters, grads[1:], strict=True))}
    theirs = {"x": leaves[0].grad, **{n: p.grad for n, p in plain.named_parameters()}}
    theirs = {n: torch.zeros_like(mine[n]) if value is None else value for n, value in theirs.items()}
    assert_gradients(f"gradient of {call}", mine, theirs, rtol=RTOL)


@pytest.mark.slow
@CONV
@given(graph=graphs(), data=st.data())
def test_adapter_gives_complete_rows_on_any_piece(name: str, graph: Graph, data: st.DataObject) -> None:
    conv = PyGConv(seeded(lambda: CONVS[name](graph.num_features, 2)))
    assert_rows_of_the_whole(ConvLayer(conv), graph, data)


@pytest.mark.slow
@given(problem=problems(), data=st.data())
def test_stacks_give_complete_rows_on_any_piece(problem: Problem, data: st.DataObject) -> None:
    layer, x0 = problem.model.layer(1), problem.model.encode(problem.graph.x).detach()
    assert_rows_of_the_whole(layer, problem.graph, data, x0)


def assert_rows_of_the_whole(layer: Any, graph: Graph, data: st.DataObject, x: Tensor | None = None) -> None:
    """Rows whose in-edges are all inside a piece equal those of the whole operator, in any order."""
    x = graph.x if x is None else x
    rows = torch.tensor(data.draw(st.lists(st.integers(0, graph.num_nodes - 1), min_size=1, unique=True)))
    local = LocalSet(torch.cat([rows, graph.neighbourhood(rows.sort().values)]), rows.numel())
    block = graph.block(layer.operator, rows, local)
    assert block.complete
    got = layer(x[local.nodes], x[rows], x[rows], block)
    whole = layer(x, x, x, graph.operator(layer.operator))
    assert_close(f"{layer} on rows {rows.tolist()}", got, whole[rows], rtol=RTOL)


# --- cuts -----------------------------------------------------------------------------------------


@pytest.mark.slow
@given(
    graph=graphs(),
    kind=st.sampled_from(sorted(KINDS)),
    layers=st.integers(1, 3),
    norm=st.sampled_from([None, "layer"]),
    ends=st.booleans(),
    seed=seeds(),
)
def test_both_cuts_are_one_function(graph: Graph, kind: str, layers: int, norm: Any, ends: bool, seed: int) -> None:
    # Without residuals: those add a layer's input, which is another quantity under each cut.
    settings: dict[str, Any] = {"norm": norm, "encoder": ends, "head": ends, "seed": seed, "dtype": graph.dtype}
    pre, post = (
        KINDS[kind](graph.num_features, 4, 3, layers, activation_cut=cut, **settings) for cut in ("pre", "post")
    )
    own = dict(pre.named_parameters())
    with torch.no_grad():
        for name, parameter in post.named_parameters():
            parameter.copy_(own[renamed(name, own)])
    labels = graph.y if not graph.multi_label else torch.zeros(graph.num_nodes, dtype=torch.int64)
    as_classes = Graph(graph.edge_index, graph.x, labels, graph.train_mask, graph.edge_weight)
    outputs, gradients = [], []
    for model in (pre, post):
        problem = Problem(as_classes, model)
        out = model(as_classes)
        outputs.append(out)
        gradients.append(autograd_gradient(problem, problem.node_losses(out).sum()))
    assert_close(f"{kind}, both cuts", outputs[1], outputs[0], rtol=RTOL)
    moved = {renamed(name, own): value for name, value in gradients[1].items()}
    assert_gradients(f"gradient of {kind}, both cuts", {name: moved[name] for name in own}, gradients[0])


def renamed(name: str, pre_names: Any) -> str:
    """A norm that comes after layer k with the post cut comes before layer k + 1 with the pre cut."""
    if ".after." not in name:
        return name
    _, index, rest = name.split(".", 2)
    found = f"layers.{int(index) + 1}.{rest.replace('after', 'before', 1)}"
    assert found in pre_names
    return found


# --- aggregate-linear -----------------------------------------------------------------------------


DEPENDENT = 1e-3
"""Where a Jacobian depends on the aggregate, some witness shows at least this; rounding is below 1e-10."""


@pytest.mark.slow
@given(problem=problems(aggregate_linear=True), data=st.data())
def test_declared_aggregate_linear_layers_are(problem: Problem, data: st.DataObject) -> None:
    graph = problem.graph
    row = data.draw(st.integers(0, graph.num_nodes - 1))
    kept = torch.tensor(sorted(data.draw(st.sets(st.integers(0, graph.num_nodes - 1), min_size=1))))
    x0 = torch.linspace(-1, 1, graph.num_nodes * problem.widths[0], dtype=graph.dtype).reshape(graph.num_nodes, -1)
    for index in range(1, problem.num_layers + 1):
        layer = problem.model.layer(index)
        assert layer.aggregate_linear
        width = problem.widths[index - 1]
        values = torch.linspace(-1.9, 2, graph.num_nodes * width, dtype=graph.dtype).reshape(-1, width)
        changed = aggregate_dependence(layer, graph, row, kept, values, x0)
        assert changed <= RTOL, f"layer {index} of {problem}: row {row} in sources {kept.tolist()} changed by {changed}"


SMOOTH: dict[str, Any] = {"activation": "tanh", "dtype": torch.float64}  # its slope tells all aggregates apart
OTHERS: dict[str, Callable[[int], Any]] = {
    "GCN, post cut": lambda seed: GCN(3, 8, 3, 2, activation_cut="post", seed=seed, **SMOOTH).layer(1),
    "SAGE, post cut": lambda seed: SAGE(3, 8, 3, 2, activation_cut="post", seed=seed, **SMOOTH).layer(1),
    "GIN, post cut": lambda seed: GIN(3, 8, 3, 2, activation_cut="post", seed=seed, **SMOOTH).layer(1),
    "GCNII, post cut": lambda seed: GCNII(3, 3, 3, 2, activation_cut="post", seed=seed, **SMOOTH).layer(1),
    "GAT": lambda seed: GAT(3, 8, 3, 2, seed=seed, dtype=torch.float64).layer(1),
    "PNA": lambda seed: PNA(3, 8, 3, 2, seed=seed, dtype=torch.float64).layer(1),
    "PNA, extrema only": lambda seed: PNA(3, 8, 3, 2, aggregators=["min"], seed=seed, dtype=torch.float64).layer(1),
    "SAGE, max": lambda seed: ConvLayer(PyGConv(seeded(lambda: pyg.SAGEConv(3, 8, aggr="max"), seed))),
    "SAGE, standard deviation": lambda seed: ConvLayer(PyGConv(seeded(lambda: pyg.SAGEConv(3, 8, aggr="std"), seed))),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
@given(sources=st.integers(2, 6), seed=st.integers(0, 99))
def test_other_layers_are_not(name: str, sources: int, seed: int) -> None:
    # A star: of the Jacobians in one source each, some depend on the other messages, whatever the values are.
    layer = OTHERS[name](seed)
    assert not layer.aggregate_linear
    edges = torch.stack([torch.arange(1, sources + 1), torch.zeros(sources, dtype=torch.int64)])
    x = torch.from_numpy(np.random.default_rng(seed).uniform(-2, 2, (sources + 1, 3)))
    graph = path_graph(sources + 1, edge_index=edges, x=x)
    found = [aggregate_dependence(layer, graph, 0, torch.tensor([j]), x, x) for j in range(1, sources + 1)]
    assert max(found) > DEPENDENT, f"{name}: changes {found}"


class Squared(Layer):
    """The square of a sum of messages: its derivative in one source is twice the sum."""

    operator, aggregate_linear = "sum", False

    def forward(self, source: Tensor, target: Tensor, x0_target: Tensor, block: Block) -> Tensor:
        return spmm(block, source).square()


@pytest.mark.parametrize(("others", "change"), [(1.0, 2 / 4), (-1.0, 3.0)])
def test_a_derivative_that_falls_depends_on_the_aggregate_like_one_that_grows(others: float, change: float) -> None:
    """Sources 1 and `others`: the derivative is 2 (1 + others), 2 with the other left out, 3 with it at a half."""
    graph = path_graph(3, edge_index=torch.tensor([[1, 2], [0, 0]]))
    source = torch.tensor([[0.0], [1.0], [others]], dtype=torch.float64)
    changed = torch.full_like(source, 0.5)
    found = aggregate_dependence(Squared(), graph, 0, torch.tensor([1]), source, source, changed=changed)
    assert found == pytest.approx(change)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SAGEConv", "GINConv sum", "GraphConv", "GraphConv, mean"])
@given(graph=graphs(), data=st.data())
def test_adapted_sums_and_means_may_be_declared_aggregate_linear(name: str, graph: Graph, data: st.DataObject) -> None:
    make = CONVS.get(name, lambda i, o: pyg.GINConv(nn.Linear(i, o)))
    layer = ConvLayer(PyGConv(seeded(lambda: make(graph.num_features, 2)), aggregate_linear=True))
    row = data.draw(st.integers(0, graph.num_nodes - 1))
    kept = torch.tensor(sorted(data.draw(st.sets(st.integers(0, graph.num_nodes - 1), min_size=1))))
    changed = aggregate_dependence(layer, graph, row, kept, graph.x, graph.x)
    assert changed <= RTOL, f"{name}: Jacobian of row {row} in sources {kept.tolist()} changed by {changed}"


# --- refusals, seeds and names --------------------------------------------------------------------


@pytest.mark.parametrize("conv", [pyg.SGConv, pyg.TAGConv, pyg.FAConv])
def test_convolutions_without_bipartite_input_are_refused(conv: type[nn.Module]) -> None:
    module = seeded(lambda: conv(3) if conv is pyg.FAConv else conv(3, 3))
    with pytest.raises(InvalidInputError, match=rf"{conv.__name__} cannot take a bipartite .*SAGEConv, GATConv"):
        Problem(path_graph(4), LayeredModel([ConvLayer(PyGConv(module))]))


def test_other_modules_are_refused() -> None:
    with pytest.raises(InvalidInputError, match=r"Identity is not a torch_geometric .*derive from lmc_verify\.Layer"):
        PyGConv(nn.Identity())
    with pytest.raises(InvalidInputError, match="model is a Identity, a Problem needs a LayeredModel"):
        Problem(path_graph(4), nn.Identity())  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="at least 1 message-passing layer, got 0"):
        LayeredModel([])


@pytest.mark.parametrize(
    "norm",
    [nn.BatchNorm1d, nn.SyncBatchNorm, pyg.BatchNorm, pyg.GraphNorm, pyg.PairNorm, pyg.InstanceNorm, pyg.LayerNorm],
)
def test_norms_that_couple_rows_are_refused(norm: Callable[..., nn.Module]) -> None:
    layer = ConvLayer(GCN(3, 4, 3, 1).layers[0].conv, before=norm() if norm is pyg.PairNorm else norm(3))
    with pytest.raises(InvalidInputError, match=r"layers\.0\.before is a \w+, which couples .*torch\.nn\.LayerNorm"):
        LayeredModel([layer])
    LayeredModel([ConvLayer(layer.conv, before=nn.LayerNorm(3))])
    LayeredModel([ConvLayer(layer.conv, before=pyg.LayerNorm(3, mode="node"))])


@pytest.mark.parametrize("name", sorted(MODELS))
def test_parameters_come_from_the_seed_alone(name: str) -> None:
    def state(seed: int) -> dict[str, Tensor]:
        settings: dict[str, Any] = {"encoder": True, "head": True, "norm": "layer"}
        return {key: p.detach() for key, p in make_model(name, 3, 4, 2, 3, seed=seed, **settings).named_parameters()}

    assert_same_bits(f"{name} twice", state(5), state(5))
    assert any(not torch.equal(a, b) for a, b in zip(state(5).values(), state(6).values(), strict=True))
    assert all(bool(torch.isfinite(value).all()) for value in state(5).values())
    assert all(bool(value.ne(0).all()) for value in state(5).values()), "gradients are to be seen at a generic point"


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: GCN(3, 0, 3), InvalidInputError, "hidden_channels is 0, it must be at least 1"),
        (lambda: GCN(3, 4, 3, 0), InvalidInputError, "num_layers is 0"),
        (lambda: SAGE(3, 4, 3, dropout=1.0), InvalidInputError, r"dropout is 1\.0, .*\[0, 1\)"),
        (lambda: GAT(3, 4, 3, activation_cut="prr"), UnknownNameError, "did you mean 'pre'"),
        (lambda: GCN(3, 4, 3, norm="batch"), UnknownNameError, "norm 'batch'"),
        (lambda: make_model("gcnn", 3, 4, 3), UnknownNameError, "did you mean 'gcn'"),
    ],
)
def test_bad_models_are_refused(build: Callable[[], nn.Module], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        build()


def float64_gcn(*args: int, **settings: Any) -> LayeredModel:
    return GCN(*args, dtype=torch.float64, **settings)


@pytest.mark.parametrize(
    ("model", "loss", "message"),
    [
        (lambda: GCN(3, 4, 3), "cross_entropy", r"parameter layers\.0\.conv\.bias is torch\.float32 .*\.double\(\)"),
        (lambda: float64_gcn(5, 4, 3), "cross_entropy", "features of width 5, the graph has 3; set in_channels=3"),
        (lambda: float64_gcn(3, 4, 2), "cross_entropy", "2 outputs, the labels need 3 .*out_channels=3"),
        (lambda: float64_gcn(3, 4, 3), "bce", "'bce' does not fit class labels; use loss='cross_entropy'"),
        (lambda: float64_gcn(3, 4, 3), "hinge", "unknown loss 'hinge'"),
    ],
)
def test_problems_that_do_not_fit_are_refused(model: Callable[[], LayeredModel], loss: str, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        Problem(path_graph(4), model(), loss)


# --- features of edges ---

READS_EDGES: dict[str, Callable[[], nn.Module]] = {
    "GATConv": lambda: pyg.GATConv(3, 2, edge_dim=2),
    "GATv2Conv": lambda: pyg.GATv2Conv(3, 2, edge_dim=2),
    "TransformerConv": lambda: pyg.TransformerConv(3, 2, edge_dim=2),
    "GINEConv": lambda: pyg.GINEConv(nn.Linear(3, 2)),
    "NNConv": lambda: pyg.NNConv(3, 2, nn.Linear(2, 6)),
    "CGConv": lambda: pyg.CGConv(3, dim=2),
    "GMMConv": lambda: pyg.GMMConv(3, 2, dim=2, kernel_size=2),
    "RGCNConv": lambda: pyg.RGCNConv(3, 2, num_relations=2),
    "GeneralConv": lambda: pyg.GeneralConv(3, 2, in_edge_channels=2),
}


@pytest.mark.parametrize("name", READS_EDGES)
def test_convolutions_that_read_features_of_edges_are_refused_by_name(name: str) -> None:
    module = seeded(READS_EDGES[name])
    with pytest.raises(InvalidInputError, match=rf"{name} reads edge features .*edge_(attr|dim|type|weight)"):
        Problem(path_graph(4), LayeredModel([ConvLayer(PyGConv(module))]))


@pytest.mark.parametrize("make", [lambda: pyg.GATConv(3, 3), lambda: pyg.TransformerConv(3, 3), lambda: pyg.CGConv(3)])
def test_those_that_need_none_are_taken(make: Callable[[], nn.Module]) -> None:
    assert Problem(path_graph(4), LayeredModel([ConvLayer(PyGConv(seeded(make)))])).widths[0] == 3
