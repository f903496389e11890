"""GraphSAINT by PyTorch Geometric's convention is what its loaders do: against their own code, and by definition.

The loaders need torch-sparse, which has no wheel for current PyTorch; `Adjacency` offers the few methods of its
`SparseTensor` that they call, and everything else that runs is theirs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from common.helpers import assert_close, examples, path_graph
from hypothesis import assume, given
from scipy.stats import chisquare
from torch_geometric.data import Data
from torch_geometric.loader import graph_saint

from lmc_verify import GCN, Graph, InvalidInputError, Problem, UniformNodes, UnknownNameError, load_graph
from lmc_verify.cases.case import assemble_case
from lmc_verify.claims import CLAIMS, Outcome
from lmc_verify.estimators import GraphSAINTEdge, GraphSAINTNode, GraphSAINTWalk, History
from lmc_verify.estimators.samplers.saint import GraphSAINT, Subgraphs
from lmc_verify.testing import graphs

NODE, EDGE = GraphSAINTNode(2, convention="pyg"), GraphSAINTEdge(2, convention="pyg")
WALK = GraphSAINTWalk(2, 2, convention="pyg")
EVERY = pytest.mark.parametrize("estimator", [NODE, EDGE, WALK], ids=lambda estimator: estimator.name)
LOADERS = {
    "graphsaint-node": (graph_saint.GraphSAINTNodeSampler, {}),
    "graphsaint-edge": (graph_saint.GraphSAINTEdgeSampler, {}),
    "graphsaint-walk": (graph_saint.GraphSAINTRandomWalkSampler, {"walk_length": 2}),
}
AGGREGATION = CLAIMS["sampling/unbiased-aggregation"]


def problem_of(graph: Graph, layers: int = 1) -> Problem:
    classes = max(2, graph.num_outputs)
    return Problem(graph, GCN(graph.num_features, 3, classes, layers, seed=1, dtype=torch.float64).eval())


def design_of(estimator: GraphSAINT, problem: Problem) -> Subgraphs:
    return estimator.sampling(problem, History(), UniformNodes(problem.graph.num_nodes, 1))


def directed() -> Graph:
    """A directed graph with a self-loop, parallel edges, a node that nothing leaves and one that nothing enters."""
    edges = torch.tensor([[0, 1, 1, 2, 2, 2, 0, 3, 3], [1, 2, 2, 0, 2, 3, 4, 1, 4]])
    return path_graph(5, edge_index=edges)


# --- by definition ---------------------------------------------------------------------------------


def atoms(estimator: GraphSAINT, graph: Graph) -> Iterator[tuple[set[int], float]]:
    """Yield every atom with its probability, edge by edge and path by path."""
    edges = graph.edge_index.T.tolist()
    into = Counter(v for _, v in edges)
    out_of = Counter(u for u, _ in edges)
    if estimator.name == "graphsaint-node":
        yield from (({u}, 1 / len(edges)) for u, _ in edges)
    elif estimator.name == "graphsaint-edge":
        weights = [into[u] + out_of[v] + 1e-10 for u, v in edges]
        yield from (({u, v}, weight / sum(weights)) for (u, v), weight in zip(edges, weights, strict=True))
    else:
        walks = [([root], 1 / graph.num_nodes) for root in range(graph.num_nodes)]
        for _ in range(estimator.length):
            further = []
            for path, probability in walks:
                own = [v for u, v in edges if u == path[-1]] or [path[-1]]
                further += [([*path, v], probability / len(own)) for v in own]
            walks = further
        yield from ((set(path), probability) for path, probability in walks)


@EVERY
@examples(20)
@given(graph=graphs(max_nodes=4, max_edges=6, multi_label=False))
def test_sets_and_weights_are_the_definitions(estimator: GraphSAINT, graph: Graph) -> None:
    assume(graph.num_edges)
    design = design_of(estimator, problem_of(graph))
    sets: Counter[frozenset[int]] = Counter()
    for chosen in product(list(atoms(estimator, graph)), repeat=2):
        sets[frozenset().union(*(own for own, _ in chosen))] += float(np.prod([p for _, p in chosen]))  # type: ignore[assignment]
    got = {frozenset(batch.nodes.tolist()): probability for batch, probability in design.enumerate()}
    assert got.keys() == {own for own, p in sets.items() if p > 0}
    assert len(got) == design.support_size
    assert_close("sets", [sets[own] for own in got], list(got.values()))

    def together(*nodes: int) -> float:
        return sum(p for own, p in sets.items() if own.issuperset(nodes))

    inclusion = [together(v) for v in range(graph.num_nodes)]
    assert_close("inclusion", design.inclusion_probabilities(), inclusion)
    operator = graph.operator("gcn")
    for v, u, scale in zip(
        *(x.tolist() for x in (operator.csr.row, operator.csr.col, design.scales(operator))), strict=True
    ):
        if together(u, v) > 1e-9:
            assert scale == pytest.approx(together(u) / together(u, v), rel=1e-6)


# --- PyTorch Geometric's own code ------------------------------------------------------------------


class Adjacency:
    """What the loaders use of torch-sparse's `SparseTensor`: entries by row, those of a row in the order given."""

    def __init__(
        self, row: torch.Tensor, col: torch.Tensor, value: torch.Tensor, sparse_sizes: tuple[int, int]
    ) -> None:
        order = torch.argsort(row, stable=True)
        self._coo, self._n = (row[order], col[order], value[order]), sparse_sizes[0]

    @property
    def storage(self) -> Adjacency:
        return self

    def coo(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return self._coo

    def row(self) -> torch.Tensor:
        return self._coo[0]

    def value(self) -> torch.Tensor:
        return self._coo[2]

    def rowcount(self) -> torch.Tensor:
        return torch.bincount(self._coo[0], minlength=self._n)

    def colcount(self) -> torch.Tensor:
        return torch.bincount(self._coo[1], minlength=self._n)

    def saint_subgraph(self, nodes: torch.Tensor) -> tuple[Adjacency, torch.Tensor]:
        row, col, value = self._coo
        inside = (torch.isin(row, nodes) & torch.isin(col, nodes)).nonzero()[:, 0]
        place = torch.searchsorted(nodes, torch.stack([row[inside], col[inside]]))
        return Adjacency(place[0], place[1], value[inside], (len(nodes), len(nodes))), inside

    def random_walk(self, start: torch.Tensor, length: int) -> torch.Tensor:
        path = [start]
        for _ in range(length):
            following = []
            for here in path[-1].tolist():
                own = self._coo[1][self._coo[0] == here]
                following.append(int(own[torch.randint(len(own), ())]) if len(own) else here)
            path.append(torch.tensor(following))
        return torch.stack(path, dim=1)


def loader_of(name: str, graph: Graph, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> Any:
    monkeypatch.setattr(graph_saint, "SparseTensor", Adjacency)
    kind, settings = LOADERS[name]
    data = Data(edge_index=graph.edge_index, num_nodes=graph.num_nodes)
    return type(kind.__name__, (kind,), changes.pop("methods", {}))(
        data, **({"batch_size": 2, "log": False} | settings | changes)
    )


@pytest.mark.slow
@EVERY
def test_the_loaders_draw_what_is_enumerated(estimator: GraphSAINT, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pearson's test at 1e-6 with a fixed seed; the paper's probabilities are refuted by the same draws."""
    graph, draws = directed(), 3000
    loader = loader_of(estimator.name, graph, monkeypatch)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        seen = Counter(frozenset(loader[0][0].tolist()) for _ in range(draws))

    def p_value(made: GraphSAINT) -> float:
        law = {frozenset(b.nodes.tolist()): p for b, p in design_of(made, problem_of(graph)).enumerate() if p > 1e-6}
        if set(seen) - set(law):
            return 0.0
        cells = [(seen[key], draws * p) for key, p in law.items()]
        rare = [cell for cell in cells if cell[1] < 5]
        cells = [cell for cell in cells if cell[1] >= 5] + ([tuple(map(sum, zip(*rare, strict=True)))] if rare else [])
        return float(chisquare(*zip(*cells, strict=True), sum_check=False).pvalue)

    assert p_value(estimator) > 1e-6
    assert p_value(type(estimator)(*(value for _, value in estimator._sizes))) < 1e-6


@EVERY
def test_estimated_weights_are_those_of_the_loader(estimator: GraphSAINT, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its `_compute_norm`, on the subgraphs that the constants here are estimated from."""
    graph, presamples = directed(), 3
    sizes = [value for _, value in estimator._sizes]
    made = type(estimator)(*sizes, convention="pyg", constants="estimated", presamples=presamples, seed=1)
    problem = problem_of(graph)
    design = design_of(made, problem)
    subgraphs = [own.nonzero()[:, 0] for own in design._counts]
    waiting = iter(subgraphs)
    with torch.random.fork_rng(devices=[]):  # its DataLoader draws a seed
        loader = loader_of(
            estimator.name,
            graph,
            monkeypatch,
            num_steps=presamples,
            sample_coverage=0.1,  # one pass, over all of them
            methods={"_sample_nodes": lambda self, size: next(waiting)},
        )
    assert_close("node_norm", design.inclusion_probabilities().reciprocal() / 5, loader.node_norm, rtol=1e-6)
    norms = {
        edge: float(norm) for edge, norm in zip(map(tuple, graph.edge_index.T.tolist()), loader.edge_norm, strict=True)
    }
    operator = graph.operator("sum")
    seen = torch.unique(torch.cat(subgraphs)).tolist()
    for v, u, scale in zip(
        *(x.tolist() for x in (operator.csr.row, operator.csr.col, design.scales(operator))), strict=True
    ):
        if u != v or u in seen:
            assert scale == pytest.approx(norms[u, v], rel=1e-6), (u, v)
    if estimator.name == "graphsaint-node":  # of these some were never drawn, and some never with the row
        assert {0.1, 1e4} <= {round(norm, 3) for norm in norms.values()}


# --- claims ----------------------------------------------------------------------------------------


@EVERY
def test_weights_by_the_source_are_refuted(estimator: GraphSAINT) -> None:
    """On a path inner nodes are drawn more often; the mean weight of u -> v is P(u) / P(v)."""
    problem = problem_of(path_graph(4, y=torch.tensor([0, 1, 0, 1])))
    case = assemble_case(problem, UniformNodes(4, 1), estimator)
    verdict, theory = AGGREGATION.check(case), AGGREGATION.expect(case)
    assert verdict.outcome is theory.outcome is Outcome.REFUTED, verdict.summary
    assert "probability of their source" in theory.reason
    p, csr = design_of(estimator, problem).inclusion_probabilities(), problem.graph.operator("gcn").csr
    off = csr.value * (p[csr.col.long()] / p[csr.row] - 1) * p[csr.row]
    (size,) = (item.value for item in verdict.evidence if item.group == "bias of the operator")
    assert size == pytest.approx(float(off.norm() / (csr.value * p[csr.row]).norm()), rel=1e-9)
    paper = type(estimator)(*(value for _, value in estimator._sizes))
    assert AGGREGATION.check(assemble_case(problem, UniformNodes(4, 1), paper)).outcome is Outcome.EXACT
    assert CLAIMS["sampling/unbiased-without-nonlinearity"].expect(case).outcome is None


@EVERY
def test_where_all_nodes_are_alike_the_two_conventions_agree(estimator: GraphSAINT) -> None:
    graph = load_graph("ring", num_nodes=5).double()
    problem = Problem(graph, GCN(graph.num_features, 3, graph.num_outputs, 1, dtype=torch.float64).eval(), "bce")
    case = assemble_case(problem, UniformNodes(5, 1), estimator)
    assert AGGREGATION.check(case).outcome is AGGREGATION.expect(case).outcome is Outcome.EXACT


def test_bad_settings_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="unknown convention 'pygs': did you mean 'pyg'"):
        GraphSAINTNode(convention="pygs")
    problem = problem_of(path_graph(3, edge_index=torch.zeros(2, 0, dtype=torch.int64)))
    for estimator in (NODE, EDGE):
        with pytest.raises(InvalidInputError, match=r"has no edge, and convention 'pyg' draws .* 'paper'"):
            design_of(estimator, problem).draw(np.random.default_rng(0))
    assert design_of(WALK, problem).draw(np.random.default_rng(0)).size in (1, 2)
