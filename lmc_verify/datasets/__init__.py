"""Data sets by name: what is known of each, and its graph."""

from lmc_verify.datasets.registry import dataset_info, dataset_names, dataset_registry, load_data, load_graph

__all__ = ["dataset_info", "dataset_names", "dataset_registry", "load_data", "load_graph"]
