"""The fixed point of a recurrent GNN, its adjoint and its gradient are those of a linear-solve oracle.

The oracle knows nothing of iterations: a linear layer's fixed point is the solution of one dense linear system, another
layer's is found by Newton's method; the adjoint is always one linear system, with the transposed Jacobian.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from common.crossed import crossed
from common.helpers import assert_close, assert_gradients, autograd_gradient, path_graph
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from lmc_verify import GCN, Graph, InvalidInputError, LayeredModel, Problem, RecurrentGNN, exact_pass, fixed_point_pass
from lmc_verify.cases.case import build_case
from lmc_verify.cases.settings import CaseSettings
from lmc_verify.claims import CLAIMS, Outcome
from lmc_verify.models import GCNConv, RecurrentLayer, initialise
from lmc_verify.seeds import torch_generator
from lmc_verify.testing import graphs, seeds

RTOL = 1e-10  # contraction by a half: errors of the iteration are at most twice its last step, 1e-14


def problem_of(graph: Graph, seed: int, layers: int = 2, **settings: Any) -> Problem:
    outputs = graph.num_outputs if graph.multi_label else max(2, graph.num_outputs)
    model = RecurrentGNN(graph.num_features, 3, outputs, layers, seed=seed, dtype=graph.dtype, **settings)
    return Problem(graph, model.eval(), "bce" if graph.multi_label else "cross_entropy")


def flat_step(problem: Problem, x0: Tensor) -> Any:
    """The layer as a map of vectors, for dense Jacobians."""
    layer, width = problem.model.layer(1), problem.widths[1]

    def step(flat: Tensor) -> Tensor:
        h = flat.view(-1, width)
        return layer(h, h, x0, problem.graph.operator(layer.operator)).reshape(-1)

    return step


def solved(problem: Problem) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """H*, V* and the gradient, by dense linear solves."""
    model, width = problem.model, problem.widths[1]
    x0 = model.encode(problem.graph.x)
    step = flat_step(problem, x0.detach())
    h = torch.zeros_like(x0).reshape(-1).detach()
    identity = torch.eye(h.numel(), dtype=h.dtype)

    def jacobian(at: Tensor) -> Tensor:
        # Column by column from differences would round; the Jacobian is taken row by row by autograd.
        leaf = at.clone().requires_grad_()
        out = step(leaf)
        rows = [torch.autograd.grad(out[index], leaf, retain_graph=True)[0] for index in range(out.numel())]
        return torch.stack(rows)

    for _ in range(50):  # Newton: one solve is exact if the layer is linear
        h = (h + torch.linalg.solve(identity - jacobian(h), step(h) - h)).detach()
    leaf = h.clone().requires_grad_()
    loss = problem.node_losses(model.predict(leaf.view(-1, width))).sum()
    (direct,) = torch.autograd.grad(loss, leaf)
    v = torch.linalg.solve((identity - jacobian(h)).T, direct)
    # dL/dtheta = (direct derivative of the loss) + V*^T df/dtheta, the encoder inside f.
    total = problem.node_losses(model.predict(h.view(-1, width))).sum() + (v * flat_step(problem, x0)(h)).sum()
    return h.view(-1, width), v.view(-1, width), autograd_gradient(problem, total)


@pytest.mark.slow
@given(
    graph=graphs(directed=False),
    cut=st.sampled_from(["pre", "post"]),
    activation=st.sampled_from(["tanh", "softplus"]),
    seed=seeds(),
)
def test_fixed_point_adjoint_and_gradient_are_the_oracle_s(graph: Graph, cut: str, activation: str, seed: int) -> None:
    problem = problem_of(graph, seed, activation_cut=cut, activation=activation)
    found = fixed_point_pass(problem)
    h, v, gradient = solved(problem)
    assert_close("H*", found.embeddings, h, rtol=RTOL)
    assert_close("V*", found.auxiliary, v, rtol=RTOL)
    assert_gradients("gradient at the fixed point", found.gradient, gradient)
    assert found.loss == pytest.approx(problem.node_losses(problem.model.predict(h)).sum().item(), rel=1e-10)


@pytest.mark.slow
@given(graph=graphs(directed=False), seed=seeds())
def test_a_linear_layer_s_fixed_point_solves_one_linear_system(graph: Graph, seed: int) -> None:
    # H = A H W^T + 1 b^T + X: (I - W (x) A) vec(H) = vec(1 b^T + X), column by column.
    width = graph.num_features
    layer = RecurrentLayer(GCNConv(width, width, dtype=graph.dtype), before=nn.Identity())
    model = LayeredModel([layer], head=nn.Linear(width, max(2, graph.num_outputs), dtype=graph.dtype, device="meta"))
    model.head.to_empty(device="cpu")
    initialise(model, torch_generator(seed))
    weight = layer.conv.lin.weight
    with torch.no_grad():
        weight.mul_(0.5 / torch.linalg.matrix_norm(weight, ord=2))
    if graph.multi_label:
        return
    problem = Problem(graph, model)
    operator = graph.operator("gcn").csr.to_dense()
    right = (graph.x + layer.conv.bias.detach()).T.reshape(-1)
    system = torch.eye(right.numel(), dtype=graph.dtype) - torch.kron(weight.detach(), operator)
    want = torch.linalg.solve(system, right).view(width, -1).T
    found = fixed_point_pass(problem)
    assert_close("H* of a linear layer", found.embeddings, want, rtol=RTOL)
    loss_slope = found.auxiliary.T.reshape(-1)
    direct = (system.T @ loss_slope).view(width, -1).T
    leaf = want.clone().requires_grad_()
    (slope,) = torch.autograd.grad(problem.node_losses(model.predict(leaf)).sum(), leaf)
    assert_close("(I - W (x) A)^T V*", direct, slope, rtol=RTOL)


@pytest.mark.parametrize("cut", ["pre", "post"])
def test_many_steps_tend_to_the_fixed_point(cut: str) -> None:
    graph, errors = path_graph(6), []
    want = fixed_point_pass(problem_of(graph, 3, activation_cut=cut))
    for steps in (5, 10, 20, 60):
        problem = problem_of(graph, 3, steps, activation_cut=cut)
        exact = exact_pass(problem)
        errors.append(max(float((exact.gradient[name] - value).abs().max()) for name, value in want.gradient.items()))
    assert errors[0] > errors[1] > errors[2] > errors[3]
    assert errors[1] < errors[0] / 10  # contraction by at least a half in five steps: 32, and the step count beside it
    assert errors[3] < 1e-13


@pytest.mark.parametrize(
    ("cut", "claim"), crossed(["pre", "post"], ["e1/equals-backward-sgd", "e2/exact-when-frozen", "theorem-1/unbiased"])
)
def test_lmc_on_the_steps_is_exact_with_the_pre_cut_only(claim: str, cut: str) -> None:
    case = build_case(
        CaseSettings.model_validate(
            {
                "dataset": {"name": "karate"},
                "model": {"name": "recurrent", "layers": 4, "width": 6, "activation": "tanh", "activation_cut": cut},
                "estimator": {"name": "lmc"},
                "design": {"parts": 4, "per_batch": 1},
            }
        )
    )
    verdict = CLAIMS[claim].check(case)
    assert CLAIMS[claim].expect(case).outcome is verdict.outcome
    assert verdict.outcome is (Outcome.EXACT if cut == "pre" else Outcome.REFUTED), verdict.summary


def test_what_has_no_fixed_point_says_so() -> None:
    graph = path_graph(4)
    with pytest.raises(InvalidInputError, match=r"the 2 layers of GCN have parameters of their own.*RecurrentGNN"):
        fixed_point_pass(Problem(graph, GCN(3, 3, 3, 2, dtype=torch.float64)))
    step = RecurrentLayer(GCNConv(3, 3, dtype=torch.float64), before=nn.Identity())
    initialise(step, torch_generator(0))
    with torch.no_grad():
        step.conv.lin.weight.copy_(2 * torch.eye(3))
    growing = Problem(graph, LayeredModel([step]))
    with pytest.raises(InvalidInputError, match=r"the embeddings of the fixed point do not converge.*no contraction"):
        fixed_point_pass(growing, max_steps=500)
    with pytest.raises(InvalidInputError, match=r"rows of width 3 to 4; a fixed point needs equal widths"):
        fixed_point_pass(Problem(graph, GCN(3, 3, 4, 1, dtype=torch.float64)))
    with pytest.raises(InvalidInputError, match="has no residual connection"):
        RecurrentGNN(3, 3, 3, residual=True)
    with pytest.raises(InvalidInputError, match=r"contraction is 0\.0"):
        RecurrentGNN(3, 3, 3, contraction=0.0)
