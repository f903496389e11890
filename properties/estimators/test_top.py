"""TOP is the published method: combinations fitted on random activations, which act on what the layers read."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from common import oracles
from common.helpers import (
    assert_close,
    assert_gradients,
    expectation,
    from_oracle,
    on_all_nodes,
    oracle_problem,
    path_graph,
    relative_error,
)
from hypothesis import given
from hypothesis import strategies as st

from lmc_verify import GCN, GCNII, Batch, Clusters, Problem, exact_pass, load_graph, make_partition
from lmc_verify.estimators import TOP, History, TOPKrylov
from lmc_verify.models import initialise
from lmc_verify.seeds import torch_generator
from lmc_verify.testing import batches, graphs, problems


def random_weights(problem: Problem, estimator: TOP) -> list[tuple[list[np.ndarray], list[np.ndarray]]]:
    """The parameters of the random models, drawn as a user's models are."""
    out = []
    for number in range(estimator.random_models):
        drawn = problem.copy()
        initialise(drawn.model, torch_generator(estimator.seed, "message invariance", number))
        found = oracle_problem(drawn)
        out.append((found.weights, found.biases))
    return out


@given(data=st.data())
def test_combinations_gradient_and_loss_equal_the_oracle(data: st.DataObject) -> None:
    problem = data.draw(problems(graphs(min_nodes=3), kinds=("gcn",), plain=True, min_layers=2))
    batch = data.draw(batches(problem.graph))
    estimator = TOP(
        out_of_batch=data.draw(st.booleans()),
        random_models=data.draw(st.integers(1, 2)),
        seed=data.draw(st.integers(0, 3)),
    )
    state, reference, nodes = estimator.init(problem), oracle_problem(problem), batch.nodes.numpy()
    found = estimator.invariance(problem, state, batch.nodes)
    call = f"{estimator}.estimate({problem}, nodes={nodes.tolist()})"
    assert found.halo.tolist() == oracles.senders(reference.edges, nodes)
    want_R = oracles.top_combinations(reference, random_weights(problem, estimator), nodes)
    assert_close(f"{call}: R", found.coefficients, want_R, rtol=1e-6)
    # The estimate is compared for the package's own R: fits are as sensitive as their least squares.
    weights = on_all_nodes(problem.graph.num_nodes, batch, 1 / batch.inclusion)
    gradient, loss = oracles.top(
        reference, found.coefficients.numpy(), nodes, weights, out_of_batch=estimator.out_of_batch
    )
    got = estimator.estimate(problem, state, batch)
    assert_gradients(call, got.gradient, from_oracle(gradient), rtol=1e-9)
    assert_close(f"{call}.loss", got.loss, loss, rtol=1e-9)


@pytest.mark.slow
@given(data=st.data())
def test_both_cuts_of_a_model_are_one(data: st.DataObject) -> None:
    """R acts behind the activation wherever the layers are cut, and the basis does not depend on the cut."""
    graph = data.draw(graphs(min_nodes=3))
    batch = data.draw(batches(graph))
    settings = {"num_layers": 3, "seed": data.draw(st.integers(0, 5)), "dtype": torch.float64}
    found = []
    for cut in ("pre", "post"):
        model = GCN(graph.num_features, 4, graph.num_outputs, activation_cut=cut, **settings).eval()
        problem = Problem(graph, model, "cross_entropy" if graph.y.dim() == 1 else "bce")
        found.append(TOP().estimate(problem, TOP().init(problem), batch))
    assert_gradients(f"nodes={batch.nodes.tolist()}", found[0].gradient, found[1].gradient, rtol=1e-8)


def test_the_basis_is_orthonormal_and_spans_the_random_activations() -> None:
    graph = path_graph(14)  # more nodes than columns
    problem = Problem(graph, GCN(graph.num_features, 3, graph.num_outputs, 3, dtype=torch.float64).eval())
    basis = TOP(seed=2).basis(problem)
    assert_close("Q^T Q", basis.T @ basis, np.eye(basis.shape[1]))
    drawn = problem.copy()
    initialise(drawn.model, torch_generator(2, "message invariance", 0))
    exact = exact_pass(drawn)
    spanned = torch.cat([graph.x, exact.embeddings[1].relu(), exact.embeddings[2].relu()], dim=1)
    assert_close("projection", basis @ (basis.T @ spanned), spanned)
    assert basis.shape[1] == int(torch.linalg.matrix_rank(spanned))
    assert not torch.equal(problem.model.layer(1).conv.lin.weight, drawn.model.layer(1).conv.lin.weight)  # type: ignore[attr-defined]
    more = TOP(seed=2, random_models=2).basis(problem)
    assert_close("the first model's part", more @ (more.T @ spanned), spanned)


@pytest.mark.parametrize(("tolerance", "second"), [(1e-2, 0.0), (1e-6, 5e3)])
def test_directions_below_the_tolerance_take_no_part_in_the_fit(tolerance: float, second: float) -> None:
    """The batch's rows of the basis have the singular values 1 and 1e-4; a fit by the latter would be 5,000."""
    graph = path_graph(3)
    problem = Problem(graph, GCN(3, 4, 3, 2, dtype=torch.float64).eval())
    basis = torch.tensor([[1.0, 0.0], [0.0, 1e-4], [0.5, 0.5]], dtype=torch.float64)
    found = TOP(tolerance=tolerance).invariance(problem, History(vectors={"basis": basis}), torch.tensor([0, 1]))
    assert found.halo.tolist() == [2]
    assert_close("R", found.coefficients, [[0.5, second]])


def test_an_encoder_learns_from_the_halo_in_the_ob_variant_alone() -> None:
    """With out_of_batch the halo's features pass through the encoder; else only the batch's do."""
    graph = path_graph(4)
    problem = Problem(graph, GCNII(3, 4, 3, 1, seed=1, dtype=torch.float64).eval())
    batch, changed = Batch.of([0, 1], 0.5), graph.replaced(x=graph.x * torch.tensor([[1.0], [1.0], [3.0], [1.0]]))
    other = Problem(changed, problem.model)
    basis = TOP().init(problem)
    for out_of_batch in (False, True):
        estimator = TOP(out_of_batch=out_of_batch)
        one, two = (estimator.estimate(p, basis, batch).gradient for p in (problem, other))
        moved = any(not torch.equal(one[name], two[name]) for name in one if name.startswith("encoder"))
        assert moved == out_of_batch


def test_the_krylov_variant_is_another_estimator() -> None:
    """Two layers on digits: both are biased, the published method about a hundred times as much."""
    graph = load_graph("digits").double()
    problem = Problem(graph, GCN(graph.num_features, 8, graph.num_outputs, 2, seed=1, dtype=torch.float64).eval())
    design, exact = Clusters(make_partition(graph, "contiguous", 4), 1), exact_pass(problem).gradient
    bias = []
    for estimator in (TOP(), TOPKrylov()):
        state = estimator.init(problem)
        mean = expectation(design, lambda batch, e=estimator, s=state: e.estimate(problem, s, batch).gradient)  # type: ignore[misc]
        bias.append(relative_error(mean, exact))
    assert bias[0] > 20 * bias[1] > 1e-6, bias


@pytest.mark.parametrize("estimator", [TOP(), TOPKrylov()], ids=str)
def test_names_are_those_of_the_registry(estimator: TOP | TOPKrylov) -> None:
    assert estimator.name == {TOP: "top", TOPKrylov: "top-krylov"}[type(estimator)]
