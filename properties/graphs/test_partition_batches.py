"""Partitions cover every node once; a design's draws, enumeration and inclusion probabilities are one law."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from common.helpers import assert_close, path_graph
from hypothesis import example, given
from hypothesis import strategies as st

from lmc_verify import (
    Batch,
    BatchDesign,
    Clusters,
    EpochClusters,
    FusedClusters,
    Graph,
    InvalidInputError,
    Partition,
    UniformNodes,
    UnknownNameError,
    make_partition,
)
from lmc_verify.graphs import named_nodes
from lmc_verify.graphs.partition import PARTITION_METHODS
from lmc_verify.testing import designs, graphs, partitions, seeds

METHODS = pytest.mark.parametrize("method", PARTITION_METHODS)


@st.composite
def with_parts(draw: st.DrawFn) -> tuple[Graph, int]:
    graph = draw(graphs())
    return graph, draw(st.integers(1, graph.num_nodes))


@st.composite
def with_partition(draw: st.DrawFn) -> Partition:
    return draw(partitions(draw(graphs())))


@st.composite
def laws(draw: st.DrawFn) -> tuple[Graph, BatchDesign]:
    graph = draw(graphs())
    return graph, draw(designs(graph))


# --- partitions -----------------------------------------------------------------------------------


@METHODS
@given(drawn=with_parts(), seed=seeds())
@example(drawn=(path_graph(1), 1), seed=0)
@example(drawn=(path_graph(6, edge_index=torch.zeros(2, 0, dtype=torch.int64)), 3), seed=0)
@example(drawn=(path_graph(6), 6), seed=0)
def test_every_method_gives_a_partition_and_repeats_it(method: str, drawn: tuple[Graph, int], seed: int) -> None:
    graph, parts = drawn
    partition = make_partition(graph, method, parts, seed=seed)
    assert partition.num_nodes == graph.num_nodes
    assert torch.cat(partition.clusters).sort().values.tolist() == list(range(graph.num_nodes))
    assert all(bool((cluster[1:] > cluster[:-1]).all()) for cluster in partition.clusters)
    assert partition.sizes.tolist() == [cluster.numel() for cluster in partition.clusters]
    assert int(partition.sizes.min()) >= 1
    assert partition.num_parts <= parts
    if method != "metis":
        assert partition.num_parts == parts
        assert int(partition.sizes.max()) - int(partition.sizes.min()) <= 1
    assert make_partition(graph, method, parts, seed=seed).fingerprint == partition.fingerprint


def block_model(blocks: int = 4, size: int = 40, seed: int = 0) -> Graph:
    rng = np.random.default_rng(seed)
    block = np.repeat(np.arange(blocks), size)
    same = block[:, None] == block[None, :]
    pattern = np.triu(rng.random(same.shape) < np.where(same, 0.3, 0.01), 1)
    order = rng.permutation(len(block))  # so that contiguous runs are not the blocks
    edges = torch.from_numpy(order[np.array(np.nonzero(pattern))])
    return path_graph(len(block), edge_index=torch.cat([edges, edges.flip(0)], dim=1))


def edge_cut(graph: Graph, partition: Partition) -> int:
    source, destination = partition.assignment[graph.edge_index]
    return int((source != destination).sum())


def test_metis_cuts_far_fewer_edges_than_chance() -> None:
    graph = block_model()
    cuts = {method: edge_cut(graph, make_partition(graph, method, 4, seed=0)) for method in PARTITION_METHODS}
    assert cuts["metis"] < 0.5 * min(cuts["random"], cuts["contiguous"]), cuts


@METHODS
def test_seeds_change_what_they_should(method: str) -> None:
    graph = block_model()
    prints = {make_partition(graph, method, 8, seed=seed).fingerprint for seed in range(5)}
    assert (len(prints) == 1) == (method == "contiguous")


@given(with_partition(), st.data())
def test_fused_partitions_join_whole_clusters(partition: Partition, data: st.DataObject) -> None:
    per_group = data.draw(st.integers(1, partition.num_parts))
    fused = partition.fused(per_group, seed=3)
    assert fused.num_parts == math.ceil(partition.num_parts / per_group)
    for cluster in partition.clusters:
        assert len(set(fused.assignment[cluster].tolist())) == 1
    joined = [len(set(partition.assignment[group].tolist())) for group in fused.clusters]
    assert sum(joined) == partition.num_parts
    assert max(joined) == per_group
    assert sum(size != per_group for size in joined) <= 1


@given(with_partition())
def test_partitions_are_rebuilt_from_clusters_and_labels(partition: Partition) -> None:
    again = Partition.from_clusters([cluster.tolist() for cluster in partition.clusters])
    assert again.fingerprint == partition.fingerprint
    spread = Partition.from_labels(7 * partition.assignment - 3)
    assert spread.fingerprint == partition.fingerprint


def test_save_and_load_keep_everything(tmp_path: Path) -> None:
    partition = Partition.random(11, 3, seed=5).fused(2)
    partition.save(tmp_path / "partition.safetensors")
    again = Partition.load(tmp_path / "partition.safetensors")
    assert torch.equal(again.assignment, partition.assignment)
    assert (again.method, again.fingerprint) == (partition.method, partition.fingerprint)


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: Partition(torch.tensor([0, 2, 2])), InvalidInputError, r"cluster 1 of 3 is empty; .*from_labels"),
        (lambda: Partition(torch.tensor([0, -1])), InvalidInputError, "start at 0, got -1"),
        (lambda: Partition(torch.tensor([0.0])), InvalidInputError, r"int64 \[nodes\] .* got torch\.float32"),
        (lambda: Partition(torch.zeros(0, dtype=torch.int64)), InvalidInputError, r"at least one node, got .*\(0,\)"),
        (lambda: Partition.from_clusters([[0, 1], [1]]), InvalidInputError, "missing or repeated"),
        (lambda: Partition.from_clusters([[0, 3]]), InvalidInputError, "missing or repeated"),
        (lambda: Partition.random(3, 4), InvalidInputError, "4 parts of 3 nodes: .*fewer parts"),
        (lambda: Partition.contiguous(3, 0), InvalidInputError, "0 parts of 3 nodes"),
        (lambda: Partition.metis(path_graph(3), 4), InvalidInputError, "4 parts of 3 nodes"),
        (lambda: Partition.random(3, 3).fused(4), InvalidInputError, "per_group is 4, .* the 3 clusters"),
        (lambda: make_partition(path_graph(3), "mets", 2), UnknownNameError, "did you mean 'metis'"),
    ],
)
def test_bad_partitions_are_refused(build: Callable[[], Partition], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        build()


# --- designs --------------------------------------------------------------------------------------


def key(batch: Batch) -> tuple[int, ...]:
    return tuple(batch.nodes.tolist())


def law(design: BatchDesign) -> dict[tuple[int, ...], float]:
    return {key(batch): probability for batch, probability in design.enumerate()}


@given(laws())
@example((path_graph(7), EpochClusters(Partition.contiguous(7, 7), 3)))  # batches of two sizes differ in probability
def test_enumeration_is_a_law_with_the_stated_inclusion(drawn: tuple[Graph, BatchDesign]) -> None:
    graph, design = drawn
    pairs = list(design.enumerate())
    assert len(pairs) == design.support_size
    assert len(law(design)) == len(pairs), f"{design} yields a batch twice"
    assert_close(f"{design}: total probability", sum(p for _, p in pairs), 1.0, rtol=1e-14)
    inclusion = torch.zeros(graph.num_nodes, dtype=torch.float64)
    for batch, probability in pairs:
        inclusion[batch.nodes] += probability
        stated = design.inclusion_probabilities()[batch.nodes]
        assert torch.equal(batch.inclusion, stated), f"{design}: batch {key(batch)} carries {batch.inclusion}"
    assert_close(f"{design}: inclusion", design.inclusion_probabilities(), inclusion, rtol=1e-14)


@given(laws(), seeds())
def test_draws_lie_in_the_support_and_repeat(drawn: tuple[Graph, BatchDesign], seed: int) -> None:
    _, design = drawn
    support = law(design)
    for make in (np.random.default_rng, lambda value: torch.Generator().manual_seed(value)):
        generator = make(seed)
        first = [design.draw(generator) for _ in range(5)]
        generator = make(seed)
        second = [design.draw(generator) for _ in range(5)]
        assert list(map(key, first)) == list(map(key, second)), f"{design}: draws differ for equal seeds"
        for batch in first:
            assert support.get(key(batch), 0) > 0, f"{design} drew {key(batch)}, which it cannot"
            assert torch.equal(batch.inclusion, design.inclusion_probabilities()[batch.nodes])


@pytest.mark.parametrize("per_batch", [1, 2, 3])
def test_draws_reach_the_whole_support(per_batch: int) -> None:
    # Not a frequency test: a fixed seed, and a support so small that missing a batch means it cannot be drawn.
    partition = Partition.from_clusters([[0, 5], [1], [2, 3], [4]])
    kinds = [Clusters(partition, per_batch), UniformNodes(6, per_batch), EpochClusters(partition, per_batch)]
    for design in [*kinds, FusedClusters(partition, per_batch), EpochClusters(partition, 1).after(2)]:
        generator = np.random.default_rng(0)
        drawn = {key(design.draw(generator)) for _ in range(400)}
        assert drawn == set(law(design)), str(design)


@given(with_partition(), st.data(), seeds())
def test_an_epoch_visits_every_cluster_once(partition: Partition, data: st.DataObject, seed: int) -> None:
    per_batch = data.draw(st.integers(1, partition.num_parts))
    design = EpochClusters(partition, per_batch)
    visits = list(design.epoch(np.random.default_rng(seed)))
    assert len(visits) == design.batches_per_epoch == math.ceil(partition.num_parts / per_batch)
    assert sorted(node for batch in visits for node in key(batch)) == list(range(partition.num_nodes))
    for batch in visits[:-1]:
        assert len(batch.clusters) == per_batch
        design = design.after(*batch.clusters)
    assert law(design) == {key(visits[-1]): 1.0}, "the last batch of an epoch is certain"


@given(with_partition(), st.data())
def test_given_the_past_an_epoch_is_another_distribution(partition: Partition, data: st.DataObject) -> None:
    per_batch = data.draw(st.integers(1, partition.num_parts))
    design = EpochClusters(partition, per_batch)
    order = data.draw(st.permutations(range(partition.num_parts)))
    seen = tuple(order[:per_batch])
    if per_batch == partition.num_parts:
        with pytest.raises(InvalidInputError, match="leave at least one cluster"):
            design.after(*seen)
        return
    after = law(design.after(*seen))
    assert_close("total probability", sum(after.values()), 1.0, rtol=1e-14)
    gone = {node for index in seen for node in partition.clusters[index].tolist()}
    assert not any(gone & set(nodes) for nodes in after), "a visited cluster came again"
    assert torch.equal(design.after(*seen).inclusion_probabilities(), design.inclusion_probabilities())
    assert after != law(design)


def test_fused_batches_are_fixed_and_seeded() -> None:
    partition = Partition.contiguous(12, 6)
    supports = [set(law(FusedClusters(partition, 2, seed=seed))) for seed in range(4)]
    assert all(len(support) == 3 for support in supports)
    assert law(FusedClusters(partition, 2, seed=1)) == law(FusedClusters(partition, 2, seed=1))
    assert supports[0] != supports[1]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda p: Clusters(p, 0), "per_batch is 0, .* the 4 clusters of the partition"),
        (lambda p: Clusters(p, 5), "per_batch is 5, .*ask for fewer"),
        (lambda p: EpochClusters(p, 5), "per_batch is 5"),
        (lambda p: FusedClusters(p, 0), "per_batch is 0"),
        (lambda p: UniformNodes(6, 7), "size is 7, .* the 6 nodes of the graph"),
        (lambda p: EpochClusters(p, 1, (0, 0)), r"seen=\(0, 0\) must be distinct"),
        (lambda p: EpochClusters(p, 1).after(4), "between 0 and 3"),
        (lambda p: EpochClusters(p, 2).after(0), "give whole batches"),
        (lambda p: EpochClusters(p, 1).after(0, 1, 2, 3), "leave at least one cluster"),
    ],
)
def test_bad_designs_are_refused(build: Callable[[Partition], object], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        build(Partition.contiguous(6, 4))


@pytest.mark.parametrize(
    ("nodes", "inclusion", "message"),
    [
        ([], 1.0, "at least one node"),
        ([1, 1], 1.0, "ascend and be distinct"),
        ([0, 1], 0.0, r"\(0, 1\], got 0\.0"),
        ([0, 1], 1.5, r"\(0, 1\], got 1\.5"),
        ([0, 1], float("nan"), r"\(0, 1\], got nan"),
    ],
)
def test_bad_batches_are_refused(nodes: list[int], inclusion: float, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        Batch.of(nodes, inclusion)


def test_batches_sort_their_nodes_with_their_probabilities() -> None:
    batch = Batch.of([4, 1, 3], torch.tensor([0.4, 0.1, 0.3]))
    assert key(batch) == (1, 3, 4)
    assert_close("inclusion", batch.inclusion, [0.1, 0.3, 0.4], rtol=1e-7)
    with pytest.raises(InvalidInputError, match=r"Batch\.of"):
        Batch(torch.tensor([1, 0]), torch.ones(2).double())
    with pytest.raises(InvalidInputError, match="a batch of 2 nodes needs as many"):
        Batch(torch.tensor([0, 1]), torch.ones(3).double())


def test_other_sources_of_randomness_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="got int"):
        UniformNodes(4, 2).draw(3)  # type: ignore[arg-type]


def test_a_message_names_the_first_nodes_of_a_batch() -> None:
    assert named_nodes(torch.tensor([3])) == named_nodes((3,)) == "[3]"
    assert named_nodes(torch.arange(6)) == named_nodes(range(6)) == "[0, 1, 2, 3, 4, 5]"
    assert named_nodes(torch.arange(7)) == named_nodes(range(7)) == "[0, 1, 2, 3, 4, 5, ... (7 nodes)]"
