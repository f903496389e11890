"""The strategies of `lmc_verify.testing` draw valid objects only, reach every structural feature, and shrink to it.

In the style of Hypothesis's own tests: for each feature `find` must reach an example; where it matters, the smallest
one is named.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from common.crossed import slow_but
from hypothesis import HealthCheck, Phase, find, given, settings
from hypothesis import strategies as st

from lmc_verify import (
    Batch,
    BatchDesign,
    Clusters,
    EpochClusters,
    FusedClusters,
    Graph,
    Partition,
    Problem,
    UniformNodes,
    exact_pass,
)
from lmc_verify.models import JumpingLayer, make_model
from lmc_verify.testing import batches, betas, designs, graphs, histories, models, partitions, problems
from lmc_verify.testing.strategies import KINDS

ANY = settings(
    max_examples=2000,
    database=None,
    derandomize=True,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),  # a rare feature may need many examples; that is the point of the test
)
SMALLEST = settings(ANY, phases=[Phase.generate, Phase.shrink])


def proper(graph: Graph) -> torch.Tensor:
    return graph.edge_index[:, graph.edge_index[0] != graph.edge_index[1]]


def isolated(graph: Graph) -> bool:
    return len(set(range(graph.num_nodes)) - set(graph.edge_index.flatten().tolist())) > 0


def multi_edge(graph: Graph) -> bool:
    pairs = list(map(tuple, proper(graph).T.tolist()))
    return len(set(pairs)) < len(pairs)


def double_loop(graph: Graph) -> bool:
    loops = graph.edge_index[0][graph.edge_index[0] == graph.edge_index[1]].tolist()
    return len(set(loops)) < len(loops)


def one_way(graph: Graph) -> bool:
    pairs = set(map(tuple, graph.edge_index.T.tolist()))
    return any((b, a) not in pairs for a, b in pairs)


def unsorted(graph: Graph) -> bool:
    source = graph.edge_index[0]
    return bool((source[1:] < source[:-1]).any())


def components(graph: Graph) -> int:
    label = list(range(graph.num_nodes))
    for a, b in graph.edge_index.T.tolist():
        label = [label[a] if value == label[b] else value for value in label]
    return len(set(label))


GRAPH_FEATURES: dict[str, Callable[[Graph], bool]] = {
    "single node": lambda g: g.num_nodes == 1,
    "edgeless with several nodes": lambda g: g.num_edges == 0 and g.num_nodes > 2,
    "isolated node next to edges": lambda g: isolated(g) and g.num_edges > 2,
    "two components with edges": lambda g: components(g) == 2 and not isolated(g),
    "self-loop": lambda g: proper(g).shape[1] < g.num_edges,
    "double self-loop": double_loop,
    "multi-edge": multi_edge,
    "one-way edge": one_way,
    "undirected": lambda g: g.num_edges >= 4 and not one_way(g),
    "unsorted edges": unsorted,
    "more than ten edges": lambda g: g.num_edges > 10,
    "weights": lambda g: g.edge_weight is not None and g.num_edges > 0,
    "no weights": lambda g: g.edge_weight is None and g.num_edges > 0,
    "one labelled node of many": lambda g: g.num_labelled == 1 and g.num_nodes > 4,
    "all labelled": lambda g: g.num_labelled == g.num_nodes > 4,
    "unlabelled node of class -1": lambda g: not g.multi_label and int(g.y.min()) == -1,
    "three classes": lambda g: not g.multi_label and g.num_outputs == 3,
    "multi-label": lambda g: g.multi_label and g.num_outputs > 1,
}


@pytest.mark.slow
@pytest.mark.parametrize("feature", GRAPH_FEATURES)
def test_graphs_reach(feature: str) -> None:
    assert GRAPH_FEATURES[feature](find(graphs(), GRAPH_FEATURES[feature], settings=ANY))


@pytest.mark.slow
def test_graphs_shrink_to_the_smallest_witness() -> None:
    trivial = find(graphs(), lambda g: True, settings=SMALLEST)
    assert (trivial.num_nodes, trivial.num_edges, trivial.num_features) == (1, 0, 1)
    double = find(graphs(), multi_edge, settings=SMALLEST)
    assert (double.num_nodes, double.num_edges) in {(2, 2), (2, 4)}
    directed = find(graphs(), one_way, settings=SMALLEST)
    assert (directed.num_nodes, directed.num_edges) == (2, 1)


@given(graphs(min_nodes=2, max_nodes=5, directed=False, weighted=True, multi_label=False, max_features=2))
def test_graphs_keep_what_their_arguments_promise(graph: Graph) -> None:
    assert 2 <= graph.num_nodes <= 5
    assert graph.num_features <= 2
    assert not one_way(graph)
    assert not graph.multi_label
    assert graph.dtype == torch.float64
    dense = graph.operator("sum").csr.to_dense()
    assert graph.edge_weight is not None
    # Symmetric up to the order in which multi-edges are added.
    assert torch.allclose(dense, dense.T, rtol=1e-12, atol=0)
    assert bool(((graph.edge_weight >= 0.25) & (graph.edge_weight <= 2)).all())
    assert bool((graph.x.abs() <= 2).all())


@st.composite
def graph_and(draw: st.DrawFn, strategy: Callable[[Graph], st.SearchStrategy]) -> tuple:
    graph = draw(graphs())
    return graph, draw(strategy(graph))


def label_free(pair: tuple[Graph, Partition]) -> bool:
    graph, partition = pair
    return any(not graph.train_mask[cluster].any() for cluster in partition.clusters)


PARTITION_FEATURES: dict[str, Callable[[tuple[Graph, Partition]], bool]] = {
    "one cluster": lambda pair: pair[1].num_parts == 1 and pair[0].num_nodes > 2,
    "singletons": lambda pair: pair[1].num_parts == pair[0].num_nodes > 4,
    "unequal clusters": lambda pair: int(pair[1].sizes.max()) >= 3 * int(pair[1].sizes.min()),
    "equal clusters of several": lambda pair: pair[1].num_parts > 1 and set(pair[1].sizes.tolist()) == {2},
    "cluster without a label": label_free,
}


@pytest.mark.parametrize("feature", slow_but({*PARTITION_FEATURES} - {"equal clusters of several"}, PARTITION_FEATURES))
def test_partitions_reach(feature: str) -> None:
    assert PARTITION_FEATURES[feature](find(graph_and(partitions), PARTITION_FEATURES[feature], settings=ANY))


@pytest.mark.slow
def test_partitions_shrink_to_the_smallest_witness() -> None:
    graph, partition = find(graph_and(partitions), label_free, settings=SMALLEST)
    assert (graph.num_nodes, partition.num_parts) == (2, 2)


@given(graph_and(partitions))
def test_partitions_cover_every_node_once(pair: tuple[Graph, Partition]) -> None:
    graph, partition = pair
    assert torch.cat(partition.clusters).sort().values.tolist() == list(range(graph.num_nodes))
    assert int(partition.sizes.min()) >= 1


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Clusters, UniformNodes, EpochClusters, FusedClusters])
def test_designs_reach_every_kind_with_several_batches(kind: type) -> None:
    wanted = find(graph_and(designs), lambda pair: isinstance(pair[1], kind) and pair[1].support_size > 2, settings=ANY)
    assert isinstance(wanted[1], BatchDesign)


@given(graph_and(designs))
def test_designs_can_be_enumerated(pair: tuple[Graph, BatchDesign]) -> None:
    graph, design = pair
    assert 1 <= design.support_size <= 24
    assert design.inclusion_probabilities().shape == (graph.num_nodes,)


@pytest.mark.parametrize(
    "feature",
    [
        lambda pair: pair[1].size == pair[0].num_nodes > 3,
        lambda pair: pair[1].size == 1 and pair[0].num_nodes > 3,
        lambda pair: not pair[0].train_mask[pair[1].nodes].any(),
        lambda pair: pair[1].size > 1 and pair[1].inclusion[0] != pair[1].inclusion[1],
    ],
    ids=["whole graph", "one node", "without a label", "unequal inclusion"],
)
def test_batches_reach(feature: Callable[[tuple[Graph, Batch]], bool]) -> None:
    assert feature(find(graph_and(batches), feature, settings=ANY))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["GCN", "SAGE", "GAT"])
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_models_reach_every_kind_and_depth(name: str, layers: int) -> None:
    def wanted(pair: tuple) -> bool:
        return type(pair[1]).__name__ == name and pair[1].num_layers == layers

    assert wanted(find(graph_and(models), wanted, settings=ANY))


def test_models_reach_every_node_wise_part() -> None:
    def rich(pair: tuple) -> bool:
        model = pair[1]
        normed = any("LayerNorm" in type(part).__name__ for part in model.modules())
        residual = any(getattr(layer, "residual", False) for layer in model.modules())
        return bool(model.encoder is not None and model.head is not None and normed and residual)

    assert rich(find(graph_and(models), rich, settings=ANY))


@pytest.mark.slow
def test_models_of_every_kind_and_with_jumping_knowledge_are_drawn() -> None:
    for kind in KINDS:
        name = type(make_model(kind, 2, 2, 2)).__name__
        assert find(graph_and(models), lambda pair, name=name: type(pair[1]).__name__ == name, settings=ANY)
    assert find(
        graph_and(models), lambda pair: any(isinstance(layer, JumpingLayer) for layer in pair[1].layers), settings=ANY
    )


@pytest.mark.slow
@given(problems())
def test_problems_have_finite_exact_passes(problem: Problem) -> None:
    exact = exact_pass(problem)
    values = [*exact.embeddings, *exact.auxiliary.values(), *exact.gradient.values()]
    assert all(bool(torch.isfinite(value).all()) for value in values)
    # Nothing saturates: embeddings stay moderate, and so do rounding errors.
    assert max(float(value.abs().max()) for value in exact.embeddings) < 1e3


@given(problems(aggregate_linear=True))
def test_aggregate_linear_problems_declare_it(problem: Problem) -> None:
    assert problem.model.aggregate_linear


@given(problems(graphs(multi_label=True), kinds=("gcn",), plain=True, min_layers=2))
def test_plain_problems_are_bare_stacks(problem: Problem) -> None:
    assert problem.loss == "bce"
    assert problem.num_layers >= 2
    assert problem.model.encoder is None
    assert problem.model.head is None
    assert not any(layer.residual for layer in problem.model.layers)


@st.composite
def problem_and_state(draw: st.DrawFn) -> tuple:
    problem = draw(problems())
    return problem, draw(histories(problem)), draw(betas(problem.graph))


@given(problem_and_state())
def test_histories_and_betas_fit_their_problem(drawn: tuple) -> None:
    problem, state, beta = drawn
    for table in (state.embeddings, state.auxiliary):
        shapes = {layer: tuple(values.shape) for layer, values in table.items()}
        assert shapes == {n: (problem.graph.num_nodes, problem.widths[n]) for n in range(1, problem.num_layers + 1)}
        assert all(float(values.abs().max()) <= 2 for values in table.values())
    values = beta if isinstance(beta, tuple) else (beta,)
    assert len(values) in {1, problem.graph.num_nodes}
    assert all(0 <= value <= 1 for value in values)
