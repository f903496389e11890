"""What a step keeps can be given in any way in which published code keeps it, and is kept in every one of them."""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from common.step_cases import GCN, built
from torch import Tensor, nn
from torch_geometric.data import HeteroData

from lmc_verify.errors import InvalidInputError
from lmc_verify.steps import KeptState


class Table:
    """An object with state_dict and load_state_dict, which copies."""

    def __init__(self) -> None:
        self.hidden = [torch.ones(2)]

    def state_dict(self) -> dict[str, Tensor]:
        return {"hidden": self.hidden[0]}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.hidden = [state["hidden"]]


class CallableHistory:
    """An object that is called, and holds what it has seen."""

    def __init__(self) -> None:
        self.table = torch.ones(2)

    def __call__(self, model: nn.Module, batch: Any) -> None:
        self.table += 1


def model() -> GCN:
    return built(GCN)


def ways() -> dict[str, tuple[Any, Callable[[], Any], Callable[[], Any]]]:
    """Return, by name: the state, what the step does, and what is seen of the state."""
    tensor, in_list, array = torch.ones(2), [torch.ones(2)], np.ones(2)
    mapping: dict[str, Tensor] = {}
    table, called, holder = Table(), CallableHistory(), SimpleNamespace(emb=None)
    module = nn.Module()
    module.emb = torch.ones(2)
    hidden = {"value": torch.ones(2)}
    pair = (lambda: hidden["value"], lambda value: hidden.update(value=value))
    kept = {"table": torch.ones(2), "pair": pair, "object": Table()}
    data = HeteroData()
    data["paper"].emb = torch.ones(2)
    return {
        "HeteroData": (data, lambda: data["paper"].emb.add_(1), lambda: data["paper"].emb.tolist()),
        "tensor": (tensor, lambda: tensor.add_(1), lambda: tensor.tolist()),
        "list": (in_list, lambda: in_list.append(torch.zeros(1)), lambda: [item.tolist() for item in in_list]),
        "mapping": (mapping, lambda: mapping.update(a=torch.ones(1)), lambda: list(mapping)),
        "array": (array, lambda: array.fill(3), lambda: array.tolist()),
        "state_dict": (table, lambda: table.hidden[0].add_(1), lambda: table.hidden[0].tolist()),
        "callable": (called, lambda: called(module, None), lambda: called.table.tolist()),
        "allocated late": (holder, lambda: setattr(holder, "emb", torch.ones(1)), lambda: holder.emb is None),
        "module": (module, lambda: setattr(module, "emb", torch.zeros(3)), lambda: module.emb.tolist()),
        "functions": (pair, lambda: hidden["value"].add_(1), lambda: hidden["value"].tolist()),
        "of the model": (lambda given: tensor, lambda: tensor.add_(1), lambda: tensor.tolist()),
        "partial": (functools.partial(lambda a, b: a, tensor), lambda: tensor.add_(1), lambda: tensor.tolist()),
        "mapping of functions": (
            {("embedding", 1): lambda given: tensor, "other": in_list},
            lambda: (tensor.add_(1), in_list.append(tensor)),
            lambda: (tensor.tolist(), len(in_list)),
        ),
        "mixed": (
            kept,
            lambda: (kept["table"].add_(1), hidden["value"].add_(1), kept["object"].hidden[0].add_(1)),
            lambda: (kept["table"].tolist(), hidden["value"].tolist(), kept["object"].hidden[0].tolist()),
        ),
    }


@pytest.mark.parametrize("name", ways())
def test_every_way_to_give_the_state_keeps_it(name: str) -> None:
    given, change, seen = ways()[name]
    state = KeptState(given, model())
    assert not state.empty
    before = seen()
    kept = state.snapshot()
    for _ in range(2):
        change()
        assert seen() != before
        state.restore(kept)
        assert seen() == before


@pytest.mark.parametrize("make", [torch.optim.Adam, functools.partial(torch.optim.SGD, momentum=0.9)])
def test_an_optimiser_goes_on_as_if_it_had_not_been_used(make: Callable[..., torch.optim.Optimizer]) -> None:
    trained = built(lambda: nn.Linear(2, 2))
    optimiser = make(trained.parameters(), lr=0.1)
    state = KeptState({"optimiser": optimiser}, trained)

    def step() -> Tensor:
        for value in trained.parameters():
            value.grad = torch.ones_like(value)
        start = [value.detach().clone() for value in trained.parameters()]
        optimiser.step()
        moved = torch.cat([(a - b).flatten() for a, b in zip(trained.parameters(), start, strict=True)]).detach()
        with torch.no_grad():
            for value, old in zip(trained.parameters(), start, strict=True):
                value.copy_(old)
        return moved

    fresh = state.snapshot()
    first = step()
    later = state.snapshot()
    second = step()
    optimiser.param_groups[0]["lr"] = 7.0
    state.restore(later)
    assert torch.equal(step(), second)
    state.restore(fresh)
    assert len(optimiser.state) == 0
    assert torch.equal(step(), first)


def test_no_state_is_empty() -> None:
    state = KeptState(None, model())
    assert state.empty
    assert state.snapshot() == []
    state.restore([])
    assert state.tensors() == {}


def test_a_function_of_the_model_is_called_with_it() -> None:
    net = model()
    assert KeptState(lambda given: given.emb, net).tensors()["state"] is net.emb


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (3, "state is of type int and holds no tensor"),
        ("emb", "state is of type str and holds no tensor"),
        (Table, "state is of type type and holds no tensor"),
        (lambda given: given.missing, "raises AttributeError"),
        (lambda: torch.ones(1), "raises TypeError"),
        (lambda given: None, "state is of type NoneType and holds no tensor"),
        ({"a": torch.ones(1), "b": lambda given: 3}, r"state\['b'\] is of type int and holds no tensor"),
    ],
    ids=["number", "name", "type", "missing", "no argument", "nothing", "inside"],
)
def test_what_cannot_be_kept_is_named_with_the_remedy(given: Any, words: str) -> None:
    with pytest.raises(InvalidInputError, match=words) as error:
        KeptState(given, model())
    assert "lambda model: model.histories" in str(error.value)


def test_tensors_are_named_by_path_and_numpy_arrays_share_their_memory() -> None:
    array = np.zeros(2)
    net = model()
    held = KeptState({"a": [net.emb], "b": array, "c": (lambda: {"d": net.emb}, print)}, net).tensors()
    assert list(held) == ["state['a'][0]", "state['b']", "state['c']['d']"]
    held["state['b']"].fill_(4)
    assert array.tolist() == [4, 4]


def test_a_cast_is_undone_by_restore() -> None:
    table, ids, array = torch.ones(2), torch.arange(2), np.ones(2, dtype=np.float32)
    state = KeptState([table, ids, array], model())
    given = state.snapshot()
    state.cast(torch.float64)
    assert (table.dtype, ids.dtype, array.dtype) == (torch.float64, torch.int64, np.float32)
    table.add_(1)
    state.restore(given)
    assert table.dtype is torch.float32
    assert table.tolist() == [1, 1]


def test_generators_that_are_held_are_seeded() -> None:
    held = OrderedDict(a=torch.Generator(), b=torch.Generator(), c=np.random.default_rng(0), d=np.random.RandomState(0))
    state = KeptState(held, model())

    def draw() -> list[float]:
        drawn = [float(torch.rand((), generator=held[name])) for name in "ab"]
        return [*drawn, held["c"].random(), held["d"].rand()]

    state.seed(1)
    first = draw()
    assert len(set(first)) == 4
    assert all(a != b for a, b in zip(draw(), first, strict=True))
    state.seed(1)
    assert draw() == first
    state.seed(2)
    assert all(a != b for a, b in zip(draw(), first, strict=True))
