"""Raw files that were made to do harm, or that no publisher wrote, run nothing and are refused in words."""

from __future__ import annotations

import os
import pickle
import ssl
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch_geometric.data.download
import torch_geometric.io.planetoid

from lmc_verify.datasets.checked import PINNED, checked_download, checked_pickles, wrong_pins
from lmc_verify.datasets.registry import load_data
from lmc_verify.errors import InfrastructureError, InvalidInputError

PHOTO = Path("Photo", "raw", "amazon_electronics_photo.npz")
NODES, TRAIN, TEST = 600, 20, 60  # Planetoid's split takes 500 nodes of validation


def planetoid(root: Path, **changed: Any) -> Path:
    """Write files in the layout of Cora: 600 nodes in a ring, four features, three classes."""
    x = scipy.sparse.csr_matrix(np.eye(NODES, 4, dtype=np.float32) + 1)
    y = np.eye(3, dtype=np.int32)[np.arange(NODES) % 3]
    known = NODES - TEST
    ring = {node: [(node + 1) % NODES, (node - 1) % NODES] for node in range(NODES)}
    parts: dict[str, Any] = {
        "x": x[:TRAIN],
        "tx": x[known:],
        "allx": x[:known],
        "y": y[:TRAIN],
        "ty": y[known:],
        "ally": y[:known],
        "graph": ring,
    }
    folder = root / "Cora" / "raw"
    folder.mkdir(parents=True)
    for name, value in {**parts, **changed}.items():
        content = value if isinstance(value, bytes) else pickle.dumps(value, protocol=2)
        (folder / f"ind.cora.{name}").write_bytes(content)
    (folder / "ind.cora.test.index").write_text("\n".join(map(str, range(known, NODES))))
    return root


def loaded(name: str, root: Path) -> Any:
    return load_data(name, data_root=root, cache_dir=root.parent / f"cache-{root.name}")


class Attack:
    """What pickles as a call of a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def test_sound_files_are_read(tmp_path: Path) -> None:
    data = loaded("cora", planetoid(tmp_path / "root"))
    assert (data.num_nodes, data.num_edges, int(data.y.max())) == (NODES, 2 * NODES, 2)


@pytest.mark.parametrize("part", ["x", "graph", "ally"])
@pytest.mark.parametrize("function", [os.system, os.mkdir, eval, getattr], ids=lambda value: value.__name__)
def test_a_pickle_runs_nothing(tmp_path: Path, part: str, function: Any) -> None:
    mark = tmp_path / "ran"
    argument = {os.system: f"touch {mark}", os.mkdir: str(mark), eval: f"open({str(mark)!r}, 'w')"}.get(function, "a")
    arguments = (argument, "b") if function is getattr else (argument,)
    root = planetoid(tmp_path / "root", **{part: Attack(function, *arguments)})
    with pytest.raises(InvalidInputError, match=r"'cora' .* may hold arrays and sparse matrices only"):
        loaded("cora", root)
    assert not mark.exists()


class Built:
    """A pickle of something of numpy's with a state of one's own."""

    def __init__(self, make: Any, arguments: tuple[Any, ...], state: Any) -> None:
        self.parts = make, arguments, state

    def __reduce__(self) -> tuple[Any, ...]:
        return self.parts


EMPTY = (np.array(0).__reduce__()[0], (np.ndarray, (0,), b"b"))
PLAIN = (None, None, None, -1, -1, 0)
STATES = {
    "a dtype of six parts": Built(np.dtype, ("i4", False, True), (3, "N", None, -1, -1, 0)),  # numpy ends the process
    "a dtype of another version": Built(np.dtype, ("i4", False, True), (4, "<", *PLAIN)),
    "a dtype without an order of bytes": Built(np.dtype, ("i4", False, True), (3, "N", *PLAIN)),
    "a dtype of objects": Built(np.dtype, ("O8", False, True), (3, "|", None, None, None, -1, -1, 63)),
    "a dtype of a number": Built(np.dtype, ("i4", False, True), 3),
    "an array of another size": Built(*EMPTY, (1, (3,), np.dtype("i4"), False, b"1234")),
    "an array of a negative size": Built(*EMPTY, (1, (-1, -1), np.dtype("i4"), False, b"1234")),
    "an array of texts": Built(*EMPTY, (1, (1,), Built(np.dtype, ("S4", False, True), None), False, b"1234")),
    "an array of objects": Built(*EMPTY, (1, (1,), Built(np.dtype, ("O8", False, True), None), False, b"12345678")),
    "an array of a list": Built(*EMPTY, (1, (1,), np.dtype("i4"), False, [1])),
    "an array of four parts": Built(*EMPTY, ((1,), np.dtype("i4"), False, b"1234")),
    "an array of a number": Built(*EMPTY, 5),
}


@pytest.mark.parametrize("name", STATES)
def test_an_array_or_a_dtype_is_made_of_nothing_but_numbers(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidInputError, match="arrays of numbers are needed"):
        loaded("cora", planetoid(tmp_path / "root", tx=STATES[name]))


def outside(column: int) -> Any:
    matrix = scipy.sparse.csr_matrix(np.ones((TRAIN, 4), dtype=np.float32))
    matrix.indices[3] = column
    return matrix


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"graph": {**{node: [0] for node in range(NODES)}, 5: [-1]}}, "neighbour is -1; there are 600 nodes"),
        ({"graph": {**{node: [0] for node in range(NODES)}, 5: [NODES]}}, "neighbour is 600"),
        ({"graph": {**{node: [0] for node in range(NODES)}, 5: [1.5]}}, "neighbour is 1.5"),
        ({"graph": {**{node: [0] for node in range(NODES)}, 5: "ab"}}, "are a str, not a list"),
        ({"graph": [1, 2]}, "it holds a list"),
        ({"x": outside(-1)}, "column -1 or 3 is outside of the 4 columns"),
        ({"x": outside(10**6)}, "column 0 or 1000000 is outside"),
        (
            {"allx": scipy.sparse.csr_matrix(([1.0], ([3], [4])), shape=(1000, 10**9))},
            "are more than the",
        ),
        ({"y": np.array([print, len], dtype=object)}, "it holds a ObjectDType"),
        ({"y": np.array([[1, [2]]], dtype=object)}, "it holds a ObjectDType"),
        ({"y": b"\x80\x02]" * 3}, "could not be read"),
        ({"y": b"(" * 100_000}, "could not be read"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_content_that_fits_no_graph_is_refused(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidInputError, match=words):
        loaded("cora", planetoid(tmp_path / "root", **change))


def npz(path: Path, **changed: Any) -> None:
    """Write 30 nodes in a ring in the layout of Photo."""
    ring = scipy.sparse.csr_matrix((np.ones(30), (np.arange(30), (np.arange(30) + 1) % 30)), shape=(30, 30))
    features = scipy.sparse.csr_matrix(np.eye(30, 4))
    path.parent.mkdir(parents=True)
    parts = {
        f"{name}_{part}": getattr(matrix, part)
        for name, matrix in (("adj", ring), ("attr", features))
        for part in ("data", "indices", "indptr", "shape")
    }
    np.savez(path, **{**parts, "labels": np.arange(30) % 3, **changed})


def test_a_sound_archive_is_read(tmp_path: Path) -> None:
    npz(tmp_path / "root" / PHOTO)
    assert loaded("photo", tmp_path / "root").num_edges == 60


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"adj_indices": np.full(30, -1)}, "adj of amazon_electronics_photo.npz: column -1"),
        ({"attr_indices": np.full(4, 10**7)}, "attr of .* is outside of the 4 columns"),
        ({"adj_indptr": np.arange(31) * 10**6}, "indptr does not divide"),
        ({"adj_indptr": np.arange(31)[::-1]}, "indptr does not divide"),
        ({"adj_indptr": np.arange(30)}, "indptr does not divide"),
        ({"attr_shape": np.array([30, 10**12])}, "are more than the"),
        ({"attr_shape": np.array([-30, 4])}, "its shape is"),
        ({"attr_data": np.ones(3)}, "4 indices and 3 values"),
        ({"attr_indices": np.array([0.5, 1, 2, 3])}, "indices is no list of whole numbers"),
        ({"labels": np.full(30, 10**9)}, "labels from 1000000000 to 1000000000"),
        ({"labels": np.full(30, -7)}, "labels from -7 to -7"),
        ({"labels": np.array([{}] * 30, dtype=object)}, "could not be read"),
    ],
    ids=lambda value: "" if isinstance(value, dict) else value,
)
def test_an_archive_that_points_outside_is_refused(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    npz(tmp_path / "root" / PHOTO, **change)
    with pytest.raises(InvalidInputError, match=words):
        loaded("photo", tmp_path / "root")


def test_a_download_that_is_not_the_pinned_file_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch_geometric.datasets import Amazon

    def fake(self: Any) -> None:
        npz(tmp_path / "other" / PHOTO.name)
        (tmp_path / "other" / PHOTO.name).rename(Path(self.raw_dir, PHOTO.name))

    monkeypatch.setattr(Amazon, "download", fake)
    with pytest.raises(InfrastructureError, match=r"not kept: Photo/raw/\S+ has SHA-256 \w{64}, \w{64} is pinned"):
        load_data("photo", data_root=tmp_path, cache_dir=tmp_path / "cache", download=True)
    assert not list((tmp_path / "cache" / "downloads").iterdir())


def test_pins_are_of_files_that_data_sets_name() -> None:
    from lmc_verify.datasets.builtin import _FILE_DATASETS

    named = {path.as_posix() for _, files, *_ in _FILE_DATASETS for path in files.raw_files()}
    assert set(PINNED) <= named


@pytest.mark.real_data
def test_pins_are_those_of_the_published_files() -> None:
    if "LMC_VERIFY_DATA_ROOT" not in os.environ:
        pytest.skip("no raw files: set LMC_VERIFY_DATA_ROOT to a folder in the layout of PyTorch Geometric")
    data_root = Path(os.environ["LMC_VERIFY_DATA_ROOT"])
    files = tuple(Path(name) for name in PINNED if (data_root / name).is_file())
    assert files
    assert wrong_pins(data_root, files) == []


def test_what_is_put_in_the_libraries_is_taken_out() -> None:
    planetoid_module, download_module = torch_geometric.io.planetoid, torch_geometric.data.download
    before = planetoid_module.pickle, download_module.ssl
    with checked_pickles(), checked_download():
        assert planetoid_module.pickle is not before[0]
        context = download_module.ssl._create_unverified_context()
        assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)
    assert (planetoid_module.pickle, download_module.ssl) == before
