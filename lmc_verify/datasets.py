"""Node-classification data sets by name, as one `torch_geometric.data.Data` each.

Four families: *embedded* (part of scikit-learn or PyTorch Geometric), *generated* (`lmc_verify.generated`),
*pyg* (raw files in the layout of PyTorch Geometric) and *ogb* (raw files in the layout of OGB).

The folder of raw files, `data_root`, is only read. PyTorch Geometric writes what it processed next to the
raw files, so it is given a cache folder where `raw` is a link to the real one. A cache entry is built in a
temporary folder and renamed into place: processes that load the same data set at once repeat some work and
never see a half-written entry.

The network is used when `download=True` and never otherwise. Raw files are trusted input: those of Cora,
CiteSeer and PubMed are pickles, and PyTorch Geometric downloads without checking certificates.

Data sets without masks get a seeded random split into 60 % training, 20 % validation and 20 % test nodes. No
function here reads or writes a global random state.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import io
import itertools
import operator
import os
import random
import shutil
import socket
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import platformdirs
import torch
import torch_geometric
from torch import Tensor
from torch_geometric.data import Data

from lmc_verify.errors import InfrastructureError, InvalidInputError, OutputError, UnknownNameError
from lmc_verify.generated import GENERATORS, Option, Task, check_options, make_rng
from lmc_verify.graph import Graph

__all__ = ["DatasetInfo", "dataset_info", "dataset_names", "load_data", "load_graph"]

Family = Literal["embedded", "generated", "pyg", "ogb"]

_CACHE_VARIABLE = "LMC_VERIFY_CACHE"
_ROOT_VARIABLE = "LMC_VERIFY_DATA_ROOT"
_DOWNLOAD_TIMEOUT = 60.0  # seconds without a byte
_SILENCE = threading.RLock()
_SPLITS = ("train_mask", "val_mask", "test_mask")


@dataclass(frozen=True)
class DatasetInfo:
    """What is known about a data set before it is loaded.

    `num_edges` counts the columns of `edge_index` (an undirected edge counts twice). Both counts are those of
    the default options, or None where they are not fixed in advance. `options` lists the names and defaults
    of the options that `load_data` takes.
    """

    name: str
    family: Family
    description: str
    task: Task
    source: str
    needs_files: bool
    num_nodes: int | None = None
    num_edges: int | None = None
    options: tuple[tuple[str, int | float | bool], ...] = ()


@dataclass(frozen=True)
class _Entry:
    """A registered data set: how it is described and how it is loaded."""

    info: DatasetInfo
    options: Mapping[str, Option]
    load: Callable[[_Request], Data]


@dataclass(frozen=True)
class _Request:
    """The arguments of one `load_data` call after validation."""

    name: str
    data_root: Path | None
    cache: Path
    download: bool
    seed: int
    options: Mapping[str, Any]


@dataclass(frozen=True)
class _Pyg:
    """A data set class of PyTorch Geometric and how to call it.

    The values of `kwargs` are spelled as the class stores them, which `blank` relies on. Classes that put
    `raw` directly into their root get a `subfolder` of their own.
    """

    class_name: str
    kwargs: Mapping[str, str] = field(default_factory=dict)
    subfolder: str = ""
    parts: tuple[str, ...] = ()  # a class that is called once for each part of the split (PPI)

    def dataset_class(self) -> Any:
        return getattr(_import("torch_geometric.datasets"), self.class_name)

    def blank(self, root: str) -> Any:
        """Return an instance that knows its names and paths; its `__init__`, which downloads, has not run."""
        cls = self.dataset_class()
        blank = cls.__new__(cls)
        vars(blank).update(self.kwargs, root=os.path.join(root, self.subfolder) if self.subfolder else root)
        return blank

    def raw_files(self) -> tuple[Path, ...]:
        """Return the expected raw files relative to the data root."""
        blank = self.blank("")
        names = blank.raw_file_names
        return tuple(Path(blank.raw_dir) / name for name in ([names] if isinstance(names, str) else names))

    def fetch(self, root: Path) -> None:
        blank = self.blank(str(root))
        os.makedirs(blank.raw_dir, exist_ok=True)
        blank.download()

    def read(self, root: Path) -> Data:
        """Load the data set below `root`, where every raw file is in place; a download would be a defect."""
        cls = self.dataset_class()
        offline = type(cls.__name__, (cls,), {"download": _refuse_download})
        folder = str(root / self.subfolder)
        if not self.parts:
            return offline(folder, **self.kwargs)[0]
        return _merge({part: list(offline(folder, split=part)) for part in self.parts})


@dataclass(frozen=True)
class _Ogb:
    """A homogeneous node data set of OGB: its folder, archive, split and whether edges come once or twice."""

    folder: str
    archive: str
    split: str
    add_inverse: bool

    def raw_files(self) -> tuple[Path, ...]:
        raw, split = Path(self.folder, "raw"), Path(self.folder, "split", self.split)
        names = ("edge", "node-feat", "node-label")
        return (
            *(raw / f"{name}.csv.gz" for name in names),
            *(split / f"{part}.csv.gz" for part in ("train", "valid", "test")),
        )

    def fetch(self, root: Path) -> None:
        from torch_geometric.data import download_url, extract_zip

        archive = download_url(f"http://snap.stanford.edu/ogb/data/nodeproppred/{self.archive}.zip", str(root))
        extract_zip(archive, str(root))
        os.unlink(archive)
        os.replace(root / self.archive, root / self.folder)

    def read(self, root: Path) -> Data:
        """Read the CSV files as OGB does, which adds the reverse edges of some data sets.

        OGB itself is not called: it asks questions on the terminal, looks for updates on the network when it
        is imported, and its cache does not load with the safe `torch.load` of PyTorch 2.6.
        """
        read_csv = _import_pandas().read_csv

        def table(file: Path, dtype: str) -> Tensor:
            frame = read_csv(root / file, header=None, dtype=dtype)
            return torch.from_numpy(np.array(frame.values, order="C"))

        edge, features, labels, *parts = self.raw_files()
        x, y = table(features, "float32"), table(labels, "float64").nan_to_num(-1.0).long().squeeze(1)
        edge_index = table(edge, "int64").t().contiguous()
        if self.add_inverse:
            edge_index = torch.stack([edge_index, edge_index.flip(0)], dim=2).reshape(2, -1)
        data = Data(x=x, edge_index=edge_index, y=y)
        for mask, part in zip(_SPLITS, parts, strict=True):
            data[mask] = torch.zeros(x.size(0), dtype=torch.bool)
            data[mask][table(part, "int64").squeeze(1)] = True
        return data


_Files = _Pyg | _Ogb


def dataset_names() -> tuple[str, ...]:
    """Return the names of all data sets, those that need no files first."""
    return tuple(_registry())


def dataset_info(name: str) -> DatasetInfo:
    """Return the description of one data set; an unknown name is an `UnknownNameError`."""
    return _entry(name).info


def load_data(
    name: str,
    *,
    data_root: str | Path | None = None,
    download: bool = False,
    seed: int = 0,
    cache_dir: str | Path | None = None,
    **options: object,
) -> Data:
    """Load a data set as one graph with fixed training, validation and test masks.

    Args:
        name: one of `dataset_names()`.
        data_root: folder with the raw files, for example `Photo/raw/amazon_electronics_photo.npz`; it is
            never written to. Default: the environment variable `LMC_VERIFY_DATA_ROOT`, else the downloads in
            the cache.
        download: allow the network when raw files are missing; they go to the cache, not to `data_root`.
        seed: seed of the generated graph and of the random split, where the data set has one.
        cache_dir: folder for processed data and downloads. Default: the environment variable
            `LMC_VERIFY_CACHE`, else the cache folder of the user.
        options: options of the data set, see `DatasetInfo.options`.

    Returns:
        A `Data` with `x` (float32, nodes by features), `edge_index` (int64), `y` (int64 classes, or float32
        nodes by labels for a multi-label task), the boolean `train_mask`, `val_mask` and `test_mask`, and,
        for `directed`, `edge_weight` (float32). The same arguments give bitwise the same tensors.

    Raises:
        UnknownNameError: no data set has this name.
        InvalidInputError: an unknown or bad option, or raw files that are missing or damaged.
        InfrastructureError: a download failed.
        OutputError: the cache cannot be written.
    """
    entry = _entry(name)
    checked = check_options(name, entry.options, options)
    try:
        seed = operator.index(seed)
    except TypeError:
        raise InvalidInputError(f"the seed must be an integer, got {seed!r}") from None
    if seed < 0:
        raise InvalidInputError(f"the seed must be at least 0, got {seed}")
    root = data_root if data_root is not None else os.environ.get(_ROOT_VARIABLE) or None
    cache = cache_dir if cache_dir is not None else os.environ.get(_CACHE_VARIABLE) or None
    request = _Request(
        name=name,
        data_root=None if root is None else Path(root).expanduser(),
        cache=Path(platformdirs.user_cache_dir("lmc-verify") if cache is None else cache).expanduser(),
        download=bool(download),
        seed=seed,
        options=checked,
    )
    return _finish(entry.load(request), entry.info, request)


def load_graph(
    name: str,
    *,
    data_root: str | Path | None = None,
    download: bool = False,
    seed: int = 0,
    cache_dir: str | Path | None = None,
    **options: object,
) -> Graph:
    """Load a data set as a `Graph` named after it; arguments and errors as for `load_data`."""
    data = load_data(name, data_root=data_root, download=download, seed=seed, cache_dir=cache_dir, **options)
    return Graph.from_pyg(data, name=name)


# Embedded and generated data sets ---------------------------------------------------------------------------


def _load_digits(request: _Request) -> Data:
    pixels, labels = _import("sklearn.datasets").load_digits(return_X_y=True)
    count, neighbors = len(pixels), request.options["neighbors"]
    # Pixels are integers in 0..16, so the squared distances are exact; equal ones are ordered by node number,
    # which makes the graph independent of the BLAS, of its threads and of the sorting algorithm.
    norms = (pixels**2).sum(axis=1)
    squared = (norms[:, None] + norms[None, :] - 2.0 * (pixels @ pixels.T)).astype(np.int64)
    rank = squared * count + np.arange(count)
    np.fill_diagonal(rank, np.iinfo(np.int64).max)
    nearest = np.argpartition(rank, neighbors - 1, axis=1)[:, :neighbors]
    adjacent = np.zeros((count, count), dtype=bool)
    np.put_along_axis(adjacent, nearest, True, axis=1)
    edge_index = np.stack(np.nonzero(adjacent | adjacent.T))
    return Data(
        x=torch.from_numpy((pixels / 16.0).astype(np.float32)),
        edge_index=torch.from_numpy(edge_index),
        y=torch.from_numpy(labels.astype(np.int64)),
    )


def _load_karate(request: _Request) -> Data:
    with _silent():
        return _import("torch_geometric.datasets").KarateClub()[0]


def _load_generated(request: _Request) -> Data:
    graph = GENERATORS[request.name].function(make_rng(request.seed, 0), **request.options)
    data = Data(
        x=torch.from_numpy(graph.x),
        edge_index=torch.from_numpy(graph.edge_index),
        y=torch.from_numpy(graph.y),
    )
    if graph.edge_weight is not None:
        data.edge_weight = torch.from_numpy(graph.edge_weight)
    return data


# Data sets with raw files -----------------------------------------------------------------------------------


def _load_files(files: _Files, request: _Request) -> Data:
    if isinstance(files, _Ogb):
        _import_pandas()  # before a long download
    root = _find_root(files, request)
    try:
        with _silent():
            data = files.read(root) if isinstance(files, _Ogb) else _read_through_cache(files, root, request)
    except (InvalidInputError, OutputError, MemoryError):
        raise
    except Exception as error:
        raise InvalidInputError(
            f"data set {request.name!r} could not be read from the raw files in {root}: "
            f"{type(error).__name__}: {error}; check or replace the files (cache: {request.cache})"
        ) from error
    if request.options.get("undirected"):
        from torch_geometric.utils import to_undirected

        data.edge_index = to_undirected(data.edge_index, num_nodes=data.x.size(0))
    return data


def _find_root(files: _Files, request: _Request) -> Path:
    """Return the folder that holds the raw files: the data root, else a download."""
    expected = files.raw_files()
    downloads = request.cache / "downloads" / request.name
    root = request.data_root if request.data_root is not None else downloads
    candidates = [root, downloads] if request.download else [root]
    for candidate in candidates:
        if not _missing(candidate, expected):
            return candidate.resolve()
    if request.download:
        _download(files, downloads, expected, request)
        return downloads.resolve()
    missing = _missing(root, expected)
    where = f"looked in {root}" if root.is_dir() else f"looked in {root}, which does not exist"
    raise InvalidInputError(
        f"data set {request.name!r}: {len(missing)} of {len(expected)} raw files are missing "
        f"({where}): {', '.join(path.as_posix() for path in missing)}. "
        f"Put them into a folder DIR under these names and pass --data-root DIR (data_root=, or the "
        f"environment variable {_ROOT_VARIABLE}), or pass --download (download=True) to fetch them."
    )


def _missing(root: Path, expected: tuple[Path, ...]) -> list[Path]:
    return [path for path in expected if not (root / path).is_file()]


def _download(files: _Files, target: Path, expected: tuple[Path, ...], request: _Request) -> None:
    with _scratch(target.parent) as scratch:
        entry = scratch / "entry"
        entry.mkdir()
        timeout = socket.getdefaulttimeout()
        socket.setdefaulttimeout(_DOWNLOAD_TIMEOUT)
        try:
            with _silent():
                files.fetch(entry)
        except Exception as error:
            raise InfrastructureError(
                f"the download of data set {request.name!r} failed: {type(error).__name__}: {error}; "
                f"try again, or put {', '.join(path.as_posix() for path in expected)} into a folder DIR "
                f"and pass --data-root DIR"
            ) from error
        finally:
            socket.setdefaulttimeout(timeout)
        if missing := _missing(entry, expected):
            raise InfrastructureError(
                f"the download of data set {request.name!r} lacks {', '.join(p.as_posix() for p in missing)}"
            )
        _publish(entry, target)


def _read_through_cache(files: _Pyg, root: Path, request: _Request) -> Data:
    """Read from the cache entry of exactly these raw files, which is made when there is none."""
    expected = files.raw_files()
    digest = hashlib.blake2b(f"{root}\n{torch_geometric.__version__}".encode(), digest_size=8)
    for path in expected:
        status = (root / path).stat()
        digest.update(f"\n{path.as_posix()} {status.st_size} {status.st_mtime_ns}".encode())
    target = request.cache / "processed" / f"{request.name}-{digest.hexdigest()}"
    if target.is_dir():
        return files.read(target)
    with _scratch(target.parent) as scratch:
        entry = scratch / "entry"
        raw = expected[0].parent
        (entry / raw).parent.mkdir(parents=True)
        try:
            (entry / raw).symlink_to(root / raw, target_is_directory=True)
        except OSError:  # Windows without the right to make links
            (entry / raw).mkdir()
            for path in expected:
                shutil.copyfile(root / path, entry / path)
        data = files.read(entry)
        _publish(entry, target)
    return data


@contextlib.contextmanager
def _scratch(parent: Path) -> Iterator[Path]:
    """Make a temporary folder next to its later place, on the same file system."""
    try:
        parent.mkdir(parents=True, exist_ok=True)
        scratch = tempfile.TemporaryDirectory(dir=parent, prefix=".partial-", ignore_cleanup_errors=True)
    except OSError as error:
        raise OutputError(
            f"the cache folder {parent} cannot be written ({error}): set the environment variable "
            f"{_CACHE_VARIABLE} (or cache_dir) to a folder that can"
        ) from error
    with scratch as path:
        yield Path(path)


def _publish(entry: Path, target: Path) -> None:
    """Rename a finished entry into place, unless another process was faster."""
    try:
        os.replace(entry, target)
    except OSError:
        if not target.is_dir():
            raise


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Keep the progress lines and warnings of the libraries off the terminal.

    The redirections change global state, so that threads take turns.
    """
    with (
        _SILENCE,
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield


def _import(module: str) -> Any:
    """Import a module on first use without advancing the global random state.

    Importing rich, which scikit-learn does, draws a number from `random`.
    """
    if module in sys.modules:
        return importlib.import_module(module)
    state = random.getstate()
    try:
        return importlib.import_module(module)
    finally:
        random.setstate(state)


def _refuse_download(dataset: Any) -> None:
    raise FileNotFoundError(f"raw files disappeared from {dataset.raw_dir}")


def _import_pandas() -> Any:
    try:
        return _import("pandas")
    except ImportError:
        raise InvalidInputError(
            "the OGB data sets need the extra lmc-verify[ogb], which is not installed: "
            "run pip install 'lmc-verify[ogb]'"
        ) from None


def _merge(parts: Mapping[str, list[Data]]) -> Data:
    """Merge graphs into one block-diagonal graph; each part of the split is one mask."""
    graphs = [graph for part in parts.values() for graph in part]
    sizes = [graph.x.size(0) for graph in graphs]
    offsets = np.cumsum([0, *sizes[:-1]]).tolist()
    data = Data(
        x=torch.cat([graph.x for graph in graphs]),
        edge_index=torch.cat([g.edge_index + start for g, start in zip(graphs, offsets, strict=True)], dim=1),
        y=torch.cat([graph.y for graph in graphs]),
    )
    counts = torch.tensor([sum(graph.x.size(0) for graph in part) for part in parts.values()])
    part_of = torch.repeat_interleave(torch.arange(len(parts)), counts)
    for index, mask in enumerate(_SPLITS):
        data[mask] = part_of == index
    return data


# The common last step ---------------------------------------------------------------------------------------


def _finish(data: Data, info: DatasetInfo, request: _Request) -> Data:
    """Return a new `Data` with the documented attributes, types and masks."""
    num_nodes = data.x.size(0)
    y = data.y.to(torch.float32) if info.task == "multi-label" else data.y.to(torch.int64)
    finished = Data(
        x=data.x.to(torch.float32).contiguous(),
        edge_index=data.edge_index.to(torch.int64).contiguous(),
        y=y.contiguous(),
    )
    if "edge_weight" in data:
        finished.edge_weight = data.edge_weight.to(torch.float32).contiguous()
    for mask, value in zip(_SPLITS, _masks(data, num_nodes, request), strict=True):
        finished[mask] = value
    _check(finished, info)
    return finished


def _masks(data: Data, num_nodes: int, request: _Request) -> tuple[Tensor, ...]:
    """Return the masks of the data set; nodes that no mask claims are split at random."""
    if all(mask in data for mask in _SPLITS):
        masks = [data[mask].to(torch.bool) for mask in _SPLITS]
        return tuple(mask[:, request.options["split"]].clone() if mask.dim() == 2 else mask for mask in masks)
    if "train_mask" in data:  # karate: one training node for each class
        train = data.train_mask.to(torch.bool)
        shares = [0.5, 1.0]
    else:
        train = torch.zeros(num_nodes, dtype=torch.bool)
        shares = [0.6, 0.8, 1.0]
    rest = np.flatnonzero(~train.numpy())
    rest = make_rng(request.seed, 1).permutation(rest)
    bounds = [0, *(round(share * rest.size) for share in shares)]
    bounds[1] = max(bounds[1], 1)  # a graph of one node trains on it
    parts = []
    for low, high in itertools.pairwise(bounds):
        mask = torch.zeros(num_nodes, dtype=torch.bool)
        mask[torch.from_numpy(rest[low:high])] = True
        parts.append(mask)
    return tuple(parts) if len(parts) == 3 else (train.clone(), *parts)


def _check(data: Data, info: DatasetInfo) -> None:
    """Check that the parts of a data set fit together (values are the business of the graph checks)."""
    num_nodes = data.x.size(0)
    title = f"data set {info.name!r}"
    if data.x.dim() != 2 or num_nodes == 0:
        raise InvalidInputError(f"{title} has features of shape {tuple(data.x.shape)}, expected nodes by features")
    if data.y.size(0) != num_nodes or data.y.dim() != (2 if info.task == "multi-label" else 1):
        raise InvalidInputError(f"{title} has {num_nodes} nodes and labels of shape {tuple(data.y.shape)}")
    edges = data.edge_index
    if edges.dim() != 2 or edges.size(0) != 2:
        raise InvalidInputError(f"{title} has an edge_index of shape {tuple(edges.shape)}, expected (2, edges)")
    if edges.numel() and not 0 <= int(edges.min()) <= int(edges.max()) < num_nodes:
        raise InvalidInputError(
            f"{title} has edges between nodes {int(edges.min())} and {int(edges.max())}, but {num_nodes} nodes"
        )
    masks = [data[mask] for mask in _SPLITS]
    if any(mask.shape != (num_nodes,) for mask in masks):
        raise InvalidInputError(f"{title} has masks that do not have one value for each of its {num_nodes} nodes")
    if not masks[0].any():
        raise InvalidInputError(f"{title} has no training nodes")
    if int(sum(mask.to(torch.int64) for mask in masks).max()) > 1:
        raise InvalidInputError(f"{title} has nodes in more than one of training, validation and test")


# The registry -----------------------------------------------------------------------------------------------

_PLANETOID = "Yang, Cohen and Salakhutdinov, Revisiting semi-supervised learning with graph embeddings (2016)"
_PITFALLS = "Shchur and others, Pitfalls of graph neural network evaluation (2018)"
_GAUSS = "Bojchevski and Guennemann, Deep Gaussian embedding of graphs (2018)"
_HETEROPHILY = "Platonov and others, A critical look at the evaluation of GNNs under heterophily (2023)"
_SAINT = "Zeng and others, GraphSAINT: graph sampling based inductive learning method (2020)"
_SAGE = "Hamilton, Ying and Leskovec, Inductive representation learning on large graphs (2017)"
_OGB = "Hu and others, Open graph benchmark: datasets for machine learning on graphs (2020)"

_TEN_SPLITS = {"split": Option(0, 0, 9)}
_UNDIRECTED = {"undirected": Option(False)}


def _planetoid(name: str) -> _Pyg:
    return _Pyg("Planetoid", {"name": name, "split": "public"})


def _named(class_name: str, name: str) -> _Pyg:
    return _Pyg(class_name, {"name": name})


def _heterophilous(name: str) -> _Pyg:
    return _Pyg("HeterophilousGraphDataset", {"name": name})


#: name, files, description, source, nodes, edges
_FILE_DATASETS: tuple[tuple[str, _Files, str, str, int | None, int | None], ...] = (
    ("cora", _planetoid("Cora"), "citations, public split", _PLANETOID, 2708, 10556),
    ("citeseer", _planetoid("CiteSeer"), "citations, public split", _PLANETOID, 3327, 9104),
    ("pubmed", _planetoid("PubMed"), "citations, public split", _PLANETOID, 19717, 88648),
    ("photo", _named("Amazon", "photo"), "products bought together", _PITFALLS, 7650, 238162),
    ("computers", _named("Amazon", "computers"), "products bought together", _PITFALLS, 13752, 491722),
    ("cs", _named("Coauthor", "CS"), "authors of common papers", _PITFALLS, 18333, 163788),
    ("physics", _named("Coauthor", "Physics"), "authors of common papers", _PITFALLS, 34493, 495924),
    ("cora-ml", _named("CitationFull", "cora_ml"), "citations, made undirected", _GAUSS, 2995, 16316),
    ("dblp", _named("CitationFull", "dblp"), "citations, made undirected", _GAUSS, 17716, 105734),
    ("cora-full", _named("CitationFull", "cora"), "citations, made undirected", _GAUSS, 19793, 126842),
    ("tolokers", _heterophilous("tolokers"), "crowd workers on common tasks", _HETEROPHILY, 11758, 1038000),
    ("minesweeper", _heterophilous("minesweeper"), "synthetic grid of cells", _HETEROPHILY, 10000, 78804),
    ("roman-empire", _heterophilous("roman_empire"), "words of one article", _HETEROPHILY, 22662, 65854),
    ("amazon-ratings", _heterophilous("amazon_ratings"), "products by rating", _HETEROPHILY, 24492, 186100),
    ("questions", _heterophilous("questions"), "users of a question site", _HETEROPHILY, 48921, 307080),
    ("flickr", _Pyg("Flickr", subfolder="Flickr"), "images with common properties", _SAINT, 89250, 899756),
    ("reddit2", _Pyg("Reddit2", subfolder="Reddit2"), "posts, sparsified", _SAINT, 232965, 23213838),
    ("yelp", _Pyg("Yelp", subfolder="Yelp"), "reviewers and their friends", _SAINT, 716847, 13954819),
    (
        "ppi",
        _Pyg("PPI", subfolder="PPI", parts=("train", "val", "test")),
        "24 protein interaction graphs as one block-diagonal graph, split by graph",
        _SAGE,
        None,
        None,
    ),
    (
        "ogbn-arxiv",
        _Ogb("ogbn_arxiv", "arxiv", "time", add_inverse=False),
        "directed citations, split by year; 'undirected' adds the reverse edges",
        _OGB,
        169343,
        1166243,
    ),
    (
        "ogbn-products",
        _Ogb("ogbn_products", "products", "sales_ranking", add_inverse=True),
        "products bought together, split by sales rank",
        _OGB,
        2449029,
        123718280,
    ),
)


def _make(
    load: Callable[[_Request], Data],
    options: Mapping[str, Option],
    name: str,
    family: Family,
    description: str,
    source: str,
    counts: tuple[int | None, int | None] = (None, None),
    task: Task = "single-label",
) -> _Entry:
    defaults = tuple((key, option.default) for key, option in options.items())
    info = DatasetInfo(name, family, description, task, source, family in ("pyg", "ogb"), *counts, defaults)
    return _Entry(info, options, load)


@functools.cache
def _registry() -> dict[str, _Entry]:
    """Return all data sets by name, those that need no files first."""
    digits = "handwritten digits, each joined to its nearest neighbours (edges for the default 'neighbors')"
    optical = "UCI optical recognition of handwritten digits, as in scikit-learn"
    zachary = "Zachary, An information flow model for conflict and fission in small groups (1977)"
    neighbors = {"neighbors": Option(10, 1, 1796)}
    entries = [
        _make(_load_digits, neighbors, "digits", "embedded", digits, optical, (1797, 24678)),
        _make(_load_karate, {}, "karate", "embedded", "Zachary's karate club", zachary, (34, 156)),
    ]
    for name, made in GENERATORS.items():
        entries.append(
            _make(
                _load_generated,
                made.options,
                name,
                "generated",
                made.description,
                made.source,
                task=made.task,
            )
        )
    for name, files, description, source, nodes, edges in _FILE_DATASETS:
        entries.append(
            _make(
                functools.partial(_load_files, files),
                _TEN_SPLITS if source == _HETEROPHILY else _UNDIRECTED if name == "ogbn-arxiv" else {},
                name,
                "ogb" if isinstance(files, _Ogb) else "pyg",
                description,
                source,
                (nodes, edges),
                task="multi-label" if name in ("ppi", "yelp") else "single-label",
            )
        )
    return {entry.info.name: entry for entry in entries}


def _entry(name: str) -> _Entry:
    registry = _registry()
    if name not in registry:
        raise UnknownNameError("data set", name, registry)
    return registry[name]
