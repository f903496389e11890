"""The law of the batches is the one that a training loop sees: which batches, with which probability, how drawn."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from common.crossed import slow_but
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset
from torch_geometric.data import Data
from torch_geometric.loader import RandomNodeLoader

from lmc_verify import Batch, Clusters, ContractError, EpochClusters, InvalidInputError, Partition, UniformNodes
from lmc_verify.audits.batches.law import MOST_PASSES, Law, law_of
from lmc_verify.audits.batches.passes import LONGEST_PASS, Loading
from lmc_verify.steps import forked_generators

NODES = 12


def graph(nodes: int = NODES) -> Data:
    ring = torch.arange(nodes)
    edges = torch.stack([ring, (ring + 1) % nodes])
    return Data(
        x=torch.arange(2 * nodes, dtype=torch.float64).reshape(nodes, 2),
        edge_index=torch.cat([edges, edges.flip(0)], 1),
        y=ring % 2,
        train_mask=torch.ones(nodes, dtype=torch.bool),
    )


def law(batches: Any, *, sampling: Any = None, seed: int = 0, data: Data | None = None) -> Law:
    return law_of(batches, graph() if data is None else data, sampling=sampling, seed=seed)


def halves() -> Partition:
    return Partition.contiguous(NODES, 4)


class Fresh:
    """Passes of pairs of nodes in random order, from the global generator of torch."""

    def __iter__(self) -> Iterator[Tensor]:
        yield from torch.randperm(NODES).split(2)


def ids_of(batch: Any) -> tuple[int, ...]:
    return tuple(torch.as_tensor(batch.n_id if isinstance(batch, Data) else batch).tolist())


# Designs.


@pytest.mark.parametrize("per_batch", [1, 2])
@pytest.mark.parametrize("kind", [Clusters, EpochClusters])
def test_design_is_enumerated(kind: Any, per_batch: int) -> None:
    design = kind(halves(), per_batch)
    found = law(design)
    wanted = {tuple(batch.nodes.tolist()): probability for batch, probability in design.enumerate()}
    assert found.batches is not None
    assert found.probabilities is not None
    assert {ids_of(b): p for b, p in zip(found.batches, found.probabilities, strict=True)} == pytest.approx(wanted)
    assert found.how == ("epoch" if kind is EpochClusters else "independent")
    for batch in found.batches:
        assert torch.equal(batch.x, graph().x[batch.n_id])
        assert batch.inclusion.tolist() == [per_batch / 4] * batch.num_nodes


def test_large_design_is_drawn_with_its_inclusion() -> None:
    found = law(UniformNodes(NODES, 6))
    assert found.batches is None
    assert found.inclusion is not None
    assert found.inclusion.tolist() == [0.5] * NODES
    unit = next(found.units(4, 0, own_randomness=False))
    assert unit.weights == (1.0,)
    assert unit.batches[0].num_nodes == 6


def test_large_design_sweeps_reach_every_node() -> None:
    found = law(UniformNodes(NODES, 6))
    assert {node for batch in found.sweep(3) for node in ids_of(batch)} == set(range(NODES))


@pytest.mark.slow
def test_design_given_an_epoch_s_history_has_the_inclusion_of_the_next_batch() -> None:
    nodes = 26  # C(12, 4) = 495 and C(13, 4) = 715 batches: the latter are drawn
    partition = Partition.contiguous(nodes, 13)
    whole = EpochClusters(partition, 4)
    found = law(whole.after(0, 1, 2, 3), data=graph(nodes))
    assert found.batches is not None  # C(9, 4) = 126 are left
    seen = EpochClusters(Partition.contiguous(40, 20), 5, (0, 1, 2, 3, 4))
    drawn = law(seen, data=graph(40))
    assert drawn.inclusion is not None
    counts = torch.zeros(40)
    for unit in itertools.islice(drawn.units(4000, 1, own_randomness=False), 4000):
        counts[unit.batches[0].n_id] += 1 / 4000
    assert drawn.inclusion[:10].tolist() == [0.0] * 10
    assert drawn.inclusion[10:].tolist() == pytest.approx([5 / 15] * 30)
    # Mean of 4000 draws of a probability of 1/3: beyond 6 standard errors with probability 2e-9 a node.
    assert float((counts[10:] - 1 / 3).abs().max()) < 6 * (2 / 9 / 4000) ** 0.5


def test_epochs_of_a_design_in_training_are_epochs() -> None:
    stream = law(EpochClusters(halves(), 2)).training(5)
    for _ in range(4):
        epoch = [ids_of(next(stream)) for _ in range(2)]
        assert sorted(itertools.chain(*epoch)) == list(range(NODES))


def test_design_for_another_graph_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="for 12 nodes, the graph has 14"):
        law(Clusters(halves(), 1), data=graph(14))


def test_design_with_training_nodes_as_ids_is_refused() -> None:
    data = graph()
    data.train_mask = torch.tensor([0, 3, 5])
    with pytest.raises(InvalidInputError, match=r"train_mask is torch.int64 \[3\].*bool mask \[12\]"):
        law(Clusters(halves(), 1), data=data)


@dataclass
class Own:
    """A user's design: single nodes, enumerated as uniform."""

    chances: tuple[float, ...] = (0.25, 0.25, 0.25, 0.25)
    stated: tuple[float, ...] = (0.25, 0.25, 0.25, 0.25)

    @property
    def support_size(self) -> int:
        return 4

    def _batch(self, index: int) -> Batch:
        return Batch.of(list(range(3 * index, 3 * index + 3)), 0.25)

    def draw(self, generator: Any) -> Batch:
        return self._batch(int(generator.choice(4, p=self.chances)))

    def enumerate(self) -> Iterator[tuple[Batch, float]]:
        return ((self._batch(index), self.stated[index]) for index in range(4))

    def inclusion_probabilities(self) -> Tensor:
        return torch.full((NODES,), 0.25, dtype=torch.float64)


@pytest.mark.slow
def test_own_design_whose_draws_are_its_enumeration_is_taken() -> None:
    assert law(Own()).probabilities == (0.25, 0.25, 0.25, 0.25)


@pytest.mark.slow
def test_own_design_whose_draws_are_others_breaks_its_contract() -> None:
    with pytest.raises(ContractError, match="draws of the batch design 'Own' do not follow its enumeration"):
        law(Own(chances=(0.55, 0.15, 0.15, 0.15)))


# Lists.


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.sampled_from([float, np.float64, np.array, Fraction]))
def test_list_with_probabilities(parts: list[int], kind: Callable[[float], Any]) -> None:
    total = sum(parts)
    found = law([(torch.tensor([index]), kind(part / total)) for index, part in enumerate(parts)])
    assert found.probabilities == pytest.approx([part / total for part in parts])
    assert [ids_of(batch) for batch in found.batches or ()] == [(index,) for index in range(len(parts))]
    assert found.how == "independent"


def test_one_batch_with_probability_one_as_a_whole_number() -> None:
    found = law([(torch.tensor([3]), 1)])
    assert found.probabilities == (1.0,)
    assert ids_of((found.batches or ())[0]) == (3,)


def test_pairs_of_other_things_are_batches() -> None:
    pairs = [(torch.tensor([1]), 4), (torch.tensor([2]), 5)]
    found = law(pairs)
    assert found.probabilities == (0.5, 0.5)
    assert isinstance((found.batches or ())[0], tuple)


@pytest.mark.parametrize("wrong", [[0.5, 0.4], [0.5, 0.6], [1.0, 0.0], [1.5, -0.5], [float("nan"), 0.5]])
def test_probabilities_that_are_none(wrong: list[float]) -> None:
    with pytest.raises(InvalidInputError, match="sum to 1"):
        law([(torch.tensor([index]), value) for index, value in enumerate(wrong)])


@pytest.mark.parametrize("sampling", ["epoch", "uniform"])
def test_unequal_probabilities_are_not_drawn_otherwise(sampling: str) -> None:
    with pytest.raises(InvalidInputError, match=f"sampling is '{sampling}'.*from 0.25 to 0.75"):
        law([(torch.tensor([0]), 0.25), (torch.tensor([1]), 0.75)], sampling=sampling)


def test_unknown_sampling() -> None:
    with pytest.raises(InvalidInputError, match="'epoch', 'uniform' or 'independent'"):
        law([torch.tensor([0])], sampling="shuffled")


# Loaders.


def test_loader_of_the_same_batches_in_the_same_order() -> None:
    found = law(DataLoader(TensorDataset(torch.arange(NODES)), batch_size=5))
    assert found.probabilities == pytest.approx((1 / 3,) * 3)
    assert "the same in every pass" in found.words
    assert "same order" in found.words
    stream = found.training(0)
    assert [next(stream)[0].tolist() for _ in range(6)] == [b[0].tolist() for b in found.batches or ()] * 2


def test_loader_of_the_same_batches_in_another_order() -> None:
    found = law(DataLoader(list(torch.arange(NODES).split(2)), batch_size=None, shuffle=True))
    assert "another order" in found.words
    assert sorted(map(ids_of, found.batches or ())) == [(2 * k, 2 * k + 1) for k in range(6)]
    stream = found.training(0)
    epochs = [[ids_of(next(stream)) for _ in range(6)] for _ in range(5)]
    assert all(sorted(epoch) == [(2 * k, 2 * k + 1) for k in range(6)] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_loader_of_other_batches_each_pass() -> None:
    found = law(Fresh())
    assert found.batches is None
    assert found.per_pass == 6
    assert "other batches in every pass" in found.words


def test_loader_that_seldom_differs_is_not_taken_for_the_same_in_every_pass() -> None:
    """Of two passes one in two are equal: 16 are compared, so that this is missed with probability 2**-15 a seed."""

    class Seldom:
        def __iter__(self) -> Iterator[Tensor]:
            yield torch.tensor([0, 1])
            yield torch.tensor([2, 3 + int(torch.rand(()) < 0.3)])

    assert MOST_PASSES == 16
    for seed in range(12):
        assert law(Seldom(), seed=seed).batches is None


@pytest.mark.parametrize("kind", ["numpy", "object", "attribute", "text"])
def test_batches_are_told_apart_whatever_they_are_made_of(kind: str) -> None:
    class Held:
        def __init__(self, value: Any) -> None:
            self.value = value

    class Loader:
        def __iter__(self) -> Iterator[Any]:
            ids = np.arange(5000)
            ids[2500] = int(torch.randint(100, ()))  # beyond what text shows of an array
            if kind == "numpy":
                yield {"ids": ids}
            elif kind == "object":
                yield Held(Held(ids))
            elif kind == "attribute":
                yield Data(x=torch.ones(2, 2), share=float(ids[2500]))
            else:
                yield f"{ids[2500]}"

    assert law(Loader()).batches is None
    with forked_generators(0):
        fixed = list(Loader())
    assert law(fixed).batches is not None


def test_batch_that_shows_nothing_is_never_the_same() -> None:
    class Slot:
        __slots__ = ()

    class Loader:
        def __iter__(self) -> Iterator[Any]:
            yield Slot()

    assert law(Loader()).batches is None


@pytest.mark.parametrize("layout", ["coo", "csr", "csc"])
def test_sparse_matrices_in_batches(layout: str) -> None:
    def matrix(value: float) -> Tensor:
        dense = torch.tensor([[0.0, value], [1.0, 0.0]])
        return {"coo": dense.to_sparse, "csr": dense.to_sparse_csr, "csc": dense.to_sparse_csc}[layout]()

    class Loader:
        def __init__(self, random: bool) -> None:
            self.random = random

        def __iter__(self) -> Iterator[Any]:
            yield Data(x=torch.ones(2, 1), adj_t=matrix(1 + (float(torch.rand(())) if self.random else 0.0)))

    assert law(Loader(False)).batches is not None
    assert law(Loader(True)).batches is None


def test_loader_that_changes_a_batch_after_handing_it_out() -> None:
    class Mutating:
        def __iter__(self) -> Iterator[Tensor]:
            out = torch.zeros(1, dtype=torch.long)
            for index in range(3):
                out[0] = index
                yield out

    with pytest.raises(ContractError, match="changes batch 0 of 3 after it has handed it out"):
        law(Mutating())


def test_same_object_twice_in_a_list_is_no_change() -> None:
    batch = torch.tensor([1])
    assert law([batch, batch]).probabilities == (0.5, 0.5)


@pytest.mark.slow
def test_loader_with_a_worker_process() -> None:
    loader = DataLoader(list(torch.arange(8).split(2)), batch_size=None, shuffle=True, num_workers=1)
    found = law(loader)
    assert sorted(map(ids_of, found.batches or ())) == [(0, 1), (2, 3), (4, 5), (6, 7)]


# What a user's function may be.


def test_function_of_no_argument_and_of_the_data() -> None:
    data = graph()
    assert len(law(lambda: [torch.tensor([0]), torch.tensor([1])]).batches or ()) == 2
    found = law(lambda given: RandomNodeLoader(given, num_parts=3), data=data)
    assert sorted(itertools.chain(*[b.x[:, 0].tolist() for b in found.batches or ()])) == data.x[:, 0].tolist()


def test_function_with_more_arguments() -> None:
    with pytest.raises(InvalidInputError, match="it takes 2"):
        law(lambda data, size: [data, size])


def test_function_that_returns_no_iterable() -> None:
    with pytest.raises(InvalidInputError, match="returned a int; it must return an iterable"):
        law(lambda: 3)


def test_generator_function_is_a_loader_and_its_iterator_is_none() -> None:
    def batches() -> Iterator[Tensor]:
        yield torch.tensor([0])
        yield torch.tensor([1])

    assert len(law(batches).batches or ()) == 2
    with pytest.raises(ContractError, match="only once"):
        law(batches())


def test_iterator_behind_a_function_is_found_by_its_second_pass() -> None:
    once = iter([torch.tensor([0]), torch.tensor([1])])
    with pytest.raises(ContractError, match=r"only once: the first pass gave 2 batches, the next one none"):
        law(lambda: once)


@pytest.mark.parametrize("empty", [[], (), lambda: iter(())])
def test_empty(empty: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"empty.*at least one"):
        law(empty)


def test_endless() -> None:
    with pytest.raises(InvalidInputError, match=f"more than {LONGEST_PASS:,} batches: is it endless"):
        law(lambda: itertools.repeat(0))


@pytest.mark.parametrize("wrong", [3, None, "karate", {"a": 1}, Data(x=torch.ones(2, 1)), EpochClusters, object()])
def test_what_gives_no_batches(wrong: Any) -> None:
    with pytest.raises(InvalidInputError):
        law(wrong)


@pytest.mark.parametrize("first", [2, 3])
def test_passes_of_other_lengths(first: int) -> None:
    lengths = iter([first, *[5 - first] * 100])

    def batches() -> Iterator[Tensor]:
        yield from (torch.tensor([index]) for index in range(next(lengths)))

    with pytest.raises(ContractError, match=f"gives .*{5 - first} batches, the first one gave {first}"):
        law(batches)


@pytest.mark.parametrize("later", [1, 3])
def test_pass_of_another_length_among_the_draws(later: int) -> None:
    """Passes that are compared have two random batches each, later ones another number."""
    count = itertools.count()

    def batches() -> Iterator[Tensor]:
        length = 2 if next(count) < 2 else later
        yield from (torch.randint(1000, (3,)) for _ in range(length))

    found = law(batches)
    with pytest.raises(ContractError, match="the first one gave 2"):
        list(found.units(128, 0, own_randomness=False))


# Generators.


def test_global_generators_are_left_alone_also_by_an_error() -> None:
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002

    def bad() -> Iterator[Any]:
        yield torch.randn(3), random.random(), np.random.rand()  # noqa: NPY002
        raise RuntimeError("from the loader")

    with pytest.raises(RuntimeError, match="from the loader"):
        law(bad)
    list(law(Fresh()).units(8, 0, own_randomness=False))
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()
    assert before[2] == np.random.get_state()[1].tolist()  # noqa: NPY002


def _drawn(found: Law, count: int = 6, seed: int = 0) -> list[tuple[int, ...]]:
    return [ids_of(unit.batches[0]) for unit in itertools.islice(found.units(9, seed, own_randomness=False), count)]


def test_draws_are_a_function_of_the_seed() -> None:
    assert _drawn(law(Fresh())) == _drawn(law(Fresh()))
    assert _drawn(law(Fresh())) != _drawn(law(Fresh()), seed=1)


@pytest.mark.parametrize("kind", ["torch", "numpy", "old numpy", "random"])
def test_generators_of_a_loader_are_seeded_and_put_back(kind: str) -> None:
    class Shuffled:
        def __init__(self) -> None:
            self.generator: Any = {
                "torch": torch.Generator().manual_seed(3),
                "numpy": np.random.default_rng(3),
                "old numpy": np.random.RandomState(3),
                "random": random.Random(3),
            }[kind]

        def __iter__(self) -> Iterator[Tensor]:
            if kind == "torch":
                order = torch.randperm(NODES, generator=self.generator).tolist()
            elif kind.endswith("numpy"):
                order = self.generator.permutation(NODES).tolist()
            else:
                order = self.generator.sample(range(NODES), NODES)
            yield from torch.tensor(order).split(3)

    loader, other = Shuffled(), Shuffled()
    found = law(loader)
    assert found.batches is None
    assert _drawn(found) == _drawn(found) == _drawn(law(other))
    assert [b.tolist() for b in loader] == [b.tolist() for b in Shuffled()]  # as if nothing had been drawn


def test_data_loader_with_a_generator() -> None:
    source = torch.Generator().manual_seed(1)
    before = source.get_state()
    loader = DataLoader(TensorDataset(torch.arange(NODES)), batch_size=4, shuffle=True, generator=source)
    found = law(loader)
    assert found.batches is None
    assert torch.equal(source.get_state(), before)


# Draws follow the law.


@given(st.integers(2, 5), st.integers(1, 3))
def test_units_of_a_step_that_draws_for_itself_hold_all_batches_or_a_sample(size: int, parts: int) -> None:
    found = law([(torch.tensor([index]), 1 / size) for index in range(size)])
    for unit in itertools.islice(found.units(4, parts, own_randomness=True), 4):
        assert sum(unit.weights) == pytest.approx(1.0)
        assert len(set(unit.seeds)) == len(unit.seeds)
        if size <= 4:
            assert [ids_of(batch) for batch in unit.batches] == [(index,) for index in range(size)]


@pytest.mark.slow
@pytest.mark.parametrize("own_randomness", [False, True])
def test_frequencies_of_draws_are_the_probabilities(own_randomness: bool) -> None:
    """Chi-square tests at 1e-6 each: a sound law fails with probability 2e-6."""
    chances = [0.05, 0.1, 0.15, 0.2, 0.2, 0.3]
    found = law([(torch.tensor([index]), value) for index, value in enumerate(chances)])
    counts: Counter[int] = Counter()
    for seed in range(20):
        for unit in found.units(128, seed, own_randomness=own_randomness):
            counts.update(ids_of(batch)[0] for batch in unit.batches)
    total = counts.total()
    test = stats.chisquare([counts[k] for k in range(6)], [total * value for value in chances])
    assert test.pvalue > 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("sampling", ["epoch", "uniform"])
def test_mean_of_draws_of_fresh_passes_is_the_mean_over_an_epoch(sampling: str) -> None:
    """Every pair of nodes is as likely: chi-square at 1e-6, over 66 pairs and 1500 batches."""
    found = law(Fresh(), sampling=sampling)
    counts: Counter[frozenset[int]] = Counter()
    for unit in found.units(1500, 7, own_randomness=False):
        assert sum(unit.weights) == pytest.approx(1.0)
        assert unit.pass_size == 6
        counts.update(frozenset(ids_of(batch)) for batch in unit.batches)
    assert len(counts) == 66
    # Batches of one pass never overlap, which makes counts less variable than independent ones: the test is safe.
    assert stats.chisquare(list(counts.values())).pvalue > 1e-6


@pytest.mark.parametrize("draws", slow_but({2, 128}, [2, 128, 1000]))
@pytest.mark.parametrize("size", [1, 3, 6])
def test_about_as_many_batches_are_drawn_as_asked_for(draws: int, size: int) -> None:
    """Also where a pass, or a law, has few batches; 128 draws at least, of 4 batches at most where all are known."""

    class Few:
        def __iter__(self) -> Iterator[Tensor]:
            yield from torch.rand(size, 1)

    known = law([torch.tensor([index]) for index in range(size)])
    for found, own in ((law(Few()), False), (law(Few(), sampling="uniform"), False), (known, True)):
        units = list(found.units(draws, 0, own_randomness=own))
        drawn = sum(len(unit.batches) for unit in units)
        assert len(units) >= 128
        assert draws <= drawn <= max(draws, 128 * 4) + 6


def test_first_batches_are_the_same_for_a_seed() -> None:
    found = law(Fresh())
    assert list(map(ids_of, found.first(4, 3))) == list(map(ids_of, found.first(4, 3)))
    assert len(found.first(4, 3)) == 4


def test_batches_are_changed_once() -> None:
    made: list[int] = []

    def change(batch: Tensor) -> Tensor:
        made.append(int(batch))
        return batch.double()

    found = law_of([torch.tensor(0), torch.tensor(1)], graph(), sampling=None, seed=0, change=change)
    assert made == [0, 1]
    assert [batch.dtype for batch in found.batches or ()] == [torch.float64] * 2


@pytest.mark.parametrize("shuffled", [False, True])
def test_the_time_of_a_loader_is_counted_and_that_of_its_consumer_is_not(
    monkeypatch: pytest.MonkeyPatch, shuffled: bool
) -> None:
    now = [0.0]
    monkeypatch.setattr("lmc_verify.audits.batches.passes.time.perf_counter", lambda: now[0])
    loading = Loading()

    def make() -> Iterator[int]:
        for number in range(3):
            now[0] += 1.0
            yield number

    for _ in loading.through(make):
        now[0] += 100.0  # what is done with a batch
    assert loading.seconds == 3.0

    def batches() -> Iterator[Any]:
        now[0] += 1.0
        yield from (torch.randperm(NODES) if shuffled else torch.arange(NODES)).chunk(2)

    assert law(batches, sampling="epoch").loading.seconds >= 2.0  # at least two passes
