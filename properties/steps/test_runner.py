"""A user's step runs on a private copy of the model, whatever it does to it; the caller's model is never touched."""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from common.random_states import random_state
from common.step_cases import GCN, WIDTH, built, ring, training_loss
from torch import Tensor, nn
from torch_geometric.data import Data

from lmc_verify.errors import ContractError, InvalidInputError
from lmc_verify.steps import NoGradientError, StepRunner


def plain_step(model: nn.Module, batch: Data) -> None:
    training_loss(model, batch).backward()


def model() -> GCN:
    return built(lambda: GCN(dropout=0.0))


def bits(module: nn.Module) -> dict[str, Any]:
    """Return everything that a model has, to be compared."""
    out: dict[str, Any] = {name: value.clone().detach() for name, value in module.state_dict().items()}
    out |= {f"grad {name}": value.grad for name, value in module.named_parameters()}
    out |= {f"mode {name}": item.training for name, item in module.named_modules()}
    out["emb"], out["calls"] = module.emb.clone(), module.calls
    return out


def assert_equal(got: dict[str, Any], want: dict[str, Any]) -> None:
    assert list(got) == list(want)
    for name, value in want.items():
        assert torch.equal(got[name], value) if isinstance(value, Tensor) else got[name] == value, name


def reference(batch: Data) -> dict[str, Tensor]:
    """Return the gradient that the step leaves in double precision, from a model of its own."""
    own = copy.deepcopy(model()).double()
    own.emb = own.emb.double()
    double = ring(torch.float64)
    double.train_mask = batch.train_mask
    double.x = batch.x.double()
    training_loss(own, double).backward()
    return {name: value.grad for name, value in own.named_parameters()}


# ----------------------------------------------------------------------------------------------- what is read, and left


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_the_gradient_is_the_step_s_in_double_precision(dtype: torch.dtype) -> None:
    given = model().to(dtype)
    batch = ring()
    gradient = StepRunner(given, plain_step).run(batch, None)
    assert {value.dtype for value in gradient.values()} == {torch.float64}
    assert next(given.parameters()).dtype is dtype
    if dtype in (torch.float32, torch.float64):
        assert_equal(gradient, reference(batch))


def returned_by_name(given: nn.Module, batch: Data) -> Any:
    named = dict(given.named_parameters())
    return dict(zip(named, torch.autograd.grad(training_loss(given, batch), list(named.values())), strict=True))


def returned_in_order(given: nn.Module, batch: Data) -> Any:
    return torch.autograd.grad(training_loss(given, batch), list(given.parameters()))


def in_two_parts(given: nn.Module, batch: Data) -> None:
    loss = training_loss(given, batch)
    (0.25 * loss).backward(retain_graph=True)
    (0.75 * loss).backward()


def with_an_optimiser(given: nn.Module, batch: Data) -> Tensor:
    optimiser = torch.optim.Adam(given.parameters(), lr=1.0)
    optimiser.zero_grad()
    loss = training_loss(given, batch)
    loss.backward()
    optimiser.step()
    return loss.detach()


def in_other_modes(given: nn.Module, batch: Data) -> None:
    given.eval()
    training_loss(given, batch).detach()
    given.train()
    plain_step(given, batch)
    given.eval()


STEPS = [plain_step, returned_by_name, returned_in_order, in_two_parts, with_an_optimiser, in_other_modes]


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.__name__)
def test_every_kind_of_step_gives_its_gradient_again_and_again(step: Any) -> None:
    given, batch = model(), ring()
    before, generators = bits(given), random_state()
    runner = StepRunner(given, step)
    want = reference(batch)
    for _ in range(3):
        gradient = runner.run(batch, None)
        for name, value in want.items():
            assert torch.allclose(gradient[name], value, rtol=1e-12, atol=1e-14), name
        assert runner.changed == (list(want) if step is with_an_optimiser else [])
    assert all(value.grad is None for value in runner.model.parameters())
    assert_equal(bits(given), before)
    assert random_state() == generators


def test_modes_are_those_of_the_model_that_was_given() -> None:
    given = model()
    given.norm.eval()
    seen: list[list[bool]] = []

    def step(copied: nn.Module, batch: Data) -> None:
        seen.append([item.training for item in copied.modules()])
        plain_step(copied, batch)
        copied.eval()

    runner = StepRunner(given, step)
    for _ in range(2):
        runner.run(ring(), None)
    assert seen == [[item.training for item in given.modules()]] * 2


def test_randomness_is_the_seed_s() -> None:
    runner = StepRunner(built(GCN), plain_step)
    first, again, other = (runner.run(ring(), None, seed) for seed in (1, 1, 2))
    assert_equal(again, first)
    assert not torch.equal(other["convs.1.lin.weight"], first["convs.1.lin.weight"])


def test_a_generator_in_the_state_is_seeded_too() -> None:
    own = torch.Generator()

    def step(given: nn.Module, batch: Data) -> None:
        (training_loss(given, batch) * torch.rand((), generator=own)).backward()

    runner = StepRunner(model(), step, state=[own])
    first, again, other = (runner.run(ring(), None, seed)["norm.weight"] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_gradient_is_not_changed_by_the_next_run() -> None:
    runner = StepRunner(model(), lambda given, batch: [value.grad_buffer for value in given.parameters()])
    for value in runner.model.parameters():
        value.grad_buffer = torch.ones_like(value)
    gradient = runner.run(ring(), None)
    for value in runner.model.parameters():
        value.grad_buffer.zero_()
    assert all(bool((value == 1).all()) for value in gradient.values())


@pytest.mark.parametrize("takes", ["two", "three", "any number", "a default", "partial", "an object"])
def test_the_graph_is_handed_to_a_step_that_takes_it(takes: str) -> None:
    seen: list[Any] = []

    def three(given: nn.Module, batch: Data, data: Data) -> None:
        seen.append(data)
        plain_step(given, batch)

    class Object:
        def __call__(self, given: nn.Module, batch: Data) -> None:
            plain_step(given, batch)

    steps: dict[str, Any] = {
        "two": plain_step,
        "three": three,
        "any number": lambda *given: plain_step(*given),
        "a default": lambda given, batch, scale=2: plain_step(given, batch) if scale == 2 else None,
        "partial": functools.partial(three, data="bound"),
        "an object": Object(),
    }
    graph = ring()
    StepRunner(model(), steps[takes]).run(ring(), graph)
    if takes == "three":
        assert seen[0].x.dtype is torch.float64
        assert torch.equal(seen[0].x, graph.x.double())
    else:
        assert seen == (["bound"] if takes == "partial" else [])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("fails", [False, True])
def test_new_tensors_have_the_precision_of_the_run_and_others_none_of_it(dtype: torch.dtype, fails: bool) -> None:
    given, seen = torch.get_default_dtype(), []

    def step(model: nn.Module, batch: Data) -> None:
        seen.extend([torch.zeros(1).dtype, (torch.tensor(1) / 3).dtype])
        torch.set_default_dtype(torch.float64 if given is torch.float32 else torch.float32)
        if fails:
            raise ZeroDivisionError
        plain_step(model, batch)

    with pytest.raises(ZeroDivisionError) if fails else contextlib.nullcontext():
        StepRunner(model(), step, dtype=dtype).run(ring(), ring())
    assert seen == [dtype, dtype]
    assert torch.get_default_dtype() is given


def test_errors_of_the_step_pass_and_leave_nothing() -> None:
    given, table = model(), torch.zeros(2)
    for value in given.parameters():
        value.grad = torch.ones_like(value)
    before, generators, kept = bits(given), random_state(), given.convs[0].bias.grad

    def step(copied: nn.Module, batch: Data) -> None:
        table.add_(1)
        torch.rand(3)
        copied.convs[0].bias.data.zero_()
        plain_step(copied, batch)
        raise KeyError("of the user")

    with StepRunner(given, step, state=table) as runner:
        parameters = {name: value.detach().clone() for name, value in runner.model.named_parameters()}
        with pytest.raises(KeyError, match="of the user"):
            runner.run(ring(), None)
        assert_equal({name: value.detach() for name, value in runner.model.named_parameters()}, parameters)
    assert table.tolist() == [0, 0]
    assert table.dtype is torch.float32
    assert random_state() == generators
    assert given.convs[0].bias.grad is kept
    assert_equal(bits(given), before)


# -------------------------------------------------------------------------------------------- the state and the copy


def test_the_state_is_cast_and_given_back_by_close() -> None:
    table = torch.zeros(2)
    runner = StepRunner(model(), plain_step, state={"table": table})
    assert table.dtype is torch.float64
    table.add_(1)
    runner.close()
    assert table.dtype is torch.float32
    assert table.tolist() == [0, 0]


@pytest.mark.parametrize("how", ["model", "function"])
def test_the_state_of_the_model_is_that_of_the_copy(how: str) -> None:
    given = model()
    runner = StepRunner(given, plain_step, state=given if how == "model" else lambda copied: copied)
    assert runner.state.tensors()["state.emb"] is runner.model.emb
    assert runner.model.emb.dtype is torch.float64
    kept = runner.state.snapshot()
    runner.run(ring(), None)
    assert float(runner.model.emb.abs().sum()) > 0
    runner.state.restore(kept)
    assert float(runner.model.emb.abs().sum()) == 0
    assert runner.model.calls == 0


@pytest.mark.parametrize("place", ["tensor", "mapping", "module", "array", "object"])
def test_a_part_of_the_caller_s_model_is_no_state_of_the_copy(place: str) -> None:
    given = model()
    given.array = np.ones(2)
    states: dict[str, Any] = {
        "tensor": given.emb,
        "mapping": {"emb": given.emb},
        "module": given.norm,
        "array": given.array,
        "object": functools.partial(lambda copied, kept: kept, kept=given.norm),
    }
    with pytest.raises(InvalidInputError, match=r"is held by the model.*state=lambda model: model\.histories"):
        StepRunner(given, plain_step, state=states[place])


def test_shared_parameters_stay_shared_and_answer_to_every_name() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.Linear(WIDTH, WIDTH, bias=False)
            self.decoder = nn.Linear(WIDTH, WIDTH, bias=False)
            self.decoder.weight = self.encoder.weight

        def forward(self, x: Tensor) -> Any:
            return self.decoder(self.encoder(x))

    given = built(Tied)

    def left(copied: nn.Module, batch: Data) -> None:
        copied(batch.x).sum().backward()

    def by_other_name(copied: nn.Module, batch: Data) -> Any:
        return {"decoder.weight": torch.autograd.grad(copied(batch.x).sum(), [copied.decoder.weight])[0]}

    runner = StepRunner(given, left)
    assert runner.names == ["encoder.weight"]
    assert runner.model.encoder.weight is runner.model.decoder.weight
    assert_equal(StepRunner(given, by_other_name).run(ring(), None), runner.run(ring(), None))


def test_results_of_autograd_in_the_model_are_copied_without_their_history() -> None:
    given = model()
    given.emb = given.convs[0].lin.weight * 2
    runner = StepRunner(given, lambda copied, batch: copied(batch.x, batch.edge_index).sum().backward())
    assert runner.model.emb.grad_fn is None
    assert torch.equal(runner.model.emb, given.emb.detach().double())
    assert given.emb.grad_fn is not None


def test_views_in_the_copy_share_their_memory_in_the_precision_asked_for() -> None:
    given = model()
    given.row = given.emb[1]
    copied = StepRunner(given, plain_step).model
    copied.emb[1] = 3.0
    assert copied.row.tolist() == [3, 3, 3, 3]
    assert copied.row.dtype is torch.float64
    assert float(given.emb.sum()) == 0


def test_a_compiled_model_is_run_without_its_compiler() -> None:
    given = model()
    compiled = torch.compile(given, backend=lambda graph, inputs: pytest.fail("compiled"))
    runner = StepRunner(compiled, plain_step)
    assert runner.names == [name for name, _ in given.named_parameters()]
    assert_equal(runner.run(ring(), None), reference(ring()))
    assert "state.emb" in StepRunner(compiled, plain_step, state=compiled).state.tensors()


def test_scripted_modules_are_copied_with_parameters_of_their_own() -> None:
    """PyTorch copies them by an operation with a history, so that gradients of a copy would go to the caller's."""
    plain = built(lambda: nn.Sequential(nn.Linear(WIDTH, 2), nn.Tanh(), nn.Linear(2, 1)))
    plain[0].bias.requires_grad_(False)

    def step(copied: nn.Module, batch: Data) -> None:
        copied(batch.x).sum().backward()

    found = []
    for given in (plain, torch.jit.script(plain), nn.Sequential(*map(torch.jit.script, plain))):
        runner = StepRunner(given, step)
        found.append(runner.run(ring(), None))
        assert runner.names == ["0.weight", "2.weight", "2.bias"]
        assert all(value.is_leaf for value in runner.model.parameters())
        assert all(value.grad is None and value.dtype is torch.float32 for value in given.parameters())
    for other in found[1:]:
        assert_equal(other, found[0])


def test_hooks_and_lambdas_come_along() -> None:
    given = model()
    given.act = lambda x: 2 * x
    seen: list[nn.Module] = []
    given.convs[1].register_forward_hook(lambda module, args, out: seen.append(module) or 2 * out)
    runner = StepRunner(given, lambda copied, batch: copied.act(training_loss(copied, batch)).backward())
    twice = runner.run(ring(), None)
    assert seen == [runner.model.convs[1]]
    assert not torch.allclose(twice["convs.1.bias"], reference(ring())["convs.1.bias"])


def test_frozen_parameters_have_no_gradient() -> None:
    given = model()
    given.convs[0].lin.weight.requires_grad_(False)
    assert "convs.0.lin.weight" not in StepRunner(given, plain_step).run(ring(), None)


@pytest.mark.gpu
def test_a_model_on_cuda_stays_there() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs CUDA")
    given = model().cuda()
    given.emb = given.emb.cuda()
    gradient = StepRunner(given, plain_step).run(ring().cuda(), None)
    assert {value.device.type for value in gradient.values()} == {"cuda"}


# -------------------------------------------------------------------------------------------------- what is refused


def with_a_lock() -> nn.Module:
    given = model()
    given.lock = threading.Lock()
    return given


def lazy() -> nn.Module:
    given = nn.Module()
    given.first = nn.LazyLinear(2)
    return given


def lazy_buffer() -> nn.Module:
    given = model()
    given.norm = nn.LazyBatchNorm1d(affine=False)
    return given


def frozen() -> nn.Module:
    given = model()
    for value in given.parameters():
        value.requires_grad_(False)
    return given


def needs_a_name(given: nn.Module, batch: Data, *, scale: float) -> None: ...


REFUSED: dict[str, tuple[Any, Any, dict[str, Any], str]] = {
    "no module": (lambda: "GCN", plain_step, {}, "model is a str, a torch.nn.Module is needed"),
    "no function": (model, 3, {}, "step is a int; it must be a function"),
    "one argument": (model, lambda given: None, {}, r"takes 1 arguments; it is called as step\(model, batch\)"),
    "four arguments": (model, lambda a, b, c, d: None, {}, "takes 4 arguments.*functools.partial"),
    "an argument by name": (model, needs_a_name, {}, "takes 3 arguments.*functools.partial"),
    "half": (model, plain_step, {"dtype": torch.float16}, "torch.float16, in which rounding hides any bias; use"),
    "bfloat16": (model, plain_step, {"dtype": torch.bfloat16}, "torch.bfloat16, in which rounding hides"),
    "integers": (model, plain_step, {"dtype": torch.int64}, "dtype is torch.int64"),
    "a name of a dtype": (model, plain_step, {"dtype": "float64"}, "dtype is 'float64', a torch.dtype is needed"),
    "a lock": (with_a_lock, plain_step, {}, "GCN cannot be copied: TypeError: .*lock.*Keep locks.*__deepcopy__"),
    "a lazy parameter": (lazy, plain_step, {}, "first.weight, first.bias of Module have no shape yet; call the model"),
    "a lazy buffer": (lazy_buffer, plain_step, {}, r"norm\.running_mean, .* have no shape yet; call the model"),
    "nothing to train": (frozen, plain_step, {}, "GCN has no trainable parameter"),
    "no state": (model, plain_step, {"state": 3}, "state is of type int and holds no tensor"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_run_is_refused_with_the_remedy(name: str) -> None:
    make, step, options, words = REFUSED[name]
    with pytest.raises(InvalidInputError, match=words):
        StepRunner(make(), step, **options)


BROKEN: dict[str, tuple[Callable[[nn.Module, Data], Any], type[ContractError], str]] = {
    "nothing": (lambda given, batch: None, NoGradientError, r"call \.backward\(\) on a loss"),
    "a loss": (training_loss, NoGradientError, r"it returned a loss: call \.backward\(\) on it"),
    "zeroed": (
        lambda given, batch: (plain_step(given, batch), given.zero_grad()),
        NoGradientError,
        r"no zero_grad\(\) after it",
    ),
    "other names": (
        lambda given, batch: returned_by_name(given, batch) | {"loss": 1},
        ContractError,
        "gradients of loss, which are no trainable parameters; they are ",
    ),
    "a name missing": (
        lambda given, batch: {"norm.weight": torch.zeros(4)},
        ContractError,
        r"no gradient of convs\.0\.bias, .*None or zeros where there is none",
    ),
    "another shape": (
        lambda given, batch: returned_by_name(given, batch) | {"norm.weight": torch.zeros(5)},
        ContractError,
        r"\[5\] as the gradient of norm\.weight, the parameter has \[4\]",
    ),
    "no tensor": (
        lambda given, batch: returned_by_name(given, batch) | {"norm.weight": 3},
        ContractError,
        r"int as the gradient of norm\.weight, the parameter has \[4\]",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_step_without_gradients_of_the_model_breaks_the_contract(name: str) -> None:
    step, error, words = BROKEN[name]
    with pytest.raises(error, match=words) as raised:
        StepRunner(model(), step).run(ring(), None)
    assert type(raised.value) is error


@pytest.mark.parametrize("had", [False, True])
def test_a_step_that_reads_the_caller_s_model_is_named_and_leaves_it_no_gradient(had: bool) -> None:
    given, batch = model(), ring()
    if had:
        for value in given.parameters():
            value.grad = torch.ones_like(value)
    before = {name: value.detach().clone() for name, value in given.named_parameters()}
    grads = [value.grad for value in given.parameters()]
    with pytest.raises(ContractError, match=r"own model \(it leaves gradients of convs\.0\.bias, .*first argument"):
        StepRunner(given, lambda copied, data: plain_step(given, data), dtype=torch.float32).run(batch, None)
    assert all(value.grad is grad for value, grad in zip(given.parameters(), grads, strict=True))
    assert_equal({name: value.detach() for name, value in given.named_parameters()}, before)


def test_a_module_whose_lambda_holds_the_caller_s_model_is_named() -> None:
    given = nn.Module()
    given.scale, given.lin = nn.Parameter(torch.ones(1)), built(lambda: nn.Linear(WIDTH, 2))
    given.act = lambda x: given.scale * x
    with pytest.raises(ContractError, match=r"leaves gradients of scale.*a lambda of self"):
        StepRunner(given, lambda copied, batch: copied.act(copied.lin(batch.x)).sum().backward()).run(ring(), None)


def test_an_optimiser_of_the_caller_s_changes_nothing() -> None:
    given, batch = model(), ring()
    optimiser = torch.optim.SGD(given.parameters(), lr=1.0, weight_decay=0.1)
    for value in given.parameters():
        value.grad = torch.ones_like(value)
    before, grads = bits(given), [value.grad for value in given.parameters()]

    def step(copied: nn.Module, data: Data) -> None:
        optimiser.zero_grad()
        plain_step(copied, data)
        optimiser.step()

    assert_equal(StepRunner(given, step).run(batch, None), reference(batch))
    assert_equal(bits(given), before)
    assert all(value.grad is grad for value, grad in zip(given.parameters(), grads, strict=True))


def half(given: nn.Module) -> None:
    for value in given.parameters():
        if value.grad is not None:
            value.grad.mul_(0.5)


def scaled_step(optimiser: torch.optim.Optimizer, loss: Tensor) -> None:
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(loss).backward()
    scaler.step(optimiser)


USED: dict[str, tuple[Callable[[nn.Module, torch.optim.Optimizer, nn.Module, Data], Any], str]] = {
    "clipped": (
        lambda given, _, copied, data: (
            plain_step(copied, data),
            nn.utils.clip_grad_norm_(given.parameters(), 0.05),
        ),
        "leaves gradients of .*, or changes those that are there",
    ),
    "masked behind zero_grad": (
        lambda given, optimiser, copied, data: (optimiser.zero_grad(), plain_step(copied, data), half(given)),
        "or changes those that are there",
    ),
    "unscaled": (
        lambda given, optimiser, copied, data: (
            optimiser.zero_grad(),
            scaled_step(optimiser, training_loss(copied, data)),
        ),
        "or changes those that are there",
    ),
    "taken away between two passes": (
        lambda given, optimiser, copied, data: [
            (optimiser.zero_grad(), plain_step(copied, data), optimiser.step()) for _ in range(2)
        ],
        "takes the gradients of .* away there between two backward passes, which those of the copy add up",
    ),
    "set to zero between two passes": (
        lambda given, _, copied, data: [
            (given.zero_grad(set_to_none=False), plain_step(copied, data)) for _ in range(2)
        ],
        "between two backward passes",
    ),
    "put into another mode": (
        lambda given, _, copied, data: (given.eval(), plain_step(copied, data)),
        "sets the training mode of the model, convs, convs.0",
    ),
}


@pytest.mark.parametrize("how", USED)
def test_a_step_that_uses_the_caller_s_model_beside_its_own_is_named(how: str) -> None:
    """What it does there it would do to the gradients, or modes, of the model that is trained."""
    given, (use, words) = model(), USED[how]
    optimiser = torch.optim.SGD(given.parameters(), lr=1.0, weight_decay=0.1)
    before = bits(given)
    with pytest.raises(ContractError, match=words):
        StepRunner(given, lambda copied, data: use(given, optimiser, copied, data)).run(ring(), None)
    assert_equal(bits(given), before)


def test_gradients_of_the_caller_s_model_may_be_taken_away_before_and_behind() -> None:
    given = model()
    optimiser = torch.optim.Adam(given.parameters(), weight_decay=0.1)

    def step(copied: nn.Module, data: Data) -> None:
        optimiser.zero_grad(set_to_none=False)
        (training_loss(copied, data) / 2).backward()
        (training_loss(copied, data) / 2).backward()
        optimiser.step()
        given.zero_grad()

    before = bits(given)
    runner = StepRunner(given, step)
    for _ in range(2):
        found = runner.run(ring(), None)
        assert all(torch.allclose(found[name], value) for name, value in reference(ring()).items())
    assert_equal(bits(given), before)
    assert not optimiser.state, "it found no gradients"


def test_frozen_parameters_that_the_step_trains_are_put_back() -> None:
    given = model()
    given.norm.weight.requires_grad_(False)

    def step(copied: nn.Module, batch: Data) -> None:
        plain_step(copied, batch)
        copied.norm.weight.zero_()

    runner = StepRunner(given, step)
    runner.run(ring(), None)
    assert float(runner.model.norm.weight.sum()) == 4


def test_the_step_s_words_are_those_of_its_signature() -> None:
    with pytest.raises(InvalidInputError) as error:
        StepRunner(model(), needs_a_name)
    assert str(inspect.signature(needs_a_name)) in str(error.value)
