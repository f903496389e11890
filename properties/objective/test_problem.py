"""A problem takes models that are functions of their inputs, and refuses the others by the name of what is at fault."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from common.crossed import crossed
from common.helpers import autograd_gradient, path_graph
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize, prune
from torch.nn.utils.parametrizations import orthogonal, spectral_norm, weight_norm

from lmc_verify import (
    GAS,
    GCN,
    LMC,
    BackwardSGD,
    Clusters,
    Conv,
    ConvLayer,
    Gradient,
    Graph,
    InvalidInputError,
    Layer,
    LayeredModel,
    NeighbourSampling,
    Partition,
    Problem,
    UnknownNameError,
    check_claim,
    exact_gradient,
    exact_pass,
    spmm,
)
from lmc_verify.estimators import batch_distribution
from lmc_verify.graphs.operators import Block
from lmc_verify.models import GCNConv, initialise

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


class ByGradMode(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * (2 if torch.is_grad_enabled() else 1)


def test_what_depends_on_the_gradient_mode_is_refused() -> None:
    model = LayeredModel([layer(), layer(before=ByGradMode())])
    with pytest.raises(InvalidInputError, match="layer 2 gives other rows for the same input when gradients are recor"):
        exact_pass(Problem(path_graph(NODES), model))


class Draws(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 1e-9, training=True)  # no test of values finds this


def test_random_numbers_are_found_even_if_they_do_not_show() -> None:
    state = torch.get_rng_state()
    problem = Problem(path_graph(NODES), LayeredModel([layer()], encoder=Draws()).eval())
    with pytest.raises(InvalidInputError, match="draws from torch's global generator"):
        exact_pass(problem)
    assert torch.equal(torch.get_rng_state(), state)


class Growing(Conv):
    operator, aggregate_linear = "gcn", True
    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(1, dtype=torch.float64))

    def forward(self, source: Tensor, target: Tensor, block: Block) -> Tensor:
        self.seen = torch.cat([self.seen, self.seen])
        return spmm(block, source)


def test_a_buffer_that_grows_is_named() -> None:
    with pytest.raises(InvalidInputError, match=r"Growing\) changes its buffer 'seen'"):
        exact_pass(Problem(path_graph(NODES), LayeredModel([ConvLayer(Growing())])))


def test_making_a_problem_leaves_buffers_as_they_were() -> None:
    conv = Remembering()
    Problem(path_graph(NODES), LayeredModel([ConvLayer(conv)]))
    assert float(conv.seen) == 0.0


ACTIONS: dict[str, Callable[[LayeredModel], object]] = {
    "frozen": lambda model: model.layers[0].requires_grad_(False),
    "unfrozen": lambda model: model.layers[1].requires_grad_(True),
    "replaced": lambda model: setattr(model.layers[0].conv, "bias", nn.Parameter(torch.ones(4).double())),
    "converted": lambda model: model.float(),
    "parametrised": lambda model: weight_norm(model.layers[0].conv.lin),
    "removed": lambda model: setattr(model.layers[0].conv, "bias", None),
}


@pytest.mark.parametrize("action", ACTIONS)
def test_parameters_are_those_that_the_problem_was_made_with(action: str) -> None:
    model = net()
    model.layers[1].requires_grad_(False)
    problem = Problem(path_graph(NODES), model)
    state, batch = LMC().init(problem), next(DESIGN.enumerate())[0]
    ACTIONS[action](model)
    for use in (lambda: exact_pass(problem), lambda: LMC().estimate(problem, state, batch)):
        with pytest.raises(InvalidInputError, match=r"parameter layers\.\d\S* was frozen, unfrozen, replaced or conv"):
            use()


def test_parameters_may_take_steps() -> None:
    problem = Problem(path_graph(NODES), net())
    before = exact_gradient(problem)[0]
    with torch.no_grad():
        for parameter in problem.model.parameters():
            parameter.mul_(2)
    problem.model.load_state_dict({key: value + 1 for key, value in problem.model.state_dict().items()})
    assert exact_gradient(problem)[0] != before


def drawn(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make().double()


def shared(kind: str) -> LayeredModel:
    first, second = (drawn(lambda: layer(before=nn.Tanh())) for _ in range(2))
    for index, part in enumerate((first, second)):
        initialise(part, torch.Generator().manual_seed(index))
    encoder, head = drawn(lambda: nn.Linear(3, 3)), drawn(lambda: nn.Linear(3, 3))
    if kind == "one layer twice":
        return LayeredModel([first, first])
    if kind == "one convolution":
        return LayeredModel([first, ConvLayer(first.conv, before=nn.Tanh())])
    if kind == "weights of two layers":
        second.conv.lin.weight = first.conv.lin.weight
        return LayeredModel([first, second])
    if kind == "layer and head":
        head.weight = first.conv.lin.weight
        return LayeredModel([first, second], head=head)
    return LayeredModel([first, second], encoder=encoder, head=encoder if kind == "encoder and head" else head)


@pytest.mark.parametrize(
    ("kind", "frozen"),
    crossed(
        ["one layer twice", "one convolution", "weights of two layers", "layer and head", "encoder and head", "none"],
        ["", "encoder", "head", "layers.0", "layers.1"],
    ),
)
def test_shared_and_frozen_parameters_have_autograd_s_gradient(kind: str, frozen: str) -> None:
    model = shared(kind)
    part = dict(model.named_modules()).get(frozen) if frozen else None
    if part is not None:
        part.requires_grad_(False)
    problem = Problem(path_graph(NODES), model)
    if not problem.parameter_names:
        with pytest.raises(InvalidInputError, match="no trainable parameter"):
            PASSES["a claim"](problem)
        return
    wanted = gradient_by_autograd(problem)
    for exact in (exact_pass(problem).gradient, exact_pass(problem, chunk_size=2).gradient, exact_gradient(problem)[1]):
        assert list(exact) == list(wanted)
        assert all(torch.allclose(exact[name], value, rtol=1e-10, atol=1e-14) for name, value in wanted.items())
    assert PASSES["a claim"](problem).outcome.value == "EXACT"  # type: ignore[attr-defined]  # a verdict


class Doubling(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight + weight.sin()


CHANGED_WEIGHTS: dict[str, Callable[[nn.Linear], object]] = {
    "weight norm": weight_norm,
    "orthogonal": orthogonal,
    "a parametrisation": lambda linear: parametrize.register_parametrization(linear, "weight", Doubling()),
    "a forward hook": lambda linear: linear.register_forward_hook(lambda module, inputs, output: 2 * output),
    "a backward hook": lambda linear: linear.register_full_backward_hook(lambda module, got, sent: (2 * got[0],)),
}


@pytest.mark.parametrize("how", CHANGED_WEIGHTS)
def test_what_stands_between_a_weight_and_its_layer_is_differentiated(how: str) -> None:
    model = net(encoder=True)
    with torch.random.fork_rng(devices=[]):
        CHANGED_WEIGHTS[how](model.layers[1].conv.lin)
    problem = Problem(path_graph(NODES), model)
    wanted = gradient_by_autograd(problem)
    for exact in (exact_pass(problem).gradient, exact_gradient(problem)[1]):
        assert all(torch.allclose(exact[name], value, rtol=1e-10, atol=1e-14) for name, value in wanted.items())


@pytest.mark.parametrize("how", ["weight norm of old", "pruning"])
def test_a_model_that_cannot_be_copied_is_named_where_it_must_be(how: str) -> None:
    model = net()
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch says that it is old
        lin = model.layers[0].conv.lin
        torch.nn.utils.weight_norm(lin) if how == "weight norm of old" else prune.random_unstructured(lin, "weight", 1)
    problem = Problem(path_graph(NODES), model)
    wanted = gradient_by_autograd(problem)
    exact = exact_pass(problem).gradient
    assert all(torch.allclose(exact[name], value, rtol=1e-10, atol=1e-14) for name, value in wanted.items())
    with pytest.raises(InvalidInputError, match=r"cannot be copied.*torch\.nn\.utils\.parametrizations.*prune\.remove"):
        PASSES["a claim"](problem)


def lazy() -> LayeredModel:
    return LayeredModel([layer()], head=nn.LazyLinear(3, dtype=torch.float64))


class Constant(nn.Module):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(3, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        rows: Tensor = x * self.scale
        return rows


def with_gradient_hook() -> LayeredModel:
    model = net()
    model.layers[0].conv.lin.weight.register_hook(lambda grad: 2 * grad)
    return model


class OwnForward(LayeredModel):
    def forward(self, graph: Graph) -> Tensor:
        return 2 * super().forward(graph)


class OwnEncode(LayeredModel):
    def encode(self, x: Tensor, first_row: int = 0) -> Tensor:
        return 2 * super().encode(x, first_row)


class OwnPredict(GCN):
    def predict(self, embeddings: Tensor, first_row: int = 0) -> Tensor:
        return super().predict(embeddings, first_row) - embeddings.mean()


class Subclass(OwnPredict):
    pass


class OwnLayer(LayeredModel):
    def layer(self, index: int) -> Layer:
        return super().layer(self.num_layers + 1 - index)


class OwnStatement(LayeredModel):
    aggregate_linear = True


def with_replaced_encode() -> LayeredModel:
    model = net()
    model.encode = lambda x, first_row=0: 2 * x  # type: ignore[method-assign]  # that is the point
    return model


def with_replaced_forward() -> LayeredModel:
    model = net()
    model.forward = lambda graph: graph.x  # type: ignore[method-assign]  # that is the point
    return model


class Single(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.float()


class Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(0, keepdim=True)


NOT_TAKEN: dict[str, tuple[Callable[[], LayeredModel], str]] = {
    "lazy": (lazy, r"parameter head\.(weight|bias) is lazily initialised"),
    "a buffer in single precision": (
        lambda: LayeredModel([layer()], encoder=Constant(torch.float32)),
        r"buffer encoder\.scale is torch\.float32 on cpu, the graph torch\.float64",
    ),
    "a gradient hook": (with_gradient_hook, r"parameter layers\.0\.conv\.lin\.weight has a gradient hook"),
    "a forward of its own": (lambda: OwnForward([layer()]), "OwnForward has a forward of its own, which is not run"),
    "a replaced forward": (with_replaced_forward, "has a forward of its own, which is not run"),
    **{
        f"{name} of its own": (make, rf"{kind} has its own '{name}', which some passes would not run.*encoder=\.\.\.")
        for name, kind, make in (
            ("encode", "OwnEncode", lambda: OwnEncode([layer()])),
            ("predict", "Subclass", lambda: Subclass(3, 4, 3, 2, dtype=torch.float64)),
            ("layer", "OwnLayer", lambda: OwnLayer([layer(), layer()])),
            ("aggregate_linear", "OwnStatement", lambda: OwnStatement([layer()])),
        )
    },
    "a replaced encode": (with_replaced_encode, "has its own 'encode', which some passes would not run"),
    "rows in single precision": (
        lambda: LayeredModel([layer()], head=Single()),
        r"the head gives torch\.float32 rows for torch\.float64 ones",
    ),
    "several results": (
        lambda: LayeredModel([layer()], head=drawn(lambda: nn.GRU(3, 3))),
        r"the head gives tuple for 2 rows",
    ),
    "another number of dimensions": (
        lambda: LayeredModel([layer()], encoder=nn.AvgPool2d((2, 1))),
        r"the encoder cannot be evaluated on rows of width 3: IndexError",
    ),
    "fewer rows": (
        lambda: LayeredModel([layer()], encoder=Mean()),
        r"the encoder gives \(1, 3\) for 2 rows",
    ),
}


@pytest.mark.parametrize("what", NOT_TAKEN)
def test_models_that_no_pass_computes_are_named(what: str) -> None:
    make, message = NOT_TAKEN[what]
    with pytest.raises(InvalidInputError, match=message):
        Problem(path_graph(NODES), make())


def test_whole_numbers_in_buffers_are_no_matter() -> None:
    problem = Problem(path_graph(NODES), LayeredModel([layer()], encoder=Constant(torch.int64)))
    assert torch.int64 in {value.dtype for value in problem.model.buffers()}
    assert exact_pass(problem).loss > 0


# --- in place ---


def layer(**parts: nn.Module) -> ConvLayer:
    conv = GCNConv(3, 3).double()
    initialise(conv, torch.Generator().manual_seed(0))
    return ConvLayer(conv, **parts)


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


class Behind(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x.data.mul_(2)
        return x


class WritesWeights(Conv):
    operator, aggregate_linear = "gcn", True

    def forward(self, source: Tensor, target: Tensor, block: Block) -> Tensor:
        block.csr.value.mul_(2)
        return spmm(block, source)


class WritesX0(Layer):
    operator, aggregate_linear, reads_x0 = "gcn", True, True

    def forward(self, source: Tensor, target: Tensor, x0_target: Tensor, block: Block) -> Tensor:
        return spmm(block, source) + x0_target.mul_(2)


def test_what_writes_behind_torch_or_into_anything_else_is_refused() -> None:
    graph = path_graph(NODES)
    before = graph.operator("gcn").csr.value.clone()
    for model, words in (
        (LayeredModel([layer(), layer(before=Behind())]), "layer 2 .* changes its input in place"),
        (LayeredModel([ConvLayer(WritesWeights())]), "layer 1 .* changes its edge weights in place"),
        (LayeredModel([layer(), WritesX0()]), "layer 2 .* changes its input in place"),
    ):
        with pytest.raises(InvalidInputError, match=words):
            Problem(graph, model)
    assert torch.equal(graph.operator("gcn").csr.value, before)
    exact_pass(Problem(path_graph(NODES), net()))  # what was tried out is not spoilt for others


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


def test_hooks_that_come_later_are_refused_as_well() -> None:
    problem = Problem(path_graph(NODES), net())
    problem.model.register_forward_hook(lambda module, inputs, output: 2 * output)
    with pytest.raises(InvalidInputError, match="hooks of its own, which are not run"):
        exact_pass(problem)


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
