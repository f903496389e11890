"""Raw files of published data sets -> `torch_geometric.data.Data`: where they are, downloads, cache, readers.

A private helper of `lmc_verify.datasets`, which names the data sets. The folder of raw files is only read. PyTorch
Geometric writes what it processed next to the raw files, so it is given a cache folder where `raw` is a link to the
real one. A cache entry is built in a temporary folder and renamed into place: processes that load the same data set
at once repeat some work and never see a half-written entry.

The network is used when `Place.download` is set and never otherwise. Raw files are trusted input: those of Cora,
CiteSeer and PubMed are pickles, and PyTorch Geometric downloads without checking certificates.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import io
import os
import random
import shutil
import socket
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch_geometric
from torch import Tensor
from torch_geometric.data import Data

from lmc_verify.errors import InfrastructureError, InvalidInputError, OutputError

__all__ = [
    "CACHE_VARIABLE",
    "ROOT_VARIABLE",
    "SPLITS",
    "OgbFiles",
    "Place",
    "PygFiles",
    "RawFiles",
    "import_quietly",
    "read_raw",
    "silent",
]

CACHE_VARIABLE = "LMC_VERIFY_CACHE"
ROOT_VARIABLE = "LMC_VERIFY_DATA_ROOT"
SPLITS = ("train_mask", "val_mask", "test_mask")

_DOWNLOAD_TIMEOUT = 60.0  # seconds without a byte
_SILENCE = threading.RLock()


@dataclass(frozen=True)
class Place:
    """Where the raw files of one data set may be, and whether they may be downloaded.

    Attributes:
        name: name of the data set, for messages and for folders in the cache.
        data_root: the user's folder of raw files, only read; None for the downloads in the cache.
        cache: folder for downloads and processed data.
        download: whether the network may be used.
    """

    name: str
    data_root: Path | None
    cache: Path
    download: bool


@dataclass(frozen=True)
class PygFiles:
    """A data set class of PyTorch Geometric and how to call it.

    The values of `kwargs` are spelled as the class stores them, which `blank` relies on. Classes that put
    `raw` directly into their root get a `subfolder` of their own.
    """

    class_name: str
    kwargs: Mapping[str, str] = field(default_factory=dict)
    subfolder: str = ""
    parts: tuple[str, ...] = ()  # a class that is called once for each part of the split (PPI)

    def dataset_class(self) -> Any:
        """Return the class."""
        return getattr(import_quietly("torch_geometric.datasets"), self.class_name)

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
        """Download the raw files into `root`."""
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
class OgbFiles:
    """A homogeneous node data set of OGB: its folder, archive, split and whether edges come once or twice."""

    folder: str
    archive: str
    split: str
    add_inverse: bool

    def raw_files(self) -> tuple[Path, ...]:
        """Return the expected raw files relative to the data root."""
        raw, split = Path(self.folder, "raw"), Path(self.folder, "split", self.split)
        names = ("edge", "node-feat", "node-label")
        return (
            *(raw / f"{name}.csv.gz" for name in names),
            *(split / f"{part}.csv.gz" for part in ("train", "valid", "test")),
        )

    def fetch(self, root: Path) -> None:
        """Download and unpack the archive into `root`."""
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
        for mask, part in zip(SPLITS, parts, strict=True):
            data[mask] = torch.zeros(x.size(0), dtype=torch.bool)
            data[mask][table(part, "int64").squeeze(1)] = True
        return data


RawFiles = PygFiles | OgbFiles


def read_raw(files: RawFiles, place: Place) -> Data:
    """Read a data set from its raw files, which are downloaded first where that is allowed and needed.

    Raises:
        InvalidInputError: raw files are missing or damaged, or the OGB extra is not installed.
        InfrastructureError: a download failed.
        OutputError: the cache cannot be written.
    """
    if isinstance(files, OgbFiles):
        _import_pandas()  # before a long download
    root = _find_root(files, place)
    try:
        with silent():
            data = files.read(root) if isinstance(files, OgbFiles) else _read_through_cache(files, root, place)
    except (InvalidInputError, OutputError, MemoryError):
        raise
    except Exception as error:
        raise InvalidInputError(
            f"data set {place.name!r} could not be read from the raw files in {root}: "
            f"{type(error).__name__}: {error}; check or replace the files (cache: {place.cache})"
        ) from error
    return data


def _find_root(files: RawFiles, place: Place) -> Path:
    """Return the folder that holds the raw files: the data root, else a download."""
    expected = files.raw_files()
    downloads = place.cache / "downloads" / place.name
    root = place.data_root if place.data_root is not None else downloads
    candidates = [root, downloads] if place.download else [root]
    for candidate in candidates:
        if not _missing(candidate, expected):
            return candidate.resolve()
    if place.download:
        _download(files, downloads, expected, place)
        return downloads.resolve()
    missing = _missing(root, expected)
    where = f"looked in {root}" if root.is_dir() else f"looked in {root}, which does not exist"
    raise InvalidInputError(
        f"data set {place.name!r}: {len(missing)} of {len(expected)} raw files are missing "
        f"({where}): {', '.join(path.as_posix() for path in missing)}. "
        f"Put them into a folder DIR under these names and pass --data-root DIR (data_root=, or the "
        f"environment variable {ROOT_VARIABLE}), or pass --download (download=True) to fetch them."
    )


def _missing(root: Path, expected: tuple[Path, ...]) -> list[Path]:
    return [path for path in expected if not (root / path).is_file()]


def _download(files: RawFiles, target: Path, expected: tuple[Path, ...], place: Place) -> None:
    with _scratch(target.parent) as scratch:
        entry = scratch / "entry"
        entry.mkdir()
        timeout = socket.getdefaulttimeout()
        socket.setdefaulttimeout(_DOWNLOAD_TIMEOUT)
        try:
            with silent():
                files.fetch(entry)
        except Exception as error:
            raise InfrastructureError(
                f"the download of data set {place.name!r} failed: {type(error).__name__}: {error}; "
                f"try again, or put {', '.join(path.as_posix() for path in expected)} into a folder DIR "
                f"and pass --data-root DIR"
            ) from error
        finally:
            socket.setdefaulttimeout(timeout)
        if missing := _missing(entry, expected):
            raise InfrastructureError(
                f"the download of data set {place.name!r} lacks {', '.join(p.as_posix() for p in missing)}"
            )
        _publish(entry, target)


def _read_through_cache(files: PygFiles, root: Path, place: Place) -> Data:
    """Read from the cache entry of exactly these raw files, which is made when there is none."""
    expected = files.raw_files()
    digest = hashlib.blake2b(f"{root}\n{torch_geometric.__version__}".encode(), digest_size=8)
    for path in expected:
        status = (root / path).stat()
        digest.update(f"\n{path.as_posix()} {status.st_size} {status.st_mtime_ns}".encode())
    target = place.cache / "processed" / f"{place.name}-{digest.hexdigest()}"
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
            f"{CACHE_VARIABLE} (or cache_dir) to a folder that can"
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
def silent() -> Iterator[None]:
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


def import_quietly(module: str) -> Any:
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
        return import_quietly("pandas")
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
    for index, mask in enumerate(SPLITS):
        data[mask] = part_of == index
    return data
