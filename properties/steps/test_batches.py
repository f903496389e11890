"""The subgraph that a step is handed is the one that its nodes induce, entry by entry."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch_geometric.data import Data

from lmc_verify.errors import InvalidInputError
from lmc_verify.steps import induced_data


def data_of(n: int, edges: list[tuple[int, int]]) -> Data:
    index = torch.tensor(edges, dtype=torch.int64).reshape(-1, 2).T
    m = len(edges)
    return Data(
        x=torch.arange(3.0 * n).reshape(n, 3),
        y=torch.arange(n),
        train_mask=torch.arange(n) % 2 == 0,
        edge_index=index,
        edge_weight=torch.arange(float(m)) + 1,
        edge_attr=torch.arange(2.0 * m).reshape(m, 2),
        num_nodes=n,
    )


@given(st.data())
def test_nodes_edges_and_attributes_are_those_of_the_whole_graph(data: st.DataObject) -> None:
    n = data.draw(st.integers(2, 7))
    pairs = st.tuples(st.integers(0, n - 1), st.integers(0, n - 1))
    edges = data.draw(st.lists(pairs, min_size=n + 1, max_size=n + 8))  # m > n: PyG tells rows from edges by number
    chosen = data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=n, unique=True))
    whole, inclusion = data_of(n, edges), torch.rand(len(chosen), generator=torch.Generator().manual_seed(0))
    batch = induced_data(whole, torch.tensor(chosen), inclusion)
    kept = [k for k, (source, destination) in enumerate(edges) if source in chosen and destination in chosen]
    assert batch.num_nodes == len(chosen)
    assert batch.n_id.tolist() == chosen
    assert torch.equal(batch.inclusion, inclusion)
    assert batch.y.tolist() == chosen
    assert torch.equal(batch.x, whole.x[chosen])
    assert batch.train_mask.tolist() == [node % 2 == 0 for node in chosen]
    assert [tuple(chosen[end] for end in pair) for pair in batch.edge_index.T.tolist()] == [edges[k] for k in kept]
    assert torch.equal(batch.edge_weight, whole.edge_weight[kept])
    assert torch.equal(batch.edge_attr, whole.edge_attr[kept])


def test_without_inclusion_probabilities_there_are_none() -> None:
    assert "inclusion" not in induced_data(data_of(3, [(0, 1)] * 4), torch.tensor([2, 0]))


@pytest.mark.parametrize(
    ("nodes", "words"),
    [
        (torch.tensor([0, 3]), "node 3 is none"),
        (torch.tensor([-1]), "node -1 is none"),
        (torch.tensor([1, 1]), "named twice"),
        (torch.tensor([0.0]), "int64"),
        (torch.tensor([], dtype=torch.int64), "at least one"),
    ],
)
def test_nodes_that_induce_nothing_are_named(nodes: torch.Tensor, words: str) -> None:
    with pytest.raises(InvalidInputError, match=words):
        induced_data(data_of(3, [(0, 1)] * 4), nodes)


def test_data_without_edges_are_named() -> None:
    with pytest.raises(InvalidInputError, match="edge_index"):
        induced_data(Data(x=torch.zeros(2, 1)), torch.tensor([0]))
