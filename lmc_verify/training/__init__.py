"""Training: plain descent as the theorems have it, one run or many together, and the trainer with its traces."""

from typing import TYPE_CHECKING

from lmc_verify.imports.names import offered

if TYPE_CHECKING:
    from lmc_verify.training.build import build_trainer, graph_of, warm_up
    from lmc_verify.training.callbacks.protocol import Callback, StepRecord
    from lmc_verify.training.callbacks.writers import MLflow, TensorBoard, WeightsAndBiases
    from lmc_verify.training.descent import (
        HUGE,
        ConditionalMoments,
        TrainingRun,
        WeightedBatches,
        conditional_bias,
        conditional_moments,
        weighted_batches,
    )
    from lmc_verify.training.full_batch import full_batch_norms, largest_stable_step
    from lmc_verify.training.settings import RunSettings, TrainerSettings
    from lmc_verify.training.together.norms import MeasuredRun, mean_gradient_norms
    from lmc_verify.training.together.runs import RunSpecification, TrainingRuns, reason_to_run_alone
    from lmc_verify.training.trace import STATUSES, Evaluation, GradientError, Trace
    from lmc_verify.training.trainer import Trainer
else:
    __getattr__, __dir__ = offered(__name__)

__all__ = [
    "HUGE",
    "STATUSES",
    "Callback",
    "ConditionalMoments",
    "Evaluation",
    "GradientError",
    "MLflow",
    "MeasuredRun",
    "RunSettings",
    "RunSpecification",
    "StepRecord",
    "TensorBoard",
    "Trace",
    "Trainer",
    "TrainerSettings",
    "TrainingRun",
    "TrainingRuns",
    "WeightedBatches",
    "WeightsAndBiases",
    "build_trainer",
    "conditional_bias",
    "conditional_moments",
    "full_batch_norms",
    "graph_of",
    "largest_stable_step",
    "mean_gradient_norms",
    "reason_to_run_alone",
    "warm_up",
    "weighted_batches",
]
