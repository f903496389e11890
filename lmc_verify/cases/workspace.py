"""From settings to graphs, partitions, problems, exact passes and designs; what cases share is made once and kept."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn

from lmc_verify.cases.lookup import check_dataset
from lmc_verify.cases.settings import DatasetSettings, DesignSettings, ModelSettings
from lmc_verify.datasets import load_graph
from lmc_verify.errors import InvalidInputError
from lmc_verify.graphs import (
    BatchDesign,
    Clusters,
    EpochClusters,
    FusedClusters,
    Graph,
    Partition,
    UniformNodes,
    changed_content,
    graph_content,
    make_partition,
)
from lmc_verify.models import (
    Architecture,
    LayeredModel,
    check_jump,
    check_options,
    graph_settings,
    make_model,
)
from lmc_verify.objective import ExactPass, Problem, exact_pass

__all__ = ["Workspace", "build_design"]


@dataclass
class Workspace:
    """Where data come from, and what cases share: graphs, partitions and exact passes are made once.

    An estimator that writes into a graph is an error of its own trial. Nobody else sees what it wrote: a graph that is
    no longer what was loaded is loaded again, and whatever was made of it is made again.

    A subclass may have data sets and models of its own, by `graph` and `problem`: they can be named wherever settings
    and a workspace are taken, in suites, races and cases. Records and commands know a data set by its name and options
    alone: give what is yours a name of its own. The command line makes its own workspaces; what is to be known there,
    too, is a plug-in.

    Attributes:
        data_root: folder with raw files of real data sets, or None.
        download: whether missing raw files may be downloaded.
    """

    data_root: Path | None = None
    download: bool = False
    _cache: dict[str, Any] = field(default_factory=dict, repr=False)
    _exact: dict[Problem, ExactPass] = field(default_factory=dict, repr=False)
    _content: dict[str, dict[str, int | None]] = field(default_factory=dict, repr=False)

    def graph(self, settings: DatasetSettings, seed: int, dtype: torch.dtype = torch.float64) -> Graph:
        """Load a data set, by default in float64."""
        key = f"graph {settings.model_dump_json()} {seed} {dtype}"
        if key in self._cache and changed_content(self._content[key], self._cache[key]):
            self._cache.clear()
            self._exact.clear()
        if key not in self._cache:
            self._cache[key] = load_graph(
                settings.name, data_root=self.data_root, download=self.download, seed=seed, **settings.settings
            ).to(dtype=dtype)
        graph: Graph = self._cache[key]
        self._content[key] = graph_content(graph)  # operators included that were built since
        return graph

    @property
    def own_data(self) -> bool:
        """Whether it has a `graph` of its own, which may know other names of data sets."""
        return type(self).graph is not Workspace.graph

    @property
    def own_models(self) -> bool:
        """Whether it has a `problem` of its own, which may know other names of models."""
        return type(self).problem is not Workspace.problem

    def check_dataset(self, settings: DatasetSettings) -> None:
        """Refuse an unknown data set, or an option that it does not have, before anything is loaded.

        What a `graph` of its own knows is its own business.

        Raises:
            InvalidInputError: the message names it, with the known ones.
        """
        if not self.own_data:
            check_dataset(settings)

    def check_model(self, settings: ModelSettings) -> None:
        """Refuse an unknown model, or options that it does not have, before it is built.

        What a `problem` of its own knows is its own business.

        Raises:
            InvalidInputError: the message names it, with the known ones.
        """
        if not self.own_models:
            check_options(settings.name, settings.options)
            check_jump(settings.name, settings.jump)

    def emptied(self) -> Self:
        """Return a workspace with the same data that has made nothing yet, such as for another process.

        A subclass keeps what it has added: its own data sets and models.
        """
        other = copy.copy(self)
        other._cache, other._exact, other._content = {}, {}, {}
        return other

    def partition(self, graph: Graph, method: str, parts: int, seed: int) -> Partition:
        """Partition a graph."""
        key = f"partition {graph.fingerprint} {method} {parts} {seed}"
        if key not in self._cache:
            self._cache[key] = make_partition(graph, method, parts, seed=seed)
        partition: Partition = self._cache[key]
        return partition

    def arranged(self, graph: Graph, partition: Partition) -> tuple[Graph, Partition]:
        """Rename a graph's nodes cluster by cluster; see `lmc_verify.Partition.arrange`."""
        key = f"arranged {graph.fingerprint} {partition.fingerprint}"
        if key not in self._cache:
            self._cache[key] = partition.arrange(graph)
        arranged: tuple[Graph, Partition] = self._cache[key]
        return arranged

    def problem(self, graph: Graph, settings: ModelSettings, seed: int) -> Problem:
        """Build a model for a graph in the graph's precision, in evaluation mode."""
        key = f"problem {graph.fingerprint} {settings.model_dump_json()} {seed}"
        if key not in self._cache:
            check_options(settings.name, settings.options)
            check_jump(settings.name, settings.jump)
            architecture = _architecture(settings, graph)
            model = make_model(
                settings.name,
                *architecture.sizes,
                **architecture.settings,
                seed=seed,
                dtype=graph.dtype,
                **graph_settings(settings.name, graph),
                **settings.options,
            )
            _freeze(model, settings.frozen)
            self._cache[key] = Problem(graph, model.eval(), "bce" if graph.multi_label else "cross_entropy")
        problem: Problem = self._cache[key]
        return problem

    def exact(self, problem: Problem) -> ExactPass:
        """Return the exact pass of a problem."""
        # By identity: two problems may agree in graph and parameters and still differ, say in the activation cut.
        if problem not in self._exact:
            self._exact[problem] = exact_pass(problem)
        return self._exact[problem]


def _architecture(settings: ModelSettings, graph: Graph) -> Architecture:
    """Return the settings that every model has, those of the same name; the graph determines the outer widths."""
    shared = settings.model_dump(include=set(Architecture.setting_names()))
    return Architecture(graph.num_features, settings.width, graph.num_outputs, settings.layers, **shared)


def _freeze(model: LayeredModel, parts: Sequence[str]) -> None:
    """Exclude the parameters of some parts from training.

    Raises:
        InvalidInputError: the model has no such part, or nothing is left to train.
    """
    known: dict[str, nn.Module | None] = {
        "encoder": model.encoder,
        "head": model.head,
        **{f"layer {index}": model.layer(index) for index in range(1, model.num_layers + 1)},
    }
    known = {name: part for name, part in known.items() if part is not None}
    for name in parts:
        part = known.get(name)
        if part is None:
            raise InvalidInputError(f"model.frozen names {name!r}, the model has {', '.join(known)}; name one of these")
        part.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise InvalidInputError(f"model.frozen is {list(parts)}, which leaves nothing to train; leave a part out of it")


def build_design(wanted: DesignSettings, graph: Graph, workspace: Workspace, seed: int) -> BatchDesign:
    """Build a batch design on a graph; the seed is that of partitions.

    Raises:
        InvalidInputError: it does not fit the graph, such as more parts than nodes.
    """
    if wanted.name == "nodes":
        return UniformNodes(graph.num_nodes, wanted.per_batch)
    partition = workspace.partition(graph, wanted.partition, wanted.parts, seed)
    if wanted.name == "clusters":
        return Clusters(partition, wanted.per_batch)
    if wanted.name == "epoch":
        return EpochClusters(partition, wanted.per_batch, wanted.seen)
    return FusedClusters(partition, wanted.per_batch, seed)
