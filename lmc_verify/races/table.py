"""`[[race]]` tables of a suite, and the races that they plan."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from lmc_verify.cases import EstimatorSettings, Workspace, build_estimator
from lmc_verify.errors import InvalidInputError, UnknownNameError, validated
from lmc_verify.races.plan import FIGURES, FULL_BATCH, PlannedRace
from lmc_verify.races.settings import RaceSettings

__all__ = ["MOST_RUNS", "RaceTable", "expand_race", "planned_race"]

MOST_RUNS = 10_000
"""The most training runs that one table may plan."""


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
        timeout: seconds that each training run may take; what takes longer is ended, and an error.
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
    timeout: float | None = Field(None, gt=0, allow_inf_nan=False)
    presets: dict[str, dict[str, Any] | Literal[False]] = Field(default_factory=dict)

    @classmethod
    def of(cls, settings: RaceSettings) -> RaceTable:
        """Return the table that plans one race."""
        return cls.model_validate({**settings.model_dump(mode="json"), "figure": settings.figure or []})

    @property
    def others(self) -> dict[str, Any]:
        """The settings that are those of a race as they stand."""
        return dict(self.__pydantic_extra__ or {})


def expand_race(
    table: RaceTable, preset: str | None, suite_seed: int, workspace: Workspace | None = None
) -> Iterator[PlannedRace]:
    """Yield the races of a table under a preset: one for each data set; none if the preset leaves it out.

    Args:
        table: as written.
        preset: name of the preset, or None.
        suite_seed: seed of the suite, from which those of the runs follow where they are a number of seeds.
        workspace: where data sets and models come from, see `planned_race`.

    Raises:
        InvalidInputError: an unknown name or setting, or a setting that does not fit.
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
    table = validated(RaceTable, _merged(base, change))
    _require_few(table)
    contestants = _contestants(table)
    figures = _figures(table)
    seeds = table.seeds if isinstance(table.seeds, list) else list(range(suite_seed, suite_seed + table.seeds))
    datasets = table.dataset if isinstance(table.dataset, list) else [table.dataset]
    for dataset in datasets:
        values = {"data_seed": suite_seed, **table.others, "dataset": dataset, "contestants": contestants}
        settings = RaceSettings.read({**values, "seeds": seeds, "figure": figures[0] if figures else None})
        race = planned_race(settings, figures, optional=table.optional, workspace=workspace)
        yield replace(race, timeout=table.timeout)


def planned_race(
    settings: RaceSettings,
    figures: tuple[str, ...] | None = None,
    *,
    optional: bool = False,
    workspace: Workspace | None = None,
) -> PlannedRace:
    """Return the race that settings plan.

    Args:
        settings: the race.
        figures: kinds of pictures that are drawn of it; by default the one that the settings name.
        optional: whether an absent data set only leaves it out.
        workspace: where data sets and models come from; what a subclass of it knows by name is its own business.

    Raises:
        InvalidInputError: an unknown name or setting, or contestants that are trained alike.
    """
    workspace = workspace or Workspace()
    workspace.check_dataset(settings.dataset)
    workspace.check_model(settings.model)
    for contestant in settings.contestants:
        build_estimator(contestant.estimator)
    if figures is None:
        figures = () if settings.figure is None else (settings.figure,)
    race = PlannedRace(settings, figures, optional)
    labels: dict[str, str] = {}
    for run in race.runs:
        label = labels.setdefault(run.key, run.contestant.label)
        if label != run.contestant.label:
            raise InvalidInputError(
                f"contestants {label!r} and {run.contestant.label!r} are trained alike; leave one of them out"
            )
    return race


def _require_few(table: RaceTable) -> None:
    """Raise InvalidInputError if a table plans too many runs; they are counted, not made."""
    spread = [
        math.prod(len(value) for key, value in written.items() if isinstance(value, list) and key != "seen")
        for written in _list(table.design or {})
    ]
    contestants = len(table.contestants or []) or len(_list(table.estimator)) * sum(spread)
    seeds = table.seeds if isinstance(table.seeds, int) else len(table.seeds)
    runs = contestants * seeds * len(_list(table.dataset))
    if runs > MOST_RUNS:
        raise InvalidInputError(f"the race has {runs:,} training runs, at most {MOST_RUNS:,} are planned; split it")


def _figures(table: RaceTable) -> tuple[str, ...]:
    wanted = _list(table.figure)
    for name in wanted:
        if name not in FIGURES:
            raise UnknownNameError("figure", name, FIGURES)
    return tuple(name for name in FIGURES if name in wanted)


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
            label = validated(EstimatorSettings, estimator, at="estimator").describe()
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
    return f"{value} per batch" if key == "per_batch" else f"{value} parts" if key == "parts" else f"{key} {value}"


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
