"""Claim: a data set name, its options and a seed fix one graph, and loading it has no side effects.

No side effects means: the folder of raw files is not written to, the network is used only on request, nothing
is printed, and no global random state is read or advanced. Counts of real data sets are those published.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch
from common.crossed import slow_but
from common.helpers import examples
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from lmc_verify.datasets import files as rawfiles
from lmc_verify.datasets import generated
from lmc_verify.datasets.checked import PINNED, sha256_of
from lmc_verify.datasets.info import DatasetInfo
from lmc_verify.datasets.registry import dataset_info, dataset_names, load_data
from lmc_verify.errors import InfrastructureError, InvalidInputError, OutputError, UnknownNameError

OFFLINE = [name for name in dataset_names() if not dataset_info(name).needs_files]
SMALLER = {"arxiv-like": {"num_nodes": 2000, "num_edges": 9000}}  # options that keep a test fast
GENERATED = [name for name in OFFLINE if dataset_info(name).family == "generated"]
MASKS = ("train_mask", "val_mask", "test_mask")

# Counts: nodes, columns of edge_index, features, classes, and the sizes of the masks. Where the raw files
# have no split, the masks are 60 / 20 / 20 %. Coauthor CS (0.5 GB of features) and Computers are left out.
REAL = {
    "cora": (2708, 10556, 1433, 7, (140, 500, 1000)),
    "photo": (7650, 238162, 745, 8, (4590, 1530, 1530)),
    "dblp": (17716, 105734, 1639, 4, (10630, 3543, 3543)),
    "tolokers": (11758, 1038000, 10, 2, (5879, 2939, 2940)),
    "minesweeper": (10000, 78804, 7, 2, (5000, 2500, 2500)),
}


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of raw files, named by LMC_VERIFY_DATA_ROOT."""
    root = os.environ.get("LMC_VERIFY_DATA_ROOT")
    if not root:
        pytest.skip("no raw files: set LMC_VERIFY_DATA_ROOT to a folder in the layout of PyTorch Geometric")
    return Path(root)


@pytest.fixture(scope="module")
def real_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    cache = tmp_path_factory.mktemp("cache")
    yield cache
    shutil.rmtree(cache)  # 0.2 GB, which pytest would keep


@pytest.fixture(autouse=True)
def _isolated(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """No test sees the user's folders, and a test that tries the network fails at once."""

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("a test used the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.delenv("LMC_VERIFY_DATA_ROOT", raising=False)
    monkeypatch.setenv("LMC_VERIFY_CACHE", str(tmp_path_factory.mktemp("default-cache")))
    monkeypatch.delenv("PYTEST_CURRENT_TEST", raising=False)  # PyTorch Geometric is quiet when it sees it


def save_npz(path: Path, nodes: int = 30) -> None:
    """Write a small graph in the format of the Amazon, Coauthor and CitationFull data sets."""
    x = scipy.sparse.random(nodes, 8, 0.5, format="csr", random_state=np.random.default_rng(0))
    ring = np.arange(nodes)
    adj = scipy.sparse.csr_matrix((np.ones(nodes), (ring, (ring + 1) % nodes)), shape=(nodes, nodes))
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, Any] = {"labels": ring % 3}
    for prefix, matrix in (("attr", x), ("adj", adj)):
        arrays |= {f"{prefix}_{part}": getattr(matrix, part) for part in ("data", "indices", "indptr", "shape")}
    np.savez(path, **arrays)


PHOTO = Path("Photo", "raw", "amazon_electronics_photo.npz")


@pytest.fixture
def small_root(tmp_path: Path) -> Path:
    """A data root with a small graph under the file name of Photo."""
    save_npz(tmp_path / "root" / PHOTO)
    return tmp_path / "root"


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    return {
        str(path.relative_to(folder)): (path.stat().st_size, path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
    }


def fingerprint(data: Any) -> str:
    digest = hashlib.sha256()
    for key in sorted(data.keys()):
        value = data[key]
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode() + value.numpy().tobytes())
    return digest.hexdigest()


def assert_sound(data: Any, info: DatasetInfo) -> None:
    nodes = data.x.size(0)
    assert data.x.dtype == torch.float32
    assert data.x.is_contiguous()
    assert data.edge_index.dtype == torch.int64
    assert data.edge_index.is_contiguous()
    assert data.edge_index.shape[0] == 2
    if data.edge_index.numel():
        assert 0 <= int(data.edge_index.min()) <= int(data.edge_index.max()) < nodes
    if info.task == "multi-label":
        assert data.y.dtype == torch.float32
        assert data.y.dim() == 2
        assert set(data.y.unique().tolist()) <= {0.0, 1.0}
    else:
        assert data.y.dtype == torch.int64
        assert data.y.shape == (nodes,)
        assert int(data.y.min()) >= 0
    masks = torch.stack([data[mask] for mask in MASKS])
    assert masks.dtype == torch.bool
    assert masks.shape == (3, nodes)
    assert int(masks.sum(0).max()) <= 1
    assert masks[0].any()


def edge_keys(data: Any) -> np.ndarray:
    source, target = data.edge_index.numpy()
    return source * data.num_nodes + target


def assert_simple_and_symmetric(data: Any) -> None:
    source, target = data.edge_index.numpy()
    keys = edge_keys(data)
    assert (source != target).all()
    assert np.unique(keys).size == keys.size
    assert np.array_equal(np.sort(target * data.num_nodes + source), np.sort(keys))


# --- names and options ------------------------------------------------------------------------------------


def test_names_are_unique_and_described() -> None:
    names = dataset_names()
    assert names[0] == "digits"
    assert len(set(names)) == len(names) == 31
    for name in names:
        info = dataset_info(name)
        assert info.name == name == name.lower()
        assert info.description
        assert info.source
        assert info.needs_files == (info.family in ("pyg", "ogb"))
        assert hash(info) == hash(dataset_info(name))


def test_unknown_name_suggests_the_nearest() -> None:
    for call in (load_data, dataset_info):
        with pytest.raises(UnknownNameError, match=r"unknown data set 'coar': did you mean 'cora'"):
            call("coar")


def test_unknown_option_lists_the_allowed_ones() -> None:
    with pytest.raises(InvalidInputError, match=r"'digits' has no option 'k': its options are 'neighbors'"):
        load_data("digits", k=3)
    with pytest.raises(InvalidInputError, match=r"'karate' has no option 'split': it takes no options"):
        load_data("karate", split=0)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("sbm", {"num_nodes": 0}, r"'num_nodes' of data set 'sbm' must be at least 1"),
        ("sbm", {"num_nodes": 10.5}, r"must be an integer, got 10.5"),
        ("sbm", {"num_nodes": True}, r"must be an integer, got True"),
        ("sbm", {"num_nodes": "ten"}, r"must be an integer, got 'ten'"),
        ("sbm", {"p_in": 1.5}, r"at least 0 and at most 1, got 1.5"),
        ("sbm", {"p_in": float("nan")}, r"'p_in' .* got nan"),
        ("sbm", {"signal": float("inf")}, r"'signal' .* finite, got inf"),
        (
            "sbm",
            {"num_nodes": 3, "num_classes": 4},
            r"'num_classes' \(4\) must be at most the number of nodes",
        ),
        ("sbm", {"num_nodes": 10**6, "p_in": 0.5}, r"more than the limit"),
        ("dcsbm", {"num_nodes": 100, "num_edges": 5000}, r"too dense for 100 nodes: at most 2,475"),
        ("dcsbm", {"num_nodes": 10}, r"need at least 20 nodes"),
        ("dcsbm", {"within_community": 0.7, "within_class": 0.7}, r"must be at most 1"),
        (
            "dcsbm",
            {"num_nodes": 200, "num_edges": 9000, "within_community": 1.0, "within_class": 0.0},
            "found room",
        ),
        ("directed", {"num_nodes": 10, "num_edges": 91}, r"raise 'num_nodes'|more than the"),
        ("directed", {"num_nodes": 5, "num_classes": 2}, r"leave 0 for 5 self-loops"),
        ("grid", {"columns": 2}, r"must be at most 'columns'"),
        ("digits", {"neighbors": 1797}, r"at least 1 and at most 1796"),
    ],
)
def test_bad_options(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        load_data(name, **options)


@pytest.mark.parametrize("seed", [-1, 1.5, "0", None])
def test_bad_seed(seed: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"the seed must be at least 0|seed is .*a whole number"):
        load_data("karate", seed=seed)


# --- embedded and generated -------------------------------------------------------------------------------


@pytest.fixture
def _random_states_restored() -> Iterator[None]:
    """Put back the global random states, for a test that seeds them itself."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    yield
    random.setstate(before[0])
    np.random.set_state(before[1])  # noqa: NPY002
    torch.set_rng_state(before[2])


@pytest.mark.usefixtures("_random_states_restored")
@pytest.mark.parametrize("name", OFFLINE)
def test_offline_data_sets_are_sound_deterministic_and_leave_random_states(
    name: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("LMC_VERIFY_CACHE", str(tmp_path / "file" / "cache"))  # unusable, and not needed
    smaller = SMALLER.get(name, {})
    prints = []
    for global_seed in (1, 2):
        random.seed(global_seed)
        np.random.seed(global_seed)  # noqa: NPY002
        torch.manual_seed(global_seed)
        before = random.getstate(), str(np.random.get_state()), torch.get_rng_state()  # noqa: NPY002
        data = load_data(name, seed=7, **smaller)
        assert random.getstate() == before[0]
        assert str(np.random.get_state()) == before[1]  # noqa: NPY002
        assert torch.equal(torch.get_rng_state(), before[2])
        assert_sound(data, dataset_info(name))
        prints.append(fingerprint(data))
    assert prints[0] == prints[1]
    assert fingerprint(load_data(name, seed=8, **smaller)) != prints[0]
    info = dataset_info(name)
    if info.num_nodes is not None:
        assert (data.num_nodes, data.num_edges) == (info.num_nodes, info.num_edges)
    assert fingerprint(load_data(name, seed=7, **(dict(info.options) | smaller))) == prints[0]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("neighbors", [1, 10])
def test_digits_is_the_symmetric_nearest_neighbour_graph(neighbors: int) -> None:
    data = load_data("digits", neighbors=neighbors)
    assert data.x.shape == (1797, 64)
    assert float(data.x.min()) == 0.0
    assert float(data.x.max()) == 1.0
    assert_simple_and_symmetric(data)
    pixels = (data.x.numpy() * 16).astype(np.int64)
    expected = set()
    for node in range(len(pixels)):
        squared = ((pixels - pixels[node]) ** 2).sum(axis=1)
        squared[node] = squared.max() + 1
        for other in np.argsort(squared, kind="stable")[:neighbors].tolist():  # ties: the lower number
            expected |= {(node, other), (other, node)}
    assert expected == set(map(tuple, data.edge_index.t().tolist()))


def test_digits_are_those_of_scikit_learn() -> None:
    pixels, labels = load_digits(return_X_y=True)
    data = load_data("digits")
    np.testing.assert_array_equal(data.x.numpy() * 16, pixels)
    np.testing.assert_array_equal(data.y.numpy(), labels)


def test_split_is_60_20_20_and_covers_every_node() -> None:
    data = load_data("digits")
    masks = torch.stack([data[mask] for mask in MASKS])
    assert masks.sum(1).tolist() == [1078, 360, 359]
    assert bool((masks.sum(0) == 1).all())
    # The split has its own random stream: it does not follow the options of the graph.
    other = load_data("digits", neighbors=3)
    assert all(torch.equal(data[mask], other[mask]) for mask in MASKS)


def test_karate_keeps_its_training_nodes() -> None:
    from torch_geometric.datasets import KarateClub

    data = load_data("karate", seed=5)
    assert torch.equal(data.train_mask, KarateClub()[0].train_mask)
    assert [int(data[mask].sum()) for mask in MASKS] == [4, 15, 15]


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in GENERATED if name not in ("directed",)])
def test_undirected_generators_give_simple_graphs(name: str) -> None:
    data = load_data(name, seed=3)
    assert_simple_and_symmetric(data)
    if name == "arxiv-like":  # as many as ogbn-arxiv has, each undirected edge twice
        assert (data.num_nodes, data.num_edges) == (169_343, 2 * 1_157_799)
        assert (data.x.size(1), int(data.y.max()) + 1) == (128, 40)


@pytest.mark.parametrize("name", GENERATED)
def test_smallest_graph(name: str) -> None:
    options: dict[str, Any] = {
        "grid": {"rows": 1, "columns": 1, "num_classes": 1},
        "dcsbm": {"num_nodes": 1, "num_classes": 1, "communities_per_class": 1, "num_edges": 0},
        "arxiv-like": {"num_nodes": 1, "num_classes": 1, "communities_per_class": 1, "num_edges": 0},
        "directed": {
            "num_nodes": 1,
            "num_classes": 1,
            "num_edges": 0,
            "num_self_loops": 0,
            "num_isolated": 1,
        },
        "multilabel": {"num_nodes": 1, "num_labels": 1},
        "ring": {"num_nodes": 3, "num_features": 1},
    }.get(name, {"num_nodes": 1, "num_classes": 1})
    data = load_data(name, **options)
    assert_sound(data, dataset_info(name))
    assert data.num_edges == (6 if name == "ring" else 0)


def test_directed_has_the_awkward_parts() -> None:
    data = load_data("directed", num_nodes=80, num_edges=400, num_self_loops=6, num_isolated=7)
    source, target = data.edge_index
    assert data.num_edges == 406
    assert int((source == target).sum()) == 6
    assert np.unique(edge_keys(data)).size == 406
    touched = torch.cat([source, target]).unique()
    assert touched.numel() <= 73
    assert bool((source[1:] < source[:-1]).any()), "the edges are sorted"
    assert not np.array_equal(np.sort(edge_keys(data)), np.sort((target * 80 + source).numpy()))
    assert data.edge_weight.shape == (406,)
    assert data.edge_weight.dtype == torch.float32
    assert 0.1 <= float(data.edge_weight.min()) < float(data.edge_weight.max()) <= 1.0


def test_grid_is_the_grid() -> None:
    data = load_data("grid", rows=3, columns=4)
    expected = set()
    for row in range(3):
        for column in range(4):
            for other_row, other_column in ((row, column + 1), (row + 1, column)):
                if other_row < 3 and other_column < 4:
                    pair = (row * 4 + column, other_row * 4 + other_column)
                    expected |= {pair, pair[::-1]}
    assert expected == set(map(tuple, data.edge_index.t().tolist()))
    assert data.y.reshape(3, 4).tolist() == [[0, 1, 2, 3]] * 3


def test_dcsbm_has_exact_edges_communities_and_heavy_tails() -> None:
    data = load_data("dcsbm", num_nodes=20_000, num_edges=100_000, num_classes=8)
    assert data.num_edges == 200_000
    source, target = data.edge_index
    inside = float((data.y[source] == data.y[target]).float().mean())
    assert 0.75 < inside < 0.9  # 0.6 + 0.2 + 0.2 / 8, less the repeats, which are mostly inside
    degrees = torch.bincount(source, minlength=20_000)
    assert int(degrees.max()) > 20 * degrees.float().mean()
    assert int(degrees.median()) < degrees.float().mean()


def test_sbm_edge_counts_match_their_expectation() -> None:
    data = load_data("sbm", num_nodes=2000, num_classes=4, p_in=0.02, p_out=0.003, seed=1)
    source, target = data.edge_index
    same = data.y[source] == data.y[target]
    for count, pairs, p in (
        (int(same.sum()) / 2, 4 * 500 * 499 / 2, 0.02),
        (int((~same).sum()) / 2, 6 * 500 * 500, 0.003),
    ):
        assert abs(count - pairs * p) < 5 * np.sqrt(pairs * p * (1 - p))
    full = load_data("sbm", num_nodes=20, num_classes=2, p_in=1.0, p_out=0.0)
    assert full.num_edges == 2 * 10 * 9


def test_multilabel_nodes_have_at_least_one_label() -> None:
    data = load_data("multilabel", num_labels=5)
    assert data.y.shape == (1000, 5)
    assert float(data.y.sum(1).min()) == 1.0
    assert float(data.y.sum(1).max()) > 1.0


def test_preferential_attachment_equals_the_sequential_definition() -> None:
    nodes, attachments = 60, 2
    data = load_data("barabasi-albert", num_nodes=nodes, attachments=attachments, seed=11)
    uniform = generated.make_rng(11, 0).random(nodes * attachments)
    ends: list[int] = []
    expected = set()
    for edge, u in enumerate(uniform):
        ends.append(edge // attachments)
        ends.append(ends[int(u * len(ends))])
        if ends[-1] != ends[-2]:
            expected |= {(ends[-1], ends[-2]), (ends[-2], ends[-1])}
    assert expected == set(map(tuple, data.edge_index.t().tolist()))


def test_pairs_are_enumerated_exactly() -> None:
    nodes = 70
    one, other = generated._pair_of(np.arange(nodes * (nodes - 1) // 2))
    assert list(zip(one.tolist(), other.tolist(), strict=True)) == [(i, j) for i in range(nodes) for j in range(i)]
    row = np.array([10**5, 10**6, 3 * 10**7, 10**9])
    first = row * (row - 1) // 2
    for position, i, j in ((first, row, row * 0), (first - 1, row - 1, row - 2)):
        found = generated._pair_of(position)
        assert np.array_equal(found[0], i)
        assert np.array_equal(found[1], j)


@given(total=st.integers(0, 2000), probability=st.floats(0.0, 1.0), seed=st.integers(0, 2**32))
@examples(60, deadline=None)
def test_coins_choose_distinct_positions_in_range(total: int, probability: float, seed: int) -> None:
    positions = generated._bernoulli_positions(generated.make_rng(seed, 0), total, probability)
    assert (np.diff(positions) > 0).all()
    assert positions.size == 0 or (positions[0] >= 0 and positions[-1] < total)
    if probability == 1.0:
        assert positions.size == total


@given(
    name=st.sampled_from(GENERATED),
    size=st.integers(20, 120),
    seed=st.integers(0, 2**63),
    signal=st.floats(0, 3),
)
@examples(40, deadline=None)
def test_generated_graphs_are_sound_for_any_seed(name: str, size: int, seed: int, signal: float) -> None:
    options: dict[str, Any] = {"rows": size // 5, "columns": 5} if name == "grid" else {"num_nodes": size}
    if name in ("dcsbm", "arxiv-like", "directed"):
        options["num_edges"] = size * (size - 1) // 8
    if name == "arxiv-like":
        options |= {"num_classes": 4, "communities_per_class": 4}
    options["noise" if name == "ring" else "signal"] = signal
    data = load_data(name, seed=seed, **options)
    assert_sound(data, dataset_info(name))
    assert fingerprint(data) == fingerprint(load_data(name, seed=seed, **options))


# --- raw files --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in dataset_names() if dataset_info(name).family == "pyg"])
def test_missing_files_are_named_with_the_remedy(name: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError) as caught:
        load_data(name, data_root=tmp_path / "absent", cache_dir=tmp_path / "cache")
    message = str(caught.value)
    assert repr(name) in message
    assert f"looked in {tmp_path / 'absent'}, which does not exist" in message
    assert "--data-root DIR" in message
    assert "--download" in message
    assert "/raw/" in message
    assert list(tmp_path.iterdir()) == [], "a failed load leaves nothing behind"


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("cora", "Cora/raw/ind.cora.test.index"),
        ("photo", "Photo/raw/amazon_electronics_photo.npz"),
        ("cs", "CS/raw/ms_academic_cs.npz"),
        ("physics", "Physics/raw/ms_academic_phy.npz"),
        ("dblp", "dblp/raw/dblp.npz"),
        ("cora-ml", "cora_ml/raw/cora_ml.npz"),
        ("cora-full", "cora/raw/cora.npz"),
        ("roman-empire", "roman_empire/raw/roman_empire.npz"),
        ("flickr", "Flickr/raw/role.json"),
        ("ppi", "PPI/raw/valid_graph_id.npy"),
    ],
)
def test_expected_file_names(name: str, file: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError) as caught:
        load_data(name, data_root=tmp_path)
    assert f"{file}" in str(caught.value)


def test_only_the_missing_files_are_named(tmp_path: Path) -> None:
    raw = tmp_path / "Cora" / "raw"
    raw.mkdir(parents=True)
    for part in ("x", "tx", "allx", "y", "ty", "ally", "graph"):
        (raw / f"ind.cora.{part}").touch()
    with pytest.raises(InvalidInputError, match=r"1 of 8 raw files .*: Cora/raw/ind.cora.test.index\. Put"):
        load_data("cora", data_root=tmp_path)


def test_environment_variable_names_the_data_root(small_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LMC_VERIFY_DATA_ROOT", str(small_root))
    assert load_data("photo").num_nodes == 30


def test_default_place_is_the_download_folder_of_the_cache(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"looked in .*cache.downloads.photo, which does not exist"):
        load_data("photo", cache_dir=tmp_path / "cache")


def test_raw_folder_is_read_only_and_nothing_is_printed(
    small_root: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = tree(small_root)
    cache = tmp_path / "cache"
    first = load_data("photo", data_root=small_root, cache_dir=cache)
    assert_sound(first, dataset_info("photo"))
    assert_simple_and_symmetric(first)
    cached = tree(cache)
    second = load_data("photo", data_root=str(small_root), cache_dir=cache)
    assert fingerprint(first) == fingerprint(second)
    assert tree(cache) == cached, "the second load processed again"
    assert tree(small_root) == before
    assert not list(cache.rglob(".partial-*"))
    assert capfd.readouterr() == ("", "")


def test_cache_tells_roots_and_changed_files_apart(small_root: Path, tmp_path: Path) -> None:
    cache, other = tmp_path / "cache", tmp_path / "other"
    save_npz(other / PHOTO, nodes=20)
    assert load_data("photo", data_root=small_root, cache_dir=cache).num_nodes == 30
    assert load_data("photo", data_root=other, cache_dir=cache).num_nodes == 20
    save_npz(small_root / PHOTO, nodes=25)
    assert load_data("photo", data_root=small_root, cache_dir=cache).num_nodes == 25


def test_raw_files_are_copied_where_links_are_forbidden(
    small_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise OSError("no right to make links")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    for _ in range(2):
        assert load_data("photo", data_root=small_root, cache_dir=tmp_path / "cache").num_nodes == 30


def test_damaged_files_are_an_error_and_leave_no_cache_entry(tmp_path: Path) -> None:
    (tmp_path / "root" / PHOTO).parent.mkdir(parents=True)
    (tmp_path / "root" / PHOTO).write_bytes(b"not a zip archive")
    with pytest.raises(InvalidInputError, match=r"'photo' could not be read from the raw files in"):
        load_data("photo", data_root=tmp_path / "root", cache_dir=tmp_path / "cache")
    assert list((tmp_path / "cache" / "processed").iterdir()) == []


def test_unusable_cache_is_an_output_error(small_root: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"cannot be written .* LMC_VERIFY_CACHE"):
        load_data("photo", data_root=small_root, cache_dir=tmp_path / "file")


def test_losing_the_race_for_a_cache_entry_is_harmless(
    small_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish, winners = rawfiles._publish, []

    def beaten(entry: Path, target: Path) -> None:
        if not winners:
            winners.append(target)
            load_data("photo", data_root=small_root, cache_dir=tmp_path / "cache")
        publish(entry, target)

    monkeypatch.setattr(rawfiles, "_publish", beaten)
    data = load_data("photo", data_root=small_root, cache_dir=tmp_path / "cache")
    assert data.num_nodes == 30
    assert [path.name for path in (tmp_path / "cache" / "processed").iterdir()] == [winners[0].name]


@pytest.mark.slow
def test_two_processes_at_once(small_root: Path, tmp_path: Path) -> None:
    # In a fresh process the libraries are imported during the load, which must not show in `random` either.
    code = (
        "import random, sys; import numpy as np; import torch; from lmc_verify.datasets import load_data\n"
        "def states(): return random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()\n"
        "before = states()\n"
        "print(load_data('photo', data_root=sys.argv[1], cache_dir=sys.argv[2]), load_data('digits'))\n"
        "assert states() == before"
    )
    command = [sys.executable, "-c", code, str(small_root), str(tmp_path / "cache")]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(2)]
    outputs = [process.communicate(timeout=120) for process in running]
    assert [process.returncode for process in running] == [0, 0], outputs
    assert outputs[0] == outputs[1]
    assert outputs[0][1] == b""
    assert len(list((tmp_path / "cache" / "processed").iterdir())) == 1


def test_download_happens_on_request_only_and_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from torch_geometric.datasets import Amazon

    calls = []

    def fake(self: Any) -> None:
        print("Downloading ...")
        calls.append(socket.getdefaulttimeout())
        save_npz(Path(self.raw_dir) / "amazon_electronics_photo.npz")

    monkeypatch.setattr(Amazon, "download", fake)
    save_npz(tmp_path / "pinned.npz")
    monkeypatch.setitem(PINNED, PHOTO.as_posix(), sha256_of(tmp_path / "pinned.npz"))
    root, cache = tmp_path / "root", tmp_path / "cache"
    root.mkdir()
    with pytest.raises(InvalidInputError, match="raw files are missing"):
        load_data("photo", data_root=root, cache_dir=cache)
    assert calls == []
    for _ in range(2):
        assert load_data("photo", data_root=root, cache_dir=cache, download=True).num_nodes == 30
    assert load_data("photo", cache_dir=cache).num_nodes == 30
    assert calls == [60.0]
    assert socket.getdefaulttimeout() is None
    assert list(root.iterdir()) == []
    assert capfd.readouterr() == ("", "")


def test_failed_download_is_an_infrastructure_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*args: Any, **kwargs: Any) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(urllib.request, "urlopen", unreachable)
    with pytest.raises(InfrastructureError, match=r"'photo' failed: .*no route to host.* --data-root DIR"):
        load_data("photo", cache_dir=tmp_path, download=True)
    assert list((tmp_path / "downloads").iterdir()) == []


def test_ppi_is_merged_into_blocks(tmp_path: Path) -> None:
    raw = tmp_path / "PPI" / "raw"
    raw.mkdir(parents=True)
    for part, sizes in (("train", [3, 4]), ("valid", [5]), ("test", [2])):
        count, start, links = sum(sizes), 0, []
        for size in sizes:
            links += [{"source": start + i, "target": start + (i + 1) % size} for i in range(size)]
            start += size
        graph = {"directed": False, "multigraph": False, "graph": {}, "links": links}
        (raw / f"{part}_graph.json").write_text(json.dumps(graph | {"nodes": [{"id": i} for i in range(count)]}))
        np.save(raw / f"{part}_feats.npy", np.ones((count, 3)))
        np.save(raw / f"{part}_labels.npy", np.eye(count, 4))
        np.save(raw / f"{part}_graph_id.npy", np.repeat(np.arange(len(sizes)) + 1, sizes))
    data = load_data("ppi", data_root=tmp_path)
    assert_sound(data, dataset_info("ppi"))
    assert data.y.shape == (14, 4)
    assert [data[mask].nonzero().flatten().tolist() for mask in MASKS] == [
        list(range(7)),
        list(range(7, 12)),
        [12, 13],
    ]
    block = torch.repeat_interleave(torch.arange(4), torch.tensor([3, 4, 5, 2]))
    source, target = data.edge_index
    assert torch.equal(block[source], block[target])
    assert torch.bincount(source).tolist() == [2] * 12 + [1, 1]


def test_yelp_labels_are_floats(tmp_path: Path) -> None:
    raw = tmp_path / "Yelp" / "raw"
    raw.mkdir(parents=True)
    adj = scipy.sparse.csr_matrix(np.ones((5, 5)) - np.eye(5))
    np.savez(raw / "adj_full.npz", data=adj.data, indices=adj.indices, indptr=adj.indptr, shape=adj.shape)
    np.save(raw / "feats.npy", np.ones((5, 2)))
    (raw / "class_map.json").write_text(json.dumps({str(i): [i % 2, 1] for i in range(5)}))
    (raw / "role.json").write_text(json.dumps({"tr": [0, 1, 2], "va": [3], "te": [4]}))
    data = load_data("yelp", data_root=tmp_path)
    assert_sound(data, dataset_info("yelp"))
    assert [int(data[mask].sum()) for mask in MASKS] == [3, 1, 1]


def test_ogb_without_its_extra_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(InvalidInputError, match=r"pip install 'lmc-verify\[ogb\]'"):
        load_data("ogbn-arxiv", data_root=tmp_path)


def test_ogb_files(tmp_path: Path) -> None:
    pytest.importorskip("pandas", reason="needs the extra lmc-verify[ogb]")
    with pytest.raises(InvalidInputError, match=r"ogbn_arxiv/split/time/valid.csv.gz"):
        load_data("ogbn-arxiv", data_root=tmp_path)
    for folder, split in (("ogbn_arxiv", "time"), ("ogbn_products", "sales_ranking")):
        tables = {
            "raw/edge": [[0, 1], [1, 2], [3, 0]],
            "raw/node-feat": [[0.5, -1.0], [0.25, 2.0], [1e-3, 3.0], [0.0, 4.0]],
            "raw/node-label": [[2], [0], [1], [2]],
            f"split/{split}/train": [[2], [0]],
            f"split/{split}/valid": [[1]],
            f"split/{split}/test": [[3]],
        }
        for name, rows in tables.items():
            path = tmp_path / folder / f"{name}.csv.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            np.savetxt(path, np.array(rows), delimiter=",", fmt="%.10g")
    data = load_data("ogbn-arxiv", data_root=tmp_path)
    assert_sound(data, dataset_info("ogbn-arxiv"))
    assert data.edge_index.tolist() == [[0, 1, 3], [1, 2, 0]]
    assert data.y.tolist() == [2, 0, 1, 2]
    assert [data[mask].nonzero().flatten().tolist() for mask in MASKS] == [[0, 2], [1], [3]]
    assert_simple_and_symmetric(load_data("ogbn-arxiv", data_root=tmp_path, undirected=True))
    both = load_data("ogbn-products", data_root=tmp_path)
    assert both.edge_index.tolist() == [[0, 1, 1, 2, 3, 0], [1, 0, 2, 1, 0, 3]]  # the order of OGB


# --- real data sets ---------------------------------------------------------------------------------------


@pytest.mark.real_data
@pytest.mark.parametrize("name", slow_but({*REAL} - {"dblp", "tolokers"}, REAL))
def test_counts_of_real_data_sets(name: str, data_root: Path, real_cache: Path) -> None:
    nodes, edges, features, classes, sizes = REAL[name]
    before = tree(data_root)
    states = random.getstate(), str(np.random.get_state()), torch.get_rng_state()  # noqa: NPY002
    try:
        data = load_data(name, data_root=data_root, cache_dir=real_cache)
    except InvalidInputError as error:
        if "raw files are missing" not in str(error):
            raise
        pytest.skip(f"{data_root} has no raw files of {name}")
    assert tree(data_root) == before
    assert random.getstate() == states[0]
    assert str(np.random.get_state()) == states[1]  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), states[2])
    assert_sound(data, dataset_info(name))
    assert data.x.shape == (nodes, features)
    assert data.num_edges == edges
    assert data.y.unique().tolist() == list(range(classes))
    assert tuple(int(data[mask].sum()) for mask in MASKS) == sizes
    assert (dataset_info(name).num_nodes, dataset_info(name).num_edges) == (nodes, edges)
    assert_simple_and_symmetric(data)
    again = load_data(name, data_root=data_root, cache_dir=real_cache)
    assert fingerprint(again) == fingerprint(data)


@pytest.mark.real_data
def test_fixed_splits_are_selected_by_number(data_root: Path, real_cache: Path) -> None:
    first, last, default = (
        load_data("minesweeper", data_root=data_root, cache_dir=real_cache, **options)
        for options in ({"split": 0}, {"split": 9}, {})
    )
    assert fingerprint(first) == fingerprint(default)
    assert not torch.equal(first.train_mask, last.train_mask)
    assert torch.equal(first.edge_index, last.edge_index)
    with pytest.raises(InvalidInputError, match=r"'split' .* at most 9"):
        load_data("minesweeper", data_root=data_root, cache_dir=real_cache, split=10)
