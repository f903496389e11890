"""Training: plain descent as the theorems have it, the trainer with its traces, and races to an accuracy."""

from lmc_verify.training.descent import TrainingRun, WeightedBatches, conditional_bias, weighted_batches
from lmc_verify.training.records import (
    REFERENCE,
    Median,
    RaceEntry,
    RaceRecord,
    Reached,
    Standing,
    Target,
)
from lmc_verify.training.settings import ContestantSettings, RaceSettings, TargetSettings, TrainerSettings
from lmc_verify.training.trace import STATUSES, Evaluation, GradientError, Trace
from lmc_verify.training.trainer import Trainer

__all__ = [
    "REFERENCE",
    "STATUSES",
    "ContestantSettings",
    "Evaluation",
    "GradientError",
    "Median",
    "RaceEntry",
    "RaceRecord",
    "RaceSettings",
    "Reached",
    "Standing",
    "Target",
    "TargetSettings",
    "Trace",
    "Trainer",
    "TrainerSettings",
    "TrainingRun",
    "WeightedBatches",
    "conditional_bias",
    "weighted_batches",
]
