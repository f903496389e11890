"""Graphs: operators, sparse products, partitions, batches and the designs that they are drawn from."""

from typing import TYPE_CHECKING

from lmc_verify.imports.names import offered

if TYPE_CHECKING:
    from lmc_verify.graphs.batch import Batch, LayerSample, Sample, named_nodes
    from lmc_verify.graphs.designs import (
        AnyGenerator,
        BatchDesign,
        Clusters,
        EpochClusters,
        FusedClusters,
        OneBatch,
        UniformNodes,
    )
    from lmc_verify.graphs.files import (
        map_file,
        new_file,
        open_file,
        put_rows,
        release_pages,
        resident_bytes,
        take_rows,
        windows,
    )
    from lmc_verify.graphs.graph import Graph, changed_content, graph_content
    from lmc_verify.graphs.loaders import BatchList, LoaderDesign
    from lmc_verify.graphs.mapped import map_operators
    from lmc_verify.graphs.memory import BufferPool
    from lmc_verify.graphs.operators import (
        Block,
        LocalSet,
        block_from_edges,
        block_from_entries,
        loops_operator,
        normalised_edges,
        operator_features,
    )
    from lmc_verify.graphs.partition import Partition, make_partition
    from lmc_verify.graphs.sparse import CSR, piece_rows, spmm
else:
    __getattr__, __dir__ = offered(__name__)

__all__ = [
    "CSR",
    "AnyGenerator",
    "Batch",
    "BatchDesign",
    "BatchList",
    "Block",
    "BufferPool",
    "Clusters",
    "EpochClusters",
    "FusedClusters",
    "Graph",
    "LayerSample",
    "LoaderDesign",
    "LocalSet",
    "OneBatch",
    "Partition",
    "Sample",
    "UniformNodes",
    "block_from_edges",
    "block_from_entries",
    "changed_content",
    "graph_content",
    "loops_operator",
    "make_partition",
    "map_file",
    "map_operators",
    "named_nodes",
    "new_file",
    "normalised_edges",
    "open_file",
    "operator_features",
    "piece_rows",
    "put_rows",
    "release_pages",
    "resident_bytes",
    "spmm",
    "take_rows",
    "windows",
]
