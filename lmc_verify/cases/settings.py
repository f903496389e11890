"""Settings of a case: plain data, from a TOML table or a command line, checked when they are read."""

from __future__ import annotations

import json
import reprlib
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from lmc_verify.errors import InvalidInputError
from lmc_verify.estimators.registry import current_settings, departures
from lmc_verify.seeds import MOST_SEED

__all__ = [
    "MOST_COUNT",
    "MOST_SWEEPS",
    "CaseSettings",
    "DatasetSettings",
    "DesignSettings",
    "EstimatorSettings",
    "ModelSettings",
    "SamplingSettings",
    "Seed",
    "Settings",
    "TrainingSettings",
    "known_histories",
]


MOST_COUNT = 2**31 - 1
"""The largest number of anything: of clusters, batches, draws, steps."""
MOST_SWEEPS = 10_000
"""The most sweeps that histories may come from: they are at their limit after twice as many as the model has layers."""

Count = Annotated[int, Field(ge=1, le=MOST_COUNT)]
Seed = Annotated[int, Field(ge=0, le=MOST_SEED)]
"""A root seed."""


def known_histories(value: str) -> str:
    """Return the value if it says what histories hold: ``"exact"``, ``"zero"`` or ``"sweeps:K"``.

    Raises:
        InvalidInputError: it says something else.
    """
    head, _, count = value.partition(":")
    if value in ("exact", "zero"):
        return value
    # Digits are counted before they are read: a number may have millions of them.
    if head == "sweeps" and count.isascii() and count.isdigit() and len(count) <= 9 and int(count) <= MOST_SWEEPS:
        return value
    raise InvalidInputError(
        f"histories is {reprlib.repr(value)}, it must be 'exact', 'zero' or 'sweeps:K' with a whole number K of at "
        f"most {MOST_SWEEPS:,}"
    )


class Settings(BaseModel):
    """Settings that are fixed once made, and refuse what they do not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class _Named(BaseModel):
    """A name with free settings, checked by the registry that knows the name."""

    model_config = ConfigDict(frozen=True, extra="allow")

    name: str

    @property
    def settings(self) -> dict[str, Any]:
        """Everything but the name."""
        return dict(self.__pydantic_extra__ or {})

    def describe(self) -> str:
        """Return name and settings on one line."""
        return " ".join([self.name, *(f"{key}={value}" for key, value in sorted(self.settings.items()))])


class DatasetSettings(_Named):
    """A data set by name, with its options.

    Attributes:
        name: of the data set, such as ``"karate"``; see ``lmc-verify list datasets``.
    """


class EstimatorSettings(_Named):
    """An estimator by name, with its settings; those that are given under a former name have the present one.

    Attributes:
        name: of the estimator, such as ``"lmc"``; see ``lmc-verify list estimators``.
    """

    @model_validator(mode="before")
    @classmethod
    def _use_present_names(cls, values: Any) -> Any:
        if not isinstance(values, dict) or not isinstance(values.get("name"), str):
            return values  # which pydantic refuses, or a model that has been through this
        settings = {key: value for key, value in values.items() if key != "name"}
        return {"name": values["name"], **current_settings(values["name"], settings)}

    @property
    def identity(self) -> EstimatorSettings:
        """The same without the settings that are written out with their default value: equal for equal estimators.

        Raises:
            PluginError: the estimator is a plug-in's that cannot be used.
        """
        return EstimatorSettings(name=self.name, **departures(self.name, self.settings))


class ModelSettings(Settings):
    """A model by name, with widths and depth.

    Attributes:
        name: of the model, such as ``"gcn"``; see ``lmc-verify list models``.
        layers: message-passing layers.
        width: of the hidden layers.
        activation_cut: ``"pre"``: histories keep what the next activation reads, so that LMC can be exact; ``"post"``:
            they keep its result.
        activation: between layers. ``"tanh"`` and ``"softplus"`` are smooth, as Theorem 2 assumes.
        encoder: add a linear map with the activation before the layers.
        head: add a linear map behind the layers.
        norm: ``"layer"`` for node-wise layer normalisation before each activation.
        residual: add a hidden layer's input to its output where the widths agree.
        jump: jumping knowledge: the head reads every layer's embedding.
        dropout: probability with which training runs drop a unit; claims are checked without dropout.
        options: what only this model has, such as ``heads`` of GAT or ``alpha`` of GCNII and APPNP.
        frozen: parts whose parameters are not trained, such as ``"layer 2"``, ``"encoder"`` or ``"head"``.
    """

    name: str = "gcn"
    layers: int = Field(3, ge=1, le=64)
    width: Count = 16
    activation_cut: Literal["pre", "post"] = "pre"
    activation: Literal["relu", "tanh", "softplus"] = "relu"
    encoder: bool = False
    head: bool = False
    norm: Literal["layer"] | None = None
    residual: bool = False
    jump: Literal["concat", "max"] | None = None
    dropout: float = Field(0.0, ge=0, lt=1)
    options: dict[str, bool | int | float | str] = {}
    frozen: tuple[str, ...] = ()


class DesignSettings(Settings):
    """A batch design: `per_batch` clusters of a partition into `parts`, or `per_batch` nodes.

    Attributes:
        name: ``"clusters"``: clusters, every set of that size equally likely; ``"epoch"``: clusters without replacement
            within an epoch; ``"fused"``: fixed groups of clusters; ``"nodes"``: nodes, every set equally likely.
        partition: how the nodes are divided into clusters; ``"nodes"`` has none.
        parts: number of clusters.
        per_batch: clusters in a batch, or nodes with ``"nodes"``.
        seen: clusters that the epoch has already used, where `name` is ``"epoch"``.
    """

    name: Literal["clusters", "epoch", "fused", "nodes"] = "clusters"
    partition: Literal["metis", "random", "contiguous"] = "metis"
    parts: Count = 8
    per_batch: Count = 2
    seen: tuple[Annotated[int, Field(ge=0, le=MOST_COUNT)], ...] = ()

    @model_validator(mode="after")
    def _check_read(self) -> DesignSettings:
        unread = {"clusters": ("seen",), "fused": ("seen",), "nodes": ("partition", "parts", "seen")}
        for name in unread.get(self.name, ()):
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(
                    f"{name} is not read by the design {self.name!r}; leave it out, or choose another design"
                )
        return self


class SamplingSettings(Settings):
    """How statistical verdicts are reached; verdicts by enumeration do not read it.

    Attributes:
        alpha: probability of a false verdict that this check may spend. A suite splits its total over its checks.
        delta: largest bias, in units of the exact gradient's norm, that still counts as none.
        draws: most batches that are drawn before a test gives up.
        seeds: independent training runs of a rate; None for as many as `alpha` needs.
        replicate: number of the repetition; another one has fresh draws of the same case.
        guarantee: the weakest guarantee that a verdict may have: "asymptotic" allows a decision where no range of the
            draws is proven, "anytime-valid" leaves it undecided.
    """

    alpha: float = Field(1e-6, gt=0, lt=0.5)
    delta: float = Field(0.1, gt=0)
    draws: Count = 20_000
    seeds: Count | None = None
    replicate: int = Field(0, ge=0, le=MOST_COUNT)
    guarantee: Literal["asymptotic", "anytime-valid"] = "asymptotic"


class TrainingSettings(Settings):
    """The training runs along which claims about convergence are checked.

    Attributes:
        step_size: eta_0. Runs of N steps use ``eta_0 N^(-2/3)`` where a schedule is claimed, else this value itself.
        largest_step: whether a rate in N finds its eta_0 itself and does not read `step_size`: the shortest run takes a
            quarter of the largest step size with which full-batch descent is stable over it.
        stable_share: another part of that step size, where `largest_step` looks for it; up to 1, all of it.
        steps: steps of a run, where a claim does not take `lengths`.
        lengths: numbers of steps N, ascending, where a rate in N is claimed.
        repeats: independent runs of each length that one seed averages.
        beta_schedule: whether a run of N steps keeps the estimator's beta or uses ``beta N^(-2/3)``, where a claim
            leaves the choice.
    """

    step_size: float = Field(0.005, gt=0)
    largest_step: bool = False
    stable_share: float | None = Field(None, gt=0, le=1)
    steps: Count = 60
    lengths: tuple[Count, ...] = (32, 64, 128, 256, 512)
    repeats: Count = 1
    beta_schedule: Literal["constant", "decaying"] = "constant"

    @field_validator("lengths")
    @classmethod
    def _check_lengths(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if len(value) < 3 or any(left >= right for left, right in pairwise((0, *value))):
            raise ValueError(f"lengths is {value}, it needs at least three ascending numbers of steps above 0")
        return value


class CaseSettings(Settings):
    """Everything that determines a case.

    Attributes:
        dataset: the data set, by name, with its options.
        model: the model.
        estimator: the estimator, by name, with its settings.
        design: what batches are drawn from.
        sampling: how verdicts from draws are reached.
        training: the training runs of claims about convergence.
        seed: root seed: of generated graphs, partitions, parameters and batches.
        histories: what histories hold when the estimates are made: ``"exact"`` values, ``"zero"``, or the result of
            ``"sweeps:k"``, k sweeps over all clusters from zero at the same parameters.
    """

    dataset: DatasetSettings = DatasetSettings(name="digits")
    model: ModelSettings = ModelSettings()
    estimator: EstimatorSettings = EstimatorSettings(name="backward-sgd")
    design: DesignSettings = DesignSettings()
    sampling: SamplingSettings = SamplingSettings()
    training: TrainingSettings = TrainingSettings()
    histories: str = "exact"
    seed: Seed = 0

    @field_validator("histories")
    @classmethod
    def _check_histories(cls, value: str) -> str:
        return known_histories(value)

    def canonical(self) -> str:
        """Return the settings as one line of JSON with sorted keys: the identity of the case.

        Raises:
            PluginError: the estimator is a plug-in's that cannot be used.
        """
        case = self.model_copy(update={"estimator": self.estimator.identity})
        return json.dumps(case.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
