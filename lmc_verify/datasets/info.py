"""A data set in the registry: what is known of it, how it is loaded, and the arguments of a load."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from lmc_verify.datasets.files import Place
from lmc_verify.datasets.generated import Option, Task

if TYPE_CHECKING:
    from torch_geometric.data import Data

    from lmc_verify.datasets.tables import Tables

__all__ = ["DatasetInfo", "Entry", "Request"]

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
class Entry:
    """A registered data set: how it is described and how it is loaded."""

    info: DatasetInfo
    options: Mapping[str, Option]
    load: Callable[[Request], Data | Tables]


@dataclass(frozen=True)
class Request:
    """The arguments of one `load_data` call after validation."""

    place: Place
    seed: int
    options: Mapping[str, Any]
