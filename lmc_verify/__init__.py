"""Verify and benchmark the convergence claims of graph neural network training.

A claim is checked on a case (graph, model, estimator, batch design) by an oracle or a test with a stated error level,
gives a verdict with evidence, and the verdicts of a suite become a report.
"""

from lmc_verify._version import __version__
from lmc_verify.batches import Batch, BatchDesign, Clusters, EpochClusters, FusedClusters, UniformNodes
from lmc_verify.bounds import batch_bound, range_bound
from lmc_verify.claims import CLAIMS, AssumptionCheck, Evidence, Outcome, Series, Verdict, check_claim
from lmc_verify.datasets import dataset_names, load_data, load_graph
from lmc_verify.errors import (
    InvalidInputError,
    LmcVerifyError,
    OutputError,
    RecordsError,
    UnknownNameError,
)
from lmc_verify.estimators import (
    FM,
    GAS,
    LMC,
    NORMALISERS,
    BackwardSGD,
    ClusterGCN,
    Estimate,
    Estimator,
    FullBatch,
    History,
    LMCBackwardOnly,
    LMCForwardOnly,
    make_estimator,
)
from lmc_verify.exact import ExactPass, exact_gradient, exact_pass
from lmc_verify.fixed_point import FixedPointPass, fixed_point_pass
from lmc_verify.graph import Block, Graph
from lmc_verify.models import (
    APPNP,
    GAT,
    GCN,
    GCNII,
    GIN,
    PNA,
    SAGE,
    Conv,
    ConvLayer,
    Dropout,
    Layer,
    LayeredModel,
    PyGConv,
    RecurrentGNN,
    make_model,
)
from lmc_verify.partition import Partition, make_partition
from lmc_verify.problem import Gradient, Problem
from lmc_verify.settings import SamplingSettings, TrainingSettings
from lmc_verify.sparse import spmm
from lmc_verify.training import (
    RaceRecord,
    RaceSettings,
    Trace,
    Trainer,
    TrainerSettings,
    TrainingRun,
    conditional_bias,
)

__all__ = [
    "APPNP",
    "CLAIMS",
    "FM",
    "GAS",
    "GAT",
    "GCN",
    "GCNII",
    "GIN",
    "LMC",
    "NORMALISERS",
    "PNA",
    "SAGE",
    "AssumptionCheck",
    "BackwardSGD",
    "Batch",
    "BatchDesign",
    "Block",
    "ClusterGCN",
    "Clusters",
    "Conv",
    "ConvLayer",
    "Dropout",
    "EpochClusters",
    "Estimate",
    "Estimator",
    "Evidence",
    "ExactPass",
    "FixedPointPass",
    "FullBatch",
    "FusedClusters",
    "Gradient",
    "Graph",
    "History",
    "InvalidInputError",
    "LMCBackwardOnly",
    "LMCForwardOnly",
    "Layer",
    "LayeredModel",
    "LmcVerifyError",
    "Outcome",
    "OutputError",
    "Partition",
    "Problem",
    "PyGConv",
    "RaceRecord",
    "RaceSettings",
    "RecordsError",
    "RecurrentGNN",
    "SamplingSettings",
    "Series",
    "Trace",
    "Trainer",
    "TrainerSettings",
    "TrainingRun",
    "TrainingSettings",
    "UniformNodes",
    "UnknownNameError",
    "Verdict",
    "__version__",
    "batch_bound",
    "check_claim",
    "conditional_bias",
    "dataset_names",
    "exact_gradient",
    "exact_pass",
    "fixed_point_pass",
    "load_data",
    "load_graph",
    "make_estimator",
    "make_model",
    "make_partition",
    "range_bound",
    "spmm",
]
