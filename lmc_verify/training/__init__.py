"""Training: plain descent as the theorems have it, the trainer with its traces, and races to an accuracy."""

from lmc_verify.training.descent import TrainingRun, WeightedBatches, conditional_bias, weighted_batches
from lmc_verify.training.race import (
    RaceProgress,
    build_trainer,
    contestants_of,
    race_record,
    race_runs,
    require_split,
    run_contestant,
    run_race,
    warm_up,
)
from lmc_verify.training.records import (
    REFERENCE,
    Median,
    RaceEntry,
    RaceRecord,
    Reached,
    Standing,
    Target,
)
from lmc_verify.training.settings import ContestantSettings, RaceSettings, RunSettings, TargetSettings, TrainerSettings
from lmc_verify.training.standings import first_reached, judge, target_of
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
    "RaceProgress",
    "RaceRecord",
    "RaceSettings",
    "Reached",
    "RunSettings",
    "Standing",
    "Target",
    "TargetSettings",
    "Trace",
    "Trainer",
    "TrainerSettings",
    "TrainingRun",
    "WeightedBatches",
    "build_trainer",
    "conditional_bias",
    "contestants_of",
    "first_reached",
    "judge",
    "race_record",
    "race_runs",
    "require_split",
    "run_contestant",
    "run_race",
    "target_of",
    "warm_up",
    "weighted_batches",
]
