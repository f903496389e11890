"""Which nodes a batch holds, and which of them it is about, is read rightly or not at all."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch_geometric.data import Data, HeteroData
from torch_geometric.utils import k_hop_subgraph

from lmc_verify.audits.batches.nodes import Nodes, NodesReader
from lmc_verify.errors import InvalidInputError

NODES = 9


def graph(*, alike: bool = False) -> Data:
    """Return a path; `alike` nodes have the same features, so that these tell none apart."""
    row = torch.arange(NODES - 1)
    edges = torch.stack([row, row + 1])
    x = torch.ones(NODES, 2) if alike else torch.arange(2.0 * NODES).reshape(NODES, 2).sqrt()
    return Data(x=x, edge_index=torch.cat([edges, edges.flip(0)], 1), y=torch.arange(NODES) % 4)


def rows(*ids: int, alike: bool = False, **more: Any) -> Data:
    whole = graph(alike=alike)
    chosen = torch.tensor(ids)
    return Data(x=whole.x[chosen], y=whole.y[chosen], edge_index=torch.zeros(2, 0, dtype=torch.long), **more)


def read(batch: Any, *, alike: bool = False, nodes: Any = None, seeds: Any = None) -> Nodes:
    return NodesReader(graph(alike=alike), nodes, seeds)(batch)


def ids(found: Nodes) -> list[int] | None:
    return None if found.ids is None else found.ids.tolist()


def seeds(found: Nodes) -> list[int] | None:
    return None if found.seeds is None else found.seeds.tolist()


@pytest.mark.parametrize("key", ["n_id", "node_idx", "orig_id", "subset"])
def test_named_ids(key: str) -> None:
    found = read(rows(5, 2, 7, alike=True, **{key: torch.tensor([5, 2, 7])}), alike=True)
    assert ids(found) == [5, 2, 7]
    assert seeds(found) == [2, 5, 7]
    assert not found.seeds_are_named


@given(st.permutations(range(NODES)), st.integers(1, NODES))
def test_rows_are_found_by_their_features(order: list[int], size: int) -> None:
    assert ids(read(rows(*order[:size]))) == order[:size]


def test_rows_are_found_by_their_features_in_the_audit_s_precision() -> None:
    reader = NodesReader(Data.from_dict({**graph().to_dict(), "x": graph().x.double()}))
    assert ids(reader(rows(4, 1))) == [4, 1]


def test_nodes_of_the_same_features_are_not_guessed() -> None:
    found = read(rows(5, 2, alike=True), alike=True)
    assert found.ids is None
    assert found.seeds is None
    assert found.seed_rows() is None


def test_wrong_ids_are_seen_by_features_and_the_right_ones_found() -> None:
    assert ids(read(rows(5, 2, 7, n_id=torch.tensor([0, 1, 2])))) == [5, 2, 7]


def test_wrong_ids_are_seen_by_targets_where_features_are_the_same() -> None:
    assert ids(read(rows(5, 2, 7, alike=True, n_id=torch.tensor([0, 1, 2])), alike=True)) is None


def test_named_ids_are_believed_where_features_or_targets_alone_are_theirs() -> None:
    """A transform has changed the others, here with its noise."""
    order = [5, 2, 7, 1]
    batch = rows(*order, n_id=torch.tensor(order))
    noisy, relabelled, both = batch.clone(), batch.clone(), batch.clone()
    noisy.x, relabelled.y = batch.x + 1, batch.y + 1
    both.x, both.y = noisy.x, relabelled.y
    assert ids(read(noisy)) == ids(read(relabelled)) == order
    assert ids(read(both)) is None


@pytest.mark.parametrize("order", [[5], [0, 4, 8]])
def test_targets_that_agree_by_chance_are_not_believed(order: list[int]) -> None:
    """One row has the target of a node in four of nine; three rows that of nodes of the most frequent class."""
    batch = rows(*order, n_id=torch.tensor(order))
    batch.x = batch.x + 1
    assert ids(read(batch)) is None


def test_ids_outside_of_the_graph() -> None:
    with pytest.raises(InvalidInputError, match=r"n_id goes from 2 to 9, nodes are 0 \.\.\. 8.*another graph"):
        read(rows(5, 2, 7, n_id=torch.tensor([5, 2, NODES])))
    with pytest.raises(InvalidInputError, match="goes from -1 to 5"):
        read(rows(5, 2, n_id=torch.tensor([5, -1])))


def test_another_attribute_that_is_no_id_is_passed_over() -> None:
    assert ids(read(rows(5, 2, idx=torch.tensor([100, 200])))) == [5, 2]
    assert ids(read(rows(5, 2, ids=torch.tensor([0.5, 0.2])))) == [5, 2]


def test_whole_graph() -> None:
    assert ids(read(graph())) == list(range(NODES))
    assert ids(read(graph(alike=True), alike=True)) == list(range(NODES))


def test_batch_of_all_nodes_in_another_order_is_not_taken_for_the_whole_graph() -> None:
    order = list(reversed(range(NODES)))
    assert ids(read(rows(*order))) == order
    assert ids(read(rows(*order, alike=True), alike=True)) is None  # the targets differ


# Seeds.


def test_neighbor_loader() -> None:
    """PyTorch Geometric's: seeds come first; ``input_id`` numbers the loader's input nodes, it holds no node ids."""
    batch = rows(7, 6, 0, 1, n_id=torch.tensor([7, 6, 0, 1]), input_id=torch.tensor([0, 1]), batch_size=2)
    found = read(batch)
    assert seeds(found) == [6, 7]
    assert found.seeds_are_named
    assert found.seed_rows() is not None
    assert found.seed_rows().tolist() == [True, True, False, False]  # type: ignore[union-attr]


def test_shadow_sampler_has_a_node_in_more_rows() -> None:
    """One subgraph a root: only the root's own row is one that the batch is about."""
    found = read(rows(3, 2, 4, 4, 3, 5, root_n_id=torch.tensor([0, 3])))
    assert seeds(found) == [3, 4]
    assert found.seed_rows().tolist() == [True, False, False, True, False, False]  # type: ignore[union-attr]


def test_cluster_loader_has_no_seeds_of_its_own() -> None:
    found = read(rows(0, 1, 2))
    assert seeds(found) == [0, 1, 2]
    assert not found.seeds_are_named


def test_k_hop_subgraph() -> None:
    subset, _, mapping, _ = k_hop_subgraph(torch.tensor([4, 6]), 1, graph().edge_index, num_nodes=NODES)
    found = read(rows(*subset.tolist(), subset=subset, mapping=mapping))
    assert ids(found) == [3, 4, 5, 6, 7]
    assert seeds(found) == [4, 6]


@pytest.mark.parametrize("key", ["seed_mask", "root_mask", "target_mask"])
def test_mask_of_rows(key: str) -> None:
    assert seeds(read(rows(5, 2, 7, **{key: torch.tensor([True, False, True])}))) == [5, 7]


@pytest.mark.parametrize("wrong", [torch.tensor([0, -1]), torch.tensor([0, 3]), torch.tensor([True, False])])
def test_rows_outside_of_the_batch_are_none(wrong: torch.Tensor) -> None:
    found = read(rows(5, 2, 7, mapping=wrong))
    assert not found.seeds_are_named


def test_global_seed_ids() -> None:
    assert seeds(read(rows(5, 2, 7, seeds=torch.tensor([7, 5])))) == [5, 7]
    mask = torch.zeros(NODES, dtype=torch.bool)
    mask[[2, 7]] = True
    assert seeds(read(rows(5, 2, 7, seed_nodes=mask))) == [2, 7]


def test_seed_ids_that_are_not_in_the_batch_are_none() -> None:
    found = read(rows(5, 2, 7, seeds=torch.tensor([0, 1])))
    assert not found.seeds_are_named
    assert seeds(found) == [2, 5, 7]


@pytest.mark.parametrize("size", [0, 4, True])
def test_batch_size_that_is_none(size: Any) -> None:
    assert not read(rows(5, 2, 7, batch_size=size)).seeds_are_named


# Other batches than data.


def test_tensor_of_ids_and_mask() -> None:
    assert ids(read(torch.tensor([4, 2]))) == [4, 2]
    mask = torch.zeros(NODES, dtype=torch.bool)
    mask[[3, 8]] = True
    assert ids(read(mask)) == [3, 8]
    assert ids(read(torch.tensor([4, NODES]))) is None
    assert ids(read(torch.tensor([0.5]))) is None


def test_tuples() -> None:
    assert ids(read((torch.tensor([4, 2]), torch.ones(2, 3)))) == [4, 2]
    assert ids(read((2, torch.tensor([4, 2]), "name"))) == [4, 2]
    assert ids(read((rows(5, 2), torch.ones(1)))) == [5, 2]
    assert ids(read((torch.tensor([4, 2]), torch.tensor([1])))) is None  # which of them is not said


def test_labels_in_a_tuple_are_not_taken_for_ids() -> None:
    """Both are whole numbers below the number of nodes; ids do not repeat, and fit the features."""
    batch = rows(5, 2, 1)
    assert batch.y.tolist() == [1, 2, 1]
    assert ids(read((batch.x, batch.edge_index, batch.y))) is None
    assert ids(read((batch.edge_index, batch.y))) is None  # ids do not repeat
    assert ids(read((batch.x[:2], batch.edge_index, batch.y[:2]))) is None  # no repetition, but other features
    chosen = torch.tensor([5, 2, 1])
    assert ids(read((batch.x, batch.y, torch.tensor([2, 0]), chosen))) == [5, 2, 1]
    assert ids(read((batch.x[:2], batch.y[:2], chosen[:2]))) == [5, 2]
    assert ids(read((batch.x[:2], torch.tensor([1, 0]), torch.tensor([5, 9])))) is None  # neither fits


def test_object_with_nodes() -> None:
    class Own:
        nodes = torch.tensor([1, 3])

    assert ids(read(Own())) == [1, 3]
    assert ids(read(object())) is None


def test_heterogeneous_data_are_not_read() -> None:
    data = HeteroData()
    data["paper"].x = torch.ones(3, 2)
    found = NodesReader(data)(data)
    assert found.ids is None
    assert found.seeds is None
    with pytest.raises(InvalidInputError, match=r"read for torch_geometric.data.Data only"):
        NodesReader(data, lambda batch: torch.tensor([0]))(data)


# Functions of the user's.


def test_functions_that_name_nodes_and_seeds() -> None:
    batch = rows(5, 2, 7, alike=True)
    found = read(batch, alike=True, nodes=lambda _: [5, 2, 7], seeds=lambda _: torch.tensor([7]))
    assert ids(found) == [5, 2, 7]
    assert seeds(found) == [7]
    assert found.seeds_are_named


def test_a_batch_may_be_about_no_node() -> None:
    found = read(rows(5, 2), seeds=lambda _: [])
    assert seeds(found) == []
    assert found.seeds_are_named


@pytest.mark.parametrize(
    ("given_ids", "message"),
    [
        ([5, NODES], r"nodes\(batch\) gives ids from 5 to 9, torch.int64; nodes are 0 \.\.\. 8"),
        ([-1, 2], "from -1 to 2"),
        ([0.5, 1.0], "torch.float32; nodes are"),
        ([5, 2, 7], "gives 3 ids for a batch of 2 rows"),
        (torch.ones(2, dtype=torch.bool), r"a mask \[2\]; a mask of nodes is \[9\]"),
    ],
)
def test_functions_that_give_other_things(given_ids: Any, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        read(rows(5, 2), nodes=lambda _: given_ids)


@pytest.mark.parametrize("name", ["nodes", "seeds"])
@pytest.mark.parametrize(("value", "kind"), [(None, "NoneType"), ({5, 2, 7}, "set"), ([[5, 2], [7]], "list")])
def test_what_is_no_ids_is_named_with_its_type(name: str, value: Any, kind: str) -> None:
    with pytest.raises(InvalidInputError, match=rf"{name}\(batch\) gives {kind}, and no node ids.*list of integers"):
        read(rows(5, 2, 7), **{name: lambda batch: value})


@pytest.mark.parametrize("name", ["nodes", "seeds"])
def test_an_error_of_a_function_is_told_with_what_it_takes(name: str) -> None:
    message = rf"^{name} is a function that raises AttributeError \(.*nope.*\(Data with 3 nodes\); it takes a batch"
    with pytest.raises(InvalidInputError, match=message):
        read(rows(5, 2, 7), **{name: lambda batch: batch.nope})


def test_masks_from_functions() -> None:
    mask = torch.zeros(NODES, dtype=torch.bool)
    mask[[2, 5]] = True
    assert seeds(read(rows(5, 2, 7), seeds=lambda _: mask)) == [2, 5]
