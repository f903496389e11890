"""Cases whose training comes to rest, on which the claims about stationary points are checked."""

from __future__ import annotations

from typing import Any

import torch

from common.helpers import path_graph
from lmc_verify.cases.case import Case, assemble_case, build_case
from lmc_verify.cases.settings import CaseSettings, TrainingSettings
from lmc_verify.cases.workspace import Workspace
from lmc_verify.estimators import Estimator
from lmc_verify.graphs.designs import Clusters
from lmc_verify.graphs.partition import Partition
from lmc_verify.models import GCN, ConvLayer, GCNConv, LayeredModel
from lmc_verify.models.convs import initialise
from lmc_verify.objective.problem import Problem
from lmc_verify.seeds import torch_generator

WORKSPACE = Workspace()
KARATE: dict[str, Any] = {
    "dataset": {"name": "karate"},
    "model": {"layers": 2, "width": 4, "frozen": ["layer 2"]},
    "design": {"partition": "random", "parts": 6, "per_batch": 1},
    "training": {"step_size": 1.0, "steps": 120},
}


def case_of(base: dict[str, Any], estimator: str | dict[str, Any], **values: Any) -> Case:
    name = {"name": estimator} if isinstance(estimator, str) else estimator
    return build_case(CaseSettings.model_validate(base | {"estimator": name} | values), WORKSPACE)


def small(estimator: Estimator, design: Any = None, *, linear: bool = False, **training: Any) -> Case:
    graph = path_graph(6)
    model: LayeredModel = GCN(graph.num_features, 3, 3, num_layers=2, seed=2, dtype=torch.float64)
    if linear:  # no activation that could die
        model = LayeredModel([ConvLayer(GCNConv(3, 3, dtype=torch.float64)) for _ in range(2)])
        initialise(model, torch_generator(2, "parameters"))
    problem = Problem(graph, model.eval())
    design = design or Clusters(Partition(torch.arange(6) // 2, "pairs"), 1)
    settings = TrainingSettings(**({"steps": 20, "step_size": 0.5} | training))
    return assemble_case(problem, design, estimator, training=settings)
