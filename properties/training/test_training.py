"""A training run is the textbook loop and nothing else: plain SGD on a private copy, batches from its own generator.

The bias that is enumerated along it is that of the next estimate, and what batches remember changes no bit.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from common.crossed import crossed
from common.helpers import assert_close, assert_gradients, assert_same_bits, autograd_gradient, examples, expectation
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lmc_verify import (
    FM,
    GAS,
    GCN,
    LMC,
    BackwardSGD,
    Batch,
    ClusterGCN,
    Clusters,
    Estimator,
    FusedClusters,
    History,
    InvalidInputError,
    Problem,
    UniformNodes,
    exact_pass,
    load_graph,
    training,
)
from lmc_verify.estimators import ASGCN, MVS, FullBatch, HistoryWrite, ImportanceVRGCN, batch_distribution
from lmc_verify.estimators.compensated import members as engine
from lmc_verify.estimators.compensated.halo import LocalStructure, local_structure
from lmc_verify.graphs.partition import Partition
from lmc_verify.objective.problem import gradient_norm
from lmc_verify.testing import batches, designs, histories, problems
from lmc_verify.training import TrainingRun, conditional_bias, conditional_moments, weighted_batches

FAMILY: dict[str, Estimator] = {
    "full-batch": FullBatch(),
    "backward-sgd": BackwardSGD(),
    "lmc": LMC(beta=0.3),
    "gas": GAS(),
    "fm": FM(),
    "cluster-gcn": ClusterGCN(),
    "cluster-gcn-kept": ClusterGCN(renormalise=False),
}
ROUNDING = 1e-13
"""Six steps of a tiny network, relative to the largest parameter: some hundred rounded operations on values near 1."""


def karate() -> Problem:
    graph = load_graph("karate").double()
    return Problem(graph, GCN(graph.num_features, 4, graph.num_outputs, num_layers=2, seed=1, dtype=torch.float64))


def clusters(problem: Problem, parts: int = 4, per_batch: int = 2) -> Clusters:
    return Clusters(Partition(torch.arange(problem.graph.num_nodes) % parts, "striped"), per_batch)


def train(
    estimator: Estimator, steps: int = 6, *, seed: int = 0, size: float = 0.3, state: History | None = None
) -> TrainingRun:
    problem = karate()
    run = TrainingRun(
        problem,
        estimator,
        clusters(problem),
        step_size=size,
        generator=np.random.default_rng(seed),
        state=state,
    )
    for _ in range(steps):
        run.step()
    return run


def parameters(problem: Problem) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in problem.model.named_parameters()}


def whole_loss(problem: Problem) -> Tensor:
    """The objective by one plain forward pass over the whole graph."""
    model = problem.model
    h = x0 = model.encode(problem.graph.x)
    for index in range(1, model.num_layers + 1):
        layer = model.layer(index)
        h = layer(h, h, x0, problem.graph.operator(layer.operator))
    return problem.node_losses(model.predict(h)).sum()


# --- the loop --------------------------------------------------------------------------------------------


def test_full_batch_run_is_gradient_descent_by_torch() -> None:
    """Autograd through the whole model and torch.optim.SGD: nothing of the estimators is used."""
    run, reference = train(FullBatch()), karate()
    optimiser = torch.optim.SGD(reference.model.parameters(), lr=0.3)
    losses = []
    for _ in range(6):
        optimiser.zero_grad()
        loss = whole_loss(reference)
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    for name, value in parameters(reference).items():
        assert_close(f"parameter {name} after six steps", run.problem.model.get_parameter(name), value, rtol=ROUNDING)
    assert losses[-1] < losses[0]
    assert run.step_count == 6


@pytest.mark.parametrize("estimator", FAMILY)
def test_a_step_is_estimate_write_move_in_this_order(estimator: str) -> None:
    """With torch.optim.SGD and batches drawn beforehand from an equal generator."""
    method, problem = FAMILY[estimator], karate()
    design, rng = clusters(problem), np.random.default_rng(5)
    drawn = [design.draw(rng) for _ in range(6)]
    state = method.init(problem)
    optimiser = torch.optim.SGD(problem.model.parameters(), lr=0.3)
    for batch in drawn:
        estimate = method.estimate(problem, state, batch)
        state.apply(estimate.writes)
        for name, parameter in problem.model.named_parameters():
            parameter.grad = estimate.gradient[name]
        optimiser.step()
    run = train(method, seed=5)
    for name, value in parameters(problem).items():
        assert_close(f"parameter {name}", run.problem.model.get_parameter(name), value, rtol=ROUNDING)
    for layer, table in state.embeddings.items():
        assert_close(f"history of layer {layer}", run.state.embeddings[layer], table, rtol=ROUNDING)


@pytest.mark.parametrize("method", [ImportanceVRGCN(), MVS(refresh=2), ASGCN()], ids=lambda method: method.name)
def test_an_adaptive_estimator_draws_from_the_distribution_of_its_present_state(method: Estimator) -> None:
    """Made anew before every draw; one that is kept from the start gives other parameters."""

    def labelled_everywhere() -> Problem:
        problem = karate()
        graph = problem.graph
        return problem.with_graph(graph.replaced(train_mask=torch.ones_like(graph.train_mask)))

    def by_hand(renewed: bool) -> dict[str, Tensor]:
        problem, rng = labelled_everywhere(), np.random.default_rng(5)
        state = method.init(problem)
        law = batch_distribution(method, problem, state, clusters(problem))
        for _ in range(6):
            if renewed:
                law = batch_distribution(method, problem, state, law)
            estimate = method.estimate(problem, state, law.draw(rng))
            state.apply(estimate.writes)
            with torch.no_grad():
                for name, parameter in problem.model.named_parameters():
                    parameter.sub_(estimate.gradient[name], alpha=0.3)
        return parameters(problem)

    problem = labelled_everywhere()
    run = TrainingRun(problem, method, clusters(problem), step_size=0.3, generator=np.random.default_rng(5))
    for _ in range(6):
        run.step()
    renewed, kept = by_hand(True), by_hand(False)
    for name, value in renewed.items():
        assert_close(f"{name} after six steps", run.problem.model.get_parameter(name), value, rtol=ROUNDING)
    assert any(not torch.equal(kept[name], value) for name, value in renewed.items())


def test_step_returns_the_estimate_at_the_parameters_before_it() -> None:
    run = train(LMC(beta=0.3), steps=2)
    before, state = run.problem.copy(), run.state.clone()
    batch = run.draw()
    estimate = run.step(batch)
    assert_same_bits("estimate", estimate.gradient, LMC(beta=0.3).estimate(before, state, batch).gradient)
    for name, value in parameters(before).items():
        assert_close(name, run.problem.model.get_parameter(name), value - 0.3 * estimate.gradient[name], rtol=ROUNDING)
    assert run.step_count == 3
    assert not run.state.equals(state), "nothing was written"


def test_frozen_parameters_stay_and_a_step_of_zero_moves_histories_only() -> None:
    problem = karate()
    problem.model.layer(2).requires_grad_(False)
    start = parameters(problem)
    run = TrainingRun(problem, GAS(), clusters(problem), step_size=0.5, generator=np.random.default_rng(0))
    for _ in range(4):  # karate has four labelled nodes: a batch may well hold none
        run.step()
    moved = {name for name, value in parameters(run.problem).items() if not torch.equal(value, start[name])}
    assert moved == {"layers.0.conv.bias", "layers.0.conv.lin.weight"}
    still = train(GAS(), size=0.0)
    assert_same_bits("parameters", parameters(still.problem), parameters(karate()))
    assert not still.state.equals(GAS().init(karate()))


@pytest.mark.parametrize("size", [-0.1, float("nan"), float("inf")])
def test_step_sizes_that_make_no_run_are_refused(size: float) -> None:
    with pytest.raises(InvalidInputError, match=r"step_size is (nan, it must be a number|.*finite and not negative)"):
        train(GAS(), size=size)


# --- what a run leaves alone, and what it depends on -----------------------------------------------------


@pytest.mark.parametrize("estimator", FAMILY)
def test_callers_problem_and_state_stay_as_they_are(estimator: str) -> None:
    method, problem = FAMILY[estimator], karate()
    start, state = parameters(problem), method.init(problem)
    kept, graph = state.clone(), problem.graph.fingerprint
    run = TrainingRun(
        problem, method, clusters(problem), step_size=0.3, generator=np.random.default_rng(0), state=state
    )
    for _ in range(3):
        run.step()
        conditional_bias(run.problem, method, run.state, weighted_batches(run.design))
    assert_same_bits("the caller's parameters", parameters(problem), start)
    assert problem.graph.fingerprint == graph
    assert state.equals(kept)
    assert state.exact_for is kept.exact_for
    assert all(parameter.grad is None for parameter in problem.model.parameters())
    assert run.problem.graph is problem.graph


def test_run_starts_from_the_histories_given() -> None:
    problem = karate()
    filled = LMC().init(problem).filled(exact_pass(problem))
    warm, cold = train(LMC(), steps=1, state=filled), train(LMC(), steps=1)
    assert not warm.state.equals(cold.state)
    rows = warm.state.embeddings[2]
    unread = [node for node in range(34) if node not in clusters(problem).draw(np.random.default_rng(0)).nodes]
    assert torch.equal(rows[unread], filled.embeddings[2][unread])


@contextmanager
def threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("estimator", FAMILY)
def test_run_depends_on_its_generator_alone(estimator: str) -> None:
    method = FAMILY[estimator]
    want = parameters(train(method).problem)
    assert_same_bits("the same generator", parameters(train(method).problem), want)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(123)
        assert_same_bits("another global seed", parameters(train(method).problem), want)
    with threads(2):
        assert_same_bits("two threads", parameters(train(method).problem), want)
    if estimator != "full-batch":
        other = parameters(train(method, seed=1).problem)
        assert any(not torch.equal(other[name], want[name]) for name in want), "another generator, the same run"


def test_given_batches_leave_the_generator_alone() -> None:
    problem = karate()
    run = TrainingRun(problem, GAS(), clusters(problem), step_size=0.1, generator=np.random.default_rng(9))
    first = clusters(problem).draw(np.random.default_rng(9))
    run.step(Batch.of([0, 5], 0.5))
    assert torch.equal(run.draw().nodes, first.nodes)


# --- the bias --------------------------------------------------------------------------------------------


@pytest.mark.slow
@given(st.data())
def test_conditional_bias_is_the_enumerated_mean_less_the_gradient(data: st.DataObject) -> None:
    problem = data.draw(problems())
    design, state = data.draw(designs(problem.graph)), data.draw(histories(problem))
    method = data.draw(st.sampled_from([LMC(beta=0.3), GAS(), FM(), ClusterGCN(), FullBatch(), BackwardSGD()]))
    if isinstance(method, FM):  # its histories hold what the layers above read, which may be wider or narrower
        state = method.init(problem)
    bias, exact = conditional_bias(problem, method, state, weighted_batches(design))
    mean = expectation(design, lambda batch: method.estimate(problem, state, batch).gradient)
    sizes = [(gradient_norm(method.estimate(problem, state, batch).gradient), p) for batch, p in design.enumerate()]
    size = conditional_moments(problem, method, state, design.enumerate()).size  # gone through once
    assert size == pytest.approx(sum(norm * p for norm, p in sizes), rel=1e-12)
    gradient = autograd_gradient(problem, whole_loss(problem))
    assert_gradients("exact pass", exact.gradient, gradient)
    assert_gradients("bias + gradient", {name: bias[name] + gradient[name] for name in gradient}, mean)


@pytest.mark.parametrize(
    ("design", "estimator"),
    crossed(["clusters", "fused", "nodes"], [FullBatch(), BackwardSGD()]),
    ids=lambda item: getattr(item, "name", item),
)
def test_no_bias_along_a_run_of_exact_estimators(estimator: Estimator, design: str) -> None:
    problem = karate()
    law = {
        "clusters": clusters(problem),
        "fused": FusedClusters(clusters(problem, parts=7).partition, 2, seed=1),
        "nodes": UniformNodes(34, 33),
    }[design]
    run = TrainingRun(problem, estimator, law, step_size=0.3, generator=np.random.default_rng(0))
    for _ in range(4):
        bias, exact = conditional_bias(run.problem, estimator, run.state, weighted_batches(law))
        assert gradient_norm(bias) < 1e-13 * gradient_norm(exact.gradient)
        run.step()


def test_biased_estimators_have_a_bias_along_the_run() -> None:
    for method in (GAS(), ClusterGCN(), LMC()):
        run = train(method, steps=3)
        bias, exact = conditional_bias(run.problem, method, run.state, weighted_batches(run.design))
        assert gradient_norm(bias) > 1e-3 * gradient_norm(exact.gradient), method


def test_bias_takes_the_exact_pass_that_is_known_and_changes_nothing() -> None:
    for method in (LMC(beta=0.3), BackwardSGD()):
        run = train(method, steps=2)
        state, before = run.state.clone(), parameters(run.problem)
        batches_ = weighted_batches(run.design)
        exact = exact_pass(run.problem)
        known, used = conditional_bias(run.problem, method, run.state, batches_, exact)
        assert used is exact
        assert_same_bits("bias", conditional_bias(run.problem, method, run.state, batches_)[0], known)
        assert run.state.equals(state)
        assert run.state.exact_for is state.exact_for
        assert_same_bits("parameters", parameters(run.problem), before)


def test_bias_makes_one_exact_pass_for_all_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    run, passes = train(BackwardSGD(), steps=2), []
    for module in (engine, training.descent):
        monkeypatch.setattr(module, "exact_pass", lambda problem: passes.append(1) or exact_pass(problem))
    assert not run.state.is_exact_for(run.problem)
    conditional_bias(run.problem, run.estimator, run.state, weighted_batches(run.design))
    assert len(passes) == 1


def test_backward_sgd_is_exact_at_every_step() -> None:
    """The histories are those of the parameters at which the estimate was made; the step then moves the parameters."""
    method, problem = BackwardSGD(), karate()
    run = TrainingRun(problem, method, clusters(problem), step_size=0.3, generator=np.random.default_rng(2))
    assert run.state.is_exact_for(run.problem)
    for _ in range(4):
        exact, batch = exact_pass(run.problem), run.draw()
        estimate = method.estimate(run.problem, run.state, batch)
        fresh = method.estimate(run.problem, method.init(run.problem), batch)
        assert_same_bits("estimate from outdated tables", estimate.gradient, fresh.gradient)
        run.state.apply(estimate.writes)
        assert run.state.is_exact_for(run.problem)
        assert not run.state.is_exact_for(problem)
        for layer in (1, 2):
            assert torch.equal(run.state.embeddings[layer], exact.embeddings[layer])
            assert torch.equal(run.state.auxiliary[layer], exact.auxiliary[layer])
        run.descend(estimate.gradient)
        assert not run.state.is_exact_for(run.problem), "the parameters have moved"


# --- what batches remember -------------------------------------------------------------------------------


@pytest.mark.parametrize("design", ["clusters", "fused"])
def test_small_designs_keep_their_batches(design: str) -> None:
    partition = clusters(karate()).partition
    law = Clusters(partition, 2) if design == "clusters" else FusedClusters(partition, 2, 0)
    kept = {id(batch) for batch, _ in law.enumerate()}
    assert len(kept) == law.support_size
    assert {id(batch) for batch, _ in weighted_batches(law)} == kept
    rng = np.random.default_rng(0)
    assert all(id(law.draw(rng)) in kept for _ in range(5))


def test_large_designs_keep_none() -> None:
    law = Clusters(Partition(torch.arange(60), "nodes"), 6)  # 50 million batches
    assert law.draw(np.random.default_rng(0)) is not law.draw(np.random.default_rng(0))


def fresh(batch: Batch) -> Batch:
    return Batch(batch.nodes.clone(), batch.inclusion.clone(), batch.clusters)


@pytest.mark.slow
@examples(20)
@given(st.data())
def test_a_used_batch_gives_the_bits_of_a_fresh_one(data: st.DataObject) -> None:
    """Two problems on different graphs, or one graph held twice, and cut and uncut estimators take turns."""
    first = data.draw(problems())
    graph = first.graph
    order = torch.arange(graph.num_nodes).flip(0)
    second = first.with_graph(data.draw(st.sampled_from([graph.relabelled(order), copy.deepcopy(graph)])))
    used, state = data.draw(batches(graph)), data.draw(histories(first))
    for problem in (first, second, first):
        for name, method in FAMILY.items():
            own = method.init(problem) if name in ("backward-sgd", "fm") else state
            got, want = (method.estimate(problem, own, batch) for batch in (used, fresh(used)))
            assert_same_bits(name, got.gradient, want.gradient)
            assert (got.loss, got.cost) == (want.loss, want.cost)
            for left, right in zip(got.writes, want.writes, strict=True):
                assert isinstance(left, HistoryWrite)
                assert isinstance(right, HistoryWrite)
                assert torch.equal(left.values, right.values)
                assert torch.equal(left.nodes, right.nodes)


def test_structure_is_made_once_a_graph_and_kept_with_the_batch() -> None:
    graph, batch = karate().graph, Batch.of([0, 3, 5], 0.5)
    whole, cut = local_structure(graph, batch, cut=False), local_structure(graph, batch, cut=True)
    assert local_structure(graph, batch, cut=False) is whole
    assert local_structure(graph, batch, cut=True) is cut
    assert cut.nodes.halo.numel() == 0 < whole.nodes.halo.numel()
    assert torch.equal(whole.nodes.halo, graph.neighbourhood(batch.nodes))
    assert whole.block("gcn", halo=False) is whole.block("gcn", halo=False)
    inner, kept = (cut.block("gcn", halo=False, renormalised=renormalised) for renormalised in (True, False))
    assert not torch.equal(inner.csr.value, kept.csr.value)
    assert cut.block("gcn", halo=False, renormalised=True) is inner
    other = copy.deepcopy(graph)
    assert local_structure(other, batch, cut=False).graph is other


@given(st.data())
def test_messages_are_counted_by_edges(data: st.DataObject) -> None:
    problem = data.draw(problems())
    batch = data.draw(batches(problem.graph))
    source, destination = problem.graph.edge_index
    sent, received = torch.isin(source, batch.nodes), torch.isin(destination, batch.nodes)
    structure = LocalStructure(problem.graph, batch, cut=False)
    assert (*structure.messages, structure.inner_messages) == (
        int(received.sum()),
        int(sent.sum()),
        int((sent & received).sum()),
    )
