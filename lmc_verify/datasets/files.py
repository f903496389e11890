"""Raw files of published data sets: where they are, downloads, and a cache of what was read from them.

Which files a data set has and how they are read is in `lmc_verify.datasets.layouts`. The folder of raw files is only
read. PyTorch Geometric writes what it processed next to the raw files, so it is given a cache folder where `raw` is a
link to the real one. A cache entry is built in a temporary folder and renamed into place: processes that load the same
data set at once repeat some work and never see a half-written entry.

The network is used when `Place.download` is set and never otherwise. What is downloaded comes over https and is
compared with pinned hashes; raw files are looked at before they are read, see `lmc_verify.datasets.checked`.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lmc_verify.datasets.checked import wrong_pins
from lmc_verify.datasets.layouts import OgbFiles, PygFiles, RawFiles, import_pandas, silent
from lmc_verify.errors import InfrastructureError, InvalidInputError, OutputError
from lmc_verify.provenance import version_of

if TYPE_CHECKING:
    from torch_geometric.data import Data

    from lmc_verify.datasets.tables import Tables

__all__ = ["CACHE_VARIABLE", "ROOT_VARIABLE", "Place", "read_raw"]

CACHE_VARIABLE = "LMC_VERIFY_CACHE"

ROOT_VARIABLE = "LMC_VERIFY_DATA_ROOT"

_DOWNLOAD_TIMEOUT = 60.0  # seconds without a byte


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


def read_raw(files: RawFiles, place: Place) -> Data | Tables:
    """Read a data set from its raw files, which are downloaded first where that is allowed and needed.

    Raises:
        InvalidInputError: raw files are missing or damaged, or the OGB extra is not installed.
        InfrastructureError: a download failed.
        OutputError: the cache cannot be written.
    """
    if isinstance(files, OgbFiles):
        import_pandas()  # before a long download
    root = _find_root(files, place)
    try:
        with silent():
            data = files.read(root) if isinstance(files, OgbFiles) else _read_through_cache(files, root, place)
    except (OutputError, MemoryError):
        raise
    except Exception as error:
        kind = "" if isinstance(error, InvalidInputError) else f"{type(error).__name__}: "
        raise InvalidInputError(
            f"data set {place.name!r} could not be read from the raw files in {root}: "
            f"{kind}{error}; check or replace the files (cache: {place.cache})"
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
        if wrong := wrong_pins(entry, expected):
            raise InfrastructureError(
                f"the download of data set {place.name!r} is not what was expected and was not kept: "
                f"{'; '.join(wrong)}; try again; if the publisher has changed the file, look at it, and pass it with "
                "--data-root DIR"
            )
        _publish(entry, target)


def _read_through_cache(files: PygFiles, root: Path, place: Place) -> Data | Tables:
    """Read from the cache entry of exactly these raw files, which is made when there is none."""
    expected = files.raw_files()
    digest = hashlib.blake2b(f"{root}\n{version_of('torch_geometric')}".encode(), digest_size=8)
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
