"""Layer-wise samplers draw the nodes that their definitions say, and AS-GCN's proposal lowers the second moment."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from common.helpers import assert_close, examples, path_graph
from hypothesis import given
from hypothesis import strategies as st

from lmc_verify import GCN, Graph, History, InvalidInputError, Problem, TrainingRun, UniformNodes, check_claim
from lmc_verify.claims import Outcome
from lmc_verify.estimators import ASGCN, LADIES, FastGCN, Sampled, VectorWrite, batch_distribution
from lmc_verify.estimators.samplers.layerwise import FastLaw, LadiesLaw, NodesLaw, ProposalLaw
from lmc_verify.testing import graphs


def dense(graph: Graph, kind: str) -> np.ndarray:
    """Return ``sum |A_ij|^2`` and ``sum |A_ij|`` over parallel entries as matrices [2, n, n]."""
    csr, n = graph.operator(kind).csr, graph.num_nodes
    out = np.zeros((2, n, n))
    for i, j, value in zip(csr.row.tolist(), csr.col.tolist(), csr.value.tolist(), strict=True):
        out[0, i, j] += value**2
        out[1, i, j] += abs(value)
    return out


def wanted(law: NodesLaw, graph: Graph, kind: str, rows: list[int]) -> np.ndarray:
    """Return q from the definition."""
    squares, sizes = dense(graph, kind)
    if isinstance(law, FastLaw):
        weight = squares.sum(axis=0)
    elif isinstance(law, LadiesLaw):
        weight = squares[rows].sum(axis=0)
    else:
        assert isinstance(law, ProposalLaw)
        weight = sizes[rows].sum(axis=0) * law.importance.numpy()
    return weight / weight.sum() if weight.sum() else weight


@examples(30)
@given(data=st.data(), graph=graphs(max_nodes=4, max_edges=8), kind=st.sampled_from(["gcn", "mean", "sum"]))
def test_laws_are_the_definitions(data: st.DataObject, graph: Graph, kind: str) -> None:
    n, draws = graph.num_nodes, data.draw(st.integers(1, 3))
    rows = sorted(data.draw(st.sets(st.integers(0, n - 1), min_size=1)))
    importance = torch.linspace(0.5, 2, n, dtype=torch.float64)
    law = data.draw(st.sampled_from([FastLaw(draws), LadiesLaw(draws), ProposalLaw(draws, importance)]))
    operator, index = graph.operator(kind), torch.tensor(rows)
    q = wanted(law, graph, kind, rows)
    assert_close("q", law.probabilities(operator, index), q)
    # Every sequence of draws, one by one.
    expected: dict[tuple, float] = {}
    for sequence in product(range(n), repeat=draws) if q.any() else [()]:
        probability = float(np.prod(q[list(sequence)]))
        if probability == 0:
            continue
        kept = []
        for entry in range(operator.csr.num_entries):
            source = int(operator.csr.col[entry])
            if int(operator.csr.row[entry]) in rows and source in sequence:
                kept.append((entry, round(sequence.count(source) / (draws * q[source]), 8)))
        key = tuple(kept)
        expected[key] = expected.get(key, 0.0) + probability
    got: dict[tuple, float] = {}
    outcomes = 0
    for kept, probability in law.enumerate(operator, index):
        key = tuple(sorted((e, round(s, 8)) for e, s in zip(kept.entry.tolist(), kept.scale.tolist(), strict=True)))
        got[key] = got.get(key, 0.0) + probability
        outcomes += 1
        assert torch.equal(index[kept.position], operator.csr.row[kept.entry])
    assert outcomes == law.count(operator, index)
    assert got.keys() == expected.keys()
    assert_close("probabilities", [got[key] for key in expected], list(expected.values()))


def tiny(layers: int = 2) -> Problem:
    graph = path_graph(4, y=torch.tensor([0, 1, 0, 1]))
    return Problem(graph, GCN(3, 3, 2, layers, seed=1, dtype=torch.float64).eval())


VERDICTS = [
    ("theorem-1/unbiased", FastGCN(nodes=1), Outcome.REFUTED),
    pytest.param("theorem-1/unbiased", LADIES(nodes=1), Outcome.REFUTED, marks=pytest.mark.slow),
    pytest.param("theorem-1/unbiased", ASGCN(nodes=1), Outcome.REFUTED, marks=pytest.mark.slow),
    pytest.param("sampling/unbiased-aggregation", FastGCN(nodes=2), Outcome.EXACT, marks=pytest.mark.slow),
    ("sampling/unbiased-aggregation", LADIES(nodes=2), Outcome.EXACT),
    pytest.param("sampling/unbiased-aggregation", ASGCN(nodes=2), Outcome.EXACT, marks=pytest.mark.slow),
    pytest.param("sampling/unbiased-without-nonlinearity", FastGCN(nodes=1), Outcome.EXACT, marks=pytest.mark.slow),
    pytest.param("sampling/unbiased-without-nonlinearity", LADIES(nodes=1), Outcome.EXACT, marks=pytest.mark.slow),
    ("sampling/unbiased-without-nonlinearity", ASGCN(nodes=1), Outcome.EXACT),
    ("sampling/error-below-baseline", FastGCN(nodes=1), Outcome.NOT_APPLICABLE),
    ("sampling/error-below-baseline", LADIES(nodes=1), Outcome.SUPPORTED),
]


@pytest.mark.parametrize(("claim", "estimator", "outcome"), VERDICTS, ids=str)
def test_verdicts_are_those_of_theory(claim: str, estimator: Sampled, outcome: Outcome) -> None:
    verdict = check_claim(claim, tiny(), UniformNodes(4, 1), estimator)
    assert verdict.outcome is outcome, verdict.summary


def test_the_proposal_learns_to_find_large_embeddings() -> None:
    # Node 0 has large features: its messages make the second moment, which is lowest for q in proportion to the norms.
    x = torch.tensor([[4.0, 1.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0]], dtype=torch.float64)
    graph = path_graph(4, x=x, y=torch.tensor([0, 1, 0, 1]))
    problem = Problem(graph, GCN(2, 3, 2, 1, dtype=torch.float64).eval())
    estimator = ASGCN(nodes=2, proposal_step=0.05)
    run = TrainingRun(problem, estimator, UniformNodes(4, 4), step_size=0.0, generator=np.random.default_rng(0))

    def second_moment() -> float:
        operator, rows = graph.operator("gcn"), torch.arange(4)
        scores = (x @ run.state.vectors["proposal"]).exp()
        q = ProposalLaw(2, scores).probabilities(operator, rows).numpy()
        squares = dense(graph, "gcn")[0].sum(axis=0)
        return float((squares * (x**2).sum(dim=1).numpy() / q).sum())

    before = second_moment()
    for _ in range(60):
        run.step()
    assert second_moment() < 0.9 * before
    assert float(run.state.vectors["proposal"][0]) > 0


def test_a_step_of_zero_keeps_the_proposal() -> None:
    problem, estimator = tiny(), ASGCN(nodes=2, proposal_step=0.0)
    state = estimator.init(problem)
    batch = batch_distribution(estimator, problem, state, UniformNodes(4, 2)).draw(np.random.default_rng(0))
    (write,) = estimator.estimate(problem, state, batch).writes
    assert isinstance(write, VectorWrite)
    assert torch.equal(write.values, state.vectors["proposal"])
    with pytest.raises(InvalidInputError, match=r"cannot write .* 'proposal'.*no such vector"):
        History().apply([write])
    with pytest.raises(InvalidInputError, match=r"no proposal \[3\]"):
        estimator.sampling(problem, History(), UniformNodes(4, 2))
    with pytest.raises(InvalidInputError, match="proposal_step is -1"):
        ASGCN(proposal_step=-1)


def test_vectors_are_part_of_the_state() -> None:
    state = ASGCN().init(tiny())
    other = state.clone()
    assert state.equals(other)
    other.apply([VectorWrite("proposal", torch.ones(3, dtype=torch.float64))])
    assert not state.equals(other)
    assert not state.vectors["proposal"].any()
    assert state.num_bytes == 24
