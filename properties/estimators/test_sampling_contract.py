"""Every estimator that samples messages keeps the contract: the sample belongs to the batch, and estimates stay pure.

Each sample is compared with a dense second implementation, and each law is enumerated on small graphs of every shape.
"""

from __future__ import annotations

import math
import pickle
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from common import dense_sampling
from common.crossed import crossed, slow_but
from common.helpers import (
    assert_close,
    assert_gradients,
    assert_same_bits,
    autograd_gradient,
    examples,
    expectation,
    from_oracle,
    oracle_problem,
    path_graph,
)
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.stats import chi2
from torch import Tensor

from lmc_verify import (
    Batch,
    BatchDesign,
    Clusters,
    History,
    InvalidInputError,
    Partition,
    Problem,
    UniformNodes,
    load_graph,
    make_model,
)
from lmc_verify import exact_pass as exact
from lmc_verify.claims import CLAIMS
from lmc_verify.estimators import ESTIMATORS, Sampled, batch_distribution, make_estimator
from lmc_verify.estimators.registry import CATALOGUE
from lmc_verify.estimators.samplers import laws
from lmc_verify.graphs.operators import Block
from lmc_verify.graphs.sparse import CSR
from lmc_verify.testing import designs, graphs, histories, problems, seeds

SMALL: dict[str, dict[str, Any]] = {
    "neighbour-sampling": {"fan_out": 2},
    "vr-gcn": {"fan_out": 1},
    "labor": {"fan_out": 2},
    "fastgcn": {"nodes": 2},
    "ladies": {"nodes": 2},
    "as-gcn": {"nodes": 2},
    "fastgcn-published": {"nodes": 2},
    "ladies-published": {"nodes": 2},
    "vr-gcn-importance": {"fan_out": 1, "size": 2},
    "graphsaint-node": {"nodes": 2},
    "graphsaint-edge": {"edges": 1},
    "graphsaint-walk": {"roots": 1, "length": 1},
}
"""Settings that leave something to chance on the smallest graphs."""
COVERING: dict[str, dict[str, Any]] = {
    "neighbour-sampling": {"fan_out": 100},
    "vr-gcn": {"fan_out": 100},
    "labor": {"fan_out": 100},
}
"""Settings whose budget covers every message, for estimators that are then exact."""
QUICK = {"neighbour-sampling", "vr-gcn", "ladies", "graphsaint-walk"}
"""One that draws for each node, one with histories, one that draws for each layer, one that draws a subgraph."""
EVERY = pytest.mark.parametrize("name", SMALL)
SOME = pytest.mark.parametrize("name", slow_but(QUICK, SMALL))
"""Of properties that other tests of every estimator's laws and estimates would miss too."""
UNBIASED = pytest.mark.parametrize("name", slow_but(QUICK, [name for name in SMALL if not name.endswith("-published")]))
"""Of public code that departs from its paper the weights are not the papers'; see test_published.py."""
MOST_SAMPLES = 200
FEW = examples(12)


def build(name: str, settings: dict[str, dict[str, Any]] = SMALL) -> Sampled:
    """Return an estimator under test."""
    estimator = make_estimator(name, **settings[name])
    assert isinstance(estimator, Sampled)
    return estimator


def small_graphs(**settings: Any) -> st.SearchStrategy:
    """Graphs of every shape on which all samples can be listed."""
    return graphs(max_nodes=4, max_edges=6, max_features=2, **settings)


def state_of(estimator: Sampled, problem: Problem, drawn: History) -> History:
    """Return the estimator's state with arbitrary values in its tables."""
    state = estimator.init(problem)
    for layer, table in state.embeddings.items():
        if layer in drawn.embeddings:
            table.copy_(drawn.embeddings[layer])
    return state


@st.composite
def cases(
    draw: st.DrawFn, name: str, *, plain: bool = True, max_layers: int = 2
) -> tuple[Problem, History, BatchDesign]:
    """Problem, arbitrary state and law of an estimator, small enough to list all samples."""
    settings = {"multi_label": False} if plain else {}
    kinds = ("gcn",) if plain else ("gcn", "sage", "gin", "gcnii", "appnp")
    problem = draw(
        problems(small_graphs(**settings), kinds=kinds, max_layers=max_layers, aggregate_linear=True, plain=plain)
    )
    estimator = build(name)
    if name == "graphsaint-edge":
        assume(bool((problem.graph.edge_index[0] != problem.graph.edge_index[1]).any()))
    state = state_of(estimator, problem, draw(histories(problem)))
    law = batch_distribution(estimator, problem, state, draw(designs(problem.graph, max_support=6)))
    assume(law.support_size <= MOST_SAMPLES)
    return problem, state, law


def dense_operators(problem: Problem, batch: Batch) -> list[np.ndarray]:
    """Return the sampled operator of every layer as dense matrices."""
    n, out = problem.graph.num_nodes, []
    assert batch.sample is not None
    for index, own in enumerate(batch.sample.layers, 1):
        csr = problem.graph.operator(problem.model.layer(index).operator).csr
        dense = np.zeros((n, n))
        for position, entry, scale in zip(own.position.tolist(), own.entry.tolist(), own.scale.tolist(), strict=True):
            assert int(own.columns[own.source[own.entry == entry][0]]) == int(csr.col[entry])
            dense[int(own.rows[position]), int(csr.col[entry])] += float(csr.value[entry]) * scale
        out.append(dense)
    return out


def key_of(batch: Batch) -> tuple:
    """Return a batch with its sample as a hashable value."""
    assert batch.sample is not None
    layers = []
    for own in batch.sample.layers:
        factors: Counter[int] = Counter()
        for entry, scale in zip(own.entry.tolist(), own.scale.tolist(), strict=True):
            factors[entry] += scale
        kept = tuple(sorted((entry, round(factor, 9)) for entry, factor in factors.items()))
        layers.append((tuple(own.rows.tolist()), kept))
    weights = () if batch.sample.weights is None else tuple(round(float(w), 9) for w in batch.sample.weights)
    return tuple(batch.nodes.tolist()), tuple(layers), weights


# --- estimates ------------------------------------------------------------------------------------


def on_sampled_operators(problem: Problem, state: History, batch: Batch, *, corrected: bool) -> Tensor:
    """Return the batch's weighted loss: every layer on all nodes, with the sampled entries in one whole operator.

    With histories, their rows are columns behind the nodes' own.
    """
    n, model = problem.graph.num_nodes, problem.model
    x0 = h = model.encode(problem.graph.x)
    for index, sampled in enumerate(dense_operators(problem, batch), 1):
        layer = model.layer(index)
        whole = problem.graph.operator(layer.operator)
        values, source = torch.from_numpy(sampled), h
        if corrected:
            rest = torch.zeros(n, n, dtype=torch.float64)
            rest.index_put_((whole.csr.row.long(), whole.csr.col.long()), whole.csr.value, accumulate=True)
            values = torch.cat([values, rest - values], dim=1)
            source = torch.cat([h, state.embeddings.get(index - 1, x0).detach()])
        row, column = values.nonzero(as_tuple=True)
        csr = CSR.from_coo(row, column, values[row, column], n, values.shape[1])
        h = layer(source, h, x0, Block(csr, whole.in_degree))
    assert batch.sample is not None
    weights = batch.inclusion.reciprocal() if batch.sample.weights is None else batch.sample.weights
    return weights @ problem.node_losses(model.predict(h))[batch.nodes]


@pytest.mark.slow
@EVERY
@FEW
@given(data=st.data())
def test_estimates_equal_the_model_on_sampled_operators(name: str, data: st.DataObject) -> None:
    """Models of every kind, with encoder, head, norm and residuals, which the dense implementation leaves out."""
    problem, state, law = data.draw(cases(name, plain=False))
    estimator = build(name)
    for number, (batch, _) in enumerate(law.enumerate()):
        if number == 12:
            break
        estimate = estimator.estimate(problem, state, batch)
        loss = on_sampled_operators(problem, state, batch, corrected=estimator.corrected)
        assert_close("loss", estimate.loss, float(loss.detach()))
        if loss.requires_grad:
            assert_gradients(f"{estimator}", estimate.gradient, autograd_gradient(problem, loss))


@pytest.mark.parametrize(("name", "kind"), crossed(SMALL, ["gcn", "sage", "gin", "gcnii", "appnp"]))
def test_residuals_and_ends_are_sampled_too(name: str, kind: str) -> None:
    """A residual reads the row itself, which a sample without a self-loop message may leave out."""
    settings: dict[str, Any] = {"encoder": True, "head": True, "norm": "layer", "residual": True}
    graph = load_graph("karate").double()
    model = make_model(kind, graph.num_features, 4, graph.num_outputs, 3, seed=1, dtype=torch.float64, **settings)
    problem, estimator = Problem(graph, model.eval()), build(name)
    state = estimator.init(problem)
    for seed, table in state.embeddings.items():
        table.copy_(torch.rand(table.shape, generator=torch.Generator().manual_seed(seed), dtype=table.dtype))
    law = batch_distribution(estimator, problem, state, UniformNodes(34, 3))
    for seed in range(3):
        batch = law.draw(np.random.default_rng(seed))
        estimate = estimator.estimate(problem, state, batch)
        loss = on_sampled_operators(problem, state, batch, corrected=estimator.corrected)
        assert_close("loss", estimate.loss, float(loss.detach()))
        assert_gradients(f"{estimator}", estimate.gradient, autograd_gradient(problem, loss))


@EVERY
@FEW
@given(data=st.data())
def test_estimates_equal_the_dense_implementation(name: str, data: st.DataObject) -> None:
    problem, state, law = data.draw(cases(name))
    estimator, dense = build(name), oracle_problem(problem)
    tables = {layer: table.numpy() for layer, table in state.embeddings.items()} if estimator.corrected else None
    n = problem.graph.num_nodes
    for number, (batch, _) in enumerate(law.enumerate()):
        if number == 12:
            break
        estimate = estimator.estimate(problem, state, batch)
        weights = batch.inclusion.reciprocal() if batch.sample.weights is None else batch.sample.weights
        loss, gradient = dense_sampling.gradient(
            dense,
            dense_operators(problem, batch),
            dense_sampling.members(batch.nodes.numpy(), n, weights.numpy()),
            tables,
        )
        assert_gradients(f"{estimator}", estimate.gradient, from_oracle(gradient))
        assert_close("loss", estimate.loss, loss)


@SOME
@FEW
@given(data=st.data(), seed=seeds())
def test_estimates_are_pure_and_draws_are_reproducible(name: str, data: st.DataObject, seed: int) -> None:
    problem, state, law = data.draw(cases(name, plain=False))
    estimator = build(name)
    batch, again = (law.draw(np.random.default_rng(seed)) for _ in range(2))
    assert key_of(batch) == key_of(again)
    kept, parameters, fingerprint = state.clone(), problem.parameter_snapshot(), problem.graph.fingerprint
    with torch.no_grad():
        first = estimator.estimate(problem, state, batch)
    second = estimator.estimate(problem, state, again)
    assert_same_bits(f"{estimator}.estimate twice", second.gradient, first.gradient)
    assert (first.loss, first.cost) == (second.loss, second.cost)
    for left, right in zip(first.writes, second.writes, strict=True):
        assert torch.equal(left.values, right.values)
    assert state.equals(kept)
    assert problem.has_parameters(parameters)
    assert problem.graph.fingerprint == fingerprint
    assert list(first.gradient) == list(problem.parameter_names)
    assert not any(value.requires_grad for value in first.gradient.values())
    assert all(parameter.grad is None for parameter in problem.model.parameters())
    state.apply(first.writes)


@SOME
@FEW
@given(data=st.data())
def test_a_batch_without_labels_gives_nothing(name: str, data: st.DataObject) -> None:
    problem, state, law = data.draw(cases(name, plain=False))
    mask = problem.graph.train_mask
    estimator = build(name)
    for batch, _ in law.enumerate():
        if not mask[batch.nodes].any():
            estimate = estimator.estimate(problem, state, batch)
            assert estimate.loss == 0
            assert not any(bool(value.any()) for value in estimate.gradient.values())
            return


@SOME
@FEW
@given(data=st.data())
def test_messages_and_rows_are_counted(name: str, data: st.DataObject) -> None:
    problem, state, law = data.draw(cases(name))
    estimator = build(name)
    batch, _ = next(iter(law.enumerate()))
    cost = estimator.estimate(problem, state, batch).cost
    operators = dense_operators(problem, batch)
    rows = [own.rows for own in batch.sample.layers]
    needed, csr = 0, problem.graph.operator("gcn").csr
    for own in rows:
        needed += sum(row in own.tolist() for row in csr.row.tolist())
    assert cost.messages_forward_needed == cost.messages_backward_needed == needed
    kept = sum(own.entry.numel() for own in batch.sample.layers)
    assert cost.messages_backward == kept >= sum(int((operator != 0).sum()) for operator in operators)
    assert cost.messages_forward == (cost.messages_forward_needed if estimator.corrected else kept)


# --- laws -----------------------------------------------------------------------------------------


@SOME
@FEW
@given(data=st.data())
def test_enumeration_is_a_law_without_repeats(name: str, data: st.DataObject) -> None:
    problem, _, law = data.draw(cases(name, plain=False))
    total: Counter[tuple] = Counter()
    for batch, probability in law.enumerate():
        assert 0 < probability <= 1 + 1e-12  # a sum of edges' probabilities, where they give the same set
        total[key_of(batch)] += probability
        sample = batch.sample
        assert torch.equal(sample.layers[-1].rows, batch.nodes)
        for below, above in zip(sample.layers, sample.layers[1:], strict=False):
            assert torch.equal(below.rows, above.columns)
    assert math.isclose(math.fsum(total.values()), 1, rel_tol=1e-9)
    assert law.support_size >= len(total)
    assert law.inclusion_probabilities().shape == (problem.graph.num_nodes,)


@SOME
@FEW
@given(data=st.data())
def test_inclusion_probabilities_are_those_of_the_distribution(name: str, data: st.DataObject) -> None:
    problem, _, law = data.draw(cases(name))
    found = torch.zeros(problem.graph.num_nodes, dtype=torch.float64)
    for batch, probability in law.enumerate():
        found[batch.nodes] += probability
        assert_close("of the batch", batch.inclusion, law.inclusion_probabilities()[batch.nodes])
    assert_close("inclusion", found, law.inclusion_probabilities(), rtol=1e-9)


@pytest.mark.parametrize("most", [2**24, 3])
def test_categories_are_drawn_in_proportion(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.multinomial, and what takes its place above its limit; a false alarm has probability 1e-6."""
    monkeypatch.setattr(laws, "MULTINOMIAL_CATEGORIES", most)
    weights = torch.tensor([0.0, 1.0, 3.0, 0.0, 2.0, 0.0], dtype=torch.float64)
    drawn = laws.draw_categories(weights, 60_000, torch.Generator().manual_seed(0))
    counts = torch.bincount(drawn, minlength=6).double()
    wanted = 10_000 * weights
    assert bool((counts[weights == 0] == 0).all())
    positive = weights > 0
    assert float(((counts - wanted).square() / wanted)[positive].sum()) < chi2.isf(1e-6, 2)
    assert torch.equal(laws.draw_categories(weights, 60_000, torch.Generator().manual_seed(0)), drawn)


@pytest.mark.slow
@EVERY
def test_draws_have_the_enumerated_frequencies(name: str) -> None:
    """Pearson's test at 1e-6 on 1000 draws with a fixed seed: it passes or fails for good."""
    problem = small_problem(5, layers=1)
    estimator = build(name)
    law = batch_distribution(estimator, problem, estimator.init(problem), UniformNodes(5, 1))
    wanted: Counter[tuple] = Counter()
    for batch, probability in law.enumerate():
        wanted[key_of(batch)] += probability
    rng, draws = np.random.default_rng(0), 1000
    seen = Counter(key_of(law.draw(rng)) for _ in range(draws))
    assert set(seen) <= set(wanted)
    frequent = [key for key, probability in wanted.items() if probability * draws >= 5]
    rare = draws * (1 - math.fsum(wanted[key] for key in frequent))
    cells = [(seen[key], draws * wanted[key]) for key in frequent]
    if rare >= 5:
        cells.append((draws - sum(seen[key] for key in frequent), rare))
    statistic = sum((count - want) ** 2 / want for count, want in cells)
    assert len(cells) > 2
    assert chi2.sf(statistic, len(cells) - 1) > 1e-6, (statistic, len(cells))


@UNBIASED
@FEW
@given(data=st.data())
def test_every_message_has_its_mean_weight(name: str, data: st.DataObject) -> None:
    problem, _, law = data.draw(cases(name))
    n, layers = problem.graph.num_nodes, problem.num_layers
    operator = oracle_problem(problem).A
    total, needed = np.zeros((layers, n, n)), np.zeros((layers, n))
    for batch, probability in law.enumerate():
        for index, dense in enumerate(dense_operators(problem, batch)):
            total[index] += probability * dense
            needed[index, batch.sample.layers[index].rows.numpy()] += probability
    assert_close("mean operator", total, needed[:, :, None] * operator, rtol=1e-9)


@SOME
@FEW
@given(data=st.data())
def test_no_weight_exceeds_the_stated_largest(name: str, data: st.DataObject) -> None:
    problem, _, law = data.draw(cases(name))
    largest = build(name).largest_scales(problem, law)
    for batch, _ in law.enumerate():
        for own, bound in zip(batch.sample.layers, largest, strict=True):
            total = torch.zeros_like(bound).index_add_(0, own.entry, own.scale)
            assert bool((total <= bound * (1 + 1e-9)).all())


# --- reductions -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", slow_but({"neighbour-sampling"}, COVERING))
@FEW
@given(data=st.data())
def test_a_budget_for_every_message_leaves_nothing_to_chance(name: str, data: st.DataObject) -> None:
    problem = data.draw(problems(small_graphs(), kinds=("gcn", "sage"), aggregate_linear=True))
    estimator = build(name, COVERING)
    state = state_of(estimator, problem, data.draw(histories(problem)))
    base = data.draw(designs(problem.graph, max_support=6))
    law = batch_distribution(estimator, problem, state, base)
    assert law.support_size == base.support_size
    mean = expectation(law, lambda batch: estimator.estimate(problem, state, batch).gradient)
    weights = torch.zeros(problem.graph.num_nodes, dtype=torch.float64)
    for batch, probability in base.enumerate():
        weights[batch.nodes] += probability / batch.inclusion
    assert_close("weights", weights, torch.ones_like(weights), rtol=1e-9)
    assert_gradients("mean", mean, exact(problem).gradient, rtol=1e-9)
    for batch, _ in law.enumerate():
        loss = problem.node_losses(problem.model(problem.graph))[batch.nodes] @ batch.inclusion.reciprocal()
        assert_gradients("batch", estimator.estimate(problem, state, batch).gradient, autograd_gradient(problem, loss))


# --- misuse ---------------------------------------------------------------------------------------


def small_problem(num_nodes: int = 5, *, layers: int = 2, kind: str = "gcn") -> Problem:
    """Return a problem on a path."""
    graph = path_graph(num_nodes)
    model = make_model(kind, graph.num_features, 4, graph.num_outputs, num_layers=layers, dtype=torch.float64)
    return Problem(graph, model.eval())


@EVERY
def test_a_batch_without_a_sample_is_refused(name: str) -> None:
    problem, estimator = small_problem(), build(name)
    with pytest.raises(InvalidInputError, match=r"carries no sample.*estimator\.sampling"):
        estimator.estimate(problem, estimator.init(problem), Batch.of([0, 1], 0.5))


@EVERY
def test_a_sample_of_another_model_is_refused(name: str) -> None:
    problem, estimator = small_problem(layers=2), build(name)
    law = batch_distribution(estimator, problem, estimator.init(problem), UniformNodes(5, 2))
    other = small_problem(layers=3)
    with pytest.raises(InvalidInputError, match="2 layers and 2 rows"):
        estimator.estimate(other, estimator.init(other), law.draw(np.random.default_rng(0)))


@EVERY
def test_settings_only(name: str) -> None:
    estimator = build(name)
    assert estimator == pickle.loads(pickle.dumps(estimator)) == build(name)
    assert hash(estimator) == hash(build(name))
    assert make_estimator(name) in (ESTIMATORS[name](), make_estimator(name))
    with pytest.raises(InvalidInputError, match="no setting 'nope'"):
        make_estimator(name, nope=1)


def test_every_estimator_is_in_the_catalogue_with_claims_that_exist() -> None:
    assert set(CATALOGUE) == set(ESTIMATORS)
    for info in CATALOGUE.values():
        assert info.claims
        assert set(info.claims) <= set(CLAIMS)
        assert all((info.family, info.cost, info.memory, info.source))


def test_every_registered_sampler_is_tested() -> None:
    samplers = {name for name, kind in ESTIMATORS.items() if isinstance(kind, type) and issubclass(kind, Sampled)}
    assert samplers == set(SMALL)


@pytest.mark.parametrize("name", [name for name in SMALL if build(name).corrected])
def test_histories_that_do_not_fit_are_refused(name: str) -> None:
    problem, estimator = small_problem(), build(name)
    law = batch_distribution(estimator, problem, estimator.init(problem), Clusters(Partition.random(5, 2), 1))
    with pytest.raises(InvalidInputError, match=r"no (torch.float64|auxiliary) history \(5, \d\) for layer \d"):
        estimator.estimate(problem, History(), law.draw(np.random.default_rng(0)))
    attention = small_problem(kind="gat")
    with pytest.raises(InvalidInputError, match="layer 1, 2 is no weighted sum"):
        estimator.sampling(attention, estimator.init(attention), UniformNodes(5, 2))
