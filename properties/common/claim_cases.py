"""Small cases, by their settings, on which claims of the exact tier are checked."""

from __future__ import annotations

from typing import Any

from lmc_verify.cases.case import Case, build_case
from lmc_verify.cases.settings import CaseSettings
from lmc_verify.cases.workspace import Workspace

KARATE = {"name": "karate"}
DIRECTED = {
    "name": "directed",
    "num_nodes": 40,
    "num_edges": 220,
    "num_classes": 3,
    "num_features": 5,
    "num_self_loops": 3,
    "num_isolated": 2,
}
MODELS: dict[str, dict[str, Any]] = {
    "gcn pre": {"name": "gcn", "width": 12},
    "gcn post": {"name": "gcn", "width": 12, "activation_cut": "post"},
    "sage": {"name": "sage", "width": 12, "encoder": True, "head": True, "norm": "layer", "residual": True},
    "gat": {"name": "gat", "width": 8},
}
ESTIMATORS: dict[str, dict[str, Any]] = {
    "backward-sgd": {"name": "backward-sgd"},
    "lmc": {"name": "lmc"},
    "lmc beta": {"name": "lmc", "beta": 0.4},
    "gas": {"name": "gas"},
    "fm": {"name": "fm"},
    "cluster-gcn": {"name": "cluster-gcn"},
    "cluster-gcn cut": {"name": "cluster-gcn", "renormalise": False},
    "lmc-forward-only": {"name": "lmc-forward-only"},
    "lmc-backward-only": {"name": "lmc-backward-only"},
}
WORKSPACE = Workspace()


def case_of(estimator: str | dict[str, Any] = "backward-sgd", **settings: Any) -> Case:
    if isinstance(estimator, str):
        estimator = ESTIMATORS[estimator]
    values = {"dataset": DIRECTED, "model": MODELS["gcn pre"], "design": {"parts": 4, "per_batch": 2}} | settings
    return build_case(CaseSettings.model_validate(values | {"estimator": estimator}), WORKSPACE)
