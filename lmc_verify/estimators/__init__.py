"""Gradient estimators: settings without tensors, pure estimates, explicit writes."""

from lmc_verify.estimators.base import NORMALISERS, Cost, Estimate, Estimator, node_weights
from lmc_verify.estimators.compensated import (
    FM,
    GAS,
    LMC,
    BackwardSGD,
    ClusterGCN,
    Compensated,
    LMCBackwardOnly,
    LMCForwardOnly,
)
from lmc_verify.estimators.engine import estimate_compensated
from lmc_verify.estimators.full_batch import FullBatch
from lmc_verify.estimators.history import AUXILIARY, EMBEDDING, History, HistoryWrite, Refresh
from lmc_verify.estimators.policies import SCORES, Blend, Cut, Drop, Held, Policies
from lmc_verify.estimators.registry import ESTIMATORS, make_estimator, with_beta

__all__ = [
    "AUXILIARY",
    "EMBEDDING",
    "ESTIMATORS",
    "FM",
    "GAS",
    "LMC",
    "NORMALISERS",
    "SCORES",
    "BackwardSGD",
    "Blend",
    "ClusterGCN",
    "Compensated",
    "Cost",
    "Cut",
    "Drop",
    "Estimate",
    "Estimator",
    "FullBatch",
    "Held",
    "History",
    "HistoryWrite",
    "LMCBackwardOnly",
    "LMCForwardOnly",
    "Policies",
    "Refresh",
    "estimate_compensated",
    "make_estimator",
    "node_weights",
    "with_beta",
]
