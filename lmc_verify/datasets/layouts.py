"""Raw files in the layouts of PyTorch Geometric and OGB: which files a data set needs, and how they are read.

The libraries that read them are imported on first use, quietly and without touching a global random state.
"""

from __future__ import annotations

import contextlib
import io
import os
import threading
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lmc_verify.datasets.checked import check_archive, checked_download, checked_pickles
from lmc_verify.datasets.tables import Tables
from lmc_verify.imports.optional import optional
from lmc_verify.imports.quiet import import_quietly

if TYPE_CHECKING:
    from torch import Tensor
    from torch_geometric.data import Data

__all__ = ["SPLITS", "OgbFiles", "PygFiles", "RawFiles", "import_pandas", "silent"]

SPLITS = ("train_mask", "val_mask", "test_mask")

_SILENCE = threading.RLock()


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
        with checked_download():
            blank.download()

    def read(self, root: Path) -> Data | Tables:
        """Load the data set below `root`, where every raw file is in place; a download would be a defect."""
        cls = self.dataset_class()
        offline = type(cls.__name__, (cls,), {"download": _refuse_download})
        folder = str(root / self.subfolder)
        for file in self.raw_files():
            if file.suffix == ".npz":
                check_archive(root / file)
        with checked_pickles():
            if not self.parts:
                only: Data = offline(folder, **self.kwargs)[0]
                return only
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

        with checked_download():
            archive = download_url(f"https://snap.stanford.edu/ogb/data/nodeproppred/{self.archive}.zip", str(root))
        extract_zip(archive, str(root))
        os.unlink(archive)
        os.replace(root / self.archive, root / self.folder)

    def read(self, root: Path) -> Tables:
        """Read the CSV files as OGB does, which adds the reverse edges of some data sets.

        OGB itself is not called: it asks questions on the terminal, looks for updates on the network when it
        is imported, and its cache does not load with the safe `torch.load` of PyTorch 2.6.
        """
        import torch

        read_csv = import_pandas().read_csv

        def table(file: Path, dtype: str) -> Tensor:
            frame = read_csv(root / file, header=None, dtype=dtype)
            return torch.from_numpy(np.array(frame.values, order="C"))

        edge, features, labels, *parts = self.raw_files()
        x, y = table(features, "float32"), table(labels, "float64").nan_to_num(-1.0).long().squeeze(1)
        edge_index = table(edge, "int64").t().contiguous()
        if self.add_inverse:
            edge_index = torch.stack([edge_index, edge_index.flip(0)], dim=2).reshape(2, -1)
        data = Tables(x=x, edge_index=edge_index, y=y)
        for name, part in zip(SPLITS, parts, strict=True):
            mask = torch.zeros(x.size(0), dtype=torch.bool)
            mask[table(part, "int64").squeeze(1)] = True
            setattr(data, name, mask)
        return data


RawFiles = PygFiles | OgbFiles


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


def import_pandas() -> Any:
    """Import pandas, which reads the raw files of OGB.

    Raises:
        InvalidInputError: it is not installed.
    """
    return optional("pandas", "an OGB data set", "ogb")


def _refuse_download(dataset: Any) -> None:
    raise FileNotFoundError(f"raw files disappeared from {dataset.raw_dir}")


def _merge(parts: Mapping[str, list[Data]]) -> Tables:
    """Merge graphs into one block-diagonal graph; each part of the split is one mask."""
    import torch

    graphs = [graph for part in parts.values() for graph in part]
    sizes = [graph.x.size(0) for graph in graphs]
    offsets = np.cumsum([0, *sizes[:-1]]).tolist()
    data = Tables(
        x=torch.cat([graph.x for graph in graphs]),
        edge_index=torch.cat([g.edge_index + start for g, start in zip(graphs, offsets, strict=True)], dim=1),
        y=torch.cat([graph.y for graph in graphs]),
    )
    counts = torch.tensor([sum(graph.x.size(0) for graph in part) for part in parts.values()])
    part_of = torch.repeat_interleave(torch.arange(len(parts)), counts)
    for index, mask in enumerate(SPLITS):
        setattr(data, mask, part_of == index)
    return data
