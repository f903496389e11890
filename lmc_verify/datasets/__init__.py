"""Data sets by name: what is known of each, and its graph."""

from typing import TYPE_CHECKING

from lmc_verify.imports.names import offered

if TYPE_CHECKING:
    from lmc_verify.datasets.mapped import GRAPH_FILE, open_graph, write_graph
    from lmc_verify.datasets.registry import dataset_info, dataset_names, dataset_registry, load_data, load_graph
else:
    __getattr__, __dir__ = offered(__name__)

__all__ = [
    "GRAPH_FILE",
    "dataset_info",
    "dataset_names",
    "dataset_registry",
    "load_data",
    "load_graph",
    "open_graph",
    "write_graph",
]
