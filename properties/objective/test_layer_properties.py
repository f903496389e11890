"""A layer that computes something from its block, or is not what it says, is refused when a problem is made of it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from common.helpers import path_graph, seeded
from torch import Tensor, nn
from torch_geometric import nn as pyg
from torch_geometric.nn import MessagePassing
from torch_geometric.utils import degree

from lmc_verify import (
    GAT,
    GCN,
    PNA,
    Conv,
    ConvLayer,
    Graph,
    InvalidInputError,
    Layer,
    LayeredModel,
    Problem,
    PyGConv,
    exact_pass,
    spmm,
)
from lmc_verify.graphs.operators import Block
from lmc_verify.models import GCNConv
from lmc_verify.objective import layer_properties

DEGREES = r"layer 1 \(\w+\) computes constants such as degrees or means from the messages inside of a block"
OTHER_ROWS = r"layer 1 \(\w+\) gives other rows on a block with all of their in-neighbours"
NOT_LINEAR = r"layer 1 \(\w+\) is declared aggregate-linear, and its Jacobian in a source changes by"


def make(conv: nn.Module, width: int = 3, **settings: Any) -> Problem:
    graph = path_graph(5, x=torch.linspace(-1, 1, 5 * width, dtype=torch.float64).reshape(5, width))
    return Problem(graph, LayeredModel([ConvLayer(PyGConv(conv, **settings))]))


class Summing(MessagePassing):
    """A linear sum, with something around it that subclasses compute from the edges that they are given."""

    def __init__(self) -> None:
        super().__init__(aggr="add")
        self.lin = nn.Linear(3, 3)

    def forward(self, x: tuple[Tensor, Tensor], edge_index: Tensor) -> Tensor:
        return self.propagate(edge_index, x=(self.lin(x[0]), x[1]), size=(x[0].size(0), x[1].size(0)))

    def message(self, x_j: Tensor) -> Tensor:
        return x_j


class OverSources(Summing):
    def forward(self, x: tuple[Tensor, Tensor], edge_index: Tensor) -> Tensor:
        out = degree(edge_index[0], x[0].size(0), dtype=x[0].dtype).clamp(min=1)
        return super().forward((x[0] / out[:, None], x[1]), edge_index)


class OverDestinations(Summing):
    def forward(self, x: tuple[Tensor, Tensor], edge_index: Tensor) -> Tensor:
        into = degree(edge_index[1], x[1].size(0), dtype=x[0].dtype).clamp(min=1)
        return super().forward(x, edge_index) / into[:, None]


class Centred(Summing):
    def forward(self, x: tuple[Tensor, Tensor], edge_index: Tensor) -> Tensor:
        rows = super().forward(x, edge_index)
        return rows - rows.mean(0)


class KeepsItsFirstEdges(Summing):
    kept: Tensor | None = None

    def forward(self, x: tuple[Tensor, Tensor], edge_index: Tensor) -> Tensor:
        self.kept = edge_index if self.kept is None else self.kept
        return super().forward(x, self.kept)


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "MFConv": (lambda: pyg.MFConv(3, 3), DEGREES),
    "WLConvContinuous": (pyg.WLConvContinuous, DEGREES),
    "a mean by hand": (OverDestinations, DEGREES),
    "degrees of the sources": (OverSources, OTHER_ROWS),
    "centred rows": (Centred, OTHER_ROWS),
    "a cache of edges": (KeepsItsFirstEdges, OTHER_ROWS),
}


@pytest.mark.parametrize("declared", [False, True])
@pytest.mark.parametrize("name", REFUSED)
def test_what_is_computed_from_the_block_is_found(name: str, declared: bool) -> None:
    build, message = REFUSED[name]
    with pytest.raises(InvalidInputError, match=message):
        make(seeded(build), aggregate_linear=declared)


FALSELY_DECLARED: dict[str, Callable[[], nn.Module]] = {
    "SAGEConv, normalised": lambda: pyg.SAGEConv(3, 3, normalize=True),
    "GATConv": lambda: pyg.GATConv(3, 3),
    "GATv2Conv": lambda: pyg.GATv2Conv(3, 3),
    "TransformerConv": lambda: pyg.TransformerConv(3, 3),
    "GINConv with an activation": lambda: pyg.GINConv(nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3))),
}


@pytest.mark.parametrize("name", FALSELY_DECLARED)
def test_aggregate_linear_is_measured_and_not_believed(name: str) -> None:
    conv = seeded(FALSELY_DECLARED[name])
    with pytest.raises(InvalidInputError, match=NOT_LINEAR + r" [\d.]+ .*leave aggregate_linear out"):
        make(conv, aggregate_linear=True)
    assert not make(seeded(FALSELY_DECLARED[name])).model.aggregate_linear


def test_a_layer_at_zeros_is_measured_nevertheless() -> None:
    conv = seeded(lambda: pyg.SAGEConv(3, 3, normalize=True))
    for parameter in conv.parameters():
        nn.init.zeros_(parameter)
    with pytest.raises(InvalidInputError, match=NOT_LINEAR):
        make(conv, aggregate_linear=True)
    assert all(bool((parameter == 0).all()) for parameter in conv.parameters())


TRULY_LINEAR: dict[str, Callable[[], nn.Module]] = {
    "SAGEConv": lambda: pyg.SAGEConv(3, 3),
    "SAGEConv, projected": lambda: pyg.SAGEConv(3, 3, project=True),
    "GraphConv": lambda: pyg.GraphConv(3, 3),
    "GraphConv, mean": lambda: pyg.GraphConv(3, 3, aggr="mean"),
    "GINConv": lambda: pyg.GINConv(nn.Linear(3, 3)),
    "GCNConv": lambda: pyg.GCNConv(3, 3),
    "ResGatedGraphConv": lambda: pyg.ResGatedGraphConv(3, 3),
    "FiLMConv": lambda: pyg.FiLMConv(3, 3),
    "LEConv": lambda: pyg.LEConv(3, 3),
    "EdgeConv, sum": lambda: pyg.EdgeConv(nn.Sequential(nn.Linear(6, 3), nn.ReLU()), aggr="add"),
    "SimpleConv, mean": lambda: pyg.SimpleConv(aggr="mean"),
    # Its softmax is over heads, at each edge: a sum of functions of single sources.
    "FeaStConv": lambda: pyg.FeaStConv(3, 3, heads=2),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", TRULY_LINEAR)
def test_linear_ones_are_taken(name: str, dtype: torch.dtype) -> None:
    conv = seeded(TRULY_LINEAR[name]).to(dtype)
    graph = path_graph(5).to(dtype=dtype)
    assert Problem(graph, LayeredModel([ConvLayer(PyGConv(conv, aggregate_linear=True))])).model.aggregate_linear


@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize("aggr", ["max", "min", "std", "var", "softmax", "median", "mul", ["mean", "max"]], ids=str)
def test_aggregations_that_depend_on_values_are_taken_for_what_they_are(aggr: Any, width: int) -> None:
    """They depend on the other messages' values, so nothing is said about degrees."""
    for seed in range(4):
        problem = make(seeded(lambda: pyg.SAGEConv(width, 3, aggr=aggr), seed), width)
        assert not problem.model.aggregate_linear


# --- layers that are no convolutions of PyTorch Geometric ---


class LocalMean(Layer):
    """A mean over what is there, declared linear: LMC would take the blame."""

    operator, aggregate_linear = "sum", True

    def __init__(self, whole: bool) -> None:
        super().__init__()
        self.lin, self.whole = seeded(lambda: nn.Linear(3, 3)), whole

    def forward(self, source: Tensor, target: Tensor, x0_target: Tensor, block: Block) -> Tensor:
        count = block.in_degree if self.whole else block.csr.rowptr.diff()
        rows: Tensor = spmm(block, self.lin(source)) / count.clamp(min=1).to(source.dtype)[:, None]
        return rows


def test_a_layer_of_one_s_own_is_measured_as_well() -> None:
    assert Problem(path_graph(5), LayeredModel([LocalMean(whole=True).double()])).model.aggregate_linear
    with pytest.raises(InvalidInputError, match=r"layer 1 \(LocalMean\) computes constants"):
        Problem(path_graph(5), LayeredModel([LocalMean(whole=False).double()]))


class Unruly(Conv):
    operator, aggregate_linear = "gcn", False

    def forward(self, source: Tensor, target: Tensor, block: Block) -> Tensor:
        if block.shape[0] not in (1, 11):
            raise IndexError("only whole graphs")
        return spmm(block, source)


@pytest.mark.parametrize("declared", [True, False])
def test_a_part_that_changes_the_width_is_measured_with_its_convolution(declared: bool) -> None:
    graph = path_graph(6)
    width = graph.num_features
    conv = seeded(lambda: pyg.GraphConv(width + 2, 3) if declared else pyg.GATConv(width + 2, 3))
    before = seeded(lambda: nn.Sequential(nn.Linear(width, width + 2), nn.Tanh()))
    layer = ConvLayer(PyGConv(conv, aggregate_linear=declared), before=before)
    assert Problem(graph, LayeredModel([layer])).widths == (width, 3)
    if not declared:
        layer.aggregate_linear = True
        with pytest.raises(InvalidInputError, match=r"layer 1 \(GATConv\) is declared aggregate-linear"):
            Problem(graph, LayeredModel([layer]))


def test_a_layer_that_cannot_be_cut_is_named() -> None:
    with pytest.raises(
        InvalidInputError, match=r"layer 1 \(Unruly\) cannot be evaluated on a block .*only whole graphs"
    ):
        Problem(path_graph(5), LayeredModel([ConvLayer(Unruly())]))


def test_parts_that_couple_rows_are_found_by_what_they_do() -> None:
    graph, softmax = path_graph(5), nn.Softmax(dim=0)
    layer = GCN(3, 4, 3, 1, dtype=torch.float64).layers[0]
    for model, words in (
        (LayeredModel([layer], encoder=softmax), r"the encoder \(Softmax\) gives other rows for two rows"),
        (LayeredModel([layer], head=softmax), r"the head \(Softmax\) gives other rows for two rows"),
        (LayeredModel([ConvLayer(layer.conv, before=softmax)]), OTHER_ROWS),
        (LayeredModel([ConvLayer(layer.conv, after=softmax)]), OTHER_ROWS),
    ):
        with pytest.raises(InvalidInputError, match=words):
            Problem(graph, model)
        Problem(graph, LayeredModel([layer], encoder=nn.Softmax(dim=1), head=nn.GELU()))


def uncoupled(rows: Tensor) -> Tensor:
    return 2 * rows


def centred(rows: Tensor) -> Tensor:
    return rows - rows.mean(0, keepdim=True)


def hook_on(part: Callable[[LayeredModel], nn.Module]) -> Callable[[LayeredModel, Callable[[Tensor], Tensor]], object]:
    return lambda model, change: part(model).register_forward_hook(lambda module, inputs, rows: change(rows))


def hook_on_aggregate(model: LayeredModel, change: Callable[[Tensor], Tensor]) -> None:
    conv: Any = model.layers[0].conv.conv
    conv.register_aggregate_forward_hook(lambda module, inputs, rows: change(rows))


def replaced_forward(model: LayeredModel, change: Callable[[Tensor], Tensor]) -> None:
    assert model.head is not None
    forward = model.head.forward
    model.head.forward = lambda rows: change(forward(rows))  # type: ignore[method-assign]  # that is the point


ALTERED: dict[str, tuple[Callable[..., LayeredModel], Callable[..., object], str]] = {
    "layer": (GCN, hook_on(lambda model: model.layers[0]), OTHER_ROWS),
    "convolution": (GCN, hook_on(lambda model: model.layers[0].conv), OTHER_ROWS),
    "encoder": (GCN, hook_on(lambda model: model.encoder), r"the encoder \(\w+\) gives other rows"),
    "head": (GCN, hook_on(lambda model: model.head), r"the head \(\w+\) gives other rows"),
    "aggregation of PyTorch Geometric": (GAT, hook_on_aggregate, OTHER_ROWS),
    "forward of one instance": (GCN, replaced_forward, r"the head \(\w+\) gives other rows"),
}


@pytest.mark.parametrize("where", ALTERED)
def test_known_parts_are_measured_where_a_hook_or_a_new_method_changes_them(where: str) -> None:
    build, alter, message = ALTERED[where]
    for change in (uncoupled, centred):
        model = build(3, 4, 3, 2, dtype=torch.float64)
        encoder, head = (seeded(lambda n=n: nn.Linear(n, n)) for n in (3, 3))
        model = LayeredModel([*model.layers], encoder=encoder, head=head)  # type: ignore[misc]  # they are layers
        alter(model, change)
        if change is uncoupled:
            Problem(path_graph(5), model)
        else:
            with pytest.raises(InvalidInputError, match=message):
                Problem(path_graph(5), model)


def test_a_hook_may_take_back_what_a_layer_is_declared_to_be() -> None:
    model = GCN(3, 4, 3, 2, dtype=torch.float64)
    model.layers[0].register_forward_hook(lambda module, inputs, rows: rows.tanh())
    with pytest.raises(InvalidInputError, match=NOT_LINEAR):
        Problem(path_graph(5), model)


class Keeping(Summing):
    """It keeps something among its attributes."""

    def __init__(self, keep: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.kept = keep(self.lin.weight)


def test_a_layer_that_keeps_a_computed_tensor_is_measured_and_one_with_a_lock_is_named() -> None:
    make(seeded(lambda: Keeping(torch.exp)))
    with pytest.raises(InvalidInputError, match=r"layer 1 \(Keeping\) cannot be copied.*TypeError.*locks"):
        make(seeded(lambda: Keeping(lambda weight: threading.Lock())))


def test_padding_to_the_largest_degree_is_found() -> None:
    """Rows of a block that holds the row of the largest degree are those of the whole graph; others are not."""
    with pytest.raises(InvalidInputError, match=OTHER_ROWS + r".*aggr='lstm'"):
        make(seeded(lambda: pyg.SAGEConv(3, 3, aggr="lstm")))


# --- what the measurement leaves alone ---


def twice_in_a_mlp() -> nn.Module:
    linear = nn.Linear(3, 3)
    return pyg.GINConv(nn.Sequential(linear, nn.ReLU(), linear))


def key_is_query() -> nn.Module:
    conv = pyg.TransformerConv(3, 3)
    conv.lin_query = conv.lin_key
    return conv


def tied() -> nn.Module:
    conv = pyg.SAGEConv(3, 3)
    conv.lin_r.weight = conv.lin_l.weight
    return conv


TWO_NAMES: dict[str, Callable[[], nn.Module]] = {
    "GATv2Conv with shared weights": lambda: pyg.GATv2Conv(3, 3, share_weights=True),
    "one module twice in a network": twice_in_a_mlp,
    "key and query": key_is_query,
    "one parameter": tied,
}


@pytest.mark.parametrize("what", TWO_NAMES)
def test_what_has_two_names_inside_a_layer_stays_as_it_is(what: str) -> None:
    model = LayeredModel([ConvLayer(PyGConv(seeded(TWO_NAMES[what])))])
    before = dict(model.named_parameters(remove_duplicate=False))
    values = {name: (value._version, value.detach().clone()) for name, value in before.items()}
    problem = Problem(path_graph(5), model)
    after = dict(model.named_parameters(remove_duplicate=False))
    assert list(after) == list(before)
    assert len({id(value) for value in after.values()}) < len(after)
    for name, value in after.items():
        assert type(value) is nn.Parameter
        assert value is before[name]
        assert value._version == values[name][0]
        assert torch.equal(value, values[name][1])
    exact = exact_pass(problem)
    wanted = torch.autograd.grad(problem.node_losses(model(problem.graph)).sum(), [*model.parameters()])
    assert all(
        torch.allclose(got, want, rtol=1e-10, atol=1e-14)
        for got, want in zip(exact.gradient.values(), wanted, strict=True)
    )


def test_a_copy_that_is_moved_is_what_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """One value behind two names is moved once, and the two names stay one."""
    seen: list[Layer] = []
    monkeypatch.setattr(layer_properties._Trial, "run", lambda self: seen.append(self.layer))
    conv = seeded(key_is_query)
    make(conv)
    (moved,) = seen
    copied: Any = moved.conv.conv  # type: ignore[union-attr]  # a ConvLayer of a PyGConv
    assert copied is not conv
    assert copied.lin_query is copied.lin_key
    for got, given in zip(copied.parameters(), conv.parameters(), strict=True):
        assert got is not given
        assert 0 < float((got - given).detach().norm()) < float(given.detach().norm()) + 1


def test_nothing_is_changed_and_nothing_drawn() -> None:
    conv = seeded(lambda: pyg.GATv2Conv(3, 3))
    model = LayeredModel([ConvLayer(PyGConv(conv))]).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    Problem(path_graph(5), model)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_it_is_measured_whatever_the_gradient_mode_is(mode: Callable[[], Any]) -> None:
    conv = seeded(lambda: pyg.SAGEConv(3, 3, normalize=True))
    graph = path_graph(5)
    with mode(), pytest.raises(InvalidInputError, match=NOT_LINEAR):
        Problem(graph, LayeredModel([ConvLayer(PyGConv(conv, aggregate_linear=True))]))


def test_copies_and_the_package_s_own_models_are_not_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    trials: list[str] = []
    run = layer_properties._Trial.run
    monkeypatch.setattr(layer_properties._Trial, "run", lambda self: (trials.append(self.name), run(self)))
    graph = path_graph(5)
    for model in (GCN, GAT, PNA):
        Problem(graph, model(3, 4, 3, 2, dtype=torch.float64))
    assert not trials
    conv = PyGConv(seeded(lambda: pyg.GraphConv(3, 3)), aggregate_linear=True)
    problem = Problem(graph, LayeredModel([ConvLayer(conv), ConvLayer(conv, before=nn.Tanh())]))
    assert trials == ["layer 1 (GraphConv)", "layer 2 (GraphConv)"]
    problem.copy(), problem.double(), problem.with_graph(path_graph(6))
    assert len(trials) == 2
    told = PyGConv(seeded(lambda: pyg.GATConv(3, 3)), aggregate_linear=True)
    with pytest.raises(InvalidInputError, match=NOT_LINEAR):  # known for attention, not for what it is told to be
        Problem(graph, LayeredModel([ConvLayer(told)]))


def test_weights_and_kinds_of_graphs_are_those_of_the_problem() -> None:
    """A layer that fails with weights alone is found where the graph has weights."""

    class Weighted(Summing):
        def forward(self, x: tuple[Tensor, Tensor], edge_index: Tensor, edge_weight: Tensor) -> Tensor:
            rows = super().forward(x, edge_index)
            total = torch.zeros_like(rows[:, 0]).index_add_(0, edge_index[1], edge_weight - 1)
            return rows * (1 + total[:, None])

    def problem(graph: Graph) -> Problem:
        return Problem(graph, LayeredModel([ConvLayer(PyGConv(seeded(Weighted)))]))

    problem(path_graph(5))
    with pytest.raises(InvalidInputError, match=DEGREES):
        problem(path_graph(5, edge_weight=torch.full((8,), 2.0, dtype=torch.float64)))


def test_the_small_graph_has_what_the_measurement_needs() -> None:
    """A row with one kept and an even number of other sources; batch rows whose sources send elsewhere, too."""
    edges = torch.tensor(layer_properties._EDGES).T
    sources = edges[0, edges[1] == layer_properties._ROW].tolist()
    assert sorted(sources) == [layer_properties._KEPT, *layer_properties._OTHERS]
    assert len(layer_properties._OTHERS) % 2 == 0
    batch = torch.tensor(layer_properties._BATCH)
    into = edges[0, torch.isin(edges[1], batch)].unique()
    outside = edges[:, torch.isin(edges[0], into) & ~torch.isin(edges[1], batch)]
    assert outside.shape[1] > 3
    assert int(edges.max()) < layer_properties._NODES - 1, "the last node is isolated"


class OfLocal(Conv):
    """A sum of messages that is divided by the number of those that are there, or bent where it is large."""

    operator, aggregate_linear = "sum", False

    def __init__(self, *, counts: bool) -> None:
        super().__init__()
        self.counts = counts

    def forward(self, source: Tensor, target: Tensor, block: Block) -> Tensor:
        total = spmm(block, source)
        if self.counts:
            return total / block.csr.rowptr.diff().clamp(min=1)[:, None]
        return total + (total - 8).clamp(min=0).square()


@pytest.mark.parametrize("counts", [True, False], ids=["messages are missing", "values change"])
def test_one_kind_of_dependence_on_the_aggregate_is_enough(counts: bool) -> None:
    graph = path_graph(5)
    assert layer_properties.is_aggregate_linear("a GCN", GCNConv(3, 2, dtype=torch.float64), 3, graph)
    assert not layer_properties.is_aggregate_linear("a local aggregate", OfLocal(counts=counts), 3, graph)
