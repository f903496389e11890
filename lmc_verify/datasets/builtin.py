"""The data sets of the package: those that it makes or ships, and those that PyTorch Geometric and OGB read."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lmc_verify.datasets.files import read_raw
from lmc_verify.datasets.generated import GENERATORS, Option, Task, make_rng
from lmc_verify.datasets.info import DatasetInfo, Entry, Family, Request
from lmc_verify.datasets.karate import karate
from lmc_verify.datasets.layouts import OgbFiles, PygFiles, RawFiles
from lmc_verify.datasets.tables import Tables

if TYPE_CHECKING:
    from torch_geometric.data import Data

__all__ = ["make", "own_entries"]


_PLANETOID = "Yang, Cohen and Salakhutdinov, Revisiting semi-supervised learning with graph embeddings (2016)"

_PITFALLS = "Shchur and others, Pitfalls of graph neural network evaluation (2018)"

_GAUSS = "Bojchevski and Guennemann, Deep Gaussian embedding of graphs (2018)"

_HETEROPHILY = "Platonov and others, A critical look at the evaluation of GNNs under heterophily (2023)"

_SAINT = "Zeng and others, GraphSAINT: graph sampling based inductive learning method (2020)"

_SAGE = "Hamilton, Ying and Leskovec, Inductive representation learning on large graphs (2017)"

_OGB = "Hu and others, Open graph benchmark: datasets for machine learning on graphs (2020)"

_DIGITS = Path(__file__).with_name("digits.csv.gz")
"""A row for each image: 64 pixels of 0 to 16, and its digit; source and licence are in digits.LICENSE."""
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


def make(
    load: Callable[[Request], Data | Tables],
    options: Mapping[str, Option],
    name: str,
    family: Family,
    description: str,
    source: str,
    counts: tuple[int | None, int | None] = (None, None),
    task: Task = "single-label",
) -> Entry:
    """Return the entry of a data set; `counts` are nodes and directed edges of the default options."""
    defaults = tuple((key, option.default) for key, option in options.items())
    info = DatasetInfo(name, family, description, task, source, family in ("pyg", "ogb"), *counts, defaults)
    return Entry(info, options, load)


def own_entries() -> list[Entry]:
    """Return the package's data sets, those that need no files first."""
    digits = "handwritten digits, each joined to its nearest neighbours (edges for the default 'neighbors')"
    optical = "UCI, optical recognition of handwritten digits, test part (Alpaydin and Kaynak, 1998), CC BY 4.0"
    zachary = "Zachary, An information flow model for conflict and fission in small groups (1977)"
    neighbors = {"neighbors": Option(10, 1, 1796)}
    entries = [
        make(_load_digits, neighbors, "digits", "embedded", digits, optical, (1797, 24678)),
        make(_load_karate, {}, "karate", "embedded", "Zachary's karate club", zachary, (34, 156)),
    ]
    for name, made in GENERATORS.items():
        entries.append(
            make(_load_generated, made.options, name, "generated", made.description, made.source, task=made.task)
        )
    for name, files, description, source, nodes, edges in _FILE_DATASETS:
        entries.append(
            make(
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


def _load_digits(request: Request) -> Tables:
    import torch

    table = np.loadtxt(_DIGITS, delimiter=",")
    pixels, labels = table[:, :-1], table[:, -1]
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
    return Tables(
        x=torch.from_numpy((pixels / 16.0).astype(np.float32)),
        edge_index=torch.from_numpy(edge_index),
        y=torch.from_numpy(labels.astype(np.int64)),
    )


def _load_karate(request: Request) -> Tables:
    return karate()


def _load_generated(request: Request) -> Tables:
    import torch

    graph = GENERATORS[request.place.name].function(make_rng(request.seed, 0), **request.options)
    return Tables(
        x=torch.from_numpy(graph.x),
        edge_index=torch.from_numpy(graph.edge_index),
        y=torch.from_numpy(graph.y),
        edge_weight=None if graph.edge_weight is None else torch.from_numpy(graph.edge_weight),
    )


def _load_files(files: RawFiles, request: Request) -> Data | Tables:
    data = read_raw(files, request.place)
    if request.options.get("undirected"):
        from torch_geometric.utils import to_undirected

        data.edge_index = to_undirected(data.edge_index, num_nodes=data.x.size(0))
    return data
