"""Node-classification data sets by name, as one `torch_geometric.data.Data` each.

Four families: *embedded* (part of this package), *generated* (`lmc_verify.datasets.generated`), *pyg* (raw files in the
layout of PyTorch Geometric) and *ogb* (raw files in the layout of OGB); plug-ins add others.

The raw files of the last two are found, downloaded and cached by `lmc_verify.datasets.files`; how they are read is in
`lmc_verify.datasets.layouts`. The folder `data_root` is only read, and the network is used when `download=True` and
never otherwise.

Data sets without masks get a seeded random split into 60 % training, 20 % validation and 20 % test nodes. No
function here reads or writes a global random state.
"""

from __future__ import annotations

import functools
import inspect
import math
import operator
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmc_verify.arguments import typed
from lmc_verify.datasets.builtin import make, own_entries
from lmc_verify.datasets.files import CACHE_VARIABLE, ROOT_VARIABLE, Place
from lmc_verify.datasets.generated import Option, Task, check_options
from lmc_verify.datasets.info import DatasetInfo, Entry, Request
from lmc_verify.datasets.layouts import SPLITS
from lmc_verify.datasets.tables import Tables
from lmc_verify.errors import InvalidInputError, UnknownNameError
from lmc_verify.plugins import Plugin, Registry

if TYPE_CHECKING:
    from torch_geometric.data import Data

    from lmc_verify.graphs import Graph

__all__ = ["dataset_info", "dataset_names", "dataset_registry", "load_data", "load_graph"]


def dataset_names() -> tuple[str, ...]:
    """Return the names of all data sets, those that need no files first."""
    return tuple(dataset_registry())


def dataset_info(name: str) -> DatasetInfo:
    """Return the description of one data set; an unknown name is an `UnknownNameError`."""
    return _entry(name).info


@typed(besides=("name",))
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
        where there are some, `edge_weight` (`directed` has it) and `edge_attr` (float32). The same arguments give
        bitwise the same tensors.

    Raises:
        UnknownNameError: no data set has this name.
        InvalidInputError: an unknown or bad option, or raw files that are missing or damaged.
        InfrastructureError: a download failed.
        OutputError: the cache cannot be written.
    """
    return _loaded(name, data_root, download, seed, cache_dir, options).to_data()


@typed(besides=("name",))
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
    from lmc_verify.graphs import Graph
    from lmc_verify.graphs.reading import read_tensors

    data = _loaded(name, data_root, download, seed, cache_dir, options)
    # Nobody else has the tensors of a data set of the package; a plug-in may keep its own.
    return Graph(**read_tensors(data), name=name, snapshot=dataset_info(name).family == "plug-in")


def _loaded(
    name: str,
    data_root: str | Path | None,
    download: bool,
    seed: int,
    cache_dir: str | Path | None,
    options: Mapping[str, object],
) -> Tables:
    import platformdirs

    from lmc_verify.datasets.finish import finished

    entry = _entry(name)
    checked = check_options(name, entry.options, options)
    seed = operator.index(seed)
    if seed < 0:
        raise InvalidInputError(f"the seed must be at least 0, got {seed}")
    root = data_root if data_root is not None else os.environ.get(ROOT_VARIABLE) or None
    cache = cache_dir if cache_dir is not None else os.environ.get(CACHE_VARIABLE) or None
    request = Request(
        place=Place(
            name=name,
            data_root=None if root is None else Path(root).expanduser(),
            cache=Path(platformdirs.user_cache_dir("lmc-verify") if cache is None else cache).expanduser(),
            download=bool(download),
        ),
        seed=seed,
        options=checked,
    )
    return finished(entry.load(request), entry.info, request)


def _from_plugin(plugin: Plugin, load: Any) -> Entry:
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

    def run(request: Request) -> Data:
        import torch
        from torch_geometric.data import Data

        seed = {"seed": request.seed} if seeded else {}
        data = load(**seed, **request.options)
        if not isinstance(data, Data):
            raise InvalidInputError(
                f"data set {plugin.name!r} ({plugin}) gave a {type(data).__name__}, it must give a "
                "torch_geometric.data.Data"
            )
        for key in ("x", "y", "edge_index"):
            if getattr(data, key, None) is None:
                raise InvalidInputError(
                    f"data set {plugin.name!r} ({plugin}) gave data without {key}; it must have x, y and edge_index"
                )
        for key in SPLITS:
            if key in data and data[key].dtype not in (torch.bool, torch.uint8):
                raise InvalidInputError(
                    f"data set {plugin.name!r} ({plugin}) gave a {key} of {data[key].dtype}, a mask is bool "
                    f"[{data.num_nodes}]; node ids are none: mask[ids] = True makes one of them"
                )
        return data

    return make(run, options, plugin.name, "plug-in", description, plugin.distribution, task=task)


@functools.cache
def dataset_registry() -> Registry[Entry]:
    """Return all data sets by name."""
    own = ((entry.info.name, entry) for entry in own_entries())
    return Registry("data set", "lmc_verify.datasets", own, _from_plugin)


_ELSEWHERE = "data of your own come from a plug-in, or from a Workspace with a graph of its own"


def _entry(name: str) -> Entry:
    registry = dataset_registry()
    if name not in registry:
        raise UnknownNameError("data set", name, registry, _ELSEWHERE)
    return registry[name]
