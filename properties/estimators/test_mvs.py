"""MVS-GNN is the published method: one-shot Bernoulli batches by stale norms, histories elsewhere, checkpoints."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from common import oracles
from common.helpers import assert_close, assert_gradients, from_oracle, on_all_nodes, oracle_problem, path_graph
from hypothesis import given
from hypothesis import strategies as st

from lmc_verify import (
    GAT,
    GCN,
    MVS,
    SAGE,
    Batch,
    BatchDesign,
    History,
    InvalidInputError,
    Problem,
    TrainingRun,
    UniformNodes,
    check_claim,
    exact_pass,
)
from lmc_verify.cases import assemble_case
from lmc_verify.claims import CLAIMS, Outcome
from lmc_verify.estimators import HistoryWrite, Refresh, batch_distribution
from lmc_verify.estimators.samplers.gradient_norms import last_gradient_norms
from lmc_verify.estimators.samplers.mvs import AGE, NORMS, BernoulliNodes, minimal_variance
from lmc_verify.graphs import Sample
from lmc_verify.graphs.operators import LocalSet
from lmc_verify.testing import batches, graphs, histories, problems


def with_weights(batch: Batch) -> Batch:
    return replace(batch, sample=Sample((), batch.inclusion.reciprocal()))


@pytest.mark.slow
@given(data=st.data())
def test_gradient_loss_writes_and_norms_equal_the_oracle(data: st.DataObject) -> None:
    problem = data.draw(problems(graphs(min_nodes=3), kinds=("gcn",), plain=True, min_layers=2))
    batch, drawn = data.draw(batches(problem.graph)), data.draw(histories(problem))
    estimator = MVS()
    state = estimator.init(problem)
    before = state.vectors[NORMS].clone()
    for layer, table in state.embeddings.items():
        table.copy_(drawn.embeddings[layer])
    tables = {layer: table.numpy().copy() for layer, table in state.embeddings.items()}
    weights = on_all_nodes(problem.graph.num_nodes, batch, 1 / batch.inclusion)
    want, norms = oracles.mvs(oracle_problem(problem), tables, batch.nodes.numpy(), weights)

    got = estimator.estimate(problem, state, with_weights(batch))
    call = f"{estimator}.estimate({problem}, nodes={batch.nodes.tolist()})"
    assert_gradients(call, got.gradient, from_oracle(want.gradient))
    assert_close(f"{call}.loss", got.loss, want.loss)
    state.apply(got.writes)
    for layer, table in want.history_H.items():
        assert_close(f"{call}: history {layer}", state.embeddings[layer], table)
    before[batch.nodes] = torch.from_numpy(norms)
    assert_close(f"{call}: norms", state.vectors[NORMS], before)


@given(problem=problems(graphs(min_nodes=3), kinds=("gcn",), plain=True))
def test_the_state_begins_with_a_checkpoint(problem: Problem) -> None:
    state, exact, p = MVS().init(problem), exact_pass(problem), oracle_problem(problem)
    assert list(state.embeddings) == list(range(1, problem.num_layers))
    for layer, table in state.embeddings.items():
        assert_close(f"history {layer}", table, exact.embeddings[layer])
    everything = list(range(p.num_nodes))
    held = {layer: value.numpy() for layer, value in state.embeddings.items()}
    assert_close("norms", state.vectors[NORMS], oracles.mvs(p, held, everything, 1.0)[1])


@given(
    norms=st.lists(st.sampled_from([0.0, 0.1, 1.0, 1.0, 3.0, 50.0]), min_size=1, max_size=7),
    size=st.sampled_from([0.5, 1, 2, 2.5, 4, 9]),
)
def test_inclusion_probabilities_are_those_of_the_threshold(norms: list[float], size: float) -> None:
    got = minimal_variance(torch.tensor(norms, dtype=torch.float64), size)
    assert_close(f"p({norms}, {size})", got, oracles.mvs_inclusion(np.array(norms), size), rtol=1e-12)
    assert float(got.sum()) == pytest.approx(min(size, sum(norm > 0 for norm in norms)))


def test_they_minimise_the_variance() -> None:
    """Of ``sum g_i^2 / p_i`` among probabilities with one sum, any exchange between two nodes gives more."""
    g = torch.tensor([0.3, 1.0, 2.0, 9.0], dtype=torch.float64)
    p = minimal_variance(g, 2.0)
    assert float(p[3]) == 1
    least = float((g.square() / p).sum())
    for i in range(4):
        for j in range(4):
            other = p.clone()
            other[i] += 1e-3
            other[j] -= 1e-3
            if i != j and float(other.max()) <= 1:
                assert float((g.square() / other).sum()) > least


def tiny(kind: type = GCN, layers: int = 2, **settings: object) -> Problem:
    graph = path_graph(5, y=torch.tensor([0, 1, 0, 1, 0]), train_mask=torch.tensor([True, True, False, True, False]))
    return Problem(graph, kind(3, 3, 2, layers, seed=1, dtype=torch.float64, **settings).eval())


def test_batches_are_independent_draws_of_labelled_nodes() -> None:
    problem, estimator = tiny(), MVS(size=1.5)
    design = batch_distribution(estimator, problem, estimator.init(problem), UniformNodes(5, 1))
    p = design.inclusion_probabilities()
    assert (p > 0).tolist() == [True, True, False, True, False]
    assert float(p.sum()) == pytest.approx(1.5)
    assert design.support_size == 8
    total, nodes = 0.0, torch.zeros(5, dtype=torch.float64)
    for batch, probability in design.enumerate():
        weights = batch.sample.weights  # type: ignore[union-attr]  # MVS's own
        drawn = batch.nodes[weights > 0]
        inside = torch.zeros(5, dtype=torch.bool)
        inside[drawn] = True
        assert probability == pytest.approx(float(torch.where(inside, p, 1 - p).prod()))
        total += probability
        nodes[drawn] += probability * weights[weights > 0]
    assert total == pytest.approx(1)
    assert_close("E[1{j in B} / p_j]", nodes, np.array([1.0, 1.0, 0.0, 1.0, 0.0]))
    rng = np.random.default_rng(0)
    counts = torch.zeros(5)
    for _ in range(2000):
        batch = design.draw(rng)
        counts[batch.nodes[batch.sample.weights > 0]] += 1  # type: ignore[union-attr]
    # Deviations above 5 standard deviations have a probability below 1e-6; the generator is seeded.
    assert bool(((counts / 2000 - p).abs() <= 5 * (p * (1 - p) / 2000).sqrt() + 1e-12).all())


def test_an_empty_draw_contributes_nothing_and_counts() -> None:
    """Were it skipped, the mean of the last layer would be off by the probability of an empty batch."""
    problem, estimator = tiny(), MVS(size=1)
    state = estimator.init(problem)
    design = BernoulliNodes(UniformNodes(5, 1), torch.tensor([0.4, 0.0, 0.0, 0.2, 0.0], dtype=torch.float64))
    empty = [batch for batch, _ in design.enumerate() if not bool(batch.sample.weights.any())]  # type: ignore[union-attr]
    assert len(empty) == 1
    estimate = estimator.estimate(problem, state, empty[0])
    assert all(not value.any() for value in estimate.gradient.values())
    assert estimate.loss == 0
    assert not any(isinstance(write, HistoryWrite) for write in estimate.writes)
    state.apply(estimate.writes)
    assert float(state.vectors[AGE]) == 1


def test_a_checkpoint_comes_after_the_stated_number_of_steps() -> None:
    problem, estimator = tiny(), MVS(size=2, refresh=3)
    state = estimator.init(problem)
    with torch.no_grad():
        for parameter in problem.model.parameters():
            parameter.mul_(1.5)
    for step in range(4):
        design = batch_distribution(estimator, problem, state, UniformNodes(5, 1))
        fresh = minimal_variance(estimator.init(problem).vectors[NORMS], 2)
        agrees = bool(torch.allclose(design.inclusion_probabilities(), fresh))
        assert agrees == (step == 3), step
        batch = next(batch for batch, _ in design.enumerate() if bool(batch.sample.weights.any()))  # type: ignore[union-attr]
        estimate = estimator.estimate(problem, state, batch)
        assert any(isinstance(write, Refresh) for write in estimate.writes) == (step == 3)
        state.apply(estimate.writes)
        assert float(state.vectors[AGE]) == (step + 1 if step < 3 else 1)
    exact = exact_pass(problem)
    assert_close("H^1 after the checkpoint", state.embeddings[1], exact.embeddings[1])


def test_training_reads_stale_norms_and_histories() -> None:
    run = TrainingRun(
        tiny(), MVS(size=1.5, refresh=50), UniformNodes(5, 1), step_size=0.3, generator=np.random.default_rng(0)
    )
    before = run.state.vectors[NORMS].clone()
    for _ in range(6):
        run.step()
    after = run.state.vectors[NORMS]
    assert not torch.equal(before, after)
    assert not after[2]
    off = (run.state.embeddings[1] - exact_pass(run.problem).embeddings[1]).norm(dim=1)
    assert bool((off[[2, 4]] > 1e-6).all())  # never drawn, and stale


@pytest.mark.parametrize("head", [False, True])
@pytest.mark.parametrize("kind", [GCN, SAGE, GAT])
@pytest.mark.parametrize("residual", [False, True])
def test_norms_in_closed_form_are_those_of_autograd(kind: type, head: bool, residual: bool) -> None:
    problem = tiny(kind, head=head, residual=residual)
    frozen = (None, "weight", "bias")
    for part in frozen:
        for name, parameter in problem.model.named_parameters():
            parameter.requires_grad_(part is None or part not in name)
        problem = Problem(problem.graph, problem.model)
        exact, every = exact_pass(problem), torch.arange(5)
        operator = problem.model.layer(2).operator
        block = problem.graph.block(operator, every, LocalSet(every, 5))
        both = [
            last_gradient_norms(problem, every, exact.embeddings[1], exact.embeddings[0], block, closed=closed)
            for closed in (True, False)
        ]
        assert_close(f"{kind.__name__}, {part} frozen", both[0], both[1])
        assert not both[0][[2, 4]].any()
        assert int((both[0] > 0).sum()) >= 2  # a row of dead units may be the third


def test_a_head_with_a_hook_has_no_closed_form() -> None:
    problem = tiny(head=True)
    assert problem.model.head is not None
    problem.model.head.register_forward_hook(lambda module, args, out: out * out)
    problem = Problem(problem.graph, problem.model)
    exact, every = exact_pass(problem), torch.arange(5)
    block = problem.graph.block(problem.model.layer(2).operator, every, LocalSet(every, 5))
    given = (problem, every, exact.embeddings[1], exact.embeddings[0], block)
    both = [last_gradient_norms(*given, closed=closed) for closed in (True, False)]
    assert torch.equal(*both)


def test_where_the_last_layer_is_frozen_the_norm_is_of_the_embedding() -> None:
    problem = tiny()
    for parameter in problem.model.layer(2).parameters():
        parameter.requires_grad_(False)
    problem = Problem(problem.graph, problem.model)
    norms = MVS().init(problem).vectors[NORMS]
    assert_close("norms", norms, exact_pass(problem).auxiliary[2].norm(dim=1))


VERDICTS = [
    ("theorem-1/unbiased", 2, "exact", Outcome.REFUTED),
    ("theorem-1/unbiased", 2, "zero", Outcome.REFUTED),
    ("theorem-1/unbiased", 1, "exact", Outcome.EXACT),
    ("theorem-1/unbiased", 1, "zero", Outcome.EXACT),
    ("sampling/unbiased-aggregation", 2, "exact", Outcome.NOT_APPLICABLE),
    ("e2/exact-when-frozen", 2, "exact", Outcome.NOT_APPLICABLE),
    ("theorem-1/unbiased-sampled", 2, "exact", Outcome.NOT_APPLICABLE),
    ("e8/bias-and-variance", 2, "exact", Outcome.EXACT),
]


@pytest.mark.parametrize(("claim", "layers", "start", "outcome"), VERDICTS, ids=str)
def test_verdicts_are_those_of_theory(claim: str, layers: int, start: str, outcome: Outcome) -> None:
    design: BatchDesign = UniformNodes(5, 1)
    verdict = check_claim(claim, tiny(layers=layers), design, MVS(size=1.5), histories=start)
    assert verdict.outcome is outcome, verdict.summary


@pytest.mark.parametrize("start", ["zero", "exact"])
def test_theory_expects_of_it_what_gas_does_from_exact_histories(start: str) -> None:
    case = assemble_case(tiny(layers=2), UniformNodes(5, 1), MVS(size=1.5), histories=start)
    found = CLAIMS["theorem-1/unbiased"].expect(case)
    assert (found.outcome, found.reason) == (Outcome.REFUTED, "messages from the halo are dropped in the backward pass")


def test_it_is_biased_below_the_last_layer_alone() -> None:
    """As GAS is: the last layer and the head read exact histories and need no gradient of other nodes."""
    verdict = check_claim("theorem-1/unbiased", tiny(layers=3, head=True), UniformNodes(5, 1), MVS(size=1.5))
    bias = {item.quantity: item.value for item in verdict.evidence if item.group == "bias per layer"}
    assert bias["head"] < 1e-12
    assert bias["layer 3"] < 1e-12
    assert bias["layer 2"] > 0.05
    assert bias["layer 1"] > 0.05


def test_its_error_is_below_that_of_uniform_nodes() -> None:
    graph = path_graph(6, y=torch.tensor([0, 1, 0, 1, 0, 1]))
    x = graph.x.clone()
    x[0] *= 20  # one large gradient
    problem = Problem(graph.replaced(x=x), GCN(3, 3, 2, 1, seed=1, dtype=torch.float64).eval())
    verdict = check_claim("sampling/error-below-baseline", problem, UniformNodes(6, 1), MVS(size=2))
    assert verdict.outcome is Outcome.SUPPORTED, verdict.summary
    alike = check_claim("sampling/error-below-baseline", problem, UniformNodes(6, 1), MVS(size=2, uniform=True))
    assert alike.outcome is Outcome.NOT_APPLICABLE


def test_bad_settings_states_and_batches_are_refused() -> None:
    for size in (0, -1, math.inf, math.nan, "2"):
        with pytest.raises(InvalidInputError, match="size is"):
            MVS(size=size)  # type: ignore[arg-type]  # the subject
    with pytest.raises(InvalidInputError, match="refresh is 0"):
        MVS(refresh=0)
    problem, estimator = tiny(), MVS()
    with pytest.raises(InvalidInputError, match=r"lacks the histories \{1: \(5, 3\)\}"):
        batch_distribution(estimator, problem, History(), UniformNodes(5, 1))
    with pytest.raises(InvalidInputError, match="carries no weights of its 1 nodes"):
        estimator.estimate(problem, estimator.init(problem), Batch.of([0]))
