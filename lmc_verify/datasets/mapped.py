"""A graph in memory-mapped files: a folder with one file a tensor, in NumPy's format, and `graph.json`.

Files are named after the attributes of `lmc_verify.Graph`: ``edge_index.npy`` int64 [2, m], ``x.npy`` [n, f],
``y.npy``, ``train_mask.npy``, and as far as there are any ``edge_weight.npy``, ``val_mask.npy``, ``test_mask.npy`` and
``edge_attr.npy``. A graph that never was in memory is written by whatever program makes these files, chunk by chunk,
for instance with `numpy.lib.format.open_memmap`.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

from lmc_verify.arguments import typed
from lmc_verify.errors import InvalidInputError, folder_error, require_kind
from lmc_verify.graphs import Graph, new_file, open_file, windows

__all__ = ["GRAPH_FILE", "open_graph", "write_graph"]

GRAPH_FILE = "graph.json"
"""What marks a folder as a graph in mapped files; it is written last."""

_NEEDED = ("edge_index", "x", "y", "train_mask")
_OPTIONAL = ("edge_weight", "val_mask", "test_mask", "edge_attr")


@typed
def write_graph(graph: Graph, folder: str | Path, *, dtype: torch.dtype | None = None) -> None:
    """Write a graph into mapped files, window by window.

    Args:
        graph: the graph.
        folder: where to; files of another graph there are replaced.
        dtype: float32 or float64 for every floating tensor; None for those of the graph.

    Raises:
        InvalidInputError: a tensor was changed in place (see `lmc_verify.Graph.check_unchanged`), or another
            `dtype`.
        OutputError: the files cannot be written.
    """
    require_kind("graph", graph, Graph)
    if dtype not in (None, torch.float32, torch.float64):
        raise InvalidInputError(f"dtype is {dtype}, it must be torch.float32 or torch.float64")
    graph.check_unchanged(content=True)
    place = Path(folder)
    try:
        place.mkdir(parents=True, exist_ok=True)
        for name in (*_NEEDED, *_OPTIONAL):
            (place / f"{name}.npy").unlink(missing_ok=True)
        (place / GRAPH_FILE).unlink(missing_ok=True)
    except OSError as error:
        raise folder_error(place, error, f"cannot write to {place}") from error
    for name in (*_NEEDED, *_OPTIONAL):
        value: Tensor | None = getattr(graph, name)
        if value is not None:
            _write(value, place / f"{name}.npy", dtype)
    (place / GRAPH_FILE).write_text(json.dumps({"name": graph.name}) + "\n", encoding="utf-8")


def _write(value: Tensor, path: Path, dtype: torch.dtype | None) -> None:
    target = dtype if dtype is not None and value.is_floating_point() else value.dtype
    file = new_file(path, tuple(value.shape), target)
    # Edges lie in two rows, everything else in one a node or edge.
    source, file = (value.T, file.T) if path.stem == "edge_index" else (value, file)
    for window in windows(source.shape[0], source[:1].numel() * source.element_size()):
        file[window] = source[window].to(target)


@typed
def open_graph(folder: str | Path) -> Graph:
    """Return the graph in a folder of mapped files; its tensors are read from there as they are used.

    It is checked as any `lmc_verify.Graph`, window by window, and keeps no ``A X``.

    Raises:
        InvalidInputError: the folder holds no such files, or their content is no graph.
    """
    place = Path(folder)
    missing = [name for name in _NEEDED if not (place / f"{name}.npy").exists()]
    if missing or not (place / GRAPH_FILE).exists():
        what = f"{missing[0]}.npy" if missing else GRAPH_FILE
        raise InvalidInputError(
            f"{place} is no graph in mapped files: {what} is missing; write it with lmc_verify.datasets.write_graph"
        )
    try:
        name = str(json.loads((place / GRAPH_FILE).read_text(encoding="utf-8")).get("name", place.name))
    except (ValueError, AttributeError) as error:
        raise InvalidInputError(f"{place / GRAPH_FILE} is damaged: {error}; write the graph again") from error
    tensors = {key: open_file(place / f"{key}.npy") for key in _NEEDED}
    tensors |= {key: open_file(file) for key in _OPTIONAL if (file := place / f"{key}.npy").exists()}
    return Graph(**tensors, name=name, cache_bytes=0, snapshot=False)  # type: ignore[arg-type]  # names are Graph's own
