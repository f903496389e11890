"""Graphs: operators, sparse products, partitions, batches and the designs that they are drawn from."""

from lmc_verify.graphs.batch import Batch, LayerSample, Sample
from lmc_verify.graphs.designs import (
    AnyGenerator,
    BatchDesign,
    Clusters,
    EpochClusters,
    FusedClusters,
    OneBatch,
    UniformNodes,
)
from lmc_verify.graphs.graph import Graph, graph_content
from lmc_verify.graphs.memory import BufferPool
from lmc_verify.graphs.operators import Block, LocalSet, normalised_edges
from lmc_verify.graphs.partition import Partition, make_partition
from lmc_verify.graphs.sparse import CSR, piece_rows, spmm

__all__ = [
    "CSR",
    "AnyGenerator",
    "Batch",
    "BatchDesign",
    "Block",
    "BufferPool",
    "Clusters",
    "EpochClusters",
    "FusedClusters",
    "Graph",
    "LayerSample",
    "LocalSet",
    "OneBatch",
    "Partition",
    "Sample",
    "UniformNodes",
    "graph_content",
    "make_partition",
    "normalised_edges",
    "piece_rows",
    "spmm",
]
