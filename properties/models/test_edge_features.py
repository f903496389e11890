"""Features of edges reach every convolution that reads them, aligned with their edges, on any block.

The reference is the plain convolution of PyTorch Geometric, called on the whole graph and differentiated by autograd.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from common.crossed import slow_but
from common.helpers import RTOL, assert_close, assert_gradients, autograd_gradient, examples, path_graph, seeded
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch_geometric import nn as pyg
from torch_geometric.nn import MessagePassing

from lmc_verify import (
    GAS,
    LMC,
    BackwardSGD,
    ClusterGCN,
    Clusters,
    Conv,
    ConvLayer,
    Graph,
    InvalidInputError,
    LayeredModel,
    NeighbourSampling,
    Partition,
    Problem,
    PyGConv,
    Shadow,
    check_claim,
    exact_gradient,
    exact_pass,
)
from lmc_verify.estimators import VRGCN
from lmc_verify.graphs.operators import Block, LocalSet
from lmc_verify.models import PNAConv
from lmc_verify.testing import graphs, seeds

WIDTH = 2
"""Of the edges' features."""

DEGREES = torch.tensor([1, 3, 2, 1])
PNA: tuple[Any, ...] = (["mean", "max", "std"], ["identity", "amplification"], DEGREES)

READERS: dict[str, Callable[[int, int], nn.Module]] = {
    "GATConv": lambda i, o: pyg.GATConv(i, o, heads=2, concat=False, edge_dim=WIDTH),
    "GATConv, loops 0.5": lambda i, o: pyg.GATConv(i, o, edge_dim=WIDTH, fill_value=0.5),
    "GATConv, loops tensor": lambda i, o: pyg.GATConv(i, o, edge_dim=WIDTH, fill_value=torch.tensor([0.25, -1.0])),
    "GATConv, loops max": lambda i, o: pyg.GATConv(i, o, edge_dim=WIDTH, fill_value="max"),
    "GATConv, no loops": lambda i, o: pyg.GATConv(i, o, edge_dim=WIDTH, add_self_loops=False),
    "GATv2Conv": lambda i, o: pyg.GATv2Conv(i, o, edge_dim=WIDTH),
    "TransformerConv": lambda i, o: pyg.TransformerConv(i, o, edge_dim=WIDTH),
    "GINEConv": lambda i, o: pyg.GINEConv(nn.Linear(i, o), train_eps=True, edge_dim=WIDTH),
    "NNConv": lambda i, o: pyg.NNConv(i, o, nn.Linear(WIDTH, i * o)),
    "NNConv, mean": lambda i, o: pyg.NNConv(i, o, nn.Linear(WIDTH, i * o), aggr="mean"),
    "ResGatedGraphConv": lambda i, o: pyg.ResGatedGraphConv(i, o, edge_dim=WIDTH),
    "GMMConv": lambda i, o: pyg.GMMConv(i, o, dim=WIDTH, kernel_size=2),
    "GeneralConv": lambda i, o: pyg.GeneralConv(i, o, in_edge_channels=WIDTH),
    "CGConv": lambda i, o: pyg.CGConv((i, i), dim=WIDTH),
    "PNAConv": lambda i, o: PNAConv(i, o, *PNA, edge_dim=WIDTH),
}
READER = pytest.mark.parametrize("name", READERS)
LINEAR = ("NNConv", "NNConv, mean", "ResGatedGraphConv", "GMMConv")
"""Those whose messages depend linearly on the source, whatever else they read."""

DESIGN = Clusters(Partition.contiguous(6, 3), 1)


def plain_of(name: str, inputs: int, outputs: int, seed: int = 0) -> nn.Module:
    """The convolution as PyTorch Geometric has it; its PNAConv takes no bipartite input."""
    module = seeded(lambda: READERS[name](inputs, outputs), seed)
    if name != "PNAConv":
        return module
    plain = seeded(lambda: pyg.PNAConv(inputs, outputs, *PNA, edge_dim=WIDTH), seed)
    plain.load_state_dict(module.state_dict())
    return plain


def adapted(name: str, inputs: int, outputs: int, seed: int = 0, **settings: Any) -> PyGConv:
    return PyGConv(seeded(lambda: READERS[name](inputs, outputs), seed), **settings)


def outputs_of(name: str, graph: Graph) -> int:
    return graph.num_features if name == "CGConv" else max(graph.num_outputs, 2)


def stack(name: str, graph: Graph, seed: int) -> tuple[Problem, list[nn.Module]]:
    """Two layers of one kind with a tanh between them, adapted and plain, with the same parameters."""
    width, outputs = graph.num_features, outputs_of(name, graph)
    model = LayeredModel(
        [
            ConvLayer(adapted(name, width, width, seed)),
            ConvLayer(adapted(name, width, outputs, seed + 1), before=nn.Tanh()),
        ],
    )
    plain = [plain_of(name, width, width, seed), plain_of(name, width, outputs, seed + 1)]
    if outputs < graph.num_outputs:  # CGConv keeps the width
        graph = graph.replaced(y=graph.y.clamp(max=outputs - 1))
    return Problem(graph, model), plain


def plain_gradient(problem: Problem, plain: list[nn.Module]) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradient by plain autograd through PyTorch Geometric's modules on the whole graph."""
    graph = problem.graph
    hidden = plain[0](graph.x, graph.edge_index, graph.edge_attr)
    outputs = plain[1](hidden.tanh(), graph.edge_index, graph.edge_attr)
    loss = F.cross_entropy(outputs[graph.train_mask], graph.y[graph.train_mask])
    loss.backward()
    gradient = {}
    for index, module in enumerate(plain):
        for key, parameter in module.named_parameters():
            value = parameter.grad
            gradient[f"layers.{index}.conv.conv.{key}"] = torch.zeros_like(parameter) if value is None else value
    return float(loss.detach()), gradient


@pytest.mark.slow
@READER
@examples(15)
@given(graph=graphs(edge_features=WIDTH, multi_label=False), seed=st.integers(0, 9), chunk=st.integers(1, 3))
def test_the_exact_gradient_is_that_of_plain_autograd(name: str, graph: Graph, seed: int, chunk: int) -> None:
    problem, plain = stack(name, graph, seed)
    loss, want = plain_gradient(problem, plain)
    for exact in (exact_pass(problem), exact_pass(problem, chunk_size=chunk)):
        assert_close(f"loss of {name} on {graph}", exact.loss, loss, rtol=RTOL)
        got = {key: exact.gradient[key] for key in want}
        assert set(got) == set(exact.gradient)
        assert_gradients(f"gradient of {name} on {graph}", got, want)


def test_the_features_are_read() -> None:
    """Without them, or in another order, it is another model; before, it was that without a word."""
    graph = featured()
    problem = Problem(graph, LayeredModel([ConvLayer(adapted("GATConv", 3, 3))]))
    losses = {exact_gradient(problem)[0]}
    for changed in (graph.edge_attr.flip(0), torch.zeros_like(graph.edge_attr)):  # type: ignore[union-attr]
        losses.add(exact_gradient(problem.with_graph(graph.replaced(edge_attr=changed)))[0])
    assert len(losses) == 3
    with pytest.raises(InvalidInputError, match=r"GATConv reads edge features \(edge_dim=2\), and there are none"):
        problem.with_graph(graph.replaced(edge_attr=None))


@pytest.mark.parametrize(
    "name", slow_but({"GATConv, loops 0.5", "GATv2Conv", "GINEConv", "NNConv", "PNAConv"}, READERS)
)
@examples(15)
@given(graph=graphs(edge_features=WIDTH), data=st.data())
def test_rows_of_any_block_are_those_of_the_whole_graph(name: str, graph: Graph, data: st.DataObject) -> None:
    layer = ConvLayer(adapted(name, graph.num_features, outputs_of(name, graph)))
    nodes = st.lists(st.integers(0, graph.num_nodes - 1), min_size=1, unique=True)
    rows = torch.tensor(data.draw(nodes))
    local = LocalSet(torch.cat([rows, graph.neighbourhood(rows.sort().values)]), rows.numel())
    x = graph.x
    whole = layer(x, x, x, graph.operator(layer.operator))
    block = layer(x[local.nodes], x[rows], x[rows], graph.block(layer.operator, rows, local))
    assert_close(f"{name} at {rows.tolist()} of {graph}", block, whole[rows])


def featured(num_nodes: int = 6, **changes: Any) -> Graph:
    graph = path_graph(num_nodes, **changes)
    generator = torch.Generator().manual_seed(3)
    return graph.replaced(edge_attr=torch.randn(graph.num_edges, WIDTH, generator=generator, dtype=torch.float64))


@pytest.mark.slow
@READER
def test_estimators_are_judged_with_them(name: str) -> None:
    problem, _ = stack(name, featured(), 0)
    assert check_claim("theorem-1/unbiased", problem, DESIGN, BackwardSGD()).outcome.value == "EXACT"
    assert check_claim("e7/reductions", problem, DESIGN, GAS()).outcome.value == "EXACT"


@pytest.mark.slow
@pytest.mark.parametrize("name", LINEAR)
def test_lmc_compensates_linear_messages_exactly(name: str) -> None:
    graph = featured()
    layers = [
        ConvLayer(adapted(name, 3, 3, 0, aggregate_linear=True)),
        ConvLayer(adapted(name, 3, 3, 1, aggregate_linear=True), before=nn.Tanh()),
        ConvLayer(adapted(name, 3, 3, 2, aggregate_linear=True), before=nn.Tanh()),
    ]
    problem = Problem(graph, LayeredModel(layers))
    assert check_claim("e2/exact-when-frozen", problem, DESIGN, LMC()).outcome.value == "EXACT"
    assert check_claim("e1/equals-backward-sgd", problem, DESIGN, GAS()).outcome.value == "REFUTED"


def test_attention_over_features_of_edges_is_not_compensated_exactly() -> None:
    problem, _ = stack("GATConv", featured(), 0)
    assert check_claim("e2/exact-when-frozen", problem, DESIGN, LMC()).outcome.value == "REFUTED"


@pytest.mark.parametrize("name", ["GATConv", "NNConv", "PNAConv"])
def test_one_cluster_of_the_whole_graph_is_exact_for_all(name: str) -> None:
    problem, _ = stack(name, featured(directed=True), 0)
    everything = Clusters(Partition.contiguous(6, 1), 1)
    _, want = exact_gradient(problem)
    batch, _ = next(everything.enumerate())
    for estimator in (ClusterGCN(), LMC(), GAS(), Shadow(depth=6)):
        got = estimator.estimate(problem, estimator.init(problem), batch).gradient
        assert_gradients(f"{estimator.name} with {name}", got, want)


@pytest.mark.parametrize("renormalise", [True, False])
@pytest.mark.parametrize("name", ["GATConv", "TransformerConv"])
def test_ego_networks_carry_them(name: str, renormalise: bool) -> None:
    problem, _ = stack(name, featured(7), 0)
    estimator = Shadow(depth=1, renormalise=renormalise)
    _, want = estimator.objective(problem)
    design = Clusters(Partition.contiguous(7, 1), 1)
    batch, _ = next(design.enumerate())
    got = estimator.estimate(problem, estimator.init(problem), batch).gradient
    assert_gradients(f"{name}, renormalise={renormalise}", got, want)


def test_sampled_messages_carry_them() -> None:
    """Where every neighbour is sampled, nothing is left to chance: the estimate is the batch's exact one."""
    problem, _ = stack("NNConv", featured(), 0)
    estimator = NeighbourSampling(fan_out=10)
    state = estimator.init(problem)
    design = estimator.sampling(problem, state, DESIGN)
    mean: dict[str, Tensor] = {}
    for batch, probability in design.enumerate():
        for key, value in estimator.estimate(problem, state, batch).gradient.items():
            mean[key] = mean.get(key, torch.zeros_like(value)) + probability * value
    assert_gradients("the mean over all batches", mean, exact_gradient(problem)[1])


class Scaled(Conv):
    """A sum of messages that are scaled by the weights and by the features of their edges."""

    operator, aggregate_linear = "sum", True

    def forward(self, source: Tensor, target: Tensor, block: Block) -> Tensor:
        assert block.edge_attr is not None
        sender, row = block.edge_index
        messages = (block.edge_weight * block.edge_attr[:, 0])[:, None] * source[sender]
        return source.new_zeros(target.shape[0], source.shape[1]).index_add(0, row, messages)


@pytest.mark.slow
def test_what_histories_correct_carries_them_as_well() -> None:
    """VR-GCN with exact histories is unbiased: each message, sampled or not, has the features of its own edge."""
    head = seeded(lambda: nn.Linear(3, 3))
    problem = Problem(featured(), LayeredModel([ConvLayer(Scaled()), ConvLayer(Scaled(), before=nn.Tanh())], head=head))
    verdict = check_claim("theorem-1/unbiased", problem, Clusters(Partition.contiguous(6, 2), 1), VRGCN(fan_out=1))
    assert verdict.outcome.value == "EXACT"


@examples(15)
@given(graph=graphs(edge_features=WIDTH, max_nodes=6), data=st.data())
def test_a_subgraph_has_the_loops_of_its_own_edges(graph: Graph, data: st.DataObject) -> None:
    """Cluster-GCN's renormalised operator: the mean that a self-loop gets is over edges inside of the subgraph."""
    nodes = torch.tensor(sorted(data.draw(st.sets(st.integers(0, graph.num_nodes - 1), min_size=1))))
    inside = torch.isin(graph.edge_index, nodes).all(dim=0)
    rank = torch.zeros(graph.num_nodes, dtype=torch.int64).index_put_((nodes,), torch.arange(nodes.numel()))
    part = graph.with_edges(inside)
    y = graph.y[nodes] if graph.multi_label else graph.y[nodes].clamp(min=0)
    alone = Graph(
        rank[part.edge_index],
        graph.x[nodes],
        y,
        torch.ones(nodes.numel(), dtype=torch.bool),
        edge_attr=part.edge_attr,
    )
    got, want = graph.induced_block("loops:mean", LocalSet(nodes, nodes.numel())), alone.operator("loops:mean")
    assert_close("features", by_entry(got), by_entry(want))


def by_entry(block: Any) -> Tensor:
    """Sums of the features of all entries with one source and destination [rows, columns, d]."""
    rows, columns = block.shape
    source, destination = block.edge_index
    total = block.edge_attr.new_zeros(rows, columns, block.edge_attr.shape[1])
    return total.index_put_((destination, source), block.edge_attr, accumulate=True)


@examples(20)
@given(graph=graphs(edge_features=WIDTH), data=st.data())
def test_blocks_carry_the_features_of_their_entries(graph: Graph, data: st.DataObject) -> None:
    """Compared with tables written edge by edge: entries are sorted, cut and renamed, and their features with them."""
    n, attr = graph.num_nodes, graph.edge_attr
    assert attr is not None
    kind = data.draw(
        st.sampled_from(["sum", "mean", "loops:mean", "loops:add", "loops:max", "loops:1.5", "loops:1.0,-2.0"])
    )
    table = torch.zeros(n, n, WIDTH, dtype=torch.float64)
    into: dict[int, list[Tensor]] = {node: [] for node in range(n)}
    for (source, destination), row in zip(graph.edge_index.T.tolist(), attr, strict=True):
        if source != destination or not kind.startswith("loops"):
            table[destination, source] += row
            into[destination].append(row)
    if kind.startswith("loops"):
        for node, rows in into.items():
            stacked = torch.stack([*rows]) if rows else torch.zeros(1, WIDTH, dtype=torch.float64)
            fill = kind.partition(":")[2]
            fills = {"mean": stacked.mean(0), "add": stacked.sum(0), "max": stacked.max(0).values}
            table[node, node] = fills[fill] if fill in fills else torch.tensor([float(v) for v in fill.split(",")])
    assert_close(f"operator({kind}) of {graph}", by_entry(graph.operator(kind)), table)
    ids = st.integers(0, n - 1)
    rows = torch.tensor(data.draw(st.lists(ids, min_size=1, unique=True)))
    columns = torch.tensor(data.draw(st.lists(ids, min_size=1, unique=True)))
    block = graph.block(kind, rows, LocalSet(columns, 1))
    assert_close(f"block({kind}, {rows.tolist()}, {columns.tolist()})", by_entry(block), table[rows][:, columns])
    assert torch.equal(block.edge_weight, graph.block(kind.partition(":")[0], rows, LocalSet(columns, 1)).edge_weight)


# --- what is refused, and what is chosen ---


def one(conv: nn.Module, graph: Graph | None = None, **settings: Any) -> Problem:
    return Problem(featured() if graph is None else graph, LayeredModel([ConvLayer(PyGConv(conv, **settings))]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: pyg.GATConv(3, 3, edge_dim=5), r"layer 1 \(GATConv\) cannot be evaluated .*edge features of width 2"),
        (lambda: pyg.RGCNConv(3, 3, num_relations=2), r"RGCNConv reads edge features \(its argument edge_type\)"),
        (lambda: pyg.FiLMConv(3, 3, num_relations=2), r"FiLMConv reads edge features \(its argument edge_type\)"),
        (lambda: pyg.GATConv(3, 3, edge_dim=2, fill_value="median"), "fill_value is 'median'; .*'mean', 'add'"),
        (lambda: pyg.GATConv(3, 3, edge_dim=2, fill_value=torch.ones(3)), "fill_value has 3 numbers, .* 2 features"),
        (lambda: pyg.SAGEConv(3, 3, flow="target_to_source"), r"flow='target_to_source'.*graph\.transposed\(\)"),
    ],
)
def test_what_cannot_be_carried_is_refused_by_name(make: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        one(seeded(make))


def test_features_are_read_by_the_settings_of_a_convolution_or_as_told() -> None:
    graph = featured()
    bare = graph.replaced(edge_attr=None)
    for make in (lambda: pyg.GATConv(3, 3), lambda: pyg.TransformerConv(3, 3), lambda: pyg.CGConv(3)):
        conv = seeded(make)  # none of them reads features
        assert exact_gradient(one(copy.deepcopy(conv), graph))[0] == exact_gradient(one(copy.deepcopy(conv), bare))[0]
    gen = seeded(lambda: pyg.GENConv(3, 3, edge_dim=WIDTH, norm="layer"))
    with pytest.raises(InvalidInputError, match=r"GENConv reads edge features \(edge_dim\)"):
        one(copy.deepcopy(gen), bare)
    told, not_told = (one(copy.deepcopy(gen), graph, edge_features=value) for value in (True, False))
    assert exact_gradient(told)[0] == exact_gradient(one(copy.deepcopy(gen), graph))[0]
    assert exact_gradient(told)[0] != exact_gradient(not_told)[0]
    with pytest.raises(InvalidInputError, match=r"SAGEConv\.forward has no argument edge_attr"):
        PyGConv(seeded(lambda: pyg.SAGEConv(3, 3)), edge_features=True)


class Typed(MessagePassing):
    """A sum that can do without types of edges."""

    def forward(self, x: Any, edge_index: Tensor, edge_type: Tensor | None = None) -> Tensor:
        return self.propagate(edge_index, x=x, size=(x[0].size(0), x[1].size(0)))


def test_types_of_edges_are_left_out_only_if_that_is_said() -> None:
    with pytest.raises(InvalidInputError, match=r"Typed reads edge features \(its argument edge_type\)"):
        PyGConv(Typed())
    problem = one(Typed(), edge_features=False)
    assert_close("sums", exact_pass(problem).embeddings[1], problem.graph.operator("sum").csr.matmul(problem.graph.x))


@pytest.mark.slow
@examples(20)
@given(graph=graphs(multi_label=False), normalised=st.booleans(), seed=seeds())
def test_gcnconv_is_normalised_by_the_whole_graph(graph: Graph, normalised: bool, seed: int) -> None:
    width, outputs = graph.num_features, max(graph.num_outputs, 2)
    make = [
        lambda: pyg.GCNConv(width, 3, normalize=normalised, cached=True),
        lambda: pyg.GCNConv(3, outputs, normalize=normalised, bias=False),
    ]
    plain = [seeded(one_of, seed % 7) for one_of in make]
    layers = [ConvLayer(PyGConv(copy.deepcopy(conv), aggregate_linear=True)) for conv in plain]
    layers[1].before = nn.Tanh()
    problem = Problem(graph, LayeredModel(layers))
    hidden = plain[0](graph.x, graph.edge_index, graph.edge_weight).tanh()
    outputs_there = plain[1](hidden, graph.edge_index, graph.edge_weight)
    loss = F.cross_entropy(outputs_there[graph.train_mask], graph.y[graph.train_mask])
    loss.backward()
    for exact in (exact_pass(problem), exact_pass(problem, chunk_size=2)):
        assert_close(f"loss on {graph}", exact.loss, loss)
        for index, conv in enumerate(plain):
            for key, parameter in conv.named_parameters():
                name = f"layers.{index}.conv.conv.{key}"
                assert_close(name, exact.gradient[name], parameter.grad)


@pytest.mark.slow
def test_lmc_is_exact_with_an_adapted_gcnconv() -> None:
    weight = torch.linspace(0.5, 2.0, 10, dtype=torch.float64)
    graph = path_graph(6, edge_weight=torch.cat([weight[:5], weight[:5]]))
    layers = [
        ConvLayer(PyGConv(seeded(lambda: pyg.GCNConv(3, 3), k), aggregate_linear=True), before=nn.Tanh())
        for k in range(2)
    ]
    problem = Problem(graph, LayeredModel(layers))
    assert check_claim("e2/exact-when-frozen", problem, DESIGN, LMC()).outcome.value == "EXACT"
    assert check_claim("theorem-1/unbiased", problem, DESIGN, BackwardSGD()).outcome.value == "EXACT"


@pytest.mark.parametrize("settings", [{"improved": True}, {"add_self_loops": False}])
def test_other_normalisations_of_gcnconv_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError, match=r"GCNConv has improved=.*normalize=False"):
        PyGConv(seeded(lambda: pyg.GCNConv(3, 3, **settings)))


def test_hooks_that_gcnconv_would_not_run_are_refused() -> None:
    conv = seeded(lambda: pyg.GCNConv(3, 3))
    conv.register_forward_hook(lambda module, inputs, output: 2 * output)
    with pytest.raises(InvalidInputError, match=r"GCNConv has hooks of its own.*register them on the PyGConv"):
        one(conv)
    hooked = seeded(lambda: pyg.GCNConv(3, 3))
    hooked.lin.register_forward_hook(lambda module, inputs, output: 2 * output)
    problem = one(hooked)
    want = autograd_gradient(problem, problem.node_losses(problem.model(problem.graph)).sum())
    assert_gradients("hooks of a part", exact_pass(problem).gradient, want)
    assert exact_gradient(problem)[0] != exact_gradient(one(seeded(lambda: pyg.GCNConv(3, 3))))[0]
