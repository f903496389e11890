"""A `Graph` and its operators are what their definitions say, block by block, and malformed input is refused.

Operators are compared with the dense definitions of `oracles.py` and with PyTorch Geometric's own normalisation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from common import oracles
from common.helpers import assert_close, edge_weights, path_graph
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor
from torch_geometric.data import Data, HeteroData
from torch_geometric.nn import SAGEConv
from torch_geometric.nn.conv.gcn_conv import gcn_norm
from torch_geometric.utils import subgraph

from lmc_verify import Graph, InvalidInputError, UnknownNameError
from lmc_verify.graphs import graph as graph_module
from lmc_verify.graphs.operators import OPERATORS, LocalSet
from lmc_verify.testing import graphs

KINDS = pytest.mark.parametrize("kind", OPERATORS)
EXACT = 1e-14  # a few products and sums of numbers near 1


def definition(kind: str, graph: Graph) -> np.ndarray:
    """The dense operator, written from its definition."""
    edges, n = graph.edge_index.numpy(), graph.num_nodes
    if kind == "gcn":
        return oracles.gcn_operator(edges, n, edge_weights(graph))
    if kind == "mean":
        return oracles.mean_operator(edges, n)
    if kind == "loops":
        counts = oracles.edge_counts(edges, n).astype(float)
        np.fill_diagonal(counts, 1.0)
        return counts
    weight = np.ones(graph.num_edges) if graph.edge_weight is None else graph.edge_weight.numpy()
    matrix = np.zeros((n, n))
    np.add.at(matrix, (edges[1], edges[0]), weight)
    return matrix


@st.composite
def with_batch(draw: st.DrawFn) -> tuple[Graph, Tensor]:
    graph = draw(graphs())
    nodes = draw(st.sets(st.integers(0, graph.num_nodes - 1), min_size=1))
    return graph, torch.tensor(sorted(nodes))


def local_set(graph: Graph, batch: Tensor) -> LocalSet:
    return LocalSet(torch.cat([batch, graph.neighbourhood(batch)]), batch.numel())


@KINDS
@given(graph=graphs())
def test_operators_are_their_dense_definitions(kind: str, graph: Graph) -> None:
    block = graph.operator(kind)
    want = definition(kind, graph)
    assert_close(f"operator({kind})", block.csr.to_dense(), want, rtol=EXACT, scale=50.0)
    assert_close(f"operator({kind}).csr_t", block.csr_t.to_dense(), want.T, rtol=EXACT, scale=50.0)
    assert block.complete
    assert graph.operator(kind) is block, "operators are built once"
    assert bool((block.edge_weight == block.csr.value).all())


@given(graphs())
def test_operators_agree_with_pyg(graph: Graph) -> None:
    n = graph.num_nodes
    edges, weight = gcn_norm(graph.edge_index, graph.edge_weight, n, dtype=graph.dtype)
    dense = torch.zeros(n, n).double().index_put_((edges[1], edges[0]), weight, accumulate=True)
    assert_close("operator(gcn)", graph.operator("gcn").csr.to_dense(), dense, rtol=EXACT, scale=50.0)
    with torch.random.fork_rng(devices=[]):
        conv = SAGEConv(n, n, root_weight=False, bias=False).double()
    with torch.no_grad():
        conv.lin_l.weight.copy_(torch.eye(n))
        mean = conv(torch.eye(n).double(), graph.edge_index)
    assert_close("operator(mean)", graph.operator("mean").csr.to_dense(), mean, rtol=EXACT)


@KINDS
@given(graph=graphs(), data=st.data())
def test_blocks_are_dense_indexing(kind: str, graph: Graph, data: st.DataObject) -> None:
    ids = st.integers(0, graph.num_nodes - 1)
    rows = torch.tensor(data.draw(st.lists(ids, max_size=6)), dtype=torch.int64)  # any order, repeats allowed
    columns = torch.tensor(data.draw(st.lists(ids, unique=True, min_size=1)), dtype=torch.int64)  # any order
    block = graph.block(kind, rows, LocalSet(columns, 1))
    dense, call = definition(kind, graph), f"block({kind}, rows={rows.tolist()}, columns={columns.tolist()})"
    assert block.shape == (rows.numel(), columns.numel())
    assert_close(call, block.csr.to_dense(), dense[np.ix_(rows, columns)], rtol=EXACT, scale=50.0)
    in_edges = graph.operator(kind).in_degree[rows]
    assert block.in_degree.tolist() == in_edges.tolist(), f"{call}: degrees are those of the whole graph"
    assert block.complete == (block.csr.num_entries == int(in_edges.sum()))
    assert bool((block.edge_index[0] < max(columns.numel(), 1)).all())


@given(with_batch())
def test_neighbourhood_is_the_brute_force_one(drawn: tuple[Graph, Tensor]) -> None:
    graph, batch = drawn
    counts = oracles.edge_counts(graph.edge_index.numpy(), graph.num_nodes)
    want = oracles.halo(counts, batch.numpy()).tolist()
    assert graph.neighbourhood(batch).tolist() == want
    flipped = graph.transposed().neighbourhood(batch).tolist()
    assert flipped == want, "the halo does not depend on the direction of edges"


@pytest.mark.parametrize("nodes", [[0], [2, 3], [1, 5], [6]])
def test_nodes_are_found_alike_by_search_and_by_marks(nodes: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a graph has many more nodes than are near a batch, they are searched for."""
    found = []
    for factor in (graph_module._SEARCH, 0):
        monkeypatch.setattr(graph_module, "_SEARCH", factor)
        graph, batch = path_graph(7, directed=True), torch.tensor(nodes)
        local = local_set(graph, batch)
        found.append([local.halo, graph.local_degree_ratio(local), graph.block("gcn", batch, local).csr.to_dense()])
    assert all(torch.equal(marked, searched) for marked, searched in zip(*found, strict=True))


@given(with_batch())
def test_zero_weights_keep_their_edges(drawn: tuple[Graph, Tensor]) -> None:
    graph, batch = drawn
    erased = replace(graph, edge_weight=torch.zeros(graph.num_edges, dtype=graph.dtype))
    assert erased.neighbourhood(batch).tolist() == graph.neighbourhood(batch).tolist()


@given(with_batch())
def test_local_degree_ratio_is_the_share_of_local_in_edges(drawn: tuple[Graph, Tensor]) -> None:
    graph, batch = drawn
    counts = oracles.edge_counts(graph.edge_index.numpy(), graph.num_nodes)
    local = local_set(graph, batch)
    for self_loop in (False, True):
        want = oracles.local_degree_ratio(counts, batch.numpy(), self_loop=self_loop)[local.halo.numpy()]
        got = graph.local_degree_ratio(local, count_self_loop=self_loop)
        assert_close(f"local_degree_ratio({batch.tolist()}, {self_loop})", got, want, rtol=EXACT)


@KINDS
@given(drawn=with_batch())
def test_induced_block_is_the_operator_of_the_induced_subgraph(kind: str, drawn: tuple[Graph, Tensor]) -> None:
    graph, batch = drawn
    edges, weight = subgraph(batch, graph.edge_index, graph.edge_weight, relabel_nodes=True, num_nodes=graph.num_nodes)
    everyone = torch.ones(batch.numel(), dtype=torch.bool)
    y = graph.y[batch] if graph.multi_label else graph.y[batch].clamp(min=0)
    alone = Graph(edges, graph.x[batch], y, everyone, edge_weight=weight)
    got = graph.induced_block(kind, LocalSet(batch, batch.numel()))
    want = definition(kind, alone)
    assert_close(f"induced_block({kind}, {batch.tolist()})", got.csr.to_dense(), want, rtol=EXACT, scale=50.0)
    assert got.complete
    assert got.in_degree.tolist() == alone.operator(kind).in_degree.tolist()


@given(with_batch())
def test_local_sets_locate_their_nodes(drawn: tuple[Graph, Tensor]) -> None:
    graph, batch = drawn
    local = local_set(graph, batch)
    everyone = torch.arange(graph.num_nodes)
    index, inside = local.locate(everyone)
    assert everyone[inside].tolist() == sorted(local.nodes.tolist())
    assert local.nodes[index[inside]].tolist() == everyone[inside].tolist()
    assert not LocalSet(batch[:0], 0).locate(everyone)[1].any()


@KINDS
@given(graph=graphs(), data=st.data())
def test_relabelling_permutes_and_transposing_flips(kind: str, graph: Graph, data: st.DataObject) -> None:
    order = torch.tensor(data.draw(st.permutations(range(graph.num_nodes))))
    renamed, dense = graph.relabelled(order), definition(kind, graph)
    got = renamed.operator(kind).csr.to_dense()
    assert_close(f"relabelled({order.tolist()})", got, dense[np.ix_(order, order)], rtol=EXACT, scale=50.0)
    for field in ("x", "y", "train_mask"):
        assert torch.equal(getattr(renamed, field), getattr(graph, field)[order])
    flipped = graph.transposed()
    pattern = oracles.edge_counts(graph.edge_index.numpy(), graph.num_nodes)
    assert (oracles.edge_counts(flipped.edge_index.numpy(), graph.num_nodes) == pattern.T).all()
    assert flipped.transposed().fingerprint == graph.fingerprint


@given(graphs())
def test_conversion_keeps_everything_but_the_precision(graph: Graph) -> None:
    single = graph.to(dtype=torch.float32)
    assert (single.dtype, single.double().dtype) == (torch.float32, torch.float64)
    assert single.operator("gcn").csr.value.dtype == torch.float32
    assert torch.equal(single.edge_index, graph.edge_index)
    assert single.y.dtype == (torch.float32 if graph.multi_label else torch.int64)
    assert graph.double() is graph


# --- from_pyg -------------------------------------------------------------------------------------


def pyg_fields(graph: Graph) -> dict[str, Tensor]:
    fields = {"x": graph.x, "y": graph.y, "edge_index": graph.edge_index, "train_mask": graph.train_mask}
    return fields | ({} if graph.edge_weight is None else {"edge_weight": graph.edge_weight})


@given(graphs())
def test_from_pyg_round_trip(graph: Graph) -> None:
    again = Graph.from_pyg(Data(**pyg_fields(graph)))
    assert again.fingerprint == graph.fingerprint
    assert (again.num_nodes, again.num_edges, again.num_labelled) == (
        graph.num_nodes,
        graph.num_edges,
        graph.num_labelled,
    )


def test_from_pyg_reads_the_usual_variants() -> None:
    graph = path_graph(4)
    base = pyg_fields(graph)
    splits = torch.tensor([[True, False]] * 2 + [[False, True]] * 2)
    everything = torch.ones(4, dtype=torch.bool)

    def read(split: int | None = None, **changes: Any) -> Graph:
        fields = {key: value for key, value in (base | changes).items() if value is not None}
        return Graph.from_pyg(Data(**fields), split=split)

    assert torch.equal(read(train_mask=None).train_mask, everything)
    assert read(train_mask=splits, val_mask=splits, split=1).train_mask.tolist() == [False, False, True, True]
    assert read(train_mask=everything.to(torch.uint8)).num_labelled == 4
    assert read(y=graph.y[:, None]).y.tolist() == graph.y.tolist()
    assert read(y=graph.y.int()).y.dtype == torch.int64
    indicators = read(y=torch.eye(4, 2, dtype=torch.int64))
    assert indicators.multi_label
    assert (indicators.y.dtype, indicators.num_outputs) == (torch.float64, 2)
    assert read(y=torch.eye(4, 2)).y.dtype == torch.float64, "float targets take the dtype of the features"
    assert read(x=torch.eye(4, dtype=torch.int64)).dtype == torch.float32
    assert read(edge_index=base["edge_index"].int()).edge_index.dtype == torch.int64
    assert read(edge_attr=torch.ones(6, 2)).edge_weight is None
    assert read(edge_attr=torch.ones(6, 2)).edge_attr.tolist() == [[1, 1]] * 6  # type: ignore[union-attr]  # it is there
    assert Graph.from_pyg(Data(**base, name="mine")).name == "mine"
    assert Graph.from_pyg(Data(**base), name="other").name == "other"


@pytest.mark.parametrize(
    ("changes", "split", "message"),
    [
        ({"x": None}, None, r"data\.x is missing; .*x \[n, features\]"),
        ({"y": None}, None, r"data\.y is missing"),
        ({"edge_index": None}, None, r"data\.edge_index is missing"),
        ({"train_mask": torch.ones(4, 3, dtype=torch.bool)}, None, r"3 splits and split=None; .*split=0 \.\.\. 2"),
        ({"train_mask": torch.ones(4, 3, dtype=torch.bool)}, 3, r"3 splits and split=3"),
        ({"train_mask": torch.ones(4, 3, dtype=torch.bool)}, -1, r"3 splits and split=-1"),
    ],
)
def test_from_pyg_names_what_is_wrong(changes: dict[str, Any], split: int | None, message: str) -> None:
    fields = {key: value for key, value in (pyg_fields(path_graph(4)) | changes).items() if value is not None}
    with pytest.raises(InvalidInputError, match=message):
        Graph.from_pyg(Data(**fields), split=split)


def test_from_pyg_refuses_several_node_types() -> None:
    with pytest.raises(InvalidInputError, match=r"HeteroData .*to_homogeneous\(\)"):
        Graph.from_pyg(HeteroData())


# --- what a Graph refuses -------------------------------------------------------------------------

NAN, INF = float("nan"), float("inf")


def changed(value: Tensor, index: Any, to: float) -> Tensor:
    value = value.clone()
    value[index] = to
    return value


BASE = path_graph(4)
BAD_INPUTS: dict[str, tuple[dict[str, Any], str]] = {
    "empty": (
        {"x": BASE.x[:0], "y": BASE.y[:0], "train_mask": BASE.train_mask[:0], "edge_index": BASE.edge_index[:, :0]},
        "0 nodes, at least 1 is needed; check",
    ),
    "half features": ({"x": BASE.x.half()}, r"float32 or float64 .* got torch\.float16 .*x\.float\(\)"),
    "flat features": ({"x": BASE.x[:, 0]}, r"got torch\.float64 \(4,\)"),
    "NaN feature": (
        {"x": changed(BASE.x, (2, 1), NAN)},
        r"1 NaN or infinite values, the first at node 2, column 1; clean",
    ),
    "infinite feature": ({"x": changed(BASE.x, (0, 0), INF)}, "node 0, column 0"),
    "edge too high": ({"edge_index": changed(BASE.edge_index, (0, 1), 4)}, r"node 4, valid ids are 0 \.\.\. 3; .*drop"),
    "edge negative": ({"edge_index": changed(BASE.edge_index, (1, 0), -1)}, r"node -1, valid ids are 0 \.\.\. 3"),
    "edge dtype": ({"edge_index": BASE.edge_index.int()}, r"int64 \[2, edges\], got torch\.int32"),
    "edge shape": ({"edge_index": BASE.edge_index.T}, r"int64 \[2, edges\], got torch\.int64 \(6, 2\)"),
    "weight shape": (
        {"edge_weight": torch.ones(5).double()},
        r"floating \[6\] \(one per directed edge\), got .*\(5,\)",
    ),
    "weight dtype": ({"edge_weight": torch.ones(6, dtype=torch.int64)}, r"got torch\.int64"),
    "weight NaN": ({"edge_weight": changed(torch.ones(6).double(), 3, NAN)}, "at edge 3; every weight must be finite"),
    "mask dtype": ({"train_mask": torch.ones(4)}, r"train_mask must be bool \[4\], got torch\.float32"),
    "mask shape": ({"val_mask": torch.ones(3, dtype=torch.bool)}, r"val_mask must be bool \[4\], got .*\(3,\)"),
    "no label": ({"train_mask": torch.zeros(4, dtype=torch.bool)}, "0 True values, .*at least 1; set train_mask"),
    "label rows": ({"y": BASE.y[:3]}, r"one row a node \(4\), got shape \(3,\)"),
    "label dtype": ({"y": BASE.y.int()}, r"int64 \[nodes\], got torch\.int32"),
    "label matrix": ({"y": BASE.y[:, None]}, r"int64 \[nodes\], got torch\.int64 \(4, 1\)"),
    "flat float labels": ({"y": BASE.y.double()}, r"multi-label .*y\.long\(\)"),
    "negative class": ({"y": changed(BASE.y, 1, -1)}, "labelled node 1 has label -1, .*out of train_mask"),
    "target above 1": ({"y": changed(torch.zeros(4, 2).double(), (3, 1), 1.5)}, r"\[0, 1\]; take .*out of train_mask"),
    "target NaN": ({"y": changed(torch.zeros(4, 2).double(), (3, 1), NAN)}, r"must lie in \[0, 1\]"),
}


@pytest.mark.parametrize("name", BAD_INPUTS)
def test_malformed_graphs_are_refused(name: str) -> None:
    changes, message = BAD_INPUTS[name]
    with pytest.raises(InvalidInputError, match=message):
        path_graph(4, **changes)


def test_targets_of_unlabelled_nodes_may_be_missing() -> None:
    mask = torch.tensor([True, True, True, False])
    path_graph(4, y=changed(torch.zeros(4, 2).double(), (3, 1), NAN), train_mask=mask)
    assert path_graph(4, y=changed(BASE.y, 3, -1), train_mask=mask).num_outputs == 3


def test_unknown_operators_and_negative_degrees_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="operator 'gnc': did you mean 'gcn'"):
        BASE.operator("gnc")
    with pytest.raises(InvalidInputError, match=r"negative; use non-negative edge weights or .*'sum'"):
        path_graph(4, edge_weight=torch.full((6,), -2.0).double()).operator("gcn")


# --- fingerprint ----------------------------------------------------------------------------------

CHANGES: dict[str, Callable[[Graph], Graph]] = {
    "a feature": lambda g: replace(g, x=g.x + 2.0**-40),
    "dtype": lambda g: g.to(dtype=torch.float32),
    "a label": lambda g: replace(g, y=1 - g.y if g.multi_label else g.y + 1),
    "an edge more": lambda g: replace(
        g,
        edge_index=torch.cat([g.edge_index, torch.zeros(2, 1, dtype=torch.int64)], dim=1),
        edge_weight=None if g.edge_weight is None else torch.cat([g.edge_weight, torch.ones(1).double()]),
    ),
    "weights": lambda g: replace(g, edge_weight=torch.ones(g.num_edges).double() if g.edge_weight is None else None),
}


@pytest.mark.parametrize("change", CHANGES)
@given(graph=graphs(multi_label=True))
@example(graph=BASE)
def test_fingerprint_sees_every_change_and_no_name(change: str, graph: Graph) -> None:
    assert CHANGES[change](graph).fingerprint != graph.fingerprint
    assert replace(graph, name="renamed").fingerprint == graph.fingerprint
    assert len(graph.fingerprint) == 16


def test_fingerprint_sees_the_training_mask() -> None:
    assert replace(BASE, train_mask=changed(BASE.train_mask, 0, False)).fingerprint != BASE.fingerprint
