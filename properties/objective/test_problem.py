"""A problem takes models that are functions of their inputs, and refuses the others by the name of what is at fault."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from common.helpers import autograd_gradient, path_graph
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from lmc_verify import (
    GAS,
    GCN,
    LMC,
    BackwardSGD,
    Clusters,
    Conv,
    ConvLayer,
    Gradient,
    InvalidInputError,
    LayeredModel,
    NeighbourSampling,
    Partition,
    Problem,
    UnknownNameError,
    check_claim,
    exact_gradient,
    exact_pass,
)
from lmc_verify.estimators import batch_distribution
from lmc_verify.graphs.operators import Block
from lmc_verify.models import GCNConv

NODES = 6
DESIGN = Clusters(Partition.contiguous(NODES, 3), 1)


def gradient_by_autograd(problem: Problem) -> Gradient:
    return autograd_gradient(problem, problem.node_losses(problem.model(problem.graph)).sum())


def net(**settings: object) -> LayeredModel:
    return GCN(3, 4, 3, 2, dtype=torch.float64, **settings)  # type: ignore[arg-type]  # settings of the tests below


def normed() -> LayeredModel:
    model = net()
    with torch.random.fork_rng(devices=[]):
        spectral_norm(model.layers[0].conv.lin)
    return model


class Counting(Conv):
    """A convolution that is scaled by the number of its calls."""

    operator, aggregate_linear = "gcn", True

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.calls = GCNConv(3, 3).double(), 0

    def forward(self, source: Tensor, target: Tensor, block: Block) -> Tensor:
        self.calls += 1
        rows: Tensor = self.inner(source, target, block) * self.calls
        return rows


class Remembering(Counting):
    """A convolution that keeps the mean of what it read in a buffer."""

    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros((), dtype=torch.float64))

    def forward(self, source: Tensor, target: Tensor, block: Block) -> Tensor:
        self.seen += source.detach().mean() + 1
        rows: Tensor = self.inner(source, target, block)
        return rows


PASSES: dict[str, Callable[[Problem], object]] = {
    "exact_pass": exact_pass,
    "exact_gradient": exact_gradient,
    "a claim": lambda problem: check_claim("theorem-1/unbiased", problem, DESIGN, BackwardSGD()),
    "an estimate": lambda problem: LMC().estimate(problem, LMC().init(problem), next(DESIGN.enumerate())[0]),
}


@pytest.mark.parametrize("use", PASSES)
def test_spectral_norm_is_refused_in_training_mode(use: str) -> None:
    problem = Problem(path_graph(NODES), normed().train())
    with pytest.raises(InvalidInputError, match=r"layers\.0\.conv\.lin.*_SpectralNorm.*buffer '_u'.*model\.eval\(\)"):
        PASSES[use](problem)


def test_samples_are_refused_alike() -> None:
    problem = Problem(path_graph(NODES), normed().eval())
    estimator = NeighbourSampling()
    state = estimator.init(problem)
    batch, _ = next(batch_distribution(estimator, problem, state, DESIGN).enumerate())
    problem.model.train()
    with pytest.raises(InvalidInputError, match="_SpectralNorm"):
        estimator.estimate(problem, state, batch)


def test_spectral_norm_is_a_function_in_evaluation_mode() -> None:
    problem = Problem(path_graph(NODES), normed().train())
    problem.model.eval()  # after the problem was made: the mode counts in which it is used
    exact, wanted = exact_pass(problem), gradient_by_autograd(problem)
    for name, value in wanted.items():
        assert torch.allclose(exact.gradient[name], value, rtol=1e-10, atol=1e-14), name
    assert PASSES["a claim"](problem).outcome.value == "EXACT"  # type: ignore[attr-defined]  # a verdict
    problem.model.train()
    with pytest.raises(InvalidInputError, match="_SpectralNorm"):
        exact_pass(problem)


def test_the_question_changes_neither_buffers_nor_generators() -> None:
    model = normed().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(InvalidInputError):
        exact_pass(Problem(path_graph(NODES), model))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("training", [False, True])
def test_layers_that_count_or_remember_are_refused(training: bool) -> None:
    for conv, words in ((Counting, "layer 1 gives other rows"), (Remembering, r"layers\.0\.conv.*Remembering.*'seen'")):
        model = LayeredModel([ConvLayer(conv())]).train(training)
        with pytest.raises(InvalidInputError, match=words):
            exact_pass(Problem(path_graph(NODES), model))


def test_a_random_head_and_encoder_are_refused() -> None:
    class Noisy(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return F.dropout(super().forward(x), 0.5, training=True)

    with torch.random.fork_rng(devices=[]):
        noisy = Noisy(3, 3, dtype=torch.float64)
    layers = [ConvLayer(GCNConv(3, 3).double())]
    state = torch.get_rng_state()
    for part, words in (("encoder", "the encoder gives other rows"), ("head", "the head gives other outputs")):
        with torch.random.fork_rng(devices=[]), pytest.raises(InvalidInputError, match=words):
            exact_pass(Problem(path_graph(NODES), LayeredModel(layers, **{part: noisy}).eval()))
    assert torch.equal(torch.get_rng_state(), state)


def test_what_is_asked_costs_nothing_the_second_time(monkeypatch: pytest.MonkeyPatch) -> None:
    problem, asked = Problem(path_graph(NODES), net().eval()), []
    check = Problem._check_function
    monkeypatch.setattr(Problem, "_check_function", lambda self: asked.append(1) or check(self))
    for _ in range(3):
        exact_pass(problem)
    assert len(asked) == 1
    problem.model.train()
    for _ in range(3):
        exact_pass(problem)
    assert len(asked) == 2


# --- in place ---


def layer(**parts: nn.Module) -> ConvLayer:
    return ConvLayer(GCNConv(3, 3).double(), **parts)


class Functional(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.relu_()


@pytest.mark.parametrize("activation", [nn.ReLU(inplace=True), nn.ELU(inplace=True), Functional()], ids=str)
def test_what_writes_into_its_input_is_refused_by_name(activation: nn.Module) -> None:
    for model, words in (
        (LayeredModel([layer(), layer(before=activation)]), r"layer 2 \(GCNConv\)"),
        (LayeredModel([layer()], encoder=activation), "the encoder"),
        (LayeredModel([layer()], head=activation), "the head"),
    ):
        with pytest.raises(InvalidInputError, match=rf"{words} changes its input in place.*inplace=False"):
            Problem(path_graph(NODES), model)


def test_what_writes_into_a_result_of_its_own_layer_is_right() -> None:
    problem = Problem(path_graph(NODES), LayeredModel([layer(after=nn.ReLU(inplace=True)), layer()]))
    exact, wanted = exact_pass(problem), gradient_by_autograd(problem)
    assert all(torch.allclose(exact.gradient[name], value, rtol=1e-10, atol=1e-14) for name, value in wanted.items())


# --- hooks, inference mode, losses ---


@pytest.mark.parametrize(
    "register",
    [
        lambda model: model.register_forward_hook(lambda module, inputs, output: 2 * output),
        lambda model: model.register_forward_pre_hook(lambda module, inputs: None),
        lambda model: model.register_full_backward_hook(lambda module, got, sent: None),
    ],
)
def test_hooks_of_the_whole_model_are_refused(register: Callable[[nn.Module], object]) -> None:
    model = net()
    register(model)
    with pytest.raises(InvalidInputError, match="hooks of its own, which are not run"):
        Problem(path_graph(NODES), model)


def test_hooks_of_a_part_are_run() -> None:
    model = net()
    model.layers[0].conv.register_forward_hook(lambda module, inputs, output: 2 * output)
    problem = Problem(path_graph(NODES), model)
    exact, wanted = exact_pass(problem), gradient_by_autograd(problem)
    assert all(torch.allclose(exact.gradient[name], value, rtol=1e-10, atol=1e-14) for name, value in wanted.items())


@pytest.mark.parametrize("use", [name for name in PASSES if name != "a claim"])
def test_inference_mode_is_named_where_gradients_are_taken(use: str) -> None:
    problem = Problem(path_graph(NODES), net())
    with torch.inference_mode(), pytest.raises(InvalidInputError, match=r"torch\.inference_mode.*torch\.no_grad"):
        PASSES[use](problem)
    with torch.no_grad():
        exact_pass(problem)


def test_parameters_of_inference_mode_are_named() -> None:
    with torch.inference_mode():
        model = net()
    with pytest.raises(InvalidInputError, match=r"parameter layers\.0\S* was made under torch\.inference_mode"):
        Problem(path_graph(NODES), model)


@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss(weight=torch.ones(3)), F.nll_loss, None, 3])
def test_a_loss_that_is_no_name_is_refused_with_the_names_that_there_are(loss: object) -> None:
    with pytest.raises(InvalidInputError, match=r"must be the name of a node-wise loss: 'cross_entropy', 'bce'"):
        Problem(path_graph(NODES), net(), loss=loss)  # type: ignore[arg-type]  # that is the point


def test_an_unknown_loss_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(UnknownNameError, match="cross_entropy"):
        Problem(path_graph(NODES), net(), loss="cross-entropy")


def test_gas_reads_what_a_model_without_side_effects_gives() -> None:
    """The check itself leaves estimates as they were: the same bits before and after it was asked again."""
    problem = Problem(path_graph(NODES), net())
    state, batch = GAS().init(problem), next(DESIGN.enumerate())[0]
    before = GAS().estimate(problem, state, batch).gradient
    problem.model.train().eval()
    problem._checked_modes = None
    after = GAS().estimate(problem, state, batch).gradient
    assert all(torch.equal(before[name], value) for name, value in after.items())
