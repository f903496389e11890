"""GraphSAINT's subgraphs and constants are those of the definitions: counted one by one, and by the closed forms."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from common.crossed import slow_but
from common.helpers import assert_close, examples, path_graph
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lmc_verify import GCN, Graph, InvalidInputError, Problem, UniformNodes, UnknownNameError, check_claim
from lmc_verify.claims import Outcome
from lmc_verify.estimators import GraphSAINTEdge, GraphSAINTNode, GraphSAINTWalk
from lmc_verify.estimators.samplers.saint import GraphSAINT
from lmc_verify.testing import graphs


def model_of(graph: Graph, layers: int = 1) -> Problem:
    classes = max(2, graph.num_outputs)
    model = GCN(graph.num_features, 3, classes, layers, seed=1, dtype=torch.float64).eval()
    return Problem(graph, model)


def atoms(estimator: GraphSAINT, graph: Graph) -> list[tuple[set[int], float]]:
    """Return every atom with its probability, from the definition, path by path."""
    n, edges = graph.num_nodes, graph.edge_index.T.tolist()
    if isinstance(estimator, GraphSAINTNode):
        csr = graph.operator("gcn").csr
        weight = np.zeros(n)
        np.add.at(weight, csr.col.numpy(), csr.value.numpy() ** 2)
        return [({v}, weight[v] / weight.sum()) for v in range(n)]
    if isinstance(estimator, GraphSAINTEdge):
        proper = [(u, v) for u, v in edges if u != v]
        degree = [sum(v in edge for edge in proper) for v in range(n)]
        weight = np.array([1 / degree[u] + 1 / degree[v] for u, v in proper])
        return [({u, v}, w) for (u, v), w in zip(proper, weight / weight.sum(), strict=True)]
    assert isinstance(estimator, GraphSAINTWalk)
    walks = [([root], 1 / n) for root in range(n)]
    for _ in range(estimator.length):
        further = []
        for path, probability in walks:
            own = [u for u, v in edges if v == path[-1]] or [path[-1]]
            further += [([*path, u], probability / len(own)) for u in own]
        walks = further
    return [(set(path), probability) for path, probability in walks]


SMALL = [GraphSAINTNode(nodes=2), GraphSAINTEdge(edges=2), GraphSAINTWalk(roots=2, length=1), GraphSAINTWalk(1, 2)]


@pytest.mark.parametrize("estimator", SMALL, ids=str)
@examples(15)
@given(graph=graphs(max_nodes=4, max_edges=6, multi_label=False))
def test_sets_and_constants_are_the_definitions(estimator: GraphSAINT, graph: Graph) -> None:
    if isinstance(estimator, GraphSAINTEdge):
        assume(bool((graph.edge_index[0] != graph.edge_index[1]).any()))
    problem = model_of(graph)
    design = estimator.sampling(problem, estimator.init(problem), UniformNodes(graph.num_nodes, 1))
    sets: dict[frozenset[int], float] = {}
    for chosen in product(atoms(estimator, graph), repeat=design.times):
        union = frozenset().union(*(nodes for nodes, _ in chosen))
        sets[union] = sets.get(union, 0.0) + float(np.prod([p for _, p in chosen]))
    got = {frozenset(batch.nodes.tolist()): probability for batch, probability in design.enumerate()}
    assert got.keys() == {nodes for nodes, p in sets.items() if p > 0}
    assert len(got) == design.support_size
    assert_close("sets", [sets[nodes] for nodes in got], list(got.values()))

    def together(*nodes: int) -> float:
        return sum(p for own, p in sets.items() if own.issuperset(nodes))

    inclusion = [together(v) for v in range(graph.num_nodes)]
    assert_close("inclusion", design.inclusion_probabilities(), inclusion)
    operator = graph.operator("gcn")
    pairs = zip(operator.csr.row.tolist(), operator.csr.col.tolist(), design.scales(operator).tolist(), strict=True)
    for v, u, scale in pairs:
        if together(u, v) > 1e-12:
            assert scale == pytest.approx(together(v) / together(u, v), rel=1e-9)
    assert design.normalisation == "closed form"


def tiny(layers: int) -> Problem:
    return model_of(path_graph(4, y=torch.tensor([0, 1, 0, 1])), layers)


VERDICTS = [
    ("sampling/unbiased-aggregation", 2, Outcome.EXACT),
    ("sampling/unbiased-without-nonlinearity", 1, Outcome.EXACT),
    ("sampling/unbiased-without-nonlinearity", 2, Outcome.REFUTED),
    ("theorem-1/unbiased", 1, Outcome.REFUTED),
]


@pytest.mark.parametrize("estimator", slow_but([SMALL[0]], SMALL[:3]), ids=str)
@pytest.mark.parametrize(("claim", "layers", "outcome"), VERDICTS)
def test_verdicts_are_those_of_theory(claim: str, layers: int, outcome: Outcome, estimator: GraphSAINT) -> None:
    verdict = check_claim(claim, tiny(layers), UniformNodes(4, 1), estimator)
    assert verdict.outcome is outcome, verdict.summary
    assert verdict.case.normalisation == "closed form"


@pytest.mark.parametrize(("times", "missed"), [(1, "never in a subgraph together"), (2, "")])
def test_two_nodes_are_together_where_two_atoms_can_hold_them(times: int, missed: str) -> None:
    problem, estimator = tiny(1), GraphSAINTNode(nodes=times)
    design = estimator.sampling(problem, estimator.init(problem), UniformNodes(4, 1))
    assert any(batch.size == 2 for batch, _ in design.enumerate()) is (times == 2)
    found = estimator.missed(problem, design)
    assert missed in found
    assert bool(found) is bool(missed)


def test_estimated_constants_are_near_and_recorded_as_estimated() -> None:
    exact, rough = GraphSAINTWalk(2, 1), GraphSAINTWalk(2, 1, constants="estimated", presamples=4000)
    problem = tiny(1)
    designs = [one.sampling(problem, one.init(problem), UniformNodes(4, 1)) for one in (exact, rough)]
    assert designs[1].normalisation == "estimated from 4,000 subgraphs"
    drawn = designs[1]._counts.double()  # subgraphs x nodes
    assert_close("inclusion", designs[1].inclusion_probabilities(), drawn.sum(dim=0) / 4000)
    operator = problem.graph.operator("gcn")
    for v, u, scale in zip(
        operator.csr.row.tolist(), operator.csr.col.tolist(), designs[1].scales(operator).tolist(), strict=True
    ):
        assert scale == pytest.approx(float(drawn[:, v].sum() / (drawn[:, u] * drawn[:, v]).sum()))
    ratio = designs[1].scales(operator) / designs[0].scales(operator)
    assert 0 < float((ratio - 1).abs().max()) < 0.1
    verdict = check_claim("sampling/unbiased-aggregation", problem, UniformNodes(4, 1), rough)
    assert verdict.outcome is Outcome.REFUTED
    assert verdict.case.normalisation == "estimated from 4,000 subgraphs"


def test_bad_settings_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="nodes is 0"):
        GraphSAINTNode(nodes=0)
    with pytest.raises(UnknownNameError, match="constants"):
        GraphSAINTEdge(constants="estimate")
    graph = path_graph(3, edge_index=torch.zeros(2, 0, dtype=torch.int64))
    problem, estimator = model_of(graph), GraphSAINTEdge()
    law = estimator.sampling(problem, estimator.init(problem), UniformNodes(3, 1))
    with pytest.raises(InvalidInputError, match="no edge between two nodes"):
        law.draw(np.random.default_rng(0))


@given(length=st.integers(1, 3))
@settings(max_examples=3)
def test_walks_stay_where_nothing_arrives(length: int) -> None:
    graph = path_graph(3, edge_index=torch.zeros(2, 0, dtype=torch.int64))
    walk = GraphSAINTWalk(roots=1, length=length)
    assert {frozenset({0}), frozenset({1}), frozenset({2})} == set(walk.atoms(graph).distribution())
