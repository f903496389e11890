"""Races as parts of a suite: `[[race]]` tables, what they plan, and what is recorded of every run.

A race trains several contestants on one data set, each once a seed. One run of one contestant is the unit of work: it
is recorded in its own transaction, and a run that two races of a suite have in common is made once.

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
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field

from lmc_verify.case import build_estimator, case_plugins, check_dataset
from lmc_verify.encoding import plain, toml_value, untagged
from lmc_verify.errors import InvalidInputError, UnknownNameError
from lmc_verify.models import MODELS
from lmc_verify.provenance import code_fingerprint
from lmc_verify.training import ContestantSettings, RaceEntry, RaceSettings, RunSettings, race_runs

__all__ = ["FIGURES", "PlannedRace", "PlannedRun", "RaceHeader", "RaceRun", "RaceTable", "expand_race", "run_command"]

FIGURES = ("convergence", "time-to-accuracy", "gradient-errors", "batch-sizes", "ablation")
"""Kinds of pictures, in the order of the paper's figures 3 to 7."""

FULL_BATCH = "full-batch"


class RaceTable(BaseModel):
    """One `[[race]]` table: the settings of `RaceSettings`, and those below.

    Attributes:
        figure: which pictures are drawn of it: one or several.
        dataset: one or several; each is a race of its own.
        estimator: contestants are every estimator with every design; instead of `contestants`. A table may name a
            label and, in ``trainer``, settings of its own.
        design: one or several; every setting of it may be one value or a list of values.
        seeds: of the runs, or how many.
        optional: whether the data set may be absent; the race is then reported as not run, with the reason.
        presets: what a preset changes, by its name: settings of this table, tables merged key by key. False: the
            preset leaves the race out.
    """

    model_config = ConfigDict(extra="allow")

    figure: str | list[str] = Field(default_factory=list)
    dataset: str | dict[str, Any] | list[str | dict[str, Any]]
    estimator: str | dict[str, Any] | list[str | dict[str, Any]] | None = None
    design: dict[str, Any] | list[dict[str, Any]] | None = None
    contestants: list[Any] | None = None
    seeds: int | list[int] = 5
    optional: bool = False
    presets: dict[str, dict[str, Any] | Literal[False]] = Field(default_factory=dict)

    @property
    def others(self) -> dict[str, Any]:
        """The settings that are those of a race as they stand."""
        return dict(self.__pydantic_extra__ or {})


@dataclass(frozen=True)
class PlannedRace:
    """A race that is to be run.

    Attributes:
        settings: of the race; its `figure` is the first of `figures`.
        figures: kinds of pictures that are drawn of it.
        optional: whether an absent data set only leaves it out.
    """

    settings: RaceSettings
    figures: tuple[str, ...] = ()
    optional: bool = False

    @property
    def key(self) -> str:
        """Identity of the race: its settings, without what pictures and tables are made of it."""
        values = self.settings.model_dump(mode="json", exclude={"title", "figure"})
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
    """One run of one contestant that is to be made."""

    race: PlannedRace
    contestant: ContestantSettings
    seed: int

    @property
    def settings(self) -> RunSettings:
        """Everything that the run depends on."""
        return self.race.settings.run_of(self.contestant, self.seed)

    @property
    def key(self) -> str:
        """Identity for resuming: everything that the run depends on, and the versions of the code and of torch.

        Versions of plug-ins are among them. Runs of different races with one identity are the same run. Names, titles
        and the target are no part of it, nor is the design of full-batch training, which looks at no batch, but for
        the clusters that nodes are arranged by.
        """
        values = self.settings.model_dump(mode="json")
        if self.contestant.estimator.name == FULL_BATCH:
            values["design"] = {key: values["design"].get(key) for key in ("partition", "parts")}
        return _digest("run", {**values, "plugins": case_plugins(self.settings)})

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
    """What is recorded of one run of one contestant.

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


def run_command(settings: RunSettings) -> str:
    """Return the `lmc-verify train` command of a run, with every setting that is not the default."""
    words = ["lmc-verify", "train", "--dataset", settings.dataset.name, "--estimator", settings.estimator.name]
    words += ["--seed", str(settings.seed)]
    default = dict(_flat(RunSettings().model_dump(mode="json")))
    for key, value in _flat(settings.model_dump(mode="json", exclude={"seed"})):
        named = key in ("dataset.name", "estimator.name")
        if named or value is None or (key in default and default[key] == value):
            continue  # None is the default wherever it is allowed, or what another length of the run implies
        words += ["--set", f"{key}={toml_value(value)}"]
    return shlex.join(words)


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def expand_race(table: RaceTable, preset: str | None, suite_seed: int) -> Iterator[PlannedRace]:
    """Yield the races of a table under a preset: one for each data set; none if the preset leaves it out.

    Raises:
        InvalidInputError: an unknown name or setting.
        ValidationError: a setting that does not fit.
    """
    change = table.presets.get(preset, {}) if preset is not None else {}
    if change is False:
        return
    if "presets" in change:
        raise InvalidInputError("a preset cannot have presets of its own; move them up")
    base = table.model_dump(exclude={"presets"}, exclude_unset=True)
    lengths = {"epochs", "steps"}
    if lengths & set(change.get("trainer", ())):  # a new length replaces the old one, in either unit
        base["trainer"] = {key: value for key, value in base.get("trainer", {}).items() if key not in lengths}
    table = RaceTable.model_validate(_merged(base, change))
    contestants = _contestants(table)
    figures = _figures(table)
    seeds = table.seeds if isinstance(table.seeds, list) else list(range(suite_seed, suite_seed + table.seeds))
    datasets = table.dataset if isinstance(table.dataset, list) else [table.dataset]
    for dataset in datasets:
        values = {"data_seed": suite_seed, **table.others, "dataset": dataset, "contestants": contestants}
        settings = RaceSettings.read({**values, "seeds": seeds, "figure": figures[0] if figures else None})
        _check_names(settings)
        race = PlannedRace(settings, figures, table.optional)
        _refuse_twins(race)
        yield race


def _refuse_twins(race: PlannedRace) -> None:
    labels: dict[str, str] = {}
    for run in race.runs:
        label = labels.setdefault(run.key, run.contestant.label)
        if label != run.contestant.label:
            raise InvalidInputError(
                f"contestants {label!r} and {run.contestant.label!r} are trained alike; leave one of them out"
            )


def _figures(table: RaceTable) -> tuple[str, ...]:
    wanted = _list(table.figure)
    for name in wanted:
        if name not in FIGURES:
            raise UnknownNameError("figure", name, FIGURES)
    return tuple(name for name in FIGURES if name in wanted)


def _check_names(settings: RaceSettings) -> None:
    check_dataset(settings.dataset)
    if settings.model.name not in MODELS:
        raise UnknownNameError("model", settings.model.name, MODELS)
    for contestant in settings.contestants:
        build_estimator(contestant.estimator)


def _contestants(table: RaceTable) -> list[Any]:
    """Return the contestants as written, or every estimator with every design."""
    if table.contestants is not None:
        if table.estimator is not None or table.design is not None:
            raise InvalidInputError("contestants are given, and estimator or design too; give either of the two")
        return table.contestants
    if table.estimator is None:
        raise InvalidInputError("a race has no contestants; give estimator (and design), or contestants")
    designs = [item for written in _list(table.design or {}) for item in _spread(written)]
    varying = [key for key in {key: None for design in designs for key in design} if _differs(designs, key)]
    contestants: list[dict[str, Any]] = []
    for written in _list(table.estimator):
        estimator = {"name": written} if isinstance(written, str) else dict(written)
        label, trainer = estimator.pop("label", ""), estimator.pop("trainer", {})
        if not label:
            settings = " ".join(f"{key}={value}" for key, value in sorted(estimator.items()) if key != "name")
            label = f"{estimator.get('name')} {settings}".strip()
        single = estimator.get("name") == FULL_BATCH
        for design in designs[:1] if single else designs:
            parts = [] if single else [_design_words(key, design.get(key)) for key in varying]
            named = {"label": ", ".join([label, *parts]), "trainer": trainer}
            contestants.append({"estimator": estimator, "design": design, **named})
    return contestants


def _spread(design: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield every combination of a design's settings; ``seen`` is a list by itself."""
    axes = [value if isinstance(value, list) and key != "seen" else [value] for key, value in design.items()]
    for values in product(*axes):
        yield dict(zip(design, values, strict=True))


def _design_words(key: str, value: Any) -> str:
    return f"{value} a batch" if key == "per_batch" else f"{value} parts" if key == "parts" else f"{key} {value}"


def _differs(designs: Sequence[Mapping[str, Any]], key: str) -> bool:
    return len({json.dumps(design.get(key)) for design in designs}) > 1


def _list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list) else [value]


def _merged(base: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """Return a table with another's values in place of its own, tables within it merged likewise."""
    out = dict(base)
    for key, value in change.items():
        known = out.get(key)
        both = isinstance(known, Mapping) and isinstance(value, Mapping)
        out[key] = _merged(known, value) if both else value  # type: ignore[arg-type]  # both are mappings
    return out


def _digest(kind: str, values: Mapping[str, Any]) -> str:
    text = "\n".join([kind, json.dumps(values, sort_keys=True), code_fingerprint(), torch.__version__])
    return hashlib.sha256(text.encode()).hexdigest()
