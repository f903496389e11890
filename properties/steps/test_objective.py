"""The objective is what the model's forward and the data say, and its gradient leaves no trace; the rest is refused."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from common.step_cases import CLASSES, GCN, NODES, WIDTH, built, ring, training_loss
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torch_geometric.data import Data, HeteroData

from lmc_verify.errors import InvalidInputError, NotFiniteError
from lmc_verify.steps import call_model, mean_loss, objective_gradient

# ---------------------------------------------------------------------------------------------- how a model is called


class Echo(nn.Module):
    """A model that returns what it was called with."""

    def __init__(self, forward: Callable[..., Any]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.forward = forward


def weighted() -> Data:
    data = ring()
    data.edge_weight, data.edge_attr = torch.ones(data.num_edges), torch.ones(data.num_edges, 2)
    return data


def transposed() -> Data:
    data = ring()
    data.adj_t = torch.sparse_coo_tensor(data.edge_index, torch.ones(data.num_edges), (NODES, NODES))
    del data.edge_index
    return data


def hetero() -> HeteroData:
    data = HeteroData()
    data["paper"].x, data["author"].x = torch.ones(NODES, WIDTH), torch.ones(3, 2)
    data["paper"].y = torch.arange(NODES) % CLASSES
    data["paper"].train_mask = torch.arange(NODES) < 5
    data["author", "writes", "paper"].edge_index = torch.tensor([[0, 1], [1, 2]])
    return data


FORWARDS: dict[str, tuple[Callable[..., Any], Callable[[], Any], list[str | None]]] = {
    "x, edge_index": (lambda x, edge_index: (x, edge_index), weighted, ["x", "edge_index"]),
    "other names": (lambda h, edge_index: (h, edge_index), weighted, ["x", "edge_index"]),
    "weights": (
        lambda x, edge_index, edge_weight: (x, edge_index, edge_weight),
        weighted,
        ["x", "edge_index", "edge_weight"],
    ),
    "optional weights": (lambda x, edge_index, edge_weight=None: (edge_weight,), weighted, ["edge_weight"]),
    "no weights": (lambda x, edge_index, edge_weight=None: (edge_weight,), ring, [None]),
    "weights are skipped": (
        lambda x, edge_index, hidden=None, edge_attr=None: (hidden, edge_attr),
        weighted,
        [None, "edge_attr"],
    ),
    "by name only": (
        lambda x, *, edge_index, edge_weight=None: (x, edge_index, edge_weight),
        weighted,
        ["x", "edge_index", "edge_weight"],
    ),
    "by place only": (lambda x, edge_index, /: (x, edge_index), weighted, ["x", "edge_index"]),
    "the data": (lambda data: (data.x,), weighted, ["x"]),
    "the batch": (lambda batch, embed=False: (batch.x,), weighted, ["x"]),
    "any number": (lambda *given: given, weighted, ["x", "edge_index"]),
    "adj_t": (lambda x, adj_t: (x, adj_t), transposed, ["x", "adj_t"]),
    "adj_t as edge_index": (lambda x, edge_index: (x, edge_index), transposed, ["x", "adj_t"]),
    "dictionaries": (lambda x_dict, edge_index_dict: (x_dict, edge_index_dict), hetero, ["x_dict", "edge_index_dict"]),
    "dictionaries as to_hetero names them": (
        lambda x, edge_index: (x, edge_index),
        hetero,
        ["x_dict", "edge_index_dict"],
    ),
    "any number of dictionaries": (lambda *given: given, hetero, ["x_dict", "edge_index_dict"]),
}


@pytest.mark.parametrize("name", FORWARDS)
def test_forward_gets_what_it_asks_for(name: str) -> None:
    forward, make, wanted = FORWARDS[name]
    data = make()
    got = call_model(Echo(forward), data)
    assert len(got) == len(wanted)
    for value, key in zip(got, wanted, strict=True):
        if key is None:
            assert value is None
        elif key.endswith("_dict"):
            assert {kind: id(item) for kind, item in value.items()} == {
                kind: id(item) for kind, item in getattr(data, key).items()
            }
        else:
            assert value is data[key]


def test_what_functools_partial_has_bound_is_kept() -> None:
    other = torch.zeros(2, 0, dtype=torch.long)
    bound = functools.partial(lambda x, edge_index, edge_weight=None: (x, edge_index, edge_weight), edge_index=other)
    data = weighted()
    x, edges, weight = call_model(Echo(bound), data)
    assert x is data.x
    assert edges is other
    assert weight is data.edge_weight


def test_a_default_that_is_a_value_is_kept() -> None:
    assert call_model(Echo(lambda x, edge_weight=3: (edge_weight,)), weighted()) == (3,)


@pytest.mark.slow
def test_a_compiled_or_parallel_model_is_called_by_the_signature_of_what_it_wraps() -> None:
    model, data = built(GCN).eval(), ring()
    want = model(data.x, data.edge_index)
    compiled = torch.compile(model, backend="eager")
    parallel = nn.DataParallel(model)
    assert torch.equal(call_model(parallel, data), want)
    seen: list[int] = []
    compiled.forward = lambda *given: seen.append(len(given))
    call_model(compiled, data)
    assert seen == [2]


@pytest.mark.parametrize(
    ("forward", "make", "missing"),
    [
        (lambda x, edge_index, edge_weight: x, ring, "edge_weight"),
        (lambda x, edge_index, *, edge_attr: x, ring, "edge_attr"),
        (lambda nodes, edge_index: nodes, ring, "nodes"),
        (lambda x, adj_t: x, ring, "adj_t"),
        (lambda x, edge_index: x, lambda: Data(x=torch.ones(1, 1)), "edge_index"),
        (lambda x, edge_index: x, lambda: {"x": torch.ones(1, 1)}, "x"),
        (lambda x_dict, edge_attr_dict: x_dict, hetero, "edge_attr_dict"),
        (lambda *given: given, lambda: Data(x=torch.ones(1, 1)), "edge_index"),
    ],
)
def test_an_argument_that_the_data_do_not_have_is_named(
    forward: Callable[..., Any], make: Callable[[], Any], missing: str
) -> None:
    with pytest.raises(InvalidInputError, match=rf"Echo needs '{missing}'.*give objective=lambda"):
        call_model(Echo(forward), make())


def test_a_model_whose_arguments_are_not_known_is_refused() -> None:
    with pytest.raises(InvalidInputError, match=r"is the model scripted\?\); give objective="):
        call_model(Echo(max), ring())  # Python does not know the arguments of its own max, either


def test_a_field_of_the_data_that_no_model_is_given_is_not_called_missing() -> None:
    data = ring()
    data.n_id = torch.arange(data.num_nodes or 0)
    with pytest.raises(InvalidInputError, match="needs 'n_id', which is not given to a model by its name"):
        call_model(Echo(lambda n_id, edge_index: n_id), data)


# ------------------------------------------------------------------------------------------------- which loss is meant


def table(values: Tensor) -> nn.Module:
    """Return a model that returns these numbers times its one parameter."""
    model = Echo(lambda x, edge_index: model.weight * values)
    return model


def logits(columns: int, generator: int = 0) -> Tensor:
    return torch.randn(NODES, columns, generator=torch.Generator().manual_seed(generator), dtype=torch.float64)


def log_softmax(out: Tensor) -> np.ndarray[Any, Any]:
    shifted = out.numpy() - out.numpy().max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8, torch.bool])
@pytest.mark.parametrize("column", [False, True])
@pytest.mark.parametrize("ids", [False, True])
def test_classes_mean_the_mean_cross_entropy_over_the_training_nodes(
    dtype: torch.dtype, column: bool, ids: bool
) -> None:
    data, out = ring(), logits(2)
    y, rows = data.y.numpy(), data.train_mask.nonzero().flatten()
    data.y = (data.y[:, None] if column else data.y).to(dtype)
    if ids:
        data.train_mask = rows.flip(0)
    want = -np.mean([log_softmax(out)[row, y[row]] for row in rows.tolist()])
    assert float(mean_loss(table(out), data).detach()) == pytest.approx(want, rel=1e-14)


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32, torch.bool])
def test_zeros_and_ones_mean_the_mean_binary_cross_entropy(dtype: torch.dtype) -> None:
    data, out = ring(), logits(3)
    targets = (logits(3, 1) > 0).double()
    data.y = targets.to(dtype)
    rows = data.train_mask.numpy()
    p = 1 / (1 + np.exp(-out.numpy()[rows]))
    t = targets.numpy()[rows]
    want = -np.mean(t * np.log(p) + (1 - t) * np.log(1 - p))
    assert float(mean_loss(table(out), data).detach()) == pytest.approx(want, rel=1e-14)


def test_one_type_of_nodes_is_labelled() -> None:
    data, out = hetero(), logits(2)
    model = Echo(lambda x_dict, edge_index_dict: {"paper": model.weight * out, "author": torch.ones(3, 2)})
    want = F.cross_entropy(out[:5], data["paper"].y[:5])
    assert torch.allclose(mean_loss(model, data), want, rtol=1e-14)
    direct = Echo(lambda x_dict, edge_index_dict: direct.weight * out)
    assert torch.allclose(mean_loss(direct, data), want, rtol=1e-14)


def changed(**fields: Any) -> Data:
    data = ring()
    for key, value in fields.items():
        data[key] = value
    return data


def without(key: str) -> Data:
    data = ring()
    del data[key]
    return data


def two_types() -> HeteroData:
    data = hetero()
    data["author"].y, data["author"].train_mask = torch.zeros(3).long(), torch.ones(3).bool()
    return data


Y = ring().y
REFUSED: dict[str, tuple[Any, Any, str]] = {
    "no targets": (without("y"), None, r"data\.y is missing; set it"),
    "targets None": (changed(y=None), None, r"data\.y is (missing|NoneType); set it"),
    "targets of NumPy": (changed(y=Y.numpy()), None, r"data\.y is ndarray; set it to a tensor"),
    "one number": (changed(y=torch.tensor(1)), None, r"data\.y is the number 1"),
    "no mask": (without("train_mask"), None, r"data\.train_mask is missing"),
    "no node": (changed(train_mask=torch.zeros(NODES).bool()), None, "has no labelled node"),
    "no id": (changed(train_mask=torch.zeros(0).long()), None, "has no labelled node"),
    "splits": (changed(train_mask=torch.ones(NODES, 2).bool()), None, r"bool \[8, 2\].*choose one column"),
    "mask too short": (changed(train_mask=torch.ones(3).bool()), None, r"bool \[3\], there are 8 targets"),
    "mask of numbers": (changed(train_mask=torch.ones(NODES)), None, "torch.float32.*convert it"),
    "mask of bytes": (changed(train_mask=torch.ones(NODES).byte()), None, "torch.uint8.*convert it"),
    "mask of int": (changed(train_mask=torch.ones(NODES).long()), None, r"node 1 8 times.*train_mask\.bool\(\)"),
    "ids of 2 columns": (changed(train_mask=torch.zeros(2, 2).long()), None, r"\[2, 2\]; node ids are \[k\]: flatten"),
    "id too large": (changed(train_mask=torch.tensor([0, NODES])), None, "holds the node 8, nodes are 0 ... 7"),
    "id below zero": (changed(train_mask=torch.tensor([0, -1])), None, "holds the node -1, nodes are 0 ... 7"),
    "255": (changed(y=Y.where(Y > 0, 255)), None, "from 1 to 255, the model has 2 outputs; take unlabelled nodes out"),
    "-1": (changed(y=Y - 1), None, "labels go from -1 to 0, the model has 2 outputs"),
    "one output": (changed(y=Y), logits(1), "1 output, and cross entropy over one class is 0"),
    "regression": (changed(y=torch.rand(NODES, generator=torch.Generator())), None, r"float32 \[6\]: neither classes"),
    "soft labels": (changed(y=torch.full((NODES, 2), 0.5)), None, r"float32 \[6, 2\]: neither classes"),
    "tasks": (changed(y=torch.ones(NODES, 3)), None, r"\[6, 3\]: neither classes \[n\] nor 0/1 \[n, 2\]"),
    "a missing label": (changed(y=torch.full((NODES, 2), float("nan"))), None, "neither classes"),
    "fewer rows": (ring(), torch.ones(3, 2), r"returns \[3, 2\], logits \[8, classes\] are needed"),
    "one column": (ring(), torch.ones(NODES), r"returns \[8\], logits \[8, classes\] are needed"),
    "a dictionary": ({"x": 1}, None, "data are dict, PyTorch Geometric's Data or HeteroData"),
    "two types": (two_types(), None, "y and train_mask: paper, author; one is needed"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_data_that_do_not_say_which_loss_is_meant_are_refused(name: str) -> None:
    data, out, words = REFUSED[name]
    with pytest.raises(InvalidInputError, match=words) as error:
        mean_loss(table(logits(2) if out is None else out), data)
    assert ";" in str(error.value), "the message has no remedy"


@pytest.mark.parametrize("returned", [(torch.ones(NODES, 2), None), {"paper": torch.ones(NODES, 2)}, None])
def test_outputs_that_are_no_logits_are_refused(returned: Any) -> None:
    with pytest.raises(InvalidInputError, match=f"Echo returns {type(returned).__name__}, logits"):
        mean_loss(Echo(lambda x, edge_index: returned), ring())


# -------------------------------------------------------------------------------------------------------- its gradient


def test_the_gradient_is_the_one_of_plain_autograd_in_evaluation_mode() -> None:
    model, data = built(GCN).double(), ring(torch.float64)
    loss, gradient = objective_gradient(model, data, mean_loss)
    model.eval()
    want = training_loss(model, data)
    want.backward()
    assert loss == float(want.detach())
    assert list(gradient) == [name for name, _ in model.named_parameters()]
    for name, value in model.named_parameters():
        assert torch.equal(gradient[name], value.grad if value.grad is not None else torch.zeros_like(value)), name


def test_modes_and_gradients_are_as_before() -> None:
    model = built(GCN)
    model.norm.eval()
    kept = torch.ones(CLASSES)
    model.convs[1].bias.grad = kept
    mean = model.norm.running_mean.clone()
    objective_gradient(model, ring(), mean_loss)
    assert model.training
    assert model.convs[1].training
    assert not model.norm.training
    assert model.convs[1].bias.grad is kept
    assert model.convs[0].bias.grad is None
    assert kept.tolist() == [1, 1]
    assert torch.equal(model.norm.running_mean, mean)

    def fails(given: nn.Module, data: Any) -> Tensor:
        given.eval()
        raise KeyError("of the user")

    with pytest.raises(KeyError, match="of the user"):
        objective_gradient(model, ring(), fails)
    assert model.training


@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu")])
def test_contexts_of_the_caller_do_not_reach_it(around: Callable[[], Any]) -> None:
    model, data = built(GCN), ring()
    loss, want = objective_gradient(model, data, mean_loss)
    with around():
        again, gradient = objective_gradient(model, data, mean_loss)
    assert again == loss
    assert all(torch.equal(gradient[name], value) for name, value in want.items())


def test_unused_frozen_and_sparse_parameters() -> None:
    model = nn.Module()
    model.emb = built(lambda: nn.Embedding(4, 2, sparse=True))
    model.unused = nn.Parameter(torch.ones(3))
    model.frozen = nn.Parameter(torch.ones(3), requires_grad=False)
    _, gradient = objective_gradient(model, None, lambda given, data: given.emb(torch.tensor([1, 1])).sum())
    assert list(gradient) == ["unused", "emb.weight"]
    assert gradient["emb.weight"].tolist() == [[0, 0], [2, 2], [0, 0], [0, 0]]
    assert gradient["unused"].tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("objective", "words"),
    [
        (lambda model, data: 3.0, "returned float; it must be one number"),
        (lambda model, data: model.weight.expand(2), r"returned a tensor \[2\]; it must be one number"),
        (lambda model, data: model.weight.detach().sum(), r"a tensor \[\] that depends on no trainable parameter"),
    ],
)
def test_an_objective_is_a_number_that_depends_on_the_parameters(objective: Any, words: str) -> None:
    with pytest.raises(InvalidInputError, match=words):
        objective_gradient(Echo(lambda: None), None, objective)


def test_a_model_without_trainable_parameters_has_no_gradient() -> None:
    with pytest.raises(InvalidInputError, match="Identity has no trainable parameter"):
        objective_gradient(nn.Identity(), None, lambda model, data: torch.ones(1))


@pytest.mark.parametrize(
    ("scale", "words"),
    [
        (float("inf"), "the loss on the whole graph is inf, its gradient is not finite in weight; look at features"),
        (float("nan"), "the loss on the whole graph is nan, its gradient is not finite in weight; look at features"),
    ],
)
def test_a_gradient_that_is_not_finite_is_named(scale: float, words: str) -> None:
    with pytest.raises(NotFiniteError, match=re.escape(words)):
        objective_gradient(Echo(lambda: None), None, lambda model, data: (model.weight * scale).sum())


def test_a_loss_that_alone_is_not_finite_is_named() -> None:
    with pytest.raises(NotFiniteError, match="whole graph is inf; look at features"):
        objective_gradient(Echo(lambda: None), None, lambda model, data: model.weight.sum() + float("inf"))


def test_a_reentrant_checkpoint_is_differentiated_and_leaves_no_gradient() -> None:
    with torch.random.fork_rng(devices=[]):
        model, x = nn.Linear(3, 2).double(), torch.linspace(0, 1, 12, dtype=torch.float64).reshape(4, 3)
    given = torch.ones_like(model.weight)
    model.weight.grad = given

    def objective(model: Any, data: Any) -> Tensor:
        hidden: Tensor = model(data)
        return checkpoint(lambda value: value.tanh().square(), hidden, use_reentrant=True).sum()

    loss, gradient = objective_gradient(model, x, objective)
    plain = model(x).tanh().square().sum()
    want = torch.autograd.grad(plain, [model.weight, model.bias])
    assert loss == float(plain.detach())
    torch.testing.assert_close([gradient["weight"], gradient["bias"]], list(want))
    assert model.weight.grad is given
    assert model.bias.grad is None
