"""Gradient estimators: settings without tensors, pure estimates, explicit writes."""

from typing import TYPE_CHECKING

from lmc_verify.imports.names import offered

if TYPE_CHECKING:
    from lmc_verify.estimators.base import (
        Cost,
        Estimate,
        Estimator,
        Sampling,
        batch_distribution,
        node_weights,
        unwrapped,
    )
    from lmc_verify.estimators.base import batch_distribution as batch_law  # its former name, which plug-ins import
    from lmc_verify.estimators.compensated.members import (
        FM,
        GAS,
        LMC,
        BackwardSGD,
        ClusterGCN,
        Compensated,
        FMLocal,
        LMCBackwardOnly,
        LMCForwardOnly,
        estimate_compensated,
    )
    from lmc_verify.estimators.compensated.policies import SCORES, Blend, Cut, Drop, Held, Momentum, Policies
    from lmc_verify.estimators.compensated.shipped import SHIPPED
    from lmc_verify.estimators.contract import ContractCheck, checked_estimate, made_state
    from lmc_verify.estimators.foreign import WrappedStep, wrap_step
    from lmc_verify.estimators.full_batch import FullBatch
    from lmc_verify.estimators.history import (
        AUXILIARY,
        EMBEDDING,
        History,
        HistoryWrite,
        OtherWrite,
        Refresh,
        VectorWrite,
    )
    from lmc_verify.estimators.properties import EstimatorProperties, exact_histories, properties_of
    from lmc_verify.estimators.reading import ASPECTS, require_reading, whole_batch
    from lmc_verify.estimators.registry import CATALOGUE, ESTIMATORS, EstimatorInfo, make_estimator, with_beta
    from lmc_verify.estimators.samplers.importance import ImportanceVRGCN
    from lmc_verify.estimators.samplers.laws import LayerLaw
    from lmc_verify.estimators.samplers.layerwise import ASGCN, LADIES, FastGCN
    from lmc_verify.estimators.samplers.mvs import MVS
    from lmc_verify.estimators.samplers.neighbour import LABOR, VRGCN, NeighbourSampling
    from lmc_verify.estimators.samplers.published import FastGCNPublished, LADIESPublished
    from lmc_verify.estimators.samplers.saint import GraphSAINTEdge, GraphSAINTNode, GraphSAINTWalk
    from lmc_verify.estimators.samplers.sampled import Sampled
    from lmc_verify.estimators.samplers.sampled_design import SampledDesign
    from lmc_verify.estimators.shadow import Shadow
    from lmc_verify.estimators.top import TOP
    from lmc_verify.estimators.top_krylov import TOPKrylov
    from lmc_verify.estimators.weighting import LOSS_WEIGHTINGS

else:
    __getattr__, __dir__ = offered(__name__)

__all__ = [
    "ASGCN",
    "ASPECTS",
    "AUXILIARY",
    "CATALOGUE",
    "EMBEDDING",
    "ESTIMATORS",
    "FM",
    "GAS",
    "LABOR",
    "LADIES",
    "LMC",
    "LOSS_WEIGHTINGS",
    "MVS",
    "SCORES",
    "SHIPPED",
    "TOP",
    "VRGCN",
    "BackwardSGD",
    "Blend",
    "ClusterGCN",
    "Compensated",
    "ContractCheck",
    "Cost",
    "Cut",
    "Drop",
    "Estimate",
    "Estimator",
    "EstimatorInfo",
    "EstimatorProperties",
    "FMLocal",
    "FastGCN",
    "FastGCNPublished",
    "FullBatch",
    "GraphSAINTEdge",
    "GraphSAINTNode",
    "GraphSAINTWalk",
    "Held",
    "History",
    "HistoryWrite",
    "ImportanceVRGCN",
    "LADIESPublished",
    "LMCBackwardOnly",
    "LMCForwardOnly",
    "LayerLaw",
    "Momentum",
    "NeighbourSampling",
    "OtherWrite",
    "Policies",
    "Refresh",
    "Sampled",
    "SampledDesign",
    "Sampling",
    "Shadow",
    "TOPKrylov",
    "VectorWrite",
    "WrappedStep",
    "batch_distribution",
    "batch_law",
    "checked_estimate",
    "estimate_compensated",
    "exact_histories",
    "made_state",
    "make_estimator",
    "node_weights",
    "properties_of",
    "require_reading",
    "unwrapped",
    "whole_batch",
    "with_beta",
    "wrap_step",
]
