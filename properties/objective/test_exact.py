"""`exact_pass` is the objective, its gradient, every embedding and every auxiliary variable, whatever the model.

Two independent references: plain autograd through the whole model, and the numpy oracle, which differentiates by hand.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from common import oracles
from common.helpers import (
    assert_close,
    assert_gradients,
    assert_same_bits,
    autograd_gradient,
    from_oracle,
    oracle_problem,
    path_graph,
)
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from lmc_verify import (
    GCN,
    LMC,
    BackwardSGD,
    Batch,
    Block,
    ConvLayer,
    History,
    InvalidInputError,
    Layer,
    LayeredModel,
    Problem,
    exact_pass,
    spmm,
)
from lmc_verify.models import GCNConv
from lmc_verify.testing import graphs, problems


class InitialResidual(Layer):
    """A GCNII-like layer: reads the encoder's output again, at the destination row."""

    operator, aggregate_linear, reads_x0 = "gcn", True, True

    def __init__(self, width: int) -> None:
        super().__init__()
        rows = torch.linspace(-1, 1, width * width, dtype=torch.float64).reshape(width, width)
        self.weight = nn.Parameter(rows + 0.3 * torch.eye(width, dtype=torch.float64))

    def forward(self, source: Tensor, target: Tensor, x0_target: Tensor, block: Block) -> Tensor:
        return (0.7 * spmm(block, source.relu()) + 0.3 * x0_target) @ self.weight


def linear(inputs: int, outputs: int) -> nn.Linear:
    layer = nn.utils.skip_init(nn.Linear, inputs, outputs, dtype=torch.float64)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.linspace(-0.9, 1.1, parameter.numel()).reshape(parameter.shape))
    return layer


def special_models() -> dict[str, LayeredModel]:
    """Models that the drawn stacks do not cover, for `path_graph`: 3 features, 3 classes."""
    shared, frozen = InitialResidual(4), GCN(3, 4, 3, 2, encoder=True, head=True, dtype=torch.float64)
    frozen.layers[0].requires_grad_(False)
    bare = LayeredModel(
        [ConvLayer(GCNConv(3, 3, bias=False, dtype=torch.float64), before=nn.Tanh())], encoder=nn.ReLU()
    )
    with torch.no_grad():
        bare.layers[0].conv.lin.weight.copy_(linear(3, 3).weight)
    return {
        "layers that read x0": LayeredModel(
            [InitialResidual(4) for _ in range(3)], encoder=linear(3, 4), head=linear(4, 3)
        ),
        "one layer used twice": LayeredModel([shared, shared], encoder=linear(3, 4), head=linear(4, 3)),
        "frozen parameters": frozen,
        "encoder without parameters": bare,
    }


def whole_model(problem: Problem) -> tuple[Tensor, dict[str, Tensor]]:
    """The objective by its definition, and its gradient by plain autograd."""
    graph, mask = problem.graph, problem.graph.train_mask
    outputs = problem.model(graph)[mask]
    if graph.multi_label:
        value = F.binary_cross_entropy_with_logits(outputs, graph.y[mask])
    else:
        value = F.cross_entropy(outputs, graph.y[mask])
    return value.detach(), autograd_gradient(problem, value)


def assert_auxiliary(problem: Problem, exact) -> None:
    """V^l is the derivative of the objective with respect to H^l: run the model on from H^l as a leaf."""
    graph, model = problem.graph, problem.model
    for layer, value in exact.auxiliary.items():
        leaf = exact.embeddings[layer].clone().requires_grad_()
        h, x0 = leaf, leaf if layer == 0 else exact.embeddings[0]
        for index in range(layer + 1, problem.num_layers + 1):
            step = model.layer(index)
            h = step(h, h, x0, graph.operator(step.operator))
        (want,) = torch.autograd.grad(problem.node_losses(model.predict(h)).sum(), leaf)
        assert_close(f"exact_pass({problem}).auxiliary[{layer}]", value, want)


@given(problems(max_layers=4))
def test_exact_pass_is_plain_autograd(problem: Problem) -> None:
    exact = exact_pass(problem)
    value, gradient = whole_model(problem)
    call = f"exact_pass({problem})"
    assert_close(f"{call}.loss", exact.loss, value)
    assert_gradients(f"{call}.gradient", exact.gradient, gradient)
    assert_auxiliary(problem, exact)
    assert_close(f"{call}: outputs", problem.model.predict(exact.embeddings[-1]), problem.model(problem.graph))
    levels = range(0 if problem.model.encoder is not None else 1, problem.num_layers + 1)
    assert sorted(exact.auxiliary) == list(levels)


@pytest.mark.slow
@given(problems(kinds=("gcn",), plain=True, max_layers=4))
def test_exact_pass_is_the_oracle(problem: Problem) -> None:
    got, want = exact_pass(problem), oracles.exact(oracle_problem(problem))
    call = f"exact_pass({problem})"
    assert_close(f"{call}.loss", got.loss, want.loss)
    assert_gradients(f"{call}.gradient", got.gradient, from_oracle(want.gradient))
    for layer in range(1, problem.num_layers + 1):
        assert_close(f"{call}: H^{layer}", got.embeddings[layer], want.H[layer])
        assert_close(f"{call}: V^{layer}", got.auxiliary[layer], want.V[layer])


@pytest.mark.slow
@given(problems(), st.integers(1, 9))
def test_chunks_change_nothing(problem: Problem, chunk_size: int) -> None:
    whole, parts = exact_pass(problem), exact_pass(problem, chunk_size=chunk_size)
    call = f"exact_pass({problem}, chunk_size={chunk_size})"
    assert_close(f"{call}.loss", parts.loss, whole.loss)
    assert_gradients(f"{call}.gradient", parts.gradient, whole.gradient)
    for layer, value in enumerate(whole.embeddings):
        assert_close(f"{call}: H^{layer}", parts.embeddings[layer], value)
    for layer, value in whole.auxiliary.items():
        assert_close(f"{call}: V^{layer}", parts.auxiliary[layer], value)


@pytest.mark.slow
@given(problems())
def test_exact_pass_leaves_the_problem_alone(problem: Problem) -> None:
    sentinel = {name: torch.full_like(p, 7.0) for name, p in problem.model.named_parameters()}
    for name, parameter in problem.model.named_parameters():
        parameter.grad = sentinel[name]
    before = problem.parameter_snapshot()
    with torch.no_grad():
        first = exact_pass(problem)
    second = exact_pass(problem)
    assert problem.has_parameters(before)
    for name, parameter in problem.model.named_parameters():
        assert parameter.grad is sentinel[name], f"{name}.grad was replaced"
        assert bool((parameter.grad == 7.0).all()), f"{name}.grad was changed"
    assert_same_bits("exact_pass twice", second.gradient, first.gradient)
    held = [*second.embeddings, *second.auxiliary.values(), *second.gradient.values()]
    assert not any(value.requires_grad for value in held)


@pytest.mark.parametrize("name", special_models())
@pytest.mark.parametrize("chunk_size", [None, 2])
def test_special_models_are_exact(name: str, chunk_size: int | None) -> None:
    problem = Problem(path_graph(6), special_models()[name])
    exact = exact_pass(problem, chunk_size=chunk_size)
    value, gradient = whole_model(problem)
    assert_close(f"{name}: loss", exact.loss, value)
    assert_gradients(name, exact.gradient, gradient)
    assert list(exact.gradient) == list(problem.parameter_names)
    assert_auxiliary(problem, exact)


@pytest.mark.parametrize("name", special_models())
def test_special_models_obey_e1_and_theorem_1(name: str) -> None:
    problem = Problem(path_graph(6), special_models()[name])
    exact = exact_pass(problem)
    state = History.from_exact(problem, exact)
    total = problem.zero_gradient()
    for nodes in ([0, 3], [1, 4], [2, 5]):
        batch = Batch.of(nodes, 1 / 3)
        want = BackwardSGD().estimate(problem, state, batch).gradient
        assert_gradients(f"LMC on {name}, batch {nodes}", LMC().estimate(problem, state, batch).gradient, want)
        total = {parameter: value + want[parameter] / 3 for parameter, value in total.items()}
    assert_gradients(f"E[Backward SGD] on {name}", total, exact.gradient)


@pytest.mark.slow
@given(problems(graphs(multi_label=True), kinds=("gcn", "sage")))
def test_multi_label_loss_is_the_mean_over_tasks(problem: Problem) -> None:
    graph = problem.graph
    rows = problem.node_losses(problem.model(graph))
    assert_close("unlabelled rows", rows[~graph.train_mask], torch.zeros(int((~graph.train_mask).sum())))
    single = [
        problem.with_graph(replace(graph, train_mask=torch.arange(graph.num_nodes) == node))
        for node in graph.train_mask.nonzero().flatten().tolist()
    ]
    mean = sum(exact_pass(p).loss for p in single) / len(single)
    assert_close("mean of one-label objectives", exact_pass(problem).loss, mean)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_results_have_the_problem_dtype(dtype: torch.dtype) -> None:
    problem = Problem(path_graph(5), GCN(3, 4, 3, 2, encoder=True, head=True, dtype=torch.float64)).to(dtype=dtype)
    exact, reference = exact_pass(problem), exact_pass(problem.double())
    held = [*exact.embeddings, *exact.auxiliary.values(), *exact.gradient.values()]
    assert {value.dtype for value in held} == {dtype}
    # float32 rounds by 6e-8; a few hundred roundings.
    assert_gradients(f"{dtype}", exact.gradient, reference.gradient, rtol=1e-4)


def test_dropout_and_bad_chunks_are_refused() -> None:
    model = GCN(3, 4, 3, 2, dropout=0.5, dtype=torch.float64).eval()
    problem = Problem(path_graph(4), model)
    model.train()
    with pytest.raises(InvalidInputError, match=r"dropout is active in layers\.1\.before\.1: .*model\.eval\(\)"):
        exact_pass(problem)
    model.eval()
    for size in (0, -3):
        with pytest.raises(InvalidInputError, match=f"chunk_size is {size}, it must be a whole number"):
            exact_pass(problem, chunk_size=size)
    without = GCN(3, 4, 3, 2, dtype=torch.float64)
    without.load_state_dict(copy.deepcopy(model.state_dict()), strict=False)
    assert_gradients(
        "dropout switched off", exact_pass(problem).gradient, exact_pass(Problem(path_graph(4), without)).gradient
    )
