"""FastGCN and LADIES as in public code: distributions are that code's, and biases are refuted with their size."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
import torch
from common import dense_sampling
from common.helpers import assert_close, examples, oracle_problem, path_graph
from common.sampler_cases import SMALL, tiny
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from lmc_verify import (
    GCN,
    Clusters,
    Graph,
    InvalidInputError,
    Partition,
    Problem,
    UniformNodes,
    UnknownNameError,
    check_claim,
    load_graph,
)
from lmc_verify.cases.case import assemble_case
from lmc_verify.claims import CLAIMS, Outcome
from lmc_verify.estimators import (
    LADIES,
    FastGCN,
    FastGCNPublished,
    History,
    LADIESPublished,
    Sampled,
    batch_distribution,
)
from lmc_verify.estimators.samplers import published
from lmc_verify.estimators.samplers.laws import draw_distinct, successive_probabilities
from lmc_verify.estimators.samplers.published import DistinctLaw, NormalisedFastLaw, NormalisedLadiesLaw, SourcesLaw
from lmc_verify.testing import graphs

AGGREGATION = CLAIMS["sampling/unbiased-aggregation"]
CODE = {"ladies": LADIESPublished, "fastgcn of ladies": FastGCNPublished, "fastgcn": FastGCNPublished}


def build(code: str, nodes: int | tuple[int, ...]) -> Sampled:
    return FastGCNPublished(nodes, code="fastgcn") if code == "fastgcn" else CODE[code](nodes)


def law_of(code: str, nodes: int, batch: list[int]) -> DistinctLaw:
    if code == "ladies":
        return NormalisedLadiesLaw(nodes).for_batch(torch.tensor(batch))
    return SourcesLaw(nodes) if code == "fastgcn" else NormalisedFastLaw(nodes)


def gathered(pairs: Iterable[tuple[Any, float]]) -> dict[bytes, float]:
    """Return the probability of every dense operator, or list of them."""
    out: dict[bytes, float] = defaultdict(float)
    for operators, probability in pairs:
        out[(np.round(np.array(operators), 9) + 0.0).tobytes()] += probability
    return {key: value for key, value in out.items() if value > 0}


def assert_same_law(got: dict[bytes, float], want: dict[bytes, float]) -> None:
    assert got.keys() == want.keys()
    assert_close("probabilities", [got[key] for key in want], list(want.values()), rtol=1e-12)


# --- one layer -------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", CODE)
@examples(40)
@given(data=st.data(), graph=graphs(max_nodes=4, max_edges=8), kind=st.sampled_from(["gcn", "mean", "sum"]))
def test_laws_are_those_of_the_code(code: str, data: st.DataObject, graph: Graph, kind: str) -> None:
    n, nodes = graph.num_nodes, data.draw(st.integers(1, 3))
    rows = sorted(data.draw(st.sets(st.integers(0, n - 1), min_size=1)))
    batch = sorted(data.draw(st.sets(st.sampled_from(rows), min_size=1)))
    operator, index = graph.operator(kind), torch.tensor(rows)
    dense, squares = np.zeros((2, n, n))
    entries = zip(*(part.tolist() for part in (operator.csr.row, operator.csr.col, operator.csr.value)), strict=True)
    for i, j, value in entries:
        dense[i, j] += value
        squares[i, j] += value**2
    law, pairs = law_of(code, nodes, batch), []
    for kept, probability in law.enumerate(operator, index):
        sampled = np.zeros((n, n))
        assert torch.equal(index[kept.position], operator.csr.row[kept.entry])
        assert bool((kept.scale <= law.largest_scale(operator)[kept.entry] * (1 + 1e-9)).all())
        for entry, scale in zip(kept.entry.tolist(), kept.scale.tolist(), strict=True):
            place = int(operator.csr.row[entry]), int(operator.csr.col[entry])
            sampled[place] += float(operator.csr.value[entry]) * scale
        pairs.append((sampled, probability))
    assert len(pairs) == law.count(operator, index)
    want = gathered(dense_sampling.published_law(dense, squares, rows, batch, nodes, code))
    assert_same_law(gathered(pairs), want)


def test_indices_are_drawn_one_after_another() -> None:
    weights = np.array([0.1, 0.4, 0.0, 0.2, 0.3])
    want: dict[frozenset[int], float] = defaultdict(float)
    for order, probability in dense_sampling.successive_draws(weights, 3):
        want[frozenset(order)] += probability
    got = dict(successive_probabilities(weights[weights > 0].tolist(), 3))
    place = np.flatnonzero(weights)
    assert {frozenset(place[list(key)].tolist()): value for key, value in got.items()} == pytest.approx(dict(want))
    # Both are the law of numpy.random.Generator.choice, which the code uses; a false alarm has probability 1e-6.
    rng, source, draws = np.random.default_rng(0), torch.Generator().manual_seed(0), 4000
    for draw in (
        lambda: rng.choice(5, 3, replace=False, p=weights).tolist(),
        lambda: draw_distinct(torch.from_numpy(weights), 3, source).tolist(),
    ):
        seen: dict[frozenset[int], int] = defaultdict(int)
        for _ in range(draws):
            seen[frozenset(draw())] += 1
        assert set(seen) <= set(want)
        assert chisquare([seen[key] for key in want], [draws * want[key] for key in want]).pvalue > 1e-6
    assert draw_distinct(torch.from_numpy(weights), 9, source).tolist() == [0, 1, 3, 4]
    assert draw_distinct(torch.zeros(3).double(), 2, source).numel() == 0


# --- all layers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", CODE)
@pytest.mark.parametrize("nodes", [(1, 2), (2, 1)])
def test_passes_are_those_of_the_code(code: str, nodes: tuple[int, int]) -> None:
    edges = torch.tensor([[0, 1, 1, 2, 2, 3, 3, 0], [1, 0, 2, 1, 3, 2, 1, 2]])
    problem = tiny(2, edge_index=edges)
    design, operator = UniformNodes(4, 2), oracle_problem(problem).A
    got, want = [], []
    law = batch_distribution(build(code, nodes), problem, History(), design)
    outcomes = 0
    for batch, probability in law.enumerate():
        outcomes += 1
        dense = np.zeros((2, 4, 4))
        for layer, own in enumerate(batch.sample.layers):
            csr = problem.graph.operator("gcn").csr
            for position, entry, scale in zip(own.position, own.entry, own.scale, strict=True):
                dense[layer, int(own.rows[position]), int(csr.col[entry])] += float(csr.value[entry] * scale)
        got.append((dense, probability))
    for batch, share in design.enumerate():
        for operators, probability in dense_sampling.published_passes(
            operator, batch.nodes.tolist(), list(nodes), code
        ):
            want.append((operators, share * probability))
    assert outcomes == law.support_size
    assert_same_law(gathered(got), gathered(want))


def test_samples_are_counted_for_each_batch_apart() -> None:
    """Batches of one node and of two may need the same rows below, where different nodes are then added."""
    problem = Problem(path_graph(4), GCN(3, 3, 3, 2, dtype=torch.float64).eval())
    design = Clusters(Partition.from_clusters([[1], [0, 2], [3]]), 1)
    law = batch_distribution(LADIESPublished((1, 2)), problem, History(), design)
    assert law.support_size == sum(1 for _ in law.enumerate())


def test_the_batch_is_in_every_layer_of_ladies() -> None:
    problem = Problem(path_graph(9), GCN(3, 3, 3, 3, dtype=torch.float64).eval())
    law = batch_distribution(LADIESPublished(1), problem, History(), UniformNodes(9, 2))
    for seed in range(10):
        batch = law.draw(np.random.default_rng(seed))
        assert all(bool(torch.isin(batch.nodes, own.columns).all()) for own in batch.sample.layers)


# --- claims ----------------------------------------------------------------------------------------


def karate() -> Problem:
    graph = load_graph("karate").double()
    return Problem(graph, GCN(graph.num_features, 3, graph.num_outputs, 1, dtype=torch.float64).eval())


def bias_of(problem: Problem, design: UniformNodes, code: str, nodes: int) -> float:
    """Return the operator's bias in units of the operator, by the dense oracle, one layer."""
    operator = oracle_problem(problem).A
    off = whole = 0.0
    for batch, share in design.enumerate():
        rows = batch.nodes.tolist()
        mean = sum(
            probability * sampled
            for sampled, probability in dense_sampling.published_law(operator, operator**2, rows, rows, nodes, code)
        )
        off += share * float(np.linalg.norm(mean[rows] - operator[rows]))
        whole += share * float(np.linalg.norm(operator[rows]))
    return off / whole


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "low", "high"), [("ladies", 0.6, 0.7), ("fastgcn of ladies", 0.7, 0.8), ("fastgcn", 6, 7)]
)
def test_published_code_is_refuted_with_the_size_of_its_bias(code: str, low: float, high: float) -> None:
    """The theory's versions, with as many draws, are exact on the same case."""
    problem, design = karate(), UniformNodes(34, 1)
    verdict = AGGREGATION.check(assemble_case(problem, design, build(code, 2)))
    assert verdict.outcome is Outcome.REFUTED
    (size,) = (item.value for item in verdict.evidence if item.group == "bias of the operator")
    assert size == pytest.approx(bias_of(problem, design, code, 2), rel=1e-9)
    assert low < size < high
    assert f"off by {size:.2g} of the operator" in verdict.summary
    for sound in (FastGCN(2), LADIES(2)):
        assert AGGREGATION.check(assemble_case(problem, design, sound)).outcome is Outcome.EXACT


@pytest.mark.parametrize("code", CODE)
def test_expectations_follow_from_row_sums(code: str) -> None:
    """Refuted where a row sums to more than 1; on a ring every row sums to 1, and symmetry may make the mean right."""
    found = AGGREGATION.expect(assemble_case(karate(), UniformNodes(34, 1), build(code, 2)))
    assert found.outcome is (None if code == "fastgcn" else Outcome.REFUTED)
    assert "without replacement" in found.reason
    graph = load_graph("ring", num_nodes=4).double()
    ring = Problem(graph, GCN(graph.num_features, 3, graph.num_outputs, 1, dtype=torch.float64).eval(), "bce")
    case = assemble_case(ring, SMALL, build(code, 2))
    assert AGGREGATION.expect(case).outcome is None
    wanted = Outcome.EXACT if code == "fastgcn of ladies" else Outcome.REFUTED
    assert AGGREGATION.check(case).outcome is wanted
    assert CLAIMS["sampling/unbiased-without-nonlinearity"].expect(case).outcome is None


@pytest.mark.slow
@pytest.mark.parametrize("code", CODE)
def test_the_gradient_is_biased_even_without_nonlinearity(code: str) -> None:
    found = check_claim("sampling/unbiased-without-nonlinearity", karate(), UniformNodes(34, 1), build(code, 2))
    assert found.outcome is Outcome.REFUTED


# --- misuse ----------------------------------------------------------------------------------------


def test_bad_settings_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="unknown code 'ladis': did you mean 'ladies'"):
        FastGCNPublished(2, code="ladis")
    with pytest.raises(InvalidInputError, match="nodes"):
        LADIESPublished(0)
    graph = path_graph(4, edge_weight=torch.tensor([1.0, -0.5, 1, 1, 1, 1], dtype=torch.float64))
    problem = Problem(graph, GCN(3, 3, 3, 2, dtype=torch.float64).eval())
    for estimator in (FastGCNPublished(2), LADIESPublished(2)):
        with pytest.raises(InvalidInputError, match=r"layer 1 has a message of weight -0\.\d+, .* use .* 'ladies'"):
            batch_distribution(estimator, problem, History(), SMALL)
    batch_distribution(FastGCNPublished(2, code="fastgcn"), problem, History(), SMALL)


def test_a_support_that_is_too_large_is_not_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    operator, rows = karate().graph.operator("gcn"), torch.arange(3)
    monkeypatch.setattr(published, "successive_probabilities", None)
    assert NormalisedFastLaw(8).count(operator, rows) == 18_156_204
