"""Node-wise samplers follow their definitions: which messages a row keeps, with which weights, what that implies."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from common import dense_sampling
from common.dense_sampling import Message
from common.helpers import assert_close, examples, expectation, from_oracle, oracle_problem, path_graph, relative_error
from hypothesis import assume, given
from hypothesis import strategies as st

from lmc_verify import (
    GAS,
    GCN,
    SAGE,
    Clusters,
    Graph,
    InvalidInputError,
    Partition,
    Problem,
    TrainingRun,
    UniformNodes,
    check_claim,
    exact_pass,
)
from lmc_verify.cases.case import assemble_case
from lmc_verify.claims import CLAIMS, Outcome
from lmc_verify.estimators import LABOR, VRGCN, NeighbourSampling, batch_distribution
from lmc_verify.estimators.samplers.neighbour import LaborLaw, NeighbourLaw
from lmc_verify.estimators.samplers.sampled_design import SampledDesign
from lmc_verify.testing import graphs, problems, seeds

LAWS = {
    "neighbour": (NeighbourLaw, dense_sampling.neighbour_law),
    "labor": (LaborLaw, dense_sampling.labor_law),
    "labor-1": (partial(LaborLaw, rounds=1), partial(dense_sampling.labor_law, rounds=1)),
    "labor-3": (partial(LaborLaw, rounds=3), partial(dense_sampling.labor_law, rounds=3)),
}


def messages_of(graph: Graph, kind: str) -> list[Message]:
    """Return the entries of an operator one by one."""
    csr = graph.operator(kind).csr
    return list(zip(csr.row.tolist(), csr.col.tolist(), csr.value.tolist(), strict=True))


@pytest.mark.parametrize("name", LAWS)
@examples(25)
@given(
    graph=graphs(max_nodes=4, max_edges=6),
    fan_out=st.integers(1, 3),
    kind=st.sampled_from(["gcn", "mean", "sum"]),
)
def test_the_law_is_the_definition_s(name: str, graph: Graph, fan_out: int, kind: str) -> None:
    make, dense = LAWS[name]
    operator, n = graph.operator(kind), graph.num_nodes
    law, rows = make(fan_out), torch.arange(n)
    assume(law.count(operator, rows) <= 2000)

    def key(matrix: np.ndarray) -> tuple:
        return tuple(matrix.round(9).ravel() + 0.0)

    wanted: dict[tuple, float] = {}
    for matrix, probability in dense(messages_of(graph, kind), n, fan_out):
        wanted[key(matrix)] = wanted.get(key(matrix), 0.0) + probability
    got: dict[tuple, float] = {}
    outcomes = 0
    for kept, probability in law.enumerate(operator, rows):
        matrix = np.zeros((n, n))
        sources = operator.csr.col[kept.entry]
        np.add.at(
            matrix, (kept.position.numpy(), sources.numpy()), (operator.csr.value[kept.entry] * kept.scale).numpy()
        )
        assert torch.equal(operator.csr.row[kept.entry], rows[kept.position])
        got[key(matrix)] = got.get(key(matrix), 0.0) + probability
        outcomes += 1
    assert outcomes == law.count(operator, rows)
    assert got.keys() == wanted.keys()
    assert_close("probabilities", [got[k] for k in wanted], list(wanted.values()))


@pytest.mark.slow
@given(
    problem=problems(
        graphs(max_nodes=3, max_edges=4, multi_label=False),
        kinds=("gcn",),
        min_layers=2,
        max_layers=2,
        aggregate_linear=True,
        plain=True,
    )
)
def test_the_mean_estimate_is_the_mean_over_independent_layers(problem: Problem) -> None:
    """The oracle samples every row of every layer; rows that no one needs make no difference."""
    n, dense = problem.graph.num_nodes, oracle_problem(problem)
    law = [*dense_sampling.neighbour_law(messages_of(problem.graph, "gcn"), n, 1)]
    assume(len(law) <= 20)
    mean: dict[str, np.ndarray] = {}
    for first, p in law:
        for second, q in law:
            _, gradient = dense_sampling.gradient(dense, [first, second], np.ones(n))
            for name, value in from_oracle(gradient).items():
                mean[name] = mean.get(name, 0.0) + p * q * value
    estimator = NeighbourSampling(fan_out=1)
    state = estimator.init(problem)
    design = batch_distribution(estimator, problem, state, UniformNodes(n, n))
    got = expectation(design, lambda batch: estimator.estimate(problem, state, batch).gradient)
    for name, value in mean.items():
        assert_close(name, got[name], value, rtol=1e-9)


@given(graph=graphs(max_nodes=6, max_edges=14), fan_out=st.integers(1, 4), seed=seeds())
def test_draws_keep_the_fan_out_of_every_row(graph: Graph, fan_out: int, seed: int) -> None:
    operator, rows = graph.operator("sum"), torch.arange(graph.num_nodes)
    kept = NeighbourLaw(fan_out).draw(operator, rows, torch.Generator().manual_seed(seed))
    taken = torch.bincount(kept.position, minlength=graph.num_nodes)
    assert torch.equal(taken, operator.in_degree.clamp(max=fan_out))
    assert torch.unique(kept.entry).numel() == kept.entry.numel()
    degree = operator.in_degree.double()
    assert_close("scale", kept.scale, (degree / degree.clamp(max=fan_out).clamp(min=1))[kept.position])
    shared = LaborLaw(fan_out).draw(operator, rows, torch.Generator().manual_seed(seed))
    for source in torch.unique(operator.csr.col).tolist():
        # Of a source's destinations those with the fewest messages keep it first.
        own = [e for e in range(operator.csr.num_entries) if int(operator.csr.col[e]) == source]
        inside = {e for e in own if e in set(shared.entry.tolist())}
        degree = {e: int(operator.in_degree[operator.csr.row[e]]) for e in own}
        assert all(degree[a] <= degree[b] for a in inside for b in own if b not in inside)


@given(
    graph=graphs(max_nodes=8, max_edges=30),
    fan_out=st.integers(1, 4),
    rounds=st.integers(1, 5),
    kind=st.sampled_from(["gcn", "sum"]),
    data=st.data(),
)
def test_rounds_of_labor_keep_row_sums_and_need_fewer_sources(
    graph: Graph, fan_out: int, rounds: int, kind: str, data: st.DataObject
) -> None:
    operator, n = graph.operator(kind), graph.num_nodes
    rows = torch.tensor(sorted(data.draw(st.sets(st.integers(0, n - 1), min_size=1))))
    degree = (operator.csr.rowptr[rows + 1] - operator.csr.rowptr[rows]).double()
    wanted = torch.where(degree > fan_out, degree**2 / fan_out, degree)
    needed = []
    for number in range(rounds + 1):
        law = LaborLaw(fan_out, number)
        position, entry, sources, slot = law._entries(operator, rows)
        limits = law._limits(operator, rows, position, slot, sources.numel())
        assert bool(((limits > 0) & (limits <= 1)).all())
        sums = torch.zeros(rows.numel(), dtype=torch.float64).index_add_(0, position, limits.reciprocal())
        assert_close("sum of 1/p by row", sums, wanted, rtol=1e-12)
        assert bool((limits.reciprocal() <= law.largest_scale(operator)[entry] * (1 + 1e-12)).all())
        largest = [float(limits[slot == source].max()) for source in range(sources.numel())]
        needed.append(sum(largest))
    assert all(after <= before * (1 + 1e-12) for before, after in pairwise(needed)), needed


def test_one_round_of_labor_by_hand() -> None:
    """Row 0 has the sources 2 3, row 1 the sources 2 4 5 6, and each keeps one of them on average.

    LABOR-0: p = 1/2 and 1/4, so 1/2 + 1/2 + 3/4 sources. Then pi = 1/2 for 2 and 3, 1/4 for the others; in row 1
    ``(2 + 3 * 4) / c = 16``: the common source has 7/16 there, which row 0 takes with 1/2 anyway, the others 7/32.
    """
    edges = torch.tensor([[2, 0], [3, 0], [2, 1], [4, 1], [5, 1], [6, 1]]).T
    operator, rows = path_graph(7, edge_index=edges).operator("sum"), torch.tensor([0, 1])
    wanted = {0: [1 / 2, 1 / 2, 1 / 4, 1 / 4, 1 / 4, 1 / 4], 1: [1 / 2, 1 / 2, 7 / 16, 7 / 32, 7 / 32, 7 / 32]}
    for rounds, limits in wanted.items():
        kept = [(k, p) for k, p in LaborLaw(1, rounds).enumerate(operator, rows)]
        chance = torch.zeros(6, dtype=torch.float64)
        for outcome, probability in kept:
            chance[outcome.entry] += probability
            assert_close("weights", outcome.scale, 1 / torch.tensor(limits, dtype=torch.float64)[outcome.entry])
        assert_close("probabilities", chance, limits)
    graph = path_graph(7, edge_index=edges, y=torch.tensor([0, 1, 2, 0, 1, 2, 0]))
    problem = Problem(graph, SAGE(3, 3, 3, 1, dtype=torch.float64).eval())
    pair = Clusters(Partition(torch.tensor([0, 0, 1, 1, 1, 1, 1])), 1)
    for rounds, sources in ((0, 1.75), (1, 1.65625)):
        verdict = check_claim("labor/fewer-vertices", problem, pair, LABOR(fan_out=1, rounds=rounds))
        assert verdict.outcome is Outcome.EXACT
        found = {item.quantity: item.value for item in verdict.evidence}
        assert found["distinct sources, labor"] == pytest.approx(sources / 2)  # the other cluster has no messages


def tiny(layers: int = 2) -> Problem:
    graph = path_graph(4, y=torch.tensor([0, 1, 0, 1]))
    return Problem(graph, GCN(3, 3, 2, layers, seed=1, dtype=torch.float64).eval())


BATCHES = UniformNodes(4, 1)
VERDICTS = [
    ("theorem-1/unbiased", NeighbourSampling(fan_out=1), "exact", Outcome.REFUTED),
    pytest.param("theorem-1/unbiased", LABOR(fan_out=1), "exact", Outcome.REFUTED, marks=pytest.mark.slow),
    ("theorem-1/unbiased", VRGCN(fan_out=1), "exact", Outcome.EXACT),
    ("theorem-1/unbiased", VRGCN(fan_out=1), "zero", Outcome.REFUTED),
    pytest.param("theorem-1/unbiased", NeighbourSampling(fan_out=3), "exact", Outcome.EXACT, marks=pytest.mark.slow),
    ("sampling/unbiased-without-nonlinearity", NeighbourSampling(fan_out=1), "exact", Outcome.EXACT),
    pytest.param(
        "sampling/unbiased-without-nonlinearity", LABOR(fan_out=1), "exact", Outcome.EXACT, marks=pytest.mark.slow
    ),
    pytest.param(
        "sampling/unbiased-without-nonlinearity", VRGCN(fan_out=1), "zero", Outcome.EXACT, marks=pytest.mark.slow
    ),
    ("sampling/unbiased-aggregation", NeighbourSampling(fan_out=1), "exact", Outcome.EXACT),
    pytest.param("sampling/unbiased-aggregation", VRGCN(fan_out=1), "zero", Outcome.EXACT, marks=pytest.mark.slow),
    ("sampling/unbiased-aggregation", LABOR(fan_out=1), "exact", Outcome.EXACT),
    ("sampling/error-below-baseline", VRGCN(fan_out=1), "exact", Outcome.SUPPORTED),
    ("sampling/error-below-baseline", NeighbourSampling(fan_out=1), "exact", Outcome.NOT_APPLICABLE),
    ("labor/fewer-vertices", LABOR(fan_out=1), "exact", Outcome.EXACT),
    ("labor/fewer-vertices", LABOR(fan_out=1, rounds=2), "exact", Outcome.EXACT),
    pytest.param(
        "sampling/unbiased-aggregation", LABOR(fan_out=1, rounds=2), "exact", Outcome.EXACT, marks=pytest.mark.slow
    ),
    ("labor/fewer-vertices", VRGCN(fan_out=1), "exact", Outcome.NOT_APPLICABLE),
    ("e7/reductions", VRGCN(fan_out=1), "exact", Outcome.NOT_APPLICABLE),
    ("e8/bias-and-variance", NeighbourSampling(fan_out=1), "exact", Outcome.EXACT),
]


@pytest.mark.parametrize(("claim", "estimator", "start", "outcome"), VERDICTS, ids=lambda value: str(value))
def test_verdicts_are_those_of_theory(claim: str, estimator: NeighbourSampling, start: str, outcome: Outcome) -> None:
    problem = tiny()
    verdict = check_claim(claim, problem, BATCHES, estimator, histories=start)
    assert verdict.outcome is outcome, verdict.summary
    expected = CLAIMS[claim].expect(assemble_case(problem, BATCHES, estimator, histories=start))
    assert expected.outcome in (outcome, None), expected.reason


def test_a_broken_weight_is_caught() -> None:
    class Unweighted(NeighbourLaw):
        def _kept(self, degree, position, entry):  # type: ignore[no-untyped-def]
            kept = super()._kept(degree, position, entry)
            return kept._replace(scale=torch.ones_like(kept.scale))

    class Broken(NeighbourSampling):
        def laws(self, problem: Problem) -> tuple[NeighbourLaw, ...]:
            return tuple(Unweighted(1) for _ in range(problem.num_layers))

    for claim in ("sampling/unbiased-aggregation", "sampling/unbiased-without-nonlinearity"):
        verdict = check_claim(claim, tiny(), BATCHES, Broken(fan_out=1))
        assert verdict.outcome is Outcome.REFUTED, verdict.summary


def test_histories_settle_in_training_and_bias_vanishes() -> None:
    problem = tiny(3)
    run = TrainingRun(problem, VRGCN(fan_out=1), UniformNodes(4, 4), step_size=0.0, generator=np.random.default_rng(0))
    exact = exact_pass(problem)
    for _ in range(40):
        run.step()
    for layer, table in run.state.embeddings.items():
        assert_close(f"H^{layer}", table, exact.embeddings[layer])
    assert isinstance(run.design, SampledDesign)
    batch = run.draw()
    estimate = run.estimator.estimate(run.problem, run.state, batch)
    assert estimate.loss == pytest.approx(exact.loss)
    assert relative_error(estimate.gradient, exact.gradient) > 0.01  # the backward pass is still sampled


@pytest.mark.parametrize(
    ("value", "message"), [(0, "fan_out is 0"), ((2, 0), "fan_out"), (1.5, "fan_out is 1.5"), ((), "fan_out")]
)
def test_bad_fan_outs_are_refused(value: object, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        NeighbourSampling(fan_out=value)  # type: ignore[arg-type]  # what is tested


@pytest.mark.parametrize("value", [-1, 0.5, True])
def test_bad_rounds_are_refused(value: object) -> None:
    with pytest.raises(InvalidInputError, match=f"rounds is {value}, it must be a whole number of at least 0"):
        LABOR(rounds=value)  # type: ignore[arg-type]  # what is tested


def test_only_laws_with_samples_are_unwrapped() -> None:
    """A user's own design may have a `base` as well."""

    class Restricted(UniformNodes):
        base = UniformNodes(4, 4)

    own, problem = Restricted(4, 1), tiny()
    case = assemble_case(problem, own, NeighbourSampling(fan_out=1))
    assert case.base_design is own
    assert isinstance(case.design, SampledDesign)
    assert replace(case, estimator=GAS()).design is own
    assert replace(case, estimator=VRGCN(fan_out=1)).base_design is own


def test_fan_outs_by_layer() -> None:
    assert NeighbourSampling(fan_out=[2, 1]) == NeighbourSampling(fan_out=(2, 1))  # type: ignore[arg-type]  # from TOML
    problem = tiny(2)
    estimator = NeighbourSampling(fan_out=(3, 1))
    law = batch_distribution(estimator, problem, estimator.init(problem), BATCHES)
    batch = law.draw(np.random.default_rng(0))
    assert batch.sample is not None
    assert batch.sample.layers[1].entry.numel() == 1
    with pytest.raises(InvalidInputError, match="fan_out has 3 values, the model has 2 layers"):
        NeighbourSampling(fan_out=(1, 1, 1)).sampling(problem, estimator.init(problem), BATCHES)
