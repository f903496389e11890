"""GraphFM-OB is the published method: fresh values of batch rows alone, blended behind the activation, written back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from common import oracles
from common.crossed import slow_but
from common.helpers import assert_close, assert_gradients, from_oracle, on_all_nodes, oracle_problem, path_graph
from hypothesis import given
from hypothesis import strategies as st

from lmc_verify import FM, GAS, GCNII, SAGE, Batch, InvalidInputError, Problem, check_claim, exact_pass, make_partition
from lmc_verify.claims import Outcome
from lmc_verify.estimators import Blend, Drop, FMLocal, Momentum, Policies, exact_histories
from lmc_verify.estimators.compensated.step_momentum import read_embeddings
from lmc_verify.graphs import Clusters
from lmc_verify.models import key_dropout
from lmc_verify.testing import batches, betas, graphs, histories, problems


@given(data=st.data())
def test_gradient_loss_and_histories_equal_the_oracle(data: st.DataObject) -> None:
    problem = data.draw(problems(graphs(min_nodes=3), kinds=("gcn",), plain=True, min_layers=2))
    state, batch = data.draw(histories(problem)), data.draw(batches(problem.graph))
    estimator = FM(beta=data.draw(betas(problem.graph)))
    tables = {layer: table.numpy().copy() for layer, table in state.embeddings.items()}
    weights = on_all_nodes(problem.graph.num_nodes, batch, 1 / batch.inclusion)
    beta = np.broadcast_to(np.asarray(estimator.beta), (problem.graph.num_nodes,))
    want = oracles.graph_fm(oracle_problem(problem), tables, batch.nodes.numpy(), beta, weights)

    got = estimator.estimate(problem, state, batch)
    call = f"{estimator}.estimate({problem}, nodes={batch.nodes.tolist()})"
    assert_gradients(call, got.gradient, from_oracle(want.gradient))
    assert_close(f"{call}.loss", got.loss, want.loss)
    state.apply(got.writes)
    for layer, table in want.history_H.items():
        assert_close(f"{call}: history {layer}", state.embeddings[layer], table)


@pytest.mark.slow
@given(data=st.data())
def test_with_beta_zero_it_is_gas_on_every_model(data: st.DataObject) -> None:
    """What a history of H makes the layers read is what FM's history holds, so both give one gradient.

    Parameters of the node-wise part, such as a norm's, are left out: GAS also applies that part to the halo's history.
    """
    problem = data.draw(problems(graphs(min_nodes=3), min_layers=2))
    state, batch = data.draw(histories(problem)), data.draw(batches(problem.graph))
    held = FM().init(problem)
    held.embeddings = read_embeddings(problem, state.embeddings)
    want, got = GAS().estimate(problem, state, batch), FM(beta=0.0).estimate(problem, held, batch)
    found, wanted = ({k: v for k, v in e.gradient.items() if ".before." not in k} for e in (got, want))
    assert_gradients(f"{problem}, nodes={batch.nodes.tolist()}", found, wanted)
    assert_close("loss", got.loss, want.loss)
    state.apply(want.writes)
    held.apply(got.writes)
    for layer, rows in read_embeddings(problem, state.embeddings).items():
        assert_close(f"history {layer}", held.embeddings[layer], rows)


def test_a_fresh_row_of_sage_keeps_its_own_term() -> None:
    """0 - 1 - 2 with the batch {0}: row 1 gets half of row 0 as its mean, and its own row by the root weight."""
    problem = Problem(path_graph(3), SAGE(3, 4, 3, 2, seed=1, dtype=torch.float64).eval())
    estimator = FM(beta=1.0)
    state = estimator.init(problem)
    state.apply(estimator.estimate(problem, state, Batch.of([0], 0.5)).writes)
    conv, x = problem.model.layer(1).conv, problem.graph.x  # type: ignore[attr-defined]  # SAGE's
    want = 0.5 * x[0] @ conv.lin_l.weight.T + conv.lin_l.bias + x[1] @ conv.lin_r.weight.T
    assert_close("history of row 1", state.embeddings[1][1], want.relu())
    assert not state.embeddings[1][2].any()


def test_a_fresh_row_of_gcnii_reads_the_encoder_again() -> None:
    problem = Problem(path_graph(3), GCNII(3, 4, 3, 2, seed=1, alpha=0.3, dtype=torch.float64).eval())
    estimator = FM(beta=1.0)
    state = estimator.init(problem)
    state.apply(estimator.estimate(problem, state, Batch.of([0], 0.5)).writes)
    layer, x0 = problem.model.layer(1), problem.model.encode(problem.graph.x)
    whole = problem.graph.operator("gcn").csr.to_dense()
    alone = torch.zeros_like(whole)
    alone[1, 0] = whole[1, 0]  # of row 1's three messages that of the batch
    mixed = 0.7 * alone @ x0 + 0.3 * x0
    beta = float(np.log(0.5 / 1 + 1))
    want = ((1 - beta) * mixed + beta * mixed @ layer.conv.weight1).relu()[1]  # type: ignore[attr-defined]
    assert_close("history of row 1", state.embeddings[1][1], want)


def test_dropout_acts_behind_the_history() -> None:
    """The histories of the first layer hold activated rows without a mask; the layer above reads them with one."""
    graph = path_graph(6)
    model = SAGE(3, 16, 3, 2, seed=1, dropout=0.5, dtype=torch.float64).train()
    problem, batch = Problem(graph, model), Batch.of([1, 2], 0.5)
    key_dropout(model, 0, 1)
    plain = Problem(graph, SAGE(3, 16, 3, 2, seed=1, dtype=torch.float64).eval())
    estimator = FM(beta=0.4)
    writes = [estimator.estimate(p, estimator.init(p), batch).writes[0] for p in (problem, plain)]
    assert torch.equal(writes[0].values, writes[1].values)  # type: ignore[union-attr]  # rows
    state = estimator.init(problem)
    reads = FM(beta=0.0)
    before, noticed = reads.estimate(problem, state, batch).loss, []
    for unit in range(16):
        changed = state.clone()
        changed.embeddings[1][0, unit] = 5.0  # of a halo row
        noticed.append(reads.estimate(problem, changed, batch).loss != before)
    assert 0 < sum(noticed) < 16, "some of the halo's units are dropped, and others read"


def test_exact_histories_are_what_layers_read() -> None:
    problem = Problem(path_graph(5), SAGE(3, 4, 3, 3, seed=1, activation="tanh", dtype=torch.float64).eval())
    exact = exact_pass(problem)
    held = exact_histories(FM(), problem, exact)
    assert_close("layer 1", held[1], exact.embeddings[1].tanh())
    assert torch.equal(held[3], exact.embeddings[3])
    assert torch.equal(exact_histories(FMLocal(), problem, exact)[1], exact.embeddings[1])


@pytest.mark.parametrize(
    ("claim", "beta", "outcome"),
    [
        ("theorem-1/unbiased", 0.3, Outcome.REFUTED),
        ("e1/equals-backward-sgd", 0.3, Outcome.REFUTED),
        ("e2/exact-when-frozen", 0.0, Outcome.REFUTED),
        ("e3/contraction", 0.3, Outcome.REFUTED),
        ("e3/contraction", 0.0, Outcome.EXACT),
        ("e6/bias-per-layer", 0.0, Outcome.EXACT),
        ("e7/reductions", 0.3, Outcome.EXACT),
    ],
)
@pytest.mark.parametrize("activation", slow_but({"tanh"}, ["relu", "tanh"]))
def test_verdicts_are_those_of_theory(claim: str, beta: float, outcome: Outcome, activation: str) -> None:
    """With beta = 0 the histories are exact in E6 although they hold activated rows."""
    graph = path_graph(8)
    problem = Problem(graph, SAGE(3, 4, 3, 2, seed=1, activation=activation, dtype=torch.float64).eval())
    design = Clusters(make_partition(graph, "contiguous", 4), 2)
    verdict = check_claim(claim, problem, design, FM(beta=beta))
    assert verdict.outcome is outcome, verdict.summary


def test_misuse_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="Momentum belongs to the forward pass"):
        Policies(Momentum(0.3), Drop())
    with pytest.raises(InvalidInputError, match="Momentum belongs to the forward pass"):
        Policies(Blend(0.3), Momentum(0.3), write_halo=True)
    with pytest.raises(InvalidInputError, match="beta is 2"):
        FM(beta=2)
