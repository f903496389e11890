"""Hypothesis strategies, named after what they guarantee.

Structure (edges, labels, clusters, batches, layers) is drawn element by element, so that a failure shrinks to the
smallest graph that shows it. Values (features, weights, histories) come from a drawn seed and are uniform on a small
range: generic, so that no activation sits on its kink by construction, and bounded, so that nothing saturates and
absolute rounding errors stay near 1e-15. No global random state is read or set.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

from lmc_verify.errors import UnknownNameError
from lmc_verify.estimators.history import History
from lmc_verify.graphs import Batch, BatchDesign, Clusters, EpochClusters, FusedClusters, Graph, Partition, UniformNodes
from lmc_verify.models import LayeredModel, graph_settings, make_model
from lmc_verify.objective import Problem

__all__ = ["batches", "betas", "designs", "graphs", "histories", "models", "partitions", "problems", "seeds"]

KINDS = ("gcn", "sage", "gin", "gcnii", "appnp", "gat", "pna")
"""Names of the models that are drawn; failures shrink towards the first."""

_LINEAR_KINDS = KINDS[:5]


def seeds() -> st.SearchStrategy[int]:
    """Seeds of a generator; shrink towards 0."""
    return st.integers(0, 2**16 - 1)


def _uniform(seed: int, shape: tuple[int, ...], dtype: torch.dtype, low: float = -2.0, high: float = 2.0) -> Tensor:
    values = np.random.default_rng(seed).uniform(low, high, size=shape)
    return torch.from_numpy(np.asarray(values)).to(dtype)


@st.composite
def graphs(
    draw: st.DrawFn,
    *,
    min_nodes: int = 1,
    max_nodes: int = 8,
    max_edges: int = 20,
    directed: bool | None = None,
    weighted: bool | None = None,
    multi_label: bool | None = None,
    max_features: int = 3,
    max_outputs: int = 3,
    edge_features: int = 0,
    dtype: torch.dtype = torch.float64,
) -> Graph:
    """Valid graphs of every shape that the package accepts.

    Among them: one node; no edge; isolated nodes and several components; self-loops and multi-edges (also both at
    once); edges in any order; all or only one node labelled; labelled nodes of one class only; class -1 at unlabelled
    nodes. Features lie in [-2, 2], edge weights in [0.25, 2].

    Args:
        draw: supplied by Hypothesis.
        min_nodes: at least this many nodes.
        max_nodes: at most this many nodes.
        max_edges: at most this many drawn edges; an undirected graph holds each in both directions.
        directed: whether edges may lack their reverse. None draws it.
        weighted: whether there are edge weights (symmetric in undirected graphs). None draws it.
        multi_label: float targets [n, t] in {0, 1} instead of classes. None draws it.
        max_features: largest width of the features.
        max_outputs: largest number of classes or tasks.
        edge_features: width of the edges' features, in [-2, 2]; none at 0. Each edge has its own, also where several
            join the same two nodes, and where the reverse has others.
        dtype: dtype of features and weights.
    """
    n = draw(st.integers(min_nodes, max_nodes))
    nodes = st.integers(0, n - 1)
    # Lists without a lower bound hold about five elements: half of the graphs are asked to be denser than that.
    least = min(draw(st.sampled_from([0, n])), max_edges)
    pairs = draw(st.lists(st.tuples(nodes, nodes), min_size=least, max_size=max_edges))
    has_weights = draw(st.booleans()) if weighted is None else weighted
    one_way = draw(st.booleans()) if directed is None else directed
    seed = draw(seeds())
    weight = _uniform(seed + 1, (len(pairs),), dtype, 0.25, 2.0)
    edges = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).T
    if not one_way:
        proper = edges[0] != edges[1]
        edges = torch.cat([edges, edges[:, proper].flip(0)], dim=1)
        weight = torch.cat([weight, weight[proper]])

    labelled = draw(st.lists(st.booleans(), min_size=n, max_size=n))
    labelled[draw(nodes)] = True
    train_mask = torch.tensor(labelled)
    outputs = draw(st.integers(1, max_outputs))
    if draw(st.booleans()) if multi_label is None else multi_label:
        row = st.lists(st.sampled_from([0.0, 1.0]), min_size=outputs, max_size=outputs)
        y = torch.tensor(draw(st.lists(row, min_size=n, max_size=n)), dtype=dtype)
    else:
        y = torch.tensor(draw(st.lists(st.integers(0, outputs - 1), min_size=n, max_size=n)))
        if draw(st.booleans()):
            y[~train_mask] = -1
    features = draw(st.integers(1, max_features))
    return Graph(
        edge_index=edges.contiguous(),
        x=_uniform(seed, (n, features), dtype),
        y=y,
        train_mask=train_mask,
        edge_weight=weight if has_weights else None,
        edge_attr=_uniform(seed + 2, (edges.shape[1], edge_features), dtype) if edge_features else None,
        name="drawn",
    )


@st.composite
def _assigned(draw: st.DrawFn, num_nodes: int, max_parts: int) -> Partition:
    cluster = st.integers(0, max_parts - 1)
    return Partition.from_labels(torch.tensor(draw(st.lists(cluster, min_size=num_nodes, max_size=num_nodes))), "drawn")


def partitions(graph: Graph, *, max_parts: int | None = None) -> st.SearchStrategy[Partition]:
    """Valid partitions of a graph's nodes, whatever its edges and labels.

    Among them: one cluster; singletons (where `max_parts` allows); unequal clusters; clusters without a labelled node;
    clusters that are not connected.

    Args:
        graph: the graph.
        max_parts: at most this many clusters; None allows one per node.
    """
    n = graph.num_nodes
    limit = n if max_parts is None else min(max_parts, n)
    drawn = _assigned(n, limit)
    if limit < n:
        return drawn
    return drawn | st.just(Partition(torch.arange(n), "singletons"))


@st.composite
def batches(draw: st.DrawFn, graph: Graph) -> Batch:
    """Arbitrary non-empty batches with inclusion probabilities in [0.25, 1], one for all nodes or one each.

    One batch in eight is the whole graph; the others leave at least one node outside, where there is one.
    """
    n = graph.num_nodes
    if draw(st.sampled_from([False] * 7 + [True])):
        chosen = set(range(n))
    else:
        chosen = draw(st.sets(st.integers(0, n - 1), min_size=1, max_size=max(1, n - 1)))
    if draw(st.booleans()):
        inclusion = _uniform(draw(seeds()), (len(chosen),), torch.float64, 0.25, 1.0)
        return Batch.of(sorted(chosen), inclusion)
    return Batch.of(sorted(chosen), draw(st.sampled_from([1.0, 0.5, 0.25])))


@st.composite
def designs(draw: st.DrawFn, graph: Graph, *, max_support: int = 24, max_parts: int = 4) -> BatchDesign:
    """Batch designs of every kind on a graph, with at most `max_support` batches, so that they can be enumerated.

    `EpochClusters` are drawn at the start of an epoch; call its `after` for a conditional distribution.
    """
    n = graph.num_nodes
    kind = draw(st.sampled_from(["clusters", "nodes", "epoch", "fused"]))
    if kind == "nodes":
        fitting = [size for size in range(1, n + 1) if math.comb(n, size) <= max_support]
        return UniformNodes(n, draw(st.sampled_from(fitting)))
    # b clusters have at most 2^b batches.
    partition = draw(partitions(graph, max_parts=min(max_parts, int(math.log2(max_support)))))
    per_batch = draw(st.integers(1, partition.num_parts))
    if kind == "clusters":
        return Clusters(partition, per_batch)
    if kind == "epoch":
        return EpochClusters(partition, per_batch)
    return FusedClusters(partition, per_batch, seed=draw(seeds()))


@st.composite
def models(
    draw: st.DrawFn,
    graph: Graph,
    *,
    kinds: Sequence[str] = KINDS,
    min_layers: int = 1,
    max_layers: int = 3,
    max_hidden: int = 4,
    aggregate_linear: bool = False,
    jumps: bool = True,
    plain: bool = False,
) -> LayeredModel:
    """Models that fit a graph (widths, dtype, at least two outputs for classes), parameters at a generic point.

    Args:
        draw: supplied by Hypothesis.
        graph: the graph.
        kinds: names among `KINDS`.
        min_layers: least number of message-passing layers.
        max_layers: largest number of message-passing layers.
        max_hidden: largest hidden width.
        aggregate_linear: only models whose every layer is aggregate-linear: no attention, extrema or moments, and the
            pre-activation cut.
        jumps: whether models may have jumping knowledge.
        plain: no encoder, head, norm, residual connection or jumping knowledge beyond those that a model always has.

    Raises:
        UnknownNameError: a kind that is not known.
    """
    for name in kinds:
        if name not in KINDS:
            raise UnknownNameError("model", name, KINDS)
    kind = draw(st.sampled_from([name for name in kinds if not aggregate_linear or name in _LINEAR_KINDS]))
    layers = draw(st.integers(min_layers, max_layers))
    settings: dict[str, Any] = {"activation_cut": "pre" if aggregate_linear else draw(st.sampled_from(["pre", "post"]))}
    if not plain:
        for flag in ("encoder", "head", "residual"):
            settings[flag] = draw(st.booleans())
        settings["norm"] = draw(st.sampled_from([None, "layer"]))
        if jumps and kind != "appnp":
            settings["jump"] = draw(st.sampled_from([None, None, "concat", "max"]))
    if kind == "gat":
        settings["heads"] = draw(st.integers(1, 2))
    elif kind == "gin":
        settings["train_eps"] = draw(st.booleans())
    elif kind == "gcnii":
        settings["shared_weights"] = draw(st.booleans())
    settings |= graph_settings(kind, graph)
    outputs = graph.num_outputs if graph.multi_label else max(2, graph.num_outputs)
    hidden = draw(st.integers(1, max_hidden))
    sizes = (graph.num_features, hidden, outputs, layers)
    return make_model(kind, *sizes, **settings, seed=draw(seeds()), dtype=graph.dtype).eval()


@st.composite
def problems(
    draw: st.DrawFn,
    graph: Graph | st.SearchStrategy[Graph] | None = None,
    *,
    kinds: Sequence[str] = KINDS,
    min_layers: int = 1,
    max_layers: int = 3,
    aggregate_linear: bool = False,
    jumps: bool = True,
    plain: bool = False,
) -> Problem:
    """Problems: a graph, a model that fits it, and the loss that its labels ask for.

    Args:
        draw: supplied by Hypothesis.
        graph: one graph, or a strategy for graphs; None takes `graphs()`.
        kinds: see `models`.
        min_layers: see `models`.
        max_layers: see `models`.
        aggregate_linear: only problems for which LMC with beta = 0 and exact histories is exact; see `models`.
        jumps: see `models`.
        plain: see `models`.
    """
    if not isinstance(graph, Graph):
        graph = draw(graphs() if graph is None else graph)
    model = draw(
        models(
            graph,
            kinds=kinds,
            min_layers=min_layers,
            max_layers=max_layers,
            aggregate_linear=aggregate_linear,
            jumps=jumps,
            plain=plain,
        )
    )
    return Problem(graph, model, "bce" if graph.multi_label else "cross_entropy")


@st.composite
def histories(draw: st.DrawFn, problem: Problem) -> History:
    """Histories of both kinds with arbitrary values in [-2, 2]; they need not be near anything exact."""
    seed, graph = draw(seeds()), problem.graph
    layers = range(1, problem.num_layers + 1)

    def table(layer: int, kind: int) -> Tensor:
        return _uniform(seed + 2 * layer + kind, (graph.num_nodes, problem.widths[layer]), graph.dtype)

    return History({layer: table(layer, 0) for layer in layers}, {layer: table(layer, 1) for layer in layers})


@st.composite
def betas(draw: st.DrawFn, graph: Graph) -> float | tuple[float, ...]:
    """Blend weights: one number in [0, 1], both ends included, or one per node."""
    if draw(st.booleans()):
        values = _uniform(draw(seeds()), (graph.num_nodes,), torch.float64, 0.0, 1.0)
        return tuple(values.tolist())
    return draw(st.sampled_from([0.0, 1.0, 0.5, 0.3]))
