"""Batches of a user's loader are drawn reproducibly, with the nodes and probabilities that they have."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch_geometric.data import Data
from torch_geometric.loader import RandomNodeLoader

from lmc_verify import BatchDesign
from lmc_verify.errors import ContractError, InvalidInputError
from lmc_verify.estimators.draws import check_draws, require_design
from lmc_verify.graphs import Batch, BatchList, LoaderDesign
from lmc_verify.seeds import generator

N = 12


def ring(n: int = N) -> Data:
    nodes = torch.arange(n)
    return Data(x=torch.eye(n), edge_index=torch.stack([nodes, (nodes + 1) % n]), n_id=nodes, num_nodes=n)


def shuffled(**settings: Any) -> RandomNodeLoader:
    return RandomNodeLoader(ring(), num_parts=4, shuffle=True, **settings)


def from_loader(loader: Any, **settings: Any) -> Any:
    return BatchDesign.from_loader(loader, **settings)


class Loader:
    """Passes of batches of node ids that a function of the number of the pass gives."""

    def __init__(self, passes: Any) -> None:
        self.passes, self.count = passes, 0

    def __iter__(self) -> Iterator[Data]:
        self.count += 1
        yield from (Data(n_id=torch.tensor(ids), num_nodes=len(ids)) for ids in self.passes(self.count - 1))


def states() -> tuple[Any, ...]:
    return torch.get_rng_state().tolist(), str(np.random.get_state()), random.getstate()  # noqa: NPY002


def test_a_loader_that_partitions_the_nodes_is_a_design() -> None:
    loader = shuffled()
    design = from_loader(loader)
    assert isinstance(design, LoaderDesign)
    assert isinstance(design, BatchDesign)
    require_design(design)
    assert design.support_size == math.inf
    assert design.batches_per_epoch == 4
    assert design.inclusion_probabilities().tolist() == [0.25] * N
    batch = design.draw(generator(1))
    assert batch.size == 3
    assert batch.inclusion.tolist() == [0.25] * 3
    assert sorted(batch.payload.n_id.tolist()) == batch.nodes.tolist()
    assert torch.equal(batch.payload.x, torch.eye(N)[batch.payload.n_id])


def test_draws_repeat_with_their_generator_and_leave_the_global_ones() -> None:
    own = torch.Generator().manual_seed(3)
    for loader in (shuffled(), shuffled(generator=own)):
        before = states()
        design = from_loader(loader)
        drawn = [[design.draw(rng).nodes.tolist() for _ in range(6)] for rng in (generator(1), generator(1))]
        assert drawn[0] == drawn[1]
        assert len(set(map(tuple, drawn[0]))) > 3
        assert drawn[0] != [design.draw(rng).nodes.tolist() for rng in [generator(2)] for _ in range(6)]
        assert states() == before
    assert own.get_state().tolist() == torch.Generator().manual_seed(3).get_state().tolist()


def test_every_place_of_a_pass_is_drawn() -> None:
    """The passes are in order: a node's place is its batch's."""
    design = from_loader(RandomNodeLoader(ring(), num_parts=4, shuffle=False))
    rng = generator(0)
    counts = Counter(int(design.draw(rng).nodes[0]) for _ in range(200))
    assert set(counts) == {0, 3, 6, 9}
    assert min(counts.values()) > 20


def test_an_epoch_is_a_whole_pass() -> None:
    design = from_loader(shuffled())
    rng = generator(0)
    first, second = ([batch.nodes.tolist() for batch in design.epoch(rng)] for _ in range(2))
    assert first != second
    for batches in (first, second):
        assert sorted(node for batch in batches for node in batch) == list(range(N))


def test_a_list_is_enumerated_with_its_own_probabilities() -> None:
    payloads = [Data(n_id=torch.tensor(ids)) for ids in ([2, 0], [1, 2], [2], [3, 0])]
    design = from_loader(payloads, num_nodes=5)
    assert isinstance(design, BatchList)
    require_design(design)
    check_draws(design, "the list")
    assert design.support_size == 4
    assert design.inclusion_probabilities().tolist() == [0.5, 0.25, 0.75, 0.25, 0.0]
    listed = list(design.enumerate())
    assert [(batch.nodes.tolist(), share) for batch, share in listed] == [
        ([0, 2], 0.25),
        ([1, 2], 0.25),
        ([2], 0.25),
        ([0, 3], 0.25),
    ]
    assert [batch.payload for batch, _ in listed] == payloads
    assert listed[0][0].inclusion.tolist() == [0.5, 0.75]


def test_seed_nodes_are_the_batch_of_a_neighbour_loader() -> None:
    """Its batches hold the sampled neighbours behind `batch_size` seed nodes."""
    payload = Data(n_id=torch.tensor([4, 1, 0, 3]), num_nodes=4)
    payload.batch_size = 2
    assert from_loader([payload], num_nodes=5).draw(generator(0)).nodes.tolist() == [1, 4]


def test_nodes_and_inclusion_are_what_is_given() -> None:
    loader = Loader(lambda _: [[0, 1], [1, 2]])
    given = torch.tensor([0.5, 1.0, 0.5, 0.0])
    for inclusion in (given, lambda ids: given[ids]):
        design = from_loader(loader, num_nodes=4, inclusion=inclusion)
        require_design(design)
        assert torch.equal(design.inclusion_probabilities(), given.double())
    doubled = from_loader(loader, num_nodes=7, nodes=lambda batch: 2 * batch.n_id, inclusion=0.5)
    assert {int(node) for _ in range(9) for node in doubled.draw(generator(_)).nodes} == {0, 2, 4}


@pytest.mark.parametrize(
    ("passes", "words"),
    [
        (lambda _: [[0, 1], [1, 2]], "node 1 2 times"),
        (lambda _: [[0, 1]], "holds 2 of 3 nodes"),
        (lambda _: [], "no batch"),
        (lambda _: [[0, 1], [3]], "node 3, the graph has nodes"),
        (lambda number: [[0, 1], [2]] if number == 0 else [[0, 1], [1, 2]], "node 1 2 times"),
    ],
)
def test_inclusion_probabilities_are_not_guessed(passes: Any, words: str) -> None:
    with pytest.raises(InvalidInputError, match=words):
        from_loader(Loader(passes), num_nodes=3)


def test_passes_of_other_lengths_are_no_design() -> None:
    with pytest.raises(ContractError, match="1 batches, the first one 2"):
        from_loader(Loader(lambda number: [[0, 1], [2]] if number == 0 else [[0, 1, 2]]), num_nodes=3)
    late = from_loader(Loader(lambda number: [[0, 1], [2]] if number < 2 else [[0, 1, 2]]), num_nodes=3)
    with pytest.raises(ContractError, match="the first one 2"):
        list(late.epoch(generator(0)))
    with pytest.raises(ContractError, match="the first one 2"):
        [late.draw(generator(0, number)) for number in range(20)]


def test_a_pass_that_repeats_a_node_later_is_named() -> None:
    late = from_loader(Loader(lambda number: [[0, 1], [2]] if number < 2 else [[0, 1], [1]]), num_nodes=3)
    with pytest.raises(InvalidInputError, match="node 1 2 times"):
        list(late.epoch(generator(0)))
    with pytest.raises(InvalidInputError, match="node 1 2 times"):
        [late.draw(generator(0, number)) for number in range(20)]


def test_a_node_of_probability_zero_is_not_drawn() -> None:
    given = torch.tensor([0.5, 0.0, 0.5])
    with pytest.raises(ContractError, match="node 1 has the inclusion probability 0"):
        from_loader([Data(n_id=torch.tensor([0, 1]))], inclusion=given)


@pytest.mark.parametrize(
    ("loader", "settings", "words"),
    [
        (iter([Data()]), {"num_nodes": 3}, "gone through once"),
        (7, {"num_nodes": 3}, "iterable"),
        ([Data()], {"num_nodes": 3}, "without n_id"),
        ([Data(n_id=torch.tensor([0.5]))], {"num_nodes": 3}, "int64"),
        ([Data(n_id=torch.tensor([0]))], {}, "num_nodes="),
        ([Data(n_id=torch.tensor([0]))], {"num_nodes": 3, "inclusion": 1.5}, "1.5"),
        ([], {"num_nodes": 3}, "at least one"),
    ],
)
def test_what_is_no_loader_is_named(loader: Any, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidInputError, match=words):
        from_loader(loader, **settings)


def test_an_endless_design_of_the_users_needs_no_enumeration() -> None:
    class Endless:
        support_size = math.inf

        def __init__(self, stated: float = 0.5, *, foreign: bool = False) -> None:
            self.stated, self.foreign = stated, foreign

        def draw(self, rng: Any) -> Batch:
            source = np.random.default_rng() if self.foreign else rng
            return Batch.of(source.permutation(64)[:32], 0.5)

        def enumerate(self) -> Any:
            raise AssertionError("it is not asked")

        def inclusion_probabilities(self) -> torch.Tensor:
            return torch.full((64,), self.stated, dtype=torch.float64)

    require_design(Endless())
    with pytest.raises(ContractError, match="inclusion_probabilities"):
        require_design(Endless(0.25))
    with pytest.raises(ContractError, match="one seed"):
        require_design(Endless(foreign=True))
    with pytest.raises(InvalidInputError, match="cannot be enumerated"):
        from_loader(shuffled()).enumerate()
