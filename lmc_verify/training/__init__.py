"""Training: plain descent as the theorems have it, and the trainer with its traces."""

from lmc_verify.training.build import build_trainer, graph_of, warm_up
from lmc_verify.training.descent import HUGE, TrainingRun, WeightedBatches, conditional_bias, weighted_batches
from lmc_verify.training.settings import RunSettings, TrainerSettings
from lmc_verify.training.trace import STATUSES, Evaluation, GradientError, Trace
from lmc_verify.training.trainer import Trainer

__all__ = [
    "HUGE",
    "STATUSES",
    "Evaluation",
    "GradientError",
    "RunSettings",
    "Trace",
    "Trainer",
    "TrainerSettings",
    "TrainingRun",
    "WeightedBatches",
    "build_trainer",
    "conditional_bias",
    "graph_of",
    "warm_up",
    "weighted_batches",
]
