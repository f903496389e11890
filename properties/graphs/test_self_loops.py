"""Self-loops and the normalisation of GCN are bit by bit those of PyTorch Geometric, which need not be imported."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch_geometric.nn.conv.gcn_conv import gcn_norm
from torch_geometric.utils import add_remaining_self_loops, add_self_loops, remove_self_loops

from lmc_verify.graphs import normalised_edges
from lmc_verify.graphs.operators import with_self_loops

DTYPES = st.sampled_from([torch.float32, torch.float64])


@st.composite
def weighted_edges(draw: st.DrawFn) -> tuple[Tensor, Tensor, int]:
    """Return edges with repeats and self-loops, several at a node among them, weights, and a number of nodes."""
    size = draw(st.integers(1, 7))
    node = st.integers(0, size - 1)
    pairs = draw(st.lists(st.tuples(node, node) | node.map(lambda one: (one, one)), max_size=20))
    weights = draw(st.lists(st.floats(0, 4, width=32), min_size=len(pairs), max_size=len(pairs)))
    edges = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).T.contiguous()
    return edges, torch.tensor(weights, dtype=draw(DTYPES)), size


def assert_same(found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor | None]) -> None:
    assert expected[1] is not None
    assert torch.equal(found[0], expected[0])
    assert found[1].dtype == expected[1].dtype
    assert torch.equal(found[1], expected[1])


@given(weighted_edges())
def test_every_node_gets_one_self_loop(given_edges: tuple[Tensor, Tensor, int]) -> None:
    edges, weight, size = given_edges
    assert_same(with_self_loops(edges, weight, size), add_remaining_self_loops(edges, weight, 1.0, size))


@given(weighted_edges(), st.booleans())
def test_gcn_is_normalised_as_in_pytorch_geometric(given_edges: tuple[Tensor, Tensor, int], weighted: bool) -> None:
    edges, weight, size = given_edges
    own = weight if weighted else None
    expected = gcn_norm(edges, own, size, improved=False, add_self_loops=True, dtype=weight.dtype)
    assert_same(normalised_edges("gcn", edges, own, size, weight.dtype), expected)


@given(weighted_edges())
def test_loops_are_unit_weights(given_edges: tuple[Tensor, Tensor, int]) -> None:
    edges, weight, size = given_edges
    looped, _ = add_self_loops(remove_self_loops(edges)[0], num_nodes=size)
    found = normalised_edges("loops", edges, weight, size, weight.dtype)
    assert_same(found, (looped, torch.ones(looped.shape[1], dtype=weight.dtype)))


def test_a_self_loop_keeps_its_weight() -> None:
    edges, weight = with_self_loops(torch.tensor([[0, 1, 1], [1, 1, 0]]), torch.tensor([2.0, 3.0, 4.0]), 3)
    assert edges.tolist() == [[0, 1, 0, 1, 2], [1, 0, 0, 1, 2]]
    assert weight.tolist() == [2.0, 4.0, 1.0, 3.0, 1.0]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gcn", "mean", "sum", "loops"])
def test_no_operator_needs_pytorch_geometric(kind: str) -> None:
    code = (
        "import sys, torch; from lmc_verify.graphs import Graph; "
        "g = Graph(torch.tensor([[0, 1], [1, 1]]), torch.ones(2, 1), torch.tensor([0, 1]), torch.ones(2, dtype=bool)); "
        f"g.operator({kind!r}); print('torch_geometric' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "False\n", done.stderr


def test_a_degree_of_zero_gives_no_weight() -> None:
    edges, weight = torch.tensor([[0, 1], [0, 0]]), torch.tensor([0.0, 0.0], dtype=torch.float64)
    _, found = normalised_edges("gcn", edges, weight, 2, torch.float64)
    assert found.tolist() == [0.0, 0.0, 1.0]
    assert_same(
        normalised_edges("gcn", edges, weight, 2, torch.float64), gcn_norm(edges, weight, 2, dtype=torch.float64)
    )
