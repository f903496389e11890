"""Node-classification data sets by name, as one `torch_geometric.data.Data` each.

Four families: *embedded* (part of scikit-learn or PyTorch Geometric), *generated* (`lmc_verify.generated`),
*pyg* (raw files in the layout of PyTorch Geometric) and *ogb* (raw files in the layout of OGB).

The raw files of the last two are found, downloaded, cached and read by `lmc_verify.rawfiles`; the folder
`data_root` is only read, and the network is used when `download=True` and never otherwise.

Data sets without masks get a seeded random split into 60 % training, 20 % validation and 20 % test nodes. No
function here reads or writes a global random state.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import math
import operator
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import platformdirs
import torch
from torch import Tensor
from torch_geometric.data import Data

from lmc_verify.errors import InvalidInputError, UnknownNameError
from lmc_verify.generated import GENERATORS, Option, Task, check_options, make_rng
from lmc_verify.graph import Graph
from lmc_verify.plugins import Plugin, Registry
from lmc_verify.rawfiles import (
    CACHE_VARIABLE,
    ROOT_VARIABLE,
    SPLITS,
    OgbFiles,
    Place,
    PygFiles,
    RawFiles,
    import_quietly,
    read_raw,
    silent,
)

__all__ = ["DatasetInfo", "dataset_info", "dataset_names", "dataset_registry", "load_data", "load_graph"]

Family = Literal["embedded", "generated", "pyg", "ogb", "plug-in"]


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

    place: Place
    seed: int
    options: Mapping[str, Any]


def dataset_names() -> tuple[str, ...]:
    """Return the names of all data sets, those that need no files first."""
    return tuple(dataset_registry())


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
    root = data_root if data_root is not None else os.environ.get(ROOT_VARIABLE) or None
    cache = cache_dir if cache_dir is not None else os.environ.get(CACHE_VARIABLE) or None
    request = _Request(
        place=Place(
            name=name,
            data_root=None if root is None else Path(root).expanduser(),
            cache=Path(platformdirs.user_cache_dir("lmc-verify") if cache is None else cache).expanduser(),
            download=bool(download),
        ),
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


# How each family is loaded ------------------------------------------------------------------------------------


def _load_digits(request: _Request) -> Data:
    pixels, labels = import_quietly("sklearn.datasets").load_digits(return_X_y=True)
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
    with silent():
        return import_quietly("torch_geometric.datasets").KarateClub()[0]


def _load_generated(request: _Request) -> Data:
    graph = GENERATORS[request.place.name].function(make_rng(request.seed, 0), **request.options)
    data = Data(
        x=torch.from_numpy(graph.x),
        edge_index=torch.from_numpy(graph.edge_index),
        y=torch.from_numpy(graph.y),
    )
    if graph.edge_weight is not None:
        data.edge_weight = torch.from_numpy(graph.edge_weight)
    return data


def _load_files(files: RawFiles, request: _Request) -> Data:
    data = read_raw(files, request.place)
    if request.options.get("undirected"):
        from torch_geometric.utils import to_undirected

        data.edge_index = to_undirected(data.edge_index, num_nodes=data.x.size(0))
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
    for mask, value in zip(SPLITS, _masks(data, num_nodes, request), strict=True):
        finished[mask] = value
    _check(finished, info)
    return finished


def _masks(data: Data, num_nodes: int, request: _Request) -> tuple[Tensor, ...]:
    """Return the masks of the data set; nodes that no mask claims are split at random."""
    if all(mask in data for mask in SPLITS):
        masks = [data[mask].to(torch.bool) for mask in SPLITS]
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
    masks = [data[mask] for mask in SPLITS]
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


def _planetoid(name: str) -> PygFiles:
    return PygFiles("Planetoid", {"name": name, "split": "public"})


def _named(class_name: str, name: str) -> PygFiles:
    return PygFiles(class_name, {"name": name})


def _heterophilous(name: str) -> PygFiles:
    return PygFiles("HeterophilousGraphDataset", {"name": name})


#: name, files, description, source, nodes, edges
_FILE_DATASETS: tuple[tuple[str, RawFiles, str, str, int | None, int | None], ...] = (
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
    ("flickr", PygFiles("Flickr", subfolder="Flickr"), "images with common properties", _SAINT, 89250, 899756),
    ("reddit2", PygFiles("Reddit2", subfolder="Reddit2"), "posts, sparsified", _SAINT, 232965, 23213838),
    ("yelp", PygFiles("Yelp", subfolder="Yelp"), "reviewers and their friends", _SAINT, 716847, 13954819),
    (
        "ppi",
        PygFiles("PPI", subfolder="PPI", parts=("train", "val", "test")),
        "24 protein interaction graphs as one block-diagonal graph, split by graph",
        _SAGE,
        None,
        None,
    ),
    (
        "ogbn-arxiv",
        OgbFiles("ogbn_arxiv", "arxiv", "time", add_inverse=False),
        "directed citations, split by year; 'undirected' adds the reverse edges",
        _OGB,
        169343,
        1166243,
    ),
    (
        "ogbn-products",
        OgbFiles("ogbn_products", "products", "sales_ranking", add_inverse=True),
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


def _own_entries() -> list[_Entry]:
    """Return the package's data sets, those that need no files first."""
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
            _make(_load_generated, made.options, name, "generated", made.description, made.source, task=made.task)
        )
    for name, files, description, source, nodes, edges in _FILE_DATASETS:
        entries.append(
            _make(
                functools.partial(_load_files, files),
                _TEN_SPLITS if source == _HETEROPHILY else _UNDIRECTED if name == "ogbn-arxiv" else {},
                name,
                "ogb" if isinstance(files, OgbFiles) else "pyg",
                description,
                source,
                (nodes, edges),
                task="multi-label" if name in ("ppi", "yelp") else "single-label",
            )
        )
    return entries


def _from_plugin(plugin: Plugin, load: Any) -> _Entry:
    """Return the entry of a plug-in's function ``load(*, seed, **options) -> Data``.

    The options and their defaults are those of the function's signature; the first line of its docstring describes it.
    """
    if not callable(load):
        raise TypeError(f"it is a {type(load).__name__}, a function load(*, seed, **options) -> Data is needed")
    parameters = dict(inspect.signature(load).parameters)
    seeded = parameters.pop("seed", None) is not None
    for name, parameter in parameters.items():
        if not isinstance(parameter.default, (int, float)):
            raise TypeError(f"its option {name!r} needs a default that is a number, true or false")
    options = {name: Option(parameter.default, -math.inf) for name, parameter in parameters.items()}
    description = (load.__doc__ or "").strip().partition("\n")[0].rstrip(".")
    task: Task = getattr(load, "task", "single-label")

    def run(request: _Request) -> Data:
        seed = {"seed": request.seed} if seeded else {}
        data = load(**seed, **request.options)
        if not isinstance(data, Data):
            raise InvalidInputError(
                f"data set {plugin.name!r} ({plugin}) gave a {type(data).__name__}, it must give a "
                "torch_geometric.data.Data"
            )
        return data

    return _make(run, options, plugin.name, "plug-in", description, plugin.distribution, task=task)


@functools.cache
def dataset_registry() -> Registry[_Entry]:
    """Return all data sets by name."""
    own = ((entry.info.name, entry) for entry in _own_entries())
    return Registry("data set", "lmc_verify.datasets", own, _from_plugin)


def _entry(name: str) -> _Entry:
    registry = dataset_registry()
    if name not in registry:
        raise UnknownNameError("data set", name, registry)
    return registry[name]
