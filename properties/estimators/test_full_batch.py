"""Full-batch gradient descent is the exact gradient, whatever the batch, the histories and the model."""

from __future__ import annotations

import pickle

import pytest
import torch
from common.helpers import assert_close, assert_gradients, assert_same_bits, autograd_gradient
from hypothesis import given
from hypothesis import strategies as st

from lmc_verify import Batch, History, InvalidInputError, Problem, exact_pass, make_estimator
from lmc_verify.estimators import Estimator, FullBatch
from lmc_verify.testing import batches, histories, problems


def outputs(problem: Problem) -> torch.Tensor:
    """Return the model's outputs by one plain forward pass over the whole graph."""
    model = problem.model
    h = x0 = model.encode(problem.graph.x)
    for index in range(1, model.num_layers + 1):
        layer = model.layer(index)
        h = layer(h, h, x0, problem.graph.operator(layer.operator))
    return model.predict(h)


@given(st.data())
def test_estimate_is_the_gradient_by_autograd(data: st.DataObject) -> None:
    problem = data.draw(problems())
    batch, state = data.draw(batches(problem.graph)), data.draw(histories(problem))
    loss = problem.node_losses(outputs(problem)).sum()
    estimate = FullBatch().estimate(problem, state, batch)
    assert_gradients("full-batch estimate", estimate.gradient, autograd_gradient(problem, loss))
    assert_close("loss", estimate.loss, loss)
    assert estimate.writes == ()


@pytest.mark.slow
@given(st.data())
def test_batch_and_histories_are_not_looked_at(data: st.DataObject) -> None:
    problem = data.draw(problems())
    first, second = (data.draw(batches(problem.graph)) for _ in range(2))
    want = FullBatch().estimate(problem, History(), first)
    got = FullBatch().estimate(problem, data.draw(histories(problem)), second)
    assert_same_bits("estimate", got.gradient, want.gradient)
    assert (got.loss, got.cost) == (want.loss, want.cost)
    assert_same_bits("exact pass", want.gradient, exact_pass(problem).gradient)


@pytest.mark.slow
@given(problems())
def test_every_message_of_the_graph_is_paid_for(problem: Problem) -> None:
    cost = FullBatch().estimate(problem, History(), Batch.of([0])).cost
    edges = problem.graph.edge_index.shape[1]
    assert cost.nodes == problem.graph.num_nodes
    assert cost.messages_forward == cost.messages_forward_needed == edges
    assert cost.messages_backward == cost.messages_backward_needed == edges
    assert cost.history_bytes == 0


@pytest.mark.slow
@given(problems())
def test_state_is_empty(problem: Problem) -> None:
    state = FullBatch().init(problem)
    assert (state.embeddings, state.auxiliary, state.exact_for) == ({}, {}, None)
    assert state.num_bytes == 0


def test_estimator_is_known_by_name_and_has_no_settings() -> None:
    estimator = make_estimator("full-batch")
    assert isinstance(estimator, Estimator)
    assert estimator == FullBatch() == pickle.loads(pickle.dumps(estimator))
    assert hash(estimator) == hash(FullBatch())
    with pytest.raises(InvalidInputError, match="no setting 'beta'"):
        make_estimator("full-batch", beta=0.1)


@pytest.mark.slow
@given(problems())
def test_foreign_batches_are_refused(problem: Problem) -> None:
    size = problem.graph.num_nodes
    with pytest.raises(InvalidInputError, match=f"the batch holds node {size}"):
        FullBatch().estimate(problem, History(), Batch.of([size]))
