"""One concrete instance: a small graph, a model, a batch design and an estimator."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from lmc_verify.cases import Case, assemble_case
from lmc_verify.errors import InvalidInputError
from lmc_verify.estimators import Estimator
from lmc_verify.graphs import BatchDesign, Clusters, EpochClusters, FusedClusters, Graph, Partition, UniformNodes
from lmc_verify.models import MODELS, Architecture, LayeredModel, make_model
from lmc_verify.objective import Problem

__all__ = ["Instance", "ModelPlan", "build_design", "describe_design"]


@dataclass(frozen=True)
class ModelPlan:
    """A model of the package by name, with every setting that rebuilds it.

    Attributes:
        name: a name in `lmc_verify.models.MODELS`.
        settings: keyword arguments of the model, without seed and dtype.
    """

    name: str
    settings: Mapping[str, Any]

    @cached_property
    def architecture(self) -> Architecture:
        """What the settings say of that which every model has, with the model's defaults.

        Raises:
            InvalidInputError: a value that does not fit.
            TypeError: a width is missing.
        """
        settings = {**getattr(MODELS[self.name], "defaults", {}), **self.settings}
        known = {field.name for field in fields(Architecture)}
        return Architecture(**{name: value for name, value in settings.items() if name in known})

    def build(self, parameters: Mapping[str, Tensor] | None = None, *, seed: int = 0) -> LayeredModel:
        """Return the model in float64 and evaluation mode, with the given parameters or those of a seed.

        Raises:
            InvalidInputError: the settings do not fit the model, or the parameters do not fit the settings.
        """
        try:
            model = make_model(self.name, **self.settings, seed=seed, dtype=torch.float64).eval()
            if parameters is not None:
                model.load_state_dict(dict(parameters))
        except (RuntimeError, TypeError) as error:
            raise InvalidInputError(
                f"model {self.name} with {dict(self.settings)} cannot be rebuilt: {error}; settings and parameters "
                "must be those of one model of the package"
            ) from error
        return model

    def but(self, **changes: Any) -> ModelPlan:
        """Return the plan with some settings changed."""
        return ModelPlan(self.name, {**self.settings, **changes})


@dataclass(frozen=True, eq=False)
class Instance:
    """Everything of a case but the estimator and its histories, as data.

    Attributes:
        graph: in float64, with class labels.
        model: how the model is built.
        parameters: the model's state dict.
        design: `Clusters`, `UniformNodes`, `EpochClusters` or `FusedClusters`.
    """

    graph: Graph
    model: ModelPlan
    parameters: Mapping[str, Tensor]
    design: BatchDesign

    @cached_property
    def problem(self) -> Problem:
        """The problem; building it checks that everything fits together."""
        return Problem(
            self.graph, self.model.build(self.parameters), "bce" if self.graph.multi_label else "cross_entropy"
        )

    def case(self, estimator: Estimator, histories: str, seed: int) -> Case:
        """Return the case of an estimator on this instance."""
        return assemble_case(self.problem, self.design, estimator, histories=histories, seed=seed)


def describe_design(design: BatchDesign) -> dict[str, Any]:
    """Return a design as plain values, without its partition.

    Raises:
        InvalidInputError: a design that is not one of the package.
    """
    if isinstance(design, UniformNodes):
        return {"name": "nodes", "per_batch": design.size}
    if isinstance(design, Clusters):
        return {"name": "clusters", "per_batch": design.per_batch}
    if isinstance(design, EpochClusters):
        return {"name": "epoch", "per_batch": design.per_batch, "seen": list(design.seen)}
    if isinstance(design, FusedClusters):
        return {"name": "fused", "per_batch": design.per_batch, "seed": design.seed}
    raise InvalidInputError(
        f"the design is a {type(design).__name__}, counterexamples are kept for Clusters, UniformNodes, EpochClusters "
        "and FusedClusters; search with one of them"
    )


def build_design(
    values: Mapping[str, Any], num_nodes: int, assignment: Tensor | None, method: str = "counterexample"
) -> BatchDesign:
    """Undo `describe_design`.

    Args:
        values: the plain values.
        num_nodes: nodes of the graph.
        assignment: cluster of each node, int64 [n]; None for single nodes.
        method: how the partition was made, for the record.

    Raises:
        InvalidInputError: an unknown name, a missing partition, or values that do not fit.
    """
    name, per_batch = values["name"], int(values["per_batch"])
    if name == "nodes":
        return UniformNodes(num_nodes, per_batch)
    if assignment is None:
        raise InvalidInputError(f"design {name!r} draws clusters, and no partition is given")
    partition = Partition(assignment, method)
    if name == "clusters":
        return Clusters(partition, per_batch)
    if name == "epoch":
        return EpochClusters(partition, per_batch, tuple(values.get("seen", ())))
    if name == "fused":
        return FusedClusters(partition, per_batch, int(values.get("seed", 0)))
    raise InvalidInputError(f"unknown design {name!r}; it must be clusters, epoch, fused or nodes")
