"""GIN, GCNII, APPNP and PNA are the models that their papers define, by PyTorch Geometric's own modules.

Values and every gradient agree on the whole graph; constants of an aggregation come from the whole graph everywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from common.crossed import crossed, slow_but
from common.helpers import assert_close, assert_gradients, path_graph, seeded
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch_geometric import nn as pyg

from lmc_verify import APPNP, GCNII, GIN, PNA, ConvLayer, Graph, InvalidInputError, LayeredModel, PyGConv
from lmc_verify.cases.case import build_case
from lmc_verify.cases.settings import CaseSettings
from lmc_verify.claims import CLAIMS, Outcome
from lmc_verify.graphs.operators import LocalSet
from lmc_verify.models import GINConv, PNAConv, check_options, graph_settings
from lmc_verify.testing import graphs, seeds

RTOL = 1e-11


def cotangent(value: Tensor) -> Tensor:
    return torch.linspace(-1, 1, value.numel(), dtype=value.dtype).reshape(value.shape)


def assert_same_function(call: str, model: LayeredModel, graph: Graph, want: Tensor, names: dict[str, Tensor]) -> None:
    """Values agree, and so do gradients; `names` gives PyG's parameter by our name."""
    out = model(graph)
    assert_close(call, out, want, rtol=RTOL)
    mine = dict(model.named_parameters())
    assert set(names) == set(mine)

    def gradient(value: Tensor, parameters: dict[str, Tensor]) -> dict[str, Tensor]:
        total = (value * cotangent(value)).sum()
        grads = torch.autograd.grad(total, list(parameters.values()), allow_unused=True, materialize_grads=True)
        return dict(zip(parameters, grads, strict=True))

    assert_gradients(f"gradient of {call}", gradient(out, mine), gradient(want, {name: names[name] for name in mine}))


def linear_of(source: nn.Linear) -> nn.Linear:
    """A plain linear map with the same numbers."""
    copied = nn.utils.skip_init(nn.Linear, source.in_features, source.out_features, dtype=source.weight.dtype)
    copied.load_state_dict(source.state_dict())
    return copied


def named(prefix: str, module: nn.Module) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": parameter for name, parameter in module.named_parameters()}


# --- GIN ------------------------------------------------------------------------------------------


@given(graph=graphs(), eps=st.sampled_from([0.0, 0.3]), train=st.booleans(), hidden=st.integers(1, 4), seed=seeds())
def test_gin_conv_is_pyg_s(graph: Graph, eps: float, train: bool, hidden: int, seed: int) -> None:
    def network() -> nn.Sequential:
        return nn.Sequential(nn.Linear(graph.num_features, hidden), nn.ReLU(), nn.Linear(hidden, 2))

    plain = seeded(lambda: pyg.GINConv(network(), eps=eps, train_eps=train), seed % 7)
    native = GINConv(seeded(network), eps=eps, train_eps=train)
    native.load_state_dict(plain.state_dict())  # the keys are PyG's
    model = LayeredModel([ConvLayer(native)])
    assert_same_function("GINConv", model, graph, plain(graph.x, graph.edge_index), named("layers.0.conv", plain))


@pytest.mark.slow
@given(
    graph=graphs(),
    hidden=st.integers(1, 4),
    layers=st.integers(1, 3),
    cut=st.sampled_from(["pre", "post"]),
    seed=seeds(),
)
def test_gin_is_a_stack_of_pyg_s(graph: Graph, hidden: int, layers: int, cut: str, seed: int) -> None:
    model = GIN(graph.num_features, hidden, 3, layers, activation_cut=cut, train_eps=True, seed=seed, dtype=graph.dtype)
    h, names = graph.x, {}
    for index in range(layers):
        conv = model.layers[index].conv
        if cut == "pre":  # the second map belongs to whoever reads the layer
            reader = f"layers.{index + 1}.before.1" if index < layers - 1 else "head.1"
            parts = [conv.nn[0], model.get_submodule(reader)]
            prefixes = [f"layers.{index}.conv.nn.0", reader]
        else:
            parts, prefixes = [conv.nn[0], conv.nn[2]], [f"layers.{index}.conv.nn.{part}" for part in (0, 2)]
        inner, outer = (linear_of(part) for part in parts)
        plain = seeded(
            lambda inner=inner, outer=outer: pyg.GINConv(nn.Sequential(inner, nn.ReLU(), outer), train_eps=True)
        )
        for part, source in ((inner, parts[0]), (outer, parts[1])):
            part.load_state_dict(source.state_dict())  # building a GINConv initialises its network anew
        plain.eps.data.copy_(conv.eps)
        names |= named(prefixes[0], inner) | named(prefixes[1], outer) | {f"layers.{index}.conv.eps": plain.eps}
        h = plain(h if index == 0 else h.relu(), graph.edge_index)
    assert_same_function(f"GIN of {layers} layers, {cut} cut", model, graph, h, names)


def test_gin_sums_do_not_read_weights() -> None:
    graph = path_graph(4)
    weighted = graph.replaced(edge_weight=torch.linspace(0.5, 3, graph.num_edges, dtype=graph.dtype))
    model = GIN(3, 4, 3, 2, dtype=torch.float64)
    assert_close("GIN with edge weights", model(weighted), model(graph), rtol=1e-14)


# --- GCNII and APPNP --------------------------------------------------------------------------------


@given(
    graph=graphs(),
    hidden=st.integers(1, 4),
    layers=st.integers(1, 4),
    cut=st.sampled_from(["pre", "post"]),
    alpha=st.sampled_from([0.0, 0.1, 0.6]),
    theta=st.sampled_from([0.5, 1.5]),
    shared=st.booleans(),
    seed=seeds(),
)
def test_gcnii_is_a_stack_of_pyg_s(
    graph: Graph, hidden: int, layers: int, cut: str, alpha: float, theta: float, shared: bool, seed: int
) -> None:
    settings: dict[str, Any] = {"alpha": alpha, "theta": theta, "shared_weights": shared}
    model = GCNII(graph.num_features, hidden, 3, layers, activation_cut=cut, seed=seed, dtype=graph.dtype, **settings)
    first, last = linear_of(model.encoder[0]), linear_of(model.head[1])
    names = named("encoder.0", first) | named("head.1", last)
    h = x0 = first(graph.x).relu()
    for index in range(layers):
        conv = seeded(lambda index=index: pyg.GCN2Conv(hidden, layer=index + 1, **settings))
        conv.load_state_dict(model.layers[index].conv.state_dict())  # the keys are PyG's
        names |= named(f"layers.{index}.conv", conv)
        h = conv(h, x0, graph.edge_index, graph.edge_weight).relu()
    assert_same_function(f"GCNII of {layers} layers, {settings}", model, graph, last(h), names)


@given(graph=graphs(), hidden=st.integers(1, 4), layers=st.integers(1, 4), alpha=st.floats(0, 1), seed=seeds())
def test_appnp_is_pyg_s(graph: Graph, hidden: int, layers: int, alpha: float, seed: int) -> None:
    model = APPNP(graph.num_features, hidden, 3, layers, alpha=alpha, seed=seed, dtype=graph.dtype)
    first, second = linear_of(model.encoder[0]), linear_of(model.encoder[2])
    predicted = second(first(graph.x).relu())
    want = pyg.APPNP(K=layers, alpha=alpha)(predicted, graph.edge_index, graph.edge_weight)
    names = named("encoder.0", first) | named("encoder.2", second)
    assert_same_function(f"APPNP of {layers} steps, alpha {alpha}", model, graph, want, names)


# --- PNA ------------------------------------------------------------------------------------------

ALL_SCALERS = ["identity", "amplification", "attenuation", "linear", "inverse_linear"]
ALL_AGGREGATORS = ["sum", "mean", "min", "max", "var", "std"]


def histogram(graph: Graph) -> Tensor:
    return torch.tensor(graph_settings("pna", graph)["degrees"])


@pytest.mark.slow
@given(graph=graphs(), hidden=st.integers(1, 3), layers=st.integers(1, 2), seed=seeds())
def test_pna_is_a_stack_of_pyg_s(graph: Graph, hidden: int, layers: int, seed: int) -> None:
    if graph.num_edges == 0:
        return  # PyG divides by the average degree, which is zero
    model = PNA(graph.num_features, hidden, 3, layers, seed=seed, dtype=graph.dtype, **graph_settings("pna", graph))
    h, names = graph.x, {}
    for index in range(layers):
        mine = model.layers[index].conv.conv
        plain = seeded(
            lambda mine=mine: pyg.PNAConv(
                mine.in_channels, mine.out_channels, list(PNAConv.AGGREGATORS), list(PNAConv.SCALERS), histogram(graph)
            )
        )
        averages = plain.aggr_module.avg_deg_lin.clone(), plain.aggr_module.avg_deg_log.clone()
        plain.load_state_dict(mine.state_dict())  # the keys are PyG's, buffers included
        for before, after in zip(averages, (plain.aggr_module.avg_deg_lin, plain.aggr_module.avg_deg_log), strict=True):
            assert_close("average degree, which PyG keeps in float32", after, before, rtol=1e-6)
        names |= named(f"layers.{index}.conv.conv", plain)
        h = plain(h if index == 0 else h.relu(), graph.edge_index)
    assert_same_function(f"PNA of {layers} layers", model, graph, h, names)


def pna_conv(graph: Graph, width: int, towers: int, seed: int) -> PyGConv:
    settings: dict[str, Any] = {"deg": histogram(graph), "towers": towers, "pre_layers": 2}
    conv = seeded(
        lambda: PNAConv(graph.num_features, width * towers, ALL_AGGREGATORS, ALL_SCALERS, **settings), seed % 5
    )
    return PyGConv(conv)


@given(graph=graphs(), towers=st.integers(1, 2), seed=seeds(), data=st.data())
def test_pna_reads_the_whole_graph_s_degrees(graph: Graph, towers: int, seed: int, data: st.DataObject) -> None:
    # By the definition: sums over the local messages, divided and scaled by degrees that are not local.
    conv = pna_conv(graph, 2, towers, seed)
    row = data.draw(st.integers(0, graph.num_nodes - 1))
    local = sorted(data.draw(st.sets(st.integers(0, graph.num_nodes - 1), min_size=1)))
    block = graph.block("sum", torch.tensor([row]), LocalSet(torch.tensor(local), 1))
    got = conv(graph.x[local], graph.x[[row]], block)

    inner = conv.conv
    degrees = torch.bincount(graph.edge_index[1], minlength=graph.num_nodes).double()
    mean_linear = float(degrees.mean()) or 1.0
    mean_log = float((degrees + 1).log().mean()) or 1.0
    degree = float(degrees[row])
    least = max(degree, 1.0)
    sources = [j for j, i in graph.edge_index.T.tolist() if i == row and j in local]
    outs = []
    for tower in range(towers):
        pairs = [torch.cat([graph.x[row], graph.x[j]]) for j in sources]
        none = torch.zeros(1, graph.num_features, dtype=graph.dtype)
        messages = torch.stack([inner.pre_nns[tower](pair) for pair in pairs]) if pairs else none
        total, squares = messages.sum(0), messages.square().sum(0)
        variance = squares / least - (total / least).square()
        deviation = variance.clamp(min=1e-5).sqrt()
        deviation = torch.where(deviation <= 1e-5**0.5, 0, deviation)
        parts = [total, total / least, messages.min(0).values, messages.max(0).values, variance, deviation]
        log, log_least = torch.tensor(degree + 1).double().log(), torch.tensor(least + 1).double().log()
        factors = [1.0, log / mean_log, mean_log / log_least, degree / mean_linear, mean_linear / least]
        scaled = torch.cat([factor * torch.cat(parts) for factor in factors])
        outs.append(inner.post_nns[tower](torch.cat([graph.x[row], scaled])))
    want = inner.lin(torch.cat(outs))[None]
    # PyG keeps the average degrees in float32.
    assert_close(f"PNA at row {row} with sources {sources}", got, want, rtol=1e-6)


AGGREGATIONS: dict[str, Callable[[int], nn.Module]] = {
    "SAGEConv of several": lambda width: pyg.SAGEConv(width, 2, aggr=["mean", "std", "max"]),
    "GraphConv of a variance": lambda width: pyg.GraphConv(width, 2, aggr="var"),
}


@pytest.mark.parametrize("name", AGGREGATIONS)
@given(graph=graphs(weighted=False))
def test_moments_of_other_convolutions_are_pyg_s_on_the_whole_graph(name: str, graph: Graph) -> None:
    plain, mine = (seeded(lambda: AGGREGATIONS[name](graph.num_features)) for _ in range(2))
    got = PyGConv(mine)(graph.x, graph.x, graph.operator("sum"))
    assert_close(f"{name} on {graph}", got, plain(graph.x, graph.edge_index), rtol=RTOL)


@given(graph=graphs(), data=st.data())
def test_a_variance_counts_absent_messages_as_zeros(graph: Graph, data: st.DataObject) -> None:
    conv = PyGConv(seeded(lambda: pyg.GraphConv(graph.num_features, 2, aggr="var")))
    row = data.draw(st.integers(0, graph.num_nodes - 1))
    kept = torch.tensor(sorted(data.draw(st.sets(st.integers(0, graph.num_nodes - 1), min_size=1))))
    part = conv(graph.x[kept], graph.x[[row]], graph.block("sum", torch.tensor([row]), LocalSet(kept, 1)))
    blanked = torch.where(torch.isin(torch.arange(graph.num_nodes), kept)[:, None], graph.x, 0)
    zeroed = conv(blanked, graph.x, graph.operator("sum"))[row]
    assert_close(f"variance at row {row} from {kept.tolist()}", part[0], zeroed, rtol=RTOL)


def test_pna_of_a_graph_without_edges_is_finite() -> None:
    graph = path_graph(3).replaced(edge_index=torch.zeros(2, 0, dtype=torch.int64))
    model = PNA(3, 4, 3, 2, dtype=torch.float64, **graph_settings("pna", graph))
    assert bool(torch.isfinite(model(graph)).all())


def test_pna_refuses_what_it_cannot_keep_node_wise() -> None:
    settings: dict[str, Any] = {"deg": torch.tensor([0, 2]), "aggregators": ["mean"], "train_norm": True}
    with pytest.raises(InvalidInputError, match="train_norm"):
        PyGConv(seeded(lambda: PNAConv(3, 3, scalers=["linear"], **settings)))
    with pytest.raises(InvalidInputError, match=r"PNAConv cannot take a bipartite .*lmc_verify\.models\.PNAConv"):
        PyGConv(seeded(lambda: pyg.PNAConv(3, 3, ["mean"], ["identity"], torch.tensor([0, 2]))))


# --- options ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("gat", {"head": 2}, r"model 'gat' has no option 'head'; it has heads"),
        ("gcn", {"alpha": 0.5}, r"'gcn' has no option 'alpha'; it has none"),
        ("gat", {"heads": 1.5}, r"model\.options\.heads is 1\.5, .* default, 1"),
        ("gat", {"heads": True}, r"heads is True"),
        ("gin", {"train_eps": 1}, r"train_eps is 1, .* default, False"),
        ("gcnii", {"alpha": "much"}, r"alpha is 'much'"),
        ("gcnni", {}, "did you mean 'gcnii'"),
    ],
)
def test_bad_options_are_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        check_options(name, options)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: GCNII(3, 4, 3, alpha=1.5), r"alpha is 1\.5, .*\[0, 1\]"),
        (lambda: GCNII(3, 4, 3, theta=0.0), r"theta is 0\.0, it must be above 0"),
        (lambda: APPNP(3, 4, 3, alpha=-0.1), r"alpha is -0\.1"),
        (lambda: GIN(3, 4, 3, 0), "num_layers is 0"),
        (lambda: PNA(3, 4, 3, towers=2), r"towers is 2, it must divide .* 3 here.* head"),
    ],
)
def test_bad_settings_are_refused(build: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        build()


# --- what the cut promises ----------------------------------------------------------------------------

LINEAR: dict[str, dict[str, Any]] = {
    "gcn": {},
    "sage": {},
    "gin": {"options": {"train_eps": True}, "norm": "layer", "residual": True},
    "gin with ends": {"name": "gin", "encoder": True, "head": True},
    "gcnii": {"norm": "layer"},
    "gcnii of two matrices": {"name": "gcnii", "options": {"shared_weights": False, "alpha": 0.3}, "residual": True},
    "appnp": {"head": True},
}
OTHERS: dict[str, dict[str, Any]] = {
    "gat": {},
    "gat of two heads": {"name": "gat", "options": {"heads": 2}},
    "pna": {},
    "pna of two towers": {"name": "pna", "options": {"towers": 2}, "head": True},
    "gin, post cut": {"name": "gin", "activation_cut": "post"},
    "gcnii, post cut": {"name": "gcnii", "activation_cut": "post"},
}
DIRECTED = {"name": "directed", "num_nodes": 40, "num_edges": 220, "num_self_loops": 3, "num_isolated": 2}


def verdict_of(claim: str, model: str, settings: dict[str, Any], estimator: str) -> Any:
    case = build_case(
        CaseSettings.model_validate(
            {
                "dataset": DIRECTED,
                "model": {"name": model, "width": 8, **settings},
                "estimator": {"name": estimator},
                "design": {"parts": 4, "per_batch": 1},
            }
        )
    )
    theory, verdict = CLAIMS[claim].expect(case), CLAIMS[claim].check(case)
    assert theory.outcome is verdict.outcome, f"{claim} on {case.description}: {verdict.summary}\ntheory: {theory}"
    return verdict


EXACTNESS = ["e1/equals-backward-sgd", "e2/exact-when-frozen"]


@pytest.mark.parametrize(("model", "claim"), crossed(LINEAR, EXACTNESS))
def test_lmc_is_exact_for_aggregate_linear_models(claim: str, model: str) -> None:
    assert verdict_of(claim, model, LINEAR[model], "lmc").outcome is Outcome.EXACT
    assert verdict_of(claim, model, LINEAR[model], "gas").outcome is Outcome.REFUTED


@pytest.mark.slow
@pytest.mark.parametrize("claim", EXACTNESS)
@pytest.mark.parametrize("model", OTHERS)
def test_lmc_keeps_a_floor_for_others_and_the_verdict_names_the_assumption(claim: str, model: str) -> None:
    verdict = verdict_of(claim, model, OTHERS[model], "lmc")
    assert verdict.outcome is Outcome.REFUTED
    assert "assumptions that fail: aggregate-linear (the Jacobian of layer 1, 2" in verdict.summary
    sweeps = [item.value for item in verdict.evidence if item.group == "gradient error by sweep"]
    if sweeps:  # a floor: nothing changes any more, and it is far above rounding
        assert sweeps[-1] == pytest.approx(sweeps[-2], rel=0.2)
        assert sweeps[-1] > 1e-3


@pytest.mark.parametrize("model", slow_but({"gin", "appnp", "gat", "pna"}, [*LINEAR, *OTHERS]))
def test_backward_sgd_needs_no_such_assumption(model: str) -> None:
    settings = {**LINEAR, **OTHERS}[model]
    assert verdict_of("theorem-1/unbiased", model, settings, "backward-sgd").outcome is Outcome.EXACT
