"""Whatever an object holds is put back after it was changed, in the memory and at the places that it had."""

from __future__ import annotations

import random
import threading
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from common.step_cases import built
from torch import Tensor, nn

from lmc_verify.steps.snapshot import Snapshot, cast_tensors, equal_bytes, held


class Holder:
    """An object with every kind of attribute that a history may have."""

    def __init__(self) -> None:
        self.table = torch.arange(6.0).reshape(3, 2)
        self.alias = self.table
        self.row = self.table[1]
        self.array = np.arange(4.0)
        self.count = 0
        self.lines = [torch.ones(2), torch.zeros(2)]
        self.by_layer = {1: torch.ones(2), "deep": [{"inner": torch.ones(1)}]}
        self.default: Any = defaultdict(lambda: torch.zeros(1))
        self.queue = deque([1, 2], maxlen=5)
        self.visited = {1}
        self.pair = (torch.ones(2), "name")


class Slotted:
    __slots__ = ("__hidden", "later", "table")

    def __init__(self) -> None:
        self.table = torch.ones(2)
        self.__hidden = torch.ones(2)

    def push(self) -> None:
        self.__hidden = self.__hidden + 1
        self.table += 1
        self.later = 3

    def values(self) -> list[Any]:
        return [self.table.tolist(), self.__hidden.tolist(), hasattr(self, "later")]


@dataclass(frozen=True, slots=True)
class FrozenSlots:
    table: Tensor


class GAS(nn.Module):
    """A model as published code has them: the history is a plain tensor of a submodule."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(2, 2)
        self.bn = nn.BatchNorm1d(2)
        self.histories = nn.ModuleList(nn.Identity() for _ in range(2))
        for history in self.histories:
            history.emb = torch.zeros(3, 2)
        self.frozen = nn.Parameter(torch.zeros(2), requires_grad=False)


def plain(value: Any) -> Any:
    """Return what an object holds as plain values, to be compared."""
    if isinstance(value, Tensor):
        return [str(value.dtype), list(value.shape), value.detach().tolist()]
    if isinstance(value, np.ndarray):
        return [str(value.dtype), value.tolist()]
    if isinstance(value, dict):
        return [(str(key), plain(item)) for key, item in value.items()]
    if isinstance(value, list | tuple | deque):
        return [plain(item) for item in value]
    if isinstance(value, set):
        return sorted(value)
    return plain(vars(value)) if hasattr(value, "__dict__") else value


CHANGES: dict[str, Callable[[Holder], Any]] = {
    "in place": lambda held: held.table.add_(1),
    "a row in place": lambda held: held.row.zero_(),
    "an item in place": lambda held: held.by_layer["deep"][0]["inner"].add_(1),  # type: ignore[index]
    "in a tuple": lambda held: held.pair[0].add_(1),
    "bound anew": lambda held: setattr(held, "table", torch.zeros(3, 2)),
    "bound to another size": lambda held: setattr(held, "table", torch.zeros(7)),
    "resized": lambda held: held.table.resize_(9, 9),
    "made smaller": lambda held: held.table.resize_(1),
    "other data": lambda held: setattr(held.table, "data", torch.ones(5, dtype=torch.float64)),
    "transposed": lambda held: held.table.t_(),
    "array in place": lambda held: held.array.__setitem__(slice(None), 7),
    "array bound anew": lambda held: setattr(held, "array", np.ones(9)),
    "number": lambda held: setattr(held, "count", 5),
    "attribute added": lambda held: setattr(held, "new", torch.ones(1)),
    "attribute removed": lambda held: delattr(held, "table"),
    "list grown": lambda held: held.lines.append(torch.ones(2)),
    "list shrunk": lambda held: held.lines.pop(0),
    "list in another order": lambda held: held.lines.reverse(),
    "list item bound anew": lambda held: held.lines.__setitem__(0, torch.zeros(4)),
    "key added": lambda held: held.by_layer.__setitem__(2, torch.ones(1)),
    "key removed": lambda held: held.by_layer.pop(1),
    "default made": lambda held: held.default["a"],
    "queue": lambda held: held.queue.append(3),
    "set": lambda held: held.visited.add(2),
    "not a number": lambda held: held.table.fill_(float("nan")),
    "the sign of zero": lambda held: held.lines[1].neg_(),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_every_change_is_undone(change: Callable[[Holder], Any]) -> None:
    holder = Holder()
    before, table, lines = plain(holder), holder.table, holder.lines
    snapshot = Snapshot(holder)
    for _ in range(2):  # a snapshot can be restored as often as needed
        change(holder)
        assert repr(plain(holder)) != repr(before)
        snapshot.restore()
        assert repr(plain(holder)) == repr(before)
        assert holder.table is table
        assert holder.alias is table
        assert holder.lines is lines
        holder.table[1] = torch.tensor([8.0, 9.0])
        assert holder.row.tolist() == [8, 9], "a view has lost the memory of its table"
        snapshot.restore()


def test_restored_values_are_seen_by_whoever_else_holds_the_tensor() -> None:
    holder = Holder()
    elsewhere = holder.table.numpy()
    snapshot = Snapshot(holder)
    holder.table.mul_(3)
    holder.table = torch.zeros(1)
    snapshot.restore()
    assert elsewhere.tolist() == [[0, 1], [2, 3], [4, 5]]


def test_nothing_is_written_where_nothing_has_changed() -> None:
    holder = Holder()
    version = holder.table._version
    Snapshot(holder).restore()
    assert holder.table._version == version


def test_the_state_of_slots_is_kept() -> None:
    holder, frozen = Slotted(), FrozenSlots(torch.ones(2))
    before = holder.values()
    snapshot = Snapshot([holder, frozen])
    holder.push()
    frozen.table.zero_()
    snapshot.restore()
    assert holder.values() == before
    assert frozen.table.tolist() == [1, 1]
    holder.push()
    assert holder.values() == [[2, 2], [2, 2], True]


def test_a_module_is_kept_without_what_is_trained() -> None:
    model = built(GAS)
    snapshot = Snapshot(model, "model")
    assert set(snapshot.tensors) == {
        "model.bn.running_mean",
        "model.bn.running_var",
        "model.bn.num_batches_tracked",
        "model.histories.0.emb",
        "model.histories.1.emb",
        "model.frozen",
    }
    assert {item.path for item in held(model, "model")} == set(snapshot.tensors)
    assert "model.lin.weight" in {item.path for item in held(model, "model", parameters=True)}
    weight = model.lin.weight.detach().clone()
    first = model.histories[0].emb
    with torch.no_grad():
        model.lin.weight.zero_()
        model.frozen.add_(1)
    model.histories[0].emb = torch.ones(5, 5)
    model.histories[1].emb.add_(2)
    model.cache = torch.ones(2)
    model.bn.num_batches_tracked.add_(1)
    model.register_buffer("extra", torch.ones(1))
    model.histories.append(nn.Identity())
    snapshot.restore()
    assert model.histories[0].emb is first
    assert float(first.sum() + model.histories[1].emb.sum() + model.frozen.sum()) == 0
    assert not hasattr(model, "cache")
    assert "extra" not in dict(model.named_buffers())
    assert len(model.histories) == 2
    assert int(model.bn.num_batches_tracked) == 0
    assert float(model.lin.weight.detach().abs().sum()) == 0, "a trained parameter is not kept"
    kept = Snapshot(model, parameters=True)
    with torch.no_grad():
        model.lin.weight.copy_(weight)
    kept.restore()
    assert float(model.lin.weight.detach().abs().sum()) == 0


def test_tensors_that_require_a_gradient_are_kept_with_it() -> None:
    leaf = torch.ones(2, requires_grad=True)
    result = leaf * 2
    snapshot = Snapshot({"leaf": leaf, "result": result})
    (leaf * 3).sum().backward()
    with torch.no_grad():
        leaf.add_(1)
        result.add_(1)
    snapshot.restore()
    assert leaf.grad is None
    assert leaf.tolist() == [1, 1]
    assert result.tolist() == [2, 2]
    assert result.grad_fn is not None
    leaf.grad = torch.ones(2)
    snapshot, grad = Snapshot([leaf]), leaf.grad
    (leaf * 3).sum().backward()
    leaf.requires_grad_(False)
    snapshot.restore()
    assert leaf.requires_grad
    assert leaf.grad is grad
    assert grad.tolist() == [1, 1]


def test_inference_tensors_are_kept() -> None:
    with torch.inference_mode():
        table = torch.ones(3)
    holder = SimpleNamespace(table=table)
    snapshot = Snapshot(holder)
    with torch.inference_mode():
        table.add_(1)
    holder.table = torch.zeros(1)
    snapshot.restore()
    assert holder.table is table
    assert table.tolist() == [1, 1, 1]


def test_a_snapshot_taken_in_inference_mode_is_restored_outside() -> None:
    with torch.inference_mode():
        table = torch.ones(3)
        snapshot = Snapshot([table])
        table.add_(1)
    snapshot.restore()
    assert table.tolist() == [1, 1, 1]


def test_sparse_tensors_are_kept() -> None:
    table = torch.eye(3).to_sparse()
    snapshot = Snapshot([table])
    table.mul_(2)
    snapshot.restore()
    assert torch.equal(table.to_dense(), torch.eye(3))


def test_object_arrays_and_generators_are_kept() -> None:
    cells = np.empty(2, dtype=object)
    cells[0], cells[1] = torch.ones(2), None
    holder = {
        "cells": cells,
        "torch": torch.Generator().manual_seed(0),
        "numpy": np.random.default_rng(0),
        "old": np.random.RandomState(0),
        "python": random.Random(0),
    }
    snapshot = Snapshot(holder)
    assert len(snapshot.generators) == 4

    def use() -> list[float]:
        cells[0].add_(1)
        cells[1] = torch.ones(1)
        drawn = [float(torch.rand((), generator=holder["torch"])), holder["numpy"].random()]
        return [*drawn, holder["old"].rand(), holder["python"].random(), float(cells[0].sum())]

    first = use()
    snapshot.restore()
    assert cells[1] is None
    assert use() == first


def test_circles_long_chains_and_what_is_no_state_are_passed_over() -> None:
    holder: dict[str, Any] = {"lock": threading.Lock(), "thread": threading.current_thread(), "type": Holder}
    holder |= {"self": holder, "module": torch, "function": plain, "method": Holder().__init__}
    chain: list[Any] = []
    holder["chain"] = chain
    for _ in range(5000):
        chain.append([])
        chain = chain[0]
    chain.append(torch.ones(1))
    snapshot = Snapshot(holder)
    assert len(snapshot.tensors) == 1
    chain[0].add_(1)
    snapshot.restore()
    assert chain[0].tolist() == [1]


def test_the_order_of_a_dictionary_is_part_of_it() -> None:
    holder = OrderedDict(a=1, b=2)
    snapshot = Snapshot(holder)
    holder.move_to_end("a")
    snapshot.restore()
    assert list(holder) == ["a", "b"]


def test_a_counter_keeps_its_counts() -> None:
    holder = Counter(a=1)
    snapshot = Snapshot(holder)
    holder.update("ab")
    snapshot.restore()
    assert holder == Counter(a=1)


@pytest.mark.parametrize("value", [None, 3, "text", Holder, plain, (1, 2), torch.float64])
def test_what_cannot_change_is_empty(value: object) -> None:
    assert Snapshot(value).empty


def test_a_cast_keeps_memory_shared() -> None:
    holder = Holder()
    kept = Snapshot(holder)
    cast_tensors(list(Snapshot(holder).tensors.values()), torch.float64)
    assert (holder.table.dtype, holder.row.dtype, holder.pair[0].dtype) == (torch.float64,) * 3
    assert holder.table.tolist() == [[0, 1], [2, 3], [4, 5]]
    holder.table[1] = 7.0
    assert holder.row.tolist() == [7, 7]
    kept.restore()
    assert holder.table.dtype is torch.float32
    assert holder.row.tolist() == [2, 3]
    holder.row.add_(1)
    assert holder.table[1].tolist() == [3, 4]


def test_a_cast_leaves_ids_alone_and_takes_empty_tensors() -> None:
    ids, nothing, other = torch.arange(3), torch.empty(0), torch.empty(0, 2)
    cast_tensors([ids, nothing, other], torch.float64)
    assert (ids.dtype, nothing.dtype, other.dtype) == (torch.int64, torch.float64, torch.float64)
    assert other.shape == (0, 2)


def test_bits_are_compared() -> None:
    nan = torch.tensor([float("nan")])
    assert equal_bytes(nan, nan.clone())
    assert not equal_bytes(torch.zeros(1), -torch.zeros(1))
    assert equal_bytes(torch.tensor(1.0), torch.tensor(1.0))
    assert equal_bytes(torch.eye(3).T[:, :2], torch.eye(3)[:, :2].clone())
