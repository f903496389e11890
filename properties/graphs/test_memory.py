"""Memory is used again only when nobody reads it, and a cache keeps to its budget."""

from __future__ import annotations

import copy
import gc
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lmc_verify import GCN, LMC, Batch, Clusters, InvalidInputError, Partition, Problem, load_graph
from lmc_verify.estimators.compensated.halo import local_structure
from lmc_verify.estimators.history import History, map_tables
from lmc_verify.graphs import memory
from lmc_verify.graphs.memory import BufferPool, ByteCache

LIKE = torch.zeros(1, dtype=torch.float64)


@pytest.fixture(autouse=True, scope="module")
def small_things_count() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "_SMALL", 0)
        yield


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 40), st.integers(1, 5)), max_size=40))
def test_tensors_of_a_pool_never_overlap_while_they_live(moves: list[tuple[bool, int, int]]) -> None:
    pool, alive = BufferPool(), {}
    for number, (drop, rows, width) in enumerate(moves):
        if drop and alive:
            alive.pop(next(iter(alive)))
        tensor = pool.empty(rows, width, LIKE)
        assert tensor.shape == (rows, width)
        assert tensor.data_ptr() % 64 == 0
        tensor.fill_(number)
        alive[number] = tensor
        del tensor
        assert all(bool((alive[key] == key).all()) for key in alive)
    used = sum(-(-alive[key].numel() * 8 // 64) * 64 for key in alive)
    assert pool.num_bytes - pool.free_bytes == used
    alive.clear()
    assert pool.free_bytes == pool.num_bytes


def test_memory_comes_back_when_the_last_view_is_gone() -> None:
    pool = BufferPool()
    tensor = pool.empty(100, 4, LIKE)
    place, view = tensor.data_ptr(), tensor[3:5].t()
    del tensor
    assert pool.empty(100, 4, LIKE).data_ptr() != place
    del view
    assert pool.empty(100, 4, LIKE).data_ptr() == place


def test_a_pool_holds_what_was_in_use_at_one_time() -> None:
    pool = BufferPool()
    for rows in (100, 130, 90, 200, 150, 300):
        kept = [pool.empty(rows, 4, LIKE) for _ in range(3)]
        del kept
    needed = 3 * 300 * 4 * 8
    assert needed <= pool.num_bytes <= 1.1 * needed


def test_a_tensor_outlives_its_pool() -> None:
    pool = BufferPool()
    tensor = pool.empty(10, 3, LIKE).fill_(7.0)
    del pool
    gc.collect()
    assert bool((tensor == 7.0).all())


@pytest.mark.parametrize("travel", [copy.copy, copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
def test_copies_of_pools_and_caches_start_empty(travel) -> None:  # type: ignore[no-untyped-def]
    pool, cache, owner = BufferPool(), ByteCache(100), Owner()
    kept = pool.empty(10, 3, LIKE)
    cache.get(owner, "a", lambda: Value(10))
    assert travel(pool).num_bytes == 0 < pool.num_bytes
    assert (travel(cache).budget, len(travel(cache))) == (100, 0)
    assert kept.shape == (10, 3)


class Owner:
    """Something that values are about."""


class Value:
    def __init__(self, num_bytes: int) -> None:
        self.num_bytes = num_bytes


@given(st.integers(0, 60), st.lists(st.tuples(st.integers(0, 5), st.sampled_from("ab"), st.integers(0, 20))))
def test_a_cache_keeps_to_its_budget(budget: int, uses: list[tuple[int, str, int]]) -> None:
    cache, owners, value = ByteCache(budget), [Owner() for _ in range(6)], Value(0)
    for index, kind, growth in uses:
        value = cache.get(owners[index], kind, lambda: Value(7))
        value.num_bytes += growth
        cache.resize(owners[index])
        assert cache.num_bytes <= budget
    owners.clear()
    assert (cache.num_bytes, len(cache)) == (0, 0)


def test_what_was_used_longest_ago_goes_first() -> None:
    cache, owners = ByteCache(30), [Owner() for _ in range(4)]
    made = {index: cache.get(owners[index], "a", lambda: Value(10)) for index in range(3)}
    assert cache.get(owners[0], "a", lambda: Value(10)) is made[0]
    cache.get(owners[3], "a", lambda: Value(10))
    assert cache.get(owners[0], "a", lambda: Value(10)) is made[0]
    assert cache.get(owners[1], "a", lambda: Value(10)) is not made[1]


def test_a_value_larger_than_the_budget_is_made_and_not_kept() -> None:
    cache, owner = ByteCache(5), Owner()
    assert cache.get(owner, "a", lambda: Value(10)).num_bytes == 10
    assert len(cache) == 0


def test_blocks_of_batches_stay_within_the_graphs_budget() -> None:
    graph = load_graph("karate").double()
    problem = Problem(graph, GCN(graph.num_features, 4, graph.num_outputs, dtype=torch.float64))
    design, lmc = Clusters(Partition.contiguous(graph.num_nodes, 8), 2), LMC(beta=0.5)
    state = lmc.init(problem)

    def sweep(where: Problem) -> list[Tensor]:
        return [lmc.estimate(where, state, batch).gradient["layers.0.conv.bias"] for batch, _ in design.enumerate()]

    want = sweep(problem)
    assert len(graph.cache) == design.support_size
    budget = graph.cache.num_bytes // 3
    tight = Problem(graph.replaced(cache_bytes=2 * budget), problem.model)
    assert all(torch.equal(left, right) for left, right in zip(sweep(tight), want, strict=True))
    assert 0 < tight.graph.cache.num_bytes <= budget
    batch = Batch.of([0, 1], 0.5)
    structure = local_structure(graph, batch, cut=False)
    assert local_structure(graph, batch, cut=False) is structure
    number = len(graph.cache)
    del batch
    assert len(graph.cache) == number - 1


@pytest.mark.parametrize("place", ["device", "pinned", "mapped"])
@pytest.mark.parametrize("settings", [{"beta": 0.4}, {}], ids=["blends", "histories alone"])
def test_estimates_do_not_depend_on_the_place_of_histories(
    place: str, settings: dict[str, float], tmp_path: Path
) -> None:
    graph = load_graph("karate").double()
    problem = Problem(graph, GCN(graph.num_features, 4, graph.num_outputs, dtype=torch.float64))
    lmc = LMC(**settings)
    here = lmc.init(problem)
    there = {"device": lambda: here.to("cpu"), "pinned": here.pinned, "mapped": lambda: here.mapped(tmp_path)}[place]()
    assert there.equals(here)
    for batch, _ in Clusters(Partition.contiguous(34, 3), 1).enumerate():
        left, right = lmc.estimate(problem, here, batch), lmc.estimate(problem, there, batch)
        assert all(torch.equal(left.gradient[name], right.gradient[name]) for name in left.gradient)
        here.apply(left.writes)
        assert not there.equals(here), "both places share memory"
        there.apply(right.writes)
        assert there.equals(here)
    if place == "mapped":
        sizes = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
        assert sizes["auxiliary-1.bin"] == 34 * 4 * 8
        assert len(sizes) == 6
        stored = torch.from_file(str(tmp_path / "embedding-2.bin"), shared=False, size=34 * 4, dtype=torch.float64)
        assert torch.equal(stored.view(34, 4), here.embeddings[2])


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    graph = load_graph("karate")
    problem = Problem(graph, GCN(graph.num_features, 4, graph.num_outputs))
    with pytest.raises(InvalidInputError, match=r"cannot map histories to .*file.*name a folder"):
        LMC().init(problem).mapped(tmp_path / "file")


def test_mapped_histories_of_zeros_are_those_in_memory(tmp_path: Path) -> None:
    graph = load_graph("karate").double()
    problem = Problem(graph, GCN(graph.num_features, 4, graph.num_outputs, dtype=torch.float64))
    made = History.zeros(problem, folder=tmp_path)
    assert made.equals(History.zeros(problem))
    assert made.equals(LMC().init(problem))
    for path in tmp_path.iterdir():
        assert path.stat().st_blocks * 512 >= path.stat().st_size, "the space is not reserved"
    assert len(list(tmp_path.iterdir())) == 2 * problem.num_layers
    only = History.zeros(problem, auxiliary=False, folder=tmp_path / "h")
    assert (len(only.embeddings), only.auxiliary) == (problem.num_layers, {})


def test_a_disk_without_space_is_said_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = load_graph("karate")
    problem = Problem(graph, GCN(graph.num_features, 4, graph.num_outputs))
    reserved: list[int] = []

    def full(file: int, start: int, size: int) -> None:
        reserved.append(size)
        if len(reserved) == 3:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("lmc_verify.estimators.history.os.posix_fallocate", full)
    needed = sum(table.numel() * 4 for table in LMC().init(problem).embeddings.values()) * 2
    for make in (LMC().init(problem).mapped, lambda folder: History.zeros(problem, folder=folder)):
        reserved.clear()
        with pytest.raises(InvalidInputError, match=f"No space left on device; .* with {needed:,} bytes free"):
            make(tmp_path)
        assert list(tmp_path.iterdir()) == []


def test_space_is_written_where_it_cannot_be_reserved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unable(*_: int) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("lmc_verify.estimators.history.os.posix_fallocate", unable)
    size = (2**24 // 8 + 5, 2)
    (table,) = map_tables(tmp_path, {"a": (size, torch.float64)}).values()
    assert (tmp_path / "a.bin").stat().st_size == table.numel() * 8 == 16 * size[0]
    assert not table.any()
