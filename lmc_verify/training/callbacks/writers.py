"""Callbacks that hand a run's numbers to the user's TensorBoard writer, Weights & Biases run or MLflow.

None of these libraries is imported: what is given is asked for the one method that is called.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from lmc_verify.errors import InvalidInputError, require_whole
from lmc_verify.training.callbacks.protocol import Callback, StepRecord
from lmc_verify.training.trace import Evaluation, GradientError, Trace

__all__ = ["MLflow", "TensorBoard", "WeightsAndBiases"]


class _Writer(Callback):
    """Turns events into named numbers of a step, and gives them to `write`.

    Names are ``step/loss``, ``step/learning_rate``, ``evaluation/NAME`` with the columns of an `Evaluation`, and
    ``gradient/relative_error/PART``, ``gradient/relative_bias/PART``. What was not measured is left out.
    """

    needs, example = "", ""

    def __init__(self, target: Any, *, every: int = 1) -> None:
        if not callable(getattr(target, self.needs, None)):
            raise InvalidInputError(
                f"{type(self).__name__} takes an object with {self.needs}(), such as {self.example}; "
                f"got {type(target).__name__}"
            )
        require_whole("every", every)
        if every < 0:
            raise InvalidInputError(f"every is {every}; give 1 or more, or 0 to leave single steps out")
        self.target, self.every = target, every

    def write(self, values: Mapping[str, float], step: int) -> None:
        """Hand over numbers of a step."""
        raise NotImplementedError

    def on_step(self, step: StepRecord) -> None:
        """Write loss and learning rate of every `every`-th step."""
        if self.every and step.step % self.every == 0:
            self.write({"step/loss": step.loss, "step/learning_rate": step.learning_rate}, step.step)

    def on_evaluation(self, evaluation: Evaluation) -> None:
        """Write an evaluation."""
        values = {key: value for key, value in asdict(evaluation).items() if key != "step" and value is not None}
        self.write({f"evaluation/{key}": value for key, value in values.items()}, evaluation.step)

    def on_gradient_error(self, measured: GradientError) -> None:
        """Write the error and the bias of the gradient, relative to its norm, for each part of the model."""
        kinds = {"relative_error": measured.relative_error, "relative_bias": measured.relative_bias}
        values = {f"gradient/{kind}/{part}": value for kind, parts in kinds.items() for part, value in parts.items()}
        self.write(values, measured.step)


class TensorBoard(_Writer):
    """Writes a run to a TensorBoard writer, which is flushed at the end and stays open.

    Args:
        target: such as ``torch.utils.tensorboard.SummaryWriter()``; its ``add_scalar`` is called.
        every: steps between losses of single steps; 0 for none.

    Raises:
        InvalidInputError: an object of another kind, or `every` below 0.
    """

    needs, example = "add_scalar", "torch.utils.tensorboard.SummaryWriter()"

    def write(self, values: Mapping[str, float], step: int) -> None:
        """Add every number as a scalar."""
        for name, value in values.items():
            self.target.add_scalar(name, value, step)

    def on_end(self, trace: Trace) -> None:
        """Flush the writer, if it can be."""
        flush = getattr(self.target, "flush", None)
        if callable(flush):
            flush()


class WeightsAndBiases(_Writer):
    """Logs a run to a Weights & Biases run, which stays open.

    Args:
        target: what ``wandb.init()`` returns; its ``log`` is called.
        every: steps between losses of single steps; 0 for none.

    Raises:
        InvalidInputError: an object of another kind, or `every` below 0.
    """

    needs, example = "log", "what wandb.init() returns"

    def write(self, values: Mapping[str, float], step: int) -> None:
        """Log the numbers of a step; those of later calls with the same step join them."""
        self.target.log(dict(values), step=step)


class MLflow(_Writer):
    """Logs a run to MLflow's active run, or to any object with its ``log_metrics``.

    Args:
        target: the module ``mlflow``; its ``log_metrics`` is called.
        every: steps between losses of single steps; 0 for none.

    Raises:
        InvalidInputError: an object of another kind, or `every` below 0.
    """

    needs, example = "log_metrics", "the module mlflow"

    def write(self, values: Mapping[str, float], step: int) -> None:
        """Log the numbers of a step as metrics."""
        self.target.log_metrics({name: float(value) for name, value in values.items()}, step=step)
