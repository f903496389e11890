"""A plain model and its layered form are one function of the same parameters; what cannot be cut is refused by name.

Outputs and gradients are compared here once more, with code of its own, on graphs that `layered` has not seen.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch_geometric import nn as pyg_nn
from torch_geometric.data import Data
from torch_geometric.nn import GATConv, GATv2Conv, GCNConv, GraphConv, JumpingKnowledge, MessagePassing, SAGEConv

import lmc_verify as lv
from lmc_verify.models.layered import ConvLayer
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
        self.convs = nn.ModuleList(conv(a, b) for a, b in zip(widths, widths[1:], strict=False))
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

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        by_head = self.convs[0](x, edge_index).view(-1, 2, 4)
        left, right = by_head.chunk(2, dim=-1)
        x = self.convs[1](torch.cat([left, right], dim=-1).flatten(1).tanh(), edge_index).view(x.size(0), 2, 4)
        return self.convs[2]((x + by_head.softmax(dim=1)).flatten(1), edge_index)


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
    "loop, batch norm": (lambda: Loop(norm=nn.BatchNorm1d, residual=True), LINEAR, 3),
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


@pytest.mark.parametrize("name", MODELS)
def test_outputs_and_gradients_are_those_of_the_plain_model(name: str) -> None:
    make, linear, depth = MODELS[name]
    model = built(make)
    made = lv.layered(model, graph_of(1))
    graph = graph_of(2)
    assert (made.aggregate_linear, made.num_layers) == (linear, depth)
    assert [each for each, _ in made.named_parameters()] == [each for each, _ in model.named_parameters()]
    assert_same(made, model, graph, reference(model, graph))


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
