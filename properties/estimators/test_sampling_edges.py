"""Samplers and their claims where something is extreme: maxima, tiny weights, numbers not finite, large counts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from common.helpers import assert_close, path_graph
from common.sampler_cases import SMALL, tiny
from scipy.stats import multinomial
from torch import nn
from torch_geometric.nn import GraphConv

from lmc_verify import (
    GCN,
    SAGE,
    Clusters,
    ConvLayer,
    History,
    InvalidInputError,
    LayeredModel,
    Partition,
    Problem,
    PyGConv,
    UniformNodes,
    check_claim,
    load_graph,
)
from lmc_verify.cases.case import assemble_case
from lmc_verify.claims import CLAIMS, Outcome
from lmc_verify.estimators import (
    ASGCN,
    LADIES,
    VRGCN,
    Estimate,
    GraphSAINTEdge,
    GraphSAINTNode,
    GraphSAINTWalk,
    ImportanceVRGCN,
    NeighbourSampling,
    batch_distribution,
)
from lmc_verify.estimators.samplers import laws, sampled_design
from lmc_verify.estimators.samplers import saint_atoms as atoms
from lmc_verify.estimators.samplers.importance import WeightedNodes
from lmc_verify.models.convs import initialise
from lmc_verify.seeds import torch_generator


def expected(claim: str, problem: Problem, estimator: Any, design: Any = SMALL) -> Outcome | None:
    return CLAIMS[claim].expect(assemble_case(problem, design, estimator)).outcome


@pytest.mark.parametrize("aggregation", ["max", "std"])
def test_maxima_and_deviations_are_no_weighted_sums(aggregation: str) -> None:
    """They are homogeneous: multiples of the values give multiples of the rows."""
    with torch.random.fork_rng(devices=[]):
        convs = [PyGConv(GraphConv(3, 3, aggr=aggregation).double()) for _ in range(2)]
    model = LayeredModel([ConvLayer(convs[0]), ConvLayer(convs[1], before=nn.Tanh())])
    initialise(model, torch_generator(0))
    problem = Problem(path_graph(4), model.eval())
    with pytest.raises(InvalidInputError, match="layer 1, 2 is no weighted sum of messages"):
        batch_distribution(VRGCN(), problem, VRGCN().init(problem), SMALL)
    for claim in ("sampling/unbiased-aggregation", "sampling/unbiased-without-nonlinearity"):
        assert check_claim(claim, problem, SMALL, NeighbourSampling(fan_out=1)).outcome is Outcome.NOT_APPLICABLE


def test_an_activation_behind_the_aggregate_is_seen_without_a_bias() -> None:
    problem = Problem(path_graph(4), GCN(3, 3, 3, 2, activation_cut="post", bias=False, dtype=torch.float64).eval())
    with pytest.raises(InvalidInputError, match="layer 1 is no weighted sum"):
        batch_distribution(VRGCN(), problem, VRGCN().init(problem), SMALL)


def test_nothing_is_expected_of_what_is_never_drawn() -> None:
    """One node a subgraph: no message is ever inside. An isolated node is in no subgraph of edges."""
    claim, control = "sampling/unbiased-aggregation", "sampling/unbiased-without-nonlinearity"
    for estimator in (GraphSAINTNode(nodes=1), GraphSAINTWalk(roots=1, length=1)):
        problem = tiny(1)
        found = expected(claim, problem, estimator), expected(control, problem, estimator)
        outcomes = [check_claim(name, problem, SMALL, estimator).outcome for name in (claim, control)]
        if isinstance(estimator, GraphSAINTNode):
            assert found == (None, None)
            assert outcomes == [Outcome.REFUTED, Outcome.REFUTED]
        else:
            assert found == (Outcome.EXACT, Outcome.EXACT)
            assert outcomes == [Outcome.EXACT, Outcome.EXACT]
    lonely = tiny(1, edge_index=torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]]))
    assert expected(control, lonely, GraphSAINTEdge(edges=2)) is None
    assert check_claim(control, lonely, SMALL, GraphSAINTEdge(edges=2)).outcome is Outcome.REFUTED
    mask = torch.tensor([True, True, True, False])
    unlabelled = tiny(1, edge_index=lonely.graph.edge_index, train_mask=mask)
    assert expected(control, unlabelled, GraphSAINTEdge(edges=2)) is Outcome.EXACT
    assert check_claim(control, unlabelled, SMALL, GraphSAINTEdge(edges=2)).outcome is Outcome.EXACT


@pytest.mark.parametrize("number", [3, 170, 171, 256, 1000, 3000])
def test_probabilities_of_many_draws(number: int) -> None:
    for chances in ([0.3, 0.7], [0.2, 0.5, 0.3]):
        times = [number // 3, *[0] * (len(chances) - 2), number - number // 3]
        found = laws.multinomial_probability(chances, times)
        assert found == pytest.approx(float(multinomial(number, chances).pmf(times)), rel=1e-9)


def test_many_draws_of_few_sources_can_be_enumerated() -> None:
    graph = path_graph(4, edge_index=torch.tensor([[0], [1]]))  # a self-loop is all that nodes 2 and 3 have
    problem = Problem(graph, GCN(3, 3, 3, 1, dtype=torch.float64).eval())
    law = batch_distribution(LADIES(nodes=256), problem, History(), UniformNodes(4, 1))
    assert law.support_size == 1 + 257 + 1 + 1
    assert sum(probability for _, probability in law.enumerate()) == pytest.approx(1)


def test_walks_are_followed_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = tiny()

    def scales() -> torch.Tensor:
        estimator = GraphSAINTWalk(roots=2, length=2)
        design = estimator.sampling(problem, History(), SMALL)
        return design.scales(problem.graph.operator("gcn"))

    whole = scales()
    monkeypatch.setattr(atoms, "WALK_MEMORY", 1)
    assert torch.equal(scales(), whole)


def test_a_large_support_is_not_counted_batch_by_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = load_graph("sbm", num_nodes=200).double()
    problem = Problem(graph, GCN(graph.num_features, 3, graph.num_outputs, 2, dtype=torch.float64).eval())
    asked = []
    bound = sampled_design.SampledDesign._bound
    monkeypatch.setattr(sampled_design.SampledDesign, "_bound", lambda self, rows: asked.append(1) or bound(self, rows))
    design = Clusters(Partition(torch.arange(200) // 2), 2)
    law = batch_distribution(NeighbourSampling(fan_out=2), problem, History(), design)
    assert law.support_size > 100_000
    assert len(asked) == 1


def test_a_batch_of_the_base_law_alone_is_refused() -> None:
    problem, estimator = tiny(), ImportanceVRGCN(size=2)
    design = WeightedNodes(SMALL, torch.full((4,), 0.25, dtype=torch.float64), 2)
    with pytest.raises(InvalidInputError, match="sample is of 0 layers and 0 rows, the problem has 2 layers"):
        estimator.estimate(problem, estimator.init(problem), design.draw(np.random.default_rng(0)))


def test_negative_weights_name_the_sampler() -> None:
    graph = path_graph(4, edge_weight=torch.full((6,), -3.0, dtype=torch.float64))
    problem = Problem(graph, SAGE(3, 3, 3, 2, dtype=torch.float64).eval())
    with pytest.raises(InvalidInputError, match=r"'graphsaint-node' draws nodes by the norms .* use 'graphsaint-edge'"):
        batch_distribution(GraphSAINTNode(), problem, History(), SMALL).draw(np.random.default_rng(0))


def test_vectors_move_with_the_state() -> None:
    problem = tiny()
    moved = ASGCN().init(problem).to("meta")
    assert {value.device.type for value in moved.vectors.values()} == {"meta"}
    assert_close("at home", ASGCN().init(problem).to("cpu").vectors["proposal"], torch.zeros(3, dtype=torch.float64))


@dataclass(frozen=True)
class Noisy(ASGCN):
    """Changes what it writes to the state by numbers of its own."""

    def estimate(self, problem: Problem, state: History, batch: Any) -> Estimate:
        made = super().estimate(problem, state, batch)
        noise = float(np.random.default_rng().random())
        writes = tuple(replace(write, values=write.values + noise) for write in made.writes)  # type: ignore[type-var]
        return replace(made, writes=writes)


def test_conformance_looks_at_vectors_that_are_written() -> None:
    from lmc_verify.testing import Status, check_estimator

    results = check_estimator(Noisy(), only=["estimate is deterministic"])
    assert {result.status for result in results} == {Status.FAILED}
    assert all("the vector proposal changed" in result.detail for result in results)
