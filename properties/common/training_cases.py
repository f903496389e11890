"""Cases with short training runs, along which the claims behind Theorem 2's bound are checked."""

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
from lmc_verify.models import GCN, LayeredModel
from lmc_verify.objective.problem import Problem

WORKSPACE = Workspace()


def small(estimator: Estimator, model: LayeredModel | None = None, per_batch: int = 1, **training: Any) -> Case:
    graph = path_graph(8)
    model = model or GCN(graph.num_features, 3, 3, num_layers=2, seed=2, dtype=torch.float64)
    design = Clusters(Partition(torch.arange(8) // 2, "pairs"), per_batch)
    settings = TrainingSettings(**({"steps": 6, "step_size": 0.3} | training))
    return assemble_case(Problem(graph, model.eval()), design, estimator, training=settings)


def karate(estimator: dict[str, Any], **values: Any) -> Case:
    given_values = {
        "dataset": {"name": "karate"},
        "model": {"layers": 2, "width": 4},
        "design": {"parts": 6, "per_batch": 2},
        "estimator": estimator,
        "training": {"steps": 20, "step_size": 0.5},
    }
    return build_case(CaseSettings.model_validate(given_values | values), WORKSPACE)
