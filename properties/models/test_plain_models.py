"""A plain model and its layered form are one function of the same parameters; what cannot be cut is refused by name.

Outputs and gradients are compared here once more, with code of its own, on graphs that `layered` has not seen.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from common.crossed import slow_but
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch_geometric import nn as pyg_nn
from torch_geometric.data import Data
from torch_geometric.nn import GATConv, GATv2Conv, GCNConv, GraphConv, JumpingKnowledge, MessagePassing, SAGEConv

import lmc_verify as lv
from lmc_verify.models.plain.layer import PlainLayer
from lmc_verify.models.plain.prepare import generators_kept

FEATURES, CLASSES = 5, 3


def graph_of(seed: int, nodes: int = 24, edges: int = 90, *, weights: bool = False, attributes: int = 0) -> lv.Graph:
    """Return a directed graph with multi-edges and self-loops."""
    rng = torch.Generator().manual_seed(seed)
    return lv.Graph(
        edge_index=torch.randint(nodes, (2, edges), generator=rng),
        x=torch.randn(nodes, FEATURES, generator=rng, dtype=torch.float64),
        y=torch.arange(nodes) % CLASSES,
        train_mask=torch.arange(nodes) % 4 != 3,
        edge_weight=torch.rand(edges, generator=rng, dtype=torch.float64) + 0.5 if weights else None,
        edge_attr=torch.randn(edges, attributes, generator=rng, dtype=torch.float64) if attributes else None,
    )


def built(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """Return a model with parameters of its own seed, in float64 and evaluation mode."""
    with generators_kept():
        torch.manual_seed(seed)
        model = make().double()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
            for name, buffer in model.named_buffers():
                if "running" in name:
                    buffer.copy_(torch.rand_like(buffer) + 0.5)
    return model.eval()


class Loop(nn.Module):
    """Convolutions in a list, with what options ask for between them."""

    def __init__(
        self,
        conv: Callable[..., nn.Module] = GCNConv,
        width: int = 6,
        depth: int = 3,
        *,
        norm: Callable[[int], nn.Module] | None = None,
        dropout: float = 0.0,
        residual: bool = False,
    ) -> None:
        super().__init__()
        widths = [FEATURES, *[width] * (depth - 1), CLASSES]
        self.convs = nn.ModuleList(conv(a, b) for a, b in pairwise(widths))
        self.norms = nn.ModuleList((norm or nn.Identity)(width) for _ in range(depth - 1))
        self.dropout, self.residual = dropout, residual

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        for index, conv in enumerate(self.convs[:-1]):
            h = F.relu(self.norms[index](conv(x, edge_index)))
            h = F.dropout(h, p=self.dropout, training=self.training)
            x = x + h if self.residual and index > 0 else h
        return self.convs[-1](x, edge_index)


class Jumping(nn.Module):
    """Dense jumping knowledge: convolution l reads the sum of all results below, the head reads them all."""

    def __init__(self, mode: str) -> None:
        super().__init__()
        self.inward = nn.Linear(FEATURES, 6)
        self.convs = nn.ModuleList(SAGEConv(6, 6) for _ in range(3))
        self.mode = mode
        self.out = nn.Linear(24 if mode == "cat" else 6, CLASSES)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        found = [self.inward(x).relu()]
        for conv in self.convs:
            found.append(torch.tanh(conv(sum(found), edge_index)))
        if self.mode == "cat":
            return self.out(torch.cat(found, dim=-1))
        stacked = torch.stack(found, dim=-1)
        return self.out(stacked.max(dim=-1)[0] if self.mode == "max" else stacked.sum(dim=-1))


class InitialResidual(nn.Module):
    """As GCNII: every layer reads the first embedding again; parameters of the module itself."""

    def __init__(self) -> None:
        super().__init__()
        self.lins = nn.ModuleList([nn.Linear(FEATURES, 6), nn.Linear(6, CLASSES)])
        self.convs = nn.ModuleList(GCNConv(6, 6, bias=False) for _ in range(3))
        self.alpha = nn.Parameter(torch.tensor(0.3))
        self.register_buffer("theta", torch.tensor([0.5, 0.4, 0.3]))

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        x = x0 = self.lins[0](x).relu()
        share = torch.sigmoid(self.alpha)
        for index, conv in enumerate(self.convs):
            mixed = (1 - share) * conv(x, edge_index) + share * x0
            x = F.relu(mixed * self.theta[index] + x)
        return self.lins[1](x)


class Tied(nn.Module):
    """One convolution and one norm, applied three times."""

    def __init__(self) -> None:
        super().__init__()
        self.inward, self.outward = nn.Linear(FEATURES, 6), nn.Linear(6, CLASSES)
        self.conv, self.norm = GCNConv(6, 6), nn.LayerNorm(6)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        x = self.inward(x)
        for _ in range(3):
            x = x + self.conv(self.norm(x).relu(), edge_index)
        return self.outward(x)


class Parallel(nn.Module):
    """Two convolutions of one depth, on one operator or on two."""

    def __init__(self, *kinds: Callable[..., nn.Module]) -> None:
        super().__init__()
        self.first = nn.ModuleList(kind(FEATURES, 6) for kind in kinds)
        self.second = nn.ModuleList(kind(6, CLASSES) for kind in kinds)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        x = sum(conv(x, edge_index) for conv in self.first).relu()
        return sum(conv(x, edge_index) for conv in self.second)


class Blocks(nn.Module):
    """Modules in modules; an encoder and a decoder that are called so; the data in one object."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.skip = GraphConv(6, 6), nn.Linear(6, 6)

        def forward(self, x: Tensor, edge_index: Tensor) -> tuple[Tensor, Tensor]:
            return F.elu(self.conv(x, edge_index)), self.skip(x)

    def __init__(self) -> None:
        super().__init__()
        self.encoder = pyg_nn.MLP([FEATURES, 8, 6], norm=None)
        self.layers = nn.ModuleList(self.Block() for _ in range(2))
        self.head = nn.Sequential(nn.Linear(6, 6), nn.ReLU(inplace=True), nn.Linear(6, CLASSES))

    def forward(self, data: Data) -> Tensor:
        x = self.encoder(data.x)
        for layer in self.layers:
            changed, kept = layer(x, data.edge_index)
            x = changed + kept
        return self.head(x).log_softmax(dim=-1)


class Weighted(nn.Module):
    """Weights for GCN and GraphConv, none for SAGE."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = GCNConv(FEATURES, 6), GraphConv(6, 6), SAGEConv(6, CLASSES)

    def forward(self, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None = None) -> Tensor:
        x = self.one(x, edge_index, edge_weight).relu()
        x = self.two(x, edge_index, edge_weight=edge_weight).relu()
        return self.three(x, edge_index)


class Featured(nn.Module):
    """Edge features for two kinds of attention, with added self-loops, and none for a third convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.one = GATConv(FEATURES, 4, heads=2, edge_dim=2)
        self.two = GATv2Conv(8, 6, edge_dim=2, fill_value="add")
        self.three = SAGEConv(6, CLASSES)

    def forward(self, x: Tensor, adj_t: Tensor, edge_attr: Tensor) -> Tensor:
        x = F.elu(self.one(x, adj_t, edge_attr))
        x = F.elu(self.two((x, x), adj_t, edge_attr=edge_attr))
        return self.three(x, adj_t)


class InPlace(nn.Module):
    """What is overwritten is read again afterwards, by a module, a function and a method."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList([GCNConv(FEATURES, 6), GCNConv(6, 6), GCNConv(6, CLASSES)])
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        first = self.convs[0](x, edge_index) * 1.0
        self.act(first)
        second = self.convs[1](first, edge_index) * 1.0
        second.add_(first)
        third = second * 1.0
        F.elu_(third)
        return self.convs[2](F.relu(third + second, inplace=True), edge_index)


class Heads(nn.Module):
    """Values of three dimensions, carried past a convolution; results in a tuple; a parameter that is never used."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList([GATConv(FEATURES, 4, heads=2), GATConv(8, 4, heads=2), GATConv(8, CLASSES)])
        self.never = nn.Linear(2, 2)
        self.table = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        by_head = self.convs[0](x, edge_index).view(-1, 2, 4)
        left, right = by_head.chunk(2, dim=-1)
        x = self.convs[1](torch.cat([left, right], dim=-1).flatten(1).tanh(), edge_index).view(x.size(0), 2, 4)
        shared = self.table.size(0) / 2  # of a parameter, not of rows
        return self.convs[2]((x * shared + by_head.softmax(dim=1)).flatten(1), edge_index)


def sequential() -> nn.Module:
    steps = [
        (nn.Dropout(0.5), "x -> x"),
        (GCNConv(FEATURES, 6), "x, edge_index -> x1"),
        nn.ReLU(inplace=True),
        (GCNConv(6, 6), "x1, edge_index -> x2"),
        nn.ReLU(inplace=True),
        (lambda x1, x2: [x1, x2], "x1, x2 -> xs"),
        (JumpingKnowledge("cat"), "xs -> x"),
        nn.Linear(12, CLASSES),
    ]
    return pyg_nn.Sequential("x, edge_index", steps)


def pna(**options: Any) -> nn.Module:
    histogram = torch.tensor([1, 3, 5, 4, 2, 1])
    scalers, aggregators = ["identity", "amplification", "attenuation"], ["mean", "max", "std"]
    return pyg_nn.PNA(FEATURES, 6, 2, CLASSES, aggregators=aggregators, scalers=scalers, deg=histogram, **options)


LINEAR, OTHER = True, False
SIZES = (FEATURES, 6, 3, CLASSES)

MODELS: dict[str, tuple[Callable[[], nn.Module], bool, int]] = {
    "PyG GCN": (lambda: pyg_nn.GCN(*SIZES), LINEAR, 3),
    "PyG GCN, one layer": (lambda: pyg_nn.GCN(FEATURES, 6, 1, CLASSES), LINEAR, 1),
    "PyG GCN, batch norm": (lambda: pyg_nn.GCN(*SIZES, norm="batch_norm", act_first=True), LINEAR, 3),
    "PyG GCN, layer norm": (
        lambda: pyg_nn.GCN(*SIZES, norm="layer_norm", norm_kwargs={"mode": "node"}, act="elu"),
        LINEAR,
        3,
    ),
    "PyG GCN, cat": (lambda: pyg_nn.GCN(*SIZES, jk="cat", dropout=0.5), LINEAR, 3),
    "PyG GraphSAGE, max": (lambda: pyg_nn.GraphSAGE(*SIZES, jk="max"), LINEAR, 3),
    "PyG GraphSAGE, lstm": (lambda: pyg_nn.GraphSAGE(*SIZES, jk="lstm"), LINEAR, 3),
    "PyG GIN": (lambda: pyg_nn.GIN(*SIZES), OTHER, 3),
    "PyG GAT": (lambda: pyg_nn.GAT(*SIZES, heads=2, dropout=0.5), OTHER, 3),
    "PyG GATv2": (lambda: pyg_nn.GAT(*SIZES, v2=True), OTHER, 3),
    "PyG PNA": (pna, OTHER, 2),
    "PyG EdgeCNN": (lambda: pyg_nn.EdgeCNN(FEATURES, 6, 2, CLASSES), OTHER, 2),
    "PyG Sequential": (sequential, LINEAR, 2),
    "PyG convolution": (lambda: GCNConv(FEATURES, CLASSES), LINEAR, 1),
    "loop": (Loop, LINEAR, 3),
    "loop, dropout": (lambda: Loop(dropout=0.5), LINEAR, 3),
    "loop, residual": (lambda: Loop(SAGEConv, depth=4, residual=True), LINEAR, 4),
    "loop, layer norm": (lambda: Loop(norm=nn.LayerNorm), LINEAR, 3),
    "loop, batch norm": (lambda: Loop(norm=lambda width: nn.BatchNorm1d(width, eps=0.1), residual=True), LINEAR, 3),
    "jumping, cat": (lambda: Jumping("cat"), LINEAR, 3),
    "jumping, max": (lambda: Jumping("max"), LINEAR, 3),
    "jumping, sum": (lambda: Jumping("sum"), LINEAR, 3),
    "initial residual": (InitialResidual, LINEAR, 3),
    "tied": (Tied, LINEAR, 3),
    "parallel, one operator": (lambda: Parallel(SAGEConv, GraphConv), LINEAR, 2),
    "parallel, two operators": (lambda: Parallel(GCNConv, SAGEConv), LINEAR, 4),
    "blocks": (Blocks, LINEAR, 2),
    "in place": (InPlace, LINEAR, 3),
    "heads": (Heads, OTHER, 3),
}
"""Models, whether their layers are aggregate-linear, and how many layers there are."""
QUICK = {
    "PyG GCN, batch norm",
    "PyG GCN, cat",
    "PyG GraphSAGE, lstm",
    "PyG GATv2",
    "PyG PNA",
    "PyG Sequential",
    "loop, dropout",
    "loop, residual",
    "jumping, max",
    "tied",
    "parallel, two operators",
    "in place",
}
"""One of each kind; the others are the same kinds with other settings."""


def reference(model: nn.Module, graph: lv.Graph) -> Tensor:
    """Return a plain model's outputs, called as its author would."""
    if isinstance(model, Blocks):
        return model(SimpleNamespace(x=graph.x, edge_index=graph.edge_index))
    return model(graph.x, graph.edge_index)


def gradient_of(model: nn.Module, outputs: Tensor, graph: lv.Graph) -> dict[str, Tensor]:
    """Return the gradient of the mean cross-entropy over labelled nodes, by autograd."""
    loss = F.cross_entropy(outputs[graph.train_mask], graph.y[graph.train_mask])
    parameters = dict(model.named_parameters())
    found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(parameters, found, strict=True))


def assert_same(made: lv.LayeredModel, model: nn.Module, graph: lv.Graph, outputs: Tensor) -> None:
    """Outputs and gradient of the exact pass are those of the plain model, under its names."""
    expected = gradient_of(model, outputs, graph)
    exact = lv.exact_pass(lv.Problem(graph, made))
    torch.testing.assert_close(made(graph), outputs, rtol=1e-12, atol=1e-12)
    assert list(exact.gradient) == list(expected)
    largest = max(float(value.abs().max()) for value in expected.values())
    for name, value in expected.items():
        torch.testing.assert_close(exact.gradient[name], value, rtol=1e-12, atol=1e-12 * largest, msg=name)


@pytest.mark.parametrize("name", slow_but(QUICK, MODELS))
def test_outputs_and_gradients_are_those_of_the_plain_model(name: str) -> None:
    make, linear, depth = MODELS[name]
    model = built(make)
    made = lv.layered(model, graph_of(1))
    graph = graph_of(2)
    assert (made.aggregate_linear, made.num_layers) == (linear, depth)
    assert [each for each, _ in made.named_parameters()] == [each for each, _ in model.named_parameters()]
    assert_same(made, model, graph, reference(model, graph))


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_backward_sgd_is_exact_on_every_model(name: str) -> None:
    graph = graph_of(3)
    problem = lv.Problem(graph, lv.layered(built(MODELS[name][0]), graph))
    design = lv.Clusters(lv.Partition.random(graph.num_nodes, 4), per_batch=2)
    verdict = lv.check_claim("theorem-1/unbiased", problem, design, lv.BackwardSGD())
    assert verdict.outcome is lv.Outcome.EXACT, verdict.summary
    for estimator in (lv.LMC(beta=0.4), lv.GAS(), lv.FM()):
        batch, _ = next(iter(design.enumerate()))
        estimate = estimator.estimate(problem, estimator.init(problem), batch)
        assert list(estimate.gradient) == list(problem.parameter_names)


@pytest.mark.slow
@pytest.mark.parametrize("claim", ["e1/equals-backward-sgd", "e2/exact-when-frozen"])
@pytest.mark.parametrize(
    "name", ["PyG GCN", "PyG GCN, cat", "loop, residual", "initial residual", "tied", "jumping, max"]
)
def test_lmc_is_exact_where_layers_are_aggregate_linear(name: str, claim: str) -> None:
    graph = graph_of(4)
    problem = lv.Problem(graph, lv.layered(built(MODELS[name][0]), graph))
    design = lv.Clusters(lv.Partition.random(graph.num_nodes, 3), per_batch=1)
    verdict = lv.check_claim(claim, problem, design, lv.LMC())
    assert verdict.outcome is lv.Outcome.EXACT, verdict.summary
    assert lv.check_claim(claim, problem, design, lv.GAS()).outcome is lv.Outcome.REFUTED


@pytest.mark.slow
@pytest.mark.parametrize(("make", "options"), [(Weighted, {"weights": True}), (Featured, {"attributes": 2})])
def test_weights_and_features_of_edges_are_those_of_the_data(
    make: Callable[[], nn.Module], options: dict[str, Any]
) -> None:
    model = built(make)
    made = lv.layered(model, graph_of(1, **options))
    graph = graph_of(2, **options)
    outputs = model(graph.x, graph.edge_index, graph.edge_weight if graph.edge_attr is None else graph.edge_attr)
    assert_same(made, model, graph, outputs)
    design = lv.Clusters(lv.Partition.random(graph.num_nodes, 3), per_batch=1)
    verdict = lv.check_claim("theorem-1/unbiased", lv.Problem(graph, made), design, lv.BackwardSGD())
    assert verdict.outcome is lv.Outcome.EXACT, verdict.summary


def test_a_weighted_model_on_data_without_weights() -> None:
    model, graph = built(Weighted), graph_of(2)
    assert_same(lv.layered(model, graph), model, graph, model(graph.x, graph.edge_index))


def test_an_object_has_none_for_what_the_data_lack() -> None:
    class Choosing(Loop):
        def forward(self, data: Any) -> Tensor:  # type: ignore[override]
            return self.convs[0](data.x if data.edge_attr is None else 2 * data.x, data.edge_index, data.edge_weight)

    model, graph = built(Choosing), graph_of(2)
    assert_same(lv.layered(model, graph), model, graph, model.convs[0](graph.x, graph.edge_index))


def test_pyg_data_in_single_precision() -> None:
    graph = graph_of(1)
    data = Data(x=graph.x.float(), edge_index=graph.edge_index, y=graph.y, train_mask=graph.train_mask)
    model = built(MODELS["loop, residual"][0]).float()
    made = lv.layered(model, data)
    assert {value.dtype for value in made.parameters()} == {torch.float32}
    torch.testing.assert_close(made(lv.Graph.from_pyg(data)), model(data.x, data.edge_index))


def test_the_model_is_left_as_it_was_and_the_copy_is_its_own() -> None:
    model, graph = built(MODELS["PyG GCN, batch norm"][0]), graph_of(1)
    before, outputs = copy.deepcopy(model.state_dict()), reference(model, graph)
    kinds = [(name, type(part), part.training) for name, part in model.named_modules()]
    made = lv.layered(model, graph)
    assert kinds == [(name, type(part), part.training) for name, part in model.named_modules()]
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.zero_()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(reference(model, graph), outputs)


def test_trained_and_frozen_parameters_stay_what_they_are() -> None:
    model, graph = built(Loop), graph_of(1)
    model.convs[1].requires_grad_(False)
    problem = lv.Problem(graph, lv.layered(model, graph))
    wanted = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert list(problem.parameter_names) == wanted
    assert "convs.1.bias" not in wanted


def test_parameters_belong_to_the_part_that_reads_them_first() -> None:
    problem = lv.Problem(graph_of(1), lv.layered(built(Blocks), graph_of(1)))
    parts = {name: problem.layer_of(name) for name in problem.parameter_names}
    assert parts["encoder.lins.0.weight"] == parts["layers.0.skip.weight"] == "encoder"
    assert parts["layers.0.conv.lin_rel.weight"] == "layer 1"
    assert parts["layers.1.conv.lin_rel.weight"] == parts["layers.1.skip.weight"] == "layer 2"
    assert parts["head.2.bias"] == "head"


def test_names_survive_copies_and_conversions() -> None:
    graph = graph_of(1)
    model = built(Heads)
    made = lv.layered(model, graph)
    names = [name for name, _ in model.named_parameters()]
    for other in (
        copy.deepcopy(made),
        pickle.loads(pickle.dumps(made)),
        lv.Problem(graph, made).copy().model,
        copy.deepcopy(made).float(),
    ):
        assert [name for name, _ in other.named_parameters()] == names
    assert [name for name, _ in made.named_parameters("a")] == [f"a.{name}" for name in names]
    assert "never.weight" in names  # no output depends on it; its gradient is zero


def test_simple_stacks_use_the_layers_of_hand_built_models() -> None:
    """The estimators that act behind the activation find it in `ConvLayer.before`."""
    made = lv.layered(built(Loop), graph_of(1))
    assert [type(made.layer(index)) for index in (1, 2, 3)] == [lv.ConvLayer] * 3
    rows = torch.randn(4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.equal(made.layer(2).read(rows), rows.relu())
    assert (made.encoder, made.head) == (None, None)


def test_what_is_carried_is_as_wide_as_what_is_needed() -> None:
    """A residual stack keeps one sum beside each result, at any depth; jumping knowledge keeps every embedding."""
    assert lv.layered(built(MODELS["loop, residual"][0]), graph_of(1)).row_widths == (5, 6, 12, 12, 3)
    assert lv.layered(built(MODELS["PyG GCN, cat"][0]), graph_of(1)).row_widths == (5, 6, 12, 18)


@pytest.mark.parametrize("name", ["loop, dropout", "PyG Sequential", "PyG GCN, cat"])
def test_dropout_is_keyed_in_training_mode(name: str) -> None:
    graph = graph_of(1)
    made = lv.layered(built(MODELS[name][0]).train(), graph)
    found = [part for part in made.modules() if isinstance(part, lv.Dropout)]
    assert {(part.training, part.p) for part in found} == {(True, 0.5)}
    outputs = []
    for seed in (0, 0, 1):
        lv.models.key_dropout(made, seed)
        outputs.append(made(graph))
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])
    made.eval()
    torch.testing.assert_close(made(graph), reference(built(MODELS[name][0]), graph), rtol=1e-12, atol=1e-12)


def test_a_row_is_dropped_alike_as_source_and_as_target() -> None:
    graph = graph_of(1)
    made = lv.layered(built(lambda: Loop(SAGEConv, dropout=0.5, residual=True)).train(), graph)
    lv.models.key_dropout(made, 3)
    layer, block = made.layer(2), graph.operator("sum")
    assert isinstance(layer, PlainLayer)
    rows = torch.randn(24, made.row_widths[1], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    some = torch.arange(6, 12)
    local = lv.graphs.LocalSet(torch.arange(24), 24)
    piece = graph.block("sum", some, local)
    torch.testing.assert_close(layer(rows, rows[6:12], rows, piece), layer(rows, rows, rows, block)[6:12])


def test_attention_is_not_taken_for_linear_where_the_activation_before_it_is_zero() -> None:
    model = built(lambda: Loop(GATConv, width=1, norm=lambda width: nn.Linear(width, width)))
    with torch.no_grad():
        for norm in model.norms:
            norm.bias.fill_(-50.0)
    made = lv.layered(model, graph_of(1))
    assert not any(made.layer(index).aggregate_linear for index in (1, 2, 3))


@pytest.mark.slow
def test_a_plain_model_is_trained_with_its_dropout() -> None:
    graph = graph_of(1)
    design = lv.EpochClusters(lv.Partition.random(graph.num_nodes, 4), per_batch=1)
    chosen = lv.TrainerSettings(optimiser="adam", learning_rate=0.05, epochs=20)
    finals = []
    for _ in range(2):
        made = lv.layered(built(MODELS["PyG GCN, cat"][0]).train(), graph)
        trainer = lv.Trainer(lv.Problem(graph, made), lv.LMC(beta=0.2), design, chosen, seed=0)
        trace = trainer.run()
        finals.append(trace.last.training_loss)
        assert finals[-1] < 0.9 * trace.evaluations[0].training_loss
    assert finals[0] == finals[1]


# ------------------------------------------------------------------------------------------------- what is refused


class Small(nn.Module):
    """A model of one convolution whose forward is given."""

    def __init__(self, forward: Callable[..., Any], conv: nn.Module | None = None, **parts: nn.Module) -> None:
        super().__init__()
        self.conv = conv or GCNConv(FEATURES, CLASSES)
        self.scale = nn.Parameter(torch.tensor(0.5))
        for name, part in parts.items():
            self.add_module(name, part)
        self.run = forward

    def forward(self, x: Tensor, edge_index: Tensor) -> Any:
        return self.run(self, x, edge_index)


class OneTensor(MessagePassing):
    """A convolution as tutorials write it, which takes no bipartite input."""

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.propagate(edge_index, x=x)


class Scatter(nn.Module):
    """Message passing by hand."""

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return torch.zeros_like(x).index_add(0, edge_index[1], x[edge_index[0]])


def branch(model: Any, x: Tensor, edge_index: Tensor) -> Tensor:
    x = model.conv(x, edge_index)
    if x.sum() > 0:
        return x
    return -x


def branch_on_parameter(model: Any, x: Tensor, edge_index: Tensor) -> Tensor:
    return model.conv(x, edge_index) if model.scale > 0 else x


def counts(model: Any, x: Tensor, edge_index: Tensor) -> Tensor:
    model.conv.calls = getattr(model.conv, "calls", 0) + 1
    return model.conv(x, edge_index) * model.conv.calls


def adds_loops(model: Any, x: Tensor, edge_index: Tensor) -> Tensor:
    return model.conv(x, torch.cat([edge_index, edge_index.flip(0)], dim=1))


def aliased(model: Any, x: Tensor, edge_index: Tensor) -> Tensor:
    first = kept = model.conv(x, edge_index)
    first += 1.0
    return kept * 2.0


def no_gradient(model: Any, x: Tensor, edge_index: Tensor) -> Tensor:
    with torch.no_grad():
        scaled = model.conv(x, edge_index)
    return scaled * model.scale


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "a branch on values": (lambda: Small(branch), r"the model \(test_plain_models.py:\d+\) cannot be traced"),
    "a branch on a parameter": (lambda: Small(branch_on_parameter), "cannot be traced"),
    "a module that counts its calls": (lambda: Small(counts), "gives other outputs for the same input"),
    "computed edges": (
        lambda: Small(adds_loops),
        r"flip in the model \(test_plain_models.py:\d+\) reads edge_index",
    ),
    "a mean over nodes": (
        lambda: Small(lambda m, x, e: m.conv(x, e) - m.conv(x, e).mean(dim=0)),
        r"mean in the model \(test_plain_models.py:\d+\) gives something else for some rows",
    ),
    "a softmax over nodes": (lambda: Small(lambda m, x, e: m.conv(x, e).softmax(dim=0)), "softmax .* couples rows"),
    "a cumulative sum": (lambda: Small(lambda m, x, e: m.conv(x.cumsum(0), e)), "cumsum .* couples rows"),
    "pooling": (lambda: Small(lambda m, x, e: pyg_nn.global_mean_pool(m.conv(x, e), None)), "couples rows"),
    "noise": (lambda: Small(lambda m, x, e: m.conv(x, e) + torch.randn_like(m.conv(x, e))), "randn_like"),
    "dropout that is always on": (
        lambda: Small(lambda m, x, e: F.dropout(m.conv(x, e))),
        r"dropout in the model \(test_plain_models.py:\d+\) drops units in evaluation mode, too",
    ),
    "a table with one row a node": (
        lambda: Small(lambda m, x, e: m.conv(x, e) + m.table.weight, table=nn.Embedding(24, CLASSES)),
        "add .* (cannot be evaluated|couples rows)",
    ),
    "features that are learned": (
        lambda: Small(lambda m, x, e: m.conv(m.table.weight, e), table=nn.Embedding(24, FEATURES)),
        "does not depend on x",
    ),
    "a parameter that is read as a number": (
        lambda: Small(lambda m, x, e: m.conv(x, e) * m._parameters["scale"].item()),
        "outputs of the layered model .* differ",
    ),
    "several outputs": (lambda: Small(lambda m, x, e: (m.conv(x, e), x)), "must return one tensor"),
    "an output of three dimensions": (
        lambda: Small(lambda m, x, e: m.conv(x, e).unsqueeze(1)),
        r"the model's output is \[nodes, 1, 3\]",
    ),
    "a value that is changed under another name": (lambda: Small(aliased), "outputs of the layered model .* differ"),
    "a gradient that is cut": (lambda: Small(no_gradient), "the gradient of .* differ"),
    "a cached convolution": (
        lambda: Small(lambda m, x, e: m.conv(x, e), GCNConv(FEATURES, CLASSES, cached=True)),
        "conv is a GCNConv with cached=True",
    ),
    "a convolution without bipartite input": (
        lambda: Small(lambda m, x, e: m.conv(x, e), OneTensor()),
        r"conv \(test_plain_models.py:\d+\): OneTensor cannot take a bipartite input",
    ),
    "message passing by hand": (
        lambda: Small(lambda m, x, e: m.conv(m.scatter(x, e), e), scatter=Scatter()),
        r"scatter \(test_plain_models.py:\d+\) reads edge_index",
    ),
    "an argument of a convolution": (
        lambda: Small(lambda m, x, e: m.conv(x, x, e), pyg_nn.GCN2Conv(FEATURES, 0.1)),
        "conv .* is given x_0=something computed",
    ),
    "no edges": (lambda: Small(lambda m, x, e: m.conv(x, None)), r"conv \(.*\) is not given edge_index"),
    "a hook on the normalisation": (
        lambda: _hooked(Small(lambda m, x, e: m.conv(x, e))),
        "hooks of its own",
    ),
    "batch norm in training mode": (
        lambda: Loop(norm=nn.BatchNorm1d),
        r"norms.0 is a BatchNorm1d in training mode.*model.eval\(\)",
    ),
    "a norm over the graph": (
        lambda: Loop(norm=pyg_nn.GraphNorm),
        "norms.0 is a GraphNorm, which couples the rows",
    ),
    "a model without convolutions": (lambda: pyg_nn.MLP([FEATURES, 4, CLASSES]), "must take x and edge_index"),
    "a model that calls none": (lambda: Small(lambda m, x, e: x * m.scale), "calls no PyTorch Geometric convolution"),
    "lazy widths": (lambda: GCNConv(-1, CLASSES), "lin.weight is lazily initialised"),
    "a layered model": (lambda: lv.GCN(FEATURES, 4, CLASSES, 2), "already is layered"),
}


def _hooked(model: Small) -> Small:
    model.conv.register_forward_hook(lambda module, given, result: result * 2)
    return model


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_layered_is_refused_by_name(name: str) -> None:
    make, message = REFUSED[name]
    with generators_kept():
        model = make().double()
    with pytest.raises(lv.InvalidInputError, match=message):
        lv.layered(model, graph_of(1))


@pytest.mark.parametrize("nodes", [1, 6])
def test_coupled_rows_are_found_where_all_nodes_are_alike(nodes: int) -> None:
    graph = graph_of(1, nodes, 12)
    alike = graph.replaced(x=torch.ones(nodes, FEATURES, dtype=torch.float64))
    with pytest.raises(lv.InvalidInputError, match=r"mean in .* couples rows"):
        lv.layered(built(lambda: Small(lambda m, x, e: m.conv(x - x.mean(dim=0), e))), alike)
    assert lv.layered(built(Loop), alike).num_layers == 3


def test_features_may_be_numbers_of_a_table() -> None:
    graph = graph_of(1)
    numbered = graph.replaced(x=(torch.arange(24) % 7).double()[:, None])
    model = built(lambda: Small(lambda m, x, e: m.conv(m.table(x[:, 0].long()), e), table=nn.Embedding(7, FEATURES)))
    assert_same(lv.layered(model, numbered), model, numbered, reference(model, numbered))


def test_arguments_that_no_layer_has_are_refused() -> None:
    class Pooled(Loop):
        def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor) -> Tensor:  # type: ignore[override]
            return super().forward(x, edge_index)

    with pytest.raises(lv.InvalidInputError, match="forward needs batch, a layered model reads x, edge_index"):
        lv.layered(built(Pooled), graph_of(1))
    with pytest.raises(lv.InvalidInputError, match="needs edge_attr, which the data do not have"):
        lv.layered(built(Featured), graph_of(1))


def test_weights_that_a_convolution_would_not_get_are_refused() -> None:
    with pytest.raises(lv.InvalidInputError, match=r"convs.0 .* is called without edge_weight"):
        lv.layered(built(Loop), graph_of(1, weights=True))
    assert lv.layered(built(lambda: Loop(SAGEConv)), graph_of(1, weights=True)).num_layers == 3  # it reads none

    class Attributed(Loop):
        def forward(self, x: Tensor, edge_index: Tensor, edge_attr: Tensor) -> Tensor:  # type: ignore[override]
            return self.convs[0](x, edge_index, edge_attr)

    with pytest.raises(lv.InvalidInputError, match="is given edge_attr for edge_weight"):
        lv.layered(built(Attributed), graph_of(1, attributes=1))


def test_a_convolution_that_gets_features_once_and_none_once_is_refused() -> None:
    class Uneven(Featured):
        def forward(self, x: Tensor, edge_index: Tensor, edge_attr: Tensor) -> Tensor:  # type: ignore[override]
            x = self.two(self.one(x, edge_index, edge_attr), edge_index)
            return self.three(self.two(x.repeat(1, 2)[:, :8], edge_index, edge_attr), edge_index)

    with pytest.raises(lv.InvalidInputError, match=r"two .* is called with edge_attr once and without it once"):
        lv.layered(built(Uneven), graph_of(1, attributes=2))


def test_nothing_that_is_no_module_is_taken() -> None:
    with pytest.raises(lv.InvalidInputError, match=r"is no torch\.nn\.Module"):
        lv.layered(len, graph_of(1))  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------- random programs


class Program(nn.Module):
    """A random program: every step makes one more value from values before, by a convolution or between rows.

    Args:
        steps: (kind, first operand, second operand), operands counted back from the latest value.
    """

    KINDS = ("gcn", "sage", "gat", "linear", "norm", "tanh", "relu_", "add", "mul", "cat", "max", "dropout", "tied")

    def __init__(self, steps: list[tuple[str, int, int]]) -> None:
        super().__init__()
        self.steps = steps
        makers: dict[str, Callable[[], nn.Module]] = {
            "gcn": lambda: GCNConv(WIDTH, WIDTH),
            "sage": lambda: SAGEConv(WIDTH, WIDTH),
            "gat": lambda: GATConv(WIDTH, WIDTH),
            "linear": lambda: nn.Linear(WIDTH, WIDTH),
            "norm": lambda: nn.LayerNorm(WIDTH),
            "cat": lambda: nn.Linear(2 * WIDTH, WIDTH),
            "dropout": lambda: nn.Dropout(0.5),
        }
        self.inward, self.outward = nn.Linear(FEATURES, WIDTH), nn.Linear(WIDTH, CLASSES)
        self.shared = GCNConv(WIDTH, WIDTH)
        self.parts = nn.ModuleDict(
            {str(place): makers[kind]() for place, (kind, _, _) in enumerate(steps) if kind in makers}
        )

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        values = [self.inward(x)]
        for place, (kind, first, second) in enumerate(self.steps):
            one, two = values[-1 - first % len(values)], values[-1 - second % len(values)]
            values.append(self.made(place, kind, one, two, edge_index))
        return self.outward(self.shared(values[-1], edge_index))

    def made(self, place: int, kind: str, one: Tensor, two: Tensor, edge_index: Tensor) -> Tensor:
        if kind in ("gcn", "sage", "gat"):
            return self.parts[str(place)](one, edge_index)
        if kind == "tied":
            return self.shared(one, edge_index)
        if kind in ("add", "mul", "max"):
            return {"add": one + two, "mul": one * two.sigmoid(), "max": torch.maximum(one, two.tanh())}[kind]
        if kind == "cat":
            return self.parts[str(place)](torch.cat([one, two], dim=-1))
        if kind in ("tanh", "relu_"):
            return one.tanh() if kind == "tanh" else F.relu_(one * 1.0)
        return self.parts[str(place)](one)


WIDTH = 4

programs = st.lists(st.tuples(st.sampled_from(Program.KINDS), st.integers(0, 3), st.integers(0, 3)), max_size=9)


@pytest.mark.slow
@settings(max_examples=40)
@given(steps=programs, seed=st.integers(0, 99))
def test_random_programs_are_the_same_function(steps: list[tuple[str, int, int]], seed: int) -> None:
    model = built(lambda: Program(steps), seed)
    made = lv.layered(model, graph_of(seed, 12, 30))
    graph = graph_of(seed + 1, 12, 30)
    assert_same(made, model, graph, reference(model, graph))
    design = lv.Clusters(lv.Partition.random(12, 3), per_batch=1)
    problem = lv.Problem(graph, made)
    verdict = lv.check_claim("theorem-1/unbiased", problem, design, lv.BackwardSGD())
    assert verdict.outcome is lv.Outcome.EXACT, verdict.summary
    if made.aggregate_linear:
        verdict = lv.check_claim("e1/equals-backward-sgd", problem, design, lv.LMC())
        assert verdict.outcome is lv.Outcome.EXACT, verdict.summary
