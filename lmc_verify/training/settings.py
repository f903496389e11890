"""Settings of training runs and of races between estimators: plain data, checked when they are read."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from lmc_verify.cases import (
    MOST_COUNT,
    DatasetSettings,
    DesignSettings,
    EstimatorSettings,
    ModelSettings,
    Seed,
    Settings,
)
from lmc_verify.errors import validated
from lmc_verify.training.optimisers import check_optimiser, check_schedule

__all__ = ["Dataset", "EstimatorTable", "RunSettings", "TrainerSettings", "as_table"]


def as_table(value: Any) -> Any:
    """Return a name as a table of settings, and anything else as it is."""
    return {"name": value} if isinstance(value, str) else value


Dataset = Annotated[DatasetSettings, BeforeValidator(as_table)]

EstimatorTable = Annotated[EstimatorSettings, BeforeValidator(as_table)]


class TrainerSettings(Settings):
    """How a model is trained. An epoch is the number of steps in which a node is met once on average.

    Attributes:
        optimiser: ``"sgd"``, ``"adam"``, or any class of torch.optim that needs no closure.
        learning_rate: step size; see `schedule`.
        optimiser_options: further arguments of the optimiser, such as ``{"weight_decay": 5e-4}``.
        schedule: ``"none"``, ``"step"``, ``"cosine"``, a class of torch.optim.lr_scheduler, or ``"theorem-3"``: the
            constant ``learning_rate * N^(-2/3)`` for a run of N steps.
        schedule_options: further arguments of the schedule, counted in `unit`.
        beta_schedule: whether the estimator's beta is kept or, for a run of N steps, multiplied by ``N^(-2/3)``.
        epochs: length of the run; 100 where neither it nor `steps` is given.
        steps: length of the run in steps, instead of `epochs`.
        unit: ``"epoch"`` or ``"step"``: what the schedule, `evaluate_every` and `trace_gradient_every` count in.
        evaluate_every: how often the whole graph is evaluated. Also before the first step and after the last.
        refresh_histories: whether every evaluation, that before the first step included, rewrites the histories of H of
            all nodes with their exact values, as the code of LMC's authors does; those of V stay what batches wrote.
        patience: evaluations without a better validation accuracy after which the run stops; None never stops early.
        trace_gradient_every: how often the gradient's error is measured; 0 for never. Also before the first step.
        gradient_batches: a design of no more batches than this is enumerated for that; of a larger one, as many
            independent batches are drawn.
    """

    optimiser: str = "adam"
    learning_rate: float = Field(0.01, gt=0, allow_inf_nan=False)
    optimiser_options: dict[str, Any] = Field(default_factory=dict)
    schedule: str = "none"
    schedule_options: dict[str, Any] = Field(default_factory=dict)
    beta_schedule: Literal["constant", "decaying"] = "constant"
    epochs: int | None = Field(None, ge=1, le=MOST_COUNT)
    steps: int | None = Field(None, ge=1, le=MOST_COUNT)
    unit: Literal["epoch", "step"] = "epoch"
    evaluate_every: int = Field(1, ge=1, le=MOST_COUNT)
    refresh_histories: bool = False
    patience: int | None = Field(None, ge=1, le=MOST_COUNT)
    trace_gradient_every: int = Field(0, ge=0, le=MOST_COUNT)
    gradient_batches: int = Field(64, ge=2, le=MOST_COUNT)

    @model_validator(mode="before")
    @classmethod
    def _default_length(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("epochs") is None and values.get("steps") is None:
            return {**values, "epochs": 100}
        return values

    @model_validator(mode="after")
    def _check(self) -> TrainerSettings:
        if self.epochs is not None and self.steps is not None:
            raise ValueError(
                f"epochs is {self.epochs} and steps is {self.steps}: the length of a run is given once; leave one out"
            )
        check_optimiser(self.optimiser, self.optimiser_options)
        check_schedule(self.schedule, self.schedule_options)
        return self

    def changed(self, **changes: Any) -> TrainerSettings:
        """Return the settings with some of them changed; a new length replaces the old one, in either unit.

        Raises:
            InvalidInputError: settings that do not fit.
        """
        values = self.model_dump()
        if changes.get("epochs") is not None or changes.get("steps") is not None:
            values |= {"epochs": None, "steps": None}
        return validated(type(self), values | changes, "the trainer's settings do not fit")


class RunSettings(Settings):
    """One training run by names and numbers.

    Attributes:
        dataset: the data; also from `data_seed`.
        model: the model; its initial parameters come from `seed`.
        estimator: by name, with its settings.
        design: the batch design; partitions come from `data_seed`.
        trainer: how it is trained.
        seed: of initial parameters, batches and dropout.
        data_seed: of generated data, random splits and partitions.
        dtype: precision of the run.
    """

    dataset: Dataset = DatasetSettings(name="digits")
    model: ModelSettings = ModelSettings()
    estimator: EstimatorTable = EstimatorSettings(name="lmc")
    design: DesignSettings = DesignSettings()
    trainer: TrainerSettings = TrainerSettings()
    seed: Seed = 0
    data_seed: Seed = 0
    dtype: Literal["float32", "float64"] = "float32"

    @classmethod
    def read(cls, values: Any) -> RunSettings:
        """Read the settings of a run from plain values.

        Raises:
            InvalidInputError: settings that do not fit; the message names each.
        """
        return validated(cls, values, "the run's settings do not fit")
