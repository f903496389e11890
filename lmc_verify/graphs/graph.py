"""A graph with features and labels, its operators, blocks that are cut out of them, and neighbourhoods.

An edge ``j -> i`` carries a message from source ``j`` to destination ``i``; an operator has row = destination and
column = source. Weights, degrees and normalisation always come from the whole graph, whatever block is cut out.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import InitVar, dataclass, field, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from lmc_verify.arguments import require_fields, typed
from lmc_verify.display.markup import facts, paragraph, section
from lmc_verify.display.text import one_line
from lmc_verify.errors import InvalidInputError, require_kind, require_whole
from lmc_verify.graphs.files import windows
from lmc_verify.graphs.memory import DEFAULT_CACHE_BYTES, ByteCache
from lmc_verify.graphs.operators import Block, LocalSet, block_from_edges, normalised_edges, operator_features
from lmc_verify.graphs.reading import one_graph, read_tensors
from lmc_verify.graphs.sparse import CSR
from lmc_verify.graphs.validation import validate_graph

if TYPE_CHECKING:
    from torch_geometric.data import Data, Dataset

__all__ = ["Graph", "changed_content", "graph_content"]

_TENSORS = ("edge_index", "x", "y", "train_mask", "edge_weight", "val_mask", "test_mask", "edge_attr")

_SEARCH = 64
"""Nodes are looked up in a table of all nodes unless that is so many times larger than what is looked up."""


@dataclass(frozen=True, eq=False)
class Graph:
    """A homogeneous graph with features, labels and the set of labelled (training) nodes.

    Attributes:
        edge_index: int64 [2, m]; row 0 sources, row 1 destinations. Multi-edges and self-loops are allowed.
        x: features [n, f], float32 or float64; the dtype of the whole problem.
        y: int64 [n] classes, or float [n, t] multi-label targets.
        train_mask: bool [n], the labelled nodes that the objective averages over.
        edge_weight: float [m] or None.
        val_mask, test_mask: bool [n] or None.
        name: for messages and reports.
        edge_attr: features of the edges [m, d], or None; an edge's row is carried wherever the edge goes, also where
            several edges join the same two nodes.
        cache_bytes: memory that the graph may keep what is computed from it in, besides its operators: half of it
            for ``A X``, if that fits, and half for the blocks of batches that come again.

    Args:
        snapshot: whether the tensors are copied, so that a graph stays what it was whatever becomes of them. Without,
            they belong to the graph from here on; a change in place is then an error as for the graph's own tensors
            (see `check_unchanged`).

    Raises:
        InvalidInputError: empty graph, edges out of range, NaN features or weights, no labelled node, bad labels; or a
            tensor that was made under `torch.inference_mode`.
    """

    edge_index: Tensor
    x: Tensor
    y: Tensor
    train_mask: Tensor
    edge_weight: Tensor | None = None
    val_mask: Tensor | None = None
    test_mask: Tensor | None = None
    name: str = "graph"
    cache_bytes: int = DEFAULT_CACHE_BYTES
    edge_attr: Tensor | None = None
    _blocks: dict[str, Block] = field(default_factory=dict, repr=False)
    _aggregated: dict[str, Tensor] = field(default_factory=dict, repr=False)
    _versions: dict[str, int] = field(init=False, repr=False)
    _checksums: dict[str, int] = field(init=False, repr=False)
    snapshot: InitVar[bool] = True

    def __post_init__(self, snapshot: bool) -> None:
        require_fields(self)
        require_kind("snapshot", snapshot, bool)
        masks = {"train_mask": self.train_mask, "val_mask": self.val_mask, "test_mask": self.test_mask}
        validate_graph(self.x, self.y, self.edge_index, self.edge_weight, masks, self.cache_bytes, self.edge_attr)
        for key in _TENSORS:
            value = getattr(self, key)
            if value is not None:
                object.__setattr__(self, key, value.detach().clone() if snapshot else value.detach())
        self._remember()

    def _remember(self) -> None:
        """Take down what the tensors are now."""
        object.__setattr__(self, "_versions", self._count_changes())
        object.__setattr__(self, "_checksums", {key: _checksum(getattr(self, key)) for key in self._versions})

    def _count_changes(self) -> dict[str, int]:
        """Return how often each tensor was changed in place, as torch counts it."""
        tensors = {key: getattr(self, key) for key in _TENSORS}
        made = [key for key, value in tensors.items() if value is not None and value.is_inference()]
        if made:
            raise InvalidInputError(
                f"{made[0]} was made under torch.inference_mode, gradients cannot be taken through it; build the graph "
                "outside of it (torch.no_grad is fine)"
            )
        return {key: value._version for key, value in tensors.items() if value is not None}

    def check_unchanged(self, *, content: bool = False, replaced: Container[str] = ()) -> None:
        """Refuse tensors that were changed in place: operators, ``A X`` and batches are kept from before.

        Args:
            content: whether the tensors are read again. Torch counts changes through a tensor and its views, not those
                through ``tensor.data`` or a numpy view. Exact passes, conversions, copies and fingerprints ask for it;
                estimates do in graphs of up to 1 MiB.
            replaced: names of tensors that may have changed, because they are not used any more.

        Raises:
            InvalidInputError: names the tensor.
        """
        now = self._count_changes()
        changed = [key for key, count in self._versions.items() if now.get(key) != count and key not in replaced]
        if content and not changed:
            kept = {key: value for key, value in self._checksums.items() if key not in replaced}
            changed = [key for key, value in kept.items() if _checksum(getattr(self, key)) != value]
        if changed:
            raise InvalidInputError(
                f"graph.{changed[0]} was changed in place after the graph was built, and what the graph keeps belongs "
                f"to its old values; build another one, for instance graph.replaced({changed[0]}=...)"
            )

    @cached_property
    def num_bytes(self) -> int:
        """Memory of the graph's tensors, without what is computed from them."""
        tensors = [getattr(self, key) for key in _TENSORS]
        return sum(value.numel() * value.element_size() for value in tensors if value is not None)

    def __getstate__(self) -> dict[str, Any]:
        self.check_unchanged(content=True)
        # What is worked out on demand stays behind: it holds sparse tensors, which torch cannot copy.
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("_versions", "_checksums")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._remember()  # copies count from zero again

    @classmethod
    @typed(besides=("split",))
    def from_pyg(
        cls, data: Data | Dataset, *, split: int | None = None, name: str | None = None, snapshot: bool = True
    ) -> Graph:
        """Build from any homogeneous `torch_geometric.data.Data`.

        Edge weights are read from ``data.edge_weight``, edge features from ``data.edge_attr`` ([m] or [m, d], in the
        order of ``data.edge_index``). In place of ``data.edge_index`` there may be ``data.adj_t``, whose values are
        weights if there is one an entry, else features. Without ``data.train_mask`` every node counts as labelled.
        Float targets [n, t] are multi-label, integer targets [n] or [n, 1] single-label.

        Args:
            data: needs ``x``, ``y`` and ``edge_index``; or a data set that holds one graph.
            split: which column to take where masks have shape [n, splits].
            name: for messages and reports.
            snapshot: see `Graph`.

        Raises:
            InvalidInputError: something is missing or malformed; the message names value, limit and remedy.
        """
        read = read_tensors(one_graph(data), split)
        if split is not None:
            require_whole("split", split)
        return cls(**read, name=name or getattr(data, "name", None) or "graph", snapshot=snapshot)

    @property
    def num_nodes(self) -> int:
        """Number of nodes."""
        return self.x.shape[0]

    @property
    def num_edges(self) -> int:
        """Number of directed edges, before any self-loop is added."""
        return self.edge_index.shape[1]

    @property
    def num_features(self) -> int:
        """Width of the features."""
        return self.x.shape[1]

    @property
    def multi_label(self) -> bool:
        """Whether targets are float [n, t]."""
        return self.y.is_floating_point()

    @property
    def num_outputs(self) -> int:
        """Classes (largest label + 1) or width of the multi-label targets.

        Labels of nodes that are in no mask are not looked at: they may hold anything, such as 255 for "unlabelled".
        """
        if self.multi_label:
            return self.y.shape[1]
        used = torch.stack([mask for mask in self._masks() if mask is not None]).any(0)
        return int(self.y[used].max()) + 1

    @cached_property
    def num_labelled(self) -> int:
        """Size of the training set, ``|V_L|``."""
        return int(self.train_mask.sum())

    @property
    def device(self) -> torch.device:
        """Device of every tensor."""
        return self.x.device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of features, weights and operators."""
        return self.x.dtype

    @typed
    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Graph:
        """Return the graph on another device or in another floating dtype.

        Raises:
            InvalidInputError: a tensor was changed in place (see `check_unchanged`).
        """
        try:
            device = self.device if device is None else torch.device(device)
        except RuntimeError as error:
            raise InvalidInputError(f"device is {device!r}, which torch does not know: {error}") from error
        if dtype is not None and dtype not in (torch.float32, torch.float64):
            raise InvalidInputError(f"dtype is {dtype}, it must be torch.float32 or torch.float64")
        dtype = self.dtype if dtype is None else dtype
        self.check_unchanged(content=True)
        if (device, dtype) == (self.device, self.dtype):
            return self

        def move(value: Tensor | None) -> Tensor | None:
            if value is None:
                return None
            return value.to(device, dtype) if value.is_floating_point() else value.to(device)

        moved = {key: move(getattr(self, key)) for key in _TENSORS}
        return Graph(**moved, name=self.name, cache_bytes=self.cache_bytes, snapshot=False)  # type: ignore[arg-type]  # only optional fields can be None

    def double(self) -> Graph:
        """Return the graph in float64, the reference precision."""
        return self.to(dtype=torch.float64)

    @typed
    def operator(self, kind: str) -> Block:
        """Return the whole operator [n, n] of this kind (see `OPERATORS`); built once and kept."""
        self.check_unchanged()
        if kind not in self._blocks:
            edges, weight = normalised_edges(kind, self.edge_index, self.edge_weight, self.num_nodes, self.dtype)
            features = operator_features(kind, self.edge_index, self.edge_attr, self.num_nodes, self.dtype)
            self._blocks[kind] = block_from_edges(edges, weight, self.num_nodes, features)
        return self._blocks[kind]

    @contextmanager
    def using_operators(self, blocks: Mapping[str, Block]) -> Iterator[None]:
        """Let `operator` give whole operators that were built elsewhere, with the same entries; undone at the end."""
        before = dict(self._blocks)
        self._blocks.update(blocks)
        try:
            yield
        finally:
            self._blocks.clear()
            self._blocks.update(before)

    @cached_property
    def cache(self) -> ByteCache:
        """What estimators work out about batches in this graph."""
        return ByteCache(self.cache_bytes // 2)

    def aggregated_features(self, kind: str) -> Tensor | None:
        """Return ``A X`` [n, f] of an operator, computed once, or None if it does not fit into half of the cache."""
        if self.x.numel() * self.x.element_size() > self.cache_bytes // 2:
            return None
        self.check_unchanged()
        if kind not in self._aggregated:
            self._aggregated[kind] = self.operator(kind).csr.matmul(self.x)
        return self._aggregated[kind]

    def block(self, kind: str, rows: Tensor, columns: LocalSet) -> Block:
        """Cut the piece rows x columns out of an operator, values and edge features as in the whole graph."""
        whole = self.operator(kind)
        degree = whole.in_degree[rows]
        if whole.edge_attr is None:
            return Block(self._cut(whole.csr, rows, columns), degree)
        entries = self._cut(whole.numbered, rows, columns)
        csr = CSR(entries.rowptr, entries.col, whole.csr.value[entries.value], entries.num_columns)
        return Block(csr, degree, whole.edge_attr[entries.value])

    def transposed_block(self, kind: str, rows: Tensor, columns: LocalSet) -> CSR:
        """Cut the piece rows x columns out of an operator's transpose: row j sends messages to its columns."""
        return self._cut(self.operator(kind).csr_t, rows, columns)

    def _cut(self, whole: CSR, rows: Tensor, columns: LocalSet) -> CSR:
        chosen = whole.select_rows(rows)
        return chosen.renamed(self._names(columns, chosen.col), columns.nodes.numel())

    def _names(self, local: LocalSet, nodes: Tensor) -> Tensor:
        """Return the local index of each of the given nodes, -1 for those outside the local set."""
        if self.num_nodes > _SEARCH * nodes.numel():  # too few to write down a name for every node
            index, inside = local.locate(nodes.long())
            return torch.where(inside, index, -1)
        names = torch.full((self.num_nodes,), -1, dtype=torch.int32, device=self.device)
        names[local.nodes] = torch.arange(local.nodes.numel(), dtype=torch.int32, device=self.device)
        return names.index_select(0, nodes)

    def induced_block(self, kind: str, nodes: LocalSet) -> Block:
        """Return the operator of the subgraph induced by the nodes, normalised by the **subgraph's** degrees.

        This is what Cluster-GCN's renormalisation does; every other estimator uses `block`.
        """
        whole = self.operator("sum")
        position, column, entry = whole.numbered.gather_rows(nodes.nodes)
        index, inside = nodes.locate(column)
        kept, entry = torch.stack([index[inside], position[inside]]), entry[inside]
        size = nodes.nodes.numel()
        weight = None if self.edge_weight is None else whole.csr.value[entry]
        attr = None if whole.edge_attr is None else whole.edge_attr[entry]
        edges, values = normalised_edges(kind, kept, weight, size, self.dtype)
        return block_from_edges(edges, values, size, operator_features(kind, kept, attr, size, self.dtype))

    def neighbourhood(self, batch: Tensor) -> Tensor:
        """Return the halo: nodes with an edge from or to a batch node, the batch excluded; ascending ids."""
        pattern = self.operator("sum")
        ways = {id(way): way for way in (pattern.csr, pattern.csr_t)}
        near = torch.cat([way.select_rows(batch).col for way in ways.values()]).long()
        if self.num_nodes > _SEARCH * near.numel():
            distinct: Tensor = torch.unique(near)
            return distinct[~LocalSet(batch, batch.numel()).locate(distinct)[1]]
        mark = torch.zeros(self.num_nodes, dtype=torch.bool, device=self.device)
        mark[near] = True
        mark[batch] = False
        found: Tensor = mark.nonzero()[:, 0]
        return found

    def local_degree_ratio(self, local: LocalSet, *, count_self_loop: bool = False) -> Tensor:
        """Return the share of each halo row's in-edges that come from inside the local set.

        A row without in-edges misses no message: its share is 1.

        Args:
            local: the local set.
            count_self_loop: give every row exactly one self-loop, which is inside; else none counts.
        """
        position, column, _ = self.operator("sum").csr.gather_rows(local.halo)
        proper = column != local.halo[position]
        inside = (self._names(local, column) >= 0) & proper
        size = local.halo.numel()
        total = torch.bincount(position[proper], minlength=size)
        kept = torch.bincount(position[inside], minlength=size)
        if count_self_loop:
            return (kept + 1).to(self.dtype) / (total + 1).to(self.dtype)
        ratio = kept.to(self.dtype) / total.clamp(min=1).to(self.dtype)
        return torch.where(total == 0, torch.ones_like(ratio), ratio)

    def messages(self, batch: Tensor) -> tuple[int, int]:
        """Return the number of edges into the batch and out of it."""
        pattern = self.operator("sum")
        into, out = (int((way.rowptr[batch + 1] - way.rowptr[batch]).sum()) for way in (pattern.csr, pattern.csr_t))
        return into, out

    def inner_messages(self, batch: Tensor) -> int:
        """Return the number of edges between nodes of the batch."""
        sources = self.operator("sum").csr.select_rows(batch).col
        return int((self._names(LocalSet(batch, batch.numel()), sources) >= 0).sum())

    def some_edge_attr(self, count: int) -> Tensor | None:
        """Return the features of so many edges [count, d], again from the first one where there are fewer.

        They serve to try a layer out. Without edges they are zeros; None where the graph has no edge features.
        """
        if self.edge_attr is None:
            return None
        values = self.edge_attr.to(self.dtype)
        if not self.num_edges:
            return values.new_zeros(count, values.shape[1])
        return values[torch.arange(count, device=values.device) % self.num_edges]

    def with_edges(self, kept: Tensor) -> Graph:
        """Return the graph with some of its edges, each with its weight and features.

        Args:
            kept: bool [m], or the edges' numbers.
        """
        self.check_unchanged(content=True)
        new = {"edge_index": self.edge_index[:, kept]}
        for key in ("edge_weight", "edge_attr"):
            value = getattr(self, key)
            if value is not None:
                new[key] = value[kept]
        return self.replaced(**new)

    def transposed(self) -> Graph:
        """Return the graph with every edge reversed."""
        self.check_unchanged(content=True)
        return self.replaced(edge_index=self.edge_index.flip(0))

    def relabelled(self, order: Tensor) -> Graph:
        """Return the same graph with node ``order[k]`` renamed to ``k``.

        Raises:
            InvalidInputError: `order` is not a permutation of the nodes.
        """
        self.check_unchanged(content=True)
        if not torch.equal(order.sort().values, torch.arange(self.num_nodes, device=order.device)):
            raise InvalidInputError(
                f"order must be a permutation of the nodes 0 ... {self.num_nodes - 1}, each exactly once"
            )
        rank = torch.empty_like(order)
        rank[order] = torch.arange(order.numel(), device=order.device)

        def pick(value: Tensor | None) -> Tensor | None:
            return None if value is None else value[order]

        return self.replaced(
            edge_index=rank[self.edge_index],
            x=self.x[order],
            y=self.y[order],
            train_mask=self.train_mask[order],
            val_mask=pick(self.val_mask),
            test_mask=pick(self.test_mask),
        )

    @property
    def checksum(self) -> str:
        """What the tensors were when the graph was built, in hex digits: quick, and enough to tell graphs apart."""
        return hashlib.blake2b(repr(sorted(self._checksums.items())).encode(), digest_size=8).hexdigest()

    @property
    def fingerprint(self) -> str:
        """Content hash (16 hex digits) of structure, features of nodes and edges, labels and masks.

        Raises:
            InvalidInputError: a tensor was changed in place (see `check_unchanged`).
        """
        self.check_unchanged(content=True)
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        digest = hashlib.blake2b(digest_size=8)
        for value in (self.edge_index, self.edge_weight, self.x, self.y, *self._masks()):
            for part in _bytes(value):
                digest.update(part)
        if self.edge_attr is not None:  # graphs without have the fingerprint that they always had
            digest.update(b"edge_attr")
            for part in _bytes(self.edge_attr):
                digest.update(part)
        return digest.hexdigest()

    def _masks(self) -> tuple[Tensor | None, ...]:
        return self.train_mask, self.val_mask, self.test_mask

    def replaced(self, **changes: Any) -> Graph:
        """Return the graph with some of its fields replaced; its operators are built again.

        Raises:
            TypeError: a field that a graph does not have.
            InvalidInputError: as for the graph itself; or a tensor that is kept was changed in place.
        """
        self.check_unchanged(content=True, replaced=changes)
        new: dict[str, Any] = {
            key: value.detach().clone() if isinstance(value, Tensor) else value for key, value in changes.items()
        }
        return replace(self, _blocks={}, _aggregated={}, snapshot=False, **new)

    def forget(self) -> None:
        """Drop operators, ``A X`` and kept blocks: they are computed again from the graph's tensors when needed."""
        self._blocks.clear()
        self._aggregated.clear()
        for kept in ("cache", "num_labelled"):
            self.__dict__.pop(kept, None)

    def __repr__(self) -> str:
        return (
            f"Graph({one_line(self.name, 60)!r}, nodes={self.num_nodes}, edges={self.num_edges}, "
            f"features={self.num_features}, outputs={self.num_outputs}, labelled={self.num_labelled}, "
            f"dtype={str(self.dtype).removeprefix('torch.')})"
        )

    def _repr_html_(self) -> str:
        """Return the graph's sizes for a notebook, in the notebook's own colours."""
        return section(paragraph(self.name, bold="Graph"), facts(self._facts()))

    def _facts(self) -> dict[str, object]:
        shares = {"training": self.train_mask, "validation": self.val_mask, "test": self.test_mask}
        return {
            "nodes": f"{self.num_nodes:,}",
            "directed edges": f"{self.num_edges:,}",
            "edge weights": None if self.edge_weight is None else "yes",
            "edge features": None if self.edge_attr is None else f"{self.edge_attr.shape[1]:,}",
            "features": f"{self.num_features:,}",
            "targets" if self.multi_label else "classes": f"{self.num_outputs:,}",
            **{f"{name} nodes": None if mask is None else f"{int(mask.sum()):,}" for name, mask in shares.items()},
            "dtype": str(self.dtype).removeprefix("torch."),
            "device": self.device,
            "memory of its tensors": f"{self.num_bytes / 2**20:,.3g} MiB",
        }


def graph_content(graph: Graph) -> dict[str, int | None]:
    """Return a checksum of each tensor of a graph by its name, as it is now (`Graph.fingerprint` is kept).

    Also of the operators that were built from them so far, entries and degrees, of ``A X``, and the number of labelled
    nodes.
    """
    named = {key: getattr(graph, key) for key in _TENSORS}
    found = {key: None if value is None else _checksum(value) for key, value in named.items()}
    for kind, block in graph._blocks.items():
        for name, tensors in block.tensors.items():
            found[f"{name}({kind!r})"] = _checksum(*tensors)
    found |= {f"aggregated({kind!r})": _checksum(value) for kind, value in graph._aggregated.items()}
    return found | {"num_labelled": graph.num_labelled}


def changed_content(before: Mapping[str, int | None], graph: Graph) -> str | None:
    """Return the name of the first tensor that is no longer what `graph_content` found, or None."""
    now = graph_content(graph)
    return next((key for key, value in before.items() if now.get(key, value) != value), None)


def _checksum(*values: Tensor) -> int:
    """Return a checksum of the content of tensors, faster than a hash and enough to see changes by accident."""
    checksum = 0
    for value in values:
        content = _array(value).reshape(-1).view(np.uint8)
        for window in windows(content.size, 1):
            checksum = zlib.crc32(content[window].data, checksum)
    return checksum


def _array(value: Tensor) -> np.ndarray[Any, np.dtype[Any]]:
    return np.ascontiguousarray(value.detach().cpu().numpy())


def _bytes(value: Tensor | None) -> Iterator[bytes | memoryview]:
    """Yield what is hashed of a tensor: dtype, shape and content."""
    if value is None:
        yield b"none"
        return
    array = _array(value)
    yield f"{array.dtype}{array.shape}".encode()
    content = array.reshape(-1).view(np.uint8)
    for window in windows(content.size, 1):
        yield content[window].data
