"""Histories: the values of ``H^l`` and ``V^l`` that estimators remember between batches.

They live where the user says: on the problem's device (`History.to`), in page-locked host memory (`History.pinned`), or
in memory-mapped files (`History.mapped`). Estimates do not depend on the place.
"""

from __future__ import annotations

import copy
import errno
import math
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lmc_verify.arguments import typed
from lmc_verify.errors import InvalidInputError
from lmc_verify.graphs import map_file, put_rows, take_rows
from lmc_verify.objective import ExactPass, Problem, same_bits

__all__ = [
    "AUXILIARY",
    "EMBEDDING",
    "History",
    "HistoryWrite",
    "OtherWrite",
    "Refresh",
    "RowsAhead",
    "VectorWrite",
    "Write",
    "map_tables",
]

EMBEDDING = "embedding"
"""The kind of the tables that hold embeddings, H^l."""

AUXILIARY = "auxiliary"
"""The kind of the tables that hold auxiliary variables, V^l."""


@dataclass(frozen=True, eq=False)
class HistoryWrite:
    """Rows to be written into one history.

    Attributes:
        kind: ``"embedding"`` (H) or ``"auxiliary"`` (V).
        layer: 1 ... L.
        nodes: int64 [rows].
        values: [rows, width].
    """

    kind: str
    layer: int
    nodes: Tensor
    values: Tensor


@dataclass(frozen=True, eq=False)
class Refresh:
    """A write that replaces all tables, because the parameters at which they were exact have changed."""

    tables: History


@dataclass(frozen=True, eq=False)
class VectorWrite:
    """A write that replaces one vector of the state.

    Attributes:
        name: which vector.
        values: its new values.
    """

    name: str
    values: Tensor


@dataclass(frozen=True, eq=False)
class OtherWrite:
    """A write that replaces everything that a state keeps beside its tables and vectors, see `History.other_tensors`.

    Attributes:
        tensors: the tensors in it, by their paths: two writes with the same bits are the same.
        kept: what the state that it is for puts back.
        plain: numbers, texts and the like that have changed since the first state, by their paths.
    """

    tensors: Mapping[str, Tensor]
    kept: Any = field(repr=False)
    plain: Mapping[str, Any] = field(default_factory=dict)


Write = HistoryWrite | Refresh | VectorWrite | OtherWrite


class RowsAhead:
    """Rows of a table on the host that are on their way to a device with streams.

    Args:
        table: the table [n, width], on the host.
        nodes: int64 [rows], on the host.
        device: where the rows go.
        stream: the stream of the device that copies.
    """

    def __init__(self, table: Tensor, nodes: Tensor, device: torch.device, stream: Any) -> None:
        # Only page-locked memory is copied while the device computes; it must live until the copy is done.
        self._host = torch.empty(nodes.numel(), table.shape[1], dtype=table.dtype, pin_memory=True)
        take_rows(table, nodes, self._host)
        self._stream, self._library = stream, getattr(torch, device.type)
        with self._library.stream(stream):
            self._rows = self._host.to(device, non_blocking=True)

    def get(self) -> Tensor:
        """Return the rows; what the current stream does next waits for them."""
        current = self._library.current_stream(self._rows.device)
        current.wait_stream(self._stream)
        self._rows.record_stream(current)
        return self._rows


@dataclass(eq=False)
class History:
    """One table a layer and kind, each [n, width]; ``apply`` is the only way to change it.

    Auxiliary variables are kept in units of the full objective: they hold ``1/|V_L|`` and no weight of a batch.

    Attributes:
        embeddings: H by layer.
        auxiliary: V by layer; empty for estimators that keep none.
        vectors: what an estimator learns that belongs to no node, by name, such as a proposal.
        exact_for: the problem, and its parameter values, for which the tables are exact; or None.
    """

    embeddings: dict[int, Tensor] = field(default_factory=dict)
    auxiliary: dict[int, Tensor] = field(default_factory=dict)
    exact_for: tuple[Problem, tuple[Tensor, ...]] | None = field(default=None, repr=False)
    vectors: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    @typed
    def zeros(
        cls, problem: Problem, *, embeddings: bool = True, auxiliary: bool = True, folder: str | Path | None = None
    ) -> History:
        """Return histories of zeros, for layers 1 ... L.

        Args:
            problem: the tables' sizes and precision are those of its layers.
            embeddings: whether there are tables of H.
            auxiliary: whether there are tables of V.
            folder: where tables are mapped files, as of `mapped`, that are never in memory as a whole; None for tables
                on the problem's device.

        Raises:
            InvalidInputError: the files cannot be written.
        """
        graph, layers = problem.graph, range(1, problem.num_layers + 1)
        kinds = [kind for kind, wanted in ((EMBEDDING, embeddings), (AUXILIARY, auxiliary)) if wanted]
        shapes = {(kind, layer): (graph.num_nodes, problem.widths[layer]) for kind in kinds for layer in layers}
        if folder is None:
            made = {key: torch.zeros(shape, device=graph.device, dtype=graph.dtype) for key, shape in shapes.items()}
        else:
            named = {f"{kind}-{layer}": (shape, graph.dtype) for (kind, layer), shape in shapes.items()}
            made = dict(zip(shapes, map_tables(folder, named).values(), strict=True))
        by_kind = {kind: {layer: made[kind, layer] for layer in layers} for kind in kinds}
        return cls(by_kind.get(EMBEDDING, {}), by_kind.get(AUXILIARY, {}))

    @classmethod
    @typed
    def from_exact(cls, problem: Problem, exact: ExactPass) -> History:
        """Return histories that hold the exact values of both kinds, V^0 included where the encoder needs it."""
        return cls(
            {layer: exact.embeddings[layer].clone() for layer in range(1, problem.num_layers + 1)},
            {layer: value.clone() for layer, value in exact.auxiliary.items()},
            (problem, problem.parameter_snapshot()),
        )

    def filled(self, exact: ExactPass, embeddings: Mapping[int, Tensor] | None = None) -> History:
        """Return histories with the tables of this one, holding the exact values.

        Args:
            exact: the exact pass.
            embeddings: what the tables of H hold, by layer, where that is not H itself.
        """
        held = dict(enumerate(exact.embeddings)) if embeddings is None else embeddings
        return self._with_tables(
            {layer: held[layer].clone() for layer in self.embeddings},
            {layer: exact.auxiliary[layer].clone() for layer in self.auxiliary},
        )

    def zeroed(self) -> History:
        """Return histories with the tables of this one, holding zeros."""
        return self._with_tables(
            {layer: torch.zeros_like(table) for layer, table in self.embeddings.items()},
            {layer: torch.zeros_like(table) for layer, table in self.auxiliary.items()},
        )

    def _with_tables(
        self, embeddings: dict[int, Tensor], auxiliary: dict[int, Tensor], *, exact: bool = False
    ) -> History:
        """Return a state of the same class (whose `apply` may be its own) with other tables, which may be exact."""
        other = copy.copy(self)
        other.embeddings, other.auxiliary = embeddings, auxiliary
        other.vectors = {name: value.clone() for name, value in self.vectors.items()}
        other.exact_for = self.exact_for if exact else None
        return other

    def table(self, kind: str) -> Mapping[int, Tensor]:
        """Return the tables of one kind by layer."""
        return self.embeddings if kind == EMBEDDING else self.auxiliary

    def read(self, kind: str, layer: int, nodes: Tensor, *, out: Tensor | None = None) -> Tensor:
        """Return rows of one table on the nodes' device, as a copy; into `out` [rows, width] if given."""
        table = self.table(kind)[layer]
        if table.device == nodes.device:
            return take_rows(table, nodes, out)
        rows = take_rows(table, nodes.to(table.device)).to(nodes.device)
        return rows if out is None else out.copy_(rows)

    def read_ahead(self, wanted: Iterable[tuple[str, int]], nodes: Tensor) -> Mapping[tuple[str, int], RowsAhead]:
        """Start to copy rows of several tables from the host to the nodes' device, while it computes something else.

        Returns:
            By kind and layer, rows that are ready when they are asked for. Empty where nothing has to be copied.
        """
        library: Any = getattr(torch, nodes.device.type, None)  # such as torch.cuda
        elsewhere = [key for key in wanted if self.table(key[0])[key[1]].device != nodes.device]
        if nodes.device.type == "cpu" or not elsewhere or not hasattr(library, "Stream"):
            return {}
        stream, host = library.Stream(nodes.device), nodes.cpu()
        return {
            (kind, layer): RowsAhead(self.table(kind)[layer], host, nodes.device, stream) for kind, layer in elsewhere
        }

    def to(self, device: torch.device | str) -> History:
        """Return the histories on another device."""
        moved = self._moved(lambda name, table: table.to(device, copy=True))
        moved.vectors = {name: value.to(device) for name, value in moved.vectors.items()}
        return moved

    def pinned(self) -> History:
        """Return the histories with their tables in page-locked host memory, for graphs beyond a GPU's memory.

        Estimates on a GPU then read the rows of a batch's halo ahead, while the device computes. Without a GPU the
        tables are in plain host memory.
        """
        locked = torch.cuda.is_available()
        return self._moved(
            lambda name, table: torch.empty(table.shape, dtype=table.dtype, pin_memory=locked).copy_(table)
        )

    def mapped(self, folder: str | Path) -> History:
        """Return the histories with their tables in memory-mapped files, for graphs beyond the host's memory.

        The space of all of them is reserved first. Tables that would not fit in memory at all begin as
        ``History.zeros(problem, folder=...)``.

        Args:
            folder: where to write ``embedding-1.bin`` and so on; made if it is not there. Files are overwritten.

        Raises:
            InvalidInputError: the files cannot be written, or the disk has not enough space for them.
        """
        tables: dict[str, Tensor] = {}
        self._moved(lambda name, table: tables.setdefault(name, table))
        files = map_tables(folder, {name: (tuple(table.shape), table.dtype) for name, table in tables.items()})
        return self._moved(lambda name, table: files[name].copy_(table))

    def _moved(self, move: Callable[[str, Tensor], Tensor]) -> History:
        return self._with_tables(
            {layer: move(f"{EMBEDDING}-{layer}", table) for layer, table in self.embeddings.items()},
            {layer: move(f"{AUXILIARY}-{layer}", table) for layer, table in self.auxiliary.items()},
            exact=True,
        )

    @typed
    def apply(self, writes: Iterable[Write]) -> None:
        """Write rows, in the order given.

        Raises:
            InvalidInputError: a write does not fit its table; nothing is written then.
        """
        writes = tuple(writes)
        for write in writes:
            self.check(write)
        for write in writes:
            if isinstance(write, Refresh):
                fresh = write.tables.clone()  # later writes must not go into the estimate's own
                self.embeddings, self.auxiliary, self.exact_for = (
                    fresh.embeddings,
                    fresh.auxiliary,
                    fresh.exact_for,
                )
            elif isinstance(write, VectorWrite):
                self.vectors[write.name] = write.values.clone()
            elif isinstance(write, OtherWrite):
                self._replace_other(write)
            else:
                table = self.table(write.kind)[write.layer]
                put_rows(table, write.nodes.to(table.device), write.values.to(table.device))

    @property
    def keeps_other(self) -> bool:
        """Whether something is kept beside the tables and vectors, which only a state of a class of its own can do."""
        return False

    def other_tensors(self) -> Mapping[str, Tensor]:
        """Return the tensors that are kept beside the tables and vectors, by path: what they mean is not known."""
        return {}

    def other_values(self) -> Mapping[str, Any]:
        """Return the numbers and texts that are kept beside all tensors, by name, such as a counter of a subclass."""
        return {name: value for name, value in vars(self).items() if isinstance(value, int | float | str)}

    def _replace_other(self, write: OtherWrite) -> None:
        """Put back what an `OtherWrite` holds."""

    def check(self, write: Write) -> None:
        """Raise InvalidInputError if a write does not fit its table; nothing is written."""
        if isinstance(write, HistoryWrite):
            self._check_rows(write)
        elif isinstance(write, VectorWrite):
            self._check_vector(write)
        elif not isinstance(write, Refresh | OtherWrite):
            raise InvalidInputError(
                f"one of the writes is a {type(write).__name__}; they are what an estimate has, such as HistoryWrite"
            )
        elif isinstance(write, OtherWrite) and not self.keeps_other:
            raise InvalidInputError(
                f"cannot write {', '.join(write.tensors) or 'values'}: this state keeps nothing beside its tables; "
                "apply writes to the state of the estimator that made them"
            )

    def _check_rows(self, write: HistoryWrite) -> None:
        """Raise InvalidInputError if a write does not fit its table."""
        known = write.kind in (EMBEDDING, AUXILIARY) and isinstance(write.layer, int)
        table = self.table(write.kind).get(write.layer) if known else None
        if table is None:
            problem = "this state has no such table"
        elif write.nodes.dim() != 1 or write.nodes.dtype not in (torch.int64, torch.int32):
            problem = (
                f"nodes are {write.nodes.dtype} {tuple(write.nodes.shape)}, they must be int64 ids [rows]; a mask "
                "becomes ids with nonzero()[:, 0]"
            )
        elif write.values.shape != (write.nodes.numel(), table.shape[1]):
            problem = f"the table has rows of width {table.shape[1]}, and {write.nodes.numel()} nodes are named"
        elif write.values.dtype != table.dtype:
            problem = f"the table holds {table.dtype}, the values are {write.values.dtype}"
        elif write.nodes.numel() and not 0 <= int(write.nodes.min()) <= int(write.nodes.max()) < table.shape[0]:
            problem = f"node ids must lie in 0 ... {table.shape[0] - 1}"
        else:
            return
        raise InvalidInputError(
            f"cannot write {write.kind} rows of shape {tuple(write.values.shape)} for layer {write.layer}: {problem}; "
            "apply writes to the state of the estimator that made them"
        )

    def _check_vector(self, write: VectorWrite) -> None:
        """Raise InvalidInputError if a write does not fit its vector."""
        found = self.vectors.get(write.name)
        if found is None or (found.shape, found.dtype) != (write.values.shape, write.values.dtype):
            what = "no such vector" if found is None else f"a {found.dtype} vector of shape {tuple(found.shape)}"
            raise InvalidInputError(
                f"cannot write {write.values.dtype} {tuple(write.values.shape)} as {write.name!r}: this state has "
                f"{what}; "
                "apply writes to the state of the estimator that made them"
            )

    def is_exact_for(self, problem: Problem) -> bool:
        """Whether the tables hold this problem's exact values at its present parameters."""
        return self.exact_for is not None and self.exact_for[0] is problem and problem.has_parameters(self.exact_for[1])

    def clone(self) -> History:
        """Return a deep copy."""
        return self._with_tables(
            {layer: value.clone() for layer, value in self.embeddings.items()},
            {layer: value.clone() for layer, value in self.auxiliary.items()},
            exact=True,
        )

    def equals(self, other: History) -> bool:
        """Whether every table is equal, bit for bit."""
        pairs: tuple[tuple[dict[Any, Tensor], dict[Any, Tensor]], ...] = (
            (self.embeddings, other.embeddings),
            (self.auxiliary, other.auxiliary),
            (self.vectors, other.vectors),
            (dict(self.other_tensors()), dict(other.other_tensors())),
        )
        return all(
            left.keys() == right.keys() and all(same_bits(left[layer], right[layer]) for layer in left)
            for left, right in pairs
        )

    @property
    def num_bytes(self) -> int:
        """Memory held by the tables."""
        tables = [*self.embeddings.values(), *self.auxiliary.values(), *self.vectors.values()]
        return sum(table.numel() * table.element_size() for table in tables)


def map_tables(folder: str | Path, tables: Mapping[str, tuple[tuple[int, ...], torch.dtype]]) -> dict[str, Tensor]:
    """Return tables of zeros in memory-mapped files ``NAME.bin``, whose space on the disk is reserved.

    A file with holes would be made on a full disk too, and end the process at the first write for which there is no
    space.

    Args:
        folder: where the files are; made if it is not there. Files are overwritten.
        tables: shape and precision by name.

    Raises:
        InvalidInputError: the files cannot be written, or the disk has not enough space for them; none is left then.
    """
    place, made = Path(folder), list[Path]()
    sizes = {name: math.prod(shape) * dtype.itemsize for name, (shape, dtype) in tables.items()}
    try:
        place.mkdir(parents=True, exist_ok=True)
        for name, size in sizes.items():
            path = place / f"{name}.bin"
            path.unlink(missing_ok=True)  # other histories may still be mapped to it
            made.append(path)
            _reserve(path, size)
        return {name: map_file(place / f"{name}.bin", shape, dtype) for name, (shape, dtype) in tables.items()}
    except (OSError, ValueError) as error:
        for path in made:
            with suppress(OSError):
                path.unlink(missing_ok=True)
        raise InvalidInputError(
            f"cannot map histories to {place}: {error}; name a folder that can be written, with "
            f"{sum(sizes.values()):,} bytes free"
        ) from error


def _reserve(path: Path, size: int) -> None:
    """Make a file of zeros whose space is on the disk."""
    with path.open("wb") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except (AttributeError, OSError) as error:  # not every system and file system can
            if getattr(error, "errno", errno.EOPNOTSUPP) not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                raise
            block = bytes(min(size, 2**24))
            while size > 0:
                size -= file.write(block[:size])
