"""The file of reference numbers: its inputs as problems and batches, and its results by group."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lmc_verify.graphs import Batch, Clusters, Graph, Partition
from lmc_verify.models import make_model
from lmc_verify.objective import Gradient, Problem

__all__ = [
    "FILE",
    "Quantities",
    "clusters_of",
    "content_hash",
    "flat",
    "graph_of",
    "inputs",
    "inputs_of",
    "numbers",
    "problem_of",
    "weighted_batch",
]

FILE = Path(__file__).with_name("numbers.json")

Quantities = Mapping[str, Callable[[], Any]]
"""What computes a quantity, by name: it gives numbers, arrays, words, or several of them by a further name."""


@cache
def _document() -> Mapping[str, Any]:
    document: Mapping[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    return document


@cache
def content_hash() -> str:
    """Return the SHA-256 hex digest of the file."""
    return hashlib.sha256(FILE.read_bytes()).hexdigest()


def numbers(group: str) -> Mapping[str, Any]:
    """Return the pinned results of a group by name."""
    found: Mapping[str, Any] = _document()["numbers"][group]
    return found


def inputs() -> Mapping[str, Any]:
    """Return all inputs: graphs, models with their parameters, batches, and what single groups need."""
    found: Mapping[str, Any] = _document()["inputs"]
    return found


def inputs_of(group: str) -> Mapping[str, Any]:
    """Return what a group is given besides graphs and models."""
    found: Mapping[str, Any] = inputs()[group]
    return found


def _tensor(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def graph_of(key: str) -> Graph:
    """Build a graph; every call gives a new one, with nothing cached."""
    given = inputs()["graphs"][key]
    nodes = torch.arange(len(given["x"]))
    masks = {name: torch.isin(nodes, torch.tensor(given[name])) for name in ("labelled", "validation", "test")}
    multi = isinstance(given["y"][0], list)
    return Graph(
        edge_index=torch.tensor(given["edges"]).T.contiguous(),
        x=_tensor(given["x"]),
        y=_tensor(given["y"]) if multi else torch.tensor(given["y"]),
        train_mask=masks["labelled"],
        edge_weight=None if given["weights"] is None else _tensor(given["weights"]),
        val_mask=masks["validation"],
        test_mask=masks["test"],
        name=key,
    )


def problem_of(key: str) -> Problem:
    """Build a problem: the model at its given parameters, in evaluation mode."""
    given = inputs()["models"][key]
    graph = graph_of(given["graph"])
    hidden = given["hidden"]
    model = make_model(
        given["kind"],
        graph.num_features,
        hidden,
        graph.num_outputs,
        given["layers"],
        dtype=torch.float64,
        **given["settings"],
    ).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(_tensor(given["parameters"][name]))
    return Problem(graph, model, "bce" if graph.multi_label else "cross_entropy")


def clusters_of(problem: Problem, per_batch: int) -> Clusters:
    """Return the design of some of the graph's given clusters."""
    labels = inputs()["graphs"][problem.graph.name]["clusters"]
    return Clusters(Partition.from_labels(torch.tensor(labels)), per_batch)


def weighted_batch(nodes: list[int]) -> Batch:
    """Return a batch whose nodes have unequal inclusion probabilities, ``(node + 2) / 12``."""
    return Batch.of(nodes, (torch.tensor(nodes, dtype=torch.float64) + 2) / 12)


def flat(gradient: Gradient) -> Tensor:
    """Return all entries of a gradient as one vector, in parameter order."""
    return torch.cat([value.reshape(-1) for value in gradient.values()])
