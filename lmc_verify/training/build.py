"""From settings to a trainer that is ready to run, to its graph, and to one step that warms both up."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from lmc_verify.cases import DatasetSettings, Workspace, build_design, build_estimator
from lmc_verify.graphs import Clusters, EpochClusters, FusedClusters, Graph
from lmc_verify.training.settings import RunSettings
from lmc_verify.training.trainer import Trainer

__all__ = ["build_trainer", "graph_of", "warm_up"]


def build_trainer(
    settings: RunSettings, workspace: Workspace | None = None, *, description: dict[str, Any] | None = None
) -> Trainer:
    """Build the trainer of one run from its settings.

    Nodes are renamed cluster by cluster where the design has clusters, because steps are faster then; traces do not
    name nodes.

    Raises:
        InvalidInputError: settings that do not fit; the message names them.
    """
    workspace = workspace or Workspace()
    graph = graph_of(settings.dataset, settings.data_seed, settings.dtype, workspace)
    estimator = build_estimator(settings.estimator)
    design = build_design(settings.design, graph, workspace, settings.data_seed)
    if isinstance(design, (Clusters, EpochClusters, FusedClusters)):
        graph, partition = workspace.arranged(graph, design.partition)
        design = replace(design, partition=partition)
    return Trainer(
        workspace.problem(graph, settings.model, settings.seed),
        estimator,
        design,
        settings.trainer,
        seed=settings.seed,
        description={
            "dataset": settings.dataset.describe(),
            "model": settings.model.model_dump(mode="json"),
            "data_seed": settings.data_seed,
            **(description or {}),
        },
    )


def graph_of(dataset: DatasetSettings, seed: int, dtype: str, workspace: Workspace) -> Graph:
    """Return the graph of a training run, in the run's precision.

    Raises:
        InvalidInputError: an unknown data set, or an option that it does not have.
    """
    workspace.check_dataset(dataset)
    return workspace.graph(dataset, seed, getattr(torch, dtype))


def warm_up(settings: RunSettings, workspace: Workspace) -> None:
    """Take one step that counts nowhere: graphs build their operators on first use, and libraries load."""
    trainer = settings.trainer.changed(steps=1, trace_gradient_every=0)
    build_trainer(settings, workspace)  # the settings themselves, schedule included
    build_trainer(settings.model_copy(update={"trainer": trainer}), workspace).run()
