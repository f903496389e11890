"""Graphs and batches of any make are cast and copied whole, and what is not made of tensors is left as it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor
from torch_geometric.data import Batch, Data, HeteroData

from lmc_verify.steps import cast, clone, describe, node_attributes
from lmc_verify.steps.data import tensors_of


class Pair(NamedTuple):
    x: Tensor
    ids: Tensor


@dataclass(frozen=True)
class Frozen:
    x: Tensor
    name: str = "batch"


def graph() -> Data:
    return Data(
        x=torch.rand(4, 3, generator=torch.Generator().manual_seed(0)),
        edge_index=torch.tensor([[0, 1, 2], [1, 2, 3]]),
        edge_weight=torch.ones(3),
        y=torch.tensor([0, 1, 0, 1]),
        train_mask=torch.tensor([True, True, False, True]),
        name="four nodes",
    )


def hetero() -> HeteroData:
    data = HeteroData()
    data["paper"].x = torch.ones(3, 2)
    data["author"].x = torch.ones(2, 2)
    data["author", "writes", "paper"].edge_index = torch.tensor([[0, 1], [1, 2]])
    data.scale = torch.ones(1)
    return data


def made_of(x: Tensor) -> list[Any]:
    """Return a tensor in every kind of batch."""
    data = HeteroData()
    data["paper"].x = x
    packed = [Pair(x, torch.arange(2)), Frozen(x), Data(x=x), data, Batch.from_data_list([Data(x=x)])]
    return [x, [x], (x, "label"), {"x": x}, {"deep": [({"x": x},)]}, *packed]


KINDS = [type(value).__name__ + str(place) for place, value in enumerate(made_of(torch.ones(2, 2)))]


@pytest.mark.parametrize("place", range(len(KINDS)), ids=KINDS)
def test_every_kind_of_batch_is_cast_and_cloned(place: int) -> None:
    x = torch.ones(2, 2)
    value = made_of(x)[place]
    for out, dtype in ((cast(value, torch.float64), torch.float64), (clone(value), torch.float32)):
        assert type(out) is type(value)
        found = [item for item in tensors_of(out).values() if item.is_floating_point()]
        assert [item.dtype for item in found] == [dtype]
        assert torch.equal(found[0], x.to(dtype))
        found[0].add_(1)
        assert torch.equal(x, torch.ones(2, 2))


def test_ids_masks_and_names_keep_their_type() -> None:
    out = cast(graph(), torch.float64)
    assert {key: item.dtype for key, item in out.to_dict().items() if isinstance(item, Tensor)} == {
        "x": torch.float64,
        "edge_index": torch.int64,
        "edge_weight": torch.float64,
        "y": torch.int64,
        "train_mask": torch.bool,
    }
    assert out.name == "four nodes"


def test_a_cast_to_the_dtype_that_is_there_copies_nothing() -> None:
    data = graph()
    assert cast(data, torch.float32).x.data_ptr() == data.x.data_ptr()
    assert clone(data).x.data_ptr() != data.x.data_ptr()


def test_numpy_arrays_are_cast_and_cloned() -> None:
    floats, ids = np.ones(3, dtype=np.float32), np.arange(3)
    out = cast({"x": floats, "ids": ids}, torch.float64)
    assert (out["x"].dtype, out["ids"].dtype) == (np.float64, np.int64)
    copied = clone([floats, ids])
    copied[0][:], copied[1][:] = 5, 5
    assert floats.tolist() == [1, 1, 1]
    assert ids.tolist() == [0, 1, 2]


def test_other_objects_are_the_same() -> None:
    value = object()
    assert cast(value, torch.float64) is value
    assert clone({"a": value})["a"] is value
    assert cast("name", torch.float64) == "name"


def test_tensors_are_named_by_their_path() -> None:
    assert set(tensors_of(graph())) == {"x", "edge_index", "edge_weight", "y", "train_mask"}
    assert set(tensors_of(hetero())) == {"paper.x", "author.x", "author-writes-paper.edge_index", "scale"}
    x = torch.ones(1)
    assert set(tensors_of([x, {"a": x}])) == {"0", "1.a"}
    assert set(tensors_of(Frozen(x))) == {"x"}
    assert set(tensors_of(x)) == {"batch"}
    assert tensors_of("nothing") == {}


def test_node_attributes_are_those_with_a_row_for_each_node() -> None:
    assert node_attributes(graph()) == ["x", "y", "train_mask"]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (graph(), "Data with 4 nodes"),
        (hetero(), "HeteroData with 5 nodes"),
        (torch.ones(2, 3), "tensor [2, 3]"),
        ({}, "dict"),
    ],
    ids=["data", "hetero", "tensor", "dict"],
)
def test_a_batch_is_described_in_a_few_words(value: object, words: str) -> None:
    assert describe(value) == words
