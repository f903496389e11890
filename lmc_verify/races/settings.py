"""Settings of a race: its contestants, its target and its training."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from lmc_verify.cases import (
    DatasetSettings,
    DesignSettings,
    EstimatorSettings,
    ModelSettings,
    Seed,
    Settings,
    settings_tree,
)
from lmc_verify.errors import InvalidInputError, suggestion, validated
from lmc_verify.seeds import MOST_SEED
from lmc_verify.training.settings import Dataset, EstimatorTable, RunSettings, TrainerSettings, as_table

__all__ = ["ContestantSettings", "RaceSettings", "TargetSettings"]


def race_settings(
    file: Path | None,
    estimators: list[str],
    dataset: str | None,
    seeds: int | None,
    target: float | None,
    assignments: list[str],
) -> RaceSettings:
    """Return the settings of a race: the file's, then the options', then the assignments'.

    ``design`` and ``estimator`` are no settings of a race, but of each contestant: ``design.parts=40`` among the
    assignments is for all contestants without a design of their own.

    Raises:
        InvalidInputError: a file that cannot be read, or settings that do not fit.
    """
    tree: dict[str, Any] = {}
    if file is not None:
        try:
            tree = tomllib.loads(file.read_text(encoding="utf-8"))
        except OSError as error:
            raise InvalidInputError(f"cannot read {file}: {error.strerror}; give the path of a TOML file") from error
        except ValueError as error:  # also UnicodeDecodeError
            raise InvalidInputError(f"{file} is not TOML: {error}") from error
    changes = settings_tree({}, assignments)
    _check_names(changes)
    for name, value in (("dataset", dataset), ("seeds", None if seeds is None else list(range(seeds)))):
        if value is not None:
            tree[name] = value
    if target is not None:
        tree["target"] = {**tree.get("target", {}), "accuracy": target}
    if estimators:
        tree["contestants"] = list(estimators)
    if {"epochs", "steps"} & set(changes.get("trainer", {})):  # a length replaces the file's, in either unit
        tree["trainer"] = {
            key: value for key, value in tree.get("trainer", {}).items() if key not in ("epochs", "steps")
        }
    tree = _merged(tree, changes)
    design = tree.pop("design", None)
    contestants = [{"estimator": item} if isinstance(item, str) else item for item in tree.get("contestants", [])]
    if not contestants:
        raise InvalidInputError(
            "the race has no contestants; give --estimator once for each, or a file that lists them"
        )
    tree["contestants"] = [{"design": design or {}, **item} for item in contestants]
    return RaceSettings.read(tree)


def _check_names(changes: Mapping[str, Any]) -> None:
    known = {*RaceSettings.model_fields, "design"}
    for name in changes:
        if name == "estimator":
            raise InvalidInputError(
                "the race's settings do not fit: estimator: each contestant has its own; give --estimator once for "
                "each, and their settings in a file"
            )
        if name not in known:
            raise InvalidInputError(
                f"the race's settings do not fit: {name}: unknown setting; {suggestion(name, known)}"
            )


def _merged(tree: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    out = dict(tree)
    for key, value in changes.items():
        old = {"name": out[key]} if key == "dataset" and isinstance(out.get(key), str) else out.get(key)
        out[key] = _merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return out


class ContestantSettings(Settings):
    """One contestant of a race: an estimator with its batch design.

    Attributes:
        estimator: by name, with its settings.
        design: its batch design. Full-batch training looks at no batch, and takes one step per epoch.
        label: what tables and pictures call it; by default the estimator with its settings.
        trainer: settings in which it departs from the race's, such as ``{"learning_rate": 0.05}``.
    """

    estimator: EstimatorTable
    design: DesignSettings = DesignSettings()
    label: str = ""
    trainer: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _default_label(cls, values: Any) -> Any:
        if isinstance(values, str):
            values = {"estimator": values}
        if isinstance(values, dict) and not values.get("label") and "estimator" in values:
            named = as_table(values["estimator"])
            if isinstance(named, dict) and isinstance(named.get("name"), str):
                named = EstimatorSettings.model_validate(named)
            if isinstance(named, EstimatorSettings):  # anything else does not fit, which the field says
                return {**values, "label": named.describe()}
        return values


class TargetSettings(Settings):
    """The accuracy that contestants race to.

    Attributes:
        accuracy: the target, in [0, 1]; None for the best accuracy of full-batch training on the same data, model and
            budget: the median over the race's seeds.
        margin: subtracted from the target.
        split: whose accuracy it is.
    """

    accuracy: float | None = Field(None, ge=0, le=1)
    margin: float = Field(0.0, ge=0, le=1)
    split: Literal["validation", "test"] = "validation"


class RaceSettings(Settings):
    """A race: contestants on one data set and model, each trained once per seed.

    Attributes:
        dataset: the data; also from `data_seed`, which is the same for all runs.
        model: the model; its initial parameters come from the run's seed and are the same for all contestants.
        contestants: at least one, with distinct labels.
        trainer: how all are trained.
        target: the accuracy they race to.
        seeds: one run of every contestant for each.
        baseline: label of the contestant that the last epochs of all others are compared with, or None.
        data_seed: of generated data, random splits and partitions.
        dtype: precision of the runs.
        alpha: largest probability that an interval over seeds misses the median, and that any comparison with the
            baseline is decided wrongly.
        title: heading of tables and pictures.
        figure: which picture it is for, in the paper's terms: ``"convergence"`` (figure 3), ``"time-to-accuracy"`` (4),
            ``"gradient-errors"`` (5), ``"batch-sizes"`` (6), ``"ablation"`` (7), or None.
    """

    dataset: Dataset = DatasetSettings(name="digits")
    model: ModelSettings = ModelSettings()
    contestants: tuple[ContestantSettings, ...] = Field(min_length=1)
    trainer: TrainerSettings = TrainerSettings()
    target: TargetSettings = TargetSettings()
    seeds: tuple[Annotated[int, Field(le=MOST_SEED)], ...] = Field((0, 1, 2, 3, 4), min_length=1)
    baseline: str | None = None
    data_seed: Seed = 0
    dtype: Literal["float32", "float64"] = "float32"
    alpha: float = Field(0.1, gt=0, lt=1)
    title: str = ""
    figure: Literal["convergence", "time-to-accuracy", "gradient-errors", "batch-sizes", "ablation"] | None = None

    @field_validator("seeds")
    @classmethod
    def _check_seeds(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if min(value) < 0 or len(set(value)) != len(value):
            raise ValueError(f"seeds are {list(value)}, they must be distinct and not negative")
        return value

    @model_validator(mode="after")
    def _check(self) -> RaceSettings:
        labels = [item.label for item in self.contestants]
        twice = sorted({label for label in labels if labels.count(label) > 1})
        if twice:
            raise ValueError(f"several contestants are called {twice[0]!r}; give each a label of its own")
        if self.baseline is not None and self.baseline not in labels:
            raise ValueError(
                f"baseline is {self.baseline!r}, no contestant is called so; there are {', '.join(labels)}"
            )
        if self.baseline is not None and len(labels) == 1:
            raise ValueError(f"baseline is {self.baseline!r}, and there is no other contestant to compare; add one")
        for item in self.contestants:
            self.trainer_of(item)
        return self

    def trainer_of(self, contestant: ContestantSettings) -> TrainerSettings:
        """Return the settings that a contestant is trained with.

        Raises:
            InvalidInputError: its own settings do not fit.
        """
        return self.trainer.changed(**contestant.trainer)

    def run_of(self, contestant: ContestantSettings, seed: int) -> RunSettings:
        """Return the settings of one contestant's run."""
        return RunSettings(
            dataset=self.dataset,
            model=self.model,
            estimator=contestant.estimator,
            design=contestant.design,
            trainer=self.trainer_of(contestant),
            seed=seed,
            data_seed=self.data_seed,
            dtype=self.dtype,
        )

    @classmethod
    def read(cls, values: Any) -> RaceSettings:
        """Read the settings of a race from plain values, such as a TOML table.

        Raises:
            InvalidInputError: settings that do not fit; the message names each.
        """
        return validated(cls, values, "the race's settings do not fit")
