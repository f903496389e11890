"""Races as parts of a suite: `[[race]]` tables, what they plan, and what is recorded of every run.

A race trains several contestants on one data set, each once per seed. One training run is the unit of work: it is
recorded in its own transaction, and a run that two races of a suite have in common is made once.

.. code-block:: toml

    presets = ["quick", "full"] # the first is the default

    [[race]]
    title = "Convergence against time"
    figure = ["convergence", "time-to-accuracy"]
    dataset = ["cs", "computers"]
    estimator = ["full-batch", "lmc", { name = "gas", label = "GAS" }]
    design = { parts = 40, per_batch = [2, 10] }
    trainer = { epochs = 20 }
    seeds = 3
    optional = true

    [race.presets.full]
    trainer = { epochs = 300 }
    seeds = 5
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch

from lmc_verify.cases import command_line, plugins_of
from lmc_verify.encoding import plain, untagged
from lmc_verify.provenance import code_fingerprint
from lmc_verify.races.contest import race_runs
from lmc_verify.races.record import RaceEntry
from lmc_verify.races.settings import ContestantSettings, RaceSettings
from lmc_verify.training import RunSettings

__all__ = ["FIGURES", "PlannedRace", "PlannedRun", "RaceHeader", "RaceRun", "crashed_run", "run_command"]

FIGURES = ("convergence", "time-to-accuracy", "gradient-errors", "batch-sizes", "ablation")
"""Kinds of pictures, in the order of the paper's figures 3 to 7."""

FULL_BATCH = "full-batch"


@dataclass(frozen=True)
class PlannedRace:
    """A race that is to be run.

    Attributes:
        settings: of the race; its `figure` is the first of `figures`.
        figures: kinds of pictures that are drawn of it.
        optional: whether an absent data set only leaves it out.
        timeout: seconds that each training run may take, in a process of its own; None for what the run allows.
    """

    settings: RaceSettings
    figures: tuple[str, ...] = ()
    optional: bool = False
    timeout: float | None = None

    @property
    def key(self) -> str:
        """Identity of the race: its settings, without what pictures and tables are made of it."""
        values = self.settings.model_dump(mode="json", exclude={"title", "figure"})
        for item, contestant in zip(values["contestants"], self.settings.contestants, strict=True):
            item["estimator"] = contestant.estimator.identity.model_dump(mode="json")
        return _digest("race", values)

    @property
    def label(self) -> str:
        """One line for progress displays."""
        return f"{self.settings.title or 'race'} on {self.settings.dataset.describe()}"

    @property
    def runs(self) -> tuple[PlannedRun, ...]:
        """Every run, those that only set the target included, in the order in which they are made."""
        return tuple(PlannedRun(self, contestant, seed) for contestant, seed in race_runs(self.settings))

    @property
    def header(self) -> RaceHeader:
        """What is recorded of the race itself."""
        return RaceHeader(self.key, self.settings, self.figures, len(self.runs))


@dataclass(frozen=True)
class PlannedRun:
    """One training run of one contestant that is to be made."""

    race: PlannedRace
    contestant: ContestantSettings
    seed: int

    kind: ClassVar[Literal["training"]] = "training"

    @property
    def settings(self) -> RunSettings:
        """Everything that the run depends on."""
        return self.race.settings.run_of(self.contestant, self.seed)

    @property
    def key(self) -> str:
        """Identity for resuming: everything that the run depends on, and the versions of the code and of torch.

        Versions of plug-ins are among them. Runs of different races with one identity are the same run. Names, titles
        and the target are no part of it, nor is the design of full-batch training, which looks at no batch, except
        for the clusters that nodes are arranged by.
        """
        values = self.settings.model_dump(mode="json")
        values["estimator"] = self.contestant.estimator.identity.model_dump(mode="json")
        if self.contestant.estimator.name == FULL_BATCH:
            values["design"] = {key: values["design"].get(key) for key in ("partition", "parts")}
        return _digest("run", {**values, "plugins": plugins_of(self.settings)})

    @property
    def label(self) -> str:
        """One line for progress displays."""
        return f"{self.race.label}: {self.contestant.label}, seed {self.seed}"

    @property
    def command(self) -> str:
        """The command that makes the run again."""
        return run_command(self.settings)


@dataclass(frozen=True)
class RaceHeader:
    """What is recorded of a race before its first run.

    Attributes:
        key: identity of the race.
        settings: of the race.
        figures: kinds of pictures that are drawn of it.
        planned: number of runs.
        reason: why it was not run, such as a data set that is absent; empty if it was.
    """

    key: str
    settings: RaceSettings
    figures: tuple[str, ...]
    planned: int
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the header as plain values."""
        return {
            "key": self.key,
            "settings": self.settings.model_dump(mode="json"),
            "figures": list(self.figures),
            "planned": self.planned,
            "reason": self.reason,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RaceHeader:
        """Rebuild a header from `to_dict`."""
        return cls(
            key=values["key"],
            settings=RaceSettings.read(values["settings"]),
            figures=tuple(values["figures"]),
            planned=values["planned"],
            reason=values["reason"],
        )


@dataclass(frozen=True)
class RaceRun:
    """What is recorded of one training run of one contestant.

    Attributes:
        key: identity for resuming.
        race: identity of the race.
        entry: the run; whether it reached the target is found when all runs of the race are there.
        command: the command that makes it again.
        seconds: wall-clock time it took, evaluations included.
    """

    key: str
    race: str
    entry: RaceEntry
    command: str
    seconds: float

    @property
    def outcome(self) -> str:
        """Status of the run; ``"failed"`` where it raised an error."""
        return self.entry.status

    @property
    def crashed(self) -> bool:
        """Whether the run raised an error, and says nothing."""
        return self.entry.status == "failed"

    def to_dict(self) -> dict[str, Any]:
        """Return the run as plain values."""
        values = {name: getattr(self, name) for name in ("key", "race", "command", "seconds")}
        return {**plain(values), "entry": self.entry.to_dict()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RaceRun:
        """Rebuild a run from `to_dict`."""
        fields = {name: untagged(values[name]) for name in ("key", "race", "command", "seconds")}
        return cls(entry=RaceEntry.from_dict(values["entry"]), **fields)


def crashed_run(planned: PlannedRun, words: str, seconds: float) -> RaceRun:
    """Return what is recorded of a training run that came to another end, with what happened in words."""
    entry = RaceEntry(planned.contestant.label, planned.seed, 0, None, None, f"failed: {words}", "failed")
    return RaceRun(planned.key, planned.race.key, entry, planned.command, seconds)


def run_command(settings: RunSettings) -> str:
    """Return the `lmc-verify train` command of a run, with every setting that is not the default."""
    # Epochs are None where the run's length is given in steps, which implies it.
    usual = RunSettings().model_dump(exclude={"dataset", "estimator", "seed"})
    return command_line("train", settings.model_dump(), usual)


def _digest(kind: str, values: Mapping[str, Any]) -> str:
    text = "\n".join([kind, json.dumps(values, sort_keys=True), code_fingerprint(), torch.__version__])
    return hashlib.sha256(text.encode()).hexdigest()
