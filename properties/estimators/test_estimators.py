"""Every member of the compensated family computes what its definition says, on arbitrary graphs, batches and histories.

The other side of each comparison is `oracles.py` (dense numpy without automatic differentiation), the reference vectors
of another program, or, for models that neither knows, one joint evaluation of all local rows. Parameters, histories,
batches, inclusion probabilities, betas and scores are arbitrary; nothing needs to be near an exact value.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from common import oracles
from common.helpers import (
    SCORE_NAMES,
    array,
    assert_close,
    assert_gradients,
    edge_weights,
    from_oracle,
    on_all_nodes,
    oracle_problem,
    oracle_tables,
    path_graph,
)
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from lmc_verify import (
    GAS,
    GCN,
    LMC,
    BackwardSGD,
    Batch,
    ClusterGCN,
    Estimator,
    Graph,
    History,
    LayeredModel,
    LMCBackwardOnly,
    LMCForwardOnly,
    Problem,
    exact_pass,
)
from lmc_verify.estimators import FMLocal, node_weights
from lmc_verify.graphs.operators import LocalSet
from lmc_verify.models import ConvLayer, GCNConv
from lmc_verify.testing import batches, betas, graphs, histories, problems

COMPENSATED = ["lmc", "gas", "fm-local", "lmc-forward-only", "lmc-backward-only"]
LOSS_WEIGHTINGS = ["inclusion", "node-count", "batch-mean"]


@st.composite
def steps(draw: st.DrawFn) -> tuple[Problem, History, Batch, str]:
    """A plain GCN problem, a state of arbitrary values, an arbitrary batch and a weighting.

    Smaller problems hide most of what is tested here; one layer is a subject of `test_e7_reductions.py`.
    """
    problem = draw(problems(graphs(min_nodes=3), kinds=("gcn",), plain=True, min_layers=2))
    state, batch = draw(histories(problem)), draw(batches(problem.graph))
    return problem, state, batch, draw(st.sampled_from(LOSS_WEIGHTINGS))


@st.composite
def blends(draw: st.DrawFn, graph: Graph) -> dict[str, Any]:
    """Settings of LMC: any beta, any score, and the published code's exception for complete rows."""
    return {
        "beta": draw(betas(graph)),
        "score": draw(st.sampled_from(sorted(SCORE_NAMES))),
        "whole_when_complete": draw(st.booleans()),
        "count_self_loop": draw(st.booleans()),
    }


def oracle_weights(problem: Problem, batch: Batch, weighting: str) -> oracles.Array:
    """The table of weightings, from its definition; NaN outside of the batch."""
    graph, labelled = problem.graph, problem.graph.train_mask.numpy()
    if weighting == "inclusion":
        return on_all_nodes(graph.num_nodes, batch, 1 / batch.inclusion)
    if weighting == "node-count":
        factor = graph.num_nodes / batch.size
    else:
        inside = labelled[batch.nodes.numpy()].sum()
        factor = labelled.sum() / inside if inside else 0.0
    return on_all_nodes(graph.num_nodes, batch, torch.full((batch.size,), factor, dtype=torch.float64))


def oracle_beta(graph: Graph, batch: Batch, settings: dict[str, Any]) -> oracles.Array:
    counts = oracles.edge_counts(graph.edge_index.numpy(), graph.num_nodes)
    ratio = oracles.local_degree_ratio(counts, batch.nodes.numpy(), self_loop=settings["count_self_loop"])
    beta = np.asarray(settings["beta"]) * oracles.beta_scores(ratio, SCORE_NAMES[settings["score"]])
    return np.where(ratio == 1, 1.0, beta) if settings["whole_when_complete"] else beta


def build(name: str, settings: dict[str, Any], weighting: str) -> Estimator:
    if name == "gas":
        return GAS(weighting=weighting)
    if name == "fm-local":
        return FMLocal(beta=settings["beta"], weighting=weighting)
    kind = {"lmc": LMC, "lmc-forward-only": LMCForwardOnly, "lmc-backward-only": LMCBackwardOnly}[name]
    return kind(**settings, weighting=weighting)


@pytest.mark.parametrize("name", COMPENSATED)
@given(drawn=steps(), data=st.data())
def test_gradient_loss_and_histories_equal_the_oracle(name: str, drawn: tuple, data: st.DataObject) -> None:
    problem, state, batch, weighting = drawn
    settings = data.draw(blends(problem.graph))
    estimator = build(name, settings, weighting)

    reference = oracle_problem(problem)
    H, V = oracle_tables(state)
    nodes, weights = batch.nodes.numpy(), oracle_weights(problem, batch, weighting)
    if name == "gas":
        want = oracles.gas(reference, H, V, nodes, weights)
    elif name == "fm-local":
        beta = np.broadcast_to(np.asarray(settings["beta"]), (problem.graph.num_nodes,))
        want = oracles.fm_local(reference, H, V, nodes, beta, weights)
    else:
        run = {
            "lmc": oracles.lmc,
            "lmc-forward-only": oracles.lmc_forward_only,
            "lmc-backward-only": oracles.lmc_backward_only,
        }[name]
        want = run(reference, H, V, nodes, oracle_beta(problem.graph, batch, settings), weights)

    got = estimator.estimate(problem, state, batch)
    state.apply(got.writes)
    call = f"{estimator}.estimate({problem}, nodes={nodes.tolist()})"
    assert_gradients(call, got.gradient, from_oracle(want.gradient))
    assert_close(f"{call}.loss", got.loss, want.loss)
    keeps_auxiliary = name in ("lmc", "lmc-backward-only")
    for layer in range(1, problem.num_layers + 1):
        assert_close(f"{call}: history H^{layer}", state.embeddings[layer], want.history_H[layer])
        want_V = want.history_V if keeps_auxiliary else V
        assert_close(f"{call}: history V^{layer}", state.auxiliary[layer], want_V[layer])


@given(steps())
def test_backward_sgd_equals_the_oracle(drawn: tuple) -> None:
    problem, _, batch, weighting = drawn
    estimator = BackwardSGD(weighting=weighting)
    got = estimator.estimate(problem, estimator.init(problem), batch)
    weights = oracle_weights(problem, batch, weighting)
    reference = oracle_problem(problem)
    everywhere = {"forward_policy": "exact", "backward_policy": "exact"}
    H, V = oracles.zero_histories(reference)
    want = oracles.compensated(reference, H, V, batch.nodes.numpy(), 0.0, weights=weights, **everywhere)
    call = f"{estimator}.estimate({problem}, nodes={batch.nodes.tolist()})"
    assert_gradients(call, got.gradient, from_oracle(want.gradient))
    assert_close(f"{call}.loss", got.loss, want.loss)
    if weighting == "inclusion":  # and the oracle's direct formula
        direct = oracles.backward_sgd(reference, batch.nodes.numpy(), 1 / weights)
        assert_gradients(call, got.gradient, from_oracle(direct))
    assert got.writes == ()


@pytest.mark.parametrize("renormalise", [True, False])
@given(drawn=steps())
def test_cluster_gcn_equals_the_oracle(renormalise: bool, drawn: tuple) -> None:
    problem, _, batch, weighting = drawn
    graph, nodes = problem.graph, batch.nodes.numpy()
    estimator = ClusterGCN(renormalise=renormalise, weighting=weighting)
    got = estimator.estimate(problem, estimator.init(problem), batch)
    operator = None
    if renormalise:
        kept = np.isin(graph.edge_index.numpy(), nodes).all(axis=0)
        weight = edge_weights(graph)
        induced = oracles.induced_edges(graph.edge_index.numpy(), nodes)
        operator = oracles.gcn_operator(induced, graph.num_nodes, None if weight is None else weight[kept])
    want = oracles.cluster_gcn(oracle_problem(problem), nodes, oracle_weights(problem, batch, weighting), operator)
    call = f"{estimator}.estimate({problem}, nodes={nodes.tolist()})"
    assert_gradients(call, got.gradient, from_oracle(want.gradient))
    assert_close(f"{call}.loss", got.loss, want.loss)
    assert got.writes == ()


@pytest.mark.parametrize("weighting", LOSS_WEIGHTINGS)
@given(drawn=steps())
def test_node_weights_are_the_table_of_weightings(weighting: str, drawn: tuple) -> None:
    problem, _, batch, _ = drawn
    got = node_weights(problem, batch, weighting)
    want = oracle_weights(problem, batch, weighting)[batch.nodes.numpy()]
    assert_close(f"node_weights({weighting})", got, want, rtol=1e-15)
    assert got.dtype == problem.graph.dtype


# --- every model: one joint evaluation of all local rows ------------------------------------------


def joint_gradient(
    problem: Problem, state: History, batch: Batch, weights: Tensor, betas: tuple[Tensor, Tensor], *, drop: bool
) -> dict[str, Tensor]:
    """The same definition for any model, with all local rows of a layer in one piece of autograd.

    The engine evaluates batch and halo rows apart and differentiates parameters through the former; here a weight of
    zero at halo rows does that. `betas` are columns by halo row, forward and backward.
    """
    graph, model, size = problem.graph, problem.model, batch.size
    nodes = torch.cat([batch.nodes, graph.neighbourhood(batch.nodes)])
    halo, local = nodes[size:], LocalSet(nodes, size)
    factor = torch.cat([weights, weights.new_zeros(halo.numel())])[:, None]
    gradient = problem.zero_gradient()

    def collect(part: nn.Module | None, rows: Tensor, cotangent: Tensor) -> None:
        own = problem.parameters_of(part)
        if own:
            settings = {"retain_graph": True, "allow_unused": True, "materialize_grads": True}
            for name, grad in zip(
                own, torch.autograd.grad(rows, list(own.values()), cotangent, **settings), strict=True
            ):
                gradient[name] += grad

    encoded = model.encode(graph.x[nodes])
    leaves, starts, outputs, h = [], [], [], encoded.detach()
    for index in range(1, problem.num_layers + 1):
        layer = model.layer(index)
        leaves.append(h.clone().requires_grad_())
        block = graph.block(layer.operator, nodes, local)
        starts.append(encoded.detach().clone().requires_grad_())
        outputs.append(layer(leaves[-1], leaves[-1], starts[-1], block))
        h = outputs[-1].detach().clone()
        h[size:] = (1 - betas[0]) * state.embeddings[index][halo] + betas[0] * h[size:]

    top = h.requires_grad_()
    losses = problem.node_losses(model.predict(top), nodes)
    (v,) = torch.autograd.grad(losses.sum(), top, retain_graph=True)
    read_again = torch.zeros_like(encoded)  # what layers that read the encoder's output send back to it
    collect(model.head, losses, factor[:, 0])
    for index in range(problem.num_layers, 0, -1):
        v = v.clone()
        if drop:
            v[size:] = 0
        elif index < problem.num_layers:
            v[size:] = (1 - betas[1]) * state.auxiliary[index][halo] + betas[1] * v[size:]
        collect(model.layer(index), outputs[index - 1], factor * v)
        inputs = (leaves[index - 1], starts[index - 1])
        v, again = torch.autograd.grad(
            outputs[index - 1], inputs, v, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        read_again += again
    if encoded.requires_grad:
        collect(model.encoder, encoded, factor * (v + read_again))
    return gradient


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPENSATED)
@given(data=st.data())
def test_every_model_follows_the_definition(name: str, data: st.DataObject) -> None:
    problem = data.draw(problems(graphs(min_nodes=3), min_layers=2))
    graph = problem.graph
    state, batch, settings = data.draw(histories(problem)), data.draw(batches(graph)), data.draw(blends(graph))
    estimator = build(name, settings, "inclusion")
    if name == "fm-local":
        beta = np.broadcast_to(np.asarray(settings["beta"]), (graph.num_nodes,))
    else:
        beta = oracle_beta(graph, batch, settings)
    column = torch.tensor(beta)[graph.neighbourhood(batch.nodes)][:, None]
    none = torch.zeros_like(column)
    betas = (none if name in ("gas", "lmc-backward-only") else column, column)
    drop = name in ("gas", "fm-local", "lmc-forward-only")
    want = joint_gradient(problem, state, batch, 1 / batch.inclusion, betas, drop=drop)
    got = estimator.estimate(problem, state, batch).gradient
    assert_gradients(f"{estimator}.estimate({problem}, nodes={batch.nodes.tolist()})", got, want)


# --- reference vectors of another program ---------------------------------------------------------

FOLDER = Path(__file__).parents[1] / "common" / "reference"
REFERENCES = ["directed-pre", "karate-pre", "undirected-post"]
RUNS = ["lmc-beta0", "lmc", "gas", "fm", "lmc-forward-only"]
REFERENCE_TOLERANCE = 1e-11  # float64, sums in another order; the tolerance that the oracle itself is held to


def load(name: str) -> tuple[Problem, dict[str, Any]]:
    raw = json.loads((FOLDER / f"{name}.json").read_text())
    graph = Graph(
        edge_index=torch.tensor(raw["edge_index"]).reshape(2, -1),
        x=torch.tensor(raw["x"], dtype=torch.float64),
        y=torch.tensor(raw["y"]),
        train_mask=torch.tensor(raw["train_mask"]),
        name=name,
    )
    pre, last = raw["activation_cut"] == "pre", len(raw["weights"]) - 1
    layers = []
    for index, (weight, bias) in enumerate(zip(raw["weights"], raw["biases"], strict=True)):
        conv = GCNConv(len(weight), len(bias), dtype=torch.float64)
        with torch.no_grad():
            conv.lin.weight.copy_(torch.tensor(weight, dtype=torch.float64).T)
            conv.bias.copy_(torch.tensor(bias, dtype=torch.float64))
        before = nn.ReLU() if pre and index > 0 else None
        after = nn.ReLU() if not pre and index < last else None
        layers.append(ConvLayer(conv, before=before, after=after))
    return Problem(graph, LayeredModel(layers)), raw


def reference_estimator(run: str, beta: tuple[float, ...]) -> Estimator:
    return {
        "lmc-beta0": LMC(),
        "lmc": LMC(beta=beta, score="constant"),
        "gas": GAS(),
        "fm": FMLocal(beta=beta),
        "lmc-forward-only": LMCForwardOnly(beta=beta, score="constant"),
    }[run]


def assert_reference(call: str, got: Any, want: Any) -> None:
    """Reference numbers are compared relative to their norm, as their own tests do."""
    got, want = array(got), np.asarray(want)
    size = float(np.linalg.norm(want)) or 1.0
    assert_close(call, got, want, rtol=REFERENCE_TOLERANCE, scale=size)


@pytest.mark.parametrize("name", REFERENCES)
def test_reference_exact_pass(name: str) -> None:
    problem, raw = load(name)
    got, want = exact_pass(problem), raw["exact"]
    assert_reference(f"{name}: loss", got.loss, want["loss"])
    for layer in range(1, problem.num_layers + 1):
        assert_reference(f"{name}: H^{layer}", got.embeddings[layer], want["H"][layer - 1])
        assert_reference(f"{name}: V^{layer}", got.auxiliary[layer], want["V"][layer - 1])
    for parameter, value in from_oracle(want).items():
        assert_reference(f"{name}: {parameter}", got.gradient[parameter], value)


@pytest.mark.parametrize("name", REFERENCES)
def test_reference_backward_sgd(name: str) -> None:
    problem, raw = load(name)
    estimator, number = BackwardSGD(), len(raw["clusters"])
    state = estimator.init(problem)
    for cluster, want in zip(raw["clusters"], raw["backward_sgd"], strict=True):
        got = estimator.estimate(problem, state, Batch.of(cluster, 1 / number)).gradient
        for parameter, value in from_oracle(want).items():
            assert_reference(f"{name}: batch {cluster}, {parameter}", got[parameter], value)


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("name", REFERENCES)
def test_reference_runs(name: str, run: str) -> None:
    problem, raw = load(name)
    estimator, want = reference_estimator(run, tuple(raw["beta"])), raw["runs"][run]
    state, steps_taken, compared = estimator.init(problem), raw["steps"], 0
    for k, nodes in enumerate(steps_taken):
        factor = raw["scale"]["last_step_two_clusters" if k == len(steps_taken) - 1 else "single_cluster"]
        estimate = estimator.estimate(problem, state, Batch.of(nodes, 1 / factor))
        state.apply(estimate.writes)
        if k in want["at_step"]:
            compared += 1
            recorded = from_oracle(want["gradients"][want["at_step"].index(k)])
            for parameter, value in recorded.items():
                assert_reference(f"{name}, {run}, step {k}: {parameter}", estimate.gradient[parameter], value)
    assert compared == len(want["at_step"]) > 0
    # The other program leaves the last layer's history at zero where no estimator reads it.
    last = problem.num_layers if run in ("lmc", "lmc-beta0") else problem.num_layers - 1
    for layer in range(1, last + 1):
        assert_reference(f"{name}, {run}: H^{layer}", state.embeddings[layer], want["final_history_H"][layer - 1])
        if run in ("lmc", "lmc-beta0"):
            assert_reference(f"{name}, {run}: V^{layer}", state.auxiliary[layer], want["final_history_V"][layer - 1])


def test_tables_that_are_filled_or_emptied_are_exact_for_nothing() -> None:
    """Else Backward SGD would read zeros as exact values."""
    graph = path_graph(5)
    problem = Problem(graph, GCN(3, 4, 3, 2, dtype=torch.float64).eval())
    state = BackwardSGD().init(problem)
    assert state.is_exact_for(problem)
    assert state.clone().is_exact_for(problem)
    for other in (state.zeroed(), state.filled(exact_pass(problem))):
        assert not other.is_exact_for(problem)


def test_float32_is_close_to_float64() -> None:
    # float32 rounds by 6e-8; the same chain as in helpers.py, 1e3 roundings, gives 1e-4 relative to the gradient.
    problem, raw = load("karate-pre")
    single = problem.to(dtype=torch.float32)
    for run in RUNS:
        estimator = reference_estimator(run, tuple(raw["beta"]))
        states = [estimator.init(problem), estimator.init(single)]
        for nodes in raw["steps"]:
            batch = Batch.of(nodes, 0.25)
            wide, narrow = (
                estimator.estimate(p, state, batch) for p, state in zip((problem, single), states, strict=True)
            )
            states[0].apply(wide.writes)
            states[1].apply(narrow.writes)
            assert all(value.dtype == torch.float32 for value in narrow.gradient.values())
            assert_gradients(f"{run} in float32, batch {nodes}", narrow.gradient, wide.gradient, rtol=1e-4)
