"""Partitions of the nodes into clusters. A partition is data: it can be stored, hashed and reused."""

from __future__ import annotations

import hashlib
import reprlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lmc_verify.arguments import require_fields, typed
from lmc_verify.errors import InvalidInputError, UnknownNameError, require_whole
from lmc_verify.graphs.batch import MOST_NODES
from lmc_verify.graphs.graph import Graph
from lmc_verify.seeds import generator, require_seed

__all__ = ["PARTITION_METHODS", "Partition", "make_partition"]


@dataclass(frozen=True, eq=False)
class Partition:
    """A division of nodes ``0 ... n-1`` into clusters ``0 ... parts-1``, none of them empty.

    Attributes:
        assignment: int64 [n] on the CPU, the cluster of each node.
        method: how it was made, for reports.

    Raises:
        InvalidInputError: a cluster id is negative or a cluster is empty.
    """

    assignment: Tensor
    method: str = "given"

    def __post_init__(self) -> None:
        require_fields(self)
        assignment = self.assignment
        if assignment.dim() != 1 or assignment.dtype != torch.int64 or assignment.numel() == 0:
            raise InvalidInputError(
                "the assignment of a partition must be int64 [nodes] with at least one node, "
                f"got {assignment.dtype} {tuple(assignment.shape)}"
            )
        if int(assignment.min()) < 0:
            raise InvalidInputError(f"cluster ids start at 0, got {int(assignment.min())}")
        empty = (self.sizes == 0).nonzero()
        if empty.numel():
            raise InvalidInputError(
                f"cluster {int(empty[0])} of {self.num_parts} is empty; number the clusters without gaps, "
                "for instance with Partition.from_labels"
            )

    @property
    def num_nodes(self) -> int:
        """Number of nodes."""
        return self.assignment.numel()

    @cached_property
    def num_parts(self) -> int:
        """Number of clusters, b."""
        return int(self.assignment.max()) + 1

    @cached_property
    def sizes(self) -> Tensor:
        """Nodes in each cluster, int64 [parts]."""
        return torch.bincount(self.assignment)

    @cached_property
    def clusters(self) -> tuple[Tensor, ...]:
        """The nodes of each cluster, ascending."""
        return tuple(self.order.split(self.sizes.tolist()))

    @cached_property
    def order(self) -> Tensor:
        """The nodes cluster by cluster, ascending in each, int64 [n]."""
        return torch.argsort(self.assignment, stable=True)

    @typed
    def arrange(self, graph: Graph) -> tuple[Graph, Partition]:
        """Return the graph with its nodes renamed cluster by cluster, and this partition of it.

        Neighbours are then near each other in memory: passes over the graph are faster, and their results the same up
        to the order of rows. Node k of the new graph is node ``order[k]`` of the old one.

        Raises:
            InvalidInputError: the partition is of another number of nodes.
        """
        if graph.num_nodes != self.num_nodes:
            raise InvalidInputError(
                f"the partition is of {self.num_nodes} nodes, the graph has {graph.num_nodes}; partition this graph"
            )
        return graph.relabelled(self.order.to(graph.device)), Partition(self.assignment[self.order], self.method)

    @cached_property
    def fingerprint(self) -> str:
        """Content hash, 16 hex digits."""
        return hashlib.blake2b(self.assignment.numpy().tobytes(), digest_size=8).hexdigest()

    @classmethod
    @typed
    def from_clusters(cls, clusters: Iterable[Sequence[int]], method: str = "given") -> Partition:
        """Build from lists of nodes that together cover ``0 ... n-1`` exactly once."""
        try:
            given = [torch.as_tensor(cluster).reshape(-1) for cluster in clusters]
        except (TypeError, ValueError, RuntimeError, OverflowError) as error:
            raise InvalidInputError(f"clusters is {reprlib.repr(clusters)}, it must be lists of node ids") from error
        if not given:
            raise InvalidInputError("clusters is empty; give at least one cluster, with a node")
        for part in given:
            if part.numel() and (part.is_floating_point() or part.dtype is torch.bool):
                raise InvalidInputError(f"clusters has a list of {part.dtype}, clusters are lists of node ids")
        parts = [part.to(torch.int64) for part in given]
        empty = [index for index, part in enumerate(parts) if not part.numel()]
        if empty:
            raise InvalidInputError(f"cluster {empty[0]} of {len(parts)} is empty; leave empty clusters out")
        nodes = torch.cat(parts) if parts else torch.zeros(0, dtype=torch.int64)
        if not torch.equal(nodes.sort().values, torch.arange(nodes.numel())):
            raise InvalidInputError(
                f"clusters must cover every node 0 ... {nodes.numel() - 1} exactly once; a node is missing or repeated"
            )
        assignment = torch.empty_like(nodes)
        for index, part in enumerate(parts):
            assignment[part] = index
        return cls(assignment, method)

    @classmethod
    @typed
    def from_labels(cls, labels: Tensor, method: str = "given") -> Partition:
        """Build from arbitrary integer labels; used labels are renumbered without gaps."""
        if labels.dim() != 1 or labels.is_floating_point():
            raise InvalidInputError(
                f"labels are {labels.dtype} of shape {tuple(labels.shape)}, they must be whole numbers [nodes]"
            )
        return cls(torch.unique(labels.cpu().long(), return_inverse=True)[1], method)

    @classmethod
    @typed
    def metis(cls, graph: Graph, num_parts: int, *, seed: int = 0) -> Partition:
        """Partition with METIS (multilevel k-way, minimal edge cut) on the undirected simple graph.

        Where k-way partitioning leaves clusters empty, recursive bisection is used instead. If that leaves some empty
        too, they are dropped, and the result has fewer than `num_parts` clusters.

        Source: Karypis and Kumar, SIAM J. Sci. Comput. 20 (1998).

        Raises:
            InvalidInputError: fewer nodes than parts, or METIS is not installed: there is no wheel of it for Windows.
        """
        try:
            import pymetis
        except ImportError as error:
            raise InvalidInputError(
                "partitions by METIS need pymetis, which is not installed: it has no wheel for every system, such as "
                "Windows. pip install 'lmc-verify[metis]' builds it, with a C++ compiler; or choose another partition, "
                "random or contiguous (design.partition). The controls of a suite need METIS; controls = false leaves "
                "them out"
            ) from error
        _check_parts(num_parts, graph.num_nodes)
        require_seed(seed)
        if num_parts == 1:
            return cls(torch.zeros(graph.num_nodes, dtype=torch.int64), "metis")
        source, destination = graph.edge_index.cpu()
        proper = source != destination
        keys = torch.cat(
            [
                source[proper] * graph.num_nodes + destination[proper],
                destination[proper] * graph.num_nodes + source[proper],
            ]
        ).unique()
        neighbours = (keys % graph.num_nodes).numpy()
        counts = torch.bincount(keys // graph.num_nodes, minlength=graph.num_nodes)
        offsets = np.concatenate([[0], counts.cumsum(0).numpy()])
        adjacency = pymetis.CSRAdjacency(adj_starts=offsets, adjacent=neighbours)
        options = pymetis.Options()
        options.seed = seed % 2**31  # a C int
        _, membership = pymetis.part_graph(num_parts, adjacency=adjacency, options=options)
        if len(set(membership)) < num_parts:  # k-way leaves clusters empty where they are small; bisection seldom does
            _, membership = pymetis.part_graph(num_parts, adjacency=adjacency, options=options, recursive=True)
        return cls.from_labels(torch.tensor(membership), "metis")

    @classmethod
    @typed
    def random(cls, num_nodes: int, num_parts: int, *, seed: int = 0) -> Partition:
        """Assign nodes to clusters uniformly, with sizes that differ by at most one."""
        _check_parts(num_parts, num_nodes)
        order = generator(seed, "partition").permutation(num_nodes)
        assignment = torch.empty(num_nodes, dtype=torch.int64)
        assignment[torch.from_numpy(order)] = torch.arange(num_nodes) % num_parts
        return cls(assignment, "random")

    @classmethod
    @typed
    def contiguous(cls, num_nodes: int, num_parts: int) -> Partition:
        """Cut the node order into consecutive runs whose sizes differ by at most one."""
        _check_parts(num_parts, num_nodes)
        return cls(torch.arange(num_nodes) * num_parts // num_nodes, "contiguous")

    @typed
    def fused(self, per_group: int, *, seed: int = 0) -> Partition:
        """Join randomly chosen clusters into fixed groups of `per_group` (the last group may be smaller)."""
        require_whole("per_group", per_group)
        if not 1 <= per_group <= self.num_parts:
            raise InvalidInputError(f"per_group is {per_group}, it must be between 1 and the {self.num_parts} clusters")
        order = torch.from_numpy(generator(seed, "fuse").permutation(self.num_parts))
        group = torch.empty(self.num_parts, dtype=torch.int64)
        group[order] = torch.arange(self.num_parts) // per_group
        return Partition(group[self.assignment], f"{self.method}, fused by {per_group}")

    @typed
    def save(self, path: str | Path) -> None:
        """Write the assignment to a safetensors file."""
        from safetensors.torch import save_file

        save_file({"assignment": self.assignment}, path, metadata={"method": self.method})

    @classmethod
    @typed
    def load(cls, path: str | Path) -> Partition:
        """Read what `save` wrote.

        Raises:
            InvalidInputError: there is no such file, or it holds no partition.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="pt") as file:
                assignment, about = file.get_tensor("assignment"), file.metadata() or {}
        except (OSError, SafetensorError) as error:
            raise InvalidInputError(
                f"path is {str(path)!r}, where no partition can be read: {error}; write one with Partition.save"
            ) from error
        return cls(assignment, about.get("method", "given"))

    def __repr__(self) -> str:
        return f"Partition({self.method}, nodes={self.num_nodes}, parts={self.num_parts}, hash={self.fingerprint})"


PARTITION_METHODS = ("metis", "random", "contiguous")


@typed(besides=("method",))
def make_partition(graph: Graph, method: str, num_parts: int, *, seed: int = 0) -> Partition:
    """Partition a graph by the name of a method (see `PARTITION_METHODS`).

    Raises:
        InvalidInputError: an argument of another type, an unknown method, or more parts than nodes.
    """
    require_seed(seed)
    if method == "metis":
        return Partition.metis(graph, num_parts, seed=seed)
    if method == "random":
        return Partition.random(graph.num_nodes, num_parts, seed=seed)
    if method == "contiguous":
        return Partition.contiguous(graph.num_nodes, num_parts)
    raise UnknownNameError("partition method", method, PARTITION_METHODS)


def _check_parts(num_parts: int, num_nodes: int) -> None:
    require_whole("num_parts", num_parts)
    require_whole("num_nodes", num_nodes)
    if not 1 <= num_nodes <= MOST_NODES:
        raise InvalidInputError(f"num_nodes is {num_nodes}, it must be between 1 and {MOST_NODES:,}")
    if num_parts < 1 or num_parts > num_nodes:
        raise InvalidInputError(
            f"{num_parts} parts of {num_nodes} nodes: the number of parts must be between 1 and the number of nodes; "
            "ask for fewer parts (num_parts)"
        )
