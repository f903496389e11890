"""Every estimator keeps the contract of `lmc_verify.Estimator`: settings only, pure estimates, explicit writes.

For every model (GCN, SAGE, GAT, with encoder, head, norm and residual) and arbitrary histories.
"""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from common.crossed import slow_but
from common.helpers import assert_close, assert_gradients, assert_same_bits, examples, path_graph
from common.random_states import random_state
from hypothesis import given
from hypothesis import strategies as st

from lmc_verify import (
    FM,
    GAS,
    GCN,
    LMC,
    MVS,
    BackwardSGD,
    Batch,
    ClusterGCN,
    Estimator,
    History,
    InvalidInputError,
    LMCBackwardOnly,
    LMCForwardOnly,
    Problem,
    UnknownNameError,
    make_estimator,
)
from lmc_verify.estimators import (
    AUXILIARY,
    EMBEDDING,
    ESTIMATORS,
    SCORES,
    Blend,
    Cut,
    Drop,
    FMLocal,
    Held,
    HistoryWrite,
    Policies,
    Refresh,
)
from lmc_verify.estimators.compensated.step_momentum import read_embeddings
from lmc_verify.testing import batches, histories, problems

FAMILY: dict[str, Estimator] = {
    "backward-sgd": BackwardSGD(),
    "lmc": LMC(beta=0.3),
    "lmc-whole": LMC(beta=0.5, score="quadratic", whole_when_complete=True),
    "gas": GAS(),
    "fm": FM(),
    "fm-local": FMLocal(),
    "cluster-gcn": ClusterGCN(),
    "cluster-gcn-kept": ClusterGCN(renormalise=False),
    "lmc-forward-only": LMCForwardOnly(beta=0.3, score="sine"),
    "lmc-backward-only": LMCBackwardOnly(beta=0.3, score="concave"),
}
QUICK = ("backward-sgd", "cluster-gcn", "lmc")
EVERY = pytest.mark.parametrize("name", slow_but(QUICK, FAMILY))
SHARED = examples(20)
"""The same problems are drawn for every estimator, and all are two policies over one engine: 20 make 200 and more."""


@st.composite
def steps(draw: st.DrawFn) -> tuple[Problem, History, Batch]:
    problem = draw(problems())
    return problem, draw(histories(problem)), draw(batches(problem.graph))


def state_for(estimator: Estimator, problem: Problem, drawn: History) -> History:
    """Arbitrary histories, where the estimator keeps any; exact ones for Backward SGD."""
    if isinstance(estimator, BackwardSGD):
        return estimator.init(problem)
    if type(estimator) is FM:  # whose histories hold what layers read
        return History(read_embeddings(problem, drawn.embeddings), drawn.auxiliary)
    return drawn


@EVERY
@SHARED
@given(drawn=steps())
def test_estimate_is_pure(name: str, drawn: tuple) -> None:
    problem, state, batch = drawn
    estimator = FAMILY[name]
    state = state_for(estimator, problem, state)
    kept, parameters, fingerprint = state.clone(), problem.parameter_snapshot(), problem.graph.fingerprint
    with torch.no_grad():  # also where the caller has switched autograd off
        first = estimator.estimate(problem, state, batch)
    second = estimator.estimate(problem, state, batch)
    call = f"{estimator}.estimate"
    assert_same_bits(f"{call} twice", second.gradient, first.gradient)
    assert second.loss == first.loss
    for left, right in zip(first.writes, second.writes, strict=True):
        assert torch.equal(left.values, right.values), f"{call} twice: write {left.kind} {left.layer}"
    assert state.equals(kept), f"{call} changed the state"
    assert problem.has_parameters(parameters), f"{call} changed the parameters"
    assert problem.graph.fingerprint == fingerprint, f"{call} changed the graph"
    assert all(p.grad is None and p.requires_grad for p in problem.model.parameters()), f"{call} left a .grad"
    assert list(first.gradient) == list(problem.parameter_names)
    assert not any(value.requires_grad for value in first.gradient.values())


@EVERY
@SHARED
@given(drawn=steps())
def test_apply_changes_written_rows_only(name: str, drawn: tuple) -> None:
    problem, state, batch = drawn
    estimator = FAMILY[name]
    state = state_for(estimator, problem, state)
    before = state.clone()
    estimate = estimator.estimate(problem, state, batch)
    state.apply(estimate.writes)
    rows = set(batch.nodes.tolist())
    wider = rows | set(problem.graph.neighbourhood(batch.nodes).tolist())
    layers = problem.num_layers
    by_layer = dict.fromkeys(range(1, layers + 1), wider if name.startswith("fm") else rows)
    if name == "fm":  # nothing reads the last layer's history
        by_layer[layers] = rows
    writes_H = name not in ("backward-sgd", "cluster-gcn", "cluster-gcn-kept")
    writes_V = name in ("lmc", "lmc-whole", "lmc-backward-only")
    for kind, written in ((EMBEDDING, writes_H), (AUXILIARY, writes_V)):
        for layer, table in state.table(kind).items():
            changed = set((table != before.table(kind)[layer]).any(dim=1).nonzero().flatten().tolist())
            assert changed <= (by_layer[layer] if written else set()), (
                f"{name}: {kind} rows {changed} of layer {layer} changed"
            )
    assert len(estimate.writes) == layers * (writes_H + writes_V)
    for write in estimate.writes:
        assert set(write.nodes.tolist()) == (by_layer[write.layer] if write.kind == EMBEDDING else rows)
        assert torch.equal(state.read(write.kind, write.layer, write.nodes), write.values)


@EVERY
@SHARED
@given(drawn=steps())
def test_gradient_is_homogeneous_in_the_batch_weights(name: str, drawn: tuple) -> None:
    # Only batch rows, each times its weight, may enter a parameter gradient. A halo term that leaks into one (a bias,
    # the encoder, a norm) has no weight, so it would not double with them. Powers of two round nothing.
    problem, state, batch = drawn
    estimator = FAMILY[name]
    state = state_for(estimator, problem, state)
    once = estimator.estimate(problem, state, batch)
    twice = estimator.estimate(problem, state, Batch.of(batch.nodes, batch.inclusion / 2))
    doubled = {parameter: 2 * value for parameter, value in once.gradient.items()}
    assert_same_bits(f"{estimator} with inclusion halved", twice.gradient, doubled)
    assert twice.loss == 2 * once.loss


@EVERY
@SHARED
@given(drawn=steps())
def test_batch_without_labels_gives_no_loss_and_no_head_gradient(name: str, drawn: tuple) -> None:
    problem, state, batch = drawn
    graph = problem.graph
    if graph.num_nodes == batch.size:
        batch = Batch.of([0])
    mask = torch.ones(graph.num_nodes, dtype=torch.bool)
    mask[batch.nodes] = False
    if not mask.any():
        return  # one node: it must be labelled
    labelled = replace(graph, train_mask=mask, y=graph.y.clamp(min=0))
    problem = problem.with_graph(labelled)
    estimator = FAMILY[name]
    state = state_for(estimator, problem, state)
    estimate = estimator.estimate(problem, state, batch)
    assert estimate.loss == 0.0
    # Jumping knowledge's head reads with the norms of the layers, whose parameters messages reach.
    shared = {id(parameter) for parameter in problem.model.layers.parameters()}
    head = problem.parameters_of(problem.model.head)
    for parameter in (name for name, value in head.items() if id(value) not in shared):
        assert not estimate.gradient[parameter].any(), f"{estimator}: head gradient {estimate.gradient[parameter]}"
    mean = replace(estimator, weighting="batch-mean").estimate(problem, state, batch)
    assert not any(bool(value.any()) for value in mean.gradient.values()), "batch-mean without labels must be zero"


@pytest.mark.parametrize(
    "name",
    slow_but(
        {"lmc", "gas", "fm"}, ["lmc", "lmc-whole", "lmc-backward-only", "gas", "fm", "fm-local", "lmc-forward-only"]
    ),
)
@SHARED
@given(drawn=steps())
def test_last_layer_and_head_never_see_halo_labels(name: str, drawn: tuple) -> None:
    # V^L at the halo (its labels) may reach lower layers through messages, never the last layer's own parameters;
    # estimators that drop the backward messages never see it at all.
    problem, state, batch = drawn
    graph, estimator = problem.graph, FAMILY[name]
    y = graph.y.clone()
    outside = torch.ones(graph.num_nodes, dtype=torch.bool)
    outside[batch.nodes] = False
    y[outside] = 1 - y[outside] if graph.multi_label else 0 * y[outside]
    other = problem.with_graph(replace(graph, y=y))
    first, second = (estimator.estimate(p, state_for(estimator, p, state), batch).gradient for p in (problem, other))
    last = f"layer {problem.num_layers}"
    blind = name in ("gas", "fm", "fm-local", "lmc-forward-only")
    names = [n for n in problem.parameter_names if blind or problem.layer_of(n) in (last, "head")]
    assert_same_bits(f"{estimator} with other halo labels", {n: second[n] for n in names}, {n: first[n] for n in names})


@pytest.mark.slow
@EVERY
@SHARED
@given(drawn=steps(), data=st.data())
def test_node_relabelling_changes_nothing(name: str, drawn: tuple, data: st.DataObject) -> None:
    problem, state, batch = drawn
    order = torch.tensor(data.draw(st.permutations(range(problem.graph.num_nodes))))
    rank = torch.empty_like(order)
    rank[order] = torch.arange(order.numel())
    estimator, renamed = FAMILY[name], problem.with_graph(problem.graph.relabelled(order))
    moved = History(
        {layer: value[order] for layer, value in state.embeddings.items()},
        {layer: value[order] for layer, value in state.auxiliary.items()},
    )
    state, moved = state_for(estimator, problem, state), state_for(estimator, renamed, moved)
    want = estimator.estimate(problem, state, batch)
    got = estimator.estimate(renamed, moved, Batch.of(rank[batch.nodes], batch.inclusion))
    call = f"{estimator} after renaming nodes by {order.tolist()}"
    assert_gradients(call, got.gradient, want.gradient)
    assert_close(f"{call}: loss", got.loss, want.loss)
    state.apply(want.writes)
    moved.apply(got.writes)
    for kind in (EMBEDDING, AUXILIARY):
        for layer, table in state.table(kind).items():
            assert_close(f"{call}: {kind} {layer}", moved.table(kind)[layer], table[order])


@EVERY
def test_no_global_generator_is_touched(name: str) -> None:
    problem, estimator = small_problem(), FAMILY[name]
    before = random_state()
    state = estimator.init(problem)
    state.apply(estimator.estimate(problem, state, Batch.of([0, 1], 0.5)).writes)
    assert random_state() == before
    assert np.isfinite(state.num_bytes)


# --- the state ------------------------------------------------------------------------------------


def small_problem(layers: int = 2) -> Problem:
    return Problem(path_graph(5), GCN(3, 4, 3, layers, dtype=torch.float64).eval())


def test_backward_sgd_refreshes_when_parameters_change() -> None:
    problem, estimator, batch = small_problem(), BackwardSGD(), Batch.of([1, 2], 0.5)
    state = estimator.init(problem)
    assert estimator.estimate(problem, state, batch).writes == ()
    with torch.no_grad():
        next(problem.model.parameters()).add_(0.25)
    stale = estimator.estimate(problem, state, batch)
    fresh = estimator.estimate(problem, estimator.init(problem), batch)
    assert_same_bits("stale state, refreshed inside", stale.gradient, fresh.gradient)
    (write,) = stale.writes
    assert isinstance(write, Refresh)
    state.apply(stale.writes)
    again = estimator.estimate(problem, state, batch)
    assert again.writes == ()
    assert_same_bits("after the refresh was applied", again.gradient, fresh.gradient)


def test_histories_compare_and_copy_their_vectors() -> None:
    state = History({1: torch.ones(2, 2)}, vectors={"proposal": torch.ones(2)})
    for copied in (state.clone(), state.zeroed()):
        copied.vectors["proposal"][0] = 2.0
        assert state.vectors["proposal"].tolist() == [1.0, 1.0]
    other = state.clone()
    assert state.equals(other)
    other.vectors["proposal"][0] = 2.0
    assert not state.equals(other)


class Logged(History):
    """A state whose class matters."""


def test_a_moved_state_is_of_its_own_class() -> None:
    state = Logged({1: torch.ones(2, 2)}, {1: torch.zeros(2, 2)}, vectors={"q": torch.ones(2)})
    for moved in (state.to("cpu"), state.pinned(), state.clone(), state.zeroed()):
        assert type(moved) is Logged
    assert state.to("cpu").equals(state)
    assert state.pinned().equals(state)


def test_a_moved_state_is_exact_where_it_was() -> None:
    problem = small_problem()
    state = BackwardSGD().init(problem)
    assert all(moved.is_exact_for(problem) for moved in (state, state.to("cpu"), state.pinned(), state.clone()))
    assert not state.zeroed().is_exact_for(problem)


@pytest.mark.parametrize("name", SCORES)
def test_scores_lie_in_their_range(name: str) -> None:
    values = SCORES[name].of(torch.linspace(0, 1, 101, dtype=torch.float64))
    assert float(values.min()) == pytest.approx(SCORES[name].least, abs=1e-12)
    assert float(values.max()) == pytest.approx(SCORES[name].most, abs=1e-12)
    assert Blend(0.5, name).scores == (SCORES[name].least, SCORES[name].most)


def test_a_refresh_gives_its_values_and_not_its_memory() -> None:
    fresh = History({1: torch.ones(3, 2)})
    state = History({1: torch.zeros(3, 2)})
    state.apply([Refresh(fresh), HistoryWrite(EMBEDDING, 1, torch.tensor([0]), torch.full((1, 2), 7.0))])
    assert state.embeddings[1].tolist() == [[7.0, 7.0], [1.0, 1.0], [1.0, 1.0]]
    assert fresh.embeddings[1].tolist() == [[1.0, 1.0]] * 3


MISFITS = {
    "no such layer": HistoryWrite(EMBEDDING, 9, torch.tensor([0]), torch.ones(1, 4).double()),
    "wrong width": HistoryWrite(EMBEDDING, 1, torch.tensor([0]), torch.ones(1, 5).double()),
    "wrong number of rows": HistoryWrite(AUXILIARY, 1, torch.tensor([0, 1]), torch.ones(1, 4).double()),
}


@pytest.mark.parametrize("kind", MISFITS)
def test_apply_refuses_a_misfit_and_then_changes_nothing(kind: str) -> None:
    problem = small_problem()
    state = LMC().init(problem)
    kept = state.clone()
    good = HistoryWrite(EMBEDDING, 1, torch.tensor([0]), torch.ones(1, 4).double())
    with pytest.raises(InvalidInputError, match=f"layer {MISFITS[kind].layer}.*apply writes to the state"):
        state.apply([good, MISFITS[kind]])
    assert state.equals(kept), "a good write before the misfit was applied"


def test_states_of_other_estimators_are_refused() -> None:
    problem, batch = small_problem(), Batch.of([0])
    for estimator, state, kind in (
        (LMC(), GAS().init(problem), AUXILIARY),
        (GAS(), ClusterGCN().init(problem), EMBEDDING),
        (LMC(), LMC().init(small_problem(3)), EMBEDDING),
    ):
        with pytest.raises(InvalidInputError, match=rf"{kind} history .* init\(problem\)"):
            estimator.estimate(problem, state, batch)


def test_batches_of_other_graphs_are_refused() -> None:
    problem = small_problem()
    with pytest.raises(InvalidInputError, match=r"node 5, the graph has nodes 0 ... 4.*design from this graph"):
        LMC().estimate(problem, LMC().init(problem), Batch.of([0, 5]))


# --- settings -------------------------------------------------------------------------------------


def test_settings_are_values() -> None:
    assert LMC(beta=0.3) == LMC(beta=0.3) == pickle.loads(pickle.dumps(LMC(beta=0.3)))
    assert LMC(beta=[0.1, 0.2]) == LMC(beta=(0.1, 0.2))
    assert len({LMC(), LMC(beta=0.1), LMC(score="sine"), LMCForwardOnly(), LMCBackwardOnly(), GAS(), FM()}) == 7
    assert LMC(weighting="node-count") != LMC()
    assert LMC() != LMCForwardOnly()
    with pytest.raises(AttributeError):
        LMC().beta = 0.2  # type: ignore[misc]  # frozen, which is what is tested


@pytest.mark.parametrize(
    "name", sorted(set(ESTIMATORS) - {"full-batch", "mvs-gnn"})
)  # which weight no rows of a design's
def test_registry_builds_by_name(name: str) -> None:
    built = make_estimator(name, weighting="node-count")
    assert (built.name, built.weighting) == (name, "node-count")
    assert isinstance(built, Estimator)
    assert hash(built) == hash(make_estimator(name, weighting="node-count"))
    with pytest.raises(InvalidInputError, match=r"'nope'; it has .*weighting"):
        make_estimator(name, nope=1)


def test_an_estimator_without_settings_says_so() -> None:
    assert make_estimator("full-batch").name == "full-batch"
    with pytest.raises(InvalidInputError, match=r"'full-batch' has no setting 'weighting'; it has none"):
        make_estimator("full-batch", weighting="inclusion")
    assert make_estimator("mvs-gnn", size=3) == MVS(size=3)
    with pytest.raises(InvalidInputError, match="'mvs-gnn' has no setting 'weighting'; it has refresh, size, uniform"):
        make_estimator("mvs-gnn", weighting="inclusion")


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: make_estimator("lcm"), UnknownNameError, "did you mean 'lmc'"),
        (lambda: LMC(beta=1.5), InvalidInputError, r"beta is 1\.5, .* \[0, 1\]"),
        (lambda: LMC(beta=float("nan")), InvalidInputError, "beta is nan"),
        (lambda: FM(beta=(0.1, -0.1)), InvalidInputError, r"-0\.1.* \[0, 1\]"),
        (lambda: LMC(score="line"), UnknownNameError, "did you mean 'linear'"),
        (lambda: GAS(weighting="inclusions"), UnknownNameError, "did you mean 'inclusion'"),
        (lambda: Policies(Drop(), Drop()), InvalidInputError, "swap them"),
        (lambda: Policies(Held(), Drop()), InvalidInputError, r"Held\(\) twice"),
        (lambda: Policies(Cut(), Blend()), InvalidInputError, r"use Drop\(\)"),
    ],
)
def test_bad_settings_are_refused(build, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        build()


def test_beta_by_node_must_fit_the_graph() -> None:
    problem, estimator = small_problem(), LMC(beta=(0.5, 0.5))
    with pytest.raises(InvalidInputError, match="beta has 2 values, the graph has 5 nodes"):
        estimator.estimate(problem, estimator.init(problem), Batch.of([0]))


def test_kept_messages_are_counted() -> None:
    # Path 0 - 1 - 2 - 3 - 4, batch {1, 2}: 4 messages come in, 2 from inside; the same 4 and 2 go out.
    problem, batch = small_problem(), Batch.of([1, 2], 0.4)
    for name, estimator in FAMILY.items():
        cost = estimator.estimate(problem, estimator.init(problem), batch).cost
        assert (cost.messages_forward_needed, cost.messages_backward_needed) == (4, 4)
        assert cost.messages_forward == (2 if "cluster" in name else 4), name
        compensated = name in ("backward-sgd", "lmc", "lmc-whole", "lmc-backward-only")
        assert cost.messages_backward == (4 if compensated else 2), name
        assert cost.nodes == (2 if "cluster" in name else 4), name


@EVERY
@SHARED
@given(step=steps())
def test_messages_are_those_of_the_edges_one_by_one(name: str, step: tuple[Problem, History, Batch]) -> None:
    """Directed graphs too, where as many come in as go out by coincidence only."""
    problem, drawn, batch = step
    estimator, inside = FAMILY[name], set(batch.nodes.tolist())
    cost = estimator.estimate(problem, state_for(estimator, problem, drawn), batch).cost
    edges = problem.graph.edge_index.T.tolist()
    into = sum(v in inside for _, v in edges)
    out_of = sum(u in inside for u, _ in edges)
    inner = sum(u in inside and v in inside for u, v in edges)
    assert (cost.messages_forward_needed, cost.messages_backward_needed) == (into, out_of)
    assert cost.messages_forward == (inner if "cluster" in name else into)
    compensated = name in ("backward-sgd", "lmc", "lmc-whole", "lmc-backward-only")
    assert cost.messages_backward == (out_of if compensated else inner)
    near = {node for edge in edges if inside & set(edge) for node in edge}
    assert cost.nodes == len(inside if "cluster" in name else inside | near)


def test_messages_into_and_out_of_a_batch_differ_on_a_directed_graph() -> None:
    # 0 -> 1 <- 2, 1 -> 3, 3 -> 3: two messages come into {1, 3} from outside, one goes round, one is a self-loop.
    edges = torch.tensor([[0, 2, 1, 3], [1, 1, 3, 3]])
    graph = path_graph(4, edge_index=edges)
    problem, batch = Problem(graph, GCN(3, 3, 3, 2, dtype=torch.float64).eval()), Batch.of([1, 3], 0.5)
    for estimator, kept in ((LMC(), (4, 2)), (GAS(), (4, 2)), (ClusterGCN(), (2, 2))):
        cost = estimator.estimate(problem, estimator.init(problem), batch).cost
        assert (cost.messages_forward_needed, cost.messages_backward_needed) == (4, 2)
        assert (cost.messages_forward, cost.messages_backward) == kept
    cost = GAS().estimate(problem, GAS().init(problem), Batch.of([1], 0.5)).cost
    assert (cost.messages_forward, cost.messages_backward, cost.messages_backward_needed) == (2, 0, 1)
